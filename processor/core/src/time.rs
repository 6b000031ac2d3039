//! Instants and lengths of time as the core sees them: whole microseconds since the Unix epoch, handed in by the caller.
//!
//! Not a clock. Invariant: arithmetic saturates, so no header, however hostile, can make it wrap into "now".

use std::fmt;
use std::ops::Add;
use std::time::Duration;

use chrono::DateTime;

/// Microseconds in a millisecond.
const MICROS_PER_MILLI: u64 = 1_000;

/// An instant: whole microseconds since the Unix epoch.
///
/// Headers carry milliseconds; inside, a finer unit is kept so that an attempt is not early by a fraction of a millisecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

// === impl Timestamp ===

impl Timestamp {
    /// The Unix epoch.
    pub const EPOCH: Self = Self(0);
    /// Later than every instant a task can name.
    pub const MAX: Self = Self(u64::MAX);

    /// The instant `micros` microseconds after the epoch.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// The instant `millis` milliseconds after the epoch, the unit of every header.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(MICROS_PER_MILLI))
    }

    /// The instant that a text of RFC 3339 names, such as `2026-12-24T09:00:00+01:00`, rounded up; none if it is no such text, or before the
    /// epoch.
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let time = DateTime::parse_from_rfc3339(text).ok()?;
        let more = !time.timestamp_subsec_nanos().is_multiple_of(1_000);
        let micros = u64::try_from(time.timestamp_micros()).ok()?;
        Some(Self(micros + u64::from(more)))
    }

    /// Whole microseconds since the epoch.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Whole milliseconds since the epoch, rounded down.
    pub const fn as_millis(self) -> u64 {
        self.0 / MICROS_PER_MILLI
    }

    /// The next whole millisecond at or after this instant, so that a due time survives its trip through a header unchanged.
    #[must_use]
    pub const fn ceil_to_millis(self) -> Self {
        Self(
            self.0
                .div_ceil(MICROS_PER_MILLI)
                .saturating_mul(MICROS_PER_MILLI),
        )
    }

    /// The time from `earlier` to this instant; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// This instant less `span`; the epoch if that would be before it.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(micros(span)))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(micros(span)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}.{:03}ms",
            self.as_millis(),
            self.0 % MICROS_PER_MILLI
        )
    }
}

/// A span in whole microseconds, rounded up so that a wait is never cut short.
fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_nanos().div_ceil(1_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_due_time_is_never_rounded_down() {
        let due = Timestamp::from_micros(1_500_001).ceil_to_millis();

        assert_eq!(due, Timestamp::from_millis(1_501));
        assert_eq!(due.ceil_to_millis(), due);
    }

    #[test]
    fn a_text_names_an_instant_whatever_its_offset() {
        let instant = Some(Timestamp::from_millis(1_798_099_200_500));

        for text in ["2026-12-24T08:00:00.5Z", "2026-12-24T09:00:00.500+01:00"] {
            assert_eq!(Timestamp::from_rfc3339(text), instant, "{text}");
        }
        for text in [
            "",
            "2026-12-24",
            "2026-12-24T08:00:00",
            "1969-12-31T00:00:00Z",
            "soon",
        ] {
            assert_eq!(Timestamp::from_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Timestamp::MAX + Duration::MAX, Timestamp::MAX);
        assert_eq!(
            Timestamp::EPOCH.before(Duration::from_secs(1)),
            Timestamp::EPOCH
        );
        assert_eq!(
            Timestamp::EPOCH.since(Timestamp::from_millis(5)),
            Duration::ZERO
        );
        assert_eq!(
            Timestamp::from_millis(u64::MAX),
            Timestamp::from_micros(u64::MAX)
        );
    }
}

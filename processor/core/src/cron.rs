//! Cron schedules in a time zone: the instants they name, whatever the clocks of that zone do.
//!
//! The grammar is that of Unix: five fields, or six with seconds first, and weekdays from 0 or 7 for Sunday. What Quartz writes in another way
//! is refused where it would mean something else here, with what means the same; [`Schedule::notes`] tells the rest.
//!
//! Pure: the rules of all zones are compiled in (IANA's, by `chrono-tz`), the system's are never asked. Invariant: a [`Schedule`] that
//! exists fires in every year.

use std::fmt;
use std::ops::Range;

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use chrono_tz::{TZ_VARIANTS, Tz};
use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};

use crate::time::Timestamp;

/// A cron expression and the zone whose wall clock it is read on.
///
/// Where the clock is set forward, an expression that names one time of the day fires right after the gap, and one that names several
/// leaves out those that do not exist. Where it is set back, the former fires once, at the first of the two instants, and the latter
/// at both.
#[derive(Clone, PartialEq)]
pub struct Schedule {
    /// The expression as it was written.
    text: Box<str>,
    /// The zone.
    zone: Tz,
    /// The expression, parsed.
    cron: Box<Cron>,
}

/// Why something is no schedule.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The zone is not one of IANA's.
    #[error("unknown time zone `{0}`")]
    Zone(String),
    /// The expression is longer than any that makes sense.
    #[error("a cron expression of more than {MAX_TEXT} bytes")]
    TooLong,
    /// The expression cannot be read.
    #[error("no cron expression")]
    Unreadable {
        /// What is wrong with it.
        #[source]
        source: CronError,
    },
    /// It is written as another scheduler has it.
    #[error("{0}")]
    Foreign(String),
    /// The expression names instants that do not come, or not in every year, such as 30 February.
    #[error("a cron expression that does not fire in every year")]
    Rare,
}

/// Longest expression that is read, in bytes: room for lists in every field.
pub const MAX_TEXT: usize = 256;

/// The years in which a schedule has to fire: a whole cycle of weekdays and leap years.
const CYCLE: Range<i32> = 2001..2029;

/// How long after New Year a schedule may fire that fires once in every year: some days more than a year, since what fell on 1 January where
/// the day begins early was before it in UTC, and the first Monday of January comes up to six days later in the year after.
const LONG_YEAR: TimeDelta = TimeDelta::days(374);

// === impl Schedule ===

impl Schedule {
    /// The schedule of a cron expression (five fields, or six with seconds first) on the wall clock of an IANA zone.
    pub fn try_new(text: &str, zone: &str) -> Result<Self, Error> {
        let zone: Tz = zone.parse().map_err(|_| Error::Zone(zone.to_owned()))?;
        if text.len() > MAX_TEXT {
            return Err(Error::TooLong);
        }
        if let Some(message) = foreign(text) {
            return Err(Error::Foreign(message));
        }
        let cron = CronParser::builder()
            .seconds(Seconds::Optional)
            .year(Year::Disallowed)
            .build()
            .parse(text)
            .map_err(|source| Error::Unreadable { source })?;
        let schedule = Self {
            text: text.into(),
            zone,
            cron: Box::new(cron),
        };
        if !CYCLE.into_iter().all(|year| schedule.fires_in(year)) {
            return Err(Error::Rare);
        }
        Ok(schedule)
    }

    /// The first instant of the schedule at or after `earliest`; none if that is further off than the calendar goes.
    pub fn first_from(&self, earliest: Timestamp) -> Option<Timestamp> {
        // A schedule names whole seconds: past the second before, at or after.
        let before = earliest.as_micros().saturating_sub(1) / 1_000_000;
        let start = DateTime::from_timestamp(before.try_into().ok()?, 0)?;
        let next = self.next_after(&start.with_timezone(&self.zone))?;
        let millis = u64::try_from(next.timestamp_millis()).ok()?;
        Some(Timestamp::from_millis(millis)).filter(|next| *next >= earliest)
    }

    /// An instant on the wall clock of the zone, with its weekday.
    pub fn wall(&self, instant: Timestamp) -> Option<String> {
        wall(instant, self.zone)
    }

    /// What people who know another scheduler should know of the expression.
    pub fn notes(&self) -> Vec<String> {
        let fields: Vec<&str> = self.text.split_whitespace().collect();
        let [.., days, _, weekdays] = fields[..] else {
            return Vec::new();
        };
        let mut notes = Vec::new();
        if has_number(weekdays) {
            notes.push(format!(
                "weekdays `{weekdays}` are counted as in Unix: {}; Quartz counts from 1 = Sunday",
                named(weekdays)
            ));
        }
        if fields.contains(&"?") {
            notes.push("`?` is read as `*`".to_owned());
        }
        let is_open = |field: &str| matches!(field, "*" | "?");
        if !is_open(days) && !is_open(weekdays) {
            notes.push(format!(
                "it fires on days `{days}` of the month and on weekdays `{weekdays}`, whichever comes: either of both is enough, as in Unix"
            ));
        }
        notes
    }

    /// Whether the schedule fires within about a year from New Year.
    fn fires_in(&self, year: i32) -> bool {
        // In UTC: there are zones that leave out midnight, or all of New Year.
        let start = Utc.with_ymd_and_hms(year, 1, 1, 0, 0, 0).earliest();
        let next = start.and_then(|start| self.next_after(&start.with_timezone(&self.zone)));
        match (start, next) {
            (Some(start), Some(next)) => next.with_timezone(&Utc) - start < LONG_YEAR,
            _ => false,
        }
    }

    /// The first instant of the schedule after `start`, which is a whole second.
    fn next_after(&self, start: &DateTime<Tz>) -> Option<DateTime<Tz>> {
        self.cron.find_next_occurrence(start, false).ok()
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Schedule")
            .field("text", &self.text)
            .field("zone", &self.zone)
            .finish_non_exhaustive()
    }
}

/// An instant in UTC, with its weekday.
pub fn in_utc(instant: Timestamp) -> Option<String> {
    wall(instant, Tz::UTC)
}

/// An instant on the wall clock of a zone, with its weekday.
fn wall(instant: Timestamp, zone: Tz) -> Option<String> {
    let millis = i64::try_from(instant.as_millis()).ok()?;
    let local = zone.timestamp_millis_opt(millis).single()?;
    let seconds = local.format("%a %Y-%m-%dT%H:%M:%S%.f");
    let offset = match local.format("%:z").to_string().as_str() {
        "+00:00" => "Z".to_owned(),
        offset => offset.to_owned(),
    };
    Some(format!("{seconds}{offset}"))
}

/// What is wrong with an expression that another scheduler would read in another way, and what means the same here.
fn foreign(text: &str) -> Option<String> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() == 7 {
        let six = fields[..6].join(" ");
        return Some(format!(
            "seven fields, as Quartz has them with a year: retide knows no years, expected five fields, or six with seconds first, such as `{six}`"
        ));
    }
    if !matches!(fields.len(), 5 | 6) {
        return None;
    }
    let stepped = |field: &&str| {
        field
            .split_once('/')
            .is_some_and(|(start, _)| is_number(start))
    };
    if fields.iter().any(stepped) {
        let mended: Vec<String> = fields.iter().map(|field| with_range(field)).collect();
        return Some(format!(
            "`0/15` is Quartz' way to write a step; did you mean `{}`?",
            mended.join(" ")
        ));
    }
    let weekdays = *fields.last()?;
    if fields.contains(&"?") && has_number(weekdays) {
        let others = fields[..fields.len() - 1].iter();
        let others: Vec<&str> = others
            .map(|field| if *field == "?" { "*" } else { field })
            .collect();
        let others = others.join(" ");
        let (ours, quartz) = (named(weekdays), named(&shifted(weekdays)));
        return Some(format!(
            "`?` is Quartz', where weekday `{weekdays}` is {quartz}, and in Unix {ours}: write it by name, such as `{others} {quartz}` or `{others} {ours}`"
        ));
    }
    None
}

/// The names of weekdays, from Unix' 0 to 7.
const WEEKDAYS: [&str; 8] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN"];

/// Whether a field is a number.
fn is_number(field: &str) -> bool {
    !field.is_empty() && field.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether weekdays are written as numbers; those of steps and of weeks of the month are none.
fn has_number(weekdays: &str) -> bool {
    days(weekdays).0 != weekdays
}

/// The field with the names of its weekdays.
fn named(weekdays: &str) -> String {
    days(weekdays).0
}

/// The field as Quartz means it, counted as in Unix.
fn shifted(weekdays: &str) -> String {
    days(weekdays).1
}

/// The field with its weekdays by name, and with each a number less, as Quartz counts them.
fn days(weekdays: &str) -> (String, String) {
    let (mut names, mut less) = (String::new(), String::new());
    let mut is_day = true;
    for letter in weekdays.chars() {
        match letter.to_digit(10).map(|digit| digit as usize) {
            Some(digit) if is_day && digit < WEEKDAYS.len() => {
                names.push_str(WEEKDAYS[digit]);
                less.push_str(&digit.saturating_sub(1).to_string());
            }
            _ => {
                names.push(letter);
                less.push(letter);
            }
        }
        // What follows these is a step, or a week of the month.
        is_day = match letter {
            '/' | '#' => false,
            ',' | '-' => true,
            _ => is_day,
        };
    }
    (names, less)
}

/// A field whose step begins at a number, as a range that goes on to the end.
fn with_range(field: &str) -> String {
    match field.split_once('/') {
        Some(("0", step)) => format!("*/{step}"),
        Some((start, step)) if is_number(start) => format!("{start}-59/{step}"),
        Some(_) | None => field.to_owned(),
    }
}

/// The names of all zones.
pub fn zones() -> impl Iterator<Item = &'static str> {
    TZ_VARIANTS.iter().map(|zone| zone.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    use chrono::{Datelike, Timelike};
    use proptest::prelude::*;

    fn schedule(text: &str, zone: &str) -> Schedule {
        Schedule::try_new(text, zone).unwrap()
    }

    fn instant(text: &str) -> Timestamp {
        Timestamp::from_rfc3339(text).unwrap()
    }

    /// The `count` instants from `start` on, on the wall clock of the zone.
    fn firings(text: &str, zone: &str, start: &str, count: usize) -> Vec<String> {
        let schedule = schedule(text, zone);
        let mut earliest = instant(start);
        let mut all = Vec::new();
        for _ in 0..count {
            let next = schedule.first_from(earliest).unwrap();
            let millis = i64::try_from(next.as_millis()).unwrap();
            let local = schedule.zone.timestamp_millis_opt(millis).unwrap();
            all.push(local.format("%d %H:%M %Z").to_string());
            earliest = Timestamp::from_micros(next.as_micros() + 1);
        }
        all
    }

    #[test]
    fn one_time_of_the_day_fires_once_a_day_whatever_the_clock_does() {
        // Set forward at 02:00, to 03:00.
        assert_eq!(
            firings("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00:00Z", 3),
            ["28 02:30 CET", "29 03:00 CEST", "30 02:30 CEST"]
        );
        assert_eq!(
            firings("30 2 * * *", "America/New_York", "2026-03-07T00:00:00Z", 3),
            ["07 02:30 EST", "08 03:00 EDT", "09 02:30 EDT"]
        );
        // Set back at 03:00, to 02:00, and at 02:00, to 01:00.
        assert_eq!(
            firings("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2),
            ["25 02:30 CEST", "26 02:30 CET"]
        );
        assert_eq!(
            firings("30 1 * * *", "America/New_York", "2026-10-31T12:00:00Z", 2),
            ["01 01:30 EDT", "02 01:30 EST"]
        );
    }

    #[test]
    fn an_interval_goes_on_through_both_hours_and_leaves_out_the_one_that_is_not() {
        assert_eq!(
            firings("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:30:00Z", 3),
            ["29 01:30 CET", "29 03:00 CEST", "29 03:30 CEST"]
        );
        assert_eq!(
            firings("*/30 * * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", 5),
            [
                "25 02:00 CEST",
                "25 02:30 CEST",
                "25 02:00 CET",
                "25 02:30 CET",
                "25 03:00 CET"
            ]
        );
        assert_eq!(
            firings("0 * * * *", "America/New_York", "2026-11-01T05:00:00Z", 3),
            ["01 01:00 EDT", "01 01:00 EST", "01 02:00 EST"]
        );
    }

    #[test]
    fn what_never_or_hardly_ever_fires_is_refused() {
        for text in [
            "0 0 30 2 *",
            "* * 31 2,4,6 *",
            "0 0 29 2 *",
            "0 0 * 2 MON#5",
            "0 0 30W 2 *",
        ] {
            let error = Schedule::try_new(text, "UTC").unwrap_err();
            assert!(matches!(error, Error::Rare), "{text}: {error}");
        }
        for text in [
            "",
            "* * * *",
            "60 * * * *",
            "*/0 * * * *",
            "0 0 1 1 * 0 2026",
            "x",
        ] {
            let error = Schedule::try_new(text, "UTC").unwrap_err();
            let is_unreadable = matches!(error, Error::Unreadable { .. } | Error::Foreign(_));
            assert!(is_unreadable, "{text}: {error}");
        }
        let long = format!("{} * * * *", "0,".repeat(MAX_TEXT));
        assert!(matches!(
            Schedule::try_new(&long, "UTC"),
            Err(Error::TooLong)
        ));
        for zone in ["", "Europe/Berln", "Local", "+01:00"] {
            assert!(matches!(
                Schedule::try_new("* * * * *", zone),
                Err(Error::Zone(_))
            ));
        }
        for text in [
            "0 0 1 1 *",
            "0 0 L 2 *",
            "@daily",
            "0 9 * * MON#1",
            "0 0 1 1 1#1",
        ] {
            schedule(text, "UTC");
        }
    }

    #[test]
    fn what_quartz_means_otherwise_is_refused_with_what_means_the_same() {
        let refused = |text: &str| Schedule::try_new(text, "UTC").unwrap_err().to_string();

        assert_eq!(
            refused("0 0 9 ? * 2"),
            "`?` is Quartz', where weekday `2` is MON, and in Unix TUE: write it by name, such as `0 0 9 * * MON` or `0 0 9 * * TUE`"
        );
        assert!(refused("0 0 9 ? * 2-6").contains("`0 0 9 * * MON-FRI`"));
        assert!(refused("0 0 9 ? * 6#3").contains("`0 0 9 * * FRI#3`"));
        assert!(refused("0 0/15 * * * ?").contains("did you mean `0 */15 * * * ?`?"));
        assert!(refused("0 0 9 1 1 ? 2027").contains("knows no years"));
        for text in ["0 0 9 ? * MON-FRI", "0 0/5 9 * * *", "0 0 9 * * ?"] {
            let quartz = Schedule::try_new(text, "UTC");
            assert_eq!(quartz.is_ok(), !text.contains('/'), "{text}");
        }
    }

    #[test]
    fn weekdays_are_those_of_unix_and_are_told() {
        for (text, first) in [
            ("0 9 * * 0", "Sun 2026-11-29T09:00:00Z"),
            ("0 9 * * 7", "Sun 2026-11-29T09:00:00Z"),
            ("0 9 * * 1", "Mon 2026-11-30T09:00:00Z"),
            ("0 0 9 * * 6", "Sat 2026-12-05T09:00:00Z"),
        ] {
            let schedule = schedule(text, "UTC");
            let next = schedule
                .first_from(instant("2026-11-28T12:00:00.000128Z"))
                .unwrap();
            assert_eq!(schedule.wall(next).unwrap(), first, "{text}");
            assert_eq!(next.as_micros() % 1_000_000, 0);
        }
        let notes = |text: &str| schedule(text, "UTC").notes().join("; ");
        assert!(notes("0 9 * * 1-5").contains("MON-FRI"));
        assert!(notes("0 9 * * 6#3").contains("SAT#3"));
        assert!(notes("0 9 1,15 * MON").contains("either of both is enough"));
        assert!(notes("0 0 9 ? * MON").contains("`?` is read as `*`"));
        assert_eq!(notes("0 9 * * MON-FRI"), "");
        assert_eq!(notes("*/5 * * * *"), "");
        assert_eq!(notes("@daily"), "");
    }

    #[test]
    fn every_zone_has_schedules() {
        for zone in zones() {
            schedule("0 0 1 1 *", zone);
            assert!(
                schedule("* * * * *", zone)
                    .first_from(instant("2026-01-01T00:00:00Z"))
                    .is_some()
            );
        }
    }

    #[test]
    fn an_instant_beyond_the_calendar_is_none() {
        let schedule = schedule("0 0 1 1 *", "UTC");

        assert_eq!(schedule.first_from(Timestamp::MAX), None);
    }

    /// The two hours around each change of the clock in 2026, as seconds since the epoch of the change.
    fn changes() -> impl Strategy<Value = (&'static str, i64)> {
        prop::sample::select(vec![
            ("Europe/Berlin", 1_774_746_000),
            ("Europe/Berlin", 1_792_890_000),
            ("America/New_York", 1_772_953_200),
            ("America/New_York", 1_793_512_800),
        ])
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(
            text in prop_oneof![
                "\\PC{0,40}",
                "[0-9*/,#LWwl?@a-zA-Z -]{0,40}",
                "([0-9*LW?][0-9/,#LW-]{0,6} ){4,5}[0-9A-Z*?][0-9A-Z/,#LW-]{0,6}",
            ],
            now in any::<u64>(),
        ) {
            if let Ok(schedule) = Schedule::try_new(&text, "Europe/Berlin") {
                let now = Timestamp::from_micros(now);
                prop_assert!(schedule.first_from(now).is_none_or(|next| next >= now));
            }
        }

        #[test]
        fn an_interval_fires_whenever_the_wall_clock_says_so(
            (zone, change) in changes(),
            around in -7_200_i64..7_200,
            step in 1_u32..30,
            hours in prop::sample::select(vec!["*", "0-23/2", "1,2,3"]),
        ) {
            let schedule = schedule(&format!("*/{step} {hours} * * *"), zone);
            let start = schedule.zone.timestamp_opt(change + around, 0).unwrap();
            let matches = |time: &DateTime<Tz>| {
                let hour = match hours {
                    "*" => true,
                    "0-23/2" => time.hour().is_multiple_of(2),
                    _ => (1..=3).contains(&time.hour()),
                };
                time.second() == 0 && time.minute().is_multiple_of(step) && hour
            };
            let mut naive = start;
            while !matches(&naive) {
                naive += TimeDelta::seconds(1);
            }

            let next = schedule.first_from(Timestamp::from_millis(start.timestamp_millis() as u64));

            let naive = Timestamp::from_millis(naive.timestamp_millis() as u64);
            prop_assert_eq!(next, Some(naive));
        }

        #[test]
        fn one_time_of_the_day_comes_on_each_day_once(
            (zone, change) in changes(),
            minute in 0_u32..60,
            hour in 0_u32..24,
        ) {
            let schedule = schedule(&format!("{minute} {hour} * * *"), zone);
            let mut earliest = Timestamp::from_millis((change as u64 - 3 * 86_400) * 1_000);
            let mut days = Vec::new();
            for _ in 0..5 {
                let next = schedule.first_from(earliest).unwrap();
                prop_assert!(next >= earliest);
                days.push(schedule.zone.timestamp_millis_opt(next.as_millis() as i64).unwrap().num_days_from_ce());
                earliest = Timestamp::from_micros(next.as_micros() + 1);
            }

            prop_assert!(days.windows(2).all(|pair| pair[1] == pair[0] + 1), "{days:?}");
        }
    }
}

//! The clock of this machine, which runs on while processes come and go.
//!
//! Not the wall clock, which people set and which differs between machines. Invariant: what it shows is compared on one machine only, and
//! between two starts of it.

use std::fs;
use std::time::{Duration, Instant};

use retide_core::saved::MachineTime;

/// When the steady time of a process began: the same for all of its workers, since they share gates, breakers and cooldowns.
#[derive(Clone, Copy, Debug)]
pub struct Began {
    /// The instant.
    pub(crate) at: Instant,
    /// What the clock of the machine showed.
    pub(crate) machine: Option<MachineTime>,
}

/// Names the start of this machine.
const STARTED: &str = "/proc/sys/kernel/random/boot_id";

/// Seconds since then, in hundredths.
const UPTIME: &str = "/proc/uptime";

// === impl Began ===

impl Began {
    /// Now.
    pub fn now() -> Self {
        Self {
            at: Instant::now(),
            machine: now(),
        }
    }
}

/// What it shows now; nothing where the system does not tell.
pub(crate) fn now() -> Option<MachineTime> {
    let started = fs::read(STARTED).ok()?;
    let uptime = fs::read_to_string(UPTIME).ok()?;
    of(&started, &uptime)
}

/// What it shows, in the system's words.
fn of(started: &[u8], uptime: &str) -> Option<MachineTime> {
    let seconds = uptime.split_whitespace().next()?.parse().ok()?;
    let shows = Duration::try_from_secs_f64(seconds).ok()?;
    Some(MachineTime::new(started, shows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_looks_are_of_one_clock_and_another_start_is_another_one() {
        let first = of(b"a", "35003.46 26521.34\n").unwrap();
        let second = of(b"a", "35004.50 26522.00\n").unwrap();
        let other = of(b"b", "12.00 3.00\n").unwrap();

        assert_eq!(second.since(first), Some(Duration::from_millis(1_040)));
        assert_eq!(other.since(first), None);
        assert_eq!(of(b"a", "no number"), None);
    }
}

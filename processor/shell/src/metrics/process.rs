//! What the operating system says of the process, under the names that all Prometheus clients use.
//!
//! From `/proc`, so on Linux only; elsewhere there are none of these. Looked up when they are read.

use std::fs;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::add;

/// The gauges of the process.
pub(super) struct Process {
    /// Seconds of both kinds of processor time.
    cpu: Counter<f64, AtomicU64>,
    /// Bytes in memory.
    resident: Gauge,
    /// Bytes of address space.
    mapped: Gauge,
    /// Open files.
    files: Gauge,
    /// How many there may be.
    most_files: Gauge,
    /// Threads.
    threads: Gauge,
}

/// What `/proc/self/stat` says.
#[derive(Debug, PartialEq)]
struct Stat {
    /// Seconds of processor time.
    cpu: f64,
    /// Threads.
    threads: i64,
    /// Seconds from the start of the machine to that of the process.
    start: f64,
    /// Bytes of address space.
    mapped: i64,
}

/// Ticks of processor time in a second: what Linux tells processes on every architecture there is.
const TICKS: f64 = 100.0;

// === impl Process ===

impl Process {
    /// Registers what there is to say; nothing where there is no `/proc`.
    pub(super) fn register(registry: &mut Registry) -> Option<Self> {
        let up = stat()?.start;
        let boot = boot()?;
        let r = registry;
        let help = "Start of the process, in seconds since the epoch";
        let start = Gauge::<f64, AtomicU64>::default();
        start.set(boot + up);
        add(r, ("process_start_time_seconds", help), start);
        let process = Self {
            cpu: add(
                r,
                ("process_cpu_seconds", "Processor time used, in seconds"),
                Counter::default(),
            ),
            resident: add(
                r,
                ("process_resident_memory_bytes", "Memory used, in bytes"),
                Gauge::default(),
            ),
            mapped: add(
                r,
                (
                    "process_virtual_memory_bytes",
                    "Address space used, in bytes",
                ),
                Gauge::default(),
            ),
            files: add(r, ("process_open_fds", "Open files"), Gauge::default()),
            most_files: add(
                r,
                ("process_max_fds", "Files that may be open at once"),
                Gauge::default(),
            ),
            threads: add(r, ("process_threads", "Threads"), Gauge::default()),
        };
        Some(process)
    }

    /// Looks it up.
    pub(super) fn look(&self) {
        if let Some(stat) = stat() {
            let more = stat.cpu - self.cpu.get();
            if more > 0.0 {
                self.cpu.inc_by(more);
            }
            self.threads.set(stat.threads);
            self.mapped.set(stat.mapped);
        }
        if let Some(resident) = resident() {
            self.resident.set(resident);
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            // One of them is that of the directory.
            self.files.set(files.count() as i64 - 1);
        }
        if let Some(most) = most_files() {
            self.most_files.set(most);
        }
    }
}

/// What `/proc/self/stat` says.
fn stat() -> Option<Stat> {
    stat_of(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// What a text of that form says.
fn stat_of(text: &str) -> Option<Stat> {
    // The name may hold anything, parentheses as well.
    let (_, rest) = text.rsplit_once(')')?;
    // The first of these is the third field of the manual page.
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
    Some(Stat {
        cpu: (number(14)? + number(15)?) as f64 / TICKS,
        threads: number(20)?,
        start: number(22)? as f64 / TICKS,
        mapped: number(23)?,
    })
}

/// The start of the machine, in seconds since the epoch.
fn boot() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

/// Bytes in memory.
fn resident() -> Option<i64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: i64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1_024)
}

/// How many files may be open at once.
fn most_files() -> Option<i64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_move_the_fields() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194560 9 0 0 0 250 50 0 0 20 0 12 0 6000 8192000 300 18446744073709551615 1";

        let expected = Stat {
            cpu: 3.0,
            threads: 12,
            start: 60.0,
            mapped: 8_192_000,
        };
        assert_eq!(stat_of(text), Some(expected));
        assert_eq!(stat_of("7 (a"), None);
        assert_eq!(stat_of("7 (a) S 1"), None);
    }
}

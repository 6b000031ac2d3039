//! Ledgers: what was seen, one line of tab-separated fields each, and the clock they share.
//!
//! Invariant: a line is written whole, with one call, before what it announces happens or after what it reports has happened.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// A file that only grows.
pub(crate) struct Ledger {
    /// The file, unbuffered: what is written survives us.
    file: Mutex<File>,
}

/// The journal of faults: when each began and ended.
pub(crate) struct Faults {
    /// The file.
    ledger: Ledger,
    /// The number of the next fault.
    next: AtomicU64,
}

/// Microseconds since the epoch.
#[allow(
    clippy::disallowed_methods,
    reason = "the clock of the campaign, which shares no code with retide"
)]
pub(crate) fn now_micros() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_micros()
}

/// What identifies bytes: their length and 64 bits of FNV-1a, which a few lines compute in any language.
pub(crate) fn fingerprint(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{}:{hash:016x}", bytes.len())
}

// === impl Ledger ===

impl Ledger {
    /// A new file.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(path)?;
        let file = Mutex::new(file);
        Ok(Self { file })
    }

    /// Adds a line.
    pub(crate) fn write(&self, fields: &[&str]) {
        let line = fields.join("\t") + "\n";
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(line.as_bytes()) {
            // A ledger with a hole would accuse retide of our own fault.
            eprintln!("retide-chaos: write ledger: {error}");
            std::process::abort();
        }
    }
}

// === impl Faults ===

impl Faults {
    /// A new journal.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            ledger: Ledger::create(path)?,
            next: AtomicU64::new(1),
        })
    }

    /// A fault begins; gives its number.
    pub(crate) fn begin(&self, kind: &str, process: &str, detail: &str) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (text, at) = (number.to_string(), now_micros().to_string());
        self.ledger
            .write(&["begin", &text, &at, kind, process, detail]);
        eprintln!("fault {number}: {kind} {process} {detail}");
        number
    }

    /// It is over: whatever was taken away is there again.
    pub(crate) fn end(&self, number: u64) {
        let (text, at) = (number.to_string(), now_micros().to_string());
        self.ledger.write(&["end", &text, &at]);
    }

    /// What a fault keeps from being done was told everywhere, but for these places.
    pub(crate) fn told(&self, number: u64, missing: &[&str]) {
        let (text, at) = (number.to_string(), now_micros().to_string());
        let missing = missing.join(",");
        self.ledger.write(&["told", &text, &at, &missing]);
        if !missing.is_empty() {
            eprintln!("fault {number}: not told: {missing}");
        }
    }

    /// Something was seen that belongs to no fault.
    pub(crate) fn note(&self, kind: &str, detail: &str) {
        let at = now_micros().to_string();
        self.ledger.write(&["note", &at, kind, detail]);
        eprintln!("{kind}: {detail}");
    }

    /// A process ended by itself, or on SIGTERM, with this status.
    pub(crate) fn exit(&self, process: &str, why: &str, status: &str) {
        let at = now_micros().to_string();
        self.ledger.write(&["exit", &at, process, why, status]);
        eprintln!("exit: {process} {why}: {status}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_fnv_1a() {
        assert_eq!(fingerprint(b""), "0:cbf29ce484222325");
        assert_eq!(fingerprint(b"a"), "1:af63dc4c8601ec8c");
    }
}

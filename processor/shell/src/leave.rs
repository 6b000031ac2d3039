//! How a process ends: every way out goes through here.
//!
//! Not the drain before it. Invariants: the last lines of the log are written if they can be, and are not waited for if they cannot; no
//! handler of the C library runs, since threads of the Kafka clients may still work with what those take down (a process that ended while a
//! TLS connection was being made died of that now and then).

use std::io::{self, Write};
use std::panic;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use tracing::error;

use crate::log::{self, Log};
use crate::suspects::MARKING;
use crate::threads::{Threads, message};

/// The name of the threads that calls to targets run on. A panic there is the outcome of a call.
pub const CALLS: &str = "calls";

/// Ends a process whose drain does not end.
#[derive(Debug)]
pub struct Watchdog {
    /// Tells the watchdog's thread how long to wait from now on.
    bound: Sender<Duration>,
}

/// Ends the process with this exit code.
pub fn leave(code: u8, log: &Log) -> ! {
    log.flush();
    // Nothing can be done about a stdout that takes nothing.
    let _ = io::stdout().flush();
    signal_hook::low_level::exit(code.into())
}

/// Ends the process when any thread but those of calls panics: at once, whatever the panic leaves behind. What was not committed is done by
/// whoever takes over, as after any crash.
pub fn on_panic(threads: &Threads, log: &Log) {
    let (threads, log) = (threads.clone(), log.clone());
    panic::set_hook(Box::new(move |panic| {
        let thread = thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        let place = panic.location().map(ToString::to_string);
        let why = message(panic.payload());
        if thread == MARKING {
            leave(1, &log);
        }
        if thread == CALLS {
            error!(why, place, "a call panicked");
            return;
        }
        let record = threads.in_hand();
        error!(
            thread,
            why, place, record, "thread panicked, the process ends at once"
        );
        if let Some(record) = record {
            threads.suspects().mark(&record, why);
        }
        leave(1, &log);
    }));
}

// === impl Watchdog ===

impl Watchdog {
    /// A watchdog that waits to be told that the process drains.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start(threads: &Threads, log: &Log) -> io::Result<Self> {
        let (bound, bounds) = mpsc::channel();
        let (threads, log) = (threads.clone(), log.clone());
        thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || {
                let Ok(bound) = bounds.recv() else { return };
                match bounds.recv_timeout(bound) {
                    Ok(_) | Err(RecvTimeoutError::Disconnected) => {}
                    Err(RecvTimeoutError::Timeout) => {
                        let mut left = threads.running();
                        // It is not told to end.
                        left.retain(|name| name != log::THREAD);
                        log.last_words(&format!(
                            "not drained within {bound:?}: {} did not end; what was answered and is not committed is called again",
                            left.join(", ")
                        ));
                        leave(1, &log);
                    }
                }
            })?;
        Ok(Self { bound })
    }

    /// Ends the process after `bound`, unless it has ended or this is dropped before.
    pub fn bound(&self, bound: Duration) {
        // A watchdog that is gone has ended the process.
        let _ = self.bound.send(bound);
    }
}

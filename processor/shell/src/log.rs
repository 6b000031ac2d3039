//! The log: lines on stderr that never hold up who writes them.
//!
//! Not what is said, which is `event`'s. Invariants: whoever logs waits for no disk and no pipe; what does not fit or cannot be written
//! is counted, and that is said once there is room; nothing that goes wrong with the log panics.

mod lines;
mod repeats;

use std::collections::VecDeque;
use std::env;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use tracing::{error, warn};
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::metrics::Metrics;
use crate::threads::{Ended, Threads};

pub use self::lines::Speaker;

use self::lines::Lines;
use self::repeats::Repeats;

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The log of a process. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    /// What all handles share.
    shared: Arc<Shared>,
}

/// What all handles share.
struct Shared {
    /// How lines are written.
    format: Format,
    /// Whether a thread writes the lines; else whoever logs does.
    queued: AtomicBool,
    /// The lines that wait.
    queue: Mutex<Queue>,
    /// There are lines.
    more: Condvar,
    /// Every line is written.
    idle: Condvar,
    /// Where lines that are lost are counted.
    lost: OnceLock<Counter>,
    /// What was said before.
    repeats: Arc<Repeats>,
}

/// Lines that wait to be written.
#[derive(Default)]
struct Queue {
    /// The lines, each with its end.
    lines: VecDeque<Vec<u8>>,
    /// Their bytes.
    bytes: usize,
    /// Whether one of them is being written.
    writing: bool,
    /// How many were lost since that was last said.
    lost: u64,
}

/// The name of the thread that writes.
pub(crate) const THREAD: &str = "log";

/// Most bytes that wait: a few seconds of a log at its loudest.
const MOST: usize = 1024 * 1024;

/// Time between two looks for what is to be said of lost and repeated lines.
const TICK: Duration = Duration::from_secs(1);

/// How long a process that ends waits until its last lines are written.
const LAST: Duration = Duration::from_millis(500);

/// How long it then tries itself, if the thread that writes is not there any more.
const LAST_TRY: Duration = Duration::from_millis(200);

// === impl Log ===

impl Log {
    /// Starts to log: what is let through by `RETIDE_LOG`, or else by `default`. Whoever logs writes by itself until [`Self::queue`].
    pub fn start(format: Format, speaker: Speaker, default: &str) -> Self {
        let repeats = Arc::new(Repeats::default());
        let log = Self {
            shared: Arc::new(Shared {
                format,
                queued: AtomicBool::new(false),
                queue: Mutex::default(),
                more: Condvar::new(),
                idle: Condvar::new(),
                lost: OnceLock::new(),
                repeats: Arc::clone(&repeats),
            }),
        };
        let asked = env::var("RETIDE_LOG").ok();
        let asked = asked.and_then(|asked| through(&asked).ok());
        let filter = asked.unwrap_or_else(|| {
            through(&format!("{default},librdkafka=error")).expect("our own default is a filter")
        });
        tracing_subscriber::fmt()
            .with_max_level(LevelFilter::TRACE)
            .with_writer(log.clone())
            .with_ansi(format == Format::Text && io::stderr().is_terminal())
            // It reports a line that cannot be written by a print that panics.
            .log_internal_errors(false)
            .event_format(Lines::new(format, speaker, repeats))
            .finish()
            .with(filter)
            .init();
        log
    }

    /// Has a thread of its own write the lines from now on, as a process that works needs it.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn queue(&self, threads: &Threads) -> io::Result<()> {
        self.shared.queued.store(true, Ordering::Release);
        let log = self.clone();
        threads.spawn(THREAD, move || log.write()).map(drop)
    }

    /// Counts lost lines in these metrics.
    pub fn count_lost(&self, metrics: &Metrics) {
        // Set once for each process.
        let _ = self.shared.lost.set(metrics.log_lines_dropped.clone());
    }

    /// Says why the process ends, in the form in which it logs.
    pub fn last_words(&self, message: &str) {
        match self.shared.format {
            Format::Text => self.line(format!("error: {message}\n").into_bytes()),
            Format::Json => error!(error = message, "retide ends"),
        }
    }

    /// Waits until every line is written, but not for long.
    pub(crate) fn flush(&self) {
        let shared = &self.shared;
        let deadline = Instant::now() + LAST;
        let mut queue = shared.lock();
        while queue.writing || !queue.lines.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = shared.idle.wait_timeout(queue, left);
            (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        let lines = std::mem::take(&mut queue.lines);
        drop(queue);
        if lines.is_empty() {
            return;
        }
        // Whoever writes is stuck, or dead. On another thread: this one must end.
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        let last = thread::Builder::new().spawn(move || {
            for line in lines {
                let _ = io::stderr().write_all(&line);
            }
            drop(done);
        });
        if last.is_ok() {
            let _ = is_done.recv_timeout(LAST_TRY);
        }
    }

    /// Takes a line: to write it later, or now if nobody else does.
    fn line(&self, line: Vec<u8>) {
        if !self.shared.queued.load(Ordering::Acquire) {
            // Nothing can be done about a stderr that takes nothing.
            let _ = io::stderr().write_all(&line);
            return;
        }
        let mut queue = self.shared.lock();
        if queue.bytes + line.len() > MOST {
            self.lost(&mut queue);
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line);
        drop(queue);
        self.shared.more.notify_one();
    }

    /// A line is lost.
    fn lost(&self, queue: &mut Queue) {
        queue.lost += 1;
        if let Some(counter) = self.shared.lost.get() {
            counter.inc();
        }
    }

    /// The thread that writes: for as long as there is a process.
    fn write(&self) -> Ended {
        let shared = &self.shared;
        let mut tick = Instant::now() + TICK;
        loop {
            let mut queue = shared.lock();
            if queue.lines.is_empty() {
                shared.idle.notify_all();
                let waited = shared.more.wait_timeout(queue, TICK);
                (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
            }
            let line = queue.lines.pop_front();
            queue.writing = line.is_some();
            drop(queue);
            if let Some(line) = line {
                let written = io::stderr().write_all(&line);
                let mut queue = shared.lock();
                queue.writing = false;
                queue.bytes -= line.len();
                if written.is_err() {
                    self.lost(&mut queue);
                }
            }
            if Instant::now() >= tick {
                tick = Instant::now() + TICK;
                self.tick();
            }
        }
    }

    /// Says what there is to say of lost and repeated lines.
    fn tick(&self) {
        let lines = std::mem::take(&mut self.shared.lock().lost);
        if lines > 0 {
            warn!(
                lines,
                "log lines lost: stderr took them too slowly, or not at all"
            );
        }
        self.shared.repeats.tick(Instant::now());
    }
}

/// The log as one line's writer.
impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

// === impl Shared ===

impl Shared {
    /// Locks what no panic leaves half-changed.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The filter that a list of levels and of `target=level` names. The larger filter of the library, which also reads conditions on spans, would
/// bring an engine for regular expressions; retide has no spans.
fn through(list: &str) -> Result<Targets, ParseError> {
    let parts = list.split(',').map(str::trim);
    let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Ok(Targets::new().with_default(LevelFilter::ERROR));
    }
    parts.join(",").parse()
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_list_of_levels_and_targets_is_a_filter() {
        let filter = through("info,retide=debug, librdkafka=off,").expect("a list is a filter");

        assert!(filter.would_enable("hyper", &Level::INFO));
        assert!(!filter.would_enable("hyper", &Level::DEBUG));
        assert!(filter.would_enable("retide_shell::worker", &Level::DEBUG));
        assert!(!filter.would_enable("librdkafka", &Level::ERROR));
    }

    #[test]
    fn an_empty_list_lets_errors_through_and_a_wrong_one_is_none() {
        let filter = through("").expect("nothing is a filter");

        assert!(filter.would_enable("retide", &Level::ERROR));
        assert!(!filter.would_enable("retide", &Level::WARN));
        assert!(through("retide=loud").is_err());
    }
}

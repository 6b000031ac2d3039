//! Load: threads that take processors and caches away from the campaign in bursts, as a build beside it does.
//!
//! Invariant: no thread outlives its [`Load`].

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::plan::Random;

/// Threads that are busy now and then.
pub(crate) struct Load {
    /// Set to end them.
    stop: Arc<AtomicBool>,
    /// The threads.
    threads: Vec<JoinHandle<()>>,
}

/// Memory that a thread goes through while it is busy, in bytes: more than its part of a cache.
const MEMORY: usize = 16 << 20;

/// Bytes between two looks at the clock: a millisecond of work, also in a debug build.
const CHUNK: usize = 64 << 10;

/// A burst of work, in ms: from a moment to longer than half a session.
const BURST_MS: (u64, u64) = (50, 4_000);

/// The rest after it, in ms: shorter, so that most threads are busy at any time.
const REST_MS: (u64, u64) = (10, 1_500);

// === impl Load ===

impl Load {
    /// Starts `count` threads, whose bursts and rests follow from the seed.
    pub(crate) fn start(count: usize, seed: u64) -> io::Result<Self> {
        let mut load = Self {
            stop: Arc::default(),
            threads: Vec::with_capacity(count),
        };
        for number in 0..count {
            let stop = Arc::clone(&load.stop);
            let random = Random::new(seed, 100_000 + number as u64);
            let thread = thread::Builder::new()
                .name(format!("load-{number}"))
                .spawn(move || work(&stop, random))?;
            load.threads.push(thread);
        }
        Ok(load)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // Its work cannot fail.
            let _ = thread.join();
        }
    }
}

/// Works in bursts until it is told to stop.
fn work(stop: &AtomicBool, mut random: Random) {
    let mut memory = vec![0u8; MEMORY];
    let mut at = 0;
    while !stop.load(Ordering::Acquire) {
        let until = Instant::now() + random.millis(BURST_MS.0, BURST_MS.1);
        while Instant::now() < until && !stop.load(Ordering::Acquire) {
            for byte in &mut memory[at..at + CHUNK] {
                *byte = byte.wrapping_mul(5).wrapping_add(3);
            }
            at = (at + CHUNK) % MEMORY;
        }
        black_box(&memory);
        rest(stop, random.millis(REST_MS.0, REST_MS.1));
    }
}

/// Rests for this time, or until it is told to stop.
fn rest(stop: &AtomicBool, time: Duration) {
    let until = Instant::now() + time;
    while !stop.load(Ordering::Acquire) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_end_with_their_load() {
        let load = Load::start(3, 7).expect("threads can be started");
        let stop = Arc::clone(&load.stop);

        drop(load);

        // The threads' own handles of it are gone.
        assert_eq!(Arc::strong_count(&stop), 1);
    }
}

//! Threads: the one place where the threads of a process are started, and where it is heard of when one of them ends.
//!
//! Not what is done about it, which is the process's, and not the calls to targets, whose panics are outcomes. Invariant: a thread that
//! panics, or ends without being told to, is a [`Death`], and there is no process that works on as if nothing were missing.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};

use futures_util::FutureExt;
use tokio::sync::watch;
use tracing::{debug, error};

use retide_core::{LaneId, Source};
use retide_kafka::topics::Topics;
use retide_native::slice;

use crate::suspects::Suspects;

/// The threads of a process. Cheap to clone.
#[derive(Clone)]
pub struct Threads {
    /// What all handles share.
    shared: Arc<Shared>,
}

/// How a thread's body ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Told,
    /// It was not; this is why.
    Early(String),
}

/// A thread that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// Its name.
    pub thread: String,
    /// What it said when it panicked, or why it ended.
    pub why: String,
    /// The record it had in hand, as `topic/partition/offset`.
    pub record: Option<String>,
}

/// The record that a thread works on, for whoever tells of its death. Noting it costs three plain stores.
#[derive(Debug)]
pub struct Hand {
    /// The topics.
    topics: Arc<Topics>,
    /// Where the record was read: [`NOTHING`], or 0 for the retry topic and one more than its number for a tier.
    source: AtomicUsize,
    /// Its partition.
    shard: AtomicI32,
    /// Its offset.
    offset: AtomicI64,
    /// The record to panic at.
    #[cfg(debug_assertions)]
    planted: Option<String>,
}

/// What all handles share.
struct Shared {
    /// Those that run, by a number of their own.
    running: Mutex<BTreeMap<u64, Running>>,
    /// The first that is missing.
    death: watch::Sender<Option<Death>>,
    /// The records at which processes have died.
    suspects: Suspects,
}

/// A thread that runs.
struct Running {
    /// Its name.
    name: String,
    /// What it is known by to the system.
    id: ThreadId,
    /// The record it works on, if it works on records.
    hand: Option<Arc<Hand>>,
}

/// The source of no record.
const NOTHING: usize = usize::MAX;

/// The calling thread does little at a time and somebody waits for it: it gets the processor before threads that are busy for long, where the
/// system can do that.
pub fn wake_soon() {
    if let Err(error) = slice::shorten() {
        debug!(%error, "no shorter slices of the processor");
    }
}

// === impl Threads ===

impl Default for Threads {
    fn default() -> Self {
        let shared = Shared {
            running: Mutex::default(),
            death: watch::Sender::new(None),
            suspects: Suspects::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl Threads {
    /// Starts a thread. Its death is told if `body` panics or says that it ended early.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn spawn(
        &self,
        name: &str,
        body: impl FnOnce() -> Ended + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let mut running = self.lock();
        let number = running.last_key_value().map_or(0, |(last, _)| last + 1);
        let threads = self.clone();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || threads.run(number, body))?;
        running.insert(
            number,
            Running {
                name: name.to_owned(),
                id: thread.thread().id(),
                hand: None,
            },
        );
        Ok(thread)
    }

    /// The calling thread takes records into this hand: the one in it is named with the thread's death.
    pub(crate) fn works_with(&self, hand: &Arc<Hand>) {
        let id = thread::current().id();
        let mut running = self.lock();
        if let Some(own) = running.values_mut().find(|thread| thread.id == id) {
            own.hand = Some(Arc::clone(hand));
        }
    }

    /// Runs a future that ends only with the process, as [`Self::spawn`] runs a thread.
    pub async fn watch(self, name: &str, future: impl Future<Output = io::Result<()>>) {
        let future = async {
            match planted(name) {
                Some(Ended::Told) => Ok(()),
                Some(Ended::Early(why)) => Err(io::Error::other(why)),
                None => future.await,
            }
        };
        let why = match AssertUnwindSafe(future).catch_unwind().await {
            Ok(Ok(())) => "it ended".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => message(&*panic).to_owned(),
        };
        self.died(Death {
            thread: name.to_owned(),
            why,
            record: None,
        });
    }

    /// Waits for the death of a thread.
    pub async fn death(&self) -> Death {
        let mut deaths = self.shared.death.subscribe();
        let death = deaths.wait_for(Option::is_some).await;
        let death = death.ok().and_then(|death| death.clone());
        death.unwrap_or_else(|| unreachable!("the sender is ours"))
    }

    /// The thread that is missing, if one is.
    pub fn missing(&self) -> Option<Death> {
        self.shared.death.borrow().clone()
    }

    /// The names of those that run.
    pub fn running(&self) -> Vec<String> {
        let running = self.lock();
        running.values().map(|thread| thread.name.clone()).collect()
    }

    /// The records at which processes have died.
    pub(crate) fn suspects(&self) -> &Suspects {
        &self.shared.suspects
    }

    /// The record that the calling thread has in hand.
    pub(crate) fn in_hand(&self) -> Option<String> {
        let id = thread::current().id();
        let running = self.lock();
        let own = running.values().find(|thread| thread.id == id)?;
        own.hand.as_ref()?.record()
    }

    /// Runs the body of thread `number`, and tells of its death if it is one.
    fn run(self, number: u64, body: impl FnOnce() -> Ended) {
        let name = thread::current().name().unwrap_or_default().to_owned();
        // Nothing of the thread's is used after a panic.
        let ended = catch_unwind(AssertUnwindSafe(|| planted(&name).unwrap_or_else(body)));
        let record = self.in_hand();
        self.lock().remove(&number);
        let why = match ended {
            Ok(Ended::Told) => return,
            Ok(Ended::Early(why)) => why,
            Err(panic) => message(&*panic).to_owned(),
        };
        self.died(Death {
            thread: name,
            why,
            record,
        });
    }

    /// Tells of a death. The first one counts: the others follow from it.
    fn died(&self, death: Death) {
        error!(
            thread = death.thread,
            why = death.why,
            record = death.record,
            "thread died"
        );
        self.shared.death.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(death);
            is_first
        });
    }

    /// Locks what no panic leaves half-changed.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Running>> {
        let running = &self.shared.running;
        running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = formatter.debug_list();
        list.entries(self.running()).finish()
    }
}

// === impl Death ===

impl fmt::Display for Death {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            thread,
            why,
            record,
        } = self;
        write!(formatter, "{thread}: {why}")?;
        match record {
            Some(record) => write!(formatter, ", with record {record} in hand"),
            None => Ok(()),
        }
    }
}

// === impl Hand ===

impl Hand {
    /// A hand with nothing in it.
    pub fn new(topics: &Arc<Topics>) -> Arc<Self> {
        Arc::new(Self {
            topics: Arc::clone(topics),
            source: AtomicUsize::new(NOTHING),
            shard: AtomicI32::new(0),
            offset: AtomicI64::new(0),
            #[cfg(debug_assertions)]
            planted: std::env::var("RETIDE_PLANTED_PANIC_AT").ok(),
        })
    }

    /// The thread begins to work on this record.
    pub fn take(&self, lane: LaneId, offset: i64) {
        self.shard.store(lane.shard, Ordering::Relaxed);
        self.offset.store(offset, Ordering::Relaxed);
        let source = match lane.source {
            Source::Tasks => 0,
            Source::Commands => 1,
            Source::Tier(tier) => tier + 2,
        };
        self.source.store(source, Ordering::Relaxed);
        self.panic_if_planted();
    }

    /// The planted panic at a record, in a debug build: `RETIDE_PLANTED_PANIC_AT` is `THREAD@TOPIC/PARTITION/OFFSET`.
    #[cfg(debug_assertions)]
    fn panic_if_planted(&self) {
        let Some(planted) = &self.planted else { return };
        let thread = thread::current();
        let here = format!(
            "{}@{}",
            thread.name().unwrap_or_default(),
            self.record().unwrap_or_default()
        );
        assert_ne!(*planted, here, "a planted panic at a record");
    }

    /// Nothing is planted in a build that anyone runs.
    #[cfg(not(debug_assertions))]
    const fn panic_if_planted(&self) {}

    /// The thread works on no record any more.
    pub fn empty(&self) {
        self.source.store(NOTHING, Ordering::Relaxed);
    }

    /// The record in it, as `topic/partition/offset`. To be asked for by the thread whose hand it is.
    pub fn record(&self) -> Option<String> {
        let source = match self.source.load(Ordering::Relaxed) {
            NOTHING => return None,
            0 => Source::Tasks,
            1 => Source::Commands,
            tier => Source::Tier(tier - 2),
        };
        let (shard, offset) = (&self.shard, &self.offset);
        let (shard, offset) = (
            shard.load(Ordering::Relaxed),
            offset.load(Ordering::Relaxed),
        );
        Some(format!("{}/{shard}/{offset}", self.topics.name(source)))
    }
}

/// What a panic says.
pub(crate) fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// The planted death of this thread, in a debug build: by a panic if `RETIDE_PLANTED_PANIC` names it, by an early end if
/// `RETIDE_PLANTED_END` does.
#[cfg(debug_assertions)]
fn planted(name: &str) -> Option<Ended> {
    let names = |variable| std::env::var(variable).is_ok_and(|named| named == name);
    assert!(!names("RETIDE_PLANTED_PANIC"), "a planted panic");
    names("RETIDE_PLANTED_END").then(|| Ended::Early("a planted end".to_owned()))
}

/// Nothing is planted in a build that anyone runs.
#[cfg(not(debug_assertions))]
const fn planted(_name: &str) -> Option<Ended> {
    None
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use retide_core::Ladder;

    use super::*;

    #[test]
    fn a_thread_that_ends_when_told_is_no_death() {
        let threads = Threads::default();
        let (stop, stopped) = mpsc::channel::<()>();
        let body = move || stopped.recv().map_or(Ended::Told, |()| Ended::Told);
        let thread = threads.spawn("one", body).expect("a thread");
        assert_eq!(threads.running(), ["one"]);

        drop(stop);
        thread.join().expect("no panic");

        assert!(threads.running().is_empty());
        assert_eq!(threads.missing(), None);
    }

    #[tokio::test]
    async fn a_panic_is_a_death_with_the_record_in_hand() {
        let threads = Threads::default();
        let topics = Arc::new(Topics::new("retry", &Ladder::default()));
        let hand = Hand::new(&topics);
        let own = threads.clone();
        let body = move || {
            own.works_with(&hand);
            let (shard, source) = (3, Source::Tasks);
            hand.take(LaneId { shard, source }, 17);
            panic!("cannot be read");
        };

        let thread = threads.spawn("feed", body).expect("a thread");
        let death = threads.death().await;

        assert_eq!(
            death.to_string(),
            "feed: cannot be read, with record retry.tasks/3/17 in hand"
        );
        thread.join().expect("the panic was caught");
        assert!(threads.running().is_empty());
    }

    #[tokio::test]
    async fn an_early_end_is_a_death_and_the_first_one_counts() {
        let threads = Threads::default();
        let early = |why: &str| Ended::Early(why.to_owned());

        let first = threads.spawn("a", move || early("no reason"));
        first.expect("a thread").join().expect("no panic");
        let second = threads.spawn("b", move || early("since a is gone"));
        second.expect("a thread").join().expect("no panic");

        assert_eq!(threads.death().await.to_string(), "a: no reason");
    }

    #[tokio::test]
    async fn a_future_that_ends_or_panics_is_a_death() {
        let threads = Threads::default();

        threads.clone().watch("admin", async { panic!("no") }).await;

        assert_eq!(threads.missing().expect("a death").to_string(), "admin: no");
    }

    #[test]
    fn a_hand_names_a_record_of_any_topic() {
        let ladder = Ladder::default();
        let topics = Arc::new(Topics::new("retry", &ladder));
        let hand = Hand::new(&topics);
        assert_eq!(hand.record(), None);

        for (source, name) in topics.read() {
            hand.take(LaneId { shard: 1, source }, 2);
            assert_eq!(hand.record(), Some(format!("{name}/1/2")));
        }
        hand.empty();
        assert_eq!(hand.record(), None);
    }
}

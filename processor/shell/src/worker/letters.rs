//! Dead letters that the leader of campaigns asks for, to replay them or to see how old they are: read beside the lanes, and decoded.
//!
//! What a letter lacks that is to be replayed is fetched from where its task entered, before the next letter is looked at.
//!
//! A thread of its own, which has clients as long as somebody asks. Not what is replayed, which is the engine's. Invariants: whatever is asked
//! for is answered once, unless the leader of campaigns is another one by then; what is held of letters, with what was fetched, is bounded by
//! what is asked for; only letters that are committed are seen.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, bounded};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};

use retide_avro::Arrival;
use retide_avro::letter::{self, Lacking, Read};
use retide_core::campaign::{Edit, Ineligible, LEADER, Letter};
use retide_core::scene::TargetNames;
use retide_core::step::{LetterPurpose, LetterSlice, LetterWant, Letters, ReadLetters};
use retide_core::{Origin, Timestamp};
use retide_kafka::client::LoggingContext;
use retide_kafka::offsets::{self, Edge};
use retide_kafka::origins::{Fetched, Origins, is_denied};
use retide_kafka::record::received;
use retide_kafka::scan::{self, Scanned};
use retide_kafka::topics::Topics;

use crate::clock;
use crate::registry::Registry;
use crate::trouble::{Effect, Kind, Trouble, Troubles};
use crate::worker::feed::{Around, ended};

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    /// What the engine wants.
    pub(crate) read: ReadLetters,
    /// What scenes call; nothing where no campaign asks for that.
    pub(crate) targets: TargetNames,
    /// Where schemas are asked for that envelopes are written with, if there is a registry.
    pub(crate) registry: Option<Registry>,
}

/// Why letters cannot be read now.
#[derive(Debug, thiserror::Error)]
enum Unread {
    /// Kafka does not give them.
    #[error("{0}")]
    Letters(#[from] KafkaError),
    /// Kafka does not give what one of them lacks.
    #[error("fetch {origin}, whose dead letter lacks its payload: {error}")]
    Origin {
        /// Where that stands.
        origin: Origin,
        /// What Kafka or its client says.
        error: KafkaError,
    },
    /// The registry does not say what the schema of an envelope is.
    #[error(
        "read {origin}, whose dead letter lacks its payload: the schema registry has no answer: {why}"
    )]
    Schema {
        /// Where the envelope stands.
        origin: Origin,
        /// What the registry says.
        why: String,
    },
}

/// The reader as the feed has it.
pub(crate) struct LetterReader {
    /// The way to ask.
    pub(crate) wants: Wants,
    /// What was read.
    pub(crate) letters: Receiver<Letters>,
    /// The thread.
    pub(crate) thread: JoinHandle<()>,
}

/// What is asked for and not begun. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Wants(Arc<Mutex<VecDeque<Asked>>>);

/// The thread.
struct Thread {
    /// The configuration of a consumer.
    config: ClientConfig,
    /// The topics.
    topics: Arc<Topics>,
    /// What is asked for.
    wants: Wants,
    /// To the drive.
    letters: Sender<Letters>,
    /// Where it is told that they cannot be read.
    troubles: Troubles,
    /// Whom that befalls.
    worker: String,
    /// Set to end.
    stop: Arc<AtomicBool>,
}

/// A partition that is read.
struct Slice {
    /// The first offset that is not wanted.
    to: i64,
    /// Everything below was looked at.
    next: i64,
    /// Letters that are meant.
    letters: Vec<Letter>,
    /// Their bytes.
    bytes: usize,
    /// Records that are no letters.
    unread: u64,
}

/// What is read and not taken by the drive, at most.
const BUFFER: usize = 2;

/// How often it is looked whether something is asked for; whoever asks wakes the thread.
const TURN: Duration = Duration::from_millis(200);

/// Longest time for one answer: of millions of letters that nobody means, it says how far it is.
const LONGEST: Duration = Duration::from_secs(2);

/// How long a client is kept that nobody needs.
const SPARE: Duration = Duration::from_secs(30);

/// Longest wait for where partitions begin and end.
const ASK: Duration = Duration::from_secs(3);

/// Pause before something that has failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long it may fail before people are told.
const PATIENCE: Duration = Duration::from_secs(5);

// === impl Wants ===

impl Wants {
    /// Asks for letters.
    pub(crate) fn ask(&self, asked: Asked) {
        self.lock().push_back(asked);
    }

    /// Shards are given away: nobody wants what was asked for by the leader of campaigns.
    pub(crate) fn leave(&self, shards: &[i32]) {
        if shards.contains(&LEADER) {
            self.lock().clear();
        }
    }

    /// Locks what no panic leaves half-changed.
    fn lock(&self) -> MutexGuard<'_, VecDeque<Asked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl LetterReader ===

impl LetterReader {
    /// Starts the thread, which is called `name`.
    pub(crate) fn start(
        config: &ClientConfig,
        name: &str,
        around: Around<'_>,
    ) -> Result<Self, KafkaError> {
        let mut config = config.clone();
        // They would pile up between two questions.
        config.set("statistics.interval.ms", "0");
        // What is prefetched, over all partitions.
        config.set("queued.max.messages.kbytes", "4096");
        let (to_drive, letters) = bounded(BUFFER);
        let wants = Wants::default();
        let thread = Thread {
            config,
            topics: Arc::clone(around.topics),
            wants: wants.clone(),
            letters: to_drive,
            troubles: around.metrics.troubles().held_by(name),
            worker: name.to_owned(),
            stop: Arc::clone(around.stop),
        };
        let stop = Arc::clone(around.stop);
        let body = move || {
            thread.run();
            ended(&stop)
        };
        let thread = around
            .threads
            .spawn(name, body)
            .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok(Self {
            wants,
            letters,
            thread,
        })
    }
}

// === impl Thread ===

impl Thread {
    /// Reads what is asked for, until told to stop.
    fn run(&self) {
        let group = self.config.get("group.id").unwrap_or("retide");
        let mut origins = Origins::new(&self.config, group);
        let mut client: Option<(BaseConsumer<LoggingContext>, Instant)> = None;
        let mut failing_since: Option<Instant> = None;
        while !self.is_over() {
            let asked = self.wants.lock().pop_front();
            let Some(asked) = asked else {
                if let Some((consumer, since)) = &client {
                    while consumer.poll(Duration::ZERO).is_some() {}
                    if since.elapsed() >= SPARE {
                        client = None;
                        origins.rest();
                    }
                }
                thread::park_timeout(TURN);
                continue;
            };
            let kept = client.take().map(|(consumer, _)| Ok(consumer));
            let consumer = kept.unwrap_or_else(|| scan::consumer(self.config.clone(), group));
            let read = consumer.map_err(Unread::from).and_then(|consumer| {
                let read = self.read(&consumer, &asked, &mut origins)?;
                consumer.unassign()?;
                Ok((consumer, read))
            });
            match read {
                Ok((consumer, letters)) => {
                    client = Some((consumer, Instant::now()));
                    failing_since = None;
                    self.troubles.end(Kind::LettersUnread, &self.worker);
                    self.tell(letters);
                }
                Err(error) => {
                    origins.rest();
                    let since = *failing_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= PATIENCE {
                        self.troubles.begin(Trouble {
                            kind: Kind::LettersUnread,
                            subject: self.worker.clone(),
                            says: format!(
                                "the dead letters cannot be read: campaigns wait, and nobody is told of letters that go: {error}"
                            ),
                            fix: None,
                            effect: Effect::Limits,
                        });
                    }
                    // Unless the leader is another one by now.
                    self.wants.lock().push_front(asked);
                    thread::park_timeout(AGAIN);
                }
            }
        }
    }

    /// Whether it is to end.
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Reads what is asked for.
    fn read(
        &self,
        consumer: &BaseConsumer<LoggingContext>,
        asked: &Asked,
        origins: &mut Origins,
    ) -> Result<Letters, Unread> {
        let topic = &*self.topics.dead_letters;
        let read = &asked.read;
        let wants = if read.wants.is_empty() {
            let all = scan::partitions(consumer, topic)?;
            let all = all.elements();
            if all.is_empty() {
                let code = RDKafkaErrorCode::UnknownTopicOrPartition;
                return Err(KafkaError::MetadataFetch(code).into());
            }
            let all = all.iter().map(TopicPartitionListElem::partition);
            all.map(|partition| LetterWant {
                partition,
                from: 0,
                to: Some(0),
            })
            .collect()
        } else {
            read.wants.clone()
        };
        let of = || wants.iter().map(|want| (topic, want.partition));
        let first = offsets::edges(consumer, of(), Edge::First, ASK)?;
        let end = offsets::edges(consumer, of(), Edge::End, ASK)?;
        let mut edges = BTreeMap::new();
        let mut slices = BTreeMap::new();
        let mut starts = TopicPartitionList::new();
        for want in &wants {
            let at = (topic.to_owned(), want.partition);
            let (Some(first), Some(end)) = (first.get(&at).copied(), end.get(&at).copied()) else {
                return Err(KafkaError::OffsetFetch(RDKafkaErrorCode::NoOffset).into());
            };
            edges.insert(want.partition, (first, end));
            let from = want.from.max(first);
            let to = want.to.unwrap_or(end).min(end);
            let slice = Slice {
                to,
                next: from,
                letters: Vec::new(),
                bytes: 0,
                unread: 0,
            };
            slices.insert(want.partition, slice);
            if from < to {
                starts.add_partition_offset(topic, want.partition, Offset::Offset(from))?;
            }
        }
        if starts.count() > 0 {
            self.scan((consumer, origins), &starts, asked, &mut slices)?;
        }
        let mut letters = Letters {
            number: read.number,
            ..Letters::default()
        };
        for (partition, slice) in slices {
            let (first, end) = edges.get(&partition).copied().unwrap_or_default();
            letters.slices.push(LetterSlice {
                partition,
                first,
                next: slice.next,
                end,
                unread: slice.unread,
            });
            letters.letters.extend(slice.letters);
        }
        Ok(letters)
    }

    /// Reads partitions until there is enough of each, or for some time.
    fn scan(
        &self,
        (consumer, origins): (&BaseConsumer<LoggingContext>, &mut Origins),
        starts: &TopicPartitionList,
        asked: &Asked,
        slices: &mut BTreeMap<i32, Slice>,
    ) -> Result<(), Unread> {
        let ReadLetters { most, bytes, .. } = asked.read;
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let is_full = |slice: &Slice| slice.letters.len() >= most || slice.bytes >= bytes.max(1);
        let until = Instant::now() + LONGEST;
        let mut open = starts.count();
        let mut failed = None;
        let scanned = scan::read(consumer, starts, until, |message| {
            if self.is_over() {
                return ControlFlow::Break(());
            }
            let (partition, offset) = (message.partition(), message.offset());
            let Some(slice) = slices.get_mut(&partition) else {
                return ControlFlow::Continue(());
            };
            if slice.next >= slice.to || is_full(slice) {
                return ControlFlow::Continue(());
            }
            if offset < slice.to {
                if let Err(unread) = self.look_at(message, asked, origins, slice) {
                    failed = Some(unread);
                    return ControlFlow::Break(());
                }
                slice.next = offset + 1;
            } else {
                slice.next = slice.to;
            }
            if slice.next >= slice.to || is_full(slice) {
                open -= 1;
            }
            if open == 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        if let Some(unread) = failed {
            return Err(unread);
        }
        let left = match scanned {
            Scanned::ToEnd => Vec::new(),
            Scanned::Enough => return Ok(()),
            Scanned::OutOfTime { left } => left.into_iter().collect(),
        };
        // Behind the last record there may be markers of transactions.
        for (partition, slice) in slices {
            if !left.contains(partition) && !is_full(slice) {
                slice.next = slice.next.max(slice.to);
            }
        }
        Ok(())
    }

    /// Looks at a record.
    fn look_at(
        &self,
        message: &BorrowedMessage<'_>,
        asked: &Asked,
        origins: &mut Origins,
        slice: &mut Slice,
    ) -> Result<(), Unread> {
        let at = Origin {
            topic: Arc::clone(&self.topics.dead_letters),
            partition: message.partition(),
            offset: message.offset(),
        };
        let died = message.timestamp().to_millis().unwrap_or_default();
        let died = Timestamp::from_millis(u64::try_from(died).unwrap_or_default());
        let Ok(record) = received(message) else {
            slice.unread += 1;
            return Ok(());
        };
        let letter = match &asked.read.purpose {
            LetterPurpose::Age => letter::read_as_is(record, &at, died),
            LetterPurpose::Replay { spec, others } => {
                let target = |scene: &str, kind| asked.targets.of_task(scene, kind);
                match letter::read(record, &at, died, (spec, others), target) {
                    Read::Meant(letter) => Some(letter),
                    Read::Lacking(lacking) => {
                        let edit = spec.edit.as_ref();
                        Some(self.complete(*lacking, edit, asked.registry.as_ref(), origins)?)
                    }
                    Read::Other => return Ok(()),
                    Read::Foreign => None,
                }
            }
        };
        let Some(letter) = letter else {
            slice.unread += 1;
            return Ok(());
        };
        slice.bytes += letter.task.memory_size();
        slice.letters.push(letter);
        Ok(())
    }

    /// Fetches what a letter lacks.
    fn complete(
        &self,
        lacking: Lacking,
        edit: Option<&Edit>,
        registry: Option<&Registry>,
        origins: &mut Origins,
    ) -> Result<Letter, Unread> {
        let origin = lacking.origin().clone();
        let (record, stamped) = match origins.fetch(&origin, || self.is_over()) {
            Ok(Fetched::Record { record, stamped }) => (record, stamped),
            Ok(Fetched::Headless | Fetched::Gone(_)) => {
                return Ok(lacking.left(Ineligible::OriginGone));
            }
            Err(error) if is_denied(&error) => return Ok(lacking.left(Ineligible::OriginDenied)),
            Err(error) => return Err(Unread::Origin { origin, error }),
        };
        let intake = &self.topics.intake;
        if let Some(registry) = registry
            && let Some(schema) = intake.asks(&record)
            && let Err(why) = registry.ask_now(schema)
        {
            return Err(Unread::Schema { origin, why });
        }
        let arrival = Arrival::new(origin, stamped, clock::timestamp());
        Ok(lacking.found((record, arrival), intake, edit))
    }

    /// Gives the drive what was read.
    fn tell(&self, mut letters: Letters) {
        while !self.is_over() {
            match self.letters.send_timeout(letters, TURN) {
                Ok(()) | Err(SendTimeoutError::Disconnected(_)) => return,
                Err(SendTimeoutError::Timeout(back)) => letters = back,
            }
        }
    }
}

//! A session of a source: a member of its group that reads, and a producer that writes, until something fails.
//!
//! What fails ends the session, and the next one goes on at the committed offsets: so nothing need be known of a transaction of which nobody
//! knows what became. Only a letter that the retry topic does not take is dealt with here: it is written alone, and then without what is too
//! large. Invariants: the client is not polled while a batch is written, so that no partition is given away in between; what was read before a
//! rebalance is read again after it.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseProducer, Producer, PurgeConfig};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::{debug, warn};

use retide_avro::foreign::{self, Dialect, Foreign, Refused};
use retide_avro::headers::Headless;
use retide_core::{Origin, Reason, Record};
use retide_kafka::client::{Lifeline, ask_often, complained, logged};
use retide_kafka::failure::{Failure, is_of_record};
use retide_kafka::origins::{Fetched, Origins};
use retide_kafka::producer::{CALL, flush, producer_config};
use retide_kafka::record::{ClientHeaders, Collect as _, Parts, received, to_produce};

use super::{Source, Stuck};
use crate::worker::ledger::deliveries::{Deliveries, Flushed, produce, settle_deliveries};

/// One try of a source.
pub(super) struct Session<'a> {
    /// Whose it is.
    source: &'a Source,
    /// The member of the source's group.
    consumer: BaseConsumer<Member>,
    /// Finds the cluster again.
    lifeline: Lifeline,
    /// Writes copies.
    producer: BaseProducer<Deliveries>,
    /// Fetches what letters only name.
    origins: Origins,
    /// How many letters are still to be written each alone, since one of them was refused.
    alone: usize,
}

/// What happens to the member.
#[derive(Default)]
struct Member {
    /// How often partitions came or went.
    rebalances: AtomicU64,
}

/// A letter, as it was read.
struct Letter {
    /// The record.
    record: Result<Record, Headless>,
    /// Where it stands.
    stands: Origin,
}

/// What is written of a letter.
struct Written {
    /// Key, value and headers.
    record: Record,
    /// The identity of the task.
    id: Arc<str>,
    /// Whose letter it is.
    dialect: Option<Dialect>,
    /// Why it is no task, if it is none.
    refused: Option<Refused>,
    /// Where the letter stands.
    stands: Origin,
}

/// Why a batch was not written.
enum Failed {
    /// The retry topic does not take a record of it.
    Refused(KafkaError),
    /// Anything else.
    Stuck(Stuck),
}

/// How much of a letter is written that the retry topic does not take.
#[derive(Clone, Copy)]
enum Form {
    /// All of it.
    Whole,
    /// All but the value.
    Valueless,
    /// Nothing but what retide adds.
    Bare,
}

/// Most letters of a batch.
const MOST: usize = 1_000;

/// Bytes of letters from which on a batch is full: one letter more may be as large as a topic takes.
const MOST_BYTES: usize = 8 << 20;

/// Most letters of a batch that only name their records: each is fetched by itself, which takes some milliseconds.
const MOST_POINTERS: usize = 100;

/// What the client reads ahead, in KiB.
const AHEAD: &str = "16384";

/// Longest wait for a letter, after which it is looked whether it is time to end.
const POLL: Duration = Duration::from_millis(100);

/// How long a transaction may be open: after a crash it holds back the readers of the retry topic for as long.
const TRANSACTION: Duration = Duration::from_secs(10);

/// How long records may take to be acknowledged: what is left is for the commit.
const WRITE: Duration = Duration::from_secs(7);

/// How long a session has to last without a failure before the source does well that has nothing to copy.
const WELL: Duration = Duration::from_secs(5);

/// About what a letter takes in memory beside its bytes.
const AROUND: usize = 200;

// === impl Session ===

impl<'a> Session<'a> {
    /// Joins the group. Whatever the session before has left open is over then.
    pub(super) fn open(source: &'a Source, stop: &AtomicBool) -> Result<Self, Stuck> {
        let mut config = producer_config(&source.producer);
        config.set("queue.buffering.max.kbytes", "32768");
        if let Some(id) = &source.transactions {
            let timeout = TRANSACTION.as_millis().to_string();
            config.set("transactional.id", id);
            config.set("transaction.timeout.ms", timeout);
        } else {
            config.set("message.timeout.ms", TRANSACTION.as_millis().to_string());
        }
        let producer: BaseProducer<Deliveries> = config
            .create_with_context(Deliveries::default())
            .map_err(Stuck::at("make a producer"))?;
        if source.transactions.is_some() && !stop.load(Ordering::Acquire) {
            producer
                .init_transactions(CALL)
                .map_err(Stuck::at("begin transactions"))?;
        }
        let mut config = source.consumer.clone();
        for (key, value) in [
            ("group.id", source.group.as_str()),
            ("client.id", source.client.as_str()),
            // All is given back at each rebalance, and what was read before it is read again.
            ("partition.assignment.strategy", "range"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "earliest"),
            ("isolation.level", "read_committed"),
            ("allow.auto.create.topics", "false"),
            ("queued.max.messages.kbytes", AHEAD),
        ] {
            config.set(key, value);
        }
        // A name of the workers' group; members of this one come and go.
        config.remove("group.instance.id");
        ask_often(&mut config);
        let lifeline = Lifeline::new(&config);
        let consumer: BaseConsumer<Member> = config
            .create_with_context(Member::default())
            .map_err(Stuck::at("make a consumer"))?;
        #[allow(
            clippy::disallowed_methods,
            reason = "the member of the source's own group"
        )]
        consumer
            .subscribe(&[&source.settings.topic])
            .map_err(Stuck::at("join the group"))?;
        Ok(Self {
            origins: Origins::new(&source.consumer, &source.group),
            source,
            consumer,
            lifeline,
            producer,
            alone: 0,
        })
    }

    /// Copies until it is time to end. `well` is called when it goes well.
    pub(super) fn copy(&mut self, stop: &AtomicBool, well: &mut dyn FnMut()) -> Result<(), Stuck> {
        let mut joined: Option<Instant> = None;
        while !stop.load(Ordering::Acquire) {
            let letters = self.collect(stop)?;
            self.lifeline.hold(self.consumer.client());
            if self.consumer.context().rebalances() > 0 {
                let joined = joined.get_or_insert_with(Instant::now);
                if letters.is_empty() && joined.elapsed() >= WELL {
                    well();
                }
            }
            if letters.is_empty() {
                continue;
            }
            let batch = self.open_all(letters)?;
            self.write(batch)?;
            well();
        }
        Ok(())
    }

    /// Reads letters until there are enough, or the first has waited for long enough; none if none comes.
    fn collect(&self, stop: &AtomicBool) -> Result<Vec<Letter>, Stuck> {
        let most = if self.alone > 0 { 1 } else { MOST };
        let member = self.consumer.context();
        let (mut letters, mut bytes) = (Vec::new(), 0);
        let mut until: Option<Instant> = None;
        let seen = member.rebalances();
        while letters.len() < most && bytes < MOST_BYTES && !stop.load(Ordering::Acquire) {
            let wait = until.map_or(POLL, |until| {
                until.saturating_duration_since(Instant::now())
            });
            let polled = self.consumer.poll(wait);
            if member.rebalances() != seen {
                // What was read is read again, by whoever has its partition now.
                letters.clear();
                self.reread(polled)?;
                break;
            }
            match polled {
                Some(Ok(message)) => {
                    let letter = Letter::of(&message);
                    bytes += letter.size();
                    letters.push(letter);
                    let interval = self.source.commit_interval;
                    until.get_or_insert_with(|| Instant::now() + interval);
                }
                Some(Err(error)) => self.judge(error)?,
                None if letters.is_empty() => break,
                None => {}
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                break;
            }
        }
        Ok(letters)
    }

    /// What came with the news of a rebalance is not lost.
    fn reread(&self, polled: Option<Result<BorrowedMessage<'_>, KafkaError>>) -> Result<(), Stuck> {
        match polled {
            Some(Ok(message)) => {
                let first = (message.partition(), message.offset());
                self.seek([first].into_iter())
            }
            Some(Err(error)) => self.judge(error),
            None => Ok(()),
        }
    }

    /// Goes on after an error that passes by itself.
    fn judge(&self, error: KafkaError) -> Result<(), Stuck> {
        match Failure::of(&error) {
            Failure::Passing => {
                debug!(source = self.source.name, %error, "source waits");
                Ok(())
            }
            Failure::Lasting | Failure::Fatal | Failure::Fenced => Err(Stuck::at("read it")(error)),
        }
    }

    /// Finds out what is to be written of each letter. Those that there is no room for are read again.
    fn open_all(&mut self, letters: Vec<Letter>) -> Result<Vec<Written>, Stuck> {
        let (mut batch, mut bytes, mut pointers) = (Vec::new(), 0, 0);
        let mut letters = letters.into_iter();
        for letter in letters.by_ref() {
            let written = self.open_one(letter, &mut pointers)?;
            bytes += size(&written.record);
            batch.push(written);
            if bytes >= MOST_BYTES || pointers >= MOST_POINTERS {
                break;
            }
        }
        self.seek(letters.map(|letter| (letter.stands.partition, letter.stands.offset)))?;
        Ok(batch)
    }

    /// Finds out what is to be written of a letter.
    fn open_one(&mut self, letter: Letter, pointers: &mut usize) -> Result<Written, Stuck> {
        let Letter { record, stands } = letter;
        let mut record = match record {
            Ok(record) => record,
            Err(headless) => return Ok(Written::headless(headless, stands)),
        };
        let known = Foreign::of(&record, self.source.settings.dialect);
        let id = known.id(&stands);
        let mut refused = None;
        if known.is_pointer
            && let Some(origin) = &known.origin
        {
            *pointers += 1;
            let doing = format!("fetch {origin}, which a letter names");
            let fetched = self.origins.fetch(origin, || false);
            match fetched.map_err(Stuck::at(&doing))? {
                Fetched::Record { record: whole, .. } => {
                    let Record {
                        key,
                        value,
                        headers,
                    } = whole;
                    let theirs = mem::replace(&mut record.headers, headers);
                    record.headers.extend(theirs);
                    (record.key, record.value) = (key, value);
                }
                Fetched::Headless => refused = Some(too_many(origin)),
                Fetched::Gone(why) => {
                    refused = Some(Refused {
                        reason: Reason::OriginGone,
                        detail: format!("the letter at {stands} only names {origin}: {why}"),
                    });
                }
            }
        }
        Ok(Written {
            record,
            id,
            dialect: known.dialect,
            refused,
            stands,
        })
    }

    /// Writes a batch. If the retry topic refuses one of its letters, they are read again, and written each alone.
    fn write(&mut self, mut batch: Vec<Written>) -> Result<(), Stuck> {
        let mut form = Form::Whole;
        loop {
            match self.try_write(&batch, form) {
                Ok(()) => break,
                Err(Failed::Stuck(stuck)) => return Err(stuck),
                Err(Failed::Refused(error)) => {
                    let [only] = batch.as_mut_slice() else {
                        self.alone = batch.len();
                        return self.seek(batch.iter().map(Written::place));
                    };
                    form = match form {
                        Form::Whole => Form::Valueless,
                        Form::Valueless => Form::Bare,
                        Form::Bare => return Err(Stuck::at("write what a letter becomes")(error)),
                    };
                    let Origin {
                        partition, offset, ..
                    } = only.stands;
                    let source = &self.source.name;
                    warn!(source, partition, offset, %error, "letter refused by the retry topic");
                    only.refused = Some(Refused {
                        reason: Reason::Unwritable,
                        detail: format!(
                            "the retry topic does not take the letter at {}: {error}",
                            only.stands
                        ),
                    });
                }
            }
        }
        self.alone = self.alone.saturating_sub(1);
        let counts = &self.source.metrics.sources;
        for written in &batch {
            counts.copied(&self.source.name, written.dialect);
        }
        Ok(())
    }

    /// Writes a batch with the offsets of its letters, or nothing of it.
    fn try_write(&self, batch: &[Written], form: Form) -> Result<(), Failed> {
        let is_transaction = self.source.transactions.is_some();
        let stuck = |doing| move |error| Failed::Stuck(Stuck::at(doing)(error));
        if is_transaction {
            let begun = self.producer.begin_transaction();
            begun.map_err(stuck("begin a transaction"))?;
        }
        self.deliver(batch, form)
            .inspect_err(|_| self.undo(is_transaction))?;
        let offsets = self.offsets(batch).map_err(stuck("name offsets"))?;
        if !is_transaction {
            let committed = self.consumer.commit(&offsets, CommitMode::Sync);
            return committed.map_err(stuck("commit offsets"));
        }
        let Some(membership) = self.consumer.group_metadata() else {
            self.undo(is_transaction);
            return Err(stuck("commit offsets")(KafkaError::Canceled));
        };
        self.producer
            .send_offsets_to_transaction(&offsets, &membership, CALL)
            .inspect_err(|_| self.undo(is_transaction))
            .map_err(stuck("commit offsets"))?;
        // If nobody knows what became of it, the next session sees it by the committed offsets.
        let committed = self.producer.commit_transaction(CALL);
        committed.map_err(stuck("commit a transaction"))
    }

    /// Hands the copies to the producer, and waits until all are acknowledged.
    fn deliver(&self, batch: &[Written], form: Form) -> Result<(), Failed> {
        let doing = format!("write {}", self.source.tasks);
        let stuck = |error| Failed::Stuck(Stuck::at(&doing)(error));
        for (index, written) in batch.iter().enumerate() {
            let mut headers = ClientHeaders::default();
            let scene = &self.source.settings.scene;
            let record = written.in_form(form);
            let own = (scene.as_str(), &*written.id);
            foreign::write(
                &record,
                own,
                written.refused.as_ref(),
                &mut |name, value| {
                    headers.add(name, value);
                },
            );
            let parts = Parts {
                topic: &self.source.tasks,
                partition: None,
                key: record.key.as_deref(),
                value: record.value.as_deref(),
            };
            produce(&self.producer, to_produce(parts, headers, index)).map_err(stuck)?;
        }
        let flushed = settle_deliveries(&self.producer, WRITE).map_err(stuck)?;
        let (failed, unregistered) = self.producer.context().take();
        let of_record = |code: &RDKafkaErrorCode| is_of_record(*code);
        let codes = failed
            .iter()
            .find(|failed| failed.code().as_ref().is_some_and(of_record));
        if let Some(refused) = codes {
            return Err(Failed::Refused(refused.error.clone()));
        }
        if !unregistered.is_empty() {
            let code = RDKafkaErrorCode::TopicAuthorizationFailed;
            return Err(stuck(KafkaError::MessageProduction(code)));
        }
        match (failed.into_iter().next(), flushed) {
            (Some(failed), _) => Err(stuck(failed.error)),
            (None, Flushed::All) => Ok(()),
            (None, Flushed::Failed) => Err(stuck(KafkaError::Canceled)),
            (None, Flushed::TimedOut(_)) => {
                let code = RDKafkaErrorCode::MessageTimedOut;
                Err(stuck(KafkaError::MessageProduction(code)))
            }
        }
    }

    /// Lets go of what was not written. If that fails, the next call of the producer does, too, and the session ends.
    fn undo(&self, is_transaction: bool) {
        self.producer.purge(PurgeConfig::default().queue());
        if let Err(error) = flush(&self.producer) {
            debug!(%error, "records still under way");
        }
        if is_transaction && let Err(error) = self.producer.abort_transaction(CALL) {
            debug!(%error, "transaction not aborted");
        }
        // Records that were purged report themselves as failed.
        self.producer.poll(Duration::ZERO);
        self.producer.context().take();
    }

    /// The offsets behind the letters of a batch.
    fn offsets(&self, batch: &[Written]) -> Result<TopicPartitionList, KafkaError> {
        let mut next: BTreeMap<i32, i64> = BTreeMap::new();
        for (partition, offset) in batch.iter().map(Written::place) {
            next.insert(partition, offset + 1);
        }
        let mut list = TopicPartitionList::new();
        for (partition, offset) in next {
            let offset = Offset::Offset(offset);
            list.add_partition_offset(&self.source.settings.topic, partition, offset)?;
        }
        Ok(list)
    }

    /// Reads letters of these places again, and what is behind them.
    fn seek(&self, places: impl Iterator<Item = (i32, i64)>) -> Result<(), Stuck> {
        let mut first: BTreeMap<i32, i64> = BTreeMap::new();
        for (partition, offset) in places {
            first.entry(partition).or_insert(offset);
        }
        for (partition, offset) in first {
            let topic = &self.source.settings.topic;
            self.consumer
                .seek(topic, partition, Offset::Offset(offset), CALL)
                .map_err(Stuck::at("read letters again"))?;
        }
        Ok(())
    }
}

// === impl Member ===

impl Member {
    /// How often partitions came or went.
    fn rebalances(&self) -> u64 {
        self.rebalances.load(Ordering::Acquire)
    }
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        logged(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match Failure::of(&error) {
            // Whoever polls is given these as well.
            Failure::Lasting => debug!(%error, reason, "a source stands still"),
            Failure::Passing | Failure::Fatal | Failure::Fenced => complained(&error, reason),
        }
    }
}

impl ConsumerContext for Member {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, _: &Rebalance<'_>) {
        self.rebalances.fetch_add(1, Ordering::AcqRel);
    }
}

// === impl Letter ===

impl Letter {
    /// The letter that was read.
    fn of(message: &BorrowedMessage<'_>) -> Self {
        Self {
            record: received(message),
            stands: Origin {
                topic: message.topic().into(),
                partition: message.partition(),
                offset: message.offset(),
            },
        }
    }

    /// About what it takes.
    fn size(&self) -> usize {
        match &self.record {
            Ok(record) | Err(Headless(record)) => size(record),
        }
    }
}

// === impl Written ===

impl Written {
    /// A letter whose headers no client reads: they are where it stands.
    fn headless(Headless(record): Headless, stands: Origin) -> Self {
        Self {
            id: Foreign::default().id(&stands),
            record,
            dialect: None,
            refused: Some(too_many(&stands)),
            stands,
        }
    }

    /// Where the letter stands: partition and offset.
    fn place(&self) -> (i32, i64) {
        (self.stands.partition, self.stands.offset)
    }

    /// As much of it as is written.
    fn in_form(&self, form: Form) -> Record {
        match form {
            Form::Whole => self.record.clone(),
            Form::Valueless => Record {
                value: None,
                ..self.record.clone()
            },
            Form::Bare => Record::default(),
        }
    }
}

/// The headers of the record there cannot be read.
fn too_many(place: &Origin) -> Refused {
    Refused {
        reason: Reason::TooManyHeaders,
        detail: format!(
            "the headers of {place} cannot be read: there are too many, or they are broken"
        ),
    }
}

/// About what a record takes in memory.
fn size(record: &Record) -> usize {
    let bytes = |part: &Option<bytes::Bytes>| part.as_ref().map_or(0, bytes::Bytes::len);
    let headers = record.headers.iter();
    let headers =
        headers.map(|header| AROUND / 2 + header.name.as_bytes().len() + bytes(&header.value));
    AROUND + bytes(&record.key) + bytes(&record.value) + headers.sum::<usize>()
}

//! The adversary: by the seed, what producers, admins and other programs do to a group that runs.
//!
//! Each act is a fault of the journal. Those that keep retide from doing its work last until that was told, and are then undone.
//! Invariant: what an act destroyed is written down, record by record, so that the checker asks for the rest.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use tokio::sync::Semaphore;

use retide_native::headers;

use crate::Failed;
use crate::admin::Admin;
use crate::campaign::{self, Ends, PREFIX, USER};
use crate::fleet::Fleet;
use crate::ledger::{Faults, Ledger, now_micros};
use crate::pace::Progress;
use crate::plan::{APPLIED, Random};
use crate::watch::Watch;

/// One act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Records that no producer should write.
    Odd,
    /// A permission on one topic is taken away: `write` or `read`.
    Deny(&'static str, String),
    /// Producing is slowed down to so many bytes a second, for a while.
    Quota(u64, Duration),
    /// A partition is added to some of the topics, and then to all.
    Widen,
    /// What stands on a partition of this topic is deleted, read or not.
    Delete(String),
    /// A setting of a topic is changed to what retide cannot work with.
    Setting(String, &'static str, &'static str),
    /// Another group reads the retry topic.
    Intruder,
    /// The scene of some tasks is taken off the scenes topic.
    SceneGone,
    /// A record is written over that scene which no version of retide can read.
    SceneUnreadable,
    /// The commit metadata of a topic's partitions is exchanged while no process runs.
    Metadata(String),
    /// A transaction is left open on a partition of this topic.
    Hang(String),
}

/// What acts are done with.
pub(crate) struct Adversary {
    /// Changes the cluster.
    admin: Admin,
    /// Sees what processes say.
    watch: Arc<Watch>,
    /// The journal.
    faults: Arc<Faults>,
    /// The broker.
    bootstrap: String,
    /// The folder with Kafka's jars.
    jars: PathBuf,
    /// The folder of the campaign.
    dir: PathBuf,
    /// Tasks that an act may have destroyed, for the checker and for whoever waits for ends.
    gone: Ledger,
    /// Their identities.
    gone_ids: Mutex<HashSet<String>>,
    /// Tasks of which an act destroyed what was known of them, so that they may be done again.
    exempt: Ledger,
    /// Where odd records are.
    odd: Ledger,
    /// Acts that last, at once.
    lasting: Semaphore,
    /// Held by acts that change the same things.
    alone: tokio::sync::Mutex<()>,
    /// Partitions of each topic by now.
    partitions: Mutex<u64>,
    /// Faults hold it for reading, an act that needs the group without members for writing.
    running: tokio::sync::RwLock<()>,
}

/// More headers than a client takes for headers.
const HEADERS: usize = 100_001;

/// How many acts last at once: more would leave nothing of the group that works.
const LASTING: usize = 2;

/// How long an act lasts that nobody can miss: longer than a look around.
const WHILE: Duration = Duration::from_secs(20);

/// Most partitions that a topic is widened to.
const WIDEST: u64 = 9;

/// How long a group may say that it is well and end nothing, while there are tasks: the longest backoff and delay, several times.
const IDLE: Duration = Duration::from_mins(1);

// === impl Act ===

impl Act {
    /// The acts of a campaign.
    pub(crate) fn of(seed: u64, count: usize) -> Vec<(Duration, Self)> {
        let mut random = Random::new(seed, 3);
        let mut acts = Vec::new();
        // Each sort comes once before any comes again, in an order of its own each time.
        let mut sorts: Vec<u64> = Vec::new();
        for _ in 0..count {
            if sorts.is_empty() {
                sorts = (0..SORTS).collect();
                for last in (1..sorts.len()).rev() {
                    sorts.swap(last, random.between(0, last as u64 + 1) as usize);
                }
            }
            let sort = sorts.pop().unwrap_or_default();
            let act = Self::sort(sort, &mut random);
            acts.push((random.millis(2_000, 5_000), act));
        }
        acts
    }

    /// One act of a sort.
    fn sort(sort: u64, random: &mut Random) -> Self {
        let mut one = |names: &[&str]| {
            let number = random.between(0, names.len() as u64) as usize;
            format!("{PREFIX}.{}", names[number])
        };
        let written = [
            "callbacks",
            "events",
            "dead-letters",
            "order",
            "delay.now",
            "delay.5s",
        ];
        let read = ["tasks", "delay.now", "delay.5s"];
        match sort {
            0 | 1 => Self::Odd,
            2 => Self::Deny("write", one(&written)),
            3 => Self::Deny("read", one(&read)),
            4 => Self::Quota(
                random.between(20, 400) * 1_000,
                random.millis(10_000, 25_000),
            ),
            5 => Self::Widen,
            6 => Self::Delete(one(&["delay.now", "delay.5s", "delay.10s"])),
            7 => Self::Setting(format!("{PREFIX}.tasks"), "max.message.bytes", "50000000"),
            8 => Self::Intruder,
            9 => Self::SceneGone,
            10 => Self::SceneUnreadable,
            11 => Self::Metadata(one(&read)),
            _ => Self::Hang(one(&read)),
        }
    }

    /// Its name in the journal.
    const fn word(&self) -> &'static str {
        match self {
            Self::Odd => "odd",
            Self::Deny(..) => "deny",
            Self::Quota(..) => "quota",
            Self::Widen => "widen",
            Self::Delete(_) => "delete",
            Self::Setting(..) => "setting",
            Self::Intruder => "intruder",
            Self::SceneGone => "scene-gone",
            Self::SceneUnreadable => "scene-unreadable",
            Self::Metadata(_) => "metadata",
            Self::Hang(_) => "hang",
        }
    }

    /// What it is done to, in the journal.
    fn detail(&self) -> String {
        match self {
            Self::Odd | Self::Widen | Self::Intruder | Self::SceneGone | Self::SceneUnreadable => {
                String::new()
            }
            Self::Deny(operation, topic) => format!("{operation} {topic}"),
            Self::Quota(bytes, time) => format!("{bytes} B/s for {time:?}"),
            Self::Setting(topic, key, value) => format!("{topic} {key}={value}"),
            Self::Delete(topic) | Self::Metadata(topic) | Self::Hang(topic) => topic.clone(),
        }
    }
}

/// How many sorts of acts there are, with those twice that come twice as often.
const SORTS: u64 = 13;

// === impl Adversary ===

impl Adversary {
    /// An adversary of the group on the broker at `bootstrap`.
    pub(crate) async fn new(
        (dir, jars): (&Path, &Path),
        bootstrap: &str,
        faults: &Arc<Faults>,
        partitions: u64,
    ) -> Result<Self, Failed> {
        let admin = Admin::start(jars, bootstrap, &dir.join("logs/admin.log"))?;
        admin.tell(format!("allow {USER}")).await?;
        Ok(Self {
            admin,
            watch: Arc::new(Watch::new(dir.join("logs"))),
            faults: Arc::clone(faults),
            bootstrap: bootstrap.to_owned(),
            jars: jars.to_owned(),
            dir: dir.to_owned(),
            gone: Ledger::create(&dir.join("gone.tsv"))?,
            gone_ids: Mutex::default(),
            exempt: Ledger::create(&dir.join("exempt.tsv"))?,
            odd: Ledger::create(&dir.join("odd.tsv"))?,
            lasting: Semaphore::new(LASTING),
            alone: tokio::sync::Mutex::default(),
            partitions: Mutex::new(partitions),
            running: tokio::sync::RwLock::default(),
        })
    }

    /// Held while a fault is done to a process or the broker.
    pub(crate) async fn running(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.running.read().await
    }

    /// Tasks that may have been destroyed.
    pub(crate) fn gone(&self) -> HashSet<String> {
        self.gone_ids
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Looks at the processes as long as it is polled, and writes down when all say that they are well while nothing ends.
    pub(crate) async fn look(&self, fleet: &Fleet, progress: &Progress, ends: &Ends) {
        let idle = async {
            let (mut since, mut last, mut stood) = (Instant::now(), 0, Duration::ZERO);
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let ended = ends.count();
                let all_done = campaign::is_finished(progress, ends, &self.gone());
                if ended > last || all_done || !self.watch.is_well() {
                    (since, last, stood) = (Instant::now(), ended, self.watch.stood());
                }
                if since.elapsed() > IDLE + self.watch.stood().saturating_sub(stood) {
                    self.faults.note("idle", &format!("{ended} ended"));
                    since = Instant::now();
                }
            }
        };
        tokio::join!(self.watch.look(fleet), idle);
    }

    /// Does one act, from its beginning to its end.
    pub(crate) async fn commit(&self, act: Act, fleet: &Fleet, mut random: Random) {
        if let Err(error) = self.try_commit(&act, fleet, &mut random).await {
            // An act that cannot be done is a campaign that shows less than it says.
            eprintln!("retide-chaos: {act:?}: {error}");
            self.faults.note("failed", act.word());
        }
    }

    /// See [`Self::commit`].
    async fn try_commit(
        &self,
        act: &Act,
        fleet: &Fleet,
        random: &mut Random,
    ) -> Result<(), Failed> {
        if let Act::Metadata(topic) = act {
            return self.exchange(act, topic, fleet).await;
        }
        // Held once only: whoever asks again waits behind a writer that waits for the first.
        let _running = self.running.read().await;
        match act {
            Act::Odd => {
                let fault = self.begin(act);
                let written = self.odd_records(fault, random);
                self.faults.end(fault);
                written
            }
            Act::Deny(operation, topic) => {
                let _lasting = self.lasting.acquire().await?;
                self.tell(format!("deny {USER} {operation} {topic}"))
                    .await?;
                self.lasts(
                    act,
                    std::slice::from_ref(topic),
                    format!("undeny {USER} {operation} {topic}"),
                )
                .await
            }
            Act::Quota(bytes, time) => {
                let _alone = self.alone.lock().await;
                let fault = self.begin(act);
                self.tell(format!("quota {USER} {bytes}")).await?;
                tokio::time::sleep(*time).await;
                self.tell(format!("quota {USER} 0")).await?;
                self.faults.end(fault);
                Ok(())
            }
            Act::Widen => self.widen(act, fleet, random).await,
            Act::Delete(topic) => self.delete(act, topic, random).await,
            Act::Setting(topic, key, value) => {
                let _lasting = self.lasting.acquire().await?;
                self.tell(format!("config {topic} {key} {value}")).await?;
                self.lasts(
                    act,
                    std::slice::from_ref(topic),
                    format!("config {topic} {key} -"),
                )
                .await
            }
            Act::Intruder => {
                let fault = self.begin(act);
                self.tell(format!("commit intruder {PREFIX}.tasks 0 0"))
                    .await?;
                tokio::time::sleep(WHILE).await;
                self.tell("forget intruder".to_owned()).await?;
                self.faults.end(fault);
                Ok(())
            }
            Act::SceneGone | Act::SceneUnreadable => self.scene(act, fleet).await,
            Act::Hang(topic) => {
                let _lasting = self.lasting.acquire().await?;
                let _alone = self.alone.lock().await;
                let partition = random.between(0, self.narrowest());
                self.tell(format!("hang {topic} {partition}")).await?;
                self.lasts(act, std::slice::from_ref(topic), "unhang".to_owned())
                    .await
            }
            Act::Metadata(_) => unreachable!("done above"),
        }
    }

    /// Carries out a command.
    async fn tell(&self, command: String) -> Result<String, Failed> {
        self.admin.tell(command).await
    }

    /// Writes down that an act begins.
    fn begin(&self, act: &Act) -> u64 {
        self.faults.begin(act.word(), "", &act.detail())
    }

    /// Waits until an act that was done is told, and undoes it.
    async fn lasts(&self, act: &Act, subjects: &[String], undo: String) -> Result<(), Failed> {
        let fault = self.begin(act);
        let missing = self.watch.told(subjects).await;
        self.faults.told(fault, &missing);
        self.tell(undo).await?;
        self.faults.end(fault);
        Ok(())
    }

    /// Partitions that every topic has.
    fn narrowest(&self) -> u64 {
        *self
            .partitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a partition to one topic, waits until it is told that the topics differ, and lets retide do the rest.
    async fn widen(&self, act: &Act, fleet: &Fleet, random: &mut Random) -> Result<(), Failed> {
        let _lasting = self.lasting.acquire().await?;
        let _alone = self.alone.lock().await;
        let wide = self.narrowest() + 1;
        if wide > WIDEST {
            return Ok(());
        }
        let topics = ["tasks", "delay.now", "delay.10s", "events", "callbacks"];
        let number = random.between(0, topics.len() as u64) as usize;
        let topic = format!("{PREFIX}.{}", topics[number]);
        self.tell(format!("widen {topic} {wide}")).await?;
        let fault = self.begin(act);
        let missing = self
            .watch
            .told(&[topic, "partitions-differ".to_owned()])
            .await;
        self.faults.told(fault, &missing);
        let mut init = fleet.command(0);
        init.args(["init", "--partitions", &wide.to_string()]);
        run(init).await?;
        *self
            .partitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = wide;
        // Until the clients have heard of it and the group has settled.
        tokio::time::sleep(WHILE).await;
        self.faults.end(fault);
        Ok(())
    }

    /// Deletes everything on a partition, and writes down what it was.
    async fn delete(&self, act: &Act, topic: &str, random: &mut Random) -> Result<(), Failed> {
        let _alone = self.alone.lock().await;
        let partition = random.between(0, self.narrowest());
        let committed = self.committed().await?;
        let from = committed
            .get(&format!("{topic}/{partition}"))
            .copied()
            .unwrap_or_default();
        let fault = self.begin(act);
        let (end, records) = self.dump(topic, partition, true).await?;
        for (offset, id) in records {
            if offset >= from {
                self.gone.write(&[&fault.to_string(), &id]);
                let mut ids = self.gone_ids.lock().unwrap_or_else(PoisonError::into_inner);
                ids.insert(id);
            }
        }
        self.tell(format!("delete {topic} {partition} {end}"))
            .await?;
        tokio::time::sleep(WHILE).await;
        self.faults.end(fault);
        Ok(())
    }

    /// Takes the scene of some tasks away, or writes over it, and gives it back when that was told.
    async fn scene(&self, act: &Act, fleet: &Fleet) -> Result<(), Failed> {
        let _lasting = self.lasting.acquire().await?;
        let _alone = self.alone.lock().await;
        let value = match act {
            Act::SceneGone => "-",
            _ => "{\"version\":9000}",
        };
        self.tell(format!("produce {PREFIX}.scenes {APPLIED} {value}"))
            .await?;
        let fault = self.begin(act);
        let missing = self.watch.told(&[APPLIED.to_owned()]).await;
        self.faults.told(fault, &missing);
        run(campaign::apply(fleet)).await?;
        self.faults.end(fault);
        Ok(())
    }

    /// Stops all processes, exchanges commit metadata, and starts them again.
    async fn exchange(&self, act: &Act, topic: &str, fleet: &Fleet) -> Result<(), Failed> {
        let _nobody_else = self.running.write().await;
        let fault = self.begin(act);
        let stopped = fleet.stop_all().await;
        let committed = self.committed().await?;
        for partition in 0..self.narrowest() {
            let from = committed
                .get(&format!("{topic}/{partition}"))
                .copied()
                .unwrap_or_default();
            let (_, records) = self.dump(topic, partition, false).await?;
            for (_, id) in records.into_iter().filter(|(offset, _)| *offset >= from) {
                self.exempt.write(&[&fault.to_string(), &id]);
            }
        }
        // Members that have just left are members for a moment.
        let since = Instant::now();
        while let Err(error) = self.tell(format!("swap {PREFIX} {topic}")).await {
            if since.elapsed() > WHILE {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        fleet.start_all(&stopped);
        self.faults.end(fault);
        Ok(())
    }

    /// The group's offsets, by topic and partition.
    async fn committed(&self) -> Result<BTreeMap<String, i64>, Failed> {
        let text = self.tell(format!("committed {PREFIX}")).await?;
        let pairs = text.split_whitespace().filter_map(|pair| {
            let (place, offset) = pair.split_once('=')?;
            Some((place.to_owned(), offset.parse().ok()?))
        });
        Ok(pairs.collect())
    }

    /// What stands on a partition: its end, and the offset and identity of each record. With `keep` the records are kept for the checker.
    async fn dump(
        &self,
        topic: &str,
        partition: u64,
        keep: bool,
    ) -> Result<(i64, Vec<(i64, String)>), Failed> {
        let mut command = campaign::checker(&self.jars);
        command
            .args(["dump", "--bootstrap", &self.bootstrap, "--topic", topic])
            .args(["--partition", &partition.to_string()]);
        if keep {
            command.arg("--keep").arg(self.dir.join("deleted.tsv"));
        }
        let text = run(command).await?;
        let mut lines = text.lines();
        let end = lines.next().and_then(|line| line.parse().ok());
        let end = end.ok_or_else(|| format!("no end of {topic}/{partition}"))?;
        let records = lines.filter_map(|line| {
            let (offset, id) = line.split_once('\t')?;
            Some((offset.parse().ok()?, id.to_owned()))
        });
        Ok((end, records.collect()))
    }

    /// Writes records that no producer should write; each has to end as a dead letter.
    fn odd_records(&self, fault: u64, random: &mut Random) -> Result<(), Failed> {
        let producer: BaseProducer<DefaultProducerContext> = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("message.max.bytes", "20000000")
            .set("compression.type", "zstd")
            .create()?;
        let topic = format!("{PREFIX}.tasks");
        let header = |key, value: &str| {
            OwnedHeaders::new().insert(Header {
                key,
                value: Some(value),
            })
        };
        let scene = |id: &str| {
            header("retry-scene", crate::plan::SCENE).insert(Header {
                key: "retry-id",
                value: Some(id),
            })
        };
        let big = vec![b'x'; random.between(2_000_000, 6_000_000) as usize];
        let id = |number: u32| format!("odd-{fault}-{number}");
        let with = |number, name: &str, value: &str| {
            let mut headers = scene(&id(number));
            headers::add(&mut headers, name.as_bytes(), Some(value.as_bytes()));
            headers
        };
        let named = |number, name: &[u8]| {
            let mut headers = scene(&id(number));
            headers::add(&mut headers, name, Some(b"x"));
            headers
        };
        let mut many = scene(&id(8));
        for _ in 0..HEADERS {
            headers::add(&mut many, b"x", None);
        }
        let nameless = header("retry-id", &id(3));
        let unknown = header("retry-scene", "no-such-scene");
        let unknown = unknown.insert(Header {
            key: "retry-id",
            value: Some(&id(2)),
        });
        let odd: [(u32, OwnedHeaders, &[u8]); 9] = [
            // Small on the wire of its producer, too large for a tier.
            (0, with(0, "retry-delay-ms", "4000"), &big),
            (1, with(1, "retry-delay-ms", "soon"), b"{}"),
            (2, unknown, b"{}"),
            (3, nameless, b"no scene"),
            (4, with(4, "retry-deadline-at", "tomorrow"), b"{}"),
            (5, with(5, "Retry-Due-At", "-17"), b"{}"),
            (6, named(6, b"caf\xe9"), b"{}"),
            (7, named(7, b"\xff\0"), b"{}"),
            // More than a client takes.
            (8, many, b"{}"),
        ];
        for (number, headers, value) in odd {
            let id = id(number);
            self.odd.write(&[&now_micros().to_string(), &id, "dead"]);
            let mut record = BaseRecord::<str, [u8]>::to(&topic)
                .payload(value)
                .headers(headers);
            while let Err((error, again)) = producer.send(record) {
                if error.rdkafka_error_code() != Some(rdkafka::types::RDKafkaErrorCode::QueueFull) {
                    return Err(error.into());
                }
                producer.poll(Duration::from_millis(10));
                record = again;
            }
        }
        producer.flush(Duration::from_mins(1))?;
        Ok(())
    }
}

/// Runs a command to its end; gives what it printed.
async fn run(mut command: Command) -> Result<String, Failed> {
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{}: {}", output.status, text.trim_end()).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sort_of_act_comes_once_before_any_comes_again() {
        let acts = Act::of(7, SORTS as usize);

        let words: HashSet<&str> = acts.iter().map(|(_, act)| act.word()).collect();

        // Odd records count twice, and so do denials: of writing and of reading.
        assert_eq!(words.len(), SORTS as usize - 2);
    }

    #[test]
    fn the_same_seed_gives_the_same_acts() {
        assert_eq!(Act::of(3, 50), Act::of(3, 50));
        assert_ne!(Act::of(3, 50), Act::of(4, 50));
    }
}

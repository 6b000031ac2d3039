//! One test's topics, processes and target.

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header as OutHeader, Message, OwnedHeaders};
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use retide_native::admin;
use retide_shell::clock;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::beside::Places;
use crate::bounded::{self, Running};
use crate::support::{PATIENCE, bootstrap, config};

/// The tiers of each test.
pub(crate) const TIERS: [&str; 5] = ["now", "5s", "10s", "1m", "1h"];

/// How often a target looks whether it stands still.
const BEAT: Duration = Duration::from_millis(5);

/// One test's topics, processes and target.
pub(crate) struct Rig {
    pub(crate) bootstrap: String,
    pub(crate) prefix: String,
    pub(crate) target: Target,
    directory: TempDir,
    runtime: Runtime,
    _places: Places,
}

/// A target over HTTP that remembers what it saw.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    seen: Arc<Seen>,
}

/// What a target saw, and how it answers.
struct Seen {
    requests: Mutex<Vec<Request>>,
    stalls: Mutex<Vec<Range<u128>>>,
    takes: Duration,
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) at_micros: u128,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// A record as a read-committed consumer sees it.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    /// Its timestamp, in milliseconds since the epoch.
    pub(crate) at_millis: u128,
}

/// A `retide run`, killed when dropped.
pub(crate) struct Retide {
    pub(crate) child: Child,
    log: Arc<Mutex<String>>,
}

/// Far above what a slow machine needs: that a drain has its time is another test's.
pub(crate) const DRAIN: &str = "drain_deadline = '1m'";

/// The scene whose tasks fail as often as their payload says.
pub(crate) const FLAKY: &str = r#"
[scenes.flaky]
target = { http = { url = "http://TARGET/flaky", timeout = "1m" } }
backoff = { fixed = { delay = "700ms" } }
max_attempts = 4
concurrency = 256
"#;

/// A scene with a target of the test's own, whose tasks have one attempt.
pub(crate) const ONE_ATTEMPT: &str = r#"
[scenes.shop]
target = { http = { url = "http://SHOP/paid", timeout = "1m" } }
backoff = { fixed = { delay = "1s" } }
max_attempts = 1
brake = false
"#;

/// The offset that the next record of a partition gets. A broker leads a topic that was made anew, or grew, a moment after it has said that
/// it is there: it is asked again.
pub(crate) fn end_of(consumer: &BaseConsumer, topic: &str, partition: i32) -> i64 {
    let until = Instant::now() + PATIENCE;
    loop {
        match consumer.fetch_watermarks(topic, partition, PATIENCE) {
            Ok((_, end)) => return end,
            Err(error) => assert!(Instant::now() < until, "{topic}/{partition}: {error}"),
        }
    }
}

/// How large a test is that can be larger than in every run: what the variable `RETIDE_TEST_name` says, else `small`.
pub(crate) fn size(name: &str, small: usize) -> usize {
    let said = env::var(format!("RETIDE_TEST_{name}"));
    said.map_or(small, |said| said.parse().expect("a number"))
}

/// Serves a target of a test's own, until the runtime ends.
pub(crate) fn serve(runtime: &Runtime, router: Router) -> SocketAddr {
    let bound = tokio::net::TcpListener::bind("127.0.0.1:0");
    let listener = runtime.block_on(bound).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move { axum::serve(listener, router).await });
    address
}

// === impl Rig ===

impl Drop for Rig {
    fn drop(&mut self) {
        if thread::panicking() || self.bootstrap != bootstrap() {
            return;
        }
        if let Err(error) = self.delete_topics() {
            eprintln!("the topics of {} stay: {error}", self.prefix);
        }
    }
}

impl Rig {
    /// Topics, a target that takes `takes` for each answer, and a configuration with these scenes.
    pub(crate) fn new(takes: Duration, scenes: &str) -> Self {
        Self::with_topics(Places::one(), takes, scenes)
    }

    /// As [`Self::new`], for a test that judges how long something takes: few run beside it.
    pub(crate) fn calm(takes: Duration, scenes: &str) -> Self {
        Self::with_topics(Places::half(), takes, scenes)
    }

    /// As [`Self::new`], on this broker and without topics.
    pub(crate) fn bare(bootstrap: String, scenes: &str) -> Self {
        Self::on(bootstrap, Duration::ZERO, scenes, Places::one())
    }

    /// As [`Self::bare`], with a target that takes `takes` for each answer, and without scenes.
    pub(crate) fn taking(bootstrap: String, takes: Duration) -> Self {
        Self::on(bootstrap, takes, "", Places::one())
    }

    fn with_topics(places: Places, takes: Duration, scenes: &str) -> Self {
        let rig = Self::on(bootstrap(), takes, scenes, places);
        let init = rig.retide(&["init"]);
        assert!(init.status.success(), "{init:?}");
        rig
    }

    fn on(bootstrap: String, takes: Duration, scenes: &str, places: Places) -> Self {
        let runtime = Runtime::new().unwrap();
        let target = runtime.block_on(Target::start(takes));
        let prefix = format!("t{}", Uuid::new_v4().simple());
        let directory = TempDir::new().unwrap();
        let rig = Self {
            bootstrap,
            prefix,
            target,
            directory,
            runtime,
            _places: places,
        };
        rig.configure(&format!("{}{scenes}", rig.basics()));
        rig
    }

    /// The sections of a configuration without scenes.
    pub(crate) fn basics(&self) -> String {
        let Self {
            bootstrap, prefix, ..
        } = self;
        format!(
            "[kafka]\nbootstrap.servers = '{bootstrap}'\n\
             [kafka.consumer]\nsession.timeout.ms = 6000\nheartbeat.interval.ms = 500\n\
             [topics]\nprefix = '{prefix}'\npartitions = 4\ntiers = {TIERS:?}\n\
             callbacks = {{ format = 'json' }}\nalerts = {{ format = 'json' }}\n\
             [processor]\ngroup = '{prefix}'\n{DRAIN}\n"
        )
    }

    /// Replaces the configuration; `TARGET` stands for the target's address.
    pub(crate) fn configure(&self, text: &str) {
        let text = text.replace("TARGET", &self.target.address.to_string());
        fs::write(self.file("retide.toml"), text).unwrap();
    }

    /// A file of this test's.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A topic of this test's.
    pub(crate) fn topic(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    /// Deletes the topics of this test's: a broker works for each topic that it has, and is shared.
    fn delete_topics(&self) -> Result<(), KafkaError> {
        let admin: AdminClient<DefaultClientContext> = config(&self.bootstrap, "admin").create()?;
        let metadata = admin.inner().fetch_metadata(None, PATIENCE)?;
        let topics = metadata.topics().iter().map(MetadataTopic::name);
        let topics: Vec<&str> = topics
            .filter(|topic| topic.starts_with(&self.prefix))
            .collect();
        if !topics.is_empty() {
            let deleted = admin.delete_topics(&topics, &AdminOptions::new());
            self.runtime.block_on(deleted)?;
        }
        Ok(())
    }

    /// Leaves a topic with these settings, as they differ from the broker's, and waits until the broker goes by them: it says yes before.
    pub(crate) fn set(&self, topic: &str, settings: &[(&str, &str)]) {
        let topic = self.topic(topic);
        let admin: AdminClient<DefaultClientContext> =
            config(&self.bootstrap, "admin").create().unwrap();
        let change = AlterConfig::new(ResourceSpecifier::Topic(&topic));
        let change = settings
            .iter()
            .fold(change, |change, (key, value)| change.set(key, value));
        let options = AdminOptions::new();
        let done = Runtime::new()
            .unwrap()
            .block_on(admin.alter_configs(&[change], &options));
        assert!(done.unwrap().iter().all(Result::is_ok));
        let start = Instant::now();
        loop {
            let told = admin::settings(admin.inner(), &[&topic], PATIENCE).unwrap();
            let told = told.into_iter().find_map(|it| it.settings.ok());
            let told = told.unwrap_or_default();
            let mut settings = settings.iter();
            if settings.all(|(key, value)| told.get(*key).is_some_and(|is| is == value)) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{topic} has {told:?}");
        }
    }

    /// A command, in the directory of this test's. `RETIDE_TEST_BINARY` names another binary than the one that was built with the tests.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let named = env::var_os("RETIDE_TEST_BINARY");
        let mut command =
            Command::new(named.unwrap_or_else(|| env!("CARGO_BIN_EXE_retide").into()));
        command
            .current_dir(self.directory.path())
            .env_remove("RETIDE_LOG")
            .args(arguments);
        command
    }

    /// Runs a command to its end.
    pub(crate) fn retide(&self, arguments: &[&str]) -> Output {
        bounded::output(self.command(arguments).stdin(Stdio::null()))
    }

    /// A command line that is refused before anything is done, with these words.
    pub(crate) fn refuses(&self, arguments: &[&str], words: &str) {
        let output = self.retide(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(words), "{arguments:?}: {said}");
    }

    /// Starts a command whose output is wanted at its end.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        let mut command = self.command(arguments);
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).spawn().unwrap().into()
    }

    /// Starts `retide run` and waits until it has its shards.
    pub(crate) fn run(&self) -> Retide {
        let retide = self.launch(&["run"]);
        retide.wait_for("shards assigned");
        retide
    }

    /// Starts `retide run` with these arguments.
    pub(crate) fn launch(&self, arguments: &[&str]) -> Retide {
        self.launch_with(arguments, &[])
    }

    /// As [`Self::launch`], with these variables in its environment.
    pub(crate) fn launch_with(&self, arguments: &[&str], variables: &[(&str, String)]) -> Retide {
        let mut child = self
            .command(arguments)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let written = Arc::clone(&log);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = written.lock().unwrap();
                writeln!(log, "{line}").unwrap();
            }
        });
        Retide { child, log }
    }

    /// A producer.
    pub(crate) fn producer(&self) -> BaseProducer {
        config(&self.bootstrap, "producer")
            .set("linger.ms", "5")
            .create()
            .unwrap()
    }

    /// Produces tasks of scene `flaky` that fail as often as said, with ids from `task-FIRST`.
    pub(crate) fn produce(&self, first: usize, failures: impl Iterator<Item = u32>) {
        let producer = self.producer();
        for (index, failures) in failures.enumerate() {
            let id = format!("task-{}", first + index);
            let headers = [("retry-scene", "flaky"), ("retry-id", &id)];
            self.send(&producer, &headers, failures.to_string().as_bytes());
        }
        producer.flush(PATIENCE).unwrap();
    }

    /// Hands one task to a producer.
    pub(crate) fn send(&self, producer: &BaseProducer, headers: &[(&str, &str)], value: &[u8]) {
        self.send_to(None, producer, headers, value);
    }

    /// As [`Self::send`], to this partition.
    pub(crate) fn send_to(
        &self,
        partition: impl Into<Option<i32>>,
        producer: &BaseProducer,
        headers: &[(&str, &str)],
        value: &[u8],
    ) {
        let mut all = OwnedHeaders::new();
        for (key, value) in headers {
            let value = Some(value.as_bytes());
            all = all.insert(OutHeader { key, value });
        }
        let topic = self.topic("tasks");
        let mut record = BaseRecord::<(), [u8]>::to(&topic)
            .payload(value)
            .headers(all);
        record.partition = partition.into();
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.poll(Duration::ZERO);
    }

    /// Everything on a topic, as a read-committed consumer sees it.
    pub(crate) fn read(&self, topic: &str) -> Vec<Stored> {
        self.reader(topic).read_all()
    }

    /// Reads a topic from its beginning.
    pub(crate) fn reader(&self, topic: &str) -> Reader {
        // Everybody reads all scenes: they are no shard's.
        let partitions = if topic == "scenes" { 1 } else { 4 };
        let topic = self.topic(topic);
        let consumer: BaseConsumer = config(&self.bootstrap, "reader")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(&topic, partition, Offset::Beginning)
                .unwrap();
        }
        #[allow(
            clippy::disallowed_methods,
            reason = "what judges retide shares no reader with it"
        )]
        consumer.assign(&list).unwrap();
        Reader {
            consumer,
            partitions,
        }
    }

    /// What the group has committed of all topics that it reads, and where they end, by topic and partition, as tools see it.
    pub(crate) fn offsets(&self) -> BTreeMap<(String, i32), (Offset, i64)> {
        let consumer: BaseConsumer = config(&self.bootstrap, &self.prefix).create().unwrap();
        let tiers = TIERS.map(|tier| format!("delay.{tier}"));
        let mut list = TopicPartitionList::new();
        for topic in tiers.iter().map(String::as_str).chain(["tasks"]) {
            for partition in 0..4 {
                list.add_partition(&self.topic(topic), partition);
            }
        }
        let committed = consumer.committed_offsets(list, PATIENCE).unwrap();
        let elements = committed.elements();
        let offsets = elements.iter().map(|element| {
            let (topic, partition) = (element.topic(), element.partition());
            let end = end_of(&consumer, topic, partition);
            ((topic.to_owned(), partition), (element.offset(), end))
        });
        offsets.collect()
    }

    /// Waits until the group has committed everything that there is on all topics.
    pub(crate) fn wait_for_no_lag(&self) {
        let start = Instant::now();
        loop {
            let mut offsets = self.offsets();
            offsets.retain(|_, (committed, end)| *committed != Offset::Offset(*end));
            if offsets.is_empty() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{offsets:?}");
            thread::park_timeout(Duration::from_millis(100));
        }
    }

    /// Waits until `count` tasks have ended, and gives the outcomes by id: one for each callback record.
    pub(crate) fn ends(&self, count: usize) -> BTreeMap<String, Vec<String>> {
        self.ends_within(count, Duration::from_mins(3))
    }

    /// As [`Self::ends`], within this time.
    pub(crate) fn ends_within(
        &self,
        count: usize,
        patience: Duration,
    ) -> BTreeMap<String, Vec<String>> {
        let reader = self.reader("callbacks");
        let start = Instant::now();
        let mut ends: BTreeMap<String, Vec<String>> = BTreeMap::new();
        while ends.len() < count {
            assert!(
                start.elapsed() < patience,
                "{} of {count} tasks have ended",
                ends.len()
            );
            if let Some(record) = reader.next(Duration::from_millis(100)) {
                let (id, outcome) = (record.text("retry-id"), record.text("retry-outcome"));
                ends.entry(id).or_default().push(outcome);
            }
        }
        ends
    }
}

/// Reads a topic from its beginning.
pub(crate) struct Reader {
    consumer: BaseConsumer,
    partitions: i32,
}

// === impl Reader ===

impl Reader {
    /// The next record, if one comes in time.
    pub(crate) fn next(&self, wait: Duration) -> Option<Stored> {
        match self.consumer.poll(wait)? {
            Ok(message) => Some(Stored::of(&message)),
            Err(_) => None,
        }
    }

    /// Everything to the end.
    pub(crate) fn read_all(&self) -> Vec<Stored> {
        let (mut records, mut ended) = (Vec::new(), 0);
        let start = Instant::now();
        while ended < self.partitions {
            assert!(start.elapsed() < PATIENCE, "the end was not reached");
            match self.consumer.poll(Duration::from_millis(100)) {
                Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
                Some(Ok(message)) => records.push(Stored::of(&message)),
                Some(Err(error)) => panic!("{error}"),
                None => {}
            }
        }
        records
    }
}

/// A header's name as text; escaped where it is none.
pub(crate) fn named(name: &[u8]) -> String {
    match str::from_utf8(name) {
        Ok(name) => name.to_owned(),
        Err(_) => name.escape_ascii().to_string(),
    }
}

// === impl Stored ===

impl Stored {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let headers = retide_native::headers::read(message).unwrap();
        let headers = headers
            .iter()
            .map(|(name, value)| (named(name), value.map(<[u8]>::to_vec)));
        Self {
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.collect(),
            at_millis: message.timestamp().to_millis().unwrap_or(0) as u128,
        }
    }

    /// The last header of this name, as text; empty if there is none.
    pub(crate) fn text(&self, name: &str) -> String {
        let header = self.headers.iter().rfind(|(header, _)| header == name);
        let value = header.and_then(|(_, value)| value.clone());
        String::from_utf8(value.unwrap_or_default()).unwrap()
    }
}

// === impl Target ===

impl Target {
    async fn start(takes: Duration) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen {
            requests: Mutex::default(),
            stalls: Mutex::default(),
            takes,
        });
        tokio::spawn(watch(Arc::clone(&seen)));
        let router = Router::new()
            .route("/{path}", post(answer))
            .with_state(Arc::clone(&seen));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, seen }
    }

    /// When it could not see anything, in microseconds: what came meanwhile came at the end.
    pub(crate) fn stalls(&self) -> Vec<Range<u128>> {
        self.seen.stalls.lock().unwrap().clone()
    }

    /// Everything seen so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.seen.requests.lock().unwrap().clone()
    }

    /// How many requests were seen.
    pub(crate) fn count(&self) -> usize {
        self.seen.requests.lock().unwrap().len()
    }

    /// Waits until so many requests were seen.
    pub(crate) fn wait_for(&self, count: usize) {
        let start = Instant::now();
        while self.count() < count {
            assert!(
                start.elapsed() < PATIENCE,
                "{} of {count} requests",
                self.count()
            );
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// How often each attempt of each task was seen.
    pub(crate) fn attempts(&self) -> HashMap<(String, u32), usize> {
        let mut attempts = HashMap::new();
        for request in self.requests() {
            let key = (
                request.text("retry-id"),
                request.number("retry-attempt") as u32,
            );
            *attempts.entry(key).or_default() += 1;
        }
        attempts
    }

    /// How many attempts arrived before their due time.
    pub(crate) fn early(&self) -> usize {
        let requests = self.requests();
        let early = requests.iter().filter(|request| {
            request.at_micros < u128::from(request.number("retry-due-at")) * 1000
        });
        early.count()
    }
}

/// Notes when the target stood still for longer than [`BEAT`], since its machine had other things to do.
async fn watch(seen: Arc<Seen>) {
    loop {
        let slept = Instant::now();
        tokio::time::sleep(BEAT).await;
        let late = slept.elapsed().saturating_sub(2 * BEAT);
        if !late.is_zero() {
            let now = clock::since_epoch();
            let stall = now.as_micros() - late.as_micros()..now.as_micros();
            seen.stalls.lock().unwrap().push(stall);
        }
    }
}

/// Answers by the payload: the number of attempts that fail, or success if it is none. The first attempt at `later` is answered later.
async fn answer(
    State(seen): State<Arc<Seen>>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let at = clock::since_epoch();
    let request = Request {
        path,
        at_micros: at.as_micros(),
        headers,
        body: body.to_vec(),
    };
    let attempt = request.number("retry-attempt");
    let failures: u64 = String::from_utf8_lossy(&body).parse().unwrap_or(0);
    let fails = request.path == "flaky" && attempt <= failures;
    let is_pending = request.path == "later" && attempt == 1;
    seen.requests.lock().unwrap().push(request);
    tokio::time::sleep(seen.takes).await;
    if is_pending {
        (StatusCode::ACCEPTED, [("retry-control", "pending")]).into_response()
    } else if fails {
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    } else {
        StatusCode::OK.into_response()
    }
}

// === impl Request ===

impl Request {
    /// A header as text; empty if there is none.
    pub(crate) fn text(&self, name: &str) -> String {
        let value = self.headers.get(name).map(|value| value.to_str().unwrap());
        value.unwrap_or_default().to_owned()
    }

    /// A header as a number.
    pub(crate) fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or_default()
    }
}

// === impl Retide ===

impl Retide {
    /// Waits until the log holds `text`.
    pub(crate) fn wait_for(&self, text: &str) {
        self.wait_for_times(1, text);
    }

    /// Waits until the log holds `text` so often.
    pub(crate) fn wait_for_times(&self, times: usize, text: &str) {
        let start = Instant::now();
        while self.log().matches(text).count() < times {
            let waited = start.elapsed();
            assert!(waited < PATIENCE, "never logged: {text}\n{}", self.log());
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// The log so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Sends the signal that is called `name`, as `kill` has it.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end and gives the exit code; a test that expected another one shows the log.
    pub(crate) fn wait(mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                if !status.success() {
                    eprintln!("--- log of a retide run, {status}\n{}", self.log());
                }
                return status.code();
            }
            assert!(start.elapsed() < PATIENCE, "still running\n{}", self.log());
            thread::park_timeout(Duration::from_millis(5));
        }
    }
}

impl Drop for Retide {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- log of a retide run\n{}", self.log());
        }
    }
}

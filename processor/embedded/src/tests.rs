//! The broker as its clients see it: through librdkafka, and through a bare socket for what no client would send.

#![allow(
    clippy::disallowed_methods,
    reason = "it is the bare client that the broker is for"
)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::{ApiKey, JoinGroupRequest, RequestHeader};
use kafka_protocol::protocol::{Encodable, StrBytes};
use rdkafka::admin::{
    AdminClient, AdminOptions, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use super::*;

/// Longest wait for anything; only a failure takes as long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest single wait in a client.
const POLL: Duration = Duration::from_millis(100);
/// Partitions of a test's topic.
const PARTITIONS: i32 = 3;

fn config(broker: &Broker) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker.bootstrap());
    config
}

fn admin(broker: &Broker) -> AdminClient<DefaultClientContext> {
    config(broker).create().unwrap()
}

/// Waits for an answer to the admin client, which answers on a thread of its own.
fn wait<T>(answer: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, answer).await.unwrap() })
}

fn create(broker: &Broker, topic: &NewTopic<'_>) {
    let created = wait(admin(broker).create_topics([topic], &AdminOptions::new())).unwrap();
    assert_eq!(created, [Ok(topic.name.to_owned())]);
}

fn topic(name: &str, partitions: i32) -> NewTopic<'_> {
    NewTopic::new(name, partitions, TopicReplication::Fixed(1))
}

fn producer(broker: &Broker, id: &str, timeout: &str) -> BaseProducer {
    let producer: BaseProducer = config(broker)
        .set("transactional.id", id)
        .set("transaction.timeout.ms", timeout)
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer
}

fn send(producer: &BaseProducer, topic: &str, payloads: impl IntoIterator<Item = String>) {
    for payload in payloads {
        producer
            .send(BaseRecord::to(topic).key(&payload).payload(&payload))
            .map_err(|(error, _)| error)
            .unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

fn reader(broker: &Broker, group: &str) -> BaseConsumer {
    config(broker)
        .set("group.id", group)
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("session.timeout.ms", "6000")
        .create()
        .unwrap()
}

/// All payloads up to the ends of `partitions` partitions.
fn read_to_end(reader: &BaseConsumer, partitions: usize) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    let (mut payloads, mut ended) = (Vec::new(), BTreeSet::new());
    while ended.len() < partitions {
        assert!(
            Instant::now() < deadline,
            "{} read, {ended:?} at their end",
            payloads.len()
        );
        match reader.poll(POLL) {
            None => {}
            Some(Ok(message)) => {
                payloads.push(String::from_utf8_lossy(message.payload().unwrap()).into_owned());
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ended.insert(partition);
            }
            Some(Err(error)) => panic!("{error}"),
        }
    }
    payloads
}

fn numbered(prefix: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("{prefix}-{number:03}"))
        .collect()
}

/// A frame, but for its length, that makes its sender a member of the group `workers`.
fn join() -> Bytes {
    // The last version in which a member joins in one go.
    let version = 3;
    let mut frame = BytesMut::new();
    RequestHeader::default()
        .with_request_api_key(ApiKey::JoinGroup as i16)
        .with_request_api_version(version)
        .encode(
            &mut frame,
            ApiKey::JoinGroup.request_header_version(version),
        )
        .unwrap();
    let protocol =
        JoinGroupRequestProtocol::default().with_name(StrBytes::from_static_str("range"));
    JoinGroupRequest::default()
        .with_group_id(StrBytes::from_static_str("workers").into())
        .with_session_timeout_ms(60_000)
        .with_rebalance_timeout_ms(60_000)
        .with_protocol_type(StrBytes::from_static_str("consumer"))
        .with_protocols(vec![protocol])
        .encode(&mut frame, version)
        .unwrap();
    frame.freeze()
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

/// A connection that has sent `bytes`.
fn connect(broker: &Broker, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(broker.bootstrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// Whether the broker closes the connection after `bytes`, without an answer.
fn is_closed_by(broker: &Broker, bytes: &[u8]) -> bool {
    match connect(broker, bytes).read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn a_group_sees_exactly_what_was_committed() {
    let broker = Broker::start().unwrap();
    create(&broker, &topic("source", 1));
    create(&broker, &topic("out", PARTITIONS));
    let source = reader(&broker, "workers");
    source.subscribe(&["source"]).unwrap();
    assert_eq!(read_to_end(&source, 1), [""; 0]);
    let mut done = TopicPartitionList::new();
    done.add_partition_offset("source", 0, Offset::Offset(42))
        .unwrap();
    let mut undone = TopicPartitionList::new();
    undone
        .add_partition_offset("source", 0, Offset::Offset(99))
        .unwrap();
    let group = source.group_metadata().unwrap();
    let ledger = producer(&broker, "ledger", "60000");

    ledger.begin_transaction().unwrap();
    send(&ledger, "out", numbered("aborted-before", 10));
    ledger.abort_transaction(PATIENCE).unwrap();
    ledger.begin_transaction().unwrap();
    send(&ledger, "out", numbered("committed", 100));
    ledger
        .send_offsets_to_transaction(&done, &group, PATIENCE)
        .unwrap();
    ledger.commit_transaction(PATIENCE).unwrap();
    ledger.begin_transaction().unwrap();
    send(&ledger, "out", numbered("aborted-after", 10));
    ledger
        .send_offsets_to_transaction(&undone, &group, PATIENCE)
        .unwrap();
    ledger.abort_transaction(PATIENCE).unwrap();
    let out = reader(&broker, "readers");
    out.subscribe(&["out"]).unwrap();
    let mut seen = read_to_end(&out, PARTITIONS as usize);

    seen.sort();
    assert_eq!(seen, numbered("committed", 100));
    let committed = source.committed(PATIENCE).unwrap();
    assert_eq!(committed.elements()[0].offset(), Offset::Offset(42));
}

#[test]
fn what_is_committed_after_an_abort_is_seen_by_one_who_starts_in_between() {
    let broker = Broker::start().unwrap();
    create(&broker, &topic("out", 1));
    let ledger = producer(&broker, "ledger", "60000");
    ledger.begin_transaction().unwrap();
    send(&ledger, "out", numbered("aborted", 3));
    ledger.abort_transaction(PATIENCE).unwrap();
    for payload in ["first", "second"] {
        ledger.begin_transaction().unwrap();
        send(&ledger, "out", [payload.to_owned()]);
        ledger.commit_transaction(PATIENCE).unwrap();
    }

    let reading_from = |offset| {
        let reader = reader(&broker, "readers");
        let mut start = TopicPartitionList::new();
        start
            .add_partition_offset("out", 0, Offset::Offset(offset))
            .unwrap();
        reader.assign(&start).unwrap();
        read_to_end(&reader, 1)
    };

    // Three records and a marker, twice one record and a marker.
    assert_eq!(reading_from(1), ["first", "second"]);
    assert_eq!(reading_from(3), ["first", "second"]);
    assert_eq!(reading_from(4), ["first", "second"]);
    assert_eq!(reading_from(6), ["second"]);
}

#[test]
fn topics_keep_their_configuration_and_can_grow() {
    let broker = Broker::start().unwrap();
    let compacted = topic("rules", 1).set("cleanup.policy", "compact");
    create(&broker, &compacted.set("retention.ms", "86400000"));
    let admin = admin(&broker);
    let options = AdminOptions::new();

    let asked = [ResourceSpecifier::Topic("rules")];
    let described = wait(admin.describe_configs(&asked, &options)).unwrap();
    let grown = wait(admin.create_partitions(&[NewPartitions::new("rules", 4)], &options)).unwrap();

    let config = described[0].as_ref().unwrap().entry_map();
    assert_eq!(config["cleanup.policy"].value.as_deref(), Some("compact"));
    assert_eq!(config["retention.ms"].value.as_deref(), Some("86400000"));
    assert_eq!(grown, [Ok("rules".to_owned())]);
    let metadata = admin
        .inner()
        .fetch_metadata(Some("rules"), PATIENCE)
        .unwrap();
    assert_eq!(metadata.topics()[0].partitions().len(), 4);
}

#[test]
fn a_producer_that_wants_no_answer_gets_none_and_is_read() {
    let broker = Broker::start().unwrap();
    create(&broker, &topic("out", 1));
    let careless: BaseProducer = config(&broker).set("acks", "0").create().unwrap();

    send(&careless, "out", numbered("sent", 10));
    send(&careless, "out", numbered("sent-again", 10));
    let reader = reader(&broker, "readers");
    reader.subscribe(&["out"]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    // Sent is not arrived.
    while seen.len() < 20 && Instant::now() < deadline {
        seen.extend(read_to_end(&reader, 1));
    }

    assert_eq!(
        seen,
        [numbered("sent", 10), numbered("sent-again", 10)].concat()
    );
}

#[test]
fn a_batch_larger_than_what_is_asked_for_is_read_all_the_same() {
    let broker = Broker::start().unwrap();
    create(&broker, &topic("out", 1));
    let ledger = producer(&broker, "ledger", "60000");
    let large = vec!["x".repeat(100_000), "y".repeat(100_000), "z".to_owned()];
    ledger.begin_transaction().unwrap();
    for payload in &large {
        send(&ledger, "out", [payload.clone()]);
    }
    ledger.commit_transaction(PATIENCE).unwrap();

    let reader: BaseConsumer = config(&broker)
        .set("group.id", "readers")
        .set("auto.offset.reset", "earliest")
        .set("enable.partition.eof", "true")
        .set("fetch.message.max.bytes", "1000")
        .create()
        .unwrap();
    reader.subscribe(&["out"]).unwrap();

    assert_eq!(read_to_end(&reader, 1), large);
}

#[test]
fn a_client_from_the_future_is_told_what_is_spoken_here() {
    let broker = Broker::start().unwrap();
    // ApiVersions in version 99, with a correlation id of 7 and no name.
    let asked = framed(&[0, 18, 0, 99, 0, 0, 0, 7, 0xff, 0xff]);

    let mut stream = connect(&broker, &asked);
    let answer = wire::read_frame(&mut stream).unwrap().unwrap();

    assert_eq!(answer[..6], [0, 0, 0, 7, 0, 35]);
    assert!(answer.len() > 6, "a list of what is spoken");
}

#[test]
fn a_transaction_left_open_is_aborted_and_its_producer_fenced() {
    let broker = Broker::start().unwrap();
    create(&broker, &topic("out", 1));
    let dead = producer(&broker, "dead", "1000");
    dead.begin_transaction().unwrap();
    send(&dead, "out", numbered("lost", 3));
    let alive = producer(&broker, "alive", "60000");
    alive.begin_transaction().unwrap();
    send(&alive, "out", ["kept".to_owned()]);
    alive.commit_transaction(PATIENCE).unwrap();

    let reader = reader(&broker, "readers");
    reader.subscribe(&["out"]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    // The end of what is committed comes first where the open transaction starts.
    while seen.is_empty() && Instant::now() < deadline {
        seen = read_to_end(&reader, 1);
    }

    assert_eq!(seen, ["kept"]);
    assert!(dead.commit_transaction(PATIENCE).is_err());
}

#[test]
fn a_dead_member_gives_way_to_a_new_one() {
    let front = Front::new(([127, 0, 0, 1], 0).into());
    let request = wire::Request::parse(join(), front.versions()).unwrap();

    front.answer(&request).unwrap();
    let start = Instant::now();
    front.reap(start + Duration::from_secs(59));
    let early = front.members("workers");
    front.reap(start + Duration::from_secs(61));
    let late = front.members("workers");

    assert_eq!(early, 1);
    assert_eq!(late, 0);
}

#[test]
fn what_is_no_request_closes_its_connection_and_no_other() {
    let broker = Broker::start().unwrap();
    create(&broker, &topic("before", 1));

    assert!(is_closed_by(
        &broker,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    ));
    assert!(is_closed_by(&broker, &u32::MAX.to_be_bytes()));
    assert!(is_closed_by(
        &broker,
        &(wire::FRAME_LIMIT as u32 + 1).to_be_bytes()
    ));
    assert!(is_closed_by(&broker, &framed(&[])));
    assert!(is_closed_by(&broker, &framed(&[0xff; 64])));
    // A header that says Metadata, a client id that is longer than the frame.
    assert!(is_closed_by(
        &broker,
        &framed(&[0, 3, 0, 1, 0, 0, 0, 7, 0x7f, 0xff])
    ));
    // A whole header, half a body.
    assert!(is_closed_by(
        &broker,
        &framed(&[0, 3, 0, 1, 0, 0, 0, 7, 0xff, 0xff, 0, 0])
    ));

    create(&broker, &topic("after", 1));
}

#[test]
fn one_connection_too_many_is_refused() {
    let broker = Broker::start().unwrap();
    let held: Vec<TcpStream> = (0..CONNECTION_LIMIT)
        .map(|_| TcpStream::connect(broker.bootstrap()).unwrap())
        .collect();

    assert!(is_closed_by(&broker, &[]));

    drop(held);
    create(&broker, &topic("after", 1));
}

#[test]
fn stopping_ends_what_waits() {
    let broker = Broker::start().unwrap();
    create(&broker, &topic("out", 1));
    let reader = reader(&broker, "readers");
    reader.subscribe(&["out"]).unwrap();
    assert_eq!(read_to_end(&reader, 1), [""; 0]);
    let mut idle = connect(&broker, &[]);
    // The second member waits for the first to join again, which it never does.
    let mut first = connect(&broker, &framed(&join()));
    assert!(wire::read_frame(&mut first).unwrap().is_some());
    let mut second = connect(&broker, &framed(&join()));
    let deadline = Instant::now() + PATIENCE;
    while broker.front.members("workers") < 2 {
        assert!(Instant::now() < deadline, "the second member does not join");
        std::thread::yield_now();
    }
    let address = broker.bootstrap().to_owned();
    let front = Arc::clone(&broker.front);

    let start = Instant::now();
    broker.stop();

    assert!(start.elapsed() < STOP_PATIENCE, "{:?}", start.elapsed());
    assert_eq!(idle.read(&mut [0]).unwrap_or(0), 0);
    assert_eq!(second.read(&mut [0]).unwrap_or(0), 0);
    assert!(TcpStream::connect(address).is_err());
    // No thread holds it any more.
    assert_eq!(Arc::strong_count(&front), 1);
}

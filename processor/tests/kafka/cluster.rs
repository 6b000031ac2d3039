//! The topics as planned are created and found good; each thing that is not as planned is found, and nothing else.

use std::error::Error as _;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use tokio::runtime::{Builder, Runtime};

use retide_core::Ladder;
use retide_kafka::cluster::{self, Created, Error, Finding, Layout, Plan, Severity};
use retide_kafka::topics::{Role, Topics};

use crate::support::{PATIENCE, bootstrap, free_address};

/// A plan with a prefix of its own, and where to carry it out.
struct Bench {
    bootstrap: String,
    config: ClientConfig,
    prefix: String,
    plan: Plan,
    runtime: Runtime,
}

impl Bench {
    fn new() -> Self {
        let bootstrap = bootstrap();
        let prefix = format!("cluster-{}", uuid::Uuid::new_v4().simple());
        let ladder = Ladder::try_new(&["now", "24h"]).unwrap();
        let layout = Layout {
            partitions: 2,
            replication_factor: -1,
        };
        Self {
            config: config(&bootstrap),
            bootstrap,
            plan: Plan::new(&Topics::new(&prefix, &ladder), &ladder, layout),
            prefix,
            runtime: runtime(),
        }
    }

    fn create(&self, plan: &Plan) -> Vec<Created> {
        let create = cluster::create(&self.config, plan, PATIENCE);
        self.runtime.block_on(create).unwrap()
    }

    fn check(&self) -> Vec<Finding> {
        let check = cluster::check(&self.config, &self.plan, Some(&self.prefix));
        self.runtime.block_on(check).unwrap()
    }

    /// The finding on a cluster where one topic has one setting otherwise.
    fn set(&self, topic: &str, key: &'static str, value: &str) -> Vec<Finding> {
        let name = format!("{}.{topic}", self.prefix);
        let mut plan = self.plan.clone();
        let topic = plan.topics.iter_mut().find(|topic| *topic.name == *name);
        topic.unwrap().config.insert(key, value.to_owned());
        self.create(&plan);
        self.check()
    }

    /// A finding whose fix sets one setting of one topic.
    fn finding(
        &self,
        severity: Severity,
        topic: &str,
        problem: &str,
        (key, value): (&str, &str),
    ) -> Finding {
        let subject = format!("{}.{topic}", self.prefix);
        Finding {
            severity,
            problem: problem.to_owned(),
            fix: format!(
                "kafka-configs.sh --bootstrap-server {} --alter --entity-type topics --entity-name {subject} --add-config {key}={value}",
                self.bootstrap
            ),
            subject,
        }
    }
}

fn config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn what_is_created_as_planned_has_nothing_wrong_and_is_not_created_again() {
    let bench = Bench::new();
    let names = || {
        bench
            .plan
            .topics
            .iter()
            .map(|topic| Arc::clone(&topic.name))
    };

    let first = bench.create(&bench.plan);
    let findings = bench.check();
    let second = bench.create(&bench.plan);

    let new: Vec<Created> = names().map(|topic| Created::New { topic }).collect();
    let there: Vec<Created> = bench
        .plan
        .topics
        .iter()
        .map(|topic| Created::Exists {
            topic: Arc::clone(&topic.name),
            partitions: Some(topic.partitions as usize),
        })
        .collect();
    assert_eq!(first, new);
    assert_eq!(findings, []);
    assert_eq!(second, there);
}

#[test]
fn a_topic_that_cannot_be_created_is_refused_and_the_others_are_created() {
    let bench = Bench::new();
    let mut plan = bench.plan.clone();
    plan.topics[1].config.insert("retention.ms", "soon".into());

    let created = bench.create(&plan);

    assert!(matches!(created[0], Created::New { .. }), "{created:?}");
    assert!(matches!(created[1], Created::Refused { .. }), "{created:?}");
    assert!(matches!(created[2], Created::New { .. }), "{created:?}");
}

#[test]
fn a_topic_that_is_missing_is_refused() {
    let bench = Bench::new();
    let mut plan = bench.plan.clone();
    plan.topics.retain(|topic| topic.role != Role::DeadLetters);

    bench.create(&plan);

    let missing = Finding {
        severity: Severity::Refuse,
        subject: format!("{}.dead-letters", bench.prefix),
        problem: "does not exist".to_owned(),
        fix: "retide init".to_owned(),
    };
    assert_eq!(bench.check(), [missing]);
}

#[test]
fn a_topic_with_fewer_partitions_is_refused() {
    let bench = Bench::new();
    let mut plan = bench.plan.clone();
    plan.topics[2].partitions = 1;

    bench.create(&plan);

    let (prefix, bootstrap) = (&bench.prefix, &bench.bootstrap);
    let narrow = Finding {
        severity: Severity::Limit,
        subject: format!("{prefix}.delay.now"),
        problem: format!("has 1 partitions, {prefix}.tasks has 2: all must have the same number"),
        fix: format!(
            "kafka-topics.sh --bootstrap-server {bootstrap} --alter --topic {prefix}.delay.now --partitions 2"
        ),
    };
    assert_eq!(bench.check(), [narrow]);
}

#[test]
fn a_tier_that_forgets_before_an_outage_ends_is_refused() {
    let bench = Bench::new();

    let findings = bench.set("delay.24h", "retention.ms", "172799000");

    let expected = bench.finding(
        Severity::Refuse,
        "delay.24h",
        "retention.ms is 1d 23h 59m 59s, which is less than 2d: tasks are deleted before they are read",
        ("retention.ms", "691200000"),
    );
    assert_eq!(findings, [expected]);
}

#[test]
fn a_tier_that_forgets_nothing_is_fine() {
    let bench = Bench::new();

    assert_eq!(bench.set("delay.24h", "retention.ms", "-1"), []);
}

#[test]
fn a_retry_topic_that_forgets_within_a_night_is_worth_a_warning() {
    let bench = Bench::new();

    let findings = bench.set("tasks", "retention.ms", "3600000");

    let expected = bench.finding(
        Severity::Warn,
        "tasks",
        "retention.ms is 1h, which is less than 1d: tasks are deleted before they are read",
        ("retention.ms", "604800000"),
    );
    assert_eq!(findings, [expected]);
}

#[test]
fn a_tier_with_the_producers_timestamps_is_refused() {
    let bench = Bench::new();

    let findings = bench.set("delay.now", "message.timestamp.type", "CreateTime");

    let expected = bench.finding(
        Severity::Refuse,
        "delay.now",
        "message.timestamp.type is CreateTime: the wait of a tier counts from the broker's append time",
        ("message.timestamp.type", "LogAppendTime"),
    );
    assert_eq!(findings, [expected]);
}

#[test]
fn scenes_that_age_are_refused() {
    for policy in ["delete", "compact,delete"] {
        let bench = Bench::new();

        let findings = bench.set("scenes", "cleanup.policy", policy);

        let expected = bench.finding(
            Severity::Refuse,
            "scenes",
            &format!("cleanup.policy is {policy}: scene rules get lost as they age"),
            ("cleanup.policy", "compact"),
        );
        assert_eq!(findings, [expected]);
    }
}

#[test]
fn compaction_of_anything_but_scenes_is_refused() {
    for topic in ["tasks", "delay.24h", "dead-letters"] {
        let bench = Bench::new();

        let findings = bench.set(topic, "cleanup.policy", "compact");

        let expected = bench.finding(
            Severity::Refuse,
            topic,
            "cleanup.policy is compact: of records with the same key all but the last one get lost",
            ("cleanup.policy", "delete"),
        );
        assert_eq!(findings, [expected]);
    }
}

#[test]
fn retention_by_size_is_worth_a_warning_where_tasks_wait() {
    for topic in ["tasks", "delay.24h"] {
        let bench = Bench::new();

        let findings = bench.set(topic, "retention.bytes", "1000000000");

        let expected = bench.finding(
            Severity::Warn,
            topic,
            "retention.bytes is 1000000000: tasks that wait are deleted once a partition has more than that",
            ("retention.bytes", "-1"),
        );
        assert_eq!(findings, [expected]);
    }
}

#[test]
fn a_topic_that_does_not_take_what_the_retry_topic_took_is_told() {
    for topic in ["delay.now", "dead-letters", "callbacks"] {
        let bench = Bench::new();

        let findings = bench.set(topic, "max.message.bytes", "1048588");

        let expected = bench.finding(
            Severity::Warn,
            topic,
            "max.message.bytes is 1048588, and the retry topic's is 1048588: a task with the headers that retide adds may need \
             1463653, and one that does not fit ends as a dead letter without its value",
            ("max.message.bytes", "2097152"),
        );
        assert_eq!(findings, [expected]);
    }
}

#[test]
fn where_nobody_listens_the_address_and_the_cause_are_named() {
    let address = free_address();

    let (message, cause) = unreachable(&address);

    assert_eq!(message, format!("no kafka broker answers at {address}"));
    assert_eq!(
        cause,
        format!("{address}/bootstrap: Connect to ipv4#{address} failed: Connection refused")
    );
}

#[test]
fn something_that_never_answers_is_given_up() {
    // The system takes the connections; nobody ever reads from them.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();

    let (message, cause) = unreachable(&address);

    assert_eq!(message, format!("no kafka broker answers at {address}"));
    assert_eq!(cause, "no answer in time");
}

#[test]
fn something_that_is_not_kafka_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 64]);
            let answer = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
            let _ = stream.write_all(answer);
        }
    });

    let (message, cause) = unreachable(&address);

    assert_eq!(message, format!("no kafka broker answers at {address}"));
    assert!(cause.contains("Invalid response size"), "{cause}");
}

#[test]
fn a_network_that_swallows_everything_is_given_up() {
    // Reserved for documentation: nobody has it.
    let (message, _) = unreachable("192.0.2.1:9092");

    assert_eq!(message, "no kafka broker answers at 192.0.2.1:9092");
}

#[test]
fn encryption_on_a_port_without_it_is_given_up() {
    let bootstrap = bootstrap();
    let mut config = config(&bootstrap);
    config.set("security.protocol", "ssl");

    let (message, cause) = give_up(&config);

    assert_eq!(message, format!("no kafka broker answers at {bootstrap}"));
    assert!(cause.contains("does not speak TLS at this port"), "{cause}");
    // The handshake fails, or the broker hangs up first.
    let ways = ["SSL handshake failed", "SSL connection closed by peer"];
    assert!(ways.iter().any(|way| cause.contains(way)), "{cause}");
}

#[test]
fn a_configuration_without_an_address_or_with_nonsense_is_refused_at_once() {
    let (bench, ladder) = (runtime(), Ladder::default());
    let layout = Layout {
        partitions: 1,
        replication_factor: -1,
    };
    let plan = Plan::new(&Topics::new("x", &ladder), &ladder, layout);
    let mut nonsense = config("127.0.0.1:1");
    nonsense.set("no.such.property", "1");

    let missing = bench.block_on(cluster::check(&ClientConfig::new(), &plan, None));
    let unknown = bench.block_on(cluster::check(&nonsense, &plan, None));

    assert!(matches!(missing, Err(Error::NoAddress)), "{missing:?}");
    assert!(matches!(unknown, Err(Error::Client(_))), "{unknown:?}");
}

/// What is said of an address where no broker is, well within the time that was promised.
fn unreachable(address: &str) -> (String, String) {
    give_up(&config(address))
}

/// What is said of a cluster that does not answer.
fn give_up(config: &ClientConfig) -> (String, String) {
    let ladder = Ladder::default();
    let layout = Layout {
        partitions: 1,
        replication_factor: -1,
    };
    let plan = Plan::new(&Topics::new("x", &ladder), &ladder, layout);
    let start = Instant::now();

    let result = runtime().block_on(cluster::check(config, &plan, Some("x")));

    assert!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}",
        start.elapsed()
    );
    match result {
        Err(error @ Error::Unreachable { .. }) => {
            let cause = error.source().map(ToString::to_string);
            (error.to_string(), cause.unwrap())
        }
        other => panic!("{other:?}"),
    }
}

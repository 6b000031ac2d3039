//! Permissions, logins, certificates and policies: each user works with just what is printed for it, and each refusal says what mends it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};
use serde_json::Value;

use crate::bounded::Running;
use crate::commands::get;
use crate::rig::{FLAKY, Rig, Stored, TIERS};
use crate::secured::{Secured, USERS, secured};
use crate::support::{PATIENCE, free_address};

/// What a command printed.
fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a command said.
fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A rig on the secured broker, with a configuration for each user.
fn rig(broker: &Secured) -> Rig {
    let rig = Rig::bare(broker.plain.clone(), "");
    let basics = rig.basics();
    let (_, rest) = basics.split_once("\n[kafka.consumer]").unwrap();
    for user in USERS {
        let text = format!("{}[kafka.consumer]{rest}", broker.login(user));
        fs::write(rig.file(&format!("{user}.toml")), text).unwrap();
    }
    rig
}

/// Runs a command as a user.
fn run_as(rig: &Rig, user: &str, arguments: &[&str]) -> Output {
    let config = format!("{user}.toml");
    rig.retide(&[arguments, &["--config", &config]].concat())
}

/// The lines that let a user do what a role does, by the user's configuration.
fn printed(rig: &Rig, user: &str, role: &str) -> String {
    let principal = format!("User:{user}");
    let config = format!("{user}.toml");
    let output = rig.retide(&[
        "init",
        "--acls",
        "--principal",
        &principal,
        "--role",
        role,
        "--scenes",
        "scenes.toml",
        "--config",
        &config,
    ]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    stdout(&output)
}

/// Repeats a command until it succeeds: the broker takes in what was allowed a moment later.
fn until_ok(mut command: impl FnMut() -> Output) -> Output {
    let start = Instant::now();
    loop {
        let output = command();
        if output.status.success() {
            return output;
        }
        assert!(start.elapsed() < PATIENCE, "{output:?}");
    }
}

/// A task dies; who may see that may not delete it, until that is allowed, too.
fn dead_letters_are_seen_and_deleted_by_who_may(rig: &Rig, broker: &Secured) {
    let producer = rig.producer();
    let headers = [("retry-scene", "gone"), ("retry-id", "three")];
    rig.send(&producer, &headers, b"1");
    producer.flush(PATIENCE).unwrap();
    rig.ends(3);
    broker.grant(&printed(rig, "letters", "dead-letters"));
    let shown = until_ok(|| run_as(rig, "letters", &["dead-letters", "show", "--id", "three"]));
    assert!(stdout(&shown).contains("unknown-scene"), "{shown:?}");
    assert!(stdout(&shown).contains("now: dead"), "{shown:?}");
    for words in ["WARN", "note:"] {
        assert!(!stderr(&shown).contains(words), "{shown:?}");
    }
    let purge = ["dead-letters", "purge", "--before", "0s", "--yes"];
    let denied = run_as(rig, "letters", &purge);
    assert_eq!(denied.status.code(), Some(4), "{denied:?}");
    assert!(stderr(&denied).contains("--operation Delete"), "{denied:?}");
    broker.grant(&printed(rig, "letters", "purge"));
    let purged = until_ok(|| run_as(rig, "letters", &purge));
    assert!(
        stderr(&purged).contains("1 dead letters were deleted"),
        "{purged:?}"
    );
}

/// The lines of an answer in NDJSON with this mark.
fn marked(output: &Output, mark: &str) -> Vec<Value> {
    let lines = stdout(output);
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    lines.filter(|line: &Value| line["mark"] == mark).collect()
}

/// The scenes that are applied: both kinds of targets, with callbacks.
fn scenes(rig: &Rig) -> String {
    let flaky = FLAKY.replace("TARGET", &rig.target.address.to_string());
    format!(
        "{flaky}callback = {{ target = {{ http = {{ url = 'http://{}/ended' }} }} }}\n\
         [scenes.copy]\ntarget = {{ kafka = {{ topic = '{}' }} }}\n",
        rig.target.address,
        rig.topic("alerts-copy"),
    )
}

#[test]
#[allow(
    clippy::too_many_lines,
    reason = "one user after the other, on one broker"
)]
fn each_user_works_with_just_what_is_printed_for_it() {
    let Some(broker) = secured() else { return };
    let rig = rig(broker);
    fs::write(rig.file("scenes.toml"), scenes(&rig)).unwrap();

    // Nobody may do anything yet, and is told what is lacking.
    let denied = run_as(&rig, "init", &["init"]);
    assert_eq!(denied.status.code(), Some(1), "{denied:?}");
    assert!(
        stderr(&denied).contains("kafka-acls.sh --bootstrap-server"),
        "{denied:?}"
    );
    assert!(stderr(&denied).contains("--operation Create"), "{denied:?}");
    broker.grant(&printed(&rig, "init", "init"));
    until_ok(|| run_as(&rig, "init", &["init"]));
    let looked = run_as(&rig, "run", &["doctor", "--output", "ndjson"]);
    assert_eq!(looked.status.code(), Some(4), "{looked:?}");
    for line in marked(&looked, "fail") {
        let fix = line["fix"].as_str().unwrap();
        assert!(fix.starts_with("kafka-acls.sh"), "{line}");
    }
    for (user, command) in [
        ("run", &["run"][..]),
        ("submit", &["submit", "--scene", "flaky"]),
        ("explain", &["explain", "one"]),
        ("rules", &["scenes", "apply", "scenes.toml"]),
        ("control", &["tasks", "cancel", "--id", "none", "--yes"]),
        ("letters", &["dead-letters", "cohorts"]),
    ] {
        let denied = run_as(&rig, user, command);
        assert_eq!(denied.status.code(), Some(4), "{denied:?}");
        let said = stderr(&denied);
        assert!(
            said.contains(&rig.prefix) && said.contains("kafka-acls.sh"),
            "{said}"
        );
    }

    broker.grant(&printed(&rig, "rules", "scenes-apply"));
    until_ok(|| run_as(&rig, "rules", &["scenes", "apply", "scenes.toml"]));
    rig.retide(&["init"]);
    crate::support::create_topics(&broker.plain, &[&rig.topic("alerts-copy")]);
    let run = printed(&rig, "run", "run");
    broker.grant(&run);
    let looked = until_ok(|| run_as(&rig, "run", &["doctor", "--output", "ndjson"]));
    assert_eq!(marked(&looked, "fail"), [] as [Value; 0]);
    assert!(!stderr(&looked).contains("Authorization"), "{looked:?}");
    let probed = run_as(
        &rig,
        "run",
        &["doctor", "--write-probe", "--output", "ndjson"],
    );
    assert_eq!(probed.status.code(), Some(0), "{probed:?}");
    let worker = rig.launch(&["run", "--config", "run.toml"]);
    worker.wait_for("shards assigned");
    broker.grant(&printed(&rig, "submit", "submit"));
    fs::write(rig.file("payload"), "1").unwrap();
    until_ok(|| {
        let task = ["submit", "--scene", "flaky", "--id", "one", "payload"];
        run_as(&rig, "submit", &task)
    });
    let task = ["submit", "--scene", "copy", "--id", "two", "payload"];
    let submitted = run_as(&rig, "submit", &task);
    assert_eq!(submitted.status.code(), Some(0), "{submitted:?}");
    let ends = rig.ends(2);
    assert!(
        ends.values().flatten().all(|end| end == "delivered"),
        "{ends:?}"
    );
    // Two attempts, and what is said of the end.
    rig.target.wait_for(3);
    broker.grant(&printed(&rig, "control", "tasks"));
    let cancelled = loop {
        let cancelled = run_as(
            &rig,
            "control",
            &["tasks", "cancel", "--id", "none", "--yes"],
        );
        if cancelled.status.code() != Some(4) {
            break cancelled;
        }
    };
    assert_eq!(cancelled.status.code(), Some(3), "{cancelled:?}");
    let listed = run_as(&rig, "control", &["tasks", "ls", "--scene", "flaky"]);
    assert_eq!(listed.status.code(), Some(3), "{listed:?}");
    broker.grant(&printed(&rig, "explain", "explain"));
    let told = until_ok(|| run_as(&rig, "explain", &["explain", "one"]));
    assert!(
        stdout(&told).contains("delivered after 2 attempts"),
        "{told:?}"
    );
    assert!(!stderr(&told).contains("WARN"), "{told:?}");
    dead_letters_are_seen_and_deleted_by_who_may(&rig, broker);
    worker.terminate();
    let log = worker.log();
    assert_eq!(worker.wait(), Some(0));
    assert!(!log.contains("Authorization"), "{log}");

    // What one of them lacks is one line, and its command mends it.
    let callbacks = rig.topic("callbacks");
    let less = run.replace("User:run", "User:less");
    let less = less.replace(&format!(" --topic {callbacks}"), "");
    broker.grant(&less);
    let start = Instant::now();
    let failed = loop {
        let looked = run_as(&rig, "less", &["doctor", "--output", "ndjson"]);
        let failed = marked(&looked, "fail");
        if failed.len() == 1 {
            break failed;
        }
        assert!(start.elapsed() < PATIENCE, "{failed:?}");
    };
    assert_eq!(failed[0]["subject"], *callbacks, "{failed:?}");
    broker.grant(failed[0]["fix"].as_str().unwrap());
    until_ok(|| run_as(&rig, "less", &["doctor"]));
}

/// Operations on resources: the kind of the resource, its name, and the operation, as in `topic`, `retry.tasks`, `read`.
type Operations = BTreeSet<[String; 3]>;

/// Operations without those that others on the same resource imply.
fn least(all: &Operations) -> Operations {
    let implied = |[kind, name, operation]: &[String; 3]| {
        operation == "describe"
            && ["read", "write", "alter"]
                .iter()
                .any(|other| all.contains(&[kind.clone(), name.clone(), (*other).to_owned()]))
    };
    all.iter().filter(|one| !implied(one)).cloned().collect()
}

/// What lines of `kafka-acls.sh` allow. All tiers stand for what their names begin with.
fn asked(rig: &Rig, lines: &str) -> Operations {
    let mut all = Operations::new();
    for line in lines.split(['\n', '&']) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |option: &str| -> Vec<String> {
            let pairs = words.windows(2).filter(|pair| pair[0] == option);
            pairs.map(|pair| pair[1].to_owned()).collect()
        };
        let operations = after("--operation");
        for kind in ["topic", "group", "transactional-id"] {
            for name in after(&format!("--{kind}")) {
                let names = if name == rig.topic("delay.") {
                    TIERS.map(|tier| format!("{name}{tier}")).to_vec()
                } else {
                    vec![name]
                };
                for name in names {
                    let one = |operation: &String| {
                        [
                            kind.replace('-', ""),
                            name.clone(),
                            operation.to_lowercase(),
                        ]
                    };
                    all.extend(operations.iter().map(one));
                }
            }
        }
    }
    least(&all)
}

/// What `user` did, or tried to do, by the log of the broker's authorizer. Transactional ids stand for what they begin with.
fn used(rig: &Rig, log: &str, user: &str) -> Operations {
    let mut all = Operations::new();
    let principal = format!("Principal = User:{user} is ");
    let ids = format!("{}-", rig.prefix);
    for line in log.lines().filter(|line| line.contains(&principal)) {
        let after = |words: &str| {
            let (_, rest) = line.split_once(words).unwrap();
            rest.split(' ').next().unwrap().to_owned()
        };
        let resource = after(" on resource = ").replacen(":LITERAL:", " ", 1);
        let (kind, mut name) = resource.split_once(' ').unwrap();
        if kind == "TransactionalId" && name.starts_with(&ids) {
            name = &ids;
        }
        let operation = after(" operation = ").replace('_', "").to_lowercase();
        all.insert([kind.to_lowercase(), name.to_owned(), operation]);
    }
    least(&all)
}

/// Grants a user what doctor asks for, until it asks for nothing more, and says what that was.
fn grant_what_doctor_asks(broker: &Secured, rig: &Rig, user: &str) -> String {
    let start = Instant::now();
    let mut all = String::new();
    loop {
        let looked = run_as(rig, user, &["doctor", "--output", "ndjson"]);
        let lines = [marked(&looked, "fail"), marked(&looked, "warn")].concat();
        let fixes = lines.iter().filter_map(|line| line["fix"].as_str());
        let fixes: Vec<&str> = fixes
            .filter(|fix| fix.contains("--allow-principal"))
            .collect();
        if fixes.is_empty() {
            assert_eq!(looked.status.code(), Some(0), "{looked:?}");
            return all;
        }
        let fixes = fixes
            .join("\n")
            .replace("User:NAME", &format!("User:{user}"));
        broker.grant(&fixes);
        all = format!("{all}{fixes}\n");
        assert!(start.elapsed() < PATIENCE, "{lines:?}");
    }
}

/// Produces tasks that go each way: four that end at once, and one for each tier, which nobody waits for.
fn produce_each(rig: &Rig, run: &str) {
    let (producer, tasks) = (rig.producer(), rig.topic("tasks"));
    for (scene, delay, failures) in [
        ("flaky", "0", "1"),
        ("flaky", "0", "9"),
        ("copy", "0", "0"),
        ("nobody", "0", "0"),
        ("flaky", "9000", "0"),
        ("flaky", "50000", "0"),
        ("flaky", "300000", "0"),
        ("flaky", "7200000", "0"),
    ] {
        let id = format!("{run}-{scene}-{delay}-{failures}");
        let headers = [
            ("retry-scene", scene),
            ("retry-id", &id),
            ("retry-delay-ms", delay),
        ];
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| {
                let value = Some(*value);
                all.insert(Header { key, value })
            });
        let record = BaseRecord::to(&tasks).key(&id).payload(failures);
        let sent = producer.send(record.headers(headers));
        sent.map_err(|(error, _)| error).unwrap();
    }
    let commands = rig.topic("commands");
    let command = format!(r#"{{"command":"cancel","select":{{"id":"none"}},"id":"{run}"}}"#);
    let sent = producer.send(BaseRecord::to(&commands).key(run).payload(&command));
    sent.map_err(|(error, _)| error).unwrap();
    producer.flush(PATIENCE).unwrap();
}

/// Waits until the command of a run has ended.
fn command_ends(rig: &Rig, run: &str) {
    let start = Instant::now();
    let reader = rig.reader("commands");
    loop {
        let record = reader.next(Duration::from_millis(100));
        let is_end = |record: &Stored| {
            record.text("retry-command-stage") == "ended"
                && record.key.as_deref() == Some(run.as_bytes())
        };
        if record.is_some_and(|record| is_end(&record)) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "the command does not end");
    }
}

/// Has a campaign look at the dead letters of a run, and waits until it has.
fn campaign_ends(rig: &Rig, run: &str) {
    let producer = rig.producer();
    let commands = rig.topic("commands");
    let request = format!(r#"{{"command":"replay","name":"{run}","select":{{"id":"none"}}}}"#);
    let sent = producer.send(BaseRecord::to(&commands).key(run).payload(&request));
    sent.map_err(|(error, _)| error).unwrap();
    producer.flush(PATIENCE).unwrap();
    let (start, reader) = (Instant::now(), rig.reader("commands"));
    let is_done = |record: &Stored| {
        let value = record.value.as_deref().unwrap_or_default();
        let value: Value = serde_json::from_slice(value).unwrap_or_default();
        record.text("retry-command-stage") == "campaign"
            && value["campaign"] == run
            && value["state"] == "done"
    };
    loop {
        let record = reader.next(Duration::from_millis(100));
        if record.is_some_and(|record| is_done(&record)) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "the campaign does not end");
    }
}

#[test]
fn doctor_asks_for_all_that_a_run_uses_and_for_nothing_else() {
    let Some(broker) = secured() else { return };
    let rig = rig(broker);
    let copy = rig.topic("copy");
    rig.retide(&["init"]);
    crate::support::create_topics(&broker.plain, &[&copy, &rig.topic("ended")]);
    // Every way of a task: in order, delivered over HTTP and in Kafka, dead with an alert, and what is said of the end in Kafka.
    let scenes = FLAKY.replace("TARGET", &rig.target.address.to_string());
    let scenes = format!(
        "{scenes}ordering = 'key'\ncallback = {{ target = {{ kafka = {{ topic = '{}' }} }} }}\n\
         [scenes.copy]\ntarget = {{ kafka = {{ topic = '{copy}' }} }}\n",
        rig.topic("ended"),
    );
    fs::write(rig.file("scenes.toml"), &scenes).unwrap();
    let applied = rig.retide(&["scenes", "apply", "scenes.toml"]);
    assert!(applied.status.success(), "{applied:?}");
    let guarantee = "guarantee = 'at_least_once'\n";
    let loose = fs::read_to_string(rig.file("loose.toml")).unwrap();
    let loose = loose.replace("[processor]\n", &format!("[processor]\n{guarantee}"));
    let loose = loose.replace("[topics]\n", "[topics]\nevents = { enabled = false }\n");
    fs::write(rig.file("loose.toml"), loose).unwrap();

    // Whoever takes over reads what is left of the order of tasks.
    for (user, launches) in [("least", 2), ("loose", 1)] {
        let config = format!("{user}.toml");
        let lines = printed(&rig, user, "run");
        let allowed = asked(&rig, &lines);
        if user == "least" {
            let doctors = grant_what_doctor_asks(broker, &rig, user);
            assert_eq!(asked(&rig, &doctors), allowed);
        } else {
            broker.grant(&lines);
            until_ok(|| run_as(&rig, user, &["doctor"]));
        }
        let before = broker.log().len();
        for launch in 0..launches {
            let worker = rig.launch(&["run", "--config", &config]);
            worker.wait_for("shards assigned");
            if launch == 0 {
                produce_each(&rig, user);
                let awaited = ["flaky-0-1", "flaky-0-9", "copy-0-0", "nobody-0-0"];
                let awaited = awaited.map(|id| format!("{user}-{id}"));
                // Those of earlier runs may end as well.
                let mut ends = rig.ends(awaited.len());
                while !awaited.iter().all(|id| ends.contains_key(id)) {
                    ends = rig.ends(ends.len() + 1);
                }
                command_ends(&rig, user);
                campaign_ends(&rig, user);
            } else {
                worker.wait_for("order of tasks read");
            }
            worker.terminate();
            assert_eq!(worker.wait(), Some(0));
        }

        let used = used(&rig, &broker.log()[before..], user);
        // No target asks for rest here, so no process tells others of that.
        let signals = rig.topic("signals");
        let untold = [&*signals, "write"];
        let is_told = |asked: &&[String; 3]| asked[1..] != untold;
        let surplus: Vec<_> = allowed.difference(&used).filter(is_told).collect();
        let lack: Vec<_> = used.difference(&allowed).collect();
        assert!(
            surplus.is_empty() && lack.is_empty(),
            "{user}: asked and not used {surplus:?}, used and not asked {lack:?}"
        );
    }
}

/// A client that cannot talk to a broker, and what it is told.
struct Case<'a> {
    name: &'static str,
    address: &'a str,
    /// Lines of `[kafka]`.
    kafka: String,
    text: &'static str,
    hint: &'static str,
}

/// One case for each cause.
fn cases<'a>(broker: &'a Secured, nobody: &'a str) -> Vec<Case<'a>> {
    let tls = |ca: &Path| {
        format!(
            "security.protocol = 'ssl'\nssl.ca.location = '{}'\n",
            ca.display()
        )
    };
    let login = |password: &str, mechanism: &str| {
        format!(
            "security.protocol = 'sasl_plaintext'\nsasl.mechanism = '{mechanism}'\nsasl.username = 'run'\n\
             sasl.password = '{password}'\n"
        )
    };
    let ca = || tls(&broker.ca());
    let case = |name, address, kafka, text, hint| Case {
        name,
        address,
        kafka,
        text,
        hint,
    };
    vec![
        case(
            "expired",
            &broker.expired,
            ca(),
            "it has expired, on 2021-01-01",
            "renew the broker's certificate",
        ),
        case(
            "other",
            &broker.other,
            ca(),
            "another host name",
            "kafka.example",
        ),
        case(
            "stranger",
            &broker.good,
            tls(&broker.stranger()),
            "nobody who is trusted here has signed it",
            "set ssl.ca.location",
        ),
        case(
            "mutual",
            &broker.mutual,
            ca(),
            "wants a certificate of the client's",
            "set ssl.certificate.location",
        ),
        case(
            "tls",
            &broker.good,
            String::new(),
            "speaks TLS at this port",
            "security.protocol = \"ssl\"",
        ),
        case(
            "plain",
            &broker.plain,
            ca(),
            "does not speak TLS at this port",
            "security.protocol = \"plaintext\"",
        ),
        case(
            "password",
            &broker.sasl,
            login("wrong", "PLAIN"),
            "Invalid username or password",
            "correct sasl.username and sasl.password",
        ),
        case(
            "mechanism",
            &broker.sasl,
            login("x", "SCRAM-SHA-256"),
            "PLAIN",
            "set sasl.mechanism",
        ),
        case(
            "login",
            &broker.sasl,
            String::new(),
            "login by SASL",
            "wants a login at this address",
        ),
        case(
            "refused",
            nobody,
            String::new(),
            "Connection refused",
            "start the broker",
        ),
        case(
            "away",
            &broker.away,
            String::new(),
            "no kafka broker answers at 127.0.0.1:1, which brokers advertise",
            "correct advertised.listeners",
        ),
    ]
}

#[test]
fn each_cause_of_silence_has_its_own_text_and_hint() {
    let Some(broker) = secured() else { return };
    let rig = rig(broker);
    let nobody = free_address();
    let cases = cases(broker, &nobody);
    let children: Vec<_> = cases
        .iter()
        .map(|case| {
            let file = format!("{}.toml", case.name);
            let text = format!(
                "[kafka]\nbootstrap.servers = '{}'\n{}",
                case.address, case.kafka
            );
            fs::write(rig.file(&file), text).unwrap();
            let mut command = rig.command(&["doctor", "--config", &file]);
            let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
            Running::from(command.stderr(Stdio::piped()).spawn().unwrap())
        })
        .collect();

    for (case, child) in cases.iter().zip(children) {
        let output = child.output();

        let Case {
            name, text, hint, ..
        } = case;
        assert_eq!(output.status.code(), Some(5), "{name}: {output:?}");
        let said = stdout(&output);
        assert!(said.contains(text) && said.contains(hint), "{name}: {said}");
        assert!(!said.contains("there is no scene"), "{name}: {said}");
        let talk = stderr(&output);
        // Where a broker hangs up, it is known sooner.
        let waited = talk.contains("waiting for ");
        assert!(waited || *name != "refused", "{name}: {talk}");
    }
}

#[test]
fn a_command_says_that_nobody_answers_at_what_brokers_advertise() {
    let Some(broker) = secured() else { return };
    let rig = Rig::bare(broker.away.clone(), "");
    for command in [&["init"][..], &["campaigns", "ls"]] {
        let output = rig.retide(command);

        assert_eq!(output.status.code(), Some(5), "{output:?}");
        let said = stderr(&output);
        for text in [
            "no kafka broker answers at 127.0.0.1:1, which brokers advertise: ",
            "Connection refused",
            "fix: correct advertised.listeners",
        ] {
            assert!(said.contains(text), "{text}: {said}");
        }
    }
}

#[test]
fn what_a_policy_refuses_is_said_in_its_words_and_left_out_where_that_is_possible() {
    let Some(broker) = secured() else { return };
    let rig = Rig::bare(broker.plain.clone(), "");
    let init = |prefix: &str| rig.retide(&["init", "--prefix", prefix]);
    let (policed, strict) = (
        format!("policed-{}", rig.prefix),
        format!("policed-strict-{}", rig.prefix),
    );

    let trimmed = init(&policed);
    let checked = rig.retide(&["doctor", "--prefix", &policed]);
    let refused = init(&strict);

    assert_eq!(trimmed.status.code(), Some(0), "{trimmed:?}");
    assert!(
        stdout(&trimmed).contains("created, without segment.bytes"),
        "{trimmed:?}"
    );
    assert!(
        stderr(&trimmed).contains("is not to be set, says the policy"),
        "{trimmed:?}"
    );
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    assert!(
        stdout(&refused).contains("dead letters are not to be kept here, says the policy"),
        "{refused:?}"
    );
    assert!(
        stderr(&refused).contains(&format!(
            "retide init --format kafka-topics --prefix {strict}"
        )),
        "{refused:?}"
    );
}

#[test]
fn a_line_is_sent_as_it_is_read_and_a_scene_that_does_not_exist_is_refused() {
    let rig = Rig::new(Duration::ZERO, "");
    let text = FLAKY.replace("TARGET", &rig.target.address.to_string());
    fs::write(rig.file("scenes.toml"), text).unwrap();
    fs::write(rig.file("payload"), "0").unwrap();
    assert!(
        rig.retide(&["scenes", "apply", "scenes.toml"])
            .status
            .success()
    );

    let typo = rig.retide(&["submit", "--scene", "flakey", "payload"]);
    let forced = rig.retide(&["submit", "--scene", "flakey", "--force", "payload"]);
    let mut child = rig
        .command(&[
            "submit", "--scene", "flaky", "--lines", "--output", "ndjson",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map(Running::from)
        .unwrap();
    let (mut input, told) = (child.stdin.take().unwrap(), child.lines());
    // Each is told of while the input is open.
    for line in ["first\n", "\r second \r\n", "\n", "third\n"] {
        input.write_all(line.as_bytes()).unwrap();
        if line != "\n" {
            let stored: Value = serde_json::from_str(&told.next().unwrap()).unwrap();
            assert_eq!(stored["topic"], *rig.topic("tasks"));
        }
    }
    input.write_all(b"last").unwrap();
    drop(input);

    assert!(told.next().is_some());
    assert!(child.wait().success());
    assert_eq!(typo.status.code(), Some(3), "{typo:?}");
    assert!(stderr(&typo).contains("did you mean flaky?"), "{typo:?}");
    assert!(stderr(&typo).contains("--force"), "{typo:?}");
    assert_eq!(forced.status.code(), Some(0), "{forced:?}");
    let mut values: Vec<_> = rig
        .read("tasks")
        .into_iter()
        .filter_map(|task| task.value)
        .collect();
    values.sort();
    assert_eq!(
        values,
        [&b"\r second "[..], b"0", b"first", b"last", b"third"]
    );
}

#[test]
fn init_prints_what_exists_and_says_where_it_is_not_as_configured() {
    let rig = Rig::new(Duration::ZERO, "");
    rig.configure(&rig.basics().replace("partitions = 4", "partitions = 6"));

    let again = rig.retide(&["init", "--output", "json"]);
    let dry = rig.retide(&["init", "--dry-run", "--output", "json"]);

    for output in [again, dry] {
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let topics: Value = serde_json::from_str(&stdout(&output)).unwrap();
        for topic in topics.as_array().unwrap() {
            let single = ["scenes", "signals"].map(|name| rig.topic(name));
            let is_single = single.iter().any(|name| topic["topic"] == **name);
            assert_eq!(
                topic["partitions"],
                if is_single { 1 } else { 4 },
                "{topic}"
            );
        }
        let said = stderr(&output);
        assert!(
            said.contains("12 topics have 4 partitions, and [topics] partitions is 6"),
            "{said}"
        );
    }
}

/// A target that takes one request at a time and answers when it is let.
struct Door {
    /// Where it listens.
    address: String,
    /// Says that a request has come.
    called: mpsc::Receiver<()>,
    /// Lets one be answered.
    open: mpsc::Sender<()>,
}

impl Door {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (calls, called) = mpsc::channel();
        let (open, opened) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut reader = BufReader::new(&stream);
                let mut line = String::new();
                while line != "\r\n" {
                    line.clear();
                    if reader.read_line(&mut line).unwrap_or_default() == 0 {
                        break;
                    }
                }
                if line.is_empty() || calls.send(()).is_err() || opened.recv().is_err() {
                    continue;
                }
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = (&stream).write_all(answer);
            }
        });
        Self {
            address,
            called,
            open,
        }
    }
}

#[test]
fn a_tier_that_may_not_be_read_any_more_stands_still_alone() {
    let Some(broker) = secured() else { return };
    let rig = rig(broker);
    fs::write(rig.file("scenes.toml"), scenes(&rig)).unwrap();
    rig.retide(&["init"]);
    crate::support::create_topics(&broker.plain, &[&rig.topic("alerts-copy")]);
    broker.grant(&printed(&rig, "run", "run"));
    let address = free_address();
    let config = fs::read_to_string(rig.file("run.toml")).unwrap();
    let flaky = FLAKY.replace("TARGET", &rig.target.address.to_string());
    let door = Door::new();
    let held = &door.address;
    let held = format!(
        "[scenes.held]\ntarget = {{ http = {{ url = 'http://{held}/', timeout = '1m' }} }}\n"
    );
    let config = format!("{config}[admin]\nlisten = '{address}'\n{flaky}{held}");
    fs::write(rig.file("run.toml"), config).unwrap();
    until_ok(|| run_as(&rig, "run", &["doctor", "--no-targets"]));
    let mut retide = rig.launch(&["run", "--config", "run.toml"]);
    retide.wait_for("shards assigned");
    let producer = rig.producer();
    let parked = [
        ("retry-scene", "held"),
        ("retry-id", "held"),
        ("retry-delay-ms", "6000"),
    ];
    rig.send(&producer, &parked, b"");
    rig.produce(0, [1; 4].into_iter());
    rig.ends(4);
    // A call for a task from the tier is in flight as that may be read no longer.
    door.called.recv_timeout(PATIENCE).unwrap();

    let tier = rig.topic("delay.5s");
    let deny = |operation: &str, topic: &str| {
        format!(
            "kafka-acls.sh --add --deny-principal User:run --operation {operation} --topic {topic}"
        )
    };
    let (unread, unseen) = (
        deny("Read", &tier),
        deny("DescribeConfigs", &rig.topic("tasks")),
    );
    // That its settings may not be seen is no trouble.
    broker.grant(&unseen);
    broker.grant(&unread);
    let until = |part: &str, code: u16| {
        let start = Instant::now();
        loop {
            let (status, body) = get(&address, "/readyz").unwrap_or_default();
            if status == code && body.contains(part) {
                return body;
            }
            let waited = start.elapsed();
            assert!(waited < Duration::from_secs(30), "{part}: {status} {body}");
            thread::park_timeout(Duration::from_millis(50));
        }
    };
    let unreadable = format!(r#""kind":"topic-unreadable","subject":"{tier}""#);
    let body = until(&unreadable, 503);
    door.open.send(()).unwrap();
    assert!(
        body.contains("kafka-acls.sh")
            && body.contains(&format!("--operation Read --topic {tier}")),
        "{body}"
    );
    let (_, metrics) = get(&address, "/metrics").unwrap();
    let series = format!("retide_trouble{{kind=\"topic-unreadable\",subject=\"{tier}\"}} 1");
    assert!(metrics.contains(&series), "{metrics}");
    let late = [
        ("retry-scene", "flaky"),
        ("retry-id", "late"),
        ("retry-delay-ms", "6000"),
    ];
    rig.send(&producer, &late, b"0");
    producer.flush(PATIENCE).unwrap();
    rig.produce(4, [1; 4].into_iter());
    let ends = rig.ends(8);
    assert!(!ends.contains_key("late") && !ends.contains_key("held"));
    assert!(retide.child.try_wait().unwrap().is_none(), "it has ended");
    let alerts = rig.read("alerts").into_iter();
    let mut alerts = alerts.filter_map(|alert| String::from_utf8(alert.value?).ok());
    assert!(alerts.any(|text| text.contains("topic-unreadable") && text.contains(&tier)));

    broker.undo(&unread);
    until("", 200);
    let ends = rig.ends(10);
    assert!(ends.contains_key("late"));
    assert_eq!(ends["held"], ["delivered"]);
    assert!(door.called.try_recv().is_err(), "called again");
    let (_, body) = get(&address, "/readyz").unwrap();
    assert!(!body.contains("unsafe-"), "{body}");
    broker.undo(&unseen);
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}

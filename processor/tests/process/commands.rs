//! Every command, its output and its exit code.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use crate::bounded::{self, Running};
use crate::rig::{FLAKY, Rig};
use crate::support::{PATIENCE, bootstrap, free_address};

/// What a command printed.
fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a command said.
fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn init_creates_what_is_missing_and_run_refuses_without_it() {
    let rig = Rig::bare(bootstrap(), FLAKY);

    let refused = rig.retide(&["run"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    let said = stderr(&refused);
    assert!(
        said.contains("error: 14 topics of retide's do not exist, ")
            && said.contains("retide init"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 2, "{said}");
    let dry = rig.retide(&["init", "--dry-run", "--output", "json"]);
    assert_eq!(dry.status.code(), Some(0));
    let dry: serde_json::Value = serde_json::from_str(&stdout(&dry)).unwrap();
    assert!(
        dry.as_array()
            .unwrap()
            .iter()
            .all(|topic| topic["state"] == "missing")
    );
    let created = rig.retide(&["init"]);
    assert_eq!(created.status.code(), Some(0), "{created:?}");
    assert_eq!(stdout(&created).matches("created").count(), 14);
    let again = rig.retide(&["init"]);
    assert_eq!(again.status.code(), Some(0));
    assert_eq!(stdout(&again).matches("exists").count(), 14);

    let printed = rig.retide(&["init", "--format", "kafka-topics"]);
    assert_eq!(stdout(&printed).lines().count(), 14);
    let printed = rig.retide(&["init", "--format", "strimzi"]);
    assert_eq!(stdout(&printed).matches("kind: KafkaTopic").count(), 14);
}

#[test]
fn a_broker_that_does_not_answer_is_exit_code_5_within_15_seconds() {
    // Taken, and never answered.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let rig = Rig::bare(address.clone(), FLAKY);

    let start = Instant::now();
    let commands = [&["run"][..], &["init"], &["scenes", "export"]];
    let children = commands.map(|command| rig.start(command));
    for (command, child) in commands.into_iter().zip(children) {
        let output = child.output();

        assert_eq!(output.status.code(), Some(5), "{command:?} {output:?}");
        assert!(start.elapsed() < Duration::from_secs(15), "{command:?}");
        assert!(stderr(&output).contains(&address), "{}", stderr(&output));
    }
}

#[test]
fn a_mistake_in_the_configuration_is_exit_code_2_with_its_place() {
    let rig = Rig::bare("127.0.0.1:1".to_owned(), "");
    fs::write(
        rig.file("retide.toml"),
        "[processor]\nworkers = 2\nguarante = 'x'\n",
    )
    .unwrap();

    let output = rig.retide(&["run"]);

    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "error: retide.toml:3:1: processor.guarante: unknown key `guarante`; did you mean `guarantee`?\n"
    );
    let output = rig.retide(&["submt"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("'submit'"), "{}", stderr(&output));
}

#[test]
fn scenes_are_applied_compared_exported_and_deleted() {
    let rig = Rig::new(Duration::ZERO, "");
    let text = FLAKY.replace("TARGET", "127.0.0.1:9");
    fs::write(rig.file("scenes.toml"), &text).unwrap();

    let output = rig.retide(&["scenes", "apply", "scenes.toml"]);
    assert!(stdout(&output).contains("created"), "{output:?}");
    let output = rig.retide(&["scenes", "apply", "scenes.toml"]);
    assert!(stdout(&output).contains("unchanged"), "{output:?}");
    let output = rig.retide(&["scenes", "diff", "--exit-code", "scenes.toml"]);
    assert_eq!(
        (output.status.code(), stdout(&output).as_str()),
        (Some(0), "")
    );

    fs::write(
        rig.file("other.toml"),
        text.replace("max_attempts = 4", "max_attempts = 5"),
    )
    .unwrap();
    let output = rig.retide(&["scenes", "diff", "--exit-code", "other.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stdout(&output),
        "[scenes.flaky] changed\n- max_attempts = 4\n+ max_attempts = 5\n"
    );

    let exported = rig.retide(&["scenes", "export"]);
    fs::write(rig.file("exported.toml"), &exported.stdout).unwrap();
    let output = rig.retide(&["scenes", "diff", "--exit-code", "exported.toml"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");

    // Of a scene on the topic it is known how its rate divides.
    fs::write(
        rig.file("paced.toml"),
        format!("{text}rate = {{ limit = 100, burst = 2 }}\nbreaker = {{}}\n"),
    )
    .unwrap();
    let output = rig.retide(&["scenes", "apply", "paced.toml"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = rig.retide(&["scenes", "preview", "flaky"]);
    for line in [
        "belongs to 2 of 4 shards, and tasks of the others move there: 50 per 1s and 1 at once each",
        "256 calls at once, per process; counted for flaky",
        "of http://127.0.0.1:9: opens where 50 % of the calls",
    ] {
        assert!(stdout(&output).contains(line), "{output:?}");
    }

    let output = rig.retide(&["scenes", "delete", "nowhere"]);
    assert_eq!(output.status.code(), Some(3));
    let output = rig.retide(&["scenes", "delete", "flaky"]);
    assert_eq!(output.status.code(), Some(0));
    let output = rig.retide(&["scenes", "export", "flaky"]);
    assert_eq!(output.status.code(), Some(3));

    fs::write(
        rig.file("bad.toml"),
        text.replace("delay = \"700ms\"", "delay = \"-1s\""),
    )
    .unwrap();
    let output = rig.retide(&["scenes", "apply", "bad.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).starts_with("error: bad.toml:4:23: scenes.flaky.backoff.fixed.delay: "),
        "{}",
        stderr(&output)
    );
}

/// Two scenes over the same target.
const TWO: &str = r#"
[scenes.one]
target = { http = { url = "http://TARGET/one" } }
[scenes.two]
target = { http = { url = "http://TARGET/two" } }
"#;

#[test]
fn a_scene_with_tasks_under_way_is_not_deleted_unless_forced() {
    let rig = Rig::new(Duration::ZERO, "");
    let text = TWO.replace("TARGET", &rig.target.address.to_string());
    fs::write(rig.file("scenes.toml"), text).unwrap();
    fs::write(rig.file("none.toml"), "").unwrap();
    let submit = |scene: &str, id: &str, delay: &str| {
        fs::write(rig.file("payload"), "0").unwrap();
        let task = ["--scene", scene, "--id", id, "--delay", delay, "--key", "k"];
        let output = rig.retide(&[&["submit"], &task[..], &["payload"]].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    };
    let refused = |arguments: &[&str], words: &[&str]| {
        let output = rig.retide(arguments);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        for word in words {
            assert!(stderr(&output).contains(word), "{output:?}");
        }
    };
    rig.retide(&["scenes", "apply", "scenes.toml"]);

    // Not read yet.
    submit("one", "far", "1h");
    refused(
        &["scenes", "delete", "two", "one"],
        &["scene one has tasks", "far", &rig.topic("tasks"), "--force"],
    );

    // Parked; and one that is done, above one that is not.
    let retide = rig.run();
    submit("one", "near", "17s");
    submit("two", "done", "10s");
    rig.ends(1);
    let tier = rig.topic("delay.");
    refused(
        &["scenes", "delete", "one"],
        &["scene one has tasks", &tier],
    );
    refused(
        &["scenes", "apply", "--prune", "none.toml"],
        &["scene one has tasks", &tier],
    );
    let output = rig.retide(&["scenes", "delete", "two"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");

    let output = rig.retide(&["scenes", "delete", "--force", "one"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}

#[test]
fn the_default_scene_is_not_deleted_while_tasks_of_others_need_it() {
    let rig = Rig::new(Duration::ZERO, "");
    let text = "[scenes.default]\ntarget = { kafka = { topic = 'x' } }\n";
    fs::write(rig.file("scenes.toml"), text).unwrap();
    fs::write(rig.file("payload"), "0").unwrap();
    rig.retide(&["scenes", "apply", "scenes.toml"]);
    rig.retide(&["submit", "--scene", "unknown", "--id", "a", "payload"]);

    let output = rig.retide(&["scenes", "delete", "default"]);

    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(
        stderr(&output).contains("scene default has tasks"),
        "{output:?}"
    );
}

#[test]
fn a_scene_is_previewed_from_a_file_without_a_broker() {
    let rig = Rig::bare("127.0.0.1:1".to_owned(), "");
    fs::write(
        rig.file("scenes.toml"),
        "[scenes.a]\ntarget = { kafka = { topic = 'x' } }\nmax_attempts = 3\njitter = 'full'\n\
         [scenes.a.on.throttled]\nbackoff = { cron = { schedule = '0 9 * * *', timezone = 'Europe/Berlin' } }\njitter = 'none'\n",
    )
    .unwrap();
    let preview = |arguments: &[&str]| {
        rig.retide(&[&["scenes", "preview", "--scenes", "scenes.toml"], arguments].concat())
    };

    let table = preview(&["a"]);
    let json = preview(&["a", "--output", "json"]);
    let start = "2026-10-24T12:00:00Z";
    let points = preview(&["a", "--on", "throttled", "--start", start]);
    let missing = preview(&["b"]);

    assert_eq!(table.status.code(), Some(0), "{table:?}");
    assert!(stdout(&table).contains("dead after attempt 3"), "{table:?}");
    let json: serde_json::Value = serde_json::from_str(&stdout(&json)).unwrap();
    assert_eq!(json["attempts"][2]["since_first_ms"]["max"], 3_000);
    assert_eq!(json["end"]["reason"], "attempts-exhausted");
    assert_eq!(json["pacing"]["ordering"], "none");
    assert_eq!(
        json["pacing"].get("concurrency"),
        None,
        "a topic is not called"
    );
    // The clock is set back in between: 25 hours from nine to nine.
    assert!(
        stdout(&points).contains("2026-10-25T08:00:00Z"),
        "{points:?}"
    );
    assert!(
        stdout(&points).contains("2026-10-26T08:00:00Z"),
        "{points:?}"
    );
    assert_eq!(missing.status.code(), Some(3), "{missing:?}");
}

/// The body of `path` of the admin endpoints, with its status, by hand: one request on one connection.
pub(crate) fn get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = bounded::connect(address).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    )
    .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let status = text.split(' ').nth(1)?.parse().ok()?;
    Some((status, text))
}

#[test]
fn the_admin_endpoints_say_how_a_process_does() {
    let rig = Rig::new(Duration::ZERO, "");
    let address = free_address();
    let basics = rig.basics();
    rig.configure(&format!(
        "{basics}workers = 2\n[admin]\nlisten = '{address}'\n{FLAKY}"
    ));
    let retide = rig.run();
    let start = Instant::now();
    while get(&address, "/readyz").is_none_or(|(status, _)| status != 200) {
        assert!(start.elapsed() < PATIENCE, "{:?}", get(&address, "/readyz"));
        std::thread::park_timeout(Duration::from_millis(20));
    }

    rig.produce(0, [0, 1, 9].into_iter());
    rig.ends(3);

    assert_eq!(get(&address, "/livez").unwrap().0, 200);
    assert_eq!(get(&address, "/nowhere").unwrap().0, 404);
    let (status, version) = get(&address, "/version").unwrap();
    assert_eq!(status, 200);
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    // The receipt of the last transaction may still be on its way to the worker when its records can be read.
    let expected = [
        "retide_tasks_ended_total{scene=\"flaky\",outcome=\"delivered\"} 2",
        "retide_tasks_ended_total{scene=\"flaky\",outcome=\"dead\"} 1",
        "retide_attempts_total{scene=\"flaky\",outcome=\"success\"} 2",
        "retide_attempts_total{scene=\"flaky\",outcome=\"retryable\"} 5",
        "retide_open_records 0",
    ];
    let missing = || {
        let (_, metrics) = get(&address, "/metrics").unwrap();
        expected
            .iter()
            .filter(|line| !metrics.contains(**line))
            .collect::<Vec<_>>()
    };
    while !missing().is_empty() {
        assert!(
            start.elapsed() < PATIENCE,
            "{:?}\n{}",
            missing(),
            get(&address, "/metrics").unwrap().1
        );
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let (_, metrics) = get(&address, "/metrics").unwrap();
    for name in [
        "retide_lateness_seconds",
        "retide_ledger_commit_seconds",
        "retide_rebalances_total",
    ] {
        assert!(metrics.contains(name), "{name}");
    }
    // The address is taken.
    let second = rig.retide(&["run"]);
    assert_eq!(second.status.code(), Some(4), "{second:?}");
    assert!(stderr(&second).contains(&address), "{}", stderr(&second));
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}

#[test]
fn submitted_tasks_are_run() {
    let rig = Rig::new(Duration::ZERO, FLAKY);
    let submit = |arguments: &[&str], payload: &[u8]| -> Output {
        let mut child = rig
            .command(
                &[
                    &["submit", "--scene", "flaky", "--output", "ndjson"],
                    arguments,
                ]
                .concat(),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map(Running::from)
            .unwrap();
        child.stdin.take().unwrap().write_all(payload).unwrap();
        child.output()
    };
    let _retide = rig.run();

    let one = submit(
        &[
            "--id", "one", "--delay", "1500ms", "--header", "x=y", "--key", "k",
        ],
        b"0",
    );
    let lines = submit(&["--lines"], b"0\n1\n");
    let refused = submit(&["--header", "retry-attempt=3"], b"0");
    let json = submit(&["--id", "json"], b" {\"order\": 7}\n");
    let named = ["--id", "named", "--header", "content-type=text/csv"];
    let named = submit(&named, b"[7]");

    assert_eq!(one.status.code(), Some(0), "{one:?}");
    let line: serde_json::Value = serde_json::from_str(&stdout(&one)).unwrap();
    assert_eq!(line["id"], "one");
    assert_eq!(stdout(&lines).lines().count(), 2);
    assert_eq!(refused.status.code(), Some(2));
    assert_eq!(
        (json.status.code(), named.status.code()),
        (Some(0), Some(0))
    );
    let ends = rig.ends(5);
    assert_eq!(ends["one"], ["delivered"]);
    rig.target.wait_for(6);
    assert_eq!(rig.target.early(), 0);
    let requests = rig.target.requests();
    let request = |id: &str| {
        let mut requests = requests.iter();
        requests.find(|request| request.text("retry-id") == id)
    };
    assert_eq!(request("one").unwrap().text("x"), "y");
    // A payload that is JSON is called that, unless somebody says what it is.
    for (id, content_type) in [
        ("json", "application/json"),
        ("named", "text/csv"),
        ("one", "application/octet-stream"),
    ] {
        let said = request(id).unwrap().text("content-type");
        assert_eq!(said, content_type, "{id}");
    }
}

#[test]
fn the_demo_counts_what_it_promises() {
    let rig = Rig::bare("127.0.0.1:1".to_owned(), "");

    let start = Instant::now();
    let output = rig.retide(&["demo", "--exit", "--json", "--tasks", "2000", "--seed", "3"]);
    let took = start.elapsed();

    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = stdout(&output);
    let report: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let number = |key: &str| report[key].as_u64().unwrap();
    assert_eq!(number("tasks"), 2_000);
    assert_eq!(
        number("delivered") + number("dead") + number("expired"),
        2_000
    );
    assert!(number("dead") > 0 && number("expired") > 0);
    assert_eq!(
        (number("lost"), number("early"), number("duplicates")),
        (0, 0, 0)
    );
    assert_eq!(number("callbacks"), 2_000);
    assert!(number("attempts") > 2_000);
    let seconds = report["seconds"].as_f64().unwrap();
    assert!(seconds > 0.0 && seconds < took.as_secs_f64(), "{seconds} s");
    for key in ["p50", "p99", "max"] {
        assert!(report["lateness_ms"][key].as_f64().is_some(), "{key}");
    }
}

#[test]
fn parked_tasks_and_storms_are_measured_and_counted() {
    let rig = Rig::bare(bootstrap(), "");
    let bench = |arguments: &[&str]| -> serde_json::Value {
        let output = rig.retide(&[&["bench"], arguments, &["--output", "ndjson"]].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_str(&stdout(&output)).unwrap()
    };

    let park = bench(&[
        "park", "--tasks", "2000", "--bytes", "100", "--idle", "1s", "--due-in", "3s",
    ]);
    let storm = bench(&["storm", "--rate", "40", "--seconds", "3", "--flood", "300"]);

    assert_eq!(park["tasks"], 2_000);
    assert_eq!(park["tiers"], serde_json::json!(["1h"]));
    assert_eq!(park["take_over"]["session_timeout_ms"], "6000");
    let drain = &park["drain"];
    assert_eq!(drain["tasks"], 2_000);
    assert_eq!(drain["drained_ms"]["attempts"], 2_000);
    for lateness in ["drained_ms", "before_ms", "meanwhile_ms"] {
        assert_eq!(drain[lateness]["early"], 0, "{lateness}");
    }
    for stage in ["empty", "parked"] {
        let measured = park[stage]["memory"]["resident"].as_u64();
        assert_eq!(measured.is_some(), cfg!(target_os = "linux"), "{stage}");
    }
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    let attempts = |sea: &str| number(&storm[sea]["lateness_ms"]["attempts"]);
    // 120 of each. Where the machine stands still in the first half, some of its attempts are made in the second one.
    assert!(attempts("calm") >= 40 && attempts("storm") >= 40);
    assert!(attempts("calm") + attempts("storm") >= 200);
    // Those of the warm-up were delivered, too.
    assert!(number(&storm["delivered"]) >= attempts("calm") + attempts("storm") + 120);
    assert!(number(&storm["hung"]) >= 64 && number(&storm["rejected"]) >= 100);
    assert!(number(&storm["flooded"]) >= 300);
}

#[test]
fn measurements_count_what_goes_in_where_it_comes_out() {
    let rig = Rig::bare("127.0.0.1:1".to_owned(), "");
    let bench = |arguments: &[&str]| -> serde_json::Value {
        let common = ["--embedded", "--output", "ndjson"];
        let output = rig.retide(&[&["bench"], arguments, &common[..]].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_str(&stdout(&output)).unwrap()
    };

    let parts = "plain-copy,tier,ingest-at-least-once";
    let hop = bench(&["hop", "--records", "2000", "--parts", parts]);
    let dispatch = bench(&[
        "dispatch",
        "--tasks",
        "200",
        "--failures",
        "1",
        "--takes",
        "20ms",
    ]);
    let topic = bench(&["dispatch", "--tasks", "500", "--kafka"]);

    let parts = hop["parts"].as_array().unwrap();
    let parts: Vec<_> = parts.iter().map(|part| &part["part"]).collect();
    assert_eq!(hop["records"], 2_000);
    assert_eq!(parts, ["plain_copy", "tier", "ingest_at_least_once"]);
    assert_eq!(dispatch["lateness_ms"]["attempts"], 400);
    assert_eq!(dispatch["lateness_ms"]["early"], 0);
    assert_eq!(dispatch["most_per_second"], 3_200.0);
    assert_eq!(topic["tasks"], 500);
}

#[test]
fn lateness_is_measured_and_counted() {
    let rig = Rig::bare("127.0.0.1:1".to_owned(), "");
    let common = ["bench", "lateness", "--seconds", "2"];
    let bench = |arguments: &str| -> serde_json::Value {
        let output = ["--embedded", "--output", "ndjson"];
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let output = rig.retide(&[&common, &arguments[..], &output].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_str(&stdout(&output)).unwrap()
    };

    let ladder = bench("--rate 20 --failures 1");
    let loads = bench("--loads 20 --delays 1s --tasks 500");

    assert_eq!(ladder["retide_ms"]["attempts"], 80);
    assert_eq!(ladder["retide_ms"]["early"], 0);
    let causes = ladder["causes"].as_array().unwrap();
    let causes: Vec<_> = causes.iter().map(|cause| &cause["cause"]).collect();
    let held = [
        "order",
        "rate",
        "concurrency",
        "breaker",
        "room",
        "cooldown",
    ];
    let expected = [
        &["rebalance", "read", "agenda"][..],
        &held,
        &["start", "connect"],
    ]
    .concat();
    assert_eq!(causes, expected);
    let step = &loads["steps"][0];
    assert_eq!(step["percent"], 20);
    assert_eq!(step["retide_ms"]["early"], 0);
    let made = step["retide_ms"]["attempts"].as_f64().unwrap();
    let planned = step["attempts_per_second"].as_f64().unwrap() * 2.0;
    assert!(
        (made / planned - 1.0).abs() < 0.3,
        "{made} made, {planned} planned"
    );
}

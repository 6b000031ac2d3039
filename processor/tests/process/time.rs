//! When a task is due, how late that is, and how all that is told.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use retide_shell::clock;
use tokio::runtime::Runtime;

use crate::bounded;
use crate::rig::{Request, Rig};
use crate::support::{PATIENCE, bootstrap, config, free_address};

/// Milliseconds since the epoch.
fn now() -> u64 {
    let now = clock::since_epoch();
    now.as_millis() as u64
}

/// The body of `/metrics` for who accepts this, and its content type.
fn scrape(address: &str, accept: &str) -> (String, String) {
    let mut stream = bounded::connect(address).unwrap();
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let kind = head
        .lines()
        .find_map(|line| line.strip_prefix("content-type: "));
    // Chunks would be between the lines.
    assert!(head.contains("content-length: "), "{head}");
    (body.to_owned(), kind.unwrap().to_owned())
}

/// The value of a series; nothing where there is none.
pub(crate) fn value(address: &str, series: &str) -> Option<f64> {
    let (text, _) = scrape(address, "*/*");
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

/// Waits until something holds of a series.
fn wait_for(address: &str, series: &str, holds: impl Fn(f64) -> bool) -> f64 {
    let start = Instant::now();
    loop {
        let value = value(address, series);
        if let Some(value) = value.filter(|value| holds(*value)) {
            return value;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{series} is {value:?} in\n{}",
            scrape(address, "*/*").0
        );
        thread::park_timeout(Duration::from_millis(100));
    }
}

/// Produces a task of this identity whose record bears this time.
fn send(rig: &Rig, producer: &BaseProducer, id: &str, time: u64, headers: &[(&str, &str)]) {
    let mut all = OwnedHeaders::new();
    for &(key, value) in [("retry-id", id)].iter().chain(headers) {
        all = all.insert(Header {
            key,
            value: Some(value),
        });
    }
    let topic = rig.topic("tasks");
    let record = BaseRecord::<(), [u8]>::to(&topic)
        .payload(b"0")
        .timestamp(time as i64)
        .headers(all);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.poll(Duration::ZERO);
}

/// Topics as they are where somebody else has made the retry topic: its records keep the time that their producers gave them.
fn with_times_of_producers() -> Rig {
    let rig = Rig::bare(bootstrap(), "");
    let runtime = Runtime::new().unwrap();
    let admin: AdminClient<DefaultClientContext> =
        config(&rig.bootstrap, "admin").create().unwrap();
    let topic = rig.topic("tasks");
    let topic = NewTopic::new(&topic, 4, TopicReplication::Fixed(1))
        .set("message.timestamp.type", "CreateTime");
    let done = admin.create_topics([&topic], &AdminOptions::new());
    runtime.block_on(done).unwrap()[0].as_ref().unwrap();
    let init = rig.retide(&["init"]);
    assert!(init.status.success(), "{init:?}");
    rig
}

#[test]
fn a_task_that_nobody_has_read_until_its_hold_was_over_has_the_time_that_it_was_held() {
    let rig = with_times_of_producers();
    let basics = rig.basics();
    let target = "target = { http = { url = 'http://TARGET/any' } }\ndeadline = '2m'\n";
    rig.configure(&format!(
        "{basics}[scenes.stood]\n{target}[scenes.ran]\n{target}"
    ));
    let producer = rig.producer();
    let (start, hour) = (now(), 3_600_000);
    // Released a while ago, as `retide release` writes it down, when no process ran.
    let since = start - hour;
    let stood = format!(
        r#"{{"select":{{"scene":"stood"}},"deadlines":"stood","since":{since},"until":{}}}"#,
        start - 5_000
    );
    let (scenes, key) = (rig.topic("scenes"), format!("hold/scene-stood@{since}"));
    let record = BaseRecord::to(&scenes).key(&key).payload(&stood);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    for scene in ["stood", "ran"] {
        send(&rig, &producer, scene, since, &[("retry-scene", scene)]);
    }
    producer.flush(PATIENCE).unwrap();

    let retide = rig.run();
    let ends = rig.ends(2);
    let holds = rig.retide(&["holds"]);

    assert_eq!(ends["ran"], ["expired"]);
    assert_eq!(ends["stood"], ["delivered"]);
    // It is no hold any more.
    assert!(String::from_utf8_lossy(&holds.stderr).contains("nothing is held"));
    drop(retide);
}

#[test]
fn a_task_is_due_by_its_records_timestamp_however_late_it_is_read() {
    let rig = with_times_of_producers();
    let admin = free_address();
    let basics = rig.basics();
    rig.configure(&format!(
        "{basics}[admin]\nlisten = '{admin}'\n\
         [scenes.any]\ntarget = {{ http = {{ url = 'http://TARGET/any' }} }}\n\
         [scenes.short]\ntarget = {{ http = {{ url = 'http://TARGET/any' }} }}\ndeadline = '30s'\n"
    ));
    let producer = rig.producer();
    let (start, minute) = (now(), 60_000);
    let ago = start - minute;
    let any = ("retry-scene", "any");
    send(
        &rig,
        &producer,
        "delay",
        ago,
        &[any, ("retry-delay-ms", "5000")],
    );
    send(&rig, &producer, "none", ago, &[any]);
    let due = (ago + 20_000).to_string();
    send(&rig, &producer, "due", ago, &[any, ("retry-due-at", &due)]);
    send(
        &rig,
        &producer,
        "soon",
        start,
        &[any, ("retry-delay-ms", "2000")],
    );
    // Clocks that are ahead, or were never set.
    send(
        &rig,
        &producer,
        "ahead",
        start + 30 * minute,
        &[any, ("retry-delay-ms", "1000")],
    );
    send(
        &rig,
        &producer,
        "unset",
        1,
        &[any, ("retry-delay-ms", "1000")],
    );
    send(&rig, &producer, "expired", ago, &[("retry-scene", "short")]);
    let envelope = r#"{"scene":"any","id":"wrapped","delayMs":5000,"payload":"MA=="}"#;
    let topic = rig.topic("tasks");
    let record = BaseRecord::<(), [u8]>::to(&topic)
        .payload(envelope.as_bytes())
        .timestamp(ago as i64)
        .headers(OwnedHeaders::new().insert(Header {
            key: "content-type",
            value: Some("application/vnd.retide.task+json"),
        }));
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(PATIENCE).unwrap();

    let retide = rig.run();
    let ends = rig.ends(8);

    let requests = rig.target.requests();
    let request = |id: &str| -> &Request {
        let mut requests = requests.iter();
        requests
            .find(|request| request.text("retry-id") == id)
            .unwrap()
    };
    let due = |id| request(id).number("retry-due-at");
    assert_eq!(due("delay"), ago + 5_000);
    assert_eq!(due("wrapped"), ago + 5_000);
    assert_eq!(due("none"), ago);
    assert_eq!(due("due"), ago + 20_000);
    assert_eq!(due("soon"), start + 2_000);
    for id in ["ahead", "unset"] {
        let due = due(id);
        assert!((start + 1_000..start + 20 * minute).contains(&due), "{id}");
    }
    assert_eq!(rig.target.early(), 0);
    assert_eq!(ends["expired"], ["expired"]);
    assert_eq!(
        ends.values().filter(|ends| **ends == ["delivered"]).count(),
        7
    );
    // It is the record's time, too, from which deadlines count, and the first of the times that are told.
    for record in rig.read("callbacks") {
        let body: serde_json::Value = serde_json::from_slice(&record.value.unwrap()).unwrap();
        if ["delay", "none", "due", "expired"].contains(&body["id"].as_str().unwrap()) {
            assert_eq!(body["firstFailedAt"].as_u64(), Some(ago), "{body}");
        }
    }
    // All the time in which nobody ran is told as lateness: 55, 55, 60 and 40 s.
    let late = wait_for(
        &admin,
        r#"retide_lateness_seconds_sum{scene="any"}"#,
        |late| late >= 210.0,
    );
    let by = |cause| {
        let series = format!("retide_lateness_by_cause_seconds_sum{{cause=\"{cause}\"}}");
        value(&admin, &series).unwrap()
    };
    let unread = by("rebalance") + by("read");
    assert!(unread >= 210.0, "{unread} of {late}");
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}

/// A target that is down until told otherwise.
#[derive(Default)]
struct Outage {
    well: AtomicBool,
    /// The due time and the number of each attempt that succeeded, and when, by task.
    calls: Mutex<BTreeMap<String, (u64, u64, u64)>>,
}

async fn answer(State(outage): State<Arc<Outage>>, headers: HeaderMap) -> StatusCode {
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
    if !outage.well.load(Ordering::SeqCst) {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let number = |name| text(name).parse().unwrap();
    let call = (number("retry-due-at"), number("retry-attempt"), now());
    outage.calls.lock().unwrap().insert(text("retry-id"), call);
    StatusCode::OK
}

fn serve(runtime: &Runtime, outage: &Arc<Outage>) -> SocketAddr {
    let bound = tokio::net::TcpListener::bind("127.0.0.1:0");
    let listener = runtime.block_on(bound).unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new()
        .route("/down", post(answer))
        .with_state(Arc::clone(outage));
    runtime.spawn(async move { axum::serve(listener, router).await });
    address
}

#[test]
fn an_outage_is_lateness_as_long_as_it_lasts_and_afterwards() {
    /// Tasks: more than wait in memory for a breaker.
    const TASKS: usize = 60;
    let runtime = Runtime::new().unwrap();
    let outage = Arc::<Outage>::default();
    let down = serve(&runtime, &outage);
    let rig = Rig::new(Duration::ZERO, "");
    let admin = free_address();
    let basics = rig.basics();
    rig.configure(&format!(
        "{basics}[admin]\nlisten = '{admin}'\n\
         [scenes.down]\ntarget = {{ http = {{ url = 'http://{down}/down' }} }}\n\
         backoff = {{ fixed = {{ delay = '1s' }} }}\nmax_attempts = 50\nconcurrency = 2\n\
         breaker = {{ min_calls = 2, open = '4s', slow_start = '0s' }}\n"
    ));
    let retide = rig.run();
    let producer = rig.producer();
    let due = now().to_string();
    for number in 0..TASKS {
        let id = format!("task-{number}");
        let headers = [
            ("retry-scene", "down"),
            ("retry-id", &*id),
            ("retry-due-at", &*due),
        ];
        rig.send(&producer, &headers, b"0");
    }
    producer.flush(PATIENCE).unwrap();

    // Some of them are in memory, some were deferred again and again.
    let oldest = r#"retide_oldest_overdue_seconds{scene="down"}"#;
    let overdue = r#"retide_overdue_tasks{scene="down"}"#;
    wait_for(&admin, oldest, |seconds| seconds >= 12.0);
    let during = wait_for(&admin, overdue, |tasks| tasks >= (TASKS / 2) as f64);
    let parked = rig.read("delay.5s");
    outage.well.store(true, Ordering::SeqCst);
    rig.ends(TASKS);

    assert!(during <= TASKS as f64, "{during}");
    let calls = outage.calls.lock().unwrap().clone();
    assert_eq!(calls.len(), TASKS);
    let first: Vec<_> = calls
        .values()
        .filter(|(_, attempt, _)| *attempt == 1)
        .collect();
    // The breaker let few of them through while the target was down.
    assert!(first.len() > TASKS / 2, "{calls:?}");
    let due: u64 = due.parse().unwrap();
    // They were due when they were produced, and still are; a deferral takes longer.
    let is_due = |told: u64| (due..due + 4_000).contains(&told);
    assert!(first.iter().all(|(told, _, _)| is_due(*told)), "{calls:?}");
    let deferred = parked
        .iter()
        .filter(|record| !record.text("retry-deferred-until").is_empty());
    let mut deferrals = 0;
    for record in deferred.filter(|record| record.text("retry-attempt") == "1") {
        assert!(is_due(record.text("retry-due-at").parse().unwrap()));
        assert!(record.text("retry-late-by").contains("breaker="));
        let until: u64 = record.text("retry-deferred-until").parse().unwrap();
        assert!(until > due);
        deferrals += 1;
    }
    // Whatever they were late, counted from when they were due, is told, and that it was the breaker.
    let late: u64 = calls.values().map(|(due, _, at)| at - due).sum();
    let late = late as f64 / 1_000.0;
    let told = wait_for(
        &admin,
        r#"retide_lateness_seconds_sum{scene="down"}"#,
        |told| told >= late * 0.98,
    );
    let breaker = value(
        &admin,
        r#"retide_lateness_by_cause_seconds_sum{cause="breaker"}"#,
    );
    let breaker = breaker.unwrap();
    eprintln!(
        "late by {late} s in all; told {told}, by the breaker {breaker}; {deferrals} deferrals in a tier"
    );
    assert!(breaker >= late * 0.8, "{breaker} of {late}");
    assert!(deferrals >= 20, "{deferrals}");
    // Told once for each attempt, however often they came back.
    let counted = value(&admin, r#"retide_deferred_total{scene="down"}"#).unwrap();
    let events = rig.read("events");
    let events = events
        .iter()
        .filter(|event| event.text("retry-event") == "deferred");
    assert_eq!(events.count(), counted as usize);
    assert!(counted <= (TASKS + 20) as f64, "{counted}");
    wait_for(&admin, overdue, |tasks| tasks == 0.0);
    wait_for(&admin, oldest, |seconds| seconds == 0.0);
    wait_for(&admin, "retide_unread_records", |records| records == 0.0);
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}

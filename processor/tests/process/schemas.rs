//! Tasks of writers whose schema is not ours: it is found in the configuration or asked of a registry, and never guessed.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get as route, post};
use rdkafka::message::{Header as OutHeader, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::commands::get;
use crate::rig::{Request, Rig, Stored, serve};
use crate::support::{PATIENCE, free_address};

/// Another order of fields than retide's: by position, id and content type change places.
const SWAPPED: &str = r#"{"type": "record", "name": "RetryTask", "namespace": "com.shop", "fields": [
    {"name": "contentType", "type": "string"}, {"name": "id", "type": "string"},
    {"name": "payload", "type": "bytes"}, {"name": "scene", "type": "string"}
]}"#;

/// More than are set aside of a partition.
const FORGED: u32 = 250;

const SCENES: &str = r#"
[scenes.pay]
target = { http = { url = "http://TARGET/pay", timeout = "1m" } }
backoff = { fixed = { delay = "1s" } }
concurrency = 1
[scenes.default]
target = { http = { url = "http://TARGET/default", timeout = "1m" } }
backoff = { fixed = { delay = "1s" } }
"#;

/// A registry that knows some schemas, and another one once it is well.
#[derive(Clone, Default)]
struct Registry {
    /// The schemas by their paths below `schemas`.
    known: Arc<HashMap<String, String>>,
    /// Whether it answers for schema 902.
    is_well: Arc<AtomicBool>,
    /// What it was asked for.
    asked: Arc<Mutex<Vec<String>>>,
    /// The schemas that were registered, by subject.
    registered: Arc<Mutex<HashMap<String, Value>>>,
}

/// Whether a registry does not answer for a schema until it is well: 902, and those that nobody has registered.
fn is_away_for(path: &str) -> bool {
    path == "ids/902" || path.starts_with("ids/70")
}

/// What it says to those who do not show its name and password.
const STRANGER: &str = r#"{"error_code": 40101, "message": "Unauthorized"}"#;

/// Whether a request shows `reader` and `secret`.
fn is_known(headers: &HeaderMap) -> bool {
    let shown = headers.get("authorization");
    shown.is_some_and(|shown| shown == "Basic cmVhZGVyOnNlY3JldA==")
}

/// Looks a schema up, which is not there, or registers it by the number 9.
async fn subject(
    State(registry): State<Registry>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, String) {
    if !is_known(&headers) {
        return (StatusCode::UNAUTHORIZED, STRANGER.to_owned());
    }
    let Some(subject) = path.strip_suffix("/versions") else {
        let says = json!({ "error_code": 40401, "message": "Subject not found" });
        return (StatusCode::NOT_FOUND, says.to_string());
    };
    let said: Value = serde_json::from_str(&body).unwrap();
    let schema = serde_json::from_str(said["schema"].as_str().unwrap()).unwrap();
    let mut registered = registry.registered.lock().unwrap();
    registered.insert(subject.to_owned(), schema);
    (StatusCode::OK, json!({ "id": 9 }).to_string())
}

async fn schema(
    State(registry): State<Registry>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> (StatusCode, String) {
    if !is_known(&headers) {
        return (StatusCode::UNAUTHORIZED, STRANGER.to_owned());
    }
    registry.asked.lock().unwrap().push(path.clone());
    if is_away_for(&path) && !registry.is_well.load(Ordering::Acquire) {
        let says = json!({ "error_code": 50003, "message": "no leader" });
        return (StatusCode::INTERNAL_SERVER_ERROR, says.to_string());
    }
    if let Some(schema) = registry.known.get(&path) {
        return (StatusCode::OK, json!({ "schema": schema }).to_string());
    }
    let says = json!({ "error_code": 40403, "message": "Schema not found" });
    (StatusCode::NOT_FOUND, says.to_string())
}

/// A task in the order of [`SWAPPED`], framed.
fn swapped(schema: u8, id: &str) -> Vec<u8> {
    let mut value = vec![0, 0, 0, 3, schema];
    for text in ["text/plain", id, "abc", "pay"] {
        value.push(u8::try_from(text.len() * 2).unwrap());
        value.extend_from_slice(text.as_bytes());
    }
    value
}

/// A record that another library has made, by file, schema and frame: its value, and the headers that it has.
fn made(file: &str, frame: &str) -> (Vec<u8>, Vec<(String, Vec<u8>)>) {
    let golden = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../avro/tests/golden/made");
    let text = fs::read_to_string(golden.join(file)).unwrap();
    let mut lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let line = lines
        .find(|line| line["schema"] == "few" && line["frame"] == frame)
        .unwrap();
    let bytes = |value: &Value| {
        let hex = value.as_str().unwrap();
        let digit = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(digit).collect::<Vec<u8>>()
    };
    let headers = line["headers"].as_array().into_iter().flatten();
    let headers = headers.map(|header| (header[0].as_str().unwrap().to_owned(), bytes(&header[1])));
    (bytes(&line["value"]), headers.collect())
}

/// A registry with the schemas of the writers, one of which is named by this GUID.
fn registry(guid: &[u8], few: &str) -> Registry {
    let guid = Uuid::from_slice(guid).unwrap();
    let known = [
        ("ids/900".to_owned(), SWAPPED),
        ("ids/902".to_owned(), SWAPPED),
        (format!("guids/{guid}"), few),
    ];
    let known: HashMap<_, _> = known.map(|(path, schema)| (path, schema.to_owned())).into();
    Registry {
        known: Arc::new(known),
        ..Registry::default()
    }
}

#[test]
fn tasks_of_other_writers_are_read_by_their_schemas_or_wait_or_are_named() {
    let runtime = Runtime::new().unwrap();
    let few = include_str!("../../../avro/tests/golden/schemas/few.avsc");
    let (by_guid, guid) = made("confluent.jsonl", "header-guid");
    let registry = registry(&guid[0].1[1..], few);
    let router = Router::new()
        .route("/schemas/{*path}", route(schema))
        .route("/subjects/{*path}", post(subject));
    let address = serve(&runtime, router.with_state(registry.clone()));
    let rig = Rig::new(Duration::ZERO, SCENES);
    let admin = free_address();
    fs::write(rig.file("few.avsc"), few).unwrap();
    rig.configure(&format!(
        "{}[admin]\nlisten = '{admin}'\n[schemas]\nregistry = 'http://{address}'\nusername = 'reader'\npassword = 'secret'\n\
         files = ['few.avsc']\n{SCENES}",
        rig.basics().replace("callbacks = { format = 'json' }", "callbacks = { format = 'avro', framing = 'confluent' }")
    ));
    let retide = rig.run();

    produce(&rig, &guid, &by_guid);

    let ends = rig.ends(6);
    assert_eq!(ends["beside"], ["delivered"]);
    let swapped_one = ends.keys().filter(|id| id.starts_with("swapped-")).count();
    assert_eq!(swapped_one, 2, "{ends:?}");
    check_attempts(&rig.target.requests());

    let dead: Vec<Stored> = rig.read("dead-letters");
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].text("retry-reason"), "bad-envelope");
    let error = dead[0].text("retry-error");
    assert!(
        error.contains("schema id 901 is not known to the registry"),
        "{error}"
    );
    assert_eq!(dead[0].value.as_deref(), Some(&*swapped(0x85, "nobody")));

    wait_for(&admin, r#""kind":"registry-away""#);
    wait_for(&admin, "1 partitions stand still");
    assert!(get(&admin, "/readyz").is_some_and(|(status, _)| status == 503));
    // One question for each, however many records there are.
    let asked = registry.asked.lock().unwrap().clone();
    let times = |path: &str| asked.iter().filter(|asked| *asked == path).count();
    assert_eq!((times("ids/900"), times("ids/901")), (1, 1), "{asked:?}");
    check_explain(&rig, &address);
    let ended = rig.ends(6);
    assert!(
        !ended.contains_key("behind") && !ended.contains_key("last"),
        "{ended:?}"
    );
    registry.is_well.store(true, Ordering::Release);
    let ends = rig.ends(9 + FORGED as usize);
    for id in ["patient", "behind", "last"] {
        assert_eq!(ends[id], ["delivered"]);
    }
    let requests = rig.target.requests();
    assert_eq!(requests.len(), 8, "{requests:?}");
    let at = |id: &str| {
        requests
            .iter()
            .position(|request| request.text("retry-id") == id)
    };
    assert!(at("patient") < at("behind"), "{requests:?}");
    wait_for(&admin, r#""troubles":[]"#);
    let said = rig.retide(&["explain", "patient"]);
    let told = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(
        told.contains("delivered") && !told.contains("gives no answer"),
        "{told}"
    );
    check_callbacks(&rig, &registry);
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}

/// Tasks of other writers, some of which wait for the registry, and some plain ones behind them.
fn produce(rig: &Rig, guid: &[(String, Vec<u8>)], by_guid: &[u8]) {
    let producer = rig.producer();
    let send = |partition: i32, key: Option<&str>, headers: &[(String, Vec<u8>)], value: &[u8]| {
        let mut all = OwnedHeaders::new();
        for (key, value) in headers {
            let value = Some(value);
            all = all.insert(OutHeader { key, value });
        }
        let topic = rig.topic("tasks");
        let mut record = BaseRecord::<str, [u8]>::to(&topic)
            .payload(value)
            .headers(all);
        record.key = key;
        let sent = producer.send(record.partition(partition));
        sent.map_err(|(error, _)| error).unwrap();
    };
    let avro = [(
        "content-type".to_owned(),
        b"application/vnd.retide.task+avro".to_vec(),
    )];
    // By the registry, with and without our content type; by their fingerprint and their GUID.
    send(0, None, &avro, &swapped(0x84, "swapped-1"));
    send(0, None, &[], &swapped(0x84, "swapped-2"));
    let (java, _) = made("java.jsonl", "single-object");
    send(0, None, &[], &java);
    send(0, None, guid, by_guid);
    // One that the registry does not know, and one that it cannot tell yet, with other tasks behind it, of which one has its key.
    send(1, None, &[], &swapped(0x85, "nobody"));
    send(2, Some("k"), &avro, &swapped(0x86, "patient"));
    let plain = |id: &str| {
        [
            ("retry-scene".to_owned(), b"pay".to_vec()),
            ("retry-id".to_owned(), id.into()),
        ]
    };
    send(2, Some("k"), &plain("behind"), b"abc");
    send(2, None, &plain("beside"), b"abc");
    // So many that their lane stands still.
    for forged in 0..FORGED {
        let [a, b, c, d] = (70_000 + forged).to_be_bytes();
        send(3, None, &[], &[0, a, b, c, d]);
    }
    send(3, None, &plain("last"), b"abc");
    producer.flush(PATIENCE).unwrap();
}

/// `explain` says that it could not ask, and where that is mended.
fn check_explain(rig: &Rig, address: &SocketAddr) {
    let said = rig.retide(&["explain", "patient"]);
    let told = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(3), "{told}");
    let registry = format!("the schema registry http://{address}, which gives no answer");
    for text in [&*registry, "no leader", "[schemas] ids"] {
        assert!(told.contains(text), "{told}");
    }
}

/// Callbacks stand in the frame of the schema that was registered for their topic.
fn check_callbacks(rig: &Rig, registry: &Registry) {
    let registered = registry.registered.lock().unwrap();
    let subject = format!("{}-value", rig.topic("callbacks"));
    assert_eq!(registered.keys().collect::<Vec<_>>(), [&subject]);
    assert_eq!(registered[&subject]["name"], "Callback");
    let callbacks = rig.read("callbacks");
    assert_eq!(callbacks.len(), 9 + FORGED as usize);
    for callback in &callbacks {
        let value = callback.value.as_deref().unwrap();
        assert_eq!(value[..5], [0, 0, 0, 0, 9], "{value:?}");
    }
}

/// Four attempts of four writers, each with what its writer said, and one of a plain task.
fn check_attempts(requests: &[Request]) {
    assert_eq!(requests.len(), 5, "{requests:?}");
    assert!(requests.iter().all(|request| request.path == "pay"));
    for request in requests
        .iter()
        .filter(|it| it.text("retry-id").starts_with("swapped-"))
    {
        assert_eq!(request.text("content-type"), "text/plain");
        assert_eq!(request.text("idempotency-key"), request.text("retry-id"));
        assert_eq!(request.body, b"abc");
    }
    let of_few = requests
        .iter()
        .filter(|it| it.body == br#"{"amount":5}"#)
        .count();
    assert_eq!(of_few, 2, "{requests:?}");
}

/// Waits until `/readyz` says this.
fn wait_for(admin: &str, text: &str) {
    let start = Instant::now();
    loop {
        let (_, body) = get(admin, "/readyz").unwrap_or_default();
        if body.contains(text) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{text} is not in {body}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

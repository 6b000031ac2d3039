//! Bytes that other libraries made, and what they make of ours: see `golden/README.md`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use retide_avro::schema::Schema;
use retide_avro::schemas::Key;
use retide_avro::{Arrival, ENVELOPE_AVRO, ENVELOPE_JSON, Intake, RETRY_TASK_SCHEMA, Schemas};
use retide_core::{Header, Origin, Poison, Reason, Record, Task, Timestamp};

/// When the tasks of all fixtures are due, and until when.
const DUE: u64 = 1_795_836_382_000;
const DEADLINE: u64 = 1_795_839_982_000;

/// A record that another library has made.
#[derive(Clone, Debug, Deserialize)]
struct Made {
    library: String,
    schema: String,
    frame: String,
    id: u32,
    value: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digit).collect()
}

fn schema(name: &str) -> String {
    if name == "own" {
        return RETRY_TASK_SCHEMA.to_owned();
    }
    std::fs::read_to_string(golden().join(format!("schemas/{name}.avsc"))).unwrap()
}

/// All that other libraries have made, as it was checked in.
fn made() -> Vec<Made> {
    let mut made = Vec::new();
    for file in std::fs::read_dir(golden().join("made")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        made.extend(text.lines().map(|line| serde_json::from_str(line).unwrap()));
    }
    made
}

impl Made {
    /// The record, with a content type if one is set.
    fn record(&self, content_type: Option<&str>) -> Record {
        let header = |name: &str, value: Vec<u8>| Header {
            name: name.into(),
            value: Some(value.into()),
        };
        let given = self.headers.iter();
        let given = given.map(|(name, value)| header(name, bytes(value)));
        let said = content_type.map(|said| header("content-type", said.into()));
        Record {
            key: None,
            value: Some(bytes(&self.value).into()),
            headers: given.chain(said).collect(),
        }
    }

    /// What is configured to read it: by the number of its schema, by its fingerprint, or by a registry.
    fn intake(&self) -> Intake {
        let mut schemas = Schemas::default().with_registry();
        let text = schema(&self.schema);
        let id = (self.frame != "single-object").then_some(self.id);
        schemas.add(id, &text).unwrap();
        for (_, value) in &self.headers {
            if let Some(key @ Key::Guid(_)) = Key::of_header(&bytes(value)) {
                let meaning = schemas.meaning_of(Schema::parse(&text, &[]).unwrap());
                schemas.learn(key, meaning);
            }
        }
        Intake {
            schemas: Arc::new(schemas),
            ..Intake::default()
        }
    }
}

fn ingest(intake: &Intake, record: Record) -> Result<Task, Box<Poison>> {
    let entered = Timestamp::from_millis(DUE - 3_600_000);
    let origin = Origin {
        topic: "retry.tasks".into(),
        partition: 0,
        offset: 1,
    };
    let arrival = Arrival {
        origin,
        entered,
        stamped: entered,
    };
    intake.ingest(record, arrival)
}

/// What every task says, as far as its schema has it.
fn check(made: &Made, task: &Task) {
    let place = format!("{} {} {}", made.library, made.schema, made.frame);
    let header = |name: &str| {
        let mut headers = task.record.headers.iter();
        let header = headers.find(|header| header.name.as_bytes() == name.as_bytes());
        header.map(|header| header.value.clone())
    };
    let few = made.schema == "few";
    assert_eq!(&*task.scene, "pay", "{place}");
    let payload = task.record.value.as_deref();
    assert_eq!(payload, Some(&br#"{"amount":5}"#[..]), "{place}");
    assert_eq!(header("trace"), Some(Some(Bytes::from("t-1"))), "{place}");
    // A map of Go has no order, so that its task has one header only.
    let is_go = made.schema == "text" && ["goavro", "hamba"].contains(&&*made.library);
    assert_eq!(header("empty"), (!is_go).then_some(None), "{place}");
    assert_eq!(
        header("content-type"),
        Some(Some("application/json".into())),
        "{place}"
    );
    assert_eq!(header("__value_schema_id"), None, "{place}");
    let key = (!few).then(|| Bytes::from("k-7"));
    assert_eq!(task.record.key, key, "{place}");
    assert_eq!(&*task.id == "order-7", !few, "{place}");
    let deadline = (!few).then_some(Timestamp::from_millis(DEADLINE));
    assert_eq!(task.deadline, deadline, "{place}");
    let due = if few { DUE - 3_600_000 } else { DUE };
    assert_eq!(task.due, Timestamp::from_millis(due), "{place}");
}

#[test]
fn tasks_of_other_libraries_say_what_their_writers_said() {
    let made = made();

    let mut read = 0;
    for made in made.iter().filter(|made| made.schema != "json-schema") {
        for content_type in [None, Some(ENVELOPE_AVRO)] {
            let task = ingest(&made.intake(), made.record(content_type));

            // Microseconds do not change a fingerprint of the specification: the frame says milliseconds.
            let is_ours = made.schema == "micros" && made.library != "hamba";
            if is_ours && made.frame == "single-object" {
                let reason = task.unwrap_err().reason;
                assert!([Reason::BadDue, Reason::DueTooFar].contains(&reason));
            } else {
                check(
                    made,
                    &task.unwrap_or_else(|poison| panic!("{made:?}: {poison:?}")),
                );
            }
            read += 1;
        }
    }
    // Java, fastavro, goavro and hamba in both frames, avsc in one; Confluent in its frame, by number and by GUID.
    assert_eq!(read, 2 * 8 * (2 + 2 + 2 + 2 + 1 + 3));
}

#[test]
fn a_schema_that_nobody_knows_is_named_and_never_read_by_position() {
    for made in made() {
        let is_ours = made.schema == "own" || made.schema == "micros" && made.library != "hamba";
        if made.frame == "single-object" && is_ours || made.schema == "json-schema" {
            continue;
        }
        for content_type in [None, Some(ENVELOPE_AVRO)] {
            let poison = ingest(&Intake::default(), made.record(content_type)).unwrap_err();

            assert_eq!(poison.reason, Reason::BadEnvelope);
            let named = match &*made.frame {
                "single-object" => format!("schema fingerprint {}", &made.value[4..20]),
                "header-guid" => "schema ".to_owned(),
                _ => format!("schema id {}", made.id),
            };
            let why = &poison.detail.message;
            assert!(
                why.starts_with(&named) && why.contains("is not known"),
                "{why}"
            );
            assert!(why.contains("[schemas]"), "{why}");
        }
        // With a scene and without our content type it is a plain payload, whatever its frame is.
        let mut record = made.record(None);
        record.headers.push(Header {
            name: "retry-scene".into(),
            value: Some("pay".into()),
        });
        let task = ingest(&Intake::default(), record).unwrap();
        assert_eq!(task.record.value, Some(bytes(&made.value).into()));
    }
}

#[test]
fn the_frame_of_a_json_schema_is_skipped() {
    let made = made()
        .into_iter()
        .find(|made| made.schema == "json-schema")
        .unwrap();

    let task = ingest(&Intake::default(), made.record(Some(ENVELOPE_JSON))).unwrap();
    let plain = ingest(&Intake::default(), made.record(None)).unwrap_err();

    assert_eq!((&*task.scene, &*task.id), ("pay", "order-7"));
    assert_eq!(plain.reason, Reason::BadEnvelope);
}

#[test]
fn damaged_data_of_other_writers_are_refused_without_a_panic() {
    for made in made().iter().filter(|made| made.schema != "json-schema") {
        let intake = made.intake();
        let whole = bytes(&made.value);
        for at in 0..whole.len() {
            let mut cut = made.record(Some(ENVELOPE_AVRO));
            cut.value = Some(Bytes::copy_from_slice(&whole[..at]));
            assert!(ingest(&intake, cut).is_err());
            for byte in [0x00, 0x01, 0x7f, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                let mut record = made.record(Some(ENVELOPE_AVRO));
                record.value = Some(damaged.into());
                let _ = ingest(&intake, record);
            }
        }
    }
}

#[test]
fn forged_counts_and_depths_take_neither_time_nor_room() {
    let table: [(&str, &[u8]); 3] = [
        // An array of nothing, as long as a number can say; a record that holds only itself; arrays in arrays.
        (
            r#"{"type": "array", "items": "null"}"#,
            &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        ),
        (
            r#"{"type": "record", "name": "X", "fields": [{"name": "x", "type": "X"}]}"#,
            &[],
        ),
        (
            r#"{"type": "record", "name": "X", "fields": [{"name": "x", "type": {"type": "array", "items": "X"}}]}"#,
            &[0x02; 200],
        ),
    ];
    for (more, datum) in table {
        let text = format!(
            r#"{{"type": "record", "name": "RetryTask", "fields": [
                {{"name": "more", "type": {more}}},
                {{"name": "scene", "type": "string"}}, {{"name": "payload", "type": "bytes"}}
            ]}}"#
        );
        let mut schemas = Schemas::default();
        schemas.add(Some(7), &text).unwrap();
        let intake = Intake {
            schemas: Arc::new(schemas),
            ..Intake::default()
        };
        let record = Record {
            value: Some([&[0, 0, 0, 0, 7], datum].concat().into()),
            ..Record::default()
        };

        let poison = ingest(&intake, record).unwrap_err();

        assert_eq!(poison.reason, Reason::BadEnvelope);
    }
}

#[test]
fn fingerprints_of_other_libraries_are_known() {
    let mut kinds = BTreeMap::new();
    for made in made().iter().filter(|made| made.frame == "single-object") {
        let prints = Schema::fingerprints(&schema(&made.schema)).unwrap();
        let print = bytes(&made.value[4..20]);
        let form = prints.iter().position(|known| known[..] == print[..]);
        let form = form.unwrap_or_else(|| panic!("{} {}", made.library, made.schema));
        kinds
            .entry(made.library.clone())
            .or_insert_with(Vec::new)
            .push(form);
    }
    // Where nothing is to be shortened, all forms are one.
    assert_eq!(kinds["java"], [0; 8]);
    assert_eq!(kinds["fastavro"], [0; 8]);
    assert!(kinds["goavro"].contains(&1) && !kinds["goavro"].contains(&2));
    assert!(kinds["hamba"].contains(&2) && !kinds["hamba"].contains(&1));
}

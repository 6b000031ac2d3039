//! How long it takes to read what stands on the topics, and to write it: headers, envelopes, and the events that follow each task.

use std::hint::black_box;
use std::time::Duration;

use apache_avro::types::Value;
use apache_avro::{Schema, to_avro_datum};
use bytes::Bytes;
use criterion::{BatchSize, Criterion};

use retide_avro::wire::{Event, EventLine};
use retide_avro::{
    Codec, ENVELOPE_AVRO, ENVELOPE_JSON, Format, Framing, RETRY_TASK_FINGERPRINT,
    RETRY_TASK_SCHEMA, ingest, parked, write_task,
};
use retide_core::{Failure, Header, Kind, Origin, Record, Task, Timestamp, Transition};

/// An instant of no meaning.
const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    headers(&mut criterion);
    events(&mut criterion);
    criterion.final_summary();
}

fn headers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("headers");
    let produced = record(
        &[b'x'; 512],
        &[
            ("content-type", "application/json"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-01"),
            ("retry-scene", "payment"),
            ("retry-id", "order-104729"),
            ("retry-due-at", "1700000060000"),
        ],
    );
    let task = Task {
        attempt: 2,
        failure: Some(Failure::new("http-503", "the target answered 503")),
        ..ingest(produced.clone(), origin(), NOW).expect("a valid record")
    };
    for (name, record) in [
        ("ingest a task", produced),
        ("ingest a json envelope", json_envelope()),
        ("ingest an avro envelope", avro_envelope()),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || record.clone(),
                |record| ingest(record, origin(), NOW).expect("a valid record"),
                BatchSize::SmallInput,
            );
        });
    }
    let waiting = written(&task);
    group.bench_function("read a parked task", |bencher| {
        bencher.iter_batched(
            || waiting.clone(),
            |record| parked(record, origin()).expect("a valid record"),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("write a task", |bencher| {
        bencher.iter(|| {
            write_task(&task, &mut |name, value| {
                black_box((name, value));
            });
        });
    });
    group.finish();
}

fn events(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("events");
    let event = retide_core::Event {
        id: "order-104729".into(),
        scene: "payment".into(),
        kind: Kind::Work,
        at: NOW,
        transition: Transition::Parked {
            due: NOW + Duration::from_mins(1),
        },
        wait: None,
        left_out: None,
        command: None,
    };
    for (name, format) in [("avro", Format::Avro), ("json", Format::Json)] {
        let codec = Codec::<Event>::new(format, Framing::default());
        let bytes = codec.encode(&EventLine::from(&event)).expect("fits");
        group.bench_function(format!("encode, {name}"), |bencher| {
            bencher.iter(|| codec.encode(&EventLine::from(black_box(&event))));
        });
        group.bench_function(format!("decode, {name}"), |bencher| {
            bencher.iter(|| codec.decode(black_box(&bytes)));
        });
    }
    group.finish();
}

/// Where the records stand.
fn origin() -> Origin {
    Origin {
        topic: "retry.tasks".into(),
        partition: 3,
        offset: 104_729,
    }
}

/// A record with these headers.
fn record(value: &[u8], headers: &[(&str, &str)]) -> Record {
    Record {
        key: Some(Bytes::from_static(b"customer-1")),
        value: Some(Bytes::copy_from_slice(value)),
        headers: headers
            .iter()
            .map(|(name, value)| Header {
                name: (*name).to_owned().into(),
                value: Some(Bytes::copy_from_slice(value.as_bytes())),
            })
            .collect(),
    }
}

/// The record of a task that goes on.
fn written(task: &Task) -> Record {
    let mut headers = Vec::new();
    write_task(task, &mut |name, value| {
        headers.push(Header {
            name: name.into(),
            value: value.map(Bytes::copy_from_slice),
        });
    });
    Record {
        headers,
        ..task.record.clone()
    }
}

/// A task in an envelope, as JSON.
fn json_envelope() -> Record {
    let payload = "x".repeat(512);
    let json = format!(
        r#"{{"scene":"payment","id":"order-104729","delayMs":60000,"payload":{{"order":"{payload}"}}}}"#
    );
    record(json.as_bytes(), &[("content-type", ENVELOPE_JSON)])
}

/// A task in an envelope, in Avro.
fn avro_envelope() -> Record {
    let null = || Value::Union(0, Box::new(Value::Null));
    let some = |value| Value::Union(1, Box::new(value));
    let fields = [
        ("scene", Value::String("payment".to_owned())),
        ("id", some(Value::String("order-104729".to_owned()))),
        ("payload", Value::Bytes(vec![b'x'; 512])),
        ("contentType", null()),
        ("headers", Value::Array(Vec::new())),
        ("key", null()),
        ("dueAt", null()),
        ("delayMs", some(Value::Long(60_000))),
        ("deadlineAt", null()),
    ];
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    let schema = Schema::parse_str(RETRY_TASK_SCHEMA).expect("a valid schema");
    let datum = to_avro_datum(&schema, Value::Record(fields.to_vec())).expect("fits the schema");
    let framed = [&[0xc3, 0x01][..], &RETRY_TASK_FINGERPRINT, &datum].concat();
    record(&framed, &[("content-type", ENVELOPE_AVRO)])
}

//! Bytes that other libraries made, and what they make of ours: see `golden/README.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use retide_avro::schema::Schema;
use retide_avro::schemas::Key;
use retide_avro::wire::{Alert, Blob, Callback, Codec, Event, Lateness, Wire};
use retide_avro::{Arrival, ENVELOPE_AVRO, ENVELOPE_JSON, Intake, RETRY_TASK_SCHEMA, Schemas};
use retide_avro::{Format, Framing};
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
    fs::read_to_string(golden().join(format!("schemas/{name}.avsc"))).unwrap()
}

/// All that other libraries have made, as it was checked in.
fn made() -> Vec<Made> {
    let mut made = Vec::new();
    for file in fs::read_dir(golden().join("made")).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
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

/// Whether a frame says milliseconds of microseconds: those do not change a fingerprint of the specification.
fn is_in_other_units(made: &Made) -> bool {
    made.schema == "micros" && made.frame == "single-object" && made.library != "hamba"
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

            if is_in_other_units(made) {
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
        // What stands before the damage says whose task it is.
        let mut long = made.record(Some(ENVELOPE_AVRO));
        long.value = Some([whole, vec![0]].concat().into());
        let poison = ingest(&intake, long).unwrap_err();
        let few = made.schema == "few";
        assert_eq!((&*poison.scene, &*poison.id == "order-7"), ("pay", !few));
        assert_eq!(poison.key, (!few).then(|| Bytes::from("k-7")), "{made:?}");
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

// === the other way ===

/// The schemas that tasks are written with, in the order of their numbers.
const TASKS: [&str; 8] = [
    "own",
    "sorted",
    "swapped",
    "null-second",
    "few",
    "grown",
    "text",
    "micros",
];

/// The number that stands in our frames.
const OURS: u32 = 7;

/// A record of ours in a frame, as the programs read it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Ours {
    schema: String,
    frame: String,
    value: String,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// A record in both frames, and what a reader finds in it.
fn framed<R: Wire>(schema: &str, record: &R) -> Vec<(Ours, Value)> {
    let frames = [
        ("single-object", Framing::SingleObject),
        ("confluent", Framing::Confluent { schema_id: OURS }),
    ];
    let all = frames.map(|(frame, framing)| {
        let bytes = Codec::<R>::new(Format::Avro, framing)
            .encode(record)
            .unwrap();
        let ours = Ours {
            schema: schema.to_owned(),
            frame: frame.to_owned(),
            value: hex(&bytes),
        };
        (ours, serde_json::to_value(record).unwrap())
    });
    all.into()
}

/// One of each of our records.
fn ours() -> Vec<(Ours, Value)> {
    let callback = Callback {
        id: "order-7".into(),
        scene: "pay".into(),
        kind: "work".into(),
        outcome: "dead".into(),
        reason: Some("rejected".into()),
        attempts: 3,
        origin: "retry.tasks/0/42".into(),
        first_failed_at: 1_795_836_382_000,
        ended_at: 1_795_836_383_500,
        error_class: Some("http-415".into()),
        error_message: None,
        key: Some(Blob(Bytes::from_static(b"k-7\xff"))),
        fingerprint: Some("00000000000000ff".into()),
    };
    let event = Event {
        id: "order-7".into(),
        scene: "pay".into(),
        kind: "work".into(),
        at: 1_795_836_382_000,
        event: "failed".into(),
        due_at: Some(1_795_836_392_000),
        deferred_until: None,
        attempts: Some(1),
        hops: None,
        outcome: Some("retryable".into()),
        reason: None,
        error_class: Some("http-503".into()),
        error_message: Some("\u{fc}ber".into()),
        lateness: Some(Lateness {
            read: 7,
            rate: 1_000_000,
            ..Lateness::default()
        }),
        headers_left_out: None,
        command: None,
        fingerprint: Some("00000000000000ff".into()),
    };
    let alert = Alert {
        rule: "dead-tasks".into(),
        scene: "pay".into(),
        at: 1_795_836_382_000,
        count: 2,
        example: "order-7".into(),
        reason: "rejected".into(),
        target: Some("https://shop.example:443".into()),
        failed: Some(9),
        slow: None,
        since: Some(1_795_836_300_000),
        until: None,
        samples: None,
    };
    let mut all = framed("Callback", &callback);
    all.extend(framed("Event", &event));
    all.extend(framed("Alert", &alert));
    all
}

/// What a library reads, and how the programs are called for it.
struct Library {
    /// Its name.
    name: &'static str,
    /// The program's language.
    language: &'static str,
    /// The frames of ours that it takes as they are.
    frames: &'static [&'static str],
}

const LIBRARIES: [Library; 6] = [
    Library {
        name: "java",
        language: "java",
        frames: &["single-object", "confluent"],
    },
    Library {
        name: "fastavro",
        language: "python",
        frames: &["single-object", "confluent"],
    },
    Library {
        name: "confluent",
        language: "python",
        frames: &["confluent"],
    },
    Library {
        name: "goavro",
        language: "go",
        frames: &["confluent"],
    },
    Library {
        name: "hamba",
        language: "go",
        frames: &["confluent"],
    },
    Library {
        name: "avsc",
        language: "node",
        frames: &["single-object", "confluent"],
    },
];

/// What each library has read of ours when its program ran last.
fn read_by(library: &str) -> Vec<Value> {
    let text = fs::read_to_string(golden().join(format!("read/{library}.jsonl"))).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What a library is to read: the records in the frames that it takes.
fn given(library: &Library) -> Vec<(Ours, Value)> {
    let all = ours().into_iter();
    all.filter(|(ours, _)| library.frames.contains(&&*ours.frame))
        .collect()
}

#[test]
fn our_records_are_read_by_other_libraries() {
    for library in &LIBRARIES {
        let expected: Vec<Value> = given(library).into_iter().map(|(_, value)| value).collect();

        assert_eq!(read_by(library.name), expected, "{}", library.name);
    }
}

#[test]
fn the_table_in_the_readme_is_what_was_read() {
    let mut table = String::from(
        "| library | frame | their tasks, read by retide | callbacks, events and alerts of retide, read by them |\n|---|---|---|---|\n",
    );
    let made = made();
    for library in &LIBRARIES {
        let theirs = made.iter().filter(|made| made.library == library.name);
        let theirs: BTreeSet<&str> = theirs.map(|made| &*made.frame).collect();
        let frames: BTreeSet<&str> = theirs.iter().chain(library.frames).copied().collect();
        for frame in frames {
            let tasks = made
                .iter()
                .filter(|made| made.library == library.name && made.frame == frame);
            let tasks = tasks.filter(|made| !is_in_other_units(made));
            let tasks: Vec<&str> = tasks.map(|made| &*made.schema).collect();
            let tasks = if tasks.is_empty() {
                "-".to_owned()
            } else {
                tasks.join(", ")
            };
            let read = if library.frames.contains(&frame) {
                "yes"
            } else {
                "-"
            };
            writeln!(table, "| {} | {frame} | {tasks} | {read} |", library.name).unwrap();
        }
    }

    let readme = golden().join("../../README.md");
    let text = fs::read_to_string(readme).unwrap();

    assert!(text.contains(&table), "avro/README.md is to hold:\n{table}");
}

// === the programs ===

/// Digits of a single-object frame, in hexadecimal: the marker and the fingerprint.
const HEX_OF_FRAME: usize = 20;

/// Time that one program may take with the installation of its libraries: a minute is enough where the network is fast.
const PATIENCE: Duration = Duration::from_secs(150);

/// Where a language's libraries are installed.
fn installed(language: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("golden")
        .join(language)
}

/// Runs a command to its end; nothing if it is not there, fails or takes too long.
fn run(command: &mut Command, input: &str) -> Option<String> {
    let folder = installed("");
    let unique = format!("{:?}", thread::current().id());
    let (stdin, stdout) = (
        folder.join(format!("in-{unique}")),
        folder.join(format!("out-{unique}")),
    );
    fs::write(&stdin, input).unwrap();
    let mut out = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&stdout)
        .unwrap();
    command
        .stdin(File::open(&stdin).unwrap())
        .stdout(out.try_clone().unwrap());
    let mut child = command.stderr(Stdio::null()).spawn().ok()?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        thread::sleep(Duration::from_millis(50));
    };
    let mut text = String::new();
    out.rewind().unwrap();
    out.read_to_string(&mut text).ok()?;
    status.success().then_some(text)
}

/// The command that makes or reads with a library.
type Program = Box<dyn Fn(&str, &str) -> Command>;

/// The command that runs the program of a language, whose libraries are installed then; nothing where that cannot be done.
fn program(language: &str) -> Option<Program> {
    let (source, folder) = (golden().join(language), installed(language));
    fs::create_dir_all(&folder).unwrap();
    match language {
        "java" => {
            let mut install = Command::new("mvn");
            install.args(["-B", "-q", "-f"]).arg(source.join("pom.xml"));
            install.args(["dependency:copy-dependencies", "-DincludeScope=runtime"]);
            install.arg(format!("-DoutputDirectory={}", folder.display()));
            run(&mut install, "")?;
            Some(Box::new(move |command, _| {
                let mut java = Command::new("java");
                java.arg("-cp")
                    .arg(folder.join("*"))
                    .arg(source.join("Golden.java"))
                    .arg(command);
                java
            }))
        }
        "python" => {
            let bin = folder.join("bin");
            if !bin.join("pip").exists() {
                run(
                    Command::new("python3").args(["-m", "venv"]).arg(&folder),
                    "",
                )?;
            }
            let mut install = Command::new(bin.join("pip"));
            install
                .args(["install", "-q", "-r"])
                .arg(source.join("requirements.txt"));
            run(&mut install, "")?;
            Some(Box::new(move |command, library| {
                let mut python = Command::new(bin.join("python"));
                python
                    .arg(source.join("golden.py"))
                    .args([command, library]);
                python
            }))
        }
        "go" => {
            let binary = folder.join("golden");
            let mut build = Command::new("go");
            build
                .args(["build", "-o"])
                .arg(&binary)
                .arg(".")
                .current_dir(&source);
            run(&mut build, "")?;
            Some(Box::new(move |command, library| {
                let mut go = Command::new(&binary);
                go.args([command, library]);
                go
            }))
        }
        _ => {
            fs::copy(source.join("package.json"), folder.join("package.json")).unwrap();
            let mut install = Command::new("npm");
            install
                .args(["install", "--silent", "--no-audit", "--no-fund"])
                .current_dir(&folder);
            run(&mut install, "")?;
            Some(Box::new(move |command, _| {
                let mut node = Command::new("node");
                node.env("NODE_PATH", folder.join("node_modules"));
                node.arg(source.join("golden.js")).arg(command);
                node
            }))
        }
    }
}

/// Makes and reads with the libraries of one language, and compares with what was checked in.
fn play(language: &'static str) {
    let Some(program) = program(language) else {
        eprintln!("SKIPPED: {language} or its libraries cannot be had here");
        return;
    };
    let folder = golden();
    let tasks = TASKS.map(|name| match name {
        "own" => format!(
            "own={}",
            folder.join("../../schemas/RetryTask.avsc").display()
        ),
        name => format!(
            "{name}={}",
            folder.join(format!("schemas/{name}.avsc")).display()
        ),
    });
    let reports = ["Callback", "Event", "Alert"].map(|name| {
        format!(
            "{name}={}",
            folder.join(format!("../../schemas/{name}.avsc")).display()
        )
    });
    for library in LIBRARIES
        .iter()
        .filter(|library| library.language == language)
    {
        let name = library.name;
        let given: Vec<String> = given(library)
            .iter()
            .map(|(ours, _)| serde_json::to_string(ours).unwrap())
            .collect();

        let made = run(program("make", name).args(&tasks), "").expect("the program makes");
        let read = run(program("read", name).args(&reports), &given.join("\n"))
            .expect("the program reads");

        if std::env::var_os("RETIDE_GOLDEN").is_some() {
            // GUIDs are drawn anew each time.
            fs::create_dir_all(folder.join("read")).unwrap();
            fs::write(folder.join(format!("read/{name}.jsonl")), &read).unwrap();
            fs::write(folder.join(format!("made/{name}.jsonl")), &made).unwrap();
        }
        let lines = |text: &str| -> Vec<Value> {
            text.lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect()
        };
        let mut made = lines(&made);
        let mut before =
            lines(&fs::read_to_string(folder.join(format!("made/{name}.jsonl"))).unwrap());
        for line in made.iter_mut().chain(&mut before) {
            // A registry draws GUIDs at random.
            if line["frame"] == "header-guid" {
                line["headers"] = Value::Null;
            }
            // goavro's fingerprint of a type that names itself hangs on the order of a Go map: one in six is another.
            if name == "goavro" && line["schema"] == "grown" && line["frame"] == "single-object" {
                let value = line["value"].as_str().unwrap();
                line["value"] = value[HEX_OF_FRAME..].into();
            }
        }
        assert_eq!(made, before, "{name}");
        assert_eq!(lines(&read), read_by(name), "{name}");
    }
}

/// The programs run where their languages are; `RETIDE_GOLDEN=1` writes what they say.
#[test]
fn the_programs_make_and_read_the_same_today() {
    let threads =
        ["java", "python", "go", "node"].map(|language| thread::spawn(move || play(language)));
    for thread in threads {
        thread.join().unwrap();
    }
}

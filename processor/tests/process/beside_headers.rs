//! The headers of other libraries on retide's dead letters: a source of another retide takes them for letters of those libraries, and a replay
//! takes them off.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use rdkafka::producer::Producer;
use retide_avro::beside::Library;
use retide_avro::foreign::Foreign;
use retide_core::{Header, Origin, Record};

use crate::rig::{Rig, Stored};
use crate::support::PATIENCE;

/// A scene whose tasks fail once, which is once too often, and one whose target takes everything.
const SCENES: &str = "\n[scenes.once]\ntarget = { http = { url = 'http://TARGET/flaky' } }\nmax_attempts = 1\n\
                      [scenes.taken]\ntarget = { http = { url = 'http://TARGET/taken' } }\n";

/// How many tasks die.
const TASKS: usize = 8;

/// A record as codecs have it.
fn record(stored: &Stored) -> Record {
    let headers = stored.headers.iter();
    let headers = headers.map(|(name, value)| Header {
        name: name.as_str().into(),
        value: value.clone().map(Into::into),
    });
    Record {
        key: stored.key.clone().map(Into::into),
        value: stored.value.clone().map(Into::into),
        headers: headers.collect(),
    }
}

/// The names of a record's headers that begin so.
fn named<'a>(stored: &'a Stored, start: &str) -> Vec<&'a str> {
    let names = stored.headers.iter().map(|(name, _)| name.as_str());
    names.filter(|name| name.starts_with(start)).collect()
}

/// A configuration of another retide, with two sources that read the dead letters of this one.
fn other(rig: &Rig, word: &str) -> String {
    let prefix = format!("{}.back", rig.prefix);
    let basics = rig.basics();
    let basics = basics.replace(
        &format!("prefix = '{}'", rig.prefix),
        &format!("prefix = '{prefix}'"),
    );
    let basics = basics.replace(
        &format!("group = '{}'", rig.prefix),
        &format!("group = '{prefix}'"),
    );
    let topic = rig.topic("dead-letters");
    let source = |dialect: &str| {
        format!("[sources.{dialect}]\ntopic = '{topic}'\nscene = 'taken'\ndialect = '{dialect}'\n")
    };
    let text = format!("{basics}{SCENES}{}{}", source("auto"), source(word));
    text.replace("TARGET", &rig.target.address.to_string())
}

/// Tasks die with headers of `library` beside retide's: whoever reads those finds the record that they are of.
fn come_back(library: Library) {
    let word = library.dialect().word();
    let start = library.dialect().prefixes()[0];
    let rig = Rig::new(Duration::ZERO, SCENES);
    let also = format!("dead_letters = {{ also = '{word}' }}\n[processor]");
    let basics = rig.basics().replacen("[processor]", &also, 1);
    rig.configure(&format!("{basics}{SCENES}"));
    let retide = rig.run();
    let producer = rig.producer();
    for number in 0..TASKS {
        let id = format!("task-{number}");
        let headers = [("retry-scene", "once"), ("retry-id", &*id), ("theirs", &id)];
        rig.send(&producer, &headers, b"9");
    }
    producer.flush(PATIENCE).unwrap();
    rig.ends(TASKS);

    let letters = rig.read("dead-letters");
    assert_eq!(letters.len(), TASKS);
    let mut expected = BTreeSet::new();
    for letter in &letters {
        let read = Foreign::of(&record(letter), None);
        assert_eq!(read.dialect, Some(library.dialect()));
        let origin = read.origin.as_ref().expect("an origin").to_string();
        assert_eq!(origin, letter.text("retry-origin"));
        assert_eq!(read.reader.as_deref(), Some(&*rig.prefix));
        let somewhere = Origin {
            topic: rig.topic("dead-letters").into(),
            partition: 0,
            offset: 0,
        };
        expected.insert(read.id(&somewhere).to_string());
    }
    assert_eq!(expected.len(), TASKS, "an identity for each origin");
    fs::write(rig.file("other.toml"), other(&rig, word)).unwrap();
    let init = rig.retide(&["init", "--config", "other.toml"]);
    assert!(init.status.success(), "{init:?}");
    let back = rig.launch(&["run", "--config", "other.toml"]);
    // Each dies once here, and is taken twice there: by the source that finds the dialect out, and by the one that is told.
    rig.target.wait_for(3 * TASKS);
    let tasks = rig.read("back.tasks");
    assert_eq!(tasks.len(), 2 * TASKS);
    let found: BTreeSet<String> = tasks.iter().map(|task| task.text("retry-id")).collect();
    assert_eq!(found, expected, "the origin that the letter says");
    back.terminate();
    assert_eq!(back.wait(), Some(0));

    // Played back, a task has its producer's headers and none of those.
    let replay = ["dead-letters", "replay", "--scene", "once"];
    let how = ["--to-scene", "taken", "--ramp", "50", "--yes"];
    let replayed = rig.retide(&[&replay[..], &how].concat());
    assert_eq!(replayed.status.code(), Some(0), "{replayed:?}");
    rig.target.wait_for(4 * TASKS);
    let requests = rig.target.requests();
    for request in &requests[3 * TASKS..] {
        assert!(request.text("theirs").starts_with("task-"), "{request:?}");
        let mut names = request.headers.keys();
        assert!(
            names.all(|name| !name.as_str().starts_with(start)),
            "{request:?}"
        );
    }
    assert!(letters.iter().all(|letter| named(letter, start).len() > 6));
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}

#[test]
fn springs_headers_say_the_origin_and_do_not_travel_twice() {
    come_back(Library::Spring);
}

#[test]
fn connects_headers_say_the_origin_and_do_not_travel_twice() {
    come_back(Library::Connect);
}

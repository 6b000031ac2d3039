//! Secrets of scenes that stand elsewhere, and what is shown of those that stand in scenes.

use std::fs;
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::producer::Producer;

use crate::rig::Rig;
use crate::support::PATIENCE;

/// The scenes: one whose secrets stand in a file and a variable, one whose file is not there yet, and one that has its own in clear.
const SCENES: &str = r#"
[scenes.held]
target = { http = { url = "http://TARGET/held", headers = { x-api-key = { file = "LATER" } } } }
max_attempts = 1
[scenes.plain]
target = { http = { url = "http://TARGET/plain", headers = { authorization = "Bearer pl4in" } } }
[scenes.shop]
target = { http = { url = "http://TARGET/shop", headers = { authorization = { file = "TOKEN", prefix = "Bearer " }, x-api-key = { env = "SHOP_KEY" } } } }
callback = { target = { http = { url = "http://TARGET/ended", headers = { authorization = { file = "TOKEN" } } } } }
"#;

/// Sends a task of a scene.
fn send(rig: &Rig, scene: &str, id: &str) {
    let producer = rig.producer();
    rig.send(&producer, &[("retry-scene", scene), ("retry-id", id)], b"0");
    producer.flush(PATIENCE).unwrap();
}

/// The header of the request of a task at a path, once it has come.
fn header(rig: &Rig, path: &str, id: &str, name: &str) -> String {
    let start = Instant::now();
    loop {
        let requests = rig.target.requests();
        let found = requests.iter().find(|request| {
            request.path.trim_start_matches('/') == path && request.text("retry-id") == id
        });
        if let Some(request) = found {
            return request.text(name);
        }
        assert!(start.elapsed() < PATIENCE, "no request of {id} at {path}");
        thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn secrets_reach_the_target_from_where_they_stand_and_nobody_else() {
    let rig = Rig::new(Duration::ZERO, "");
    let (token, later) = (rig.file("token"), rig.file("later"));
    fs::write(&token, "f1rst\n").unwrap();
    let scenes = SCENES
        .replace("TARGET", &rig.target.address.to_string())
        .replace("TOKEN", token.to_str().unwrap())
        .replace("LATER", later.to_str().unwrap());
    fs::write(rig.file("scenes.toml"), scenes).unwrap();
    let applied = rig.retide(&["scenes", "apply", "scenes.toml"]);
    let retide = rig.launch_with(&["run"], &[("SHOP_KEY", "v4riable".to_owned())]);
    retide.wait_for("shards assigned");

    // One is missing: its scene waits, and the others do not.
    retide.wait_for("secret-missing");
    send(&rig, "held", "held-1");
    send(&rig, "shop", "shop-1");
    let first = header(&rig, "shop", "shop-1", "authorization");
    let key = header(&rig, "shop", "shop-1", "x-api-key");
    let ended = header(&rig, "ended", "shop-1", "authorization");
    fs::write(&later, "l4ter").unwrap();
    let held = header(&rig, "held", "held-1", "x-api-key");
    // It is replaced without a restart.
    fs::write(&token, "s3cond").unwrap();
    let start = Instant::now();
    let mut sent = 2;
    for number in 0.. {
        sent += 1;
        let id = format!("again-{number}");
        send(&rig, "shop", &id);
        if header(&rig, "shop", &id, "authorization") == "Bearer s3cond" {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "it is not read again");
    }
    let ends = rig.ends(sent);
    let outputs = show(&rig);
    let log = retide.log();
    retide.terminate();

    assert_eq!(retide.wait(), Some(0));
    assert_eq!(
        (&*first, &*key, &*ended, &*held),
        ("Bearer f1rst", "v4riable", "f1rst", "l4ter")
    );
    assert_eq!(ends["held-1"], ["delivered"]);
    let applied = text(&applied);
    assert!(
        applied.contains("scene plain: target.http.headers.authorization in clear"),
        "{applied}"
    );
    let shown = [log, applied, outputs].concat();
    let topics = on_topics(&rig);
    for secret in ["f1rst", "s3cond", "v4riable", "l4ter"] {
        assert!(!shown.contains(secret), "{secret} is shown");
        assert!(!topics.contains(secret), "{secret} is on a topic");
    }
    assert!(!shown.contains("pl4in"), "it is shown");
    assert!(topics.contains("pl4in"), "it stands in its scene");
}

/// What the commands say of the scenes.
fn show(rig: &Rig) -> String {
    let doctor = text(&rig.retide(&["doctor"]));
    let export = rig.retide(&["scenes", "export"]);
    fs::write(rig.file("exported.toml"), &export.stdout).unwrap();
    let back = rig.retide(&["scenes", "apply", "exported.toml"]);
    let whole = rig.retide(&["scenes", "export", "--show-secrets"]);
    fs::write(rig.file("whole.toml"), &whole.stdout).unwrap();
    let same = rig.retide(&["scenes", "diff", "--exit-code", "whole.toml"]);
    let explained = text(&rig.retide(&["explain", "shop-1"]));

    for expected in [
        "target.http.headers.authorization: holds a credential in clear",
        "variable SHOP_KEY is not set",
    ] {
        assert!(doctor.contains(expected), "{doctor}");
    }
    let exported = text(&export);
    assert!(
        exported.contains("<masked>") && exported.contains("--show-secrets"),
        "{exported}"
    );
    assert_eq!(back.status.code(), Some(2), "{}", text(&back));
    assert!(text(&whole).contains("pl4in"));
    assert!(same.status.success(), "{}", text(&same));
    [doctor, exported, text(&back), text(&same), explained].concat()
}

/// Everything that stands on retide's topics.
fn on_topics(rig: &Rig) -> String {
    let mut all = String::new();
    for topic in [
        "tasks",
        "scenes",
        "callbacks",
        "events",
        "alerts",
        "dead-letters",
        "delay.now",
        "delay.5s",
    ] {
        for stored in rig.read(topic) {
            all.push_str(&String::from_utf8_lossy(&stored.value.unwrap_or_default()));
        }
    }
    all
}

/// What a command printed and said.
fn text(output: &Output) -> String {
    let (data, talk) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(data).into_owned() + &String::from_utf8_lossy(talk)
}

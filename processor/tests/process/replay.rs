//! `retide dead-letters replay` and `retide campaigns`: what died is tried again, slowly first, once, whoever is killed meanwhile.

use std::collections::BTreeMap;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::hold::json;
use crate::rig::{ONE_ATTEMPT, Rig, serve};
use crate::shop::{Shop, dry_run, each_was_delivered_once};
use crate::support::PATIENCE;

/// A scene whose target never works.
const NEVER: &str = r#"
[scenes.other]
target = { http = { url = "http://TARGET/flaky", timeout = "1m" } }
backoff = { fixed = { delay = "1s" } }
max_attempts = 1
brake = false
"#;

/// How many tasks of the shop die.
const SHOP: usize = 60;

/// How many others do.
const OTHER: usize = 12;

/// What a command said.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits until a campaign is as is wanted.
fn wait_for(rig: &Rig, name: &str, is: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let campaign = json(&rig.retide(&["--output", "json", "campaigns", "show", name]));
        if is(&campaign) {
            return campaign;
        }
        assert!(start.elapsed() < PATIENCE, "{campaign}");
    }
}

#[test]
fn what_replays_nothing_or_too_much_is_exit_code_2() {
    let rig = Rig::bare("127.0.0.1:1".to_owned(), "");

    let replay = ["dead-letters", "replay"];
    for (arguments, words) in [
        (
            &["--yes"][..],
            "no option says which dead letters are meant",
        ),
        (&["--scene", "", "--yes"], "an empty text"),
        (&["--scene", "a"], "add --yes"),
        (
            &["--scene", "a", "--ramp", "5,5", "--yes"],
            "rising numbers",
        ),
        (&["--scene", "a", "--rate", "1/m", "--yes"], "such as 50/s"),
        (
            &["--scene", "a", "--stop-at", "100%", "--yes"],
            "below 100%",
        ),
        (
            &["--scene", "a", "--name", "a/b", "--yes"],
            "letters, digits",
        ),
        (
            &["--scene", "a", "--set-header", "a", "--yes"],
            "NAME=VALUE",
        ),
        (
            &["--scene", "a", "--set-header", "retry-id=7", "--yes"],
            "only retide sets",
        ),
        (&["--died", "soon", "--yes"], "--died"),
    ] {
        rig.refuses(&[&replay, arguments].concat(), words);
    }
}

#[test]
fn dead_letters_are_replayed_once_slowly_and_only_while_it_goes_well() {
    let (runtime, shop) = (Runtime::new().unwrap(), Shop::default());
    let address = serve(&runtime, shop.router());
    let scenes = [ONE_ATTEMPT, NEVER]
        .concat()
        .replace("SHOP", &address.to_string());
    let rig = Rig::new(Duration::ZERO, &scenes);
    let [one, other] = [rig.run(), rig.run()];
    let producer = rig.producer();
    for (count, scene) in [(SHOP, "shop"), (OTHER, "other")] {
        for number in 0..count {
            let id = format!("{scene}-{number}");
            rig.send(
                &producer,
                &[("retry-scene", scene), ("retry-id", &id)],
                b"9",
            );
        }
    }
    rig.ends(SHOP + OTHER);

    // Nothing is sent to see what would be.
    let dry = dry_run(&rig, &["--scene", "shop"]);
    assert_eq!(
        (&dry["count"], &dry["eligible"]),
        (&SHOP.into(), &SHOP.into())
    );
    assert_eq!(dry["samples"].as_array().unwrap().len(), 5, "{dry}");
    assert_eq!(shop.count(), SHOP);

    // It stops by itself where the target is still broken.
    let replay = [
        "dead-letters",
        "replay",
        "--scene",
        "shop",
        "--name",
        "mend",
    ];
    let pace = [
        "--ramp", "4,8", "--rate", "8/s", "--reason", "a test", "--yes",
    ];
    let broken = rig.retide(&[&replay[..], &pace].concat());
    assert_eq!(broken.status.code(), Some(6), "{broken:?}");
    assert!(said(&broken).contains("has stopped itself"), "{broken:?}");
    let called = shop.count() - SHOP;
    assert!(
        (5..30).contains(&called),
        "{called} calls of a broken target"
    );
    let again = rig.retide(&[&replay[..], &pace].concat());
    assert_eq!(again.status.code(), Some(4), "{again:?}");

    people_are_told_once(&rig);
    what_a_campaign_means_is_no_others(&rig, &shop);

    // It goes on where it was, whoever dies: one of the two leads it.
    shop.mend();
    let resumed = rig.retide(&["campaigns", "resume", "mend", "--yes"]);
    assert!(resumed.status.success(), "{resumed:?}");
    shop.wait_for(SHOP + called + 8);
    one.kill();
    let third = rig.run();
    shop.wait_for(SHOP + called + 20);
    other.kill();
    let done = wait_for(&rig, "mend", |campaign| campaign["state"] == "done");
    assert_eq!(done["replayed"], SHOP, "{done}");
    assert_eq!(done["delivered"], SHOP - called, "{done}");
    assert_eq!(done["dead"], called, "{done}");
    let log: Vec<&str> = done["log"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|line| line["text"].as_str())
        .collect();
    assert!(log.len() >= 4, "{log:?}");

    what_died_again_is_another_dead_letter(&rig, called);
    an_operator_pauses_and_aborts(&rig);
    drop(third);
}

/// That the campaign has stopped.
fn people_are_told_once(rig: &Rig) {
    let alerts = rig.read("alerts").into_iter();
    let alerts = alerts.map(|alert| serde_json::from_slice(&alert.value.unwrap()).unwrap());
    let told: Vec<Value> = alerts
        .filter(|alert: &Value| alert["rule"] == "campaign-stopped")
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["example"], "mend", "{told:?}");
    assert_eq!(told[0]["reason"], "failure-rate", "{told:?}");
}

/// While one is not over, a letter that it has not come to yet is replayed by no other.
fn what_a_campaign_means_is_no_others(rig: &Rig, shop: &Shop) {
    let mut calls: BTreeMap<String, usize> = BTreeMap::new();
    for (_, id) in shop.calls() {
        *calls.entry(id).or_default() += 1;
    }
    let (id, _) = calls.iter().find(|(_, calls)| **calls == 1).unwrap();
    let replay = |more| {
        let replay = ["--output", "json", "dead-letters", "replay", "--id", id];
        rig.retide(&[&replay[..], &[more]].concat())
    };

    let dry = json(&replay("--dry-run"));
    let expected = serde_json::json!({ "in-campaign": 1 });
    assert_eq!(dry["ineligible"], expected, "{dry}");
    let single = replay("--yes");
    assert_eq!(single.status.code(), Some(3), "{single:?}");
    let single: Value = serde_json::from_slice(&single.stdout).unwrap();
    assert_eq!(single["ineligible"], expected, "{single}");
    assert_eq!(single["replayed"], 0, "{single}");
}

/// A second campaign replays it, and then each task of the shop was delivered once.
fn what_died_again_is_another_dead_letter(rig: &Rig, called: usize) {
    let rest = rig.retide(&[
        "--output",
        "json",
        "dead-letters",
        "replay",
        "--scene",
        "shop",
        "--name",
        "rest",
        "--ramp",
        "50",
        "--yes",
    ]);
    let rest = json(&rest);
    assert_eq!(
        (&rest["replayed"], &rest["delivered"]),
        (&called.into(), &called.into()),
        "{rest}"
    );
    assert_eq!(rest["ineligible"]["replayed-before"], SHOP, "{rest}");
    let none = rig.retide(&["dead-letters", "replay", "--id", "shop-7", "--yes"]);
    assert_eq!(none.status.code(), Some(3), "{none:?}");

    each_was_delivered_once(rig, SHOP + OTHER, SHOP);
    assert_eq!(rig.target.count(), OTHER, "the others are left alone");
}

/// What is paused takes nothing, and what is aborted never does again.
fn an_operator_pauses_and_aborts(rig: &Rig) {
    let start = [
        "dead-letters",
        "replay",
        "--scene",
        "other",
        "--name",
        "slow",
    ];
    let slow = ["--ramp", "1", "--stop-at", "99%", "--yes"];
    let running = rig.start(&[&start[..], &slow].concat());
    rig.target.wait_for(OTHER + 1);
    let paused = rig.retide(&["campaigns", "pause", "slow", "--reason", "lunch", "--yes"]);
    assert!(paused.status.success(), "{paused:?}");
    let ended = running.output();
    assert_eq!(ended.status.code(), Some(6), "{ended:?}");
    assert!(said(&ended).contains("is paused"), "{ended:?}");
    let before = wait_for(rig, "slow", |campaign| campaign["out"] == 0);
    let called = rig.target.count();
    assert_eq!(before["replayed"], called - OTHER, "{before}");

    let twice = rig.retide(&["campaigns", "pause", "slow", "--yes"]);
    assert_eq!(twice.status.code(), Some(4), "{twice:?}");
    let listed = json(&rig.retide(&["--output", "json", "campaigns", "ls"]));
    let states: BTreeMap<&str, &str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|line| {
            (
                line["campaign"].as_str().unwrap(),
                line["state"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(states["slow"], "paused", "{states:?}");
    assert_eq!(states["mend"], "done", "{states:?}");
    let aborted = rig.retide(&["campaigns", "abort", "slow", "--yes"]);
    assert!(aborted.status.success(), "{aborted:?}");
    let over = rig.retide(&["campaigns", "resume", "slow", "--yes"]);
    assert_eq!(over.status.code(), Some(4), "{over:?}");
    let unknown = rig.retide(&["campaigns", "show", "none"]);
    assert_eq!(unknown.status.code(), Some(3), "{unknown:?}");
    assert_eq!(
        rig.target.count(),
        called,
        "nothing is taken while it is paused, or after"
    );
}

/// What a target was sent that takes what is for region `eu`.
type Sent = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A target that fails for every region but `eu`.
fn regional(sent: &Sent) -> Router {
    let sent = Arc::clone(sent);
    let answer = move |headers: HeaderMap, body: Bytes| async move {
        if headers["region"] != "eu" {
            return StatusCode::BAD_REQUEST;
        }
        let id = headers["retry-id"].to_str().unwrap().to_owned();
        sent.lock().unwrap().push((id, body.to_vec()));
        StatusCode::OK
    };
    Router::new().route("/paid", post(answer))
}

#[test]
fn what_is_edited_is_what_the_target_gets_and_all_else_stays_as_it_was() {
    let (runtime, sent) = (Runtime::new().unwrap(), Sent::default());
    let address = serve(&runtime, regional(&sent));
    let rig = Rig::new(
        Duration::ZERO,
        &[ONE_ATTEMPT, NEVER]
            .concat()
            .replace("SHOP", &address.to_string()),
    );
    let _retide = rig.run();
    let producer = rig.producer();
    let big = r#"{"amount": 1.10, "order": 123456789012345678901234567890}"#;
    let none = "no document";
    for (id, region, payload) in [
        ("one", "us", big),
        ("two", "us", big),
        ("three", "us", big),
        ("four", "us", none),
    ] {
        let headers = [
            ("retry-scene", "shop"),
            ("retry-id", id),
            ("region", region),
        ];
        rig.send(&producer, &headers, payload.as_bytes());
    }
    rig.ends(4);
    let replay = ["--output", "json", "dead-letters", "replay"];
    let with = |editor: &str, arguments: &[&str]| {
        let mut command = rig.command(&[&replay, arguments].concat());
        command
            .env_remove("VISUAL")
            .env("EDITOR", editor)
            .output()
            .unwrap()
    };

    // One in an editor.
    let one = ["--id", "one", "--edit", "--yes", "--name", "one"];
    for (editor, arguments, code, words) in [
        ("true", &one[..], 1, "nothing was changed"),
        ("false", &one, 1, "the editor has failed"),
        ("", &one, 2, "set EDITOR"),
        (
            "true",
            &["--scene", "shop", "--edit", "--yes"],
            2,
            "say which with --id",
        ),
        (
            "true",
            &["--id", "no", "--edit", "--yes"],
            3,
            "no dead letter fits",
        ),
    ] {
        let refused = with(editor, arguments);
        assert_eq!(refused.status.code(), Some(code), "{refused:?}");
        assert!(said(&refused).contains(words), "{refused:?}");
    }
    let editor = "sed -i -e s/1.10/2.50/ -e 's/^region: us/region: eu/'";
    let dry = ["--id", "one", "--edit", "--dry-run"];
    let dry = json(&with(editor, &dry));
    let diff = dry["differences"][0]["diff"].as_str().unwrap();
    for line in [
        "-region: us",
        "+region: eu",
        "-  \"amount\": 1.10,",
        "+  \"amount\": 2.50,",
    ] {
        assert!(diff.lines().any(|it| it == line), "{line}: {diff}");
    }
    assert_eq!(sent.lock().unwrap().len(), 0);
    let done = with(editor, &one);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let edited = big.replace("1.10", "2.50").into_bytes();
    assert_eq!(*sent.lock().unwrap(), [("one".to_owned(), edited.clone())]);

    // Many by a patch, but for what it does not fit.
    let patch = r#"[{"op":"test","path":"/amount","value":1.1},{"op":"replace","path":"/amount","value":2.50}]"#;
    std::fs::write(rig.file("patch.json"), patch).unwrap();
    let many = [
        "--scene",
        "shop",
        "--edit",
        "patch.json",
        "--set-header",
        "region=eu",
    ];
    let dry = json(&with("", &[&many[..], &["--dry-run"]].concat()));
    assert_eq!((&dry["count"], &dry["eligible"]), (&4.into(), &2.into()));
    assert_eq!(dry["ineligible"]["edit-failed"], 1, "{dry}");
    assert_eq!(dry["ineligible"]["replayed-before"], 1, "{dry}");
    let done = with("", &[&many[..], &["--yes", "--name", "many"]].concat());
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let mut rest = sent.lock().unwrap().split_off(1);
    rest.sort();
    let compact = br#"{"amount":2.50,"order":123456789012345678901234567890}"#;
    let of = |id: &str| (id.to_owned(), compact.to_vec());
    assert_eq!(rest, [of("three"), of("two")]);
    let campaign = wait_for(&rig, "many", |campaign| campaign["state"] == "done");
    assert_eq!(campaign["ineligible"]["edit-failed"], 1, "{campaign}");
    assert_eq!(campaign["spec"]["patch"], patch, "{campaign}");
    two_of_one_id_are_not_edited_as_one(&rig);
}

/// That is refused, as both would be replayed with one payload.
fn two_of_one_id_are_not_edited_as_one(rig: &Rig) {
    let four = ["--output", "json", "dead-letters", "replay", "--id", "four"];
    let headers = [
        ("retry-scene", "shop"),
        ("retry-id", "four"),
        ("region", "us"),
    ];
    let producer = rig.producer();
    rig.send(&producer, &headers, b"no document");
    let start = Instant::now();
    while json(&rig.retide(&[&four[..], &["--dry-run"]].concat()))["eligible"] != 2 {
        assert!(start.elapsed() < PATIENCE, "it did not die");
    }
    let mut edit = rig.command(&[&four[..], &["--edit", "--yes"]].concat());
    let refused = edit.env_remove("VISUAL").env("EDITOR", "true");
    let refused = refused.output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(
        said(&refused).contains("several dead letters have this id"),
        "{refused:?}"
    );
}

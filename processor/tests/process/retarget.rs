//! `retide dead-letters replay --to-url`: the tasks of a campaign go to another URL, and those of nobody else do.

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::producer::Producer;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::hold::json;
use crate::rig::{ONE_ATTEMPT, Rig, serve};
use crate::shop::{Shop, dry_run};
use crate::support::PATIENCE;

/// Tasks that die.
const LETTERS: usize = 7;

/// The scenes that stand on the topic.
fn scenes(rig: &Rig) -> BTreeSet<String> {
    let list = json(&rig.retide(&["--output", "json", "scenes", "list"]));
    let rows = list.as_array().unwrap().iter();
    let on_topic = rows.filter(|row| row["from"] == "topic");
    let names = on_topic.map(|row| row["scene"].as_str().unwrap().to_owned());
    names.collect()
}

/// Lets tasks of the shop die.
fn die(rig: &Rig, ids: &[String]) {
    let producer = rig.producer();
    for id in ids {
        let headers = [("retry-scene", "shop"), ("retry-id", id)];
        rig.send(&producer, &headers, id.as_bytes());
    }
    producer.flush(PATIENCE).unwrap();
}

#[test]
fn a_campaign_goes_to_another_url_by_a_scene_of_its_own() {
    let runtime = Runtime::new().unwrap();
    let (shop, staging) = (Shop::default(), Shop::default());
    staging.mend();
    let [at, other] = [&shop, &staging].map(|shop| serve(&runtime, shop.router()).to_string());
    let rig = Rig::new(Duration::ZERO, ONE_ATTEMPT);
    let scene = ONE_ATTEMPT.replace("SHOP", &at);
    rig.configure(&format!("{}{scene}", rig.basics()));
    let _retide = rig.run();
    let ids: Vec<String> = (0..LETTERS)
        .map(|number| format!("shop-{number}"))
        .collect();
    die(&rig, &ids);
    rig.ends(LETTERS);
    let url = format!("http://{other}/paid");
    let trial = ["--scene", "shop", "--name", "trial", "--to-url", &url];

    // What cannot be is refused, and a dry run makes nothing.
    let replay = ["dead-letters", "replay", "--scene", "shop", "--yes"];
    for (more, words) in [
        (&["--to-url", "ftp://shop/paid"][..], "ftp"),
        (&["--to-url", &url, "--name", "a:b"], "no name of a scene"),
        (&["--to-url", &url, "--to-scene", "shop"], "--to-scene"),
    ] {
        rig.refuses(&[&replay, more].concat(), words);
    }
    let dry = dry_run(&rig, &trial);
    assert_eq!(dry["eligible"], LETTERS, "{dry}");
    assert_eq!(dry["campaign"]["scene"], "campaign-trial", "{dry}");
    assert_eq!(scenes(&rig), BTreeSet::new());

    let asked = ["dead-letters", "replay", "--ramp", "50", "--yes"];
    let done = rig.retide(&[&asked[..], &trial].concat());

    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{done:?}");
    assert!(said.contains("scenes delete campaign-trial"), "{said}");
    assert_eq!(scenes(&rig), BTreeSet::from(["campaign-trial".to_owned()]));
    let called: BTreeSet<String> = staging.calls().into_iter().map(|(_, id)| id).collect();
    assert_eq!(called, ids.iter().cloned().collect());
    assert_eq!((staging.count(), shop.count()), (LETTERS, LETTERS));

    // Others go where they went, and the scene is no other campaign's.
    die(&rig, &["shop-later".to_owned()]);
    rig.ends(LETTERS + 1);
    assert_eq!(shop.count(), LETTERS + 1);
    let elsewhere = format!("http://{at}/paid");
    let again = ["--name", "trial", "--to-url", &elsewhere];
    rig.refuses(&[&replay[..], &again].concat(), "another one");
    let deleted = rig.retide(&["--output", "json", "scenes", "delete", "campaign-trial"]);
    let deleted: Value = json(&deleted);
    assert_eq!(deleted[0]["change"], "deleted", "{deleted}");
}

//! One cohort of many dead letters is replayed: not while its target fails, then once each, whoever is killed meanwhile, and no other one is
//! touched.
//!
//! `RETIDE_TEST_LETTERS` says how many dead letters there are; a tenth of them is the cohort.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use rdkafka::producer::Producer;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::hold::json;
use crate::rig::{ONE_ATTEMPT, Rig, serve, size};
use crate::shop::{Shop, each_was_delivered_once};
use crate::support::PATIENCE;

/// Dead letters, where nobody says how many.
const LETTERS: usize = 600;

/// Other scenes, whose tasks die as well: each of them fails in its own way.
const OTHERS: usize = 39;

/// How long each step of the ramp lasts at least.
const STEP: Duration = Duration::from_secs(3);

/// The most calls of a step's time, and the calls of the first one, behind the first `skipped` calls.
fn paces(shop: &Shop, skipped: usize) -> (usize, usize) {
    let times: Vec<Instant> = shop.calls()[skipped..].iter().map(|(at, _)| *at).collect();
    let within = |from: &Instant| {
        let of = |at: &&Instant| **at >= *from && at.duration_since(*from) < STEP;
        times.iter().filter(of).count()
    };
    let most = times.iter().map(within).max().unwrap_or_default();
    (within(&times[0]), most)
}

/// The scenes, each with one attempt.
fn scenes() -> String {
    // With more connections at once, some of thousands are cut off, and that is another failure.
    let calm = "brake = false\nconcurrency = 8";
    let mut scenes = ONE_ATTEMPT.replace("brake = false", calm);
    for number in 0..OTHERS {
        write!(
            scenes,
            "\n[scenes.other-{number}]\ntarget = {{ http = {{ url = 'http://TARGET/flaky', timeout = '1m' }} }}\n\
             backoff = {{ fixed = {{ delay = '1s' }} }}\nmax_attempts = 1\n{calm}\n"
        )
        .unwrap();
    }
    scenes
}

/// Produces tasks that die.
fn produce(rig: &Rig, count: usize, scene: impl Fn(usize) -> String) {
    let producer = rig.producer();
    for number in 0..count {
        let scene = scene(number);
        let id = format!("{scene}/{number}");
        rig.send(
            &producer,
            &[("retry-scene", &scene), ("retry-id", &id)],
            b"9",
        );
    }
    producer.flush(PATIENCE).unwrap();
}

/// How a campaign is now.
fn campaign(rig: &Rig, name: &str) -> Value {
    json(&rig.retide(&["--output", "json", "campaigns", "show", name]))
}

/// The fingerprint of a scene's dead letters, and how many have it.
fn cohort(rig: &Rig, scene: &str) -> (String, usize, usize) {
    let cohorts = rig.retide(&["--output", "json", "dead-letters", "cohorts"]);
    let cohorts = json(&cohorts);
    let cohorts = cohorts.as_array().unwrap();
    let of = cohorts.iter().find(|cohort| cohort["scene"] == scene);
    let of = of.unwrap();
    let count = of["count"].as_u64().unwrap() as usize;
    let fingerprint = of["fingerprint"].as_str().unwrap().to_owned();
    (fingerprint, count, cohorts.len())
}

#[test]
fn one_cohort_of_forty_is_replayed_once_while_everybody_is_killed_and_the_others_stay() {
    let (runtime, shop) = (Runtime::new().unwrap(), Shop::default());
    let address = serve(&runtime, shop.router()).to_string();
    let rig = Rig::new(Duration::ZERO, &scenes().replace("SHOP", &address));
    let letters = size("LETTERS", LETTERS);
    let tenth = letters / 10;
    let mut running = vec![rig.run(), rig.run()];
    produce(&rig, tenth, |_| "shop".to_owned());
    produce(&rig, letters - tenth, |number| {
        format!("other-{}", number % OTHERS)
    });
    rig.ends_within(letters, Duration::from_mins(10));
    let others = rig.target.count();
    assert_eq!((shop.count(), others), (tenth, letters - tenth));

    let (fingerprint, count, cohorts) = cohort(&rig, "shop");
    assert_eq!((count, cohorts), (tenth, OTHERS + 1));
    let replay = ["dead-letters", "replay", "--fingerprint", &fingerprint];
    let replay = |more: &[&'static str]| [&replay[..], more, &["--yes"]].concat();

    // Where the target still fails, it stops in its first steps.
    let broken = rig.retide(&replay(&["--name", "broken"]));
    assert_eq!(broken.status.code(), Some(6), "{broken:?}");
    let called = shop.count() - tenth;
    assert!((5..30).contains(&called), "{called} calls");
    let aborted = rig.retide(&["campaigns", "abort", "broken", "--yes"]);
    assert!(aborted.status.success(), "{aborted:?}");

    // Where it does not, all are replayed: those that have died again by their last letters. The command is killed first, then workers.
    shop.mend();
    let before = shop.count();
    let ramp = ["--name", "mend", "--ramp", "5,40,200"];
    let mut telling = rig.start(&replay(&ramp));
    shop.wait_for(before + 6);
    telling.kill().unwrap();
    for tenths in [2, 4, 6] {
        shop.wait_for(before + (tenth * tenths / 10).max(8));
        running.remove(0).kill();
        running.push(rig.run());
    }
    let start = Instant::now();
    let done = loop {
        let campaign = campaign(&rig, "mend");
        if campaign["state"] == "done" {
            break campaign;
        }
        assert!(start.elapsed() < 3 * PATIENCE, "{campaign}");
    };

    assert_eq!(done["replayed"], tenth, "{done}");
    assert_eq!(done["delivered"], tenth, "{done}");
    let (first, most) = paces(&shop, before);
    assert!(most >= 2 * first, "{first} calls at first, at most {most}");
    each_was_delivered_once(&rig, letters, tenth);
    assert_eq!(rig.target.count(), others);
}

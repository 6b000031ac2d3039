//! What tests of replays have in common: a shop whose calls fail until it is mended, and what must hold when its tasks were replayed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::Value;

use crate::hold::json;
use crate::rig::Rig;
use crate::support::PATIENCE;

/// A target that fails until it is mended, and remembers who called.
#[derive(Clone, Default)]
pub(crate) struct Shop {
    /// Whether it works.
    is_mended: Arc<AtomicBool>,
    /// The calls: when, and for which task.
    calls: Arc<Mutex<Vec<(Instant, String)>>>,
}

/// What a replay would do.
pub(crate) fn dry_run(rig: &Rig, options: &[&str]) -> Value {
    let replay = ["--output", "json", "dead-letters", "replay", "--dry-run"];
    json(&rig.retide(&[&replay[..], options].concat()))
}

/// Each of so many tasks has ended. Those of the shop, as their ids say, were delivered last, and so many of them once each; the others died,
/// and nothing else.
pub(crate) fn each_was_delivered_once(rig: &Rig, tasks: usize, of_shop: usize) {
    let mut ends: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for end in rig.read("callbacks") {
        let of = ends.entry(end.text("retry-id")).or_default();
        of.push(end.text("retry-outcome"));
    }
    assert_eq!(ends.len(), tasks);
    let mut delivered = 0;
    for (id, of) in &ends {
        if id.starts_with("shop") {
            assert_eq!(of.last().unwrap(), "delivered", "{id} {of:?}");
            delivered += of.iter().filter(|end| *end == "delivered").count();
        } else {
            assert_eq!(of[..], ["dead"], "{id}");
        }
    }
    assert_eq!(delivered, of_shop, "each once");
}

// === impl Shop ===

impl Shop {
    /// What it answers.
    pub(crate) fn router(&self) -> Router {
        let shop = self.clone();
        let answer = move |headers: HeaderMap| async move {
            let id = headers["retry-id"].to_str().unwrap().to_owned();
            shop.calls.lock().unwrap().push((Instant::now(), id));
            if shop.is_mended.load(Ordering::SeqCst) {
                StatusCode::OK
            } else {
                StatusCode::BAD_GATEWAY
            }
        };
        Router::new().route("/paid", post(answer))
    }

    /// From now on it works.
    pub(crate) fn mend(&self) {
        self.is_mended.store(true, Ordering::SeqCst);
    }

    /// Its calls so far: when, and for which task.
    pub(crate) fn calls(&self) -> Vec<(Instant, String)> {
        self.calls.lock().unwrap().clone()
    }

    /// How many calls there were.
    pub(crate) fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// Waits for so many calls.
    pub(crate) fn wait_for(&self, count: usize) {
        let start = Instant::now();
        while self.count() < count {
            assert!(start.elapsed() < PATIENCE, "{} of {count}", self.count());
            thread::park_timeout(Duration::from_millis(5));
        }
    }
}

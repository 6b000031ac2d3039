//! What goes wrong in a scene, as lines of the log: of each kind one at once, and then one every ten seconds with how often.
//!
//! Not the metrics, which count everything, and not alerts. Invariants: no line holds what a producer wrote, so none quotes a target's
//! reply; of a scene there are few lines, however many kinds of failures a target invents.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use retide_core::{Failure, Reason, Terminal};

/// What goes wrong in one scene.
pub(crate) struct Failing {
    /// The scene.
    scene: Arc<str>,
    /// What went wrong before, by its kind.
    before: Mutex<BTreeMap<What, Before>>,
}

/// A kind of what goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// Attempts fail, in this class.
    Attempts(Box<str>),
    /// Tasks end otherwise than delivered.
    Ends(Terminal, Option<Reason>),
}

/// What went wrong before.
#[derive(Debug)]
struct Before {
    /// When that was last said.
    told: Instant,
    /// How often it went wrong since.
    times: u64,
    /// What was said of it last.
    last: Box<str>,
}

/// A line that is due.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    /// What goes wrong.
    what: What,
    /// How often, since it was last said.
    times: u64,
    /// What was said of it last.
    last: Box<str>,
}

/// Least time between two lines that say the same of a scene.
const AGAIN: Duration = Duration::from_secs(10);

/// How long after its last line something is new again.
const FORGET: Duration = Duration::from_mins(1);

/// Most kinds that are told apart in a scene: more than the statuses a target answers with; the others are [`OTHER`].
const KINDS: usize = 16;

/// The class of all beyond those.
const OTHER: &str = "other";

/// Longest text of a failure in a line, in characters.
const LONGEST: usize = 200;

// === impl Failing ===

impl Failing {
    /// A scene in which nothing has gone wrong.
    pub(crate) fn new(scene: &Arc<str>) -> Self {
        Self {
            scene: Arc::clone(scene),
            before: Mutex::default(),
        }
    }

    /// An attempt failed.
    pub(crate) fn attempt(&self, failure: &Failure) {
        let what = What::Attempts(failure.class.clone());
        if let Some(due) = self.note(Instant::now(), what, 1, &gist(failure)) {
            self.say(due);
        }
    }

    /// Tasks ended otherwise than delivered, after such a failure.
    pub(crate) fn ends(
        &self,
        (terminal, reason): (Terminal, Option<Reason>),
        times: u64,
        failure: Option<&Failure>,
    ) {
        let last = failure.map_or_else(String::new, gist);
        let what = What::Ends(terminal, reason);
        if let Some(due) = self.note(Instant::now(), what, times, &last) {
            self.say(due);
        }
    }

    /// Writes the lines that are due. To be called every second or so.
    pub(crate) fn tick(&self, now: Instant) {
        for due in self.due(now) {
            self.say(due);
        }
    }

    /// Notes that something went wrong; gives what is to be said of it at once.
    fn note(&self, now: Instant, what: What, times: u64, last: &str) -> Option<Due> {
        let mut before = self.lock();
        let what = match what {
            What::Attempts(_) if before.len() >= KINDS && !before.contains_key(&what) => {
                What::Attempts(OTHER.into())
            }
            What::Attempts(_) | What::Ends(..) => what,
        };
        if let Some(before) = before.get_mut(&what) {
            before.times += times;
            if &*before.last != last {
                before.last = last.into();
            }
            if now.saturating_duration_since(before.told) < AGAIN {
                return None;
            }
            before.told = now;
            return Some(Due {
                what,
                times: mem::take(&mut before.times),
                last: before.last.clone(),
            });
        }
        let last: Box<str> = last.into();
        let new = Before {
            told: now,
            times: 0,
            last: last.clone(),
        };
        before.insert(what.clone(), new);
        Some(Due { what, times, last })
    }

    /// What is to be said of what went wrong since it was last said; what went wrong long ago is forgotten.
    fn due(&self, now: Instant) -> Vec<Due> {
        let mut due = Vec::new();
        self.lock().retain(|what, before| {
            let since = now.saturating_duration_since(before.told);
            if before.times == 0 {
                return since < FORGET;
            }
            if since >= AGAIN {
                before.told = now;
                due.push(Due {
                    what: what.clone(),
                    times: mem::take(&mut before.times),
                    last: before.last.clone(),
                });
            }
            true
        });
        due
    }

    /// Writes a line.
    fn say(&self, Due { what, times, last }: Due) {
        let scene = &*self.scene;
        let last = (!last.is_empty()).then_some(&*last);
        match what {
            What::Attempts(class) => {
                let class = &*class;
                warn!(scene, class, attempts = times, last, "attempts fail");
            }
            What::Ends(terminal, reason) => {
                let (outcome, reason) = (terminal.word(), reason.map(Reason::word));
                warn!(
                    scene,
                    outcome,
                    reason,
                    tasks = times,
                    last,
                    "tasks end undelivered"
                );
            }
        }
    }

    /// Locks what no panic leaves half-changed.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<What, Before>> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a line says of a failure: its class, and what is known of why there was no answer. What a target answered is its own affair.
fn gist(
    Failure {
        class,
        message,
        host: _,
    }: &Failure,
) -> String {
    if class.starts_with("http-") || message.is_empty() {
        return class.to_string();
    }
    let text = message.chars().take(LONGEST);
    format!("{class}: {}", text.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str) -> What {
        What::Attempts(name.into())
    }

    fn due(what: What, times: u64, last: &str) -> Due {
        let last = last.into();
        Due { what, times, last }
    }

    #[test]
    fn what_fails_is_told_at_once_and_every_ten_seconds_with_how_often() {
        let failing = Failing::new(&"pay".into());
        let start = Instant::now();
        let mut told = Vec::new();

        for tenth in 0..250 {
            let now = start + Duration::from_millis(100 * tenth);
            told.extend(failing.note(now, class("connect"), 1, "refused"));
            told.extend(failing.due(now));
        }
        told.extend(failing.due(start + Duration::from_mins(1)));

        let expected = [1, 100, 100, 49].map(|times| due(class("connect"), times, "refused"));
        assert_eq!(told, expected);
        assert_eq!(failing.due(start + Duration::from_mins(2)), []);
    }

    #[test]
    fn kinds_are_told_apart_up_to_a_bound() {
        let failing = Failing::new(&"pay".into());
        let now = Instant::now();

        let mut told = 0;
        for number in 0..100 {
            let what = class(&format!("http-{number}"));
            told += usize::from(failing.note(now, what, 1, "").is_some());
        }

        assert_eq!(told, KINDS + 1);
        let ends = What::Ends(Terminal::Dead, Some(Reason::Rejected));
        let first = failing.note(now, ends.clone(), 2, "http-415");
        assert_eq!(first, Some(due(ends, 2, "http-415")), "ends are few");
    }

    #[test]
    fn what_a_target_answered_is_in_no_line() {
        assert_eq!(
            gist(&Failure::new("http-503", "card 4711 declined")),
            "http-503"
        );
        assert_eq!(
            gist(&Failure::new("connect", "refused")),
            "connect: refused"
        );
    }
}

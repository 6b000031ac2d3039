//! Replays: campaigns that play dead letters back while tasks are produced and processes die, and what people ask of them meanwhile.
//!
//! Not what becomes of the letters, which the checker judges. Invariant: the target is broken for no campaign any more when the last one has
//! ended.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::ledger::{Ledger, now_micros};
use crate::orders::{Later, Means, Of, Start, Verb};
use crate::plan::{ORDERED, Random, SCENE};

/// Who replays dead letters; cheap to clone.
#[derive(Clone)]
pub(crate) struct Replayer {
    /// The way to send commands.
    pub(crate) later: Later,
    /// What is seen of campaigns.
    pub(crate) replays: Replays,
    /// For which of them the target is broken.
    pub(crate) broken: Broken,
    /// From when to when it was.
    pub(crate) ledger: Arc<Ledger>,
    /// The seed.
    pub(crate) seed: u64,
}

/// The campaigns for whose tasks a target is broken; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Broken(Arc<Mutex<HashSet<String>>>);

/// What is seen of dead letters and campaigns on the topics; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replays(Arc<Mutex<Seen>>);

/// The same.
#[derive(Debug, Default)]
struct Seen {
    /// How many dead letters there are of each fingerprint.
    prints: HashMap<String, usize>,
    /// The last record of each campaign.
    campaigns: HashMap<String, Campaign>,
}

/// What the last record of a campaign says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Campaign {
    /// What it does.
    state: String,
    /// Letters that were replayed.
    replayed: u64,
    /// Tasks that have not ended.
    out: u64,
}

/// What people do with a campaign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Nothing.
    Left,
    /// They pause it, and resume it.
    Paused,
    /// They mend the target when it has stopped by itself, and resume it.
    Mended,
    /// They abort it.
    Aborted,
}

/// When each campaign begins, in hundredths of the time in which tasks are produced, and what people do with it. Pairs overlap.
const AGENDA: [(u32, Role); 6] = [
    (20, Role::Left),
    (35, Role::Paused),
    (36, Role::Mended),
    (55, Role::Aborted),
    (56, Role::Left),
    (70, Role::Left),
];

/// The paces of a campaign that is to be over soon.
const FAST: &str = "[10,30,60]";

/// Those of one that is to be interrupted.
const SLOW: &str = "[4,6]";

/// How many letters a campaign has replayed when people do something with it.
const BEGUN: u64 = 8;

/// How far a span of deaths reaches back: it overlaps with the fingerprints and scenes of other campaigns.
const BACK: Duration = Duration::from_secs(45);

/// Longest time in which nothing is seen of a campaign: after that the checker says what is missing.
const PATIENCE: Duration = Duration::from_mins(2);

/// How often it is looked what a campaign does.
const LOOK: Duration = Duration::from_millis(100);

/// The pause before a campaign that has stopped by itself is resumed.
const AGAIN: Duration = Duration::from_millis(1_500);

// === impl Broken ===

impl Broken {
    /// Whether it is broken for this one.
    pub(crate) fn has(&self, campaign: &str) -> bool {
        self.lock().contains(campaign)
    }

    /// Locks what no panic leaves half-changed.
    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Replays ===

impl Replays {
    /// There is a dead letter of this fingerprint.
    pub(crate) fn died(&self, print: String) {
        *self.lock().prints.entry(print).or_default() += 1;
    }

    /// There is a record of a campaign, which says this.
    pub(crate) fn see(&self, said: &[u8]) {
        let said = String::from_utf8_lossy(said);
        let number = |key| field(&said, key).and_then(|value| value.parse().ok());
        let campaign = Campaign {
            state: field(&said, "state").unwrap_or_default().to_owned(),
            replayed: number("replayed").unwrap_or_default(),
            out: number("out").unwrap_or_default(),
        };
        let name = field(&said, "campaign").unwrap_or_default();
        self.lock().campaigns.insert(name.to_owned(), campaign);
    }

    /// What is known of a campaign; nothing until its first record.
    fn of(&self, name: &str) -> Campaign {
        let seen = self.lock();
        seen.campaigns.get(name).cloned().unwrap_or_default()
    }

    /// The fingerprint of most dead letters.
    fn print(&self) -> Option<String> {
        let seen = self.lock();
        let most = seen.prints.iter().max_by_key(|(_, count)| **count);
        most.map(|(print, _)| print.clone())
    }

    /// Locks what no panic leaves half-changed.
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first value of a key in the text of a record: a word, or a number.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let key = format!("\"{key}\":");
    let from = text.find(&key)? + key.len();
    let value = text[from..].trim_start_matches('"');
    value.split(['"', ',', '}']).next()
}

// === impl Campaign ===

impl Campaign {
    /// Whether nothing follows from it any more.
    fn is_over(&self) -> bool {
        self.state == "done" || (self.state == "aborted" && self.out == 0)
    }

    /// Whether its brake has stopped it.
    fn is_stopped(&self) -> bool {
        self.state == "stopped"
    }
}

// === impl Replayer ===

impl Replayer {
    /// So many campaigns, while tasks are produced for so long; until each of them is over.
    pub(crate) async fn replay(&self, count: usize, tasks: Duration) {
        let mut running = JoinSet::new();
        for number in 0..count {
            let (at, role) = AGENDA[number % AGENDA.len()];
            let later = Duration::from_secs(number.div_euclid(AGENDA.len()) as u64);
            let replayer = self.clone();
            running.spawn(async move {
                tokio::time::sleep(tasks * at / 100 + later).await;
                replayer.replay_once(number, role).await;
            });
        }
        while running.join_next().await.is_some() {}
    }

    /// A campaign, from its request to its end.
    async fn replay_once(&self, number: usize, role: Role) {
        // It ends with a letter that is in no number, so that it can be found in what follows from it.
        let name = &*format!("rep-{number}-");
        let mut random = Random::new(self.seed, 20_000 + number as u64);
        let broken_from = now_micros();
        if role == Role::Mended {
            self.broken.lock().insert(name.to_owned());
        }
        let start = Start {
            name: name.to_owned(),
            means: self.means(number),
            ramp: match role {
                Role::Paused | Role::Aborted => SLOW,
                Role::Left | Role::Mended => FAST,
            },
        };
        self.later.ask(Verb::Replay, Of::Letters(start));
        match role {
            Role::Left => {}
            Role::Paused => {
                self.until(name, |it| it.replayed >= BEGUN).await;
                self.ask(Verb::PauseCampaign, name);
                self.until(name, |it| it.state == "paused").await;
                tokio::time::sleep(random.millis(3_000, 6_000)).await;
                self.ask(Verb::ResumeCampaign, name);
            }
            Role::Mended => {
                self.until(name, Campaign::is_stopped).await;
                self.broken.lock().remove(name);
                let (from, to) = (broken_from.to_string(), now_micros().to_string());
                self.ledger.write(&["broken", name, &from, &to]);
            }
            Role::Aborted => {
                self.until(name, |it| it.replayed >= BEGUN).await;
                self.ask(Verb::AbortCampaign, name);
            }
        }
        // The brake may stop it at any time.
        while self.until(name, Campaign::is_stopped).await {
            tokio::time::sleep(AGAIN).await;
            self.ask(Verb::ResumeCampaign, name);
            self.until(name, |it| !it.is_stopped()).await;
        }
    }

    /// Which dead letters a campaign means: a scene, what most have in common, or when they died.
    fn means(&self, number: usize) -> Means {
        let now = now_micros() / 1_000;
        let died = Means::Died(now - BACK.as_millis(), now);
        match number % AGENDA.len() {
            0 => Means::Scene(ORDERED),
            1 => self.replays.print().map_or(died, Means::Fingerprint),
            3 => Means::Scene(SCENE),
            5 => Means::Died(0, now),
            _ => died,
        }
    }

    /// Asks something of a campaign.
    fn ask(&self, verb: Verb, name: &str) {
        self.later.ask(verb, Of::Campaign(name.to_owned()));
    }

    /// Waits until a campaign is as is wanted, or over, or nothing has become of it for long; whether it is.
    async fn until(&self, name: &str, is: impl Fn(&Campaign) -> bool) -> bool {
        let mut before = self.replays.of(name);
        let mut since = Instant::now();
        loop {
            let campaign = self.replays.of(name);
            if is(&campaign) {
                return true;
            }
            if campaign != before {
                (before, since) = (campaign.clone(), Instant::now());
            }
            if campaign.is_over() || since.elapsed() > PATIENCE {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_last_record_of_a_campaign_says_is_known() {
        let replays = Replays::default();
        assert!(!replays.of("rep-1-").is_over());

        for (state, out, is_over) in [("running", 4, false), ("aborted", 0, true)] {
            let said = format!(
                r#"{{"campaign":"rep-1-","place":"1/0/2","state":"{state}","spec":{{"ramp":[1]}},"replayed":96,"ineligible":{{"replayed-before":3}},"out":{out},"log":[]}}"#
            );
            replays.see(said.as_bytes());

            let campaign = replays.of("rep-1-");
            assert_eq!((campaign.replayed, campaign.out), (96, out));
            assert_eq!(campaign.is_over(), is_over, "{campaign:?}");
        }
    }

    #[test]
    fn the_fingerprint_of_most_dead_letters_is_known() {
        let replays = Replays::default();
        for print in ["a", "b", "b"] {
            replays.died(print.to_owned());
        }

        assert_eq!(replays.print().as_deref(), Some("b"));
    }
}

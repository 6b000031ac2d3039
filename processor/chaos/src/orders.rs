//! Commands: what is asked of some tasks while they are on their way, and of campaigns, and who sends it.
//!
//! Not what becomes of it, which the checker judges. Invariant: a command is in the ledger before its record is handed to the client, an
//! acknowledgement after the broker's word.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rdkafka::producer::{BaseProducer, Producer};

use crate::Failed;
use crate::ledger::{Ledger, now_micros};
use crate::pace::{Acks, Pace, Progress, Record, hand};
use crate::plan::{After, BATCH, Kind, Random, SWEPT, Scope, TO_ONE_SWEPT};

/// A command that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// When, since the first task.
    pub(crate) at: Duration,
    /// Its name.
    pub(crate) id: String,
    /// What is to be done.
    pub(crate) verb: Verb,
    /// With which tasks.
    pub(crate) of: Of,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// The task ends.
    Cancel,
    /// The next attempt may start at once.
    RunNow,
    /// The next attempt may start after this time.
    Reschedule(Duration),
    /// What came of the attempt: whether it went well.
    Complete(bool),
    /// A campaign begins.
    Replay,
    /// It takes no dead letters until it is resumed.
    PauseCampaign,
    /// It goes on.
    ResumeCampaign,
    /// It takes no dead letters any more.
    AbortCampaign,
}

/// Which tasks are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// Those that are called so; the last one may be nobody's name.
    Ids(Vec<String>),
    /// The one with this number, which is not there yet.
    Awaited(usize),
    /// The one that is called so, while its next attempt has not begun.
    Pending(String),
    /// Those with this header.
    Batch(usize),
    /// Those of the scene that is for that.
    Swept,
    /// A campaign that begins, with what it is to do.
    Letters(Start),
    /// The campaign of this name.
    Campaign(String),
}

/// What a campaign is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// Its name.
    pub(crate) name: String,
    /// Which dead letters it means.
    pub(crate) means: Means,
    /// The paces of its first steps, in letters a second, as JSON.
    pub(crate) ramp: &'static str,
}

/// Which dead letters a campaign means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Means {
    /// Those of this scene.
    Scene(&'static str),
    /// Those of this fingerprint.
    Fingerprint(String),
    /// Those that have died from one time to another, in milliseconds since the epoch.
    Died(u128, u128),
}

/// Sends the commands of a plan.
pub(crate) struct Sender {
    /// The broker.
    pub(crate) bootstrap: String,
    /// The topic.
    pub(crate) topic: String,
    /// The commands, in their order.
    pub(crate) orders: Vec<Order>,
    /// What is sent and acknowledged.
    pub(crate) ledger: Ledger,
    /// How far it is, for whoever waits.
    pub(crate) progress: Arc<Progress>,
}

/// Says later what came of attempts, and asks for replays; cheap to clone.
#[derive(Clone)]
pub(crate) struct Later {
    /// To the thread that sends it.
    sender: mpsc::Sender<Order>,
    /// How many there were, for whoever waits.
    progress: Arc<Progress>,
}

/// Sends what targets say later, and what is asked of campaigns.
pub(crate) struct LaterSender {
    /// What that is.
    pub(crate) orders: mpsc::Receiver<Order>,
    /// The broker.
    pub(crate) bootstrap: String,
    /// The topic.
    pub(crate) topic: String,
    /// What is sent and acknowledged.
    pub(crate) ledger: Ledger,
    /// How far it is, for whoever waits.
    pub(crate) progress: Arc<Progress>,
}

/// The first number of a command that is sent later: there are fewer of the others.
const FIRST_LATER: usize = 1_000_000;

/// The header that names the campaign to the target.
pub(crate) const CAMPAIGN: &str = "chaos-campaign";

/// Most letters a second of a campaign: it goes on while tasks are produced, and is over soon after them.
const LETTERS_IN_A_SECOND: u64 = 60;

/// How many tasks there are to one that a command names, at least.
const TO_ONE_NAMED: u64 = 8;

/// Commands of each kind in a second, at most: a build for tests does some ten with tasks beside them, and the campaign is about tasks.
const IN_A_SECOND: u64 = 1;

/// Tasks between two commands for the whole scene, at least.
const BETWEEN_SWEEPS: usize = 400;

// === impl Order ===

impl Order {
    /// The commands for so many tasks, of which there are so many a second.
    pub(crate) fn all(seed: u64, tasks: usize, scope: Scope) -> Vec<Self> {
        let rate = scope.rate;
        let is_plain = |number| Kind::of(number, scope) == Kind::Plain;
        let sent = |number: usize| Duration::from_secs_f64(number as f64 / rate as f64);
        let named = TO_ONE_NAMED.max(rate / IN_A_SECOND);
        let batches = (rate / IN_A_SECOND / BATCH as u64).max(1) as usize;
        let sweeps = BETWEEN_SWEEPS.max(10 * rate as usize);
        let mut all = Vec::new();
        for number in 0..tasks {
            let mut random = Random::new(seed, 500_000 + number as u64);
            if Kind::of(number, scope) == Kind::Awaited {
                // Its task is produced when this command has said that it waits.
                all.push((sent(number) / 2, random, Of::Awaited(number)));
            } else if random.between(0, named) == 0 && is_plain(number) && is_plain(number + 1) {
                let mut ids = vec![format!("t{number}")];
                if random.between(0, 4) == 0 {
                    ids.push(format!("t{}", number + 1));
                    ids.push(format!("nobody{number}"));
                }
                // Some before the task is there.
                let at = sent(number) + random.millis(0, 20_000);
                let at = at.saturating_sub(Duration::from_secs(8));
                all.push((at, random, Of::Ids(ids)));
            }
            if number % (BATCH * batches) == BATCH - 1 {
                let mut random = Random::new(seed, 600_000 + number as u64);
                let at = sent(number) + random.millis(200, 3_000);
                all.push((at, random, Of::Batch(number / BATCH)));
            }
            if number % sweeps == sweeps - 1 {
                let mut random = Random::new(seed, 700_000 + number as u64);
                let at = sent(number) + random.millis(0, 3_000);
                all.push((at, random, Of::Swept));
            }
        }
        all.sort_by_key(|(at, ..)| *at);
        let all = all.into_iter().enumerate();
        all.map(|(number, (at, mut random, of))| Self {
            at,
            // It ends with a letter that is in no number, so that it can be found in what follows from it.
            id: format!("cmd-{number}-"),
            verb: match (random.between(0, 4), &of) {
                (0 | 1, _) | (_, Of::Awaited(_)) => Verb::Cancel,
                (2, _) => Verb::RunNow,
                (_, _) => Verb::Reschedule(random.millis(0, 4_000)),
            },
            of,
        })
        .collect()
    }

    /// Its name and the task that it waits for, if it is one that does.
    pub(crate) fn awaits(&self) -> Option<(String, usize)> {
        match self.of {
            Of::Awaited(number) => Some((self.id.clone(), number)),
            Of::Ids(_)
            | Of::Pending(_)
            | Of::Batch(_)
            | Of::Swept
            | Of::Letters(_)
            | Of::Campaign(_) => None,
        }
    }

    /// The request. Its name comes first, since a selector may say `id`, too.
    fn json(&self) -> String {
        let verb = match self.verb {
            Verb::Cancel => r#""command":"cancel""#.to_owned(),
            Verb::RunNow => r#""command":"run-now""#.to_owned(),
            Verb::Reschedule(after) => {
                format!(r#""command":"reschedule","in":"{}ms""#, after.as_millis())
            }
            Verb::Complete(true) => r#""command":"complete","outcome":"success""#.to_owned(),
            Verb::Complete(false) => {
                r#""command":"complete","outcome":"retryable","error":"later: no""#.to_owned()
            }
            Verb::Replay | Verb::PauseCampaign | Verb::ResumeCampaign | Verb::AbortCampaign => {
                format!(r#""command":"{}""#, self.verb.word())
            }
        };
        let what = match &self.of {
            Of::Ids(ids) => {
                let ids: Vec<String> = ids.iter().map(|id| format!("{id:?}")).collect();
                format!(r#""select":{{"id":[{}]}}"#, ids.join(","))
            }
            Of::Awaited(number) => format!(r#""select":{{"id":"t{number}"}}"#),
            Of::Pending(id) => format!(r#""select":{{"id":{id:?},"attempts":"1"}}"#),
            Of::Batch(batch) => format!(r#""select":{{"header":{{"batch":"{batch}"}}}}"#),
            Of::Swept => format!(r#""select":{{"scene":"{SWEPT}"}}"#),
            Of::Letters(start) => start.json(),
            Of::Campaign(name) => format!(r#""name":"{name}""#),
        };
        let id = &self.id;
        format!(r#"{{"id":"{id}",{verb},{what},"by":"chaos","reason":"chance"}}"#)
    }

    /// The line of the ledger.
    fn line(&self) -> Vec<String> {
        let (kind, value) = match &self.of {
            Of::Ids(ids) => ("id", ids.join(",")),
            Of::Awaited(number) => ("id", format!("t{number}")),
            Of::Pending(id) => ("id", id.clone()),
            Of::Batch(batch) => ("batch", batch.to_string()),
            Of::Swept => ("scene", SWEPT.to_owned()),
            Of::Letters(Start { name, .. }) | Of::Campaign(name) => ("campaign", name.clone()),
        };
        let mut line = vec![
            "command".to_owned(),
            now_micros().to_string(),
            self.id.clone(),
            self.verb.word().to_owned(),
            kind.to_owned(),
            value,
        ];
        if let Of::Letters(start) = &self.of {
            line.extend(start.means.words());
        }
        line
    }
}

// === impl Verb ===

impl Verb {
    /// What it is called, in a command and in the ledger.
    const fn word(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::RunNow => "run-now",
            Self::Reschedule(_) => "reschedule",
            Self::Complete(_) => "complete",
            Self::Replay => "replay",
            Self::PauseCampaign => "pause-campaign",
            Self::ResumeCampaign => "resume-campaign",
            Self::AbortCampaign => "abort-campaign",
        }
    }
}

// === impl Start ===

impl Start {
    /// What a request says of it. A header tells the target which campaign has replayed a task.
    fn json(&self) -> String {
        let Self { name, means, ramp } = self;
        let means = match means {
            Means::Scene(scene) => format!(r#""select":{{"scene":"{scene}"}}"#),
            Means::Fingerprint(print) => format!(r#""select":{{"fingerprint":"{print}"}}"#),
            Means::Died(from, to) => format!(r#""died":"{from}..{to}""#),
        };
        format!(
            r#""name":"{name}",{means},"ramp":{ramp},"failure_rate":0.5,"rate":{LETTERS_IN_A_SECOND},"set_headers":[{{"name":"{CAMPAIGN}","value":"{name}"}}]"#
        )
    }
}

// === impl Means ===

impl Means {
    /// The kind and the value of it, as the ledger has them.
    fn words(&self) -> [String; 2] {
        match self {
            Self::Scene(scene) => ["scene".to_owned(), (*scene).to_owned()],
            Self::Fingerprint(print) => ["fingerprint".to_owned(), print.clone()],
            Self::Died(from, to) => ["died".to_owned(), format!("{from}..{to}")],
        }
    }
}

// === impl Sender ===

impl Sender {
    /// Starts on a thread of its own.
    pub(crate) fn start(self) -> Result<(), Failed> {
        let Self {
            bootstrap,
            topic,
            orders,
            ledger,
            progress,
        } = self;
        let pace = Pace {
            name: "orders",
            bootstrap,
            ledger,
            progress,
            part: |progress| &progress.commands,
        };
        let all = orders.into_iter().map(|order| (order.at, order));
        pace.start(all, move |producer, order| send(producer, &topic, &order))
    }
}

// === impl Later ===

impl Later {
    /// Nothing was said yet.
    pub(crate) fn new(progress: &Arc<Progress>) -> (Self, mpsc::Receiver<Order>) {
        let (sender, receiver) = mpsc::channel();
        let progress = Arc::clone(progress);
        (Self { sender, progress }, receiver)
    }

    /// Says after this time what came of the first attempt of a task.
    pub(crate) fn say(&self, id: String, what: After, after: Duration) {
        let verb = match what {
            After::Success => Verb::Complete(true),
            After::Retry => Verb::Complete(false),
            After::Cancel => Verb::Cancel,
            After::Limit => return,
        };
        let order = self.order(verb, Of::Pending(id));
        let sender = self.sender.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            // Its receiver lives as long as the campaign.
            let _ = sender.send(order);
        });
    }

    /// Asks something of a campaign that replays dead letters.
    pub(crate) fn ask(&self, verb: Verb, of: Of) {
        // As above.
        let _ = self.sender.send(self.order(verb, of));
    }

    /// A command that is sent, at once or later.
    fn order(&self, verb: Verb, of: Of) -> Order {
        let number = FIRST_LATER + self.progress.later.fetch_add(1, Ordering::AcqRel);
        Order {
            at: Duration::ZERO,
            id: format!("cmd-{number}-"),
            verb,
            of,
        }
    }
}

// === impl LaterSender ===

impl LaterSender {
    /// Starts on a thread of its own.
    pub(crate) fn start(self) -> Result<(), Failed> {
        let Self {
            orders,
            bootstrap,
            topic,
            ledger,
            progress,
        } = self;
        let stopped = Arc::clone(&progress);
        let pace = Pace {
            name: "later",
            bootstrap,
            ledger,
            progress,
            part: |progress| &progress.said_later,
        };
        let all = std::iter::from_fn(move || {
            if stopped.stop.load(Ordering::Acquire) {
                return None;
            }
            Some((Duration::ZERO, orders.recv_timeout(TURN).ok()))
        });
        pace.start(all, move |producer, order| match order {
            Some(order) => send(producer, &topic, &order),
            None => {
                producer.poll(Duration::ZERO);
            }
        })
    }
}

/// How long it waits for something to say before it hears what the broker says.
const TURN: Duration = Duration::from_millis(50);

/// Hands one command to the client.
fn send(producer: &BaseProducer<Acks>, topic: &str, order: &Order) {
    let line = order.line();
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    producer.context().write(&line);
    let value = order.json();
    let record =
        Record::with_opaque_to(topic, Box::new(order.id.clone())).payload(value.as_bytes());
    hand(producer, &order.id, record);
}

/// The batch of a task, which a header names, if it is in one.
pub(crate) const fn batch(number: usize) -> Option<usize> {
    if number % 10 == 7 {
        Some(number / BATCH)
    } else {
        None
    }
}

/// Whether a task is of the scene that commands are for.
pub(crate) const fn is_swept(number: usize) -> bool {
    number % TO_ONE_SWEPT == 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_follow_from_the_seed_and_rise() {
        for (tasks, rate, expected) in [(2_000, 15, 100..250), (36_000, 150, 400..800)] {
            let scope = Scope {
                tasks,
                rate,
                has_commands: true,
                is_once: true,
            };
            let orders = Order::all(7, tasks, scope);

            assert_eq!(orders, Order::all(7, tasks, scope));
            assert!(orders.is_sorted_by_key(|order| order.at));
            assert!(expected.contains(&orders.len()), "{}", orders.len());
        }
    }

    #[test]
    fn a_request_names_itself_first() {
        let order = Order {
            at: Duration::ZERO,
            id: "cmd-1-".into(),
            verb: Verb::Reschedule(Duration::from_millis(7)),
            of: Of::Ids(vec!["t1".into(), "t2".into()]),
        };

        assert_eq!(
            order.json(),
            r#"{"id":"cmd-1-","command":"reschedule","in":"7ms","select":{"id":["t1","t2"]},"by":"chaos","reason":"chance"}"#
        );
    }

    #[test]
    fn a_campaign_says_what_it_means_to_retide_and_in_the_ledger() {
        let start = Order {
            at: Duration::ZERO,
            id: "cmd-7-".into(),
            verb: Verb::Replay,
            of: Of::Letters(Start {
                name: "rep-0-".into(),
                means: Means::Died(5, 9),
                ramp: "[1,5]",
            }),
        };

        assert_eq!(
            start.json(),
            r#"{"id":"cmd-7-","command":"replay","name":"rep-0-","died":"5..9","ramp":[1,5],"failure_rate":0.5,"rate":60,"set_headers":[{"name":"chaos-campaign","value":"rep-0-"}],"by":"chaos","reason":"chance"}"#
        );
        let line = start.line();
        assert_eq!(line[3..], ["replay", "campaign", "rep-0-", "died", "5..9"]);
    }
}

//! The checker of the crash campaign, on histories of the simulation: those without a bug are clean, planted bugs are caught.
//!
//! The checker shares nothing with the judge, so that this says of each whether the other one could do without it.

#[path = "../../chaos/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::ops::Range;
use std::panic;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use retide_core::planted::Bug as Core;
use retide_sim::{Bug, export};
use tempfile::TempDir;

/// Histories without a bug.
const CLEAN: u64 = 300;

/// Histories within which a bug has to be caught: most take the first few, some more.
const ROUNDS: [Range<u64>; 3] = [0..40, 40..400, 400..1_200];

/// Tests run beside others; two at a time leave room for them.
const JOBS: usize = 2;

/// Attempts made twice in all histories without a bug: fewer, and there were no false alarms to be had.
const TWICE: u64 = 2_000;

/// Why it does not see whose turn it is.
const EQUAL: &str = "scenes of a campaign have equal weights, and it knows no rates";

/// Why it does not see what is done of a topic that takes no records.
const WRITABLE: &str = "no topic of a campaign refuses a record";

/// Why it does not see whom people are told of.
const ALERTS: &str = "it reads no alerts";

/// Why it does not see what becomes of records that wait for a schema.
const KNOWN: &str = "no record of a campaign has a schema that a registry has to be asked for";

/// Why nothing of commands is seen.
const COMMANDS: &str = "nobody sends commands in a campaign; the judge sees it";

/// Why nothing of replays is seen.
const REPLAYS: &str =
    "nobody replays dead letters in a simulated campaign, only in one on Kafka; the judge sees it";

/// Why nothing of cooldowns is seen.
const REST: &str = "no target of a campaign is known to want rest; the judge sees it";

/// Why it does not see what is held and delivered to a topic.
const HOLDS: &str = "no target of a campaign is a topic; the judge sees it";

/// Why nothing is seen of newcomers that take a place.
const REPLACED: &str = "no scene of a campaign replaces tasks; the judge sees it";

/// Why nothing of breakers by hand is seen.
const FORCED: &str = "nobody forces a breaker in a campaign; the judge sees it";

/// Why nothing of deadlines is seen that stand still.
const DEADLINES: &str = "no task of a campaign has a deadline; the judge sees it";

/// Why nothing of the flood brake is seen.
const FLOODS: &str = "no tasks of a campaign die in numbers; the judge sees it";

/// What the checker does not see, and why: what a simulated campaign does not do, one on Kafka may.
const UNSEEN: [(Bug, &str); 58] = [
    (Bug::Core(Core::LetterTwice), REPLAYS),
    (Bug::Core(Core::CampaignRestarted), REPLAYS),
    (Bug::Core(Core::CampaignBrakeIgnored), REPLAYS),
    (Bug::Core(Core::ReplayOutOfOrder), REPLAYS),
    (Bug::Core(Core::ClaimIgnored), REPLAYS),
    (Bug::Core(Core::CampaignUntold), REPLAYS),
    (Bug::Core(Core::WarnedForgotten), REPLAYS),
    (Bug::Core(Core::ReplayedWarned), REPLAYS),
    (Bug::Core(Core::ForcedIgnored), FORCED),
    (Bug::Core(Core::ForcedForgotten), FORCED),
    (Bug::Core(Core::DeadlineRuns), DEADLINES),
    (Bug::Core(Core::StoppedTimeLost), DEADLINES),
    (Bug::Core(Core::StoodForgotten), DEADLINES),
    (Bug::Core(Core::KeepDueMoved), REPLACED),
    (Bug::Core(Core::ReplacedAttempted), REPLACED),
    (Bug::Core(Core::ReplacedUnwritten), REPLACED),
    (Bug::Core(Core::PayloadForgotten), REPLACED),
    (Bug::Core(Core::BrakeIgnored), FLOODS),
    (Bug::Core(Core::TakenForgotten), COMMANDS),
    (Bug::Core(Core::CommandsUnawaited), COMMANDS),
    (Bug::Core(Core::TakenUnmarked), COMMANDS),
    (Bug::Core(Core::CooldownKept), REST),
    (Bug::Core(Core::CooldownUnheard), REST),
    (Bug::Core(Core::ThrottledCounted), REST),
    (Bug::Core(Core::HoldCallsOnly), HOLDS),
    (Bug::Core(Core::StepRestarted), COMMANDS),
    (Bug::Core(Core::CompletedAfterEnd), COMMANDS),
    (Bug::Core(Core::AppliedKept), COMMANDS),
    (Bug::Core(Core::Unfenced), COMMANDS),
    (Bug::Core(Core::AsideDone), KNOWN),
    (Bug::AsideOvertaken, KNOWN),
    (Bug::Core(Core::PoisonUncounted), ALERTS),
    (Bug::Core(Core::DeadCountedTwice), ALERTS),
    (Bug::Core(Core::DeadOfReleasedKept), ALERTS),
    (Bug::Core(Core::ReturnedAlertKept), ALERTS),
    (Bug::RefusedUntold, ALERTS),
    (Bug::Core(Core::FreshBurst), "it knows no rates"),
    (
        Bug::Core(Core::LimiterResetOnRebalance),
        "it knows no rates",
    ),
    (Bug::Core(Core::SavedSpentTwice), "it knows no rates"),
    (
        Bug::Core(Core::NeverFull),
        "it sees no memory; a lane that is too full keeps every promise to a producer",
    ),
    (Bug::Core(Core::KeysUncounted), "it sees no memory"),
    (
        Bug::Core(Core::ClockBackIgnored),
        "its times are of one clock, and clocks of a campaign are right",
    ),
    (
        Bug::Core(Core::NoEpochCheck),
        "what it breaks is a count of the engine's, which then panics; nothing is wrong on the topics or at the target",
    ),
    (
        Bug::Core(Core::AgendaKept),
        "what starts although its shard leaves is waited for, as far as there is time, and the rest is within what may be repeated",
    ),
    (
        Bug::Core(Core::StalePass),
        "few lanes are paused in a campaign while they are read; the judge sees it within 20 histories",
    ),
    (Bug::Core(Core::WeightIgnored), EQUAL),
    (Bug::Core(Core::TurnKept), EQUAL),
    (
        Bug::Core(Core::BreakerStuckOpen),
        "a campaign has no breakers: what each task must come to is known before",
    ),
    (
        Bug::Core(Core::WallIgnored),
        "nor has it walls: a target refuses what it is to refuse",
    ),
    (
        Bug::Core(Core::DeferralBurnsAttempt),
        "nor are tasks deferred in it for another reason",
    ),
    (
        Bug::Core(Core::DeferralMovesDue),
        "nor does it look at due times that nobody has asked for",
    ),
    (Bug::Core(Core::CalledUnwritable), WRITABLE),
    (Bug::RefusedRepeated, WRITABLE),
    (Bug::ReturnIgnored, WRITABLE),
    (
        Bug::Core(Core::MissingSceneKills),
        "no scene is taken away in a campaign",
    ),
    (
        Bug::Core(Core::EmptyKeyOrdered),
        "a campaign has no empty keys, and it does not ask why a task waited",
    ),
    (
        Bug::KeyOrderReadEarly,
        "a takeover has to meet a transaction that is not over, with a key in it that goes on: 1 of several hundred histories",
    ),
    (
        Bug::ProducerKept,
        "a late request has to meet the next transaction within milliseconds: 1 of several hundred histories",
    ),
];

/// A history to export.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Case {
    /// What is planted in it.
    bug: Bug,
    /// Its seed.
    seed: u64,
}

/// What the checker says of a history.
#[derive(Clone, Debug, Default)]
struct Said {
    /// The lines that failed.
    failed: Vec<String>,
    /// Attempts made twice.
    twice: u64,
}

impl Said {
    /// Whether the checker has caught something: of a process that panics, the code has noticed it itself.
    fn is_caught(&self) -> bool {
        !self.failed.is_empty() && !self.failed.iter().any(|line| line == "exits")
    }
}

/// Exports all of these, and lets one checker look at them.
fn check(jars: &str, cases: &[Case]) -> Vec<Said> {
    let root = TempDir::new().unwrap();
    let dir = |number: usize| root.path().join(number.to_string());
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(Case { bug, seed }) = cases.get(number) else {
                        break;
                    };
                    export(*seed, *bug, &dir(number)).unwrap();
                }
            });
        }
    });
    // More directories than fit on a command line.
    let list: Vec<String> = (0..cases.len())
        .map(|number| format!("{}\n", dir(number).display()))
        .collect();
    let arguments = root.path().join("arguments");
    fs::write(&arguments, list.concat()).unwrap();
    let output = Command::new("java")
        .args(["-XX:TieredStopAtLevel=1", "-cp", &format!("{jars}/*")])
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../chaos/Checker.java"
        ))
        .args(["check", "--list"])
        .arg(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let said = read(&text);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.len(), cases.len(), "{errors}");
    let clean = said.iter().all(|said| said.failed.is_empty());
    assert_eq!(output.status.success(), clean, "{errors}");
    said
}

/// What the checker has said of each history, in order.
fn read(text: &str) -> Vec<Said> {
    let mut all: Vec<Said> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match (&words[..], all.last_mut()) {
            (["==", ..], _) => all.push(Said::default()),
            ([word, name, rest @ ..], Some(said)) => {
                if *word == "FAIL" {
                    said.failed.push((*name).to_owned());
                }
                if let ("duplicates", ["attempts", "made", "twice", twice, ..]) = (*name, rest) {
                    said.twice = twice.parse().unwrap();
                }
            }
            (_, _) => panic!("what is {line}?"),
        }
    }
    all
}

#[test]
fn histories_without_a_bug_are_clean() {
    let Some(jars) = support::jars() else { return };
    let cases: Vec<Case> = (0..CLEAN)
        .map(|seed| Case {
            bug: Bug::None,
            seed,
        })
        .collect();

    let said = check(&jars, &cases);

    let broken: Vec<_> = cases
        .iter()
        .zip(&said)
        .filter(|(_, said)| !said.failed.is_empty())
        .collect();
    assert!(broken.is_empty(), "{broken:?}");
    let twice: u64 = said.iter().map(|said| said.twice).sum();
    assert!(twice > TWICE, "only {twice} attempts were made twice");
}

#[test]
fn the_docs_say_how_many_are_caught() {
    let all = Bug::all().len();
    let (seen, unseen) = (all - UNSEEN.len(), UNSEEN.len());

    let promises = include_str!("../../docs/promises.md").replace('\n', " ");
    let says = format!("of {all} planted bugs it catches {seen}. The other {unseen} are named");
    assert!(
        promises.contains(&says),
        "docs/promises.md is to say {says}"
    );
    let says = format!("{all} planted bugs");
    let building = include_str!("../../docs/building.md");
    assert!(
        building.contains(&says),
        "docs/building.md is to say {says}"
    );
}

#[test]
fn planted_bugs_are_caught() {
    let Some(jars) = support::jars() else { return };
    // Engines that notice their own bug panic; the history says so.
    panic::set_hook(Box::new(|_| {}));
    let seen = |bug: &Bug| !UNSEEN.iter().any(|(unseen, _)| unseen == bug);
    let mut open: Vec<Bug> = Bug::all().into_iter().filter(seen).collect();
    let wanted = open.len();
    let mut table = String::new();

    for seeds in ROUNDS {
        let cases: Vec<Case> = open
            .iter()
            .flat_map(|bug| seeds.clone().map(|seed| Case { bug: *bug, seed }))
            .collect();
        let said = check(&jars, &cases);
        let mut caught: BTreeMap<String, usize> = BTreeMap::new();
        for (case, said) in cases.iter().zip(&said).filter(|(_, said)| said.is_caught()) {
            let name = format!("{:?}", case.bug);
            let times = caught.entry(name.clone()).or_default();
            *times += 1;
            if *times == 1 {
                let lines = said.failed.join(", ");
                let _ = writeln!(table, "{name}: by seed {}: {lines}", case.seed);
            }
        }
        open.retain(|bug| !caught.contains_key(&format!("{bug:?}")));
    }

    let _ = panic::take_hook();
    for (bug, why) in UNSEEN {
        let _ = writeln!(table, "{bug:?}: not seen: {why}");
    }
    let _ = io::stderr().write_all(table.as_bytes());
    assert_eq!(open, [], "{table}");
    assert!(wanted >= 10, "{table}");
}

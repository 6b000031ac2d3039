//! The checker, checked: histories that break one promise each are caught by its line and no other, and a clean one passes.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// The ledgers of a campaign that never happened, by file: lines of fields.
#[derive(Clone, Default)]
struct History(BTreeMap<&'static str, Vec<Vec<String>>>);

/// A task of it.
struct Task {
    id: &'static str,
    outcome: &'static str,
    attempts: i64,
    delay_ms: i64,
    /// If it goes after those of its key that are before it.
    key: &'static str,
}

/// A change to a history that breaks one promise.
struct Breach {
    name: &'static str,
    line: &'static str,
    change: fn(&mut History),
}

const GENERATOR: &str = "generator.tsv";
const COMMANDS: &str = "commands.tsv";
const ANSWERS: &str = "answers.tsv";
const HOLDS: &str = "holds.tsv";
const BREAKERS: &str = "breakers.tsv";
const TARGET: &str = "target.tsv";
const FAULTS: &str = "faults.tsv";
const OFFSETS: &str = "offsets.tsv";
const TOPICS: &str = "topics.tsv";

/// When the campaign began, in microseconds: any time will do.
const START: i64 = 1_700_000_000_000_000;
/// When campaigns replay dead letters.
const REPLAYS: i64 = START + 400_000_000;
/// Between two tasks.
const APART: i64 = 10_000_000;
/// Waits before the second and later attempts.
const BACKOFF_MS: [i64; 3] = [500, 1_700, 6_000];

/// The tasks, each ten seconds after the one before.
const TASKS: [Task; 5] = [
    task("a", "delivered", 1, 0),
    task("b", "delivered", 2, 0),
    Task {
        key: "k",
        ..task("c", "dead", 4, 0)
    },
    Task {
        key: "k",
        ..task("d", "dead", 1, 0)
    },
    task("e", "delivered", 1, 1_000),
];

const fn task(id: &'static str, outcome: &'static str, attempts: i64, delay_ms: i64) -> Task {
    Task {
        id,
        outcome,
        attempts,
        delay_ms,
        key: "",
    }
}

// === impl History ===

impl History {
    /// A campaign in which nothing is wrong: five tasks, and one process that was killed.
    fn clean() -> Self {
        let mut history = Self::default();
        for (key, value) in [
            ("prefix", "chaos"),
            ("processes", "2"),
            ("concurrency", "2"),
            ("backoff_ms", "500,1700,6000"),
        ] {
            history.add("campaign.tsv", &[&key, &value]);
        }
        for (index, task) in TASKS.iter().enumerate() {
            history.task(index as i64, task);
        }
        let (killed, back) = (START + 5_000_000, START + 6_000_000);
        history.add(FAULTS, &[&"begin", &1, &killed, &"kill", &"p1", &""]);
        history.add(FAULTS, &[&"end", &1, &back]);
        history.add(
            FAULTS,
            &[&"exit", &(START + 60_000_000), &"p0", &"sigterm", &0],
        );
        history.sample(START + 1_000_000, "chaos.tasks", 1);
        history.sample(START + 60_000_000, "chaos.tasks", 5);
        history.sample(START + 60_000_000, "chaos.delay.now", 100);
        history
    }

    /// Everything that belongs to one task.
    fn task(&mut self, index: i64, task: &Task) {
        let Task {
            id,
            outcome,
            attempts,
            delay_ms,
            key,
        } = task;
        let (sent, bytes) = (START + index * APART, format!("1:{id}"));
        self.add(
            GENERATOR,
            &[
                &"intent", &sent, id, outcome, attempts, delay_ms, &bytes, key,
            ],
        );
        self.add(GENERATOR, &[&"ack", &(sent + 4_000), id, &0, &index]);
        let origin = format!("chaos.tasks/0/{index}");
        let mut at = sent + delay_ms * 1_000 + 6_000;
        self.record("tasks", index, sent, (id, "", "", 0, 0), &bytes);
        for attempt in 1..=*attempts {
            let steady = at - START;
            let due = (at - 2_000) / 1_000;
            self.add(
                TARGET,
                &[&at, &steady, id, &attempt, &due, id, &bytes, &origin, &"?"],
            );
            if attempt < *attempts {
                let place = index * 10 + attempt;
                let parked = (*id, "", "", attempt + 1, attempt);
                self.record("delay.now", place, at + 50_000, parked, &bytes);
                self.record(
                    "events",
                    place,
                    at + 50_000,
                    (id, "", "failed", 0, 0),
                    "0:e",
                );
                at += BACKOFF_MS[attempt as usize - 1] * 1_000 + 60_000;
            }
        }
        self.end(index, at + 50_000, (id, outcome), &bytes);
    }

    /// Two tasks that are cancelled besides: one that waits, by the batch it is in, and one by a command that stood before it was there.
    fn command(&mut self) {
        let sent = START + 60_000_000;
        let cancel = (COMMANDS, "cancel");
        self.asked(0, sent + 2_000_000, cancel, ("batch", "7"), "done=1;ids=0;");
        self.cancelled(6, sent, ("f", "7"), "cmd-0-");
        let ids = ("id", "g,nobody");
        self.asked(1, sent + 3_000_000, cancel, ids, "done=0;ids=2;");
        self.cancelled(7, sent + 4_000_000, ("g", ""), "cmd-1-");
    }

    /// A command, and what it says that it has done.
    fn asked(
        &mut self,
        number: i64,
        at: i64,
        (file, verb): (&'static str, &str),
        (kind, value): (&str, &str),
        counts: &str,
    ) {
        let name = format!("cmd-{number}-");
        self.add(file, &[&"command", &at, &name, &verb, &kind, &value]);
        self.add(file, &[&"ack", &(at + 3_000), &name, &0, &number]);
        for (offset, stage, counts, later) in [(0, "request", "", 0), (1, "ended", counts, 100_000)]
        {
            let said = (&*name, counts, stage, 0, 0);
            self.record("commands", number * 2 + offset, at + later, said, "1:c");
        }
    }

    /// A task that would wait for an hour, and is cancelled.
    fn cancelled(&mut self, index: i64, sent: i64, (id, batch): (&str, &str), by: &str) {
        let bytes = format!("1:{id}");
        let intent: [&dyn ToString; 10] = [
            &"intent",
            &sent,
            &id,
            &"delivered",
            &1,
            &3_600_000,
            &bytes,
            &"",
            &batch,
            &"chaos",
        ];
        self.add(GENERATOR, &intent);
        self.add(GENERATOR, &[&"ack", &(sent + 4_000), &id, &0, &index]);
        self.record("tasks", index, sent, (id, "", "", 0, 0), &bytes);
        self.record("delay.1h", index, sent + 50_000, (id, "", "", 1, 1), &bytes);
        self.end(index, sent + 2_050_000, (id, "cancelled"), &bytes);
        let event: &[(usize, &str)] = &[(1, "chaos.events"), (5, id)];
        self.find(TOPICS, event)[0][10] = by.into();
    }

    /// Two tasks of which a target says later what came of them: of one by a command, of the other nothing within its limit.
    fn later(&mut self) {
        let sent = START + 70_000_000;
        let said = (ANSWERS, "complete");
        self.asked(2, sent + 2_000_000, said, ("id", "l"), "done=1;ids=1;");
        for (index, id, attempts, limit_ms) in [(10, "l", 1, 3_600_000), (11, "m", 2, 5_000)] {
            let bytes = self.special(index, sent, (id, attempts), ("chaos-later", "", "later"));
            self.seen((id, 1), sent + 6_000, &bytes, (index, limit_ms));
            let pending = (id, "", "pending", 0, 0);
            self.record("events", 100 + index, sent + 50_000, pending, "0:e");
            let parked = (id, "", "", 1, 1);
            self.record("delay.5s", index, sent + 50_000, parked, &bytes);
            if attempts > 1 {
                self.seen((id, 2), sent + 7_000_000, &bytes, (index, 0));
                self.end(index, sent + 7_050_000, (id, "delivered"), &bytes);
            } else {
                self.end(index, sent + 2_150_000, (id, "delivered"), &bytes);
            }
        }
        let event = &[(1, "chaos.events"), (5, "l"), (7, "delivered")];
        self.find(TOPICS, event)[0][10] = "cmd-2-".into();
    }

    /// A task that is produced twice.
    fn twice(&mut self) {
        let sent = START + 80_000_000;
        let bytes = self.special(20, sent, ("n", 1), ("chaos-once", "", "0"));
        self.record("tasks", 21, sent + 1_000_000, ("n", "", "", 0, 0), "1:x");
        self.add(GENERATOR, &[&"again", &(sent + 1_004_000), &"n", &0, &21]);
        self.seen(("n", 1), sent + 6_000, &bytes, (20, 0));
        self.end(20, sent + 50_000, ("n", "delivered"), &bytes);
        let told = ("n", "chaos.tasks/0/21", "duplicate", 0, 0);
        self.record("events", 201, sent + 1_050_000, told, "0:e");
    }

    /// A task that is held by its key, and one by its scene.
    fn hold(&mut self) {
        let sent = START + 90_000_000;
        for (index, id, ward) in [(30, "o", "w1"), (31, "p", "")] {
            let bytes = self.special(index, sent, (id, 1), ("chaos-held", ward, "0"));
            self.seen((id, 1), sent + 21_000_000, &bytes, (index, 0));
            let due = (sent / 1_000).to_string();
            self.find(TARGET, &[(2, id)])[0][4] = due;
            self.end(index, sent + 21_050_000, (id, "delivered"), &bytes);
        }
        let (asked, told) = (sent - 5_000_000, sent - 2_000_000);
        let (released, gone) = (sent + 15_000_000, sent + 16_000_000);
        for (name, kind, value) in [("h0", "key", "w1"), ("h1", "scene", "chaos-held")] {
            self.add(
                HOLDS,
                &[
                    &"hold", &asked, &name, &kind, &value, &told, &0, &released, &gone, &0,
                ],
            );
        }
    }

    /// A task that is out of attempts after two, and goes on when it is let go.
    fn exhaust(&mut self) {
        let sent = START + 120_000_000;
        self.add("campaign.tsv", &[&"backoff_ms chaos-spent", &"500"]);
        let bytes = self.special(40, sent, ("q", 3), ("chaos-spent", "", "2"));
        for (attempt, at) in [(1, 6_000), (2, 600_000), (3, 11_000_000)] {
            self.seen(("q", attempt), sent + at, &bytes, (40, 0));
            let parked = ("q", "", "", attempt + 1, attempt);
            if attempt < 3 {
                let place = 400 + attempt;
                self.record("delay.now", place, sent + at + 50_000, parked, &bytes);
            }
        }
        let held = ("q", "", "held", 0, 0);
        self.record("events", 401, sent + 650_000, held, "0:e");
        self.end(40, sent + 11_050_000, ("q", "delivered"), &bytes);
        for at in [-5_000_000, 5_000_000] {
            let (asked, gone) = (sent + at, sent + at + 1_000_000);
            self.add(HOLDS, &[&"release", &asked, &"exhausted/q", &gone, &0]);
        }
    }

    /// Three tasks of a target that asks for rest when it sees the first one; the others come meanwhile, and are attempted after it.
    fn rest(&mut self) {
        let sent = START + 150_000_000;
        self.add("campaign.tsv", &[&"backoff_ms chaos-rested", &"0"]);
        for (index, id) in [(50, "r"), (51, "s"), (52, "t")] {
            let at = sent + (index - 50) * 2_000_000;
            let bytes = self.special(index, at, (id, 1), ("chaos-rested", "", "rested"));
            let mut seen = at + 6_000;
            if id == "r" {
                self.seen((id, 1), seen, &bytes, (index, 0));
                self.find(TARGET, &[(2, id)])[0][9] = "9000".into();
                let parked = (id, "", "", 2, 1);
                self.record("delay.5s", index, seen + 50_000, parked, &bytes);
            }
            seen = sent + 10_000_000;
            let number = if id == "r" { 2 } else { 1 };
            self.seen((id, number), seen, &bytes, (index, 0));
            self.end(index, seen + 50_000, (id, "delivered"), &bytes);
        }
    }

    /// Tasks of a target that people do not want called, that they want called though it is down, and whose breakers they reset.
    fn force(&mut self) {
        let sent = START + 200_000_000;
        for (what, from, to) in [("open", -5, 15), ("close", 20, 30), ("reset", 40, 50)] {
            let (asked, told) = (sent + from * 1_000_000, sent + from * 1_000_000 + 1_000_000);
            let (over, gone) = (sent + to * 1_000_000, sent + to * 1_000_000 + 500_000);
            self.add(BREAKERS, &[&what, &asked, &told, &0, &over, &gone]);
        }
        let after_close = ["v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7"];
        let after_reset = ["w0", "w1", "w2", "w3", "w4", "w5", "w6", "w7"];
        let at_once = after_close.iter().map(|id| (*id, 23_000_000, 6_000));
        let at_once = at_once.chain(after_reset.iter().map(|id| (*id, 43_000_000, 6_000)));
        let waits = [("u", 0, 21_000_000)].into_iter();
        for (number, (id, at, after)) in waits.chain(at_once).enumerate() {
            let (index, at) = (60 + number as i64, sent + at + number as i64 * 1_000);
            let bytes = self.special(index, at, (id, 1), ("chaos-forced", "", "forced"));
            self.seen((id, 1), at + after, &bytes, (index, 0));
            self.find(TARGET, &[(2, id)])[0][4] = (at / 1_000).to_string();
            self.end(index, at + after + 50_000, (id, "delivered"), &bytes);
        }
    }

    /// Two tasks whose deadlines stand still while they are held: one is delivered later than it would have lived, one expires.
    fn stop(&mut self) {
        let sent = START + 260_000_000;
        let (asked, told) = (sent - 5_000_000, sent - 2_000_000);
        let (released, gone) = (sent + 15_000_000, sent + 16_000_000);
        let hold: [&dyn ToString; 10] = [
            &"hold",
            &asked,
            &"s0",
            &"scene",
            &"chaos-stopped",
            &told,
            &0,
            &released,
            &gone,
            &0,
        ];
        self.add(HOLDS, &hold);
        for (index, id, ended, outcome) in [
            (90, "x", 25_000_000, "delivered"),
            (91, "y", 36_000_000, "expired"),
        ] {
            let bytes = self.special(index, sent, (id, 1), ("chaos-stopped", "", "0"));
            let parked = (id, "", "", 1, 1);
            self.record("delay.10s", index, sent + 50_000, parked, &bytes);
            self.seen((id, 1), sent + 24_000_000, &bytes, (index, 0));
            self.find(TARGET, &[(2, id)])[0][4] = (sent / 1_000).to_string();
            self.end(index, sent + ended, (id, outcome), &bytes);
            self.find(GENERATOR, &[(0, "intent"), (2, id)])[0][3] = outcome.into();
        }
    }

    /// Two tasks in whose place a later record is soon, of which one has the schedule of the first record.
    fn replace(&mut self) {
        let sent = START + 300_000_000;
        for (index, id, scene, due) in [
            (80, "i", "chaos-latest", 1_000),
            (82, "j", "chaos-kept", 6_000),
        ] {
            let (first, second) = (index, index + 1);
            let bytes = self.special(first, sent, (id, 1), (scene, "", "0"));
            self.find(GENERATOR, &[(0, "intent"), (2, id)])[0][5] = "6000".into();
            let parked = (id, "", "", 1, 1);
            self.record("delay.5s", index, sent + 50_000, parked, &bytes);
            let (again, came) = (format!("2:{id}"), sent + 1_000_000);
            self.add(GENERATOR, &[&"round", &came, &id, &0, &again]);
            let offset = second.to_string();
            self.add(GENERATOR, &[&"again", &(came + 4_000), &id, &0, &offset]);
            self.record("tasks", second, came, (id, "", "", 0, 0), &again);
            self.record("delay.now", second + 100, came + 50_000, parked, &again);
            let place = |offset: i64| format!("chaos.tasks/0/{offset}");
            let told = (id, &*place(second), "replaced", 0, 0);
            self.record("events", 800 + index, came + 50_000, told, "0:e");
            let at = sent + due * 1_000 + 60_000;
            self.seen((id, 1), at, &again, (second, 0));
            self.find(TARGET, &[(2, id)])[0][4] = (sent / 1_000 + due).to_string();
            self.end(second, at + 50_000, (id, "delivered"), &again);
            for (fields, origin) in [
                ([(1, "chaos.delay.5s"), (5, id)], first),
                ([(1, "chaos.delay.now"), (5, id)], second),
                ([(7, "replaced"), (5, id)], first),
                ([(1, "chaos.callbacks"), (5, id)], second),
            ] {
                self.find(TOPICS, &fields)[0][10] = place(origin);
            }
        }
    }

    /// Three dead letters that a campaign replays, of which one dies again and is replayed by another one, which means all of them; and one
    /// that a campaign means which is paused and aborted, so that a later one leaves it alone.
    fn replay(&mut self) {
        for (index, id) in [(110, "aa"), (111, "bb"), (112, "cc"), (120, "ee")] {
            let sent = REPLAYS + (index - 112) * 1_000_000;
            let scene = match id {
                "ee" => "chaos-swept",
                _ => "chaos-ordered",
            };
            let bytes = self.special(index, sent, (id, 1), (scene, "", "x"));
            self.find(GENERATOR, &[(0, "intent"), (2, id)])[0][3] = "dead".into();
            self.seen((id, 1), sent + 6_000, &bytes, (index, 0));
            self.end(index, sent + 50_000, (id, "dead"), &bytes);
            self.bears(&["", "", scene, "print"]);
        }
        self.begins(0, 10, ("scene", "chaos-ordered"));
        self.says(0, 11, "state=running;replayed=0;partitions=0,0,113;");
        self.enters(("aa", 1), 0, 12);
        self.answers(("aa", 1), 0, 12, "200");
        self.ends(("aa", "delivered"), 0, 12);
        self.enters(("bb", 1), 0, 13);
        self.answers(("bb", 1), 0, 13, "400");
        self.ends(("bb", "dead"), 0, 13);
        self.bears(&[&header(0), "1", "chaos-ordered", "print"]);
        self.says(0, 13, "state=running;replayed=2;partitions=0,112,113;");
        self.asks(0, 14, "pause-campaign");
        self.says(0, 15, "state=paused;replayed=2;partitions=0,112,113;");
        self.asks(0, 17, "resume-campaign");
        self.enters(("cc", 1), 0, 18);
        self.says(0, 18, "state=running;replayed=3;partitions=0,113,113;");
        self.answers(("cc", 1), 0, 18, "503");
        let at = REPLAYS + 18_050_000;
        self.record("events", 1_500, at, ("cc", "", "failed", 0, 0), "0:e");
        let parked = ("cc", "", "", 2, 1);
        self.record("delay.now", 1_500, at, parked, "1:cc");
        self.bears(&[&header(0), "1", "", ""]);
        self.answers(("cc", 2), 0, 20, "200");
        self.ends(("cc", "delivered"), 0, 20);
        self.says(
            0,
            21,
            "state=done;replayed=3;partitions=0,113,113;out=0;came_back=4;failed=2;delivered=2;dead=1;",
        );

        let died = format!("{}..{}", (REPLAYS - 3_000_000) / 1_000, millis(29));
        self.begins(1, 30, ("died", &died));
        self.says(1, 31, "state=running;replayed=0;partitions=0,0,114;");
        self.enters(("bb", 2), 1, 32);
        self.answers(("bb", 1), 1, 32, "200");
        self.ends(("bb", "delivered"), 1, 32);
        self.says(1, 32, "state=running;replayed=1;partitions=0,114,114;");
        self.says(
            1,
            33,
            "state=done;replayed=1;replayed-before=3;partitions=0,114,114;out=0;came_back=1;delivered=1;",
        );

        self.begins(2, 40, ("scene", "chaos-swept"));
        self.says(2, 41, "state=running;replayed=0;partitions=0,0,121;");
        self.asks(2, 42, "pause-campaign");
        self.says(2, 43, "state=paused;replayed=0;partitions=0,0,121;");
        let died = format!("{}..{}", millis(8), millis(9));
        self.begins(3, 45, ("died", &died));
        self.says(3, 46, "state=running;replayed=0;partitions=0,0,121;");
        self.says(
            3,
            50,
            "state=done;replayed=0;in-campaign=1;partitions=0,121,121;out=0;",
        );
        self.says(2, 52, "state=paused;replayed=0;partitions=0,0,121;");
        self.asks(2, 55, "abort-campaign");
        self.says(2, 56, "state=aborted;replayed=0;partitions=0,0,121;out=0;");
        self.marks("110,111,112,113");
    }

    /// Somebody wants a campaign that means these dead letters.
    fn begins(&mut self, campaign: i64, at: i64, (means, what): (&str, &str)) {
        self.asks(campaign, at, "replay");
        let line = self.0.get_mut(ANSWERS).unwrap();
        let request = line.iter_mut().rfind(|line| line[0] == "command").unwrap();
        request.extend([means.to_owned(), what.to_owned()]);
    }

    /// Somebody wants something of a campaign.
    fn asks(&mut self, campaign: i64, at: i64, verb: &str) {
        let at = REPLAYS + at * 1_000_000;
        let number = 1_000 + (at - REPLAYS) / 1_000_000;
        let name = ("campaign", &*format!("rep-{campaign}-"));
        self.asked(number, at, (ANSWERS, verb), name, "done=0;ids=0;");
    }

    /// There is a record of a campaign, which says this.
    fn says(&mut self, campaign: i64, at: i64, said: &str) {
        let (name, offset) = (format!("rep-{campaign}-"), 3_000 + at);
        let time = REPLAYS + at * 1_000_000;
        self.record(
            "commands",
            offset,
            time,
            (&name, said, "campaign", 0, 0),
            "1:c",
        );
        let place = header(campaign).split_once('/').unwrap().1.to_owned();
        self.0.get_mut(TOPICS).unwrap().last_mut().unwrap()[10] = place;
    }

    /// A campaign has replayed a dead letter, the how manieth of its task.
    fn enters(&mut self, (id, times): (&str, i64), campaign: i64, at: i64) {
        let (time, times) = (REPLAYS + at * 1_000_000, times.to_string());
        let bytes = format!("1:{id}");
        self.record("delay.now", 1_000 + at, time, (id, "", "", 1, 0), &bytes);
        self.bears(&[&header(campaign), &times, "", ""]);
        self.record(
            "events",
            2_000 + at,
            time,
            (id, "", "replayed", 0, 0),
            "0:e",
        );
        self.bears(&[&format!("rep-{campaign}-"), &times, "", ""]);
    }

    /// An attempt of a task that a campaign has replayed, and what the target says.
    fn answers(&mut self, (id, number): (&str, i64), campaign: i64, at: i64, status: &str) {
        let time = REPLAYS + at * 1_000_000 + 6_000;
        self.seen((id, number), time, &format!("1:{id}"), (0, 0));
        let line = self.0.get_mut(TARGET).unwrap().last_mut().unwrap();
        line[8] = status.into();
        line.push(format!("rep-{campaign}-"));
    }

    /// The end of such a task; the dead letter that it may leave comes behind the ones before.
    fn ends(&mut self, (id, outcome): (&str, &str), campaign: i64, at: i64) {
        let time = REPLAYS + at * 1_000_000 + 50_000;
        self.end(100 + campaign + at, time, (id, outcome), &format!("1:{id}"));
    }

    /// The last record is of a task that was replayed so, or a dead letter of that scene and fingerprint.
    fn bears(&mut self, words: &[&str; 4]) {
        let line = self.0.get_mut(TOPICS).unwrap().last_mut().unwrap();
        line.extend(words.iter().map(|word| (*word).to_owned()));
    }

    /// These dead letters are marked as replayed.
    fn marks(&mut self, offsets: &str) {
        self.record("order", 7, REPLAYS, ("", offsets, "mark", 0, 0), "1:m");
        self.0.get_mut(TOPICS).unwrap().last_mut().unwrap()[10] = "0/0".into();
    }

    /// What the records of a campaign say that say the first of these, with the second in its place.
    fn retell(&mut self, campaign: &str, said: &str, instead: &str) {
        let mut count = 0;
        for line in self.find(TOPICS, &[(5, campaign), (7, "campaign")]) {
            count += usize::from(line[6].contains(said));
            line[6] = line[6].replace(said, instead);
        }
        assert!(count > 0, "nothing says {said}");
    }

    /// The lines of what was told or written of a task by a campaign are taken away.
    fn forget(&mut self, id: &str, header: &str) {
        let name = header.split('/').next().unwrap();
        let lines = self.0.get_mut(TOPICS).unwrap();
        lines.retain(|line| {
            let of = line.get(12).map_or("", String::as_str);
            line[5] != id || (of != header && of != name)
        });
    }

    /// A task of a scene of its own, without what becomes of it; gives what identifies its payload.
    fn special(
        &mut self,
        index: i64,
        sent: i64,
        (id, attempts): (&str, i64),
        (scene, ward, does): (&str, &str, &str),
    ) -> String {
        let bytes = format!("1:{id}");
        let intent: [&dyn ToString; 12] = [
            &"intent",
            &sent,
            &id,
            &"delivered",
            &attempts,
            &0,
            &bytes,
            &"",
            &"",
            &scene,
            &ward,
            &does,
        ];
        self.add(GENERATOR, &intent);
        self.add(GENERATOR, &[&"ack", &(sent + 4_000), &id, &0, &index]);
        self.record("tasks", index, sent, (id, "", "", 0, 0), &bytes);
        bytes
    }

    /// An attempt of such a task, and the limit of an answer that is given later.
    fn seen(
        &mut self,
        (id, number): (&str, i64),
        at: i64,
        bytes: &str,
        (index, limit_ms): (i64, i64),
    ) {
        let (steady, due) = (at - START, (at - 2_000) / 1_000);
        let origin = format!("chaos.tasks/0/{index}");
        let attempt: [&dyn ToString; 11] = [
            &at, &steady, &id, &number, &due, &id, &bytes, &origin, &"?", &0, &limit_ms,
        ];
        self.add(TARGET, &attempt);
    }

    /// An attempt of a task that is to have none.
    fn attempt(&mut self, id: &str, at: i64) {
        let (steady, due, bytes) = (at - START, (at - 2_000) / 1_000, format!("1:{id}"));
        self.add(
            TARGET,
            &[&at, &steady, &id, &1, &due, &id, &bytes, &"", &"?"],
        );
    }

    /// The end of a task: callback, event and, if it is a bad one, dead letter.
    fn end(&mut self, index: i64, at: i64, (id, outcome): (&str, &str), bytes: &str) {
        self.record("callbacks", index, at, (id, outcome, "", 0, 0), "0:c");
        self.record("events", index * 10, at, (id, "", outcome, 0, 0), "0:e");
        if !["delivered", "cancelled"].contains(&outcome) {
            self.record("dead-letters", index, at, (id, outcome, "", 1, 0), bytes);
        }
    }

    /// A committed record.
    fn record(
        &mut self,
        topic: &str,
        offset: i64,
        at: i64,
        (id, outcome, event, attempt, hops): (&str, &str, &str, i64, i64),
        bytes: &str,
    ) {
        let (topic, at) = (format!("chaos.{topic}"), at / 1_000);
        self.add(
            TOPICS,
            &[
                &"C", &topic, &0, &offset, &at, &id, &outcome, &event, &attempt, &hops, &"", &bytes,
            ],
        );
    }

    /// A sample of the group's offsets.
    fn sample(&mut self, at: i64, topic: &str, next: i64) {
        self.add(OFFSETS, &[&at, &topic, &0, &next]);
    }

    /// Adds a line.
    fn add(&mut self, file: &'static str, fields: &[&dyn ToString]) {
        let line = fields.iter().map(|field| field.to_string()).collect();
        self.0.entry(file).or_default().push(line);
    }

    /// The lines of a file in which all of these fields are as said.
    fn find(&mut self, file: &str, fields: &[(usize, &str)]) -> Vec<&mut Vec<String>> {
        let lines = self.0.get_mut(file).unwrap().iter_mut();
        let found: Vec<_> = lines
            .filter(|line| fields.iter().all(|(at, value)| line[*at] == *value))
            .collect();
        assert!(!found.is_empty(), "nothing to break");
        found
    }

    /// Takes those lines away.
    fn remove(&mut self, file: &str, fields: &[(usize, &str)]) {
        let found: Vec<Vec<String>> = self
            .find(file, fields)
            .into_iter()
            .map(|line| line.clone())
            .collect();
        let lines = self.0.get_mut(file).unwrap();
        lines.retain(|line| !found.contains(line));
    }

    /// The attempt with this number of a task is seen again, so much later.
    fn repeat(&mut self, id: &str, number: &str, later: i64) {
        let mut line = self.find(TARGET, &[(2, id), (3, number)])[0].clone();
        for (field, by) in [(0, later), (1, later), (4, later / 1_000)] {
            line[field] = (line[field].parse::<i64>().unwrap() + by).to_string();
        }
        self.0.get_mut(TARGET).unwrap().push(line);
    }

    /// The process is given up instead of killed, makes one attempt until it hears of it, and then so many are made again.
    fn cut(&mut self, again: i64) {
        self.find(FAULTS, &[(0, "begin")])[0][3] = "cut".into();
        self.find(FAULTS, &[(0, "end")])[0][2] = (START + 10_200_000).to_string();
        for time in 0..again {
            self.repeat("a", "1", 10_300_000 + time * 1_000);
        }
    }

    /// A task is attempted again when the next one of its key has started, after a fault of this kind.
    fn overtake(&mut self, kind: &str) {
        let at = START + 30_000_000;
        self.add(FAULTS, &[&"begin", &2, &at, &kind, &"p0", &""]);
        self.add(FAULTS, &[&"end", &2, &(at + 1_000)]);
        self.repeat("c", "4", 2_000_000);
    }

    /// It promised less.
    fn at_least_once(&mut self) {
        self.add("campaign.tsv", &[&"guarantee", &"at_least_once"]);
    }

    /// Writes the ledgers.
    fn write(&self, dir: &Path) {
        fs::create_dir(dir).unwrap();
        for (file, lines) in &self.0 {
            let text: Vec<String> = lines.iter().map(|line| line.join("\t") + "\n").collect();
            fs::write(dir.join(file), text.concat()).unwrap();
        }
    }
}

/// One line broken at a time.
const BREACHES: [Breach; 94] = [
    breach("a task without an end", "lost", |history| {
        history.remove(TOPICS, &[(1, "chaos.callbacks"), (5, "a")]);
        history.remove(TOPICS, &[(1, "chaos.events"), (5, "a")]);
        history.0.remove(OFFSETS);
    }),
    breach("an end of nobody's task", "phantom", |history| {
        history.end(9, START, ("z", "delivered"), "1:z");
    }),
    breach("an end that came twice", "terminals", |history| {
        history.end(9, START + 50_000, ("a", "delivered"), "1:a");
    }),
    breach("two different ends", "conflicting", |history| {
        history.end(9, START + 50_000, ("a", "dead"), "1:a");
    }),
    breach("another end than it must have", "conflicting", |history| {
        history.find(TOPICS, &[(1, "chaos.callbacks"), (5, "c")])[0][6] = "expired".into();
        history.find(TOPICS, &[(1, "chaos.events"), (7, "dead"), (5, "c")])[0][7] =
            "expired".into();
    }),
    breach("an end without its event", "callbacks", |history| {
        history.remove(TOPICS, &[(1, "chaos.events"), (5, "a")]);
    }),
    breach(
        "a dead task without its letter",
        "dead-letters",
        |history| {
            history.remove(TOPICS, &[(1, "chaos.dead-letters"), (5, "c")]);
        },
    ),
    breach("a letter of a delivered task", "dead-letters", |history| {
        history.record("dead-letters", 9, START, ("a", "dead", "", 1, 0), "1:a");
    }),
    breach("an attempt before its due time", "early", |history| {
        let mut lines = history.find(TARGET, &[(2, "e")]);
        let line = &mut *lines[0];
        line[4] = (line[0].parse::<i64>().unwrap() / 1_000 + 5).to_string();
    }),
    breach("an attempt before its delay", "early", |history| {
        shift(history.find(TARGET, &[(2, "e")])[0], -500_000);
    }),
    breach("an attempt before its backoff", "early", |history| {
        shift(history.find(TARGET, &[(2, "b"), (3, "2")])[0], -300_000);
    }),
    breach(
        "an attempt before its target wants it",
        "early",
        |history| {
            let mut lines = history.find(TARGET, &[(2, "b"), (3, "1")]);
            lines[0].push("10000".into());
        },
    ),
    breach("attempts in the wrong order", "order", |history| {
        history.find(TARGET, &[(2, "b"), (3, "1")])[0][3] = "9".into();
        history.find(TARGET, &[(2, "b"), (3, "2")])[0][3] = "1".into();
        history.find(TARGET, &[(2, "b"), (3, "9")])[0][3] = "2".into();
    }),
    breach("an attempt too many", "beyond", |history| {
        history.repeat("a", "1", 1_000_000);
        history.find(TARGET, &[(2, "a")])[1][3] = "2".into();
    }),
    breach("an attempt too few", "missing", |history| {
        history.remove(TARGET, &[(2, "c"), (3, "3")]);
    }),
    breach("an attempt twice for no reason", "duplicates", |history| {
        history.repeat("e", "1", 100_000);
    }),
    breach("an attempt twice by a storm", "duplicates", |history| {
        history.find(FAULTS, &[(0, "begin")])[0][3] = "storm".into();
        history.repeat("a", "1", 7_000_000);
    }),
    breach("too many attempts twice", "duplicates", |history| {
        for time in 1..=4 {
            history.repeat("a", "1", 7_000_000 + time * 1_000);
        }
    }),
    breach(
        "too many attempts twice by a cut",
        "duplicates",
        |history| {
            history.cut(4);
        },
    ),
    breach("an attempt after its end", "repeated", |history| {
        let at = START + 45_000_000;
        history.add(FAULTS, &[&"begin", &2, &at, &"kill", &"p0", &""]);
        history.add(FAULTS, &[&"end", &2, &(at + 1_000)]);
        history.repeat("a", "1", 46_000_000);
    }),
    breach("an offset before its consequence", "committed", |history| {
        history.sample(START + 20_100_000, "chaos.delay.now", 22);
    }),
    breach("an offset that went back", "backwards", |history| {
        history.sample(START + 61_000_000, "chaos.tasks", 4);
    }),
    breach("other bytes at the target", "bytes", |history| {
        history.find(TARGET, &[(2, "b"), (3, "2")])[0][6] = "2:b".into();
    }),
    breach("other bytes in a dead letter", "bytes", |history| {
        history.find(TOPICS, &[(1, "chaos.dead-letters"), (5, "d")])[0][11] = "2:d".into();
    }),
    breach("another idempotency key", "keys", |history| {
        history.find(TARGET, &[(2, "b"), (3, "2")])[0][5] = "b-2".into();
    }),
    breach(
        "a task before the end of one of its key",
        "turns",
        |history| {
            let ended = (START + 31_000_000) / 1_000;
            history.find(TOPICS, &[(1, "chaos.callbacks"), (5, "c")])[0][4] = ended.to_string();
        },
    ),
    breach(
        "a task after the start of one of its key",
        "turns",
        |history| history.overtake("kill"),
    ),
    breach("a command without an end", "commanded", |history| {
        history.command();
        history.remove(
            TOPICS,
            &[(1, "chaos.commands"), (5, "cmd-0-"), (7, "ended")],
        );
    }),
    breach("a command that ends twice", "counted", |history| {
        history.command();
        let again = ("cmd-0-", "done=1;ids=0;", "ended", 0, 0);
        history.record("commands", 9, START + 63_000_000, again, "1:c");
    }),
    breach("a command that counts too many", "counted", |history| {
        history.command();
        history.find(TOPICS, &[(5, "cmd-0-"), (7, "ended")])[0][6] = "done=2;ids=0;".into();
    }),
    breach("a command that is done twice", "counted", |history| {
        history.command();
        let at = START + 62_050_000;
        history.record("events", 90, at, ("f", "", "rescheduled", 0, 0), "0:e");
        history.find(TOPICS, &[(5, "f"), (7, "rescheduled")])[0][10] = "cmd-0-".into();
    }),
    breach(
        "a command that is done with another task",
        "commanded",
        |history| {
            history.command();
            history.find(GENERATOR, &[(2, "f")])[0][8] = "8".into();
            history.find(COMMANDS, &[(2, "cmd-1-"), (0, "command")])[0][5] = "f,g".into();
        },
    ),
    breach("an attempt of a cancelled task", "cancelled", |history| {
        history.command();
        history.find(GENERATOR, &[(2, "f"), (0, "intent")])[0][5] = "0".into();
        history.attempt("f", START + 65_000_000);
    }),
    breach("a task that a command waits for", "standing", |history| {
        history.command();
        for line in history.find(TOPICS, &[(5, "g")]) {
            for field in line {
                if field == "cancelled" {
                    *field = "delivered".into();
                }
            }
        }
        history.find(TOPICS, &[(5, "g"), (7, "delivered")])[0][10] = String::new();
        let wait = &mut history.find(GENERATOR, &[(2, "g"), (0, "intent")])[0][5];
        *wait = "0".into();
        history.attempt("g", START + 65_000_000);
    }),
    breach("an attempt while it is pending", "pending", |history| {
        history.later();
        shift(history.find(TARGET, &[(2, "m"), (3, "2")])[0], -3_000_000);
    }),
    breach("an end while it is pending", "pending", |history| {
        history.later();
        let ended = ((START + 71_000_000) / 1_000).to_string();
        history.find(TOPICS, &[(1, "chaos.callbacks"), (5, "l")])[0][4] = ended;
    }),
    breach("an attempt that is pending again", "pending", |history| {
        history.later();
        let at = START + 105_000_000;
        history.add(FAULTS, &[&"begin", &2, &at, &"kill", &"p0", &""]);
        history.add(FAULTS, &[&"end", &2, &(at + 1_000)]);
        history.repeat("l", "1", 36_000_000);
        // It has no end that would say so, too.
        for topic in ["chaos.callbacks", "chaos.events"] {
            let ended = ((START + 110_000_000) / 1_000).to_string();
            let ends = [(1, topic), (5, "l")];
            history.find(TOPICS, &ends).pop().unwrap()[4] = ended;
        }
    }),
    breach("a task that is pending twice", "once", |history| {
        history.later();
        let pending = ("l", "", "pending", 0, 0);
        history.record("events", 150, START + 70_500_000, pending, "0:e");
    }),
    breach("an end that nobody has told", "commanded", |history| {
        history.later();
        history.remove(TOPICS, &[(5, "cmd-2-"), (7, "ended")]);
    }),
    breach(
        "a record again that nobody tells of",
        "dropped",
        |history| {
            history.twice();
            history.remove(TOPICS, &[(7, "duplicate")]);
        },
    ),
    breach(
        "a record again that is told of twice",
        "dropped",
        |history| {
            history.twice();
            let told = ("n", "chaos.tasks/0/21", "duplicate", 0, 0);
            history.record("events", 202, START + 83_000_000, told, "0:e");
        },
    ),
    breach("the first record is dropped", "dropped", |history| {
        history.twice();
        let told = ("n", "chaos.tasks/0/20", "duplicate", 0, 0);
        history.record("events", 202, START + 83_000_000, told, "0:e");
    }),
    breach(
        "a call of a record that is there again",
        "dropped",
        |history| {
            history.twice();
            history.find(TARGET, &[(2, "n")])[0][7] = "chaos.tasks/0/21".into();
        },
    ),
    breach(
        "an attempt of a task whose key is held",
        "held",
        |history| {
            history.hold();
            shift(history.find(TARGET, &[(2, "o")])[0], -11_000_000);
            // Of this one nobody has said that all shards know.
            history.find(HOLDS, &[(2, "h1")])[0][6] = "6".into();
        },
    ),
    breach(
        "an attempt of a task whose scene is held",
        "held",
        |history| {
            history.hold();
            shift(history.find(TARGET, &[(2, "p")])[0], -11_000_000);
        },
    ),
    breach("an attempt long after the release", "held", |history| {
        history.hold();
        for line in history.find(HOLDS, &[(0, "hold")]) {
            for at in [1, 5, 7, 8] {
                let time: i64 = line[at].parse().unwrap();
                line[at] = (time - 60_000_000).to_string();
            }
        }
        for id in ["o", "p"] {
            let due = (START + 20_000_000) / 1_000;
            history.find(TARGET, &[(2, id)])[0][4] = due.to_string();
        }
    }),
    breach("attempts while a target rests", "rested", |history| {
        history.rest();
        for id in ["s", "t"] {
            shift(history.find(TARGET, &[(2, id)])[0], -5_000_000);
        }
    }),
    breach("an attempt that nobody has let go", "spent", |history| {
        history.exhaust();
        let (asked, gone) = (START + 125_000_000, START + 126_000_000);
        history.remove(HOLDS, &[(1, &asked.to_string()), (3, &gone.to_string())]);
    }),
    breach(
        "a task that is out of attempts untold",
        "spent",
        |history| {
            history.exhaust();
            history.remove(TOPICS, &[(7, "held")]);
        },
    ),
    breach("a task that is held twice", "once", |history| {
        history.command();
        history.exhaust();
        let held = ("q", "", "held", 0, 0);
        history.record("events", 402, START + 122_000_000, held, "0:e");
    }),
    breach(
        "an attempt at a target that is not to be called",
        "forced",
        |history| {
            history.force();
            shift(history.find(TARGET, &[(2, "u")])[0], -11_000_000);
        },
    ),
    breach(
        "an attempt long after its target may be called",
        "forced",
        |history| {
            history.force();
            let line = &mut *history.find(BREAKERS, &[(0, "open")])[0];
            for at in [1, 2, 4, 5] {
                let time: i64 = line[at].parse().unwrap();
                line[at] = (time - 60_000_000).to_string();
            }
            let due = (START + 140_000_000) / 1_000;
            history.find(TARGET, &[(2, "u")])[0][4] = due.to_string();
        },
    ),
    breach(
        "no attempt at a target that is to be called",
        "forced",
        |history| {
            history.force();
            for id in ["v0", "v1", "v2", "v3", "v4", "v5", "v6"] {
                shift(history.find(TARGET, &[(2, id)])[0], 10_000_000);
            }
        },
    ),
    breach(
        "no attempt at a target whose breakers were reset",
        "forced",
        |history| {
            history.force();
            for id in ["w0", "w1", "w2", "w3", "w4", "w5", "w6"] {
                shift(history.find(TARGET, &[(2, id)])[0], 10_000_000);
            }
        },
    ),
    breach("a deadline that passes on hold", "stopped", |history| {
        history.stop();
        for topic in ["callbacks", "dead-letters", "events"] {
            let ended = ((START + 281_000_000) / 1_000).to_string();
            let name = format!("chaos.{topic}");
            for line in history.find(TOPICS, &[(1, &name), (5, "y")]) {
                line[4].clone_from(&ended);
            }
        }
        history.remove(TARGET, &[(2, "y")]);
    }),
    breach(
        "a deadline that counts a hold later",
        "stopped",
        |history| {
            history.stop();
            history.find(GENERATOR, &[(0, "intent"), (2, "y")])[0][3] = "delivered".into();
            for line in history.find(TOPICS, &[(5, "y")]) {
                if !["chaos.tasks", "chaos.delay.10s"].contains(&&*line[1]) {
                    line[4] = ((START + 294_500_000) / 1_000).to_string();
                }
            }
        },
    ),
    breach(
        "a deadline that counts no hold that nobody has seen the task in",
        "stopped",
        |history| {
            history.stop();
            history.remove(TOPICS, &[(1, "chaos.delay.10s"), (5, "y")]);
            history.remove(TARGET, &[(2, "y")]);
            for line in history.find(TOPICS, &[(5, "y")]) {
                if line[1] != "chaos.tasks" {
                    line[4] = ((START + 281_000_000) / 1_000).to_string();
                }
            }
        },
    ),
    breach("a deadline that never passes", "stopped", |history| {
        history.stop();
        for line in history.find(TOPICS, &[(5, "y")]) {
            if !["chaos.tasks", "chaos.delay.10s"].contains(&&*line[1]) {
                line[4] = ((START + 430_000_000) / 1_000).to_string();
            }
        }
    }),
    breach(
        "a record in whose place there is none",
        "replaced",
        |history| {
            history.replace();
            history.remove(TOPICS, &[(5, "i"), (7, "replaced")]);
        },
    ),
    breach(
        "a record that is replaced and ends",
        "replaced",
        |history| {
            history.replace();
            history.end(80, START + 320_000_000, ("i", "delivered"), "1:i");
            let ended = [(1, "chaos.callbacks"), (3, "80"), (5, "i")];
            history.find(TOPICS, &ended)[0][10] = "chaos.tasks/0/80".into();
        },
    ),
    breach(
        "a record that an earlier one replaces",
        "replaced",
        |history| {
            history.replace();
            let event = &mut *history.find(TOPICS, &[(5, "i"), (7, "replaced")])[0];
            event.swap(6, 10);
            let ended = [(1, "chaos.callbacks"), (3, "81"), (5, "i")];
            history.find(TOPICS, &ended)[0][10] = "chaos.tasks/0/80".into();
        },
    ),
    breach(
        "an attempt of a record that is replaced",
        "replaced",
        |history| {
            history.replace();
            let bytes = "1:i".to_owned();
            history.seen(("i", 1), START + 306_060_000, &bytes, (80, 0));
            history.find(TARGET, &[(2, "i"), (6, "1:i")])[0][4] =
                ((START + 306_000_000) / 1_000).to_string();
        },
    ),
    breach(
        "the payload of a record that is replaced",
        "replaced",
        |history| {
            history.replace();
            history.find(TARGET, &[(2, "j")])[0][6] = "1:j".into();
        },
    ),
    breach("a schedule that is to be kept", "replaced", |history| {
        history.replace();
        shift(history.find(TARGET, &[(2, "j")])[0], -5_000_000);
    }),
    breach("a schedule that is not to be kept", "replaced", |history| {
        history.replace();
        shift(history.find(TARGET, &[(2, "i")])[0], 5_000_000);
    }),
    breach("attempts that are not counted on", "replaced", |history| {
        history.replace();
        let parked = ("j", "", "", 2, 2);
        history.record("delay.5s", 90, START + 301_020_000, parked, "1:j");
        history.find(TOPICS, &[(3, "90"), (5, "j")])[0][10] = "chaos.tasks/0/82".into();
    }),
    breach("a replay that is not told of", "replays", |history| {
        history.replay();
        history.remove(TOPICS, &[(5, "aa"), (7, "replayed")]);
    }),
    breach("a replay without a task", "replays", |history| {
        history.replay();
        let entered = [(1, "chaos.delay.now"), (5, "aa")];
        history.remove(TOPICS, &entered);
    }),
    breach("a replayed letter without a mark", "replays", |history| {
        history.replay();
        history.marks("110,111,112");
        history.find(TOPICS, &[(7, "mark")])[1][3] = "8".into();
    }),
    breach("a mark of a letter that is open", "replays", |history| {
        history.replay();
        history.find(TOPICS, &[(7, "mark")])[0][6] = "110,111,112,113,120".into();
    }),
    breach(
        "a replay of a letter that is not meant",
        "replays",
        |history| {
            history.replay();
            history.find(TOPICS, &[(1, "chaos.dead-letters"), (5, "aa")])[0][14] = "other".into();
            history.retell("rep-0-", "state=done", "state=aborted");
        },
    ),
    breach(
        "a replay by a campaign that nobody wanted",
        "replays",
        |history| {
            history.replay();
            history.remove(ANSWERS, &[(0, "command"), (3, "replay"), (5, "rep-0-")]);
            history.remove(ANSWERS, &[(0, "ack"), (2, "cmd-1010-")]);
            history.remove(TOPICS, &[(5, "cmd-1010-")]);
        },
    ),
    breach(
        "a replay by another campaign of that name",
        "replays",
        |history| {
            history.replay();
            let entered = [(1, "chaos.delay.now"), (5, "aa")];
            history.find(TOPICS, &entered)[0][12] = "rep-0-/1/0/7".into();
        },
    ),
    breach("a replayed task without an end", "replays", |history| {
        history.replay();
        for (topic, offset) in [("chaos.callbacks", "120"), ("chaos.events", "1200")] {
            history.remove(TOPICS, &[(1, topic), (3, offset), (5, "cc")]);
        }
        history.retell("rep-0-", "came_back=4", "came_back=3");
        history.retell("rep-0-", "delivered=2", "delivered=1");
    }),
    breach("a replay before the letter", "replays", |history| {
        history.replay();
        let died = millis(14).to_string();
        history.find(TOPICS, &[(1, "chaos.dead-letters"), (5, "aa")])[0][4] = died;
    }),
    breach(
        "a letter that a campaign replays twice",
        "letters",
        |history| {
            history.replay();
            history.enters(("aa", 1), 0, 14);
            // It stands behind the last one of that campaign otherwise.
            let entered = [(1, "chaos.delay.now"), (3, "1014")];
            history.find(TOPICS, &entered)[0][3] = "1011".into();
        },
    ),
    breach("a letter that two campaigns replay", "letters", |history| {
        history.replay();
        history.enters(("aa", 1), 1, 31);
        history.answers(("aa", 1), 1, 31, "200");
        history.ends(("aa", "delivered"), 1, 31);
        history.retell("rep-1-", "replayed=1", "replayed=2");
        history.retell("rep-1-", "replayed-before=3", "replayed-before=2");
        history.retell("rep-1-", "came_back=1", "came_back=2");
        history.retell("rep-1-", "delivered=1", "delivered=2");
        history.retell("rep-1-", "state=done", "state=running");
        let counts = "out=0;came_back=2;delivered=2;";
        let last = format!("state=done;replayed=2;replayed-before=2;partitions=0,114,114;{counts}");
        history.says(1, 34, &last);
    }),
    breach("letters in the wrong order", "letters", |history| {
        history.replay();
        for (id, offset) in [("aa", "1013"), ("bb", "1012")] {
            let entered = [(1, "chaos.delay.now"), (5, id)];
            history.find(TOPICS, &entered)[0][3] = offset.into();
        }
    }),
    breach(
        "a replayed task before the end of one of its key",
        "turns",
        |history| {
            history.replay();
            for id in ["aa", "bb"] {
                history.find(GENERATOR, &[(0, "intent"), (2, id)])[0][7] = "k2".into();
            }
            let ended = [(1, "chaos.callbacks"), (3, "112"), (5, "aa")];
            history.find(TOPICS, &ended)[0][4] = (millis(13) + 20).to_string();
        },
    ),
    breach("a letter that is left behind", "meant", |history| {
        history.replay();
        history.forget("bb", &header(1));
        for (topic, offset) in [("chaos.callbacks", "133"), ("chaos.events", "1330")] {
            history.remove(TOPICS, &[(1, topic), (3, offset), (5, "bb")]);
        }
        history.remove(TARGET, &[(2, "bb"), (8, "200")]);
        history.find(TOPICS, &[(7, "mark")])[0][6] = "110,111,112".into();
        history.retell("rep-1-", "replayed=1", "replayed=0;in-campaign=1");
        history.retell("rep-1-", "came_back=1;delivered=1", "came_back=0");
    }),
    breach("a campaign that is never over", "meant", |history| {
        history.replay();
        history.retell("rep-0-", "state=done", "state=running");
    }),
    breach("a letter that is not counted", "meant", |history| {
        history.replay();
        history.retell("rep-1-", "replayed-before=3", "replayed-before=2");
    }),
    breach("an end that is not counted", "sums", |history| {
        history.replay();
        history.retell("rep-0-", "delivered=2", "delivered=1");
    }),
    breach("an attempt that is not counted", "sums", |history| {
        history.replay();
        history.retell("rep-0-", "came_back=4", "came_back=3");
    }),
    breach("a letter that is taken on pause", "paces", |history| {
        history.replay();
        history.retell(
            "rep-0-",
            "state=paused;replayed=2",
            "state=paused;replayed=3",
        );
    }),
    breach("a campaign that goes back", "paces", |history| {
        history.replay();
        history.retell(
            "rep-0-",
            "state=paused;replayed=2;partitions=0,112,113",
            "state=paused;replayed=2;partitions=0,0,113",
        );
    }),
    breach("a campaign that is done twice", "paces", |history| {
        history.replay();
        let done = history
            .find(TOPICS, &[(5, "rep-0-"), (7, "campaign")])
            .pop()
            .unwrap()[6]
            .clone();
        history.says(0, 22, &done.replace("state=done", "state=running"));
        history.says(0, 23, &done);
    }),
    breach("a campaign without a brake", "braked", |history| {
        history.replay();
        let (said, fails) = (
            "replayed=2;partitions=0,112,113;",
            "came_back=60;failed=60;",
        );
        let running = format!("state=running;{said}");
        history.retell("rep-0-", &running, &format!("{running}{fails}"));
    }),
    breach(
        "a letter that an earlier campaign means",
        "claims",
        |history| {
            history.replay();
            history.enters(("ee", 1), 3, 48);
            history.answers(("ee", 1), 3, 48, "200");
            history.ends(("ee", "delivered"), 3, 48);
            history.says(3, 48, "state=running;replayed=1;partitions=0,121,121;");
            history.retell(
                "rep-3-",
                "state=done;replayed=0;in-campaign=1",
                "state=done;replayed=1",
            );
            history.retell("rep-3-", "out=0;", "out=0;came_back=1;delivered=1;");
            history.find(TOPICS, &[(7, "mark")])[0][6] = "110,111,112,113,120".into();
        },
    ),
    breach("a replayed task that ends twice", "terminals", |history| {
        history.replay();
        history.end(150, REPLAYS + 20_500_000, ("cc", "delivered"), "1:cc");
        history.retell("rep-0-", "came_back=4", "came_back=5");
        history.retell("rep-0-", "delivered=2", "delivered=3");
    }),
    breach(
        "a replayed task that ends as its target has not said",
        "conflicting",
        |history| {
            history.replay();
            history.find(TARGET, &[(2, "aa"), (8, "200")])[0][8] = "503".into();
        },
    ),
    breach("a task that nobody has replayed", "phantom", |history| {
        history.replay();
        history.answers(("aa", 1), 9, 60, "200");
    }),
    breach("a campaign that is refused", "commanded", |history| {
        history.replay();
        let ended = [(5, "cmd-1040-"), (7, "ended")];
        history.find(TOPICS, &ended)[0][6] = "refused=\"no\";".into();
    }),
    breach("a process that panicked", "exits", |history| {
        history.add(FAULTS, &[&"exit", &START, &"p0", &"itself", &101]);
    }),
];

/// The value of the header of what a campaign has replayed: its name, and the place of its request.
fn header(campaign: i64) -> String {
    format!("rep-{campaign}-/{}/0/{campaign}", millis(10 + campaign))
}

/// So many seconds after campaigns begin to replay dead letters, in milliseconds.
const fn millis(seconds: i64) -> i64 {
    REPLAYS / 1_000 + seconds * 1_000
}

const fn breach(name: &'static str, line: &'static str, change: fn(&mut History)) -> Breach {
    Breach { name, line, change }
}

/// Moves an attempt and its due time.
fn shift(line: &mut [String], by: i64) {
    for (field, by) in [(0, by), (1, by), (4, by / 1_000)] {
        line[field] = (line[field].parse::<i64>().unwrap() + by).to_string();
    }
}

/// The lines that failed, for each history, in order; and whether the checker says that all is well.
fn check(jars: &str, dirs: &[String]) -> (Vec<Vec<String>>, bool) {
    let output = Command::new("java")
        .args(["-XX:TieredStopAtLevel=1", "-cp", &format!("{jars}/*")])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Checker.java"))
        .arg("check")
        .args(dirs)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let mut failed = Vec::new();
    for line in text.lines() {
        if line.starts_with("== ") {
            failed.push(Vec::new());
        } else if let Some(rest) = line.strip_prefix("FAIL ") {
            let name = rest.split_whitespace().next().unwrap().to_owned();
            failed.last_mut().unwrap().push(name);
        }
    }
    assert_eq!(failed.len(), dirs.len(), "{text}{output:?}");
    (failed, output.status.success())
}

#[test]
fn each_breach_is_caught_by_its_line_and_no_other() {
    let Some(jars) = support::jars() else { return };
    let root = TempDir::new().unwrap();
    let mut dirs = Vec::new();
    for (number, breach) in BREACHES.iter().enumerate() {
        let mut history = History::clean();
        (breach.change)(&mut history);
        let dir = root.path().join(number.to_string());
        history.write(&dir);
        dirs.push(dir.display().to_string());
    }

    let (failed, clean) = check(&jars, &dirs);

    for (breach, failed) in BREACHES.iter().zip(failed) {
        assert_eq!(failed, [breach.line], "{}", breach.name);
    }
    assert!(!clean);
}

#[test]
fn late_attempts_are_caught_unless_a_fault_explains_them() {
    let Some(jars) = support::jars() else { return };
    let root = TempDir::new().unwrap();
    let mut dirs = Vec::new();
    for id in ["a", "e"] {
        let mut history = History::clean();
        history.add(FAULTS, &[&"begin", &2, &START, &"zombie", &"p0", &""]);
        history.add(FAULTS, &[&"end", &2, &START]);
        let mut lines = history.find(TARGET, &[(2, id)]);
        let line = &mut *lines[0];
        line[4] = (line[4].parse::<i64>().unwrap() - 10_000).to_string();
        let dir = root.path().join(id);
        history.write(&dir);
        dirs.push(dir.display().to_string());
    }

    let (failed, _) = check(&jars, &dirs);

    assert_eq!(failed, [vec![], vec!["lateness".to_owned()]]);
}

#[test]
fn what_was_in_flight_or_attempted_until_a_cut_was_noticed_may_be_made_again() {
    let Some(jars) = support::jars() else { return };
    let root = TempDir::new().unwrap();
    let dir = root.path().join("cut");
    let mut history = History::clean();
    history.cut(3);
    history.write(&dir);

    let (failed, _) = check(&jars, &[dir.display().to_string()]);

    assert_eq!(failed, [Vec::<String>::new()]);
}

#[test]
fn a_process_that_does_not_know_that_it_was_replaced_may_make_an_attempt_out_of_turn() {
    let Some(jars) = support::jars() else { return };
    let root = TempDir::new().unwrap();
    let dir = root.path().join("zombie");
    let mut history = History::clean();
    history.overtake("zombie");
    history.write(&dir);

    let (failed, _) = check(&jars, &[dir.display().to_string()]);

    assert_eq!(failed, [Vec::<String>::new()]);
}

#[test]
fn at_least_once_may_do_things_twice_and_nothing_else() {
    const ALLOWED: [&str; 10] = [
        "terminals",
        "duplicates",
        "repeated",
        "turns",
        "counted",
        "cancelled",
        "once",
        "letters",
        "sums",
        "paces",
    ];
    let Some(jars) = support::jars() else { return };
    let root = TempDir::new().unwrap();
    let (mut dirs, mut expected) = (Vec::new(), Vec::new());
    for (number, breach) in BREACHES.iter().enumerate() {
        let mut history = History::clean();
        history.at_least_once();
        (breach.change)(&mut history);
        let dir = root.path().join(number.to_string());
        history.write(&dir);
        dirs.push(dir.display().to_string());
        let fails = !ALLOWED.contains(&breach.line);
        expected.push(fails.then(|| breach.line.to_owned()));
    }

    let (failed, _) = check(&jars, &dirs);

    for ((breach, expected), failed) in BREACHES.iter().zip(expected).zip(failed) {
        assert_eq!(failed, Vec::from_iter(expected), "{}", breach.name);
    }
}

#[test]
fn at_least_once_a_task_that_has_ended_may_be_cancelled_when_it_is_read_again() {
    let Some(jars) = support::jars() else { return };
    let root = TempDir::new().unwrap();
    let mut dirs = Vec::new();
    // Where its process died between two records of the first end, one of them is not there.
    for (number, (guarantee, outcome, cut)) in [
        ("exactly-once", "delivered", ""),
        ("at-least-once", "delivered", ""),
        ("at-least-once", "delivered", "callbacks"),
        ("at-least-once", "dead", ""),
        ("at-least-once", "dead", "dead-letters"),
        ("at-least-once", "dead", "callbacks"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut history = History::clean();
        history.command();
        for intent in history.find(GENERATOR, &[(0, "intent"), (2, "f")]) {
            intent[3] = outcome.into();
        }
        history.end(8, START + 61_000_000, ("f", outcome), "1:f");
        if guarantee == "at-least-once" {
            history.at_least_once();
        }
        if !cut.is_empty() {
            let topic = format!("chaos.{cut}");
            history.remove(TOPICS, &[(1, &topic), (5, "f"), (6, outcome)]);
        }
        let dir = root.path().join(number.to_string());
        history.write(&dir);
        dirs.push(dir.display().to_string());
    }

    let (failed, _) = check(&jars, &dirs);

    let conflicts = |failed: &Vec<String>| failed.iter().any(|line| line == "conflicting");
    assert!(conflicts(&failed[0]), "{failed:?}");
    let clean: Vec<Vec<String>> = vec![Vec::new(); dirs.len() - 1];
    assert_eq!(failed[1..], clean);
}

#[test]
fn a_clean_history_passes() {
    let Some(jars) = support::jars() else { return };
    let root = TempDir::new().unwrap();
    let mut commanded = History::clean();
    commanded.command();
    commanded.later();
    commanded.twice();
    commanded.hold();
    commanded.exhaust();
    commanded.rest();
    commanded.force();
    commanded.stop();
    commanded.replace();
    commanded.replay();
    let mut dirs = Vec::new();
    for (name, history) in [("clean", History::clean()), ("commanded", commanded)] {
        let dir = root.path().join(name);
        history.write(&dir);
        dirs.push(dir.display().to_string());
    }

    let (failed, clean) = check(&jars, &dirs);

    assert_eq!(failed, [Vec::<String>::new(), Vec::new()]);
    assert!(clean);
}

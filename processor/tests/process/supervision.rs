//! Processes that lose a thread, a place to log to, or their broker.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::bounded::{self, Lines};
use crate::rig::{DRAIN, FLAKY, Retide, Rig};
use crate::support::{PATIENCE, free_address};

/// Every thread of a process with one worker that is retide's own.
const THREADS: [&str; 16] = [
    "log",
    "admin",
    "troubles",
    "broker",
    "watch",
    "scenes",
    "signals",
    "worker-0",
    "worker-0-group",
    "worker-0-restore",
    "worker-0-tasks",
    "worker-0-tiers",
    "worker-0-sweep",
    "worker-0-letters",
    "worker-0-ledger-0",
    "worker-0-ledger-1",
];

/// What threads are called that are not, whose panic is an outcome, or that do not live long.
const OTHERS: [&str; 5] = ["rdk:", "retide", "calls", "watchdog", "suspects"];

/// A broker of a test's own, that can be halted.
struct OwnBroker {
    script: Child,
    pid: String,
    bootstrap: String,
    _directory: TempDir,
}

// === impl OwnBroker ===

impl OwnBroker {
    /// Starts it, where there is Kafka.
    fn start() -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let data = directory.path().join("kafka");
        let run = concat!(env!("CARGO_MANIFEST_DIR"), "/../docker/kafka/run");
        let mut script = Command::new(run)
            .arg(&data)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let line = Lines::of(script.stdout.take()?).next()?;
        let bootstrap = line.trim_end().strip_prefix("bootstrap ")?.to_owned();
        let file = data.join("server.properties").display().to_string();
        let found = bounded::output(Command::new("pgrep").args(["-f", &file]));
        let pid = String::from_utf8(found.stdout).unwrap();
        Some(Self {
            script,
            pid: pid.lines().next()?.to_owned(),
            bootstrap,
            _directory: directory,
        })
    }

    /// Sends it a signal.
    fn signal(&self, name: &str) {
        assert!(self.try_signal(name));
    }

    /// Sends it a signal; false if it is gone.
    fn try_signal(&self, name: &str) -> bool {
        let sent = Command::new("kill").args([name, &self.pid]).status();
        sent.unwrap().success()
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        self.try_signal("-CONT");
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}

/// The status and the body of an admin endpoint, if it answers.
fn get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = bounded::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// Waits until `is` holds.
fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        thread::park_timeout(Duration::from_millis(20));
    }
}

/// The names of a process's threads, as far as the system keeps them.
fn threads(retide: &Retide) -> BTreeSet<String> {
    let tasks = PathBuf::from(format!("/proc/{}/task", retide.child.id()));
    let tasks = fs::read_dir(tasks).unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.map(|name| name.trim_end().to_owned()).collect()
}

#[cfg(debug_assertions)]
#[test]
fn the_death_of_any_thread_ends_the_process() {
    let rig = Rig::new(Duration::ZERO, FLAKY);
    let address = free_address();
    let basics = rig.basics();
    rig.configure(&format!("{basics}[admin]\nlisten = '{address}'\n{FLAKY}"));

    // All there are, or a new one is missing in the list.
    let retide = rig.run();
    let own = threads(&retide).into_iter();
    let own = own.filter(|name| !OTHERS.iter().any(|other| name.starts_with(other)));
    for name in own {
        let listed = THREADS.iter().any(|thread| thread.starts_with(&name));
        assert!(listed, "{name} is not listed");
    }
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));

    for (variable, names) in [
        ("RETIDE_PLANTED_PANIC", &THREADS[..]),
        ("RETIDE_PLANTED_END", &["admin", "scenes", "worker-0-group"]),
    ] {
        for name in names {
            let retide = rig.launch_with(&["run"], &[(variable, (*name).to_owned())]);
            retide.wait_for(&format!("thread=\"{name}\""));
            let told = Instant::now();
            assert_eq!(retide.wait(), Some(1), "{variable} {name}");
            eprintln!("{variable} {name}: ended {:?} later", told.elapsed());
        }
    }
}

/// A process whose log goes elsewhere, killed when dropped.
struct Unheard(Child);

// === impl Unheard ===

impl Unheard {
    /// Starts `retide run`, which logs all it can.
    fn start(rig: &Rig, stderr: Stdio) -> Self {
        let mut command = rig.command(&["run"]);
        command.env("RETIDE_LOG", "trace").stdin(Stdio::null());
        Self(command.stderr(stderr).spawn().unwrap())
    }

    /// Sends SIGTERM, waits for the end and gives the exit code.
    fn terminate(&mut self) -> Option<i32> {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.unwrap().success());
        let mut code = None;
        wait_until("it ends", || {
            code = self.0.try_wait().unwrap().map(|status| status.code());
            code.is_some()
        });
        code.flatten()
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_log_that_nobody_reads_or_that_is_full_holds_up_nothing() {
    const TASKS: usize = 600;
    let rig = Rig::new(Duration::ZERO, FLAKY);
    let address = free_address();
    // The clients say of each fetch: more lines than a pipe and the queue before it hold.
    let basics = rig.basics();
    let basics = basics.replace("[kafka]\n", "[kafka]\ndebug = 'fetch'\n");
    rig.configure(&format!("{basics}[admin]\nlisten = '{address}'\n{FLAKY}"));

    for (round, kind) in ["full", "unread"].into_iter().enumerate() {
        let stderr = match kind {
            "full" => Stdio::from(File::options().write(true).open("/dev/full").unwrap()),
            _ => Stdio::piped(),
        };
        let mut retide = Unheard::start(&rig, stderr);
        wait_until("ready", || {
            get(&address, "/readyz").is_some_and(|(status, _)| status == 200)
        });

        rig.produce(TASKS * round, (0..TASKS).map(|_| 0));
        rig.ends(TASKS * (round + 1));

        wait_until("lines are dropped", || {
            let (_, metrics) = get(&address, "/metrics").unwrap();
            let name = "retide_log_lines_dropped_total ";
            let dropped = metrics.lines().find_map(|line| line.strip_prefix(name));
            dropped.is_some_and(|count| count != "0")
        });
        assert_eq!(get(&address, "/livez").unwrap().0, 200, "{kind}");
        assert_eq!(retide.terminate(), Some(0), "{kind}");
    }
}

#[test]
fn what_nobody_reads_any_more_ends_a_command_quietly() {
    let rig = Rig::bare("127.0.0.1:1".to_owned(), "");
    let mut child = rig.start(&["completions", "bash"]);
    drop(child.stdout.take());

    let output = child.output();

    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(141));
}

#[test]
fn fatal_errors_are_json_when_the_log_is() {
    let rig = Rig::bare("127.0.0.1:1".to_owned(), "");

    let output = rig.retide(&["run", "--log-format", "json"]);

    assert_eq!(output.status.code(), Some(5));
    let log = String::from_utf8(output.stderr).unwrap();
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(line["pid"].is_u64() && line["host"].is_string(), "{line}");
    }
    assert!(log.contains("127.0.0.1:1"), "{log}");
}

#[test]
fn a_broker_that_stands_still_is_told_once_and_no_drain_waits_for_it() {
    let Some(broker) = OwnBroker::start() else {
        return;
    };
    let rig = Rig::bare(broker.bootstrap.clone(), FLAKY);
    let address = free_address();
    let basics = rig.basics().replace(DRAIN, "drain_deadline = '1s'");
    rig.configure(&format!(
        "{basics}workers = 2\n[admin]\nlisten = '{address}'\n{FLAKY}"
    ));
    assert!(rig.retide(&["init"]).status.success());
    let retide = rig.run();
    rig.produce(0, [0].into_iter());
    rig.ends(1);
    wait_until("it is ready", || {
        get(&address, "/readyz").is_some_and(|(status, _)| status == 200)
    });
    let before = retide.log().lines().count();

    // Told within 30 s, and once.
    broker.signal("-STOP");
    let told = Instant::now();
    wait_until("it is told that no broker answers", || {
        get(&address, "/readyz")
            .is_some_and(|(status, body)| status == 503 && body.contains("broker-away"))
    });
    eprintln!("told after {:?}", told.elapsed());
    let (_, metrics) = get(&address, "/metrics").unwrap();
    assert!(metrics.contains("retide_trouble{kind=\"broker-away\""));
    assert_eq!(get(&address, "/livez").unwrap().0, 200);
    let log = retide.log();
    let lines: Vec<&str> = log.lines().skip(before).collect();
    assert!(lines.len() <= 10, "{lines:#?}");
    let told = lines.iter().filter(|line| line.contains("broker-away"));
    assert_eq!(told.count(), 1, "{lines:#?}");

    // And over within seconds of its return.
    broker.signal("-CONT");
    wait_until("it is ready again", || {
        get(&address, "/readyz").is_some_and(|(status, _)| status == 200)
    });

    // The bound is the deadline and five seconds, and what a busy machine takes. What was answered last cannot be committed.
    let calls = rig.target.count();
    rig.produce(1, [0; 20].into_iter());
    rig.target.wait_for(calls + 20);
    broker.signal("-STOP");
    let start = Instant::now();
    retide.terminate();
    retide.wait_for("error: ");
    assert_eq!(retide.wait(), Some(1));
    let took = start.elapsed();
    eprintln!("ended after {took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn a_broker_that_is_gone_costs_no_core() {
    let Some(broker) = OwnBroker::start() else {
        return;
    };
    let rig = Rig::bare(broker.bootstrap.clone(), FLAKY);
    let basics = rig.basics();
    rig.configure(&format!("{basics}{FLAKY}"));
    assert!(rig.retide(&["init"]).status.success());
    let retide = rig.run();
    rig.produce(0, [0].into_iter());
    rig.ends(1);
    broker.signal("-KILL");
    retide.wait_for("broker-away");
    let (start, before) = (Instant::now(), processor_time(&retide));
    // Long enough for each question that is asked now and then.
    while start.elapsed() < Duration::from_secs(12) {
        thread::park_timeout(Duration::from_secs(1));
    }
    let took = processor_time(&retide).saturating_sub(before);
    let share = took.as_secs_f64() / start.elapsed().as_secs_f64();
    eprintln!("{:.1} % of a core", share * 100.0);
    assert!(share < 0.25, "{took:?} in {:?}", start.elapsed());
    retide.terminate();
    retide.wait();
}

/// What a process has used of processors.
fn processor_time(retide: &Retide) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", retide.child.id())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = fields.split(' ').skip(11).take(2);
    let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    // Linux counts hundredths of a second for programs, whatever its own clock is.
    Duration::from_millis(10 * ticks)
}

//! The processes under test: started, killed, stopped and told to leave, and started again when they end by themselves.
//!
//! Invariant: no process outlives the fleet; signals go to processes that we started and have not waited for.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::ledger::Faults;
use crate::plan::Random;

/// The processes under test.
pub(crate) struct Fleet {
    /// The binary.
    retide: PathBuf,
    /// The folder with the configurations, and the logs.
    dir: PathBuf,
    /// Where ends are written down.
    faults: Arc<Faults>,
    /// Whether anybody asks the processes how they are.
    watched: bool,
    /// The processes, by number.
    slots: Mutex<Vec<Slot>>,
    /// Held while a process that has ended by itself is down, until it is started again.
    restarting: tokio::sync::Mutex<()>,
}

/// The place of one process.
#[derive(Debug, Default)]
struct Slot {
    /// The process, unless it is down.
    child: Option<Child>,
    /// How often it was started.
    starts: u32,
    /// Where its admin endpoints are, if anybody asks them.
    port: Option<u16>,
    /// Whether a fault has hold of it: nobody else may touch it.
    held: bool,
}

/// How long a process that ended by itself stays down, as under any supervisor.
const AGAIN: Duration = Duration::from_secs(1);

/// Longest wait for a process that drains: its deadline is 5 s, and its last transaction may take as long as two calls to Kafka.
const DRAIN: Duration = Duration::from_secs(40);

// === impl Fleet ===

impl Fleet {
    /// No processes yet.
    pub(crate) fn new(retide: PathBuf, dir: PathBuf, faults: Arc<Faults>, watched: bool) -> Self {
        Self {
            retide,
            dir,
            faults,
            watched,
            slots: Mutex::default(),
            restarting: tokio::sync::Mutex::default(),
        }
    }

    /// A command of retide's. Odd processes reach the broker through the proxy.
    pub(crate) fn command(&self, number: usize) -> Command {
        let config = match number % 2 {
            0 => "retide.toml",
            _ => "proxied.toml",
        };
        let mut command = Command::new(&self.retide);
        command
            .current_dir(&self.dir)
            .env("RETIDE_LOG", "info")
            .args(["--config", config])
            .stdin(Stdio::null());
        command
    }

    /// Starts a process in a place of its own, held if a fault wants it; gives its number.
    pub(crate) fn join(&self, held: Held) -> usize {
        let mut slots = self.slots();
        let number = slots.len();
        let mut slot = Slot {
            held: held == Held::Yes,
            port: self.watched.then(free_port),
            ..Slot::default()
        };
        self.launch(number, &mut slot);
        slots.push(slot);
        number
    }

    /// Takes hold of a process that runs and that no fault holds, if there is one.
    pub(crate) fn take(&self, random: &mut Random) -> Option<usize> {
        let mut slots = self.slots();
        let free: Vec<usize> = (0..slots.len())
            .filter(|number| slots[*number].child.is_some() && !slots[*number].held)
            .collect();
        // One process is always left alone: somebody has to take over.
        let others = slots
            .iter()
            .filter(|slot| slot.child.is_some() && !slot.held);
        if free.is_empty() || others.count() < 2 {
            return None;
        }
        let number = free[random.between(0, free.len() as u64) as usize];
        slots[number].held = true;
        Some(number)
    }

    /// Lets go of a process.
    pub(crate) fn release(&self, number: usize) {
        self.slots()[number].held = false;
    }

    /// `kill -9`.
    pub(crate) fn kill(&self, number: usize) {
        let mut slots = self.slots();
        if let Some(mut child) = slots[number].child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts a process again.
    pub(crate) fn start(&self, number: usize) {
        let mut slots = self.slots();
        self.launch(number, &mut slots[number]);
    }

    /// Sends a signal, such as `STOP`.
    pub(crate) fn signal(&self, number: usize, signal: &str) {
        if let Some(child) = &self.slots()[number].child {
            send(child, signal);
        }
    }

    /// Sends SIGTERM and waits for the end, which is written down.
    pub(crate) async fn leave(&self, number: usize) {
        self.signal(number, "TERM");
        self.left(number).await;
    }

    /// Waits for the end of a process that was told to leave.
    async fn left(&self, number: usize) {
        let since = Instant::now();
        loop {
            if let Some(status) = self.ended(number) {
                self.faults
                    .exit(&name(number), "sigterm", &describe(status));
                return;
            }
            if since.elapsed() > DRAIN {
                self.kill(number);
                self.faults.exit(&name(number), "sigterm", "hangs");
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// All processes that run are told to leave; waits for their ends.
    pub(crate) async fn leave_all(&self) {
        let _restarting = self.restarting.lock().await;
        let count = self.slots().len();
        for number in 0..count {
            self.slots()[number].held = true;
            self.signal(number, "TERM");
        }
        for number in 0..count {
            if self.slots()[number].child.is_some() {
                self.left(number).await;
            }
        }
    }

    /// Where processes that run, and that no fault holds, say how they are.
    pub(crate) fn admin_ports(&self) -> Vec<(usize, u16)> {
        let slots = self.slots();
        let running = slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.child.is_some() && !slot.held);
        running
            .filter_map(|(number, slot)| Some((number, slot.port?)))
            .collect()
    }

    /// Takes hold of all processes that run and tells them to leave; gives their numbers.
    pub(crate) async fn stop_all(&self) -> Vec<usize> {
        let mut stopped = Vec::new();
        {
            // One that is about to be started again would run beside what needs that none does.
            let _restarting = self.restarting.lock().await;
            for (number, slot) in self.slots().iter_mut().enumerate() {
                if slot.child.is_some() {
                    slot.held = true;
                    stopped.push(number);
                }
            }
        }
        for number in &stopped {
            self.signal(*number, "TERM");
        }
        for number in &stopped {
            self.left(*number).await;
        }
        stopped
    }

    /// Starts processes that were stopped, and lets go of them.
    pub(crate) fn start_all(&self, stopped: &[usize]) {
        for number in stopped {
            self.start(*number);
            self.release(*number);
        }
    }

    /// Starts processes again that end by themselves, as long as it is polled.
    pub(crate) async fn supervise(&self) {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let count = self.slots().len();
            for number in 0..count {
                let _restarting = self.restarting.lock().await;
                if self.slots()[number].held {
                    continue;
                }
                if let Some(status) = self.ended(number) {
                    self.slots()[number].held = true;
                    self.faults.exit(&name(number), "itself", &describe(status));
                    tokio::time::sleep(AGAIN).await;
                    self.start(number);
                    self.release(number);
                }
            }
        }
    }

    /// The status of a process that has just ended.
    fn ended(&self, number: usize) -> Option<ExitStatus> {
        let mut slots = self.slots();
        let slot = &mut slots[number];
        let status = slot.child.as_mut()?.try_wait().ok()??;
        slot.child = None;
        Some(status)
    }

    /// Starts `retide run`.
    fn launch(&self, number: usize, slot: &mut Slot) {
        slot.starts += 1;
        let log = format!("logs/{}-{}.log", name(number), slot.starts);
        let started = File::create(self.dir.join(log)).and_then(|log| {
            let mut command = self.command(number);
            if let Some(port) = slot.port {
                command.env("RETIDE__ADMIN__LISTEN", format!("127.0.0.1:{port}"));
            }
            command
                .arg("run")
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
        });
        match started {
            Ok(child) => slot.child = Some(child),
            Err(error) => {
                self.faults
                    .exit(&name(number), "start", &format!("not started: {error}"));
            }
        }
    }

    /// The places.
    fn slots(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for slot in &mut *self.slots() {
            if let Some(mut child) = slot.child.take() {
                // It may have ended by itself.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// Whether a fault has hold of a new process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// It has.
    Yes,
    /// It runs like any other.
    No,
}

/// A port that is free.
fn free_port() -> u16 {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|bound| bound.local_addr());
    bound.map_or(0, |address| address.port())
}

/// What a process is called in ledgers.
pub(crate) fn name(number: usize) -> String {
    format!("p{number}")
}

/// A status in a word or two.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => code.to_string(),
        (None, signal) => format!("signal {}", signal.unwrap_or_default()),
    }
}

/// Sends a signal to a child that was not waited for.
fn send(child: &Child, signal: &str) {
    let sent = Command::new("kill")
        .args([format!("-{signal}"), child.id().to_string()])
        .status();
    if !sent.is_ok_and(|status| status.success()) {
        eprintln!("retide-chaos: SIG{signal} not sent to {}", child.id());
    }
}

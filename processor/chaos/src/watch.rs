//! The watch: asks every process each second how it is, as a probe, a scraper and a reader of logs would.
//!
//! It says when a trouble was told and where, and notices a group that says it is well and does nothing. Invariant: a time in which the
//! machine itself stood still is held against nobody, and nobody is asked to tell what was told to a process that was killed since.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::mem;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fleet::Fleet;

/// Where troubles are to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The body of `/readyz`.
    Readyz,
    /// A series of `/metrics`.
    Metric,
    /// A line of the log.
    Log,
}

/// What the processes say of themselves.
pub(crate) struct Watch {
    /// The folder with the logs.
    logs: PathBuf,
    /// What each process said last: by number.
    latest: Mutex<BTreeMap<usize, Sample>>,
    /// How long the machine stood still so far.
    stood: Mutex<Duration>,
    /// When another process than before answered last, or none did.
    changed: Mutex<Instant>,
}

/// What a process said.
#[derive(Clone, Debug, Default)]
struct Sample {
    /// The status of `/readyz`; 0 if there was no answer.
    status: u16,
    /// Its body.
    readyz: String,
    /// The series that tell of troubles.
    metric: String,
}

/// Pause between two looks.
const BEAT: Duration = Duration::from_secs(1);

/// Longest wait for an answer: the endpoints answer from memory.
const ANSWER: Duration = Duration::from_secs(3);

/// A trouble is to be told within this time everywhere, from when the processes are that could tell it.
const TOLD: Duration = Duration::from_secs(30);

/// A trouble is to be told within this time, whatever becomes of the processes.
const TOLD_AT_LAST: Duration = Duration::from_mins(2);

/// The series that tell of troubles.
const SERIES: &str = "retide_trouble";

// === impl Place ===

impl Place {
    /// All of them.
    const ALL: [Self; 3] = [Self::Readyz, Self::Metric, Self::Log];

    /// Its name in the fault journal.
    const fn word(self) -> &'static str {
        match self {
            Self::Readyz => "readyz",
            Self::Metric => "metric",
            Self::Log => "log",
        }
    }
}

// === impl Watch ===

impl Watch {
    /// Nothing seen yet; logs are in `logs`.
    pub(crate) fn new(logs: PathBuf) -> Self {
        Self {
            logs,
            latest: Mutex::default(),
            stood: Mutex::default(),
            changed: Mutex::new(Instant::now()),
        }
    }

    /// Looks at the processes of `fleet` as long as it is polled.
    pub(crate) async fn look(&self, fleet: &Fleet) {
        loop {
            let since = Instant::now();
            tokio::time::sleep(BEAT).await;
            let over = since.elapsed().saturating_sub(BEAT + BEAT / 2);
            *lock(&self.stood) += over;
            let mut samples = BTreeMap::new();
            for (number, port) in fleet.admin_ports() {
                let (status, readyz) = get(port, "/readyz").await.unwrap_or_default();
                let (_, metrics) = get(port, "/metrics").await.unwrap_or_default();
                let series = metrics
                    .lines()
                    .filter(|line| line.starts_with(SERIES) && !line.ends_with(" 0"));
                let metric = series.collect::<Vec<_>>().join("\n");
                samples.insert(
                    number,
                    Sample {
                        status,
                        readyz,
                        metric,
                    },
                );
            }
            let before = mem::replace(&mut *lock(&self.latest), samples);
            let answer = self.answer();
            if answer.is_empty() || answer != answering(&before) {
                *lock(&self.changed) = Instant::now();
            }
        }
    }

    /// The processes that answer.
    fn answer(&self) -> BTreeSet<usize> {
        answering(&lock(&self.latest))
    }

    /// How long the machine stood still so far.
    pub(crate) fn stood(&self) -> Duration {
        *lock(&self.stood)
    }

    /// Whether every process says that it is well, and tells of no trouble.
    pub(crate) fn is_well(&self) -> bool {
        let latest = lock(&self.latest);
        !latest.is_empty()
            && latest
                .values()
                .all(|sample| sample.status == 200 && sample.metric.is_empty())
    }

    /// Waits until a trouble is told that names one of `subjects`, everywhere; gives the places where it was not told in time.
    /// Processes that all refuse to start tell it in the log only.
    pub(crate) async fn told(&self, subjects: &[String]) -> Vec<&'static str> {
        let since = Instant::now();
        let stood = self.stood();
        let sizes = self.log_sizes();
        let mut missing: BTreeSet<Place> = Place::ALL.into_iter().collect();
        loop {
            let stood = self.stood().saturating_sub(stood);
            let able = since.max(*lock(&self.changed));
            let is_late = able.elapsed() > TOLD + stood || since.elapsed() > TOLD_AT_LAST + stood;
            if self.answer().is_empty() && !missing.contains(&Place::Log) {
                missing.clear();
            }
            if missing.is_empty() || is_late {
                break;
            }
            tokio::time::sleep(BEAT / 4).await;
            let names = |text: &str| subjects.iter().any(|subject| text.contains(subject));
            for sample in lock(&self.latest).values() {
                if names(&sample.readyz) {
                    missing.remove(&Place::Readyz);
                }
                if names(&sample.metric) {
                    missing.remove(&Place::Metric);
                }
            }
            if missing.contains(&Place::Log) && names(&self.logged_since(&sizes)) {
                missing.remove(&Place::Log);
            }
        }
        missing.into_iter().map(Place::word).collect()
    }

    /// How long each log is.
    fn log_sizes(&self) -> BTreeMap<PathBuf, usize> {
        self.logs()
            .into_iter()
            .map(|(path, text)| (path, text.len()))
            .collect()
    }

    /// What was written to logs since they were as long as that.
    fn logged_since(&self, sizes: &BTreeMap<PathBuf, usize>) -> String {
        let mut all = String::new();
        for (path, text) in self.logs() {
            let from = sizes.get(&path).copied().unwrap_or_default();
            all.push_str(text.get(from..).unwrap_or_default());
        }
        all
    }

    /// The logs of the processes.
    fn logs(&self) -> Vec<(PathBuf, String)> {
        let Ok(folder) = fs::read_dir(&self.logs) else {
            return Vec::new();
        };
        let paths = folder.flatten().map(|entry| entry.path());
        let own = paths.filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with('p'))
        });
        own.map(|path| {
            let bytes = fs::read(&path).unwrap_or_default();
            (path, String::from_utf8_lossy(&bytes).into_owned())
        })
        .collect()
    }
}

/// The processes that answered.
fn answering(samples: &BTreeMap<usize, Sample>) -> BTreeSet<usize> {
    let answered = samples.iter().filter(|(_, sample)| sample.status != 0);
    answered.map(|(&number, _)| number).collect()
}

/// Asks a process; gives the status and the body.
async fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let ask = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        let body = answer.split_once("\r\n\r\n")?.1.to_owned();
        Some((status, body))
    };
    tokio::time::timeout(ANSWER, ask).await.ok().flatten()
}

/// Locks what no panic leaves half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! A `retide run` in a process of its own, so that memory and processor time are its alone.
//!
//! Invariant: the process ends with its [`Worker`], and the file with its configuration, which may hold secrets, is only the user's.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use toml::{Table, Value};
use uuid::Uuid;

use retide_config::{Also, Config};
use retide_core::span;

use crate::bench::{Error, PATIENCE, Testbed};

/// A `retide run`; killed when dropped.
pub(crate) struct Worker {
    /// The process.
    child: Child,
    /// Its admin endpoints.
    admin: SocketAddr,
    /// When it was started.
    started: Instant,
    /// Where its configuration stands.
    _directory: Directory,
}

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Now.
    pub resident: u64,
    /// The most it ever was.
    pub peak: u64,
}

/// A directory of this user's alone, removed when dropped.
struct Directory(PathBuf);

/// Longest time for one answer of an admin endpoint: a worker that is busy answers late, one that hangs is asked again.
const ANSWER: Duration = Duration::from_secs(2);

/// Time between two looks at a process that is to become ready: what the figure may be too high by.
const LOOK: Duration = Duration::from_millis(5);

/// Clock ticks a second in `/proc`: Linux shows all processor times in hundredths, whatever the kernel counts in.
const TICKS: f64 = 100.0;

// === impl Worker ===

impl Worker {
    /// Starts a process in `group` on the topics of `testbed`, with the scenes of `scenes`.
    pub(crate) fn start(bed: &Testbed, group: &str, scenes: &str) -> Result<Self, Error> {
        // Free a moment ago; should somebody else take it, the process says so and ends.
        let admin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let directory = Directory::make()?;
        let file = directory.0.join("retide.toml");
        let text = written(&bed.config, group, admin);
        let options = &mut OpenOptions::new();
        let mut written = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file)?;
        written.write_all(format!("{text}\n{scenes}").as_bytes())?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--config").arg(&file).arg("run");
        // What is parked was written by the measurement, not by another group.
        command.arg("--from-beginning");
        for (name, _) in std::env::vars_os() {
            // They would go before the file, which has what they said already.
            if name.to_string_lossy().starts_with("RETIDE__") {
                command.env_remove(name);
            }
        }
        if std::env::var_os("RETIDE_LOG").is_none() {
            // A peer that is killed is worth a warning, but not here.
            command.env("RETIDE_LOG", "error,librdkafka=off");
        }
        let started = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        Ok(Self {
            child,
            admin,
            started,
            _directory: directory,
        })
    }

    /// Waits until it is ready: how long that took from its start.
    pub(crate) fn ready(&mut self) -> Result<Duration, Error> {
        self.wait("a ready worker", Self::is_ready)?;
        Ok(self.started.elapsed())
    }

    /// Waits until it is ready and owns all `shards`.
    pub(crate) fn ready_with_all(&mut self, shards: i32) -> Result<(), Error> {
        self.wait("a worker with all shards", |worker| {
            worker.shards() == Some(shards) && worker.is_ready()
        })
    }

    /// Kills it as a crash would, and waits for its end.
    pub(crate) fn kill(mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Its memory, where the system tells.
    pub(crate) fn memory(&self) -> Option<Memory> {
        let file = format!("/proc/{}/status", self.child.id());
        memory(&fs::read_to_string(file).ok()?)
    }

    /// The processor time it has used, in all its threads, where the system tells.
    pub(crate) fn processor_seconds(&self) -> Option<f64> {
        let file = format!("/proc/{}/stat", self.child.id());
        processor_seconds(&fs::read_to_string(file).ok()?)
    }

    /// Fails if it has ended.
    pub(crate) fn check(&mut self) -> Result<(), Error> {
        match self.child.try_wait()? {
            Some(status) => Err(Error::Worker { status }),
            None => Ok(()),
        }
    }

    /// Waits for what `is_done` looks for.
    fn wait(&mut self, what: &'static str, is_done: impl Fn(&Self) -> bool) -> Result<(), Error> {
        let start = Instant::now();
        while !is_done(self) {
            self.check()?;
            if start.elapsed() > PATIENCE {
                return Err(Error::Stuck {
                    what,
                    done: 0,
                    all: 1,
                });
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Whether it says that it is ready.
    fn is_ready(&self) -> bool {
        self.ask("/readyz")
            .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// How many shards it says it owns.
    fn shards(&self) -> Option<i32> {
        let answer = self.ask("/metrics").ok()?;
        let value = answer
            .lines()
            .find_map(|line| line.strip_prefix("retide_owned_shards "))?;
        value.trim().parse().ok()
    }

    /// What an admin endpoint answers.
    fn ask(&self, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.admin, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n",
            self.admin
        )?;
        let mut answer = String::new();
        // Each connection serves one request, and ends with the answer.
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Directory ===

impl Directory {
    /// Makes a new one.
    fn make() -> io::Result<Self> {
        let name = format!("retide-bench-{}", Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Nothing depends on it, and the system clears the directory for temporary files by itself.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether this system tells how much memory and processor time a process uses.
pub(crate) fn is_told() -> bool {
    Path::new("/proc/self/status").exists()
}

/// A configuration as a file has it, with another group and these admin endpoints, and without scenes.
fn written(config: &Config, group: &str, admin: SocketAddr) -> String {
    let Config {
        topics, processor, ..
    } = config;
    let text = |text: &dyn ToString| Value::String(text.to_string());
    let format = |format| {
        let written = Value::try_from(format);
        written.unwrap_or_else(|error| unreachable!("formats are words: {error}"))
    };
    let report = |is: retide_avro::Format| {
        Value::Table(Table::from_iter([("format".to_owned(), format(is))]))
    };
    let tiers = topics.tiers.tiers().iter().map(|tier| text(tier)).collect();
    let events = Table::from_iter([
        ("format".to_owned(), format(topics.events.format)),
        ("enabled".to_owned(), topics.events.enabled.into()),
    ]);
    let also = match topics.dead_letters.also {
        Also::None => "none",
        Also::Spring => "spring",
        Also::Connect => "connect",
    };
    let also = Value::Table(Table::from_iter([("also".to_owned(), text(&also))]));
    let section = |entries: Vec<(&str, Value)>| -> Value {
        let entries = entries
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value));
        Value::Table(entries.collect())
    };
    let topics = section(vec![
        ("prefix", text(&topics.prefix)),
        ("partitions", topics.partitions.into()),
        (
            "replication_factor",
            i32::from(topics.replication_factor).into(),
        ),
        ("tiers", Value::Array(tiers)),
        ("callbacks", report(topics.callbacks.format)),
        ("alerts", report(topics.alerts.format)),
        ("scenes", report(topics.scenes.format)),
        ("events", Value::Table(events)),
        ("dead_letters", also),
    ]);
    let processor = section(vec![
        ("group", text(&group)),
        ("workers", i64::from(processor.workers.get()).into()),
        ("guarantee", text(&processor.guarantee)),
        (
            "commit_interval",
            text(&span::text(processor.commit_interval)),
        ),
        ("memory_limit", text(&processor.memory_limit)),
        (
            "drain_deadline",
            text(&span::text(processor.drain_deadline)),
        ),
    ]);
    let all = section(vec![
        ("kafka", Value::Table(config.kafka.written())),
        ("topics", topics),
        ("processor", processor),
        ("admin", section(vec![("listen", text(&admin))])),
    ]);
    toml::to_string(&all).unwrap_or_else(|error| unreachable!("tables have a text: {error}"))
}

/// What `/proc/PID/status` says of memory.
fn memory(status: &str) -> Option<Memory> {
    let bytes = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1_024)
    };
    Some(Memory {
        resident: bytes("VmRSS:")?,
        peak: bytes("VmHWM:")?,
    })
}

/// What `/proc/PID/stat` says of processor time.
fn processor_seconds(stat: &str) -> Option<f64> {
    // The second field is the name, in parentheses, and may hold anything; the times are the 14th and the 15th.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut times = rest.split_whitespace().skip(11).map(str::parse::<u64>);
    let (user, system) = (times.next()?.ok()?, times.next()?.ok()?);
    Some((user + system) as f64 / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    use retide_config::Overrides;
    use retide_shell::librdkafka::Librdkafka;

    #[test]
    fn memory_and_processor_time_are_read_as_linux_writes_them() {
        let status =
            "Name:\tretide\nVmPeak:\t  999999 kB\nVmHWM:\t   45360 kB\nVmRSS:\t   44816 kB\n";
        let stat = "4711 (a ) b) S 1 4711 4711 0 -1 4194304 2145 0 3 0 250 150 0 0 20 0 9 0 1 2 3";

        assert_eq!(
            memory(status),
            Some(Memory {
                resident: 44_816 << 10,
                peak: 45_360 << 10
            })
        );
        assert_eq!(processor_seconds(stat), Some(4.0));
    }

    #[test]
    fn what_is_not_told_is_not_made_up() {
        assert_eq!(memory("Name:\tretide\nVmRSS:\t 1 kB\n"), None);
        assert_eq!(memory(""), None);
        assert_eq!(processor_seconds("4711 (retide) S 1 2"), None);
        assert_eq!(processor_seconds(""), None);
    }

    #[test]
    fn a_worker_is_configured_as_its_bench_is() {
        let text = "[kafka]\nbootstrap.servers = 'b:1'\n[kafka.consumer]\nsession.timeout.ms = 7000\n[kafka.producer]\nacks = 'all'\n\
             [topics]\nprefix = 'p'\npartitions = 3\nreplication_factor = 2\ntiers = ['now', '7s']\ncallbacks = { format = 'avro' }\n\
             events = { enabled = false }\n[processor]\nworkers = 2\nguarantee = 'at_least_once'\ncommit_interval = '50ms'\n\
             memory_limit = '64MiB'\ndrain_deadline = '1s 500ms'\n";
        let directory = Directory::make().unwrap();
        let read = |name: &str, text: &str| {
            let file = directory.0.join(name);
            fs::write(&file, text).unwrap();
            Config::load(Some(&file), [], &Overrides::default(), &Librdkafka).unwrap()
        };
        let config = read("one.toml", text);
        let admin = SocketAddr::from(([127, 0, 0, 1], 4_711));

        let again = read("two.toml", &written(&config, "g", admin));

        assert_eq!(again.processor.group, "g");
        assert_eq!(again.admin.listen, Some(admin));
        assert_eq!(again.kafka.written(), config.kafka.written());
        assert_eq!(
            again
                .kafka
                .consumer()
                .get("session.timeout.ms")
                .map(String::as_str),
            Some("7000")
        );
        assert_eq!(
            format!("{:?}", again.topics),
            format!("{:?}", config.topics)
        );
        let with_group = retide_config::Processor {
            group: "g".to_owned(),
            ..config.processor
        };
        assert_eq!(format!("{:?}", again.processor), format!("{with_group:?}"));
    }
}

//! A Kafka broker of the rig that can be killed and started again on its data and ports.
//!
//! It has two listeners: one for whoever looks on, and one that is advertised at the proxy's port, so that a client that comes through
//! the proxy stays there.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failed;
use crate::plan::Random;

/// A broker; it ends when this is dropped.
pub(crate) struct Broker {
    /// The folder with its data, configuration and logs.
    dir: PathBuf,
    /// The folder with Kafka's jars.
    jars: PathBuf,
    /// Its ports.
    ports: Ports,
    /// The process, unless it is down.
    child: Option<Child>,
    /// How often it was started.
    starts: usize,
}

/// The ports of a broker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    /// For whoever looks on.
    pub(crate) direct: u16,
    /// Where the proxy connects to.
    pub(crate) proxied: u16,
    /// For the controller.
    controller: u16,
}

/// Longest time a start takes.
const START: Duration = Duration::from_mins(1);

/// The folder of the Kafka rig.
const RIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docker/kafka");

// === impl Ports ===

impl Ports {
    /// Three ports that are free, below those that systems give to clients.
    pub(crate) fn free() -> Self {
        let mut random = Random::new(u64::from(std::process::id()), 0);
        let mut port = || loop {
            let port = random.between(20_000, 32_000) as u16;
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return port;
            }
        };
        Self {
            direct: port(),
            proxied: port(),
            controller: port(),
        }
    }
}

/// The folder with Kafka's jars, which are fetched if need be.
pub(crate) fn jars() -> Result<PathBuf, Failed> {
    let output = Command::new(format!("{RIG}/run"))
        .arg("--jars")
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err("docker/kafka/run --jars failed".into());
    }
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
}

// === impl Broker ===

impl Broker {
    /// Formats the data folder; the proxied listener is advertised at `proxy`.
    pub(crate) fn format(
        dir: &Path,
        jars: &Path,
        ports: Ports,
        proxy: u16,
    ) -> Result<Self, Failed> {
        fs::create_dir(dir)?;
        let Ports {
            direct,
            proxied,
            controller,
        } = ports;
        let data = dir.join("data");
        let text = fs::read_to_string(format!("{RIG}/server.properties"))?
            .replace("127.0.0.1:CONTROLLER", &format!("127.0.0.1:{controller}"))
            .replace(
                "\nlisteners=PLAINTEXT://127.0.0.1:PORT",
                &format!("\nlisteners=PLAINTEXT://127.0.0.1:{direct},PROXIED://127.0.0.1:{proxied}"),
            )
            .replace(
                "advertised.listeners=PLAINTEXT://127.0.0.1:PORT",
                &format!("advertised.listeners=PLAINTEXT://127.0.0.1:{direct},PROXIED://127.0.0.1:{proxy}"),
            )
            .replace(
                "map=PLAINTEXT:PLAINTEXT",
                "map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
            )
            .replace("=DATA", &format!("={}", data.display()));
        fs::write(
            dir.join("server.properties"),
            format!("{text}inter.broker.listener.name=PLAINTEXT\n"),
        )?;
        let broker = Self {
            dir: dir.to_owned(),
            jars: jars.to_owned(),
            ports,
            child: None,
            starts: 0,
        };
        let log = File::create(dir.join("format.log"))?;
        let formatted = broker
            .java(
                "kafka.tools.StorageTool",
                &["format", "--standalone", "-t", "AAAAAAAAAAAAAAAAAAAAAQ"],
            )
            .arg("-c")
            .arg(dir.join("server.properties"))
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()?;
        if !formatted.success() {
            return Err("the broker's data could not be formatted: see format.log".into());
        }
        Ok(broker)
    }

    /// Starts it and waits until it answers.
    pub(crate) async fn start(&mut self) -> Result<(), Failed> {
        self.starts += 1;
        let log = self.dir.join(format!("broker-{}.log", self.starts));
        let out = File::create(&log)?;
        let child = self
            .java("kafka.Kafka", &[])
            .arg(self.dir.join("server.properties"))
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        let child = self.child.insert(child);
        let since = Instant::now();
        while since.elapsed() < START {
            if child.try_wait()?.is_some() {
                break;
            }
            let started = fs::read_to_string(&log)?.contains("Kafka Server started");
            let address = (Ipv4Addr::LOCALHOST, self.ports.direct);
            if started && TcpStream::connect(address).is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(format!("the broker did not start: see {}", log.display()).into())
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The address for whoever looks on.
    pub(crate) fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.ports.direct)
    }

    /// A command of Kafka's.
    fn java(&self, class: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("java");
        command
            .args(["-Xms256m", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-cp"])
            .arg(format!("{}/*", self.jars.display()))
            .arg(class)
            .args(arguments)
            .stdin(Stdio::null());
        command
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

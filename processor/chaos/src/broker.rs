//! A Kafka broker of the rig that can be killed and started again on its data and ports.
//!
//! It has two listeners: one for whoever looks on, and one that is advertised at the proxy's port, so that a client that comes through
//! the proxy stays there. Its controller is a process of its own that nobody kills. A broker that is its own controller and comes back
//! within its session believes for a while that it still leads its partitions, and when it is fenced then, Kafka 4.3 takes the partitions
//! of open transactions for deleted, skips their markers (`Couldn't find leader endpoint … can be skipped`), and leaves the transactions
//! hanging for good. Invariant: a broker that was killed comes back after its session.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failed;
use crate::campaign::{PASSWORD, USER};
use crate::plan::Random;

/// A broker; it ends when this is dropped.
pub(crate) struct Broker {
    /// The folder with its data, configuration and logs.
    dir: PathBuf,
    /// The folder with Kafka's jars.
    jars: PathBuf,
    /// Its ports.
    ports: Ports,
    /// Its controller.
    controller: Option<Child>,
    /// The process, unless it is down.
    child: Option<Child>,
    /// When it was killed.
    killed: Option<Instant>,
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

/// Who may do what at a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everybody may do everything.
    Open,
    /// Who comes through the proxy is a user with a password, and may do what that one is allowed; whoever looks on may do everything.
    Users,
}

/// Longest time a start takes.
const START: Duration = Duration::from_mins(1);

/// How long the controller waits for a sign of the broker's life; one comes every half second.
const SESSION: Duration = Duration::from_millis(2_500);

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
        (ports, proxy): (Ports, u16),
        access: Access,
    ) -> Result<Self, Failed> {
        fs::create_dir(dir)?;
        let Ports {
            direct,
            proxied,
            controller,
        } = ports;
        let text = fs::read_to_string(format!("{RIG}/server.properties"))?
            .replace("127.0.0.1:CONTROLLER", &format!("127.0.0.1:{controller}"));
        let data = |name: &str| format!("={}", dir.join(name).display());
        let own = text
            .replace(
                "process.roles=broker,controller",
                "process.roles=controller",
            )
            .replace("PLAINTEXT://127.0.0.1:PORT,", "")
            .replace(
                "advertised.listeners=PLAINTEXT://127.0.0.1:PORT",
                &format!("advertised.listeners=CONTROLLER://127.0.0.1:{controller}"),
            )
            .replace("node.id=1", "node.id=100")
            .replace("=DATA", &data("controller-data"));
        let session = SESSION.as_millis();
        let (protocol, users) = match access {
            Access::Open => ("PLAINTEXT", String::new()),
            Access::Users => ("SASL_PLAINTEXT", users()),
        };
        fs::write(
            dir.join("controller.properties"),
            format!("{own}broker.session.timeout.ms={session}\n{users}"),
        )?;
        let both = format!("PLAINTEXT://127.0.0.1:{direct},PROXIED://127.0.0.1");
        let own = text
            .replace("process.roles=broker,controller", "process.roles=broker")
            .replace(
                &format!(
                    "\nlisteners=PLAINTEXT://127.0.0.1:PORT,CONTROLLER://127.0.0.1:{controller}"
                ),
                &format!("\nlisteners={both}:{proxied}"),
            )
            .replace("PLAINTEXT://127.0.0.1:PORT", &format!("{both}:{proxy}"))
            .replace(
                "map=PLAINTEXT:PLAINTEXT",
                &format!("map=PLAINTEXT:PLAINTEXT,PROXIED:{protocol}"),
            )
            .replace("=DATA", &data("data"));
        fs::write(
            dir.join("broker.properties"),
            format!(
                "{own}inter.broker.listener.name=PLAINTEXT\nbroker.heartbeat.interval.ms=500\n{users}"
            ),
        )?;
        let mut broker = Self {
            dir: dir.to_owned(),
            jars: jars.to_owned(),
            ports,
            controller: None,
            child: None,
            killed: None,
            starts: 0,
        };
        broker.format_data("controller", &["--standalone"])?;
        broker.format_data("broker", &[])?;
        let log = File::create(dir.join("controller.log"))?;
        broker.controller = Some(broker.kafka("controller", log)?);
        Ok(broker)
    }

    /// Formats the data folder of one of the two.
    fn format_data(&self, name: &str, arguments: &[&str]) -> Result<(), Failed> {
        let log = File::create(self.dir.join(format!("format-{name}.log")))?;
        let formatted = self
            .java("kafka.tools.StorageTool")
            .args(["format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ"])
            .args(arguments)
            .arg("-c")
            .arg(self.dir.join(format!("{name}.properties")))
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()?;
        if !formatted.success() {
            return Err(format!("the data could not be formatted: see format-{name}.log").into());
        }
        Ok(())
    }

    /// Starts one of the two.
    fn kafka(&self, name: &str, log: File) -> Result<Child, Failed> {
        let child = self
            .java("kafka.Kafka")
            .arg(self.dir.join(format!("{name}.properties")))
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(child)
    }

    /// Starts it and waits until it answers.
    pub(crate) async fn start(&mut self) -> Result<(), Failed> {
        if let Some(killed) = self.killed {
            tokio::time::sleep((SESSION * 2).saturating_sub(killed.elapsed())).await;
        }
        self.starts += 1;
        let log = self.dir.join(format!("broker-{}.log", self.starts));
        let child = self.kafka("broker", File::create(&log)?)?;
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
        stop(&mut self.child);
        self.killed = Some(Instant::now());
    }

    /// The address for whoever looks on.
    pub(crate) fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.ports.direct)
    }

    /// A command of Kafka's.
    fn java(&self, class: &str) -> Command {
        let mut command = Command::new("java");
        command
            .args(["-Xms256m", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-cp"])
            .arg(format!("{}/*", self.jars.display()))
            .arg(class)
            .stdin(Stdio::null());
        command
    }
}

/// What makes a broker ask who somebody is, and what that one may do.
fn users() -> String {
    let login = "org.apache.kafka.common.security.plain.PlainLoginModule required";
    format!(
        "sasl.enabled.mechanisms=PLAIN\n\
         listener.name.proxied.plain.sasl.jaas.config={login} user_{USER}=\"{PASSWORD}\";\n\
         authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
         super.users=User:ANONYMOUS\n"
    )
}

impl Drop for Broker {
    fn drop(&mut self) {
        stop(&mut self.child);
        stop(&mut self.controller);
    }
}

/// Kills a process and waits for it.
fn stop(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }
}

//! A healthy scene in a storm: others hang, reject and are flooded meanwhile. Beside the same scene without them, in the same run.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use retide_config::Config;

use crate::bench::stream::{Flow, Stream, account, arrive, flood, none_early};
use crate::bench::target::{Lateness, Manner, Target};
use crate::bench::worker::Worker;
use crate::bench::{Error, Testbed};

/// How bad it gets.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// New tasks a second of the healthy scene, and of the one that is rejected.
    pub rate: u64,
    /// How long it is measured without the storm, and then in it.
    pub time: Duration,
    /// Tasks of the flooded scene, all due when the storm begins.
    pub flood: u64,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Storm {
    /// New tasks a second of the healthy scene.
    pub rate: u64,
    /// The healthy scene without the storm.
    pub calm: Phase,
    /// The healthy scene in the storm.
    pub storm: Phase,
    /// `storm` by `calm`, of the 99 in 100 that are late least.
    pub p99_ratio: f64,
    /// `storm` by `calm`, attempts a second.
    pub throughput_ratio: f64,
    /// Tasks of the healthy scene in all, each of which was delivered once.
    pub delivered: u64,
    /// Attempts of the storm's at a target that never answered.
    pub hung: u64,
    /// Attempts of the storm's that were rejected at once.
    pub rejected: u64,
    /// Attempts of the storm's at a target that took 50 ms.
    pub flooded: u64,
}

/// The healthy scene for a while.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Phase {
    /// Attempts a second.
    pub per_second: f64,
    /// How late they were.
    pub lateness_ms: Lateness,
}

/// The targets of a storm.
struct Targets {
    /// Answers at once.
    healthy: Target,
    /// Never answers.
    hung: Target,
    /// Rejects at once.
    rejecting: Target,
    /// Takes its time.
    flooded: Target,
}

/// How long before they are due the tasks of the healthy scene are produced, in turn: some go straight to the agenda, some wait in a tier.
const LEADS: &[Duration] = &[Duration::from_millis(500), Duration::from_millis(2_500)];

/// Produced when due.
const AT_ONCE: &[Duration] = &[Duration::ZERO];

/// New tasks a second of the scene whose target hangs: more than its 64 calls of two seconds each let through.
const HUNG: u64 = 50;

/// How long the flooded target takes.
const SLOW: Duration = Duration::from_millis(50);

/// How many seconds the healthy scene runs before it is measured: connections, caches and the first transactions are not what is measured.
const WARM: u64 = 3;

/// Measures a healthy scene in a storm on the cluster that `config` names; `say` is told what is going on.
///
/// # Errors
/// If a client or the process fails, nothing moves for a minute, or what comes out is not what went in.
pub fn storm(config: &Config, scenario: Scenario, say: impl Fn(&str)) -> Result<Storm, Error> {
    let bed = Testbed::make(config)?;
    let measured = measure(&bed, scenario, say);
    bed.remove();
    measured
}

/// Measures on topics that are there.
fn measure(bed: &Testbed, scenario: Scenario, say: impl Fn(&str)) -> Result<Storm, Error> {
    let Scenario { rate, time, .. } = scenario;
    let targets = Targets::start()?;
    let mut worker = Worker::start(bed, &bed.config.processor.group, &targets.scenes())?;
    worker.ready()?;
    let flow = Flow {
        scene: "healthy",
        rate,
        leads: LEADS,
    };
    let healthy = Stream::start(bed, flow)?;
    say("warming up");
    arrive(&targets.healthy, rate * WARM)?;
    targets.healthy.take_lateness();
    say(&format!(
        "{rate} tasks a second for {} s, without the storm",
        time.as_secs()
    ));
    let calm_speed = targets.watch(time);
    let calm = targets.healthy.take_lateness();
    say("and in it");
    let around = scenario.begin(bed)?;
    let storm_speed = targets.watch(time);
    let delivered = healthy.stop()?;
    // Those that are late are waited for: they are what matters.
    arrive(&targets.healthy, delivered)?;
    let storm = targets.healthy.take_lateness();
    for stream in around {
        stream.stop()?;
    }
    worker.check()?;
    say("counting");
    let ends = BTreeMap::from([("healthy", delivered)]);
    account(bed, &bed.topics.callbacks, &ends, |_| {})?;
    none_early(calm.early + storm.early)?;
    worker.kill()?;
    Ok(Storm {
        rate,
        calm: Phase {
            per_second: calm_speed,
            lateness_ms: calm,
        },
        storm: Phase {
            per_second: storm_speed,
            lateness_ms: storm,
        },
        p99_ratio: storm.p99 / calm.p99,
        throughput_ratio: storm_speed / calm_speed,
        delivered,
        hung: targets.hung.requests(),
        rejected: targets.rejecting.requests(),
        flooded: targets.flooded.requests(),
    })
}

// === impl Scenario ===

impl Scenario {
    /// Begins the storm: what goes on until it is stopped.
    fn begin(&self, bed: &Testbed) -> Result<[Stream; 2], Error> {
        let stream = |scene, rate| {
            let flow = Flow {
                scene,
                rate,
                leads: AT_ONCE,
            };
            Stream::start(bed, flow)
        };
        let streams = [stream("hung", HUNG)?, stream("rejected", self.rate)?];
        flood(bed, "flooded", self.flood)?;
        Ok(streams)
    }
}

// === impl Targets ===

impl Targets {
    /// Starts them.
    fn start() -> Result<Self, Error> {
        let target = |takes, failures| Target::start(Manner { takes, failures });
        Ok(Self {
            healthy: target(Duration::ZERO, 0)?,
            hung: target(Duration::from_hours(24), 0)?,
            rejecting: target(Duration::ZERO, u64::MAX)?,
            flooded: target(SLOW, 0)?,
        })
    }

    /// The scenes that call them.
    fn scenes(&self) -> String {
        let scene = |name: &str, target: &Target, timeout: &str| {
            format!(
                "[scenes.{name}]\n\
                 target = {{ http = {{ url = 'http://{}/', timeout = '{timeout}' }} }}\n\
                 backoff = {{ fixed = {{ delay = '1s' }} }}\n\
                 max_attempts = 3\n",
                target.address
            )
        };
        [
            scene("healthy", &self.healthy, "30s"),
            scene("hung", &self.hung, "2s"),
            scene("rejected", &self.rejecting, "2s"),
            scene("flooded", &self.flooded, "2s"),
        ]
        .concat()
    }

    /// Lets time pass: how many attempts a second the healthy one saw.
    fn watch(&self, time: Duration) -> f64 {
        let (start, before) = (Instant::now(), self.healthy.requests());
        thread::sleep(time);
        (self.healthy.requests() - before) as f64 / start.elapsed().as_secs_f64()
    }
}

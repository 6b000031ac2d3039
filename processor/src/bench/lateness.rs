//! How late attempts are at parts of the capacity, which is measured first: tasks of mixed delays, produced at their times whatever
//! becomes of those before, so that nobody waits for retide. Beside a bare client with a timer for each request.

use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use retide_config::Config;
use retide_core::Timestamp;
use retide_shell::clock;
use retide_shell::metrics::Metrics;

use crate::bench::causes::{Cause, Watch};
use crate::bench::dispatch::{Tasks, Volume, dispatch, follow, timers};
use crate::bench::remote::Remote;
use crate::bench::target::{Lateness, Manner, Window};
use crate::bench::{Error, Speed, Testbed};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Loads {
    /// The steps, in percent of the capacity.
    pub percent: Vec<u32>,
    /// How long each of them is measured, when all that waits is there.
    pub time: Duration,
    /// How long tasks wait for their first attempt, which succeeds; as many of one as of another.
    pub delays: Vec<Duration>,
    /// Tasks of the measurement of how many attempts there may be, which is where that of the capacity begins.
    pub tasks: u64,
}

/// How late attempts are, by load.
#[derive(Clone, Debug, Serialize)]
pub struct Late {
    /// Attempts a second of tasks that are due at once and fail once: more than can be made of tasks with delays.
    pub at_once: Speed,
    /// Attempts a second of tasks with these delays, where more are due.
    pub capacity: Speed,
    /// Requests a second, by a bare client.
    pub bare: Speed,
    /// The steps.
    pub steps: Vec<Step>,
}

/// How late attempts are at one load.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// The load, in percent of the capacity.
    pub percent: u32,
    /// Attempts a second.
    pub attempts_per_second: f64,
    /// By retide.
    pub retide_ms: Lateness,
    /// Where the time went, on the way of those that were made in the measured time.
    pub causes: Vec<Cause>,
    /// By a bare client with a timer for each request, as many a second.
    pub bare_ms: Lateness,
    /// How long after its time a task was produced, at most: more than the shortest delay, and the load was not what it should be.
    pub producer_late_ms: f64,
}

/// What the steps are measured with.
struct Rig<'a> {
    /// Hands tasks over.
    tasks: Tasks<'a>,
    /// What is measured.
    loads: &'a Loads,
    /// The metrics of retide.
    metrics: Arc<Metrics>,
    /// Where attempts go.
    target: Remote,
}

/// Tasks that come one after the other.
struct Stream {
    /// Tasks a second.
    rate: f64,
    /// The first one's time.
    start: Instant,
    /// The same, as due times have it.
    epoch: Timestamp,
}

/// A stream of so many attempts.
struct Load {
    /// The tasks.
    stream: Stream,
    /// Tasks until all that waits is there.
    filled: u64,
    /// Tasks in all.
    all: u64,
}

/// What was seen of a stream.
struct Poured {
    /// Tasks.
    tasks: u64,
    /// How late the attempts were.
    retide_ms: Lateness,
    /// By what.
    causes: Vec<Cause>,
    /// How long after its time a task was produced at most.
    producer_late: Duration,
}

/// Attempts of a task that fail, of those that do: with the delays between them, as long on the way as other tasks.
const FAILURES: u32 = 2;

/// The longest that a task which fails waits after its first attempt: 2 s and 4 s, as [`scenes`] has it.
const FAILING: Duration = Duration::from_secs(6);

/// Payload of each task, in bytes.
const BYTES: usize = 512;

/// Requests in flight at once, of each scene: more than a target that answers at once can have.
const CONCURRENCY: u32 = 256;

/// Tasks before the first step.
const WARM_UP: u64 = 200;

/// How long a bare client is measured at most: nothing builds up in it.
const BARE: Duration = Duration::from_secs(5);

/// How long more is produced than can be attempted, at most: what is left over has to be worked off afterwards.
const OVERLOAD: Duration = Duration::from_secs(5);

/// Tasks are produced in bundles of so much time: a timer for each would cost more than they do.
const BUNDLE: Duration = Duration::from_millis(1);

/// Measures on the cluster that `config` names; `say` is told what is going on.
///
/// # Errors
/// If a client fails, nothing moves for a minute, or what comes out is not what went in.
pub fn lateness(config: &Config, loads: &Loads, say: impl Fn(&str)) -> Result<Late, Error> {
    let volume = Volume {
        tasks: loads.tasks,
        bytes: BYTES,
        concurrency: CONCURRENCY,
        failures: 1,
        takes: Duration::ZERO,
    };
    let at_once = dispatch(config, volume, &say)?;
    let bed = Testbed::make(config)?;
    let measured = measure(&bed, loads, at_once.retide.per_second, say);
    bed.remove();
    let (capacity, steps) = measured?;
    Ok(Late {
        at_once: at_once.retide,
        capacity,
        bare: at_once.bare,
        steps,
    })
}

/// Measures all steps on topics that are there.
fn measure(
    bed: &Testbed,
    loads: &Loads,
    at_once: f64,
    say: impl Fn(&str),
) -> Result<(Speed, Vec<Step>), Error> {
    let target = Remote::start(Manner::default())?;
    let metrics = Arc::new(Metrics::new(&bed.config.topics.tiers));
    let process = bed.run_counted(scenes(&target), &metrics)?;
    let rig = Rig {
        tasks: Tasks::new(bed, BYTES)?,
        loads,
        metrics,
        target,
    };
    let measured = rig.steps(at_once, say);
    process.stop()?;
    let (capacity, steps, expected) = measured?;
    let found = bed.count(&bed.topics.callbacks)?;
    if found != expected {
        return Err(Error::Count {
            what: "callbacks",
            found,
            expected,
        });
    }
    Ok((capacity, steps))
}

/// A scene whose tasks succeed, and one whose tasks fail twice and wait 1 to 2 s and then 2 to 4 s.
fn scenes(target: &Remote) -> String {
    let address = target.address;
    format!(
        "[scenes.bench]\n\
         target = {{ http = {{ url = 'http://{address}/', timeout = '30s' }} }}\n\
         concurrency = {CONCURRENCY}\n\
         [scenes.failing]\n\
         target = {{ http = {{ url = 'http://{address}/failing/{FAILURES}', timeout = '30s' }} }}\n\
         backoff = {{ exponential = {{ first = '2s', factor = 2.0, max = '1h' }} }}\n\
         jitter = 'equal'\n\
         max_attempts = 10\n\
         concurrency = {CONCURRENCY}\n"
    )
}

// === impl Rig ===

impl Rig<'_> {
    /// Measures the capacity and all steps: these, and how many tasks were produced.
    fn steps(&self, at_once: f64, say: impl Fn(&str)) -> Result<(Speed, Vec<Step>, u64), Error> {
        // Connections, caches and the first transactions are not what is measured.
        say("warming up");
        let before = self.target.requests()?;
        self.tasks.send_all(WARM_UP)?;
        follow(&self.target, before, WARM_UP)?;
        say(&format!(
            "{at_once:.0} attempts a second, more than there can be"
        ));
        let (capacity, overload) = self.capacity(at_once)?;
        let (mut steps, mut tasks) = (Vec::new(), WARM_UP + overload);
        for percent in &self.loads.percent {
            let attempts = capacity.per_second * f64::from(*percent) / 100.0;
            let seconds = (self.loads.longest() + self.loads.time).as_secs();
            say(&format!(
                "{attempts:.0} attempts a second, {percent} %, for {seconds} s"
            ));
            let bare_ms = self.bare(attempts)?;
            let poured = self.pour(attempts)?;
            tasks += poured.tasks;
            steps.push(Step {
                percent: *percent,
                attempts_per_second: attempts,
                retide_ms: poured.retide_ms,
                causes: poured.causes,
                bare_ms,
                producer_late_ms: poured.producer_late.as_secs_f64() * 1e3,
            });
        }
        Ok((capacity, steps, tasks))
    }

    /// What is done of `attempts` a second, which are too many, when all that waits is there; and how many tasks that took.
    fn capacity(&self, attempts: f64) -> Result<(Speed, u64), Error> {
        let Self { loads, target, .. } = self;
        let load = Load::new(loads, attempts, loads.time.min(OVERLOAD));
        let before = target.requests()?;
        self.produce(&load.stream, 0..load.filled)?;
        let (first, since) = (target.requests()?, Instant::now());
        self.produce(&load.stream, load.filled..load.all)?;
        let (last, took) = (target.requests()?, since.elapsed());
        self.end(&load, before)?;
        let seconds = took.as_secs_f64();
        let speed = Speed {
            per_second: (last - first) as f64 / seconds,
            seconds,
        };
        Ok((speed, load.all))
    }

    /// Waits for every attempt of a load: so many are made, and no more, where there were `before` of others.
    fn end(&self, load: &Load, before: u64) -> Result<(), Error> {
        self.tasks.flush()?;
        let kinds = self.loads.delays.len() as u64 + 1;
        let expected = load.all + load.all / kinds * u64::from(FAILURES);
        follow(&self.target, before, expected)?;
        let found = self.target.requests()? - before;
        if found != expected {
            return Err(Error::Count {
                what: "attempts",
                found,
                expected,
            });
        }
        Ok(())
    }

    /// How late a bare client is at so many attempts a second.
    fn bare(&self, attempts: f64) -> Result<Lateness, Error> {
        self.target.measure(Window::ALL)?;
        let per_second = (attempts as u64).max(1);
        timers(&self.target, per_second, self.loads.time.min(BARE))?;
        self.target.take_lateness()
    }

    /// Produces until all that waits is there, and then as long as is measured; and waits for every attempt.
    fn pour(&self, attempts: f64) -> Result<Poured, Error> {
        let Self { loads, target, .. } = self;
        let load = Load::new(loads, attempts, loads.time);
        let Load {
            stream,
            filled,
            all,
        } = &load;
        let before = target.requests()?;
        let fill = loads.longest();
        target.measure(Window {
            from: (stream.epoch + fill).as_micros(),
            to: (stream.epoch + fill + loads.time).as_micros(),
        })?;
        let filling = self.produce(stream, 0..*filled)?;
        let watch = Watch::start(&self.metrics, target)?;
        let measured = self.produce(stream, *filled..*all)?;
        let causes = watch.causes()?;
        self.end(&load, before)?;
        Ok(Poured {
            tasks: *all,
            retide_ms: target.take_lateness()?,
            causes,
            producer_late: filling.max(measured),
        })
    }

    /// Produces these tasks of a stream at their times: how long after its time one was produced at most.
    fn produce(&self, stream: &Stream, numbers: Range<u64>) -> Result<Duration, Error> {
        let delays = &self.loads.delays;
        let mut latest = Duration::ZERO;
        for number in numbers {
            let time = Duration::from_secs_f64(number as f64 / stream.rate);
            let ahead = (stream.start + time).saturating_duration_since(Instant::now());
            if ahead > BUNDLE {
                thread::sleep(ahead);
            }
            latest = latest.max((stream.start + time).elapsed());
            let kind = (number % (delays.len() as u64 + 1)) as usize;
            let (scene, delay) = delays.get(kind).map_or_else(
                || ("failing", delays.first().copied().unwrap_or_default()),
                |delay| ("bench", *delay),
            );
            let due = (stream.epoch + time + delay).ceil_to_millis();
            self.tasks.send_due(number, scene, due)?;
        }
        Ok(latest)
    }
}

// === impl Loads ===

impl Loads {
    /// The longest that a task waits from its start to its last attempt, and a second for the way.
    fn longest(&self) -> Duration {
        let first = self.delays.first().copied().unwrap_or_default();
        let delays = self.delays.iter().copied();
        let longest = delays.chain([first + FAILING]).max().unwrap_or_default();
        longest + Duration::from_secs(1)
    }
}

// === impl Load ===

impl Load {
    /// A load of so many attempts a second that begins in a moment, and lasts for `time` when all that waits is there.
    fn new(loads: &Loads, attempts: f64, time: Duration) -> Self {
        let delays = loads.delays.len() as f64;
        let rate = attempts / (delays + f64::from(FAILURES + 1)) * (delays + 1.0);
        let count = |time: Duration| (rate * time.as_secs_f64()) as u64;
        let fill = loads.longest();
        Self {
            stream: Stream::soon(rate),
            filled: count(fill),
            all: count(fill + time),
        }
    }
}

// === impl Stream ===

impl Stream {
    /// A stream that begins in a moment.
    fn soon(rate: f64) -> Self {
        let soon = Duration::from_millis(100);
        let now = clock::since_epoch();
        Self {
            rate,
            start: Instant::now() + soon,
            epoch: Timestamp::EPOCH + now + soon,
        }
    }
}

//! Attempts over HTTP: how many a second, where each task fails a few times first; and how late they are under a steady load. Beside a
//! bare client that makes the same requests from memory.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::message::{Header as OutHeader, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use reqwest::{Client, RequestBuilder};
use serde::Serialize;
use tokio::runtime::Runtime;

use retide_avro::headers;
use retide_config::Config;
use retide_core::Timestamp;
use retide_kafka::client::client_config;
use retide_shell::clock;
use retide_shell::metrics::Metrics;

use crate::bench::causes::{Cause, Watch};
use crate::bench::remote::Remote;
use crate::bench::target::{Lateness, Manner};
use crate::bench::testbed::send;
use crate::bench::{Error, PATIENCE, Samples, Speed, Testbed};

/// How much is dispatched.
#[derive(Clone, Copy, Debug)]
pub struct Volume {
    /// Tasks.
    pub tasks: u64,
    /// Bytes of each payload.
    pub bytes: usize,
    /// Requests in flight at once.
    pub concurrency: u32,
    /// Attempts of each task that fail, after which it waits 1 s, 2 s, 4 s, and 4 s again.
    pub failures: u64,
    /// How long the target takes.
    pub takes: Duration,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Dispatch {
    /// Tasks.
    pub tasks: u64,
    /// Attempts.
    pub attempts: u64,
    /// Requests in flight at once.
    pub concurrency: u32,
    /// Attempts a second, by retide.
    pub retide: Speed,
    /// Requests a second, by a bare client.
    pub bare: Speed,
    /// `retide` by `bare`.
    pub ratio: f64,
    /// From the first attempt to the last, by retide.
    pub wall_seconds: f64,
    /// The same number of requests, by a bare client.
    pub bare_seconds: f64,
    /// Requests a second that so many at a time can make at most, if the target takes its time.
    pub most_per_second: Option<f64>,
    /// How late the attempts were.
    pub lateness_ms: Lateness,
}

/// A steady load.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// New tasks a second.
    pub rate: u64,
    /// How long.
    pub time: Duration,
    /// Attempts of each task that fail, after which it waits 1 s, 2 s, 4 s, and 4 s again.
    pub failures: u64,
}

/// How late attempts are under a steady load.
#[derive(Clone, Debug, Serialize)]
pub struct Steady {
    /// New tasks a second.
    pub rate: u64,
    /// Attempts of each task that fail.
    pub failures: u64,
    /// By retide.
    pub retide_ms: Lateness,
    /// Where the time went.
    pub causes: Vec<Cause>,
    /// By a bare client with a timer for each request, as many a second.
    pub bare_ms: Lateness,
}

/// Measures attempts a second on the cluster that `config` names; `say` is told what is going on.
///
/// # Errors
/// If a client fails, nothing moves for a minute, or what comes out is not what went in.
pub fn dispatch(config: &Config, volume: Volume, say: impl Fn(&str)) -> Result<Dispatch, Error> {
    let bed = Testbed::make(config)?;
    let measured = measure(&bed, volume, say);
    bed.remove();
    measured
}

/// Measures how late attempts are on the cluster that `config` names; `say` is told what is going on.
///
/// # Errors
/// As [`dispatch`].
pub fn steady(config: &Config, pace: Pace, say: impl Fn(&str)) -> Result<Steady, Error> {
    let bed = Testbed::make(config)?;
    let measured = pour(&bed, pace, say);
    bed.remove();
    measured
}

/// Measures attempts a second on topics that are there.
fn measure(bed: &Testbed, volume: Volume, say: impl Fn(&str)) -> Result<Dispatch, Error> {
    let attempts = volume.tasks * (volume.failures + 1);
    let manner = Manner {
        takes: volume.takes,
        failures: volume.failures,
    };
    let target = Remote::start(manner)?;
    say(&format!("{attempts} requests by a bare client"));
    let bare = bare(&target, volume, attempts)?;
    target.take_lateness()?;
    say(&format!("producing {} tasks", volume.tasks));
    Tasks::new(bed, volume.bytes)?.send_all(volume.tasks)?;
    say(&format!("{attempts} attempts by retide"));
    let before = target.requests()?;
    let process = bed.run(scene_for(&target, volume.concurrency))?;
    let samples = follow(&target, before, attempts);
    process.stop()?;
    let samples = samples?;
    let found = bed.count(&bed.topics.callbacks)?;
    if found != volume.tasks {
        return Err(Error::Count {
            what: "callbacks",
            found,
            expected: volume.tasks,
        });
    }
    let (retide, bare_speed) = (samples.speed(attempts), bare.speed(attempts));
    Ok(Dispatch {
        tasks: volume.tasks,
        attempts,
        concurrency: volume.concurrency,
        retide,
        bare: bare_speed,
        ratio: retide.per_second / bare_speed.per_second,
        wall_seconds: samples.span().as_secs_f64(),
        bare_seconds: bare.span().as_secs_f64(),
        most_per_second: (!volume.takes.is_zero())
            .then(|| f64::from(volume.concurrency) / volume.takes.as_secs_f64()),
        lateness_ms: target.take_lateness()?,
    })
}

/// Measures lateness on topics that are there.
fn pour(bed: &Testbed, pace: Pace, say: impl Fn(&str)) -> Result<Steady, Error> {
    let manner = Manner {
        takes: Duration::ZERO,
        failures: pace.failures,
    };
    let target = Remote::start(manner)?;
    let per_second = pace.rate * (pace.failures + 1);
    say(&format!("{per_second} requests a second by a bare client"));
    timers(&target, per_second, pace.time)?;
    let bare_ms = target.take_lateness()?;
    let metrics = Arc::new(Metrics::new(&bed.config.topics.tiers));
    let process = bed.run_counted(scene_for(&target, 256), &metrics)?;
    let tasks = Tasks::new(bed, 512)?;
    // Connections, caches and the first transactions are not what is measured.
    say("warming up");
    let warm = target.requests()? + pace.rate * (pace.failures + 1);
    for index in 0..pace.rate {
        tasks.send(index)?;
    }
    follow(&target, 0, warm)?;
    target.take_lateness()?;
    say(&format!(
        "{} new tasks a second, {per_second} attempts a second",
        pace.rate
    ));
    let count = pace.rate * pace.time.as_secs();
    let before = target.requests()?;
    let watch = Watch::start(&metrics, &target)?;
    let poured = pour_tasks(&tasks, pace, count);
    let samples = poured.and_then(|()| follow(&target, before, count * (pace.failures + 1)));
    process.stop()?;
    samples?;
    Ok(Steady {
        rate: pace.rate,
        failures: pace.failures,
        retide_ms: target.take_lateness()?,
        causes: watch.causes()?,
        bare_ms,
    })
}

/// Produces tasks at their times, whatever becomes of those before.
fn pour_tasks(tasks: &Tasks<'_>, pace: Pace, count: u64) -> Result<(), Error> {
    let start = Instant::now();
    for index in 0..count {
        let at = start + Duration::from_micros(index * 1_000_000 / pace.rate);
        thread::sleep(at.saturating_duration_since(Instant::now()));
        tasks.send(index)?;
    }
    tasks.flush()
}

/// One scene for `target`.
fn scene_for(target: &Remote, concurrency: u32) -> String {
    format!(
        "[scenes.bench]\n\
         target = {{ http = {{ url = 'http://{}/', timeout = '30s' }} }}\n\
         backoff = {{ levels = {{ delays = ['1s', '2s', '4s'] }} }}\n\
         max_attempts = 100\n\
         concurrency = {concurrency}\n",
        target.address
    )
}

/// Waits until a target has seen `count` requests more than `before`.
pub(super) fn follow(target: &Remote, before: u64, count: u64) -> Result<Samples, Error> {
    let mut samples = Samples::start();
    while samples.last() < count {
        if samples.idle() > PATIENCE {
            return Err(Error::Stuck {
                what: "attempts",
                done: samples.last(),
                all: count,
            });
        }
        samples.add(target.requests()? - before);
        thread::sleep(Duration::from_millis(5));
    }
    Ok(samples)
}

/// Makes `count` requests, so many at a time, from memory.
fn bare(target: &Remote, volume: Volume, count: u64) -> Result<Samples, Error> {
    let runtime = Runtime::new()?;
    let before = target.requests()?;
    let url = format!("http://{}/", target.address);
    let client = client();
    for lane in 0..u64::from(volume.concurrency) {
        let (client, url) = (client.clone(), url.clone());
        let own = count / u64::from(volume.concurrency)
            + u64::from(lane < count % u64::from(volume.concurrency));
        let body = vec![b'x'; volume.bytes];
        runtime.spawn(async move {
            for _ in 0..own {
                post(|| client.post(&url).body(body.clone())).await;
            }
        });
    }
    follow(target, before, count)
}

/// Makes requests at their times for a while, each with a timer of its own.
pub(super) fn timers(target: &Remote, per_second: u64, time: Duration) -> Result<(), Error> {
    let runtime = Runtime::new()?;
    let before = target.requests()?;
    let url = format!("http://{}/", target.address);
    let client = client();
    let count = per_second * time.as_secs();
    let epoch = clock::since_epoch() + Duration::from_millis(200);
    let instant = tokio::time::Instant::now() + Duration::from_millis(200);
    for index in 0..count {
        let after = Duration::from_millis(index * 1_000 / per_second);
        // Up to the next millisecond, as headers have it: never early.
        let due = (epoch + after).as_micros().div_ceil(1_000);
        let wait = Duration::from_millis(due as u64).saturating_sub(epoch);
        let (client, url) = (client.clone(), url.clone());
        runtime.spawn(async move {
            tokio::time::sleep_until(instant + wait).await;
            let due = due.to_string();
            post(|| client.post(&url).header("retry-due-at", &due).body("x")).await;
        });
    }
    follow(target, before, count)?;
    Ok(())
}

/// Makes a request, again if no answer came: a target that is told of too many connections at once refuses some. One that never gets
/// through is missed in the count.
async fn post(request: impl Fn() -> RequestBuilder) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok(response) = request().send().await
            && response.bytes().await.is_ok()
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A client as plain as it comes.
fn client() -> Client {
    // Refused if the process has a provider already, which then serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .build()
        .unwrap_or_else(|error| unreachable!("{error}"))
}

/// The header that names a scene.
fn scene(name: &str) -> OwnedHeaders {
    OwnedHeaders::new().insert(OutHeader {
        key: headers::SCENE,
        value: Some(name),
    })
}

/// Produces tasks.
pub(super) struct Tasks<'a> {
    /// The producer.
    producer: BaseProducer,
    /// The retry topic and its partitions.
    bed: &'a Testbed,
    /// The payload of each.
    payload: Vec<u8>,
}

// === impl Tasks ===

impl<'a> Tasks<'a> {
    /// Tasks with payloads of so many bytes.
    pub(super) fn new(bed: &'a Testbed, bytes: usize) -> Result<Self, Error> {
        let mut config = client_config(bed.config.kafka.producer());
        config.set("enable.idempotence", "true");
        config.set("linger.ms", "0");
        Ok(Self {
            producer: config.create()?,
            bed,
            payload: vec![b'x'; bytes],
        })
    }

    /// Produces so many.
    pub(super) fn send_all(&self, count: u64) -> Result<(), Error> {
        for index in 0..count {
            self.send(index)?;
        }
        self.flush()
    }

    /// Hands one over that is due at once.
    fn send(&self, index: u64) -> Result<(), Error> {
        self.send_with(index, scene("bench"))
    }

    /// Hands one over that is due then.
    pub(super) fn send_due(&self, index: u64, name: &str, due: Timestamp) -> Result<(), Error> {
        let due = OutHeader {
            key: headers::DUE_AT,
            value: Some(&due.as_millis().to_string()),
        };
        self.send_with(index, scene(name).insert(due))
    }

    /// Waits until all are stored.
    pub(super) fn flush(&self) -> Result<(), Error> {
        Ok(self.producer.flush(PATIENCE)?)
    }

    /// Hands one over with these headers.
    fn send_with(&self, index: u64, headers: OwnedHeaders) -> Result<(), Error> {
        let partition = index % self.bed.config.topics.partitions as u64;
        let record = BaseRecord::to(&self.bed.topics.tasks)
            .partition(partition as i32)
            .payload(&self.payload[..])
            .headers(headers);
        send(&self.producer, record)?;
        self.producer.poll(Duration::ZERO);
        Ok(())
    }
}

//! A concurrency that follows its target, as targets see it that work on so many calls at once and let the others queue.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use rdkafka::producer::Producer;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use crate::commands::get;
use crate::rig::Rig;
use crate::support::{PATIENCE, free_address};

/// How long it takes until the number is found: two measurements, and what follows from them.
const SETTLES: Duration = Duration::from_secs(28);

/// How long it is looked at then: longer than it takes to measure once more.
const LOOKED_AT: Duration = Duration::from_secs(10);

/// Most calls in flight, if it were not for the target.
const MOST: usize = 100;

/// Calls that may queue up at a small target, and what the number may be above that for a while.
const QUEUE: f64 = 4.0;
const SLACK: f64 = 4.0;

/// A target that works on so many calls at once, each taking this time.
struct Queue {
    at_once: usize,
    takes: Duration,
    places: Semaphore,
    seen: Mutex<Seen>,
}

/// What it saw.
#[derive(Default)]
struct Seen {
    in_flight: usize,
    /// When that changed, to what.
    changes: Vec<(Instant, usize)>,
    /// When calls were answered.
    answers: Vec<Instant>,
}

// === impl Queue ===

impl Queue {
    fn new(at_once: usize, takes: Duration) -> Arc<Self> {
        Arc::new(Self {
            at_once,
            takes,
            places: Semaphore::new(at_once),
            seen: Mutex::default(),
        })
    }

    fn serve(self: &Arc<Self>, runtime: &Runtime) -> SocketAddr {
        let bound = tokio::net::TcpListener::bind("127.0.0.1:0");
        let listener = runtime.block_on(bound).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", post(answer))
            .with_state(Arc::clone(self));
        runtime.spawn(async move { axum::serve(listener, router).await });
        address
    }

    /// Calls that it can answer in this time.
    fn capacity(&self, span: Duration) -> f64 {
        self.at_once as f64 * span.as_secs_f64() / self.takes.as_secs_f64()
    }

    /// Waits until it has answered all that it can answer in this time.
    fn wait_for(&self, span: Duration) -> Instant {
        let (start, count) = (Instant::now(), self.capacity(span) as usize);
        while self.seen.lock().unwrap().answers.len() < count {
            assert!(start.elapsed() < PATIENCE, "no {count} calls");
            thread::park_timeout(Duration::from_millis(5));
        }
        Instant::now()
    }

    /// How many calls were in flight on average between these times, while any were, which part of what it can do they were then, and
    /// for how long there were none: a box that stands still says nothing of how many there may be.
    fn look(&self, from: Instant, until: Instant) -> (f64, f64, Duration) {
        let seen = self.seen.lock().unwrap();
        let within = |at: &Instant| (from..until).contains(at);
        let before = seen.changes.iter().rfind(|(at, _)| *at < from);
        let (mut at, mut in_flight) = (from, before.map_or(0, |(_, calls)| *calls));
        let (mut sum, mut called, mut idle) = (0.0, Duration::ZERO, Duration::ZERO);
        let changes = seen.changes.iter().filter(|(at, _)| within(at));
        for (next, calls) in changes.copied().chain([(until, 0)]) {
            let span = next.duration_since(at);
            sum += span.as_secs_f64() * in_flight as f64;
            let spent = if in_flight > 0 {
                &mut called
            } else {
                &mut idle
            };
            *spent += span;
            (at, in_flight) = (next, calls);
        }
        let answered = seen.answers.iter().filter(|at| within(at)).count();
        let used = answered as f64 / self.capacity(called);
        (sum / called.as_secs_f64(), used, idle)
    }
}

async fn answer(State(queue): State<Arc<Queue>>) {
    queue.seen.lock().unwrap().change(1);
    let place = queue.places.acquire().await.unwrap();
    tokio::time::sleep(queue.takes).await;
    drop(place);
    let mut seen = queue.seen.lock().unwrap();
    seen.change(-1);
    seen.answers.push(Instant::now());
}

// === impl Seen ===

impl Seen {
    fn change(&mut self, by: isize) {
        self.in_flight = self.in_flight.strict_add_signed(by);
        self.changes.push((Instant::now(), self.in_flight));
    }
}

/// The limit in force, by the metrics of a process.
fn limit(admin: &str, of: &str) -> f64 {
    let text = get(admin, "/metrics").unwrap().1;
    let name = format!("retide_concurrency_limit{{{of}}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap_or_else(|| panic!("no {name} in {text}"))
        .parse()
        .unwrap()
}

#[test]
fn as_many_calls_are_in_flight_as_the_target_works_on_and_a_few_that_queue() {
    let runtime = Runtime::new().unwrap();
    let (few, many) = (
        Queue::new(5, Duration::from_millis(50)),
        Queue::new(20, Duration::from_millis(100)),
    );
    let (to_few, to_many) = (few.serve(&runtime), many.serve(&runtime));
    let rig = Rig::calm(Duration::ZERO, "");
    let admin = free_address();
    let basics = rig.basics();
    rig.configure(&format!(
        r#"{basics}
[admin]
listen = "{admin}"
[scenes.few]
target = {{ http = {{ url = "http://{to_few}/" }} }}
concurrency = {{ max = {MOST} }}
[scenes.many]
target = {{ http = {{ url = "http://{to_many}/" }} }}
concurrency = {{ max = {MOST}, of = "host" }}
"#
    ));
    let producer = rig.producer();
    for (scene, queue) in [("few", &few), ("many", &many)] {
        // More than it can take in all the time: there is always one that is due.
        for _ in 0..(queue.capacity(SETTLES + LOOKED_AT) * 1.5) as usize {
            rig.send(&producer, &[("retry-scene", scene)], b"0");
        }
    }
    producer.flush(PATIENCE).unwrap();

    let retide = rig.run();
    let settled = few.wait_for(SETTLES);
    let looked = few.wait_for(SETTLES + LOOKED_AT);
    let limits = [
        limit(&admin, "scene=\"few\""),
        limit(&admin, &format!("target=\"http://{to_many}\"")),
    ];

    for (queue, limit) in [&few, &many].into_iter().zip(limits) {
        let (in_flight, used, idle) = queue.look(settled, looked);
        let at_once = queue.at_once as f64;
        eprintln!(
            "a target that works on {at_once} calls at once: {in_flight:.1} in flight, by the metric {limit} may be; {used:.3} of what it can do; \
             not called for {idle:?}"
        );
        let band = at_once * 0.8..at_once + at_once.sqrt().max(QUEUE) + SLACK;
        assert!(band.contains(&in_flight), "{in_flight} in flight");
        assert!(used >= 0.8, "{used} of what it can do");
        // It may be at half of it, to measure.
        let said = at_once * 0.4..band.end;
        assert!(said.contains(&limit), "{limit} by the metric");
    }
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}

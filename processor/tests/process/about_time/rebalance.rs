//! A worker joins and leaves while calls hang: nobody who is well stands still for that, is called twice, or is said not to be ready.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::producer::Producer;
use retide_shell::clock;

use crate::commands::get;
use crate::rig::{FLAKY, Retide, Rig};
use crate::support::PATIENCE;

/// Calls that hang.
const HANGING: usize = 30;

/// Time between two tasks of the scene that is well.
const PACE: Duration = Duration::from_millis(20);

/// How long a scene that is well may wait for a call at least, whatever else is measured: ten times what it takes on an idle machine, and a
/// third of what it is where shards are kept for calls that hang.
const WELL: u128 = 1_500_000;

/// How long shards are kept for calls that hang.
const DEADLINE: Duration = Duration::from_secs(5);

/// A target that takes calls and never answers.
struct Hanging {
    address: String,
    calls: Arc<Mutex<Vec<TcpStream>>>,
}

impl Hanging {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let calls = Arc::new(Mutex::default());
        let taken: Arc<Mutex<Vec<TcpStream>>> = Arc::clone(&calls);
        thread::spawn(move || {
            for call in listener.incoming().map_while(Result::ok) {
                taken.lock().unwrap().push(call);
            }
        });
        Self { address, calls }
    }

    fn wait_for(&self, count: usize) {
        let start = Instant::now();
        while self.calls.lock().unwrap().len() < count {
            assert!(start.elapsed() < PATIENCE, "calls do not begin to hang");
            thread::park_timeout(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_scene_that_is_well_goes_on_through_a_join_and_a_leave_while_calls_hang() {
    let hanging = Hanging::start();
    let rig = Rig::calm(Duration::ZERO, "");
    let text = format!(
        "{}[admin]\nlisten = '127.0.0.1:0'\n\
         [scenes.hang]\ntarget = {{ http = {{ url = 'http://{}/', timeout = '50s' }} }}\n\
         backoff = {{ fixed = {{ delay = '5s' }} }}\nmax_attempts = 9\nconcurrency = 64\n\
         [scenes.quick]\ntarget = {{ http = {{ url = 'http://TARGET/quick', timeout = '1m' }} }}\n\
         backoff = {{ fixed = {{ delay = '5s' }} }}\nmax_attempts = 9\n",
        rig.basics()
            .replace("heartbeat.interval.ms = 500", "heartbeat.interval.ms = 100"),
        hanging.address
    );
    rig.configure(&text);
    let first = rig.run();
    let producer = rig.producer();
    for number in 0..HANGING {
        let id = format!("hang-{number}");
        rig.send(
            &producer,
            &[("retry-scene", "hang"), ("retry-id", &id)],
            b"",
        );
    }
    producer.flush(PATIENCE).unwrap();
    hanging.wait_for(HANGING);
    let done = AtomicBool::new(false);
    let address = admin(&first);

    let (join, leave, unready) = thread::scope(|scope| {
        let finish = Finish(&done);
        let sending = scope.spawn(|| send_until(&rig, &done));
        let probing = scope.spawn(|| unready_until(&address, &done));
        // A while in which nothing happens, to compare with.
        rig.target.wait_for(250);
        let join = now();
        let second = rig.launch(&["run"]);
        // None at first, then those that the other one has given away.
        second.wait_for_times(2, "shards assigned");
        rig.target.wait_for(rig.target.count() + 100);
        let join = join..now();
        let leave = now();
        second.terminate();
        assert_eq!(second.wait(), Some(0));
        rig.target.wait_for(rig.target.count() + 100);
        let leave = leave..now();
        drop(finish);
        let sent = sending.join().unwrap();
        rig.ends(sent);
        (join, leave, probing.join().unwrap())
    });
    first.terminate();
    assert_eq!(first.wait(), Some(0));

    let delays = delays(&rig);
    let calm = delays.range(..join.start);
    let calm = Delays::of(calm.map(|(_, delay)| *delay));
    let within = |range: Range<u128>| Delays::of(delays.range(range).map(|(_, delay)| *delay));
    let (join, leave) = (within(join), within(leave));
    eprintln!("calm {calm:?}, join {join:?}, leave {leave:?}");
    let most = WELL.max(8 * calm.p99);
    for (what, delays) in [("join", join), ("leave", leave)] {
        assert!(delays.p99 <= most, "{what}: {delays:?}, calm: {calm:?}");
        assert!(
            delays.most < DEADLINE.as_micros() / 2 + calm.most,
            "{what}: {delays:?} is a standstill, calm: {calm:?}"
        );
    }
    let repeated = rig.target.attempts();
    let repeated = repeated.iter().filter(|(_, calls)| **calls > 1).count();
    assert_eq!(repeated, 0, "called again without a crash");
    assert_eq!(unready, Vec::<String>::new(), "readiness flaps");
}

#[test]
fn a_static_member_comes_back_to_its_shards_and_a_second_of_its_name_ends_it() {
    let rig = Rig::new(Duration::ZERO, "");
    let basics = rig.basics();
    let as_pod = |name: &str| {
        let basics = basics.replace("session.timeout.ms = 6000", "session.timeout.ms = 45000");
        rig.configure(&format!("{basics}instance_id = '{name}-${{POD}}'\n{FLAKY}"));
    };
    as_pod("retide");
    let run = |pod: &str| rig.launch_with(&["run"], &[("POD", pod.to_owned())]);
    let one = run("a");
    one.wait_for("shards=[0, 1, 2, 3]");
    let other = run("b");
    other.wait_for_times(2, "shards assigned");
    let before = other.log().matches("shards").count();

    one.terminate();
    assert_eq!(one.wait(), Some(0));
    let one = run("a");
    one.wait_for("shards assigned");
    rig.produce(0, (0..40).map(|_| 0));
    let ends = rig.ends(40);

    assert!(ends.values().all(|outcomes| outcomes == &["delivered"]));
    let log = other.log();
    assert_eq!(log.matches("shards").count(), before, "moved: {log}");
    // Whoever has the name last has it.
    let twin = run("a");
    one.wait_for("each process needs its own");
    assert_eq!(one.wait(), Some(1));
    drop((twin, other));
}

/// Ends what goes on beside a test, however that ends.
struct Finish<'a>(&'a AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// How long tasks waited, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Delays {
    /// How many there are.
    #[allow(dead_code, reason = "for whoever reads what failed")]
    count: usize,
    /// That of all but one in a hundred.
    p99: u128,
    /// The longest.
    most: u128,
}

impl Delays {
    fn of(delays: impl Iterator<Item = u128>) -> Self {
        let mut delays: Vec<u128> = delays.collect();
        delays.sort_unstable();
        let count = delays.len();
        assert!(count > 50, "only {count} tasks");
        Self {
            count,
            p99: delays[count * 99 / 100],
            most: delays[count - 1],
        }
    }
}

/// Sends tasks of the scene that is well at an even pace; how many.
fn send_until(rig: &Rig, done: &AtomicBool) -> usize {
    let producer = rig.producer();
    let start = Instant::now();
    let mut sent: u32 = 0;
    while !done.load(Ordering::Acquire) {
        let (id, at) = (format!("quick-{sent}"), now().to_string());
        let headers = [("retry-scene", "quick"), ("retry-id", &id), ("sent", &at)];
        rig.send(&producer, &headers, b"");
        sent += 1;
        // Asleep rather than busy: they are two processors' for all.
        let next = start + PACE * sent;
        thread::park_timeout(next.saturating_duration_since(Instant::now()));
    }
    producer.flush(PATIENCE).unwrap();
    sent as usize
}

/// What the process said each time it was not ready.
fn unready_until(address: &str, done: &AtomicBool) -> Vec<String> {
    let mut unready = Vec::new();
    while !done.load(Ordering::Acquire) {
        if let Some((status, text)) = get(address, "/readyz")
            && status != 200
        {
            unready.push(text);
        }
        thread::park_timeout(Duration::from_millis(20));
    }
    unready
}

/// How long each task of the scene that is well waited from being sent to its call, by when it was sent; less what the target slept.
fn delays(rig: &Rig) -> BTreeMap<u128, u128> {
    let requests = rig.target.requests().into_iter();
    let quick = requests.filter(|request| request.path == "quick");
    let delays = quick.map(|request| {
        let sent = u128::from(request.number("sent"));
        (sent, request.at_micros.saturating_sub(sent))
    });
    delays.collect()
}

/// Where the endpoints of a process are.
fn admin(retide: &Retide) -> String {
    retide.wait_for("admin endpoints listen");
    let log = retide.log();
    let address = log.split("admin endpoints listen address=").nth(1);
    let address = address.and_then(|rest| rest.split_whitespace().next());
    address.unwrap().to_owned()
}

/// The time, in microseconds since the epoch.
fn now() -> u128 {
    let now = clock::since_epoch();
    now.as_micros()
}

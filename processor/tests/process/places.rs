//! Commands for tasks in each place in which a task waits, on a real broker, while processes die and join: each task has one end, none is
//! attempted after it was cancelled, and what a command says at its end is so.
//!
//! `RETIDE_TEST_TASKS` says how many tasks there are of each scene. There are two scenes for each place and verb, so 100 make 200 of both.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use retide_avro::wire::Event;
use retide_history::report;
use retide_shell::clock;
use serde_json::{Value, json};

use crate::control::{counts, ended, send};
use crate::rig::{self, Rig, Stored, TIERS};
use crate::support::{PATIENCE, bootstrap};

/// Where tasks wait when a command comes.
const PLACES: [&str; 9] = [
    "unread", "long", "short", "held", "pending", "key", "ready", "agenda", "flight",
];

/// Those in which they are for hours, or for more than the test takes.
const WAITING: [&str; 6] = ["long", "short", "held", "pending", "key", "ready"];

/// Those in which they are for seconds.
const PASSING: [&str; 2] = ["agenda", "flight"];

/// Those in which a task may be delivered before its command comes.
const CALLED: [&str; 2] = ["ready", "agenda"];

/// What commands say.
const VERBS: [&str; 4] = ["cancel", "run-now", "reschedule", "complete"];

/// How tasks are named.
const SELECTORS: [&str; 2] = ["id", "scene"];

/// Tiers without short ones: what is due within seconds is in memory from the start.
const OWN: [&str; 4] = ["now", "20s", "1m", "1h"];

/// Tasks of a key: the first one fails and waits, and the others wait for it.
const OF_A_KEY: usize = 5;

/// The most tasks that one command names.
const NAMED: usize = 10;

/// Tasks of a scene in a test of every run.
const FEW: usize = 3;

/// Time between two commands whose tasks are to run at once: twenty in a second.
const EVERY: Duration = Duration::from_millis(50);

/// The task that a command names before it is there.
const LATER: &str = "not-there-yet";

/// The tasks of a place that commands of one kind are for.
#[derive(Clone, Copy, Debug)]
struct Group {
    place: &'static str,
    verb: &'static str,
    selector: &'static str,
}

/// A command for some of the tasks of a group.
#[derive(Clone, Debug)]
struct Order {
    group: Group,
    /// Its name.
    name: String,
    /// The tasks that it is about.
    ids: Vec<String>,
}

// === impl Group ===

impl Group {
    fn all() -> impl Iterator<Item = Self> {
        PLACES.into_iter().flat_map(Self::of)
    }

    /// Those of a place.
    fn of(place: &'static str) -> impl Iterator<Item = Self> {
        VERBS.into_iter().flat_map(move |verb| {
            SELECTORS.map(|selector| Self {
                place,
                verb,
                selector,
            })
        })
    }

    /// The scene of its tasks.
    fn scene(self) -> String {
        let Self {
            place,
            verb,
            selector,
        } = self;
        format!("{place}-{verb}-{selector}")
    }

    /// The rules of its scene.
    fn rules(self) -> String {
        let (path, backoff, more) = match self.place {
            // Of a rate that is divided over shards, no call in hours.
            "ready" => (
                "flaky",
                "2h",
                "rate = { limit = 1, per = \"10h\", burst = 1 }\n",
            ),
            "key" => ("flaky", "2h", "ordering = \"key\"\n"),
            "pending" => ("later", "300ms", "pending = { for = \"2h\" }\n"),
            _ => ("flaky", "2h", ""),
        };
        let scene = self.scene();
        format!(
            "[scenes.{scene}]\ntarget = {{ http = {{ url = \"http://TARGET/{path}\", timeout = \"30s\" }} }}\n\
             backoff = {{ fixed = {{ delay = \"{backoff}\" }} }}\nmax_attempts = 4\nconcurrency = 256\n{more}"
        )
    }

    fn ids(self, tasks: usize) -> Vec<String> {
        let scene = self.scene();
        (0..tasks)
            .map(|number| format!("{scene}-{number}"))
            .collect()
    }

    /// The commands for them: for those that are parked and are to run at once, one for each.
    fn orders(self, tasks: usize) -> Vec<Order> {
        let ids = self.ids(tasks);
        let named = match self.selector {
            "scene" => ids.len(),
            _ if self.is_measured() => 1,
            _ => NAMED,
        };
        let scene = self.scene();
        let parts = ids.chunks(named).enumerate();
        parts
            .map(|(number, ids)| Order {
                group: self,
                name: format!("{scene}/{number}"),
                ids: ids.to_vec(),
            })
            .collect()
    }

    /// Whether it is measured how soon they run.
    fn is_measured(self) -> bool {
        let parked = self.place == "long" || self.place == "short";
        parked && self.verb == "run-now" && self.selector == "id"
    }

    /// How long the first attempts wait, as their producer says.
    const fn delay(self) -> Option<Duration> {
        match self.place.as_bytes() {
            b"long" | b"unread" => Some(Duration::from_hours(2)),
            b"short" => Some(Duration::from_secs(110)),
            b"agenda" => Some(Duration::from_millis(9_500)),
            _ => None,
        }
    }

    /// The event that says that a task is where it is to be, if there is one.
    fn arrival(self, number: usize) -> Option<&'static str> {
        match self.place {
            "long" | "short" => Some("parked"),
            "held" => Some("deferred"),
            "pending" => Some("pending"),
            "key" => is_first(number).then_some("failed"),
            _ => None,
        }
    }

    /// Calls without which they are not all where they are to be, and that no event tells of.
    const fn calls(self, tasks: usize) -> usize {
        match self.place.as_bytes() {
            b"flight" => tasks,

            _ => 0,
        }
    }
}

/// Whether a task is the first one of its key.
const fn is_first(number: usize) -> bool {
    number.is_multiple_of(OF_A_KEY)
}

// === impl Order ===

impl Order {
    /// Hands it to a producer.
    fn send(&self, rig: &Rig, producer: &BaseProducer) {
        let Group { verb, selector, .. } = self.group;
        let select = match selector {
            "id" => json!({ "id": self.ids }),
            _ => json!({ "scene": self.group.scene() }),
        };
        let mut request = json!({
            "command": verb, "id": self.name, "select": select, "by": "test", "reason": "a test",
        });
        match verb {
            "reschedule" => request["in"] = "1s".into(),
            "complete" => request["outcome"] = "success".into(),
            _ => {}
        }
        send(rig, producer, &self.name, &request);
    }
}

/// Topics, a target that takes `takes` for each answer, and the scenes of all groups.
fn set_up(takes: Duration) -> Rig {
    let rig = Rig::taking(bootstrap(), takes);
    let basics = rig.basics();
    let mut text = basics.replace(&format!("{TIERS:?}"), &format!("{OWN:?}"));
    assert_ne!(text, basics);
    for group in Group::all() {
        let _ = write!(text, "{}", group.rules());
    }
    rig.configure(&text);
    assert!(rig.retide(&["init"]).status.success());
    rig
}

/// Hands the tasks of a group to a producer.
fn produce(rig: &Rig, producer: &BaseProducer, group: Group, tasks: usize) {
    let (scene, topic) = (group.scene(), rig.topic("tasks"));
    let delay = group.delay().map(|delay| delay.as_millis().to_string());
    for (number, id) in group.ids(tasks).iter().enumerate() {
        let mut headers = OwnedHeaders::new();
        let all = [
            ("retry-scene", Some(&scene)),
            ("retry-id", Some(id)),
            ("retry-delay-ms", delay.as_ref()),
        ];
        for (key, value) in all {
            if value.is_some() {
                headers = headers.insert(Header { key, value });
            }
        }
        let key = match group.place {
            "key" => format!("{scene}-{}", number / OF_A_KEY),
            _ => id.clone(),
        };
        let fails = group.place == "flight" || (group.place == "key" && is_first(number));
        let payload = if fails { "1" } else { "0" };
        let record = BaseRecord::to(&topic).key(&key).payload(payload);
        let sent = producer.send(record.headers(headers));
        sent.map_err(|(error, _)| error).unwrap();
        producer.poll(Duration::ZERO);
    }
}

/// Produces the tasks of these places, and waits until they are where they are to be.
fn place(rig: &Rig, producer: &BaseProducer, places: &[&'static str], tasks: usize) {
    let events = rig.reader("events");
    let groups: Vec<Group> = places.iter().flat_map(|place| Group::of(place)).collect();
    let mut awaited = BTreeSet::new();
    for group in &groups {
        produce(rig, producer, *group, tasks);
        for (number, id) in group.ids(tasks).into_iter().enumerate() {
            awaited.extend(group.arrival(number).map(|event| (id, event.to_owned())));
        }
    }
    producer.flush(PATIENCE).unwrap();
    let mut start = Instant::now();
    while !awaited.is_empty() {
        assert!(start.elapsed() < PATIENCE, "not there yet: {awaited:?}");
        let Some(event) = events.next(Duration::from_millis(100)) else {
            continue;
        };
        if awaited.remove(&(event.text("retry-id"), event.text("retry-event"))) {
            start = Instant::now();
        }
    }
    let wanted: BTreeMap<String, usize> = groups
        .iter()
        .map(|group| (group.scene(), group.calls(tasks)))
        .collect();
    let start = Instant::now();
    loop {
        let mut missing = wanted.clone();
        for request in rig.target.requests() {
            if let Some(count) = missing.get_mut(&request.text("retry-scene")) {
                *count = count.saturating_sub(1);
            }
        }
        missing.retain(|_, count| *count > 0);
        if missing.is_empty() {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "not called: {missing:?}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Holds the scenes whose tasks wait for that.
fn hold(rig: &Rig) {
    let scenes: Vec<String> = Group::of("held").map(Group::scene).collect();
    let mut arguments = vec!["hold", "--name", "places", "--yes"];
    arguments.extend(scenes.iter().flat_map(|scene| ["--scene", scene]));
    let held = rig.retide(&arguments);
    assert!(held.status.success(), "{held:?}");
}

/// Sends the commands whose tasks are to run at once, one after the other, and gives when each was acknowledged, in microseconds.
fn hurry(rig: &Rig, producer: &BaseProducer, orders: &[Order]) -> Vec<(String, u128)> {
    let mut acknowledged = Vec::new();
    let mut next = Instant::now();
    for order in orders {
        order.send(rig, producer);
        // A flush would look every 100 ms.
        while producer.in_flight_count() > 0 {
            producer.poll(Duration::from_millis(1));
        }
        acknowledged.push((order.ids[0].clone(), clock::since_epoch().as_micros()));
        next += EVERY;
        std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
    }
    acknowledged
}

/// Says how soon tasks ran that were to run at once.
fn report(rig: &Rig, acknowledged: &[(String, u128)]) {
    let mut calls: HashMap<String, u128> = HashMap::new();
    for request in rig.target.requests() {
        calls
            .entry(request.text("retry-id"))
            .or_insert(request.at_micros);
    }
    let mut took: Vec<u128> = acknowledged
        .iter()
        .map(|(id, at)| calls[id].saturating_sub(*at) / 1_000)
        .collect();
    took.sort_unstable();
    let part = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
    eprintln!(
        "{} parked tasks ran after their command's acknowledgement: p50 {} ms, p99 {} ms, max {} ms",
        took.len(),
        part(50),
        part(99),
        part(100)
    );
}

/// The events that there are.
fn events(records: &[Stored]) -> Vec<Event> {
    let reader = report::Reader::<Event>::default();
    let events = records.iter();
    let events = events.map(|record| reader.decode(record.value.as_ref().unwrap()).unwrap());
    events.filter(|event| event.kind == "work").collect()
}

/// What a command says at its end is what the events say, and the tasks that it has not met had been called before.
fn check_counts(
    order: &Order,
    end: &Value,
    followed: &[&Event],
    ended: &HashMap<&str, Vec<&Event>>,
) {
    let named = |event: &&&Event| order.ids.contains(&event.id);
    let is_late = |event: &&&Event| event.event == "too-late";
    assert!(followed.iter().all(|event| named(&event)), "{followed:?}");
    let late: BTreeSet<&str> = followed
        .iter()
        .filter(is_late)
        .map(|event| &*event.id)
        .collect();
    let done: Vec<&str> = followed
        .iter()
        .filter(|event| !is_late(event))
        .map(|event| &*event.id)
        .collect();
    let once: BTreeSet<&str> = done.iter().copied().collect();
    let said = format!("{end} {followed:?}");
    assert_eq!(once.len(), done.len(), "done twice with a task: {said}");
    let (tasks, met) = (order.ids.len() as u64, (once.len() + late.len()) as u64);
    assert_eq!(
        counts(end),
        (once.len() as u64, late.len() as u64),
        "{said}"
    );
    assert_eq!(end["matched"], met, "{said}");
    if order.group.selector == "id" {
        assert_eq!(end["not_found"], tasks - met, "{said}");
    }
    let may_be_called = CALLED.contains(&order.group.place);
    assert!(met == tasks || may_be_called, "{said}");
    for id in &order.ids {
        if !once.contains(&**id) && !late.contains(&**id) {
            let ends = &ended[&**id];
            assert_eq!(ends[0].event, "delivered", "not met: {ends:?}, {said}");
            assert_eq!(ends[0].command, None, "not met: {ends:?}, {said}");
        }
    }
}

/// What has to hold when everything is over.
fn judge(rig: &Rig, tasks: usize, orders: &[Order], ends: &BTreeMap<String, Value>) {
    let outcomes = rig.ends(Group::all().count() * tasks + 1);
    let all = events(&rig.read("events"));
    let mut followed: HashMap<&str, Vec<&Event>> = HashMap::new();
    let mut ended: HashMap<&str, Vec<&Event>> = HashMap::new();
    for event in &all {
        if let Some(command) = &event.command {
            followed.entry(command).or_default().push(event);
        }
        let is_end = ["delivered", "dead", "expired", "cancelled"].contains(&&*event.event);
        if is_end {
            ended.entry(&event.id).or_default().push(event);
        }
    }
    let mut calls: HashMap<String, Vec<u128>> = HashMap::new();
    for request in rig.target.requests() {
        let at = request.at_micros / 1_000;
        calls.entry(request.text("retry-id")).or_default().push(at);
    }
    for order in orders {
        let followed = followed.get(&*order.name).cloned().unwrap_or_default();
        check_counts(order, &ends[&order.name], &followed, &ended);
        for id in &order.ids {
            let of = ended.get(&**id).cloned().unwrap_or_default();
            assert_eq!(of.len(), 1, "one end of {id}: {of:?}");
            assert_eq!(outcomes[id], [of[0].event.clone()], "one callback of {id}");
            let is_met = of[0].command.as_deref() == Some(&*order.name);
            let is_cancelled = order.group.verb == "cancel" && is_met;
            let expected = if is_cancelled {
                "cancelled"
            } else {
                "delivered"
            };
            assert_eq!(of[0].event, expected, "{id}");
            let calls = calls.get(id).cloned().unwrap_or_default();
            if is_cancelled {
                let at = of[0].at as u128;
                let after = calls.iter().filter(|call| **call > at).count();
                assert_eq!(after, 0, "{id} was cancelled at {at} and called: {calls:?}");
            }
            check_calls(order, id, calls.len());
        }
    }
}

/// Where a task waits for hours, what its command says decides whether it is called.
fn check_calls(order: &Order, id: &str, calls: usize) {
    let Group { place, verb, .. } = order.group;
    let goes = verb == "run-now" || verb == "reschedule";
    let said = format!("{id} was called {calls} times");
    match place {
        "long" | "short" | "unread" => assert_eq!(calls > 0, goes, "{said}"),
        "held" => assert_eq!(calls, 0, "{said}"),
        "pending" => assert_eq!(calls > 1, goes, "{said}"),
        _ => {}
    }
}

#[test]
#[allow(
    clippy::too_many_lines,
    reason = "one thing after the other, on one set of topics"
)]
fn commands_reach_tasks_wherever_they_wait_through_kills_and_a_join() {
    let tasks = rig::size("TASKS", FEW);
    // Longer for more: a command meets calls in flight.
    let takes = Duration::from_millis(1_500 + 20 * tasks as u64);
    let rig = set_up(takes);
    let producer = rig.producer();
    let orders = |places: &[&'static str]| -> Vec<Order> {
        let groups = places.iter().flat_map(|place| Group::of(place));
        groups.flat_map(|group| group.orders(tasks)).collect()
    };
    let send_all = |orders: &[Order]| {
        for order in orders {
            order.send(&rig, &producer);
        }
        producer.flush(PATIENCE).unwrap();
    };

    // Nobody has read these yet, and one task does not exist.
    place(&rig, &producer, &["unread"], tasks);
    let unread = orders(&["unread"]);
    send_all(&unread);
    let later = json!({ "command": "cancel", "id": "later", "select": { "id": LATER } });
    send(&rig, &producer, "later", &later);
    let one = rig.run();
    let [two, three] = [(); 2].map(|()| rig.launch(&["run"]));
    for process in [&two, &three] {
        process.wait_for("shards assigned");
        // What others of the group have done by then is no reason to say so.
        assert!(
            !process.log().contains("was made anew"),
            "{}",
            process.log()
        );
    }
    let mut count = unread.len() + 1;
    let ends = ended(&rig, count);
    assert_eq!(counts(&ends["later"]), (0, 0), "{}", ends["later"]);
    hold(&rig);
    place(&rig, &producer, &WAITING, tasks);
    let (measured, mut waiting): (Vec<Order>, Vec<Order>) = orders(&WAITING)
        .into_iter()
        .partition(|order| order.group.is_measured());
    let acknowledged = hurry(&rig, &producer, &measured);
    count += measured.len();
    ended(&rig, count);

    // Some are done, and others are not, when one process dies, another comes, and one more dies.
    mix(&mut waiting);
    place(&rig, &producer, &PASSING, tasks);
    let mut passing = orders(&PASSING);
    mix(&mut passing);
    let (first, second) = passing.split_at(passing.len() / 2);
    let (before, rest) = waiting.split_at(waiting.len() / 3);
    send_all(&[first, before].concat());
    ended(&rig, count + (first.len() + before.len()) / 3);
    one.kill();
    let (between, after) = rest.split_at(rest.len() / 2);
    send_all(&[second, between].concat());
    let four = rig.launch(&["run"]);
    count += passing.len() + before.len() + between.len();
    if tasks > FEW {
        ended(&rig, count - between.len() / 2);
    }
    // Where they are few, the group does not know yet that the first one is gone.
    two.kill();
    send_all(after);
    count += after.len();
    let ends = ended(&rig, count);
    report(&rig, &acknowledged);

    complete(&rig, &producer);
    ended(&rig, count + 1);
    // The next owner knows of the command that waits.
    let headers = [("retry-scene", "long-cancel-id"), ("retry-id", LATER)];
    rig.send(&producer, &headers, b"0");
    producer.flush(PATIENCE).unwrap();
    let all: Vec<Order> = Group::all().flat_map(|group| group.orders(tasks)).collect();
    judge(&rig, tasks, &all, &ends);
    assert_eq!(
        rig.ends(1 + Group::all().count() * tasks)[LATER],
        ["cancelled"]
    );
    // Whoever has the shards of those that were killed knows what was taken: nothing is found a second time.
    let every: Vec<String> = Group::all().map(Group::scene).collect();
    let request = json!({ "command": "cancel", "id": "again", "select": { "scene": every } });
    send(&rig, &producer, "again", &request);
    producer.flush(PATIENCE).unwrap();
    let ends = ended(&rig, count + 2);
    assert_eq!(counts(&ends["again"]), (0, 0), "{}", ends["again"]);
    assert_eq!(rig.target.early(), 0);
    drop([three, four]);
}

/// Ends what is not cancelled and may still wait: what runs now waits for a rate of one in ten hours, for a key, or for a release, as it is to.
/// And where the next owner has met a task before its call, the call fails after the command, and the task waits for its next attempt.
fn complete(rig: &Rig, producer: &BaseProducer) {
    let left: Vec<String> = Group::all()
        .filter(|group| !["unread", "long", "short", "pending"].contains(&group.place))
        .filter(|group| group.verb != "cancel")
        .map(Group::scene)
        .collect();
    let request = json!({
        "command": "complete", "id": "done", "outcome": "success", "select": { "scene": left },
    });
    send(rig, producer, "done", &request);
    producer.flush(PATIENCE).unwrap();
}

/// Puts those of all groups between each other, always in the same way.
fn mix(orders: &mut [Order]) {
    orders.sort_by_key(|order| {
        let bytes = order.name.bytes();
        bytes.fold(0_u64, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(byte.into())
        }) % 1_009
    });
}

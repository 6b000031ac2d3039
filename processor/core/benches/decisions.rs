//! How long the core takes to decide: the engine's steps, the agenda, the window and its codec.
//!
//! Each figure is for a bundle of [`BUNDLE`] records, or of as many offsets as its name says.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput};

use retide_core::Position;
use retide_core::agenda::{Agenda, Item};
use retide_core::completions::{Binding, Completions};
use retide_core::lane::Limits;
use retide_core::scene::Target;
use retide_core::wait::Waited;
use retide_core::window::Window;
use retide_core::{
    Action, Backoff, Base, Engine, Gates, Header, Input, Jitter, Kind, Ladder, LaneId, Now, Origin,
    Outcome, Policy, Record, Scene, Scenes, Source, Task, Timestamp,
};

/// Records of one bundle: about as many as a worker takes in between two batches.
const BUNDLE: u64 = 1_000;

/// Calls in flight at once.
const IN_FLIGHT: u32 = 64;

/// An instant of no meaning.
const START: Timestamp = Timestamp::from_millis(1_000_000_000);

/// After everything.
const END: Timestamp = Timestamp::from_millis(2_000_000_000);

/// The lane that records are read from.
const TASKS: LaneId = LaneId {
    shard: 0,
    source: Source::Tasks,
};

/// An engine with one lane, and where that lane is.
struct Rig {
    /// The engine.
    engine: Engine,
    /// The time, which never changes: nothing that is due later comes to its time.
    now: Now,
    /// What it says.
    actions: Vec<Action>,
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    engine(&mut criterion);
    agenda(&mut criterion);
    window(&mut criterion);
    completions(&mut criterion);
    criterion.final_summary();
}

fn engine(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(BUNDLE));
    for (name, target, wait) in [
        ("due now, called, answered", Target::Call, Duration::ZERO),
        (
            "due now, to a topic",
            Target::Produce {
                topic: "orders".into(),
            },
            Duration::ZERO,
        ),
        ("due later, parked", Target::Call, Duration::from_mins(1)),
    ] {
        let mut rig = Rig::new(target);
        let mut offset = 0;
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || {
                    let first = offset;
                    offset += BUNDLE as i64;
                    let offsets = first..offset;
                    offsets.map(|offset| read(offset, wait)).collect()
                },
                |inputs: Vec<Input>| rig.run(inputs),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn agenda(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("agenda");
    group.throughput(Throughput::Elements(BUNDLE));
    for size in [1_000, 100_000] {
        let task = Arc::new(task(0, Duration::ZERO));
        let mut agenda = Agenda::default();
        let (mut random, mut sequence) = (1, 0);
        // Each takes its place within the ten seconds that follow.
        let mut item = |from: Timestamp| {
            random = next(random);
            sequence += 1;
            Item {
                wake: from + Duration::from_micros(random % 10_000_000),
                sequence,
                lane: TASKS,
                offset: sequence as i64,
                read: START,
                waited: Waited::default(),
                counted: false,
                task: Arc::clone(&task),
            }
        };
        for _ in 0..size {
            agenda.push(item(START));
        }
        group.bench_function(format!("pop and push among {size}"), |bencher| {
            bencher.iter(|| {
                for _ in 0..BUNDLE {
                    let earliest = agenda.pop_due(END).expect("as many as before");
                    agenda.push(item(earliest.wake));
                }
            });
        });
    }
    group.finish();
}

fn window(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("window");
    let count = i64::from(IN_FLIGHT) * 16;
    group.throughput(Throughput::Elements(count as u64));
    let mut window = Window::resume(0, Completions::default());
    let mut start = 0;
    group.bench_function("read, complete, commit, forget", |bencher| {
        bencher.iter(|| {
            let bundle = start..start + count;
            start = bundle.end;
            for offset in bundle.clone() {
                window.read(offset);
            }
            // Answers come in any order: here, backwards, so that the lowest offset is the last one.
            for first in bundle.step_by(IN_FLIGHT as usize) {
                for offset in (first..first + i64::from(IN_FLIGHT)).rev() {
                    window.complete(offset);
                }
            }
            black_box(window.completions().encode(Binding::default(), 0));
            window.forget_below(window.watermark());
        });
    });
    group.finish();
}

fn completions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("completions");
    let end = 10_000;
    group.throughput(Throughput::Elements(end as u64));
    let long_runs: Vec<i64> = (0..end).step_by(500).collect();
    let mut random = 1;
    let scattered: Vec<i64> = (0..end)
        .filter(|_| {
            random = next(random);
            random % 3 == 0
        })
        .collect();
    for (name, open) in [
        ("few open of 10000", long_runs),
        ("a third open of 10000", scattered),
    ] {
        let completions = Completions::between(0, end, open.into_iter());
        let text = completions.encode(Binding::default(), 0);
        group.bench_function(format!("encode, {name}"), |bencher| {
            bencher.iter(|| completions.encode(Binding::default(), 0));
        });
        group.bench_function(format!("decode, {name}"), |bencher| {
            bencher.iter(|| Completions::decode(&text, Binding::default(), 0));
        });
    }
    group.finish();
}

// === impl Rig ===

impl Rig {
    /// An engine whose scene has this target, and no limits that matter here.
    fn new(target: Target) -> Self {
        let scene = Scene {
            base: Base::default(),
            concurrency: NonZeroU32::MAX,
            ..Scene::new(
                "pay",
                target,
                Policy {
                    backoff: Backoff::classic(),
                    jitter: Jitter::Equal,
                    max_attempts: NonZeroU32::MAX,
                },
            )
        };
        let limits = Limits::of(256 << 20);
        let gates = Arc::new(Gates::default());
        let mut rig = Self {
            engine: Engine::new(Ladder::default(), limits, gates, NonZeroU32::MIN),
            now: Now {
                wall: START,
                steady: Duration::ZERO,
            },
            actions: Vec::new(),
        };
        rig.step(Input::Rules([scene].into_iter().collect::<Scenes>()));
        rig.step(Input::Assign {
            lane: TASKS,
            start: 0,
            known: Completions::default(),
        });
        rig
    }

    /// One step.
    fn step(&mut self, input: Input) {
        self.engine.step(self.now, input, &mut self.actions);
    }

    /// Takes in records, answers the calls they start, and commits: how many offsets were settled.
    fn run(&mut self, inputs: Vec<Input>) -> usize {
        let expected = inputs.len();
        let mut settled = 0;
        for input in inputs {
            self.step(input);
            while let Some(action) = self.actions.pop() {
                match action {
                    Action::Dispatch { ticket, .. } => self.step(Input::Attempted {
                        ticket,
                        outcome: Outcome::Success,
                    }),
                    Action::Settle(settlement) => {
                        black_box(settlement);
                        settled += 1;
                    }
                    Action::Pause { .. }
                    | Action::Resume { .. }
                    | Action::Drained { .. }
                    | Action::Judged { .. }
                    | Action::ReadLetters(_)
                    | Action::Look(_)
                    | Action::LimitPassed { .. }
                    | Action::Cooldown { .. }
                    | Action::Switched { .. } => {
                        unreachable!("nothing fills up and nothing is given away")
                    }
                }
            }
        }
        for commit in self.engine.commits() {
            self.step(Input::Committed {
                lane: commit.lane,
                epoch: commit.epoch,
                watermark: commit.watermark,
            });
        }
        assert_eq!(settled, expected);
        settled
    }
}

/// A record of the retry topic, whose task is due after `wait`.
fn read(offset: i64, wait: Duration) -> Input {
    Input::Record {
        position: Position {
            lane: TASKS,
            run: 0,
            offset,
        },
        appended: START,
        task: Box::new(task(offset, wait)),
    }
}

/// A task as producers make them.
fn task(offset: i64, wait: Duration) -> Task {
    Task {
        id: format!("7f9c2ba4-e88f-827d-8160-{offset:012}").into(),
        scene: "pay".into(),
        kind: Kind::Work,
        attempt: 1,
        due: START + wait,
        deferral: None,
        first_failed_at: START,
        deadline: None,
        origin: Origin {
            topic: "retry.tasks".into(),
            partition: 0,
            offset,
        },
        failure: None,
        hops: 0,
        throttled: 0,
        exhausted: None,
        held_since: None,
        pending_since: None,
        stopped: None,
        commanded: None,
        replay: None,
        record: Record {
            key: Some("customer-1".into()),
            value: Some(vec![b'x'; 512].into()),
            headers: vec![Header {
                name: "content-type".into(),
                value: Some("application/json".into()),
            }],
        },
    }
}

/// The next of a row of numbers without order, the same in every run: xorshift, by G. Marsaglia.
const fn next(mut number: u64) -> u64 {
    number ^= number << 13;
    number ^= number >> 7;
    number ^= number << 17;
    number
}

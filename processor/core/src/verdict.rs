//! From what a target said to what is done about it.
//!
//! Not the records that follow from it. Invariant: a retry is due after now, within the deadline and the attempts of its scene.

use std::time::Duration;

use crate::backoff::Base;
use crate::outcome::{Outcome, Reason, Verdict};
use crate::scene::{MAX_DELAY, OnExhausted, Scene};
use crate::task::{Kind, Stopped, Task};
use crate::time::Timestamp;

/// Shortest wait before another attempt: what due times are counted in, so that a retry is always due after the attempt it follows.
pub const LEAST_WAIT: Duration = Duration::from_millis(1);

/// The instant after which no attempt of `task` may start: the earlier of its own deadline and its scene's, later by as long as it stood
/// still. None while it does.
pub fn deadline(scene: &Scene, task: &Task) -> Option<Timestamp> {
    let of_scene = scene.deadline.map(|span| task.first_failed_at + span);
    let deadline = match (task.deadline, of_scene) {
        (Some(own), Some(of_scene)) => Some(own.min(of_scene)),
        (one, other) => one.or(other),
    };
    moved(task, deadline)
}

/// The same of a task whose scene does not exist.
pub(crate) fn own_deadline(task: &Task) -> Option<Timestamp> {
    moved(task, task.deadline)
}

/// A deadline of a task, later by as long as it stood still.
fn moved(task: &Task, deadline: Option<Timestamp>) -> Option<Timestamp> {
    match task.stopped.as_deref() {
        None => deadline,
        Some(Stopped { since: Some(_), .. }) => None,
        Some(Stopped {
            since: None,
            before,
            to: _,
        }) => deadline.map(|deadline| deadline + *before),
    }
}

/// Whether an attempt of `task` at `start` would come after its deadline.
pub fn expires(scene: &Scene, task: &Task, start: Timestamp) -> bool {
    deadline(scene, task).is_some_and(|deadline| start > deadline)
}

/// What to do about `outcome`, the answer to attempt number `task.attempt`, at `now`.
pub fn verdict(scene: &Scene, task: &Task, outcome: &Outcome, now: Timestamp) -> Verdict {
    let least = match outcome {
        Outcome::Success => return Verdict::Delivered,
        Outcome::Permanent(_) | Outcome::Refused(_) => return Verdict::Dead(Reason::Rejected),
        Outcome::Retryable(_) | Outcome::Timeout(_) => LEAST_WAIT,
        Outcome::Throttled { after, .. } => (*after).clamp(LEAST_WAIT, MAX_DELAY),
        Outcome::Pending { limit } => {
            let until = now + scene.pending.limit(*limit);
            return Verdict::Pending {
                until: until.ceil_to_millis(),
            };
        }
    };
    let policy = scene.policy_for(outcome);
    // With this one; what was throttled before does not count, nor what was before people let it go.
    let made = task.attempts_of_round();
    let counted = made.saturating_sub(task.throttled).max(1);
    let (is_last, step) = match outcome {
        Outcome::Throttled { after, .. } => {
            let is_last = task.throttled.saturating_add(1) >= scene.max_throttled.get();
            // A target that does not say when to come again is asked more and more seldom.
            let step = if after.is_zero() { made } else { counted };
            (is_last, step)
        }
        Outcome::Success
        | Outcome::Permanent(_)
        | Outcome::Refused(_)
        | Outcome::Retryable(_)
        | Outcome::Timeout(_)
        | Outcome::Pending { .. } => (counted >= policy.max_attempts.get(), counted),
    };
    if is_last {
        return match (scene.on_exhausted, task.kind) {
            (OnExhausted::Dead, _) | (_, Kind::Callback) => {
                Verdict::Dead(Reason::AttemptsExhausted)
            }
            (OnExhausted::Hold { .. }, Kind::Work) if expires(scene, task, now) => Verdict::Expired,
            (OnExhausted::Hold { .. }, Kind::Work) => Verdict::Held {
                since: now.ceil_to_millis(),
            },
        };
    }
    let base = match scene.base {
        Base::Actual => now,
        // A deferral moves the schedule with it. Not after the attempt, even if the clock was set back since.
        Base::Scheduled => task.wake().min(now),
    };
    let Some(due) = policy.next(&task.id, step, base, now + least) else {
        return Verdict::Dead(Reason::ScheduleEnded);
    };
    // Waits are never longer; points in time may be further off than anything is parked.
    if due.since(now) > MAX_DELAY {
        return Verdict::Dead(Reason::DueTooFar);
    }
    let due = due.ceil_to_millis();
    if expires(scene, task, due) {
        return Verdict::Expired;
    }
    Verdict::Retry { due }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use crate::backoff::{Backoff, Jitter, Policy};
    use crate::cron::Schedule;
    use crate::scene::Target;
    use crate::task::{Failure, Origin, Record};

    /// An instant of no meaning.
    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn policy(backoff: Backoff) -> Policy {
        Policy {
            backoff,
            jitter: Jitter::None,
            max_attempts: NonZeroU32::new(5).unwrap(),
        }
    }

    fn fixed(seconds: u64) -> Policy {
        policy(Backoff::Fixed {
            delay: secs(seconds),
        })
    }

    fn scene(policy: Policy) -> Scene {
        Scene {
            concurrency: NonZeroU32::MIN,
            ..Scene::new("pay", Target::Call, policy)
        }
    }

    fn task(due: Timestamp) -> Task {
        Task {
            id: "order-7".into(),
            scene: "pay".into(),
            kind: Kind::Work,
            attempt: 1,
            due,
            deferral: None,
            first_failed_at: due,
            deadline: None,
            origin: Origin {
                topic: "retry.tasks".into(),
                partition: 0,
                offset: 7,
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
            record: Record::default(),
        }
    }

    fn failed() -> Outcome {
        Outcome::Retryable(Failure::new("http-500", ""))
    }

    fn timeout() -> Outcome {
        Outcome::Timeout(Failure::new("timeout", ""))
    }

    fn throttled(after: Duration) -> Outcome {
        let failure = Failure::new("http-429", "");
        Outcome::Throttled { after, failure }
    }

    const fn retry(due: Timestamp) -> Verdict {
        Verdict::Retry { due }
    }

    #[test]
    fn each_class_of_failure_has_its_own_policy_or_the_scenes() {
        let mut scene = scene(fixed(10));
        scene.on.throttled = Some(fixed(60));
        scene.on.timeout = Some(Policy {
            max_attempts: NonZeroU32::MIN,
            ..fixed(10)
        });
        let of = |outcome| verdict(&scene, &task(NOW), &outcome, NOW);

        assert_eq!(of(failed()), retry(NOW + secs(10)));
        assert_eq!(of(throttled(Duration::ZERO)), retry(NOW + secs(60)));
        assert_eq!(of(throttled(secs(90))), retry(NOW + secs(90)));
        assert_eq!(of(timeout()), Verdict::Dead(Reason::AttemptsExhausted));
    }

    #[test]
    fn a_wait_counts_from_the_due_time_if_the_scene_says_so_and_never_leads_into_the_past() {
        let mut scene = scene(fixed(10));
        let due = NOW;
        let after = |took| verdict(&scene, &task(due), &failed(), due + took);
        assert_eq!(after(secs(4)), retry(due + secs(14)));

        scene.base = Base::Scheduled;
        let after = |took| verdict(&scene, &task(due), &failed(), due + took);
        assert_eq!(after(secs(4)), retry(due + secs(10)));
        assert_eq!(after(secs(25)), retry(due + secs(25) + LEAST_WAIT));
        // The clock was set back: not later than from the end of the attempt.
        let early = Timestamp::from_millis(due.as_millis() - 5_000);
        assert_eq!(
            verdict(&scene, &task(due), &failed(), early),
            retry(early + secs(10))
        );
    }

    #[test]
    fn a_schedule_waits_for_its_next_time_after_what_the_target_asked_for() {
        let schedule = Schedule::try_new("0 * * * *", "UTC").unwrap();
        let scene = scene(policy(Backoff::Cron(schedule)));
        let of = |outcome| verdict(&scene, &task(NOW), &outcome, NOW);

        // 22:13:20 on that day.
        let next = NOW + secs(2_800);
        assert_eq!(of(failed()), retry(next));
        assert_eq!(of(throttled(secs(2_800))), retry(next));
        assert_eq!(of(throttled(secs(2_801))), retry(next + secs(3_600)));
    }

    #[test]
    fn past_the_last_point_in_time_or_too_far_from_it_there_is_no_attempt() {
        let at = |times: &[Timestamp]| {
            let times = times.to_vec();
            let scene = scene(policy(Backoff::At { times }));
            verdict(&scene, &task(NOW), &failed(), NOW)
        };

        assert_eq!(at(&[NOW, NOW + secs(5)]), retry(NOW + secs(5)));
        assert_eq!(at(&[NOW]), Verdict::Dead(Reason::ScheduleEnded));
        assert_eq!(at(&[NOW + MAX_DELAY]), retry(NOW + MAX_DELAY));
        let beyond = NOW + MAX_DELAY + LEAST_WAIT;
        assert_eq!(at(&[beyond]), Verdict::Dead(Reason::DueTooFar));
    }

    fn backoff() -> impl Strategy<Value = Backoff> {
        let span = || (0_u64..400 * 86_400).prop_map(secs);
        let times = prop::collection::btree_set(0_u64..800 * 86_400, 1..5);
        prop_oneof![
            span().prop_map(|delay| Backoff::Fixed { delay }),
            (span(), span()).prop_map(|(a, b)| Backoff::Random {
                min: a.min(b),
                max: a.max(b)
            }),
            (span(), span(), 1.0_f64..100.0).prop_map(|(a, b, factor)| Backoff::Exponential {
                first: a.min(b),
                factor,
                max: a.max(b)
            }),
            times.prop_map(|times| Backoff::At {
                times: times
                    .into_iter()
                    .map(|seconds| NOW.before(secs(400 * 86_400)) + secs(seconds))
                    .collect()
            }),
            prop::sample::select(vec![
                ("* * * * *", "UTC"),
                ("30 2 * * *", "Europe/Berlin"),
                ("*/20 * * * * *", "America/New_York"),
                ("0 0 1 1 *", "Pacific/Apia"),
            ])
            .prop_map(|(text, zone)| Backoff::Cron(Schedule::try_new(text, zone).unwrap())),
        ]
    }

    proptest! {
        #[test]
        fn a_retry_is_due_after_now_and_before_the_deadline(
            backoff in backoff(),
            jitter in prop::sample::select(vec![Jitter::None, Jitter::Full, Jitter::Equal, Jitter::Decorrelated]),
            base in prop::sample::select(vec![Base::Actual, Base::Scheduled]),
            attempt in prop_oneof![1_u32..40, Just(u32::MAX - 1), Just(u32::MAX)],
            deadline in prop::option::of(1_u64..500 * 86_400),
            own in prop::option::of(0_u64..500 * 86_400),
            after in prop::option::of(0_u64..500 * 86_400),
            // Since the attempt was due; the clock may have been set back.
            took in -86_400_000_000_i64..86_400_000_000,
        ) {
            let mut scene = scene(Policy { backoff, jitter, max_attempts: NonZeroU32::MAX });
            scene.base = base;
            scene.deadline = deadline.map(secs);
            let mut task = task(NOW);
            task.attempt = attempt;
            task.deadline = own.map(|seconds| NOW + secs(seconds));
            let now = Timestamp::from_micros(NOW.as_micros().saturating_add_signed(took));
            let outcome = after.map_or_else(failed, |seconds| throttled(secs(seconds)));

            let verdict = verdict(&scene, &task, &outcome, now);

            match verdict {
                Verdict::Retry { due } => {
                    prop_assert!(due > now && due.since(now) <= MAX_DELAY + LEAST_WAIT, "{due} after {now}");
                    prop_assert_eq!(due, due.ceil_to_millis());
                    prop_assert!(super::deadline(&scene, &task).is_none_or(|deadline| due <= deadline));
                    let least = after.map_or(Duration::ZERO, secs).min(MAX_DELAY);
                    prop_assert!(due.since(now) >= least);
                }
                Verdict::Expired => prop_assert!(super::deadline(&scene, &task).is_some()),
                Verdict::Dead(Reason::AttemptsExhausted) => prop_assert_eq!(attempt, u32::MAX),
                Verdict::Dead(reason) => {
                    prop_assert!([Reason::ScheduleEnded, Reason::DueTooFar].contains(&reason));
                    prop_assert!(scene.policy.band(1).is_none());
                }
                Verdict::Delivered | Verdict::Pending { .. } | Verdict::Held { .. } => prop_assert!(false),
            }
        }
    }
}

//! The breaker against a model that keeps every call, and what it promises whatever happens.

use super::*;

use proptest::prelude::*;

use crate::gate::Gates;
use crate::task::Failure;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn part(part: f64) -> Fraction {
    Fraction::try_new(part).unwrap()
}

fn rule() -> Rule {
    Rule {
        failure_rate: part(0.5),
        slow_call: Some(secs(2)),
        slow_rate: part(0.8),
        window: secs(30),
        min_calls: 4,
        open: secs(10),
        probes: 2,
        slow_start: secs(30),
    }
}

const GOOD: Call = Call {
    failed: false,
    took: millis(5),
};
const BAD: Call = Call {
    failed: true,
    took: millis(5),
};
const SLOW: Call = Call {
    failed: false,
    took: secs(3),
};

/// Makes one call that goes so, and gives the last switch.
fn call(breaker: &Breaker, now: Duration, how: Call) -> Option<StateChange> {
    let Answer { permit, switch } = breaker.ask(now);
    let pass = permit.expect("leave");
    breaker.returned(now, pass, how).or(switch)
}

/// A breaker that opened at this time.
fn opened(rule: Rule, now: Duration) -> Breaker {
    let breaker = Breaker::new(rule);
    for _ in 0..rule.min_calls {
        call(&breaker, now, BAD);
    }
    assert_eq!(breaker.state(), State::Open);
    breaker
}

#[test]
fn it_opens_at_its_rate_and_not_before_enough_calls() {
    let breaker = Breaker::new(rule());

    let switches = [BAD, BAD, GOOD, GOOD].map(|how| call(&breaker, secs(1), how));

    let opens = StateChange {
        from: State::Closed,
        to: State::Open,
        why: TripReason::FailureRate,
        calls: Count {
            calls: 4,
            failed: 2,
            slow: 0,
        },
        since: secs(1),
        until: Some(secs(11)),
        by_people: false,
    };
    assert_eq!(switches, [None, None, None, Some(opens)]);
    assert_eq!(
        breaker.ask(secs(2)).permit,
        Err(Rejected {
            until: secs(11),
            down_for: secs(1)
        })
    );
}

#[test]
fn slow_calls_open_it_and_a_refusal_does_not() {
    let breaker = Breaker::new(rule());
    for _ in 0..3 {
        assert_eq!(call(&breaker, secs(1), SLOW), None);
    }
    let opens = call(&breaker, secs(1), SLOW).unwrap();
    assert_eq!((opens.to, opens.why), (State::Open, TripReason::SlowRate));
    assert_eq!(opens.calls.slow, 4);

    let failure = || Failure::new("x", "y");
    let after = Duration::ZERO;
    let failed = |outcome: &Outcome| Call::of(outcome, after).failed;
    assert!(failed(&Outcome::Retryable(failure())));
    assert!(failed(&Outcome::Timeout(failure())));
    assert!(failed(&Outcome::Throttled {
        after,
        failure: failure()
    }));
    assert!(!failed(&Outcome::Permanent(failure())));
    assert!(!failed(&Outcome::Success));
}

#[test]
fn a_probe_that_fails_opens_it_for_twice_as_long_up_to_a_minute() {
    let breaker = opened(rule(), secs(0));
    let mut now = secs(0);
    let mut spans = Vec::new();

    for _ in 0..5 {
        let until = breaker.ask(now).permit.unwrap_err().until;
        spans.push(until.saturating_sub(now).as_secs());
        now = until;
        let switch = call(&breaker, now, BAD);
        assert_eq!(
            switch.map(|switch| (switch.from, switch.to, switch.why)),
            Some((State::HalfOpen, State::Open, TripReason::Probes))
        );
    }

    assert_eq!(spans, [10, 20, 40, 60, 60]);
}

#[test]
fn probes_that_succeed_close_it_and_calls_grow_from_a_tenth() {
    let breaker = opened(rule(), secs(0));
    assert_eq!(call(&breaker, secs(10), GOOD).unwrap().to, State::HalfOpen);

    let closes = call(&breaker, secs(10), GOOD);

    assert_eq!(closes.unwrap().to, State::Closed);
    let most = |now| breaker.ask(now).permit.unwrap().ramp.of(64);
    assert_eq!(
        [10, 20, 25, 40, 99].map(|at| most(secs(at))),
        [7, 26, 36, 64, 64]
    );
    assert_eq!(breaker.ramp_left(secs(20)), Some(secs(20)));
    assert_eq!(breaker.ramp_left(secs(40)), None);
}

#[test]
fn probes_that_are_slow_open_it_again() {
    let breaker = opened(rule(), secs(0));

    call(&breaker, secs(10), SLOW);
    let again = call(&breaker, secs(10), SLOW);

    assert_eq!(again.unwrap().to, State::Open);
}

#[test]
fn an_answer_from_before_a_switch_says_nothing() {
    let breaker = Breaker::new(rule());
    let old = breaker.ask(secs(0)).permit.unwrap();
    for _ in 0..4 {
        call(&breaker, secs(0), BAD);
    }
    let probe = breaker.ask(secs(10)).permit.unwrap();

    assert_eq!(breaker.returned(secs(10), old, BAD), None);
    assert_eq!(breaker.state(), State::HalfOpen);
    // Nor does it give back what a probe has.
    breaker.unused(old);
    let second = breaker.ask(secs(10)).permit;
    assert!(second.is_ok());
    assert!(breaker.ask(secs(10)).permit.is_err());
    breaker.unused(probe);
    assert!(breaker.ask(secs(10)).permit.is_ok());
}

#[test]
fn a_wait_is_a_rung_of_about_half_the_outage() {
    let ladder = Ladder::default();
    let waits = |ladder: &Ladder| {
        [0, 11, 19, 20, 58, 60, 118, 120, 21_600].map(|down| wait(ladder, secs(down)).as_secs())
    };

    assert_eq!(waits(&ladder), [5, 5, 10, 10, 10, 30, 30, 60, 60]);
    let coarse = Ladder::try_new(&["now", "1h"]).unwrap();
    assert_eq!(waits(&coarse), [5, 5, 9, 10, 10, 10, 10, 10, 10]);
}

#[test]
fn workers_have_a_breaker_in_common_as_long_as_one_has_it() {
    let gates = Gates::default();
    let key = |target: &str, open| Key {
        target: target.into(),
        rule: Rule {
            open: secs(open),
            ..rule()
        },
    };
    let first = gates.breaker(&key("a", 1));

    assert!(Arc::ptr_eq(&first, &gates.breaker(&key("a", 1))));
    assert!(!Arc::ptr_eq(&first, &gates.breaker(&key("a", 2))));
    assert!(!Arc::ptr_eq(&first, &gates.breaker(&key("b", 1))));
    for _ in 0..rule().min_calls {
        call(&first, secs(0), BAD);
    }
    drop(first);
    assert_eq!(gates.breaker(&key("a", 1)).state(), State::Closed);
}

/// How many calls fail from the end of a minute on in which all were well, one after the other at this rate, until it opens.
fn in_vain(rule: Rule, per_second: u32, fails: impl Fn(u32) -> bool) -> u32 {
    let breaker = Breaker::new(rule);
    let (every, healthy) = (secs(1) / per_second, 60 * per_second);
    for number in 0..healthy {
        assert_eq!(call(&breaker, every * number, GOOD), None);
    }
    let mut failed = 0;
    for number in 0.. {
        let how = if fails(number) { BAD } else { GOOD };
        failed += u32::from(how.failed);
        if call(&breaker, every * (healthy + number), how).is_some() {
            break;
        }
    }
    failed
}

#[test]
fn what_it_opens_for_is_told() {
    let healthy = || {
        let breaker = Breaker::new(rule());
        for _ in 0..100 {
            call(&breaker, secs(1), GOOD);
        }
        breaker
    };
    let last = |how| {
        let breaker = healthy();
        let switches = [how; 4].map(|how| call(&breaker, secs(2), how));
        switches[3].map(|switch| (switch.why, switch.calls))
    };
    let count = |failed, slow| Count {
        calls: 104,
        failed,
        slow,
    };

    assert_eq!(last(BAD), Some((TripReason::FailedInARow, count(4, 0))));
    assert_eq!(last(SLOW), Some((TripReason::SlowInARow, count(0, 4))));
}

#[test]
fn an_outage_after_busy_healthy_time_opens_it_after_as_few_calls_as_after_a_quiet_one() {
    let usual = Rule {
        slow_call: None,
        min_calls: 20,
        ..rule()
    };
    let short = Rule {
        window: secs(10),
        ..usual
    };

    for per_second in [10, 100, 1_000] {
        let all = in_vain(usual, per_second, |_| true);
        // Nine of ten fail: no twenty of them in a row.
        let most = |rule| in_vain(rule, per_second, |number| number % 10 != 9);
        let (long, short) = (most(usual), most(short));
        eprintln!(
            "{per_second}/s, a minute well, then down: {all} calls in vain; where one of ten goes well, {long}, with a window of 10 s {short}"
        );
        assert_eq!(all, 20);
        assert!(short <= 6 * per_second, "{short}");
    }
}

#[test]
fn a_call_that_goes_well_ends_the_run_and_old_failures_are_none() {
    let breaker = Breaker::new(rule());
    for _ in 0..100 {
        call(&breaker, secs(1), GOOD);
    }

    for how in [BAD, BAD, BAD, GOOD, BAD, BAD, BAD] {
        assert_eq!(call(&breaker, secs(1), how), None);
    }
    // Out of the window, with the calls before: one more is one of too few.
    assert_eq!(call(&breaker, secs(40), BAD), None);

    assert_eq!(breaker.state(), State::Closed);
}

/// What happens to a breaker.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Someone asks.
    Ask,
    /// The n-th call in flight comes back.
    Return {
        nth: usize,
        failed: bool,
        slow: bool,
    },
    /// The n-th call in flight is not made.
    Unused { nth: usize },
    /// Time passes.
    Permit { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Ask),
        5 => (0_usize..8, prop::bool::weighted(0.4), prop::bool::weighted(0.3)).prop_map(|(nth, failed, slow)| Step::Return { nth, failed, slow }),
        1 => (0_usize..8).prop_map(|nth| Step::Unused { nth }),
        3 => prop_oneof![0_u64..900, 900_u64..25_000].prop_map(|millis| Step::Permit { millis }),
    ]
}

fn rules() -> impl Strategy<Value = Rule> {
    let parts = prop::sample::select(vec![0.1, 0.3, 0.5, 0.9, 1.0]);
    (
        (parts.clone(), parts, prop::bool::ANY),
        (100_u64..20_000, 1_u32..6),
        (1_u64..90_000, 1_u32..5, 0_u64..20_000),
    )
        .prop_map(
            |((failures, slow, watched), (window, min_calls), (open, probes, start))| Rule {
                failure_rate: part(failures),
                slow_call: watched.then_some(secs(1)),
                slow_rate: part(slow),
                window: millis(window),
                min_calls,
                open: millis(open),
                probes,
                slow_start: millis(start),
            },
        )
}

/// Keeps everything that ever happened since the last switch, and counts it anew each time.
struct Model {
    rule: Rule,
    state: State,
    /// When it last switched, and for how long it is open.
    at: Duration,
    span: Duration,
    /// Asks, returns and calls not made since then.
    given: usize,
    back: Vec<(Duration, Call)>,
    unused: usize,
    /// How often it has switched.
    switches: usize,
}

impl Model {
    fn switch(&mut self, now: Duration, state: State, span: Duration) {
        (self.state, self.at, self.span) = (state, now, span);
        (self.given, self.unused) = (0, 0);
        self.back.clear();
        self.switches += 1;
    }

    /// Whether one more call may be made.
    fn ask(&mut self, now: Duration) -> bool {
        if self.state == State::Open && now >= self.at + self.span {
            self.switch(now, State::HalfOpen, self.span);
        }
        let in_flight = self.given - self.unused - self.back.len();
        let may = match self.state {
            State::Closed => true,
            State::HalfOpen => in_flight < self.rule.probes as usize,
            State::Open => false,
        };
        self.given += usize::from(may);
        may
    }

    fn returned(&mut self, now: Duration, call: Call) {
        self.back.push((now, call));
        let slow = |call: &Call| self.rule.slow_call.is_some_and(|limit| call.took > limit);
        let reached = |some: usize, all: usize, part: Fraction| {
            some as f64 * 1e6 >= all as f64 * f64::from(part.0)
        };
        let again = (self.span * 2).min(self.rule.open.max(secs(60)));
        match self.state {
            State::Closed => {
                let width = self.rule.window.as_nanos() / 10;
                let number = |at: Duration| at.as_nanos() / width;
                let all: Vec<Call> = self
                    .back
                    .iter()
                    .filter(|(at, _)| number(*at) + 10 > number(now))
                    .map(|(_, call)| *call)
                    .collect();
                let failed = all.iter().filter(|call| call.failed).count();
                let least = self.rule.min_calls as usize;
                let latest = &all[all.len().saturating_sub(least)..];
                let in_a_row = latest.iter().all(|call| call.failed) || latest.iter().all(slow);
                let slow = all.iter().filter(|call| slow(call)).count();
                if all.len() >= least
                    && (reached(failed, all.len(), self.rule.failure_rate)
                        || reached(slow, all.len(), self.rule.slow_rate)
                        || in_a_row)
                {
                    self.switch(now, State::Open, self.rule.open);
                }
            }
            State::HalfOpen => {
                let calls = self.back.iter().map(|(_, call)| call);
                let slow = calls.clone().filter(|call| slow(call)).count();
                let enough = self.back.len() >= self.rule.probes as usize;
                if calls.clone().any(|call| call.failed)
                    || enough && reached(slow, self.back.len(), self.rule.slow_rate)
                {
                    self.switch(now, State::Open, again);
                } else if enough {
                    self.switch(now, State::Closed, Duration::ZERO);
                }
            }
            State::Open => panic!("a call of an open breaker"),
        }
    }
}

/// A breaker and its model after some history.
struct History {
    breaker: Breaker,
    model: Model,
    now: Duration,
    /// Calls in flight, and how often the model had switched when they began.
    calls: Vec<(Permit, usize)>,
}

impl History {
    fn new(rule: Rule) -> Self {
        Self {
            breaker: Breaker::new(rule),
            model: Model {
                rule,
                state: State::Closed,
                at: Duration::ZERO,
                span: Duration::ZERO,
                given: 0,
                back: Vec::new(),
                unused: 0,
                switches: 0,
            },
            now: Duration::ZERO,
            calls: Vec::new(),
        }
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        let before = self.model.state;
        let mut switch = None;
        match step {
            Step::Ask => {
                let answer = self.breaker.ask(self.now);
                switch = answer.switch;
                prop_assert_eq!(self.model.ask(self.now), answer.permit.is_ok());
                match answer.permit {
                    Ok(pass) => self.calls.push((pass, self.model.switches)),
                    Err(Rejected { until, .. }) => prop_assert!(until > self.now),
                }
            }
            Step::Return { nth, failed, slow } if nth < self.calls.len() => {
                let (pass, era) = self.calls.remove(nth);
                let took = if slow { secs(2) } else { Duration::ZERO };
                let call = Call { failed, took };
                switch = self.breaker.returned(self.now, pass, call);
                if era == self.model.switches {
                    self.model.returned(self.now, call);
                }
            }
            Step::Unused { nth } if nth < self.calls.len() => {
                let (pass, era) = self.calls.remove(nth);
                self.breaker.unused(pass);
                self.model.unused += usize::from(era == self.model.switches);
            }
            Step::Return { .. } | Step::Unused { .. } => {}
            Step::Permit { millis } => self.now += Duration::from_millis(millis),
        }
        prop_assert_eq!(self.breaker.state(), self.model.state);
        let switched = (before != self.model.state).then_some((before, self.model.state));
        prop_assert_eq!(switch.map(|switch| (switch.from, switch.to)), switched);
        Ok(())
    }
}

proptest! {
    #[test]
    fn it_does_what_a_model_does_that_keeps_every_call(rule in rules(), steps in prop::collection::vec(step(), 1..300)) {
        let mut history = History::new(rule);

        for step in steps {
            history.take(step)?;
            if history.model.state == State::HalfOpen {
                let switches = history.model.switches;
                let probes = history.calls.iter().filter(|(_, era)| *era == switches).count();
                prop_assert!(probes <= rule.probes as usize);
            }
        }
    }

    #[test]
    fn from_any_state_it_closes_when_the_target_answers_well_for_long_enough(rule in rules(), steps in prop::collection::vec(step(), 0..200)) {
        let mut history = History::new(rule);
        for step in steps {
            history.take(step)?;
        }
        let History { breaker, mut now, calls, .. } = history;

        // Whatever is in flight comes back well, and someone asks every second.
        for (pass, _) in calls {
            breaker.returned(now, pass, GOOD);
        }
        let longest = rule.open.max(LONGEST_OPEN) + rule.window + rule.slow_start + secs(10);
        let end = now + longest;
        while now < end {
            if let Ok(pass) = breaker.ask(now).permit {
                breaker.returned(now, pass, GOOD);
            }
            now += secs(1).min(rule.open);
            if breaker.state() == State::Closed && breaker.ramp_left(now).is_none() {
                break;
            }
        }

        prop_assert_eq!(breaker.state(), State::Closed);
        prop_assert_eq!(breaker.ask(end).permit.unwrap().ramp, Fraction::WHOLE);
    }

    #[test]
    fn the_ramp_only_grows_from_a_tenth_to_all(start in 1_u64..100_000, mut times in prop::collection::vec(0_u64..120_000, 2..40), most in 1_u32..10_000) {
        let breaker = Breaker::new(Rule { slow_start: millis(start), ..rule() });
        times.sort_unstable();

        let ramp = |at: u64| breaker.ramp(Some(Duration::ZERO), millis(at));

        prop_assert_eq!(ramp(0).0, FIRST);
        prop_assert_eq!(ramp(start), Fraction::WHOLE);
        for pair in times.windows(2) {
            prop_assert!(ramp(pair[0]) <= ramp(pair[1]));
            let (less, more) = (ramp(pair[0]).of(most), ramp(pair[1]).of(most));
            prop_assert!(1 <= less && less <= more && more <= most);
        }
    }
}

/// What people want until then.
fn order(offset: i64, force: Force, until: Duration) -> Order {
    let revision = Revision {
        partition: 0,
        offset,
    };
    Order {
        revision,
        force,
        until,
    }
}

#[test]
fn what_people_keep_open_is_not_called_and_probes_when_that_ends_or_is_taken_back() {
    for taken_back in [false, true] {
        let breaker = Breaker::new(rule());
        let open = Some(order(1, Force::Open, secs(100)));

        let switch = breaker.force(secs(1), 1, open).unwrap();
        let again = breaker.force(secs(2), 1, open);
        let denied = breaker.ask(secs(3)).permit.unwrap_err();
        let at = if taken_back {
            assert_eq!(breaker.force(secs(50), 2, None), None);
            secs(50)
        } else {
            assert!(breaker.ask(millis(99_999)).permit.is_err());
            secs(100)
        };
        let probes = [at, at, at].map(|at| breaker.ask(at).permit.is_ok());

        assert_eq!((switch.to, switch.why), (State::Open, TripReason::Forced));
        assert_eq!(again, None, "the same order counts once");
        // It may be taken back before.
        assert!(denied.until <= secs(3) + FORCED, "{denied:?}");
        assert_eq!(probes, [true, true, false], "two probes");
    }
}

#[test]
fn nothing_opens_what_people_keep_closed_until_that_ends() {
    let breaker = opened(rule(), secs(1));

    let switch = breaker.force(secs(2), 1, Some(order(1, Force::Closed, secs(60))));
    let switches = (2..60).filter_map(|second| call(&breaker, secs(second), BAD));
    let switches = switches.count();
    let after: Vec<_> = (60..64)
        .filter_map(|second| call(&breaker, secs(second), BAD))
        .collect();

    assert_eq!(switch.map(|switch| switch.to), Some(State::Closed));
    assert_eq!(switches, 0);
    assert_eq!(after.len(), 1, "from then on it decides by itself");
}

#[test]
fn who_resets_a_breaker_has_it_closed_with_its_slow_start_and_nothing_counted() {
    let breaker = opened(rule(), secs(1));
    let healthy = Breaker::new(rule());
    for _ in 0..3 {
        call(&healthy, secs(1), BAD);
    }

    let reset = breaker.force(secs(2), 1, Some(order(1, Force::Reset, secs(60))));
    let unchanged = healthy.force(secs(2), 1, Some(order(1, Force::Reset, secs(60))));
    let permit = breaker.ask(secs(2)).permit.unwrap();

    assert_eq!(reset.map(|switch| switch.to), Some(State::Closed));
    assert!(permit.ramp < Fraction::WHOLE);
    assert_eq!(unchanged, None);
    // Three failures before it and one after it are no four in a row.
    assert_eq!(call(&healthy, secs(3), BAD), None);
    assert_eq!(healthy.ask(secs(3)).permit.unwrap().ramp, Fraction::WHOLE);
}

#[test]
fn a_worker_that_hears_late_of_what_people_want_changes_nothing() {
    let breaker = Breaker::new(rule());
    let open = Some(order(1, Force::Open, secs(100)));

    let first = breaker.force(secs(1), 1, open);
    let reset = breaker.force(secs(2), 2, Some(order(2, Force::Reset, secs(100))));
    let late = breaker.force(secs(3), 1, open);

    assert_eq!(first.map(|switch| switch.to), Some(State::Open));
    assert_eq!(reset.map(|switch| switch.to), Some(State::Closed));
    assert_eq!(late, None);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn what_is_over_already_does_not_hurry_probes() {
    let breaker = Breaker::new(rule());
    breaker.force(secs(1), 1, Some(order(1, Force::Open, secs(10))));
    for _ in 0..2 {
        breaker.ask(secs(10));
    }
    let permit = breaker.ask(secs(11)).permit;
    assert!(permit.is_err(), "two probes are out");
    let breaker = Breaker::new(rule());
    breaker.force(secs(1), 1, Some(order(1, Force::Open, secs(10))));
    let fails = call(&breaker, secs(10), BAD).unwrap();

    let ended = breaker.force(secs(11), 1, None);

    assert_eq!((fails.to, fails.by_people), (State::Open, true));
    assert_eq!(ended, None);
    let denied = breaker.ask(secs(12)).permit.unwrap_err();
    assert!(denied.until > secs(12), "it is open for what calls say");
}

#[test]
fn an_outage_that_shows_when_people_let_go_is_told_once() {
    let breaker = Breaker::new(rule());
    let opened = breaker.force(secs(1), 1, Some(order(1, Force::Open, secs(10))));

    let switches: Vec<StateChange> = [(10, BAD), (30, GOOD), (30, GOOD)]
        .into_iter()
        .filter_map(|(at, how)| call(&breaker, secs(at), how))
        .filter(|switch| switch.to != State::HalfOpen)
        .collect();

    assert!(opened.is_some_and(|switch| !switch.by_people));
    let told: Vec<_> = (switches.iter())
        .map(|switch| (switch.to, switch.by_people))
        .collect();
    assert_eq!(told, [(State::Open, true), (State::Closed, false)]);
}

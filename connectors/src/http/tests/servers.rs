//! What real servers do with kept connections: see `connectors/servers`. Those that are not on the machine are told and left out; what
//! they do is done byte by byte in the other tests.
//!
//! | a burst of calls while | and so |
//! | --- | --- |
//! | nothing happens, however long the pause before it was | each call is answered, and each task is seen once |
//! | the server reads its configuration anew | the same |
//! | it ends in good order, and is started again | who is not answered was not seen: nobody listened ([`Report::gap`]) |
//! | it is killed, and started again | who is not answered may have been seen, once ([`Report::cut`]) |
//!
//! A breaker by the default rule is told of each call as the engine tells it: it opens while a server is away, if ever.

#![expect(
    clippy::print_stderr,
    reason = "which servers were there, and what came of it, is to be seen"
)]

mod program;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::time::Instant;

use retide_core::breaker::{self, Breaker, Permit, Rule, State};
use tempfile::TempDir;

use super::transport::trusting;
use super::*;

use self::program::{Ground, Running};

/// How much is tried.
struct Scale {
    /// Bursts of calls.
    bursts: usize,
    /// Calls at once.
    burst: usize,
    /// Pauses before bursts, in milliseconds, in turn.
    pauses: &'static [u64],
    /// Seconds for which the servers keep idle connections.
    keep_alive: u32,
    /// Each so many bursts the server reads its configuration anew, if it can.
    reload: usize,
    /// Each so many bursts it is started again.
    restart: usize,
    /// Each so many bursts it is killed.
    kill: usize,
}

/// Some seconds; idle connections are closed after one.
const SHORT: Scale = Scale {
    bursts: 9,
    burst: 24,
    pauses: &[0, 20, 980, 990, 1000, 1010, 1020, 1100, 0],
    keep_alive: 1,
    reload: 1,
    restart: 4,
    kill: 7,
};

/// Some minutes; idle connections are closed after five seconds, as several of the servers do by default.
const LONG: Scale = Scale {
    bursts: 79,
    burst: 64,
    pauses: &[
        0, 20, 4000, 4900, 4980, 500, 4990, 5000, 5005, 0, 5010, 5050, 100, 5500, 6000,
    ],
    keep_alive: 5,
    reload: 3,
    restart: 13,
    kill: 20,
};

/// What a call is that comes as a server begins anew: nobody listened; its handshake was cut off; cut off on a new connection, or on a kept one.
const IN_GAP: [&str; 4] = ["connect", "tls", "reply", "unsent"];

/// Those of them that say that the request was not begun.
const NOT_BEGUN: [&str; 2] = ["connect", "tls"];

/// What the server did during a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// It answered.
    Nothing,
    /// It read its configuration anew.
    Reload,
    /// It ended in good order and was started again.
    Restart,
    /// It was killed and started again.
    Kill,
}

/// A call and what came of it.
struct Called {
    task: String,
    during: Event,
    outcome: Outcome,
    /// Whether the breaker opened for it.
    opened: bool,
}

/// The breaker of a server, asked and told as the engine does it.
struct Guard {
    breaker: Breaker,
    /// When its time began.
    start: Instant,
}

/// What came of a campaign.
#[derive(Debug, Default)]
struct Report {
    /// Calls.
    calls: usize,
    /// Restarts in good order, reloads and kills.
    events: BTreeMap<&'static str, usize>,
    /// Calls that nobody took as the server was started again in good order, by their class.
    gap: BTreeMap<String, usize>,
    /// Calls without an answer as it was killed, by their class, and whether they had been processed.
    cut: BTreeMap<(String, bool), usize>,
    /// Tasks that were processed a second time, having been cut off on a kept connection as the server was killed.
    again: usize,
    /// Times that the breaker opened, the server being away.
    opened: usize,
}

// === impl Guard ===

impl Guard {
    /// A closed breaker.
    fn new() -> Arc<Self> {
        Arc::new(Self {
            breaker: Breaker::new(Rule::DEFAULT),
            start: Instant::now(),
        })
    }

    /// A permit for a call. Who gets none calls all the same: what is tried here is HTTP, and who waits for a breaker tries nothing.
    fn ask(&self) -> (Option<Permit>, Duration) {
        let now = self.start.elapsed();
        (self.breaker.ask(now).permit.ok(), now)
    }

    /// What came of a call: whether the breaker has opened for it.
    fn returned(&self, (permit, begun): (Option<Permit>, Duration), outcome: &Outcome) -> bool {
        let now = self.start.elapsed();
        let call = breaker::Call::of(outcome, now.saturating_sub(begun));
        let switch = permit.and_then(|permit| self.breaker.returned(now, permit, call));
        switch.is_some_and(|switch| switch.to == State::Open)
    }
}

/// Calls of a server: by a client as it is by default, and by one that keeps connections for longer than any server does.
fn clients(running: &Running, outbound: &Outbound) -> [Arc<Http>; 2] {
    let mut config = Config::new(running.program.url());
    config.timeout = Duration::from_secs(20);
    // lighttpd has no way to answer a POST with 200 by itself.
    config.success = vec![Status::Code(307)];
    let keeps = Config {
        idle_timeout: Some(Duration::from_mins(1)),
        ..config.clone()
    };
    [config, keeps].map(|config| Arc::new(Http::within(config, outbound).expect("valid")))
}

/// What happens to a server during a burst.
fn event(running: &Running, scale: &Scale, burst: usize) -> Event {
    let program = &running.program;
    let is_due = |each: usize| burst % each == each - 1;
    if is_due(scale.kill) && program.is_single {
        Event::Kill
    } else if is_due(scale.restart) && program.quits.is_some() {
        Event::Restart
    } else if is_due(scale.reload) && program.reloads.is_some() {
        Event::Reload
    } else {
        Event::Nothing
    }
}

/// Bursts with pauses between them; what came of each call.
async fn campaign(running: &mut Running, outbound: &Outbound, scale: &Scale) -> Vec<Called> {
    let clients = clients(running, outbound);
    let mut guard = Guard::new();
    let mut called = Vec::new();
    for (number, pause) in (0..scale.bursts).zip(scale.pauses.iter().cycle()) {
        tokio::time::sleep(Duration::from_millis(*pause)).await;
        let during = event(running, scale, number);
        let burst: Vec<_> = (0..scale.burst)
            .map(|call| {
                let (all, guard) = (clients.clone(), Arc::clone(&guard));
                let client = Arc::clone(&clients[call % clients.len()]);
                let id = format!("{number}-{call}");
                let task = Task {
                    id: id.as_str().into(),
                    ..fixture::task(&[])
                };
                tokio::spawn(async move {
                    let leave = guard.ask();
                    let outcome = client.attempt(Arc::new(task)).await.outcome;
                    let opened = guard.returned(leave, &outcome);
                    if opened {
                        for client in all {
                            client.renew(&client.config.authority().expect("it calls"));
                        }
                    }
                    (id, outcome, opened)
                })
            })
            .collect();
        let (quits, reloads) = (running.program.quits, running.program.reloads);
        match during {
            Event::Nothing => {}
            Event::Reload => running.reload(reloads.expect("it can")),
            Event::Restart => running.restart(quits.expect("it can")).await,
            Event::Kill => running.restart("-KILL").await,
        }
        for one in burst {
            let (task, outcome, opened) = one.await.expect("no panic");
            called.push(Called {
                task,
                during,
                outcome,
                opened,
            });
        }
        // What a server that was away has done to it says nothing of the one that is back.
        if [Event::Restart, Event::Kill].contains(&during) {
            guard = Guard::new();
        }
    }
    called
}

/// What a server has seen, once it is as much as was answered: logs are written a moment after the answer.
async fn seen(running: &Running, called: &[Called]) -> HashMap<String, usize> {
    let start = Instant::now();
    loop {
        let mut seen: HashMap<String, usize> = HashMap::new();
        for task in running.seen() {
            *seen.entry(task).or_default() += 1;
        }
        let mut answered = called.iter().filter(|one| one.outcome == Outcome::Success);
        let is_over = start.elapsed() > Duration::from_secs(30);
        if is_over || answered.all(|one| seen.contains_key(&one.task)) {
            return seen;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Compares what came of the calls with what the server has seen.
fn judge(name: &str, called: &[Called], seen: &HashMap<String, usize>) -> Report {
    let mut report = Report::default();
    for Called {
        task,
        during,
        outcome,
        opened,
    } in called
    {
        report.calls += 1;
        let times = seen.get(task).copied().unwrap_or_default();
        let told = format!("{name}: {task} during {during:?}, seen {times} times: {outcome:?}");
        if *opened {
            let is_away = [Event::Restart, Event::Kill].contains(during);
            assert!(is_away, "the breaker opens at a healthy server: {told}");
            report.opened += 1;
        }
        match (during, outcome.failure()) {
            (Event::Nothing | Event::Reload | Event::Restart, None) => {
                assert_eq!(times, 1, "{told}");
            }
            (Event::Nothing | Event::Reload, Some(_)) => panic!("{told}"),
            (Event::Restart, Some(failure)) => {
                assert_eq!(times, 0, "{told}");
                assert!(IN_GAP.contains(&&*failure.class), "{told}");
                *report.gap.entry(failure.class.to_string()).or_default() += 1;
            }
            (Event::Kill, None) => {
                assert!((1..=2).contains(&times), "{told}");
                report.again += times - 1;
            }
            (Event::Kill, Some(failure)) => {
                assert!(IN_GAP.contains(&&*failure.class), "{told}");
                let is_begun = !NOT_BEGUN.contains(&&*failure.class);
                assert!(times <= usize::from(is_begun), "{told}");
                let of = (failure.class.to_string(), times > 0);
                *report.cut.entry(of).or_default() += 1;
            }
        }
    }
    assert!(
        seen.keys()
            .all(|task| called.iter().any(|one| one.task == *task)),
        "{name}: only what was called is seen"
    );
    report
}

/// A campaign with each server that is there.
async fn campaigns(scale: &'static Scale) {
    let dir = TempDir::new().expect("a folder");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
    let made = made.expect("a certificate");
    let certificate = tls::tests::pem("CERTIFICATE", made.cert.der());
    let key = tls::tests::pem("PRIVATE KEY", &made.signing_key.serialize_der());
    fs::write(dir.path().join("cert.pem"), certificate).expect("it is written");
    fs::write(dir.path().join("key.pem"), key).expect("it is written");
    let (outbound, _ca) = trusting(made.cert.der());
    let outbound = Arc::new(outbound);
    let ground = Ground {
        dir: dir.path(),
        keep_alive: scale.keep_alive,
    };

    let campaigns: Vec<_> = ground
        .programs()
        .await
        .into_iter()
        .map(|program| {
            let outbound = Arc::clone(&outbound);
            tokio::spawn(async move {
                let mut running = program.start().await;
                let called = campaign(&mut running, &outbound, scale).await;
                let seen = seen(&running, &called).await;
                let name = running.program.name;
                let mut report = judge(name, &called, &seen);
                for one in called.chunks(scale.burst) {
                    let word = match one[0].during {
                        Event::Nothing => continue,
                        Event::Reload => "reloads",
                        Event::Restart => "restarts",
                        Event::Kill => "kills",
                    };
                    *report.events.entry(word).or_default() += 1;
                }
                (name, report)
            })
        })
        .collect();

    let mut failed = false;
    for campaign in campaigns {
        match campaign.await {
            Ok((name, report)) => eprintln!("{name}: {report:?}"),
            Err(error) => {
                failed = true;
                let said = error.into_panic();
                // Once more, where it is seen: below all that the others say.
                eprintln!(
                    "{}",
                    said.downcast_ref::<String>().map_or("", String::as_str)
                );
            }
        }
    }
    assert!(
        !failed,
        "a server is said above to have been called in vain"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_attempt_is_lost_to_http_at_real_servers() {
    campaigns(&SHORT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: connectors/servers/run"]
async fn no_attempt_of_thousands_is_lost_to_http_at_real_servers() {
    campaigns(&LONG).await;
}

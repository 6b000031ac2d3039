//! What is worth telling people: each notable thing is a struct, and `emit` writes its log line and its metric together.
//!
//! Not the audit log of tasks, which is a topic. Invariant: no line and no label names a task or holds what its producer wrote.

use std::time::Duration;

use rdkafka::error::KafkaError;
use tracing::{debug, error, info, warn};

use retide_core::breaker::{Count, State, StateChange};
use retide_core::completions;
use retide_core::control::{Answer, Control, Ended, Refusal, Step};
use retide_core::cooldown::{Signal, Teller};
use retide_core::duplicates::MOST;
use retide_core::key_order::Unreadable;
use retide_core::{Origin, span};
use retide_kafka::client::{is_away, is_missing};

use crate::metrics::Metrics;
use crate::metrics::tally::Tally;
use crate::worker::restore::Gap;

/// A worker has begun.
pub(crate) struct WorkerStarted<'a> {
    /// Its name.
    pub(crate) worker: &'a str,
}

/// A worker has let go of everything.
pub(crate) struct WorkerStopped<'a> {
    /// Its name.
    pub(crate) worker: &'a str,
    /// What ended it, unless it was asked to stop.
    pub(crate) error: Option<&'a KafkaError>,
}

/// Other rules are in force in a worker.
pub(crate) struct RulesChanged<'a> {
    /// The worker.
    pub(crate) worker: &'a str,
    /// How many scenes there are.
    pub(crate) scenes: usize,
}

/// A worker was given shards, or none.
pub(crate) struct ShardsAssigned<'a> {
    /// The worker.
    pub(crate) worker: &'a str,
    /// The shards.
    pub(crate) shards: &'a [i32],
}

/// A worker is asked to give shards away.
pub(crate) struct ShardsRevoked<'a> {
    /// The worker.
    pub(crate) worker: &'a str,
    /// The shards.
    pub(crate) shards: &'a [i32],
}

/// A worker was out of the group for so long that its shards are gone.
pub(crate) struct ShardsLost<'a> {
    /// The worker.
    pub(crate) worker: &'a str,
    /// The shards.
    pub(crate) shards: &'a [i32],
}

/// What a commit says of offsets above it cannot be believed: they are done again.
pub(crate) struct CommitUnreadable<'a> {
    /// The topic.
    pub(crate) topic: &'a str,
    /// The partition.
    pub(crate) partition: i32,
    /// The offset that is committed.
    pub(crate) offset: i64,
    /// What is wrong with it.
    pub(crate) error: &'a completions::Error,
}

/// A record at which processes have died is not taken into hand: it is a dead letter.
pub(crate) struct RecordSetAside<'a> {
    /// Where it is.
    pub(crate) origin: &'a Origin,
    /// How many have.
    pub(crate) deaths: u32,
}

/// What former owners of shards knew of the order of tasks was read.
pub(crate) struct OrderRead<'a> {
    /// The shards.
    pub(crate) shards: &'a [i32],
    /// How many keys have outstanding tasks.
    pub(crate) keys: usize,
    /// How long that took.
    pub(crate) took: Duration,
}

/// A record of the order topic could not be read: it is passed over.
pub(crate) struct OrderUnreadable<'a> {
    /// The topic.
    pub(crate) topic: &'a str,
    /// The partition.
    pub(crate) partition: i32,
    /// The offset.
    pub(crate) offset: i64,
    /// What is wrong with it.
    pub(crate) error: Unreadable,
}

/// A record of the order topic that is about commands could not be read: it is passed over.
pub(crate) struct StateUnreadable<'a> {
    /// The topic.
    pub(crate) topic: &'a str,
    /// The partition.
    pub(crate) partition: i32,
    /// The offset.
    pub(crate) offset: i64,
}

/// Shards have no room for the ids of tasks: duplicates of those are not found.
pub(crate) struct IdsUnknown {
    /// How many tasks that are.
    pub(crate) tasks: u64,
}

/// A record of the commands topic was read: what somebody wants, or what becomes of it.
pub(crate) struct CommandRead<'a> {
    /// What it says.
    pub(crate) control: &'a Control,
}

/// A record of the commands topic is refused.
pub(crate) struct CommandRefused<'a> {
    /// Where it stands, and why.
    pub(crate) refusal: &'a Refusal,
}

/// Records were gone before they were read; reading goes on behind them.
pub(crate) struct RecordsGone<'a> {
    /// What is gone.
    pub(crate) gap: &'a Gap,
}

/// A topic was deleted under a worker that had not read all of it.
pub(crate) struct TopicDeleted<'a> {
    /// The topic.
    pub(crate) topic: &'a str,
    /// Most records of this worker's shards that were not read; markers of transactions may be among them.
    pub(crate) records: u64,
}

/// Parked tasks that others of their keys wait for are in no tier any more: the others go on.
pub(crate) struct AwaitedGone<'a> {
    /// The shard.
    pub(crate) shard: i32,
    /// How many.
    pub(crate) tasks: usize,
    /// The place of one of them on the retry topic.
    pub(crate) example: &'a str,
}

/// The consumer met an error and goes on by itself.
pub(crate) struct ConsumerReported<'a> {
    /// The error.
    pub(crate) error: &'a KafkaError,
}

/// A batch is durable.
pub(crate) struct BatchCommitted {
    /// How long that took.
    pub(crate) took: Duration,
    /// What was in it.
    pub(crate) tally: Tally,
}

/// A batch came to nothing: its shards are no longer ours.
pub(crate) struct BatchDropped {
    /// Of how many lanes offsets were in it.
    pub(crate) lanes: usize,
}

/// A transaction was aborted; its batch is written again.
pub(crate) struct BatchAborted<'a> {
    /// The worker.
    pub(crate) worker: &'a str,
    /// Why.
    pub(crate) error: &'a KafkaError,
}

/// A batch did not fit the time that it had; it is written in smaller ones.
pub(crate) struct BatchSlow {
    /// How many of its records were acknowledged.
    pub(crate) done: usize,
    /// How many there are.
    pub(crate) of: usize,
}

/// A batch was handed back: what cannot be written of it waits or ends, the rest is written again.
pub(crate) struct BatchReturned {
    /// How many of its records are refused for good.
    pub(crate) refused: usize,
}

/// A producer is of no use any more, and another one is made.
pub(crate) struct ProducerReplaced<'a> {
    /// The worker.
    pub(crate) worker: &'a str,
    /// What it failed at.
    pub(crate) at: &'static str,
    /// How.
    pub(crate) error: &'a KafkaError,
}

/// A producer took so long that one of its requests may have been sent twice; another one is made before the first copy can do harm.
pub(crate) struct ProducerDistrusted {
    /// How long it took.
    pub(crate) took: Duration,
}

/// Target topics refused records; what follows from that was written instead.
pub(crate) struct RecordsRefused {
    /// How many.
    pub(crate) count: usize,
}

/// A target's connector panicked; its task is tried again.
pub(crate) struct TargetPanicked<'a> {
    /// The scene.
    pub(crate) scene: &'a str,
    /// What it said.
    pub(crate) message: &'a str,
}

/// The breaker of a target has switched.
pub(crate) struct BreakerSwitched<'a> {
    /// The target.
    pub(crate) target: &'a str,
    /// From what to what.
    pub(crate) switch: StateChange,
}

/// A server has asked for rest.
pub(crate) struct CooldownBegan<'a> {
    /// What others are told of it.
    pub(crate) signal: &'a Signal,
    /// Who has told this process.
    pub(crate) told_by: Teller,
}

// === impl WorkerStarted ===

impl WorkerStarted<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        info!(worker = self.worker, "worker started");
        metrics.workers.inc();
    }
}

// === impl WorkerStopped ===

impl WorkerStopped<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self { worker, error } = self;
        match error {
            None => info!(worker, "worker stopped"),
            Some(error) => error!(%error, worker, "worker failed"),
        }
        metrics.workers.dec();
    }
}

// === impl RulesChanged ===

impl RulesChanged<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self { worker, scenes } = self;
        info!(worker, scenes, "scene rules changed");
        metrics.scenes_in_force.set(scenes as i64);
    }
}

// === impl ShardsAssigned ===

impl ShardsAssigned<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        info!(worker = self.worker, shards = ?self.shards, "shards assigned");
        metrics.rebalances_assigned.inc();
    }
}

// === impl ShardsRevoked ===

impl ShardsRevoked<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        info!(worker = self.worker, shards = ?self.shards, "shards revoked");
        metrics.rebalances_revoked.inc();
    }
}

// === impl ShardsLost ===

impl ShardsLost<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        warn!(worker = self.worker, shards = ?self.shards, "shards lost");
        metrics.rebalances_lost.inc();
    }
}

// === impl CommitUnreadable ===

impl CommitUnreadable<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self {
            topic,
            partition,
            offset,
            error,
        } = self;
        warn!(
            %error,
            topic, partition, offset, "commit metadata not believed, taken as empty: tasks above the offset may run again"
        );
        metrics.unreadable_commits.inc();
    }
}

// === impl RecordSetAside ===

impl RecordSetAside<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self {
            origin:
                Origin {
                    topic,
                    partition,
                    offset,
                },
            deaths,
        } = self;
        error!(
            %topic,
            partition, offset, deaths, "record set aside as a dead letter: processes died at it"
        );
        metrics.set_aside_records.inc();
    }
}

// === impl IdsUnknown ===

impl IdsUnknown {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self { tasks } = self;
        metrics.commands.ids.unknown.inc_by(tasks);
        warn!(
            tasks,
            most = MOST,
            "more tasks are under way in a shard than it has room for ids: duplicates of these are not found"
        );
    }
}

// === impl OrderRead ===

impl OrderRead<'_> {
    /// Writes the log.
    pub(crate) fn emit(self) {
        let Self { shards, keys, took } = self;
        info!(?shards, keys, ?took, "order of tasks read");
    }
}

// === impl OrderUnreadable ===

impl OrderUnreadable<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self {
            topic,
            partition,
            offset,
            error,
        } = self;
        warn!(%error, topic, partition, offset, "record unreadable, passed over: the order of its key is not known");
        metrics.unreadable_orders.inc();
    }
}

// === impl StateUnreadable ===

impl StateUnreadable<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self {
            topic,
            partition,
            offset,
        } = self;
        warn!(
            topic,
            partition,
            offset,
            "record unreadable, passed over: how far a command is, or what it has taken, is not known"
        );
        metrics.unreadable_orders.inc();
    }
}

// === impl CommandRead ===

impl CommandRead<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        match self.control {
            Control::Request(command) => {
                let verb = command.verb.word();
                let (id, by, reason) = (&*command.id, &*command.by, &*command.reason);
                info!(id, verb, by, reason, place = %command.place, "command read");
                metrics.commands.request(verb);
            }
            Control::Step(Step {
                command, looked, ..
            }) => {
                let (id, place) = (&*command.id, command.place);
                let stands = looked.is_some();
                debug!(id, %place, stands, "step of a command read");
            }
            Control::Answer(Answer {
                place,
                id,
                of,
                counts,
                ..
            }) => {
                let (id, done, too_late) = (&**id, counts.done, counts.too_late);
                debug!(id, %place, shards = ?of, done, too_late, "shards have done a command");
            }
            Control::Ended(Ended {
                place,
                id,
                ids,
                result,
                ..
            }) => match result {
                Ok(counts) => {
                    let (done, too_late) = (counts.done, counts.too_late);
                    let not_found = counts.not_found(*ids);
                    info!(id = &**id, %place, done, too_late, not_found, "command ended");
                    metrics.commands.ended();
                }
                Err(why) => {
                    let why = &**why;
                    info!(id = &**id, %place, why, "command ended, nothing was done");
                    metrics.commands.ended();
                }
            },
            Control::Ask(asked) => {
                let verb = asked.verb.word();
                let (id, by, reason) = (&*asked.id, &*asked.by, &*asked.reason);
                let campaign = &*asked.name;
                info!(id, verb, campaign, by, reason, place = %asked.place, "command read");
                metrics.commands.request(verb);
            }
            Control::Campaign(campaign) => {
                let (name, state) = (&*campaign.id.name, campaign.state.word());
                let (replayed, out) = (campaign.counts.replayed, campaign.out());
                debug!(campaign = name, state, replayed, out, "campaign goes on");
            }
            Control::Report(report) => {
                let name = &*report.campaign.name;
                debug!(campaign = name, "tasks of a campaign have said something");
            }
        }
    }
}

// === impl CommandRefused ===

impl CommandRefused<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Refusal { place, id, why } = self.refusal;
        warn!(id = &**id, %place, why = &**why, "command refused");
        metrics.commands.refused();
    }
}

// === impl RecordsGone ===

impl RecordsGone<'_> {
    /// Writes log and metric, and begins the trouble.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Gap {
            topic,
            lane,
            from,
            to,
            ..
        } = self.gap;
        error!(
            topic = &**topic,
            partition = lane.shard,
            from,
            to,
            "records gone before they were read"
        );
        let records = u64::try_from(self.gap.records()).unwrap_or_default();
        metrics.records_gone.inc_by(records);
    }
}

// === impl TopicDeleted ===

impl TopicDeleted<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self { topic, records } = self;
        error!(
            topic,
            records, "topic deleted while records of it were not read"
        );
        metrics.records_gone.inc_by(records);
    }
}

// === impl AwaitedGone ===

impl AwaitedGone<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self {
            shard,
            tasks,
            example,
        } = self;
        error!(
            shard,
            tasks, example, "parked tasks that their keys wait for are gone, the next ones go on"
        );
        metrics.awaited_gone.inc_by(tasks as u64);
    }
}

// === impl ConsumerReported ===

impl ConsumerReported<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self { error } = self;
        if is_away(error) {
            debug!(%error, "consumer cannot reach a broker");
        } else if error.rdkafka_error_code().is_some_and(is_missing) {
            // Told once for the topic.
            debug!(%error, "consumer misses a topic");
        } else {
            warn!(%error, "consumer reports an error");
        }
        metrics.consumer_errors.inc();
    }
}

// === impl BatchCommitted ===

impl BatchCommitted {
    /// Writes log and metrics.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self { took, tally } = self;
        debug!(?took, "batch committed");
        metrics.batches_committed.inc();
        metrics.ledger_commit.observe(took.as_secs_f64());
        tally.add_to(metrics);
    }
}

// === impl BatchDropped ===

impl BatchDropped {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        warn!(
            lanes = self.lanes,
            "batch dropped, its shards are no longer ours"
        );
        metrics.batches_dropped.inc();
    }
}

// === impl BatchAborted ===

impl BatchAborted<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self { worker, error } = self;
        warn!(%error, worker, "transaction aborted, writing its batch again");
        metrics.batches_aborted.inc();
    }
}

// === impl BatchSlow ===

impl BatchSlow {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self { done, of } = self;
        warn!(
            done,
            of, "batch too slow, its records are written in smaller ones"
        );
        metrics.batches_aborted.inc();
    }
}

// === impl BatchReturned ===

impl BatchReturned {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        if self.refused > 0 {
            let refused = self.refused;
            warn!(refused, "topics refuse records for good, their tasks die");
        }
        metrics.batches_returned.inc();
    }
}

// === impl ProducerReplaced ===

impl ProducerReplaced<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self { worker, at, error } = self;
        warn!(%error, worker, at, "producer given up, starting a new one");
        metrics.producers_replaced.inc();
    }
}

// === impl ProducerDistrusted ===

impl ProducerDistrusted {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let took_ms = self.took.as_millis();
        info!(took_ms, "slow transaction, starting a new producer");
        metrics.producers_replaced.inc();
    }
}

// === impl RecordsRefused ===

impl RecordsRefused {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        warn!(count = self.count, "target topics refused records");
        metrics.refused_records.inc_by(self.count as u64);
    }
}

// === impl TargetPanicked ===

impl TargetPanicked<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        error!(
            message = self.message,
            scene = self.scene,
            "target panicked"
        );
        metrics.target_panics.inc();
    }
}

// === impl CooldownBegan ===

impl CooldownBegan<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Signal {
            server,
            left,
            passed,
        } = self.signal;
        let (rest, told_by) = (span::text(*left), self.told_by.word());
        info!(
            target = &**server,
            rest, passed, told_by, "target wants rest"
        );
        metrics.cooldown_began(server, self.told_by);
    }
}

// === impl BreakerSwitched ===

impl BreakerSwitched<'_> {
    /// Writes log and metric.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self { target, switch } = self;
        let StateChange {
            from,
            to,
            why,
            calls,
            ..
        } = switch;
        let Count {
            calls,
            failed,
            slow,
        } = calls;
        let (from, now, why) = (from.word(), to.word(), why.word());
        match to {
            State::Open => warn!(
                target,
                from,
                to = now,
                why,
                calls,
                failed,
                slow,
                "breaker switched"
            ),
            State::HalfOpen | State::Closed => {
                info!(target, from, to = now, why, calls, "breaker switched");
            }
        }
        metrics.breaker_switched(target, to);
    }
}

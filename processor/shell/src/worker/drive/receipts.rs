//! Receipts: what became of a batch, told to the engine. It is durable, was dropped with its shards, or is written again.

use std::time::Instant;

use retide_core::{Commit, Entry, Fate, Input, Returned, Settlement, State as Kept};

use crate::event::{BatchCommitted, BatchDropped, BatchReturned, RecordsRefused};
use crate::metrics::tally::Tally;
use crate::worker::drive::State;
use crate::worker::drive::batch::UnderWay;
use crate::worker::ledger::{Content, Ledger, Receipt, ReturnedBatch, Settled};

// === impl State ===

impl<L: Ledger> State<L> {
    /// A batch is durable, or was dropped with its shards.
    pub(super) fn received(&mut self, receipt: Option<Receipt>) {
        let Some(receipt) = receipt else { return };
        let UnderWay {
            commits,
            mut tally,
            is_early,
            ..
        } = self
            .under_way
            .pop_front()
            .unwrap_or_else(|| unreachable!("a receipt without a batch"));
        self.received += 1;
        self.returning = self.returning.saturating_sub(1);
        if !matches!(receipt, Receipt::Returned(_)) {
            let rest = !self.under_way.is_empty() || !self.settled.is_empty();
            self.waiting_since = rest.then(Instant::now);
        }
        match receipt {
            Receipt::Committed { took, refused } => {
                self.widen(took);
                if is_early {
                    self.hurry.committed(Instant::now(), took);
                }
                for settled in &refused {
                    if let (Content::Entries(entries), Content::Entries(otherwise)) =
                        (&settled.records, &settled.otherwise)
                    {
                        let [before, records] =
                            [entries, otherwise].map(|entries| self.parts.encoder.records(entries));
                        tally.refuse((entries, before), (otherwise, records));
                    }
                }
                let metrics = &self.parts.metrics;
                BatchCommitted { took, tally }.emit(metrics);
                // Besides, people are told of those that died of it.
                let count = refused
                    .iter()
                    .filter(|settled| settled.offset.is_some())
                    .count();
                if count > 0 {
                    RecordsRefused { count }.emit(metrics);
                }
                for (lane, offset) in refused.into_iter().filter_map(|settled| settled.offset) {
                    if let Some(commit) = commits.iter().find(|commit| commit.lane == lane) {
                        let epoch = commit.epoch;
                        self.step(Input::Refused {
                            lane,
                            epoch,
                            offset,
                        });
                    }
                }
                for commit in commits {
                    self.ids().forget_below(commit.lane, commit.watermark);
                    self.step(Input::Committed {
                        lane: commit.lane,
                        epoch: commit.epoch,
                        watermark: commit.watermark,
                    });
                }
            }
            Receipt::Dropped => {
                let lanes = commits.len();
                BatchDropped { lanes }.emit(&self.parts.metrics);
            }
            Receipt::Returned(batch) => self.returned(&commits, *batch),
        }
    }

    /// A batch was not written: the engine settles what can be written again.
    fn returned(&mut self, commits: &[Commit], batch: ReturnedBatch) {
        self.returns += 1;
        // What it held is durable later than was thought.
        self.awaiting.suspects = None;
        self.returning = self.under_way.len();
        let ReturnedBatch {
            settled,
            mut refused,
            written,
            slow,
        } = batch;
        let count = refused.len();
        BatchReturned { refused: count }.emit(&self.parts.metrics);
        let now = self.now().wall;
        let mut returned = Returned {
            lanes: commits.iter().map(|of| (of.lane, of.epoch)).collect(),
            ..Returned::default()
        };
        let mut tally = Tally::new(&self.parts.metrics, &self.counters);
        let mut bytes = 0;
        for (index, settled) in settled.into_iter().enumerate() {
            if settled.offset.is_some() && written.contains(&index) {
                let records = self.parts.encoder.records(settled.records.entries());
                tally.count(&settled, records, now);
            }
            let Settled {
                shards,
                offset,
                records,
                otherwise,
                applied,
                refused: _,
            } = settled;
            let (entries, otherwise) = match (records, otherwise) {
                (Content::Entries(entries), Content::Entries(otherwise)) => (entries, otherwise),
                (Content::Records(_) | Content::Entries(_), _) => continue,
            };
            let Some((lane, offset)) = offset else {
                let is_over = written.contains(&index) || refused.contains_key(&index);
                self.unwritten_beside(shards.own, entries, is_over, &mut returned);
                continue;
            };
            let mut settlement = Settlement {
                lane,
                offset,
                home: shards.home,
                entries,
                otherwise,
                applied,
            };
            bytes += settlement.memory_size();
            if written.contains(&index) {
                settlement.entries.clear();
                settlement.otherwise.clear();
            }
            let refused = refused.remove(&index);
            let fate = refused.map_or(Fate::Again, |(sink, failure)| Fate::Refused(sink, failure));
            returned.settlements.push((settlement, fate));
        }
        tally.add_to(&self.parts.metrics);
        if let Some(share) = slow {
            self.narrow(share, returned.settlements.len(), bytes);
        }
        self.follow_writable();
        self.follow_readable();
        self.step(Input::Returned(Box::new(returned)));
        for leaving in &mut self.leaving {
            leaving.unwritten();
        }
        if self.settled.is_empty() && self.parts.engine.to_write_again() == 0 {
            // What is left waits for a topic.
            self.waiting_since = None;
        }
    }

    /// What was to be written besides settlements was not, unless that `is_over`: of the order of keys, or for people.
    fn unwritten_beside(
        &mut self,
        shard: i32,
        entries: Vec<Entry>,
        is_over: bool,
        returned: &mut Returned,
    ) {
        for entry in entries {
            match entry {
                Entry::State(state @ (Kept::Order(_) | Kept::Id { .. }))
                    if !self.parts.ledger.keeps_order() =>
                {
                    self.outdated.push((shard, state));
                }
                Entry::State(state) => returned.changes.push((shard, state.key())),
                Entry::Alert(_) if is_over => {}
                Entry::Alert(alert) => returned.alerts.push((shard, alert)),
                Entry::Park { .. }
                | Entry::Deliver { .. }
                | Entry::DeadLetter { .. }
                | Entry::Poison { .. }
                | Entry::Callback(_)
                | Entry::DeliverCallback(_)
                | Entry::Event(_)
                | Entry::Control { .. } => unreachable!("a consequence of no offset"),
            }
        }
    }
}

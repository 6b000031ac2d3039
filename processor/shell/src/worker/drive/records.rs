//! Records that were read: each becomes a task, or poison, and the engine is told.
//!
//! Invariant: the records of a lane reach the engine in the order of the lane.

use std::sync::Arc;

use rdkafka::consumer::Consumer;

use retide_avro::headers::{self, Headless};
use retide_avro::{Arrival, control};
use retide_core::control::{Place, Refusal};
use retide_core::{Input, LaneId, Now, Origin, Position, Record, Source, Timestamp};

use crate::event::{CommandRead, CommandRefused, RecordSetAside};
use crate::worker::drive::State;
use crate::worker::feed::{Passed, Read, Reads};
use crate::worker::ledger::Ledger;

/// Records between two looks at the clock: what becomes due meanwhile waits for no more of them.
const LOOK: usize = 16;

// === impl State ===

impl<L: Ledger> State<L> {
    /// Records were read.
    pub(super) fn records(&mut self, Reads { records, passed }: Reads) {
        // One look at the clock for some: if anything, it is behind, and nothing is early by that.
        let mut now = self.now();
        for (number, mut read) in (0_usize..).zip(records) {
            if number % LOOK == LOOK - 1 {
                now = self.now();
            }
            let lane = read.position.lane;
            // One of an assignment that is over comes to whoever has the shard now.
            let is_ours = self.shards.get(&lane.shard) == Some(&read.assignment);
            if is_ours
                && !self.begins_anew(lane)
                && self.unnamed.is_in_turn(&mut read.position)
                && !self.has_to_wait(now, &read)
            {
                self.record(now, read);
            }
        }
        for Passed {
            assignment,
            mut position,
        } in passed
        {
            let is_ours = self.shards.get(&position.lane.shard) == Some(&assignment);
            if is_ours && !self.begins_anew(position.lane) && self.unnamed.is_in_turn(&mut position)
            {
                self.step_at(now, Input::Passed { position });
            }
        }
        self.hand.empty();
    }

    /// A record was read: a task, or poison.
    pub(super) fn record(&mut self, now: Now, read: Read) {
        let Read {
            assignment: _,
            position,
            appended,
            record,
        } = read;
        let LaneId { shard, source } = position.lane;
        let origin = Origin {
            topic: Arc::clone(self.parts.topics.name(source)),
            partition: shard,
            offset: position.offset,
        };
        let threads = self.parts.feed.consumer.context().threads();
        let deaths = threads
            .suspects()
            .deaths(&origin.topic, shard, origin.offset);
        if deaths > 0 && source == Source::Commands {
            RecordSetAside {
                origin: &origin,
                deaths,
            }
            .emit(&self.parts.metrics);
            let why = format!("{deaths} processes died with this command in hand");
            return self.refuse(now, position, refusal(place(position, appended), &why));
        }
        if deaths > 0 {
            RecordSetAside {
                origin: &origin,
                deaths,
            }
            .emit(&self.parts.metrics);
            let (Ok(record) | Err(Headless(record))) = record;
            let poison = Arc::from(headers::set_aside(record, source, origin, deaths));
            return self.step_at(now, Input::Poison { position, poison });
        }
        self.hand.take(position.lane, position.offset);
        if source == Source::Commands {
            let at = appended;
            return self.command(now, position, at, record);
        }
        let read = match (record, source) {
            (Ok(record), Source::Tasks) => {
                let arrival = Arrival::new(origin, appended, now.wall);
                self.parts.topics.intake.ingest(record, arrival)
            }
            (Ok(record), Source::Tier(_)) => headers::parked(record, origin),
            (_, Source::Commands) => unreachable!("no task"),
            (Err(headless), Source::Tasks | Source::Tier(_)) => {
                Err(headers::headless(headless, origin))
            }
        };
        let input = match read {
            Ok(task) => Input::Record {
                position,
                appended,
                task: Box::new(task),
            },
            Err(poison) => Input::Poison {
                position,
                poison: Arc::from(poison),
            },
        };
        self.step_at(now, input);
    }

    /// A record of the commands topic was read.
    fn command(
        &mut self,
        now: Now,
        position: Position,
        appended: Timestamp,
        record: Result<Record, Headless>,
    ) {
        let place = place(position, appended);
        let Ok(record) = record else {
            let why = "its headers cannot be read; a command needs none";
            return self.refuse(now, position, refusal(place, why));
        };
        let topics = &self.parts.topics;
        let tier = |topic: &str| topics.source(topic);
        match control::decode(&record, place, &tier) {
            Ok(control) => {
                CommandRead { control: &control }.emit(&self.parts.metrics);
                let control = Ok(control);
                self.step_at(now, Input::Control { position, control });
            }
            Err(refusal) => self.refuse(now, position, *refusal),
        }
    }

    /// A record of the commands topic is refused.
    fn refuse(&mut self, now: Now, position: Position, refusal: Refusal) {
        CommandRefused { refusal: &refusal }.emit(&self.parts.metrics);
        let control = Err(Box::new(refusal));
        self.step_at(now, Input::Control { position, control });
    }

    /// Whether the topic of a lane is deleted, or was as the lane began: what comes of it is of a topic that is there again, and is read
    /// when the lane has begun anew.
    fn begins_anew(&self, lane: LaneId) -> bool {
        self.unreadable.is_deleted(lane.source) || self.unbound.contains(&lane)
    }
}

/// Where a record of the commands topic stands.
const fn place(position: Position, at: Timestamp) -> Place {
    Place {
        at,
        partition: position.lane.shard,
        offset: position.offset,
    }
}

/// The refusal of a command of which not even the id can be read.
fn refusal(place: Place, why: &str) -> Refusal {
    Refusal {
        place,
        id: place.to_string().into(),
        why: why.into(),
    }
}

//! The engine's part in campaigns: which letters are replayed, when, and when a campaign stops or is over.
//!
//! The owner of [`LEADER`] leads all campaigns. The last record of a campaign is an open offset of that shard's lane of commands; a *round*
//! settles it with what follows and with the next record, which is read back and is open then. So each round is one step of a chain that
//! whoever owns the shard goes on with. In a round, in this order:
//! 1. What people ask of the campaign is done, and what its tasks have said is counted. The offsets of both are settled behind the round: if
//!    they are read again, [`Campaign::counted_to`] says what was counted.
//! 2. Where it runs, letters are chosen, the oldest first, as its ramp and its rate let them through. Each is marked, so that no other
//!    campaign takes it, and parked in its own shard, where it is due at once.
//! 3. Where nothing is left, it is done.
//!
//! Letters are read beside the lanes, in slices ([`Action::ReadLetters`]). Nothing is done while a topic takes no records. Invariant: a letter
//! is replayed in the transaction that marks it and moves the campaign behind it.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::{Closing, Engine};
use crate::campaign::{
    Campaign, Id, Ineligible, LEADER, Letter, MOST, MOST_REPLAYS, Part, Replay, Report, Request,
    Said, Spec, State, Verb, replayed,
};
use crate::consequence;
use crate::control::{Control, Counts, Ended};
use crate::entry::{Alert, CAMPAIGN_STOPPED, Entry};
use crate::lane::{LaneId, Source};
use crate::planted::Bug;
use crate::ramp::{Climb, Part as Share, Progress, Turn};
use crate::state::State as Kept;
use crate::step::{Action, LetterPurpose, LetterSlice, LetterWant, Letters, Now, ReadLetters};
use crate::taken::Taken;
use crate::task::Failure;
use crate::time::Timestamp;

/// The campaigns that this worker leads, if it has their shard.
#[derive(Debug, Default)]
pub(super) struct Campaigns {
    /// Those that are not over.
    active: BTreeMap<Id, Active>,
    /// What was read and cannot be judged before all that stood in the lane was.
    early: VecDeque<(i64, Early)>,
    /// One past the last record that stood there when the shard came.
    standing: i64,
    /// The letters that were replayed, by partition.
    marks: BTreeMap<i32, Taken>,
    /// The number of the last reading.
    readings: u64,
    /// When they are looked at next, in steady time.
    check_at: Duration,
    /// Whether the shard is to be given away.
    is_leaving: bool,
}

/// What waits until all that stood in the lane was read.
#[derive(Debug)]
enum Early {
    /// What somebody wants.
    Ask(Arc<Request>),
    /// What tasks say.
    Report(Report),
}

/// A campaign that is not over.
#[derive(Debug)]
struct Active {
    /// As its last record says.
    campaign: Campaign,
    /// The offset of that; none while it is on its way.
    at: Option<i64>,
    /// What its tasks have said and is not counted, by the open offsets of that.
    reports: Vec<(i64, Said)>,
    /// What people want of it, likewise.
    asked: Vec<(i64, Arc<Request>)>,
    /// How far its ramp is.
    climb: Climb,
    /// What its rate lets through.
    rate: Bucket,
    /// What was read of the letters, by partition.
    buffers: BTreeMap<i32, Buffer>,
    /// The number of the reading that is under way, if one is.
    reading: Option<u64>,
    /// When its last record was written, in steady time.
    written: Duration,
    /// When what has arrived behind its end is looked at, in steady time.
    late_at: Duration,
    /// Whether something is known that its record does not say.
    is_moved: bool,
    /// The round that is on its way, to be taken back if it is refused.
    round: Option<Box<Round>>,
    /// So many letters are replayed each by itself, since one of them is refused.
    careful: usize,
}

/// What a round has done.
#[derive(Debug)]
struct Round {
    /// The campaign without the letters of it.
    before: Campaign,
    /// Those letters.
    letters: Vec<(i32, i64)>,
}

/// Letters that were read of a partition.
#[derive(Debug)]
struct Buffer {
    /// Those that the campaign means.
    letters: VecDeque<Letter>,
    /// Everything below was read.
    read_to: i64,
}

/// What a rate lets through.
#[derive(Debug, Default)]
struct Bucket {
    /// In millionths of a letter.
    credit: u64,
    /// When that was so, in steady time.
    counted: Duration,
}

/// Most letters of a round: with the time of a commit, some thousands a second.
const MOST_LETTERS: usize = 500;

/// Most bytes of their tasks, but for the last one.
const MOST_BYTES: usize = 2 << 20;

/// Most letters that are read of a partition at once.
const SLICE: u32 = 64;

/// Most bytes of letters that all campaigns hold, but for one letter of each partition.
const BUFFERED: usize = 16 << 20;

/// How often campaigns are looked at that have something to do.
const CHECK: Duration = Duration::from_millis(50);

/// How often the others are, and the least time between two records that say nothing but what was counted.
const REST: Duration = Duration::from_secs(1);

/// How often what arrives later is looked at.
const LATE: Duration = Duration::from_secs(5);

/// How often a campaign is written that has nothing to say: long before retention takes its record.
const ALIVE: Duration = Duration::from_hours(6);

/// Reports that may wait: more of them become one.
const MOST_REPORTS: usize = 1_000;

/// Offsets behind the end of the lane at which a record goes to the end, so that the lane can be read on.
const FAR: i64 = crate::completions::MAX_SPAN / 2;

/// A letter, in the unit of [`Bucket::credit`].
const ONE: u64 = 1_000_000;

/// All of a pace: there is one leader.
const ALL: Share = Share {
    owned: 1,
    all: NonZeroU32::MIN,
};

/// The lane that the records of campaigns stand in.
const LANE: LaneId = LaneId {
    shard: LEADER,
    source: Source::Commands,
};

// === impl Bucket ===

impl Bucket {
    /// Whether a letter may be replayed now.
    fn may_take(&mut self, now: Duration, rate: Option<NonZeroU32>) -> bool {
        let Some(rate) = rate else { return true };
        let micros = now.saturating_sub(self.counted).as_micros();
        let micros = u64::try_from(micros).unwrap_or(u64::MAX).min(ONE);
        let rate = u64::from(rate.get());
        self.credit = (self.credit + micros * rate).min((rate * ONE / 2).max(ONE));
        self.counted = now;
        self.credit >= ONE
    }

    /// One is replayed.
    const fn take(&mut self) {
        self.credit = self.credit.saturating_sub(ONE);
    }
}

// === impl Active ===

impl Active {
    /// A campaign whose record was read, or is on its way.
    fn new(now: Duration, campaign: Campaign, at: Option<i64>) -> Self {
        let progress = Progress {
            step: campaign.step,
            fell: false,
        };
        Self {
            campaign,
            at,
            reports: Vec::new(),
            asked: Vec::new(),
            climb: Climb::from(progress),
            rate: Bucket::default(),
            buffers: BTreeMap::new(),
            reading: None,
            written: now,
            late_at: Duration::ZERO,
            is_moved: false,
            round: None,
            careful: 0,
        }
    }

    /// Whether a partition is read as far as the campaign goes.
    fn is_read(&self, part: &Part) -> bool {
        let buffer = self.buffers.get(&part.partition);
        let read_to = buffer.map_or(part.next, |buffer| buffer.read_to.max(part.next));
        read_to >= part.to && buffer.is_none_or(|buffer| buffer.letters.is_empty())
    }

    /// The partition whose next letter is the oldest; none if one is not known.
    fn oldest(&self) -> Option<i32> {
        let mut oldest: Option<(Timestamp, i32)> = None;
        for part in &self.campaign.parts {
            let buffer = self.buffers.get(&part.partition);
            match buffer.and_then(|buffer| buffer.letters.front()) {
                Some(letter) => {
                    let this = (letter.at, part.partition);
                    oldest = Some(oldest.map_or(this, |oldest| oldest.min(this)));
                }
                // What stands there may be older.
                None if !self.is_read(part) => return None,
                None => {}
            }
        }
        oldest.map(|(_, partition)| partition)
    }

    /// Whether it may have something to do soon.
    fn is_busy(&self) -> bool {
        match self.campaign.state {
            State::Running => {
                !self.reports.is_empty()
                    || !self.campaign.parts.iter().all(|part| self.is_read(part))
            }
            State::Paused | State::Stopped | State::Aborted | State::Done => {
                !self.reports.is_empty()
            }
        }
    }
}

// === impl Engine ===

impl Engine {
    /// What former owners of the leader's shard have written of the letters that were replayed.
    pub(super) fn know_replayed(&mut self, shard: i32, marks: Vec<(i32, Taken)>) {
        if shard == LEADER && !self.bug.is(Bug::LetterTwice) {
            self.campaigns.marks = marks.into_iter().collect();
        }
    }

    /// Records of commands stand in the lane of a shard up to this offset.
    pub(super) fn await_campaigns(&mut self, shard: i32, to: i64) {
        if shard == LEADER {
            self.campaigns.standing = to;
        }
    }

    /// Somebody wants something of a campaign.
    pub(super) fn ask_campaign(
        &mut self,
        lane: LaneId,
        offset: i64,
        request: Arc<Request>,
        actions: &mut Vec<Action>,
    ) {
        if lane.shard == LEADER {
            let early = (offset, Early::Ask(request));
            self.campaigns.early.push_back(early);
            self.campaigns.check_at = self.steady;
            return;
        }
        let entries = vec![told(Control::Ask(request))];
        self.over_at(lane, offset, entries, actions);
    }

    /// Tasks of a campaign have said something.
    pub(super) fn report(
        &mut self,
        lane: LaneId,
        offset: i64,
        report: Report,
        actions: &mut Vec<Action>,
    ) {
        if lane.shard != LEADER {
            // Nobody writes that.
            return self.over_at(lane, offset, Vec::new(), actions);
        }
        let early = (offset, Early::Report(report));
        self.campaigns.early.push_back(early);
    }

    /// A campaign goes on from this record.
    pub(super) fn campaign_read(
        &mut self,
        now: Now,
        lane: LaneId,
        offset: i64,
        mut campaign: Campaign,
        actions: &mut Vec<Action>,
    ) {
        let id = campaign.id.clone();
        if lane.shard != LEADER {
            return self.over_at(lane, offset, Vec::new(), actions);
        }
        let known = self.campaigns.active.remove(&id);
        let is_next = known.as_ref().is_some_and(|active| active.at.is_none());
        if known.is_none() && self.bug.is(Bug::CampaignRestarted) {
            campaign.parts.iter_mut().for_each(|part| part.next = 0);
            self.campaigns.marks.clear();
        }
        if known.is_none() {
            self.read_again(&id);
        }
        let mut active = known.unwrap_or_else(|| Active::new(now.steady, campaign.clone(), None));
        // Where it was written twice, the last one counts.
        let before = active.at.take();
        if let Some(before) = before {
            self.over_at(lane, before, Vec::new(), actions);
        }
        // What was read of its letters meanwhile is not in the record that it has written itself.
        if !is_next {
            active.campaign = campaign;
        }
        active.round = None;
        if active.campaign.is_over() {
            self.over_at(lane, offset, Vec::new(), actions);
            for (offset, _) in active.reports {
                self.over_at(lane, offset, Vec::new(), actions);
            }
            for (offset, request) in active.asked {
                let ended = refused(now, &request, "the campaign is over");
                self.over_at(lane, offset, vec![ended], actions);
            }
            return;
        }
        active.at = Some(offset);
        self.campaigns.active.insert(id, active);
        self.campaigns.check_at = self.steady;
    }

    /// Letters were read.
    pub(super) fn letters(&mut self, now: Now, read: Letters, actions: &mut Vec<Action>) {
        let Some(read) = self.looked_at_letters(now, read, actions) else {
            return;
        };
        for slice in &read.slices {
            self.know_edges(slice);
        }
        let Letters {
            number,
            slices,
            letters,
        } = read;
        let mut all = self.campaigns.active.values_mut();
        let Some(active) = all.find(|active| active.reading == Some(number)) else {
            return;
        };
        active.reading = None;
        let is_wanted = active.campaign.state == State::Running;
        for LetterSlice {
            partition,
            first,
            next,
            end,
            unread,
        } in slices
        {
            let mut parts = active.campaign.parts.iter_mut();
            if let Some(part) = parts.find(|part| part.partition == partition) {
                // What is gone is not there to be read.
                part.next = part.next.max(first);
            } else if active.campaign.parts.len() < MOST_PARTS {
                active.is_moved = true;
                active.written = Duration::ZERO;
                active.campaign.parts.push(Part {
                    partition,
                    next: first,
                    to: end,
                });
            }
            active.campaign.counts.unread += unread;
            active.is_moved |= unread > 0;
            if is_wanted {
                let buffer = active.buffers.entry(partition).or_insert_with(|| Buffer {
                    letters: VecDeque::new(),
                    read_to: 0,
                });
                buffer.read_to = buffer.read_to.max(next);
            }
        }
        for letter in letters.into_iter().filter(|_| is_wanted) {
            if let Some(buffer) = active.buffers.get_mut(&letter.partition) {
                buffer.letters.push_back(letter);
            }
        }
        self.campaigns.check_at = self.steady;
    }

    /// Where a partition of the letters begins and ends: nothing is known of letters that are not there.
    pub(super) fn know_edges(&mut self, slice: &LetterSlice) {
        if let Some(marks) = self.campaigns.marks.get_mut(&slice.partition) {
            // Where the topic was made anew, nothing of it was replayed.
            if marks.last().is_some_and(|last| last >= slice.end) {
                marks.forget_below(i64::MAX);
            }
            marks.forget_below(slice.first);
            if marks.has_changed() {
                self.lanes.touch(LEADER);
            }
        }
    }

    /// Whether the shard that leads campaigns is ours, and stays.
    pub(super) fn leads_campaigns(&self) -> bool {
        self.has(LEADER) && !self.campaigns.is_leaving
    }

    /// Whether a letter was replayed.
    pub(super) fn is_replayed(&self, partition: i32, offset: i64) -> bool {
        let marks = self.campaigns.marks.get(&partition);
        marks.is_some_and(|marks| marks.contains(offset))
    }

    /// The number of another reading of letters.
    pub(super) const fn next_reading(&mut self) -> u64 {
        self.campaigns.readings += 1;
        self.campaigns.readings
    }

    /// When campaigns are to be looked after next.
    pub(super) fn next_campaigns(&self) -> Option<Timestamp> {
        let Campaigns {
            active,
            early,
            check_at,
            is_leaving,
            ..
        } = &self.campaigns;
        if *is_leaving || (active.is_empty() && early.is_empty()) {
            return None;
        }
        Some(self.latest + check_at.saturating_sub(self.steady))
    }

    /// Does what is to be done for campaigns.
    pub(super) fn follow_campaigns(&mut self, now: Now, actions: &mut Vec<Action>) {
        let Campaigns {
            active,
            early,
            check_at,
            is_leaving,
            ..
        } = &self.campaigns;
        if *is_leaving || (active.is_empty() && early.is_empty()) || *check_at > now.steady {
            return;
        }
        self.campaigns.check_at = now.steady + REST;
        let end = self.lanes.end(LANE);
        let is_whole = end.is_some_and(|end| end >= self.campaigns.standing);
        if !self.is_all_writable() || self.is_full() {
            self.campaigns.check_at = now.steady + CHECK;
            return;
        }
        if is_whole {
            self.follow_early(now, actions);
        }
        self.join_reports(actions);
        let ids: Vec<Id> = self.campaigns.active.keys().cloned().collect();
        let running = self.campaigns.active.values();
        let running = running.filter(|active| active.campaign.state == State::Running);
        let share = BUFFERED / running.count().max(1);
        for id in ids {
            if let Some(active) = self.campaigns.active.remove(&id) {
                let active = self.go_on(now, active, share, actions);
                let busy = active.is_busy() || !active.asked.is_empty();
                if busy {
                    self.campaigns.check_at = now.steady + CHECK;
                }
                self.campaigns.active.insert(id, active);
            }
        }
    }

    /// What of campaigns was to be written and was not.
    pub(super) fn replayed_unwritten(&mut self, shard: i32, partition: i32, chunk: i64) {
        if shard == LEADER && self.has(shard) {
            let marks = self.campaigns.marks.entry(partition).or_default();
            marks.write_again(chunk);
        }
    }

    /// The marks that have changed.
    pub(super) fn campaign_changes(&mut self, states: &mut Vec<(i32, Kept)>) {
        if self.writing.has_round() {
            // They go with the letters.
            return;
        }
        for (partition, marks) in &mut self.campaigns.marks {
            for (chunk, marks) in marks.changes() {
                let state = Kept::Letters {
                    partition: *partition,
                    chunk,
                    marks,
                };
                states.push((LEADER, state));
            }
        }
        self.campaigns
            .marks
            .retain(|_, marks| !marks.is_empty() || marks.has_changed());
    }

    /// A shard is to be given away: no campaign goes on here.
    pub(super) fn leave_campaigns(&mut self, shard: i32) {
        if shard == LEADER {
            self.campaigns.is_leaving = true;
        }
    }

    /// Forgets what is known of campaigns, if their shard is given away.
    pub(super) fn forget_campaigns(&mut self, shard: i32) {
        if shard == LEADER {
            let readings = self.campaigns.readings;
            self.campaigns = Campaigns {
                readings,
                ..Campaigns::default()
            };
        }
    }

    /// The campaigns that are led here, as they stand.
    pub fn campaigns(&self) -> impl Iterator<Item = &Campaign> {
        let active = self.campaigns.active.values();
        active.map(|active| &active.campaign)
    }

    /// A round was refused, since a record of it will never be taken: it is done without its letters, which are replayed one by one; of one
    /// alone it is known that it cannot be.
    pub(super) fn round_refused(
        &mut self,
        now: Now,
        (offset, bytes): (i64, usize),
        id: &Id,
        failure: &Failure,
        actions: &mut Vec<Action>,
    ) {
        let active = self.campaigns.active.get_mut(id);
        let round = active.and_then(|active| Some((active.round.take()?, active)));
        let Some((round, active)) = round else {
            // Its record itself is refused.
            self.campaigns.active.remove(id);
            return self.close_at(LANE, (offset, bytes), Vec::new(), actions);
        };
        let Round {
            mut before,
            letters,
        } = *round;
        for (partition, offset) in &letters {
            if let Some(marks) = self.campaigns.marks.get_mut(partition) {
                marks.remove(*offset);
            }
        }
        self.retention.look_anew();
        match letters[..] {
            [] => {
                // It is as short as it can be then.
                before.log.truncate(1);
                before.state = State::Aborted;
                before.note(now.wall, &format!("aborted: {failure}"));
            }
            [(partition, offset)] => {
                before.counts.ineligible[Ineligible::Refused.index()] += 1;
                for part in &mut before.parts {
                    if part.partition == partition {
                        part.next = offset + 1;
                    }
                }
                before.note(
                    now.wall,
                    &format!("letter {partition}/{offset} not replayed: {failure}"),
                );
            }
            _ => active.careful = letters.len(),
        }
        active.buffers.clear();
        active.reading = None;
        active.at = None;
        active.campaign = before.clone();
        let alert = letters.is_empty();
        let alert = alert.then(|| of_end(now, id, "refused", before.out()));
        let mut entries = vec![told(Control::Campaign(Box::new(before)))];
        entries.extend(alert);
        self.close_at(LANE, (offset, bytes), entries, actions);
    }

    // === steps ===

    /// Does with what was read early what it says.
    fn follow_early(&mut self, now: Now, actions: &mut Vec<Action>) {
        while let Some((offset, early)) = self.campaigns.early.pop_front() {
            match early {
                Early::Report(report) => {
                    let active = self.campaigns.active.get_mut(&report.campaign);
                    // What is counted is read again after a crash.
                    let active = active.filter(|it| it.campaign.counted_to <= offset);
                    match active {
                        Some(active) => active.reports.push((offset, report.said)),
                        None => self.over_at(LANE, offset, Vec::new(), actions),
                    }
                }
                Early::Ask(request) => self.asked(now, offset, request, actions),
            }
        }
    }

    /// Somebody wants something of a campaign, and it is known which there are.
    fn asked(&mut self, now: Now, offset: i64, request: Arc<Request>, actions: &mut Vec<Action>) {
        let name = &request.name;
        let mut known = self.campaigns.active.values_mut();
        let known = known.find(|active| active.campaign.id.name == *name);
        let why = match (&request.verb, known) {
            (Verb::Start(_), Some(active)) if active.campaign.id.place == request.place => {
                // Begun, and read again.
                let ended = done(now, &request);
                return self.over_at(LANE, offset, vec![ended], actions);
            }
            (Verb::Start(_), Some(_)) => {
                format!("there is a campaign {name} that is not over; take another name")
            }
            (Verb::Start(spec), None) => match self.may_begin(now, &request, spec) {
                Ok(()) => return self.start(now, offset, &request, spec, actions),
                Err(why) => why,
            },
            (Verb::Pause | Verb::Resume | Verb::Abort, Some(active)) => {
                active.asked.push((offset, request));
                return;
            }
            (Verb::Pause | Verb::Resume | Verb::Abort, None) => {
                format!("there is no campaign {name}, or it is over")
            }
        };
        let ended = refused(now, &request, &why);
        self.over_at(LANE, offset, vec![ended], actions);
    }

    /// Whether a campaign may begin.
    fn may_begin(&self, now: Now, request: &Request, spec: &Spec) -> Result<(), String> {
        if request.place.at + crate::control::LONGEST < now.wall {
            return Err("the command is older than commands are kept".to_owned());
        }
        if self.campaigns.active.len() >= MOST {
            return Err(format!(
                "{MOST} campaigns are not over, which is as many as there may be; abort one, or wait"
            ));
        }
        match &spec.scene {
            Some(scene) if self.scenes.get(scene).is_none() => {
                Err(format!("there is no scene {scene}"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A campaign begins.
    fn start(
        &mut self,
        now: Now,
        offset: i64,
        request: &Request,
        spec: &Arc<Spec>,
        actions: &mut Vec<Action>,
    ) {
        let id = Id {
            place: request.place,
            name: Arc::clone(&request.name),
        };
        let mut campaign = Campaign {
            id: id.clone(),
            spec: Arc::clone(spec),
            by: request.by.clone(),
            reason: request.reason.clone(),
            state: State::Running,
            parts: Vec::new(),
            counts: crate::campaign::Counts::default(),
            step: 0,
            counted_to: offset,
            at: now.wall.ceil_to_millis(),
            log: Vec::new(),
        };
        campaign.note(now.wall, &said_by("begun", request));
        let entries = vec![
            told(Control::Campaign(Box::new(campaign.clone()))),
            done(now, request),
        ];
        let active = Active::new(now.steady, campaign, None);
        self.read_again(&id);
        self.campaigns.active.insert(id, active);
        self.over_at(LANE, offset, entries, actions);
    }

    /// Reports that are many, or stand far behind the end of the lane, become one at its end.
    fn join_reports(&mut self, actions: &mut Vec<Action>) {
        let end = self.lanes.end(LANE).unwrap_or(0);
        let mut joined = Vec::new();
        for (id, active) in &mut self.campaigns.active {
            let first = active.reports.first().map_or(end, |(offset, _)| *offset);
            let is_far = active.at.is_none() && end - first > FAR;
            if active.reports.len() > MOST_REPORTS || is_far {
                joined.push((id.clone(), mem::take(&mut active.reports)));
            }
        }
        for (campaign, reports) in joined {
            // What a record that is on its way has counted is not among them.
            let said = reports
                .iter()
                .fold(Said::default(), |said, (_, other)| said.and(*other));
            let mut entries = vec![told(Control::Report(Report { campaign, said }))];
            for (offset, _) in reports {
                self.over_at(LANE, offset, mem::take(&mut entries), actions);
            }
        }
    }

    /// Does what is to be done for a campaign.
    fn go_on(
        &mut self,
        now: Now,
        mut active: Active,
        share: usize,
        actions: &mut Vec<Action>,
    ) -> Active {
        self.want_letters(now, &mut active, share, actions);
        let Some(offset) = active.at else {
            return active;
        };
        let mut next = active.campaign.clone();
        let mut is_told = false;
        let asked = mem::take(&mut active.asked);
        let mut ends = Vec::new();
        for (offset, request) in asked {
            let (ended, changed) = does(now, &mut active, &mut next, &request);
            is_told |= changed;
            ends.push((offset, ended));
        }
        let waited = now.steady.saturating_sub(active.written);
        let counts = !active.reports.is_empty() && (waited >= REST || is_told);
        let letters = next.state == State::Running && !next.parts.is_empty();
        let mut entries = Vec::new();
        let mut round = Vec::new();
        let mut reports = Vec::new();
        // What is counted may stop it: before more is taken.
        if counts || (letters && !active.reports.is_empty()) {
            reports = mem::take(&mut active.reports);
            let before = next.state;
            is_told |= self.hear(now, &mut active, &mut next, &reports);
            if before != next.state && !self.bug.is(Bug::CampaignUntold) {
                let said = &next.counts.said;
                entries.push(of_end(now, &next.id, "failure-rate", said.failed));
            }
        }
        let before = next.clone();
        if next.state == State::Running {
            round = self.choose(now, &mut active, &mut next, &mut entries);
        }
        let is_done = next.state == State::Running
            && !next.parts.is_empty()
            && next.parts.iter().all(|part| part.next >= part.to)
            && next.out() == 0;
        if is_done {
            next.state = State::Done;
            next.note(now.wall, "done: all letters were taken, and none is out");
            is_told = true;
        }
        let end = self.lanes.end(LANE).unwrap_or(0);
        active.is_moved |=
            next.parts != active.campaign.parts || next.counts != active.campaign.counts;
        let is_due = is_told
            || !round.is_empty()
            || !ends.is_empty()
            || !reports.is_empty()
            || (active.is_moved && waited >= REST)
            || end - offset > FAR
            || waited >= ALIVE;
        if !is_due {
            // What was looked at and is none of its letters is written with what comes next.
            active.campaign.parts = next.parts;
            active.campaign.counts = next.counts;
            return active;
        }
        next.at = now.wall.ceil_to_millis();
        active.at = None;
        active.is_moved = false;
        active.written = now.steady;
        active.campaign = next.clone();
        active.round = Some(Box::new(Round {
            before,
            letters: round,
        }));
        entries.push(told(Control::Campaign(Box::new(next))));
        self.over_at(LANE, offset, entries, actions);
        for (offset, _) in reports {
            self.over_at(LANE, offset, Vec::new(), actions);
        }
        for (offset, ended) in ends {
            self.over_at(LANE, offset, vec![ended], actions);
        }
        active
    }

    /// Counts what tasks have said; whether the campaign goes on otherwise.
    fn hear(
        &self,
        now: Now,
        active: &mut Active,
        next: &mut Campaign,
        reports: &[(i64, Said)],
    ) -> bool {
        let mut is_told = false;
        for (offset, said) in reports {
            next.counted_to = next.counted_to.max(offset + 1);
            next.counts.said = next.counts.said.and(*said);
            let calls = said.came_back.min(u64::from(u32::MAX));
            for call in 0..calls {
                if next.state != State::Running {
                    break;
                }
                // Those that failed are spread over all of them.
                let failed = (call + 1) * said.failed / calls > call * said.failed / calls;
                let ramp = &next.spec.ramp;
                let failed = failed && !self.bug.is(Bug::CampaignBrakeIgnored);
                match active.climb.returned(now.steady, failed, ramp) {
                    Turn::None => {}
                    Turn::Up => {
                        next.step = active.climb.progress().step;
                        let pace = match next.spec.ramp.pace(next.step) {
                            Some(pace) => {
                                format!("step {}: {pace} letters a second", next.step + 1)
                            }
                            None => format!("step {}: no limit but its rate", next.step + 1),
                        };
                        next.note(now.wall, &pace);
                        is_told = true;
                    }
                    Turn::Fell { calls, failed } => {
                        let most = next.spec.ramp.failure_rate() * 100.0;
                        next.state = State::Stopped;
                        next.note(
                            now.wall,
                            &format!(
                                "stopped by its brake: {failed} of {calls} attempts of step {} have failed, over {most}%. Mend what fails, \
                                 then resume it, which begins at the first step; or abort it",
                                next.step + 1
                            ),
                        );
                        active.buffers.clear();
                        is_told = true;
                    }
                }
            }
        }
        is_told
    }

    /// Chooses the letters of a round: what is written of them, and where they stand.
    fn choose(
        &mut self,
        now: Now,
        active: &mut Active,
        next: &mut Campaign,
        entries: &mut Vec<Entry>,
    ) -> Vec<(i32, i64)> {
        let (mut chosen, mut bytes) = (Vec::new(), 0);
        let most = if active.careful > 0 { 1 } else { MOST_LETTERS };
        let looked = MOST_LETTERS * 4;
        for _ in 0..looked {
            if chosen.len() >= most || bytes >= MOST_BYTES {
                break;
            }
            let Some(partition) = active.oldest() else {
                break;
            };
            let Some(part) = next
                .parts
                .iter_mut()
                .find(|part| part.partition == partition)
            else {
                break;
            };
            let Some(buffer) = active.buffers.get_mut(&partition) else {
                break;
            };
            let at = if self.bug.is(Bug::ReplayOutOfOrder) {
                buffer.letters.len().saturating_sub(1)
            } else {
                0
            };
            let Some(letter) = buffer.letters.get(at) else {
                break;
            };
            let is_late = letter.offset >= part.to && !next.spec.include_new;
            let why = self.ineligible(&next.id, letter);
            if why.is_none() && !is_late {
                let pace = &next.spec.ramp;
                if !active.climb.may_start(now.steady, pace, ALL)
                    || !active.rate.may_take(now.steady, next.spec.rate)
                {
                    break;
                }
            }
            let Some(letter) = buffer.letters.remove(at) else {
                break;
            };
            part.next = part.next.max(letter.offset + 1);
            match why {
                // It is of this campaign, and not what was meant.
                Some(Ineligible::OfThis) if letter.offset >= part.to => {}
                Some(_) | None if is_late => next.counts.late += 1,
                Some(why) => next.counts.ineligible[why.index()] += 1,
                None => {
                    let marks = self.campaigns.marks.entry(partition).or_default();
                    marks.insert(letter.offset);
                    active.climb.start(now.steady);
                    active.rate.take();
                    active.careful = active.careful.saturating_sub(1);
                    next.counts.replayed += 1;
                    chosen.push((partition, letter.offset));
                    bytes += letter.task.memory_size();
                    self.replay(now, next, letter, entries);
                }
            }
        }
        // Where nothing is left of what was read, all of it was looked at.
        for part in &mut next.parts {
            if let Some(buffer) = active.buffers.get(&part.partition)
                && buffer.letters.is_empty()
            {
                part.next = part.next.max(buffer.read_to);
            }
        }
        chosen
    }

    /// Why a letter is not replayed, if it is not.
    fn ineligible(&self, id: &Id, letter: &Letter) -> Option<Ineligible> {
        let is_marked = self.is_replayed(letter.partition, letter.offset);
        if is_marked && !self.bug.is(Bug::LetterTwice) {
            return Some(Ineligible::Replayed);
        }
        let replay = letter.task.replay.as_deref();
        if replay.is_some_and(|replay| replay.campaign == *id) {
            return Some(Ineligible::OfThis);
        }
        let mut others = letter.others.iter();
        let claims = |other| {
            let active = self.campaigns.active.get(other);
            active.is_some_and(|it| it.campaign.claims(letter.partition, letter.offset, replay))
        };
        if others.any(claims) && !self.bug.is(Bug::ClaimIgnored) {
            return Some(Ineligible::Claimed);
        }
        if replay.is_some_and(|replay| replay.times >= MOST_REPLAYS) {
            return Some(Ineligible::TooOften);
        }
        letter.ineligible
    }

    /// What is written of a letter that is replayed.
    fn replay(&self, now: Now, campaign: &Campaign, letter: Letter, entries: &mut Vec<Entry>) {
        let Letter { task, .. } = letter;
        let times = task.replay.as_ref().map_or(0, |replay| replay.times);
        let replay = Replay {
            campaign: campaign.id.clone(),
            times: times.saturating_add(1),
        };
        let home = self.home(&task);
        let task = replayed(*task, &campaign.spec, replay, now.wall);
        let tier = self.ladder.tier_to_move(Duration::ZERO);
        entries.extend(consequence::replay(task, tier, home, now.wall));
    }

    /// Asks for letters that are wanted next.
    fn want_letters(
        &mut self,
        now: Now,
        active: &mut Active,
        share: usize,
        actions: &mut Vec<Action>,
    ) {
        if active.reading.is_some() || active.campaign.state != State::Running {
            return;
        }
        let mut wants = Vec::new();
        let is_late = active.late_at <= now.steady;
        for part in &active.campaign.parts {
            let buffer = active.buffers.get(&part.partition);
            if buffer.is_some_and(|buffer| !buffer.letters.is_empty()) {
                continue;
            }
            let from = buffer.map_or(part.next, |buffer| buffer.read_to.max(part.next));
            if from < part.to || is_late {
                let to = (from < part.to).then_some(part.to);
                wants.push(LetterWant {
                    partition: part.partition,
                    from,
                    to,
                });
            }
        }
        if wants.is_empty() && !active.campaign.parts.is_empty() {
            return;
        }
        if is_late {
            active.late_at = now.steady + LATE;
        }
        let number = self.next_reading();
        active.reading = Some(number);
        let bytes = share / wants.len().max(1);
        actions.push(Action::ReadLetters(ReadLetters {
            number,
            purpose: LetterPurpose::Replay {
                spec: Arc::clone(&active.campaign.spec),
                others: self.claimants(&active.campaign.id),
            },
            wants,
            most: SLICE,
            bytes,
        }));
    }

    /// A campaign has come: what later ones have read does not say which letters it means.
    fn read_again(&mut self, id: &Id) {
        for (_, active) in self.campaigns.active.range_mut(id..) {
            active.buffers.clear();
            active.reading = None;
        }
    }

    /// The campaigns that began before `id` and are not over.
    fn claimants(&self, id: &Id) -> Vec<(Id, Arc<Spec>)> {
        let earlier = self.campaigns.active.range(..id);
        let earlier = earlier.map(|(_, active)| &active.campaign);
        let earlier = earlier.filter(|campaign| campaign.has_claims());
        earlier
            .map(|campaign| (campaign.id.clone(), Arc::clone(&campaign.spec)))
            .collect()
    }

    /// A record of the commands topic is over, with what follows from it: of many tasks, so that nothing is noted of one.
    fn over_at(
        &mut self,
        lane: LaneId,
        offset: i64,
        entries: Vec<Entry>,
        actions: &mut Vec<Action>,
    ) {
        self.close_at(lane, (offset, 0), entries, actions);
    }

    /// The same of one that holds bytes, since it was handed back.
    fn close_at(
        &mut self,
        lane: LaneId,
        (offset, bytes): (i64, usize),
        mut entries: Vec<Entry>,
        actions: &mut Vec<Action>,
    ) {
        let closing = Closing {
            lane,
            offset,
            home: lane.shard,
            bytes,
        };
        entries.extend(self.alerts.take_next());
        self.close_as_is(closing, (entries, Vec::new()), Vec::new(), actions);
    }
}

/// Most partitions that a campaign knows: as many as dead letters have.
const MOST_PARTS: usize = 10_000;

/// Does what somebody wants of a campaign: what becomes of the request, and whether something has changed.
fn does(now: Now, active: &mut Active, next: &mut Campaign, request: &Request) -> (Entry, bool) {
    let (state, word) = match (&request.verb, next.state) {
        (Verb::Pause, State::Running | State::Stopped) => (State::Paused, "paused"),
        (Verb::Resume, State::Paused | State::Stopped) => (State::Running, "resumed"),
        (Verb::Abort, State::Running | State::Paused | State::Stopped) => {
            (State::Aborted, "aborted")
        }
        // As it is, and asked again.
        (Verb::Pause, State::Paused)
        | (Verb::Resume, State::Running)
        | (Verb::Abort, State::Aborted) => return (done(now, request), false),
        (Verb::Pause | Verb::Resume, State::Aborted | State::Done)
        | (Verb::Abort, State::Done)
        | (Verb::Start(_), _) => {
            let why = format!("the campaign {} is {}", request.name, next.state.word());
            return (refused(now, request, &why), false);
        }
    };
    if next.state == State::Stopped {
        active.climb = Climb::default();
        next.step = 0;
    }
    next.state = state;
    active.buffers.clear();
    active.reading = None;
    next.note(now.wall, &said_by(word, request));
    (done(now, request), true)
}

/// What has happened, with who wanted it and why.
fn said_by(word: &str, request: &Request) -> String {
    let mut text = word.to_owned();
    if !request.by.is_empty() {
        text = format!("{text} by {}", request.by);
    }
    if !request.reason.is_empty() {
        text = format!("{text}: {}", request.reason);
    }
    text
}

/// The end of a request that was done.
fn done(now: Now, request: &Request) -> Entry {
    ended(now, request, Ok(Counts::default()))
}

/// The end of a request that was not.
fn refused(now: Now, request: &Request, why: &str) -> Entry {
    ended(now, request, Err(why.into()))
}

/// The end of a request.
fn ended(now: Now, request: &Request, result: Result<Counts, Box<str>>) -> Entry {
    let ended = Ended {
        place: request.place,
        id: Arc::clone(&request.id),
        at: now.wall,
        ids: 0,
        result,
    };
    Entry::Control {
        to: request.place.partition,
        control: Box::new(Control::Ended(ended)),
    }
}

/// What people must know of a campaign that does not go on by itself: why, and of how many attempts or tasks.
fn of_end(now: Now, id: &Id, reason: &'static str, count: u64) -> Entry {
    Entry::Alert(Box::new(Alert {
        rule: CAMPAIGN_STOPPED,
        scene: "".into(),
        at: now.wall,
        count: u32::try_from(count).unwrap_or(u32::MAX),
        example: Arc::clone(&id.name),
        reason,
        target: None,
        expiring: None,
    }))
}

/// An entry for the leader.
fn told(control: Control) -> Entry {
    Entry::Control {
        to: LEADER,
        control: Box::new(control),
    }
}

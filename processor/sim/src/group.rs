//! The group: members, generations, and who owns which shard.
//!
//! The classic protocol, with a leader that never errs: shards are split evenly and in order. Invariant: within a generation no
//! shard has two owners.

use std::collections::{BTreeMap, BTreeSet};

/// A member id.
pub(crate) type Member = u64;

/// What a consumer knows of its place in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Membership {
    /// Its member id.
    pub(crate) member: Member,
    /// The generation it was last told of.
    pub(crate) generation: u64,
}

/// How shards change hands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Everyone gives everything away, then everything is split anew.
    #[default]
    Eager,
    /// Only what moves is given away, and given out in a second round.
    Cooperative,
}

/// A member of the group.
#[derive(Debug)]
struct Joined {
    /// The worker it is.
    worker: usize,
    /// Which of its requests made it one.
    request: u64,
    /// Whether it waits for the next generation.
    waiting: bool,
    /// What it says it has (cooperative), or was given.
    owned: BTreeSet<i32>,
    /// What it said it had: nobody else is given that before it says otherwise (cooperative).
    keeps: BTreeSet<i32>,
}

/// What a member is told when a generation begins.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    /// The worker.
    pub(crate) worker: usize,
    /// Which of its requests this answers.
    pub(crate) request: u64,
    /// Its membership.
    pub(crate) membership: Membership,
    /// Its shards.
    pub(crate) shards: BTreeSet<i32>,
}

/// The group.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// How shards change hands.
    pub(crate) protocol: Protocol,
    /// How many shards there are.
    pub(crate) shards: i32,
    /// The members.
    members: BTreeMap<Member, Joined>,
    /// The current generation.
    generation: u64,
    /// Whether a new one is being formed.
    forming: bool,
    /// The last member id.
    last: Member,
    /// The last request of each worker.
    requests: BTreeMap<usize, u64>,
}

// === impl Group ===

impl Group {
    /// The current generation.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether a new generation is being formed.
    pub(crate) fn is_forming(&self) -> bool {
        self.forming
    }

    /// Whether a member may commit offsets.
    pub(crate) fn accepts(&self, membership: Membership) -> bool {
        self.members.contains_key(&membership.member) && membership.generation == self.generation
    }

    /// Whether a member owns a shard, as far as the group knows.
    pub(crate) fn owns(&self, member: Member, shard: i32) -> bool {
        let joined = self.members.get(&member);
        joined.is_some_and(|joined| joined.owned.contains(&shard) || joined.keeps.contains(&shard))
    }

    /// Whether a member is one.
    pub(crate) fn has(&self, member: Member) -> bool {
        self.members.contains_key(&member)
    }

    /// Whether a member has to ask for the generation that is being formed.
    pub(crate) fn must_join(&self, member: Member) -> bool {
        self.forming
            && self
                .members
                .get(&member)
                .is_some_and(|joined| !joined.waiting)
    }

    /// The members that a worker is, as far as the group knows.
    pub(crate) fn members_of(&self, worker: usize) -> Vec<Member> {
        let members = self
            .members
            .iter()
            .filter(|(_, joined)| joined.worker == worker);
        members.map(|(member, _)| *member).collect()
    }

    /// A worker asks to be a member of the next generation, a new one if it was none. What it asked before its last request is void: a
    /// connection keeps the order of its requests.
    pub(crate) fn join(
        &mut self,
        (worker, request): (usize, u64),
        member: Option<Member>,
        owned: BTreeSet<i32>,
    ) {
        let last = self.requests.entry(worker).or_default();
        if *last > request {
            return;
        }
        *last = request;
        let member = member.unwrap_or_else(|| {
            self.last += 1;
            self.last
        });
        let joined = Joined {
            worker,
            request,
            waiting: true,
            keeps: match self.protocol {
                Protocol::Eager => BTreeSet::new(),
                Protocol::Cooperative => owned.clone(),
            },
            owned,
        };
        // What a consumer was before and has forgotten is forgotten by the group, too.
        self.members.retain(|_, joined| joined.worker != worker);
        self.members.insert(member, joined);
    }

    /// Takes a member out; says which worker it was.
    pub(crate) fn remove(&mut self, member: Member) -> Option<usize> {
        self.members.remove(&member).map(|joined| joined.worker)
    }

    /// Begins to form a generation, if none is being formed; gives the members that have to be told.
    pub(crate) fn form(&mut self) -> Vec<(usize, Member)> {
        if self.forming {
            return Vec::new();
        }
        self.forming = true;
        let silent = self.members.iter().filter(|(_, joined)| !joined.waiting);
        silent
            .map(|(member, joined)| (joined.worker, *member))
            .collect()
    }

    /// The members that have not asked for the generation that is being formed.
    pub(crate) fn silent(&self) -> Vec<Member> {
        let silent = self.members.iter().filter(|(_, joined)| !joined.waiting);
        silent.map(|(member, _)| *member).collect()
    }

    /// Begins the next generation if every member waits for it.
    pub(crate) fn complete(&mut self) -> Option<Vec<Given>> {
        let ready = self.members.values().all(|joined| joined.waiting);
        if !self.forming || !ready {
            return None;
        }
        self.forming = false;
        self.generation += 1;
        let claimed: BTreeMap<i32, Member> = match self.protocol {
            Protocol::Eager => BTreeMap::new(),
            Protocol::Cooperative => self
                .members
                .iter()
                .flat_map(|(member, joined)| joined.owned.iter().map(|shard| (*shard, *member)))
                .collect(),
        };
        let count = self.members.len() as i32;
        let mut given = Vec::new();
        for (index, (member, joined)) in (0..).zip(&mut self.members) {
            let range = (self.shards * index / count)..(self.shards * (index + 1) / count);
            joined.owned = range
                // What another one has is given out when that one has given it away.
                .filter(|shard| claimed.get(shard).is_none_or(|owner| owner == member))
                .collect();
            joined.waiting = false;
            given.push(Given {
                worker: joined.worker,
                request: joined.request,
                membership: Membership {
                    member: *member,
                    generation: self.generation,
                },
                shards: joined.owned.clone(),
            });
        }
        Some(given)
    }
}

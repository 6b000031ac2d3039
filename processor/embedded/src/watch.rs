//! Who has been silent for too long, and which transactions are overdue.
//!
//! It decides and does nothing: time comes in as `now`, and the front does what it says.
//! Invariant: a member that waits for an answer is never silent, and a name is handed out once for each time it runs out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A member of a consumer group.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Member {
    /// The group's name.
    pub(super) group: String,
    /// The name that the coordinator gave to the member.
    pub(super) id: String,
}

/// A transactional producer and what it asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Overdue {
    /// The transactional id.
    pub(super) id: String,
    /// Longest that one of its transactions may be open.
    pub(super) limit: Duration,
}

/// What is known of members and of transactional producers.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Members that have joined.
    sessions: HashMap<Member, Session>,
    /// Transactional producers by their id.
    producers: HashMap<String, Producer>,
}

#[derive(Debug)]
struct Session {
    /// When the member last asked for something or was last answered.
    heard: Instant,
    /// Longest silence.
    limit: Duration,
    /// Calls of it that are not answered yet.
    waiting: u32,
}

#[derive(Debug)]
struct Producer {
    /// When its open transaction began, if one is open.
    since: Option<Instant>,
    /// Longest that one may be open.
    limit: Duration,
}

// === impl Watch ===

impl Watch {
    /// `member` has joined and promises to be heard at least once in `limit`.
    pub(super) fn joined(&mut self, member: Member, limit: Duration, now: Instant) {
        let session = self.sessions.entry(member).or_insert(Session {
            heard: now,
            limit,
            waiting: 0,
        });
        session.heard = now;
        session.limit = limit;
    }

    /// `member` has given a sign of life.
    pub(super) fn heard(&mut self, member: &Member, now: Instant) {
        if let Some(session) = self.sessions.get_mut(member) {
            session.heard = now;
        }
    }

    /// `member` waits for the rest of its group, which takes as long as it takes.
    pub(super) fn waits(&mut self, member: &Member) {
        if let Some(session) = self.sessions.get_mut(member) {
            session.waiting += 1;
        }
    }

    /// `member` waits no longer.
    pub(super) fn answered(&mut self, member: &Member, now: Instant) {
        if let Some(session) = self.sessions.get_mut(member) {
            session.waiting = session.waiting.saturating_sub(1);
            session.heard = now;
        }
    }

    /// `member` has left.
    pub(super) fn left(&mut self, member: &Member) {
        self.sessions.remove(member);
    }

    /// The transactional producer `id` starts afresh, without a transaction.
    pub(super) fn initialized(&mut self, id: String, limit: Duration) {
        self.producers.insert(id, Producer { since: None, limit });
    }

    /// The producer `id` has something in a transaction, which began now unless one is open.
    pub(super) fn opened(&mut self, id: &str, now: Instant) {
        if let Some(producer) = self.producers.get_mut(id) {
            producer.since.get_or_insert(now);
        }
    }

    /// The transaction of the producer `id` has ended.
    pub(super) fn ended(&mut self, id: &str) {
        if let Some(producer) = self.producers.get_mut(id) {
            producer.since = None;
        }
    }

    /// Takes the members that have been silent for too long.
    pub(super) fn take_silent(&mut self, now: Instant) -> Vec<Member> {
        self.sessions
            .extract_if(|_, session| {
                session.waiting == 0 && now.saturating_duration_since(session.heard) > session.limit
            })
            .map(|(member, _)| member)
            .collect()
    }

    /// Takes the transactions that have been open for too long.
    pub(super) fn take_overdue(&mut self, now: Instant) -> Vec<Overdue> {
        let mut overdue = Vec::new();
        for (id, producer) in &mut self.producers {
            let limit = producer.limit;
            if producer
                .since
                .take_if(|since| now.saturating_duration_since(*since) > limit)
                .is_some()
            {
                let id = id.clone();
                overdue.push(Overdue { id, limit });
            }
        }
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(6);
    const OVER: Duration = Duration::from_secs(7);

    fn member() -> Member {
        Member {
            group: "group".to_owned(),
            id: "member".to_owned(),
        }
    }

    #[test]
    fn a_silent_member_is_taken_once() {
        let start = Instant::now();
        let mut watch = Watch::default();
        watch.joined(member(), LIMIT, start);

        let early = watch.take_silent(start + LIMIT);
        let late = watch.take_silent(start + OVER);
        let again = watch.take_silent(start + OVER);

        assert_eq!(early, []);
        assert_eq!(late, [member()]);
        assert_eq!(again, []);
    }

    #[test]
    fn a_member_that_is_heard_or_waits_is_not_silent() {
        let start = Instant::now();
        let mut watch = Watch::default();
        watch.joined(member(), LIMIT, start);

        watch.heard(&member(), start + LIMIT);
        let heard = watch.take_silent(start + OVER);
        watch.waits(&member());
        let waiting = watch.take_silent(start + OVER * 10);
        watch.answered(&member(), start + OVER * 10);
        let answered = watch.take_silent(start + OVER * 11);

        assert_eq!(heard, []);
        assert_eq!(waiting, []);
        assert_eq!(answered, [member()]);
    }

    #[test]
    fn a_transaction_is_overdue_from_its_first_partition_on() {
        let start = Instant::now();
        let mut watch = Watch::default();
        watch.initialized("ledger".to_owned(), LIMIT);

        let idle = watch.take_overdue(start + OVER * 10);
        watch.opened("ledger", start);
        watch.opened("ledger", start + LIMIT);
        let early = watch.take_overdue(start + LIMIT);
        let late = watch.take_overdue(start + OVER);
        let again = watch.take_overdue(start + OVER);
        watch.opened("ledger", start + OVER);
        watch.ended("ledger");
        let ended = watch.take_overdue(start + OVER * 10);

        assert_eq!(idle, []);
        assert_eq!(early, []);
        let id = "ledger".to_owned();
        assert_eq!(late, [Overdue { id, limit: LIMIT }]);
        assert_eq!(again, []);
        assert_eq!(ended, []);
    }
}

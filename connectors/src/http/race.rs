//! The race of a name's addresses: which one is tried when, until one of them answers.
//!
//! | an address | and so |
//! | --- | --- |
//! | that does not answer for [`HEAD_START`] | has the next one tried beside it: what RFC 8305 calls happy eyeballs |
//! | that refuses | is out of the race, and the next one is tried at once |
//! | that has not answered when all have been tried | is tried anew after [`ANEW`], [`ROUNDS`] times in all: its queue may have room by then |
//!
//! Not what connects. Pure: time is told.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// Time that an address has before the next one is tried beside it: what RFC 8305 advises.
const HEAD_START: Duration = Duration::from_millis(250);

/// Time after which addresses that have not answered are tried anew beside what is under way: shorter than the second in which the system
/// sends a lost SYN again.
const ANEW: Duration = Duration::from_millis(700);

/// Times that an address is tried within one dial; each costs a socket that waits.
const ROUNDS: usize = 3;

/// The addresses of a name, and when the next one is tried.
pub(super) struct Race {
    /// Addresses that have not refused, in the order in which they are tried.
    left: Vec<IpAddr>,
    /// Addresses that have not been tried in this round.
    queue: VecDeque<IpAddr>,
    /// The round, from 1 on.
    round: usize,
    /// When the next one is tried.
    next: Instant,
}

// === impl Race ===

impl Race {
    /// A race that begins at `now`.
    pub(super) fn new(addresses: &[IpAddr], now: Instant) -> Self {
        let left = alternate(addresses);
        Self {
            queue: left.iter().copied().collect(),
            left,
            round: 1,
            next: now,
        }
    }

    /// Whether an address is left that may answer.
    pub(super) const fn is_on(&self) -> bool {
        !self.left.is_empty()
    }

    /// The addresses that may answer.
    pub(super) fn left(&self) -> &[IpAddr] {
        &self.left
    }

    /// When the next address is to be tried, if one is.
    pub(super) fn next(&self) -> Option<Instant> {
        (!self.queue.is_empty()).then_some(self.next)
    }

    /// The address that is tried now.
    pub(super) fn begin(&mut self, now: Instant) -> Option<IpAddr> {
        let address = self.queue.pop_front()?;
        self.next = now + HEAD_START;
        if self.queue.is_empty() && self.round < ROUNDS {
            self.round += 1;
            self.queue = self.left.iter().copied().collect();
            self.next += ANEW;
        }
        Some(address)
    }

    /// An address refuses.
    pub(super) fn failed(&mut self, address: IpAddr, now: Instant) {
        self.left.retain(|other| *other != address);
        self.queue.retain(|other| *other != address);
        self.next = now;
    }
}

/// The addresses in the order in which they are tried: as the system sorts them, but of the two families in turn, so that a network
/// without one of them costs one head start only.
fn alternate(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let is_first = |address: &&IpAddr| address.is_ipv6() == addresses[0].is_ipv6();
    let mut first = addresses.iter().filter(is_first);
    let mut second = addresses.iter().filter(|address| !is_first(address));
    let mut order: Vec<IpAddr> = Vec::with_capacity(addresses.len());
    while order.len() < addresses.len() {
        order.extend(first.next());
        order.extend(second.next());
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        let parse = |text: &&str| text.parse().expect("an address");
        texts.iter().map(parse).collect()
    }

    /// The tries of a race in which nobody answers, with the milliseconds after its start; those refuse at once that are said to.
    fn tries(texts: &[&str], refusing: &[&str]) -> Vec<(u64, String)> {
        let start = Instant::now();
        let refusing = addresses(refusing);
        let mut race = Race::new(&addresses(texts), start);
        let mut tries = Vec::new();
        while let Some(at) = race.next() {
            let address = race.begin(at).expect("one that is tried");
            let after = at.duration_since(start).as_millis();
            tries.push((u64::try_from(after).expect("few"), address.to_string()));
            if refusing.contains(&address) {
                race.failed(address, at);
            }
        }
        tries
    }

    fn expected(tries: &[(u64, &str)]) -> Vec<(u64, String)> {
        let owned = |(at, address): &(u64, &str)| (*at, (*address).to_owned());
        tries.iter().map(owned).collect()
    }

    #[test]
    fn an_address_that_does_not_answer_is_tried_anew_before_the_system_does() {
        let all = tries(&["10.0.0.1"], &[]);

        assert_eq!(
            all,
            expected(&[(0, "10.0.0.1"), (950, "10.0.0.1"), (1900, "10.0.0.1")])
        );
    }

    #[test]
    fn a_black_hole_costs_a_head_start_in_each_round() {
        let all = tries(&["10.0.0.1", "10.0.0.2"], &[]);

        let times = [0, 250, 1200, 1450, 2400, 2650];
        let both = ["10.0.0.1", "10.0.0.2"].into_iter().cycle();
        let all_expected: Vec<_> = times.into_iter().zip(both).collect();
        assert_eq!(all, expected(&all_expected));
    }

    #[test]
    fn an_address_that_refuses_costs_no_time_and_is_out() {
        let all = tries(&["10.0.0.1", "10.0.0.2"], &["10.0.0.1"]);

        assert_eq!(
            all,
            expected(&[
                (0, "10.0.0.1"),
                (0, "10.0.0.2"),
                (950, "10.0.0.2"),
                (1900, "10.0.0.2"),
            ])
        );
        assert_eq!(
            tries(&["10.0.0.1"], &["10.0.0.1"]),
            expected(&[(0, "10.0.0.1")])
        );
    }

    #[test]
    fn the_families_are_tried_in_turn() {
        let order = |texts: &[&str]| alternate(&addresses(texts));

        assert_eq!(
            order(&["::1", "::2", "::3", "10.0.0.1"]),
            addresses(&["::1", "10.0.0.1", "::2", "::3"])
        );
        assert_eq!(
            order(&["10.0.0.1", "::1", "::2"]),
            addresses(&["10.0.0.1", "::1", "::2"])
        );
        assert_eq!(order(&[]), addresses(&[]));
    }
}

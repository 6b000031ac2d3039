//! The flood brake: a scene whose tasks suddenly die in numbers, as with a deploy that answers 400 to everybody, stops before more of them do.
//!
//! # What trips it
//! Of the last [`RECENT`] ends of a scene, half are dead, or as many more as its own history makes improbable, after at least [`HEALTHY`]
//! deliveries. So single bad tasks, and a scene whose tasks have always died, get what they always got.
//!
//! # What it does
//! [`crate::breaker`] does the rest, by the breaker of the scene's [wall](crate::wall): calls stop, the task whose answer tripped it and all
//! that were in flight are tried again, probes look whether it is over, and people are told once, with three of those that died. Each
//! success of a probe counts, until there are as many as the rule wants; then the scene is let go by a slow start.
//!
//! # What it never does
//! Bring back those that died before: [`LEAST`] less one of a scene that hardly anything died of, in each process. It knows nothing of before
//! its process began. Invariant: pure; a few numbers for each scene.

use std::collections::VecDeque;
use std::sync::Arc;

/// Ends that are looked at: so few that a scene with one end in a second is braked within half a minute.
pub const RECENT: u32 = 32;

/// Fewest of them that have to be dead.
pub const LEAST: u32 = RECENT / 2;

/// Deliveries without which there is no flood: before that, nobody knows what is usual here.
pub const HEALTHY: u32 = 64;

/// By how many standard deviations more die than usual: one time in a million or less, even where ends that are near each other are alike.
const DEVIATIONS: f64 = 6.0;

/// Ends after which the older ones count for half.
const MEMORY: u32 = 1_000;

/// Tasks that people are told of.
const SAMPLES: usize = 3;

/// How a task of a scene ended, as far as that is its target's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was delivered.
    Delivered,
    /// It died of what its target said.
    Dead,
}

/// What is known of the ends of one scene's tasks.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    /// The last ends, the latest in the lowest bit: whether each is dead.
    recent: u64,
    /// How many of them there are.
    known: u32,
    /// Ends before those.
    before: u32,
    /// How many of them are dead.
    dead: u32,
    /// Deliveries so far, up to those without which there is no flood.
    delivered: u32,
    /// The last tasks that died.
    samples: VecDeque<Arc<str>>,
}

/// What trips the brake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood {
    /// The ends that were looked at.
    pub ends: u32,
    /// How many of them are dead, or would be.
    pub dead: u32,
}

// === impl Ends ===

impl Ends {
    /// A task has ended, or is about to: what trips the brake, if that does.
    pub fn note(&mut self, end: End, task: &Arc<str>) -> Option<Flood> {
        self.add(end);
        match end {
            End::Delivered => {
                self.delivered = (self.delivered + 1).min(HEALTHY);
                None
            }
            End::Dead => {
                self.samples.truncate(SAMPLES - 1);
                self.samples.push_front(Arc::clone(task));
                let dead = self.recent.count_ones();
                let is_flood = self.delivered >= HEALTHY && dead >= self.most();
                is_flood.then_some(Flood {
                    ends: self.known,
                    dead,
                })
            }
        }
    }

    /// The last tasks that died, or would have.
    pub fn samples(&self) -> Vec<Arc<str>> {
        self.samples.iter().map(Arc::clone).collect()
    }

    /// The brake lets go: what died before belongs to what is usual.
    pub fn let_go(&mut self) {
        let (ends, dead) = (self.known, self.recent.count_ones());
        self.settle(ends, dead);
        (self.recent, self.known) = (0, 0);
    }

    /// Notes an end as the latest one.
    fn add(&mut self, end: End) {
        if self.known == RECENT {
            let oldest = (self.recent >> (RECENT - 1)) & 1;
            self.settle(1, oldest as u32);
        } else {
            self.known += 1;
        }
        let mask = (1 << RECENT) - 1;
        self.recent = ((self.recent << 1) | u64::from(end == End::Dead)) & mask;
    }

    /// Counts ends as those of before.
    const fn settle(&mut self, ends: u32, dead: u32) {
        self.before += ends;
        self.dead += dead;
        if self.before >= MEMORY {
            self.before /= 2;
            self.dead /= 2;
        }
    }

    /// How many of the last ends have to be dead.
    fn most(&self) -> u32 {
        // As if there had been one more of each: nothing is impossible.
        let part = f64::from(self.dead + 1) / f64::from(self.before + 2);
        let ends = f64::from(RECENT);
        let most = ends * part + DEVIATIONS * (ends * part * (1.0 - part)).sqrt();
        (most.ceil() as u32).max(LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(ends: impl IntoIterator<Item = End>) -> Ends {
        let mut known = Ends::default();
        for end in ends {
            assert_eq!(known.note(end, &"a".into()), None, "{known:?}");
        }
        known
    }

    /// How many die until it is a flood, if it ever is.
    fn until_flood(mut ends: Ends) -> Option<u32> {
        (1..1_000).find(|_| ends.note(End::Dead, &"b".into()).is_some())
    }

    fn well(count: u32) -> Ends {
        ends((0..count).map(|_| End::Delivered))
    }

    #[test]
    fn a_scene_that_was_well_is_braked_by_sixteen_that_die() {
        assert_eq!(until_flood(well(HEALTHY)), Some(LEAST));
        assert_eq!(until_flood(well(100_000)), Some(LEAST));
    }

    #[test]
    fn where_half_of_all_die_it_takes_twice_as_many_ends() {
        let mut known = well(1_000);
        let flood = (1..1_000).find_map(|number| {
            let end = [End::Dead, End::Delivered][number % 2];
            let flood = known.note(end, &"c".into());
            flood.map(|flood| (number, flood))
        });

        // The first of them dies, and every other one.
        let (number, flood) = flood.expect("a flood");
        assert_eq!((number, flood.dead, flood.ends), (32, 16, 32));
    }

    #[test]
    fn what_was_never_well_or_dies_as_usual_is_not_braked() {
        assert_eq!(until_flood(Ends::default()), None);
        assert_eq!(until_flood(well(HEALTHY - 1)), None);
        // A third of all die, in whatever order.
        let mut usual = well(HEALTHY);
        for number in 0..10_000_u32 {
            let is_dead = number.wrapping_mul(2_654_435_761) % 100 < 33 && number > 40;
            let end = if is_dead { End::Dead } else { End::Delivered };
            assert_eq!(usual.note(end, &"d".into()), None, "{number}");
        }
    }

    #[test]
    fn the_more_die_usually_the_more_it_takes() {
        let usual = |every: u32| {
            ends((0..2_000).map(|number| {
                if number > HEALTHY && number % every == 0 {
                    End::Dead
                } else {
                    End::Delivered
                }
            }))
        };

        // Some of the last ends had died anyway.
        let few = until_flood(usual(50)).expect("a flood");
        assert!((LEAST - 1..=LEAST).contains(&few), "{few}");
        let more = until_flood(usual(4)).expect("a flood");
        assert!(more > few, "{more}");
    }

    #[test]
    fn people_see_the_last_three() {
        let mut known = well(100);
        for id in ["a", "b", "c", "d"] {
            known.note(End::Dead, &id.into());
        }

        let samples: Vec<Arc<str>> = ["d", "c", "b"].map(Into::into).into();
        assert_eq!(known.samples(), samples);
    }

    #[test]
    fn each_flood_that_was_let_go_makes_the_next_one_less_improbable() {
        let mut known = well(HEALTHY);
        let mut sizes = Vec::new();
        for _ in 0..10 {
            let size = (1..200).find(|_| known.note(End::Dead, &"e".into()).is_some());
            sizes.push(size);
            known.let_go();
        }

        assert_eq!(sizes[0], Some(LEAST));
        assert_eq!(sizes[9], None, "{sizes:?}");
    }
}

//! Lines that say the same again and again: the first is written at once, and then one a minute, with how many there were.
//!
//! Not lasting troubles, which have a beginning and an end of their own. What is left out here are warnings and errors of libraries, of
//! which a client writes some twenty a second while no broker answers, and whatever else repeats. Invariant: what is kept is bounded.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt::{self, Write};
use std::hash::{Hash, Hasher};
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, warn};

/// What was said before.
#[derive(Default)]
pub(crate) struct Repeats {
    /// What lines say, each with what became of it.
    said: Mutex<HashMap<u64, Said>>,
}

/// Something that lines say.
struct Said {
    /// When it was last written.
    written: Instant,
    /// How many lines were left out since.
    left_out: u64,
    /// What the last of them said.
    text: String,
}

/// Whether a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Telling {
    /// It is; so many that said the same were left out before it.
    Written(u64),
    /// It is left out.
    LeftOut,
}

/// What a line says.
struct Text {
    /// Its fields, one after the other.
    text: String,
}

/// Time between two lines that say the same.
const AGAIN: Duration = Duration::from_mins(1);

/// Most different lines that are kept; what comes beyond is written.
const MOST: usize = 512;

/// Longest text of a line that is kept, in characters.
const LONGEST: usize = 300;

// === impl Repeats ===

impl Repeats {
    /// Whether the line of this event is written.
    pub(crate) fn tell(&self, event: &Event<'_>) -> Telling {
        let metadata = event.metadata();
        // Levels compare by how much they let through.
        if *metadata.level() > Level::WARN {
            return Telling::Written(0);
        }
        let mut text = Text {
            text: String::new(),
        };
        event.record(&mut text);
        let mut hasher = DefaultHasher::new();
        metadata.callsite().hash(&mut hasher);
        if metadata.target().starts_with("retide") {
            text.text.hash(&mut hasher);
        } else {
            without_numbers(&text.text).for_each(|character| character.hash(&mut hasher));
        }
        self.tell_at(Instant::now(), hasher.finish(), text.text)
    }

    /// As [`Self::tell`], of a line of this hash and text, at this time.
    fn tell_at(&self, now: Instant, hash: u64, text: String) -> Telling {
        let mut said = self.lock();
        let Some(before) = said.get_mut(&hash) else {
            if said.len() < MOST {
                let new = Said {
                    written: now,
                    left_out: 0,
                    text,
                };
                said.insert(hash, new);
            }
            return Telling::Written(0);
        };
        if now.saturating_duration_since(before.written) < AGAIN {
            before.left_out += 1;
            return Telling::LeftOut;
        }
        before.written = now;
        Telling::Written(mem::take(&mut before.left_out))
    }

    /// Says what was left out and did not come again, and forgets what was said long ago.
    pub(crate) fn tick(&self, now: Instant) {
        for (text, times) in self.over(now) {
            warn!(times, line = text, "a line was repeated");
        }
    }

    /// What was left out and did not come again. Lines are written without the lock: they come here, too.
    fn over(&self, now: Instant) -> Vec<(String, u64)> {
        let mut over = Vec::new();
        self.lock().retain(|_, said| {
            let stays = now.saturating_duration_since(said.written) < AGAIN;
            if !stays && said.left_out > 0 {
                let text = said.text.chars().take(LONGEST).collect();
                over.push((text, said.left_out));
            }
            stays
        });
        over
    }

    /// Locks what no panic leaves half-changed.
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Said>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Text ===

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let start = self.text.len();
        let name = field.name();
        let space = if start == 0 { "" } else { " " };
        let written = if name == "message" {
            write!(self.text, "{space}{value:?}")
        } else {
            write!(self.text, "{space}{name}={value:?}")
        };
        // A string takes any text; a value that has none says nothing.
        if written.is_err() {
            self.text.truncate(start);
        }
    }
}

/// What a text says whatever the numbers in it are: in the words of libraries, those are addresses, times and counts.
fn without_numbers(text: &str) -> impl Iterator<Item = char> {
    let mut digits = false;
    text.chars().filter_map(move |character| {
        let first = !mem::replace(&mut digits, character.is_ascii_digit());
        if !digits {
            return Some(character);
        }
        first.then_some('0')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_is_a_line_at_once_and_one_a_minute_with_a_count() {
        let repeats = Repeats::default();
        let start = Instant::now();
        let mut told = Vec::new();

        for tenth in 0..1250 {
            let now = start + Duration::from_millis(100 * tenth);
            match repeats.tell_at(now, 7, "down".to_owned()) {
                Telling::Written(before) => told.push(before),
                Telling::LeftOut => {}
            }
        }

        assert_eq!(told, [0, 599, 599]);
        let quiet = start + Duration::from_mins(4);
        assert_eq!(repeats.over(quiet), [("down".to_owned(), 49)]);
        assert_eq!(repeats.over(quiet), []);
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_comes_beyond_is_written() {
        let repeats = Repeats::default();
        let now = Instant::now();

        for hash in 0..1000 {
            assert_eq!(
                repeats.tell_at(now, hash, String::new()),
                Telling::Written(0)
            );
        }

        assert_eq!(repeats.lock().len(), MOST);
        assert_eq!(
            repeats.tell_at(now, 999, String::new()),
            Telling::Written(0)
        );
        assert_eq!(repeats.tell_at(now, 0, String::new()), Telling::LeftOut);
    }
}

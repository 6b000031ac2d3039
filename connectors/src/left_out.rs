//! Headers of a record that its target was not sent, and why.
//!
//! Invariant: names only, since values may be secret; as long as a message at most.

use std::fmt::{self, Write as _};

use retide_core::Header;
use retide_core::task::MAX_MESSAGE;

/// Headers of a record that were left out of the request of its attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Headers left out for each reason, in the order of [`Reason::ALL`].
    counts: [u32; Reason::ALL.len()],
    /// The first of them, for people.
    names: String,
    /// Headers left out whose names are not among these.
    unnamed: u32,
}

/// Why a header of a record is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// HTTP does not allow its name.
    Name,
    /// The name is one of retide's own, or belongs to the connection or the message frame.
    Reserved,
    /// The target's configuration sets it.
    Configured,
    /// The target's configuration names it as one that is not to be sent.
    Denied,
    /// The header is a credential, a cookie, a forwarding header or one that asks for an encoding, and nobody asked for it.
    Withheld,
    /// The target's configuration says which are sent, and it is not among them.
    NotAllowed,
    /// A later one takes its place.
    Repeated,
    /// The header has no value.
    Null,
    /// The value is longer than common servers take.
    TooLong,
    /// With it, the request would be larger than common servers take.
    NoRoom,
    /// The target has said that the headers are too large.
    Refused,
}

/// Most bytes of a name that are shown.
const SHOWN: usize = 64;

// === impl Reason ===

impl Reason {
    /// Every reason there is.
    pub const ALL: [Self; 11] = [
        Self::Name,
        Self::Reserved,
        Self::Configured,
        Self::Denied,
        Self::Withheld,
        Self::NotAllowed,
        Self::Repeated,
        Self::Null,
        Self::TooLong,
        Self::NoRoom,
        Self::Refused,
    ];

    /// The word for it, in metrics and stories.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Reserved => "reserved",
            Self::Configured => "configured",
            Self::Denied => "denied",
            Self::Withheld => "withheld",
            Self::NotAllowed => "not-allowed",
            Self::Repeated => "repeated",
            Self::Null => "null",
            Self::TooLong => "too-long",
            Self::NoRoom => "no-room",
            Self::Refused => "refused",
        }
    }
}

// === impl LeftOut ===

impl LeftOut {
    /// Notes that `header` is left out.
    pub fn add(&mut self, header: &Header, reason: Reason) {
        self.counts[reason as usize] += 1;
        let before = self.names.len();
        if before > 0 {
            self.names.push_str(", ");
        }
        let (name, word) = (shown(header), reason.word());
        let size = header.value.as_ref().map_or(0, bytes::Bytes::len);
        let _ = match reason {
            Reason::TooLong | Reason::NoRoom => write!(self.names, "{name} ({word}: {size} bytes)"),
            Reason::Name
            | Reason::Reserved
            | Reason::Configured
            | Reason::Denied
            | Reason::Withheld
            | Reason::NotAllowed
            | Reason::Repeated
            | Reason::Null
            | Reason::Refused => write!(self.names, "{name} ({word})"),
        };
        // Room is left for how many are not named.
        if self.unnamed > 0 || self.names.len() > MAX_MESSAGE - SHOWN {
            self.names.truncate(before);
            self.unnamed += 1;
        }
    }

    /// How many were left out, by reason; reasons without any are not among them.
    pub fn counts(&self) -> impl Iterator<Item = (Reason, u32)> {
        let counts = Reason::ALL.into_iter().zip(self.counts);
        counts.filter(|(_, count)| *count > 0)
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.names)?;
        match (self.names.is_empty(), self.unnamed) {
            (_, 0) => Ok(()),
            (true, count) => write!(formatter, "{count} headers"),
            (false, count) => write!(formatter, " and {count} more"),
        }
    }
}

/// The name of a header as people are shown it: of one line, and not long.
fn shown(header: &Header) -> String {
    let mut name = header.name.to_string();
    name.retain(|character| !character.is_control());
    let shown = name.floor_char_boundary(SHOWN);
    if shown < name.len() {
        name.truncate(shown);
        name.push_str("..");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_told_in_one_message_of_names() {
        let header = |name: &str| Header {
            name: name.into(),
            value: Some(vec![b'x'; 9_000].into()),
        };
        let mut left_out = LeftOut::default();

        left_out.add(&header("cookie"), Reason::Withheld);
        left_out.add(&header("x-big"), Reason::TooLong);
        left_out.add(&header("na\nme"), Reason::Name);
        let few = left_out.to_string();
        for _ in 0..300 {
            left_out.add(&header(&"n".repeat(1_000)), Reason::NoRoom);
        }
        let many = left_out.to_string();

        assert_eq!(
            few,
            "cookie (withheld), x-big (too-long: 9000 bytes), name (name)"
        );
        assert!(many.len() <= MAX_MESSAGE, "{many}");
        assert!(many.starts_with(&few) && many.ends_with(" more"), "{many}");
        let counts: Vec<_> = left_out.counts().collect();
        assert_eq!(
            counts,
            [
                (Reason::Name, 1),
                (Reason::Withheld, 1),
                (Reason::TooLong, 1),
                (Reason::NoRoom, 300)
            ]
        );
    }
}

//! Answers, and the ways in which none comes, as a configuration names them, and what each of them means.
//!
//! Invariant: each means one thing. An exact code outranks its class, and both outrank what HTTP makes of the code.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One status, such as `404`, a class of them, such as `"5xx"`, or a way in which no answer comes, such as `"connect"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Status {
    /// Exactly this code.
    Code(u16),
    /// Every code that begins with this digit.
    Class(u16),
    /// Not a status: no answer came.
    NoAnswer(NoAnswer),
}

/// The ways in which no answer comes; their names are the classes of the failures.
///
/// Of the first five the target has not seen a whole request, or has said that it did nothing about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoAnswer {
    /// None of the target's addresses may be dialled.
    Egress,
    /// No address for the target's name.
    Dns,
    /// No connection.
    Connect,
    /// A connection, but no TLS on it.
    Tls,
    /// A connection that the target gave up, or a request that it turned away unseen, where nothing is to be sent twice.
    Unsent,
    /// The connection broke: the target may have done what it was asked to.
    Reply,
    /// The answer has no status that can be read: the target has most likely done what it was asked to.
    Malformed,
    /// Not within the timeout: the target may be doing it still.
    Timeout,
}

/// The meaning of a status for the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The attempt has done its work.
    Success,
    /// Another attempt may mend it.
    Retryable,
    /// Another attempt may mend it, when the target has had some rest.
    Throttled,
    /// No attempt will mend it.
    Permanent,
}

/// A status as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    /// A code.
    Code(i64),
    /// A class, or a way in which no answer comes.
    Word(String),
}

// === impl Status ===

impl Status {
    /// Whether `code` is this status or in this class.
    pub(super) const fn contains(self, code: u16) -> bool {
        match self {
            Self::Code(own) => own == code,
            Self::Class(digit) => code / 100 == digit,
            Self::NoAnswer(_) => false,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Written::from(*self) {
            Written::Code(code) => write!(formatter, "{code}"),
            Written::Word(word) => formatter.write_str(&word),
        }
    }
}

impl TryFrom<Written> for Status {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Code(code @ 100..=999) => Ok(Self::Code(code as u16)),
            Written::Code(code) => Err(format!("status {code} is not within 100 to 999")),
            Written::Word(text) => match text.as_bytes() {
                [digit @ b'1'..=b'9', b'x', b'x'] => Ok(Self::Class(u16::from(digit - b'0'))),
                _ => NoAnswer::ALL
                    .into_iter()
                    .find(|way| way.word() == text)
                    .map(Self::NoAnswer)
                    .ok_or_else(|| {
                        let ways = NoAnswer::ALL.map(NoAnswer::word).join(", ");
                        format!("{text:?} is none of 1xx to 9xx, {ways}")
                    }),
            },
        }
    }
}

impl From<Status> for Written {
    fn from(status: Status) -> Self {
        match status {
            Status::Code(code) => Self::Code(code.into()),
            Status::Class(digit) => Self::Word(format!("{digit}xx")),
            Status::NoAnswer(way) => Self::Word(way.word().to_owned()),
        }
    }
}

// === impl NoAnswer ===

impl NoAnswer {
    /// Every way.
    const ALL: [Self; 8] = [
        Self::Dns,
        Self::Connect,
        Self::Tls,
        Self::Unsent,
        Self::Reply,
        Self::Malformed,
        Self::Timeout,
        Self::Egress,
    ];

    /// The word for it, in configurations and in failures.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Unsent => "unsent",
            Self::Reply => "reply",
            Self::Malformed => "malformed",
            Self::Timeout => "timeout",
            Self::Egress => "egress",
        }
    }

    /// The way that a configuration means as well where it says nothing of this one: who fears a second call after a broken connection
    /// fears it after an answer that cannot be read.
    pub(super) const fn broader(self) -> Option<Self> {
        match self {
            Self::Dns | Self::Tls => Some(Self::Connect),
            Self::Malformed => Some(Self::Reply),
            Self::Connect | Self::Unsent | Self::Reply | Self::Timeout | Self::Egress => None,
        }
    }
}

// === impl Meaning ===

impl Meaning {
    /// The meaning of `code` in HTTP, where the configuration does not say otherwise.
    pub(super) const fn of(code: u16) -> Self {
        match code {
            200..=299 => Self::Success,
            429 => Self::Throttled,
            408 | 425 | 500..=599 => Self::Retryable,
            _ => Self::Permanent,
        }
    }
}

//! Status codes as a configuration names them, and what each of them means.
//!
//! Invariant: a code means one thing. An exact code outranks its class, and both outrank what HTTP makes of the code.

use serde::{Deserialize, Serialize};

/// One status, such as `404`, or a class of them, such as `"5xx"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Status {
    /// Exactly this code.
    Code(u16),
    /// Every code that begins with this digit.
    Class(u16),
}

/// What a status says about the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It is done.
    Success,
    /// Another attempt may mend it.
    Retryable,
    /// No attempt will mend it.
    Permanent,
}

/// A status as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    /// A code.
    Code(i64),
    /// A class.
    Class(String),
}

// === impl Status ===

impl Status {
    /// Whether `code` is this status or in this class.
    pub(super) const fn contains(self, code: u16) -> bool {
        match self {
            Self::Code(own) => own == code,
            Self::Class(digit) => code / 100 == digit,
        }
    }
}

impl TryFrom<Written> for Status {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Code(code @ 100..=599) => Ok(Self::Code(code as u16)),
            Written::Code(code) => Err(format!("status {code} is not within 100 to 599")),
            Written::Class(text) => match text.as_bytes() {
                [digit @ b'1'..=b'5', b'x', b'x'] => Ok(Self::Class(u16::from(digit - b'0'))),
                _ => Err(format!("status class {text:?} is not one of 1xx to 5xx")),
            },
        }
    }
}

impl From<Status> for Written {
    fn from(status: Status) -> Self {
        match status {
            Status::Code(code) => Self::Code(code.into()),
            Status::Class(digit) => Self::Class(format!("{digit}xx")),
        }
    }
}

// === impl Meaning ===

impl Meaning {
    /// What HTTP makes of `code`, where the configuration does not say otherwise.
    pub(super) const fn of(code: u16) -> Self {
        match code {
            200..=299 => Self::Success,
            408 | 425 | 429 | 500..=599 => Self::Retryable,
            _ => Self::Permanent,
        }
    }
}

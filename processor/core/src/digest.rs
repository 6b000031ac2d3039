//! Digests: they tell whether bytes are those that a dead letter has left out.
//!
//! Not a proof against somebody who makes bytes to fit. Invariant: a digest is the same in all versions and processes, since it stands on
//! topics.

use std::fmt;
use std::str::FromStr;

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::task::Header;

/// The digest of a value, or of a value and headers: XXH3 with 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest(u128);

/// Digits of a digest in text.
const DIGITS: usize = 32;

// === impl Digest ===

impl Digest {
    /// The digest of a value; that of none is that of an empty one.
    pub fn of_value(value: Option<&[u8]>) -> Self {
        Self(xxh3_128(value.unwrap_or_default()))
    }

    /// The digest of the value that this is of, and of these headers, in their order.
    #[must_use]
    pub fn with_headers(self, headers: &[Header]) -> Self {
        let mut hash = Xxh3::new();
        hash.update(&self.0.to_be_bytes());
        for Header { name, value } in headers {
            // Lengths come first, so that no two lists of headers make the same bytes.
            part(&mut hash, Some(name.as_bytes()));
            part(&mut hash, value.as_deref());
        }
        Self(hash.digest128())
    }
}

/// Adds the name or the value of a header, which may be none.
fn part(hash: &mut Xxh3, bytes: Option<&[u8]>) {
    let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
    hash.update(&length.to_be_bytes());
    hash.update(bytes.unwrap_or_default());
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

impl FromStr for Digest {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let is_whole = text.len() == DIGITS && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = is_whole.then(|| u128::from_str_radix(text, 16).ok());
        number.flatten().map(Self).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Name;

    fn header(name: &str, value: Option<&'static str>) -> Header {
        Header {
            name: Name::from(name.as_bytes()),
            value: value.map(Into::into),
        }
    }

    #[test]
    fn a_digest_is_that_of_xxh3_and_is_read_as_it_is_written() {
        let digest = Digest::of_value(Some(b"order 7"));

        assert_eq!(digest.to_string().parse(), Ok(digest));
        // The test vector of the reference implementation for no bytes.
        let none = "99aa06d3014798d86001c324468d497f";
        assert_eq!(Digest::of_value(None).to_string(), none);
        for broken in [
            "",
            "7",
            &none[1..],
            &format!("{none}0"),
            &none.replace('9', "+"),
        ] {
            assert_eq!(broken.parse::<Digest>(), Err(()), "{broken}");
        }
    }

    #[test]
    fn headers_have_their_order_names_and_values() {
        let value = Digest::of_value(Some(b"order 7"));
        let all = [
            vec![],
            vec![header("a", None)],
            vec![header("a", Some(""))],
            vec![header("a", Some("b"))],
            vec![header("ab", Some(""))],
            vec![header("a", Some("")), header("b", Some(""))],
            vec![header("b", Some("")), header("a", Some(""))],
        ];

        let digests = all.map(|headers| value.with_headers(&headers));

        for (at, one) in digests.iter().enumerate() {
            assert!(!digests[at + 1..].contains(one), "{at}");
            assert_ne!(*one, value);
        }
    }
}

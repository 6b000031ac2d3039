//! The Avro form of the envelope, read by a cursor of its own rather than through a generic value: the payload stays a slice of the
//! record, and a forged count of headers allocates nothing.

use std::str;

use bytes::Bytes;

use retide_core::Header;

use super::{Broken, Envelope, Known, broken};
use crate::headers::MAX_HEADERS;

/// What is left of an Avro datum.
struct Cursor(Bytes);

/// Reads the Avro form: the fields of `RetryTask` in their order.
pub(super) fn read(datum: Bytes) -> Result<Envelope, Broken> {
    let mut cursor = Cursor(datum);
    let envelope = Envelope {
        scene: Some(cursor.string()?),
        id: cursor.optional(Cursor::string)?,
        payload: Some(cursor.bytes()?),
        content_type: cursor.optional(Cursor::string)?,
        wrote_json: false,
        headers: cursor.headers()?,
        key: cursor.optional(Cursor::bytes)?,
        due_at: cursor.optional(Cursor::long)?,
        delay_ms: cursor.optional(Cursor::long)?,
        deadline_at: cursor.optional(Cursor::long)?,
    };
    if cursor.0.is_empty() {
        Ok(envelope)
    } else {
        Err(broken("bytes after the end"))
    }
}

/// What can be read of a datum that is refused: the fields before the break.
pub(super) fn known(datum: Bytes) -> Known {
    let mut known = Known::default();
    let mut cursor = Cursor(datum);
    let mut fields = || {
        known.scene = Some(cursor.string()?);
        known.id = cursor.optional(Cursor::string)?;
        cursor.bytes()?;
        cursor.optional(Cursor::string)?;
        cursor.headers()?;
        known.key = cursor.optional(Cursor::bytes)?;
        Ok::<_, Broken>(())
    };
    // Whatever was wrong has been told.
    let _ = fields();
    known
}

// === impl Cursor ===

impl Cursor {
    /// A zigzag variable-length integer of at most ten bytes.
    fn long(&mut self) -> Result<i64, Broken> {
        let mut zigzag = 0_u64;
        for place in 0..10 {
            let Some(&byte) = self.0.get(place) else {
                return Err(broken("ends inside a number"));
            };
            // The tenth byte has room for one bit only.
            if place == 9 && byte > 1 {
                break;
            }
            zigzag |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                self.0 = self.0.slice(place + 1..);
                return Ok((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64));
            }
        }
        Err(broken("a number of more than 64 bits"))
    }

    /// A length and that many bytes, still in the record's buffer.
    fn bytes(&mut self) -> Result<Bytes, Broken> {
        let length = usize::try_from(self.long()?).map_err(|_| broken("a negative length"))?;
        if length > self.0.len() {
            return Err(broken("ends inside a value"));
        }
        Ok(self.0.split_to(length))
    }

    /// Text.
    fn string(&mut self) -> Result<String, Broken> {
        let bytes = self.bytes()?;
        str::from_utf8(&bytes)
            .map(str::to_owned)
            .map_err(|_| broken("text is not UTF-8"))
    }

    /// A union of null and what `read` reads.
    fn optional<T>(
        &mut self,
        read: fn(&mut Self) -> Result<T, Broken>,
    ) -> Result<Option<T>, Broken> {
        match self.long()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(broken("no such branch of a union")),
        }
    }

    /// An array of headers: blocks, each with its count, ended by an empty one.
    fn headers(&mut self) -> Result<Vec<Header>, Broken> {
        let mut headers = Vec::new();
        loop {
            let mut count = self.long()?;
            if count == 0 {
                return Ok(headers);
            }
            if count < 0 {
                // A negative count is followed by the block's size, for readers that skip.
                self.long()?;
                count = count.checked_neg().unwrap_or(i64::MAX);
            }
            for _ in 0..count {
                if headers.len() >= MAX_HEADERS {
                    return Err(broken("too many headers"));
                }
                headers.push(Header {
                    name: self.string()?.into(),
                    value: self.optional(Self::bytes)?,
                });
            }
        }
    }
}

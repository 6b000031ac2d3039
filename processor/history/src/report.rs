//! Reading what retide reports on its own topics: callbacks, events, alerts.
//!
//! Invariant: the bytes say in which format a record is, so that a topic whose format was changed is read from its beginning to its end.

use rdkafka::message::{BorrowedMessage, Message};

use retide_avro::wire::{self, Codec, Format, Framing, Wire};

/// Reads records of one kind, in whichever format they are written.
pub struct Reader<R> {
    /// Those in Avro.
    avro: Codec<R>,
    /// Those in JSON.
    json: Codec<R>,
}

// === impl Reader ===

impl<R: Wire> Default for Reader<R> {
    fn default() -> Self {
        let codec = |format| Codec::new(format, Framing::SingleObject);
        Self {
            avro: codec(Format::Avro),
            json: codec(Format::Json),
        }
    }
}

impl<R: Wire> Reader<R> {
    /// The record in a message.
    pub fn read(&self, message: &BorrowedMessage<'_>) -> Result<R, wire::Error> {
        self.decode(message.payload().unwrap_or_default())
    }

    /// The record in these bytes: JSON begins with a brace, and no frame of Avro does. Of Confluent's, the number does not count:
    /// nobody else writes there.
    pub fn decode(&self, bytes: &[u8]) -> Result<R, wire::Error> {
        match bytes.trim_ascii_start().first() {
            Some(b'{') => self.json.decode(bytes),
            Some(_) | None => self.avro.decode_own(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_in_either_format() {
        let alert = wire::Alert {
            rule: "dead-tasks".to_owned(),
            scene: "payment".to_owned(),
            at: 1,
            count: 1,
            example: "order-7".to_owned(),
            reason: "rejected".to_owned(),
            target: None,
            failed: None,
            slow: None,
            since: None,
            until: None,
            samples: None,
        };
        let reader = Reader::<wire::Alert>::default();

        for format in [Format::Avro, Format::Json] {
            let bytes = Codec::<wire::Alert>::new(format, Framing::SingleObject);
            let bytes = bytes.encode(&alert).unwrap();
            assert_eq!(reader.decode(&bytes).unwrap(), alert, "{format:?}");
        }
        let framed = Codec::<wire::Alert>::new(Format::Avro, Framing::Confluent { schema_id: 12 });
        let bytes = framed.encode(&alert).unwrap();
        assert_eq!(reader.decode(&bytes).unwrap(), alert);
        assert!(reader.decode(b"").is_err());
    }
}

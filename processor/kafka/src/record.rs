//! Records: those to write, as the client takes them, and those it has read, out of its memory.
//!
//! Not when they are written, nor what they mean. Invariant: headers are kept as they are: their order, duplicates, and bytes that are no text.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rdkafka::message::{BorrowedMessage, Message as _, OwnedHeaders};
use rdkafka::producer::BaseRecord;

use retide_avro::headers::{self, Headless};
use retide_core::{Header, Name, Record};
use retide_native::{self as native, headers::Headers};

/// A record to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutRecord {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition; none leaves it to the key.
    pub partition: Option<i32>,
    /// The key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Option<Bytes>,
    /// The headers, in order.
    pub headers: OutHeaders,
}

/// Headers of a record to write, in one piece of memory however many they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutHeaders {
    /// Names and values, one after the other.
    bytes: Vec<u8>,
    /// The ends of each name and value in `bytes`; the value has none if there is no value.
    ends: Vec<(usize, Option<usize>)>,
}

/// A record to write, but for its headers.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The topic.
    pub topic: &'a Arc<str>,
    /// The partition; none leaves it to the key.
    pub partition: Option<i32>,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: Option<&'a [u8]>,
}

/// Collects the headers of a record, in order.
pub trait Collect: Default {
    /// Adds a header behind those that are there.
    fn add(&mut self, name: &[u8], value: Option<&[u8]>);
}

/// Headers as the client takes them.
pub struct ClientHeaders(OwnedHeaders);

// === impl OutHeaders ===

impl OutHeaders {
    /// Adds a header behind those that are there.
    pub fn push(&mut self, name: &[u8], value: Option<&[u8]>) {
        self.bytes.extend_from_slice(name);
        let name_end = self.bytes.len();
        let value_end = value.map(|value| {
            self.bytes.extend_from_slice(value);
            self.bytes.len()
        });
        self.ends.push((name_end, value_end));
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let mut start = 0;
        self.ends.iter().map(move |&(name_end, value_end)| {
            let name = &self.bytes[start..name_end];
            start = value_end.unwrap_or(name_end);
            (name, value_end.map(|end| &self.bytes[name_end..end]))
        })
    }
}

impl Collect for OutHeaders {
    fn add(&mut self, name: &[u8], value: Option<&[u8]>) {
        self.push(name, value);
    }
}

// === impl Parts ===

impl<'a> Parts<'a> {
    /// A record that goes on as it came, but for its headers.
    pub fn of(topic: &'a Arc<str>, shard: i32, record: &'a Record) -> Self {
        Self {
            topic,
            partition: Some(shard),
            key: record.key.as_deref(),
            value: record.value.as_deref(),
        }
    }
}

// === impl ClientHeaders ===

impl Default for ClientHeaders {
    fn default() -> Self {
        // As many as a parked task has, and a few of the producer's.
        Self(OwnedHeaders::new_with_capacity(16))
    }
}

impl Collect for ClientHeaders {
    fn add(&mut self, name: &[u8], value: Option<&[u8]>) {
        native::headers::add(&mut self.0, name, value);
    }
}

impl FromIterator<Header> for OutHeaders {
    fn from_iter<I: IntoIterator<Item = Header>>(headers: I) -> Self {
        let mut all = Self::default();
        for Header { name, value } in headers {
            all.push(name.as_bytes(), value.as_deref());
        }
        all
    }
}

// === impl OutRecord ===

impl OutRecord {
    /// A record to keep.
    pub fn new(parts: Parts<'_>, headers: OutHeaders) -> Self {
        Self {
            topic: Arc::clone(parts.topic),
            partition: parts.partition,
            key: parts.key.map(Bytes::copy_from_slice),
            value: parts.value.map(Bytes::copy_from_slice),
            headers,
        }
    }

    /// The record as the client takes it; `index` comes back with its delivery.
    pub fn to_produce(&self, index: usize) -> BaseRecord<'_, [u8], [u8], usize> {
        let mut headers = ClientHeaders::default();
        for (name, value) in self.headers.iter() {
            headers.add(name, value);
        }
        to_produce(self.parts(), headers, index)
    }

    /// About how many bytes it takes, uncompressed.
    pub fn size(&self) -> usize {
        let bytes = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        bytes(&self.key) + bytes(&self.value) + self.headers.bytes.len()
    }

    /// The record but for its headers.
    pub fn parts(&self) -> Parts<'_> {
        Parts {
            topic: &self.topic,
            partition: self.partition,
            key: self.key.as_deref(),
            value: self.value.as_deref(),
        }
    }
}

/// A record as the client takes it; `index` comes back with its delivery.
pub fn to_produce(
    parts: Parts<'_>,
    ClientHeaders(headers): ClientHeaders,
    index: usize,
) -> BaseRecord<'_, [u8], [u8], usize> {
    let mut out = BaseRecord::with_opaque_to(parts.topic, index);
    out.headers = Some(headers);
    out.partition = parts.partition;
    out.key = parts.key;
    out.payload = parts.value;
    out
}

/// The record of a message, copied out of the client's buffer at once: all that it holds into one piece of memory. Names that are known
/// take none.
pub fn received(message: &BorrowedMessage<'_>) -> Result<Record, Headless> {
    let (key, value) = (message.key(), message.payload());
    let headers = native::headers::read(message);
    let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
    let mut room = length(key) + length(value);
    for (name, value) in headers.iter().flat_map(Headers::iter) {
        // As a rule retide's own are known, and nobody else has a name that begins like theirs.
        let known = name.starts_with(b"retry-");
        room += length(value) + if known { 0 } else { name.len() };
    }
    let mut memory = BytesMut::with_capacity(room);
    let mut copy = |part: &[u8]| {
        memory.extend_from_slice(part);
        memory.split().freeze()
    };
    let mut record = Record {
        key: key.map(&mut copy),
        value: value.map(&mut copy),
        headers: Vec::new(),
    };
    let Ok(headers) = headers else {
        return Err(Headless(record));
    };
    let headers = headers.iter().map(|(name, value)| Header {
        name: headers::known(name).unwrap_or_else(|| Name::from(copy(name))),
        value: value.map(&mut copy),
    });
    record.headers = headers.collect();
    Ok(record)
}

//! Dead letters of others: which library wrote one, of which record it is, and what is written of it to the retry topic.
//!
//! | dialect | its headers | numbers | written by |
//! |---|---|---|---|
//! | `spring` | `kafka_dlt-…`, `retry_topic-…` | big-endian | Spring for Apache Kafka |
//! | `connect` | `__connect.errors.…` | text | Kafka Connect, where its context headers are on |
//! | `streams` | `__streams.errors.…` | text | Kafka Streams (KIP-1034) |
//! | `smallrye` | `dead-letter-…` | text | `SmallRye` Reactive Messaging, which is Quarkus's |
//! | `share-group` | `__dlq.errors.…` | text | brokers, for share groups (KIP-1191) |
//!
//! Not reading topics, which is the shell's. Anybody may write such headers, so each is read by itself, and one that cannot be read is as good
//! as one that is not there. Invariants: whatever a letter says, there is an identity for it, which is the same whenever it is read again; what
//! is written is read as a task of the named scene, or as a dead letter that says why it is none.

use std::str;
use std::sync::Arc;

use uuid::Uuid;

use retide_core::{Origin, Reason, Record};

use crate::headers::{ID, ORIGIN_NAMESPACE, READABLE, REFUSED, SCENE, Sink, identity, is_own};

/// Whose headers a letter has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dialect {
    /// Spring for Apache Kafka.
    Spring,
    /// Kafka Connect.
    Connect,
    /// Kafka Streams.
    Streams,
    /// `SmallRye` Reactive Messaging.
    Smallrye,
    /// Brokers, for share groups.
    ShareGroup,
}

/// What is known of a letter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Whose headers it has; none where no header is known.
    pub dialect: Option<Dialect>,
    /// Where the record was read that failed.
    pub origin: Option<Origin>,
    /// Who failed at it: a group or a connector. Two of them that fail at one record make two letters.
    pub reader: Option<Box<str>>,
    /// Whether the letter holds nothing of the record, which is to be fetched from its origin.
    pub is_pointer: bool,
}

/// Why a letter makes no task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The word for it.
    pub reason: Reason,
    /// What exactly is wrong.
    pub detail: String,
}

/// How a dialect says of which record a letter is.
pub(crate) struct Names {
    /// The header that names the topic.
    pub(crate) topic: &'static str,
    /// The one that names the partition.
    pub(crate) partition: &'static str,
    /// The one that names the offset.
    pub(crate) offset: &'static str,
    /// The one that names who failed, if there is one.
    pub(crate) reader: Option<&'static str>,
    /// Which header of a name counts.
    counts: Counts,
    /// How numbers are written.
    numbers: Numbers,
}

/// Which header counts where a name repeats.
#[derive(Clone, Copy)]
enum Counts {
    /// The first: the library writes its own before those that the record had.
    First,
    /// The last: the library writes its own behind them.
    Last,
}

/// How numbers are written.
#[derive(Clone, Copy)]
enum Numbers {
    /// As decimal digits.
    Text,
    /// As Java's `ByteBuffer` writes them: four bytes, or eight.
    BigEndian,
}

/// Longest name of a topic that brokers take.
const MAX_TOPIC: usize = 249;

/// Longest name of a group or a connector that counts: brokers have no bound for it, and those of people are short.
const MAX_READER: usize = 1_024;

/// Most headers of a letter that are written: what retide adds is to be readable, too. A letter with so many makes no task anyhow.
const MOST_HEADERS: usize = READABLE - 8;

// === impl Dialect ===

impl Dialect {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Spring,
        Self::Connect,
        Self::Streams,
        Self::Smallrye,
        Self::ShareGroup,
    ];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Spring => "spring",
            Self::Connect => "connect",
            Self::Streams => "streams",
            Self::Smallrye => "smallrye",
            Self::ShareGroup => "share-group",
        }
    }

    /// What the names of its headers begin with.
    pub const fn prefixes(self) -> &'static [&'static str] {
        match self {
            Self::Spring => &["kafka_dlt-", "retry_topic-"],
            Self::Connect => &["__connect.errors."],
            Self::Streams => &["__streams.errors."],
            Self::Smallrye => &["dead-letter-"],
            Self::ShareGroup => &["__dlq.errors."],
        }
    }

    /// The dialect that a header of this name is of, if it is of one.
    pub fn of_header(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|dialect| {
            let mut prefixes = dialect.prefixes().iter();
            prefixes.any(|prefix| name.starts_with(prefix.as_bytes()))
        })
    }

    /// How it says of which record a letter is.
    pub(crate) const fn names(self) -> Names {
        const TEXT: Names = Names {
            topic: "",
            partition: "",
            offset: "",
            reader: None,
            counts: Counts::Last,
            numbers: Numbers::Text,
        };
        match self {
            Self::Spring => Names {
                topic: "kafka_dlt-original-topic",
                partition: "kafka_dlt-original-partition",
                offset: "kafka_dlt-original-offset",
                reader: Some("kafka_dlt-original-consumer-group"),
                numbers: Numbers::BigEndian,
                ..TEXT
            },
            Self::Connect => Names {
                topic: "__connect.errors.topic",
                partition: "__connect.errors.partition",
                offset: "__connect.errors.offset",
                reader: Some("__connect.errors.connector.name"),
                ..TEXT
            },
            Self::Streams => Names {
                topic: "__streams.errors.topic",
                partition: "__streams.errors.partition",
                offset: "__streams.errors.offset",
                ..TEXT
            },
            Self::Smallrye => Names {
                topic: "dead-letter-topic",
                partition: "dead-letter-partition",
                offset: "dead-letter-offset",
                counts: Counts::First,
                ..TEXT
            },
            Self::ShareGroup => Names {
                topic: "__dlq.errors.topic",
                partition: "__dlq.errors.partition",
                offset: "__dlq.errors.offset",
                reader: Some("__dlq.errors.group"),
                ..TEXT
            },
        }
    }
}

// === impl Foreign ===

impl Foreign {
    /// What the headers of a letter say; those of `dialect`, or of whoever wrote the last header that is known.
    pub fn of(record: &Record, dialect: Option<Dialect>) -> Self {
        let mut names = record.headers.iter().rev();
        let known =
            dialect.or_else(|| names.find_map(|header| Dialect::of_header(header.name.as_bytes())));
        let Some(known) = known else {
            return Self::default();
        };
        let mut headers = record.headers.iter();
        if !headers.any(|header| Dialect::of_header(header.name.as_bytes()) == Some(known)) {
            return Self::default();
        }
        let names = known.names();
        let is_empty = record.key.is_none() && record.value.is_none();
        let origin = names.origin(record);
        Self {
            dialect: Some(known),
            is_pointer: known == Dialect::ShareGroup && is_empty && origin.is_some(),
            reader: names.reader(record),
            origin,
        }
    }

    /// The identity of the task: the same for each letter of the same record by the same reader on the same topic, and of a letter that does not
    /// say of which record it is, the one of the place where it `stands`. Not all libraries name the reader, and two that fail at one record
    /// have topics of their own.
    pub fn id(&self, stands: &Origin) -> Arc<str> {
        let Some(origin) = &self.origin else {
            return identity(stands);
        };
        let reader = self.reader.as_deref().unwrap_or_default();
        let named = format!("{origin} on {} by {reader}", stands.topic);
        let id = Uuid::new_v5(&ORIGIN_NAMESPACE, named.as_bytes());
        id.to_string().into()
    }
}

/// Writes the headers of what becomes of a letter: its own in order, but for those that are retide's, then scene, identity and, if it is no
/// task, why.
pub fn write(
    record: &Record,
    (scene, id): (&str, &str),
    refused: Option<&Refused>,
    sink: &mut Sink<'_>,
) {
    let theirs = record.headers.iter();
    let theirs = theirs.filter(|header| !is_own(header.name.as_bytes()));
    for header in theirs.take(MOST_HEADERS) {
        sink(header.name.as_bytes(), header.value.as_deref());
    }
    sink(SCENE.as_bytes(), Some(scene.as_bytes()));
    sink(ID.as_bytes(), Some(id.as_bytes()));
    if let Some(Refused { reason, detail }) = refused {
        let why = format!("{}: {detail}", reason.word());
        sink(REFUSED.as_bytes(), Some(why.as_bytes()));
    }
}

// === impl Names ===

impl Names {
    /// Where the record was read, if all of that can be read.
    fn origin(&self, record: &Record) -> Option<Origin> {
        let topic = self.text(record, self.topic, MAX_TOPIC)?;
        let partition = self.number(record, self.partition)?;
        let offset = self.number(record, self.offset)?;
        is_topic(topic)
            .then(|| Origin {
                topic: topic.into(),
                partition: partition as i32,
                offset,
            })
            .filter(|origin| i64::from(origin.partition) == partition)
    }

    /// Who failed at it, if that is said.
    fn reader(&self, record: &Record) -> Option<Box<str>> {
        let reader = self.text(record, self.reader?, MAX_READER)?;
        (!reader.is_empty()).then(|| reader.into())
    }

    /// The value of a header, if it has one.
    fn bytes<'a>(&self, record: &'a Record, name: &str) -> Option<&'a [u8]> {
        let mut headers = record.headers.iter();
        let header = match self.counts {
            Counts::First => headers.find(|header| header.name == *name),
            Counts::Last => headers.rfind(|header| header.name == *name),
        };
        header?.value.as_deref()
    }

    /// The same, if it is text of at most so many bytes.
    fn text<'a>(&self, record: &'a Record, name: &str, most: usize) -> Option<&'a str> {
        let bytes = self.bytes(record, name)?;
        let bytes = (bytes.len() <= most).then_some(bytes)?;
        str::from_utf8(bytes).ok()
    }

    /// The same, if it is a number that is none below zero.
    fn number(&self, record: &Record, name: &str) -> Option<i64> {
        let bytes = self.bytes(record, name)?;
        let number = match self.numbers {
            Numbers::Text => str::from_utf8(bytes).ok()?.parse().ok()?,
            Numbers::BigEndian => match bytes.len() {
                4 => i32::from_be_bytes(bytes.try_into().ok()?).into(),
                8 => i64::from_be_bytes(bytes.try_into().ok()?),
                _ => return None,
            },
        };
        (number >= 0).then_some(number)
    }
}

/// Whether brokers take this for the name of a topic.
pub fn is_topic(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_of_length = !name.is_empty() && name.len() <= MAX_TOPIC;
    is_of_length && name != "." && name != ".." && name.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use retide_core::{Header, Timestamp};

    use crate::headers::{DUE_AT, ROUND, ingest};

    use super::*;

    fn letter(headers: &[(&str, &[u8])]) -> Record {
        let headers = headers.iter().map(|(name, value)| Header {
            name: (*name).into(),
            value: Some(Bytes::copy_from_slice(value)),
        });
        Record {
            key: Some("k".into()),
            value: Some("v".into()),
            headers: headers.collect(),
        }
    }

    fn at(topic: &str, partition: i32, offset: i64) -> Origin {
        Origin {
            topic: topic.into(),
            partition,
            offset,
        }
    }

    /// As each library writes them, in its order.
    fn letters() -> [(Dialect, Record, Option<&'static str>); 5] {
        let spring = letter(&[
            (
                "kafka_dlt-exception-fqcn",
                b"java.lang.IllegalStateException",
            ),
            ("kafka_dlt-exception-message", b"no stock"),
            ("kafka_dlt-original-topic", b"orders"),
            ("kafka_dlt-original-partition", &3_i32.to_be_bytes()),
            ("kafka_dlt-original-offset", &42_i64.to_be_bytes()),
            ("kafka_dlt-original-consumer-group", b"shop"),
        ]);
        let connect = letter(&[
            ("__connect.errors.topic", b"orders"),
            ("__connect.errors.partition", b"3"),
            ("__connect.errors.offset", b"42"),
            ("__connect.errors.connector.name", b"sink"),
            ("__connect.errors.task.id", b"0"),
        ]);
        let streams = letter(&[
            (
                "__streams.errors.exception",
                b"java.lang.RuntimeException: no",
            ),
            ("__streams.errors.topic", b"orders"),
            ("__streams.errors.partition", b"3"),
            ("__streams.errors.offset", b"42"),
        ]);
        let smallrye = letter(&[
            ("dead-letter-reason", b"no stock"),
            ("dead-letter-topic", b"orders"),
            ("dead-letter-partition", b"3"),
            ("dead-letter-offset", b"42"),
            ("theirs", b"1"),
        ]);
        let share = letter(&[
            ("__dlq.errors.topic", b"orders"),
            ("__dlq.errors.partition", b"3"),
            ("__dlq.errors.offset", b"42"),
            ("__dlq.errors.group", b"shop"),
            ("__dlq.errors.delivery.count", b"5"),
        ]);
        [
            (Dialect::Spring, spring, Some("shop")),
            (Dialect::Connect, connect, Some("sink")),
            (Dialect::Streams, streams, None),
            (Dialect::Smallrye, smallrye, None),
            (Dialect::ShareGroup, share, Some("shop")),
        ]
    }

    #[test]
    fn each_dialect_is_recognised_and_says_of_which_record_a_letter_is() {
        for (dialect, letter, reader) in letters() {
            let expected = Foreign {
                dialect: Some(dialect),
                origin: Some(at("orders", 3, 42)),
                reader: reader.map(Box::from),
                is_pointer: false,
            };

            assert_eq!(Foreign::of(&letter, None), expected, "{dialect:?}");
            assert_eq!(Foreign::of(&letter, Some(dialect)), expected, "{dialect:?}");
            for other in Dialect::ALL.into_iter().filter(|other| *other != dialect) {
                let read = Foreign::of(&letter, Some(other));
                assert_eq!(read, Foreign::default(), "{dialect:?} as {other:?}");
            }
        }
    }

    #[test]
    fn the_last_library_counts_and_of_each_what_it_wrote_last() {
        let again = letter(&[
            ("__connect.errors.topic", b"orders"),
            ("__connect.errors.partition", b"3"),
            ("__connect.errors.offset", b"42"),
            ("kafka_dlt-original-topic", b"orders"),
            ("kafka_dlt-original-partition", &3_i32.to_be_bytes()),
            ("kafka_dlt-original-offset", &42_i64.to_be_bytes()),
            ("kafka_dlt-original-topic", b"orders-dlt"),
            ("kafka_dlt-original-partition", &0_i32.to_be_bytes()),
            ("kafka_dlt-original-offset", &7_i64.to_be_bytes()),
        ]);

        let read = Foreign::of(&again, None);

        assert_eq!(read.dialect, Some(Dialect::Spring));
        assert_eq!(read.origin, Some(at("orders-dlt", 0, 7)));
        let chosen = Foreign::of(&again, Some(Dialect::Connect));
        assert_eq!(chosen.origin, Some(at("orders", 3, 42)));
        // SmallRye writes its own before those of the record.
        let nested = letter(&[
            ("dead-letter-topic", b"dlq"),
            ("dead-letter-partition", b"0"),
            ("dead-letter-offset", b"7"),
            ("dead-letter-topic", b"orders"),
            ("dead-letter-partition", b"3"),
            ("dead-letter-offset", b"42"),
        ]);
        assert_eq!(Foreign::of(&nested, None).origin, Some(at("dlq", 0, 7)));
    }

    #[test]
    fn the_same_letter_is_the_same_task_and_two_readers_have_two() {
        let stands = at("orders-dlt", 0, 9);
        let [(_, spring, _), (_, connect, _), (_, streams, _), ..] = letters();
        let id = |record: &Record, stands: &Origin| Foreign::of(record, None).id(stands);

        assert_eq!(id(&spring, &stands), id(&spring, &at("orders-dlt", 5, 1)));
        assert_ne!(id(&spring, &stands), id(&connect, &stands));
        assert_ne!(id(&streams, &stands), id(&streams, &at("other-dlt", 0, 9)));
        assert_eq!(id(&letter(&[]), &stands), identity(&stands));
    }

    #[test]
    fn only_a_letter_of_a_share_group_without_anything_is_a_pointer() {
        for (dialect, full, _) in letters() {
            let empty = Record {
                key: None,
                value: None,
                ..full.clone()
            };
            let keyed = Record {
                value: None,
                ..full
            };

            let is_share = dialect == Dialect::ShareGroup;
            assert_eq!(Foreign::of(&empty, None).is_pointer, is_share);
            assert!(!Foreign::of(&keyed, None).is_pointer);
        }
        let lost = Record {
            headers: letter(&[("__dlq.errors.topic", b"orders")]).headers,
            ..Record::default()
        };
        assert!(!Foreign::of(&lost, None).is_pointer);
    }

    #[test]
    fn what_cannot_be_read_is_as_good_as_not_there() {
        let spring = |topic: &[u8], partition: &[u8], offset: &[u8]| {
            let letter = letter(&[
                ("kafka_dlt-original-topic", topic),
                ("kafka_dlt-original-partition", partition),
                ("kafka_dlt-original-offset", offset),
            ]);
            Foreign::of(&letter, None)
        };
        let (partition, offset) = (3_i32.to_be_bytes(), 42_i64.to_be_bytes());
        let long = [b'a'; MAX_TOPIC + 1];
        let far = (i64::from(i32::MAX) + 1).to_be_bytes();
        for (topic, partition, offset) in [
            (&b""[..], &partition[..], &offset[..]),
            (b"..", &partition, &offset),
            (b"a/b", &partition, &offset),
            (b"caf\xe9", &partition, &offset),
            (&long, &partition, &offset),
            (b"t", b"3", &offset),
            (b"t", &far, &offset),
            (b"t", &partition, b"42"),
            (b"t", &partition, &(-1_i64).to_be_bytes()),
            (b"t", &partition, b""),
        ] {
            let read = spring(topic, partition, offset);

            assert_eq!(read.dialect, Some(Dialect::Spring));
            assert_eq!(read.origin, None, "{}", topic.escape_ascii());
        }
        for text in ["-1", "", "4 2", "9223372036854775808", "null"] {
            let letter = letter(&[
                ("__streams.errors.topic", b"orders"),
                ("__streams.errors.partition", b"0"),
                ("__streams.errors.offset", text.as_bytes()),
            ]);
            assert_eq!(Foreign::of(&letter, None).origin, None, "{text}");
        }
    }

    #[test]
    fn a_letter_becomes_a_task_with_its_headers_and_nobody_elses_state() {
        let (_, mut record, _) = letters()[0].clone();
        let theirs = record.headers.clone();
        for name in [DUE_AT, ROUND, "Retry-Deadline-At", SCENE, REFUSED] {
            let value = Some("7".into());
            record.headers.push(Header {
                name: name.into(),
                value,
            });
        }
        let mut headers = Vec::new();
        write(&record, ("orders", "o-7"), None, &mut |name, value| {
            let value = value.map(Bytes::copy_from_slice);
            headers.push(Header {
                name: name.into(),
                value,
            });
        });
        let copy = Record { headers, ..record };

        let task = ingest(copy, at("retry.tasks", 1, 2), Timestamp::from_millis(9)).unwrap();

        assert_eq!(
            (&*task.scene, &*task.id, task.attempt),
            ("orders", "o-7", 1)
        );
        assert_eq!(task.record.headers, theirs);
    }

    #[test]
    fn a_letter_that_is_no_task_says_why() {
        let (_, record, _) = letters()[4].clone();
        for reason in [
            Reason::OriginGone,
            Reason::Unwritable,
            Reason::TooManyHeaders,
        ] {
            let refused = Refused {
                reason,
                detail: "orders/3/42 is not retained any more".to_owned(),
            };
            let mut headers = Vec::new();
            let scene = ("orders", "o-7");
            write(&record, scene, Some(&refused), &mut |name, value| {
                let value = value.map(Bytes::copy_from_slice);
                headers.push(Header {
                    name: name.into(),
                    value,
                });
            });
            let copy = Record {
                headers,
                ..record.clone()
            };

            let poison = ingest(copy, at("retry.tasks", 1, 2), Timestamp::from_millis(9));

            let poison = poison.unwrap_err();
            assert_eq!(poison.reason, reason);
            assert_eq!((&*poison.scene, &*poison.id), ("orders", "o-7"));
            assert_eq!(*poison.detail.message, *refused.detail);
        }
    }
}

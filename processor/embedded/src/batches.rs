//! Cutting and reading record batches, as a partition's log keeps them: one after the other, each with its length.
//!
//! Invariant: a batch is passed on whole or not at all, and a reader is told of exactly those aborted transactions that reach
//! into what it reads.

use bytes::Bytes;
use kafka_protocol::messages::fetch_response::AbortedTransaction;
use kafka_protocol::records::RecordBatchDecoder;

/// Length of a batch's fixed part, before its records.
const HEADER_LENGTH: usize = 61;
/// How much of a batch its own length leaves out: the base offset and the length.
const PREFIX_LENGTH: usize = 12;
/// The bit of a batch's attributes that makes it a marker instead of data.
const CONTROL: i16 = 0x20;
/// What a marker's key holds after its version when the transaction was aborted.
const ABORT: [u8; 2] = [0, 0];

/// How much of a partition's records may be passed on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Room {
    /// As many batches as fit in so many bytes.
    Fitting(usize),
    /// The same, but the first one in any case: a reader must get past a batch that is larger than all it asks for.
    FirstAndFitting(usize),
}

/// One batch of a log.
struct Batch {
    /// All of it.
    bytes: Bytes,
    /// Offset of its first record.
    base: i64,
    /// Who wrote it.
    producer: i64,
    /// Whether it is a marker: the end of one of its producer's transactions.
    marker: bool,
}

/// The part of `records` for which there is room.
pub(super) fn cut(records: &Bytes, room: Room) -> Bytes {
    let (limit, mut forced) = match room {
        Room::Fitting(limit) => (limit, false),
        Room::FirstAndFitting(limit) => (limit, true),
    };
    let mut end = 0;
    for batch in split(records) {
        let next = end + batch.bytes.len();
        if next > limit && !forced {
            break;
        }
        forced = false;
        end = next;
    }
    records.slice(..end)
}

/// Those of a partition's `aborted` transactions that reach into `records`, which are all that can be read from `start` on.
///
/// The engine names every one that was ever aborted. A client takes what it is told of as still open until it sees its marker,
/// and would throw away all that the producer has committed since.
pub(super) fn reaching(
    aborted: &[AbortedTransaction],
    records: &Bytes,
    start: i64,
) -> Vec<AbortedTransaction> {
    aborted
        .iter()
        .filter(|one| one.first_offset >= start || is_open(one, aborted, records, start))
        .cloned()
        .collect()
}

/// Whether the aborted transaction `one`, which began before `start`, ended after it: then the first marker of its producer is its own.
fn is_open(
    one: &AbortedTransaction,
    aborted: &[AbortedTransaction],
    records: &Bytes,
    start: i64,
) -> bool {
    let producer = one.producer_id;
    let Some(marker) = split(records).find(|batch| batch.marker && batch.producer == producer.0)
    else {
        return false;
    };
    // The marker ends the youngest transaction before it.
    marker.is_abort()
        && marker.base >= start
        && !aborted.iter().any(|other| {
            other.producer_id == producer
                && (one.first_offset + 1..marker.base).contains(&other.first_offset)
        })
}

/// The batches of a log, up to the first that is cut off or malformed.
fn split(records: &Bytes) -> impl Iterator<Item = Batch> {
    let mut rest = records.clone();
    std::iter::from_fn(move || {
        let length = usize::try_from(i32::from_be_bytes(field(&rest, 8)?)).ok()?;
        let length = PREFIX_LENGTH.checked_add(length)?;
        if !(HEADER_LENGTH..=rest.len()).contains(&length) {
            return None;
        }
        let bytes = rest.split_to(length);
        Some(Batch {
            base: i64::from_be_bytes(field(&bytes, 0)?),
            producer: i64::from_be_bytes(field(&bytes, 43)?),
            marker: i16::from_be_bytes(field(&bytes, 21)?) & CONTROL != 0,
            bytes,
        })
    })
}

/// The `N` bytes at `at`.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

// === impl Batch ===

impl Batch {
    /// Whether this marker says that its transaction was aborted.
    fn is_abort(&self) -> bool {
        let Ok(decoded) = RecordBatchDecoder::decode(&mut self.bytes.clone()) else {
            return false;
        };
        let key = decoded
            .records
            .first()
            .and_then(|record| record.key.as_ref());
        key.is_some_and(|key| field(key, 2) == Some(ABORT))
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kafka_protocol::messages::ProducerId;
    use kafka_protocol::records::{
        Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
    };

    use super::*;

    const OPTIONS: RecordEncodeOptions = RecordEncodeOptions {
        version: 2,
        compression: Compression::None,
    };

    #[allow(
        clippy::default_trait_access,
        reason = "the type of the headers is from a crate that is not ours to name"
    )]
    fn batch(producer_id: i64, offset: i64, marker: Option<u8>) -> Bytes {
        let key = marker.map(|kind| Bytes::from(vec![0, 0, 0, kind]));
        let record = Record {
            transactional: true,
            control: marker.is_some(),
            delete_horizon: false,
            partition_leader_epoch: 0,
            producer_id,
            producer_epoch: 0,
            timestamp_type: TimestampType::Creation,
            offset,
            sequence: 0,
            timestamp: 0,
            key,
            value: Some(Bytes::from_static(b"value")),
            headers: Default::default(),
        };
        let mut bytes = BytesMut::new();
        RecordBatchEncoder::encode(&mut bytes, [&record], &OPTIONS).unwrap();
        bytes.freeze()
    }

    fn data(producer: i64, offset: i64) -> Bytes {
        batch(producer, offset, None)
    }

    fn abort(producer: i64, offset: i64) -> Bytes {
        batch(producer, offset, Some(0))
    }

    fn commit(producer: i64, offset: i64) -> Bytes {
        batch(producer, offset, Some(1))
    }

    fn log(batches: &[Bytes]) -> Bytes {
        batches.concat().into()
    }

    fn aborted(producer: i64, first_offset: i64) -> AbortedTransaction {
        AbortedTransaction::default()
            .with_producer_id(ProducerId(producer))
            .with_first_offset(first_offset)
    }

    #[test]
    fn only_whole_batches_are_passed_on() {
        let log = log(&[data(1, 0), data(1, 1), data(1, 2)]);
        let one = log.len() / 3;

        let fitting = |limit| cut(&log, Room::Fitting(limit)).len();
        let forced = |limit| cut(&log, Room::FirstAndFitting(limit)).len();

        assert_eq!([fitting(0), fitting(one - 1)], [0, 0]);
        assert_eq!([fitting(2 * one), fitting(3 * one - 1)], [2 * one, 2 * one]);
        assert_eq!(
            [forced(0), forced(one), forced(2 * one)],
            [one, one, 2 * one]
        );
        assert_eq!(forced(usize::MAX), log.len());
    }

    #[test]
    fn what_is_cut_off_or_malformed_is_left_out() {
        let whole = data(1, 0);
        let mut negative = data(1, 1).to_vec();
        negative[8] = 0xff;

        for rest in [&whole[..HEADER_LENGTH], &whole[..5], &negative] {
            let log = log(&[whole.clone(), Bytes::copy_from_slice(rest)]);
            assert_eq!(cut(&log, Room::Fitting(usize::MAX)), whole);
        }
    }

    #[test]
    fn an_aborted_transaction_is_told_of_until_its_marker_is_passed() {
        // Aborted at 0 to 2 and at 5 to 6, committed at 3 to 4; another producer in between.
        let all = [
            data(1, 0),
            data(2, 1),
            abort(1, 2),
            data(1, 3),
            commit(1, 4),
        ];
        let all = [&all[..], &[data(1, 5), abort(1, 6), commit(2, 7)]].concat();
        let ended = [aborted(1, 0), aborted(1, 5)];

        let told = |start: usize| reaching(&ended, &log(&all[start..]), start as i64);

        assert_eq!(told(0), ended);
        assert_eq!(told(1), ended);
        assert_eq!(told(2), ended);
        assert_eq!(told(3), ended[1..]);
        assert_eq!(told(5), ended[1..]);
        assert_eq!(told(6), ended[1..]);
        assert_eq!(told(7), []);
    }
}

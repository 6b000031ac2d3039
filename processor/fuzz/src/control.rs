//! The commands topic: what is accepted is written and read again equal, names tasks, and takes memory in proportion; what is refused is
//! refused in few words.

use std::sync::Arc;

use bytes::Bytes;

use retide_avro::control::{MAX_REFUSAL, STAGE, Stage, decode, encode};
use retide_core::control::{Command, Control, Counts, LONGEST, MAX_ID, MAX_TEXT, Place, Step};
use retide_core::{Record, Source, Timestamp};

use crate::record;

/// Where every request stands.
const PLACE: Place = Place {
    at: Timestamp::from_millis(1_700_000_000_000),
    partition: 3,
    offset: 42,
};

/// Reads a record of the commands topic.
///
/// The first byte is the stage (`0` a request, `1` a step, `2` an answer, `3` an end), the others are the value.
pub fn control(data: &[u8]) {
    let Some((form, value)) = data.split_first() else {
        return;
    };
    let stage = Stage::ALL[usize::from(form.wrapping_sub(b'0') % 7)];
    let header = record::header(STAGE.as_bytes(), Some(stage.word().as_bytes()));
    let record = Record {
        key: None,
        value: Some(Bytes::copy_from_slice(value)),
        headers: match stage {
            Stage::Request => Vec::new(),
            Stage::Step
            | Stage::Answer
            | Stage::Ended
            | Stage::Asked
            | Stage::Campaign
            | Stage::Report => vec![header],
        },
    };

    let control = match decode(&record, PLACE, &tier) {
        Ok(control) => control,
        Err(refusal) => {
            assert_eq!(refusal.place, PLACE);
            assert!(!refusal.why.is_empty() && refusal.why.len() <= MAX_REFUSAL);
            assert!(!refusal.id.is_empty() && refusal.id.len() <= MAX_ID);
            return;
        }
    };

    match &control {
        Control::Request(command) => {
            check(command);
            assert_eq!(command.place, PLACE);
            assert!(command.expires >= PLACE.at && command.expires <= PLACE.at + LONGEST);
        }
        Control::Step(step) => check(&step.command),
        Control::Answer(_)
        | Control::Ended(_)
        | Control::Ask(_)
        | Control::Campaign(_)
        | Control::Report(_) => {}
    }
    match control {
        // Where people wrote it another way, it may name times that are not taken from them, such as one in 1970.
        Control::Request(command) => again(&Control::Step(Step {
            again: true,
            before: Counts::default(),
            command,
            shards: 1,
            looked: None,
        })),
        Control::Step(_)
        | Control::Answer(_)
        | Control::Ended(_)
        | Control::Ask(_)
        | Control::Campaign(_)
        | Control::Report(_) => again(&control),
    }
}

/// A record that retide writes is read again.
fn again(control: &Control) {
    let written = encode(control, &topic);
    let record = Record {
        key: Some(written.key),
        value: Some(written.value),
        headers: written.headers,
    };
    assert_eq!(decode(&record, PLACE, &tier).as_ref(), Ok(control));
}

/// A command names tasks, and its texts are bounded.
fn check(command: &Command) {
    assert!(!command.id.is_empty() && command.id.len() <= MAX_ID);
    assert!(command.by.len() <= MAX_TEXT && command.reason.len() <= MAX_TEXT);
}

/// The topic of a tier.
fn topic(source: Source) -> Arc<str> {
    match source {
        Source::Tier(tier) => format!("retry.delay.{tier}").into(),
        other => unreachable!("{other:?} is no tier"),
    }
}

/// The tier of a topic.
fn tier(topic: &str) -> Option<Source> {
    let tier = topic.strip_prefix("retry.delay.")?;
    tier.parse().ok().map(Source::Tier)
}

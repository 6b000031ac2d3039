//! The completion map: what is read is what was written, no text makes a large set, and a set is a set.

use std::collections::BTreeSet;
use std::str;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use xxhash_rust::xxh3::xxh3_64;

use retide_core::completions::{Binding, Completions, Error, MAX_TEXT};

/// One past the last offset that operations are about: small, so that they meet.
const END: i64 = 256;

/// The offset that a text is written with.
const COMMITTED: i64 = 5;

/// Reads commit metadata, or does to a set what the bytes say.
///
/// The first byte is the form: `t` a text as it stands, `f` a body that gets all that is right before it, `m` operations.
pub fn completions(data: &[u8]) {
    let Some((form, rest)) = data.split_first() else {
        return;
    };
    match form % 3 {
        0 => check_text(&forged(rest)),
        1 => check_operations(rest),
        _ => {
            if let Ok(text) = str::from_utf8(rest) {
                check_text(text);
            }
        }
    }
}

/// The text of a body, however senseless, with the right checksum, and written for what it is read as.
fn forged(body: &[u8]) -> String {
    let any = Completions::between(0, 1, [].into_iter()).encode(Binding::default(), COMMITTED);
    let bound = any.rsplitn(3, '.').last().unwrap_or_default();
    let checksum = xxh3_64(body) as u32;
    format!("{bound}.{checksum:08x}.{}", URL_SAFE_NO_PAD.encode(body))
}

/// The text of a set.
fn encode(set: &Completions) -> String {
    set.encode(Binding::default(), COMMITTED)
}

/// The set of a text.
fn decode(text: &str) -> Result<Completions, Error> {
    Completions::decode(text, Binding::default(), COMMITTED)
}

/// What is accepted can be written, no longer than it was, and read again.
fn check_text(text: &str) {
    let Ok(set) = decode(text) else {
        return;
    };
    assert!(text.len() <= MAX_TEXT);
    assert!(set.is_empty() || !text.is_empty());

    let written = encode(&set);

    // Each range takes at least two bits of a text, so a set is a small multiple of its text.
    assert!(written.len() <= text.len(), "{written} of {text}");
    assert_eq!(decode(&written).as_ref(), Ok(&set));
    check_saved(text);
    // It is of no use for any other commit.
    let elsewhere = Completions::decode(text, Binding::default(), COMMITTED + 1);
    assert!(text.is_empty() || elsewhere == Err(Error::Elsewhere));
    check_last(set);
}

/// What is saved up can be written and read again, too.
fn check_saved(text: &str) {
    let read = |text: &str| Completions::decode_with(text, Binding::default(), COMMITTED);
    let Ok((set, saved)) = read(text) else {
        return;
    };

    let written = set.encode_with(&saved, Binding::default(), COMMITTED);

    assert!(written.len() <= MAX_TEXT);
    // There may have been more than is written, and what is less than a millisecond is nothing.
    let again = read(&written).map(|(set, _)| set);
    assert_eq!(again.as_ref(), Ok(&set));
}

/// The last offset is in the set, the one after is not, and it can be taken out.
fn check_last(mut set: Completions) {
    let end = set.end();
    if set.is_empty() {
        return assert_eq!(end, 0);
    }
    assert!(set.contains(end - 1) && !set.contains(end));
    assert_eq!(set.first_open_from(end - 1), end);

    set.remove(end - 1);

    assert!(!set.contains(end - 1));
    assert!(set.end() < end);
}

/// A set does what a set of numbers does.
fn check_operations(data: &[u8]) {
    let mut bytes = data.iter().copied();
    let (mut set, mut model) = between(&mut bytes);
    while let Some(operation) = bytes.next() {
        match operation % 3 {
            0 => {
                let offset = next(&mut bytes);
                set.remove(offset);
                model.remove(&offset);
            }
            1 => {
                let first = model.first().copied().unwrap_or(END);
                let (start, end) = (next(&mut bytes), next(&mut bytes).min(first));
                set.prepend(start, end);
                model.extend(start..end);
            }
            _ => {
                let floor = next(&mut bytes);
                let (other, others) = between(&mut bytes);
                let from = set.end().max(floor);
                set.extend(&other, floor);
                model.extend(others.into_iter().filter(|offset| *offset >= from));
            }
        }
    }

    for offset in 0..=END {
        assert_eq!(set.contains(offset), model.contains(&offset), "{offset}");
        // Both ends are bytes, so a set may reach up to END, but not beyond it.
        let open = (offset..=END).find(|offset| !model.contains(offset));
        assert_eq!(Some(set.first_open_from(offset)), open);
    }
    assert_eq!(set.end(), model.last().map_or(0, |last| last + 1));
    assert_eq!(set.is_empty(), model.is_empty());
    assert_eq!(decode(&encode(&set)), Ok(set));
}

/// Everything between two offsets but for some, and the same as numbers.
fn between(bytes: &mut impl Iterator<Item = u8>) -> (Completions, BTreeSet<i64>) {
    let (start, length) = (next(bytes), next(bytes));
    let end = (start + length).min(END);
    let count = (next(bytes) % 16) as usize;
    let open: BTreeSet<i64> = (0..count).map(|_| next(bytes)).collect();
    let open: Vec<i64> = open
        .into_iter()
        .filter(|offset| (start..end).contains(offset))
        .collect();
    let model = (start..end)
        .filter(|offset| !open.contains(offset))
        .collect();
    (Completions::between(start, end, open.into_iter()), model)
}

/// The next byte as an offset; 0 at the end.
fn next(bytes: &mut impl Iterator<Item = u8>) -> i64 {
    bytes.next().unwrap_or_default().into()
}

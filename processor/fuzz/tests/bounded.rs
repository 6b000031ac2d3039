//! The bodies on the committed corpus and on a fixed number of inputs mutated from it.
//!
//! `RETIDE_FUZZ_INPUTS=1000000 RETIDE_FUZZ_SEED=7 cargo test -p retide-fuzz --release` mutates more, and others.

use std::env;
use std::fs;
use std::panic;
use std::path::Path;

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{RngCore, SeedableRng};

/// Longest input: well above the limits of headers, scenes and commit metadata, so that they are met from both sides.
const LONGEST: usize = 8_192;

/// Most mutations between an input and the seed it is made of.
const MUTATIONS: u64 = 6;

/// One in this many inputs is random bytes.
const RANDOM: u64 = 16;

/// Bytes that mean something to one of the readers, as numbers, separators or ends of a range.
const BYTES: &[u8] = b"\0\x01\x02\x7f\x80\xff|=\n\r:./-09\"'{}[],\\";

/// Words that mean something to one of the readers, and that flipping bits would hardly make.
const WORDS: &[&str] = &[
    "retry-scene=",
    "retry-scene=\"pay\" ",
    "retry-id=",
    "retry-attempt=",
    "retry-due-at=",
    "retry-delay-ms=",
    "retry-first-failed-at=",
    "retry-deadline-at=",
    "retry-origin=",
    "retry-error=",
    "retry-hops=",
    "retry-held-since=",
    "retry-pending-since=",
    "retry-round=",
    "retry-kind=callback",
    "retry-outcome=",
    "retry-read-from=envelope",
    "retry-refused=origin-gone: ",
    "kafka_dlt-original-topic=",
    "__connect.errors.offset=7",
    "retry-outcome=dead",
    "__dlq.errors.offset=7",
    "dead-letter-partition=",
    "\"retry-due-at\"=",
    "content-type=application/vnd.retide.task+json",
    "18446744073709551615",
    "9223372036854775807",
    "4294967296",
    ": ",
    "\u{e9}",
    "\u{85}",
    "{\"scene\":\"pay\"}",
    "\"headers\":[{\"name\":\"t\"}]",
    "\"payloadBase64\":\"AA==\"",
    "\"headers\":{\"t\":7}",
    "\"id\":\"o-7\",",
    "\"key\":9,",
    "\"dueAt\":\"1700000000009.0\",",
    "\"deadlineAt\":\"2023-11-14T22:13:20Z\",",
    "\"delayMs\":1e3,",
    "null",
    "1e999",
    "nan",
    "max_attempts = 3\n",
    "deadline = '1h'\n",
    "rate = { limit = 5 }\n",
    "ordering = 'key'\n",
    "jitter = 'full'\n",
    "factor = 2.0",
    "'366d'",
    "'0s'",
    "'s3cret'",
    "authorization = ",
    "[scenes.token]\n",
    "[kafka]\n",
    "1.00000000.",
    "{\"command\":\"cancel\",\"select\":{\"id\":\"a\"}}",
    "\"key_base64\":[\"AA==\"],",
    "\"header\":[{\"name\":\"a\",\"value_base64\":\"AA==\"}],",
    "\"attempts\":\"2..\",",
    "\"due\":\"-2h..now\",",
    "\"origin\":\"t/1/2\",",
    "\"expires_in\":\"1h\",",
];

/// Runs a body on its corpus and on `inputs` mutated inputs.
fn bounded(name: &str, body: fn(&[u8]), inputs: u64) {
    let corpus = corpus(name);
    for input in &corpus {
        run(name, body, input);
    }

    let number = |variable| env::var(variable).map(|text| text.parse().expect("a number"));
    let inputs = number("RETIDE_FUZZ_INPUTS").unwrap_or(inputs);
    let seed = number("RETIDE_FUZZ_SEED").unwrap_or(1);
    let mut chance = Pcg64Mcg::seed_from_u64(seed);
    for _ in 0..inputs {
        let input = input(&corpus, &mut chance);
        run(name, body, &input);
    }
}

/// The committed inputs, in the order of their names.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let entries = fs::read_dir(folder).expect("the corpus is there");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
        .into_iter()
        .map(|file| fs::read(file).expect("it can be read"))
        .collect()
}

/// Runs a body on one input, and says which one it was if that fails.
fn run(name: &str, body: fn(&[u8]), input: &[u8]) {
    if let Err(cause) = panic::catch_unwind(|| body(input)) {
        eprintln!("{name} failed on b\"{}\"", input.escape_ascii());
        panic::resume_unwind(cause);
    }
}

/// A number below `end`, or 0.
fn below(end: usize, chance: &mut Pcg64Mcg) -> usize {
    (chance.next_u64() % end.max(1) as u64) as usize
}

/// A mutated input of the corpus, or random bytes.
fn input(corpus: &[Vec<u8>], chance: &mut Pcg64Mcg) -> Vec<u8> {
    if chance.next_u64().is_multiple_of(RANDOM) {
        let mut bytes = vec![0; below(64, chance)];
        chance.fill_bytes(&mut bytes);
        return bytes;
    }
    let mut bytes = corpus[below(corpus.len(), chance)].clone();
    for _ in 0..=chance.next_u64() % MUTATIONS {
        mutate(&mut bytes, corpus, chance);
        bytes.truncate(LONGEST);
    }
    bytes
}

/// Flips, cuts, repeats, inserts and crosses.
fn mutate(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], chance: &mut Pcg64Mcg) {
    let at = below(bytes.len(), chance);
    let to = at + below((bytes.len() - at).min(64), chance);
    match chance.next_u64() % 9 {
        0 if at < bytes.len() => bytes[at] ^= 1 << below(8, chance),
        1 if at < bytes.len() => bytes[at] = BYTES[below(BYTES.len(), chance)],
        2 => bytes.insert(at, BYTES[below(BYTES.len(), chance)]),
        3 => bytes.insert(at, chance.next_u64() as u8),
        4 => drop(bytes.drain(at..to)),
        5 => {
            let times = 1 << below(8, chance);
            let repeated = bytes[at..to].repeat(times);
            bytes.splice(at..at, repeated);
        }
        6 => bytes.truncate(at),
        7 => {
            let other = &corpus[below(corpus.len(), chance)];
            let from = below(other.len(), chance);
            let end = from + below(other.len() - from, chance);
            bytes.splice(at..to, other[from..end].iter().copied());
        }
        _ => {
            let word = WORDS[below(WORDS.len(), chance)];
            bytes.splice(at..at, word.bytes());
        }
    }
}

#[test]
fn no_envelope_breaks_a_promise() {
    bounded("envelope", retide_fuzz::envelope, 10_000);
}

#[test]
fn no_control_breaks_a_promise() {
    bounded("control", retide_fuzz::control, 5_000);
}

#[test]
fn no_headers_break_a_promise() {
    bounded("headers", retide_fuzz::headers, 10_000);
}

#[test]
fn no_completions_break_a_promise() {
    bounded("completions", retide_fuzz::completions, 10_000);
}

#[test]
fn no_scene_file_breaks_a_promise() {
    bounded("scene_file", retide_fuzz::scene_file, 2_500);
}

//! What strangers can write to retide, as the inputs of a fuzzer, and what must hold for each.
//!
//! | body | the bytes are | what it reads |
//! |---|---|---|
//! | [`envelope()`] | a form, then the value of a record | an envelope on the retry topic |
//! | [`control()`] | a form, then the value of a record | a record of the commands topic |
//! | [`headers()`] | a time, a key, a value and headers, `\|` between them | a record of the retry topic and of a delay topic |
//! | [`completions()`] | a form, then a text, a body or operations | the metadata of an offset commit |
//! | [`scene_file()`] | a form, then TOML | a file of scenes, or the rules of one |
//!
//! The same bodies run in two places: `tests/bounded.rs` replays the corpus and mutates it a fixed number of times, and
//! `targets` is a cargo-fuzz project for as long as one likes:
//!
//! ```text
//! mkdir -p target/found && cargo +nightly fuzz run --fuzz-dir processor/fuzz/targets headers target/found processor/fuzz/corpus/headers
//! ```
//!
//! Not a test of what the inputs mean. Invariant: a body returns for every input, or a promise is broken. An input that broke one
//! stays in the corpus.

mod completions;
mod control;
mod envelope;
mod headers;
mod record;
mod scene_file;

pub use completions::completions;
pub use control::control;
pub use envelope::envelope;
pub use headers::headers;
pub use scene_file::scene_file;

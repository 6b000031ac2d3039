//! What stands on retide's topics: Avro schemas, the headers of a task, and the wire formats of the other records.
//!
//! Not the decisions, nor the topics themselves: types come from `retide-core`, Kafka from the shell. Invariant: whatever bytes
//! come in, the answer is a value or a typed refusal that still holds them.

pub mod beside;
pub mod control;
mod envelope;
pub mod foreign;
pub mod headers;
mod json;
pub mod letter;
mod number;
mod patch;
pub mod schema;
pub mod schemas;
pub mod wire;

pub use envelope::{
    ENVELOPE_AVRO, ENVELOPE_JSON, Form, Intake, JSON, RETRY_TASK_FINGERPRINT, RETRY_TASK_FORMER,
    RETRY_TASK_SCHEMA, is_json,
};
pub use headers::{Arrival, ingest, parked, write_task};
pub use schemas::Schemas;
pub use wire::{Codec, Format, Framing};

//! A request in Avro, which becomes the same request in JSON: one reading says what is meant, and what is refused.
//!
//! Read are the single-object frame of [`COMMAND_SCHEMA`], and Confluent's frame with any number, since whoever may write commands may give
//! the schema any. Invariant: a datum is read to its last byte, by this schema, or refused.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::MAX_REQUEST;
use crate::json::Broken;
use crate::wire::{CONFLUENT_MAGIC, Codec, Format, Framing, SINGLE_OBJECT_MARKER, Wire};

/// The Avro schema of a request.
pub const COMMAND_SCHEMA: &str = include_str!("../../schemas/Command.avsc");

/// A request; an absent field is not written in JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    command: String,
    select: Select,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#in: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

/// Which tasks are meant; an empty array says nothing.
#[derive(Debug, Serialize, Deserialize)]
struct Select {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    id: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    scene: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    key: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    key_base64: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    header: Vec<Header>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    error: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fingerprint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    target: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entered: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    origin: Vec<String>,
}

/// A header that tasks have.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    name: String,
    value: String,
}

/// Reads requests; made once, since a schema takes longer to read than a request.
static CODEC: LazyLock<Codec<Request>> =
    LazyLock::new(|| Codec::new(Format::Avro, Framing::SingleObject));

impl Wire for Request {
    const SCHEMA: &'static str = COMMAND_SCHEMA;
}

/// The JSON of a request whose value begins like Avro; nothing if it does not, as no text does.
pub(super) fn json(value: &[u8]) -> Option<Result<String, Broken>> {
    let is_framed =
        value.first() == Some(&CONFLUENT_MAGIC) || value.starts_with(&SINGLE_OBJECT_MARKER);
    if !is_framed {
        return None;
    }
    if value.len() > MAX_REQUEST {
        return Some(Err(Broken(format!(
            "the command has {} bytes; it may have {MAX_REQUEST}: send several, each for some of the tasks",
            value.len()
        ))));
    }
    let request = CODEC.decode_own(value);
    let text = request.map(|request| serde_json::to_string(&request));
    Some(match text {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => Err(Broken(format!("the command cannot be read: {error}"))),
        Err(_) => Err(Broken(
            "the command looks like Avro, and is not of the schema io.retide.Command; write it with that, or as JSON".to_owned(),
        )),
    })
}

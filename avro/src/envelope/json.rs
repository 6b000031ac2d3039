//! The JSON form of the envelope.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use retide_core::Header;

use super::{Broken, Envelope, broken};

/// The JSON form of the envelope.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Json {
    /// The scene.
    scene: String,
    /// The identity.
    id: Option<String>,
    /// The payload: the text of a string, or the JSON of anything else as it was written.
    payload: Option<Box<RawValue>>,
    /// The payload, when it is not text.
    payload_base64: Option<String>,
    /// The payload's media type.
    content_type: Option<String>,
    /// Headers that travel with the payload.
    #[serde(default)]
    headers: Vec<JsonHeader>,
    /// The key, as text.
    key: Option<String>,
    /// The key, when it is not text.
    key_base64: Option<String>,
    /// When the first attempt may start.
    due_at: Option<i64>,
    /// Milliseconds until the first attempt may start.
    delay_ms: Option<i64>,
    /// When no attempt may start any more.
    deadline_at: Option<i64>,
}

/// A header in the JSON form.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct JsonHeader {
    /// The name.
    name: String,
    /// The value, as text.
    value: Option<String>,
    /// The value, when it is not text.
    value_base64: Option<String>,
}

/// Reads the JSON form.
pub(super) fn read(value: &[u8]) -> Result<Envelope, Broken> {
    let json: Json = serde_json::from_slice(value).map_err(|error| Broken(error.to_string()))?;
    let wrote_json = json
        .payload
        .as_ref()
        .is_some_and(|raw| !raw.get().starts_with('"'));
    let text = match json.payload {
        // A string is its text; any other JSON is the payload itself.
        Some(raw) if raw.get().starts_with('"') => {
            Some(serde_json::from_str(raw.get()).map_err(|error| Broken(error.to_string()))?)
        }
        Some(raw) => Some(String::from(Box::<str>::from(raw))),
        None => None,
    };
    let mut headers = Vec::with_capacity(json.headers.len());
    for header in json.headers {
        headers.push(Header {
            name: header.name.into(),
            value: either(header.value, header.value_base64)?,
        });
    }
    Ok(Envelope {
        scene: json.scene,
        id: json.id,
        payload: either(text, json.payload_base64)?,
        content_type: json.content_type,
        wrote_json,
        headers,
        key: either(json.key, json.key_base64)?,
        due_at: json.due_at,
        delay_ms: json.delay_ms,
        deadline_at: json.deadline_at,
    })
}

/// Bytes given as text or as base64, but not both.
fn either(text: Option<String>, base64: Option<String>) -> Result<Option<Bytes>, Broken> {
    match (text, base64) {
        (Some(_), Some(_)) => Err(broken("the same thing as text and as base64")),
        (Some(text), None) => Ok(Some(text.into())),
        (None, Some(base64)) => match STANDARD.decode(base64) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) => Err(Broken(error.to_string())),
        },
        (None, None) => Ok(None),
    }
}

//! The schemas of other writers: which files hold them, and which registry is asked for the others.
//!
//! Not the asking: a registry is asked by the process that reads records. Invariant: what is configured is a schema, or the configuration is refused.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use url::Url;

use retide_avro::schemas::{OWN, Schemas as Known};

use super::text;

/// The section.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schemas {
    /// The registry that is asked for schemas that are not known, as Confluent's is.
    #[serde(deserialize_with = "url")]
    pub registry: Option<Url>,
    /// The name that the registry is shown.
    pub username: Option<String>,
    /// The password to it.
    pub password: Option<String>,
    /// The token that the registry is shown instead.
    pub token: Option<String>,
    /// The profile of TLS that the registry is spoken to with.
    pub tls: Option<String>,
    /// How long an answer is waited for.
    #[serde(deserialize_with = "text::positive")]
    pub timeout: Duration,
    /// Files with the schemas that a registry has given these numbers; [`OWN`] is retide's own.
    pub ids: BTreeMap<String, String>,
    /// Files with schemas that are known by their fingerprints.
    pub files: Vec<String>,
}

/// What is wrong, and the keys below the section that lead to it.
#[derive(Debug)]
pub struct Wrong {
    /// The keys.
    pub path: Vec<String>,
    /// What is wrong.
    pub message: String,
}

// === impl Schemas ===

impl Default for Schemas {
    fn default() -> Self {
        Self {
            registry: None,
            username: None,
            password: None,
            token: None,
            tls: None,
            timeout: Duration::from_secs(5),
            ids: BTreeMap::new(),
            files: Vec::new(),
        }
    }
}

impl Schemas {
    /// The schemas that are known by this.
    pub fn known(&self) -> Result<Known, Wrong> {
        self.check()?;
        let mut known = Known::default();
        for (id, file) in &self.ids {
            let at = |message: String| Wrong::at(&["ids", id], message);
            let number = id.parse().ok().filter(|number| *number > 0);
            let number: u32 = number.ok_or_else(|| {
                at("expected the number that the registry gave the schema".to_owned())
            })?;
            let text = if file == OWN {
                file.clone()
            } else {
                read(file).map_err(at)?
            };
            known
                .add(Some(number), &text)
                .map_err(|error| at(format!("{file} is no Avro schema: {error}")))?;
        }
        for file in &self.files {
            let at = |message: String| Wrong::at(&["files"], message);
            let text = read(file).map_err(at)?;
            known
                .add(None, &text)
                .map_err(|error| at(format!("{file} is no Avro schema: {error}")))?;
        }
        Ok(if self.registry.is_some() {
            known.with_registry()
        } else {
            known
        })
    }

    /// Refuses what does not fit together.
    fn check(&self) -> Result<(), Wrong> {
        let wrong = |key: &str, message: &str| Err(Wrong::at(&[key], message.to_owned()));
        let keys = [
            ("username", self.username.is_some()),
            ("password", self.password.is_some()),
            ("token", self.token.is_some()),
            ("tls", self.tls.is_some()),
        ];
        match &self.registry {
            None => {
                if let Some((key, _)) = keys.into_iter().find(|(_, is_set)| *is_set) {
                    return wrong(key, "it is for a registry: set `registry` as well");
                }
            }
            Some(url) if !matches!(url.scheme(), "http" | "https") || url.host().is_none() => {
                return wrong("registry", "expected http:// or https:// and a host");
            }
            Some(url) if !url.username().is_empty() || url.password().is_some() => {
                return wrong(
                    "registry",
                    "set `username` and `password` instead of writing them into the address",
                );
            }
            Some(_) => {}
        }
        if self.username.is_some() != self.password.is_some() {
            return wrong("username", "`username` and `password` go together");
        }
        if self.token.is_some() && self.username.is_some() {
            return wrong("token", "set either `token` or `username` and `password`");
        }
        Ok(())
    }
}

impl fmt::Debug for Schemas {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Schemas")
            .field("registry", &self.registry.as_ref().map(Url::as_str))
            .field("username", &self.username)
            .field("tls", &self.tls)
            .field("timeout", &self.timeout)
            .field("ids", &self.ids)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

// === impl Wrong ===

impl Wrong {
    /// At the value that these keys lead to.
    fn at(path: &[&str], message: String) -> Self {
        Self {
            path: path.iter().map(|&key| key.to_owned()).collect(),
            message,
        }
    }
}

/// The address of a registry.
fn url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Url>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let url = Url::parse(&text);
    let url = url.map_err(|error| de::Error::custom(format!("expected an address: {error}")))?;
    Ok(Some(url))
}

/// The text of a file.
fn read(file: &str) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("cannot read {file}: {error}"))
}

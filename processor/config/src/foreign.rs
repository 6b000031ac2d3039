//! Sources: topics with dead letters of others, whose records become tasks.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use retide_avro::foreign::Dialect;
use retide_core::topic::is_own;

use crate::source::{Error, Source};
use crate::{Config, text};

/// A source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Foreign {
    /// The topic.
    #[serde(deserialize_with = "text::topic")]
    pub topic: String,
    /// Whose headers its records have; none finds it out for each of them.
    #[serde(default, deserialize_with = "dialect", serialize_with = "write")]
    pub dialect: Option<Dialect>,
    /// The scene of the tasks.
    #[serde(deserialize_with = "text::scene")]
    pub scene: String,
    /// The consumer group that reads it, if it is not named after the source.
    #[serde(
        default,
        deserialize_with = "text::group_named",
        skip_serializing_if = "Option::is_none"
    )]
    pub group: Option<String>,
}

/// The word for a dialect that is found out.
pub const AUTO: &str = "auto";

/// Longest name of a source, in bytes: it is part of the names of its group and of its transactions.
const MAX_NAME: usize = 64;

// === impl Foreign ===

impl Foreign {
    /// The consumer group of the source called `name`, where workers are in `group`.
    pub fn group(&self, name: &str, group: &str) -> String {
        let own = self.group.clone();
        own.unwrap_or_else(|| format!("{group}-source-{name}"))
    }
}

/// What is wrong with the sources of a configuration, beyond single values.
pub(super) fn check(config: &Config, source: &Source) -> Vec<Error> {
    let at = |name: &str, key: Option<&str>, message: &str| {
        let path = ["sources", name].into_iter().chain(key);
        source.error(path.map(str::to_owned).collect(), message)
    };
    let mut wrong = Vec::new();
    let mut groups: BTreeMap<Cow<'_, str>, &str> = BTreeMap::new();
    let workers = config.processor.group.as_str();
    groups.insert(workers.into(), "");
    for (name, foreign) in &config.sources {
        let Foreign { topic, .. } = foreign;
        if !text::is_name(name, MAX_NAME) {
            let message = "expected a name of 1 to 64 letters, digits, dots, underscores or dashes";
            wrong.push(at(name, None, message));
        }
        if is_own(&config.topics.prefix, topic) {
            let message = format!(
                "{topic} is retide's own: expected a topic of dead letters that others write"
            );
            wrong.push(at(name, Some("topic"), &message));
        }
        if config.topics.tasks.envelope.is_some() {
            let message = "every record of the retry topic is an envelope, as `envelope` of [topics.tasks] says, and letters of others are none";
            wrong.push(at(name, Some("topic"), message));
        }
        let group = foreign.group(name, workers);
        if let Some(other) = groups.insert(group.clone().into(), name) {
            let who = match other {
                "" => "that of the workers".to_owned(),
                other => format!("that of [sources.{other}], too"),
            };
            let message = format!("the group {group} is {who}: each source has one of its own");
            wrong.push(at(name, Some("group"), &message));
        }
    }
    wrong
}

/// Reads a dialect.
fn dialect<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Dialect>, D::Error> {
    deserializer.deserialize_str(Word)
}

/// Writes a dialect.
#[allow(
    clippy::ref_option,
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that derived code calls"
)]
fn write<S: Serializer>(dialect: &Option<Dialect>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(word(*dialect))
}

/// The word for a dialect, or for finding it out.
pub const fn word(dialect: Option<Dialect>) -> &'static str {
    match dialect {
        Some(dialect) => dialect.word(),
        None => AUTO,
    }
}

/// Reads the word for a dialect.
struct Word;

impl Visitor<'_> for Word {
    type Value = Option<Dialect>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`\"{AUTO}\"`")?;
        for dialect in Dialect::ALL {
            write!(formatter, ", `\"{}\"`", dialect.word())?;
        }
        Ok(())
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<Self::Value, E> {
        if word == AUTO {
            return Ok(None);
        }
        let mut all = Dialect::ALL.into_iter();
        let known = all.find(|dialect| dialect.word() == word);
        known
            .map(Some)
            .ok_or_else(|| E::invalid_value(Unexpected::Str(word), &self))
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::{read, refusal};

    use super::*;

    #[test]
    fn a_source_names_topic_and_scene_and_the_rest_has_defaults() {
        let config = read(
            "[sources.shop]\ntopic = 'orders-dlt'\nscene = 'orders'\n\
             [sources.sink]\ntopic = 'sink.dlq'\nscene = 'sink'\ndialect = 'connect'\ngroup = 'g'\n",
            &[],
        )
        .unwrap();

        let shop = &config.sources["shop"];
        assert_eq!(
            (shop.dialect, &*shop.topic, &*shop.scene),
            (None, "orders-dlt", "orders")
        );
        assert_eq!(shop.group("shop", "retide"), "retide-source-shop");
        let sink = &config.sources["sink"];
        assert_eq!(sink.dialect, Some(Dialect::Connect));
        assert_eq!(sink.group("sink", "retide"), "g");
    }

    #[test]
    fn a_source_that_cannot_be_meant_is_refused_with_its_place() {
        let base = "[sources.shop]\nscene = 'orders'\n";
        for (text, expected) in [
            (
                "topic = 'retry.dead-letters'",
                "retide.toml:3:1: sources.shop.topic: retry.dead-letters is retide's own",
            ),
            ("topic = 'a b'", "retide.toml:3:1: sources.shop.topic: "),
            (
                "topic = 'a'\ndialect = 'sprong'",
                "retide.toml:4:1: sources.shop.dialect: ",
            ),
            (
                "topic = 'a'\ngroup = 'retide'",
                "retide.toml:4:1: sources.shop.group: the group retide is that of the workers",
            ),
            (
                "topic = 'a'\nscen = 'x'",
                "retide.toml:4:1: sources.shop.scen: ",
            ),
            (
                "topic = 'a'\n[topics.tasks]\nenvelope = 'json'",
                "retide.toml:3:1: sources.shop.topic: every record of the retry topic is an envelope",
            ),
            (
                "topic = 'a'\n[sources.b]\ntopic = 'b'\nscene = 's'\ngroup = 'retide-source-shop'",
                "sources.shop.group: the group retide-source-shop is that of [sources.b], too",
            ),
            (
                "topic = 'a'\n[sources.'b c']\ntopic = 'b'\nscene = 's'",
                "sources.b c: expected a name",
            ),
        ] {
            let message = refusal(&format!("{base}{text}\n"), &[]);

            assert!(message.contains(expected), "{text}: {message}");
        }
        let missing = refusal("[sources.shop]\ntopic = 'a'\n", &[]);
        assert!(missing.contains("missing key `scene`"), "{missing}");
    }
}

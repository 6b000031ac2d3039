//! Which schemas are known, and by which names: what the bytes of other writers mean.
//!
//! Not where schemas come from: files and registries are the shell's, which tells what it has found. A schema is named by a number or a GUID
//! of a registry, or by its fingerprint. Invariant: a datum is read with the schema that its writer named, or not at all.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use crate::envelope::RETRY_TASK_SCHEMA;
use crate::schema::{Error, Fingerprint, Schema};

/// The header in which Confluent's serializers name the schema of the value, if they do not write it before the datum.
pub const SCHEMA_ID: &str = "__value_schema_id";

/// The word that stands for retide's own schema of a task where a file may stand.
pub const OWN: &str = "RetryTask";

/// How a writer names its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The number that a registry gave it.
    Id(u32),
    /// The GUID that a registry gave it.
    Guid(u128),
    /// Its fingerprint.
    Fingerprint(Fingerprint),
}

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Retide's own schema of a task, as it is now.
    Own,
    /// The schema of another writer.
    Writer(Arc<Schema>),
    /// Nothing that a datum of Avro could be read with: why.
    Other(Arc<str>),
    /// The registry does not know the name.
    Missing,
}

/// The schemas that are known.
pub struct Schemas {
    /// Retide's own schema of a task.
    own: Schema,
    /// What was configured, and retide's own.
    given: HashMap<Key, Meaning>,
    /// What a registry has said.
    learnt: RwLock<HashMap<Key, Meaning>>,
    /// Whether there is a registry to ask.
    registry: bool,
}

/// Most names that are remembered of what a registry said: a company's registry holds some thousands; what forged names take is bounded.
const MOST_LEARNT: usize = 10_000;

// === impl Schemas ===

impl Default for Schemas {
    /// Retide's own, by their fingerprints.
    fn default() -> Self {
        let valid = "the schemas of this crate are valid";
        let own = Schema::fingerprints(RETRY_TASK_SCHEMA).expect(valid);
        let given = own.map(|print| (Key::Fingerprint(print), Meaning::Own));
        Self {
            own: Schema::parse(RETRY_TASK_SCHEMA, &[]).expect(valid),
            given: given.into(),
            learnt: RwLock::default(),
            registry: false,
        }
    }
}

impl Schemas {
    /// Adds the schema that `text` is: by its fingerprint, and by the number that a registry gave it, if it did.
    ///
    /// # Errors
    ///
    /// The text is no schema.
    pub fn add(&mut self, id: Option<u32>, text: &str) -> Result<(), Error> {
        let schema = if text.trim() == OWN {
            RETRY_TASK_SCHEMA
        } else {
            text
        };
        let meaning = self.meaning_of(Schema::parse(schema, &[])?);
        for print in Schema::fingerprints(schema)? {
            // Logical types are no part of a fingerprint: one that is retide's own stays so.
            let entry = self.given.entry(Key::Fingerprint(print));
            entry.or_insert_with(|| meaning.clone());
        }
        if let Some(id) = id {
            self.given.insert(Key::Id(id), meaning);
        }
        Ok(())
    }

    /// What a schema means: retide's own is read faster.
    pub fn meaning_of(&self, schema: Schema) -> Meaning {
        if schema.is_like(&self.own) {
            Meaning::Own
        } else {
            Meaning::Writer(Arc::new(schema))
        }
    }

    /// As it is, with a registry that is asked for what is not known.
    #[must_use]
    pub fn with_registry(self) -> Self {
        Self {
            registry: true,
            ..self
        }
    }

    /// What a name means by the configuration alone.
    pub fn given(&self, key: Key) -> Option<Meaning> {
        self.given.get(&key).cloned()
    }

    /// What a name means, as far as that is known.
    pub fn meaning(&self, key: Key) -> Option<Meaning> {
        if let Some(given) = self.given(key) {
            return Some(given);
        }
        if !self.may_ask(key) {
            return None;
        }
        let learnt = self.learnt.read().unwrap_or_else(PoisonError::into_inner);
        learnt.get(&key).cloned()
    }

    /// Whether a registry can be asked for a name.
    pub const fn may_ask(&self, key: Key) -> bool {
        self.registry && matches!(key, Key::Id(_) | Key::Guid(_))
    }

    /// Remembers what a registry has said.
    pub fn learn(&self, key: Key, meaning: Meaning) {
        let mut learnt = self.learnt.write().unwrap_or_else(PoisonError::into_inner);
        if learnt.len() >= MOST_LEARNT {
            // What anybody may write takes nothing from those who write what is known.
            learnt.retain(|_, meaning| matches!(meaning, Meaning::Own | Meaning::Writer(_)));
        }
        if learnt.len() >= MOST_LEARNT {
            learnt.clear();
        }
        learnt.insert(key, meaning);
    }

    /// Forgets what a registry has said, so that it is asked again.
    pub fn forget(&self, key: Key) {
        let mut learnt = self.learnt.write().unwrap_or_else(PoisonError::into_inner);
        learnt.remove(&key);
    }

    /// Why a datum whose schema is named so cannot be read, and what mends it.
    pub(crate) fn unknown(&self, key: Key, meaning: Option<&Meaning>) -> String {
        match meaning {
            Some(Meaning::Missing) => format!("{key} is not known to the registry"),
            Some(Meaning::Other(why)) => format!("{key}: {why}"),
            Some(Meaning::Own | Meaning::Writer(_)) | None => match key {
                Key::Id(id) if !self.registry => format!(
                    "{key} is not known: set registry = \"http://...\" in [schemas], or ids = {{ {id} = \"FILE.avsc\" }}; \"{OWN}\" instead of a file is retide's own"
                ),
                Key::Guid(_) if !self.registry => {
                    format!("{key} is not known: set registry = \"http://...\" in [schemas]")
                }
                Key::Id(_) | Key::Guid(_) => format!("{key} is not known"),
                Key::Fingerprint(_) => {
                    format!("{key} is not known: set files = [\"FILE.avsc\"] in [schemas]")
                }
            },
        }
    }
}

impl fmt::Debug for Schemas {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Schemas")
            .field("given", &self.given.len())
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

// === impl Key ===

impl Key {
    /// The name in the value of a header [`SCHEMA_ID`]: 00 and a number, or 01 and a GUID.
    pub fn of_header(value: &[u8]) -> Option<Self> {
        match value.split_first()? {
            (0, id) => Some(Self::Id(u32::from_be_bytes(id.try_into().ok()?))),
            (1, guid) => Some(Self::Guid(u128::from_be_bytes(guid.try_into().ok()?))),
            _ => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(formatter, "schema id {id}"),
            Self::Guid(guid) => write!(formatter, "schema {}", uuid::Uuid::from_u128(*guid)),
            Self::Fingerprint(print) => {
                let print = u64::from_be_bytes(*print);
                write!(formatter, "schema fingerprint {print:016x}")
            }
        }
    }
}

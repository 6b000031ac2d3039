//! Secrets that stand elsewhere than in a scene: in a file or a variable of the process that makes the attempts.
//!
//! A scene travels through a topic, is exported, compared and shown: a secret in it is read by everybody. So a header's value may be
//! `{ file = "/run/secrets/token" }` or `{ env = "TOKEN", prefix = "Bearer " }`, and only the process that calls looks there.
//!
//! - When it is read: before the scene is put in force, and again every few seconds ([`Secrets::look`]), so that a secret that is replaced
//!   is in use soon.
//! - What a secret that cannot be read does: for [`GRACE`] the one that was read before counts on, since files are replaced in more than one
//!   step; then its scene is held.
//! - What may be read: what `[secrets]` of the process says. Never the secrets of the process itself: variables `RETIDE__…`, the files that
//!   `RETIDE__…_FILE` name, and what the system shows of processes and devices.
//!
//! Invariant: no value is part of an error, a log line or a [`fmt::Debug`] text.

use std::collections::HashMap;
use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http::header::HeaderValue;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

/// How long the last secret counts on that cannot be read any more.
pub const GRACE: Duration = Duration::from_secs(5);

/// Largest file that is read as a secret: headers are shorter.
const MAX_FILE: u64 = 64 * 1024;

/// The prefix of variables that configure retide: scenes do not read them.
const OWN: &str = "RETIDE__";

/// The end of those of them that name a file with a value.
const OWN_FILE: &str = "_FILE";

/// Folders of the system that hold no secret meant for a target, but for one the environment of processes.
const SYSTEM: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The value of a header: as it is, or where it stands.
#[derive(Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum MaybeSecret {
    /// As it is.
    Plain(String),
    /// Elsewhere.
    Elsewhere(Reference),
}

/// Where a value stands: in a file, or a variable.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// The file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The variable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// The text before it in the header.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
}

/// The secrets that scenes may name in a process, as a configuration writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The only folders whose files may be named; all, where none is.
    pub files: Vec<PathBuf>,
    /// The only variables that may be named, `*` at the end standing for anything; all, where none is.
    pub env: Vec<String>,
}

/// The secrets of a process.
#[derive(Debug, Default)]
pub struct Secrets {
    /// What may be named.
    rules: Rules,
    /// What is named, as long as a target has it.
    known: Mutex<HashMap<Reference, Arc<Secret>>>,
}

/// What scenes may name.
#[derive(Debug, Default)]
struct Rules {
    /// What the process permits.
    config: Config,
    /// The files with the secrets of the process itself, links followed.
    own: Vec<PathBuf>,
}

/// One secret, as it was read last.
pub struct Secret {
    /// Where it stands.
    reference: Reference,
    /// What was read.
    state: RwLock<State>,
}

/// The latest reading of a secret.
#[derive(Default)]
struct State {
    /// The value of the header, of the last time that it could be read.
    value: Option<HeaderValue>,
    /// The fault of the latest reading, and since when it lasts.
    problem: Option<(String, Instant)>,
}

// === impl MaybeSecret ===

impl MaybeSecret {
    /// Where it stands, if it does elsewhere.
    pub const fn reference(&self) -> Option<&Reference> {
        match self {
            Self::Plain(_) => None,
            Self::Elsewhere(reference) => Some(reference),
        }
    }
}

impl From<&str> for MaybeSecret {
    fn from(text: &str) -> Self {
        Self::Plain(text.to_owned())
    }
}

impl fmt::Debug for MaybeSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(_) => formatter.write_str("<not shown>"),
            Self::Elsewhere(reference) => reference.fmt(formatter),
        }
    }
}

impl<'de> Deserialize<'de> for MaybeSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Either, and nothing else: each tells what it expected.
        deserializer.deserialize_any(Either)
    }
}

/// Reads a text, or where it stands.
struct Either;

impl<'de> Visitor<'de> for Either {
    type Value = MaybeSecret;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(
            "a text, `{ file = \"…\" }` or `{ env = \"…\" }`, with a `prefix` if need be",
        )
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<MaybeSecret, E> {
        Ok(MaybeSecret::Plain(text.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MaybeSecret, A::Error> {
        Reference::deserialize(MapAccessDeserializer::new(map)).map(MaybeSecret::Elsewhere)
    }
}

// === impl Reference ===

impl Reference {
    /// Refuses what could be nowhere.
    pub fn check(&self) -> Result<(), &'static str> {
        match (&self.file, &self.env) {
            (Some(file), None) if file.is_absolute() => {}
            (Some(_), None) => {
                return Err("expected the whole path of a file, such as \"/run/secrets/token\"");
            }
            (None, Some(name)) if name.starts_with(OWN) => {
                return Err("variables of retide's own configuration are not sent to targets");
            }
            (None, Some(name)) if name.is_empty() || name.contains(['=', '\0', '$', ' ']) => {
                return Err("expected the name of a variable, such as \"TOKEN\"");
            }
            (None, Some(_)) => {}
            (Some(_), Some(_)) | (None, None) => return Err("expected either `file` or `env`"),
        }
        match HeaderValue::from_str(&self.prefix) {
            Ok(_) => Ok(()),
            Err(_) => Err("its `prefix` has characters that no header may have"),
        }
    }

    /// The value now, by the rules of a process; or why there is none that can be sent.
    fn read(&self, rules: &Rules) -> Result<HeaderValue, String> {
        let place = self.to_string();
        let text = match (&self.file, &self.env) {
            (Some(file), _) => {
                let real = followed(file);
                if rules.is_own(&real) {
                    return Err(format!(
                        "{place} is of the process or the system itself: no scene may send it"
                    ));
                }
                if !rules.permits_file(&real) {
                    return Err(format!(
                        "{place} is in none of the folders of `files` in [secrets]"
                    ));
                }
                read(file).map_err(|error| format!("{place} cannot be read: {error}"))?
            }
            (None, Some(name)) => {
                if !rules.permits_env(name) {
                    return Err(format!("{place} is none of those of `env` in [secrets]"));
                }
                match env::var(name) {
                    Ok(text) => text,
                    Err(env::VarError::NotPresent) => return Err(format!("{place} is not set")),
                    Err(env::VarError::NotUnicode(_)) => return Err(format!("{place} is no text")),
                }
            }
            (None, None) => return Err("neither a file nor a variable is named".to_owned()),
        };
        // Editors and `echo` end a file with a new line.
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            return Err(format!("{place} is empty"));
        }
        let mut value = HeaderValue::from_str(&format!("{}{text}", self.prefix)).map_err(|_| {
            format!("{place} holds characters that no header may have, such as a new line")
        })?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, &self.env) {
            (Some(file), _) => write!(formatter, "file {}", file.display()),
            (None, Some(name)) => write!(formatter, "variable {name}"),
            (None, None) => formatter.write_str("nothing"),
        }
    }
}

// === impl Config ===

impl fmt::Display for Config {
    /// What scenes may name, in one line.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folders: Vec<_> = self.files.iter().map(|path| path.display()).collect();
        match folders.as_slice() {
            [] => formatter.write_str("scenes may name any file")?,
            [first, rest @ ..] => {
                write!(formatter, "scenes may name files in {first}")?;
                for folder in rest {
                    write!(formatter, ", {folder}")?;
                }
            }
        }
        match self.env.as_slice() {
            [] => write!(formatter, " and any variable but {OWN}…"),
            names => write!(formatter, " and the variables {}", names.join(", ")),
        }
    }
}

// === impl Rules ===

impl Rules {
    /// The rules of this process.
    fn new(config: Config) -> Self {
        let names_a_file = |name: &str| name.starts_with(OWN) && name.ends_with(OWN_FILE);
        let own = env::vars_os()
            .filter(|(name, _)| name.to_str().is_some_and(names_a_file))
            .map(|(_, path)| followed(Path::new(&path)))
            .collect();
        Self { config, own }
    }

    /// Whether a file, links followed, is the process's own or the system's.
    fn is_own(&self, file: &Path) -> bool {
        let is_system = SYSTEM.iter().any(|folder| file.starts_with(folder));
        is_system || self.own.iter().any(|own| own == file)
    }

    /// Whether scenes may name a file, links followed: a folder that is allowed must not lead out of itself.
    fn permits_file(&self, file: &Path) -> bool {
        let folders = &self.config.files;
        let is_plain = file
            .components()
            .all(|part| part != std::path::Component::ParentDir);
        folders.is_empty()
            || (is_plain && folders.iter().any(|all| file.starts_with(followed(all))))
    }

    /// Whether scenes may name a variable.
    fn permits_env(&self, name: &str) -> bool {
        let names = &self.config.env;
        let takes = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        };
        !name.starts_with(OWN) && (names.is_empty() || names.iter().any(takes))
    }
}

/// The path with its links followed; as it is, if it leads nowhere.
fn followed(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

// === impl Secrets ===

impl Secrets {
    /// The secrets of a process in which scenes may name these; nothing is read yet.
    pub fn new(config: Config) -> Self {
        Self {
            rules: Rules::new(config),
            known: Mutex::default(),
        }
    }

    /// The secret of this place: the same for all who ask.
    pub fn of(&self, reference: &Reference) -> Arc<Secret> {
        let mut known = self.lock();
        let secret = known.entry(reference.clone()).or_insert_with(|| {
            Arc::new(Secret {
                reference: reference.clone(),
                state: RwLock::default(),
            })
        });
        Arc::clone(secret)
    }

    /// The fault for which all that need a secret have to wait, if it has one; reads the secret if nobody has.
    pub fn missing(&self, reference: &Reference) -> Option<String> {
        let secret = self.of(reference);
        if secret.is_unread() {
            secret.look(&self.rules);
        }
        secret.missing()
    }

    /// Reads all secrets again that anybody has, where a slow disk holds up nobody; those that changed, in words.
    pub fn look(&self) -> Vec<String> {
        let all: Vec<Arc<Secret>> = {
            let mut known = self.lock();
            // Nobody asks for them any more.
            known.retain(|_, secret| Arc::strong_count(secret) > 1);
            known.values().map(Arc::clone).collect()
        };
        let changed = all.iter().filter(|secret| secret.look(&self.rules));
        changed.map(|secret| secret.reference.to_string()).collect()
    }

    /// The secrets by their places. A panic elsewhere leaves them usable.
    fn lock(&self) -> MutexGuard<'_, HashMap<Reference, Arc<Secret>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Secret ===

impl Secret {
    /// The value of the header, if there ever was one.
    pub(crate) fn value(&self) -> Option<HeaderValue> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.value.clone()
    }

    /// The fault, if it lasts for longer than the last value counts on.
    fn missing(&self) -> Option<String> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let (problem, since) = state.problem.as_ref()?;
        let counts_on = state.value.is_some() && since.elapsed() < GRACE;
        (!counts_on).then(|| problem.clone())
    }

    /// Whether nobody has looked yet.
    fn is_unread(&self) -> bool {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.value.is_none() && state.problem.is_none()
    }

    /// Reads it; true if it was another one before.
    fn look(&self, rules: &Rules) -> bool {
        let read = self.reference.read(rules);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(value) => {
                state.problem = None;
                let changed = state.value.as_ref() != Some(&value);
                state.value = Some(value);
                changed
            }
            Err(problem) => {
                let since = state
                    .problem
                    .take()
                    .map_or_else(Instant::now, |(_, since)| since);
                state.problem = Some((problem, since));
                false
            }
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Secret")
            .field("reference", &self.reference)
            .finish_non_exhaustive()
    }
}

/// The text of a file.
fn read(file: &Path) -> Result<String, String> {
    let metadata = fs::metadata(file).map_err(|error| error.to_string())?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err("expected a file of at most 64 KiB".to_owned());
    }
    fs::read_to_string(file).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    use tempfile::TempDir;

    fn file(path: &Path, prefix: &str) -> Reference {
        Reference {
            file: Some(path.to_owned()),
            env: None,
            prefix: prefix.to_owned(),
        }
    }

    #[test]
    fn a_secret_is_read_with_its_prefix_and_again_when_it_is_replaced() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("token");
        let reference = file(&path, "Bearer ");
        let secrets = Secrets::default();
        let secret = secrets.of(&reference);

        assert!(
            secrets
                .missing(&reference)
                .unwrap()
                .contains("cannot be read")
        );
        assert_eq!(secret.value(), None);
        fs::write(&path, "one\r\n").unwrap();
        assert_eq!(secrets.look().len(), 1);
        assert_eq!(secret.value().unwrap(), "Bearer one");
        fs::write(&path, "two").unwrap();
        secrets.look();
        assert_eq!(secret.value().unwrap(), "Bearer two");
        assert!(secrets.look().is_empty(), "nothing has changed");

        fs::remove_file(&path).unwrap();
        secrets.look();
        assert_eq!(
            secrets.missing(&reference),
            None,
            "it is being replaced, perhaps"
        );
        assert_eq!(secret.value().unwrap(), "Bearer two");
        let shown = format!("{secret:?} {secrets:?} {reference}");
        assert!(!shown.contains("two"), "{shown}");
        let plain = format!("{:?}", MaybeSecret::from("two"));
        assert!(!plain.contains("two"), "{plain}");

        // It is gone for longer than that takes.
        let mut state = secret.state.write().unwrap();
        let (_, since) = state.problem.as_mut().unwrap();
        *since = since.checked_sub(GRACE).unwrap();
        drop(state);
        assert!(secrets.missing(&reference).is_some());
    }

    #[test]
    fn what_holds_nothing_that_can_be_sent_is_missing() {
        let folder = TempDir::new().unwrap();
        let secrets = Secrets::default();
        for (name, text) in [("empty", "\n"), ("lines", "a\nb"), ("control", "a\u{1}")] {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();

            assert!(secrets.missing(&file(&path, "")).is_some(), "{name}");
        }
        assert!(secrets.missing(&file(folder.path(), "")).is_some());
    }

    #[test]
    fn scenes_name_only_what_the_process_lets_them() {
        let folder = TempDir::new().unwrap();
        let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
        for path in [&inside, &outside] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("token"), "x").unwrap();
        }
        std::os::unix::fs::symlink(outside.join("token"), inside.join("link")).unwrap();
        let secrets = Secrets::new(Config {
            files: vec![inside.clone()],
            env: vec!["SHOP_*".to_owned(), "PATH".to_owned()],
        });
        let env = |name: &str| Reference {
            file: None,
            env: Some(name.to_owned()),
            prefix: String::new(),
        };

        assert_eq!(secrets.missing(&file(&inside.join("token"), "")), None);
        for path in [
            outside.join("token"),
            inside.join("link"),
            inside.join("../out/token"),
        ] {
            assert!(
                secrets
                    .missing(&file(&path, ""))
                    .unwrap()
                    .contains("[secrets]")
            );
        }
        assert_eq!(secrets.missing(&env("PATH")), None);
        assert!(secrets.missing(&env("HOME")).unwrap().contains("[secrets]"));
        assert!(
            secrets
                .missing(&env("SHOP_TOKEN"))
                .unwrap()
                .contains("not set")
        );
        let any = Secrets::default();
        let own = any.missing(&env("RETIDE__KAFKA__SASL_PASSWORD"));
        assert!(own.unwrap().contains("[secrets]"));
    }

    #[test]
    fn what_is_of_the_process_or_the_system_is_never_read() {
        let folder = TempDir::new().unwrap();
        let (own, other) = (folder.path().join("kafka"), folder.path().join("shop"));
        for path in [&own, &other] {
            fs::write(path, "x").unwrap();
        }
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&own, &link).unwrap();
        let mut secrets = Secrets::default();
        secrets.rules.own = vec![followed(&own)];

        for path in [&own, &link, Path::new("/proc/self/comm")] {
            let said = secrets.missing(&file(path, "")).unwrap();
            assert!(said.contains("no scene may send it"), "{said}");
        }
        assert_eq!(secrets.missing(&file(&other, "")), None);
    }

    #[test]
    fn what_is_in_force_is_one_line() {
        let limited = Config {
            files: vec!["/run/secrets".into(), "/etc/shop".into()],
            env: vec!["SHOP_*".to_owned(), "TOKEN".to_owned()],
        };

        assert_eq!(
            Config::default().to_string(),
            "scenes may name any file and any variable but RETIDE__…"
        );
        assert_eq!(
            limited.to_string(),
            "scenes may name files in /run/secrets, /etc/shop and the variables SHOP_*, TOKEN"
        );
    }

    #[test]
    fn a_place_that_could_be_nowhere_is_refused() {
        let check = |text: &str| {
            let reference: Reference = toml::from_str(text).unwrap();
            reference.check().is_ok()
        };

        assert!(check("file = '/run/secrets/x'\nprefix = 'Bearer '"));
        assert!(check("env = 'TOKEN'"));
        for text in [
            "",
            "file = '/a'\nenv = 'B'",
            "file = 'relative'",
            "env = ''",
            "env = '$TOKEN'",
            "env = 'RETIDE__KAFKA__SASL_PASSWORD'",
            "env = 'A'\nprefix = \"a\\n\"",
        ] {
            assert!(!check(text), "{text}");
        }
    }
}

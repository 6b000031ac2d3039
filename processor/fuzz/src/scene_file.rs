//! The scene file: an error names its place and no secret, and what is accepted can be scheduled, written and read again.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::str;
use std::time::Duration;

use toml::{Table, Value};

use retide_config::source::Place;
use retide_config::{Error, Scene, rules, scenes};
use retide_core::breaker::{Breaker, Call};
use retide_core::quota::Quotas;
use retide_core::scene::MAX_DELAY;
use retide_core::{Backoff, Overrides, Policy, Scenes, Timestamp};

/// What the file is called.
const FILE: &str = "scenes.toml";

/// What the scene is called whose rules stand alone.
const NAME: &str = "payment";

/// The word that no error may show. Seeds have it where secrets stand.
const SECRET: &str = "s3cret";

/// A secret that looks like serde's way to speak of what it expected.
const HOSTILE: &str = "hunter2`, expected \"hunter2";

/// The part of [`HOSTILE`] that no error may show.
const SHOWN: &str = "hunter2";

/// A secret number.
const NUMBER: i64 = 8_735_193_046;

/// Words in the name of a key whose value is secret.
const WORDS: [&str; 7] = [
    "password",
    "secret",
    "key",
    "token",
    "jaas",
    "authorization",
    "headers",
];

/// An instant of no meaning.
const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// Longest message: a few words, and what it repeats of the file, which may come out four times as long when it is escaped.
const MESSAGE: usize = 1_000;

/// Reads scenes, or the rules of one.
///
/// The first byte is the form (even: a file, such as `f`; odd: the rules of one scene, such as `s`), the others are the text.
pub fn scene_file(data: &[u8]) {
    let Some((form, text)) = data.split_first() else {
        return;
    };
    let Ok(text) = str::from_utf8(text) else {
        return;
    };
    let read = if form % 2 == 0 { file } else { one };
    match read(text) {
        Ok(scenes) => {
            for (name, scene) in &scenes {
                check_scene(name, scene);
            }
        }
        Err(error) => drop(check_error(&error, text)),
    }

    let Ok(mut table) = text.parse::<Table>() else {
        return;
    };
    if text.contains(SHOWN) || text.contains(&NUMBER.to_string()) {
        return;
    }
    for (key, value) in &mut table {
        match value {
            // The names of scenes are the user's and say nothing of their values.
            Value::Table(scenes) if key == "scenes" => {
                scenes.iter_mut().for_each(|(_, value)| plant(value, false));
            }
            value => plant(value, key == "kafka" || is_secret(key)),
        }
    }
    let Ok(planted) = toml::to_string(&table) else {
        return;
    };
    if let Err(error) = read(&planted) {
        let error = check_error(&error, &planted);
        assert!(!error.contains(SHOWN), "{error}");
        assert!(!error.contains(&NUMBER.to_string()), "{error}");
    }
}

/// Reads a file of scenes.
fn file(text: &str) -> Result<BTreeMap<String, Scene>, Error> {
    scenes(FILE, text.to_owned(), "retry")
}

/// Reads the rules of one scene.
fn one(text: &str) -> Result<BTreeMap<String, Scene>, Error> {
    let scene = rules(NAME, text.to_owned())?;
    Ok(BTreeMap::from([(NAME.to_owned(), scene)]))
}

/// Whether what stands under a key must not be shown.
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    WORDS.iter().any(|word| key.contains(word))
}

/// Puts secrets in place of the texts and numbers below a key that is secret.
fn plant(value: &mut Value, secret: bool) {
    match value {
        Value::String(text) if secret => HOSTILE.clone_into(text),
        Value::Integer(number) if secret => *number = NUMBER,
        Value::Float(number) if secret => *number = NUMBER as f64,
        Value::Array(values) => {
            for value in values {
                plant(value, secret);
            }
        }
        Value::Table(table) => {
            for (key, value) in table {
                plant(value, secret || is_secret(key));
            }
        }
        Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_) => {}
    }
}

/// An error, or each of several, names a line and a column of the text, and is not much longer than that. Returns it as it is shown.
fn check_error(error: &Error, text: &str) -> String {
    if let Error::Several(errors) = error {
        let shown = errors.iter().map(|error| check_error(error, text));
        return shown.collect::<Vec<_>>().join("\n");
    }
    let Error::Invalid { place, path, .. } = error else {
        panic!("no file was read: {error}");
    };
    let Place::File { file, line, column } = place else {
        panic!("no place: {error}");
    };
    assert!([FILE, NAME].contains(&&**file));
    let mut lines = text.split('\n');
    let at = line.checked_sub(1).and_then(|line| lines.nth(line));
    let width = at.expect("a line of the text").chars().count();
    assert!((1..=width + 1).contains(column), "{error}");

    let shown = error.to_string();

    assert!(shown.starts_with(&format!("{file}:{line}:{column}: {path}")));
    assert!(shown.len() <= 4 * text.len() + MESSAGE, "{shown}");
    // A syntax error stands nowhere in particular, so it may repeat nothing.
    assert!(!path.0.is_empty() || !shown.contains(SECRET), "{shown}");
    shown
}

/// A wait lies in its band, and a point in time comes within a year or two, or not at all.
fn check_policy(policy: &Policy) {
    for attempt in [0, 1, 2, 3, 40, u32::MAX] {
        let next = policy.next("order-7", attempt, NOW, NOW);
        let Some((least, most)) = policy.band(attempt) else {
            assert!(next.is_none_or(|next| next >= NOW));
            assert!(next.is_some() || !matches!(policy.backoff, Backoff::Cron(_)));
            continue;
        };
        let wait = policy.wait("order-7", attempt);
        assert!(least <= wait && wait <= most && most <= MAX_DELAY);
        assert_eq!(next, Some(NOW + wait));
    }
}

/// A scene that was accepted can be scheduled, and stands on the scenes topic as it was.
fn check_scene(name: &str, scene: &Scene) {
    let core = scene.rules(name).expect("a scene that was accepted");
    let Overrides {
        throttled,
        timeout,
        retryable,
    } = &core.on;
    let own = [throttled, timeout, retryable];
    for policy in own.into_iter().flatten().chain([&core.policy]) {
        check_policy(policy);
    }
    let mut shares = Quotas::new(NonZeroU32::MIN);
    let in_force: Scenes = [core.clone()].into_iter().collect();
    shares.take(Duration::ZERO, 0);
    shares.follow(Duration::ZERO, &in_force);
    assert!(shares.admit(MAX_DELAY, &core.name).is_ok());
    let callback = core.callback.as_ref();
    let callback = callback.and_then(|callback| callback.breaker.as_ref());
    for key in core.breaker.iter().chain(callback) {
        // Scheme, host and port: the rest of an address may be secret.
        let target = key.target.target();
        assert_eq!(target.matches(['/', '?', '#', '@']).count(), 2);
        let breaker = Breaker::new(key.rule);
        let pass = breaker.ask(MAX_DELAY).permit.expect("a closed one");
        let call = Call {
            failed: true,
            took: MAX_DELAY,
        };
        assert_eq!(
            breaker.returned(MAX_DELAY, pass, call).is_some(),
            key.rule.min_calls == 1
        );
    }

    let written = toml::to_string(scene).expect("it can be written");

    assert_eq!(&rules(name, written).expect("it can be read"), scene);
}

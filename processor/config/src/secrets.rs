//! What is secret in a configuration, and how it is shown: not at all.
//!
//! Invariant: what [`masked`] returns holds no secret that can be told by its place or its name.

use url::Url;

use retide_connectors::secret::MaybeSecret;
use retide_connectors::{Exposed, TargetConfig};

use crate::Scene;
use crate::source::MASKED;

/// Parts of the names of headers, parameters and keys that hold secrets.
const WORDS: [&str; 14] = [
    "authorization",
    "auth",
    "token",
    "secret",
    "password",
    "passwd",
    "pwd",
    "cookie",
    "credential",
    "api-key",
    "apikey",
    "access-key",
    "private",
    "signature",
];

/// Whole words of such names.
const WHOLE: [&str; 6] = ["key", "sig", "pass", "pin", "session", "jwt"];

/// Schemes of a header's value that go with credentials.
const SCHEMES: [&str; 5] = ["Bearer ", "Basic ", "Token ", "ApiKey ", "Digest "];

/// Whether a name is one of a secret.
pub(crate) fn is_named_so(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('_', "-");
    let mut parts = name.split(['-', '.']);
    WORDS.iter().any(|word| name.contains(word)) || parts.any(|part| WHOLE.contains(&part))
}

/// Whether a property of Kafka's client holds a secret.
pub(crate) fn is_property(name: &str) -> bool {
    let is_place = matches!(name.rsplit('.').next(), Some("location" | "url"));
    let word = [
        "password",
        "secret",
        "jaas",
        "token",
        "key.pem",
        "oauthbearer.config",
    ];
    !is_place && word.iter().any(|word| name.contains(word))
}

/// A scene without what is secret in it, and the keys that lead to what was left out.
pub fn masked(scene: &Scene) -> (Scene, Vec<String>) {
    let mut scene = scene.clone();
    let mut places = Vec::new();
    let callback = scene.callback.as_mut().map(|callback| &mut callback.target);
    for (way, target) in [
        ("target", Some(&mut scene.target)),
        ("callback.target", callback),
    ] {
        let Some(target) = target.map(TargetConfig::configured_mut) else {
            continue;
        };
        let kind = target.kind();
        for (key, exposed) in target.exposed() {
            if mask(exposed) {
                places.push(format!("{way}.{kind}.{key}"));
            }
        }
    }
    (scene, places)
}

/// Leaves out what is secret in a value; whether anything was.
fn mask(exposed: Exposed<'_>) -> bool {
    match exposed {
        Exposed::Header { name, value } => {
            let is_secret = match &*value {
                MaybeSecret::Plain(text) => is_named_so(name) || has_scheme(text),
                MaybeSecret::Elsewhere(_) => false,
            };
            if is_secret {
                *value = MASKED.into();
            }
            is_secret
        }
        Exposed::Url(url) => {
            let masked = without_secrets(url);
            let is_secret = masked.is_some();
            if let Some(masked) = masked {
                *url = masked;
            }
            is_secret
        }
    }
}

/// Whether a header's value begins as credentials do.
fn has_scheme(text: &str) -> bool {
    let starts = |scheme: &str| {
        text.get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    SCHEMES.iter().any(|scheme| starts(scheme))
}

/// An address without what is secret in it, if anything is.
fn without_secrets(url: &str) -> Option<String> {
    let parsed = Url::parse(url).ok()?;
    let mut text = url.to_owned();
    let mut found = false;
    if parsed.password().is_some() || !parsed.username().is_empty() {
        let (scheme, rest) = url.split_once("://")?;
        let (_, rest) = rest.split_once('@')?;
        text = format!("{scheme}://{MASKED}@{rest}");
        found = true;
    }
    let Some((before, rest)) = text.split_once('?') else {
        return found.then_some(text);
    };
    let (query, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let shown: Vec<String> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) if !value.is_empty() && is_named_so(name) => {
                found = true;
                format!("{name}={MASKED}")
            }
            Some(_) | None => pair.to_owned(),
        })
        .collect();
    let fragment = if fragment.is_empty() {
        String::new()
    } else {
        format!("#{fragment}")
    };
    found.then(|| format!("{before}?{}{fragment}", shown.join("&")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_told_by_their_names_and_left_out() {
        let text = r#"
            target = { http = { url = "http://h/a?token=s3cret&page=2#x", headers = { authorization = "Bearer s3cret", "X-Api-Key" = "s3cret", Cookie = "a=s3cret", "x-team" = "shop", "x-other" = "basic s3cret", "x-file" = { file = "/run/x" } } } }
            callback = { target = { http = { url = "http://h/b", headers = { "x-shop-token" = "s3cret" } } } }
        "#;
        let scene = crate::rules("a", text.to_owned()).unwrap();

        let (shown, places) = masked(&scene);

        let written = toml::to_string(&shown).unwrap();
        assert!(!written.contains("s3cret"), "{written}");
        assert!(
            written.contains("shop") && written.contains("/run/x"),
            "{written}"
        );
        assert!(
            written.contains("http://h/a?token=<masked>&page=2#x"),
            "{written}"
        );
        assert_eq!(places.len(), 6, "{places:?}");
        let login = without_secrets("http://user:s3cret@h/b?page=1");
        assert_eq!(login.as_deref(), Some("http://<masked>@h/b?page=1"));
        let plain = crate::rules(
            "a",
            "target = { http = { url = 'http://h/?page=1' } }".to_owned(),
        );
        assert_eq!(
            masked(plain.as_ref().unwrap()),
            (plain.unwrap(), Vec::new())
        );
    }

    #[test]
    fn names_of_secrets_are_known() {
        for name in [
            "Authorization",
            "proxy-authorization",
            "X-API-Key",
            "api_key",
            "x-auth-token",
            "Set-Cookie",
            "client_secret",
            "sig",
            "X-Webhook-Signature",
            "DB_PASSWORD",
        ] {
            assert!(is_named_so(name), "{name}");
        }
        for name in [
            "content-type",
            "accept",
            "x-team",
            "x-monkey",
            "page",
            "x-request-id",
        ] {
            assert!(!is_named_so(name), "{name}");
        }
        assert!(
            is_property("sasl.password")
                && is_property("ssl.key.pem")
                && is_property("ssl.key.password")
        );
        assert!(!is_property("ssl.key.location") && !is_property("bootstrap.servers"));
    }
}

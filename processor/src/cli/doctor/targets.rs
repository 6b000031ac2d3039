//! Whether somebody listens where attempts go.
//!
//! Invariant: a connection is opened and closed. Nothing is sent, so no target can take it for an attempt.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use humantime::format_duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use url::Url;

use retide_connectors::TargetConfig;

use crate::cli::doctor::{Line, Section, change};
use crate::command::Invocation;
use crate::config::Scene;

/// Somewhere that attempts go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// `http` or `https`.
    scheme: String,
    /// Host and port.
    address: String,
}

/// Where a place is named.
#[derive(Clone, Debug)]
struct Named {
    /// The scenes.
    scenes: BTreeSet<String>,
    /// How to change the first of them.
    fix: String,
}

/// Longest wait for one connection: beyond the second try of a lost packet.
const CONNECT: Duration = Duration::from_secs(3);

/// Longest time for all of them.
const ALL: Duration = Duration::from_secs(6);

/// Connections that are tried at once.
const AT_ONCE: usize = 32;

/// Connects to every HTTP target, once however many scenes name it.
pub(super) async fn lines(
    retide: &Invocation,
    scenes: &BTreeMap<String, (Scene, Option<String>)>,
) -> Vec<Line> {
    let end = Instant::now() + ALL;
    let tried = stream::iter(places(retide, scenes)).map(|(place, named)| async move {
        let deadline = end.min(Instant::now() + CONNECT);
        let result = connect(&place, deadline).await;
        line(&place, named, result)
    });
    // Buffered in order, so that the same configuration gives the same lines.
    tried.buffered(AT_ONCE).collect().await
}

/// The places that HTTP targets and callbacks name.
fn places(
    retide: &Invocation,
    scenes: &BTreeMap<String, (Scene, Option<String>)>,
) -> BTreeMap<Place, Named> {
    let mut places = BTreeMap::new();
    for (name, (scene, file)) in scenes {
        let callback = scene.callback.as_ref().map(|callback| &callback.target);
        for (key, target) in [
            ("target.http.url", Some(&scene.target)),
            ("callback.target.http.url", callback),
        ] {
            let Some(TargetConfig::Http(http)) = target else {
                continue;
            };
            let Some(place) = Url::parse(&http.url).ok().and_then(|url| Place::of(&url)) else {
                continue;
            };
            let named = places.entry(place).or_insert_with(|| Named {
                scenes: BTreeSet::new(),
                fix: change(retide, name, file.as_deref(), key),
            });
            named.scenes.insert(name.clone());
        }
    }
    places
}

/// Opens a connection, and closes it.
async fn connect(place: &Place, deadline: Instant) -> Result<(), String> {
    match timeout_at(deadline, TcpStream::connect(&place.address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no connection within {}", format_duration(CONNECT))),
    }
}

/// What is said of a place.
fn line(place: &Place, Named { scenes, fix }: Named, result: Result<(), String>) -> Line {
    let Place { scheme, address } = place;
    let subject = format!("{scheme}://{address}");
    let scenes: Vec<String> = scenes.into_iter().collect();
    let scenes = scenes.join(", ");
    match result {
        Ok(()) => {
            let message = format!("takes connections (scenes: {scenes})");
            Line::ok(Section::Targets, subject, message)
        }
        Err(reason) => {
            let message = format!(
                "takes no connections from here ({reason}; scenes: {scenes}): attempts would fail and be made again"
            );
            let fix = format!("start what listens at {address}, or {fix}");
            Line::fail(Section::Targets, subject, message, fix)
        }
    }
}

// === impl Place ===

impl Place {
    /// The place of an address: neither its path nor its query, which may be secret.
    fn of(url: &Url) -> Option<Self> {
        let host = url.host_str()?;
        let port = url.port_or_known_default()?;
        Some(Self {
            scheme: url.scheme().to_owned(),
            address: format!("{host}:{port}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_once_and_without_what_may_be_secret() {
        let text = "[scenes.a]\ntarget = { http = { url = 'http://[::1]/x?key=secret' } }\n\
                    [scenes.b]\ntarget = { http = { url = 'http://[::1]:80/y' } }\n\
                    callback = { target = { http = { url = 'https://h/z' } } }\n";
        let scenes = crate::config::scenes("s.toml", text.to_owned(), "retry").unwrap();
        let scenes = crate::cli::doctor::origin(&scenes, "s.toml");

        let places = places(&Invocation::default(), &scenes);

        let shown: Vec<_> = places
            .iter()
            .map(|(place, named)| (&*place.address, named.scenes.len(), &*named.fix))
            .collect();
        assert_eq!(
            shown,
            [
                ("[::1]:80", 2, "set target.http.url of [scenes.a] in s.toml"),
                (
                    "h:443",
                    1,
                    "set callback.target.http.url of [scenes.b] in s.toml"
                ),
            ]
        );
    }
}

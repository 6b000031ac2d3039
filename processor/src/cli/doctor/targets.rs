//! Whether attempts would reach where they go.
//!
//! Invariant: connections are opened and closed, and all that is sent is the handshake of TLS, so no target can take it for an attempt.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use humantime::format_rfc3339_seconds;
use tokio::time::Instant;

use retide_config::secrets::masked;
use retide_config::{Config, Scene};
use retide_connectors::egress::Denied;
use retide_connectors::secret::Secrets;
use retide_connectors::server::{Reached, Unreached};
use retide_connectors::tls::Looked;
use retide_connectors::{Destination, Server};
use retide_core::command::Invocation;
use retide_core::span;
use retide_shell::clock;
use retide_shell::outbound::expires;

use crate::cli::doctor::{CheckRow, Section, change};

/// Where a server is named.
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

/// What is in force for connections, and a connection to every server that attempts call, once however many scenes name it.
pub(super) async fn lines(
    config: &Config,
    scenes: &BTreeMap<String, (Scene, Option<String>)>,
) -> Vec<CheckRow> {
    let outbound = &config.outbound();
    let ok = |what, is: String| CheckRow::ok(Section::Targets, what, is);
    let mut lines = vec![
        ok("[egress]", config.egress.to_string()),
        ok("[secrets]", config.secrets.to_string()),
    ];
    lines.extend(secrets(config, scenes));
    let profiles = outbound.tls.look();
    lines.extend(profiles.iter().map(profile));
    let end = Instant::now() + ALL;
    let servers = stream::iter(servers(&config.invocation, scenes));
    let tried = servers.map(|(server, named)| async move {
        let deadline = end.min(Instant::now() + CONNECT);
        let result = server.probe(outbound, deadline).await;
        line(&server, named, result)
    });
    // Buffered in order, so that the same configuration gives the same lines.
    let tried: Vec<CheckRow> = tried.buffered(AT_ONCE).collect().await;
    lines.extend(tried);
    lines
}

/// What is secret in scenes: whether it can be read here, and what stands there in clear.
fn secrets(config: &Config, scenes: &BTreeMap<String, (Scene, Option<String>)>) -> Vec<CheckRow> {
    let retide = &config.invocation;
    let known = Secrets::new(config.secrets.clone());
    let mut lines = Vec::new();
    for (name, (scene, file)) in scenes {
        for (key, reference) in scene.references() {
            let subject = format!("scene {name}: {key}");
            lines.push(match known.missing(reference) {
                None => CheckRow::ok(Section::Targets, subject, format!("{reference} can be read here")),
                Some(problem) => CheckRow::fail(
                    Section::Targets,
                    subject,
                    format!("{problem}, as seen from here: a process that cannot read it holds the tasks of the scene"),
                    "put the secret there, for each process that runs; they look again by themselves",
                ),
            });
        }
        let (_, places) = masked(scene);
        for key in places {
            let fix = change(
                retide,
                name,
                file.as_deref(),
                &format!(
                    "{key} to {{ file = \"…\" }} or {{ env = \"…\" }}, or what nobody may see of it"
                ),
            );
            let message = "holds a credential in clear: whoever reads the scenes topic has it";
            lines.push(CheckRow::warn(
                Section::Targets,
                format!("scene {name}: {key}"),
                message,
                fix,
            ));
        }
    }
    lines
}

/// The servers that targets and callbacks name.
fn servers(
    retide: &Invocation,
    scenes: &BTreeMap<String, (Scene, Option<String>)>,
) -> BTreeMap<Server, Named> {
    let mut servers = BTreeMap::new();
    for (name, (scene, file)) in scenes {
        let callback = scene.callback.as_ref().map(|callback| &callback.target);
        for (way, target) in [
            ("target", Some(&scene.target)),
            ("callback.target", callback),
        ] {
            let Some(target) = target else { continue };
            let server = match target.destination() {
                Some(Destination::Server(server)) => server,
                // The cluster is asked about these: see `kafka_targets`.
                Some(Destination::Topic(_)) | None => continue,
            };
            let named = servers.entry(server).or_insert_with(|| {
                let key = format!("{way}.{}.url", target.configured().kind());
                let fix = change(retide, name, file.as_deref(), &key);
                let scenes = BTreeSet::new();
                Named { scenes, fix }
            });
            named.scenes.insert(name.clone());
        }
    }
    servers
}

/// What is said of the files of a profile of TLS.
fn profile(looked: &Looked) -> CheckRow {
    let Looked {
        name,
        problem,
        not_after,
        ..
    } = looked;
    let subject = format!("[tls.{name}]");
    let ours = format!("[tls.{name}] ");
    if let Some(problem) = problem {
        let problem = problem.strip_prefix(&ours).unwrap_or(problem);
        let message = format!("cannot be used: {problem}");
        let fix = format!("mend the file, or change its key in [tls.{name}]");
        return CheckRow::fail(Section::Targets, subject, message, fix);
    }
    let Some(not_after) = *not_after else {
        return CheckRow::ok(Section::Targets, subject, "its files can be used");
    };
    let now = clock::now();
    match expires(not_after, now) {
        Some(says) => {
            let message = format!("the client's certificate {says}");
            let fix = format!("replace `cert` and `key` of [tls.{name}]");
            let line = if not_after < now {
                CheckRow::fail
            } else {
                CheckRow::warn
            };
            line(Section::Targets, subject, message, fix)
        }
        None => CheckRow::ok(
            Section::Targets,
            subject,
            format!(
                "its files can be used; the client's certificate is valid until {}",
                format_rfc3339_seconds(not_after)
            ),
        ),
    }
}

/// What is said of a server.
fn line(server: &Server, named: Named, result: Result<Reached, Unreached>) -> CheckRow {
    let Named { scenes, fix, .. } = named;
    let (subject, address) = (server.to_string(), &server.address);
    let scenes: Vec<String> = scenes.into_iter().collect();
    let scenes = scenes.join(", ");
    let fail = |message, fix: &str| CheckRow::fail(Section::Targets, &*subject, message, fix);
    match result {
        Ok(Reached::Plain) => {
            let message = format!("takes connections (scenes: {scenes})");
            CheckRow::ok(Section::Targets, subject, message)
        }
        Ok(Reached::Tls { version, not_after }) => {
            if let Some(says) = not_after.and_then(|at| expires(at, clock::now())) {
                let message = format!("its certificate {says} (scenes: {scenes})");
                let fix = format!("have it replaced at {address}");
                return CheckRow::warn(Section::Targets, subject, message, fix);
            }
            let until = not_after.map_or_else(String::new, |at| {
                format!(", certificate valid until {}", format_rfc3339_seconds(at))
            });
            let message = format!("takes connections by TLS {version}{until} (scenes: {scenes})");
            CheckRow::ok(Section::Targets, subject, message)
        }
        Err(Unreached::Connect(reason)) => {
            let reason = match &*reason {
                "no connection in time" => {
                    format!("no connection within {}", span::text(CONNECT))
                }
                _ => reason,
            };
            let message = format!(
                "{REFUSES} ({reason}; scenes: {scenes}): attempts would fail and be made again"
            );
            fail(
                message,
                &format!("start what listens at {address}, or {fix}"),
            )
        }
        Err(Unreached::Dns(reason)) => {
            let message = format!(
                "{REFUSES} (its name is not resolved: {reason}; scenes: {scenes}): attempts would fail and be made again"
            );
            fail(message, &format!("give it an address, or {fix}"))
        }
        Err(Unreached::Egress { denied }) => {
            let at = match &denied {
                Denied {
                    host,
                    address: Some(address),
                    ..
                } if *host != address.to_string() => format!(" (now {address})"),
                Denied { .. } => String::new(),
            };
            let message = format!(
                "is not dialled: {denied}{at} (scenes: {scenes}): tasks would be dead letters (`egress`)"
            );
            fail(
                message,
                &format!("{fix}, or name it in `allow` of [egress]"),
            )
        }
        Err(Unreached::Tls(reason)) => {
            let profile = server.profile.as_deref();
            let profile = profile.unwrap_or(retide_connectors::tls::DEFAULT);
            let message = format!(
                "no TLS with it: {reason} (scenes: {scenes}): attempts would fail and be made again"
            );
            fail(
                message,
                &format!("mend its certificate, {fix}, or see [tls.{profile}]"),
            )
        }
        Err(Unreached::SpeaksTls) => {
            let message = format!(
                "speaks TLS at this port (scenes: {scenes}): attempts by plain HTTP would fail"
            );
            fail(message, &format!("{fix} to https://"))
        }
        Err(Unreached::Config(reason)) => {
            let message = format!("cannot be used: {reason} (scenes: {scenes})");
            fail(message, &fix)
        }
    }
}

/// How what is said of a server begins that takes no connections.
pub(super) const REFUSES: &str = "takes no connections from here";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Mark;

    #[test]
    fn a_server_is_named_once_and_without_what_may_be_secret() {
        let text = "[scenes.a]\ntarget = { http = { url = 'http://[::1]/x?key=secret' } }\n\
                    [scenes.b]\ntarget = { http = { url = 'http://[::1]:80/y' } }\n\
                    callback = { target = { http = { url = 'https://h/z' } } }\n";
        let scenes = retide_config::scenes("s.toml", text.to_owned(), "retry").unwrap();
        let scenes = crate::cli::doctor::origin(&scenes, "s.toml");

        let servers = servers(&Invocation::default(), &scenes);

        let shown: Vec<_> = servers
            .iter()
            .map(|(server, named)| (&*server.address, named.scenes.len(), &*named.fix))
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

    const DAY: Duration = Duration::from_hours(24);

    /// How a line is meant, and its text.
    fn shown(line: &CheckRow) -> (Mark, String) {
        (line.mark, line.message.clone())
    }

    #[test]
    fn a_certificate_that_expires_soon_is_told_and_tls_at_the_port_of_plain_http() {
        let text = "[scenes.a]\ntarget = { http = { url = 'https://h/' } }\n";
        let scenes = retide_config::scenes("s.toml", text.to_owned(), "retry").unwrap();
        let scenes = crate::cli::doctor::origin(&scenes, "s.toml");
        let said = |result: Result<Reached, Unreached>| {
            let (server, named) = servers(&Invocation::default(), &scenes)
                .pop_first()
                .unwrap();
            let line = line(&server, named, result);
            assert!(line.message.contains("scenes: a"), "{}", line.message);
            shown(&line)
        };
        let tls = |not_after| {
            let version = "1.3";
            said(Ok(Reached::Tls { version, not_after }))
        };
        let now = clock::now();

        let (far, soon, over) = (
            tls(Some(now + 30 * DAY)),
            tls(Some(now + 3 * DAY)),
            tls(Some(now - 3 * DAY)),
        );
        let speaks_tls = said(Err(Unreached::SpeaksTls));

        assert_eq!(far.0, Mark::Ok, "{far:?}");
        assert!(far.1.contains("certificate valid until"), "{far:?}");
        assert_eq!(soon.0, Mark::Warn, "{soon:?}");
        assert!(soon.1.contains("its certificate expires at"), "{soon:?}");
        assert_eq!(over.0, Mark::Warn, "{over:?}");
        assert!(over.1.contains("its certificate expired at"), "{over:?}");
        assert_eq!(tls(None).0, Mark::Ok);
        assert_eq!(speaks_tls.0, Mark::Fail, "{speaks_tls:?}");
        let expected = "speaks TLS at this port";
        assert!(speaks_tls.1.contains(expected), "{speaks_tls:?}");
    }

    #[test]
    fn a_certificate_of_ours_that_expires_is_told() {
        let said = |not_after| {
            shown(&profile(&Looked {
                name: "bank".to_owned(),
                changed: false,
                usable: true,
                problem: None,
                not_after: Some(not_after),
            }))
        };
        let now = clock::now();

        let all = [
            said(now + 30 * DAY),
            said(now + 3 * DAY),
            said(now - 3 * DAY),
        ];

        for (said, sign, words) in [
            (&all[0], Mark::Ok, "the client's certificate is valid until"),
            (&all[1], Mark::Warn, "the client's certificate expires at"),
            (&all[2], Mark::Fail, "the client's certificate expired at"),
        ] {
            assert_eq!(said.0, sign, "{said:?}");
            assert!(said.1.contains(words), "{said:?}");
        }
    }
}

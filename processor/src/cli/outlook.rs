//! What the targets of scenes would meet by the rules of this configuration, said before they are put in force.
//!
//! The process that makes the attempts may have other rules, so that nothing is refused here. Invariant: no target is connected to.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::Builder;
use tokio::time::Instant;

use retide_config::{Config, Scene, unknown_profile};
use retide_connectors::{Outbound, Server, TargetConfig};

use crate::cli::output::{Failed, say};

/// Longest time for asking for the addresses of all names.
const ASK: Duration = Duration::from_secs(2);

/// Says which targets of scenes would not be dialled, and which profiles of TLS there are not.
pub(super) fn tell<'a>(
    config: &Config,
    scenes: impl Iterator<Item = (&'a String, &'a Scene)>,
) -> Result<(), Failed> {
    let outbound = &config.outbound();
    let deadline = Instant::now() + ASK;
    let (mut unknown, mut asked) = (BTreeSet::new(), Vec::new());
    for (name, scene) in scenes {
        let profiles = scene.profiles().map(|(_, profile)| profile);
        let missing = profiles.filter(|&profile| !config.tls.contains_key(profile));
        unknown.extend(missing.map(|profile| (name, profile)));
        let callback = scene.callback.as_ref().map(|callback| &callback.target);
        for (what, target) in [("target", Some(&scene.target)), ("callback", callback)] {
            if let Some(server) = target.and_then(TargetConfig::server) {
                asked.push(denied((name, what), server, outbound, deadline));
            }
        }
    }
    for (name, profile) in unknown {
        let message = unknown_profile(profile, config.tls.keys());
        say(&format!(
            "scene {name}: {message}; attempts in a process without it fail (`tls`) and are made again"
        ));
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let lines = runtime.block_on(join_all(asked));
    // A name may still be looked up; nobody waits for it.
    runtime.shutdown_background();
    for line in lines.into_iter().flatten() {
        say(&line);
    }
    Ok(())
}

/// What is said of a target that would not be dialled.
async fn denied(
    (scene, what): (&str, &str),
    server: Server,
    outbound: &Outbound,
    deadline: Instant,
) -> Option<String> {
    let found = match server.foresee(outbound) {
        Some(denied) => denied,
        None => server.denied(outbound, deadline).await?,
    };
    Some(format!(
        "scene {scene}: its {what} would not be dialled: {found}; its tasks would be dead letters (`egress`)"
    ))
}

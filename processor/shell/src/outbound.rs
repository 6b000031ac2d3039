//! Watches the files by which TLS is spoken with targets, while a process works.
//!
//! Not how TLS is spoken; see [`tls`]. Invariant: what is wrong with a file is told within half a minute, and never by ending a process:
//! what was read before counts on.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use humantime::format_rfc3339_seconds;
use tracing::info;

use retide_config::Config;
use retide_connectors::tls::{self, Looked, Profiles};
use retide_core::span;

use crate::clock;
use crate::threads::Ended;
use crate::trouble::{Effect, Kind, Trouble, Troubles};

/// Watches the files of profiles.
pub(crate) struct Watch {
    /// The profiles.
    profiles: Arc<Profiles>,
    /// Where troubles are told.
    troubles: Troubles,
    /// What was found the last time.
    before: Vec<Looked>,
}

/// Time between two looks at the files: soon after they are replaced, and a handful of small reads.
const LOOK: Duration = Duration::from_secs(2);

/// How long before a certificate expires that is told: in time to have another one made by hand.
pub(crate) const SOON: Duration = Duration::from_hours(14 * 24);

// === impl Watch ===

impl Watch {
    /// A watch over the files of `profiles`, all of which it reads.
    pub(crate) fn new(profiles: &Arc<Profiles>, troubles: &Troubles) -> Self {
        let mut watch = Self {
            profiles: Arc::clone(profiles),
            troubles: troubles.held_by("tls"),
            before: Vec::new(),
        };
        watch.look(clock::now());
        watch
    }

    /// Looks at the files again and again, until it is time to end.
    pub(crate) fn run(mut self, stop: &AtomicBool) -> Ended {
        while !stop.load(Ordering::Acquire) {
            thread::park_timeout(LOOK);
            self.look(clock::now());
        }
        Ended::Told
    }

    /// Looks at the files once.
    fn look(&mut self, now: SystemTime) {
        let looked = self.profiles.look();
        for Looked { name, changed, .. } in &looked {
            if *changed {
                info!(profile = name, "tls files read");
            }
        }
        let lasts = |looked: &&Looked| {
            let before = self.before.iter().find(|before| before.name == looked.name);
            // A certificate and its key are not replaced at the same moment.
            before.is_none_or(|before| before.problem.is_some())
        };
        let unusable = looked.iter().filter(lasts).filter_map(unusable);
        self.troubles.only(Kind::TlsUnusable, unusable);
        let expiring = looked.iter().filter_map(|looked| expiring(looked, now));
        self.troubles.only(Kind::TlsExpires, expiring);
        self.before = looked;
    }
}

/// What is said of files that cannot be used.
fn unusable(looked: &Looked) -> Option<Trouble> {
    let problem = looked.problem.clone()?;
    let name = &looked.name;
    Some(Trouble {
        kind: Kind::TlsUnusable,
        subject: name.clone(),
        says: if looked.usable {
            format!("{problem}: what was read before counts on")
        } else {
            format!("{problem}: attempts that need it fail and are made again")
        },
        fix: Some(format!(
            "mend the files of [tls.{name}]; they are read again by themselves"
        )),
        effect: Effect::Limits,
    })
}

/// What is said of a client's certificate that has expired, or is about to.
fn expiring(looked: &Looked, now: SystemTime) -> Option<Trouble> {
    let name = &looked.name;
    let says = expires(looked.not_after?, now)?;
    Some(Trouble {
        kind: Kind::TlsExpires,
        subject: name.clone(),
        says: format!("the certificate of [tls.{name}] {says}"),
        fix: Some(format!(
            "replace `cert` and `key` of [tls.{name}]; they are read again by themselves"
        )),
        effect: Effect::Limits,
    })
}

/// What is said of a certificate that has expired, or does so within two weeks.
pub fn expires(not_after: SystemTime, now: SystemTime) -> Option<String> {
    let at = format_rfc3339_seconds(not_after);
    match not_after.duration_since(now) {
        Ok(left) if left > SOON => None,
        Ok(left) => {
            let hours = left.as_secs() / 3600;
            let left = span::text(Duration::from_hours(hours));
            Some(format!("expires at {at}, in {left}"))
        }
        Err(_) => Some(format!("expired at {at}")),
    }
}

/// What is in force for connections to targets, in the words of the configuration, for the log of the start.
pub fn tell(config: &Config) {
    info!(egress = %config.egress, secrets = %config.secrets, "connections to targets");
    for (name, profile) in &config.tls {
        let tls::Config {
            ca,
            system_roots,
            cert,
            server_name,
            hosts,
            ..
        } = profile;
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        info!(
            profile = name,
            ca = path(ca),
            system_roots = *system_roots || ca.is_none(),
            cert = path(cert),
            server_name,
            hosts = (!hosts.is_empty()).then(|| hosts.join(" ")),
            "tls with targets"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeMap;
    use std::fs;

    use base64::prelude::{BASE64_STANDARD, Engine as _};
    use tempfile::TempDir;

    #[test]
    fn files_that_cannot_be_used_are_told_until_they_can() {
        let directory = TempDir::new().unwrap();
        let ca = directory.path().join("ca.pem");
        let text = format!("[bank]\nca = '{}'", ca.display());
        let configs: BTreeMap<String, tls::Config> = toml::from_str(&text).unwrap();
        let profiles = Arc::new(Profiles::new(&configs));
        let troubles = Troubles::default();
        let told = || troubles.has(Kind::TlsUnusable, "bank");
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();

        let mut watch = Watch::new(&profiles, &troubles);
        assert!(told(), "there is no file");

        fs::write(&ca, pem(made.cert.der())).unwrap();
        watch.look(clock::now());
        assert!(!told());

        fs::write(&ca, "nonsense").unwrap();
        watch.look(clock::now());
        assert!(!told(), "it may be half-written");
        watch.look(clock::now());
        assert!(told());
        let says = &troubles.list()[0].says;
        assert!(says.contains("what was read before counts on"), "{says}");
    }

    #[test]
    fn a_certificate_that_expires_soon_is_told() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(24 * 365 * 50);
        let days = |days: u64| Duration::from_hours(24 * days);

        assert_eq!(expires(now + days(15), now), None);
        let soon = expires(now + days(3), now).unwrap();
        assert!(soon.ends_with("in 3d"), "{soon}");
        let over = expires(now - days(3), now).unwrap();
        assert!(over.starts_with("expired at"), "{over}");
    }

    /// A certificate in PEM.
    fn pem(bytes: &[u8]) -> String {
        let text = BASE64_STANDARD.encode(bytes);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    }
}

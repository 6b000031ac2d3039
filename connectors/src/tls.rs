//! TLS with targets: profiles of the process, which scenes name.
//!
//! Scenes travel through a topic and may be written by others, so they hold no paths of files: a scene names a profile (`tls = "bank"`),
//! and `[tls.bank]` in the process's configuration says which files that is. Targets that name none have the profile `default`, if there
//! is one for them, and else trust whom the system trusts.
//!
//! | read | for |
//! | --- | --- |
//! | `files` | what is read, when it is read again, and until when a certificate is valid |
//! | `own` | a server that shows the very certificate that is named as `ca` |
//! | [`explain`] | what a failed handshake means, in words |
//!
//! Invariant: files that cannot be used never replace those that could.

pub mod explain;
mod files;
mod own;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Deserialize;

use crate::egress::Rule;

use self::files::Files;

pub use self::files::not_after;

/// The profile of targets that name none.
pub const DEFAULT: &str = "default";

/// A profile, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A file with the certificates of those who are trusted, in PEM; nobody else is.
    pub ca: Option<PathBuf>,
    /// Whether those whom the system trusts are trusted besides.
    pub system_roots: bool,
    /// A file with the client's certificate and its chain, in PEM.
    pub cert: Option<PathBuf>,
    /// A file with the key to it, in PEM, not encrypted.
    pub key: Option<PathBuf>,
    /// The name that targets are asked for and have to prove, in place of the host of their address.
    pub server_name: Option<String>,
    /// The oldest version that is spoken.
    pub min_version: Option<Version>,
    /// The newest version that is spoken.
    pub max_version: Option<Version>,
    /// The only hosts that it is for; all, where none is named. A client's certificate is shown to nobody else.
    pub hosts: Vec<Rule>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Version {
    /// TLS 1.2.
    #[serde(rename = "1.2")]
    V12,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    V13,
}

/// Why a profile cannot be used as it is written, and the key at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The key.
    pub key: &'static str,
    /// What is wrong.
    pub message: &'static str,
}

/// The profiles of a process.
#[derive(Debug)]
pub struct Profiles {
    /// The profiles of the configuration.
    named: BTreeMap<String, Arc<Profile>>,
    /// Of targets for which there is none: whom the system trusts is trusted.
    system: Arc<Profile>,
}

/// A profile, and what its files hold.
pub struct Profile {
    /// The name of the profile; none of the system's.
    name: Option<String>,
    /// As it is written.
    config: Config,
    /// The latest reading of the files.
    state: RwLock<State>,
}

/// A reading of a profile's files.
#[derive(Default)]
struct State {
    /// The files as they were read last; none were yet.
    files: Option<Files>,
    /// The TLS configuration of the last files that could be used.
    usable: Option<Usable>,
    /// The fault of the files that were read last.
    problem: Option<String>,
}

/// The part of a profile that can be used.
struct Usable {
    /// For connections that may speak HTTP/2.
    any: Arc<ClientConfig>,
    /// For those that have to speak HTTP/1.1.
    http1: Arc<ClientConfig>,
    /// When the client's certificate expires.
    not_after: Option<SystemTime>,
}

/// The protocols that a connection may speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/2, or else HTTP/1.1.
    Any,
    /// HTTP/1.1.
    Http1,
}

/// The findings of another look at a profile's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    /// The profile.
    pub name: String,
    /// Whether other files are in use than before.
    pub changed: bool,
    /// Whether there are any in use.
    pub usable: bool,
    /// The fault that they have now.
    pub problem: Option<String>,
    /// When the client's certificate that is in use expires.
    pub not_after: Option<SystemTime>,
}

/// The TLS of one target.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The profile, or why there is none.
    profile: Result<Arc<Profile>, String>,
    /// The name that the target has to prove.
    server_name: ServerName<'static>,
}

// === impl Config ===

impl Config {
    /// Refuses what no files could mend.
    pub fn check(&self) -> Result<(), Error> {
        let error = |key, message| Err(Error { key, message });
        match (&self.cert, &self.key) {
            (Some(_), None) => {
                return error("cert", "goes with `key`, the file with the key to it");
            }
            (None, Some(_)) => return error("key", "goes with `cert`, the file it is the key to"),
            (Some(_), Some(_)) | (None, None) => {}
        }
        if self.min_version > self.max_version && self.max_version.is_some() {
            return error("max_version", "expected `min_version` or a newer one");
        }
        match &self.server_name {
            Some(name) if ServerName::try_from(name.as_str()).is_err() => error(
                "server_name",
                "expected a name such as shop.example, or an address",
            ),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether it is for a host: a name, or an address without brackets.
    fn is_for(&self, host: &str) -> bool {
        let address: Option<IpAddr> = host.parse().ok();
        let names = |rule: &Rule| match address {
            Some(address) => rule.holds(address),
            None => rule.names_host(host),
        };
        self.hosts.is_empty() || self.hosts.iter().any(names)
    }

    /// Whether a version is spoken.
    fn speaks(&self, version: Version) -> bool {
        self.min_version.is_none_or(|least| least <= version)
            && self.max_version.is_none_or(|most| version <= most)
    }
}

// === impl Profiles ===

impl Profiles {
    /// The profiles of a configuration, which was checked; nothing is read yet.
    pub fn new(configs: &BTreeMap<String, Config>) -> Self {
        let named = configs.iter().map(|(name, config)| {
            let profile = Profile::new(Some(name.clone()), config.clone());
            (name.clone(), Arc::new(profile))
        });
        let system = Config {
            system_roots: true,
            ..Config::default()
        };
        Self {
            named: named.collect(),
            system: Arc::new(Profile::new(None, system)),
        }
    }

    /// The names of the profiles.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.named.keys().map(String::as_str)
    }

    /// The TLS of `host`, a name or an address without brackets, where its scene names this profile.
    pub fn of(&self, name: Option<&str>, host: &str) -> Result<Tls, &'static str> {
        let profile = match name {
            Some(name) => self.profile(name, host),
            None => Ok(match self.named.get(DEFAULT) {
                Some(profile) if profile.config.is_for(host) => Arc::clone(profile),
                Some(_) | None => Arc::clone(&self.system),
            }),
        };
        let own = profile.as_ref().ok();
        let asked = own.and_then(|profile| profile.config.server_name.as_deref());
        // The dot at the end of a name is none of the certificate's.
        let asked = asked.unwrap_or_else(|| host.strip_suffix('.').unwrap_or(host));
        let server_name = ServerName::try_from(asked.to_owned())
            .map_err(|_| "its host cannot be the name of a certificate")?;
        Ok(Tls {
            profile,
            server_name,
        })
    }

    /// Looks at all files again. To be called where a slow disk holds up nobody.
    pub fn look(&self) -> Vec<Looked> {
        let named = self.named.iter();
        named.map(|(name, profile)| profile.look(name)).collect()
    }

    /// The profile of this name, unless it is not for `host`.
    fn profile(&self, name: &str, host: &str) -> Result<Arc<Profile>, String> {
        let Some(profile) = self.named.get(name) else {
            return Err(format!("this process has no [tls.{name}]"));
        };
        if !profile.config.is_for(host) {
            return Err(format!("[tls.{name}] is not for {host}"));
        }
        Ok(Arc::clone(profile))
    }
}

impl Default for Profiles {
    /// None but the system's.
    fn default() -> Self {
        Self::new(&BTreeMap::new())
    }
}

// === impl Profile ===

impl Profile {
    /// A profile of which nothing is read yet.
    fn new(name: Option<String>, config: Config) -> Self {
        Self {
            name,
            config,
            state: RwLock::default(),
        }
    }

    /// The TLS configuration of now.
    fn current(&self, alpn: Alpn) -> Result<Arc<ClientConfig>, String> {
        let pick = |state: &State| {
            let usable = state.usable.as_ref()?;
            Some(Arc::clone(match alpn {
                Alpn::Any => &usable.any,
                Alpn::Http1 => &usable.http1,
            }))
        };
        {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(config) = pick(&state) {
                return Ok(config);
            }
            if let (Some(_), Some(problem)) = (&self.name, &state.problem) {
                // Whoever looks again will find it mended.
                return Err(problem.clone());
            }
        }
        self.read();
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        pick(&state).ok_or_else(|| state.problem.clone().unwrap_or_default())
    }

    /// Looks at the files again.
    fn look(&self, name: &str) -> Looked {
        let changed = self.read();
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Looked {
            name: name.to_owned(),
            changed,
            usable: state.usable.is_some(),
            problem: state.problem.clone(),
            not_after: state.usable.as_ref().and_then(|usable| usable.not_after),
        }
    }

    /// Reads the files, and uses them if they are others than before and can be used; true if so.
    fn read(&self) -> bool {
        let files = Files::read(&self.config);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let files = match files {
            Ok(files) => files,
            Err(problem) => {
                state.files = None;
                state.problem = Some(self.told(&problem));
                return false;
            }
        };
        if state.files.as_ref() == Some(&files) {
            return false;
        }
        let usable = files.usable(&self.config);
        state.files = Some(files);
        match usable {
            Ok(usable) => {
                state.usable = Some(usable);
                state.problem = None;
                true
            }
            Err(problem) => {
                state.problem = Some(self.told(&problem));
                false
            }
        }
    }

    /// A problem with whose it is.
    fn told(&self, problem: &str) -> String {
        match &self.name {
            Some(name) => format!("[tls.{name}] {problem}"),
            None => problem.to_owned(),
        }
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Profile")
            .field("name", &self.name)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

// === impl Tls ===

impl Tls {
    /// The configuration of the next handshake; another `Arc` than before where the files are others. An error is one of class `tls`.
    pub fn current(&self, alpn: Alpn) -> Result<Arc<ClientConfig>, String> {
        self.profile.as_ref().map_err(Clone::clone)?.current(alpn)
    }

    /// The name that the target has to prove.
    pub fn server_name(&self) -> ServerName<'static> {
        self.server_name.clone()
    }

    /// Why there is no profile as the scene wants it.
    pub fn refusal(&self) -> Option<&str> {
        self.profile.as_ref().err().map(String::as_str)
    }

    /// A failed handshake in words.
    pub fn explain(&self, error: &io::Error) -> String {
        explain::handshake(error, self.shows_certificate())
    }

    /// The cause in words of a connection that ended with this error, if TLS is to blame: version 1.3 lets a server refuse a client after the
    /// client's handshake.
    pub fn cause(&self, error: &(dyn std::error::Error + 'static)) -> Option<String> {
        explain::cause(error, self.shows_certificate())
    }

    /// Whether a client's certificate is shown to a target that asks for one.
    fn shows_certificate(&self) -> explain::Shown {
        match &self.profile {
            Ok(profile) if profile.config.cert.is_some() => explain::Shown::Certificate,
            Ok(_) | Err(_) => explain::Shown::Nothing,
        }
    }
}

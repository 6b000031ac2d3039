//! Which addresses attempts may go to: the guard for those who let others write scenes.
//!
//! Rules, in this order:
//! - `ports`: nothing but these is dialled, where any are named.
//! - `allow`: what it names is dialled whatever the rest says. A name opens every class but `metadata`, which only an address opens: who
//!   writes a name's records must not reach credentials by them.
//! - `only = "allowed"`: nothing else is dialled. `only = "public"`: nothing else but what is reached over the internet.
//! - `deny`: these classes are not dialled.
//!
//! The address that is about to be dialled is what counts, not the name it was resolved from, so that a name cannot pass and then move.
//! An IPv6 address that carries an IPv4 one is both of them. Invariant: an address that cannot be told apart is not public.

mod class;
mod rule;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;

use serde::Deserialize;

pub use self::class::Class;
pub use self::rule::{Ports, Rule};

/// The rules of egress as a configuration writes them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The only addresses that are dialled, besides those of `allow`.
    pub only: Option<Only>,
    /// The classes of addresses that are not dialled.
    pub deny: Vec<Class>,
    /// Hosts, networks and addresses that are dialled in any case.
    pub allow: Vec<Rule>,
    /// The ports that are dialled; all, where none is named.
    pub ports: Vec<Ports>,
    /// Whether the start of an answer that is no success is part of the error, which callbacks and dead letters repeat.
    pub error_bodies: bool,
}

/// The only addresses that are dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Only {
    /// Addresses that are reached over the internet.
    Public,
    /// Addresses that `allow` names.
    Allowed,
}

/// Why an address is not dialled. Its text does not repeat the address: who may write names into scenes must not learn what they
/// resolve to here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{host} {cause}")]
pub struct Denied {
    /// The host of the target.
    pub host: String,
    /// The address, if there is one yet.
    pub address: Option<IpAddr>,
    /// The rule that stands against it.
    pub cause: Cause,
}

/// The rule that stands against an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// The class of the address.
    #[error("is {}, which [egress] does not allow", .0.words())]
    Class(Class),
    /// The address is not named.
    #[error("is none of what [egress] allows")]
    NotAllowed,
    /// The port.
    #[error("is asked for at port {0}, which [egress] does not allow")]
    Port(u16),
}

/// Somewhere to dial.
#[derive(Clone, Copy, Debug)]
pub struct HostPort<'a> {
    /// The host of the target's address: a name, or an address without brackets.
    pub host: &'a str,
    /// The port.
    pub port: u16,
}

// === impl Config ===

impl Config {
    /// Refuses rules by which nothing could be dialled.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.only == Some(Only::Allowed) && self.allow.is_empty() {
            return Err("nothing would be dialled: expected at least one entry in `allow`");
        }
        if self.only == Some(Only::Public) && self.deny.contains(&Class::Public) {
            return Err("nothing would be dialled: `deny` names what `only` leaves");
        }
        Ok(())
    }

    /// Whether `address`, to which the host of `at` has been resolved, may be dialled; asked at the moment of dialling.
    pub fn permit(&self, at: HostPort<'_>, address: IpAddr) -> Result<(), Denied> {
        self.cause(at, address).map_or(Ok(()), |cause| {
            Err(Denied {
                host: at.host.to_owned(),
                address: Some(address),
                cause,
            })
        })
    }

    /// What is known of a place without the addresses of its name: that none of them could be dialled.
    pub fn foresee(&self, at: HostPort<'_>) -> Option<Denied> {
        if let Ok(address) = at.host.parse() {
            return self.permit(at, address).err();
        }
        let HostPort { host, port } = at;
        let cause = if !self.takes(port) {
            Cause::Port(port)
        } else if self.only == Some(Only::Allowed)
            && !self
                .allow
                .iter()
                .any(|rule| rule.takes_port(port) && (rule.is_net() || rule.names_host(host)))
        {
            Cause::NotAllowed
        } else {
            return None;
        };
        Some(Denied {
            host: host.to_owned(),
            address: None,
            cause,
        })
    }

    /// Whether a port may be dialled.
    fn takes(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|ports| ports.contains(port))
    }

    /// The rule that stands against dialling `address`, if one does.
    fn cause(&self, at: HostPort<'_>, address: IpAddr) -> Option<Cause> {
        let HostPort { host, port } = at;
        if !self.takes(port) {
            return Some(Cause::Port(port));
        }
        let address = address.to_canonical();
        let named = |rule: &Rule| rule.takes_port(port) && rule.names_host(host);
        let named = self.allow.iter().any(named);
        let mut worst = None;
        for reading in class::readings(address) {
            let class = Class::of(reading);
            let listed =
                |rule: &Rule| rule.takes_port(port) && (rule.holds(reading) || rule.holds(address));
            if named && class != Class::Metadata || self.allow.iter().any(listed) {
                continue;
            }
            worst = worst.or(match self.only {
                Some(Only::Allowed) => Some(Cause::NotAllowed),
                Some(Only::Public) if class != Class::Public => Some(Cause::Class(class)),
                Some(Only::Public) | None => {
                    self.deny.contains(&class).then_some(Cause::Class(class))
                }
            });
        }
        worst
    }
}

impl Default for Config {
    /// Most targets are services inside, so that only what no service lives at is denied.
    fn default() -> Self {
        Self {
            only: None,
            deny: vec![Class::LinkLocal, Class::Metadata],
            allow: Vec::new(),
            ports: Vec::new(),
            error_bodies: true,
        }
    }
}

impl fmt::Display for Config {
    /// The rules in force, in one line.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: &[String]| items.join(", ");
        let words: Vec<String> = self.deny.iter().map(ToString::to_string).collect();
        match self.only {
            Some(Only::Public) => formatter.write_str("only public addresses are dialled")?,
            Some(Only::Allowed) => formatter.write_str("nothing is dialled")?,
            None if words.is_empty() => formatter.write_str("every address is dialled")?,
            None => write!(formatter, "{} addresses are not dialled", list(&words))?,
        }
        if !self.allow.is_empty() {
            let rules: Vec<String> = self.allow.iter().map(ToString::to_string).collect();
            write!(formatter, ", but {}", list(&rules))?;
        }
        if !self.ports.is_empty() {
            let ports: Vec<String> = self.ports.iter().map(ToString::to_string).collect();
            write!(formatter, ", at ports {}", list(&ports))?;
        }
        if !self.error_bodies {
            formatter.write_str("; answers are no part of errors")?;
        }
        Ok(())
    }
}

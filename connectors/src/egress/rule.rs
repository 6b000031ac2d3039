//! Entries of the lists: addresses, names and ports.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde::Deserialize;
use url::Host;

/// One entry of `allow`, such as `10.1.0.0/16`, `[fd00::/8]:443`, `shop.example:8443` or `*.internal.example`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Rule {
    /// The addresses that it names.
    what: What,
    /// The only port it counts for, if it names one.
    port: Option<u16>,
}

/// The addresses that an entry of `allow` names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// Every address of a network.
    Net(IpNet),
    /// A host, by its name.
    Host(String),
    /// Every host below a name, which is not one of them.
    Below(String),
}

/// One entry of `ports`: a port such as `443`, or a range such as `"8000-8999"`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Ports(RangeInclusive<u16>);

/// Ports as they are written.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Written {
    /// One.
    Number(i64),
    /// A range.
    Text(String),
}

// === impl Rule ===

impl Rule {
    /// Whether it counts for a port.
    pub(super) fn takes_port(&self, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
    }

    /// Whether it names addresses.
    pub(super) const fn is_net(&self) -> bool {
        matches!(self.what, What::Net(_))
    }

    /// Whether it names a host by its name.
    pub(crate) fn names_host(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        match &self.what {
            What::Net(_) => false,
            What::Host(name) => host.eq_ignore_ascii_case(name),
            What::Below(name) => {
                let above = host.len().checked_sub(name.len());
                above
                    .and_then(|at| host.split_at_checked(at))
                    .is_some_and(|(below, above)| {
                        below.len() > 1 && below.ends_with('.') && above.eq_ignore_ascii_case(name)
                    })
            }
        }
    }

    /// Whether it names an address.
    pub(crate) fn holds(&self, address: IpAddr) -> bool {
        match &self.what {
            What::Net(net) => net.contains(&address),
            What::Host(_) | What::Below(_) => false,
        }
    }
}

impl TryFrom<String> for Rule {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let refused = |why: &str| format!("`{text}` {why}");
        // An IPv6 address has colons of its own; beside a port it stands in brackets.
        let split = if text.contains(']') || text.matches(':').count() == 1 {
            text.rsplit_once(':')
                .filter(|(_, port)| !port.ends_with(']'))
        } else {
            None
        };
        let (what, port) = match split {
            Some((what, port)) => {
                let port = port.parse().ok().filter(|&port| port > 0);
                let port = port.ok_or_else(|| refused("ends in no port: expected 1 to 65535"))?;
                (what, Some(port))
            }
            None => (text.as_str(), None),
        };
        let bare = what
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let what = match net(bare.unwrap_or(what)).map_err(|why| refused(&why))? {
            Some(net) => What::Net(net),
            None => name(what).map_err(refused)?,
        };
        Ok(Self { what, port })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.what, self.port) {
            (What::Net(net @ IpNet::V6(_)), Some(_)) => write!(formatter, "[{net}]")?,
            (What::Net(net), _) => write!(formatter, "{net}")?,
            (What::Host(name), _) => formatter.write_str(name)?,
            (What::Below(name), _) => write!(formatter, "*.{name}")?,
        }
        match self.port {
            Some(port) => write!(formatter, ":{port}"),
            None => Ok(()),
        }
    }
}

// === impl Ports ===

impl Ports {
    /// Whether a port is one of these.
    pub(super) fn contains(&self, port: u16) -> bool {
        self.0.contains(&port)
    }
}

impl TryFrom<Written> for Ports {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let text = match written {
            Written::Number(port) => port.to_string(),
            Written::Text(text) => text,
        };
        let (first, last) = text.split_once('-').unwrap_or((&text, &text));
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|&port| port > 0);
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self(first..=last)),
            _ => Err(format!(
                "`{text}` is no port: expected 1 to 65535, or a range such as \"8000-8999\""
            )),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.0.start(), self.0.end());
        if first == last {
            write!(formatter, "{first}")
        } else {
            write!(formatter, "{first}-{last}")
        }
    }
}

/// A network or a single address, if the text is one.
fn net(text: &str) -> Result<Option<IpNet>, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Some(IpNet::from(address.to_canonical())));
    }
    let Some((address, length)) = text.split_once('/') else {
        return Ok(None);
    };
    let net: IpNet = text
        .parse()
        .map_err(|_| "is no network: expected one such as 10.1.0.0/16 or fd00::/8".to_owned())?;
    if net != net.trunc() {
        return Err(format!(
            "does not begin a network: expected {} or {address}/{}",
            net.trunc(),
            net.max_prefix_len()
        ));
    }
    let IpNet::V6(v6) = net else {
        return Ok(Some(net));
    };
    // A mapped network is one of IPv4, since that is what a mapped address is.
    let mapped = v6.network().to_ipv4_mapped();
    let length: Option<u8> = length.parse().ok();
    Ok(Some(match (mapped, length) {
        (Some(network), Some(length @ 96..)) => mapped_net(network, length - 96).unwrap_or(net),
        _ => net,
    }))
}

/// The network of IPv4 that a mapped one stands for.
fn mapped_net(network: Ipv4Addr, length: u8) -> Option<IpNet> {
    IpNet::new(network.into(), length).ok()
}

/// A host, or every host below a name.
fn name(text: &str) -> Result<What, &'static str> {
    const EXPECTED: &str = "is no host: expected a name, `*.` before one, an address or a network";
    let (below, name) = match text.strip_prefix("*.") {
        Some(name) => (true, name),
        None => (false, text),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || name.contains('*') {
        return Err(EXPECTED);
    }
    match (Host::parse(name), below) {
        (Ok(Host::Domain(name)), true) => Ok(What::Below(name)),
        (Ok(Host::Domain(name)), false) => Ok(What::Host(name)),
        // Another spelling of an address, such as 0x7f.1: it would be misread by people.
        (Ok(Host::Ipv4(_) | Host::Ipv6(_)) | Err(_), _) => Err(EXPECTED),
    }
}

//! Classes of addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Deserialize;

/// A class of addresses. Each address is in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Reached over the internet.
    Public,
    /// Of a private network: RFC 1918, carrier-grade NAT (100.64.0.0/10), `fc00::/7`, `fec0::/10` and the local-use NAT64 prefix.
    Private,
    /// This machine: 127.0.0.0/8, `::1`, and 0.0.0.0/8 and `::`, by which it is reached as well.
    Loopback,
    /// Addresses of the local link: 169.254.0.0/16, `fe80::/10`, broadcast and multicast.
    LinkLocal,
    /// Where clouds give credentials to whoever asks.
    Metadata,
    /// Anything else: documentation, benchmarks, not assigned yet, or an obsolete way to write an IPv4 address.
    Reserved,
}

/// Where clouds tell a machine about itself; who reaches them from inside gets the machine's credentials.
const METADATA: [IpAddr; 13] = [
    // AWS, Google, Azure, DigitalOcean, OpenStack, Hetzner and most others.
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    // AWS: time, tasks of ECS, pods of EKS.
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 123)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    // Google over IPv6.
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    // Azure's platform, which is no link-local address.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // Alibaba.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Oracle's former one.
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    // Scaleway.
    IpAddr::V4(Ipv4Addr::new(169, 254, 42, 42)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
    // Tencent.
    IpAddr::V4(Ipv4Addr::new(169, 254, 0, 23)),
];

// === impl Class ===

impl Class {
    /// The class of exactly this address; see `readings` for those that it carries.
    pub fn of(address: IpAddr) -> Self {
        if METADATA.contains(&address) {
            return Self::Metadata;
        }
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    /// The class as part of a sentence.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Public => "a public address",
            Self::Private => "a private address",
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::Metadata => "a metadata address",
            Self::Reserved => "a reserved address",
        }
    }

    /// By <https://www.iana.org/assignments/iana-ipv4-special-registry>.
    const fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            // Linux takes 0.0.0.0 for this machine.
            [0 | 127, ..] => Self::Loopback,
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Self::Private,
            [169, 254, ..] | [224..=239, ..] | [255, 255, 255, 255] => Self::LinkLocal,
            [192, 0, 0 | 2, _]
            | [192, 88, 99, _]
            | [198, 18 | 19, ..]
            | [198, 51, 100, _]
            | [203, 0, 113, _]
            | [240..=255, ..] => Self::Reserved,
            _ => Self::Public,
        }
    }

    /// By <https://www.iana.org/assignments/iana-ipv6-special-registry>.
    const fn of_v6(address: Ipv6Addr) -> Self {
        match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Self::Loopback,
            // The network's own NAT64.
            [0x64, 0xff9b, 1, ..] | [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Self::Private,
            [0xfe80..=0xfebf | 0xff00..=0xffff, ..] => Self::LinkLocal,
            // Protocols (Teredo, ORCHID, benchmarks), documentation, 6to4.
            [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] | [0x2002, ..] => {
                Self::Reserved
            }
            // Of NAT64, the address that is carried counts.
            [0x64, 0xff9b, 0, 0, 0, 0, _, _] | [0x2000..=0x3fff, ..] => Self::Public,
            _ => Self::Reserved,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::Metadata => "metadata",
            Self::Reserved => "reserved",
        })
    }
}

/// An address, and the IPv4 addresses that it carries if it is one of those that a router or the system may turn into IPv4.
pub(super) fn readings(address: IpAddr) -> impl Iterator<Item = IpAddr> {
    let carried = match address {
        IpAddr::V4(_) => [None; 4],
        IpAddr::V6(address) => carried(address),
    };
    let carried = carried.into_iter().flatten().map(IpAddr::V4);
    std::iter::once(address).chain(carried)
}

/// The IPv4 addresses within an IPv6 address.
fn carried(address: Ipv6Addr) -> [Option<Ipv4Addr>; 4] {
    let octets = address.octets();
    let at = |place: [usize; 4]| Some(Ipv4Addr::from(place.map(|index| octets[index])));
    let end = at([12, 13, 14, 15]);
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => [None; 4],
        // NAT64 of the network's own (RFC 8215), in any of the lengths of RFC 6052 that fit: an octet in the middle stays out.
        [0x64, 0xff9b, 1, ..] => [
            end,
            at([6, 7, 9, 10]),
            at([7, 9, 10, 11]),
            at([9, 10, 11, 12]),
        ],
        // 6to4 (RFC 3056).
        [0x2002, ..] => [at([2, 3, 4, 5]), None, None, None],
        // Teredo (RFC 4380): its server, and its client with every bit turned.
        [0x2001, 0, ..] => [
            at([4, 5, 6, 7]),
            end.map(|client| Ipv4Addr::from_bits(!client.to_bits())),
            None,
            None,
        ],
        // Mapped, compatible (RFC 4291) and translated (RFC 2765), NAT64 (RFC 6052), and ISATAP (RFC 5214) in any prefix.
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _]
        | [0, 0, 0, 0, 0xffff, 0, _, _]
        | [0x64, 0xff9b, 0, 0, 0, 0, _, _]
        | [_, _, _, _, 0 | 0x200, 0x5efe, _, _] => [end, None, None, None],
        _ => [None; 4],
    }
}

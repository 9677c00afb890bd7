//! Which addresses may be connected to. Pure; the connector asks it for every address that it dials,
//! so neither a name nor a redirect leads around it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Where an address lies, as seen from the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// On the internet.
    Public,
    /// This host or a private network.
    Inner,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn v6(bits: u128, prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), prefix))
}

const LINK_LOCAL: &str = "it is link-local, where cloud metadata is served";
const METADATA: &str = "it is a cloud's metadata address";
const UNSPECIFIED: &str = "it is the unspecified network";
const MANY: &str = "it is a multicast or broadcast address";
const CONFIGURED: &str = "it is in the configured blocked_cidrs";
const INWARD: &str = "a public server led to this private address";

/// Never connected to, whoever asks.
const BLOCKED: &[(IpNet, &str)] = &[
    (v4(169, 254, 0, 0, 16), LINK_LOCAL),
    (v6(0xfe80 << 112, 10), LINK_LOCAL),
    (v4(100, 100, 100, 200, 32), METADATA),           // Alibaba Cloud
    (v4(168, 63, 129, 16, 32), METADATA),             // Azure's wire server
    (v4(192, 0, 0, 192, 32), METADATA),               // Oracle Cloud, classic
    (v6(0xfd00_0ec2 << 96, 32), METADATA),            // AWS
    (v6((0xfd20_00ce << 96) | 0x254, 128), METADATA), // Google Cloud
    (v6((0xfd00_0042 << 96) | 0x42, 128), METADATA),  // Scaleway
    (v4(0, 0, 0, 0, 8), UNSPECIFIED),
    (v6(0, 128), UNSPECIFIED),
    (v4(224, 0, 0, 0, 4), MANY),
    (v4(255, 255, 255, 255, 32), MANY),
    (v6(0xff << 120, 8), MANY),
];

const INNER: &[IpNet] = &[
    v4(127, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(172, 16, 0, 0, 12),
    v4(192, 168, 0, 0, 16),
    v4(100, 64, 0, 0, 10),
    // For benchmarks, and reserved: some give them to their pods.
    v4(198, 18, 0, 0, 15),
    v4(240, 0, 0, 0, 4),
    v6(1, 128),
    v6(0xfc << 120, 7),
    v6(0xfec0 << 112, 10),
    // A network's own NAT64 (RFC 8215): what it leads to, only that network knows.
    v6(0x0064_ff9b_0001 << 80, 48),
];

/// The built-in rules and the configured ones.
#[derive(Debug, Clone, Default)]
pub(super) struct AddressPolicy {
    blocked: Vec<IpNet>,
}

impl AddressPolicy {
    pub(super) fn new(blocked: Vec<IpNet>) -> Self {
        Self { blocked }
    }

    /// Where the address lies, or why it must not be dialled. `from`: where the server lies that led
    /// here by a redirect or as a token server; none where the user named the host.
    pub(super) fn check(&self, address: IpAddr, from: Option<Reach>) -> Result<Reach, &'static str> {
        let mut reach = Reach::Public;
        for address in [Some(address), embedded(address)].into_iter().flatten() {
            if let Some((_, reason)) = BLOCKED.iter().find(|(net, _)| net.contains(&address)) {
                return Err(reason);
            }
            if self.blocked.iter().any(|net| net.contains(&address)) {
                return Err(CONFIGURED);
            }
            if INNER.iter().any(|net| net.contains(&address)) {
                reach = Reach::Inner;
            }
        }
        match (from, reach) {
            (Some(Reach::Public), Reach::Inner) => Err(INWARD),
            _ => Ok(reach),
        }
    }
}

/// The IPv4 address that an IPv6 one stands for: mapped (RFC 4291), compatible (the same, obsolete),
/// translated (RFC 2765, obsolete), NAT64 (RFC 6052, and with a network's own prefix of RFC 8215) and 6to4
/// (RFC 3056).
fn embedded(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(address) = address else { return None };
    if address.is_loopback() || address.is_unspecified() {
        return None;
    }
    let low = |shift: u32| Some(IpAddr::V4(Ipv4Addr::from_bits((address.to_bits() >> shift) as u32)));
    match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _]
        | [0, 0, 0, 0, 0xffff, 0, _, _]
        | [0x64, 0xff9b, 0 | 1, 0, 0, 0, _, _] => low(0),
        [0x2002, ..] => low(80),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str, from: Option<Reach>) -> Result<Reach, &'static str> {
        AddressPolicy::new(vec!["198.51.100.0/24".parse().unwrap()]).check(address.parse().unwrap(), from)
    }

    #[test]
    fn metadata_and_its_disguises_are_blocked_for_everybody() {
        for address in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "::ffff:0:169.254.169.254",
            "2002:a9fe:a9fe::1",
            "fe80::1",
            "febf::1",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "fd00:42::42",
            "fd00:ec2::254",
            "fd20:ce::254",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "ff02::1",
            "198.51.100.7",
            "::ffff:198.51.100.7",
        ] {
            for from in [None, Some(Reach::Inner), Some(Reach::Public)] {
                assert!(check(address, from).is_err(), "{address} {from:?}");
            }
        }
    }

    #[test]
    fn only_a_public_server_is_kept_from_leading_inward() {
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.0.1",
            "100.64.0.1",
            "198.19.255.1",
            "240.0.0.1",
            "fd12::1",
            "64:ff9b:1::1.1.1.1",
            "64:ff9b:1:a9fe:a9:fe00::",
            "64:ff9b::10.0.0.1",
        ] {
            assert_eq!(check(address, None), Ok(Reach::Inner), "{address}");
            assert_eq!(check(address, Some(Reach::Inner)), Ok(Reach::Inner), "{address}");
            assert_eq!(check(address, Some(Reach::Public)), Err(INWARD), "{address}");
        }
        for address in [
            "203.0.113.1",
            "198.20.0.1",
            "192.0.0.1",
            "64:ff9b::1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "2001:db8::1",
            "169.253.1.1",
            "1.1.1.1",
        ] {
            for from in [None, Some(Reach::Inner), Some(Reach::Public)] {
                assert_eq!(check(address, from), Ok(Reach::Public), "{address}");
            }
        }
    }
}

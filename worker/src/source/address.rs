//! Which addresses a source may be fetched from.
//!
//! A client chooses the URL and the worker sits inside a cluster: without this, a job is a way to read the cloud's
//! metadata service, the neighbours' admin ports and everything on loopback. What is not plainly public is refused;
//! an operator can allow networks by name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Networks that are allowed although they are not public.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    networks: Vec<IpNet>,
    nothing_else: bool,
}

/// An address that must not be connected to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{address} is refused: {reason}")]
pub struct Refused {
    /// Which.
    pub address: IpAddr,
    /// What kind of address it is.
    pub reason: &'static str,
}

impl Allowed {
    /// These networks, besides the public ones.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self { networks, nothing_else: false }
    }

    /// These networks, and not even the public ones.
    pub fn only(networks: Vec<IpNet>) -> Self {
        Self { networks, nothing_else: true }
    }

    /// Whether the address may be connected to.
    ///
    /// # Errors
    /// With the reason why not.
    pub fn check(&self, address: IpAddr) -> Result<(), Refused> {
        // An IPv4 address in IPv6 clothes is that IPv4 address, for the list as well.
        let plain = embedded(address).map_or(address, IpAddr::V4);
        if self.networks.iter().any(|network| network.contains(&plain) || network.contains(&address)) {
            return Ok(());
        }
        match reason(plain) {
            Some(reason) => Err(Refused { address, reason }),
            None if self.nothing_else => Err(Refused { address, reason: "public" }),
            None => Ok(()),
        }
    }
}

/// The IPv4 address inside an IPv4-mapped (`::ffff:0:0/96`) or NAT64 (`64:ff9b::/96`) one: those two lead to it.
fn embedded(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = address else { return None };
    let [a, b, c, d, e, f, high, low] = v6.segments();
    let leads = matches!([a, b, c, d, e, f], [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0]);
    leads.then(|| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
}

fn reason(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => reason_v4(v4),
        IpAddr::V6(v6) => reason_v6(v6),
    }
}

/// The IANA registry of special-purpose IPv4 addresses, and what clouds added.
fn reason_v4(v4: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, d] = v4.octets();
    Some(match (a, b, c, d) {
        (169, 254, 169, 254) | (100, 100, 100, 200) | (168, 63, 129, 16) | (192, 0, 0, 192) => {
            "a metadata service"
        }
        (0, ..) => "unspecified",
        (10, ..) | (172, 16..=31, ..) | (192, 168, ..) => "private",
        (127, ..) => "loopback",
        (169, 254, ..) => "link-local",
        (100, 64..=127, ..) => "shared (carrier-grade NAT)",
        (192, 0, 0, _) | (192, 88, 99, _) => "reserved for protocols",
        (192, 0, 2, _) | (198, 51, 100, _) | (203, 0, 113, _) => "for documentation",
        (198, 18 | 19, ..) => "for benchmarks",
        (224..=239, ..) => "multicast",
        (240..=255, ..) => "reserved",
        _ => return None,
    })
}

/// Only 2000::/3 is public, and not all of that.
fn reason_v6(v6: Ipv6Addr) -> Option<&'static str> {
    let segments = v6.segments();
    Some(match segments {
        [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254] => "a metadata service",
        [0, 0, 0, 0, 0, 0, 0, 0] => "unspecified",
        [0, 0, 0, 0, 0, 0, 0, 1] => "loopback",
        [0xfc00..=0xfdff, ..] => "private",
        [0xfe80..=0xfebf, ..] => "link-local",
        [0xfec0..=0xfeff, ..] => "site-local",
        [0xff00..=0xffff, ..] => "multicast",
        [0x2001, 0x0db8, ..] | [0x3fff, 0x0000..=0x0fff, ..] => "for documentation",
        [0x2001, 0x0000..=0x01ff, ..] => "reserved for protocols",
        [0x2002, ..] => "6to4, which hides another address",
        [0x2000..=0x3fff, ..] => return None,
        _ => "not public",
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_public_addresses_pass() {
        let none = Allowed::default();
        for refused in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "169.254.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "168.63.129.16",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.1.2.3",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "100::1",
            "5f00::1",
        ] {
            let address: IpAddr = refused.parse().unwrap();
            assert!(none.check(address).is_err(), "{refused}");
        }
        for public in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.169.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ] {
            let address: IpAddr = public.parse().unwrap();
            assert_eq!(none.check(address), Ok(()), "{public}");
        }
    }

    #[test]
    fn an_operator_allows_networks() {
        let allowed = Allowed::new(vec!["127.0.0.0/8".parse().unwrap(), "fd00:1::/32".parse().unwrap()]);
        for (address, passes) in [
            ("127.0.0.1", true),
            ("::ffff:127.0.0.1", true),
            ("10.0.0.1", false),
            ("::1", false),
            ("fd00:1::5", true),
            ("fd00:2::5", false),
        ] {
            assert_eq!(allowed.check(address.parse().unwrap()).is_ok(), passes, "{address}");
        }
    }

    proptest! {
        #[test]
        fn clothes_do_not_matter(bits in any::<u32>()) {
            let plain = Ipv4Addr::from(bits);
            let none = Allowed::default();
            let mapped = none.check(IpAddr::V6(plain.to_ipv6_mapped())).is_ok();
            prop_assert_eq!(none.check(IpAddr::V4(plain)).is_ok(), mapped);
        }
    }
}

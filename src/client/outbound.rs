//! Where a provider's token requests may go, and whom they trust there.
//!
//! A client's `token_url` comes from the table, so whoever writes to the table chooses where this process connects to,
//! from inside the operator's network. So nothing but public addresses is reached unless the provider's profile names
//! the network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

const fn v4(a: u8, b: u8, c: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), prefix)
}

const fn v6(a: u16, b: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

/// IPv4 networks that are not globally reachable (IANA IPv4 Special-Purpose Address Registry, RFC 6890), and multicast.
const SPECIAL_V4: [Ipv4Net; 15] = [
    v4(0, 0, 0, 8),
    v4(10, 0, 0, 8),
    v4(100, 64, 0, 10),
    v4(127, 0, 0, 8),
    v4(169, 254, 0, 16),
    v4(172, 16, 0, 12),
    v4(192, 0, 0, 24),
    v4(192, 0, 2, 24),
    v4(192, 88, 99, 24),
    v4(192, 168, 0, 16),
    v4(198, 18, 0, 15),
    v4(198, 51, 100, 24),
    v4(203, 0, 113, 24),
    v4(224, 0, 0, 4),
    v4(240, 0, 0, 4),
];
/// All of IPv6 that is public lies in here (RFC 4291 section 2.4) ...
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 3);
/// ... but for these: protocol assignments with Teredo among them, 6to4, documentation.
const SPECIAL_V6: [Ipv6Net; 4] =
    [v6(0x2001, 0, 23), v6(0x2001, 0xdb8, 32), v6(0x2002, 0, 16), v6(0x3fff, 0, 20)];
/// The well-known prefix of NAT64 (RFC 6052): where there is no IPv4, every IPv4 host is found under it.
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 96);

/// What a provider's profile says of where its requests go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Outbound {
    /// Networks that are allowed though they are not public.
    pub networks: Vec<IpNet>,
    /// Whether this machine's own loopback is allowed: the development profile.
    pub loopback: bool,
    /// A PEM file with the only authorities that are trusted, in place of the platform's.
    pub ca_file: Option<PathBuf>,
    /// Keys one of which the server must have; none leaves it to the authorities.
    pub pins: Vec<Pin>,
}

impl Outbound {
    /// Whether a connection to this address may be opened.
    pub fn admits(&self, address: IpAddr) -> bool {
        let reached = reached(address);
        let named = |network: &IpNet| network.contains(&reached) || network.contains(&address);
        is_public(reached) || self.loopback && reached.is_loopback() || self.networks.iter().any(named)
    }

    /// Whether the URL may be tried at all, as far as its host's spelling tells. What a name leads to is told by
    /// [`Outbound::admits`].
    pub fn admits_spelling(&self, url: &Url) -> bool {
        match url.host() {
            Some(Host::Ipv4(address)) => self.admits(address.into()),
            Some(Host::Ipv6(address)) => self.admits(address.into()),
            Some(Host::Domain(name)) => !is_localhost(name) || self.admits(Ipv4Addr::LOCALHOST.into()),
            None => false,
        }
    }
}

/// RFC 6761 section 6.3: `localhost` and whatever ends in it is this machine.
fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// Whom packets to this address reach in the end: some IPv6 addresses stand for an IPv4 address.
fn reached(address: IpAddr) -> IpAddr {
    let IpAddr::V6(own) = address else { return address };
    let [.., a, b, c, d] = own.octets();
    match own.segments() {
        _ if own.to_ipv4_mapped().is_some() || NAT64.contains(&own) => Ipv4Addr::new(a, b, c, d).into(),
        // 6to4, RFC 3056.
        [0x2002, high, low, ..] => Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)).into(),
        _ => address,
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) => {
            GLOBAL_V6.contains(&address) && !SPECIAL_V6.iter().any(|network| network.contains(&address))
        }
    }
}

/// A network that a profile allows by name, in CIDR notation.
///
/// # Errors
/// Says what is wrong: not a network, or one so wide that it names nothing.
pub fn network(text: &str) -> Result<IpNet, &'static str> {
    let network = text.parse::<IpNet>().map_err(|_| "is not a network in CIDR notation")?;
    let narrowest = if network.addr().is_ipv4() { 8 } else { 7 };
    if network.prefix_len() < narrowest {
        return Err("is wider than any private network");
    }
    Ok(network.trunc())
}

/// The SHA-256 of a server's public key (its SubjectPublicKeyInfo, as in RFC 7469 section 2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pin(pub [u8; 32]);

/// Text that is no [`Pin`].
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("is not the base64 of a SHA-256")]
pub struct InvalidPin;

impl FromStr for Pin {
    type Err = InvalidPin;

    fn from_str(text: &str) -> Result<Self, InvalidPin> {
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_err(|_| InvalidPin)?;
        Ok(Self(bytes.try_into().map_err(|_| InvalidPin)?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    const REFUSED: &str = "\
        0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.9.9.9 \
        169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.8 192.0.2.1 192.168.1.1 \
        198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 :: ::1 \
        ::127.0.0.1 ::8.8.8.8 fd00:ec2::254 fc00::1 fe80::1 fec0::1 ff02::1 2001::1 2001:db8::1 3fff::1 \
        100::1 64:ff9b:1::808:808 5f00::1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:127.0.0.1 \
        64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 2002:7f00:1:: 2002:a9fe:a9fe::1";
    const PUBLIC: &str = "\
        1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 169.253.255.255 172.15.255.255 \
        172.32.0.0 192.0.1.0 223.255.255.255 2606:4700::1111 2a00::1 ::ffff:1.1.1.1 64:ff9b::8.8.8.8 \
        2002:808:808::1";

    #[test]
    fn what_is_not_public_is_not_reached() {
        let nothing_named = Outbound::default();
        for refused in REFUSED.split_whitespace() {
            assert!(!nothing_named.admits(address(refused)), "{refused}");
        }
        for public in PUBLIC.split_whitespace() {
            assert!(nothing_named.admits(address(public)), "{public}");
        }
    }

    #[test]
    fn what_a_profile_names_is_reached_and_nothing_beside_it() {
        let networks = vec![network("10.1.0.0/16").expect("fits"), network("fd00:1::/32").expect("fits")];
        let named = Outbound { networks, ..Outbound::default() };
        for reached in ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "fd00:1::9", "1.1.1.1"] {
            assert!(named.admits(address(reached)), "{reached}");
        }
        for refused in ["10.2.0.1", "::ffff:10.2.0.1", "fd00:2::1", "127.0.0.1", "169.254.169.254"] {
            assert!(!named.admits(address(refused)), "{refused}");
        }
    }

    #[test]
    fn loopback_is_reached_where_it_is_allowed() {
        let development = Outbound { loopback: true, ..Outbound::default() };
        for reached in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(development.admits(address(reached)), "{reached}");
        }
        assert!(!development.admits(address("10.0.0.1")) && !development.admits(address("0.0.0.0")));
    }

    /// The spelling is the URL standard's affair: it reads numbers as browsers do.
    #[test]
    fn hosts_that_are_addresses_are_judged_however_they_are_spelt() {
        let admits = |url: &str| Outbound::default().admits_spelling(&Url::parse(url).expect("a url"));
        for refused in [
            "https://127.0.0.1/",
            "https://127.1/",
            "https://2130706433/",
            "https://0x7f.0.0.1/",
            "https://0251.0376.0251.0376/",
            "https://169.254.169.254./",
            "https://[::1]/",
            "https://[::ffff:169.254.169.254]/",
            "https://localhost/",
            "https://LOCALHOST./",
            "https://a.localhost/",
            "https://①②⑦.0.0.1/",
        ] {
            assert!(!admits(refused), "{refused}");
        }
        for public in ["https://1.1.1.1/", "https://acme.test/", "https://localhost.acme.test/"] {
            assert!(admits(public), "{public}");
        }
    }

    #[test]
    fn a_network_is_named_in_cidr_notation_and_not_too_wide() {
        assert_eq!(network("10.1.2.3/16"), Ok("10.1.0.0/16".parse().expect("a network")));
        assert!(network("fc00::/7").is_ok() && network("169.254.170.2/32").is_ok());
        for bad in ["", "10.0.0.1", "10.0.0.0/33", "acme.test", "0.0.0.0/0", "10.0.0.0/7", "::/0"] {
            assert!(network(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pin_is_the_base64_of_32_bytes() {
        let good = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        assert_eq!(good.parse(), Ok(Pin([0; 32])));
        for bad in ["", "AAAA", &good[1..], "sha256/AAAA"] {
            assert_eq!(bad.parse::<Pin>(), Err(InvalidPin), "{bad}");
        }
    }

    proptest! {
        /// No way of writing an IPv4 address as an IPv6 one reaches what the IPv4 address itself does not.
        #[test]
        fn an_embedded_address_is_judged_like_itself(bits: u32, tail: u64) {
            let own = Ipv4Addr::from(bits);
            let [a, b, c, d] = own.octets().map(u128::from);
            let low = (a << 24) | (b << 16) | (c << 8) | d;
            let embedded = [
                own.to_ipv6_mapped(),
                Ipv6Addr::from((0x0064_ff9b_u128 << 96) | low),
                Ipv6Addr::from((0x2002_u128 << 112) | (low << 80) | u128::from(tail)),
            ];
            let loopback = Outbound { loopback: true, ..Outbound::default() };
            for outbound in [Outbound::default(), loopback] {
                for address in embedded {
                    prop_assert_eq!(outbound.admits(address.into()), outbound.admits(own.into()), "{}", address);
                }
            }
        }

        /// Against the standard library's own notion of each class.
        #[test]
        fn no_private_class_is_reached(bits: u32, wide: u128) {
            let (four, six) = (Ipv4Addr::from(bits), Ipv6Addr::from(wide));
            let private = four.is_private() || four.is_loopback() || four.is_link_local() || four.is_multicast()
                || four.is_broadcast() || four.is_unspecified() || four.is_documentation();
            prop_assert!(!(private && Outbound::default().admits(four.into())), "{}", four);
            let private = six.is_loopback() || six.is_multicast() || six.is_unspecified()
                || six.is_unique_local() || six.is_unicast_link_local();
            prop_assert!(!(private && Outbound::default().admits(six.into())), "{}", six);
        }
    }
}

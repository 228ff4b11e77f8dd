//! What is reached by `portcullis access`: anything that speaks TCP or UDP.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::Host;

/// What a private application is beside what every application is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Private {
    pub protocol: Protocol,
    pub target: Target,
    /// The connector that dials the target. There is always one: the node itself never does.
    pub connector: String,
    /// The host on which the node speaks the WebSocket wire of `cloudflared access`. Only where the target is a
    /// single one and the protocol runs over TCP.
    pub host: Option<Host>,
    /// Only of an application of type `ssh`.
    pub ssh: Option<SshSettings>,
}

/// What is spoken with a private application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Ssh,
    Rdp,
}

impl Protocol {
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Udp, Self::Ssh, Self::Rdp];

    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Ssh => "ssh",
            Self::Rdp => "rdp",
        }
    }

    /// Datagrams rather than connections.
    pub const fn is_datagrams(self) -> bool {
        match self {
            Self::Udp => true,
            Self::Tcp | Self::Ssh | Self::Rdp => false,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a private application really is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Host or address, as the connector resolves it.
    Single { host: Host, port: u16 },
    /// The client names an address inside the prefix and one of the ports.
    Network { prefix: IpNet, ports: Ports },
}

impl Target {
    /// Whether the client may name this address and port: only of a network.
    pub fn has(&self, address: IpAddr, port: u16) -> bool {
        match self {
            Self::Single { .. } => false,
            Self::Network { prefix, ports } => prefix.contains(&address) && ports.contains(port),
        }
    }
}

/// A set of ports, none of them 0: ranges that neither overlap nor touch, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(Vec<RangeInclusive<u16>>);

/// The ranges are no set of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PortsError {
    #[error("there are no ports")]
    Empty,
    #[error("port 0 is no port")]
    Zero,
    #[error("a range ends before it begins")]
    Reversed,
}

impl Ports {
    pub fn new(ranges: impl IntoIterator<Item = RangeInclusive<u16>>) -> Result<Self, PortsError> {
        let mut ranges: Vec<_> = ranges.into_iter().collect();
        ranges.sort_by_key(|range| *range.start());
        let mut ports: Vec<RangeInclusive<u16>> = Vec::new();
        for range in ranges {
            if range.is_empty() {
                return Err(PortsError::Reversed);
            }
            if *range.start() == 0 {
                return Err(PortsError::Zero);
            }
            match ports.last_mut() {
                Some(last) if *range.start() <= last.end().saturating_add(1) => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => ports.push(range),
            }
        }
        if ports.is_empty() { Err(PortsError::Empty) } else { Ok(Self(ports)) }
    }

    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    pub fn ranges(&self) -> &[RangeInclusive<u16>] {
        &self.0
    }
}

/// `22, 8000-8100`.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            match (range.start(), range.end()) {
                (only, end) if only == end => write!(f, "{only}")?,
                (start, end) => write!(f, "{start}-{end}")?,
            }
        }
        Ok(())
    }
}

/// Who a person may be on the host of an application of type `ssh`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SshSettings {
    /// UNIX users that everybody who is let in may become.
    pub users: Vec<String>,
    /// Domains whose people may become the UNIX user named like the local part of their address.
    pub email_user_domains: Vec<String>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ports_are_joined_where_they_touch() {
        let ports = Ports::new([8000..=8100, 22..=22, 8050..=8200, 23..=23, 65535..=65535]).unwrap();
        assert_eq!(ports.to_string(), "22-23, 8000-8200, 65535");
        for (ranges, error) in [
            (vec![], PortsError::Empty),
            (vec![22..=22, 0..=5], PortsError::Zero),
            #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
            (vec![9..=5], PortsError::Reversed),
        ] {
            assert_eq!(Ports::new(ranges), Err(error));
        }
    }

    #[test]
    fn a_network_is_its_prefix_and_its_ports() {
        let target =
            Target::Network { prefix: "10.0.0.0/24".parse().unwrap(), ports: Ports::new([22..=22]).unwrap() };
        for (address, port, has) in
            [("10.0.0.9", 22, true), ("10.0.0.9", 23, false), ("10.0.1.9", 22, false), ("::1", 22, false)]
        {
            assert_eq!(target.has(address.parse().unwrap(), port), has, "{address}:{port}");
        }
    }

    proptest! {
        #[test]
        fn joining_changes_no_member(ranges in proptest::collection::vec((1u16.., 0u16..50), 1..8), port: u16) {
            let ranges: Vec<_> = ranges.into_iter().map(|(start, more)| start..=start.saturating_add(more)).collect();
            let expected = ranges.iter().any(|range| range.contains(&port));
            prop_assert_eq!(Ports::new(ranges).unwrap().contains(port), expected);
        }
    }
}

/// Declares an enum of reasons together with the list of all of them and their stable names.
macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[doc = $doc])+ $variant,)+ }

        impl $name {
            /// Every reason, in the order of its counter.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The stable name: label of the metric and field of the event.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// What it means, in one sentence or two.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    /// Why a packet was passed on to the kernel. Append only: the position is the counter's index.
    PassReason {
        /// ARP request or reply for IPv4 over Ethernet, within the budget.
        Arp = "arp",
        /// IPv6 neighbour discovery from the link itself, within the budget.
        NeighbourDiscovery = "neighbour_discovery",
        /// Multicast listener query from a link-local router, within the budget.
        ListenerQuery = "listener_query",
        /// An answer of a DHCP server to this host's client port, within the budget.
        Dhcp = "dhcp",
        /// Echo request, within the budget.
        EchoRequest = "echo_request",
        /// Reply to an echo request that this host sent.
        EchoReply = "echo_reply",
        /// ICMP error that quotes a packet of a known flow.
        IcmpError = "icmp_error",
        /// Opening of a connection to a served TCP port.
        TcpOpen = "tcp_open",
        /// TCP packet of a connection that this host has.
        TcpConnection = "tcp_connection",
        /// ACK that completes a handshake which the kernel answered with a SYN cookie.
        TcpCookie = "tcp_cookie",
        /// Opening of a connection from an administrator's prefix to the port it is listed with.
        AdminTcp = "admin_tcp",
        /// Datagram from an administrator's prefix to the UDP port it is listed with.
        AdminUdp = "admin_udp",
        /// Packet of an authenticated tunnel peer.
        Tunnel = "tunnel",
        /// Datagram that answers one this host sent.
        HostReply = "host_reply",
        /// Packet with a connection ID that the node minted, from an address that it has not authenticated
        /// yet, within the budget.
        TunnelUnproven = "tunnel_unproven",
        /// Opening of a tunnel connection, within the budget.
        TunnelOpen = "tunnel_open",
        /// Opening of a tunnel connection with the knock of an enrolled device.
        TunnelKnock = "tunnel_knock",
        /// Relay bind with a ticket that the node minted, within the budget.
        RelayBind = "relay_bind",
        /// Packet of an authorised session that the node relays by itself, through its own sockets.
        RelayHost = "relay_host",
    }
}

reasons! {
    /// Why a packet was dropped. Append only: the position is the counter's index.
    DropReason {
        /// The frame ends inside a header.
        Truncated = "truncated",
        /// Neither ARP nor IPv4 nor IPv6.
        EtherType = "ethertype",
        /// More than two VLAN tags.
        VlanDepth = "vlan_depth",
        /// ARP that is not a request or reply for IPv4 over Ethernet.
        ArpMalformed = "arp_malformed",
        /// ARP beyond the budget.
        ArpRate = "arp_rate",
        /// IPv4 version or header length is wrong.
        Ipv4Header = "ipv4_header",
        /// IPv6 version is wrong or an address is an IPv4-mapped one.
        Ipv6Header = "ipv6_header",
        /// The length in the IP header does not fit the frame or its own headers.
        IpLength = "ip_length",
        /// A fragment other than the first.
        Fragment = "fragment",
        /// Too many extension headers, in a forbidden place, or one that this host does not take.
        ExtensionHeader = "extension_header",
        /// A transport other than TCP, UDP and ICMP.
        Protocol = "protocol",
        /// TCP header length or combination of flags that no TCP sends.
        TcpHeader = "tcp_header",
        /// Opening of a connection to a port that is not served.
        TcpClosed = "tcp_closed",
        /// TCP packet of no connection that this host has.
        TcpNoConnection = "tcp_no_connection",
        /// TCP packet that only a listener would see, without a valid SYN cookie.
        TcpListener = "tcp_listener",
        /// UDP length does not fit the IP packet.
        UdpLength = "udp_length",
        /// Datagram to a port that is not served, which answers nothing.
        UdpUnsolicited = "udp_unsolicited",
        /// DHCP beyond the budget.
        DhcpRate = "dhcp_rate",
        /// A type of ICMP that this host does not take from the network.
        IcmpType = "icmp_type",
        /// ICMP error that does not quote a packet of a known flow.
        IcmpQuote = "icmp_quote",
        /// Echo request beyond the budget.
        EchoRate = "echo_rate",
        /// Echo reply to nothing that this host asked.
        EchoUnsolicited = "echo_unsolicited",
        /// Neighbour discovery or listener query that did not come from the link itself.
        NotOnLink = "not_on_link",
        /// Neighbour discovery or listener query beyond the budget.
        NeighbourRate = "neighbour_rate",
        /// Shorter than an Ethernet header.
        Runt = "runt",
        /// Longer than the largest IP packet, or one that says so by a jumbo payload.
        Giant = "giant",
        /// Opening of a TCP connection beyond the budgets.
        SynRate = "syn_rate",
        /// Datagram to the tunnel's port that none of its peers sends.
        TunnelForm = "tunnel_form",
        /// QUIC version that is not spoken. It gets no answer, so no version is negotiated.
        TunnelVersion = "tunnel_version",
        /// Connection ID or ticket that the node did not mint, or whose key has expired.
        TunnelId = "tunnel_id",
        /// Connection ID or ticket from an address that is not authenticated, beyond the budgets.
        TunnelRate = "tunnel_rate",
        /// Opening of a tunnel connection beyond the budgets.
        OpenerRate = "opener_rate",
        /// Opening without a valid knock, where the port is dark.
        Dark = "dark",
        /// Knock of a device that was revoked.
        DeviceRevoked = "device_revoked",
        /// Knock beyond the budgets.
        KnockRate = "knock_rate",
        /// Packet of a relayed session that was revoked.
        RelayRevoked = "relay_revoked",
        /// Packet of a relayed session that has expired.
        RelayExpired = "relay_expired",
        /// Relayed packet at the end of its time to live.
        RelayHopLimit = "relay_hop_limit",
        /// Relayed IPv6 datagram without a checksum (RFC 8200 §8.1).
        RelayChecksum = "relay_checksum",
        /// Relayed packet that is longer than the next link takes.
        RelayMtu = "relay_mtu",
        /// Relayed packet whose next hop is not known, or that could not be rewritten.
        RelayNoHop = "relay_no_hop",
    }
}

reasons! {
    /// How a packet of a relayed session was sent on.
    RelayReason {
        /// By the interface it came in by.
        Transmit = "relay_transmit",
        /// By another interface.
        Redirect = "relay_redirect",
    }
}

/// What becomes of a packet, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Pass(PassReason),
    Drop(DropReason),
    Relay(RelayReason),
}

/// Index of the first drop counter, and of the first relay counter. Each list may grow without moving a
/// counter of another.
const DROPS: u32 = 64;
const RELAYS: u32 = 120;

impl Verdict {
    /// Number of counters in the map: reasons in use and room for more.
    pub const COUNTERS: u32 = 2 * DROPS;

    /// Every verdict: passes, drops, relays.
    pub fn all() -> impl Iterator<Item = Self> {
        let passes = PassReason::ALL.iter().map(|reason| Self::Pass(*reason));
        let drops = DropReason::ALL.iter().map(|reason| Self::Drop(*reason));
        passes.chain(drops).chain(RelayReason::ALL.iter().map(|reason| Self::Relay(*reason)))
    }

    /// Index of this verdict's counter; always less than [`Self::COUNTERS`].
    #[inline(always)]
    pub const fn index(self) -> u32 {
        match self {
            Self::Pass(reason) => reason as u32,
            Self::Drop(reason) => DROPS + reason as u32,
            Self::Relay(reason) => RELAYS + reason as u32,
        }
    }

    /// The verdict whose counter is `index`.
    pub fn from_index(index: u32) -> Option<Self> {
        Self::all().find(|verdict| verdict.index() == index)
    }

    #[inline(always)]
    pub const fn is_pass(self) -> bool {
        Self::is_pass_index(self.index())
    }

    /// Whether the counter of that index is one of passed packets.
    #[inline(always)]
    pub const fn is_pass_index(index: u32) -> bool {
        index < DROPS
    }

    /// Whether the counter of that index is one of dropped packets.
    #[inline(always)]
    pub const fn is_drop_index(index: u32) -> bool {
        index >= DROPS && index < RELAYS
    }

    /// `pass`, `drop` or `relay`: the metric's other label.
    pub const fn action(self) -> &'static str {
        match self {
            Self::Pass(_) => "pass",
            Self::Drop(_) => "drop",
            Self::Relay(_) => "relay",
        }
    }

    /// The stable name of the reason.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Pass(reason) => reason.name(),
            Self::Drop(reason) => reason.name(),
            Self::Relay(reason) => reason.name(),
        }
    }

    /// What the reason means.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Pass(reason) => reason.meaning(),
            Self::Drop(reason) => reason.meaning(),
            Self::Relay(reason) => reason.meaning(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_distinct_and_within_the_map() {
        let mut seen = [false; Verdict::COUNTERS as usize];
        for verdict in Verdict::all() {
            let slot = &mut seen[verdict.index() as usize];
            assert!(!*slot, "{verdict:?} shares its counter");
            *slot = true;
            assert_eq!(Verdict::from_index(verdict.index()), Some(verdict));
        }
        assert_eq!(Verdict::from_index(63), None);
    }

    #[test]
    fn names_are_distinct_snake_case() {
        for verdict in Verdict::all() {
            let name = verdict.reason();
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{name}"
            );
            assert_eq!(Verdict::all().filter(|other| other.reason() == name).count(), 1, "{name}");
        }
    }
}

use crate::layout::{HOST_FLOW_NS, HostFlowKey, IPPROTO_TCP, IPPROTO_UDP, PortSet};
use crate::{
    Ack, Address, DropReason, Family, Flow, IcmpMeta, IpMeta, PacketMeta, PassReason, Quote, RateClass,
    TcpFlags, Transport, Verdict,
};

/// What the verdict depends on besides the packet: maps and sockets.
pub trait Lookup {
    /// Whether `set` holds `port`.
    fn in_port_set(&self, set: PortSet, port: u16) -> bool;
    /// Whether `remote` lies in an administrator's prefix listed with this protocol and local port.
    fn is_admin(&self, protocol: u8, port: u16, remote: Address) -> bool;
    /// The socket that the kernel would give a packet of `flow` to. With `ack`, a listener is also asked
    /// whether these numbers carry a SYN cookie of its own.
    fn tcp_socket(&self, flow: &Flow, ack: Option<Ack>) -> TcpSocket;
    /// Monotonic ns of the last packet that this host sent on the flow.
    fn host_flow(&self, key: &HostFlowKey) -> Option<u64>;
    /// Takes one packet's worth from a budget; `false` when it is used up.
    fn take(&self, class: RateClass, now: u64) -> bool;
}

/// Outcome of a socket lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpSocket {
    None,
    /// A socket in state LISTEN. The kernel's lookup falls back to it for any stray packet, so finding it
    /// proves nothing.
    Listener,
    /// A socket in state LISTEN which accepts the ACK as the answer to its SYN cookie.
    ListenerCookie,
    /// A socket in any other state: a connection, or one in the making.
    Connection,
}

/// [`parse`](crate::parse) followed by [`admit`].
#[inline(always)]
pub fn judge(packet: &Result<PacketMeta, DropReason>, lookup: &impl Lookup, now: u64) -> Verdict {
    match packet {
        Ok(packet) => admit(packet, lookup, now),
        Err(reason) => Verdict::Drop(*reason),
    }
}

/// Decides whether a packet from outside may reach the kernel. `now` is monotonic, in nanoseconds.
///
/// Whatever is not named passes nowhere: each arm ends in a drop with its own reason. A false pass shows
/// this host to strangers; a false drop cuts a working flow, so connections are judged by the kernel's own
/// sockets and not by a copy of them.
#[inline(always)]
pub fn admit(packet: &PacketMeta, lookup: &impl Lookup, now: u64) -> Verdict {
    match packet {
        PacketMeta::Arp => budget(lookup, RateClass::Arp, now, PassReason::Arp, DropReason::ArpRate),
        PacketMeta::Ip(ip) => match ip.transport {
            Transport::Tcp { source, destination, flags, ack } => {
                tcp(&flow(ip, source, destination), flags, ack, lookup)
            }
            Transport::Udp { source, destination } => udp(ip, &flow(ip, source, destination), lookup, now),
            Transport::Icmp(icmp) => self::icmp(ip, icmp, lookup, now),
        },
    }
}

/// The host flow that an outgoing packet opens or keeps, if answers to it are to pass.
///
/// TCP needs none, since the socket is asked. Ports that the node serves, or that an administrator may
/// reach, have none: there a stranger's datagram could make this host answer, and so write the map.
#[inline(always)]
pub fn tracks_reply(packet: &PacketMeta, lookup: &impl Lookup) -> Option<HostFlowKey> {
    let PacketMeta::Ip(ip) = packet else { return None };
    match ip.transport {
        Transport::Udp { source, destination } => {
            if lookup.in_port_set(PortSet::ServedUdp, source) || lookup.in_port_set(PortSet::AdminUdp, source)
            {
                return None;
            }
            Some(HostFlowKey::udp(&Flow {
                family: ip.family,
                local: ip.source,
                remote: ip.destination,
                local_port: source,
                remote_port: destination,
            }))
        }
        Transport::Icmp(IcmpMeta::EchoRequest { identifier }) => {
            Some(HostFlowKey::echo(ip.source, ip.destination, identifier))
        }
        Transport::Tcp { .. } | Transport::Icmp(_) => None,
    }
}

#[inline(always)]
fn flow(ip: &IpMeta, source: u16, destination: u16) -> Flow {
    Flow {
        family: ip.family,
        local: ip.destination,
        remote: ip.source,
        local_port: destination,
        remote_port: source,
    }
}

#[inline(always)]
fn tcp(flow: &Flow, flags: TcpFlags, ack: Ack, lookup: &impl Lookup) -> Verdict {
    if flags.is_open() {
        return match open_to(flow, lookup) {
            Some(pass) => Verdict::Pass(pass),
            None => Verdict::Drop(DropReason::TcpClosed),
        };
    }
    match lookup.tcp_socket(flow, if flags.is_bare_ack() { Some(ack) } else { None }) {
        TcpSocket::Connection => Verdict::Pass(PassReason::TcpConnection),
        // The kernel answers a SYN with a cookie only if the SYN passed; a port where none may pass keeps its
        // listener hidden even from a cookie that was minted before the gate was there.
        TcpSocket::ListenerCookie if open_to(flow, lookup).is_some() => Verdict::Pass(PassReason::TcpCookie),
        TcpSocket::ListenerCookie | TcpSocket::Listener => Verdict::Drop(DropReason::TcpListener),
        TcpSocket::None => Verdict::Drop(DropReason::TcpNoConnection),
    }
}

/// Whether the far end may open connections to the local port.
#[inline(always)]
fn open_to(flow: &Flow, lookup: &impl Lookup) -> Option<PassReason> {
    if lookup.in_port_set(PortSet::ServedTcp, flow.local_port) {
        Some(PassReason::TcpOpen)
    } else if lookup.is_admin(IPPROTO_TCP, flow.local_port, flow.remote) {
        Some(PassReason::AdminTcp)
    } else {
        None
    }
}

#[inline(always)]
fn udp(ip: &IpMeta, flow: &Flow, lookup: &impl Lookup, now: u64) -> Verdict {
    if lookup.in_port_set(PortSet::ServedUdp, flow.local_port) {
        return Verdict::Pass(PassReason::Tunnel);
    }
    if is_live(lookup.host_flow(&HostFlowKey::udp(flow)), now) {
        return Verdict::Pass(PassReason::HostReply);
    }
    if lookup.in_port_set(PortSet::AdminUdp, flow.local_port)
        && lookup.is_admin(IPPROTO_UDP, flow.local_port, flow.remote)
    {
        return Verdict::Pass(PassReason::AdminUdp);
    }
    if is_dhcp(ip, flow) {
        return budget(lookup, RateClass::Dhcp, now, PassReason::Dhcp, DropReason::DhcpRate);
    }
    Verdict::Drop(DropReason::UdpUnsolicited)
}

/// Server to client: ports 67 → 68 (RFC 2131 §4.1), or 547 → 546 from a link-local address (RFC 8415 §7).
#[inline(always)]
fn is_dhcp(ip: &IpMeta, flow: &Flow) -> bool {
    match ip.family {
        Family::V4 => flow.remote_port == 67 && flow.local_port == 68,
        Family::V6 => flow.remote_port == 547 && flow.local_port == 546 && ip.source.is_link_local_v6(),
    }
}

#[inline(always)]
fn icmp(ip: &IpMeta, icmp: IcmpMeta, lookup: &impl Lookup, now: u64) -> Verdict {
    match icmp {
        IcmpMeta::EchoRequest { .. } => {
            budget(lookup, RateClass::Echo, now, PassReason::EchoRequest, DropReason::EchoRate)
        }
        IcmpMeta::EchoReply { identifier } => {
            let key = HostFlowKey::echo(ip.destination, ip.source, identifier);
            if is_live(lookup.host_flow(&key), now) {
                Verdict::Pass(PassReason::EchoReply)
            } else {
                Verdict::Drop(DropReason::EchoUnsolicited)
            }
        }
        IcmpMeta::Error(quote) => {
            if is_known(&quote, lookup, now) {
                Verdict::Pass(PassReason::IcmpError)
            } else {
                Verdict::Drop(DropReason::IcmpQuote)
            }
        }
        // 255 proves that no router forwarded it (RFC 4861 §6.1.2, §7.1).
        IcmpMeta::NeighbourDiscovery if ip.hop_limit == 255 => budget(
            lookup,
            RateClass::Neighbour,
            now,
            PassReason::NeighbourDiscovery,
            DropReason::NeighbourRate,
        ),
        // A querier speaks from a link-local address with hop limit 1 (RFC 3810 §5.1.14).
        IcmpMeta::ListenerQuery if ip.hop_limit == 1 && ip.source.is_link_local_v6() => {
            budget(lookup, RateClass::Neighbour, now, PassReason::ListenerQuery, DropReason::NeighbourRate)
        }
        IcmpMeta::NeighbourDiscovery | IcmpMeta::ListenerQuery => Verdict::Drop(DropReason::NotOnLink),
    }
}

/// Whether this host has the flow of which the quoted packet is said to be.
#[inline(always)]
fn is_known(quote: &Quote, lookup: &impl Lookup, now: u64) -> bool {
    match quote {
        Quote::Tcp(flow) => lookup.tcp_socket(flow, None) == TcpSocket::Connection,
        Quote::Udp(flow) => is_live(lookup.host_flow(&HostFlowKey::udp(flow)), now),
        Quote::Echo { local, remote, identifier } => {
            is_live(lookup.host_flow(&HostFlowKey::echo(*local, *remote, *identifier)), now)
        }
    }
}

#[inline(always)]
fn is_live(last_sent: Option<u64>, now: u64) -> bool {
    last_sent.is_some_and(|at| now.saturating_sub(at) < HOST_FLOW_NS)
}

#[inline(always)]
fn budget(lookup: &impl Lookup, class: RateClass, now: u64, pass: PassReason, drop: DropReason) -> Verdict {
    if lookup.take(class, now) { Verdict::Pass(pass) } else { Verdict::Drop(drop) }
}

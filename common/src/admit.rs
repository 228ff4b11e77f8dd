use core::ops::Deref;

use crate::frame::{Frame, FrameMut};
use crate::layout::{
    CidKey, FlowEntry, HOST_FLOW_NS, Hop, HostFlowKey, IPPROTO_TCP, IPPROTO_UDP, PortSet, PortSets, Session,
    Settings,
};
use crate::relay;
use crate::{
    Ack, Address, DropReason, Family, Flow, IcmpMeta, IpMeta, PacketMeta, PassReason, Quote, RateClass,
    RelayReason, Span, TcpFlags, Transport, Verdict, parse, tunnel,
};

/// What the verdict depends on besides the packet: maps and sockets.
pub trait Lookup {
    /// A flow entry where it lies.
    type Entry: Deref<Target = FlowEntry>;
    /// A next hop where it lies.
    type Hop: Deref<Target = Hop>;

    /// Modes, clocks and secrets; `None` only if the map is not there at all.
    fn settings(&self) -> Option<Settings>;
    /// The sets that hold `port`.
    fn ports(&self, port: u16) -> PortSets;
    /// Whether `remote` lies in an administrator's prefix listed with this protocol and local port.
    fn is_admin(&self, protocol: u8, port: u16, remote: Address) -> bool;
    /// The socket that the kernel would give a packet of `flow` to. With `ack`, a listener is also asked
    /// whether these numbers carry a SYN cookie of its own.
    fn tcp_socket(&self, flow: &Flow, ack: Option<Ack>) -> TcpSocket;
    /// Monotonic ns of the last packet that this host sent on the flow.
    fn host_flow(&self, key: &HostFlowKey) -> Option<u64>;
    /// Takes one packet's worth from the bucket of that budget that `hash` falls into; `false` when it is
    /// used up.
    fn take(&self, class: RateClass, hash: u64, now: u64) -> bool;
    /// Whether somebody in the network of that hash has logged in recently.
    fn is_recent(&self, network_hash: u64) -> bool;
    /// A key of connection IDs; all zeroes if there is none in the slot.
    fn cid_key(&self, slot: u32) -> Option<CidKey>;
    /// Whether the device's knocks count no more.
    fn is_device_revoked(&self, device: u32) -> bool;
    /// Monotonic ns until which the far end counts as an authenticated tunnel peer.
    fn tunnel(&self, key: &HostFlowKey) -> Option<u64>;
    /// The entry of a relayed flow.
    fn flow(&self, flow: &Flow) -> Option<Self::Entry>;
    fn session(&self, index: u32) -> Option<Session>;
    fn identity_epoch(&self, index: u32) -> Option<u64>;
    fn hop(&self, index: u32) -> Option<Self::Hop>;
    /// Counts a packet of a session, of `length` bytes.
    fn count(&self, entry: &Self::Entry, length: u16);
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

/// What becomes of a packet, before anything is done to it.
pub enum Admission<E> {
    Settled(Verdict),
    /// It belongs to an authorised session and goes on as the entry says, or to this host. The span is its UDP payload.
    Relay(E, Span),
}

/// A verdict that is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    /// Index of the interface that a relayed packet leaves by.
    pub egress: u32,
}

impl From<Verdict> for Outcome {
    #[inline(always)]
    fn from(verdict: Verdict) -> Self {
        Self { verdict, egress: 0 }
    }
}

/// All that the gate does to a frame that arrives by the interface `ingress`: [`parse`],
/// [`admit`] and, for a relayed packet, the rewrite. `now` is monotonic, in nanoseconds.
#[inline(always)]
pub fn process<F: FrameMut + ?Sized, L: Lookup>(
    frame: &mut F,
    lookup: &L,
    ingress: u32,
    now: u64,
) -> Outcome {
    let packet = match parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Drop(reason).into(),
    };
    let (entry, payload) = match admit(&packet, frame, lookup, now) {
        Admission::Settled(verdict) => return verdict.into(),
        Admission::Relay(entry, payload) => (entry, payload),
    };
    let PacketMeta::Ip(ip) = &packet else { return Verdict::Drop(DropReason::RelayNoHop).into() };
    if entry.is_to_host() {
        lookup.count(&entry, ip.packet.length);
        return Verdict::Pass(PassReason::RelayHost).into();
    }
    let Some(hop) = lookup.hop(entry.hop) else { return Verdict::Drop(DropReason::RelayNoHop).into() };
    if let Err(reason) = relay::forward(frame, ip, payload, &entry, &hop) {
        return Verdict::Drop(reason).into();
    }
    lookup.count(&entry, ip.packet.length);
    let reason = if hop.ifindex == ingress { RelayReason::Transmit } else { RelayReason::Redirect };
    Outcome { verdict: Verdict::Relay(reason), egress: hop.ifindex }
}

/// Decides whether a packet from outside may reach the kernel, or goes on to the other end of its session.
/// `now` is monotonic, in nanoseconds.
///
/// Whatever is not named passes nowhere: each arm ends in a drop with its own reason. A false pass shows
/// this host to strangers; a false drop cuts a working flow, so connections are judged by the kernel's own
/// sockets and not by a copy of them.
#[inline(always)]
pub fn admit<F: Frame + ?Sized, L: Lookup>(
    packet: &PacketMeta,
    frame: &F,
    lookup: &L,
    now: u64,
) -> Admission<L::Entry> {
    let ip = match packet {
        PacketMeta::Arp => {
            let verdict = budget(lookup, RateClass::Arp, now, PassReason::Arp, DropReason::ArpRate);
            return Admission::Settled(verdict);
        }
        PacketMeta::Ip(ip) => ip,
    };
    Admission::Settled(match ip.transport {
        Transport::Udp { source, destination, payload } => {
            let flow = flow(ip, source, destination);
            let sets = lookup.ports(destination);
            if sets.has(PortSet::ServedUdp) {
                return tunnel::admit(&flow, payload, frame, lookup, now);
            }
            udp(ip, &flow, sets, lookup, now)
        }
        Transport::Tcp { source, destination, flags, ack } => {
            tcp(&flow(ip, source, destination), flags, ack, lookup, now)
        }
        Transport::Icmp(icmp) => self::icmp(ip, icmp, lookup, now),
    })
}

/// The host flow that an outgoing packet opens or keeps, if answers to it are to pass.
///
/// TCP needs none, since the socket is asked. Ports that the node serves, or that an administrator may
/// reach, have none: there a stranger's datagram could make this host answer, and so write the map.
#[inline(always)]
pub fn tracks_reply(packet: &PacketMeta, lookup: &impl Lookup) -> Option<HostFlowKey> {
    let PacketMeta::Ip(ip) = packet else { return None };
    match ip.transport {
        Transport::Udp { source, destination, .. } => {
            let sets = lookup.ports(source);
            if sets.has(PortSet::ServedUdp) || sets.has(PortSet::AdminUdp) {
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
fn tcp(flow: &Flow, flags: TcpFlags, ack: Ack, lookup: &impl Lookup, now: u64) -> Verdict {
    if flags.is_open() {
        return match open_to(flow, lookup) {
            Some(pass) => opening(flow, pass, lookup, now),
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

/// An opening pays twice: from the bucket of its network, and from one for all. So neither one network nor
/// any number of forged ones takes the place of a network where somebody works, which pays from a budget of its
/// own.
#[inline(never)]
fn opening(flow: &Flow, pass: PassReason, lookup: &impl Lookup, now: u64) -> Verdict {
    let paid = match pass {
        PassReason::AdminTcp => lookup.take(RateClass::SynAdmin, 0, now),
        _ => {
            let classes = [RateClass::SynNetwork, RateClass::SynRecent, RateClass::Syn];
            pays_for_network(flow, classes, lookup, now)
        }
    };
    if paid { Verdict::Pass(pass) } else { Verdict::Drop(DropReason::SynRate) }
}

/// Budgets: of the network, of recent ones, of all.
#[inline(always)]
pub(crate) fn pays_for_network(
    flow: &Flow,
    [network, recent, all]: [RateClass; 3],
    lookup: &impl Lookup,
    now: u64,
) -> bool {
    let Some(settings) = lookup.settings() else { return false };
    let hash = settings.network_hash(flow.family, flow.remote);
    if !lookup.take(network, hash, now) {
        return false;
    }
    if lookup.is_recent(hash) && lookup.take(recent, 0, now) {
        return true;
    }
    lookup.take(all, 0, now)
}

/// Whether the far end may open connections to the local port.
#[inline(always)]
fn open_to(flow: &Flow, lookup: &impl Lookup) -> Option<PassReason> {
    let sets = lookup.ports(flow.local_port);
    if sets.has(PortSet::ServedTcp) {
        Some(PassReason::TcpOpen)
    } else if sets.has(PortSet::AdminTcp) && lookup.is_admin(IPPROTO_TCP, flow.local_port, flow.remote) {
        Some(PassReason::AdminTcp)
    } else {
        None
    }
}

#[inline(always)]
fn udp(ip: &IpMeta, flow: &Flow, sets: PortSets, lookup: &impl Lookup, now: u64) -> Verdict {
    if is_host_flow(flow, sets, lookup, now) {
        return Verdict::Pass(PassReason::HostReply);
    }
    if sets.has(PortSet::AdminUdp) && lookup.is_admin(IPPROTO_UDP, flow.local_port, flow.remote) {
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
        Quote::Udp(flow) => {
            let sets = lookup.ports(flow.local_port);
            if sets.has(PortSet::ServedUdp) {
                tunnel::is_peer(flow, lookup, now) || lookup.flow(flow).is_some()
            } else {
                is_host_flow(flow, sets, lookup, now)
            }
        }
        Quote::Echo { local, remote, identifier } => {
            is_live(lookup.host_flow(&HostFlowKey::echo(*local, *remote, *identifier)), now)
        }
    }
}

/// A bit tells most of a scan's ports from those that have a flow at all, for a tenth of what the look costs.
#[inline(always)]
fn is_host_flow(flow: &Flow, sets: PortSets, lookup: &impl Lookup, now: u64) -> bool {
    sets.has(PortSet::HostUdp) && is_live(lookup.host_flow(&HostFlowKey::udp(flow)), now)
}

#[inline(always)]
fn is_live(last_sent: Option<u64>, now: u64) -> bool {
    last_sent.is_some_and(|at| now.saturating_sub(at) < HOST_FLOW_NS)
}

#[inline(always)]
fn budget(lookup: &impl Lookup, class: RateClass, now: u64, pass: PassReason, drop: DropReason) -> Verdict {
    if lookup.take(class, 0, now) { Verdict::Pass(pass) } else { Verdict::Drop(drop) }
}

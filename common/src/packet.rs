use crate::frame::{Bytes, Frame};
use crate::layout::{IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP};
use crate::{Address, DropReason};

/// What the gate needs to know of a well-formed packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketMeta {
    Arp,
    Ip(IpMeta),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpMeta {
    pub family: Family,
    pub source: Address,
    pub destination: Address,
    /// Time to live or hop limit, as it arrived.
    pub hop_limit: u8,
    /// The IP packet within the frame, its header included.
    pub packet: Span,
    pub transport: Transport,
}

/// A part of a frame, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub at: u16,
    pub length: u16,
}

impl Span {
    /// Where it begins. Headers end long before the mask does; it gives the verifiers of older kernels the bound that
    /// they lose when a number goes through memory.
    #[inline(always)]
    pub(crate) const fn start(self) -> usize {
        (self.at & 0x1ff) as usize
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

/// Ports are in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp { source: u16, destination: u16, flags: TcpFlags, ack: Ack },
    Udp { source: u16, destination: u16, payload: Span },
    Icmp(IcmpMeta),
}

/// The flags octet of a TCP header (RFC 9293 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
    const CONTROL: u8 = Self::FIN | Self::SYN | Self::RST | Self::ACK;

    /// SYN alone: the opening of a connection.
    #[inline(always)]
    pub const fn is_open(self) -> bool {
        self.0 & Self::CONTROL == Self::SYN
    }

    /// ACK alone: the only packet that can complete a handshake.
    #[inline(always)]
    pub const fn is_bare_ack(self) -> bool {
        self.0 & Self::CONTROL == Self::ACK
    }

    /// SYN with FIN or RST: no TCP sends it.
    #[inline(always)]
    const fn is_contradiction(self) -> bool {
        self.0 & Self::SYN != 0 && self.0 & (Self::FIN | Self::RST) != 0
    }
}

/// Sequence and acknowledgement numbers, which a SYN cookie is made of; host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    pub sequence: u32,
    pub acknowledgement: u32,
}

/// The two ends of a packet, from this host's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub family: Family,
    pub local: Address,
    pub remote: Address,
    pub local_port: u16,
    pub remote_port: u16,
}

/// The messages of ICMP (RFC 792) and ICMPv6 (RFC 4443, 4861, 2710, 3810) that may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpMeta {
    EchoRequest { identifier: u16 },
    EchoReply { identifier: u16 },
    Error(Quote),
    NeighbourDiscovery,
    ListenerQuery,
}

/// The packet that an ICMP error quotes: one that this host is said to have sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quote {
    Tcp(Flow),
    Udp(Flow),
    Echo { local: Address, remote: Address, identifier: u16 },
}

const ETHERNET: usize = 14;
/// The largest IP packet, an IPv6 one without jumbo payload, behind two VLAN tags.
const MAX_FRAME: usize = ETHERNET + MAX_VLAN_TAGS * VLAN_TAG + IPV6_HEADER + 65_535;
const VLAN_TAG: usize = 4;
const MAX_VLAN_TAGS: usize = 2;
const MAX_EXTENSION_HEADERS: usize = 4;
/// Bytes of extension headers. Longer chains have no honest use here, and every read must stay within what
/// the BPF verifier can follow.
const MAX_EXTENSION_BYTES: usize = 240;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

const IPPROTO_HOPOPTS: u8 = 0;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_FRAGMENT: u8 = 44;
const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_DSTOPTS: u8 = 60;

/// Reads a frame up to what the verdict needs, or says what is wrong with it.
///
/// No header is read beyond what the IP header says the packet is: padding is not part of it.
/// Checksums are left to the kernel, which verifies them after the gate.
///
/// # Errors
///
/// The reason to drop the frame.
#[inline(always)]
pub fn parse<F: Frame + ?Sized>(frame: &F) -> Result<PacketMeta, DropReason> {
    if frame.length() > MAX_FRAME {
        return Err(DropReason::Giant);
    }
    let (ethertype, at) = link(frame)?;
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, at).map(PacketMeta::Ip),
        ETHERTYPE_IPV6 => ipv6(frame, at).map(PacketMeta::Ip),
        ETHERTYPE_ARP => arp(frame, at),
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => Err(DropReason::VlanDepth),
        _ => Err(DropReason::EtherType),
    }
}

/// Ethernet and VLAN tags: the type of what they carry, and where it begins.
#[inline(always)]
fn link<F: Frame + ?Sized>(frame: &F) -> Result<(u16, usize), DropReason> {
    let mut at = ETHERNET;
    let mut ethertype = frame.read::<2>(ETHERNET - 2).ok_or(DropReason::Runt)?.number::<0>();
    for _ in 0..MAX_VLAN_TAGS {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        ethertype = frame.read::<2>(at + 2).ok_or(DropReason::Truncated)?.number::<0>();
        at += VLAN_TAG;
    }
    Ok((ethertype, at))
}

/// RFC 826 for IPv4 over Ethernet.
#[inline(always)]
fn arp<F: Frame + ?Sized>(frame: &F, at: usize) -> Result<PacketMeta, DropReason> {
    const ADDRESSES: usize = 20;
    let head = frame.read::<8>(at).ok_or(DropReason::Truncated)?;
    frame.read::<ADDRESSES>(at + 8).ok_or(DropReason::Truncated)?;
    match head.array() {
        [0, 1, 0x08, 0, 6, 4, 0, 1 | 2] => Ok(PacketMeta::Arp),
        _ => Err(DropReason::ArpMalformed),
    }
}

/// The part of a frame that belongs to the IP packet.
struct Packet<'a, F: ?Sized> {
    frame: &'a F,
    end: usize,
}

impl<F: Frame + ?Sized> Packet<'_, F> {
    #[inline(always)]
    fn read<const N: usize>(&self, at: usize) -> Result<F::Bytes<N>, DropReason> {
        if at + N > self.end {
            return Err(DropReason::Truncated);
        }
        self.frame.read(at).ok_or(DropReason::Truncated)
    }

    #[inline(always)]
    fn rest(&self, at: usize) -> usize {
        self.end.saturating_sub(at)
    }
}

/// RFC 791.
#[inline(always)]
fn ipv4<F: Frame + ?Sized>(frame: &F, at: usize) -> Result<IpMeta, DropReason> {
    let head = frame.read::<20>(at).ok_or(DropReason::Truncated)?;
    let header = ipv4_header_length(head)?;
    let total = usize::from(head.number::<2>());
    if total < header || total > frame.length() - at {
        return Err(DropReason::IpLength);
    }
    if !ipv4_is_whole(head) {
        return Err(DropReason::Fragment);
    }
    let packet = Packet { frame, end: at + total };
    let (source, destination) = ipv4_addresses(head);
    let ends = Ends { family: Family::V4, source, destination };
    let transport = transport(packet, at + header, head.byte::<9>(), ends)?;
    let packet = span(at, total);
    Ok(IpMeta { family: Family::V4, source, destination, hop_limit: head.byte::<8>(), packet, transport })
}

#[inline(always)]
fn ipv4_header_length(head: impl Bytes<20>) -> Result<usize, DropReason> {
    let first = head.byte::<0>();
    let words = first & 0x0f;
    if first >> 4 != 4 || words < 5 {
        return Err(DropReason::Ipv4Header);
    }
    Ok(usize::from(words) * 4)
}

/// Neither a fragment nor the first of some: without the others, which carry no ports to judge, the first is
/// worth nothing.
#[inline(always)]
fn ipv4_is_whole(head: impl Bytes<20>) -> bool {
    head.half::<6>() & const { 0x3fff_u16.to_be() } == 0
}

#[inline(always)]
fn ipv4_is_first_fragment(head: impl Bytes<20>) -> bool {
    head.half::<6>() & const { 0x1fff_u16.to_be() } == 0
}

#[inline(always)]
fn ipv4_addresses(head: impl Bytes<20>) -> (Address, Address) {
    (Address::from_v4_word(head.word::<12>()), Address::from_v4_word(head.word::<16>()))
}

/// RFC 8200.
#[inline(always)]
fn ipv6<F: Frame + ?Sized>(frame: &F, at: usize) -> Result<IpMeta, DropReason> {
    let head = frame.read::<8>(at).ok_or(DropReason::Truncated)?;
    if head.byte::<0>() >> 4 != 6 {
        return Err(DropReason::Ipv6Header);
    }
    let ends = frame.read::<32>(at + 8).ok_or(DropReason::Truncated)?;
    let (source, destination) = ipv6_addresses(ends);
    if source.is_mapped() || destination.is_mapped() {
        return Err(DropReason::Ipv6Header);
    }
    let payload = usize::from(head.number::<4>());
    let first = head.byte::<6>();
    if payload == 0 && first == IPPROTO_HOPOPTS {
        // RFC 2675 §3: the length is in the option, since it does not fit.
        return Err(DropReason::Giant);
    }
    let total = IPV6_HEADER + payload;
    if total > frame.length() - at {
        return Err(DropReason::IpLength);
    }
    let packet = Packet { frame, end: at + total };
    let (protocol, transport_at) = extension_headers(&packet, at + IPV6_HEADER, first)?;
    let ends = Ends { family: Family::V6, source, destination };
    let transport = transport(packet, transport_at, protocol, ends)?;
    let packet = span(at, total);
    Ok(IpMeta { family: Family::V6, source, destination, hop_limit: head.byte::<7>(), packet, transport })
}

#[inline(always)]
fn ipv6_addresses(ends: impl Bytes<32>) -> (Address, Address) {
    let source = [ends.word::<0>(), ends.word::<4>(), ends.word::<8>(), ends.word::<12>()];
    let destination = [ends.word::<16>(), ends.word::<20>(), ends.word::<24>(), ends.word::<28>()];
    (Address::from_words(source), Address::from_words(destination))
}

const IPV6_HEADER: usize = 40;

/// Walks to the transport header. Routing headers are refused: they make this host a waypoint.
#[inline(always)]
fn extension_headers<F: Frame + ?Sized>(
    packet: &Packet<'_, F>,
    first_at: usize,
    first: u8,
) -> Result<(u8, usize), DropReason> {
    let (mut next, mut at) = (first, first_at);
    for walked in 0..MAX_EXTENSION_HEADERS {
        match next {
            IPPROTO_HOPOPTS if walked > 0 => return Err(DropReason::ExtensionHeader),
            IPPROTO_HOPOPTS | IPPROTO_DSTOPTS => {
                let [following, words] = packet.read::<2>(at)?.array();
                next = following;
                at += (usize::from(words) + 1) * 8;
            }
            IPPROTO_FRAGMENT => {
                let [following, _, offset_high, offset_low] = packet.read::<4>(at)?.array();
                // An offset of 0 and no more to come is a whole packet (RFC 6946).
                if offset_high != 0 || offset_low & 0xf9 != 0 {
                    return Err(DropReason::Fragment);
                }
                next = following;
                at += 8;
            }
            _ => break,
        }
        if at - first_at > MAX_EXTENSION_BYTES {
            return Err(DropReason::ExtensionHeader);
        }
    }
    match next {
        IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_FRAGMENT | IPPROTO_DSTOPTS => {
            Err(DropReason::ExtensionHeader)
        }
        _ => Ok((next, at)),
    }
}

#[derive(Clone, Copy)]
struct Ends {
    family: Family,
    source: Address,
    destination: Address,
}

#[inline(always)]
fn transport<F: Frame + ?Sized>(
    packet: Packet<'_, F>,
    at: usize,
    protocol: u8,
    ends: Ends,
) -> Result<Transport, DropReason> {
    match (protocol, ends.family) {
        (IPPROTO_TCP, _) => tcp(&packet, at),
        (IPPROTO_UDP, _) => udp(&packet, at),
        (IPPROTO_ICMP, Family::V4) => icmp(&packet, at, ends).map(Transport::Icmp),
        (IPPROTO_ICMPV6, Family::V6) => icmpv6(&packet, at, ends).map(Transport::Icmp),
        _ => Err(DropReason::Protocol),
    }
}

/// RFC 9293 §3.1.
#[inline(always)]
fn tcp<F: Frame + ?Sized>(packet: &Packet<'_, F>, at: usize) -> Result<Transport, DropReason> {
    let head = packet.read::<14>(at)?;
    let header = usize::from(head.byte::<12>() >> 4) * 4;
    let flags = TcpFlags(head.byte::<13>());
    if header < 20 || header > packet.rest(at) || flags.is_contradiction() {
        return Err(DropReason::TcpHeader);
    }
    let (source, destination) = (head.number::<0>(), head.number::<2>());
    let ack =
        Ack { sequence: u32::from_be(head.word::<4>()), acknowledgement: u32::from_be(head.word::<8>()) };
    Ok(Transport::Tcp { source, destination, flags, ack })
}

/// RFC 768.
#[inline(always)]
fn udp<F: Frame + ?Sized>(packet: &Packet<'_, F>, at: usize) -> Result<Transport, DropReason> {
    let head = packet.read::<8>(at)?;
    let length = usize::from(head.number::<4>());
    if length < 8 || length > packet.rest(at) {
        return Err(DropReason::UdpLength);
    }
    let (source, destination) = (head.number::<0>(), head.number::<2>());
    Ok(Transport::Udp { source, destination, payload: span(at + 8, length - 8) })
}

/// No header lies where sixteen bits do not reach. Only the whole of the longest IPv6 packets, by up to forty
/// bytes, is more than they count.
#[inline(always)]
fn span(at: usize, length: usize) -> Span {
    let length = if length > 0xffff { 0xffff } else { length };
    Span { at: at as u16, length: length as u16 }
}

const ICMP_HEADER: usize = 8;

/// RFC 792: echo, and the errors unreachable, time exceeded and parameter problem. Redirects are not
/// taken from the network.
#[inline(always)]
fn icmp<F: Frame + ?Sized>(packet: &Packet<'_, F>, at: usize, ends: Ends) -> Result<IcmpMeta, DropReason> {
    let head = packet.read::<ICMP_HEADER>(at)?;
    let identifier = head.number::<4>();
    match head.byte::<0>() {
        0 => Ok(IcmpMeta::EchoReply { identifier }),
        8 => Ok(IcmpMeta::EchoRequest { identifier }),
        3 | 11 | 12 => quoted_ipv4(packet, at + ICMP_HEADER, ends).map(IcmpMeta::Error),
        _ => Err(DropReason::IcmpType),
    }
}

/// RFC 4443 errors and echo, RFC 4861 advertisements and solicitations of neighbours and routers'
/// advertisements, RFC 2710 and 3810 queries. Redirects are not taken from the network.
#[inline(always)]
fn icmpv6<F: Frame + ?Sized>(packet: &Packet<'_, F>, at: usize, ends: Ends) -> Result<IcmpMeta, DropReason> {
    let head = packet.read::<ICMP_HEADER>(at)?;
    let identifier = head.number::<4>();
    match head.byte::<0>() {
        128 => Ok(IcmpMeta::EchoRequest { identifier }),
        129 => Ok(IcmpMeta::EchoReply { identifier }),
        1..=4 => quoted_ipv6(packet, at + ICMP_HEADER, ends).map(IcmpMeta::Error),
        130 => Ok(IcmpMeta::ListenerQuery),
        134..=136 => Ok(IcmpMeta::NeighbourDiscovery),
        _ => Err(DropReason::IcmpType),
    }
}

/// The quoted packet of an ICMP error: its header and at least eight bytes more. Its length field speaks
/// of the packet as it was, so only the quote's own bounds count.
#[inline(always)]
fn quoted_ipv4<F: Frame + ?Sized>(
    packet: &Packet<'_, F>,
    at: usize,
    outer: Ends,
) -> Result<Quote, DropReason> {
    let head = packet.read::<20>(at)?;
    let header = ipv4_header_length(head).map_err(|_| DropReason::IcmpQuote)?;
    if !ipv4_is_first_fragment(head) {
        return Err(DropReason::IcmpQuote);
    }
    let (source, destination) = ipv4_addresses(head);
    let ends = Ends { family: Family::V4, source, destination };
    quoted_transport(packet, at + header, head.byte::<9>(), ends, outer)
}

/// As [`quoted_ipv4`]; this host sends none of the flows in question with extension headers.
#[inline(always)]
fn quoted_ipv6<F: Frame + ?Sized>(
    packet: &Packet<'_, F>,
    at: usize,
    outer: Ends,
) -> Result<Quote, DropReason> {
    let head = packet.read::<8>(at)?;
    if head.byte::<0>() >> 4 != 6 {
        return Err(DropReason::IcmpQuote);
    }
    let (source, destination) = ipv6_addresses(packet.read::<32>(at + 8)?);
    let ends = Ends { family: Family::V6, source, destination };
    quoted_transport(packet, at + IPV6_HEADER, head.byte::<6>(), ends, outer)
}

/// What this host sent has this host as its source: `quoted.source` must be where the error went.
#[inline(always)]
fn quoted_transport<F: Frame + ?Sized>(
    packet: &Packet<'_, F>,
    at: usize,
    protocol: u8,
    quoted: Ends,
    outer: Ends,
) -> Result<Quote, DropReason> {
    if quoted.source != outer.destination {
        return Err(DropReason::IcmpQuote);
    }
    let head = packet.read::<8>(at)?;
    let (local_port, remote_port) = (head.number::<0>(), head.number::<2>());
    let (local, remote) = (quoted.source, quoted.destination);
    let flow = Flow { family: quoted.family, local, remote, local_port, remote_port };
    let identifier = head.number::<4>();
    match (protocol, quoted.family, head.byte::<0>()) {
        (IPPROTO_TCP, _, _) => Ok(Quote::Tcp(flow)),
        (IPPROTO_UDP, _, _) => Ok(Quote::Udp(flow)),
        (IPPROTO_ICMP, Family::V4, 8) | (IPPROTO_ICMPV6, Family::V6, 128) => {
            Ok(Quote::Echo { local, remote, identifier })
        }
        _ => Err(DropReason::IcmpQuote),
    }
}

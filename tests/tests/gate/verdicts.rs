//! Packets and verdicts, both written by hand. Since the kernel and the host share one function, agreement
//! alone would prove little: here each side must say what a person wrote down, for every reason.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use portcullis_common::layout::HostFlowKey;
use portcullis_common::{Address, DropReason, Family, Flow, PassReason, Verdict};
use portcullis_tests::gate::kernel::{Kernel, monotonic_ns};
use portcullis_tests::gate::model::Model;
use portcullis_tests::gate::packet::{self, ACK, FIN, ICMPV6, Path, RST, SYN, TCP, UDP};
use portcullis_tests::gate::quic;
use portcullis_tests::netns::Netns;
use socket2::{Domain, Socket, Type};

use crate::tunnel;

use DropReason as D;
use PassReason as P;

pub const HOST: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
pub const STRANGER: [&str; 2] = ["198.51.100.7", "2001:db8:bad::7"];
const ADMIN: [&str; 2] = ["203.0.113.9", "2001:db8:ad::9"];
const LINK_LOCAL: &str = "fe80::7";

pub struct Case {
    name: String,
    frame: Vec<u8>,
    expected: Verdict,
}

/// The namespace's own sockets and the model's are the same.
struct World {
    model: Model,
    /// Local port of a connection that the host opened to `STRANGER`'s port 5000, per family.
    opened: [u16; 2],
    _sockets: Vec<(TcpListener, TcpListener, TcpStream, TcpStream)>,
}

fn world(netns: &Netns) -> World {
    for address in HOST.iter().chain(&STRANGER) {
        let length = if address.contains(':') { 128 } else { 32 };
        netns.address("lo", &format!("{address}/{length}")).unwrap();
    }
    let mut model = Model::serving().with_keys().with_relay(STRANGER, HOST);
    model.revoked.insert(66);
    model.networks = STRANGER.iter().chain(&ADMIN).map(|address| address.parse().unwrap()).collect();
    let mut sockets = Vec::new();
    let mut opened = [0; 2];
    for (index, (host, stranger)) in HOST.iter().zip(STRANGER).enumerate() {
        let path = Path::new(stranger, host);
        let (https, ssh, far) =
            netns.enter(|| (bind(path.local, 443), bind(path.local, 22), bind(path.remote, 5000))).unwrap();
        let connection = netns.enter(|| connect_from(path.local, far.local_addr().unwrap())).unwrap();
        let (answering, _) = far.accept().unwrap();
        let (local, remote) = (connection.local_addr().unwrap(), connection.peer_addr().unwrap());
        opened[index] = local.port();
        model.listeners.extend([SocketAddr::new(path.local, 443), SocketAddr::new(path.local, 22)]);
        model.connections.insert((local, remote));
        let flow = Flow {
            family: if path.is_v4() { Family::V4 } else { Family::V6 },
            local: Address::from(path.local),
            remote: Address::from(path.remote),
            local_port: 40_000,
            remote_port: 53,
        };
        let now = monotonic_ns();
        model.host_flows.insert(HostFlowKey::udp(&flow), now);
        model.host_flows.insert(HostFlowKey::echo(flow.local, flow.remote, 77), now);
        let stale = Flow { remote_port: 54, ..flow };
        model.host_flows.insert(HostFlowKey::udp(&stale), now.saturating_sub(200_000_000_000).max(1));
        sockets.push((https, ssh, connection, answering));
        drop(far);
    }
    World { model, opened, _sockets: sockets }
}

fn bind(address: IpAddr, port: u16) -> TcpListener {
    TcpListener::bind((address, port)).unwrap()
}

/// Both ends are addresses of the namespace; left alone, the kernel would connect an address to itself.
fn connect_from(local: IpAddr, remote: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(remote), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(local, 0).into()).unwrap();
    socket.connect(&remote.into()).unwrap();
    socket.into()
}

#[test]
fn every_reason_is_given_for_a_packet_that_a_person_judged_in_kernel_and_on_host() {
    let netns = Netns::new("verdicts").unwrap();
    let mut world = world(&netns);
    netns
        .enter(|| {
            let mut kernel = Kernel::load().unwrap();
            kernel.adopt(&world.model).unwrap();
            let mut seen = HashSet::new();
            for exhausted in [false, true] {
                world.model.exhausted = exhausted;
                for case in cases(&world, exhausted) {
                    let host = world.model.verdict(&case.frame, monotonic_ns());
                    assert_eq!(host, case.expected, "host, {}", case.name);
                    kernel.set_budgets(exhausted).unwrap();
                    let kernel = kernel.verdict(&case.frame).unwrap();
                    assert_eq!(kernel, case.expected, "kernel, {}", case.name);
                    seen.insert((case.expected, case.name.split(' ').next().unwrap().to_owned()));
                }
            }
            assert_covered(&seen);
        })
        .unwrap();
}

/// Every reason in both families, but for those that only one has; the cookie has a test of its own, since it
/// takes a real handshake.
fn assert_covered(seen: &HashSet<(Verdict, String)>) {
    for verdict in Verdict::all() {
        let families: &[&str] = match verdict {
            Verdict::Pass(P::Arp) => &["link"],
            Verdict::Drop(D::EtherType | D::VlanDepth | D::ArpMalformed | D::ArpRate) => &["link"],
            Verdict::Drop(D::Ipv4Header) => &["v4"],
            Verdict::Drop(D::Giant | D::RelayChecksum) => &["v6"],
            // The kernel runs no program on a runt, a hop that is not there is no hop of the model's, and a dark port
            // has a test of its own.
            Verdict::Drop(D::Runt | D::RelayNoHop | D::Dark) => &[],
            Verdict::Pass(P::NeighbourDiscovery | P::ListenerQuery) => &["v6"],
            Verdict::Drop(D::Ipv6Header | D::ExtensionHeader | D::NotOnLink | D::NeighbourRate) => &["v6"],
            Verdict::Pass(P::TcpCookie) => &[],
            _ => &["v4", "v6"],
        };
        for family in families {
            assert!(
                seen.contains(&(verdict, (*family).to_owned())),
                "{family} has no packet for {verdict:?}"
            );
        }
    }
}

fn cases(world: &World, exhausted: bool) -> Vec<Case> {
    let mut cases = if exhausted { Vec::new() } else { link_cases() };
    let arp = if exhausted { Verdict::Drop(D::ArpRate) } else { Verdict::Pass(P::Arp) };
    cases.push(case("link arp request", packet::arp(1), arp));
    for family in 0..2 {
        let name = ["v4", "v6"][family];
        let stranger = Path::new(STRANGER[family], HOST[family]);
        let admin = Path::new(ADMIN[family], HOST[family]);
        cases.extend(budget_cases(name, &stranger, exhausted));
        if !exhausted {
            cases.extend(tcp_cases(name, &stranger, &admin, world.opened[family]));
            cases.extend(udp_cases(name, &stranger, &admin));
            cases.extend(icmp_cases(name, &stranger, world.opened[family]));
            cases.extend(ip_cases(name, &stranger));
        }
        cases.extend(tunnel::cases(name, &stranger, &world.model, exhausted));
    }
    if exhausted {
        return cases;
    }
    cases.extend(ipv4_cases());
    cases.extend(ipv6_cases());
    cases
}

pub fn case(name: &str, frame: Vec<u8>, expected: Verdict) -> Case {
    Case { name: name.to_owned(), frame, expected }
}

fn pass(name: &str, what: &str, frame: Vec<u8>, reason: P) -> Case {
    case(&format!("{name} {what}"), frame, Verdict::Pass(reason))
}

fn drop_(name: &str, what: &str, frame: Vec<u8>, reason: D) -> Case {
    case(&format!("{name} {what}"), frame, Verdict::Drop(reason))
}

fn link_cases() -> Vec<Case> {
    let mut odd_arp = packet::arp(1);
    odd_arp[14] = 9;
    let mut short_arp = packet::arp(2);
    short_arp.truncate(30);
    vec![
        pass("link", "arp reply", packet::arp(2), P::Arp),
        drop_("link", "arp of no kind", packet::arp(3), D::ArpMalformed),
        drop_("link", "arp for another link", odd_arp, D::ArpMalformed),
        drop_("link", "arp cut short", short_arp, D::Truncated),
        drop_("link", "LLDP", packet::ethernet(&[], 0x88cc, &[0; 50]), D::EtherType),
        drop_("link", "802.3 length", packet::ethernet(&[], 38, &[0x42; 50]), D::EtherType),
        drop_(
            "link",
            "third tag",
            packet::ethernet(&[0x88a8, 0x8100, 0x8100], 0x0800, &[0; 50]),
            D::VlanDepth,
        ),
        drop_("link", "tag cut short", packet::ethernet(&[], 0x8100, &[0; 3]), D::Truncated),
    ]
}

fn tcp_cases(name: &str, stranger: &Path, admin: &Path, opened: u16) -> Vec<Case> {
    let from =
        |path: &Path, source, destination, flags| path.frame(TCP, &packet::tcp(source, destination, flags));
    let mut short_header = packet::tcp(50_000, 443, SYN);
    short_header[12] = 0x40;
    let mut long_header = packet::tcp(50_000, 443, SYN);
    long_header[12] = 0x60;
    let mut with_options = packet::tcp(50_000, 443, SYN);
    with_options[12] = 0xf0;
    with_options.extend([1; 40]);
    vec![
        pass(name, "SYN to 443", from(stranger, 50_000, 443, SYN), P::TcpOpen),
        pass(name, "SYN with ECN to 443", from(stranger, 50_000, 443, SYN | 0xc0), P::TcpOpen),
        pass(name, "SYN with options", stranger.frame(TCP, &with_options), P::TcpOpen),
        pass(
            name,
            "SYN under one tag",
            stranger.tagged(&[0x8100], TCP, &packet::tcp(1, 443, SYN)),
            P::TcpOpen,
        ),
        pass(
            name,
            "SYN under two tags",
            stranger.tagged(&[0x88a8, 0x8100], TCP, &packet::tcp(1, 443, SYN)),
            P::TcpOpen,
        ),
        drop_(name, "SYN to 22", from(stranger, 50_000, 22, SYN), D::TcpClosed),
        drop_(name, "SYN to 8443", from(stranger, 50_000, 8443, SYN), D::TcpClosed),
        drop_(name, "SYN to the host's own connection", from(stranger, 5000, opened, SYN), D::TcpClosed),
        pass(name, "administrator's SYN to 22", from(admin, 50_000, 22, SYN), P::AdminTcp),
        drop_(name, "administrator's SYN to 23", from(admin, 50_000, 23, SYN), D::TcpClosed),
        pass(name, "ACK of the host's connection", from(stranger, 5000, opened, ACK), P::TcpConnection),
        pass(name, "SYN and ACK of it", from(stranger, 5000, opened, SYN | ACK), P::TcpConnection),
        pass(name, "RST of it", from(stranger, 5000, opened, RST), P::TcpConnection),
        pass(name, "FIN of it", from(stranger, 5000, opened, FIN | ACK), P::TcpConnection),
        drop_(name, "ACK from another port", from(stranger, 5001, opened, ACK), D::TcpNoConnection),
        drop_(name, "stray ACK to 443", from(stranger, 50_000, 443, ACK), D::TcpListener),
        drop_(name, "stray SYN and ACK to 443", from(stranger, 50_000, 443, SYN | ACK), D::TcpListener),
        drop_(name, "stray RST to 443", from(stranger, 50_000, 443, RST), D::TcpListener),
        drop_(name, "stray FIN to 443", from(stranger, 50_000, 443, FIN), D::TcpListener),
        drop_(name, "null scan of 443", from(stranger, 50_000, 443, 0), D::TcpListener),
        drop_(name, "xmas scan of 443", from(stranger, 50_000, 443, FIN | 0x28), D::TcpListener),
        drop_(name, "stray ACK to 22", from(stranger, 50_000, 22, ACK), D::TcpListener),
        drop_(name, "stray ACK to a closed port", from(stranger, 50_000, 8080, ACK), D::TcpNoConnection),
        drop_(name, "SYN and FIN", from(stranger, 50_000, 443, SYN | FIN), D::TcpHeader),
        drop_(name, "SYN and RST", from(stranger, 50_000, 443, SYN | RST), D::TcpHeader),
        drop_(name, "header of 16 bytes", stranger.frame(TCP, &short_header), D::TcpHeader),
        drop_(name, "header beyond the packet", stranger.frame(TCP, &long_header), D::TcpHeader),
        drop_(name, "half a header", stranger.frame(TCP, &packet::tcp(1, 443, SYN)[..13]), D::Truncated),
    ]
}

fn udp_cases(name: &str, stranger: &Path, admin: &Path) -> Vec<Case> {
    let mut lying = packet::udp(50_000, 443, b"abc");
    lying[5] = 12;
    let mut tiny = packet::udp(50_000, 443, b"");
    tiny[5] = 7;
    vec![
        pass(name, "opening of a tunnel", stranger.udp(50_000, 443, &quic::initial(&[5; 20])), P::TunnelOpen),
        drop_(name, "datagram to 443", stranger.udp(50_000, 443, b"x"), D::TunnelForm),
        drop_(name, "empty datagram to 443", stranger.udp(50_000, 443, b""), D::TunnelForm),
        drop_(name, "datagram to 53", stranger.udp(50_000, 53, b"x"), D::UdpUnsolicited),
        pass(name, "answer to a query", stranger.udp(53, 40_000, b"x"), P::HostReply),
        drop_(name, "answer from another port", stranger.udp(55, 40_000, b"x"), D::UdpUnsolicited),
        drop_(name, "answer to another port", stranger.udp(53, 40_001, b"x"), D::UdpUnsolicited),
        drop_(name, "answer from another host", admin.udp(53, 40_000, b"x"), D::UdpUnsolicited),
        drop_(name, "answer after three minutes", stranger.udp(54, 40_000, b"x"), D::UdpUnsolicited),
        pass(name, "administrator's datagram to 161", admin.udp(50_000, 161, b"x"), P::AdminUdp),
        drop_(name, "stranger's datagram to 161", stranger.udp(50_000, 161, b"x"), D::UdpUnsolicited),
        drop_(name, "administrator's datagram to 22", admin.udp(50_000, 22, b"x"), D::UdpUnsolicited),
        drop_(name, "length beyond the packet", stranger.frame(UDP, &lying), D::UdpLength),
        drop_(name, "length below the header", stranger.frame(UDP, &tiny), D::UdpLength),
        drop_(name, "half a header", stranger.frame(UDP, &[0; 7]), D::Truncated),
    ]
}

fn icmp_cases(name: &str, stranger: &Path, opened: u16) -> Vec<Case> {
    let protocol = stranger.icmp_protocol();
    let unreachable = |protocol, quoted: &[u8]| stranger.unreachable(protocol, quoted);
    let query = stranger.reversed().ip(UDP, &packet::udp(40_000, 53, b""));
    let elsewhere = if stranger.is_v4() { "192.0.2.200" } else { "2001:db8::200" }.parse().unwrap();
    let kinds: &[u8] = if stranger.is_v4() { &[3, 11, 12] } else { &[1, 2, 3, 4] };
    let mut cases = vec![
        pass(name, "answer to a ping", stranger.echo_reply(77), P::EchoReply),
        drop_(name, "answer to no ping", stranger.echo_reply(78), D::EchoUnsolicited),
        pass(name, "error about a query", unreachable(UDP, &packet::udp(40_000, 53, b"")), P::IcmpError),
        drop_(name, "error about no query", unreachable(UDP, &packet::udp(40_001, 53, b"")), D::IcmpQuote),
        pass(
            name,
            "error about a connection",
            unreachable(TCP, &packet::tcp(opened, 5000, ACK)[..8]),
            P::IcmpError,
        ),
        drop_(
            name,
            "error about no connection",
            unreachable(TCP, &packet::tcp(opened, 5001, ACK)),
            D::IcmpQuote,
        ),
        drop_(name, "error about a listener", unreachable(TCP, &packet::tcp(443, 50_000, ACK)), D::IcmpQuote),
        drop_(name, "error about the tunnel", unreachable(UDP, &packet::udp(443, 50_000, b"")), D::IcmpQuote),
        pass(
            name,
            "error about a ping",
            unreachable(protocol, &packet::icmp(if stranger.is_v4() { 8 } else { 128 }, 77, b"")),
            P::IcmpError,
        ),
        drop_(
            name,
            "error about an answer to a ping",
            unreachable(protocol, &packet::icmp(if stranger.is_v4() { 0 } else { 129 }, 77, b"")),
            D::IcmpQuote,
        ),
        drop_(name, "error about another protocol", unreachable(132, &[0; 8]), D::IcmpQuote),
        drop_(
            name,
            "error that quotes seven bytes",
            unreachable(UDP, &packet::udp(40_000, 53, b"")[..7]),
            D::Truncated,
        ),
        drop_(name, "error that quotes nothing", stranger.icmp_error(kinds[0], &[]), D::Truncated),
        drop_(
            name,
            "error about what another host sent",
            stranger.icmp_error(kinds[0], &stranger.ip(UDP, &packet::udp(40_000, 53, b""))),
            D::IcmpQuote,
        ),
        drop_(
            name,
            "error to another address about a query",
            Path { local: elsewhere, ..*stranger }.icmp_error(kinds[0], &query),
            D::IcmpQuote,
        ),
        drop_(name, "error that quotes no IP", stranger.icmp_error(kinds[0], &[0x15; 60]), D::IcmpQuote),
        drop_(
            name,
            "redirect",
            stranger.icmp_error(if stranger.is_v4() { 5 } else { 137 }, &[0; 40]),
            D::IcmpType,
        ),
        drop_(name, "type of the future", stranger.frame(protocol, &packet::icmp(200, 1, &[])), D::IcmpType),
        drop_(name, "half a header", stranger.frame(protocol, &[0; 7]), D::Truncated),
    ];
    for kind in kinds {
        let frame = stranger.icmp_error(*kind, &query);
        cases.push(pass(name, &format!("error of type {kind}"), frame, P::IcmpError));
    }
    cases
}

fn budget_cases(name: &str, stranger: &Path, exhausted: bool) -> Vec<Case> {
    let rated = |pass, drop| if exhausted { Verdict::Drop(drop) } else { Verdict::Pass(pass) };
    let mut cases =
        vec![case(&format!("{name} ping"), stranger.echo_request(5), rated(P::EchoRequest, D::EchoRate))];
    let syn = stranger.frame(TCP, &packet::tcp(50_000, 443, SYN));
    cases.push(case(&format!("{name} opening"), syn, rated(P::TcpOpen, D::SynRate)));
    if stranger.is_v4() {
        cases.push(case("v4 DHCP offer", stranger.udp(67, 68, b"x"), rated(P::Dhcp, D::DhcpRate)));
        return cases;
    }
    let router = Path::new(LINK_LOCAL, HOST[1]);
    cases.push(case("v6 DHCP reply", router.udp(547, 546, b"x"), rated(P::Dhcp, D::DhcpRate)));
    for kind in [134, 135, 136] {
        let frame = stranger.frame_with_limit(255, ICMPV6, &packet::icmp(kind, 0, &[0; 16]));
        let expected = rated(P::NeighbourDiscovery, D::NeighbourRate);
        cases.push(case(&format!("v6 neighbour discovery {kind}"), frame, expected));
    }
    let query = packet::extension(ICMPV6, 0, &packet::icmp(130, 0, &[0; 20]));
    let frame = router.frame_with_limit(1, 0, &query);
    cases.push(case("v6 listener query", frame, rated(P::ListenerQuery, D::NeighbourRate)));
    cases
}

fn ip_cases(name: &str, stranger: &Path) -> Vec<Case> {
    let syn = packet::tcp(50_000, 443, SYN);
    let whole = stranger.frame(TCP, &syn);
    let mut padded = whole.clone();
    padded.extend([0; 20]);
    // The length field says that the packet ends before the TCP header; the padding looks like one.
    let mut smuggled = stranger.frame(TCP, &[]);
    smuggled.extend(&syn);
    let mut too_long = whole.clone();
    let length_at = packet::L3 + if stranger.is_v4() { 2 } else { 4 };
    too_long[length_at + 1] += 1;
    vec![
        pass(name, "padding", padded, P::TcpOpen),
        drop_(name, "header in the padding", smuggled, D::Truncated),
        drop_(name, "length beyond the frame", too_long, D::IpLength),
        drop_(name, "header cut short", whole[..30].to_vec(), D::Truncated),
        drop_(name, "SCTP", stranger.frame(132, &[0; 20]), D::Protocol),
        drop_(name, "GRE", stranger.frame(47, &[0; 20]), D::Protocol),
        drop_(
            name,
            "the other family's ICMP",
            stranger.frame(if stranger.is_v4() { 58 } else { 1 }, &packet::icmp(8, 1, &[])),
            D::Protocol,
        ),
    ]
}

fn ipv4_cases() -> Vec<Case> {
    let stranger = Path::new(STRANGER[0], HOST[0]);
    let syn = packet::tcp(50_000, 443, SYN);
    let whole = stranger.frame(TCP, &syn);
    let edited = |at: usize, value: u8| {
        let mut frame = whole.clone();
        frame[packet::L3 + at] = value;
        frame
    };
    let mut with_options = stranger.ip(TCP, &syn);
    with_options.splice(20..20, [1; 40]);
    with_options[0] = 0x4f;
    with_options[3] += 40;
    let mut quoting = stranger.reversed().ip(UDP, &packet::udp(40_000, 53, b""));
    quoting.splice(20..20, [1; 40]);
    quoting[0] = 0x4f;
    let mut quoted_fragment = stranger.reversed().ip(UDP, &packet::udp(40_000, 53, b""));
    quoted_fragment[7] = 1;
    vec![
        pass("v4", "forty bytes of options", packet::ethernet(&[], 0x0800, &with_options), P::TcpOpen),
        drop_("v4", "first fragment", edited(6, 0x20), D::Fragment),
        pass("v4", "don't fragment", edited(6, 0x40), P::TcpOpen),
        drop_("v4", "second fragment", edited(7, 1), D::Fragment),
        drop_("v4", "last fragment, far out", edited(6, 0x10), D::Fragment),
        drop_("v4", "version 5", edited(0, 0x55), D::Ipv4Header),
        drop_("v4", "header of 16 bytes", edited(0, 0x44), D::Ipv4Header),
        drop_("v4", "total below the header", edited(3, 19), D::IpLength),
        drop_("v4", "options beyond the total", edited(0, 0x4f), D::IpLength),
        pass("v4", "error that quotes options", stranger.icmp_error(3, &quoting), P::IcmpError),
        drop_("v4", "error that quotes a fragment", stranger.icmp_error(3, &quoted_fragment), D::IcmpQuote),
        drop_("v4", "DHCP request", stranger.udp(68, 67, b"x"), D::UdpUnsolicited),
    ]
}

fn ipv6_cases() -> Vec<Case> {
    let stranger = Path::new(STRANGER[1], HOST[1]);
    let router = Path::new(LINK_LOCAL, HOST[1]);
    let syn = packet::tcp(50_000, 443, SYN);
    let chain = |kinds: &[u8]| {
        kinds.iter().rev().fold((TCP, syn.clone()), |(next, payload), kind| {
            let header = if *kind == 44 {
                packet::fragment(next, 0, false, &payload)
            } else {
                packet::extension(next, 0, &payload)
            };
            (*kind, header)
        })
    };
    let chained = |kinds: &[u8]| {
        let (next, payload) = chain(kinds);
        stranger.frame(next, &payload)
    };
    let mut version = stranger.frame(TCP, &syn);
    version[packet::L3] = 0x40;
    let mapped = Path::new("::ffff:203.0.113.9", HOST[1]);
    let solicit = |limit| stranger.frame_with_limit(limit, ICMPV6, &packet::icmp(135, 0, &[0; 16]));
    let query = |path: &Path, limit| path.frame_with_limit(limit, ICMPV6, &packet::icmp(130, 0, &[0; 20]));
    let long = packet::extension(TCP, 29, &syn);
    let too_long = packet::extension(TCP, 30, &syn);
    let mut jumbo = stranger.frame(0, &[6, 0, 0xc2, 4, 0, 1, 0, 0]);
    jumbo[18..20].copy_from_slice(&[0, 0]);
    vec![
        pass("v6", "hop-by-hop options", chained(&[0]), P::TcpOpen),
        pass("v6", "destination options", chained(&[60]), P::TcpOpen),
        pass("v6", "four headers", chained(&[0, 60, 44, 60]), P::TcpOpen),
        pass("v6", "a long header", stranger.frame(60, &long[..]), P::TcpOpen),
        drop_("v6", "a header too long", stranger.frame(60, &too_long), D::ExtensionHeader),
        drop_("v6", "five headers", chained(&[0, 60, 60, 60, 60]), D::ExtensionHeader),
        drop_("v6", "hop-by-hop options in second place", chained(&[60, 0]), D::ExtensionHeader),
        drop_("v6", "routing header", chained(&[43]), D::ExtensionHeader),
        drop_("v6", "header cut short", stranger.frame(60, &[6]), D::Truncated),
        drop_(
            "v6",
            "header that says more than there is",
            stranger.frame(60, &packet::extension(TCP, 3, &[])[..16]),
            D::Truncated,
        ),
        drop_("v6", "authentication header", stranger.frame(51, &[0; 40]), D::Protocol),
        drop_("v6", "jumbo payload", jumbo, D::Giant),
        drop_("v6", "no next header", stranger.frame(59, &[]), D::Protocol),
        pass("v6", "whole fragment", stranger.frame(44, &packet::fragment(TCP, 0, false, &syn)), P::TcpOpen),
        drop_("v6", "first fragment", stranger.frame(44, &packet::fragment(TCP, 0, true, &syn)), D::Fragment),
        drop_(
            "v6",
            "second fragment",
            stranger.frame(44, &packet::fragment(TCP, 1, true, &syn)),
            D::Fragment,
        ),
        drop_(
            "v6",
            "last fragment",
            stranger.frame(44, &packet::fragment(TCP, 0x1f00, false, &syn)),
            D::Fragment,
        ),
        drop_("v6", "version 4", version, D::Ipv6Header),
        drop_("v6", "mapped source", mapped.frame(TCP, &packet::tcp(1, 22, SYN)), D::Ipv6Header),
        drop_(
            "v6",
            "mapped destination",
            mapped.reversed().frame(TCP, &packet::tcp(1, 443, SYN)),
            D::Ipv6Header,
        ),
        drop_("v6", "neighbour discovery that was forwarded", solicit(254), D::NotOnLink),
        drop_("v6", "listener query from afar", query(&stranger, 1), D::NotOnLink),
        drop_("v6", "listener query that was forwarded", query(&router, 2), D::NotOnLink),
        drop_(
            "v6",
            "router solicitation",
            stranger.frame_with_limit(255, ICMPV6, &packet::icmp(133, 0, &[0; 8])),
            D::IcmpType,
        ),
        drop_("v6", "DHCP reply from afar", stranger.udp(547, 546, b"x"), D::UdpUnsolicited),
    ]
}

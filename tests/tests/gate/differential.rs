//! Generated packets: the loaded program and the host's copy of the verdict agree on each, in action and in
//! counter; and nothing that arrives inserts into a map.

use std::net::SocketAddr;

use portcullis_common::layout::{EVENT_BYTES, Event, HostFlowKey};
use portcullis_common::{Address, Family, Flow, Verdict};
use portcullis_tests::gate::kernel::{Kernel, monotonic_ns};
use portcullis_tests::gate::model::PEER_PORT;
use portcullis_tests::gate::model::{Model, parses_alike_without};
use portcullis_tests::gate::packet::{self, ICMP, ICMPV6, Path, TCP, UDP};
use portcullis_tests::gate::quic;
use portcullis_tests::netns::Netns;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

/// Packets that the kernel judges: enough for each branch many times over, and some seconds.
const PACKETS: usize = 20_000;

const LOCAL: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const REMOTE: [&str; 2] = ["198.51.100.7", "2001:db8:bad::7"];
const ADMIN: [&str; 2] = ["203.0.113.9", "2001:db8:ad::9"];

#[test]
fn kernel_and_host_agree_on_generated_packets_and_none_writes_a_map() {
    let netns = Netns::new("differ").unwrap();
    let mut model = model();
    netns
        .enter(|| {
            let listeners =
                LOCAL.map(|address| std::net::TcpListener::bind((address_of(address, &netns), 443)).unwrap());
            model.listeners.extend(listeners.iter().map(|listener| listener.local_addr().unwrap()));
            let mut kernel = Kernel::load().unwrap();
            kernel.adopt(&model).unwrap();
            let before = kernel.contents().unwrap();
            let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
            let mut seen = std::collections::HashMap::<Verdict, usize>::new();
            for _ in 0..PACKETS {
                let (frame, exhausted) = (frames(), any::<bool>()).new_tree(&mut runner).unwrap().current();
                model.exhausted = exhausted;
                kernel.set_budgets(exhausted).unwrap();
                let (host, host_bytes) = model.process(&frame, monotonic_ns());
                let host = host.verdict;
                let (kernel, kernel_bytes) = kernel.process(&frame).unwrap();
                assert_eq!(kernel, host, "kernel and host differ on {frame:02x?}");
                assert_eq!(kernel_bytes, host_bytes, "kernel and host leave {frame:02x?} differently");
                *seen.entry(host).or_default() += 1;
            }
            assert_eq!(kernel.contents().unwrap(), before, "a packet that arrived changed a map");
            // A generator that missed a branch would let the two sides differ there unseen.
            let missed: Vec<_> = Verdict::all()
                .filter(|verdict| !seen.contains_key(verdict) && !needs_more_than_bytes(*verdict))
                .collect();
            assert!(missed.is_empty(), "no generated packet gave {missed:?}");
        })
        .unwrap();
}

/// Verdicts that take a live connection or a cookie of the kernel's, which the hand-written packets have.
fn needs_more_than_bytes(verdict: Verdict) -> bool {
    use portcullis_common::DropReason::{Dark, Giant, RelayNoHop, Runt};
    use portcullis_common::PassReason::{TcpConnection, TcpCookie};
    // `TEST_RUN` takes neither runts nor giants; `Dark` is another setting; a missing hop is another map.
    matches!(
        verdict,
        Verdict::Pass(TcpConnection | TcpCookie) | Verdict::Drop(Dark | Giant | RelayNoHop | Runt)
    )
}

/// A frame longer than one buffer reaches the program with its tail out of reach.
#[test]
fn a_frame_in_several_buffers_gets_the_verdict_of_its_headers() {
    let netns = Netns::new("frags").unwrap();
    let mut model = model();
    model.exhausted = false;
    netns
        .enter(|| {
            let mut kernel = Kernel::load().unwrap();
            kernel.adopt(&model).unwrap();
            for (remote, local) in REMOTE.iter().zip(LOCAL) {
                let path = Path::new(remote, local);
                for port in [443, 444] {
                    let frame = path.udp(50_000, port, &quic::long(0, 1, &[5; 20], 8_900));
                    let host = model.verdict(&frame, monotonic_ns());
                    assert_eq!(host.is_pass(), port == 443);
                    assert_eq!(kernel.verdict(&frame).unwrap(), host);
                }
            }
        })
        .unwrap();
}

#[test]
fn only_what_the_host_itself_asks_is_noted() {
    let netns = Netns::new("egress").unwrap();
    netns
        .enter(|| {
            let mut kernel = Kernel::load().unwrap();
            kernel.adopt(&Model { host_flows: Default::default(), ..model() }).unwrap();
            for (remote, local) in REMOTE.iter().zip(LOCAL) {
                // What leaves has the host as its source.
                let out = Path::new(remote, local).reversed();
                for silent in [
                    out.udp(443, 50_000, b"x"),
                    out.udp(161, 50_000, b"x"),
                    out.echo_reply(9),
                    out.frame(TCP, &packet::tcp(50_000, 80, packet::SYN)),
                    out.unreachable(UDP, &packet::udp(40_000, 53, b"")),
                    out.frame(132, &[0; 20]),
                ] {
                    kernel.send(&silent).unwrap();
                    assert_eq!(kernel.host_flows().unwrap(), [], "{silent:02x?}");
                }
            }
            let mut expected = Vec::new();
            for (remote, local) in REMOTE.iter().zip(LOCAL) {
                let path = Path::new(remote, local);
                kernel.send(&path.reversed().udp(40_000, 53, b"x")).unwrap();
                kernel.send(&path.reversed().udp(40_000, 53, &[0; 1_400])).unwrap();
                kernel.send(&path.reversed().echo_request(9)).unwrap();
                let flow = flow(&path, 40_000, 53);
                expected.push(HostFlowKey::udp(&flow));
                expected.push(HostFlowKey::echo(flow.local, flow.remote, 9));
            }
            let mut noted = kernel.host_flows().unwrap();
            let order = |key: &HostFlowKey| format!("{key:?}");
            noted.sort_by_key(order);
            expected.sort_by_key(order);
            assert_eq!(noted, expected);
            for (remote, local) in REMOTE.iter().zip(LOCAL) {
                let path = Path::new(remote, local);
                assert!(kernel.verdict(&path.udp(53, 40_000, b"x")).unwrap().is_pass());
                assert!(kernel.verdict(&path.echo_reply(9)).unwrap().is_pass());
                assert!(!kernel.verdict(&path.udp(53, 40_001, b"x")).unwrap().is_pass());
            }
        })
        .unwrap();
}

#[test]
fn sampled_events_say_what_was_dropped_and_every_lost_one_is_counted() {
    let netns = Netns::new("events").unwrap();
    netns
        .enter(|| {
            let mut kernel = Kernel::load().unwrap();
            kernel.adopt(&model()).unwrap();
            let frame = Path::new(REMOTE[0], LOCAL[0]).udp(50_000, 53, b"x");
            let dropped = Verdict::Drop(portcullis_common::DropReason::UdpUnsolicited);
            // Each CPU samples for itself.
            pin_to_one_cpu();
            // One more than the ring takes, and then some.
            let events = EVENT_BYTES as usize / (8 + Event::SIZE) + 100;
            for _ in 0..events {
                kernel.sample_next(dropped).unwrap();
                assert_eq!(kernel.verdict(&frame).unwrap(), dropped);
                // A packet of the same second makes no event of its own.
                assert_eq!(kernel.verdict(&frame).unwrap(), dropped);
            }
            let lost = usize::try_from(kernel.events_lost().unwrap()).unwrap();
            let mut ring = kernel.events().unwrap();
            let mut received = 0;
            while let Some(event) = ring.next() {
                let event = Event::from_bytes(&event).unwrap();
                assert_eq!(Verdict::from_index(event.verdict), Some(dropped));
                assert_eq!(event.source, Address::from(REMOTE[0].parse::<std::net::IpAddr>().unwrap()));
                assert_eq!(event.destination, Address::from(LOCAL[0].parse::<std::net::IpAddr>().unwrap()));
                let seen = (event.source_port, event.destination_port, event.protocol, event.version);
                assert_eq!(seen, (50_000, 53, UDP, 4));
                assert_eq!(event.length as usize, frame.len());
                received += 1;
            }
            assert!(lost > 0, "control: the ring was to overflow");
            assert_eq!(received + lost, events);
        })
        .unwrap();
}

proptest! {
    #![proptest_config(Config { cases: 20_000, failure_persistence: None, ..Config::default() })]

    /// On the host alone: no bytes make the parser panic, nor read what the length says is not there.
    #[test]
    fn any_bytes_parse_or_give_a_reason(frame in prop_oneof![frames(), vec(any::<u8>(), 0..200)]) {
        let verdict = model().verdict(&frame, 1);
        // Padding behind the packet changes nothing, unless the frame was too short for its packet.
        let mut padded = frame.clone();
        padded.extend([0xa5; 64]);
        if verdict.is_pass() {
            prop_assert_eq!(model().verdict(&padded, 1), verdict);
        }
        // Headers end within the first 512 bytes, which is all that the program can read.
        prop_assert!(parses_alike_without(&frame, 511));
    }
}

fn model() -> Model {
    let mut model = Model::serving().with_keys().with_relay(REMOTE, LOCAL);
    model.networks = REMOTE.iter().chain(&ADMIN).map(|address| address.parse().unwrap()).collect();
    model.revoked.insert(66);
    for (remote, local) in REMOTE.iter().zip(LOCAL) {
        let flow = flow(&Path::new(remote, local), 40_000, 53);
        model.host_flows.insert(HostFlowKey::udp(&flow), monotonic_ns());
        model.host_flows.insert(HostFlowKey::echo(flow.local, flow.remote, 77), monotonic_ns());
    }
    model
}

fn flow(path: &Path, local_port: u16, remote_port: u16) -> Flow {
    Flow {
        family: if path.is_v4() { Family::V4 } else { Family::V6 },
        local: Address::from(path.local),
        remote: Address::from(path.remote),
        local_port,
        remote_port,
    }
}

fn address_of(address: &str, netns: &Netns) -> std::net::IpAddr {
    let length = if address.contains(':') { 128 } else { 32 };
    netns.address("lo", &format!("{address}/{length}")).unwrap();
    SocketAddr::new(address.parse().unwrap(), 0).ip()
}

fn pin_to_one_cpu() {
    let mut one = rustix::thread::CpuSet::new();
    one.set(rustix::thread::sched_getcpu());
    rustix::thread::sched_setaffinity(None, &one).unwrap();
}

/// Well-formed packets around what the model knows, some with tags or extension headers, most then damaged.
fn frames() -> BoxedStrategy<Vec<u8>> {
    let tags = prop_oneof![4 => Just(vec![]), 1 => vec(prop_oneof![Just(0x8100u16), Just(0x88a8)], 1..4)];
    let ip = (0..2usize, 0..3usize, payloads(), limits(), chains());
    let ip = (tags, ip.boxed())
        .prop_map(|(tags, (family, from, (kind, payload), limit, chain))| {
            let mut path =
                Path::new([REMOTE, ADMIN, ["169.254.0.7", "fe80::7"]][from][family], LOCAL[family]);
            let (mut protocol, mut payload) = transport(&path, kind, payload);
            if family == 1 {
                for next in chain {
                    payload = match next {
                        44 => packet::fragment(protocol, 0, false, &payload),
                        45 => packet::fragment(protocol, 3, true, &payload),
                        words @ 200.. => packet::extension(protocol, words - 200, &payload),
                        _ => packet::extension(protocol, 0, &payload),
                    };
                    protocol = if next == 45 {
                        44
                    } else if next >= 200 {
                        60
                    } else {
                        next
                    };
                }
            }
            if from == 2 && family == 0 {
                path = path.reversed();
            }
            packet::ethernet(&tags, path.ethertype(), &path.ip_with_limit(limit, protocol, &payload))
        })
        .boxed();
    let arp = (0..4u8).prop_map(packet::arp);
    let other = (any::<u16>(), vec(any::<u8>(), 0..60))
        .prop_map(|(ethertype, payload)| packet::ethernet(&[], ethertype, &payload));
    let frame = prop_oneof![20 => ip, 4 => welcome(), 8 => tunnel(), 1 => arp, 1 => other];
    (frame, damage())
        .prop_map(|(mut frame, damage)| {
            damage.apply(&mut frame);
            // TEST_RUN takes no less than an Ethernet header.
            frame.resize(frame.len().max(14), 0);
            frame
        })
        .boxed()
}

/// Packets that pass only if several fields are right at once, which chance seldom makes them.
fn welcome() -> BoxedStrategy<Vec<u8>> {
    (0..2usize, 0..6usize)
        .prop_map(|(family, which)| {
            let far = Path::new(REMOTE[family], LOCAL[family]);
            let admin = Path::new(ADMIN[family], LOCAL[family]);
            let link = Path::new(["169.254.0.7", "fe80::7"][family], LOCAL[family]);
            match which {
                0 => link.frame_with_limit(1, link.icmp_protocol(), &packet::icmp(130, 0, &[0; 20])),
                1 => far.frame_with_limit(255, far.icmp_protocol(), &packet::icmp(135, 0, &[0; 16])),
                2 if family == 0 => far.udp(67, 68, b"x"),
                2 => link.udp(547, 546, b"x"),
                3 => far.udp(53, 40_000, b"x"),
                4 => far.echo_reply(77),
                _ => admin.frame(TCP, &packet::tcp(50_000, 22, packet::SYN)),
            }
        })
        .boxed()
}

/// Datagrams to the tunnel's port, right but for one thing at most.
fn tunnel() -> BoxedStrategy<Vec<u8>> {
    let ports = prop_oneof![Just(50_000u16), Just(PEER_PORT), 0..16u16];
    let id = (0..6u8, any::<u64>());
    let form = (
        0..8u8,
        prop_oneof![6 => Just(1u32), 1 => Just(2)],
        prop_oneof![3 => Just(1_200usize), 1 => 0..1_300usize],
    );
    (0..2usize, ports, id, form, limits(), any::<bool>())
        .prop_map(|(family, port, (kind, nonce), (form, version, length), limit, zero)| {
            let model = model();
            let wall = model.settings.wall(monotonic_ns());
            let knock = |device| model.settings.knock.device(device).knock(wall, nonce).to_bytes().to_vec();
            let destination = match kind {
                0 | 1 => model.id(nonce).to_vec(),
                2 => knock(5),
                3 => knock(66),
                4 => vec![9; usize::try_from(nonce % 22).unwrap()],
                _ => vec![9; 16],
            };
            let minted: [u8; 16] = destination.clone().try_into().unwrap_or([1; 16]);
            let data = match form {
                0 => quic::short(minted, length.min(300)),
                1 => quic::bind(minted),
                2 => quic::long(2, version, &destination, length),
                3 => quic::long(1, version, &destination, length),
                _ => quic::long(0, version, &destination, length),
            };
            let path = Path::new(REMOTE[family], LOCAL[family]);
            let mut datagram = packet::udp(port, 443, &data);
            if !zero {
                let sum = path.checksum(UDP, &datagram);
                datagram[6..8].copy_from_slice(&sum);
            }
            path.frame_with_limit(limit, UDP, &datagram)
        })
        .boxed()
}

fn limits() -> impl Strategy<Value = u8> {
    prop_oneof![Just(64), Just(255), Just(254), Just(1)]
}

fn chains() -> impl Strategy<Value = Vec<u8>> {
    let header = prop_oneof![Just(0u8), Just(60), Just(43), Just(44), Just(45), 200..=235u8];
    prop_oneof![3 => Just(vec![]), 1 => vec(header, 1..6)]
}

#[derive(Clone, Debug)]
enum Kind {
    Tcp,
    Udp,
    Icmp,
    Error,
    Raw(u8),
}

fn payloads() -> BoxedStrategy<(Kind, Vec<u8>)> {
    let port = || {
        prop_oneof![
            Just(443u16),
            Just(22),
            Just(161),
            Just(53),
            Just(40_000),
            Just(67),
            Just(68),
            Just(546),
            Just(547),
            any::<u16>()
        ]
    };
    let flags = prop_oneof![Just(2u8), Just(16), Just(18), any::<u8>()];
    let tcp = (port(), port(), flags)
        .prop_map(|(from, to, flags)| (Kind::Tcp, packet::tcp(from, to, flags)))
        .boxed();
    let udp = || {
        (port(), port(), vec(any::<u8>(), 0..20))
            .prop_map(|(from, to, data)| packet::udp(from, to, &data))
            .boxed()
    };
    let types = prop_oneof![Just(0u8), Just(8), Just(128), Just(129), 1..6u8, 128..138u8, any::<u8>()];
    let identifier = || prop_oneof![Just(77u16), any::<u16>()];
    let icmp = (types, identifier(), vec(any::<u8>(), 0..40))
        .prop_map(|(kind, identifier, data)| (Kind::Icmp, packet::icmp(kind, identifier, &data)))
        .boxed();
    let quoted = prop_oneof![
        udp(),
        Just(packet::udp(40_000, 53, b"")),
        Just(packet::tcp(443, 50_000, 16)),
        identifier().prop_map(|identifier| packet::icmp(8, identifier, &[])),
        identifier().prop_map(|identifier| packet::icmp(128, identifier, &[])),
    ];
    let error = quoted.prop_map(|payload| (Kind::Error, payload)).boxed();
    let raw = (any::<u8>(), vec(any::<u8>(), 0..40)).prop_map(|(protocol, data)| (Kind::Raw(protocol), data));
    prop_oneof![6 => tcp, 6 => udp().prop_map(|data| (Kind::Udp, data)), 5 => icmp, 4 => error, 1 => raw]
        .boxed()
}

/// Protocol number and payload. An ICMP error quotes a packet whose kind shows in the payload's ports.
fn transport(path: &Path, kind: Kind, payload: Vec<u8>) -> (u8, Vec<u8>) {
    match kind {
        Kind::Tcp => (TCP, payload),
        Kind::Udp => (UDP, payload),
        Kind::Icmp => (path.icmp_protocol(), payload),
        Kind::Raw(protocol) => (protocol, payload),
        Kind::Error => {
            let quoted = match payload.len() {
                20 => TCP,
                8 if payload[0] == 8 => ICMP,
                8 if payload[0] == 128 => ICMPV6,
                _ => UDP,
            };
            let error = if path.is_v4() { 3 } else { 1 };
            (path.icmp_protocol(), packet::icmp(error, 0, &path.reversed().ip(quoted, &payload)))
        }
    }
}

#[derive(Clone, Debug)]
enum Damage {
    None,
    /// Bytes set, by their place in the frame.
    Set(Vec<(usize, u8)>),
    Cut(usize),
    Pad(usize),
}

impl Damage {
    fn apply(&self, frame: &mut Vec<u8>) {
        match self {
            Self::None => {}
            Self::Set(bytes) => {
                for (at, value) in bytes {
                    let length = frame.len();
                    frame[at % length] = *value;
                }
            }
            Self::Cut(bytes) => frame.truncate(frame.len() - bytes % frame.len()),
            Self::Pad(bytes) => frame.extend(std::iter::repeat_n(0xa5, *bytes)),
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    // Most headers are in the first sixty bytes.
    let place = prop_oneof![4 => 12..60usize, 1 => 0..400usize];
    prop_oneof![
        3 => Just(Damage::None),
        3 => vec((place, any::<u8>()), 1..4).prop_map(Damage::Set),
        1 => (1..400usize).prop_map(Damage::Cut),
        1 => (1..64usize).prop_map(Damage::Pad),
    ]
}

//! Hand-written verdicts for datagrams to the tunnel's port: relayed flows, connection IDs, knocks, binds.

use portcullis_common::{DropReason as D, PassReason as P, RelayReason, Verdict};
use portcullis_tests::gate::kernel::{Kernel, monotonic_ns};
use portcullis_tests::gate::model::{Model, PEER_PORT};
use portcullis_tests::gate::packet::{self, Path, UDP};
use portcullis_tests::gate::quic;
use portcullis_tests::netns::Netns;

use crate::verdicts::{Case, HOST, STRANGER, case};

/// A port that no relayed flow and no peer has.
const ELSEWHERE: u16 = 50_000;

pub fn cases(name: &str, path: &Path, model: &Model, exhausted: bool) -> Vec<Case> {
    let from = |port, data: &[u8]| path.udp(port, 443, data);
    let case = |what: &str, frame, expected| case(&format!("{name} {what}"), frame, expected);
    let wall = model.settings.wall(monotonic_ns());
    let knock = |device| model.settings.knock.device(device).knock(wall, 99).to_bytes();
    let minted = quic::short(model.id(1), 60);
    let or = |pass: P, drop: D| if exhausted { Verdict::Drop(drop) } else { Verdict::Pass(pass) };
    let mut cases = vec![
        case("ID of a peer", from(PEER_PORT, &minted), Verdict::Pass(P::Tunnel)),
        case("ID from elsewhere", from(ELSEWHERE, &minted), or(P::TunnelUnproven, D::TunnelRate)),
        case(
            "handshake with an ID",
            from(ELSEWHERE, &quic::long(2, 1, &model.id(2), 60)),
            or(P::TunnelUnproven, D::TunnelRate),
        ),
        case(
            "later initial with an ID",
            from(ELSEWHERE, &quic::initial(&model.id(3))),
            or(P::TunnelUnproven, D::TunnelRate),
        ),
        case(
            "bind with a ticket",
            from(ELSEWHERE, &quic::bind(model.id(4))),
            or(P::RelayBind, D::TunnelRate),
        ),
        case(
            "opening of a stranger",
            from(ELSEWHERE, &quic::initial(&[9; 8])),
            or(P::TunnelOpen, D::OpenerRate),
        ),
        case("knock", from(ELSEWHERE, &quic::initial(&knock(5))), or(P::TunnelKnock, D::KnockRate)),
        case(
            "knock of a revoked device",
            from(ELSEWHERE, &quic::initial(&knock(66))),
            Verdict::Drop(D::DeviceRevoked),
        ),
    ];
    if !exhausted {
        cases.extend(
            refused(path, model).map(|(what, port, data, reason)| {
                case(what, path.udp(port, 443, &data), Verdict::Drop(reason))
            }),
        );
        cases.extend(relayed(name, path, model.id(6)));
    }
    cases
}

fn refused<'a>(_: &Path, model: &'a Model) -> impl Iterator<Item = (&'a str, u16, Vec<u8>, D)> {
    let mut forged = model.id(1);
    forged[15] ^= 1;
    let mut other_slot = model.id(1);
    other_slot[0] ^= 4;
    [
        ("forged ID of a peer", PEER_PORT, quic::short(forged, 60), D::TunnelId),
        ("ID of an empty slot", ELSEWHERE, quic::short(other_slot, 60), D::TunnelId),
        ("ticket that was not minted", ELSEWHERE, quic::bind(forged), D::TunnelId),
        ("handshake without an ID", ELSEWHERE, quic::long(2, 1, &forged, 60), D::TunnelId),
        ("short header, too short", PEER_PORT, quic::short(model.id(1), 36), D::TunnelForm),
        ("initial, too short", ELSEWHERE, quic::long(0, 1, &[9; 8], 1_199), D::TunnelForm),
        ("0-RTT", PEER_PORT, quic::long(1, 1, &model.id(1), 1_200), D::TunnelForm),
        ("retry", PEER_PORT, quic::long(3, 1, &model.id(1), 1_200), D::TunnelForm),
        ("version 2", ELSEWHERE, quic::long(0, 0x6b33_43cf, &[9; 8], 1_200), D::TunnelVersion),
        ("version negotiation", ELSEWHERE, quic::long(0, 0, &[9; 8], 1_200), D::TunnelVersion),
    ]
    .into_iter()
}

/// Ports 0 to 15 of the model's far ends: session by the low two bits, next hop by the others.
fn relayed(name: &str, path: &Path, ticket: [u8; 16]) -> Vec<Case> {
    let transmit = Verdict::Relay(RelayReason::Transmit);
    let frame = |port, limit, bytes: usize, sum: bool| {
        let mut datagram = packet::udp(port, 443, &vec![0x5a; bytes]);
        if sum {
            let sum = path.checksum(UDP, &datagram);
            datagram[6..8].copy_from_slice(&sum);
        }
        path.frame_with_limit(limit, UDP, &datagram)
    };
    let no_sum = if path.is_v4() { transmit } else { Verdict::Drop(D::RelayChecksum) };
    let case = |what: &str, frame, expected| case(&format!("{name} {what}"), frame, expected);
    vec![
        case("relayed", frame(0, 64, 33, true), transmit),
        case(
            "bind from where an end already is",
            path.udp(0, 443, &quic::bind(ticket)),
            Verdict::Pass(P::RelayBind),
        ),
        case("relayed with a tag put on", frame(4, 64, 33, true), transmit),
        case("relayed by another interface", frame(8, 64, 33, true), Verdict::Relay(RelayReason::Redirect)),
        case("relayed without a checksum", frame(0, 64, 33, false), no_sum),
        case("relayed at its last hop", frame(0, 1, 33, true), Verdict::Drop(D::RelayHopLimit)),
        case("relayed, too long for the link", frame(12, 64, 80, true), Verdict::Drop(D::RelayMtu)),
        case("relayed of another generation", frame(1, 64, 33, true), Verdict::Drop(D::RelayRevoked)),
        case("relayed of a revoked person", frame(2, 64, 33, true), Verdict::Drop(D::RelayRevoked)),
        case("relayed after its end", frame(3, 64, 33, true), Verdict::Drop(D::RelayExpired)),
        // What becomes of these is for the node to say.
        case("for the node", frame(24, 64, 33, true), Verdict::Pass(P::RelayHost)),
        case("for the node, at its last hop", frame(24, 1, 33, true), Verdict::Pass(P::RelayHost)),
        case("for the node, long", frame(24, 64, 1_400, true), Verdict::Pass(P::RelayHost)),
        case("bind on it", path.udp(24, 443, &quic::bind(ticket)), Verdict::Pass(P::RelayBind)),
        case("for the node, of another generation", frame(25, 64, 33, true), Verdict::Drop(D::RelayRevoked)),
        case("for the node, of a revoked person", frame(26, 64, 33, true), Verdict::Drop(D::RelayRevoked)),
        case("for the node, after its end", frame(27, 64, 33, true), Verdict::Drop(D::RelayExpired)),
    ]
}

/// What the relay makes of a packet, byte by byte, with checksums that are computed anew.
#[test]
fn a_relayed_packet_leaves_with_the_other_ends_and_right_checksums() {
    let netns = Netns::new("rewrite").unwrap();
    let model = Model::serving().with_keys().with_relay(STRANGER, HOST);
    netns
        .enter(|| {
            let mut kernel = Kernel::load().unwrap();
            kernel.adopt(&model).unwrap();
            for (stranger, host) in STRANGER.iter().zip(HOST) {
                let arriving = Path::new(stranger, host);
                let far = if arriving.is_v4() { "203.0.113.77" } else { "2001:db8:77::77" };
                // From the node's address to the far end.
                let leaving = Path::new(host, far);
                for (port, tags) in
                    [(0, &[][..]), (4, &[[0x81, 0, 0, 9]][..]), (8, &[[0x81, 0, 0, 9], [0x81, 0, 0x20, 8]])]
                {
                    for seed in 0..2_000u32 {
                        let data: Vec<u8> = (0..seed % 90)
                            .map(|at| (seed.wrapping_mul(2_654_435_761) >> (at % 24)) as u8)
                            .collect();
                        let tagged = seed % 3;
                        let before = datagram(&arriving, port, 443, &data, 64);
                        let before = link(
                            &before,
                            &vec![[0x81, 0, 0, 1]; tagged as usize],
                            [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]],
                            &arriving,
                        );
                        let after = datagram(&leaving, 443, 40_001, &data, 63);
                        let after = link(&after, tags, [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]], &arriving);
                        let (verdict, bytes) = kernel.process(&before).unwrap();
                        assert!(matches!(verdict, Verdict::Relay(_)), "{verdict:?}");
                        assert_eq!(bytes, after, "{port} {seed}");
                    }
                }
            }
        })
        .unwrap();
}

fn datagram(path: &Path, from: u16, to: u16, data: &[u8], limit: u8) -> Vec<u8> {
    let mut datagram = packet::udp(from, to, data);
    let sum = match path.checksum(UDP, &datagram) {
        [0, 0] => [0xff; 2],
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum);
    path.ip_with_limit(limit, UDP, &datagram)
}

fn link(packet: &[u8], tags: &[[u8; 4]], [destination, source]: [[u8; 6]; 2], path: &Path) -> Vec<u8> {
    let mut frame = [destination, source].concat();
    for tag in tags {
        frame.extend(tag);
    }
    frame.extend(path.ethertype().to_be_bytes());
    frame.extend(packet);
    frame
}

/// With the port dark, only a knock opens it; whoever has an ID is past that.
#[test]
fn a_dark_port_answers_only_those_who_knock() {
    let netns = Netns::new("dark").unwrap();
    let mut model = Model::serving().with_keys().with_relay(STRANGER, HOST);
    model.settings.dark = 1;
    netns
        .enter(|| {
            let mut kernel = Kernel::load().unwrap();
            kernel.adopt(&model).unwrap();
            let epoch = portcullis_common::KNOCK_EPOCH_NS;
            // Not so late in an epoch that the next one would begin meanwhile.
            while model.settings.wall(monotonic_ns()) % epoch > epoch - 2_000_000_000 {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            let now = model.settings.wall(monotonic_ns());
            for (stranger, host) in STRANGER.iter().zip(HOST) {
                let path = Path::new(stranger, host);
                let device = model.settings.knock.device(5);
                for (what, id, expected) in [
                    ("knock", device.knock(now, 1).to_bytes().to_vec(), Verdict::Pass(P::TunnelKnock)),
                    (
                        "knock of the epoch before",
                        device.knock(now.wrapping_sub(epoch), 1).to_bytes().to_vec(),
                        if now < epoch { Verdict::Drop(D::Dark) } else { Verdict::Pass(P::TunnelKnock) },
                    ),
                    (
                        "knock of long ago",
                        device.knock(now.wrapping_add(5 * epoch), 1).to_bytes().to_vec(),
                        Verdict::Drop(D::Dark),
                    ),
                    ("no knock", vec![9; 20], Verdict::Drop(D::Dark)),
                    ("short ID", vec![9; 8], Verdict::Drop(D::Dark)),
                    ("ID of ours", model.id(7).to_vec(), Verdict::Pass(P::TunnelUnproven)),
                ] {
                    let frame = path.udp(ELSEWHERE, 443, &quic::initial(&id));
                    assert_eq!(model.verdict(&frame, monotonic_ns()), expected, "host, {what}");
                    assert_eq!(kernel.verdict(&frame).unwrap(), expected, "kernel, {what}");
                }
            }
        })
        .unwrap();
}

/// An ID proves that the node once answered somebody. Whoever captures it may spend what one ID may, from however many
/// addresses, and nobody else's share.
#[test]
fn a_captured_id_is_bounded_from_however_many_sources_it_is_replayed() {
    const REPLAYED: u32 = 3_000;
    let netns = Netns::new("replay").unwrap();
    let model = Model::serving().with_keys().with_relay(STRANGER, HOST);
    netns
        .enter(|| {
            let mut kernel = Kernel::load().unwrap();
            kernel.adopt(&model).unwrap();
            let began = monotonic_ns();
            let mut passed = 0;
            for source in 0..REPLAYED {
                let source =
                    std::net::Ipv4Addr::from_bits(0x0b00_0000 | source.wrapping_mul(2_654_435_761) >> 8);
                let path = Path::new(&source.to_string(), HOST[0]);
                let verdict =
                    kernel.verdict(&path.udp(ELSEWHERE, 443, &quic::short(model.id(1), 60))).unwrap();
                assert!(matches!(verdict, Verdict::Pass(P::TunnelUnproven) | Verdict::Drop(D::TunnelRate)));
                passed += u64::from(verdict.is_pass());
            }
            let class = portcullis_common::RateClass::UnprovenId;
            let took = (monotonic_ns() - began) as f64 / 1e9;
            let most = class.burst() as f64 + (took + 0.1) * class.per_second() as f64;
            assert!(passed as f64 <= most, "{passed} of {REPLAYED} in {took} s");
            assert!(passed >= class.burst() && passed < u64::from(REPLAYED), "control: {passed}");
            let path = Path::new(STRANGER[0], HOST[0]);
            for (port, id, pass) in [(ELSEWHERE, 64, P::TunnelUnproven), (PEER_PORT, 1, P::Tunnel)] {
                let frame = path.udp(port, 443, &quic::short(model.id(id), 60));
                assert_eq!(kernel.verdict(&frame).unwrap(), Verdict::Pass(pass));
            }
        })
        .unwrap();
}

#[test]
fn an_id_under_a_key_that_has_expired_is_dropped_even_from_a_peer() {
    let netns = Netns::new("expired").unwrap();
    let mut model = Model::serving().with_keys().with_relay(STRANGER, HOST);
    netns
        .enter(|| {
            let frame = Path::new(STRANGER[0], HOST[0]).udp(PEER_PORT, 443, &quic::short(model.id(1), 60));
            for (expires, expected) in [
                (monotonic_ns() + 3_600_000_000_000, Verdict::Pass(P::Tunnel)),
                (monotonic_ns() - 1, Verdict::Drop(D::TunnelId)),
                (0, Verdict::Drop(D::TunnelId)),
            ] {
                for key in model.cid_keys.values_mut() {
                    key.expires = expires;
                }
                let mut kernel = Kernel::load().unwrap();
                kernel.adopt(&model).unwrap();
                assert_eq!(kernel.verdict(&frame).unwrap(), expected);
                assert_eq!(model.verdict(&frame, monotonic_ns()), expected);
            }
        })
        .unwrap();
}

/// Audit counts what it would drop, and lets it pass.
#[test]
fn in_audit_what_would_be_dropped_is_counted_and_passes() {
    let netns = Netns::new("audit").unwrap();
    let mut model = Model::serving();
    netns
        .enter(|| {
            let mut kernel = Kernel::load().unwrap();
            let frame = Path::new(STRANGER[0], HOST[0]).udp(ELSEWHERE, 53, b"x");
            let dropped = Verdict::Drop(D::UdpUnsolicited);
            for (audit_from, expected) in [(0, false), (monotonic_ns() + 3_600_000_000_000, false), (1, true)]
            {
                model.settings.audit_from = audit_from;
                kernel.adopt(&model).unwrap();
                assert_eq!(kernel.audited(&frame).unwrap(), (dropped, expected), "{audit_from}");
            }
        })
        .unwrap();
}

//! Sessions whose daemon dies, and crafted frames on their flows.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use portcullis_tests::bench::Front;
use portcullis_tests::gate::packet::{self, Path, UDP};
use portcullis_tests::gate::wire::Wire;
use portcullis_tests::numbered::Numbered;

use crate::closed::fill_maps;
use crate::lab::{ANSWER, SILENCE, mac};
use crate::relay_lab::{Ends, PORT, Pair, RelayLab, Shape, relayed};

const HOUR: Duration = Duration::from_secs(3_600);

const KILLS: u32 = 100;
/// Every so many kills, the next daemon finds an older program on the links; as often, it has other settings.
const EVERY: u32 = 5;

/// The daemon dies, is upgraded and configured anew, and its maps are filled; a sequence-numbered flow does not notice.
#[test]
fn a_session_loses_nothing_through_kills_upgrades_other_settings_and_full_maps() {
    let lab = RelayLab::new(Shape::TwoInterfaces);
    let ends = lab.families()[0];
    let pair = lab.pair(&ends);
    lab.greet(&ends);
    let mut daemon = daemon(&lab, Some((&ends, &pair, 3_600.0)), &[]);
    assert_eq!(pair.passes_both(&ends, b"x", ANSWER), [true; 2]);
    let to = SocketAddr::new(ends.node_client, PORT);
    let every = Duration::from_micros(500);
    let (flow, ()) = Numbered::during(&pair.client, to, &pair.connector, every, || {
        for kill in 0..KILLS {
            // An older program: not the same instructions, but the same maps behind it.
            let older = ["eth0", "eth1"].map(|interface| {
                let older = Front::new(&lab.node, interface, &lab.pin.path, None).unwrap();
                if kill % EVERY == 0 {
                    older.put().unwrap();
                    assert!(older.is_there().unwrap());
                }
                older
            });
            daemon.kill().unwrap();
            daemon.wait().unwrap();
            let rule = format!("203.0.113.{kill}:22");
            let settings: &[&str] =
                if kill % EVERY == 2 { &["--admin", &rule, "--tcp", "8443"] } else { &[] };
            daemon = self::daemon(&lab, None, settings);
            assert!(older.iter().all(|older| !older.is_there().unwrap()), "kill {kill}: not replaced");
        }
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        let (gate, _relay) = lab.open();
        fill_maps(&gate, &lab.node, ends.client);
    })
    .unwrap();
    assert!(flow.is_steady(), "{} in {:?}", flow.sent, flow.lasted);
    assert!(flow.is_whole(), "{} of {} arrived", flow.arrived.len(), flow.sent);
}

#[test]
fn expiry_needs_no_daemon() {
    let lab = RelayLab::new(Shape::TwoInterfaces);
    let ends = lab.families()[1];
    lab.greet(&ends);
    // A machine that is too busy to send two packets within a short life gets a longer one.
    for seconds in [8u64, 30, 60] {
        let pair = lab.pair(&ends);
        let mut daemon = daemon(&lab, Some((&ends, &pair, seconds as f64)), &[]);
        let granted = Instant::now();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        let passes = pair.passes_both(&ends, b"x", Duration::from_secs(seconds) / 4);
        std::thread::sleep(Duration::from_millis(1_000 * seconds + 100).saturating_sub(granted.elapsed()));
        assert_eq!(pair.passes_both(&ends, b"x", SILENCE), [false; 2]);
        if passes == [true; 2] {
            return;
        }
    }
    panic!("this machine never sends two packets in time");
}

/// Tags are of the link that a packet came by, and stay behind.
#[test]
fn tagged_packets_are_relayed_without_their_tags() {
    let lab = RelayLab::new(Shape::TwoInterfaces);
    let (gate, relay) = lab.open();
    for ends in lab.families() {
        let pair = lab.pair(&ends);
        let session = relay.open_session(relay.identity("local:alice").unwrap(), HOUR).unwrap();
        lab.connect(&relay, session, &ends, &pair);
        assert_eq!(pair.passes_both(&ends, b"x", ANSWER), [true; 2]);
        let [client, node] = [mac(&lab.client), mac(&lab.node)];
        let wire = Wire::on(&lab.client, "eth0").unwrap();
        let path = Path::new(&ends.client.to_string(), &ends.node_client.to_string());
        let from = pair.client.local_addr().unwrap().port();
        for tags in [&[][..], &[[0x81, 0, 0, 7]], &[[0x88, 0xa8, 0, 9], [0x81, 0, 0, 7]]] {
            let before = relayed(&gate);
            for length in [1usize, 300, 1_200] {
                let mut datagram = packet::udp(from, PORT, &vec![7; length]);
                let sum = path.checksum(UDP, &datagram);
                datagram[6..8].copy_from_slice(&sum);
                let mut frame = [node, client].concat();
                frame.extend(tags.concat());
                frame.extend(path.ethertype().to_be_bytes());
                frame.extend(path.ip_with_limit(64, UDP, &datagram));
                wire.send(&frame).unwrap();
                let mut buffer = [0; 2_048];
                let (received, _) = pair.connector.recv_from(&mut buffer).unwrap();
                assert_eq!(&buffer[..received], &vec![7; length], "{tags:?}");
            }
            assert_eq!(relayed(&gate), before + 3);
        }
    }
}

/// A process that holds the gate; with a session, if one is given.
fn daemon(lab: &RelayLab, session: Option<(&Ends, &Pair, f64)>, settings: &[&str]) -> Child {
    let mut command = lab.node.command(env!("CARGO_BIN_EXE_gate_hold"));
    command.arg(&lab.pin.path).args(["--udp", "443"]).args(settings);
    for interface in lab.config().interfaces {
        command.args(["--interface", &interface]);
    }
    if let Some((ends, pair, seconds)) = session {
        let end = |node, socket: &UdpSocket| {
            format!("{}>{}", SocketAddr::new(node, PORT), socket.local_addr().unwrap())
        };
        let client = end(ends.node_client, &pair.client);
        let connector = end(ends.node_connector, &pair.connector);
        command.args(["--relay", &format!("{client},{connector},{seconds}")]);
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("up "), "{line}");
    child
}

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use portcullis_tests::portcullis::{Connector, START};
use portcullis_tests::process::wait_until;
use portcullis_tests::quic::Client;
use portcullis_tests::tunnel_lab::{ANSWER, FOR_STRANGER, PORT, TunnelLab, device, socket_in, wall};

/// Handshakes of one network that are begun and not ended, from which on the node asks for proof of the address.
const PRESSURE: usize = 16;
/// RFC 9000 §17.2.5: long header, type 3.
const RETRY: u8 = 0xf0;

/// After a Retry a client speaks to the ID that the node minted, so its knock is needed no more; and the node sends no
/// more than it got.
#[test]
fn who_knocks_gets_through_by_a_retry() {
    let lab = TunnelLab::start("xdp", true).unwrap();
    let keys = device(&lab.token("hq", 0).unwrap()).unwrap();
    let client = Client::new().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let knock = || keys.knock(wall(), wall()).to_bytes();
    let first = || runtime.block_on(client.first_packet(&knock())).unwrap();
    let kind = |socket: &UdpSocket| {
        let mut answer = [0; 2_048];
        let length = socket.recv(&mut answer).unwrap();
        (answer[0] & 0xf0, length)
    };
    for address in FOR_STRANGER {
        let mut held = Vec::new();
        for turn in 0..=PRESSURE {
            let socket = socket_in(&lab.stranger, address, PORT, ANSWER).unwrap();
            let packet = first();
            socket.send(&packet).unwrap();
            let (kind, length) = kind(&socket);
            assert_eq!(kind == RETRY, turn == PRESSURE, "turn {turn}");
            assert!(length <= packet.len());
            held.push(socket);
        }
        let to = SocketAddr::new(address.parse().unwrap(), PORT);
        let socket = unconnected(&lab, to.ip());
        runtime.block_on(client.handshake(socket, to, Some(&knock()), Duration::from_secs(30))).unwrap();
        let socket = unconnected(&lab, to.ip());
        let stranger = client.handshake(socket, to, None, Duration::from_secs(1));
        assert!(runtime.block_on(stranger).is_err(), "control: a stranger has no such way");
    }
}

/// Where a connector is, openings have a budget of their own.
#[test]
fn the_network_of_a_connector_is_one_with_a_recent_login_at_the_gate() {
    let mut lab = TunnelLab::start("xdp", false).unwrap();
    let office = std::net::Ipv4Addr::new(198, 51, 100, 77).into();
    let elsewhere = std::net::Ipv4Addr::new(198, 51, 101, 77).into();
    assert!(!lab.is_recent(office).unwrap());
    let token = lab.token("hq", 0).unwrap();
    let _connector = Connector::enrol(&lab.dir.join("hq"), Some(&lab.office), &token).unwrap();
    lab.connected("hq", 2).unwrap();
    wait_until("the gate to know", START, || Ok(lab.is_recent(office)?.then_some(()))).unwrap();
    assert!(!lab.is_recent(elsewhere).unwrap());
    lab.node.process().unwrap().kill().unwrap();
    assert!(lab.is_recent(office).unwrap(), "the gate outlives the daemon");
}

fn unconnected(lab: &TunnelLab, to: IpAddr) -> UdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    lab.stranger.enter(|| UdpSocket::bind(any)).unwrap().unwrap()
}

/// IDs and reset keys outlive the daemon: a connector learns of the restart by a stateless reset, well before its
/// connection would have timed out (15 s after the last packet).
#[test]
fn a_connector_is_back_seconds_after_the_node_was_killed() {
    let mut lab = TunnelLab::start("xdp", true).unwrap();
    let token = lab.token("hq", 0).unwrap();
    let _connector = Connector::enrol(&lab.dir.join("hq"), Some(&lab.office), &token).unwrap();
    lab.connected("hq", 2).unwrap();
    // A machine that takes long to start a node says nothing: it is asked again.
    for _ in 0..5 {
        lab.node.process().unwrap().kill().unwrap();
        let killed = Instant::now();
        lab.node.restart().unwrap();
        let started = killed.elapsed();
        lab.connected("hq", 2).unwrap();
        if killed.elapsed() < Duration::from_secs(13) {
            return;
        }
        assert!(started > Duration::from_secs(6), "{started:?}, then {:?}", killed.elapsed() - started);
    }
    panic!("this machine never starts a node in time");
}

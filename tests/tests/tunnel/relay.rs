//! Two ends as processes, and the node's relay between them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use portcullis::clock;
use portcullis::tunnel::relay::{SessionRef, Terms};
use portcullis_tests::relay::RelayNode;

const PATIENCE: Duration = Duration::from_secs(30);
const SESSION: SessionRef = SessionRef { index: 12, generation: 34 };

fn terms() -> Terms {
    Terms { identity: 1, epoch: 0, expires: clock::monotonic() + Duration::from_secs(120) }
}

fn end() -> Command {
    Command::new(env!("CARGO_BIN_EXE_relay_end"))
}

#[test]
fn a_session_between_families_survives_a_move_and_dies_by_revocation() {
    // Dual stack, as the node's own socket is.
    let node = RelayNode::start(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap(), None).unwrap();
    let port = node.local().port();
    let [client, connector] = node.open(SESSION, terms()).unwrap();
    let v4 = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v6 = |port| SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let mut connector = node.end(end(), &connector, v6(port), v6(0)).unwrap();
    let mut client = node.end(end(), &client, v4(port), v4(0)).unwrap();
    connector.ready(PATIENCE).unwrap();
    client.ready(PATIENCE).unwrap();
    client.trust(&connector).unwrap();
    client.send(5_000_000, PATIENCE).unwrap();

    client.move_to(v4(0)).unwrap();
    client.ready(PATIENCE).unwrap();
    client.send(5_000_000, PATIENCE).unwrap();
    let [up, down] = node.relay().sent(SESSION).unwrap().all();
    assert!(up.bytes > 10_000_000 && down.packets > 0, "{up:?} {down:?}");

    assert_eq!(node.remove(SESSION).unwrap().inputs.len(), 2);
    assert!(client.send(1, Duration::from_secs(1)).is_err());
}

//! A node is no amplifier: to an address that has proven nothing it sends at most three times what came from there
//! (RFC 9000 §8.1).

use std::net::Ipv4Addr;
use std::time::Duration;

use quinn::Endpoint;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::lab::{Lab, soon};
use crate::tunnel::enrolment::node_key;
use crate::tunnel::identity::{SERVER_NAME, TunnelKey};
use crate::tunnel::transport::connector_config;

/// How long the answers are counted: the node repeats them after its probe timeouts, which double from a second.
const COUNTED: Duration = Duration::from_secs(8);

/// The first datagram of a good client: a ClientHello padded to what an Initial must have.
async fn first_datagram(lab: &Lab) -> Vec<u8> {
    let capture = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let key = TunnelKey::from_pkcs8(TunnelKey::generate().unwrap()).unwrap();
    let node = node_key(&lab.node.store).await.unwrap().hash();
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let config = connector_config(&key, node).unwrap();
    let connecting = endpoint.connect_with(config, capture.local_addr().unwrap(), SERVER_NAME).unwrap();
    let mut datagram = vec![0; 65_536];
    let length = soon(capture.recv(&mut datagram)).await.unwrap();
    drop(connecting);
    datagram.truncate(length);
    datagram
}

#[tokio::test]
async fn an_address_that_proves_nothing_gets_at_most_three_times_its_bytes() {
    let lab = Lab::start().await;
    let initial = first_datagram(&lab).await;
    assert!(initial.len() >= 1200, "an Initial has 1200 bytes, not {}", initial.len());
    let victim = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    victim.send_to(&initial, lab.address).await.unwrap();
    let until = Instant::now() + COUNTED;
    let (mut received, mut datagrams) = (0, 0);
    let mut buffer = vec![0; 65_536];
    while let Ok(Ok(length)) = timeout_at(until, victim.recv(&mut buffer)).await {
        received += length;
        datagrams += 1;
    }
    assert!(datagrams > 0, "the control: the node answers a good Initial");
    assert!(received <= 3 * initial.len(), "{received} bytes for {} in {datagrams} datagrams", initial.len());
}

#[tokio::test]
async fn what_is_no_initial_of_full_size_gets_no_answer_or_less_than_it_sent() {
    let lab = Lab::start().await;
    let initial = first_datagram(&lab).await;
    let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut sent = 0;
    for datagram in [&initial[..1199], &initial[..20], b"\x40", &[0xc0; 1200]] {
        stranger.send_to(datagram, lab.address).await.unwrap();
        sent += datagram.len();
    }
    let until = Instant::now() + Duration::from_secs(2);
    let mut received = 0;
    let mut buffer = vec![0; 65_536];
    while let Ok(Ok(length)) = timeout_at(until, stranger.recv(&mut buffer)).await {
        received += length;
    }
    assert!(received <= sent, "{received} bytes for {sent}");
}

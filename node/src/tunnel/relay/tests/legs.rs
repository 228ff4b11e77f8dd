//! Many legs under one endpoint: what leaves by which socket, and from whom what was heard is said to be.

use std::io::IoSliceMut;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime as _, TokioRuntime};
use tokio::time::timeout;

use super::super::end::End;
use super::super::leg::BoundLeg;
use super::super::legs::{LegAddress, Legs};
use super::*;

fn udp() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// A leg that is in force, and the socket of the node behind it.
async fn leg(legs: &Legs) -> (LegAddress, Arc<BoundLeg>, tokio::net::UdpSocket) {
    let node = tokio::net::UdpSocket::from_std(udp()).unwrap();
    let socket = TokioRuntime.wrap_udp_socket(udp()).unwrap();
    let key = BindKey::from_bytes([1; 32]);
    let start = |now| End::start(key, [1; 16], SESSION, Leg::Client, 0, now);
    let (bound, socket) = BoundLeg::start(socket, node.local_addr().unwrap(), start);
    tokio::spawn(Arc::clone(&bound).run());
    bound.ready(1);
    let mut bind = [0; 100];
    node.recv_from(&mut bind).await.unwrap();
    (legs.add(socket), bound, node)
}

fn transmit(to: LegAddress, contents: &[u8]) -> Transmit<'_> {
    Transmit { destination: to.socket_addr(), ecn: None, contents, segment_size: None, src_ip: None }
}

/// Waits, as a connection does, where the leg's socket will not take it yet.
async fn send(legs: &Legs, to: LegAddress, contents: &[u8]) {
    let mut poller = Arc::new(legs.clone()).create_io_poller();
    while let Err(error) = legs.try_send(&transmit(to, contents)) {
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        let writable = std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx));
        timeout(Duration::from_secs(10), writable).await.unwrap().unwrap();
    }
}

async fn receive(legs: &Legs) -> (SocketAddr, Vec<u8>) {
    let mut buffer = vec![0; 65_536];
    let mut meta = [RecvMeta::default()];
    loop {
        let mut buffers = [IoSliceMut::new(&mut buffer)];
        let received = std::future::poll_fn(|cx| legs.poll_recv(cx, &mut buffers, &mut meta));
        assert_eq!(timeout(Duration::from_secs(10), received).await.unwrap().unwrap(), 1);
        if meta[0].len > 0 {
            return (meta[0].addr, buffer[..meta[0].len].to_vec());
        }
    }
}

#[test]
fn an_address_is_one_legs_or_nobodys() {
    for number in [0, 1, 77, u64::from(u32::MAX) + 5] {
        let text = format!(
            "[100::{:x}:{:x}:{:x}:{:x}]:1",
            number >> 48,
            (number >> 32) & 0xffff,
            (number >> 16) & 0xffff,
            number & 0xffff
        );
        let address: SocketAddr = text.parse().unwrap();
        assert_eq!(LegAddress::of(address).unwrap().socket_addr(), address);
    }
    for nobody in ["192.0.2.1:1", "[100::1]:2", "[200::1]:1", "[100:0:0:1::1]:1", "[::1]:1"] {
        assert_eq!(LegAddress::of(nobody.parse().unwrap()), None, "{nobody}");
    }
}

#[tokio::test]
async fn each_leg_has_a_socket_and_a_name_of_its_own() {
    let legs = Legs::default();
    let (one, _bound, node_of_one) = leg(&legs).await;
    let (two, _other, node_of_two) = leg(&legs).await;
    let mut buffer = [0; 100];
    send(&legs, one, b"for one").await;
    send(&legs, two, b"for two").await;
    let (length, from_one) = node_of_one.recv_from(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..length], b"for one");
    let (length, from_two) = node_of_two.recv_from(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..length], b"for two");
    assert_ne!(from_one, from_two);

    node_of_two.send_to(b"from two", from_two).await.unwrap();
    assert_eq!(receive(&legs).await, (two.socket_addr(), b"from two".to_vec()));
    node_of_one.send_to(b"from one", from_one).await.unwrap();
    assert_eq!(receive(&legs).await, (one.socket_addr(), b"from one".to_vec()));
    // A stranger is not heard, and a leg that is gone neither hears nor sends.
    node_of_two.send_to(b"stranger", from_one).await.unwrap();
    legs.remove(one);
    send(&legs, one, b"late").await;
    node_of_two.send_to(b"again", from_two).await.unwrap();
    assert_eq!(receive(&legs).await, (two.socket_addr(), b"again".to_vec()));
    assert_eq!(legs.len(), 1);
}

#[tokio::test]
async fn a_busy_leg_does_not_starve_the_others() {
    let legs = Legs::default();
    let (one, _bound, node_of_one) = leg(&legs).await;
    let (two, _other, node_of_two) = leg(&legs).await;
    let mut address = Vec::new();
    for (name, node) in [(one, &node_of_one), (two, &node_of_two)] {
        send(&legs, name, b"x").await;
        address.push(node.recv_from(&mut [0; 10]).await.unwrap().1);
    }
    for _ in 0..50 {
        node_of_one.send_to(b"many", address[0]).await.unwrap();
    }
    node_of_two.send_to(b"once", address[1]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut before = 0;
    while receive(&legs).await.0 == one.socket_addr() {
        before += 1;
    }
    assert!(before <= 2, "{before} of the busy leg's came first");
}

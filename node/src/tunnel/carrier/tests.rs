use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::{sleep, timeout};

use super::capsule::{MAX_DATAGRAM, encode};
use super::node::Shared;
use super::pump::IDLE;
use super::socket::CarriedSocket;
use super::{Carried, Ended, QUEUE, is_stream};
use crate::metrics::Metrics;
use crate::places::Full;
use crate::tunnel::relay::wire::{REQUEST_LEN, is_request};

const NODE: &str = "192.0.2.1:443";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn real() -> IpAddr {
    "198.51.100.7".parse().unwrap()
}

/// A UDP socket on which nothing ever comes but what it was made with, once.
#[derive(Debug)]
struct Wire(std::sync::Mutex<Option<SocketAddr>>);

#[derive(Debug)]
struct Always;

impl UdpPoller for Always {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Wire {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Always)
    }

    fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
        panic!("what is for a stream never reaches the wire")
    }

    fn poll_recv(
        &self,
        _: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let Some(from) = self.0.lock().unwrap().take() else { return Poll::Pending };
        bufs[0][..4].copy_from_slice(b"wire");
        meta[0] = RecvMeta { addr: from, len: 4, stride: 4, ecn: None, dst_ip: None };
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(address(NODE))
    }
}

struct World {
    metrics: Metrics,
    carried: Carried,
    socket: Arc<Shared>,
}

impl World {
    fn new(wire: Option<SocketAddr>) -> Self {
        let metrics = Metrics::new().unwrap();
        let carried = Carried::new(None, &metrics);
        let wire = Arc::new(Wire(std::sync::Mutex::new(wire)));
        let socket = Arc::new(carried.share(wire).unwrap());
        Self { metrics, carried, socket }
    }

    fn open(&self) -> DuplexStream {
        let (theirs, ours) = duplex(64 * 1024);
        tokio::spawn(self.carried.take(real(), false).unwrap().run(ours));
        theirs
    }

    fn streams(&self) -> i64 {
        self.metrics.carried_streams.get()
    }
}

async fn receive(socket: &dyn AsyncUdpSocket) -> (SocketAddr, Vec<u8>) {
    let (mut buffer, mut meta) = (vec![0; 2048], [RecvMeta::default()]);
    let received =
        std::future::poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta));
    assert_eq!(timeout(Duration::from_secs(10), received).await.unwrap().unwrap(), 1);
    (meta[0].addr, buffer[..meta[0].len].to_vec())
}

fn to(destination: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
    Transmit { destination, ecn: None, contents, segment_size, src_ip: None }
}

#[tokio::test]
async fn datagrams_go_both_ways_and_batches_are_taken_apart() {
    let world = World::new(None);
    let client = CarriedSocket::new(address(NODE), world.open(), ());
    client.try_send(&to(address(NODE), b"up", None)).unwrap();
    let (peer, datagram) = receive(&*world.socket).await;
    assert!(is_stream(peer) && datagram == b"up");
    assert_eq!(world.carried.real(peer), real());
    world.socket.try_send(&to(peer, b"onetwo3", Some(3))).unwrap();
    for expected in [&b"one"[..], b"two", b"3"] {
        assert_eq!(receive(&client).await, (address(NODE), expected.to_vec()));
    }
    assert!(client.local_addr().unwrap().is_ipv4());

    // A stream that is gone is nobody: its address is not the next one's, and the other end falls silent.
    let gone = client.gone();
    drop(client);
    timeout(Duration::from_secs(10), gone.cancelled()).await.unwrap();
    while world.streams() > 0 {
        sleep(Duration::from_millis(5)).await;
    }
    let _other = world.carried.take("203.0.113.1".parse().unwrap(), false).unwrap();
    assert_eq!(world.carried.real(peer), peer.ip());
    world.socket.try_send(&to(peer, b"late", None)).unwrap();
}

#[tokio::test]
async fn no_session_has_a_leg_on_a_stream() {
    let world = World::new(None);
    let client = CarriedSocket::new(address(NODE), world.open(), ());
    let binds: Vec<_> = (0..=u8::MAX).map(|first| [first; REQUEST_LEN]).filter(|it| is_request(it)).collect();
    assert!(!binds.is_empty());
    for bind in &binds {
        client.try_send(&to(address(NODE), bind, None)).unwrap();
    }
    client.try_send(&to(address(NODE), b"QUIC", None)).unwrap();
    assert_eq!(receive(&*world.socket).await.1, b"QUIC");
}

#[tokio::test]
async fn a_stream_that_has_ended_is_silence_to_quic() {
    let (theirs, ours) = duplex(1024);
    let client = Arc::new(CarriedSocket::new(address(NODE), ours, ()));
    drop(theirs);
    client.gone().cancelled().await;
    let mut poller = Arc::clone(&client).create_io_poller();
    for _ in 0..3 * QUEUE {
        std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.unwrap();
        client.try_send(&to(address(NODE), b"up", None)).unwrap();
    }
    let mut meta = [RecvMeta::default()];
    let nothing =
        std::future::poll_fn(|cx| client.poll_recv(cx, &mut [IoSliceMut::new(&mut [0; 64])], &mut meta));
    assert!(timeout(Duration::from_millis(50), nothing).await.is_err());
}

#[tokio::test]
async fn a_full_queue_holds_quic_back_until_there_is_room() {
    let (mut theirs, ours) = duplex(1024);
    let client = Arc::new(CarriedSocket::new(address(NODE), ours, ()));
    let mut sent = 0;
    while client.try_send(&to(address(NODE), &[0; 1000], None)).is_ok() {
        sent += 1;
        assert!(sent < 10 * QUEUE, "nobody reads");
        tokio::task::yield_now().await;
    }
    let mut poller = Arc::clone(&client).create_io_poller();
    let writable = std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx));
    assert!(timeout(Duration::from_millis(20), writable).await.is_err());
    let reading =
        tokio::spawn(async move { while theirs.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {} });
    let writable = std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx));
    timeout(Duration::from_secs(10), writable).await.unwrap().unwrap();
    client.try_send(&to(address(NODE), b"again", None)).unwrap();
    reading.abort();
}

#[tokio::test]
async fn what_the_node_cannot_pass_on_is_lost_and_counted() {
    let world = World::new(None);
    let mut stream = world.open();
    let mut bytes = BytesMut::new();
    encode(b"up", &mut bytes);
    stream.write_all(&bytes).await.unwrap();
    let (peer, _) = receive(&*world.socket).await;
    for _ in 0..2 * QUEUE {
        world.socket.try_send(&to(peer, &[0; 1200], None)).unwrap();
    }
    let lost = world.metrics.carried_dropped.with_label_values(&["queue"]).get();
    assert!(lost >= u64::try_from(QUEUE).unwrap() - 1, "{lost}");
}

#[tokio::test]
async fn nobody_on_the_wire_can_pose_as_a_stream() {
    let world = World::new(Some(address("[100::1]:1")));
    let (_, datagram) = receive(&*world.socket).await;
    assert!(datagram.is_empty());
    let honest = World::new(Some(address("[2001:db8::1]:1")));
    assert_eq!(receive(&*honest.socket).await.1, b"wire");
    for (text, stream) in [("[100::]:1", true), ("[100:0:0:1::]:1", false), ("1.0.0.0:1", false)] {
        assert_eq!(is_stream(address(text)), stream, "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_at_what_no_peer_sends_and_when_nothing_comes() {
    let world = World::new(None);
    let run = |bytes: &'static [u8]| {
        let stream = world.carried.take(real(), false).unwrap();
        async move {
            let (mut theirs, ours) = duplex(4096);
            theirs.write_all(bytes).await.unwrap();
            let ended = timeout(IDLE * 2, stream.run(ours)).await.expect("it ends");
            drop(theirs);
            ended
        }
    };
    assert!(MAX_DATAGRAM < 0x5ff);
    assert!(matches!(run(&[0, 0x46, 0x00]).await, Ended::Capsule(_)));
    assert!(matches!(run(&[0, 0]).await, Ended::Capsule(_)));
    // An unknown capsule is no sign of life.
    assert!(matches!(run(&[9, 1, 1]).await, Ended::Idle));
    assert_eq!(world.streams(), 0);
}

#[test]
fn streams_are_bounded_and_their_places_come_back() {
    let world = World::new(None);
    let mut held = Vec::new();
    let full = loop {
        match world.carried.take(real(), false) {
            Ok(stream) => held.push(stream),
            Err(full) => break full,
        }
    };
    assert_eq!((full, held.len(), world.streams()), (Full::Network, 1024, 1024));
    assert!(world.carried.take("203.0.113.1".parse().unwrap(), false).is_ok());
    held.clear();
    assert_eq!(world.streams(), 0);
    assert!(world.carried.take(real(), false).is_ok());
}

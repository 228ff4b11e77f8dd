use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex};
use tokio::time::{sleep, timeout};

use super::capsule::{MAX_DATAGRAM, encode};
use super::http::WebError;
use super::node::Shared;
use super::pump::IDLE;
use super::socket::{BATCHES, CarriedSocket};
use super::{Carried, Ended, QUEUE, is_stream};
use crate::clock;
use crate::gate::DatagramGate;
use crate::metrics::Metrics;
use crate::places::Full;
use crate::store::Store;
use crate::tunnel::ids::Mint;
use crate::tunnel::layered::LayeredSocket;
use crate::tunnel::relay::wire::{BindKey, seal_bind};
use crate::tunnel::relay::{Action, Demux, Leg, Pair, Relay, Removed, SessionRef, Terms, Usage};

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
        Self::with(wire, None, &Relay::new(clock::monotonic).0)
    }

    fn with(wire: Option<SocketAddr>, gate: Option<DatagramGate>, relay: &Arc<Relay>) -> Self {
        let metrics = Metrics::new().unwrap();
        let carried = Carried::new(gate, &metrics);
        let wire = Arc::new(Wire(std::sync::Mutex::new(wire)));
        let socket = Arc::new(carried.share(wire, relay).unwrap());
        Self { metrics, carried, socket }
    }

    fn dropped(&self, cause: &str) -> u64 {
        self.metrics.carried_dropped.with_label_values(&[cause]).get()
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
    assert_eq!(world.carried.real(peer), Some(real()));
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
    assert_eq!(world.carried.real(peer), None);
    world.socket.try_send(&to(peer, b"late", None)).unwrap();
}

const SESSION: SessionRef = SessionRef { index: 3, generation: 9 };

/// What a node's socket hands to QUIC. What it takes for itself has been taken when this returns.
async fn look(socket: &LayeredSocket<Demux>) {
    let (mut buffer, mut meta) = (vec![0; 2048], [RecvMeta::default()]);
    let received =
        std::future::poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta));
    assert_eq!(timeout(Duration::from_secs(10), received).await.unwrap().unwrap(), 1);
    assert_eq!(meta[0].len, 0, "nothing of it is QUIC's");
}

#[tokio::test]
async fn a_leg_on_a_stream_is_relayed_and_only_while_its_session_lives() {
    let directory = tempfile::tempdir().unwrap();
    let (gate, control) = DatagramGate::in_memory(vec![443]);
    let store = Store::open(directory.path()).unwrap();
    let mint = Mint::load(&store, Some(&control), clock::now()).await.unwrap();
    let (relay, mut queues) = Relay::new(clock::monotonic);
    let world = World::with(None, Some(gate), &relay);
    let socket = Arc::clone(&world.socket) as Arc<dyn AsyncUdpSocket>;
    let socket = Demux::share(socket, Arc::clone(&relay), Box::new(|_| false)).unwrap();
    let ends = [world.open(), world.open()].map(|stream| CarriedSocket::new(address(NODE), stream, ()));
    let mut tuples = Vec::new();
    for (end, leg) in ends.iter().zip(Leg::BOTH) {
        let key = BindKey::from_bytes([7; 32]);
        let bind = seal_bind(&key, SESSION, leg, &mint.ticket(), 1);
        end.try_send(&to(address(NODE), &bind, None)).unwrap();
        look(&socket).await;
        let heard = queues.binds.try_recv().unwrap();
        assert_eq!(heard.bytes, bind);
        assert!(is_stream(heard.tuple.remote()) && heard.tuple.local().ip().is_unspecified());
        tuples.push(heard.tuple);
    }
    // Of no session yet: the gate's to judge, and it knows nothing of it.
    ends[0].try_send(&to(address(NODE), b"early", None)).unwrap();
    while world.dropped("gate") == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    let terms = Terms { identity: 0, epoch: 0, expires: clock::monotonic() + Duration::from_secs(60) };
    let pair = Pair { session: SESSION, terms, client: tuples[0], connector: tuples[1] };
    assert!(relay.perform(&Action::Install(pair)));
    for (from, there) in [(0, 1), (1, 0)] {
        ends[from].try_send(&to(address(NODE), b"end to end", None)).unwrap();
        look(&socket).await;
        assert_eq!(receive(&ends[there]).await, (address(NODE), b"end to end".to_vec()));
    }
    let sent = relay.sent(SESSION).unwrap();
    assert_eq!(sent.past_gate, [Usage { packets: 1, bytes: 10 + 48 }; 2]);
    assert_eq!((sent.by_udp, sent.all()), ([Usage::default(); 2], sent.past_gate));

    assert!(relay.remove(&Removed { session: SESSION, inputs: tuples }).is_some());
    ends[0].try_send(&to(address(NODE), b"late", None)).unwrap();
    while world.dropped("gate") < 2 {
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_comes_before_the_tunnel_is_served_is_heard_by_nobody() {
    let metrics = Metrics::new().unwrap();
    let carried = Carried::new(None, &metrics);
    let (theirs, ours) = duplex(64 * 1024);
    tokio::spawn(carried.take(real(), false).unwrap().run(ours));
    let client = CarriedSocket::new(address(NODE), theirs, ());
    client.try_send(&to(address(NODE), b"early", None)).unwrap();
    sleep(Duration::from_millis(50)).await;
    let (relay, _) = Relay::new(clock::monotonic);
    let wire = Arc::new(Wire(std::sync::Mutex::new(None)));
    let socket = carried.share(wire, &relay).unwrap();
    client.try_send(&to(address(NODE), b"now", None)).unwrap();
    assert_eq!(receive(&socket).await.1, b"now");
}

#[tokio::test]
async fn what_is_sent_before_the_stream_is_there_waits_for_it() {
    let world = World::new(None);
    let (open, opened) = tokio::sync::oneshot::channel();
    let stream = async move { Ok((opened.await.map_err(|_| WebError::Timeout)?, ())) };
    let client = CarriedSocket::opening(address(NODE), stream);
    client.try_send(&to(address(NODE), b"onetwo3", Some(3))).unwrap();
    open.send(world.open()).map_err(drop).unwrap();
    for expected in [&b"one"[..], b"two", b"3"] {
        assert_eq!(receive(&*world.socket).await.1, expected);
    }
    let never = std::future::ready(Err::<(DuplexStream, ()), _>(WebError::Timeout));
    let client = CarriedSocket::opening(address(NODE), never);
    client.gone().cancelled().await;
    client.try_send(&to(address(NODE), b"lost", None)).unwrap();
}

#[tokio::test]
async fn a_stream_that_has_ended_is_silence_to_quic() {
    let (theirs, ours) = duplex(1024);
    let client = Arc::new(CarriedSocket::new(address(NODE), ours, ()));
    drop(theirs);
    client.gone().cancelled().await;
    let mut poller = Arc::clone(&client).create_io_poller();
    for _ in 0..3 * BATCHES {
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
        assert!(sent < 10 * BATCHES, "nobody reads");
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
    let lost = world.dropped("queue");
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
    const { assert!(MAX_DATAGRAM < 0x5ff) };
    assert!(matches!(run(&[0, 0x46, 0x00]).await, Ended::Capsule(_)));
    assert!(matches!(run(&[0, 0]).await, Ended::Capsule(_)));
    // An unknown capsule is no sign of life.
    assert!(matches!(run(&[9, 1, 1]).await, Ended::Idle));
    assert_eq!(world.streams(), 0);
}

/// Has a capsule that nobody knows whenever it is read, and a second passes by that; for twice as long as a stream may be
/// idle.
struct Talker(u64);

impl AsyncRead for Talker {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0 < 2 * IDLE.as_secs() {
            self.0 += 1;
            // The first poll moves the clock.
            let _ = std::pin::pin!(tokio::time::advance(Duration::from_secs(1))).poll(cx);
            buffer.put_slice(&[9, 1, 1]);
        }
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_only_says_what_nobody_takes_ends_too() {
    let world = World::new(None);
    let stream = world.carried.take(real(), false).unwrap();
    let ended = stream.run(tokio::io::join(Talker(0), tokio::io::sink())).await;
    assert!(matches!(ended, Ended::Idle), "{ended:?}");
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

//! The node's end: streams as peers of the node's UDP socket.
//!
//! Each stream is given an address of `100::/64`, the discard prefix (RFC 6666), which is no host's: a datagram from the
//! wire that claims one is dropped. QUIC, the relay and everything else above the socket know the stream by that
//! address; what is said to people and what is counted against a network is the address of the TCP connection.
//!
//! What comes by a stream is judged by the gate's own function before anything sees it. Its budgets are its own,
//! so that strangers on TCP take nothing from those on UDP. A session may have a leg on a stream, which the daemon then
//! relays: the kernel could send nothing to where it comes from.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use prometheus::{IntCounter, IntGauge};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::clock;
use crate::gate::{Control, DatagramGate, PeerAddress};
use crate::metrics::Metrics;
use crate::places::{Full, Limits, Place, Places};

use super::QUEUE;
use super::pump::{Ended, Outgoing, carry};
use crate::tunnel::relay::wire::is_request;
use crate::tunnel::relay::{Relay, Tuple};

/// The discard prefix.
const PREFIX: [u16; 4] = [0x100, 0, 0, 0];

/// Streams. One costs at most [`QUEUE`] datagrams and what HTTP/2 holds of one stream. A network has room for a connector
/// and the sessions at it.
const STREAMS: Limits = Limits { all: 8192, reserved: 2048, network: 1024, region: 2048 };

/// Datagrams of all streams that wait for QUIC.
const ARRIVED: usize = 1024;

/// The streams of a node that carry datagrams. Clones share them.
#[derive(Clone)]
pub struct Carried(Arc<Inner>);

struct Inner {
    gate: Option<DatagramGate>,
    places: Places,
    peers: RwLock<Peers>,
    /// Once the tunnel is served.
    served: OnceLock<Served>,
    arrived: mpsc::Sender<Arrived>,
    /// For the first socket.
    queue: Mutex<Option<mpsc::Receiver<Arrived>>>,
    streams: IntGauge,
    dropped: [IntCounter; 2],
}

/// By the gate; because the stream's queue was full.
const BY_GATE: usize = 0;
const CONGESTED: usize = 1;

struct Arrived {
    from: SocketAddr,
    datagram: Bytes,
}

/// The socket to which streams belong, and the relay on it.
struct Served {
    local: SocketAddr,
    /// Which holds the socket, which holds this.
    relay: Weak<Relay>,
}

struct Peers {
    next: u64,
    by_slot: BTreeMap<u16, Peer>,
}

struct Peer {
    /// Given once: what belongs to a stream that is gone is no other's.
    serial: u64,
    /// Of the TCP connection.
    real: IpAddr,
    outgoing: mpsc::Sender<Outgoing>,
}

impl Carried {
    /// No streams yet. `gate` judges what they bring; without one nothing is judged, as on the UDP socket.
    pub fn new(gate: Option<DatagramGate>, metrics: &Metrics) -> Self {
        let (arrived, queue) = mpsc::channel(ARRIVED);
        Self(Arc::new(Inner {
            gate,
            places: Places::new(STREAMS),
            // An earlier process may have left entries for its own streams in the gate.
            peers: RwLock::new(Peers { next: u64::from_ne_bytes(clock::random()), by_slot: BTreeMap::new() }),
            served: OnceLock::new(),
            arrived,
            queue: Mutex::new(Some(queue)),
            streams: metrics.carried_streams.clone(),
            dropped: ["gate", "queue"].map(|cause| metrics.carried_dropped.with_label_values(&[cause])),
        }))
    }

    /// Room for a stream of a TCP connection from `real`, whose network is known or not.
    pub fn take(&self, real: IpAddr, known: bool) -> Result<Stream, Full> {
        let place = self.0.places.take(real, known)?;
        let (outgoing, queue) = mpsc::channel(QUEUE);
        let mut peers = self.0.write();
        let serial = peers.next;
        peers.next = serial.wrapping_add(1);
        // There are fewer places than slots.
        let slot = (0..=u16::MAX)
            .map(|step| u16::try_from(serial & 0xffff).unwrap_or(0).wrapping_add(step))
            .find(|slot| *slot != 0 && !peers.by_slot.contains_key(slot))
            .ok_or(Full::All)?;
        peers.by_slot.insert(slot, Peer { serial, real, outgoing });
        self.0.streams.inc();
        Ok(Stream { carried: self.clone(), serial, slot, real, queue, _place: place })
    }

    /// The socket to serve, which `relay` shares: `socket`, and for the first of them all streams.
    pub(in crate::tunnel) fn share(
        &self,
        socket: Arc<dyn AsyncUdpSocket>,
        relay: &Arc<Relay>,
    ) -> io::Result<Shared> {
        let local = socket.local_addr()?;
        let queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        if queue.is_some() {
            self.0.served.get_or_init(|| Served { local, relay: Arc::downgrade(relay) });
        }
        Ok(Shared {
            socket,
            carried: self.clone(),
            queue: Mutex::new(queue),
            streams_first: AtomicBool::new(false),
        })
    }

    /// Where a peer of the socket really is: a stream's TCP connection, or where its datagrams come from. None: the stream
    /// is gone.
    pub(in crate::tunnel) fn real(&self, address: SocketAddr) -> Option<IpAddr> {
        if !is_stream(address) {
            return Some(address.ip().to_canonical());
        }
        self.0.read().find(address).map(|peer| peer.real)
    }

    /// For a stream: the gate that judges it, and what it is there. None: it is none, or its datagrams are not judged.
    pub(in crate::tunnel) fn at_gate(&self, address: SocketAddr) -> Option<(Control, PeerAddress)> {
        let gate = self.0.gate.as_ref()?;
        let peers = self.0.read();
        let remote = SocketAddr::new(peers.find(address)?.real, address.port());
        Some((gate.control(), PeerAddress { local: self.0.served.get()?.local, remote }))
    }
}

/// The tuple of what a stream brings to a socket of this port: of the stream's family, whatever the socket's.
pub(in crate::tunnel) fn tuple_of_stream(stream: SocketAddr, port: u16) -> Tuple {
    Tuple::new(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), stream)
}

/// Whether an address is a stream's, and of no host.
pub(in crate::tunnel) fn is_stream(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V6(ip) if ip.segments().starts_with(&PREFIX))
}

impl Inner {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Peers> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Peers> {
        self.peers.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_datagrams(&self, cause: usize, count: u64) {
        if let Some(counter) = self.dropped.get(cause) {
            counter.inc_by(count);
        }
    }
}

impl Peers {
    fn find(&self, address: SocketAddr) -> Option<&Peer> {
        let peer = self.by_slot.get(&address.port())?;
        (address.ip() == ip(peer.serial)).then_some(peer)
    }
}

fn ip(serial: u64) -> IpAddr {
    let [a, b, c, d] = PREFIX;
    let prefix = Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).to_bits();
    Ipv6Addr::from_bits(prefix | u128::from(serial)).into()
}

/// One stream; forgotten when dropped.
pub struct Stream {
    carried: Carried,
    serial: u64,
    slot: u16,
    real: IpAddr,
    queue: mpsc::Receiver<Outgoing>,
    _place: Place,
}

impl Stream {
    /// Carries datagrams until the stream ends.
    pub async fn run(mut self, stream: impl AsyncRead + AsyncWrite) -> Ended {
        let (_, nothing) = mpsc::channel(1);
        let queue = std::mem::replace(&mut self.queue, nothing);
        let from = SocketAddr::new(ip(self.serial), self.slot);
        let at_gate = SocketAddr::new(self.real, self.slot);
        let inner = &self.carried.0;
        let take = |datagram: Bytes| {
            // Before the tunnel is served there is nobody to hear it.
            let served = inner.served.get()?;
            let is_flow = || {
                let tuple = tuple_of_stream(from, served.local.port());
                !is_request(&datagram) && served.relay.upgrade().is_some_and(|relay| relay.has_flow(tuple))
            };
            if let Some(gate) = &inner.gate
                && !is_flow()
                && !gate.admit(at_gate, served.local, &datagram).is_pass()
                && gate.enforces()
            {
                inner.drop_datagrams(BY_GATE, 1);
                return None;
            }
            Some(Arrived { from, datagram })
        };
        carry(stream, queue, inner.arrived.clone(), take).await
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.carried.0.write().by_slot.remove(&self.slot);
        self.carried.0.streams.dec();
    }
}

/// A UDP socket of the node's, and all streams as further peers of it.
pub(in crate::tunnel) struct Shared {
    socket: Arc<dyn AsyncUdpSocket>,
    carried: Carried,
    queue: Mutex<Option<mpsc::Receiver<Arrived>>>,
    /// Whose turn it is, so that neither waits for the other.
    streams_first: AtomicBool,
}

impl Shared {
    fn poll_streams(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<usize> {
        let mut queue: MutexGuard<'_, _> = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(queue) = queue.as_mut() else { return Poll::Pending };
        let mut filled = 0;
        for (buffer, meta) in bufs.iter_mut().zip(meta) {
            let arrived = match queue.poll_recv(cx) {
                Poll::Ready(Some(arrived)) => arrived,
                Poll::Ready(None) | Poll::Pending => break,
            };
            *meta = received(buffer, &arrived.datagram, arrived.from);
            filled += 1;
        }
        if filled == 0 { Poll::Pending } else { Poll::Ready(filled) }
    }

    fn poll_socket(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = ready!(self.socket.poll_recv(cx, bufs, meta))?;
        for meta in meta.iter_mut().take(received) {
            if is_stream(meta.addr) {
                // Of no length, a buffer is passed over by the endpoint.
                meta.len = 0;
            }
        }
        Poll::Ready(Ok(received))
    }
}

/// Puts a datagram where QUIC looks for it; one that is too long for that place is lost.
pub(super) fn received(buffer: &mut [u8], datagram: &[u8], from: SocketAddr) -> RecvMeta {
    let len = match buffer.get_mut(..datagram.len()) {
        Some(place) => {
            place.copy_from_slice(datagram);
            datagram.len()
        }
        None => 0,
    };
    RecvMeta { addr: from, len, stride: len, ecn: None, dst_ip: None }
}

impl AsyncUdpSocket for Shared {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if !is_stream(transmit.destination) {
            return self.socket.try_send(transmit);
        }
        // As on any network, what finds no room or nobody is lost.
        let inner = &self.carried.0;
        let peers = inner.read();
        let Some(peer) = peers.find(transmit.destination) else { return Ok(()) };
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for datagram in transmit.contents.chunks(size) {
            if peer.outgoing.try_send(Outgoing::one(datagram)).is_err() {
                inner.drop_datagrams(CONGESTED, 1);
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if self.streams_first.fetch_xor(true, Ordering::Relaxed) {
            if let Poll::Ready(received) = self.poll_streams(cx, bufs, meta) {
                return Poll::Ready(Ok(received));
            }
            return self.poll_socket(cx, bufs, meta);
        }
        if let Poll::Ready(received) = self.poll_socket(cx, bufs, meta) {
            return Poll::Ready(received);
        }
        self.poll_streams(cx, bufs, meta).map(Ok)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("socket", &self.socket).finish_non_exhaustive()
    }
}

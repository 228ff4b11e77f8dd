//! Many legs under one QUIC endpoint.
//!
//! ```text
//! quinn endpoint ── destination 100::N ──▶ leg N's socket ──▶ its node       one port of its own for each session
//!                ◀── source 100::N ─────── whatever that socket hears        one receive buffer for all of them
//! ```
//!
//! QUIC sees each leg as a peer with an address that exists nowhere else (the discard-only prefix, RFC 6666), so which
//! session a connection belongs to follows from its remote address alone. An endpoint for each session would hold
//! megabytes of receive buffer; here an idle leg costs a socket, its [`super::BoundLeg`] and a place in a map.
//!
//! What quinn does not know is which socket a connection waits for when it cannot send. It asks in the same thread
//! directly after the refusal ([`UdpPoller::poll_writable`] must be called then), which is how [`Poller`] finds out.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Context, Poll, Wake, Waker};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::super::layered::LayeredSocket;
use super::leg::LegLayer;

/// Datagrams that the kernel takes apart or puts together at once, at the most (UDP_MAX_SEGMENTS).
const MAX_SEGMENTS: usize = 64;

/// Legs that are asked in one go: a socket that fails again and again must not hold the thread.
const MAX_ATTEMPTS: usize = 64;

/// The port of every leg's address, which is no port anywhere.
const PORT: u16 = 1;

/// Which leg, as QUIC sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LegAddress(u64);

impl LegAddress {
    pub const fn socket_addr(self) -> SocketAddr {
        let [a, b, c, d, e, f, g, h] = self.0.to_be_bytes();
        let octets = [1, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, e, f, g, h];
        SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from_octets(octets), PORT, 0, 0))
    }

    /// The leg that a connection's remote address means.
    pub fn of(address: SocketAddr) -> Option<Self> {
        let SocketAddr::V6(address) = address else { return None };
        let octets = address.ip().octets();
        let (prefix, number) = octets.split_first_chunk::<8>()?;
        let number = u64::from_be_bytes(number.try_into().ok()?);
        (*prefix == [1, 0, 0, 0, 0, 0, 0, 0] && address.port() == PORT).then_some(Self(number))
    }
}

/// A socket for a quinn endpoint that is all the sockets of these legs. Clones are the same.
#[derive(Clone)]
pub struct Legs {
    shared: Arc<Shared>,
}

struct Shared {
    legs: RwLock<HashMap<LegAddress, Arc<Place>>>,
    next: AtomicU64,
    ready: Mutex<Ready>,
    /// As many segments as every leg's interface can send at once.
    segments: AtomicUsize,
}

#[derive(Default)]
struct Ready {
    /// Legs that may have something to read.
    queue: VecDeque<Arc<Place>>,
    endpoint: Option<Waker>,
}

/// One leg, and who is to be woken when it can be read.
struct Place {
    address: LegAddress,
    socket: RwLock<Arc<LayeredSocket<LegLayer>>>,
    queued: AtomicBool,
    shared: std::sync::Weak<Shared>,
}

thread_local! {
    /// The leg that refused the last datagram of this thread.
    static REFUSED: RefCell<Option<Arc<LayeredSocket<LegLayer>>>> = const { RefCell::new(None) };
}

impl Default for Legs {
    fn default() -> Self {
        let shared = Shared {
            legs: RwLock::default(),
            next: AtomicU64::new(1),
            ready: Mutex::default(),
            segments: AtomicUsize::new(MAX_SEGMENTS),
        };
        Self { shared: Arc::new(shared) }
    }
}

impl Legs {
    /// Adds the second part of [`super::BoundLeg::start`], which is read from now on.
    pub fn add(&self, socket: LayeredSocket<LegLayer>) -> LegAddress {
        let address = LegAddress(self.shared.next.fetch_add(1, Ordering::Relaxed));
        let place = Arc::new(Place {
            address,
            socket: RwLock::new(Arc::new(socket)),
            queued: AtomicBool::new(false),
            shared: Arc::downgrade(&self.shared),
        });
        self.shared.legs.write().unwrap_or_else(PoisonError::into_inner).insert(address, Arc::clone(&place));
        place.wake();
        address
    }

    /// The leg goes on from another socket: what [`super::BoundLeg::move_to`] returned. False: there is no such leg.
    pub fn replace(&self, address: LegAddress, socket: LayeredSocket<LegLayer>) -> bool {
        let Some(place) = self.shared.leg(address) else { return false };
        *place.socket.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(socket);
        place.wake();
        true
    }

    /// Closes the leg's socket.
    pub fn remove(&self, address: LegAddress) {
        self.shared.legs.write().unwrap_or_else(PoisonError::into_inner).remove(&address);
    }

    pub fn len(&self) -> usize {
        self.shared.legs.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Shared {
    fn leg(&self, address: LegAddress) -> Option<Arc<Place>> {
        self.legs.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
    }

    fn ready(&self) -> MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn socket(&self) -> Arc<LayeredSocket<LegLayer>> {
        Arc::clone(&self.socket.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Wake for Place {
    fn wake(self: Arc<Self>) {
        let Some(shared) = self.shared.upgrade() else { return };
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut ready = shared.ready();
        ready.queue.push_back(self);
        let endpoint = ready.endpoint.take();
        drop(ready);
        if let Some(endpoint) = endpoint {
            endpoint.wake();
        }
    }
}

impl AsyncUdpSocket for Legs {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { waits_for: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(place) = LegAddress::of(transmit.destination).and_then(|address| self.shared.leg(address))
        else {
            // Its session is over: lost, as on any network.
            return Ok(());
        };
        let socket = place.socket();
        let outcome = socket.send_to_node(transmit);
        if outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            REFUSED.set(Some(socket));
            return outcome;
        }
        self.shared.segments.fetch_min(socket.max_transmit_segments(), Ordering::Relaxed);
        // One leg's trouble must not end the endpoint that serves all of them; a lost packet is sent again.
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        for _ in 0..MAX_ATTEMPTS {
            let mut ready = self.shared.ready();
            let Some(place) = ready.queue.pop_front() else {
                ready.endpoint = Some(cx.waker().clone());
                return Poll::Pending;
            };
            drop(ready);
            place.queued.store(false, Ordering::Release);
            if self.shared.leg(place.address).is_none() {
                continue;
            }
            let waker = Waker::from(Arc::clone(&place));
            match place.socket().poll_recv(&mut Context::from_waker(&waker), bufs, meta) {
                Poll::Pending => {}
                Poll::Ready(Ok(count)) => {
                    // There may be more; the others come first.
                    Arc::clone(&place).wake();
                    let remote = place.address.socket_addr();
                    for meta in meta.iter_mut().take(count) {
                        meta.addr = remote;
                        meta.dst_ip = None;
                    }
                    return Poll::Ready(Ok(count));
                }
                // Of a datagram socket: news of an earlier packet. There may be more to read behind it.
                Poll::Ready(Err(_)) => waker.wake(),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// No leg's own: the address that an endpoint without a network has.
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(LegAddress(0).socket_addr())
    }

    fn max_transmit_segments(&self) -> usize {
        self.shared.segments.load(Ordering::Relaxed)
    }

    fn max_receive_segments(&self) -> usize {
        MAX_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Waits for the leg that refused, if one did.
struct Poller {
    waits_for: Option<Pin<Box<dyn UdpPoller>>>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(refused) = REFUSED.take() {
            self.waits_for = Some(refused.create_io_poller());
        }
        let Some(waits_for) = &mut self.waits_for else { return Poll::Ready(Ok(())) };
        std::task::ready!(waits_for.as_mut().poll_writable(cx))?;
        self.waits_for = None;
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for Legs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Legs({})", self.len())
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Poller")
    }
}

//! An end's UDP socket: its leg is bound and kept bound under the end-to-end QUIC connection that runs over it.

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use quinn::AsyncUdpSocket;
use quinn::udp::{RecvMeta, Transmit};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::super::layered::{Layer, LayeredSocket};
use super::end::{End, EndInput, EndOutput, LegState};
use super::tuple::SessionRef;
use super::wire::{BindKey, REQUEST_LEN, Ticket, is_challenge};

/// Before a connection has measured its path (RFC 9002 §6.2.2 begins with 333 ms of round trip, three times over).
const INITIAL_PTO: Duration = Duration::from_millis(999);

/// One leg of one session, from its own UDP port, kept bound for as long as [`Self::run`] runs.
pub struct BoundLeg {
    /// Where packets leave from now.
    socket: RwLock<Arc<dyn AsyncUdpSocket>>,
    node: SocketAddr,
    began: Instant,
    inner: Mutex<Inner>,
    state: watch::Sender<LegState>,
    timer_moved: Notify,
}

struct Inner {
    end: End,
    pto: Duration,
    /// When the other end was heard last.
    heard: Option<Duration>,
    /// The socket would not take it yet: a new one takes nothing before its first look at the network.
    unsent: Option<[u8; REQUEST_LEN]>,
}

impl BoundLeg {
    /// Starts to bind from `socket` to the node's relay address: `start` gets the time, and says what [`End::start`] said.
    /// Challenges are heard only while a quinn endpoint reads from the second part.
    pub fn start(
        socket: Arc<dyn AsyncUdpSocket>,
        node: SocketAddr,
        start: impl FnOnce(Duration) -> (End, EndOutput),
    ) -> (Arc<Self>, LayeredSocket<LegLayer>) {
        let (end, first) = start(Duration::ZERO);
        let leg = Arc::new(Self {
            socket: RwLock::new(Arc::clone(&socket)),
            node: SocketAddr::new(node.ip().to_canonical(), node.port()),
            began: Instant::now(),
            inner: Mutex::new(Inner { end, pto: INITIAL_PTO, heard: None, unsent: None }),
            state: watch::Sender::new(LegState::Binding),
            timer_moved: Notify::new(),
        });
        leg.perform(&[first]);
        (Arc::clone(&leg), LayeredSocket::new(socket, LegLayer { leg }))
    }

    /// Goes on from another socket, as after a change of network: for [`quinn::Endpoint::rebind_abstract`].
    pub fn move_to(self: &Arc<Self>, socket: Arc<dyn AsyncUdpSocket>) -> LayeredSocket<LegLayer> {
        *self.socket.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&socket);
        self.handle(EndInput::AddressChanged);
        LayeredSocket::new(socket, LegLayer { leg: Arc::clone(self) })
    }

    /// Binds, and binds again, until this future is dropped.
    pub async fn run(self: Arc<Self>) -> Infallible {
        loop {
            let deadline = self.inner().end.deadline().map(|at| self.began + at);
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let unsent = self.inner().unsent.is_some();
            tokio::select! {
                () = timer => self.handle(EndInput::Timer),
                () = self.timer_moved.notified() => {}
                () = self.writable(), if unsent => {
                    let unsent = self.inner().unsent.take();
                    if let Some(datagram) = unsent {
                        self.perform(&[EndOutput::Send(datagram)]);
                    }
                }
            }
        }
    }

    /// A new control connection takes over: the leg binds again with the key and ticket that it was given there. Packets
    /// go on where they went before.
    pub fn rekey(&self, key: BindKey, ticket: Ticket) {
        let now = self.began.elapsed();
        let mut inner = self.inner();
        let outputs = inner.end.rekey(key, ticket, now);
        self.tell(&inner);
        drop(inner);
        self.perform(&outputs);
        self.timer_moved.notify_one();
    }

    /// The node has given the session of a leg that began under an early name.
    pub fn name(&self, key: BindKey, ticket: Ticket, session: SessionRef) {
        let outputs = self.inner().end.name(key, ticket, session);
        self.perform(&outputs);
    }

    /// The node holds what is sent to the leg's ticket until the leg is in force.
    pub fn node_holds(&self) {
        let mut inner = self.inner();
        inner.end.node_holds();
        self.tell(&inner);
    }

    /// The control connection says that bind number `counter` is in force.
    pub fn ready(&self, counter: u64) {
        self.handle(EndInput::Ready { counter });
    }

    /// The connection's probe timeout, from which it follows how long a silence counts.
    pub fn set_pto(&self, pto: Duration) {
        self.inner().pto = pto;
    }

    /// Whether the other end was heard within this time.
    pub fn heard_within(&self, time: Duration) -> bool {
        let now = self.began.elapsed();
        self.inner().heard.is_some_and(|at| now.saturating_sub(at) < time)
    }

    /// The node's relay address.
    pub const fn node(&self) -> SocketAddr {
        self.node
    }

    pub fn state(&self) -> watch::Receiver<LegState> {
        self.state.subscribe()
    }

    /// Whether the leg came into force. False: it was given up.
    pub async fn wait_ready(&self) -> bool {
        let mut state = self.state.subscribe();
        let settled = state.wait_for(|state| matches!(state, LegState::Ready | LegState::GaveUp)).await;
        settled.is_ok_and(|state| *state == LegState::Ready)
    }

    /// Whether packets may leave by it, be it that the node holds them. False: it was given up.
    pub async fn wait_may_send(&self) -> bool {
        let mut state = self.state.subscribe();
        let settled = state.wait_for(|state| *state != LegState::Binding).await;
        settled.is_ok_and(|state| *state != LegState::GaveUp)
    }

    fn handle(&self, input: EndInput<'_>) {
        let now = self.began.elapsed();
        let mut inner = self.inner();
        if let EndInput::Heard = input {
            inner.heard = Some(now);
        }
        let before = inner.end.deadline();
        let outputs = inner.end.handle(input, now);
        let moved = inner.end.deadline() != before;
        self.tell(&inner);
        drop(inner);
        self.perform(&outputs);
        if moved {
            self.timer_moved.notify_one();
        }
    }

    /// Says how far the leg is: while the machine is held, or what another input makes of it could be overwritten by older
    /// news.
    fn tell(&self, inner: &Inner) {
        let state = inner.end.state();
        self.state.send_if_modified(|current| std::mem::replace(current, state) != state);
    }

    fn perform(&self, outputs: &[EndOutput]) {
        if outputs.is_empty() {
            return;
        }
        let socket = Arc::clone(&self.socket.read().unwrap_or_else(PoisonError::into_inner));
        for output in outputs {
            match output {
                EndOutput::Send(datagram) => {
                    let transmit = Transmit {
                        destination: self.node,
                        ecn: None,
                        contents: datagram,
                        segment_size: None,
                        src_ip: None,
                    };
                    // What else cannot be sent is lost, and sent again.
                    if socket
                        .try_send(&transmit)
                        .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
                    {
                        self.inner().unsent = Some(*datagram);
                        self.timer_moved.notify_one();
                    }
                }
                EndOutput::Ready | EndOutput::GaveUp => {}
            }
        }
    }

    async fn writable(&self) {
        let socket = Arc::clone(&self.socket.read().unwrap_or_else(PoisonError::into_inner));
        let mut poller = socket.create_io_poller();
        // A socket that fails is as good as one that takes datagrams: what it is given is lost.
        let _ = poll_fn(|cx| poller.as_mut().poll_writable(cx)).await;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket that sends nothing end to end before its leg is ready, and keeps challenges from QUIC.
///
/// The relay looks like one peer, the node: a quinn endpoint on this socket dials, or is dialled by, the node's address.
pub struct LegLayer {
    leg: Arc<BoundLeg>,
}

impl LayeredSocket<LegLayer> {
    /// Sends what an endpoint meant for another name of this leg.
    pub(super) fn send_to_node(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.try_send(&Transmit {
            destination: self.layer.leg.node,
            ecn: transmit.ecn,
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip: None,
        })
    }
}

impl Layer for LegLayer {
    fn may_send(&self) -> bool {
        self.leg.inner().end.may_send()
    }

    fn sent(&self) {
        let pto = self.leg.inner().pto;
        self.leg.handle(EndInput::Sent { pto });
    }

    fn received(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        let from_node = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port()) == self.leg.node;
        let filled = meta.len.min(buffer.len());
        if !from_node {
            meta.len = 0;
            return;
        }
        let datagrams = buffer.get(..filled).unwrap_or_default();
        let mut heard = false;
        for datagram in datagrams.chunks(meta.stride.max(1)) {
            if is_challenge(datagram) {
                self.leg.handle(EndInput::Challenge(datagram));
            } else {
                heard = true;
            }
        }
        // QUIC has no use for a challenge: its fixed bit is clear.
        if heard {
            self.leg.handle(EndInput::Heard);
        } else {
            meta.len = 0;
        }
    }
}

impl fmt::Debug for LegLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LegLayer").field("node", &self.leg.node).finish_non_exhaustive()
    }
}

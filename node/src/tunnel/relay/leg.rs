//! An end's UDP socket: its leg is bound and kept bound under the end-to-end QUIC connection that runs over it.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::end::{End, EndInput, EndOutput};
use super::wire::is_challenge;

/// Before a connection has measured its path (RFC 9002 §6.2.2 begins with 333 ms of round trip, three times over).
const INITIAL_PTO: Duration = Duration::from_millis(999);

/// How far a leg is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegState {
    /// Not in force, or in doubt.
    Binding,
    Ready,
    /// The node was not reached in time.
    GaveUp,
}

/// A socket that sends nothing end to end before its leg is ready, and binds again when it falls silent.
///
/// The relay looks like one peer, the node: a quinn endpoint on this socket dials, or is dialled by, the node's address.
pub struct LegSocket {
    socket: Arc<dyn AsyncUdpSocket>,
    node: SocketAddr,
    began: Instant,
    inner: Mutex<Inner>,
    state: watch::Sender<LegState>,
    timer_moved: Notify,
}

struct Inner {
    end: End,
    pto: Duration,
}

impl LegSocket {
    /// Starts to bind: `start` gets the time, and says what [`End::start`] said. [`Self::run`] keeps it going.
    pub fn new(
        socket: Arc<dyn AsyncUdpSocket>,
        node: SocketAddr,
        start: impl FnOnce(Duration) -> (End, EndOutput),
    ) -> Arc<Self> {
        let (end, first) = start(Duration::ZERO);
        let leg = Self {
            socket,
            node,
            began: Instant::now(),
            inner: Mutex::new(Inner { end, pto: INITIAL_PTO }),
            state: watch::Sender::new(LegState::Binding),
            timer_moved: Notify::new(),
        };
        leg.perform(&[first]);
        Arc::new(leg)
    }

    /// Binds, and binds again, until the leg is given up or this future is dropped.
    pub async fn run(self: Arc<Self>) {
        while *self.state.borrow() != LegState::GaveUp {
            let deadline = self.inner().end.deadline().map(|at| self.began + at);
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = timer => self.handle(EndInput::Timer),
                () = self.timer_moved.notified() => {}
            }
        }
    }

    /// The control connection says that bind number `counter` is in force.
    pub fn ready(&self, counter: u64) {
        self.handle(EndInput::Ready { counter });
    }

    /// Packets now leave from another local address.
    pub fn address_changed(&self) {
        self.handle(EndInput::AddressChanged);
    }

    /// The connection's probe timeout, from which it follows how long a silence counts.
    pub fn set_pto(&self, pto: Duration) {
        self.inner().pto = pto;
    }

    pub fn state(&self) -> watch::Receiver<LegState> {
        self.state.subscribe()
    }

    /// Whether the leg came into force. False: it was given up.
    pub async fn wait_ready(&self) -> bool {
        let mut state = self.state.subscribe();
        let settled = state.wait_for(|state| *state != LegState::Binding).await;
        settled.is_ok_and(|state| *state == LegState::Ready)
    }

    fn handle(&self, input: EndInput<'_>) {
        let now = self.began.elapsed();
        let mut inner = self.inner();
        let before = inner.end.deadline();
        let outputs = inner.end.handle(input, now);
        let moved = inner.end.deadline() != before;
        let ready = inner.end.is_ready();
        drop(inner);
        self.perform(&outputs);
        if ready {
            self.enter(LegState::Ready);
        } else if *self.state.borrow() == LegState::Ready {
            self.enter(LegState::Binding);
        }
        if moved {
            self.timer_moved.notify_one();
        }
    }

    fn perform(&self, outputs: &[EndOutput]) {
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
                    // What cannot be sent is lost, and sent again.
                    let _ = self.socket.try_send(&transmit);
                }
                EndOutput::Ready => self.enter(LegState::Ready),
                EndOutput::GaveUp => self.enter(LegState::GaveUp),
            }
        }
    }

    fn enter(&self, state: LegState) {
        self.state.send_if_modified(|current| std::mem::replace(current, state) != state);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncUdpSocket for LegSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let inner = self.inner();
        let (may_send, pto) = (inner.end.may_send(), inner.pto);
        drop(inner);
        if !may_send {
            // As if lost: QUIC sends it again.
            return Ok(());
        }
        self.socket.try_send(transmit)?;
        self.handle(EndInput::Sent { pto });
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = std::task::ready!(self.socket.poll_recv(cx, bufs, meta))?;
        for (buffer, meta) in bufs.iter_mut().zip(meta.iter_mut()).take(received) {
            let remote = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
            let from_node = remote.ip() == self.node.ip().to_canonical() && remote.port() == self.node.port();
            let filled = meta.len.min(buffer.len());
            if !from_node {
                meta.len = 0;
                continue;
            }
            let datagrams = buffer.get(..filled).unwrap_or_default();
            let mut heard = false;
            for datagram in datagrams.chunks(meta.stride.max(1)) {
                if is_challenge(datagram) {
                    self.handle(EndInput::Challenge(datagram));
                } else {
                    heard = true;
                }
            }
            // QUIC has no use for a challenge: its fixed bit is clear.
            if heard {
                self.handle(EndInput::Heard);
            } else {
                meta.len = 0;
            }
        }
        Poll::Ready(Ok(received))
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

impl fmt::Debug for LegSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LegSocket").field("node", &self.node).finish_non_exhaustive()
    }
}

//! The dialling end: a stream as a UDP socket of QUIC's.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, PollSender};
use tracing::debug;

use super::http::WebError;
use super::node::received;
use super::pump::{Outgoing, carry};

/// Datagrams that wait to be written, as QUIC hands them over: some at a time, or one.
pub(super) const BATCHES: usize = 64;

/// Datagrams that wait to be read.
const ARRIVED: usize = 256;

/// The most that are handed over at once.
const MAX_SEGMENTS: usize = 16;

/// A socket that talks to one node. Whatever happens to its stream it never fails, it only falls silent: QUIC would give up
/// an endpoint whose socket fails, and it may yet get another one. Ends its stream when dropped.
pub(in crate::tunnel) struct CarriedSocket {
    node: SocketAddr,
    outgoing: mpsc::Sender<Outgoing>,
    incoming: Mutex<mpsc::Receiver<Bytes>>,
    gone: CancellationToken,
}

impl CarriedSocket {
    /// Datagrams to and from `node` in `stream`. `held` lives as long as the stream.
    pub(in crate::tunnel) fn new(
        node: SocketAddr,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        held: impl Send + 'static,
    ) -> Self {
        Self::opening(node, std::future::ready(Ok((stream, held))))
    }

    /// The same with a stream that is yet to come: what is sent meanwhile waits for it.
    pub(super) fn opening<S, H>(
        node: SocketAddr,
        open: impl Future<Output = Result<(S, H), WebError>> + Send + 'static,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
        H: Send + 'static,
    {
        let (outgoing, to_write) = mpsc::channel(BATCHES);
        let (read, incoming) = mpsc::channel(ARRIVED);
        let gone = CancellationToken::new();
        let ended = gone.clone().drop_guard();
        tokio::spawn(async move {
            match open.await {
                Ok((stream, held)) => {
                    let why = carry(stream, to_write, read, Some).await;
                    debug!(%node, %why, "a stream has ended");
                    drop(held);
                }
                Err(error) => debug!(%node, %error, "there is no stream"),
            }
            drop(ended);
        });
        Self { node, outgoing, incoming: Mutex::new(incoming), gone }
    }

    /// Fires when the stream has ended.
    pub(super) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }
}

impl AsyncUdpSocket for CarriedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room(Mutex::new(PollSender::new(self.outgoing.clone()))))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        let outgoing = Outgoing { bytes: Bytes::copy_from_slice(transmit.contents), segment };
        match self.outgoing.try_send(outgoing) {
            Err(mpsc::error::TrySendError::Full(_)) => Err(io::ErrorKind::WouldBlock.into()),
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        let mut filled = 0;
        for (buffer, meta) in bufs.iter_mut().zip(meta) {
            let Poll::Ready(Some(datagram)) = incoming.poll_recv(cx) else { break };
            *meta = received(buffer, &datagram, self.node);
            filled += 1;
        }
        if filled == 0 { Poll::Pending } else { Poll::Ready(Ok(filled)) }
    }

    /// Of the node's family, by which QUIC knows whom it may dial.
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(match self.node {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        })
    }

    fn max_transmit_segments(&self) -> usize {
        MAX_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl fmt::Debug for CarriedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CarriedSocket").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Waits for room in the queue.
struct Room(Mutex<PollSender<Outgoing>>);

impl UdpPoller for Room {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A queue that is closed takes anything.
        let _ = ready!(sender.poll_reserve(cx));
        // The room is for whoever sends next.
        sender.abort_send();
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").finish_non_exhaustive()
    }
}

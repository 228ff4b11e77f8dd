//! A UDP socket with a layer between it and QUIC.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// What a layer does with datagrams on their way.
pub trait Layer: fmt::Debug + Send + Sync + 'static {
    /// Sees a buffer of datagrams of one sender, each `meta.stride` bytes long but for the last. What is left for QUIC is
    /// in the first `meta.len` bytes afterwards; a buffer of no length is passed over by the endpoint.
    fn received(&self, buffer: &mut [u8], meta: &mut RecvMeta);

    /// Whether QUIC may send now. If not, what it sends is lost as on any network, and it will send it again.
    fn may_send(&self) -> bool {
        true
    }

    /// QUIC has sent something.
    fn sent(&self) {}
}

/// A socket for a quinn endpoint.
#[derive(Debug)]
pub struct LayeredSocket<L> {
    socket: Arc<dyn AsyncUdpSocket>,
    pub(super) layer: L,
}

impl<L: Layer> LayeredSocket<L> {
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>, layer: L) -> Self {
        Self { socket, layer }
    }
}

impl<L: Layer> AsyncUdpSocket for LayeredSocket<L> {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if !self.layer.may_send() {
            return Ok(());
        }
        self.socket.try_send(transmit)?;
        self.layer.sent();
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
            self.layer.received(buffer, meta);
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<std::net::SocketAddr> {
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

//! The gate on the node's own UDP socket, for when no XDP program judges packets before they get here.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use crate::gate::DatagramGate;

/// A socket that hands on only datagrams which the gate passes. What it drops gets no answer.
pub(super) struct GatedSocket {
    socket: Arc<dyn AsyncUdpSocket>,
    gate: DatagramGate,
    local: SocketAddr,
}

impl GatedSocket {
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>, gate: DatagramGate) -> io::Result<Self> {
        let local = socket.local_addr()?;
        Ok(Self { socket, gate, local })
    }
}

impl AsyncUdpSocket for GatedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = std::task::ready!(self.socket.poll_recv(cx, bufs, meta))?;
        for datagrams in meta.iter_mut().take(received) {
            let remote = SocketAddr::new(datagrams.addr.ip().to_canonical(), datagrams.addr.port());
            let to = datagrams.dst_ip.unwrap_or(self.local.ip()).to_canonical();
            if !self.gate.admit(remote, SocketAddr::new(to, self.local.port())).is_pass() {
                // Of no length, it is passed over by the endpoint.
                datagrams.len = 0;
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

impl fmt::Debug for GatedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatedSocket").field("local", &self.local).finish_non_exhaustive()
    }
}

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
        for (datagrams, buffer) in meta.iter_mut().zip(bufs.iter_mut()).take(received) {
            let remote = SocketAddr::new(datagrams.addr.ip().to_canonical(), datagrams.addr.port());
            let to = datagrams.dst_ip.unwrap_or(self.local.ip()).to_canonical();
            let local = SocketAddr::new(to, self.local.port());
            let passes = |datagram: &[u8]| self.gate.admit(remote, local, datagram).is_pass();
            // Of no length, it is passed over by the endpoint.
            datagrams.len = keep(buffer, datagrams.len, datagrams.stride, passes);
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

/// Keeps those of the datagrams that pass. The kernel hands over datagrams of one sender together, each `stride`
/// bytes long but for the last; what is kept moves to the front. The length of it all is returned.
fn keep(buffer: &mut [u8], length: usize, stride: usize, mut passes: impl FnMut(&[u8]) -> bool) -> usize {
    let length = length.min(buffer.len());
    let mut kept = 0;
    let mut at = 0;
    while at < length {
        let end = at.saturating_add(stride.max(1)).min(length);
        if buffer.get(at..end).is_some_and(&mut passes) {
            buffer.copy_within(at..end, kept);
            kept += end - at;
        }
        at = end;
    }
    kept
}

impl fmt::Debug for GatedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatedSocket").field("local", &self.local).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_several_datagrams_is_judged() {
        for (kept, expected) in [("abc", "aabbc"), ("ac", "aac"), ("b", "bb"), ("c", "c"), ("", "")] {
            let mut buffer = *b"aabbc---";
            let length = keep(&mut buffer, 5, 2, |datagram| kept.as_bytes().contains(&datagram[0]));
            assert_eq!(&buffer[..length], expected.as_bytes());
        }
    }
}

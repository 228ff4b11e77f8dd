//! UDP sockets: buffers large enough for bursts, and a connector's socket that hears one peer only.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime as _, TokioRuntime, UdpPoller};
use rustix::net::sockopt;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Bytes of each buffer of a tunnel socket: 20 ms at 1.6 Gbit/s.
pub(super) const BUFFER_SIZE: usize = 4 * 1024 * 1024;

/// What the kernel granted, where that is less than [`BUFFER_SIZE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the kernel caps the tunnel's UDP buffers at {receive} (receive) and {send} (send) bytes where {BUFFER_SIZE} are wanted: \
     raise net.core.rmem_max and net.core.wmem_max"
)]
pub(super) struct Capped {
    receive: usize,
    send: usize,
}

/// Asks for [`BUFFER_SIZE`]; beyond the system's limits when the process has CAP_NET_ADMIN.
///
/// # Errors
/// When the socket has no such options at all. A cap is no error: it is returned.
pub(super) fn size_buffers(socket: &UdpSocket) -> io::Result<Option<Capped>> {
    let options = SockRef::from(socket);
    if sockopt::set_socket_recv_buffer_size_force(socket, BUFFER_SIZE).is_err() {
        options.set_recv_buffer_size(BUFFER_SIZE)?;
    }
    if sockopt::set_socket_send_buffer_size_force(socket, BUFFER_SIZE).is_err() {
        options.set_send_buffer_size(BUFFER_SIZE)?;
    }
    // Linux doubles the value for its own bookkeeping and reports the double (socket(7)).
    let granted = Capped { receive: options.recv_buffer_size()? / 2, send: options.send_buffer_size()? / 2 };
    Ok((granted.receive < BUFFER_SIZE || granted.send < BUFFER_SIZE).then_some(granted))
}

/// A socket of its own for one connection to `peer`: the kernel gives it datagrams from there and nowhere else.
pub(super) fn dial_socket(peer: SocketAddr) -> io::Result<(Arc<dyn AsyncUdpSocket>, Option<Capped>)> {
    let (domain, any): (_, SocketAddr) = match peer {
        SocketAddr::V4(_) => (Domain::IPV4, (Ipv4Addr::UNSPECIFIED, 0).into()),
        SocketAddr::V6(_) => (Domain::IPV6, (Ipv6Addr::UNSPECIFIED, 0).into()),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind(&any.into())?;
    socket.connect(&peer.into())?;
    let socket = UdpSocket::from(socket);
    let capped = size_buffers(&socket)?;
    let inner = TokioRuntime.wrap_udp_socket(socket)?;
    Ok((Arc::new(Connected { inner }), capped))
}

/// A connected socket on which an ICMP "port unreachable" is not an error: anybody can forge one, and a real one is
/// followed by silence, which ends the connection in time (RFC 9000 §21.1.1.1 leaves no more to ICMP).
struct Connected {
    inner: Arc<dyn AsyncUdpSocket>,
}

impl AsyncUdpSocket for Connected {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.inner.try_send(transmit) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            sent => sent,
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            match ready!(self.inner.poll_recv(cx, bufs, meta)) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                received => return Poll::Ready(received),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_is_reported_with_what_was_granted() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let capped = size_buffers(&socket).unwrap();
        let receive = SockRef::from(&socket).recv_buffer_size().unwrap() / 2;
        match capped {
            None => assert!(receive >= BUFFER_SIZE),
            Some(capped) => assert_eq!(capped.receive, receive),
        }
    }

    #[tokio::test]
    async fn a_dial_socket_hears_its_peer_only() {
        let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (socket, _) = dial_socket(peer.local_addr().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        stranger.send_to(b"stranger", address).unwrap();
        peer.send_to(b"peer", address).unwrap();
        let mut buffer = [0; 64 * 1024];
        let mut meta = [RecvMeta::default()];
        let count =
            std::future::poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta))
                .await
                .unwrap();
        assert_eq!((count, &buffer[..meta[0].len]), (1, &b"peer"[..]));
    }
}

//! UDP sockets: buffers large enough for bursts, and a connector's socket that hears one peer only.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::{AsyncUdpSocket, Runtime as _, TokioRuntime};
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
pub struct Capped {
    pub receive: usize,
    pub send: usize,
}

/// Asks for [`BUFFER_SIZE`]; beyond the system's limits when the process has CAP_NET_ADMIN. What is large enough stays
/// as it is, so a socket that was sized with that capability can be looked at again without it.
///
/// # Errors
/// When the socket has no such options at all. A cap is no error: it is returned.
pub fn size_buffers(socket: &UdpSocket) -> io::Result<Option<Capped>> {
    let options = SockRef::from(socket);
    if options.recv_buffer_size()? < 2 * BUFFER_SIZE
        && sockopt::set_socket_recv_buffer_size_force(socket, BUFFER_SIZE).is_err()
    {
        options.set_recv_buffer_size(BUFFER_SIZE)?;
    }
    if options.send_buffer_size()? < 2 * BUFFER_SIZE
        && sockopt::set_socket_send_buffer_size_force(socket, BUFFER_SIZE).is_err()
    {
        options.set_send_buffer_size(BUFFER_SIZE)?;
    }
    // Linux doubles the value for its own bookkeeping and reports the double (socket(7)).
    let granted = Capped { receive: options.recv_buffer_size()? / 2, send: options.send_buffer_size()? / 2 };
    Ok((granted.receive < BUFFER_SIZE || granted.send < BUFFER_SIZE).then_some(granted))
}

/// The address that packets to `peer` would leave from now. None is sent.
pub(super) fn local_address(peer: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
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
    // An ICMP error is no error on it (RFC 9000 §14.2.1): anybody can forge one. quinn sees to that, and a test.
    Ok((TokioRuntime.wrap_udp_socket(socket)?, capped))
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::time::Duration;

    use quinn::udp::{RecvMeta, Transmit};
    use tokio::time::sleep;

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

    #[test]
    fn what_is_large_enough_is_left_alone() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        size_buffers(&socket).unwrap();
        let size = || SockRef::from(&socket).recv_buffer_size().unwrap();
        let before = size();
        assert!(before > 0);
        size_buffers(&socket).unwrap();
        assert_eq!(size(), before);
    }

    #[tokio::test]
    async fn an_unreachable_port_is_silence_not_an_error() {
        // An address that no other test has, so that the port is free again later.
        let [.., high, low] = std::process::id().to_be_bytes();
        let peer = UdpSocket::bind((Ipv4Addr::new(127, 1, high, low), 0)).unwrap();
        let address = peer.local_addr().unwrap();
        let (socket, _) = dial_socket(address).unwrap();
        let mine = socket.local_addr().unwrap();
        drop(peer);
        let ping =
            Transmit { destination: address, ecn: None, contents: b"ping", segment_size: None, src_ip: None };
        // The first one draws the ICMP error, the second one and the reading would report it.
        let mut poller = Arc::clone(&socket).create_io_poller();
        for _ in 0..3 {
            std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.unwrap();
            socket.try_send(&ping).unwrap();
            sleep(Duration::from_millis(20)).await;
        }
        let peer = UdpSocket::bind(address).unwrap();
        peer.send_to(b"pong", mine).unwrap();
        assert_eq!(receive(&*socket).await, b"pong");
    }

    async fn receive(socket: &dyn AsyncUdpSocket) -> Vec<u8> {
        let mut buffer = [0; 64 * 1024];
        let mut meta = [RecvMeta::default()];
        let received =
            std::future::poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta));
        assert_eq!(received.await.unwrap(), 1);
        buffer[..meta[0].len].to_vec()
    }

    #[tokio::test]
    async fn a_dial_socket_hears_its_peer_only() {
        let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (socket, _) = dial_socket(peer.local_addr().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        stranger.send_to(b"stranger", address).unwrap();
        peer.send_to(b"peer", address).unwrap();
        assert_eq!(receive(&*socket).await, b"peer");
    }
}

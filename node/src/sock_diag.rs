//! Asks the kernel for a TCP socket by `sock_diag(7)`: the lookup is the kernel's own (`inet_diag_find_one_icsk` of
//! net/ipv4/inet_diag.c), so it finds what a packet would find, requests and TIME_WAIT included.

use std::io;
use std::net::SocketAddr;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

/// What the kernel says of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// As include/net/tcp_states.h numbers it.
    pub(crate) state: u8,
    /// Whose it is; 0 also where it is nobody's any more.
    pub(crate) uid: u32,
    /// 0 where no process has it any more.
    pub(crate) inode: u32,
}

/// The socket in this network namespace that a packet is for that comes from `remote` to `local`, by the interface of that
/// index (0: whichever).
pub(crate) fn find(local: SocketAddr, remote: SocketAddr, interface: u32) -> io::Result<Option<Found>> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    let request = request(local, remote, interface);
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
            let header = found.header;
            Ok(Some(Found { state: header.state, uid: header.uid, inode: header.inode }))
        }
        NetlinkPayload::Error(error) => match error.to_io() {
            error if error.kind() == io::ErrorKind::NotFound => Ok(None),
            error => Err(error),
        },
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn request(local: SocketAddr, remote: SocketAddr, interface: u32) -> NetlinkMessage<SockDiagMessage> {
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let number = |value: i32| u8::try_from(value).unwrap_or(0);
    let request = InetRequest {
        family: number(family),
        protocol: number(libc::IPPROTO_TCP),
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: local.port(),
            destination_port: remote.port(),
            source_address: local.ip(),
            destination_address: remote.ip(),
            interface_id: interface,
            // INET_DIAG_NOCOOKIE: whichever socket it is.
            cookie: [0xff; 8],
        },
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    message
}

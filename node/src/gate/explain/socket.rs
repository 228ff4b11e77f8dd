//! Asks the kernel for the socket of a packet by `sock_diag(7)`: the lookup is the kernel's own
//! (`inet_diag_find_one_icsk` of net/ipv4/inet_diag.c), so it finds what the program would find, requests and
//! TIME_WAIT included.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use portcullis_common::{Family, Flow};

/// TCP states of include/net/tcp_states.h, by number.
const STATES: [&str; 13] = [
    "?",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
];
const LISTEN: u8 = 10;

/// A TCP socket's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State(u8);

impl State {
    pub(super) fn is_listening(self) -> bool {
        self.0 == LISTEN
    }

    pub(super) fn name(self) -> &'static str {
        STATES.get(usize::from(self.0)).copied().unwrap_or("?")
    }
}

/// State of the socket in this network namespace that a packet of `flow`, which came by that interface, is for.
pub(super) fn find(flow: &Flow, interface: u32) -> io::Result<Option<State>> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let request = request(flow, interface);
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
            Ok(Some(State(found.header.state)))
        }
        NetlinkPayload::Error(error) => match error.to_io() {
            error if error.kind() == io::ErrorKind::NotFound => Ok(None),
            error => Err(error),
        },
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn request(flow: &Flow, interface: u32) -> NetlinkMessage<SockDiagMessage> {
    let family = match flow.family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    let number = |value: i32| u8::try_from(value).unwrap_or(0);
    let request = InetRequest {
        family: number(family),
        protocol: number(libc::IPPROTO_TCP),
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: flow.local_port,
            destination_port: flow.remote_port,
            source_address: IpAddr::from(flow.local),
            destination_address: IpAddr::from(flow.remote),
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

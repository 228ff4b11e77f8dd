//! The state of the TCP socket that a packet is for, as the gate's program would find it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use portcullis_common::Flow;

use crate::sock_diag;

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
    let local = SocketAddr::new(IpAddr::from(flow.local), flow.local_port);
    let remote = SocketAddr::new(IpAddr::from(flow.remote), flow.remote_port);
    Ok(sock_diag::find(local, remote, interface)?.map(|found| State(found.state)))
}

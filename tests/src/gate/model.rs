//! What the maps and sockets know, told to the host's copy of the verdict.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use portcullis::gate::{AdminProtocol, AdminRule};
use portcullis_common::layout::{HostFlowKey, IPPROTO_UDP, PortSet};
use portcullis_common::{Ack, Address, Flow, Frame, Lookup, RateClass, TcpSocket, Verdict, judge, parse};

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub ports: HashSet<(u32, u16)>,
    pub admin: Vec<AdminRule>,
    pub host_flows: HashMap<HostFlowKey, u64>,
    /// Listening sockets, by local address.
    pub listeners: HashSet<SocketAddr>,
    /// Connections: (local, remote).
    pub connections: HashSet<(SocketAddr, SocketAddr)>,
    /// Whether every budget is used up, or none.
    pub exhausted: bool,
}

impl Model {
    /// Serves 443 to anyone, 22 and UDP 161 to administrators in `203.0.113.0/24` and `2001:db8:ad::/48`.
    pub fn serving() -> Self {
        let mut model = Self::default();
        model.serve(PortSet::ServedTcp, 443);
        model.serve(PortSet::ServedUdp, 443);
        model.serve(PortSet::AdminUdp, 161);
        for prefix in ["203.0.113.0/24", "[2001:db8:ad::]/48"] {
            for port in ["22", "161/udp"] {
                model.admin.push(format!("{prefix}:{port}").parse().unwrap());
            }
        }
        model
    }

    pub fn serve(&mut self, set: PortSet, port: u16) {
        self.ports.insert((set as u32, port));
    }

    pub fn verdict(&self, frame: &[u8], now: u64) -> Verdict {
        judge(&parse::<[u8]>(frame), self, now)
    }
}

impl Lookup for Model {
    fn in_port_set(&self, set: PortSet, port: u16) -> bool {
        self.ports.contains(&(set as u32, port))
    }

    fn is_admin(&self, protocol: u8, port: u16, remote: Address) -> bool {
        let protocol = if protocol == IPPROTO_UDP { AdminProtocol::Udp } else { AdminProtocol::Tcp };
        self.admin.iter().any(|rule| {
            rule.protocol == protocol && rule.port == port && rule.prefix.contains(&IpAddr::from(remote))
        })
    }

    fn tcp_socket(&self, flow: &Flow, _: Option<Ack>) -> TcpSocket {
        let local = SocketAddr::new(flow.local.into(), flow.local_port);
        let remote = SocketAddr::new(flow.remote.into(), flow.remote_port);
        if self.connections.contains(&(local, remote)) {
            TcpSocket::Connection
        } else if self.listeners.contains(&local) {
            TcpSocket::Listener
        } else {
            TcpSocket::None
        }
    }

    fn host_flow(&self, key: &HostFlowKey) -> Option<u64> {
        self.host_flows.get(key).copied()
    }

    fn take(&self, _: RateClass, _: u64) -> bool {
        !self.exhausted
    }
}

/// The parser sees no more than this many bytes: the rest of a long frame must not matter to it.
pub fn parses_alike_without(frame: &[u8], bytes: usize) -> bool {
    struct Linear<'a>(&'a [u8], usize);
    impl Frame for Linear<'_> {
        fn length(&self) -> usize {
            self.0.len()
        }
        fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
            self.0[..self.1.min(self.0.len())].get(at..)?.first_chunk().copied()
        }
    }
    parse(&Linear(frame, bytes)) == parse::<[u8]>(frame)
}

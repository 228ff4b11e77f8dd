//! ```text
//! one interface:  client ──┐                    two:  client ── eth0 ═══ eth0 ── node ── eth1 ═══ eth0 ── connector
//!                 node   ──┼── br0 (switch)           192.0.2.2        192.0.2.1    198.51.100.1    198.51.100.2
//!              connector ──┘
//!        192.0.2.2, .1 and .3; 2001:db8::2, ::1, ::3        2001:db8::2, ::1    2001:db8:1::1, ::2
//! ```

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use portcullis::gate::{
    Dataplane, Detour, FlowGrant, Gate, GateConfig, Leg, PeerAddress, Relay, RelayError, SessionRef,
};
use portcullis_common::Verdict;
use portcullis_tests::bench::pass_everything;
use portcullis_tests::gate::vlan::{self, Tag};
use portcullis_tests::netns::{Netns, veth};

use crate::lab::{ANSWER, Pin};

pub const PORT: u16 = 443;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Packets leave by the interface that they came by.
    OneInterface,
    TwoInterfaces,
}

/// Addresses of one family: the client and the node's side towards it, the connector and the node's side towards it.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub client: IpAddr,
    pub node_client: IpAddr,
    pub connector: IpAddr,
    pub node_connector: IpAddr,
}

pub struct RelayLab {
    pub shape: Shape,
    pub client: Netns,
    pub node: Netns,
    pub connector: Netns,
    switch: Option<(Netns, OwnedFd)>,
    /// What frames carry on the client's link, outermost first; with one interface, on every link.
    tags: &'static [Tag],
    _ports: Vec<[OwnedFd; 2]>,
    pub pin: Pin,
}

impl RelayLab {
    pub fn new(shape: Shape) -> Self {
        let [client, node, connector] = ["client", "node", "connector"].map(|name| Netns::new(name).unwrap());
        let switch = match shape {
            Shape::OneInterface => {
                let switch = Netns::new("switch").unwrap();
                switch.run("ip link add br0 type bridge").unwrap();
                switch.run("ip link set dev br0 up").unwrap();
                for (netns, port) in [(&client, "client"), (&node, "node"), (&connector, "connector")] {
                    veth(netns, "eth0", &switch, port).unwrap();
                    switch.run(&format!("ip link set dev {port} master br0")).unwrap();
                }
                let program = pass_everything(&switch, "node").unwrap();
                Some((switch, program))
            }
            Shape::TwoInterfaces => {
                veth(&client, "eth0", &node, "eth0").unwrap();
                veth(&connector, "eth0", &node, "eth1").unwrap();
                None
            }
        };
        // What the gate redirects needs a queue at the other end of the pair.
        for netns in [&client, &connector] {
            netns.run("ethtool -K eth0 gro on").unwrap();
        }
        let pin = Pin::new(&node);
        let lab = Self { shape, client, node, connector, switch, tags: &[], _ports: Vec::new(), pin };
        for ends in lab.families() {
            let bits = if ends.client.is_ipv4() { 24 } else { 64 };
            let give = |netns: &Netns, interface: &str, address: IpAddr| {
                netns.address(interface, &format!("{address}/{bits}")).unwrap();
            };
            give(&lab.client, "eth0", ends.client);
            give(&lab.node, "eth0", ends.node_client);
            give(&lab.connector, "eth0", ends.connector);
            if shape == Shape::TwoInterfaces {
                give(&lab.node, "eth1", ends.node_connector);
            }
        }
        lab
    }

    /// Across VLANs: on the client's link, or with one interface on every link, all frames carry these tags.
    pub fn tagged(shape: Shape, tags: &'static [Tag]) -> Self {
        let mut lab = Self::new(shape);
        lab.tags = tags;
        let mut ports = vec![&lab.client, &lab.node];
        if let Some((switch, _)) = &lab.switch {
            ports.push(&lab.connector);
            for port in ["client", "node", "connector"] {
                vlan::tags_in_frames(switch, port).unwrap();
            }
        }
        lab._ports = ports.into_iter().map(|netns| vlan::port(netns, "eth0", tags).unwrap()).collect();
        lab
    }

    pub fn is_tagged(&self) -> bool {
        !self.tags.is_empty()
    }

    /// Makes the next hops on a tagged link such as the node would have found them through VLAN devices.
    pub fn hop_tagger(&self) -> impl Fn() + Send + 'static {
        let (node, tags) = (self.node.clone(), self.tags);
        move || {
            if !tags.is_empty() {
                vlan::tag_hops(&node, "eth0", tags).unwrap();
            }
        }
    }

    pub fn families(&self) -> [Ends; 2] {
        let ends = |client: &str, node_client: &str, connector: &str, node_connector: &str| Ends {
            client: client.parse().unwrap(),
            node_client: node_client.parse().unwrap(),
            connector: connector.parse().unwrap(),
            node_connector: node_connector.parse().unwrap(),
        };
        match self.shape {
            Shape::OneInterface => [
                ends("192.0.2.2", "192.0.2.1", "192.0.2.3", "192.0.2.1"),
                ends("2001:db8::2", "2001:db8::1", "2001:db8::3", "2001:db8::1"),
            ],
            Shape::TwoInterfaces => [
                ends("192.0.2.2", "192.0.2.1", "198.51.100.2", "198.51.100.1"),
                ends("2001:db8::2", "2001:db8::1", "2001:db8:1::2", "2001:db8:1::1"),
            ],
        }
    }

    pub fn config(&self) -> GateConfig {
        let interfaces: &[&str] = match self.shape {
            Shape::OneInterface => &["eth0"],
            Shape::TwoInterfaces => &["eth0", "eth1"],
        };
        GateConfig {
            dataplane: Dataplane::Xdp,
            egress: None,
            mode: portcullis::gate::GateMode::Enforce,
            interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(),
            admin: Vec::new(),
            served_tcp: Vec::new(),
            served_udp: vec![PORT],
            pin: self.pin.path.clone(),
        }
    }

    pub fn open(&self) -> (Gate, Relay) {
        let gate = self.node.enter(|| Gate::open(&self.config())).unwrap().unwrap();
        let relay = gate.relay().unwrap();
        (gate, relay)
    }

    /// The node's kernel learns where both ends are, as it does when it sends them a challenge.
    pub fn greet(&self, ends: &Ends) {
        self.node
            .enter(|| {
                for (from, to) in [(ends.node_client, ends.client), (ends.node_connector, ends.connector)] {
                    UdpSocket::bind((from, 0)).unwrap().send_to(b"?", (to, 9)).unwrap();
                }
            })
            .unwrap();
    }

    /// Installs a session between two sockets, once the neighbours are known.
    pub fn connect(&self, relay: &Relay, session: SessionRef, ends: &Ends, pair: &Pair) -> FlowGrant {
        self.greet(ends);
        let grant = pair.grant(session, ends);
        install(relay, &grant).unwrap();
        grant
    }

    pub fn pair(&self, ends: &Ends) -> Pair {
        Pair { client: socket(&self.client, ends.client), connector: socket(&self.connector, ends.connector) }
    }
}

/// Tries until the neighbours are known.
pub fn install(relay: &Relay, grant: &FlowGrant) -> Result<(), RelayError> {
    let deadline = Instant::now() + ANSWER;
    loop {
        match relay.install(grant) {
            Err(RelayError::Detour(Detour::Unresolved)) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

pub fn socket(netns: &Netns, address: IpAddr) -> UdpSocket {
    let socket = netns.enter(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(ANSWER)).unwrap();
    socket
}

/// A session's two ends.
pub struct Pair {
    pub client: UdpSocket,
    pub connector: UdpSocket,
}

impl Pair {
    pub fn grant(&self, session: SessionRef, ends: &Ends) -> FlowGrant {
        FlowGrant {
            session,
            client: peer(ends.node_client, self.client.local_addr().unwrap()),
            connector: peer(ends.node_connector, self.connector.local_addr().unwrap()),
        }
    }

    /// Whether a datagram sent by this end comes out at the other in that time, unchanged and from the node.
    pub fn passes(&self, ends: &Ends, from: Leg, data: &[u8], patience: Duration) -> bool {
        let (sender, to, receiver, as_from) = match from {
            Leg::Client => (&self.client, ends.node_client, &self.connector, ends.node_connector),
            Leg::Connector => (&self.connector, ends.node_connector, &self.client, ends.node_client),
        };
        sender.send_to(data, (to, PORT)).unwrap();
        receiver.set_read_timeout(Some(patience)).unwrap();
        let mut buffer = [0; 2_048];
        match receiver.recv_from(&mut buffer) {
            Ok((length, source)) => {
                assert_eq!(&buffer[..length], data);
                assert_eq!(source, SocketAddr::new(as_from, PORT));
                true
            }
            Err(_) => false,
        }
    }

    pub fn passes_both(&self, ends: &Ends, data: &[u8], patience: Duration) -> [bool; 2] {
        Leg::BOTH.map(|leg| self.passes(ends, leg, data, patience))
    }
}

pub fn peer(node: IpAddr, remote: SocketAddr) -> PeerAddress {
    PeerAddress { local: SocketAddr::new(node, PORT), remote }
}

/// How many packets the gate has sent on.
pub fn relayed(gate: &Gate) -> u64 {
    let counters = gate.counters().unwrap();
    let of_relay = counters.packets.iter().filter(|(verdict, _)| matches!(verdict, Verdict::Relay(_)));
    of_relay.map(|(_, packets)| packets).sum()
}

//! What the maps and sockets know, told to the host's copy of the verdict.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use portcullis::gate::{AdminProtocol, AdminRule};
use portcullis_common::layout::{
    CidKey, FlowEntry, Hop, HostFlowKey, IPPROTO_UDP, PortSet, PortSets, Session, Settings,
};
use portcullis_common::{
    Ack, Address, ConnectionId, DropReason, Family, Flow, Frame, FrameMut, KnockKeys, Lookup, Outcome,
    RateClass, SipKey, TcpSocket, Verdict, parse, process,
};

/// The classes that are spread by network.
pub const BY_NETWORK: [RateClass; 3] =
    [RateClass::SynNetwork, RateClass::OpenerNetwork, RateClass::UnprovenNetwork];

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub ports: HashSet<(u32, u16)>,
    pub admin: Vec<AdminRule>,
    pub host_flows: HashMap<HostFlowKey, u64>,
    /// Listening sockets, by local address.
    pub listeners: HashSet<SocketAddr>,
    /// Those of them which take any ACK for the answer to a SYN cookie of theirs.
    pub cookies: HashSet<SocketAddr>,
    /// Connections: (local, remote).
    pub connections: HashSet<(SocketAddr, SocketAddr)>,
    /// Whether every budget is used up, or none.
    pub exhausted: bool,
    /// Far ends that packets come from.
    pub networks: Vec<IpAddr>,
    pub settings: Settings,
    pub cid_keys: HashMap<u32, CidKey>,
    /// Authenticated peers and the monotonic ns at which they end.
    pub tunnels: HashMap<HostFlowKey, u64>,
    pub revoked: HashSet<u32>,
    /// Relayed flows, as they arrive.
    pub flows: Vec<(Flow, FlowEntry)>,
    pub sessions: HashMap<u32, Session>,
    pub epochs: HashMap<u32, u64>,
    pub hops: HashMap<u32, Hop>,
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

    /// Keys under which [`Self::id`] mints and devices knock.
    pub fn with_keys(mut self) -> Self {
        self.cid_keys.insert(3, CidKey { key: CID_KEY, expires: u64::MAX });
        self.settings.knock = KnockKeys { master: SipKey::new([7, 8]), mask: SipKey::new([9, 10]) };
        self
    }

    /// Relayed flows from ports 0 to 15 of each remote to UDP 443 of each local, with every way to be refused; flows to
    /// the host itself from [`TO_HOST_PORTS`]; and an authenticated peer at [`PEER_PORT`].
    pub fn with_relay(mut self, remotes: [&str; 2], locals: [&str; 2]) -> Self {
        for (index, (generation, epoch, expires)) in
            [(1, 1, u64::MAX), (2, 1, u64::MAX), (1, 2, u64::MAX), (1, 1, 1)].into_iter().enumerate()
        {
            let index = u32::try_from(index).unwrap();
            self.sessions.insert(index, Session { generation, identity: 9, epoch, expires });
        }
        self.epochs.insert(9, 1);
        let hop = |ifindex, mtu, tags| Hop {
            ifindex,
            mtu,
            tags,
            tag: [[0x81, 0, 0, 9], [0x81, 0, 0x20, 8]],
            destination: [2, 0, 0, 0, 1, 1],
            source: [2, 0, 0, 0, 1, 2],
            zero: [0; 4],
        };
        self.hops.extend([
            (0, hop(INGRESS_IFINDEX, 1_500, 0)),
            (1, hop(INGRESS_IFINDEX, 1_500, 1)),
            (2, hop(77, 1_500, 2)),
            (3, hop(INGRESS_IFINDEX, 100, 0)),
        ]);
        for (family, (remote, local)) in remotes.iter().zip(locals).enumerate() {
            let arriving = |port| Flow {
                family: [Family::V4, Family::V6][family],
                local: Address::from(local.parse::<IpAddr>().unwrap()),
                remote: Address::from(remote.parse::<IpAddr>().unwrap()),
                local_port: 443,
                remote_port: port,
            };
            let far = ["203.0.113.77", "2001:db8:77::77"][family].parse::<IpAddr>().unwrap();
            let leaving = Flow { remote: Address::from(far), remote_port: 40_001, ..arriving(0) };
            for port in 0..16u16 {
                let entry = FlowEntry {
                    session: u32::from(port & 3),
                    hop: u32::from(port >> 2),
                    generation: 1,
                    ..FlowEntry::rewrite(&arriving(port), &leaving)
                };
                self.flows.push((arriving(port), entry));
            }
            for port in TO_HOST_PORTS {
                let session = u32::from(port & 3);
                let entry =
                    FlowEntry { session, hop: FlowEntry::TO_HOST, generation: 1, ..FlowEntry::default() };
                self.flows.push((arriving(port), entry));
            }
            self.tunnels.insert(HostFlowKey::udp(&arriving(PEER_PORT)), u64::MAX);
        }
        self
    }

    /// Whether a set holds a port.
    pub fn holds(&self, set: PortSet, port: u16) -> bool {
        let admin = |protocol| self.admin.iter().any(|rule| rule.protocol == protocol && rule.port == port);
        match set {
            PortSet::AdminTcp => admin(AdminProtocol::Tcp),
            PortSet::HostUdp => self.host_flows.keys().any(|key| key.udp_port() == Some(port)),
            PortSet::ServedTcp | PortSet::ServedUdp | PortSet::AdminUdp => {
                self.ports.contains(&(set as u32, port))
            }
        }
    }

    /// A connection ID that the node would mint.
    pub fn id(&self, nonce: u64) -> [u8; ConnectionId::SIZE] {
        ConnectionId::mint(3, &CID_KEY, nonce).to_bytes()
    }

    /// Buckets from which the networks pay that the tests' packets come from, for each in the order of [`BY_NETWORK`].
    pub fn payers(&self) -> Vec<u32> {
        let addresses = self.networks.iter();
        let slots = addresses.flat_map(|address| {
            let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
            let hash = self.settings.network_hash(family, Address::from(*address));
            BY_NETWORK.map(|class| class.slot(hash))
        });
        slots.collect()
    }

    pub fn verdict(&self, frame: &[u8], now: u64) -> Verdict {
        self.process(frame, now).0.verdict
    }

    /// The verdict on a frame that arrives by [`INGRESS_IFINDEX`], and the frame as it is left.
    pub fn process(&self, frame: &[u8], now: u64) -> (Outcome, Vec<u8>) {
        let mut frame = Bytes(frame.to_vec());
        let outcome = process(&mut frame, self, INGRESS_IFINDEX, now);
        (outcome, frame.0)
    }
}

const CID_KEY: SipKey = SipKey::new([0x1111_2222, 0x3333_4444]);

/// Source ports of flows that go to the host itself: one of a session that passes, and one of each that does not.
pub const TO_HOST_PORTS: std::ops::Range<u16> = 24..28;

/// Source port of the authenticated peer.
pub const PEER_PORT: u16 = 7_000;

/// The interface that `BPF_PROG_TEST_RUN` says packets come in by: the loopback.
pub const INGRESS_IFINDEX: u32 = 1;

/// A frame in memory.
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Frame for Bytes {
    type Bytes<const N: usize> = [u8; N];

    fn length(&self) -> usize {
        self.0.len()
    }

    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.as_slice().read(at)
    }
}

impl FrameMut for Bytes {
    type Place<'a, const N: usize> = &'a mut [u8; N];

    fn place<const N: usize>(&mut self, at: usize) -> Result<&mut [u8; N], DropReason> {
        let place = self.0.get_mut(at..).and_then(|rest| rest.first_chunk_mut());
        place.ok_or(DropReason::RelayNoHop)
    }

    fn cut_front(&mut self, bytes: i32) -> Result<(), DropReason> {
        let count = usize::try_from(bytes.unsigned_abs()).unwrap();
        if bytes >= 0 {
            self.0.drain(..count);
        } else {
            self.0.splice(..0, std::iter::repeat_n(0, count));
        }
        Ok(())
    }
}

impl Lookup for Model {
    type Entry = Box<FlowEntry>;
    type Hop = Box<Hop>;

    fn settings(&self) -> Option<Settings> {
        Some(self.settings)
    }

    fn ports(&self, port: u16) -> PortSets {
        PortSet::ALL.into_iter().filter(|set| self.holds(*set, port)).collect()
    }

    fn is_admin(&self, protocol: u8, port: u16, remote: Address) -> bool {
        let protocol = if protocol == IPPROTO_UDP { AdminProtocol::Udp } else { AdminProtocol::Tcp };
        self.admin.iter().any(|rule| {
            rule.protocol == protocol && rule.port == port && rule.prefix.contains(&IpAddr::from(remote))
        })
    }

    fn tcp_socket(&self, flow: &Flow, ack: Option<Ack>) -> TcpSocket {
        let local = SocketAddr::new(flow.local.into(), flow.local_port);
        let remote = SocketAddr::new(flow.remote.into(), flow.remote_port);
        if self.connections.contains(&(local, remote)) {
            TcpSocket::Connection
        } else if ack.is_some() && self.cookies.contains(&local) {
            TcpSocket::ListenerCookie
        } else if self.listeners.contains(&local) {
            TcpSocket::Listener
        } else {
            TcpSocket::None
        }
    }

    fn host_flow(&self, key: &HostFlowKey) -> Option<u64> {
        self.host_flows.get(key).copied()
    }

    fn take(&self, _: RateClass, _: u64, _: u64) -> bool {
        !self.exhausted
    }

    fn is_recent(&self, _: u64) -> bool {
        false
    }

    fn cid_key(&self, slot: u32) -> Option<CidKey> {
        Some(self.cid_keys.get(&slot).copied().unwrap_or_default())
    }

    fn is_device_revoked(&self, device: u32) -> bool {
        self.revoked.contains(&device)
    }

    fn tunnel(&self, key: &HostFlowKey) -> Option<u64> {
        self.tunnels.get(key).copied()
    }

    fn flow(&self, flow: &Flow) -> Option<Box<FlowEntry>> {
        self.flows.iter().find(|(known, _)| known == flow).map(|(_, entry)| Box::new(*entry))
    }

    fn session(&self, index: u32) -> Option<Session> {
        Some(self.sessions.get(&index).copied().unwrap_or_default())
    }

    fn identity_epoch(&self, index: u32) -> Option<u64> {
        Some(self.epochs.get(&index).copied().unwrap_or_default())
    }

    fn hop(&self, index: u32) -> Option<Box<Hop>> {
        Some(Box::new(self.hops.get(&index).copied().unwrap_or_default()))
    }

    fn count(&self, _: &Box<FlowEntry>, _: u16) {}
}

/// The parser sees no more than this many bytes: the rest of a long frame must not matter to it.
pub fn parses_alike_without(frame: &[u8], bytes: usize) -> bool {
    struct Linear<'a>(&'a [u8], usize);
    impl Frame for Linear<'_> {
        type Bytes<const N: usize> = [u8; N];

        fn length(&self) -> usize {
            self.0.len()
        }
        fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
            self.0[..self.1.min(self.0.len())].get(at..)?.first_chunk().copied()
        }
    }
    parse(&Linear(frame, bytes)) == parse::<[u8]>(frame)
}

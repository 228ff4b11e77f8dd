//! The verdict's questions, answered from the pinned maps and written down.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError};
use portcullis_common::layout::{
    AdminKey, CidKey, FlowEntry, FlowKey4, FlowKey6, HOST_FLOW_NS, Hop, HostFlowKey, IPPROTO_UDP, PortSet,
    PortSets, Session, Settings, recent_bit,
};
use portcullis_common::{Ack, Address, Family, Flow, Lookup, RateClass, TcpSocket, take_token};

use super::super::GateError;
use super::super::maps::open;
use super::super::pin::PinDir;
use super::socket;

pub(super) struct LiveMaps {
    settings: Array<MapData, Settings>,
    ports: Array<MapData, u64>,
    admin: LpmTrie<MapData, AdminKey, u32>,
    host_flows: HashMap<MapData, HostFlowKey, u64>,
    buckets: Array<MapData, u64>,
    recent: Array<MapData, u64>,
    cid_keys: Array<MapData, CidKey>,
    revoked: HashMap<MapData, u32, u64>,
    tunnels: HashMap<MapData, HostFlowKey, u64>,
    flows4: HashMap<MapData, FlowKey4, FlowEntry>,
    flows6: HashMap<MapData, FlowKey6, FlowEntry>,
    sessions: Array<MapData, Session>,
    epochs: Array<MapData, u64>,
    hop_slots: Array<MapData, u64>,
    hops: Array<MapData, Hop>,
}

impl LiveMaps {
    pub(super) fn open(pin: &PinDir) -> Result<Self, GateError> {
        Ok(Self {
            settings: open(pin, "SETTINGS")?,
            ports: open(pin, "PORTS")?,
            admin: open(pin, "ADMIN")?,
            host_flows: open(pin, "HOSTFLOW")?,
            buckets: open(pin, "BUCKET")?,
            recent: open(pin, "RECENT")?,
            cid_keys: open(pin, "CID_KEY")?,
            revoked: open(pin, "REVOKED")?,
            tunnels: open(pin, "TUNNEL")?,
            flows4: open(pin, "FLOW4")?,
            flows6: open(pin, "FLOW6")?,
            sessions: open(pin, "SESSION")?,
            epochs: open(pin, "IDENTITY_EPOCH")?,
            hop_slots: open(pin, "HOP_SLOT")?,
            hops: open(pin, "NEXTHOP")?,
        })
    }

    pub(super) fn settings(&self) -> Option<Settings> {
        self.settings.get(&0, 0).ok()
    }
}

/// One packet's way through the maps.
pub(super) struct Traced<'a> {
    maps: &'a LiveMaps,
    ingress: u32,
    now: u64,
    steps: RefCell<Vec<String>>,
}

impl<'a> Traced<'a> {
    pub(super) fn new(maps: &'a LiveMaps, ingress: u32, now: u64) -> Self {
        Self { maps, ingress, now, steps: RefCell::default() }
    }

    pub(super) fn note(&self, step: String) {
        self.steps.borrow_mut().push(step);
    }

    pub(super) fn into_steps(self) -> Vec<String> {
        self.steps.into_inner()
    }

    /// The answer to a question; a map that cannot be read answers like an empty one, as in the kernel, and the
    /// trace says so.
    fn answer<T>(
        &self,
        what: &str,
        found: Result<T, MapError>,
        tell: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        match found {
            Ok(value) => {
                self.note(format!("{what}: {}", tell(&value)));
                Some(value)
            }
            Err(MapError::KeyNotFound | MapError::OutOfBounds { .. }) => {
                self.note(format!("{what}: none"));
                None
            }
            Err(error) => {
                self.note(format!("{what}: cannot be read ({error}), taken as none"));
                None
            }
        }
    }

    /// How far `at` lies ahead or behind, in words.
    fn when(&self, at: u64) -> String {
        let seconds = |nanoseconds: u64| nanoseconds / 1_000_000_000;
        if at > self.now {
            format!("{} s from now", seconds(at - self.now))
        } else {
            format!("{} s ago", seconds(self.now - at))
        }
    }
}

impl Lookup for Traced<'_> {
    type Entry = Box<FlowEntry>;
    type Hop = Box<Hop>;

    fn settings(&self) -> Option<Settings> {
        let settings = self.maps.settings();
        if settings.is_none() {
            self.note("settings: cannot be read".to_owned());
        }
        settings
    }

    fn ports(&self, port: u16) -> PortSets {
        let sets = PortSets::of(self.maps.ports.get(&PortSet::slot(port), 0).unwrap_or(0), port);
        for set in PortSet::ALL {
            let what = match set {
                PortSet::ServedTcp => "is served (TCP)",
                PortSet::ServedUdp => "is served (UDP)",
                PortSet::AdminUdp => "is an administrator's (UDP)",
                PortSet::AdminTcp => "is an administrator's (TCP)",
                PortSet::HostUdp => "is one this host has sent from (UDP)",
            };
            self.note(format!("port {port} {what}: {}", yes(sets.has(set))));
        }
        sets
    }

    fn is_admin(&self, protocol: u8, port: u16, remote: Address) -> bool {
        let key = Key::new(AdminKey::BITS, AdminKey::new(protocol, port, remote));
        let listed = self.maps.admin.get(&key, 0).is_ok();
        let transport = if protocol == IPPROTO_UDP { "udp" } else { "tcp" };
        let remote = IpAddr::from(remote);
        self.note(format!("{remote} may administer port {port}/{transport}: {}", yes(listed)));
        listed
    }

    fn tcp_socket(&self, flow: &Flow, ack: Option<Ack>) -> TcpSocket {
        let (found, said) = match socket::find(flow, self.ingress) {
            Ok(None) => (TcpSocket::None, "none".to_owned()),
            Ok(Some(state)) if state.is_listening() => (TcpSocket::Listener, "LISTEN".to_owned()),
            Ok(Some(state)) => (TcpSocket::Connection, state.name().to_owned()),
            Err(error) => (TcpSocket::None, format!("cannot be asked for ({error}), taken as none")),
        };
        self.note(format!("socket lookup: {said}"));
        if found == TcpSocket::Listener && ack.is_some() {
            self.note(
                "SYN cookie: cannot be checked from here, taken as wrong; a right one passes".to_owned(),
            );
        }
        found
    }

    fn host_flow(&self, key: &HostFlowKey) -> Option<u64> {
        let found = self.maps.host_flows.get(key, 0);
        self.answer("this host's own flow to there", found, |at| {
            let live = self.now.saturating_sub(*at) < HOST_FLOW_NS;
            format!("last packet {}{}", self.when(*at), if live { "" } else { ", too long" })
        })
    }

    fn take(&self, class: RateClass, hash: u64, now: u64) -> bool {
        let slot = class.slot(hash);
        let Ok(word) = self.maps.buckets.get(&slot, 0) else {
            self.note(format!("bucket {}: cannot be read, taken as used up", class.name()));
            return false;
        };
        let (name, left, burst) = (class.name(), class.left(word, now), class.burst());
        self.note(format!("bucket {name} {slot:#x}: {left} of {burst} left"));
        take_token(word, now, class).is_some()
    }

    fn is_recent(&self, network_hash: u64) -> bool {
        let (word, bit) = recent_bit(network_hash);
        let recent = self.maps.recent.get(&word, 0).is_ok_and(|bits| bits & bit != 0);
        self.note(format!("its network has a recent login: {}", yes(recent)));
        recent
    }

    fn cid_key(&self, slot: u32) -> Option<CidKey> {
        let found = self.maps.cid_keys.get(&slot, 0);
        self.answer(&format!("key {slot} of connection IDs"), found, |key| match key.expires {
            0 => "none".to_owned(),
            expires => format!("expires {}", self.when(expires)),
        })
    }

    fn is_device_revoked(&self, device: u32) -> bool {
        let revoked = self.maps.revoked.get(&device, 0).is_ok();
        self.note(format!("device {device} is revoked: {}", yes(revoked)));
        revoked
    }

    fn tunnel(&self, key: &HostFlowKey) -> Option<u64> {
        let found = self.maps.tunnels.get(key, 0);
        self.answer("authenticated tunnel peer", found, |ends| format!("ends {}", self.when(*ends)))
    }

    fn flow(&self, flow: &Flow) -> Option<Box<FlowEntry>> {
        let found = match flow.family {
            Family::V4 => self.maps.flows4.get(&FlowKey4::new(flow), 0),
            Family::V6 => self.maps.flows6.get(&FlowKey6::new(flow), 0),
        };
        let entry = self.answer("relay flow", found, |entry| {
            let to = if entry.is_to_host() {
                "is for the node's own socket".to_owned()
            } else {
                let to = SocketAddr::new(IpAddr::from(entry.destination), entry.destination_port);
                format!("goes on to {to}")
            };
            format!("session {}, generation {}, {to}", entry.session, entry.generation)
        });
        entry.map(Box::new)
    }

    fn session(&self, index: u32) -> Option<Session> {
        self.answer(&format!("session {index}"), self.maps.sessions.get(&index, 0), |session| {
            let Session { generation, identity, epoch, expires, .. } = session;
            format!(
                "generation {generation}, identity {identity}, epoch {epoch}, expires {}",
                self.when(*expires)
            )
        })
    }

    fn identity_epoch(&self, index: u32) -> Option<u64> {
        self.answer(&format!("epoch of identity {index}"), self.maps.epochs.get(&index, 0), u64::to_string)
    }

    fn hop(&self, index: u32) -> Option<Box<Hop>> {
        let slot = self.maps.hop_slots.get(&index, 0).ok()?;
        let slot = u32::from(slot & 1 != 0);
        self.answer(&format!("next hop {index}"), self.maps.hops.get(&((index << 1) | slot), 0), |hop| {
            match hop.ifindex {
                0 => "none".to_owned(),
                ifindex => format!("interface {ifindex}, MTU {}", hop.mtu),
            }
        })
        .map(Box::new)
    }

    fn count(&self, _: &Box<FlowEntry>, _: u16) {}
}

fn yes(answer: bool) -> &'static str {
    if answer { "yes" } else { "no" }
}

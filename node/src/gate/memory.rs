//! [`Tables`] in the daemon's memory, and the verdict's view of them, for the userspace dataplane.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use portcullis_common::layout::{
    CID_KEYS, CidKey, FlowEntry, Hop, HostFlowKey, PortSet, PortSets, REVOKED_DEVICES, Session, Settings,
    TUNNELS, recent_bit,
};
use portcullis_common::{Ack, Address, Flow, Lookup, RateClass, SipKey, TcpSocket, take_token};

use crate::clock;

use super::control::Tables;
use super::{GateError, GateMode};

pub(super) struct MemoryTables {
    /// UDP ports that the node's own sockets are bound to.
    served: Vec<u16>,
    buckets: Vec<AtomicU64>,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    settings: Settings,
    cid_keys: [CidKey; CID_KEYS as usize],
    tunnels: HashMap<HostFlowKey, u64>,
    revoked: HashSet<u32>,
    recent: HashSet<(u32, u64)>,
}

impl MemoryTables {
    pub(super) fn new(served: Vec<u16>, mode: GateMode) -> Self {
        let audit_from = u64::from(mode == GateMode::Audit);
        let seed = SipKey::from_bytes(clock::random());
        let settings = Settings { audit_from, seed, ..Settings::default() };
        Self {
            served,
            buckets: (0..RateClass::SLOTS).map(|_| AtomicU64::new(0)).collect(),
            state: RwLock::new(State { settings, ..State::default() }),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables for MemoryTables {
    fn settings(&self) -> Result<Settings, GateError> {
        Ok(self.read().settings)
    }

    fn update_settings(&self, change: &mut dyn FnMut(&mut Settings)) -> Result<(), GateError> {
        change(&mut self.write().settings);
        Ok(())
    }

    fn set_cid_key(&self, slot: u8, key: CidKey) -> Result<(), GateError> {
        if let Some(place) = self.write().cid_keys.get_mut(usize::from(slot)) {
            *place = key;
        }
        Ok(())
    }

    fn set_tunnel(&self, key: &HostFlowKey, ends: Option<u64>) -> Result<(), GateError> {
        let tunnels = &mut self.write().tunnels;
        match ends {
            Some(_) if tunnels.len() >= TUNNELS as usize && !tunnels.contains_key(key) => {
                return Err(GateError::Full { map: "TUNNEL" });
            }
            Some(ends) => tunnels.insert(*key, ends),
            None => tunnels.remove(key),
        };
        Ok(())
    }

    fn set_revoked(&self, device: u32, revoked: bool) -> Result<(), GateError> {
        let devices = &mut self.write().revoked;
        match revoked {
            true if devices.len() >= REVOKED_DEVICES as usize && !devices.contains(&device) => {
                return Err(GateError::Full { map: "REVOKED" });
            }
            true => devices.insert(device),
            false => devices.remove(&device),
        };
        Ok(())
    }

    fn set_recent(&self, hashes: &[u64]) -> Result<(), GateError> {
        self.write().recent = hashes.iter().map(|hash| recent_bit(*hash)).collect();
        Ok(())
    }
}

/// A socket of the node sees datagrams to its own port and nothing else: what else may reach this host,
/// nftables has decided. Relayed datagrams have left the socket's path before they are judged here.
impl Lookup for MemoryTables {
    type Entry = Box<FlowEntry>;
    type Hop = Box<Hop>;

    fn settings(&self) -> Option<Settings> {
        Some(self.read().settings)
    }

    fn ports(&self, port: u16) -> PortSets {
        self.served.contains(&port).then_some(PortSet::ServedUdp).into_iter().collect()
    }

    fn is_admin(&self, _: u8, _: u16, _: Address) -> bool {
        false
    }

    fn tcp_socket(&self, _: &Flow, _: Option<Ack>) -> TcpSocket {
        TcpSocket::None
    }

    fn host_flow(&self, _: &HostFlowKey) -> Option<u64> {
        None
    }

    fn take(&self, class: RateClass, hash: u64, now: u64) -> bool {
        let Some(bucket) = self.buckets.get(class.slot(hash) as usize) else { return false };
        let taken = |word| take_token(word, now, class);
        bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    fn is_recent(&self, network_hash: u64) -> bool {
        self.read().recent.contains(&recent_bit(network_hash))
    }

    fn cid_key(&self, slot: u32) -> Option<CidKey> {
        self.read().cid_keys.get(slot as usize).copied()
    }

    fn is_device_revoked(&self, device: u32) -> bool {
        self.read().revoked.contains(&device)
    }

    fn tunnel(&self, key: &HostFlowKey) -> Option<u64> {
        self.read().tunnels.get(key).copied()
    }

    fn flow(&self, _: &Flow) -> Option<Box<FlowEntry>> {
        None
    }

    fn session(&self, _: u32) -> Option<Session> {
        None
    }

    fn identity_epoch(&self, _: u32) -> Option<u64> {
        None
    }

    fn hop(&self, _: u32) -> Option<Box<Hop>> {
        None
    }

    fn count(&self, _: &Box<FlowEntry>, _: u16) {}
}

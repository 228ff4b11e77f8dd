//! The maps of relayed sessions, as the kernel has them.

use std::os::fd::AsFd;

use aya::Pod;
use aya::maps::{Array, HashMap, MapData, MapError};
use portcullis_common::layout::{FlowEntry, FlowKey4, FlowKey6, Hop, HostFlowKey, Session, Settings};
use portcullis_common::{Family, Flow};
use rustix::thread::{MembarrierCommand, membarrier};

use crate::gate::GateError;
use crate::gate::maps::open;
use crate::gate::pin::PinDir;
use crate::gate::sys;

/// What the relay reads and writes; behind a trait so that a test can let each write fail.
pub(super) trait RelayMaps: Send {
    fn session(&self, index: u32) -> Result<Session, GateError>;
    fn set_session(&mut self, index: u32, session: &Session) -> Result<(), GateError>;
    fn epoch(&self, identity: u32) -> Result<u64, GateError>;
    fn set_epoch(&mut self, identity: u32, epoch: u64) -> Result<(), GateError>;
    /// Never over another: [`GateError::Taken`]. [`GateError::Full`] when there is no room.
    fn insert_flow(&mut self, input: &Flow, entry: &FlowEntry) -> Result<(), GateError>;
    /// Removes an entry, with the counts that it had at that instant.
    fn take_flow(&mut self, input: &Flow) -> Result<Option<FlowEntry>, GateError>;
    fn flow(&self, input: &Flow) -> Result<Option<FlowEntry>, GateError>;
    fn flows(&self) -> Result<Vec<(Flow, FlowEntry)>, GateError>;
    fn hop(&self, number: u32) -> Result<Hop, GateError>;
    /// Writes the slot that does not count, and then lets it count.
    fn set_hop(&mut self, number: u32, hop: &Hop) -> Result<(), GateError>;
    /// Until when the far end is an authenticated tunnel peer; 0: it is none.
    fn peer_until(&self, flow: &Flow) -> Result<u64, GateError>;
    fn settings(&self) -> Result<Settings, GateError>;
    /// Returns when no CPU holds what it read before: XDP programs run in RCU sections, and membarrier(2) waits
    /// for all of them.
    fn barrier(&self) -> Result<(), GateError>;
}

pub(super) struct KernelMaps {
    sessions: Array<MapData, Session>,
    epochs: Array<MapData, u64>,
    flows4: FlowMap<FlowKey4>,
    flows6: FlowMap<FlowKey6>,
    slots: Array<MapData, u64>,
    hops: Array<MapData, Hop>,
    tunnels: HashMap<MapData, HostFlowKey, u64>,
    settings: Array<MapData, Settings>,
}

impl KernelMaps {
    pub(super) fn open(pin: &PinDir) -> Result<Self, GateError> {
        Ok(Self {
            sessions: open(pin, "SESSION")?,
            epochs: open(pin, "IDENTITY_EPOCH")?,
            flows4: FlowMap::open(pin, "FLOW4")?,
            flows6: FlowMap::open(pin, "FLOW6")?,
            slots: open(pin, "HOP_SLOT")?,
            hops: open(pin, "NEXTHOP")?,
            tunnels: open(pin, "TUNNEL")?,
            settings: open(pin, "SETTINGS")?,
        })
    }

    fn slot(&self, number: u32) -> Result<u32, GateError> {
        let word = self.slots.get(&number, 0).map_err(|error| GateError::map("HOP_SLOT", error))?;
        Ok(u32::from(word & 1 == 1))
    }
}

impl RelayMaps for KernelMaps {
    fn session(&self, index: u32) -> Result<Session, GateError> {
        self.sessions.get(&index, 0).map_err(|error| GateError::map("SESSION", error))
    }

    fn set_session(&mut self, index: u32, session: &Session) -> Result<(), GateError> {
        self.sessions.set(index, session, 0).map_err(|error| GateError::map("SESSION", error))
    }

    fn epoch(&self, identity: u32) -> Result<u64, GateError> {
        self.epochs.get(&identity, 0).map_err(|error| GateError::map("IDENTITY_EPOCH", error))
    }

    fn set_epoch(&mut self, identity: u32, epoch: u64) -> Result<(), GateError> {
        self.epochs.set(identity, epoch, 0).map_err(|error| GateError::map("IDENTITY_EPOCH", error))
    }

    fn insert_flow(&mut self, input: &Flow, entry: &FlowEntry) -> Result<(), GateError> {
        match input.family {
            Family::V4 => self.flows4.insert(&FlowKey4::new(input), entry),
            Family::V6 => self.flows6.insert(&FlowKey6::new(input), entry),
        }
    }

    fn take_flow(&mut self, input: &Flow) -> Result<Option<FlowEntry>, GateError> {
        match input.family {
            Family::V4 => self.flows4.take(&FlowKey4::new(input)),
            Family::V6 => self.flows6.take(&FlowKey6::new(input)),
        }
    }

    fn flow(&self, input: &Flow) -> Result<Option<FlowEntry>, GateError> {
        match input.family {
            Family::V4 => self.flows4.get(&FlowKey4::new(input)),
            Family::V6 => self.flows6.get(&FlowKey6::new(input)),
        }
    }

    fn flows(&self) -> Result<Vec<(Flow, FlowEntry)>, GateError> {
        let mut flows = self.flows4.all(FlowKey4::flow)?;
        flows.extend(self.flows6.all(FlowKey6::flow)?);
        Ok(flows)
    }

    fn hop(&self, number: u32) -> Result<Hop, GateError> {
        let at = 2 * number + self.slot(number)?;
        self.hops.get(&at, 0).map_err(|error| GateError::map("NEXTHOP", error))
    }

    fn set_hop(&mut self, number: u32, hop: &Hop) -> Result<(), GateError> {
        let other = 1 - self.slot(number)?;
        self.hops.set(2 * number + other, hop, 0).map_err(|error| GateError::map("NEXTHOP", error))?;
        self.slots.set(number, u64::from(other), 0).map_err(|error| GateError::map("HOP_SLOT", error))
    }

    fn peer_until(&self, flow: &Flow) -> Result<u64, GateError> {
        match self.tunnels.get(&HostFlowKey::udp(flow), 0) {
            Ok(until) => Ok(until),
            Err(MapError::KeyNotFound) => Ok(0),
            Err(error) => Err(GateError::map("TUNNEL", error)),
        }
    }

    fn settings(&self) -> Result<Settings, GateError> {
        self.settings.get(&0, 0).map_err(|error| GateError::map("SETTINGS", error))
    }

    fn barrier(&self) -> Result<(), GateError> {
        membarrier(MembarrierCommand::Global).map_err(|error| GateError::Barrier(error.into()))
    }
}

/// `FLOW4` or `FLOW6`.
struct FlowMap<K: Pod> {
    name: &'static str,
    map: HashMap<MapData, K, FlowEntry>,
    /// The same map once more: its descriptor.
    data: MapData,
}

impl<K: Pod> FlowMap<K> {
    fn open(pin: &PinDir, name: &'static str) -> Result<Self, GateError> {
        let data = MapData::from_pin(pin.map(name)).map_err(|error| GateError::map(name, error))?;
        Ok(Self { name, map: open(pin, name)?, data })
    }

    fn insert(&mut self, key: &K, entry: &FlowEntry) -> Result<(), GateError> {
        const BPF_NOEXIST: u64 = 1;
        let errno = |error: &MapError| match error {
            MapError::SyscallError(error) => error.io_error.raw_os_error(),
            _ => None,
        };
        match self.map.insert(key, entry, BPF_NOEXIST) {
            Ok(()) => Ok(()),
            Err(error) if errno(&error) == Some(libc::EEXIST) => Err(GateError::Taken { map: self.name }),
            Err(error) if errno(&error) == Some(libc::E2BIG) => Err(GateError::Full { map: self.name }),
            Err(error) => Err(GateError::map(self.name, error)),
        }
    }

    fn take(&self, key: &K) -> Result<Option<FlowEntry>, GateError> {
        let mut entry = FlowEntry::default();
        match sys::map_take(self.data.fd().as_fd(), key, &mut entry) {
            Ok(()) => Ok(Some(entry)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(GateError::map(self.name, error)),
        }
    }

    fn get(&self, key: &K) -> Result<Option<FlowEntry>, GateError> {
        match self.map.get(key, 0) {
            Ok(entry) => Ok(Some(entry)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(GateError::map(self.name, error)),
        }
    }

    /// An entry that goes while this runs may be left out, others not: nothing is removed under the relay's lock,
    /// and a restart of the walk shows the same entry twice at worst.
    fn all(&self, flow: impl Fn(&K) -> Flow) -> Result<Vec<(Flow, FlowEntry)>, GateError> {
        let entries = self.map.iter().map(|found| {
            let (key, entry) = found.map_err(|error| GateError::map(self.name, error))?;
            Ok((flow(&key), entry))
        });
        entries.collect()
    }
}

//! Typed access to the pinned maps.

use std::collections::HashSet;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie, Map, MapData, PerCpuArray, RingBuf};
use portcullis_common::layout::{AdminKey, Counter, IPPROTO_TCP, IPPROTO_UDP, Loss, PortSet, Settings};
use portcullis_common::{Address, Verdict};

use super::config::AdminProtocol;
use super::control::monotonic;
use super::pin::PinDir;
use super::{AdminRule, Enforcement, GateConfig, GateError, GateMode};

/// What the gate has counted since its maps were made, summed over the CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets by verdict; every verdict once, zeroes included.
    pub packets: Vec<(Verdict, u64)>,
    /// Sampled events that found no room in the ring buffer.
    pub events_lost: u64,
    /// Flows of this host that found no room in their map: answers to them were dropped.
    pub host_flows_lost: u64,
}

impl Counters {
    pub fn of(&self, verdict: Verdict) -> u64 {
        self.packets.iter().find(|(counted, _)| *counted == verdict).map_or(0, |(_, packets)| *packets)
    }

    /// What happened (`pass`, `drop` or `relay`), the reason's name, and how many packets: one of each.
    pub fn by_reason(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        self.packets.iter().map(|(verdict, packets)| (verdict.action(), verdict.reason(), *packets))
    }

    pub fn dropped(&self) -> u64 {
        self.packets
            .iter()
            .filter(|(verdict, _)| matches!(verdict, Verdict::Drop(_)))
            .map(|(_, packets)| packets)
            .sum()
    }
}

/// Writes what the configuration opens. What it opens no longer is closed last, so that an administrator's
/// connection survives a change of the list.
pub(super) fn configure(pin: &PinDir, config: &GateConfig) -> Result<(), GateError> {
    write_ports(pin, config)?;
    write_admin(pin, config)?;
    write_mode(pin, config.mode)
}

/// Handles that outlive the privileges they were opened with.
pub(super) struct Counting {
    counters: PerCpuArray<MapData, Counter>,
    loss: PerCpuArray<MapData, u64>,
}

impl Counting {
    pub(super) fn open(pin: &PinDir) -> Result<Self, GateError> {
        Ok(Self { counters: open(pin, "COUNTERS")?, loss: open(pin, "LOSS")? })
    }

    pub(super) fn read(&self) -> Result<Counters, GateError> {
        let mut packets = Vec::new();
        for verdict in Verdict::all() {
            let counters = self.counters.get(&verdict.index(), 0);
            let counters = counters.map_err(|error| GateError::map("COUNTERS", error))?;
            packets.push((verdict, counters.iter().map(|counter| counter.packets).sum()));
        }
        let lost = |loss| -> Result<u64, GateError> {
            let counts = self.loss.get(&(loss as u32), 0).map_err(|error| GateError::map("LOSS", error))?;
            Ok(counts.iter().sum())
        };
        Ok(Counters { packets, events_lost: lost(Loss::Events)?, host_flows_lost: lost(Loss::HostFlows)? })
    }
}

pub(super) fn enforcement(pin: &PinDir) -> Result<Enforcement, GateError> {
    let settings: Array<MapData, Settings> = open(pin, "SETTINGS")?;
    let settings = settings.get(&0, 0).map_err(|error| GateError::map("SETTINGS", error))?;
    Ok(Enforcement::of(&settings, monotonic()))
}

pub(super) fn events(pin: &PinDir) -> Result<RingBuf<MapData>, GateError> {
    open(pin, "EVENTS")
}

pub(super) fn open<T>(pin: &PinDir, name: &'static str) -> Result<T, GateError>
where
    T: TryFrom<Map, Error = aya::maps::MapError>,
{
    let data = MapData::from_pin(pin.map(name)).map_err(|error| GateError::map(name, error))?;
    let map = Map::from_map_data(data).map_err(|error| GateError::map(name, error))?;
    T::try_from(map).map_err(|error| GateError::map(name, error))
}

/// A trial that is under way goes on: it ends by itself, or is confirmed.
fn write_mode(pin: &PinDir, mode: GateMode) -> Result<(), GateError> {
    const NAME: &str = "SETTINGS";
    let mut settings: Array<MapData, Settings> = open(pin, NAME)?;
    let mut now = settings.get(&0, 0).map_err(|error| GateError::map(NAME, error))?;
    let audit_from = match mode {
        GateMode::Enforce => 0,
        GateMode::Audit => now.audit_from.max(1),
    };
    if audit_from == now.audit_from {
        return Ok(());
    }
    now.audit_from = audit_from;
    settings.set(0, now, 0).map_err(|error| GateError::map(NAME, error))
}

fn write_ports(pin: &PinDir, config: &GateConfig) -> Result<(), GateError> {
    const NAME: &str = "PORTS";
    let mut bitmaps = vec![0u64; PortSet::SLOTS as usize];
    let admin = config.admin.iter().map(|rule| match rule.protocol {
        AdminProtocol::Udp => (PortSet::AdminUdp, rule.port),
        AdminProtocol::Tcp => (PortSet::AdminTcp, rule.port),
    });
    let opened = config.served_tcp.iter().map(|port| (PortSet::ServedTcp, *port));
    let opened = opened.chain(config.served_udp.iter().map(|port| (PortSet::ServedUdp, *port)));
    for (set, port) in opened.chain(admin) {
        if let Some(word) = bitmaps.get_mut(PortSet::slot(port) as usize) {
            *word |= set.bit(port);
        }
    }
    let mut ports: Array<MapData, u64> = open(pin, NAME)?;
    for (slot, word) in (0..).zip(bitmaps) {
        let before = ports.get(&slot, 0).map_err(|error| GateError::map(NAME, error))?;
        // One set is the kernel's. What it adds between the two calls is lost, and added again with the next packet that this host
        // sends from that port; so a word is written only where it changes.
        let after = word | before & PortSet::HostUdp.mask();
        if after != before {
            ports.set(slot, after, 0).map_err(|error| GateError::map(NAME, error))?;
        }
    }
    Ok(())
}

fn write_admin(pin: &PinDir, config: &GateConfig) -> Result<(), GateError> {
    const NAME: &str = "ADMIN";
    let failed = |error| GateError::map(NAME, error);
    let mut admin: LpmTrie<MapData, AdminKey, u32> = open(pin, NAME)?;
    let mut wanted = HashSet::new();
    for rule in &config.admin {
        let (bits, data) = admin_key(rule);
        admin.insert(&Key::new(bits, data), 1, 0).map_err(failed)?;
        wanted.insert((bits, data));
    }
    let present = admin.keys().collect::<Result<Vec<_>, _>>().map_err(failed)?;
    for key in present {
        if !wanted.contains(&(key.prefix_len(), key.data())) {
            admin.remove(&key).map_err(failed)?;
        }
    }
    Ok(())
}

fn admin_key(rule: &AdminRule) -> (u32, AdminKey) {
    let protocol = match rule.protocol {
        AdminProtocol::Tcp => IPPROTO_TCP,
        AdminProtocol::Udp => IPPROTO_UDP,
    };
    let mapped = if rule.prefix.addr().is_ipv4() { 96 } else { 0 };
    let bits = AdminKey::EXACT_BITS + mapped + u32::from(rule.prefix.prefix_len());
    (bits, AdminKey::new(protocol, rule.port, Address::from(rule.prefix.network())))
}

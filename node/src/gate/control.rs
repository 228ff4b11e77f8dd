//! What the daemon tells the gate while both run: keys, authenticated peers, networks with a recent login,
//! devices.
//!
//! The gate is a cache of the daemon's decisions and grants nothing by itself: what is not written here is not
//! let through.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use portcullis_common::layout::{CidKey, HostFlowKey, Settings};
use portcullis_common::{Address, Family, Flow, KnockKeys, SipKey};
use rustix::time::{ClockId, clock_gettime};

use super::GateError;
use super::memory::MemoryTables;

/// A handle to the running gate. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    tables: Arc<dyn Tables>,
}

/// Whether drops are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcement {
    Enforcing,
    /// They are for so long yet, and then only counted.
    Trial(Duration),
    /// They are counted only.
    Audit,
}

impl Enforcement {
    pub(super) fn of(settings: &Settings, now: u64) -> Self {
        match settings.audit_from {
            0 => Self::Enforcing,
            from if now < from => Self::Trial(Duration::from_nanos(from - now)),
            _ => Self::Audit,
        }
    }

    pub fn is_on(self) -> bool {
        self != Self::Audit
    }
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enforcing => f.write_str("enforcing"),
            Self::Trial(left) => write!(f, "enforcing for {} s more unless confirmed", left.as_secs()),
            Self::Audit => f.write_str("audit mode: drops are counted, not done"),
        }
    }
}

/// The two ends of a tunnel connection, from this host's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddress {
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

impl Control {
    pub(super) fn new(tables: Arc<dyn Tables>) -> Self {
        Self { tables }
    }

    /// The same, which tells `memory` as well, but for authenticated peers: those are each gate's own. It knows from here on
    /// what this one knew of modes, clocks and secrets.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub(super) fn telling(&self, memory: Arc<MemoryTables>) -> Result<Self, GateError> {
        let mut settings = self.tables.settings()?;
        memory.update_settings(&mut |others| std::mem::swap(others, &mut settings))?;
        Ok(Self::new(Arc::new(Telling { own: Arc::clone(&self.tables), memory, settings: Mutex::new(()) })))
    }

    /// Connection IDs minted under `key` are valid for `lifetime` from now.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn set_cid_key(&self, slot: u8, key: SipKey, lifetime: Duration) -> Result<(), GateError> {
        self.tables.set_cid_key(slot, CidKey { key, expires: after(lifetime) })
    }

    /// Nothing that was minted under the slot's key is valid any more.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn clear_cid_key(&self, slot: u8) -> Result<(), GateError> {
        self.tables.set_cid_key(slot, CidKey::default())
    }

    /// Packets of the peer that carry a connection ID pass freely for `lifetime` from now.
    ///
    /// # Errors
    ///
    /// When the map is full or cannot be written; the peer's packets then pay from a budget.
    pub fn authenticate(&self, peer: PeerAddress, lifetime: Duration) -> Result<(), GateError> {
        self.tables.set_tunnel(&peer.key(), Some(after(lifetime)))
    }

    /// Undoes [`authenticate`](Self::authenticate).
    ///
    /// # Errors
    ///
    /// When the map cannot be written; the entry then expires by itself.
    pub fn forget(&self, peer: PeerAddress) -> Result<(), GateError> {
        self.tables.set_tunnel(&peer.key(), None)
    }

    /// Whether drops are done now.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn enforcement(&self) -> Result<Enforcement, GateError> {
        Ok(Enforcement::of(&self.tables.settings()?, monotonic()))
    }

    /// Whether a drop at `at`, on the monotonic clock, was or is done. What cannot be read counts as enforced.
    pub fn enforced(&self, at: Duration) -> bool {
        let at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        self.tables.settings().map_or(true, |settings| settings.enforces(at))
    }

    /// Drops are done from now on: for so long, after which the kernel itself counts them only, or for good.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn enforce(&self, trial: Option<Duration>) -> Result<(), GateError> {
        let audit_from = trial.map_or(0, after);
        self.update_settings(|settings| settings.audit_from = audit_from)
    }

    /// Drops are counted and not done from now on.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn audit(&self) -> Result<(), GateError> {
        let now = monotonic().max(1);
        self.update_settings(|settings| settings.audit_from = now)
    }

    /// Changes modes, clocks or secrets. One word after the other: the gate may see some changed and some
    /// not yet.
    ///
    /// # Errors
    ///
    /// When the map cannot be read or written.
    pub fn update_settings(&self, change: impl FnOnce(&mut Settings)) -> Result<(), GateError> {
        let mut change = Some(change);
        self.tables.update_settings(&mut |settings| {
            if let Some(change) = change.take() {
                change(settings);
            }
        })
    }

    /// Whether the tunnel's port is dark, and the keys that open it.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn set_knock(&self, dark: bool, keys: KnockKeys) -> Result<(), GateError> {
        self.update_settings(|settings| {
            settings.knock = keys;
            settings.wall_offset = wall_offset();
            settings.dark = u64::from(dark);
        })
    }

    /// The wall clock is now as it is: knocks are dated by it.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn set_clock(&self) -> Result<(), GateError> {
        self.update_settings(|settings| settings.wall_offset = wall_offset())
    }

    /// The device's knocks count no more, or again.
    ///
    /// # Errors
    ///
    /// When the map is full or cannot be written.
    pub fn revoke_device(&self, device: u32, revoked: bool) -> Result<(), GateError> {
        self.tables.set_revoked(device, revoked)
    }

    /// The networks (/24 of IPv4, /56 of IPv6) of these addresses, and no others, are those with a recent
    /// login: openings from there have a budget of their own.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn set_recent(&self, addresses: impl IntoIterator<Item = std::net::IpAddr>) -> Result<(), GateError> {
        let settings = self.tables.settings()?;
        let hashes = addresses.into_iter().map(|address| {
            let address = address.to_canonical();
            let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
            settings.network_hash(family, Address::from(address))
        });
        self.tables.set_recent(&hashes.collect::<Vec<_>>())
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

impl PeerAddress {
    pub(super) fn flow(&self) -> Flow {
        let (local, remote) = (self.local.ip().to_canonical(), self.remote.ip().to_canonical());
        Flow {
            family: if remote.is_ipv4() { Family::V4 } else { Family::V6 },
            local: Address::from(local),
            remote: Address::from(remote),
            local_port: self.local.port(),
            remote_port: self.remote.port(),
        }
    }

    pub(super) fn of(flow: &Flow) -> Self {
        Self {
            local: SocketAddr::new(flow.local.into(), flow.local_port),
            remote: SocketAddr::new(flow.remote.into(), flow.remote_port),
        }
    }

    fn key(&self) -> HostFlowKey {
        HostFlowKey::udp(&self.flow())
    }
}

/// Where the gate keeps what it is told: the kernel's maps, or memory.
pub(super) trait Tables: Send + Sync {
    fn settings(&self) -> Result<Settings, GateError>;
    /// Changes the settings as they are by then: changes never undo each other.
    fn update_settings(&self, change: &mut dyn FnMut(&mut Settings)) -> Result<(), GateError>;
    fn set_cid_key(&self, slot: u8, key: CidKey) -> Result<(), GateError>;
    /// Inserts or, with `None`, removes; removing what is not there is no error.
    fn set_tunnel(&self, key: &HostFlowKey, ends: Option<u64>) -> Result<(), GateError>;
    fn set_revoked(&self, device: u32, revoked: bool) -> Result<(), GateError>;
    /// Replaces the bitmap.
    fn set_recent(&self, hashes: &[u64]) -> Result<(), GateError>;
}

/// Two gates that are told the same.
struct Telling {
    own: Arc<dyn Tables>,
    memory: Arc<MemoryTables>,
    /// Held from reading the one's settings to writing the other's, so that an older copy never comes last.
    settings: Mutex<()>,
}

/// The gate in memory is always told, and has no way to fail: if the other one has, neither is more open than it was.
impl Tables for Telling {
    fn settings(&self) -> Result<Settings, GateError> {
        self.own.settings()
    }

    fn update_settings(&self, change: &mut dyn FnMut(&mut Settings)) -> Result<(), GateError> {
        let _one = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        self.own.update_settings(change)?;
        let mut settings = self.own.settings()?;
        self.memory.update_settings(&mut |others| std::mem::swap(others, &mut settings))
    }

    fn set_cid_key(&self, slot: u8, key: CidKey) -> Result<(), GateError> {
        self.own.set_cid_key(slot, key).and(self.memory.set_cid_key(slot, key))
    }

    fn set_tunnel(&self, key: &HostFlowKey, ends: Option<u64>) -> Result<(), GateError> {
        self.own.set_tunnel(key, ends)
    }

    fn set_revoked(&self, device: u32, revoked: bool) -> Result<(), GateError> {
        self.memory.set_revoked(device, revoked).and(self.own.set_revoked(device, revoked))
    }

    fn set_recent(&self, hashes: &[u64]) -> Result<(), GateError> {
        self.own.set_recent(hashes).and(self.memory.set_recent(hashes))
    }
}

/// The clock that the program reads, in nanoseconds.
pub(super) fn monotonic() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

fn after(lifetime: Duration) -> u64 {
    monotonic().saturating_add(u64::try_from(lifetime.as_nanos()).unwrap_or(u64::MAX))
}

fn wall_offset() -> u64 {
    nanoseconds(ClockId::Realtime).wrapping_sub(monotonic())
}

/// Neither clock is ever negative here, nor beyond the year 2554.
fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

//! [`Tables`] in the kernel's maps. The descriptors stay usable when every capability is gone.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, HashMap, MapData, MapError};
use portcullis_common::SipKey;
use portcullis_common::layout::{CidKey, HostFlowKey, RECENT_BITS, Settings, recent_bit};

use crate::clock;

use super::GateError;
use super::control::Tables;
use super::maps::open;
use super::pin::PinDir;

pub(super) struct KernelTables {
    maps: Mutex<Maps>,
}

struct Maps {
    settings: Array<MapData, Settings>,
    cid_keys: Array<MapData, CidKey>,
    tunnels: HashMap<MapData, HostFlowKey, u64>,
    revoked: HashMap<MapData, u32, u64>,
    recent: Array<MapData, u64>,
    /// Words of `recent` that are not zero.
    recent_words: BTreeMap<u32, u64>,
}

impl KernelTables {
    pub(super) fn open(pin: &PinDir) -> Result<Self, GateError> {
        let recent: Array<MapData, u64> = open(pin, "RECENT")?;
        let mut recent_words = BTreeMap::new();
        for word in 0..RECENT_BITS / 64 {
            let bits = recent.get(&word, 0).map_err(|error| GateError::map("RECENT", error))?;
            if bits != 0 {
                recent_words.insert(word, bits);
            }
        }
        let maps = Maps {
            settings: open(pin, "SETTINGS")?,
            cid_keys: open(pin, "CID_KEY")?,
            tunnels: open(pin, "TUNNEL")?,
            revoked: open(pin, "REVOKED")?,
            recent,
            recent_words,
        };
        let tables = Self { maps: Mutex::new(maps) };
        let settings = tables.settings()?;
        if settings.seed.is_zero() {
            let seed = SipKey::from_bytes(clock::random());
            tables.update_settings(&mut |settings| settings.seed = seed)?;
        }
        Ok(tables)
    }

    /// Each write is one call into the kernel: none leaves a half-changed state behind in here.
    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables for KernelTables {
    fn settings(&self) -> Result<Settings, GateError> {
        self.maps().settings.get(&0, 0).map_err(|error| GateError::map("SETTINGS", error))
    }

    fn update_settings(&self, change: &mut dyn FnMut(&mut Settings)) -> Result<(), GateError> {
        let mut maps = self.maps();
        let mut settings = maps.settings.get(&0, 0).map_err(|error| GateError::map("SETTINGS", error))?;
        change(&mut settings);
        maps.settings.set(0, settings, 0).map_err(|error| GateError::map("SETTINGS", error))
    }

    fn set_cid_key(&self, slot: u8, key: CidKey) -> Result<(), GateError> {
        self.maps().cid_keys.set(u32::from(slot), key, 0).map_err(|error| GateError::map("CID_KEY", error))
    }

    fn set_tunnel(&self, key: &HostFlowKey, ends: Option<u64>) -> Result<(), GateError> {
        let result = match ends {
            Some(ends) => self.maps().tunnels.insert(key, ends, 0),
            None => absent_is_fine(self.maps().tunnels.remove(key)),
        };
        result.map_err(|error| GateError::map("TUNNEL", error))
    }

    fn set_revoked(&self, device: u32, revoked: bool) -> Result<(), GateError> {
        let result = if revoked {
            self.maps().revoked.insert(device, 1, 0)
        } else {
            absent_is_fine(self.maps().revoked.remove(&device))
        };
        result.map_err(|error| GateError::map("REVOKED", error))
    }

    /// New bits are set before old ones are cleared.
    fn set_recent(&self, hashes: &[u64]) -> Result<(), GateError> {
        let mut wanted = BTreeMap::new();
        for (word, bit) in hashes.iter().map(|hash| recent_bit(*hash)) {
            *wanted.entry(word).or_insert(0) |= bit;
        }
        let mut maps = self.maps();
        let Maps { recent, recent_words, .. } = &mut *maps;
        for (word, bits) in &wanted {
            if recent_words.get(word) != Some(bits) {
                recent.set(*word, bits, 0).map_err(|error| GateError::map("RECENT", error))?;
            }
        }
        for word in recent_words.keys().filter(|word| !wanted.contains_key(word)) {
            recent.set(*word, 0, 0).map_err(|error| GateError::map("RECENT", error))?;
        }
        *recent_words = wanted;
        Ok(())
    }
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

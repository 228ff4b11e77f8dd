//! Devices and their keys: who may knock where the tunnel's port is dark (`portcullis_common::Knock`).
//!
//! ```text
//! token     create ──▶ a device of its own ──▶ void at its expiry, or when its connector comes back by its own key
//! connector enrolled ─▶ asks for its device ─▶ void when it is revoked or enrols anew
//! ```
//!
//! Every device's key follows from one master key in the store, so the gate needs no list of devices, only one of
//! those that are void. A false accept lets a revoked device learn that the port is there, and no more: TLS still has
//! to prove a key that the node knows.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use portcullis_common::layout::REVOKED_DEVICES;
use portcullis_common::{KnockKeys, SipKey};
use tokio::sync::Mutex;
use tracing::{error, warn};

use crate::clock;
use crate::flow::UnixTime;
use crate::gate::{Control, GateError};
use crate::store::{Store, StoreError};

use super::wire::DeviceSecret;

const SECRET: &str = "knock keys";

/// The devices of one node. Clones share what the gate was told.
#[derive(Clone)]
pub struct Devices {
    store: Store,
    gate: Option<Control>,
    keys: KnockKeys,
    /// By number: whether the gate was told that it is void.
    told: Arc<Mutex<BTreeMap<u32, bool>>>,
}

/// Why devices cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "a device that is void can still make the tunnel's port answer, though not log in: \
         the gate's list of such devices cannot be written"
    )]
    Gate(#[from] GateError),
}

impl Devices {
    /// The node's devices; the keys are made at first use.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn load(store: Store, gate: Option<Control>) -> Result<Self, StoreError> {
        let keys = knock_keys(&store).await?;
        Ok(Self { store, gate, keys, told: Arc::default() })
    }

    /// What the gate needs to check a knock.
    pub const fn keys(&self) -> KnockKeys {
        self.keys
    }

    /// What the connector with this key is to knock with. Nothing where nobody has the key.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub(super) async fn of_key(&self, key: [u8; 32]) -> Result<Option<DeviceSecret>, StoreError> {
        let device = self.store.device_of_key(key).await?;
        Ok(device.map(|device| self.keys.device(device).into()))
    }

    /// What the access client with the device `number` is to knock with.
    pub fn of_client(&self, number: u32) -> DeviceSecret {
        self.keys.device(number).into()
    }

    /// The connector has come back by its own key, so it needs its token's device no more.
    ///
    /// # Errors
    ///
    /// As [`tell`](Self::tell).
    pub(super) async fn void_spent_tokens(&self, connector: &str) -> Result<(), DevicesError> {
        if self.store.void_spent_tokens(connector, clock::now()).await? {
            self.tell(clock::now()).await?;
        }
        Ok(())
    }

    /// Tells the gate what has changed since it was told last: at first, of every device there ever was.
    ///
    /// # Errors
    ///
    /// When the store fails or a device cannot be made void in the gate; the others are.
    pub async fn tell(&self, now: UnixTime) -> Result<(), DevicesError> {
        let mut told = self.told.lock().await;
        let devices = self.store.devices(now).await?;
        let Some(gate) = &self.gate else { return Ok(()) };
        let before = told.values().filter(|revoked| **revoked).count();
        let mut failed = None;
        for device in devices {
            if told.get(&device.number) == Some(&device.revoked) {
                continue;
            }
            match gate.revoke_device(device.number, device.revoked) {
                Ok(()) => {
                    told.insert(device.number, device.revoked);
                }
                Err(error) => failed = Some(error),
            }
        }
        let void = told.values().filter(|revoked| **revoked).count();
        if let Some(error) = failed {
            error!(void, limit = REVOKED_DEVICES, %error, "the gate does not take every void device");
            return Err(error.into());
        }
        if void > before && is_nearly_full(void) {
            warn!(void, limit = REVOKED_DEVICES, "the gate's list of void devices is nearly full");
        }
        Ok(())
    }
}

/// From nine tenths on.
const fn is_nearly_full(void: usize) -> bool {
    void >= REVOKED_DEVICES as usize / 10 * 9
}

/// Keys from which every device's follow, made at first use.
pub(super) async fn knock_keys(store: &Store) -> Result<KnockKeys, StoreError> {
    let stored = store.secret(SECRET, || clock::random::<32>().to_vec()).await?;
    let key = |at: usize| {
        let bytes = stored.get(at..at + 16)?;
        Some(SipKey::from_bytes(bytes.try_into().ok()?))
    };
    match (key(0), key(16)) {
        (Some(master), Some(mask)) if stored.len() == 32 && !master.is_zero() => {
            Ok(KnockKeys { master, mask })
        }
        _ => Err(StoreError::Malformed(SECRET.to_owned())),
    }
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Devices").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_are_made_once_and_checked() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let keys = knock_keys(&store).await.unwrap();
        assert!(!keys.is_empty());
        assert_eq!(knock_keys(&store).await.unwrap(), keys);
        for bad in [vec![], vec![1; 31], vec![1; 33], vec![0; 32]] {
            store.replace_secret(SECRET, bad).await.unwrap();
            assert!(matches!(knock_keys(&store).await, Err(StoreError::Malformed(_))));
        }
    }
}

//! The knock that goes with each dial: a fresh one in the destination connection ID of the first packets, which a
//! node with a dark port asks for and any other takes for an ID like any other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::{ClientConfig, ConnectionId};
use tracing::warn;

use crate::clock;

use super::super::wire::DeviceSecret;
use super::state::{Credentials, State};

/// What a connector knocks with, and where that is kept.
pub(in super::super) struct Knocker {
    device: Mutex<Option<DeviceSecret>>,
    kept: Option<(State, Credentials)>,
}

impl Knocker {
    /// Knocks as `device` and keeps nothing.
    pub(in super::super) const fn of(device: Option<DeviceSecret>) -> Self {
        Self { device: Mutex::new(device), kept: None }
    }

    /// Knocks as the credentials say; what the node says later is kept with them.
    pub(super) fn kept(state: State, credentials: Credentials) -> Self {
        Self { device: Mutex::new(credentials.device.clone()), kept: Some((state, credentials)) }
    }

    /// `client`, with a knock for one attempt: QUIC knows a connection by it for its whole life, so no two may share
    /// one. Dated by the clock of this machine, which must be right within ten minutes.
    pub(in super::super) fn knocking(&self, client: &ClientConfig) -> ClientConfig {
        let mut client = client.clone();
        if let Some(device) = &*self.device() {
            let keys = device.keys();
            client.initial_dst_cid_provider(Arc::new(move || {
                let wall = u64::try_from(clock::now().0).unwrap_or(0).saturating_mul(1_000_000_000);
                let knock = keys.knock(wall, u64::from_ne_bytes(clock::random()));
                ConnectionId::new(&knock.to_bytes())
            }));
        }
        client
    }

    /// The node says what to knock with from now on.
    pub(in super::super) fn adopt(&self, told: DeviceSecret) {
        let mut device = self.device();
        if device.as_ref() == Some(&told) {
            return;
        }
        if let Some((state, credentials)) = &self.kept
            && let Err(error) = state.save(&credentials.with_device(told.clone()))
        {
            warn!(%error, "what to knock with is forgotten at the next restart");
        }
        *device = Some(told);
    }

    fn device(&self) -> MutexGuard<'_, Option<DeviceSecret>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

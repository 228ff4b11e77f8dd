//! Connection IDs that the gate can check without asking anybody (`portcullis_common::ConnectionId`).
//!
//! 1. Keys are in the store, so that a restarted node, and the gate that outlived it, know the IDs of before.
//! 2. One key mints. The next takes over after [`KEY_AGE`]; the old one verifies for as long again, and a connection
//!    changes its IDs well within that ([`ID_LIFETIME`]).
//! 3. The gate is told of every key before an ID under it goes out.
//! 4. Tickets of private sessions are minted alike, since the gate checks both alike; but the node tells them apart, since
//!    a stranger gets connection IDs for the asking.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use portcullis_common::layout::CID_KEYS;
use portcullis_common::{ConnectionId, SipKey};
use quinn::ConnectionId as QuicId;
use quinn_proto::{ConnectionIdGenerator, InvalidCid};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::flow::UnixTime;
use crate::gate::{Control, GateError};
use crate::store::{Store, StoreError};

use super::relay::wire::Ticket;

/// A key mints for so long, and verifies for twice as long.
pub(super) const KEY_AGE: Duration = Duration::from_secs(24 * 3600);

/// A connection replaces its IDs after so long: within half of the time that their key verifies on.
const ID_LIFETIME: Duration = Duration::from_secs(6 * 3600);

/// In the first byte of an ID: a ticket. So nobody has to remember which tickets there are to keep what carries one from QUIC.
const TICKET: u8 = 0x08;

const SECRET: &str = "tunnel connection id keys";

/// Mints and verifies connection IDs. Clones share their keys.
#[derive(Clone)]
pub struct Mint {
    keys: Arc<RwLock<Keys>>,
}

/// Keys by slot, the newest last. There is always one.
struct Keys {
    minting: Key,
    older: Vec<Key>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Key {
    slot: u8,
    key: [u8; 16],
    /// Unix seconds.
    since: i64,
}

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the gate does not take the keys of connection IDs")]
    Gate(#[from] GateError),
}

impl Mint {
    /// The store's keys, made on first use, with a new one if it is time; told to the gate if there is one.
    ///
    /// # Errors
    ///
    /// When the store or the gate fails. Then the tunnel cannot be served.
    pub async fn load(store: &Store, gate: Option<&Control>, now: UnixTime) -> Result<Self, MintError> {
        let keys = stored(store, now).await?;
        let mint = Self { keys: Arc::new(RwLock::new(keys)) };
        mint.rotate(store, gate, now).await?;
        Ok(mint)
    }

    /// Puts a new key in charge if the present one is old, forgets the ones that verify no more, and tells the gate
    /// which are left and for how long.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load); the present key then goes on.
    pub async fn rotate(
        &self,
        store: &Store,
        gate: Option<&Control>,
        now: UnixTime,
    ) -> Result<(), MintError> {
        let (minting, mut older) = {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            (keys.minting.clone(), keys.older.clone())
        };
        let minting = if minting.age(now) < KEY_AGE {
            minting
        } else {
            let slot = (minting.slot + 1) % CID_KEYS_U8;
            older.push(minting);
            Key::fresh(slot, now)
        };
        older.retain(|key| key.age(now) < 2 * KEY_AGE && key.slot != minting.slot);
        let keys = Keys { minting, older };
        store.replace_secret(SECRET, keys.encode()).await?;
        if let Some(gate) = gate {
            for slot in 0..CID_KEYS_U8 {
                match keys.all().find(|key| key.slot == slot) {
                    Some(key) => {
                        gate.set_cid_key(slot, key.sip(), (2 * KEY_AGE).saturating_sub(key.age(now)))?;
                    }
                    None => gate.clear_cid_key(slot)?,
                }
            }
        }
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    /// A connection ID.
    pub fn mint(&self) -> ConnectionId {
        self.mint_with(u64::from_ne_bytes(clock::random()) & !u64::from(TICKET))
    }

    /// A ticket for a leg of a private session, which no connection of the node's own ever has for an ID.
    pub fn ticket(&self) -> Ticket {
        self.mint_with(u64::from_ne_bytes(clock::random()) | u64::from(TICKET)).to_bytes()
    }

    fn mint_with(&self, nonce: u64) -> ConnectionId {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        ConnectionId::mint(keys.minting.slot, &keys.minting.sip(), nonce)
    }

    /// Whether this node has minted the ticket, and as one.
    pub fn is_ticket(&self, ticket: Ticket) -> bool {
        let [first, ..] = ticket;
        first & TICKET != 0 && self.is_minted(&ConnectionId::from_bytes(ticket))
    }

    pub fn is_minted(&self, id: &ConnectionId) -> bool {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.all().any(|key| u32::from(key.slot) == id.slot() && id.is_minted_by(&key.sip()))
    }

    /// Whether it is what [`Self::ticket`] mints.
    pub(super) fn generator(&self) -> Box<dyn ConnectionIdGenerator> {
        Box::new(Generator { mint: self.clone() })
    }
}

/// Fits: there are eight.
#[expect(clippy::cast_possible_truncation, reason = "a small constant")]
const CID_KEYS_U8: u8 = CID_KEYS as u8;

impl Keys {
    fn all(&self) -> impl Iterator<Item = &Key> {
        self.older.iter().chain([&self.minting])
    }

    fn encode(&self) -> Vec<u8> {
        let all: Vec<&Key> = self.all().collect();
        // A list of numbers has no way not to be written.
        serde_json::to_vec(&all).unwrap_or_default()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut older: Vec<Key> = serde_json::from_slice(bytes).ok()?;
        let minting = older.pop()?;
        let keys = Self { minting, older };
        let fit = keys.all().all(|key| key.slot < CID_KEYS_U8);
        fit.then_some(keys)
    }
}

impl Key {
    fn fresh(slot: u8, now: UnixTime) -> Self {
        Self { slot, key: clock::random(), since: now.0 }
    }

    fn sip(&self) -> SipKey {
        SipKey::from_bytes(self.key)
    }

    /// A clock that went back makes no key young for ever: what is dated in the future counts as old.
    fn age(&self, now: UnixTime) -> Duration {
        u64::try_from(now.0.saturating_sub(self.since)).map_or(KEY_AGE, Duration::from_secs)
    }
}

async fn stored(store: &Store, now: UnixTime) -> Result<Keys, StoreError> {
    let first = move || Keys { minting: Key::fresh(0, now), older: Vec::new() }.encode();
    let bytes = store.secret(SECRET, first).await?;
    Keys::decode(&bytes).ok_or_else(|| StoreError::Malformed(SECRET.to_owned()))
}

struct Generator {
    mint: Mint,
}

impl ConnectionIdGenerator for Generator {
    fn generate_cid(&mut self) -> QuicId {
        QuicId::new(&self.mint.mint().to_bytes())
    }

    fn validate(&self, id: &QuicId) -> Result<(), InvalidCid> {
        let bytes: [u8; ConnectionId::SIZE] = id[..].try_into().map_err(|_| InvalidCid)?;
        if self.mint.is_minted(&ConnectionId::from_bytes(bytes)) { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        ConnectionId::SIZE
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        Some(ID_LIFETIME)
    }
}

impl fmt::Debug for Mint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mint").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_790_000_000);

    fn later(keys: u32) -> UnixTime {
        UnixTime(NOW.0 + i64::try_from((KEY_AGE * keys).as_secs()).unwrap())
    }

    async fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        (directory, store)
    }

    #[tokio::test]
    async fn an_id_verifies_through_one_rotation_and_a_restart_and_not_beyond() {
        let (_directory, store) = store().await;
        let mint = Mint::load(&store, None, NOW).await.unwrap();
        let id = mint.mint();
        assert!(mint.is_minted(&id));
        mint.rotate(&store, None, later(1)).await.unwrap();
        assert_ne!(mint.mint().slot(), id.slot());
        for mint in [mint, Mint::load(&store, None, later(1)).await.unwrap()] {
            assert!(mint.is_minted(&id));
            mint.rotate(&store, None, later(2)).await.unwrap();
            assert!(!mint.is_minted(&id));
        }
    }

    /// Who has shaken hands has connection IDs, which the gate lets through.
    #[tokio::test]
    async fn a_connection_id_is_no_ticket() {
        let (_directory, store) = store().await;
        let mint = Mint::load(&store, None, NOW).await.unwrap();
        for _ in 0..100 {
            let (ticket, id) = (mint.ticket(), mint.mint());
            assert!(mint.is_ticket(ticket) && mint.is_minted(&ConnectionId::from_bytes(ticket)));
            assert!(mint.is_minted(&id) && !mint.is_ticket(id.to_bytes()));
            let mut changed = id.to_bytes();
            changed[0] |= TICKET;
            assert!(!mint.is_ticket(changed));
            let mut forged = ticket;
            forged[5] ^= 1;
            assert!(!mint.is_ticket(forged));
        }
    }

    #[tokio::test]
    async fn another_node_or_a_changed_id_does_not_verify() {
        let (_one, store_of_one) = store().await;
        let (_other, store_of_other) = store().await;
        let one = Mint::load(&store_of_one, None, NOW).await.unwrap();
        let other = Mint::load(&store_of_other, None, NOW).await.unwrap();
        let id = one.generator().generate_cid();
        assert!(one.generator().validate(&id).is_ok());
        assert!(other.generator().validate(&id).is_err());
        let mut changed: [u8; 16] = id[..].try_into().unwrap();
        changed[3] ^= 1;
        assert!(one.generator().validate(&QuicId::new(&changed)).is_err());
        assert!(one.generator().validate(&QuicId::new(&id[..15])).is_err());
    }

    #[tokio::test]
    async fn slots_are_used_in_turn_for_ever() {
        let (_directory, store) = store().await;
        let mint = Mint::load(&store, None, NOW).await.unwrap();
        for round in 1..40 {
            let before = mint.mint();
            mint.rotate(&store, None, later(round)).await.unwrap();
            assert!(mint.is_minted(&before));
            assert_eq!(mint.mint().slot(), (before.slot() + 1) % CID_KEYS);
        }
    }

    #[tokio::test]
    async fn what_the_store_holds_is_checked() {
        for bytes in ["", "[]", "[{\"slot\":8,\"key\":[0],\"since\":0}]", "nonsense"] {
            assert!(Keys::decode(bytes.as_bytes()).is_none(), "{bytes}");
        }
    }
}

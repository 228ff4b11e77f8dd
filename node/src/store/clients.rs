//! Logins of access clients: one row from a person's confirmation to the end of it all, with the hash of the refresh
//! token that is good now.
//!
//! A client ends with the session it was made from, whatever its own row says: a query that forgets to look at the
//! session would let a refresh token outlive the login.

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use crate::flow::{ClientId, SessionId, UnixTime};

use super::devices::{MOST_NEW_KEYS, NEW_KEYS_WITHIN, of_client};
use super::{ReadLane, Store, StoreError};

/// A client that is logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    pub id: ClientId,
    pub session: SessionId,
    /// SHA-256 of the SubjectPublicKeyInfo of its device key.
    pub key: [u8; 32],
    /// What the person called the device.
    pub name: String,
    /// The number it knocks with.
    pub device: u32,
}

/// A client that logs in.
#[derive(Debug, Clone)]
pub struct NewClient {
    pub id: ClientId,
    pub session: SessionId,
    pub key: [u8; 32],
    pub name: String,
    /// SHA-256 of its first refresh token.
    pub refresh_hash: [u8; 32],
}

/// What became of a refresh token that somebody presented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rotation {
    /// It is spent, and the next one good.
    Rotated(Client),
    /// The very same request came before: the next one is good already, and still unused.
    Repeated(Client),
    /// It was spent before: its client is logged out.
    Reused(Client),
    /// It came with the proof of another key. Nothing has changed.
    Foreign(Client),
    /// There is no such client, or its login has ended.
    Unknown,
}

/// Why a client is not logged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotLoggedIn {
    #[error("the login has ended, or has too many devices")]
    SessionOver,
    #[error(
        "this person has logged in with {MOST_NEW_KEYS} new device keys in {} days: use a device that was logged in \
         before, without making it a new key",
        NEW_KEYS_WITHIN / 86_400
    )]
    TooManyKeys,
}

/// Clients of one session that may be logged in at a time.
const MOST_OF_SESSION: i64 = 64;

const LIVE: &str = "SELECT client.id, client.session, client.key, client.name, device.number,
        client.refresh_hash, client.previous_hash, client.previous_proof
    FROM client JOIN session ON session.id = client.session JOIN device ON device.client_key = client.key
    WHERE client.revoked_at IS NULL AND session.revoked_at IS NULL AND session.expires_at > ?1";

impl Store {
    /// Logs a client in, and logs those out that held the same key before: their ids.
    pub async fn insert_client(
        &self,
        new: NewClient,
        now: UnixTime,
    ) -> Result<Result<(Client, Vec<ClientId>), NotLoggedIn>, StoreError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            let person: Option<String> = transaction
                .query_row("SELECT person FROM session WHERE id = ?1", [new.session.as_bytes()], |row| {
                    row.get(0)
                })
                .optional()?;
            let Some(person) = person else { return Ok(Err(NotLoggedIn::SessionOver)) };
            let before: Vec<ClientId> = transaction
                .prepare_cached(&format!("{LIVE} AND client.key = ?2"))?
                .query_map(params![now.0, new.key], |row| Ok(client(row)?.id))?
                .collect::<Result<_, _>>()?;
            transaction.execute(
                "UPDATE client SET revoked_at = ?2 WHERE key = ?1 AND revoked_at IS NULL",
                params![new.key, now.0],
            )?;
            let Some(device) = of_client(&transaction, &new.key, &person, now)? else {
                return Ok(Err(NotLoggedIn::TooManyKeys));
            };
            let inserted = transaction.execute(
                "INSERT INTO client (id, session, key, name, refresh_hash, created_at)
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6 FROM session
                 WHERE id = ?2 AND revoked_at IS NULL AND expires_at > ?6
                 AND (SELECT count(*) FROM client WHERE session = ?2 AND revoked_at IS NULL) < ?7",
                params![
                    new.id.as_bytes(),
                    new.session.as_bytes(),
                    new.key,
                    new.name,
                    new.refresh_hash,
                    now.0,
                    MOST_OF_SESSION
                ],
            )?;
            if inserted == 0 {
                return Ok(Err(NotLoggedIn::SessionOver));
            }
            transaction.commit()?;
            let NewClient { id, session, key, name, .. } = new;
            Ok(Ok((Client { id, session, key, name, device }, before)))
        })
        .await
    }

    /// Every client that is logged in at `now`.
    pub async fn live_clients(&self, now: UnixTime) -> Result<Vec<Client>, StoreError> {
        self.read(ReadLane::Own, move |connection| {
            connection
                .prepare_cached(&format!("{LIVE} ORDER BY client.created_at"))?
                .query_map([now.0], client)?
                .collect::<Result<_, _>>()
                .map_err(StoreError::from)
        })
        .await
    }

    /// The client `id`, if it is logged in at `now`.
    pub async fn live_client(&self, id: ClientId, now: UnixTime) -> Result<Option<Client>, StoreError> {
        self.run(move |connection| Ok(find(connection, id, now)?.map(|(client, _)| client))).await
    }

    /// Exchanges the refresh token with the hash `presented` of client `id` for the one with the hash `next`, at the
    /// word of the key `key` and its proof `proof`. One that was spent before logs the client out, unless the very same
    /// request (token and proof) comes again before the next one was used: its answer may have got lost.
    pub async fn rotate_client(
        &self,
        id: ClientId,
        key: [u8; 32],
        presented: [u8; 32],
        proof: [u8; 32],
        next: [u8; 32],
        now: UnixTime,
    ) -> Result<Rotation, StoreError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            let Some((found, hashes)) = find(&transaction, id, now)? else { return Ok(Rotation::Unknown) };
            if found.key != key {
                return Ok(Rotation::Foreign(found));
            }
            let rotation = if hashes.current == presented {
                transaction.execute(
                    "UPDATE client SET refresh_hash = ?2, previous_hash = ?3, previous_proof = ?4 WHERE id = ?1",
                    params![id.as_bytes(), next, presented, proof],
                )?;
                Rotation::Rotated(found)
            } else if hashes.previous == Some((presented, proof)) && hashes.current == next {
                Rotation::Repeated(found)
            } else {
                revoke(&transaction, id, now)?;
                Rotation::Reused(found)
            };
            transaction.commit()?;
            Ok(rotation)
        })
        .await
    }

    /// Logs a client out. Says whether it was logged in.
    pub async fn revoke_client(&self, id: ClientId, now: UnixTime) -> Result<bool, StoreError> {
        self.run_urgently(move |connection| {
            let transaction = connection.transaction()?;
            let live = find(&transaction, id, now)?.is_some();
            revoke(&transaction, id, now)?;
            transaction.commit()?;
            Ok(live)
        })
        .await
    }
}

/// The hashes of a client's refresh tokens.
struct Hashes {
    current: [u8; 32],
    /// The one before, with the proof it was spent with.
    previous: Option<([u8; 32], [u8; 32])>,
}

fn find(connection: &Connection, id: ClientId, now: UnixTime) -> rusqlite::Result<Option<(Client, Hashes)>> {
    connection
        .prepare_cached(&format!("{LIVE} AND client.id = ?2"))?
        .query_row(params![now.0, id.as_bytes()], |row| {
            let previous: (Option<[u8; 32]>, Option<[u8; 32]>) = (row.get(6)?, row.get(7)?);
            Ok((client(row)?, Hashes { current: row.get(5)?, previous: previous.0.zip(previous.1) }))
        })
        .optional()
}

fn client(row: &Row<'_>) -> rusqlite::Result<Client> {
    Ok(Client {
        id: ClientId::from_bytes(row.get(0)?),
        session: SessionId::from_bytes(row.get(1)?),
        key: row.get(2)?,
        name: row.get(3)?,
        device: row.get(4)?,
    })
}

fn revoke(transaction: &Transaction<'_>, id: ClientId, now: UnixTime) -> rusqlite::Result<()> {
    transaction.execute(
        "UPDATE client SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL",
        params![id.as_bytes(), now.0],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{PersonId, Session};
    use crate::store::SessionFilter;

    const NOW: UnixTime = UnixTime(100);

    async fn store(directory: &std::path::Path) -> Store {
        let store = Store::open(directory).unwrap();
        for id in [1, 2] {
            let session = Session {
                id: SessionId::from_bytes([id; 16]),
                person: PersonId { provider: "local".into(), subject: format!("user{id}") },
                is_local: None,
                email: None,
                display_name: "x".into(),
                groups: vec![],
                amr: vec![],
                address: [192, 0, 2, 1].into(),
                authenticated_at: None,
                created_at: UnixTime(0),
                expires_at: UnixTime(1000),
            };
            store.insert_session(&session).await.unwrap();
        }
        store
    }

    fn new(id: u8, session: u8, key: u8) -> NewClient {
        NewClient {
            id: ClientId::from_bytes([id; 16]),
            session: SessionId::from_bytes([session; 16]),
            key: [key; 32],
            name: "laptop".into(),
            refresh_hash: [0; 32],
        }
    }

    async fn good(store: &Store) -> Vec<u32> {
        let devices = store.devices(NOW).await.unwrap();
        devices.into_iter().filter(|device| !device.revoked).map(|device| device.number).collect()
    }

    async fn live(store: &Store, now: UnixTime) -> usize {
        store.live_clients(now).await.unwrap().len()
    }

    #[tokio::test]
    async fn a_spent_token_logs_its_client_out_unless_its_answer_got_lost() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path()).await;
        let client = store.insert_client(new(7, 1, 5), NOW).await.unwrap().unwrap().0;
        let rotate = |presented: u8, proof: u8, next: u8, key: u8| {
            store.rotate_client(client.id, [key; 32], [presented; 32], [proof; 32], [next; 32], NOW)
        };
        assert_eq!(rotate(0, 1, 1, 6).await.unwrap(), Rotation::Foreign(client.clone()));
        assert_eq!(rotate(0, 1, 1, 5).await.unwrap(), Rotation::Rotated(client.clone()));
        assert_eq!(rotate(0, 1, 1, 5).await.unwrap(), Rotation::Repeated(client.clone()));
        assert_eq!(rotate(1, 2, 2, 5).await.unwrap(), Rotation::Rotated(client.clone()));
        assert_eq!(rotate(1, 2, 2, 5).await.unwrap(), Rotation::Repeated(client.clone()));
        assert_eq!(
            rotate(0, 1, 1, 5).await.unwrap(),
            Rotation::Reused(client.clone()),
            "the next one was used"
        );
        for presented in [0, 1, 2] {
            assert_eq!(rotate(presented, 9, 9, 5).await.unwrap(), Rotation::Unknown);
        }

        let client = store.insert_client(new(8, 1, 5), NOW).await.unwrap().unwrap().0;
        let rotate = |presented: u8, proof: u8, next: u8| {
            store.rotate_client(client.id, [5; 32], [presented; 32], [proof; 32], [next; 32], NOW)
        };
        assert_eq!(rotate(0, 1, 1).await.unwrap(), Rotation::Rotated(client.clone()));
        assert_eq!(
            rotate(0, 2, 3).await.unwrap(),
            Rotation::Reused(client.clone()),
            "another proof is another request"
        );
        assert_eq!(live(&store, NOW).await, 0);
    }

    #[tokio::test]
    async fn a_client_never_outlives_its_session() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path()).await;
        let client = store.insert_client(new(7, 1, 5), NOW).await.unwrap().unwrap().0;
        assert_eq!((live(&store, UnixTime(999)).await, live(&store, UnixTime(1000)).await), (1, 0));
        let late =
            store.rotate_client(client.id, [5; 32], [0; 32], [1; 32], [1; 32], UnixTime(1000)).await.unwrap();
        assert_eq!(late, Rotation::Unknown);
        store.revoke_sessions(&SessionFilter::Id(client.session), NOW).await.unwrap();
        let revoked = store.rotate_client(client.id, [5; 32], [0; 32], [1; 32], [1; 32], NOW).await.unwrap();
        assert_eq!((revoked, live(&store, NOW).await), (Rotation::Unknown, 0));
        assert_eq!(
            store.insert_client(new(8, 1, 5), NOW).await.unwrap().unwrap_err(),
            NotLoggedIn::SessionOver
        );
        assert_eq!(
            store.insert_client(new(8, 3, 5), NOW).await.unwrap().unwrap_err(),
            NotLoggedIn::SessionOver
        );
    }

    #[tokio::test]
    async fn a_key_has_one_login_and_one_device_that_is_good_while_it_lasts() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path()).await;
        let (first, before) = store.insert_client(new(7, 1, 5), NOW).await.unwrap().unwrap();
        assert_eq!((good(&store).await, before), (vec![first.device], vec![]));
        let (second, before) = store.insert_client(new(8, 2, 5), NOW).await.unwrap().unwrap();
        assert_eq!((second.device, before), (first.device, vec![first.id]));
        let (other, _) = store.insert_client(new(9, 2, 6), NOW).await.unwrap().unwrap();
        assert_ne!(other.device, first.device);
        assert!(store.revoke_client(second.id, NOW).await.unwrap());
        assert!(!store.revoke_client(second.id, NOW).await.unwrap());
        assert_eq!(good(&store).await, [other.device]);
        let (again, _) = store.insert_client(new(10, 1, 5), NOW).await.unwrap().unwrap();
        assert_eq!((again.device, good(&store).await.len()), (first.device, 2));
        store.revoke_sessions(&SessionFilter::All, NOW).await.unwrap();
        assert_eq!(good(&store).await, [0; 0]);
    }

    #[tokio::test]
    async fn a_session_has_a_bounded_number_of_clients() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path()).await;
        for id in 1..=64 {
            assert!(store.insert_client(new(id, 1, id), NOW).await.unwrap().is_ok());
        }
        assert_eq!(
            store.insert_client(new(65, 1, 65), NOW).await.unwrap().unwrap_err(),
            NotLoggedIn::SessionOver
        );
        assert_eq!(good(&store).await.len(), 64, "a refused client has no device");
        assert!(store.insert_client(new(66, 1, 3), NOW).await.unwrap().is_ok(), "the same device again");
        assert!(store.insert_client(new(67, 2, 65), NOW).await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_person_brings_a_bounded_number_of_new_keys_and_known_ones_stay_good() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path()).await;
        let log_in = async |key: u16, session: u8, now: UnixTime| {
            let mut new = new(0, session, 0);
            new.id = ClientId::from_bytes(crate::clock::random());
            new.key[..2].copy_from_slice(&key.to_be_bytes());
            let logged_in = store.insert_client(new, now).await.unwrap();
            if let Ok((client, _)) = &logged_in {
                store.revoke_client(client.id, now).await.unwrap();
            }
            logged_in.map(drop)
        };
        let most = u16::try_from(MOST_NEW_KEYS).unwrap();
        for key in 0..most {
            assert_eq!(log_in(key, 1, NOW).await, Ok(()));
        }
        assert_eq!(log_in(most, 1, NOW).await, Err(NotLoggedIn::TooManyKeys));
        assert_eq!(log_in(7, 1, NOW).await, Ok(()), "known");
        assert_eq!(log_in(most, 2, NOW).await, Ok(()), "another person");
        assert_eq!(store.devices(NOW).await.unwrap().len(), usize::from(most) + 1);
        assert!(NotLoggedIn::TooManyKeys.to_string().contains("128 new device keys in 90 days"));

        // They count for a time only.
        let later = UnixTime(NOW.0 + NEW_KEYS_WITHIN);
        let session = Session {
            id: SessionId::from_bytes([3; 16]),
            person: PersonId { provider: "local".into(), subject: "user1".into() },
            is_local: None,
            email: None,
            display_name: "x".into(),
            groups: vec![],
            amr: vec![],
            address: [192, 0, 2, 1].into(),
            authenticated_at: None,
            created_at: later,
            expires_at: UnixTime(later.0 + 1000),
        };
        store.insert_session(&session).await.unwrap();
        assert_eq!(log_in(most + 1, 3, later).await, Ok(()));
    }
}

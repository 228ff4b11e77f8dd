//! Devices: the numbers under which the gate knows who knocks.
//!
//! A connector has a device of its own, and each enrolment token one that lasts until the token's end. An access client
//! has one for its device key: void while nobody is logged in with that key, and good again at the next login, so that a
//! person's logins do not fill the gate's list. A device that is void stays listed, since the gate has to be told so
//! after every start, and its number is never given to anybody else.

use rusqlite::{OptionalExtension as _, Transaction, params};

use crate::flow::UnixTime;

use super::{Store, StoreError};

/// A device that there is or was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    pub number: u32,
    pub revoked: bool,
}

/// Device keys that one person may bring within [`NEW_KEYS_WITHIN`] seconds: each of them is in the gate's list for good
/// once its login is over.
pub(super) const MOST_NEW_KEYS: u32 = 128;
pub(super) const NEW_KEYS_WITHIN: i64 = 90 * 86_400;

impl Store {
    /// The device of the connector that holds `key`, made at first use. Nothing where nobody holds the key.
    pub async fn device_of_key(&self, key: [u8; 32]) -> Result<Option<u32>, StoreError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            let name: Option<String> = transaction
                .query_row("SELECT name FROM connector WHERE key = ?1 AND revoked_at IS NULL", [key], |row| {
                    row.get(0)
                })
                .optional()?;
            let Some(name) = name else { return Ok(None) };
            let present: Option<u32> = transaction
                .query_row(
                    "SELECT number FROM device
                     WHERE connector = ?1 AND token_hash IS NULL AND revoked_at IS NULL",
                    [&name],
                    |row| row.get(0),
                )
                .optional()?;
            let device = match present {
                Some(device) => device,
                None => insert(&transaction, &name, None)?,
            };
            transaction.commit()?;
            Ok(Some(device))
        })
        .await
    }

    /// The connector has come back by its own key: the devices of tokens that it has spent are void. Says whether there
    /// were any.
    pub async fn void_spent_tokens(&self, connector: &str, now: UnixTime) -> Result<bool, StoreError> {
        let connector = connector.to_owned();
        self.run(move |connection| {
            let changed = connection.execute(
                "UPDATE device SET revoked_at = ?2
                 WHERE connector = ?1 AND token_hash IS NOT NULL AND revoked_at IS NULL
                 AND token_hash NOT IN (SELECT token_hash FROM enrolment)",
                params![connector, now.0],
            )?;
            Ok(changed > 0)
        })
        .await
    }

    /// Every device; those of tokens that have expired and of clients whose login has ended are void by now.
    pub async fn devices(&self, now: UnixTime) -> Result<Vec<Device>, StoreError> {
        self.run_urgently(move |connection| {
            connection.execute(
                "UPDATE device SET revoked_at = ?1 WHERE revoked_at IS NULL AND (expires_at <= ?1
                 OR client_key IS NOT NULL AND client_key NOT IN (SELECT client.key FROM client JOIN session ON session.id = client.session
                    WHERE client.revoked_at IS NULL AND session.revoked_at IS NULL AND session.expires_at > ?1))",
                [now.0],
            )?;
            connection
                .prepare_cached("SELECT number, revoked_at IS NOT NULL FROM device ORDER BY number")?
                .query_map([], |row| Ok(Device { number: row.get(0)?, revoked: row.get(1)? }))?
                .collect::<Result<_, _>>()
                .map_err(StoreError::from)
        })
        .await
    }
}

/// The device of the client that holds `key`, good from now on. Nothing where the key is new and `person` has brought
/// [`MOST_NEW_KEYS`] new ones within [`NEW_KEYS_WITHIN`].
pub(super) fn of_client(
    transaction: &Transaction<'_>,
    key: &[u8; 32],
    person: &str,
    now: UnixTime,
) -> rusqlite::Result<Option<u32>> {
    let since = now.0.saturating_sub(NEW_KEYS_WITHIN);
    transaction
        .query_row(
            "INSERT INTO device (client_key, person, created_at) SELECT ?1, ?2, ?3
             WHERE EXISTS (SELECT 1 FROM device WHERE client_key = ?1)
             OR (SELECT count(*) FROM device WHERE person = ?2 AND created_at > ?4) < ?5
             ON CONFLICT (client_key) DO UPDATE SET revoked_at = NULL RETURNING number",
            params![key, person, now.0, since, MOST_NEW_KEYS],
            |row| row.get(0),
        )
        .optional()
}

/// A new device, of a connector or of its token.
pub(super) fn insert(
    transaction: &Transaction<'_>,
    connector: &str,
    token: Option<([u8; 32], UnixTime)>,
) -> rusqlite::Result<u32> {
    let (hash, expires_at) = token.map(|(hash, expires_at)| (hash, expires_at.0)).unzip();
    transaction.query_row(
        "INSERT INTO device (connector, token_hash, expires_at) VALUES (?1, ?2, ?3) RETURNING number",
        params![connector, hash, expires_at],
        |row| row.get(0),
    )
}

pub(super) fn void_tokens_of(
    transaction: &Transaction<'_>,
    connector: &str,
    now: UnixTime,
) -> rusqlite::Result<()> {
    void(transaction, "token_hash IS NOT NULL", connector, now)
}

pub(super) fn void_own_of(
    transaction: &Transaction<'_>,
    connector: &str,
    now: UnixTime,
) -> rusqlite::Result<()> {
    void(transaction, "token_hash IS NULL", connector, now)
}

pub(super) fn void_all_of(
    transaction: &Transaction<'_>,
    connector: &str,
    now: UnixTime,
) -> rusqlite::Result<()> {
    void(transaction, "TRUE", connector, now)
}

fn void(
    transaction: &Transaction<'_>,
    which: &'static str,
    connector: &str,
    now: UnixTime,
) -> rusqlite::Result<()> {
    transaction.execute(
        &format!("UPDATE device SET revoked_at = ?2 WHERE connector = ?1 AND revoked_at IS NULL AND {which}"),
        params![connector, now.0],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn valid(store: &Store, now: i64) -> Vec<u32> {
        let devices = store.devices(UnixTime(now)).await.unwrap();
        devices.into_iter().filter(|device| !device.revoked).map(|device| device.number).collect()
    }

    #[tokio::test]
    async fn numbers_are_never_given_twice_and_end_with_what_they_stand_for() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let token = async |hash, until| {
            store.create_connector("hq", [hash; 32], UnixTime(until), UnixTime(0)).await.unwrap()
        };
        assert_eq!(store.device_of_key([5; 32]).await.unwrap(), None);
        let first = token(1, 100).await;
        let second = token(2, 100).await;
        assert_eq!(valid(&store, 0).await, [second], "a new token voids the one before");
        assert_ne!(first, second);

        store.enrol_connector([2; 32], [5; 32], UnixTime(1)).await.unwrap().unwrap();
        let own = store.device_of_key([5; 32]).await.unwrap().unwrap();
        assert_eq!(store.device_of_key([5; 32]).await.unwrap(), Some(own));
        assert_eq!(valid(&store, 1).await, [second, own], "the answer to the enrolment may be lost");
        let third = token(3, 100).await;
        store.void_spent_tokens("hq", UnixTime(2)).await.unwrap();
        assert_eq!(valid(&store, 2).await, [own, third], "an unspent token stays");
        assert_eq!(valid(&store, 100).await, [own], "until it expires");

        token(4, 200).await;
        store.enrol_connector([4; 32], [6; 32], UnixTime(101)).await.unwrap().unwrap();
        store.void_spent_tokens("hq", UnixTime(102)).await.unwrap();
        let anew = store.device_of_key([6; 32]).await.unwrap().unwrap();
        assert_eq!(valid(&store, 102).await, [anew], "enrolling anew voids the former device");
        assert_eq!(store.device_of_key([5; 32]).await.unwrap(), None);

        store.revoke_connector("hq", UnixTime(103)).await.unwrap();
        assert!(valid(&store, 103).await.is_empty());
        let again = token(5, 300).await;
        assert!(again > anew, "{again} {anew}");
    }
}

//! Connectors and their single-use enrolment tokens.

use rusqlite::{OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};

use crate::flow::UnixTime;

use super::{Store, StoreError, devices};

/// A connector as the node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connector {
    pub name: String,
    /// SHA-256 of the SubjectPublicKeyInfo of the key it made at enrolment.
    pub key: Option<[u8; 32]>,
    pub created_at: UnixTime,
    pub enrolled_at: Option<UnixTime>,
}

const COLUMNS: &str = "name, key, created_at, enrolled_at";

impl Store {
    /// Makes a connector, or a new enrolment token for one that exists; earlier unused tokens of it are void. Its
    /// present key stays good until the new token is used. The number of the token's device is returned.
    pub async fn create_connector(
        &self,
        name: &str,
        token_hash: [u8; 32],
        expires_at: UnixTime,
        now: UnixTime,
    ) -> Result<u32, StoreError> {
        let name = name.to_owned();
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            transaction.execute(
                "DELETE FROM enrolment WHERE expires_at <= ?1 OR connector = ?2",
                params![now.0, name],
            )?;
            transaction.execute(
                "INSERT INTO connector (name, created_at) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET revoked_at = NULL",
                params![name, now.0],
            )?;
            transaction.execute(
                "INSERT INTO enrolment (token_hash, connector, expires_at) VALUES (?1, ?2, ?3)",
                params![token_hash, name, expires_at.0],
            )?;
            devices::void_tokens_of(&transaction, &name, now)?;
            let device = devices::insert(&transaction, &name, Some((token_hash, expires_at)))?;
            transaction.commit()?;
            Ok(device)
        })
        .await
    }

    /// Spends an enrolment token: the connector it names gets `key`. Nothing where the token is unknown, used or
    /// expired.
    pub async fn enrol_connector(
        &self,
        token_hash: [u8; 32],
        key: [u8; 32],
        now: UnixTime,
    ) -> Result<Option<Connector>, StoreError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            transaction.execute("DELETE FROM enrolment WHERE expires_at <= ?1", [now.0])?;
            let name: Option<String> = transaction
                .query_row(
                    "DELETE FROM enrolment WHERE token_hash = ?1 RETURNING connector",
                    [token_hash],
                    |row| row.get(0),
                )
                .optional()?;
            let connector = name
                .map(|name| {
                    devices::void_own_of(&transaction, &name, now)?;
                    transaction.query_row(
                        &format!(
                            "UPDATE connector SET key = ?2, enrolled_at = ?3, revoked_at = NULL
                             WHERE name = ?1 RETURNING {COLUMNS}"
                        ),
                        params![name, key, now.0],
                        connector,
                    )
                })
                .transpose()?;
            transaction.commit()?;
            Ok(connector)
        })
        .await
    }

    /// Spends an enrolment token of a connector that needs none; tokens of other connectors stay.
    pub async fn spend_enrolment(&self, token_hash: [u8; 32], connector: &str) -> Result<(), StoreError> {
        let connector = connector.to_owned();
        self.run(move |store| {
            store.execute(
                "DELETE FROM enrolment WHERE token_hash = ?1 AND connector = ?2",
                params![token_hash, connector],
            )?;
            Ok(())
        })
        .await
    }

    /// The connector that holds the key, unless revoked.
    pub async fn connector_by_key(&self, key: [u8; 32]) -> Result<Option<Connector>, StoreError> {
        self.run(move |store| {
            store
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM connector WHERE key = ?1 AND revoked_at IS NULL"
                ))?
                .query_row([key], connector)
                .optional()
                .map_err(StoreError::from)
        })
        .await
    }

    /// Every connector that is not revoked.
    pub async fn connectors(&self) -> Result<Vec<Connector>, StoreError> {
        self.run(|store| {
            store
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM connector WHERE revoked_at IS NULL ORDER BY name"
                ))?
                .query_map([], connector)?
                .collect::<Result<_, _>>()
                .map_err(StoreError::from)
        })
        .await
    }

    /// Says whether there was such a connector. Its key and its unused tokens are void at once.
    pub async fn revoke_connector(&self, name: &str, now: UnixTime) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.run_urgently(move |connection| {
            let transaction = connection.transaction()?;
            transaction.execute("DELETE FROM enrolment WHERE connector = ?1", [&name])?;
            let changed = transaction.execute(
                "UPDATE connector SET revoked_at = ?2, key = NULL WHERE name = ?1 AND revoked_at IS NULL",
                params![name, now.0],
            )?;
            devices::void_all_of(&transaction, &name, now)?;
            transaction.commit()?;
            Ok(changed > 0)
        })
        .await
    }
}

fn connector(row: &Row<'_>) -> rusqlite::Result<Connector> {
    Ok(Connector {
        name: row.get(0)?,
        key: row.get(1)?,
        created_at: UnixTime(row.get(2)?),
        enrolled_at: row.get::<_, Option<i64>>(3)?.map(UnixTime),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_enrolment_token_works_once_and_in_time() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.create_connector("hq", [1; 32], UnixTime(100), UnixTime(0)).await.unwrap();
        assert_eq!(store.enrol_connector([9; 32], [5; 32], UnixTime(1)).await.unwrap(), None);
        assert!(store.enrol_connector([1; 32], [5; 32], UnixTime(1)).await.unwrap().is_some());
        assert_eq!(store.enrol_connector([1; 32], [6; 32], UnixTime(1)).await.unwrap(), None);
        assert_eq!(store.connector_by_key([5; 32]).await.unwrap().unwrap().name, "hq");
        store.create_connector("hq", [2; 32], UnixTime(100), UnixTime(0)).await.unwrap();
        assert_eq!(store.enrol_connector([2; 32], [6; 32], UnixTime(100)).await.unwrap(), None);
        assert!(store.revoke_connector("hq", UnixTime(3)).await.unwrap());
        assert_eq!(store.connector_by_key([5; 32]).await.unwrap(), None);
        assert!(!store.revoke_connector("hq", UnixTime(3)).await.unwrap());
    }
}

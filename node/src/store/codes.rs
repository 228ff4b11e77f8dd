//! One-time codes, replay guards and named secrets.

use rusqlite::{OptionalExtension as _, TransactionBehavior, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::flow::UnixTime;

use super::{Store, StoreError};

impl Store {
    /// Records that `key` was used for `purpose`; true the first time only, atomically, until it expires.
    pub async fn use_once(
        &self,
        purpose: &'static str,
        key: &[u8],
        expires_at: UnixTime,
        now: UnixTime,
    ) -> Result<bool, StoreError> {
        let key = key.to_owned();
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            transaction.execute("DELETE FROM used WHERE expires_at <= ?1", [now.0])?;
            let added = transaction.execute(
                "INSERT INTO used (purpose, key, expires_at) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                params![purpose, key, expires_at.0],
            )?;
            transaction.commit()?;
            Ok(added > 0)
        })
        .await
    }

    /// Whether `key` was used for `purpose`.
    pub(crate) async fn was_used(
        &self,
        purpose: &'static str,
        key: &[u8],
        now: UnixTime,
    ) -> Result<bool, StoreError> {
        let key = key.to_owned();
        self.run(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM used WHERE purpose = ?1 AND key = ?2 AND expires_at > ?3)",
            )?;
            Ok(statement.query_row(params![purpose, key, now.0], |row| row.get(0))?)
        })
        .await
    }

    /// Keeps `value` under the hash of a one-time code.
    pub async fn put_code<T: Serialize>(
        &self,
        hash: [u8; 32],
        value: &T,
        expires_at: UnixTime,
    ) -> Result<(), StoreError> {
        let body = serde_json::to_string(value).map_err(|e| StoreError::Malformed(e.to_string()))?;
        self.run(move |connection| {
            connection.execute(
                "INSERT INTO code (hash, body, expires_at) VALUES (?1, ?2, ?3)",
                params![hash, body, expires_at.0],
            )?;
            Ok(())
        })
        .await
    }

    /// Redeems a code: whoever comes first gets the value, everybody else nothing. Expired codes are removed.
    pub async fn take_code<T: DeserializeOwned>(
        &self,
        hash: [u8; 32],
        now: UnixTime,
    ) -> Result<Option<T>, StoreError> {
        let body: Option<String> = self
            .run(move |connection| {
                let transaction = connection.transaction()?;
                transaction.execute("DELETE FROM code WHERE expires_at <= ?1", [now.0])?;
                let body = transaction
                    .query_row("DELETE FROM code WHERE hash = ?1 RETURNING body", [hash], |row| row.get(0))
                    .optional()?;
                transaction.commit()?;
                Ok(body)
            })
            .await?;
        body.map(|body| serde_json::from_str(&body).map_err(|e| StoreError::Malformed(e.to_string())))
            .transpose()
    }

    /// The secret called `name`, made once by `make`.
    pub async fn secret(
        &self,
        name: impl Into<String>,
        make: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let name = name.into();
        self.run(move |connection| {
            // Another process may write meanwhile: a transaction that begins by reading could not go on to write then.
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let found: Option<Vec<u8>> = transaction
                .query_row("SELECT value FROM secret WHERE name = ?1", [&name], |row| row.get(0))
                .optional()?;
            let value = match found {
                Some(value) => Zeroizing::new(value),
                None => {
                    let made = Zeroizing::new(make());
                    transaction.execute(
                        "INSERT INTO secret (name, value) VALUES (?1, ?2)",
                        params![name, made.as_slice()],
                    )?;
                    made
                }
            };
            transaction.commit()?;
            Ok(value)
        })
        .await
    }

    /// Replaces a secret, or makes it.
    pub async fn replace_secret(&self, name: &'static str, value: Vec<u8>) -> Result<(), StoreError> {
        let value = Zeroizing::new(value);
        self.run(move |connection| {
            connection.execute(
                "INSERT INTO secret (name, value) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                params![name, value.as_slice()],
            )?;
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
impl Store {
    /// Makes every use of codes fail from now on.
    pub(crate) async fn break_codes(&self) {
        self.run(|connection| Ok(connection.execute_batch("DROP TABLE code")?)).await.unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_code_is_redeemed_once_and_only_in_time() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.put_code([1; 32], &"value", UnixTime(100)).await.unwrap();
        store.put_code([2; 32], &"late", UnixTime(100)).await.unwrap();
        assert_eq!(store.take_code::<String>([1; 32], UnixTime(99)).await.unwrap().as_deref(), Some("value"));
        assert_eq!(store.take_code::<String>([1; 32], UnixTime(99)).await.unwrap(), None);
        assert_eq!(store.take_code::<String>([2; 32], UnixTime(100)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_replay_is_seen_until_it_expires() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let used = |purpose, now| {
            let store = store.clone();
            async move { store.use_once(purpose, b"k", UnixTime(100), UnixTime(now)).await.unwrap() }
        };
        assert!(used("a", 0).await);
        assert!(!used("a", 99).await);
        assert!(used("b", 0).await);
        assert!(used("a", 100).await);
    }
}

//! Service tokens: what programs prove who they are with. Of the secret only a hash is kept.

use rusqlite::{OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};

use crate::flow::{ServiceId, UnixTime};

use super::{Store, StoreError};

/// A service token as the node knows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceToken {
    pub name: String,
    pub client_id: ServiceId,
    /// SHA-256 of the secret's text.
    #[serde(skip)]
    pub secret_hash: [u8; 32],
    pub created_at: UnixTime,
    /// When its secret was made.
    pub rotated_at: UnixTime,
    pub expires_at: UnixTime,
}

impl std::fmt::Debug for ServiceToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceToken")
            .field("name", &self.name)
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

const COLUMNS: &str = "name, client_id, secret_hash, created_at, rotated_at, expires_at";

impl Store {
    /// Every service token that is not revoked, expired ones too.
    pub async fn service_tokens(&self) -> Result<Vec<ServiceToken>, StoreError> {
        self.run(|connection| {
            connection
                .prepare_cached(&format!("SELECT {COLUMNS} FROM service_token ORDER BY name"))?
                .query_map([], service_token)?
                .collect::<Result<_, _>>()
                .map_err(StoreError::from)
        })
        .await
    }

    /// Fails with [`StoreError::Exists`] where the name is taken.
    pub async fn add_service_token(&self, token: ServiceToken) -> Result<(), StoreError> {
        self.run(move |connection| {
            let added = connection.execute(
                &format!(
                    "INSERT INTO service_token ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING"
                ),
                params![
                    token.name,
                    token.client_id.as_bytes(),
                    token.secret_hash,
                    token.created_at.0,
                    token.rotated_at.0,
                    token.expires_at.0
                ],
            )?;
            if added == 0 { Err(StoreError::Exists(format!("service token {}", token.name))) } else { Ok(()) }
        })
        .await
    }

    /// Gives a service token another secret and another end; its id stays. Nothing where there is no such token.
    pub async fn rotate_service_token(
        &self,
        name: &str,
        secret_hash: [u8; 32],
        expires_at: UnixTime,
        now: UnixTime,
    ) -> Result<Option<ServiceToken>, StoreError> {
        let name = name.to_owned();
        self.run(move |connection| {
            connection
                .query_row(
                    &format!(
                        "UPDATE service_token SET secret_hash = ?2, rotated_at = ?3, expires_at = ?4
                         WHERE name = ?1 RETURNING {COLUMNS}"
                    ),
                    params![name, secret_hash, now.0, expires_at.0],
                    service_token,
                )
                .optional()
                .map_err(StoreError::from)
        })
        .await
    }

    /// Forgets a service token, and says which it was.
    pub async fn remove_service_token(&self, name: &str) -> Result<Option<ServiceToken>, StoreError> {
        let name = name.to_owned();
        self.run_urgently(move |connection| {
            connection
                .query_row(
                    &format!("DELETE FROM service_token WHERE name = ?1 RETURNING {COLUMNS}"),
                    [name],
                    service_token,
                )
                .optional()
                .map_err(StoreError::from)
        })
        .await
    }
}

fn service_token(row: &Row<'_>) -> rusqlite::Result<ServiceToken> {
    Ok(ServiceToken {
        name: row.get(0)?,
        client_id: ServiceId::from_bytes(row.get(1)?),
        secret_hash: row.get(2)?,
        created_at: UnixTime(row.get(3)?),
        rotated_at: UnixTime(row.get(4)?),
        expires_at: UnixTime(row.get(5)?),
    })
}

#[cfg(test)]
impl Store {
    /// Makes every use of service tokens fail from now on.
    pub(crate) async fn break_service_tokens(&self) {
        self.run(|connection| Ok(connection.execute_batch("DROP TABLE service_token")?)).await.unwrap();
    }
}

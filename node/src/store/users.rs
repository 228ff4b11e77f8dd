//! Local users.

use rusqlite::{OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};

use crate::flow::{Email, UnixTime};

use super::{Store, StoreError};

/// A person whom the node itself can log in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub name: String,
    pub email: Email,
    pub groups: Vec<String>,
    /// PHC string of the password (argon2id).
    #[serde(skip)]
    pub password_hash: String,
    pub created_at: UnixTime,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("name", &self.name).field("email", &self.email).finish_non_exhaustive()
    }
}

impl Store {
    pub async fn user(&self, name: &str) -> Result<Option<User>, StoreError> {
        let name = name.to_owned();
        self.run(move |connection| {
            connection
                .prepare_cached(
                    "SELECT name, email, groups, password_hash, created_at FROM user WHERE name = ?1",
                )?
                .query_row([name], user)
                .optional()
                .map_err(StoreError::from)
        })
        .await
    }

    pub async fn users(&self) -> Result<Vec<User>, StoreError> {
        self.run(|connection| {
            connection
                .prepare_cached(
                    "SELECT name, email, groups, password_hash, created_at FROM user ORDER BY name",
                )?
                .query_map([], user)?
                .collect::<Result<_, _>>()
                .map_err(StoreError::from)
        })
        .await
    }

    /// Fails with [`StoreError::Exists`] where the name is taken.
    pub async fn add_user(&self, user: User) -> Result<(), StoreError> {
        self.run(move |connection| {
            let groups =
                serde_json::to_string(&user.groups).map_err(|e| StoreError::Malformed(e.to_string()))?;
            let added = connection.execute(
                "INSERT INTO user (name, email, groups, password_hash, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
                params![user.name, user.email.as_str(), groups, user.password_hash, user.created_at.0],
            )?;
            if added == 0 { Err(StoreError::Exists(format!("user {}", user.name))) } else { Ok(()) }
        })
        .await
    }

    /// Says whether there was such a user.
    pub async fn set_password(&self, name: &str, password_hash: String) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.run_urgently(move |connection| {
            let changed = connection.execute(
                "UPDATE user SET password_hash = ?2 WHERE name = ?1",
                params![name, password_hash],
            )?;
            Ok(changed > 0)
        })
        .await
    }

    /// Says whether there was such a user.
    pub async fn remove_user(&self, name: &str) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.run_urgently(move |connection| {
            Ok(connection.execute("DELETE FROM user WHERE name = ?1", [name])? > 0)
        })
        .await
    }
}

fn user(row: &Row<'_>) -> rusqlite::Result<User> {
    let email: String = row.get(1)?;
    let groups: String = row.get(2)?;
    let malformed = |column, error: Box<dyn std::error::Error + Send + Sync>| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error)
    };
    Ok(User {
        name: row.get(0)?,
        email: email.parse().map_err(|e| malformed(1, Box::new(e)))?,
        groups: serde_json::from_str(&groups).map_err(|e| malformed(2, Box::new(e)))?,
        password_hash: row.get(3)?,
        created_at: UnixTime(row.get(4)?),
    })
}

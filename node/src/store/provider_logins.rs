//! What identity providers call the logins that sessions began with, for logouts in either direction.

use rusqlite::{OptionalExtension as _, params};

use crate::flow::{SessionId, UnixTime};
use crate::identity::ProviderLogin;
use crate::saml::NameId;

use super::{Store, StoreError};

impl Store {
    /// Notes what the provider of a session calls its login.
    pub(crate) async fn insert_provider_login(
        &self,
        session: SessionId,
        provider: &str,
        login: &ProviderLogin,
    ) -> Result<(), StoreError> {
        let body = serde_json::to_string(login).map_err(|e| StoreError::Malformed(e.to_string()))?;
        let (provider, login) = (provider.to_owned(), login.clone());
        self.run(move |connection| {
            connection.execute(
                "INSERT INTO provider_login (session, provider, name, session_index, body) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![session.as_bytes(), provider, login.name_id.value, login.session_index, body],
            )?;
            Ok(())
        })
        .await
    }

    /// What the provider of a session calls its login, and the provider.
    pub(crate) async fn provider_login(
        &self,
        session: SessionId,
    ) -> Result<Option<(String, ProviderLogin)>, StoreError> {
        let row: Option<(String, String)> = self
            .run(move |connection| {
                connection
                    .prepare_cached("SELECT provider, body FROM provider_login WHERE session = ?1")?
                    .query_row([session.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()
                    .map_err(StoreError::from)
            })
            .await?;
        let read = |(provider, body): (String, String)| {
            let login = serde_json::from_str(&body).map_err(|e| StoreError::Malformed(e.to_string()))?;
            Ok((provider, login))
        };
        row.map(read).transpose()
    }

    /// The live sessions that began with a login that `provider` calls `name_id` and one of `indexes`; without any, all of
    /// that name.
    pub(crate) async fn sessions_at_provider(
        &self,
        provider: &str,
        name_id: &NameId,
        indexes: Vec<String>,
        now: UnixTime,
    ) -> Result<Vec<SessionId>, StoreError> {
        let (provider, name) = (provider.to_owned(), name_id.value.clone());
        self.run(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT session.id, provider_login.session_index FROM provider_login
                 JOIN session ON session.id = provider_login.session
                 WHERE provider_login.provider = ?1 AND provider_login.name = ?2
                 AND session.revoked_at IS NULL AND session.expires_at > ?3",
            )?;
            let rows = statement.query_map(params![provider, name, now.0], |row| {
                Ok((SessionId::from_bytes(row.get(0)?), row.get::<_, Option<String>>(1)?))
            })?;
            let mut sessions = Vec::new();
            for row in rows {
                let (session, index) = row?;
                if indexes.is_empty() || index.is_some_and(|index| indexes.contains(&index)) {
                    sessions.push(session);
                }
            }
            Ok(sessions)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{PersonId, Session};
    use crate::saml::NAMEID_PERSISTENT;

    #[tokio::test]
    async fn logins_are_found_by_name_and_index() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let login = |name: &str, index: &str| ProviderLogin {
            name_id: NameId::new(NAMEID_PERSISTENT, name),
            session_index: Some(index.into()),
        };
        for (id, name, index) in [(1, "ann", "_a"), (2, "ann", "_b"), (3, "bob", "_c"), (4, "ann", "_d")] {
            let session = Session {
                id: SessionId::from_bytes([id; 16]),
                person: PersonId { provider: "adfs".into(), subject: name.into() },
                email: None,
                display_name: "x".into(),
                groups: vec![],
                amr: vec![],
                address: [192, 0, 2, 1].into(),
                created_at: UnixTime(0),
                expires_at: UnixTime(if id == 4 { 50 } else { 1000 }),
            };
            store.insert_session(&session).await.unwrap();
            store.insert_provider_login(session.id, "adfs", &login(name, index)).await.unwrap();
        }
        let found = |provider: &'static str, name: &str, indexes: &[&str]| {
            let (name, indexes) = (NameId::new("x", name), indexes.iter().map(|i| (*i).into()).collect());
            let store = store.clone();
            async move {
                let found = store.sessions_at_provider(provider, &name, indexes, UnixTime(100)).await;
                found.unwrap().iter().map(|session| session.as_bytes()[0]).collect::<Vec<_>>()
            }
        };
        assert_eq!(found("adfs", "ann", &[]).await, [1, 2], "the expired one is over");
        assert_eq!(found("adfs", "ann", &["_b", "_c"]).await, [2], "another person's is not");
        assert_eq!(found("okta", "ann", &[]).await, [0; 0]);
        let one = SessionId::from_bytes([1; 16]);
        assert_eq!(store.provider_login(one).await.unwrap(), Some(("adfs".to_owned(), login("ann", "_a"))));
        assert_eq!(store.provider_login(SessionId::from_bytes([9; 16])).await.unwrap(), None);
    }
}

//! What identity providers call the logins that sessions began with, for logouts in either direction.

use rusqlite::{OptionalExtension as _, params};

use crate::flow::{SessionId, UnixTime};
use crate::identity::{Heard, ProviderLogin};
use crate::saml::NameId;

use super::{Store, StoreError};

impl Store {
    /// Notes what the provider of a session calls its login; false if the provider has ended that login since it told of
    /// it.
    pub(crate) async fn insert_provider_login(
        &self,
        session: SessionId,
        provider: &str,
        heard: &Heard,
    ) -> Result<bool, StoreError> {
        let body = serde_json::to_string(&heard.login).map_err(|e| StoreError::Malformed(e.to_string()))?;
        let (provider, Heard { login, at }) = (provider.to_owned(), heard.clone());
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            transaction.execute(
                "INSERT INTO provider_login (session, provider, name, session_index, body) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![session.as_bytes(), provider, login.name_id.value, login.session_index, body],
            )?;
            let has_ended: bool = transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM provider_logout WHERE provider = ?1 AND name = ?2
                 AND (session_index IS NULL OR session_index = ?3) AND at >= ?4)",
                params![provider, login.name_id.value, login.session_index, at.0],
                |row| row.get(0),
            )?;
            transaction.commit()?;
            Ok(!has_ended)
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
    /// that name. The provider ended them at `issued_at`, by its clock: what it told of a login until then does not come to
    /// be one, if it is brought before `until`.
    pub(crate) async fn ended_at_provider(
        &self,
        provider: &str,
        name_id: &NameId,
        indexes: Vec<String>,
        (issued_at, until): (UnixTime, UnixTime),
        now: UnixTime,
    ) -> Result<Vec<SessionId>, StoreError> {
        let (provider, name) = (provider.to_owned(), name_id.value.clone());
        self.run_urgently(move |connection| {
            let transaction = connection.transaction()?;
            transaction.execute("DELETE FROM provider_logout WHERE expires_at <= ?1", [now.0])?;
            let named: Vec<Option<&str>> = match indexes.as_slice() {
                [] => vec![None],
                indexes => indexes.iter().map(|index| Some(index.as_str())).collect(),
            };
            for index in named {
                transaction.execute(
                    "INSERT INTO provider_logout (provider, name, session_index, at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![provider, name, index, issued_at.0, until.0],
                )?;
            }
            transaction.commit()?;
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
                is_local: None,
                email: None,
                display_name: "x".into(),
                groups: vec![],
                amr: vec![],
                address: [192, 0, 2, 1].into(),
                authenticated_at: None,
                created_at: UnixTime(0),
                expires_at: UnixTime(if id == 4 { 50 } else { 1000 }),
            };
            store.insert_session(&session).await.unwrap();
            let heard = Heard { login: login(name, index), at: UnixTime(0) };
            assert!(store.insert_provider_login(session.id, "adfs", &heard).await.unwrap());
        }
        let found = |provider: &'static str, name: &str, indexes: &[&str]| {
            let (name, indexes) = (NameId::new("x", name), indexes.iter().map(|i| (*i).into()).collect());
            let store = store.clone();
            async move {
                let times = (UnixTime(100), UnixTime(160));
                let found = store.ended_at_provider(provider, &name, indexes, times, UnixTime(100)).await;
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

    #[tokio::test]
    async fn a_logout_ends_logins_that_are_under_way() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let ann = NameId::new(NAMEID_PERSISTENT, "ann");
        let end = |indexes: &[&str], at: i64| {
            let (store, ann) = (store.clone(), ann.clone());
            let indexes = indexes.iter().map(|index| (*index).to_owned()).collect();
            // It took five seconds.
            let (times, now) = ((UnixTime(at), UnixTime(at + 65)), UnixTime(at + 5));
            async move { store.ended_at_provider("adfs", &ann, indexes, times, now).await.unwrap() }
        };
        let mut sessions = 0;
        let mut begins = |provider: &'static str, name: &str, index: Option<&str>, heard: i64| {
            sessions += 1;
            let session = Session {
                id: SessionId::from_bytes([sessions; 16]),
                person: PersonId { provider: provider.into(), subject: name.into() },
                is_local: None,
                email: None,
                display_name: "x".into(),
                groups: vec![],
                amr: vec![],
                address: [192, 0, 2, 1].into(),
                authenticated_at: None,
                created_at: UnixTime(heard),
                expires_at: UnixTime(1000),
            };
            let login = ProviderLogin {
                name_id: NameId::new(NAMEID_PERSISTENT, name),
                session_index: index.map(str::to_owned),
            };
            let store = store.clone();
            async move {
                store.insert_session(&session).await.unwrap();
                let heard = Heard { login, at: UnixTime(heard) };
                store.insert_provider_login(session.id, provider, &heard).await.unwrap()
            }
        };
        end(&["_a", "_b"], 100).await;
        assert!(!begins("adfs", "ann", Some("_b"), 90).await, "told of before");
        assert!(!begins("adfs", "ann", Some("_b"), 100).await, "in the same second");
        assert!(begins("adfs", "ann", Some("_b"), 101).await, "told of later: it is another one");
        assert!(begins("adfs", "ann", Some("_c"), 90).await, "not named");
        assert!(begins("adfs", "ann", None, 90).await, "not named either");
        assert!(begins("adfs", "bob", Some("_b"), 90).await, "another person");
        assert!(begins("okta", "ann", Some("_b"), 90).await, "another provider");
        end(&[], 110).await;
        assert!(!begins("adfs", "ann", Some("_c"), 109).await, "all of that name");
        assert!(begins("adfs", "ann", Some("_c"), 111).await);
        // Nothing is kept for longer than a login may be under way.
        end(&["_z"], 170).await;
        assert!(begins("adfs", "ann", Some("_c"), 109).await);
    }
}

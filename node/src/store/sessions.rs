//! Global sessions.

use rusqlite::params;

use crate::flow::{Session, SessionId, UnixTime};

use super::{ReadLane, Store, StoreError};

/// Which sessions a command is about.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionFilter {
    Id(SessionId),
    /// Email or `provider:subject`.
    User(String),
    /// Name of a local user, under whatever name of their provider the sessions began.
    LocalUser(String),
    /// Sessions that were granted an application.
    Application(String),
    All,
}

impl Store {
    pub async fn insert_session(&self, session: &Session) -> Result<(), StoreError> {
        let session = session.clone();
        self.run(move |connection| {
            let body = serde_json::to_string(&session).map_err(|e| StoreError::Malformed(e.to_string()))?;
            connection.execute(
                "INSERT INTO session (id, person, email, body, created_at, expires_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    session.id.as_bytes(),
                    session.person.to_string(),
                    session.email.as_ref().map(crate::flow::Email::as_str),
                    body,
                    session.created_at.0,
                    session.expires_at.0
                ],
            )?;
            Ok(())
        })
        .await
    }

    /// Remembers that a session was granted an application, for revocation by application.
    pub async fn grant_application(&self, id: SessionId, application: &str) -> Result<(), StoreError> {
        let application = application.to_owned();
        self.run(move |connection| {
            grant_application(connection, id, &application)?;
            Ok(())
        })
        .await
    }

    /// Every session that is neither revoked nor expired at `now`; sessions long over are forgotten.
    pub async fn live_sessions(&self, now: UnixTime) -> Result<Vec<Session>, StoreError> {
        self.run(move |connection| {
            connection
                .execute("DELETE FROM session WHERE expires_at < ?1", [now.0.saturating_sub(7 * 86_400)])?;
            select(
                connection,
                "SELECT body FROM session WHERE revoked_at IS NULL AND expires_at > ?1 ORDER BY created_at",
                params![now.0],
            )
        })
        .await
    }

    /// The live sessions that match.
    pub async fn sessions_matching(
        &self,
        filter: &SessionFilter,
        now: UnixTime,
    ) -> Result<Vec<Session>, StoreError> {
        let filter = filter.clone();
        self.read(ReadLane::Asked, move |connection| matching(connection, &filter, now)).await
    }

    /// Marks every live session that matches as revoked, in one transaction, and says which.
    pub async fn revoke_sessions(
        &self,
        filter: &SessionFilter,
        now: UnixTime,
    ) -> Result<Vec<Session>, StoreError> {
        let filter = filter.clone();
        self.run_urgently(move |connection| {
            let transaction = connection.transaction()?;
            let sessions = matching(&transaction, &filter, now)?;
            for session in &sessions {
                transaction.execute(
                    "UPDATE session SET revoked_at = ?2 WHERE id = ?1",
                    params![session.id.as_bytes(), now.0],
                )?;
            }
            transaction.commit()?;
            Ok(sessions)
        })
        .await
    }
}

/// What is known already costs no write.
pub(super) fn grant_application(
    connection: &rusqlite::Connection,
    id: SessionId,
    application: &str,
) -> rusqlite::Result<usize> {
    connection
        .prepare_cached(
            "INSERT INTO session_application (session, application) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        )?
        .execute(params![id.as_bytes(), application])
}

fn matching(
    connection: &rusqlite::Connection,
    filter: &SessionFilter,
    now: UnixTime,
) -> Result<Vec<Session>, StoreError> {
    const LIVE: &str = "SELECT body FROM session WHERE revoked_at IS NULL AND expires_at > ?1";
    match filter {
        SessionFilter::Id(id) => {
            select(connection, &format!("{LIVE} AND id = ?2"), params![now.0, id.as_bytes()])
        }
        SessionFilter::User(user) => select(
            connection,
            &format!("{LIVE} AND (person = ?2 OR email = lower(?2))"),
            params![now.0, user],
        ),
        SessionFilter::LocalUser(name) => {
            // The rest of the name can have the separator too: what was selected is looked at once more.
            let mut sessions =
                select(connection, &format!("{LIVE} AND instr(person, ':' || ?2)"), params![now.0, name])?;
            sessions.retain(|session| session.is_of_local_user(name));
            Ok(sessions)
        }
        SessionFilter::Application(application) => select(
            connection,
            &format!("{LIVE} AND id IN (SELECT session FROM session_application WHERE application = ?2)"),
            params![now.0, application],
        ),
        SessionFilter::All => select(connection, LIVE, params![now.0]),
    }
}

fn select(
    connection: &rusqlite::Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<Session>, StoreError> {
    let mut statement = connection.prepare_cached(sql)?;
    let bodies = statement.query_map(parameters, |row| row.get::<_, String>(0))?;
    bodies
        .map(|body| serde_json::from_str(&body?).map_err(|e| StoreError::Malformed(format!("session: {e}"))))
        .collect()
}

#[cfg(test)]
impl Store {
    /// Makes every use of sessions fail from now on.
    pub(crate) async fn break_sessions(&self) {
        self.run(|connection| {
            Ok(connection.execute_batch("DROP TABLE session_application; DROP TABLE session")?)
        })
        .await
        .unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FILE, schema};
    use super::*;

    /// Of sessions that an older version began it is known when a password was given, and nothing else.
    #[tokio::test]
    async fn sessions_of_an_older_version_say_when_a_password_was_given() {
        let directory = tempfile::tempdir().unwrap();
        let older = schema::of_version(&directory.path().join(FILE), 12).unwrap();
        for (id, local) in [(1_u8, "true"), (2, "false"), (3, "null")] {
            let id = SessionId::from_bytes([id; 16]);
            let body = format!(
                r#"{{"id":"{id}","person":{{"provider":"p","subject":"ann"}},"is_local":{local},"email":null,"display_name":"Ann","groups":[],"amr":[],"address":"192.0.2.1","created_at":1000,"expires_at":9000}}"#
            );
            let insert = "INSERT INTO session (id, person, body, created_at, expires_at) VALUES (?1, 'p:ann', ?2, 1000, 9000)";
            older.execute(insert, params![id.as_bytes(), body]).unwrap();
        }
        drop(older);
        let store = Store::open(directory.path()).unwrap();
        let mut sessions = store.live_sessions(UnixTime(2000)).await.unwrap();
        sessions.sort_by_key(|session| *session.id.as_bytes());
        let known: Vec<_> = sessions.iter().map(|session| session.authenticated_at).collect();
        assert_eq!(known, [Some(UnixTime(1000)), None, None]);
    }
}

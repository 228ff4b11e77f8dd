//! What applications elsewhere were granted: one row from the code of a sign-in to the end of its tokens, and which
//! applications have to be told when a session ends.
//!
//! A grant ends with the session it was made from, whatever its own row says. Tokens are not kept: they name their grant
//! and are sealed, so that one nobody was given never gets this far.

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::flow::{Session, SessionId, UnixTime};
use crate::saml::NameId;

use super::sessions::grant_application;
use super::{Store, StoreError};

/// A grant that is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SaasGrant<T> {
    pub(crate) session: SessionId,
    /// Name of the application.
    pub(crate) application: String,
    pub(crate) body: T,
    /// 0 until the code is redeemed, then the number of the refresh token that is good.
    pub(crate) generation: u32,
    pub(crate) expires_at: UnixTime,
}

/// What became of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Redemption {
    First,
    /// It was redeemed before: the grant is revoked.
    Again,
    /// There is no such grant, or it has ended.
    Gone,
}

/// What became of a refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It is spent; the next one has this number.
    Next(u32),
    /// It was spent before: the grant is revoked.
    Reused,
    /// There is no such grant, or it has ended.
    Gone,
}

/// A session that has ended and an application that has not been told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndedLogin {
    pub(crate) session: Session,
    pub(crate) application: String,
    /// How often telling it has failed.
    pub(crate) tries: u32,
    /// What the application calls the person, where it speaks SAML.
    pub(crate) name_id: Option<NameId>,
    pub(crate) answers_over_at: Option<UnixTime>,
    /// It was told before, when an answer that it had been sent was still good.
    pub(crate) is_told: bool,
}

/// A sign-in at an application elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SaasLogin {
    pub(crate) session: SessionId,
    pub(crate) application: String,
    /// When the last answer that the application was sent is over, where it speaks SAML.
    pub(crate) answers_over_at: Option<UnixTime>,
}

/// Grants of one session that are kept; beyond that the oldest ends.
const MOST_OF_SESSION: i64 = 256;

const LIVE: &str =
    "SELECT saas_grant.session, saas_grant.application, saas_grant.body, saas_grant.generation,
        saas_grant.expires_at
    FROM saas_grant JOIN session ON session.id = saas_grant.session
    WHERE saas_grant.id = ?1 AND saas_grant.expires_at > ?2 AND saas_grant.revoked_at IS NULL
    AND session.revoked_at IS NULL AND session.expires_at > ?2";

impl Store {
    /// Keeps a new grant, which ends at `expires_at` unless its code is redeemed before. Grants that are over are
    /// forgotten.
    pub(crate) async fn insert_saas_grant<T: Serialize>(
        &self,
        id: [u8; 16],
        session: SessionId,
        application: &str,
        body: &T,
        expires_at: UnixTime,
        now: UnixTime,
    ) -> Result<(), StoreError> {
        let body = serde_json::to_string(body).map_err(|e| StoreError::Malformed(e.to_string()))?;
        let application = application.to_owned();
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            transaction.execute("DELETE FROM saas_grant WHERE expires_at <= ?1", [now.0])?;
            transaction.execute(
                "DELETE FROM saas_grant WHERE session = ?1 AND id NOT IN
                 (SELECT id FROM saas_grant WHERE session = ?1 ORDER BY created_at DESC, rowid DESC LIMIT ?2)",
                params![session.as_bytes(), MOST_OF_SESSION - 1],
            )?;
            transaction.execute(
                "INSERT INTO saas_grant (id, session, application, body, generation, created_at, expires_at)
                 VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6)",
                params![id, session.as_bytes(), application, body, now.0, expires_at.0],
            )?;
            transaction.commit()?;
            Ok(())
        })
        .await
    }

    /// The grant, if it is good at `now`.
    pub(crate) async fn saas_grant<T: DeserializeOwned>(
        &self,
        id: [u8; 16],
        now: UnixTime,
    ) -> Result<Option<SaasGrant<T>>, StoreError> {
        let Some(grant) = self.run(move |connection| Ok(find(connection, id, now)?)).await? else {
            return Ok(None);
        };
        let body = serde_json::from_str(&grant.body).map_err(|e| StoreError::Malformed(e.to_string()))?;
        let SaasGrant { session, application, generation, expires_at, .. } = grant;
        Ok(Some(SaasGrant { session, application, body, generation, expires_at }))
    }

    /// Spends the code of a grant, which then lives until `expires_at`; its application has a login now. A code that comes
    /// again ends the grant.
    pub(crate) async fn redeem_saas_grant(
        &self,
        id: [u8; 16],
        expires_at: UnixTime,
        now: UnixTime,
    ) -> Result<Redemption, StoreError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            let Some(grant) = find(&transaction, id, now)? else { return Ok(Redemption::Gone) };
            let redemption = if grant.generation == 0 {
                transaction.execute(
                    "UPDATE saas_grant SET generation = 1, expires_at = ?2 WHERE id = ?1",
                    params![id, expires_at.0],
                )?;
                transaction.execute(
                    "INSERT INTO saas_login (session, application, tries, next_try) VALUES (?1, ?2, 0, 0)
                     ON CONFLICT DO NOTHING",
                    params![grant.session.as_bytes(), grant.application],
                )?;
                Redemption::First
            } else {
                revoke(&transaction, id, now)?;
                Redemption::Again
            };
            transaction.commit()?;
            Ok(redemption)
        })
        .await
    }

    /// Spends the refresh token with the number `presented`. One that was spent before ends the grant.
    pub(crate) async fn turn_saas_grant(
        &self,
        id: [u8; 16],
        presented: u32,
        now: UnixTime,
    ) -> Result<Turn, StoreError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            let Some(grant) = find(&transaction, id, now)? else { return Ok(Turn::Gone) };
            let turn = if grant.generation == presented && presented > 0 {
                let next = presented.saturating_add(1);
                transaction
                    .execute("UPDATE saas_grant SET generation = ?2 WHERE id = ?1", params![id, next])?;
                Turn::Next(next)
            } else {
                revoke(&transaction, id, now)?;
                Turn::Reused
            };
            transaction.commit()?;
            Ok(turn)
        })
        .await
    }

    /// Ends a grant and every token of it.
    pub(crate) async fn revoke_saas_grant(&self, id: [u8; 16], now: UnixTime) -> Result<(), StoreError> {
        self.run_urgently(move |connection| {
            let transaction = connection.transaction()?;
            revoke(&transaction, id, now)?;
            transaction.commit()?;
            Ok(())
        })
        .await
    }

    /// Logins at applications whose session was revoked or logged out and that are due to be told of it, at most `most`.
    pub(crate) async fn ended_saas_logins(
        &self,
        most: u32,
        now: UnixTime,
    ) -> Result<Vec<EndedLogin>, StoreError> {
        self.run_own(move |connection| {
            let malformed = |e: serde_json::Error| StoreError::Malformed(format!("session: {e}"));
            let mut due = connection.prepare_cached(
                "SELECT session.body, saas_login.application, saas_login.tries, saas_login.name_id,
                     saas_login.answers_over_at, saas_login.told_at IS NOT NULL
                 FROM saas_login JOIN session ON session.id = saas_login.session
                 WHERE (saas_login.told_at IS NULL OR saas_login.told_at < saas_login.answers_over_at)
                 AND saas_login.next_try <= ?1
                 AND session.revoked_at IS NOT NULL ORDER BY saas_login.next_try LIMIT ?2",
            )?;
            let mut rows = due.query(params![now.0, most])?;
            let mut logins = Vec::new();
            while let Some(row) = rows.next()? {
                let name_id: Option<String> = row.get(3)?;
                logins.push(EndedLogin {
                    session: serde_json::from_str(&row.get::<_, String>(0)?).map_err(malformed)?,
                    application: row.get(1)?,
                    tries: row.get(2)?,
                    name_id: name_id
                        .map(|text| serde_json::from_str(&text))
                        .transpose()
                        .map_err(malformed)?,
                    answers_over_at: row.get::<_, Option<i64>>(4)?.map(UnixTime),
                    is_told: row.get(5)?,
                });
            }
            Ok(logins)
        })
        .await
    }

    /// Notes that an application that speaks SAML was told who somebody is, in answers that are over at `answers_over_at`, so
    /// that who revokes by application finds the session, and the application can be told when that ends. What is known
    /// already costs no write.
    pub(crate) async fn insert_saml_login(
        &self,
        session: SessionId,
        application: &str,
        name_id: &NameId,
        answers_over_at: UnixTime,
    ) -> Result<(), StoreError> {
        let name_id = serde_json::to_string(name_id).map_err(|e| StoreError::Malformed(e.to_string()))?;
        let application = application.to_owned();
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            grant_application(&transaction, session, &application)?;
            transaction
                .prepare_cached(
                    "INSERT INTO saas_login (session, application, tries, next_try, name_id, answers_over_at)
                     VALUES (?1, ?2, 0, 0, ?3, ?4)
                     ON CONFLICT DO UPDATE SET name_id = excluded.name_id,
                     answers_over_at = max(coalesce(answers_over_at, 0), excluded.answers_over_at)
                     WHERE name_id IS NOT excluded.name_id OR coalesce(answers_over_at, 0) < excluded.answers_over_at",
                )?
                .execute(params![session.as_bytes(), application, name_id, answers_over_at.0])?;
            transaction.commit()?;
            Ok(())
        })
        .await
    }

    /// What an application that speaks SAML calls the person of a session.
    pub(crate) async fn saml_login(
        &self,
        session: SessionId,
        application: &str,
    ) -> Result<Option<NameId>, StoreError> {
        let application = application.to_owned();
        let name_id: Option<Option<String>> = self
            .run(move |connection| {
                connection
                    .prepare_cached("SELECT name_id FROM saas_login WHERE session = ?1 AND application = ?2")?
                    .query_row(params![session.as_bytes(), application], |row| row.get(0))
                    .optional()
                    .map_err(StoreError::from)
            })
            .await?;
        let read = |text: String| {
            serde_json::from_str(&text).map_err(|e| StoreError::Malformed(format!("name: {e}")))
        };
        name_id.flatten().map(read).transpose()
    }

    /// The applications elsewhere that sessions have signed in at, by name.
    pub(crate) async fn saas_logins(&self, sessions: Vec<SessionId>) -> Result<Vec<SaasLogin>, StoreError> {
        self.run_urgently(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT application, answers_over_at FROM saas_login WHERE session = ?1 ORDER BY application",
            )?;
            let mut logins = Vec::new();
            for session in sessions {
                let rows = statement.query_map([session.as_bytes()], |row| {
                    let answers_over_at = row.get::<_, Option<i64>>(1)?.map(UnixTime);
                    Ok(SaasLogin { session, application: row.get(0)?, answers_over_at })
                })?;
                for login in rows {
                    logins.push(login?);
                }
            }
            Ok(logins)
        })
        .await
    }

    /// Notes that an application was told of the end of a session, or given up. Where an answer that it was sent is good
    /// for longer, it is due again when that is over: until then somebody may begin another session of its own.
    pub(crate) async fn saas_login_told(
        &self,
        session: SessionId,
        application: &str,
        now: UnixTime,
    ) -> Result<(), StoreError> {
        let application = application.to_owned();
        self.run_own(move |connection| {
            connection.execute(
                "UPDATE saas_login SET told_at = ?3, tries = 0, next_try = coalesce(answers_over_at, 0)
                 WHERE session = ?1 AND application = ?2",
                params![session.as_bytes(), application, now.0],
            )?;
            Ok(())
        })
        .await
    }

    /// Notes that an application could not be told and when that is tried again.
    pub(crate) async fn saas_login_later(
        &self,
        session: SessionId,
        application: &str,
        next_try: UnixTime,
    ) -> Result<(), StoreError> {
        let application = application.to_owned();
        self.run_own(move |connection| {
            connection.execute(
                "UPDATE saas_login SET tries = tries + 1, next_try = ?3 WHERE session = ?1 AND application = ?2",
                params![session.as_bytes(), application, next_try.0],
            )?;
            Ok(())
        })
        .await
    }
}

fn find(connection: &Connection, id: [u8; 16], now: UnixTime) -> rusqlite::Result<Option<SaasGrant<String>>> {
    connection
        .prepare_cached(LIVE)?
        .query_row(params![id, now.0], |row| {
            Ok(SaasGrant {
                session: SessionId::from_bytes(row.get(0)?),
                application: row.get(1)?,
                body: row.get(2)?,
                generation: row.get(3)?,
                expires_at: UnixTime(row.get(4)?),
            })
        })
        .optional()
}

fn revoke(transaction: &Transaction<'_>, id: [u8; 16], now: UnixTime) -> rusqlite::Result<()> {
    transaction.execute(
        "UPDATE saas_grant SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL",
        params![id, now.0],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests;

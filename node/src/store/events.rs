//! Events, as the log keeps them.

use rusqlite::params;
use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::flow::UnixTime;

use super::{Store, StoreError};

/// Which events to read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventFilter {
    /// Only events with a greater number.
    pub after: i64,
    pub since: Option<UnixTime>,
    /// Email or `provider:subject`.
    pub user: Option<String>,
    pub application: Option<String>,
    pub denied: bool,
    /// The newest so many, oldest first.
    pub limit: u32,
}

impl Store {
    /// Writes a batch in one transaction.
    pub async fn insert_events(&self, events: Vec<Event>) -> Result<(), StoreError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            {
                let mut insert = transaction.prepare_cached(
                    "INSERT INTO event (created_at, action, allowed, user, application, body)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?;
                for event in &events {
                    let body =
                        serde_json::to_string(event).map_err(|e| StoreError::Malformed(e.to_string()))?;
                    insert.execute(params![
                        event.at().0,
                        event.action().as_str(),
                        event.is_allowed(),
                        event.user(),
                        event.application_name(),
                        body
                    ])?;
                }
            }
            transaction.commit()?;
            Ok(())
        })
        .await
    }

    /// Events that match, oldest first, as their number and their JSON text.
    pub async fn events(&self, filter: EventFilter) -> Result<Vec<(i64, String)>, StoreError> {
        self.run(move |connection| {
            let mut rows: Vec<(i64, String)> = connection
                .prepare_cached(
                    "SELECT id, body FROM event
                     WHERE id > ?1 AND created_at >= ?2 AND (?3 IS NULL OR user = ?3)
                       AND (?4 IS NULL OR application = ?4) AND (NOT ?5 OR NOT allowed)
                     ORDER BY id DESC LIMIT ?6",
                )?
                .query_map(
                    params![
                        filter.after,
                        filter.since.map_or(i64::MIN, |since| since.0),
                        filter.user,
                        filter.application,
                        filter.denied,
                        filter.limit.max(1)
                    ],
                    |row| Ok((row.get(0)?, row.get(1)?)),
                )?
                .collect::<Result<_, _>>()?;
            rows.reverse();
            Ok(rows)
        })
        .await
    }

    /// Forgets events older than `before`, and the oldest while all of them together hold more than `max_bytes`.
    /// Says how many went.
    pub async fn trim_events(&self, before: UnixTime, max_bytes: u64) -> Result<usize, StoreError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            let mut gone = transaction.execute("DELETE FROM event WHERE created_at < ?1", [before.0])?;
            let bytes: i64 =
                transaction.query_row("SELECT coalesce(sum(length(body)), 0) FROM event", [], |row| row.get(0))?;
            let surplus = u64::try_from(bytes).unwrap_or(0).saturating_sub(max_bytes);
            if surplus > 0 {
                gone += transaction.execute(
                    "DELETE FROM event WHERE id IN (
                         SELECT id FROM (SELECT id, sum(length(body)) OVER (ORDER BY id) - length(body) AS older
                         FROM event) WHERE older < ?1)",
                    [i64::try_from(surplus).unwrap_or(i64::MAX)],
                )?;
            }
            transaction.commit()?;
            Ok(gone)
        })
        .await
    }
}

#[cfg(test)]
impl Store {
    /// Makes every write of events fail from now on.
    pub(crate) async fn break_events(&self) {
        self.run(|connection| Ok(connection.execute_batch("DROP TABLE event")?)).await.unwrap();
    }
}

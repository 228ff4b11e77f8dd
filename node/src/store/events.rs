//! Events, as the log keeps them.

use rusqlite::params;
use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::flow::UnixTime;

use super::{Store, StoreError};

/// Events that go in one transaction.
pub(crate) const TRIM_STEP: usize = 2048;

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
    /// Ray id.
    pub ray: Option<String>,
    /// The newest so many, oldest first.
    pub limit: u32,
}

impl Store {
    /// Writes a batch in one transaction.
    pub async fn insert_events(&self, events: Vec<Event>) -> Result<(), StoreError> {
        self.run_own(move |connection| {
            let transaction = connection.transaction()?;
            let mut bytes: i64 = 0;
            {
                let mut insert = transaction.prepare_cached(
                    "INSERT INTO event (created_at, action, allowed, user, application, body)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?;
                for event in &events {
                    let body =
                        serde_json::to_string(event).map_err(|e| StoreError::Malformed(e.to_string()))?;
                    bytes = bytes.saturating_add(i64::try_from(body.len()).unwrap_or(i64::MAX));
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
            transaction.execute("UPDATE event_size SET bytes = bytes + ?1", [bytes])?;
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
                       AND (?7 IS NULL OR json_extract(body, '$.ray_id') = ?7)
                     ORDER BY id DESC LIMIT ?6",
                )?
                .query_map(
                    params![
                        filter.after,
                        filter.since.map_or(i64::MIN, |since| since.0),
                        filter.user,
                        filter.application,
                        filter.denied,
                        filter.limit.max(1),
                        filter.ray
                    ],
                    |row| Ok((row.get(0)?, row.get(1)?)),
                )?
                .collect::<Result<_, _>>()?;
            rows.reverse();
            Ok(rows)
        })
        .await
    }

    /// Forgets events older than `before`, and the oldest while all of them together hold more than `max_bytes`: so
    /// many of each, at most [`TRIM_STEP`], so that the store is never held for long. Says how many went.
    pub async fn trim_events(&self, before: UnixTime, max_bytes: u64) -> Result<usize, StoreError> {
        self.run_own(move |connection| {
            let transaction = connection.transaction()?;
            let step = i64::try_from(TRIM_STEP).unwrap_or(i64::MAX);
            let expired: Vec<i64> = transaction
                .prepare_cached(
                    "DELETE FROM event WHERE id IN (
                         SELECT id FROM event WHERE created_at < ?1 ORDER BY created_at LIMIT ?2)
                     RETURNING length(CAST(body AS BLOB))",
                )?
                .query_map(params![before.0, step], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            let mut freed: i64 = expired.iter().sum();
            let mut gone = expired.len();

            let bytes: i64 = transaction.query_row("SELECT bytes FROM event_size", [], |row| row.get(0))?;
            let max = i64::try_from(max_bytes).unwrap_or(i64::MAX);
            let mut through = None;
            if bytes - freed > max {
                let mut oldest = transaction.prepare_cached(
                    "SELECT id, length(CAST(body AS BLOB)) FROM event ORDER BY id LIMIT ?1",
                )?;
                let mut rows = oldest.query([step])?;
                while bytes - freed > max
                    && let Some(row) = rows.next()?
                {
                    through = Some(row.get::<_, i64>(0)?);
                    freed += row.get::<_, i64>(1)?;
                }
            }
            if let Some(through) = through {
                gone += transaction.execute("DELETE FROM event WHERE id <= ?1", [through])?;
            }
            transaction.execute("UPDATE event_size SET bytes = bytes - ?1", [freed])?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Action;

    #[tokio::test]
    async fn trimming_goes_by_steps_and_the_size_stays_exact() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let sizes = async || {
            let both = "SELECT bytes, (SELECT coalesce(sum(length(CAST(body AS BLOB))), 0) FROM event) FROM event_size";
            let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
            store.run(move |connection| Ok(connection.query_row(both, [], read)?)).await.unwrap()
        };
        let event = || Event::new(Action::Admin, true).detail("gr\u{fc}n");
        store.insert_events((0..3 * TRIM_STEP).map(|_| event()).collect()).await.unwrap();
        let (kept, counted) = sizes().await;
        assert_eq!(kept, counted);
        let third = u64::try_from(counted / 3).unwrap();
        assert_eq!(store.trim_events(UnixTime(0), 0).await.unwrap(), TRIM_STEP, "one step at a time");
        assert_eq!(store.trim_events(UnixTime(0), third).await.unwrap(), TRIM_STEP);
        assert_eq!(store.trim_events(UnixTime(0), third).await.unwrap(), 0);
        let (kept, counted) = sizes().await;
        assert!(kept == counted && u64::try_from(kept).unwrap() == third, "{kept} {counted} {third}");
        assert_eq!(store.trim_events(UnixTime(i64::MAX), u64::MAX).await.unwrap(), TRIM_STEP);
        assert_eq!(sizes().await, (0, 0));
    }
}

//! Events, as the log keeps them.

use rusqlite::types::Value;
use rusqlite::{Connection, Row, params, params_from_iter};
use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::flow::UnixTime;

use super::{ReadLane, Store, StoreError};

/// Events that go in one transaction.
pub(crate) const TRIM_STEP: usize = 2048;

/// Numbers that one look spans where what is asked for has no index: some milliseconds.
const LOOK: i64 = 8192;

/// Events that are read in one go.
const PAGE: usize = 256;

/// Which events to read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventFilter {
    /// Only events with a greater number; all where there is none so great. Numbers begin anew once all events are gone.
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

/// Events that match, as they are read: oldest first.
pub struct EventPages {
    store: Store,
    filter: EventFilter,
    /// Up to here they have been read.
    after: i64,
    through: i64,
}

impl EventPages {
    /// The next of them, as their numbers and JSON texts; none for now where nothing matches for a stretch, and nothing
    /// once they have all been read. What has been forgotten meanwhile is left out.
    pub async fn next(&mut self) -> Result<Option<Vec<(i64, String)>>, StoreError> {
        if self.after >= self.through {
            return Ok(None);
        }
        let (filter, after) = (self.filter.clone(), self.after);
        let through = self.through.min(after.saturating_add(LOOK));
        let look = move |connection: &Connection| page(connection, &filter, after, through);
        let page = self.store.read(ReadLane::Asked, look).await?;
        self.after = page.last().filter(|_| page.len() >= PAGE).map_or(through, |(last, _)| *last);
        Ok(Some(page))
    }

    /// All of them.
    pub async fn all(mut self) -> Result<Vec<(i64, String)>, StoreError> {
        let mut all = Vec::new();
        while let Some(mut page) = self.next().await? {
            all.append(&mut page);
        }
        Ok(all)
    }

    /// The number after which to go on for what is written later.
    pub const fn through(&self) -> i64 {
        self.through
    }
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

    /// Those events that match, of all that are written by now, to be read page by page.
    pub async fn events(&self, filter: EventFilter) -> Result<EventPages, StoreError> {
        let of = filter.clone();
        let (oldest, through) = self.read(ReadLane::Asked, move |connection| span(connection, &of)).await?;
        // From the newest back to the one that the limit leaves to be the first.
        let (mut left, mut after) = (i64::from(filter.limit.max(1)), through);
        while left > 0 && after > oldest {
            let (below, of, most) = (oldest.max(after.saturating_sub(LOOK)), filter.clone(), left);
            let look = move |connection: &Connection| count(connection, &of, below, after, most);
            let (found, first) = self.read(ReadLane::Asked, look).await?;
            left -= found;
            after = first.filter(|_| left == 0).map_or(below, |first| first - 1);
        }
        Ok(EventPages { store: self.clone(), filter, after, through })
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

/// After which number, and up to which, those can be that match.
fn span(connection: &Connection, filter: &EventFilter) -> Result<(i64, i64), StoreError> {
    let ends = "SELECT (SELECT min(id) FROM event), (SELECT max(id) FROM event)";
    let read = |row: &Row<'_>| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?));
    let (Some(first), Some(last)) = connection.prepare_cached(ends)?.query_row([], read)? else {
        return Ok((0, 0));
    };
    let after = if filter.after > last { 0 } else { filter.after };
    let first = match filter.since {
        None => Some(first),
        // By time alone: the clock may have been set back since.
        Some(since) => connection
            .prepare_cached("SELECT min(id) FROM event INDEXED BY event_time WHERE created_at >= ?1")?
            .query_row([since.0], |row| row.get(0))?,
    };
    Ok((first.map_or(last, |first| after.max(first - 1)), last))
}

/// How many of them match, the newest `most` at most, and the number of the first of these.
fn count(
    connection: &Connection,
    filter: &EventFilter,
    after: i64,
    through: i64,
    most: i64,
) -> Result<(i64, Option<i64>), StoreError> {
    let (conditions, mut values) = filter.conditions(after, through);
    values.push(most.into());
    let sql = format!(
        "SELECT count(*), min(id) FROM (SELECT id FROM event WHERE {conditions} ORDER BY id DESC LIMIT ?)"
    );
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    Ok(connection.prepare_cached(&sql)?.query_row(params_from_iter(values), read)?)
}

fn page(
    connection: &Connection,
    filter: &EventFilter,
    after: i64,
    through: i64,
) -> Result<Vec<(i64, String)>, StoreError> {
    let (conditions, values) = filter.conditions(after, through);
    let sql = format!("SELECT id, body FROM event WHERE {conditions} ORDER BY id LIMIT {PAGE}");
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(params_from_iter(values), |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

impl EventFilter {
    /// What is asked for and nothing else, so that an index that fits is used, and the values in this order.
    fn conditions(&self, after: i64, through: i64) -> (String, Vec<Value>) {
        let mut conditions = "id > ? AND id <= ?".to_owned();
        let mut values = vec![Value::from(after), Value::from(through)];
        let mut add = |condition: &str, value: Value| {
            conditions += " AND ";
            conditions += condition;
            values.push(value);
        };
        if let Some(since) = self.since {
            add("created_at >= ?", since.0.into());
        }
        if let Some(user) = &self.user {
            add("user = ?", user.clone().into());
        }
        if let Some(application) = &self.application {
            add("application = ?", application.clone().into());
        }
        if let Some(ray) = &self.ray {
            // Few texts have it at all, and only those need be read as JSON.
            add("instr(body, ?)", ray.clone().into());
            add("json_extract(body, '$.ray_id') = ?", ray.clone().into());
        }
        if self.denied {
            conditions += " AND allowed = 0";
        }
        (conditions, values)
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
    use crate::flow::RayId;

    #[tokio::test]
    async fn trimming_goes_by_steps_and_the_size_stays_exact() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let sizes = async || {
            let both = "SELECT bytes, (SELECT coalesce(sum(length(CAST(body AS BLOB))), 0) FROM event) FROM event_size";
            let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
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

    /// More of them than one look spans, some of which are gone again.
    async fn many(store: &Store) -> Vec<(i64, Event)> {
        let event = |number: i64| {
            let event = Event::new(Action::Request, number % 5 != 0)
                .ray(RayId::from_bytes((number.unsigned_abs() / 2).to_be_bytes()));
            let event = if number % 3 == 0 { event.claimed_user("ann") } else { event };
            if number % 7 == 0 { event.claimed_application("wiki") } else { event }
        };
        let all: Vec<_> = (1..=3 * LOOK).map(|number| (number, event(number))).collect();
        store.insert_events(all.iter().map(|(_, event)| event.clone()).collect()).await.unwrap();
        let gone = "DELETE FROM event WHERE id <= 10; UPDATE event SET created_at = id";
        store.run(move |connection| Ok(connection.execute_batch(gone)?)).await.unwrap();
        all.into_iter().skip(10).collect()
    }

    #[tokio::test]
    async fn what_matches_is_read_page_by_page_whatever_is_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert!(store.events(EventFilter::default()).await.unwrap().next().await.unwrap().is_none());
        let all = many(&store).await;
        let ray = RayId::from_bytes(7000_u64.to_be_bytes()).to_string();
        let everything = EventFilter { limit: u32::MAX, ..EventFilter::default() };
        for filter in [
            everything.clone(),
            EventFilter { limit: 10_000, ..everything.clone() },
            EventFilter { limit: 0, ..everything.clone() },
            EventFilter { after: 9000, denied: true, ..everything.clone() },
            EventFilter { user: Some("ann".into()), since: Some(UnixTime(20_000)), ..everything.clone() },
            EventFilter { since: Some(UnixTime(3 * LOOK + 1)), ..everything.clone() },
            EventFilter { application: Some("wiki".into()), limit: 2000, ..everything.clone() },
            EventFilter {
                user: Some("ann".into()),
                application: Some("wiki".into()),
                denied: true,
                ..everything.clone()
            },
            EventFilter { ray: Some(ray.clone()), ..everything.clone() },
            EventFilter { ray: Some(ray), limit: 1, ..everything.clone() },
            EventFilter { ray: Some("\"".into()), ..everything.clone() },
        ] {
            let is = |wanted: &Option<String>, is: Option<&str>| wanted.is_none() || wanted.as_deref() == is;
            let mut expected: Vec<_> = all
                .iter()
                .filter(|(number, event)| {
                    let body = serde_json::to_value(event).unwrap();
                    *number > filter.after
                        && filter.since.is_none_or(|since| *number >= since.0)
                        && is(&filter.user, event.user())
                        && is(&filter.application, event.application_name())
                        && !(filter.denied && event.is_allowed())
                        && is(&filter.ray, body["ray_id"].as_str())
                })
                .map(|(number, event)| (*number, serde_json::to_string(event).unwrap()))
                .collect();
            expected.drain(..expected.len().saturating_sub(filter.limit.max(1) as usize));
            let mut pages = store.events(filter.clone()).await.unwrap();
            assert_eq!(pages.through(), 3 * LOOK);
            let mut read = Vec::new();
            while let Some(page) = pages.next().await.unwrap() {
                assert!(page.len() <= PAGE);
                read.extend(page);
            }
            assert!(read == expected, "{filter:?}: {} and not {}", read.len(), expected.len());
        }
    }

    #[tokio::test]
    async fn refusals_are_found_by_their_index() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let plan = |connection: &Connection| {
            let filter = EventFilter { denied: true, user: Some("ann".into()), ..EventFilter::default() };
            let (conditions, values) = filter.conditions(0, 9);
            let sql = format!("EXPLAIN QUERY PLAN SELECT id, body FROM event WHERE {conditions} ORDER BY id");
            let mut statement = connection.prepare(&sql)?;
            let plan = statement.query_map(params_from_iter(values), |row| row.get::<_, String>(3))?;
            Ok(plan.collect::<Result<Vec<_>, _>>()?)
        };
        let plan = store.read(ReadLane::Asked, plan).await.unwrap();
        assert!(plan.len() == 1 && plan[0].contains("INDEX event_denied "), "{plan:?}");
    }

    #[tokio::test]
    async fn who_follows_the_log_misses_nothing_though_its_numbers_begin_anew() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let mut filter = EventFilter { limit: 100, ..EventFilter::default() };
        for (written, forgotten) in [(3, false), (0, false), (2, true), (1, false), (0, true), (1, false)] {
            if forgotten {
                store.trim_events(UnixTime(i64::MAX), u64::MAX).await.unwrap();
            }
            let events = (0..written).map(|_| Event::new(Action::Admin, true)).collect();
            store.insert_events(events).await.unwrap();
            let pages = store.events(filter.clone()).await.unwrap();
            filter.after = pages.through();
            assert_eq!(pages.all().await.unwrap().len(), written);
        }
    }
}

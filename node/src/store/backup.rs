//! A copy of the whole store, made while it is in use.
//!
//! 1. It has a connection of its own, which cannot write, and a thread of its own: no write waits for it, and no other read.
//! 2. It is of one moment, that at which it began. Until it is done, what is written since stays in the log, and is worked off
//!    by a write that comes after: so it is done within [`LONGEST`] and [`MOST_WRITTEN`], or not at all.
//! 3. A file that is not whole does not stay.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use tokio_util::sync::CancellationToken;

use crate::clock;

use super::{Store, StoreError, schema};

const LONGEST: Duration = Duration::from_secs(600);

/// Bytes that the log may have grown to meanwhile.
const MOST_WRITTEN: u64 = 128 << 20;

/// Pages (of 4096 bytes) between two looks at whether to go on.
const STEP: i32 = 512;

/// Before another try, where somebody else has locked the new file.
const PAUSE: Duration = Duration::from_millis(20);

impl Store {
    /// Writes a consistent copy of the whole store to `target`, which must not exist. Of several at a time, one is made
    /// after the other. Who gives up waiting ends it.
    pub async fn backup(&self, target: &Path) -> Result<(), StoreError> {
        let (path, target) = (self.inner.path.clone(), target.to_owned());
        let _turn = self.inner.backups.lock().await;
        let bounds = Bounds::new(&path);
        let _guard = bounds.given_up.clone().drop_guard();
        let copied = tokio::task::spawn_blocking(move || copy(&path, &target, || bounds.goes_on()));
        copied.await.map_err(|_| StoreError::Stopped)?
    }
}

/// For how long a copy goes on.
struct Bounds {
    given_up: CancellationToken,
    /// By the monotonic clock.
    until: Duration,
    log: PathBuf,
    most_written: u64,
}

impl Bounds {
    fn new(path: &Path) -> Self {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Self {
            given_up: CancellationToken::new(),
            until: clock::monotonic().saturating_add(LONGEST),
            log: log.into(),
            most_written: MOST_WRITTEN,
        }
    }

    fn goes_on(&self) -> Result<(), StoreError> {
        let written = fs::metadata(&self.log).map_or(0, |log| log.len());
        if self.given_up.is_cancelled() {
            Err(StoreError::Stopped)
        } else if clock::monotonic() >= self.until || written > self.most_written {
            Err(StoreError::Slow)
        } else {
            Ok(())
        }
    }
}

/// Copies the store at `path` for as long as it `goes_on`, which is asked before each step.
fn copy(path: &Path, target: &Path, goes_on: impl Fn() -> Result<(), StoreError>) -> Result<(), StoreError> {
    let file_error = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AlreadyExists => StoreError::Exists(target.display().to_string()),
        _ => StoreError::File { path: target.to_owned(), source },
    };
    let source = schema::open_to_read(path)?;
    fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(target).map_err(file_error)?;
    let copied = fill(&source, target, goes_on);
    if copied.is_err() {
        fs::remove_file(target).map_err(file_error)?;
    }
    copied
}

fn fill(
    source: &Connection,
    target: &Path,
    goes_on: impl Fn() -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    // One transaction over all steps: without it each change by another connection would begin the copy anew.
    let moment = source.unchecked_transaction()?;
    moment.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    let open_error = |source| StoreError::Open { path: target.to_owned(), source };
    let mut copy = Connection::open(target).map_err(open_error)?;
    let backup = Backup::new(&moment, &mut copy)?;
    loop {
        goes_on()?;
        match backup.step(STEP)? {
            StepResult::Done => return Ok(()),
            StepResult::More => {}
            _ => std::thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::mpsc;

    use super::*;
    use crate::event::{Action, Event};
    use crate::flow::UnixTime;
    use crate::store::{SessionFilter, TRIM_STEP};

    /// A store with some megabytes of events.
    async fn store(directory: &Path) -> Store {
        let store = Store::open(directory).unwrap();
        let events = || (0..TRIM_STEP).map(|_| Event::new(Action::Admin, true).detail("x".repeat(1000)));
        for _ in 0..3 {
            store.insert_events(events().collect()).await.unwrap();
        }
        store
    }

    async fn keys(store: &Store) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        for name in ["before", "meanwhile"] {
            keys.push(store.secret(name, || vec![9]).await.unwrap().to_vec());
        }
        keys
    }

    #[tokio::test]
    async fn a_backup_keeps_no_revocation_waiting_and_is_of_the_moment_at_which_it_began() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory.path().join("a")).await;
        store.secret("before", || vec![1]).await.unwrap();
        let (path, target) = (store.inner.path.clone(), directory.path().join("copy"));
        let (begun, begins) = mpsc::channel();
        let (go, goes) = mpsc::channel::<()>();
        let steps = Cell::new(0);
        let copying = std::thread::spawn({
            let target = target.clone();
            move || {
                copy(&path, &target, || {
                    steps.set(steps.get() + 1);
                    if steps.get() == 2 {
                        begun.send(()).unwrap();
                        goes.recv().unwrap();
                    }
                    Ok(())
                })
            }
        });
        begins.recv().unwrap();
        let within = Duration::from_secs(20);
        let revoked = tokio::time::timeout(within, store.revoke_sessions(&SessionFilter::All, UnixTime(1)));
        revoked.await.expect("it waits for no backup").unwrap();
        store.secret("meanwhile", || vec![2]).await.unwrap();
        go.send(()).unwrap();
        copying.join().unwrap().unwrap();
        assert_eq!(keys(&store).await, [[1], [2]]);
        Store::restore(&directory.path().join("b"), &target).unwrap();
        let restored = Store::open(&directory.path().join("b")).unwrap();
        assert_eq!(keys(&restored).await, [[1], [9]]);
        assert_eq!(
            restored.events(Default::default()).await.unwrap().through(),
            3 * i64::try_from(TRIM_STEP).unwrap()
        );
    }

    #[tokio::test]
    async fn a_backup_that_is_given_up_or_takes_too_long_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory.path().join("a")).await;
        let target = directory.path().join("copy");
        let steps = Cell::new(0);
        let mut bounds = Bounds::new(&store.inner.path);
        bounds.most_written = 1000;
        assert!(matches!(bounds.goes_on(), Err(StoreError::Slow)), "the log is longer");
        bounds.most_written = u64::MAX;
        let slow = copy(&store.inner.path, &target, || {
            steps.set(steps.get() + 1);
            if steps.get() > 2 {
                Bounds { until: clock::monotonic(), ..Bounds::new(&target) }.goes_on()
            } else {
                bounds.goes_on()
            }
        });
        assert!(matches!(slow, Err(StoreError::Slow)) && steps.get() == 3);
        bounds.given_up.cancel();
        assert!(matches!(bounds.goes_on(), Err(StoreError::Stopped)));
        let files = || fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(files(), 1, "neither the copy nor its journal");
        let mut asked = Box::pin(store.backup(&target));
        assert!(futures_util::poll!(&mut asked).is_pending());
        drop(asked);
        // Its turn comes when the other has ended: then it is either whole or not there.
        store.backup(&directory.path().join("next")).await.unwrap();
        assert!(store.inner.backups.try_lock().is_ok());
        fs::write(directory.path().join("taken"), "mine").unwrap();
        let taken = store.backup(&directory.path().join("taken")).await;
        assert!(matches!(taken, Err(StoreError::Exists(_))));
        assert_eq!(fs::read(directory.path().join("taken")).unwrap(), b"mine");
    }
}

//! All durable state, in one SQLite file: users, sessions, clients, one-time codes, keys, connectors and events.
//!
//! Nothing outside this folder knows how state is kept. Methods are grouped by what they keep, one file each; all of
//! them are short transactions on the store's own thread. A method that returns has written durably (WAL, full sync).
//! What may take long and only reads has connections of its own, for which no write waits: `reader`, `backup`.

mod backup;
mod clients;
mod codes;
mod connectors;
mod devices;
mod events;
mod executor;
mod gate;
mod keys;
mod provider_logins;
mod reader;
mod saas;
mod saml_keys;
mod schema;
mod service_tokens;
mod sessions;
mod users;

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use rusqlite::Connection;
use rustix::fs::{Mode, OFlags};
use tokio::sync::oneshot;

pub use clients::{Client, NewClient, NotLoggedIn, Rotation};
pub use connectors::Connector;
pub use devices::Device;
pub(crate) use events::TRIM_STEP;
pub use events::{EventFilter, EventPages};
pub use keys::SigningKey;
pub(crate) use saas::{EndedLogin, Redemption, SaasGrant, Turn};
pub use saml_keys::SamlKey;
pub use service_tokens::ServiceToken;
pub use sessions::SessionFilter;
pub use users::User;

use executor::{Executor, Lane};
use reader::{ReadLane, Reader};

/// Why state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error("{path} was written by a newer version (schema {found}, this one knows {known})")]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("the store failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("a stored value is malformed: {0}")]
    Malformed(String),
    #[error("{0} exists already")]
    Exists(String),
    #[error("the node is shutting down")]
    Stopped,
    #[error("more is asked of the store than it can do")]
    Busy,
    #[error("the backup takes too long, and is given up")]
    Slow,
    #[error("the store's thread cannot be started: {0}")]
    Thread(io::Error),
}

/// The store of one node. Clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    /// Dropped before the one that writes: the last one to go tidies the log up, which this one cannot.
    reader: Reader,
    executor: Executor,
    path: PathBuf,
    /// Held by the one backup that is made.
    backups: tokio::sync::Mutex<()>,
}

/// Name of the file in the state directory.
const FILE: &str = "store.sqlite";

impl Store {
    /// Opens or creates the store in `directory` (mode 0700, file 0600) and migrates its schema in one transaction.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let (connection, path) = connect(directory)?;
        let reader = Reader::start(schema::open_to_read(&path)?).map_err(StoreError::Thread)?;
        let executor = Executor::start(connection).map_err(StoreError::Thread)?;
        let backups = tokio::sync::Mutex::default();
        Ok(Self { inner: Arc::new(Inner { reader, executor, path, backups }) })
    }

    /// Replaces the store in `directory` by the backup `source`, which is checked first. No node may be running.
    pub fn restore(directory: &Path, source: &Path) -> Result<(), StoreError> {
        schema::check(source)?;
        let (mut connection, path) = connect(directory)?;
        connection.restore("main", source, None::<fn(rusqlite::backup::Progress)>)?;
        schema::migrate(&mut connection, &path)
    }

    /// Runs `work` on the connection.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run_in(Lane::Ordinary, work).await
    }

    /// Runs what takes away what somebody has, ahead of all else.
    async fn run_urgently<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run_in(Lane::Urgent, work).await
    }

    /// Runs what the node does of its own accord, one such thing at a time.
    async fn run_own<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run_in(Lane::Own, work).await
    }

    async fn run_in<T: Send + 'static>(
        &self,
        lane: Lane,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (done, wait) = oneshot::channel();
        // Who gives up waiting does not stop it.
        let work = move |connection: &mut Connection| drop(done.send(work(connection)));
        self.inner.executor.submit(lane, Box::new(work))?;
        wait.await.map_err(|_| StoreError::Stopped)?
    }

    /// Runs what only reads and may take some milliseconds, beside all that writes.
    async fn read<T: Send + 'static>(
        &self,
        lane: ReadLane,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (done, wait) = oneshot::channel();
        let read = move |connection: &mut Connection| drop(done.send(read(connection)));
        self.inner.reader.submit(lane, Box::new(read))?;
        wait.await.map_err(|_| StoreError::Stopped)?
    }
}

/// Opens or creates the file in `directory`, and says where it is.
fn connect(directory: &Path) -> Result<(Connection, PathBuf), StoreError> {
    let file_error = |source| StoreError::File { path: directory.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(file_error)?;
    // The directory's own place may be behind links, which SQLite would take for links to the file.
    let path = fs::canonicalize(directory).map_err(file_error)?.join(FILE);
    make_private(&path).map_err(|source| StoreError::File { path: path.clone(), source })?;
    Ok((schema::open(&path)?, path))
}

/// Makes the file, or takes from others what they may do with it. An administrator's commands run as root in a directory
/// that the unprivileged daemon may write to: a link there leads to no other file.
fn make_private(path: &Path) -> io::Result<()> {
    let made = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path).map(|_| ());
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other,
    }
    // Opened for its mode alone: to close it otherwise would end this process's locks on it (fcntl(2), F_SETLK).
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a link or no file"));
    }
    if found.permissions().mode() & 0o777 == 0o600 {
        return Ok(());
    }
    fs::set_permissions(format!("/proc/self/fd/{}", file.as_raw_fd()), fs::Permissions::from_mode(0o600))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Poll;

    use futures_util::{FutureExt as _, poll};

    use crate::event::{Action, Event};
    use crate::flow::UnixTime;

    #[test]
    fn files_are_private_and_a_newer_schema_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        drop(Store::open(&state).unwrap());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&state), mode(&state.join(FILE))), (0o700, 0o600));
        Connection::open(state.join(FILE)).unwrap().pragma_update(None, "user_version", 999).unwrap();
        assert!(matches!(Store::open(&state), Err(StoreError::Newer { found: 999, .. })));
    }

    #[test]
    fn a_link_in_the_directory_leads_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let state = directory.path().join("state");
        drop(Store::open(&state).unwrap());
        fs::set_permissions(state.join(FILE), fs::Permissions::from_mode(0o644)).unwrap();
        drop(Store::open(&state).unwrap());
        assert_eq!(mode(&state.join(FILE)), 0o600);

        let other = directory.path().join("other");
        fs::rename(state.join(FILE), &other).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::symlink(&other, state.join(FILE)).unwrap();
        assert!(matches!(Store::open(&state), Err(StoreError::File { .. })));
        assert!(Store::gate_was_confirmed(&state).is_err());
        assert_eq!(mode(&other), 0o644);
        assert!(schema::open(&state.join(FILE)).is_err(), "nor does SQLite follow one that comes later");

        // Where the state is kept is the administrator's to say.
        let link = directory.path().join("link");
        fs::remove_file(state.join(FILE)).unwrap();
        std::os::unix::fs::symlink(&state, &link).unwrap();
        assert!(Store::open(&link).is_ok());
    }

    #[tokio::test]
    async fn a_backup_restores_what_was() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("a")).unwrap();
        let key = store.secret("k", || vec![7; 4]).await.unwrap();
        let copy = directory.path().join("copy");
        store.backup(&copy).await.unwrap();
        assert!(matches!(store.backup(&copy).await, Err(StoreError::Exists(_))));
        Store::restore(&directory.path().join("b"), &copy).unwrap();
        let restored = Store::open(&directory.path().join("b")).unwrap();
        assert_eq!(restored.secret("k", || vec![9; 4]).await.unwrap(), key);
        fs::write(directory.path().join("noise"), b"not a database, but long enough to look at").unwrap();
        assert!(Store::restore(&directory.path().join("b"), &directory.path().join("noise")).is_err());
    }

    /// A read that goes on until the sender is dropped, in one transaction.
    async fn long_read(store: &Store) -> std::sync::mpsc::Sender<()> {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let (begun, begins) = oneshot::channel();
        let read = move |connection: &Connection| {
            let moment = connection.unchecked_transaction()?;
            moment.query_row("SELECT count(*) FROM session", [], |_| Ok(()))?;
            begun.send(()).unwrap();
            let _ = held.recv();
            Ok(())
        };
        let reading = store.clone();
        tokio::spawn(async move { reading.read(ReadLane::Asked, read).await });
        begins.await.unwrap();
        hold
    }

    #[tokio::test]
    async fn no_write_waits_for_a_long_read_and_no_read_for_a_write() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let within = std::time::Duration::from_secs(20);
        let reading = long_read(&store).await;
        let writes = async {
            store.revoke_sessions(&SessionFilter::All, UnixTime(1)).await.unwrap();
            store.put_code([1; 32], &1, UnixTime(9)).await.unwrap();
            store.secret("k", || vec![7; 4]).await.unwrap();
        };
        tokio::time::timeout(within, writes).await.expect("no write waits");
        drop(reading);
        let (busy, hold) = busy(&store);
        let mut busy = Box::pin(busy);
        assert!(poll!(&mut busy).is_pending());
        let reads = async {
            store.events(EventFilter::default()).await.unwrap().all().await.unwrap();
            store.live_clients(UnixTime(1)).await.unwrap();
            store.sessions_matching(&SessionFilter::All, UnixTime(1)).await.unwrap();
            store.backup(&directory.path().join("copy")).await.unwrap();
        };
        tokio::time::timeout(within, reads).await.expect("no read waits");
        drop(hold);
        busy.await.unwrap();
    }

    #[tokio::test]
    async fn reads_that_wait_are_bounded_and_what_the_node_looks_for_goes_first() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let reading = long_read(&store).await;
        let (done, order) = std::sync::mpsc::channel();
        let mut waiting = Vec::new();
        for (lane, count) in [(ReadLane::Asked, 64), (ReadLane::Own, 1)] {
            for _ in 0..count {
                let (store, done) = (store.clone(), done.clone());
                let mut read = Box::pin(async move {
                    store.read(lane, move |_| done.send(lane).map_err(|_| StoreError::Stopped)).await
                });
                assert!(poll!(&mut read).is_pending());
                waiting.push(read);
            }
        }
        let more = store.sessions_matching(&SessionFilter::All, UnixTime(1)).now_or_never();
        assert!(matches!(more, Some(Err(StoreError::Busy))));
        drop(reading);
        for read in waiting {
            read.await.unwrap();
        }
        assert_eq!(order.recv(), Ok(ReadLane::Own));
    }

    #[tokio::test]
    async fn what_reads_cannot_write() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let write = |connection: &Connection| Ok(connection.execute("DELETE FROM session", [])?);
        let error = store.read(ReadLane::Asked, write).await.unwrap_err();
        assert!(error.to_string().contains("readonly"), "{error}");
    }

    #[tokio::test]
    async fn a_log_that_a_long_read_has_made_long_gets_short_again() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let length = || fs::metadata(directory.path().join(format!("{FILE}-wal"))).unwrap().len();
        let write = async || {
            let events = (0..2000).map(|_| Event::new(Action::Admin, true).detail("x".repeat(1000)));
            store.insert_events(events.collect()).await.unwrap();
        };
        let reading = long_read(&store).await;
        while length() < 24 << 20 {
            write().await;
        }
        drop(reading);
        write().await;
        write().await;
        assert!(length() <= 16 << 20, "{}", length());
    }

    /// A work that goes on until the sender is dropped.
    fn busy(store: &Store) -> (impl Future<Output = Result<(), StoreError>>, std::sync::mpsc::Sender<()>) {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let store = store.clone();
        let work = async move {
            let wait = move |_: &mut Connection| {
                let _ = held.recv();
                Ok(())
            };
            store.run(wait).await
        };
        (work, hold)
    }

    #[tokio::test]
    async fn a_revocation_waits_for_none_of_what_others_ask() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (busy, hold) = busy(&store);
        let mut busy = Box::pin(busy);
        assert!(poll!(&mut busy).is_pending());
        let mut asked = Vec::new();
        for number in 0..100 {
            let store = store.clone();
            let mut asks = Box::pin(async move { store.put_code([number; 32], &number, UnixTime(9)).await });
            assert!(poll!(&mut asks).is_pending());
            asked.push(asks);
        }
        let count = |connection: &mut Connection| {
            Ok(connection.query_row("SELECT count(*) FROM code", [], |row| row.get::<_, i64>(0))?)
        };
        let revoked = store.revoke_sessions(&SessionFilter::All, UnixTime(1));
        let (revoked, written, ()) =
            tokio::join!(revoked, store.run_in(Lane::Urgent, count), async { drop(hold) });
        assert_eq!((revoked.unwrap().len(), written.unwrap()), (0, 0));
        busy.await.unwrap();
        for asks in asked {
            asks.await.unwrap();
        }
        assert_eq!(store.run(count).await.unwrap(), 100);
    }

    #[tokio::test]
    async fn more_than_can_be_done_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (busy, hold) = busy(&store);
        let mut busy = Box::pin(busy);
        assert!(poll!(&mut busy).is_pending());
        let (mut refused, mut waiting) = (0, Vec::new());
        for _ in 0..3000 {
            let mut read = Box::pin(store.users());
            match poll!(&mut read) {
                Poll::Pending => waiting.push(read),
                Poll::Ready(Err(StoreError::Busy)) => refused += 1,
                Poll::Ready(other) => panic!("{other:?}"),
            }
        }
        // The thread may not have taken the first one yet.
        assert!((952..=953).contains(&refused), "{refused}");
        assert!(store.revoke_sessions(&SessionFilter::All, UnixTime(1)).now_or_never().is_none());
        drop(hold);
        busy.await.unwrap();
        for read in waiting {
            read.await.unwrap();
        }
        assert!(store.users().await.is_ok());
    }
}

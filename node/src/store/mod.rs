//! All durable state, in one SQLite file: users, sessions, clients, one-time codes, keys, connectors and events.
//!
//! Nothing outside this folder knows how state is kept. Methods are grouped by what they keep, one file each; all of
//! them are short transactions on a blocking thread. A method that returns has written durably (WAL, full sync).

mod clients;
mod codes;
mod connectors;
mod devices;
mod events;
mod gate;
mod keys;
mod provider_logins;
mod saas;
mod saml_keys;
mod schema;
mod service_tokens;
mod sessions;
mod users;

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

pub use clients::{Client, NewClient, NotLoggedIn, Rotation};
pub use connectors::Connector;
pub use devices::Device;
pub use events::EventFilter;
pub(crate) use events::TRIM_STEP;
pub use keys::SigningKey;
pub(crate) use saas::{EndedLogin, Redemption, SaasGrant, Turn};
pub use saml_keys::SamlKey;
pub use service_tokens::ServiceToken;
pub use sessions::SessionFilter;
pub use users::User;

/// Why state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
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
}

/// The store of one node. Clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    connection: Mutex<Connection>,
}

/// Name of the file in the state directory.
const FILE: &str = "store.sqlite";

impl Store {
    /// Opens or creates the store in `directory` (mode 0700, file 0600) and migrates its schema in one transaction.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let file_error = |source| StoreError::File { path: directory.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(file_error)?;
        let path = directory.join(FILE);
        if !path.exists() {
            let mut options = fs::OpenOptions::new();
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            options
                .create_new(true)
                .write(true)
                .open(&path)
                .map_err(|source| StoreError::File { path: path.clone(), source })?;
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .map_err(|source| StoreError::File { path: path.clone(), source })?;
        let connection = schema::open(&path)?;
        Ok(Self { inner: Arc::new(Inner { path, connection: Mutex::new(connection) }) })
    }

    /// Writes a consistent copy of the whole store to `target`, which must not exist.
    pub async fn backup(&self, target: &Path) -> Result<(), StoreError> {
        let target = target.to_owned();
        self.run(move |connection| {
            if target.exists() {
                return Err(StoreError::Exists(target.display().to_string()));
            }
            let file_error = |source| StoreError::File { path: target.clone(), source };
            let mut options = fs::OpenOptions::new();
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            options.create_new(true).write(true).open(&target).map_err(file_error)?;
            connection.backup("main", &target, None::<fn(rusqlite::backup::Progress)>)?;
            Ok(())
        })
        .await
    }

    /// Replaces the store in `directory` by the backup `source`, which is checked first. No node may be running.
    pub fn restore(directory: &Path, source: &Path) -> Result<(), StoreError> {
        schema::check(source)?;
        let store = Self::open(directory)?;
        let mut connection = store.lock();
        connection.restore("main", source, None::<fn(rusqlite::backup::Progress)>)?;
        schema::migrate(&mut connection, &store.inner.path)
    }

    /// Runs `work` on the connection, on a thread that may block.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || work(&mut store.lock())).await.map_err(|_| StoreError::Stopped)?
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic under the lock rolls its transaction back, so the connection stays good.
        self.inner.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}

//! What a connector keeps: its key and whom it belongs to, in one file that only its user can read.
//!
//! The file is replaced whole: written beside, flushed, renamed. An enrolment that is under way has a file of its own,
//! so that one that fails leaves the present credentials as they are.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::super::enrolment::EnrolmentToken;
use super::super::identity::{KeyHash, TunnelKey, TunnelKeyError};
use super::super::wire::{Authority, ConnectorName, DeviceSecret};

const ENROLLED: &str = "connector.json";
const PENDING: &str = "enrolment.json";

/// The layout of the file.
const VERSION: u32 = 1;

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path} can be read by others: its mode must be 0600")]
    Public { path: PathBuf },
    #[error("{path} is not a connector's state of this version")]
    Malformed { path: PathBuf },
    #[error(transparent)]
    Key(#[from] TunnelKeyError),
}

/// Who the connector is, and the nodes it belongs to.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) connector: ConnectorName,
    pub(super) nodes: Vec<Authority>,
    /// Where the node serves HTTPS, if it was told.
    pub(super) web: Option<Authority>,
    pub(super) node_key: KeyHash,
    /// What it knocks with; absent until the node has told.
    pub(super) device: Option<DeviceSecret>,
    key: Zeroizing<Vec<u8>>,
    /// Of the token that it enrolled with, which may be given again at each start.
    token_hash: [u8; 32],
}

impl Credentials {
    pub(super) fn key(&self) -> Result<TunnelKey, TunnelKeyError> {
        TunnelKey::from_pkcs8(self.key.clone())
    }

    pub(super) fn with_device(&self, device: DeviceSecret) -> Self {
        Self { device: Some(device), ..self.clone() }
    }

    pub(super) fn is_from(&self, token: &EnrolmentToken) -> bool {
        self.token_hash == token.secret.hash()
    }
}

/// The state directory.
pub(super) struct State {
    directory: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    connector: ConnectorName,
    nodes: Vec<Authority>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    web: Option<Authority>,
    node_key: String,
    key: String,
    token_hash: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<String>,
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.key.zeroize();
        self.device.zeroize();
    }
}

impl State {
    /// Makes the directory, 0700, if it is absent.
    pub(super) fn open(directory: PathBuf) -> Result<Self, StateError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|source| StateError::File { path: directory.clone(), source })?;
        Ok(Self { directory })
    }

    /// The credentials of a connector that is enrolled.
    pub(super) fn load(&self) -> Result<Option<Credentials>, StateError> {
        read(&self.directory.join(ENROLLED))
    }

    /// Credentials with a key of their own for redeeming `token`, written before they are used. The same token gets
    /// the same key again: it may have been redeemed when the answer was lost.
    pub(super) fn prepare(&self, token: &EnrolmentToken) -> Result<Credentials, StateError> {
        if let Some(pending) = read(&self.directory.join(PENDING))?.filter(|pending| pending.is_from(token)) {
            return Ok(pending);
        }
        let credentials = Credentials {
            connector: token.connector.clone(),
            nodes: token.nodes.clone(),
            web: Some(token.web.clone()),
            node_key: token.node_key,
            device: Some(token.device.clone()),
            key: TunnelKey::generate()?,
            token_hash: token.secret.hash(),
        };
        self.write(PENDING, &credentials)?;
        Ok(credentials)
    }

    /// Writes the credentials of a connector that is enrolled again, since they have changed.
    pub(super) fn save(&self, credentials: &Credentials) -> Result<(), StateError> {
        self.write(ENROLLED, credentials)
    }

    /// The token was redeemed: these are the connector's credentials from now on.
    pub(super) fn commit(&self, credentials: &Credentials) -> Result<(), StateError> {
        self.write(ENROLLED, credentials)?;
        self.abandon()
    }

    /// Forgets an enrolment that is under way.
    pub(super) fn abandon(&self) -> Result<(), StateError> {
        let path = self.directory.join(PENDING);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StateError::File { path, source }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn write(&self, name: &str, credentials: &Credentials) -> Result<(), StateError> {
        let path = self.directory.join(name);
        let stored = Stored {
            version: VERSION,
            connector: credentials.connector.clone(),
            nodes: credentials.nodes.clone(),
            web: credentials.web.clone(),
            node_key: STANDARD.encode(credentials.node_key.as_bytes()),
            key: STANDARD.encode(&*credentials.key),
            token_hash: STANDARD.encode(credentials.token_hash),
            device: credentials.device.as_ref().map(|device| STANDARD.encode(&*device.to_bytes())),
        };
        let malformed = |_| StateError::Malformed { path: path.clone() };
        let bytes = Zeroizing::new(serde_json::to_vec_pretty(&stored).map_err(malformed)?);
        replace(&self.directory, &path, &bytes).map_err(|source| StateError::File { path, source })
    }
}

fn read(path: &Path) -> Result<Option<Credentials>, StateError> {
    let file_error = |source| StateError::File { path: path.to_owned(), source };
    let malformed = || StateError::Malformed { path: path.to_owned() };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(file_error)?,
    };
    if file.metadata().map_err(file_error)?.permissions().mode() & 0o077 != 0 {
        return Err(StateError::Public { path: path.to_owned() });
    }
    let text = Zeroizing::new(io::read_to_string(file).map_err(file_error)?);
    let stored: Stored = serde_json::from_str(&text).map_err(|_| malformed())?;
    if stored.version != VERSION || stored.nodes.is_empty() {
        return Err(malformed());
    }
    let device = match &stored.device {
        Some(text) => Some(device(text).ok_or_else(malformed)?),
        None => None,
    };
    Ok(Some(Credentials {
        device,
        connector: stored.connector.clone(),
        nodes: stored.nodes.clone(),
        web: stored.web.clone(),
        node_key: KeyHash::from_bytes(hash(&stored.node_key).ok_or_else(malformed)?),
        key: Zeroizing::new(STANDARD.decode(&stored.key).map_err(|_| malformed())?),
        token_hash: hash(&stored.token_hash).ok_or_else(malformed)?,
    }))
}

fn device(text: &str) -> Option<DeviceSecret> {
    let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
    DeviceSecret::from_bytes(bytes.as_slice().try_into().ok()?)
}

fn hash(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// Writes a file that is never seen half written nor by others, and that survives a loss of power.
fn replace(directory: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::flow::UnixTime;
    use crate::store::Store;
    use crate::tunnel::enrolment;
    use crate::tunnel::wire::EnrolmentSecret;

    async fn token(directory: &Path, secret: u8) -> EnrolmentToken {
        let store = Store::open(&directory.join("node")).unwrap();
        let nodes = vec!["node.example.com:443".parse().unwrap()];
        let secret = EnrolmentSecret::from_bytes([secret; 32]);
        let lifetime = Duration::from_secs(60);
        let web = "access.example.com:443".parse().unwrap();
        enrolment::create(&store, "hq".parse().unwrap(), nodes, web, lifetime, secret, UnixTime(0))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_pending_key_survives_a_crash_and_a_failure_keeps_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (token(directory.path(), 1).await, token(directory.path(), 2).await);
        let open = || State::open(directory.path().join("connector")).unwrap();
        let pending = open().prepare(&first).unwrap();
        assert!(open().load().unwrap().is_none());
        let again = open().prepare(&first).unwrap();
        assert_eq!(again.key, pending.key);
        open().commit(&again).unwrap();
        let loaded = open().load().unwrap().unwrap();
        assert!(loaded.is_from(&first) && !loaded.is_from(&second));
        assert_eq!(loaded.key().unwrap().hash(), pending.key().unwrap().hash());
        assert_ne!(open().prepare(&second).unwrap().key, loaded.key);
        open().abandon().unwrap();
        open().abandon().unwrap();
        assert_eq!(open().load().unwrap().unwrap().key, loaded.key);
    }

    #[tokio::test]
    async fn files_are_private_and_a_public_or_malformed_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let token = token(directory.path(), 1).await;
        let place = directory.path().join("connector");
        let state = State::open(place.clone()).unwrap();
        state.commit(&state.prepare(&token).unwrap()).unwrap();
        let file = place.join(ENROLLED);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&place), mode(&file)), (0o700, 0o600));
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(state.load(), Err(StateError::Public { .. })));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let good = fs::read_to_string(&file).unwrap();
        for bad in ["", "{}", &good.replace("\"version\": 1", "\"version\": 2"), &good.replace("hq", "H Q")] {
            fs::write(&file, bad).unwrap();
            assert!(matches!(state.load(), Err(StateError::Malformed { .. })), "{bad}");
        }
    }
}

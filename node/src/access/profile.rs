//! What a client keeps of one node: a directory of its own, private files, and a lock.
//!
//! | file | what |
//! |---|---|
//! | `profile.json` | the node's address, the device key; written once |
//! | `ca.pem` | the authority that signed the node's certificate, where that is a private one |
//! | `login.json` | the tokens and what to dial; replaced at every refresh, absent when logged out |
//! | `lock` | held by the process that refreshes or logs in |
//!
//! They are below `$XDG_CONFIG_HOME/portcullis/access`, whose file `current` names the profile that is used where none
//! is named.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::clock;
use crate::flow::{Host, UnixTime};
use crate::private_file::{self, PrivateFileError};
use crate::token::dpop::Signer;
use crate::tunnel::relay::wire::Ticket;
use crate::tunnel::wire::{Authority, DeviceSecret};
use crate::tunnel::{KeyHash, TunnelKey, TunnelKeyError};

use super::wire::{NodeInfo, TokenResponse};

const PROFILE: &str = "profile.json";
const LOGIN: &str = "login.json";
const CA: &str = "ca.pem";
const LOCK: &str = "lock";
const CURRENT: &str = "current";

/// The layout of the files.
const VERSION: u32 = 1;

/// How long another process may take with the lock: longer than any request to the node.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("nobody is logged in here: run `portcullis access login https://<auth domain>`")]
    None,
    #[error("there is no profile for {0}: run `portcullis access login https://{0}`")]
    Unknown(String),
    #[error("{0:?} is not the address of a node: it looks like https://access.example.com")]
    Address(String),
    #[error("neither XDG_CONFIG_HOME nor HOME says where profiles are")]
    Nowhere,
    #[error("logged out: run `portcullis access login {0}` again")]
    LoggedOut(String),
    #[error(transparent)]
    File(#[from] PrivateFileError),
    #[error("{path} is not of this version: run `portcullis access login` again")]
    Malformed { path: PathBuf },
    #[error("another process holds {path}")]
    Busy { path: PathBuf },
    #[error(transparent)]
    Key(#[from] TunnelKeyError),
}

/// A token that proves to a node who a client's person is.
#[derive(Clone)]
pub struct AccessToken {
    /// The JWT. Worth something only together with the device key.
    pub token: Zeroizing<String>,
    /// By this machine's clock.
    pub expires_at: UnixTime,
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessToken").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// What it takes to dial a node's tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAddress {
    /// Host and UDP port.
    pub address: Authority,
    /// The key that the node must prove to hold.
    pub key: KeyHash,
    /// What to knock with.
    pub device: DeviceSecret,
    /// What a first bind may carry, if the node has said.
    pub ticket: Option<Ticket>,
}

/// One node, as this user knows it. Clones share it.
#[derive(Clone)]
pub struct Profile {
    inner: Arc<Inner>,
}

struct Inner {
    directory: PathBuf,
    /// `https://` and the auth domain, with its port where that is not 443: the issuer of the tokens.
    url: String,
    key: Zeroizing<Vec<u8>>,
    /// Keeps refreshes of one process in line; between processes the lock does.
    turn: tokio::sync::Mutex<()>,
}

/// A login as it is kept.
pub(super) struct Kept {
    pub(super) access: AccessToken,
    pub(super) refresh: Zeroizing<String>,
    /// When the login ends, by this machine's clock.
    pub(super) login_expires_at: UnixTime,
    pub(super) person: String,
    pub(super) node: NodeAddress,
}

/// The lock of a profile, until dropped.
pub(super) struct Locked<'a> {
    _turn: tokio::sync::MutexGuard<'a, ()>,
    _file: File,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredProfile {
    version: u32,
    url: String,
    key: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredLogin {
    version: u32,
    access_token: String,
    access_expires_at: UnixTime,
    refresh_token: String,
    login_expires_at: UnixTime,
    person: String,
    node: NodeInfo,
}

impl Drop for StoredProfile {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Drop for StoredLogin {
    fn drop(&mut self) {
        self.access_token.zeroize();
        self.refresh_token.zeroize();
        self.node.device.zeroize();
    }
}

/// Where profiles are: `$XDG_CONFIG_HOME/portcullis/access`, or below `~/.config` (XDG base directories).
///
/// # Errors
/// When neither is set.
pub fn root() -> Result<PathBuf, ProfileError> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    Ok(config.ok_or(ProfileError::Nowhere)?.join("portcullis/access"))
}

/// The addresses of the nodes that there are profiles of.
///
/// # Errors
/// When the directory cannot be read.
pub fn logged_in(root: &Path) -> Result<Vec<String>, ProfileError> {
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|source| PrivateFileError::Io { path: root.to_owned(), source })?,
    };
    let mut found: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| root.join(name).join(LOGIN).exists())
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// `https://access.example.com[:8443]` of what a person typed: scheme and a final slash may be missing.
pub(super) fn node_url(text: &str) -> Result<String, ProfileError> {
    let wrong = || ProfileError::Address(text.to_owned());
    let rest = text.strip_prefix("https://").unwrap_or(text);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = Host::parse_authority(rest).map_err(|_| wrong())?;
    Ok(match port {
        None | Some(443) => format!("https://{host}"),
        Some(port) => format!("https://{host}:{port}"),
    })
}

impl Profile {
    /// The profile of the node at `url`, or without one the current profile, below [`root`].
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn open(url: Option<&str>) -> Result<Self, ProfileError> {
        Self::open_in(&root()?, url)
    }

    /// As [`Profile::open`], below another directory.
    ///
    /// # Errors
    /// As there.
    pub fn open_in(root: &Path, url: Option<&str>) -> Result<Self, ProfileError> {
        let name = match url {
            Some(url) => name_of(&node_url(url)?).to_owned(),
            None => {
                let current = private_file::read(&root.join(CURRENT))?.ok_or(ProfileError::None)?;
                name_of(&node_url(current.trim())?).to_owned()
            }
        };
        Self::load(root.join(&name))?.ok_or(ProfileError::Unknown(name))
    }

    /// The profile of the node at `url`, with a device key of its own, made where there is none. `ca`, PEM, replaces
    /// the authority that is remembered.
    pub(super) fn prepare(root: &Path, url: &str, ca: Option<&str>) -> Result<Self, ProfileError> {
        let url = node_url(url)?;
        let directory = root.join(name_of(&url));
        private_file::make_directory(&directory)?;
        if let Some(ca) = ca {
            private_file::replace(&directory.join(CA), ca.as_bytes())?;
        }
        if let Some(present) = Self::load(directory.clone())? {
            return Ok(present);
        }
        let key = TunnelKey::generate()?;
        let stored = StoredProfile { version: VERSION, url, key: STANDARD.encode(&*key) };
        write(&directory.join(PROFILE), &stored)?;
        Self::load(directory.clone())?.ok_or(ProfileError::Malformed { path: directory.join(PROFILE) })
    }

    /// `https://` and the auth domain, with its port where that is not 443.
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// Where the node serves HTTPS.
    pub(super) fn web(&self) -> Option<Authority> {
        let name = name_of(&self.inner.url);
        name.parse().or_else(|_| format!("{name}:443").parse()).ok()
    }

    /// The device key: the client's end of the tunnel, and what its tokens are bound to.
    ///
    /// # Errors
    /// When the stored key is unusable.
    pub fn device_key(&self) -> Result<TunnelKey, ProfileError> {
        Ok(TunnelKey::from_pkcs8(self.inner.key.clone())?)
    }

    /// What it takes to dial the node. It may change at a refresh: ask again before every dial.
    ///
    /// # Errors
    /// When nobody is logged in, or the profile cannot be read.
    pub fn node(&self) -> Result<NodeAddress, ProfileError> {
        Ok(self.login()?.node)
    }

    /// Whoever is logged in, as the node named them.
    ///
    /// # Errors
    /// As [`Profile::node`].
    pub fn person(&self) -> Result<String, ProfileError> {
        Ok(self.login()?.person)
    }

    /// When the login ends, by this machine's clock.
    ///
    /// # Errors
    /// As [`Profile::node`].
    pub fn login_expires_at(&self) -> Result<UnixTime, ProfileError> {
        Ok(self.login()?.login_expires_at)
    }

    /// The directory, for what else belongs to this node: the keys of connectors, for one.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// What proves possession of the device key.
    pub(super) fn signer(&self) -> Result<Signer, ProfileError> {
        Signer::from_pkcs8(&self.inner.key).map_err(|_| self.malformed(PROFILE))
    }

    /// The private authority that signed the node's certificate, where one was named at a login.
    pub fn ca(&self) -> Option<PathBuf> {
        Some(self.inner.directory.join(CA)).filter(|path| path.exists())
    }

    pub(super) fn login(&self) -> Result<Kept, ProfileError> {
        let stored = private_file::read(&self.inner.directory.join(LOGIN))?;
        let text = stored.ok_or_else(|| ProfileError::LoggedOut(self.inner.url.clone()))?;
        let malformed = || self.malformed(LOGIN);
        let stored: StoredLogin = serde_json::from_str(&text).map_err(|_| malformed())?;
        if stored.version != VERSION {
            return Err(malformed());
        }
        Ok(Kept {
            access: AccessToken {
                token: Zeroizing::new(stored.access_token.clone()),
                expires_at: stored.access_expires_at,
            },
            refresh: Zeroizing::new(stored.refresh_token.clone()),
            login_expires_at: stored.login_expires_at,
            person: stored.person.clone(),
            node: node(&stored.node).ok_or_else(malformed)?,
        })
    }

    /// Keeps what the node answered `since` its request was sent, and makes the profile the current one if `current`.
    pub(super) fn keep(
        &self,
        answer: &TokenResponse,
        since: UnixTime,
        current: bool,
    ) -> Result<AccessToken, ProfileError> {
        node(&answer.node).ok_or_else(|| self.malformed(LOGIN))?;
        let expires_at = since.after(Duration::from_secs(answer.expires_in));
        let stored = StoredLogin {
            version: VERSION,
            access_token: answer.access_token.clone(),
            access_expires_at: expires_at,
            refresh_token: answer.refresh_token.clone(),
            login_expires_at: since.after(Duration::from_secs(answer.login_expires_in)),
            person: answer.person.clone(),
            node: NodeInfo {
                address: answer.node.address.clone(),
                key: answer.node.key.clone(),
                device: answer.node.device.clone(),
                ticket: answer.node.ticket.clone(),
            },
        };
        write(&self.inner.directory.join(LOGIN), &stored)?;
        if current && let Some(root) = self.inner.directory.parent() {
            private_file::replace(&root.join(CURRENT), self.inner.url.as_bytes())?;
        }
        Ok(AccessToken { token: Zeroizing::new(answer.access_token.clone()), expires_at })
    }

    /// Forgets the login; the device key stays.
    pub(super) fn forget(&self) -> Result<(), ProfileError> {
        Ok(private_file::remove(&self.inner.directory.join(LOGIN))?)
    }

    /// Waits for every other process and task that changes this profile.
    pub(super) async fn lock(&self) -> Result<Locked<'_>, ProfileError> {
        let turn = self.inner.turn.lock().await;
        let path = self.inner.directory.join(LOCK);
        let io = |source| PrivateFileError::Io { path: path.clone(), source };
        let mut options = File::options();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.create(true).append(true).open(&path).map_err(io)?;
        let until = clock::monotonic() + PATIENCE;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Locked { _turn: turn, _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io(error.into()).into()),
            }
            if clock::monotonic() > until {
                return Err(ProfileError::Busy { path });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn load(directory: PathBuf) -> Result<Option<Self>, ProfileError> {
        let path = directory.join(PROFILE);
        let Some(text) = private_file::read(&path)? else { return Ok(None) };
        let malformed = || ProfileError::Malformed { path: path.clone() };
        let stored: StoredProfile = serde_json::from_str(&text).map_err(|_| malformed())?;
        if stored.version != VERSION || node_url(&stored.url).ok().as_ref() != Some(&stored.url) {
            return Err(malformed());
        }
        let key = Zeroizing::new(STANDARD.decode(&stored.key).map_err(|_| malformed())?);
        TunnelKey::from_pkcs8(key.clone())?;
        let inner = Inner { directory, url: stored.url.clone(), key, turn: tokio::sync::Mutex::default() };
        Ok(Some(Self { inner: Arc::new(inner) }))
    }

    fn malformed(&self, file: &str) -> ProfileError {
        ProfileError::Malformed { path: self.inner.directory.join(file) }
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Profile({})", self.inner.url)
    }
}

/// The name of a profile's directory.
fn name_of(url: &str) -> &str {
    url.strip_prefix("https://").unwrap_or(url)
}

fn node(info: &NodeInfo) -> Option<NodeAddress> {
    let device = Zeroizing::new(URL_SAFE_NO_PAD.decode(&info.device).ok()?);
    Some(NodeAddress {
        address: info.address.parse().ok()?,
        key: KeyHash::from_bytes(crate::token::hash_of_hex(&info.key)?),
        device: DeviceSecret::from_bytes(device.as_slice().try_into().ok()?)?,
        ticket: info.ticket.as_ref().and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()),
    })
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), ProfileError> {
    let malformed = |_| ProfileError::Malformed { path: path.to_owned() };
    let text = Zeroizing::new(serde_json::to_vec_pretty(value).map_err(malformed)?);
    Ok(private_file::replace(path, &text)?)
}

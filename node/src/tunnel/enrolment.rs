//! Enrolment tokens: how a connector comes to know its node, and the node its connector.
//!
//! 1. `admin connector create` makes a secret, stores its hash, and prints a token that names the node's addresses,
//!    where it serves HTTPS, the hash of the node's key, the connector, the secret, and what to knock with where the node's port is dark.
//! 2. The connector makes a key of its own, dials an address, accepts no node but the one with that hash, and sends
//!    the secret.
//! 3. The node spends the token and from then on knows the connector by its key.
//!
//! Whoever holds an unspent token can become the connector: it is single-use, lives at most an hour, and never appears
//! in a log or on a command line.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::flow::UnixTime;
use crate::store::{Store, StoreError};

use super::devices::knock_keys;
use super::identity::{KeyHash, TunnelKey, TunnelKeyError};
use super::wire::{Authority, ConnectorName, DeviceSecret, EnrolmentSecret};

/// A token is good for so long at most.
pub const MAX_LIFETIME: Duration = Duration::from_secs(3600);

/// Addresses in one token at most, and characters of its text.
const MAX_NODES: usize = 16;
const MAX_TEXT: usize = 8192;

/// The layout of the rest of a token.
const VERSION: u8 = 3;

/// What a connector needs to enrol.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolmentToken {
    version: u8,
    /// Where the node can be reached; the connector keeps connections to each.
    pub(super) nodes: Vec<Authority>,
    /// Where the node serves HTTPS, at the same addresses: the auth domain and the public port. The way over TCP.
    pub(super) web: Authority,
    pub(super) node_key: KeyHash,
    pub(super) connector: ConnectorName,
    pub(super) secret: EnrolmentSecret,
    /// The token's own device, void when the token is.
    pub(super) device: DeviceSecret,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    #[error("a token needs 1 to {MAX_NODES} addresses of the node")]
    Nodes,
    #[error("an enrolment token lives at most {} s", MAX_LIFETIME.as_secs())]
    Lifetime,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] TunnelKeyError),
}

/// The text is no enrolment token. It says nothing of the text, which may be most of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an enrolment token of this version: it is one line of base64url, as `admin connector create` prints it"
)]
pub struct EnrolmentTokenError;

/// Makes connector `connector`, or a new token for it, good for `lifetime`. `nodes` are the addresses under which
/// connectors reach this node, `web` where it serves HTTPS; `secret` is random.
pub async fn create(
    store: &Store,
    connector: ConnectorName,
    nodes: Vec<Authority>,
    web: Authority,
    lifetime: Duration,
    secret: EnrolmentSecret,
    now: UnixTime,
) -> Result<EnrolmentToken, EnrolmentError> {
    if nodes.is_empty() || nodes.len() > MAX_NODES {
        return Err(EnrolmentError::Nodes);
    }
    if lifetime > MAX_LIFETIME {
        return Err(EnrolmentError::Lifetime);
    }
    let node_key = node_key(store).await?.hash();
    let keys = knock_keys(store).await?;
    let device = store.create_connector(connector.as_str(), secret.hash(), now.after(lifetime), now).await?;
    Ok(EnrolmentToken {
        version: VERSION,
        nodes,
        web,
        node_key,
        connector,
        secret,
        device: keys.device(device).into(),
    })
}

/// What everybody who dials the node knows its tunnel by.
pub async fn key_of_node(store: &Store) -> Result<KeyHash, EnrolmentError> {
    Ok(node_key(store).await?.hash())
}

/// The node's own tunnel key, made at first use.
pub(super) async fn node_key(store: &Store) -> Result<TunnelKey, EnrolmentError> {
    let fresh = TunnelKey::generate()?;
    let stored = store.secret("tunnel key", move || fresh.to_vec()).await?;
    Ok(TunnelKey::from_pkcs8(stored)?)
}

impl EnrolmentToken {
    /// Reads the text of a token; white space around it is ignored.
    pub fn parse(text: &str) -> Result<Self, EnrolmentTokenError> {
        let text = text.trim();
        if text.len() > MAX_TEXT {
            return Err(EnrolmentTokenError);
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).map_err(|_| EnrolmentTokenError)?);
        if bytes.first() != Some(&VERSION) {
            return Err(EnrolmentTokenError);
        }
        match postcard::take_from_bytes::<Self>(&bytes) {
            Ok((token, [])) if (1..=MAX_NODES).contains(&token.nodes.len()) => Ok(token),
            Ok(_) | Err(_) => Err(EnrolmentTokenError),
        }
    }

    /// The text of the token: the secret itself.
    pub fn expose(&self) -> Result<Zeroizing<String>, EnrolmentTokenError> {
        let bytes = Zeroizing::new(postcard::to_stdvec(self).map_err(|_| EnrolmentTokenError)?);
        Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(&*bytes)))
    }

    /// What whoever holds the token may knock with until it is void.
    pub const fn device(&self) -> &DeviceSecret {
        &self.device
    }

    pub const fn connector(&self) -> &ConnectorName {
        &self.connector
    }
}

impl fmt::Debug for EnrolmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EnrolmentToken({})", self.connector)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: UnixTime = UnixTime(1_000_000);

    fn token() -> EnrolmentToken {
        EnrolmentToken {
            version: VERSION,
            nodes: vec!["access.example.com:443".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap()],
            web: "access.example.com:443".parse().unwrap(),
            node_key: KeyHash::from_bytes([2; 32]),
            connector: "hq".parse().unwrap(),
            secret: EnrolmentSecret::from_bytes([0xab; 32]),
            device: DeviceSecret::from_bytes(&[0xcd; DeviceSecret::SIZE]).unwrap(),
        }
    }

    #[test]
    fn a_token_survives_its_text() {
        let text = token().expose().unwrap();
        assert_eq!(EnrolmentToken::parse(&format!("  {}\n", *text)), Ok(token()));
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
    }

    #[test]
    fn other_versions_and_cut_or_padded_texts_are_refused() {
        let text = token().expose().unwrap();
        for bad in
            ["", &text[1..], &text[..text.len() - 4], &format!("{}AAAA", *text), &"A".repeat(MAX_TEXT + 1)]
        {
            assert_eq!(EnrolmentToken::parse(bad), Err(EnrolmentTokenError), "{bad}");
        }
        let newer = EnrolmentToken { version: VERSION + 1, ..token() };
        assert!(EnrolmentToken::parse(&newer.expose().unwrap()).is_err());
        let nowhere = EnrolmentToken { nodes: Vec::new(), ..token() };
        assert!(EnrolmentToken::parse(&nowhere.expose().unwrap()).is_err());
    }

    #[test]
    fn the_secret_has_no_debug() {
        assert_eq!(format!("{:?}", token()), "EnrolmentToken(hq)");
    }

    #[tokio::test]
    async fn the_node_keeps_its_key_and_only_the_hash_of_the_secret() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let secret = || EnrolmentSecret::from_bytes([0xab; 32]);
        let make = |lifetime| {
            create(&store, "hq".parse().unwrap(), token().nodes, token().web, lifetime, secret(), NOW)
        };
        let (a, b) = (make(MAX_LIFETIME).await.unwrap(), make(MAX_LIFETIME).await.unwrap());
        assert_eq!(a.node_key, b.node_key);
        assert!(matches!(make(MAX_LIFETIME + Duration::from_secs(1)).await, Err(EnrolmentError::Lifetime)));
        drop(store);
        let holds_secret = std::fs::read_dir(directory.path()).unwrap().any(|entry| {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            bytes.windows(32).any(|window| window == [0xab; 32])
        });
        assert!(!holds_secret);
    }

    proptest! {
        #[test]
        fn no_text_panics_the_parser(text in "\\PC{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = EnrolmentToken::parse(&text);
            let mut versioned = vec![VERSION];
            versioned.extend(bytes);
            let _ = EnrolmentToken::parse(&URL_SAFE_NO_PAD.encode(versioned));
        }
    }
}

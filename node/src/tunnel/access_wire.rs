//! What an access client and a node say to each other: every frame and limit of `portcullis-access/1` and `/2`.
//!
//! ```text
//! control stream    the client opens it; one for the life of the connection, frames in both directions
//!                   client → node  Hello, then Open or OpenBinding, Resume, Close, Renew
//!                   node → client  Welcome | Refused, then Opened | Denied, Ready, EndSession, Renewed, Drain
//! ```
//!
//! 1. TLS has proved the client's device key. `Hello` carries the access token, which names that key and a login.
//! 2. `Open`, or `OpenBinding`, asks for one private session; `Opened` gives what the client needs to bind its leg and to know the
//!    connector. Then `Ready` for each bind that comes into force, and one `EndSession` when it is over.
//! 3. After a lost connection, or a restart of the node, `Resume` asks for a session that the client had; the grant that
//!    it was given says which. The answer is that of `Open`, with the same session, a new ticket and a new grant: the
//!    leg binds again, with the key that the new connection yields, and the end-to-end connection goes on.
//! 4. `Renew` before the token expires: a connection lives as long as its last token, and its sessions not much longer.
//!
//! There is no heartbeat: QUIC's keep-alive does all that one would. Frames are those of [`super::wire`], with other bodies. Pure: no clock, no socket.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::flow::UnixTime;

use super::identity::KeyHash;
use super::relay::wire::Ticket;
use super::relay::{Early, SessionRef};
use super::wire::{Authority, EndReason, Frame, MAX_GRANT, RelayPath};

/// Application protocol (RFC 7301) of an access client's control connection.
pub const ALPN: &[u8] = b"portcullis-access/1";

/// The same with a node that holds a session's first packets until its legs are in force (`super::relay`): the client need not
/// wait for `Ready` with them. The frames are the same, and either side still speaks to one that is older.
pub const ALPN_HOLDING: &[u8] = b"portcullis-access/2";

/// Both.
pub const ALL: [&[u8]; 2] = [ALPN_HOLDING, ALPN];

/// Bytes of the longest access token.
pub const MAX_TOKEN: usize = 2048;

/// Bytes of the longest application name in an `Open`.
pub const MAX_APPLICATION: usize = 128;

/// Bytes of the longest message to a person.
pub const MAX_MESSAGE: usize = 512;

/// Numbers an `Open` or a `Resume`: the client's choice, unlike those of its requests that are not yet answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub u32);

/// Frames that a client sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientFrame {
    /// The first frame.
    Hello { token: AccessToken, version: ClientVersion },
    /// Asks for a session with a private application; `destination` where the application is a network.
    Open { request: RequestId, application: String, destination: Option<Authority> },
    /// Asks for a session that an earlier connection of this device was given.
    Resume { request: RequestId, grant: Vec<u8> },
    /// The session is no longer wanted.
    Close { session: SessionRef },
    /// A younger token of the same login.
    Renew { token: AccessToken },
    /// An `Open` with which the leg's first bind is under way, under this name: by the time that `Opened` arrives so does a
    /// challenge, which saves a round trip.
    OpenBinding { request: RequestId, application: String, destination: Option<Authority>, early: Early },
}

impl Frame for ClientFrame {
    const LIMIT: usize = MAX_TOKEN + 256;
}

/// Frames that a node sends to a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessFrame {
    /// The answer to `Hello`.
    Welcome {
        /// What the node calls the person.
        person: String,
        /// The token's end: `Renew` before.
        token_expires: UnixTime,
        /// The login's end.
        login_expires: UnixTime,
    },
    /// The answer to `Hello` or `Renew` when the node will not have the client; the connection ends.
    Refused(AccessRefusal),
    /// The answer to `Open` and `Resume`.
    Opened(Opened),
    /// The answer to `Open` and `Resume`.
    Denied {
        request: RequestId,
        denial: Denial,
        /// Names the decision in the node's log.
        ray: Ray,
        /// For the person: names the application, and says what can be done. At most [`MAX_MESSAGE`] bytes.
        message: String,
    },
    /// The session's bind number `counter` is in force: packets may be sent, and not only the first. There is no number 0: with that, only who relays is
    /// another.
    Ready { session: SessionRef, counter: u64, path: RelayPath },
    /// The session is over.
    EndSession { session: SessionRef, reason: EndReason },
    /// The answer to `Renew`: the new token's end.
    Renewed { token_expires: UnixTime },
    /// The node opens no more sessions on this connection and will close it; the client resumes them elsewhere or later.
    Drain,
}

impl Frame for AccessFrame {
    const LIMIT: usize = MAX_GRANT + 1024;
}

/// A session that the client may bind to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    pub request: RequestId,
    pub session: SessionRef,
    /// What this end's binds carry.
    pub ticket: Ticket,
    /// For the connector, signed by the node; of at most [`MAX_GRANT`] bytes.
    pub grant: Vec<u8>,
    /// The key that the connector has to prove.
    pub connector: KeyHash,
    /// Nothing passes from then on.
    pub expires: UnixTime,
}

/// Why a node will not have a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum AccessRefusal {
    #[error("the access token is malformed, expired or of another node: log in again")]
    BadToken,
    #[error("the access token belongs to another device: log in on this one")]
    OtherDevice,
    #[error("the login is over: log in again")]
    LoginEnded,
    #[error("this login has too many connections to the node: end one of them")]
    TooManyConnections,
    #[error("the node failed: try again")]
    Internal,
}

/// Why there is no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Denial {
    /// No private application has this name.
    NoApplication,
    /// Policy does not allow it.
    NotAllowed,
    /// The application asks for another login than this one.
    LoginNeeded,
    /// The destination is not one of the application's, or is missing.
    Destination,
    /// The connector is not connected.
    ConnectorGone,
    /// The connector is too old to take private sessions.
    ConnectorOld,
    /// The connector declined, or did not answer.
    ConnectorDeclined,
    /// The login has as many sessions as it may.
    TooManySessions,
    /// The node has as many sessions as it can.
    NodeFull,
    /// There is no such session to resume: open a new one.
    Gone,
    /// A fault of the node's own.
    Internal,
}

impl Denial {
    /// The same request may fare better a little later.
    pub const fn is_temporary(self) -> bool {
        match self {
            Self::ConnectorGone | Self::ConnectorDeclined | Self::NodeFull | Self::Internal => true,
            Self::NoApplication
            | Self::NotAllowed
            | Self::LoginNeeded
            | Self::Destination
            | Self::ConnectorOld
            | Self::TooManySessions
            | Self::Gone => false,
        }
    }

    /// The public name, as in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoApplication => "no_application",
            Self::NotAllowed => "not_allowed",
            Self::LoginNeeded => "login_needed",
            Self::Destination => "destination",
            Self::ConnectorGone => "connector_gone",
            Self::ConnectorOld => "connector_old",
            Self::ConnectorDeclined => "connector_declined",
            Self::TooManySessions => "too_many_sessions",
            Self::NodeFull => "node_full",
            Self::Gone => "gone",
            Self::Internal => "internal",
        }
    }
}

/// A ray id as it travels; shown as 16 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ray(pub [u8; 8]);

impl fmt::Display for Ray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::flow::RayId::from_bytes(self.0).fmt(f)
    }
}

/// An access token: a JWT in its compact form, whose holder must also hold the device key that it names.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(try_from = "String")]
pub struct AccessToken(String);

/// The text is longer than any access token, or has characters that none has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an access token: expected at most {MAX_TOKEN} characters of base64url and dots")]
pub struct AccessTokenError;

impl AccessToken {
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for AccessToken {
    type Err = AccessTokenError;

    fn from_str(text: &str) -> Result<Self, AccessTokenError> {
        text.to_owned().try_into()
    }
}

impl TryFrom<String> for AccessToken {
    type Error = AccessTokenError;

    fn try_from(text: String) -> Result<Self, AccessTokenError> {
        let fits = (1..=MAX_TOKEN).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if fits { Ok(Self(text)) } else { Err(AccessTokenError) }
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken")
    }
}

/// Which client it is, for the node's log: 1 to 32 letters, digits, dots, hyphens and plus signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientVersion(String);

/// The text is no version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a client's version has 1 to 32 letters, digits, dots, hyphens and plus signs")]
pub struct ClientVersionError;

impl ClientVersion {
    /// Of a client that does not know its own.
    pub fn unknown() -> Self {
        Self("0".to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ClientVersion {
    type Error = ClientVersionError;

    fn try_from(text: String) -> Result<Self, ClientVersionError> {
        let fits = (1..=32).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-+".contains(&b));
        if fits { Ok(Self(text)) } else { Err(ClientVersionError) }
    }
}

impl FromStr for ClientVersion {
    type Err = ClientVersionError;

    fn from_str(text: &str) -> Result<Self, ClientVersionError> {
        text.to_owned().try_into()
    }
}

impl From<ClientVersion> for String {
    fn from(version: ClientVersion) -> Self {
        version.0
    }
}

#[cfg(test)]
mod tests;

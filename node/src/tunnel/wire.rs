//! What travels through a tunnel: every frame, size and limit of `portcullis/1`.
//!
//! ```text
//! control stream    the connector opens it; one for the life of the connection, frames in both directions
//!                   connector → node  Hello | Enrol, then Device, Ack, Heartbeat, Drain, and what `private` says
//!                   node → connector  Welcome | Refused, then Device, Origins, Drain, and what `private` says
//! origin stream     the node opens one for each origin connection
//!                   node → connector  OpenRequest, then the bytes for the origin
//!                   connector → node  OpenReply, then the bytes of the origin
//! frame             length (u32, big endian) | body (postcard)
//! ```
//!
//! The end of a direction (FIN) is the end of the origin connection's direction; a reset is a reset. A length beyond
//! the limit of its frame is refused before anything is allocated for it, and a body must be used up to its last byte.
//! Pure: no clock, no socket.

mod private;

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use bytes::{Buf, BufMut, BytesMut};
use portcullis_common::{DeviceKeys, SipKey};
use quinn::VarInt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::flow::{Host, Origin};

use super::relay::SessionRef;

pub use private::{Decline, EndReason, Instance, MAX_GRANT, Offer, RelayPath};

/// Application protocol (RFC 7301) of a tunnel. Anything that changes the meaning of a frame changes this name.
pub const ALPN: &[u8] = b"portcullis/1";

/// Bytes before the body of a frame.
pub const FRAME_HEADER: usize = 4;

/// Origins that one connector may be given.
pub const MAX_ORIGINS: usize = 8192;

/// The longest origin: a host name of 253 bytes, a colon, a port.
const MAX_AUTHORITY: usize = 253 + 1 + 5;

/// A frame: what it may weigh, and that its body is postcard.
pub trait Frame: Serialize + DeserializeOwned {
    /// Bytes of the longest body.
    const LIMIT: usize;
}

/// Frames that a connector sends on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConnectorFrame {
    /// The first frame of a connector that the node knows by its key.
    Hello,
    /// The first frame of a connector that redeems an enrolment token.
    Enrol(EnrolmentSecret),
    /// The origins of this epoch are in force.
    Ack { epoch: u64 },
    /// The connector is alive, down to the task that serves this stream.
    Heartbeat,
    /// The connector takes no more origin streams on this connection; the running ones go on.
    Drain,
    /// The connector asks what to knock with. One that is older does not, and the node does not tell it unasked.
    Device,
    /// The connector takes private sessions, in this process. One that is older does not say so, and is offered none.
    TakesSessions { instance: Instance },
    /// The answer to an offer: the connector binds its leg.
    Taken { session: SessionRef },
    /// The answer to an offer.
    Declined { session: SessionRef, why: Decline },
    /// The connector has ended a session that it had taken.
    SessionEnded { session: SessionRef },
}

impl Frame for ConnectorFrame {
    const LIMIT: usize = 64;
}

/// Frames that a node sends on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeFrame {
    /// The answer to `Hello` and `Enrol`: the name under which the node knows this connector.
    Welcome { connector: ConnectorName },
    /// The answer to `Hello` and `Enrol` when the node will not have it; the connection ends.
    Refused(Refusal),
    /// The only origins that the connector may dial from now on. Epochs of a connection only grow.
    Origins { epoch: u64, origins: Vec<Authority> },
    /// The node opens no more origin streams on this connection; the running ones go on.
    Drain,
    /// The answer to `Device`: what the connector knocks with from now on.
    Device(DeviceSecret),
    /// A private session to take; only to a connector that said `TakesSessions`.
    Session(Offer),
    /// The session's bind number `counter` is in force: packets may be sent.
    SessionReady { session: SessionRef, counter: u64, path: RelayPath },
    /// The session is over.
    EndSession { session: SessionRef, reason: EndReason },
}

impl Frame for NodeFrame {
    const LIMIT: usize = MAX_ORIGINS * (MAX_AUTHORITY + 2) + 64;
}

/// Why a node will not have a connector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("the node does not know this connector's key: it was never enrolled, or it was revoked")]
    UnknownKey,
    #[error("the enrolment token is unknown, expired or already used")]
    BadToken,
    #[error("the connector has too many connections to this node")]
    TooManyConnections,
}

/// The first frame of an origin stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRequest {
    /// The epoch whose origins name this one: the connector may still have to read it from the control stream.
    pub epoch: u64,
    pub origin: Authority,
}

impl Frame for OpenRequest {
    const LIMIT: usize = MAX_AUTHORITY + 16;
}

/// The answer to an [`OpenRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpenReply {
    /// The origin is connected; its bytes follow.
    Opened,
    /// The origin is not among those that the node configured, or the connector's own limits exclude it.
    Refused,
    /// The origin could not be reached.
    OriginDown(DialFailure),
    /// The connector is about to leave; another connection may serve.
    Draining,
}

impl Frame for OpenReply {
    const LIMIT: usize = 8;
}

/// Why an origin could not be reached. For the log of the operator, never for a user's page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum DialFailure {
    #[error("its name has no address")]
    NoAddress,
    #[error("it refuses connections")]
    ConnectionRefused,
    #[error("it does not answer in time")]
    Timeout,
    #[error("there is no way to it")]
    Unreachable,
}

/// Codes of CONNECTION_CLOSE (RFC 9000 §19.19), as an application sends them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// The sender ends, in good order.
    Shutdown,
    /// The peer broke this protocol.
    Protocol,
    /// A [`Refusal`] was sent before.
    Refused,
    /// The connector was revoked.
    Revoked,
    /// The peer took too long.
    Timeout,
    /// A fault of the sender's own.
    Internal,
}

impl CloseCode {
    pub const fn code(self) -> u32 {
        match self {
            Self::Shutdown => 0,
            Self::Protocol => 1,
            Self::Refused => 2,
            Self::Revoked => 3,
            Self::Timeout => 4,
            Self::Internal => 5,
        }
    }
}

/// Codes of RESET_STREAM and STOP_SENDING (RFC 9000 §19.4, §19.5) on origin streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamCode {
    /// The sender no longer wants this stream.
    Cancelled,
    /// The origin reset its connection.
    OriginReset,
    /// The frames at the beginning of the stream broke this protocol.
    Protocol,
}

impl StreamCode {
    pub const fn code(self) -> u32 {
        match self {
            Self::Cancelled => 0,
            Self::OriginReset => 1,
            Self::Protocol => 2,
        }
    }
}

impl From<StreamCode> for VarInt {
    fn from(code: StreamCode) -> Self {
        Self::from_u32(code.code())
    }
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> Self {
        Self::from_u32(code.code())
    }
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("a frame of {length} bytes where at most {limit} are allowed")]
    TooLong { length: usize, limit: usize },
    #[error("the body of a frame is malformed")]
    Body,
}

/// Appends `frame` to `out`.
///
/// # Errors
/// When its body is longer than the limit: the fault is ours.
pub fn encode<F: Frame>(frame: &F, out: &mut BytesMut) -> Result<(), WireError> {
    let body = postcard::to_stdvec(frame).map_err(|_| WireError::Body)?;
    let too_long = WireError::TooLong { length: body.len(), limit: F::LIMIT };
    if body.len() > F::LIMIT {
        return Err(too_long);
    }
    out.put_u32(u32::try_from(body.len()).map_err(|_| too_long)?);
    out.put_slice(&body);
    Ok(())
}

/// What [`decode`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded<F> {
    Frame(F),
    /// So many bytes more belong to the header or to the body whose length it gives.
    Missing(NonZeroUsize),
}

/// Takes one frame from the front of `input`.
///
/// # Errors
/// When the bytes can never become a frame: the fault is the peer's.
pub fn decode<F: Frame>(input: &mut BytesMut) -> Result<Decoded<F>, WireError> {
    let Some(header) = input.first_chunk::<FRAME_HEADER>() else {
        return Ok(missing(FRAME_HEADER, input.len()));
    };
    let length = u32::from_be_bytes(*header) as usize;
    if length > F::LIMIT {
        return Err(WireError::TooLong { length, limit: F::LIMIT });
    }
    let Some(body) = input.get(FRAME_HEADER..FRAME_HEADER + length) else {
        return Ok(missing(FRAME_HEADER + length, input.len()));
    };
    let (frame, rest) = postcard::take_from_bytes(body).map_err(|_| WireError::Body)?;
    if !rest.is_empty() {
        return Err(WireError::Body);
    }
    input.advance(FRAME_HEADER + length);
    Ok(Decoded::Frame(frame))
}

const fn missing<F>(wanted: usize, have: usize) -> Decoded<F> {
    Decoded::Missing(match NonZeroUsize::new(wanted.saturating_sub(have)) {
        Some(bytes) => bytes,
        None => NonZeroUsize::MIN,
    })
}

/// The secret of an enrolment token. The node keeps only its hash.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct EnrolmentSecret([u8; 32]);

impl EnrolmentSecret {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// SHA-256 of the secret: what the node stores. The secret has 256 random bits, so a plain hash hides it.
    pub fn hash(&self) -> [u8; 32] {
        super::identity::sha256(&self.0)
    }
}

impl fmt::Debug for EnrolmentSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnrolmentSecret")
    }
}

/// What one device knocks with where the tunnel's port is dark (`portcullis_common::DeviceKeys`).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct DeviceSecret {
    number: u32,
    key: [u8; 16],
    mask: [u8; 16],
}

impl DeviceSecret {
    pub const SIZE: usize = 36;

    /// Number, big endian; key; mask.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([&self.number.to_be_bytes()[..], &self.key, &self.mask].concat())
    }

    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let (number, rest) = bytes.split_first_chunk()?;
        let (key, mask) = rest.split_first_chunk()?;
        Some(Self { number: u32::from_be_bytes(*number), key: *key, mask: mask.try_into().ok()? })
    }

    pub fn keys(&self) -> DeviceKeys {
        DeviceKeys {
            device: self.number,
            key: SipKey::from_bytes(self.key),
            mask: SipKey::from_bytes(self.mask),
        }
    }
}

impl From<DeviceKeys> for DeviceSecret {
    fn from(keys: DeviceKeys) -> Self {
        Self { number: keys.device, key: keys.key.to_bytes(), mask: keys.mask.to_bytes() }
    }
}

impl fmt::Debug for DeviceSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceSecret({})", self.number)
    }
}

/// Name of a connector: 1 to 63 lower-case letters, digits and inner hyphens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ConnectorName(String);

/// The text is no connector name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a connector's name has 1 to 63 lower-case letters, digits and inner hyphens")]
pub struct ConnectorNameError;

impl ConnectorName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ConnectorName {
    type Err = ConnectorNameError;

    fn from_str(text: &str) -> Result<Self, ConnectorNameError> {
        text.to_owned().try_into()
    }
}

impl TryFrom<String> for ConnectorName {
    type Error = ConnectorNameError;

    fn try_from(text: String) -> Result<Self, ConnectorNameError> {
        let good = (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if good { Ok(Self(text)) } else { Err(ConnectorNameError) }
    }
}

impl From<ConnectorName> for String {
    fn from(name: ConnectorName) -> Self {
        name.0
    }
}

impl fmt::Display for ConnectorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `host:port` of an origin or a node, with exactly one spelling.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Authority {
    text: String,
    host_length: usize,
    port: u16,
}

/// The text is not `host:port`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a host and port, as in office.example.com:443 or [2001:db8::1]:443")]
pub struct AuthorityError;

impl Authority {
    pub fn new(host: &Host, port: u16) -> Self {
        Self { text: format!("{host}:{port}"), host_length: host.as_str().len(), port }
    }

    /// The host as a resolver takes it: a name, or an address without brackets.
    pub fn host(&self) -> &str {
        let host = self.text.get(..self.host_length).unwrap_or_default();
        host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
    }

    pub const fn port(&self) -> u16 {
        self.port
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl From<&Origin> for Authority {
    fn from(origin: &Origin) -> Self {
        Self::new(&origin.host, origin.port)
    }
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, AuthorityError> {
        match Host::parse_authority(text) {
            Ok((host, Some(port))) => Ok(Self::new(&host, port)),
            Ok((_, None)) | Err(_) => Err(AuthorityError),
        }
    }
}

impl TryFrom<String> for Authority {
    type Error = AuthorityError;

    fn try_from(text: String) -> Result<Self, AuthorityError> {
        text.parse()
    }
}

impl From<Authority> for String {
    fn from(authority: Authority) -> Self {
        authority.text
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
pub(super) mod tests;

//! What travels through a tunnel: every frame, size and limit of `portcullis/1`.
//!
//! ```text
//! control stream    the connector opens it; one for the life of the connection, frames in both directions
//!                   connector → node  Hello | Enrol, then Ack, Heartbeat, Drain
//!                   node → connector  Welcome | Refused, then Origins, Drain
//! origin stream     the node opens one for each origin connection
//!                   node → connector  OpenRequest, then the bytes for the origin
//!                   connector → node  OpenReply, then the bytes of the origin
//! frame             length (u32, big endian) | body (postcard)
//! ```
//!
//! The end of a direction (FIN) is the end of the origin connection's direction; a reset is a reset. A length beyond
//! the limit of its frame is refused before anything is allocated for it, and a body must be used up to its last byte.
//! Pure: no clock, no socket.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use bytes::{Buf, BufMut, BytesMut};
use quinn::VarInt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::flow::{Host, Origin};

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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn authority() -> impl Strategy<Value = Authority> {
        let host = prop_oneof![
            "[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z]{2,8}){0,4}".prop_map(|name| name),
            any::<[u8; 4]>().prop_map(|bytes| std::net::Ipv4Addr::from(bytes).to_string()),
            any::<[u8; 16]>().prop_map(|bytes| format!("[{}]", std::net::Ipv6Addr::from(bytes))),
        ];
        (host, 1..=u16::MAX).prop_map(|(host, port)| Authority::new(&Host::parse(&host).unwrap(), port))
    }

    fn name() -> impl Strategy<Value = ConnectorName> {
        "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?".prop_map(|text| text.parse().unwrap())
    }

    fn connector_frame() -> impl Strategy<Value = ConnectorFrame> {
        prop_oneof![
            Just(ConnectorFrame::Hello),
            any::<[u8; 32]>().prop_map(|s| ConnectorFrame::Enrol(EnrolmentSecret::from_bytes(s))),
            any::<u64>().prop_map(|epoch| ConnectorFrame::Ack { epoch }),
            Just(ConnectorFrame::Heartbeat),
            Just(ConnectorFrame::Drain),
        ]
    }

    fn node_frame() -> impl Strategy<Value = NodeFrame> {
        prop_oneof![
            name().prop_map(|connector| NodeFrame::Welcome { connector }),
            prop_oneof![
                Just(Refusal::UnknownKey),
                Just(Refusal::BadToken),
                Just(Refusal::TooManyConnections)
            ]
            .prop_map(NodeFrame::Refused),
            (any::<u64>(), prop::collection::vec(authority(), 0..20))
                .prop_map(|(epoch, origins)| NodeFrame::Origins { epoch, origins }),
            Just(NodeFrame::Drain),
        ]
    }

    fn open_reply() -> impl Strategy<Value = OpenReply> {
        prop_oneof![
            Just(OpenReply::Opened),
            Just(OpenReply::Refused),
            Just(OpenReply::Draining),
            Just(OpenReply::OriginDown(DialFailure::NoAddress)),
            Just(OpenReply::OriginDown(DialFailure::ConnectionRefused)),
            Just(OpenReply::OriginDown(DialFailure::Timeout)),
            Just(OpenReply::OriginDown(DialFailure::Unreachable)),
        ]
    }

    /// The frame comes back from single bytes, asking for no byte beyond it, and what follows it stays.
    fn survives<F: Frame + PartialEq + Clone + fmt::Debug>(frame: &F) {
        let mut bytes = BytesMut::new();
        encode(frame, &mut bytes).unwrap();
        let mut trickle = BytesMut::new();
        for (index, byte) in bytes.iter().enumerate() {
            match decode::<F>(&mut trickle).unwrap() {
                Decoded::Missing(count) => assert!(count.get() <= bytes.len() - index),
                Decoded::Frame(early) => panic!("{early:?} before its end"),
            }
            trickle.put_u8(*byte);
        }
        assert_eq!(decode(&mut trickle), Ok(Decoded::Frame(frame.clone())));
        assert!(trickle.is_empty());
        bytes.put_slice(b"more");
        assert_eq!(decode(&mut bytes), Ok(Decoded::Frame(frame.clone())));
        assert_eq!(&bytes[..], b"more");
    }

    fn never_panics<F: Frame>(bytes: &[u8]) {
        let mut input = BytesMut::from(bytes);
        while let Ok(Decoded::Frame(_)) = decode::<F>(&mut input) {}
    }

    proptest! {
        #[test]
        fn frames_survive_the_wire(c in connector_frame(), n in node_frame(), r in open_reply(),
                                   epoch: u64, origin in authority()) {
            survives(&c);
            survives(&n);
            survives(&r);
            survives(&OpenRequest { epoch, origin });
        }

        #[test]
        fn authorities_have_one_spelling(authority in authority()) {
            prop_assert_eq!(authority.as_str().parse::<Authority>(), Ok(authority.clone()));
        }

        #[test]
        fn no_bytes_panic_the_decoder(mut bytes in prop::collection::vec(any::<u8>(), 0..200), honest: bool) {
            // An honest length leads the fuzz into the body, where random lengths would seldom arrive.
            if honest && bytes.len() >= FRAME_HEADER {
                let length = u32::try_from(bytes.len() - FRAME_HEADER).unwrap();
                bytes[..FRAME_HEADER].copy_from_slice(&length.to_be_bytes());
            }
            never_panics::<ConnectorFrame>(&bytes);
            never_panics::<NodeFrame>(&bytes);
            never_panics::<OpenRequest>(&bytes);
            never_panics::<OpenReply>(&bytes);
        }

        #[test]
        fn one_flipped_bit_never_panics(frame in node_frame(), bit: prop::sample::Index) {
            let mut bytes = BytesMut::new();
            encode(&frame, &mut bytes).unwrap();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            never_panics::<NodeFrame>(&bytes);
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_its_body_arrives() {
        let mut bytes = BytesMut::from(&u32::MAX.to_be_bytes()[..]);
        assert_eq!(
            decode::<ConnectorFrame>(&mut bytes),
            Err(WireError::TooLong { length: u32::MAX as usize, limit: ConnectorFrame::LIMIT })
        );
    }

    #[test]
    fn a_body_with_a_tail_is_refused() {
        let mut bytes = BytesMut::from(&[0, 0, 0, 2, 0, 0][..]);
        assert_eq!(decode::<ConnectorFrame>(&mut bytes), Err(WireError::Body));
    }

    #[test]
    fn names_in_frames_are_checked() {
        #[derive(Serialize)]
        enum Forged {
            Welcome { connector: String },
        }
        let body = postcard::to_stdvec(&Forged::Welcome { connector: "Office\n".into() }).unwrap();
        let mut bytes = BytesMut::new();
        bytes.put_u32(u32::try_from(body.len()).unwrap());
        bytes.put_slice(&body);
        assert_eq!(decode::<NodeFrame>(&mut bytes), Err(WireError::Body));
        for text in ["", "-a", "a-", "A", "a b", "a.b", &"a".repeat(64)] {
            assert!(text.parse::<ConnectorName>().is_err(), "{text}");
        }
        for text in ["a", ":1", "a:0", "a:99999", "a b:1", "[::1]", "::1:80"] {
            assert!(text.parse::<Authority>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_longest_lists_fit_and_longer_ones_are_refused() {
        let label = "a".repeat(63);
        let host = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        let longest = Authority::new(&Host::parse(&host).unwrap(), 65535);
        assert_eq!(longest.as_str().len(), MAX_AUTHORITY);
        let origins = |count| NodeFrame::Origins { epoch: u64::MAX, origins: vec![longest.clone(); count] };
        let mut bytes = BytesMut::new();
        encode(&origins(MAX_ORIGINS), &mut bytes).unwrap();
        assert!(matches!(decode::<NodeFrame>(&mut bytes), Ok(Decoded::Frame(_))));
        assert!(matches!(encode(&origins(MAX_ORIGINS + 100), &mut bytes), Err(WireError::TooLong { .. })));
        let request = OpenRequest { epoch: u64::MAX, origin: longest };
        encode(&request, &mut bytes).unwrap();
    }

    #[test]
    fn the_secret_has_no_debug() {
        let frame = ConnectorFrame::Enrol(EnrolmentSecret::from_bytes([7; 32]));
        assert!(!format!("{frame:?}").contains('7'));
    }
}

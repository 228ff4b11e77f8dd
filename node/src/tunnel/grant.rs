//! The signed grant: what the node says to a connector through a client, and the connector believes of nobody else.
//!
//! ```text
//! public key 65 | signature 64 | body          65: uncompressed point (SEC 1 §2.3.3), 64: r and s (RFC 7518 §3.4)
//! ```
//!
//! The signature is ECDSA on P-256 with SHA-256, by the node's tunnel key, over a label and the body (postcard). The key
//! travels with it and counts only if its hash is the one that the connector was enrolled with. A grant names both ends'
//! keys, so it is of use to one client at one connector, and the session, so it is of use once: whoever makes the relay
//! carry packets elsewhere opens nothing with that.
//!
//! A false accept dials a private address for somebody whom no policy let in. A false reject costs the client the
//! session, and a sentence that says so. Pure: no clock, no socket.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::flow::UnixTime;

use super::identity::{KeyHash, TunnelKey, sha256};
use super::relay::SessionRef;
use super::wire::Authority;

/// What the signature is over begins with this.
const LABEL: &[u8] = b"portcullis private session grant";

/// The layout of the body.
const VERSION: u8 = 1;

const POINT_LEN: usize = 65;
const SIGNATURE_LEN: usize = 64;

/// What precedes the point in the SubjectPublicKeyInfo of a P-256 key (RFC 5480 §2).
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Bytes of the longest grant.
pub const MAX_GRANT: usize = 2048;

/// Ranges of ports of one application.
pub const MAX_PORT_RANGES: usize = 64;

/// Clocks of node and connector may differ by so much.
const LEEWAY: Duration = Duration::from_secs(60);

/// Who may reach what, through whom, until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub session: SessionRef,
    /// The person's or the service's name, for the connector's log.
    pub person: String,
    /// The application's name.
    pub application: String,
    pub protocol: Protocol,
    pub reach: Reach,
    /// The client's device key.
    pub client: KeyHash,
    /// The connector's tunnel key.
    pub connector: KeyHash,
    pub not_after: UnixTime,
}

/// What the session carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP connections, one a stream.
    Tcp,
    /// UDP flows, in QUIC datagrams.
    Udp,
}

/// Where a grant leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reach {
    /// One address.
    Host(Authority),
    /// Every address of a network, at these ports: first and last, both included. The client chooses.
    Network { prefix: IpNet, ports: Vec<(u16, u16)> },
}

impl Reach {
    /// What is to be dialled for a client that asked for `wanted`; nothing where that is not within.
    ///
    /// A network has no names: what a name stands for is decided by whoever answers for it.
    pub fn resolve(&self, wanted: Option<&Authority>) -> Option<Authority> {
        match (self, wanted) {
            (Self::Host(host), None) => Some(host.clone()),
            (Self::Host(host), Some(wanted)) => (host == wanted).then(|| host.clone()),
            (Self::Network { .. }, None) => None,
            (Self::Network { prefix, ports }, Some(wanted)) => {
                let address: IpAddr = wanted.host().parse().ok()?;
                let address = address.to_canonical();
                let within = prefix.contains(&address)
                    && ports.iter().any(|(first, last)| range(*first, *last).contains(&wanted.port()));
                let text = std::net::SocketAddr::new(address, wanted.port()).to_string();
                if within { text.parse().ok() } else { None }
            }
        }
    }
}

const fn range(first: u16, last: u16) -> RangeInclusive<u16> {
    first..=last
}

/// A grant as it travels: checked by nobody yet.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SignedGrant(Vec<u8>);

/// Why a grant cannot be made: our fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    #[error("the node's key does not sign")]
    Key,
    #[error("the grant is longer than {MAX_GRANT} bytes or has more than {MAX_PORT_RANGES} port ranges")]
    TooLong,
}

/// Why a grant opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    #[error("it is malformed")]
    Malformed,
    #[error("another node than ours signed it, or nobody")]
    NotOurNode,
    #[error("it is of a version that is not spoken here")]
    Version,
    #[error("it is for another session")]
    Session,
    #[error("it is for another connector")]
    Connector,
    #[error("it is for another client")]
    Client,
    #[error("it has expired")]
    Expired,
}

/// What the connector knows by itself, and a grant must agree with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The node's key, from the enrolment.
    pub node: KeyHash,
    /// The session that the node offered over the control connection.
    pub session: SessionRef,
    /// Our own key.
    pub connector: KeyHash,
    /// The key that the peer of the end-to-end connection proved to hold.
    pub client: KeyHash,
    pub now: UnixTime,
}

#[derive(Serialize, Deserialize)]
struct Body {
    version: u8,
    index: u32,
    generation: u32,
    person: String,
    application: String,
    protocol: Protocol,
    reach: Reach,
    client: KeyHash,
    connector: KeyHash,
    not_after: i64,
}

impl Grant {
    /// Signs with the node's tunnel key.
    ///
    /// # Errors
    /// When the grant is too long for its carrier, or the key does not sign.
    pub fn sign(&self, node: &TunnelKey) -> Result<SignedGrant, SignError> {
        if matches!(&self.reach, Reach::Network { ports, .. } if ports.len() > MAX_PORT_RANGES) {
            return Err(SignError::TooLong);
        }
        let body = postcard::to_stdvec(&self.body()).map_err(|_| SignError::TooLong)?;
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, node.private_key().secret_der())
                .map_err(|_| SignError::Key)?;
        let signature = pair.sign(&SystemRandom::new(), &signed(&body)).map_err(|_| SignError::Key)?;
        let bytes = [pair.public_key().as_ref(), signature.as_ref(), &body].concat();
        if bytes.len() > MAX_GRANT { Err(SignError::TooLong) } else { Ok(SignedGrant(bytes)) }
    }

    /// Whether it opens nothing any more, by a clock that may differ a little from the node's.
    pub fn is_over(&self, now: UnixTime) -> bool {
        now > self.not_after.after(LEEWAY)
    }

    fn body(&self) -> Body {
        Body {
            version: VERSION,
            index: self.session.index,
            generation: self.session.generation,
            person: self.person.clone(),
            application: self.application.clone(),
            protocol: self.protocol,
            reach: self.reach.clone(),
            client: self.client,
            connector: self.connector,
            not_after: self.not_after.0,
        }
    }
}

impl SignedGrant {
    /// The bytes of a grant, to be verified.
    pub const fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The grant, if the node made it for exactly this session between exactly these two.
    ///
    /// # Errors
    /// Says what does not agree; the signature is looked at first.
    pub fn verify(&self, expected: &Expected) -> Result<Grant, GrantError> {
        let Expected { node, session, connector, client, now } = *expected;
        let grant = self.verify_offer(node, session, connector, now)?;
        if grant.client == client { Ok(grant) } else { Err(GrantError::Client) }
    }

    /// As [`Self::verify`], at a connector that is offered the session and has no client yet: whoever comes has to prove
    /// the key that the grant names.
    ///
    /// # Errors
    /// As there.
    pub fn verify_offer(
        &self,
        node: KeyHash,
        session: SessionRef,
        connector: KeyHash,
        now: UnixTime,
    ) -> Result<Grant, GrantError> {
        let grant = self.of_node(node)?;
        if grant.session != session {
            Err(GrantError::Session)
        } else if grant.connector != connector {
            Err(GrantError::Connector)
        } else if grant.is_over(now) {
            Err(GrantError::Expired)
        } else {
            Ok(grant)
        }
    }

    /// The grant, if the node made it for this client, whichever its session: what the node believes of a client that comes
    /// back.
    ///
    /// # Errors
    /// As of [`verify`](Self::verify).
    pub(super) fn for_client(
        &self,
        node: KeyHash,
        client: KeyHash,
        now: UnixTime,
    ) -> Result<Grant, GrantError> {
        let grant = self.of_node(node)?;
        if grant.client != client {
            Err(GrantError::Client)
        } else if now >= grant.not_after {
            Err(GrantError::Expired)
        } else {
            Ok(grant)
        }
    }

    fn of_node(&self, node: KeyHash) -> Result<Grant, GrantError> {
        if self.0.len() > MAX_GRANT {
            return Err(GrantError::Malformed);
        }
        let (point, rest) = self.0.split_first_chunk::<POINT_LEN>().ok_or(GrantError::Malformed)?;
        let (signature, body) = rest.split_first_chunk::<SIGNATURE_LEN>().ok_or(GrantError::Malformed)?;
        let hash = sha256(&[&SPKI_PREFIX[..], point].concat());
        if KeyHash::from_bytes(hash) != node {
            return Err(GrantError::NotOurNode);
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .verify(&signed(body), signature)
            .map_err(|_| GrantError::NotOurNode)?;
        if body.first() != Some(&VERSION) {
            return Err(GrantError::Version);
        }
        match postcard::take_from_bytes::<Body>(body) {
            Ok((body, [])) => Ok(body.into()),
            Ok(_) | Err(_) => Err(GrantError::Malformed),
        }
    }
}

impl std::fmt::Debug for SignedGrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SignedGrant({} bytes)", self.0.len())
    }
}

impl From<Body> for Grant {
    fn from(body: Body) -> Self {
        let Body { version: _, index, generation, person, application, protocol, reach, .. } = body;
        Self {
            session: SessionRef { index, generation },
            person,
            application,
            protocol,
            reach,
            client: body.client,
            connector: body.connector,
            not_after: UnixTime(body.not_after),
        }
    }
}

fn signed(body: &[u8]) -> Vec<u8> {
    [LABEL, body].concat()
}

#[cfg(test)]
mod tests;

//! The three datagrams by which an end proves where it is: every byte, size and tag.
//!
//! ```text
//! Bind       01 | ticket 16 | session index 4 | leg 1 | counter 8 | tag 16     46 bytes   end → node
//! Challenge  02 | observed address 16, port 2 |         nonce 8   | tag 16     43 bytes   node → end
//! Answer     03 | ticket 16 | session index 4 | leg 1 | nonce 8   | tag 16     46 bytes   end → node
//! ```
//!
//! Numbers are big endian; an IPv4 address is IPv4-mapped (RFC 4291 §2.5.5.2). The first byte's two top bits are clear,
//! so that none of these is ever taken for QUIC, whose fixed bit is set (RFC 9443). The ticket is the node's own: a
//! packet filter can check it without state, and here it is compared to the one that was issued.
//!
//! A tag is HMAC-SHA-256 (RFC 2104), cut to 16 bytes, under the leg's [`BindKey`], over a label, the kind, session index
//! and generation, the leg, and what follows. An Answer's tag also covers the observed address, which it does not carry:
//! the node puts in the one it sees. The nonce has 64 bits, as RFC 9000's PATH_CHALLENGE has, and lives for seconds.
//!
//! **What a mistake costs.** A false accept of a Bind makes the node send 43 bytes to whoever was named; of an Answer,
//! one leg of one session leads elsewhere: its end-to-end encrypted packets go to somebody who cannot read them. A false
//! reject costs the end one retry. Pure: no clock, no socket, no randomness.

use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::{constant_time, hmac};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::tuple::{Leg, SessionRef, canonical};

/// Bytes of a Bind and of an Answer.
pub const REQUEST_LEN: usize = 1 + TICKET_LEN + 4 + 1 + 8 + TAG_LEN;

/// Bytes of a Challenge: never more than of what it answers.
pub const CHALLENGE_LEN: usize = 1 + ADDRESS_LEN + NONCE_LEN + TAG_LEN;

pub const TICKET_LEN: usize = 16;
pub const NONCE_LEN: usize = 8;
pub const KEY_LEN: usize = 32;
const ADDRESS_LEN: usize = 16 + 2;
const TAG_LEN: usize = 16;

const _: () = assert!(CHALLENGE_LEN <= REQUEST_LEN);

const BIND: u8 = 1;
const CHALLENGE: u8 = 2;
const ANSWER: u8 = 3;

/// What tags are over begins with this; anything that changes their meaning changes it.
const LABEL: &[u8] = b"portcullis relay bind 1";

/// Label of the TLS exporter (RFC 8446 §7.5) that makes a bind key out of a control connection.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-portcullis-relay-bind";

/// Known to the node alone what it means; checked by whoever minted it.
pub type Ticket = [u8; TICKET_LEN];

/// Unpredictable, and new with every address that is asked to prove itself.
pub type Nonce = [u8; NONCE_LEN];

/// The secret of one leg of one session. It never travels: both sides of the control connection derive it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct BindKey([u8; KEY_LEN]);

/// A control connection whose TLS gives out no keys: its handshake is not over, or it is not TLS 1.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the control connection yields no bind key")]
pub struct NoBindKey;

impl BindKey {
    pub const fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// The key of `leg` of `session` on this control connection: the same on both of its sides, and on no other.
    ///
    /// # Errors
    /// When the connection's handshake is not over.
    pub fn export(control: &quinn::Connection, session: SessionRef, leg: Leg) -> Result<Self, NoBindKey> {
        let mut key = Self([0; KEY_LEN]);
        control
            .export_keying_material(&mut key.0, EXPORTER_LABEL, &scope(session, leg))
            .map_err(|_| NoBindKey)?;
        Ok(key)
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }

    fn tag(&self, kind: u8, scope: &[u8; SCOPE_LEN], rest: &[&[u8]]) -> Tag {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.0));
        context.update(LABEL);
        context.update(&[kind]);
        context.update(scope);
        for part in rest {
            context.update(part);
        }
        let full = context.sign();
        let mut tag = [0; TAG_LEN];
        tag.iter_mut().zip(full.as_ref()).for_each(|(to, from)| *to = *from);
        tag
    }
}

type Tag = [u8; TAG_LEN];

/// Whether a datagram is for the [`super::Binds`] rather than for QUIC or a relay flow.
pub fn is_request(datagram: &[u8]) -> bool {
    datagram.len() == REQUEST_LEN && matches!(datagram.first(), Some(&(BIND | ANSWER)))
}

/// Whether a datagram is for an [`super::End`].
pub fn is_challenge(datagram: &[u8]) -> bool {
    datagram.len() == CHALLENGE_LEN && datagram.first() == Some(&CHALLENGE)
}

/// A Bind: the end asks to be reached where this comes from. A counter is good once.
pub fn seal_bind(
    key: &BindKey,
    session: SessionRef,
    leg: Leg,
    ticket: &Ticket,
    counter: u64,
) -> [u8; REQUEST_LEN] {
    let counter = counter.to_be_bytes();
    let tag = key.tag(BIND, &scope(session, leg), &[ticket, &counter]);
    request(BIND, session, leg, ticket, counter, tag)
}

/// An Answer to a [`Challenge`].
pub fn seal_answer(
    key: &BindKey,
    session: SessionRef,
    leg: Leg,
    ticket: &Ticket,
    challenge: &Challenge,
) -> [u8; REQUEST_LEN] {
    let tag = answer_tag(key, session, leg, ticket, challenge);
    request(ANSWER, session, leg, ticket, challenge.nonce, tag)
}

/// What an end sends, taken apart but not believed: [`Request::prove`] makes something of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    kind: Kind,
    ticket: Ticket,
    index: u32,
    leg: Leg,
    number: [u8; 8],
    tag: Tag,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bind,
    Answer,
}

/// What the holder of the leg's key said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proven {
    Bind { counter: u64 },
    Answer { nonce: Nonce },
}

impl Request {
    /// Takes exactly the bytes of a Bind or an Answer, and nothing else.
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let datagram: &[u8; REQUEST_LEN] = datagram.try_into().ok()?;
        let (&[kind], rest) = datagram.split_first_chunk::<1>()?;
        let (ticket, rest) = rest.split_first_chunk::<TICKET_LEN>()?;
        let (index, rest) = rest.split_first_chunk::<4>()?;
        let (&[leg], rest) = rest.split_first_chunk::<1>()?;
        let (number, tag) = rest.split_first_chunk::<8>()?;
        Some(Self {
            kind: match kind {
                BIND => Kind::Bind,
                ANSWER => Kind::Answer,
                _ => return None,
            },
            ticket: *ticket,
            index: u32::from_be_bytes(*index),
            leg: leg_of(leg)?,
            number: *number,
            tag: tag.try_into().ok()?,
        })
    }

    pub const fn index(&self) -> u32 {
        self.index
    }

    pub const fn leg(&self) -> Leg {
        self.leg
    }

    pub const fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// What is said, if the holder of `key` said it for this generation of the session, and, for an Answer, about the
    /// address at which the node sees it.
    pub fn prove(&self, key: &BindKey, generation: u32, observed: SocketAddr) -> Option<Proven> {
        let session = SessionRef { index: self.index, generation };
        let (tag, proven) = match self.kind {
            Kind::Bind => (
                key.tag(BIND, &scope(session, self.leg), &[&self.ticket, &self.number]),
                Proven::Bind { counter: u64::from_be_bytes(self.number) },
            ),
            Kind::Answer => (
                answer_tag(key, session, self.leg, &self.ticket, &Challenge { observed, nonce: self.number }),
                Proven::Answer { nonce: self.number },
            ),
        };
        same(&tag, &self.tag).then_some(proven)
    }
}

/// "I see you at this address; if you hear this, say so."
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Challenge {
    pub observed: SocketAddr,
    pub nonce: Nonce,
}

impl Challenge {
    pub fn seal(&self, key: &BindKey, session: SessionRef, leg: Leg) -> [u8; CHALLENGE_LEN] {
        let address = address_bytes(self.observed);
        let tag = key.tag(CHALLENGE, &scope(session, leg), &[&address, &self.nonce]);
        let mut bytes = [0; CHALLENGE_LEN];
        fill(&mut bytes, &[&[CHALLENGE], &address, &self.nonce, &tag]);
        bytes
    }

    /// The challenge in a datagram, if the node made it for this leg.
    pub fn open(datagram: &[u8], key: &BindKey, session: SessionRef, leg: Leg) -> Option<Self> {
        let datagram: &[u8; CHALLENGE_LEN] = datagram.try_into().ok()?;
        let (&[kind], rest) = datagram.split_first_chunk::<1>()?;
        let (address, rest) = rest.split_first_chunk::<ADDRESS_LEN>()?;
        let (nonce, tag) = rest.split_first_chunk::<NONCE_LEN>()?;
        let expected = key.tag(CHALLENGE, &scope(session, leg), &[address, nonce]);
        (kind == CHALLENGE && same(&expected, tag))
            .then_some(Self { observed: address_of(address), nonce: *nonce })
    }
}

const SCOPE_LEN: usize = 4 + 4 + 1;

fn scope(session: SessionRef, leg: Leg) -> [u8; SCOPE_LEN] {
    let mut bytes = [0; SCOPE_LEN];
    fill(&mut bytes, &[&session.index.to_be_bytes(), &session.generation.to_be_bytes(), &[leg_byte(leg)]]);
    bytes
}

fn answer_tag(key: &BindKey, session: SessionRef, leg: Leg, ticket: &Ticket, challenge: &Challenge) -> Tag {
    let observed = address_bytes(challenge.observed);
    key.tag(ANSWER, &scope(session, leg), &[ticket, &challenge.nonce, &observed])
}

fn request(
    kind: u8,
    session: SessionRef,
    leg: Leg,
    ticket: &Ticket,
    number: [u8; 8],
    tag: Tag,
) -> [u8; REQUEST_LEN] {
    let mut bytes = [0; REQUEST_LEN];
    fill(&mut bytes, &[&[kind], ticket, &session.index.to_be_bytes(), &[leg_byte(leg)], &number, &tag]);
    bytes
}

fn fill(bytes: &mut [u8], parts: &[&[u8]]) {
    bytes.iter_mut().zip(parts.iter().copied().flatten()).for_each(|(to, from)| *to = *from);
}

const fn leg_byte(leg: Leg) -> u8 {
    match leg {
        Leg::Client => 0,
        Leg::Connector => 1,
    }
}

const fn leg_of(byte: u8) -> Option<Leg> {
    match byte {
        0 => Some(Leg::Client),
        1 => Some(Leg::Connector),
        _ => None,
    }
}

fn address_bytes(address: SocketAddr) -> [u8; ADDRESS_LEN] {
    let mapped = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut bytes = [0; ADDRESS_LEN];
    fill(&mut bytes, &[&mapped.octets(), &address.port().to_be_bytes()]);
    bytes
}

fn address_of(bytes: &[u8; ADDRESS_LEN]) -> SocketAddr {
    let [address @ .., high, low] = *bytes;
    canonical(SocketAddr::new(IpAddr::from(address), u16::from_be_bytes([high, low])))
}

fn same(tag: &Tag, other: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(tag, other).is_ok()
}

#[cfg(test)]
mod tests;

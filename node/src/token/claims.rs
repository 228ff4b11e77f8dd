//! The claims of both kinds of token.

use serde::{Deserialize, Serialize};

use crate::flow::{Aud, PersonId, Session, SessionId, UnixTime};
use crate::policy::Permit;

/// Which token is expected.
#[derive(Debug, Clone, Copy)]
pub enum Kind<'a> {
    Application(&'a Aud),
    Global,
}

/// Claims of a token of this node. Strict: a claim of another type is no token of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The application's audience tag; a global token's is the issuer.
    pub aud: Vec<String>,
    pub email: String,
    pub exp: i64,
    pub iat: i64,
    pub nbf: i64,
    pub iss: String,
    /// `app` or `org`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The session.
    pub identity_nonce: SessionId,
    /// Stable identifier of the person at this node, a UUID derived from provider and subject.
    pub sub: String,
    /// ISO 3166 code of where the login came from; empty where unknown.
    pub country: String,
}

impl Claims {
    pub(super) fn application(issuer: &str, permit: &Permit, session: &Session, now: UnixTime) -> Self {
        let aud = permit.application().aud.as_str().to_owned();
        Self::new(issuer, "app", aud, session, permit.token_expires_at(), now)
    }

    pub(super) fn global(issuer: &str, session: &Session, now: UnixTime) -> Self {
        Self::new(issuer, "org", issuer.to_owned(), session, session.expires_at, now)
    }

    fn new(issuer: &str, kind: &str, aud: String, session: &Session, exp: UnixTime, now: UnixTime) -> Self {
        Self {
            aud: vec![aud],
            email: session.email.as_ref().map_or_else(String::new, ToString::to_string),
            exp: exp.0,
            iat: now.0,
            nbf: now.0,
            iss: issuer.to_owned(),
            kind: kind.to_owned(),
            identity_nonce: session.id,
            sub: subject(&session.person),
            country: String::new(),
        }
    }

    pub(super) fn is_for(&self, kind: Kind<'_>) -> bool {
        match kind {
            Kind::Application(aud) => self.kind == "app" && self.aud == [aud.as_str()],
            Kind::Global => self.kind == "org" && self.aud == [self.iss.as_str()],
        }
    }
}

/// A UUID (version 8, RFC 9562 §5.8) derived from who the person is.
pub fn subject(person: &PersonId) -> String {
    let mut text = b"portcullis person\0".to_vec();
    text.extend_from_slice(person.provider.as_bytes());
    text.push(0);
    text.extend_from_slice(person.subject.as_bytes());
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &text);
    let mut out = String::with_capacity(36);
    for (index, byte) in digest.as_ref().iter().take(16).enumerate() {
        let byte = match index {
            6 => byte & 0x0f | 0x80,
            8 => byte & 0x3f | 0x80,
            _ => *byte,
        };
        if matches!(index, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        out.push_str(&format!("{byte:02x}"));
    }
    out
}

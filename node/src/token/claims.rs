//! The claims of every kind of token.

use serde::{Deserialize, Serialize};

use crate::flow::{Aud, ClientId, PersonId, Session, SessionId, UnixTime};
use crate::policy::Permit;

/// Which token is expected.
#[derive(Debug, Clone, Copy)]
pub enum Kind<'a> {
    Application(&'a Aud),
    Global,
    /// The access token of an access client.
    Client,
}

/// The key whose possession makes a token worth something (RFC 7800 §3.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// SHA-256 of the key's SubjectPublicKeyInfo, 64 lower-case hexadecimal digits.
    #[serde(rename = "spki#S256")]
    key: String,
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
    /// `app`, `org` or `client`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The session.
    pub identity_nonce: SessionId,
    /// Stable identifier of the person at this node, a UUID derived from provider and subject.
    pub sub: String,
    /// ISO 3166 code of where the login came from; empty where unknown.
    pub country: String,
    /// Of a client's access token: the device key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cnf: Option<Confirmation>,
    /// The login of the client that the token was made for, with which it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_login: Option<ClientId>,
    /// Marks an application's token that was made for a client: it may come in a header, without a binding cookie.
    #[serde(default, skip_serializing_if = "is_false")]
    pub client: bool,
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
            cnf: None,
            client_login: None,
            client: false,
        }
    }

    /// An access token for the client whose device key has the hash `key`.
    pub(super) fn client(
        issuer: &str,
        session: &Session,
        client: ClientId,
        key: &[u8; 32],
        exp: UnixTime,
        now: UnixTime,
    ) -> Self {
        Self {
            cnf: Some(Confirmation { key: hex(key) }),
            client_login: Some(client),
            ..Self::new(issuer, "client", issuer.to_owned(), session, exp, now)
        }
    }

    /// Whether the token is bound to the key with this hash.
    pub fn is_bound_to(&self, key: &[u8; 32]) -> bool {
        self.cnf.as_ref().is_some_and(|confirmation| confirmation.key == hex(key))
    }

    pub(super) fn is_for(&self, kind: Kind<'_>) -> bool {
        match kind {
            Kind::Application(aud) => self.kind == "app" && self.aud == [aud.as_str()],
            Kind::Global => self.kind == "org" && self.aud == [self.iss.as_str()],
            Kind::Client => self.kind == "client" && self.aud == [self.iss.as_str()],
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
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

//! The claims of every kind of token.

use serde::{Deserialize, Serialize};

use crate::flow::{Aud, ClientId, PersonId, Service, Session, SessionId, UnixTime};
use crate::policy::Permit;

/// Which token is expected.
#[derive(Debug, Clone, Copy)]
pub enum Kind<'a> {
    Application(&'a Aud),
    Global,
    /// The same two, minted for a client that is no browser.
    ApplicationOfClient(&'a Aud),
    GlobalOfClient,
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
    /// Minted for a client that is no browser. Such a token is good in the `Cf-Access-Token` header only, and no
    /// origin ever sees one: otherwise any origin could replay the assertions of its users.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub client: bool,
}

/// Claims of the assertion about a service. The node itself accepts no such token: a service proves itself by its
/// credential, every time.
#[derive(Debug, Serialize)]
pub(super) struct ServiceClaims {
    aud: [String; 1],
    exp: i64,
    iat: i64,
    nbf: i64,
    iss: String,
    #[serde(rename = "type")]
    kind: &'static str,
    /// Always empty: there is no person.
    sub: &'static str,
    /// The client id.
    common_name: String,
}

impl ServiceClaims {
    pub(super) fn new(issuer: &str, permit: &Permit, service: &Service, now: UnixTime) -> Self {
        Self {
            aud: [permit.application().aud.as_str().to_owned()],
            exp: permit.token_expires_at().0,
            iat: now.0,
            nbf: now.0,
            iss: issuer.to_owned(),
            kind: "app",
            sub: "",
            common_name: service.client_id.to_string(),
        }
    }
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

    /// The same claims, for a client that is no browser, and its login where it has one.
    pub(super) fn of_client(self, login: Option<ClientId>) -> Self {
        Self { client: true, client_login: login, ..self }
    }

    /// The same claims, no longer than that.
    pub(super) fn until(self, at: UnixTime) -> Self {
        Self { exp: self.exp.min(at.0), ..self }
    }

    pub(super) fn is_for(&self, kind: Kind<'_>) -> bool {
        let (kind, aud, client) = match kind {
            Kind::Application(aud) => ("app", aud.as_str(), false),
            Kind::ApplicationOfClient(aud) => ("app", aud.as_str(), true),
            Kind::Global => ("org", self.iss.as_str(), false),
            Kind::GlobalOfClient => ("org", self.iss.as_str(), true),
            Kind::Client => ("client", self.iss.as_str(), false),
        };
        self.kind == kind && self.aud == [aud] && self.client == client
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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

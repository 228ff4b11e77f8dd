//! Tokens: the assertion that applications verify, and the cookie that binds it to a browser.
//!
//! RS256 JWTs (RFC 7519) of three kinds: the global token of a login (`type` = `org`), an application's token
//! (`type` = `app`), which is also the assertion its origin receives, and the access token of an access client (`type` =
//! `client`). A token proves nothing alone: the session it names must be live, a token that comes as a cookie needs the
//! binding cookie of the same session and host, and an access token the device key it is bound to.
//!
//! A false accept here is somebody else's identity; a false reject is one more trip through the login.

mod binding;
mod claims;
pub mod dpop;
mod keys;
mod verified;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::flow::{Aud, ClientId, Host, PersonId, Saas, Session, SessionId, UnixTime};
use crate::policy::{Permit, PermitOf};
use crate::store::{Store, StoreError};

pub use claims::{Claims, Confirmation, Kind, subject};
pub use keys::{KeyState, KeySummary};

use binding::BindingKey;
use claims::ServiceClaims;
use keys::KeyRing;
use verified::Digest;

/// A token longer than this is refused before it is looked at.
const LONGEST: usize = 4096;
/// The same for an ID token that comes back as a hint; its groups may be many.
const LONGEST_HINT: usize = 12 * 1024;
/// How far clocks may differ, in seconds.
const SKEW: i64 = 60;

/// Life of a client's access token.
const CLIENT_LIFE: Duration = Duration::from_secs(15 * 60);

/// Why a token was not made or not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("the token is longer than {LONGEST} characters")]
    TooLong,
    #[error("the token is malformed or not signed by a key of this node")]
    Invalid,
    #[error("the token is expired or not yet valid")]
    Time,
    #[error("the token is for another audience or of another kind")]
    Audience,
    #[error("there is nobody to vouch for")]
    Nobody,
    #[error("a signing key cannot be used: {0}")]
    Key(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes and verifies tokens. Clones share the keys.
#[derive(Clone)]
pub struct Tokens {
    issuer: Arc<str>,
    ring: Arc<RwLock<Arc<KeyRing>>>,
    binding: Arc<BindingKey>,
    pairwise: Arc<aws_lc_rs::hmac::Key>,
    store: Store,
}

impl Tokens {
    /// Reads the keys, making the first ones where there are none. `domain` is the auth domain with its public port
    /// (`access.example.com` or `access.example.com:8443`).
    pub async fn load(store: Store, authority: &str, now: UnixTime) -> Result<Self, TokenError> {
        let ring = KeyRing::load(&store, now).await?;
        let secret: Zeroizing<Vec<u8>> =
            store.secret("binding", || crate::clock::random::<32>().to_vec()).await?;
        let pairwise: Zeroizing<Vec<u8>> =
            store.secret("pairwise", || crate::clock::random::<32>().to_vec()).await?;
        Ok(Self {
            issuer: format!("https://{authority}").into(),
            ring: Arc::new(RwLock::new(Arc::new(ring))),
            binding: Arc::new(BindingKey::new(&secret)),
            pairwise: Arc::new(aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &pairwise)),
            store,
        })
    }

    /// The issuer of every token: `https://` and the auth domain.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The token of an application, made from a permit; a bypass has nobody to make one for.
    pub fn mint_application(&self, permit: &Permit, now: UnixTime) -> Result<Option<String>, TokenError> {
        if let Some(service) = permit.service() {
            let claims = ServiceClaims::new(&self.issuer, permit, service, now);
            return self.ring().sign(&claims, now).map(Some);
        }
        let Some(session) = permit.session() else { return Ok(None) };
        let claims = Claims::application(&self.issuer, permit, session, now);
        self.ring().sign(&claims, now).map(Some)
    }

    /// The access token of the client that logged in as `client` and holds the device key with the hash `key`, and when
    /// it ends: never after the session.
    pub fn mint_client(
        &self,
        session: &Session,
        client: ClientId,
        key: &[u8; 32],
        now: UnixTime,
    ) -> Result<(String, UnixTime), TokenError> {
        let exp = now.after(CLIENT_LIFE).min(session.expires_at);
        let claims = Claims::client(&self.issuer, session, client, key, exp, now);
        Ok((self.ring().sign(&claims, now)?, exp))
    }

    /// The token of an application for a client that is no browser: good in the `Cf-Access-Token` header only. Only a
    /// person has one. Where the client has a login of its own, the token ends with that `login`, too.
    pub fn mint_application_for_client(
        &self,
        permit: &Permit,
        login: Option<ClientId>,
        now: UnixTime,
    ) -> Result<Option<String>, TokenError> {
        let Some(session) = permit.session() else { return Ok(None) };
        let claims = Claims::application(&self.issuer, permit, session, now).of_client(login);
        self.ring().sign(&claims, now).map(Some)
    }

    /// The global token of a login for a client that is no browser: worth tokens for that client, and no login of a
    /// browser. It ends with the client's `login`, and at `expires_at`.
    pub fn mint_global_for_client(
        &self,
        session: &Session,
        login: ClientId,
        expires_at: UnixTime,
        now: UnixTime,
    ) -> Result<String, TokenError> {
        let claims = Claims::global(&self.issuer, session, now).of_client(Some(login)).until(expires_at);
        self.ring().sign(&claims, now)
    }

    /// The global token of a login.
    pub fn mint_global(&self, session: &Session, now: UnixTime) -> Result<String, TokenError> {
        self.ring().sign(&Claims::global(&self.issuer, session, now), now)
    }

    /// The ID token for an application elsewhere, about the person whom policy let sign in there.
    pub fn mint_id_token(
        &self,
        permit: PermitOf<'_, Saas>,
        claims: &Map<String, Value>,
        now: UnixTime,
    ) -> Result<String, TokenError> {
        if permit.permit().session().is_none() {
            return Err(TokenError::Nobody);
        }
        self.ring().sign(claims, now)
    }

    /// A logout token (OpenID Connect Back-Channel Logout 1.0 §2.4): it lets nobody in anywhere.
    pub fn mint_logout(&self, claims: &Map<String, Value>, now: UnixTime) -> Result<String, TokenError> {
        self.ring().sign_as("logout+jwt", claims, now)
    }

    /// The claims of an ID token that this node has signed, expired or not: good to tell whose logout is asked for, and
    /// nothing else. Issuer and audience are for the caller to check.
    pub fn hinted(&self, jwt: &str, now: UnixTime) -> Option<Map<String, Value>> {
        if jwt.len() > LONGEST_HINT {
            return None;
        }
        let header = jsonwebtoken::decode_header(jwt).ok()?;
        if header.typ.as_deref() != Some("JWT") {
            return None;
        }
        let ring = self.ring();
        let key = ring.verifier(header.kid.as_deref()?, now)?;
        let mut validation = Validation::new(Algorithm::RS256);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Some(jsonwebtoken::decode(jwt, key, &validation).ok()?.claims)
    }

    /// What an application elsewhere knows a person as: stable there, and another one everywhere else (OpenID Connect
    /// Core 1.0 §8.1). 43 characters of base64url.
    pub fn pairwise(&self, application: &Aud, person: &PersonId) -> String {
        let mut message = b"portcullis pairwise\0".to_vec();
        for part in [application.as_str(), &person.provider, &person.subject] {
            message.extend_from_slice(part.as_bytes());
            message.push(0);
        }
        URL_SAFE_NO_PAD.encode(aws_lc_rs::hmac::sign(&self.pairwise, &message))
    }

    /// The public keys as a JSON Web Key Set (RFC 7517 §5) and no more.
    pub fn jwks(&self) -> String {
        self.ring().jwks().to_owned()
    }

    /// Verifies signature, kind, audience, issuer and time: a signature once, as long as this is remembered, the rest each time.
    /// The caller still has to look up the session.
    pub fn verify(&self, jwt: &str, kind: Kind<'_>, now: UnixTime) -> Result<Claims, TokenError> {
        if jwt.len() > LONGEST {
            return Err(TokenError::TooLong);
        }
        let header = jsonwebtoken::decode_header(jwt).map_err(|_| TokenError::Invalid)?;
        let kid = header.kid.as_deref().ok_or(TokenError::Invalid)?;
        let ring = self.ring();
        let key: &DecodingKey = ring.verifier(kid, now).ok_or(TokenError::Invalid)?;
        let digest = Digest::of(jwt).ok_or(TokenError::Invalid)?;
        let claims: Claims = if ring.verified().has(&digest) {
            jsonwebtoken::dangerous::insecure_decode_claims(jwt).map_err(|_| TokenError::Invalid)?
        } else {
            let mut validation = Validation::new(Algorithm::RS256);
            // Time and audience are checked below, by the given clock and exactly.
            validation.validate_exp = false;
            validation.validate_aud = false;
            validation.required_spec_claims.clear();
            let decoded =
                jsonwebtoken::decode::<Claims>(jwt, key, &validation).map_err(|_| TokenError::Invalid)?;
            ring.verified().add(digest);
            decoded.claims
        };
        if claims.iss != *self.issuer || !claims.is_for(kind) {
            return Err(TokenError::Audience);
        }
        if claims.exp <= now.0 || claims.nbf.saturating_sub(SKEW) > now.0 {
            return Err(TokenError::Time);
        }
        Ok(claims)
    }

    /// The document at `/cdn-cgi/access/certs`: `keys` (RFC 7517), `public_cert` and `public_certs`.
    pub fn certs(&self) -> String {
        self.ring().certs().to_owned()
    }

    /// The value of the binding cookie: it proves that its browser holds `session` on `host`.
    pub fn binding(&self, session: &SessionId, host: &Host) -> String {
        self.binding.bind(session, host)
    }

    /// The session that a binding cookie proves for `host`.
    pub fn check_binding(&self, cookie: &str, host: &Host) -> Option<SessionId> {
        self.binding.check(cookie, host)
    }

    /// The keys and what they may do, for administrators.
    pub fn keys(&self, now: UnixTime) -> Vec<KeySummary> {
        self.ring().summary(now)
    }

    /// Makes the next key when it is due, so that it is published long before its first use. Says whether it did.
    pub async fn rotate_if_due(&self, now: UnixTime) -> Result<bool, TokenError> {
        let Some(next) = self.ring().with_next_if_due(now)? else { return Ok(false) };
        self.replace(next).await?;
        Ok(true)
    }

    /// Starts a rotation: a new key is published now and signs a day later. With `now_at_once` the key is
    /// compromised: the new one signs at once, all others are forgotten, and everybody logs in again.
    pub async fn rotate(&self, at_once: bool, now: UnixTime) -> Result<(), TokenError> {
        let next = if at_once { KeyRing::generate(now)? } else { self.ring().with_next(now)? };
        self.replace(next).await
    }

    async fn replace(&self, ring: KeyRing) -> Result<(), TokenError> {
        self.store.replace_signing_keys(ring.stored()).await?;
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ring);
        Ok(())
    }

    fn ring(&self) -> Arc<KeyRing> {
        Arc::clone(&self.ring.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The 32 bytes of 64 lower-case hexadecimal digits, as key hashes are written.
pub(crate) fn hash_of_hex(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    let (digits, rest) = text.as_bytes().as_chunks::<2>();
    if digits.len() != hash.len() || !rest.is_empty() {
        return None;
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    for (byte, [high, low]) in hash.iter_mut().zip(digits) {
        *byte = value(*high)? << 4 | value(*low)?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests;

//! The signing keys: made on first start, rotated with overlap.
//!
//! A key is published at least a day before it signs, signs for six weeks, and stays published until the last token
//! it signed has expired (sessions last 30 days at the most).

use std::time::Duration;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use serde::Serialize;
use serde_json::json;
use zeroize::Zeroizing;

use crate::flow::UnixTime;
use crate::store::{SigningKey, Store};

use super::TokenError;
use super::verified::Verified;

const DAY: Duration = Duration::from_secs(86_400);
const SIGN_FOR: Duration = Duration::from_secs(42 * 86_400);
/// The next key is made this long before the present one stops signing.
const PUBLISH_AHEAD: Duration = Duration::from_secs(2 * 86_400);
/// The longest life of a token (a global session lasts 30 days at the most), and a day to spare.
const PUBLISH_AFTER: Duration = Duration::from_secs(31 * 86_400);

/// What a key does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// Published, signs later.
    Next,
    /// Signs now.
    Signing,
    /// Published until its last token has expired.
    Retired,
}

/// A key as administrators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct KeySummary {
    pub kid: String,
    pub state: KeyState,
    pub sign_from: UnixTime,
    pub sign_until: UnixTime,
    pub publish_until: UnixTime,
}

/// Every published key, parsed, and the document that publishes them.
pub(super) struct KeyRing {
    keys: Vec<Loaded>,
    certs: String,
    jwks: String,
    verified: Verified,
}

struct Loaded {
    stored: SigningKey,
    signer: EncodingKey,
    verifier: DecodingKey,
    jwk: serde_json::Value,
}

impl KeyRing {
    pub(super) async fn load(store: &Store, now: UnixTime) -> Result<Self, TokenError> {
        let stored = store.signing_keys(now).await?;
        if stored.iter().any(|key| key.sign_until > now) {
            return Self::parse(stored);
        }
        // The first start, or the node was off for longer than a key signs.
        let mut all = stored;
        all.push(new_key(now)?);
        let ring = Self::parse(all)?;
        store.replace_signing_keys(ring.stored()).await?;
        Ok(ring)
    }

    /// One new key that signs at once, and nothing else.
    pub(super) fn generate(now: UnixTime) -> Result<Self, TokenError> {
        Self::parse(vec![new_key(now)?])
    }

    /// With a further key that signs in a day, when the present ones leave.
    pub(super) fn with_next(&self, now: UnixTime) -> Result<Self, TokenError> {
        let turn = now.after(DAY);
        let mut all = self.stored();
        all.retain(|key| key.sign_from <= now);
        for key in &mut all {
            key.sign_until = key.sign_until.min(turn);
            key.publish_until = key.publish_until.min(turn.after(PUBLISH_AFTER));
        }
        all.push(new_key(turn)?);
        Self::parse(all)
    }

    pub(super) fn with_next_if_due(&self, now: UnixTime) -> Result<Option<Self>, TokenError> {
        let Some(end) = self.keys.iter().map(|key| key.stored.sign_until).max() else {
            return Self::generate(now).map(Some);
        };
        if end > now.after(PUBLISH_AHEAD) {
            return Ok(None);
        }
        let mut all = self.stored();
        all.push(new_key(end.max(now))?);
        Self::parse(all).map(Some)
    }

    pub(super) fn sign(&self, claims: &impl Serialize, now: UnixTime) -> Result<String, TokenError> {
        self.sign_as("JWT", claims, now)
    }

    /// Signs a token with another `typ` in its header.
    pub(super) fn sign_as(
        &self,
        kind: &str,
        claims: &impl Serialize,
        now: UnixTime,
    ) -> Result<String, TokenError> {
        let key = self
            .keys
            .iter()
            .rev()
            .find(|key| key.stored.sign_from <= now && now < key.stored.sign_until)
            // A clock that jumped must not lock everybody out: the newest key signs.
            .or(self.keys.last())
            .ok_or_else(|| TokenError::Key("there is none".into()))?;
        let mut header = Header::new(Algorithm::RS256);
        header.typ = Some(kind.to_owned());
        header.kid = Some(key.stored.kid.clone());
        jsonwebtoken::encode(&header, claims, &key.signer).map_err(|e| TokenError::Key(e.to_string()))
    }

    pub(super) fn verifier(&self, kid: &str, now: UnixTime) -> Option<&DecodingKey> {
        self.keys
            .iter()
            .find(|key| key.stored.kid == kid && now < key.stored.publish_until)
            .map(|key| &key.verifier)
    }

    /// Tokens whose signature by one of these keys has held.
    pub(super) const fn verified(&self) -> &Verified {
        &self.verified
    }

    pub(super) fn certs(&self) -> &str {
        &self.certs
    }

    pub(super) fn jwks(&self) -> &str {
        &self.jwks
    }

    pub(super) fn stored(&self) -> Vec<SigningKey> {
        self.keys.iter().map(|key| key.stored.clone()).collect()
    }

    pub(super) fn summary(&self, now: UnixTime) -> Vec<KeySummary> {
        let signing = self
            .keys
            .iter()
            .rev()
            .find(|key| key.stored.sign_from <= now && now < key.stored.sign_until)
            .map(|key| key.stored.kid.as_str());
        self.keys
            .iter()
            .map(|key| KeySummary {
                kid: key.stored.kid.clone(),
                state: if Some(key.stored.kid.as_str()) == signing {
                    KeyState::Signing
                } else if key.stored.sign_from > now {
                    KeyState::Next
                } else {
                    KeyState::Retired
                },
                sign_from: key.stored.sign_from,
                sign_until: key.stored.sign_until,
                publish_until: key.stored.publish_until,
            })
            .collect()
    }

    fn parse(stored: Vec<SigningKey>) -> Result<Self, TokenError> {
        let keys = stored.into_iter().map(Loaded::parse).collect::<Result<Vec<_>, _>>()?;
        let public: Vec<_> = keys
            .iter()
            .map(|key| json!({ "kid": key.stored.kid, "cert": key.stored.certificate_pem }))
            .collect();
        let jwks: Vec<_> = keys.iter().map(|key| &key.jwk).collect();
        let certs = json!({ "keys": jwks, "public_cert": public.last(), "public_certs": public }).to_string();
        let jwks = json!({ "keys": jwks }).to_string();
        Ok(Self { keys, certs, jwks, verified: Verified::default() })
    }
}

impl Loaded {
    fn parse(stored: SigningKey) -> Result<Self, TokenError> {
        let fault = |error: &dyn std::fmt::Display| TokenError::Key(error.to_string());
        let signer = EncodingKey::from_rsa_pem(stored.private_pem.as_bytes()).map_err(|e| fault(&e))?;
        let pair = KeyPair::from_der(signer.as_bytes()).map_err(|e| fault(&e))?;
        let n = URL_SAFE_NO_PAD.encode(pair.public_key().modulus().big_endian_without_leading_zero());
        let e = URL_SAFE_NO_PAD.encode(pair.public_key().exponent().big_endian_without_leading_zero());
        let verifier = DecodingKey::from_rsa_components(&n, &e).map_err(|e| fault(&e))?;
        let jwk = json!({ "kid": stored.kid, "kty": "RSA", "alg": "RS256", "use": "sig", "n": n, "e": e });
        Ok(Self { stored, signer, verifier, jwk })
    }
}

/// An RSA key of 2048 bits that signs from `sign_from` for six weeks.
fn new_key(sign_from: UnixTime) -> Result<SigningKey, TokenError> {
    let fault = |error: &dyn std::fmt::Display| TokenError::Key(error.to_string());
    let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|e| fault(&e))?;
    let pkcs8: aws_lc_rs::encoding::Pkcs8V1Der<'static> = pair.as_der().map_err(|e| fault(&e))?;
    let private_pem = Zeroizing::new(pem("PRIVATE KEY", pkcs8.as_ref()));
    let spki = pair.public_key().as_der().map_err(|e: aws_lc_rs::error::Unspecified| fault(&e))?;
    let spki: aws_lc_rs::encoding::PublicKeyX509Der<'_> = spki;
    let kid: String = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, spki.as_ref())
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let certificate_pem = certificate(&private_pem, &kid, sign_from).map_err(|e| fault(&e))?;
    let sign_until = sign_from.after(SIGN_FOR);
    Ok(SigningKey {
        kid,
        private_pem,
        certificate_pem,
        sign_from,
        sign_until,
        publish_until: sign_until.after(PUBLISH_AFTER),
    })
}

fn certificate(private_pem: &str, kid: &str, sign_from: UnixTime) -> Result<String, rcgen::Error> {
    let pair = rcgen::KeyPair::from_pem_and_sign_algo(private_pem, &rcgen::PKCS_RSA_SHA256)?;
    let mut parameters = rcgen::CertificateParams::default();
    let short = kid.get(..16).unwrap_or(kid);
    parameters.distinguished_name.push(rcgen::DnType::CommonName, format!("Portcullis token key {short}"));
    let at = |time: UnixTime| {
        time::OffsetDateTime::from_unix_timestamp(time.0).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
    };
    parameters.not_before = at(sign_from.before(2 * DAY));
    parameters.not_after = at(sign_from.after(SIGN_FOR + PUBLISH_AFTER));
    Ok(parameters.self_signed(&pair)?.pem())
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

//! Proofs of possession (DPoP, RFC 9449): a small signature of a client's device key over one request, so that a
//! refresh token or an access token alone is worth nothing.
//!
//! One algorithm and one shape: ES256 with the public key as a bare JWK in the header, and nothing else in it. A header
//! that names a key in any other way (`kid`, `jku`, `x5u`, `x5c`) is refused rather than passed over.
//!
//! A false accept lets whoever stole a token use it; a false reject makes a person log in again. Replays of a proof are
//! for the caller to see, by [`Proof::id`].

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{
    AlgorithmParameters, CommonParameters, EllipticCurve, EllipticCurveKeyParameters, EllipticCurveKeyType,
    Jwk,
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::PublicKeyData as _;
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde::{Deserialize, Serialize};

use crate::flow::UnixTime;

/// The name of the request header that carries a proof, and the scheme of the token that comes with it.
pub const HEADER: &str = "dpop";
pub const SCHEME: &str = "DPoP";

/// How far the clocks of client and node may differ, in seconds.
pub const WINDOW: i64 = 120;

const TYPE: &str = "dpop+jwt";
/// Characters of the longest proof that is looked at, and of the longest identifier in one.
const LONGEST: usize = 2048;
const LONGEST_ID: usize = 128;

/// A SubjectPublicKeyInfo of P-256 (RFC 5480 §2) up to the two coordinates of the uncompressed point.
const SPKI_HEAD: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];

/// Why there is no proof. The words are for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    #[error("the proof is malformed, or its signature is not that of its key")]
    Malformed,
    #[error("the proof is for another request")]
    Request,
    #[error("the proof is for another token")]
    Token,
    #[error(
        "the proof is too old or from the future: the clocks of client and node differ by more than {WINDOW} s"
    )]
    Time,
}

/// What a proof has to be about.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    pub method: &'a str,
    /// The address without query and fragment, as the client asks for it.
    pub url: &'a str,
    /// The access token that the request carries.
    pub token: Option<&'a str>,
}

/// A proof that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// SHA-256 of the SubjectPublicKeyInfo of the key.
    pub key: [u8; 32],
    /// The thumbprint of the key (RFC 7638), base64url.
    pub thumbprint: String,
    /// SHA-256 of the proof's own identifier (`jti`).
    pub id: [u8; 32],
}

/// A device key, to prove its possession with.
pub struct Signer {
    key: EncodingKey,
    public: PublicJwk,
}

/// The key is no P-256 key in PKCS #8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device key is unusable")]
pub struct SignerError;

/// The header of a proof, strictly.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProofHeader {
    typ: String,
    alg: String,
    jwk: PublicJwk,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct PublicJwk {
    kty: String,
    crv: String,
    x: String,
    y: String,
}

/// The claims of a proof. Further ones are passed over (RFC 9449 §4.2).
#[derive(Serialize, Deserialize)]
struct ProofClaims {
    jti: String,
    htm: String,
    htu: String,
    iat: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ath: Option<String>,
}

impl Signer {
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, SignerError> {
        let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(pkcs8),
            &rcgen::PKCS_ECDSA_P256_SHA256,
        )
        .map_err(|_| SignerError)?;
        let (x, y) = match pair.der_bytes() {
            [4, point @ ..] if point.len() == 64 => point.split_at(32),
            _ => return Err(SignerError),
        };
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let public = PublicJwk { kty: "EC".into(), crv: "P-256".into(), x: text(x), y: text(y) };
        Ok(Self { key: EncodingKey::from_ec_der(pkcs8), public })
    }

    /// The thumbprint of the key (RFC 7638), base64url: `dpop_jkt` of an authorization request.
    pub fn thumbprint(&self) -> String {
        self.public.thumbprint()
    }

    /// A proof about one request. `id` is random, and another one for each proof.
    pub fn prove(&self, about: About<'_>, id: [u8; 16], now: UnixTime) -> Result<String, SignerError> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = Some(TYPE.to_owned());
        header.jwk = Some(Jwk {
            common: CommonParameters::default(),
            algorithm: AlgorithmParameters::EllipticCurve(EllipticCurveKeyParameters {
                key_type: EllipticCurveKeyType::EC,
                curve: EllipticCurve::P256,
                x: self.public.x.clone(),
                y: self.public.y.clone(),
            }),
        });
        let claims = ProofClaims {
            jti: URL_SAFE_NO_PAD.encode(id),
            htm: about.method.to_owned(),
            htu: about.url.to_owned(),
            iat: now.0,
            ath: about.token.map(|token| URL_SAFE_NO_PAD.encode(sha256(token.as_bytes()))),
        };
        jsonwebtoken::encode(&header, &claims, &self.key).map_err(|_| SignerError)
    }
}

/// Checks that `text` is a proof about this request, made about `now`.
pub fn check(text: &str, about: About<'_>, now: UnixTime) -> Result<Proof, ProofError> {
    let (public, point) = public_key(text).ok_or(ProofError::Malformed)?;
    let key = DecodingKey::from_ec_components(&public.x, &public.y).map_err(|_| ProofError::Malformed)?;
    let mut validation = Validation::new(Algorithm::ES256);
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let claims = jsonwebtoken::decode::<ProofClaims>(text, &key, &validation)
        .map_err(|_| ProofError::Malformed)?
        .claims;
    if claims.jti.is_empty() || claims.jti.len() > LONGEST_ID {
        return Err(ProofError::Malformed);
    }
    if claims.htm != about.method || claims.htu != about.url {
        return Err(ProofError::Request);
    }
    let wanted = about.token.map(|token| URL_SAFE_NO_PAD.encode(sha256(token.as_bytes())));
    if claims.ath != wanted {
        return Err(ProofError::Token);
    }
    if claims.iat.saturating_sub(now.0).saturating_abs() > WINDOW {
        return Err(ProofError::Time);
    }
    let spki = [&SPKI_HEAD[..], &point].concat();
    Ok(Proof { key: sha256(&spki), thumbprint: public.thumbprint(), id: sha256(claims.jti.as_bytes()) })
}

/// The key that a proof names in its header, and its two coordinates.
fn public_key(text: &str) -> Option<(PublicJwk, Vec<u8>)> {
    if text.len() > LONGEST {
        return None;
    }
    let header = URL_SAFE_NO_PAD.decode(text.split('.').next()?).ok()?;
    let header: ProofHeader = serde_json::from_slice(&header).ok()?;
    let jwk = header.jwk;
    if header.typ != TYPE || header.alg != "ES256" || jwk.kty != "EC" || jwk.crv != "P-256" {
        return None;
    }
    let (x, y) = (URL_SAFE_NO_PAD.decode(&jwk.x).ok()?, URL_SAFE_NO_PAD.decode(&jwk.y).ok()?);
    (x.len() == 32 && y.len() == 32).then(|| (jwk, [x, y].concat()))
}

impl PublicJwk {
    /// RFC 7638 §3: the required members in lexical order, without white space. Base64url needs no escaping.
    fn thumbprint(&self) -> String {
        let Self { kty, crv, x, y } = self;
        let text = format!(r#"{{"crv":"{crv}","kty":"{kty}","x":"{x}","y":"{y}"}}"#);
        URL_SAFE_NO_PAD.encode(sha256(text.as_bytes()))
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests;

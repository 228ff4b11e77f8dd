//! How a client proves that it is itself (RFC 6749 §2.3, OpenID Connect Core 1.0 §9): by a secret in the header or in the
//! form, by a signature, or not at all. Each client has one way, and a request may try only one.
//!
//! A false accept hands the tokens of somebody's code to whoever stole it; a false reject keeps people out of one
//! application.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

use crate::flow::{ClientAuthentication, OidcClient, UnixTime};
use crate::portal::form::Parameters;

use super::sha256;

/// The one kind of assertion (RFC 7523 §2.2).
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Signatures that are accepted: none that a public key could be mistaken for the key of.
pub(crate) const ALGORITHMS: [(&str, Algorithm); 4] = [
    ("RS256", Algorithm::RS256),
    ("PS256", Algorithm::PS256),
    ("ES256", Algorithm::ES256),
    ("EdDSA", Algorithm::EdDSA),
];
/// Characters of the longest assertion, and of the longest identifier in one.
const LONGEST_ASSERTION: usize = 8 * 1024;
const LONGEST_ID: usize = 256;
/// Seconds that an assertion may be good for from now on, which bounds how long its identifier is remembered.
const LONGEST_LIFE: i64 = 3600;
/// How far clocks may differ, in seconds.
const SKEW: i64 = 60;

/// What a client has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    /// Itself.
    Shown,
    /// Itself, if this assertion was never used before.
    Once { id: [u8; 32], expires_at: UnixTime },
}

/// Why a client is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClientError {
    /// `invalid_request`
    #[error("the request tries more than one way to authenticate, or says something twice")]
    Ambiguous,
    /// `invalid_client`
    #[error("{0}")]
    Unproven(&'static str),
}

/// Looks at what came with a request to one of the client's endpoints, of which the assertion must name one of
/// `audiences`.
pub(crate) fn authenticate(
    client: &OidcClient,
    authorization: Option<&str>,
    form: &Parameters,
    audiences: &[&str],
    now: UnixTime,
) -> Result<Proof, ClientError> {
    let (id, secret) = (form.one("client_id"), form.one("client_secret"));
    let assertion = form.one("client_assertion");
    for name in ["client_id", "client_secret", "client_assertion", "client_assertion_type"] {
        if form.has(name) && form.one(name).is_none() {
            return Err(ClientError::Ambiguous);
        }
    }
    let ways = [authorization.is_some(), secret.is_some(), assertion.is_some()];
    if ways.iter().filter(|way| **way).count() > 1 {
        return Err(ClientError::Ambiguous);
    }
    if id.is_some_and(|id| id != client.id) {
        return Err(ClientError::Unproven("another client"));
    }
    match &client.authentication {
        ClientAuthentication::Secret(hash) => {
            let basic = authorization.map(|header| basic(header, &client.id));
            let presented = match (basic, secret) {
                (Some(found), _) => found.ok_or(ClientError::Unproven("no credentials of this client"))?,
                (None, Some(secret)) if id.is_some() => secret.to_owned(),
                _ => return Err(ClientError::Unproven("the client secret is missing")),
            };
            aws_lc_rs::constant_time::verify_slices_are_equal(&sha256(presented.as_bytes()), hash)
                .map(|()| Proof::Shown)
                .map_err(|_| ClientError::Unproven("wrong client secret"))
        }
        ClientAuthentication::Keys(keys) => {
            if form.one("client_assertion_type") != Some(ASSERTION_TYPE) {
                return Err(ClientError::Unproven("the client assertion is missing"));
            }
            signed(client, keys, assertion.unwrap_or_default(), audiences, now).map_err(ClientError::Unproven)
        }
        ClientAuthentication::None if ways != [false; 3] => {
            Err(ClientError::Unproven("a public client has no credentials"))
        }
        ClientAuthentication::None if id.is_none() => Err(ClientError::Unproven("`client_id` is missing")),
        ClientAuthentication::None => Ok(Proof::Shown),
    }
}

/// The secret of a `Basic` header (RFC 6749 §2.3.1: both parts are form-encoded first), if it names the client.
fn basic(header: &str, id: &str) -> Option<String> {
    let (scheme, credentials) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(credentials.trim()).ok()?).ok()?;
    let (user, secret) = text.split_once(':')?;
    (decoded(user) == id).then(|| decoded(secret))
}

fn decoded(text: &str) -> String {
    let pair = format!("v={}", text.replace('&', "%26"));
    url::form_urlencoded::parse(pair.as_bytes())
        .next()
        .map_or_else(String::new, |(_, value)| value.into_owned())
}

#[derive(Deserialize)]
struct AssertionClaims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: i64,
    jti: String,
    #[serde(default)]
    nbf: Option<i64>,
    #[serde(default)]
    iat: Option<i64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// An assertion by one of the client's keys about itself, for us, in time.
fn signed(
    client: &OidcClient,
    keys: &JwkSet,
    assertion: &str,
    audiences: &[&str],
    now: UnixTime,
) -> Result<Proof, &'static str> {
    if assertion.len() > LONGEST_ASSERTION {
        return Err("the client assertion is too long");
    }
    let header = jsonwebtoken::decode_header(assertion).map_err(|_| "the client assertion is malformed")?;
    if header.crit.is_some() || !ALGORITHMS.iter().any(|(_, known)| *known == header.alg) {
        return Err("the client assertion is signed in a way that is not accepted");
    }
    let fits =
        |key: &&Jwk| header.kid.is_none() || key.common.key_id.is_none() || key.common.key_id == header.kid;
    let mut validation = Validation::new(header.alg);
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let claims = keys
        .keys
        .iter()
        .filter(fits)
        .filter_map(|key| DecodingKey::from_jwk(key).ok())
        .find_map(|key| jsonwebtoken::decode::<AssertionClaims>(assertion, &key, &validation).ok())
        .ok_or("the client assertion is not signed by a key of the client")?
        .claims;
    let named = match &claims.aud {
        Audience::One(aud) => audiences.contains(&aud.as_str()),
        Audience::Many(all) => all.iter().any(|aud| audiences.contains(&aud.as_str())),
    };
    if claims.iss != client.id || claims.sub != client.id || !named {
        return Err("the client assertion is about another client or for another server");
    }
    let early = |at: Option<i64>| at.is_some_and(|at| at.saturating_sub(SKEW) > now.0);
    if claims.exp <= now.0 || early(claims.nbf) || early(claims.iat) {
        return Err("the client assertion is expired or not yet valid");
    }
    if claims.exp > now.0.saturating_add(LONGEST_LIFE) {
        return Err("the client assertion is good for more than an hour");
    }
    if claims.jti.is_empty() || claims.jti.len() > LONGEST_ID {
        return Err("the client assertion has no usable `jti`");
    }
    let id = sha256(format!("{}\0{}", client.id, claims.jti).as_bytes());
    Ok(Proof::Once { id, expires_at: UnixTime(claims.exp) })
}

#[cfg(test)]
mod tests;

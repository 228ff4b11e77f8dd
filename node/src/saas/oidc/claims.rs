//! What tokens and the userinfo endpoint say about a person.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use crate::flow::{ClaimSource, OidcClient, Saas, SaasProtocol, Session, UnixTime};
use crate::policy::PermitOf;

use super::scope::{Scope, Scopes};
use super::sha256;

/// Life of an ID token: it is about the moment it was made.
const ID_TOKEN_LIFE: std::time::Duration = std::time::Duration::from_secs(15 * 60);
/// Life of a logout token, retries included.
const LOGOUT_LIFE: std::time::Duration = std::time::Duration::from_secs(120);

/// Authentication context classes: by how many kinds of proof (RFC 8176 `mfa`) somebody has logged in.
pub(crate) const ACR: [&str; 2] = ["sfa", "mfa"];

/// The claims about a person that the scopes and the client's own mapping release, `sub` included.
pub(crate) fn about(
    client: &OidcClient,
    scopes: &Scopes,
    session: &Session,
    sub: &str,
) -> Map<String, Value> {
    let mut claims = Map::new();
    for (name, source) in &client.claims {
        if let Some(value) = from(source, session) {
            claims.insert(name.clone(), value);
        }
    }
    let mut put = |name: &str, value: Value| drop(claims.insert(name.to_owned(), value));
    put("sub", json!(sub));
    if let Some(email) = session.email.as_ref().filter(|_| scopes.has(Scope::Email)) {
        put("email", json!(email));
        put("email_verified", json!(true));
    }
    if scopes.has(Scope::Profile) {
        put("name", json!(session.display_name));
    }
    if scopes.has(Scope::Groups) {
        put("groups", json!(session.groups));
    }
    claims
}

/// What an ID token says besides (OpenID Connect Core 1.0 §2).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Issue<'a> {
    pub(crate) issuer: &'a str,
    pub(crate) sub: &'a str,
    pub(crate) scopes: &'a Scopes,
    pub(crate) nonce: Option<&'a str>,
    /// The access token beside it.
    pub(crate) access_token: &'a str,
}

/// The claims of an ID token for the person of the permit; nothing where it has none.
pub(crate) fn id_token(
    permit: PermitOf<'_, Saas>,
    issue: &Issue<'_>,
    now: UnixTime,
) -> Option<Map<String, Value>> {
    let session = permit.permit().session()?;
    let SaasProtocol::Oidc(client) = &permit.kind().protocol else { return None };
    let mut claims = about(client, issue.scopes, session, issue.sub);
    let hash = sha256(issue.access_token.as_bytes());
    let (half, _) = hash.split_at(16);
    let [single, several] = ACR;
    let acr = if session.amr.iter().any(|method| method == "mfa") { several } else { single };
    let mut put = |name: &str, value: Value| drop(claims.insert(name.to_owned(), value));
    put("iss", json!(issue.issuer));
    put("aud", json!(client.id));
    put("iat", json!(now));
    put("exp", json!(now.after(ID_TOKEN_LIFE).min(session.expires_at)));
    put("amr", json!(session.amr));
    put("acr", json!(acr));
    put("sid", json!(session.id));
    put("at_hash", json!(URL_SAFE_NO_PAD.encode(half)));
    if let Some(at) = session.authenticated_at {
        put("auth_time", json!(at));
    }
    if let Some(nonce) = issue.nonce {
        put("nonce", json!(nonce));
    }
    Some(claims)
}

/// The claims of a logout token (OpenID Connect Back-Channel Logout 1.0 §2.4).
pub(crate) fn logout_token(
    client: &OidcClient,
    issuer: &str,
    sub: &str,
    session: &Session,
    id: [u8; 16],
    now: UnixTime,
) -> Map<String, Value> {
    let claims = json!({
        "iss": issuer,
        "sub": sub,
        "aud": client.id,
        "iat": now,
        "exp": now.after(LOGOUT_LIFE),
        "jti": URL_SAFE_NO_PAD.encode(id),
        "sid": session.id,
        "events": { "http://schemas.openid.net/event/backchannel-logout": {} },
    });
    match claims {
        Value::Object(claims) => claims,
        _ => Map::new(),
    }
}

fn from(source: &ClaimSource, session: &Session) -> Option<Value> {
    let values = source.values(session);
    if source.is_list() { Some(json!(values)) } else { values.into_iter().next().map(Value::from) }
}

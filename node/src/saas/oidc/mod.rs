//! The OpenID provider's rules: what a request may ask for, how a client proves itself, what tokens say. Pure: time is an
//! argument, and what must be remembered or looked up is the caller's.
//!
//! OpenID Connect Core 1.0, RFC 6749, RFC 7636 (PKCE), RFC 9207 (issuer in the response), RFC 9700 (best current
//! practice).

pub(crate) mod claims;
pub(crate) mod client;
pub(crate) mod pkce;
pub(crate) mod request;
pub(crate) mod scope;
pub(crate) mod token;

use crate::config::NodeConfig;
use crate::flow::OidcClient;

/// The issuer identifier of the provider that `client` sees: each client has one of its own.
pub(crate) fn issuer(node: &NodeConfig, client: &OidcClient) -> String {
    format!("https://{}/cdn-cgi/access/sso/oidc/{}", node.authority(), client.id)
}

/// SHA-256.
fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    out
}

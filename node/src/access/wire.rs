//! What client and node say to each other over HTTPS: endpoints below `/cdn-cgi/access/cli/` on the auth domain, OAuth
//! 2.0 with PKCE (RFC 7636), device codes (RFC 8628) and proofs of possession (RFC 9449).

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// The one client there is, built in and public (RFC 6749 §2.1).
pub(crate) const CLIENT_ID: &str = "portcullis-access";

/// The path of every loopback redirect (RFC 8252 §7.3); the port is free.
pub(crate) const CALLBACK: &str = "/callback";

/// Endpoints, as they follow `/cdn-cgi/access/`.
pub(crate) const AUTHORIZE: &str = "cli/authorize";
pub(crate) const DEVICE_AUTHORIZATION: &str = "cli/device_authorization";
pub(crate) const DEVICE: &str = "cli/device";
pub(crate) const TOKEN: &str = "cli/token";
pub(crate) const REVOKE: &str = "cli/revoke";
pub(crate) const WHOAMI: &str = "cli/whoami";
pub(crate) const APPS: &str = "cli/apps";
pub(crate) const APP_TOKEN: &str = "cli/app_token";
pub(crate) const GLOBAL_TOKEN: &str = "cli/global_token";

/// The certificate authority (RFC 4252 keys, OpenSSH's certificates), in the words that `cloudflared` uses too.
pub(crate) const CERT_SIGN: &str = "cert_sign";

pub(crate) const BY_CODE: &str = "authorization_code";
pub(crate) const BY_REFRESH: &str = "refresh_token";
pub(crate) const BY_DEVICE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// Characters of the longest name that a device may have; more are cut.
pub(crate) const LONGEST_NAME: usize = 64;

/// The answer of the token endpoint (RFC 6749 §5.1) and what it takes to dial the tunnel.
#[derive(Serialize, Deserialize)]
pub(crate) struct TokenResponse {
    pub(crate) access_token: String,
    /// `DPoP`.
    pub(crate) token_type: String,
    /// Seconds.
    pub(crate) expires_in: u64,
    pub(crate) refresh_token: String,
    /// Seconds until the login ends, and with it everything.
    pub(crate) login_expires_in: u64,
    pub(crate) person: String,
    pub(crate) node: NodeInfo,
}

/// Where the tunnel is, whose key it has, and what to knock with where it is dark.
#[derive(Serialize, Deserialize)]
pub(crate) struct NodeInfo {
    /// `host:port`, UDP.
    pub(crate) address: String,
    /// SHA-256 of the node's tunnel key, hexadecimal.
    pub(crate) key: String,
    /// Base64url.
    pub(crate) device: String,
    /// What a first bind may carry, so that it need not wait for a session's own; base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ticket: Option<String>,
}

impl Drop for TokenResponse {
    fn drop(&mut self) {
        self.access_token.zeroize();
        self.refresh_token.zeroize();
        self.node.device.zeroize();
    }
}

/// The answer of the device authorization endpoint (RFC 8628 §3.2). There is no `verification_uri_complete`: a person
/// who types the code has seen where it comes from.
#[derive(Serialize, Deserialize)]
pub(crate) struct DeviceResponse {
    pub(crate) device_code: String,
    pub(crate) user_code: String,
    pub(crate) verification_uri: String,
    pub(crate) expires_in: u64,
    pub(crate) interval: u64,
}

/// A refusal (RFC 6749 §5.2).
#[derive(Serialize, Deserialize)]
pub(crate) struct ErrorResponse {
    pub(crate) error: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error_description: Option<String>,
}

/// Who a client is logged in as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoAmI {
    /// `provider:subject`.
    pub id: String,
    pub name: String,
    pub email: Option<String>,
    pub groups: Vec<String>,
    pub provider: String,
    /// The name that this device was given at its login.
    pub device: String,
    /// Seconds since 1970.
    pub login_expires_at: i64,
}

/// One application that is open to a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppRow {
    pub name: String,
    /// `web`, or the protocol of a private application.
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// A token for one application, to be sent as `Cf-Access-Token`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationToken {
    pub application: String,
    pub host: String,
    pub aud: String,
    /// Seconds.
    pub expires_in: u64,
    pub token: String,
}

impl fmt::Debug for ApplicationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApplicationToken").field("application", &self.application).finish_non_exhaustive()
    }
}

impl Drop for ApplicationToken {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

/// A token that is worth tokens for every application that policy opens, for older versions of `cloudflared`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalToken {
    /// The auth domain.
    pub host: String,
    /// Seconds.
    pub expires_in: u64,
    pub token: String,
}

impl fmt::Debug for GlobalToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GlobalToken").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Drop for GlobalToken {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

/// What asks for an SSH certificate.
#[derive(Serialize, Deserialize)]
pub(crate) struct CertRequest {
    /// In the format of OpenSSH.
    pub(crate) public_key: String,
    /// A token for the application, of a client.
    pub(crate) jwt: String,
    /// Who issued the token: the node.
    pub(crate) issuer: String,
}

impl Drop for CertRequest {
    fn drop(&mut self) {
        self.jwt.zeroize();
    }
}

/// An SSH certificate.
#[derive(Serialize, Deserialize)]
pub(crate) struct CertResponse {
    /// The certificate's key id.
    pub(crate) id: String,
    /// In the format of OpenSSH.
    pub(crate) certificate: String,
    /// RFC 3339.
    pub(crate) expires_at: String,
}

/// Why there is no certificate.
#[derive(Serialize, Deserialize)]
pub(crate) struct CertRefusal {
    pub(crate) status: u16,
    pub(crate) message: String,
}

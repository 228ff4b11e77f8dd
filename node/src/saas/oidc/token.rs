//! Codes, access tokens and refresh tokens: sealed references to a grant. Whoever holds one can read nothing in it and
//! make no other; whether it is still good, the grant says.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::flow::UnixTime;

use super::scope::Scopes;

/// What each kind is sealed for.
pub(crate) const CODE: &str = "oidc code";
pub(crate) const ACCESS: &str = "oidc access token";
pub(crate) const REFRESH: &str = "oidc refresh token";

/// Life of a code.
pub(crate) const CODE_LIFE: Duration = Duration::from_secs(60);
/// Life of an access token, unless policy gives it less.
pub(crate) const ACCESS_LIFE: Duration = Duration::from_secs(15 * 60);

/// What a sign-in was about, kept with the grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Granted {
    /// The client it was for, whatever its application is called by now.
    pub(crate) client: String,
    pub(crate) redirect_uri: String,
    pub(crate) challenge: Option<String>,
    pub(crate) nonce: Option<String>,
    pub(crate) scopes: Scopes,
    /// Where the person was. Later requests come from the application's servers, so this one counts for policy.
    pub(crate) address: IpAddr,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Code {
    pub(crate) grant: [u8; 16],
    pub(crate) expires_at: UnixTime,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Access {
    pub(crate) grant: [u8; 16],
    pub(crate) scopes: Scopes,
    pub(crate) issued_at: UnixTime,
    pub(crate) expires_at: UnixTime,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Refresh {
    pub(crate) grant: [u8; 16],
    pub(crate) generation: u32,
}

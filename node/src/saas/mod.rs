//! Signing people in at applications elsewhere.
//!
//! ```text
//! application ──▶ authorization ─▶ login, if need be ─▶ decide ─▶ PermitOf<Saas> ─▶ code
//!             ──▶ token: client, code, PKCE ─▶ decide ─▶ PermitOf<Saas> ─▶ ID token, access token
//! ```
//!
//! Nothing vouches for anybody without a [`PermitOf`](crate::policy::PermitOf) of the application, which only
//! [`decide`](crate::policy::decide()) makes: at every sign-in, at every refresh and whenever a token is used here.
//!
//! `saml` is the identity provider of applications that speak SAML; its endpoints are in `portal::saml`.
//!
//! `oidc` is what the node is to its clients as an OpenID provider, without any I/O; its endpoints are in
//! `portal::sso`. [`backchannel`] tells applications that a login has ended.

pub(crate) mod backchannel;
pub(crate) mod oidc;
pub mod saml;

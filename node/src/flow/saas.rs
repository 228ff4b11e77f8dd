//! Applications that run elsewhere and take the node's word for who somebody is.

use std::collections::BTreeMap;

use jsonwebtoken::jwk::JwkSet;

use super::{ClaimSource, SamlApplication, SamlProviderSource};

/// What a SaaS application is beside what every application is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saas {
    /// Where the launcher leads; without one it shows no tile.
    pub url: Option<String>,
    pub protocol: SaasProtocol,
}

/// What the application speaks with the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SaasProtocol {
    /// OpenID Connect, the node being the provider.
    Oidc(OidcClient),
    /// SAML 2.0, the node being the identity provider.
    Saml(SamlApplication),
}

impl Saas {
    /// Where its endpoints are below `/cdn-cgi/access/`, without a slash at the end.
    pub fn endpoint(&self) -> String {
        match &self.protocol {
            SaasProtocol::Oidc(client) => format!("sso/oidc/{}", client.id),
            SaasProtocol::Saml(application) => format!("sso/saml/{}", application.name),
        }
    }

    /// Files of the configuration that a reload reads again.
    pub fn files(&self) -> &[std::path::PathBuf] {
        match &self.protocol {
            SaasProtocol::Oidc(_) => &[],
            SaasProtocol::Saml(application) => &application.files,
        }
    }

    /// PEM file of an authority to trust when the node calls the application.
    pub fn ca(&self) -> Option<&std::path::Path> {
        match &self.protocol {
            SaasProtocol::Oidc(client) => client.backchannel_logout.as_ref()?.ca.as_deref(),
            SaasProtocol::Saml(application) => match &application.provider {
                SamlProviderSource::Configured(service) => service.logout.ca.as_deref(),
                SamlProviderSource::Published(published) => published.said.logout.ca.as_deref(),
            },
        }
    }

    /// Whether the application is known from the configuration to be told that a login has ended.
    pub fn is_told_of_ends(&self) -> bool {
        match &self.protocol {
            SaasProtocol::Oidc(client) => client.backchannel_logout.is_some(),
            SaasProtocol::Saml(application) => match &application.provider {
                SamlProviderSource::Configured(service) => service.logout.soap.is_some(),
                SamlProviderSource::Published(published) => published.said.logout.soap.is_some(),
            },
        }
    }
}

/// A client of the node's OpenID provider (RFC 6749 §2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcClient {
    /// `client_id`, also a segment of its endpoints' paths.
    pub id: String,
    pub authentication: ClientAuthentication,
    /// Compared as text, whole.
    pub redirect_uris: Vec<String>,
    pub post_logout_redirect_uris: Vec<String>,
    pub backchannel_logout: Option<BackchannelLogout>,
    /// Further claims by name.
    pub claims: BTreeMap<String, ClaimSource>,
}

impl OidcClient {
    /// Whether it has nothing to prove itself with (RFC 6749 §2.1).
    pub const fn is_public(&self) -> bool {
        matches!(self.authentication, ClientAuthentication::None)
    }
}

/// How a client proves at the token endpoint that it is itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientAuthentication {
    /// By a secret, of which only the SHA-256 is kept: `client_secret_basic` and `client_secret_post`.
    Secret([u8; 32]),
    /// By a signature: `private_key_jwt` (RFC 7523 §2.2).
    Keys(JwkSet),
    /// Not at all: a public client, for which PKCE is required.
    None,
}

/// Where an application is told that a login has ended (OpenID Connect Back-Channel Logout 1.0).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackchannelLogout {
    pub uri: String,
    /// PEM file of an authority to trust besides the system's.
    pub ca: Option<std::path::PathBuf>,
    /// Whether the address may be one of this host or of the link.
    pub local: bool,
}

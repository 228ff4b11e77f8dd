//! Applications elsewhere that speak SAML 2.0.

use std::path::PathBuf;
use std::sync::Arc;

use crate::saml::Certificate;

use super::ClaimSource;

/// An application as the configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SamlApplication {
    /// The application's name, also a segment of its endpoints' paths.
    pub name: String,
    pub provider: SamlProviderSource,
    /// Files that it is read from, now or later.
    pub files: Vec<PathBuf>,
}

/// Where what is known of a service provider comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SamlProviderSource {
    /// The configuration and its files.
    Configured(Arc<SamlService>),
    /// Metadata at an address, which the node fetches.
    Published(Arc<SamlPublished>),
}

/// A service provider that publishes its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SamlPublished {
    pub url: String,
    /// PEM file of an authority to trust besides the system's.
    pub ca: Option<PathBuf>,
    pub said: SamlSaid,
}

/// What the configuration says of a service provider: it goes before what metadata says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SamlSaid {
    pub name: String,
    /// The only one that metadata may have.
    pub entity_id: Option<String>,
    /// Of the metadata's consumer services the only ones, the default first; all of them where it is empty.
    pub consumers: Vec<String>,
    pub certificates: Option<Vec<Certificate>>,
    pub encrypt_to: Option<Certificate>,
    pub require_signed: Option<bool>,
    pub name_id: Option<SamlNameId>,
    pub attributes: Vec<SamlAttribute>,
    pub relay_state: Option<String>,
    pub logout: SamlSaidLogout,
}

/// What the configuration says of single logout.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SamlSaidLogout {
    pub redirect: Option<String>,
    pub post: Option<String>,
    pub soap: Option<String>,
    pub ca: Option<PathBuf>,
    pub local: bool,
}

/// A service provider (SAML glossary): what the configuration and its metadata say together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SamlService {
    /// The application's name, also a segment of its endpoints' paths.
    pub name: String,
    pub entity_id: String,
    /// Where answers may go, the default first; never empty.
    pub consumers: Vec<SamlConsumer>,
    /// Any of these verifies its requests.
    pub certificates: Vec<Certificate>,
    /// What its assertions are encrypted to.
    pub encrypt_to: Option<Certificate>,
    /// Whether a request has to be signed.
    pub require_signed: bool,
    /// How it knows people; without one, as it asks, or by email.
    pub name_id: Option<SamlNameId>,
    pub attributes: Vec<SamlAttribute>,
    /// Goes along with an answer that nobody asked for.
    pub relay_state: Option<String>,
    pub logout: SamlLogout,
}

/// Where a service provider takes messages of single logout.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SamlLogout {
    /// Answers to its own requests go here, through the browser.
    pub answers: Option<(SamlBinding, String)>,
    /// Takes the node's requests, through the browser.
    pub requests: Option<(SamlBinding, String)>,
    /// Takes the node's requests, by SOAP.
    pub soap: Option<String>,
    /// PEM file of an authority to trust besides the system's.
    pub ca: Option<PathBuf>,
    /// Whether `soap` may be an address of this host or of the link.
    pub local: bool,
}

/// How a message goes through a browser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SamlBinding {
    Redirect,
    Post,
}

/// An assertion consumer service with the HTTP-POST binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SamlConsumer {
    /// Compared as text, whole.
    pub location: String,
    pub index: Option<u16>,
}

/// How a service provider knows people (SAML core §8.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SamlNameId {
    Email,
    /// Stable, and different for each service provider.
    Persistent,
    /// Different each time.
    Transient,
    /// Format `unspecified`, with this value.
    Of(ClaimSource),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SamlAttribute {
    pub name: String,
    pub source: SamlSource,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SamlSource {
    /// The persistent identifier.
    Id,
    Of(ClaimSource),
}

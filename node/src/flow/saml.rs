//! Applications elsewhere that speak SAML 2.0.

use std::path::PathBuf;

use crate::saml::Certificate;

use super::ClaimSource;

/// A service provider (SAML glossary), as the configuration or its metadata has it.
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
    /// Files that this was read from.
    pub files: Vec<PathBuf>,
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

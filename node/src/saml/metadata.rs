//! Metadata (SAML metadata §2): what a service provider says of itself, and what the node says as identity provider.

use std::time::Duration;

use crate::flow::UnixTime;

use super::c14n::canonical;
use super::keys::{Certificate, KeyError};
use super::names::{self, DSIG, METADATA, PROTOCOL};
use super::signature::key_info;
use super::upstream::Service;
use super::xml::{self, Element, XmlError};

/// Consumer services and keys that are read at most.
const LIMIT: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    #[error(transparent)]
    Xml(#[from] XmlError),
    #[error("not the EntityDescriptor of one entity")]
    Entity,
    #[error("it describes no service provider of SAML 2.0")]
    NoServiceProvider,
    #[error("it describes no identity provider of SAML 2.0")]
    NoIdentityProvider,
    #[error("no assertion consumer service takes the HTTP-POST binding")]
    NoConsumer,
    #[error("no sign-on service takes the HTTP-Redirect or HTTP-POST binding")]
    NoSignIn,
    #[error("it has no certificate for signatures")]
    NoKey,
    #[error("more than {LIMIT} keys or consumer services")]
    TooMany,
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A service provider as its metadata has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceProvider {
    pub entity_id: String,
    /// Where responses may go, the default first, each with its index.
    pub consumers: Vec<(String, Option<u16>)>,
    /// Certificates that verify its requests.
    pub signing: Vec<Certificate>,
    /// The certificate to encrypt to.
    pub encryption: Option<Certificate>,
    /// Whether it says that it signs its requests.
    pub signs_requests: bool,
    /// The first NameID format it wants.
    pub name_id_format: Option<String>,
    pub logout: LogoutService,
    pub validity: Validity,
}

/// For how long a document says it is good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Validity {
    /// `validUntil`: from then on nothing in it counts.
    pub until: Option<UnixTime>,
    /// `cacheDuration`: a newer one should be asked for after this time.
    pub refresh: Option<Duration>,
}

/// Where a service provider takes messages of single logout; the first of each binding counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogoutService {
    /// Takes requests and answers through the browser.
    pub browser: Service,
    /// Takes requests of the node's by SOAP.
    pub soap: Option<String>,
}

impl LogoutService {
    fn read(role: &Element) -> Self {
        let soap = role
            .all(METADATA, "SingleLogoutService")
            .find(|service| service.attribute("Binding") == Some(names::BINDING_SOAP))
            .and_then(|service| service.attribute("Location"))
            .map(str::to_owned);
        Self { browser: Service::read(role, "SingleLogoutService"), soap }
    }
}

impl ServiceProvider {
    pub fn read(document: &[u8]) -> Result<Self, MetadataError> {
        let entity = xml::parse(document, xml::METADATA)?;
        let entity_id = entity_id(&entity)?;
        let role = role(&entity, "SPSSODescriptor").ok_or(MetadataError::NoServiceProvider)?;
        let name_id_format = role.all(METADATA, "NameIDFormat").next().and_then(Element::content);
        Ok(Self {
            entity_id: entity_id.to_owned(),
            consumers: consumers(role)?,
            signing: certificates(role, "signing")?,
            encryption: certificates(role, "encryption")?.into_iter().next(),
            signs_requests: matches!(role.attribute("AuthnRequestsSigned"), Some("true" | "1")),
            name_id_format,
            logout: LogoutService::read(role),
            validity: Validity::read(&entity, role),
        })
    }
}

pub(super) fn entity_id(entity: &Element) -> Result<&str, MetadataError> {
    entity
        .attribute("entityID")
        .filter(|id| entity.is(METADATA, "EntityDescriptor") && !id.is_empty() && id.len() <= 1024)
        .ok_or(MetadataError::Entity)
}

/// What an entity says of itself in one role of SAML 2.0.
pub(super) fn role<'a>(entity: &'a Element, local: &'a str) -> Option<&'a Element> {
    entity.all(METADATA, local).find(|role| {
        let protocols = role.attribute("protocolSupportEnumeration").unwrap_or_default();
        protocols.split_ascii_whitespace().any(|protocol| protocol == PROTOCOL.uri)
    })
}

/// The certificates of a role for one use.
pub(super) fn certificates(role: &Element, wanted: &str) -> Result<Vec<Certificate>, MetadataError> {
    role.all(METADATA, "KeyDescriptor")
        .filter(|key| key.attribute("use").is_none_or(|use_| use_ == wanted))
        .filter_map(|key| key.one(DSIG, "KeyInfo")?.one(DSIG, "X509Data"))
        .flat_map(|data| data.all(DSIG, "X509Certificate"))
        .take(LIMIT)
        .map(|certificate| Ok(Certificate::from_base64(&certificate.content().unwrap_or_default())?))
        .collect()
}

fn consumers(role: &Element) -> Result<Vec<(String, Option<u16>)>, MetadataError> {
    let mut services: Vec<_> = role
        .all(METADATA, "AssertionConsumerService")
        .filter(|service| service.attribute("Binding") == Some(names::BINDING_POST))
        .collect();
    if services.len() > LIMIT {
        return Err(MetadataError::TooMany);
    }
    services.sort_by_key(|service| !matches!(service.attribute("isDefault"), Some("true" | "1")));
    let consumers: Vec<_> = services
        .into_iter()
        .filter_map(|service| {
            let index = service.attribute("index").and_then(|index| index.parse().ok());
            Some((service.attribute("Location")?.to_owned(), index))
        })
        .collect();
    if consumers.is_empty() { Err(MetadataError::NoConsumer) } else { Ok(consumers) }
}

/// The node as identity provider of one application.
pub struct IdentityProvider<'a> {
    pub entity_id: &'a str,
    /// Takes requests, by either binding.
    pub sign_in: &'a str,
    /// Takes logout requests, by either binding.
    pub logout: &'a str,
    /// The certificates of all keys that sign now or soon or did until lately.
    pub certificates: &'a [Certificate],
    pub name_id_format: &'a str,
    pub wants_signed_requests: bool,
}

impl IdentityProvider<'_> {
    pub fn document(&self) -> String {
        let service = |local: &str, location: &str, binding: &str| {
            Element::new(METADATA, local).with("Binding", binding).with("Location", location)
        };
        let logout = |binding| service("SingleLogoutService", self.logout, binding);
        let sign_in = |binding| service("SingleSignOnService", self.sign_in, binding);
        let keys = self.certificates.iter().map(|certificate| {
            Element::new(METADATA, "KeyDescriptor").with("use", "signing").child(key_info(certificate))
        });
        let role = Element::new(METADATA, "IDPSSODescriptor")
            .with("WantAuthnRequestsSigned", if self.wants_signed_requests { "true" } else { "false" })
            .with("protocolSupportEnumeration", PROTOCOL.uri)
            .children(keys)
            .child(logout(names::BINDING_REDIRECT))
            .child(logout(names::BINDING_POST))
            .child(Element::new(METADATA, "NameIDFormat").text(self.name_id_format))
            .child(sign_in(names::BINDING_REDIRECT))
            .child(sign_in(names::BINDING_POST));
        let entity = Element::new(METADATA, "EntityDescriptor").with("entityID", self.entity_id).child(role);
        canonical(&entity)
    }
}

//! Metadata (SAML metadata §2): what a service provider says of itself, and what the node says.

use super::c14n::canonical;
use super::keys::{Certificate, KeyError};
use super::names::{self, DSIG, METADATA, PROTOCOL};
use super::signature::key_info;
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
    #[error("no assertion consumer service takes the HTTP-POST binding")]
    NoConsumer,
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
}

impl ServiceProvider {
    pub fn read(document: &[u8]) -> Result<Self, MetadataError> {
        let entity = xml::parse(document, xml::METADATA)?;
        let entity_id = entity
            .attribute("entityID")
            .filter(|id| entity.is(METADATA, "EntityDescriptor") && !id.is_empty() && id.len() <= 1024)
            .ok_or(MetadataError::Entity)?;
        let role = entity
            .all(METADATA, "SPSSODescriptor")
            .find(|role| {
                let protocols = role.attribute("protocolSupportEnumeration").unwrap_or_default();
                protocols.split_ascii_whitespace().any(|protocol| protocol == PROTOCOL.uri)
            })
            .ok_or(MetadataError::NoServiceProvider)?;
        let keys = |wanted: &str| -> Result<Vec<Certificate>, MetadataError> {
            role.all(METADATA, "KeyDescriptor")
                .filter(|key| key.attribute("use").is_none_or(|use_| use_ == wanted))
                .filter_map(|key| key.one(DSIG, "KeyInfo")?.one(DSIG, "X509Data"))
                .flat_map(|data| data.all(DSIG, "X509Certificate"))
                .take(LIMIT)
                .map(|certificate| Ok(Certificate::from_base64(&certificate.content().unwrap_or_default())?))
                .collect()
        };
        let name_id_format = role.all(METADATA, "NameIDFormat").next().and_then(Element::content);
        Ok(Self {
            entity_id: entity_id.to_owned(),
            consumers: consumers(role)?,
            signing: keys("signing")?,
            encryption: keys("encryption")?.into_iter().next(),
            signs_requests: matches!(role.attribute("AuthnRequestsSigned"), Some("true" | "1")),
            name_id_format,
        })
    }
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
    /// The certificates of all keys that sign now or soon or did until lately.
    pub certificates: &'a [Certificate],
    pub name_id_format: &'a str,
    pub wants_signed_requests: bool,
}

impl IdentityProvider<'_> {
    pub fn document(&self) -> String {
        let service = |binding: &str| {
            Element::new(METADATA, "SingleSignOnService")
                .with("Binding", binding)
                .with("Location", self.sign_in)
        };
        let keys = self.certificates.iter().map(|certificate| {
            Element::new(METADATA, "KeyDescriptor").with("use", "signing").child(key_info(certificate))
        });
        let role = Element::new(METADATA, "IDPSSODescriptor")
            .with("WantAuthnRequestsSigned", if self.wants_signed_requests { "true" } else { "false" })
            .with("protocolSupportEnumeration", PROTOCOL.uri)
            .children(keys)
            .child(Element::new(METADATA, "NameIDFormat").text(self.name_id_format))
            .child(service(names::BINDING_REDIRECT))
            .child(service(names::BINDING_POST));
        let entity = Element::new(METADATA, "EntityDescriptor").with("entityID", self.entity_id).child(role);
        canonical(&entity)
    }
}

//! The node as service provider: what an identity provider's metadata says, what the node says of itself, and what it
//! asks (SAML metadata §2, core §3.4).

use std::time::Duration;

use crate::flow::UnixTime;

use super::c14n::canonical;
use super::keys::{Certificate, Signer};
use super::metadata::{MetadataError, Validity, certificates, entity_id, role};
use super::names::{self, METADATA, PROTOCOL};
use super::response::{Envelope, identifier, instant, issuer};
use super::signature::{key_info, sign};
use super::xml::{self, Element};

/// An identity provider as its metadata has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    pub entity_id: String,
    /// Where requests go.
    pub sign_in: Service,
    /// Where logout requests and answers go.
    pub logout: Service,
    /// Certificates that verify what it says.
    pub signing: Vec<Certificate>,
    pub validity: Validity,
}

/// Addresses of one service by binding; the first of each counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    pub redirect: Option<Place>,
    pub post: Option<Place>,
}

/// Where requests and where answers go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub location: String,
    pub answers: String,
}

impl Service {
    pub(super) fn read(role: &Element, local: &str) -> Self {
        let of = |binding: &str| {
            let mut all = role.all(METADATA, local);
            let service = all.find(|service| service.attribute("Binding") == Some(binding))?;
            let location = service.attribute("Location")?.to_owned();
            let answers =
                service.attribute("ResponseLocation").map_or_else(|| location.clone(), str::to_owned);
            Some(Place { location, answers })
        };
        Self { redirect: of(names::BINDING_REDIRECT), post: of(names::BINDING_POST) }
    }

    /// Where messages go, and where answers to messages do.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        self.places().flat_map(|place| [place.location.as_str(), place.answers.as_str()])
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        self.redirect.iter().chain(&self.post)
    }
}

impl Provider {
    pub fn read(document: &[u8]) -> Result<Self, MetadataError> {
        let entity = xml::parse(document, xml::METADATA)?;
        let entity_id = entity_id(&entity)?;
        let role = role(&entity, "IDPSSODescriptor").ok_or(MetadataError::NoIdentityProvider)?;
        let signing = certificates(role, "signing")?;
        if signing.is_empty() {
            return Err(MetadataError::NoKey);
        }
        let sign_in = Service::read(role, "SingleSignOnService");
        if sign_in.places().next().is_none() {
            return Err(MetadataError::NoSignIn);
        }
        Ok(Self {
            entity_id: entity_id.to_owned(),
            sign_in,
            logout: Service::read(role, "SingleLogoutService"),
            signing,
            validity: Validity::read(&entity, role),
        })
    }
}

/// The node as service provider of one identity provider.
pub struct OwnServiceProvider<'a> {
    pub entity_id: &'a str,
    /// Takes responses by HTTP-POST.
    pub consumer: &'a str,
    /// Takes logout requests and answers, by either browser binding.
    pub logout: &'a str,
    /// The certificates of all keys that sign and decrypt now or soon.
    pub certificates: &'a [Certificate],
    pub name_id_format: Option<&'a str>,
    pub signs_requests: bool,
}

impl OwnServiceProvider<'_> {
    pub fn document(&self) -> String {
        let keys = ["signing", "encryption"].into_iter().flat_map(|use_| {
            self.certificates.iter().map(move |certificate| {
                Element::new(METADATA, "KeyDescriptor").with("use", use_).child(key_info(certificate))
            })
        });
        let logout = |binding| {
            Element::new(METADATA, "SingleLogoutService")
                .with("Binding", binding)
                .with("Location", self.logout)
        };
        let consumer = Element::new(METADATA, "AssertionConsumerService")
            .with("Binding", names::BINDING_POST)
            .with("Location", self.consumer)
            .with("index", "0")
            .with("isDefault", "true");
        let role = Element::new(METADATA, "SPSSODescriptor")
            .with("AuthnRequestsSigned", if self.signs_requests { "true" } else { "false" })
            .with("WantAssertionsSigned", "true")
            .with("protocolSupportEnumeration", PROTOCOL.uri)
            .children(keys)
            .child(logout(names::BINDING_REDIRECT))
            .child(logout(names::BINDING_POST))
            .children(self.name_id_format.map(|format| Element::new(METADATA, "NameIDFormat").text(format)))
            .child(consumer);
        let entity = Element::new(METADATA, "EntityDescriptor").with("entityID", self.entity_id).child(role);
        canonical(&entity)
    }
}

/// What the node asks of an identity provider.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The node's assertion consumer service.
    pub consumer: &'a str,
    pub name_id_format: Option<&'a str>,
    /// A login that the provider remembers does not do.
    pub force: bool,
}

/// An `AuthnRequest` called `id`: signed itself, or not where the binding signs. `envelope` has no `in_response_to`.
pub fn ask(envelope: &Envelope<'_>, id: &str, ask: Ask<'_>, key: Option<&dyn Signer>) -> Option<String> {
    let mut policy = Element::new(PROTOCOL, "NameIDPolicy").with("AllowCreate", "true");
    if let Some(format) = ask.name_id_format {
        policy = policy.with("Format", format);
    }
    let mut request = Element::new(PROTOCOL, "AuthnRequest")
        .with("ID", id)
        .with("Version", "2.0")
        .with("IssueInstant", instant(envelope.now)?)
        .with("Destination", envelope.destination)
        .with("ProtocolBinding", names::BINDING_POST)
        .with("AssertionConsumerServiceURL", ask.consumer);
    if ask.force {
        request = request.with("ForceAuthn", "true");
    }
    let request = request.child(issuer(envelope)).child(policy);
    let request = match key {
        Some(key) => sign(request, key)?,
        None => request,
    };
    Some(canonical(&request))
}

/// The ID of a request that begins with `attempt`, so that the answer names it.
pub fn request_id(attempt: &str, random: &dyn Fn(&mut [u8])) -> String {
    format!("_{attempt}{}", identifier(random))
}

/// `xs:duration` of days and less; what has months or years in it has no certain length.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let (days, times) = match text.strip_prefix('P')?.split_once('T') {
        Some((days, times)) => (days, times),
        None => (text.strip_prefix('P')?, ""),
    };
    let mut seconds = 0_u64;
    for (part, units) in [(days, &[('D', 86_400)][..]), (times, &[('H', 3600), ('M', 60), ('S', 1)])] {
        let mut rest = part;
        for (unit, length) in units {
            let Some((number, behind)) = rest.split_once(*unit) else { continue };
            let whole = number.split('.').next().unwrap_or_default();
            seconds = seconds.checked_add(whole.parse::<u64>().ok()?.checked_mul(*length)?)?;
            rest = behind;
        }
        if !rest.is_empty() {
            return None;
        }
    }
    Some(Duration::from_secs(seconds))
}

impl Validity {
    /// Of an entity and its role, the narrower of both.
    pub(super) fn read(entity: &Element, role: &Element) -> Self {
        let until = [entity, role]
            .into_iter()
            .filter_map(|element| element.attribute("validUntil"))
            // What cannot be read is over.
            .map(|text| super::request::instant(text).unwrap_or(UnixTime(0)))
            .min();
        let refresh = [entity, role]
            .into_iter()
            .filter_map(|element| element.attribute("cacheDuration").and_then(duration))
            .min();
        Self { until, refresh }
    }
}

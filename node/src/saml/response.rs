//! What the node answers (SAML core §3.3.3, profiles §4.1.4.2): signed responses with signed assertions, or a status
//! that says why there is none.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::FormatItem;
use time::macros::format_description;

use crate::flow::UnixTime;

use super::c14n::canonical;
use super::encryption::encrypt;
use super::keys::{Certificate, Signer};
use super::names::{self, ASSERTION, PROTOCOL};
use super::signature::sign;
use super::xml::Element;

const INSTANT: &[FormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");

/// An assertion is good for this many seconds.
const LIFE: i64 = 300;
/// A service provider's clock may be this many seconds behind.
const SKEW: i64 = 60;
/// After so long no service provider takes an answer of now: the life of its assertion, and the three minutes that service
/// providers commonly allow a clock.
pub const ANSWER_LIFE: Duration = Duration::from_secs(LIFE.unsigned_abs() + 180);

/// Where an answer goes and what it answers.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// The node's entity ID.
    pub issuer: &'a str,
    /// The assertion consumer service.
    pub destination: &'a str,
    /// The ID of the request, unless the node begins.
    pub in_response_to: Option<&'a str>,
    pub now: UnixTime,
}

/// What somebody is called (core §2.2.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameId {
    pub format: String,
    pub value: String,
    /// Who made the name, and for whom; said back where the name is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_qualifier: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sp_name_qualifier: Option<String>,
}

/// Bytes of the longest name and qualifier that is read.
const LONGEST_NAME: usize = 1024;

impl NameId {
    pub fn new(format: impl Into<String>, value: impl Into<String>) -> Self {
        Self { format: format.into(), value: value.into(), name_qualifier: None, sp_name_qualifier: None }
    }

    /// The one `NameID` directly in `parent`.
    pub(super) fn read(parent: &Element) -> Option<Self> {
        let element = parent.one(ASSERTION, "NameID")?;
        let value = element.content().filter(|value| !value.is_empty())?;
        let format = element.attribute("Format").unwrap_or(names::NAMEID_UNSPECIFIED);
        let of = |name| element.attribute(name).map(str::to_owned);
        let (name_qualifier, sp_name_qualifier) = (of("NameQualifier"), of("SPNameQualifier"));
        let texts = [Some(&value), name_qualifier.as_ref(), sp_name_qualifier.as_ref()];
        let short = format.len() <= LONGEST_NAME
            && texts.into_iter().flatten().all(|text| text.len() <= LONGEST_NAME);
        let format = format.to_owned();
        short.then_some(Self { format, value, name_qualifier, sp_name_qualifier })
    }

    pub(super) fn element(&self) -> Element {
        let mut element = Element::new(ASSERTION, "NameID").with("Format", self.format.as_str());
        for (name, value) in
            [("NameQualifier", &self.name_qualifier), ("SPNameQualifier", &self.sp_name_qualifier)]
        {
            if let Some(value) = value {
                element = element.with(name, value.as_str());
            }
        }
        element.text(self.value.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    pub name: String,
    pub format: String,
    pub values: Vec<String>,
}

/// What an assertion says.
#[derive(Debug)]
pub struct Subject<'a> {
    pub audience: &'a str,
    pub name_id: &'a NameId,
    pub attributes: &'a [Statement],
    pub authenticated_at: UnixTime,
    pub session_index: &'a str,
    pub session_ends_at: UnixTime,
    pub context: &'a str,
}

/// Why there is no assertion, at the two levels of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    NoPassive,
    NoAuthnContext,
    InvalidNameIdPolicy,
    RequestUnsupported,
}

impl Refusal {
    const fn codes(self) -> (&'static str, &'static str) {
        const REQUESTER: &str = "urn:oasis:names:tc:SAML:2.0:status:Requester";
        const RESPONDER: &str = "urn:oasis:names:tc:SAML:2.0:status:Responder";
        match self {
            Self::NoPassive => (RESPONDER, "urn:oasis:names:tc:SAML:2.0:status:NoPassive"),
            Self::NoAuthnContext => (RESPONDER, "urn:oasis:names:tc:SAML:2.0:status:NoAuthnContext"),
            Self::InvalidNameIdPolicy => {
                (REQUESTER, "urn:oasis:names:tc:SAML:2.0:status:InvalidNameIDPolicy")
            }
            Self::RequestUnsupported => (REQUESTER, "urn:oasis:names:tc:SAML:2.0:status:RequestUnsupported"),
        }
    }
}

/// A signed response with one signed assertion, encrypted where the service provider has a key for it.
pub fn success(
    envelope: &Envelope<'_>,
    subject: &Subject<'_>,
    key: &dyn Signer,
    recipient: Option<&Certificate>,
    random: &dyn Fn(&mut [u8]),
) -> Option<String> {
    let assertion = sign(assertion(envelope, subject, random)?, key)?;
    let assertion = match recipient {
        Some(recipient) => encrypt(&assertion, recipient, random)?,
        None => assertion,
    };
    let status = code(names::SUCCESS);
    let response = response("Response", envelope, status, random)?.child(assertion);
    Some(canonical(&sign(response, key)?))
}

/// A signed response that says why there is no assertion.
pub fn failure(
    envelope: &Envelope<'_>,
    refusal: Refusal,
    key: &dyn Signer,
    random: &dyn Fn(&mut [u8]),
) -> Option<String> {
    let (level, reason) = refusal.codes();
    let response = response("Response", envelope, code(level).child(code(reason)), random)?;
    Some(canonical(&sign(response, key)?))
}

pub(super) fn code(value: &str) -> Element {
    Element::new(PROTOCOL, "StatusCode").with("Value", value)
}

/// A response called `local`, as every kind of response begins (core §3.2.2).
pub(super) fn response(
    local: &str,
    envelope: &Envelope<'_>,
    status: Element,
    random: &dyn Fn(&mut [u8]),
) -> Option<Element> {
    let mut response = Element::new(PROTOCOL, local)
        .with("ID", identifier(random))
        .with("Version", "2.0")
        .with("IssueInstant", instant(envelope.now)?)
        .with("Destination", envelope.destination);
    if let Some(id) = envelope.in_response_to {
        response = response.with("InResponseTo", id);
    }
    Some(response.child(issuer(envelope)).child(Element::new(PROTOCOL, "Status").child(status)))
}

pub(super) fn issuer(envelope: &Envelope<'_>) -> Element {
    Element::new(ASSERTION, "Issuer").text(envelope.issuer)
}

fn assertion(envelope: &Envelope<'_>, subject: &Subject<'_>, random: &dyn Fn(&mut [u8])) -> Option<Element> {
    let now = envelope.now;
    let until = instant(UnixTime(now.0.saturating_add(LIFE)))?;
    let mut confirmation = Element::new(ASSERTION, "SubjectConfirmationData")
        .with("NotOnOrAfter", until.as_str())
        .with("Recipient", envelope.destination);
    if let Some(id) = envelope.in_response_to {
        confirmation = confirmation.with("InResponseTo", id);
    }
    let about = Element::new(ASSERTION, "Subject").child(subject.name_id.element()).child(
        Element::new(ASSERTION, "SubjectConfirmation").with("Method", names::BEARER).child(confirmation),
    );
    let conditions = Element::new(ASSERTION, "Conditions")
        .with("NotBefore", instant(UnixTime(now.0.saturating_sub(SKEW)))?)
        .with("NotOnOrAfter", until.as_str())
        .child(
            Element::new(ASSERTION, "AudienceRestriction")
                .child(Element::new(ASSERTION, "Audience").text(subject.audience)),
        );
    let authentication = Element::new(ASSERTION, "AuthnStatement")
        .with("AuthnInstant", instant(subject.authenticated_at)?)
        .with("SessionIndex", subject.session_index)
        .with("SessionNotOnOrAfter", instant(subject.session_ends_at)?)
        .child(
            Element::new(ASSERTION, "AuthnContext")
                .child(Element::new(ASSERTION, "AuthnContextClassRef").text(subject.context)),
        );
    let assertion = Element::new(ASSERTION, "Assertion")
        .with("ID", identifier(random))
        .with("Version", "2.0")
        .with("IssueInstant", instant(now)?)
        .child(issuer(envelope))
        .child(about)
        .child(conditions)
        .child(authentication);
    if subject.attributes.is_empty() {
        return Some(assertion);
    }
    let attributes = subject.attributes.iter().map(|attribute| {
        Element::new(ASSERTION, "Attribute")
            .with("Name", attribute.name.as_str())
            .with("NameFormat", attribute.format.as_str())
            .children(
                attribute
                    .values
                    .iter()
                    .map(|value| Element::new(ASSERTION, "AttributeValue").text(value.as_str())),
            )
    });
    Some(assertion.child(Element::new(ASSERTION, "AttributeStatement").children(attributes)))
}

/// A fresh identifier of 160 random bits (SAML core §1.3.4).
pub fn identifier(random: &dyn Fn(&mut [u8])) -> String {
    let mut bytes = [0; 20];
    random(&mut bytes);
    bytes.iter().fold("_".to_owned(), |mut id, byte| {
        id.push_str(&format!("{byte:02x}"));
        id
    })
}

pub(super) fn instant(time: UnixTime) -> Option<String> {
    OffsetDateTime::from_unix_timestamp(time.0).ok()?.format(INSTANT).ok()
}

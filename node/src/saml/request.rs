//! What service providers ask (SAML core §3.4, §3.7), read from a message whose origin has been checked.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::flow::UnixTime;

use super::names::{ASSERTION, PROTOCOL};
use super::xml::Element;

/// Characters of the longest identifier, name or address in a request.
const LONGEST: usize = 1024;
const CONTEXTS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("not the kind of request that is answered here")]
    Kind,
    #[error("not SAML 2.0")]
    Version,
    #[error("ID, IssueInstant or Issuer is missing or malformed")]
    Head,
    #[error("a value is malformed or too long")]
    Value,
}

/// What every request has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub id: String,
    pub issuer: String,
    pub issued_at: UnixTime,
    pub destination: Option<String>,
}

impl Head {
    fn read(message: &Element) -> Result<Self, RequestError> {
        if message.attribute("Version") != Some("2.0") {
            return Err(RequestError::Version);
        }
        let id = message.attribute("ID").filter(|id| is_id(id)).ok_or(RequestError::Head)?;
        let issued_at = message.attribute("IssueInstant").and_then(instant).ok_or(RequestError::Head)?;
        let issuer = message
            .one(ASSERTION, "Issuer")
            .and_then(Element::content)
            .filter(|issuer| !issuer.is_empty() && issuer.len() <= LONGEST)
            .ok_or(RequestError::Head)?;
        let destination = bounded(message.attribute("Destination"))?;
        Ok(Self { id: id.to_owned(), issuer, issued_at, destination })
    }
}

/// How the requested authentication contexts are to be compared with the real one (§3.3.2.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Comparison {
    Exact,
    Minimum,
    Maximum,
    Better,
}

/// Where the answer is to go, by the request's word: it counts only if the configuration knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Consumer {
    Default,
    Address(String),
    Index(u16),
}

/// An `AuthnRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthnRequest {
    pub head: Head,
    pub consumer: Consumer,
    pub binding: Option<String>,
    pub force: bool,
    pub passive: bool,
    pub name_id_format: Option<String>,
    pub contexts: Option<(Comparison, Vec<String>)>,
    /// Whether it asks about one certain person.
    pub has_subject: bool,
}

impl AuthnRequest {
    pub fn read(message: &Element) -> Result<Self, RequestError> {
        if !message.is(PROTOCOL, "AuthnRequest") {
            return Err(RequestError::Kind);
        }
        let head = Head::read(message)?;
        let address = bounded(message.attribute("AssertionConsumerServiceURL"))?;
        let index = message.attribute("AssertionConsumerServiceIndex");
        let consumer = match (address, index) {
            (None, None) => Consumer::Default,
            (Some(address), None) => Consumer::Address(address),
            (None, Some(index)) => Consumer::Index(index.parse().map_err(|_| RequestError::Value)?),
            (Some(_), Some(_)) => return Err(RequestError::Value),
        };
        let policy = message.one(PROTOCOL, "NameIDPolicy");
        let contexts = message.one(PROTOCOL, "RequestedAuthnContext").map(contexts).transpose()?;
        Ok(Self {
            head,
            consumer,
            binding: bounded(message.attribute("ProtocolBinding"))?,
            force: flag(message.attribute("ForceAuthn"))?,
            passive: flag(message.attribute("IsPassive"))?,
            name_id_format: bounded(policy.and_then(|policy| policy.attribute("Format")))?,
            contexts,
            has_subject: message.all(ASSERTION, "Subject").next().is_some(),
        })
    }
}

fn contexts(requested: &Element) -> Result<(Comparison, Vec<String>), RequestError> {
    let comparison = match requested.attribute("Comparison") {
        None | Some("exact") => Comparison::Exact,
        Some("minimum") => Comparison::Minimum,
        Some("maximum") => Comparison::Maximum,
        Some("better") => Comparison::Better,
        Some(_) => return Err(RequestError::Value),
    };
    let classes = requested
        .all(ASSERTION, "AuthnContextClassRef")
        .take(CONTEXTS)
        .map(|class| class.content().filter(|class| class.len() <= LONGEST).ok_or(RequestError::Value))
        .collect::<Result<_, _>>()?;
    Ok((comparison, classes))
}

/// `xs:boolean`.
fn flag(value: Option<&str>) -> Result<bool, RequestError> {
    match value.map(str::trim) {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1") => Ok(true),
        Some(_) => Err(RequestError::Value),
    }
}

fn bounded(value: Option<&str>) -> Result<Option<String>, RequestError> {
    match value {
        Some(value) if value.len() > LONGEST => Err(RequestError::Value),
        value => Ok(value.map(str::to_owned)),
    }
}

/// It comes back in our answer and in events: the characters that identifiers are made of.
fn is_id(id: &str) -> bool {
    (1..=256).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

/// `xs:dateTime` with a time zone.
fn instant(text: &str) -> Option<UnixTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(|time| UnixTime(time.unix_timestamp()))
}

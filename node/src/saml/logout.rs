//! Single logout (SAML core §3.7, profiles §4.4): what a service provider asks, what the node answers, and what the node
//! asks of service providers when it ends a login itself.

use super::binding::soap;
use super::c14n::canonical;
use super::keys::{Certificate, Signer};
use super::names::{self, ASSERTION, PROTOCOL, SOAP};
use super::request::{self, Head, RequestError};
use super::response::{Envelope, NameId, code, identifier, instant, issuer, response};
use super::signature::{self, sign};
use super::xml::{self, Element};
use crate::flow::UnixTime;

/// Sessions that one request may name.
const MOST_SESSIONS: usize = 4;
/// Characters of the longest name of a session; ours have 44.
const LONGEST_INDEX: usize = 256;
/// Seconds that a request of ours is good for.
const LIFE: i64 = 300;

/// A `LogoutRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogoutRequest {
    pub head: Head,
    /// Whose sessions; nothing where it is encrypted.
    pub name_id: Option<NameId>,
    /// The sessions to end, by the names that assertions gave them; none means every session of the person.
    pub sessions: Vec<String>,
    pub not_on_or_after: Option<UnixTime>,
}

impl LogoutRequest {
    pub fn read(message: &Element) -> Result<Self, RequestError> {
        if !message.is(PROTOCOL, "LogoutRequest") {
            return Err(RequestError::Kind);
        }
        let head = Head::read(message)?;
        let not_on_or_after = match message.attribute("NotOnOrAfter") {
            None => None,
            Some(text) => Some(request::instant(text).ok_or(RequestError::Value)?),
        };
        let sessions = message
            .all(PROTOCOL, "SessionIndex")
            .map(|index| {
                index.content().filter(|index| index.len() <= LONGEST_INDEX).ok_or(RequestError::Value)
            })
            .collect::<Result<Vec<_>, _>>()?;
        if sessions.len() > MOST_SESSIONS {
            return Err(RequestError::Value);
        }
        Ok(Self { head, name_id: NameId::read(message), sessions, not_on_or_after })
    }
}

/// The answer to a `LogoutRequest`: signed itself, or not where the binding signs.
pub fn logged_out(
    envelope: &Envelope<'_>,
    key: Option<&dyn Signer>,
    random: &dyn Fn(&mut [u8]),
) -> Option<String> {
    let answer = response("LogoutResponse", envelope, code(names::SUCCESS), random)?;
    let answer = match key {
        Some(key) => sign(answer, key)?,
        None => answer,
    };
    Some(canonical(&answer))
}

/// A request that ends a session at a peer, and its ID: signed itself, or not where the binding signs. `envelope` has no
/// `in_response_to`.
pub fn end_session(
    envelope: &Envelope<'_>,
    name_id: &NameId,
    session: Option<&str>,
    key: Option<&dyn Signer>,
    random: &dyn Fn(&mut [u8]),
) -> Option<(String, String)> {
    let (id, request) = logout_request(envelope, name_id, session, key, random)?;
    Some((id, canonical(&request)))
}

/// The same, signed, in SOAP.
pub fn end_session_by_soap(
    envelope: &Envelope<'_>,
    name_id: &NameId,
    session: &str,
    key: &dyn Signer,
    random: &dyn Fn(&mut [u8]),
) -> Option<(String, String)> {
    let (id, request) = logout_request(envelope, name_id, Some(session), Some(key), random)?;
    Some((id, canonical(&soap(request))))
}

fn logout_request(
    envelope: &Envelope<'_>,
    name_id: &NameId,
    session: Option<&str>,
    key: Option<&dyn Signer>,
    random: &dyn Fn(&mut [u8]),
) -> Option<(String, Element)> {
    let id = identifier(random);
    let request = Element::new(PROTOCOL, "LogoutRequest")
        .with("ID", id.as_str())
        .with("Version", "2.0")
        .with("IssueInstant", instant(envelope.now)?)
        .with("Destination", envelope.destination)
        .with("NotOnOrAfter", instant(UnixTime(envelope.now.0.saturating_add(LIFE)))?)
        .child(issuer(envelope))
        .child(name_id.element())
        .children(session.map(|session| Element::new(PROTOCOL, "SessionIndex").text(session)));
    let request = match key {
        Some(key) => sign(request, key)?,
        None => request,
    };
    Some((id, request))
}

/// A `LogoutResponse`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogoutResponse {
    pub head: Head,
    /// The request that it answers.
    pub in_response_to: Option<String>,
    /// Whether the session has ended.
    pub ended: bool,
}

impl LogoutResponse {
    pub fn read(message: &Element) -> Result<Self, RequestError> {
        if !message.is(PROTOCOL, "LogoutResponse") {
            return Err(RequestError::Kind);
        }
        let in_response_to = message.attribute("InResponseTo").map(str::to_owned);
        Ok(Self { head: Head::read(message)?, in_response_to, ended: is_success(message) })
    }
}

fn is_success(response: &Element) -> bool {
    let status = response
        .one(PROTOCOL, "Status")
        .and_then(|status| status.one(PROTOCOL, "StatusCode"))
        .and_then(|code| code.attribute("Value"));
    status == Some(names::SUCCESS)
}

/// The second-level status code (core §3.2.2.2).
fn detailed_status(response: &Element) -> Option<&str> {
    let code = response.one(PROTOCOL, "Status")?.one(PROTOCOL, "StatusCode")?;
    code.one(PROTOCOL, "StatusCode")?.attribute("Value")
}

/// Who is asked by SOAP to end a session.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    pub entity_id: &'a str,
    pub keys: &'a [Certificate],
    /// Whether the connection itself tells that it is them: TLS does.
    pub is_certain: bool,
}

/// What a peer says of a session that it was asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Now,
    /// It knows nobody of that name (`UnknownPrincipal`): it has no session, or had none by that name.
    Unknown,
}

/// Whether a SOAP answer of `peer` says that the session of the request `id` has ended. Where its keys are known, a
/// signature that it has must hold, and it must have one if nothing else tells who answered (SAML profiles §4.4.4.2).
pub fn has_ended(answer: &[u8], id: &str, peer: Peer<'_>) -> Result<Ended, String> {
    let envelope = xml::parse(answer, xml::MESSAGE).map_err(|error| error.to_string())?;
    let response = envelope
        .one(SOAP, "Body")
        .filter(|_| envelope.is(SOAP, "Envelope"))
        .and_then(|body| body.one(PROTOCOL, "LogoutResponse"))
        .ok_or("it answered no LogoutResponse")?
        .clone();
    let is_verified = !peer.keys.is_empty() && (!peer.is_certain || signature::is_signed(&response));
    let response = if is_verified {
        signature::verify(response, peer.keys).map_err(|error| format!("its answer: {error}"))?
    } else {
        response
    };
    let issuer = response.one(ASSERTION, "Issuer").and_then(Element::content);
    if issuer.is_some_and(|issuer| issuer != peer.entity_id) {
        return Err("somebody else answered".to_owned());
    }
    if response.attribute("InResponseTo") != Some(id) {
        return Err("it answered another request".to_owned());
    }
    if is_success(&response) {
        Ok(Ended::Now)
    } else if detailed_status(&response) == Some(names::UNKNOWN_PRINCIPAL) {
        Ok(Ended::Unknown)
    } else {
        Err("it answered that it did not end the session".to_owned())
    }
}

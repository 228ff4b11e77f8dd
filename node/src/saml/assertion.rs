//! What an identity provider answers (SAML core §2, §3.3.3, profiles §4.1.4): one assertion, read from what was verified.
//!
//! ```text
//! Response ──▶ where signatures and the assertion may be, and nowhere else
//!          ──▶ its signature, where it has one ──▶ (decrypt) ──▶ the assertion's signature, where it has one
//!          ──▶ one of the two at least ──▶ status, issuer, audience, recipient, destination, times ──▶ Assertion
//! ```
//!
//! Everything that counts is read from the assertion, which one of the two signatures covers; what an unsigned response
//! says beside it can only make it refused. A false accept here is somebody else's session; a false reject is a page that
//! says what to try.

use crate::flow::UnixTime;

use super::encryption;
use super::keys::{Certificate, Decrypter};
use super::names::{self, ASSERTION, DSIG, PROTOCOL};
use super::request::instant;
use super::response::NameId;
use super::signature::{self, SignatureError};
use super::xml::{Element, Node};

/// Clocks may differ by this many seconds.
pub const SKEW: i64 = 60;
/// Attributes of a person, their values, and bytes of the longest name or value.
const MOST_ATTRIBUTES: usize = 256;
const MOST_VALUES: usize = 1000;
const LONGEST: usize = 1024;

/// Why an answer is not accepted. The texts are for the log: they name nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    #[error("it is no response of SAML 2.0")]
    Kind,
    #[error("it says that nobody was authenticated")]
    Status,
    #[error("it has not exactly one assertion, directly in the response")]
    Assertions,
    #[error("neither response nor assertion is signed")]
    Unsigned,
    #[error(transparent)]
    Signature(#[from] SignatureError),
    #[error("the assertion cannot be decrypted")]
    Encryption,
    #[error("something is missing, there twice, or too long: {0}")]
    Shape(&'static str),
    #[error("it is of another issuer")]
    Issuer,
    #[error("it is for another audience")]
    Audience,
    #[error("it is for another destination")]
    Destination,
    #[error("it is for another recipient")]
    Recipient,
    #[error("it answers another request")]
    InResponseTo,
    #[error("it is too old, or from the future")]
    Time,
    #[error("it has a condition that is not known")]
    Condition,
}

/// What an answer has to be for.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The provider's entity ID.
    pub issuer: &'a str,
    /// The node's entity ID.
    pub audience: &'a str,
    /// The node's assertion consumer service.
    pub consumer: &'a str,
    pub now: UnixTime,
}

/// What a provider says of somebody, verified and in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assertion {
    pub id: String,
    /// The request that it answers; nothing where nobody asked.
    pub in_response_to: Option<String>,
    pub name_id: NameId,
    /// Names and their values. A name that is there twice is one with the values of both.
    pub attributes: Vec<(String, Vec<String>)>,
    /// By the provider's clock.
    pub issued_at: UnixTime,
    pub authenticated_at: UnixTime,
    /// What the provider calls its session.
    pub session_index: Option<String>,
    pub session_ends_at: Option<UnixTime>,
    /// Class of the authentication context.
    pub context: Option<String>,
    /// From then on it would not be accepted again, skew included.
    pub over_at: UnixTime,
}

/// Reads the answer `response`, signed by one of `keys` and, where it is encrypted, for one of `own`.
pub fn accept(
    response: Element,
    expected: Expected<'_>,
    keys: &[Certificate],
    own: &[&dyn Decrypter],
) -> Result<Assertion, ResponseError> {
    if !response.is(PROTOCOL, "Response") || response.attribute("Version") != Some("2.0") {
        return Err(ResponseError::Kind);
    }
    let (response, assertion) = verified(response, keys, own)?;
    check_response(&response, expected)?;
    let assertion = match assertion {
        Some(assertion) => assertion,
        None => return Err(ResponseError::Assertions),
    };
    let read = read(&assertion, expected)?;
    match response.attribute("InResponseTo") {
        Some(id) if read.in_response_to.as_deref() != Some(id) => Err(ResponseError::InResponseTo),
        _ => Ok(read),
    }
}

/// The response without its assertion, and the assertion, which a signature covers.
fn verified(
    mut response: Element,
    keys: &[Certificate],
    own: &[&dyn Decrypter],
) -> Result<(Element, Option<Element>), ResponseError> {
    let count = |element: &Element| {
        element.count(ASSERTION, "Assertion") + element.count(ASSERTION, "EncryptedAssertion")
    };
    let is_assertion =
        |element: &Element| element.is(ASSERTION, "Assertion") || element.is(ASSERTION, "EncryptedAssertion");
    if count(&response) == 0 && status(&response) != Some(names::SUCCESS) {
        return Err(ResponseError::Status);
    }
    if count(&response) != 1 || response.elements().filter(|child| is_assertion(child)).count() != 1 {
        return Err(ResponseError::Assertions);
    }
    // Signatures of the response and of the assertion, and no other anywhere.
    let direct = |element: &Element| element.all(DSIG, "Signature").count();
    let of_assertion = response.all(ASSERTION, "Assertion").map(direct).sum::<usize>();
    if direct(&response) > 1
        || of_assertion > 1
        || direct(&response) + of_assertion != response.count(DSIG, "Signature")
    {
        return Err(SignatureError::Misplaced.into());
    }
    let outer = signature::take(&mut response);
    if let Some(outer) = &outer {
        signature::check(&response, outer, keys)?;
    }
    let at =
        response.children.iter().position(|node| matches!(node, Node::Element(child) if is_assertion(child)));
    let Some(Node::Element(mut assertion)) = at.map(|at| response.children.remove(at)) else {
        return Ok((response, None));
    };
    if assertion.is(ASSERTION, "EncryptedAssertion") {
        assertion = encryption::open(&assertion, own).ok_or(ResponseError::Encryption)?;
        if count(&assertion) != 1 {
            return Err(ResponseError::Assertions);
        }
        if direct(&assertion) > 1 || direct(&assertion) != assertion.count(DSIG, "Signature") {
            return Err(SignatureError::Misplaced.into());
        }
    }
    let inner = signature::take(&mut assertion);
    if let Some(inner) = &inner {
        signature::check(&assertion, inner, keys)?;
    }
    if outer.is_none() && inner.is_none() {
        return Err(ResponseError::Unsigned);
    }
    Ok((response, Some(assertion)))
}

fn status(response: &Element) -> Option<&str> {
    response.one(PROTOCOL, "Status")?.one(PROTOCOL, "StatusCode")?.attribute("Value")
}

fn check_response(response: &Element, expected: Expected<'_>) -> Result<(), ResponseError> {
    if status(response) != Some(names::SUCCESS) {
        return Err(ResponseError::Status);
    }
    if response.all(ASSERTION, "Issuer").next().is_some() {
        check_issuer(response, expected.issuer)?;
    }
    if response.attribute("Destination").is_some_and(|destination| destination != expected.consumer) {
        return Err(ResponseError::Destination);
    }
    let issued = response.attribute("IssueInstant").and_then(instant).ok_or(ResponseError::Time)?;
    if issued.0 > expected.now.0.saturating_add(SKEW) { Err(ResponseError::Time) } else { Ok(()) }
}

fn check_issuer(element: &Element, expected: &str) -> Result<(), ResponseError> {
    let issuer = element.one(ASSERTION, "Issuer").ok_or(ResponseError::Issuer)?;
    let format = issuer.attribute("Format").is_none_or(|format| format == names::NAMEID_ENTITY);
    if format && issuer.content().as_deref() == Some(expected) { Ok(()) } else { Err(ResponseError::Issuer) }
}

fn read(assertion: &Element, expected: Expected<'_>) -> Result<Assertion, ResponseError> {
    use ResponseError::Shape;
    let now = expected.now;
    if assertion.attribute("Version") != Some("2.0") {
        return Err(ResponseError::Kind);
    }
    let id = assertion.attribute("ID").filter(|id| (1..=LONGEST).contains(&id.len())).ok_or(Shape("ID"))?;
    let issued = assertion.attribute("IssueInstant").and_then(instant).ok_or(ResponseError::Time)?;
    if issued.0 > now.0.saturating_add(SKEW) {
        return Err(ResponseError::Time);
    }
    check_issuer(assertion, expected.issuer)?;
    let subject = assertion.one(ASSERTION, "Subject").ok_or(Shape("Subject"))?;
    let name_id = NameId::read(subject).ok_or(Shape("NameID"))?;
    let confirmed = confirmation(subject, expected)?;
    let conditions = assertion.one(ASSERTION, "Conditions").ok_or(Shape("Conditions"))?;
    let conditions_end = check_conditions(conditions, expected)?;
    let statement = assertion.all(ASSERTION, "AuthnStatement").next().ok_or(Shape("AuthnStatement"))?;
    let authenticated_at =
        statement.attribute("AuthnInstant").and_then(instant).ok_or(Shape("AuthnInstant"))?;
    if authenticated_at.0 > now.0.saturating_add(SKEW) {
        return Err(ResponseError::Time);
    }
    let session_ends_at = time_of(statement, "SessionNotOnOrAfter")?;
    if session_ends_at.is_some_and(|end| end <= now) {
        return Err(ResponseError::Time);
    }
    let context = statement
        .one(ASSERTION, "AuthnContext")
        .and_then(|context| context.one(ASSERTION, "AuthnContextClassRef"))
        .and_then(Element::content);
    let session_index = statement.attribute("SessionIndex").map(str::to_owned);
    if session_index.as_ref().is_some_and(|index| index.len() > LONGEST) {
        return Err(Shape("SessionIndex"));
    }
    let end = conditions_end.map_or(confirmed.end, |end| end.min(confirmed.end));
    Ok(Assertion {
        id: id.to_owned(),
        in_response_to: confirmed.in_response_to,
        name_id,
        attributes: attributes(assertion)?,
        issued_at: issued,
        authenticated_at,
        session_index,
        session_ends_at,
        context,
        over_at: UnixTime(end.0.saturating_add(SKEW)),
    })
}

struct Confirmed {
    in_response_to: Option<String>,
    end: UnixTime,
}

/// The bearer confirmation that is for this node (profiles §4.1.4.3): the first that is right, or why the last is not.
fn confirmation(subject: &Element, expected: Expected<'_>) -> Result<Confirmed, ResponseError> {
    let mut fault = ResponseError::Shape("SubjectConfirmation");
    for confirmation in subject.all(ASSERTION, "SubjectConfirmation") {
        if confirmation.attribute("Method") != Some(names::BEARER) {
            continue;
        }
        let Some(data) = confirmation.one(ASSERTION, "SubjectConfirmationData") else { continue };
        match confirmed(data, expected) {
            Ok(confirmed) => return Ok(confirmed),
            Err(error) => fault = error,
        }
    }
    Err(fault)
}

fn confirmed(data: &Element, expected: Expected<'_>) -> Result<Confirmed, ResponseError> {
    if data.attribute("Recipient") != Some(expected.consumer) {
        return Err(ResponseError::Recipient);
    }
    let end = time_of(data, "NotOnOrAfter")?.ok_or(ResponseError::Time)?;
    check_times(time_of(data, "NotBefore")?, Some(end), expected.now)?;
    let in_response_to = data.attribute("InResponseTo").map(str::to_owned);
    Ok(Confirmed { in_response_to, end })
}

/// Every condition has to hold, and one that nobody knows does not (core §2.5.1); when they end.
fn check_conditions(conditions: &Element, expected: Expected<'_>) -> Result<Option<UnixTime>, ResponseError> {
    let end = time_of(conditions, "NotOnOrAfter")?;
    check_times(time_of(conditions, "NotBefore")?, end, expected.now)?;
    let mut restricted = false;
    for condition in conditions.elements() {
        if condition.is(ASSERTION, "AudienceRestriction") {
            let ours = |audience: &Element| audience.content().as_deref() == Some(expected.audience);
            if !condition.all(ASSERTION, "Audience").any(ours) {
                return Err(ResponseError::Audience);
            }
            restricted = true;
        } else if !condition.is(ASSERTION, "OneTimeUse") && !condition.is(ASSERTION, "ProxyRestriction") {
            return Err(ResponseError::Condition);
        }
    }
    if restricted { Ok(end) } else { Err(ResponseError::Audience) }
}

fn check_times(
    not_before: Option<UnixTime>,
    not_on_or_after: Option<UnixTime>,
    now: UnixTime,
) -> Result<(), ResponseError> {
    let early = not_before.is_some_and(|start| start.0 > now.0.saturating_add(SKEW));
    let late = not_on_or_after.is_some_and(|end| end.0.saturating_add(SKEW) <= now.0);
    if early || late { Err(ResponseError::Time) } else { Ok(()) }
}

fn time_of(element: &Element, attribute: &str) -> Result<Option<UnixTime>, ResponseError> {
    element.attribute(attribute).map(|text| instant(text).ok_or(ResponseError::Time)).transpose()
}

fn attributes(assertion: &Element) -> Result<Vec<(String, Vec<String>)>, ResponseError> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    let all = assertion
        .all(ASSERTION, "AttributeStatement")
        .flat_map(|statement| statement.all(ASSERTION, "Attribute"));
    for attribute in all {
        let name = attribute.attribute("Name").filter(|name| (1..=LONGEST).contains(&name.len()));
        let name = name.ok_or(ResponseError::Shape("Attribute"))?;
        // Values that are elements, such as a NameID, are not texts and none of ours.
        let values = attribute.all(ASSERTION, "AttributeValue").filter_map(Element::content);
        let values: Vec<String> = values.take(MOST_VALUES + 1).collect();
        if values.iter().any(|value| value.len() > LONGEST) {
            return Err(ResponseError::Shape("AttributeValue"));
        }
        match found.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => known.extend(values),
            None => found.push((name.to_owned(), values)),
        }
        if found.len() > MOST_ATTRIBUTES || found.iter().any(|(_, values)| values.len() > MOST_VALUES) {
            return Err(ResponseError::Shape("Attribute"));
        }
    }
    Ok(found)
}

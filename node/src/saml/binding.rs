//! How messages travel through a browser (SAML bindings §3.4, §3.5), and beside it (§3.2).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::decompress_to_vec_with_limit;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::flow::SamlBinding;

use super::keys::{Certificate, Method, Signer};
use super::names::{self, SOAP};
use super::signature::{self, SignatureError};
use super::xml::{self, Element, XmlError};

/// Bytes of the longest RelayState. The specification allows 80; service providers send addresses.
pub const LONGEST_RELAY_STATE: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindingError {
    #[error("there is no message, or a parameter is there twice")]
    Parameters,
    #[error("the message is not base64")]
    Base64,
    #[error("the message does not inflate to at most {0} bytes")]
    Deflate(usize),
    #[error("RelayState is longer than {LONGEST_RELAY_STATE} bytes")]
    RelayState,
    #[error(transparent)]
    Xml(#[from] XmlError),
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

/// Which of the two kinds of message is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Request,
    Response,
}

impl Kind {
    pub const fn parameter(self) -> &'static str {
        match self {
            Self::Request => "SAMLRequest",
            Self::Response => "SAMLResponse",
        }
    }
}

/// A message as it came. Whether somebody signed it is in [`Received::signed`]: where it says so, the signature was
/// verified, over all that [`Received::message`] holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub message: Element,
    pub relay_state: Option<String>,
    pub signed: bool,
}

/// Reads what came in a query (HTTP-Redirect). A signature is over the very octets that came. Without `keys` a
/// signature cannot be told from a wrong one: it is not looked at, and does not count.
pub fn of_query(query: &str, kind: Kind, keys: &[Certificate]) -> Result<Received, BindingError> {
    let raw = |name: &str| raw_parameter(query, name);
    let message = raw(kind.parameter())?.ok_or(BindingError::Parameters)?;
    let relay_state = raw("RelayState")?;
    let (method, value) = (raw("SigAlg")?, raw("Signature")?);
    let signed = match (method, value) {
        (None, None) => false,
        (Some(_), Some(_)) if keys.is_empty() => false,
        (Some(method), Some(value)) => {
            let mut octets = format!("{}={message}", kind.parameter());
            if let Some(state) = relay_state {
                octets.push_str(&format!("&RelayState={state}"));
            }
            octets.push_str(&format!("&SigAlg={method}"));
            let method = Method::parse(&decoded(method)?).ok_or(SignatureError::Algorithm)?;
            let value = STANDARD.decode(decoded(value)?).map_err(|_| SignatureError::Shape)?;
            if !keys.iter().any(|key| key.verifies(method, octets.as_bytes(), &value)) {
                return Err(SignatureError::Key.into());
            }
            true
        }
        (Some(_), None) | (None, Some(_)) => return Err(SignatureError::Shape.into()),
    };
    let deflated = STANDARD.decode(decoded(message)?).map_err(|_| BindingError::Base64)?;
    let limit = xml::MESSAGE.bytes;
    let bytes = decompress_to_vec_with_limit(&deflated, limit).map_err(|_| BindingError::Deflate(limit))?;
    let message = xml::parse(&bytes, xml::MESSAGE)?;
    // In this binding the message carries no signature of its own (§3.4.4.1).
    if signature::is_signed(&message) {
        return Err(SignatureError::Misplaced.into());
    }
    Ok(Received { message, relay_state: relay_state_of(relay_state.map(decoded).transpose()?)?, signed })
}

/// The message in the field of a form (HTTP-POST), its signatures not looked at.
pub fn unverified(message: &str, limits: xml::Limits) -> Result<Element, BindingError> {
    if message.len() > limits.bytes * 4 / 3 {
        return Err(XmlError::TooLarge(limits.bytes).into());
    }
    let compact: String = message.split_ascii_whitespace().collect();
    let bytes = STANDARD.decode(compact).map_err(|_| BindingError::Base64)?;
    Ok(xml::parse(&bytes, limits)?)
}

/// Reads what came in a form (HTTP-POST), from the decoded values of its fields.
pub fn of_form(
    message: &str,
    relay_state: Option<&str>,
    keys: &[Certificate],
) -> Result<Received, BindingError> {
    let message = unverified(message, xml::MESSAGE)?;
    let relay_state = relay_state_of(relay_state.map(str::to_owned))?;
    if keys.is_empty() || !signature::is_signed(&message) {
        return Ok(Received { message, relay_state, signed: false });
    }
    let message = signature::verify(message, keys)?;
    Ok(Received { message, relay_state, signed: true })
}

/// A message on its way through the browser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Onward {
    /// To be opened.
    Open(String),
    /// To be posted, by a form with these fields.
    Post { to: String, fields: Vec<(&'static str, String)> },
}

/// Sends the message that `make` makes to `to`, signed where there is a key: inside for a form, outside for a query.
pub fn send(
    (binding, to): (SamlBinding, &str),
    kind: Kind,
    relay_state: Option<&str>,
    key: Option<&dyn Signer>,
    make: impl FnOnce(Option<&dyn Signer>) -> Option<String>,
) -> Option<Onward> {
    match binding {
        SamlBinding::Post => {
            let mut fields = vec![(kind.parameter(), encode(&make(key)?))];
            fields.extend(relay_state.map(|state| ("RelayState", state.to_owned())));
            Some(Onward::Post { to: to.to_owned(), fields })
        }
        SamlBinding::Redirect => Some(Onward::Open(redirect(to, kind, &make(None)?, relay_state, key)?)),
    }
}

/// A message as a form carries it (HTTP-POST).
pub fn encode(message: &str) -> String {
    STANDARD.encode(message)
}

/// The address that carries a message to `location` (HTTP-Redirect), signed where there is a key.
pub fn redirect(
    location: &str,
    kind: Kind,
    message: &str,
    relay_state: Option<&str>,
    key: Option<&dyn Signer>,
) -> Option<String> {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let message = STANDARD.encode(compress_to_vec(message.as_bytes(), 6));
    let mut octets = format!("{}={}", kind.parameter(), encoded(&message));
    if let Some(state) = relay_state {
        octets.push_str(&format!("&RelayState={}", encoded(state)));
    }
    if let Some(key) = key {
        octets.push_str(&format!("&SigAlg={}", encoded(names::RSA_SHA256)));
        let signature = STANDARD.encode(key.sign(octets.as_bytes())?);
        octets.push_str(&format!("&Signature={}", encoded(&signature)));
    }
    let glue = if location.contains('?') { '&' } else { '?' };
    Some(format!("{location}{glue}{octets}"))
}

/// A message as SOAP 1.1 carries it.
pub(super) fn soap(message: Element) -> Element {
    Element::new(SOAP, "Envelope").child(Element::new(SOAP, "Body").child(message))
}

/// The value of the one parameter `name`, as it came.
fn raw_parameter<'a>(query: &'a str, name: &str) -> Result<Option<&'a str>, BindingError> {
    let mut values = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(found, _)| *found == name)
        .map(|(_, value)| value);
    let value = values.next();
    match values.next() {
        None => Ok(value),
        Some(_) => Err(BindingError::Parameters),
    }
}

fn decoded(value: &str) -> Result<String, BindingError> {
    let spaced = value.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().map(String::from).map_err(|_| BindingError::Parameters)
}

fn relay_state_of(state: Option<String>) -> Result<Option<String>, BindingError> {
    match state {
        Some(state) if state.len() > LONGEST_RELAY_STATE => Err(BindingError::RelayState),
        state => Ok(state.filter(|state| !state.is_empty())),
    }
}

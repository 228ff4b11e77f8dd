//! XML signatures over whole messages and assertions (XML Signature 1.1, SAML core §5.4).
//!
//! ```text
//! sign    element ──canonical──▶ digest ──▶ SignedInfo ──canonical──▶ signature, put in after the Issuer
//! verify  message ──▶ its one Signature, a child of the message itself, with one reference to the message itself
//!         ──▶ take it out ──canonical──▶ digest ──▶ SignedInfo ──canonical──▶ a configured key ──▶ Verified
//! ```
//!
//! What is verified is the root of the document, and what is read afterwards is the very tree that was canonicalised:
//! a wrapped, moved or second element has no place to be. A false accept here lets anybody speak for a peer; a false
//! reject is a sign-in that fails with a page that says so.

use aws_lc_rs::digest;
use aws_lc_rs::rand::SecureRandom;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::c14n::canonical;
use super::keys::{Certificate, Method, SigningKey};
use super::names::{self, ASSERTION, DSIG};
use super::xml::{Element, Node};

/// A signature or digest is not longer than this in base64: RSA of 8192 bits.
const LONGEST_VALUE: usize = 2048;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the message has no signature")]
    Absent,
    #[error("there is more than one signature, or it is not directly in the message")]
    Misplaced,
    #[error("the signature is not made of exactly one SignedInfo, one value and one reference")]
    Shape,
    #[error("the signature is not over this message")]
    Reference,
    #[error("an algorithm or transform that is not accepted")]
    Algorithm,
    #[error("the message is not what was signed")]
    Digest,
    #[error("the signature is by none of the configured keys")]
    Key,
}

/// Signs `element`, which has an ID and an Issuer for its first child: the signature comes after the Issuer, where
/// the schemas want it.
pub(super) fn sign(mut element: Element, key: &SigningKey, random: &dyn SecureRandom) -> Option<Element> {
    let digest = digest::digest(&digest::SHA256, canonical(&element).as_bytes());
    let reference = Element::new(DSIG, "Reference")
        .with("URI", format!("#{}", element.attribute("ID")?))
        .child(
            Element::new(DSIG, "Transforms")
                .child(algorithm("Transform", names::ENVELOPED))
                .child(algorithm("Transform", names::EXCLUSIVE_C14N)),
        )
        .child(algorithm("DigestMethod", names::SHA256))
        .child(Element::new(DSIG, "DigestValue").text(STANDARD.encode(digest)));
    let info = Element::new(DSIG, "SignedInfo")
        .child(algorithm("CanonicalizationMethod", names::EXCLUSIVE_C14N))
        .child(algorithm("SignatureMethod", names::RSA_SHA256))
        .child(reference);
    let value = key.sign(canonical(&info).as_bytes(), random)?;
    let signature = Element::new(DSIG, "Signature")
        .child(info)
        .child(Element::new(DSIG, "SignatureValue").text(value))
        .child(key_info(key.certificate()));
    let first = element.elements().next()?;
    let at = usize::from(first.is(ASSERTION, "Issuer"));
    element.children.insert(at, Node::Element(signature));
    Some(element)
}

/// `KeyInfo` with a certificate.
pub(super) fn key_info(certificate: &Certificate) -> Element {
    Element::new(DSIG, "KeyInfo").child(
        Element::new(DSIG, "X509Data")
            .child(Element::new(DSIG, "X509Certificate").text(certificate.base64())),
    )
}

fn algorithm(element: &str, uri: &str) -> Element {
    Element::new(DSIG, element).with("Algorithm", uri)
}

/// Whether there is a signature anywhere in a message.
pub(super) fn is_signed(message: &Element) -> bool {
    message.count(DSIG, "Signature") > 0
}

/// The message without its signature, if that is of one of `keys` and over all of it.
pub(super) fn verify(mut message: Element, keys: &[Certificate]) -> Result<Element, SignatureError> {
    match message.count(DSIG, "Signature") {
        0 => return Err(SignatureError::Absent),
        1 => {}
        _ => return Err(SignatureError::Misplaced),
    }
    let at = message
        .children
        .iter()
        .position(|node| matches!(node, Node::Element(element) if element.is(DSIG, "Signature")));
    let Some(Node::Element(signature)) = at.map(|at| message.children.remove(at)) else {
        return Err(SignatureError::Misplaced);
    };
    let parts = Parts::of(&signature).ok_or(SignatureError::Shape)?;
    let id = message.attribute("ID").filter(|id| !id.is_empty()).ok_or(SignatureError::Reference)?;
    if parts.uri.strip_prefix('#') != Some(id) {
        return Err(SignatureError::Reference);
    }
    let digest_algorithm = match parts.digest_method {
        names::SHA256 => &digest::SHA256,
        names::SHA384 => &digest::SHA384,
        names::SHA512 => &digest::SHA512,
        _ => return Err(SignatureError::Algorithm),
    };
    let method = Method::parse(parts.signature_method).ok_or(SignatureError::Algorithm)?;
    if parts.canonicalization != names::EXCLUSIVE_C14N
        || parts.transforms != [names::ENVELOPED, names::EXCLUSIVE_C14N]
    {
        return Err(SignatureError::Algorithm);
    }
    if digest::digest(digest_algorithm, canonical(&message).as_bytes()).as_ref() != parts.digest {
        return Err(SignatureError::Digest);
    }
    let signed = canonical(parts.info);
    if keys.iter().any(|key| key.verifies(method, signed.as_bytes(), &parts.value)) {
        Ok(message)
    } else {
        Err(SignatureError::Key)
    }
}

/// A signature's parts, with nothing beside them that could matter.
struct Parts<'a> {
    info: &'a Element,
    value: Vec<u8>,
    canonicalization: &'a str,
    signature_method: &'a str,
    uri: &'a str,
    transforms: Vec<&'a str>,
    digest_method: &'a str,
    digest: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn of(signature: &'a Element) -> Option<Self> {
        let info = signature.one(DSIG, "SignedInfo")?;
        if signature.elements().any(|element| element.is(DSIG, "Object")) {
            return None;
        }
        let value = value(signature.one(DSIG, "SignatureValue")?)?;
        let [canonicalization, method, reference] = &info.elements().collect::<Vec<_>>()[..] else {
            return None;
        };
        let reference = reference.is(DSIG, "Reference").then_some(*reference)?;
        let [transforms, digest_method, digest] = &reference.elements().collect::<Vec<_>>()[..] else {
            return None;
        };
        let transforms = transforms.is(DSIG, "Transforms").then_some(*transforms)?;
        let digest = digest.is(DSIG, "DigestValue").then_some(*digest)?;
        Some(Self {
            info,
            value,
            canonicalization: bare(canonicalization, "CanonicalizationMethod")?,
            signature_method: bare(method, "SignatureMethod")?,
            uri: reference.attribute("URI")?,
            transforms: transforms
                .elements()
                .map(|transform| bare(transform, "Transform"))
                .collect::<Option<_>>()?,
            digest_method: bare(digest_method, "DigestMethod")?,
            digest: self::value(digest)?,
        })
    }
}

/// The algorithm that an element names and takes no parameters for.
fn bare<'a>(element: &'a Element, local: &str) -> Option<&'a str> {
    let bare = element.is(DSIG, local) && element.elements().next().is_none();
    element.attribute("Algorithm").filter(|_| bare)
}

fn value(element: &Element) -> Option<Vec<u8>> {
    let content = element.content().filter(|content| content.len() <= LONGEST_VALUE)?;
    STANDARD.decode(content.split_ascii_whitespace().collect::<String>()).ok()
}

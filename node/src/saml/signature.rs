//! XML signatures over whole messages and assertions (XML Signature 1.1, SAML core §5.4).
//!
//! ```text
//! sign    element ──canonical──▶ digest ──▶ SignedInfo ──canonical──▶ signature, put in after the Issuer
//! verify  element ──▶ its one Signature, a child of the element itself, with one reference to the element itself
//!         ──▶ take it out ──canonical──▶ digest ──▶ SignedInfo ──canonical──▶ a configured key ──▶ verified
//! ```
//!
//! What is verified is a whole message, or a whole assertion in its place in one, and what is read afterwards is the very
//! tree that was canonicalised: a wrapped, moved or second element has no place to be. A false accept here lets anybody speak for a peer; a false
//! reject is a sign-in that fails with a page that says so.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::c14n::{canonical, canonical_with};
use super::keys::{Certificate, Method, Signer};
use super::names::{self, ASSERTION, DSIG, EXCLUSIVE};
use super::xml::{Element, Node};

/// A signature or digest is not longer than this in base64: RSA of 8192 bits.
const LONGEST_VALUE: usize = 2048;
/// Prefixes that a signature may list.
const MOST_PREFIXES: usize = 8;

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
pub(super) fn sign(mut element: Element, key: &dyn Signer) -> Option<Element> {
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
    let value = STANDARD.encode(key.sign(canonical(&info).as_bytes())?);
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
    let signature = take(&mut message).ok_or(SignatureError::Misplaced)?;
    check(&message, &signature, keys)?;
    Ok(message)
}

/// Takes out the first signature that is directly in `element`.
pub(super) fn take(element: &mut Element) -> Option<Element> {
    let at = element
        .children
        .iter()
        .position(|node| matches!(node, Node::Element(child) if child.is(DSIG, "Signature")))?;
    match element.children.remove(at) {
        Node::Element(signature) => Some(signature),
        Node::Text(_) => None,
    }
}

/// Whether `signature`, which was taken out of `element`, is of one of `keys` and over all of the element.
pub(super) fn check(
    element: &Element,
    signature: &Element,
    keys: &[Certificate],
) -> Result<(), SignatureError> {
    let parts = Parts::of(signature).ok_or(SignatureError::Shape)?;
    let id = element.attribute("ID").filter(|id| !id.is_empty()).ok_or(SignatureError::Reference)?;
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
    let [enveloped, exclusive] = &parts.transforms[..] else { return Err(SignatureError::Algorithm) };
    if enveloped.uri != names::ENVELOPED || !enveloped.prefixes.is_empty() {
        return Err(SignatureError::Algorithm);
    }
    if [exclusive, &parts.canonicalization].iter().any(|method| method.uri != names::EXCLUSIVE_C14N) {
        return Err(SignatureError::Algorithm);
    }
    let content = canonical_with(element, &exclusive.prefixes);
    if digest::digest(digest_algorithm, content.as_bytes()).as_ref() != parts.digest {
        return Err(SignatureError::Digest);
    }
    let signed = canonical_with(parts.info, &parts.canonicalization.prefixes);
    if keys.iter().any(|key| key.verifies(method, signed.as_bytes(), &parts.value)) {
        Ok(())
    } else {
        Err(SignatureError::Key)
    }
}

/// A signature's parts, with nothing beside them that could matter.
struct Parts<'a> {
    info: &'a Element,
    value: Vec<u8>,
    canonicalization: Canonical<'a>,
    signature_method: &'a str,
    uri: &'a str,
    transforms: Vec<Canonical<'a>>,
    digest_method: &'a str,
    digest: Vec<u8>,
}

/// A transform or canonicalisation, and the prefixes that it lists.
struct Canonical<'a> {
    uri: &'a str,
    prefixes: Vec<&'a str>,
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
            canonicalization: Canonical::of(canonicalization, "CanonicalizationMethod")?,
            signature_method: bare(method, "SignatureMethod")?,
            uri: reference.attribute("URI")?,
            transforms: transforms
                .elements()
                .map(|transform| Canonical::of(transform, "Transform"))
                .collect::<Option<_>>()?,
            digest_method: bare(digest_method, "DigestMethod")?,
            digest: self::value(digest)?,
        })
    }
}

impl<'a> Canonical<'a> {
    /// The only parameter is a list of prefixes (exclusive XML canonicalisation §4).
    fn of(element: &'a Element, local: &str) -> Option<Self> {
        let uri = element.attribute("Algorithm").filter(|_| element.is(DSIG, local))?;
        let prefixes = match &element.elements().collect::<Vec<_>>()[..] {
            [] => Vec::new(),
            [list] if list.is(EXCLUSIVE, "InclusiveNamespaces") => {
                list.attribute("PrefixList")?.split_ascii_whitespace().collect()
            }
            _ => return None,
        };
        (prefixes.len() <= MOST_PREFIXES).then_some(Self { uri, prefixes })
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

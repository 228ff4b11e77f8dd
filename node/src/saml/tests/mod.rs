mod assertion;
mod hostile;
mod logout;
mod third_parties;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256};

use crate::clock::fill;
use crate::flow::UnixTime;
use crate::saas::saml::SigningKey;

use super::binding::{self, Kind};
use super::c14n::canonical;
use super::keys::{Certificate, Signer as _};
use super::metadata::{IdentityProvider, MetadataError, ServiceProvider};
use super::names::{self, ASSERTION, PROTOCOL};
use super::request::{AuthnRequest, Comparison, Consumer, RequestError};
use super::response::{self, Envelope, NameId, Refusal, Statement, Subject};
use super::signature::{sign, verify};
use super::xml::{self, Element, MESSAGE, METADATA};

/// A key as files have it.
struct Pem {
    private: String,
    certificate: String,
}

impl Pem {
    fn rsa() -> Self {
        Self::of(&KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap())
    }

    fn p256() -> Self {
        Self::of(&KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap())
    }

    fn p384() -> Self {
        Self::of(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap())
    }

    fn of(pair: &KeyPair) -> Self {
        let certificate = CertificateParams::default().self_signed(pair).unwrap().pem();
        Self { private: pair.serialize_pem(), certificate }
    }

    fn key(&self) -> SigningKey {
        SigningKey::from_pem(self.private.as_bytes(), self.certificate.as_bytes()).unwrap()
    }

    fn certificate(&self) -> Certificate {
        Certificate::from_pem(self.certificate.as_bytes()).unwrap()
    }
}

fn request() -> Element {
    Element::new(PROTOCOL, "AuthnRequest")
        .with("ID", "_r1")
        .with("Version", "2.0")
        .with("IssueInstant", "2026-11-29T04:00:00.123Z")
        .with("Destination", "https://access.example.com/cdn-cgi/access/sso/saml/wiki")
        .with("AssertionConsumerServiceURL", "https://sp.example.org/acs")
        .child(Element::new(ASSERTION, "Issuer").text("https://sp.example.org"))
}

fn signed(element: Element, pem: &Pem) -> String {
    canonical(&sign(element, &pem.key()).unwrap())
}

/// The answer for a person with an awkward name.
fn answer(pem: &Pem, recipient: Option<&Certificate>) -> String {
    let name_id = NameId::new(names::NAMEID_EMAIL, "a<b>&\"c\r\n@example.org");
    let attributes = [
        Statement {
            name: "groups".into(),
            format: names::ATTRNAME_BASIC.into(),
            values: vec!["x".into(), "ünï".into()],
        },
        Statement { name: "a\"b".into(), format: names::ATTRNAME_BASIC.into(), values: vec![] },
    ];
    let envelope = Envelope {
        issuer: "https://idp.example",
        destination: "https://sp.example.org/acs?a=1&b=2",
        in_response_to: Some("_r1"),
        now: UnixTime(1_795_924_800),
    };
    let subject = Subject {
        audience: "https://sp.example.org",
        name_id: &name_id,
        attributes: &attributes,
        authenticated_at: UnixTime(1_795_924_000),
        session_index: "_s",
        session_ends_at: UnixTime(1_795_930_000),
        context: names::AC_PASSWORD,
    };
    response::success(&envelope, &subject, &pem.key(), recipient, &fill).unwrap()
}

#[test]
fn a_request_is_read_whole() {
    let message = request()
        .with("ForceAuthn", "1")
        .with("IsPassive", "false")
        .with("ProtocolBinding", names::BINDING_POST)
        .child(Element::new(PROTOCOL, "NameIDPolicy").with("Format", names::NAMEID_EMAIL))
        .child(
            Element::new(PROTOCOL, "RequestedAuthnContext")
                .with("Comparison", "minimum")
                .child(Element::new(ASSERTION, "AuthnContextClassRef").text(" urn:x ")),
        );
    let read = AuthnRequest::read(&message).unwrap();
    assert_eq!((read.head.id.as_str(), read.head.issuer.as_str()), ("_r1", "https://sp.example.org"));
    assert_eq!(read.head.issued_at, UnixTime(1_795_924_800));
    assert_eq!(read.consumer, Consumer::Address("https://sp.example.org/acs".into()));
    assert_eq!((read.force, read.passive, read.has_subject), (true, false, false));
    assert_eq!(read.name_id_format.as_deref(), Some(names::NAMEID_EMAIL));
    assert_eq!(read.contexts, Some((Comparison::Minimum, vec!["urn:x".to_owned()])));
}

#[test]
fn a_request_that_lacks_or_doubles_something_is_none() {
    let without = |name: &str| {
        let mut message = request();
        message.attributes.retain(|attribute| attribute.name.local != name);
        message
    };
    let two_issuers = request().child(Element::new(ASSERTION, "Issuer").text("https://other"));
    for (message, error) in [
        (Element::new(PROTOCOL, "LogoutRequest"), RequestError::Kind),
        (Element::new(ASSERTION, "AuthnRequest"), RequestError::Kind),
        (without("Version"), RequestError::Version),
        (without("Version").with("Version", "1.1"), RequestError::Version),
        (without("ID"), RequestError::Head),
        (without("ID").with("ID", "a b"), RequestError::Head),
        (without("ID").with("ID", "a".repeat(257)), RequestError::Head),
        (without("IssueInstant").with("IssueInstant", "yesterday"), RequestError::Head),
        (without("IssueInstant").with("IssueInstant", "2026-11-29T04:00:00"), RequestError::Head),
        (two_issuers, RequestError::Head),
        (request().with("AssertionConsumerServiceIndex", "1"), RequestError::Value),
        (
            without("AssertionConsumerServiceURL").with("AssertionConsumerServiceIndex", "-1"),
            RequestError::Value,
        ),
        (request().with("ForceAuthn", "yes"), RequestError::Value),
        (
            without("AssertionConsumerServiceURL")
                .with("AssertionConsumerServiceURL", format!("https://{}", "a".repeat(1024))),
            RequestError::Value,
        ),
        (
            request().child(Element::new(PROTOCOL, "RequestedAuthnContext").with("Comparison", "any")),
            RequestError::Value,
        ),
    ] {
        assert_eq!(AuthnRequest::read(&message), Err(error), "{message:?}");
    }
}

#[test]
fn what_was_signed_is_what_is_read() {
    let (ours, other) = (Pem::rsa(), Pem::rsa());
    let text = signed(request(), &ours);
    let parsed = xml::parse(text.as_bytes(), MESSAGE).unwrap();
    // The second key of two: keys are rolled over.
    let read = verify(parsed, &[other.certificate(), ours.certificate()]).unwrap();
    assert_eq!(canonical(&read), canonical(&request()));
}

#[test]
fn a_query_is_verified_over_the_octets_that_came() {
    let (ours, other) = (Pem::rsa(), Pem::rsa());
    let message = hostile::deflated(&canonical(&request()));
    for state in ["", "&RelayState=a%2fb+c"] {
        let octets = format!("SAMLRequest={message}{state}&SigAlg={}", hostile::encoded(names::RSA_SHA256));
        let signature = STANDARD.encode(ours.key().sign(octets.as_bytes()).unwrap());
        let query = format!("{octets}&Signature={}", hostile::encoded(&signature));
        let read = binding::of_query(&query, Kind::Request, &[ours.certificate()]).unwrap();
        assert_eq!((canonical(&read.message), read.signed), (canonical(&request()), true));
        assert_eq!(read.relay_state.as_deref(), (!state.is_empty()).then_some("a/b c"));
        assert!(binding::of_query(&query, Kind::Request, &[other.certificate()]).is_err());
        // Without a key nothing can be said of it, and nothing is.
        assert!(!binding::of_query(&query, Kind::Request, &[]).unwrap().signed);
        let lower = query.replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d");
        let other_octets = lower != query;
        let read = binding::of_query(&lower, Kind::Request, &[ours.certificate()]);
        // The signature's own encoding is free, that of what it signs is not.
        assert_eq!(read.is_err(), other_octets && lower.split("&Signature").next() != Some(&*octets));
    }
}

#[test]
fn refusals_are_signed_and_say_why() {
    let pem = Pem::rsa();
    let envelope = Envelope {
        issuer: "https://idp.example",
        destination: "https://sp.example.org/acs",
        in_response_to: None,
        now: UnixTime(1_795_924_800),
    };
    for refusal in [
        Refusal::NoPassive,
        Refusal::NoAuthnContext,
        Refusal::InvalidNameIdPolicy,
        Refusal::RequestUnsupported,
    ] {
        let text = response::failure(&envelope, refusal, &pem.key(), &fill).unwrap();
        let message = verify(xml::parse(text.as_bytes(), MESSAGE).unwrap(), &[pem.certificate()]).unwrap();
        assert_eq!(message.count(ASSERTION, "Assertion"), 0);
        let code = message.one(PROTOCOL, "Status").and_then(|status| status.one(PROTOCOL, "StatusCode"));
        let inner = code.unwrap().one(PROTOCOL, "StatusCode").unwrap().attribute("Value").unwrap();
        assert!(inner.to_lowercase().ends_with(&format!("{refusal:?}").to_lowercase()), "{inner}");
    }
}

#[test]
fn metadata_is_read_and_written() {
    let (one, two) = (Pem::rsa(), Pem::rsa());
    let key = |use_: &str, pem: &Pem| {
        format!(
            "<md:KeyDescriptor{use_}><ds:KeyInfo xmlns:ds='http://www.w3.org/2000/09/xmldsig#'><ds:X509Data>\
             <ds:X509Certificate>\n{}\n</ds:X509Certificate></ds:X509Data></ds:KeyInfo></md:KeyDescriptor>",
            pem.certificate().base64()
        )
    };
    let document = |services: &str| {
        format!(
            "<?xml version='1.0'?><!-- made by hand --><md:EntityDescriptor entityID='https://sp.example.org' \
             xmlns:md='urn:oasis:names:tc:SAML:2.0:metadata'><md:SPSSODescriptor AuthnRequestsSigned='true' \
             protocolSupportEnumeration='urn:oasis:names:tc:SAML:2.0:protocol'>{}{}\
             <md:NameIDFormat>{}</md:NameIDFormat>{services}</md:SPSSODescriptor></md:EntityDescriptor>",
            key(" use='signing'", &one),
            key("", &two),
            names::NAMEID_PERSISTENT,
        )
    };
    let services = format!(
        "<md:AssertionConsumerService index='1' Binding='{0}' Location='https://sp.example.org/1'/>\
         <md:AssertionConsumerService index='2' isDefault='true' Binding='{0}' Location='https://sp.example.org/2'/>\
         <md:AssertionConsumerService index='3' Binding='urn:artifact' Location='https://sp.example.org/3'/>",
        names::BINDING_POST
    );
    let read = ServiceProvider::read(document(&services).as_bytes()).unwrap();
    assert_eq!(read.entity_id, "https://sp.example.org");
    let consumers =
        [("https://sp.example.org/2".to_owned(), Some(2)), ("https://sp.example.org/1".to_owned(), Some(1))];
    assert_eq!(read.consumers, consumers);
    assert_eq!(read.signing, [one.certificate(), two.certificate()]);
    assert_eq!(read.encryption, Some(two.certificate()));
    assert!(read.signs_requests && read.name_id_format.as_deref() == Some(names::NAMEID_PERSISTENT));
    assert_eq!(ServiceProvider::read(document("").as_bytes()), Err(MetadataError::NoConsumer));

    let ours = IdentityProvider {
        entity_id: "https://idp.example",
        sign_in: "https://idp.example/sso",
        logout: "https://idp.example/sso/logout",
        certificates: &[one.certificate(), two.certificate()],
        name_id_format: names::NAMEID_EMAIL,
        wants_signed_requests: true,
    };
    let document = ours.document();
    assert_eq!(ServiceProvider::read(document.as_bytes()), Err(MetadataError::NoServiceProvider));
    assert_eq!(document.matches("<ds:X509Certificate>").count(), 2);
    assert_eq!(document.matches("Location=\"https://idp.example/sso/logout\"").count(), 2);
}

#[test]
fn keys_that_are_too_weak_or_none_are_refused() {
    let ed25519 = Pem::of(&KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap());
    assert!(Certificate::from_pem(ed25519.certificate.as_bytes()).is_err());
    assert!(
        Certificate::from_pem(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err()
    );
    assert!(Certificate::from_base64("AAAA").is_err());
    assert!(Certificate::from_base64(&"A".repeat(20_000)).is_err());
    let (one, two) = (Pem::p256(), Pem::rsa());
    assert!(SigningKey::from_pem(one.private.as_bytes(), two.certificate.as_bytes()).is_err());
    assert!(!super::encryption::can_encrypt_to(&one.certificate()));
    assert!(super::encryption::can_encrypt_to(&two.certificate()));
}

proptest! {
    #[test]
    fn bytes_never_panic_and_canonical_is_a_fixed_point(text in "[<>/&;:='\"a-cx#0-9 !\\-\\[\\]?\n\t]{0,200}") {
        if let Ok(element) = xml::parse(text.as_bytes(), METADATA) {
            let once = canonical(&element);
            prop_assert_eq!(canonical(&xml::parse(once.as_bytes(), METADATA).unwrap()), once);
        }
    }

    #[test]
    fn text_survives_writing_and_reading(text in any::<String>(), value in any::<String>()) {
        // What XML cannot say at all is not written by anybody: names and values are checked where they come in.
        prop_assume!(text.chars().chain(value.chars()).all(|c| c >= ' ' && !('\u{fffe}'..='\u{ffff}').contains(&c)));
        let element = Element::new(PROTOCOL, "a").with("b", value.as_str()).text(text.as_str());
        let again = xml::parse(canonical(&element).as_bytes(), MESSAGE).unwrap();
        prop_assert_eq!(again.attribute("b"), Some(value.as_str()));
        let read = again.content().unwrap();
        prop_assert_eq!(read, text.trim_matches([' ', '\t', '\r', '\n']));
    }

    /// Any change of a signed message that still parses is refused, unless it is none to XML.
    #[test]
    fn a_changed_byte_is_noticed(at in any::<prop::sample::Index>(), to in 32u8..127) {
        static SIGNED: std::sync::LazyLock<(String, Certificate)> = std::sync::LazyLock::new(|| {
            let pem = Pem::rsa();
            (signed(request(), &pem), pem.certificate())
        });
        let (text, certificate) = &*SIGNED;
        let mut bytes = text.clone().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(message) = xml::parse(&bytes, MESSAGE)
            && let Ok(read) = verify(message, std::slice::from_ref(certificate))
        {
            prop_assert_eq!(canonical(&read), canonical(&request()));
        }
    }
}

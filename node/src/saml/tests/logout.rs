//! Single logout, both ways.

use super::super::keys::Signer;
use super::super::logout::{Ended, LogoutRequest, Peer, end_session_by_soap, has_ended, logged_out};
use super::super::metadata::LogoutService;
use super::super::upstream::{Place, Service};
use super::*;

const SOAP: &str = "http://schemas.xmlsoap.org/soap/envelope/";

fn logout_request(attributes: &[(&str, &str)], sessions: &[&str]) -> Element {
    let request = Element::new(PROTOCOL, "LogoutRequest")
        .with("ID", "_l1")
        .with("Version", "2.0")
        .with("IssueInstant", "2026-11-29T04:00:00Z");
    attributes
        .iter()
        .fold(request, |request, (name, value)| request.with(name, *value))
        .child(Element::new(ASSERTION, "Issuer").text("https://sp.example.org"))
        .child(Element::new(ASSERTION, "NameID").text("ann@example.org"))
        .children(sessions.iter().map(|index| Element::new(PROTOCOL, "SessionIndex").text(*index)))
}

fn envelope<'a>(destination: &'a str, in_response_to: Option<&'a str>) -> Envelope<'a> {
    Envelope { issuer: "https://idp.example", destination, in_response_to, now: UnixTime(1_795_924_800) }
}

#[test]
fn a_request_is_read_whole() {
    let read =
        LogoutRequest::read(&logout_request(&[("NotOnOrAfter", "2026-11-29T04:00:01Z")], &["_a", "_b"]));
    let read = read.unwrap();
    assert_eq!((read.head.id.as_str(), read.sessions), ("_l1", vec!["_a".to_owned(), "_b".to_owned()]));
    assert_eq!(read.not_on_or_after, Some(UnixTime(1_795_924_801)));
    let long = "x".repeat(257);
    for (what, message, error) in [
        ("a sign-in", request(), RequestError::Kind),
        ("an end that is none", logout_request(&[("NotOnOrAfter", "soon")], &[]), RequestError::Value),
        ("a long name", logout_request(&[], &[&long]), RequestError::Value),
        ("many sessions", logout_request(&[], &["a", "b", "c", "d", "e"]), RequestError::Value),
    ] {
        assert_eq!(LogoutRequest::read(&message), Err(error), "{what}");
    }
}

#[test]
fn answers_are_signed_by_message_or_by_query() {
    let pem = Pem::rsa();
    let key = pem.key();
    let to = envelope("https://sp.example.org/sls?a=1", Some("_l1"));
    let posted = logged_out(&to, Some(&key), &fill).unwrap();
    let read = verify(xml::parse(posted.as_bytes(), MESSAGE).unwrap(), &[pem.certificate()]).unwrap();
    assert!(read.is(PROTOCOL, "LogoutResponse") && read.attribute("InResponseTo") == Some("_l1"));

    let bare = logged_out(&to, None, &fill).unwrap();
    let address =
        binding::redirect(to.destination, Kind::Response, &bare, Some("a b&c"), Some(&key)).unwrap();
    let query = address.strip_prefix("https://sp.example.org/sls?a=1&").unwrap();
    let received = binding::of_query(query, Kind::Response, &[pem.certificate()]).unwrap();
    assert!(received.signed && received.relay_state.as_deref() == Some("a b&c"));
    assert_eq!(canonical(&received.message), bare);
    let other = Pem::rsa().certificate();
    assert!(binding::of_query(query, Kind::Response, &[other]).is_err());
    let address =
        binding::redirect("https://sp.example.org/sls", Kind::Response, &bare, None, Some(&key)).unwrap();
    assert!(
        address.starts_with("https://sp.example.org/sls?SAMLResponse=") && !address.contains("RelayState")
    );
}

#[test]
fn a_request_by_soap_is_signed_and_only_its_own_success_counts() {
    let pem = Pem::rsa();
    let name_id = NameId::new(names::NAMEID_EMAIL, "ann@example.org");
    let to = envelope("https://sp.example.org/soap", None);
    let (id, text) = end_session_by_soap(&to, &name_id, "_s", &pem.key(), &fill).unwrap();
    let soap = xml::parse(text.as_bytes(), MESSAGE).unwrap();
    let body = soap.elements().next().unwrap();
    assert!(soap.name.namespace == SOAP && soap.name.local == "Envelope" && body.name.local == "Body");
    let message = verify(body.elements().next().unwrap().clone(), &[pem.certificate()]).unwrap();
    let read = LogoutRequest::read(&message).unwrap();
    assert_eq!((&read.head.id, read.sessions), (&id, vec!["_s".to_owned()]));
    assert_eq!(read.not_on_or_after, Some(UnixTime(to.now.0 + 300)));
    assert_eq!(
        message.one(ASSERTION, "NameID").and_then(Element::content).as_deref(),
        Some("ann@example.org")
    );

    let peer = Peer { entity_id: to.issuer, keys: &[], is_certain: true };
    let good = answer(&id, None);
    let unknown = good.replace(
        "<samlp:StatusCode Value=\"urn:oasis:names:tc:SAML:2.0:status:Success\"></samlp:StatusCode>",
        "<samlp:StatusCode Value=\"urn:oasis:names:tc:SAML:2.0:status:Requester\"><samlp:StatusCode \
         Value=\"urn:oasis:names:tc:SAML:2.0:status:UnknownPrincipal\"></samlp:StatusCode></samlp:StatusCode>",
    );
    assert_eq!(has_ended(unknown.as_bytes(), &id, peer), Ok(Ended::Unknown), "{unknown}");
    assert_eq!(has_ended(good.as_bytes(), &id, peer), Ok(Ended::Now));
    for (what, text) in [
        ("another request's", answer("_other", None)),
        ("somebody else's", good.replace("https://idp.example", "https://other.example")),
        ("a failure", good.replace(":status:Success", ":status:Responder")),
        ("a fault", format!("<s:Envelope xmlns:s='{SOAP}'><s:Body><s:Fault/></s:Body></s:Envelope>")),
        ("no envelope", good.replace("Envelope", "Letter")),
        ("a page", "<html><body>hello</body></html>".into()),
        ("nothing", String::new()),
    ] {
        assert!(has_ended(text.as_bytes(), &id, peer).is_err(), "{what}");
    }
}

/// An answer to the request `id` in SOAP.
fn answer(id: &str, key: Option<&dyn Signer>) -> String {
    let answer = logged_out(&envelope("x", Some(id)), key, &fill).unwrap();
    format!("<s:Envelope xmlns:s='{SOAP}'><s:Body>{answer}</s:Body></s:Envelope>")
}

#[test]
fn an_answer_by_soap_is_vouched_for_by_its_signature_or_by_the_connection() {
    let (pem, other) = (Pem::rsa(), Pem::rsa());
    let keys = [pem.certificate()];
    let over = |is_certain| Peer { entity_id: "https://idp.example", keys: &keys, is_certain };
    let ended = |text: &str, peer| has_ended(text.as_bytes(), "_l1", peer);
    let (unsigned, signed) = (answer("_l1", None), answer("_l1", Some(&pem.key())));
    assert_eq!(ended(&unsigned, over(true)), Ok(Ended::Now));
    assert_eq!(ended(&signed, over(true)), Ok(Ended::Now));
    assert_eq!(ended(&signed, over(false)), Ok(Ended::Now));
    assert_eq!(ended(&unsigned, Peer { keys: &[], ..over(false) }), Ok(Ended::Now), "nothing to tell it by");
    assert_eq!(ended(&signed, Peer { keys: &[], ..over(true) }), Ok(Ended::Now), "the connection tells");
    for (what, text) in [
        ("another's signature", answer("_l1", Some(&other.key()))),
        ("what was not signed", signed.replace("InResponseTo=\"_l1\"", "InResponseTo=\"_l2\"")),
    ] {
        for is_certain in [true, false] {
            let id = if text.contains("_l2") { "_l2" } else { "_l1" };
            let read = has_ended(text.as_bytes(), id, over(is_certain));
            assert!(read.unwrap_err().starts_with("its answer: "), "{what}");
        }
    }
    assert!(ended(&unsigned, over(false)).unwrap_err().contains("no signature"));
}

#[test]
fn metadata_says_where_logouts_go() {
    let service = |binding: &str, more: &str| {
        format!("<md:SingleLogoutService Binding='urn:oasis:names:tc:SAML:2.0:bindings:{binding}' {more}/>")
    };
    let document = |services: &str| {
        format!(
            "<md:EntityDescriptor entityID='x' xmlns:md='urn:oasis:names:tc:SAML:2.0:metadata'><md:SPSSODescriptor \
             protocolSupportEnumeration='urn:oasis:names:tc:SAML:2.0:protocol'>{services}<md:AssertionConsumerService \
             index='1' Binding='{}' Location='https://sp.example.org/1'/></md:SPSSODescriptor></md:EntityDescriptor>",
            names::BINDING_POST
        )
    };
    let read = |services: &str| ServiceProvider::read(document(services).as_bytes()).unwrap().logout;
    assert_eq!(read(""), LogoutService::default());
    let all = service("SOAP", "Location='https://a/soap' ResponseLocation='https://a/no'")
        + &service("HTTP-Redirect", "Location='https://a/in' ResponseLocation='https://a/out'")
        + &service("HTTP-POST", "Location='https://a/post'")
        + &service("HTTP-POST", "Location='https://a/second'");
    assert_eq!(
        read(&all),
        LogoutService {
            browser: Service {
                redirect: Some(Place { location: "https://a/in".into(), answers: "https://a/out".into() }),
                post: Some(Place { location: "https://a/post".into(), answers: "https://a/post".into() }),
            },
            soap: Some("https://a/soap".into()),
        }
    );
}

#[test]
fn a_certificate_says_when_it_expires() {
    let mut parameters = CertificateParams::default();
    parameters.not_after = time::OffsetDateTime::from_unix_timestamp(1_900_000_000).unwrap();
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = Certificate::from_pem(parameters.self_signed(&pair).unwrap().pem().as_bytes()).unwrap();
    assert_eq!(certificate.valid_until(), UnixTime(1_900_000_000));
}

proptest! {
    /// What we answer is read as what we said, by who asked and by nobody else; a signature changes that in no case.
    #[test]
    fn an_answer_by_soap_is_what_was_said_to_the_request_that_it_answers(
        id in "[_a-zA-Z][-._a-zA-Z0-9]{0,40}",
        other in "[_a-zA-Z][-._a-zA-Z0-9]{0,40}",
        issuer in "https://[a-z<&\"']{1,30}/ü?",
        is_signed: bool,
        is_certain: bool,
    ) {
        static PEM: std::sync::LazyLock<Pem> = std::sync::LazyLock::new(Pem::rsa);
        let (key, keys) = (PEM.key(), [PEM.certificate()]);
        let envelope = Envelope { issuer: &issuer, ..envelope("x", Some(&id)) };
        let answer = logged_out(&envelope, is_signed.then_some(&key as &dyn Signer), &fill).unwrap();
        let message = xml::parse(answer.as_bytes(), MESSAGE).unwrap();
        let answer = canonical(&binding::soap(message));
        let ended = |id: &str, keys, entity_id| has_ended(answer.as_bytes(), id, Peer { entity_id, keys, is_certain });
        prop_assert_eq!(ended(&id, &[], &issuer), Ok(Ended::Now));
        prop_assert_eq!(ended(&id, &keys, &issuer).is_ok(), is_signed || is_certain);
        prop_assert!(ended(&id, &keys, "https://elsewhere.example").is_err());
        prop_assert!(other == id || ended(&other, &[], &issuer).is_err());
    }

    #[test]
    fn an_answer_by_soap_that_was_changed_counts_only_as_what_was_signed(
        at in any::<prop::sample::Index>(), to in 32u8..127
    ) {
        static SIGNED: std::sync::LazyLock<(String, Certificate)> = std::sync::LazyLock::new(|| {
            let pem = Pem::rsa();
            (answer("_l1", Some(&pem.key())), pem.certificate())
        });
        let (text, key) = &*SIGNED;
        let mut bytes = text.clone().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = to;
        let peer = |keys| Peer { entity_id: "https://idp.example", keys, is_certain: false };
        let (vouched_for, claimed) = (
            has_ended(&bytes, "_l1", peer(std::slice::from_ref(key))),
            has_ended(&bytes, "_l1", peer(&[])),
        );
        prop_assert!(vouched_for.is_err() || vouched_for == Ok(Ended::Now) && claimed == vouched_for);
        prop_assert!(has_ended(&bytes, "_l2", peer(std::slice::from_ref(key))).is_err());
    }
}

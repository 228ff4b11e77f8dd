//! Answers of identity providers, as the node reads them.

use super::super::assertion::{Expected, ResponseError, accept};
use super::super::keys::Decrypter;
use super::super::names::DSIG;
use super::super::signature::SignatureError;
use super::super::upstream::{Ask, OwnServiceProvider, Provider, ask, duration, request_id};
use super::super::xml::XmlError;
use super::*;

const NOW: UnixTime = UnixTime(1_795_924_800);

fn expected() -> Expected<'static> {
    Expected {
        issuer: "https://idp.example",
        audience: "https://sp.example.org",
        consumer: "https://sp.example.org/acs?a=1&b=2",
        now: NOW,
    }
}

fn read(text: &str, pem: &Pem, own: &[&dyn Decrypter]) -> Result<super::super::Assertion, ResponseError> {
    accept(xml::parse(text.as_bytes(), MESSAGE).unwrap(), expected(), &[pem.certificate()], own)
}

#[test]
fn what_we_say_as_provider_we_accept_as_service() {
    let (pem, own, other) = (Pem::rsa(), Pem::rsa(), Pem::rsa());
    let (key, stranger) = (own.key(), other.key());
    for recipient in [None, Some(own.certificate())] {
        let text = answer(&pem, recipient.as_ref());
        // The second key of two: keys are rolled over.
        let found = read(&text, &pem, &[&stranger, &key]).unwrap();
        assert_eq!(found.name_id.value, "a<b>&\"c\r\n@example.org");
        assert_eq!(found.in_response_to.as_deref(), Some("_r1"));
        assert_eq!(found.attributes[0], ("groups".into(), vec!["x".into(), "ünï".into()]));
        assert_eq!(
            (found.session_index.as_deref(), found.context.as_deref()),
            (Some("_s"), Some(names::AC_PASSWORD))
        );
        assert_eq!(found.session_ends_at, Some(UnixTime(1_795_930_000)));
        assert_eq!(read(&text, &other, &[&key]), Err(SignatureError::Key.into()));
    }
    let text = answer(&pem, Some(&own.certificate()));
    assert_eq!(read(&text, &pem, &[&stranger]), Err(ResponseError::Encryption));
    assert_eq!(read(&text, &pem, &[]), Err(ResponseError::Encryption));
}

#[test]
fn who_is_meant_when_and_where_are_checked() {
    let pem = Pem::rsa();
    let text = answer(&pem, None);
    let with = |expected: Expected<'_>| {
        accept(xml::parse(text.as_bytes(), MESSAGE).unwrap(), expected, &[pem.certificate()], &[]).map(drop)
    };
    let good = expected();
    let at = |seconds: i64| Expected { now: UnixTime(NOW.0 + seconds), ..good };
    for (what, expected, result) in [
        ("as it is", good, Ok(())),
        ("another issuer", Expected { issuer: "https://idp.example/", ..good }, Err(ResponseError::Issuer)),
        (
            "another audience",
            Expected { audience: "https://sp.example", ..good },
            Err(ResponseError::Audience),
        ),
        (
            "another consumer",
            Expected { consumer: "https://sp.example.org/acs", ..good },
            Err(ResponseError::Destination),
        ),
        ("as early as clocks differ", at(-60), Ok(())),
        ("earlier", at(-61), Err(ResponseError::Time)),
        ("as late as clocks differ", at(359), Ok(())),
        ("later", at(360), Err(ResponseError::Time)),
    ] {
        assert_eq!(with(expected), result, "{what}");
    }
}

#[test]
fn prefixes_that_a_signature_lists_are_declared() {
    // As xmlsec1 signs; the same document without what is listed does not verify.
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/tests/saml/corpus/answers");
    let file = |name: &str| std::fs::read_to_string(format!("{folder}/{name}")).unwrap();
    let key = Certificate::from_pem(file("key.pem").as_bytes()).unwrap();
    let expected = Expected {
        issuer: "https://idp.example",
        audience: "https://node.example/metadata",
        consumer: "https://node.example/acs",
        now: NOW,
    };
    let accept = |text: &str| {
        let message = xml::parse(text.as_bytes(), MESSAGE).unwrap();
        accept(message, expected, std::slice::from_ref(&key), &[])
    };
    for name in ["answer-assertion.xml", "answer-response.xml", "answer-both.xml"] {
        assert_eq!(accept(&file(name)).unwrap().name_id.value, "u-1", "{name}");
    }
    for name in ["answer-inclusive.xml", "answer-inclusive-both.xml"] {
        let text = file(name);
        assert_eq!(accept(&text).unwrap().attributes[1].1, ["ops", "dév"], "{name}");
        for (from, to) in [
            ("PrefixList=\"xs", "PrefixList=\"xsi"),
            ("xmlns:xs=\"http://www.w3.org/2001/XMLSchema\"", "xmlns:xs=\"urn:other\""),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            assert!(accept(&changed).is_err(), "{name}: {from}");
        }
    }
    let many = "a b c d e f g h i";
    let text =
        file("answer-inclusive.xml").replacen("PrefixList=\"xs\"", &format!("PrefixList=\"{many}\""), 1);
    assert_eq!(accept(&text), Err(SignatureError::Shape.into()));
    let undeclared = "<a xmlns:b=''><b:c/></a>";
    assert_eq!(xml::parse(undeclared.as_bytes(), MESSAGE), Err(XmlError::Undeclared));
}

#[test]
fn a_provider_is_read_and_the_node_described() {
    let (one, two) = (Pem::rsa(), Pem::p256());
    let key = |use_: &str, pem: &Pem| {
        let info = super::super::signature::key_info(&pem.certificate());
        canonical(&Element::new(names::METADATA, "KeyDescriptor").with("use", use_).child(info))
    };
    let document = |attributes: &str, keys: &str, services: &str| {
        format!(
            "<md:EntityDescriptor xmlns:md='{}' entityID='https://idp.example' {attributes}><md:IDPSSODescriptor \
             protocolSupportEnumeration='{}'>{keys}{services}</md:IDPSSODescriptor></md:EntityDescriptor>",
            names::METADATA.uri,
            PROTOCOL.uri
        )
    };
    let service = |local: &str, binding: &str, more: &str| {
        format!("<md:{local} Binding='{binding}' Location='https://idp.example/{local}' {more}/>")
    };
    let services = service("SingleSignOnService", names::BINDING_POST, "")
        + &service(
            "SingleLogoutService",
            names::BINDING_REDIRECT,
            "ResponseLocation='https://idp.example/back'",
        );
    let keys = key("signing", &one) + &key("encryption", &two);
    let whole = document("validUntil='2026-11-29T04:00:00Z' cacheDuration='P1DT2H3M4.5S'", &keys, &services);
    let provider = Provider::read(whole.as_bytes()).unwrap();
    assert_eq!(
        (provider.entity_id.as_str(), provider.signing),
        ("https://idp.example", vec![one.certificate()])
    );
    assert!(provider.sign_in.redirect.is_none());
    assert_eq!(provider.sign_in.post.unwrap().location, "https://idp.example/SingleSignOnService");
    assert_eq!(provider.logout.redirect.unwrap().answers, "https://idp.example/back");
    assert_eq!(provider.validity.until, Some(NOW));
    assert_eq!(provider.validity.refresh.map(|refresh| refresh.as_secs()), Some(93_784));
    for (document, error) in [
        (document("", "", &services), MetadataError::NoKey),
        (document("", &keys, ""), MetadataError::NoSignIn),
        (whole.replace("IDPSSO", "SPSSO"), MetadataError::NoIdentityProvider),
        (whole.replace("EntityDescriptor", "EntitiesDescriptor"), MetadataError::Entity),
    ] {
        assert_eq!(Provider::read(document.as_bytes()), Err(error));
    }
    let unreadable = whole.replace("2026-11-29T04:00:00Z", "some day");
    assert_eq!(
        Provider::read(unreadable.as_bytes()).unwrap().validity.until,
        Some(UnixTime(0)),
        "it is over"
    );
    for (text, seconds) in [
        ("PT1H", Some(3600)),
        ("P2D", Some(172_800)),
        ("P1M", None),
        ("1H", None),
        ("PT", Some(0)),
        ("PTxS", None),
    ] {
        assert_eq!(duration(text).map(|duration| duration.as_secs()), seconds, "{text}");
    }

    let own = OwnServiceProvider {
        entity_id: "https://sp.example.org",
        consumer: "https://sp.example.org/acs",
        logout: "https://sp.example.org/logout",
        certificates: &[one.certificate()],
        name_id_format: Some(names::NAMEID_PERSISTENT),
        signs_requests: true,
    };
    let read = ServiceProvider::read(own.document().as_bytes()).unwrap();
    assert_eq!(read.consumers, [("https://sp.example.org/acs".to_owned(), Some(0))]);
    assert_eq!((read.signing, read.encryption), (vec![one.certificate()], Some(one.certificate())));
    assert!(read.signs_requests && read.logout.browser.post.is_some());
}

#[test]
fn the_node_asks_as_service_providers_do() {
    let pem = Pem::rsa();
    let envelope = Envelope {
        issuer: "https://sp.example.org",
        destination: "https://idp.example/sso",
        in_response_to: None,
        now: NOW,
    };
    let id = request_id("0123456789abcdef", &fill);
    let what = Ask {
        consumer: "https://sp.example.org/acs",
        name_id_format: Some(names::NAMEID_EMAIL),
        force: true,
    };
    let text = ask(&envelope, &id, what, Some(&pem.key())).unwrap();
    let message = verify(xml::parse(text.as_bytes(), MESSAGE).unwrap(), &[pem.certificate()]).unwrap();
    let read = AuthnRequest::read(&message).unwrap();
    assert!(read.head.id.starts_with("_0123456789abcdef_") && read.force && !read.passive);
    assert_eq!(read.consumer, Consumer::Address("https://sp.example.org/acs".into()));
    assert_eq!(read.name_id_format.as_deref(), Some(names::NAMEID_EMAIL));
    let bare = ask(&envelope, &id, Ask { name_id_format: None, force: false, ..what }, None).unwrap();
    let message = xml::parse(bare.as_bytes(), MESSAGE).unwrap();
    assert!(message.count(DSIG, "Signature") == 0 && message.attribute("ForceAuthn").is_none());
}

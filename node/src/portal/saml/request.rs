//! What is checked of a request before anybody is asked to sign in.

use serde::{Deserialize, Serialize};

use crate::flow::{SamlConsumer, SamlService, UnixTime};
use crate::saml::{AuthnRequest, BINDING_POST, Comparison, Consumer, Refusal};

/// A request may have been under way for this many seconds: tabs are opened again and sent off anew.
const OLDEST: i64 = 600;
/// The application's clock may be this many seconds ahead.
const SKEW: i64 = 60;

/// What is kept of a request, sealed in the browser, until the person has signed in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ask {
    /// The request's ID; nothing where the launcher began.
    pub(super) id: Option<String>,
    /// A consumer service of the configuration.
    pub(super) consumer: String,
    pub(super) relay_state: Option<String>,
    pub(super) force: bool,
    pub(super) passive: bool,
    pub(super) name_id_format: Option<String>,
    pub(super) contexts: Option<(Comparison, Vec<String>)>,
    pub(super) received_at: UnixTime,
}

impl Ask {
    /// What the launcher asks.
    pub(super) fn unsolicited(service: &SamlService, now: UnixTime) -> Option<Self> {
        Some(Self {
            id: None,
            consumer: service.consumers.first()?.location.clone(),
            relay_state: service.relay_state.clone(),
            force: false,
            passive: false,
            name_id_format: None,
            contexts: None,
            received_at: now,
        })
    }
}

/// Why a request is answered with a page of the node's own: nothing that it says counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Objection {
    #[error("the issuer is another service provider")]
    Issuer,
    #[error("the request has to be signed and is not")]
    Unsigned,
    #[error("the request is for another destination")]
    Destination,
    #[error("the request is too old, or from the future")]
    Time,
    #[error("the assertion consumer service is none of the configured ones")]
    Consumer,
}

/// Checks a request. With an ask may come a refusal: the answer is known before anybody signs in.
pub(super) fn check(
    request: AuthnRequest,
    signed: bool,
    relay_state: Option<String>,
    service: &SamlService,
    sign_in: &str,
    now: UnixTime,
) -> Result<(Ask, Option<Refusal>), Objection> {
    if request.head.issuer != service.entity_id {
        return Err(Objection::Issuer);
    }
    if service.require_signed && !signed {
        return Err(Objection::Unsigned);
    }
    // A signed request names where it goes (bindings §3.4.5.2), or it could be taken from one place to another.
    match &request.head.destination {
        Some(destination) if destination == sign_in => {}
        None if !signed => {}
        Some(_) | None => return Err(Objection::Destination),
    }
    if !is_in_time(request.head.issued_at, now) {
        return Err(Objection::Time);
    }
    let consumer = consumer(&request.consumer, service).ok_or(Objection::Consumer)?.location.clone();
    let refusal = match request.binding.as_deref() {
        None | Some(BINDING_POST) if !request.has_subject => None,
        _ => Some(Refusal::RequestUnsupported),
    };
    let ask = Ask {
        id: Some(request.head.id),
        consumer,
        relay_state,
        force: request.force,
        passive: request.passive,
        name_id_format: request.name_id_format,
        contexts: request.contexts,
        received_at: now,
    };
    Ok((ask, refusal))
}

/// Whether a request of `issued_at` is neither too old nor from the future.
pub(super) fn is_in_time(issued_at: UnixTime, now: UnixTime) -> bool {
    (-SKEW..=OLDEST).contains(&now.0.saturating_sub(issued_at.0))
}

fn consumer<'a>(wanted: &Consumer, service: &'a SamlService) -> Option<&'a SamlConsumer> {
    match wanted {
        Consumer::Default => service.consumers.first(),
        Consumer::Address(address) => service.consumers.iter().find(|known| known.location == *address),
        Consumer::Index(index) => service.consumers.iter().find(|known| known.index == Some(*index)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saml::{Kind, of_form};

    const SIGN_IN: &str = "https://access.example.com/cdn-cgi/access/sso/saml/crm";
    const NOW: UnixTime = UnixTime(1_795_924_800);

    fn service(require_signed: bool) -> SamlService {
        let consumer =
            |location: &str, index| SamlConsumer { location: location.to_owned(), index: Some(index) };
        SamlService {
            name: "crm".into(),
            entity_id: "https://sp.example.org".into(),
            consumers: vec![consumer("https://sp.example.org/1", 1), consumer("https://sp.example.org/2", 2)],
            certificates: vec![],
            encrypt_to: None,
            require_signed,
            name_id: None,
            attributes: vec![],
            relay_state: None,
            logout: crate::flow::SamlLogout::default(),
        }
    }

    /// A request with these attributes and children beside ID, version and issuer.
    fn request(attributes: &str, children: &str) -> AuthnRequest {
        let text = format!(
            "<p:AuthnRequest xmlns:p='urn:oasis:names:tc:SAML:2.0:protocol' ID='_1' Version='2.0' {attributes}><Issuer \
             xmlns='urn:oasis:names:tc:SAML:2.0:assertion'>https://sp.example.org</Issuer>{children}</p:AuthnRequest>"
        );
        assert_eq!(Kind::Request.parameter(), "SAMLRequest");
        let received = of_form(&crate::saml::encode(&text), None, &[]).unwrap();
        AuthnRequest::read(&received.message).unwrap()
    }

    const ISSUED: &str = "IssueInstant='2026-11-29T04:00:00Z'";

    #[test]
    fn the_answer_goes_to_a_configured_address_only() {
        for (wanted, expected) in [
            ("", Ok("https://sp.example.org/1")),
            ("AssertionConsumerServiceIndex='2'", Ok("https://sp.example.org/2")),
            ("AssertionConsumerServiceURL='https://sp.example.org/2'", Ok("https://sp.example.org/2")),
            ("AssertionConsumerServiceIndex='3'", Err(Objection::Consumer)),
            ("AssertionConsumerServiceURL='https://sp.example.org/'", Err(Objection::Consumer)),
            ("AssertionConsumerServiceURL='https://sp.example.org/22'", Err(Objection::Consumer)),
            ("AssertionConsumerServiceURL='HTTPS://sp.example.org/2'", Err(Objection::Consumer)),
            ("AssertionConsumerServiceURL='https://sp.example.org/2#x'", Err(Objection::Consumer)),
            ("AssertionConsumerServiceURL='https://sp.example.org/2?x'", Err(Objection::Consumer)),
        ] {
            let request = request(&format!("{ISSUED} {wanted}"), "");
            let found = check(request, false, None, &service(false), SIGN_IN, NOW);
            let found = found.map(|(ask, refusal)| {
                assert_eq!(refusal, None);
                ask.consumer
            });
            assert_eq!(found, expected.map(str::to_owned), "{wanted}");
        }
    }

    #[test]
    fn time_destination_and_signature_are_checked() {
        let right = format!("{ISSUED} Destination='{SIGN_IN}'");
        let elsewhere = format!("{ISSUED} Destination='{SIGN_IN}/'");
        for (attributes, signed, required, later, expected) in [
            (right.as_str(), true, true, 0, Ok(())),
            (&right, false, true, 0, Err(Objection::Unsigned)),
            (&right, false, false, OLDEST, Ok(())),
            (&right, false, false, OLDEST + 1, Err(Objection::Time)),
            (&right, false, false, -SKEW, Ok(())),
            (&right, false, false, -SKEW - 1, Err(Objection::Time)),
            (&right, false, false, i64::MIN / 2, Err(Objection::Time)),
            (&elsewhere, false, false, 0, Err(Objection::Destination)),
            (ISSUED, false, false, 0, Ok(())),
            (ISSUED, true, true, 0, Err(Objection::Destination)),
        ] {
            let now = UnixTime(NOW.0 + later);
            let found = check(request(attributes, ""), signed, None, &service(required), SIGN_IN, now);
            assert_eq!(found.map(drop), expected, "{attributes} {signed} {required} {later}");
        }
        let other = SamlService { entity_id: "https://sp.example.org/".into(), ..service(false) };
        let found = check(request(ISSUED, ""), false, None, &other, SIGN_IN, NOW);
        assert_eq!(found.map(drop), Err(Objection::Issuer));
    }

    #[test]
    fn what_is_not_done_is_refused_to_the_application() {
        let subject = "<Subject xmlns='urn:oasis:names:tc:SAML:2.0:assertion'/>";
        let artifact =
            format!("{ISSUED} ProtocolBinding='urn:oasis:names:tc:SAML:2.0:bindings:HTTP-Artifact'");
        for request in [request(ISSUED, subject), request(&artifact, "")] {
            let (_, refusal) = check(request, false, None, &service(false), SIGN_IN, NOW).unwrap();
            assert_eq!(refusal, Some(Refusal::RequestUnsupported));
        }
    }
}

//! Requests that are not what they should be: a page of the node's own, one event, and nothing for anybody else.

use portcullis_tests::realm::AUTH;
use serde_json::json;

use crate::service::{ACS, ENTITY, Lab};

fn instant(ago: i64) -> String {
    let output = std::process::Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d", &format!("{ago} seconds ago")])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A request that is good, for the table to spoil.
fn request(lab: &Lab) -> String {
    format!(
        "<samlp:AuthnRequest xmlns:samlp=\"urn:oasis:names:tc:SAML:2.0:protocol\" ID=\"_1\" Version=\"2.0\" \
         IssueInstant=\"{}\" Destination=\"{}\" AssertionConsumerServiceURL=\"{ACS}\"><Issuer \
         xmlns=\"urn:oasis:names:tc:SAML:2.0:assertion\">{ENTITY}</Issuer></samlp:AuthnRequest>",
        instant(0),
        lab.endpoint()
    )
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[test]
fn requests_that_cannot_be_trusted_go_nowhere() {
    let lab = Lab::new("", false).unwrap();
    let web = lab.realm.web("eve");
    let good = request(&lab);
    let post = |message: &str| web.post(&lab.endpoint(), &[("SAMLRequest", &base64(message))]).unwrap();
    assert_eq!(post(&good).status, 303);
    let swap = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1)
    };
    let issued = good.split("IssueInstant=\"").nth(1).unwrap().get(..16).unwrap();
    let cases = [
        ("another consumer", swap(ACS, "https://evil.example/acs")),
        ("a longer consumer", swap(ACS, &format!("{ACS}/x"))),
        (
            "a consumer with a user",
            swap("https://sp.example.org/saml/acs", "https://sp.example.org@evil.example/saml/acs"),
        ),
        ("a consumer in other case", swap(ACS, &ACS.replace("saml", "SAML"))),
        (
            "an index that is not there",
            swap(&format!("AssertionConsumerServiceURL=\"{ACS}\""), "AssertionConsumerServiceIndex=\"7\""),
        ),
        ("another issuer", swap(ENTITY, "https://evil.example")),
        ("no issuer", swap(ENTITY, "")),
        ("another destination", swap(&lab.endpoint(), "https://evil.example/sso")),
        ("an old request", swap(issued, &instant(86_400)[..16])),
        ("a request from the future", swap(issued, &instant(-86_400)[..16])),
        ("SAML 1.1", swap("Version=\"2.0\"", "Version=\"1.1\"")),
        ("no ID", swap("ID=\"_1\"", "")),
        ("a script for an ID", swap("ID=\"_1\"", "ID=\"&lt;script>\"")),
        ("another message", good.replace("AuthnRequest", "LogoutRequest")),
        ("a document type", format!("<!DOCTYPE x [<!ENTITY a \"b\">]>{good}")),
        ("a comment in the issuer", swap(ENTITY, &format!("{ENTITY}<!-- x -->"))),
        ("no XML", "hello".to_owned()),
        ("nothing", String::new()),
    ];
    for (what, message) in &cases {
        let reply = post(message);
        assert_eq!(reply.status, 400, "{what}: {}", reply.body);
        assert_eq!(reply.cookies(), [""; 0], "{what}");
        assert!(
            reply.ray().is_ok() && !reply.body.contains("evil.example") && !reply.body.contains("<script>"),
            "{what}"
        );
    }
    for (what, query) in [
        ("no base64", "SAMLRequest=%25%25".to_owned()),
        ("not deflated", "SAMLRequest=YWJj".to_owned()),
        ("two messages", "SAMLRequest=a&SAMLRequest=b".to_owned()),
        ("no parameter", "SAMLRequest".to_owned()),
    ] {
        let reply = web.get(&format!("{}?{query}", lab.endpoint())).unwrap();
        assert_eq!((reply.status, reply.cookies().len()), (400, 0), "{what}: {}", reply.body);
    }
    for name in ["", "?request=0123456789abcdef", "?request=..%2f..%2f", "?request=a&request=b"] {
        let reply = web.get(&format!("{}/resume{name}", lab.endpoint())).unwrap();
        assert_eq!((reply.status, reply.cookies().len()), (400, 0), "{name}: {}", reply.body);
    }
    let bombs = web.post(&lab.endpoint(), &[("SAMLRequest", &"A".repeat(70_000))]).unwrap();
    assert_eq!(bombs.status, 413);
    let json = [
        "--data-raw".to_owned(),
        "{}".to_owned(),
        "--header".to_owned(),
        "Content-Type: application/json".to_owned(),
    ];
    assert_eq!(web.send(&lab.endpoint(), &json).unwrap().status, 400);
    let all = cases.len() + 9;
    let events = lab.realm.events("sign_in", all).unwrap();
    assert_eq!(events.len(), all, "{events:?}");
    assert!(events.iter().all(|event| event["allowed"] == json!(false) && event["app_name"] == json!("crm")));

    for path in ["", "/", "/none", "/crm/", "/crm/x", "/crm/saml-metadata/x", "/CRM"] {
        let reply = web.get(&lab.realm.url(AUTH, &format!("/cdn-cgi/access/sso/saml{path}"))).unwrap();
        assert_eq!(reply.status, 404, "{path}");
    }
}

#[test]
fn an_unsigned_or_foreign_request_is_none_where_they_are_signed() {
    let lab = Lab::new(", certificate = \"DIR/sp.pem\"", true).unwrap();
    let web = lab.realm.web("eve");
    let good = request(&lab);
    let post = |message: &str| web.post(&lab.endpoint(), &[("SAMLRequest", message)]).unwrap().status;
    assert_eq!(post(&base64(&good)), 400, "unsigned");
    let signed = lab.request(&["post"]).unwrap()["message"].as_str().unwrap().to_owned();
    assert_eq!(post(&signed), 303);
    let text = {
        use base64::Engine as _;
        String::from_utf8(base64::engine::general_purpose::STANDARD.decode(&signed).unwrap()).unwrap()
    };
    let forged = text.replacen(ACS, "https://sp.example.org/other", 1);
    assert_ne!(forged, text);
    assert_eq!(post(&base64(&forged)), 400, "forged");
    let url = lab.request(&["redirect"]).unwrap()["url"].as_str().unwrap().to_owned();
    assert_eq!(web.get(&url).unwrap().status, 302);
    assert_eq!(
        web.get(&url.replacen("RelayState=", "RelayState=x", 1)).unwrap().status,
        400,
        "another state"
    );
    let unsigned = url.split("&Signature=").next().unwrap().split("&SigAlg=").next().unwrap().to_owned();
    assert_eq!(web.get(&unsigned).unwrap().status, 400, "the signature taken off");
}

/// Nobody has to prove anything for a refusal, and it is signed: a network gets only so many.
#[test]
fn a_network_cannot_have_refusals_signed_for_ever() {
    let lab = Lab::new("", false).unwrap();
    let eve = lab.realm.web("eve");
    // All of them are made before the first is sent: that takes longer than what there is again every ten seconds.
    let requests: Vec<_> = (0..24).map(|_| lab.request(&["redirect", "passive"]).unwrap()).collect();
    let passive = |request: &serde_json::Value| eve.get(request["url"].as_str().unwrap()).unwrap().status;
    let answers: Vec<u16> = requests.iter().map(passive).collect();
    assert_eq!((answers[0], answers[23]), (200, 429), "{answers:?}");
    assert_eq!(lab.realm.events("sign_in", 24).unwrap()[23]["reason"], "throttled");
    let other = eve.from("127.0.9.1");
    let request = lab.request(&["redirect", "passive"]).unwrap();
    assert_eq!(other.get(request["url"].as_str().unwrap()).unwrap().status, 200, "another network may");
}

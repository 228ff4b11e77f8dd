//! Answers of an identity provider that are not what they should be: a page of the node's own, exactly one event, no cookie
//! and no session, whatever signature they carry.

use portcullis_tests::realm::AUTH;
use serde_json::{Value, json};

use crate::provider::{Answer, Begun, ISSUER, Provider, Seals, encode, instant};

/// The part of `text` from the start of `<name` to the end of `</name>`.
fn part<'a>(text: &'a str, name: &str) -> &'a str {
    let start = text.find(&format!("<{name}")).unwrap_or_else(|| panic!("no {name} in {text}"));
    let close = format!("</{name}>");
    let end = text[start..].find(&close).unwrap() + start + close.len();
    &text[start..end]
}

/// The first signature in `text`.
fn signature_of(text: &str) -> &str {
    let start = text.find("<ds:Signature ").unwrap();
    let end = text.find("</ds:Signature>").unwrap() + "</ds:Signature>".len();
    &text[start..end]
}

fn swap(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from} is not in {text}");
    text.replacen(from, to, 1)
}

type Change = Box<dyn Fn(&Provider, Answer) -> String>;

/// A case whose answer says something else, and is signed well.
fn says(what: &'static str, change: impl Fn(&mut Answer) + 'static) -> (&'static str, Change) {
    let made = move |provider: &Provider, mut answer: Answer| {
        change(&mut answer);
        provider.sealed(&answer, Seals::default()).unwrap()
    };
    (what, Box::new(made))
}

/// A case that is sealed otherwise.
fn sealed(what: &'static str, seals: Seals<'static>) -> (&'static str, Change) {
    (what, Box::new(move |provider, answer| provider.sealed(&answer, seals).unwrap()))
}

/// A case whose text is changed after it was signed.
fn text(
    what: &'static str,
    seals: Seals<'static>,
    change: impl Fn(&str, &Answer) -> String + 'static,
) -> (&'static str, Change) {
    (what, Box::new(move |provider, answer| change(&provider.sealed(&answer, seals).unwrap(), &answer)))
}

/// The unsigned assertion of somebody else.
fn forged(answer: &Answer) -> String {
    Answer { name_id: "bob@example.com".into(), id: "_forged".into(), ..answer.clone() }.assertion()
}

fn cases() -> Vec<(&'static str, Change)> {
    let good = Seals::default();
    let by_response = Seals { assertion: None, response: Some("idp"), ..good };
    let mut cases = vec![
        sealed("unsigned", Seals { assertion: None, ..good }),
        sealed("signed by another key, which it brings along", Seals { assertion: Some("other"), ..good }),
        sealed("the response signed by another key", Seals { response: Some("other"), ..good }),
        sealed("signed with SHA-1", Seals { method: "RSA_SHA1", ..good }),
        sealed("digested with SHA-1", Seals { digest: "SHA1", ..good }),
        sealed(
            "encrypted and signed by nobody",
            Seals { assertion: None, encrypt: Some("aes256-gcm"), ..good },
        ),
        sealed("encrypted with CBC", Seals { encrypt: Some("aes256-cbc"), ..good }),
        sealed(
            "encrypted, its key wrapped by PKCS#1 v1.5",
            Seals { encrypt: Some("aes256-gcm"), transport: "pkcs1", ..good },
        ),
        text("encrypted, and changed", Seals { encrypt: Some("aes256-gcm"), ..good }, |text, _| {
            let value = part(text.rsplit_once("</ds:KeyInfo>").unwrap().1, "xenc:CipherValue").to_owned();
            let changed = value.replacen(&value[40..44], "AAAA", 1);
            swap(text, &value, &changed)
        }),
        says("another issuer", |answer| answer.issuer = "https://evil.example".into()),
        says("another issuer of the response", |answer| {
            answer.response_issuer = "https://evil.example".into()
        }),
        says("no issuer", |answer| answer.issuer = String::new()),
        says("another audience", |answer| answer.audience = "https://other.example/sp".into()),
        says("a longer audience", |answer| answer.audience.push('x')),
        says("another recipient", |answer| answer.recipient = "https://other.example/acs".into()),
        says("another destination", |answer| answer.destination = "https://other.example/acs".into()),
        says("another request", |answer| {
            answer.in_response_to = "_0123456789abcdef_ff".into();
            answer.response_in_response_to = "_0123456789abcdef_ff".into();
        }),
        says("a request of the same name", |answer| {
            let id = format!("{}0", &answer.in_response_to[..answer.in_response_to.len() - 1]);
            answer.in_response_to = if id == answer.in_response_to { id.replace('0', "1") } else { id };
            answer.response_in_response_to = answer.in_response_to.clone();
        }),
        says("a response to another request than the assertion", |answer| {
            answer.response_in_response_to = "_0123456789abcdef_ff".into();
        }),
        says("unsolicited", |answer| {
            answer.in_response_to = String::new();
            answer.response_in_response_to = String::new();
        }),
        says("expired", |answer| answer.not_on_or_after = -120),
        says("a confirmation that is over", |answer| answer.confirmed_until = -120),
        says("not yet good", |answer| answer.not_before = 120),
        says("issued in the future", |answer| answer.issued = 3600),
        says("a session that is over", |answer| answer.session_until = -1),
        says("a failure", |answer| answer.status = "urn:oasis:names:tc:SAML:2.0:status:Responder".into()),
        says("a NameID with a document in it", |answer| answer.name_id = "<x>ann@example.com</x>".into()),
        text("a comment in the NameID", good, |text, _| {
            swap(text, "ann@example.com", "ann@example.com<!-- -->.evil.test")
        }),
        text("another name after the signature", good, |text, _| swap(text, "ann@", "bob@")),
        text("another name in a signed response", by_response, |text, _| swap(text, "ann@", "bob@")),
        text("a document type", good, |text, _| format!("<!DOCTYPE x>{text}")),
        text("an entity", good, |text, _| {
            format!("<!DOCTYPE x [<!ENTITY a SYSTEM \"file:///etc/passwd\">]>{}", swap(text, "ann@", "&a;@"))
        }),
        text("a processing instruction", good, |text, _| {
            swap(text, "<samlp:Status>", "<?x y?><samlp:Status>")
        }),
        text("two assertions", good, |text, answer| {
            swap(text, "</samlp:Response>", &format!("{}</samlp:Response>", forged(answer)))
        }),
        text("two assertions in a signed response", by_response, |text, answer| {
            swap(text, "</samlp:Status>", &format!("</samlp:Status>{}", forged(answer)))
        }),
        text("an assertion twice", good, |text, _| {
            let assertion = part(text, "saml:Assertion").to_owned();
            swap(text, &assertion, &assertion.repeat(2))
        }),
        text("no assertion", good, |text, _| swap(text, part(text, "saml:Assertion"), "")),
        text("no version", good, |text, _| swap(text, " Version=\"2.0\"", "")),
        text("a request", good, |text, _| text.replace("samlp:Response", "samlp:AuthnRequest")),
        text("cut off", good, |text, _| text[..text.len() - 10].to_owned()),
        text("nothing", good, |_, _| String::new()),
        text("an HMAC", good, |text, _| {
            swap(
                text,
                "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256",
                "http://www.w3.org/2001/04/xmldsig-more#hmac-sha256",
            )
        }),
        text("no algorithm", good, |text, _| {
            swap(text, "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256", "none")
        }),
        text("a transform more", good, |text, _| {
            swap(
                text,
                "<ds:Transforms>",
                "<ds:Transforms><ds:Transform Algorithm=\"http://www.w3.org/TR/1999/REC-xpath-19991116\"/>",
            )
        }),
        text("two SignedInfo", good, |text, _| {
            let info = part(text, "ds:SignedInfo").to_owned();
            swap(text, &info, &info.repeat(2))
        }),
        text("two signatures", good, |text, _| {
            let signature = signature_of(text).to_owned();
            swap(text, &signature, &signature.repeat(2))
        }),
        text("the signature taken off", good, |text, _| swap(text, signature_of(text), "")),
    ];
    cases.extend(wrapped());
    cases
}

/// Signature wrapping: the signed assertion is moved to where only the signature looks, and a forged one is read.
fn wrapped() -> Vec<(&'static str, Change)> {
    type Wrap = fn(&str, &str, &str, &str) -> String;
    // response, signed assertion, its signature, forged assertion
    let wraps: [(&'static str, Wrap); 9] = [
        ("1: the forged one beside the signed one, before it", |text, signed, _, forged| {
            swap(text, signed, &format!("{forged}{signed}"))
        }),
        ("2: after it", |text, signed, _, forged| swap(text, signed, &format!("{signed}{forged}"))),
        ("3: the signed one inside the forged one", |text, signed, _, forged| {
            swap(text, signed, &swap(forged, "</saml:Assertion>", &format!("{signed}</saml:Assertion>")))
        }),
        ("4: the forged one inside the signed one", |text, signed, _, forged| {
            swap(text, signed, &swap(signed, "</saml:Assertion>", &format!("{forged}</saml:Assertion>")))
        }),
        (
            "5: the signature in the forged one, the signed one in its Object",
            |text, signed, signature, forged| {
                let bare = swap(signed, signature, "");
                let around = swap(
                    signature,
                    "</ds:Signature>",
                    &format!("<ds:Object>{bare}</ds:Object></ds:Signature>"),
                );
                swap(text, signed, &swap(forged, "</saml:Issuer>", &format!("</saml:Issuer>{around}")))
            },
        ),
        ("6: the same, the signed one after it", |text, signed, signature, forged| {
            let bare = swap(signed, signature, "");
            let forged = swap(forged, "</saml:Issuer>", &format!("</saml:Issuer>{signature}"));
            swap(text, signed, &format!("{forged}{bare}"))
        }),
        ("7: the signed one in the response's Extensions", |text, signed, _, forged| {
            let moved = format!("<samlp:Extensions>{signed}</samlp:Extensions>{forged}");
            swap(text, signed, &moved)
        }),
        ("8: the forged one with the ID of the signed one", |text, signed, signature, forged| {
            let id = signed.split("ID=\"").nth(1).unwrap().split('"').next().unwrap();
            let forged =
                swap(&swap(forged, "_forged", id), "</saml:Issuer>", &format!("</saml:Issuer>{signature}"));
            swap(text, signed, &format!("{forged}<samlp:Extensions>{signed}</samlp:Extensions>"))
        }),
        ("9: the signed one in the forged one's advice", |text, signed, _, forged| {
            let advice = format!("<saml:Advice>{signed}</saml:Advice><saml:AuthnStatement");
            swap(text, signed, &swap(forged, "<saml:AuthnStatement", &advice))
        }),
    ];
    wraps
        .into_iter()
        .map(|(what, wrap)| {
            text(what, Seals::default(), move |text, answer| {
                let signed = part(text, "saml:Assertion").to_owned();
                wrap(text, &signed, signature_of(&signed), &forged(answer))
            })
        })
        .collect()
}

#[test]
fn answers_that_cannot_be_trusted_log_nobody_in() {
    let provider = Provider::start("").unwrap();
    let cases = cases();
    assert!(cases.len() > 50);
    let mut wrong = Vec::new();
    for (number, (what, make)) in cases.iter().enumerate() {
        // Fewer of each network than it may try.
        let network = u8::try_from(1 + number / 6).unwrap();
        let Begun { web, request } = provider.begin(&format!("browser-{number}"), network).unwrap();
        let message = make(&provider, provider.answer(&request));
        let reply = provider.post(&web, &message).unwrap();
        let who = web.get(&provider.realm.url(AUTH, "/cdn-cgi/access/get-identity")).unwrap();
        let refused = reply.status == 400 && reply.ray().is_ok() && !reply.body.contains("evil");
        let events = provider.realm.events("login", number + 1).unwrap();
        let event = &events[number];
        let one = events.len() == number + 1
            && (&event["allowed"], &event["identity_provider"]) == (&json!(false), &json!("adfs"))
            && !event["detail"].as_str().unwrap_or_default().contains("example.com");
        if !(refused && reply.cookies().is_empty() && who.status == 401 && one) {
            wrong.push(format!("{what}: {} {} {:?} {event}", reply.status, reply.url, reply.cookies()));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert_eq!(provider.realm.origin.requests(), []);
}

#[test]
fn answers_that_hold_log_somebody_in_once() {
    let provider = Provider::start("groups_attribute = \"roles\"").unwrap();
    let good = Seals::default();
    for (number, (what, seals)) in [
        ("the assertion signed", good),
        ("the response signed", Seals { assertion: None, response: Some("idp"), ..good }),
        ("both", Seals { response: Some("idp"), ..good }),
        ("the assertion, with types declared", Seals { prefixes: "xs", ..good }),
        ("both, with types declared", Seals { prefixes: "xs #default", response: Some("idp"), ..good }),
        ("SHA-512", Seals { method: "RSA_SHA512", digest: "SHA512", ..good }),
        ("encrypted", Seals { encrypt: Some("aes256-gcm"), ..good }),
        ("encrypted with AES-128", Seals { encrypt: Some("aes128-gcm"), response: Some("idp"), ..good }),
        (
            "encrypted, the response alone signed",
            Seals { assertion: None, encrypt: Some("aes256-gcm"), response: Some("idp"), ..good },
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let Begun { web, request } = provider.begin(&format!("good-{number}"), 1).unwrap();
        let message = provider.sealed(&provider.answer(&request), seals).unwrap();
        let page = provider.post(&web, &message).unwrap();
        assert_eq!(page.status, 200, "{what}: {:?}", provider.realm.events("login", 1));
        assert!(page.url.ends_with("/deep"), "{what}: {}", page.url);
        let who = web.get(&provider.realm.url(AUTH, "/cdn-cgi/access/get-identity")).unwrap();
        let who: Value = serde_json::from_str(&who.body).unwrap();
        assert_eq!((&who["id"], &who["groups"]), (&json!("adfs:ann@example.com"), &json!(["ops"])), "{what}");
        // The provider's session ends before the node's would.
        assert!(who["exp"].as_i64().unwrap() - who["iat"].as_i64().unwrap() <= 3600, "{what}: {who}");
        // Replayed: in the same browser, in another, and after a restart of the node.
        for (browser, name) in [(web.clone(), "the same"), (provider.realm.web("eve"), "another")] {
            let again = provider.post(&browser, &message).unwrap();
            assert_eq!(again.status, 400, "{what} again, in {name}: {}", again.body);
        }
    }
}

#[test]
fn an_answer_is_worth_nothing_to_another_browser() {
    let provider = Provider::start("").unwrap();
    let ann = provider.begin("ann", 1).unwrap();
    let message = provider.sealed(&provider.answer(&ann.request), Seals::default()).unwrap();
    let foreign = ann.web.clone().header("Sec-Fetch-Site: cross-site");
    let reply = foreign.post(&provider.at("acs"), &[("SAMLResponse", &encode(&message))]).unwrap();
    let resume = reply.redirect().unwrap();
    // Eve has begun a login of her own, and gets hold of the address.
    let eve = provider.begin("eve", 1).unwrap();
    let taken = eve.web.get(&resume).unwrap();
    assert_eq!((taken.status, taken.cookies().len()), (400, 0), "{}", taken.body);
    // Who has begun the login has lost nothing by that, and it is good once.
    let twin = ann.web.copy(&provider.realm.dir.path().join("twin.jar")).unwrap();
    assert_eq!(ann.web.get(&resume).unwrap().status, 302);
    assert_eq!(twin.get(&resume).unwrap().status, 400);
    for address in ["resume", "resume?code=", "resume?code=x", "resume?code=a&code=b"] {
        assert_eq!(eve.web.get(&provider.at(address)).unwrap().status, 400, "{address}");
    }
    for (address, status) in [("", 404), ("x", 404), ("acs", 405), ("acs/x", 404), ("logout", 400)] {
        assert_eq!(eve.web.get(&provider.at(address)).unwrap().status, status, "{address}");
    }
    for name in ["local", "none", "ADFS"] {
        let path = format!("/cdn-cgi/access/saml/{name}/saml-metadata");
        assert_eq!(eve.web.get(&provider.realm.url(AUTH, &path)).unwrap().status, 404, "{name}");
    }
}

#[test]
fn unsolicited_answers_are_taken_where_they_are_allowed() {
    let provider = Provider::start("allow_unsolicited = true").unwrap();
    let answer = Answer {
        in_response_to: String::new(),
        response_in_response_to: String::new(),
        ..provider.answer("_none")
    };
    let message = provider.sealed(&answer, Seals::default()).unwrap();
    let web = provider.realm.web("ann");
    let page = provider.post(&web, &message).unwrap();
    assert_eq!(page.status, 200, "{}", page.body);
    assert!(page.body.contains("ann@example.com"), "the launcher: {}", page.body);
    assert_eq!(provider.post(&web, &message).unwrap().status, 400, "once");
    // One that answers a request still has to answer this browser's.
    let other = Answer { id: "_other".into(), ..provider.answer("_0123456789abcdef_ff") };
    let other = provider.sealed(&other, Seals::default()).unwrap();
    assert_eq!(provider.post(&provider.realm.web("bob"), &other).unwrap().status, 400);
}

#[test]
fn a_bomb_is_refused_and_a_network_may_not_try_for_ever() {
    let provider = Provider::start("").unwrap();
    let web = provider.realm.web("eve");
    let reply = provider.post_raw(&web, &"A".repeat(256 * 1024)).unwrap();
    assert_eq!(reply.status, 413, "{}", reply.body);
    let reply = web.post(&provider.at("logout"), &[("SAMLResponse", &"A".repeat(17_000))]).unwrap();
    assert_eq!(reply.status, 413, "no other endpoint takes as much: {}", reply.body);
    let nested = format!("{}{}", "<a>".repeat(100), "</a>".repeat(100));
    for (what, message) in [("deep", nested.as_str()), ("no XML", "hello"), (ISSUER, "<a/>")] {
        assert_eq!(provider.post(&web, message).unwrap().status, 400, "{what}");
    }
    let limited = (0..30).any(|_| provider.post(&web, "<a/>").unwrap().status == 429);
    assert!(limited);
    let other = web.from("127.0.2.1");
    assert_eq!(provider.post(&other, "<a/>").unwrap().status, 400, "another network may");
}

/// A page that a colleague has open sends garbage to the node, and so does somebody else in the office.
#[test]
fn an_office_is_not_kept_out_by_what_is_sent_from_there() {
    let provider = Provider::start("").unwrap();
    let log_in = |browser: &str| {
        let Begun { web, request } = provider.begin(browser, 1).unwrap();
        let answer = provider.answer(&request);
        provider.post(&web, &provider.sealed(&answer, Seals::default()).unwrap()).unwrap()
    };
    let in_the_office = |browser: &str| provider.realm.web(browser).from("127.0.1.9");
    for header in ["Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: iframe"] {
        let page = in_the_office("page").header(header);
        assert!((0..30).all(|_| provider.post(&page, "<a/>").unwrap().status == 400), "{header}");
    }
    let first = log_in("ann");
    assert_eq!(first.status, 200, "a network that nobody knows yet: {}", first.body);
    let web = in_the_office("eve");
    assert!((0..60).all(|_| provider.post(&web, "<a/>").unwrap().status == 400));
    let again = log_in("bob");
    assert_eq!(again.status, 200, "{}", again.body);
}

#[test]
fn logout_requests_that_cannot_be_trusted_end_nothing() {
    let provider = Provider::start("").unwrap();
    let Begun { web, request } = provider.begin("ann", 1).unwrap();
    let answer = provider.answer(&request);
    let page = provider.post(&web, &provider.sealed(&answer, Seals::default()).unwrap()).unwrap();
    assert_eq!(page.status, 200, "{}", page.body);
    let identity = provider.realm.url(AUTH, "/cdn-cgi/access/get-identity");
    let make = |issuer: &str, to: &str, issued: i64, name: &str, index: &str, id: &str| {
        format!(
            "<samlp:LogoutRequest xmlns:samlp=\"urn:oasis:names:tc:SAML:2.0:protocol\" \
             xmlns:saml=\"urn:oasis:names:tc:SAML:2.0:assertion\" ID=\"{id}\" Version=\"2.0\" IssueInstant=\"{}\" \
             Destination=\"{to}\"><saml:Issuer>{issuer}</saml:Issuer><saml:NameID>{name}</saml:NameID>\
             <samlp:SessionIndex>{index}</samlp:SessionIndex></samlp:LogoutRequest>",
            instant(issued)
        )
    };
    let sign = |xml: &str, key: &str| {
        let key = provider.realm.dir.path().join(format!("{key}.key"));
        let signed = provider.tool(&json!({ "op": "sign", "xml": xml, "key": key })).unwrap();
        signed["xml"].as_str().unwrap().to_owned()
    };
    let (here, ann, index) = (provider.at("logout"), "ann@example.com", format!("_s{}", answer.id));
    let good = make(ISSUER, &here, 0, ann, &index, "_l1");
    let eve = provider.realm.web("eve");
    let post = |text: &str| eve.post(&here, &[("SAMLRequest", &encode(text))]).unwrap();
    let refused = [
        ("unsigned", good.clone()),
        ("another key", sign(&good, "other")),
        ("changed", sign(&good, "idp").replacen("_l1", "_l2", 1)),
        ("another issuer", sign(&make("https://evil.example", &here, 0, ann, &index, "_l3"), "idp")),
        ("another destination", sign(&make(ISSUER, &provider.at("acs"), 0, ann, &index, "_l4"), "idp")),
        ("old", sign(&make(ISSUER, &here, -3600, ann, &index, "_l5"), "idp")),
        ("from the future", sign(&make(ISSUER, &here, 3600, ann, &index, "_l6"), "idp")),
        ("nobody", sign(&make(ISSUER, &here, 0, "", &index, "_l7"), "idp")),
        ("no XML", "hello".to_owned()),
    ];
    for (number, (what, text)) in refused.iter().enumerate() {
        let reply = post(text);
        assert_eq!((reply.status, reply.redirect()), (400, None), "{what}: {}", reply.body);
        let events = provider.realm.events("logout", number + 1).unwrap();
        assert!(
            events.len() == number + 1 && events[number]["allowed"] == json!(false),
            "{what}: {events:?}"
        );
        assert_eq!(web.get(&identity).unwrap().status, 200, "{what}");
    }
    // Signed well, about another session and another person: those are not here.
    for (name, index, id) in [(ann, "_other", "_l8"), ("bob@example.com", index.as_str(), "_l9")] {
        let reply = post(&sign(&make(ISSUER, &here, 0, name, index, id), "idp"));
        assert!(reply.redirect().unwrap().starts_with("https://idp.example.org/slo?SAMLResponse="));
        assert_eq!(web.get(&identity).unwrap().status, 200, "{name} {index}");
    }
    let signed = sign(&good, "idp");
    assert_eq!(post(&signed).status, 303);
    assert_eq!(web.get(&identity).unwrap().status, 401);
    assert_eq!(post(&signed).status, 400, "replayed");
}

#[test]
fn what_a_provider_lacks_is_told_before_it_is_missed() {
    let provider = Provider::start("").unwrap();
    let config = std::fs::read_to_string(provider.realm.node.config()).unwrap();
    let check = |from: &str, to: &str| {
        std::fs::write(provider.realm.node.config(), config.replacen(from, to, 1)).unwrap();
        match provider.realm.node.admin(&["check"]) {
            Ok(text) => text,
            Err(error) => error.to_string(),
        }
    };
    let domains = "email_domains = [\"example.com\"]\n";
    let note = check(domains, "");
    assert!(note.contains("`adfs` has no `email_domains`: no address of its people is accepted"), "{note}");
    for (more, fault) in [
        ("issuer = \"https://x.example\"", "`issuer` has no meaning for a provider of type `saml`"),
        ("binding = \"artifact\"", "`artifact` is no binding"),
        ("name_id = \"transient\"", "it needs `subject_attribute`"),
        ("name_id = \"x509\"", "`x509` is no NameID"),
        ("entity_id = \"a b\"", "an entity ID has"),
    ] {
        let told = check(domains, &format!("{domains}{more}\n"));
        assert!(told.contains(fault), "{more}: {told}");
    }
    let file = provider.realm.dir.path().join("idp.xml").display().to_string();
    for (metadata, fault) in [
        ("http://idp.example/metadata", "metadata is a file, or at https://"),
        ("/none.xml", "/none.xml cannot be read"),
    ] {
        let told = check(&file, metadata);
        assert!(told.contains(fault), "{metadata}: {told}");
    }
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("SingleSignOnService", "Other")).unwrap();
    let told = check("", "");
    assert!(told.contains("no sign-on service takes the HTTP-Redirect or HTTP-POST binding"), "{told}");
}

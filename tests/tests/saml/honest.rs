//! A service provider that keeps to the rules.

use portcullis_tests::realm::{AUTH, WIKI};
use serde_json::{Value, json};

use crate::service::{ACS, Lab};

/// Python3-saml checks both signatures, audience, recipient, destination, times and InResponseTo.
fn assert_signed_in(seen: &Value) {
    assert_eq!(seen["errors"], json!([]), "{seen}");
    assert_eq!(seen["name_id"], "ann@example.com");
    assert_eq!(seen["format"], "urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress");
    assert_eq!(seen["attributes"]["email"], json!(["ann@example.com"]));
    assert_eq!(seen["attributes"]["groups"], json!(["ops"]));
}

#[test]
fn the_application_sends_people_by_redirect() {
    let lab = Lab::new("", false).unwrap();
    let web = lab.realm.web("ann");
    let request = lab.request(&["redirect"]).unwrap();
    let start = web.get(request["url"].as_str().unwrap()).unwrap();
    assert_eq!(start.status, 302, "{}", start.body);
    let page = lab.log_in(&web, start, "ann").unwrap();
    assert_eq!(page.status, 200, "{}", page.body);
    assert_eq!(page.between("action=\"", "\"").unwrap(), ACS);
    assert_eq!(page.field("RelayState").unwrap(), "https://sp.example.org/deep?x=1&y=2");
    let policy = page.header("content-security-policy")[0];
    assert!(policy.contains("form-action https://sp.example.org;"), "{policy}");
    let nonce = page.between("<script nonce=\"", "\"").unwrap();
    assert!(policy.contains(&format!("script-src 'nonce-{nonce}';")), "{policy}");
    assert_signed_in(&lab.consume(&page, request["id"].as_str().unwrap()).unwrap());

    // An administrator sees what was sent, and nothing that proves it.
    let ray = lab.realm.events("sign_in", 1).unwrap()[0]["ray_id"].as_str().unwrap().to_owned();
    let seen = lab.realm.node.admin(&["events", "--ray", &ray]).unwrap();
    for line in ["  NameID: ann@example.com", "  groups: ops", "  email: ann@example.com"] {
        assert!(seen.lines().any(|found| found == line), "{line}: {seen}");
    }
    assert!(!seen.contains("Signature") && !lab.realm.log().unwrap().contains("Assertion"), "{seen}");
    assert_eq!(lab.realm.node.admin(&["events", "--ray", "0000000000000000"]).unwrap(), "");

    // The second time nobody is asked, and the answer is another one.
    let again = lab.request(&["redirect"]).unwrap();
    let second = web.get(again["url"].as_str().unwrap()).unwrap();
    assert_signed_in(&lab.consume(&second, again["id"].as_str().unwrap()).unwrap());
    let wrong = lab.consume(&second, request["id"].as_str().unwrap()).unwrap();
    assert_ne!(wrong["errors"], json!([]), "an answer to another request");

    let sign_ins = lab.realm.events("sign_in", 2).unwrap();
    assert_eq!(sign_ins.len(), 2, "{sign_ins:?}");
    for event in sign_ins {
        assert_eq!((&event["allowed"], &event["app_name"]), (&json!(true), &json!("crm")));
        assert_eq!((&event["user_email"], &event["policy"]), (&json!("ann@example.com"), &json!("staff")));
    }
    assert_eq!(lab.realm.origin.requests(), []);
}

#[test]
fn a_posted_request_comes_back_by_get_and_signatures_and_encryption_hold() {
    let saml = ", certificate = \"DIR/sp.pem\", encryption_certificate = \"DIR/sp.pem\"";
    let lab = Lab::new(saml, true).unwrap().with("encrypted", json!(true));
    for binding in ["post", "redirect"] {
        let web = lab.realm.web(binding);
        let request = lab.request(&[binding]).unwrap();
        let start = match binding {
            "post" => {
                let message = request["message"].as_str().unwrap();
                let foreign = lab.realm.web("post").header("Sec-Fetch-Site: cross-site");
                let reply =
                    foreign.post(&lab.endpoint(), &[("SAMLRequest", message), ("RelayState", "r")]).unwrap();
                assert_eq!(reply.status, 303, "{}", reply.body);
                let back = reply.redirect().unwrap();
                assert!(back.starts_with(&format!("{}/resume?request=", lab.endpoint())), "{back}");
                // Another browser has nothing to go on with.
                assert_eq!(lab.realm.web("other").get(&back).unwrap().status, 400);
                reply
            }
            _ => web.get(request["url"].as_str().unwrap()).unwrap(),
        };
        let page = lab.log_in(&web, start, "ann").unwrap();
        assert_eq!(page.status, 200, "{}", page.body);
        assert!(!page.body.contains("ann@example.com"));
        assert_signed_in(&lab.consume(&page, request["id"].as_str().unwrap()).unwrap());
    }
}

#[test]
fn the_launcher_leads_to_the_application() {
    let lab = Lab::new(", relay_state = \"/start\", name_id = \"persistent\"", false).unwrap();
    let web = lab.realm.web("ann");
    let page = lab.log_in(&web, web.get(&lab.endpoint()).unwrap(), "ann").unwrap();
    assert_eq!(page.field("RelayState").unwrap(), "/start");
    let seen = lab.consume(&page, "-").unwrap();
    assert_eq!((&seen["errors"], &seen["attributes"]["email"]), (&json!([]), &json!(["ann@example.com"])));
    let name = seen["name_id"].as_str().unwrap();
    assert_eq!(seen["format"], "urn:oasis:names:tc:SAML:2.0:nameid-format:persistent");
    assert!(!name.contains("ann") && seen["attributes"]["id"] == json!([name]));
    // The session is the global one: an application of the node's needs no login, and a restart changes no name.
    let wiki = web.follow(web.get(&lab.realm.url(WIKI, "/")).unwrap(), None).unwrap();
    assert_eq!(wiki.status, 200);
    let again = lab.consume(&web.get(&lab.endpoint()).unwrap(), "-").unwrap();
    assert_eq!(again["name_id"], name);
    assert_ne!(again["session_index"], Value::Null);
}

#[test]
fn force_and_passive_are_honoured() {
    let lab = Lab::new("", false).unwrap();
    let web = lab.realm.web("ann");
    let passive = lab.request(&["redirect", "passive"]).unwrap();
    let page = web.get(passive["url"].as_str().unwrap()).unwrap();
    let seen = lab.consume(&page, passive["id"].as_str().unwrap()).unwrap();
    assert!(seen["reason"].as_str().unwrap().contains("NoPassive"), "{seen}");

    let page = lab.log_in(&web, web.get(&lab.endpoint()).unwrap(), "ann").unwrap();
    assert_eq!(page.status, 200);
    let page = web.get(passive["url"].as_str().unwrap()).unwrap();
    assert_signed_in(&lab.consume(&page, passive["id"].as_str().unwrap()).unwrap());

    // Sessions count by the second.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let force = lab.request(&["redirect", "force"]).unwrap();
    let start = web.get(force["url"].as_str().unwrap()).unwrap();
    assert_eq!(start.status, 302, "the session is older than the request");
    let back = start.redirect().unwrap();
    assert!(back.starts_with(&lab.realm.url(AUTH, "/cdn-cgi/access/login/")), "{back}");
    let page = lab.log_in(&web, start, "ann").unwrap();
    assert_signed_in(&lab.consume(&page, force["id"].as_str().unwrap()).unwrap());
}

#[test]
fn a_person_whom_policy_denies_is_told_here_and_the_application_nothing() {
    let lab = Lab::new("", false).unwrap();
    let web = lab.realm.web("eve");
    let request = lab.request(&["redirect"]).unwrap();
    let page = lab.log_in(&web, web.get(request["url"].as_str().unwrap()).unwrap(), "eve").unwrap();
    assert_eq!(page.status, 403, "{}", page.body);
    assert!(page.body.contains("You do not have access") && !page.body.contains("SAMLResponse"));
    let logins = lab.realm.events("login", 1).unwrap();
    assert_eq!(logins.len(), 1, "{logins:?}");
    assert_eq!((&logins[0]["allowed"], &logins[0]["app_name"]), (&json!(false), &json!("crm")));
    // With the session there is now: again one event, and no answer.
    let again = web.get(request["url"].as_str().unwrap()).unwrap();
    assert!(again.status == 403 && !again.body.contains("SAMLResponse"), "{}", again.body);
    let sign_ins = lab.realm.events("sign_in", 1).unwrap();
    assert_eq!(sign_ins.len(), 1, "{sign_ins:?}");
    assert_eq!((&sign_ins[0]["allowed"], &sign_ins[0]["reason"]), (&json!(false), &json!("no_match")));
}

//! Single logout that the application asks for: honest, without saying which session, and hostile.

use portcullis_tests::realm::WIKI;
use portcullis_tests::web::Web;
use serde_json::{Value, json};

use crate::service::Lab;

const SLS: &str = "https://sp.example.org/saml/sls";

fn lab() -> Lab {
    let saml = format!(", certificate = \"DIR/sp.pem\", logout = {{ redirect = \"{SLS}\" }}");
    Lab::new(&saml, true).unwrap().with("sls", json!(SLS))
}

/// Signs somebody in at the application; what that calls the session.
fn sign_in(lab: &Lab, web: &Web, user: &str) -> String {
    let request = lab.request(&["redirect"]).unwrap();
    let start = web.get(request["url"].as_str().unwrap()).unwrap();
    let page = lab.log_in(web, start, user).unwrap();
    let seen = lab.consume(&page, request["id"].as_str().unwrap()).unwrap();
    assert_eq!(seen["errors"], json!([]), "{seen}");
    seen["session_index"].as_str().unwrap().to_owned()
}

fn is_logged_in(lab: &Lab, web: &Web) -> bool {
    let reply = web.follow(web.get(&lab.realm.url(WIKI, "/")).unwrap(), None).unwrap();
    reply.status == 200 && reply.field("ticket").is_err()
}

fn url(request: &Value) -> String {
    request["url"].as_str().unwrap().to_owned()
}

#[test]
fn the_application_ends_the_login_that_it_names_and_hears_so() {
    let lab = lab();
    let web = lab.realm.web("ann");
    let index = sign_in(&lab, &web, "ann");
    assert!(is_logged_in(&lab, &web));
    let request = lab.logout("ann@example.com", Some(&index)).unwrap();
    let first = web.get(&url(&request)).unwrap();
    assert_eq!(first.status, 303, "{}", first.body);
    let last = web.follow(first, Some(SLS)).unwrap();
    let answer = last.redirect().unwrap();
    assert!(answer.starts_with(SLS), "{answer}");
    let seen = lab.logged_out(&answer, request["id"].as_str().unwrap()).unwrap();
    assert_eq!(seen["errors"], json!([]), "{seen}");
    assert!(answer.contains("RelayState=https%3A%2F%2Fsp%2Eexample%2Eorg%2Fbye"), "{answer}");
    assert!(!is_logged_in(&lab, &web));
    let events = lab.realm.events("logout", 1).unwrap();
    assert_eq!(
        (&events[0]["app_name"], &events[0]["user_email"], &events[0]["allowed"]),
        (&json!("crm"), &json!("ann@example.com"), &json!(true))
    );
    // Somebody else's answer, and one to another question, are none.
    let other = lab.logged_out(&answer, "_other").unwrap();
    assert_ne!(other["errors"], json!([]));
    // Nobody is logged in: that is heard too.
    let again =
        web.follow(web.get(&url(&lab.logout("x", Some(&index)).unwrap())).unwrap(), Some(SLS)).unwrap();
    assert!(again.redirect().unwrap().starts_with(SLS));
}

#[test]
fn without_the_name_of_the_session_the_person_is_asked() {
    let lab = lab();
    let (web, bob) = (lab.realm.web("ann"), lab.realm.web("bob"));
    sign_in(&lab, &web, "ann");
    let of_bob = sign_in(&lab, &bob, "bob");
    for index in [None, Some(of_bob.as_str()), Some("_x")] {
        let start = web.get(&url(&lab.logout("ann@example.com", index).unwrap())).unwrap();
        let page = web.follow(start, Some(SLS)).unwrap();
        assert_eq!(page.status, 200, "{index:?}: {}", page.url);
        assert!(page.body.contains("Sign out?") && page.body.contains("crm"), "{}", page.body);
        let policy = page.header("content-security-policy")[0];
        assert!(policy.contains("form-action 'self' https://sp.example.org;"), "{policy}");
        assert!(is_logged_in(&lab, &web), "{index:?}");
        // Another person's word is not theirs.
        let foreign = web.post(&page.url, &[("ticket", "x")]).unwrap();
        assert_eq!(foreign.status, 200, "{index:?}");
        assert!(is_logged_in(&lab, &web) && is_logged_in(&lab, &bob), "{index:?}");
        if index == Some("_x") {
            let ticket = page.field("ticket").unwrap();
            let done = web.post(&page.url, &[("ticket", &ticket)]).unwrap();
            assert_eq!(done.status, 303, "{}", done.body);
            assert!(done.redirect().unwrap().starts_with(SLS));
            assert!(!is_logged_in(&lab, &web) && is_logged_in(&lab, &bob));
        }
    }
}

#[test]
fn the_answer_is_posted_where_the_application_takes_that() {
    let saml = format!(", certificate = \"DIR/sp.pem\", logout = {{ post = \"{SLS}\" }}");
    let lab = Lab::new(&saml, true).unwrap();
    let web = lab.realm.web("ann");
    let index = sign_in(&lab, &web, "ann");
    let start = web.get(&url(&lab.logout("ann@example.com", Some(&index)).unwrap())).unwrap();
    let page = web.follow(start, None).unwrap();
    assert_eq!((page.status, page.between("action=\"", "\"").unwrap().as_str()), (200, SLS), "{}", page.body);
    assert!(page.field("SAMLResponse").is_ok());
    assert_eq!(page.field("RelayState").unwrap(), "https://sp.example.org/bye");
    assert!(!is_logged_in(&lab, &web));
}

#[test]
fn nobody_else_ends_a_login() {
    let lab = lab();
    let web = lab.realm.web("ann");
    let index = sign_in(&lab, &web, "ann");
    let good = url(&lab.logout("ann@example.com", Some(&index)).unwrap());
    let sign_in_request = lab.request(&["redirect"]).unwrap()["url"].as_str().unwrap().to_owned();
    let swapped = good.replacen("/logout?", "?", 1);
    let (unsigned, _) = good.split_once("&SigAlg=").unwrap();
    let cases = [
        ("unsigned", unsigned.to_owned()),
        ("another state", good.replacen("RelayState=", "RelayState=x", 1)),
        (
            "another signature",
            format!("{}AAAA", good.split_once("&Signature=").unwrap().0) + "&Signature=AAAA",
        ),
        ("two requests", format!("{good}&SAMLRequest=x")),
        ("a sign-in request", sign_in_request.replacen("/crm?", "/crm/logout?", 1)),
        ("nothing", format!("{}/logout", lab.endpoint())),
        ("a seal of nobody's", format!("{}/logout?resume=AAAA", lab.endpoint())),
        ("a logout request at the sign-in", swapped),
    ];
    for (what, address) in &cases {
        let reply = web.get(address).unwrap();
        assert_eq!(reply.status, 400, "{what}: {}", reply.body);
        assert!(reply.ray().is_ok() && reply.redirect().is_none(), "{what}");
    }
    assert!(is_logged_in(&lab, &web));
    // An answer to no request of the node's leads back to where a logout would go on, and there is none.
    let answer = web.get(&good.replacen("SAMLRequest", "SAMLResponse", 1)).unwrap();
    assert!(answer.redirect().unwrap().ends_with("/cdn-cgi/access/logout/onward"), "{:?}", answer.headers);
    web.follow(answer, None).unwrap();
    assert!(is_logged_in(&lab, &web));
    let events = lab.realm.events("logout", cases.len() - 1).unwrap();
    assert!(events.iter().all(|event| event["allowed"] == json!(false)), "{events:?}");
    // The request itself was good.
    assert_eq!(web.get(&good).unwrap().status, 303);
}

//! Two providers, one of which would have what the other's people prove (RFC 9700 §4.4).

use portcullis_tests::idp::{ClaimsIn, Idp};
use portcullis_tests::realm::{AUTH, Plan, Provider, Realm, WIKI};
use portcullis_tests::web::Web;
use serde_json::json;

use crate::visit::{accounts, back_from};

/// The providers `honest` and `evil`, both as `mode` makes them.
fn realm(mode: &str) -> (Realm, Idp, Idp) {
    let plan = Plan::new().unwrap();
    let start = |name| {
        let idp = Idp::start(plan.path(), &plan.ca, &plan.callbacks(name), &accounts(), ClaimsIn::IdToken);
        idp.unwrap()
    };
    let (honest, evil) = (start("honest"), start("evil"));
    for idp in [&honest, &evil] {
        idp.tamper(mode).unwrap();
    }
    let more = "email_domains = [\"example.com\"]";
    let providers =
        [Provider { name: "honest", idp: &honest, more }, Provider { name: "evil", idp: &evil, more }];
    let realm = plan.start(false, &providers, "").unwrap();
    (realm, honest, evil)
}

/// Where the node sends a browser that picks `provider`.
fn sent_to(realm: &Realm, web: &Web, provider: &str) -> String {
    let chooser = web.follow(web.get(&realm.url(WIKI, "/")).unwrap(), None).unwrap();
    web.get(&format!("{}&provider={provider}", chooser.url)).unwrap().redirect().unwrap()
}

fn part<'a>(url: &'a str, name: &str) -> &'a str {
    let at = url.find(&format!("?{name}=")).or_else(|| url.find(&format!("&{name}="))).unwrap();
    url[at..].split('=').nth(1).unwrap().split('&').next().unwrap()
}

/// The answer of one provider for a login that was started at the other.
#[test]
fn the_answer_of_another_provider_is_refused() {
    let (realm, _honest, _evil) = realm("none");
    let web = realm.web("ann");
    let go = |provider: &str| {
        let form = web.follow(web.get(&sent_to(&realm, &web, provider)).unwrap(), None).unwrap();
        back_from(&realm, &web, form, "ann").unwrap()
    };
    let (from_honest, from_evil) = (go("honest"), go("evil"));
    // The state of the login at `evil` with the code and issuer of `honest`, and with its code alone.
    for mixed in [
        from_honest.replace(part(&from_honest, "state"), part(&from_evil, "state")),
        from_evil.replace(part(&from_evil, "code"), part(&from_honest, "code")),
    ] {
        let reply = web.copy(&realm.dir.path().join("mixed.jar")).unwrap().get(&mixed).unwrap();
        assert_eq!(reply.status, 400, "{}", reply.body);
        assert_eq!(reply.cookies(), [""; 0]);
    }
    let reply = web.follow(web.get(&from_honest).unwrap(), None).unwrap();
    assert_eq!(reply.status, 200, "the login that was meant still works: {}", reply.body);
}

/// Eve begins a login at `honest`. A victim who begins one at `evil` is sent on to `honest` from there, with Eve's nonce
/// and challenge and the state of the login at `evil`, and comes back with a code that fits Eve's login.
#[test]
fn a_provider_that_sends_people_on_to_another_is_given_no_code() {
    let (realm, honest, evil) = realm("no_issuer");
    let shared = realm.url(AUTH, "/cdn-cgi/access/callback");
    let told = realm.node.admin(&["check"]).unwrap();
    for name in ["honest", "evil"] {
        assert!(told.contains(&format!("{shared}/{name}, or to {shared} if")), "{told}");
    }
    let eve = realm.web("eve");
    let begun = sent_to(&realm, &eve, "honest");
    let own = part(&begun, "redirect_uri");
    // The callback of `honest`, and the one that may have been registered there since it was alone.
    for (number, own_too) in [own, own.trim_end_matches("%2Fhonest")].into_iter().enumerate() {
        let victim = realm.web(&format!("victim{number}"));
        let meant = sent_to(&realm, &victim, "evil");
        let mixed = begun.replace(part(&begun, "state"), part(&meant, "state")).replace(own, own_too);
        let form = victim.follow(victim.get(&mixed).unwrap(), None).unwrap();
        let back = back_from(&realm, &victim, form, "ann").unwrap();
        assert!(back.starts_with(&shared), "{back}");
        let reply = victim.get(&back).unwrap();
        assert_eq!(evil.seen("/token").unwrap(), 0, "{back}");
        assert_eq!(reply.status, 400, "{back}: {}", reply.body);
        assert_eq!(reply.cookies(), [""; 0], "{back}");
    }
    assert_eq!(honest.seen("/token").unwrap(), 0);
    let refused = realm.events("login", 2).unwrap();
    assert!(refused.iter().all(|event| event["allowed"] == json!(false)), "{refused:?}");
    assert_eq!(realm.origin.requests(), []);
}

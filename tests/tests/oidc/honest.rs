//! A provider that keeps to the rules.

use std::time::{Duration, Instant};

use portcullis_tests::idp::{ClaimsIn, Idp};
use portcullis_tests::realm::{AUTH, Plan, Provider, SHOP, WIKI};
use serde_json::{Value, json};

use crate::visit::{accounts, back_from, log_in, realm, to_callback};

#[test]
fn a_person_reaches_the_application_wherever_the_claims_are() {
    for claims_in in [ClaimsIn::Userinfo, ClaimsIn::IdToken] {
        let (realm, _idp) = realm(claims_in, "").unwrap();
        let web = realm.web("ann");
        let page = log_in(&realm, &web, &realm.url(WIKI, "/admin/page?x=1"), "ann").unwrap();
        assert_eq!(page.status, 200, "{claims_in:?}: {}", page.body);
        let seen: Value = serde_json::from_str(&page.body).unwrap();
        assert_eq!(seen["target"], "/admin/page?x=1");
        let requests = realm.origin.requests();
        assert_eq!(requests[0].header("cf-access-authenticated-user-email"), ["ann@example.com"]);
        let me = web.get(&realm.url(WIKI, "/cdn-cgi/access/get-identity")).unwrap();
        let me: Value = serde_json::from_str(&me.body).unwrap();
        assert_eq!(
            (&me["name"], &me["groups"], &me["idp"]["id"], &me["id"]),
            (&json!("Ann"), &json!(["ops"]), &json!("okta"), &json!("okta:ann"))
        );
        let logins = realm.events("login", 1).unwrap();
        assert_eq!(logins.len(), 1);
        assert_eq!(logins[0]["identity_provider"], "okta");
        assert_eq!(logins[0]["user_email"], "ann@example.com");
    }
}

#[test]
fn a_person_whom_policy_denies_is_told_so() {
    let (realm, _idp) = realm(ClaimsIn::Userinfo, "").unwrap();
    for account in ["eve", "absent", "homograph"] {
        let web = realm.web(account);
        let page = log_in(&realm, &web, &realm.url(WIKI, "/"), account).unwrap();
        assert_eq!(page.status, 403, "{account}: {}", page.body);
        assert!(page.body.contains("You do not have access") && page.ray().is_ok());
    }
    assert_eq!(realm.origin.requests(), []);
}

#[test]
fn an_absent_email_verified_counts_for_the_providers_own_domains() {
    let (realm, _idp) = realm(ClaimsIn::Userinfo, "email_domains = [\"example.com\"]").unwrap();
    let page = log_in(&realm, &realm.web("absent"), &realm.url(WIKI, "/"), "absent").unwrap();
    assert_eq!(page.status, 200, "{}", page.body);
}

#[test]
fn the_second_application_needs_no_second_login() {
    let (realm, idp) = realm(ClaimsIn::Userinfo, "").unwrap();
    let web = realm.web("ann");
    log_in(&realm, &web, &realm.url(WIKI, "/"), "ann").unwrap();
    let before = idp.seen("/auth").unwrap();
    let page = web.follow(web.get(&realm.url(SHOP, "/cart")).unwrap(), None).unwrap();
    assert_eq!(page.status, 200);
    assert_eq!(idp.seen("/auth").unwrap(), before);
}

#[test]
fn several_providers_are_offered_and_equal_emails_stay_different_people() {
    let plan = Plan::new().unwrap();
    let start = |name| {
        Idp::start(plan.path(), &plan.ca, &plan.callbacks(name), &accounts(), ClaimsIn::IdToken).unwrap()
    };
    let (first, second) = (start("okta"), start("partner"));
    // One that names itself in its answers, and one that does not.
    second.tamper("no_issuer").unwrap();
    let providers = [
        Provider {
            name: "okta",
            idp: &first,
            more: "label = \"Okta of the company\"\nemail_domains = [\"example.com\"]",
        },
        Provider { name: "partner", idp: &second, more: "email_domains = [\"example.com\"]" },
    ];
    let realm = plan.start(true, &providers, "").unwrap();
    let mut ids = Vec::new();
    for provider in ["okta", "partner"] {
        let web = realm.web(provider);
        let chooser = web.follow(web.get(&realm.url(WIKI, "/")).unwrap(), None).unwrap();
        assert_eq!(chooser.status, 200);
        for text in ["Continue with Okta of the company", "Continue with partner", "name=\"password\""] {
            assert!(chooser.body.contains(text), "{text}");
        }
        let (base, _) = chooser.url.split_once('?').unwrap();
        let links: Vec<&str> =
            chooser.body.split("href=\"?").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        let link = links.iter().find(|link| link.contains(&format!("provider={provider}"))).unwrap();
        let form =
            web.follow(web.get(&format!("{base}?{}", link.replace("&#38;", "&"))).unwrap(), None).unwrap();
        let back = back_from(&realm, &web, form, "ann").unwrap();
        let own = realm.url(AUTH, "/cdn-cgi/access/callback/partner?");
        assert_eq!(back.starts_with(&own), provider == "partner", "{back}");
        let page = web.follow(web.get(&back).unwrap(), None).unwrap();
        assert_eq!(page.status, 200, "{}", page.body);
        let me = web.get(&realm.url(WIKI, "/cdn-cgi/access/get-identity")).unwrap();
        let me: Value = serde_json::from_str(&me.body).unwrap();
        assert_eq!(me["email"], "ann@example.com");
        ids.push((me["id"].to_string(), me["user_uuid"].to_string()));
    }
    assert_ne!(ids[0].0, ids[1].0);
    assert_ne!(ids[0].1, ids[1].1);
}

#[test]
fn several_tabs_log_in_side_by_side() {
    let (realm, _idp) = realm(ClaimsIn::Userinfo, "").unwrap();
    let web = realm.web("ann");
    let callback = realm.url(AUTH, "/cdn-cgi/access/callback");
    let one = to_callback(&realm, &web, &realm.url(WIKI, "/one"), "ann").unwrap();
    let two = web.follow(web.get(&realm.url(WIKI, "/admin/two")).unwrap(), Some(&callback)).unwrap();
    let two = two.redirect().unwrap();
    for (back, path) in [(two, "/admin/two"), (one, "/one")] {
        let page = web.follow(web.get(&back).unwrap(), None).unwrap();
        assert_eq!(page.status, 200, "{}", realm.log().unwrap());
        assert!(page.url.ends_with(path), "{}", page.url);
    }
}

/// How often a provider's keys are fetched at the most, for tokens by keys that nobody knows.
const KEYS_EVERY: Duration = Duration::from_secs(30);

#[test]
fn keys_that_rotate_are_fetched_once_and_strange_ones_not_again() {
    let (realm, idp) = realm(ClaimsIn::IdToken, "").unwrap();
    let began = Instant::now();
    assert_eq!(log_in(&realm, &realm.web("before"), &realm.url(WIKI, "/"), "ann").unwrap().status, 200);
    assert_eq!(idp.seen("/jwks").unwrap(), 1);

    // Strange keys cost no fetch: the keys were read a moment ago.
    idp.tamper("unknown_key").unwrap();
    let mut cost_nothing = 0;
    for number in 0..5 {
        let page =
            log_in(&realm, &realm.web(&format!("strange{number}")), &realm.url(WIKI, "/"), "ann").unwrap();
        assert_eq!(page.status, 400, "{}", page.body);
        if began.elapsed() < KEYS_EVERY {
            assert_eq!(idp.seen("/jwks").unwrap(), 1);
            cost_nothing += 1;
        }
    }
    assert!(cost_nothing > 0, "this machine never logs in twice within {KEYS_EVERY:?}");
    let before = idp.seen("/jwks").unwrap();

    idp.tamper("rotated").unwrap();
    std::thread::sleep(KEYS_EVERY + Duration::from_secs(1));
    let backs: Vec<_> = (0..4)
        .map(|number| {
            let web = realm.web(&format!("after{number}"));
            let back = to_callback(&realm, &web, &realm.url(WIKI, "/"), "ann").unwrap();
            (web, back)
        })
        .collect();
    std::thread::scope(|scope| {
        let logins: Vec<_> = backs
            .iter()
            .map(|(web, back)| scope.spawn(move || web.follow(web.get(back).unwrap(), None).unwrap()))
            .collect();
        for login in logins {
            let page = login.join().unwrap();
            assert_eq!(page.status, 200, "{}", page.body);
        }
    });
    assert_eq!(idp.seen("/jwks").unwrap(), before + 1, "logins at the same time share one fetch");
}

//! Login, hand-over, logout, deny and expiry in headless Chromium, with applications on a sibling name of the auth
//! domain and on another registrable domain. The scenarios are in `third-party/npm/browser.mjs`.

use portcullis_tests::access::{Machine, finish};
use portcullis_tests::browser::walk;
use portcullis_tests::idp::{ClaimsIn, Idp};
use portcullis_tests::realm::{AUTH, Plan, Provider, Realm};
use serde_json::json;

/// Applications beyond the usual: one whose tokens last a minute, one whose origin is not there.
const MORE: &str = r#"
[[policy]]
name = "briefly"
action = "allow"
include = [{ email_domain = "example.com" }]
session = "1m"
[[application]]
name = "brief"
url = "https://brief.example.com"
origin = "http://ORIGIN"
policies = ["briefly"]
[[application]]
name = "down"
url = "https://down.example.com"
origin = "http://127.0.0.1:9"
policies = ["staff"]
"#;

/// A realm with local users and, with `oidc`, a provider besides.
fn realm(oidc: bool) -> (Realm, Option<Idp>) {
    let plan = Plan::new().unwrap();
    let accounts = json!({ "ann": { "email": "ann@example.com", "email_verified": true } });
    let idp = oidc.then(|| {
        Idp::start(plan.path(), &plan.ca, &plan.callbacks("okta"), &accounts, ClaimsIn::Userinfo).unwrap()
    });
    let providers: Vec<Provider<'_>> =
        idp.iter().map(|idp| Provider { name: "okta", idp, more: "label = \"Okta\"" }).collect();
    let realm = plan.start(true, &providers, MORE).unwrap();
    (realm, idp)
}

fn run(realm: &Realm, idp: Option<&Idp>, scenario: &str) {
    walk(realm, idp, scenario, &json!(null)).unwrap();
}

#[test]
fn a_person_logs_in_everywhere_and_out_without_scripts() {
    let (realm, _) = realm(false);
    run(&realm, None, "login");
    let logins = realm.events("login", 2).unwrap();
    assert_eq!(logins.len(), 2, "one wrong, one right: {logins:?}");
    assert_eq!(realm.events("logout", 1).unwrap().len(), 1);
    assert!(logins.iter().all(|event| event["app_domain"] == AUTH));
}

#[test]
fn an_application_may_redirect_away_right_after_the_login() {
    let (realm, _) = realm(false);
    run(&realm, None, "redirect_after_form");
}

#[test]
fn another_site_cannot_log_a_person_out() {
    let (realm, _) = realm(false);
    run(&realm, None, "logout");
    assert_eq!(realm.events("logout", 1).unwrap().len(), 1);
}

#[test]
fn a_person_whom_policy_denies_sees_why_and_can_change_account() {
    let (realm, _) = realm(false);
    run(&realm, None, "deny");
}

#[test]
fn an_expired_token_is_renewed_without_asking() {
    let (realm, _) = realm(false);
    run(&realm, None, "expiry");
    assert_eq!(realm.events("login", 1).unwrap().len(), 1);
}

#[test]
fn a_person_logs_in_at_a_provider() {
    let (realm, idp) = realm(true);
    run(&realm, idp.as_ref(), "oidc");
}

#[test]
fn a_browser_goes_from_the_confirmation_to_the_client_without_scripts() {
    let (realm, _) = realm(false);
    let (mut login, url) = Machine::new(&realm, "laptop").unwrap().start_login().unwrap();
    walk(&realm, None, "loopback", &json!({ "url": url })).unwrap();
    finish(&mut login).unwrap();
}

#[test]
fn a_person_types_a_code_without_scripts() {
    let (realm, _) = realm(false);
    let (mut login, url, code) = Machine::new(&realm, "laptop").unwrap().start_login_by_code().unwrap();
    walk(&realm, None, "device", &json!({ "url": url, "code": code })).unwrap();
    finish(&mut login).unwrap();
}

#[test]
fn axe_finds_nothing_on_any_page() {
    let (realm, idp) = realm(true);
    let (mut login, url, code) = Machine::new(&realm, "laptop").unwrap().start_login_by_code().unwrap();
    walk(&realm, idp.as_ref(), "pages", &json!({ "url": url, "code": code })).unwrap();
    let status = login.wait(std::time::Duration::from_secs(30)).unwrap();
    assert!(!status.success() && login.output().contains("it was not confirmed"), "{}", login.output());
}

//! Applications elsewhere that want proof from now of who somebody is, behind a provider that remembers people.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis_tests::idp::{ClaimsIn, Idp};
use portcullis_tests::realm::{AUTH, PASSWORD, Plan, Provider, Realm, WIKI};
use portcullis_tests::web::{Reply, Web};
use serde_json::Value;

use crate::visit::{accounts, back_from, log_in};

const BACK: &str = "https://git.elsewhere.test/cb";
const MORE: &str = r#"
[[application]]
name = "git"
type = "saas"
policies = ["staff"]
oidc = { redirect_uris = ["https://git.elsewhere.test/cb"] }
"#;

/// RFC 7636, appendix B.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

fn realm() -> (Realm, Idp) {
    let plan = Plan::new().unwrap();
    let idp = Idp::start(plan.path(), &plan.ca, &plan.callbacks("okta"), &accounts(), ClaimsIn::IdToken);
    let idp = idp.unwrap();
    let realm = plan.start(false, &[Provider { name: "okta", idp: &idp, more: "" }], MORE).unwrap();
    (realm, idp)
}

/// From the application, which wants `more`, to where the browser stops: back there, a form or a page.
fn sign_in(realm: &Realm, web: &Web, more: &str) -> Reply {
    let ask = format!(
        "/cdn-cgi/access/sso/oidc/git/authorization?client_id=git&redirect_uri={BACK}&response_type=code&scope=openid\
         &state=s&code_challenge={CHALLENGE}&code_challenge_method=S256{more}"
    );
    web.follow(web.get(&realm.url(AUTH, &ask)).unwrap(), Some(BACK)).unwrap()
}

/// The ID token for the code of an answer.
fn id_token(realm: &Realm, web: &Web, reply: &Reply) -> Value {
    let back =
        reply.redirect().unwrap_or_else(|| panic!("{} at {}: {}", reply.status, reply.url, reply.body));
    let code = back.split("code=").nth(1).unwrap_or_else(|| panic!("{back}")).split('&').next().unwrap();
    let form = [
        ("grant_type", "authorization_code"),
        ("client_id", "git"),
        ("redirect_uri", BACK),
        ("code", code),
        ("code_verifier", VERIFIER),
    ];
    let tokens = web.post(&realm.url(AUTH, "/cdn-cgi/access/sso/oidc/git/token"), &form).unwrap();
    let tokens: Value = serde_json::from_str(&tokens.body).unwrap();
    let payload = tokens["id_token"].as_str().unwrap().split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

/// The browser after it has lost what it knows of the node, and nothing of the provider.
fn without_the_node(realm: &Realm, web: &Web, name: &str) -> Web {
    let cookies = std::fs::read_to_string(web.jar()).unwrap();
    let kept: Vec<&str> = cookies.lines().filter(|line| line.contains("localhost")).collect();
    assert!(!kept.is_empty(), "{cookies}");
    let jar = realm.dir.path().join(format!("{name}.jar"));
    let other = web.copy(&jar).unwrap();
    std::fs::write(&jar, kept.join("\n") + "\n").unwrap();
    other
}

#[test]
fn who_is_asked_anew_is_signed_in_with_the_moment_of_it() {
    let (realm, _idp) = realm();
    let web = realm.web("ann");
    assert_eq!(log_in(&realm, &web, &realm.url(WIKI, "/"), "ann").unwrap().status, 200);
    // The provider was not asked when that was, and nobody wants to know.
    let unknown = id_token(&realm, &web, &sign_in(&realm, &web, ""));
    assert_eq!(unknown.get("auth_time"), None, "{unknown}");
    for more in ["&max_age=3600", "&prompt=login", "&max_age=0"] {
        let form = sign_in(&realm, &web, more);
        assert!(form.body.contains("name=\"password\""), "{more}: {} {}", form.url, form.body);
        let back = back_from(&realm, &web, form, "ann").unwrap();
        let done = web.follow(web.get(&back).unwrap(), Some(BACK)).unwrap();
        let told = id_token(&realm, &web, &done);
        let ago = told["iat"].as_i64().unwrap() - told["auth_time"].as_i64().unwrap();
        assert!((0..=60).contains(&ago), "{more}: {told}");
    }
    let young = id_token(&realm, &web, &sign_in(&realm, &web, "&max_age=3600"));
    assert!(young["auth_time"].is_i64(), "known by now, and recent enough: {young}");
}

#[test]
fn another_providers_session_is_no_wish_for_a_login_from_now() {
    let plan = Plan::new().unwrap();
    let idp = Idp::start(plan.path(), &plan.ca, &plan.callbacks("okta"), &accounts(), ClaimsIn::IdToken);
    let idp = idp.unwrap();
    let only = MORE.replace("policies", "providers = [\"okta\"]\npolicies");
    let realm = plan.start(true, &[Provider { name: "okta", idp: &idp, more: "" }], &only).unwrap();
    let web = realm.web("ann");
    let back = back_from(&realm, &web, sign_in(&realm, &web, ""), "ann").unwrap();
    let told = id_token(&realm, &web, &web.follow(web.get(&back).unwrap(), Some(BACK)).unwrap());
    assert_eq!(told.get("auth_time"), None, "{told}");

    idp.tamper("sticky").unwrap();
    let other = without_the_node(&realm, &web, "other");
    assert_eq!(realm.log_in(&other, &realm.url(WIKI, "/"), "ann", PASSWORD).unwrap().status, 200);
    let told = id_token(&realm, &other, &sign_in(&realm, &other, ""));
    assert_eq!(told["email"], Value::Null, "the scope is openid alone: {told}");
    let page = sign_in(&realm, &without_the_node(&realm, &other, "wish"), "&prompt=login");
    assert_eq!(page.status, 400, "the control: {} {}", page.url, page.body);
}

/// Somebody at a browser that was left alone logs out at the node, which the provider knows nothing of.
#[test]
fn a_login_that_the_provider_remembers_is_none_from_now() {
    for mode in ["sticky", "sticky_and_old"] {
        let (realm, idp) = realm();
        let web = realm.web("ann");
        assert_eq!(log_in(&realm, &web, &realm.url(WIKI, "/"), "ann").unwrap().status, 200);
        idp.tamper(mode).unwrap();
        for (number, more) in ["&prompt=login", "&max_age=1"].iter().enumerate() {
            let left = without_the_node(&realm, &web, &format!("{mode}{number}"));
            let page = sign_in(&realm, &left, more);
            assert_eq!(page.status, 400, "{mode}{more}: {} {}", page.url, page.body);
            assert!(page.body.contains("You have to sign in anew"), "{mode}{more}: {}", page.body);
            // With the wish cut off the address of the login it comes to the same.
            let left = without_the_node(&realm, &web, &format!("{mode}{number}-cut"));
            let ask = format!(
                "/cdn-cgi/access/sso/oidc/git/authorization?client_id=git&redirect_uri={BACK}&response_type=code\
                 &scope=openid&state=s&code_challenge={CHALLENGE}&code_challenge_method=S256{more}"
            );
            let login = left.get(&realm.url(AUTH, &ask)).unwrap().redirect().unwrap();
            let cut = login.replace("&fresh=1", "").replace("remembered", "forgotten");
            let page = left.follow(left.get(&cut).unwrap(), Some(BACK)).unwrap();
            assert_eq!(page.status, 400, "{mode}{more}, cut: {} {}", page.url, page.body);
        }
        let refused = realm.events("login", 5).unwrap();
        let anew = refused.iter().filter(|event| event["reason"] == "not_anew").count();
        assert_eq!(anew, 4, "{mode}: {refused:?}");
    }
}

//! From an application to the provider and back.

use anyhow::Result;
use portcullis_tests::idp::{ClaimsIn, Idp};
use portcullis_tests::realm::{AUTH, Plan, Provider, Realm, WIKI};
use portcullis_tests::web::{Reply, Web};
use serde_json::{Value, json};

/// Accounts that a provider knows: one whose address is verified, and what else the rules about people are about.
pub fn accounts() -> Value {
    json!({
        "ann": { "name": "Ann", "email": "ann@example.com", "email_verified": true, "groups": ["ops"] },
        "absent": { "email": "absent@example.com" },
        "eve": { "email": "eve@evil.test", "email_verified": true },
        "homograph": { "email": "a\u{0430}@example.com", "email_verified": true },
    })
}

/// A realm with one provider called `okta` and nothing else.
pub fn realm(claims_in: ClaimsIn, more: &str) -> Result<(Realm, Idp)> {
    let plan = Plan::new()?;
    let idp = Idp::start(plan.path(), &plan.ca, &plan.callbacks("okta"), &accounts(), claims_in)?;
    let more = format!(
        "scopes = [\"openid\", \"email\", \"profile\", \"groups\"]\ngroups_claim = \"groups\"\n{more}"
    );
    let realm = plan.start(false, &[Provider { name: "okta", idp: &idp, more: &more }], "")?;
    Ok((realm, idp))
}

/// Logs `account` in at the provider, from `url`; the redirect that leads back to the node, not yet followed.
pub fn to_callback(realm: &Realm, web: &Web, url: &str, account: &str) -> Result<String> {
    let callback = realm.url(AUTH, "/cdn-cgi/access/callback");
    let form = web.follow(web.get(url)?, Some(&callback))?;
    back_from(realm, web, form, account)
}

/// Fills in the provider's login form.
pub fn back_from(realm: &Realm, web: &Web, form: Reply, account: &str) -> Result<String> {
    let callback = realm.url(AUTH, "/cdn-cgi/access/callback");
    let action = form.between("action=\"", "\"")?;
    let fields = [("prompt", "login"), ("login", account), ("password", "any")];
    let back = web.follow(web.post(&action, &fields)?, Some(&callback))?;
    back.redirect().ok_or_else(|| anyhow::anyhow!("{} at {}: {}", back.status, back.url, back.body))
}

/// The whole way to `url` as `account`; the last answer.
pub fn log_in(realm: &Realm, web: &Web, url: &str, account: &str) -> Result<Reply> {
    let back = to_callback(realm, web, url, account)?;
    web.follow(web.get(&back)?, None)
}

/// Asserts that a login came to nothing: refused, no session, one event with `reason`, nothing at the origin.
pub fn assert_refused(realm: &Realm, web: &Web, reply: &Reply, reason: &str, what: &str) {
    assert!(matches!(reply.status, 400 | 401 | 503), "{what}: {} {}", reply.status, reply.body);
    assert_eq!(reply.cookies(), [""; 0], "{what}");
    assert!(reply.ray().is_ok(), "{what}: {}", reply.body);
    let after = web.get(&realm.url(WIKI, "/")).unwrap();
    assert_eq!(after.status, 302, "{what}: {}", after.body);
    assert_eq!(realm.origin.requests(), [], "{what}");
    let logins = realm.events("login", 1).unwrap();
    assert_eq!(logins.len(), 1, "{what}: {logins:?}");
    let (allowed, told) = (&logins[0]["allowed"], &logins[0]["reason"]);
    assert_eq!((allowed, told), (&json!(false), &json!(reason)), "{what}: {logins:?}");
    assert!(!realm.log().unwrap().contains(portcullis_tests::idp::CLIENT_SECRET), "{what}");
}

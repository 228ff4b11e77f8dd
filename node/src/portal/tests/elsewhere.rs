//! Signing in at applications elsewhere.

use std::sync::Arc;

use http::StatusCode;
use serde_json::Value;

use super::world::{AUTH, Browser, PASSWORD, Page, World};
use crate::config::Active;
use crate::flow::Kind;
use crate::store::SessionFilter;

const MORE: &str = r#"
[[application]]
name = "git"
type = "saas"
url = "https://git.elsewhere.test/start"
policies = ["staff"]
oidc = { redirect_uris = ["https://git.elsewhere.test/cb"] }
[[application]]
name = "chat"
type = "saas"
policies = ["ops"]
oidc = { redirect_uris = ["https://chat.elsewhere.test/cb"] }
"#;

const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

fn at(client: &str, endpoint: &str) -> String {
    format!("https://{AUTH}/cdn-cgi/access/sso/oidc/{client}/{endpoint}")
}

fn authorization(client: &str, more: &str) -> String {
    at(
        client,
        &format!(
            "authorization?client_id={client}&redirect_uri=https%3A%2F%2F{client}.elsewhere.test%2Fcb&response_type=code\
             &scope=openid+email+offline_access&state=xyz&code_challenge={CHALLENGE}&code_challenge_method=S256{more}"
        ),
    )
}

/// From the application through the login and back; the answer that leads back.
async fn sign_in(world: &World, browser: &mut Browser, client: &str, user: &str) -> Page {
    let asked = browser.get(world, &authorization(client, "")).await;
    let login = asked.location().to_owned();
    let form = browser.get(world, &login).await;
    let done = browser.fill_in(world, &login, &form, user, PASSWORD).await;
    if done.status() != StatusCode::SEE_OTHER {
        return done;
    }
    browser.get(world, done.location()).await
}

fn code(page: &Page) -> String {
    let url = url::Url::parse(page.location()).unwrap();
    let found = url.query_pairs().find(|(name, _)| name == "code");
    found.unwrap_or_else(|| panic!("{url}")).1.into_owned()
}

async fn redeem(world: &World, code: &str) -> Page {
    let form = [
        ("grant_type", "authorization_code"),
        ("client_id", "git"),
        ("redirect_uri", "https://git.elsewhere.test/cb"),
        ("code", code),
        ("code_verifier", VERIFIER),
    ];
    Browser::default().post(world, &at("git", "token"), &form).await
}

async fn refresh(world: &World, tokens: &Value) -> Page {
    let token = tokens["refresh_token"].as_str().unwrap();
    let form = [("grant_type", "refresh_token"), ("client_id", "git"), ("refresh_token", token)];
    Browser::default().post(world, &at("git", "token"), &form).await
}

async fn userinfo(world: &World, tokens: &Value) -> Page {
    let bearer = format!("Bearer {}", tokens["access_token"].as_str().unwrap());
    Browser::default().set("authorization", &bearer).get(world, &at("git", "userinfo")).await
}

fn json(page: &Page) -> Value {
    serde_json::from_str(page.body()).unwrap()
}

#[tokio::test]
async fn a_sign_in_goes_through_the_login_and_back() {
    let world = World::with(MORE).await;
    let mut ann = Browser::default();
    let back = sign_in(&world, &mut ann, "git", "ann").await;
    assert!(back.location().starts_with("https://git.elsewhere.test/cb?code="), "{}", back.location());
    assert!(
        back.location().contains(
            "&state=xyz&iss=https%3A%2F%2Faccess.example.com%2Fcdn-cgi%2Faccess%2Fsso%2Foidc%2Fgit"
        )
    );
    let tokens = json(&redeem(&world, &code(&back)).await);
    assert_eq!(tokens["scope"], "openid email offline_access");
    assert_eq!(json(&userinfo(&world, &tokens).await)["email"], "ann@example.com");
    assert_eq!(
        world.events().await,
        ["login true - ann@example.com", "sign_in true - ann@example.com"],
        "one of each"
    );
    let home = ann.get(&world, &format!("https://{AUTH}/")).await;
    assert!(home.body().contains("href=\"https://git.elsewhere.test/start\""), "{}", home.body());
    let silent = ann.get(&world, &authorization("git", "&prompt=none")).await;
    assert!(silent.location().contains("?code="), "{}", silent.location());
}

#[tokio::test]
async fn whom_policy_denies_sends_nothing() {
    let world = World::with(MORE).await;
    let mut bob = Browser::default();
    let page = sign_in(&world, &mut bob, "chat", "bob").await;
    assert_eq!((page.status(), page.location()), (StatusCode::FORBIDDEN, ""));
    assert_eq!(world.events().await, ["login false no_match bob@example.com"]);
    let again = bob.get(&world, &authorization("chat", "")).await;
    assert_eq!((again.status(), again.location()), (StatusCode::FORBIDDEN, ""));
    assert_eq!(world.events().await[1..], ["sign_in false no_match bob@example.com"]);
}

#[tokio::test]
async fn policy_counts_whenever_a_token_is_used() {
    for use_of in ["code", "refresh", "userinfo"] {
        let world = World::with(MORE).await;
        let back = sign_in(&world, &mut Browser::default(), "git", "ann").await;
        let code = code(&back);
        let tokens = match use_of {
            "code" => Value::Null,
            _ => json(&redeem(&world, &code).await),
        };
        let mut config = world.context.active().config.clone();
        config.policies.retain(|policy| policy.name != "staff");
        world.reload.send(Arc::new(Active::new(config.clone()))).unwrap();
        let page = match use_of {
            "code" => redeem(&world, &code).await,
            "refresh" => refresh(&world, &tokens).await,
            _ => userinfo(&world, &tokens).await,
        };
        assert!(matches!(page.status(), StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED), "{use_of}");
        let events = world.events().await;
        assert_eq!(events[2..], ["sign_in false no_policy ann@example.com"], "{use_of}: {events:?}");
    }
}

#[tokio::test]
async fn a_session_that_ends_takes_every_token_along() {
    let world = World::with(MORE).await;
    let back = sign_in(&world, &mut Browser::default(), "git", "ann").await;
    let other = sign_in(&world, &mut Browser::default(), "git", "bob").await;
    let (ann, bob) = (json(&redeem(&world, &code(&back)).await), json(&redeem(&world, &code(&other)).await));
    let filter = SessionFilter::User("ann@example.com".into());
    world.context.sessions.revoke(&filter, crate::clock::now()).await.unwrap();
    assert_eq!(userinfo(&world, &ann).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(refresh(&world, &ann).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(userinfo(&world, &bob).await.status(), StatusCode::OK);
    // By application, too: its sessions are known from the sign-in on.
    let filter = SessionFilter::Application("git".into());
    assert_eq!(world.context.sessions.revoke(&filter, crate::clock::now()).await.unwrap().len(), 1);
    assert_eq!(refresh(&world, &bob).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_address_that_was_taken_away_during_the_login_is_not_returned_to() {
    let world = World::with(MORE).await;
    let mut ann = Browser::default();
    let asked = ann.get(&world, &authorization("git", "")).await;
    let login = asked.location().to_owned();
    let form = ann.get(&world, &login).await;
    let done = ann.fill_in(&world, &login, &form, "ann", PASSWORD).await;
    let mut config = world.context.active().config.clone();
    for application in &mut config.applications {
        if let Kind::Saas(saas) = &mut application.kind {
            let crate::flow::SaasProtocol::Oidc(client) = &mut saas.protocol else { continue };
            client.redirect_uris = vec!["https://new.elsewhere.test/cb".into()];
        }
    }
    world.reload.send(Arc::new(Active::new(config))).unwrap();
    let page = ann.get(&world, done.location()).await;
    assert_eq!((page.status(), page.location()), (StatusCode::BAD_REQUEST, ""));
}

#[tokio::test]
async fn parked_requests_belong_to_one_browser_and_are_few() {
    let world = World::with(MORE).await;
    let mut ann = Browser::default();
    let parked = |browser: &Browser| {
        browser.cookies.keys().filter(|(_, name, _)| name.starts_with("__Host-CF_Sso_")).count()
    };
    for _ in 0..20 {
        ann.get(&world, &authorization("git", "")).await;
        assert!(parked(&ann) <= 6, "{}", parked(&ann));
    }
    let form = ann.get(&world, &authorization("git", "")).await;
    let login = form.location().to_owned();
    let page = ann.get(&world, &login).await;
    let done = ann.fill_in(&world, &login, &page, "ann", PASSWORD).await;
    let mut other = Browser::default();
    assert_eq!(other.get(&world, done.location()).await.status(), StatusCode::BAD_REQUEST);
    assert!(ann.get(&world, done.location()).await.location().contains("?code="));
    assert_eq!(ann.get(&world, done.location()).await.status(), StatusCode::BAD_REQUEST, "once");
}

#[tokio::test]
async fn a_token_for_an_application_elsewhere_opens_nothing_here() {
    let world = World::with(MORE).await;
    let back = sign_in(&world, &mut Browser::default(), "git", "ann").await;
    let tokens = json(&redeem(&world, &code(&back)).await);
    let id_token = tokens["id_token"].as_str().unwrap();
    let now = crate::clock::now();
    let verify = |kind| world.context.tokens.verify(id_token, kind, now);
    assert!(verify(crate::token::Kind::Global).is_err() && verify(crate::token::Kind::Client).is_err());
    for application in world.context.active().policies.applications() {
        assert!(verify(crate::token::Kind::Application(&application.aud)).is_err(), "{}", application.name);
    }
    // Nor is one of ours good as a hint there: the issuer is another one.
    let claims = world.context.tokens.hinted(id_token, now).unwrap();
    assert_ne!(claims["iss"], world.context.tokens.issuer());
}

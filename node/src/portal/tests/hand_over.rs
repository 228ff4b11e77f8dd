//! From application to login and back: what binds the code, what it opens, where it may lead.

use std::sync::Arc;

use http::{StatusCode, header};

use crate::clock;
use crate::config::Active;
use crate::store::SessionFilter;

use super::world::{AUTH, Browser, PASSWORD, SHOP, WIKI, World};

/// Logged in at the wiki, cookies and all.
async fn ann(world: &World) -> Browser {
    let mut ann = Browser::default();
    let page = ann.log_in(world, &format!("https://{WIKI}/"), "ann", PASSWORD).await;
    ann.get(world, page.location()).await;
    assert!(ann.holds(world, &format!("https://{WIKI}/")));
    ann
}

#[tokio::test]
async fn one_login_opens_every_application_silently() {
    let world = World::new().await;
    let mut ann = ann(&world).await;
    for url in [format!("https://{SHOP}/cart"), format!("https://{WIKI}/admin/users")] {
        assert!(!ann.holds(&world, &url), "a token is good for its own application only: {url}");
        let page = ann.visit_login(&world, &url).await;
        assert_eq!(page.status(), StatusCode::FOUND);
        let home = ann.get(&world, page.location()).await;
        assert_eq!(home.status(), StatusCode::FOUND);
        assert!(ann.holds(&world, &url), "{url}");
    }
    assert!(
        ann.holds(&world, &format!("https://{WIKI}/")),
        "two applications on one host do not evict each other"
    );
    let at_admin: Vec<_> =
        ann.cookies.keys().filter(|(host, name, _)| host == WIKI && name == "CF_Authorization").collect();
    assert_eq!(at_admin.len(), 2, "{at_admin:?}");
    assert_eq!(world.events().await, ["login true - ann@example.com"]);
}

/// Asks until it is refused; how often it was let through before.
async fn until_refused(world: &World, browser: &mut Browser, url: &str) -> (usize, super::world::Page) {
    for passed in 0..5000 {
        let page = browser.get(world, url).await;
        if page.status() != StatusCode::FOUND {
            return (passed, page);
        }
    }
    panic!("never refused");
}

#[tokio::test]
async fn one_session_makes_the_node_write_so_often_and_no_oftener() {
    let world = World::new().await;
    let (mut ann, mut bob) = (ann(&world).await, Browser::default());
    bob.log_in(&world, &format!("https://{WIKI}/"), "bob", PASSWORD).await;
    let login = ann.challenge(&world, &format!("https://{SHOP}/")).location().to_owned();
    let (passed, page) = until_refused(&world, &mut ann, &login).await;
    assert!(passed >= 49, "{passed}: a burst is let through");
    assert_eq!(page.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(page.response.headers()[header::RETRY_AFTER], "1");
    let page = bob.visit_login(&world, &format!("https://{SHOP}/")).await;
    assert_eq!(page.status(), StatusCode::FOUND, "another's budget is another");
    let events = world.events().await;
    assert_eq!(events.last().unwrap(), "login false throttled ann@example.com");
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(ann.get(&world, &login).await.status(), StatusCode::FOUND, "and later it goes on");
}

#[tokio::test]
async fn the_challenge_tells_navigations_from_everything_else() {
    let world = World::new().await;
    let url = format!("https://{WIKI}/x");
    for (name, value, status) in [
        ("accept", "text/html,*/*;q=0.8", 302),
        ("accept", "*/*", 302),
        ("accept", "application/json", 401),
        ("accept", "text/event-stream", 401),
        ("x-requested-with", "XMLHttpRequest", 401),
        ("sec-fetch-mode", "navigate", 302),
        ("sec-fetch-mode", "cors", 401),
        ("sec-fetch-mode", "websocket", 401),
        ("user-agent", "Go-http-client/2.0", 302),
    ] {
        let mut browser = Browser::default();
        let page = browser.set(name, value).challenge(&world, &url);
        assert_eq!(page.status().as_u16(), status, "{name}: {value}");
        assert_eq!(page.response.headers().contains_key(header::WWW_AUTHENTICATE), status == 401);
        assert_eq!(page.cookies().is_empty(), status == 401);
    }
}

#[tokio::test]
async fn the_challenge_names_application_host_and_browser() {
    let world = World::new().await;
    let mut browser = Browser::default();
    let page = browser.challenge(&world, &format!("https://{WIKI}/admin/a?b=c&d=%26"));
    assert_eq!(page.cookie_names(), ["__Host-CF_AppSession", "CF_AppSession"]);
    let url = url::Url::parse(page.location()).unwrap();
    assert_eq!((url.host_str(), url.path()), (Some(AUTH), "/cdn-cgi/access/login/wiki.example.com"));
    let query: std::collections::BTreeMap<_, _> = url.query_pairs().into_owned().collect();
    let aud = world.context.active().policies.application("wiki-admin").unwrap().aud.to_string();
    assert_eq!(query["kid"], aud);
    assert_eq!(query["redirect_url"], "/admin/a?b=c&d=%26");
    let mark = &browser.cookies[&(WIKI.to_owned(), "__Host-CF_AppSession".to_owned(), "/".to_owned())];
    assert!(!page.location().contains(mark.as_str()), "only its hash travels");

    let tab = browser.challenge(&world, &format!("https://{WIKI}/other"));
    assert!(tab.cookies().is_empty(), "a second tab uses the same mark");

    let login = browser.get(&world, page.location()).await;
    assert_eq!(login.response.headers()["cf-access-aud"], aud.as_str());
    assert_eq!(login.response.headers()["cf-access-domain"], WIKI);
    let policy = login.response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.contains("form-action 'self' https://wiki.example.com;"), "{policy}");
}

#[tokio::test]
async fn a_code_works_once() {
    let world = World::new().await;
    let mut ann = Browser::default();
    let page = ann.log_in(&world, &format!("https://{WIKI}/"), "ann", PASSWORD).await;
    let mut twin = ann.clone();
    assert_eq!(ann.get(&world, page.location()).await.status(), StatusCode::FOUND);
    let replay = twin.get(&world, page.location()).await;
    assert_eq!(replay.status(), StatusCode::BAD_REQUEST);
    assert!(replay.cookies().is_empty() && !twin.holds(&world, &format!("https://{WIKI}/")));
    assert_eq!(world.events().await, ["login true - ann@example.com", "login false bad_state -"]);
}

/// Login CSRF: Eve's code in Ann's browser.
#[tokio::test]
async fn a_code_in_another_browser_sets_nothing_and_restarts_once() {
    let world = World::new().await;
    let mut bob = Browser::default();
    let code = bob.log_in(&world, &format!("https://{WIKI}/deep?x=1"), "bob", PASSWORD).await;
    for with_mark in [false, true] {
        let mut bob = bob.clone();
        let code = bob.visit_login(&world, &format!("https://{WIKI}/deep?x=1")).await;
        let mut victim = Browser::default();
        if with_mark {
            victim.challenge(&world, &format!("https://{WIKI}/"));
        }
        let restart = victim.get(&world, code.location()).await;
        assert_eq!(restart.status(), StatusCode::FOUND);
        assert!(restart.cookies().is_empty());
        assert!(
            restart.location().starts_with(&format!("https://{WIKI}/cdn-cgi/access/login?")),
            "{}",
            restart.location()
        );
        let challenge = victim.get(&world, restart.location()).await;
        assert!(challenge.location().contains("retry=1") && challenge.location().contains("deep%3Fx%3D1"));
        assert!(!victim.holds(&world, &format!("https://{WIKI}/")));

        // A browser that never keeps the cookie is told so, and does not loop.
        let mut bob = bob.clone();
        let second = bob.get(&world, challenge.location()).await;
        assert!(second.location().contains("/authorized?code="));
        let mut nobody = Browser::default();
        let end = nobody.get(&world, second.location()).await;
        assert_eq!(end.status(), StatusCode::BAD_REQUEST);
        assert!(end.cookies().is_empty() && nobody.cookies.is_empty());
    }
    drop(code);
    let events = world.events().await;
    assert_eq!(events.iter().filter(|line| *line == "login false bad_binding -").count(), 4, "{events:?}");
}

#[tokio::test]
async fn a_code_is_good_on_its_own_host_only() {
    let world = World::new().await;
    let mut ann = Browser::default();
    let page = ann.log_in(&world, &format!("https://{WIKI}/"), "ann", PASSWORD).await;
    let mark = ann.cookies[&(WIKI.to_owned(), "__Host-CF_AppSession".to_owned(), "/".to_owned())].clone();
    ann.cookies.insert((SHOP.to_owned(), "__Host-CF_AppSession".to_owned(), "/".to_owned()), mark);
    let carried = ann.get(&world, &page.location().replace(WIKI, SHOP)).await;
    assert_eq!(carried.status(), StatusCode::BAD_REQUEST);
    assert!(carried.cookies().is_empty() && !ann.holds(&world, &format!("https://{SHOP}/")));
}

#[tokio::test]
async fn a_mark_that_a_sibling_host_tossed_proves_nothing() {
    let world = World::new().await;
    let mut mallory = Browser::default();
    let page = mallory.log_in(&world, &format!("https://{WIKI}/"), "bob", PASSWORD).await;
    let own = |name: &str| (WIKI.to_owned(), name.to_owned(), "/".to_owned());
    // What `Domain=` lets a sibling do: set the name without the prefix, never the one with it.
    let mut victim = Browser::default();
    victim.cookies.insert(own("CF_AppSession"), mallory.cookies[&own("CF_AppSession")].clone());
    let landed = victim.get(&world, page.location()).await;
    assert!(!landed.cookie_names().iter().any(|name| name.starts_with("CF_Authorization")));
    assert!(!victim.holds(&world, &format!("https://{WIKI}/")), "logged in as somebody else");
}

#[tokio::test]
async fn codes_that_nobody_was_given_are_refused_and_not_looked_up() {
    let world = World::new().await;
    let mut ann = Browser::default();
    let given = ann.log_in(&world, &format!("https://{WIKI}/"), "ann", PASSWORD).await;
    world.context.store.break_codes().await;
    let mut browser = Browser::default();
    for query in [
        "",
        "?code=",
        "?code=x",
        "?code=a&code=b",
        &format!("?code={}", "A".repeat(43)),
        &format!("?code={}", "A".repeat(119)),
        &format!("?code={}", "A".repeat(9000)),
    ] {
        let page = browser.get(&world, &format!("https://{WIKI}/cdn-cgi/access/authorized{query}")).await;
        assert_eq!(page.status(), StatusCode::BAD_REQUEST, "{query}");
        assert!(page.cookies().is_empty());
    }
    assert_eq!(world.events().await.len(), 8, "one of each, and the login");
    let looked_up = ann.get(&world, given.location()).await;
    assert_eq!(looked_up.status(), StatusCode::SERVICE_UNAVAILABLE, "the control");
}

#[tokio::test]
async fn a_login_address_without_the_mark_leads_to_the_application_without_a_code() {
    let world = World::new().await;
    let mut ann = ann(&world).await;
    let page =
        ann.get(&world, &format!("https://{AUTH}/cdn-cgi/access/login/{SHOP}?redirect_url=/cart")).await;
    assert_eq!(page.location(), format!("https://{SHOP}/cart"));
}

#[tokio::test]
async fn return_addresses_stay_inside_the_application() {
    let world = World::new().await;
    let aud = world.context.active().policies.application("wiki").unwrap().aud.to_string();
    for wanted in [
        "/\\evil.test",
        "/\t/evil.test",
        "//evil.test",
        "https:\\\\evil.test",
        "https://evil.test/",
        "/@evil.test/../..",
        "evil.test",
        "/cdn-cgi/access/logout",
    ] {
        let mut ann = ann(&world).await;
        let mark = ann
            .challenge(&world, &format!("https://{WIKI}/"))
            .location()
            .split("meta=")
            .nth(1)
            .unwrap()
            .to_owned();
        let wanted: String = url::form_urlencoded::byte_serialize(wanted.as_bytes()).collect();
        let url =
            format!("https://{AUTH}/cdn-cgi/access/login/{WIKI}?kid={aud}&redirect_url={wanted}&meta={mark}");
        let page = ann.get(&world, &url).await;
        let home = ann.get(&world, page.location()).await;
        assert_eq!((home.status(), home.location()), (StatusCode::FOUND, "/"), "{wanted}");
    }
}

#[tokio::test]
async fn cookies_of_another_host_or_kind_are_nothing() {
    let world = World::new().await;
    let ann = ann(&world).await;
    let of =
        |host: &str, name: &str| ann.cookies[&(host.to_owned(), name.to_owned(), "/".to_owned())].clone();
    let mut thief = Browser::default();
    let mut give = |host: &str, name: &str, value: String| {
        thief.cookies.insert((host.to_owned(), name.to_owned(), "/".to_owned()), value);
    };
    // An origin sees its users' tokens, but neither their binding nor anything of the auth domain.
    give(WIKI, "CF_Authorization", of(WIKI, "CF_Authorization"));
    give(AUTH, "CF_Authorization", of(WIKI, "CF_Authorization"));
    give(AUTH, "__Host-CF_Binding", of(WIKI, "__Host-CF_Binding"));
    assert!(!thief.holds(&world, &format!("https://{WIKI}/")));
    assert_eq!(thief.get(&world, &format!("https://{AUTH}/")).await.location(), "/cdn-cgi/access/login");
    assert_eq!(thief.get(&world, &format!("https://{AUTH}/cdn-cgi/access/get-identity")).await.status(), 401);
    assert_eq!(thief.get(&world, &format!("https://{WIKI}/cdn-cgi/access/get-identity")).await.status(), 401);
    // The global token alone is not enough either.
    thief.cookies.clear();
    thief.cookies.insert((AUTH.into(), "CF_Authorization".into(), "/".into()), of(AUTH, "CF_Authorization"));
    assert_eq!(thief.get(&world, &format!("https://{AUTH}/")).await.location(), "/cdn-cgi/access/login");
}

/// Browsers hold every redirect after a form against the page's `form-action`; the chain ends before the application.
#[tokio::test]
async fn a_browser_that_posted_a_form_goes_on_by_a_page() {
    let world = World::new().await;
    let mut ann = Browser::default();
    ann.set("sec-fetch-mode", "navigate");
    let page = ann.log_in(&world, &format!("https://{WIKI}/a?b=c"), "ann", PASSWORD).await;
    let home = ann.get(&world, page.location()).await;
    assert_eq!(home.status(), StatusCode::OK);
    assert!(home.body().contains("content=\"0; url=/a?b=c\""), "{}", home.body());
    assert!(ann.holds(&world, &format!("https://{WIKI}/a")));
}

/// A session that opens one application does not open its neighbour.
#[tokio::test]
async fn policy_decides_at_every_hand_over() {
    let world = World::new().await;
    let mut bob = Browser::default();
    let page = bob.log_in(&world, &format!("https://{WIKI}/"), "bob", PASSWORD).await;
    bob.get(&world, page.location()).await;
    let page = bob.visit_login(&world, &format!("https://{WIKI}/admin/")).await;
    assert_eq!(page.status(), StatusCode::FORBIDDEN);
    assert!(!bob.holds(&world, &format!("https://{WIKI}/admin/")));
    assert_eq!(
        world.events().await,
        ["login true - bob@example.com", "login false no_match bob@example.com"]
    );
}

/// What has changed since the code was made counts when it is redeemed.
#[tokio::test]
async fn policy_decides_again_when_a_code_is_redeemed() {
    let world = World::new().await;
    let mut ann = Browser::default();
    let page = ann.log_in(&world, &format!("https://{WIKI}/"), "ann", PASSWORD).await;
    let mut config = world.context.active().config.clone();
    config.policies.retain(|policy| policy.name != "staff");
    world.reload.send(Arc::new(Active::new(config))).unwrap();
    let home = ann.get(&world, page.location()).await;
    assert_eq!(home.status(), StatusCode::FORBIDDEN);
    assert!(home.cookies().is_empty());
}

#[tokio::test]
async fn a_reload_in_the_middle_of_a_login_counts() {
    let world = World::new().await;
    let mut ann = Browser::default();
    let page = ann.log_in(&world, &format!("https://{WIKI}/"), "ann", PASSWORD).await;
    let mut config = world.context.active().config.clone();
    config.applications.retain(|application| application.name != "wiki");
    world.reload.send(Arc::new(Active::new(config))).unwrap();
    let home = ann.get(&world, page.location()).await;
    assert_eq!(home.status(), StatusCode::BAD_REQUEST);
    assert!(home.cookies().is_empty());
}

#[tokio::test]
async fn a_session_revoked_in_the_middle_of_a_login_counts() {
    let world = World::new().await;
    let mut ann = Browser::default();
    let page = ann.log_in(&world, &format!("https://{WIKI}/"), "ann", PASSWORD).await;
    world.context.sessions.revoke(&SessionFilter::All, clock::now()).await.unwrap();
    let home = ann.get(&world, page.location()).await;
    assert_eq!(home.status(), StatusCode::BAD_REQUEST);
    assert!(home.cookies().is_empty());
}

//! Logout, identity and launcher.

use http::StatusCode;

use super::world::{AUTH, Browser, PASSWORD, SHOP, WIKI, World};

async fn everywhere(world: &World) -> Browser {
    let mut ann = Browser::default();
    let page = ann.log_in(world, &format!("https://{WIKI}/"), "ann", PASSWORD).await;
    ann.get(world, page.location()).await;
    let page = ann.visit_login(world, &format!("https://{SHOP}/")).await;
    ann.get(world, page.location()).await;
    ann
}

#[tokio::test]
async fn logout_anywhere_ends_everything() {
    for host in [AUTH, WIKI, SHOP] {
        let world = World::new().await;
        let mut ann = everywhere(&world).await;
        let copy = ann.clone();
        clicked(&mut ann);
        let page = ann.get(&world, &format!("https://{host}/cdn-cgi/access/logout")).await;
        assert_eq!(page.status(), StatusCode::OK);
        assert!(page.body().contains("You are signed out"));
        assert!(!ann.cookies.keys().any(|(of, name, _)| of == host && name == "CF_Authorization"));
        for url in [format!("https://{WIKI}/"), format!("https://{SHOP}/")] {
            assert!(!copy.holds(&world, &url), "{host}: {url} still opens");
        }
        let mut copy = copy;
        assert_eq!(copy.get(&world, &format!("https://{AUTH}/")).await.location(), "/cdn-cgi/access/login");
        assert_eq!(world.events().await, ["login true - ann@example.com", "logout true - ann@example.com"]);
    }
}

/// A link on a page of the host.
fn clicked(browser: &mut Browser) {
    browser.set("sec-fetch-site", "same-origin").set("sec-fetch-mode", "navigate");
    browser.set("sec-fetch-dest", "document").set("sec-fetch-user", "?1");
}

#[tokio::test]
async fn what_an_application_shows_can_only_make_it_ask() {
    let world = World::new().await;
    let mut ann = everywhere(&world).await;
    for (name, value) in [
        ("sec-fetch-mode", "no-cors"),
        ("sec-fetch-mode", "cors"),
        ("sec-fetch-dest", "image"),
        ("sec-fetch-dest", "iframe"),
        ("sec-fetch-user", "?0"),
        ("sec-purpose", "prefetch"),
        ("sec-purpose", "prefetch;prerender"),
        ("purpose", "prefetch"),
    ] {
        ann.headers.clear();
        clicked(&mut ann);
        ann.set(name, value);
        for host in [WIKI, AUTH] {
            if host == AUTH && name == "sec-fetch-user" {
                // The pages there are the node's own.
                continue;
            }
            let page = ann.get(&world, &format!("https://{host}/cdn-cgi/access/logout")).await;
            assert!(page.body().contains("Sign out?"), "{host} {name}: {value}");
            assert_eq!(page.cookies(), [""; 0], "{host} {name}: {value}");
        }
        assert!(ann.holds(&world, &format!("https://{WIKI}/")), "{name}: {value}");
    }
    // An address typed in.
    ann.headers.clear();
    clicked(&mut ann);
    ann.set("sec-fetch-site", "none");
    let page = ann.get(&world, &format!("https://{WIKI}/cdn-cgi/access/logout")).await;
    assert!(page.body().contains("You are signed out"));
}

#[tokio::test]
async fn another_site_can_only_make_it_ask() {
    let world = World::new().await;
    let mut ann = everywhere(&world).await;
    for site in [Some("cross-site"), Some("same-site"), None] {
        ann.headers.clear();
        if let Some(site) = site {
            ann.set("sec-fetch-site", site);
        }
        let page = ann.get(&world, &format!("https://{WIKI}/cdn-cgi/access/logout")).await;
        assert!(page.body().contains("Sign out?"), "{site:?}");
        let forged = ann.post(&world, &format!("https://{WIKI}/cdn-cgi/access/logout"), &[]).await;
        assert!(forged.body().contains("Sign out?"), "a form without the ticket");
        assert!(ann.holds(&world, &format!("https://{WIKI}/")));
    }
    // A ticket of Bob's is nothing to Ann.
    let mut bob = Browser::default();
    let page = bob.log_in(&world, &format!("https://{WIKI}/"), "bob", PASSWORD).await;
    bob.get(&world, page.location()).await;
    let theirs = bob.get(&world, &format!("https://{WIKI}/cdn-cgi/access/logout")).await.ticket();
    ann.post(&world, &format!("https://{WIKI}/cdn-cgi/access/logout"), &[("ticket", &theirs)]).await;
    assert!(ann.holds(&world, &format!("https://{WIKI}/")));

    let own = ann.get(&world, &format!("https://{WIKI}/cdn-cgi/access/logout")).await.ticket();
    let done = ann.post(&world, &format!("https://{WIKI}/cdn-cgi/access/logout"), &[("ticket", &own)]).await;
    assert!(done.body().contains("You are signed out"));
    assert!(!ann.holds(&world, &format!("https://{WIKI}/")));
    assert!(bob.holds(&world, &format!("https://{WIKI}/")));
}

/// Another site's form comes without the cookies, and must not remove them.
#[tokio::test]
async fn a_form_without_cookies_removes_none() {
    let world = World::new().await;
    for host in [AUTH, WIKI] {
        for site in [Some("cross-site"), None] {
            let mut bare = Browser::default();
            if let Some(site) = site {
                bare.set("sec-fetch-site", site);
            }
            let page = bare.post(&world, &format!("https://{host}/cdn-cgi/access/logout"), &[]).await;
            assert_eq!(page.cookies(), [""; 0], "{host} {site:?}");
            let page = bare.get(&world, &format!("https://{host}/cdn-cgi/access/logout")).await;
            assert_eq!(page.cookies(), [""; 0], "{host} {site:?}");
        }
    }
}

#[tokio::test]
async fn nobody_logs_out_without_an_event() {
    let world = World::new().await;
    let mut nobody = Browser::default();
    let page = nobody.get(&world, &format!("https://{WIKI}/cdn-cgi/access/logout")).await;
    assert_eq!(page.status(), StatusCode::OK);
    assert_eq!(world.events().await, [""; 0]);
}

#[tokio::test]
async fn the_identity_is_told_on_every_host() {
    let world = World::new().await;
    let mut ann = everywhere(&world).await;
    for host in [AUTH, WIKI, SHOP] {
        let page = ann.get(&world, &format!("https://{host}/cdn-cgi/access/get-identity")).await;
        let identity: serde_json::Value = serde_json::from_str(page.body()).unwrap();
        assert_eq!(identity["email"], "ann@example.com");
        assert_eq!(identity["groups"], serde_json::json!(["ops"]));
        assert_eq!(identity["idp"], serde_json::json!({ "id": "local", "type": "local" }));
        assert_eq!(identity["amr"], serde_json::json!(["pwd"]));
        assert_eq!(identity["exp"].as_i64().unwrap() - identity["iat"].as_i64().unwrap(), 7200);
    }
}

#[tokio::test]
async fn the_launcher_shows_what_is_open_to_a_person() {
    let world = World::new().await;
    for (user, admin) in [("ann", true), ("bob", false)] {
        let mut browser = Browser::default();
        let to_login = browser.get(&world, &format!("https://{AUTH}/")).await;
        assert_eq!(to_login.location(), "/cdn-cgi/access/login");
        let url = format!("https://{AUTH}/cdn-cgi/access/login");
        let form = browser.get(&world, &url).await;
        let done = browser.fill_in(&world, &url, &form, user, PASSWORD).await;
        assert_eq!((done.status(), done.location()), (StatusCode::SEE_OTHER, "/"));
        let launcher = browser.get(&world, &format!("https://{AUTH}/")).await;
        assert_eq!(launcher.status(), StatusCode::OK);
        assert!(launcher.body().contains("https://wiki.example.com/\""));
        assert_eq!(launcher.body().contains("https://wiki.example.com/admin\""), admin, "{user}");
        let ticket = launcher.ticket();
        let out = browser
            .post(&world, &format!("https://{AUTH}/cdn-cgi/access/logout"), &[("ticket", &ticket)])
            .await;
        assert!(out.body().contains("You are signed out"));
    }
}

//! Local users: the form, what it refuses, what it answers.

use std::time::Duration;

use argon2::password_hash::PasswordHasher as _;
use argon2::{Algorithm, Argon2, Params, Version};
use http::{Method, StatusCode, header};
use rustix::time::{ClockId, clock_gettime};

use crate::clock;
use crate::identity::password;
use crate::store::SessionFilter;

use super::world::{AUTH, Browser, PASSWORD, WIKI, World};

#[tokio::test]
async fn the_right_password_reaches_the_application() {
    let (world, mut ann) = (World::new().await, Browser::default());
    let page = ann.log_in(&world, &format!("https://{WIKI}/page?x=1"), "ann", PASSWORD).await;
    assert_eq!(page.status(), StatusCode::SEE_OTHER);
    let names = page.cookie_names();
    assert!(names.contains(&"CF_Authorization") && names.contains(&"__Host-CF_Binding"), "{names:?}");
    assert!(page.location().starts_with(&format!("https://{WIKI}/cdn-cgi/access/authorized?code=")));
    assert!(!page.location().contains("page"), "the way back does not travel: {}", page.location());

    let home = ann.get(&world, page.location()).await;
    assert_eq!((home.status(), home.location()), (StatusCode::FOUND, "/page?x=1"));
    for cookie in home.cookies() {
        assert!(cookie.contains("Expires=") && cookie.contains("Max-Age="), "{cookie}");
    }
    for headers in [page.response.headers(), home.response.headers()] {
        assert_eq!(headers[header::CACHE_CONTROL], "no-store");
        assert_eq!(headers[header::REFERRER_POLICY], "no-referrer");
    }
    assert!(ann.holds(&world, &format!("https://{WIKI}/page")));
    assert_eq!(world.events().await, ["login true - ann@example.com"]);
}

const CHANGE_AFTER: Duration = Duration::from_millis(300);

/// The password is checked so slowly here that the change falls between the check's beginning and its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_a_removal_or_a_new_password_overtakes_makes_no_session() {
    let slow = slow_hash(PASSWORD);
    for remove in [true, false] {
        let world = World::new().await;
        world.context.store.set_password("ann", slow.clone()).await.unwrap();
        let (mut ann, wiki) = (Browser::default(), format!("https://{WIKI}/"));
        let login = ann.log_in(&world, &wiki, "ann", PASSWORD);
        let change = async {
            tokio::time::sleep(CHANGE_AFTER).await;
            let store = &world.context.store;
            let changed = if remove {
                store.remove_user("ann").await
            } else {
                store.set_password("ann", password::hash("another password").unwrap()).await
            };
            assert!(changed.unwrap());
            let everyone = SessionFilter::User("local:ann".to_owned());
            assert!(world.context.sessions.revoke(&everyone, clock::now()).await.unwrap().is_empty());
        };
        let (page, ()) = tokio::join!(login, change);
        assert_eq!(page.status(), StatusCode::UNAUTHORIZED, "removed: {remove}");
        assert!(!page.cookie_names().contains(&"CF_Authorization"));
        assert!(!ann.holds(&world, &wiki));
        let live = world.context.sessions.matching(&SessionFilter::All, clock::now()).await.unwrap();
        assert!(live.is_empty(), "removed: {remove}: {live:?}");
    }
}

/// Takes some times as long to verify as the change waits, on a machine of any speed.
fn slow_hash(password: &str) -> String {
    let hash = |rounds| {
        let parameters = Params::new(19 * 1024, rounds, 1, None).unwrap();
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters);
        argon2.hash_password_with_salt(password.as_bytes(), &[7; 16]).unwrap().to_string()
    };
    // Of this thread's own time, since the machine may be busy now and not be then.
    let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let slow = (0..16).map(|nth| 30 << nth).find_map(|rounds| {
        let began = now();
        let hash = hash(rounds);
        (now() - began > 3 * CHANGE_AFTER).then_some(hash)
    });
    slow.expect("so many rounds take so long")
}

#[tokio::test]
async fn known_and_unknown_users_get_the_same_answer() {
    let world = World::new().await;
    let mut answers = Vec::new();
    for user in ["ann", "nobody"] {
        let mut browser = Browser::default();
        let page = browser.log_in(&world, &format!("https://{WIKI}/"), user, "wrong password").await;
        assert_eq!(page.status(), StatusCode::UNAUTHORIZED);
        assert!(page.cookie_names().iter().all(|name| *name == "__Host-CF_Browser"));
        assert!(!browser.holds(&world, &format!("https://{WIKI}/")));
        let ray = page.body().split("<code>").nth(1).unwrap().split('<').next().unwrap().to_owned();
        let body = page.body().replace(&page.ticket(), "").replace(user, "").replace(&ray, "");
        let mut headers: Vec<String> = page
            .response
            .headers()
            .iter()
            .filter(|(name, _)| *name != header::SET_COOKIE)
            .map(|(name, value)| format!("{name}: {value:?}"))
            .collect();
        headers.sort();
        answers.push((headers, body));
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(
        world.events().await,
        ["login false bad_credentials ann", "login false bad_credentials nobody"]
    );
}

#[tokio::test]
async fn a_form_works_once_in_the_browser_it_was_made_for() {
    let (world, mut ann) = (World::new().await, Browser::default());
    let start = ann.challenge(&world, &format!("https://{WIKI}/"));
    let page = ann.get(&world, start.location()).await;

    // Another browser posts Ann's form, or a form without a ticket: nothing happens.
    let mut other = Browser::default();
    other.get(&world, start.location()).await;
    let stolen = other.fill_in(&world, start.location(), &page, "ann", PASSWORD).await;
    assert_eq!(stolen.status(), StatusCode::BAD_REQUEST);
    let bare = other.post(&world, start.location(), &[("username", "ann"), ("password", PASSWORD)]).await;
    assert_eq!(bare.status(), StatusCode::BAD_REQUEST);
    assert!(!other.cookies.keys().any(|(_, name, _)| name == "CF_Authorization"));

    let done = ann.fill_in(&world, start.location(), &page, "ann", PASSWORD).await;
    assert_eq!(done.status(), StatusCode::SEE_OTHER);
    let again = ann.fill_in(&world, start.location(), &page, "ann", PASSWORD).await;
    assert_eq!(again.status(), StatusCode::BAD_REQUEST);
    assert!(again.body().contains("already used"));
    assert_eq!(
        world.events().await,
        [
            "login false bad_state ann",
            "login false bad_state ann",
            "login true - ann@example.com",
            "login false bad_state ann"
        ]
    );
}

#[tokio::test]
async fn a_form_of_another_site_is_refused() {
    let world = World::new().await;
    for (name, value) in [
        ("origin", "https://evil.test"),
        ("origin", "https://wiki.example.com"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        let mut browser = Browser::default();
        let start = browser.challenge(&world, &format!("https://{WIKI}/"));
        let page = browser.get(&world, start.location()).await;
        browser.set(name, value);
        let answer = browser.fill_in(&world, start.location(), &page, "ann", PASSWORD).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{name}: {value}");
    }
    for (name, value) in
        [("origin", "null"), ("origin", "https://access.example.com"), ("sec-fetch-site", "same-origin")]
    {
        let mut browser = Browser::default();
        let start = browser.challenge(&world, &format!("https://{WIKI}/"));
        let page = browser.get(&world, start.location()).await;
        browser.set(name, value);
        let answer = browser.fill_in(&world, start.location(), &page, "ann", PASSWORD).await;
        assert_eq!(answer.status(), StatusCode::SEE_OTHER, "{name}: {value}");
    }
}

#[tokio::test]
async fn attempts_are_throttled_and_the_owner_gets_in_from_a_known_browser() {
    let world = World::new().await;
    let mut ann = Browser::default();
    assert_eq!(
        ann.log_in(&world, &format!("https://{WIKI}/"), "ann", PASSWORD).await.status(),
        StatusCode::SEE_OTHER
    );

    let mut stranger = Browser::default();
    let mut statuses = Vec::new();
    for _ in 0..12 {
        let page = stranger.log_in(&world, &format!("https://{WIKI}/"), "ann", "wrong password").await;
        statuses.push(page.status());
        if page.status() == StatusCode::TOO_MANY_REQUESTS {
            assert!(page.response.headers().contains_key(header::RETRY_AFTER));
        }
    }
    assert!(statuses[..10].iter().all(|status| *status == StatusCode::UNAUTHORIZED));
    assert!(statuses[10..].iter().all(|status| *status == StatusCode::TOO_MANY_REQUESTS));

    ann.cookies.retain(|(_, name, _), _| name == "__Host-CF_Known");
    let page = ann.log_in(&world, &format!("https://{WIKI}/"), "ann", PASSWORD).await;
    assert_eq!(page.status(), StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn every_login_is_a_new_session_and_ends_the_one_before() {
    let (world, mut ann) = (World::new().await, Browser::default());
    let first = ann.log_in(&world, &format!("https://{WIKI}/"), "ann", PASSWORD).await;
    ann.get(&world, first.location()).await;
    let before = ann.clone();
    let global = |browser: &Browser| {
        browser.cookies[&(AUTH.to_owned(), "__Host-CF_Binding".to_owned(), "/".to_owned())].clone()
    };
    // Bob uses the same browser; the form is reached although Ann is still logged in.
    let start = ann.challenge(&world, &format!("https://{WIKI}/"));
    let mut fresh = Browser::default();
    let page = fresh.get(&world, start.location()).await;
    ann.cookies.extend(fresh.cookies.clone());
    ann.fill_in(&world, start.location(), &page, "bob", PASSWORD).await;
    assert_ne!(global(&ann), global(&before));
    assert!(!before.holds(&world, &format!("https://{WIKI}/")), "the session before has ended");
    assert_eq!(
        world.events().await,
        ["login true - ann@example.com", "logout true - ann@example.com", "login true - bob@example.com"]
    );
}

#[tokio::test]
async fn a_person_whom_policy_denies_sees_why() {
    let (world, mut eve) = (World::new().await, Browser::default());
    eve.set("accept", "text/html");
    let page = eve.log_in(&world, &format!("https://{WIKI}/"), "eve", PASSWORD).await;
    assert_eq!(page.status(), StatusCode::FORBIDDEN);
    for text in ["You do not have access", "eve@evil.test", "wiki", "Ray ID", "Sign in as someone else"] {
        assert!(page.body().contains(text), "{text}");
    }
    assert_eq!(world.events().await, ["login false no_match eve@evil.test"]);
    // Still logged in: the launcher knows her and shows nothing.
    let launcher = eve.get(&world, &format!("https://{AUTH}/")).await;
    assert!(launcher.body().contains("No application is open to you"), "{}", launcher.body());
}

#[tokio::test]
async fn hostile_text_is_only_text() {
    let (world, mut browser) = (World::new().await, Browser::default());
    let nasty = "\"><script>alert(1)</script>\r\nann";
    let page = browser.log_in(&world, &format!("https://{WIKI}/"), nasty, "wrong password").await;
    assert_eq!(page.status(), StatusCode::UNAUTHORIZED);
    assert!(!page.body().contains("<script"));
    assert_eq!(world.events().await.len(), 1);
}

#[tokio::test]
async fn other_methods_and_paths_are_refused() {
    let (world, mut browser) = (World::new().await, Browser::default());
    for (method, url, status) in [
        (Method::PUT, format!("https://{AUTH}/cdn-cgi/access/login"), 405),
        (Method::POST, format!("https://{AUTH}/"), 405),
        (Method::POST, format!("https://{AUTH}/cdn-cgi/access/callback"), 405),
        (Method::GET, format!("https://{AUTH}/metrics"), 404),
        (Method::GET, format!("https://{AUTH}/cdn-cgi/access/"), 404),
        (Method::GET, format!("https://{AUTH}/cdn-cgi/access/authorized"), 404),
        (Method::GET, format!("https://{AUTH}/cdn-cgi/access/logout/x"), 404),
        (Method::GET, format!("https://{WIKI}/cdn-cgi/access/callback"), 404),
        (Method::GET, "https://unknown.test/cdn-cgi/access/login".to_owned(), 404),
        (Method::GET, format!("https://{AUTH}/cdn-cgi/access/login/unknown.test"), 404),
        (Method::GET, format!("https://{AUTH}/cdn-cgi/access/login/{WIKI}?kid=ffff"), 404),
        (Method::GET, format!("https://{AUTH}/cdn-cgi/access/icon.svg"), 200),
        (Method::HEAD, format!("https://{AUTH}/cdn-cgi/access/certs"), 200),
        (Method::GET, format!("https://{WIKI}/cdn-cgi/access/certs"), 200),
    ] {
        let page = browser.send(&world, method.clone(), &url, "").await;
        assert_eq!(page.status().as_u16(), status, "{method} {url}");
    }
}

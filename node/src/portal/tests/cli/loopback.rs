//! By a browser on the same machine.

use http::{StatusCode, header};

use super::super::world::{AUTH, Browser, PASSWORD, World};
use super::{
    CHALLENGE, Device, REDIRECT, VERIFIER, code, decide, json, parameter, refusal, refused, signed_in,
    tokens, url,
};

#[tokio::test]
async fn a_login_leads_through_the_browser_and_a_confirmation() {
    let (world, device, mut ann) = (World::new().await, Device::new(), Browser::default());
    ann.set("accept", "text/html");
    let start = device.authorization();
    let to_login = ann.get(&world, &start).await;
    assert_eq!((to_login.status(), to_login.location()), (StatusCode::FOUND, "/cdn-cgi/access/login"));
    let form = ann.get(&world, &url("login")).await;
    let back = ann.fill_in(&world, &url("login"), &form, "ann", PASSWORD).await;
    assert_eq!(format!("https://{AUTH}{}", back.location()), start);

    let page = ann.get(&world, &start).await;
    for text in ["ann&#39;s laptop", "192.0.2.7", "ann@example.com", "Sign the device in", "Cancel"] {
        assert!(page.body().contains(text), "{text} not in {}", page.body());
    }
    let policy = page.response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.contains("form-action 'self' http://127.0.0.1:4000;"), "{policy}");
    assert!(policy.contains("frame-ancestors 'none'"));

    let answer = decide(&world, &mut ann, &start, &page.ticket(), "allow").await;
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    let location = answer.location();
    assert!(location.starts_with("http://127.0.0.1:4000/callback?code="), "{location}");
    assert_eq!(parameter(location, "state").as_deref(), Some("abc"));
    assert_eq!(parameter(location, "iss").as_deref(), Some("https://access.example.com"));
    let code = parameter(location, "code").unwrap();

    let answer = device.exchange(&world, &code, REDIRECT, VERIFIER).await;
    let body = json(&answer);
    let tokens = tokens(&answer);
    assert_eq!(body["person"], "ann@example.com");
    assert_eq!(body["node"]["address"], "access.example.com:443");
    assert_eq!(body["node"]["key"].as_str().unwrap().len(), 64);
    assert!(body["expires_in"].as_u64().unwrap() <= 900);
    assert!((7100..=7200).contains(&body["login_expires_in"].as_u64().unwrap()));

    let who = json(&device.get(&world, "cli/whoami", &tokens.access).await);
    assert_eq!((&who["email"], &who["device"]), (&"ann@example.com".into(), &"ann's laptop".into()));
    let apps = json(&device.get(&world, "cli/apps", &tokens.access).await);
    let names: Vec<&str> = apps.as_array().unwrap().iter().map(|app| app["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["shop", "wiki", "wiki-admin"]);
    assert_eq!(apps[2]["url"], "https://wiki.example.com/admin");
    assert_eq!(
        world.events().await,
        ["login true - ann@example.com", "login true - ann@example.com"],
        "the browser's and the device's"
    );
    // Logging in again needs no page that waits.
    let again = ann.get(&world, &url("login")).await;
    assert_eq!(again.location(), "/");
}

#[tokio::test]
async fn an_ipv6_address_is_reached_by_a_page() {
    let (world, device) = (World::new().await, Device::new());
    let mut ann = signed_in(&world, "ann").await;
    let start = device.authorization().replacen("127.0.0.1", "%5B%3A%3A1%5D", 1);
    let ticket = ann.get(&world, &start).await.ticket();
    let page = decide(&world, &mut ann, &start, &ticket, "allow").await;
    assert_eq!((page.status(), page.location()), (StatusCode::OK, ""));
    assert!(page.body().contains("content=\"0; url=http://[::1]:4000/callback?code="), "{}", page.body());
}

#[tokio::test]
async fn a_confirmation_counts_once_for_its_request_and_its_person() {
    let (world, device) = (World::new().await, Device::new());
    let (mut ann, mut bob) = (signed_in(&world, "ann").await, signed_in(&world, "bob").await);
    let (start, other) = (device.authorization(), Device::new().authorization());
    let ticket = ann.get(&world, &start).await.ticket();
    let of_bob = bob.get(&world, &start).await.ticket();
    let of_other = ann.get(&world, &other).await.ticket();
    for wrong in ["", "x", &of_bob, &of_other] {
        let page = decide(&world, &mut ann, &start, wrong, "allow").await;
        assert_eq!((page.status(), page.location()), (StatusCode::OK, ""), "asked again: {wrong}");
    }
    for decision in ["", "yes"] {
        assert_eq!(decide(&world, &mut ann, &start, &ticket, decision).await.location(), "");
    }
    let mut foreign = ann.clone();
    foreign.set("sec-fetch-site", "cross-site");
    assert_eq!(decide(&world, &mut foreign, &start, &ticket, "allow").await.location(), "");
    let mut foreign = ann.clone();
    foreign.set("origin", "https://evil.example");
    assert_eq!(decide(&world, &mut foreign, &start, &ticket, "allow").await.location(), "");

    assert!(decide(&world, &mut ann, &start, &ticket, "allow").await.location().contains("code="));
    let again = decide(&world, &mut ann, &start, &ticket, "allow").await;
    assert_eq!((again.status(), again.location()), (StatusCode::BAD_REQUEST, ""));

    let ticket = ann.get(&world, &start).await.ticket();
    let no = decide(&world, &mut ann, &start, &ticket, "deny").await;
    assert_eq!(parameter(no.location(), "error").as_deref(), Some("access_denied"));
    assert_eq!(parameter(no.location(), "state").as_deref(), Some("abc"));
    assert_eq!(
        world.events().await[2..],
        ["login false bad_state ann@example.com", "login false declined ann@example.com"]
    );
}

#[tokio::test]
async fn a_request_that_is_not_ours_leads_nowhere() {
    let world = World::new().await;
    let mut ann = signed_in(&world, "ann").await;
    let good = Device::new().authorization();
    for (from, to) in [
        ("127.0.0.1%3A4000", "evil.example"),
        ("http%3A%2F%2F127.0.0.1", "https%3A%2F%2F127.0.0.1"),
        ("127.0.0.1%3A4000", "localhost%3A4000"),
        ("%2Fcallback", "%2Fother"),
        ("S256", "plain"),
        ("response_type=code", "response_type=token"),
        ("portcullis-access", "another"),
        ("state=abc", "state="),
        ("code_challenge=", "x="),
        ("dpop_jkt=", "x="),
        ("device=", &format!("x={}", "x".repeat(2048))),
    ] {
        let wrong = good.replacen(from, to, 1);
        assert_ne!(wrong, good);
        let page = ann.get(&world, &wrong).await;
        assert_eq!((page.status(), page.location()), (StatusCode::BAD_REQUEST, ""), "{wrong}");
        let page = decide(&world, &mut ann, &wrong, "x", "allow").await;
        assert_eq!((page.status(), page.location()), (StatusCode::BAD_REQUEST, ""), "{wrong}");
    }
    assert_eq!(ann.get(&world, &good).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_code_is_for_one_verifier_key_and_address() {
    let world = World::new().await;
    let mut ann = signed_in(&world, "ann").await;
    let (device, thief) = (Device::new(), Device::new());
    let wrong_verifier = VERIFIER.replace('d', "e");
    for (who, redirect, verifier) in [
        (&device, REDIRECT, wrong_verifier.as_str()),
        (&device, REDIRECT, CHALLENGE),
        (&device, "http://127.0.0.1:4001/callback", VERIFIER),
        (&thief, REDIRECT, VERIFIER),
    ] {
        let code = code(&world, &mut ann, &device).await;
        let answer = who.exchange(&world, &code, redirect, verifier).await;
        assert_eq!(refusal(&answer), refused(400, "invalid_grant"), "{redirect} {verifier}");
        let spent = device.exchange(&world, &code, REDIRECT, VERIFIER).await;
        assert_eq!(refusal(&spent), refused(400, "invalid_grant"), "there is no second try");
    }
    assert_eq!(
        world.events().await[1..3],
        ["login false bad_binding ann@example.com", "login false bad_state -"]
    );
}

#[tokio::test]
async fn a_code_that_comes_twice_ends_what_came_of_it() {
    let world = World::new().await;
    let mut ann = signed_in(&world, "ann").await;
    let device = Device::new();
    let code = code(&world, &mut ann, &device).await;
    let held = tokens(&device.exchange(&world, &code, REDIRECT, VERIFIER).await);
    assert_eq!(device.get(&world, "cli/whoami", &held.access).await.status(), StatusCode::OK);
    let again = Device::new().exchange(&world, &code, REDIRECT, VERIFIER).await;
    assert_eq!(refusal(&again), refused(400, "invalid_grant"));
    let after = device.get(&world, "cli/whoami", &held.access).await;
    assert_eq!(refusal(&after), refused(401, "invalid_token"));
    assert_eq!(refusal(&device.refresh(&world, &held.refresh).await), refused(400, "invalid_grant"));
    assert!(world.events().await.contains(&"logout true - ann@example.com".to_owned()));
}

#[tokio::test]
async fn codes_that_nobody_was_given_are_not_looked_up() {
    let world = World::new().await;
    let (mut ann, device) = (signed_in(&world, "ann").await, Device::new());
    let given = code(&world, &mut ann, &device).await;
    world.context.store.break_codes().await;
    for made_up in ["x", "A".repeat(43).as_str(), given.replace('A', "B").as_str(), &given[1..]] {
        if made_up != given {
            let answer = device.exchange(&world, made_up, REDIRECT, VERIFIER).await;
            assert_eq!(refusal(&answer), refused(400, "invalid_grant"), "{made_up}");
        }
    }
    let looked_up = device.exchange(&world, &given, REDIRECT, VERIFIER).await;
    assert_ne!(looked_up.status(), StatusCode::BAD_REQUEST, "the control: {}", looked_up.body());
}

//! By a code that is typed elsewhere; and where endpoints are.

use http::{Method, StatusCode};

use super::super::world::{AUTH, Browser, PASSWORD, WIKI, World};
use super::{Device, ask, decide, json, refusal, refused, signed_in, url};

#[tokio::test]
async fn a_device_without_a_browser_waits_for_its_person() {
    let (world, device, mut ann) = (World::new().await, Device::new(), Browser::default());
    ann.set("accept", "text/html");
    let started = json(&device.post(&world, "cli/device_authorization", &[("device", "build server")]).await);
    assert_eq!(started["verification_uri"], url("cli/device"));
    let text = |name: &str| started[name].as_str().unwrap().to_owned();
    let (device_code, user_code) = (text("device_code"), text("user_code"));
    let poll = async |who: &Device| {
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
            ("device_code", device_code.as_str()),
        ];
        who.post(&world, "cli/token", &form).await
    };
    assert_eq!(refusal(&poll(&device).await), refused(400, "authorization_pending"));
    assert_eq!(refusal(&poll(&device).await), refused(400, "slow_down"));
    assert_eq!(refusal(&poll(&Device::new()).await), refused(400, "invalid_grant"), "of another device");

    let page = url("cli/device");
    assert_eq!(ann.get(&world, &page).await.location(), "/cdn-cgi/access/login");
    let form = ann.get(&world, &url("login")).await;
    let back = ann.fill_in(&world, &url("login"), &form, "ann", PASSWORD).await;
    assert_eq!(format!("https://{AUTH}{}", back.location()), page);
    let form = ann.get(&world, &page).await;
    let ticket = form.ticket();
    for (ticket, code) in [(ticket.as_str(), "BBBB-BBBB"), (&ticket, ""), ("x", &user_code)] {
        let wrong = ann.post(&world, &page, &[("ticket", ticket), ("code", code)]).await;
        assert_eq!((wrong.status(), wrong.location()), (StatusCode::BAD_REQUEST, ""), "{code}");
    }
    let typed = user_code.to_lowercase().replace('-', " ");
    let found = ann.post(&world, &page, &[("ticket", &ticket), ("code", &typed)]).await;
    let asks = format!("https://{AUTH}{}", found.location());
    let confirmation = ann.get(&world, &asks).await;
    for text in ["build server", "192.0.2.7", "ann@example.com", "If somebody sent you the code, cancel"] {
        assert!(confirmation.body().contains(text), "{text} not in {}", confirmation.body());
    }
    // The address is of use to whoever has typed the code: sent to somebody else, it would be a link that carries it.
    let mut bob = signed_in(&world, "bob").await;
    let sent = bob.get(&world, &asks).await;
    assert_eq!(sent.status(), StatusCode::BAD_REQUEST);
    assert!(!sent.body().contains("build server"), "{}", sent.body());
    let before = decide(&world, &mut ann, &asks, "x", "allow").await;
    assert!(before.body().contains("Sign this device in?"), "a word without a ticket is none");
    let done = decide(&world, &mut ann, &asks, &confirmation.ticket(), "allow").await;
    assert!(done.body().contains("The device is signed in"), "{}", done.body());
    assert!(!world.events().await.iter().any(|event| event.contains("logout")));

    assert_eq!(refusal(&poll(&device).await), refused(400, "slow_down"), "it waits as long as it was told");
    let again = ann.get(&world, &asks).await;
    let late = decide(&world, &mut ann, &asks, &again.ticket(), "deny").await;
    assert!(late.body().contains("does not wait any more"), "said is said");
}

#[tokio::test]
async fn codes_cannot_be_guessed_at_will() {
    let world = World::new().await;
    let mut ann = signed_in(&world, "ann").await;
    let page = url("cli/device");
    let ticket = ann.get(&world, &page).await.ticket();
    let mut seen = Vec::new();
    for _ in 0..12 {
        let answer = ann.post(&world, &page, &[("ticket", &ticket), ("code", "BCDF-GHJK")]).await;
        seen.push(answer.status().as_u16());
    }
    assert_eq!(seen, [vec![400; 10], vec![429; 2]].concat());
    assert!(world.events().await.contains(&"login false throttled ann@example.com".to_owned()));
}

#[tokio::test]
async fn strangers_make_few_devices_wait() {
    let world = World::new().await;
    let mut statuses = Vec::new();
    for _ in 0..20 {
        let answer = Device::new().post(&world, "cli/device_authorization", &[]).await;
        statuses.push(answer.status().as_u16());
    }
    assert_eq!(statuses, [vec![200; 16], vec![429; 4]].concat());
    let device = Device::new();
    for form in [&[("client_id", "another")][..], &[]] {
        let proof = device.proof("POST", "cli/device_authorization", None);
        let answer = ask(&world, Method::POST, "cli/device_authorization", None, &proof, form).await;
        assert_eq!(refusal(&answer), refused(400, "invalid_client"));
    }
    let form = [("client_id", "portcullis-access")];
    let answer = ask(&world, Method::POST, "cli/device_authorization", None, "x", &form).await;
    assert_eq!(refusal(&answer), refused(400, "invalid_dpop_proof"));
}

#[tokio::test]
async fn endpoints_are_where_they_belong_and_nowhere_else() {
    let (world, mut browser) = (World::new().await, Browser::default());
    for (method, url, status) in [
        (Method::GET, url("cli/token"), 405),
        (Method::POST, url("cli/whoami"), 405),
        (Method::PUT, url("cli/authorize"), 405),
        (Method::GET, url("cli"), 404),
        (Method::GET, url("cli/nothing"), 404),
        (Method::GET, format!("https://{WIKI}/cdn-cgi/access/cli/whoami"), 404),
        (Method::POST, format!("https://{WIKI}/cdn-cgi/access/cli/token"), 404),
        (Method::POST, url("cli/token"), 400),
        (Method::POST, url("cli/revoke"), 400),
        (Method::POST, url("cli/app_token"), 401),
        (Method::POST, url("cli/global_token"), 401),
        (Method::GET, url("cli/apps"), 401),
    ] {
        let page = browser.send(&world, method.clone(), &url, "").await;
        assert_eq!(page.status().as_u16(), status, "{method} {url}");
    }
}

//! What tokens are good for, and how they end.

use http::{HeaderValue, Method, StatusCode, header};

use super::super::world::{AUTH, Browser, WIKI, World};
use super::{Device, REDIRECT, Tokens, VERIFIER, ask, code, json, refusal, refused, signed_in, tokens, url};
use crate::clock;
use crate::flow::{Aud, Host};
use crate::store::SessionFilter;
use crate::token::Kind;

#[tokio::test]
async fn a_token_takes_a_proof_by_its_key_about_this_request_once() {
    let world = World::new().await;
    let mut ann = signed_in(&world, "ann").await;
    let (mut device, thief) = (Device::new(), Device::new());
    let Tokens { access, .. } = device.log_in(&world, &mut ann).await;
    let whoami = "cli/whoami";
    let whoami_with =
        async |proof: &str, token: Option<&str>| ask(&world, Method::GET, whoami, token, proof, &[]).await;

    let proof = device.proof("GET", whoami, Some(&access));
    assert_eq!(whoami_with(&proof, Some(&access)).await.status(), StatusCode::OK);
    assert_eq!(
        refusal(&whoami_with(&proof, Some(&access)).await),
        refused(401, "invalid_dpop_proof"),
        "replayed"
    );
    for (proof, why) in [
        (thief.proof("GET", whoami, Some(&access)), "invalid_token"),
        (device.proof("POST", whoami, Some(&access)), "invalid_dpop_proof"),
        (device.proof("GET", "cli/apps", Some(&access)), "invalid_dpop_proof"),
        (device.proof("GET", whoami, Some("another")), "invalid_dpop_proof"),
        (device.proof("GET", whoami, None), "invalid_dpop_proof"),
        ("x".to_owned(), "invalid_dpop_proof"),
    ] {
        let answer = whoami_with(&proof, Some(&access)).await;
        assert_eq!(refusal(&answer), refused(401, why));
        let challenge = answer.response.headers()[header::WWW_AUTHENTICATE].to_str().unwrap();
        assert!(challenge.starts_with("DPoP error="), "{challenge}");
    }
    let none = whoami_with(&device.proof("GET", whoami, None), None).await;
    assert_eq!(refusal(&none), refused(401, "invalid_token"));
    for seconds in [-125, 125] {
        device.clock = seconds;
        let late = device.get(&world, whoami, &access).await;
        assert_eq!(refusal(&late), refused(401, "invalid_dpop_proof"), "{seconds}");
    }
    device.clock = 0;
    // Neither a browser's cookie nor a token of another kind will do.
    let global = ann.cookies.iter().find(|((host, name, _), _)| host == AUTH && name == "CF_Authorization");
    let global = global.unwrap().1.clone();
    assert_eq!(refusal(&device.get(&world, whoami, &global).await), refused(401, "invalid_token"));
    let mut bearer = Browser::default();
    bearer.headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {access}")).unwrap());
    assert_eq!(refusal(&bearer.get(&world, &url(whoami)).await), refused(401, "invalid_token"));
    assert_eq!(device.get(&world, whoami, &access).await.status(), StatusCode::OK, "the control");
}

#[tokio::test]
async fn a_refresh_token_is_good_once_and_ends_the_login_when_it_comes_again() {
    let world = World::new().await;
    let mut ann = signed_in(&world, "ann").await;
    let (device, thief) = (Device::new(), Device::new());
    let first = device.log_in(&world, &mut ann).await;
    assert_eq!(refusal(&thief.refresh(&world, &first.refresh).await), refused(400, "invalid_grant"));
    // The very same request may come again: its answer may have got lost.
    let form = [
        ("client_id", "portcullis-access"),
        ("grant_type", "refresh_token"),
        ("refresh_token", first.refresh.as_str()),
    ];
    let proof = device.proof("POST", "cli/token", None);
    let second = tokens(&ask(&world, Method::POST, "cli/token", None, &proof, &form).await);
    let again = tokens(&ask(&world, Method::POST, "cli/token", None, &proof, &form).await);
    assert_eq!(second.refresh, again.refresh);
    assert_ne!(second.refresh, first.refresh);
    assert_eq!(device.get(&world, "cli/whoami", &second.access).await.status(), StatusCode::OK);

    assert_eq!(refusal(&device.refresh(&world, &first.refresh).await), refused(400, "invalid_grant"));
    assert_eq!(refusal(&device.refresh(&world, &second.refresh).await), refused(400, "invalid_grant"));
    let ended = device.get(&world, "cli/whoami", &second.access).await;
    assert_eq!(refusal(&ended), refused(401, "invalid_token"));
    let events = world.events().await;
    assert_eq!(
        events[2..],
        [
            "login false bad_binding ann@example.com",
            "logout true - ann@example.com",
            "login false bad_state ann@example.com",
            "login false session_ended -",
            "request false session_ended -",
        ]
    );
}

#[tokio::test]
async fn a_device_ends_with_the_login_that_let_it_in() {
    let world = World::new().await;
    let mut ann = signed_in(&world, "ann").await;
    let device = Device::new();
    let held = device.log_in(&world, &mut ann).await;
    world
        .context
        .sessions
        .revoke(&SessionFilter::User("ann@example.com".into()), clock::now())
        .await
        .unwrap();
    assert_eq!(refusal(&device.refresh(&world, &held.refresh).await), refused(400, "invalid_grant"));
    let ended = device.get(&world, "cli/whoami", &held.access).await;
    assert_eq!(refusal(&ended), refused(401, "invalid_token"));
    let page = ann.get(&world, &device.authorization()).await;
    assert_eq!(page.location(), "/cdn-cgi/access/login", "nor does the browser get another one in");
}

#[tokio::test]
async fn a_code_that_was_given_before_a_logout_is_worth_nothing_after_it() {
    let world = World::new().await;
    let mut ann = signed_in(&world, "ann").await;
    let device = Device::new();
    let code = code(&world, &mut ann, &device).await;
    world.context.sessions.revoke(&SessionFilter::All, clock::now()).await.unwrap();
    let answer = device.exchange(&world, &code, REDIRECT, VERIFIER).await;
    assert_eq!(refusal(&answer), refused(400, "invalid_grant"));
}

#[tokio::test]
async fn only_its_own_key_logs_a_device_out() {
    let world = World::new().await;
    let mut ann = signed_in(&world, "ann").await;
    let (device, thief) = (Device::new(), Device::new());
    let held = device.log_in(&world, &mut ann).await;
    let revoke = [("token", held.refresh.as_str())];
    assert_eq!(thief.post(&world, "cli/revoke", &revoke).await.status(), StatusCode::OK);
    assert_eq!(device.post(&world, "cli/revoke", &[("token", "x")]).await.status(), StatusCode::OK);
    assert_eq!(device.get(&world, "cli/whoami", &held.access).await.status(), StatusCode::OK);
    assert_eq!(device.post(&world, "cli/revoke", &revoke).await.status(), StatusCode::OK);
    let ended = device.get(&world, "cli/whoami", &held.access).await;
    assert_eq!(refusal(&ended), refused(401, "invalid_token"));
    assert_eq!(device.post(&world, "cli/revoke", &revoke).await.status(), StatusCode::OK);
    assert_eq!(
        world.events().await[2..],
        ["logout true - ann@example.com", "request false session_ended -"],
        "one logout"
    );
    assert_eq!(
        ann.get(&world, &format!("https://{AUTH}/")).await.status(),
        StatusCode::OK,
        "the browser stays"
    );
}

#[tokio::test]
async fn a_token_for_an_application_takes_the_word_of_policy() {
    let world = World::with("[[policy]]\nname = \"open\"\naction = \"bypass\"\ninclude = [{ everyone = true }]\n[[application]]\nname = \"status\"\nurl = \"https://status.example.com\"\norigin = \"http://10.0.0.7:80\"\npolicies = [\"open\"]\n").await;
    let mut bob = signed_in(&world, "bob").await;
    let device = Device::new();
    let held = device.log_in(&world, &mut bob).await;
    let app = async |name: &str| {
        device.ask(&world, Method::POST, "cli/app_token", Some(&held.access), &[("app", name)]).await
    };
    for name in
        ["wiki", "https://wiki.example.com/page?x=1#y", "wiki.example.com", "https://WIKI.example.com:443"]
    {
        let answer = json(&app(name).await);
        assert_eq!((&answer["application"], &answer["host"]), (&"wiki".into(), &WIKI.into()), "{name}");
        let aud = Aud::derive(&Host::parse(AUTH).unwrap(), "wiki");
        assert_eq!(answer["aud"], aud.as_str());
        assert!(answer["expires_in"].as_u64().unwrap() <= 3600, "as policy says");
        let token = answer["token"].as_str().unwrap();
        let verify = |kind| world.context.tokens.verify(token, kind, clock::now());
        assert!(verify(Kind::ApplicationOfClient(&aud)).unwrap().client_login.is_some());
        assert!(verify(Kind::Application(&aud)).is_err(), "no browser's token");
    }
    for (name, status, code) in [
        ("wiki-admin", 403, "access_denied"),
        ("https://wiki.example.com/admin/x", 403, "access_denied"),
        ("https://wiki.example.com/x/..%2fadmin", 404, "invalid_target"),
        ("https://evil.example/", 404, "invalid_target"),
        ("nothing", 404, "invalid_target"),
        ("", 404, "invalid_target"),
        ("status", 400, "no_token"),
    ] {
        assert_eq!(refusal(&app(name).await), refused(status, code), "{name}");
    }
    let events = world.events().await;
    assert!(events.contains(&"request false no_match bob@example.com".to_owned()), "{events:?}");
    assert_eq!(events.iter().filter(|event| **event == "request true - bob@example.com").count(), 4);
    // Who revokes by application finds it.
    let granted = SessionFilter::Application("wiki".into());
    assert_eq!(world.context.sessions.matching(&granted, clock::now()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_global_token_is_for_a_client_and_names_its_login() {
    let world = World::new().await;
    let mut ann = signed_in(&world, "ann").await;
    let device = Device::new();
    let held = device.log_in(&world, &mut ann).await;
    let answer = json(&device.ask(&world, Method::POST, "cli/global_token", Some(&held.access), &[]).await);
    assert_eq!(answer["host"], AUTH);
    assert!((3590..=3600).contains(&answer["expires_in"].as_u64().unwrap()), "{answer}");
    let verify = |kind| world.context.tokens.verify(answer["token"].as_str().unwrap(), kind, clock::now());
    let claims = verify(Kind::GlobalOfClient).unwrap();
    assert!(claims.exp <= clock::now().0 + 3600);
    assert!(verify(Kind::Global).is_err() && verify(Kind::Client).is_err(), "no browser's token");
    assert!(world.context.live(&claims, clock::now()).is_some());
    let thief = Device::new().ask(&world, Method::POST, "cli/global_token", Some(&held.access), &[]).await;
    assert_eq!(refusal(&thief), refused(401, "invalid_token"));
    // The browser's login goes on; the device's does not, and the token with it.
    device.post(&world, "cli/revoke", &[("token", held.refresh.as_str())]).await;
    assert!(world.context.live(&claims, clock::now()).is_none());
    let events = world.events().await;
    assert!(events.contains(&"request true - ann@example.com".to_owned()), "{events:?}");
    assert!(events.contains(&"request false bad_binding -".to_owned()), "{events:?}");
}

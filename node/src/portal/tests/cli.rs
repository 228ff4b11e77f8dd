//! Access clients at the node's endpoints: every grant, and what is tried against it.

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::Value;

use super::world::{AUTH, Browser, PASSWORD, Page, WIKI, World};
use crate::clock;
use crate::flow::{Aud, Host, UnixTime};
use crate::store::SessionFilter;
use crate::token::Kind;
use crate::token::dpop::{About, Signer};
use crate::tunnel::TunnelKey;

const REDIRECT: &str = "http://127.0.0.1:4000/callback";
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

fn url(endpoint: &str) -> String {
    format!("https://{AUTH}/cdn-cgi/access/{endpoint}")
}

/// A device with a key of its own.
struct Device {
    signer: Signer,
    /// As of this time its proofs are made.
    clock: i64,
}

impl Device {
    fn new() -> Self {
        Self { signer: Signer::from_pkcs8(&TunnelKey::generate().unwrap()).unwrap(), clock: 0 }
    }

    fn proof(&self, method: &str, endpoint: &str, token: Option<&str>) -> String {
        let about = About { method, url: &url(endpoint), token };
        let at = UnixTime(clock::now().0 + self.clock);
        self.signer.prove(about, clock::random(), at).unwrap()
    }

    async fn ask(
        &self,
        world: &World,
        method: Method,
        endpoint: &str,
        token: Option<&str>,
        form: &[(&str, &str)],
    ) -> Page {
        let proof = self.proof(method.as_str(), endpoint, token);
        ask(world, method, endpoint, token, &proof, form).await
    }

    /// A form that goes with a proof and no token, from our client.
    async fn post(&self, world: &World, endpoint: &str, form: &[(&str, &str)]) -> Page {
        let form: Vec<_> =
            [("client_id", "portcullis-access")].into_iter().chain(form.iter().copied()).collect();
        self.ask(world, Method::POST, endpoint, None, &form).await
    }

    async fn get(&self, world: &World, endpoint: &str, token: &str) -> Page {
        self.ask(world, Method::GET, endpoint, Some(token), &[]).await
    }

    /// The address of an authorization request.
    fn authorization(&self) -> String {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("response_type", "code")
            .append_pair("client_id", "portcullis-access")
            .append_pair("redirect_uri", REDIRECT)
            .append_pair("state", "abc")
            .append_pair("code_challenge", CHALLENGE)
            .append_pair("code_challenge_method", "S256")
            .append_pair("dpop_jkt", &self.signer.thumbprint())
            .append_pair("device", "ann's <laptop>")
            .finish();
        format!("{}?{query}", url("cli/authorize"))
    }

    async fn exchange(&self, world: &World, code: &str, redirect: &str, verifier: &str) -> Page {
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect),
            ("code_verifier", verifier),
        ];
        self.post(world, "cli/token", &form).await
    }

    async fn refresh(&self, world: &World, token: &str) -> Page {
        self.post(world, "cli/token", &[("grant_type", "refresh_token"), ("refresh_token", token)]).await
    }

    /// Logs in by the loopback grant.
    async fn log_in(&self, world: &World, browser: &mut Browser) -> Tokens {
        let code = code(world, browser, self).await;
        tokens(&self.exchange(world, &code, REDIRECT, VERIFIER).await)
    }
}

struct Tokens {
    access: String,
    refresh: String,
}

async fn ask(
    world: &World,
    method: Method,
    endpoint: &str,
    token: Option<&str>,
    proof: &str,
    form: &[(&str, &str)],
) -> Page {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let mut browser = Browser::default();
    browser.headers.insert("dpop", HeaderValue::from_str(proof).unwrap());
    if let Some(token) = token {
        let value = HeaderValue::from_str(&format!("DPoP {token}")).unwrap();
        browser.headers.insert(header::AUTHORIZATION, value);
    }
    browser.send(world, method, &url(endpoint), &body).await
}

fn json(page: &Page) -> Value {
    assert_eq!(page.response.headers()[header::CONTENT_TYPE], "application/json", "{}", page.body());
    assert_eq!(page.response.headers()[header::CACHE_CONTROL], "no-store");
    serde_json::from_str(page.body()).unwrap()
}

/// Status and code of a refusal.
fn refusal(page: &Page) -> (u16, String) {
    (page.status().as_u16(), json(page)["error"].as_str().unwrap_or("-").to_owned())
}

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

fn tokens(page: &Page) -> Tokens {
    assert_eq!(page.status(), StatusCode::OK, "{}", page.body());
    let answer = json(page);
    assert_eq!(answer["token_type"], "DPoP");
    let text = |name: &str| answer[name].as_str().unwrap().to_owned();
    Tokens { access: text("access_token"), refresh: text("refresh_token") }
}

/// A browser that somebody is logged in with.
async fn signed_in(world: &World, user: &str) -> Browser {
    let mut browser = Browser::default();
    browser.set("accept", "text/html");
    browser.log_in(world, &format!("https://{WIKI}/"), user, PASSWORD).await;
    browser
}

async fn decide(world: &World, browser: &mut Browser, url: &str, ticket: &str, decision: &str) -> Page {
    browser.post(world, url, &[("ticket", ticket), ("decision", decision)]).await
}

/// The code that comes of a confirmation.
async fn code(world: &World, browser: &mut Browser, device: &Device) -> String {
    let url = device.authorization();
    let page = browser.get(world, &url).await;
    let answer = decide(world, browser, &url, &page.ticket(), "allow").await;
    parameter(answer.location(), "code").unwrap()
}

fn parameter(url: &str, name: &str) -> Option<String> {
    let query = url.split_once('?')?.1;
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(found, _)| found == name)
        .map(|(_, v)| v.into_owned())
}

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
        (Method::GET, url("cli/apps"), 401),
    ] {
        let page = browser.send(&world, method.clone(), &url, "").await;
        assert_eq!(page.status().as_u16(), status, "{method} {url}");
    }
}

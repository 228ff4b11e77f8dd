//! Access clients at the node's endpoints: every grant, and what is tried against it.

mod device;
mod loopback;
mod tokens;

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::Value;

use super::world::{AUTH, Browser, PASSWORD, Page, WIKI, World};
use crate::clock;
use crate::flow::UnixTime;
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

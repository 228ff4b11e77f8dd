//! What `portcullis access` asks of the node, below `/cdn-cgi/access/cli/` on the auth domain: OAuth 2.0 for a public
//! client, where every token is bound to the device's key (DPoP, RFC 9449).
//!
//! ```text
//! 1 authorize ── browser: login, confirmation ──▶ code to the client's loopback address     RFC 8252, RFC 7636
//!   device_authorization ─▶ code to type; device ── browser: login, code, confirmation ──▶  RFC 8628
//! 2 token ── code, device code or refresh token, with a proof ──▶ tokens, and where the tunnel is
//! 3 whoami, apps, app_token, global_token ── access token, with a proof ──▶ answer
//! 4 revoke
//! ```
//!
//! Nothing is granted without a person who has seen, on a page of the node, which device asks and from where. A false
//! accept gives a stranger everything that is open to the person; a false reject costs another login.

mod authorize;
mod confirm;
mod device;
mod pending;
mod resources;
mod token;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderName, Method, Response, StatusCode};

use crate::access::wire::{self, ErrorResponse};
use crate::event::{Action, Event};
use crate::flow::Reason;
use crate::identity::throttle::{Networks, Throttle};
use crate::token::dpop::{self, About, Proof};
use crate::tunnel::relay::wire::Ticket;
use crate::tunnel::wire::Authority;
use crate::tunnel::{Devices, KeyHash};

use self::pending::Pending;
use super::form::Parameters;
use super::{Call, page};

/// What clients have to know about the node's tunnel.
pub struct TunnelFacts {
    pub address: Authority,
    pub key: KeyHash,
    pub devices: Devices,
    /// What a first bind of a client may carry, once the tunnel is served.
    pub ticket: Arc<dyn Fn() -> Option<Ticket> + Send + Sync>,
}

/// What the endpoints remember.
#[derive(Default)]
pub(super) struct Cli {
    pending: Mutex<Pending>,
    /// Bounds how often a network can make a device wait.
    starts: Networks,
    /// Bounds how many codes a person, and a network, can guess.
    guesses: Throttle,
}

/// Which methods an endpoint takes, besides HEAD where it takes GET.
pub(super) fn methods(endpoint: &str) -> (bool, bool) {
    let endpoint = format!("cli/{endpoint}");
    match endpoint.as_str() {
        wire::AUTHORIZE | wire::DEVICE => (true, true),
        wire::TOKEN | wire::DEVICE_AUTHORIZATION | wire::REVOKE | wire::APP_TOKEN | wire::GLOBAL_TOKEN => {
            (false, true)
        }
        _ => (true, false),
    }
}

impl Call<'_> {
    pub(super) async fn cli(&self, endpoint: &str) -> Response<Bytes> {
        match format!("cli/{endpoint}").as_str() {
            wire::AUTHORIZE => self.authorize().await,
            wire::DEVICE_AUTHORIZATION => self.device_authorization(),
            wire::DEVICE => self.device().await,
            wire::TOKEN => self.token().await,
            wire::REVOKE => self.revoke().await,
            wire::WHOAMI => self.whoami().await,
            wire::APPS => self.apps().await,
            wire::APP_TOKEN => self.app_token().await,
            wire::GLOBAL_TOKEN => self.global_token().await,
            _ => self.refuse(StatusCode::NOT_FOUND, Reason::NoApplication),
        }
    }

    /// The form of a request by our own client.
    fn client_form(&self) -> Result<Parameters, Refusal> {
        let form = Parameters::of_form(&self.visit.headers, &self.visit.body);
        let form = form.ok_or(Refusal::request("the request is no form"))?;
        match form.one("client_id") {
            Some(wire::CLIENT_ID) => Ok(form),
            _ => Err(Refusal::new("invalid_client", Reason::BadRequest, "there is no such client")),
        }
    }

    /// The proof that comes with a request to `endpoint`, about `token` where it carries one.
    fn proof(&self, endpoint: &str, token: Option<&str>) -> Result<(Proof, &str), Refusal> {
        let wrong = |words: &str| Refusal::new("invalid_dpop_proof", Reason::BadToken, words);
        let text =
            self.only(&HeaderName::from_static(dpop::HEADER)).ok_or_else(|| wrong("there is no proof"))?;
        let url = self.site.endpoint(&self.site.auth, endpoint);
        let method = if self.visit.method == Method::HEAD { &Method::GET } else { &self.visit.method };
        let about = About { method: method.as_str(), url: &url, token };
        let proof = dpop::check(text, about, self.now).map_err(|error| wrong(&error.to_string()))?;
        Ok((proof, text))
    }

    /// The value of a header that is there once.
    fn only(&self, name: &HeaderName) -> Option<&str> {
        let mut values = self.visit.headers.get_all(name).iter();
        let value = values.next()?.to_str().ok()?;
        values.next().is_none().then_some(value)
    }

    /// Answers with a refusal, and writes `event` about it.
    fn refuse_client(&self, refusal: &Refusal, event: Event) -> Response<Bytes> {
        let event = event.reason(refusal.reason).status(refusal.status.as_u16()).detail(&refusal.words);
        self.context.events.emit(event);
        refusal.response()
    }

    /// The event of a login that did not come about.
    fn no_login(&self) -> Event {
        self.event(Action::Login, false).path(self.visit.path.as_str())
    }
}

/// A refusal for a client (RFC 6749 §5.2).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    code: &'static str,
    reason: Reason,
    /// For the person, and the log.
    words: String,
}

impl Refusal {
    fn new(code: &'static str, reason: Reason, words: &str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code, reason, words: words.to_owned() }
    }

    fn request(words: &str) -> Self {
        Self::new("invalid_request", Reason::BadRequest, words)
    }

    /// One login makes the node write faster than it may.
    fn too_fast() -> Self {
        let words = "too many requests of one login";
        Self::new("temporarily_unavailable", Reason::Throttled, words).status(StatusCode::TOO_MANY_REQUESTS)
    }

    /// A fault of the node's own.
    fn fault(error: impl std::fmt::Display) -> Self {
        let words = format!("the node cannot do it: {error}");
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            ..Self::new("server_error", Reason::Internal, &words)
        }
    }

    fn status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    fn response(&self) -> Response<Bytes> {
        // What broke is for the log alone.
        let words = match self.reason {
            Reason::Internal => "the node cannot do it at the moment",
            _ => &self.words,
        };
        let body = ErrorResponse { error: self.code.to_owned(), error_description: Some(words.to_owned()) };
        let mut response = json(self.status, &body);
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = format!("{} error=\"{}\", algs=\"ES256\"", dpop::SCHEME, self.code);
            if let Ok(challenge) = HeaderValue::from_str(&challenge) {
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
        }
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(page::SOON));
        }
        response
    }
}

fn json(status: StatusCode, body: &impl serde::Serialize) -> Response<Bytes> {
    match serde_json::to_string(body) {
        Ok(body) => page::json(status, body),
        Err(_) => page::text(StatusCode::INTERNAL_SERVER_ERROR, "The answer could not be written.\n"),
    }
}

/// What a device calls itself, as it is shown and kept: letters, digits and a few signs, nothing that could pass for
/// something else on a page or a terminal.
fn device_name(text: Option<&str>) -> String {
    let name: String = text
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_.,:@+#()'".contains(*c))
        .take(wire::LONGEST_NAME)
        .collect();
    let name = name.trim();
    if name.is_empty() { "a device without a name".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_device_is_harmless() {
        for (text, name) in [
            (Some("ann's laptop (work)"), "ann's laptop (work)"),
            (Some("Žofie-böx_1"), "Žofie-böx_1"),
            (Some("  \u{202e}evil\r\n<b>\u{1b}[31m\u{200b}x  "), "evilb31mx"),
            (Some(""), "a device without a name"),
            (Some(" \u{202e} "), "a device without a name"),
            (None, "a device without a name"),
        ] {
            assert_eq!(device_name(text), name, "{text:?}");
        }
        assert_eq!(device_name(Some(&"x".repeat(100))).len(), wire::LONGEST_NAME);
    }

    #[test]
    fn every_endpoint_has_its_methods() {
        for (endpoint, expected) in [
            (wire::AUTHORIZE, (true, true)),
            (wire::DEVICE, (true, true)),
            (wire::TOKEN, (false, true)),
            (wire::DEVICE_AUTHORIZATION, (false, true)),
            (wire::REVOKE, (false, true)),
            (wire::APP_TOKEN, (false, true)),
            (wire::GLOBAL_TOKEN, (false, true)),
            (wire::WHOAMI, (true, false)),
            (wire::APPS, (true, false)),
            ("cli/other", (true, false)),
        ] {
            assert_eq!(methods(endpoint.strip_prefix("cli/").unwrap()), expected, "{endpoint}");
        }
    }
}

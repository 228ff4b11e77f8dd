//! The authorization endpoint: a client on this very machine wants in, and hears of it on a loopback address (RFC 8252).
//!
//! What is asked for is either wholly as our client asks, or shown a page: nothing is ever sent to an address that has not
//! passed. The code is good once, for a minute, for the one redirection address, PKCE verifier (RFC 7636) and device key
//! (RFC 9449 §10) that were named here.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::access::wire;
use crate::flow::{Reason, SessionId};
use crate::session::LiveSession;

use super::super::Call;
use super::super::form::Parameters;
use super::super::page::{self, Frame, MessagePage};
use super::super::target::{hash, hash_text, is_hash};
use super::confirm::{Answer, Asks, Subject};
use super::device_name;

/// Life of a code.
const CODE_LIFE: Duration = Duration::from_secs(60);
const LONGEST_QUERY: usize = 2048;
const LONGEST_STATE: usize = 128;

/// An authorization request of our client (RFC 6749 §4.1.1).
#[derive(Debug, PartialEq, Eq)]
struct Request {
    redirect: String,
    state: String,
    /// SHA-256 of the verifier, base64url.
    challenge: String,
    /// The thumbprint of the device key.
    thumbprint: String,
    name: String,
}

/// What a code stands for.
#[derive(Serialize, Deserialize)]
pub(super) struct Grant {
    pub(super) session: SessionId,
    pub(super) redirect: String,
    pub(super) challenge: String,
    pub(super) thumbprint: String,
    pub(super) name: String,
}

/// What a code is for.
pub(super) const CODE: &str = "client";

impl Call<'_> {
    pub(super) async fn authorize(&self) -> Response<Bytes> {
        let query = self.visit.query.as_deref().filter(|query| query.len() <= LONGEST_QUERY);
        let Some(request) = query.and_then(|query| Request::parse(&Parameters::of_query(Some(query)))) else {
            let event = self.no_login().reason(Reason::BadRequest).status(400);
            self.context.events.emit(event.detail("no request of an access client"));
            return self.refuse(StatusCode::BAD_REQUEST, Reason::BadRequest);
        };
        let Some(live) = self.global_session() else { return self.log_in_first() };
        let asks = Asks {
            subject: Subject::Request(hash(query.unwrap_or_default())),
            name: &request.name,
            from: None,
        };
        if self.visit.method != Method::POST {
            return self.confirmation(&live, &asks);
        }
        match self.answer_of(&live, &asks).await {
            Answer::Yes => self.give_code(&request, &live).await,
            Answer::No => {
                self.context.events.emit(
                    self.no_login()
                        .session(&live.session)
                        .reason(Reason::Declined)
                        .detail(format!("device {}", request.name)),
                );
                self.back(&request, "error", "access_denied")
            }
            Answer::None(page) => page,
        }
    }

    async fn give_code(&self, request: &Request, live: &LiveSession) -> Response<Bytes> {
        let grant = Grant {
            session: live.session.id,
            redirect: request.redirect.clone(),
            challenge: request.challenge.clone(),
            thumbprint: request.thumbprint.clone(),
            name: request.name.clone(),
        };
        match self.keep_for_code(CODE, None, &grant, self.now.after(CODE_LIFE)).await {
            Ok(code) => self.back(request, "code", &code),
            Err(error) => self.broken_login(live, &error),
        }
    }

    /// Back to the client, with one answer, its `state`, and who says so (RFC 9207).
    fn back(&self, request: &Request, name: &str, value: &str) -> Response<Bytes> {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair(name, value)
            .append_pair("state", &request.state)
            .append_pair("iss", self.context.tokens.issuer())
            .finish();
        let location = format!("{}?{query}", request.redirect);
        if !request.redirect.starts_with("http://[") {
            return page::redirect(StatusCode::SEE_OTHER, &location);
        }
        // A policy for forms cannot name an IPv6 address, and browsers hold redirects against it: a page goes on instead.
        let page = MessagePage {
            frame: Frame::new(Some(&self.site.auth), self.visit.ray),
            title: "Back to the command line",
            texts: &["Taking your answer to the program that asked."],
            facts: &[],
            confirm: None,
            links: &[("Continue", &location)],
            onward: Some(&location),
        };
        page::html(StatusCode::OK, &page, &[])
    }
}

impl Request {
    fn parse(query: &Parameters) -> Option<Self> {
        let exactly = |name, value| query.one(name) == Some(value);
        if !exactly("client_id", wire::CLIENT_ID)
            || !exactly("response_type", "code")
            || !exactly("code_challenge_method", "S256")
        {
            return None;
        }
        let of_hash = |name| query.one(name).filter(|text| is_hash(text)).map(str::to_owned);
        let state = query.one("state")?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
        if state.is_empty() || state.len() > LONGEST_STATE || !state.bytes().all(plain) {
            return None;
        }
        Some(Self {
            redirect: query.one("redirect_uri").filter(|uri| is_loopback(uri))?.to_owned(),
            state: state.to_owned(),
            challenge: of_hash("code_challenge")?,
            thumbprint: of_hash("dpop_jkt")?,
            name: device_name(query.one("device")),
        })
    }
}

/// `http://127.0.0.1:PORT/callback` or the same with `[::1]`, in the one way to write it.
fn is_loopback(uri: &str) -> bool {
    let hosts = [Ipv4Addr::LOCALHOST.to_string(), format!("[{}]", Ipv6Addr::LOCALHOST)];
    hosts.iter().any(|host| {
        let port = uri
            .strip_prefix(&format!("http://{host}:"))
            .and_then(|rest| rest.strip_suffix(wire::CALLBACK))
            .and_then(|port| port.parse::<u16>().ok());
        port.is_some_and(|port| port != 0 && uri == format!("http://{host}:{port}{}", wire::CALLBACK))
    })
}

/// Whether `verifier` is what `challenge` was made from (RFC 7636 §4.6).
pub(super) fn proves(verifier: &str, challenge: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    (43..=128).contains(&verifier.len())
        && verifier.bytes().all(plain)
        && aws_lc_rs::constant_time::verify_slices_are_equal(
            hash_text(verifier).as_bytes(),
            challenge.as_bytes(),
        )
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_led_to() {
        for uri in
            ["http://127.0.0.1:1/callback", "http://127.0.0.1:65535/callback", "http://[::1]:8000/callback"]
        {
            assert!(is_loopback(uri), "{uri}");
        }
        for uri in [
            "",
            "http://127.0.0.1/callback",
            "http://127.0.0.1:0/callback",
            "http://127.0.0.1:080/callback",
            "http://127.0.0.1:+80/callback",
            "http://127.0.0.1:65536/callback",
            "http://127.0.0.1:80/callback?x",
            "http://127.0.0.1:80/callback#x",
            "http://127.0.0.1:80/callback/",
            "http://127.0.0.1:80/other",
            "http://127.0.0.1:80@evil.example:80/callback",
            "http://127.0.0.1:80/callback@evil.example",
            "http://127.0.0.1.evil.example:80/callback",
            "http://127.0.0.2:80/callback",
            "http://localhost:80/callback",
            "http://[::1]:80@evil/callback",
            "http://[::ffff:127.0.0.1]:80/callback",
            "https://127.0.0.1:80/callback",
            "HTTP://127.0.0.1:80/callback",
            " http://127.0.0.1:80/callback",
            "https://evil.example/callback",
            "//127.0.0.1:80/callback",
            "javascript:alert(1)",
        ] {
            assert!(!is_loopback(uri), "{uri}");
        }
    }

    #[test]
    fn a_request_is_wholly_ours_or_none() {
        let hash = hash_text("x");
        let good = [
            ("response_type", "code"),
            ("client_id", wire::CLIENT_ID),
            ("redirect_uri", "http://127.0.0.1:4000/callback"),
            ("state", "abc-_.~1"),
            ("code_challenge", hash.as_str()),
            ("code_challenge_method", "S256"),
            ("dpop_jkt", hash.as_str()),
            ("device", "laptop"),
        ];
        let parse = |fields: &[(&str, &str)]| {
            let text = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
            Request::parse(&Parameters::of_query(Some(&text)))
        };
        let request = parse(&good).unwrap();
        assert_eq!((request.name.as_str(), request.state.as_str()), ("laptop", "abc-_.~1"));
        let long = "x".repeat(LONGEST_STATE + 1);
        for (name, value) in [
            ("response_type", "token"),
            ("client_id", "another"),
            ("redirect_uri", "https://evil.example/callback"),
            ("state", ""),
            ("state", "a b"),
            ("state", long.as_str()),
            ("code_challenge", "short"),
            ("code_challenge_method", "plain"),
            ("dpop_jkt", "x"),
        ] {
            let changed = good.map(|(field, old)| (field, if field == name { value } else { old }));
            assert_eq!(parse(&changed), None, "{name} = {value}");
            let absent: Vec<_> = good.into_iter().filter(|(field, _)| *field != name).collect();
            assert_eq!(parse(&absent), None, "no {name}");
            let twice: Vec<_> = good.into_iter().chain([(name, value)]).collect();
            assert_eq!(parse(&twice), None, "{name} twice");
        }
    }

    /// RFC 7636 appendix B.
    #[test]
    fn a_verifier_proves_its_challenge_alone() {
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
        assert!(proves(verifier, challenge));
        for wrong in
            ["", "x", &verifier.replace('d', "e"), &verifier[1..], &format!("{verifier}+"), challenge]
        {
            assert!(!proves(wrong, challenge), "{wrong}");
        }
        let long = "x".repeat(129);
        assert!(!proves(&long, &hash_text(&long)));
        assert!(proves(&long[1..], &hash_text(&long[1..])));
    }
}

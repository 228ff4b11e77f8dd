//! The authorization request (OpenID Connect Core 1.0 §3.1.2.1): what it asks for, or why not and who may be told.
//!
//! Client and address to return to come first: until both are known for certain, nobody is told anything but the person
//! in front of the browser. A false accept there is an open redirect that hands out codes.

use serde::{Deserialize, Serialize};

use crate::flow::{OidcClient, Session, SessionId, UnixTime};
use crate::portal::form::Parameters;

use super::pkce;
use super::scope::{Scope, Scopes};

/// Characters of the longest `state`, and of the longest `nonce` and `login_hint`; all of it travels in a cookie.
const LONGEST_STATE: usize = 1024;
const LONGEST_TEXT: usize = 256;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AuthorizationRequest {
    pub(crate) to: ReturnTo,
    pub(crate) scopes: Scopes,
    pub(crate) challenge: Option<String>,
    pub(crate) nonce: Option<String>,
    pub(crate) login_hint: Option<String>,
    /// `prompt=login` or `select_account`: the login there is does not do.
    pub(crate) fresh: bool,
    /// `prompt=none`: nobody is shown anything.
    pub(crate) quiet: bool,
    /// Seconds since the login, at most.
    pub(crate) max_age: Option<u32>,
}

/// Where the answer goes: an address that the client has registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReturnTo {
    pub(crate) redirect_uri: String,
    pub(crate) state: Option<String>,
    /// By a form that posts itself, rather than in the query.
    pub(crate) form_post: bool,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RequestError {
    /// Client or address are not certain: only the person is told.
    Unverified(&'static str),
    /// The client is told, by an error code of RFC 6749 §4.1.2.1 or OpenID Connect Core 1.0 §3.1.2.6.
    Refused { to: ReturnTo, error: &'static str, why: &'static str },
}

/// A request and when it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub(crate) client: String,
    pub(crate) request: AuthorizationRequest,
    pub(crate) asked_at: UnixTime,
    /// The session of the browser when it asked.
    pub(crate) holder: Option<SessionId>,
    pub(crate) expires_at: UnixTime,
}

impl Pending {
    /// Whether somebody with this session need not log in again. What is not known to be recent is not.
    pub(crate) fn is_satisfied_by(&self, session: &Session, now: UnixTime) -> bool {
        let new = session.is_newer_than(self.asked_at) && self.holder != Some(session.id);
        let young = self.request.max_age.is_none_or(|most| {
            let age = session.authenticated_at.map(|at| now.since(at).as_secs());
            most > 0 && age.is_some_and(|age| age <= u64::from(most))
        });
        new || (young && !self.request.fresh)
    }
}

impl AuthorizationRequest {
    /// Whether a provider that remembers a login is to ask anew: it may be older than the client wants.
    pub(crate) fn asks_anew(&self) -> bool {
        self.fresh || self.max_age.is_some()
    }

    pub(crate) fn parse(client: &OidcClient, parameters: &Parameters) -> Result<Self, RequestError> {
        if parameters.one("client_id") != Some(client.id.as_str()) {
            return Err(RequestError::Unverified("the client is not the one of this address"));
        }
        let redirect_uri = parameters.one("redirect_uri").unwrap_or_default();
        if !client.redirect_uris.iter().any(|known| known == redirect_uri) {
            return Err(RequestError::Unverified("the address to return to is not one of the client's"));
        }
        let state = parameters.one("state");
        let good_state = state.is_none_or(is_state) && (state.is_some() || !parameters.has("state"));
        let to = ReturnTo {
            redirect_uri: redirect_uri.to_owned(),
            state: state.filter(|_| good_state).map(str::to_owned),
            form_post: parameters.one("response_mode") == Some("form_post"),
        };
        match Self::checked(client, parameters, to.clone(), good_state) {
            Ok(request) => Ok(request),
            Err((error, why)) => Err(RequestError::Refused { to, error, why }),
        }
    }

    fn checked(
        client: &OidcClient,
        parameters: &Parameters,
        to: ReturnTo,
        good_state: bool,
    ) -> Result<Self, (&'static str, &'static str)> {
        let invalid = |why| Err(("invalid_request", why));
        if !good_state {
            return invalid("`state` is there twice, too long or not of printable ASCII");
        }
        if let Some(why) = repeated(parameters) {
            return invalid(why);
        }
        for (name, error) in [
            ("request", "request_not_supported"),
            ("request_uri", "request_uri_not_supported"),
            ("registration", "registration_not_supported"),
        ] {
            if parameters.has(name) {
                return Err((error, "this parameter is not supported"));
            }
        }
        match parameters.one("response_type") {
            Some("code") => {}
            Some(_) => return Err(("unsupported_response_type", "only `code` is supported")),
            None => return invalid("`response_type` is missing"),
        }
        if !matches!(parameters.one("response_mode"), None | Some("query" | "form_post")) {
            return invalid("`response_mode` is neither `query` nor `form_post`");
        }
        let scopes = Scopes::parse(parameters.one("scope").unwrap_or_default());
        if !scopes.has(Scope::Openid) {
            return Err(("invalid_scope", "`scope` must have `openid`"));
        }
        let challenge = parameters.one("code_challenge");
        match (challenge, parameters.one("code_challenge_method")) {
            (None, None) if client.is_public() => return invalid("a public client needs `code_challenge`"),
            (None, None) => {}
            (Some(challenge), Some("S256")) if pkce::is_challenge(challenge) => {}
            _ => return invalid("`code_challenge` must be one of method `S256`"),
        }
        let (nonce, login_hint) = (parameters.one("nonce"), parameters.one("login_hint"));
        if nonce.is_some_and(|text| text.len() > LONGEST_TEXT) {
            return invalid("`nonce` is too long");
        }
        let prompts: Vec<&str> = parameters.one("prompt").unwrap_or_default().split_whitespace().collect();
        let quiet = prompts.contains(&"none");
        if quiet && prompts.len() > 1 {
            return invalid("`prompt=none` stands alone");
        }
        let max_age = match parameters.one("max_age") {
            None => None,
            Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => match text.parse() {
                Ok(seconds) => Some(seconds),
                Err(_) => return invalid("`max_age` is no number of seconds"),
            },
            Some(_) => return invalid("`max_age` is no number of seconds"),
        };
        let text = |value: Option<&str>| value.map(str::to_owned);
        Ok(Self {
            to,
            scopes,
            challenge: text(challenge),
            nonce: text(nonce),
            login_hint: text(login_hint.filter(|hint| hint.len() <= LONGEST_TEXT)),
            fresh: prompts.iter().any(|prompt| matches!(*prompt, "login" | "select_account")),
            quiet,
            max_age,
        })
    }
}

/// RFC 6749 §3.1: no parameter may be there twice.
fn repeated(parameters: &Parameters) -> Option<&'static str> {
    const ALL: [&str; 12] = [
        "response_type",
        "response_mode",
        "scope",
        "nonce",
        "prompt",
        "max_age",
        "login_hint",
        "acr_values",
        "code_challenge",
        "code_challenge_method",
        "ui_locales",
        "display",
    ];
    let twice = |name: &&str| parameters.has(name) && parameters.one(name).is_none();
    ALL.iter().any(twice).then_some("a parameter is there twice")
}

/// RFC 6749 appendix A.5: printable ASCII.
fn is_state(text: &str) -> bool {
    text.len() <= LONGEST_STATE && text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
}

#[cfg(test)]
mod tests;

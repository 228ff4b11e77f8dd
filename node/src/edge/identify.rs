//! Who asks, by proof: a person, a service, or nobody.
//!
//! A person proves a login with one of these:
//!
//! 1. a token in the `Cf-Access-Token` header that was minted for a client; no origin has ever seen one;
//! 2. one of the `CF_Authorization` cookies (a sibling host can toss some in, so none is trusted for its position)
//!    that verifies as a token for this application, with a `__Host-CF_Binding` cookie for this host and the same
//!    session: without it an origin could replay the assertions of its users.
//!
//! In both cases the session that the token names is live, and so is the login of the client that it was minted for. A service proves a service token with `Cf-Access-Client-Id`
//! and `Cf-Access-Client-Secret`; once it offers one, it must be right.
//!
//! A false accept is somebody else's identity; a false reject is one more trip through the login.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};

use crate::context::Context;
use crate::cookie;
use crate::flow::{Aud, Host, Reason, SessionId, UnixTime};
use crate::identity::service::{LiveService, ServiceError};
use crate::session::LiveSession;
use crate::token::{Kind, TokenError};

const CLIENT_ID: HeaderName = HeaderName::from_static("cf-access-client-id");
const CLIENT_SECRET: HeaderName = HeaderName::from_static("cf-access-client-secret");
const TOKEN: HeaderName = HeaderName::from_static("cf-access-token");

/// Who asks.
#[derive(Debug)]
pub(super) struct Callers {
    pub(super) person: Option<Person>,
    pub(super) service: Option<LiveService>,
    /// Why there is no person: `NoSession`, `BadToken`, `BadBinding` or `SessionEnded`.
    pub(super) nobody: Reason,
}

impl Callers {
    /// Whether who asks has said so in a header, which no page can make a browser send.
    pub(super) fn are_explicit(&self) -> bool {
        self.service.is_some() || self.person.as_ref().is_some_and(|person| person.assertion.is_none())
    }
}

/// A person with a live session.
#[derive(Debug)]
pub(super) struct Person {
    pub(super) live: LiveSession,
    /// The token from the cookie that proved it: the assertion for this application. A client's token is none.
    pub(super) assertion: Option<String>,
    /// When the token that proved it ends.
    pub(super) expires_at: UnixTime,
}

/// A service's credential that is not good. Shown without any secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadCredential {
    #[error("a service token is one Cf-Access-Client-Id and one Cf-Access-Client-Secret")]
    Form,
    #[error(transparent)]
    Service(#[from] ServiceError),
}

impl BadCredential {
    pub(super) const fn reason(&self) -> Reason {
        match self {
            Self::Form => Reason::BadCredentials,
            Self::Service(error) => error.reason(),
        }
    }
}

/// Finds who is behind a request from `address` to the application `aud` on `host`.
pub(super) fn identify(
    headers: &HeaderMap,
    (host, aud): (&Host, &Aud),
    address: IpAddr,
    context: &Context,
    now: UnixTime,
) -> Result<Callers, BadCredential> {
    let service = service(headers, address, context, now)?;
    let (person, nobody) = match person(headers, host, aud, context, now) {
        Ok(person) => (Some(person), Reason::NoSession),
        Err(reason) => (None, reason),
    };
    Ok(Callers { person, service, nobody })
}

fn service(
    headers: &HeaderMap,
    address: IpAddr,
    context: &Context,
    now: UnixTime,
) -> Result<Option<LiveService>, BadCredential> {
    if !headers.contains_key(&CLIENT_ID) && !headers.contains_key(&CLIENT_SECRET) {
        return Ok(None);
    }
    let (id, secret) =
        one(headers, &CLIENT_ID).zip(one(headers, &CLIENT_SECRET)).ok_or(BadCredential::Form)?;
    let known_network = context.recent.contains(address, now);
    Ok(Some(context.services.prove(id, secret, (address, known_network), now)?))
}

fn person(
    headers: &HeaderMap,
    host: &Host,
    aud: &Aud,
    context: &Context,
    now: UnixTime,
) -> Result<Person, Reason> {
    if headers.contains_key(&TOKEN) {
        let token = one(headers, &TOKEN).ok_or(Reason::BadToken)?;
        let (live, expires_at) = prove(token, Kind::ApplicationOfClient(aud), None, context, now)?;
        return Ok(Person { live, assertion: None, expires_at });
    }
    let bound: Vec<SessionId> = cookie::read_all(headers, cookie::BINDING)
        .filter_map(|value| context.tokens.check_binding(value, host))
        .collect();
    let mut nearest = Reason::NoSession;
    for token in cookie::read_all(headers, cookie::AUTHORIZATION) {
        match prove(token, Kind::Application(aud), Some(&bound), context, now) {
            Ok((live, expires_at)) => {
                return Ok(Person { live, assertion: Some(token.to_owned()), expires_at });
            }
            Err(reason) if nearness(reason) > nearness(nearest) => nearest = reason,
            Err(_) => {}
        }
    }
    Err(nearest)
}

/// The live session of a token, which must be among the `bound` ones where a binding is asked for, and its end.
fn prove(
    token: &str,
    kind: Kind<'_>,
    bound: Option<&[SessionId]>,
    context: &Context,
    now: UnixTime,
) -> Result<(LiveSession, UnixTime), Reason> {
    let claims = context.tokens.verify(token, kind, now).map_err(|error| match error {
        TokenError::Time => Reason::SessionEnded,
        _ => Reason::BadToken,
    })?;
    if bound.is_some_and(|bound| !bound.contains(&claims.identity_nonce)) {
        return Err(Reason::BadBinding);
    }
    let live = context.live(&claims, now).ok_or(Reason::SessionEnded)?;
    Ok((live, UnixTime(claims.exp)))
}

/// The value of a field that occurs exactly once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Of several tokens, the reason of the one that came furthest is told.
fn nearness(reason: Reason) -> u8 {
    match reason {
        Reason::SessionEnded => 3,
        Reason::BadBinding => 2,
        Reason::BadToken => 1,
        _ => 0,
    }
}

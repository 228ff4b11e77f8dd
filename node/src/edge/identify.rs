//! Who asks, by proof.
//!
//! 1. every `CF_Authorization` cookie (a sibling host can toss some in, so none is trusted for its position);
//! 2. the one that verifies as a token for this application;
//! 3. a `__Host-CF_Binding` cookie for this host and the same session: without it an origin could replay the
//!    assertions of its users;
//! 4. the session the token names is live.
//!
//! A false accept is somebody else's identity; a false reject is one more trip through the login.

use http::HeaderMap;

use crate::cookie;
use crate::flow::{Aud, Host, Reason, SessionId, UnixTime};
use crate::session::{LiveSession, Sessions};
use crate::token::{Kind, TokenError, Tokens};

/// Who asks.
#[derive(Debug)]
pub(super) enum Identity {
    Person(Person),
    /// Nobody, and why: `NoSession`, `BadToken`, `BadBinding` or `SessionEnded`.
    Nobody(Reason),
}

/// A person with a live session.
#[derive(Debug)]
pub(super) struct Person {
    pub(super) live: LiveSession,
    /// The token that proved it: the assertion for this application.
    pub(super) assertion: String,
    /// When that token ends.
    pub(super) expires_at: UnixTime,
}

/// Finds the person behind a request to the application `aud` on `host`.
pub(super) fn identify(
    headers: &HeaderMap,
    host: &Host,
    aud: &Aud,
    tokens: &Tokens,
    sessions: &Sessions,
    now: UnixTime,
) -> Identity {
    let bound: Vec<SessionId> = cookie::read_all(headers, cookie::BINDING)
        .filter_map(|value| tokens.check_binding(value, host))
        .collect();
    let mut nearest = Reason::NoSession;
    for token in cookie::read_all(headers, cookie::AUTHORIZATION) {
        match prove(token, aud, &bound, tokens, sessions, now) {
            Ok((live, expires_at)) => {
                return Identity::Person(Person { live, assertion: token.to_owned(), expires_at });
            }
            Err(reason) if nearness(reason) > nearness(nearest) => nearest = reason,
            Err(_) => {}
        }
    }
    Identity::Nobody(nearest)
}

fn prove(
    token: &str,
    aud: &Aud,
    bound: &[SessionId],
    tokens: &Tokens,
    sessions: &Sessions,
    now: UnixTime,
) -> Result<(LiveSession, UnixTime), Reason> {
    let claims = tokens.verify(token, Kind::Application(aud), now).map_err(|error| match error {
        TokenError::Time => Reason::SessionEnded,
        _ => Reason::BadToken,
    })?;
    if !bound.contains(&claims.identity_nonce) {
        return Err(Reason::BadBinding);
    }
    let live = sessions.get(claims.identity_nonce, now).ok_or(Reason::SessionEnded)?;
    Ok((live, UnixTime(claims.exp)))
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

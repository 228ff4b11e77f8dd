//! The page that a person must have seen before a device is let in, and the way there through the login.

use std::net::IpAddr;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::cookie::{self, SetCookie};
use crate::flow::{Reason, SessionId, UnixTime};
use crate::session::LiveSession;

use super::super::browser::set_cookies;
use super::super::form::Parameters;
use super::super::handover::known_as;
use super::super::login::ATTEMPT_LIFE;
use super::super::page::{self, ConfirmPage, Frame};
use super::super::{Call, PREFIX};

const TICKET: &str = "client confirmation";
/// Where a login that is for no application goes on, sealed.
const NEXT: &str = "__Host-CF_Next";

/// What a confirmation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Subject {
    /// The authorization request with this hash.
    Request([u8; 32]),
    /// The device that waits under this hash.
    Device([u8; 32]),
}

/// A device that asks a person for access.
pub(super) struct Asks<'a> {
    pub(super) subject: Subject,
    pub(super) name: &'a str,
    /// Where it asked from, where that is not this browser's own machine.
    pub(super) from: Option<IpAddr>,
}

/// What the person said.
pub(super) enum Answer {
    Yes,
    No,
    /// Nothing that counts; this page goes back.
    None(Response<Bytes>),
}

/// Proves that the page was shown for this subject to whoever holds the session, and lets it be answered once.
#[derive(Serialize, Deserialize)]
struct Ticket {
    id: [u8; 16],
    session: SessionId,
    subject: Subject,
    expires_at: UnixTime,
}

/// A page of the auth domain that waits for a login.
#[derive(Serialize, Deserialize)]
struct Next {
    /// Path and query, as they were asked for.
    at: String,
    expires_at: UnixTime,
}

impl Call<'_> {
    /// Asks whether a device may come in.
    pub(super) fn confirmation(&self, live: &LiveSession, asks: &Asks<'_>) -> Response<Bytes> {
        let ticket = Ticket {
            id: clock::random(),
            session: live.session.id,
            subject: asks.subject,
            expires_at: self.now.after(ATTEMPT_LIFE),
        };
        let Ok(ticket) = self.context.seal.seal(TICKET, &ticket) else {
            return self.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal);
        };
        let here = self.visit.address.to_string();
        let from = asks.from.map_or_else(|| here.clone(), |from| from.to_string());
        let until = until(live.session.expires_at);
        let mut facts = vec![("Device", asks.name), ("Its address", from.as_str())];
        if asks.from.is_some() {
            facts.push(("Your address", here.as_str()));
        }
        facts.extend([("Signed in as", known_as(&live.session)), ("Until", until.as_str())]);
        let page = ConfirmPage {
            frame: Frame::new(Some(&self.site.auth), self.visit.ray),
            facts: &facts,
            remote: asks.from.is_some(),
            ticket,
        };
        // The answer leads to the client's own address.
        let client = match asks.subject {
            Subject::Request(_) => Parameters::of_query(self.visit.query.as_deref())
                .one("redirect_uri")
                .and_then(|uri| uri.strip_suffix(crate::access::wire::CALLBACK))
                .map(str::to_owned),
            Subject::Device(_) => None,
        };
        page::html(StatusCode::OK, &page, client.as_slice())
    }

    /// Takes the answer to a confirmation.
    pub(super) async fn answer_of(&self, live: &LiveSession, asks: &Asks<'_>) -> Answer {
        let form = Parameters::of_form(&self.visit.headers, &self.visit.body);
        let ticket = form
            .as_ref()
            .and_then(|form| form.one("ticket"))
            .and_then(|text| self.context.seal.open::<Ticket>(TICKET, text))
            .filter(|ticket| ticket.session == live.session.id && ticket.subject == asks.subject)
            .filter(|ticket| ticket.expires_at > self.now && !self.is_foreign_form());
        let said = form.as_ref().and_then(|form| form.one("decision"));
        let (Some(ticket), Some(said @ ("allow" | "deny"))) = (ticket, said) else {
            // Asked again, by this node: what another site sent has no effect.
            return Answer::None(self.confirmation(live, asks));
        };
        if let Err(wait) = self.charge_write(&live.session) {
            let (page, event) = self.too_fast(wait, None, self.no_login().session(&live.session));
            self.context.events.emit(event);
            return Answer::None(page);
        }
        match self.context.store.use_once(TICKET, &ticket.id, ticket.expires_at, self.now).await {
            Ok(true) if said == "allow" => Answer::Yes,
            Ok(true) => Answer::No,
            Ok(false) => {
                let event = self.no_login().session(&live.session).reason(Reason::BadState).status(400);
                self.context.events.emit(event.detail("the confirmation was used before"));
                Answer::None(self.refuse(StatusCode::BAD_REQUEST, Reason::BadState))
            }
            Err(error) => Answer::None(self.broken_login(live, &error.to_string())),
        }
    }

    /// A login of `live`'s person that fails by a fault of the node's own.
    pub(super) fn broken_login(&self, live: &LiveSession, error: &str) -> Response<Bytes> {
        let event = self.no_login().session(&live.session).reason(Reason::Internal).status(503);
        self.context.events.emit(event.detail(error));
        self.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal)
    }

    /// Sends a browser without a session through the login and back here. Where to go on is kept by the browser, sealed.
    pub(super) fn log_in_first(&self) -> Response<Bytes> {
        let path = self.visit.path.as_str();
        let at = match &self.visit.query {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        let next = Next { at, expires_at: self.now.after(ATTEMPT_LIFE) };
        let Ok(sealed) = self.context.seal.seal(NEXT, &next) else {
            return self.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal);
        };
        let status = match self.visit.method {
            Method::POST => StatusCode::SEE_OTHER,
            _ => StatusCode::FOUND,
        };
        let mut response = page::redirect(status, &format!("{PREFIX}login"));
        set_cookies(&mut response, [SetCookie::new(NEXT, &sealed).until(next.expires_at, self.now)]);
        response
    }

    /// Where a person who has logged in for no application goes: to the page that waits, once, or to the launcher.
    pub(in super::super) fn go_on(&self, status: StatusCode) -> Response<Bytes> {
        let next = cookie::read_one(&self.visit.headers, NEXT)
            .and_then(|sealed| self.context.seal.open::<Next>(NEXT, sealed))
            .filter(|next| next.expires_at > self.now);
        let Some(next) = next else { return page::redirect(status, "/") };
        let mut response = page::redirect(status, &next.at);
        set_cookies(&mut response, [SetCookie::clear(NEXT, "/")]);
        response
    }
}

/// `2026-05-01 17:30 UTC`.
fn until(at: UnixTime) -> String {
    let form = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    time::OffsetDateTime::from_unix_timestamp(at.0)
        .ok()
        .and_then(|at| at.format(&form).ok())
        .unwrap_or_else(|| at.0.to_string())
}

//! The device grant (RFC 8628): a device without a browser shows a code, and its person types it into any browser.
//!
//! The danger is a person who is talked into typing a stranger's code. So there is no link that carries the code, and the
//! page says what asks and from where before anything is granted.

use std::net::IpAddr;
use std::sync::PoisonError;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::access::wire::{self, DeviceResponse};
use crate::clock;
use crate::flow::{Reason, SessionId, UnixTime};
use crate::identity::throttle::Attempt;
use crate::session::LiveSession;

use super::super::Call;
use super::super::form::Parameters;
use super::super::handover::known_as;
use super::super::login::ATTEMPT_LIFE;
use super::super::page::{self, CodePage, Frame, MessagePage};
use super::super::target::hash;
use super::confirm::{Answer, Asks, Subject};
use super::pending::{self, Device, Full, Pending, UserCode};
use super::{Refusal, device_name, json};

const TICKET: &str = "device code form";
const FOUND: &str = "device that asks";
const TOO_OLD: &str = "This page was too old. Please type the code again.";

/// Proves that the form for codes was shown to whoever holds the session.
#[derive(Serialize, Deserialize)]
struct Ticket {
    session: SessionId,
    expires_at: UnixTime,
}

/// A device whose code was typed, between the form and the confirmation. Sealed.
#[derive(Serialize, Deserialize)]
struct Found {
    /// Of whoever typed the code: the address is of no use to anybody else.
    session: SessionId,
    hash: [u8; 32],
    name: String,
    address: IpAddr,
    expires_at: UnixTime,
}

impl Call<'_> {
    /// A device wants a code to show.
    pub(super) fn device_authorization(&self) -> Response<Bytes> {
        let started = self.client_form().and_then(|form| {
            let (proof, _) = self.proof(wire::DEVICE_AUTHORIZATION, None)?;
            Ok((proof.key, device_name(form.one("device"))))
        });
        let (key, name) = match started {
            Ok(started) => started,
            Err(refusal) => return self.refuse_client(&refusal, self.no_login()),
        };
        let busy = |words: &str| {
            Refusal::new("temporarily_unavailable", Reason::Throttled, words)
                .status(StatusCode::TOO_MANY_REQUESTS)
        };
        let cli = &self.portal.cli;
        if cli.starts.charge(self.visit.address, false, self.portal.started.elapsed()).is_err() {
            let refusal = busy("too many devices of this network want in: try again in a minute");
            return self.refuse_client(&refusal, self.no_login());
        }
        let device_code = URL_SAFE_NO_PAD.encode(clock::random::<32>());
        let device = Device { key, name, address: self.visit.address };
        let known = self.context.recent.contains(self.visit.address, self.now);
        let added = self
            .pending(|pending, now| pending.add(hash(&device_code), device, &clock::random(), known, now));
        let user_code = match added {
            Ok(code) => code.to_string(),
            Err(Full) => {
                let refusal = busy("too many devices wait for their person: try again in a minute");
                return self.refuse_client(&refusal, self.no_login());
            }
        };
        let verification_uri = self.site.endpoint(&self.site.auth, wire::DEVICE);
        let (expires_in, interval) = (pending::LIFE.as_secs(), pending::INTERVAL.as_secs());
        json(
            StatusCode::OK,
            &DeviceResponse { device_code, user_code, verification_uri, expires_in, interval },
        )
    }

    /// The page for the code; with a device in its query, the confirmation of that one.
    pub(super) async fn device(&self) -> Response<Bytes> {
        let Some(live) = self.global_session() else { return self.log_in_first() };
        let query = Parameters::of_query(self.visit.query.as_deref());
        if query.has("asks") {
            let found = query
                .one("asks")
                .and_then(|text| self.context.seal.open::<Found>(FOUND, text))
                .filter(|found| found.session == live.session.id && found.expires_at > self.now);
            return match found {
                Some(found) => self.decide_about(&live, &found).await,
                None => self.code_page(&live, StatusCode::BAD_REQUEST, Some(TOO_OLD)),
            };
        }
        if self.visit.method != Method::POST {
            return self.code_page(&live, StatusCode::OK, None);
        }
        let form = Parameters::of_form(&self.visit.headers, &self.visit.body);
        let ticket = form
            .as_ref()
            .and_then(|form| form.one("ticket"))
            .and_then(|text| self.context.seal.open::<Ticket>(TICKET, text))
            .filter(|ticket| ticket.session == live.session.id && ticket.expires_at > self.now);
        if ticket.is_none() || self.is_foreign_form() {
            return self.code_page(&live, StatusCode::BAD_REQUEST, Some(TOO_OLD));
        }
        self.look_up(&live, form.as_ref().and_then(|form| form.one("code")).unwrap_or_default())
    }

    /// A person has typed a code.
    fn look_up(&self, live: &LiveSession, text: &str) -> Response<Bytes> {
        let who = live.session.person.to_string();
        let attempt =
            Attempt { account: &who, address: self.visit.address, known_browser: None, known_network: false };
        let refused = |reason| self.no_login().session(&live.session).reason(reason);
        if let Err(wait) = self.portal.cli.guesses.charge(attempt, self.portal.started.elapsed()) {
            self.context.events.emit(refused(Reason::Throttled).status(429).detail("device codes"));
            let problem = format!("Too many attempts. Try again in {} seconds.", wait.as_secs() + 1);
            return self.code_page(live, StatusCode::TOO_MANY_REQUESTS, Some(&problem));
        }
        let found =
            UserCode::parse(text).and_then(|code| self.pending(|pending, now| pending.find(code, now)));
        let Some((hash, device)) = found else {
            self.context
                .events
                .emit(refused(Reason::BadCredentials).status(400).detail("no such device code"));
            let problem = "No device waits with this code. Check it, or start again on the device.";
            return self.code_page(live, StatusCode::BAD_REQUEST, Some(problem));
        };
        self.portal.cli.guesses.refund(attempt);
        let found = Found {
            session: live.session.id,
            hash,
            name: device.name,
            address: device.address,
            expires_at: self.now.after(ATTEMPT_LIFE),
        };
        match self.context.seal.seal(FOUND, &found) {
            // Sealed text is of the alphabet of addresses.
            Ok(sealed) => {
                page::redirect(StatusCode::SEE_OTHER, &format!("{}?asks={sealed}", self.visit.path.as_str()))
            }
            Err(error) => self.broken_login(live, &error.to_string()),
        }
    }

    /// A device was found: the person is asked, and the answer taken.
    async fn decide_about(&self, live: &LiveSession, found: &Found) -> Response<Bytes> {
        let asks =
            Asks { subject: Subject::Device(found.hash), name: &found.name, from: Some(found.address) };
        if self.visit.method != Method::POST {
            return self.confirmation(live, &asks);
        }
        let allowed = match self.answer_of(live, &asks).await {
            Answer::Yes => true,
            Answer::No => false,
            Answer::None(page) => return page,
        };
        let session = allowed.then_some(live.session.id);
        if self.pending(|pending, now| pending.settle(&found.hash, session, now)).is_none() {
            self.context.events.emit(
                self.no_login()
                    .session(&live.session)
                    .reason(Reason::BadState)
                    .status(400)
                    .detail("too late"),
            );
            let problem = "This device does not wait any more. Start again on the device.";
            return self.code_page(live, StatusCode::BAD_REQUEST, Some(problem));
        }
        if !allowed {
            self.context.events.emit(
                self.no_login()
                    .session(&live.session)
                    .reason(Reason::Declined)
                    .detail(format!("device {} at {}", found.name, found.address)),
            );
        }
        let (title, text) = if allowed {
            ("The device is signed in", "You can close this page and go on there.")
        } else {
            (
                "The device was not let in",
                "Nothing was granted. If you did not start this, somebody may have tried to trick you.",
            )
        };
        let page = MessagePage {
            frame: Frame::new(Some(&self.site.auth), self.visit.ray),
            title,
            texts: &[text],
            facts: &[("Device", &found.name), ("Signed in as", known_as(&live.session))],
            confirm: None,
            links: &[],
            onward: None,
        };
        page::html(StatusCode::OK, &page, &[])
    }

    fn code_page(&self, live: &LiveSession, status: StatusCode, problem: Option<&str>) -> Response<Bytes> {
        let ticket = Ticket { session: live.session.id, expires_at: self.now.after(ATTEMPT_LIFE) };
        let Ok(ticket) = self.context.seal.seal(TICKET, &ticket) else {
            return self.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal);
        };
        let page = CodePage {
            frame: Frame::new(Some(&self.site.auth), self.visit.ray),
            person: known_as(&live.session),
            action: self.visit.path.as_str(),
            problem,
            ticket,
        };
        page::html(status, &page, &[])
    }

    /// The devices that wait, and the time by their clock.
    pub(super) fn pending<T>(&self, with: impl FnOnce(&mut Pending, std::time::Duration) -> T) -> T {
        let mut pending = self.portal.cli.pending.lock().unwrap_or_else(PoisonError::into_inner);
        with(&mut pending, self.portal.started.elapsed())
    }
}

//! A logout that a service provider asks for (SAML profiles §4.4): `sso/saml/<application>/logout`.
//!
//! ```text
//! application                         node
//! 1 LogoutRequest ──GET or POST──▶ 2 read, verify, check; sealed into an address of this host
//!                                  3 (303: the session's cookie comes with that GET)
//!                                  4 the request names this very session? else the person is asked
//!                                  5 the login ends, and the other applications are told
//! 7 logout service ◀─redirect or POST─ 6 LogoutResponse
//! ```
//!
//! It ends the login at the node, and so every other application's. Only a request that the application has signed is
//! read at all; nobody is logged out without either that and the name of the session, or their own word.

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::event::Action;
use crate::flow::{Reason, SamlService, UnixTime};
use crate::portal::Call;
use crate::portal::form::Parameters;
use crate::portal::handover::known_as;
use crate::portal::login::ATTEMPT_LIFE;
use crate::portal::page::{self, Confirm, Frame, MessagePage};
use crate::saml::{self, LogoutRequest, Onward};
use crate::session::LiveSession;
use crate::store::SessionFilter;

use super::request::{Objection, is_in_time};
use super::{SignIn, endpoint_of};

const PURPOSE: &str = "saml logout";
const RESUME: &str = "resume";

/// A logout that was asked for.
#[derive(Serialize, Deserialize)]
struct Wish {
    /// The application.
    aud: String,
    /// ID of the request.
    id: String,
    relay_state: Option<String>,
    /// What the application calls the sessions that shall end.
    sessions: Vec<String>,
    expires_at: UnixTime,
}

impl Call<'_> {
    pub(super) async fn saml_logout(&self, visit: SignIn<'_>) -> Response<Bytes> {
        let raw = self.visit.query.as_deref().unwrap_or_default();
        let query = Parameters::of_query(Some(raw));
        let by_post = self.visit.method == Method::POST;
        let form = match by_post {
            true => Parameters::of_form(&self.visit.headers, &self.visit.body),
            false => None,
        };
        if query.has(RESUME) {
            let wish = query
                .one(RESUME)
                .and_then(|text| self.context.seal.open::<Wish>(PURPOSE, text))
                .filter(|wish| wish.expires_at > self.now && wish.aud == visit.application.aud.as_str());
            let ticket = form.as_ref().and_then(|form| form.one("ticket"));
            return match wish {
                Some(wish) => self.end_login(visit, wish, ticket).await,
                None => self.objection_to(Action::Logout, visit, "a logout that is too old"),
            };
        }
        // What it answers to the node's own request changes nothing here: the session has ended.
        let answered = |parameters: &Parameters| {
            parameters.has(saml::Kind::Response.parameter())
                && !parameters.has(saml::Kind::Request.parameter())
        };
        if answered(form.as_ref().unwrap_or(&query)) {
            return self.logout_goes_on();
        }
        let keys = &visit.service.certificates;
        let received = if by_post {
            let Some(form) = form else { return self.objection_to(Action::Logout, visit, "not a form") };
            let Some(message) = form.one(saml::Kind::Request.parameter()) else {
                return self.objection_to(Action::Logout, visit, "no SAMLRequest, or two");
            };
            if form.has("RelayState") && form.one("RelayState").is_none() {
                return self.objection_to(Action::Logout, visit, "two RelayState");
            }
            saml::of_form(message, form.one("RelayState"), keys)
        } else {
            saml::of_query(raw, saml::Kind::Request, keys)
        };
        let wish = received.map_err(|error| error.to_string()).and_then(|received| {
            let request = LogoutRequest::read(&received.message).map_err(|error| error.to_string())?;
            let logout = endpoint_of(visit).logout();
            check(&request, received.signed, visit.service, &logout, self.now)
                .map_err(|objection| objection.to_string())?;
            Ok(Wish {
                aud: visit.application.aud.as_str().to_owned(),
                id: request.head.id,
                relay_state: received.relay_state,
                sessions: request.sessions,
                expires_at: self.now.after(ATTEMPT_LIFE),
            })
        });
        match wish {
            Ok(wish) => match self.context.seal.seal(PURPOSE, &wish) {
                Ok(sealed) => {
                    let here = format!("{}/logout?{RESUME}={sealed}", visit.path);
                    page::redirect(StatusCode::SEE_OTHER, &here)
                }
                Err(_) => self.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal),
            },
            Err(why) => self.objection_to(Action::Logout, visit, &why),
        }
    }

    async fn end_login(&self, visit: SignIn<'_>, wish: Wish, ticket: Option<&str>) -> Response<Bytes> {
        let Some(live) = self.global_session() else { return self.login_ended(visit, &wish) };
        let meant = wish.sessions.contains(&self.context.saml.session_index(visit.service, live.session.id))
            || ticket.is_some_and(|ticket| self.is_logout_ticket(ticket, &live.session));
        if !meant {
            return self.ask_to_end(visit, &live);
        }
        match self.context.sessions.revoke(&SessionFilter::Id(live.session.id), self.now).await {
            Ok(_) => {
                let event = self.event(Action::Logout, true).session(&live.session);
                let event = event.application(visit.application).detail("asked for by the application");
                self.context.events.emit(event);
                self.login_ended(visit, &wish)
            }
            Err(error) => {
                let event = self.event(Action::Logout, false).session(&live.session);
                self.context.events.emit(event.reason(Reason::Internal).detail(error.to_string()));
                self.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal)
            }
        }
    }

    /// Nobody is logged in now, and the application hears so.
    fn login_ended(&self, visit: SignIn<'_>, wish: &Wish) -> Response<Bytes> {
        let relay_state = wish.relay_state.as_deref();
        let answer =
            self.context.saml.logged_out(visit.service, endpoint_of(visit), &wish.id, relay_state, self.now);
        let mut response = match answer {
            None => return self.logged_out(),
            Some(Onward::Open(address)) => page::redirect(StatusCode::SEE_OTHER, &address),
            Some(Onward::Post { to, fields }) => self.auto_post(&visit.application.name, &to, &fields),
        };
        self.forget(&mut response);
        response
    }

    fn ask_to_end(&self, visit: SignIn<'_>, live: &LiveSession) -> Response<Bytes> {
        let Some(ticket) = self.logout_ticket(&live.session) else {
            return self.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal);
        };
        let page = MessagePage {
            frame: Frame::new(Some(&self.site.auth), self.visit.ray),
            title: "Sign out?",
            texts: &["You will be signed out of every application behind this access node."],
            facts: &[("Signed in as", known_as(&live.session)), ("Asked for by", &visit.application.name)],
            confirm: Some(Confirm { ticket, label: "Sign out" }),
            links: &[],
            onward: None,
        };
        let answers = visit.service.logout.answers.as_ref();
        let targets: Vec<String> = answers.iter().map(|(_, to)| page::form_target(to)).collect();
        page::html(StatusCode::OK, &page, &targets)
    }
}

/// Checks a request: it ends a login without asking anybody, so it is always signed and made for this place.
fn check(
    request: &LogoutRequest,
    signed: bool,
    service: &SamlService,
    logout: &str,
    now: UnixTime,
) -> Result<(), Objection> {
    if request.head.issuer != service.entity_id {
        return Err(Objection::Issuer);
    }
    if !signed {
        return Err(Objection::Unsigned);
    }
    if request.head.destination.as_deref() != Some(logout) {
        return Err(Objection::Destination);
    }
    let over = request.not_on_or_after.is_some_and(|end| end <= now);
    if over || !is_in_time(request.head.issued_at, now) {
        return Err(Objection::Time);
    }
    Ok(())
}

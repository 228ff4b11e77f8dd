//! Logout, on the auth domain and on every application host: ends the global session and with it every application
//! token of it.

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::cookie::{self, SetCookie};
use crate::event::Action;
use crate::flow::{Reason, Session, SessionId, UnixTime};
use crate::store::SessionFilter;

use super::Call;
use super::browser::set_cookies;
use super::form::Parameters;
use super::handover::known_as;
use super::login::ATTEMPT_LIFE;
use super::page::{self, Confirm, Frame, MessagePage};

const TICKET: &str = "logout form";

/// Proves that a logout form was made by this node for whoever holds the session.
#[derive(Serialize, Deserialize)]
struct Ticket {
    session: SessionId,
    expires_at: UnixTime,
}

impl Call<'_> {
    /// A visit by the person's own doing logs out at once; one that another site may have caused asks first.
    pub(super) async fn logout(&self) -> Response<Bytes> {
        let Some(live) = self.bound_session() else { return self.no_session() };
        let meant = if self.visit.method == Method::POST {
            let form = Parameters::of_form(&self.visit.headers, &self.visit.body);
            let ticket = form.as_ref().and_then(|form| form.one("ticket"));
            ticket.is_some_and(|text| self.is_logout_ticket(text, &live.session))
        } else {
            self.is_own_navigation()
        };
        if !meant {
            return self.ask(&live.session);
        }
        match self.context.sessions.revoke(&SessionFilter::Id(live.session.id), self.now).await {
            Ok(_) => {
                self.context.events.emit(self.event(Action::Logout, true).session(&live.session));
                self.farewell(&live.session).await
            }
            Err(error) => {
                let event = self.event(Action::Logout, false).session(&live.session);
                self.context.events.emit(event.reason(Reason::Internal).detail(error.to_string()));
                self.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal)
            }
        }
    }

    /// Sealed proof for a logout form of `session`.
    pub(super) fn logout_ticket(&self, session: &Session) -> Option<String> {
        let ticket = Ticket { session: session.id, expires_at: self.now.after(ATTEMPT_LIFE) };
        self.context.seal.seal(TICKET, &ticket).ok()
    }

    /// Whether `text` is sealed proof of that kind.
    pub(super) fn is_logout_ticket(&self, text: &str, session: &Session) -> bool {
        let ticket = self.context.seal.open::<Ticket>(TICKET, text);
        ticket.is_some_and(|ticket| ticket.session == session.id && ticket.expires_at > self.now)
    }

    fn ask(&self, session: &Session) -> Response<Bytes> {
        let Some(ticket) = self.logout_ticket(session) else {
            return self.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal);
        };
        let page = MessagePage {
            frame: Frame::new(Some(&self.site.auth), self.visit.ray),
            title: "Sign out?",
            texts: &["You will be signed out of every application behind this access node."],
            facts: &[("Signed in as", known_as(session))],
            confirm: Some(Confirm { ticket, label: "Sign out" }),
            links: &[],
            onward: None,
        };
        page::html(StatusCode::OK, &page, &[])
    }

    /// Browsers keep the cookies back from another site's form, so that nobody seems to be logged in: the form must
    /// not remove the cookies that it could not show.
    fn no_session(&self) -> Response<Bytes> {
        if self.is_own_navigation() {
            return self.logged_out();
        }
        if self.visit.method != Method::POST {
            return self.signed_out_page();
        }
        let page = MessagePage {
            frame: Frame::new(Some(&self.site.auth), self.visit.ray),
            title: "Sign out?",
            texts: &["You will be signed out of every application behind this access node."],
            facts: &[],
            confirm: None,
            links: &[("Sign out", "/cdn-cgi/access/logout")],
            onward: None,
        };
        page::html(StatusCode::OK, &page, &[])
    }

    /// The page, and no cookie is left.
    pub(super) fn logged_out(&self) -> Response<Bytes> {
        let mut response = self.signed_out_page();
        self.forget(&mut response);
        response
    }

    /// Removes the cookies of this host.
    pub(super) fn forget(&self, response: &mut Response<Bytes>) {
        let of_host = self.active.policies.applications().filter(|app| app.answers_on(&self.visit.host));
        let paths = of_host.map(|app| app.path()).filter(|path| *path != "/");
        set_cookies(response, paths.map(|path| SetCookie::clear(cookie::AUTHORIZATION, path)));
        let whole = [cookie::AUTHORIZATION, cookie::BINDING, cookie::APP_SESSION_OWN, cookie::APP_SESSION];
        set_cookies(response, whole.map(|name| SetCookie::clear(name, "/")));
    }

    pub(super) fn signed_out_page(&self) -> Response<Bytes> {
        let launcher = format!("{}/", self.site.origin(&self.site.auth));
        let page = MessagePage {
            frame: Frame::new(Some(&self.site.auth), self.visit.ray),
            title: "You are signed out",
            texts: &["Your session has ended, here and in every application behind this access node."],
            facts: &[],
            confirm: None,
            links: &[("Sign in again", &launcher)],
            onward: None,
        };
        page::html(StatusCode::OK, &page, &[])
    }
}

//! The hand-over between an application host and the auth domain.
//!
//! The one-time code is bound to the browser that started (by the hash of its CF_AppSession cookie), to the host and
//! to the audience; it lives for a minute and is redeemed once. Without the cookie nothing is set, and the login
//! restarts once.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::cookie::{self, SetCookie};
use crate::event::{Action, Event};
use crate::flow::{Application, ClientId, Facts, Reason, Session, SessionId};
use crate::policy::{Decision, Denial, Permit, decide};
use crate::session::LiveSession;

use super::Call;
use super::browser::set_cookies;
use super::form::Parameters;
use super::page::{self, Frame, MessagePage, PageFacts};
use super::target::{Destination, Target, back, hash_text};

/// Life of a one-time code.
const CODE_LIFE: Duration = Duration::from_secs(60);
/// What it is for.
const CODE: &str = "hand-over";

/// What a one-time code stands for.
#[derive(Serialize, Deserialize)]
struct Grant {
    session: SessionId,
    destination: Destination,
    by: By,
}

/// Who is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum By {
    /// A browser that followed links.
    Link,
    /// A browser whose chain of redirects began with a form.
    Form,
    /// A client that is no browser (`cloudflared access`), which has the global token of a client; and the client's
    /// login, where the token is bound to one.
    Client(Option<ClientId>),
}

impl Call<'_> {
    /// Sends somebody who asked for an application to the login.
    pub(super) fn challenge(&self, application: &Arc<Application>) -> Response<Bytes> {
        if !self.is_navigation() {
            let mut response = page::refusal(PageFacts {
                application: Some(&application.name),
                html: false,
                ..self.facts(StatusCode::UNAUTHORIZED, Reason::NoSession)
            });
            if let Ok(value) = HeaderValue::from_str(&format!("Form realm=\"{}\"", self.site.auth)) {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
            }
            return response;
        }
        let path = self.visit.path.as_str();
        let wanted = match &self.visit.query {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        self.to_login(application, &wanted, false)
    }

    /// `login` on an application host: starts the login for one of its applications anew.
    pub(super) fn restart(&self) -> Response<Bytes> {
        let query = Parameters::of_query(self.visit.query.as_deref());
        match Target::parse(&self.active.policies, &self.site.auth, self.visit.host.as_str(), &query) {
            Some(target) => self.to_login(&target.application, &target.back, target.retry),
            None => self.refuse(StatusCode::NOT_FOUND, Reason::NoApplication),
        }
    }

    fn to_login(&self, application: &Arc<Application>, wanted: &str, retry: bool) -> Response<Bytes> {
        let presented =
            cookie::read_one(&self.visit.headers, cookie::APP_SESSION_OWN).filter(|mark| is_mark(mark));
        let mark = presented.map_or_else(|| URL_SAFE_NO_PAD.encode(clock::random::<32>()), str::to_owned);
        let target = Target {
            application: Arc::clone(application),
            host: self.visit.host.clone(),
            back: back(application, Some(wanted)),
            app_session: Some(hash_text(&mark)),
            retry,
            remembered: None,
        };
        let login = self.site.endpoint(&self.site.auth, &format!("login/{}", self.visit.host));
        let mut response = page::redirect(StatusCode::FOUND, &format!("{login}?{}", target.query()));
        if presented.is_none() {
            let names = [cookie::APP_SESSION_OWN, cookie::APP_SESSION];
            set_cookies(&mut response, names.map(|name| SetCookie::new(name, &mark)));
        }
        response
    }

    /// Sends a logged-in person on to an application with a one-time code, if policy lets them in. The event says
    /// what was decided.
    pub(super) async fn hand_over(
        &self,
        target: &Target,
        live: &LiveSession,
        by: By,
    ) -> (Response<Bytes>, Event) {
        let session = &live.session;
        let permit = match self.decide(&target.application, session) {
            Ok(permit) => permit,
            Err(denial) => return self.denied(&target.application, session, &denial),
        };
        let event = self
            .event(Action::Login, true)
            .session(session)
            .application(&target.application)
            .policy(permit.policy());
        let status = if by == By::Form { StatusCode::SEE_OTHER } else { StatusCode::FOUND };
        // A bypass needs no token. Without the hash of the browser's cookie no code can be bound: the application's
        // own challenge will come back with one.
        if permit.session().is_none() || target.app_session.is_none() {
            let location =
                format!("{}{}", self.site.origin(&target.host), target.after_login(by == By::Form));
            return (page::redirect(status, &location), event);
        }
        if let Err(wait) = self.charge_write(session) {
            let event = self.event(Action::Login, false).session(session);
            return self.too_fast(wait, Some(&target.application), event);
        }
        let grant = Grant { session: session.id, destination: target.destination(), by };
        match self.keep_for_code(CODE, None, &grant, self.now.after(CODE_LIFE)).await {
            Ok(code) => {
                let authorized = self.site.endpoint(&target.host, "authorized");
                (page::redirect(status, &format!("{authorized}?code={code}")), event)
            }
            Err(error) => self.broken(&error, &target.application, session),
        }
    }

    /// Redeems a one-time code on the application host.
    pub(super) async fn authorized(&self) -> Response<Bytes> {
        let query = Parameters::of_query(self.visit.query.as_deref());
        let grant = match query.one("code").and_then(|code| self.code(CODE, code)) {
            Some(code) => self.take::<Grant>(CODE, &code).await,
            None => Ok(None),
        };
        let grant = match grant {
            Ok(grant) => grant,
            Err(error) => {
                return self.not_authorized(
                    StatusCode::SERVICE_UNAVAILABLE,
                    Reason::Internal,
                    None,
                    &error.to_string(),
                );
            }
        };
        let target = grant
            .as_ref()
            .and_then(|grant| Target::resolve(&self.active.policies, &self.site.auth, &grant.destination))
            .filter(|target| target.host == self.visit.host);
        let (Some(grant), Some(target)) = (grant, target) else {
            return self.not_authorized(
                StatusCode::BAD_REQUEST,
                Reason::BadState,
                None,
                "no such code for this host",
            );
        };
        let mark = match grant.by {
            By::Link | By::Form => cookie::APP_SESSION_OWN,
            // The one name such a client knows. No browser gains by the token that it is given.
            By::Client(_) => cookie::APP_SESSION,
        };
        let same_browser = target.app_session.as_ref().is_some_and(|expected| {
            cookie::read_one(&self.visit.headers, mark).is_some_and(|mark| hash_text(mark) == *expected)
        });
        if !same_browser {
            return self.wrong_browser(&target);
        }
        let Some(live) = self.context.sessions.get(grant.session, self.now) else {
            return self.not_authorized(StatusCode::BAD_REQUEST, Reason::SessionEnded, Some(&target), "");
        };
        let permit = match self.decide(&target.application, &live.session) {
            Ok(permit) => permit,
            Err(denial) => {
                let (response, event) = self.denied(&target.application, &live.session, &denial);
                self.context.events.emit(event);
                return response;
            }
        };
        match self.tokens_for(&permit, &live, grant.by).await {
            Ok(cookies) => {
                let mut response = self.onward(&target, grant.by == By::Form);
                set_cookies(&mut response, cookies);
                response
            }
            Err(error) => {
                let (response, event) = self.broken(&error, &target.application, &live.session);
                self.context.events.emit(event);
                response
            }
        }
    }

    /// The cookies of a permit on this host: the application's token and, for a browser, what binds it to that browser.
    async fn tokens_for(
        &self,
        permit: &Permit,
        live: &LiveSession,
        by: By,
    ) -> Result<Vec<SetCookie>, String> {
        let tokens = &self.context.tokens;
        let token = match by {
            By::Link | By::Form => tokens.mint_application(permit, self.now),
            By::Client(login) => tokens.mint_application_for_client(permit, login, self.now),
        };
        let Some(token) = token.map_err(|error| error.to_string())? else { return Ok(Vec::new()) };
        let application = permit.application();
        let granted = self.context.sessions.granted(live.session.id, &application.name).await;
        granted.map_err(|error| error.to_string())?;
        let mut cookies = vec![
            SetCookie::new(cookie::AUTHORIZATION, &token)
                .path(application.path())
                .until(permit.token_expires_at(), self.now),
        ];
        if !matches!(by, By::Client(_)) {
            let binding = tokens.binding(&live.session.id, &self.visit.host);
            let binding = SetCookie::new(cookie::BINDING, &binding);
            cookies.push(binding.until(live.session.expires_at, self.now));
        }
        Ok(cookies)
    }

    /// To where the person wanted to go. After a form, browsers hold every further redirect against the login page's
    /// `form-action`, those of the application included: there the chain ends in a page that goes on by itself.
    fn onward(&self, target: &Target, by_form: bool) -> Response<Bytes> {
        if !(by_form && self.header("sec-fetch-mode") == Some("navigate")) {
            return page::redirect(StatusCode::FOUND, &target.back);
        }
        page::html(
            StatusCode::OK,
            &MessagePage {
                frame: Frame::new(Some(&self.site.auth), self.visit.ray),
                title: "You are signed in",
                texts: &["Taking you to the application."],
                facts: &[("Application", &target.application.name)],
                confirm: None,
                links: &[("Continue", &target.back)],
                onward: Some(&target.back),
            },
            &[],
        )
    }

    /// The code came without the cookie it is bound to: nothing is set, and the login restarts once.
    fn wrong_browser(&self, target: &Target) -> Response<Bytes> {
        if target.retry {
            let what = "the browser does not return the cookie of the login";
            return self.not_authorized(StatusCode::BAD_REQUEST, Reason::BadBinding, Some(target), what);
        }
        self.context.events.emit(
            self.event(Action::Login, false)
                .reason(Reason::BadBinding)
                .application(&target.application)
                .status(302)
                .detail("the code belongs to another browser; the login restarts"),
        );
        let again = Target { app_session: None, retry: true, ..target.clone() };
        let login = self.site.endpoint(&self.visit.host, "login");
        page::redirect(StatusCode::FOUND, &format!("{login}?{}", again.query()))
    }

    fn not_authorized(
        &self,
        status: StatusCode,
        reason: Reason,
        target: Option<&Target>,
        detail: &str,
    ) -> Response<Bytes> {
        let mut event =
            self.event(Action::Login, false).reason(reason).status(status.as_u16()).detail(detail);
        if let Some(target) = target {
            event = event.application(&target.application);
        }
        self.context.events.emit(event);
        page::refusal(PageFacts {
            application: target.map(|target| target.application.name.as_str()),
            again: Some(target.map_or("/", |target| &target.back)),
            ..self.facts(status, reason)
        })
    }

    pub(super) fn decide(&self, application: &Application, session: &Arc<Session>) -> Result<Permit, Denial> {
        self.decide_from(application, session, self.visit.address)
    }

    /// Decides for a person who is at `address`, whoever sent this request.
    pub(super) fn decide_from(
        &self,
        application: &Application,
        session: &Arc<Session>,
        address: IpAddr,
    ) -> Result<Permit, Denial> {
        let facts = Facts { application, session: Some(session), service: None, address };
        match decide(&self.active.policies, &facts, self.now) {
            Decision::Allow(permit) => Ok(permit),
            Decision::Deny(denial) => Err(denial),
            Decision::Login(_) => Err(Denial { reason: Reason::NoSession, policy: None }),
        }
    }

    fn denied(
        &self,
        application: &Application,
        session: &Session,
        denial: &Denial,
    ) -> (Response<Bytes>, Event) {
        let mut event = self
            .event(Action::Login, false)
            .reason(denial.reason)
            .session(session)
            .application(application)
            .status(StatusCode::FORBIDDEN.as_u16());
        if let Some(policy) = &denial.policy {
            event = event.policy(policy);
        }
        let page = page::refusal(PageFacts {
            application: Some(&application.name),
            person: Some(known_as(session)),
            ..self.facts(StatusCode::FORBIDDEN, denial.reason)
        });
        (page, event)
    }

    fn broken(&self, error: &str, application: &Application, session: &Session) -> (Response<Bytes>, Event) {
        let event = self
            .event(Action::Login, false)
            .reason(Reason::Internal)
            .session(session)
            .application(application)
            .detail(error);
        (self.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal), event)
    }

    /// Whether following a redirect to a login page makes sense for what sent this request.
    fn is_navigation(&self) -> bool {
        let script =
            self.header("x-requested-with").is_some_and(|by| by.eq_ignore_ascii_case("XMLHttpRequest"));
        let fetched = self.visit.headers.get("sec-fetch-mode").is_some_and(|mode| mode != "navigate");
        let mut accepts = self.visit.headers.get_all(header::ACCEPT).iter().peekable();
        let accepts_pages = accepts.peek().is_none()
            || accepts
                .filter_map(|value| value.to_str().ok())
                .flat_map(|value| value.split(','))
                .any(|kind| matches!(page::media_type(kind).as_str(), "text/html" | "*/*"));
        !script && !fetched && accepts_pages
    }
}

/// How a person knows themselves.
pub(super) fn known_as(session: &Session) -> &str {
    session.email.as_ref().map_or(session.display_name.as_str(), |email| email.as_str())
}

/// 32 random bytes in base64url.
fn is_mark(text: &str) -> bool {
    text.len() == 43 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

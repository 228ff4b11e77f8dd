//! The login page of the auth domain: who may log in how, the form of local users, and what follows a login.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::clock;
use crate::cookie::{self, SetCookie};
use crate::event::{Action, Event};
use crate::flow::{Application, Kind, Reason, Session, UnixTime};
use crate::identity::local::Proven;
use crate::identity::throttle::Attempt;
use crate::identity::{Authenticated, LoginError};
use crate::session::LiveSession;
use crate::store::SessionFilter;

use super::browser::set_cookies;
use super::form::Parameters;
use super::handover::By;
use super::page::{self, Choice, Frame, LoginPage, PageFacts, PasswordForm};
use super::target::Target;
use super::{Call, providers};

/// Marks a browser between the form and its answer.
const BROWSER: &str = "__Host-CF_Browser";
/// Remembers that a browser has known an account's password.
const KNOWN: &str = "__Host-CF_Known";
const KNOWN_FOR: std::time::Duration = std::time::Duration::from_secs(90 * 24 * 3600);

/// How long a login may take from its first page to its end.
pub(super) const ATTEMPT_LIFE: std::time::Duration = std::time::Duration::from_secs(600);

/// Characters of the longest name that an address may fill in.
const LONGEST_HINT: usize = 255;

const TICKET: &str = "login form";
const REMEMBERED: &str = "remembered login does";

/// Proves that a form was made by this node for this browser, and lets it be used once.
#[derive(Serialize, Deserialize)]
struct Ticket {
    id: [u8; 16],
    browser: String,
    expires_at: UnixTime,
}

#[derive(Serialize, Deserialize)]
struct KnownBrowser {
    account: String,
    id: [u8; 16],
    expires_at: UnixTime,
}

impl Call<'_> {
    /// `login` leads to the launcher, `login/<application host>` to an application.
    pub(super) async fn login(&self, host: &str) -> Response<Bytes> {
        let query = Parameters::of_query(self.visit.query.as_deref());
        let target = match Target::parse(&self.active.policies, &self.site.auth, host, &query) {
            Some(target) => Some(target),
            None if host.is_empty() && !query.has("kid") => None,
            None => {
                self.context
                    .events
                    .emit(self.event(Action::Login, false).reason(Reason::NoApplication).status(404));
                return self.refuse(StatusCode::NOT_FOUND, Reason::NoApplication);
            }
        };
        let target = target.as_ref();
        let mut response = if self.visit.method == Method::POST {
            self.password_login(target).await
        } else {
            self.begin(target, query.one("provider"), query.one("login_hint").unwrap_or_default()).await
        };
        if let Some(target) = target {
            page::name_application(response.headers_mut(), &target.host, &target.application);
        }
        response
    }

    /// To the login for a sign-in elsewhere, which goes on at `back`; with `anew`, a login that is remembered does not do. That
    /// one does is what the address says, sealed: what it says without could be cut off.
    pub(super) fn to_login_elsewhere(
        &self,
        application: &Arc<Application>,
        back: String,
        anew: bool,
        hint: Option<&str>,
    ) -> Response<Bytes> {
        let expires_at = self.now.after(ATTEMPT_LIFE);
        let remembered = match anew {
            true => None,
            false => match self.context.seal.seal(REMEMBERED, &(&back, expires_at)) {
                Ok(sealed) => Some(sealed),
                Err(_) => return self.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal),
            },
        };
        let auth = &self.site.auth;
        let target = Target {
            application: Arc::clone(application),
            host: auth.clone(),
            back,
            app_session: None,
            retry: false,
            remembered,
        };
        let mut query = url::form_urlencoded::Serializer::new(target.query());
        if let Some(hint) = hint {
            query.append_pair("login_hint", hint);
        }
        let login = self.site.endpoint(auth, &format!("login/{auth}"));
        page::redirect(StatusCode::FOUND, &format!("{login}?{}", query.finish()))
    }

    /// Whether the person has to prove anew who they are.
    pub(super) fn is_anew(&self, target: &Target) -> bool {
        let remembered = |sealed: &String| {
            let word = self.context.seal.open::<(String, UnixTime)>(REMEMBERED, sealed);
            word.is_some_and(|(back, expires_at)| back == target.back && expires_at > self.now)
        };
        matches!(target.application.kind, Kind::Saas(_))
            && !target.remembered.as_ref().is_some_and(remembered)
    }

    /// Goes on with the session there is, or with the one provider there is, or asks.
    async fn begin(&self, target: Option<&Target>, wanted: Option<&str>, hint: &str) -> Response<Bytes> {
        let providers = providers::allowed(&self.active, target.map(|target| &*target.application));
        let anew = target.is_some_and(|target| self.is_anew(target));
        if let Some(live) = self.global_session().filter(|_| !anew) {
            match target {
                None => return self.go_on(StatusCode::FOUND),
                Some(target) if providers.iter().any(|p| p.name == live.session.person.provider) => {
                    return self.silently(target, &live, By::Link).await;
                }
                Some(_) => {}
            }
        } else if let Some(target) = target
            // As such clients ask, and no browser: a cookie that somebody has tossed in must not lead one in circles.
            && self.visit.method == Method::HEAD
            && let Some((live, login)) = self.client_session()
        {
            return self.silently(target, &live, By::Client(login)).await;
        }
        let chosen = match wanted {
            Some(name) => providers.iter().find(|provider| provider.name == name),
            None if providers.len() == 1 => providers.first(),
            None => None,
        };
        if let Some(provider) = chosen.filter(|provider| !providers::is_local(provider)) {
            return self.start_upstream(provider, target).await;
        }
        let hint: String = hint.chars().take(LONGEST_HINT).collect();
        self.login_page(StatusCode::OK, target, None, &hint)
    }

    /// Hands over whoever is logged in already; worth an event where policy refuses, or where a token that may have been
    /// carried off is turned into one for an application.
    async fn silently(&self, target: &Target, live: &LiveSession, by: By) -> Response<Bytes> {
        let is_client = matches!(by, By::Client(_));
        let (response, event) = self.hand_over(target, live, by).await;
        match (event.is_allowed(), is_client) {
            (true, true) => self.context.events.emit(event.detail("by a device's global token")),
            (true, false) => {}
            (false, _) => self.context.events.emit(event),
        }
        response
    }

    async fn password_login(&self, target: Option<&Target>) -> Response<Bytes> {
        let application = target.map(|target| &*target.application);
        let local =
            providers::allowed(&self.active, application).into_iter().find(|p| providers::is_local(p));
        let form = Parameters::of_form(&self.visit.headers, &self.visit.body);
        let (Some(local), Some(form)) = (local, form) else {
            self.context.events.emit(self.refused(Reason::BadRequest, StatusCode::BAD_REQUEST, "", target));
            return self.refuse(StatusCode::BAD_REQUEST, Reason::BadRequest);
        };
        let username = form.one("username").unwrap_or_default().trim();
        let ticket = form.one("ticket").and_then(|text| self.open_ticket(text));
        let Some(ticket) = ticket.filter(|_| !self.is_foreign_form()) else {
            self.context.events.emit(self.refused(
                Reason::BadState,
                StatusCode::BAD_REQUEST,
                username,
                target,
            ));
            let problem = "This page was too old. Please sign in again.";
            return self.login_page(StatusCode::BAD_REQUEST, target, Some(problem), username);
        };
        let known = self.known_browser(username);
        let attempt = Attempt {
            account: username,
            address: self.visit.address,
            known_browser: known.as_ref().map(<[u8; 16]>::as_slice),
            known_network: self.context.recent.contains(self.visit.address, self.now),
        };
        let password = Zeroizing::new(form.one("password").unwrap_or_default().to_owned());
        let login = self.portal.local.login(&self.context.store, &local.name, attempt, password).await;
        let (person, proven) = match login {
            Ok(proven) => proven,
            Err(error) => {
                let (status, problem) = match &error {
                    LoginError::BadCredentials => {
                        (StatusCode::UNAUTHORIZED, "The user name or the password is wrong.".to_owned())
                    }
                    LoginError::Throttled { retry_after } => (
                        StatusCode::TOO_MANY_REQUESTS,
                        format!("Too many attempts. Try again in {} seconds.", retry_after.as_secs() + 1),
                    ),
                    _ => return self.failed(&error, &local.name, target),
                };
                self.context
                    .events
                    .emit(self.refused(error.reason(), status, username, target).provider(&local.name));
                let mut response = self.login_page(status, target, Some(&problem), username);
                if let LoginError::Throttled { retry_after } = error {
                    let seconds = HeaderValue::from(retry_after.as_secs() + 1);
                    response.headers_mut().insert(header::RETRY_AFTER, seconds);
                } else {
                    // RFC 9110 §15.5.2 wants a challenge; browsers show the page for a scheme they do not know.
                    let scheme = HeaderValue::from_static("Form");
                    response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
                }
                return response;
            }
        };
        // Only now: whoever has not proven to know a password can make the store remember nothing.
        match self.context.store.use_once(TICKET, &ticket.id, ticket.expires_at, self.now).await {
            Ok(true) => {}
            Ok(false) => {
                self.context.events.emit(self.refused(
                    Reason::BadState,
                    StatusCode::BAD_REQUEST,
                    username,
                    target,
                ));
                let problem = "This form was already used. Please sign in again.";
                return self.login_page(StatusCode::BAD_REQUEST, target, Some(problem), username);
            }
            Err(error) => return self.failed(&LoginError::Internal(error.to_string()), &local.name, target),
        }
        let mut response = self.complete(person, target, Some(&proven)).await;
        set_cookies(&mut response, self.remember_browser(username, known));
        response
    }

    /// The event of an attempt by password that failed; `user` is the name that was typed.
    fn refused(&self, reason: Reason, status: StatusCode, user: &str, target: Option<&Target>) -> Event {
        let mut event = self.event(Action::Login, false).reason(reason).status(status.as_u16());
        if !user.is_empty() {
            event = event.claimed_user(user);
        }
        if let Some(target) = target {
            event = event.application(&target.application);
        }
        event
    }

    /// A person has proven who they are: a new session, the global cookies, and on to where they wanted to go.
    /// `proven` is the account of a local user, who came by the form.
    pub(super) async fn complete(
        &self,
        authenticated: Authenticated,
        target: Option<&Target>,
        proven: Option<&Proven>,
    ) -> Response<Bytes> {
        let provider = authenticated.person.provider.clone();
        // One browser holds one session: the one it replaces must not live on where no logout would find it.
        if let Some(old) = self.global_session() {
            if let Err(error) =
                self.context.sessions.revoke(&SessionFilter::Id(old.session.id), self.now).await
            {
                return self.failed(&LoginError::Internal(error.to_string()), &provider, target);
            }
            let event = self.event(Action::Logout, true).session(&old.session);
            self.context.events.emit(event.detail("replaced by a new login"));
        }
        let longest = self.now.after(self.active.config.node.session);
        let session = Session {
            id: clock::new_session_id(),
            person: authenticated.person,
            is_local: Some(proven.is_some()),
            email: authenticated.email,
            display_name: authenticated.display_name,
            groups: authenticated.groups,
            amr: authenticated.amr,
            address: self.visit.address,
            authenticated_at: match proven {
                Some(_) => Some(self.now),
                None => authenticated.authenticated_at.map(|at| at.min(self.now)),
            },
            created_at: self.now,
            expires_at: authenticated.ends_at.map_or(longest, |end| end.min(longest)),
        };
        let token = self.context.tokens.mint_global(&session, self.now).map_err(|error| error.to_string());
        let live = self.context.sessions.create(session).await.map_err(|error| error.to_string());
        let (token, live) = match (token, live) {
            (Ok(token), Ok(live)) => (token, live),
            (Err(error), _) | (_, Err(error)) => {
                return self.failed(&LoginError::Internal(error), &provider, target);
            }
        };
        if let Some(heard) = &authenticated.at_provider {
            let noted = self.context.store.insert_provider_login(live.session.id, &provider, heard).await;
            let refusal = match noted {
                Ok(true) => None,
                Ok(false) => Some(LoginError::Answer("the provider has ended that login since".to_owned())),
                // Without it, no logout of the provider's would end the session.
                Err(error) => Some(LoginError::Internal(error.to_string())),
            };
            if let Some(refusal) = refusal {
                let ended = self.context.sessions.revoke(&SessionFilter::Id(live.session.id), self.now).await;
                let error = ended.err().map_or(refusal, |error| LoginError::Internal(error.to_string()));
                return self.failed(&error, &provider, target);
            }
        }
        if let Some(proven) = proven {
            let refusal = match proven.holds(&self.context.store).await {
                Ok(true) => None,
                Ok(false) => Some(LoginError::BadCredentials),
                Err(error) => Some(error),
            };
            if let Some(mut refusal) = refusal {
                // Nobody has its cookie, but the list of sessions must not show it.
                let ended = self.context.sessions.revoke(&SessionFilter::Id(live.session.id), self.now).await;
                if let Err(error) = ended {
                    refusal = LoginError::Internal(error.to_string());
                }
                return self.failed(&refusal, &provider, target);
            }
        }
        let who = live.session.person.to_string();
        self.context.recent.remember(&who, live.session.address, self.now);
        let (mut response, event) = match target {
            Some(target) => {
                let by = if proven.is_some() { By::Form } else { By::Link };
                self.hand_over(target, &live, by).await
            }
            None => {
                (self.go_on(StatusCode::SEE_OTHER), self.event(Action::Login, true).session(&live.session))
            }
        };
        self.context.events.emit(event);
        let binding = self.context.tokens.binding(&live.session.id, &self.visit.host);
        let until = |cookie: SetCookie| cookie.until(live.session.expires_at, self.now);
        set_cookies(
            &mut response,
            [
                until(SetCookie::new(cookie::AUTHORIZATION, &token)),
                until(SetCookie::new(cookie::BINDING, &binding)),
            ],
        );
        response
    }

    /// The page for a login that could not be finished, and its event.
    pub(super) fn failed(
        &self,
        error: &LoginError,
        provider: &str,
        target: Option<&Target>,
    ) -> Response<Bytes> {
        let status = match error {
            LoginError::Unavailable(_) | LoginError::Internal(_) => StatusCode::SERVICE_UNAVAILABLE,
            LoginError::Throttled { .. } => StatusCode::TOO_MANY_REQUESTS,
            LoginError::BadCredentials => StatusCode::UNAUTHORIZED,
            LoginError::State | LoginError::Refused(_) | LoginError::Answer(_) | LoginError::NotAnew => {
                StatusCode::BAD_REQUEST
            }
        };
        let mut event = self.event(Action::Login, false).reason(error.reason()).status(status.as_u16());
        event = event.detail(error.to_string());
        if !provider.is_empty() {
            event = event.provider(provider);
        }
        if let Some(target) = target {
            event = event.application(&target.application);
        }
        self.context.events.emit(event);
        let again = target.map_or_else(
            || self.site.endpoint(&self.site.auth, "login"),
            |target| format!("{}{}", self.site.origin(&target.host), target.back),
        );
        page::refusal(PageFacts {
            application: target.map(|target| target.application.name.as_str()),
            again: Some(&again),
            retry_after: match error {
                LoginError::Throttled { retry_after } => u32::try_from(retry_after.as_secs() + 1).ok(),
                _ => (status == StatusCode::SERVICE_UNAVAILABLE).then_some(page::SOON),
            },
            ..self.facts(status, error.reason())
        })
    }

    fn login_page(
        &self,
        status: StatusCode,
        target: Option<&Target>,
        problem: Option<&str>,
        username: &str,
    ) -> Response<Bytes> {
        let providers = providers::allowed(&self.active, target.map(|target| &*target.application));
        if providers.is_empty() {
            let error = LoginError::Unavailable("none may be used for this application".to_owned());
            return self.failed(&error, "", target);
        }
        let choices: Vec<Choice> = providers
            .iter()
            .filter(|provider| !providers::is_local(provider))
            .map(|provider| {
                let mut query =
                    url::form_urlencoded::Serializer::new(target.map(Target::query).unwrap_or_default());
                query.append_pair("provider", &provider.name);
                Choice { label: provider.label.clone(), href: format!("?{}", query.finish()) }
            })
            .collect();
        let presented = cookie::read_one(&self.visit.headers, BROWSER).filter(|mark| mark.len() == 22);
        let browser = presented.map_or_else(|| clock::new_session_id().to_string(), str::to_owned);
        let ticket = Ticket {
            id: clock::random(),
            browser: browser.clone(),
            expires_at: self.now.after(ATTEMPT_LIFE),
        };
        let form = if providers.iter().any(|provider| providers::is_local(provider)) {
            match self.context.seal.seal(TICKET, &ticket) {
                Ok(ticket) => Some(PasswordForm { ticket, username }),
                Err(error) => return self.failed(&LoginError::Internal(error.to_string()), "", target),
            }
        } else {
            None
        };
        let page = LoginPage {
            frame: Frame::new(Some(&self.site.auth), self.visit.ray),
            application: target.map(|target| target.application.name.as_str()),
            problem,
            form,
            choices: &choices,
        };
        let onward: Vec<String> = target.iter().map(|target| self.site.origin(&target.host)).collect();
        let mut response = page::html(status, &page, &onward);
        if presented.is_none() {
            set_cookies(&mut response, [SetCookie::new(BROWSER, &browser)]);
        }
        response
    }

    fn open_ticket(&self, text: &str) -> Option<Ticket> {
        let ticket: Ticket = self.context.seal.open(TICKET, text)?;
        let same_browser = cookie::read_all(&self.visit.headers, BROWSER).any(|mark| mark == ticket.browser);
        (ticket.expires_at > self.now && same_browser).then_some(ticket)
    }

    fn known_browser(&self, account: &str) -> Option<[u8; 16]> {
        cookie::read_all(&self.visit.headers, KNOWN)
            .filter_map(|text| self.context.seal.open::<KnownBrowser>(KNOWN, text))
            .find(|known| known.account == account && known.expires_at > self.now)
            .map(|known| known.id)
    }

    fn remember_browser(&self, account: &str, known: Option<[u8; 16]>) -> Option<SetCookie> {
        let expires_at = self.now.after(KNOWN_FOR);
        let known =
            KnownBrowser { account: account.to_owned(), id: known.unwrap_or_else(clock::random), expires_at };
        let sealed = self.context.seal.seal(KNOWN, &known).ok()?;
        Some(SetCookie::new(KNOWN, &sealed).until(expires_at, self.now))
    }
}

//! The authorization endpoint.
//!
//! A request is checked, and answered at once where its person is logged in and policy lets them. Where it is not (or where
//! it came by a form of another site, with which browsers send no cookie), it is parked in a cookie of that browser, sealed,
//! and goes on at `resume` on this same host. An error goes to the application only when the address is certain.

use bytes::Bytes;
use http::{Method, Response, StatusCode};

use crate::clock;
use crate::flow::{Reason, Saas};
use crate::policy::{PermitKind, PermitOf};
use crate::portal::browser::set_cookies;
use crate::portal::form::Parameters;
use crate::portal::login::ATTEMPT_LIFE;
use crate::portal::page::{self, AutoPost, Frame, MessagePage};
use crate::portal::parked::{NotParked, Park, new_name};
use crate::portal::providers;
use crate::portal::target::{BY_FORM, REQUEST, is_request, resumption};
use crate::saas::oidc::request::{AuthorizationRequest, Pending, RequestError, ReturnTo};
use crate::saas::oidc::token::{CODE, CODE_LIFE, Code, Granted};
use crate::session::LiveSession;

use super::Provider;

const PARK: Park = Park { prefix: "__Host-CF_Sso_", purpose: "oidc authorization request" };

impl Provider<'_> {
    pub(super) async fn authorization(&self) -> Response<Bytes> {
        let by_post = self.call.visit.method == Method::POST;
        let parameters = match by_post {
            true => Parameters::of_form(&self.call.visit.headers, &self.call.visit.body),
            false => Some(Parameters::of_query(self.call.visit.query.as_deref())),
        };
        let Some(parameters) = parameters else {
            return self.own_page(StatusCode::BAD_REQUEST, Reason::BadRequest, "no form");
        };
        let request = match AuthorizationRequest::parse(self.client, &parameters) {
            Ok(request) => request,
            Err(RequestError::Unverified(why)) => {
                return self.own_page(StatusCode::BAD_REQUEST, Reason::BadRequest, why);
            }
            Err(RequestError::Refused { to, error, why }) => {
                return self.send_error(&to, error, why, Reason::BadRequest, false);
            }
        };
        let pending = Pending {
            client: self.client.id.clone(),
            request,
            asked_at: self.call.now,
            holder: self.call.global_session().map(|live| live.session.id),
            expires_at: self.call.now.after(ATTEMPT_LIFE),
        };
        if !by_post {
            return self.proceed(&pending, None, false).await;
        }
        let id = new_name();
        let resume = format!("{}?{REQUEST}={id}", self.path("resume"));
        self.parked(&pending, &id, page::redirect(StatusCode::SEE_OTHER, &resume))
    }

    /// Goes on with a parked request.
    pub(super) async fn resume(&self) -> Response<Bytes> {
        let query = Parameters::of_query(self.call.visit.query.as_deref());
        let id = query.one(REQUEST).filter(|id| is_request(id)).unwrap_or_default();
        let pending = self
            .call
            .parked::<Pending>(PARK, id)
            .filter(|pending| pending.expires_at > self.call.now && pending.client == self.client.id)
            // The configuration may have changed while somebody logged in.
            .filter(|pending| self.client.redirect_uris.contains(&pending.request.to.redirect_uri));
        match pending {
            Some(pending) => self.proceed(&pending, Some(id), query.has(BY_FORM)).await,
            None => {
                self.own_page(StatusCode::BAD_REQUEST, Reason::BadState, "no such request in this browser")
            }
        }
    }

    async fn proceed(&self, pending: &Pending, parked: Option<&str>, by_form: bool) -> Response<Bytes> {
        let may_be_used = |live: &LiveSession| {
            let allowed = providers::allowed(&self.call.active, Some(self.application));
            allowed.iter().any(|provider| provider.name == live.session.person.provider)
        };
        let live = self
            .call
            .global_session()
            .filter(|live| pending.is_satisfied_by(&live.session, self.call.now) && may_be_used(live));
        match live {
            Some(live) => {
                let mut response = self.sign_in(pending, &live, by_form).await;
                if let Some(id) = parked {
                    set_cookies(&mut response, [PARK.clear(id, "/")]);
                }
                response
            }
            None if pending.request.quiet => {
                let why = "nobody is logged in, or not recently enough";
                self.send_error(&pending.request.to, "login_required", why, Reason::NoSession, by_form)
            }
            None => self.to_login(pending, parked),
        }
    }

    /// To the login, from where the browser comes back to `resume`.
    fn to_login(&self, pending: &Pending, parked: Option<&str>) -> Response<Bytes> {
        let id = parked.map_or_else(new_name, str::to_owned);
        let crate::flow::Kind::Saas(saas) = &self.application.kind else {
            return self.call.refuse(StatusCode::NOT_FOUND, Reason::NoApplication);
        };
        let anew = pending.request.asks_anew();
        let (back, hint) = (resumption(saas, &id), pending.request.login_hint.as_deref());
        let response = self.call.to_login_elsewhere(self.application, back, anew, hint);
        if parked.is_some() { response } else { self.parked(pending, &id, response) }
    }

    /// Leaves a request with the browser, in the cookie `id` of `response`.
    fn parked(&self, pending: &Pending, id: &str, mut response: Response<Bytes>) -> Response<Bytes> {
        match self.call.park(PARK, (id, "/"), pending, pending.expires_at, &mut response) {
            Ok(()) => response,
            Err(NotParked::TooLong) => {
                let why = "the request is too long";
                self.send_error(&pending.request.to, "invalid_request", why, Reason::BadRequest, false)
            }
            Err(NotParked::Unsealed) => {
                self.own_page(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal, "sealing failed")
            }
        }
    }

    /// Decides, and answers with a code or with the node's own page.
    async fn sign_in(&self, pending: &Pending, live: &LiveSession, by_form: bool) -> Response<Bytes> {
        let permit = match self.call.decide(self.application, &live.session) {
            Ok(permit) => permit,
            Err(denial) => return self.denied(&live.session, &denial),
        };
        let PermitKind::Saas(of_client) = permit.kind() else {
            return self.call.refuse(StatusCode::NOT_FOUND, Reason::NoApplication);
        };
        if let Err(wait) = self.call.charge_write(&live.session) {
            let event = self.event(false).session(&live.session);
            let (page, event) = self.call.too_fast(wait, Some(self.application), event);
            self.call.context.events.emit(event);
            return page;
        }
        match self.issue_code(of_client, &pending.request, live).await {
            Ok(code) => {
                let response = self.respond(&pending.request.to, &[("code", &code)], by_form);
                let event = self.event(true).session(&live.session).policy(permit.policy());
                self.call.context.events.emit(event.status(response.status().as_u16()));
                response
            }
            Err(error) => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                let event = self.event(false).reason(Reason::Internal).session(&live.session);
                self.call.context.events.emit(event.status(status.as_u16()).detail(error));
                self.call.refuse(status, Reason::Internal)
            }
        }
    }

    /// A one-time code for what policy has allowed, bound to client, address, challenge and session.
    async fn issue_code(
        &self,
        permit: PermitOf<'_, Saas>,
        request: &AuthorizationRequest,
        live: &LiveSession,
    ) -> Result<String, String> {
        let application = &permit.permit().application().name;
        let granted = Granted {
            client: self.client.id.clone(),
            redirect_uri: request.to.redirect_uri.clone(),
            challenge: request.challenge.clone(),
            nonce: request.nonce.clone(),
            scopes: request.scopes.clone(),
            address: self.call.visit.address,
        };
        let (id, now) = (clock::random::<16>(), self.call.now);
        let code = Code { grant: id, expires_at: now.after(CODE_LIFE) };
        let session = live.session.id;
        let store = &self.call.context.store;
        store
            .insert_saas_grant(id, session, application, &granted, code.expires_at, now)
            .await
            .map_err(|error| error.to_string())?;
        self.call.context.sessions.granted(session, application).await.map_err(|error| error.to_string())?;
        self.call.context.seal.seal(CODE, &code).map_err(|error| error.to_string())
    }

    /// Tells the application that it gets nothing, and why.
    fn send_error(
        &self,
        to: &ReturnTo,
        error: &'static str,
        why: &'static str,
        reason: Reason,
        by_form: bool,
    ) -> Response<Bytes> {
        let response = self.respond(to, &[("error", error), ("error_description", why)], by_form);
        let event = self.event(false).reason(reason).status(response.status().as_u16());
        self.call.context.events.emit(event.detail(format!("{error}: {why}")));
        response
    }

    /// Carries an answer to the address that the client has registered.
    fn respond(&self, to: &ReturnTo, answer: &[(&str, &str)], by_form: bool) -> Response<Bytes> {
        let mut fields = answer.to_vec();
        fields.extend(to.state.as_deref().map(|state| ("state", state)));
        fields.push(("iss", &self.issuer));
        let frame = Frame::new(Some(&self.call.site.auth), self.call.visit.ray);
        if to.form_post {
            return page::auto_post(&AutoPost {
                frame,
                application: &self.application.name,
                action: &to.redirect_uri,
                fields: &fields,
                nonce: &crate::flow::SessionId::from_bytes(clock::random()).to_string(),
            });
        }
        let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&fields).finish();
        let glue = if to.redirect_uri.contains('?') { '&' } else { '?' };
        let location = format!("{}{glue}{query}", to.redirect_uri);
        // After a form, browsers hold every further redirect against the login page's `form-action`: there the chain ends
        // in a page that goes on by itself.
        if by_form && self.call.header("sec-fetch-mode") == Some("navigate") {
            let page = MessagePage {
                frame,
                title: "You are signed in",
                texts: &["Taking you to the application."],
                facts: &[("Application", &self.application.name)],
                confirm: None,
                links: &[("Continue", &location)],
                onward: Some(&location),
            };
            return page::html(StatusCode::OK, &page, &[]);
        }
        let status = match self.call.visit.method {
            Method::POST => StatusCode::SEE_OTHER,
            _ => StatusCode::FOUND,
        };
        page::redirect(status, &location)
    }
}

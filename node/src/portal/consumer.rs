//! The node as service provider of a SAML identity provider, on the auth domain: `saml/<provider>` and below it `acs`,
//! `resume`, `logout` and `saml-metadata`.
//!
//! ```text
//! identity provider                 node
//! 1 Response ──POST, no cookies──▶ 2 acs: verify, once; kept under a one-time code
//!                                  3 (303 to a GET of this host: the browser's cookies come with that)
//!                                  4 resume: the code, and the attempt that this browser has open
//!                                  5 the login, as after any other provider
//! ```
//!
//! Until an answer is verified it makes the node keep nothing. A code is worth nothing to a browser that did not start.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Response, StatusCode};

use crate::config::{IdentityProvider, ProviderKind};
use crate::event::Action;
use crate::flow::{Reason, UnixTime};
use crate::identity::LoginError;
use crate::identity::saml::{Accepted, LATEST, LogoutMessage, SamlUpstream};
use crate::identity::upstream::{Answer, Upstream};
use crate::saml::{self, Certificate, Kind, NameId};
use crate::store::SessionFilter;

use super::form::Parameters;
use super::page;
use super::target::hash;
use super::upstream::Attempt;
use super::{Call, PREFIX};

/// Life of a one-time code.
const CODE_LIFE: Duration = Duration::from_secs(60);
/// What it is for; its holder is the attempt that was answered.
const CODE: &str = "saml answer";
/// What assertions and logout requests are remembered for.
const ASSERTION: &str = "saml assertion";
const LOGOUT: &str = "saml provider's logout";

/// A request at one provider's endpoints.
#[derive(Clone, Copy)]
struct At<'a> {
    provider: &'a IdentityProvider,
    saml: &'a SamlUpstream,
}

/// The logins that a provider's logout names.
struct Named<'a> {
    name_id: &'a NameId,
    /// None means all of that name.
    indexes: Vec<String>,
    issued_at: UnixTime,
}

impl Call<'_> {
    /// Answers `saml/<rest>` on the auth domain.
    pub(super) async fn saml_provider(&self, rest: &str) -> Response<Bytes> {
        let (name, endpoint) = rest.split_once('/').unwrap_or((rest, ""));
        let provider =
            self.active.provider(name).filter(|provider| matches!(provider.kind, ProviderKind::Saml(_)));
        let Some(provider) = provider else {
            return self.refuse(StatusCode::NOT_FOUND, Reason::NoApplication);
        };
        let upstream = match self.portal.providers.upstream(&self.active, &self.site, provider) {
            Ok(upstream) => upstream,
            Err(error) => return self.failed(&error, &provider.name, None),
        };
        let Some(Upstream::Saml(saml)) = upstream.as_deref() else {
            return self.refuse(StatusCode::NOT_FOUND, Reason::NoApplication);
        };
        let at = At { provider, saml };
        match (endpoint, &self.visit.method) {
            ("acs", &Method::POST) => self.consume(at).await,
            ("resume", &Method::GET) => self.consumed(at).await,
            ("logout", &(Method::GET | Method::POST)) => self.provider_logout(at).await,
            ("saml-metadata", &(Method::GET | Method::HEAD)) => {
                let keys = self.context.saml.keys();
                let certificates: Vec<Certificate> = keys.certificates().cloned().collect();
                page::document("application/samlmetadata+xml", saml.document(&certificates))
            }
            ("acs", _) => self.method_of_saml("POST"),
            ("resume", _) => self.method_of_saml("GET"),
            ("logout", _) => self.method_of_saml("GET, POST"),
            ("saml-metadata", _) => self.method_of_saml("GET, HEAD"),
            _ => self.refuse(StatusCode::NOT_FOUND, Reason::NoApplication),
        }
    }

    pub(super) fn method_of_saml(&self, allow: &'static str) -> Response<Bytes> {
        let mut response = self.refuse(StatusCode::METHOD_NOT_ALLOWED, Reason::BadRequest);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
        response
    }

    async fn consume(&self, at: At<'_>) -> Response<Bytes> {
        // What a page sends by script, or in a frame of its own, is nobody's login.
        let is = |name, wanted| self.header(name).is_none_or(|value| value == wanted);
        if !is("sec-fetch-mode", "navigate") || !is("sec-fetch-dest", "document") {
            let (status, reason) = (StatusCode::BAD_REQUEST, Reason::BadRequest);
            let event = self.event(Action::Login, false).reason(reason).status(status.as_u16());
            let event = event.provider(&at.provider.name).detail("sent by a page, not by its visitor");
            self.context.events.emit(event);
            return self.refuse(status, reason);
        }
        match self.accept(at).await {
            Ok(code) => {
                let here = format!("{PREFIX}saml/{}/resume?code={code}", at.provider.name);
                page::redirect(StatusCode::SEE_OTHER, &here)
            }
            Err(error) => self.failed(&error, &at.provider.name, None),
        }
    }

    /// Verifies the answer and keeps what it says under the code that comes back.
    async fn accept(&self, at: At<'_>) -> Result<String, LoginError> {
        let fault = |what: &str| LoginError::Answer(what.to_owned());
        let internal = |error: crate::store::StoreError| LoginError::Internal(error.to_string());
        // Before anything is parsed, verified or decrypted.
        self.charge(&self.portal.assertions)?;
        let form = Parameters::of_form(&self.visit.headers, &self.visit.body);
        let form = form.ok_or_else(|| fault("not a form"))?;
        let message = form.one(Kind::Response.parameter()).ok_or_else(|| fault("no SAMLResponse, or two"))?;
        let keys = self.context.saml.keys();
        let accepted = at.saml.accept(message, &keys.decrypters(), self.now).await?;
        let (once, until) = accepted.once();
        if !self.context.store.use_once(ASSERTION, &hash(&once), until, self.now).await.map_err(internal)? {
            return Err(fault("it was used before"));
        }
        self.refund(&self.portal.assertions);
        let attempt = accepted.attempt().map(str::to_owned);
        let kept = self.keep_for_code(CODE, attempt, &accepted, self.now.after(CODE_LIFE)).await;
        kept.map_err(LoginError::Internal)
    }

    /// The browser comes for what its provider's answer says.
    async fn consumed(&self, at: At<'_>) -> Response<Bytes> {
        let name = &at.provider.name;
        match self.fetched().await {
            Ok((attempt, accepted)) => self.conclude(name, attempt, Answer::Saml(Box::new(accepted))).await,
            Err(error) => self.failed(&error, name, None),
        }
    }

    /// What is kept under the code, with the attempt of this browser that it answers. One of another browser spends nothing.
    async fn fetched(&self) -> Result<(Option<Attempt>, Accepted), LoginError> {
        let query = Parameters::of_query(self.visit.query.as_deref());
        let text = query.one("code").unwrap_or_default();
        let code = self.code(CODE, text).ok_or(LoginError::State)?;
        let attempt = match &code.holder {
            Some(attempt) => Some(self.attempt(attempt).ok_or(LoginError::State)?),
            None => None,
        };
        self.charge_answer(text)?;
        let kept = self.take(CODE, &code).await.map_err(|error| LoginError::Internal(error.to_string()))?;
        Ok((attempt, kept.ok_or(LoginError::State)?))
    }

    /// A logout message of the provider's. It names the sessions it ends, so that no cookie is needed.
    async fn provider_logout(&self, at: At<'_>) -> Response<Bytes> {
        let message = match self.logout_message(at).await {
            Ok(message) => message,
            Err(error) => return self.logout_refused(at, &error),
        };
        match message {
            LogoutMessage::Response { ended } => {
                if !ended {
                    tracing::info!(provider = at.provider.name, "the provider did not end its session");
                }
                self.logout_goes_on()
            }
            LogoutMessage::Request { id, name_id, sessions, issued_at, over_at, relay_state } => {
                let named = Named { name_id: &name_id, indexes: sessions, issued_at };
                if let Err(error) = self.end_once(at, (&id, over_at), named).await {
                    return self.logout_refused(at, &error);
                }
                let keys = self.context.saml.keys();
                let signer = keys.signer(self.now);
                match at.saml.logged_out(&id, relay_state.as_deref(), signer, self.now).await {
                    Ok(Some(onward)) => self.onward_to(&at.provider.label, onward, StatusCode::SEE_OTHER),
                    Ok(None) => self.signed_out_page(),
                    Err(error) => self.logout_refused(at, &error),
                }
            }
        }
    }

    async fn logout_message(&self, at: At<'_>) -> Result<LogoutMessage, LoginError> {
        let fault = |what: &str| LoginError::Answer(what.to_owned());
        self.charge(&self.portal.logouts)?;
        let message = if self.visit.method == Method::POST {
            let form = Parameters::of_form(&self.visit.headers, &self.visit.body);
            let form = form.ok_or_else(|| fault("not a form"))?;
            let (kind, text) = match (form.one("SAMLRequest"), form.one("SAMLResponse")) {
                (Some(text), None) if !form.has("SAMLResponse") => (Kind::Request, text),
                (None, Some(text)) if !form.has("SAMLRequest") => (Kind::Response, text),
                _ => return Err(fault("no message, or two")),
            };
            if form.has("RelayState") && form.one("RelayState").is_none() {
                return Err(fault("two RelayState"));
            }
            let receive = |keys: &[Certificate]| saml::of_form(text, form.one("RelayState"), keys);
            at.saml.logout_message(kind, receive, self.now).await?
        } else {
            let raw = self.visit.query.as_deref().unwrap_or_default();
            let query = Parameters::of_query(Some(raw));
            let kind = match (query.has("SAMLRequest"), query.has("SAMLResponse")) {
                (true, false) => Kind::Request,
                (false, true) => Kind::Response,
                _ => return Err(fault("no message, or two")),
            };
            let receive = |keys: &[Certificate]| saml::of_query(raw, kind, keys);
            at.saml.logout_message(kind, receive, self.now).await?
        };
        Ok(message)
    }

    /// Ends what the request `id` names. It is spent only then: one that could not be done may be sent again, and to
    /// end the same sessions twice at a time changes nothing.
    async fn end_once(
        &self,
        at: At<'_>,
        (id, over_at): (&str, UnixTime),
        named: Named<'_>,
    ) -> Result<(), LoginError> {
        let internal = |error: crate::store::StoreError| LoginError::Internal(error.to_string());
        let once = hash(&format!("{}\n{id}", at.provider.name));
        if self.context.store.was_used(LOGOUT, &once, self.now).await.map_err(internal)? {
            return Err(LoginError::Answer("it was used before".to_owned()));
        }
        // Whoever sends what needs no signature, or was sent before, has paid for it.
        self.refund(&self.portal.logouts);
        self.end_sessions(at, named).await?;
        self.context.store.use_once(LOGOUT, &once, over_at, self.now).await.map_err(internal).map(drop)
    }

    async fn end_sessions(&self, at: At<'_>, named: Named<'_>) -> Result<(), LoginError> {
        let internal = |error: crate::store::StoreError| LoginError::Internal(error.to_string());
        let Named { name_id, indexes, issued_at } = named;
        let until = self.now.after(LATEST).after(CODE_LIFE);
        let store = &self.context.store;
        let sessions =
            store.ended_at_provider(&at.provider.name, name_id, indexes, (issued_at, until), self.now).await;
        for id in sessions.map_err(internal)? {
            let ended = self.context.sessions.revoke(&SessionFilter::Id(id), self.now).await;
            for session in ended.map_err(internal)? {
                let event = self.event(Action::Logout, true).session(&session);
                self.context.events.emit(event.detail("asked for by the identity provider"));
            }
        }
        Ok(())
    }

    fn logout_refused(&self, at: At<'_>, error: &LoginError) -> Response<Bytes> {
        let status = match error {
            LoginError::Unavailable(_) | LoginError::Internal(_) => StatusCode::SERVICE_UNAVAILABLE,
            LoginError::Throttled { .. } => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::BAD_REQUEST,
        };
        let event = self.event(Action::Logout, false).reason(error.reason()).status(status.as_u16());
        self.context.events.emit(event.provider(&at.provider.name).detail(error.to_string()));
        self.refuse(status, error.reason())
    }
}

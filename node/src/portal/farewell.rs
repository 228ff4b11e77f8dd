//! A logout that goes on elsewhere: `logout/onward` on the auth domain leads the browser to each application that takes
//! logouts through it and in no other way, and at last to the identity provider. The node's own session has ended before,
//! whatever becomes of this.
//!
//! ```text
//! node                                              elsewhere
//! 1 the session ends; who remains is sealed ─┐
//! 2 onward: the next of them, LogoutRequest ─┴────▶ 3 ends its session
//! 4 its logout endpoint at the node ◀────────────── LogoutResponse
//! 5 (303) back to 2, until nobody remains: the page that says so
//! ```
//!
//! Whoever does not send the browser back ends the round; who has been asked until then has been asked.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::cookie::{self, SetCookie};
use crate::event::Action;
use crate::flow::{Kind, SaasProtocol, SamlService, Session, SessionId, UnixTime};
use crate::identity::LoginError;
use crate::identity::upstream::Upstream;
use crate::saas::saml::Endpoint;
use crate::saml::Onward;

use super::browser::set_cookies;
use super::form::Parameters;
use super::login::ATTEMPT_LIFE;
use super::page::{self, Frame, MessagePage};
use super::target::hash;
use super::{Call, PREFIX};

const COOKIE: &str = "__Host-CF_Logout";
const PURPOSE: &str = "logout elsewhere";
const ROUND: &str = "round";
const ONWARD: &str = "logout/onward";
/// Applications of one round: their names travel in a cookie.
const MOST: usize = 16;

/// Who has not been asked yet.
#[derive(Serialize, Deserialize)]
struct Round {
    session: SessionId,
    applications: Vec<String>,
    provider: bool,
    expires_at: UnixTime,
}

impl Call<'_> {
    /// The page after the end of `session`: it goes on by itself where somebody elsewhere is to hear of it.
    pub(super) async fn farewell(&self, session: &Session) -> Response<Bytes> {
        let round = match self.round(session).await {
            Ok(round) => round,
            Err(error) => {
                tracing::error!(%error, "applications cannot be led to for a logout");
                return self.logged_out();
            }
        };
        if round.applications.is_empty() && !round.provider {
            return self.logged_out();
        }
        let Ok(sealed) = self.context.seal.seal(PURPOSE, &round) else { return self.logged_out() };
        // On the auth domain it is kept in a cookie. Elsewhere it goes by an address, which counts in a browser that has
        // the cookie of that session on the auth domain.
        let by_cookie = self.visit.host == self.site.auth;
        let onward = self.site.endpoint(&self.site.auth, ONWARD);
        let onward = if by_cookie { onward } else { format!("{onward}?{ROUND}={sealed}") };
        let page = MessagePage {
            frame: Frame::new(Some(&self.site.auth), self.visit.ray),
            title: "You are signed out",
            texts: &["Signing you out elsewhere too."],
            facts: &[],
            confirm: None,
            links: &[("Continue", &onward)],
            onward: Some(&onward),
        };
        let mut response = page::html(StatusCode::OK, &page, &[]);
        self.forget(&mut response);
        if by_cookie {
            let kept = SetCookie::new(COOKIE, &sealed).until(round.expires_at, self.now);
            set_cookies(&mut response, [kept]);
        }
        response
    }

    async fn round(&self, session: &Session) -> Result<Round, crate::store::StoreError> {
        let logins = self.context.store.saas_logins(vec![session.id]).await?;
        let mut applications = Vec::new();
        for login in logins {
            if applications.len() < MOST && self.front_channel(&login.application).await.is_some() {
                applications.push(login.application);
            }
        }
        let provider = self.context.store.provider_login(session.id).await?.is_some();
        Ok(Round { session: session.id, applications, provider, expires_at: self.now.after(ATTEMPT_LIFE) })
    }

    /// The application called `name`, if it takes logouts through the browser and in no other way.
    async fn front_channel(&self, name: &str) -> Option<Arc<SamlService>> {
        let application = self.active.policies.application(name)?;
        let Kind::Saas(saas) = &application.kind else { return None };
        let SaasProtocol::Saml(saml) = &saas.protocol else { return None };
        let service = match self.context.metadata.service(saml, self.now).await {
            Ok(service) => service,
            Err(error) => {
                tracing::warn!(application = name, %error, "an application cannot be told of a logout");
                return None;
            }
        };
        let is_asked_so = service.logout.soap.is_none() && service.logout.requests.is_some();
        is_asked_so.then_some(service)
    }

    /// Back from somewhere: on to the next.
    pub(super) fn logout_goes_on(&self) -> Response<Bytes> {
        page::redirect(StatusCode::SEE_OTHER, &format!("{PREFIX}{ONWARD}"))
    }

    /// `logout/onward`.
    pub(super) async fn onward_logout(&self) -> Response<Bytes> {
        let query = Parameters::of_query(self.visit.query.as_deref());
        let by_address = query.one(ROUND);
        let sealed = by_address.or_else(|| cookie::read_one(&self.visit.headers, COOKIE));
        let is_own = |round: &Round| by_address.is_none() || self.bindings().any(|id| id == round.session);
        let round = sealed
            .and_then(|sealed| self.context.seal.open::<Round>(PURPOSE, sealed))
            .filter(|round| round.expires_at > self.now && is_own(round));
        let round = match round {
            Some(round) => self.first_time(round).await,
            None => None,
        };
        let Some(mut round) = round else {
            // Whoever is logged in is not told otherwise.
            return match self.global_session() {
                Some(_) => page::redirect(StatusCode::SEE_OTHER, "/"),
                None => self.signed_out_page(),
            };
        };
        let next = loop {
            if let Some(name) = round.applications.pop() {
                if let Some(onward) = self.farewell_to(&name, round.session).await {
                    break Some((name, onward));
                }
            } else if round.provider {
                round.provider = false;
                if let Some(onward) = self.farewell_to_provider(round.session).await {
                    break Some(onward);
                }
            } else {
                break None;
            }
        };
        let (mut response, kept) = match next {
            Some((name, onward)) => {
                let sealed = self.context.seal.seal(PURPOSE, &round).ok();
                (self.onward_to(&name, onward, StatusCode::SEE_OTHER), sealed)
            }
            None => (self.signed_out_page(), None),
        };
        let kept = match kept {
            Some(sealed) => SetCookie::new(COOKIE, &sealed).until(round.expires_at, self.now),
            None => SetCookie::clear(COOKIE, "/"),
        };
        set_cookies(&mut response, [kept]);
        response
    }

    /// Each step once: every one costs a signature and an event.
    async fn first_time(&self, round: Round) -> Option<Round> {
        let step = hash(&format!("{} {} {}", round.session, round.applications.len(), round.provider));
        match self.context.store.use_once(PURPOSE, &step, round.expires_at, self.now).await {
            Ok(first) => first.then_some(round),
            Err(error) => {
                tracing::error!(%error, "a logout cannot go on elsewhere");
                None
            }
        }
    }

    async fn farewell_to(&self, name: &str, session: SessionId) -> Option<Onward> {
        let service = self.front_channel(name).await?;
        let name_id = match self.context.store.saml_login(session, name).await {
            Ok(name_id) => name_id?,
            Err(error) => {
                tracing::error!(application = name, %error, "an application cannot be told of a logout");
                return None;
            }
        };
        let sign_in = crate::saas::saml::sign_in(&self.active.config.node, &service.name);
        let endpoint = Endpoint { sign_in: &sign_in };
        let onward =
            self.context.saml.end_session_by_browser(&service, endpoint, session, &name_id, self.now)?;
        let application = self.active.policies.application(name)?;
        let event = self.event(Action::Logout, true).application(application);
        self.context.events.emit(event.detail("front-channel logout"));
        Some(onward)
    }

    async fn farewell_to_provider(&self, session: SessionId) -> Option<(String, Onward)> {
        match self.end_at_provider(session).await {
            Ok(onward) => onward,
            Err(error) => {
                tracing::warn!(%error, "the identity provider cannot be told of a logout");
                None
            }
        }
    }

    async fn end_at_provider(&self, session: SessionId) -> Result<Option<(String, Onward)>, LoginError> {
        let login = self.context.store.provider_login(session).await;
        let login = login.map_err(|error| LoginError::Internal(error.to_string()))?;
        let Some((name, login)) = login else { return Ok(None) };
        let Some(provider) = self.active.provider(&name) else { return Ok(None) };
        let upstream = self.portal.providers.upstream(&self.active, &self.site, provider)?;
        let Some(Upstream::Saml(saml)) = upstream.as_deref() else { return Ok(None) };
        let keys = self.context.saml.keys();
        let onward = saml.end(&login, keys.signer(self.now), self.now).await?;
        Ok(onward.map(|onward| (provider.label.clone(), onward)))
    }
}

//! A logout that an application asks for (OpenID Connect RP-Initiated Logout 1.0).
//!
//! It ends the login at the node, and so every other application's. With an ID token of this very session as a hint it does
//! so at once; otherwise anybody's page could have sent the browser here, and the person is asked. Only then, and only to an
//! address that the client has registered, does the browser go back.

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::event::Action;
use crate::flow::{Reason, SessionId, UnixTime};
use crate::portal::form::Parameters;
use crate::portal::handover::known_as;
use crate::portal::login::ATTEMPT_LIFE;
use crate::portal::page::{self, Confirm, Frame, MessagePage};
use crate::session::LiveSession;
use crate::store::SessionFilter;

use super::Provider;

const PURPOSE: &str = "oidc logout";
const RESUME: &str = "resume";
/// Characters of the longest `state`.
const LONGEST_STATE: usize = 1024;

/// A logout that was asked for.
#[derive(Serialize, Deserialize)]
struct Wish {
    client: String,
    /// Where to go then, in full.
    onward: Option<String>,
    /// The session that a valid hint was about.
    hinted: Option<SessionId>,
    expires_at: UnixTime,
}

impl Provider<'_> {
    pub(super) async fn end_session(&self) -> Response<Bytes> {
        let call = self.call;
        let query = Parameters::of_query(call.visit.query.as_deref());
        let resumed = query.one(RESUME).and_then(|text| call.context.seal.open::<Wish>(PURPOSE, text));
        let resumed = resumed.filter(|wish| wish.expires_at > call.now && wish.client == self.client.id);
        let by_post = call.visit.method == Method::POST;
        let form = match by_post {
            true => Parameters::of_form(&call.visit.headers, &call.visit.body),
            false => None,
        };
        match (resumed, form) {
            (Some(wish), form) => {
                let ticket = form.as_ref().and_then(|form| form.one("ticket"));
                self.log_out(wish, ticket).await
            }
            (None, _) if query.has(RESUME) => {
                self.own_page(StatusCode::BAD_REQUEST, Reason::BadState, "a logout that is too old")
            }
            // With a form of another site comes no cookie: it goes on as a visit to this same host.
            (None, Some(form)) => match self.wish(&form) {
                Ok(wish) => self.resumption(&wish),
                Err(why) => self.own_page(StatusCode::BAD_REQUEST, Reason::BadRequest, why),
            },
            (None, None) if by_post => self.own_page(StatusCode::BAD_REQUEST, Reason::BadRequest, "no form"),
            (None, None) => match self.wish(&query) {
                Ok(wish) => self.resumption(&wish),
                Err(why) => self.own_page(StatusCode::BAD_REQUEST, Reason::BadRequest, why),
            },
        }
    }

    /// Checks what is asked for.
    fn wish(&self, parameters: &Parameters) -> Result<Wish, &'static str> {
        if parameters.has("client_id") && parameters.one("client_id") != Some(self.client.id.as_str()) {
            return Err("the client is not the one of this address");
        }
        let hinted = match parameters.one("id_token_hint") {
            None if parameters.has("id_token_hint") => return Err("`id_token_hint` is there twice"),
            None => None,
            Some(hint) => Some(self.hinted(hint).ok_or("`id_token_hint` is not a token for this client")?),
        };
        let onward = match parameters.one("post_logout_redirect_uri") {
            None if parameters.has("post_logout_redirect_uri") => return Err("an address is there twice"),
            None => None,
            Some(uri) if !self.client.post_logout_redirect_uris.iter().any(|known| known == uri) => {
                return Err("the address to return to is not one of the client's");
            }
            Some(uri) => Some(match parameters.one("state") {
                Some(state) if state.len() > LONGEST_STATE => return Err("`state` is too long"),
                Some(state) => {
                    let glue = if uri.contains('?') { '&' } else { '?' };
                    let state = url::form_urlencoded::Serializer::new(String::new())
                        .append_pair("state", state)
                        .finish();
                    format!("{uri}{glue}{state}")
                }
                None => uri.to_owned(),
            }),
        };
        let expires_at = self.call.now.after(ATTEMPT_LIFE);
        Ok(Wish { client: self.client.id.clone(), onward, hinted, expires_at })
    }

    /// The session of an ID token of this client, expired or not.
    fn hinted(&self, hint: &str) -> Option<SessionId> {
        let claims = self.call.context.tokens.hinted(hint, self.call.now)?;
        let is = |name: &str, value: &str| claims.get(name).and_then(|claim| claim.as_str()) == Some(value);
        if !is("iss", &self.issuer) || !is("aud", &self.client.id) {
            return None;
        }
        claims.get("sid")?.as_str()?.parse().ok()
    }

    fn resumption(&self, wish: &Wish) -> Response<Bytes> {
        match self.call.context.seal.seal(PURPOSE, wish) {
            Ok(sealed) => {
                let here = format!("{}?{RESUME}={sealed}", self.path("end_session"));
                page::redirect(StatusCode::SEE_OTHER, &here)
            }
            Err(error) => {
                self.own_page(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal, &error.to_string())
            }
        }
    }

    async fn log_out(&self, wish: Wish, ticket: Option<&str>) -> Response<Bytes> {
        let call = self.call;
        let Some(live) = call.global_session() else { return self.gone(&wish) };
        let meant = wish.hinted == Some(live.session.id)
            || ticket.is_some_and(|ticket| call.is_logout_ticket(ticket, &live.session));
        if !meant {
            return self.ask(&wish, &live);
        }
        match call.context.sessions.revoke(&SessionFilter::Id(live.session.id), call.now).await {
            Ok(_) => {
                let event = call.event(Action::Logout, true).session(&live.session);
                let event = event.application(self.application).detail("asked for by the application");
                call.context.events.emit(event);
                self.gone(&wish)
            }
            Err(error) => {
                let event = call.event(Action::Logout, false).session(&live.session);
                call.context.events.emit(event.reason(Reason::Internal).detail(error.to_string()));
                call.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal)
            }
        }
    }

    /// Nobody is logged in now.
    fn gone(&self, wish: &Wish) -> Response<Bytes> {
        let Some(onward) = &wish.onward else { return self.call.logged_out() };
        let status = match self.call.visit.method {
            Method::POST => StatusCode::SEE_OTHER,
            _ => StatusCode::FOUND,
        };
        let mut response = page::redirect(status, onward);
        self.call.forget(&mut response);
        response
    }

    fn ask(&self, wish: &Wish, live: &LiveSession) -> Response<Bytes> {
        let Some(ticket) = self.call.logout_ticket(&live.session) else {
            return self.call.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal);
        };
        let page = MessagePage {
            frame: Frame::new(Some(&self.call.site.auth), self.call.visit.ray),
            title: "Sign out?",
            texts: &["You will be signed out of every application behind this access node."],
            facts: &[("Signed in as", known_as(&live.session)), ("Asked for by", &self.application.name)],
            confirm: Some(Confirm { ticket, label: "Sign out" }),
            links: &[],
            onward: None,
        };
        let targets: Vec<String> = wish.onward.iter().map(|uri| page::form_target(uri)).collect();
        page::html(StatusCode::OK, &page, &targets)
    }
}

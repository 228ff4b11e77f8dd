//! What a client that is logged in may ask: who it is, what is open to it, and a token for one application.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, header};

use crate::access::wire::{self, AppRow, ApplicationToken, GlobalToken, WhoAmI};
use crate::clients::LiveClient;
use crate::event::Action;
use crate::flow::{Application, Facts, Host, Kind, Path, Reason, UnixTime};
use crate::policy::{Decision, decide};
use crate::token::{Kind as TokenKind, dpop};

use super::super::Call;
use super::super::form::Parameters;
use super::{Refusal, json};

const PROOF: &str = "client proof";

/// How long a global token is good at the most.
const GLOBAL_LIFE: Duration = Duration::from_secs(3600);

impl Call<'_> {
    pub(super) async fn whoami(&self) -> Response<Bytes> {
        let client = match self.client(wire::WHOAMI).await {
            Ok(client) => client,
            Err(refusal) => return self.refuse_client(&refusal, self.event(Action::Request, false)),
        };
        let session = &client.session;
        let answer = WhoAmI {
            id: session.person.to_string(),
            name: session.display_name.clone(),
            email: session.email.as_ref().map(ToString::to_string),
            groups: session.groups.clone(),
            provider: session.person.provider.clone(),
            device: client.client.name.clone(),
            login_expires_at: session.expires_at.0,
        };
        json(StatusCode::OK, &answer)
    }

    pub(super) async fn apps(&self) -> Response<Bytes> {
        let client = match self.client(wire::APPS).await {
            Ok(client) => client,
            Err(refusal) => return self.refuse_client(&refusal, self.event(Action::Request, false)),
        };
        let rows: Vec<AppRow> = self
            .active
            .policies
            .applications()
            .filter(|application| application.launcher)
            .filter(|application| matches!(self.decision(application, &client), Decision::Allow(_)))
            .map(|application| AppRow {
                name: application.name.clone(),
                kind: kind_of(application).to_owned(),
                url: application.address().map(|(host, path)| {
                    format!("{}{}", self.site.origin(host), path.strip_suffix('/').unwrap_or(path))
                }),
            })
            .collect();
        json(StatusCode::OK, &rows)
    }

    /// A token for one application, where policy lets the person in from here.
    pub(super) async fn app_token(&self) -> Response<Bytes> {
        let client = match self.client(wire::APP_TOKEN).await {
            Ok(client) => client,
            Err(refusal) => return self.refuse_client(&refusal, self.event(Action::Request, false)),
        };
        let event = self.event(Action::Request, false).session(&client.session);
        let form = Parameters::of_form(&self.visit.headers, &self.visit.body);
        let wanted = form.as_ref().and_then(|form| form.one("app"));
        // An application elsewhere has no host that would take a token of ours.
        let named = wanted.and_then(|wanted| self.named(wanted));
        let Some((application, host)) = named.filter(|(named, _)| !matches!(named.kind, Kind::Saas(_)))
        else {
            let refusal =
                Refusal::new("invalid_target", Reason::NoApplication, "there is no such application")
                    .status(StatusCode::NOT_FOUND);
            return self.refuse_client(&refusal, event);
        };
        let event = event.application(&application);
        let denied = |reason: Reason, words: &str| {
            Refusal::new("access_denied", reason, words).status(StatusCode::FORBIDDEN)
        };
        let permit = match self.decision(&application, &client) {
            Decision::Allow(permit) => permit,
            Decision::Deny(denial) => {
                let event = match &denial.policy {
                    Some(policy) => event.policy(policy),
                    None => event,
                };
                let words = format!("policy does not open {} to you", application.name);
                return self.refuse_client(&denied(denial.reason, &words), event);
            }
            Decision::Login(_) => {
                return self.refuse_client(&denied(Reason::NoSession, "it takes another login"), event);
            }
        };
        let login = Some(client.client.id);
        let token = match self.context.tokens.mint_application_for_client(&permit, login, self.now) {
            Ok(Some(token)) => token,
            Ok(None) => {
                let words = "the application is open to everybody: it takes no token";
                return Refusal::new("no_token", Reason::BadRequest, words).response();
            }
            Err(error) => return self.refuse_client(&Refusal::fault(error), event),
        };
        // First the store: who revokes by application has to find it.
        if let Err(error) = self.context.sessions.granted(client.session.id, &application.name).await {
            return self.refuse_client(&Refusal::fault(error), event);
        }
        let event = self.event(Action::Request, true).session(&client.session).application(&application);
        self.context.events.emit(event.policy(permit.policy()).status(200).detail("a token for its device"));
        let answer = ApplicationToken {
            application: application.name.clone(),
            host: host.map_or_else(String::new, |host| host.to_string()),
            aud: application.aud.as_str().to_owned(),
            expires_in: permit.token_expires_at().since(self.now).as_secs(),
            token,
        };
        json(StatusCode::OK, &answer)
    }

    /// A token that is worth tokens for every application that policy opens. `cloudflared` sends it from a file, where nothing
    /// binds it to the device's key, and older versions to wherever they are redirected: it ends within [`GLOBAL_LIFE`], and
    /// with the device's login.
    pub(super) async fn global_token(&self) -> Response<Bytes> {
        let client = match self.client(wire::GLOBAL_TOKEN).await {
            Ok(client) => client,
            Err(refusal) => return self.refuse_client(&refusal, self.event(Action::Request, false)),
        };
        let session = &client.session;
        let expires_at = session.expires_at.min(self.now.after(GLOBAL_LIFE));
        let tokens = &self.context.tokens;
        let token = match tokens.mint_global_for_client(session, client.client.id, expires_at, self.now) {
            Ok(token) => token,
            Err(error) => {
                let event = self.event(Action::Request, false).session(session);
                return self.refuse_client(&Refusal::fault(error), event);
            }
        };
        let event = self.event(Action::Request, true).session(session);
        self.context.events.emit(event.status(200).detail("a global token for its device"));
        let answer = GlobalToken {
            host: self.site.auth.to_string(),
            expires_in: expires_at.since(self.now).as_secs(),
            token,
        };
        json(StatusCode::OK, &answer)
    }

    /// The client behind a request: a token of ours, bound to the key that proves this very request, and a login that is
    /// live. A proof is good once.
    async fn client(&self, endpoint: &str) -> Result<LiveClient, Refusal> {
        let invalid = |reason, words: &str| {
            Refusal::new("invalid_token", reason, words).status(StatusCode::UNAUTHORIZED)
        };
        let token = self
            .only(&header::AUTHORIZATION)
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(dpop::SCHEME))
            .map(|(_, token)| token)
            .ok_or_else(|| invalid(Reason::NoSession, "there is no token"))?;
        let (proof, _) = self.proof(endpoint, Some(token)).map_err(|r| r.status(StatusCode::UNAUTHORIZED))?;
        let claims = self
            .context
            .tokens
            .verify(token, TokenKind::Client, self.now)
            .map_err(|error| invalid(Reason::BadToken, &error.to_string()))?;
        if !claims.is_bound_to(&proof.key) {
            return Err(invalid(Reason::BadBinding, "the token is for another key"));
        }
        let client = claims
            .client_login
            .and_then(|id| self.context.clients.get(id, self.now))
            .filter(|client| client.session.id == claims.identity_nonce && client.client.key == proof.key)
            .ok_or_else(|| invalid(Reason::SessionEnded, "the login has ended"))?;
        self.charge_write(&client.session).map_err(|_| Refusal::too_fast())?;
        // Only now: strangers can make the store remember nothing.
        let until = UnixTime(self.now.0.saturating_add(2 * dpop::WINDOW + 1));
        match self.context.store.use_once(PROOF, &proof.id, until, self.now).await {
            Ok(true) => Ok(client),
            Ok(false) => {
                Err(Refusal::new("invalid_dpop_proof", Reason::BadState, "the proof was used before")
                    .status(StatusCode::UNAUTHORIZED))
            }
            Err(error) => Err(Refusal::fault(error)),
        }
    }

    fn decision(&self, application: &Application, client: &LiveClient) -> Decision {
        let facts =
            Facts { application, session: Some(&client.session), service: None, address: self.visit.address };
        decide(&self.active.policies, &facts, self.now)
    }

    /// The application that a person names: by its name, or by an address of it with or without `https://`.
    fn named(&self, text: &str) -> Option<(Arc<Application>, Option<Host>)> {
        if let Some(application) = self.active.policies.application(text) {
            let host = application.address().map(|(host, _)| host.clone());
            return Some((Arc::clone(application), host));
        }
        let rest = text.strip_prefix("https://").unwrap_or(text);
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let path = path.split(['?', '#']).next().filter(|path| !path.is_empty()).unwrap_or("/");
        let (host, _) = Host::parse_authority(authority).ok()?;
        let path = Path::parse(path, self.active.policies.passes_encoded_slash(&host)).ok()?;
        let application = self.active.policies.route(&host, &path)?;
        Some((Arc::clone(application), Some(host)))
    }
}

/// As in the configuration.
const fn kind_of(application: &Application) -> &'static str {
    match &application.kind {
        Kind::Web(_) => "web",
        Kind::Private(private) => private.protocol.as_str(),
        Kind::Saas(_) => "saas",
    }
}

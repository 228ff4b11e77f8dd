//! SAML 2.0 (web browser SSO profile): an identity provider elsewhere, the node as its service provider.
//!
//! 1. [`SamlUpstream::start`] makes the request and the [`Secrets`] that the browser keeps, sealed, until it comes back.
//! 2. The provider's page posts its answer to the node, from another site: without any of the node's cookies.
//!    [`SamlUpstream::accept`] verifies it, and what it says is kept under a one-time code.
//! 3. The browser comes with that code, and with what it kept; [`SamlUpstream::finish`] holds the one against the other.
//!
//! Keys come from the provider's metadata, a file or an address, and nothing else is asked of the provider.

mod attributes;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::fill;
use crate::flow::{SamlBinding, UnixTime};
use crate::published::{Published, Unpublished};
use crate::saml::{
    self, Ask, BindingError, Certificate, Decrypter, Envelope, Expected, Kind, LogoutRequest, LogoutResponse,
    NameId, Onward, OwnServiceProvider, Provider, Received, ResponseError, SKEW, Service, Signer,
};

use super::{Authenticated, LoginError, ProviderLogin};

pub use attributes::AttributeRules;

/// A logout request or an answer may have been under way for this many seconds: as long as an attempt may take.
const OLDEST: i64 = 600;
/// From its logout on, for so long an answer that the provider gave before may still come to be accepted.
pub const LATEST: Duration = Duration::from_secs(OLDEST.unsigned_abs() + SKEW.unsigned_abs());
/// Characters of the name of an attempt.
const ATTEMPT: usize = 16;

/// Where a provider's metadata is.
#[derive(Debug, Clone)]
pub enum MetadataSource {
    /// Read with the configuration.
    File(Arc<Provider>),
    Url(String),
}

/// How to reach one provider, from the configuration, and where the node takes its answers.
pub struct SamlSettings<'a> {
    pub name: &'a str,
    pub(crate) metadata: Source,
    pub rules: AttributeRules,
    pub sign_requests: bool,
    pub allow_unsolicited: bool,
    /// The first that the provider takes, unless said.
    pub binding: Option<SamlBinding>,
    pub name_id_format: Option<&'static str>,
    /// The node's entity ID.
    pub entity_id: String,
    /// The node's assertion consumer service.
    pub consumer: String,
    /// The node's logout service.
    pub logout: String,
}

/// One provider.
pub struct SamlUpstream {
    name: String,
    metadata: Source,
    rules: AttributeRules,
    sign_requests: bool,
    allow_unsolicited: bool,
    binding: Option<SamlBinding>,
    name_id_format: Option<&'static str>,
    entity_id: String,
    consumer: String,
    logout: String,
}

/// A provider's metadata, where the node has it from.
pub(crate) enum Source {
    File(Arc<Provider>),
    Published(Arc<Published<Provider>>),
}

/// What the browser keeps of a request.
#[derive(Serialize, Deserialize)]
pub struct Secrets {
    /// ID of the request.
    request: String,
    /// Only a proof since then does.
    anew_since: Option<UnixTime>,
}

/// What a verified answer says. Kept by the node until the browser comes for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Accepted {
    provider: String,
    in_response_to: Option<String>,
    assertion: String,
    over_at: UnixTime,
    person: Authenticated,
}

/// A logout message of the provider's.
#[derive(Debug)]
pub enum LogoutMessage {
    Request {
        id: String,
        name_id: NameId,
        sessions: Vec<String>,
        /// By the provider's clock, and not after the node heard of it.
        issued_at: UnixTime,
        over_at: UnixTime,
        relay_state: Option<String>,
    },
    /// Whether it ended its own session.
    Response { ended: bool },
}

impl SamlUpstream {
    pub fn new(settings: SamlSettings<'_>) -> Self {
        Self {
            name: settings.name.to_owned(),
            metadata: settings.metadata,
            rules: settings.rules,
            sign_requests: settings.sign_requests,
            allow_unsolicited: settings.allow_unsolicited,
            binding: settings.binding,
            name_id_format: settings.name_id_format,
            entity_id: settings.entity_id,
            consumer: settings.consumer,
            logout: settings.logout,
        }
    }

    async fn provider(&self, now: UnixTime) -> Result<Arc<Provider>, LoginError> {
        let provider = match &self.metadata {
            Source::File(provider) => Arc::clone(provider),
            Source::Published(published) => published.current(now).await.map_err(|e| unavailable(&e))?,
        };
        match provider.validity.until {
            Some(until) if until <= now => Err(unavailable(&Unpublished::Over(until.0))),
            _ => Ok(provider),
        }
    }

    /// The provider with keys newer than those of `seen`, where there may be such.
    async fn newer(&self, seen: &Arc<Provider>, now: UnixTime) -> Result<Arc<Provider>, LoginError> {
        match &self.metadata {
            Source::File(provider) => Ok(Arc::clone(provider)),
            Source::Published(published) => published.newer(seen, now).await.map_err(|e| unavailable(&e)),
        }
    }

    /// Whether requests cost a signature.
    pub fn signs(&self) -> bool {
        self.sign_requests
    }

    /// What sends the browser to the provider for an attempt named `attempt`, and what must be kept meanwhile. With `fresh`,
    /// a login that the provider remembers does not do.
    pub async fn start(
        &self,
        attempt: &str,
        fresh: bool,
        key: &dyn Signer,
        now: UnixTime,
    ) -> Result<(Onward, Secrets), LoginError> {
        let provider = self.provider(now).await?;
        let to = place(&provider.sign_in, self.binding)
            .ok_or_else(|| LoginError::Unavailable("the provider does not take this binding".to_owned()))?;
        let request = saml::request_id(attempt, &fill);
        let envelope = Envelope { issuer: &self.entity_id, destination: to.1, in_response_to: None, now };
        let ask = Ask { consumer: &self.consumer, name_id_format: self.name_id_format, force: fresh };
        let key = self.sign_requests.then_some(key);
        let onward = saml::send(to, Kind::Request, None, key, |key| saml::ask(&envelope, &request, ask, key))
            .ok_or_else(|| LoginError::Internal("the request cannot be made".to_owned()))?;
        Ok((onward, Secrets { request, anew_since: fresh.then_some(now) }))
    }

    /// Verifies an answer, the decoded value of `SAMLResponse`, at `now`.
    pub async fn accept(
        &self,
        message: &str,
        own: &[&dyn Decrypter],
        now: UnixTime,
    ) -> Result<Accepted, LoginError> {
        let mut provider = self.provider(now).await?;
        loop {
            let response = saml::unverified(message, saml::ANSWER_LIMITS)
                .map_err(|error| LoginError::Answer(error.to_string()))?;
            let expected = Expected {
                issuer: &provider.entity_id,
                audience: &self.entity_id,
                consumer: &self.consumer,
                now,
            };
            let assertion = match saml::accept(response, expected, &provider.signing, own) {
                Err(ResponseError::Signature(saml::SignatureError::Key)) => {
                    let newer = self.newer(&provider, now).await?;
                    if newer.signing == provider.signing {
                        return Err(LoginError::Answer(saml::SignatureError::Key.to_string()));
                    }
                    provider = newer;
                    continue;
                }
                Err(ResponseError::Status) => {
                    return Err(LoginError::Refused(ResponseError::Status.to_string()));
                }
                Err(error) => return Err(LoginError::Answer(error.to_string())),
                Ok(assertion) => assertion,
            };
            if now.0.saturating_sub(assertion.issued_at.0) > OLDEST {
                return Err(LoginError::Answer(ResponseError::Time.to_string()));
            }
            if assertion.in_response_to.is_none() && !self.allow_unsolicited {
                return Err(LoginError::Answer("nobody asked for it".to_owned()));
            }
            let person = self.rules.person(&self.name, &assertion);
            return Ok(Accepted {
                provider: self.name.clone(),
                in_response_to: assertion.in_response_to,
                assertion: assertion.id,
                over_at: assertion.over_at,
                person: person.map_err(|error| LoginError::Answer(error.to_owned()))?,
            });
        }
    }

    /// Who the answer is about, if it answers what this browser asked; `secrets` are those of the attempt that the answer
    /// [names](Accepted::attempt).
    pub fn finish(&self, secrets: Option<&Secrets>, accepted: Accepted) -> Result<Authenticated, LoginError> {
        if accepted.provider != self.name {
            return Err(LoginError::State);
        }
        match (&accepted.in_response_to, secrets) {
            (Some(id), Some(secrets)) => {
                let same = aws_lc_rs::constant_time::verify_slices_are_equal(
                    secrets.request.as_bytes(),
                    id.as_bytes(),
                );
                if same.is_err() {
                    return Err(LoginError::State);
                }
                accepted.person.anew(secrets.anew_since)
            }
            (None, None) if self.allow_unsolicited => Ok(accepted.person),
            (Some(_), None) | (None, _) => Err(LoginError::State),
        }
    }

    /// What ends the login at the provider, if it takes that.
    pub async fn end(
        &self,
        login: &ProviderLogin,
        key: &dyn Signer,
        now: UnixTime,
    ) -> Result<Option<Onward>, LoginError> {
        let provider = self.provider(now).await?;
        let Some(to) = place(&provider.logout, None) else { return Ok(None) };
        let envelope = Envelope { issuer: &self.entity_id, destination: to.1, in_response_to: None, now };
        let onward = saml::send(to, Kind::Request, None, Some(key), |key| {
            let index = login.session_index.as_deref();
            saml::end_session(&envelope, &login.name_id, index, key, &fill).map(|(_, text)| text)
        });
        onward.map(Some).ok_or_else(|| LoginError::Internal("the request cannot be made".to_owned()))
    }

    /// Reads a logout message of the provider's. `receive` reads it with the keys that verify it. A request ends logins
    /// without asking anybody, so it is always signed and made for this place.
    pub async fn logout_message(
        &self,
        kind: Kind,
        receive: impl FnOnce(&[Certificate]) -> Result<Received, BindingError>,
        now: UnixTime,
    ) -> Result<LogoutMessage, LoginError> {
        let answer = |error: &dyn std::fmt::Display| LoginError::Answer(error.to_string());
        let provider = self.provider(now).await?;
        let received = receive(&provider.signing).map_err(|error| answer(&error))?;
        let head = |issuer: &str, destination: Option<&str>, issued: UnixTime| {
            if issuer != provider.entity_id {
                return Err(answer(&ResponseError::Issuer));
            }
            if destination.is_some_and(|destination| destination != self.logout) {
                return Err(answer(&ResponseError::Destination));
            }
            let age = now.0.saturating_sub(issued.0);
            if (-SKEW..=OLDEST).contains(&age) { Ok(()) } else { Err(answer(&ResponseError::Time)) }
        };
        match kind {
            Kind::Request => {
                let request = LogoutRequest::read(&received.message).map_err(|error| answer(&error))?;
                head(&request.head.issuer, request.head.destination.as_deref(), request.head.issued_at)?;
                if !received.signed || request.head.destination.is_none() {
                    return Err(answer(&"a logout request is signed and names its destination"));
                }
                if request.not_on_or_after.is_some_and(|end| end <= now) {
                    return Err(answer(&ResponseError::Time));
                }
                let over_at = UnixTime(request.head.issued_at.0.saturating_add(OLDEST + 1));
                Ok(LogoutMessage::Request {
                    id: request.head.id,
                    name_id: request.name_id.ok_or_else(|| answer(&"it names nobody"))?,
                    sessions: request.sessions,
                    issued_at: request.head.issued_at,
                    over_at,
                    relay_state: received.relay_state,
                })
            }
            Kind::Response => {
                let response = LogoutResponse::read(&received.message).map_err(|error| answer(&error))?;
                head(&response.head.issuer, response.head.destination.as_deref(), response.head.issued_at)?;
                Ok(LogoutMessage::Response { ended: response.ended })
            }
        }
    }

    /// The signed answer to the logout request `id`.
    pub async fn logged_out(
        &self,
        id: &str,
        relay_state: Option<&str>,
        key: &dyn Signer,
        now: UnixTime,
    ) -> Result<Option<Onward>, LoginError> {
        let provider = self.provider(now).await?;
        let Some((binding, to)) = answers(&provider.logout) else { return Ok(None) };
        let envelope = Envelope { issuer: &self.entity_id, destination: to, in_response_to: Some(id), now };
        let onward = saml::send((binding, to), Kind::Response, relay_state, Some(key), |key| {
            saml::logged_out(&envelope, key, &fill)
        });
        onward.map(Some).ok_or_else(|| LoginError::Internal("the answer cannot be made".to_owned()))
    }

    /// The node's metadata for this provider.
    pub fn document(&self, certificates: &[Certificate]) -> String {
        OwnServiceProvider {
            entity_id: &self.entity_id,
            consumer: &self.consumer,
            logout: &self.logout,
            certificates,
            name_id_format: self.name_id_format,
            signs_requests: self.sign_requests,
        }
        .document()
    }
}

impl Accepted {
    /// The attempt whose request this answers; nothing where nobody asked.
    pub fn attempt(&self) -> Option<&str> {
        self.in_response_to.as_deref()?.strip_prefix('_')?.get(..ATTEMPT)
    }

    /// What makes it unique, and until when that has to be remembered.
    pub fn once(&self) -> (String, UnixTime) {
        (format!("{}\n{}", self.provider, self.assertion), self.over_at)
    }
}

fn unavailable(error: &Unpublished) -> LoginError {
    LoginError::Unavailable(error.to_string())
}

/// Where requests go, by `wanted` or by what there is.
fn place(service: &Service, wanted: Option<SamlBinding>) -> Option<(SamlBinding, &str)> {
    let redirect = service.redirect.as_ref().map(|place| (SamlBinding::Redirect, place.location.as_str()));
    let post = service.post.as_ref().map(|place| (SamlBinding::Post, place.location.as_str()));
    match wanted {
        Some(SamlBinding::Redirect) => redirect,
        Some(SamlBinding::Post) => post,
        None => redirect.or(post),
    }
}

/// Where answers go.
fn answers(service: &Service) -> Option<(SamlBinding, &str)> {
    let redirect = service.redirect.as_ref().map(|place| (SamlBinding::Redirect, place.answers.as_str()));
    redirect.or_else(|| service.post.as_ref().map(|place| (SamlBinding::Post, place.answers.as_str())))
}

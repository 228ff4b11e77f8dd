//! `cert_sign`: an SSH certificate for an application token of a client.
//!
//! The token proves a login, as it does in a request to the application, and nothing else: policy decides anew, and only
//! its permit signs. A token from a cookie is no good here, since origins see those.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Response, StatusCode, header};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::access::wire::{CertRefusal, CertRequest, CertResponse};
use crate::event::{Action, Event};
use crate::flow::{Application, Facts, Kind as ApplicationKind, Protocol, Reason, Session, UnixTime};
use crate::policy::{Decision, PermitKind, decide};
use crate::ssh_ca::{Signed, SshCaError};
use crate::token::{Kind, TokenError};

use super::{Call, page};

/// Why there is no certificate, and whom that is about.
struct Refused {
    status: StatusCode,
    reason: Reason,
    words: String,
    policy: Option<String>,
}

impl Refused {
    fn new(status: StatusCode, reason: Reason, words: impl Into<String>) -> Self {
        Self { status, reason, words: words.into(), policy: None }
    }
}

impl From<SshCaError> for Refused {
    fn from(error: SshCaError) -> Self {
        let status = match error {
            SshCaError::PublicKey => StatusCode::BAD_REQUEST,
            SshCaError::NotSsh => StatusCode::NOT_FOUND,
            SshCaError::Late => StatusCode::UNAUTHORIZED,
            SshCaError::Nobody | SshCaError::NoUser => StatusCode::FORBIDDEN,
            SshCaError::Format(_) | SshCaError::Store(_) | SshCaError::Stored => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        Self::new(status, error.reason(), error.to_string())
    }
}

/// Who asks, as far as it is known.
#[derive(Default)]
struct Asker {
    application: Option<Arc<Application>>,
    session: Option<Arc<Session>>,
}

impl Call<'_> {
    pub(super) async fn cert_sign(&self) -> Response<Bytes> {
        let mut asker = Asker::default();
        let result = self.certify(&mut asker).await;
        let mut event = self.event(Action::Certificate, result.is_ok());
        if let Some(application) = &asker.application {
            event = event.application(application);
        }
        if let Some(session) = &asker.session {
            event = event.session(session);
        }
        match result {
            Ok((signed, policy)) => {
                self.context.events.emit(told(event, &signed).policy(&policy).status(200));
                let answer = CertResponse {
                    id: signed.key_id,
                    certificate: signed.certificate,
                    expires_at: rfc3339(signed.expires_at),
                };
                page::json(StatusCode::OK, serde_json::to_string(&answer).unwrap_or_default())
            }
            Err(refused) => {
                let status = refused.status.as_u16();
                event = event.reason(refused.reason).status(status).detail(&refused.words);
                if let Some(policy) = &refused.policy {
                    event = event.policy(policy);
                }
                self.context.events.emit(event);
                // What went wrong inside is for the log.
                let message = match refused.reason {
                    Reason::Internal => "the node cannot sign at the moment".to_owned(),
                    _ => refused.words,
                };
                let answer = CertRefusal { status, message };
                page::json(refused.status, serde_json::to_string(&answer).unwrap_or_default())
            }
        }
    }

    /// The certificate, and the policy that allowed it.
    async fn certify(&self, asker: &mut Asker) -> Result<(Signed, String), Refused> {
        let request = self.cert_request()?;
        let unknown = || {
            let words = "the token is for no application of type `ssh` here";
            Refused::new(StatusCode::UNAUTHORIZED, Reason::BadToken, words)
        };
        let aud = audience(&request.jwt).ok_or_else(unknown)?;
        let on_auth = self.visit.host == self.site.auth;
        let application = self
            .active
            .policies
            .applications()
            .find(|application| application.aud.as_str() == aud)
            .filter(|application| is_ssh(application))
            .filter(|application| on_auth || application.answers_on(&self.visit.host))
            .ok_or_else(unknown)?;
        asker.application = Some(Arc::clone(application));
        let kind = Kind::ApplicationOfClient(&application.aud);
        let claims = self.context.tokens.verify(&request.jwt, kind, self.now).map_err(|error| {
            let reason = match error {
                TokenError::Time => Reason::SessionEnded,
                _ => Reason::BadToken,
            };
            Refused::new(StatusCode::UNAUTHORIZED, reason, error.to_string())
        })?;
        let ended = || {
            Refused::new(StatusCode::UNAUTHORIZED, Reason::SessionEnded, "the session of the token is over")
        };
        let live = self.context.live(&claims, self.now).ok_or_else(ended)?;
        asker.session = Some(Arc::clone(&live.session));
        let facts =
            Facts { application, session: Some(&live.session), service: None, address: self.visit.address };
        let permit = match decide(&self.active.policies, &facts, self.now) {
            Decision::Allow(permit) => permit,
            Decision::Deny(denial) => {
                let words = "policy does not let this person in";
                let refused = Refused::new(StatusCode::FORBIDDEN, denial.reason, words);
                return Err(Refused { policy: denial.policy, ..refused });
            }
            Decision::Login(_) => return Err(ended()),
        };
        let PermitKind::Private(private) = permit.kind() else { return Err(unknown()) };
        let until = UnixTime(claims.exp);
        let ca = &self.portal.ssh_ca;
        let signed = ca.sign(private, &request.public_key, self.visit.ray, until, self.now).await;
        let policy = permit.policy().to_owned();
        match signed {
            Ok(signed) => Ok((signed, policy)),
            Err(error) => Err(Refused { policy: Some(policy), ..error.into() }),
        }
    }

    fn cert_request(&self) -> Result<CertRequest, Refused> {
        let wrong = |words: &str| Refused::new(StatusCode::BAD_REQUEST, Reason::BadRequest, words);
        let kind = self.header(header::CONTENT_TYPE.as_str()).unwrap_or_default();
        if page::media_type(kind) != "application/json" {
            return Err(wrong("the request is not JSON"));
        }
        let request: CertRequest = serde_json::from_slice(&self.visit.body)
            .map_err(|_| wrong("the request is not an object with `public_key`, `jwt` and `issuer`"))?;
        if request.issuer != self.context.tokens.issuer() {
            return Err(wrong("the issuer is not this node"));
        }
        Ok(request)
    }
}

fn is_ssh(application: &Application) -> bool {
    match &application.kind {
        ApplicationKind::Private(private) => private.protocol == Protocol::Ssh,
        ApplicationKind::Web(_) | ApplicationKind::Saas(_) => false,
    }
}

/// The audience that a token claims, before anything is proven: which application's it has to be.
fn audience(jwt: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Audience {
        aud: [String; 1],
    }
    let claims = URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1)?).ok()?;
    let Audience { aud: [aud] } = serde_json::from_slice(&claims).ok()?;
    Some(aud)
}

fn told(event: Event, signed: &Signed) -> Event {
    event.detail(format!(
        "serial {} for {} until {}, key {}",
        signed.serial,
        signed.principals.join(","),
        rfc3339(signed.expires_at),
        signed.fingerprint
    ))
}

fn rfc3339(at: UnixTime) -> String {
    let at = OffsetDateTime::from_unix_timestamp(at.0).ok();
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

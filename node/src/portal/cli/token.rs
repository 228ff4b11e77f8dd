//! The token endpoint, and the revocation endpoint (RFC 7009): every grant comes with a proof of the device's key, and
//! what is given is bound to it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Response, StatusCode};

use crate::access::wire::{self, NodeInfo, TokenResponse};
use crate::clients::{LiveClient, RefreshToken, Refreshed};
use crate::event::Action;
use crate::flow::{ClientId, Reason, Session, SessionId};
use crate::session::LiveSession;
use crate::store::NotLoggedIn;
use crate::token::dpop::{self, Proof};

use super::super::Call;
use super::super::code::Code;
use super::super::form::Parameters;
use super::super::handover::known_as;
use super::super::target::hash;
use super::authorize::{CODE, Grant, proves};
use super::pending::Poll;
use super::{Refusal, json};

/// Under this the use of a code is kept until the code would have expired.
const SPENT: &str = "spent client";

/// A grant that was not good, and whose it was, as far as that is known.
struct Refused {
    refusal: Refusal,
    session: Option<std::sync::Arc<Session>>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, session: None }
    }
}

impl Call<'_> {
    pub(super) async fn token(&self) -> Response<Bytes> {
        let answer = match self.client_form() {
            Ok(form) => self.granted(&form).await,
            Err(refusal) => Err(refusal.into()),
        };
        match answer {
            Ok(response) => response,
            // To wait is no refusal: a device asks every few seconds.
            Err(Refused { refusal, .. }) if matches!(refusal.code, "authorization_pending" | "slow_down") => {
                refusal.response()
            }
            Err(Refused { refusal, session }) => {
                let event = self.no_login();
                let event = match &session {
                    Some(session) => event.session(session),
                    None => event,
                };
                self.refuse_client(&refusal, event)
            }
        }
    }

    async fn granted(&self, form: &Parameters) -> Result<Response<Bytes>, Refused> {
        match form.one("grant_type") {
            Some(wire::BY_CODE) => self.by_code(form).await,
            Some(wire::BY_DEVICE) => self.by_device(form).await,
            Some(wire::BY_REFRESH) => self.by_refresh(form).await,
            _ => Err(Refusal::new(
                "unsupported_grant_type",
                Reason::BadRequest,
                "this node does not know the grant",
            )
            .into()),
        }
    }

    /// A code from the browser. It is spent by the first who presents it, whoever that is; if it comes again, what was
    /// made from it is void (RFC 6749 §4.1.2).
    async fn by_code(&self, form: &Parameters) -> Result<Response<Bytes>, Refused> {
        let wanted = |name| form.one(name).ok_or_else(|| Refusal::request(&format!("there is no {name}")));
        let (code, redirect, verifier) = (wanted("code")?, wanted("redirect_uri")?, wanted("code_verifier")?);
        let (proof, _) = self.proof(wire::TOKEN, None)?;
        let code = self.code(CODE, code).ok_or_else(no_such_code)?;
        let Some(grant) = self.take::<Grant>(CODE, &code).await.map_err(Refusal::fault)? else {
            return Err(self.used_again(&code).await);
        };
        let session = self.session_of(grant.session)?;
        let of_person = |refusal| Refused { refusal, session: Some(std::sync::Arc::clone(&session.session)) };
        for (held, words) in [
            (grant.redirect == redirect, "the code is for another redirect_uri"),
            (proves(verifier, &grant.challenge), "the code_verifier is wrong"),
            (grant.thumbprint == proof.thumbprint, "the code is for another key"),
        ] {
            if !held {
                return Err(of_person(Refusal::new("invalid_grant", Reason::BadBinding, words)));
            }
        }
        let (client, response) = self.log_in(&session, &proof, &grant.name).await?;
        // Best effort: without it a second use is refused all the same.
        let spent = self.context.store.put_code(code.place(SPENT), &client.client.id, code.expires_at).await;
        if let Err(error) = spent {
            tracing::warn!(%error, "a code's use could not be noted");
        }
        Ok(response)
    }

    /// The refusal of a code that comes again, and the end of what was made from it.
    async fn used_again(&self, code: &Code) -> Refused {
        let refusal = no_such_code();
        let spent = self.take::<ClientId>(SPENT, code).await;
        let client = spent.ok().flatten().and_then(|id| self.context.clients.get(id, self.now));
        let Some(client) = client else { return refusal.into() };
        let ended = self.end(&client, "its code was used twice").await;
        Refused { refusal: ended.err().unwrap_or(refusal), session: Some(client.session) }
    }

    /// A device asks whether its person has let it in.
    async fn by_device(&self, form: &Parameters) -> Result<Response<Bytes>, Refused> {
        let code = form.one("device_code").ok_or(Refusal::request("there is no device_code"))?;
        let (proof, _) = self.proof(wire::TOKEN, None)?;
        let place = hash(code);
        let poll = self.pending(|pending, now| pending.poll(&place, &proof.key, now));
        let refused = |code, reason, words: &str| Err(Refusal::new(code, reason, words).into());
        match poll {
            Poll::Approved(session, name) => {
                let session = self.session_of(session)?;
                Ok(self.log_in(&session, &proof, &name).await?.1)
            }
            Poll::Waiting => {
                refused("authorization_pending", Reason::NoSession, "nobody has confirmed it yet")
            }
            Poll::TooFast => refused("slow_down", Reason::Throttled, "ask less often"),
            Poll::Denied => refused("access_denied", Reason::Declined, "it was not confirmed"),
            Poll::Expired => refused("expired_token", Reason::BadState, "nobody confirmed it in time"),
            Poll::Unknown => refused("invalid_grant", Reason::BadState, "no device waits with this code"),
        }
    }

    async fn by_refresh(&self, form: &Parameters) -> Result<Response<Bytes>, Refused> {
        let token = form.one("refresh_token").ok_or(Refusal::request("there is no refresh_token"))?;
        let (proof, text) = self.proof(wire::TOKEN, None)?;
        // Whoever has another key makes the node write nothing.
        let client = RefreshToken::parse(token)
            .and_then(|token| self.context.clients.get(token.client(), self.now))
            .filter(|client| client.client.key == proof.key);
        if let Some(client) = client
            && self.charge_write(&client.session).is_err()
        {
            return Err(Refused { refusal: Refusal::too_fast(), session: Some(client.session) });
        }
        let refreshed = self.context.clients.refresh(token, proof.key, text, self.now).await;
        let invalid = |reason, words: &str| Refusal::new("invalid_grant", reason, words);
        match refreshed.map_err(Refusal::fault)? {
            Refreshed::Good(client, next) => Ok(self.tokens_of(&client, &next)?),
            Refreshed::Reused(client) => {
                self.told_devices().await;
                let event = self.event(Action::Logout, true).session(&client.session);
                let why = format!("device {}: its refresh token was used twice", client.client.name);
                self.context.events.emit(event.detail(why));
                Err(Refused {
                    refusal: invalid(
                        Reason::BadState,
                        "the refresh token was used before: everybody who held it is logged out",
                    ),
                    session: Some(client.session),
                })
            }
            Refreshed::Foreign(client) => Err(Refused {
                refusal: invalid(Reason::BadBinding, "the refresh token is for another key"),
                session: Some(client.session),
            }),
            Refreshed::Unknown => Err(invalid(Reason::SessionEnded, "the login has ended").into()),
        }
    }

    /// Logs a device in that its person has confirmed.
    async fn log_in(
        &self,
        session: &LiveSession,
        proof: &Proof,
        name: &str,
    ) -> Result<(LiveClient, Response<Bytes>), Refused> {
        let logged_in = self.context.clients.log_in(session, proof.key, name, self.now).await;
        let of_person = |refusal| Refused { refusal, session: Some(std::sync::Arc::clone(&session.session)) };
        let logged_in = logged_in.map_err(|error| of_person(Refusal::fault(error)))?;
        let (client, refresh) = logged_in.map_err(|refused| {
            let reason = match refused {
                NotLoggedIn::SessionOver => Reason::SessionEnded,
                NotLoggedIn::TooManyKeys => Reason::Throttled,
            };
            of_person(Refusal::new("invalid_grant", reason, &refused.to_string()))
        })?;
        self.told_devices().await;
        let response = self.tokens_of(&client, &refresh).map_err(of_person)?;
        self.context.recent.remember(&session.session.person.to_string(), self.visit.address, self.now);
        let event = self.event(Action::Login, true).session(&session.session);
        self.context.events.emit(event.detail(format!("device {name}")));
        Ok((client, response))
    }

    fn tokens_of(&self, client: &LiveClient, refresh: &RefreshToken) -> Result<Response<Bytes>, Refusal> {
        let (session, id, key) = (&client.session, client.client.id, &client.client.key);
        let (token, expires_at) =
            self.context.tokens.mint_client(session, id, key, self.now).map_err(Refusal::fault)?;
        let tunnel = &self.portal.tunnel;
        let device = tunnel.devices.of_client(client.client.device).to_bytes();
        let response = TokenResponse {
            access_token: token,
            token_type: dpop::SCHEME.to_owned(),
            expires_in: expires_at.since(self.now).as_secs(),
            refresh_token: refresh.expose().to_owned(),
            login_expires_in: session.expires_at.since(self.now).as_secs(),
            person: known_as(session).to_owned(),
            node: NodeInfo {
                address: tunnel.address.to_string(),
                key: tunnel.key.to_string(),
                device: URL_SAFE_NO_PAD.encode(&*device),
                ticket: (tunnel.ticket)().map(|ticket| URL_SAFE_NO_PAD.encode(ticket)),
            },
        };
        Ok(json(StatusCode::OK, &response))
    }

    /// Ends a client's login. Only whoever holds its key can; everything else is answered the same (RFC 7009 §2.2).
    pub(super) async fn revoke(&self) -> Response<Bytes> {
        let wanted = self.client_form().and_then(|form| {
            let (proof, _) = self.proof(wire::REVOKE, None)?;
            let token = form.one("token").ok_or(Refusal::request("there is no token"))?;
            Ok((proof, RefreshToken::parse(token)))
        });
        let (proof, token) = match wanted {
            Ok(wanted) => wanted,
            Err(refusal) => return self.refuse_client(&refusal, self.event(Action::Request, false)),
        };
        let client = token
            .and_then(|token| self.context.clients.get(token.client(), self.now))
            .filter(|client| client.client.key == proof.key);
        if let Some(client) = client
            && let Err(refusal) = self.end(&client, "logged out there").await
        {
            return refusal.response();
        }
        json(StatusCode::OK, &serde_json::json!({}))
    }

    /// Logs a client out, with its event.
    async fn end(&self, client: &LiveClient, why: &str) -> Result<(), Refusal> {
        let ended = self.context.clients.log_out(client.client.id, self.now).await;
        self.told_devices().await;
        let event = self.event(Action::Logout, ended.is_ok()).session(&client.session);
        match ended {
            Ok(()) => {
                self.context.events.emit(event.detail(format!("device {}: {why}", client.client.name)));
                Ok(())
            }
            Err(error) => {
                self.context.events.emit(event.reason(Reason::Internal).detail(error.to_string()));
                Err(Refusal::fault(error))
            }
        }
    }

    fn session_of(&self, id: SessionId) -> Result<LiveSession, Refusal> {
        let ended = || Refusal::new("invalid_grant", Reason::SessionEnded, "the login has ended");
        self.context.sessions.get(id, self.now).ok_or_else(ended)
    }

    /// The gate learns at once who may knock, and hears it again in a quarter of a minute if that fails.
    async fn told_devices(&self) {
        if let Err(error) = self.portal.tunnel.devices.tell(self.now).await {
            tracing::error!(%error, "the gate is not told of a device");
        }
    }
}

fn no_such_code() -> Refusal {
    Refusal::new("invalid_grant", Reason::BadState, "the code is unknown, too old or was used")
}

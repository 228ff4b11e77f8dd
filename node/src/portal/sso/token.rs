//! The token endpoint (RFC 6749 §3.2): a code or a refresh token, from the client it was given to, for an ID token and an
//! access token. `decide` runs every time, about the person as they logged in and where they were.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use serde_json::json;

use crate::flow::{Reason, Saas, UnixTime};
use crate::policy::{Permit, PermitKind, PermitOf};
use crate::portal::form::Parameters;
use crate::portal::page;
use crate::saas::oidc::claims::{self, Issue};
use crate::saas::oidc::client::{ClientError, Proof, authenticate};
use crate::saas::oidc::pkce;
use crate::saas::oidc::scope::{Scope, Scopes};
use crate::saas::oidc::token::{ACCESS, ACCESS_LIFE, Access, CODE, Code, Granted, REFRESH, Refresh};
use crate::session::LiveSession;
use crate::store::{Redemption, SaasGrant, Turn};

use super::{Provider, oauth_error};

const ASSERTION: &str = "oidc client assertion";

/// What is answered instead of tokens.
type Refusal = Box<Response<Bytes>>;

/// A grant that is good, and who it is about.
pub(super) struct Standing {
    pub(super) grant: SaasGrant<Granted>,
    pub(super) live: LiveSession,
}

impl Provider<'_> {
    pub(super) async fn token(&self) -> Response<Bytes> {
        let form = match self.authenticated_form().await {
            Ok(form) => form,
            Err(refusal) => return *refusal,
        };
        let tokens = match form.one("grant_type") {
            Some("authorization_code") => self.by_code(&form).await,
            Some("refresh_token") => self.by_refresh(&form).await,
            Some(_) => {
                let why = "only `authorization_code` and `refresh_token` are supported";
                return oauth_error(StatusCode::BAD_REQUEST, "unsupported_grant_type", why);
            }
            None => {
                let why = "`grant_type` is missing or there twice";
                return oauth_error(StatusCode::BAD_REQUEST, "invalid_request", why);
            }
        };
        tokens.unwrap_or_else(|refusal| *refusal)
    }

    /// The form of a client that has proven to be itself.
    pub(super) async fn authenticated_form(&self) -> Result<Parameters, Refusal> {
        let call = self.call;
        let Some(form) = Parameters::of_form(&call.visit.headers, &call.visit.body) else {
            let why = "a form is expected (application/x-www-form-urlencoded)";
            return Err(Box::new(oauth_error(StatusCode::BAD_REQUEST, "invalid_request", why)));
        };
        let header = call.visit.headers.get(header::AUTHORIZATION);
        let header = header.map(|value| value.to_str().unwrap_or_default());
        let (token, introspect) = (format!("{}/token", self.issuer), format!("{}/introspect", self.issuer));
        let revoke = format!("{}/revoke", self.issuer);
        let audiences = [self.issuer.as_str(), &token, &introspect, &revoke];
        let unproven = match authenticate(self.client, header, &form, &audiences, call.now) {
            Ok(Proof::Shown) => return Ok(form),
            Ok(Proof::Once { id, expires_at }) => {
                match call.context.store.use_once(ASSERTION, &id, expires_at, call.now).await {
                    Ok(true) => return Ok(form),
                    Ok(false) => "the client assertion was used before".to_owned(),
                    Err(error) => return Err(self.broken(&error)),
                }
            }
            Err(ClientError::Ambiguous) => {
                let why = ClientError::Ambiguous.to_string();
                return Err(Box::new(oauth_error(StatusCode::BAD_REQUEST, "invalid_request", &why)));
            }
            Err(error @ ClientError::Unproven(_)) => error.to_string(),
        };
        let status = StatusCode::UNAUTHORIZED;
        let event = self.event(false).reason(Reason::BadCredentials).status(status.as_u16());
        call.context.events.emit(event.detail(format!("the client is not believed: {unproven}")));
        let mut response = oauth_error(status, "invalid_client", "the client could not be authenticated");
        let scheme = HeaderValue::from_static("Basic realm=\"portcullis\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        Err(Box::new(response))
    }

    /// Redeems a code. One that comes with the wrong address or verifier, or again, ends what was granted with it.
    async fn by_code(&self, form: &Parameters) -> Result<Response<Bytes>, Refusal> {
        let call = self.call;
        let code = form.one("code").and_then(|text| call.context.seal.open::<Code>(CODE, text));
        let Some(code) = code else { return Err(self.no_grant("no such code", None)) };
        let standing = self.standing(code.grant).await?;
        let Some(Standing { grant, live }) = standing else {
            return Err(self.no_grant("the code is spent, too old or another client's", None));
        };
        let same_address = form.one("redirect_uri") == Some(&*grant.body.redirect_uri);
        let verifier = form.one("code_verifier");
        let whole = verifier.is_some() || !form.has("code_verifier");
        if !same_address || !whole || !pkce::holds(grant.body.challenge.as_deref(), verifier) {
            self.end(code.grant).await?;
            return Err(self.no_grant("the code came with the wrong address or verifier", Some(&live)));
        }
        let permit = self.permit(&grant, &live, code.grant, "token").await?;
        let access_until = call.now.after(ACCESS_LIFE).min(permit.token_expires_at());
        let offline = grant.body.scopes.has(Scope::OfflineAccess);
        let until = if offline { permit.token_expires_at() } else { access_until };
        let redeemed = call.context.store.redeem_saas_grant(code.grant, until, call.now).await;
        match redeemed.map_err(|error| self.broken(&error))? {
            Redemption::First => {}
            Redemption::Gone => return Err(self.no_grant("the code is too old", Some(&live))),
            Redemption::Again => {
                let why = "a spent code came again: its tokens are revoked";
                return Err(self.no_grant(why, Some(&live)));
            }
        }
        let access = Access {
            grant: code.grant,
            scopes: grant.body.scopes.clone(),
            issued_at: call.now,
            expires_at: access_until,
        };
        let refresh = offline.then_some(Refresh { grant: code.grant, generation: 1 });
        self.tokens(&permit, &access, refresh, grant.body.nonce.as_deref())
    }

    /// Exchanges a refresh token for the next one. One that was spent before ends what was granted with it.
    async fn by_refresh(&self, form: &Parameters) -> Result<Response<Bytes>, Refusal> {
        let call = self.call;
        let token =
            form.one("refresh_token").and_then(|text| call.context.seal.open::<Refresh>(REFRESH, text));
        let Some(token) = token else { return Err(self.no_grant("no such refresh token", None)) };
        let standing = self.standing(token.grant).await?;
        let Some(Standing { grant, live }) = standing else {
            return Err(self.no_grant("the refresh token is revoked, too old or another client's", None));
        };
        let scopes = match form.one("scope") {
            None if form.has("scope") => return Err(invalid_scope()),
            None => grant.body.scopes.clone(),
            Some(text) => Scopes::parse(text),
        };
        if !scopes.is_within(&grant.body.scopes) || !scopes.has(Scope::Openid) {
            return Err(invalid_scope());
        }
        self.charge_write(&live)?;
        let permit = self.permit(&grant, &live, token.grant, "refresh").await?;
        let turn = call.context.store.turn_saas_grant(token.grant, token.generation, call.now).await;
        let generation = match turn.map_err(|error| self.broken(&error))? {
            Turn::Next(generation) => generation,
            Turn::Reused => {
                let why = "a spent refresh token came again: its tokens are revoked";
                return Err(self.no_grant(why, Some(&live)));
            }
            Turn::Gone => return Err(self.no_grant("the refresh token is revoked", Some(&live))),
        };
        let expires_at = call.now.after(ACCESS_LIFE).min(grant.expires_at).min(permit.token_expires_at());
        let access = Access { grant: token.grant, scopes, issued_at: call.now, expires_at };
        let answer = self.tokens(&permit, &access, Some(Refresh { grant: token.grant, generation }), None)?;
        let event = self.event(true).session(&live.session).policy(permit.policy()).status(200);
        call.context.events.emit(event.detail("refresh"));
        Ok(answer)
    }

    /// What was granted to this client and is still good, with its live session.
    pub(super) async fn standing(&self, id: [u8; 16]) -> Result<Option<Standing>, Refusal> {
        let (context, now) = (self.call.context, self.call.now);
        let grant =
            context.store.saas_grant::<Granted>(id, now).await.map_err(|error| self.broken(&error))?;
        let grant = grant.filter(|grant| {
            grant.body.client == self.client.id && grant.application == self.application.name
        });
        Ok(grant.and_then(|grant| {
            let live = context.sessions.get(grant.session, now)?;
            Some(Standing { grant, live })
        }))
    }

    /// Decides again for the person of a grant. A refusal ends the grant.
    async fn permit(
        &self,
        grant: &SaasGrant<Granted>,
        live: &LiveSession,
        id: [u8; 16],
        what: &str,
    ) -> Result<Permit, Refusal> {
        match self.call.decide_from(self.application, &live.session, grant.body.address) {
            Ok(permit) => Ok(permit),
            Err(denial) => {
                self.end(id).await?;
                self.emit_denial(&live.session, &denial, StatusCode::BAD_REQUEST, what);
                let why = "policy does not let this person in any more";
                Err(Box::new(oauth_error(StatusCode::BAD_REQUEST, "invalid_grant", why)))
            }
        }
    }

    /// The answer of the token endpoint (RFC 6749 §5.1, OpenID Connect Core 1.0 §3.1.3.3).
    fn tokens(
        &self,
        permit: &Permit,
        access: &Access,
        refresh: Option<Refresh>,
        nonce: Option<&str>,
    ) -> Result<Response<Bytes>, Refusal> {
        let PermitKind::Saas(of_client) = permit.kind() else {
            return Err(self.broken(&"no application elsewhere"));
        };
        let seal = &self.call.context.seal;
        let access_token = seal.seal(ACCESS, access).map_err(|error| self.broken(&error))?;
        let id_token = self.id_token(of_client, access, &access_token, nonce)?;
        let mut answer = json!({
            "access_token": access_token,
            "token_type": "Bearer",
            "expires_in": access.expires_at.since(self.call.now).as_secs(),
            "scope": access.scopes.text(),
            "id_token": id_token,
        });
        if let Some(refresh) = refresh {
            let refresh = seal.seal(REFRESH, &refresh).map_err(|error| self.broken(&error))?;
            answer["refresh_token"] = refresh.into();
        }
        Ok(page::json(StatusCode::OK, answer.to_string()))
    }

    fn id_token(
        &self,
        permit: PermitOf<'_, Saas>,
        access: &Access,
        access_token: &str,
        nonce: Option<&str>,
    ) -> Result<String, Refusal> {
        let (tokens, now): (_, UnixTime) = (&self.call.context.tokens, self.call.now);
        let session = permit.permit().session().ok_or_else(|| self.broken(&"nobody to vouch for"))?;
        let sub = tokens.pairwise(&self.application.aud, &session.person);
        let issue = Issue { issuer: &self.issuer, sub: &sub, scopes: &access.scopes, nonce, access_token };
        let claims =
            claims::id_token(permit, &issue, now).ok_or_else(|| self.broken(&"nobody to vouch for"))?;
        tokens.mint_id_token(permit, &claims, now).map_err(|error| self.broken(&error))
    }

    pub(super) async fn end(&self, id: [u8; 16]) -> Result<(), Refusal> {
        let ended = self.call.context.store.revoke_saas_grant(id, self.call.now).await;
        ended.map_err(|error| self.broken(&error))
    }

    /// Takes a refresh from the budget of the session that it comes from.
    fn charge_write(&self, live: &LiveSession) -> Result<(), Refusal> {
        let Err(wait) = self.call.charge_write(&live.session) else { return Ok(()) };
        let status = StatusCode::TOO_MANY_REQUESTS;
        let event = self.event(false).reason(Reason::Throttled).session(&live.session);
        self.call.context.events.emit(event.status(status.as_u16()).detail("writes of one login"));
        let mut response = oauth_error(status, "slow_down", "too many requests for one login");
        let wait = HeaderValue::from(wait.as_secs().saturating_add(1));
        response.headers_mut().insert(header::RETRY_AFTER, wait);
        Err(Box::new(response))
    }

    /// A code or token that is worth nothing, and the event.
    fn no_grant(&self, why: &str, live: Option<&LiveSession>) -> Refusal {
        let status = StatusCode::BAD_REQUEST;
        let mut event = self.event(false).reason(Reason::BadToken).status(status.as_u16()).detail(why);
        if let Some(live) = live {
            event = event.session(&live.session);
        }
        self.call.context.events.emit(event);
        Box::new(oauth_error(status, "invalid_grant", "the code or token is not good"))
    }

    pub(super) fn broken(&self, error: &dyn std::fmt::Display) -> Refusal {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let event = self.event(false).reason(Reason::Internal).status(status.as_u16());
        self.call.context.events.emit(event.detail(error.to_string()));
        Box::new(oauth_error(
            status,
            "temporarily_unavailable",
            "the access node could not do what was asked",
        ))
    }
}

fn invalid_scope() -> Refusal {
    let why = "more than was granted, or without `openid`";
    Box::new(oauth_error(StatusCode::BAD_REQUEST, "invalid_scope", why))
}

//! What an access token is worth: claims about its person (OpenID Connect Core 1.0 §5.3), its state (RFC 7662) and its end
//! (RFC 7009).

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::flow::Reason;
use crate::portal::page;
use crate::saas::oidc::claims;
use crate::saas::oidc::token::{ACCESS, Access, REFRESH, Refresh};

use super::token::Standing;
use super::{Provider, oauth_error};

impl Provider<'_> {
    pub(super) async fn userinfo(&self) -> Response<Bytes> {
        let call = self.call;
        let presented = call.header("authorization").and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let access = presented.and_then(|token| self.access(token));
        let standing = match &access {
            Some(access) => match self.standing(access.grant).await {
                Ok(standing) => standing,
                Err(refusal) => return *refusal,
            },
            None => None,
        };
        let (Some(access), Some(Standing { grant, live })) = (access, standing) else {
            let event = self.event(false).reason(Reason::BadToken).status(401);
            call.context.events.emit(event.detail("no such access token"));
            return self.unauthorized(presented.is_some());
        };
        match call.decide_from(self.application, &live.session, grant.body.address) {
            Ok(_) => {
                let sub = call.context.tokens.pairwise(&self.application.aud, &live.session.person);
                let claims = claims::about(self.client, &access.scopes, &live.session, &sub);
                page::json(StatusCode::OK, Value::Object(claims).to_string())
            }
            Err(denial) => {
                self.emit_denial(&live.session, &denial, StatusCode::UNAUTHORIZED, "userinfo");
                self.unauthorized(true)
            }
        }
    }

    /// RFC 7662. A token that is not good, or not this client's, is only said to be not active.
    pub(super) async fn introspect(&self) -> Response<Bytes> {
        let form = match self.authenticated_form().await {
            Ok(form) => form,
            Err(refusal) => return *refusal,
        };
        if self.client.is_public() {
            let why = "whoever asks must be able to prove who they are";
            return oauth_error(StatusCode::UNAUTHORIZED, "invalid_client", why);
        }
        let Some(token) = form.one("token") else {
            return oauth_error(StatusCode::BAD_REQUEST, "invalid_request", "`token` is missing");
        };
        let (access, refresh) = (self.access(token), self.refresh(token));
        let id = access.as_ref().map(|access| access.grant).or(refresh.as_ref().map(|refresh| refresh.grant));
        let standing = match id {
            Some(id) => match self.standing(id).await {
                Ok(standing) => standing,
                Err(refusal) => return *refusal,
            },
            None => None,
        };
        let active = standing.filter(|Standing { grant, live }| {
            let current = refresh.as_ref().is_none_or(|refresh| refresh.generation == grant.generation);
            let allowed = self.call.decide_from(self.application, &live.session, grant.body.address).is_ok();
            current && allowed
        });
        let Some(Standing { grant, live }) = active else {
            return page::json(StatusCode::OK, json!({ "active": false }).to_string());
        };
        let mut answer = json!({
            "active": true,
            "client_id": self.client.id,
            "iss": self.issuer,
            "aud": self.client.id,
            "sub": self.call.context.tokens.pairwise(&self.application.aud, &live.session.person),
            "sid": live.session.id,
            "scope": grant.body.scopes.text(),
            "exp": grant.expires_at.min(live.session.expires_at),
        });
        if let Some(access) = access {
            answer["token_type"] = "Bearer".into();
            answer["scope"] = access.scopes.text().into();
            answer["iat"] = json!(access.issued_at);
            answer["exp"] = json!(access.expires_at);
        }
        page::json(StatusCode::OK, answer.to_string())
    }

    /// RFC 7009. Either token ends both, since they are of one sign-in; what is not this client's is left alone.
    pub(super) async fn revoke(&self) -> Response<Bytes> {
        let form = match self.authenticated_form().await {
            Ok(form) => form,
            Err(refusal) => return *refusal,
        };
        let Some(token) = form.one("token") else {
            return oauth_error(StatusCode::BAD_REQUEST, "invalid_request", "`token` is missing");
        };
        let id = self
            .access(token)
            .map(|access| access.grant)
            .or_else(|| self.refresh(token).map(|refresh| refresh.grant));
        if let Some(id) = id {
            let ended = match self.standing(id).await {
                Ok(Some(_)) => self.end(id).await,
                Ok(None) => Ok(()),
                Err(refusal) => Err(refusal),
            };
            if let Err(refusal) = ended {
                return *refusal;
            }
        }
        page::json(StatusCode::OK, "{}".to_owned())
    }

    fn access(&self, token: &str) -> Option<Access> {
        let access: Access = self.call.context.seal.open(ACCESS, token)?;
        (access.expires_at > self.call.now).then_some(access)
    }

    fn refresh(&self, token: &str) -> Option<Refresh> {
        self.call.context.seal.open(REFRESH, token)
    }

    /// RFC 6750 §3.
    fn unauthorized(&self, presented: bool) -> Response<Bytes> {
        let mut response = oauth_error(StatusCode::UNAUTHORIZED, "invalid_token", "the token is not good");
        let challenge = if presented { "Bearer error=\"invalid_token\"" } else { "Bearer" };
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        response
    }
}

//! Sign-in at applications elsewhere: the endpoints below `/cdn-cgi/access/sso/` on the auth domain.
//!
//! 1. `authorize`: an application's request, checked; parked in the browser while its person logs in; decided; a code.
//! 2. `token`: code or refresh token, by the application itself, for an ID token and an access token.
//! 3. `userinfo`: what an access token is worth: claims, introspection, revocation.
//! 4. `end_session`: a logout that an application asks for.
//!
//! What the OpenID provider's rules are is in [`crate::saas::oidc`]; here they meet browsers, the store and `decide`.

mod authorize;
mod end_session;
mod token;
mod userinfo;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::event::{Action, Event};
use crate::flow::{Application, Kind, OidcClient, Reason, SaasProtocol, Session};
use crate::policy::Denial;
use crate::saas::oidc::{claims, client, issuer, scope};

use super::handover::known_as;
use super::page::{self, PageFacts};
use super::{Call, PREFIX};

impl Call<'_> {
    /// Answers `sso/<rest>` on the auth domain.
    pub(super) async fn sso(&self, rest: &str) -> Response<Bytes> {
        if let Some(rest) = rest.strip_prefix("saml/") {
            return self.saml(rest).await;
        }
        let mut parts = rest.splitn(3, '/');
        let (protocol, name, endpoint) = (parts.next(), parts.next(), parts.next());
        let (Some("oidc"), Some(name), Some(endpoint)) = (protocol, name, endpoint) else {
            return self.refuse(StatusCode::NOT_FOUND, Reason::NoApplication);
        };
        let found = self.active.policies.applications().find_map(|application| match &application.kind {
            Kind::Saas(saas) => match &saas.protocol {
                SaasProtocol::Oidc(client) if client.id == name => Some((application, client)),
                SaasProtocol::Oidc(_) | SaasProtocol::Saml(_) => None,
            },
            Kind::Web(_) | Kind::Private(_) => None,
        });
        match found {
            Some((application, client)) => {
                let issuer = issuer(&self.active.config.node, client);
                Provider { call: self, application, client, issuer }.answer(endpoint).await
            }
            None => self.refuse(StatusCode::NOT_FOUND, Reason::NoApplication),
        }
    }
}

/// Which methods an endpoint of the OpenID provider takes; none where there is no such endpoint.
pub(super) fn methods(endpoint: &str) -> &'static [Method] {
    const PUBLIC: &[Method] = &[Method::GET, Method::HEAD];
    const BACK: &[Method] = &[Method::GET];
    const BY_BROWSER: &[Method] = &[Method::GET, Method::POST];
    const BY_APPLICATION: &[Method] = &[Method::POST];
    match endpoint {
        ".well-known/openid-configuration" | "jwks" => PUBLIC,
        "resume" => BACK,
        "authorization" | "userinfo" | "end_session" => BY_BROWSER,
        "token" | "revoke" | "introspect" => BY_APPLICATION,
        _ => &[],
    }
}

/// The OpenID provider as one client sees it, answering one request.
struct Provider<'a> {
    call: &'a Call<'a>,
    application: &'a Arc<Application>,
    client: &'a OidcClient,
    issuer: String,
}

impl Provider<'_> {
    async fn answer(&self, endpoint: &str) -> Response<Bytes> {
        let methods = methods(endpoint);
        if methods.is_empty() {
            return self.call.refuse(StatusCode::NOT_FOUND, Reason::NoApplication);
        }
        if !methods.contains(&self.call.visit.method) {
            let mut response = self.call.refuse(StatusCode::METHOD_NOT_ALLOWED, Reason::BadRequest);
            let allow = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
            if let Ok(allow) = HeaderValue::from_str(&allow) {
                response.headers_mut().insert(header::ALLOW, allow);
            }
            return response;
        }
        match endpoint {
            ".well-known/openid-configuration" => public(self.metadata().to_string()),
            "jwks" => public(self.call.context.tokens.jwks()),
            "authorization" => self.authorization().await,
            "resume" => self.resume().await,
            "token" => self.token().await,
            "userinfo" => self.userinfo().await,
            "revoke" => self.revoke().await,
            "introspect" => self.introspect().await,
            _ => self.end_session().await,
        }
    }

    /// OpenID Connect Discovery 1.0 §3, RFC 8414 §2.
    fn metadata(&self) -> Value {
        let at = |endpoint: &str| format!("{}/{endpoint}", self.issuer);
        let methods = ["client_secret_basic", "client_secret_post", "private_key_jwt", "none"];
        let (known, some) = (&methods[..], &methods[..3]);
        let algorithms: Vec<&str> = client::ALGORITHMS.iter().map(|(name, _)| *name).collect();
        let mut claims = vec![
            "iss",
            "sub",
            "aud",
            "exp",
            "iat",
            "auth_time",
            "nonce",
            "acr",
            "amr",
            "at_hash",
            "sid",
            "email",
            "email_verified",
            "name",
            "groups",
        ];
        claims.extend(self.client.claims.keys().map(String::as_str));
        json!({
            "issuer": self.issuer,
            "authorization_endpoint": at("authorization"),
            "token_endpoint": at("token"),
            "userinfo_endpoint": at("userinfo"),
            "jwks_uri": at("jwks"),
            "revocation_endpoint": at("revoke"),
            "introspection_endpoint": at("introspect"),
            "end_session_endpoint": at("end_session"),
            "scopes_supported": scope::Scope::ALL.map(scope::Scope::as_str),
            "claims_supported": claims,
            "response_types_supported": ["code"],
            "response_modes_supported": ["query", "form_post"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "subject_types_supported": ["pairwise"],
            "acr_values_supported": claims::ACR,
            "prompt_values_supported": ["none", "login", "consent", "select_account"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": known,
            "token_endpoint_auth_signing_alg_values_supported": algorithms,
            "revocation_endpoint_auth_methods_supported": known,
            "revocation_endpoint_auth_signing_alg_values_supported": algorithms,
            "introspection_endpoint_auth_methods_supported": some,
            "introspection_endpoint_auth_signing_alg_values_supported": algorithms,
            "authorization_response_iss_parameter_supported": true,
            "claims_parameter_supported": false,
            "request_parameter_supported": false,
            "request_uri_parameter_supported": false,
            "backchannel_logout_supported": true,
            "backchannel_logout_session_supported": true,
        })
    }

    /// An endpoint of this client on the auth domain, as a path.
    fn path(&self, endpoint: &str) -> String {
        format!("{PREFIX}sso/oidc/{}/{endpoint}", self.client.id)
    }

    /// The event of this sign-in, before it says anything of its own.
    fn event(&self, allowed: bool) -> Event {
        self.call.event(Action::SignIn, allowed).application(self.application)
    }

    /// The node's own page, and the event: nothing is sent to the application.
    fn own_page(&self, status: StatusCode, reason: Reason, detail: &str) -> Response<Bytes> {
        self.call
            .context
            .events
            .emit(self.event(false).reason(reason).status(status.as_u16()).detail(detail));
        page::refusal(PageFacts {
            application: Some(&self.application.name),
            ..self.call.facts(status, reason)
        })
    }

    /// The page for somebody whom policy does not let sign in.
    fn denied(&self, session: &Session, denial: &Denial) -> Response<Bytes> {
        self.emit_denial(session, denial, StatusCode::FORBIDDEN, "");
        page::refusal(PageFacts {
            application: Some(&self.application.name),
            person: Some(known_as(session)),
            ..self.call.facts(StatusCode::FORBIDDEN, denial.reason)
        })
    }

    fn emit_denial(&self, session: &Session, denial: &Denial, status: StatusCode, detail: &str) {
        let mut event = self.event(false).reason(denial.reason).session(session).status(status.as_u16());
        if let Some(policy) = &denial.policy {
            event = event.policy(policy);
        }
        if !detail.is_empty() {
            event = event.detail(detail);
        }
        self.call.context.events.emit(event);
    }
}

/// A document that any origin may read and caches may keep for a while.
fn public(body: String) -> Response<Bytes> {
    let mut response = page::json(StatusCode::OK, body);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("cross-origin"));
    response
}

/// An error of RFC 6749 §5.2.
fn oauth_error(status: StatusCode, error: &str, why: &str) -> Response<Bytes> {
    page::json(status, json!({ "error": error, "error_description": why }).to_string())
}

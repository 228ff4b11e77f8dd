//! What applications and their pages may ask about the person and the node: `get-identity` and `certs`.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use serde_json::json;

use crate::config::ProviderKind;

use super::{Call, page};

impl Call<'_> {
    /// The identity behind this browser's session on this host, as JSON; 401 where there is none.
    pub(super) fn identity(&self) -> Response<Bytes> {
        let Some(live) = self.bound_session() else {
            return page::json(StatusCode::UNAUTHORIZED, json!({ "err": "no session" }).to_string());
        };
        let session = &live.session;
        let kind = self.active.provider(&session.person.provider).map(|found| match found.kind {
            ProviderKind::Local => "local",
            ProviderKind::Oidc(_) => "oidc",
            ProviderKind::Saml(_) => "saml",
        });
        let body = json!({
            "id": session.person.to_string(),
            "name": session.display_name,
            "email": session.email,
            "groups": session.groups,
            "amr": session.amr,
            "idp": { "id": session.person.provider, "type": kind },
            "user_uuid": crate::token::subject(&session.person),
            "ip": session.address,
            "iat": session.created_at,
            "exp": session.expires_at,
        });
        page::json(StatusCode::OK, body.to_string())
    }

    /// The keys that verify assertions. Public: any origin may read them, and caches may keep them for a while.
    pub(super) fn certs(&self) -> Response<Bytes> {
        let mut response = page::json(StatusCode::OK, self.context.tokens.certs());
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        headers.insert("cross-origin-resource-policy", HeaderValue::from_static("cross-origin"));
        response
    }
}

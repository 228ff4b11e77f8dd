//! What a browser proves with its cookies.

use http::header;
use http::{Method, Response};

use bytes::Bytes;

use crate::cookie::{self, SetCookie};
use crate::flow::{ClientId, SessionId};
use crate::session::LiveSession;
use crate::token::Kind;

use super::Call;

impl Call<'_> {
    /// The global session on the auth domain: a token and the binding of the same session.
    pub(super) fn global_session(&self) -> Option<LiveSession> {
        let bound: Vec<SessionId> = self.bindings().collect();
        cookie::read_all(&self.visit.headers, cookie::AUTHORIZATION)
            .filter_map(|jwt| self.context.tokens.verify(jwt, Kind::Global, self.now).ok())
            .filter(|claims| bound.contains(&claims.identity_nonce))
            .find_map(|claims| self.context.sessions.get(claims.identity_nonce, self.now))
    }

    /// The login of a client that is no browser, by its global token alone, and the client that the token is bound to. No
    /// page is shown for it and no browser is logged in by it: it is worth tokens for that client.
    pub(super) fn client_session(&self) -> Option<(LiveSession, Option<ClientId>)> {
        cookie::read_all(&self.visit.headers, cookie::AUTHORIZATION)
            .filter_map(|jwt| self.context.tokens.verify(jwt, Kind::GlobalOfClient, self.now).ok())
            .find_map(|claims| {
                let live = self.context.live(&claims, self.now)?;
                Some((live, claims.client_login))
            })
    }

    /// The session that this browser holds on this host, by its binding alone.
    pub(super) fn bound_session(&self) -> Option<LiveSession> {
        self.bindings().find_map(|id| self.context.sessions.get(id, self.now))
    }

    /// The sessions that this browser has had a binding cookie for on this host, live or not.
    pub(super) fn bindings(&self) -> impl Iterator<Item = SessionId> {
        cookie::read_all(&self.visit.headers, cookie::BINDING)
            .filter_map(|value| self.context.tokens.check_binding(value, &self.visit.host))
    }

    /// Whether this request demonstrably is a visit by the person's own doing: a page to be shown in the tab, and not
    /// ahead of time, at an address typed in, a bookmark, or a link of this very host. On an application's host whoever
    /// may write there makes links, images and redirects: only a click counts. What an old browser does not say is no.
    pub(super) fn is_own_navigation(&self) -> bool {
        let says = |name: &str, value: &str| self.header(name) == Some(value);
        let shown = says("sec-fetch-mode", "navigate") && says("sec-fetch-dest", "document");
        let ahead = ["sec-purpose", "purpose"].iter().any(|name| self.visit.headers.contains_key(*name));
        let own = match self.header("sec-fetch-site") {
            Some("none") => true,
            Some("same-origin") => self.visit.host == self.site.auth || says("sec-fetch-user", "?1"),
            _ => false,
        };
        shown && !ahead && own && self.visit.method != Method::HEAD
    }

    /// Whether the browser says that another site's page sent this form.
    pub(super) fn is_foreign_form(&self) -> bool {
        let foreign_site = matches!(self.header("sec-fetch-site"), Some("cross-site" | "same-site"));
        // Our own pages send no referrer, for which browsers make the origin of a form `null`.
        let own = self.site.origin(&self.visit.host);
        foreign_site || self.header("origin").is_some_and(|origin| origin != "null" && origin != own)
    }
}

/// Adds cookies to a response.
pub(super) fn set_cookies(response: &mut Response<Bytes>, cookies: impl IntoIterator<Item = SetCookie>) {
    for cookie in cookies {
        if let Some(value) = cookie.header_value() {
            response.headers_mut().append(header::SET_COOKIE, value);
        }
    }
}

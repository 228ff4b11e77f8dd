//! A page that carries an answer to an application elsewhere by a form that posts itself, with a button where scripts are
//! off.

use askama::Template;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};

use super::{Frame, STYLE_HASH, reply, text};

/// The form.
#[derive(Template)]
#[template(path = "post.html")]
pub(in crate::portal) struct AutoPost<'a> {
    pub(in crate::portal) frame: Frame<'a>,
    pub(in crate::portal) application: &'a str,
    /// A verified address: the only one that the page's policy lets the form go to.
    pub(in crate::portal) action: &'a str,
    pub(in crate::portal) fields: &'a [(&'a str, &'a str)],
    /// Random; lets the one script of the page run.
    pub(in crate::portal) nonce: &'a str,
}

/// Renders the page.
pub(in crate::portal) fn auto_post(page: &AutoPost<'_>) -> Response<Bytes> {
    let Ok(body) = page.render() else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "The page could not be rendered.\n");
    };
    let mut response = reply(StatusCode::OK, "text/html; charset=utf-8", body.into());
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'nonce-{}'; img-src 'self'; form-action {}; \
         frame-ancestors 'none'; base-uri 'none'",
        *STYLE_HASH,
        page.nonce,
        form_target(page.action)
    );
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// What a `form-action` calls a verified address: its origin, or its scheme where it has none.
pub(in crate::portal) fn form_target(uri: &str) -> String {
    match url::Url::parse(uri) {
        Ok(url) if url.origin().is_tuple() => url.origin().ascii_serialization(),
        Ok(url) => format!("{}:", url.scheme()),
        Err(_) => "'none'".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::RayId;

    #[test]
    fn the_form_goes_to_one_origin_and_text_stays_text() {
        let page = AutoPost {
            frame: Frame::new(None, RayId::from_bytes([7; 8])),
            application: "<b>git</b>",
            action: "https://git.example.org:8443/cb?x=1&y=2",
            fields: &[("state", "\"><script>alert(1)</script>"), ("code", "abc")],
            nonce: "AAAA",
        };
        let response = auto_post(&page);
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        for part in [
            "form-action https://git.example.org:8443;",
            "script-src 'nonce-AAAA';",
            "default-src 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(part), "{policy}");
        }
        let body = std::str::from_utf8(response.body()).unwrap();
        assert_eq!(body.matches("<script").count(), 1, "{body}");
        assert!(
            body.contains("<script nonce=\"AAAA\">") && !body.contains("<b>") && body.contains("<button")
        );
        assert!(body.contains("name=\"code\" value=\"abc\""), "{body}");
    }

    #[test]
    fn a_target_is_an_origin_or_a_scheme() {
        for (uri, target) in [
            ("https://a.b/c", "https://a.b"),
            ("http://127.0.0.1:80/c", "http://127.0.0.1"),
            ("org.example.app:/cb", "org.example.app:"),
            ("nonsense", "'none'"),
        ] {
            assert_eq!(form_target(uri), target, "{uri}");
        }
    }
}

//! Pages: rendered on the server, complete without a script, and closed by a content security policy.
//!
//! Every text that comes from outside is escaped by the templates. Nothing is loaded from anywhere but the node.

mod connect;
mod post;
mod words;

use std::sync::LazyLock;

use askama::Template;
use base64::Engine as _;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::flow::{Application, Host, RayId, Reason};

pub use self::connect::{ConnectFacts, connect};
pub(super) use self::post::{AutoPost, auto_post, form_target};
use self::words::words;

/// The one stylesheet, part of every page so that a page needs nothing else, wherever it is shown.
const STYLE: &str = include_str!("../../../templates/style.css");
const ICON: &str = include_str!("../../../templates/icon.svg");

/// What a refusal page needs to know.
#[derive(Debug, Clone, Copy)]
pub struct PageFacts<'a> {
    pub status: StatusCode,
    pub reason: Reason,
    pub ray: RayId,
    /// Name of the application.
    pub application: Option<&'a str>,
    /// The host that was asked.
    pub host: Option<&'a Host>,
    /// Who asks, as they know themselves: email or name.
    pub person: Option<&'a str>,
    /// Where starting again begins: an absolute address or path.
    pub again: Option<&'a str>,
    /// Seconds until another try makes sense.
    pub retry_after: Option<u32>,
    /// Whether the client reads HTML, see [`wants_html`].
    pub html: bool,
}

impl<'a> PageFacts<'a> {
    /// The facts that every refusal has; `headers` are the request's.
    pub fn new(status: StatusCode, reason: Reason, ray: RayId, headers: &HeaderMap) -> Self {
        Self {
            status,
            reason,
            ray,
            application: None,
            host: None,
            person: None,
            again: None,
            retry_after: None,
            html: wants_html(headers),
        }
    }
}

/// Whether a client names HTML among what it accepts. Everything else gets plain text.
pub fn wants_html(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().any(|value| {
        value.to_str().is_ok_and(|value| value.split(',').any(|kind| media_type(kind) == "text/html"))
    })
}

/// The page (or the plain text) of a refusal: what happened, what to do and the ray id.
pub fn refusal(facts: PageFacts<'_>) -> Response<Bytes> {
    let words = words(facts.reason);
    let mut response = if facts.html {
        let mut list = Vec::new();
        list.extend(facts.application.map(|name| ("Application", name)));
        list.extend(facts.person.map(|person| ("Signed in as", person)));
        let mut links = Vec::new();
        links.extend(facts.again.map(|href| ("Start again", href)));
        match facts.status {
            StatusCode::FORBIDDEN if facts.person.is_some() => {
                links.push(("Sign in as someone else", "/cdn-cgi/access/logout"));
            }
            // An empty address is the page's own.
            status if status.is_server_error() && facts.again.is_none() => links.push(("Try again", "")),
            _ => {}
        }
        let page = MessagePage {
            frame: Frame::new(facts.host, facts.ray),
            title: words.title,
            texts: &[words.what, words.todo],
            facts: &list,
            confirm: None,
            links: &links,
            onward: None,
        };
        html(facts.status, &page, &[])
    } else {
        text(
            facts.status,
            &format!("{}\n{}\n{}\nRay ID: {}\n", words.title, words.what, words.todo, facts.ray),
        )
    };
    if let Some(seconds) = facts.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Seconds in a `Retry-After` for something that may be back any moment.
pub const SOON: u32 = 15;

/// What surrounds every page.
pub(super) struct Frame<'a> {
    site: &'a str,
    ray: RayId,
    style: &'static str,
}

impl<'a> Frame<'a> {
    pub(super) fn new(site: Option<&'a Host>, ray: RayId) -> Self {
        Self { site: site.map_or("", Host::as_str), ray, style: STYLE }
    }
}

/// The login form and the chooser.
#[derive(Template)]
#[template(path = "login.html")]
pub(super) struct LoginPage<'a> {
    pub(super) frame: Frame<'a>,
    pub(super) application: Option<&'a str>,
    pub(super) problem: Option<&'a str>,
    /// The form for local users, where they may log in.
    pub(super) form: Option<PasswordForm<'a>>,
    pub(super) choices: &'a [Choice],
}

pub(super) struct PasswordForm<'a> {
    pub(super) ticket: String,
    pub(super) username: &'a str,
}

/// A provider to go to.
pub(super) struct Choice {
    pub(super) label: String,
    pub(super) href: String,
}

/// A page that says one thing.
#[derive(Template)]
#[template(path = "message.html")]
pub(super) struct MessagePage<'a> {
    pub(super) frame: Frame<'a>,
    pub(super) title: &'a str,
    pub(super) texts: &'a [&'a str],
    pub(super) facts: &'a [(&'a str, &'a str)],
    /// Asks for a POST to the same address.
    pub(super) confirm: Option<Confirm<'a>>,
    /// Label and address.
    pub(super) links: &'a [(&'a str, &'a str)],
    /// Where the page goes by itself, at once.
    pub(super) onward: Option<&'a str>,
}

/// Whether a device may come in.
#[derive(Template)]
#[template(path = "confirm.html")]
pub(super) struct ConfirmPage<'a> {
    pub(super) frame: Frame<'a>,
    pub(super) facts: &'a [(&'a str, &'a str)],
    /// The device is somewhere else.
    pub(super) remote: bool,
    pub(super) ticket: String,
}

/// The form for the code that a device shows.
#[derive(Template)]
#[template(path = "code.html")]
pub(super) struct CodePage<'a> {
    pub(super) frame: Frame<'a>,
    pub(super) person: &'a str,
    pub(super) action: &'a str,
    pub(super) problem: Option<&'a str>,
    pub(super) ticket: String,
}

pub(super) struct Confirm<'a> {
    pub(super) ticket: String,
    pub(super) label: &'a str,
}

/// My applications.
#[derive(Template)]
#[template(path = "launcher.html")]
pub(super) struct LauncherPage<'a> {
    pub(super) frame: Frame<'a>,
    pub(super) person: &'a str,
    pub(super) ticket: String,
    pub(super) tiles: &'a [Tile],
}

pub(super) struct Tile {
    pub(super) name: String,
    pub(super) initial: char,
    pub(super) host: String,
    pub(super) href: String,
}

/// Renders a page. `form_targets` are the origins besides our own that a form's chain of redirects may reach:
/// browsers apply `form-action` to every hop after a POST.
pub(super) fn html(status: StatusCode, page: &impl Template, form_targets: &[String]) -> Response<Bytes> {
    let Ok(body) = page.render() else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "The page could not be rendered.\n");
    };
    let mut response = reply(status, "text/html; charset=utf-8", body.into());
    if let Ok(policy) = HeaderValue::from_str(&content_security_policy(form_targets)) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

pub(super) fn text(status: StatusCode, body: &str) -> Response<Bytes> {
    reply(status, "text/plain; charset=utf-8", Bytes::copy_from_slice(body.as_bytes()))
}

pub(super) fn json(status: StatusCode, body: String) -> Response<Bytes> {
    reply(status, "application/json", body.into())
}

/// Names the application to clients that have followed redirects to the end (`cloudflared access`).
pub(crate) fn name_application(headers: &mut HeaderMap, host: &Host, application: &Application) {
    for (name, value) in [("cf-access-domain", host.as_str()), ("cf-access-aud", application.aud.as_str())] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// A document for programs.
pub(super) fn document(kind: &'static str, body: String) -> Response<Bytes> {
    reply(StatusCode::OK, kind, body.into())
}

/// The mark of the node, for browser tabs.
pub(super) fn icon() -> Response<Bytes> {
    let mut response = reply(StatusCode::OK, "image/svg+xml", Bytes::from_static(ICON.as_bytes()));
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=86400, immutable"));
    response
}

/// A redirect to an address of our own making.
pub(super) fn redirect(status: StatusCode, location: &str) -> Response<Bytes> {
    let Ok(location) = HeaderValue::from_str(location) else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "The address of the redirect is malformed.\n");
    };
    let mut response = reply(status, "text/plain; charset=utf-8", Bytes::new());
    response.headers_mut().insert(header::LOCATION, location);
    response
}

/// A response with the headers that everything of ours has.
fn reply(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
        ),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// What the policy of every page calls the one stylesheet.
static STYLE_HASH: LazyLock<String> = LazyLock::new(|| {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, STYLE.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(digest)
});

fn content_security_policy(form_targets: &[String]) -> String {
    let targets: String = form_targets.iter().map(|target| format!(" {target}")).collect();
    format!(
        "default-src 'none'; style-src 'sha256-{}'; img-src 'self'; form-action 'self'{targets}; \
         frame-ancestors 'none'; base-uri 'none'",
        *STYLE_HASH
    )
}

/// `text/html` of `Text/HTML;q=0.9`.
pub(super) fn media_type(kind: &str) -> String {
    kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(headers: &HeaderMap) -> PageFacts<'_> {
        PageFacts {
            application: Some("<script>alert(1)</script>"),
            person: Some("\"><img src=x>"),
            ..PageFacts::new(StatusCode::FORBIDDEN, Reason::NoMatch, RayId::from_bytes([7; 8]), headers)
        }
    }

    fn accept(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(value))])
    }

    #[test]
    fn text_from_outside_is_escaped() {
        let page = refusal(facts(&accept("text/html")));
        let body = std::str::from_utf8(page.body()).unwrap();
        assert!(!body.contains("<script") && !body.contains("<img"), "{body}");
        assert!(body.contains("0707070707070707"));
        assert!(body.contains("script") && body.contains("img src=x"), "shown as text");
    }

    #[test]
    fn pages_are_closed() {
        let page = refusal(facts(&accept("text/html")));
        let policy = page.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        for part in ["default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self';"]
        {
            assert!(policy.contains(part), "{policy}");
        }
        assert_eq!(page.headers()[header::CACHE_CONTROL], "no-store");
        let body = std::str::from_utf8(page.body()).unwrap();
        for outside in ["http://", "https://", "<script", "javascript:", "@import", "url("] {
            let body = body.replace("http://www.w3.org/2000/svg", "");
            assert!(!body.contains(outside), "{outside}");
        }
    }

    /// The hash in the policy is that of the style as the page carries it, or browsers would show bare HTML.
    #[test]
    fn the_style_is_the_one_the_policy_allows() {
        let page = refusal(facts(&accept("text/html")));
        let body = std::str::from_utf8(page.body()).unwrap();
        let style = body.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, style.as_bytes());
        let hash = base64::engine::general_purpose::STANDARD.encode(digest);
        let policy = page.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.contains(&format!("style-src 'sha256-{hash}'")), "{policy}");
    }

    #[test]
    fn clients_that_do_not_name_html_get_text() {
        for (value, expected) in [
            ("text/html", true),
            ("application/json, Text/HTML;q=0.5", true),
            ("*/*", false),
            ("application/json", false),
            ("text/htmlx", false),
        ] {
            assert_eq!(wants_html(&accept(value)), expected, "{value}");
        }
        assert!(!wants_html(&HeaderMap::new()));
        let page = refusal(facts(&HeaderMap::new()));
        assert_eq!(page.headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
        assert!(std::str::from_utf8(page.body()).unwrap().contains("Ray ID: 0707070707070707"));
    }
}

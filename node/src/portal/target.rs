//! Where a login leads: one of our applications, and a path on it. Of an application elsewhere, where its sign-in goes on
//! at the auth domain.
//!
//! A false accept here is an open redirect or a token for another application; a false reject leads to the
//! application's start page.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::flow::{Application, EncodedSlash, Host, Kind, Path, Saas};
use crate::policy::PolicySet;

use super::PREFIX;
use super::form::Parameters;

/// Bytes of the longest path and query to return to; it travels in cookies and addresses.
const LONGEST_BACK: usize = 2048;

/// A target as it is kept, sealed or in the store, until the login is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Destination {
    host: String,
    aud: String,
    /// Path and query on the application host, checked.
    back: String,
    /// SHA-256 of the CF_AppSession cookie of the browser that started, in base64url.
    app_session: Option<String>,
    /// The second try, after the first came back without the cookie.
    retry: bool,
}

/// A destination that exists.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) application: Arc<Application>,
    pub(super) host: Host,
    pub(super) back: String,
    pub(super) app_session: Option<String>,
    pub(super) retry: bool,
    /// Of a sign-in elsewhere: the node's word, sealed, that a login which is remembered does.
    pub(super) remembered: Option<String>,
}

impl Target {
    /// The target that a login address names: `login/<host>?kid=<aud>&redirect_url=<path>&meta=<hash>`. The
    /// application is named by its audience, or by host and path where there is none.
    pub(super) fn parse(policies: &PolicySet, auth: &Host, host: &str, query: &Parameters) -> Option<Self> {
        let host = Host::parse(host).ok()?;
        let wanted = query.one("redirect_url");
        let application = match query.one("kid") {
            Some(aud) => by_audience(policies, auth, aud, &host)?,
            None if query.has("kid") => return None,
            None => {
                let path = wanted.unwrap_or("/").split('?').next().unwrap_or("/");
                policies.route(&host, &Path::parse(path, true).ok()?)?
            }
        };
        Some(Self {
            application: Arc::clone(application),
            back: back(application, wanted),
            host,
            // Nothing of a sign-in elsewhere is handed over to a host.
            app_session: match application.kind {
                Kind::Saas(_) => None,
                Kind::Web(_) | Kind::Private(_) => {
                    query.one("meta").filter(|hash| is_hash(hash)).map(str::to_owned)
                }
            },
            retry: query.has("retry"),
            remembered: query.one("remembered").map(str::to_owned),
        })
    }

    /// The target a destination stood for, if the application is still there.
    pub(super) fn resolve(policies: &PolicySet, auth: &Host, destination: &Destination) -> Option<Self> {
        let host = Host::parse(&destination.host).ok()?;
        let application = by_audience(policies, auth, &destination.aud, &host)?;
        Some(Self {
            application: Arc::clone(application),
            back: back(application, Some(&destination.back)),
            host,
            app_session: destination.app_session.clone(),
            retry: destination.retry,
            remembered: None,
        })
    }

    pub(super) fn destination(&self) -> Destination {
        Destination {
            host: self.host.as_str().to_owned(),
            aud: self.application.aud.as_str().to_owned(),
            back: self.back.clone(),
            app_session: self.app_session.clone(),
            retry: self.retry,
        }
    }

    /// The query of a login address that leads here.
    pub(super) fn query(&self) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("kid", self.application.aud.as_str()).append_pair("redirect_url", &self.back);
        if let Some(hash) = &self.app_session {
            query.append_pair("meta", hash);
        }
        if self.retry {
            query.append_pair("retry", "1");
        }
        if let Some(sealed) = &self.remembered {
            query.append_pair("remembered", sealed);
        }
        query.finish()
    }

    /// Where the login ends: `by_form` says that it began with a form, which the sign-in at an application elsewhere has
    /// to know.
    pub(super) fn after_login(&self, by_form: bool) -> String {
        match self.application.kind {
            Kind::Saas(_) if by_form => format!("{}&{BY_FORM}=1", self.back),
            _ => self.back.clone(),
        }
    }
}

/// The application of an audience on a host: an application elsewhere is signed in to from the auth domain.
fn by_audience<'a>(
    policies: &'a PolicySet,
    auth: &Host,
    aud: &str,
    host: &Host,
) -> Option<&'a Arc<Application>> {
    policies.applications().find(|app| {
        let here = match app.kind {
            Kind::Saas(_) => host == auth,
            Kind::Web(_) | Kind::Private(_) => app.answers_on(host),
        };
        app.aud.as_str() == aud && here
    })
}

/// Parameters of the address where a sign-in at an application elsewhere goes on.
pub(super) const REQUEST: &str = "request";
pub(super) const BY_FORM: &str = "form";

/// Where the sign-in at an application elsewhere goes on once somebody is logged in; `request` names what it asked for.
pub(super) fn resumption(saas: &Saas, request: &str) -> String {
    format!("{PREFIX}{}/resume?{REQUEST}={request}", saas.endpoint())
}

/// The name of a parked request: 16 hexadecimal digits.
pub(super) fn is_request(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Path and query to return to: inside the application and with one reading, or the application's start page.
pub(super) fn back(application: &Application, wanted: Option<&str>) -> String {
    if let Kind::Saas(saas) = &application.kind {
        let request = wanted.and_then(|wanted| wanted.strip_prefix(&resumption(saas, "")));
        let request = request.filter(|request| is_request(request));
        return request.map_or_else(|| "/".to_owned(), |request| resumption(saas, request));
    }
    let start = || application.path().to_owned();
    let Some(wanted) = wanted.filter(|wanted| wanted.len() <= LONGEST_BACK) else { return start() };
    let (path, query) = match wanted.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (wanted, None),
    };
    let Ok(path) = Path::parse(path, application.encoded_slash() == EncodedSlash::Pass) else {
        return start();
    };
    // Our own endpoints are no place to return to: a login must not end in a logout.
    let ours = Path::parse(PREFIX.trim_end_matches('/'), false).is_ok_and(|prefix| path.is_under(&prefix));
    if ours || !application.holds(&path) {
        return start();
    }
    match query {
        None => path.as_str().to_owned(),
        Some(query) if query.bytes().all(|byte| byte.is_ascii_graphic() && !b"#\\".contains(&byte)) => {
            format!("{path}?{query}")
        }
        Some(_) => start(),
    }
}

/// SHA-256 in base64url, as it travels in `meta`.
pub(super) fn hash_text(value: &str) -> String {
    URL_SAFE_NO_PAD.encode(hash(value))
}

pub(super) fn hash(value: &str) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, value.as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

pub(super) fn is_hash(text: &str) -> bool {
    URL_SAFE_NO_PAD.decode(text).is_ok_and(|bytes| bytes.len() == 32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::flow::{
        Aud, ClientAuthentication, HostPattern, OidcClient, Origin, OriginScheme, SaasProtocol, Web,
    };

    fn application(host: HostPattern, path: &str) -> Application {
        let auth = Host::parse("access.example.com").unwrap();
        Application {
            name: format!("app {path}"),
            aud: Aud::derive(&auth, path),
            policies: vec![],
            providers: vec![],
            session: None,
            launcher: true,
            kind: Kind::Web(Web {
                host,
                path: Path::parse(path, false).unwrap(),
                origin: Origin {
                    scheme: OriginScheme::Http,
                    host: auth,
                    port: 80,
                    connector: None,
                    ca: None,
                    server_name: None,
                    host_header: None,
                },
                allowed_origins: vec![],
                encoded_slash: EncodedSlash::Reject,
            }),
        }
    }

    fn auth() -> Host {
        Host::parse("access.example.com").unwrap()
    }

    #[test]
    fn an_application_elsewhere_is_signed_in_to_from_the_auth_domain_alone() {
        let client = OidcClient {
            id: "git".into(),
            authentication: ClientAuthentication::None,
            redirect_uris: vec!["https://git.example.org/cb".into()],
            post_logout_redirect_uris: vec![],
            backchannel_logout: None,
            claims: std::collections::BTreeMap::new(),
        };
        let git = Application {
            kind: Kind::Saas(Saas { url: None, protocol: SaasProtocol::Oidc(client) }),
            ..exact("/app")
        };
        let policies = PolicySet::new(vec![git.clone()], vec![]);
        let start = "/cdn-cgi/access/sso/oidc/git/resume?request=";
        for (back, kept) in [
            (format!("{start}0123456789abcdef"), true),
            (format!("{start}0123456789abcde"), false),
            (format!("{start}0123456789abcdef&form=1"), false),
            (format!("{start}0123456789abcdef0"), false),
            ("/cdn-cgi/access/sso/oidc/other/resume?request=0123456789abcdef".into(), false),
            ("/cdn-cgi/access/logout".into(), false),
            ("//evil.example".into(), false),
        ] {
            let query = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("kid", git.aud.as_str())
                .append_pair("redirect_url", &back)
                .append_pair("meta", &hash_text("cookie"))
                .finish();
            let query = Parameters::of_query(Some(&query));
            let target = Target::parse(&policies, &auth(), "access.example.com", &query).unwrap();
            // A mark would ask for a hand-over to a host, with a code for whoever chose the mark.
            assert_eq!(target.app_session, None, "{back}");
            assert_eq!(target.back, if kept { back.as_str() } else { "/" }, "{back}");
            for host in ["git.example.org", "evil.example", "app.example.com"] {
                assert!(Target::parse(&policies, &auth(), host, &query).is_none(), "{host}");
            }
        }
    }

    fn exact(path: &str) -> Application {
        application(HostPattern::Exact(Host::parse("app.example.com").unwrap()), path)
    }

    #[test]
    fn only_paths_of_the_application_are_returned_to() {
        let app = exact("/app");
        for (wanted, expected) in [
            ("/app/x?y=1&z=%20", "/app/x?y=1&z=%20"),
            ("/app", "/app"),
            ("/app/%61", "/app/a"),
            ("/", "/app"),
            ("/apple", "/app"),
            ("/other", "/app"),
            ("", "/app"),
            ("//evil.example", "/app"),
            ("///evil.example", "/app"),
            ("/\\evil.example", "/app"),
            ("/\t/evil.example", "/app"),
            ("/app//evil.example", "/app"),
            ("/app/../../evil", "/app"),
            ("https://evil.example/app", "/app"),
            ("https:\\\\evil.example", "/app"),
            ("https://app.example.com@evil.example/", "/app"),
            ("javascript:alert(1)", "/app"),
            ("@evil.example", "/app"),
            (".evil.example", "/app"),
            ("/app?x=\r\nSet-Cookie: a=b", "/app"),
            ("/app?x=a b", "/app"),
            ("/app#x", "/app"),
            ("/app?#x", "/app"),
        ] {
            assert_eq!(back(&app, Some(wanted)), expected, "{wanted:?}");
        }
        assert_eq!(back(&app, None), "/app");
        assert_eq!(back(&app, Some(&format!("/app/{}", "x".repeat(2048)))), "/app");
    }

    #[test]
    fn a_login_never_ends_in_one_of_our_endpoints() {
        let app = exact("/");
        for wanted in ["/cdn-cgi/access/logout", "/cdn-cgi/access", "/cdn-cgi/%61ccess/logout"] {
            assert_eq!(back(&app, Some(wanted)), "/", "{wanted}");
        }
        assert_eq!(back(&app, Some("/cdn-cgi/accessory")), "/cdn-cgi/accessory");
    }

    #[test]
    fn the_audience_must_belong_to_the_host() {
        let (wiki, wild) = (exact("/app"), HostPattern::Below(Host::parse("apps.example.com").unwrap()));
        let wild = application(wild, "/");
        let policies = PolicySet::new(vec![wiki.clone(), wild.clone()], vec![]);
        let parse = |host: &str, query: String| {
            Target::parse(&policies, &auth(), host, &Parameters::of_query(Some(&query)))
        };
        let name = |target: Option<Target>| target.map(|target| target.application.name.clone());
        let kid = |app: &Application| format!("kid={}", app.aud);
        assert_eq!(name(parse("app.example.com", kid(&wiki))).as_deref(), Some("app /app"));
        assert_eq!(name(parse("x.apps.example.com", kid(&wild))).as_deref(), Some("app /"));
        for (host, query) in [
            ("x.apps.example.com", kid(&wiki)),
            ("app.example.com", kid(&wild)),
            ("evilapp.example.com", kid(&wiki)),
            ("app.example.com.evil", kid(&wiki)),
            ("app.example.com", "kid=ffff".into()),
            ("app.example.com", format!("{}&{}", kid(&wiki), kid(&wiki))),
            ("evil.example", String::new()),
            ("", kid(&wiki)),
        ] {
            assert!(parse(host, query.clone()).is_none(), "{host} {query}");
        }
        assert_eq!(name(parse("app.example.com", "redirect_url=/app/x".into())).as_deref(), Some("app /app"));
    }

    #[test]
    fn a_destination_resolves_to_the_same_target() {
        let policies = PolicySet::new(vec![exact("/app")], vec![]);
        let query = format!(
            "kid={}&redirect_url=%2Fapp%2Fx%3Fy%3D1&meta={}&retry=1",
            exact("/app").aud,
            hash_text("cookie")
        );
        let target =
            Target::parse(&policies, &auth(), "APP.example.com.", &Parameters::of_query(Some(&query)))
                .unwrap();
        assert_eq!((target.back.as_str(), target.retry), ("/app/x?y=1", true));
        assert_eq!(target.app_session.as_deref(), Some(hash_text("cookie").as_str()));
        assert_eq!(target.query(), query);
        let again = Target::resolve(&policies, &auth(), &target.destination()).unwrap();
        assert_eq!(again.destination(), target.destination());
        assert!(Target::resolve(&PolicySet::default(), &auth(), &target.destination()).is_none());
    }

    proptest! {
        /// Whatever is asked for, a browser that resolves the answer against the application stays on it.
        #[test]
        fn the_way_back_never_leaves_the_application(wanted in "(/|//|/app|https?:)?[ -~\\t\\n]{0,40}") {
            let base = url::Url::parse("https://app.example.com/").unwrap();
            let resolved = base.join(&back(&exact("/app"), Some(&wanted))).unwrap();
            prop_assert_eq!(resolved.host_str(), Some("app.example.com"));
            prop_assert!(resolved.path().starts_with("/app"));
        }
    }
}

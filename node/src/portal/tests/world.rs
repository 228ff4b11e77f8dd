//! A node with a portal and nothing else, and browsers to visit it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use tokio::sync::watch;

use super::super::{Portal, TunnelFacts, Visit};
use crate::clients::Clients;
use crate::clock;
use crate::config::{Active, Config};
use crate::context::Context;
use crate::cookie;
use crate::event::{EventSettings, Events};
use crate::flow::{Host, Path, SessionId};
use crate::identity::password;
use crate::identity::service::Services;
use crate::metrics::Metrics;
use crate::saas::saml::SamlProvider;
use crate::seal::Seal;
use crate::session::Sessions;
use crate::store::{EventFilter, Store, User};
use crate::token::{Kind, Tokens};
use crate::tunnel::Devices;
use crate::tunnel::enrolment::key_of_node;

pub(super) const AUTH: &str = "access.example.com";
pub(super) const WIKI: &str = "wiki.example.com";
pub(super) const SHOP: &str = "shop.elsewhere.test";
pub(super) const PASSWORD: &str = "correct horse";

const CONFIG: &str = r#"
[node]
domain = "access.example.com"
listen = "[::]:443"
session = "2h"
[[node.certificate]]
cert = "file"
key = "file"
[gate]
dataplane = "userspace"
ungated = true
[[identity_provider]]
name = "local"
type = "local"
[[policy]]
name = "staff"
action = "allow"
include = [{ email_domain = "example.com" }]
session = "1h"
[[policy]]
name = "ops"
action = "allow"
include = [{ group = "ops" }]
[[application]]
name = "wiki"
url = "https://wiki.example.com"
origin = "http://10.0.0.5:8080"
policies = ["staff"]
[[application]]
name = "wiki-admin"
url = "https://wiki.example.com/admin"
origin = "http://10.0.0.5:8081"
policies = ["ops"]
[[application]]
name = "shop"
url = "https://shop.elsewhere.test"
origin = "http://10.0.0.6:8080"
policies = ["staff"]
"#;

pub(super) struct World {
    pub(super) portal: Portal,
    pub(super) context: Arc<Context>,
    pub(super) reload: watch::Sender<Arc<Active>>,
    _directory: tempfile::TempDir,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with("").await
    }

    /// With more configuration behind the usual.
    pub(super) async fn with(more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "x").unwrap();
        let config = Config::parse(&format!("{CONFIG}{more}"), &directory.path().join("node.toml")).unwrap();
        let authority = config.node.authority();
        let metadata = crate::metadata::Metadata::default();
        let (reload, active) = watch::channel(Arc::new(Active::new(config)));
        let store = Store::open(directory.path()).unwrap();
        for (name, email, groups) in [
            ("ann", "ann@example.com", vec!["ops"]),
            ("bob", "bob@example.com", vec![]),
            ("eve", "eve@evil.test", vec![]),
        ] {
            let user = User {
                name: name.into(),
                email: email.parse().unwrap(),
                groups: groups.into_iter().map(str::to_owned).collect(),
                password_hash: password::hash(PASSWORD).unwrap(),
                created_at: clock::now(),
            };
            store.add_user(user).await.unwrap();
        }
        let metrics = Arc::new(Metrics::new().unwrap());
        let settings =
            EventSettings { file: None, retention: std::time::Duration::from_secs(3600), max_size: 1 << 20 };
        let sessions = Sessions::load(store.clone(), Arc::clone(&metrics), clock::now()).await.unwrap();
        let clients = Clients::load(store.clone(), &sessions, Arc::clone(&metrics), clock::now()).await;
        let facts = TunnelFacts {
            address: "access.example.com:443".parse().unwrap(),
            key: key_of_node(&store).await.unwrap(),
            devices: Devices::load(store.clone(), None).await.unwrap(),
            ticket: Arc::new(|| Some([7; 16])),
        };
        let context = Arc::new(Context {
            active,
            store: store.clone(),
            sessions,
            clients: clients.unwrap(),
            services: Services::load(store.clone()).await.unwrap(),
            tokens: Tokens::load(store.clone(), &authority, clock::now()).await.unwrap(),
            saml: SamlProvider::load(store.clone(), clock::now()).await.unwrap(),
            metadata,
            seal: Seal::new(&[7; 32]).unwrap(),
            events: Events::start(settings, store, Arc::clone(&metrics)).unwrap(),
            carried: crate::tunnel::carrier::Carried::new(None, &metrics),
            metrics,
            tunnels: Arc::default(),
            recent: crate::recent::Recent::default(),
        });
        Self { portal: Portal::new(Arc::clone(&context), facts), context, reload, _directory: directory }
    }

    /// Every event so far, as `action allowed reason user`.
    pub(super) async fn events(&self) -> Vec<String> {
        self.context.events.flush().await;
        let filter = EventFilter { limit: 1000, ..EventFilter::default() };
        let mut events: Vec<(i64, String)> =
            self.context.store.events(filter).await.unwrap().all().await.unwrap();
        events.sort_unstable_by_key(|(id, _)| *id);
        events
            .into_iter()
            .map(|(_, line)| {
                let event: serde_json::Value = serde_json::from_str(&line).unwrap();
                let text = |name: &str| event[name].as_str().unwrap_or("-").to_owned();
                let user =
                    event["user_email"].as_str().unwrap_or_else(|| event["user_id"].as_str().unwrap_or("-"));
                format!("{} {} {} {user}", text("action"), event["allowed"], text("reason"))
            })
            .collect()
    }
}

/// A browser: cookies by host, name and path, as RFC 6265bis keeps them.
#[derive(Default, Clone)]
pub(super) struct Browser {
    pub(super) cookies: BTreeMap<(String, String, String), String>,
    pub(super) headers: HeaderMap,
}

pub(super) struct Page {
    pub(super) response: Response<Bytes>,
}

impl Page {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn location(&self) -> &str {
        self.response.headers().get(header::LOCATION).map_or("", |value| value.to_str().unwrap())
    }

    pub(super) fn body(&self) -> &str {
        std::str::from_utf8(self.response.body()).unwrap()
    }

    pub(super) fn cookies(&self) -> Vec<&str> {
        self.response
            .headers()
            .get_all(header::SET_COOKIE)
            .iter()
            .map(|value| value.to_str().unwrap())
            .collect()
    }

    /// Names of the cookies that are set and not removed.
    pub(super) fn cookie_names(&self) -> Vec<&str> {
        self.cookies()
            .into_iter()
            .filter(|line| !line.contains("Max-Age=0"))
            .map(|line| line.split('=').next().unwrap())
            .collect()
    }

    pub(super) fn ticket(&self) -> String {
        let from = self.body().split("name=\"ticket\" value=\"").nth(1).expect("a form with a ticket");
        from.split('"').next().unwrap().to_owned()
    }
}

impl Browser {
    pub(super) fn set(&mut self, name: &'static str, value: &str) -> &mut Self {
        self.headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        self
    }

    pub(super) async fn get(&mut self, world: &World, url: &str) -> Page {
        self.send(world, Method::GET, url, "").await
    }

    pub(super) async fn post(&mut self, world: &World, url: &str, form: &[(&str, &str)]) -> Page {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        self.send(world, Method::POST, url, &body).await
    }

    pub(super) async fn send(&mut self, world: &World, method: Method, url: &str, body: &str) -> Page {
        let visit = self.visit(method, url, body);
        let host = visit.host.to_string();
        let response = world.portal.answer(visit).await;
        self.keep(&host, &response);
        Page { response }
    }

    /// Asks for a page of an application as nobody, as the edge would pass it on.
    pub(super) fn challenge(&mut self, world: &World, url: &str) -> Page {
        let visit = self.visit(Method::GET, url, "");
        let host = visit.host.to_string();
        let active = world.context.active();
        let application = active.policies.route(&visit.host, &visit.path).unwrap();
        let response = world.portal.challenge(&visit, application);
        self.keep(&host, &response);
        Page { response }
    }

    /// From an application to the login page.
    pub(super) async fn visit_login(&mut self, world: &World, url: &str) -> Page {
        let challenge = self.challenge(world, url);
        assert_eq!(challenge.status(), StatusCode::FOUND);
        self.get(world, challenge.location()).await
    }

    /// Fills in the login form of `page`.
    pub(super) async fn fill_in(
        &mut self,
        world: &World,
        url: &str,
        page: &Page,
        user: &str,
        password: &str,
    ) -> Page {
        let form = [("ticket", page.ticket()), ("username", user.into()), ("password", password.into())];
        let form: Vec<(&str, &str)> = form.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.post(world, url, &form).await
    }

    /// Asks for an application and logs in by password; the answer to the form.
    pub(super) async fn log_in(&mut self, world: &World, url: &str, user: &str, password: &str) -> Page {
        let challenge = self.challenge(world, url);
        let page = self.get(world, challenge.location()).await;
        self.fill_in(world, challenge.location(), &page, user, password).await
    }

    /// Whether the browser could open `url` of an application: token, binding and live session.
    pub(super) fn holds(&self, world: &World, url: &str) -> bool {
        let visit = self.visit(Method::GET, url, "");
        let active = world.context.active();
        let Some(application) = active.policies.route(&visit.host, &visit.path) else { return false };
        let now = clock::now();
        let bound: Vec<SessionId> = cookie::read_all(&visit.headers, cookie::BINDING)
            .filter_map(|value| world.context.tokens.check_binding(value, &visit.host))
            .collect();
        cookie::read_all(&visit.headers, cookie::AUTHORIZATION)
            .filter_map(|jwt| world.context.tokens.verify(jwt, Kind::Application(&application.aud), now).ok())
            .any(|claims| {
                bound.contains(&claims.identity_nonce)
                    && world.context.sessions.get(claims.identity_nonce, now).is_some()
            })
    }

    pub(super) fn visit(&self, method: Method, url: &str, body: &str) -> Visit {
        let url = url.strip_prefix("https://").expect("an https address");
        let (host, rest) = url.split_at(url.find('/').expect("a path"));
        let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
        let mut headers = self.headers.clone();
        let sent: Vec<String> = self
            .cookies
            .iter()
            .filter(|((of, _, below), _)| of == host && (below == "/" || path.starts_with(below.as_str())))
            .map(|((_, name, _), value)| format!("{name}={value}"))
            .collect();
        if !sent.is_empty() {
            headers.insert(header::COOKIE, HeaderValue::from_str(&sent.join("; ")).unwrap());
        }
        if method == Method::POST {
            headers
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        }
        Visit {
            ray: clock::new_ray(),
            host: Host::parse(host).unwrap(),
            method,
            path: Path::parse(path, false).unwrap(),
            query: query.map(str::to_owned),
            headers,
            body: Bytes::copy_from_slice(body.as_bytes()),
            address: [192, 0, 2, 7].into(),
        }
    }

    fn keep(&mut self, host: &str, response: &Response<Bytes>) {
        for line in response.headers().get_all(header::SET_COOKIE) {
            let line = line.to_str().unwrap();
            let mut parts = line.split("; ");
            let (name, value) = parts.next().unwrap().split_once('=').unwrap();
            let attributes: Vec<&str> = parts.collect();
            for must in ["Secure", "HttpOnly", "SameSite=Lax"] {
                assert!(attributes.contains(&must), "{line}");
            }
            assert!(!line.contains("Domain"), "{line}");
            let below = attributes.iter().rev().find_map(|part| part.strip_prefix("Path=")).unwrap();
            assert!(!name.starts_with("__Host-") || below == "/", "{line}");
            let key = (host.to_owned(), name.to_owned(), below.to_owned());
            if attributes.contains(&"Max-Age=0") {
                self.cookies.remove(&key);
            } else {
                self.cookies.insert(key, value.to_owned());
            }
        }
    }
}

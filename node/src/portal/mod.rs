//! The portal: login, hand-over, logout and the launcher, everything below `/cdn-cgi/access/` and the whole auth
//! domain.
//!
//! ```text
//! application host                    auth domain                          identity provider
//! 1 challenge ──302, CF_AppSession──▶ 2 login: session? provider? form?
//!                                     3 start ───────────────────────────▶ 4 person proves who they are
//!                                     5 callback ◀──────────302, code, state
//!                                     6 new session, global cookies
//! 8 authorized ◀──────302, one-time── 7 decide ─▶ Permit ─▶ one-time code
//! 9 application cookies, 302 ─▶ where the person wanted to go
//! ```
//!
//! Whatever a stranger can start is kept by their own browser, sealed; the node stores something only for people who
//! have proven who they are. A token never travels in an address: the one-time code does, and it is worth nothing
//! without the cookie of the browser that started.

mod browser;
mod callback;
mod cert_sign;
mod cli;
mod code;
mod consumer;
mod farewell;
pub(crate) mod form;
mod handover;
mod launcher;
mod login;
mod logout;
mod me;
pub mod page;
mod parked;
mod posted;
mod providers;
mod saml;
mod site;
mod sso;
mod target;
mod upstream;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode};

use crate::clock;
use crate::config::Active;
use crate::context::Context;
use crate::event::{Action, Event};
use crate::flow::{Application, Host, Path, RayId, Reason, Session, UnixTime};
use crate::identity::local::LocalLogin;
use crate::identity::throttle::{Named, Networks};
use crate::ssh_ca::SshCa;

use self::cli::Cli;
pub use self::cli::TunnelFacts;
use self::page::PageFacts;
pub use self::posted::Posted;
use self::providers::Providers;
use self::site::Site;

/// A request as the portal takes it: canonical and bounded.
#[derive(Debug, Clone)]
pub struct Visit {
    pub ray: RayId,
    pub host: Host,
    pub method: Method,
    pub path: Path,
    /// Without the question mark.
    pub query: Option<String>,
    pub headers: HeaderMap,
    /// Read only where [`Portal::reads`] it.
    pub body: Bytes,
    /// Source address; an IPv4-mapped IPv6 address has been turned into the IPv4 one.
    pub address: IpAddr,
}

/// Below this path, on every host, the portal answers.
pub const PREFIX: &str = "/cdn-cgi/access/";

/// Answers what belongs to login. One for the whole node.
pub struct Portal {
    context: Arc<Context>,
    local: LocalLogin,
    providers: Providers,
    ssh_ca: SshCa,
    /// Bound how often a login that is at an identity provider, and a network, can make the node ask that one in vain.
    answers: Named,
    asked: Networks,
    /// Bound how often a network can make the node verify what says that it comes from an identity provider: assertions,
    /// and logouts.
    assertions: Networks,
    logouts: Networks,
    /// Bounds how often a network can make the node sign for nobody.
    signatures: Networks,
    /// Bounds how often a session can make the node write to its store.
    writes: Named,
    cli: Cli,
    tunnel: TunnelFacts,
    started: Instant,
}

impl Portal {
    pub fn new(context: Arc<Context>, tunnel: TunnelFacts) -> Self {
        Self {
            ssh_ca: SshCa::new(context.store.clone()),
            local: LocalLogin::default(),
            providers: Providers::new(context.metadata.clone()),
            context,
            answers: Named::answers(),
            asked: Networks::default(),
            assertions: Networks::default(),
            logouts: Networks::default(),
            signatures: Networks::default(),
            writes: Named::writes(),
            cli: Cli::default(),
            tunnel,
            started: Instant::now(),
        }
    }

    /// Answers a request below [`PREFIX`] on any host, or any request on the auth domain, and writes its events.
    pub async fn answer(&self, visit: Visit) -> Response<Bytes> {
        self.call(&visit).answer().await
    }

    /// Answers a request for an application that nobody has logged in for: a redirect to the login, or 401 where
    /// following one would be wrong (scripts, images, API clients).
    pub fn challenge(&self, visit: &Visit, application: &Arc<Application>) -> Response<Bytes> {
        self.call(visit).challenge(application)
    }

    fn call<'a>(&'a self, visit: &'a Visit) -> Call<'a> {
        let active = self.context.active();
        let site = Site::new(&active.config.node);
        Call { portal: self, context: &self.context, visit, active, site, now: clock::now() }
    }
}

/// One request being answered. Its methods are spread over the files of this folder by topic.
struct Call<'a> {
    portal: &'a Portal,
    context: &'a Context,
    visit: &'a Visit,
    active: Arc<Active>,
    site: Site,
    now: UnixTime,
}

impl Call<'_> {
    async fn answer(&self) -> Response<Bytes> {
        let on_auth = self.visit.host == self.site.auth;
        if !on_auth && !self.active.policies.has_host(&self.visit.host) {
            return self.refuse(StatusCode::NOT_FOUND, Reason::NoApplication);
        }
        let path = self.visit.path.as_str();
        let endpoint = posted::split(&self.visit.path);
        // Its endpoints say themselves what they take.
        if let Some(("sso", rest)) = endpoint
            && on_auth
        {
            return self.sso(rest).await;
        }
        if let Some(("saml", rest)) = endpoint
            && on_auth
        {
            return self.saml_provider(rest).await;
        }
        let (gets, posts) = posted::methods(endpoint);
        let allowed = match self.visit.method {
            Method::GET | Method::HEAD => gets,
            Method::POST => posts,
            _ => false,
        };
        if !allowed {
            let mut response = self.refuse(StatusCode::METHOD_NOT_ALLOWED, Reason::BadRequest);
            let methods = match (gets, posts) {
                (true, true) => "GET, HEAD, POST",
                (true, false) => "GET, HEAD",
                (false, _) => "POST",
            };
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
            return response;
        }
        match endpoint {
            Some(("login", host)) if on_auth => self.login(host).await,
            Some(("login", _)) => self.restart(),
            Some(("callback", own)) if on_auth => self.callback(own).await,
            Some(("authorized", "")) if !on_auth => self.authorized().await,
            Some(("logout", "")) => self.logout().await,
            Some(("logout", "onward")) if on_auth => self.onward_logout().await,
            Some(("cli", endpoint)) if on_auth => self.cli(endpoint).await,
            Some(("get-identity", "")) => self.identity(),
            Some(("certs", "")) => self.certs(),
            Some(("cert_sign", "")) => self.cert_sign().await,
            Some(("icon.svg", "")) => page::icon(),
            None if on_auth && path == "/" => self.launcher(),
            _ => self.refuse(StatusCode::NOT_FOUND, Reason::NoApplication),
        }
    }

    /// A refusal page.
    fn refuse(&self, status: StatusCode, reason: Reason) -> Response<Bytes> {
        page::refusal(self.facts(status, reason))
    }

    /// Takes a write to the store from a session's budget, or says how long to wait.
    fn charge_write(&self, session: &Session) -> Result<(), Duration> {
        self.portal.writes.charge(session.id, self.portal.started.elapsed())
    }

    /// The page for a session that writes faster than its budget, and the rest of the event about it.
    fn too_fast(
        &self,
        wait: Duration,
        application: Option<&Application>,
        event: Event,
    ) -> (Response<Bytes>, Event) {
        let (status, reason) = (StatusCode::TOO_MANY_REQUESTS, Reason::Throttled);
        let page = page::refusal(PageFacts {
            application: application.map(|application| application.name.as_str()),
            retry_after: u32::try_from(wait.as_secs().saturating_add(1)).ok(),
            ..self.facts(status, reason)
        });
        let event = match application {
            Some(application) => event.application(application),
            None => event,
        };
        (page, event.reason(reason).status(status.as_u16()).detail("writes of one login"))
    }

    fn facts(&self, status: StatusCode, reason: Reason) -> PageFacts<'_> {
        PageFacts {
            host: Some(&self.site.auth),
            ..PageFacts::new(status, reason, self.visit.ray, &self.visit.headers)
        }
    }

    /// An event about this request, before it says anything of its own.
    fn event(&self, action: Action, allowed: bool) -> Event {
        Event::new(action, allowed).ray(self.visit.ray).host(&self.visit.host).address(self.visit.address)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.visit.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

#[cfg(test)]
mod tests;

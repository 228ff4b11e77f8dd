//! The one event of a request, written when its reply is complete.
//!
//! A [`Record`] travels with the reply and emits when it is dropped, so no way out of a request can lose it. What
//! lasts (a WebSocket, an event stream) is written at its start, and its end as a `disconnect` of its own.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{Method, StatusCode};

use crate::context::Context;
use crate::event::{Action, Event};
use crate::flow::{Application, Host, Path, RayId, Reason, Service, Session};

/// What a request is about, as far as it is known.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub(super) ray: RayId,
    pub(super) address: IpAddr,
    pub(super) host: Option<Host>,
    pub(super) method: Option<Method>,
    pub(super) path: Option<Path>,
    pub(super) application: Option<Arc<Application>>,
    pub(super) session: Option<Arc<Session>>,
    pub(super) service: Option<Arc<Service>>,
    pub(super) policy: Option<String>,
}

impl About {
    /// Where nothing of the request could be read yet.
    pub(super) fn new(ray: RayId, address: IpAddr) -> Self {
        Self {
            ray,
            address,
            host: None,
            method: None,
            path: None,
            application: None,
            session: None,
            service: None,
            policy: None,
        }
    }

    fn event(&self, action: Action, allowed: bool) -> Event {
        let mut event = Event::new(action, allowed).ray(self.ray).address(self.address);
        if let Some(host) = &self.host {
            event = event.host(host);
        }
        if let Some(method) = &self.method {
            event = event.method(method);
        }
        if let Some(path) = &self.path {
            event = event.path(path.as_str());
        }
        if let Some(session) = &self.session {
            event = event.session(session);
        }
        if let Some(service) = &self.service {
            event = event.service(service);
        }
        if let Some(policy) = &self.policy {
            event = event.policy(policy);
        }
        if let Some(application) = &self.application {
            event = event.application(application);
            if let Some(connector) = application.connector() {
                event = event.connector(connector);
            }
        }
        event
    }
}

/// The decision about one request and what became of it.
pub(super) struct Record {
    ctx: Arc<Context>,
    about: About,
    allowed: bool,
    reason: Option<Reason>,
    detail: Option<String>,
    status: Option<StatusCode>,
    started: Instant,
    /// Body bytes towards the client (of a WebSocket: both ways).
    bytes: u64,
    /// The decision is written already; what is left is the end.
    lasting: bool,
    cut: bool,
    /// How what lasted ended.
    ending: Option<String>,
}

impl Record {
    pub(super) fn allowed(ctx: &Arc<Context>, about: About, started: Instant) -> Self {
        Self::new(ctx, about, true, None, started)
    }

    pub(super) fn denied(ctx: &Arc<Context>, about: About, reason: Reason, started: Instant) -> Self {
        Self::new(ctx, about, false, Some(reason), started)
    }

    fn new(
        ctx: &Arc<Context>,
        about: About,
        allowed: bool,
        reason: Option<Reason>,
        started: Instant,
    ) -> Self {
        Self {
            ctx: Arc::clone(ctx),
            about,
            allowed,
            reason,
            detail: None,
            status: None,
            started,
            bytes: 0,
            lasting: false,
            cut: false,
            ending: None,
        }
    }

    pub(super) fn about(&self) -> &About {
        &self.about
    }

    /// The request was allowed, but something failed after that.
    pub(super) fn failed(&mut self, reason: Reason) {
        self.reason = Some(reason);
    }

    /// What a WebSocket's page or a broken body turns an allowed request into.
    pub(super) fn refused(&mut self, reason: Reason) {
        self.allowed = false;
        self.reason = Some(reason);
    }

    pub(super) fn detail(&mut self, detail: impl std::fmt::Display) {
        self.detail = Some(detail.to_string());
    }

    /// The head of the reply is known.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
        self.ctx.metrics.request_seconds.observe(self.started.elapsed().as_secs_f64());
    }

    pub(super) fn count(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// The reply lasts: writes the decision now.
    pub(super) fn begin(&mut self) {
        if !self.lasting {
            self.ctx.events.emit(self.decision());
            self.lasting = true;
            self.started = Instant::now();
        }
    }

    /// The session ended under the reply.
    pub(super) fn cut(&mut self) {
        self.cut = true;
    }

    /// How the reply that lasted ended, in words.
    pub(super) fn ended(&mut self, how: impl std::fmt::Display) {
        self.ending = Some(how.to_string());
    }

    fn decision(&self) -> Event {
        let mut event = self.about.event(Action::Request, self.allowed);
        if let Some(reason) = self.reason {
            event = event.reason(reason);
        }
        if let Some(detail) = &self.detail {
            event = event.detail(detail);
        }
        if let Some(status) = self.status {
            event = event.status(status.as_u16());
        }
        event
    }

    fn end(&self) -> Event {
        let mut event = self.about.event(Action::Disconnect, !self.cut);
        if let Some(ending) = &self.ending {
            event = event.detail(ending);
        }
        if self.cut { event.reason(Reason::SessionEnded) } else { event }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let finish = |event: Event| event.bytes(self.bytes).duration(self.started.elapsed());
        if !self.lasting {
            self.ctx.events.emit(finish(self.decision()));
        }
        if self.lasting || self.cut {
            self.ctx.events.emit(finish(self.end()));
        }
    }
}

//! The way of one request: canonicalise, identify, decide, and answer.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;

use crate::clock;
use crate::config::Active;
use crate::flow::{Facts, Kind, PathError, Reason, Web};
use crate::policy::{Decision, PermitKind, PermitOf, decide};
use crate::portal::page::{self, PageFacts};
use crate::portal::{PREFIX, Visit};

use super::body::{InFlight, Reply, Upload};
use super::connection::{Peer, stop};
use super::identify::{BadCredential, Callers, identify};
use super::lasting::{Gone, Lease};
use super::proxy::{self, ProxyError};
use super::record::{About, Record};
use super::request::{Asked, Misread, canonicalise};
use super::shares::Holders;
use super::strict::Violation;
use super::{Edge, headers, upgrade};

/// Answers a request; writes its one event, unless the portal does.
pub(super) async fn answer(
    edge: Arc<Edge>,
    peer: Arc<Peer>,
    mut request: Request<Incoming>,
) -> Response<Reply> {
    let started = Instant::now();
    let in_flight = InFlight::new(&peer.activity);
    let violation = peer.strict.as_ref().and_then(|strict| strict.next_request());
    let switch = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    let call = Call {
        about: About::new(clock::new_ray(), peer.address),
        accept: head.headers.get_all(header::ACCEPT).iter().cloned().collect(),
        head_only: head.method == Method::HEAD,
        closes: peer.strict.is_some() && (violation.is_some() || head.headers.contains_key(header::UPGRADE)),
        edge,
        peer,
        started,
        in_flight,
    };
    if let Some(violation) = violation {
        let status = match violation {
            Violation::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        return call.refuse(status, Reason::BadRequest, violation);
    }
    if let Some(protocol) = head.extensions.get::<Protocol>() {
        return call.open_datagrams(&head, protocol, switch);
    }
    call.route(head, body, switch).await
}

/// One request being answered.
pub(super) struct Call {
    pub(super) edge: Arc<Edge>,
    pub(super) peer: Arc<Peer>,
    pub(super) about: About,
    pub(super) started: Instant,
    in_flight: InFlight,
    /// Which kind of page the client reads.
    accept: Vec<HeaderValue>,
    head_only: bool,
    /// The connection cannot carry another request after this one, unless it switches protocols.
    closes: bool,
}

impl Call {
    async fn route(mut self, head: Parts, body: Incoming, switch: OnUpgrade) -> Response<Reply> {
        let active = self.edge.ctx.active();
        let asked = match canonicalise(&head, body.is_end_stream(), &active.policies) {
            Ok(asked) => asked,
            Err(misread) => {
                self.about.method = Some(head.method);
                self.closes = self.peer.strict.is_some();
                let status = match misread {
                    Misread::Method => StatusCode::NOT_IMPLEMENTED,
                    Misread::Path(PathError::TooLong) => StatusCode::URI_TOO_LONG,
                    _ => StatusCode::BAD_REQUEST,
                };
                return self.refuse(status, Reason::BadRequest, misread);
            }
        };
        self.about.host = Some(asked.host.clone());
        self.about.method = Some(asked.method.clone());
        self.about.path = Some(asked.path.clone());

        if !self.peer.certificate.covers(&asked.host) {
            return self.refuse(StatusCode::MISDIRECTED_REQUEST, Reason::Misdirected, "");
        }
        let on_auth = asked.host == active.config.node.domain;
        if !on_auth && !active.policies.has_host(&asked.host) {
            return self.refuse(StatusCode::NOT_FOUND, Reason::NoApplication, "");
        }
        if on_auth || is_portal(asked.path.as_str()) {
            return self.portal(asked, head.headers, body).await;
        }
        let Some(application) = active.policies.route(&asked.host, &asked.path) else {
            return self.refuse(StatusCode::NOT_FOUND, Reason::NoApplication, "");
        };
        if active.policies.has_second_reading(&asked.host, &asked.path) {
            let told = "the path could be read as one of another application";
            return self.refuse(StatusCode::BAD_REQUEST, Reason::BadRequest, told);
        }
        self.about.application = Some(Arc::clone(application));

        let now = clock::now();
        let place = (&asked.host, &application.aud);
        let callers = match identify(&head.headers, place, self.peer.address, &self.edge.ctx, now) {
            Ok(callers) => callers,
            Err(bad) => return self.bad_credential(&bad),
        };
        let facts = Facts {
            application,
            session: callers.person.as_ref().map(|person| &person.live.session),
            service: callers.service.as_ref().map(|live| &live.service),
            address: self.peer.address,
        };
        match decide(&active.policies, &facts, now) {
            Decision::Allow(permit) => {
                // Who asks is known to a bypass no more than to anybody.
                let callers =
                    Callers { person: callers.person.filter(|_| permit.session().is_some()), ..callers };
                self.about.session = permit.session().cloned();
                self.about.service = permit.service().cloned();
                self.about.policy = Some(permit.policy().to_owned());
                match permit.kind() {
                    PermitKind::Web(permit) => {
                        self.forward(&active, asked, head, body, switch, permit, callers).await
                    }
                    PermitKind::Private(permit) => {
                        self.private(&asked, &head.headers, switch, permit, &callers).await
                    }
                    // Elsewhere: no host of ours leads there.
                    PermitKind::Saas(_) => {
                        self.refuse(StatusCode::NOT_FOUND, Reason::NoApplication, "an application elsewhere")
                    }
                }
            }
            Decision::Login(_) => self.challenge(asked, head.headers, callers.nobody),
            Decision::Deny(denial) => {
                self.about.session = callers.person.map(|person| person.live.session);
                self.about.service = callers.service.map(|live| live.service);
                self.about.policy = denial.policy;
                let named = (asked.host, Arc::clone(application));
                let mut reply = self.refuse(StatusCode::FORBIDDEN, denial.reason, "");
                if matches!(named.1.kind, Kind::Private(_)) {
                    page::name_application(reply.headers_mut(), &named.0, &named.1);
                }
                reply
            }
        }
    }

    /// Hands a bounded request to the portal, which writes its own events.
    async fn portal(self, asked: Asked, headers: HeaderMap, body: Incoming) -> Response<Reply> {
        if asked.websocket {
            return self.refuse(StatusCode::BAD_REQUEST, Reason::BadRequest, Violation::Upgrade);
        }
        // Only forms have a body to read; what comes with anything else is not waited for.
        if asked.method != Method::POST && !body.is_end_stream() {
            return self.refuse(
                StatusCode::PAYLOAD_TOO_LARGE,
                Reason::BadRequest,
                "a body where none belongs",
            );
        }
        let (edge, peer) = (Arc::clone(&self.edge), Arc::clone(&self.peer));
        let read = match edge.portal.reads(&asked.host, &asked.path) {
            Some(posted) => {
                let from = (peer.address, edge.ctx.recent.contains(peer.address, clock::now()));
                edge.posts.read(body, posted, from, &peer.posts).await.map(Some)
            }
            None => Ok(None),
        };
        let post = match read {
            Ok(post) => post,
            Err(unread) => {
                let (status, reason) = unread.answer();
                return self.refuse(status, reason, unread);
            }
        };
        let body = post.as_ref().map(|post| post.bytes.clone()).unwrap_or_default();
        let reply = self.edge.portal.answer(self.visit(asked, headers, body)).await;
        self.edge.ctx.metrics.request_seconds.observe(self.started.elapsed().as_secs_f64());
        self.own(reply, None)
    }

    /// A program that offered a service token is told that it is not good, whatever else it may do.
    fn bad_credential(self, bad: &BadCredential) -> Response<Reply> {
        let status = match bad.reason() {
            Reason::Throttled => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::UNAUTHORIZED,
        };
        let mut reply = self.refuse(status, bad.reason(), bad);
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Cf-Access-Client");
            reply.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        reply
    }

    fn challenge(self, asked: Asked, headers: HeaderMap, reason: Reason) -> Response<Reply> {
        let mut record = Record::denied(&self.edge.ctx, self.about.clone(), reason, self.started);
        let Some(application) = self.about.application.clone() else {
            return self.refuse_record(StatusCode::NOT_FOUND, Reason::NoApplication, record);
        };
        let visit = self.visit(asked, headers, Bytes::new());
        let reply = self.edge.portal.challenge(&visit, &application);
        record.answered(reply.status());
        self.own(reply, Some(record))
    }

    fn visit(&self, asked: Asked, headers: HeaderMap, body: Bytes) -> Visit {
        Visit {
            ray: self.about.ray,
            host: asked.host,
            method: asked.method,
            path: asked.path,
            query: asked.query,
            headers,
            body,
            address: self.peer.address,
        }
    }

    /// Sends an allowed request to its origin.
    #[expect(clippy::too_many_arguments, reason = "the parts of one request, taken apart a moment ago")]
    async fn forward(
        self,
        active: &Active,
        asked: Asked,
        mut head: Parts,
        body: Incoming,
        switch: OnUpgrade,
        permit: PermitOf<'_, Web>,
        callers: Callers,
    ) -> Response<Reply> {
        let mut record = Record::allowed(&self.edge.ctx, self.about.clone(), self.started);
        let origin = &permit.kind().origin;
        let public_host = active.config.node.authority_of(&asked.host);
        let email = permit.permit().session().and_then(|session| session.email.as_ref());
        let assertion = match callers.person.as_ref().and_then(|person| person.assertion.clone()) {
            Some(assertion) => Some(assertion),
            None => match self.edge.assertions.of(permit.permit(), &self.edge.ctx.tokens, clock::now()) {
                Ok(assertion) => assertion,
                Err(error) => {
                    record.refused(Reason::Internal);
                    record.detail(error);
                    return self.refuse_record(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal, record);
                }
            },
        };
        let told = headers::Told {
            origin_host: origin.host_header.as_deref().unwrap_or(&public_host),
            public_host: &public_host,
            address: self.peer.address,
            ray: self.about.ray,
            bearer: assertion.as_deref().map(|assertion| (assertion, email.map(|e| e.as_str()))),
        };
        let foreign = asked.websocket
            && !upgrade::is_own_origin(&head.headers, &public_host, &permit.kind().allowed_origins);
        if headers::for_origin(&mut head.headers, &told, origin.scheme.is_http2()).is_err() {
            record.refused(Reason::Internal);
            return self.refuse_record(StatusCode::BAD_REQUEST, Reason::Internal, record);
        }
        // What the library knows about the inner side of the client's connection is not for the origin's.
        head.extensions.clear();
        if foreign {
            record.refused(Reason::ForeignOrigin);
            return self.refuse_record(StatusCode::FORBIDDEN, Reason::ForeignOrigin, record);
        }
        let Some(share) = self.edge.shares.take(Holders::of(permit.permit(), self.peer.address)) else {
            record.refused(Reason::Throttled);
            record.detail("too many requests of one login or person at a time");
            return self.refuse_record(StatusCode::TOO_MANY_REQUESTS, Reason::Throttled, record);
        };
        let ends = (stop(&self.peer), self.edge.patience);
        let address = self.peer.address;
        let lease = Arc::new(Lease::new(&self.edge.ctx, permit.permit(), address, &callers, ends, share));
        if asked.websocket {
            return upgrade::websocket(self, &asked, head, switch, permit, lease, record).await;
        }
        if head.headers.get(header::CONTENT_TYPE).is_some_and(is_conversation) {
            lease.progress().converse();
        }
        let upload = Upload::new(body, &lease);
        let target = asked.target();
        let sending =
            proxy::proxy(&self.edge.upstreams, &self.edge.ctx.tunnels, permit, &target, head, upload);
        match lease.head(sending).await {
            Ok(Ok(response)) => self.relay(response, lease, record),
            Ok(Err(error)) => self.failed(&error, record),
            Err(gone) => self.gone(gone, record),
        }
    }

    /// Passes an origin's response on.
    pub(super) fn relay(
        self,
        response: Response<Incoming>,
        lease: Arc<Lease>,
        mut record: Record,
    ) -> Response<Reply> {
        let (mut head, body) = response.into_parts();
        headers::for_client(&mut head.headers);
        record.answered(head.status);
        if head.headers.get(header::CONTENT_TYPE).is_some_and(is_event_stream) {
            record.begin();
        }
        let mut reply = Response::new(Reply::origin(body, lease, record, self.in_flight));
        *reply.status_mut() = head.status;
        *reply.headers_mut() = head.headers;
        if self.closes {
            close(reply.headers_mut());
        }
        reply
    }

    /// An allowed request that got no response.
    pub(super) fn failed(self, error: &ProxyError, mut record: Record) -> Response<Reply> {
        let reason = error.reason();
        record.detail(error);
        let status = match error {
            ProxyError::Body => {
                record.refused(reason);
                StatusCode::BAD_REQUEST
            }
            _ => {
                record.failed(reason);
                match error {
                    ProxyError::Late => StatusCode::GATEWAY_TIMEOUT,
                    error if error.is_temporary() => StatusCode::SERVICE_UNAVAILABLE,
                    _ => StatusCode::BAD_GATEWAY,
                }
            }
        };
        self.refuse_record(status, reason, record)
    }

    /// The origin did not answer while it could.
    pub(super) fn gone(self, gone: Gone, mut record: Record) -> Response<Reply> {
        match gone {
            Gone::Over => {
                record.cut();
                self.refuse_record(StatusCode::FORBIDDEN, Reason::SessionEnded, record)
            }
            Gone::Late => self.failed(&ProxyError::Late, record),
        }
    }

    pub(super) fn refuse(
        self,
        status: StatusCode,
        reason: Reason,
        detail: impl std::fmt::Display,
    ) -> Response<Reply> {
        let mut record = Record::denied(&self.edge.ctx, self.about.clone(), reason, self.started);
        record.detail(detail);
        self.refuse_record(status, reason, record)
    }

    /// Answers with a page, and the given record.
    pub(super) fn refuse_record(
        self,
        status: StatusCode,
        reason: Reason,
        mut record: Record,
    ) -> Response<Reply> {
        record.answered(status);
        let accept: HeaderMap = self.accept.iter().map(|kind| (header::ACCEPT, kind.clone())).collect();
        let about = record.about();
        let person = about.session.as_ref().map(|session| match &session.email {
            Some(email) => email.as_str(),
            None => session.display_name.as_str(),
        });
        let reply = page::refusal(PageFacts {
            application: about.application.as_ref().map(|application| application.name.as_str()),
            host: about.host.as_ref(),
            person,
            retry_after: (status == StatusCode::SERVICE_UNAVAILABLE
                || status == StatusCode::TOO_MANY_REQUESTS)
                .then_some(page::SOON),
            ..PageFacts::new(status, reason, about.ray, &accept)
        });
        self.own(reply, Some(record))
    }

    /// An empty body without a record.
    pub(super) fn nothing(self) -> Reply {
        Reply::own(Bytes::new(), None, self.in_flight)
    }

    /// A reply of the node's own.
    pub(super) fn own(self, reply: Response<Bytes>, record: Option<Record>) -> Response<Reply> {
        let (mut head, mut body) = reply.into_parts();
        head.headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
        if self.closes {
            close(&mut head.headers);
        }
        if self.head_only {
            head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
            body = Bytes::new();
        }
        Response::from_parts(head, Reply::own(body, record, self.in_flight))
    }
}

fn is_portal(path: &str) -> bool {
    path.starts_with(PREFIX) || path == PREFIX.trim_end_matches('/')
}

fn is_event_stream(value: &HeaderValue) -> bool {
    value.as_bytes().get(..17).is_some_and(|kind| kind.eq_ignore_ascii_case(b"text/event-stream"))
}

/// gRPC, where either side may be silent for as long as it likes.
fn is_conversation(value: &HeaderValue) -> bool {
    value.as_bytes().get(..16).is_some_and(|kind| kind.eq_ignore_ascii_case(b"application/grpc"))
}

fn close(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
}

//! The way to an origin. It begins with a [permit](PermitOf), and there is no other.
//!
//! A request is sent again only when nothing of it was sent: the connection had closed before. Where a connection
//! from the pool breaks before the first byte of the response, a request without a body whose method is safe (RFC
//! 9110 §9.2.1) is sent once more on a new one; anything else is a 502. A POST is never replayed.
//!
//! A connection on which request or response speak of NTLM or Negotiate serves nobody after that.

use std::sync::Arc;

use http::request::Parts;
use http::{Method, Request, Response, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;

use crate::flow::{Reason, Web};
use crate::policy::PermitOf;
use crate::tunnel::{OpenError, Registry};

use super::body::{Broken, Upload};
use super::headers::binds_connection;
use super::lasting::Lease;
use super::upstream::{ConnectError, Line, Upstream, Upstreams};

/// Why there is no response. None of them names the origin's address.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the application closed the connection or broke the protocol before its response")]
    NoResponse,
    #[error("the body of the request broke off")]
    Body,
    #[error("the request cannot be written for the origin")]
    Request(#[from] http::Error),
    #[error("the origin speaks HTTP/2, where no upgrade exists")]
    NoUpgrade,
    #[error("the application answered with another protocol")]
    Protocol,
    #[error("the application did not answer in time")]
    Late,
}

impl ProxyError {
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Connect(ConnectError::Open(error)) => error.reason(),
            Self::Body => Reason::BadRequest,
            Self::Connect(_) | Self::NoResponse | Self::NoUpgrade | Self::Protocol | Self::Late => {
                Reason::OriginDown
            }
            Self::Request(_) => Reason::Internal,
        }
    }

    /// Whether it is worth trying again soon.
    pub(super) fn is_temporary(&self) -> bool {
        match self {
            Self::Connect(ConnectError::Open(OpenError::ConnectorGone | OpenError::Busy)) => true,
            Self::Connect(ConnectError::Busy) => true,
            Self::Connect(_)
            | Self::NoResponse
            | Self::Body
            | Self::Request(_)
            | Self::NoUpgrade
            | Self::Protocol
            | Self::Late => false,
        }
    }
}

/// Sends a request, its head ready for the origin but for target and version, and returns the head and the streamed
/// body of the response.
pub(super) async fn proxy(
    upstreams: &Upstreams,
    registry: &Registry,
    permit: PermitOf<'_, Web>,
    target: &str,
    head: Parts,
    body: Upload,
) -> Result<Response<Incoming>, ProxyError> {
    let upstream = upstreams.of(permit).map_err(ConnectError::from)?;
    let (broken, lease) = (body.broken(), Arc::clone(body.lease()));
    let safe = matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS) && body.is_end_stream();
    let again = safe.then(|| head.clone());
    let bound = binds_connection(&head.headers);
    let request = Request::from_parts(head, body);
    let mut request = addressed(request, &upstream, target, permit)?;

    if let Some(mut line) = upstream.resting() {
        match line.send(request).await {
            Ok(response) => return answered(&upstream, line, response, bound),
            Err(Unsent { request: Some(unsent) }) => request = *unsent,
            Err(Unsent { request: None }) => match again {
                Some(_) if broken.is_set() => return Err(ProxyError::Body),
                Some(head) => {
                    let body = Upload::empty(&lease);
                    request = addressed(Request::from_parts(head, body), &upstream, target, permit)?;
                }
                None => return Err(no_response(&broken)),
            },
        }
    }
    let mut line = upstream.connect(permit, registry).await?;
    match line.send(request).await {
        Ok(response) => answered(&upstream, line, response, bound),
        Err(Unsent { .. }) => Err(no_response(&broken)),
    }
}

/// Sends an upgrade request on a connection of its own, which is the caller's when the origin switches.
pub(super) async fn upgrade(
    upstreams: &Upstreams,
    registry: &Registry,
    permit: PermitOf<'_, Web>,
    target: &str,
    head: Parts,
    lease: &Arc<Lease>,
) -> Result<Response<Incoming>, ProxyError> {
    let upstream = upstreams.of(permit).map_err(ConnectError::from)?;
    if upstream.origin().scheme.is_http2() {
        return Err(ProxyError::NoUpgrade);
    }
    let request = addressed(Request::from_parts(head, Upload::empty(lease)), &upstream, target, permit)?;
    let mut line = upstream.connect(permit, registry).await?;
    line.send(request).await.map_err(|_| ProxyError::NoResponse)
}

fn answered(
    upstream: &Arc<Upstream>,
    line: Line,
    response: Response<Incoming>,
    bound: bool,
) -> Result<Response<Incoming>, ProxyError> {
    if response.status().is_informational() {
        return Err(ProxyError::Protocol);
    }
    let anybodys = !bound && !binds_connection(response.headers());
    upstream.take_back(line, anybodys);
    Ok(response)
}

fn no_response(broken: &Broken) -> ProxyError {
    if broken.is_set() { ProxyError::Body } else { ProxyError::NoResponse }
}

/// Sets target and version: the origin form for HTTP/1.1, scheme and authority too for HTTP/2.
fn addressed(
    mut request: Request<Upload>,
    upstream: &Upstream,
    target: &str,
    permit: PermitOf<'_, Web>,
) -> Result<Request<Upload>, http::Error> {
    let origin = upstream.origin();
    if origin.scheme.is_http2() {
        let scheme = if origin.scheme.is_tls() { "https" } else { "http" };
        let authority = match request.headers_mut().remove(http::header::HOST) {
            Some(host) => host.to_str().unwrap_or_default().to_owned(),
            None => permit.kind().origin.authority(),
        };
        *request.uri_mut() =
            Uri::builder().scheme(scheme).authority(authority).path_and_query(target).build()?;
        *request.version_mut() = Version::HTTP_2;
    } else {
        *request.uri_mut() = Uri::builder().path_and_query(target).build()?;
        *request.version_mut() = Version::HTTP_11;
    }
    Ok(request)
}

/// Sending failed; the request where nothing of it had been sent.
struct Unsent {
    request: Option<Box<Request<Upload>>>,
}

impl Line {
    async fn send(&mut self, request: Request<Upload>) -> Result<Response<Incoming>, Unsent> {
        let sent = match self {
            Self::Http1 { sender, .. } => sender.try_send_request(request).await,
            Self::Http2 { sender } => sender.try_send_request(request).await,
        };
        sent.map_err(|mut error| {
            tracing::debug!(error = %error.error(), "a request to an origin failed");
            Unsent { request: error.take_message().map(Box::new) }
        })
    }
}

//! Connections to the origin of one application: opened through [`Registry::open`], kept while they are idle.
//!
//! HTTP/1.1 connections serve one request at a time and rest in a pool between them, unless the origin may take them for
//! one person's; an HTTP/2 origin gets one connection for all requests. Nobody gets a connection without a permit.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::flow::{Origin, Web};
use crate::policy::PermitOf;
use crate::tunnel::{OpenError, Registry};

use super::body::Upload;
use super::limits;
use super::origin_tls::{self, OriginTlsError};

/// Why there is no connection to an origin. None of them names its address.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the application did not accept a connection in time")]
    Timeout,
    #[error("the application carries as many requests as the node allows")]
    Busy,
    #[error("TLS with the application failed: {0}")]
    Handshake(std::io::Error),
    #[error(transparent)]
    Tls(#[from] OriginTlsError),
    #[error("the application's HTTP cannot be spoken: {0}")]
    Http(#[from] hyper::Error),
}

/// The upstreams of all applications.
#[derive(Debug)]
pub(super) struct Upstreams {
    roots: Arc<RootCertStore>,
    of: Mutex<BTreeMap<String, Arc<Upstream>>>,
}

impl Upstreams {
    pub(super) fn new(roots: Arc<RootCertStore>) -> Self {
        Self { roots, of: Mutex::default() }
    }

    /// The upstream of a permitted application. One whose origin has changed is forgotten with its connections.
    pub(super) fn of(&self, permit: PermitOf<'_, Web>) -> Result<Arc<Upstream>, OriginTlsError> {
        let (name, origin) = (&permit.permit().application().name, &permit.kind().origin);
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(upstream) = of.get(name)
            && upstream.origin == *origin
        {
            return Ok(Arc::clone(upstream));
        }
        let upstream = Arc::new(Upstream::new(origin, &self.roots)?);
        of.insert(name.clone(), Arc::clone(&upstream));
        Ok(upstream)
    }

    /// Closes what was idle for too long, and forgets the upstreams of applications that are `gone`.
    pub(super) fn sweep(&self, gone: impl Fn(&str) -> bool) {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        of.retain(|application, _| !gone(application));
        for upstream in of.values() {
            upstream.lock().rest.retain(Idle::is_fresh);
        }
    }
}

/// One origin.
pub(super) struct Upstream {
    origin: Origin,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    idle: Mutex<Resting>,
    busy: Arc<Semaphore>,
}

#[derive(Default)]
struct Resting {
    rest: VecDeque<Idle>,
    http2: Option<(http2::SendRequest<Upload>, CancellationToken)>,
}

struct Idle {
    sender: http1::SendRequest<Upload>,
    /// The way to the origin is about to close.
    draining: CancellationToken,
    since: Instant,
}

impl Idle {
    fn is_fresh(&self) -> bool {
        self.sender.is_ready()
            && !self.draining.is_cancelled()
            && self.since.elapsed() < limits::ORIGIN_IDLE_TIME
    }
}

/// A connection on which one request can be sent.
pub(super) enum Line {
    Http1 { sender: http1::SendRequest<Upload>, draining: CancellationToken, busy: OwnedSemaphorePermit },
    Http2 { sender: http2::SendRequest<Upload> },
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Upstream {
    fn new(origin: &Origin, roots: &Arc<RootCertStore>) -> Result<Self, OriginTlsError> {
        let tls = origin.scheme.is_tls().then(|| origin_tls::client(origin, roots)).transpose()?;
        Ok(Self {
            origin: origin.clone(),
            tls,
            idle: Mutex::default(),
            busy: Arc::new(Semaphore::new(limits::ORIGIN_BUSY)),
        })
    }

    /// A connection that was used before, if one rests here.
    pub(super) fn resting(self: &Arc<Self>) -> Option<Line> {
        let mut idle = self.lock();
        if let Some((sender, draining)) = &idle.http2 {
            if sender.is_ready() && !draining.is_cancelled() {
                return Some(Line::Http2 { sender: sender.clone() });
            }
            idle.http2 = None;
        }
        // The youngest first: it is the least likely to be closed by the origin under our hands.
        while let Some(resting) = idle.rest.pop_back() {
            if resting.is_fresh() {
                let busy = Arc::clone(&self.busy).try_acquire_owned().ok()?;
                return Some(Line::Http1 { sender: resting.sender, draining: resting.draining, busy });
            }
        }
        None
    }

    /// A new connection for the permitted request.
    pub(super) async fn connect(
        self: &Arc<Self>,
        permit: PermitOf<'_, Web>,
        registry: &Registry,
    ) -> Result<Line, ConnectError> {
        timeout(limits::ORIGIN_CONNECT, async {
            if self.origin.scheme.is_http2() {
                self.connect_http2(permit, registry).await
            } else {
                self.connect_http1(permit, registry).await
            }
        })
        .await
        .map_err(|_| ConnectError::Timeout)?
    }

    async fn connect_http1(
        self: &Arc<Self>,
        permit: PermitOf<'_, Web>,
        registry: &Registry,
    ) -> Result<Line, ConnectError> {
        let busy = Arc::clone(&self.busy).try_acquire_owned().map_err(|_| ConnectError::Busy)?;
        let (stream, draining) = self.open(permit, registry).await?;
        let (sender, connection) = http1::Builder::new()
            .max_header_size(limits::ORIGIN_HEAD_BYTES)
            .max_headers(limits::ORIGIN_HEAD_FIELDS)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(async move {
            // Its error reaches whoever waits for a response.
            let _ = connection.with_upgrades().await;
        });
        Ok(Line::Http1 { sender, draining, busy })
    }

    async fn connect_http2(
        self: &Arc<Self>,
        permit: PermitOf<'_, Web>,
        registry: &Registry,
    ) -> Result<Line, ConnectError> {
        let (stream, draining) = self.open(permit, registry).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(limits::H2_STREAM_WINDOW)
            .initial_connection_window_size(limits::ORIGIN_H2_WINDOW)
            .max_header_list_size(limits::ORIGIN_H2_HEADERS)
            .max_send_buf_size(limits::H2_SEND_BUFFER)
            .keep_alive_interval(limits::H2_PING_INTERVAL)
            .keep_alive_timeout(limits::H2_PING_TIMEOUT)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        // Two requests may connect at the same time: the later connection serves all that follow, the earlier one
        // ends with the requests on it.
        self.lock().http2 = Some((sender.clone(), draining));
        Ok(Line::Http2 { sender })
    }

    async fn open(
        &self,
        permit: PermitOf<'_, Web>,
        registry: &Registry,
    ) -> Result<(Box<dyn Stream>, CancellationToken), ConnectError> {
        let stream = registry.open(permit).await?;
        let draining = stream.draining().clone();
        let Some((config, name)) = &self.tls else { return Ok((Box::new(stream), draining)) };
        let stream = tokio_rustls::TlsConnector::from(Arc::clone(config))
            .connect(name.clone(), stream)
            .await
            .map_err(ConnectError::Handshake)?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        if http2 != self.origin.scheme.is_http2() {
            let error = std::io::Error::other("the origin does not speak the configured HTTP version");
            return Err(ConnectError::Handshake(error));
        }
        Ok((Box::new(stream), draining))
    }

    /// Takes a connection back when its response is over; until then it waits here. It rests only where it is
    /// `anybodys`: the next request on it is another person's.
    pub(super) fn take_back(self: &Arc<Self>, line: Line, anybodys: bool) {
        let Line::Http1 { mut sender, draining, busy } = line else { return };
        let upstream = Arc::clone(self);
        tokio::spawn(async move {
            let ready = sender.ready().await.is_ok();
            drop(busy);
            let mut idle = upstream.lock();
            if anybodys && ready && !draining.is_cancelled() && idle.rest.len() < limits::ORIGIN_IDLE {
                idle.rest.push_back(Idle { sender, draining, since: Instant::now() });
            }
        });
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    fn lock(&self) -> MutexGuard<'_, Resting> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("resting", &self.lock().rest.len()).finish_non_exhaustive()
    }
}

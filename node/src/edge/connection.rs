//! One connection of a client: handshake, HTTP/1.1 or HTTP/2 by ALPN, and its end.

use std::convert::Infallible;
use std::error::Error as _;
use std::fmt::Display;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::IntGauge;
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::context::Context;
use crate::flow::Reason;
use crate::places::Place;

use super::frames::{Frames, Offence};
use super::guard::{Guard, Shared};
use super::record::{About, Record};
use super::tls::Certificate;
use super::{Edge, datagrams, dispatch, limits};

/// How often a connection looks whether it is idle for too long.
const LOOK: Duration = Duration::from_secs(10);

/// What requests of a connection have to know about it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    /// The one the client was shown.
    pub(super) certificate: Arc<Certificate>,
    /// The strict reading of an HTTP/1.1 connection.
    pub(super) strict: Option<Arc<Shared>>,
    pub(super) activity: Arc<Activity>,
    /// Bodies for the portal that it may have unanswered at a time.
    pub(super) posts: Semaphore,
    /// The client was told that it may open tunnels.
    carries: bool,
    /// Closes the connection at once.
    stop: CancellationToken,
    _place: Place,
    _open: Open,
}

/// Counts an open connection, one that has become a WebSocket too.
#[derive(Debug)]
struct Open(IntGauge);

impl Open {
    fn new(connections: &IntGauge) -> Self {
        connections.inc();
        Self(connections.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Requests in flight on a connection, and since when there are none.
#[derive(Debug)]
pub(super) struct Activity(Mutex<(usize, Instant)>);

impl Activity {
    fn new() -> Self {
        Self(Mutex::new((0, Instant::now())))
    }

    pub(super) fn begin(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 += 1;
    }

    pub(super) fn end(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (state.0.saturating_sub(1), Instant::now());
    }

    fn is_idle(&self) -> bool {
        let (in_flight, since) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        in_flight == 0 && since.elapsed() >= limits::IDLE
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(edge: Arc<Edge>, stream: TcpStream, address: IpAddr, place: Place) {
    let loaded = edge.tls.loaded();
    let refused = |cause: &str| edge.ctx.metrics.connections_refused.with_label_values(&[cause]).inc();
    let accepting = async {
        let begun = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let carries = datagrams::may_carry(&begun.client_hello(), &edge.ctx.active().config.node.domain);
        let stream = begun.into_stream(Arc::clone(&loaded.config)).await?;
        std::io::Result::Ok((stream, carries))
    };
    let (stream, carries) = match timeout(limits::HANDSHAKE, accepting).await {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(error)) => {
            tracing::debug!(%error, %address, "a TLS handshake failed");
            return refused("handshake");
        }
        Err(_) => return refused("handshake_timeout"),
    };
    let session = stream.get_ref().1;
    let http2 = session.alpn_protocol() == Some(b"h2");
    let Some(certificate) = loaded.certificate(session.server_name()) else { return };
    drop(loaded);
    let strict = (!http2).then(Arc::<Shared>::default);
    let activity = Arc::new(Activity::new());
    let open = Open::new(&edge.ctx.metrics.connections);
    let peer = Arc::new(Peer {
        address,
        certificate,
        strict,
        activity,
        posts: Semaphore::new(limits::CONNECTION_POSTS),
        carries,
        stop: CancellationToken::new(),
        _place: place,
        _open: open,
    });

    if carries {
        // Not one of those that the edge waits for when it stops: what those still ask for may come by a tunnel.
        tokio::spawn(converse(edge, peer, stream));
    } else {
        converse(edge, peer, stream).await;
    }
}

async fn converse(edge: Arc<Edge>, peer: Arc<Peer>, stream: TlsStream<TcpStream>) {
    let address = peer.address;
    let result = match peer.strict.clone() {
        Some(shared) => drive(&edge, &peer, http1(&edge, &peer, Guard::new(stream, shared))).await,
        None => {
            let ctx = Arc::clone(&edge.ctx);
            let frames = Frames::new(stream, move |offence: Offence| broke_http2(&ctx, address, offence));
            drive(&edge, &peer, http2_connection(&edge, &peer, frames)).await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, %address, "a connection ended with an error");
        if breaks_http2(&error) {
            broke_http2(&edge.ctx, address, format_args!("the connection broke HTTP/2: {error:#}"));
        }
    }
}

/// Writes the event of what a client did where there is no request that could have one.
fn broke_http2(ctx: &Arc<Context>, address: IpAddr, what: impl Display) {
    let about = About::new(clock::new_ray(), address);
    Record::denied(ctx, about, Reason::BadRequest, std::time::Instant::now()).detail(what);
}

/// Whether the library ended the connection because of what the client sent: no request stands for that.
fn breaks_http2(error: &hyper::Error) -> bool {
    error.source().and_then(|source| source.downcast_ref::<h2::Error>()).is_some_and(h2::Error::is_library)
}

tokio::task_local! {
    /// Resets the HTTP/2 stream whose request this task answers.
    static STREAM: CancellationToken;
}

/// What stops the request that is being answered, whether its client reads or not: the reset of its HTTP/2 stream, or
/// the end of its HTTP/1.1 connection.
pub(super) fn stop(peer: &Peer) -> CancellationToken {
    STREAM.try_with(CancellationToken::clone).unwrap_or_else(|_| peer.stop.clone())
}

/// Runs each HTTP/2 stream as a task that can be stopped. The library waits for a client's flow-control window without
/// looking at the body, so nothing in the body could end the wait; a task that is dropped resets its stream.
#[derive(Debug, Clone, Copy)]
struct Streams;

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(STREAM.scope(stop, async move {
            let _ = stopped.run_until_cancelled(stream).await;
        }));
    }
}

/// A connection that can be told to end in good order.
trait Connection: Future<Output = hyper::Result<()>> {
    fn finish(self: Pin<&mut Self>);
}

/// Runs a connection until it ends, is idle for too long, or the edge shuts down.
async fn drive(edge: &Edge, peer: &Peer, connection: impl Connection) -> hyper::Result<()> {
    let mut connection = pin!(connection);
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            result = connection.as_mut() => return result,
            () = peer.stop.cancelled() => return Ok(()),
            () = edge.shutdown.cancelled() => break,
            _ = look.tick() => if peer.activity.is_idle() { break },
        }
    }
    connection.as_mut().finish();
    // Past this time the connection is dropped with whatever it still carries.
    let drain = if peer.carries { limits::CARRIED_DRAIN } else { limits::DRAIN };
    timeout(drain, connection).await.unwrap_or(Ok(()))
}

fn http1(edge: &Arc<Edge>, peer: &Arc<Peer>, stream: Guard<TlsStream<TcpStream>>) -> impl Connection + use<> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        // The guard keeps time and knows when a head began; the library would also count the rest between requests.
        .header_read_timeout(None)
        .max_headers(limits::HEAD_FIELDS)
        .max_header_size(limits::HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service(edge, peer))
        .with_upgrades()
}

fn http2_connection(
    edge: &Arc<Edge>,
    peer: &Arc<Peer>,
    stream: Frames<TlsStream<TcpStream>>,
) -> impl Connection + use<> {
    let mut builder = http2::Builder::new(Streams);
    if peer.carries {
        builder.enable_connect_protocol();
    }
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::H2_STREAMS)
        .max_pending_accept_reset_streams(limits::H2_RESETS)
        .max_local_error_reset_streams(limits::H2_RESETS)
        .initial_stream_window_size(limits::H2_STREAM_WINDOW)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(limits::HEAD_BYTES).unwrap_or(u32::MAX))
        .max_send_buf_size(limits::H2_SEND_BUFFER)
        .keep_alive_interval(limits::H2_PING_INTERVAL)
        .keep_alive_timeout(limits::H2_PING_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service(edge, peer))
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<super::body::Reply>, Infallible>> + Send>>;

fn service(
    edge: &Arc<Edge>,
    peer: &Arc<Peer>,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = http::Response<super::body::Reply>,
    Error = Infallible,
    Future = Answer,
> + use<> {
    let (edge, peer) = (Arc::clone(edge), Arc::clone(peer));
    service_fn(move |request| {
        let (edge, peer) = (Arc::clone(&edge), Arc::clone(&peer));
        let answer: Answer = Box::pin(async move { Ok(dispatch::answer(edge, peer, request).await) });
        answer
    })
}

impl<S> Connection for http1::UpgradeableConnection<TokioIo<Guard<TlsStream<TcpStream>>>, S>
where
    S: hyper::service::Service<
            Request<Incoming>,
            Response = http::Response<super::body::Reply>,
            Error = Infallible,
            Future = Answer,
        >,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S> Connection for http2::Connection<TokioIo<Frames<TlsStream<TcpStream>>>, S, Streams>
where
    S: hyper::service::Service<
            Request<Incoming>,
            Response = http::Response<super::body::Reply>,
            Error = Infallible,
            Future = Answer,
        >,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

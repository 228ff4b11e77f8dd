//! For operators: `/metrics`, `/healthz` and `/readyz` on a loopback listener, and the gate's numbers.

mod gate;
mod relay;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::gate::Enforcement;

pub use gate::{RecentDrops, Source, watch_gate};

/// What `/readyz` says.
#[derive(Clone)]
pub struct Health {
    inner: Arc<Inner>,
}

struct Inner {
    up: AtomicBool,
    /// Whether the gate is as the configuration wants it.
    gate_as_wanted: AtomicBool,
    gated: bool,
    enforcement: Mutex<Option<Enforcement>>,
}

impl Health {
    pub fn new(gate_as_wanted: bool, gated: bool) -> Self {
        let gate_as_wanted = AtomicBool::new(gate_as_wanted);
        Self {
            inner: Arc::new(Inner {
                up: AtomicBool::new(false),
                gate_as_wanted,
                gated,
                enforcement: Mutex::default(),
            }),
        }
    }

    /// Every part runs.
    pub fn up(&self) {
        self.inner.up.store(true, Ordering::Release);
    }

    /// Whether the gate is as it should be; returns whether it was so before.
    fn set_gate(&self, as_wanted: bool) -> bool {
        self.inner.gate_as_wanted.swap(as_wanted, Ordering::AcqRel)
    }

    fn set_enforcement(&self, enforcement: Enforcement) {
        *self.inner.enforcement.lock().unwrap_or_else(PoisonError::into_inner) = Some(enforcement);
    }

    fn answer(&self) -> (StatusCode, String) {
        let up = self.inner.up.load(Ordering::Acquire);
        let gate = self.inner.gate_as_wanted.load(Ordering::Acquire);
        let status = if up && gate { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let enforcement = *self.inner.enforcement.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = match (self.inner.gated, gate) {
            (true, true) => enforcement.map_or("up".to_owned(), |enforcement| format!("up, {enforcement}")),
            (true, false) => "down".to_owned(),
            (false, _) => "none (ungated)".to_owned(),
        };
        (status, format!("{}\ngate: {gate}\n", if up { "ready" } else { "starting" }))
    }
}

/// Serves operators until `shutdown`.
pub async fn serve(
    listener: std::net::TcpListener,
    context: Arc<Context>,
    health: Health,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (context, health) = (Arc::clone(&context), health.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let reply = answer(&request, &context, &health);
                async move { Ok::<_, Infallible>(reply) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer(request: &Request<Incoming>, context: &Context, health: &Health) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match metrics(context) {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        (&Method::GET, "/healthz") => (StatusCode::OK, "alive\n".to_owned()),
        (&Method::GET, "/readyz") => health.answer(),
        _ => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
    };
    let mut reply = Response::new(Full::from(text));
    *reply.status_mut() = status;
    reply.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    reply
}

fn metrics(context: &Context) -> Result<String, prometheus::Error> {
    context.metrics.tunnel_connections.reset();
    for (name, status) in context.tunnels.connectors() {
        let connections = i64::try_from(status.connections).unwrap_or(i64::MAX);
        context.metrics.tunnel_connections.with_label_values(&[name.as_str()]).set(connections);
    }
    context.metrics.render()
}

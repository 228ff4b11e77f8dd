//! For operators: `/metrics`, `/healthz` and `/readyz` on a loopback listener, and the gate's numbers.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use portcullis_common::layout::Rule;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::event::{Action, Event};
use crate::gate::Gate;

/// How often the gate's counters are read.
const READ_GATE_EVERY: Duration = Duration::from_secs(1);

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
}

impl Health {
    pub fn new(gate_as_wanted: bool, gated: bool) -> Self {
        let gate_as_wanted = AtomicBool::new(gate_as_wanted);
        Self { inner: Arc::new(Inner { up: AtomicBool::new(false), gate_as_wanted, gated }) }
    }

    /// Every part runs.
    pub fn up(&self) {
        self.inner.up.store(true, Ordering::Release);
    }

    fn answer(&self) -> (StatusCode, String) {
        let up = self.inner.up.load(Ordering::Acquire);
        let gate = self.inner.gate_as_wanted.load(Ordering::Acquire);
        let status = if up && gate { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let gate = match (self.inner.gated, gate) {
            (true, true) => "up",
            (true, false) => "down",
            (false, _) => "none (ungated)",
        };
        (status, format!("{}\ngate: {gate}\n", if up { "ready" } else { "starting" }))
    }
}

/// Follows the gate: counters into metrics, sampled drops into the log.
pub fn watch_gate(gate: Option<Gate>, context: Arc<Context>, health: Health) {
    let Some(mut gate) = gate else { return };
    if let Some(events) = gate.events() {
        let context = Arc::clone(&context);
        tokio::spawn(async move {
            let mut events = match events.into_async() {
                Ok(events) => events,
                Err(error) => return tracing::error!(%error, "the gate's events cannot be read"),
            };
            loop {
                match events.next().await {
                    Ok(dropped) => context.events.emit(describe(&dropped)),
                    Err(error) => return tracing::error!(%error, "the gate's events cannot be read"),
                }
            }
        });
    }
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(READ_GATE_EVERY);
        loop {
            tick.tick().await;
            let counted = match gate.counters() {
                Ok(counters) => {
                    context.metrics.set_gate(&counters);
                    true
                }
                Err(error) => {
                    tracing::error!("the gate's counters cannot be read: {:#}", anyhow::Error::new(error));
                    false
                }
            };
            let attached = counted && gate.is_up();
            context.metrics.gate_attached.set(i64::from(attached));
            if health.inner.gate_as_wanted.swap(attached, Ordering::AcqRel) && !attached {
                tracing::error!("the gate is no longer attached");
                context.events.emit(Event::new(Action::Gate, false).detail("the gate is no longer attached"));
            }
        }
    });
}

fn describe(dropped: &crate::gate::SampledDrop) -> Event {
    let event = Event::new(Action::Gate, false);
    let rule = match dropped.rule {
        Some(Rule::Budget(class)) => format!(" (budget {})", class.name()),
        Some(Rule::Session(index)) => format!(" (session {index})"),
        None => String::new(),
    };
    let reason = format!("{}{rule}", dropped.reason.name());
    match &dropped.ends {
        Some(ends) => event.address(ends.source.ip().to_canonical()).detail(format!(
            "dropped {reason}: protocol {} from {} to {}, {} bytes",
            ends.protocol, ends.source, ends.destination, dropped.length
        )),
        None => event.detail(format!("dropped {reason}: {} bytes", dropped.length)),
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

//! The edge: what browsers reach. TLS, HTTP/1.1 and HTTP/2, and the way of every request to its answer.
//!
//! ```text
//! listener ─▶ connection ─▶ strict/guard ─▶ dispatch ─┬─▶ portal                    login and its kin
//!   places      TLS, ALPN     HTTP/1.1 with  │        ├─▶ refusal page              bad, unknown, denied
//!                                            │        ├─▶ datagrams                 a tunnel over TCP
//!                             one reading    │        └─▶ proxy ─▶ upstream         needs a Permit
//!                                            └ request: canonical host and path
//!                                              identify: who asks, by proof
//!                                              policy::decide
//! ```
//!
//! Every bound is in [`limits`], every rule about header fields in [`headers`]; [`record`] writes the one event.

mod assertions;
mod body;
mod carry;
mod connection;
mod datagrams;
mod dispatch;
mod frames;
mod guard;
mod headers;
mod identify;
mod lasting;
mod limits;
mod listener;
mod origin_tls;
mod posts;
mod private;
mod proxy;
mod record;
mod request;
mod shares;
mod strict;
mod tls;
mod upgrade;
mod upstream;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::context::Context;
use crate::places::Places;
use crate::portal::Portal;

pub use limits::Patience;
pub use origin_tls::{OriginTlsError, check as check_origin_tls};
pub use tls::{Tls, TlsError};

/// How often idle connections to origins are looked at.
const SWEEP: Duration = Duration::from_secs(10);

/// What all connections share.
struct Edge {
    ctx: Arc<Context>,
    portal: Arc<Portal>,
    tls: Tls,
    upstreams: upstream::Upstreams,
    assertions: assertions::Assertions,
    places: Places,
    posts: posts::Posts,
    shares: Arc<shares::Shares>,
    patience: Patience,
    tasks: TaskTracker,
    /// No new requests.
    shutdown: CancellationToken,
    /// No time left.
    cut: CancellationToken,
}

/// Serves `listeners` (non-blocking ones) until `shutdown` fires, then lets requests in flight finish for a while.
pub async fn serve(
    ctx: Arc<Context>,
    portal: Arc<Portal>,
    tls: Tls,
    listeners: Vec<std::net::TcpListener>,
    shutdown: CancellationToken,
    patience: Patience,
) {
    let edge = Arc::new(Edge {
        posts: posts::Posts::new(ctx.metrics.portal_body_bytes.clone()),
        ctx,
        portal,
        upstreams: upstream::Upstreams::new(tls.system_roots()),
        assertions: assertions::Assertions::default(),
        tls,
        places: Places::new(limits::CONNECTIONS),
        shares: Arc::default(),
        patience,
        tasks: TaskTracker::new(),
        shutdown,
        cut: CancellationToken::new(),
    });
    for listener in listeners {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "a listening socket cannot be used");
                return;
            }
        };
        edge.tasks.spawn(listener::accept(Arc::clone(&edge), listener));
    }
    edge.tasks.spawn(sweep(Arc::clone(&edge)));
    edge.shutdown.cancelled().await;
    edge.tasks.close();
    if timeout(limits::DRAIN, edge.tasks.wait()).await.is_err() {
        edge.cut.cancel();
        // Connections have dropped what they carried by now or are about to.
        let _ = timeout(Duration::from_secs(1), edge.tasks.wait()).await;
    }
}

async fn sweep(edge: Arc<Edge>) {
    while edge.shutdown.run_until_cancelled(tokio::time::sleep(SWEEP)).await.is_some() {
        let active = edge.ctx.active();
        edge.assertions.sweep(crate::clock::now());
        edge.upstreams.sweep(|name| active.policies.application(name).is_none());
    }
}

//! Accepting connections, so many and no more (see [`crate::places`]).

use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};

use crate::clock;

use super::{Edge, connection, limits};

/// Accepts until the edge shuts down.
pub(super) async fn accept(edge: Arc<Edge>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            () = edge.shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: what is queued stays queued until some are free again.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let address = peer.ip().to_canonical();
        let known = edge.ctx.recent.contains(address, clock::now());
        match edge.places.take(address, known) {
            Ok(place) => {
                prepare(&stream);
                edge.tasks.spawn(connection::serve(Arc::clone(&edge), stream, address, place));
            }
            Err(full) => edge.ctx.metrics.connections_refused.with_label_values(&[full.cause()]).inc(),
        }
    }
}

/// Failing options are no reason to refuse: they bound waste, not access.
fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(limits::TCP_KEEPALIVE).with_interval(Duration::from_secs(15));
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(limits::UNACKNOWLEDGED));
}

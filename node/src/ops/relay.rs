//! Keeps the relayed sessions while the node runs.

use std::sync::Arc;
use std::time::Duration;

use crate::context::Context;
use crate::gate::Relay;
use crate::tunnel::PrivateSessions;

/// How often sessions that have expired are cleared away, and the others counted.
const EVERY: Duration = Duration::from_secs(1);

/// Follows routes and neighbours for the relayed sessions, clears away those that have expired, and counts the others.
pub(super) async fn keep_relay(relay: Relay, private: PrivateSessions, context: Arc<Context>) {
    if let Err(error) = relay.watch() {
        tracing::error!(%error, "next hops of relayed sessions are not followed");
    }
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        let relay = relay.clone();
        // Both may take long with many flows, or wait for the CPUs.
        let kept = tokio::task::spawn_blocking(move || {
            relay.expire().and_then(|ended| Ok((ended, relay.totals()?)))
        });
        match kept.await {
            Ok(Ok((ended, totals))) => {
                private.expired(&ended);
                context.metrics.set_relay(&totals);
            }
            Ok(Err(error)) => {
                tracing::error!("relayed sessions cannot be kept: {:#}", anyhow::Error::new(error));
            }
            Err(error) => tracing::error!(%error, "relayed sessions cannot be kept"),
        }
    }
}

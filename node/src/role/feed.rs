//! Keeps the gate in step with what the daemon knows: whether the tunnel's port is dark, what time it is, which
//! devices are void, which networks have a recent login.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::clock;
use crate::context::Context;
use crate::gate::{Control, GateError};
use crate::tunnel::Devices;

/// How often the gate is told the time, and of tokens that have expired. A knock is good for some ten minutes, so a clock
/// that jumps shuts nobody out for longer than this.
const TELL_EVERY: Duration = Duration::from_secs(15);

/// Before anything is served: never more open than asked.
///
/// # Errors
///
/// When the gate does not take it, or the store fails.
pub(super) async fn first(gate: &Control, devices: &Devices, dark: bool) -> anyhow::Result<()> {
    devices.tell(clock::now()).await.context("void devices")?;
    gate.set_knock(dark, devices.keys()).context("the gate does not take `tunnel.dark`")
}

/// Goes on until `shutdown`. What the gate does not take is tried again.
pub(super) async fn keep(
    gate: Control,
    devices: Devices,
    context: Arc<Context>,
    shutdown: CancellationToken,
) {
    let mut networks = context.recent.networks();
    networks.mark_changed();
    let mut tick = interval(TELL_EVERY);
    loop {
        let told = tokio::select! {
            () = shutdown.cancelled() => return,
            changed = networks.changed() => {
                if changed.is_err() {
                    return;
                }
                let known = Arc::clone(&networks.borrow_and_update());
                let told = gate.set_recent(known.iter().map(ipnet::IpNet::addr));
                if told.is_err() {
                    networks.mark_changed();
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                told
            }
            _ = tick.tick() => tell(&gate, &devices).await,
        };
        if let Err(error) = told {
            let error = anyhow::Error::new(error);
            error!("the gate is not told what it should know: {error:#}");
        }
    }
}

async fn tell(gate: &Control, devices: &Devices) -> Result<(), GateError> {
    if let Err(error) = devices.tell(clock::now()).await {
        error!(%error, "void devices");
    }
    gate.set_clock()
}

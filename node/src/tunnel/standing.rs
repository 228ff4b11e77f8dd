//! Tells the gate from where an authenticated peer's packets pass freely, as long as the peer is in service.
//!
//! The gate forgets by itself after [`LIFETIME`], so that a daemon that dies leaves nothing open for long. A peer
//! whose address changed (a NAT rebound it, a laptop moved) pays from a budget until QUIC has validated the new path
//! (RFC 9000 §8.2) and the next look finds it. A connection that has moved to a stream is known at the streams' gate.

use std::net::SocketAddr;
use std::time::Duration;

use quinn::Connection;
use tokio::time::{Instant, interval};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;

use crate::gate::{Control, PeerAddress};

use super::carrier::{Carried, is_stream};

/// The gate takes packets freely for so long after the last look.
const LIFETIME: Duration = Duration::from_secs(90);
/// The address is looked at so often, and the gate told again after so long.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const REFRESH_AFTER: Duration = Duration::from_secs(30);

/// Ends the standing when dropped.
pub(super) struct Standing {
    _ends: DropGuard,
}

impl Standing {
    /// Begins before it returns. `local` is the endpoint's own address, whose port counts.
    pub(super) fn begin(
        gate: &Control,
        carried: &Carried,
        connection: &Connection,
        local: SocketAddr,
    ) -> Self {
        let mut told =
            Told { gate: gate.clone(), carried: carried.clone(), address: None, at: Instant::now() };
        told.look(connection, local);
        let ends = CancellationToken::new();
        let (connection, ended) = (connection.clone(), ends.clone());
        tokio::spawn(async move {
            let mut tick = interval(LOOK_EVERY);
            loop {
                tokio::select! {
                    () = ended.cancelled() => return,
                    _ = tick.tick() => told.look(&connection, local),
                }
            }
        });
        Self { _ends: ends.drop_guard() }
    }
}

/// What the gate was told last; undone when dropped.
struct Told {
    gate: Control,
    carried: Carried,
    address: Option<(Control, PeerAddress)>,
    at: Instant,
}

impl Told {
    fn look(&mut self, connection: &Connection, local: SocketAddr) {
        let remote = connection.remote_address();
        let at_gate = self.carried.at_gate(remote);
        if at_gate.is_none() && is_stream(remote) {
            // It is gone, or what it brings is not judged: its address means nothing to the kernel.
            return self.undo();
        }
        let (gate, address) = at_gate.unwrap_or_else(|| {
            let ip = connection.local_ip().unwrap_or(local.ip()).to_canonical();
            let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
            (self.gate.clone(), PeerAddress { local: SocketAddr::new(ip, local.port()), remote })
        });
        let same = self.address.as_ref().is_some_and(|(_, told)| *told == address);
        if same && self.at.elapsed() < REFRESH_AFTER {
            return;
        }
        if !same {
            self.undo();
        }
        match gate.authenticate(address, LIFETIME) {
            Ok(()) => {
                self.address = Some((gate, address));
                self.at = Instant::now();
            }
            Err(error) => {
                let error = anyhow::Error::new(error);
                warn!(peer = %address.remote, "the gate does not take an authenticated peer, whose packets stay rate limited: {error:#}");
            }
        }
    }

    fn undo(&mut self) {
        if let Some((gate, address)) = self.address.take()
            && let Err(error) = gate.forget(address)
        {
            let error = anyhow::Error::new(error);
            warn!("the gate remembers a peer that is gone for {} s: {error:#}", LIFETIME.as_secs());
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.undo();
    }
}

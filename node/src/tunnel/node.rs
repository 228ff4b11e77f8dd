//! The node's side: endpoints on the node's UDP sockets, from start to drain.
//!
//! ```text
//! first packet ── Places ──▶ accept | Retry | refuse
//! handshake    ── TLS ─────▶ a key that the peer proved to hold        (its hash is the identity)
//! hash         ── Store ───▶ connector's name, or nobody: may only enrol
//! control      ── session ─▶ register in the Registry; push origins; heartbeats; drain
//! ```
//!
//! That is a connector. An access client comes by another application protocol on the same port, and is served by
//! `private`, whose relay shares the sockets too.
//!
//! The first step is here, the others are in `peer`.

use std::collections::BTreeSet;
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use quinn::Endpoint;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::clock;
use crate::event::Events;
use crate::gate::{Control, DatagramGate};
use crate::recent::Recent;
use crate::store::{Store, StoreError};

use super::admission::{Admission, Places};
use super::carrier::{Carried, is_stream};
use super::devices::Devices;
use super::enrolment::{EnrolmentError, node_key};
use super::ids::{Mint, MintError};
use super::peer::serve_peer;
use super::private::PrivateSessions;
use super::registry::Registry;
use super::socket::size_buffers;
use super::transport::{EndpointKeys, TransportError, node_endpoint};
use super::wire::CloseCode;

/// Running streams get so long to end when the node stops.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Keys of connection IDs are looked after so often.
const ROTATE_EVERY: Duration = Duration::from_secs(3600);

/// A peer that will not be served gets so long to read why.
pub(super) const PARTING_TIMEOUT: Duration = Duration::from_secs(2);

/// What the node's side needs of the node.
#[derive(Clone)]
pub struct NodeTunnel {
    pub store: Store,
    pub events: Events,
    pub registry: Arc<Registry>,
    /// Judges each datagram where no XDP program does.
    pub datagrams: Option<DatagramGate>,
    /// Is told who may pass; absent where there is no gate.
    pub gate: Option<Control>,
    /// Networks to serve first; connectors are remembered there too.
    pub recent: Recent,
    /// What connectors knock with.
    pub devices: Devices,
    /// What comes by TCP.
    pub carried: Carried,
    /// Sessions of access clients.
    pub private: PrivateSessions,
}

/// Why the node cannot serve tunnels.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Key(#[from] EnrolmentError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ids(#[from] MintError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("the tunnel's socket: {0}")]
    Socket(#[from] io::Error),
}

/// Serves connectors and access clients on bound UDP `sockets` until `shutdown`; then lets running streams end and returns.
pub async fn serve(
    node: NodeTunnel,
    sockets: Vec<UdpSocket>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let key = node_key(&node.store).await?;
    let mint = Mint::load(&node.store, node.gate.as_ref(), clock::now()).await?;
    let keys = EndpointKeys { reset: reset_key(&node.store).await?, mint: mint.clone() };
    let mut endpoints = Vec::new();
    let mut ports = BTreeSet::new();
    for socket in sockets {
        if let Some(capped) = size_buffers(&socket)? {
            warn!("{capped}");
        }
        ports.insert(socket.local_addr()?.port());
        let (gate, relay) = (node.datagrams.as_ref(), node.private.relay());
        endpoints.push(node_endpoint(socket, gate, &node.carried, relay, &key, &keys)?);
    }
    info!(key = %key.hash(), "tunnels are served");

    // Longer than the connections: how their sessions end is told on them.
    let private_shutdown = CancellationToken::new();
    let private = node.private.serve(mint.clone(), ports, private_shutdown.clone());
    tokio::spawn(rotate(node.clone(), mint, shutdown.clone()));
    let places = Places::default();
    let peers = TaskTracker::new();
    for endpoint in &endpoints {
        let accept = accept(node.clone(), endpoint.clone(), places.clone(), peers.clone(), shutdown.clone());
        tokio::spawn(accept);
    }
    shutdown.cancelled().await;
    node.registry.drain();
    for endpoint in &endpoints {
        endpoint.set_server_config(None);
    }
    peers.close();
    if timeout(DRAIN_TIMEOUT + PARTING_TIMEOUT, peers.wait()).await.is_err() {
        warn!("tunnel connections did not end in time");
    }
    private_shutdown.cancel();
    private.wait().await;
    node.private.leave();
    for endpoint in &endpoints {
        endpoint.close(CloseCode::Shutdown.into(), b"the node stops");
        // The peers learn of it, or time out by themselves.
        let _ = timeout(PARTING_TIMEOUT, endpoint.wait_idle()).await;
    }
    Ok(())
}

async fn reset_key(store: &Store) -> Result<[u8; 64], StoreError> {
    let stored = store.secret("tunnel reset key", || clock::random::<64>().to_vec()).await?;
    stored.as_slice().try_into().map_err(|_| StoreError::Malformed("tunnel reset key".to_owned()))
}

/// Keeps the keys of connection IDs young.
async fn rotate(node: NodeTunnel, mint: Mint, shutdown: CancellationToken) {
    let mut hour = tokio::time::interval(ROTATE_EVERY);
    hour.tick().await;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = hour.tick() => {
                if let Err(error) = mint.rotate(&node.store, node.gate.as_ref(), clock::now()).await {
                    warn!(%error, "the keys of connection IDs could not be rotated");
                }
            }
        }
    }
}

async fn accept(
    node: NodeTunnel,
    endpoint: Endpoint,
    places: Places,
    peers: TaskTracker,
    shutdown: CancellationToken,
) {
    // An endpoint whose address is unknown has no socket.
    let Ok(local) = endpoint.local_addr() else { return };
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = shutdown.cancelled() => return,
        };
        let Some(incoming) = incoming else { return };
        let remote = incoming.remote_address();
        // Its stream is gone again: nobody is there to be answered.
        let Some(address) = node.carried.real(remote) else {
            incoming.ignore();
            continue;
        };
        let known = node.recent.contains(address, clock::now());
        // TCP has proved the address of a stream.
        let proved = incoming.remote_address_validated() || is_stream(remote);
        match places.admit(address, proved, known) {
            Admission::Accept(place) => {
                peers.spawn(serve_peer(node.clone(), incoming, local, place, shutdown.clone()));
            }
            Admission::Retry => {
                // Fails only for an address that is validated, and that one was not.
                let _ = incoming.retry();
            }
            Admission::Refuse => incoming.refuse(),
        }
    }
}

//! The node's side: endpoints on the node's UDP sockets, from start to drain.
//!
//! ```text
//! first packet ── Places ──▶ accept | Retry | refuse
//! handshake    ── TLS ─────▶ a key that the peer proved to hold        (its hash is the identity)
//! hash         ── Store ───▶ connector's name, or nobody: may only enrol
//! control      ── session ─▶ register in the Registry; push origins; heartbeats; drain
//! ```
//!
//! The first step is here, the others are in `peer`.

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
use crate::gate::DatagramGate;
use crate::store::{Store, StoreError};

use super::admission::{Admission, Places};
use super::enrolment::{EnrolmentError, node_key};
use super::peer::serve_peer;
use super::registry::Registry;
use super::socket::size_buffers;
use super::transport::{EndpointKeys, TransportError, node_endpoint};
use super::wire::CloseCode;

/// Running streams get so long to end when the node stops.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A peer that will not be served gets so long to read why.
pub(super) const PARTING_TIMEOUT: Duration = Duration::from_secs(2);

/// What the node's side needs of the node.
#[derive(Clone)]
pub struct NodeTunnel {
    pub store: Store,
    pub events: Events,
    pub registry: Arc<Registry>,
    /// Judges each datagram where no XDP program does.
    pub gate: Option<DatagramGate>,
}

/// Why the node cannot serve tunnels.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Key(#[from] EnrolmentError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("the tunnel's socket: {0}")]
    Socket(#[from] io::Error),
}

/// Serves connectors on bound UDP `sockets` until `shutdown`; then lets running streams end and returns.
pub async fn serve(
    node: NodeTunnel,
    sockets: Vec<UdpSocket>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let key = node_key(&node.store).await?;
    let keys = endpoint_keys(&node.store).await?;
    let mut endpoints = Vec::new();
    for socket in sockets {
        if let Some(capped) = size_buffers(&socket)? {
            warn!("{capped}");
        }
        endpoints.push(node_endpoint(socket, node.gate.as_ref(), &key, &keys)?);
    }
    info!(key = %key.hash(), "tunnels are served");

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
    for endpoint in &endpoints {
        endpoint.close(CloseCode::Shutdown.into(), b"the node stops");
        // The peers learn of it, or time out by themselves.
        let _ = timeout(PARTING_TIMEOUT, endpoint.wait_idle()).await;
    }
    Ok(())
}

async fn endpoint_keys(store: &Store) -> Result<EndpointKeys, StoreError> {
    let stored =
        store.secret("tunnel endpoint keys", || clock::random::<ENDPOINT_KEY_BYTES>().to_vec()).await?;
    let malformed = || StoreError::Malformed("tunnel endpoint keys".to_owned());
    let (reset, connection_id) = stored.split_first_chunk::<64>().ok_or_else(malformed)?;
    let connection_id = u64::from_be_bytes(connection_id.try_into().map_err(|_| malformed())?);
    Ok(EndpointKeys { reset: *reset, connection_id })
}

const ENDPOINT_KEY_BYTES: usize = 64 + 8;

async fn accept(
    node: NodeTunnel,
    endpoint: Endpoint,
    places: Places,
    peers: TaskTracker,
    shutdown: CancellationToken,
) {
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = shutdown.cancelled() => return,
        };
        let Some(incoming) = incoming else { return };
        let address = incoming.remote_address().ip();
        match places.admit(address, incoming.remote_address_validated()) {
            Admission::Accept(place) => {
                peers.spawn(serve_peer(node.clone(), incoming, place, shutdown.clone()));
            }
            Admission::Retry => {
                // Fails only for an address that is validated, and that one was not.
                let _ = incoming.retry();
            }
            Admission::Refuse => incoming.refuse(),
        }
    }
}

//! The connections of connectors, and the one way through them: [`Registry::open`], which takes nothing but a
//! permit.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::Connection;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error};

use crate::flow::{Application, Kind, Private, Reason, Target, Web};
use crate::policy::{PermitOf, PolicySet};

use super::control::{self, ControlError, FrameReader};
use super::dial::{DIAL_TIMEOUT, dial};
use super::stream::TunnelStream;
use super::transport::MAX_ORIGIN_STREAMS;
use super::wire::{Authority, CloseCode, ConnectorName, DialFailure, MAX_ORIGINS, OpenReply, OpenRequest};

/// Connections of one connector and of all of them.
const MAX_CONNECTIONS_OF_CONNECTOR: usize = 64;
const MAX_CONNECTIONS: usize = 4096;

/// From the request to the connector's answer, its dialling included.
const OPEN_TIMEOUT: Duration = DIAL_TIMEOUT.saturating_add(Duration::from_secs(3));

/// Connections of a connector that are tried for one stream, where the first ones are lost meanwhile.
const MAX_ATTEMPTS: usize = 3;

/// Why there is no stream to an origin. None of them names its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("the connector of the application is not connected")]
    ConnectorGone,
    #[error("the connector of the application carries as many streams as it can")]
    Busy,
    #[error("the connector does not serve this application")]
    Refused,
    #[error("the application cannot be reached: {0}")]
    OriginDown(DialFailure),
}

impl OpenError {
    /// As in events and metrics.
    pub const fn reason(self) -> Reason {
        match self {
            Self::ConnectorGone | Self::Busy => Reason::ConnectorGone,
            Self::Refused | Self::OriginDown(_) => Reason::OriginDown,
        }
    }
}

/// What one connector does right now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectorStatus {
    pub connections: usize,
    /// Of them, those that were heard lately and take new streams.
    pub healthy: usize,
    /// Origin streams on all of them.
    pub streams: usize,
    pub addresses: Vec<SocketAddr>,
}

/// The live connections by connector, and the origins that each connector may dial.
#[derive(Default)]
pub struct Registry {
    state: Mutex<State>,
    draining: CancellationToken,
}

#[derive(Default)]
struct State {
    links: BTreeMap<ConnectorName, Vec<Arc<Link>>>,
    /// By the name in the configuration, which need not be one that a connector can have.
    origins: BTreeMap<String, watch::Sender<OriginSet>>,
}

/// The origins of one connector. The epoch begins at 1 and grows with each change.
#[derive(Debug, Clone)]
pub(super) struct OriginSet {
    pub(super) epoch: u64,
    pub(super) origins: BTreeSet<Authority>,
}

impl Default for OriginSet {
    fn default() -> Self {
        Self { epoch: 1, origins: BTreeSet::new() }
    }
}

/// One connection of a connector.
pub(super) struct Link {
    pub(super) connector: ConnectorName,
    pub(super) connection: Connection,
    /// Its origin streams, until their ends have arrived.
    pub(super) streams: TaskTracker,
    admitted: AtomicBool,
    healthy: AtomicBool,
    /// One of the two ends takes no new streams.
    draining: CancellationToken,
}

/// The registry has no room for another connection of this connector, or of any.
#[derive(Debug)]
pub(super) struct Full;

impl Registry {
    /// Opens a stream to the origin of the permitted application: through its connector, or directly where it has
    /// none. Nothing of the application's bytes has been sent before the origin is connected, so a failed attempt on
    /// one connection is safely repeated on another.
    pub async fn open(&self, permit: PermitOf<'_, Web>) -> Result<TunnelStream, OpenError> {
        let origin = &permit.kind().origin;
        let authority = Authority::from(origin);
        let Some(connector) = &origin.connector else {
            let stream = dial(&authority).await.map_err(OpenError::OriginDown)?;
            return Ok(TunnelStream::direct(stream, self.draining.clone()));
        };
        self.open_through(connector, authority).await
    }

    /// Opens a stream to the single target of the permitted application, for the WebSocket wire of `cloudflared
    /// access`. Nothing else is opened this way: a network, datagrams, an application without `url`.
    pub async fn open_private(&self, permit: PermitOf<'_, Private>) -> Result<TunnelStream, OpenError> {
        let private = permit.kind();
        let authority = stream_target(private).ok_or(OpenError::Refused)?;
        self.open_through(&private.connector, authority).await
    }

    async fn open_through(&self, connector: &str, authority: Authority) -> Result<TunnelStream, OpenError> {
        let (epoch, links) = self.candidates(connector);
        for link in links.into_iter().take(MAX_ATTEMPTS) {
            let request = OpenRequest { epoch, origin: authority.clone() };
            match link.open(&request).await {
                Attempt::Opened(stream) => return Ok(stream),
                Attempt::Failed(error) => return Err(error),
                Attempt::Lost => {}
            }
        }
        Err(OpenError::ConnectorGone)
    }

    /// Takes the origins of `policies` as the only ones that connectors may dial. Connectors that are connected learn
    /// of it; no connection is closed.
    pub fn configure(&self, policies: &PolicySet) {
        let mut wanted: BTreeMap<&str, BTreeSet<Authority>> = BTreeMap::new();
        for application in policies.applications() {
            let Some((connector, origin)) = stream_origin(application) else { continue };
            let of_connector = wanted.entry(connector).or_default();
            if of_connector.len() < MAX_ORIGINS {
                of_connector.insert(origin);
            } else {
                error!(
                    connector,
                    application = application.name,
                    "the connector has {MAX_ORIGINS} origins already: this one is not reachable"
                );
            }
        }
        let mut state = self.lock();
        for connector in wanted.keys() {
            if !state.origins.contains_key(*connector) {
                state.origins.insert((*connector).to_owned(), watch::Sender::default());
            }
        }
        for (connector, sender) in &state.origins {
            let origins = wanted.remove(connector.as_str()).unwrap_or_default();
            sender.send_if_modified(|current| {
                let changed = current.origins != origins;
                if changed {
                    *current = OriginSet { epoch: current.epoch + 1, origins };
                }
                changed
            });
        }
    }

    /// Disconnects a connector at once, with all its streams. To be called after the store has revoked it.
    pub fn disconnect(&self, connector: &str) {
        let Ok(connector) = connector.parse::<ConnectorName>() else { return };
        for link in self.lock().links.remove(&connector).unwrap_or_default() {
            link.draining.cancel();
            link.connection.close(CloseCode::Revoked.into(), b"revoked");
        }
    }

    /// What every connected connector does, by name.
    pub fn connectors(&self) -> BTreeMap<String, ConnectorStatus> {
        let state = self.lock();
        let status = |links: &Vec<Arc<Link>>| ConnectorStatus {
            connections: links.len(),
            healthy: links.iter().filter(|link| link.takes_streams() && link.is_healthy()).count(),
            streams: links.iter().map(|link| link.streams.len()).sum(),
            addresses: links.iter().map(|link| link.address()).collect(),
        };
        state.links.iter().map(|(name, links)| (name.to_string(), status(links))).collect()
    }

    /// Whether the connector has a connection in service.
    pub(super) fn is_connected(&self, connector: &ConnectorName) -> bool {
        self.lock().links.get(connector).is_some_and(|links| links.iter().any(|link| link.takes_streams()))
    }

    /// Adds a connection, which takes streams once it is [admitted](Link::admit), and returns the origins that its
    /// connector may dial, now and later.
    pub(super) fn register(
        &self,
        connector: &ConnectorName,
        connection: Connection,
    ) -> Result<(Arc<Link>, watch::Receiver<OriginSet>), Full> {
        let mut state = self.lock();
        let total: usize = state.links.values().map(Vec::len).sum();
        let links = state.links.entry(connector.clone()).or_default();
        if total >= MAX_CONNECTIONS || links.len() >= MAX_CONNECTIONS_OF_CONNECTOR {
            return Err(Full);
        }
        let link = Arc::new(Link {
            connector: connector.clone(),
            connection,
            streams: TaskTracker::new(),
            admitted: AtomicBool::new(false),
            healthy: AtomicBool::new(true),
            draining: self.draining.child_token(),
        });
        links.push(Arc::clone(&link));
        let origins = state.origins.entry(connector.to_string()).or_default().subscribe();
        Ok((link, origins))
    }

    pub(super) fn unregister(&self, link: &Arc<Link>) {
        link.draining.cancel();
        let mut state = self.lock();
        if let Some(links) = state.links.get_mut(&link.connector) {
            links.retain(|other| !Arc::ptr_eq(other, link));
            if links.is_empty() {
                state.links.remove(&link.connector);
            }
        }
    }

    /// From now on no connection takes new streams.
    pub(super) fn drain(&self) {
        self.draining.cancel();
    }

    /// The epoch of a connector's origins, and its connections: healthy before silent ones, then by load.
    fn candidates(&self, connector: &str) -> (u64, Vec<Arc<Link>>) {
        let state = self.lock();
        let epoch = state.origins.get(connector).map_or(0, |origins| origins.borrow().epoch);
        let links = connector.parse().ok().and_then(|name: ConnectorName| state.links.get(&name));
        let mut links: Vec<_> =
            links.into_iter().flatten().filter(|link| link.takes_streams()).cloned().collect();
        links.sort_by_key(|link| (!link.is_healthy(), link.streams.len()));
        (epoch, links)
    }

    /// The connections of a connector as the next stream would try them.
    #[cfg(test)]
    pub(super) fn links(&self, connector: &str) -> Vec<Arc<Link>> {
        self.candidates(connector).1
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.connectors()).finish()
    }
}

/// What of an application its connector has to dial for streams that end at the node.
fn stream_origin(application: &Application) -> Option<(&str, Authority)> {
    match &application.kind {
        Kind::Web(web) => Some((web.origin.connector.as_deref()?, Authority::from(&web.origin))),
        Kind::Private(private) => Some((&private.connector, stream_target(private)?)),
        Kind::Saas(_) => None,
    }
}

/// The target of a private application that the node may open a stream to.
fn stream_target(private: &Private) -> Option<Authority> {
    match &private.target {
        Target::Single { host, port } if private.host.is_some() && !private.protocol.is_datagrams() => {
            Some(Authority::new(host, *port))
        }
        Target::Single { .. } | Target::Network { .. } => None,
    }
}

enum Attempt {
    Opened(TunnelStream),
    Failed(OpenError),
    /// Another connection may still serve.
    Lost,
}

impl Link {
    /// From now on it takes streams.
    pub(super) fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Relaxed);
    }

    pub(super) fn drain(&self) {
        self.draining.cancel();
    }

    /// Of the connector; a mapped IPv4 address is shown as IPv4.
    fn address(&self) -> SocketAddr {
        let address = self.connection.remote_address();
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    pub(super) fn takes_streams(&self) -> bool {
        self.admitted.load(Ordering::Relaxed)
            && !self.draining.is_cancelled()
            && self.connection.close_reason().is_none()
    }

    async fn open(&self, request: &OpenRequest) -> Attempt {
        if self.streams.len() >= MAX_ORIGIN_STREAMS as usize {
            return Attempt::Failed(OpenError::Busy);
        }
        match timeout(OPEN_TIMEOUT, self.exchange(request)).await {
            Ok(Ok(attempt)) => attempt,
            Ok(Err(error)) => {
                debug!(connector = %self.connector, %error, "an origin stream could not be opened");
                if error.is_protocol() {
                    self.connection.close(CloseCode::Protocol.into(), b"malformed answer to an open request");
                }
                Attempt::Lost
            }
            Err(_) => Attempt::Failed(OpenError::ConnectorGone),
        }
    }

    async fn exchange(&self, request: &OpenRequest) -> Result<Attempt, ControlError> {
        let in_use = self.streams.token();
        let (mut send, recv) = self.connection.open_bi().await.map_err(quinn::WriteError::from)?;
        control::send(&mut send, request).await?;
        let mut reader = FrameReader::new(recv);
        let reply = reader.next::<OpenReply>().await?.ok_or(ControlError::Truncated)?;
        let recv = reader.into_stream();
        Ok(match reply {
            OpenReply::Opened => {
                Attempt::Opened(TunnelStream::tunnel(send, recv, in_use, self.draining.clone()))
            }
            OpenReply::Refused => Attempt::Failed(OpenError::Refused),
            OpenReply::OriginDown(failure) => Attempt::Failed(OpenError::OriginDown(failure)),
            OpenReply::Draining => {
                self.drain();
                Attempt::Lost
            }
        })
    }
}

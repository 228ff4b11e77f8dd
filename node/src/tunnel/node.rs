//! The node's side: accepts connectors and performs what the control session decides.
//!
//! ```text
//! first packet ── Places ──▶ accept | Retry | refuse
//! handshake    ── TLS ─────▶ a key that the peer proved to hold        (its hash is the identity)
//! hash         ── Store ───▶ connector's name, or nobody: may only enrol
//! control      ── session ─▶ register in the Registry; push origins; heartbeats; drain
//! ```
//!
//! A false accept lets a stranger stand in for a private network's applications; a false reject makes them
//! unreachable (503).

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use quinn::rustls::pki_types::CertificateDer;
use quinn::{Connection, Endpoint, Incoming, SendStream, VarInt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::clock;
use crate::event::{Action, Event, Events};
use crate::flow::Reason;
use crate::store::{Store, StoreError};

use super::admission::{Admission, Place, Places};
use super::control::{self, ControlError, FrameReader};
use super::enrolment::{EnrolmentError, node_key};
use super::identity::KeyHash;
use super::registry::{Link, OriginSet, Registry};
use super::session::{NodeAction, NodeInput, NodeSession, OPENING_TIMEOUT};
use super::socket::size_buffers;
use super::transport::{CONNECTION_WINDOW, EndpointKeys, TransportError, node_endpoint};
use super::wire::{CloseCode, ConnectorFrame, ConnectorName, EnrolmentSecret, NodeFrame, Refusal};

/// Running streams get so long to end when the node stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A peer that will not be served gets so long to read why.
const PARTING_TIMEOUT: Duration = Duration::from_secs(2);

/// What the node's side needs of the node.
#[derive(Clone)]
pub struct NodeTunnel {
    pub store: Store,
    pub events: Events,
    pub registry: Arc<Registry>,
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
        endpoints.push(node_endpoint(socket, &key, &keys)?);
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
                peers.spawn(peer(node.clone(), incoming, place, shutdown.clone()));
            }
            Admission::Retry => {
                // Fails only for an address that is validated, and that one was not.
                let _ = incoming.retry();
            }
            Admission::Refuse => incoming.refuse(),
        }
    }
}

/// One peer, from its first packet to its end.
async fn peer(node: NodeTunnel, incoming: Incoming, place: Place, shutdown: CancellationToken) {
    let address = incoming.remote_address().ip().to_canonical();
    let refused = |reason, detail: &str| {
        node.events.emit(Event::new(Action::Connect, false).reason(reason).address(address).detail(detail));
    };
    let connection = match timeout(OPENING_TIMEOUT, async { incoming.accept()?.await }).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return refused(Reason::BadRequest, &format!("handshake: {error}")),
        Err(_) => return debug!(%address, "a handshake took too long"),
    };
    let Some(key) = proven_key(&connection) else {
        connection.close(CloseCode::Protocol.into(), b"no certificate");
        return refused(Reason::UnknownConnector, "no certificate");
    };
    let known = match known_connector(&node.store, key).await {
        Ok(known) => known,
        Err(error) => {
            warn!(%error, "a connector's key could not be looked up");
            connection.close(CloseCode::Internal.into(), b"");
            return refused(Reason::Internal, "the store failed");
        }
    };
    let peer = Peer { node: &node, connection: &connection, key, known_before: known.is_some() };
    match peer.run(known, place, shutdown).await {
        Ok(Ended::Served { connector, since }) => {
            info!(%connector, %address, "a connector is gone");
            node.events.emit(
                Event::new(Action::Disconnect, true)
                    .connector(connector.as_str())
                    .address(address)
                    .duration(since.elapsed()),
            );
        }
        Ok(Ended::Refused(reason, detail)) => refused(reason, detail),
        Err(error) => {
            if error.is_protocol() {
                connection.close(CloseCode::Protocol.into(), b"malformed frame");
            }
            refused(Reason::BadRequest, &error.to_string());
        }
    }
}

/// The hash of the key that TLS has verified.
fn proven_key(connection: &Connection) -> Option<KeyHash> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    KeyHash::of_certificate(chain.first()?).ok()
}

async fn known_connector(store: &Store, key: KeyHash) -> Result<Option<ConnectorName>, StoreError> {
    let connector = store.connector_by_key(*key.as_bytes()).await?;
    Ok(connector.and_then(|connector| connector.name.parse().ok()))
}

enum Ended {
    Served { connector: ConnectorName, since: Instant },
    Refused(Reason, &'static str),
}

struct Peer<'a> {
    node: &'a NodeTunnel,
    connection: &'a Connection,
    key: KeyHash,
    known_before: bool,
}

/// A connection in service; out of the registry when dropped, however the service ends.
struct Service<'a> {
    registry: &'a Registry,
    link: Arc<Link>,
    since: Instant,
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        self.registry.unregister(&self.link);
    }
}

impl Peer<'_> {
    /// The control session, until the connection ends.
    async fn run(
        &self,
        known: Option<ConnectorName>,
        place: Place,
        shutdown: CancellationToken,
    ) -> Result<Ended, ControlError> {
        let began = Instant::now();
        let opening = timeout(OPENING_TIMEOUT, self.connection.accept_bi()).await;
        let Ok(opened) = opening else {
            self.connection.close(CloseCode::Timeout.into(), b"");
            return Ok(Ended::Refused(Reason::BadRequest, "no control stream"));
        };
        let (mut send, recv) = opened.map_err(quinn::ReadError::from)?;
        let mut reader = FrameReader::new(recv);
        let mut session = NodeSession::new(known, Duration::ZERO);
        let mut service: Option<Service<'_>> = None;
        let mut origins: Option<watch::Receiver<OriginSet>> = None;
        let mut place = Some(place);
        let mut inputs: Vec<NodeInput> = Vec::new();
        let mut refusal = None;
        let mut drain_until: Option<Instant> = None;

        loop {
            // What the inputs lead to may be inputs again: a token is redeemed, a registration fails.
            while let Some(input) = inputs.pop() {
                for action in session.handle(input, began.elapsed()) {
                    match action {
                        NodeAction::Send(frame) => {
                            if let NodeFrame::Refused(why) = &frame {
                                refusal = Some(*why);
                            }
                            control::send(&mut send, &frame).await?;
                        }
                        NodeAction::Redeem(secret) => {
                            inputs.push(NodeInput::Redeemed(self.redeem(&secret).await));
                        }
                        NodeAction::Register(connector) => match self.register(&connector).await {
                            Some((registered, of_connector)) => {
                                service = Some(registered);
                                origins = Some(of_connector);
                                place = None;
                            }
                            None => inputs.push(NodeInput::Full),
                        },
                        NodeAction::Healthy(healthy) => {
                            if let Some(service) = &service {
                                debug!(connector = %service.link.connector, healthy, "heartbeat");
                                service.link.set_healthy(healthy);
                            }
                        }
                        NodeAction::PeerDrains => {
                            if let Some(service) = &service {
                                service.link.drain();
                            }
                        }
                        NodeAction::Close(code) => {
                            self.part(send, code).await;
                            return Ok(ended(service, refusal, code));
                        }
                    }
                }
            }
            debug_assert!(place.is_none() == service.is_some());
            let deadline = session.deadline();
            tokio::select! {
                frame = reader.next::<ConnectorFrame>() => match frame {
                    Ok(Some(frame)) => inputs.push(NodeInput::Frame(frame)),
                    Ok(None) => {
                        self.connection.close(CloseCode::Shutdown.into(), b"");
                        return Ok(ended(service, refusal, CloseCode::Shutdown));
                    }
                    Err(error) if error.is_protocol() || service.is_none() => return Err(error),
                    Err(_) => return Ok(ended(service, refusal, CloseCode::Shutdown)),
                },
                set = changed(&mut origins) => {
                    let OriginSet { epoch, origins } = set;
                    inputs.push(NodeInput::Configure { epoch, origins: origins.into_iter().collect() });
                }
                () = sleep_until(began + deadline.unwrap_or_default()), if deadline.is_some() => {
                    inputs.push(NodeInput::Timer);
                }
                () = shutdown.cancelled(), if drain_until.is_none() => {
                    drain_until = Some(Instant::now() + DRAIN_TIMEOUT);
                    inputs.push(NodeInput::Drain);
                }
                () = served_out(&service, drain_until) => {
                    self.connection.close(CloseCode::Shutdown.into(), b"the node stops");
                    return Ok(ended(service, refusal, CloseCode::Shutdown));
                }
            }
        }
    }

    /// Spends the token for the peer's key. A store that fails spends nothing and says so in the log.
    async fn redeem(&self, secret: &EnrolmentSecret) -> Option<ConnectorName> {
        let now = clock::now();
        let redeemed = self.node.store.enrol_connector(secret.hash(), *self.key.as_bytes(), now).await;
        let connector = match redeemed {
            Ok(connector) => connector?,
            Err(error) => {
                warn!(%error, "an enrolment token could not be redeemed");
                return None;
            }
        };
        // The connector's former key is void: so are its connections.
        self.node.registry.disconnect(&connector.name);
        connector.name.parse().ok()
    }

    /// Puts the connection into service, unless there is no room or the key was revoked meanwhile.
    async fn register(&self, connector: &ConnectorName) -> Option<(Service<'_>, watch::Receiver<OriginSet>)> {
        let registry = &*self.node.registry;
        let (link, mut origins) = registry.register(connector, self.connection.clone()).ok()?;
        origins.mark_changed();
        let service = Service { registry, link, since: Instant::now() };
        // Whoever revokes writes the store first and then disconnects what is registered: one of the two sees us.
        match known_connector(&self.node.store, self.key).await {
            Ok(Some(name)) if name == *connector => {}
            Ok(_) | Err(_) => return None,
        }
        self.connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW));
        let address = self.connection.remote_address().ip().to_canonical();
        let detail = if self.known_before { "connected" } else { "enrolled" };
        info!(%connector, %address, "a connector {detail}");
        self.node.events.emit(
            Event::new(Action::Connect, true).connector(connector.as_str()).address(address).detail(detail),
        );
        Some((service, origins))
    }

    /// Closes after the last frame has arrived, if the peer still listens.
    async fn part(&self, mut send: SendStream, code: CloseCode) {
        if send.finish().is_ok() {
            let _ = timeout(PARTING_TIMEOUT, send.stopped()).await;
        }
        self.connection.close(code.into(), b"");
    }
}

fn ended(service: Option<Service<'_>>, refusal: Option<Refusal>, code: CloseCode) -> Ended {
    match (service, refusal) {
        (_, Some(Refusal::BadToken)) => Ended::Refused(Reason::BadEnrolment, "bad enrolment token"),
        (_, Some(Refusal::UnknownKey)) => Ended::Refused(Reason::UnknownConnector, "unknown key"),
        (_, Some(Refusal::TooManyConnections)) => {
            Ended::Refused(Reason::Throttled, "the connector has too many connections")
        }
        (Some(service), None) => {
            Ended::Served { connector: service.link.connector.clone(), since: service.since }
        }
        (None, None) if code == CloseCode::Timeout => Ended::Refused(Reason::BadRequest, "silent"),
        (None, None) => Ended::Refused(Reason::BadRequest, "frames out of order"),
    }
}

/// The origins of the connection in service, when they have changed; never before it is.
async fn changed(origins: &mut Option<watch::Receiver<OriginSet>>) -> OriginSet {
    if let Some(origins) = origins
        && origins.changed().await.is_ok()
    {
        return origins.borrow_and_update().clone();
    }
    std::future::pending().await
}

/// During a drain: every stream of the connection in service has ended, or has had its time.
async fn served_out(service: &Option<Service<'_>>, drain_until: Option<Instant>) {
    match (service, drain_until) {
        (Some(service), Some(until)) => {
            service.link.streams.close();
            let _ = timeout_at(until, service.link.streams.wait()).await;
        }
        (None, _) | (_, None) => std::future::pending().await,
    }
}

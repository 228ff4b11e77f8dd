//! One peer of the node, from its first packet to its end.
//!
//! A false accept lets a stranger stand in for a private network's applications; a false reject makes them
//! unreachable (503).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::rustls::pki_types::CertificateDer;
use quinn::{Connection, ConnectionError, Incoming, SendStream, VarInt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock;
use crate::event::{Action, Event};
use crate::flow::Reason;
use crate::places::Place;
use crate::store::{Store, StoreError};

use super::access_wire;
use super::carrier::is_stream;
use super::control::{self, ControlError, FrameReader};
use super::identity::KeyHash;
use super::node::{DRAIN_TIMEOUT, NodeTunnel, PARTING_TIMEOUT};
use super::private::{ToLink, serve_client};
use super::registry::{Link, OriginSet, Registry};
use super::session::{NodeAction, NodeInput, NodeSession, OPENING_TIMEOUT};
use super::standing::Standing;
use super::transport::{CONNECTION_WINDOW, speaks};
use super::wire::{
    CloseCode, ConnectorFrame, ConnectorName, DeviceSecret, EndReason, EnrolmentSecret, NodeFrame, Refusal,
};

/// Serves one peer. It holds `place` until it is known to be a connector.
pub(super) async fn serve_peer(
    node: NodeTunnel,
    incoming: Incoming,
    local: SocketAddr,
    place: Place,
    shutdown: CancellationToken,
) {
    let remote = incoming.remote_address();
    let Some(address) = node.carried.real(remote) else { return incoming.ignore() };
    let log = |event: Event| node.events.emit(event.address(address));
    let refused = |reason, detail: &str| {
        log(Event::new(Action::Connect, false).reason(reason).detail(detail));
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
    if access_wire::ALL.iter().any(|protocol| speaks(&connection, protocol)) {
        return serve_client(&node, connection, local, key, place, &shutdown).await;
    }
    let known = match known_connector(&node.store, key).await {
        Ok(known) => known,
        Err(error) => {
            warn!(%error, "a connector's key could not be looked up");
            connection.close(CloseCode::Internal.into(), b"");
            return refused(Reason::Internal, "the store failed");
        }
    };
    let peer = Peer { node: &node, connection: &connection, local, address, key, known };
    let mut service = None;
    let ended = peer.run(&mut service, place, &shutdown).await;

    if let Err(error) = &ended
        && error.is_protocol()
    {
        connection.close(CloseCode::Protocol.into(), b"malformed frame");
    }
    match &ended {
        Ok(Ended::Refused(refusal)) => refused(reason(*refusal), &refusal.to_string()),
        Ok(Ended::Protocol) => refused(Reason::BadRequest, "frames out of order"),
        Ok(Ended::Silent) => refused(Reason::BadRequest, "no frame in time"),
        Err(_) if only_looked(&peer) => debug!(%address, "a connector has seen that UDP gets here"),
        Err(error) if error.is_protocol() || service.is_none() => {
            refused(Reason::BadRequest, &error.to_string());
        }
        Ok(Ended::Shutdown) | Err(_) => {}
    }
    if let Some(Service { link, since, .. }) = &service {
        remember(&node, &link.connector, address);
        info!(connector = %link.connector, %address, "a connector is gone");
        log(Event::new(Action::Disconnect, true)
            .connector(link.connector.as_str())
            .duration(since.elapsed()));
    }
}

/// Whether an enrolled connector has shaken hands and gone again in good order, with nothing said: from a network where UDP
/// did not get through it looks so from time to time.
fn only_looked(peer: &Peer<'_>) -> bool {
    let shutdown = VarInt::from(CloseCode::Shutdown);
    let closed = peer.connection.close_reason();
    let in_order =
        matches!(closed, Some(ConnectionError::ApplicationClosed(by)) if by.error_code == shutdown);
    peer.known.is_some() && in_order && peer.connection.stats().frame_rx.stream == 0
}

/// Where an enrolled connector is, it may come back when strangers flood.
fn remember(node: &NodeTunnel, connector: &ConnectorName, address: IpAddr) {
    node.recent.remember(&format!("connector:{}", connector.as_str()), address, clock::now());
}

const fn reason(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::UnknownKey => Reason::UnknownConnector,
        Refusal::BadToken => Reason::BadEnrolment,
        Refusal::TooManyConnections => Reason::Throttled,
    }
}

/// The hash of the key that TLS has verified.
fn proven_key(connection: &Connection) -> Option<KeyHash> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    KeyHash::of_certificate(chain.first()?).ok()
}

/// Whether the peer chose this application protocol.
async fn known_connector(store: &Store, key: KeyHash) -> Result<Option<ConnectorName>, StoreError> {
    let connector = store.connector_by_key(*key.as_bytes()).await?;
    Ok(connector.and_then(|connector| connector.name.parse().ok()))
}

/// How a control session ended, unless its connection was lost.
enum Ended {
    Shutdown,
    Refused(Refusal),
    Protocol,
    Silent,
}

struct Peer<'a> {
    node: &'a NodeTunnel,
    connection: &'a Connection,
    /// Of the node's endpoint.
    local: SocketAddr,
    address: IpAddr,
    key: KeyHash,
    known: Option<ConnectorName>,
}

/// A connection in service; out of the registry when dropped, however the service ends.
struct Service<'a> {
    registry: &'a Registry,
    link: Arc<Link>,
    since: Instant,
    /// Absent where there is no gate, and until the peer is known for sure.
    standing: Option<Standing>,
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        self.registry.unregister(&self.link);
    }
}

impl<'a> Peer<'a> {
    /// The control session, until it ends.
    async fn run(
        &self,
        service: &mut Option<Service<'a>>,
        place: Place,
        shutdown: &CancellationToken,
    ) -> Result<Ended, ControlError> {
        let began = Instant::now();
        let Ok(opened) = timeout(OPENING_TIMEOUT, self.connection.accept_bi()).await else {
            self.connection.close(CloseCode::Timeout.into(), b"");
            return Ok(Ended::Silent);
        };
        let (mut send, recv) = opened.map_err(quinn::ReadError::from)?;
        let mut reader = FrameReader::new(recv);
        let mut session = NodeSession::new(self.known.clone(), Duration::ZERO);
        let mut origins: Option<watch::Receiver<OriginSet>> = None;
        let mut place = Some(place);
        let mut drain_until: Option<Instant> = None;
        let mut by_key = false;
        let mut sessions: Option<ToLink> = None;

        loop {
            let deadline = session.deadline();
            let mut next = Some(tokio::select! {
                frame = reader.next::<ConnectorFrame>() => match frame? {
                    Some(frame) => NodeInput::Frame(frame),
                    None => return Ok(self.close(CloseCode::Shutdown)),
                },
                input = of_sessions(&mut sessions) => input,
                OriginSet { epoch, origins } = changed(&mut origins) => {
                    NodeInput::Configure { epoch, origins: origins.into_iter().collect() }
                }
                () = sleep_until(began + deadline.unwrap_or_default()), if deadline.is_some() => {
                    NodeInput::Timer
                }
                () = shutdown.cancelled(), if drain_until.is_none() => {
                    drain_until = Some(Instant::now() + DRAIN_TIMEOUT);
                    NodeInput::Drain
                }
                () = served_out(service.as_ref(), drain_until) => return Ok(self.close(CloseCode::Shutdown)),
            });
            let mut refusal = None;
            by_key |= matches!(next, Some(NodeInput::Frame(ConnectorFrame::Hello)));
            // What an input leads to may be the next input: a token is redeemed, a registration fails.
            while let Some(input) = next.take() {
                for action in session.handle(input, began.elapsed()) {
                    match action {
                        NodeAction::Send(frame) => {
                            if let NodeFrame::Refused(why) = &frame {
                                refusal = Some(*why);
                            }
                            control::send(&mut send, &frame).await?;
                        }
                        NodeAction::Redeem(secret) => {
                            next = Some(NodeInput::Redeemed(self.redeem(&secret).await));
                        }
                        NodeAction::Spend(secret, connector) => self.spend(&secret, &connector).await,
                        NodeAction::Register(connector) => {
                            if by_key {
                                self.void_spent_tokens(&connector).await;
                            }
                            match self.register(&connector).await {
                                Ok((registered, of_connector)) => {
                                    remember(self.node, &connector, self.address);
                                    *service = Some(registered);
                                    origins = Some(of_connector);
                                    place.take();
                                }
                                Err(refusal) => next = Some(NodeInput::NotRegistered(refusal)),
                            }
                        }
                        NodeAction::Device => next = self.device().await.map(NodeInput::Device),
                        NodeAction::Healthy(healthy) => {
                            if let Some(Service { link, .. }) = service {
                                debug!(connector = %link.connector, healthy, "heartbeats");
                                link.set_healthy(healthy);
                            }
                            if let (true, Some(sessions)) = (healthy, &sessions) {
                                sessions.heard_again();
                            }
                        }
                        NodeAction::TakesSessions(instance) => {
                            if let Some(Service { link, .. }) = service {
                                sessions = Some(self.node.private.takes_sessions(link, self.key, instance));
                            }
                        }
                        NodeAction::Taken(session) => {
                            if let Some(sessions) = &sessions {
                                sessions.taken(session);
                            }
                        }
                        NodeAction::Declined(session, why) => {
                            if let Some(sessions) = &sessions {
                                debug!(?session, %why, "a connector declines a session");
                                sessions.ended(session, EndReason::Declined);
                            }
                        }
                        NodeAction::SessionEnded(session) => {
                            if let Some(sessions) = &sessions {
                                sessions.ended(session, EndReason::ConnectorEnded);
                            }
                        }
                        NodeAction::PeerDrains => {
                            if let Some(Service { link, .. }) = service {
                                link.drain();
                            }
                        }
                        NodeAction::Close(code) => {
                            deliver(&mut send).await;
                            let ended = self.close(code);
                            return Ok(refusal.map_or(ended, Ended::Refused));
                        }
                    }
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
        if let Err(error) =
            self.node.private.end_connector(&connector.name, EndReason::ConnectorRevoked).await
        {
            warn!(%error, "sessions of a connector's former key");
        }
        if let Err(error) = self.node.devices.tell(now).await {
            warn!(%error, "a connector's former device is not void at the gate");
        }
        connector.name.parse().ok()
    }

    /// Spends a token that its connector did not need. The connection does not depend on it: where the store fails,
    /// the token stays good until it expires, and the log says so.
    async fn spend(&self, secret: &EnrolmentSecret, connector: &ConnectorName) {
        if let Err(error) = self.node.store.spend_enrolment(secret.hash(), connector.as_str()).await {
            warn!(%error, %connector, "an enrolment token that was not needed could not be spent");
        }
    }

    /// What the connector knocks with; a store that fails leaves it with what it has.
    async fn device(&self) -> Option<DeviceSecret> {
        let device = self.node.devices.of_key(*self.key.as_bytes()).await;
        device.unwrap_or_else(|error| {
            warn!(%error, "a connector's device could not be looked up");
            None
        })
    }

    async fn void_spent_tokens(&self, connector: &ConnectorName) {
        if let Err(error) = self.node.devices.void_spent_tokens(connector.as_str()).await {
            warn!(%connector, %error, "the device of a spent token stays good until the token expires");
        }
    }

    /// Puts the connection into service, unless there is no room or its key was revoked meanwhile.
    async fn register(
        &self,
        connector: &ConnectorName,
    ) -> Result<(Service<'a>, watch::Receiver<OriginSet>), Refusal> {
        let registry = &*self.node.registry;
        let (link, mut origins) =
            registry.register(connector, self.connection.clone()).map_err(|_| Refusal::TooManyConnections)?;
        origins.mark_changed();
        let mut service = Service { registry, link, since: Instant::now(), standing: None };
        // Whoever revokes writes the store first and then disconnects what is registered: one of the two sees us.
        match known_connector(&self.node.store, self.key).await {
            Ok(Some(name)) if name == *connector => {}
            Ok(_) | Err(_) => return Err(Refusal::UnknownKey),
        }
        service.standing = self
            .node
            .gate
            .as_ref()
            .map(|gate| Standing::begin(gate, &self.node.carried, self.connection, self.local));
        self.connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW));
        service.link.admit();
        let detail = match (self.known.is_some(), is_stream(self.connection.remote_address())) {
            (true, false) => "connected",
            (true, true) => "connected over TCP",
            (false, false) => "enrolled",
            (false, true) => "enrolled over TCP",
        };
        info!(%connector, address = %self.address, "a connector {detail}");
        self.node.events.emit(
            Event::new(Action::Connect, true)
                .connector(connector.as_str())
                .address(self.address)
                .detail(detail),
        );
        Ok((service, origins))
    }

    fn close(&self, code: CloseCode) -> Ended {
        self.connection.close(code.into(), b"");
        match code {
            CloseCode::Timeout => Ended::Silent,
            CloseCode::Protocol => Ended::Protocol,
            CloseCode::Shutdown | CloseCode::Refused | CloseCode::Revoked | CloseCode::Internal => {
                Ended::Shutdown
            }
        }
    }
}

/// Waits until the last frame has arrived, if the peer still listens.
async fn deliver(send: &mut SendStream) {
    if send.finish().is_ok() {
        let _ = timeout(PARTING_TIMEOUT, send.stopped()).await;
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

/// What the private sessions have to tell the connector, once it takes any.
async fn of_sessions(sessions: &mut Option<ToLink>) -> NodeInput {
    if let Some(sessions) = sessions
        && let Some(input) = sessions.next().await
    {
        return input;
    }
    std::future::pending().await
}

/// During a drain: every stream of the connection in service has ended, or has had its time.
async fn served_out(service: Option<&Service<'_>>, drain_until: Option<Instant>) {
    match (service, drain_until) {
        (Some(service), Some(until)) => {
            service.link.streams.close();
            let _ = timeout_at(until, service.link.streams.wait()).await;
        }
        (None, _) | (_, None) => std::future::pending().await,
    }
}

//! A node that says yes to everybody, keeps the rules of the wire, and can be told to misbehave.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::rustls::{self, pki_types::CertificateDer};
use quinn::{Connection, Endpoint, EndpointConfig, Runtime as _, ServerConfig, TokioRuntime};
use tokio::sync::mpsc;

use super::super::lab::until;
use crate::clock;
use crate::flow::UnixTime;
use crate::store::Store;
use crate::tunnel::access_wire::{self, AccessFrame, ClientFrame, Denial, Opened, Ray, RequestId};
use crate::tunnel::control::{self, FrameReader};
use crate::tunnel::enrolment::{self, EnrolmentToken, node_key};
use crate::tunnel::grant::{Grant, Protocol, Reach};
use crate::tunnel::identity::{AnyKey, KeyHash, TunnelKey};
use crate::tunnel::relay::wire::BindKey;
use crate::tunnel::relay::{Action, Binds, Demux, Leg, LegSecret, Own, Relay, SessionRef, Terms};
use crate::tunnel::session::{NodeAction, NodeInput, NodeSession};
use crate::tunnel::wire::{
    ALPN, CloseCode, ConnectorFrame, DeviceSecret, EndReason, EnrolmentSecret, Offer, RelayPath,
};

const TICKET: [u8; 16] = [0x44; 16];

/// Changes what goes into the next grants.
pub(super) type Tamper = Arc<dyn Fn(Grant) -> Grant + Send + Sync>;

pub(crate) struct TestNode {
    inner: Arc<Inner>,
    directory: tempfile::TempDir,
}

pub(super) struct Inner {
    key: TunnelKey,
    address: SocketAddr,
    relay: Arc<Relay>,
    _endpoint: Endpoint,
    pub(super) state: Mutex<State>,
}

pub(crate) struct State {
    binds: Binds,
    protocol: Protocol,
    reach: Reach,
    pub(super) lifetime: Duration,
    pub(super) tamper: Option<Tamper>,
    /// Instead of the node's own.
    pub(super) signs: Option<TunnelKey>,
    /// What clients are told the connector's key is, instead of the real one.
    pub(super) claims: Option<KeyHash>,
    pub(crate) deny: Option<Denial>,
    pub(crate) path: RelayPath,
    connector: Option<(Connection, mpsc::UnboundedSender<NodeInput>)>,
    client: Option<(Connection, mpsc::UnboundedSender<AccessFrame>)>,
    sessions: BTreeMap<SessionRef, Vec<u8>>,
    next: u32,
    /// What happened, in words.
    pub(super) log: Vec<String>,
}

impl TestNode {
    pub(crate) async fn start(protocol: Protocol, reach: Reach) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let key = node_key(&store).await.unwrap();
        let (relay, mut queue) = Relay::new(clock::monotonic);
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        crate::tunnel::size_buffers(&socket).unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = TokioRuntime.wrap_udp_socket(socket).unwrap();
        let shared = Arc::new(Demux::share(socket, Arc::clone(&relay), Box::new(|_| false)).unwrap());
        let mut config = EndpointConfig::default();
        config.grease_quic_bit(false);
        let endpoint =
            Endpoint::new_with_abstract_socket(config, Some(server(&key)), shared, Arc::new(TokioRuntime))
                .unwrap();
        let address = endpoint.local_addr().unwrap();
        let own = Own { addresses: [address.ip()].into(), ports: [address.port()].into() };
        let state = State {
            binds: Binds::new(own),
            protocol,
            reach,
            lifetime: Duration::from_secs(3600),
            tamper: None,
            signs: None,
            claims: None,
            deny: None,
            path: RelayPath::Userspace,
            connector: None,
            client: None,
            sessions: BTreeMap::new(),
            next: 1,
            log: Vec::new(),
        };
        let state = Mutex::new(state);
        let inner = Arc::new(Inner { key, address, relay, _endpoint: endpoint.clone(), state });
        let of_binds = Arc::clone(&inner);
        tokio::spawn(async move {
            while let Some(datagram) = queue.binds.recv().await {
                let mut state = of_binds.state();
                let (now, tuple) = (clock::monotonic(), datagram.tuple);
                for action in state.binds.on_datagram(now, tuple, &datagram.bytes, clock::random) {
                    assert!(of_binds.relay.perform(&action));
                    if let Action::Ready { session, leg, counter } = action {
                        state.ready(session, leg, counter);
                    }
                }
            }
        });
        let of_accept = Arc::clone(&inner);
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let inner = Arc::clone(&of_accept);
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    let data = connection.handshake_data().unwrap().downcast::<HandshakeData>().unwrap();
                    if data.protocol.as_deref() == Some(ALPN) {
                        serve_connector(inner, connection).await;
                    } else {
                        serve_client(inner, connection).await;
                    }
                });
            }
        });
        Self { inner, directory }
    }

    pub(crate) fn key(&self) -> KeyHash {
        self.inner.key.hash()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.inner.address
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state()
    }

    pub(crate) async fn token(&self) -> EnrolmentToken {
        let store = Store::open(self.directory.path()).unwrap();
        let secret = EnrolmentSecret::from_bytes(clock::random());
        let nodes = vec![self.address().to_string().parse().unwrap()];
        let lifetime = Duration::from_secs(600);
        let web = self.address().to_string().parse().unwrap();
        enrolment::create(&store, "hq".parse().unwrap(), nodes, web, lifetime, secret, clock::now())
            .await
            .unwrap()
    }

    /// Waits for a connector that takes sessions.
    pub(crate) async fn connector(&self) {
        until("a connector takes sessions", || self.state().connector_is_there()).await;
    }

    pub(crate) fn logged(&self, what: &str) -> usize {
        self.state().log.iter().filter(|line| line.starts_with(what)).count()
    }

    pub(crate) fn live(&self) -> Vec<SessionRef> {
        self.state().sessions.keys().copied().collect()
    }

    /// Ends a session as a revocation does: packets first, then both ends are told.
    pub(crate) fn end(&self, session: SessionRef, reason: EndReason) {
        let mut state = self.state();
        state.sessions.remove(&session).unwrap();
        let removed = state.binds.remove(session).unwrap();
        self.inner.relay.remove(&removed);
        state.tell_client(AccessFrame::EndSession { session, reason });
        state.tell_connector(NodeInput::EndSession { session, reason });
    }

    /// Closes a control connection, as when the node restarts.
    pub(crate) fn cut(&self, leg: Leg) {
        let state = self.state();
        let connection = match leg {
            Leg::Client => state.client.as_ref().map(|(connection, _)| connection),
            Leg::Connector => state.connector.as_ref().map(|(connection, _)| connection),
        };
        connection.unwrap().close(CloseCode::Shutdown.into(), b"");
    }

    /// Forgets where the legs are, as a node that starts anew.
    pub(crate) fn forget_binds(&self) {
        let mut state = self.state();
        for session in self.inner.sessions_of(&state) {
            let removed = state.binds.remove(session).unwrap();
            self.inner.relay.remove(&removed);
            state.binds.register(session, terms()).unwrap();
        }
    }

    pub(crate) fn relayed(&self, session: SessionRef) -> u64 {
        let [up, down] = self.inner.relay.sent(session).unwrap_or_default().all();
        up.packets + down.packets
    }
}

fn terms() -> Terms {
    Terms { identity: 0, epoch: 0, expires: clock::monotonic() + Duration::from_secs(3600) }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn sessions_of(&self, state: &State) -> Vec<SessionRef> {
        state.sessions.keys().copied().collect()
    }

    fn open(&self, request: RequestId, client: &Connection, resumed: Option<SessionRef>) {
        let mut state = self.state();
        if let Some(denial) = state.deny {
            let message = "this is not for you".to_owned();
            return state.tell_client(AccessFrame::Denied { request, denial, ray: Ray([1; 8]), message });
        }
        let Some((connector, _)) = state.connector.clone() else {
            let (denial, message) = (Denial::ConnectorGone, "the connector is away".to_owned());
            return state.tell_client(AccessFrame::Denied { request, denial, ray: Ray([1; 8]), message });
        };
        let session = resumed.unwrap_or_else(|| {
            state.next += 1;
            SessionRef { index: state.next, generation: 1 }
        });
        if resumed.is_none() {
            state.binds.register(session, terms()).unwrap();
        }
        let expires = clock::now().after(state.lifetime);
        let grant = Grant {
            session,
            person: "ann".to_owned(),
            application: "app".to_owned(),
            protocol: state.protocol,
            reach: state.reach.clone(),
            client: peer(client),
            connector: peer(&connector),
            not_after: expires,
        };
        let grant = state.tamper.as_ref().map_or(grant.clone(), |tamper| tamper(grant));
        let grant = grant.sign(state.signs.as_ref().unwrap_or(&self.key)).unwrap().as_bytes().to_vec();
        for (leg, control) in [(Leg::Client, client), (Leg::Connector, &connector)] {
            let key = BindKey::export(control, session, leg).unwrap();
            state.binds.expect(session, leg, LegSecret { key, ticket: TICKET }).unwrap();
        }
        state.sessions.insert(session, grant.clone());
        let known = state.claims.unwrap_or_else(|| peer(&connector));
        state.tell_connector(NodeInput::Offer(Offer { session, ticket: TICKET, grant: grant.clone() }));
        state.tell_client(AccessFrame::Opened(Opened {
            request,
            session,
            ticket: TICKET,
            grant,
            connector: known,
            expires,
        }));
    }
}

impl State {
    pub(super) fn connector_is_there(&self) -> bool {
        self.connector.as_ref().is_some_and(|(connection, _)| connection.close_reason().is_none())
    }

    fn ready(&mut self, session: SessionRef, leg: Leg, counter: u64) {
        let path = self.path;
        self.log.push(format!("ready {leg:?}"));
        match leg {
            Leg::Client => self.tell_client(AccessFrame::Ready { session, counter, path }),
            Leg::Connector => self.tell_connector(NodeInput::SessionReady { session, counter, path }),
        }
    }

    fn tell_client(&self, frame: AccessFrame) {
        if let Some((_, client)) = &self.client {
            let _ = client.send(frame);
        }
    }

    fn tell_connector(&self, input: NodeInput) {
        if let Some((_, connector)) = &self.connector {
            let _ = connector.send(input);
        }
    }
}

fn peer(connection: &Connection) -> KeyHash {
    let chain = connection.peer_identity().unwrap().downcast::<Vec<CertificateDer<'static>>>().unwrap();
    KeyHash::of_certificate(&chain[0]).unwrap()
}

fn server(key: &TunnelKey) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(AnyKey { provider }))
        .with_single_cert(key.chain(), key.private_key())
        .unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec(), access_wire::ALPN.to_vec()];
    ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()))
}

async fn serve_connector(inner: Arc<Inner>, connection: Connection) {
    let Ok((mut send, recv)) = connection.accept_bi().await else { return };
    let mut reader = FrameReader::new(recv);
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut machine = NodeSession::new(None, Duration::ZERO);
    let mut known = false;
    loop {
        let input = tokio::select! {
            frame = reader.next::<ConnectorFrame>() => match frame {
                // This node knows everybody.
                Ok(Some(frame)) => {
                    if frame == ConnectorFrame::Hello && !known {
                        machine = NodeSession::new(Some("hq".parse().unwrap()), Duration::ZERO);
                    }
                    known = true;
                    NodeInput::Frame(frame)
                }
                Ok(None) | Err(_) => break,
            },
            Some(input) = told.recv() => input,
        };
        let mut actions = machine.handle(input, Duration::from_secs(1));
        while !actions.is_empty() {
            match actions.remove(0) {
                NodeAction::Send(frame) => {
                    if control::send(&mut send, &frame).await.is_err() {
                        return;
                    }
                }
                NodeAction::Redeem(_) => {
                    let name = Some("hq".parse().unwrap());
                    actions.extend(machine.handle(NodeInput::Redeemed(name), Duration::from_secs(1)));
                }
                NodeAction::Device => {
                    let device = DeviceSecret::from_bytes(&[3; DeviceSecret::SIZE]).unwrap();
                    actions.extend(machine.handle(NodeInput::Device(device), Duration::from_secs(1)));
                }
                NodeAction::TakesSessions(_) => {
                    inner.state().connector = Some((connection.clone(), tell.clone()));
                }
                NodeAction::Taken(_) => inner.state().log.push("taken".to_owned()),
                NodeAction::Declined(session, why) => {
                    let mut state = inner.state();
                    state.log.push(format!("declined {why:?}"));
                    state.sessions.remove(&session);
                    state.binds.remove(session);
                    state.tell_client(AccessFrame::EndSession { session, reason: EndReason::Declined });
                }
                NodeAction::SessionEnded(session) => {
                    let mut state = inner.state();
                    state.log.push("connector ended".to_owned());
                    state.sessions.remove(&session);
                    state.binds.remove(session);
                    let reason = EndReason::ConnectorEnded;
                    state.tell_client(AccessFrame::EndSession { session, reason });
                }
                NodeAction::Close(_) => connection.close(CloseCode::Refused.into(), b""),
                NodeAction::Spend(..)
                | NodeAction::Register(_)
                | NodeAction::Healthy(_)
                | NodeAction::PeerDrains => {}
            }
        }
    }
    let mut state = inner.state();
    if state.connector.as_ref().is_some_and(|(current, _)| current.stable_id() == connection.stable_id()) {
        state.connector = None;
    }
}

async fn serve_client(inner: Arc<Inner>, connection: Connection) {
    let Ok((mut send, recv)) = connection.accept_bi().await else { return };
    let mut reader = FrameReader::new(recv);
    let (tell, mut told) = mpsc::unbounded_channel();
    inner.state().client = Some((connection.clone(), tell));
    loop {
        tokio::select! {
            frame = reader.next::<ClientFrame>() => match frame {
                Ok(Some(ClientFrame::Hello { token, .. })) => {
                    let mut state = inner.state();
                    state.log.push(format!("hello {}", token.expose()));
                    let (person, at) = ("ann".to_owned(), UnixTime(clock::now().0 + 3600));
                    state.tell_client(AccessFrame::Welcome { person, token_expires: at, login_expires: at });
                }
                // Binds ahead of it are lost here, as on any network: the leg binds again when it has its session.
                Ok(Some(
                    ClientFrame::Open { request, application, .. }
                    | ClientFrame::OpenBinding { request, application, .. },
                )) => {
                    inner.state().log.push(format!("open {application}"));
                    inner.open(request, &connection, None);
                }
                Ok(Some(ClientFrame::Resume { request, grant })) => {
                    inner.state().log.push("resume".to_owned());
                    let known = inner.state().sessions.iter().find(|(_, of)| **of == grant).map(|(of, _)| *of);
                    match known {
                        Some(session) => inner.open(request, &connection, Some(session)),
                        None => {
                            let (denial, message) = (Denial::Gone, "there is no such session".to_owned());
                            let frame = AccessFrame::Denied { request, denial, ray: Ray([1; 8]), message };
                            inner.state().tell_client(frame);
                        }
                    }
                }
                Ok(Some(ClientFrame::Close { session })) => {
                    let mut state = inner.state();
                    state.log.push("client closed".to_owned());
                    state.sessions.remove(&session);
                    if let Some(removed) = state.binds.remove(session) {
                        inner.relay.remove(&removed);
                    }
                    state.tell_connector(NodeInput::EndSession { session, reason: EndReason::Closed });
                }
                Ok(Some(ClientFrame::Renew { token })) => {
                    let mut state = inner.state();
                    state.log.push(format!("renew {}", token.expose()));
                    state.tell_client(AccessFrame::Renewed { token_expires: clock::now() });
                }
                Ok(None) | Err(_) => return,
            },
            Some(frame) = told.recv() => {
                if control::send(&mut send, &frame).await.is_err() {
                    return;
                }
            }
        }
    }
}

//! A client and a connector of a private session, made of the wire's frames and real legs, over loopback.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::rustls;
use quinn::{
    AsyncUdpSocket, ClientConfig, Connection, Endpoint, EndpointConfig, Runtime as _, SendStream,
    ServerConfig, TokioRuntime,
};
use tokio::io::duplex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::lab::{Lab, PATIENCE, soon, until};
use crate::clock;
use crate::flow::{ClientId, PersonId, Session, SessionId};
use crate::tunnel::LayeredSocket;
use crate::tunnel::access_wire::{self, AccessFrame, ClientFrame, Denial, Opened, RequestId};
use crate::tunnel::carrier::{CarriedSocket, Ended};
use crate::tunnel::control::{self, FrameReader};
use crate::tunnel::enrolment::node_key;
use crate::tunnel::grant::{Expected, Grant, SignedGrant};
use crate::tunnel::identity::{AnyKey, KeyHash, PinnedNode, SERVER_NAME, TunnelKey};
use crate::tunnel::relay::wire::BindKey;
use crate::tunnel::relay::{BoundLeg, End, Leg, LegLayer, SessionRef};
use crate::tunnel::wire::{
    self, ConnectorFrame, Decline, EndReason, EnrolmentSecret, Instance, NodeFrame, Offer, RelayPath,
};

pub(super) fn key() -> TunnelKey {
    TunnelKey::from_pkcs8(TunnelKey::generate().unwrap()).unwrap()
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// For dialling whoever holds `peer`.
fn dialling(own: &TunnelKey, peer: KeyHash, alpn: &[u8]) -> ClientConfig {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedNode { node: peer, provider: provider() }))
        .with_client_auth_cert(own.chain(), own.private_key())
        .unwrap();
    tls.alpn_protocols = vec![alpn.to_vec()];
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(1)));
    client.transport_config(Arc::new(transport));
    client
}

/// As often as a connector is to be heard.
const HEARTBEAT: Duration = Duration::from_secs(5);

const END_TO_END: &[u8] = b"test end to end";

fn listening(own: &TunnelKey) -> ServerConfig {
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(AnyKey { provider: provider() }))
        .with_single_cert(own.chain(), own.private_key())
        .unwrap();
    tls.alpn_protocols = vec![END_TO_END.to_vec()];
    ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()))
}

/// A free port on the loopback address of the same family.
fn near(node: SocketAddr) -> SocketAddr {
    let loopback = if node.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    loopback.parse().unwrap()
}

fn socket(local: SocketAddr) -> Arc<dyn AsyncUdpSocket> {
    TokioRuntime.wrap_udp_socket(UdpSocket::bind(local).unwrap()).unwrap()
}

fn endpoint(socket: LayeredSocket<LegLayer>, server: Option<ServerConfig>) -> Endpoint {
    let mut config = EndpointConfig::default();
    config.grease_quic_bit(false);
    Endpoint::new_with_abstract_socket(config, server, Arc::new(socket), Arc::new(TokioRuntime)).unwrap()
}

/// One leg, and the endpoint over it.
pub(super) struct Bound {
    pub(super) leg: Arc<BoundLeg>,
    pub(super) endpoint: Endpoint,
    session: SessionRef,
    task: JoinHandle<()>,
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bound {
    fn start(
        control: &Connection,
        node: SocketAddr,
        session: SessionRef,
        leg: Leg,
        ticket: [u8; 16],
        server: Option<ServerConfig>,
    ) -> Self {
        Self::start_from(near(node), control, node, session, leg, ticket, server)
    }

    fn start_from(
        local: SocketAddr,
        control: &Connection,
        node: SocketAddr,
        session: SessionRef,
        leg: Leg,
        ticket: [u8; 16],
        server: Option<ServerConfig>,
    ) -> Self {
        let key = BindKey::export(control, session, leg).unwrap();
        let (bound, socket) =
            BoundLeg::start(socket(local), node, |now| End::start(key, ticket, session, leg, 0, now));
        let task = tokio::spawn({
            let bound = Arc::clone(&bound);
            async move {
                bound.run().await;
            }
        });
        Self { leg: bound, endpoint: endpoint(socket, server), session, task }
    }

    pub(super) async fn is_ready(&self) -> bool {
        timeout(PATIENCE, self.leg.wait_ready()).await.unwrap_or(false)
    }
}

/// A login of a person on one device.
pub(super) struct Login {
    pub(super) session: Arc<Session>,
    pub(super) client: ClientId,
    pub(super) key: TunnelKey,
    pub(super) token: String,
}

impl Login {
    pub(super) async fn new(lab: &Lab, name: &str) -> Self {
        Self::of_groups(lab, name, &["staff"]).await
    }

    pub(super) async fn of_groups(lab: &Lab, name: &str, groups: &[&str]) -> Self {
        let now = clock::now();
        let session = Session {
            id: clock::new_session_id(),
            person: PersonId { provider: "local".into(), subject: name.into() },
            is_local: None,
            email: Some(format!("{name}@example.com").parse().unwrap()),
            display_name: name.into(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            amr: vec![],
            address: [127, 0, 0, 1].into(),
            authenticated_at: None,
            created_at: now,
            expires_at: now.after(Duration::from_secs(3600)),
        };
        let session = lab.desk.sessions.create(session).await.unwrap().session;
        Self::on_device(lab, &session, key()).await
    }

    pub(super) async fn on_device(lab: &Lab, session: &Arc<Session>, key: TunnelKey) -> Self {
        let (now, hash) = (clock::now(), key.hash());
        let live = lab.desk.sessions.get(session.id, now).unwrap();
        let logged_in = lab.desk.clients.log_in(&live, *hash.as_bytes(), "laptop", now).await;
        let client = logged_in.unwrap().unwrap().0.client.id;
        let (token, _) = lab.desk.tokens.mint_client(session, client, hash.as_bytes(), now).unwrap();
        Self { session: Arc::clone(session), client, key, token }
    }

    /// Another token of the same login.
    pub(super) fn renewed(lab: &Lab, login: &Self) -> String {
        let key = login.key.hash();
        lab.desk.tokens.mint_client(&login.session, login.client, key.as_bytes(), clock::now()).unwrap().0
    }

    /// A token of the same login that ends in so many seconds.
    pub(super) fn expiring(lab: &Lab, login: &Self, seconds: i64) -> String {
        let then = crate::flow::UnixTime(clock::now().0 - 15 * 60 + seconds);
        let key = login.key.hash();
        lab.desk.tokens.mint_client(&login.session, login.client, key.as_bytes(), then).unwrap().0
    }

    pub(super) fn id(&self) -> SessionId {
        self.session.id
    }
}

/// A client's control connection.
pub(super) struct Client {
    pub(super) connection: Connection,
    pub(super) node: SocketAddr,
    pub(super) send: SendStream,
    pub(super) reader: FrameReader,
    next: u32,
    _endpoint: Endpoint,
}

impl Client {
    /// Connects with `key` and says `token`.
    pub(super) async fn hello(lab: &Lab, key: &TunnelKey, token: &str) -> Self {
        let mut client = Self::silent(lab, key).await;
        client.greet(token).await;
        client
    }

    async fn greet(&mut self, token: &str) {
        let hello = ClientFrame::Hello { token: token.parse().unwrap(), version: "0.1.0".parse().unwrap() };
        self.say(&hello).await;
    }

    pub(super) async fn silent(lab: &Lab, key: &TunnelKey) -> Self {
        Self::over(Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap(), lab, key).await
    }

    /// By a stream of a TCP connection from `real`. The stream ends with the task.
    pub(super) async fn by_stream(lab: &Lab, login: &Login, real: IpAddr) -> (Self, JoinHandle<Ended>) {
        let (theirs, ours) = duplex(64 * 1024);
        let stream = tokio::spawn(lab.node.carried.take(real, false).unwrap().run(ours));
        let socket = Arc::new(CarriedSocket::new(lab.address, theirs, ()));
        let mut config = EndpointConfig::default();
        config.grease_quic_bit(false);
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new_with_abstract_socket(config, None, socket, runtime).unwrap();
        let mut client = Self::over(endpoint, lab, &login.key).await;
        client.greet(&login.token).await;
        assert!(matches!(client.hear().await, AccessFrame::Welcome { .. }));
        (client, stream)
    }

    async fn over(endpoint: Endpoint, lab: &Lab, key: &TunnelKey) -> Self {
        let node = node_key(&lab.node.store).await.unwrap().hash();
        let config = dialling(key, node, access_wire::ALPN);
        let dialled = endpoint.connect_with(config, lab.address, SERVER_NAME).unwrap();
        let connection = soon(dialled).await.unwrap();
        let (send, recv) = connection.open_bi().await.unwrap();
        let reader = FrameReader::new(recv);
        Self { connection, node: lab.address, send, reader, next: 0, _endpoint: endpoint }
    }

    pub(super) async fn welcome(lab: &Lab, login: &Login) -> Self {
        let mut client = Self::hello(lab, &login.key, &login.token).await;
        match client.hear().await {
            AccessFrame::Welcome { person, .. } => {
                assert_eq!(Some(person.as_str()), login.session.email.as_ref().map(|e| e.as_str()));
            }
            other => panic!("{other:?}"),
        }
        client
    }

    pub(super) async fn say(&mut self, frame: &ClientFrame) {
        control::send(&mut self.send, frame).await.unwrap();
    }

    /// The next frame that is not `Ready`: a bind that was repeated may be answered once more.
    pub(super) async fn hear(&mut self) -> AccessFrame {
        loop {
            match self.hear_all().await {
                AccessFrame::Ready { .. } => {}
                frame => return frame,
            }
        }
    }

    pub(super) async fn hear_all(&mut self) -> AccessFrame {
        soon(self.reader.next()).await.unwrap().expect("a frame")
    }

    pub(super) async fn open(
        &mut self,
        application: &str,
        destination: Option<&str>,
    ) -> Result<Opened, Denial> {
        self.next += 1;
        let request = RequestId(self.next);
        let destination = destination.map(|text| text.parse().unwrap());
        self.say(&ClientFrame::Open { request, application: application.into(), destination }).await;
        self.answer(request).await
    }

    pub(super) async fn resume(&mut self, grant: &[u8]) -> Result<Opened, Denial> {
        self.next += 1;
        let request = RequestId(self.next);
        self.say(&ClientFrame::Resume { request, grant: grant.to_vec() }).await;
        self.answer(request).await
    }

    async fn answer(&mut self, to: RequestId) -> Result<Opened, Denial> {
        match self.hear().await {
            AccessFrame::Opened(opened) if opened.request == to => Ok(opened),
            AccessFrame::Denied { request, denial, message, .. } if request == to => {
                assert!(!message.is_empty());
                Err(denial)
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn bind(&self, opened: &Opened) -> Bound {
        Bound::start(&self.connection, self.node, opened.session, Leg::Client, opened.ticket, None)
    }

    /// From another address than that of the control connection.
    pub(super) fn bind_from(&self, local: &str, opened: &Opened) -> Bound {
        let Opened { session, ticket, .. } = *opened;
        let local = local.parse().unwrap();
        Bound::start_from(local, &self.connection, self.node, session, Leg::Client, ticket, None)
    }

    /// Waits for the node's word that the leg is in force.
    pub(super) async fn ready(&mut self, bound: &Bound) -> RelayPath {
        loop {
            match self.hear_all().await {
                AccessFrame::Ready { session, counter, path } if session == bound.session => {
                    bound.leg.ready(counter);
                    assert!(bound.is_ready().await);
                    return path;
                }
                AccessFrame::Ready { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(super) async fn ended(&mut self) -> (SessionRef, EndReason) {
        match self.hear().await {
            AccessFrame::EndSession { session, reason } => (session, reason),
            other => panic!("{other:?}"),
        }
    }

    /// Open, bind, ready, and a connection from end to end.
    pub(super) async fn session(&mut self, login: &Login, application: &str) -> (Opened, Bound, Connection) {
        let opened = self.open(application, None).await.unwrap();
        let bound = self.bind(&opened);
        assert_eq!(self.ready(&bound).await, RelayPath::Userspace);
        let through = through(&bound, &login.key, self.node, opened.connector).await.unwrap();
        (opened, bound, through)
    }
}

/// A connection from end to end over a client's leg.
pub(super) async fn through(
    bound: &Bound,
    key: &TunnelKey,
    node: SocketAddr,
    connector: KeyHash,
) -> Option<Connection> {
    let dial = bound.endpoint.connect_with(dialling(key, connector, END_TO_END), node, SERVER_NAME).unwrap();
    timeout(PATIENCE, dial).await.ok()?.ok()
}

/// Whether a message comes back through the connector's echo.
pub(super) async fn echoes(through: &Connection, patience: Duration) -> bool {
    let echo = async {
        let (mut send, mut recv) = through.open_bi().await.ok()?;
        send.write_all(b"hello").await.ok()?;
        send.finish().ok()?;
        recv.read_to_end(100).await.ok()
    };
    timeout(patience, echo).await.ok().flatten().as_deref() == Some(b"hello")
}

/// What a connector was told of its sessions.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) offers: Vec<Offer>,
    pub(super) ended: Vec<(SessionRef, EndReason)>,
    bound: BTreeMap<SessionRef, Arc<Bound>>,
    /// What it has to say to the next offer, instead of taking it.
    pub(super) decline: Option<Decline>,
    pub(super) silent: bool,
    /// No heartbeats.
    pub(super) mute: bool,
    /// It takes what is offered and leaves it to somebody else to bind.
    pub(super) bare: bool,
    pub(super) instance: u64,
}

/// A connector called `hq` of our own making: it takes what is offered and answers whatever comes through.
pub(super) struct TestConnector {
    pub(super) key: TunnelKey,
    pub(super) seen: Arc<Mutex<Seen>>,
    pub(super) connection: Connection,
    pub(super) say: tokio::sync::mpsc::UnboundedSender<ConnectorFrame>,
    pub(super) changed: watch::Receiver<u64>,
    _endpoint: Endpoint,
}

/// A key that the node knows as a connector of this name.
pub(super) async fn enrol(lab: &Lab, name: &str) -> TunnelKey {
    let (key, secret) = (key(), EnrolmentSecret::from_bytes(clock::random()));
    let store = &lab.node.store;
    let now = clock::now();
    store.create_connector(name, secret.hash(), now.after(Duration::from_secs(60)), now).await.unwrap();
    store.enrol_connector(secret.hash(), *key.hash().as_bytes(), now).await.unwrap().unwrap();
    key
}

impl TestConnector {
    pub(super) async fn start(lab: &Lab) -> Self {
        Self::connect(lab, enrol(lab, "hq").await, Arc::default(), true).await
    }

    pub(super) async fn connect(lab: &Lab, key: TunnelKey, seen: Arc<Mutex<Seen>>, takes: bool) -> Self {
        Self::connect_at(lab, lab.address, key, seen, takes).await
    }

    /// Reaches the node at another of its addresses.
    pub(super) async fn connect_at(
        lab: &Lab,
        at: SocketAddr,
        key: TunnelKey,
        seen: Arc<Mutex<Seen>>,
        takes: bool,
    ) -> Self {
        let node = node_key(&lab.node.store).await.unwrap().hash();
        let endpoint = Endpoint::client(near(at)).unwrap();
        let dialled = endpoint.connect_with(dialling(&key, node, wire::ALPN), at, SERVER_NAME).unwrap();
        let connection = soon(dialled).await.unwrap();
        let (mut send, recv) = connection.open_bi().await.unwrap();
        let mut reader = FrameReader::new(recv);
        control::send(&mut send, &ConnectorFrame::Hello).await.unwrap();
        assert!(matches!(soon(reader.next()).await.unwrap(), Some(NodeFrame::Welcome { .. })));
        if takes {
            let instance = Instance(seen.lock().unwrap().instance);
            control::send(&mut send, &ConnectorFrame::TakesSessions { instance }).await.unwrap();
        }
        let (say, mut saying) = tokio::sync::mpsc::unbounded_channel();
        let (change, changed) = watch::channel(0);
        let task = {
            let (seen, key, connection) = (Arc::clone(&seen), key_again(&key), connection.clone());
            async move {
                let mut heartbeat = tokio::time::interval(HEARTBEAT);
                loop {
                    let frame = tokio::select! {
                        frame = reader.next::<NodeFrame>() => match frame {
                            Ok(Some(frame)) => frame,
                            Ok(None) | Err(_) => return,
                        },
                        _ = heartbeat.tick() => {
                            let mute = seen.lock().unwrap().mute;
                            if !mute && control::send(&mut send, &ConnectorFrame::Heartbeat).await.is_err() { return }
                            continue;
                        }
                        Some(frame) = saying.recv() => {
                            if control::send(&mut send, &frame).await.is_err() { return }
                            continue;
                        }
                    };
                    let reply = handle(&seen, &connection, at, &key, frame);
                    change.send_modify(|count| *count += 1);
                    if let Some(reply) = reply
                        && control::send(&mut send, &reply).await.is_err()
                    {
                        return;
                    }
                }
            }
        };
        tokio::spawn(task);
        let private = Self { key, seen, connection, say, changed, _endpoint: endpoint };
        if takes {
            // It is in service once its origins have come; that it takes sessions may be a moment later.
            until("the connector is in service", || lab.node.registry.connectors().contains_key("hq")).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        private
    }

    pub(super) async fn told_end(&self, session: SessionRef) -> EndReason {
        let mut changed = self.changed.clone();
        soon(async {
            loop {
                let found = self.seen.lock().unwrap().ended.iter().find(|(of, _)| *of == session).copied();
                if let Some((_, reason)) = found {
                    return reason;
                }
                changed.changed().await.expect("it hears of the end");
            }
        })
        .await
    }

    /// The grant that came with the last offer, as a connector verifies it.
    pub(super) async fn grant(&self, lab: &Lab, client: &TunnelKey) -> Grant {
        let offer = self.seen.lock().unwrap().offers.last().cloned().expect("an offer");
        let expected = Expected {
            node: node_key(&lab.node.store).await.unwrap().hash(),
            session: offer.session,
            connector: self.key.hash(),
            client: client.hash(),
            now: clock::now(),
        };
        SignedGrant::from_bytes(offer.grant).verify(&expected).unwrap()
    }
}

/// The same key once more.
pub(super) fn key_again(key: &TunnelKey) -> TunnelKey {
    use zeroize::Zeroizing;
    TunnelKey::from_pkcs8(Zeroizing::new(key.private_key().secret_der().to_vec())).unwrap()
}

fn handle(
    seen: &Mutex<Seen>,
    connection: &Connection,
    node: SocketAddr,
    key: &TunnelKey,
    frame: NodeFrame,
) -> Option<ConnectorFrame> {
    let mut seen = seen.lock().unwrap();
    match frame {
        NodeFrame::Session(offer) => {
            let session = offer.session;
            seen.offers.push(offer.clone());
            if let Some(why) = seen.decline.take() {
                return Some(ConnectorFrame::Declined { session, why });
            }
            if seen.silent {
                return None;
            }
            if seen.bare {
                return Some(ConnectorFrame::Taken { session });
            }
            seen.bound.entry(session).or_insert_with(|| {
                let server = Some(listening(key));
                let bound = Bound::start(connection, node, session, Leg::Connector, offer.ticket, server);
                tokio::spawn(echo(bound.endpoint.clone()));
                Arc::new(bound)
            });
            Some(ConnectorFrame::Taken { session })
        }
        NodeFrame::SessionReady { session, counter, .. } => {
            if let Some(bound) = seen.bound.get(&session) {
                bound.leg.ready(counter);
            }
            None
        }
        NodeFrame::EndSession { session, reason } => {
            seen.bound.remove(&session);
            seen.ended.push((session, reason));
            None
        }
        _ => None,
    }
}

async fn echo(endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                let Ok(bytes) = recv.read_to_end(1 << 20).await else { continue };
                let _ = send.write_all(&bytes).await;
                let _ = send.finish();
            }
        });
    }
}

//! Real QUIC through a real socket of the node's.
//!
//! ```text
//! client ══ control ══▶ node ◀══ control ══ connector      two connections that the node's endpoint serves
//! client ── leg ─▶ the same socket ◀─ leg ── connector      and one between them that it cannot read
//! ```

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::rustls;
use quinn::{AsyncUdpSocket, Connection, Endpoint, EndpointConfig, Runtime as _, ServerConfig, TokioRuntime};
use tokio::time::timeout;

use crate::clock;
use crate::tunnel::identity::{AnyKey, TunnelKey};
use crate::tunnel::transport::connector_config;
use crate::tunnel::wire::ALPN;

use super::super::demux::{Demux, Relay};
use super::super::end::{End, LegState};
use super::super::leg::{BoundLeg, LegLayer};
use super::super::node::Action;
use super::*;
use crate::tunnel::layered::LayeredSocket;

const PATIENCE: Duration = Duration::from_secs(30);
const PAYLOAD: usize = 10 * 1024 * 1024;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it does not hang")
}

fn key() -> TunnelKey {
    TunnelKey::from_pkcs8(TunnelKey::generate().unwrap()).unwrap()
}

fn server(key: &TunnelKey) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(AnyKey { provider }))
        .with_single_cert(key.chain(), key.private_key())
        .unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()))
}

fn udp() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn socket() -> Arc<dyn AsyncUdpSocket> {
    TokioRuntime.wrap_udp_socket(udp()).unwrap()
}

fn endpoint(socket: Arc<dyn AsyncUdpSocket>, server: Option<ServerConfig>) -> Endpoint {
    let mut config = EndpointConfig::default();
    config.grease_quic_bit(false);
    Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(TokioRuntime)).unwrap()
}

/// A node with one session, its two ends, and a control connection to each.
struct World {
    node: SocketAddr,
    /// The node's address, or the translator's before it.
    client_sees: SocketAddr,
    relay: Arc<Relay>,
    binds: Arc<Mutex<Binds>>,
    legs: Legs,
    /// Client's side, node's side.
    control: (Connection, Connection),
    client: Endpoint,
    connector: Endpoint,
    connector_key: TunnelKey,
    // Their connections live as long as they.
    _kept: Vec<Endpoint>,
    _connector_control: (Connection, Connection),
}

type Legs = Arc<Mutex<Vec<(Leg, Arc<BoundLeg>)>>>;

async fn connect(
    from: &Endpoint,
    to: &Endpoint,
    address: SocketAddr,
    name: &TunnelKey,
) -> (Connection, Connection) {
    let config = connector_config(&key(), name.hash()).unwrap();
    let dial = from.connect_with(config, address, "node").unwrap();
    let (dialled, accepted) =
        soon(async { tokio::join!(dial, async { to.accept().await.unwrap().await }) }).await;
    (dialled.unwrap(), accepted.unwrap())
}

impl World {
    async fn start() -> Self {
        Self::start_behind(None).await
    }

    async fn start_behind(translator: Option<&Arc<Translator>>) -> Self {
        let (relay, mut queue) = Relay::new(clock::monotonic);
        let node_key = key();
        let shared = Demux::share(socket(), Arc::clone(&relay), Box::new(|_| false)).unwrap();
        let node_endpoint = endpoint(Arc::new(shared), Some(server(&node_key)));
        let node = node_endpoint.local_addr().unwrap();
        let client_sees = translator.map_or(node, |translator| translator.address());
        if let Some(translator) = translator {
            tokio::spawn(Arc::clone(translator).run(node));
        }
        let (client_control, connector_control) = (endpoint(socket(), None), endpoint(socket(), None));
        let control = connect(&client_control, &node_endpoint, node, &node_key).await;
        let control_of_connector = connect(&connector_control, &node_endpoint, node, &node_key).await;

        let terms = Terms { identity: 1, epoch: 4, expires: clock::monotonic() + Duration::from_secs(60) };
        relay.set_epoch(1, 4);
        let own = Own { addresses: [node.ip()].into(), ports: [node.port()].into() };
        let binds = Arc::new(Mutex::new(Binds::new(own)));
        let legs = Legs::default();
        binds.lock().unwrap().register(SESSION, terms).unwrap();
        let connector_key = key();
        let mut sockets = Vec::new();
        for (leg, (here, there)) in [(Leg::Client, &control), (Leg::Connector, &control_of_connector)] {
            let at_node = BindKey::export(there, SESSION, leg).unwrap();
            let ticket = [0x33; 16];
            let dials = if leg == Leg::Client { client_sees } else { node };
            binds.lock().unwrap().expect(SESSION, leg, LegSecret { key: at_node, ticket }).unwrap();
            let at_end = BindKey::export(here, SESSION, leg).unwrap();
            let (bound, socket) =
                BoundLeg::start(socket(), dials, |now| End::start(at_end, ticket, SESSION, leg, 0, now));
            tokio::spawn(Arc::clone(&bound).run());
            legs.lock().unwrap().push((leg, bound));
            sockets.push(socket);
        }
        // The node's loop. `Ready` takes a short cut to the ends.
        tokio::spawn({
            let (relay, binds, legs) = (Arc::clone(&relay), Arc::clone(&binds), Arc::clone(&legs));
            async move {
                while let Some(datagram) = queue.binds.recv().await {
                    let now = clock::monotonic();
                    let actions = binds.lock().unwrap().on_datagram(
                        now,
                        datagram.tuple,
                        &datagram.bytes,
                        clock::random,
                    );
                    for action in actions {
                        assert!(relay.perform(&action));
                        if let Action::Ready { leg, counter, .. } = action {
                            let legs = legs.lock().unwrap();
                            legs.iter()
                                .filter(|(of, _)| *of == leg)
                                .for_each(|(_, bound)| bound.ready(counter));
                        }
                    }
                }
            }
        });
        let [client, connector]: [LayeredSocket<LegLayer>; 2] = sockets.try_into().unwrap();
        Self {
            node,
            client_sees,
            relay,
            binds,
            legs,
            control,
            client: endpoint(Arc::new(client), None),
            connector: endpoint(Arc::new(connector), Some(server(&connector_key))),
            connector_key,
            _kept: vec![node_endpoint, client_control, connector_control],
            _connector_control: control_of_connector,
        }
    }

    fn leg(&self, leg: Leg) -> Arc<BoundLeg> {
        Arc::clone(&self.legs.lock().unwrap().iter().find(|(of, _)| *of == leg).unwrap().1)
    }

    async fn ready(&self) {
        for leg in Leg::BOTH {
            assert!(soon(self.leg(leg).wait_ready()).await);
        }
    }

    async fn through(&self) -> (Connection, Connection) {
        connect(&self.client, &self.connector, self.client_sees, &self.connector_key).await
    }
}

/// Moves `length` bytes from one end of a connection to the other.
async fn move_bytes((from, to): &(Connection, Connection), length: usize) {
    let bytes: Vec<u8> = (0..length).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect();
    let sending = async {
        let mut stream = from.open_uni().await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.finish().unwrap();
    };
    let receiving = async {
        let mut stream = to.accept_uni().await.unwrap();
        stream.read_to_end(length).await.unwrap()
    };
    let ((), received) = soon(async { tokio::join!(sending, receiving) }).await;
    assert!(received == bytes, "what arrived is what was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_go_through_beside_the_nodes_own_connections() {
    let world = World::start().await;
    world.ready().await;
    let through = world.through().await;
    assert_eq!(through.1.remote_address(), world.node, "the relay looks like the node");
    let (client, node) = &world.control;
    let control = (client.clone(), node.clone());
    tokio::join!(move_bytes(&through, PAYLOAD), move_bytes(&control, PAYLOAD / 4));
    let [up, down] = world.relay.sent(SESSION).unwrap().all();
    assert!(up.bytes > PAYLOAD as u64 && down.bytes > 0, "{up:?} {down:?}");
    assert_eq!(world.relay.losses().refused, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_moves_binds_again_and_goes_on() {
    let world = World::start().await;
    world.ready().await;
    let through = world.through().await;
    move_bytes(&through, 1000).await;
    let before = world.binds.lock().unwrap().pair(SESSION).unwrap();
    let leg = world.leg(Leg::Client);
    let moved = leg.move_to(socket());
    assert_eq!(*leg.state().borrow(), LegState::Binding);
    world.client.rebind_abstract(Arc::new(moved)).unwrap();
    move_bytes(&through, 1_000_000).await;
    let after = world.binds.lock().unwrap().pair(SESSION).unwrap();
    assert_ne!(before.client, after.client);
    assert_eq!(before.connector, after.connector);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_a_translator_changed_is_found_by_silence() {
    let translator = Arc::new(Translator::new());
    let world = World::start_behind(Some(&translator)).await;
    world.ready().await;
    let through = world.through().await;
    move_bytes(&through, 1000).await;
    let before = world.binds.lock().unwrap().pair(SESSION).unwrap();
    translator.forget();
    move_bytes(&through, 1_000_000).await;
    let after = world.binds.lock().unwrap().pair(SESSION).unwrap();
    assert_ne!(before.client, after.client);
    assert_eq!(before.connector, after.connector);
}

/// Between the client and the node: what the client sends here reaches the node from a port of the translator's.
struct Translator {
    inside: UdpSocket,
    outside: Mutex<Arc<tokio::net::UdpSocket>>,
}

impl Translator {
    fn new() -> Self {
        Self { inside: udp(), outside: Mutex::new(Arc::new(tokio::net::UdpSocket::from_std(udp()).unwrap())) }
    }

    fn address(&self) -> SocketAddr {
        self.inside.local_addr().unwrap()
    }

    /// From now on packets leave, and are heard, on another port.
    fn forget(&self) {
        *self.outside.lock().unwrap() = Arc::new(tokio::net::UdpSocket::from_std(udp()).unwrap());
    }

    async fn run(self: Arc<Self>, node: SocketAddr) {
        let inside = tokio::net::UdpSocket::from_std(self.inside.try_clone().unwrap()).unwrap();
        let (mut up, mut down) = (vec![0; 65536], vec![0; 65536]);
        let mut client = None;
        loop {
            let outside = Arc::clone(&self.outside.lock().unwrap());
            tokio::select! {
                received = inside.recv_from(&mut up) => {
                    let (length, from) = received.unwrap();
                    client = Some(from);
                    let outside = Arc::clone(&self.outside.lock().unwrap());
                    let _ = outside.send_to(&up[..length], node).await;
                }
                received = outside.recv_from(&mut down) => {
                    let (length, _) = received.unwrap();
                    if let Some(client) = client {
                        let _ = inside.send_to(&down[..length], client).await;
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_passes_before_ready_or_after_removal() {
    let world = World::start().await;
    world.ready().await;
    let through = world.through().await;
    move_bytes(&through, 1000).await;
    let removed = world.binds.lock().unwrap().remove(SESSION).unwrap();
    let used = world.relay.remove(&removed).unwrap().all();
    assert!(used.iter().all(|usage| usage.packets > 0));
    let (from, to) = &through;
    let mut stream = from.open_uni().await.unwrap();
    stream.write_all(b"late").await.unwrap();
    assert!(timeout(Duration::from_millis(500), to.accept_uni()).await.is_err());

    // And before: the node has the socket, but no session.
    let leg = BoundLeg::start(socket(), world.node, |now| {
        End::start(BindKey::from_bytes([1; 32]), [0x33; 16], OTHER, Leg::Client, 0, now)
    });
    let eager = endpoint(Arc::new(leg.1), None);
    let config = connector_config(&key(), world.connector_key.hash()).unwrap();
    let dial = eager.connect_with(config, world.node, "node").unwrap();
    assert!(timeout(Duration::from_millis(500), dial).await.is_err());
    assert!(
        timeout(Duration::from_millis(10), world._kept[0].accept()).await.is_err(),
        "not one packet left"
    );
}

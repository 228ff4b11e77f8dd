//! A node, connectors and origins in this process, on free loopback ports.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::clients::Clients;
use crate::clock;
use crate::config::{Active, Config};
use crate::event::{EventSettings, Events, FileTarget};
use crate::flow::{
    Application, Aud, EncodedSlash, Facts, Host, HostPattern, Kind, Origin, OriginScheme, Path as UrlPath,
    Web,
};
use crate::gate::{self, Control, DatagramGate};
use crate::metrics::Metrics;
use crate::policy::{
    Action, Decision, Permit, PermitKind, PermitOf, Policy, PolicySet, Rule, Selector, decide,
};
use crate::recent::Recent;
use crate::session::Sessions;
use crate::store::Store;
use crate::token::Tokens;
use crate::tunnel::carrier::Carried;
use crate::tunnel::connector::{self, ConnectorConfig, ConnectorError};
use crate::tunnel::enrolment::{self, EnrolmentToken};
use crate::tunnel::node::{NodeTunnel, ServeError, serve};
use crate::tunnel::wire::EnrolmentSecret;
use crate::tunnel::{Devices, PrivateParts, PrivateSessions, Registry, TunnelStream};

/// Nothing in these tests takes longer, except on purpose.
pub(in crate::tunnel) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for `future`, which must not hang.
pub(in crate::tunnel) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it does not hang")
}

/// Waits until `holds`.
pub(in crate::tunnel) async fn until(what: &str, holds: impl Fn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !holds() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

/// A TCP port that refuses connections, for as long as the socket is held: nobody else can have it.
pub(in crate::tunnel) fn closed_port() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

pub(in crate::tunnel) struct Lab {
    pub(in crate::tunnel) directory: TempDir,
    pub(in crate::tunnel) node: NodeTunnel,
    pub(in crate::tunnel) desk: Desk,
    outfit: Outfit,
    pub(in crate::tunnel) address: SocketAddr,
    shutdown: CancellationToken,
    serving: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Lab {
    pub(in crate::tunnel) async fn start() -> Self {
        Self::start_on(UdpSocket::bind("127.0.0.1:0").unwrap()).await
    }

    pub(in crate::tunnel) async fn start_on(socket: UdpSocket) -> Self {
        Self::start_with(socket, Outfit::default()).await
    }

    pub(in crate::tunnel) async fn start_with(socket: UdpSocket, outfit: Outfit) -> Self {
        let mut lab = Self::begin(outfit).await;
        lab.serve(socket);
        lab
    }

    /// A node that serves nobody yet, and looks for nothing itself.
    pub(in crate::tunnel) async fn begin(outfit: Outfit) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (node, desk) = node(directory.path(), &outfit).await;
        let (address, shutdown) = (SocketAddr::from(([127, 0, 0, 1], 443)), CancellationToken::new());
        Self { directory, node, desk, outfit, address, shutdown, serving: None }
    }

    /// Another node on the same store.
    pub(in crate::tunnel) async fn sibling(of: &Self) -> Self {
        let mut lab = Self::start().await;
        lab.stop().await;
        lab.node.store = of.node.store.clone();
        lab.node.registry = Arc::default();
        lab.serve(UdpSocket::bind("127.0.0.1:0").unwrap());
        lab
    }

    fn serve(&mut self, socket: UdpSocket) {
        socket.set_nonblocking(true).unwrap();
        self.address = socket.local_addr().unwrap();
        self.shutdown = CancellationToken::new();
        self.serving = Some(tokio::spawn(serve(self.node.clone(), vec![socket], self.shutdown.clone())));
    }

    /// The node stops in good order; returns when it has.
    pub(in crate::tunnel) async fn stop(&mut self) {
        self.shutdown.cancel();
        soon(self.serving.take().unwrap()).await.unwrap().unwrap();
    }

    /// Begins to stop.
    pub(in crate::tunnel) fn begin_stop(&mut self) -> JoinHandle<Result<(), ServeError>> {
        self.shutdown.cancel();
        self.serving.take().unwrap()
    }

    /// A new node with the same state at the same address.
    pub(in crate::tunnel) async fn start_again(&mut self) {
        (self.node, self.desk) = node(self.directory.path(), &self.outfit).await;
        // The last node's socket closes a moment after its tasks have ended.
        let bound = (0..3000).find_map(|_| {
            UdpSocket::bind(self.address).inspect_err(|_| std::thread::sleep(Duration::from_millis(10))).ok()
        });
        self.serve(bound.expect("the address is free again"));
    }

    pub(in crate::tunnel) async fn token(&self, connector: &str) -> EnrolmentToken {
        self.token_for(connector, &[&self.address.to_string()], Duration::from_secs(600)).await
    }

    pub(in crate::tunnel) async fn token_for(
        &self,
        connector: &str,
        nodes: &[&str],
        lifetime: Duration,
    ) -> EnrolmentToken {
        enrolment::create(
            &self.node.store,
            connector.parse().unwrap(),
            nodes.iter().map(|node| node.parse().unwrap()).collect(),
            self.address.to_string().parse().unwrap(),
            lifetime,
            EnrolmentSecret::from_bytes(clock::random()),
            clock::now(),
        )
        .await
        .unwrap()
    }

    /// A connector called `hq` with two connections, enrolled and connected.
    pub(in crate::tunnel) async fn connector(&self) -> RunningConnector {
        let token = self.token("hq").await;
        let connector = RunningConnector::start(self.directory.path(), Some(token), None);
        self.connected(2).await;
        // The connection on which it enrolled is not one of the two.
        self.logged("\"disconnect\"", 1).await;
        connector
    }

    /// Waits until `hq` has exactly so many connections, all of them in service.
    pub(in crate::tunnel) async fn connected(&self, count: usize) {
        let registry = &self.node.registry;
        until(&format!("{count} connections"), || {
            let hq = registry.connectors().remove("hq").unwrap_or_default();
            (hq.connections, hq.healthy) == (count, count)
        })
        .await;
    }

    /// Configures one application with this origin behind `hq`, and a permit for it.
    pub(in crate::tunnel) fn permit(&self, origin: SocketAddr) -> Permit {
        let application = application(origin, Some("hq"));
        self.node.registry.configure(&policies(std::slice::from_ref(&application)));
        permit(application)
    }

    pub(in crate::tunnel) async fn open(&self, origin: SocketAddr) -> TunnelStream {
        soon(self.node.registry.open(web(&self.permit(origin)))).await.unwrap()
    }

    /// The lines of the access log.
    pub(in crate::tunnel) async fn events(&self) -> String {
        self.node.events.flush().await;
        std::fs::read_to_string(self.directory.path().join("events")).unwrap()
    }

    /// Waits until `what` is in the access log exactly `count` times.
    pub(in crate::tunnel) async fn logged(&self, what: &str, count: usize) {
        let waited = timeout(PATIENCE, async {
            while self.events().await.matches(what).count() != count {
                sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(waited.await.is_ok(), "{what} is not there {count} times:\n{}", self.events().await);
    }
}

/// What a test does beside the tunnel: logins, tokens, reloads.
pub(in crate::tunnel) struct Desk {
    pub(in crate::tunnel) sessions: Sessions,
    pub(in crate::tunnel) clients: Clients,
    pub(in crate::tunnel) tokens: Tokens,
    pub(in crate::tunnel) metrics: Arc<Metrics>,
    pub(in crate::tunnel) reload: watch::Sender<Arc<Active>>,
}

/// A node whose private applications anybody in `staff` may reach.
const CONFIG: &str = r#"
[node]
domain = "access.example.com"
listen = "[::]:443"
[[node.certificate]]
cert = "file"
key = "file"
[gate]
dataplane = "userspace"
ungated = true
[[identity_provider]]
name = "local"
type = "local"
[[policy]]
name = "staff"
action = "allow"
include = [{ group = "staff" }]
[[application]]
name = "db"
type = "tcp"
origin = "10.0.0.5:5432"
connector = "hq"
policies = ["staff"]
[[application]]
name = "lan"
type = "tcp"
network = { prefix = "10.0.0.0/24", ports = [22] }
connector = "hq"
policies = ["staff"]
[[application]]
name = "wiki"
url = "https://wiki.example.com"
origin = "http://10.0.0.5:8080"
policies = ["staff"]
"#;

/// That configuration, with changes.
pub(in crate::tunnel) fn config(directory: &Path, changes: &[(&str, &str)]) -> Arc<Active> {
    std::fs::write(directory.join("file"), "x").unwrap();
    let text = changes.iter().fold(CONFIG.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    });
    Arc::new(Active::new(Config::parse(&text, &directory.join("node.toml")).unwrap()))
}

/// What a node has beside its tunnel; it outlives the node.
#[derive(Clone, Default)]
pub(in crate::tunnel) struct Outfit {
    pub(in crate::tunnel) relay: Option<gate::Relay>,
    pub(in crate::tunnel) judge: Option<(DatagramGate, Control)>,
}

async fn node(directory: &Path, outfit: &Outfit) -> (NodeTunnel, Desk) {
    let store = Store::open(&directory.join("node")).unwrap();
    let settings = EventSettings {
        file: Some(FileTarget::Path(directory.join("events"))),
        retention: Duration::from_secs(3600),
        max_size: 1 << 20,
    };
    let metrics = Arc::new(Metrics::new().unwrap());
    let events = Events::start(settings, store.clone(), Arc::clone(&metrics)).unwrap();
    let devices = Devices::load(store.clone(), None).await.unwrap();
    let now = clock::now();
    let sessions = Sessions::load(store.clone(), Arc::clone(&metrics), now).await.unwrap();
    let clients = Clients::load(store.clone(), &sessions, Arc::clone(&metrics), now).await.unwrap();
    let tokens = Tokens::load(store.clone(), "access.example.com", now).await.unwrap();
    let (reload, active) = watch::channel(config(directory, &[]));
    let carried = Carried::new(None, &metrics);
    let private = PrivateSessions::new(PrivateParts {
        store: store.clone(),
        sessions: sessions.clone(),
        clients: clients.clone(),
        tokens: tokens.clone(),
        events: events.clone(),
        metrics: Arc::clone(&metrics),
        active,
        gate: outfit.relay.clone(),
        carried: carried.clone(),
    });
    let private = private.await.unwrap();
    let node = NodeTunnel {
        store,
        events,
        registry: Arc::new(Registry::default()),
        datagrams: outfit.judge.as_ref().map(|(gate, _)| gate.clone()),
        gate: outfit.judge.as_ref().map(|(_, control)| control.clone()),
        recent: Recent::default(),
        devices,
        private,
        carried,
    };
    (node, Desk { sessions, clients, tokens, metrics, reload })
}

pub(in crate::tunnel) fn application(origin: SocketAddr, connector: Option<&str>) -> Application {
    let host = Host::parse("app.example.com").unwrap();
    Application {
        name: "app".into(),
        aud: Aud::derive(&host, "app"),
        policies: vec!["all".into()],
        providers: Vec::new(),
        session: None,
        launcher: true,
        kind: Kind::Web(Web {
            host: HostPattern::Exact(host),
            path: UrlPath::parse("/", false).unwrap(),
            origin: Origin {
                scheme: OriginScheme::Http,
                host: Host::parse(&origin.ip().to_string()).unwrap(),
                port: origin.port(),
                connector: connector.map(str::to_owned),
                ca: None,
                server_name: None,
                host_header: None,
            },
            allowed_origins: Vec::new(),
            encoded_slash: EncodedSlash::Reject,
        }),
    }
}

/// The permit as one for a web application.
pub(in crate::tunnel) fn web(permit: &Permit) -> PermitOf<'_, Web> {
    let PermitKind::Web(permit) = permit.kind() else { panic!("a web application") };
    permit
}

pub(in crate::tunnel) fn policies(applications: &[Application]) -> PolicySet {
    let rule = Rule { include: vec![Selector::Everyone], ..Rule::default() };
    let all = Policy { name: "all".into(), action: Action::Bypass, rule, session: None };
    PolicySet::new(applications.to_vec(), vec![all])
}

pub(in crate::tunnel) fn permit(application: Application) -> Permit {
    let set = policies(std::slice::from_ref(&application));
    let facts =
        Facts { application: &application, session: None, service: None, address: [192, 0, 2, 1].into() };
    match decide(&set, &facts, clock::now()) {
        Decision::Allow(permit) => permit,
        other => panic!("{other:?}"),
    }
}

pub(in crate::tunnel) struct RunningConnector {
    pub(in crate::tunnel) shutdown: CancellationToken,
    pub(in crate::tunnel) task: JoinHandle<Result<(), ConnectorError>>,
}

impl RunningConnector {
    pub(in crate::tunnel) fn start(
        directory: &Path,
        token: Option<EnrolmentToken>,
        allow: Option<BTreeSet<crate::tunnel::wire::Authority>>,
    ) -> Self {
        let state = directory.join("connector");
        let shutdown = CancellationToken::new();
        let config = ConnectorConfig { state, token, allow, connections: 2 };
        Self { task: tokio::spawn(connector::run(config, shutdown.clone())), shutdown }
    }

    pub(in crate::tunnel) async fn stop(self) {
        self.shutdown.cancel();
        soon(self.task).await.unwrap().unwrap();
    }
}

/// An origin that counts its connections and hands each to `serve`.
pub(in crate::tunnel) struct TestOrigin {
    pub(in crate::tunnel) address: SocketAddr,
    pub(in crate::tunnel) connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl TestOrigin {
    pub(in crate::tunnel) async fn start<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream));
            }
        });
        Self { address, connections, task }
    }

    /// Sends back what it gets, up to its end.
    pub(in crate::tunnel) async fn echo() -> Self {
        Self::start(|mut stream| async move {
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
        })
        .await
    }

    pub(in crate::tunnel) fn count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for TestOrigin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

//! An edge in this process: real store, sessions, tokens, events and TLS, a recording origin behind it, and clients
//! that write whatever bytes a test wants.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use portcullis::clients::Clients;
use portcullis::clock;
use portcullis::config::{Active, Config};
use portcullis::context::Context;
use portcullis::edge::{self, Patience};
use portcullis::event::{EventSettings, Events};
use portcullis::flow::{Facts, Host, PersonId, Session};
use portcullis::identity::service::Services;
use portcullis::metadata::Metadata;
use portcullis::metrics::Metrics;
use portcullis::policy::{Decision, decide};
use portcullis::portal::{Portal, TunnelFacts};
use portcullis::recent::Recent;
use portcullis::saas::saml::SamlProvider;
use portcullis::seal::Seal;
use portcullis::session::{LiveSession, Sessions};
use portcullis::store::{EventFilter, SessionFilter, Store};
use portcullis::token::Tokens;
use portcullis::tunnel::carrier::Carried;
use portcullis::tunnel::enrolment::key_of_node;
use portcullis::tunnel::{Devices, Registry};
use portcullis_tests::ca::Ca;
use portcullis_tests::origin::Origin;
use portcullis_tests::ports;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// Nothing in these tests takes longer than this, unless it says so.
pub const SOON: Duration = Duration::from_secs(30);

/// The application that everybody who is logged in may use.
pub const WIKI: &str = "wiki.example.com";

pub struct Node {
    pub context: Arc<Context>,
    pub address: SocketAddr,
    /// On `[::]`, for both families.
    pub dual_stack: SocketAddr,
    pub origin: Origin,
    pub tls: edge::Tls,
    pub shutdown: CancellationToken,
    roots: Arc<RootCertStore>,
    sessions: AtomicU8,
    pub publish: watch::Sender<Arc<Active>>,
    _dir: TempDir,
}

/// A person who is logged in, as one application's cookies.
pub struct Ann {
    pub live: LiveSession,
    pub token: String,
    pub binding: String,
}

impl Ann {
    pub fn cookies(&self) -> String {
        format!("CF_Authorization={}; __Host-CF_Binding={}", self.token, self.binding)
    }
}

impl Node {
    /// A node whose applications are at the recording origin.
    pub async fn start() -> Self {
        let origin = Origin::start(None, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        Self::start_with(origin, "").await
    }

    /// The same with more configuration.
    pub async fn start_with(origin: Origin, more: &str) -> Self {
        Self::start_patient(origin, more, Patience::default()).await
    }

    /// The same with other waiting times.
    pub async fn start_patient(origin: Origin, more: &str, patience: Patience) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new("edge tests").unwrap();
        ca.issue(&["access.example.com", "*.example.com"]).unwrap().write(dir.path(), "first").unwrap();
        ca.issue(&["wiki.example.net"]).unwrap().write(dir.path(), "second").unwrap();
        ca.write(dir.path()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap()).unwrap();

        let config = configuration(dir.path(), origin.address(), more);
        let config = Config::parse(&config, &dir.path().join("node.toml")).unwrap();
        let tls = edge::Tls::load(&config.node.certificates).unwrap();
        let now = clock::now();
        let store = Store::open(dir.path()).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let settings = EventSettings { file: None, retention: Duration::from_secs(3600), max_size: 1 << 30 };
        let events = Events::start(settings, store.clone(), Arc::clone(&metrics)).unwrap();
        let tokens = Tokens::load(store.clone(), &config.node.authority(), now).await.unwrap();
        let sessions = Sessions::load(store.clone(), Arc::clone(&metrics), now).await.unwrap();
        let services = Services::load(store.clone()).await.unwrap();
        let clients = Clients::load(store.clone(), &sessions, Arc::clone(&metrics), now).await.unwrap();
        let saml = SamlProvider::load(store.clone(), now).await.unwrap();
        let tunnel = TunnelFacts {
            address: "access.example.com:443".parse().unwrap(),
            key: key_of_node(&store).await.unwrap(),
            devices: Devices::load(store.clone(), None).await.unwrap(),
            ticket: Arc::new(|| None),
        };
        let key = store.secret("seal", || clock::random::<{ Seal::KEY_LEN }>().to_vec()).await.unwrap();
        let seal = Seal::new(&key).unwrap();
        let metadata = Metadata::default();
        metadata.configure(&config, &events, &metrics).unwrap();
        let active = Arc::new(Active::new(config));
        let tunnels = Arc::new(Registry::default());
        let (publish, active) = watch::channel(active);
        let recent = Recent::default();
        let context = Arc::new(Context {
            active,
            store,
            sessions,
            clients,
            services,
            saml,
            tokens,
            metadata,
            seal,
            events,
            carried: Carried::new(None, &metrics),
            metrics,
            tunnels,
            recent,
        });

        let listen = |address: SocketAddr| {
            let listener = TcpListener::bind(address).unwrap();
            listener.set_nonblocking(true).unwrap();
            (listener.local_addr().unwrap(), listener)
        };
        let (address, listener) = listen((Ipv4Addr::LOCALHOST, 0).into());
        let (dual_stack, dual_stack_listener) = listen((Ipv6Addr::UNSPECIFIED, 0).into());
        let shutdown = CancellationToken::new();
        let portal = Arc::new(Portal::new(Arc::clone(&context), tunnel));
        tokio::spawn(edge::serve(
            Arc::clone(&context),
            portal,
            tls.clone(),
            vec![listener, dual_stack_listener],
            shutdown.clone(),
            patience,
        ));
        Self {
            context,
            address,
            dual_stack,
            origin,
            tls,
            shutdown,
            roots: Arc::new(roots),
            sessions: AtomicU8::new(1),
            publish,
            _dir: dir,
        }
    }

    /// Logs Ann in for the application on `host`.
    pub async fn log_in(&self, host: &str) -> Ann {
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        let now = clock::now();
        let live = self
            .context
            .sessions
            .create(Session {
                id: portcullis::flow::SessionId::from_bytes([number; 16]),
                person: PersonId { provider: "local".into(), subject: format!("ann{number}") },
                is_local: None,
                email: Some("ann@example.com".parse().unwrap()),
                display_name: "Ann".into(),
                groups: vec![],
                amr: vec!["pwd".into()],
                address: [192, 0, 2, 1].into(),
                authenticated_at: None,
                created_at: now,
                expires_at: now.after(Duration::from_secs(3600)),
            })
            .await
            .unwrap();
        let host = Host::parse(host).unwrap();
        let token = self.token_for(&live, &host);
        let binding = self.context.tokens.binding(&live.session.id, &host);
        Ann { live, token, binding }
    }

    /// The token of a session for the application on `host`.
    pub fn token_for(&self, live: &LiveSession, host: &Host) -> String {
        let active = self.context.active();
        let path = portcullis::flow::Path::parse("/", false).unwrap();
        let application = active.policies.route(host, &path).unwrap();
        let facts = Facts {
            application,
            session: Some(&live.session),
            service: None,
            address: [127, 0, 0, 1].into(),
        };
        let Decision::Allow(permit) = decide(&active.policies, &facts, clock::now()) else {
            panic!("allowed");
        };
        self.context.tokens.mint_application(&permit, clock::now()).unwrap().unwrap()
    }

    /// Ends a session, as `admin session revoke` does.
    pub async fn revoke(&self, ann: &Ann) {
        let filter = SessionFilter::Id(ann.live.session.id);
        assert_eq!(self.context.sessions.revoke(&filter, clock::now()).await.unwrap().len(), 1);
    }

    /// Every event so far.
    pub async fn events(&self) -> Vec<serde_json::Value> {
        self.context.events.flush().await;
        let filter = EventFilter { limit: 10_000, ..EventFilter::default() };
        let events = self.context.store.events(filter).await.unwrap().all().await.unwrap();
        events.iter().map(|(_, text)| serde_json::from_str(text).unwrap()).collect()
    }

    /// Waits until the origin has seen `count` requests.
    pub async fn wait_for_requests(&self, count: usize) {
        let seen = async {
            while self.origin.requests().len() < count {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, seen).await.expect("requests at the origin");
    }

    /// Waits until there are `count` events.
    pub async fn wait_for_events(&self, count: usize) -> Vec<serde_json::Value> {
        let written = async {
            loop {
                let events = self.events().await;
                if events.len() >= count {
                    return events;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match timeout(SOON, written).await {
            Ok(events) => events,
            Err(_) => panic!("{count} events, not {:#?}", self.events().await),
        }
    }

    /// The authority of the node's certificates.
    pub fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    /// A TLS connection with `sni`, speaking `alpn`.
    pub async fn connect(&self, sni: &str, alpn: &[&str]) -> TlsStream<TcpStream> {
        self.connect_to(self.address, sni, alpn).await
    }

    /// The same to another of the node's addresses.
    pub async fn connect_to(&self, address: SocketAddr, sni: &str, alpn: &[&str]) -> TlsStream<TcpStream> {
        self.handshake(TcpStream::connect(address).await.unwrap(), sni, alpn).await
    }

    /// TLS on a connection that is open.
    pub async fn handshake(&self, stream: TcpStream, sni: &str, alpn: &[&str]) -> TlsStream<TcpStream> {
        let mut config = ClientConfig::builder().with_root_certificates(self.roots()).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(sni.to_owned()).unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        timeout(SOON, connector.connect(name, stream)).await.unwrap().unwrap()
    }

    /// Writes raw bytes on a new connection with `sni` and reads until the node closes it.
    pub async fn raw(&self, sni: &str, bytes: &[u8]) -> String {
        let mut stream = self.connect(sni, &[]).await;
        write(&mut stream, bytes).await.unwrap();
        read_to_end(&mut stream).await
    }

    /// One request over HTTP/1.1 to `host`; `fields` come behind the `Host` line.
    pub async fn get(&self, host: &str, target: &str, fields: &str) -> String {
        let stream = self.connect(host, &[]).await;
        self.get_on(stream, host, target, fields).await
    }

    /// The same on a connection that is open.
    pub async fn get_on(
        &self,
        mut stream: TlsStream<TcpStream>,
        host: &str,
        target: &str,
        fields: &str,
    ) -> String {
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n");
        write(&mut stream, request).await.unwrap();
        read_to_end(&mut stream).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Writes all of it, down to the socket. [`TlsStream`] may keep written bytes, and reading does not move them on.
pub async fn write(stream: &mut TlsStream<TcpStream>, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
    stream.write_all(bytes.as_ref()).await?;
    stream.flush().await
}

/// What the peer sends until it closes; a connection that is reset counts as closed.
pub async fn read_to_end(stream: &mut TlsStream<TcpStream>) -> String {
    let mut read = Vec::new();
    let mut block = vec![0; 64 * 1024];
    loop {
        match timeout(SOON, stream.read(&mut block)).await {
            Ok(Ok(0) | Err(_)) => return String::from_utf8_lossy(&read).into_owned(),
            Ok(Ok(count)) => read.extend_from_slice(&block[..count]),
            Err(_) => panic!("not closed after {:?}", String::from_utf8_lossy(&read)),
        }
    }
}

/// The status of a response.
pub fn status(response: &str) -> u16 {
    response.get(9..12).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{response:?}"))
}

/// The value of a field of a response.
pub fn field<'a>(response: &'a str, name: &str) -> Option<&'a str> {
    let head = response.split("\r\n\r\n").next().unwrap();
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

fn configuration(dir: &Path, origin: SocketAddr, more: &str) -> String {
    let state = dir.display();
    let closed = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free().unwrap()));
    let application = |name: &str, url: &str, origin: &str, policy: &str| {
        format!(
            "[[application]]\nname = \"{name}\"\nurl = \"{url}\"\norigin = \"{origin}\"\npolicies = [\"{policy}\"]\n"
        )
    };
    let here = format!("http://{origin}");
    let applications = [
        application("wiki", "https://wiki.example.com", &here, "people")
            + "allowed_origins = [\"https://friend.example.org\"]\n",
        application("other", "https://other.example.com", &here, "people"),
        application("net", "https://wiki.example.net", &here, "people"),
        application("slashes", "https://slashes.example.com", &here, "people") + "encoded_slash = \"pass\"\n",
        application("open", "https://open.example.com", &here, "anybody"),
        application("closed", "https://closed.example.com", &here, "nobody"),
        application("down", "https://down.example.com", &format!("http://{closed}"), "people"),
        application("gone", "https://gone.example.com", "http://10.0.0.5:8080", "people")
            + "connector = \"hq\"\n",
        application("grpc", "https://grpc.example.com", &format!("h2c://{origin}"), "people"),
    ]
    .concat();
    format!(
        r#"
[node]
domain = "access.example.com"
listen = "[::]:443"
state = "{state}"
[[node.certificate]]
cert = "first.pem"
key = "first.key"
[[node.certificate]]
cert = "second.pem"
key = "second.key"
[gate]
ungated = true
[[identity_provider]]
name = "local"
type = "local"
[[policy]]
name = "people"
action = "allow"
include = [{{ everyone = true }}]
[[policy]]
name = "anybody"
action = "bypass"
include = [{{ everyone = true }}]
[[policy]]
name = "nobody"
action = "block"
include = [{{ email = "ann@example.com" }}]
{applications}
{more}
"#
    )
}

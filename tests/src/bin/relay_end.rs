//! One end of a private session: binds its leg, then speaks QUIC to the other end through the node's relay.
//!
//! `relay_end client|connector NODE LOCAL` reads `INDEX GENERATION KEY TICKET` (the last two in hexadecimal) from standard
//! input, and then commands, one a line:
//!
//! | command | does | prints |
//! |---|---|---|
//! | `ready COUNTER` | what the control connection would say | `state Ready` |
//! | `move LOCAL` | goes on from another address | `moved ADDRESS`, `state Binding` |
//! | `trust CERTIFICATE` | client: the connector's certificate, in hexadecimal | |
//! | `send BYTES` | client: moves so many bytes and waits until the connector has counted them | `sent BYTES MICROSECONDS` |
//!
//! With `UNSEGMENTED` in the environment it leaves the kernel no datagrams to cut up, which cannot do that where a tc program has
//! written VLAN tags into them.
//!
//! A connector prints `certificate CERTIFICATE` first. Both print `up ADDRESS`, and `failed WHY` when a command fails.
//! The end of standard input ends the program.

use std::io::BufRead as _;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use portcullis::tunnel::relay::wire::{BindKey, KEY_LEN, TICKET_LEN};
use portcullis::tunnel::relay::{BoundLeg, End, Leg, SessionRef};
use portcullis::tunnel::size_buffers;
use portcullis_tests::relay::{from_hex, hex};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::rustls::{self, RootCertStore};
use quinn::{
    AsyncUdpSocket, ClientConfig, Connection, Endpoint, EndpointConfig, Runtime as _, ServerConfig,
    TokioRuntime, TransportConfig,
};
use tokio::sync::mpsc;

const NAME: &str = "connector.invalid";
const ALPN: &[u8] = b"relay-end";

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let leg = match arguments.next().as_deref() {
        Some("client") => Leg::Client,
        Some("connector") => Leg::Connector,
        _ => bail!("client or connector?"),
    };
    let node: SocketAddr = arguments.next().context("no node")?.parse()?;
    let local: SocketAddr = arguments.next().context("no local address")?.parse()?;
    let mut lines = lines();
    let secret = lines.recv().await.context("no secret")?;
    let [index, generation, key, ticket] = secret.split(' ').collect::<Vec<_>>()[..] else {
        bail!("INDEX GENERATION KEY TICKET is wanted")
    };
    let session = SessionRef { index: index.parse()?, generation: generation.parse()? };
    let key: [u8; KEY_LEN] = from_hex(key)?.try_into().ok().context("a key of another length")?;
    let ticket: [u8; TICKET_LEN] = from_hex(ticket)?.try_into().ok().context("a ticket of another length")?;

    let (bound, socket) = BoundLeg::start(udp(local)?, node, |now| {
        End::start(BindKey::from_bytes(key), ticket, session, leg, 0, now)
    });
    tokio::spawn(Arc::clone(&bound).run());
    tokio::spawn({
        let mut state = bound.state();
        async move {
            while state.changed().await.is_ok() {
                println!("state {:?}", *state.borrow_and_update());
            }
        }
    });
    let server = (leg == Leg::Connector).then(server).transpose()?;
    let mut config = EndpointConfig::default();
    config.grease_quic_bit(false).supported_versions(vec![1]);
    let endpoint =
        Endpoint::new_with_abstract_socket(config, server, Arc::new(socket), Arc::new(TokioRuntime))?;
    tokio::spawn(serve(endpoint.clone()));
    println!("up {}", endpoint.local_addr()?);

    let mut client = Client { node, endpoint, certificate: None, connection: None };
    while let Some(line) = lines.recv().await {
        let (command, value) = line.split_once(' ').unwrap_or((&line, ""));
        let done = match command {
            "ready" => value.parse().map(|counter| bound.ready(counter)).map_err(anyhow::Error::from),
            "move" => client.move_to(&bound, value),
            "trust" => from_hex(value).map(|certificate| client.certificate = Some(certificate.into())),
            "send" => client.send(&bound, value).await,
            other => bail!("unknown command {other}"),
        };
        if let Err(error) = done {
            println!("failed {error:#}");
        }
    }
    Ok(())
}

/// Standard input, read on a thread of its own.
fn lines() -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

fn udp(local: SocketAddr) -> Result<Arc<dyn AsyncUdpSocket>> {
    let socket = UdpSocket::bind(local).with_context(|| format!("binding {local}"))?;
    // What the kernel caps is slower, not wrong.
    size_buffers(&socket)?;
    Ok(TokioRuntime.wrap_udp_socket(socket)?)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    // What the node keeps of a silent leg, and address translators too.
    transport.keep_alive_interval(Some(Duration::from_secs(15)));
    transport.enable_segmentation_offload(std::env::var_os("UNSEGMENTED").is_none());
    Arc::new(transport)
}

fn server() -> Result<ServerConfig> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    println!("certificate {}", hex(made.cert.der()));
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    server.transport_config(transport());
    Ok(server)
}

/// Counts the bytes of each stream, and says so on it.
async fn serve(endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((mut reply, mut stream)) = connection.accept_bi().await {
                tokio::spawn(async move {
                    let mut count = 0_u64;
                    while let Ok(Some(chunk)) = stream.read_chunk(usize::MAX, true).await {
                        count += chunk.bytes.len() as u64;
                    }
                    if reply.write_all(&count.to_be_bytes()).await.is_ok() {
                        let _ = reply.finish();
                    }
                });
            }
        });
    }
}

struct Client {
    node: SocketAddr,
    endpoint: Endpoint,
    certificate: Option<CertificateDer<'static>>,
    connection: Option<Connection>,
}

impl Client {
    fn move_to(&self, bound: &Arc<BoundLeg>, local: &str) -> Result<()> {
        let moved = bound.move_to(udp(local.parse()?)?);
        self.endpoint.rebind_abstract(Arc::new(moved))?;
        println!("moved {}", self.endpoint.local_addr()?);
        Ok(())
    }

    async fn send(&mut self, bound: &BoundLeg, bytes: &str) -> Result<()> {
        let bytes: u64 = bytes.parse()?;
        let connection = self.connected().await?.clone();
        bound.set_pto(connection.rtt() * 2 + Duration::from_millis(25));
        let began = Instant::now();
        let (mut stream, mut reply) = connection.open_bi().await?;
        let chunk = vec![0x5A; 64 * 1024];
        let mut left = bytes;
        while left > 0 {
            let length = usize::try_from(left)?.min(chunk.len());
            stream.write_all(&chunk[..length]).await?;
            left -= length as u64;
        }
        stream.finish()?;
        let counted = reply.read_to_end(8).await?;
        let counted = u64::from_be_bytes(counted.try_into().ok().context("no count")?);
        if counted != bytes {
            bail!("the connector counted {counted} bytes");
        }
        println!("sent {bytes} {}", began.elapsed().as_micros());
        Ok(())
    }

    async fn connected(&mut self) -> Result<&Connection> {
        if self.connection.is_none() {
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.clone().context("which certificate has the connector?")?)?;
            let mut tls = rustls::ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_root_certificates(roots)
                .with_no_client_auth();
            tls.alpn_protocols = vec![ALPN.to_vec()];
            let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
            config.transport_config(transport());
            self.connection = Some(self.endpoint.connect_with(config, self.node, NAME)?.await?);
        }
        self.connection.as_ref().context("not connected")
    }
}

//! The dialling end of connect-udp: TLS to the node's TCP port, and one extended CONNECT for each socket.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use quinn::rustls;
use quinn::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use quinn::rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use quinn::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use quinn::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::debug;

use crate::tunnel::wire::Authority;

/// From the first SYN to the answer to the CONNECT.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Sockets of one TCP connection; the next one gets another. Below the 128 streams that a node takes.
const SOCKETS: usize = 100;

/// Flow-control windows: what the node may have sent and this end not yet taken.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// How often it is looked whether the node's settings have come.
const SETTINGS_EVERY: Duration = Duration::from_millis(5);

/// A TCP connection whose node does not answer for so long is dead: what goes over it has lost nothing yet.
const PING_INTERVAL: Duration = Duration::from_secs(3);
const PING_TIMEOUT: Duration = Duration::from_secs(4);

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    #[error("TCP: {0}")]
    Tcp(io::Error),
    #[error("TLS: {0}")]
    Tls(#[from] Error),
    #[error("HTTP/2: {0}")]
    Http(#[from] hyper::Error),
    #[error("the request: {0}")]
    Request(#[from] http::Error),
    #[error("what answers there carries no datagrams")]
    NotOffered,
    #[error("the node refuses: {0}")]
    Refused(StatusCode),
    #[error("it takes too long")]
    Timeout,
}

/// Where a node serves HTTPS: the auth domain and the public port.
#[derive(Debug, Clone)]
pub struct Web {
    at: Authority,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
}

impl Web {
    /// # Errors
    /// When the host can be nobody's name, or TLS cannot be set up.
    pub fn new(at: Authority) -> Result<Self, Error> {
        let name = ServerName::try_from(at.host().to_owned())
            .map_err(|_| Error::General(format!("{} is no host name", at.host())))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyNode { provider }))
            .with_no_client_auth();
        // Nothing else: by that the node tells a tunnel's connection from a browser's.
        tls.alpn_protocols = vec![b"h2".to_vec()];
        tls.enable_early_data = false;
        Ok(Self { at, name, tls: Arc::new(tls) })
    }

    pub fn port(&self) -> u16 {
        self.at.port()
    }
}

/// The TCP connections to one address, each as long as a socket uses it.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<Weak<Sender>>>);

type Sender = SendRequest<Empty<Bytes>>;

/// A stream that carries capsules.
pub(super) type DatagramStream = TokioIo<Upgraded>;

/// A place on a TCP connection.
pub(super) type Held = Arc<Sender>;

impl Pool {
    /// From here on there are new connections; what goes over the others goes on.
    pub(super) async fn renew(&self) {
        self.0.lock().await.clear();
    }

    /// A stream for datagrams to `node`, whose web server is `web`, and what has to be held as long as it is used.
    pub(super) async fn stream(
        &self,
        node: SocketAddr,
        web: &Web,
    ) -> Result<(DatagramStream, Held), WebError> {
        timeout(OPEN_TIMEOUT, self.open(node, web)).await.map_err(|_| WebError::Timeout)?
    }

    async fn open(&self, node: SocketAddr, web: &Web) -> Result<(DatagramStream, Held), WebError> {
        let held = self.sender(SocketAddr::new(node.ip(), web.port()), web).await?;
        let mut sender = Sender::clone(&held);
        let host = match web.at.host() {
            literal if literal.contains(':') => literal.replace(':', "%3A"),
            name => name.to_owned(),
        };
        let port = web.at.port();
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(format!("https://{}/.well-known/masque/udp/{host}/{port}/", web.at))
            .header("capsule-protocol", "?1")
            .extension(Protocol::from_static("connect-udp"))
            .body(Empty::new())?;
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(WebError::Refused(response.status()));
        }
        let stream = hyper::upgrade::on(response).await?;
        Ok((TokioIo::new(stream), held))
    }

    /// A connection with room for one more stream.
    async fn sender(&self, address: SocketAddr, web: &Web) -> Result<Arc<Sender>, WebError> {
        // Held while connecting: what comes meanwhile shares the connection.
        let mut pool = self.0.lock().await;
        pool.retain(|sender| sender.upgrade().is_some_and(|sender| !sender.is_closed()));
        let roomy = pool.iter().filter(|sender| sender.strong_count() < SOCKETS).find_map(Weak::upgrade);
        if let Some(sender) = roomy {
            return Ok(sender);
        }
        let sender = Arc::new(connect(address, web).await?);
        pool.push(Arc::downgrade(&sender));
        Ok(sender)
    }
}

async fn connect(address: SocketAddr, web: &Web) -> Result<Sender, WebError> {
    let stream = TcpStream::connect(address).await.map_err(WebError::Tcp)?;
    // Fails only on what is no TCP socket.
    let _ = stream.set_nodelay(true);
    let stream = TlsConnector::from(Arc::clone(&web.tls))
        .connect(web.name.clone(), stream)
        .await
        .map_err(WebError::Tcp)?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(WebError::NotOffered);
    }
    let (sender, mut connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(stream))
        .await?;
    // Nobody may ask before the node has said that it takes such requests (RFC 8441 §3). The library wakes nobody when it
    // has, so it is asked.
    while !connection.is_extended_connect_protocol_enabled() {
        if let Ok(ended) = timeout(SETTINGS_EVERY, &mut connection).await {
            return Err(ended.map_or_else(WebError::from, |()| WebError::NotOffered));
        }
    }
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%address, %error, "a TCP connection that carried datagrams has ended");
        }
    });
    Ok(sender)
}

/// Takes any certificate: the node is known by its pinned key, in the handshake inside.
#[derive(Debug)]
struct AnyNode {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyNode {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

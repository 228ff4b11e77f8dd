//! The HTTP client towards identity providers and, in the access client, towards a node: HTTPS (or plain HTTP on
//! loopback, for a provider beside the node), no redirects, bounded in time and size.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use openidconnect::{AsyncHttpClient, HttpRequest, HttpResponse};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// One request, from name resolution to the last byte of the answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the largest answer that is read.
const BODY_LIMIT: usize = 1 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("not an https address")]
    Address,
    #[error("an address of this host or of the link")]
    Local,
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("no connection: {0}")]
    Connect(#[from] std::io::Error),
    #[error("broken answer: {0}")]
    Http(#[from] hyper::Error),
    #[error("unusable answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

/// The file of extra roots is unusable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootsError {
    #[error("{0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("{0}")]
    Certificate(#[from] rustls::Error),
}

/// A client that trusts the system's roots and, optionally, those of one PEM file.
pub(crate) struct HttpClient {
    tls: TlsConnector,
    /// Whether addresses of this host and of the link are refused.
    remote_only: bool,
}

impl HttpClient {
    pub(crate) fn new(ca: Option<&Path>) -> Result<Self, RootsError> {
        let mut roots = RootCertStore::empty();
        for certificate in rustls_native_certs::load_native_certs().certs {
            // The system's store may hold certificates that webpki cannot read; the others still count.
            let _ = roots.add(certificate);
        }
        if let Some(ca) = ca {
            for certificate in CertificateDer::pem_file_iter(ca)? {
                roots.add(certificate?)?;
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), remote_only: false })
    }

    /// The same client, which goes to no address of this host or of the link, whatever a name resolves to.
    pub(crate) fn remote_only(self) -> Self {
        Self { remote_only: true, ..self }
    }

    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, FetchError> {
        if !self.remote_only {
            return Ok(TcpStream::connect((host, port)).await?);
        }
        // What was looked at is what is connected to: the name is resolved once.
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
        if addresses.is_empty() || !addresses.iter().all(|address| is_remote(address.ip())) {
            return Err(FetchError::Local);
        }
        Ok(TcpStream::connect(addresses.as_slice()).await?)
    }

    /// Sends one request on a connection of its own. A redirect is an answer like any other.
    pub(crate) async fn send(
        &self,
        request: http::Request<Vec<u8>>,
    ) -> Result<http::Response<Vec<u8>>, FetchError> {
        tokio::time::timeout(TIMEOUT, self.exchange(request)).await.map_err(|_| FetchError::Timeout)?
    }

    async fn exchange(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Vec<u8>>, FetchError> {
        let (mut parts, body) = request.into_parts();
        let address = url::Url::parse(&parts.uri.to_string()).map_err(|_| FetchError::Address)?;
        if !is_protected(&address) {
            return Err(FetchError::Address);
        }
        let authority = parts.uri.authority().cloned().ok_or(FetchError::Address)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = address.port_or_known_default().ok_or(FetchError::Address)?;
        let stream = self.connect(&host, port).await?;

        parts.uri = parts.uri.path_and_query().cloned().map(http::Uri::from).unwrap_or_default();
        if let Ok(host) = http::HeaderValue::from_str(authority.as_str()) {
            parts.headers.insert(http::header::HOST, host);
        }
        parts.headers.insert(
            http::header::USER_AGENT,
            http::HeaderValue::from_static(concat!("portcullis/", env!("CARGO_PKG_VERSION"))),
        );
        let request = http::Request::from_parts(parts, Full::new(Bytes::from(body)));
        if address.scheme() == "https" {
            let name = ServerName::try_from(host).map_err(|_| FetchError::Address)?;
            exchange(self.tls.connect(name, stream).await?, request).await
        } else {
            exchange(stream, request).await
        }
    }
}

impl<'c> AsyncHttpClient<'c> for HttpClient {
    type Error = FetchError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, FetchError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.send(request))
    }
}

/// Whether an address is beyond this host and its links.
fn is_remote(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let this_network = v4.octets()[0] == 0;
            !(v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || this_network)
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_multicast() || v6.is_unspecified())
        }
    }
}

/// Whether what is sent to `address` is protected on its way: by TLS, or because it does not leave this machine.
pub(crate) fn is_protected(address: &url::Url) -> bool {
    let loopback = match address.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    address.scheme() == "https" || (address.scheme() == "http" && loopback)
}

/// One request on a fresh connection.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: http::Request<Full<Bytes>>,
) -> Result<http::Response<Vec<u8>>, FetchError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, BODY_LIMIT).collect().await.map_err(FetchError::Body)?.to_bytes();
        Ok(http::Response::from_parts(head, body.to_vec()))
    };
    // The connection is driven here and not in a task, so that it ends with the request, whatever happens.
    tokio::pin!(exchange);
    let mut connection = std::pin::pin!(connection);
    let mut open = true;
    loop {
        tokio::select! {
            answer = &mut exchange => return answer,
            // Whatever ended it, the exchange says so itself, or has its whole answer already.
            _ = &mut connection, if open => open = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_and_its_links_are_not_remote() {
        for (address, remote) in [
            ("198.51.100.7", true),
            ("10.0.0.1", true),
            ("2001:db8::1", true),
            ("127.0.0.1", false),
            ("127.9.9.9", false),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("169.254.169.254", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("::", false),
            ("fe80::1", false),
            ("ff02::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.169.254", false),
        ] {
            assert_eq!(is_remote(address.parse().unwrap()), remote, "{address}");
        }
    }

    #[tokio::test]
    async fn a_client_for_the_outside_does_not_go_home() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "localhost"] {
            let request = || http::Request::post(format!("http://{host}:{port}/")).body(vec![]).unwrap();
            let refused = HttpClient::new(None).unwrap().remote_only().send(request()).await;
            assert!(matches!(refused, Err(FetchError::Local)), "{host}");
        }
    }

    #[test]
    fn secrets_leave_the_machine_only_over_tls() {
        for (address, protected) in [
            ("https://idp.example/x", true),
            ("http://127.0.0.1:8080/x", true),
            ("http://localhost:8080/x", true),
            ("http://[::1]/x", true),
            ("http://idp.example/x", false),
            ("http://localhost.evil.test/x", false),
            ("http://10.0.0.1/x", false),
            ("ftp://127.0.0.1/x", false),
            ("javascript:alert(1)", false),
        ] {
            assert_eq!(is_protected(&url::Url::parse(address).unwrap()), protected, "{address}");
        }
    }
}

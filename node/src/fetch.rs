//! The HTTP client towards identity providers and, in the access client, towards a node: HTTPS (or plain HTTP on
//! loopback, for a provider beside the node), no redirects, bounded in time and size.

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
        Ok(Self { tls: TlsConnector::from(Arc::new(config)) })
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
        let stream = TcpStream::connect((host.as_str(), port)).await?;

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

//! A client of connect-udp (RFC 9298) over HTTP/2, independent of the product's own, for what that would never send.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use crate::netns::Netns;
use crate::quic::AnyNode;

/// A TLS connection to a node that carries HTTP/2.
pub struct Client {
    sender: SendRequest<Empty<Bytes>>,
}

/// A stream of capsules.
pub struct Stream(TokioIo<Upgraded>);

impl Client {
    /// Connects from `netns` to `node` by the name `host`, offering `alpn`; whether the node takes extended CONNECT.
    pub async fn connect(
        netns: Option<&Netns>,
        node: SocketAddr,
        host: &str,
        alpn: &[&[u8]],
    ) -> Result<(Self, bool)> {
        let connect = || TcpStream::connect_timeout(&node, Duration::from_secs(30));
        let stream = match netns {
            Some(netns) => netns.enter(connect)??,
            None => connect()?,
        };
        stream.set_nonblocking(true)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyNode { provider }))
            .with_no_client_auth();
        tls.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let name = ServerName::try_from(host.to_owned())?;
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
        ensure!(stream.get_ref().1.alpn_protocol() == Some(b"h2"), "no HTTP/2");
        let (mut sender, connection) =
            http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await?;
        let (answered, has_answer) = tokio::sync::oneshot::channel();
        let (offers, offered) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let mut connection = connection;
            let ended = tokio::select! {
                _ = &mut connection => true,
                _ = has_answer => false,
            };
            let _ = offers.send(connection.is_extended_connect_protocol_enabled());
            if !ended {
                let _ = connection.await;
            }
        });
        sender.ready().await?;
        // The settings come first, so whoever has an answer has them.
        let request = Request::builder().uri(format!("https://{host}/")).body(Empty::new())?;
        sender.send_request(request).await?;
        let _ = answered.send(());
        let offered = offered.await.context("the connection ended")?;
        Ok((Self { sender }, offered))
    }

    /// An extended CONNECT: the answer, and the stream where it is 200.
    pub async fn open(&mut self, protocol: &'static str, uri: &str) -> Result<(StatusCode, Option<Stream>)> {
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(uri)
            .extension(Protocol::from_static(protocol))
            .body(Empty::new())?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        if status != StatusCode::OK {
            return Ok((status, None));
        }
        Ok((status, Some(Stream(TokioIo::new(hyper::upgrade::on(response).await?)))))
    }
}

impl Stream {
    /// Sends a datagram of fewer than 16,383 bytes.
    pub async fn send(&mut self, datagram: &[u8]) -> Result<()> {
        let length = u16::try_from(datagram.len() + 1)? | 0x4000;
        let capsule = [&[0], &length.to_be_bytes()[..], &[0], datagram].concat();
        self.0.write_all(&capsule).await?;
        Ok(self.0.flush().await?)
    }

    /// What comes within `patience`: nothing, some bytes, or the end of the stream (no bytes).
    pub async fn receive(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let mut block = vec![0; 4096];
        match tokio::time::timeout(patience, self.0.read(&mut block)).await {
            Err(_) => None,
            Ok(Err(_)) => Some(Vec::new()),
            Ok(Ok(length)) => Some(block[..length].to_vec()),
        }
    }
}

//! A QUIC client of the tunnel that is nobody's connector: it may shake hands with a node, if the gate lets it.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::BytesMut;
use portcullis::tunnel::wire::{ALPN, ConnectorFrame, encode};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectionId, Endpoint, EndpointConfig, TokioRuntime};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};

const SERVER_NAME: &str = "tunnel.portcullis.invalid";

/// A client with a key that no node knows.
#[derive(Clone)]
pub struct Client {
    config: ClientConfig,
}

impl Client {
    pub fn new() -> Result<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = rcgen::CertificateParams::new(vec![SERVER_NAME.to_owned()])?.self_signed(&pair)?;
        let key = PrivatePkcs8KeyDer::from(pair.serialize_der()).into();
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyNode { provider }))
            .with_client_auth_cert(vec![certificate.der().clone()], key)?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { config: ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)) })
    }

    /// The first datagram of an attempt with this destination ID (8 to 20 bytes), as it would leave.
    pub async fn first_packet(&self, id: &[u8]) -> Result<Vec<u8>> {
        let capture = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
        let connecting = endpoint.connect_with(self.with(Some(id)), capture.local_addr()?, SERVER_NAME)?;
        let mut datagram = vec![0; 65_536];
        let length = tokio::time::timeout(Duration::from_secs(30), capture.recv(&mut datagram)).await??;
        drop(connecting);
        datagram.truncate(length);
        Ok(datagram)
    }

    /// Shakes hands from `socket`, and reads the node's refusal of the unknown key: by then both sides have finished.
    pub async fn handshake(
        &self,
        socket: UdpSocket,
        to: SocketAddr,
        id: Option<&[u8]>,
        patience: Duration,
    ) -> Result<()> {
        socket.set_nonblocking(true)?;
        let mut settings = EndpointConfig::default();
        settings.grease_quic_bit(false);
        let endpoint = Endpoint::new(settings, None, socket, Arc::new(TokioRuntime))?;
        let exchange = async {
            let connection = endpoint.connect_with(self.with(id), to, SERVER_NAME)?.await?;
            let (mut send, mut receive) = connection.open_bi().await?;
            let mut hello = BytesMut::new();
            encode(&ConnectorFrame::Hello, &mut hello)?;
            send.write_all(&hello).await?;
            receive.read_exact(&mut [0; 4]).await?;
            Ok(())
        };
        tokio::time::timeout(patience, exchange).await.context("no handshake in time")?
    }

    fn with(&self, id: Option<&[u8]>) -> ClientConfig {
        let mut config = self.config.clone();
        if let Some(id) = id {
            let id = ConnectionId::new(id);
            config.initial_dst_cid_provider(Arc::new(move || id));
        }
        config
    }
}

/// Takes every node for the right one.
#[derive(Debug)]
pub(crate) struct AnyNode {
    pub(crate) provider: Arc<CryptoProvider>,
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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(rustls::PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

//! QUIC and TLS settings of both ends, in one place.
//!
//! **Flow control.** The connection's window is as large as all its streams' windows together, so a stream that nobody
//! reads can hold no more than its own window and never stalls another. What that may cost in memory is
//! [`MAX_ORIGIN_STREAMS`] × [`STREAM_WINDOW`] = 1 GiB for each connection of an *enrolled* connector whose streams all
//! stand still; a peer that has not been identified gets [`STRANGER_WINDOW`] bytes and one stream.
//!
//! **Handshake.** TLS 1.3 only (RFC 9001 §4.2), no early data, no resumption: each connection proves its key again.
//! The fixed bit is never greased and only QUIC version 1 is spoken, so that a packet filter can know our packets.

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{HandshakeData, NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn::rustls::{self, crypto::CryptoProvider};
use quinn::{
    AsyncUdpSocket, ClientConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, Runtime, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
};

use crate::gate::DatagramGate;

use super::access_wire;
use super::carrier::Carried;
use super::gated::Gated;
use super::identity::{AnyKey, KeyHash, PinnedNode, TunnelKey};
use super::ids::Mint;
use super::layered::LayeredSocket;
use super::relay::{Demux, Relay};
use super::wire::ALPN;

/// Origin connections that one tunnel connection carries at once.
pub(super) const MAX_ORIGIN_STREAMS: u32 = 1024;

/// Bytes that an origin stream holds for a reader that does not read.
pub(super) const STREAM_WINDOW: u32 = 1024 * 1024;

/// Bytes that a peer may send before the node knows who it is.
pub(super) const STRANGER_WINDOW: u32 = 16 * 1024;

/// The window of a connection whose peer is known.
pub(super) const CONNECTION_WINDOW: u32 = MAX_ORIGIN_STREAMS * STREAM_WINDOW;

/// Bytes in flight and not yet acknowledged on one connection, whatever the peer would take.
const SEND_WINDOW: u64 = 16 * 1024 * 1024;

/// A connection without a sign of life ends.
const IDLE_TIMEOUT_MS: u32 = 15_000;
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_millis(1).saturating_mul(IDLE_TIMEOUT_MS);

/// The dialling end keeps the path, and what address translators remember of it, alive. It knows within so long that nothing
/// comes any more, and then has to try TCP within three seconds of the last that came.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Handshakes that quinn holds for us before we look at them, and the bytes it holds for all of them.
const MAX_INCOMING: usize = 512;
const INCOMING_BUFFER: u64 = 32 * 1024;

/// QUIC version 1 (RFC 9000 §15).
const QUIC_V1: u32 = 1;

/// A setting that the TLS library refuses: our fault.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("TLS does not accept the tunnel's settings: {0}")]
    Tls(#[from] rustls::Error),
    #[error("TLS has no cipher suite for QUIC's initial packets")]
    Suite(#[from] NoInitialCipherSuite),
    #[error("the tunnel's socket: {0}")]
    Socket(#[from] io::Error),
}

/// Keys that let a restarted node recognise, and reset, the connections of its former life.
pub(super) struct EndpointKeys {
    /// For stateless resets (RFC 9000 §10.3).
    pub(super) reset: [u8; 64],
    pub(super) mint: Mint,
}

/// An endpoint that accepts connectors and access clients on `socket`, which it shares with `relay`, and what `carried`
/// brings.
pub(super) fn node_endpoint(
    socket: UdpSocket,
    gate: Option<&DatagramGate>,
    carried: &Carried,
    relay: &Arc<Relay>,
    key: &TunnelKey,
    keys: &EndpointKeys,
) -> Result<Endpoint, TransportError> {
    let provider = provider();
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(AnyKey { provider }))
        .with_single_cert(key.chain(), key.private_key())?;
    tls.alpn_protocols = [ALPN].into_iter().chain(access_wire::ALL).map(<[u8]>::to_vec).collect();
    tls.max_early_data_size = 0;
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});

    let mut transport = transport();
    transport.max_concurrent_bidi_streams(1_u8.into()).receive_window(VarInt::from_u32(STRANGER_WINDOW));
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    server
        .transport_config(Arc::new(transport))
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFER * MAX_INCOMING as u64);

    let reset = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &keys.reset);
    let mut endpoint = EndpointConfig::new(Arc::new(reset));
    let mint = keys.mint.clone();
    endpoint.cid_generator(move || mint.generator()).supported_versions(vec![QUIC_V1]).grease_quic_bit(false);
    let runtime = Arc::new(TokioRuntime);
    let mut socket = runtime.wrap_udp_socket(socket)?;
    if let Some(gate) = gate {
        let gated = Gated::new(gate.clone(), socket.local_addr()?, Arc::clone(relay));
        socket = Arc::new(LayeredSocket::new(socket, gated));
    }
    let socket = Arc::new(carried.share(socket, relay)?);
    let mint = keys.mint.clone();
    let is_ticket = move |ticket| mint.is_ticket(ticket);
    let socket = Arc::new(Demux::share(socket, Arc::clone(relay), Box::new(is_ticket))?);
    Ok(Endpoint::new_with_abstract_socket(endpoint, Some(server), socket, runtime)?)
}

/// An endpoint that can only dial.
pub(super) fn connector_endpoint(socket: Arc<dyn AsyncUdpSocket>) -> Result<Endpoint, TransportError> {
    let mut endpoint = EndpointConfig::default();
    endpoint.supported_versions(vec![QUIC_V1]).grease_quic_bit(false);
    Ok(Endpoint::new_with_abstract_socket(endpoint, None, socket, Arc::new(TokioRuntime))?)
}

/// Settings for dialling, as a connector, the node whose key has the hash `node`.
pub(super) fn connector_config(key: &TunnelKey, node: KeyHash) -> Result<ClientConfig, TransportError> {
    dialling(key, node, &[ALPN], MAX_ORIGIN_STREAMS, CONNECTION_WINDOW)
}

/// Settings for dialling, as an access client, the node whose key has the hash `node`. There is one stream.
pub(super) fn access_config(key: &TunnelKey, node: KeyHash) -> Result<ClientConfig, TransportError> {
    dialling(key, node, &access_wire::ALL, 0, STREAM_WINDOW)
}

fn dialling(
    key: &TunnelKey,
    node: KeyHash,
    protocols: &[&[u8]],
    streams: u32,
    window: u32,
) -> Result<ClientConfig, TransportError> {
    let provider = provider();
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedNode { node, provider }))
        .with_client_auth_cert(key.chain(), key.private_key())?;
    tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    tls.enable_early_data = false;
    tls.enable_sni = false;
    tls.resumption = rustls::client::Resumption::disabled();

    let mut transport = transport();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .receive_window(VarInt::from_u32(window))
        .keep_alive_interval(Some(KEEP_ALIVE));
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    client.transport_config(Arc::new(transport)).version(QUIC_V1);
    Ok(client)
}

/// Whether both ends have agreed on this application protocol.
pub(super) fn speaks(connection: &Connection, protocol: &[u8]) -> bool {
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    data.is_some_and(|data| data.protocol.as_deref() == Some(protocol))
}

/// Whether the handshake failed because we did not accept the peer's certificate: the error is ours (it has no frame
/// of the peer's) and carries the TLS alert for it (RFC 9001 §4.8).
pub(super) fn is_our_refusal(error: &quinn_proto::TransportError) -> bool {
    const ACCESS_DENIED: u8 = 49;
    error.code == quinn_proto::TransportErrorCode::crypto(ACCESS_DENIED)
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(0_u8.into())
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .send_window(SEND_WINDOW)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .datagram_receive_buffer_size(None);
    transport
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

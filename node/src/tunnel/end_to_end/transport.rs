//! QUIC and TLS settings of end-to-end connections, in one place.
//!
//! **Flow control.** What streams hold for readers that do not read, and for a peer that does not acknowledge, is a part of
//! the connection's [`Room`]: some streams that stand still take nothing from the others.
//!
//! **Handshake.** TLS 1.3 only, no resumption, no early data; both keys are pinned, and proved anew each time.
//!
//! **Restart.** An end that has lost its memory resets what it does not know (RFC 9000 §10.3), so that the other one need
//! not wait for its idle timeout.
//!
//! **Path.** The relay shows each end one fixed peer, so nothing migrates. Both ends ping, since each end's own address
//! translator must remember it, and only who sends notices that nothing comes back.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::rustls::{self, crypto::CryptoProvider};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, ServerConfig, TokioRuntime,
    TransportConfig, VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;

use super::super::identity::{KeyHash, PinnedClient, PinnedNode, TunnelKey};
use super::super::relay::Legs;
use super::super::transport::TransportError;
use super::room::Room;
use super::wire::ALPN;

/// TCP connections or UDP flows of one session at once.
pub(crate) const MAX_STREAMS: u32 = 512;

/// Longer than a node may take to come back.
const IDLE_TIMEOUT_MS: u32 = 60_000;

/// Between two pings of either end.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A peer's acknowledgement may be late by so much (RFC 9000 §18.2).
const MAX_ACK_DELAY: Duration = Duration::from_millis(25);

/// QUIC version 1 (RFC 9000 §15).
const QUIC_V1: u32 = 1;

/// Codes of CONNECTION_CLOSE of an end-to-end connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionCode {
    /// The sender ends, in good order.
    Closed,
    /// The peer broke the protocol.
    Protocol,
    /// The grant has expired.
    Expired,
    /// The node has ended the session.
    Ended,
    /// Another connection of the same session takes over.
    Replaced,
    /// The connector stops.
    Leaving,
}

impl SessionCode {
    pub(crate) const fn code(self) -> u32 {
        match self {
            Self::Closed => 0,
            Self::Protocol => 1,
            Self::Expired => 2,
            Self::Ended => 3,
            Self::Replaced => 4,
            Self::Leaving => 5,
        }
    }
}

impl From<SessionCode> for VarInt {
    fn from(code: SessionCode) -> Self {
        Self::from_u32(code.code())
    }
}

/// An endpoint for all legs of who has `key`; with a `server`, one that can be dialled.
pub(crate) fn endpoint(
    legs: &Legs,
    key: &TunnelKey,
    server: Option<ServerConfig>,
) -> Result<Endpoint, TransportError> {
    let secret = key.secret(b"stateless resets of end-to-end connections");
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, secret.as_ref())));
    // Its connection IDs are known again, too: others are not worth an answer.
    let ids = secret.as_ref().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config.supported_versions(vec![QUIC_V1]).grease_quic_bit(false);
    let socket = Arc::new(legs.clone());
    Ok(Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(TokioRuntime))?)
}

/// Settings for serving the client whose device key has the hash `client`, and no other, in `room`.
pub(crate) fn connector_config(
    key: &TunnelKey,
    client: KeyHash,
    room: &Room,
) -> Result<ServerConfig, TransportError> {
    let provider = provider();
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(PinnedClient::new(client, provider)))
        .with_single_cert(key.chain(), key.private_key())?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.max_early_data_size = 0;
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    let mut transport = transport(room);
    transport.max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS));
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    server.transport_config(Arc::new(transport)).migration(false);
    Ok(server)
}

/// Settings for dialling the connector whose key has the hash `connector`, as the device whose key is `key`, in `room`.
pub(crate) fn client_config(
    key: &TunnelKey,
    connector: KeyHash,
    room: &Room,
) -> Result<ClientConfig, TransportError> {
    let provider = provider();
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedNode { node: connector, provider }))
        .with_client_auth_cert(key.chain(), key.private_key())?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.enable_early_data = false;
    tls.enable_sni = false;
    tls.resumption = rustls::client::Resumption::disabled();
    let mut transport = transport(room);
    transport.max_concurrent_bidi_streams(0_u8.into());
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    client.transport_config(Arc::new(transport)).version(QUIC_V1);
    Ok(client)
}

/// The connection's probe timeout (RFC 9002 §6.2.1), as far as it is known outside of it.
pub(crate) fn probe_timeout(connection: &Connection) -> Duration {
    connection.rtt().saturating_mul(2).saturating_add(MAX_ACK_DELAY)
}

fn transport(room: &Room) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(0_u8.into())
        .stream_receive_window(VarInt::from_u32(room.stream_window()))
        .receive_window(VarInt::from_u32(room.receive_window()))
        .send_window(room.send_window())
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .datagram_receive_buffer_size(room.datagrams())
        .datagram_send_buffer_size(room.datagrams().unwrap_or(0));
    transport
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

//! A connection to a node: its addresses in turn, from a socket of its own, by its key alone.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::identity::SERVER_NAME;
use super::socket::{Capped, dial_socket, local_address, other_address};
use super::transport::{TransportError, connector_endpoint, is_our_refusal};
use super::wire::Authority;

/// One address gets so long for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses of one node that are tried in one attempt.
const MAX_ADDRESSES: usize = 8;

/// Why a node is not reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReachError {
    #[error("its name has no address")]
    NoAddress,
    #[error("its name cannot be resolved: {0}")]
    Resolve(io::Error),
    #[error("it does not answer")]
    Timeout,
    #[error("it has another key than the one that is known here")]
    WrongNode,
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// Tries the addresses of `node`, beginning with the one at `first`; `config` is asked for each attempt, since none may
/// share its first connection ID with another.
pub(super) async fn reach(
    node: &Authority,
    first: usize,
    config: impl Fn() -> ClientConfig,
) -> Result<(Endpoint, Connection), ReachError> {
    let mut addresses: Vec<SocketAddr> = tokio::net::lookup_host((node.host(), node.port()))
        .await
        .map_err(ReachError::Resolve)?
        .take(MAX_ADDRESSES)
        .collect();
    if addresses.is_empty() {
        return Err(ReachError::NoAddress);
    }
    let first = first % addresses.len();
    addresses.rotate_left(first);
    let mut last = ReachError::NoAddress;
    for address in addresses {
        match reach_address(address, config()).await {
            Ok(connected) => return Ok(connected),
            Err(error) => {
                debug!(%node, %address, %error, "no connection");
                last = error;
            }
        }
    }
    Err(last)
}

async fn reach_address(
    address: SocketAddr,
    config: ClientConfig,
) -> Result<(Endpoint, Connection), ReachError> {
    let (socket, capped) = dial_socket(address).map_err(TransportError::Socket)?;
    if let Some(capped) = capped {
        warn_once(capped);
    }
    let endpoint = connector_endpoint(socket)?;
    let connecting = endpoint.connect_with(config, address, SERVER_NAME).map_err(|error| {
        debug!(%address, %error, "an address that cannot be dialled");
        ReachError::NoAddress
    })?;
    match timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Ok((endpoint, connection)),
        Ok(Err(ConnectionError::TransportError(error))) if is_our_refusal(&error) => {
            Err(ReachError::WrongNode)
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(ReachError::Timeout),
    }
}

/// Moves the endpoint's one connection, to `node`, to another socket whenever the machine has changed its network: the old
/// one is bound to an address that is no more (RFC 9000 §9).
pub(super) async fn follow_address(endpoint: &Endpoint, node: SocketAddr) -> Infallible {
    let mut known = local_address(node).ok();
    loop {
        let now = other_address(node, known).await;
        let moved = dial_socket(node).and_then(|(socket, _)| endpoint.rebind_abstract(socket));
        match moved {
            Ok(()) => {
                debug!(%node, from = %now, "the connection moves to another address of this machine");
                known = Some(now);
            }
            Err(error) => debug!(%node, %error, "no socket at another address of this machine"),
        }
    }
}

/// One line for all the sockets of this process: the cap is the same for each.
fn warn_once(capped: Capped) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Ordering::Relaxed) {
        warn!("{capped}");
    }
}

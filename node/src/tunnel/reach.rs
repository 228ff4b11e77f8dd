//! A connection to a node: its addresses in turn, from a socket of its own, by its key alone.

use std::io;
use std::net::SocketAddr;

use quinn::ConnectionError;
use tracing::debug;

use super::carrier::{Connected, DialError, Routes};
use super::transport::is_our_refusal;
use super::wire::Authority;

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
    Connection(ConnectionError),
    #[error(transparent)]
    Dial(DialError),
}

impl From<DialError> for ReachError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Timeout => Self::Timeout,
            DialError::Connection(ConnectionError::TransportError(error)) if is_our_refusal(&error) => {
                Self::WrongNode
            }
            DialError::Connection(error) => Self::Connection(error),
            other => Self::Dial(other),
        }
    }
}

/// Tries the addresses of `node`, beginning with the one at `first`.
pub(super) async fn reach(node: &Authority, first: usize, routes: &Routes) -> Result<Connected, ReachError> {
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
        match routes.to(address).connect().await.map_err(ReachError::from) {
            Ok(connected) => return Ok(connected),
            Err(error) => {
                debug!(%node, %address, %error, "no connection");
                last = error;
            }
        }
    }
    Err(last)
}

//! Tunnels: connectors dial out to nodes over QUIC, and nodes reach private origins through them.
//!
//! ```text
//! request ── Permit ──▶ Registry::open ──▶ TunnelStream        node: registry, stream
//!                            │ OpenRequest                       wire: every frame and limit
//!                    QUIC, portcullis/1                          transport, identity: settings, keys
//!                            ▼
//!                   connector ── dial, pipe ──▶ origin          connector: dials out, never listens
//! ```
//!
//! Private sessions of access clients come by the same port: `access_wire` says what is spoken, `private` is the node's
//! half, and `relay` carries their packets where the gate does not.
//!
//! Start with `wire`, which says what is spoken, and `session`, which says in which order. `node`, `peer` and
//! `connector` are the loops that perform what the session decides.

pub mod access_wire;
mod admission;
pub mod carrier;
pub(crate) mod client;
pub mod connector;
mod control;
mod devices;
mod dial;
mod end_to_end;
pub mod enrolment;
mod gated;
pub mod grant;
mod identity;
mod ids;
mod layered;
pub mod node;
mod peer;
mod pipe;
mod private;
mod reach;
mod registry;
pub mod relay;
mod session;
mod socket;
mod standing;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod transport;
pub mod wire;

pub use devices::{Devices, DevicesError};
pub use identity::{KeyHash, TunnelKey, TunnelKeyError};
pub use ids::{Mint, MintError};
pub use layered::{Layer, LayeredSocket};
pub use private::{EndError, PrivateParts, PrivateSession, PrivateSessions};
pub use registry::{ConnectorStatus, OpenError, Registry};
pub use socket::{Capped, size_buffers};
pub use stream::TunnelStream;
pub use transport::TransportError;

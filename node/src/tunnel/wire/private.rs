//! Private sessions in the control session between a connector and a node.
//!
//! ```text
//! connector → node  TakesSessions      once, after Welcome: one that is older does not say so and is offered none
//! node → connector  Session(Offer)     bind this leg, and serve the client that the grant names
//! connector → node  Taken | Declined   the answer to an offer
//! node → connector  SessionReady       the leg's bind number `counter` is in force
//! either            EndSession | SessionEnded
//! ```
//!
//! An offer of a session that the connector already serves is the same session under a new control connection: its leg
//! binds again, with the key that this connection yields, and its end-to-end connection goes on. It ends with the process
//! that took it: `TakesSessions` says which one that is.

use serde::{Deserialize, Serialize};

use super::super::relay::SessionRef;
use super::super::relay::wire::Ticket;

/// Bytes of the longest signed grant.
pub const MAX_GRANT: usize = 2048;

/// What a connector needs to know of a private session. Person, application, destination, keys and expiry are in the
/// grant, signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    pub session: SessionRef,
    /// What this end's binds carry.
    pub ticket: Ticket,
    /// A signed grant, of at most [`MAX_GRANT`] bytes.
    pub grant: Vec<u8>,
}

/// One process of a connector's: a random number, the same on all of its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance(pub u64);

/// Why a connector does not take a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Decline {
    #[error("the connector's own limits exclude the destination")]
    NotAllowed,
    #[error("the connector does not accept the node's grant")]
    BadGrant,
    #[error("the connector carries as many sessions as it can")]
    Busy,
    #[error("the connector is about to leave")]
    Draining,
    #[error("the connector cannot open a socket for the session")]
    NoSocket,
}

/// Where the node relays the packets of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RelayPath {
    /// In the kernel, by the gate.
    Kernel,
    /// In the daemon.
    Userspace,
}

impl RelayPath {
    /// The public name, as in listings and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// Why a private session is over. What a person reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error)]
pub enum EndReason {
    #[error("the client closed it")]
    Closed,
    #[error("the login is over: logged out or expired")]
    LoginEnded,
    #[error("an administrator revoked it")]
    Revoked,
    #[error("policy no longer allows it")]
    NotAllowed,
    #[error("its time is over")]
    Expired,
    #[error("the connector is gone and did not come back")]
    ConnectorGone,
    #[error("the connector was revoked")]
    ConnectorRevoked,
    #[error("the connector ended it")]
    ConnectorEnded,
    #[error("the connector declined it")]
    Declined,
    #[error("the client is gone and did not come back")]
    ClientGone,
    #[error("an end could not be reached by UDP")]
    NotBound,
    #[error("the node could not relay it")]
    RelayFailed,
    #[error("the connector has restarted")]
    ConnectorRestarted,
}

impl EndReason {
    /// The public name, as in events and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::LoginEnded => "login_ended",
            Self::Revoked => "revoked",
            Self::NotAllowed => "not_allowed",
            Self::Expired => "expired",
            Self::ConnectorGone => "connector_gone",
            Self::ConnectorRevoked => "connector_revoked",
            Self::ConnectorEnded => "connector_ended",
            Self::Declined => "declined",
            Self::ClientGone => "client_gone",
            Self::NotBound => "not_bound",
            Self::RelayFailed => "relay_failed",
            Self::ConnectorRestarted => "connector_restarted",
        }
    }
}

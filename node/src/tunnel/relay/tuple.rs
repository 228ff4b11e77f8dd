//! The nouns of the relay: which session, which leg of it, between which addresses.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Session indices are below this: as many entries as the gate's session map has.
pub const MAX_SESSIONS: u32 = 65_536;

/// What a client calls the leg of a session that it has only just asked for, until the node has given the session: a random
/// number of its own that is no session's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "u32", into = "u32")]
pub struct Early(u32);

impl From<u32> for Early {
    fn from(number: u32) -> Self {
        Self::new(number)
    }
}

impl From<Early> for u32 {
    fn from(Early(number): Early) -> Self {
        number
    }
}

impl Early {
    const FIRST: u32 = 0x8000_0000;

    pub const fn new(random: u32) -> Self {
        Self(random | Self::FIRST)
    }

    /// The one that stands in the place of a session's index.
    pub(super) const fn of_index(index: u32) -> Option<Self> {
        if index >= Self::FIRST { Some(Self(index)) } else { None }
    }

    /// The name under which the leg binds.
    pub const fn session(self) -> SessionRef {
        SessionRef { index: self.0, generation: 0 }
    }
}

/// One of a session's two ends, as the node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Leg {
    Client,
    Connector,
}

impl Leg {
    pub const BOTH: [Self; 2] = [Self::Client, Self::Connector];

    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Connector,
            Self::Connector => Self::Client,
        }
    }
}

/// A session's place in the gate's map, and which of the sessions that have used that place it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionRef {
    pub index: u32,
    pub generation: u32,
}

/// Until when, and for whom, a session may pass packets. All three are compared for every packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Index of the person's entry among the identity epochs.
    pub identity: u32,
    /// The epoch that entry had when the session was granted.
    pub epoch: u32,
    /// On the monotonic clock; from then on nothing passes.
    pub expires: Duration,
}

/// The two addresses of UDP datagrams between the node and one end.
///
/// IPv4 is always IPv4, never an IPv4-mapped IPv6 address, and zones and flow labels are left out: two tuples are
/// equal exactly when the packets' addresses are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    local: SocketAddr,
    remote: SocketAddr,
}

impl Tuple {
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Self { local: canonical(local), remote: canonical(remote) }
    }

    /// The node's side.
    pub const fn local(&self) -> SocketAddr {
        self.local
    }

    /// The end's side, as the node sees it.
    pub const fn remote(&self) -> SocketAddr {
        self.remote
    }
}

pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A session whose two legs have proved where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    pub session: SessionRef,
    pub terms: Terms,
    pub client: Tuple,
    pub connector: Tuple,
}

impl Pair {
    /// One flow entry for each direction: what the client sends first.
    pub const fn grants(&self) -> [Grant; 2] {
        let Self { session, client, connector, .. } = *self;
        [
            Grant { session, from: Leg::Client, input: client, output: connector },
            Grant { session, from: Leg::Connector, input: connector, output: client },
        ]
    }
}

/// One direction of a session: packets that arrive on `input` leave as `output`, from its local to its remote side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    pub session: SessionRef,
    /// The end whose packets these are.
    pub from: Leg,
    pub input: Tuple,
    pub output: Tuple,
}

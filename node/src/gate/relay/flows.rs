//! Relayed sessions as the kernel has them, whether a daemon runs or not.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::maps::{KernelMaps, RelayMaps};
use crate::gate::control::monotonic;
use crate::gate::pin::PinDir;
use crate::gate::{GateError, Leg, PeerAddress, SessionRef, Usage};

/// A session that has flows in the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    pub session: SessionRef,
    /// Index of the person.
    pub identity: u32,
    pub standing: Standing,
    /// One for each direction.
    pub flows: Vec<FlowStatus>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It passes for so long yet.
    Live(Duration),
    Expired,
    /// Nothing passes, and its flows are still to be removed.
    Revoked,
}

/// One direction of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowStatus {
    /// The end whose packets these are.
    pub from: Leg,
    /// On what they arrive.
    pub input: PeerAddress,
    /// On what they leave; `None`: they go to the node's own socket.
    pub output: Option<PeerAddress>,
    pub usage: Usage,
}

/// Reads the pinned maps; needs the right to open BPF objects, and no daemon. None without maps of this binary's
/// layout.
///
/// # Errors
///
/// When a map is there but cannot be read.
pub fn flows(pin: &Path) -> Result<Vec<SessionStatus>, GateError> {
    let pin = PinDir::new(pin);
    if !pin.map("SESSION").exists() {
        return Ok(Vec::new());
    }
    let maps = KernelMaps::open(&pin)?;
    let now = monotonic();
    let mut sessions: BTreeMap<SessionRef, SessionStatus> = BTreeMap::new();
    for (input, entry) in maps.flows()? {
        let session = SessionRef { index: entry.session, generation: entry.generation };
        let flow = FlowStatus {
            from: if entry.direction == 0 { Leg::Client } else { Leg::Connector },
            input: PeerAddress::of(&input),
            output: (!entry.is_to_host()).then(|| PeerAddress::of(&entry.output(input.family))),
            usage: Usage { packets: entry.packets, bytes: entry.bytes },
        };
        if let Some(found) = sessions.get_mut(&session) {
            found.flows.push(flow);
            continue;
        }
        let granted = maps.session(session.index)?;
        let is_revoked =
            granted.generation != session.generation || maps.epoch(granted.identity)? != granted.epoch;
        let standing = match granted.expires.checked_sub(now) {
            _ if is_revoked => Standing::Revoked,
            Some(left @ 1..) => Standing::Live(Duration::from_nanos(left)),
            Some(0) | None => Standing::Expired,
        };
        let status = SessionStatus { session, identity: granted.identity, standing, flows: vec![flow] };
        sessions.insert(session, status);
    }
    let mut sessions: Vec<_> = sessions.into_values().collect();
    for session in &mut sessions {
        session.flows.sort_by_key(|flow| flow.from as u32);
    }
    Ok(sessions)
}

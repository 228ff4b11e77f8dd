//! Sessions that the gate judges and the node's own socket relays.

use super::sessions::Direction;
use super::state::{State, ends};
use super::{Detour, FlowGrant, RelayError, SessionRef};
use crate::gate::GateError;

impl State {
    pub(super) fn install_to_host(&mut self, grant: &FlowGrant, now: u64) -> Result<(), RelayError> {
        let before = self.live(grant.session, now)?.directions;
        let directions = self.hostwards(grant, now)?;
        self.settle(grant.session, before, directions, now)
    }

    /// What is done with the packets of the grant's ends where the node's socket relays them.
    pub(super) fn hostwards(&mut self, grant: &FlowGrant, now: u64) -> Result<[Direction; 2], RelayError> {
        let flows = self.checked(grant, now)?;
        for output in &flows {
            let (from, to) = ends(output);
            let way = self.network.resolve(from, to).map_err(GateError::Netlink)?;
            if matches!(way, Err((Detour::Local, _))) && self.served.contains(&output.remote_port) {
                return Err(RelayError::Reflection);
            }
        }
        Ok(flows.map(|input| Direction { input, onward: None }))
    }

    /// Writes a session's entries, or moves those that it has.
    fn settle(
        &mut self,
        session: SessionRef,
        before: [Option<Direction>; 2],
        directions: [Direction; 2],
        now: u64,
    ) -> Result<(), RelayError> {
        let before = match before {
            [None, None] => return self.insert(session, directions),
            [Some(client), Some(connector)] => [client, connector],
            _ => return Err(RelayError::Moved),
        };
        for Direction { input, .. } in &directions {
            let is_its_own = before.iter().any(|direction| direction.input == *input);
            if !is_its_own && self.maps.flow(input)?.is_some() {
                return Err(RelayError::TupleInUse);
            }
        }
        let [client, connector] = directions;
        self.relocate(session, &[(0, client), (1, connector)], now)
    }
}

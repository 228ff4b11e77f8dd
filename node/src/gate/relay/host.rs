//! Sessions that the gate judges and the node's own socket relays.

use super::sessions::Direction;
use super::state::{State, ends};
use super::{Detour, FlowGrant, RelayError};
use crate::gate::GateError;

impl State {
    pub(super) fn install_to_host(&mut self, grant: &FlowGrant, now: u64) -> Result<(), RelayError> {
        let before = self.live(grant.session, now)?.directions;
        let flows = self.checked(grant, now)?;
        for output in &flows {
            let (from, to) = ends(output);
            let way = self.network.resolve(from, to).map_err(GateError::Netlink)?;
            if matches!(way, Err((Detour::Local, _))) && self.served.contains(&output.remote_port) {
                return Err(RelayError::Reflection);
            }
        }
        let directions = flows.map(|input| Direction { input, onward: None });
        let before = match before {
            [None, None] => return self.insert(grant.session, directions),
            [Some(client), Some(connector)] => [client, connector],
            _ => return Err(RelayError::Moved),
        };
        for flow in &flows {
            let is_its_own = before.iter().any(|direction| direction.input == *flow);
            if !is_its_own && self.maps.flow(flow)?.is_some() {
                return Err(RelayError::TupleInUse);
            }
        }
        let [client, connector] = directions;
        self.relocate(grant.session, &[(0, client), (1, connector)], now)
    }
}

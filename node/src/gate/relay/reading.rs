//! What the books say.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::sessions::Direction;
use super::state::{State, ends};
use super::{Placed, RelayTotals, SessionRef, Usage};
use crate::gate::{GateError, PeerAddress};

impl State {
    pub(super) fn sessions(&self) -> Vec<(SessionRef, u32)> {
        let live = self.table.iter().filter(|(_, live)| !live.is_ended);
        live.map(|(index, live)| (SessionRef { index, generation: live.generation }, live.identity)).collect()
    }

    pub(super) fn placed_at(&self, session: SessionRef) -> Option<Placed> {
        let live = self.table.get(session.index, session.generation).filter(|live| !live.is_ended)?;
        let [Some(client), Some(connector)] = live.directions else { return None };
        Some(Placed {
            client: PeerAddress::of(&client.input),
            connector: PeerAddress::of(&connector.input),
            to_host: client.onward.is_none(),
        })
    }

    pub(super) fn usage(&self, session: SessionRef) -> Result<Option<[Usage; 2]>, GateError> {
        let live = self.table.get(session.index, session.generation).filter(|live| !live.is_ended);
        let Some(live) = live else { return Ok(None) };
        let mut usage = [Usage::default(); 2];
        for (place, direction) in usage.iter_mut().zip(live.directions) {
            let Some(direction) = direction else { continue };
            if let Some(entry) = self.maps.flow(&direction.input)? {
                *place = Usage { packets: entry.packets, bytes: entry.bytes };
            }
        }
        Ok(Some(usage))
    }

    pub(super) fn totals(&self) -> Result<RelayTotals, GateError> {
        let (mut usage, mut flows) = (self.past, 0);
        for direction in self.directions() {
            flows += 1;
            let Some(entry) = self.maps.flow(&direction.input)? else { continue };
            if let Some(usage) = usage.get_mut(entry.direction as usize) {
                usage.packets += entry.packets;
                usage.bytes += entry.bytes;
            }
        }
        Ok(RelayTotals { sessions: self.table.len(), flows, hops: self.hops.len(), usage })
    }

    /// The pairs of addresses that packets leave between.
    pub(super) fn destinations(&self) -> BTreeSet<(IpAddr, IpAddr)> {
        self.directions().filter_map(|direction| Some(ends(&direction.onward?.output))).collect()
    }

    fn directions(&self) -> impl Iterator<Item = Direction> {
        self.placed().into_iter().map(|(_, _, direction)| direction)
    }

    pub(super) fn placed(&self) -> Vec<(SessionRef, usize, Direction)> {
        let mut placed = Vec::new();
        for (index, live) in self.table.iter().filter(|(_, live)| !live.is_ended) {
            for (side, direction) in live.directions.iter().enumerate() {
                let session = SessionRef { index, generation: live.generation };
                placed.extend(direction.map(|direction| (session, side, direction)));
            }
        }
        placed
    }
}

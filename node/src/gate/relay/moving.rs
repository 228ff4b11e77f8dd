//! Entries that change while their session goes on: of an end that is elsewhere now, or whose next hop is another.
//!
//! Memory of a removed entry is used again at once by the map, so every removal is followed by a barrier before the next
//! insertion: no CPU ever reads an entry that is half another's.

use std::collections::HashMap;
use std::net::IpAddr;

use portcullis_common::Flow;
use portcullis_common::layout::FlowEntry;

use super::sessions::{Direction, Onward};
use super::state::{State, ends};
use super::{FlowGrant, Leg, RelayError, Resolved, SessionRef, entry};
use crate::gate::GateError;

/// Removed from the maps, to be inserted again elsewhere.
pub(super) struct Moving {
    session: SessionRef,
    side: usize,
    direction: Direction,
    entry: FlowEntry,
}

impl State {
    pub(super) fn replace_leg(
        &mut self,
        leg: Leg,
        old: &Flow,
        grant: &FlowGrant,
        now: u64,
    ) -> Result<(), RelayError> {
        let session = grant.session;
        let [Some(from_client), Some(from_connector)] = self.live(session, now)?.directions else {
            return Err(RelayError::Moved);
        };
        let (moved, other, moved_side) = match leg {
            Leg::Client => (from_client, from_connector, 0),
            Leg::Connector => (from_connector, from_client, 1),
        };
        let wanted = [grant.client.flow(), grant.connector.flow()];
        let (new, stays) = match leg {
            Leg::Client => (wanted[0], wanted[1]),
            Leg::Connector => (wanted[1], wanted[0]),
        };
        if moved.input != *old || other.input != stays {
            return Err(RelayError::Moved);
        }
        if new == *old {
            return Ok(());
        }
        if other.onward.is_none() {
            return self.install_to_host(grant, now);
        }
        self.flows_of(grant, now)?;
        if self.maps.flow(&new)?.is_some() {
            return Err(RelayError::TupleInUse);
        }
        let hop = self.hop_to(&new)?;
        let to = [
            (moved_side, Direction { input: new, ..moved }),
            (1 - moved_side, Direction { onward: Some(Onward { output: new, hop }), ..other }),
        ];
        let result = self.relocate(session, &to, now);
        self.hops.forget_unused(hop);
        result
    }

    /// Takes the session's entries out and puts them in as `to` says, with their counts. An error ends the session.
    pub(super) fn relocate(
        &mut self,
        session: SessionRef,
        to: &[(usize, Direction)],
        now: u64,
    ) -> Result<(), RelayError> {
        if let Err(error) = self.move_entries(session, to) {
            tracing::error!(?session, "a session that moved could not be written and is ended");
            let cut = self.cut(session, now);
            self.wait_for_cpus()?;
            cut?;
            return Err(error.into());
        }
        Ok(())
    }

    fn move_entries(&mut self, session: SessionRef, to: &[(usize, Direction)]) -> Result<(), GateError> {
        let mut moving = Vec::new();
        for (side, direction) in to {
            moving.extend(self.pick_up(session, *side, *direction)?);
        }
        self.wait_for_cpus()?;
        moving.into_iter().try_for_each(|found| self.put_down(found))
    }

    /// Removes one entry, to be put down as `direction`.
    pub(super) fn pick_up(
        &mut self,
        session: SessionRef,
        side: usize,
        direction: Direction,
    ) -> Result<Option<Moving>, GateError> {
        let Some(live) = self.table.get(session.index, session.generation) else { return Ok(None) };
        let Some(before) = live.directions.get(side).copied().flatten() else { return Ok(None) };
        self.removes();
        let Some(old) = self.maps.take_flow(&before.input)? else { return Ok(None) };
        let from = if side == 0 { Leg::Client } else { Leg::Connector };
        let fresh = entry(&direction, session, from);
        let entry = FlowEntry { packets: old.packets, bytes: old.bytes, ..fresh };
        Ok(Some(Moving { session, side, direction, entry }))
    }

    pub(super) fn put_down(&mut self, moving: Moving) -> Result<(), GateError> {
        let Moving { session, side, direction, entry } = moving;
        self.maps.insert_flow(&direction.input, &entry)?;
        if let Some(live) = self.table.get_mut(session.index, session.generation)
            && let Some(place) = live.directions.get_mut(side)
        {
            let before = place.replace(direction);
            if let Some(onward) = direction.onward {
                self.hops.hold(onward.hop);
            }
            if let Some(onward) = before.and_then(|before| before.onward) {
                self.hops.release(onward.hop);
            }
        }
        Ok(())
    }

    /// What the network says now of each of [`destinations`](Self::destinations). Where it says that there is no way,
    /// packets go on as before.
    pub(super) fn set_hops(
        &mut self,
        found: HashMap<(IpAddr, IpAddr), Resolved>,
        now: u64,
    ) -> Result<(), GateError> {
        let mut moves = Vec::new();
        let mut is_read = false;
        for (session, side, direction) in self.placed() {
            let Some(onward) = direction.onward else { continue };
            let Some(Ok((key, hop))) = found.get(&ends(&onward.output)) else { continue };
            if self.hops.key(onward.hop).is_some_and(|now| now == *key) {
                is_read |= self.write_hop(onward.hop, *key, hop)?;
            } else {
                moves.push((session, side, direction.input, onward, *key, *hop));
            }
        }
        let (mut moving, mut failed) = (Vec::new(), Vec::new());
        for (session, side, input, onward, key, hop) in moves {
            let Ok((number, _)) = self.hops.place(&key, &hop) else { continue };
            is_read |= self.write_hop(number, key, &hop)?;
            if number == onward.hop {
                continue;
            }
            let direction = Direction { input, onward: Some(Onward { hop: number, ..onward }) };
            match self.pick_up(session, side, direction) {
                Ok(found) => moving.extend(found),
                Err(error) => failed.push((session, error)),
            }
        }
        if is_read || !moving.is_empty() {
            self.wait_for_cpus()?;
        }
        for found in moving {
            let session = found.session;
            if let Err(error) = self.put_down(found) {
                failed.push((session, error));
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        let mut cut = Ok(());
        for (session, error) in failed {
            let error = &error as &dyn std::error::Error;
            tracing::error!(
                error,
                ?session,
                "a session whose next hop changed could not be written and is ended"
            );
            cut = cut.and(self.cut(session, now).map(drop));
        }
        self.wait_for_cpus()?;
        cut
    }
}

//! The relay's books: what is in the maps, and in which order they are written.
//!
//! - A grant: session, next hops, then flows. A crash in between leaves less than was granted.
//! - An end: the session's generation first, which is one store; then its flows. Either alone cuts it.
//! - Memory of a removed entry is used again at once by the map, so every removal is followed by a barrier before the
//!   next insertion: no CPU ever reads an entry that is half another's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use portcullis_common::Flow;
use portcullis_common::layout::{FlowEntry, Hop, IDENTITIES, SESSIONS, Session};

use super::hops::{Detour, HopKey, HopTable};
use super::maps::RelayMaps;
use super::sessions::{Direction, Live, Onward, SessionTable};
use super::{Ended, FlowGrant, IdentityRef, Placed};
use super::{Keeper, Leg, Network, RelayError, RelayTotals, Resolved, SessionRef, Usage, entry};
use crate::gate::{GateError, PeerAddress};

pub(super) struct State {
    pub(super) maps: Box<dyn RelayMaps>,
    pub(super) network: Box<dyn Network>,
    pub(super) served: Vec<u16>,
    pub(super) table: SessionTable,
    pub(super) hops: HopTable,
    /// What sessions that are over have carried.
    past: [Usage; 2],
    pub(super) keeper: Option<Keeper>,
    asked: bool,
}

/// Removed from the maps, to be inserted again elsewhere.
struct Moving {
    session: SessionRef,
    side: usize,
    direction: Direction,
    entry: FlowEntry,
}

impl State {
    pub(super) fn adopt(
        maps: Box<dyn RelayMaps>,
        network: Box<dyn Network>,
        served: Vec<u16>,
        now: u64,
    ) -> Result<Self, GateError> {
        let mut live = BTreeMap::new();
        for index in 0..SESSIONS {
            let session = maps.session(index)?;
            if session.expires > now && maps.epoch(session.identity)? == session.epoch {
                let Session { generation, identity, expires, .. } = session;
                let found = Live { generation, identity, expires, directions: [None; 2], is_ended: false };
                live.insert(index, found);
            }
        }
        let mut state = Self {
            maps,
            network,
            served,
            table: SessionTable::new(BTreeMap::new()),
            hops: HopTable::default(),
            past: [Usage::default(); 2],
            keeper: None,
            asked: false,
        };
        let mut stale = Vec::new();
        for (input, entry) in state.maps.flows()? {
            let place = live
                .get_mut(&entry.session)
                .filter(|live| live.generation == entry.generation)
                .and_then(|live| live.directions.get_mut(entry.direction as usize));
            match place {
                Some(place) if place.is_none() => {
                    let onward = (!entry.is_to_host())
                        .then(|| Onward { output: entry.output(input.family), hop: entry.hop });
                    *place = Some(Direction { input, onward });
                    if let Some(onward) = onward {
                        state.adopt_hop(&onward)?;
                    }
                }
                Some(Some(found)) if found.input == input => {}
                _ => stale.push(input),
            }
        }
        state.table = SessionTable::new(live);
        for input in &stale {
            state.maps.take_flow(input)?;
        }
        if !stale.is_empty() {
            state.maps.barrier()?;
        }
        Ok(state)
    }

    /// The flow goes on as it did where its next hop cannot be found out now.
    fn adopt_hop(&mut self, onward: &Onward) -> Result<(), GateError> {
        let hop = self.maps.hop(onward.hop)?;
        let (from, to) = ends(&onward.output);
        let key = match self.network.resolve(from, to) {
            Ok(Ok((key, found))) if found == hop => Some(key),
            _ => None,
        };
        self.hops.adopt(onward.hop, key, hop);
        Ok(())
    }

    pub(super) fn identity(&self, person: &str) -> Result<IdentityRef, GateError> {
        let seed = self.maps.settings()?.seed;
        let mut hash = seed.hash([person.len() as u64]);
        for chunk in person.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            hash = seed.hash([hash, u64::from_le_bytes(word)]);
        }
        let index = u32::try_from(hash % u64::from(IDENTITIES)).unwrap_or(0);
        Ok(IdentityRef { index, epoch: self.maps.epoch(index)? })
    }

    pub(super) fn open_session(
        &mut self,
        identity: IdentityRef,
        lifetime: Duration,
        now: u64,
    ) -> Result<SessionRef, RelayError> {
        let index = self.table.next(now).ok_or(RelayError::Full)?;
        let expires = now.saturating_add(u64::try_from(lifetime.as_nanos()).unwrap_or(u64::MAX));
        let opened = self.maps.session(index).and_then(|before| {
            let generation = before.generation.wrapping_add(1);
            let session = Session { generation, identity: identity.index, epoch: identity.epoch, expires };
            self.maps.set_session(index, &session).map(|()| generation)
        });
        match opened {
            Ok(generation) => {
                let identity = identity.index;
                let live = Live { generation, identity, expires, directions: [None; 2], is_ended: false };
                self.table.add(index, live);
                Ok(SessionRef { index, generation })
            }
            Err(error) => {
                self.table.give_back(index);
                Err(error.into())
            }
        }
    }

    pub(super) fn install(&mut self, grant: &FlowGrant, now: u64) -> Result<(), RelayError> {
        let live = self.live(grant.session, now)?;
        if live.directions.iter().any(Option::is_some) {
            return Err(RelayError::Installed);
        }
        let directions = self.onwards(grant, now)?;
        self.insert(grant.session, directions)
    }

    /// What the gate does by itself with the packets of the grant's ends. Its next hops are written, and nobody's until they
    /// are held.
    pub(super) fn onwards(&mut self, grant: &FlowGrant, now: u64) -> Result<[Direction; 2], RelayError> {
        let [client, connector] = self.flows_of(grant, now)?;
        let towards_connector = self.hop_to(&connector)?;
        let towards_client = match self.hop_to(&client) {
            Ok(number) => number,
            Err(error) => {
                self.hops.forget_unused(towards_connector);
                return Err(error);
            }
        };
        let towards = |output, hop| Some(Onward { output, hop });
        Ok([
            Direction { input: client, onward: towards(connector, towards_connector) },
            Direction { input: connector, onward: towards(client, towards_client) },
        ])
    }

    /// Writes the entries of a session that has none. All or nothing.
    pub(super) fn insert(
        &mut self,
        session: SessionRef,
        directions: [Direction; 2],
    ) -> Result<(), RelayError> {
        let hops = directions.iter().filter_map(|direction| direction.onward).map(|onward| onward.hop);
        let mut inserted: Vec<Flow> = Vec::new();
        for (direction, from) in directions.iter().zip(Leg::BOTH) {
            if let Err(error) = self.maps.insert_flow(&direction.input, &entry(direction, session, from)) {
                for input in &inserted {
                    self.maps.take_flow(input)?;
                }
                if !inserted.is_empty() {
                    self.maps.barrier()?;
                }
                hops.for_each(|hop| self.hops.forget_unused(hop));
                return Err(error.into());
            }
            inserted.push(direction.input);
        }
        hops.for_each(|hop| self.hops.hold(hop));
        if let Some(live) = self.table.get_mut(session.index, session.generation) {
            live.directions = directions.map(Some);
        }
        Ok(())
    }

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
            self.cut(session, now)?;
            self.maps.barrier()?;
            return Err(error.into());
        }
        Ok(())
    }

    fn move_entries(&mut self, session: SessionRef, to: &[(usize, Direction)]) -> Result<(), GateError> {
        let mut moving = Vec::new();
        for (side, direction) in to {
            moving.extend(self.pick_up(session, *side, *direction)?);
        }
        self.maps.barrier()?;
        moving.into_iter().try_for_each(|found| self.put_down(found))
    }

    /// Removes one entry, to be put down as `direction`.
    fn pick_up(
        &mut self,
        session: SessionRef,
        side: usize,
        direction: Direction,
    ) -> Result<Option<Moving>, GateError> {
        let Some(live) = self.table.get(session.index, session.generation) else { return Ok(None) };
        let Some(before) = live.directions.get(side).copied().flatten() else { return Ok(None) };
        let Some(old) = self.maps.take_flow(&before.input)? else { return Ok(None) };
        let from = if side == 0 { Leg::Client } else { Leg::Connector };
        let fresh = entry(&direction, session, from);
        let entry = FlowEntry { packets: old.packets, bytes: old.bytes, ..fresh };
        Ok(Some(Moving { session, side, direction, entry }))
    }

    fn put_down(&mut self, moving: Moving) -> Result<(), GateError> {
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

    pub(super) fn revoke(&mut self, session: SessionRef, now: u64) -> Result<Option<Ended>, GateError> {
        if self.table.get(session.index, session.generation).is_none_or(|live| live.is_ended) {
            return Ok(None);
        }
        let ended = self.cut(session, now)?;
        self.maps.barrier()?;
        Ok(Some(ended))
    }

    pub(super) fn revoke_all(&mut self, sessions: &[SessionRef], now: u64) -> Result<Vec<Ended>, GateError> {
        let live = |session: &&SessionRef| {
            self.table.get(session.index, session.generation).is_some_and(|live| !live.is_ended)
        };
        let live: Vec<_> = sessions.iter().filter(live).copied().collect();
        let ended = self.cut_all(live, now);
        // Also for those that were ended before, and not waited for.
        self.maps.barrier()?;
        ended
    }

    pub(super) fn revoke_identity(&mut self, identity: u32, now: u64) -> Result<Vec<Ended>, GateError> {
        let stored = self.next_epoch(identity);
        if let Err(error) = &stored {
            tracing::error!(error = error as &dyn std::error::Error, "a person's epoch cannot be stored");
        }
        let sessions: Vec<_> = self
            .table
            .iter()
            .filter(|(_, live)| live.identity == identity && !live.is_ended)
            .map(|(index, live)| SessionRef { index, generation: live.generation })
            .collect();
        let ended = self.cut_all(sessions, now)?;
        self.maps.barrier()?;
        // Sessions that were granted on the old epoch meanwhile would live.
        stored.map(|()| ended)
    }

    pub(super) fn expire(&mut self, now: u64) -> Result<Vec<Ended>, GateError> {
        let over: Vec<_> = self
            .table
            .iter()
            .filter(|(_, live)| live.expires <= now || live.is_ended)
            .map(|(index, live)| SessionRef { index, generation: live.generation })
            .collect();
        if over.is_empty() {
            return Ok(Vec::new());
        }
        let reported: BTreeSet<_> = self.sessions().into_iter().map(|(session, _)| session).collect();
        let mut ended = self.cut_all(over, now)?;
        ended.retain(|ended| reported.contains(&ended.session));
        self.maps.barrier()?;
        Ok(ended)
    }

    /// Cuts every one of them, whatever becomes of the others.
    fn cut_all(&mut self, sessions: Vec<SessionRef>, now: u64) -> Result<Vec<Ended>, GateError> {
        let mut result = Ok(Vec::new());
        for session in sessions {
            match (self.cut(session, now), &mut result) {
                (Ok(ended), Ok(all)) => all.push(ended),
                (Err(error), Ok(_)) => result = Err(error),
                (_, Err(_)) => {}
            }
        }
        result
    }

    /// Stores another generation and removes the flows; either alone ends the session. Where neither can be done, the
    /// person's epoch ends it. Its index stays out of use until both are.
    fn cut(&mut self, session: SessionRef, now: u64) -> Result<Ended, GateError> {
        let SessionRef { index, generation } = session;
        let stored = self.next_generation(session);
        let mut usage = [Usage::default(); 2];
        let mut removed = Ok(());
        let (mut identity, mut directions) = (0, [None; 2]);
        if let Some(live) = self.table.get_mut(index, generation) {
            live.is_ended = true;
            (identity, directions) = (live.identity, live.directions);
        }
        for (side, place) in directions.iter().enumerate() {
            let Some(direction) = place else { continue };
            match self.maps.take_flow(&direction.input) {
                Ok(entry) => {
                    if let (Some(entry), Some(usage)) = (entry, usage.get_mut(side)) {
                        *usage = Usage { packets: entry.packets, bytes: entry.bytes };
                    }
                    if let Some(onward) = direction.onward {
                        self.hops.release(onward.hop);
                    }
                    if let Some(live) = self.table.get_mut(index, generation)
                        && let Some(place) = live.directions.get_mut(side)
                    {
                        *place = None;
                    }
                }
                Err(error) => removed = Err(error),
            }
        }
        for (past, usage) in self.past.iter_mut().zip(usage) {
            past.packets += usage.packets;
            past.bytes += usage.bytes;
        }
        match (stored, removed) {
            (Ok(()), Ok(())) => self.table.remove(index, now),
            (Ok(()), Err(error)) | (Err(error), Ok(())) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, ?session, "a session is ended, and not yet out of the gate's maps");
            }
            (Err(error), Err(_)) => {
                let source = &error as &dyn std::error::Error;
                tracing::error!(
                    error = source,
                    ?session,
                    "a session cannot be ended; ending all of its person's"
                );
                if self.next_epoch(identity).is_err() {
                    if let Some(live) = self.table.get_mut(index, generation) {
                        live.is_ended = false;
                    }
                    return Err(error);
                }
            }
        }
        Ok(Ended { session, identity, usage })
    }

    fn next_generation(&mut self, session: SessionRef) -> Result<(), GateError> {
        let now = self.maps.session(session.index)?;
        // Another already, where only the flows were left to be removed.
        if now.generation != session.generation {
            return Ok(());
        }
        let over = Session { generation: now.generation.wrapping_add(1), expires: 0, ..now };
        self.maps.set_session(session.index, &over)
    }

    fn next_epoch(&mut self, identity: u32) -> Result<(), GateError> {
        let epoch = self.maps.epoch(identity)?;
        self.maps.set_epoch(identity, epoch.wrapping_add(1))
    }

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

    /// What the network says now of each of [`destinations`](Self::destinations). Where it says that there is no way,
    /// packets go on as before.
    pub(super) fn set_hops(
        &mut self,
        found: HashMap<(IpAddr, IpAddr), Resolved>,
        now: u64,
    ) -> Result<(), GateError> {
        let mut moves = Vec::new();
        let mut written = false;
        for (session, side, direction) in self.placed() {
            let Some(onward) = direction.onward else { continue };
            let Some(Ok((key, hop))) = found.get(&ends(&onward.output)) else { continue };
            if self.hops.key(onward.hop).is_some_and(|now| now == *key) {
                written |= self.write_hop(onward.hop, *key, hop)?;
            } else {
                moves.push((session, side, direction.input, onward, *key, *hop));
            }
        }
        let (mut moving, mut failed) = (Vec::new(), Vec::new());
        for (session, side, input, onward, key, hop) in moves {
            let Ok((number, _)) = self.hops.place(&key, &hop) else { continue };
            written |= self.write_hop(number, key, &hop)?;
            if number == onward.hop {
                continue;
            }
            let direction = Direction { input, onward: Some(Onward { hop: number, ..onward }) };
            match self.pick_up(session, side, direction) {
                Ok(found) => moving.extend(found),
                Err(error) => failed.push((session, error)),
            }
        }
        if written || !moving.is_empty() {
            self.maps.barrier()?;
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
        for (session, error) in failed {
            let error = &error as &dyn std::error::Error;
            tracing::error!(
                error,
                ?session,
                "a session whose next hop changed could not be written and is ended"
            );
            self.cut(session, now)?;
        }
        self.maps.barrier()
    }

    /// Writes the next hop unless it is written like that; whether it was.
    fn write_hop(&mut self, number: u32, key: HopKey, hop: &Hop) -> Result<bool, GateError> {
        if self.hops.place(&key, hop).is_ok_and(|(placed, changed)| placed == number && !changed) {
            return Ok(false);
        }
        self.maps.set_hop(number, hop)?;
        self.hops.written(number, key, *hop);
        if let Some(keeper) = &self.keeper
            && let Err(error) = keeper(key.interface, key.neighbour)
        {
            tracing::warn!(%error, neighbour = %key.neighbour, "a next hop's address is not kept up to date");
        }
        Ok(true)
    }

    fn directions(&self) -> impl Iterator<Item = Direction> {
        self.placed().into_iter().map(|(_, _, direction)| direction)
    }

    fn placed(&self) -> Vec<(SessionRef, usize, Direction)> {
        let mut placed = Vec::new();
        for (index, live) in self.table.iter().filter(|(_, live)| !live.is_ended) {
            for (side, direction) in live.directions.iter().enumerate() {
                let session = SessionRef { index, generation: live.generation };
                placed.extend(direction.map(|direction| (session, side, direction)));
            }
        }
        placed
    }

    pub(super) fn live(&self, session: SessionRef, now: u64) -> Result<&Live, RelayError> {
        let live = self.table.get(session.index, session.generation);
        live.filter(|live| !live.is_ended && now < live.expires).ok_or(RelayError::Over)
    }

    /// The grant's two flows, if they may be.
    fn flows_of(&self, grant: &FlowGrant, now: u64) -> Result<[Flow; 2], RelayError> {
        let [client, connector] = self.checked(grant, now)?;
        if client.family != connector.family {
            return Err(Detour::Families.into());
        }
        Ok([client, connector])
    }

    /// The grant's two flows, which need not be of one family.
    pub(super) fn checked(&self, grant: &FlowGrant, now: u64) -> Result<[Flow; 2], RelayError> {
        let [client, connector] = [grant.client.flow(), grant.connector.flow()];
        let is_one_family = |end: &PeerAddress| {
            end.local.ip().to_canonical().is_ipv4() == end.remote.ip().to_canonical().is_ipv4()
        };
        if !is_one_family(&grant.client) || !is_one_family(&grant.connector) {
            return Err(Detour::Families.into());
        }
        if client == connector {
            return Err(RelayError::Reflection);
        }
        for flow in [&client, &connector] {
            if !self.served.contains(&flow.local_port) {
                return Err(RelayError::NotServed);
            }
            if (flow.remote, flow.remote_port) == (flow.local, flow.local_port) {
                return Err(RelayError::Reflection);
            }
            if self.maps.peer_until(flow)? > now {
                return Err(RelayError::TupleInUse);
            }
        }
        Ok([client, connector])
    }

    /// The number of the next hop of packets that leave on `output`, which is written.
    fn hop_to(&mut self, output: &Flow) -> Result<u32, RelayError> {
        let (from, to) = ends(output);
        let (key, hop) = match self.network.resolve(from, to).map_err(GateError::Netlink)? {
            Ok(found) => found,
            Err((Detour::Local, _)) if self.served.contains(&output.remote_port) => {
                return Err(RelayError::Reflection);
            }
            Err((detour, missing)) => {
                self.asked = match (&self.keeper, missing) {
                    (Some(keeper), Some(key)) => keeper(key.interface, key.neighbour).is_ok(),
                    _ => false,
                };
                return Err(detour.into());
            }
        };
        let (number, _) = self.hops.place(&key, &hop)?;
        if self.write_hop(number, key, &hop)? {
            // The slot that counted until now must be out of use before it is written again.
            self.maps.barrier()?;
        }
        Ok(number)
    }

    /// Whether the neighbour that was missing is being looked for.
    pub(super) fn has_asked(&self) -> bool {
        self.asked
    }
}

pub(super) fn ends(flow: &Flow) -> (IpAddr, IpAddr) {
    (flow.local.into(), flow.remote.into())
}

//! The relay's books: what an earlier process has left in the maps, and what is granted. A grant is written in the order session, next
//! hops, flows: a crash in between leaves less than was granted.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use portcullis_common::Flow;
use portcullis_common::layout::{Hop, IDENTITIES, SESSIONS, Session};

use super::hops::{Detour, HopKey, HopTable};
use super::maps::RelayMaps;
use super::sessions::{Direction, Live, Onward, SessionTable};
use super::{Ended, FlowGrant, IdentityRef, Keeper, Leg, Network, RelayError, SessionRef, Usage, entry};
use crate::gate::{GateError, PeerAddress};

pub(super) struct State {
    pub(super) maps: Box<dyn RelayMaps>,
    pub(super) network: Box<dyn Network>,
    pub(super) served: Vec<u16>,
    pub(super) table: SessionTable,
    pub(super) hops: HopTable,
    /// What sessions that are over have carried.
    pub(super) past: [Usage; 2],
    /// Those that have expired of late, and until when they are remembered.
    pub(super) expired: Vec<(u64, Ended)>,
    pub(super) keeper: Option<Keeper>,
    asked: bool,
    /// Some CPU may still act on what the maps held before.
    is_stale: bool,
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
            expired: Vec::new(),
            keeper: None,
            asked: false,
            // Of what the earlier process ended last, too.
            is_stale: true,
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
            state.wait_for_cpus()?;
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
                    self.removes();
                    self.maps.take_flow(input)?;
                }
                if !inserted.is_empty() {
                    self.wait_for_cpus()?;
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

    /// Writes the next hop unless it is written like that. True: flows use it, so that some CPU may still be at the slot
    /// which counted until now, and has to be waited for before that is written again.
    pub(super) fn write_hop(&mut self, number: u32, key: HopKey, hop: &Hop) -> Result<bool, GateError> {
        if self.hops.place(&key, hop).is_ok_and(|(placed, changed)| placed == number && !changed) {
            return Ok(false);
        }
        let is_read = self.hops.is_used(number);
        if is_read {
            self.removes();
        }
        self.maps.set_hop(number, hop)?;
        self.hops.written(number, key, *hop);
        if let Some(keeper) = &self.keeper
            && let Err(error) = keeper(key.interface, key.neighbour)
        {
            tracing::warn!(%error, neighbour = %key.neighbour, "a next hop's address is not kept up to date");
        }
        Ok(is_read)
    }

    pub(super) fn live(&self, session: SessionRef, now: u64) -> Result<&Live, RelayError> {
        let live = self.table.get(session.index, session.generation);
        live.filter(|live| !live.is_ended && now < live.expires).ok_or(RelayError::Over)
    }

    /// The grant's two flows, if they may be.
    pub(super) fn flows_of(&self, grant: &FlowGrant, now: u64) -> Result<[Flow; 2], RelayError> {
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
    pub(super) fn hop_to(&mut self, output: &Flow) -> Result<u32, RelayError> {
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
            self.wait_for_cpus()?;
        }
        Ok(number)
    }

    /// Something is removed from the maps, or ended, on which a CPU may be acting.
    pub(super) const fn removes(&mut self) {
        self.is_stale = true;
    }

    /// Returns when no CPU acts on what was removed, which takes milliseconds, and only where something was since the last
    /// time that this succeeded.
    pub(super) fn wait_for_cpus(&mut self) -> Result<(), GateError> {
        if self.is_stale {
            self.maps.barrier()?;
            self.is_stale = false;
        }
        Ok(())
    }

    /// Whether the neighbour that was missing is being looked for.
    pub(super) fn has_asked(&self) -> bool {
        self.asked
    }
}

pub(super) fn ends(flow: &Flow) -> (IpAddr, IpAddr) {
    (flow.local.into(), flow.remote.into())
}

//! The relay's books over maps whose writes fail when a test says so.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use portcullis_common::layout::{FlowEntry, Hop, Session, Settings};
use portcullis_common::{Address, Family, Flow, SipKey};

use super::hops::HopKey;
use super::maps::RelayMaps;
use super::state::State;
use super::{
    Ended, FlowGrant, Leg, Network, Placement, Relay, RelayError, Resolved, Revoked, SessionRef, Way,
};
use crate::gate::{GateError, PeerAddress};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Write {
    Session,
    Epoch,
    Insert,
    Take,
    Barrier,
}

type Key = (IpAddr, IpAddr, u16, u16);

fn key(flow: &Flow) -> Key {
    (flow.local.into(), flow.remote.into(), flow.local_port, flow.remote_port)
}

#[derive(Default)]
struct Memory {
    sessions: HashMap<u32, Session>,
    epochs: HashMap<u32, u64>,
    flows: BTreeMap<Key, (Flow, FlowEntry)>,
    slots: HashMap<u32, u32>,
    hops: HashMap<u32, Hop>,
    failing: BTreeSet<Write>,
    /// How long the CPUs are waited for.
    barrier: Duration,
    /// In the order in which they happened.
    log: Vec<Write>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Memory>>);

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap()
    }

    fn write(&self, write: Write) -> Result<MutexGuard<'_, Memory>, GateError> {
        let mut memory = self.memory();
        if memory.failing.contains(&write) {
            return Err(GateError::map("TEST", "planted"));
        }
        memory.log.push(write);
        Ok(memory)
    }

    /// As the kernel's program asks.
    fn passes(&self, flow: &Flow, now: u64) -> bool {
        let memory = self.memory();
        let Some((_, entry)) = memory.flows.get(&key(flow)) else { return false };
        let Some(session) = memory.sessions.get(&entry.session) else { return false };
        let epoch = memory.epochs.get(&session.identity).copied().unwrap_or(0);
        session.generation == entry.generation && session.epoch == epoch && now < session.expires
    }
}

impl RelayMaps for Shared {
    fn session(&self, index: u32) -> Result<Session, GateError> {
        Ok(self.memory().sessions.get(&index).copied().unwrap_or_default())
    }

    fn set_session(&mut self, index: u32, session: &Session) -> Result<(), GateError> {
        self.write(Write::Session)?.sessions.insert(index, *session);
        Ok(())
    }

    fn epoch(&self, identity: u32) -> Result<u64, GateError> {
        Ok(self.memory().epochs.get(&identity).copied().unwrap_or(0))
    }

    fn set_epoch(&mut self, identity: u32, epoch: u64) -> Result<(), GateError> {
        self.write(Write::Epoch)?.epochs.insert(identity, epoch);
        Ok(())
    }

    fn insert_flow(&mut self, input: &Flow, entry: &FlowEntry) -> Result<(), GateError> {
        let mut memory = self.write(Write::Insert)?;
        if memory.flows.contains_key(&key(input)) {
            return Err(GateError::Taken { map: "TEST" });
        }
        memory.flows.insert(key(input), (*input, *entry));
        Ok(())
    }

    fn take_flow(&mut self, input: &Flow) -> Result<Option<FlowEntry>, GateError> {
        Ok(self.write(Write::Take)?.flows.remove(&key(input)).map(|(_, entry)| entry))
    }

    fn flow(&self, input: &Flow) -> Result<Option<FlowEntry>, GateError> {
        Ok(self.memory().flows.get(&key(input)).map(|(_, entry)| *entry))
    }

    fn flows(&self) -> Result<Vec<(Flow, FlowEntry)>, GateError> {
        Ok(self.memory().flows.values().copied().collect())
    }

    fn hop(&self, number: u32) -> Result<Hop, GateError> {
        Ok(self.memory().hops.get(&number).copied().unwrap_or_default())
    }

    fn set_hop(&mut self, number: u32, hop: &Hop) -> Result<(), GateError> {
        let mut memory = self.memory();
        *memory.slots.entry(number).or_default() += 1;
        memory.hops.insert(number, *hop);
        Ok(())
    }

    fn peer_until(&self, _: &Flow) -> Result<u64, GateError> {
        Ok(0)
    }

    fn settings(&self) -> Result<Settings, GateError> {
        Ok(Settings { seed: SipKey::from_bytes([7; 16]), ..Settings::default() })
    }

    fn barrier(&self) -> Result<(), GateError> {
        let barrier = self.write(Write::Barrier)?.barrier;
        std::thread::sleep(barrier);
        Ok(())
    }
}

/// Every destination is its own neighbour, all with this link-layer address.
struct Flat([u8; 6]);

impl Network for Flat {
    fn resolve(&mut self, _: IpAddr, to: IpAddr) -> std::io::Result<Resolved> {
        let hop = Hop { ifindex: 1, mtu: 1500, destination: self.0, ..Hop::default() };
        Ok(Ok((HopKey { interface: 1, neighbour: to }, hop)))
    }
}

/// A relay that keeps its maps in memory, for tests of those who use one: what it lets through passes nowhere.
pub(crate) fn in_memory(served: Vec<u16>) -> (Relay, Planted) {
    let maps = Shared::default();
    let state = State::adopt(Box::new(maps.clone()), Box::new(Flat([0; 6])), served, 0).unwrap();
    (Relay { state: Arc::new(Mutex::new(state)), watch: Arc::default() }, Planted(maps))
}

/// What is wrong with a relay [in memory](in_memory).
pub(crate) struct Planted(Shared);

impl Planted {
    /// Nothing can be revoked while it is broken.
    pub(crate) fn break_it(&self, broken: bool) {
        let writes = [Write::Session, Write::Epoch, Write::Take];
        self.0.memory().failing = writes.into_iter().filter(|_| broken).collect();
    }

    /// The CPUs are waited for so long from now on, as they are on a real machine.
    pub(crate) fn slow_down(&self, barrier: Duration) {
        self.0.memory().barrier = barrier;
    }

    /// How often the CPUs were waited for.
    pub(crate) fn barriers(&self) -> usize {
        self.0.memory().log.iter().filter(|write| **write == Write::Barrier).count()
    }
}

struct World {
    maps: Shared,
    state: State,
    session: SessionRef,
    grant: FlowGrant,
    flows: [Flow; 2],
}

const LIFETIME: Duration = Duration::from_secs(60);

fn world() -> World {
    let maps = Shared::default();
    let mut state = adopt(&maps, 0);
    let session = state.open_session(state.identity("local:alice").unwrap(), LIFETIME, 0).unwrap();
    let end = |last: u8| PeerAddress {
        local: SocketAddr::from(([192, 0, 2, 1], 443)),
        remote: SocketAddr::from(([192, 0, 2, last], 5_000)),
    };
    let grant = FlowGrant { session, client: end(2), connector: end(3) };
    state.install(&grant, 0).unwrap();
    let flows = [grant.client.flow(), grant.connector.flow()];
    assert!(flows.iter().all(|flow| maps.passes(flow, 1)));
    World { maps, state, session, grant, flows }
}

fn adopt(maps: &Shared, now: u64) -> State {
    State::adopt(Box::new(maps.clone()), Box::new(Flat([0; 6])), vec![443], now).unwrap()
}

impl World {
    fn passes(&self) -> bool {
        self.flows.iter().any(|flow| self.maps.passes(flow, 1))
    }

    fn fail(&self, writes: &[Write]) {
        self.maps.memory().failing = writes.iter().copied().collect();
    }
}

#[test]
fn a_revocation_stores_the_generation_first_and_ends_with_a_barrier() {
    let mut world = world();
    world.maps.memory().log.clear();
    world.state.revoke(world.session, 1).unwrap().unwrap();
    let log = world.maps.memory().log.clone();
    assert_eq!(log, [Write::Session, Write::Take, Write::Take, Write::Barrier]);
    assert!(world.maps.memory().flows.is_empty());
}

/// Whichever of the writes fail, an answer without an error means that nothing passes.
#[test]
fn a_revocation_that_succeeds_is_one_whatever_fails() {
    let writes = [Write::Session, Write::Epoch, Write::Take];
    for chosen in 0..8u32 {
        let mut world = world();
        let failing: Vec<_> = writes.iter().enumerate().filter(|(at, _)| chosen >> at & 1 == 1).collect();
        let failing: Vec<_> = failing.into_iter().map(|(_, write)| *write).collect();
        world.fail(&failing);
        let result = world.state.revoke(world.session, 1);
        assert_eq!(result.is_ok(), !world.passes(), "{failing:?}");
        assert_eq!(result.is_err(), chosen == 7, "{failing:?}");

        // Once the maps can be written again, what was left goes; and only then is the index free.
        world.fail(&[]);
        if chosen == 7 {
            assert!(world.state.revoke(world.session, 2).unwrap().is_some());
        }
        world.state.expire(2).unwrap();
        assert!(!world.passes());
        let memory = world.maps.memory();
        assert!(memory.flows.is_empty(), "{failing:?}");
        assert_ne!(memory.sessions[&world.session.index].generation, world.session.generation);
    }
}

/// The clock and one of the ends, which has a clock of its own, may end a session at the same time.
#[test]
fn what_an_expired_session_has_carried_is_told_to_who_ends_it_too() {
    let mut world = world();
    let (session, client) = (world.session, key(&world.flows[0]));
    if let Some((_, entry)) = world.maps.memory().flows.get_mut(&client) {
        (entry.packets, entry.bytes) = (3, 300);
    }
    let over = u64::try_from(LIFETIME.as_nanos()).unwrap();
    let expired = world.state.expire(over).unwrap();
    let told =
        |ended: &[Ended]| ended.iter().map(|ended| (ended.session, ended.usage[0].bytes)).collect::<Vec<_>>();
    assert_eq!(told(&expired), [(session, 300)]);
    assert_eq!(told(&world.state.revoke_all(&[session], over + 1).unwrap().ended), [(session, 300)]);
    assert_eq!(told(&world.state.revoke_all(&[session], over + 2).unwrap().ended), [], "once");
}

#[test]
fn what_an_expired_session_has_carried_is_forgotten_after_a_while() {
    let mut world = world();
    let over = u64::try_from(LIFETIME.as_nanos()).unwrap();
    assert_eq!(world.state.expire(over).unwrap().len(), 1);
    assert_eq!(world.state.expired.len(), 1);
    world.state.expire(over + 11_000_000_000).unwrap();
    assert!(world.state.expired.is_empty());
}

#[test]
fn a_revocation_without_a_barrier_is_an_error() {
    let mut world = world();
    world.fail(&[Write::Barrier]);
    assert!(world.state.revoke(world.session, 1).is_err());
    assert!(!world.passes());
}

/// Whoever asks for sessions and ends them at once makes nobody wait.
#[test]
fn nobody_waits_for_the_cpus_where_nothing_could_pass_unless_an_earlier_wait_has_failed() {
    let mut world = world();
    let identity = world.state.identity("local:bob").unwrap();
    let [bare, other] = [(); 2].map(|()| world.state.open_session(identity, LIFETIME, 0).unwrap());
    world.state.revoke(bare, 1).unwrap().unwrap();
    assert_eq!(
        world.maps.memory().log.last(),
        Some(&Write::Barrier),
        "for what an earlier process has ended"
    );
    let [bare, again] = [(); 2].map(|()| world.state.open_session(identity, LIFETIME, 1).unwrap());
    world.maps.memory().log.clear();
    assert_eq!(world.state.revoke_all(&[bare, other, bare], 1).unwrap().ended.len(), 2);
    assert_eq!(world.maps.memory().log, [Write::Session, Write::Session]);

    world.fail(&[Write::Barrier]);
    assert!(world.state.revoke_all(&[world.session], 1).is_err());
    assert!(world.state.revoke_all(&[again], 1).is_err(), "the other's packets may still pass");
    world.fail(&[]);
    world.maps.memory().log.clear();
    assert!(world.state.revoke_all(&[world.session], 1).unwrap().ended.is_empty());
    assert_eq!(
        world.maps.memory().log,
        [Write::Barrier],
        "it is waited for before anybody is told that it is over"
    );
    world.state.revoke_all(&[world.session], 1).unwrap();
    assert_eq!(world.maps.memory().log.len(), 1);
}

#[test]
fn one_session_that_cannot_be_ended_says_nothing_of_the_others() {
    let mut world = world();
    let identity = world.state.identity("local:bob").unwrap();
    let over = world.state.open_session(identity, LIFETIME, 0).unwrap();
    world.state.revoke(over, 1).unwrap().unwrap();
    world.fail(&[Write::Session, Write::Epoch, Write::Take]);
    let Revoked { ended, failed } = world.state.revoke_all(&[over, world.session], 1).unwrap();
    assert_eq!((ended.len(), failed.len()), (0, 1));
    assert_eq!(failed[0].0, world.session);
    world.fail(&[]);
    let revoked = world.state.revoke_all(&[world.session], 1).unwrap();
    assert_eq!((revoked.ended.len(), revoked.failed.len(), world.passes()), (1, 0, false));
}

#[test]
fn a_person_is_cut_off_session_by_session_where_the_epoch_cannot_be_stored_and_it_is_said() {
    let mut world = world();
    world.fail(&[Write::Epoch]);
    let identity = world.state.identity("local:alice").unwrap();
    assert!(world.state.revoke_identity(identity.index, 1).is_err());
    assert!(!world.passes());
}

/// Waiting for the CPUs takes tens of milliseconds, and everybody who opens a session would wait.
#[test]
fn only_a_next_hop_that_flows_use_is_waited_for() {
    let mut world = world();
    assert_eq!(world.maps.memory().log, [Write::Session, Write::Insert, Write::Insert], "nobody used them");

    world.state.network = Box::new(Flat([2; 6]));
    let identity = world.state.identity("local:bob").unwrap();
    let session = world.state.open_session(identity, LIFETIME, 0).unwrap();
    let mut grant = FlowGrant { session, ..world.grant };
    grant.client.remote.set_port(6_000);
    grant.connector.remote.set_port(6_000);
    world.maps.memory().log.clear();
    world.state.install(&grant, 0).unwrap();
    let log = world.maps.memory().log.clone();
    assert_eq!(log, [Write::Barrier, Write::Barrier, Write::Insert, Write::Insert], "both were another's");
}

#[test]
fn half_a_grant_is_none() {
    let mut world = world();
    let identity = world.state.identity("local:bob").unwrap();
    let session = world.state.open_session(identity, LIFETIME, 0).unwrap();
    let mut grant = FlowGrant { session, ..world.grant };
    grant.client.remote.set_port(6_000);
    assert!(world.state.install(&grant, 0).is_err(), "the connector's side is another session's");
    let (client, count) = (grant.client.flow(), world.maps.memory().flows.len());
    assert_eq!((world.maps.memory().flows.contains_key(&key(&client)), count), (false, 2));
    assert_eq!(*world.maps.memory().log.last().unwrap(), Write::Barrier, "before its memory is used again");
    assert!(world.passes(), "the other's is as it was");
}

/// Between a removal and the next insertion, every CPU has let go of what was removed.
#[test]
fn memory_of_a_removed_entry_is_not_used_before_a_barrier() {
    let mut world = world();
    world.maps.memory().log.clear();
    let old = world.grant.client.flow();
    let mut grant = world.grant;
    grant.client.remote.set_port(6_000);
    world.state.replace_leg(Leg::Client, &old, &grant, 1).unwrap();
    let log = world.maps.memory().log.clone();
    assert_eq!(log, [Write::Take, Write::Take, Write::Barrier, Write::Insert, Write::Insert]);
    assert!(!world.maps.passes(&old, 1));
    assert!(world.maps.passes(&grant.client.flow(), 1));
    assert_eq!(world.maps.memory().flows[&key(&world.flows[1])].1.destination_port, 6_000);
}

#[test]
fn what_went_to_the_nodes_socket_returns_to_the_gate_with_its_counts() {
    let mut world = world();
    let (client, grant) = (world.flows[0], world.grant);
    let entry = |world: &World| world.maps.memory().flows[&key(&client)].1;
    world.state.install_to_host(&grant, 1).unwrap();
    assert!(entry(&world).is_to_host());
    if let Some((_, entry)) = world.maps.memory().flows.get_mut(&key(&client)) {
        entry.packets = 3;
    }
    world.maps.memory().log.clear();
    let back = Placement { grant, to_host: false };
    assert!(matches!(world.state.place_all(&[back], 1)[..], [Ok(Way::Gate)]));
    let log = world.maps.memory().log.clone();
    // Behind what it takes to find the next hops.
    assert!(
        log.ends_with(&[Write::Take, Write::Take, Write::Barrier, Write::Insert, Write::Insert]),
        "{log:?}"
    );
    assert_eq!((entry(&world).is_to_host(), entry(&world).packets), (false, 3));
    assert!(world.passes());
}

/// Somebody's moves must not cost others a wait each, and one may go to where another was.
#[test]
fn many_are_placed_behind_one_barrier_and_what_is_wrong_with_one_is_its_own() {
    let mut world = world();
    let identity = world.state.identity("local:bob").unwrap();
    let mut granted = |port: u16| {
        let session = world.state.open_session(identity, LIFETIME, 0).unwrap();
        let mut grant = FlowGrant { session, ..world.grant };
        grant.client.remote.set_port(port);
        grant.connector.remote.set_port(port);
        grant
    };
    let (mut swaps, mut fresh, mut rejected) = (granted(6_000), granted(7_000), granted(8_000));
    let at = |grant| Placement { grant, to_host: false };
    assert!(world.state.place_all(&[at(swaps), at(rejected)], 1).iter().all(Result::is_ok));
    world.maps.memory().log.clear();
    // Two change places, a third is new where one of them was, and a fourth may not be where somebody stays.
    let mut mine = world.grant;
    std::mem::swap(&mut mine.client, &mut swaps.client);
    fresh.connector = swaps.connector;
    swaps.connector.remote.set_port(6_001);
    let before = rejected;
    rejected.client = world.grant.connector;
    let results = world.state.place_all(&[at(rejected), at(fresh), at(mine), at(swaps)], 1);
    assert!(matches!(results[0], Err(RelayError::TupleInUse)), "{results:?}");
    assert!(results[1..].iter().all(|way| matches!(way, Ok(Way::Gate))), "{results:?}");
    let log = world.maps.memory().log.clone();
    assert_eq!(log.iter().filter(|write| **write == Write::Barrier).count(), 1, "{log:?}");
    let first_insert = log.iter().position(|write| *write == Write::Insert).unwrap();
    assert_eq!(log[first_insert - 1], Write::Barrier);
    for grant in [before, fresh, mine, swaps] {
        let placed = world.state.placed_at(grant.session).unwrap();
        assert_eq!((placed.client, placed.connector), (grant.client, grant.connector));
        for flow in [grant.client.flow(), grant.connector.flow()] {
            assert_eq!(world.maps.memory().flows[&key(&flow)].1.session, grant.session.index);
            assert!(world.maps.passes(&flow, 1));
        }
    }
    // Again, and nothing is touched.
    world.maps.memory().log.clear();
    assert!(world.state.place_all(&[at(mine), at(fresh)], 1).iter().all(Result::is_ok));
    assert_eq!(world.maps.memory().log, []);
    for grant in [before, fresh, mine, swaps] {
        world.state.revoke(grant.session, 1).unwrap().unwrap();
    }
    assert_eq!((world.state.hops.len(), world.maps.memory().flows.len()), (0, 0), "no next hop is held");
}

#[test]
fn of_many_that_move_those_that_cannot_be_written_end() {
    for failing in [Write::Insert, Write::Take, Write::Barrier] {
        let mut world = world();
        let identity = world.state.identity("local:bob").unwrap();
        let session = world.state.open_session(identity, LIFETIME, 0).unwrap();
        let mut fresh = FlowGrant { session, ..world.grant };
        fresh.client.remote.set_port(7_000);
        fresh.connector.remote.set_port(7_000);
        let mut moved = world.grant;
        moved.client.remote.set_port(6_000);
        world.fail(&[failing]);
        let at = |grant| Placement { grant, to_host: false };
        let results = world.state.place_all(&[at(moved), at(fresh)], 1);
        assert!(results[0].is_err() && !world.passes(), "{failing:?}");
        assert!(!world.maps.passes(&moved.client.flow(), 1));
        assert_eq!(results[1].is_ok(), failing == Write::Take);
        world.fail(&[]);
        assert!(world.state.revoke_all(&[world.session, session], 1).unwrap().failed.is_empty());
        world.state.expire(1).unwrap();
        assert!(world.maps.memory().flows.is_empty() && world.state.hops.len() == 0, "{failing:?}");
    }
}

#[test]
fn a_move_that_cannot_be_written_ends_the_session() {
    let mut world = world();
    let old = world.grant.client.flow();
    let mut grant = world.grant;
    grant.client.remote.set_port(6_000);
    world.fail(&[Write::Insert]);
    assert!(world.state.replace_leg(Leg::Client, &old, &grant, 1).is_err());
    assert!(!world.passes() && world.state.sessions().is_empty());
}

#[test]
fn what_an_earlier_process_left_over_is_removed_and_the_rest_adopted() {
    let mut world = world();
    let identity = world.state.identity("local:bob").unwrap();
    let gone = world.state.open_session(identity, Duration::from_nanos(5), 0).unwrap();
    let mut grant = FlowGrant { session: gone, ..world.grant };
    grant.client.remote.set_port(6_000);
    grant.connector.remote.set_port(6_000);
    world.state.install(&grant, 0).unwrap();
    let mut stray = world.flows[0];
    stray.remote = Address::v4([192, 0, 2, 99]);
    assert_eq!(stray.family, Family::V4);
    let entry = FlowEntry { generation: 77, session: world.session.index, ..FlowEntry::default() };
    world.maps.memory().flows.insert(key(&stray), (stray, entry));

    let state = adopt(&world.maps, 10);
    assert_eq!(state.sessions(), [(world.session, state.identity("local:alice").unwrap().index)]);
    let left: BTreeSet<_> = world.maps.memory().flows.keys().map(|key| key.3).collect();
    assert_eq!((left, world.maps.memory().flows.len()), (BTreeSet::from([5_000]), 2));
    assert!(world.passes());
}

/// A next hop that changes is written once for all flows that use it; one that moves is another number.
#[test]
fn next_hops_are_rewritten_or_exchanged() {
    let mut world = world();
    let (from, to) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 3]));
    let near = HopKey { interface: 1, neighbour: to };
    let hop = |mac: u8| Hop { ifindex: 1, mtu: 1500, destination: [mac; 6], ..Hop::default() };
    let number = |world: &World| world.maps.memory().flows[&key(&world.flows[0])].1.hop;
    let before = number(&world);
    world.state.set_hops(HashMap::from([((from, to), Ok((near, hop(5))))]), 1).unwrap();
    assert_eq!(world.maps.hop(before).unwrap(), hop(5));
    assert_eq!(number(&world), before);
    world.maps.memory().log.clear();
    let router = HopKey { interface: 1, neighbour: IpAddr::from([192, 0, 2, 254]) };
    world.state.set_hops(HashMap::from([((from, to), Ok((router, hop(6))))]), 1).unwrap();
    assert_ne!(number(&world), before);
    assert_eq!(world.maps.hop(number(&world)).unwrap(), hop(6));
    assert_eq!(world.maps.memory().log, [Write::Take, Write::Barrier, Write::Insert]);
    assert!(world.passes());
}

//! Both halves and the table on a network that loses, doubles, delays and overtakes, behind address translators that
//! forget, beside a peer that cheats.
//!
//! ```text
//! client    192.0.2.(10+i) ─┐ translator (port changes)                 cheat 192.0.2.66: has a session of its own,
//!                           ├── node 198.51.100.1:443                   sees what ends send and what is sent to it,
//! connector 192.0.2.(10+i) ─┘                                           and can send from any address
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::super::end::{End, EndInput, EndOutput, GIVE_UP};
use super::super::node::{Action, CHALLENGE_LIFETIME, Onward};
use super::super::tuple::Pair;
use super::super::userspace::{Refused, Table};
use super::super::wire::{
    Challenge, Nonce, Proven, Request, is_challenge, is_request, seal_answer, seal_bind,
};
use super::held::initial;
use super::*;

const PAIRS: u32 = 3;
const CHEATS_SESSION: SessionRef = SessionRef { index: 50, generation: 1 };
const TICK: Duration = Duration::from_millis(10);
/// Until when the cheat is active and translators forget; from then on everything must settle within `SETTLED`.
const TROUBLE: Duration = Duration::from_secs(40);
const SETTLED: Duration = Duration::from_secs(45);
/// An end that hears nothing for so long, at five pings a second over two links that lose half each, is cut off.
const HEARD: Duration = Duration::from_secs(12);

fn cheats_address() -> SocketAddr {
    address("192.0.2.66:666")
}

fn is_victim(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V4(v4) if v4.octets()[3] >= 200)
}

/// Every other place to which a translator moves an end. Policies know networks and no ports, which are what moves here.
fn is_refused(client: SocketAddr) -> bool {
    client.port() % 2 == 1
}

enum Event {
    ToNode {
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    FromNode {
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    /// The loop around the machine comes to what was decided: it judges where the client is, writes the flows, and removes
    /// the one that was left.
    Place {
        session: SessionRef,
        left: Option<Tuple>,
    },
    Ready {
        end: usize,
        counter: u64,
    },
}

struct SimulatedEnd {
    machine: End,
    session: SessionRef,
    leg: Leg,
    outside: SocketAddr,
    heard_at: Option<Duration>,
    first_ready: Option<Duration>,
}

struct Random(u64);

impl Random {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    fn percent(&mut self, chance: u8) -> bool {
        self.below(100) < usize::from(chance)
    }
}

struct Network {
    now: Duration,
    random: Random,
    loss: u8,
    queue: BTreeMap<(Duration, u64), Event>,
    queued: u64,
    binds: Binds,
    table: Table,
    ends: Vec<SimulatedEnd>,
    /// What the node asked, of whom, where and when.
    asked: Vec<(SessionRef, Leg, Tuple, Nonce, Duration)>,
    captured: Vec<Vec<u8>>,
    cheats_counter: u64,
    installs: usize,
    /// Where each session was placed last.
    placed: BTreeMap<SessionRef, Pair>,
    /// Whether there is a policy, and whose clients were where it [refuses](is_refused) them.
    has_policy: bool,
    refused: BTreeSet<SessionRef>,
    /// First packets that went on, at once or after they were held.
    went_on: usize,
    /// Bytes that came in a victim's name, and bytes that the victim got.
    named_victim: usize,
    sent_to_victim: usize,
}

impl Network {
    fn new(seed: u64, loss: u8) -> Self {
        let mut network = Self {
            now: Duration::ZERO,
            random: Random(seed),
            loss,
            queue: BTreeMap::new(),
            queued: 0,
            binds: Binds::new(own()),
            table: Table::default(),
            ends: Vec::new(),
            asked: Vec::new(),
            captured: Vec::new(),
            cheats_counter: 0,
            installs: 0,
            placed: BTreeMap::new(),
            has_policy: false,
            refused: BTreeSet::new(),
            went_on: 0,
            named_victim: 0,
            sent_to_victim: 0,
        };
        network.table.set_epoch(terms().identity, terms().epoch);
        for session in
            (0..PAIRS).map(|index| SessionRef { index, generation: index + 1 }).chain([CHEATS_SESSION])
        {
            network.binds.register(session, terms()).unwrap();
            for leg in Leg::BOTH {
                network.binds.expect(session, leg, secret(session, leg)).unwrap();
                if session == CHEATS_SESSION && leg == Leg::Client {
                    continue;
                }
                let LegSecret { key, ticket } = secret(session, leg);
                let (machine, first) = End::start(key, ticket, session, leg, 0, network.now);
                let host = u8::try_from(10 + network.ends.len()).unwrap();
                let outside = SocketAddr::from((Ipv4Addr::new(192, 0, 2, host), 1000));
                network.ends.push(SimulatedEnd {
                    machine,
                    session,
                    leg,
                    outside,
                    heard_at: None,
                    first_ready: None,
                });
                network.perform(network.ends.len() - 1, vec![first]);
            }
        }
        network
    }

    fn run(&mut self, until: Duration, hostile: bool, forgetful: bool) {
        while self.now < until {
            self.now += TICK;
            while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let event = entry.remove();
                self.deliver(event);
            }
            for index in 0..self.ends.len() {
                let end = &mut self.ends[index];
                if end.machine.deadline().is_some_and(|at| at <= self.now) {
                    let outputs = end.machine.handle(EndInput::Timer, self.now);
                    self.perform(index, outputs);
                }
                // A ping five times a second, as soon as it may.
                if self.now.as_millis().is_multiple_of(200) && self.ends[index].machine.may_send() {
                    self.ends[index].machine.handle(EndInput::Sent { pto: ms(150) }, self.now);
                    let from = self.ends[index].outside;
                    self.travel(Event::ToNode { from, bytes: vec![0x40; 30] });
                }
                // About every twenty seconds.
                if forgetful && self.random.below(2000) == 0 {
                    let port = self.ends[index].outside.port() + 1;
                    self.ends[index].outside.set_port(port);
                }
            }
            if hostile && self.random.percent(30) {
                self.cheat();
            }
        }
    }

    fn travel(&mut self, event: Event) {
        let copies =
            if self.random.percent(self.loss) { 0 } else { 1 + usize::from(self.random.percent(10)) };
        for _ in 0..copies {
            let delay = ms(5 + self.random.next() % 120);
            let copy = match &event {
                Event::ToNode { from, bytes } => Event::ToNode { from: *from, bytes: bytes.clone() },
                Event::FromNode { to, bytes } => Event::FromNode { to: *to, bytes: bytes.clone() },
                Event::Place { .. } | Event::Ready { .. } => panic!("nothing of the network's"),
            };
            self.arrive(delay, copy);
        }
    }

    fn arrive(&mut self, delay: Duration, event: Event) {
        self.queued += 1;
        self.queue.insert((self.now + delay, self.queued), event);
    }

    fn deliver(&mut self, event: Event) {
        match event {
            Event::ToNode { from, bytes } => self.node(Tuple::new(node_address(), from), &bytes),
            Event::FromNode { to, bytes } if to == cheats_address() => self.captured.push(bytes),
            Event::Place { session, left } => self.place(session, left),
            Event::FromNode { to, bytes } => {
                let Some(index) = self.ends.iter().position(|end| end.outside == to) else { return };
                let end = &mut self.ends[index];
                if is_challenge(&bytes) {
                    let outputs = end.machine.handle(EndInput::Challenge(&bytes), self.now);
                    self.perform(index, outputs);
                } else {
                    end.heard_at = Some(self.now);
                    end.machine.handle(EndInput::Heard, self.now);
                }
            }
            Event::Ready { end, counter } => {
                let outputs = self.ends[end].machine.handle(EndInput::Ready { counter }, self.now);
                self.perform(end, outputs);
            }
        }
    }

    fn perform(&mut self, index: usize, outputs: Vec<EndOutput>) {
        for output in outputs {
            match output {
                EndOutput::Send(bytes) => {
                    self.captured.push(bytes.to_vec());
                    let SimulatedEnd { session, leg, outside: from, .. } = self.ends[index];
                    self.travel(Event::ToNode { from, bytes: bytes.to_vec() });
                    // What a client need not keep back until its answer has arrived.
                    for mark in 0..3 * u8::from(leg == Leg::Client) {
                        let bytes = initial(&secret(session, leg).ticket, 1200, mark);
                        self.captured.push(bytes.clone());
                        self.travel(Event::ToNode { from, bytes });
                    }
                }
                EndOutput::Ready => {
                    self.ends[index].first_ready.get_or_insert(self.now);
                }
                EndOutput::GaveUp => {
                    let session = self.ends[index].session;
                    assert!(
                        session == CHEATS_SESSION || self.refused.contains(&session),
                        "an honest end gave up at {:?}",
                        self.now
                    );
                }
            }
        }
    }

    fn node(&mut self, tuple: Tuple, bytes: &[u8]) {
        if !is_request(bytes) {
            match self.table.judge(self.now, tuple) {
                Ok(passage) => {
                    assert!(!is_victim(passage.output().remote()));
                    let to = passage.output().remote();
                    self.travel(Event::FromNode { to, bytes: bytes.to_vec() });
                }
                Err(Refused::NoFlow) => {
                    let onward = self.binds.on_first(self.now, tuple, bytes.into());
                    self.go_on(onward);
                }
                Err(_) => {}
            }
            return;
        }
        if is_victim(tuple.remote()) {
            self.named_victim += bytes.len();
        }
        let before: BTreeMap<SessionRef, _> =
            self.sessions().into_iter().map(|session| (session, self.binds.pair(session))).collect();
        let nonce = self.random.next().to_be_bytes();
        let actions = self.binds.on_datagram(self.now, tuple, bytes, || nonce);
        let mut replied = 0;
        for action in &actions {
            match action {
                Action::Send { to, datagram } => {
                    assert_eq!(*to, tuple, "a reply goes where the request came from");
                    replied += datagram.len();
                    if is_victim(to.remote()) {
                        self.sent_to_victim += datagram.len();
                    }
                    self.note_asked(*to, datagram);
                    self.travel(Event::FromNode { to: to.remote(), bytes: datagram.to_vec() });
                }
                Action::Install(pair) => {
                    assert_eq!(before[&pair.session], None);
                    self.assert_answered(pair.session, tuple, bytes);
                    assert!([pair.client, pair.connector].contains(&tuple));
                    self.decided(pair.session, None);
                }
                Action::ReplaceLeg { leg, old, pair } => {
                    self.assert_answered(pair.session, tuple, bytes);
                    let was = before[&pair.session].unwrap();
                    let (moved, stayed) = match leg {
                        Leg::Client => ((was.client, pair.client), (was.connector, pair.connector)),
                        Leg::Connector => ((was.connector, pair.connector), (was.client, pair.client)),
                    };
                    assert_eq!((moved, stayed.0), ((*old, tuple), stayed.1));
                    self.decided(pair.session, Some(*old));
                }
                Action::Ready { session, leg, counter } => {
                    let end = self.ends.iter().position(|end| (end.session, end.leg) == (*session, *leg));
                    if let Some(end) = end {
                        let delay = ms(30 + self.random.next() % 30);
                        self.arrive(delay, Event::Ready { end, counter: *counter });
                    }
                }
            }
        }
        assert!(replied <= bytes.len(), "an answer longer than what it answers");
    }

    fn decided(&mut self, session: SessionRef, left: Option<Tuple>) {
        let delay = ms(5 + self.random.next() % 20);
        self.arrive(delay, Event::Place { session, left });
    }

    fn place(&mut self, session: SessionRef, left: Option<Tuple>) {
        let Some(pair) = self.binds.pair(session) else { return };
        assert_ne!(pair.client, pair.connector);
        if self.has_policy && is_refused(pair.client.remote()) {
            self.refused.insert(session);
            self.binds.remove(session).unwrap();
            self.table.close(session);
            return;
        }
        self.installs += 1;
        self.table.open(session, pair.terms);
        for grant in pair.grants() {
            assert!(self.table.install(grant));
        }
        if let Some(left) = left.filter(|left| ![pair.client, pair.connector].contains(left)) {
            self.table.remove(session, left);
        }
        self.placed.insert(session, pair);
        let onward = self.binds.placed(pair, self.now);
        self.go_on(onward);
    }

    fn go_on(&mut self, onward: Option<Onward>) {
        let Some(Onward { pair, datagrams }) = onward else { return };
        assert_eq!(self.placed.get(&pair.session), Some(&pair), "between where the session was placed last");
        assert!(!self.refused.contains(&pair.session));
        self.went_on += datagrams.len();
        for bytes in datagrams {
            self.travel(Event::FromNode { to: pair.connector.remote(), bytes: bytes.into() });
        }
    }

    fn sessions(&self) -> Vec<SessionRef> {
        let mut sessions: Vec<SessionRef> = self.ends.iter().map(|end| end.session).collect();
        sessions.dedup();
        sessions
    }

    fn note_asked(&mut self, to: Tuple, datagram: &[u8]) {
        for session in self.sessions() {
            for leg in Leg::BOTH {
                if let Some(asked) = Challenge::open(datagram, &secret(session, leg).key, session, leg) {
                    assert_eq!(asked.observed, to.remote());
                    self.asked.push((session, leg, to, asked.nonce, self.now));
                }
            }
        }
    }

    /// What is installed now was asked at this very tuple, lately, and this datagram is the leg's answer to it.
    fn assert_answered(&self, session: SessionRef, tuple: Tuple, bytes: &[u8]) {
        let request = Request::parse(bytes).unwrap();
        let key = secret(session, request.leg()).key;
        let Some(Proven::Answer { nonce }) = request.prove(&key, session.generation, tuple.remote()) else {
            panic!("installed by something else than an answer")
        };
        assert!(self.asked.iter().any(|(of, leg, at, asked, when)| {
            (*of, *leg, *at, *asked) == (session, request.leg(), tuple, nonce)
                && self.now < *when + CHALLENGE_LIFETIME
        }));
        assert!(!is_victim(tuple.remote()));
    }

    /// One move of the cheat's, by its own session, or with what it has seen.
    fn cheat(&mut self) {
        let somewhere = match self.random.below(4) {
            0 => cheats_address(),
            1 => SocketAddr::from((Ipv4Addr::new(192, 0, 2, 200), 53)),
            2 => self.ends[self.random.below(6)].outside,
            _ => SocketAddr::from((Ipv4Addr::new(192, 0, 2, 67), 700)),
        };
        let seen = match self.captured.len() {
            0 => Vec::new(),
            count => self.captured[self.random.below(count)].clone(),
        };
        let LegSecret { key, ticket } = secret(CHEATS_SESSION, Leg::Client);
        let bytes = match self.random.below(7) {
            0 | 1 => seen,
            2 => {
                let mut bytes = seen;
                if !bytes.is_empty() {
                    let at = self.random.below(bytes.len());
                    bytes[at] ^= 1 << self.random.below(8);
                }
                bytes
            }
            3 => {
                self.cheats_counter += 1;
                let session = [CHEATS_SESSION, SessionRef { index: 0, generation: 1 }][self.random.below(2)];
                let leg = Leg::BOTH[self.random.below(2)];
                seal_bind(&key, session, leg, &ticket, self.cheats_counter).to_vec()
            }
            4 => {
                let nonce = Challenge::open(&seen, &key, CHEATS_SESSION, Leg::Client)
                    .map_or_else(|| self.random.next().to_be_bytes(), |learned| learned.nonce);
                let challenge = Challenge { observed: somewhere, nonce };
                seal_answer(&key, CHEATS_SESSION, Leg::Client, &ticket, &challenge).to_vec()
            }
            5 => initial(&ticket, 1200, 0xEE),
            _ => {
                // A challenge that it was sent, carried to an honest end in the node's name.
                let to = self.ends[self.random.below(6)].outside;
                self.arrive(ms(5), Event::FromNode { to, bytes: seen });
                return;
            }
        };
        self.arrive(ms(5), Event::ToNode { from: somewhere, bytes });
    }

    /// Every honest pair's flows lead to where its ends are, and both hear each other.
    fn assert_settled(&self) {
        let goes_on =
            |end: &&SimulatedEnd| end.session != CHEATS_SESSION && !self.refused.contains(&end.session);
        for end in self.ends.iter().filter(goes_on) {
            let pair = self.binds.pair(end.session).unwrap();
            let at = if end.leg == Leg::Client { pair.client } else { pair.connector };
            assert_eq!(at.remote(), end.outside, "{:?} {:?}", end.session, end.leg);
            assert!(end.heard_at.is_some_and(|at| at + HEARD > self.now), "{:?}", end.heard_at);
        }
        assert!(self.sent_to_victim <= self.named_victim);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Nobody cheats: every pair is ready within the bound, however bad the network.
    #[test]
    fn every_honest_pair_becomes_ready(seed: u64, loss in 0_u8..50) {
        let mut network = Network::new(seed, loss);
        network.run(GIVE_UP + HEARD, false, false);
        for end in network.ends.iter().filter(|end| end.session != CHEATS_SESSION) {
            prop_assert!(end.first_ready.is_some_and(|at| at < GIVE_UP));
            prop_assert!(loss > 0 || end.first_ready < Some(ms(500)));
        }
        network.assert_settled();
    }

    /// Translators forget and a peer cheats; what is installed has answered where it is. When both stop, all recovers.
    #[test]
    fn only_what_answered_is_installed_and_ends_recover(seed: u64, loss in 0_u8..45) {
        let mut network = Network::new(seed, loss);
        network.run(TROUBLE, true, true);
        network.run(TROUBLE + SETTLED, false, false);
        prop_assert!(network.installs >= PAIRS as usize);
        network.assert_settled();
    }
}

/// Translators move clients to where policy refuses them, and a peer cheats: what is sent ahead goes on only between where its
/// session was placed last.
#[test]
fn first_packets_of_a_client_that_has_moved_wait_for_policy() {
    let (mut went_on, mut refused) = (0, 0);
    for seed in 0..24 {
        let mut network = Network::new(seed, 10);
        network.has_policy = true;
        network.run(TROUBLE, true, true);
        went_on += network.went_on;
        refused += network.refused.len();
    }
    assert!(went_on > 100 && refused > 20, "{went_on} {refused}");
}

//! First packets that came before their session's flows are in force: held for a while, and then sent on once.
//!
//! 1. [`Binds::on_first`]: the ticket that the packet goes to says whose it is. It waits, wherever it came from.
//! 2. [`Binds::placed`]: both legs have proved where they are, policy has judged that, and the flows are written. What came
//!    from where the client has proved to be goes on; the rest never does. From then on a packet that had been under way to
//!    the daemon follows.
//! 3. A leg that has proved that it is elsewhere is nowhere until 2 has come again: what it sends ahead waits anew.
//!
//! Nothing here answers anybody, and nothing goes anywhere but to the session's other end. What is held is bounded in number,
//! size and time; the oldest gives way, first of its own session. A false accept sends the connector one datagram that the client
//! could send it by its flow; a false reject costs the client's QUIC a probe timeout.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::super::first::{FIRST_LEN, first_ticket};
use super::super::tuple::{Leg, Pair, SessionRef, Tuple};
use super::super::wire::Ticket;
use super::{Binds, CHALLENGE_LIFETIME};

/// A first flight has two packets where the key exchange is post-quantum.
const MAX_OF_SESSION: usize = 2;

/// Packets of all sessions: 1.5 MB.
const MAX_HELD: usize = 1024;

/// No proof that is still awaited comes later; by then QUIC has sent them again.
const LIFETIME: Duration = CHALLENGE_LIFETIME;

/// The packets of all sessions, oldest first, and whose they are.
#[derive(Default)]
pub(super) struct HeldPackets {
    sessions: BTreeMap<Ticket, SessionRef>,
    packets: VecDeque<Held>,
}

struct Held {
    at: Duration,
    session: SessionRef,
    tuple: Tuple,
    datagram: Box<[u8]>,
}

/// What the client's end of a session has sent ahead, for the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Onward {
    pub pair: Pair,
    pub datagrams: Vec<Box<[u8]>>,
}

impl Binds {
    /// A first packet (`super::super::first`), from the tuple's remote to its local side. If its session is placed where its legs
    /// are now, it goes on at once; else it is held, if it is anybody's.
    pub fn on_first(&mut self, now: Duration, tuple: Tuple, datagram: Box<[u8]>) -> Option<Onward> {
        let session = *self.held.sessions.get(&first_ticket(&datagram)?)?;
        let found =
            self.sessions.get(&session.index).filter(|found| found.generation == session.generation)?;
        if found.terms.expires <= now || !FIRST_LEN.contains(&datagram.len()) {
            return None;
        }
        let Some(pair) = found.in_force(session.index) else {
            self.held.hold(Held { at: now, session, tuple, datagram });
            return None;
        };
        (pair.client == tuple).then(|| Onward { pair, datagrams: vec![datagram] })
    }

    /// Policy lets the session's client be there, its flows are written, and both ends are being told. What was held for it, unless
    /// a leg is elsewhere by now: then that is to be placed first.
    pub fn placed(&mut self, pair: Pair, now: Duration) -> Option<Onward> {
        let session = pair.session;
        let found =
            self.sessions.get_mut(&session.index).filter(|found| found.generation == session.generation)?;
        found.placed = Some(pair);
        let pair = found.in_force(session.index)?;
        let datagrams = self.held.take(session, pair.client, now);
        (!datagrams.is_empty()).then_some(Onward { pair, datagrams })
    }
}

impl HeldPackets {
    /// A leg was given a ticket in the place of another one or of none.
    pub(super) fn given(&mut self, session: SessionRef, leg: Leg, ticket: Ticket, former: Option<Ticket>) {
        if leg == Leg::Client {
            former.and_then(|former| self.sessions.remove(&former));
            self.sessions.insert(ticket, session);
        }
    }

    /// The session is over.
    pub(super) fn forget(&mut self, session: SessionRef, ticket: Option<Ticket>) {
        ticket.and_then(|ticket| self.sessions.remove(&ticket));
        self.packets.retain(|held| held.session != session);
    }

    fn hold(&mut self, new: Held) {
        self.packets.retain(|held| held.is_fresh(new.at));
        let mut of_session = self.packets.iter().enumerate().filter(|(_, held)| held.session == new.session);
        let oldest = of_session.next().map(|(at, _)| at);
        if of_session.count() + 1 >= MAX_OF_SESSION
            && let Some(oldest) = oldest
        {
            self.packets.remove(oldest);
        }
        if self.packets.len() >= MAX_HELD {
            self.packets.pop_front();
        }
        self.packets.push_back(new);
    }

    fn take(&mut self, session: SessionRef, client: Tuple, now: Duration) -> Vec<Box<[u8]>> {
        let (of_session, others): (VecDeque<_>, _) =
            self.packets.drain(..).partition(|held| held.session == session);
        self.packets = others;
        let good = of_session.into_iter().filter(|held| held.tuple == client && held.is_fresh(now));
        good.map(|held| held.datagram).collect()
    }
}

impl Held {
    fn is_fresh(&self, now: Duration) -> bool {
        now < self.at.saturating_add(LIFETIME)
    }
}

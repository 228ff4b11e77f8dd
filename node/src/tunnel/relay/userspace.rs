//! The relay's table in user space, for what the kernel's cannot carry: IPv4 to IPv6, local routes, no XDP at all.
//!
//! The rules are the kernel's, packet by packet: an exact tuple, or nothing; the session's generation is the one that was
//! granted; its person's epoch too; it has not expired; what leaves never goes to where it came from. Both count
//! the same bytes: whole IP packets. What differs: the kernel lowers the TTL, here a packet starts anew.
//!
//! A false accept carries a packet of a session that was cut; hence one store to a session or an epoch refuses all its
//! flows, whatever entries are left. A false reject loses a packet, which the ends' QUIC repeats. Pure: no clock, no socket.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::carrier::is_stream;
use super::tuple::{Grant, Leg, SessionRef, Terms, Tuple};

/// Which tuple leads to which, for sessions that are alive.
#[derive(Debug, Default)]
pub struct Table {
    flows: HashMap<Tuple, Flow>,
    sessions: HashMap<u32, Session>,
    /// Absent is 0, as in the kernel's array.
    epochs: HashMap<u32, u32>,
}

#[derive(Debug)]
struct Flow {
    session: SessionRef,
    output: Tuple,
    counted: Arc<Counters>,
}

#[derive(Debug)]
struct Session {
    generation: u32,
    terms: Terms,
    client: OfLeg,
    connector: OfLeg,
}

/// What one end sends, by who sees it.
#[derive(Debug, Default)]
struct OfLeg {
    by_udp: Arc<Counters>,
    past_gate: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    packets: AtomicU64,
    bytes: AtomicU64,
}

/// What one end has sent through the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub packets: u64,
    /// With IP and UDP headers.
    pub bytes: u64,
}

impl Usage {
    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            packets: self.packets.saturating_add(other.packets),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

/// What a session's ends have sent through the relay: client, connector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    pub by_udp: [Usage; 2],
    /// What the gate has counted nothing of: by streams, and what came before its entries.
    pub past_gate: [Usage; 2],
}

impl Sent {
    pub const fn all(&self) -> [Usage; 2] {
        self.with_udp(self.by_udp)
    }

    /// The same where somebody else has counted what came by UDP.
    pub const fn with_udp(&self, [client, connector]: [Usage; 2]) -> [Usage; 2] {
        let [of_client, of_connector] = self.past_gate;
        [client.and(of_client), connector.and(of_connector)]
    }
}

/// Why a packet goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// No flow has this tuple: the packet is somebody else's to judge.
    NoFlow,
    /// The session was cut, or its place is another's by now.
    Generation,
    /// All sessions of this person were cut.
    Epoch,
    Expired,
    /// It would go back to where it came from.
    Reflection,
}

/// A packet may pass: where to, and who is charged for it.
#[derive(Debug, Clone)]
pub struct Passage {
    output: Tuple,
    header: u64,
    counted: Arc<Counters>,
}

impl Passage {
    /// It leaves from this tuple's local to its remote side.
    pub const fn output(&self) -> Tuple {
        self.output
    }

    /// Charges `packets` datagrams with `payload` bytes of UDP payload in all.
    pub fn count(&self, packets: u64, payload: u64) {
        self.counted.packets.fetch_add(packets, Ordering::Relaxed);
        self.counted.bytes.fetch_add(payload + packets * self.header, Ordering::Relaxed);
    }
}

impl Table {
    /// Opens a session. A generation that was there before keeps what it has counted.
    pub fn open(&mut self, session: SessionRef, terms: Terms) {
        let known =
            self.sessions.get_mut(&session.index).filter(|known| known.generation == session.generation);
        if let Some(known) = known {
            known.terms = terms;
            return;
        }
        let SessionRef { index, generation } = session;
        let (client, connector) = Default::default();
        self.sessions.insert(index, Session { generation, terms, client, connector });
    }

    /// Writes one direction of a session that is open; replaces what was at its input. False: the session is not open, or
    /// the grant is one that must never be.
    pub fn install(&mut self, grant: Grant) -> bool {
        let Grant { session, from, input, output } = grant;
        let known = self.sessions.get(&session.index).filter(|known| known.generation == session.generation);
        let Some(known) = known else { return false };
        if reflects(input, output) {
            return false;
        }
        let counted = Arc::clone(known.leg(from).counters(input));
        self.flows.insert(input, Flow { session, output, counted });
        true
    }

    /// Deletes a direction, if it belongs to `session`.
    pub fn remove(&mut self, session: SessionRef, input: Tuple) -> bool {
        let owned = self.flows.get(&input).is_some_and(|flow| flow.session == session);
        owned && self.flows.remove(&input).is_some()
    }

    /// Cuts a session: from here on none of its packets passes. What its ends have sent.
    pub fn close(&mut self, session: SessionRef) -> Option<Sent> {
        let sent = self.sent(session)?;
        self.sessions.remove(&session.index);
        Some(sent)
    }

    /// Cuts every session of a person that was granted under another epoch.
    pub fn set_epoch(&mut self, identity: u32, epoch: u32) {
        self.epochs.insert(identity, epoch);
    }

    /// What the session's ends have sent.
    pub fn sent(&self, session: SessionRef) -> Option<Sent> {
        let known =
            self.sessions.get(&session.index).filter(|known| known.generation == session.generation)?;
        Some(Sent {
            by_udp: Leg::BOTH.map(|leg| known.leg(leg).by_udp.usage()),
            past_gate: Leg::BOTH.map(|leg| known.leg(leg).past_gate.usage()),
        })
    }

    /// Entries, alive or not.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Decides about a packet that came in on `input`.
    pub fn judge(&self, now: Duration, input: Tuple) -> Result<Passage, Refused> {
        let flow = self.flows.get(&input).ok_or(Refused::NoFlow)?;
        self.passage(now, flow.session, input, flow.output, &flow.counted)
    }

    /// Decides about a packet that came before there was an entry for it, here or in the gate, of a session that is open.
    pub fn judge_first(&self, now: Duration, grant: Grant) -> Result<Passage, Refused> {
        let Grant { session, from, input, output } = grant;
        let known = self.sessions.get(&session.index).ok_or(Refused::Generation)?;
        self.passage(now, session, input, output, &known.leg(from).past_gate)
    }

    fn passage(
        &self,
        now: Duration,
        of: SessionRef,
        input: Tuple,
        output: Tuple,
        counted: &Arc<Counters>,
    ) -> Result<Passage, Refused> {
        let session = self.sessions.get(&of.index).ok_or(Refused::Generation)?;
        if session.generation != of.generation {
            return Err(Refused::Generation);
        }
        let terms = session.terms;
        if self.epochs.get(&terms.identity).copied().unwrap_or(0) != terms.epoch {
            return Err(Refused::Epoch);
        }
        if terms.expires <= now {
            return Err(Refused::Expired);
        }
        if reflects(input, output) {
            return Err(Refused::Reflection);
        }
        Ok(Passage { output, header: header_len(input.remote()), counted: Arc::clone(counted) })
    }
}

impl Session {
    const fn leg(&self, from: Leg) -> &OfLeg {
        match from {
            Leg::Client => &self.client,
            Leg::Connector => &self.connector,
        }
    }
}

impl OfLeg {
    fn counters(&self, input: Tuple) -> &Arc<Counters> {
        if is_stream(input.remote()) { &self.past_gate } else { &self.by_udp }
    }
}

impl Counters {
    fn usage(&self) -> Usage {
        Usage { packets: self.packets.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

fn reflects(input: Tuple, output: Tuple) -> bool {
    output == input || output.remote() == output.local() || output.remote() == input.local()
}

/// Bytes before the payload: IP without options, and UDP.
const fn header_len(address: SocketAddr) -> u64 {
    match address {
        SocketAddr::V4(_) => 20 + 8,
        SocketAddr::V6(_) => 40 + 8,
    }
}

//! The node's half of binding, for all sessions: who may be reached where.
//!
//! 1. The daemon registers a session, then its legs, each with the key and ticket that it alone was given.
//! 2. A Bind with a good tag and a counter never seen yields one Challenge, to the address that it came from, and no
//!    more than that: the leg stays where it was.
//! 3. An Answer with a good tag, from that address and in time, binds the leg. With the other leg bound the session is
//!    installed, and both ends are told.
//! 4. A bound leg that binds from elsewhere goes through 2 and 3 again, and is then replaced: once in [`MOVE_PACE`], since
//!    others wait for what that takes. In between its answers are not heard, and it binds again.
//!
//! A client's leg may bind [early], while its session is asked for: 2 and 3 are the same, and what it has proved
//! counts once the session is there. And it may send its first packets together with its Answer, which are [held] until 3 is done
//! and the loop around this has [placed](Binds::placed) what it was told to.
//!
//! **What a mistake costs.** A false accept sends one session's packets, which are encrypted end to end, to an address
//! whose owner holds the leg's key, or makes the node reflect: hence no tuple that is another leg's, none that is the
//! node's own, and a reply never longer than the request. A false reject costs the end a retry, and in the end the session.
//!
//! An unproven datagram changes nothing but the few that wait for a request or for a proof: sessions exist because the daemon registered
//! them, and a leg's state has a fixed size. Whoever sees an end's packets and can send from elsewhere can pass a Bind and its Answer through himself, as an
//! address translator does (RFC 9000 §21.5.6 says the same of QUIC); he gains packets that he cannot read.

mod early;
mod held;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub use early::EarlyClaim;
use early::EarlyLegs;
use held::HeldPackets;
pub use held::Onward;

use super::tuple::{Early, Leg, MAX_SESSIONS, Pair, SessionRef, Terms, Tuple};
use super::wire::{BindKey, CHALLENGE_LEN, Challenge, Nonce, Proven, Request, Ticket};

/// An address has so long to answer.
pub(super) const CHALLENGE_LIFETIME: Duration = Duration::from_secs(5);

/// A leg moves no more often. A machine that roams is not kept waiting: its first move counts at once.
pub(super) const MOVE_PACE: Duration = Duration::from_secs(1);

/// What one leg was given over its control connection.
pub struct LegSecret {
    pub key: BindKey,
    pub ticket: Ticket,
}

/// The node's own addresses and served UDP ports: nothing is ever relayed there.
#[derive(Debug, Clone, Default)]
pub struct Own {
    pub addresses: BTreeSet<IpAddr>,
    pub ports: BTreeSet<u16>,
}

/// What to do, in this order. When one fails, leave out the rest and [`Binds::remove`] the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send this, from the tuple's local to its remote side.
    Send { to: Tuple, datagram: [u8; CHALLENGE_LEN] },
    /// Write the session and both of [`Pair::grants`].
    Install(Pair),
    /// Write both of [`Pair::grants`], then delete the entry whose input is `old`.
    ReplaceLeg { leg: Leg, old: Tuple, pair: Pair },
    /// Tell this end, over its control connection, that its bind number `counter` is in force.
    Ready { session: SessionRef, leg: Leg, counter: u64 },
}

/// A session that is no more, and the inputs of its flow entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    pub session: SessionRef,
    pub inputs: Vec<Tuple>,
}

/// What the daemon asked for and cannot have: its own fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    #[error("there is no session index {0}")]
    NoSuchIndex(u32),
    #[error("session index {0} is in use")]
    InUse(u32),
    #[error("session {} of generation {} is not registered", .0.index, .0.generation)]
    Unknown(SessionRef),
}

/// The node's half of binding.
#[derive(Default)]
pub struct Binds {
    own: Own,
    sessions: BTreeMap<u32, Session>,
    /// Every bound leg's tuple, and whose it is.
    bound: BTreeMap<Tuple, (u32, Leg)>,
    early: EarlyLegs,
    held: HeldPackets,
}

struct Session {
    generation: u32,
    terms: Terms,
    /// Where its flows were written last.
    placed: Option<Pair>,
    client: Option<LegState>,
    connector: Option<LegState>,
}

struct LegState {
    secret: LegSecret,
    /// The highest that was accepted; 0 never is.
    counter: u64,
    pending: Option<Pending>,
    bound: Option<Tuple>,
    /// When it went from one place to another last.
    moved: Option<Duration>,
}

#[derive(Clone, Copy)]
struct Pending {
    tuple: Tuple,
    nonce: Nonce,
    until: Duration,
}

impl Binds {
    pub fn new(own: Own) -> Self {
        Self { own, ..Self::default() }
    }

    /// The node's addresses have changed. What is bound stays.
    pub fn set_own(&mut self, own: Own) {
        self.own = own;
    }

    /// Makes room for a session. Nothing can bind to it before [`Self::expect`].
    pub fn register(&mut self, session: SessionRef, terms: Terms) -> Result<(), RegisterError> {
        if session.index >= MAX_SESSIONS {
            return Err(RegisterError::NoSuchIndex(session.index));
        }
        if self.sessions.contains_key(&session.index) {
            return Err(RegisterError::InUse(session.index));
        }
        let generation = session.generation;
        let new = Session { generation, terms, placed: None, client: None, connector: None };
        self.sessions.insert(session.index, new);
        Ok(())
    }

    /// Lets the holder of `secret` bind this leg; again, with a new ticket, or with the key of a new control connection.
    /// Where the leg is bound it stays.
    pub fn expect(&mut self, session: SessionRef, leg: Leg, secret: LegSecret) -> Result<(), RegisterError> {
        let found =
            self.sessions.get_mut(&session.index).filter(|found| found.generation == session.generation);
        let place = found.ok_or(RegisterError::Unknown(session))?.leg_mut(leg);
        let former = place.as_ref().map(|state| state.secret.ticket);
        self.held.given(session, leg, secret.ticket, former);
        *place = Some(match place.take() {
            // A counter starts again only under a key for which nothing was ever accepted.
            Some(state) if state.secret.key.is(&secret.key) => LegState { secret, ..state },
            Some(state) => LegState { bound: state.bound, moved: state.moved, ..LegState::new(secret) },
            None => LegState::new(secret),
        });
        Ok(())
    }

    /// Ends a session: nothing binds to it any more, and its tuples are free.
    pub fn remove(&mut self, session: SessionRef) -> Option<Removed> {
        let found = self.sessions.get(&session.index)?;
        if found.generation != session.generation {
            return None;
        }
        let removed = self.sessions.remove(&session.index)?;
        self.held.forget(session, removed.client.as_ref().map(|leg| leg.secret.ticket));
        let inputs: Vec<Tuple> =
            [removed.client, removed.connector].into_iter().flatten().filter_map(|leg| leg.bound).collect();
        for tuple in &inputs {
            self.bound.remove(tuple);
        }
        Some(Removed { session, inputs })
    }

    /// Ends the sessions that have expired.
    pub fn expire(&mut self, now: Duration) -> Vec<Removed> {
        let expired: Vec<SessionRef> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.terms.expires <= now)
            .map(|(&index, session)| SessionRef { index, generation: session.generation })
            .collect();
        expired.into_iter().filter_map(|session| self.remove(session)).collect()
    }

    /// The session's two legs, once both are bound.
    pub fn pair(&self, session: SessionRef) -> Option<Pair> {
        let found = self.sessions.get(&session.index)?;
        (found.generation == session.generation).then(|| found.pair(session.index)).flatten()
    }

    /// A datagram for which [`super::wire::is_request`] holds, from the tuple's remote to its local side. `nonce` is
    /// asked for only when there is something to send.
    pub fn on_datagram(
        &mut self,
        now: Duration,
        tuple: Tuple,
        datagram: &[u8],
        nonce: impl FnOnce() -> Nonce,
    ) -> Vec<Action> {
        self.request(now, tuple, datagram, nonce).unwrap_or_default()
    }

    fn request(
        &mut self,
        now: Duration,
        tuple: Tuple,
        datagram: &[u8],
        nonce: impl FnOnce() -> Nonce,
    ) -> Option<Vec<Action>> {
        let request = Request::parse(datagram)?;
        if let Some(early) = Early::of_index(request.index()) {
            return self.early_request(now, tuple, early, &request, datagram, nonce);
        }
        let leg = request.leg();
        let session = self.sessions.get_mut(&request.index())?;
        if session.terms.expires <= now {
            return None;
        }
        let found = SessionRef { index: request.index(), generation: session.generation };
        let state = session.leg_mut(leg).as_mut()?;
        if state.secret.ticket != *request.ticket() {
            return None;
        }
        let proven = request.prove(&state.secret.key, found.generation, tuple.remote())?;
        let fits = reachable(tuple.remote())
            && !self.own.holds(tuple)
            && self.bound.get(&tuple).is_none_or(|owner| *owner == (found.index, leg));
        match proven {
            Proven::Bind { counter } => {
                if counter <= state.counter {
                    return None;
                }
                state.counter = counter;
                if !fits {
                    return None;
                }
                let send = state.challenge(now, tuple, found, leg, nonce);
                Some(vec![send])
            }
            Proven::Answer { nonce } => {
                let pending = state.pending?;
                if pending.tuple != tuple || pending.nonce != nonce || pending.until <= now {
                    return None;
                }
                if state.bound.is_some_and(|bound| bound != tuple) {
                    if state.moved.is_some_and(|moved| now < moved.saturating_add(MOVE_PACE)) {
                        return None;
                    }
                    state.moved = Some(now);
                }
                state.pending = None;
                // Somebody else may have answered from there since the challenge.
                fits.then(|| self.bind(found, leg, tuple))
            }
        }
    }

    /// The leg has proved that it is at `tuple`, which is free or its own.
    fn bind(&mut self, found: SessionRef, leg: Leg, tuple: Tuple) -> Vec<Action> {
        let Some(session) = self.sessions.get_mut(&found.index) else { return Vec::new() };
        let Some(state) = session.leg_mut(leg) else { return Vec::new() };
        let old = state.bound.replace(tuple);
        if let Some(old) = old {
            self.bound.remove(&old);
        }
        self.bound.insert(tuple, (found.index, leg));
        let Some(pair) = session.pair(found.index) else { return Vec::new() };
        let ready =
            |leg| session.leg(leg).map(|state| Action::Ready { session: found, leg, counter: state.counter });
        match old {
            None => [Some(Action::Install(pair))].into_iter().chain(Leg::BOTH.map(ready)).flatten().collect(),
            Some(old) if old == tuple => ready(leg).into_iter().collect(),
            Some(old) => {
                [Some(Action::ReplaceLeg { leg, old, pair }), ready(leg)].into_iter().flatten().collect()
            }
        }
    }
}

impl Session {
    const fn leg(&self, leg: Leg) -> Option<&LegState> {
        match leg {
            Leg::Client => self.client.as_ref(),
            Leg::Connector => self.connector.as_ref(),
        }
    }

    const fn leg_mut(&mut self, leg: Leg) -> &mut Option<LegState> {
        match leg {
            Leg::Client => &mut self.client,
            Leg::Connector => &mut self.connector,
        }
    }

    fn pair(&self, index: u32) -> Option<Pair> {
        let session = SessionRef { index, generation: self.generation };
        let client = self.client.as_ref()?.bound?;
        let connector = self.connector.as_ref()?.bound?;
        Some(Pair { session, terms: self.terms, client, connector })
    }

    /// Its legs, if they are where its flows were written.
    fn in_force(&self, index: u32) -> Option<Pair> {
        self.pair(index).filter(|pair| self.placed.as_ref() == Some(pair))
    }
}

impl LegState {
    const fn new(secret: LegSecret) -> Self {
        Self { secret, counter: 0, pending: None, bound: None, moved: None }
    }

    /// One address at a time is asked to prove itself, the latest. A retry from there gets the same nonce, so that the
    /// answer to a challenge that was thought lost still counts; it does not prolong it. No other address ever gets that
    /// nonce, or its owner could answer for this one.
    fn challenge(
        &mut self,
        now: Duration,
        tuple: Tuple,
        session: SessionRef,
        leg: Leg,
        nonce: impl FnOnce() -> Nonce,
    ) -> Action {
        let running = self.pending.filter(|pending| pending.tuple == tuple && now < pending.until);
        let pending = running.unwrap_or_else(|| Pending {
            tuple,
            nonce: nonce(),
            until: now.saturating_add(CHALLENGE_LIFETIME),
        });
        self.pending = Some(pending);
        let challenge = Challenge { observed: tuple.remote(), nonce: pending.nonce };
        Action::Send { to: tuple, datagram: challenge.seal(&self.secret.key, session, leg) }
    }
}

impl Own {
    fn holds(&self, tuple: Tuple) -> bool {
        let remote = tuple.remote();
        remote == tuple.local()
            || (self.ports.contains(&remote.port()) && self.addresses.contains(&remote.ip()))
    }
}

/// Whether one host can be there, for whoever sends to it by address alone.
fn reachable(remote: SocketAddr) -> bool {
    let ip_fits = match remote.ip() {
        IpAddr::V4(v4) => !v4.is_unspecified() && !v4.is_multicast() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast() && !v6.is_unicast_link_local(),
    };
    ip_fits && remote.port() != 0
}

//! Clients' legs that bind while their session is asked for, under an early name that came with the request.
//!
//! 1. [`Binds::expect_early`]: whoever asks holds the key. What came ahead of the request, since datagrams overtake, is
//!    looked at now.
//! 2. Bind, Challenge and Answer are those of any leg. What is proved is nobody's yet and holds no address.
//! 3. [`Binds::adopt`]: the session is there, and its client's leg is where the early one is, now or once that has proved it.
//!
//! An early name belongs to the control connection that brought it: [`EarlyClaim`] is the only way to it, and the key is that
//! connection's. A false accept would make a session send to the address of another's leg. A false reject costs a round trip:
//! the leg binds again when it has its session.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::super::tuple::{Early, Leg, SessionRef, Tuple};
use super::super::wire::{BindKey, Nonce, Proven, REQUEST_LEN, Request, Ticket};
use super::{Action, Binds, LegSecret, LegState, reachable};

/// A leg that binds early has so long to be given its session; there are so many of them, and so many of one connection.
const LIFETIME: Duration = Duration::from_secs(10);
const MAX_EARLY: usize = 4096;
const MAX_OF_ONE: usize = 64;

/// A bind may overtake the request that speaks of it by so much, and so many may at a time. Beyond, the end tries again.
const AHEAD_LIFETIME: Duration = Duration::from_secs(1);
const MAX_AHEAD: usize = 64;

/// The early legs of all clients.
#[derive(Default)]
pub(super) struct EarlyLegs {
    legs: BTreeMap<Early, EarlyLeg>,
    /// Under names that nobody has spoken of. Nobody has proved anything by it: the oldest gives way.
    ahead: VecDeque<Ahead>,
    next: u64,
}

/// A client's leg whose session is asked for.
struct EarlyLeg {
    owner: u64,
    serial: u64,
    /// What it has bound is no session's yet, and may be another's by then.
    state: LegState,
    until: Duration,
    /// Its session, once that is there.
    session: Option<SessionRef>,
}

struct Ahead {
    at: Duration,
    early: Early,
    tuple: Tuple,
    datagram: [u8; REQUEST_LEN],
}

/// The right to say what came of an early leg: whoever asked for it has it, and nobody else.
#[derive(Debug)]
pub struct EarlyClaim {
    early: Early,
    serial: u64,
}

impl Binds {
    /// Lets the holder of `key` prove where the leg is of the session that it asks for over the control connection `owner`.
    /// None: there is no room, or the name is taken; it binds when it has its session.
    pub fn expect_early(
        &mut self,
        owner: u64,
        early: Early,
        key: BindKey,
        now: Duration,
        mut nonce: impl FnMut() -> Nonce,
    ) -> Option<(EarlyClaim, Vec<Action>)> {
        let EarlyLegs { legs, ahead, next } = &mut self.early;
        legs.retain(|_, leg| now < leg.until);
        let of_owner = legs.values().filter(|leg| leg.owner == owner).count();
        if legs.len() >= MAX_EARLY || of_owner >= MAX_OF_ONE || legs.contains_key(&early) {
            return None;
        }
        let serial = *next;
        *next += 1;
        // Whose leg it is is known by the key alone: any ticket of the node's will do.
        let state = LegState::new(LegSecret { key, ticket: Ticket::default() });
        let until = now.saturating_add(LIFETIME);
        legs.insert(early, EarlyLeg { owner, serial, state, until, session: None });
        let (came, others): (VecDeque<_>, _) = ahead.drain(..).partition(|ahead| ahead.early == early);
        *ahead = others;
        let in_time = came.into_iter().filter(|ahead| now < ahead.at.saturating_add(AHEAD_LIFETIME));
        let actions = in_time
            .flat_map(|ahead| self.on_datagram(now, ahead.tuple, &ahead.datagram, &mut nonce))
            .collect();
        Some((EarlyClaim { early, serial }, actions))
    }

    /// What was asked for is this session: its client's leg is where the early one is, now or as soon as it has proved that.
    pub fn adopt(&mut self, expected: &EarlyClaim, session: SessionRef) -> Vec<Action> {
        match self.early.legs.get_mut(&expected.early) {
            Some(leg) if leg.serial == expected.serial => {
                leg.session = Some(session);
                self.take_over(expected.early)
            }
            Some(_) | None => Vec::new(),
        }
    }

    /// There is no session for it.
    pub fn forget_early(&mut self, EarlyClaim { early, serial }: &EarlyClaim) {
        if self.early.legs.get(early).is_some_and(|leg| leg.serial == *serial) {
            self.early.legs.remove(early);
        }
    }

    /// The control connection is gone: nothing binds early by it any more.
    pub fn forget_early_of(&mut self, owner: u64) {
        self.early.legs.retain(|_, leg| leg.owner != owner);
    }

    /// The ticket of a datagram under an early name, which no session has issued.
    pub fn early_ticket(datagram: &[u8]) -> Option<Ticket> {
        let request = Request::parse(datagram)?;
        Early::of_index(request.index()).map(|_| *request.ticket())
    }

    pub(super) fn early_request(
        &mut self,
        now: Duration,
        tuple: Tuple,
        early: Early,
        request: &Request,
        datagram: &[u8],
        nonce: impl FnOnce() -> Nonce,
    ) -> Option<Vec<Action>> {
        let EarlyLegs { legs, ahead, .. } = &mut self.early;
        let Some(EarlyLeg { state, until, .. }) = legs.get_mut(&early) else {
            if ahead.len() >= MAX_AHEAD {
                ahead.pop_front();
            }
            ahead.push_back(Ahead { at: now, early, tuple, datagram: datagram.try_into().ok()? });
            return None;
        };
        if *until <= now || request.leg() != Leg::Client {
            return None;
        }
        let name = early.session();
        let proven = request.prove(&state.secret.key, name.generation, tuple.remote())?;
        let fits = reachable(tuple.remote()) && !self.own.holds(tuple) && !self.bound.contains_key(&tuple);
        match proven {
            Proven::Bind { counter } => {
                if counter <= state.counter {
                    return None;
                }
                state.counter = counter;
                fits.then(|| vec![state.challenge(now, tuple, name, Leg::Client, nonce)])
            }
            Proven::Answer { nonce } => {
                let pending = state.pending?;
                if pending.tuple != tuple || pending.nonce != nonce || pending.until <= now {
                    return None;
                }
                state.pending = None;
                if !fits {
                    return None;
                }
                state.bound = Some(tuple);
                Some(self.take_over(early))
            }
        }
    }

    /// Gives the session what its early leg has proved, if both are there.
    fn take_over(&mut self, early: Early) -> Vec<Action> {
        let Some(EarlyLeg { state, session: Some(session), .. }) = self.early.legs.get(&early) else {
            return Vec::new();
        };
        let Some(tuple) = state.bound else { return Vec::new() };
        let (session, counter) = (*session, state.counter);
        self.early.legs.remove(&early);
        let found =
            self.sessions.get_mut(&session.index).filter(|found| found.generation == session.generation);
        // Bound by its own name meanwhile, or somebody else is there.
        let place = found.and_then(|found| found.client.as_mut()).filter(|place| place.bound.is_none());
        let Some(place) = place.filter(|_| !self.bound.contains_key(&tuple)) else { return Vec::new() };
        place.counter = place.counter.max(counter);
        self.bind(session, Leg::Client, tuple)
    }
}

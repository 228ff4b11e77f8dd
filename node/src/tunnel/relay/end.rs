//! An end's half of binding, client or connector: one leg of one session, from its own UDP port.
//!
//! 1. It sends a Bind, and again with a higher counter until it hears that the leg is ready; for a while, then it gives up.
//! 2. It answers every challenge that the node made for it, and repeats the last answer with each new Bind.
//! 3. `Ready` comes over the control connection. No end-to-end packet leaves before that ([`End::may_send`]), but for the
//!    first of a leg that was never ready: once it has answered, where the node holds them ([`End::node_holds`]), or
//!    where one has come from the other end, which the node sends on to legs in force only, and `Ready` is on its way.
//! 4. Silence while something is awaited, or a new local address, starts again at 1. During silence packets still go
//!    out, since the old leg may be good; after a change of address they cannot.
//!
//! An end need not know its session to begin: under an early name, which the node was told with the request, it binds while
//! that is answered ([`End::name`]). What it has bound by then counts for the session.
//!
//! A false challenge cannot be opened without the key, and an answer to one that was carried elsewhere is of no use
//! anywhere but at the address it names. What an end believes too late costs it a retry.

use std::time::Duration;

use super::node::CHALLENGE_LIFETIME;
use super::tuple::{Leg, SessionRef};
use super::wire::{BindKey, Challenge, REQUEST_LEN, Ticket, seal_answer, seal_bind};

/// Between the first two Binds, and, doubled each time, between later ones.
pub(super) const FIRST_RETRY: Duration = Duration::from_millis(250);
const MAX_RETRY: Duration = Duration::from_millis(500);

/// A leg that is not ready by then will not be.
pub(super) const GIVE_UP: Duration = Duration::from_secs(30);

/// The shortest silence that counts, and the longest: when binding again has brought nothing, silence means less.
const MIN_SILENCE: Duration = Duration::from_secs(1);
const MAX_SILENCE: Duration = Duration::from_secs(15);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndInput<'a> {
    /// From the node's address: something for which [`super::wire::is_challenge`] holds.
    Challenge(&'a [u8]),
    /// The control connection says that bind number `counter` is in force.
    Ready { counter: u64 },
    /// An end-to-end packet left, while this is the connection's probe timeout (RFC 9002 §6.2.1).
    Sent { pto: Duration },
    /// An end-to-end packet arrived.
    Heard,
    /// Packets now leave from another local address.
    AddressChanged,
    /// [`End::deadline`] has passed.
    Timer,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndOutput {
    /// Send this to the node's relay address.
    Send([u8; REQUEST_LEN]),
    /// End-to-end packets may go now.
    Ready,
    /// The node was not reached, or would not have this leg. Nothing more is tried until the address changes.
    GaveUp,
}

/// How far a leg is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegState {
    /// Not in force, or in doubt.
    Binding,
    /// Not known to be in force, but first packets may leave.
    Answered,
    /// In force, and nothing speaks against it.
    Ready,
    /// The node was not reached in time.
    GaveUp,
}

/// An end's half of binding.
pub struct End {
    name: Name,
    /// What it was called before the node knew its session.
    early: Option<Name>,
    leg: Leg,
    /// Of the last Bind sent.
    counter: u64,
    state: State,
    /// Was never ready.
    is_fresh: bool,
    /// The node holds first packets.
    node_holds: bool,
    silence: Silence,
}

/// As what an end binds.
struct Name {
    key: BindKey,
    ticket: Ticket,
    session: SessionRef,
}

enum State {
    Binding(Round),
    Ready,
    GivenUp,
}

struct Round {
    /// A `ready` for an earlier one is old news.
    first_counter: u64,
    began: Duration,
    retry_at: Duration,
    retry: Duration,
    challenge: Option<(Challenge, Called, Duration)>,
    /// The leg was ready before, and may still be.
    was_ready: bool,
    /// Something came through it since the round began. That does not end the round, since an address translator may
    /// have moved one direction only; but it is no reason to give the leg up.
    heard: bool,
}

/// By which of an end's names a challenge called it.
#[derive(Clone, Copy)]
enum Called {
    ByName,
    Early,
}

#[derive(Default)]
struct Silence {
    sent: Option<Unanswered>,
    /// Rounds since something was heard.
    rounds: u32,
}

/// Packets that left since something was last heard. One alone may be an acknowledgement, which nobody answers; what
/// should be answered is sent again after a probe timeout.
struct Unanswered {
    first: Duration,
    pto: Duration,
    again: Option<Duration>,
}

impl End {
    /// A leg, and its first Bind, which may go out before the node knows the session. `counter` is the highest that was
    /// ever used under this key, 0 for none.
    pub fn start(
        key: BindKey,
        ticket: Ticket,
        session: SessionRef,
        leg: Leg,
        counter: u64,
        now: Duration,
    ) -> (Self, EndOutput) {
        let round = Round::new(counter, now, false);
        let mut end = Self {
            name: Name { key, ticket, session },
            early: None,
            leg,
            counter,
            state: State::Binding(round),
            is_fresh: true,
            node_holds: false,
            silence: Silence::default(),
        };
        let bind = end.bind();
        (end, bind)
    }

    /// Whether end-to-end packets may leave.
    pub const fn may_send(&self) -> bool {
        match &self.state {
            State::Ready => true,
            State::Binding(round) => round.was_ready || self.may_send_first(round),
            State::GivenUp => false,
        }
    }

    const fn may_send_first(&self, round: &Round) -> bool {
        self.is_fresh && round.challenge.is_some() && (self.node_holds || round.heard)
    }

    pub const fn state(&self) -> LegState {
        match &self.state {
            State::Binding(round) if self.may_send_first(round) => LegState::Answered,
            State::Binding(_) => LegState::Binding,
            State::Ready => LegState::Ready,
            State::GivenUp => LegState::GaveUp,
        }
    }

    /// The number of the last Bind.
    pub const fn counter(&self) -> u64 {
        self.counter
    }

    /// A new ticket, when the old one is about to end.
    pub const fn set_ticket(&mut self, ticket: Ticket) {
        self.name.ticket = ticket;
    }

    /// The node has said that it holds a client's first packets until the leg is in force. They go to the leg's ticket.
    pub const fn node_holds(&mut self) {
        self.node_holds = true;
    }

    /// The node has given the session of an end that began under an early name. What is under way goes on; where nothing came
    /// of it, it begins at once under its own name.
    pub fn name(&mut self, key: BindKey, ticket: Ticket, session: SessionRef) -> Vec<EndOutput> {
        self.early = Some(std::mem::replace(&mut self.name, Name { key, ticket, session }));
        match &mut self.state {
            State::Binding(Round { challenge: Some((_, called, _)), .. }) => {
                *called = Called::Early;
                Vec::new()
            }
            State::Binding(_) => vec![self.bind()],
            State::Ready | State::GivenUp => Vec::new(),
        }
    }

    /// Binds again under the key and ticket of a new control connection. What was in force stays in doubt, not out.
    pub fn rekey(&mut self, key: BindKey, ticket: Ticket, now: Duration) -> Vec<EndOutput> {
        let was_ready = self.may_send();
        (self.name.key, self.name.ticket, self.counter) = (key, ticket, 0);
        self.early = None;
        // The first packets go to another ticket by now, and perhaps to another node.
        self.node_holds = false;
        self.again(now, was_ready)
    }

    /// When to hand in [`EndInput::Timer`].
    pub fn deadline(&self) -> Option<Duration> {
        match &self.state {
            State::Binding(round) => Some(round.retry_at),
            State::Ready => self.silence.deadline(),
            State::GivenUp => None,
        }
    }

    pub fn handle(&mut self, input: EndInput<'_>, now: Duration) -> Vec<EndOutput> {
        match input {
            EndInput::Challenge(datagram) => self.challenge(datagram, now),
            EndInput::Ready { counter } => self.ready(counter),
            EndInput::Sent { pto } => {
                self.silence.sent(now, pto);
                Vec::new()
            }
            EndInput::Heard => {
                self.heard();
                Vec::new()
            }
            EndInput::AddressChanged => self.again(now, false),
            EndInput::Timer => self.timer(now),
        }
    }

    fn challenge(&mut self, datagram: &[u8], now: Duration) -> Vec<EndOutput> {
        let State::Binding(round) = &mut self.state else { return Vec::new() };
        let names = [(Some(&self.name), Called::ByName), (self.early.as_ref(), Called::Early)];
        let opened = names.into_iter().find_map(|(name, called)| {
            let Name { key, session, .. } = name?;
            Some((Challenge::open(datagram, key, *session, self.leg)?, called))
        });
        let Some((challenge, called)) = opened else { return Vec::new() };
        round.challenge = Some((challenge, called, now));
        self.answer(&challenge, called).into_iter().collect()
    }

    fn ready(&mut self, counter: u64) -> Vec<EndOutput> {
        match &self.state {
            State::Binding(round) if counter >= round.first_counter => {
                self.state = State::Ready;
                self.early = None;
                self.is_fresh = false;
                self.silence.sent = None;
                vec![EndOutput::Ready]
            }
            State::Binding(_) | State::Ready | State::GivenUp => Vec::new(),
        }
    }

    fn heard(&mut self) {
        self.silence = Silence::default();
        if let State::Binding(round) = &mut self.state {
            round.heard = true;
        }
    }

    fn timer(&mut self, now: Duration) -> Vec<EndOutput> {
        match &mut self.state {
            State::Binding(round) if round.retry_at <= now => {
                if now >= round.began.saturating_add(GIVE_UP) {
                    if round.was_ready && round.heard {
                        self.state = State::Ready;
                        return Vec::new();
                    }
                    self.state = State::GivenUp;
                    return vec![EndOutput::GaveUp];
                }
                round.retry = round.retry.saturating_mul(2).min(MAX_RETRY);
                round.retry_at = now.saturating_add(round.retry);
                let fresh = round.challenge.filter(|(.., at)| now < at.saturating_add(CHALLENGE_LIFETIME));
                let answer = fresh.and_then(|(challenge, called, _)| self.answer(&challenge, called));
                let bind = self.bind();
                answer.into_iter().chain([bind]).collect()
            }
            State::Ready if self.silence.deadline().is_some_and(|at| at <= now) => {
                self.silence.rounds = self.silence.rounds.saturating_add(1);
                self.again(now, true)
            }
            State::Binding(_) | State::Ready | State::GivenUp => Vec::new(),
        }
    }

    fn again(&mut self, now: Duration, was_ready: bool) -> Vec<EndOutput> {
        self.state = State::Binding(Round::new(self.counter, now, was_ready));
        self.silence.sent = None;
        vec![self.bind()]
    }

    fn bind(&mut self) -> EndOutput {
        self.counter = self.counter.saturating_add(1);
        let Name { key, ticket, session } = &self.name;
        EndOutput::Send(seal_bind(key, *session, self.leg, ticket, self.counter))
    }

    fn answer(&self, challenge: &Challenge, called: Called) -> Option<EndOutput> {
        let Name { key, ticket, session } = match called {
            Called::ByName => &self.name,
            Called::Early => self.early.as_ref()?,
        };
        Some(EndOutput::Send(seal_answer(key, *session, self.leg, ticket, challenge)))
    }
}

impl Round {
    const fn new(counter: u64, now: Duration, was_ready: bool) -> Self {
        Self {
            first_counter: counter.saturating_add(1),
            began: now,
            retry_at: now.saturating_add(FIRST_RETRY),
            retry: FIRST_RETRY,
            challenge: None,
            was_ready,
            heard: false,
        }
    }
}

impl Silence {
    fn sent(&mut self, now: Duration, pto: Duration) {
        let patience = self.patience(pto);
        match &mut self.sent {
            Some(sent) if sent.again.is_some() => {}
            Some(sent) if now <= sent.first.saturating_add(patience) => {
                if now >= sent.first.saturating_add(sent.pto / 2) {
                    sent.again = Some(now);
                }
            }
            _ => self.sent = Some(Unanswered { first: now, pto, again: None }),
        }
    }

    /// After [`Self::patience`], but not before the repeated packet had its time too.
    fn deadline(&self) -> Option<Duration> {
        let sent = self.sent.as_ref()?;
        let repeated = sent.again?.saturating_add(sent.pto);
        Some(sent.first.saturating_add(self.patience(sent.pto)).max(repeated))
    }

    /// max(3 PTO, 1 s); longer with each round that brought nothing.
    fn patience(&self, pto: Duration) -> Duration {
        let silence = pto.saturating_mul(3).max(MIN_SILENCE);
        silence.saturating_mul(1 << self.rounds.min(4)).min(MAX_SILENCE.max(silence))
    }
}

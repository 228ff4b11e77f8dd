//! Where a private session gets its number, and who relays its packets: the gate where it can, or the daemon.
//!
//! 1. [`Carrier::open`]: a number, good until its expiry, which the gate keeps too.
//! 2. [`Carrier::place`]: both legs are where they are. The gate sends packets on by itself, or, where it cannot (IPv4 to
//!    IPv6, a local route, an interface that it does not guard, a leg that comes by TCP), judges and counts them and lets
//!    them through to the node's socket.
//! 3. [`Carrier::cut`]: no packet passes any more; what each end had sent.
//!
//! Calls to the gate block, some of them for milliseconds: a [thread of their own](super::gate_thread) waits for them.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::error;

use crate::clock;
use crate::gate::{self, Detour, FlowGrant, PeerAddress, Placement, RelayError, Way};

use super::super::carrier::is_stream;
use super::super::relay::{MAX_SESSIONS, Pair, SessionRef, Terms, Tuple, Usage};
use super::super::wire::RelayPath;
use super::gate_thread::GateThread;

/// Numbers and flows of sessions.
pub(super) enum Carrier {
    Gate {
        gate: gate::Relay,
        thread: GateThread,
    },
    /// No gate, or none that relays.
    Daemon(Mutex<Numbers>),
}

/// Why a session has no number or no flows.
#[derive(Debug, thiserror::Error)]
pub(super) enum CarrierError {
    #[error("the node has as many sessions as it can")]
    Full,
    #[error(transparent)]
    Relay(RelayError),
    #[error(transparent)]
    Gate(#[from] gate::GateError),
    #[error("the node is shutting down")]
    Stopped,
}

impl CarrierError {
    /// It may be otherwise in a moment: a neighbour is looked for, or who was there before is about to leave.
    pub(super) const fn passes(&self) -> bool {
        matches!(self, Self::Relay(RelayError::TupleInUse | RelayError::Detour(Detour::Unresolved)))
    }
}

impl From<Way> for RelayPath {
    fn from(way: Way) -> Self {
        match way {
            Way::Gate => Self::Kernel,
            Way::Host => Self::Userspace,
        }
    }
}

impl From<RelayError> for CarrierError {
    fn from(error: RelayError) -> Self {
        match error {
            RelayError::Full => Self::Full,
            error => Self::Relay(error),
        }
    }
}

/// What became of sessions that were to be cut.
#[derive(Debug, Default)]
pub(super) struct Cut {
    /// What each end had sent, of those that the gate has counted.
    pub(super) counted: Vec<(SessionRef, [Usage; 2])>,
    /// Packets of these may still pass.
    pub(super) failed: Vec<(SessionRef, CarrierError)>,
}

impl Carrier {
    /// # Errors
    /// When there can be no thread for the gate.
    pub(super) fn new(gate: Option<gate::Relay>) -> io::Result<Self> {
        Ok(match gate {
            Some(gate) => Self::Gate { gate, thread: GateThread::start()? },
            None => Self::Daemon(Mutex::new(Numbers::new(u32::from_ne_bytes(clock::random())))),
        })
    }

    /// Whether the gate keeps the sessions' expiry too.
    pub(super) const fn has_gate(&self) -> bool {
        matches!(self, Self::Gate { .. })
    }

    /// A number for a session of `person`.
    pub(super) async fn open(
        &self,
        person: String,
        lifetime: Duration,
    ) -> Result<(SessionRef, Terms), CarrierError> {
        let expires = clock::monotonic().saturating_add(lifetime);
        match self {
            Self::Daemon(numbers) => {
                let session = lock(numbers).next().ok_or(CarrierError::Full)?;
                Ok((session, Terms { identity: 0, epoch: 0, expires }))
            }
            Self::Gate { gate, thread } => {
                let gate = gate.clone();
                let opened = thread.ask(move || {
                    let identity = gate.identity(&person)?;
                    let session = gate.open_session(identity, lifetime)?;
                    Ok::<_, CarrierError>((session, identity))
                });
                let (session, identity) = opened.await??;
                Ok((of_gate(session), terms(identity, expires)))
            }
        }
    }

    /// The number of a session of `person` that an earlier process has given, if it is still good.
    pub(super) async fn adopt(
        &self,
        session: SessionRef,
        person: String,
        lifetime: Duration,
    ) -> Result<Option<Terms>, CarrierError> {
        let expires = clock::monotonic().saturating_add(lifetime);
        match self {
            Self::Daemon(numbers) => {
                Ok(lock(numbers).claim(session).then_some(Terms { identity: 0, epoch: 0, expires }))
            }
            Self::Gate { gate, thread } => {
                let gate = gate.clone();
                let identity = thread.ask(move || {
                    let identity = gate.identity(&person)?;
                    let is_theirs = gate.sessions().contains(&(to_gate(session), identity.index));
                    Ok::<_, CarrierError>(is_theirs.then_some(identity))
                });
                Ok(identity.await??.map(|identity| terms(identity, expires)))
            }
        }
    }

    /// The sessions that the gate has now. It blocks where somebody else asks the gate at that moment.
    pub(super) fn sessions(&self) -> Vec<SessionRef> {
        match self {
            Self::Gate { gate, .. } => {
                gate.sessions().into_iter().map(|(session, _)| of_gate(session)).collect()
            }
            Self::Daemon(_) => Vec::new(),
        }
    }

    /// The sessions that the gate has of these people, or of all but these.
    pub(super) async fn of_people(
        &self,
        people: BTreeSet<String>,
        are_meant: bool,
    ) -> Result<BTreeSet<SessionRef>, CarrierError> {
        let Self::Gate { gate, thread } = self else { return Ok(BTreeSet::new()) };
        let gate = gate.clone();
        let found = thread.end(move || {
            let indices = people.iter().map(|person| gate.identity(person).map(|identity| identity.index));
            let indices = indices.collect::<Result<BTreeSet<_>, _>>()?;
            let sessions = gate.sessions().into_iter();
            let meant = sessions.filter(|(_, index)| indices.contains(index) == are_meant);
            Ok::<_, CarrierError>(meant.map(|(session, _)| of_gate(session)).collect())
        });
        found.await?
    }

    /// Lets sessions pass between their legs, each of them once; by the node's socket where it is to. What became of each, in
    /// this order; on [`RelayPath::Userspace`] the daemon's table has to carry it.
    pub(super) async fn place(&self, wanted: &[(Pair, bool)]) -> Vec<Result<RelayPath, CarrierError>> {
        match self {
            Self::Daemon(_) => wanted.iter().map(|_| Ok(RelayPath::Userspace)).collect(),
            Self::Gate { gate, thread } => {
                let gate = gate.clone();
                let by_stream =
                    |pair: &Pair| [pair.client, pair.connector].iter().any(|leg| is_stream(leg.remote()));
                let placement = |(pair, to_host): &(Pair, bool)| Placement {
                    grant: grant(pair),
                    to_host: *to_host || by_stream(pair),
                };
                let placements: Vec<_> = wanted.iter().map(placement).collect();
                match thread.ask(move || gate.place_all(&placements)).await {
                    Ok(placed) => placed.into_iter().map(|way| Ok(way?.into())).collect(),
                    Err(_) => wanted.iter().map(|_| Err(CarrierError::Stopped)).collect(),
                }
            }
        }
    }

    /// Ends sessions. An error is one of all of them.
    pub(super) async fn cut(&self, sessions: Vec<SessionRef>) -> Result<Cut, CarrierError> {
        match self {
            Self::Daemon(numbers) => {
                let mut numbers = lock(numbers);
                sessions.into_iter().for_each(|session| numbers.give_back(session));
                Ok(Cut::default())
            }
            Self::Gate { gate, thread } => {
                let gate = gate.clone();
                let sessions: Vec<_> = sessions.into_iter().map(to_gate).collect();
                let gate::Revoked { ended, failed } =
                    thread.end(move || gate.revoke_all(&sessions)).await??;
                let counted = |ended: gate::Ended| (of_gate(ended.session), counted(ended.usage));
                Ok(Cut {
                    counted: ended.into_iter().map(counted).collect(),
                    failed: failed
                        .into_iter()
                        .map(|(session, error)| (of_gate(session), error.into()))
                        .collect(),
                })
            }
        }
    }

    /// What a session has carried so far, where the gate counts.
    pub(super) fn usage(&self, session: SessionRef) -> Option<[Usage; 2]> {
        match self {
            Self::Daemon(_) => None,
            Self::Gate { gate, .. } => match gate.usage(to_gate(session)) {
                Ok(usage) => usage.map(counted),
                Err(error) => {
                    error!(error = &error as &dyn std::error::Error, "a session's counts cannot be read");
                    None
                }
            },
        }
    }
}

/// Numbers where there is no gate to give them. A number comes with a generation that no other session of this process
/// has, and of an earlier one's hardly any.
pub(super) struct Numbers {
    used: BTreeSet<u32>,
    next: u32,
    /// Of the last one, and what it began with.
    generation: u32,
    began: u32,
    /// Those of an earlier process that were taken up here.
    claimed: BTreeSet<SessionRef>,
}

impl Numbers {
    const fn new(generation: u32) -> Self {
        Self { used: BTreeSet::new(), next: 0, generation, began: generation, claimed: BTreeSet::new() }
    }

    fn next(&mut self) -> Option<SessionRef> {
        if self.used.len() >= MAX_SESSIONS as usize {
            return None;
        }
        while !self.used.insert(self.next) {
            self.next = (self.next + 1) % MAX_SESSIONS;
        }
        let index = self.next;
        self.next = (self.next + 1) % MAX_SESSIONS;
        self.generation = self.generation.wrapping_add(1);
        Some(SessionRef { index, generation: self.generation })
    }

    /// Once: what has ended is not taken up again, nor is what this process has given itself.
    fn claim(&mut self, session: SessionRef) -> bool {
        let given = 1..=self.generation.wrapping_sub(self.began);
        let is_earlier = !given.contains(&session.generation.wrapping_sub(self.began));
        let is_new = is_earlier && session.index < MAX_SESSIONS && !self.claimed.contains(&session);
        is_new && self.used.insert(session.index) && self.claimed.insert(session)
    }

    fn give_back(&mut self, session: SessionRef) {
        self.used.remove(&session.index);
    }
}

fn lock(numbers: &Mutex<Numbers>) -> MutexGuard<'_, Numbers> {
    numbers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The daemon's table compares epochs for equality only, which their lower halves will do for.
#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
const fn terms(identity: gate::IdentityRef, expires: Duration) -> Terms {
    Terms { identity: identity.index, epoch: identity.epoch as u32, expires }
}

pub(super) const fn of_gate(session: gate::SessionRef) -> SessionRef {
    SessionRef { index: session.index, generation: session.generation }
}

const fn to_gate(session: SessionRef) -> gate::SessionRef {
    gate::SessionRef { index: session.index, generation: session.generation }
}

fn grant(pair: &Pair) -> FlowGrant {
    FlowGrant { session: to_gate(pair.session), client: end(pair.client), connector: end(pair.connector) }
}

const fn end(tuple: Tuple) -> PeerAddress {
    PeerAddress { local: tuple.local(), remote: tuple.remote() }
}

pub(super) fn counted(usage: [gate::Usage; 2]) -> [Usage; 2] {
    usage.map(|usage| Usage { packets: usage.packets, bytes: usage.bytes })
}

/// Whether the address is one of this host's: only such a one can be bound.
pub(super) fn is_own(address: SocketAddr) -> bool {
    std::net::UdpSocket::bind(SocketAddr::new(address.ip(), 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On one thread that is shared, as on five hundred: the store would wait.
    #[test]
    fn who_else_blocks_does_not_wait_for_the_gate() {
        const WAIT: Duration = Duration::from_secs(3);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
        runtime.unwrap().block_on(async {
            let (gate, planted) = gate::in_memory(vec![443]);
            let carrier = Carrier::new(Some(gate)).unwrap();
            let (session, _) = carrier.open("local:ann".to_owned(), Duration::from_secs(60)).await.unwrap();
            planted.slow_down(WAIT);
            let began = std::time::Instant::now();
            let mut cutting = std::pin::pin!(carrier.cut(vec![session]));
            tokio::select! {
                biased;
                _ = &mut cutting => panic!("the store waits for the gate"),
                stored = async { tokio::task::spawn_blocking(|| ()).await } => stored.unwrap(),
            }
            assert_eq!(cutting.await.unwrap().counted.len(), 1);
            assert!(began.elapsed() >= WAIT, "control");
        });
    }

    #[test]
    fn a_number_is_given_once_and_its_place_again_under_another_generation() {
        let mut numbers = Numbers::new(u32::MAX);
        let first = numbers.next().unwrap();
        assert_eq!(first, SessionRef { index: 0, generation: 0 });
        assert!(!numbers.claim(SessionRef { index: 0, generation: 9 }));
        assert!(numbers.claim(SessionRef { index: 1, generation: 9 }));
        assert!(!numbers.claim(SessionRef { index: MAX_SESSIONS, generation: 9 }));
        assert_eq!(numbers.next().unwrap().index, 2);
        let rest: Vec<_> = std::iter::from_fn(|| numbers.next()).collect();
        assert_eq!(rest.len() + 3, MAX_SESSIONS as usize);
        numbers.give_back(first);
        let again = numbers.next().unwrap();
        assert_eq!(again.index, first.index);
        assert_ne!(again.generation, first.generation);
        assert_eq!(numbers.next(), None);
    }
}

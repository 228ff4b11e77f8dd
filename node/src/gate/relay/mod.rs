//! From a decision to the kernel's maps: sessions that the gate relays by itself.
//!
//! 1. [`Relay::identity`]: the person's place among the epochs. One store there ends all of the person's sessions.
//! 2. [`Relay::open_session`]: an index, a generation that no session has had there, an expiry.
//! 3. [`Relay::install`]: once both ends have proved where they are, one flow entry for each direction;
//!    [`Relay::replace_leg`] when one of them has moved. What the gate cannot carry by itself,
//!    [`Relay::install_to_host`] lets through to the node's own socket. [`Relay::place_all`] does whichever it takes, for many
//!    sessions at once.
//! 4. [`Relay::revoke`], [`Relay::revoke_identity`], or [`Relay::expire`] some time after the kernel has.
//!
//! A [`FlowGrant`] is the only way in. What a false accept costs: somebody's encrypted packets are sent to an address that
//! did not ask for them. What a false reject costs: the session goes through the userspace relay, or binds again.
//!
//! Calls block, those that remove entries for some milliseconds: memory of a removed entry is used again only when no
//! CPU can still read it, and a revocation returns only when no CPU still acts on what was revoked.

mod ending;
#[cfg(test)]
mod faults;
mod flows;
mod hops;
mod host;
mod maps;
mod moving;
mod placing;
mod reading;
mod routing;
mod sessions;
mod state;

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use portcullis_common::layout::{FlowEntry, Hop};

use super::control::monotonic;
use super::pin::PinDir;
use super::{GateError, PeerAddress};
use hops::HopKey;
use maps::KernelMaps;
use routing::{Changes, Routing};
use sessions::{Direction, Onward};
use state::State;

#[cfg(test)]
pub(crate) use faults::{Planted, in_memory};
pub use flows::{FlowStatus, SessionStatus, Standing, flows};
pub use hops::Detour;
pub use routing::keep_neighbour;

/// A session's place in the gate, and which of the sessions that have had that place it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionRef {
    pub index: u32,
    pub generation: u32,
}

/// A person's place among the epochs, and the epoch when it was asked for. A later revocation of the person makes it
/// worthless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdentityRef {
    pub index: u32,
    pub epoch: u64,
}

/// A session may pass between two ends, each as the node sees it: its own address and that of the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowGrant {
    pub session: SessionRef,
    pub client: PeerAddress,
    pub connector: PeerAddress,
}

/// Where a session is to pass, and who is to send its packets on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    pub grant: FlowGrant,
    /// The node's own socket, even where the gate could.
    pub to_host: bool,
}

/// One of a session's two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leg {
    Client,
    Connector,
}

impl Leg {
    pub const BOTH: [Self; 2] = [Self::Client, Self::Connector];
}

/// What a session has carried: packets, and their bytes by the IP header's length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub packets: u64,
    pub bytes: u64,
}

/// Where a session's packets come from, and who sends them on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    pub client: PeerAddress,
    pub connector: PeerAddress,
    /// The node's own socket, rather than the gate.
    pub to_host: bool,
}

/// Who sends a session's packets on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Gate,
    /// The node's own socket gets them.
    Host,
}

/// A session that is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub session: SessionRef,
    /// Index of the person.
    pub identity: u32,
    /// By the end that sent it, as in [`Leg::BOTH`].
    pub usage: [Usage; 2],
}

/// What became of sessions that were to be ended.
#[derive(Debug, Default)]
pub struct Revoked {
    pub ended: Vec<Ended>,
    /// Packets of these may still pass.
    pub failed: Vec<(SessionRef, GateError)>,
}

impl Revoked {
    /// Those that are ended, if all of them are.
    fn all(self) -> Result<Vec<Ended>, GateError> {
        match self.failed.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(self.ended),
        }
    }
}

/// All that is relayed, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayTotals {
    pub sessions: usize,
    pub flows: usize,
    pub hops: usize,
    /// Since this process opened the relay, and what sessions that it found had carried before; by the end that sent it.
    pub usage: [Usage; 2],
}

/// Why a grant is not in the gate.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("the session is over")]
    Over,
    #[error("the session has its flows already")]
    Installed,
    #[error("the leg is not where it was said to be")]
    Moved,
    #[error("the addresses and ports belong to another flow or to a tunnel connection")]
    TupleInUse,
    #[error("packets would be sent back to where they come from, or to the node itself")]
    Reflection,
    #[error("the node's side is not a port that it serves")]
    NotServed,
    #[error("there is no room for more sessions or flows")]
    Full,
    /// The userspace relay's case.
    #[error("not on the fast path: {0}")]
    Detour(#[from] Detour),
    #[error(transparent)]
    Gate(GateError),
}

impl From<GateError> for RelayError {
    fn from(error: GateError) -> Self {
        match error {
            GateError::Full { .. } => Self::Full,
            GateError::Taken { .. } => Self::TupleInUse,
            error => Self::Gate(error),
        }
    }
}

/// Asked to find a neighbour and to keep it found: interface index and address.
pub type Keeper = Arc<dyn Fn(u32, IpAddr) -> io::Result<()> + Send + Sync>;

/// The relayed sessions of a gate. Cheap to clone.
#[derive(Clone)]
pub struct Relay {
    state: Arc<Mutex<State>>,
    /// For the thread of [`watch`](Self::watch).
    watch: Arc<Mutex<Option<(Changes, KernelNetwork)>>>,
}

impl Relay {
    /// Takes over what an earlier process has left: sessions go on to their own expiry and can be listed and revoked;
    /// flows of sessions that are over are removed. Of the network namespace that it is called in.
    pub(super) fn open(pin: &PinDir, guarded: &[String], served: &[u16]) -> Result<Self, GateError> {
        let network = || KernelNetwork::open(guarded).map_err(GateError::Netlink);
        let watch = (Changes::open().map_err(GateError::Netlink)?, network()?);
        let maps = Box::new(KernelMaps::open(pin)?);
        let state = State::adopt(maps, Box::new(network()?), served.to_vec(), monotonic())?;
        Ok(Self { state: Arc::new(Mutex::new(state)), watch: Arc::new(Mutex::new(Some(watch))) })
    }

    /// The person's place. The same for the same person as long as the gate's maps live; two persons share one only by
    /// chance (one in 65,536), and then what ends the sessions of one ends those of the other.
    ///
    /// # Errors
    ///
    /// When the maps cannot be read.
    pub fn identity(&self, person: &str) -> Result<IdentityRef, GateError> {
        self.state().identity(person)
    }

    /// Makes room for a session of the person, which nothing passes on yet.
    ///
    /// # Errors
    ///
    /// [`RelayError::Full`] with 65,536 sessions; [`RelayError::Gate`] when the maps cannot be written.
    pub fn open_session(&self, identity: IdentityRef, lifetime: Duration) -> Result<SessionRef, RelayError> {
        self.state().open_session(identity, lifetime, monotonic())
    }

    /// Lets the session pass between its ends.
    ///
    /// # Errors
    ///
    /// Any of [`RelayError`]; the session then has no flows and is still there.
    pub fn install(&self, grant: &FlowGrant) -> Result<(), RelayError> {
        self.resolving(|state| state.install(grant, monotonic()))
    }

    /// Lets packets of the session's ends pass to the node's own socket: for a session that the gate cannot relay
    /// ([`RelayError::Detour`]) and the node then does. Its ends may be of two families. They are judged and counted in the
    /// gate as those of any session, and are cut by the same calls; the flows that the session has are replaced, and
    /// counts go on.
    ///
    /// # Errors
    ///
    /// Any of [`RelayError`] but those of the way out. The session is as it was, or, where the maps failed half way,
    /// over.
    pub fn install_to_host(&self, grant: &FlowGrant) -> Result<(), RelayError> {
        self.state().install_to_host(grant, monotonic())
    }

    /// The end that was at `old` is now where the grant says; counts go on. What goes to the node's socket keeps going
    /// there.
    ///
    /// # Errors
    ///
    /// Any of [`RelayError`]. The session is where it was, or, where the maps failed half way, over.
    pub fn replace_leg(&self, leg: Leg, old: PeerAddress, grant: &FlowGrant) -> Result<(), RelayError> {
        self.resolving(|state| state.replace_leg(leg, &old.flow(), grant, monotonic()))
    }

    /// Makes the flows of sessions be what the grants say, whatever they were, an earlier process's included: in the gate
    /// where they can be, and to the node's own socket otherwise. No session twice. The CPUs are waited for once, if at
    /// all; each has its own result, in the order of `wanted`.
    ///
    /// # Errors
    ///
    /// Any of [`RelayError`]. [`Detour::Unresolved`] alone of the detours: a neighbour is being looked for, and it is worth
    /// another try within milliseconds. The session is where it was, or, where the maps failed half way, over.
    pub fn place_all(&self, wanted: &[Placement]) -> Vec<Result<Way, RelayError>> {
        self.state().place_all(wanted, monotonic())
    }

    /// Ends a session. When this returns without an error, no CPU lets a packet of it through any more. `None`: it was
    /// over already.
    ///
    /// # Errors
    ///
    /// When the maps can neither be told that it is over nor be rid of its flows, or no CPU can be waited for.
    pub fn revoke(&self, session: SessionRef) -> Result<Option<Ended>, GateError> {
        self.state().revoke(session, monotonic())
    }

    /// Ends sessions, as [`revoke`](Self::revoke) does one, and waits for the CPUs once, or not at all where no packet of
    /// them can be under way. Those that were over are left out; but of one that [`expire`](Self::expire) has just removed it
    /// is told once more what it has carried, since whoever ends it at the same time would not know. Those that failed can
    /// be asked for again.
    ///
    /// # Errors
    ///
    /// When no CPU can be waited for: then packets of any of them may pass.
    pub fn revoke_all(&self, sessions: &[SessionRef]) -> Result<Revoked, GateError> {
        self.state().revoke_all(sessions, monotonic())
    }

    /// Ends all sessions of the person, those included that were granted meanwhile on an [`IdentityRef`] of before.
    ///
    /// # Errors
    ///
    /// As of [`revoke`](Self::revoke), for any of them.
    pub fn revoke_identity(&self, person: &str) -> Result<Vec<Ended>, GateError> {
        let mut state = self.state();
        let identity = state.identity(person)?;
        state.revoke_identity(identity.index, monotonic())
    }

    /// Removes what has expired, and what could not be removed when it was revoked. To be called now and then: the
    /// kernel lets nothing of it through in any case.
    ///
    /// # Errors
    ///
    /// As of [`revoke`](Self::revoke).
    pub fn expire(&self) -> Result<Vec<Ended>, GateError> {
        self.state().expire(monotonic())
    }

    /// The sessions that are not over, with those of an earlier process, and the index of each one's person.
    pub fn sessions(&self) -> Vec<(SessionRef, u32)> {
        self.state().sessions()
    }

    /// Where the session passes now; nothing where it has no flows or is over.
    pub fn placed(&self, session: SessionRef) -> Option<Placed> {
        self.state().placed_at(session)
    }

    /// What the session has carried so far, by the end that sent it; nothing where it is over.
    ///
    /// # Errors
    ///
    /// When the maps cannot be read.
    pub fn usage(&self, session: SessionRef) -> Result<Option<[Usage; 2]>, GateError> {
        self.state().usage(session)
    }

    /// # Errors
    ///
    /// When the maps cannot be read.
    pub fn totals(&self) -> Result<RelayTotals, GateError> {
        self.state().totals()
    }

    /// Who finds neighbours that the kernel does not know, and keeps them.
    pub fn set_keeper(&self, keeper: Keeper) {
        self.state().keeper = Some(keeper);
    }

    /// Looks every route and neighbour up again.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be asked, or the maps not be written.
    pub fn refresh(&self) -> Result<(), GateError> {
        let taken = self.watch.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((changes, mut network)) = taken else { return Ok(()) };
        let result = refresh(&self.state, &mut network);
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = Some((changes, network));
        result
    }

    /// Follows changes of routes, links and neighbours from now on, on a thread of its own that ends with the last
    /// handle. A second call does nothing.
    ///
    /// # Errors
    ///
    /// When there can be no thread.
    pub fn watch(&self) -> io::Result<()> {
        let taken = self.watch.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((changes, network)) = taken else { return Ok(()) };
        let state = Arc::downgrade(&self.state);
        std::thread::Builder::new()
            .name("gate-hops".to_owned())
            .spawn(move || follow(&state, &changes, network))
            .map(drop)
    }

    /// Runs `change`; where it lacks a neighbour, has that found and tries again for a short while.
    fn resolving(
        &self,
        mut change: impl FnMut(&mut State) -> Result<(), RelayError>,
    ) -> Result<(), RelayError> {
        const TRIES: u32 = 20;
        const PAUSE: Duration = Duration::from_millis(10);
        for _ in 0..TRIES {
            let mut state = self.state();
            match change(&mut state) {
                Err(RelayError::Detour(Detour::Unresolved)) if state.has_asked() => {}
                result => return result,
            }
            drop(state);
            std::thread::sleep(PAUSE);
        }
        Err(RelayError::Detour(Detour::Unresolved))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

/// Where packets to a destination go next.
trait Network: Send {
    /// From one of this host's addresses to a destination. With [`Detour::Unresolved`], whose address is missing.
    fn resolve(&mut self, from: IpAddr, to: IpAddr) -> io::Result<Resolved>;
}

type Resolved = Result<(HopKey, Hop), (Detour, Option<HopKey>)>;

pub(super) struct KernelNetwork {
    routing: Routing,
    guarded: Vec<String>,
}

impl KernelNetwork {
    fn open(guarded: &[String]) -> io::Result<Self> {
        Ok(Self { routing: Routing::open()?, guarded: guarded.to_vec() })
    }
}

impl Network for KernelNetwork {
    fn resolve(&mut self, from: IpAddr, to: IpAddr) -> io::Result<Resolved> {
        hops::resolve(&mut self.routing, &self.guarded, from, to)
    }
}

/// The entry that does with packets from that leg of a session as the direction says.
fn entry(direction: &Direction, session: SessionRef, from: Leg) -> FlowEntry {
    let onward = match direction.onward {
        Some(Onward { output, hop }) => FlowEntry { hop, ..FlowEntry::rewrite(&direction.input, &output) },
        None => FlowEntry { hop: FlowEntry::TO_HOST, ..FlowEntry::default() },
    };
    FlowEntry { session: session.index, generation: session.generation, direction: from as u32, ..onward }
}

/// Resolves without the lock: a revocation must not wait for 65,536 questions.
fn refresh(state: &Mutex<State>, network: &mut dyn Network) -> Result<(), GateError> {
    let state = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let destinations = state().destinations();
    let mut found = Vec::with_capacity(destinations.len());
    for (from, to) in destinations {
        let resolved = network.resolve(from, to).map_err(GateError::Netlink)?;
        found.push(((from, to), resolved));
    }
    state().set_hops(found.into_iter().collect(), monotonic())
}

fn follow(state: &Weak<Mutex<State>>, changes: &Changes, mut network: KernelNetwork) {
    const IDLE: Duration = Duration::from_secs(5);
    /// News come in bursts.
    const SETTLE: Duration = Duration::from_millis(20);
    const BURST: usize = 1_000;
    const EVERY: u32 = 12;
    for round in 0u32.. {
        let changed = match changes.wait(if round == 0 { SETTLE } else { IDLE }) {
            Ok(changed) => changed,
            Err(error) => {
                tracing::error!(%error, "changes of routes and neighbours cannot be followed");
                std::thread::sleep(IDLE);
                false
            }
        };
        let mut burst = 0;
        while changed && burst < BURST && changes.wait(SETTLE).unwrap_or(false) {
            burst += 1;
        }
        let Some(state) = state.upgrade() else { return };
        // At first, and now and then for what was lost with the socket's buffer or could not be written.
        if !changed && round % EVERY != 0 {
            continue;
        }
        if let Err(error) = refresh(&state, &mut network) {
            tracing::error!(error = &error as &dyn std::error::Error, "next hops may be out of date");
        }
    }
}

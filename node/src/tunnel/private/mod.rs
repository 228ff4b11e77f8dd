//! The node's half of private sessions: from a client's `Open` to the one event that says how it ended.
//!
//! ```text
//! client      Hello(token) ─▶ who it is                    client: token, login, bounds
//!             Open ─────────▶ decide ─▶ Permit             permit: policy, and where it leads; waiting: for a connector
//!                             number, ticket, grant        open, carrier: the gate's numbers or the daemon's
//!             ◀── Opened      Offer ──▶ connector          links: a connection that takes sessions
//!             Bind ─────────▶ Binds ◀── Bind               binding, works: the legs, then the gate or the daemon's relay
//!             ◀── Ready       Ready ──▶
//!             ◀── EndSession  EndSession ──▶               ending, cutting: the gate, then everybody is told
//!             Resume ───────▶ decide                       resume, left: what an earlier process has left in the gate
//! ```
//!
//! 1. `book` is the machine: which sessions there are, whose, and when time has ended them. It does nothing itself.
//! 2. Everything else is a loop or a call around it, on one [`PrivateSessions`].
//! 3. A session is in the book or it is over. Whoever takes it out cuts it, tells both ends and writes the one event.
//!
//! **What a mistake costs.** A false accept carries somebody's packets to a connector, which believes only the signed
//! grant: made for one client's key, one application, one address. A false reject costs a person the session.

mod binding;
mod book;
mod carrier;
mod client;
mod cutting;
mod ending;
mod gate_thread;
mod grouped;
mod left;
mod links;
mod listing;
mod open;
mod permit;
mod resume;
mod waiting;
mod works;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use quinn::Connection;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clients::Clients;
use crate::clock;
use crate::config::Active;
use crate::event::Events;
use crate::flow::ClientId;
use crate::gate;
use crate::metrics::Metrics;
use crate::session::Sessions;
use crate::store::Store;
use crate::token::Tokens;

use super::access_wire::AccessFrame;
use super::carrier::Carried;
use super::enrolment::{EnrolmentError, node_key};
use super::identity::TunnelKey;
use super::ids::Mint;
use super::relay::wire::Ticket;
use super::relay::{self, Binds, Relay};
use book::{Book, ControlId};
use carrier::Carrier;
use cutting::Cuttings;
use ending::Over;
use left::Left;

pub use ending::EndError;
pub use listing::PrivateSession;

pub(super) use client::serve_client;
#[cfg(test)]
pub(super) use links::SUSPICION;
pub(super) use links::ToLink;
#[cfg(test)]
pub(super) use waiting::{LINK_WAIT, MAX_WAITING};

use links::LinkSeat;
use works::Works;

/// How often time is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What private sessions need of the node.
pub struct PrivateParts {
    pub store: Store,
    pub sessions: Sessions,
    pub clients: Clients,
    pub tokens: Tokens,
    pub events: Events,
    pub metrics: Arc<Metrics>,
    pub active: watch::Receiver<Arc<Active>>,
    /// The gate's relay, where there is one.
    pub gate: Option<gate::Relay>,
    /// Where legs that come by TCP really are.
    pub carried: Carried,
}

/// The private sessions of one node. Clones share them.
#[derive(Clone)]
pub struct PrivateSessions {
    shared: Arc<Shared>,
}

/// Why there can be no private sessions.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Key(#[from] EnrolmentError),
    #[error("there can be no thread for the gate: {0}")]
    Thread(#[from] io::Error),
}

struct Shared {
    store: Store,
    sessions: Sessions,
    clients: Clients,
    tokens: Tokens,
    events: Events,
    metrics: Arc<Metrics>,
    active: watch::Receiver<Arc<Active>>,
    key: TunnelKey,
    carrier: Carrier,
    carried: Carried,
    /// Carries what the gate does not, and hands over binds.
    relay: Arc<Relay>,
    /// Mints tickets; absent until the tunnel is served.
    mint: RwLock<Option<Mint>>,
    inner: Mutex<Inner>,
    /// There is something to be told of legs.
    work_came: Notify,
    /// Counts connections that have begun to take sessions.
    came: watch::Sender<u64>,
    queues: tokio::sync::Mutex<relay::Queues>,
    began: Duration,
}

/// What one lock guards.
#[derive(Default)]
struct Inner {
    book: Book,
    binds: Binds,
    /// What the machine has decided, and nobody knows yet.
    works: Works,
    clients: BTreeMap<ControlId, ClientSeat>,
    links: BTreeMap<ControlId, LinkSeat>,
    /// What the gate is being told to end, or is to be.
    cutting: Cuttings,
    /// What an earlier process has left in the gate.
    left: Left,
    /// Those of it that it has yet to be told of, and whether somebody does.
    over: Vec<Over>,
    is_ending: bool,
    /// Clients whose login's end somebody waits for.
    watched: BTreeSet<ClientId>,
    next_control: u64,
}

/// An access client's connection.
#[derive(Clone)]
struct ClientSeat {
    client: ClientId,
    connection: Connection,
    to: mpsc::Sender<AccessFrame>,
}

impl PrivateSessions {
    /// Those of a node that begins. Sessions that an earlier process has left in the gate can be resumed for a while.
    ///
    /// # Errors
    /// When the store has no key for the tunnel, or there can be no thread for the gate.
    pub async fn new(parts: PrivateParts) -> Result<Self, StartError> {
        let key = node_key(&parts.store).await?;
        let (relay, queues) = Relay::new(clock::monotonic);
        let PrivateParts { store, sessions, clients, tokens, events, metrics, active, gate, carried } = parts;
        let carrier = Carrier::new(gate)?;
        // Before the first session of this process is opened.
        let left = Left::new(carrier.sessions(), clients.all_live(clock::now()));
        let shared = Shared {
            store,
            sessions,
            clients,
            tokens,
            events,
            metrics,
            active,
            key,
            carrier,
            carried,
            relay,
            mint: RwLock::default(),
            inner: Mutex::new(Inner { left, ..Inner::default() }),
            work_came: Notify::new(),
            came: watch::Sender::default(),
            queues: tokio::sync::Mutex::new(queues),
            began: clock::monotonic(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// What a client's first bind may carry; none before the tunnel is served.
    pub fn ticket(&self) -> Option<Ticket> {
        self.shared.ticket()
    }

    /// What goes between the node's sockets and QUIC.
    pub(super) fn relay(&self) -> &Arc<Relay> {
        &self.shared.relay
    }

    /// Serves until `shutdown`. Tickets are minted by `mint`, and nothing is relayed to the node's own `ports`.
    pub(super) fn serve(&self, mint: Mint, ports: BTreeSet<u16>, shutdown: CancellationToken) -> TaskTracker {
        *self.shared.mint.write().unwrap_or_else(PoisonError::into_inner) = Some(mint);
        let tasks = TaskTracker::new();
        tasks.spawn(Arc::clone(&self.shared).bind(ports, shutdown.clone()));
        tasks.spawn(Arc::clone(&self.shared).look(shutdown.clone()));
        tasks.spawn(Arc::clone(&self.shared).follow_logouts(shutdown.clone()));
        tasks.spawn(Arc::clone(&self.shared).follow_policy(shutdown));
        tasks.close();
        tasks
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn active(&self) -> Arc<Active> {
        Arc::clone(&self.active.borrow())
    }
}

impl Inner {
    fn control(&mut self) -> ControlId {
        self.next_control += 1;
        ControlId(self.next_control)
    }
}

impl std::fmt::Debug for PrivateSessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrivateSessions").finish_non_exhaustive()
    }
}

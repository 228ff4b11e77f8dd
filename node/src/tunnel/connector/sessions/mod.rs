//! The private sessions that a connector serves: from a node's offer to the end of the last stream.
//!
//! ```text
//! Offer ── grant of our node, for us, within the local limits? ──▶ leg: a socket of its own, bound ──▶ Taken
//! client ── its key, as the grant names it? ── (end to end) ────▶ streams, flows ──▶ the application      serve, udp
//! ```
//!
//! 1. The grant says who, what and until when; a node's word alone opens nothing that it has not signed.
//! 2. All legs are under one QUIC endpoint ([`Legs`]); a connection's address says which session it belongs to.
//! 3. A session outlives the control connection that brought it. Offered again, its leg binds with the key of the new one.
//! 4. It ends when the node says so, when its grant expires, when its leg cannot be bound, or [`UNATTENDED`] after its
//!    last end-to-end connection.
//!
//! A false accept dials a private address for somebody whom no policy let in.

mod serve;
mod udp;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{Connection, Endpoint};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::clock;

use super::super::carrier::{LegWay, Route};
use super::super::end_to_end::{self, Rooms, SessionCode, Use};
use super::super::grant::{Grant, Reach, SignedGrant};
use super::super::identity::{KeyHash, TunnelKey};
use super::super::relay::wire::BindKey;
use super::super::relay::{BoundLeg, End, Leg, LegAddress, LegState, Legs, SessionRef};
use super::super::transport::TransportError;
use super::super::wire::{Authority, Decline, EndReason, Instance, Offer};

/// Sessions of one connector: each needs a socket, and some need more for what they carry.
const MAX_SESSIONS: usize = 16_384;

/// Handshakes of one session at a time. A client has one; another one may still hang after it has given up.
const MAX_HANDSHAKES: usize = 2;

/// A session without an end-to-end connection ends after so long.
const UNATTENDED: Duration = Duration::from_secs(90);

/// The last packets get so long to leave.
const PARTING_TIMEOUT: Duration = Duration::from_secs(2);

/// All sessions of a connector, whichever node they came from.
pub(super) struct Sessions {
    key: TunnelKey,
    node_key: KeyHash,
    allow: Option<BTreeSet<Authority>>,
    legs: Legs,
    endpoint: Endpoint,
    table: Mutex<Table>,
    /// By person: how many bytes their connections may make this process hold.
    rooms: Rooms,
    /// Of this table: with it all sessions are gone.
    instance: Instance,
    /// Their streams and flows.
    streams: TaskTracker,
    draining: CancellationToken,
}

#[derive(Default)]
struct Table {
    /// Numbers are a node's own.
    by_ref: HashMap<(Authority, SessionRef), Arc<Session>>,
    by_address: HashMap<LegAddress, Arc<Session>>,
}

/// One session.
struct Session {
    node: Authority,
    session: SessionRef,
    leg: Arc<BoundLeg>,
    address: LegAddress,
    /// The latest, and who is to be told of the session's end.
    terms: watch::Sender<Terms>,
    connection: Mutex<Option<Connection>>,
    /// Those that may begin.
    handshakes: Arc<Semaphore>,
    ended: CancellationToken,
}

#[derive(Clone)]
struct Terms {
    grant: Arc<Grant>,
    link: mpsc::Sender<SessionRef>,
}

impl Sessions {
    pub(super) fn new(
        key: TunnelKey,
        node_key: KeyHash,
        allow: Option<BTreeSet<Authority>>,
    ) -> Result<Arc<Self>, TransportError> {
        let legs = Legs::default();
        // Serves nobody: who may come is known only with the session.
        let rooms = Rooms::new(end_to_end::CONNECTOR);
        let none = rooms.take("", Use::Streams);
        let nobody = end_to_end::connector_config(&key, KeyHash::from_bytes([0; 32]), &none)?;
        let endpoint = end_to_end::endpoint(&legs, &key, Some(nobody))?;
        Ok(Arc::new(Self {
            key,
            node_key,
            allow,
            legs,
            endpoint,
            table: Mutex::default(),
            rooms,
            instance: Instance(u64::from_ne_bytes(clock::random())),
            streams: TaskTracker::new(),
            draining: CancellationToken::new(),
        }))
    }

    pub(super) const fn instance(&self) -> Instance {
        self.instance
    }

    /// Takes end-to-end connections until the endpoint is closed.
    pub(super) async fn run(self: Arc<Self>) {
        while let Some(incoming) = self.endpoint.accept().await {
            let session = LegAddress::of(incoming.remote_address())
                .and_then(|address| self.table().by_address.get(&address).cloned());
            let begun = session.and_then(|session| {
                let handshake = Arc::clone(&session.handshakes).try_acquire_owned().ok()?;
                Some((session, handshake))
            });
            match begun {
                Some((session, handshake)) => {
                    tokio::spawn(serve::connection(Arc::clone(&self), session, incoming, handshake));
                }
                // A client that has to wait says it again.
                None => incoming.ignore(),
            }
        }
    }

    /// Takes the session that `node` offers over a control connection and by its route, or one that is known over again;
    /// its end is told to `link`.
    pub(super) fn offer(
        self: &Arc<Self>,
        node: &Authority,
        (control, route): (&Connection, &Arc<Route>),
        offer: Offer,
        link: mpsc::Sender<SessionRef>,
    ) -> Result<(), Decline> {
        let Offer { session, ticket, grant } = offer;
        if self.draining.is_cancelled() {
            return Err(Decline::Draining);
        }
        let grant = SignedGrant::from_bytes(grant)
            .verify_offer(self.node_key, session, self.key.hash(), clock::now())
            .map_err(|error| {
                warn!(%node, index = session.index, %error, "the grant of a session opens nothing");
                Decline::BadGrant
            })?;
        if !self.may_reach(&grant.reach) {
            warn!(
                %node,
                application = grant.application,
                person = grant.person,
                "a session leads where this connector's own limits do not"
            );
            return Err(Decline::NotAllowed);
        }
        let key = BindKey::export(control, session, Leg::Connector).map_err(|_| Decline::NoSocket)?;
        let known = self.table().by_ref.get(&(node.clone(), session)).cloned();
        if let Some(known) = known {
            if known.grant().client == grant.client {
                debug!(%node, index = session.index, "a session goes on over another control connection");
                known.terms.send_replace(Terms { grant: Arc::new(grant), link });
                known.leg.rekey(key, ticket);
                return Ok(());
            }
            // The node has signed this one later: it has forgotten the other.
            self.forget(&known, SessionCode::Ended);
        }
        if self.table().by_ref.len() >= MAX_SESSIONS {
            return Err(Decline::Busy);
        }
        let remote = control.remote_address();
        let (socket, way) = route.leg().map_err(|error| {
            warn!(%error, "no socket for a session");
            Decline::NoSocket
        })?;
        let start = |now| End::start(key, ticket, session, Leg::Connector, 0, now);
        let (leg, socket) = BoundLeg::start(socket, remote, start);
        info!(
            %node,
            index = session.index,
            person = grant.person,
            application = grant.application,
            "a session is offered"
        );
        let address = self.legs.add(socket);
        let session = Arc::new(Session {
            node: node.clone(),
            session,
            leg,
            address,
            terms: watch::Sender::new(Terms { grant: Arc::new(grant), link }),
            connection: Mutex::default(),
            handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            ended: CancellationToken::new(),
        });
        let mut table = self.table();
        table.by_ref.insert((node.clone(), session.session), Arc::clone(&session));
        table.by_address.insert(address, Arc::clone(&session));
        drop(table);
        tokio::spawn(Arc::clone(self).keep(session, way));
        Ok(())
    }

    /// Bind number `counter` of a session is in force.
    pub(super) fn ready(&self, node: &Authority, session: SessionRef, counter: u64) {
        if let Some(session) = self.table().by_ref.get(&(node.clone(), session)) {
            session.leg.ready(counter);
        }
    }

    /// The node has ended a session: nothing of it passes any more.
    pub(super) fn end(&self, node: &Authority, session: SessionRef, reason: EndReason) {
        let Some(session) = self.table().by_ref.get(&(node.clone(), session)).cloned() else { return };
        info!(%node, index = session.session.index, %reason, "the node has ended a session");
        self.forget(&session, SessionCode::Ended);
    }

    /// From now on no session, stream or flow is taken; running ones go on.
    pub(super) fn drain(&self) {
        self.draining.cancel();
        self.streams.close();
    }

    /// After [`Self::drain`]: the last stream has ended.
    pub(super) async fn drained(&self) {
        self.streams.wait().await;
    }

    /// Ends all that is left.
    pub(super) async fn close(&self) {
        self.endpoint.close(SessionCode::Leaving.into(), b"the connector stops");
        let _ = timeout(PARTING_TIMEOUT, self.endpoint.wait_idle()).await;
        for session in self.table().by_address.values() {
            session.ended.cancel();
        }
    }

    /// Without a list of its own, a connector reaches what its node has signed. With one, a network is taken if there is
    /// something in it that the list names; each stream is looked at by itself.
    fn may_reach(&self, reach: &Reach) -> bool {
        self.allow.as_ref().is_none_or(|allow| match reach {
            Reach::Host(host) => allow.contains(host),
            Reach::Network { .. } => allow.iter().any(|entry| reach.resolve(Some(entry)).is_some()),
        })
    }

    /// What a request may be connected to.
    fn destination(&self, grant: &Grant, wanted: Option<&Authority>) -> Option<Authority> {
        let destination = grant.reach.resolve(wanted)?;
        self.allow.as_ref().is_none_or(|allow| allow.contains(&destination)).then_some(destination)
    }

    /// Keeps the leg bound, wherever it has to go, and ends the session when its time has come.
    async fn keep(self: Arc<Self>, session: Arc<Session>, way: LegWay) {
        let moved = |socket, _| {
            self.legs.replace(session.address, session.leg.move_to(socket));
        };
        let mut state = session.leg.state();
        let unbound = state.wait_for(|state| *state == LegState::GaveUp);
        tokio::select! {
            never = Arc::clone(&session.leg).run() => match never {},
            never = way.keep_going(|time| session.leg.heard_within(time), moved) => match never {},
            () = session.ended.cancelled() => return,
            _ = unbound => info!(index = session.session.index, "a session's leg cannot be bound"),
            () = serve::expired(&session) => info!(index = session.session.index, "a session's time is over"),
            () = serve::unattended(&session) => debug!(index = session.session.index, "a session's client is gone"),
        }
        let code = if serve::is_expired(&session) { SessionCode::Expired } else { SessionCode::Closed };
        let link = session.terms.borrow().link.clone();
        self.forget(&session, code);
        // A link that is gone is not to be told; the node will not hear of the session again.
        let _ = link.send(session.session).await;
    }

    fn forget(&self, session: &Arc<Session>, code: SessionCode) {
        session.ended.cancel();
        let mut table = self.table();
        table.by_ref.remove(&(session.node.clone(), session.session));
        table.by_address.remove(&session.address);
        drop(table);
        if let Some(connection) = session.connection().take() {
            connection.close(code.into(), b"");
        }
        let (legs, address) = (self.legs.clone(), session.address);
        tokio::spawn(async move {
            // The close has to leave by the leg.
            tokio::time::sleep(PARTING_TIMEOUT).await;
            legs.remove(address);
        });
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn connection(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grant(&self) -> Arc<Grant> {
        Arc::clone(&self.terms.borrow().grant)
    }
}

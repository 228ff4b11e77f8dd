//! Connections of connectors that take private sessions: who is offered one, and who is offered it again.
//!
//! A session goes on in the process that took it, over whichever of its connections. When another process of the same
//! connector comes, the earlier one may be dead, which its own connections tell only after [`IDLE_TIMEOUT`]: those that are
//! silent for [`SUSPICION`] are closed. Sessions of a process that has no connection left, while another has, are over.

use std::sync::Arc;
use std::time::Duration;

use quinn::ConnectionError;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::clock;

use super::super::identity::KeyHash;
use super::super::registry::Link;
use super::super::relay::wire::BindKey;
use super::super::relay::{Leg, LegSecret, SessionRef};
use super::super::session::NodeInput;
use super::super::transport::IDLE_TIMEOUT;
use super::super::wire::{CloseCode, ConnectorName, EndReason, Instance, Offer};
use super::book::{About, ControlId, Seat};
use super::{Inner, PrivateSessions, Shared};

/// What waits for a connector that does not read: more than all its sessions can ask for at a time. Beyond, it is gone.
const TO_LINK: usize = 65_536;

/// So long is a connection heard again after another process of its connector has come, if its own is alive: it sends
/// something every second.
pub(in super::super) const SUSPICION: Duration = Duration::from_millis(2500);

/// So often in a row is one heard that is not suspected any more.
const SUSPECTED: usize = 2;

/// So many sessions are offered again before others have their turn.
const OFFERS: usize = 32;

/// A connection of a connector that takes sessions.
pub(in super::super) struct LinkSeat {
    pub(super) link: Arc<Link>,
    pub(super) key: KeyHash,
    instance: Instance,
    /// Its process may be dead.
    suspected: bool,
    to: mpsc::Sender<NodeInput>,
}

/// The seat of a connection in service; empty when dropped.
pub(in super::super) struct ToLink {
    private: PrivateSessions,
    control: ControlId,
    inputs: mpsc::Receiver<NodeInput>,
}

impl LinkSeat {
    pub(super) fn tell(&self, input: NodeInput) {
        if self.to.try_send(input).is_err() && self.link.connection.close_reason().is_none() {
            warn!(connector = %self.link.connector, "a connector does not read what it is told about its sessions");
            self.link.connection.close(CloseCode::Timeout.into(), b"control frames are not read");
        }
    }
}

impl ToLink {
    /// What to tell the connector next.
    pub(in super::super) async fn next(&mut self) -> Option<NodeInput> {
        self.inputs.recv().await
    }

    /// The connection was silent and is heard again: it is offered what nobody else took meanwhile.
    pub(in super::super) fn heard_again(&self) {
        let inner = self.private.shared.lock();
        let connector = inner.links.get(&self.control).map(|seat| seat.link.connector.clone());
        let unserved = connector.map(|connector| inner.book.unserved(&connector)).unwrap_or_default();
        drop(inner);
        self.private.shared.may_serve(unserved);
    }

    /// The connector has taken a session.
    pub(in super::super) fn taken(&self, session: SessionRef) {
        self.private.shared.lock().book.taken(session, self.control);
    }

    /// The connector will not serve a session, or does so no longer. Nothing of one that is another's.
    pub(in super::super) fn ended(&self, session: SessionRef, reason: EndReason) {
        let is_its_own = self.private.shared.lock().book.is_of_link(session, self.control);
        if is_its_own {
            self.private.shared.end_soon(vec![(session, reason)]);
        }
    }
}

impl Drop for ToLink {
    fn drop(&mut self) {
        self.private.shared.link_gone(self.control);
    }
}

impl PrivateSessions {
    /// The connection takes sessions from now on, and at once those of its connector that nobody serves.
    pub(in super::super) fn takes_sessions(
        &self,
        link: &Arc<Link>,
        key: KeyHash,
        instance: Instance,
    ) -> ToLink {
        let (to, inputs) = mpsc::channel(TO_LINK);
        let mut inner = self.shared.lock();
        let control = inner.control();
        let mut suspects = Vec::new();
        for (earlier, seat) in &mut inner.links {
            if seat.link.connector == link.connector && seat.key == key && seat.instance != instance {
                seat.suspected = true;
                suspects.push((*earlier, Arc::clone(&seat.link)));
            }
        }
        let seat = LinkSeat { link: Arc::clone(link), key, instance, suspected: false, to };
        inner.links.insert(control, seat);
        let unserved = inner.book.unserved(&link.connector);
        drop(inner);
        self.shared.may_serve(unserved);
        for (control, link) in suspects {
            tokio::spawn(Arc::clone(&self.shared).suspect(control, link));
        }
        ToLink { private: self.clone(), control, inputs }
    }
}

impl Shared {
    fn link_gone(self: &Arc<Self>, control: ControlId) {
        let mut inner = self.lock();
        let Some(LinkSeat { link, .. }) = inner.links.remove(&control) else { return };
        // Its sessions are kept from when it was last heard.
        let is_silent = link.connection.close_reason() == Some(ConnectionError::TimedOut);
        let silence = if is_silent { IDLE_TIMEOUT } else { Duration::ZERO };
        inner.book.link_gone(control, clock::monotonic().saturating_sub(silence));
        // With those that waited for this one to be heard again.
        let unserved = inner.book.unserved(&link.connector);
        drop(inner);
        self.offer_again(unserved);
    }

    /// Closes a connection from which nothing comes. Something may be under way of one that has died.
    async fn suspect(self: Arc<Self>, control: ControlId, link: Arc<Link>) {
        let heard = || link.connection.stats().udp_rx.datagrams;
        for _ in 0..SUSPECTED {
            let before = heard();
            sleep(SUSPICION).await;
            if heard() == before {
                debug!(connector = %link.connector, "a connector has restarted");
                link.connection
                    .close(CloseCode::Timeout.into(), b"it is silent, and another process is here");
                return;
            }
        }
        if let Some(seat) = self.lock().links.get_mut(&control) {
            seat.suspected = false;
        }
    }

    /// There is a connection that sessions can go to: those that have none, and requests that wait for one.
    fn may_serve(self: &Arc<Self>, unserved: Vec<SessionRef>) {
        self.came.send_modify(|came| *came = came.wrapping_add(1));
        self.offer_again(unserved);
    }

    /// Offers sessions whose connector nobody speaks for to another connection of its process, if there is one. In its own
    /// time: there may be thousands, and others wait for the same lock.
    fn offer_again(self: &Arc<Self>, sessions: Vec<SessionRef>) {
        // Without a runtime the node is gone.
        let (false, Ok(runtime)) = (sessions.is_empty(), Handle::try_current()) else { return };
        let shared = Arc::clone(self);
        runtime.spawn(async move {
            for batch in sessions.chunks(OFFERS) {
                let over = |session: &SessionRef| Some((*session, shared.offer_once_more(*session).err()?));
                shared.end_soon(batch.iter().filter_map(over).collect());
                yield_now().await;
            }
        });
    }

    /// An error is why the session ends.
    fn offer_once_more(&self, session: SessionRef) -> Result<(), EndReason> {
        let destined = self.lock().destined(session)?;
        let Some((about, _)) = destined else { return Ok(()) };
        // Signed again: the old one is with the client and the connector that was. It takes its time, for which nobody else
        // is to wait.
        let grant = self.sign(session, &about).map_err(|error| {
            warn!(%error, "a grant cannot be signed");
            EndReason::RelayFailed
        })?;
        let mut inner = self.lock();
        if let Some((_, link)) = inner.destined(session)?
            && !self.offer(&mut inner, session, link, grant)
        {
            debug!(connector = %about.connector, "a connection yields no bind key");
        }
        Ok(())
    }

    /// Offers a session that is in the book to a connection. False: its TLS yields no key, so it is as good as lost.
    pub(super) fn offer(
        &self,
        inner: &mut Inner,
        session: SessionRef,
        link: ControlId,
        grant: Vec<u8>,
    ) -> bool {
        let Some(seat) = inner.links.get(&link) else { return false };
        let Ok(key) = BindKey::export(&seat.link.connection, session, Leg::Connector) else { return false };
        let Some(ticket) = self.ticket() else { return false };
        if inner.binds.expect(session, Leg::Connector, LegSecret { key, ticket }).is_err() {
            return false;
        }
        let instance = seat.instance;
        seat.tell(NodeInput::Offer(Offer { session, ticket, grant }));
        inner.book.offered(session, link, instance, clock::monotonic());
        true
    }
}

impl Inner {
    /// To which connection a session goes that nobody serves; to none yet where one of its process may be heard again. An
    /// error is why it ends: its process is gone, and another is here.
    fn destined(&self, session: SessionRef) -> Result<Option<(Arc<About>, ControlId)>, EndReason> {
        let unserved = self.book.get(session).filter(|entry| matches!(entry.connector, Seat::Empty { .. }));
        let Some(entry) = unserved else { return Ok(None) };
        let (about, instance) = (&entry.about, entry.instance);
        let of_process = |seat: &LinkSeat| {
            seat.key == about.connector_key && instance.is_none_or(|instance| seat.instance == instance)
        };
        if let Some(link) = self.link_for(&about.connector, of_process) {
            return Ok(Some((Arc::clone(about), link)));
        }
        let other = self.link_for(&about.connector, |_| true).and_then(|other| self.links.get(&other));
        let is_there = |seat: &LinkSeat| seat.link.connector == about.connector && of_process(seat);
        match other {
            Some(other) if !self.links.values().any(is_there) => {
                let is_same_key = other.key == about.connector_key;
                let (same, another) = (EndReason::ConnectorRestarted, EndReason::ConnectorRevoked);
                Err(if is_same_key { same } else { another })
            }
            Some(_) | None => Ok(None),
        }
    }

    /// The connection that a session of this connector goes to: of those that are heard and `may` have it, the one with the
    /// fewest sessions. Silent ones are none: a connector that has died falls silent on all of them, and its connections end
    /// one after the other.
    pub(super) fn link_for(
        &self,
        connector: &ConnectorName,
        may: impl Fn(&LinkSeat) -> bool,
    ) -> Option<ControlId> {
        let fits = |seat: &LinkSeat| {
            seat.link.connector == *connector
                && seat.link.takes_streams()
                && seat.link.is_healthy()
                && may(seat)
        };
        let candidates: Vec<(ControlId, bool)> = self
            .links
            .iter()
            .filter(|(_, seat)| fits(seat))
            .map(|(control, seat)| (*control, seat.suspected))
            .collect();
        match *candidates {
            [] => None,
            [(only, _)] => Some(only),
            _ => {
                let rank = |(control, suspected): &(ControlId, bool)| (*suspected, self.book.load(*control));
                candidates.into_iter().min_by_key(rank).map(|(control, _)| control)
            }
        }
    }

    /// Whether it has a connection that takes sessions, be it a silent one.
    pub(super) fn knows_sessions(&self, connector: &ConnectorName) -> bool {
        self.links.values().any(|seat| seat.link.connector == *connector)
    }
}

//! Legs that prove where they are, and packets that may pass from then on.
//!
//! 1. The demux hands over Binds and Answers; the machine decides; a Challenge leaves at once.
//! 2. What the gate or the daemon's table has to be told waits in a queue of its own, since the gate may take its time to
//!    find a neighbour. A `Ready` waits behind what it depends on.
//! 3. What the client has sent ahead is held by the machine, and goes on when both ends have been told: from here, whoever
//!    relays the rest.
//! 4. The client's leg is judged by the address at which it is: policy may know networks, and the leg need not come from
//!    where the control connection does. Of a leg that comes by TCP that is the TCP connection's.

use std::collections::BTreeSet;
use std::sync::Arc;

use quinn::Connection;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::clock;

use super::super::access_wire::AccessFrame;
use super::super::carrier::is_stream;
use super::super::relay::wire::BindKey;
use super::super::relay::{
    self, Action, BindDatagram, Binds, Early, EarlyClaim, FirstDatagram, Leg, Pair, SessionRef,
};
use super::super::session::NodeInput;
use super::super::wire::{EndReason, RelayPath};
use super::book::ControlId;
use super::carrier::is_own;
use super::{Inner, Shared};

/// What follows from one datagram, in order.
pub(super) struct Work {
    session: SessionRef,
    placing: Option<Action>,
    ready: Vec<(Leg, u64)>,
}

impl Shared {
    /// Serves the queues, one after the other's owner if the tunnel is served anew.
    pub(super) async fn bind(self: Arc<Self>, ports: BTreeSet<u16>, shutdown: CancellationToken) {
        let mut queues = tokio::select! {
            queues = self.queues.lock() => queues,
            () = shutdown.cancelled() => return,
        };
        let super::Queues { datagrams: relay::Queues { binds, firsts }, work } = &mut *queues;
        let placing = async {
            while let Some(work) = work.recv().await {
                self.perform(work).await;
            }
        };
        let binding = async {
            while let Some(datagram) = binds.recv().await {
                self.on_bind(&datagram, &ports);
            }
        };
        let holding = async {
            while let Some(datagram) = firsts.recv().await {
                self.on_first(datagram);
            }
        };
        tokio::select! {
            () = placing => {}
            () = binding => {}
            () = holding => {}
            () = shutdown.cancelled() => {}
        }
    }

    fn on_bind(self: &Arc<Self>, datagram: &BindDatagram, ports: &BTreeSet<u16>) {
        let remote = datagram.tuple.remote();
        // The node itself, on whichever of its addresses: packets would go in circles.
        if !is_stream(remote) && ports.contains(&remote.port()) && is_own(remote) {
            return;
        }
        let now = clock::monotonic();
        // Any of the node's own will do, but a stranger has none.
        if Binds::early_ticket(&datagram.bytes).is_some_and(|ticket| !self.is_ticket(ticket)) {
            return;
        }
        let actions = self.lock().binds.on_datagram(now, datagram.tuple, &datagram.bytes, clock::random);
        self.act(actions);
    }

    fn on_first(&self, FirstDatagram { tuple, bytes }: FirstDatagram) {
        let mut inner = self.lock();
        // Under the lock with which a session is taken out: nothing is sent on once it is.
        if let Some(onward) = inner.binds.on_first(clock::monotonic(), tuple, bytes) {
            self.relay.send_ahead(&onward);
        }
    }

    /// A client asks for a session whose leg binds already.
    pub(super) fn expect_early(
        self: &Arc<Self>,
        control: ControlId,
        connection: &Connection,
        early: Early,
    ) -> Option<EarlyClaim> {
        let key = BindKey::export(connection, early.session(), Leg::Client).ok()?;
        let now = clock::monotonic();
        let expected = self.lock().binds.expect_early(control.0, early, key, now, clock::random);
        let (claim, actions) = expected?;
        self.act(actions);
        Some(claim)
    }

    /// What came of the request: a session, or nothing.
    pub(super) fn settle_early(self: &Arc<Self>, early: &EarlyClaim, session: Option<SessionRef>) {
        let actions = {
            let mut inner = self.lock();
            match session {
                Some(session) => inner.binds.adopt(early, session),
                None => {
                    inner.binds.forget_early(early);
                    Vec::new()
                }
            }
        };
        self.act(actions);
    }

    fn act(self: &Arc<Self>, actions: Vec<Action>) {
        let mut work: Option<Work> = None;
        for action in actions {
            let session = match &action {
                Action::Send { .. } => {
                    let _ = self.relay.perform(&action);
                    continue;
                }
                Action::Install(pair) | Action::ReplaceLeg { pair, .. } => pair.session,
                Action::Ready { session, .. } => *session,
            };
            let work = work.get_or_insert(Work { session, placing: None, ready: Vec::new() });
            match action {
                Action::Ready { leg, counter, .. } => work.ready.push((leg, counter)),
                action => work.placing = Some(action),
            }
        }
        if let Some(work) = work {
            let session = work.session;
            if self.work.try_send(work).is_err() {
                warn!("more legs move than the gate can be told of: a session is ended");
                self.end_soon(vec![(session, EndReason::RelayFailed)]);
            }
        }
    }

    async fn perform(self: &Arc<Self>, work: Work) {
        let Work { session, placing, ready } = work;
        let path_of = |inner: &Inner| inner.book.get(session).and_then(|entry| entry.path);
        let before = path_of(&self.lock());
        if let Some(action) = placing
            && let Err(reason) = self.place(&action).await
        {
            return self.end_soon(vec![(session, reason)]);
        }
        let mut inner = self.lock();
        let Some(path) = path_of(&inner) else { return };
        let is_told = ready.iter().any(|(leg, _)| *leg == Leg::Client);
        for (leg, counter) in ready {
            inner.tell(session, leg, &Told::Ready { counter, path });
        }
        if before != Some(path) && !is_told {
            // The other end has moved, and with it who relays. No bind of the client's has this number.
            inner.tell(session, Leg::Client, &Told::Ready { counter: 0, path });
        }
        if let Some(onward) = inner.binds.in_force(session, clock::monotonic()) {
            self.relay.send_ahead(&onward);
        }
    }

    async fn place(self: &Arc<Self>, action: &Action) -> Result<(), EndReason> {
        let pair: Pair = match action {
            Action::Install(pair) | Action::ReplaceLeg { pair, .. } => *pair,
            Action::Send { .. } | Action::Ready { .. } => return Ok(()),
        };
        let about = self.lock().book.get(pair.session).map(|entry| Arc::clone(&entry.about));
        let Some(about) = about else { return Ok(()) };
        // A stream that is gone is no place: its end takes another one, and binds again.
        let Some(from) = self.carried.real(pair.client.remote()) else {
            if let Action::ReplaceLeg { old, .. } = action {
                self.relay.forget(pair.session, *old);
            }
            return Ok(());
        };
        let decided_by = self.active();
        if !self.still_allowed(&about, from) {
            return Err(EndReason::NotAllowed);
        }
        let path = self.carrier.place(pair).await.map_err(|error| {
            debug!(%error, application = about.application.name, "a session cannot be relayed");
            EndReason::RelayFailed
        })?;
        let mut inner = self.lock();
        // Under the lock with which it is taken out: what was cut meanwhile is not put back into the table.
        if inner.book.get(pair.session).is_none() {
            return Ok(());
        }
        match (path, action) {
            (RelayPath::Userspace, action) => {
                if !self.relay.perform(action) {
                    return Err(EndReason::RelayFailed);
                }
            }
            (RelayPath::Kernel, Action::ReplaceLeg { old, .. }) => self.relay.forget(pair.session, *old),
            (RelayPath::Kernel, Action::Install(_) | Action::Send { .. } | Action::Ready { .. }) => {}
        }
        inner.book.ready(pair.session, path, from);
        drop(inner);
        self.count();
        // A reload in between has judged the session by where it was.
        if !Arc::ptr_eq(&self.active(), &decided_by) && !self.still_allowed(&about, from) {
            return Err(EndReason::NotAllowed);
        }
        Ok(())
    }
}

/// What an end is told of its session over its control connection.
pub(super) enum Told {
    Ready { counter: u64, path: RelayPath },
    Ended(EndReason),
}

impl Inner {
    /// Tells whoever speaks for the session's end.
    pub(super) fn tell(&self, session: SessionRef, leg: Leg, told: &Told) {
        let Some(entry) = self.book.get(session) else { return };
        let seat = match leg {
            Leg::Client => entry.client,
            Leg::Connector => entry.connector,
        };
        if let Some(control) = seat.control() {
            self.tell_control(control, session, leg, told);
        }
    }

    pub(super) fn tell_control(&self, control: ControlId, session: SessionRef, leg: Leg, told: &Told) {
        match (leg, told) {
            (Leg::Client, told) => {
                let frame = match *told {
                    Told::Ready { counter, path } => AccessFrame::Ready { session, counter, path },
                    Told::Ended(reason) => AccessFrame::EndSession { session, reason },
                };
                if let Some(seat) = self.clients.get(&control) {
                    seat.tell(frame);
                }
            }
            (Leg::Connector, told) => {
                let input = match *told {
                    Told::Ready { counter, path } => NodeInput::SessionReady { session, counter, path },
                    Told::Ended(reason) => NodeInput::EndSession { session, reason },
                };
                if let Some(seat) = self.links.get(&control) {
                    seat.tell(input);
                }
            }
        }
    }
}

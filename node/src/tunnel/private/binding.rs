//! Legs that prove where they are, and packets that may pass from then on.
//!
//! 1. The demux hands over Binds and Answers; the machine decides; a Challenge leaves at once.
//! 2. What the gate or the daemon's table has to be told [waits](super::works), since the gate may take its time, and is told
//!    many at once. A `Ready` waits behind what it depends on.
//! 3. What the client has sent ahead is held by the machine, and goes on when both ends have been told: from here, whoever
//!    relays the rest. The machine is told of each pair that was placed, and lets nothing on to or from any other.
//! 4. The client's leg is judged by the address at which it is: policy may know networks, and the leg need not come from
//!    where the control connection does. Of a leg that comes by TCP that is the TCP connection's.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use quinn::Connection;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::clock;
use crate::config::Active;

use super::super::access_wire::AccessFrame;
use super::super::carrier::is_stream;
use super::super::relay::wire::BindKey;
use super::super::relay::{
    self, Action, BindDatagram, Binds, Early, EarlyClaim, FirstDatagram, Leg, Pair, SessionRef, Tuple,
};
use super::super::session::NodeInput;
use super::super::wire::{EndReason, RelayPath};
use super::book::{About, ControlId};
use super::carrier::is_own;
use super::works::{Placing, Work};
use super::{Inner, Shared};

/// A work whose session is still there.
struct Due {
    work: Work,
    about: Arc<About>,
    /// Who relayed until now.
    before: Option<RelayPath>,
    /// Both legs, once they are bound.
    pair: Option<Pair>,
}

/// Where a session's packets may come from now.
struct Place {
    pair: Pair,
    /// The client's address.
    from: IpAddr,
    left: [Option<Tuple>; 2],
}

impl Shared {
    /// Serves the queues, one after the other's owner if the tunnel is served anew.
    pub(super) async fn bind(self: Arc<Self>, ports: BTreeSet<u16>, shutdown: CancellationToken) {
        let mut queues = tokio::select! {
            queues = self.queues.lock() => queues,
            () = shutdown.cancelled() => return,
        };
        let relay::Queues { binds, firsts } = &mut *queues;
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
            () = self.work() => {}
            () = binding => {}
            () = holding => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn work(self: &Arc<Self>) {
        loop {
            let now = clock::monotonic();
            let next = || {
                let mut inner = self.lock();
                (inner.works.take(now), inner.works.next_at())
            };
            match next() {
                (works, _) if !works.is_empty() => self.perform(works).await,
                (_, None) => self.work_came.notified().await,
                (_, Some(at)) => {
                    let _ = timeout(at.saturating_sub(now), self.work_came.notified()).await;
                }
            }
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
        let (sends, others): (Vec<_>, Vec<_>) =
            actions.into_iter().partition(|action| matches!(action, Action::Send { .. }));
        for send in sends {
            let _ = self.relay.perform(&send);
        }
        if others.is_empty() {
            return;
        }
        let mut inner = self.lock();
        others.iter().for_each(|action| inner.works.add(action));
        drop(inner);
        self.work_came.notify_one();
    }

    /// Tells the gate or the table of all of them, and then their ends.
    async fn perform(self: &Arc<Self>, works: Vec<Work>) {
        let due: Vec<Due> = {
            let inner = self.lock();
            works.into_iter().filter_map(|work| inner.due(work)).collect()
        };
        let decided_by = self.active();
        let (mut placing, mut ending) = (Vec::new(), Vec::new());
        for due in due {
            match self.place_of(&due) {
                Ok(Some(place)) => placing.push((due, place)),
                Ok(None) => self.tell_ready(&due, None),
                Err(reason) => ending.push((due.work.session, reason)),
            }
        }
        let wanted: Vec<_> =
            placing.iter().map(|(due, place)| (place.pair, due.work.is_last_try())).collect();
        let placed = if wanted.is_empty() { Vec::new() } else { self.carrier.place(&wanted).await };
        for ((due, place), path) in placing.into_iter().zip(placed) {
            let session = due.work.session;
            match path {
                Ok(path) => match self.placed(&due, &place, path, &decided_by) {
                    Ok(()) => self.tell_ready(&due, Some(place.pair)),
                    Err(reason) => ending.push((session, reason)),
                },
                Err(error) => {
                    let application = &due.about.application.name;
                    debug!(%error, application, "a session is not relayed where it is now");
                    if !error.passes() || !self.lock().works.again(due.work, clock::monotonic()) {
                        ending.push((session, EndReason::RelayFailed));
                    }
                }
            }
        }
        self.end_soon(ending);
        if !wanted.is_empty() {
            self.count();
        }
    }

    /// Where the session is to be placed, if it is.
    fn place_of(&self, due: &Due) -> Result<Option<Place>, EndReason> {
        let Due { work, about, pair, .. } = due;
        let (Some(Placing { left, .. }), Some(pair)) = (work.placing, *pair) else { return Ok(None) };
        // A stream that is gone is no place: its end takes another one, and binds again.
        let Some(from) = self.carried.real(pair.client.remote()) else {
            left.into_iter().flatten().for_each(|left| self.relay.forget(work.session, left));
            return Ok(None);
        };
        if !self.still_allowed(about, from) {
            return Err(EndReason::NotAllowed);
        }
        Ok(Some(Place { pair, from, left }))
    }

    /// The gate has it, or leaves it to the daemon's table.
    fn placed(
        &self,
        due: &Due,
        place: &Place,
        path: RelayPath,
        decided_by: &Arc<Active>,
    ) -> Result<(), EndReason> {
        let (session, Place { pair, from, left }) = (due.work.session, place);
        let mut inner = self.lock();
        // Under the lock with which it is taken out: what was cut meanwhile is not put back into the table.
        if inner.book.get(session).is_none() {
            return Ok(());
        }
        if path == RelayPath::Userspace && !self.relay.perform(&Action::Install(*pair)) {
            return Err(EndReason::RelayFailed);
        }
        let now = [pair.client, pair.connector];
        for left in left.iter().flatten().filter(|left| !now.contains(left)) {
            self.relay.forget(session, *left);
        }
        inner.book.ready(session, path, *from);
        drop(inner);
        // A reload in between has judged the session by where it was.
        if !Arc::ptr_eq(&self.active(), decided_by) && !self.still_allowed(&due.about, *from) {
            return Err(EndReason::NotAllowed);
        }
        Ok(())
    }

    fn tell_ready(&self, due: &Due, placed: Option<Pair>) {
        let Due { work: Work { session, ready, .. }, before, .. } = due;
        let mut inner = self.lock();
        let Some(path) = inner.book.get(*session).and_then(|entry| entry.path) else { return };
        for (leg, counter) in Leg::BOTH.into_iter().zip(*ready) {
            if let Some(counter) = counter {
                inner.tell(*session, leg, &Told::Ready { counter, path });
            }
        }
        let [of_client, _] = ready;
        if *before != Some(path) && of_client.is_none() {
            // The other end has moved, and with it who relays. No bind of the client's has this number.
            inner.tell(*session, Leg::Client, &Told::Ready { counter: 0, path });
        }
        if let Some(onward) = placed.and_then(|pair| inner.binds.placed(pair, clock::monotonic())) {
            self.relay.send_ahead(&onward);
        }
    }
}

/// What an end is told of its session over its control connection.
pub(super) enum Told {
    Ready { counter: u64, path: RelayPath },
    Ended(EndReason),
}

impl Inner {
    fn due(&self, work: Work) -> Option<Due> {
        let entry = self.book.get(work.session)?;
        let (about, before) = (Arc::clone(&entry.about), entry.path);
        Some(Due { pair: self.binds.pair(work.session), work, about, before })
    }

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

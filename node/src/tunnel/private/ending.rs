//! How a session ends: one way, whatever the reason.
//!
//! 1. It leaves the book and the bind machine, and the daemon's table, at once: nothing of it can begin any more.
//! 2. The gate is told; when that has returned no packet passes. One task tells it, of all at once that have come together
//!    while it told it of others: a revocation waits for two rounds of the CPUs at most, however many others end.
//! 3. Both ends are told why, and the one event says who, what, how long and how many bytes.
//!
//! Who asks for a revocation by [`PrivateSessions::end_logins`] and its like gets the answer after 2, whoever did it. What
//! the gate does not take is said loudly there, and tried again every second.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::clock;
use crate::event::{Action, Event};
use crate::flow::{ClientId, SessionId};
use crate::gate;
use crate::session::LiveSession;

use super::super::relay::{Leg, Relay, Sent, SessionRef, Usage};
use super::super::wire::{EndReason, RelayPath};
use super::binding::Told;
use super::book::{About, Entry, REATTACH_TIMEOUT};
use super::carrier::{CarrierError, Cut, counted, of_gate};
use super::cutting::Outcome;
use super::left::Whose;
use super::permit::{Wanted, permit};
use super::{ClientSeat, Inner, LOOK_EVERY, PrivateSessions, Shared};

/// The gate's own keeper clears away what has expired, and knows what it has carried: it comes first.
const EXPIRY_GRACE: Duration = Duration::from_secs(5);

/// An end whose clock is ahead of the node's closes an expired session so much early, whole seconds included.
const EXPIRY_AHEAD: Duration = Duration::from_secs(2);

/// So many are said goodbye to before others have their turn.
const GOODBYES: usize = 256;

/// The reason of a session that the daemon relayed until it stopped, in events and metrics.
const NODE_STOPPED: &str = "node_stopped";

/// Sessions were cut here and may still pass in the gate.
#[derive(Debug, thiserror::Error)]
#[error("sessions are ended, but the gate does not take it: {0}")]
pub struct EndError(pub(super) Arc<str>);

impl PrivateSessions {
    /// Ends the private sessions of these logins, which the store has revoked. Returns when no packet of them passes.
    ///
    /// # Errors
    /// When the gate does not take it.
    pub async fn end_logins(&self, logins: &[SessionId], reason: EndReason) -> Result<(), EndError> {
        let logins: BTreeSet<_> = logins.iter().copied().collect();
        self.end_matching(|about| logins.contains(&about.login.id), reason).await
    }

    /// Ends the private sessions of one client, whose login is over.
    pub(super) async fn end_client(&self, client: ClientId, reason: EndReason) -> Result<(), EndError> {
        let sessions = self.shared.lock().book.of_client(client);
        self.shared.end_soon(sessions.into_iter().map(|session| (session, reason)).collect());
        let cutting = self.shared.lock().cutting.of_client(client);
        self.shared.cut_of(cutting).await
    }

    /// Ends the private sessions that a connector serves, which the store has revoked. While it is not known whose those are that an
    /// earlier process has left, they end with them.
    ///
    /// # Errors
    /// When the gate does not take it.
    pub async fn end_connector(&self, connector: &str, reason: EndReason) -> Result<(), EndError> {
        self.end_matching(|about| about.connector.as_str() == connector, reason).await?;
        self.shared.end_left(Whose::Anybody).await
    }

    /// Takes over what the gate has ended by itself, since it had expired: with what it has carried.
    pub fn expired(&self, ended: &[gate::Ended]) {
        let over = ended.iter().map(|ended| (of_gate(ended.session), ended)).collect::<BTreeMap<_, _>>();
        let ending = over.keys().map(|session| (*session, EndReason::Expired)).collect();
        let gone = self.shared.lock().take_out(&self.shared.relay, ending);
        for one in &gone {
            let by_gate = over.get(&one.session).map(|ended| counted(ended.usage));
            self.shared.say_goodbye(one, &one.usage(by_gate));
        }
        if !gone.is_empty() {
            self.shared.count();
        }
    }

    /// The node has stopped. What the gate relays goes on; what the daemon does is over, unless both ends come back soon, and
    /// what it has carried would be lost.
    pub(in super::super) fn leave(&self) {
        self.shared.relay.release();
        if self.shared.carrier.has_gate() {
            return;
        }
        let all = self.shared.lock().book.matching(|_| true);
        let ending = all.into_iter().map(|session| (session, EndReason::RelayFailed)).collect();
        for over in self.shared.lock().take_out(&self.shared.relay, ending) {
            self.shared.account(&over.entry, &over.usage(None), NODE_STOPPED);
        }
    }

    /// Those included that somebody else is just ending: by the same revocation, as a rule.
    async fn end_matching(&self, which: impl Fn(&About) -> bool, reason: EndReason) -> Result<(), EndError> {
        let sessions = self.shared.lock().book.matching(|entry| which(&entry.about));
        self.shared.end_soon(sessions.into_iter().map(|session| (session, reason)).collect());
        let cutting = self.shared.lock().cutting.matching(which);
        self.shared.cut_of(cutting).await
    }
}

/// Why the sessions of a login that is over are.
pub(super) fn login_over(login: &LiveSession) -> EndReason {
    if login.is_revoked_by_administrator() { EndReason::Revoked } else { EndReason::LoginEnded }
}

/// Taken out of the book.
pub(super) struct Over {
    session: SessionRef,
    entry: Entry,
    reason: EndReason,
    /// Through the daemon.
    sent: Sent,
}

impl Over {
    /// What each end has sent, where the gate has counted what came by UDP, or has not.
    fn usage(&self, by_gate: Option<[Usage; 2]>) -> [Usage; 2] {
        by_gate.map_or_else(|| self.sent.all(), |by_udp| self.sent.with_udp(by_udp))
    }
}

impl Shared {
    /// Ends sessions, and does not wait for it.
    pub(super) fn end_soon(self: &Arc<Self>, ending: Vec<(SessionRef, EndReason)>) {
        let begins = {
            let mut inner = self.lock();
            let over = inner.take_out(&self.relay, ending);
            if over.is_empty() {
                return;
            }
            for Over { session, entry, .. } in &over {
                inner.cutting.begin(*session, Arc::clone(&entry.about));
            }
            inner.over.extend(over);
            !std::mem::replace(&mut inner.is_ending, true)
        };
        if begins {
            // To the end, even if whoever asked goes away.
            tokio::spawn(Arc::clone(self).end_all());
        }
    }

    /// Ends sessions, and returns when no packet of them passes, or the gate has not taken it.
    async fn end(self: &Arc<Self>, ending: Vec<(SessionRef, EndReason)>) {
        let sessions = ending.iter().map(|(session, _)| *session).collect();
        self.end_soon(ending);
        // It is logged where it fails.
        let _ = self.cut_of(sessions).await;
    }

    /// Ends what has been taken out of the book, and what is meanwhile. There is one of it at a time.
    async fn end_all(self: Arc<Self>) {
        let next = || self.lock().next_over();
        while let Some(over) = next() {
            let sessions: Vec<SessionRef> = over.iter().map(|over| over.session).collect();
            let cut = self.cut(&sessions).await;
            let counted = cut.as_ref().map(|cut| cut.counted.as_slice()).unwrap_or_default();
            let by_gate: BTreeMap<_, _> = counted.iter().copied().collect();
            for (count, over) in over.iter().enumerate() {
                self.say_goodbye(over, &over.usage(by_gate.get(&over.session).copied()));
                if count % GOODBYES == GOODBYES - 1 {
                    yield_now().await;
                }
            }
            // Whoever waits for the end may close the connection on which it is told.
            self.settle(&sessions, &cut);
            self.count();
        }
    }

    /// Waits until no packet passes of these sessions, which are out of the book.
    ///
    /// # Errors
    /// When the gate has not taken it of one of them.
    async fn cut_of(&self, mut sessions: Vec<SessionRef>) -> Result<(), EndError> {
        loop {
            let outcome = self.lock().cutting.outcome(&mut sessions);
            match outcome {
                Outcome::Known(outcome) => return outcome.map_err(EndError),
                // An error: it is settled, too.
                Outcome::Pending(mut settled) => drop(settled.changed().await),
            }
        }
    }

    /// Tells the gate.
    async fn cut(&self, sessions: &[SessionRef]) -> Result<Cut, CarrierError> {
        let cut = self.carrier.cut(sessions.to_vec()).await;
        let failed = match &cut {
            Ok(Cut { failed, .. }) => failed.first().map(|(_, error)| error),
            Err(error) => Some(error),
        };
        if let Some(error) = failed {
            error!("revoked sessions may still pass in the gate: {error}");
        }
        cut
    }

    /// Lets go of what the gate has cut, keeps what it did not take, and wakes those who wait: both ends have been told.
    fn settle(&self, sessions: &[SessionRef], cut: &Result<Cut, CarrierError>) {
        let said = |error: &CarrierError| Arc::<str>::from(error.to_string());
        let failed: BTreeMap<SessionRef, Arc<str>> = match cut {
            Ok(Cut { failed, .. }) => failed.iter().map(|(session, error)| (*session, said(error))).collect(),
            Err(error) => {
                let error = said(error);
                sessions.iter().map(|session| (*session, Arc::clone(&error))).collect()
            }
        };
        let mut inner = self.lock();
        for session in sessions {
            inner.cutting.settle(*session, failed.get(session).cloned());
        }
    }

    /// Tries again what the gate has not taken.
    async fn cut_again(&self) {
        let failed = self.lock().cutting.take_failed();
        if !failed.is_empty() {
            self.settle(&failed, &self.cut(&failed).await);
        }
    }

    fn say_goodbye(&self, over: &Over, usage: &[Usage; 2]) {
        let Over { session, entry, reason, .. } = over;
        let inner = self.lock();
        for (leg, seat) in [(Leg::Client, entry.client), (Leg::Connector, entry.connector)] {
            // A connector that has ended or declined it has let go of it.
            let knows =
                leg == Leg::Connector && matches!(reason, EndReason::ConnectorEnded | EndReason::Declined);
            if let Some(control) = seat.control()
                && !knows
            {
                inner.tell_control(control, *session, leg, &Told::Ended(*reason));
            }
        }
        drop(inner);
        self.account(entry, usage, reason.as_str());
    }

    /// The one event, and its metric.
    fn account(&self, entry: &Entry, usage: &[Usage; 2], reason: &str) {
        let about = &entry.about;
        self.metrics.private_ended.with_label_values(&[reason]).inc();
        let [up, down] = usage;
        self.events.emit(
            Event::new(Action::Disconnect, true)
                .session(&about.login)
                .application(&about.application)
                .address(about.address)
                .connector(about.connector.as_str())
                .duration(clock::monotonic().saturating_sub(about.since))
                .relayed(up.bytes, down.bytes)
                .detail(reason),
        );
    }

    /// Whether policy in force now allows the session to go on, with its client at `address`.
    pub(super) fn still_allowed(&self, about: &About, address: IpAddr) -> bool {
        let active = self.active();
        let wanted = Wanted {
            login: &about.login,
            address,
            application: &about.application.name,
            destination: about.destination.as_ref(),
        };
        permit(&active.policies, &wanted, clock::now()).is_ok_and(|allowed| {
            allowed.connector == about.connector
                && allowed.reach == about.reach
                && allowed.protocol == about.protocol
        })
    }

    /// Ends what policy no longer allows, after each reload.
    pub(super) async fn follow_policy(self: Arc<Self>, shutdown: CancellationToken) {
        let mut active = self.active.clone();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = active.changed() => if changed.is_err() {
                    return shutdown.cancelled().await;
                },
            }
            active.mark_unchanged();
            let all: Vec<_> = {
                let inner = self.lock();
                let facts = |entry: &Entry| (Arc::clone(&entry.about), entry.address());
                inner.book.iter().map(|(session, entry)| (session, facts(entry))).collect()
            };
            let refused = all.into_iter().filter(|(_, (about, at))| !self.still_allowed(about, *at));
            self.end(refused.map(|(session, _)| (session, EndReason::NotAllowed)).collect()).await;
        }
    }

    /// Ends what time has ended, and what an earlier process has left and nobody has resumed.
    pub(super) async fn look(self: Arc<Self>, shutdown: CancellationToken) {
        let mut tick = interval(LOOK_EVERY);
        let left_until = self.began.saturating_add(REATTACH_TIMEOUT);
        let mut second = 0_u32;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => {}
            }
            let now = clock::monotonic();
            let grace = if self.carrier.has_gate() { EXPIRY_GRACE } else { Duration::ZERO };
            let due = self.lock().book.due(now, grace);
            self.end(due).await;
            second = (second + 1) % 4;
            if second == 0 {
                // First, since what follows waits for the store.
                self.cut_again().await;
                let whose = if left_until <= now { Whose::Anybody } else { Whose::Ending };
                let _ = self.end_left(whose).await;
                self.end_logged_out().await;
            }
        }
    }

    /// Clients are logged out in the store, by whoever does it: their sessions and connections end within a second.
    async fn end_logged_out(self: &Arc<Self>) {
        let clients: BTreeSet<ClientId> = {
            let inner = self.lock();
            let seated = inner.clients.values().map(|seat| seat.client);
            seated.chain(inner.book.iter().map(|(_, entry)| entry.about.client)).collect()
        };
        if clients.is_empty() {
            return;
        }
        let live = match self.store.live_clients(clock::now()).await {
            Ok(live) => live.into_iter().map(|client| client.id).collect::<BTreeSet<_>>(),
            Err(error) => return error!(%error, "who is logged in cannot be looked up"),
        };
        // Who has logged in since is not among them either.
        let is_over = |client: &ClientId| clients.contains(client) && !live.contains(client);
        let over = self.lock().book.matching(|entry| is_over(&entry.about.client));
        let over = over.into_iter().map(|session| (session, EndReason::LoginEnded)).collect();
        self.end(over).await;
        // What its sessions are told comes first.
        self.lock().clients.values().filter(|seat| is_over(&seat.client)).for_each(ClientSeat::log_out);
    }

    /// Sees to it that the sessions of the client's login end with it.
    pub(super) fn watch_login(self: &Arc<Self>, login: &LiveSession, client: ClientId) {
        if !self.lock().watched.insert(client) {
            return;
        }
        let (shared, login) = (Arc::downgrade(self), login.clone());
        tokio::spawn(async move {
            login.ended.cancelled().await;
            let Some(shared) = shared.upgrade() else { return };
            let over = {
                let mut inner = shared.lock();
                inner.watched.remove(&client);
                inner.book.of_client(client)
            };
            let reason = login_over(&login);
            let over = over.into_iter().map(|session| (session, reason)).collect();
            shared.end_soon(over);
        });
    }

    /// Tells the metrics how many there are.
    pub(super) fn count(&self) {
        let inner = self.lock();
        for (path, name) in [
            (None, "none"),
            (Some(RelayPath::Kernel), RelayPath::Kernel.as_str()),
            (Some(RelayPath::Userspace), RelayPath::Userspace.as_str()),
        ] {
            let count = i64::try_from(inner.book.on_path(path)).unwrap_or(i64::MAX);
            self.metrics.private_sessions.with_label_values(&[name]).set(count);
        }
    }
}

impl Inner {
    /// All that wait to be ended; with none whoever asks is done.
    fn next_over(&mut self) -> Option<Vec<Over>> {
        let over = std::mem::take(&mut self.over);
        self.is_ending = !over.is_empty();
        self.is_ending.then_some(over)
    }

    fn take_out(&mut self, relay: &Relay, ending: Vec<(SessionRef, EndReason)>) -> Vec<Over> {
        let mut all = Vec::new();
        let soon = clock::monotonic().saturating_add(EXPIRY_AHEAD);
        for (session, reason) in ending {
            let Some(entry) = self.book.remove(session) else { continue };
            let reason = match reason {
                // Both ends know when its time is over, and do not wait for the node to say it.
                EndReason::Closed | EndReason::ConnectorEnded if entry.about.expires <= soon => {
                    EndReason::Expired
                }
                reason => reason,
            };
            let sent = self.binds.remove(session).and_then(|removed| relay.remove(&removed));
            all.push(Over { session, entry, reason, sent: sent.unwrap_or_default() });
        }
        all
    }
}

#[cfg(test)]
mod tests;

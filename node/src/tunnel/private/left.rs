//! Sessions that an earlier process has left in the gate, which relays them on, until their ends have come back or are
//! given up.
//!
//! 1. What the gate has when the node begins is left; what this process opens never is. Of which login or connector each of it
//!    is, only its grant says, which its client has; of which person, the gate.
//! 2. Whoever resumes a session takes it from here, and puts it into the book or back.
//! 3. What is left ends with its person's login, whoever ends that, and with a connector: sooner than need be where it was
//!    another's. At the start it ends where the person is logged in nowhere any more. After [`REATTACH_TIMEOUT`] all of it does.
//! 4. What is to end is taken up no more, and is tried every second until the gate has taken it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::clients::LiveClient;
use crate::clock;
use crate::event::{Action, Event};
use crate::flow::PersonId;

use super::super::relay::SessionRef;
use super::super::wire::EndReason;
use super::book::REATTACH_TIMEOUT;
use super::carrier::{CarrierError, Cut};
use super::ending::EndError;
use super::{PrivateSessions, Shared};

/// What is left.
#[derive(Default)]
pub(super) struct Left {
    sessions: BTreeMap<SessionRef, Fate>,
    /// Who was logged in when the node began, until that is followed.
    logins: Vec<LiveClient>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It may be taken up.
    Kept,
    /// Somebody is taking it up.
    TakenUp,
    /// The same, and where nothing comes of that, it ends: it was meant meanwhile.
    TakenUpToEnd,
    /// The gate is being told to end it, or is to be.
    Ending,
}

/// Whose sessions end, of those that are left.
pub(super) enum Whose {
    Anybody,
    People(BTreeSet<String>),
    AllBut(BTreeSet<String>),
    /// Those that were to end before.
    Ending,
}

/// A session that somebody resumes. Unless it is [kept](Self::keep), it is left again when dropped.
pub(super) struct TakenUp<'a> {
    shared: &'a Shared,
    session: Option<SessionRef>,
}

impl PrivateSessions {
    /// Ends what an earlier process has left of these people in the gate and nobody has resumed yet. Returns when no packet of it
    /// passes.
    ///
    /// # Errors
    /// When the gate does not take it.
    pub async fn end_left(&self, people: &[PersonId]) -> Result<(), EndError> {
        self.shared.end_left(Whose::People(people.iter().map(PersonId::to_string).collect())).await
    }
}

impl Left {
    pub(super) fn new(sessions: Vec<SessionRef>, logins: Vec<LiveClient>) -> Self {
        Self { sessions: sessions.into_iter().map(|session| (session, Fate::Kept)).collect(), logins }
    }

    /// Those that `are_meant`, which are taken up no more. One that is being taken up is looked at again once it is in the book, and
    /// ends otherwise.
    fn end(&mut self, are_meant: impl Fn(SessionRef, Fate) -> bool) -> Vec<SessionRef> {
        let meant = self.sessions.iter_mut().filter(|(session, fate)| are_meant(**session, **fate));
        let end = |(session, fate): (&SessionRef, &mut Fate)| {
            *fate = match *fate {
                Fate::TakenUp | Fate::TakenUpToEnd => Fate::TakenUpToEnd,
                Fate::Kept | Fate::Ending => Fate::Ending,
            };
            (*fate == Fate::Ending).then_some(*session)
        };
        meant.filter_map(end).collect()
    }
}

impl TakenUp<'_> {
    /// It is in the book.
    pub(super) fn keep(mut self) {
        if let Some(session) = self.session.take() {
            self.shared.lock().left.sessions.remove(&session);
        }
    }
}

impl Drop for TakenUp<'_> {
    fn drop(&mut self) {
        let Some(session) = self.session else { return };
        if let Some(fate) = self.shared.lock().left.sessions.get_mut(&session) {
            *fate = if *fate == Fate::TakenUpToEnd { Fate::Ending } else { Fate::Kept };
        }
    }
}

#[cfg(test)]
impl PrivateSessions {
    /// Whether somebody is resuming this session.
    pub(in crate::tunnel) fn is_taken_up(&self, session: SessionRef) -> bool {
        self.shared.lock().left.sessions.get(&session) == Some(&Fate::TakenUp)
    }
}

impl Shared {
    /// Takes a session up, if it is left. Without a gate none is, and who gives the numbers knows which may be.
    pub(super) fn take_up(&self, session: SessionRef) -> Option<TakenUp<'_>> {
        if !self.carrier.has_gate() {
            return Some(TakenUp { shared: self, session: None });
        }
        let sessions = &mut self.lock().left.sessions;
        let fate = sessions.get_mut(&session).filter(|fate| **fate == Fate::Kept)?;
        *fate = Fate::TakenUp;
        Some(TakenUp { shared: self, session: Some(session) })
    }

    /// Ends what is left of whomever is meant. Returns when no packet of it passes.
    ///
    /// # Errors
    /// When the gate does not take it.
    pub(super) async fn end_left(&self, whose: Whose) -> Result<(), EndError> {
        if self.lock().left.sessions.is_empty() {
            return Ok(());
        }
        self.cut_left(whose).await.map_err(|error| {
            error!("sessions that nobody has resumed may still pass in the gate: {error}");
            EndError(error.to_string().into())
        })
    }

    async fn cut_left(&self, whose: Whose) -> Result<(), CarrierError> {
        let only_ending = matches!(whose, Whose::Ending);
        let of = match whose {
            Whose::Anybody | Whose::Ending => None,
            Whose::People(people) => Some(self.carrier.of_people(people, true).await?),
            Whose::AllBut(people) => Some(self.carrier.of_people(people, false).await?),
        };
        let ending = self.lock().left.end(|session, fate| match &of {
            Some(of) => of.contains(&session),
            None => !only_ending || fate == Fate::Ending,
        });
        if ending.is_empty() {
            return Ok(());
        }
        // Also what somebody else is just ending: it is over when this has returned.
        let Cut { counted, failed } = self.carrier.cut(ending.clone()).await?;
        {
            let still: BTreeSet<_> = failed.iter().map(|(session, _)| *session).collect();
            let mut inner = self.lock();
            for session in ending.iter().filter(|session| !still.contains(session)) {
                inner.left.sessions.remove(session);
            }
        }
        for (_, [up, down]) in counted {
            self.metrics.private_ended.with_label_values(&[EndReason::ClientGone.as_str()]).inc();
            self.events.emit(
                Event::new(Action::Disconnect, true)
                    .relayed(up.bytes, down.bytes)
                    .detail("left by an earlier process and not resumed"),
            );
        }
        failed.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Ends what is left of people who log out, or had done so when the node began.
    pub(super) async fn follow_logouts(self: Arc<Self>, shutdown: CancellationToken) {
        let logins = {
            let left = &mut self.lock().left;
            if left.sessions.is_empty() {
                return;
            }
            std::mem::take(&mut left.logins)
        };
        let person = |login: &LiveClient| login.session.person.to_string();
        let following = async {
            // An error is logged, and what is to end is tried again.
            let _ = self.end_left(Whose::AllBut(logins.iter().map(person).collect())).await;
            let ended = |login: LiveClient| async move {
                login.ended.cancelled().await;
                // What has expired has done so in the gate.
                (login.session.expires_at > clock::now()).then(|| person(&login))
            };
            let mut endings: FuturesUnordered<_> = logins.into_iter().map(ended).collect();
            while let Some(first) = endings.next().await {
                let mut people: BTreeSet<String> = first.into_iter().collect();
                // With all that end at the same time.
                while let Some(Some(next)) = endings.next().now_or_never() {
                    people.extend(next);
                }
                let _ = self.end_left(Whose::People(people)).await;
            }
        };
        let over = self.began.saturating_add(REATTACH_TIMEOUT).saturating_sub(clock::monotonic());
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = sleep(over) => {}
            () = following => {}
        }
    }
}

#[cfg(test)]
mod tests;

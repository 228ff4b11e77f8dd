//! Sessions that are out of the book and not yet surely out of the gate, and who waits for them.
//!
//! Whoever ends sessions waits for those only, and is woken by those only: of ten thousand clients that end at once each looks
//! at its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::flow::ClientId;

use super::super::relay::SessionRef;
use super::book::About;
use super::grouped::{Grouped, Looks};

/// All of them.
#[derive(Default)]
pub(super) struct Cuttings {
    sessions: BTreeMap<SessionRef, Cutting>,
    by_client: Grouped<ClientId, SessionRef>,
    pub(super) looks: Looks,
}

struct Cutting {
    about: Arc<About>,
    /// Why it is not. It is tried again.
    failed: Option<Arc<str>>,
    /// Wakes those who wait for what the gate says of it.
    settled: Option<watch::Sender<()>>,
}

/// What is known of sessions that somebody waits for.
#[derive(Debug)]
pub(super) enum Outcome {
    /// All are cut, or the gate has not taken it of one of them.
    Known(Result<(), Arc<str>>),
    /// The gate is told of one of them: it is known when this wakes.
    Pending(watch::Receiver<()>),
}

impl Cuttings {
    /// The gate is to be told of it.
    pub(super) fn begin(&mut self, session: SessionRef, about: Arc<About>) {
        self.by_client.add(about.client, session);
        self.sessions.insert(session, Cutting { about, failed: None, settled: None });
    }

    /// The gate has cut it, or has not and why.
    pub(super) fn settle(&mut self, session: SessionRef, failed: Option<Arc<str>>) {
        match (failed, self.sessions.get_mut(&session)) {
            (Some(error), Some(cutting)) => {
                cutting.failed = Some(error);
                cutting.settled = None;
            }
            (None, Some(cutting)) => {
                self.by_client.remove(&cutting.about.client, session);
                self.sessions.remove(&session);
            }
            (_, None) => {}
        }
    }

    /// What the gate has not cut, to be tried again: whoever asks meanwhile is told what comes of that.
    pub(super) fn take_failed(&mut self) -> Vec<SessionRef> {
        let failed =
            |(session, cutting): (&SessionRef, &mut Cutting)| cutting.failed.take().map(|_| *session);
        self.sessions.iter_mut().filter_map(failed).collect()
    }

    pub(super) fn of_client(&self, client: ClientId) -> Vec<SessionRef> {
        self.by_client.of(&client).inspect(|_| self.looks.one()).collect()
    }

    pub(super) fn matching(&self, which: impl Fn(&About) -> bool) -> Vec<SessionRef> {
        let all = self.sessions.iter().inspect(|_| self.looks.one());
        all.filter(|(_, cutting)| which(&cutting.about)).map(|(session, _)| *session).collect()
    }

    /// What came of these sessions. Those that are cut are forgotten.
    pub(super) fn outcome(&mut self, sessions: &mut Vec<SessionRef>) -> Outcome {
        while sessions.pop_if(|session| !self.sessions.contains_key(session)).is_some() {
            self.looks.one();
        }
        let mut failed = None;
        // The last of them is there, so as a rule this is one look.
        for session in sessions.iter().rev() {
            self.looks.one();
            let Some(cutting) = self.sessions.get_mut(session) else { continue };
            match &cutting.failed {
                Some(error) => failed = Some(Arc::clone(error)),
                None => {
                    let settled = cutting.settled.get_or_insert_with(|| watch::Sender::new(()));
                    return Outcome::Pending(settled.subscribe());
                }
            }
        }
        Outcome::Known(failed.map_or(Ok(()), Err))
    }
}

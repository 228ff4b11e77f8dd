//! How sessions end: the session's generation first, which is one store; then its flows. Either alone cuts it.

use std::collections::BTreeSet;

use portcullis_common::layout::Session;

use super::state::State;
use super::{Ended, Revoked, SessionRef, Usage};
use crate::gate::GateError;

/// Whoever ends a session at its end may come after the clock, and wants to know what it has carried.
const REMEMBERED_NS: u64 = 10_000_000_000;

impl State {
    pub(super) fn revoke(&mut self, session: SessionRef, now: u64) -> Result<Option<Ended>, GateError> {
        if self.table.get(session.index, session.generation).is_none_or(|live| live.is_ended) {
            return Ok(None);
        }
        let ended = self.cut(session, now);
        self.wait_for_cpus()?;
        ended.map(Some)
    }

    pub(super) fn revoke_all(&mut self, sessions: &[SessionRef], now: u64) -> Result<Revoked, GateError> {
        let live = |session: &&SessionRef| {
            self.table.get(session.index, session.generation).is_some_and(|live| !live.is_ended)
        };
        let live: BTreeSet<_> = sessions.iter().filter(live).copied().collect();
        let mut revoked = self.cut_all(live, now);
        // Also for those that were ended before, and not waited for.
        self.wait_for_cpus()?;
        let asked: BTreeSet<_> = sessions.iter().collect();
        let asked = |(_, ended): &mut (u64, Ended)| asked.contains(&ended.session);
        revoked.ended.extend(self.expired.extract_if(.., asked).map(|(_, ended)| ended));
        Ok(revoked)
    }

    pub(super) fn revoke_identity(&mut self, identity: u32, now: u64) -> Result<Vec<Ended>, GateError> {
        let stored = self.next_epoch(identity);
        if let Err(error) = &stored {
            tracing::error!(error = error as &dyn std::error::Error, "a person's epoch cannot be stored");
        }
        let sessions: Vec<_> = self
            .table
            .iter()
            .filter(|(_, live)| live.identity == identity && !live.is_ended)
            .map(|(index, live)| SessionRef { index, generation: live.generation })
            .collect();
        let revoked = self.cut_all(sessions, now);
        self.wait_for_cpus()?;
        // Sessions that were granted on the old epoch meanwhile would live.
        stored.and(revoked.all())
    }

    pub(super) fn expire(&mut self, now: u64) -> Result<Vec<Ended>, GateError> {
        self.expired.retain(|(until, _)| *until > now);
        let over: Vec<_> = self
            .table
            .iter()
            .filter(|(_, live)| live.expires <= now || live.is_ended)
            .map(|(index, live)| SessionRef { index, generation: live.generation })
            .collect();
        if over.is_empty() {
            return Ok(Vec::new());
        }
        let reported: BTreeSet<_> = self.sessions().into_iter().map(|(session, _)| session).collect();
        let revoked = self.cut_all(over, now);
        self.wait_for_cpus()?;
        let mut ended = revoked.all()?;
        ended.retain(|ended| reported.contains(&ended.session));
        let until = now.saturating_add(REMEMBERED_NS);
        self.expired.extend(ended.iter().map(|ended| (until, *ended)));
        Ok(ended)
    }

    /// Cuts every one of them, whatever becomes of the others: the CPUs are to be waited for after an error too.
    fn cut_all(&mut self, sessions: impl IntoIterator<Item = SessionRef>, now: u64) -> Revoked {
        let mut revoked = Revoked::default();
        for session in sessions {
            match self.cut(session, now) {
                Ok(ended) => revoked.ended.push(ended),
                Err(error) => revoked.failed.push((session, error)),
            }
        }
        revoked
    }

    /// Stores another generation and removes the flows; either alone ends the session. Where neither can be done, the
    /// person's epoch ends it. Its index stays out of use until both are.
    pub(super) fn cut(&mut self, session: SessionRef, now: u64) -> Result<Ended, GateError> {
        let SessionRef { index, generation } = session;
        let stored = self.next_generation(session);
        let mut usage = [Usage::default(); 2];
        let mut removed = Ok(());
        let (mut identity, mut directions) = (0, [None; 2]);
        if let Some(live) = self.table.get_mut(index, generation) {
            live.is_ended = true;
            (identity, directions) = (live.identity, live.directions);
        }
        // A session that has never had flows passed on no CPU.
        if directions.iter().any(Option::is_some) {
            self.removes();
        }
        for (side, place) in directions.iter().enumerate() {
            let Some(direction) = place else { continue };
            match self.maps.take_flow(&direction.input) {
                Ok(entry) => {
                    if let (Some(entry), Some(usage)) = (entry, usage.get_mut(side)) {
                        *usage = Usage { packets: entry.packets, bytes: entry.bytes };
                    }
                    if let Some(onward) = direction.onward {
                        self.hops.release(onward.hop);
                    }
                    if let Some(live) = self.table.get_mut(index, generation)
                        && let Some(place) = live.directions.get_mut(side)
                    {
                        *place = None;
                    }
                }
                Err(error) => removed = Err(error),
            }
        }
        for (past, usage) in self.past.iter_mut().zip(usage) {
            past.packets += usage.packets;
            past.bytes += usage.bytes;
        }
        match (stored, removed) {
            (Ok(()), Ok(())) => self.table.remove(index, now),
            (Ok(()), Err(error)) | (Err(error), Ok(())) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, ?session, "a session is ended, and not yet out of the gate's maps");
            }
            (Err(error), Err(_)) => {
                let source = &error as &dyn std::error::Error;
                tracing::error!(
                    error = source,
                    ?session,
                    "a session cannot be ended; ending all of its person's"
                );
                if self.next_epoch(identity).is_err() {
                    if let Some(live) = self.table.get_mut(index, generation) {
                        live.is_ended = false;
                    }
                    return Err(error);
                }
            }
        }
        Ok(Ended { session, identity, usage })
    }

    fn next_generation(&mut self, session: SessionRef) -> Result<(), GateError> {
        let now = self.maps.session(session.index)?;
        // Another already, where only the flows were left to be removed.
        if now.generation != session.generation {
            return Ok(());
        }
        let over = Session { generation: now.generation.wrapping_add(1), expires: 0, ..now };
        self.maps.set_session(session.index, &over)
    }

    fn next_epoch(&mut self, identity: u32) -> Result<(), GateError> {
        let epoch = self.maps.epoch(identity)?;
        self.removes();
        self.maps.set_epoch(identity, epoch.wrapping_add(1))
    }
}

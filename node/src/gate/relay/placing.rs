//! Sessions that get their flows, or go on from elsewhere: many of them behind one barrier.
//!
//! 1. Each is planned by itself: whether it may be, and by which next hops, or else to the node's socket.
//! 2. Entries of those that move are taken out, of all of them: one may go to where another was.
//! 3. The CPUs are waited for, once.
//! 4. All entries are written, with their counts.
//!
//! What is wrong with one of them does not concern the others.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use portcullis_common::Flow;

use super::sessions::Direction;
use super::state::State;
use super::{Detour, Placement, RelayError, SessionRef, Way};
use crate::gate::GateError;

/// What is to become of a session's entries. Its next hops are held.
struct Plan {
    session: SessionRef,
    before: Option<[Direction; 2]>,
    to: [Direction; 2],
    /// Where somebody else's entries are now.
    taken: Vec<Flow>,
}

impl Plan {
    fn moves(&self) -> Option<[Direction; 2]> {
        self.before.filter(|before| *before != self.to)
    }

    fn way(&self) -> Way {
        if self.to.iter().all(|direction| direction.onward.is_some()) { Way::Gate } else { Way::Host }
    }
}

impl State {
    pub(super) fn place_all(&mut self, wanted: &[Placement], now: u64) -> Vec<Result<Way, RelayError>> {
        let mut plans: Vec<_> = wanted.iter().map(|placement| self.plan(placement, now)).collect();
        let held: Vec<u32> = plans.iter().flatten().flat_map(|plan| hops(&plan.to)).collect();
        refuse_what_is_taken(&mut plans);
        let mut failed = self.move_all(&plans);
        let mut cut = Vec::new();
        let mut placed = Vec::with_capacity(plans.len());
        for (at, plan) in plans.into_iter().enumerate() {
            let plan = match plan {
                Ok(plan) => plan,
                Err(error) => {
                    placed.push(Err(error));
                    continue;
                }
            };
            placed.push(match (failed.remove(&at), plan.before) {
                (None, None) => self.insert(plan.session, plan.to).map(|()| plan.way()),
                (None, Some(_)) => Ok(plan.way()),
                (Some(error), None) => Err(error.into()),
                (Some(error), Some(_)) => {
                    cut.push(plan.session);
                    Err(error.into())
                }
            });
        }
        // After all insertions: none may take the place of an entry that a CPU still holds.
        for session in &cut {
            tracing::error!(?session, "a session that moved could not be written and is ended");
            // Said where it fails, and tried again by whoever ends it now.
            let _ = self.cut(*session, now);
        }
        if !cut.is_empty()
            && let Err(error) = self.wait_for_cpus()
        {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "packets of ended sessions may still pass"
            );
        }
        held.into_iter().for_each(|hop| self.hops.release(hop));
        placed
    }

    fn plan(&mut self, placement: &Placement, now: u64) -> Result<Plan, RelayError> {
        let Placement { grant, to_host } = placement;
        let before = match self.live(grant.session, now)?.directions {
            [None, None] => None,
            [Some(client), Some(connector)] => Some([client, connector]),
            _ => return Err(RelayError::Moved),
        };
        let to = match *to_host {
            true => self.hostwards(grant, now)?,
            false => match self.onwards(grant, now) {
                Ok(to) => to,
                Err(RelayError::Detour(Detour::Unresolved)) if self.has_asked() => {
                    return Err(Detour::Unresolved.into());
                }
                Err(RelayError::Detour(detour)) => {
                    tracing::debug!(%detour, session = ?grant.session, "a session takes the way through the node");
                    self.hostwards(grant, now)?
                }
                Err(error) => return Err(error),
            },
        };
        hops(&to).for_each(|hop| self.hops.hold(hop));
        let mut taken = Vec::new();
        for Direction { input, .. } in &to {
            let is_its_own = before.iter().flatten().any(|direction| direction.input == *input);
            match self.maps.flow(input) {
                Ok(Some(_)) if !is_its_own => taken.push(*input),
                Ok(_) => {}
                Err(error) => {
                    hops(&to).for_each(|hop| self.hops.release(hop));
                    return Err(error.into());
                }
            }
        }
        Ok(Plan { session: grant.session, before, to, taken })
    }

    /// Takes out the entries of all that move, and puts them in where they go. By its place, what could not be done: those
    /// have lost entries if they had any.
    fn move_all(&mut self, plans: &[Result<Plan, RelayError>]) -> BTreeMap<usize, GateError> {
        let (mut moving, mut failed) = (Vec::new(), BTreeMap::new());
        for (at, plan) in plans.iter().enumerate() {
            let Ok(plan) = plan else { continue };
            if plan.moves().is_none() {
                continue;
            }
            for (side, direction) in plan.to.iter().enumerate() {
                match self.pick_up(plan.session, side, *direction) {
                    Ok(found) => moving.extend(found.map(|found| (at, found))),
                    Err(error) => {
                        failed.insert(at, error);
                    }
                }
            }
        }
        if let Err(error) = self.wait_for_cpus() {
            tracing::error!(error = &error as &dyn std::error::Error, "sessions cannot be placed");
            let waits = |plan: &Plan| plan.before.is_none() || plan.moves().is_some();
            let of_all = plans.iter().enumerate().filter(|(_, plan)| plan.as_ref().is_ok_and(waits));
            let again = || GateError::Barrier(io::Error::other("as for the others of its batch"));
            return of_all.map(|(at, _)| (at, again())).collect();
        }
        for (at, found) in moving {
            if !failed.contains_key(&at)
                && let Err(error) = self.put_down(found)
            {
                failed.insert(at, error);
            }
        }
        failed
    }
}

fn hops(to: &[Direction; 2]) -> impl Iterator<Item = u32> {
    to.map(|direction| direction.onward).into_iter().flatten().map(|onward| onward.hop)
}

/// Refuses those that would go to where another stays, or goes too. Who is refused stays as well.
fn refuse_what_is_taken(plans: &mut [Result<Plan, RelayError>]) {
    loop {
        let mut left = BTreeSet::new();
        for plan in plans.iter().flatten() {
            let stays = |input: &Flow| plan.to.iter().any(|direction| direction.input == *input);
            let inputs = plan.before.iter().flatten().map(|direction| direction.input);
            left.extend(inputs.filter(|input| !stays(input)).map(|input| key(&input)));
        }
        let (mut claimed, mut is_settled) = (BTreeSet::new(), true);
        for place in plans.iter_mut() {
            let Ok(plan) = place else { continue };
            let inputs = plan.to.map(|direction| key(&direction.input));
            let is_free = plan.taken.iter().all(|input| left.contains(&key(input)));
            if is_free && inputs.iter().all(|input| !claimed.contains(input)) {
                claimed.extend(inputs);
            } else {
                *place = Err(RelayError::TupleInUse);
                is_settled = false;
            }
        }
        if is_settled {
            return;
        }
    }
}

fn key(flow: &Flow) -> (IpAddr, IpAddr, u16, u16) {
    (flow.local.into(), flow.remote.into(), flow.local_port, flow.remote_port)
}

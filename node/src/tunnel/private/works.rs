//! What is yet to be told of legs that have proved where they are: to the gate or the daemon's table, and to the ends.
//!
//! 1. Of each session the newest only: a leg that moves while its last move waits makes one move. So there is never more
//!    than one work of a session, and nobody's is turned away.
//! 2. New sessions come first, then those that have waited for longest, so many at a time: who moves without end delays
//!    others by what one batch takes.
//! 3. What cannot be done yet comes again in a moment.
//!
//! Pure: no clock, no socket. Time is that of the monotonic clock.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::relay::{Action, Leg, SessionRef, Tuple};

/// New sessions that are placed in one go, and as many others.
const BATCH: usize = 256;

/// A neighbour's address is found out within these tries, or is not; and whoever leaves a place has left it.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// What follows for one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) session: SessionRef,
    pub(super) placing: Option<Placing>,
    /// The number of the bind that is in force then, by the leg that is to be told.
    pub(super) ready: [Option<u64>; 2],
    serial: u64,
    tries: u32,
    not_before: Duration,
}

/// Its legs are elsewhere: where, the machine knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placing {
    is_new: bool,
    /// Where its legs were when they were placed last.
    pub(super) left: [Option<Tuple>; 2],
}

/// All that waits.
#[derive(Debug, Default)]
pub(super) struct Works {
    waiting: BTreeMap<SessionRef, Work>,
    serial: u64,
}

impl Works {
    /// An action of the machine's other than a datagram to be sent.
    pub(super) fn add(&mut self, action: &Action) {
        match action {
            Action::Send { .. } => {}
            Action::Install(pair) => {
                let placing = Placing { is_new: true, left: [None; 2] };
                self.merge(pair.session, Some(placing), [None; 2]);
            }
            Action::ReplaceLeg { leg, old, pair } => {
                let left = Leg::BOTH.map(|of| (of == *leg).then_some(*old));
                self.merge(pair.session, Some(Placing { is_new: false, left }), [None; 2]);
            }
            Action::Ready { session, leg, counter } => {
                let ready = Leg::BOTH.map(|of| (of == *leg).then_some(*counter));
                self.merge(*session, None, ready);
            }
        }
    }

    /// What is next at `now`.
    pub(super) fn take(&mut self, now: Duration) -> Vec<Work> {
        let due = self.waiting.values().filter(|work| work.not_before <= now);
        let mut order: Vec<_> = due.map(|work| (work.class(), work.serial, work.session)).collect();
        order.sort_unstable();
        let mut taken = BTreeMap::<Class, usize>::new();
        order.retain(|(class, ..)| {
            let count = taken.entry(*class).or_default();
            *count += 1;
            *class == Class::Told || *count <= BATCH
        });
        order.into_iter().filter_map(|(.., session)| self.waiting.remove(&session)).collect()
    }

    /// When the first is due that can be [taken](Self::take); it may be in the past.
    pub(super) fn next_at(&self) -> Option<Duration> {
        self.waiting.values().map(|work| work.not_before).min()
    }

    /// Whether there may be another try at a work that could not be done, which is made in a moment.
    pub(super) fn again(&mut self, work: Work, now: Duration) -> bool {
        if work.is_last_try() {
            return false;
        }
        let Work { session, placing, ready, serial, tries, .. } = work;
        let newer = self.waiting.remove(&session);
        let not_before = now.saturating_add(PAUSE);
        let first = Work { session, placing, ready, serial, tries: tries + 1, not_before };
        self.waiting.insert(session, first);
        if let Some(newer) = newer {
            self.merge(session, newer.placing, newer.ready);
        }
        true
    }

    fn merge(&mut self, session: SessionRef, placing: Option<Placing>, ready: [Option<u64>; 2]) {
        self.serial += 1;
        let fresh = Work {
            session,
            placing: None,
            ready: [None; 2],
            serial: self.serial,
            tries: 0,
            not_before: Duration::ZERO,
        };
        let work = self.waiting.entry(session).or_insert(fresh);
        work.placing = match (work.placing, placing) {
            (Some(first), Some(then)) => Some(Placing {
                is_new: first.is_new,
                left: [first.left[0].or(then.left[0]), first.left[1].or(then.left[1])],
            }),
            (first, then) => first.or(then),
        };
        for (counter, then) in work.ready.iter_mut().zip(ready) {
            *counter = (*counter).max(then);
        }
    }
}

/// In the order in which they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// Nothing is to be placed.
    Told,
    New,
    Moved,
}

impl Work {
    /// It is not tried again.
    pub(super) const fn is_last_try(&self) -> bool {
        self.tries >= TRIES
    }

    fn class(&self) -> Class {
        match self.placing {
            None => Class::Told,
            Some(Placing { is_new: true, .. }) => Class::New,
            Some(Placing { is_new: false, .. }) => Class::Moved,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::relay::{Pair, Terms};
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    fn session(index: u32) -> SessionRef {
        SessionRef { index, generation: 1 }
    }

    fn at(port: u16) -> Tuple {
        Tuple::new(([192, 0, 2, 1], 443).into(), ([192, 0, 2, 9], port).into())
    }

    fn pair(index: u32, client: u16) -> Pair {
        let terms = Terms { identity: 0, epoch: 0, expires: NOW };
        Pair { session: session(index), terms, client: at(client), connector: at(1) }
    }

    fn moves(index: u32, old: u16, to: u16) -> Action {
        Action::ReplaceLeg { leg: Leg::Client, old: at(old), pair: pair(index, to) }
    }

    fn ready(index: u32, counter: u64) -> Action {
        Action::Ready { session: session(index), leg: Leg::Client, counter }
    }

    fn sessions(works: &[Work]) -> Vec<u32> {
        works.iter().map(|work| work.session.index).collect()
    }

    #[test]
    fn however_often_a_leg_moves_it_is_one_work_from_where_it_was_to_where_it_is() {
        let mut works = Works::default();
        for number in 0..10_000 {
            works.add(&moves(7, 1000 + number, 1001 + number));
            works.add(&ready(7, u64::from(number)));
        }
        let [work] = &works.take(NOW)[..] else { panic!("one") };
        let left = [Some(at(1000)), None];
        assert_eq!(work.placing, Some(Placing { is_new: false, left }));
        assert_eq!(work.ready, [Some(9_999), None], "the newest");
        assert!(works.take(NOW).is_empty() && works.next_at().is_none());
    }

    #[test]
    fn a_new_session_waits_for_no_more_than_a_batch_of_moves() {
        let mut works = Works::default();
        for index in 0..10_000 {
            works.add(&moves(index, 5, 6));
        }
        works.add(&Action::Install(pair(50_000, 5)));
        works.add(&ready(60_000, 1));
        let first = sessions(&works.take(NOW));
        assert_eq!(first[..3], [60_000, 50_000, 0]);
        assert_eq!(first.len(), 2 + BATCH);
        let second = sessions(&works.take(NOW));
        let by_age: Vec<u32> = (256..512).collect();
        assert_eq!(second, by_age, "those that have waited for longest");
    }

    #[test]
    fn what_cannot_be_done_yet_comes_again_with_what_came_meanwhile_and_not_for_ever() {
        let mut works = Works::default();
        works.add(&Action::Install(pair(7, 5)));
        works.add(&ready(7, 1));
        let work = works.take(NOW).remove(0);
        works.add(&moves(7, 5, 6));
        works.add(&ready(7, 2));
        assert!(works.again(work, NOW));
        assert!(works.take(NOW).is_empty());
        assert_eq!(works.next_at(), Some(NOW + PAUSE));
        let mut now = NOW + PAUSE;
        let mut work = works.take(now).remove(0);
        assert_eq!((work.class(), work.ready), (Class::New, [Some(2), None]));
        let mut tries = 1;
        while works.again(work.clone(), now) {
            now += PAUSE;
            work = works.take(now).remove(0);
            tries += 1;
        }
        assert_eq!(tries, TRIES);
        assert!(work.is_last_try() && works.next_at().is_none());
    }
}

//! The thread that works on the connection, and what waits for it.
//!
//! SQLite writes one transaction after the other, each of which waits for the disk, so what is asked of the store queues up.
//! One browser can ask faster than the disk answers: revocations go ahead of everything, and what people ask for waits in
//! bounded numbers; beyond those it is refused rather than kept.

use rusqlite::Connection;

use crate::lanes::{self, Lanes};

use super::StoreError;

/// What goes ahead of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// What somebody has is taken away. Never behind what others ask for.
    Urgent,
    /// What the node does on its own, one thing at a time: it writes events, and tells applications of ends.
    Own,
    /// Everything else.
    Ordinary,
}

/// Most works that wait in each lane but the first, which takes all; an ordinary one waits some seconds at most.
const MOST: usize = 2048;

pub(super) type Work = lanes::Work<Connection>;

/// Does one work after the other. A panic rolls its transaction back, so the connection stays good. When it is dropped it does
/// what it was given, and returns then.
pub(super) struct Executor(Lanes<Connection, 3>);

impl Executor {
    pub(super) fn start(connection: Connection) -> std::io::Result<Self> {
        Lanes::start("store", connection).map(Self)
    }

    /// Has `work` done when its turn comes, whoever still waits for it then.
    pub(super) fn submit(&self, lane: Lane, work: Work) -> Result<(), StoreError> {
        let most = if lane == Lane::Urgent { usize::MAX } else { MOST };
        self.0.submit(lane as usize, most, work).map_err(|lanes::Full| StoreError::Busy)
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.0.finish();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_waits_is_bounded_and_keeps_no_revocation_out() {
        let executor = Executor::start(Connection::open_in_memory().unwrap()).unwrap();
        let (hold, held) = mpsc::channel::<()>();
        let (begun, begins) = mpsc::channel();
        let work: Work = Box::new(move |_| {
            begun.send("busy").unwrap();
            let _ = held.recv();
        });
        executor.submit(Lane::Ordinary, work).unwrap();
        assert_eq!(begins.recv(), Ok("busy"));
        let (done, order) = mpsc::channel();
        let submit = |lane, name: &'static str| {
            let done = done.clone();
            executor.submit(lane, Box::new(move |_| done.send(name).unwrap()))
        };
        for _ in 0..MOST {
            submit(Lane::Ordinary, "a login").unwrap();
        }
        assert!(matches!(submit(Lane::Ordinary, "one too many"), Err(StoreError::Busy)));
        submit(Lane::Own, "events").unwrap();
        for _ in 0..=MOST {
            submit(Lane::Urgent, "a revocation").unwrap();
        }
        drop(hold);
        drop(executor);
        drop(done);
        let order: Vec<_> = order.iter().collect();
        assert!(order[..=MOST].iter().all(|name| *name == "a revocation"));
        assert_eq!((&order[MOST + 1..MOST + 3], order.len()), (&["events", "a login"][..], 2 * MOST + 2));
    }
}

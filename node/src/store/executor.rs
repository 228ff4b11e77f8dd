//! The thread that works on the connection, and what waits for it.
//!
//! SQLite writes one transaction after the other, each of which waits for the disk, so what is asked of the store queues up.
//! One browser can ask faster than the disk answers: revocations go ahead of everything, and what people ask for waits in
//! bounded numbers; beyond those it is refused rather than kept.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rusqlite::Connection;

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

/// Most works that wait in each lane; an ordinary one waits some seconds at most.
const MOST: usize = 2048;

pub(super) type Work = Box<dyn FnOnce(&mut Connection) + Send>;

/// Does one work after the other. When it is dropped it does what it was given, and returns then.
pub(super) struct Executor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    lanes: [VecDeque<Work>; 3],
    closed: bool,
}

impl Executor {
    pub(super) fn start(connection: Connection) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let works = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("store".to_owned()).spawn(move || works.run(connection))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Has `work` done when its turn comes, whoever still waits for it then.
    pub(super) fn submit(&self, lane: Lane, work: Work) -> Result<(), StoreError> {
        let mut waiting = self.shared.lock();
        let queue = waiting.queue(lane);
        if queue.len() >= MOST {
            return Err(StoreError::Busy);
        }
        queue.push_back(work);
        drop(waiting);
        self.shared.changed.notify_one();
        Ok(())
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, mut connection: Connection) {
        while let Some(work) = self.next() {
            // A panic rolls its transaction back, so the connection stays good; whoever waits hears that nothing came.
            let _ = catch_unwind(AssertUnwindSafe(|| work(&mut connection)));
        }
    }

    /// The work whose turn it is; nothing once there will be none.
    fn next(&self) -> Option<Work> {
        let mut waiting = self.lock();
        loop {
            if let Some(work) = waiting.lanes.iter_mut().find_map(VecDeque::pop_front) {
                return Some(work);
            }
            if waiting.closed {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn queue(&mut self, lane: Lane) -> &mut VecDeque<Work> {
        let [urgent, own, ordinary] = &mut self.lanes;
        match lane {
            Lane::Urgent => urgent,
            Lane::Own => own,
            Lane::Ordinary => ordinary,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// An executor that is busy until the sender is dropped.
    fn busy() -> (Executor, mpsc::Sender<()>) {
        let executor = Executor::start(Connection::open_in_memory().unwrap()).unwrap();
        let (hold, held) = mpsc::channel::<()>();
        let (begun, begins) = mpsc::channel();
        let work: Work = Box::new(move |_| {
            begun.send(()).unwrap();
            let _ = held.recv();
        });
        executor.submit(Lane::Ordinary, work).unwrap();
        begins.recv().unwrap();
        (executor, hold)
    }

    #[test]
    fn the_urgent_goes_first_and_each_lane_in_order() {
        let (executor, hold) = busy();
        let (done, order) = mpsc::channel();
        for (lane, name) in [
            (Lane::Ordinary, "a login"),
            (Lane::Ordinary, "another"),
            (Lane::Own, "events"),
            (Lane::Urgent, "a revocation"),
            (Lane::Urgent, "a second one"),
        ] {
            let done = done.clone();
            executor.submit(lane, Box::new(move |_| done.send(name).unwrap())).unwrap();
        }
        drop((hold, done));
        let order: Vec<_> = order.iter().collect();
        assert_eq!(order, ["a revocation", "a second one", "events", "a login", "another"]);
    }

    #[test]
    fn what_waits_is_bounded_and_keeps_no_revocation_out() {
        let (executor, hold) = busy();
        let submit = |lane| executor.submit(lane, Box::new(|_| {}));
        for _ in 0..MOST {
            submit(Lane::Ordinary).unwrap();
        }
        assert!(matches!(submit(Lane::Ordinary), Err(StoreError::Busy)));
        submit(Lane::Urgent).unwrap();
        submit(Lane::Own).unwrap();
        drop(hold);
    }

    #[test]
    fn a_panic_ends_one_work_and_an_end_waits_for_what_was_given() {
        let (executor, hold) = busy();
        let (done, works) = mpsc::channel();
        executor.submit(Lane::Urgent, Box::new(|_| panic!("a bug"))).unwrap();
        executor.submit(Lane::Ordinary, Box::new(move |_| done.send(7).unwrap())).unwrap();
        drop(hold);
        drop(executor);
        assert_eq!(works.try_recv(), Ok(7));
    }
}

//! A thread that does one work after the other, and what waits for it in lanes: the first one's go ahead of all others'.
//!
//! Pure but for the thread: what the works do, and what they do it with, is the owner's.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// What is done, with what the thread owns.
pub(crate) type Work<S> = Box<dyn FnOnce(&mut S) + Send>;

/// As many works wait in the lane as may.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// The thread, with `N` lanes. When it is dropped the thread does what it was given, and ends.
pub(crate) struct Lanes<S, const N: usize> {
    shared: Arc<Shared<S, N>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared<S, const N: usize> {
    waiting: Mutex<Waiting<S, N>>,
    changed: Condvar,
}

struct Waiting<S, const N: usize> {
    lanes: [VecDeque<Work<S>>; N],
    is_over: bool,
}

impl<S: Send + 'static, const N: usize> Lanes<S, N> {
    /// # Errors
    /// When there can be no thread.
    pub(crate) fn start(name: &str, state: S) -> io::Result<Self> {
        let waiting = Waiting { lanes: std::array::from_fn(|_| VecDeque::new()), is_over: false };
        let shared = Arc::new(Shared { waiting: Mutex::new(waiting), changed: Condvar::new() });
        let works = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || works.run(state))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Has `work` done when its turn comes, whoever still waits for it then. There is no lane beyond the last.
    ///
    /// # Errors
    /// When `most` works wait in that lane already.
    pub(crate) fn submit(&self, lane: usize, most: usize, work: Work<S>) -> Result<(), Full> {
        let mut waiting = self.shared.lock();
        let lane = waiting.lanes.get_mut(lane).filter(|lane| lane.len() < most).ok_or(Full)?;
        lane.push_back(work);
        drop(waiting);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Waits until all is done that was given.
    pub(crate) fn finish(&mut self) {
        self.shared.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl<S, const N: usize> Drop for Lanes<S, N> {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl<S, const N: usize> Shared<S, N> {
    fn run(&self, mut state: S) {
        while let Some(work) = self.next() {
            // The hook has said it; whoever waits hears that nothing came.
            let _ = catch_unwind(AssertUnwindSafe(|| work(&mut state)));
        }
    }

    /// The work whose turn it is; nothing once there will be none.
    fn next(&self) -> Option<Work<S>> {
        let mut waiting = self.lock();
        loop {
            if let Some(work) = waiting.lanes.iter_mut().find_map(VecDeque::pop_front) {
                return Some(work);
            }
            if waiting.is_over {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn end(&self) {
        self.lock().is_over = true;
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<S, N>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A thread that is busy until the sender is dropped.
    fn busy() -> (Lanes<Vec<u8>, 2>, mpsc::Sender<()>) {
        let lanes = Lanes::start("busy", Vec::new()).unwrap();
        let (hold, held) = mpsc::channel::<()>();
        let (begun, begins) = mpsc::channel();
        let work: Work<Vec<u8>> = Box::new(move |_| {
            begun.send(()).unwrap();
            let _ = held.recv();
        });
        lanes.submit(1, 1, work).unwrap();
        begins.recv().unwrap();
        (lanes, hold)
    }

    #[test]
    fn the_first_lane_goes_first_and_each_in_order() {
        let (mut lanes, hold) = busy();
        let (done, order) = mpsc::channel();
        for (lane, name) in [(1, 1), (1, 2), (0, 3), (0, 4)] {
            let done = done.clone();
            let work = move |seen: &mut Vec<u8>| {
                seen.push(name);
                done.send(seen.clone()).unwrap();
            };
            lanes.submit(lane, 9, Box::new(work)).unwrap();
        }
        drop((hold, done));
        lanes.finish();
        assert_eq!(order.iter().last().unwrap(), [3, 4, 1, 2]);
    }

    #[test]
    fn a_lane_is_bounded_by_itself_and_there_is_none_beyond_the_last() {
        let (lanes, _hold) = busy();
        let submit = |lane| lanes.submit(lane, 3, Box::new(|_| {}));
        assert!((0..3).all(|_| submit(1).is_ok()));
        assert_eq!((submit(1), submit(0), submit(2)), (Err(Full), Ok(()), Err(Full)));
    }

    #[test]
    fn a_panic_ends_one_work_and_an_end_waits_for_what_was_given() {
        let (mut lanes, hold) = busy();
        let (done, works) = mpsc::channel();
        lanes.submit(0, 9, Box::new(|_| panic!("a bug"))).unwrap();
        lanes.submit(1, 9, Box::new(move |_| done.send(7).unwrap())).unwrap();
        drop(hold);
        lanes.finish();
        assert_eq!(works.try_recv(), Ok(7));
    }
}

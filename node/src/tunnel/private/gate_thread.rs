//! The one thread on which the gate is asked about private sessions.
//!
//! Calls to the gate block, some of them until every CPU has gone by. On the threads that the store shares with whoever else
//! blocks, a burst of them would keep logins, events and revocations waiting. What ends sessions comes before what opens
//! and moves them.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::carrier::CarrierError;

type Call = Box<dyn FnOnce() + Send>;

/// The thread. It ends, once it has done what it was given, when this is dropped.
pub(super) struct GateThread {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    calls: Mutex<Calls>,
    came: Condvar,
}

/// Each has somebody who waits for its answer before he asks for more.
#[derive(Default)]
struct Calls {
    ending: VecDeque<Call>,
    others: VecDeque<Call>,
    is_over: bool,
}

impl GateThread {
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("gate-sessions".to_owned()).spawn(move || of_thread.run())?;
        Ok(Self { shared })
    }

    /// Runs `call` there, after those that were given before it.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CarrierError> {
        self.give(|calls| &mut calls.others, call).await
    }

    /// Runs `call`, which ends sessions, ahead of all that does not.
    pub(super) async fn end<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CarrierError> {
        self.give(|calls| &mut calls.ending, call).await
    }

    async fn give<T: Send + 'static>(
        &self,
        lane: impl FnOnce(&mut Calls) -> &mut VecDeque<Call>,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CarrierError> {
        let (answer, answered) = oneshot::channel();
        // Whoever asked may have gone away.
        let call = move || drop(answer.send(call()));
        lane(&mut self.shared.calls()).push_back(Box::new(call));
        self.shared.came.notify_one();
        answered.await.map_err(|_| CarrierError::Stopped)
    }
}

impl Drop for GateThread {
    fn drop(&mut self) {
        self.shared.calls().is_over = true;
        self.shared.came.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        while let Some(call) = self.next() {
            // The hook has said it; whoever waits learns that there is no answer.
            let _ = catch_unwind(AssertUnwindSafe(call));
        }
    }

    fn next(&self) -> Option<Call> {
        let mut calls = self.calls();
        loop {
            if let Some(call) = calls.ending.pop_front().or_else(|| calls.others.pop_front()) {
                return Some(call);
            }
            if calls.is_over {
                return None;
            }
            calls = self.came.wait(calls).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_ends_sessions_comes_first_and_a_call_that_panics_takes_none_along() {
        let thread = GateThread::start().unwrap();
        let (go, waits) = mpsc::channel::<()>();
        let (log, logged) = mpsc::channel();
        let log = |what: &'static str| {
            let log = log.clone();
            move || log.send(what).unwrap()
        };
        let first = thread.ask(move || waits.recv().unwrap());
        let (second, third) = (thread.ask(log("moves")), thread.ask(|| panic!("on purpose")));
        let last = thread.end(log("ends"));
        let asked = async { tokio::join!(first, second, third, last) };
        let let_go = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            go.send(()).unwrap();
        };
        let ((first, second, third, last), ()) = tokio::join!(asked, let_go);
        assert!(first.is_ok() && second.is_ok() && last.is_ok());
        assert!(matches!(third, Err(CarrierError::Stopped)));
        assert_eq!(logged.try_iter().collect::<Vec<_>>(), ["ends", "moves"]);
        assert_eq!(thread.ask(|| 7).await.unwrap(), 7);
    }
}

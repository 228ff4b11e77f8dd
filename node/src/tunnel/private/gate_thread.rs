//! The one thread on which the gate is asked about private sessions.
//!
//! Calls to the gate block, some of them until every CPU has gone by. On the threads that the store shares with whoever else
//! blocks, a burst of them would keep logins, events and revocations waiting. What ends sessions comes before what opens
//! and moves them.

use std::io;

use tokio::sync::oneshot;

use crate::lanes::Lanes;

use super::carrier::CarrierError;

/// What ends sessions.
const ENDING: usize = 0;
const OTHERS: usize = 1;

/// The thread. It ends, once it has done what it was given, when this is dropped.
pub(super) struct GateThread(Lanes<(), 2>);

impl GateThread {
    pub(super) fn start() -> io::Result<Self> {
        Lanes::start("gate-sessions", ()).map(Self)
    }

    /// Runs `call` there, after those that were given before it.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CarrierError> {
        self.give(OTHERS, call).await
    }

    /// Runs `call`, which ends sessions, ahead of all that does not.
    pub(super) async fn end<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CarrierError> {
        self.give(ENDING, call).await
    }

    async fn give<T: Send + 'static>(
        &self,
        lane: usize,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CarrierError> {
        let (answer, answered) = oneshot::channel();
        // Whoever asked may have gone away.
        let call = move |(): &mut ()| drop(answer.send(call()));
        // Each has somebody who waits for its answer before he asks for more: so they are few.
        let given = self.0.submit(lane, usize::MAX, Box::new(call));
        given.map_err(|_| CarrierError::Stopped)?;
        answered.await.map_err(|_| CarrierError::Stopped)
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

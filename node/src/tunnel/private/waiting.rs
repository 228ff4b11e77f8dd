//! Requests for sessions whose connector is not there at the moment: it may have begun a moment ago, or be on its way back.
//!
//! 1. A connection of a connector takes sessions a round trip after it is in service, and a connector that was lost is back
//!    within seconds. Whoever asks in between waits for [`LINK_WAIT`], and is answered once.
//! 2. The other frames of the client are served meanwhile. Of those that wait there are at most [`MAX_WAITING`].
//! 3. Each connection that begins to take sessions is a reason to try again, from the decision on.

use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep_until};

use super::open::Wish;

/// A connector that is missing gets so long to come: less than a client waits for an answer.
pub(in super::super) const LINK_WAIT: Duration = Duration::from_secs(3);

/// Requests of one client's connection that wait.
pub(in super::super) const MAX_WAITING: usize = 64;

/// The requests of one client's connection that wait, oldest first.
pub(super) struct Waiting {
    wishes: Vec<(Instant, Wish)>,
    came: watch::Receiver<u64>,
}

impl Waiting {
    pub(super) fn new(came: &watch::Sender<u64>) -> Self {
        Self { wishes: Vec::new(), came: came.subscribe() }
    }

    pub(super) fn has_room(&self) -> bool {
        self.wishes.len() < MAX_WAITING
    }

    /// Until when a request that is made now may wait.
    pub(super) fn until() -> Instant {
        Instant::now() + LINK_WAIT
    }

    /// What came since the last [`Self::due`] is a reason to try this one again, too.
    pub(super) fn add(&mut self, until: Instant, wish: Wish) {
        self.wishes.push((until, wish));
    }

    /// All those that wait, each with its end, once it is worth another try or the first of them has waited long enough.
    pub(super) async fn due(&mut self) -> Vec<(Instant, Wish)> {
        let Some(first) = self.wishes.iter().map(|(until, _)| *until).min() else {
            return std::future::pending().await;
        };
        tokio::select! {
            changed = self.came.changed() => if changed.is_err() { sleep_until(first).await },
            () = sleep_until(first) => {}
        }
        std::mem::take(&mut self.wishes)
    }
}

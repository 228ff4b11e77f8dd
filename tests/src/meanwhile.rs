//! What goes on in other threads for as long as a test's body runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Dropped, it tells the threads to end, even where the body panics: without it, a failed test would hang.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How much was sent, in what time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    pub sent: u64,
    pub lasted: Duration,
}

/// So many a second are far fewer than anybody here sends, on however busy a machine.
const STEADY: u32 = 50;

impl Pace {
    /// Whether it went on, rather than just began: a body that is done in a second on one machine takes a minute on another, so a
    /// number alone says nothing.
    pub fn is_steady(self) -> bool {
        Duration::from_secs(self.sent) >= self.lasted * STEADY && self.sent > 0
    }
}

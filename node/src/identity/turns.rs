//! Turns at the password hash: a few at a time, and one kept for those who were here before.
//!
//! | lane | who | turns it may take |
//! |---|---|---|
//! | browser | a browser that has proved to know this account's password before | its own, and those below |
//! | network | a network with a recent login | its own, and that of strangers |
//! | stranger | anybody | one |
//!
//! A flood of guesses fills the lane it comes in and no better one. The lane follows from what the browser sent, never
//! from whether the account exists, so it tells nobody anything.

use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::throttle::Attempt;

/// Hashes computed at the same time in each lane; each takes 19 MiB.
const EACH: usize = 1;

/// From the best lane to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Browser,
    Network,
    Stranger,
}

impl Lane {
    pub fn of(attempt: Attempt<'_>) -> Self {
        match (attempt.known_browser, attempt.known_network) {
            (Some(_), _) => Self::Browser,
            (None, true) => Self::Network,
            (None, false) => Self::Stranger,
        }
    }
}

/// The turns of all lanes.
#[derive(Debug)]
pub struct Turns {
    browser: Arc<Semaphore>,
    network: Arc<Semaphore>,
    stranger: Arc<Semaphore>,
}

/// A turn; over when dropped.
#[derive(Debug)]
pub struct Turn {
    _permit: OwnedSemaphorePermit,
}

impl Default for Turns {
    fn default() -> Self {
        let lane = || Arc::new(Semaphore::new(EACH));
        Self { browser: lane(), network: lane(), stranger: lane() }
    }
}

impl Turns {
    /// Waits for a turn in `lane` or any below it.
    pub async fn wait(&self, lane: Lane) -> Result<Turn, AcquireError> {
        let of = |lane: &Arc<Semaphore>| Arc::clone(lane).acquire_owned();
        let permit = match lane {
            Lane::Browser => tokio::select! {
                biased;
                permit = of(&self.browser) => permit,
                permit = of(&self.network) => permit,
                permit = of(&self.stranger) => permit,
            },
            Lane::Network => tokio::select! {
                biased;
                permit = of(&self.network) => permit,
                permit = of(&self.stranger) => permit,
            },
            Lane::Stranger => of(&self.stranger).await,
        };
        Ok(Turn { _permit: permit? })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_lane_has_its_own_and_those_below() {
        for (lane, turns) in [(Lane::Stranger, 1), (Lane::Network, 2), (Lane::Browser, 3)] {
            let all = Turns::default();
            let mut held = Vec::new();
            while let Ok(turn) = tokio::time::timeout(Duration::from_secs(1), all.wait(lane)).await {
                held.push(turn.unwrap());
            }
            assert_eq!(held.len(), turns, "{lane:?}");
            let better = match lane {
                Lane::Stranger => Lane::Network,
                Lane::Network | Lane::Browser => Lane::Browser,
            };
            let left = tokio::time::timeout(Duration::from_secs(1), all.wait(better)).await.is_ok();
            assert_eq!(left, lane != Lane::Browser, "{better:?} behind {lane:?}");
        }
    }
}

//! Waiting between attempts: at first well under a second, then doubling to half a minute, jittered so that a
//! thousand connectors do not come back at once.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const CAP: Duration = Duration::from_secs(30);

/// A connection that lived so long was a good one: the next failure starts anew.
const GOOD_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(in super::super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait now: half to all of the present step, by `random`.
    pub(in super::super) fn next(&mut self, random: u64) -> Duration {
        let step = FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(CAP);
        self.failures = (self.failures + 1).min(16);
        let half = step / 2;
        let spread = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        half + Duration::from_micros(random % spread)
    }

    /// A connection has ended that was in service for so long.
    pub(in super::super) fn served(&mut self, time: Duration) {
        if time >= GOOD_AFTER {
            self.failures = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_grow_to_the_cap_and_never_beyond(randoms in prop::collection::vec(any::<u64>(), 40)) {
            let mut backoff = Backoff::default();
            for (index, random) in randoms.into_iter().enumerate() {
                let wait = backoff.next(random);
                let step = FIRST.saturating_mul(1 << index.min(10)).min(CAP);
                prop_assert!(wait >= step / 2 && wait <= step, "{index}: {wait:?}");
            }
            backoff.served(Duration::from_secs(1));
            prop_assert!(backoff.next(0) >= CAP / 2);
            backoff.served(GOOD_AFTER);
            prop_assert!(backoff.next(u64::MAX) <= FIRST);
        }
    }
}

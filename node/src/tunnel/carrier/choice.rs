//! Which carrier the connections to one address use, and when UDP is tried again. Pure: it is given the time and the
//! randomness.

use std::time::Duration;

/// What carries datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Carrier {
    #[default]
    Udp,
    /// An HTTP/2 stream.
    Tcp,
}

/// UDP is tried again after so long, then after twice that, up to [`CAP`].
const FIRST: Duration = Duration::from_secs(5);
const CAP: Duration = Duration::from_secs(60);

/// UDP that fails within this time of its return has not recovered: the waits go on growing, so that a path that comes and
/// goes does not make connections do the same.
const GOOD_AFTER: Duration = Duration::from_secs(300);

/// The carrier of one address.
#[derive(Debug, Default)]
pub(super) struct Choice {
    carrier: Carrier,
    waits: u32,
    returned: Option<Duration>,
}

impl Choice {
    pub(super) const fn carrier(&self) -> Carrier {
        self.carrier
    }

    /// TCP carries where UDP did not. True: that is news.
    pub(super) fn fell_back(&mut self, now: Duration) -> bool {
        if self.carrier == Carrier::Tcp {
            return false;
        }
        self.carrier = Carrier::Tcp;
        if self.returned.is_none_or(|returned| now.saturating_sub(returned) >= GOOD_AFTER) {
            self.waits = 0;
        }
        true
    }

    /// UDP carries. True: that is news.
    pub(super) fn returned(&mut self, now: Duration) -> bool {
        if self.carrier == Carrier::Udp {
            return false;
        }
        self.carrier = Carrier::Udp;
        self.returned = Some(now);
        true
    }

    /// How long to wait before UDP is tried again: half to all of the present step, by `random`.
    pub(super) fn next_try(&mut self, random: u64) -> Duration {
        let step = FIRST.saturating_mul(1_u32.checked_shl(self.waits).unwrap_or(u32::MAX)).min(CAP);
        self.waits = (self.waits + 1).min(8);
        let half = step / 2;
        let spread = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        half + Duration::from_micros(random % spread)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_a_change_is_news() {
        let mut choice = Choice::default();
        assert_eq!(choice.carrier(), Carrier::Udp);
        assert!(!choice.returned(Duration::ZERO));
        assert!(choice.fell_back(Duration::ZERO) && !choice.fell_back(Duration::ZERO));
        assert_eq!(choice.carrier(), Carrier::Tcp);
        assert!(choice.returned(Duration::ZERO) && !choice.returned(Duration::ZERO));
    }

    #[test]
    fn a_path_that_comes_and_goes_is_tried_ever_less_often() {
        let mut choice = Choice::default();
        let mut now = Duration::ZERO;
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert!(choice.fell_back(now));
            let wait = choice.next_try(u64::MAX / 2);
            waits.push(wait);
            now += wait;
            assert!(choice.returned(now));
            now += Duration::from_secs(3);
        }
        assert!(waits.windows(2).all(|pair| pair[1] >= pair[0] || pair[0] >= CAP / 2), "{waits:?}");
        assert!(waits.last().is_some_and(|last| *last >= CAP / 2));
        now += GOOD_AFTER;
        assert!(choice.fell_back(now));
        assert!(choice.next_try(0) <= FIRST, "UDP was good for long");
    }

    proptest! {
        #[test]
        fn udp_is_tried_again_within_a_minute(randoms in prop::collection::vec(any::<u64>(), 40)) {
            let mut choice = Choice::default();
            choice.fell_back(Duration::ZERO);
            for random in randoms {
                let wait = choice.next_try(random);
                prop_assert!(wait >= FIRST / 2 && wait <= CAP);
            }
        }
    }
}

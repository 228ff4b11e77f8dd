/// What is admitted without proof, up to a budget shared by all senders.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RateClass {
    Arp,
    /// Neighbour discovery and listener queries.
    Neighbour,
    Dhcp,
    Echo,
}

const SECOND: u64 = 1_000_000_000;

impl RateClass {
    pub const COUNT: u32 = 4;

    /// Nanoseconds that one packet costs.
    #[inline(always)]
    const fn cost(self) -> u64 {
        match self {
            Self::Arp | Self::Neighbour => SECOND / 1_000,
            Self::Dhcp => SECOND / 50,
            Self::Echo => SECOND / 100,
        }
    }

    /// Nanoseconds' worth of packets that may come at once after a quiet time.
    #[inline(always)]
    const fn burst(self) -> u64 {
        match self {
            Self::Arp | Self::Neighbour | Self::Echo => SECOND,
            Self::Dhcp => 2 * SECOND,
        }
    }
}

/// The budget's next state, or `None` when it is used up.
///
/// A token bucket in one word (the generic cell rate algorithm, ITU-T I.371): the word is the time at
/// which the bucket will be full again. It never lies further ahead of `now` than the burst, so a stale or
/// damaged word costs at most what lies ahead; [`Lookup::take`](crate::Lookup::take) stores the new one.
#[inline(always)]
pub fn take_token(full_at: u64, now: u64, class: RateClass) -> Option<u64> {
    let base = if full_at > now { full_at } else { now };
    let next = base.saturating_add(class.cost());
    if next - now > class.burst() { None } else { Some(next) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets admitted when `per_second` arrive evenly for `seconds`, starting with a full bucket.
    fn admitted(class: RateClass, per_second: u64, seconds: u64) -> u64 {
        let (start, mut word, mut passed) = (7 * SECOND, 0, 0);
        for n in 0..per_second * seconds {
            if let Some(next) = take_token(word, start + n * SECOND / per_second, class) {
                word = next;
                passed += 1;
            }
        }
        passed
    }

    #[test]
    fn a_flood_gets_the_burst_and_then_the_rate() {
        let passed = admitted(RateClass::Echo, 100_000, 10);
        assert!((1_090..=1_101).contains(&passed), "{passed}");
    }

    #[test]
    fn what_stays_below_the_rate_always_passes() {
        assert_eq!(admitted(RateClass::Arp, 999, 5), 999 * 5);
        assert_eq!(admitted(RateClass::Dhcp, 50, 5), 50 * 5);
    }

    #[test]
    fn extremes_do_not_overflow() {
        assert_eq!(take_token(u64::MAX, 0, RateClass::Arp), None);
        assert_eq!(take_token(0, u64::MAX, RateClass::Arp), Some(u64::MAX));
    }
}

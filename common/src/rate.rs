/// What is admitted without proof, up to a budget.
///
/// A budget of the first kind is one for all senders. One of the second kind is spread over
/// [`SPREAD`](RateClass::SPREAD) buckets by a hash, so that a flood from one network, or by one identifier,
/// uses up its own bucket and no other.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RateClass {
    Arp,
    /// Neighbour discovery and listener queries.
    Neighbour,
    Dhcp,
    Echo,
    /// Openings of TCP connections, from anyone.
    Syn,
    /// The same from networks with a recent login, reserved for them.
    SynRecent,
    /// The same from administrators, reserved for them.
    SynAdmin,
    /// Openings of tunnel connections, from anyone.
    Opener,
    /// The same from networks with a recent login.
    OpenerRecent,
    /// Knocks.
    Knock,
    /// Packets with an identifier of the node's from an address that has not been authenticated, from anyone.
    Unproven,
    /// The same from networks with a recent login, reserved for them.
    UnprovenRecent,
    /// Openings of TCP connections, by network.
    SynNetwork,
    /// Openings of tunnel connections, by network.
    OpenerNetwork,
    /// Packets with an identifier of the node's from an address that has not been authenticated, by network.
    UnprovenNetwork,
    /// Packets of one opening, by knock: it is sent again a few times, and no more.
    KnockOnce,
    /// Packets with an identifier of the node's, by identifier.
    UnprovenId,
}

const SECOND: u64 = 1_000_000_000;

impl RateClass {
    pub const ALL: [Self; 17] = [
        Self::Arp,
        Self::Neighbour,
        Self::Dhcp,
        Self::Echo,
        Self::Syn,
        Self::SynRecent,
        Self::SynAdmin,
        Self::Opener,
        Self::OpenerRecent,
        Self::Knock,
        Self::Unproven,
        Self::UnprovenRecent,
        Self::SynNetwork,
        Self::OpenerNetwork,
        Self::UnprovenNetwork,
        Self::KnockOnce,
        Self::UnprovenId,
    ];
    /// Buckets of a class that is spread.
    pub const SPREAD: u32 = 16_384;
    const FIRST_SPREAD: u32 = Self::SynNetwork as u32;
    /// Buckets in all.
    pub const SLOTS: u32 = Self::FIRST_SPREAD + 5 * Self::SPREAD;

    /// Index of the bucket that pays for a packet of this hash.
    #[inline(always)]
    pub const fn slot(self, hash: u64) -> u32 {
        match (self as u32).checked_sub(Self::FIRST_SPREAD) {
            Some(nth) => Self::FIRST_SPREAD + nth * Self::SPREAD + (hash as u32 & (Self::SPREAD - 1)),
            None => self as u32,
        }
    }

    /// Nanoseconds that one packet costs.
    #[inline(always)]
    pub const fn cost(self) -> u64 {
        SECOND / self.per_second()
    }

    /// The stable name: field of an event and word of an explanation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Arp => "arp",
            Self::Neighbour => "neighbour",
            Self::Dhcp => "dhcp",
            Self::Echo => "echo",
            Self::Syn => "syn",
            Self::SynRecent => "syn_recent",
            Self::SynAdmin => "syn_admin",
            Self::Opener => "opener",
            Self::OpenerRecent => "opener_recent",
            Self::Knock => "knock",
            Self::Unproven => "unproven",
            Self::UnprovenRecent => "unproven_recent",
            Self::SynNetwork => "syn_network",
            Self::OpenerNetwork => "opener_network",
            Self::UnprovenNetwork => "unproven_network",
            Self::KnockOnce => "knock_once",
            Self::UnprovenId => "unproven_id",
        }
    }

    /// Packets that a bucket in state `full_at` still admits at `now`, if no time passes.
    pub const fn left(self, full_at: u64, now: u64) -> u64 {
        let owed = full_at.saturating_sub(now);
        (self.burst() * self.cost()).saturating_sub(owed) / self.cost()
    }

    /// Packets in a second, when they come evenly.
    pub const fn per_second(self) -> u64 {
        match self {
            Self::Arp | Self::Neighbour => 1_000,
            Self::Dhcp => 50,
            Self::Echo => 100,
            Self::Syn | Self::SynRecent => 20_000,
            Self::SynAdmin => 100,
            // What a handshake costs the daemon sets this: about a quarter of a millisecond.
            Self::Opener | Self::OpenerRecent => 1_000,
            Self::Knock => 2_000,
            Self::Unproven | Self::UnprovenRecent => 20_000,
            Self::SynNetwork => 200,
            Self::OpenerNetwork => 50,
            // A handshake takes about ten: forty times what its openings may be, for those who move or bind.
            Self::UnprovenNetwork => 2_000,
            Self::KnockOnce => 1,
            Self::UnprovenId => 100,
        }
    }

    /// Packets that may come at once after a quiet time.
    pub const fn burst(self) -> u64 {
        match self {
            Self::KnockOnce => 16,
            Self::UnprovenId | Self::OpenerNetwork | Self::UnprovenNetwork => 2 * self.per_second(),
            Self::SynNetwork => 4 * self.per_second(),
            Self::Dhcp => 2 * self.per_second(),
            Self::Arp
            | Self::Neighbour
            | Self::Echo
            | Self::Syn
            | Self::SynRecent
            | Self::SynAdmin
            | Self::Opener
            | Self::OpenerRecent
            | Self::Knock
            | Self::Unproven
            | Self::UnprovenRecent => self.per_second(),
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
    if next - now > class.burst() * class.cost() { None } else { Some(next) }
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
    fn no_two_budgets_share_a_bucket() {
        let mut end = 0;
        for class in RateClass::ALL {
            assert_eq!(class.slot(0), end, "{class:?}");
            let spread = class.slot(u64::MAX) - class.slot(0);
            assert!(spread == 0 || spread == RateClass::SPREAD - 1, "{class:?}");
            end += spread + 1;
        }
        assert_eq!(end, RateClass::SLOTS);
    }

    #[test]
    fn what_stays_below_the_rate_always_passes() {
        assert_eq!(admitted(RateClass::Arp, 999, 5), 999 * 5);
        assert_eq!(admitted(RateClass::Dhcp, 50, 5), 50 * 5);
    }

    #[test]
    fn what_is_left_is_what_is_admitted() {
        for class in RateClass::ALL {
            let (now, mut word) = (7 * SECOND, 0);
            for taken in 0..class.burst() {
                assert_eq!(class.left(word, now), class.burst() - taken, "{class:?}");
                word = take_token(word, now, class).unwrap();
            }
            assert_eq!((class.left(word, now), take_token(word, now, class)), (0, None), "{class:?}");
        }
    }

    #[test]
    fn extremes_do_not_overflow() {
        assert_eq!(take_token(u64::MAX, 0, RateClass::Arp), None);
        assert_eq!(take_token(0, u64::MAX, RateClass::Arp), Some(u64::MAX));
    }
}

//! Which way the connections to one address go, and when UDP is tried again. Decides for all of them, and does nothing. Pure:
//! it is given the time and the randomness.

use std::net::IpAddr;
use std::time::Duration;

/// What carries datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Carrier {
    #[default]
    Udp,
    /// An HTTP/2 stream.
    Tcp,
}

impl Carrier {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// What carries, and from which network: a change of either means another socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Way {
    pub(super) carrier: Carrier,
    /// How often the machine's own address has changed.
    network: u32,
}

impl Way {
    /// The other carrier, from the same network.
    pub(super) const fn over(self, carrier: Carrier) -> Self {
        Self { carrier, ..self }
    }
}

/// UDP is tried again after so long, then after twice that, up to [`CAP`].
const FIRST: Duration = Duration::from_secs(5);
const CAP: Duration = Duration::from_secs(60);

/// UDP that fails within this time of its return has not recovered: the waits go on growing, so that a path that comes and
/// goes does not make connections do the same.
const GOOD_AFTER: Duration = Duration::from_secs(300);

/// The way to one address.
#[derive(Debug, Default)]
pub(super) struct Choice {
    way: Way,
    /// The machine's address towards it, once that is known.
    local: Option<IpAddr>,
    waits: u32,
    returned: Option<Duration>,
    /// When UDP is tried again.
    try_at: Option<Duration>,
}

impl Choice {
    pub(super) const fn way(&self) -> Way {
        self.way
    }

    /// When UDP is to be tried, and [`Self::returned`] or [`Self::tried`] to be said of it.
    pub(super) const fn try_at(&self) -> Option<Duration> {
        self.try_at
    }

    /// TCP carries where UDP did not. True: that is news.
    pub(super) fn fell_back(&mut self, now: Duration, random: u64) -> bool {
        if self.way.carrier == Carrier::Tcp {
            return false;
        }
        self.way.carrier = Carrier::Tcp;
        if self.returned.is_none_or(|returned| now.saturating_sub(returned) >= GOOD_AFTER) {
            self.waits = 0;
        }
        self.tried(now, random);
        true
    }

    /// UDP carries. True: that is news.
    pub(super) fn returned(&mut self, now: Duration) -> bool {
        if self.way.carrier == Carrier::Udp {
            return false;
        }
        self.way.carrier = Carrier::Udp;
        self.returned = Some(now);
        self.try_at = None;
        true
    }

    /// UDP was tried and brings nothing: the next try comes after half to all of the present step, by `random`.
    pub(super) fn tried(&mut self, now: Duration, random: u64) {
        if self.way.carrier == Carrier::Udp {
            return;
        }
        let step = FIRST.saturating_mul(1_u32.checked_shl(self.waits).unwrap_or(u32::MAX)).min(CAP);
        self.waits = (self.waits + 1).min(8);
        let half = step / 2;
        let spread = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        self.try_at = Some(now.saturating_add(half).saturating_add(Duration::from_micros(random % spread)));
    }

    /// Packets would leave from this address now. True: it is another than before, so that sockets of before are bound to
    /// one that is no more. What was learned of UDP was learned in another network, so it is tried at once.
    pub(super) fn at_address(&mut self, now: Duration, local: IpAddr) -> bool {
        let before = self.local.replace(local);
        if before.is_none_or(|before| before == local) {
            return false;
        }
        self.way.network = self.way.network.wrapping_add(1);
        if self.way.carrier == Carrier::Tcp {
            self.waits = 0;
            self.try_at = Some(now);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const CAFE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));

    #[test]
    fn only_a_change_is_news() {
        let mut choice = Choice::default();
        assert_eq!(choice.way().carrier, Carrier::Udp);
        assert!(!choice.returned(Duration::ZERO));
        choice.tried(Duration::ZERO, 0);
        assert_eq!(choice.try_at(), None, "UDP carries");
        assert!(choice.fell_back(Duration::ZERO, 0) && !choice.fell_back(Duration::ZERO, 0));
        assert_eq!(choice.way().carrier, Carrier::Tcp);
        assert!(choice.try_at().is_some());
        assert!(choice.returned(Duration::ZERO) && !choice.returned(Duration::ZERO));
        assert_eq!(choice.try_at(), None);
    }

    #[test]
    fn another_network_is_another_way_and_has_its_own_udp() {
        let mut choice = Choice::default();
        let now = Duration::from_secs(100);
        assert!(!choice.at_address(now, HOME), "the first is no change");
        let at_home = choice.way();
        assert!(!choice.at_address(now, HOME));
        assert!(choice.at_address(now, CAFE));
        assert_ne!(choice.way(), at_home);
        assert_eq!(choice.way().carrier, Carrier::Udp);
        assert_eq!(choice.try_at(), None, "UDP carries: there is nothing to try");

        choice.fell_back(now, 0);
        for _ in 0..8 {
            choice.tried(now, u64::MAX);
        }
        let in_the_cafe = choice.way();
        assert!(choice.at_address(now, HOME));
        assert_ne!(choice.way(), in_the_cafe);
        assert_eq!((choice.way().carrier, choice.try_at()), (Carrier::Tcp, Some(now)));
        choice.tried(now, 0);
        assert!(choice.try_at().is_some_and(|at| at <= now + FIRST), "the waits begin anew");
    }

    #[test]
    fn a_path_that_comes_and_goes_is_tried_ever_less_often() {
        let mut choice = Choice::default();
        let mut now = Duration::ZERO;
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert!(choice.fell_back(now, u64::MAX / 2));
            let at = choice.try_at().unwrap();
            waits.push(at - now);
            now = at;
            assert!(choice.returned(now));
            now += Duration::from_secs(3);
        }
        assert!(waits.windows(2).all(|pair| pair[1] >= pair[0] || pair[0] >= CAP / 2), "{waits:?}");
        assert!(waits.last().is_some_and(|last| *last >= CAP / 2));
        now += GOOD_AFTER;
        assert!(choice.fell_back(now, 0));
        assert!(choice.try_at().is_some_and(|at| at - now <= FIRST), "UDP was good for long");
    }

    proptest! {
        #[test]
        fn udp_is_tried_again_within_a_minute(randoms in prop::collection::vec(any::<u64>(), 40)) {
            let mut choice = Choice::default();
            let mut now = Duration::ZERO;
            choice.fell_back(now, 0);
            for random in randoms {
                let wait = choice.try_at().unwrap() - now;
                prop_assert!(wait >= FIRST / 2 && wait <= CAP);
                now += wait;
                choice.tried(now, random);
            }
        }
    }
}

//! What one connection, or one leg of a session, does about the way it goes: it follows what is chosen for all, and is the
//! first to know that UDP brings nothing. Decides, and does nothing. Pure.
//!
//! ```text
//! chosen for all, another way ──▶ take it           and wherever that fails: again, ever later
//!      but what still hears by UDP ──▶ stay         with the node dead, the gate relays as before
//! the stream has ended ─────────▶ take another one
//! asked, and nothing heard ─────▶ take TCP; if that can be had, it is chosen for all
//! ```

use std::time::Duration;

use super::choice::{Carrier, Way};

/// A question on UDP that gets no answer for so long, and for three probe timeouts (RFC 9002 §6.2.1), is silence; and one
/// that waits for so long is in any case.
pub(super) const PATIENCE: Duration = Duration::from_millis(1500);
const MAX_PATIENCE: Duration = super::PATIENCE;

/// What could not be had is tried again after so long, then after twice that, up to [`MAX_AGAIN`].
const AGAIN: Duration = Duration::from_secs(1);
const MAX_AGAIN: Duration = Duration::from_secs(30);

/// What a connection has counted so far, and its probe timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    /// Frames to which the peer owes an answer.
    pub(super) asked: u64,
    /// Datagrams.
    pub(super) heard: u64,
    pub(super) pto: Duration,
    /// Somebody was heard by it within [`PATIENCE`]. Of legs alone: a connection has what it counts.
    pub(super) hears: bool,
}

/// Why another socket is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// All go that way now.
    Chosen,
    /// The stream has ended.
    Ended,
    /// UDP has brought nothing since somebody asked, so long ago.
    Silent(Duration),
}

/// One connection, or one leg.
#[derive(Debug)]
pub(super) struct Follower {
    at: Way,
    seen: Counts,
    /// The first question since something was heard.
    asking: Option<Duration>,
    failures: u32,
    not_before: Option<Duration>,
}

impl Follower {
    /// One that has just been dialled, or begun.
    pub(super) const fn new(at: Way, counts: Counts) -> Self {
        Self { at, seen: counts, asking: None, failures: 0, not_before: None }
    }

    pub(super) const fn at(&self) -> Way {
        self.at
    }

    /// When to look again where nothing else happens.
    pub(super) const fn not_before(&self) -> Option<Duration> {
        self.not_before
    }

    /// Where to go from here, if anywhere: then [`Self::moved`] or [`Self::failed`] has to follow.
    pub(super) fn look(
        &mut self,
        now: Duration,
        chosen: Way,
        has_ended: bool,
        counts: Counts,
    ) -> Option<(Way, Why)> {
        let silent_for = self.silent_for(now, counts);
        if self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        if chosen != self.at {
            let stays = counts.hears && chosen == self.at.over(Carrier::Tcp);
            return (!stays).then_some((chosen, Why::Chosen));
        }
        match self.at.carrier {
            Carrier::Tcp => has_ended.then_some((self.at, Why::Ended)),
            Carrier::Udp => {
                let patience = counts.pto.saturating_mul(3).clamp(PATIENCE, MAX_PATIENCE);
                let silent_for = silent_for.filter(|silent_for| *silent_for >= patience)?;
                Some((self.at.over(Carrier::Tcp), Why::Silent(silent_for)))
            }
        }
    }

    /// It goes that way now.
    pub(super) const fn moved(&mut self, to: Way, counts: Counts) {
        *self = Self::new(to, counts);
    }

    /// It stays where it is.
    pub(super) fn failed(&mut self, now: Duration) {
        let wait = AGAIN.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(MAX_AGAIN);
        self.failures = self.failures.saturating_add(1).min(8);
        self.not_before = Some(now.saturating_add(wait));
        self.asking = None;
    }

    fn silent_for(&mut self, now: Duration, counts: Counts) -> Option<Duration> {
        if counts.heard != self.seen.heard {
            self.asking = None;
        } else if counts.asked != self.seen.asked && self.asking.is_none() {
            self.asking = Some(now);
        }
        self.seen = counts;
        self.asking.map(|since| now.saturating_sub(since))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::super::choice::Choice;
    use super::*;

    const UDP: Carrier = Carrier::Udp;
    const TCP: Carrier = Carrier::Tcp;
    const MS: Duration = Duration::from_millis(1);

    const fn counts(asked: u64, heard: u64) -> Counts {
        Counts { asked, heard, pto: Duration::from_millis(50), hears: false }
    }

    fn way(carrier: Carrier) -> Way {
        Way::default().over(carrier)
    }

    #[test]
    fn only_a_question_without_an_answer_is_silence() {
        let mut follower = Follower::new(way(UDP), counts(1, 1));
        let mut look = |now, counts| follower.look(now, way(UDP), false, counts);
        let long = PATIENCE * 10;
        assert_eq!(look(long, counts(1, 1)), None, "nobody has asked");
        assert_eq!(look(long, counts(2, 1)), None, "just asked");
        assert_eq!(look(long + PATIENCE / 2, counts(3, 1)), None, "asking again does not start anew");
        assert_eq!(look(long + PATIENCE, counts(3, 1)), Some((way(TCP), Why::Silent(PATIENCE))));
        assert_eq!(look(long + PATIENCE, counts(4, 2)), None, "an answer ends it");
        assert_eq!(look(long * 2, counts(4, 2)), None);
        assert_eq!(look(long * 2, counts(5, 2)), None);
        follower.moved(way(UDP), counts(5, 2));
        assert_eq!(follower.look(long * 3, way(UDP), false, counts(5, 2)), None, "another socket");
    }

    #[test]
    fn a_slow_path_gets_more_time_and_none_gets_more_than_the_bound() {
        for (pto, silent_at) in [(900 * MS, MAX_PATIENCE), (600 * MS, 1800 * MS), (10 * MS, PATIENCE)] {
            let slow = |asked| Counts { asked, pto, ..Counts::default() };
            let mut follower = Follower::new(way(UDP), slow(0));
            assert_eq!(follower.look(Duration::ZERO, way(UDP), false, slow(1)), None);
            assert_eq!(follower.look(silent_at - MS, way(UDP), false, slow(1)), None);
            assert!(follower.look(silent_at, way(UDP), false, slow(1)).is_some(), "{pto:?}");
        }
    }

    #[test]
    fn what_is_chosen_is_followed_and_what_fails_is_tried_ever_later() {
        let mut follower = Follower::new(way(UDP), counts(0, 0));
        let mut now = Duration::from_secs(9);
        let mut waits = Vec::new();
        for _ in 0..9 {
            assert_eq!(follower.look(now, way(TCP), false, counts(0, 0)), Some((way(TCP), Why::Chosen)));
            follower.failed(now);
            let at = follower.not_before().unwrap();
            assert_eq!(follower.look(at - MS, way(TCP), false, counts(0, 0)), None);
            waits.push(at - now);
            now = at;
        }
        assert_eq!((waits[0], waits[1], waits[8]), (AGAIN, AGAIN * 2, MAX_AGAIN));
        follower.moved(way(TCP), counts(0, 0));
        assert_eq!(
            follower.look(now, way(TCP), false, counts(9, 0)),
            None,
            "the stream says by itself when it ends"
        );
        assert_eq!(follower.look(now, way(TCP), true, counts(9, 0)), Some((way(TCP), Why::Ended)));
        assert_eq!(follower.look(now, way(UDP), true, counts(9, 0)), Some((way(UDP), Why::Chosen)));
    }

    #[test]
    fn a_leg_that_hears_by_udp_stays_there_and_leaves_with_its_network() {
        let leg = |hears| Counts { hears, ..Counts::default() };
        let mut follower = Follower::new(way(UDP), leg(true));
        for second in 0..100 {
            assert_eq!(follower.look(Duration::from_secs(second), way(TCP), false, leg(true)), None);
        }
        let wanted = Some((way(TCP), Why::Chosen));
        assert_eq!(follower.look(Duration::from_secs(100), way(TCP), false, leg(false)), wanted);
        let mut choice = Choice::default();
        for address in ["192.0.2.1", "198.51.100.1"] {
            choice.at_address(MS, address.parse::<IpAddr>().unwrap());
        }
        for carrier in [UDP, TCP] {
            let elsewhere = choice.way().over(carrier);
            let wanted = Some((elsewhere, Why::Chosen));
            assert_eq!(follower.look(Duration::from_secs(100), elsewhere, false, leg(true)), wanted);
        }
        follower.moved(way(TCP), leg(true));
        let wanted = Some((way(UDP), Why::Chosen));
        assert_eq!(follower.look(Duration::from_secs(101), way(UDP), false, leg(true)), wanted, "back");
    }

    #[test]
    fn another_network_is_followed_over_either_carrier() {
        for carrier in [UDP, TCP] {
            let mut choice = Choice::default();
            if carrier == TCP {
                choice.fell_back(Duration::ZERO, 0);
            }
            let addresses = ["192.0.2.1", "198.51.100.1"].map(|text| text.parse::<IpAddr>().unwrap());
            choice.at_address(Duration::ZERO, addresses[0]);
            let mut follower = Follower::new(choice.way(), counts(0, 0));
            assert_eq!(follower.look(MS, choice.way(), false, counts(0, 0)), None);
            choice.at_address(MS, addresses[1]);
            let wanted = Some((choice.way(), Why::Chosen));
            assert_eq!(follower.look(MS, choice.way(), false, counts(0, 0)), wanted, "{carrier:?}");
            assert_eq!(choice.way().carrier, carrier);
        }
    }

    /// A network that lets UDP and TCP through or not, connections that ask once a second, and time that passes by steps as
    /// the loops look.
    struct Simulation {
        now: Duration,
        udp: bool,
        choice: Choice,
        followers: Vec<(Follower, Counts)>,
        moves: u32,
    }

    impl Simulation {
        const STEP: Duration = Duration::from_millis(200);

        fn new(connections: usize) -> Self {
            let choice = Choice::default();
            let followers =
                (0..connections).map(|_| (Follower::new(choice.way(), counts(0, 0)), counts(0, 0))).collect();
            Self { now: Duration::ZERO, udp: true, choice, followers, moves: 0 }
        }

        fn step(&mut self) {
            self.now += Self::STEP;
            let asks = self.now.as_millis().is_multiple_of(1000);
            for (follower, counts) in &mut self.followers {
                counts.asked += u64::from(asks);
                let passes = follower.at().carrier == TCP || self.udp;
                counts.heard += u64::from(asks && passes);
                let Some((to, why)) = follower.look(self.now, self.choice.way(), false, *counts) else {
                    continue;
                };
                follower.moved(to, *counts);
                self.moves += 1;
                if let Why::Silent(_) = why {
                    self.choice.fell_back(self.now, 7);
                }
            }
            if self.choice.try_at().is_some_and(|at| at <= self.now) {
                if self.udp {
                    self.choice.returned(self.now);
                } else {
                    self.choice.tried(self.now, 7);
                }
            }
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                self.step();
            }
        }

        fn all_over(&self, carrier: Carrier) -> bool {
            self.followers.iter().all(|(follower, _)| follower.at().carrier == carrier)
        }
    }

    proptest! {
        /// However UDP comes and goes: three seconds after it went all are over TCP, a minute after it came all are back, and
        /// nobody moves without need.
        #[test]
        fn all_fall_back_within_three_seconds_and_return_within_a_minute(
            times in prop::collection::vec((0_u64..400, 0_u64..400), 1..5),
            connections in 1_usize..5,
        ) {
            let mut network = Simulation::new(connections);
            for (good, bad) in times {
                let steps = |count: u64| Simulation::STEP * u32::try_from(count).unwrap();
                network.udp = true;
                network.run(Duration::from_secs(62));
                prop_assert!(network.all_over(UDP));
                let before = network.moves;
                network.run(steps(good));
                prop_assert_eq!(network.moves, before);
                network.udp = false;
                network.run(Duration::from_secs(3));
                prop_assert!(network.all_over(TCP));
                let before = network.moves;
                network.run(steps(bad));
                prop_assert_eq!(network.moves, before);
            }
        }
    }
}

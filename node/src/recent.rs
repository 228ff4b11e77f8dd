//! Networks where somebody has lately proved who they are, by a login or as an enrolled connector.
//!
//! While strangers flood, what is scarce is kept for these: connections at the edge, handshakes at the tunnel, turns at
//! the password hash. It is a hint about whom to serve first and never a proof of anything: a false member costs one
//! network's bounded share, a missing one means to queue with strangers.
//!
//! The set is bounded in every direction, since whoever has one account can log in from many places: so many networks
//! in all, so many of one person, and the oldest go first. Nothing unauthenticated can add to it.
//!
//! [`Recent::networks`] is a feed of the set for those who keep a copy, as the gate may.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch;

use crate::flow::UnixTime;
use crate::places;

/// How long a network is remembered: over a night, so that a morning's logins come from known networks.
pub const REMEMBERED: Duration = Duration::from_secs(16 * 3600);
/// Entries in all.
const ENTRIES: usize = 4096;
/// Networks remembered for one person.
const OF_PERSON: usize = 8;
/// People that one network is remembered for: more than one, so that one of them cannot make it forgotten.
const OF_NETWORK: usize = 4;

/// The set of one node. Clones share it.
#[derive(Debug, Clone)]
pub struct Recent {
    known: Arc<Mutex<Known>>,
    hasher: RandomState,
    feed: watch::Sender<Arc<BTreeSet<IpNet>>>,
}

impl Default for Recent {
    fn default() -> Self {
        Self { known: Arc::default(), hasher: RandomState::new(), feed: watch::Sender::default() }
    }
}

impl Recent {
    /// Somebody, named by `who`, proved at `at` who they are, from `address`.
    pub fn remember(&self, who: &str, address: IpAddr, at: UnixTime) {
        let mut known = self.lock();
        known.remember(self.hasher.hash_one(who), address, at.after(REMEMBERED));
        self.publish(&known);
    }

    /// Whether the network of `address` is known at `now`.
    pub fn contains(&self, address: IpAddr, now: UnixTime) -> bool {
        self.lock().contains(address, now)
    }

    /// Forgets what is too old at `now`; called every second or so, so that the feed is true.
    pub fn expire(&self, now: UnixTime) {
        let mut known = self.lock();
        if known.expire(now) {
            self.publish(&known);
        }
    }

    /// The known networks (/24 and /56), now and after every change.
    pub fn networks(&self) -> watch::Receiver<Arc<BTreeSet<IpNet>>> {
        self.feed.subscribe()
    }

    fn publish(&self, known: &Known) {
        let networks = known.networks();
        self.feed.send_if_modified(|published| {
            let changed = **published != networks;
            if changed {
                *published = Arc::new(networks);
            }
            changed
        });
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The set itself: for each network and person, until when.
#[derive(Debug, Default)]
struct Known(BTreeMap<(IpAddr, u64), UnixTime>);

impl Known {
    fn remember(&mut self, who: u64, address: IpAddr, until: UnixTime) {
        let network = places::network(address);
        let entry = self.0.entry((network, who)).or_insert(until);
        *entry = (*entry).max(until);
        self.bound(OF_PERSON, |(_, person)| *person == who);
        self.bound(OF_NETWORK, |(at, _)| *at == network);
        self.bound(ENTRIES, |_| true);
    }

    /// Forgets the oldest of those that `counts`, until there are no more than `limit`.
    fn bound(&mut self, limit: usize, counts: impl Fn(&(IpAddr, u64)) -> bool) {
        loop {
            let counted = || self.0.iter().filter(|(key, _)| counts(key));
            if counted().count() <= limit {
                return;
            }
            let Some(oldest) = counted().min_by_key(|(_, until)| **until).map(|(key, _)| *key) else {
                return;
            };
            self.0.remove(&oldest);
        }
    }

    fn contains(&self, address: IpAddr, now: UnixTime) -> bool {
        let network = places::network(address);
        self.0.range((network, u64::MIN)..=(network, u64::MAX)).any(|(_, until)| *until > now)
    }

    fn expire(&mut self, now: UnixTime) -> bool {
        let before = self.0.len();
        self.0.retain(|_, until| *until > now);
        self.0.len() != before
    }

    fn networks(&self) -> BTreeSet<IpNet> {
        self.0
            .keys()
            .filter_map(|(network, _)| {
                let (v4, v6) = places::NETWORK;
                IpNet::new(*network, if network.is_ipv4() { v4 } else { v6 }).ok()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_is_known_for_hours_and_its_feed_says_so() {
        let recent = Recent::default();
        let mut feed = recent.networks();
        recent.remember("local:ann", address("192.0.2.7"), UnixTime(1000));
        recent.remember("local:bob", address("2001:db8:0:12ff::1"), UnixTime(2000));
        assert!(feed.has_changed().unwrap());
        let named: Vec<_> = feed.borrow_and_update().iter().map(ToString::to_string).collect();
        assert_eq!(named, ["192.0.2.0/24", "2001:db8:0:1200::/56"]);
        let end = UnixTime(1000).after(REMEMBERED);
        assert!(recent.contains(address("::ffff:192.0.2.250"), UnixTime(end.0 - 1)));
        assert!(!recent.contains(address("192.0.2.250"), end), "exactly so long");
        assert!(!recent.contains(address("192.0.3.7"), UnixTime(1000)));
        recent.expire(end);
        assert_eq!(feed.borrow_and_update().len(), 1);
        recent.remember("local:bob", address("2001:db8:0:1201::9"), UnixTime(2100));
        assert!(!feed.has_changed().unwrap(), "nothing new for whoever keeps a copy");
    }

    #[test]
    fn nobody_makes_the_networks_of_others_forgotten() {
        let recent = Recent::default();
        let home = address("192.0.2.7");
        recent.remember("local:ann", home, UnixTime(0));
        for number in 0..=255 {
            let at = UnixTime(i64::from(number) + 1);
            recent.remember("local:eve", home, at);
            recent.remember("local:eve", IpAddr::from([198, 51, number, 1]), at);
        }
        assert!(recent.contains(home, UnixTime(300)));
        assert!(recent.networks().borrow().len() <= OF_PERSON + 1);
    }

    proptest! {
        #[test]
        fn the_set_is_bounded_and_keeps_the_newest(logins in proptest::collection::vec((any::<u8>(), any::<u16>(), 0i64..1000), 1..200)) {
            let mut known = Known::default();
            for (who, network, at) in logins {
                let [b, c] = network.to_be_bytes();
                let from = IpAddr::from([10, b, c, 1]);
                let newest = UnixTime(10_000 + at);
                known.remember(u64::from(who % 8), from, newest);
                let of_person = known.0.keys().filter(|(_, person)| *person == u64::from(who % 8)).count();
                prop_assert!(of_person <= OF_PERSON && known.0.len() <= ENTRIES);
            }
        }
    }
}

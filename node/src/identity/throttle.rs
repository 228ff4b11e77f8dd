//! How often passwords may be tried: token buckets per account and per network, in memory of fixed size. And how often a
//! session may make the node write, since the store waits for the disk, and everybody for the store; and how often whoever
//! has proven nothing can make it ask or verify.
//!
//! An attempt is charged before the password is looked at and refunded when it was right, so only failures count and
//! attempts in parallel gain nothing. Buckets refill by themselves: nobody is locked out for good. A browser that has
//! logged in before pays from a bucket of its own, and so does an account that is tried from a network with a recent
//! login, so strangers who try names cannot keep their owners out.
//!
//! The tables have a fixed number of slots, indexed by a keyed hash: strangers can allocate nothing, and whoever
//! shares a slot by chance shares its budget.

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Failures in a row before an account has to wait, and the time until one more is allowed.
const ACCOUNT: Rate = Rate { burst: 10, interval: Duration::from_secs(30) };
/// The same for a /24 (IPv4) or /56 (IPv6).
const NETWORK: Rate = Rate { burst: 20, interval: Duration::from_secs(10) };
/// Things in vain, of networks where somebody has lately logged in: what a page makes the browsers of an office send must
/// not keep its people out.
const KNOWN_NETWORK: Rate = Rate { burst: 200, interval: Duration::from_secs(1) };
/// Answers to one login elsewhere.
const ANSWERS: Rate = Rate { burst: 5, interval: Duration::from_secs(60) };
/// What one session may have written at once, and the time until once more is allowed.
const WRITES: Rate = Rate { burst: 50, interval: Duration::from_millis(100) };
/// Slots of each table: 64 KiB.
const SLOTS: usize = 8192;

/// Who tries to log in.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// User name as typed.
    pub account: &'a str,
    pub address: IpAddr,
    /// Identifier of a browser that has proven to know this account's password before.
    pub known_browser: Option<&'a [u8]>,
    /// Whether somebody has lately logged in from the network of `address`.
    pub known_network: bool,
}

/// The buckets of all accounts and networks. Times are since any fixed moment.
pub struct Throttle {
    accounts: Buckets,
    networks: Buckets,
    key: RandomState,
}

impl Default for Throttle {
    fn default() -> Self {
        Self { accounts: Buckets::new(ACCOUNT), networks: Buckets::new(NETWORK), key: RandomState::new() }
    }
}

impl Throttle {
    /// Takes one attempt from the account's and the network's bucket, or says how long to wait.
    pub fn charge(&self, attempt: Attempt<'_>, now: Duration) -> Result<(), Duration> {
        let (account, network) = self.slots(attempt);
        if let Some(network) = network {
            self.networks.charge(network, now)?;
        }
        self.accounts.charge(account, now).inspect_err(|_| {
            if let Some(network) = network {
                self.networks.refund(network);
            }
        })
    }

    /// Gives a charged attempt back: the password was right.
    pub fn refund(&self, attempt: Attempt<'_>) {
        let (account, network) = self.slots(attempt);
        self.accounts.refund(account);
        if let Some(network) = network {
            self.networks.refund(network);
        }
    }

    fn slots(&self, attempt: Attempt<'_>) -> (u64, Option<u64>) {
        let account = attempt.account.to_ascii_lowercase();
        match attempt.known_browser {
            Some(browser) => (self.key.hash_one((account, browser)), None),
            None => {
                let network = prefix(attempt.address);
                let account = match attempt.known_network {
                    true => self.key.hash_one((account, network)),
                    false => self.key.hash_one(account),
                };
                (account, Some(self.key.hash_one(network)))
            }
        }
    }
}

/// Buckets of networks, where no account is named. Those with a recent login have buckets apart.
pub struct Networks {
    strangers: Buckets,
    known: Buckets,
    key: RandomState,
}

impl Default for Networks {
    fn default() -> Self {
        Self { strangers: Buckets::new(NETWORK), known: Buckets::new(KNOWN_NETWORK), key: RandomState::new() }
    }
}

impl Networks {
    /// Takes one thing from the bucket of the network of `address`, or says how long to wait. `known` says that somebody has
    /// lately logged in from there.
    pub fn charge(&self, address: IpAddr, known: bool, now: Duration) -> Result<(), Duration> {
        self.of(known).charge(self.key.hash_one(prefix(address)), now)
    }

    /// Gives it back: it was right.
    pub fn refund(&self, address: IpAddr, known: bool) {
        self.of(known).refund(self.key.hash_one(prefix(address)));
    }

    const fn of(&self, known: bool) -> &Buckets {
        if known { &self.known } else { &self.strangers }
    }
}

/// Buckets of what has a name of its own, such as a session.
pub struct Named {
    buckets: Buckets,
    key: RandomState,
}

impl Named {
    /// For what sessions make the node write.
    pub fn writes() -> Self {
        Self { buckets: Buckets::new(WRITES), key: RandomState::new() }
    }

    /// For answers to logins that are at an identity provider.
    pub fn answers() -> Self {
        Self { buckets: Buckets::new(ANSWERS), key: RandomState::new() }
    }

    /// Takes one thing from the bucket of `name`, or says how long to wait.
    pub fn charge(&self, name: impl Hash, now: Duration) -> Result<(), Duration> {
        self.buckets.charge(self.key.hash_one(name), now)
    }
}

struct Rate {
    burst: u32,
    interval: Duration,
}

/// Generic cell rate algorithm (ITU-T I.371): a slot is the time, in milliseconds, at which its bucket is full again.
struct Buckets {
    full_at: Box<[AtomicU64]>,
    interval: u64,
    capacity: u64,
}

impl Buckets {
    fn new(rate: Rate) -> Self {
        let interval = millis(rate.interval);
        Self {
            full_at: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            interval,
            capacity: interval.saturating_mul(u64::from(rate.burst)),
        }
    }

    fn charge(&self, slot: u64, now: Duration) -> Result<(), Duration> {
        let now = millis(now);
        let Some(full_at) = self.slot(slot) else { return Ok(()) };
        full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                let next = full_at.max(now).saturating_add(self.interval);
                (next.saturating_sub(now) <= self.capacity).then_some(next)
            })
            .map(|_| ())
            .map_err(|full_at| {
                let next = full_at.saturating_add(self.interval);
                Duration::from_millis(next.saturating_sub(now).saturating_sub(self.capacity))
            })
    }

    fn refund(&self, slot: u64) {
        if let Some(full_at) = self.slot(slot) {
            let _ = full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                Some(full_at.saturating_sub(self.interval))
            });
        }
    }

    fn slot(&self, hash: u64) -> Option<&AtomicU64> {
        let count = u64::try_from(self.full_at.len()).ok()?;
        self.full_at.get(usize::try_from(hash.checked_rem(count)?).ok()?)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The /24 or /56 of an address.
fn prefix(address: IpAddr) -> [u8; 8] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            [4, a, b, c, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => {
            let [a, b, c, d, e, f, g, ..] = address.octets();
            [6, a, b, c, d, e, f, g]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::SessionId;
    use proptest::prelude::*;

    fn attempt<'a>(account: &'a str, address: &str) -> Attempt<'a> {
        Attempt { account, address: address.parse().unwrap(), known_browser: None, known_network: false }
    }

    #[test]
    fn an_account_waits_after_a_burst_and_recovers() {
        let throttle = Throttle::default();
        let now = Duration::from_secs(1000);
        for number in 0..10 {
            let from = format!("198.51.{number}.1");
            assert_eq!(throttle.charge(attempt("ann", &from), now), Ok(()));
        }
        assert_eq!(throttle.charge(attempt("ANN", "203.0.113.1"), now), Err(Duration::from_secs(30)));
        assert_eq!(throttle.charge(attempt("ann", "203.0.113.1"), now + Duration::from_secs(30)), Ok(()));
        assert!(throttle.charge(attempt("ann", "203.0.113.1"), now + Duration::from_secs(31)).is_err());
    }

    #[test]
    fn a_network_waits_as_a_whole() {
        for (inside, outside) in [("192.0.2.", "192.0.3.1"), ("2001:db8:0:ff", "2001:db8:0:100::1")] {
            let throttle = Throttle::default();
            let now = Duration::from_secs(1000);
            for number in 0..20 {
                let from = if inside.contains(':') {
                    format!("{inside}::{number}")
                } else {
                    format!("{inside}{number}")
                };
                assert_eq!(throttle.charge(attempt(&format!("user{number}"), &from), now), Ok(()));
            }
            let from = if inside.contains(':') { format!("{inside}:1::9") } else { format!("{inside}99") };
            assert!(throttle.charge(attempt("another", &from), now).is_err(), "{from}");
            assert_eq!(throttle.charge(attempt("another", outside), now), Ok(()));
        }
    }

    #[test]
    fn a_session_has_a_rate_of_writes_and_another_has_its_own() {
        let writes = Named::writes();
        let [ann, bob] = [1, 2].map(|id| SessionId::from_bytes([id; 16]));
        let at = |millis| Duration::from_secs(1000) + Duration::from_millis(millis);
        let written = (0..200).filter(|_| writes.charge(ann, at(0)).is_ok()).count();
        assert_eq!((written, writes.charge(ann, at(0))), (50, Err(Duration::from_millis(100))));
        assert_eq!(writes.charge(bob, at(0)), Ok(()));
        assert_eq!((0..200).filter(|_| writes.charge(ann, at(1000)).is_ok()).count(), 10);
    }

    #[test]
    fn strangers_of_elsewhere_and_a_page_in_an_office_keep_no_office_out() {
        let networks = Networks::default();
        let [office, colleague]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.77"].map(|ip| ip.parse().unwrap());
        let tried =
            |known| (0..1000).filter(|_| networks.charge(office, known, Duration::ZERO).is_ok()).count();
        assert_eq!((tried(false), tried(true)), (20, 200));
        assert!(networks.charge(colleague, true, Duration::ZERO).is_err());
        assert_eq!(networks.charge(colleague, true, Duration::from_secs(1)), Ok(()));
        networks.refund(office, false);
        assert_eq!(networks.charge(colleague, false, Duration::ZERO), Ok(()));
    }

    #[test]
    fn right_passwords_cost_nothing() {
        let throttle = Throttle::default();
        for _ in 0..100 {
            let ann = attempt("ann", "192.0.2.1");
            assert_eq!(throttle.charge(ann, Duration::ZERO), Ok(()));
            throttle.refund(ann);
        }
    }

    #[test]
    fn a_throttled_account_does_not_use_up_its_network() {
        let throttle = Throttle::default();
        for _ in 0..200 {
            let _ = throttle.charge(attempt("ann", "192.0.2.1"), Duration::ZERO);
        }
        assert_eq!(throttle.charge(attempt("bob", "192.0.2.1"), Duration::ZERO), Ok(()));
    }

    #[test]
    fn strangers_cannot_keep_a_known_browser_out() {
        let throttle = Throttle::default();
        for _ in 0..200 {
            let _ = throttle.charge(attempt("ann", "192.0.2.1"), Duration::ZERO);
        }
        let known = Attempt { known_browser: Some(b"laptop"), ..attempt("ann", "192.0.2.1") };
        for _ in 0..10 {
            assert_eq!(throttle.charge(known, Duration::ZERO), Ok(()));
        }
        assert!(throttle.charge(known, Duration::ZERO).is_err());
    }

    #[test]
    fn strangers_cannot_keep_a_known_network_out() {
        let throttle = Throttle::default();
        for number in 0..200_u8 {
            let _ = throttle.charge(attempt("ann", &format!("198.51.{number}.1")), Duration::ZERO);
        }
        let known = Attempt { known_network: true, ..attempt("ann", "192.0.2.1") };
        for _ in 0..10 {
            assert_eq!(throttle.charge(known, Duration::ZERO), Ok(()));
        }
        assert!(throttle.charge(known, Duration::ZERO).is_err());
        assert!(throttle.charge(attempt("ann", "192.0.2.1"), Duration::ZERO).is_err());
    }

    proptest! {
        /// Whatever is tried, no account gets more than its burst and its refill.
        #[test]
        fn never_more_than_burst_and_refill(steps in proptest::collection::vec(0u64..20_000, 1..200)) {
            let buckets = Buckets::new(ACCOUNT);
            let (mut now, mut allowed) = (0u64, 0u64);
            for step in steps {
                now += step;
                allowed += u64::from(buckets.charge(7, Duration::from_millis(now)).is_ok());
            }
            prop_assert!(allowed <= 10 + now / 30_000);
        }
    }
}

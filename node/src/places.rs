//! Places: so much of something scarce, shared fairly among networks that cannot be told apart any better.
//!
//! Everything a client can hold before it has proved who it is costs a place: a connection at the edge, a handshake at
//! the tunnel. Three bounds keep one party from taking them all:
//!
//! | level | IPv4 | IPv6 | who holds that much |
//! |---|---|---|---|
//! | network | /24 | /56 | one customer of a provider |
//! | region | /16 | /40 | one organisation, one rented server with its allocation, a small provider |
//! | everybody | | | |
//!
//! The /40 and not the /48: a /48 is what tunnel brokers and hosters give to one customer for the asking, several of
//! them side by side; a /40 takes a registry's paperwork. A /16 is the largest block that is sold as one.
//!
//! A share is reserved for networks that are *known*, where somebody has lately proved who they are (see
//! [`crate::recent`]): strangers together never get it, and the bound of a region does not count for the known, so that
//! a flood from their own provider does not shut them out. Their own network's bound holds for them too.
//!
//! [`Table`] is pure: no clock, no lock. [`Places`] shares one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many places there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub all: usize,
    /// Of all, only for known networks.
    pub reserved: usize,
    /// Of one network, known or not.
    pub network: usize,
    /// Of all strangers in one region.
    pub region: usize,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    All,
    Region,
    Network,
}

impl Full {
    /// The name in metrics.
    pub const fn cause(self) -> &'static str {
        match self {
            Self::All => "limit",
            Self::Region => "region_limit",
            Self::Network => "network_limit",
        }
    }
}

/// How much is taken around an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    pub all: usize,
    /// Of its region, by strangers.
    pub region: usize,
    pub network: usize,
}

/// Who holds how many places.
#[derive(Debug)]
pub struct Table {
    limits: Limits,
    all: usize,
    strangers: usize,
    networks: BTreeMap<IpAddr, usize>,
    /// Places of strangers.
    regions: BTreeMap<IpAddr, usize>,
}

/// Places in a [`Table`], to be given back to it.
#[derive(Debug)]
pub struct Taken {
    network: IpAddr,
    /// The region, of a stranger.
    region: Option<IpAddr>,
    count: usize,
}

impl Table {
    pub fn new(limits: Limits) -> Self {
        Self { limits, all: 0, strangers: 0, networks: BTreeMap::new(), regions: BTreeMap::new() }
    }

    /// Takes so many places, all or none, for `address`, whose network is known or not.
    pub fn take(&mut self, address: IpAddr, known: bool, count: usize) -> Result<Taken, Full> {
        let (limits, load) = (self.limits, self.load(address));
        let over = |held: usize, limit: usize| held.saturating_add(count) > limit;
        if over(load.all, limits.all) {
            return Err(Full::All);
        }
        if over(load.network, limits.network) {
            return Err(Full::Network);
        }
        if !known {
            if over(self.strangers, limits.all.saturating_sub(limits.reserved)) {
                return Err(Full::All);
            }
            if over(load.region, limits.region) {
                return Err(Full::Region);
            }
        }
        let network = network(address);
        let region = (!known).then(|| region(address));
        self.all += count;
        *self.networks.entry(network).or_default() += count;
        if let Some(region) = region {
            self.strangers += count;
            *self.regions.entry(region).or_default() += count;
        }
        Ok(Taken { network, region, count })
    }

    pub fn give_back(&mut self, taken: &Taken) {
        self.all = self.all.saturating_sub(taken.count);
        less(&mut self.networks, taken.network, taken.count);
        if let Some(region) = taken.region {
            self.strangers = self.strangers.saturating_sub(taken.count);
            less(&mut self.regions, region, taken.count);
        }
    }

    pub fn load(&self, address: IpAddr) -> Load {
        let of = |counts: &BTreeMap<IpAddr, usize>, key| counts.get(&key).copied().unwrap_or(0);
        Load {
            all: self.all,
            region: of(&self.regions, region(address)),
            network: of(&self.networks, network(address)),
        }
    }
}

fn less(counts: &mut BTreeMap<IpAddr, usize>, key: IpAddr, by: usize) {
    if let Some(count) = counts.get_mut(&key) {
        *count = count.saturating_sub(by);
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

/// A [`Table`] that many tasks share.
#[derive(Debug, Clone)]
pub struct Places(Arc<Mutex<Table>>);

/// A place in use, or several; free again when dropped.
#[derive(Debug)]
pub struct Place {
    places: Places,
    taken: Taken,
}

impl Places {
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(Table::new(limits))))
    }

    /// One place, as [`Table::take`].
    pub fn take(&self, address: IpAddr, known: bool) -> Result<Place, Full> {
        self.take_many(address, known, 1)
    }

    /// As [`Table::take`].
    pub fn take_many(&self, address: IpAddr, known: bool, count: usize) -> Result<Place, Full> {
        let taken = self.lock().take(address, known, count)?;
        Ok(Place { places: self.clone(), taken })
    }

    pub fn load(&self, address: IpAddr) -> Load {
        self.lock().load(address)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().give_back(&self.taken);
    }
}

/// The /24 or /56 of an address, as its first address; a mapped IPv4 address counts as IPv4.
pub fn network(address: IpAddr) -> IpAddr {
    masked(address, NETWORK)
}

/// The /16 or /40 of an address, as its first address.
pub fn region(address: IpAddr) -> IpAddr {
    masked(address, (16, 40))
}

/// Bits of a network in IPv4 and in IPv6.
pub const NETWORK: (u8, u8) = (24, 56);

fn masked(address: IpAddr, (v4, v6): (u8, u8)) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(v4)).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(v6)).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { all: 40, reserved: 10, network: 4, region: 12 };

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn levels_are_what_one_party_holds() {
        for (one, other, same_network, same_region) in [
            ("192.0.2.1", "192.0.2.255", true, true),
            ("192.0.2.1", "::ffff:192.0.2.9", true, true),
            ("192.0.2.1", "192.0.3.1", false, true),
            ("192.0.2.1", "192.1.2.1", false, false),
            ("2001:db8:0:ff::1", "2001:db8:0:aa::2", true, true),
            ("2001:db8:0:ff::1", "2001:db8:0:1ff::1", false, true),
            ("2001:db8:0:ff::1", "2001:db8:ff:ff::1", false, true),
            ("2001:db8:0:ff::1", "2001:db8:100:ff::1", false, false),
        ] {
            let (one_at, other_at) = (address(one), address(other));
            assert_eq!(network(one_at) == network(other_at), same_network, "{one} {other}");
            assert_eq!(region(one_at) == region(other_at), same_region, "{one} {other}");
        }
    }

    #[test]
    fn a_region_of_many_networks_leaves_places_to_others() {
        for (inside, outside) in [
            (&|n: usize| format!("203.0.{n}.1") as String as _, "198.51.100.1"),
            (&|n: usize| format!("2001:db8:1:{:x}::1", n << 8), "2001:db9::1"),
        ] as [(&dyn Fn(usize) -> String, &str); 2]
        {
            let places = Places::new(LIMITS);
            let mut held = Vec::new();
            for number in 0..100 {
                match places.take(address(&inside(number)), false) {
                    Ok(place) => held.push(place),
                    Err(full) => assert_eq!(full, Full::Region),
                }
            }
            assert_eq!(held.len(), LIMITS.region);
            drop(places.take(address(outside), false).unwrap());
            let known = places.take(address(&inside(200)), true);
            drop(known.expect("a known network in the middle of the flood"));
        }
    }

    #[test]
    fn strangers_from_everywhere_never_get_the_reserved_places() {
        let places = Places::new(LIMITS);
        let from = |number: u8| IpAddr::from([number, 1, 1, 1]);
        let strangers: Vec<_> = (0..100).filter_map(|n| places.take(from(n), false).ok()).collect();
        assert_eq!(strangers.len(), LIMITS.all - LIMITS.reserved);
        let known: Vec<_> = (100..200).filter_map(|n| places.take(from(n), true).ok()).collect();
        assert_eq!(known.len(), LIMITS.reserved);
        assert_eq!(places.take(from(201), true).unwrap_err(), Full::All);
    }

    proptest! {
        /// Whatever comes and goes: no bound is passed, the known get what is reserved, and nothing is left behind.
        #[test]
        fn bounds_hold(steps in proptest::collection::vec((0u8..4, 0u8..6, any::<bool>(), any::<bool>(), any::<u16>(), 1usize..4), 0..300)) {
            let mut table = Table::new(LIMITS);
            let mut held: Vec<(IpAddr, bool, Taken)> = Vec::new();
            for (b, c, known, leave, which, count) in steps {
                if leave && !held.is_empty() {
                    let (_, _, taken) = held.swap_remove(usize::from(which) % held.len());
                    table.give_back(&taken);
                    continue;
                }
                let from = IpAddr::from([10, b, c, 1]);
                let of = |test: &dyn Fn(&(IpAddr, bool, Taken)) -> bool| held.iter().filter(|h| test(h)).map(|h| h.2.count).sum::<usize>();
                let of_network = of(&|(at, _, _)| network(*at) == network(from));
                let (known_held, strangers, all) = (of(&|h| h.1), of(&|h| !h.1), of(&|_| true));
                let of_region = of(&|(at, known, _)| !known && region(*at) == region(from));
                match table.take(from, known, count) {
                    Ok(taken) => {
                        prop_assert!(all + count <= LIMITS.all && of_network + count <= LIMITS.network);
                        prop_assert!(known || (of_region + count <= LIMITS.region && strangers + count <= LIMITS.all - LIMITS.reserved));
                        held.push((from, known, taken));
                    }
                    Err(_) if known => prop_assert!(of_network + count > LIMITS.network || known_held + count > LIMITS.reserved),
                    Err(full) => {
                        let due = match full {
                            Full::All => strangers + count > LIMITS.all - LIMITS.reserved || all + count > LIMITS.all,
                            Full::Region => of_region + count > LIMITS.region,
                            Full::Network => of_network + count > LIMITS.network,
                        };
                        prop_assert!(due);
                    }
                }
            }
            for (_, _, taken) in &held {
                table.give_back(taken);
            }
            prop_assert!(table.all == 0 && table.strangers == 0 && table.networks.is_empty() && table.regions.is_empty());
        }
    }
}

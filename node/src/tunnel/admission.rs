//! Who may begin a handshake: strangers share a bounded number of places.
//!
//! A place is held from the first packet until the peer is identified. Under pressure, from everywhere or from one
//! network, a peer must first prove its address by a Retry (RFC 9000 §8.1.2), which holds no place. A false accept
//! costs one bounded place for at most the opening timeout; a false refusal, one backoff of a connector.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Places of all networks and of one; from half of either on, addresses must be proved.
const PLACES: usize = 512;
pub(super) const PLACES_OF_NETWORK: usize = 64;
const RETRY_FROM: usize = 128;
const RETRY_FROM_OF_NETWORK: usize = 16;

/// What to do with the first packet of a handshake.
#[derive(Debug)]
pub(super) enum Admission {
    Accept(Place),
    Retry,
    Refuse,
}

/// The places of one node.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    of_network: BTreeMap<IpAddr, usize>,
}

/// A place in use; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    network: IpAddr,
}

impl Places {
    /// Decides about a handshake from `address`, which a Retry has proved or not.
    pub(super) fn admit(&self, address: IpAddr, proved: bool) -> Admission {
        let network = network(address);
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_network = taken.of_network.get(&network).copied().unwrap_or(0);
        let pressed = taken.total >= RETRY_FROM || of_network >= RETRY_FROM_OF_NETWORK;
        let full = taken.total >= PLACES || of_network >= PLACES_OF_NETWORK;
        match (proved, pressed, full) {
            (false, true, _) => Admission::Retry,
            (_, _, true) => Admission::Refuse,
            (_, _, false) => {
                taken.total += 1;
                taken.of_network.insert(network, of_network + 1);
                Admission::Accept(Place { places: self.clone(), network })
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total = taken.total.saturating_sub(1);
        if let Some(count) = taken.of_network.get_mut(&self.network) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.of_network.remove(&self.network);
            }
        }
    }
}

/// The /24 or /56 of an address; a mapped IPv4 address counts as IPv4.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & (u32::MAX << 8)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 72)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(host: u32) -> IpAddr {
        Ipv4Addr::from_bits(host).into()
    }

    #[test]
    fn one_network_is_pressed_and_full_before_others_notice() {
        let places = Places::default();
        let mut held = Vec::new();
        for host in 0..RETRY_FROM_OF_NETWORK {
            match places.admit(v4(u32::try_from(host).unwrap()), false) {
                Admission::Accept(place) => held.push(place),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(places.admit(v4(7), false), Admission::Retry));
        for _ in 0..2 * PLACES_OF_NETWORK {
            if let Admission::Accept(place) = places.admit(v4(7), true) {
                held.push(place);
            }
        }
        assert_eq!(held.len(), PLACES_OF_NETWORK);
        assert!(matches!(places.admit(v4(7), true), Admission::Refuse));
        assert!(matches!(places.admit(v4(7 << 8), false), Admission::Accept(_)));
    }

    #[test]
    fn all_places_are_bounded_and_come_back() {
        let places = Places::default();
        let mut held = Vec::new();
        for network in 0..10_000_u32 {
            match places.admit(v4(network << 8), true) {
                Admission::Accept(place) => held.push(place),
                Admission::Refuse => {}
                Admission::Retry => panic!("a proved address needs no Retry"),
            }
        }
        assert_eq!(held.len(), PLACES);
        assert!(matches!(places.admit(v4(0), false), Admission::Retry));
        held.clear();
        assert!(matches!(places.admit(v4(0), false), Admission::Accept(_)));
        assert!(places.0.lock().unwrap().of_network.is_empty(), "the place was dropped at once");
    }

    #[test]
    fn networks_are_24_and_56_bits_and_mapped_addresses_are_ipv4() {
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(network(parse("::ffff:192.0.2.77")), parse("192.0.2.0"));
        assert_eq!(network(parse("2001:db8:1:2ff::1")), parse("2001:db8:1:200::"));
    }
}

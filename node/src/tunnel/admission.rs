//! Who may begin a handshake: strangers share a bounded number of places (see [`crate::places`]).
//!
//! A place is held from the first packet until the peer is identified. Under pressure, from everywhere, one region or
//! one network, a peer must first prove its address by a Retry (RFC 9000 §8.1.2), which holds no place. Before that its
//! address may be anybody's, so only a proved one can be that of a known network and get a reserved place. A false
//! accept costs one bounded place for at most the opening timeout; a false refusal, one backoff of a connector.

use std::net::IpAddr;

use crate::places::{self, Limits, Place};

const PLACES: Limits = Limits { all: 512, reserved: 128, network: PLACES_OF_NETWORK, region: 96 };
pub(super) const PLACES_OF_NETWORK: usize = 64;
/// From here on, addresses must be proved.
const RETRY_FROM: usize = 128;
const RETRY_FROM_OF_REGION: usize = 32;
const RETRY_FROM_OF_NETWORK: usize = 16;

/// What to do with the first packet of a handshake.
#[derive(Debug)]
pub(super) enum Admission {
    Accept(Place),
    Retry,
    Refuse,
}

/// The places of one node.
#[derive(Debug, Clone)]
pub(super) struct Places(places::Places);

impl Default for Places {
    fn default() -> Self {
        Self(places::Places::new(PLACES))
    }
}

impl Places {
    /// Decides about a handshake from `address`, which a Retry has proved or not, and whose network is known or not.
    pub(super) fn admit(&self, address: IpAddr, proved: bool, known: bool) -> Admission {
        let load = self.0.load(address);
        let pressed = load.all >= RETRY_FROM
            || load.region >= RETRY_FROM_OF_REGION
            || load.network >= RETRY_FROM_OF_NETWORK;
        if pressed && !proved {
            return Admission::Retry;
        }
        match self.0.take(address, known && proved) {
            Ok(place) => Admission::Accept(place),
            Err(_) => Admission::Refuse,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn v4(host: u32) -> IpAddr {
        Ipv4Addr::from_bits(host).into()
    }

    #[test]
    fn one_network_is_pressed_and_full_before_others_notice() {
        let places = Places::default();
        let mut held = Vec::new();
        for host in 0..RETRY_FROM_OF_NETWORK {
            match places.admit(v4(u32::try_from(host).unwrap()), false, false) {
                Admission::Accept(place) => held.push(place),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(places.admit(v4(7), false, false), Admission::Retry));
        for _ in 0..2 * PLACES_OF_NETWORK {
            if let Admission::Accept(place) = places.admit(v4(7), true, false) {
                held.push(place);
            }
        }
        assert_eq!(held.len(), PLACES_OF_NETWORK);
        assert!(matches!(places.admit(v4(7), true, false), Admission::Refuse));
        assert!(matches!(places.admit(v4(7 << 8), true, false), Admission::Accept(_)));
        assert!(matches!(places.admit(v4(7 << 16), false, false), Admission::Accept(_)));
    }

    #[test]
    fn strangers_from_everywhere_leave_places_to_known_networks() {
        let places = Places::default();
        let mut held = Vec::new();
        for network in 0..10_000_u32 {
            match places.admit(v4(network << 16), true, false) {
                Admission::Accept(place) => held.push(place),
                Admission::Refuse => {}
                Admission::Retry => panic!("a proved address needs no Retry"),
            }
        }
        assert_eq!(held.len(), PLACES.all - PLACES.reserved);
        assert!(
            matches!(places.admit(v4(0), false, true), Admission::Retry),
            "who would say so is not known"
        );
        assert!(matches!(places.admit(v4(0), true, true), Admission::Accept(_)));
        held.clear();
        assert!(matches!(places.admit(v4(0), false, false), Admission::Accept(_)));
    }

    #[test]
    fn an_unproved_address_gets_no_reserved_place() {
        let places = Places::default();
        let mut held = Vec::new();
        for host in 0..200_u32 {
            if let Admission::Accept(place) = places.admit(v4(host << 8), false, true) {
                held.push(place);
            }
        }
        assert_eq!(held.len(), RETRY_FROM_OF_REGION);
    }
}

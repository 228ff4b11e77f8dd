//! Round trips, exact sizes, and what no tag may stand for.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

fn any_session() -> impl Strategy<Value = SessionRef> {
    any::<(u32, u32)>().prop_map(|(index, generation)| SessionRef { index, generation })
}

fn any_leg() -> impl Strategy<Value = Leg> {
    prop_oneof![Just(Leg::Client), Just(Leg::Connector)]
}

fn any_address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<[u8; 4]>().prop_map(|v4| IpAddr::from(Ipv4Addr::from(v4))),
        any::<[u8; 16]>().prop_map(|v6| IpAddr::from(Ipv6Addr::from(v6)).to_canonical()),
    ];
    (ip, any::<u16>()).prop_map(SocketAddr::from)
}

proptest! {
    #[test]
    fn a_bind_survives_the_wire(key: [u8; 32], session in any_session(), leg in any_leg(), ticket: Ticket,
                                counter: u64, from in any_address()) {
        let key = BindKey::from_bytes(key);
        let bytes = seal_bind(&key, session, leg, &ticket, counter);
        prop_assert!(is_request(&bytes) && !is_challenge(&bytes));
        let request = Request::parse(&bytes).unwrap();
        prop_assert_eq!((request.index(), request.leg(), *request.ticket()), (session.index, leg, ticket));
        prop_assert_eq!(request.prove(&key, session.generation, from), Some(Proven::Bind { counter }));
    }

    #[test]
    fn an_answer_survives_the_wire(key: [u8; 32], session in any_session(), leg in any_leg(), ticket: Ticket,
                                   nonce: Nonce, observed in any_address()) {
        let key = BindKey::from_bytes(key);
        let challenge = Challenge { observed, nonce };
        let bytes = challenge.seal(&key, session, leg);
        prop_assert!(is_challenge(&bytes) && !is_request(&bytes));
        prop_assert_eq!(Challenge::open(&bytes, &key, session, leg), Some(challenge));
        let answer = seal_answer(&key, session, leg, &ticket, &challenge);
        prop_assert!(is_request(&answer));
        let request = Request::parse(&answer).unwrap();
        prop_assert_eq!(request.prove(&key, session.generation, observed), Some(Proven::Answer { nonce }));
        let elsewhere = SocketAddr::new(observed.ip(), observed.port().wrapping_add(1));
        prop_assert_eq!(request.prove(&key, session.generation, elsewhere), None);
    }

    #[test]
    fn a_flipped_bit_is_not_believed(key: [u8; 32], session in any_session(), leg in any_leg(), ticket: Ticket,
                                     number: u64, observed in any_address(), bit: prop::sample::Index) {
        let key = BindKey::from_bytes(key);
        let challenge = Challenge { observed, nonce: number.to_be_bytes() };
        let flip = |bytes: &mut [u8]| {
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        };
        for mut bytes in [seal_bind(&key, session, leg, &ticket, number), seal_answer(&key, session, leg, &ticket, &challenge)] {
            flip(&mut bytes);
            let proven = Request::parse(&bytes).and_then(|request| request.prove(&key, session.generation, observed));
            prop_assert_eq!(proven, None);
        }
        let mut bytes = challenge.seal(&key, session, leg);
        flip(&mut bytes);
        prop_assert_eq!(Challenge::open(&bytes, &key, session, leg), None);
    }

    #[test]
    fn another_scope_is_not_believed(key: [u8; 32], other: [u8; 32], session in any_session(), leg in any_leg()) {
        prop_assume!(key != other);
        let (key, other) = (BindKey::from_bytes(key), BindKey::from_bytes(other));
        let observed = SocketAddr::from(([192, 0, 2, 1], 7));
        let challenge = Challenge { observed, nonce: [3; 8] };
        let later = SessionRef { generation: session.generation.wrapping_add(1), ..session };
        let elsewhere = SessionRef { index: session.index.wrapping_add(1), ..session };
        for bytes in [seal_bind(&key, session, leg, &[1; 16], 1), seal_answer(&key, session, leg, &[1; 16], &challenge)] {
            let request = Request::parse(&bytes).unwrap();
            prop_assert!(request.prove(&key, session.generation, observed).is_some());
            prop_assert!(request.prove(&other, session.generation, observed).is_none());
            prop_assert!(request.prove(&key, later.generation, observed).is_none());
        }
        let bytes = challenge.seal(&key, session, leg);
        prop_assert!(Challenge::open(&bytes, &other, session, leg).is_none());
        prop_assert!(Challenge::open(&bytes, &key, later, leg).is_none());
        prop_assert!(Challenge::open(&bytes, &key, elsewhere, leg).is_none());
        prop_assert!(Challenge::open(&bytes, &key, session, leg.other()).is_none());
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let session = SessionRef { index: 1, generation: 1 };
        let key = BindKey::from_bytes([1; 32]);
        prop_assert!(Request::parse(&bytes).is_none() || bytes.len() == REQUEST_LEN);
        prop_assert!(Challenge::open(&bytes, &key, session, Leg::Client).is_none());
    }
}

#[test]
fn the_layout_is_the_documented_one() {
    let session = SessionRef { index: 0x0102_0304, generation: 9 };
    let bind = seal_bind(&BindKey::from_bytes([7; 32]), session, Leg::Connector, &[0xAA; 16], 0x1122);
    assert_eq!(bind.len(), 46);
    assert_eq!(bind[0], 1);
    assert_eq!(bind[1..17], [0xAA; 16]);
    assert_eq!(bind[17..30], [1, 2, 3, 4, 1, 0, 0, 0, 0, 0, 0, 0x11, 0x22]);
    let challenge = Challenge { observed: "192.0.2.1:258".parse().unwrap(), nonce: [5; 8] };
    let bytes = challenge.seal(&BindKey::from_bytes([7; 32]), session, Leg::Client);
    assert_eq!(bytes.len(), 43);
    assert_eq!(
        bytes[..27],
        [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 192, 0, 2, 1, 1, 2, 5, 5, 5, 5, 5, 5, 5, 5]
    );
    // RFC 9443: neither fixed bit nor long header form.
    for first in [
        bind[0],
        bytes[0],
        seal_answer(&BindKey::from_bytes([7; 32]), session, Leg::Client, &[0; 16], &challenge)[0],
    ] {
        assert_eq!(first >> 6, 0);
    }
}

/// The tag by hand, with a description of its input that shares no code with the codec.
#[test]
fn the_tag_is_hmac_over_what_is_documented() {
    let session = SessionRef { index: 0x0102_0304, generation: 0x0506_0708 };
    let bind = seal_bind(&BindKey::from_bytes([7; 32]), session, Leg::Connector, &[0xAA; 16], 3);
    let mut input = b"portcullis relay bind 1".to_vec();
    input.extend([1, 1, 2, 3, 4, 5, 6, 7, 8, 1]);
    input.extend([0xAA; 16]);
    input.extend([0, 0, 0, 0, 0, 0, 0, 3]);
    let full = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]), &input);
    assert_eq!(bind[30..], full.as_ref()[..16]);
}

#[test]
fn exact_sizes_only() {
    let session = SessionRef { index: 1, generation: 1 };
    let key = BindKey::from_bytes([7; 32]);
    let bind = seal_bind(&key, session, Leg::Client, &[0; 16], 1);
    assert!(Request::parse(&bind[..45]).is_none());
    assert!(Request::parse(&[&bind[..], &[0]].concat()).is_none());
    for (at, byte) in [(0, 2), (0, 0), (0, 0x41), (21, 2), (21, 255)] {
        let mut bytes = bind;
        bytes[at] = byte;
        assert!(Request::parse(&bytes).is_none(), "{at} {byte}");
    }
    let challenge = Challenge { observed: "[2001:db8::1]:1".parse().unwrap(), nonce: [0; 8] };
    let bytes = challenge.seal(&key, session, Leg::Client);
    assert!(Challenge::open(&bytes[..42], &key, session, Leg::Client).is_none());
    assert!(Challenge::open(&[&bytes[..], &[0]].concat(), &key, session, Leg::Client).is_none());
}

use proptest::prelude::*;

use super::*;

const NOW: UnixTime = UnixTime(1_790_000_000);

fn key() -> TunnelKey {
    TunnelKey::from_pkcs8(TunnelKey::generate().unwrap()).unwrap()
}

fn grant() -> Grant {
    Grant {
        session: SessionRef { index: 7, generation: 3 },
        person: "ann@example.com".to_owned(),
        application: "db".to_owned(),
        protocol: Protocol::Tcp,
        reach: Reach::Host("10.0.0.9:5432".parse().unwrap()),
        client: KeyHash::from_bytes([1; 32]),
        connector: KeyHash::from_bytes([2; 32]),
        not_after: NOW.after(Duration::from_secs(600)),
    }
}

fn expected(node: &TunnelKey, grant: &Grant) -> Expected {
    Expected {
        node: node.hash(),
        session: grant.session,
        connector: grant.connector,
        client: grant.client,
        now: NOW,
    }
}

#[test]
fn what_the_node_signed_is_what_the_connector_reads() {
    let node = key();
    for reach in [
        Reach::Host("db.internal:5432".parse().unwrap()),
        Reach::Network { prefix: "10.0.0.0/24".parse().unwrap(), ports: vec![(22, 22), (8000, 8100)] },
        Reach::Network { prefix: "2001:db8::/64".parse().unwrap(), ports: Vec::new() },
    ] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let grant = Grant { reach: reach.clone(), protocol, ..grant() };
            let signed = grant.sign(&node).unwrap();
            assert_eq!(signed.verify(&expected(&node, &grant)), Ok(grant));
        }
    }
}

#[test]
fn every_byte_counts() {
    let node = key();
    let grant = grant();
    let signed = grant.sign(&node).unwrap();
    let expected = expected(&node, &grant);
    assert!(signed.verify(&expected).is_ok());
    for index in 0..signed.0.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut changed = signed.clone();
            changed.0[index] ^= flip;
            assert!(changed.verify(&expected).is_err(), "byte {index} ^ {flip:02x}");
        }
    }
    for length in 0..signed.0.len() {
        let cut = SignedGrant(signed.0[..length].to_vec());
        assert!(cut.verify(&expected).is_err(), "cut to {length}");
    }
    let longer = SignedGrant([&signed.0[..], &[0]].concat());
    assert!(longer.verify(&expected).is_err());
}

#[test]
fn a_grant_serves_one_session_between_two_keys_until_its_end() {
    let node = key();
    let grant = grant();
    let signed = grant.sign(&node).unwrap();
    let good = expected(&node, &grant);
    let other = KeyHash::from_bytes([9; 32]);
    let last = grant.not_after.after(LEEWAY);
    assert!(signed.verify(&Expected { now: last, ..good }).is_ok());
    for (wrong, error) in [
        (Expected { node: key().hash(), ..good }, GrantError::NotOurNode),
        (Expected { session: SessionRef { index: 8, ..grant.session }, ..good }, GrantError::Session),
        (Expected { session: SessionRef { generation: 4, ..grant.session }, ..good }, GrantError::Session),
        (Expected { connector: other, ..good }, GrantError::Connector),
        (Expected { client: other, ..good }, GrantError::Client),
        (Expected { now: last.after(Duration::from_secs(1)), ..good }, GrantError::Expired),
    ] {
        assert_eq!(signed.verify(&wrong), Err(error));
    }
}

/// A stranger's own key and signature are in order; it just is not the node's.
#[test]
fn a_grant_that_somebody_else_signed_is_none() {
    let (node, stranger) = (key(), key());
    let grant = grant();
    let forged = grant.sign(&stranger).unwrap();
    assert_eq!(forged.verify(&expected(&node, &grant)), Err(GrantError::NotOurNode));
    // Nor with the node's key put in front of it.
    let genuine = grant.sign(&node).unwrap();
    let mixed = SignedGrant([&genuine.0[..POINT_LEN], &forged.0[POINT_LEN..]].concat());
    assert_eq!(mixed.verify(&expected(&node, &grant)), Err(GrantError::NotOurNode));
}

#[test]
fn another_version_is_said_to_be_one() {
    let node = key();
    let grant = grant();
    let mut body = grant.body();
    body.version = VERSION + 1;
    let body = postcard::to_stdvec(&body).unwrap();
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, node.private_key().secret_der()).unwrap();
    let signature = pair.sign(&SystemRandom::new(), &signed(&body)).unwrap();
    let newer = SignedGrant([pair.public_key().as_ref(), signature.as_ref(), &body].concat());
    assert_eq!(newer.verify(&expected(&node, &grant)), Err(GrantError::Version));
}

#[test]
fn what_does_not_fit_is_not_signed() {
    let node = key();
    let long = Grant { person: "a".repeat(MAX_GRANT), ..grant() };
    assert_eq!(long.sign(&node), Err(SignError::TooLong));
    let ports = vec![(1, 1); MAX_PORT_RANGES + 1];
    let many = Grant { reach: Reach::Network { prefix: "10.0.0.0/8".parse().unwrap(), ports }, ..grant() };
    assert_eq!(many.sign(&node), Err(SignError::TooLong));
}

#[test]
fn a_host_is_reached_with_or_without_its_name() {
    let reach = Reach::Host("db.internal:5432".parse().unwrap());
    let resolved = |wanted: &str| reach.resolve(Some(&wanted.parse().unwrap()));
    assert_eq!(reach.resolve(None).unwrap().as_str(), "db.internal:5432");
    assert_eq!(resolved("DB.internal:5432").unwrap().as_str(), "db.internal:5432");
    assert_eq!(resolved("db.internal:5433"), None);
    assert_eq!(resolved("10.0.0.1:5432"), None);
}

#[test]
fn a_network_is_reached_within_its_prefix_and_ports_and_by_address() {
    let reach =
        Reach::Network { prefix: "10.0.0.0/24".parse().unwrap(), ports: vec![(22, 22), (8000, 8100)] };
    for (wanted, dialled) in [
        ("10.0.0.1:22", Some("10.0.0.1:22")),
        ("10.0.0.255:8000", Some("10.0.0.255:8000")),
        ("10.0.0.255:8100", Some("10.0.0.255:8100")),
        ("[::ffff:10.0.0.1]:22", Some("10.0.0.1:22")),
        ("10.0.0.1:23", None),
        ("10.0.0.1:8101", None),
        ("10.0.1.1:22", None),
        ("[::1]:22", None),
        ("db.internal:22", None),
    ] {
        let resolved = reach.resolve(Some(&wanted.parse().unwrap()));
        assert_eq!(resolved.as_ref().map(Authority::as_str), dialled, "{wanted}");
    }
    assert_eq!(reach.resolve(None), None);
    let nothing = Reach::Network { prefix: "10.0.0.0/24".parse().unwrap(), ports: Vec::new() };
    assert_eq!(nothing.resolve(Some(&"10.0.0.1:22".parse().unwrap())), None);
}

proptest! {
    #[test]
    fn grants_survive_their_bytes(
        index: u32, generation: u32, person in ".{0,80}", application in "[a-z-]{1,40}", port in 1u16..,
        client: [u8; 32], connector: [u8; 32], life in 0i64..1_000_000, address: u32, length in 0u8..=32,
    ) {
        let node = key();
        let network = length % 2 == 0;
        let address = std::net::Ipv4Addr::from_bits(address);
        let grant = Grant {
            session: SessionRef { index, generation },
            person, application,
            protocol: if network { Protocol::Udp } else { Protocol::Tcp },
            reach: if network {
                let prefix = ipnet::Ipv4Net::new(address, length).unwrap().into();
                Reach::Network { prefix, ports: vec![(port, port)] }
            } else {
                Reach::Host(format!("{address}:{port}").parse().unwrap())
            },
            client: KeyHash::from_bytes(client),
            connector: KeyHash::from_bytes(connector),
            not_after: UnixTime(NOW.0 + life),
        };
        let signed = grant.sign(&node).unwrap();
        prop_assert_eq!(signed.verify(&expected(&node, &grant)), Ok(grant));
    }

    #[test]
    fn hostile_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let node = KeyHash::from_bytes([3; 32]);
        let expected = Expected {
            node, session: SessionRef { index: 0, generation: 0 }, connector: node, client: node, now: NOW,
        };
        prop_assert!(SignedGrant(bytes).verify(&expected).is_err());
    }

    /// Whatever a signed body says: it is read or refused, and never more than its bytes.
    #[test]
    fn hostile_bodies_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok((body, _)) = postcard::take_from_bytes::<Body>(&body) {
            let _ = Grant::from(body);
        }
    }
}

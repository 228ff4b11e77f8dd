//! Sessions that the gate relays, on the real kernel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portcullis::gate::{
    self, Detour, FlowGrant, Gate, Leg, PeerAddress, RelayError, SessionRef, Standing, Usage,
};
use portcullis_common::{DropReason, Verdict};
use portcullis_tests::meanwhile::StopOnDrop;
use portcullis_tests::netns::run;
use portcullis_tests::portcullis::binary;

use crate::lab::{ANSWER, SILENCE};
use crate::relay_lab::{PORT, RelayLab, Shape, install, peer, relayed, socket};

const HOUR: Duration = Duration::from_secs(3_600);
const SHAPES: [Shape; 2] = [Shape::OneInterface, Shape::TwoInterfaces];

/// The gate's counters that are not zero, for a failed test.
fn shown(gate: &Gate) -> String {
    let counters = gate.counters().unwrap();
    let seen = counters.by_reason().filter(|(_, _, packets)| *packets > 0);
    seen.map(|(verdict, reason, packets)| format!("{verdict}:{reason}={packets} ")).collect()
}

#[test]
fn a_granted_session_passes_both_ways_and_is_counted_exactly() {
    for shape in SHAPES {
        let lab = RelayLab::new(shape);
        let (gate, relay) = lab.open();
        for ends in lab.families() {
            let pair = lab.pair(&ends);
            assert_eq!(pair.passes_both(&ends, b"x", SILENCE), [false; 2], "{shape:?}: nothing is granted");
            let session = relay.open_session(relay.identity("local:alice").unwrap(), HOUR).unwrap();
            assert_eq!(pair.passes_both(&ends, b"x", SILENCE), [false; 2], "{shape:?}: nothing is installed");
            lab.connect(&relay, session, &ends, &pair);
            let before = relayed(&gate);
            let header = if ends.client.is_ipv4() { 28 } else { 48 };
            let mut expected = [Usage::default(); 2];
            for length in [0usize, 1, 2, 33, 1_200] {
                let data = vec![0xa5; length];
                let both = pair.passes_both(&ends, &data, ANSWER);
                assert_eq!(both, [true; 2], "{shape:?} {length} {}", shown(&gate));
                assert!(pair.passes(&ends, Leg::Client, &data, ANSWER));
                expected[0].packets += 2;
                expected[0].bytes += 2 * (header + length as u64);
                expected[1].packets += 1;
                expected[1].bytes += header + length as u64;
            }
            assert_eq!(relayed(&gate), before + 15);
            let [seen] = &gate::flows(&lab.pin.path).unwrap()[..] else { panic!("one session") };
            assert_eq!((seen.session, seen.flows.len()), (session, 2));
            assert!(matches!(seen.standing, Standing::Live(left) if left < HOUR && left > HOUR / 2));
            for (flow, (from, usage)) in seen.flows.iter().zip(Leg::BOTH.into_iter().zip(expected)) {
                assert_eq!((flow.from, flow.usage), (from, usage));
            }
            let grant = pair.grant(session, &ends);
            assert_eq!((seen.flows[0].input, seen.flows[0].output), (grant.client, Some(grant.connector)));
            let mut admin = lab.node.command(binary().unwrap());
            let shown = run(admin.args(["admin", "gate", "flows", "--pin"]).arg(&lab.pin.path)).unwrap();
            assert_eq!(shown.lines().count(), 3, "{shown}");
            assert!(shown.contains(&grant.client.remote.to_string()), "{shown}");
            let ended = relay.revoke(session).unwrap().unwrap();
            assert_eq!(ended.usage, expected, "{shape:?}");
            assert_eq!(pair.passes_both(&ends, b"x", SILENCE), [false; 2], "{shape:?}: revoked");
            assert_eq!(relay.revoke(session).unwrap(), None);
        }
        let totals = relay.totals().unwrap();
        assert_eq!((totals.sessions, totals.flows, totals.hops), (0, 0, 0));
    }
}

/// With packets arriving all the time: none passes after the call has returned, counted at the gate.
#[test]
fn nothing_passes_after_a_revocation_has_returned() {
    let lab = RelayLab::new(Shape::TwoInterfaces);
    let (gate, relay) = lab.open();
    let ends = lab.families()[0];
    for round in 0..5 {
        let pair = lab.pair(&ends);
        let session = relay.open_session(relay.identity("local:alice").unwrap(), HOUR).unwrap();
        lab.connect(&relay, session, &ends, &pair);
        let refused = gate.counters().unwrap().of(Verdict::Drop(DropReason::TunnelForm));
        let before = relayed(&gate);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stops = StopOnDrop(&stop);
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = pair.client.send_to(b"x", (ends.node_client, PORT));
                }
            });
            wait_until("packets to be relayed", || relayed(&gate) > before + 1_000);
            match round % 2 {
                0 => relay.revoke(session).unwrap().map(drop).unwrap(),
                _ => assert_eq!(relay.revoke_identity("local:alice").unwrap().len(), 1),
            }
            let returned = relayed(&gate);
            let after = |gate: &Gate| gate.counters().unwrap().of(Verdict::Drop(DropReason::TunnelForm));
            wait_until("packets to be refused", || after(&gate) > refused + 1_000);
            assert_eq!(relayed(&gate), returned, "packets passed after the call");
        });
    }
}

#[test]
fn revoking_a_person_ends_all_of_the_persons_sessions_and_nobody_elses() {
    let lab = RelayLab::new(Shape::OneInterface);
    let (_gate, relay) = lab.open();
    let mut open = Vec::new();
    for (person, ends) in
        ["local:alice", "local:alice", "local:bob"].into_iter().zip(lab.families().repeat(2))
    {
        let pair = lab.pair(&ends);
        let session = relay.open_session(relay.identity(person).unwrap(), HOUR).unwrap();
        lab.connect(&relay, session, &ends, &pair);
        assert_eq!(pair.passes_both(&ends, b"x", ANSWER), [true; 2]);
        open.push((pair, ends, session));
    }
    let early = relay.identity("local:alice").unwrap();
    let ended = relay.revoke_identity("local:alice").unwrap();
    assert_eq!(ended.iter().map(|ended| ended.session).collect::<Vec<_>>(), [open[0].2, open[1].2]);
    for ((pair, ends, _), (patience, passes)) in
        open.iter().zip([(SILENCE, false), (SILENCE, false), (ANSWER, true)])
    {
        assert_eq!(pair.passes_both(ends, b"x", patience), [passes; 2]);
    }

    // A grant that was decided before, and written after.
    let ends = lab.families()[0];
    let later = relay.identity("local:alice").unwrap();
    for (identity, patience, expected) in [(early, SILENCE, false), (later, ANSWER, true)] {
        let pair = lab.pair(&ends);
        let session = relay.open_session(identity, HOUR).unwrap();
        lab.connect(&relay, session, &ends, &pair);
        assert_eq!(pair.passes_both(&ends, b"x", patience), [expected; 2]);
    }
}

/// The kernel's own clock ends it; here nobody calls.
#[test]
fn a_session_ends_by_itself() {
    let lab = RelayLab::new(Shape::OneInterface);
    let (gate, relay) = lab.open();
    let ends = lab.families()[1];
    lab.greet(&ends);
    let lifetime = Duration::from_secs(6);
    // A machine that is too busy to send two packets within it says nothing: it is asked again.
    for _ in 0..10 {
        let pair = lab.pair(&ends);
        let session = relay.open_session(relay.identity("local:alice").unwrap(), lifetime).unwrap();
        let granted = Instant::now();
        lab.connect(&relay, session, &ends, &pair);
        let before = gate.counters().unwrap().of(Verdict::Drop(DropReason::RelayExpired));
        if pair.passes_both(&ends, b"x", lifetime / 4) != [true; 2] {
            std::thread::sleep(lifetime.saturating_sub(granted.elapsed()) + Duration::from_millis(50));
            relay.expire().unwrap();
            continue;
        }
        std::thread::sleep(lifetime.saturating_sub(granted.elapsed()) + Duration::from_millis(50));
        assert_eq!(pair.passes_both(&ends, b"x", SILENCE), [false; 2]);
        assert_eq!(gate.counters().unwrap().of(Verdict::Drop(DropReason::RelayExpired)), before + 2);
        assert!(matches!(relay.install(&pair.grant(session, &ends)), Err(RelayError::Over)));
        let ended = relay.expire().unwrap();
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].usage.map(|usage| usage.packets), [1; 2]);
        assert_eq!(relay.totals().unwrap().flows, 0);
        assert_eq!(
            relay.revoke_all(&[session]).unwrap().ended,
            ended,
            "for whoever ends it at the same time"
        );
        return;
    }
    panic!("this machine never sends two packets within {lifetime:?}");
}

#[test]
fn an_end_that_moves_goes_on_and_its_counts_with_it() {
    for shape in SHAPES {
        let lab = RelayLab::new(shape);
        let (_gate, relay) = lab.open();
        for ends in lab.families() {
            let mut pair = lab.pair(&ends);
            let session = relay.open_session(relay.identity("local:alice").unwrap(), HOUR).unwrap();
            let mut grant = lab.connect(&relay, session, &ends, &pair);
            assert_eq!(pair.passes_both(&ends, b"1", ANSWER), [true; 2]);
            for leg in Leg::BOTH {
                let (netns, address) = match leg {
                    Leg::Client => (&lab.client, ends.client),
                    Leg::Connector => (&lab.connector, ends.connector),
                };
                let fresh = socket(netns, address);
                let (left, old) = match leg {
                    Leg::Client => (std::mem::replace(&mut pair.client, fresh), grant.client),
                    Leg::Connector => (std::mem::replace(&mut pair.connector, fresh), grant.connector),
                };
                assert!(!pair.passes(&ends, leg, b"2", SILENCE), "it has moved, and nobody knows");
                grant = pair.grant(session, &ends);
                relay.replace_leg(leg, old, &grant).unwrap();
                assert_eq!(pair.passes_both(&ends, b"3", ANSWER), [true; 2], "{shape:?} {leg:?}");
                assert!(matches!(relay.replace_leg(leg, old, &grant), Err(RelayError::Moved)));
                // Where it was, it is no more.
                let to = if leg == Leg::Client { ends.node_client } else { ends.node_connector };
                left.send_to(b"4", (to, PORT)).unwrap();
                let other = if leg == Leg::Client { &pair.connector } else { &pair.client };
                other.set_read_timeout(Some(SILENCE)).unwrap();
                assert!(other.recv_from(&mut [0; 8]).is_err());
            }
            let ended = relay.revoke(session).unwrap().unwrap();
            assert_eq!(ended.usage.map(|usage| usage.packets), [3; 2]);
        }
    }
}

#[test]
fn what_must_not_be_granted_is_refused_and_says_why() {
    let lab = RelayLab::new(Shape::TwoInterfaces);
    lab.node.run("ip link add eth7 type veth peer name eth8").unwrap();
    lab.node.run("ip link set eth7 up").unwrap();
    lab.node.address("eth7", "203.0.113.1/24").unwrap();
    let (gate, relay) = lab.open();
    let [ends, ends6] = lab.families();
    let pair = lab.pair(&ends);
    let identity = relay.identity("local:alice").unwrap();
    let session = relay.open_session(identity, HOUR).unwrap();
    let good = lab.connect(&relay, session, &ends, &pair);
    let other = lab.pair(&ends);
    let free = relay.open_session(identity, HOUR).unwrap();
    let fresh = other.grant(free, &ends);
    let refused = |what: &str, grant: FlowGrant, expected: fn(&RelayError) -> bool| {
        let error = relay.install(&grant).unwrap_err();
        assert!(expected(&error), "{what}: {error:?}");
    };
    let at = |address: &str| -> SocketAddr { address.parse().unwrap() };
    let to = |remote: &str| FlowGrant {
        connector: PeerAddress { remote: at(remote), ..fresh.connector },
        ..fresh
    };
    refused("installed", good, |error| matches!(error, RelayError::Installed));
    refused("client's tuple", FlowGrant { client: good.client, ..fresh }, |error| {
        matches!(error, RelayError::TupleInUse)
    });
    refused("connector's tuple", FlowGrant { connector: good.connector, ..fresh }, |error| {
        matches!(error, RelayError::TupleInUse)
    });
    refused("reflection", FlowGrant { connector: fresh.client, ..fresh }, |error| {
        matches!(error, RelayError::Reflection)
    });
    refused("the node", to("198.51.100.1:443"), |error| matches!(error, RelayError::Reflection));
    refused("the node's other address", to("192.0.2.1:443"), |error| matches!(error, RelayError::Reflection));
    refused("a program of the node", to("192.0.2.1:5000"), |error| {
        matches!(error, RelayError::Detour(Detour::Local))
    });
    refused("loopback", to("127.0.0.1:5000"), |error| {
        matches!(error, RelayError::Detour(Detour::Local | Detour::NoRoute))
    });
    refused("families", FlowGrant { connector: other.grant(free, &ends6).connector, ..fresh }, |error| {
        matches!(error, RelayError::Detour(Detour::Families))
    });
    let v6 = FlowGrant { connector: peer(ends6.node_connector, at("[2001:db8:1::2]:7")), ..fresh };
    refused("families", v6, |error| matches!(error, RelayError::Detour(Detour::Families)));
    refused("unrouted", to("100.64.0.1:5000"), |error| matches!(error, RelayError::Detour(Detour::NoRoute)));
    let ungated = FlowGrant { connector: peer("203.0.113.1".parse().unwrap(), at("203.0.113.7:9")), ..fresh };
    refused("ungated", ungated, |error| matches!(error, RelayError::Detour(Detour::Ungated)));
    let mut unserved = fresh;
    unserved.client.local.set_port(444);
    refused("not served", unserved, |error| matches!(error, RelayError::NotServed));
    let stale = SessionRef { generation: free.generation.wrapping_sub(1), ..free };
    refused("stale", FlowGrant { session: stale, ..fresh }, |error| matches!(error, RelayError::Over));
    gate.control().authenticate(fresh.client, HOUR).unwrap();
    refused("peer", fresh, |error| matches!(error, RelayError::TupleInUse));
    gate.control().forget(fresh.client).unwrap();

    assert_eq!(relay.totals().unwrap().flows, 2, "none of them left anything");
    assert_eq!(pair.passes_both(&ends, b"x", ANSWER), [true; 2]);
    install(&relay, &fresh).unwrap();
    assert_eq!(other.passes_both(&ends, b"x", ANSWER), [true; 2]);
}

/// A revoked session's index, whoever gets it next, does nothing for the old one's flows.
#[test]
fn generations_outlive_a_restart() {
    let lab = RelayLab::new(Shape::TwoInterfaces);
    let ends = lab.families()[0];
    let pair = lab.pair(&ends);
    let session = {
        let (_gate, relay) = lab.open();
        let session = relay.open_session(relay.identity("local:alice").unwrap(), HOUR).unwrap();
        lab.connect(&relay, session, &ends, &pair);
        session
    };
    let (_gate, relay) = lab.open();
    assert_eq!(relay.sessions(), [(session, relay.identity("local:alice").unwrap().index)]);
    assert_eq!(pair.passes_both(&ends, b"x", ANSWER), [true; 2]);
    assert_eq!(relay.totals().unwrap().usage.map(|usage| usage.packets), [1; 2]);
    let other = relay.open_session(relay.identity("local:bob").unwrap(), HOUR).unwrap();
    assert_ne!(other.index, session.index, "an adopted index is in use");
    assert_eq!(relay.revoke(session).unwrap().unwrap().usage.map(|usage| usage.packets), [1; 2]);
    assert_eq!(pair.passes_both(&ends, b"x", SILENCE), [false; 2]);
    drop(relay);
    let (_gate, relay) = lab.open();
    let again = relay.open_session(relay.identity("local:alice").unwrap(), HOUR).unwrap();
    assert_eq!(again.index, session.index);
    assert!(again.generation > session.generation);
    assert!(relay.revoke(session).unwrap().is_none(), "the old handle is worth nothing");
}

/// A neighbour's new address, and then another router: both from the kernel's news alone.
#[test]
fn next_hops_follow_neighbours_and_routes() {
    let lab = RelayLab::new(Shape::OneInterface);
    let (_gate, relay) = lab.open();
    relay.watch().unwrap();
    for ends in lab.families() {
        let pair = lab.pair(&ends);
        let session = relay.open_session(relay.identity("local:alice").unwrap(), HOUR).unwrap();
        lab.connect(&relay, session, &ends, &pair);
        assert_eq!(pair.passes_both(&ends, b"x", ANSWER), [true; 2]);
        // Each has a number of its own: one that is late is not taken for the next.
        let mut numbers = 0u64..;
        let mut passes = || {
            let number = numbers.next().unwrap().to_be_bytes();
            pair.client.send_to(&number, (ends.node_client, PORT)).unwrap();
            pair.connector.set_read_timeout(Some(SILENCE)).unwrap();
            let mut heard = [0; 8];
            while pair.connector.recv_from(&mut heard).is_ok() {
                if heard == number {
                    return true;
                }
            }
            false
        };
        for last in [1, 2, 3] {
            let address = format!("02:00:00:00:0{}:0{last}", u8::from(ends.client.is_ipv4()));
            lab.connector.run(&format!("ip link set dev eth0 address {address}")).unwrap();
            let family = if ends.client.is_ipv4() { "" } else { "-6 " };
            let neighbour = |verb: &str, rest: &str| {
                lab.node.run(&format!("ip {family}neigh {verb} {} dev eth0{rest}", ends.connector)).unwrap();
            };
            assert!(!passes(), "the old address is nobody's");
            neighbour("replace", &format!(" lladdr {address} nud reachable"));
            wait_until("the new address to be used", &mut passes);
        }
        relay.revoke(session).unwrap();
    }
}

/// As an ICMP error makes it, which anybody can send: it would limit every session behind the same router.
#[test]
fn what_the_kernel_believes_of_a_path_limits_no_packet() {
    let lab = RelayLab::new(Shape::OneInterface);
    let (gate, relay) = lab.open();
    for ends in lab.families() {
        let pair = lab.pair(&ends);
        let (family, bits, mtu) = if ends.connector.is_ipv4() { ("", 32, 552) } else { ("-6 ", 128, 1_280) };
        let narrow = format!("ip {family}route replace {}/{bits} dev eth0 mtu {mtu}", ends.connector);
        lab.node.run(&narrow).unwrap();
        let session = relay.open_session(relay.identity("local:alice").unwrap(), HOUR).unwrap();
        lab.connect(&relay, session, &ends, &pair);
        assert!(pair.passes(&ends, Leg::Client, &[0xa5; 1_400], ANSWER), "{}", shown(&gate));
        relay.revoke(session).unwrap();
    }
}

/// Nobody has spoken to the ends yet; the kernel learns where they are, and goes on asking.
#[test]
fn a_neighbour_that_the_kernel_does_not_know_is_found_and_kept() {
    let lab = RelayLab::new(Shape::TwoInterfaces);
    let (_gate, relay) = lab.open();
    for (with_keeper, ends) in [false, true, true].into_iter().zip([0, 0, 1]) {
        let ends = lab.families()[ends];
        let pair = lab.pair(&ends);
        let session = relay.open_session(relay.identity("local:alice").unwrap(), HOUR).unwrap();
        let grant = pair.grant(session, &ends);
        if !with_keeper {
            let error = relay.install(&grant).unwrap_err();
            assert!(matches!(error, RelayError::Detour(Detour::Unresolved)), "{error:?}");
            continue;
        }
        let node = lab.node.clone();
        relay.set_keeper(Arc::new(move |interface, address| {
            node.enter(|| gate::keep_neighbour(interface, address)).unwrap()
        }));
        // It waits for an answer, though not for one of a machine that is too busy to give it.
        install(&relay, &grant).unwrap();
        assert_eq!(pair.passes_both(&ends, b"x", ANSWER), [true; 2]);
        for address in [ends.client, ends.connector] {
            let shown = lab.node.run(&format!("ip neigh show {address}")).unwrap();
            assert!(shown.contains("managed"), "{shown}");
        }
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + ANSWER;
    while !holds() {
        assert!(Instant::now() < deadline, "waited for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

//! Sessions that the gate lets through to the node's own socket: judged like those that it relays by itself.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use portcullis::gate::{
    self, Detour, FlowGrant, Leg, PeerAddress, Placed, Placement, Relay, RelayError, Standing, Usage, Way,
};
use portcullis_common::{DropReason, PassReason, Verdict};

use crate::lab::ANSWER;
use crate::relay_lab::{Ends, PORT, Pair, RelayLab, Shape, peer};

const HOUR: Duration = Duration::from_secs(3_600);
/// How long a silence is waited for.
const PATIENCE: Duration = Duration::from_millis(300);

/// The node's sockets, by family.
struct Node([UdpSocket; 2]);

impl Node {
    fn new(lab: &RelayLab) -> Self {
        Self(
            lab.families()
                .map(|ends| lab.node.enter(|| UdpSocket::bind((ends.node_client, PORT))).unwrap().unwrap()),
        )
    }

    /// Whether what the end sends arrives at the node's socket, where it should.
    fn hears(&self, end: &UdpSocket, to: &PeerAddress) -> bool {
        self.hears_within(end, to, ANSWER)
    }

    /// The same where it should not.
    fn hears_after_all(&self, end: &UdpSocket, to: &PeerAddress) -> bool {
        self.hears_within(end, to, PATIENCE)
    }

    fn hears_within(&self, end: &UdpSocket, to: &PeerAddress, patience: Duration) -> bool {
        let socket = &self.0[usize::from(to.local.is_ipv6())];
        socket.set_read_timeout(Some(patience)).unwrap();
        end.send_to(b"x", to.local).unwrap();
        match socket.recv_from(&mut [0; 8]) {
            Ok((_, from)) => {
                assert_eq!(from, to.remote);
                true
            }
            Err(_) => false,
        }
    }

    fn hears_both(&self, pair: &Pair, grant: &FlowGrant) -> [bool; 2] {
        [self.hears(&pair.client, &grant.client), self.hears(&pair.connector, &grant.connector)]
    }

    fn hears_either(&self, pair: &Pair, grant: &FlowGrant) -> bool {
        self.hears_after_all(&pair.client, &grant.client)
            || self.hears_after_all(&pair.connector, &grant.connector)
    }
}

/// The client over IPv4, the connector over IPv6: what the gate cannot rewrite.
fn mixed(lab: &RelayLab) -> (Ends, Pair) {
    let [v4, v6] = lab.families();
    let ends = Ends {
        client: v4.client,
        node_client: v4.node_client,
        connector: v6.connector,
        node_connector: v6.node_connector,
    };
    (ends, lab.pair(&ends))
}

#[test]
fn a_session_of_two_families_reaches_the_nodes_socket_until_it_is_over() {
    let lab = RelayLab::new(Shape::OneInterface);
    let (gate, relay) = lab.open();
    let node = Node::new(&lab);
    let (ends, pair) = mixed(&lab);
    let identity = relay.identity("local:alice").unwrap();
    let session = relay.open_session(identity, HOUR).unwrap();
    let grant = pair.grant(session, &ends);
    assert!(matches!(relay.install(&grant), Err(RelayError::Detour(_))));
    assert!(!node.hears_either(&pair, &grant), "nothing is installed");
    relay.install_to_host(&grant).unwrap();
    assert_eq!(node.hears_both(&pair, &grant), [true; 2]);
    assert_eq!(gate.counters().unwrap().of(Verdict::Pass(PassReason::RelayHost)), 2);
    let [seen] = &gate::flows(&lab.pin.path).unwrap()[..] else { panic!("one session") };
    assert!(matches!(seen.standing, Standing::Live(_)));
    let expected = [Usage { packets: 1, bytes: 29 }, Usage { packets: 1, bytes: 49 }];
    let listed: Vec<_> = seen.flows.iter().map(|flow| (flow.from, flow.input, flow.output)).collect();
    assert_eq!(listed, [(Leg::Client, grant.client, None), (Leg::Connector, grant.connector, None)]);
    assert_eq!(relay.totals().unwrap().usage, expected);
    assert_eq!((relay.totals().unwrap().flows, relay.totals().unwrap().hops), (2, 0));
    relay.refresh().unwrap();

    // An end that moves goes on.
    let moved = lab.pair(&ends);
    let after = FlowGrant { client: moved.grant(session, &ends).client, ..grant };
    relay.replace_leg(Leg::Client, grant.client, &after).unwrap();
    assert!(!node.hears_after_all(&pair.client, &grant.client), "where it was, it is no more");
    assert!(node.hears(&moved.client, &after.client) && node.hears(&pair.connector, &after.connector));
    assert!(matches!(relay.replace_leg(Leg::Client, grant.client, &after), Err(RelayError::Moved)));

    // And so does it past the daemon, which takes it over.
    drop((gate, relay));
    let (gate, relay) = lab.open();
    assert_eq!(relay.sessions(), [(session, identity.index)]);
    assert!(node.hears(&moved.client, &after.client));
    let ended = relay.revoke(session).unwrap().unwrap();
    assert_eq!(ended.usage.map(|usage| usage.packets), [3, 2]);
    assert!(
        !node.hears_after_all(&moved.client, &after.client)
            && !node.hears_after_all(&pair.connector, &after.connector)
    );
    assert_eq!(gate.counters().unwrap().of(Verdict::Pass(PassReason::RelayHost)), 5);
    assert_eq!(relay.totals().unwrap().flows, 0);
}

/// Whatever ends a session in the gate ends this one: the person's epoch, and the clock.
#[test]
fn it_ends_with_the_person_and_with_the_clock() {
    let lab = RelayLab::new(Shape::OneInterface);
    let (gate, relay) = lab.open();
    let node = Node::new(&lab);
    let (ends, pair) = mixed(&lab);
    let early = relay.identity("local:alice").unwrap();
    let session = relay.open_session(early, HOUR).unwrap();
    let grant = pair.grant(session, &ends);
    relay.install_to_host(&grant).unwrap();
    assert!(node.hears(&pair.client, &grant.client));
    assert_eq!(relay.revoke_identity("local:alice").unwrap().len(), 1);
    assert!(!node.hears_after_all(&pair.client, &grant.client));

    let late = FlowGrant { session: relay.open_session(early, HOUR).unwrap(), ..grant };
    relay.install_to_host(&late).unwrap();
    assert!(!node.hears_after_all(&pair.client, &grant.client), "granted before, and written after");
    assert_eq!(gate.counters().unwrap().of(Verdict::Drop(DropReason::RelayRevoked)), 1);
    relay.revoke(late.session).unwrap();

    let now = relay.identity("local:alice").unwrap();
    let short = FlowGrant { session: relay.open_session(now, Duration::from_millis(1)).unwrap(), ..grant };
    match relay.install_to_host(&short) {
        Err(RelayError::Over) => {}
        result => {
            result.unwrap();
            std::thread::sleep(Duration::from_millis(50));
            assert!(!node.hears_after_all(&pair.client, &grant.client));
            assert_eq!(gate.counters().unwrap().of(Verdict::Drop(DropReason::RelayExpired)), 1);
        }
    }
}

/// A session that the gate relayed goes over to the node, with its counts, when its way out is gone.
#[test]
fn a_relayed_session_can_go_over_to_the_node() {
    let lab = RelayLab::new(Shape::OneInterface);
    let (_gate, relay) = lab.open();
    let ends = lab.families()[0];
    let pair = lab.pair(&ends);
    let session = relay.open_session(relay.identity("local:alice").unwrap(), HOUR).unwrap();
    let grant = lab.connect(&relay, session, &ends, &pair);
    assert_eq!(pair.passes_both(&ends, b"1", ANSWER), [true; 2]);
    let other = relay.open_session(relay.identity("local:bob").unwrap(), HOUR).unwrap();
    let taken = FlowGrant { session: other, ..grant };
    assert!(matches!(relay.install_to_host(&taken), Err(RelayError::TupleInUse)));
    assert_eq!(pair.passes_both(&ends, b"2", ANSWER), [true; 2], "the other's is as it was");

    relay.install_to_host(&grant).unwrap();
    let node = Node::new(&lab);
    assert_eq!(node.hears_both(&pair, &grant), [true; 2]);
    assert_eq!((relay.totals().unwrap().flows, relay.totals().unwrap().hops), (2, 0));
    assert_eq!(relay.revoke(session).unwrap().unwrap().usage.map(|usage| usage.packets), [3; 2]);
    assert!(!node.hears_either(&pair, &grant));
}

#[test]
fn what_must_not_be_granted_is_not_let_through_either() {
    let lab = RelayLab::new(Shape::TwoInterfaces);
    let (gate, relay) = lab.open();
    let (ends, pair) = mixed(&lab);
    let session = relay.open_session(relay.identity("local:alice").unwrap(), HOUR).unwrap();
    let good = pair.grant(session, &ends);
    let refused = |what: &str, grant: FlowGrant, expected: fn(&RelayError) -> bool| {
        let error = relay.install_to_host(&grant).unwrap_err();
        assert!(expected(&error), "{what}: {error:?}");
    };
    let own = SocketAddr::new(ends.node_connector, PORT);
    refused("the node", FlowGrant { connector: peer(ends.node_connector, own), ..good }, |error| {
        matches!(error, RelayError::Reflection)
    });
    let other = SocketAddr::new(lab.families()[1].node_client, PORT);
    refused(
        "the node elsewhere",
        FlowGrant { connector: peer(ends.node_connector, other), ..good },
        |error| matches!(error, RelayError::Reflection),
    );
    refused("itself", FlowGrant { connector: good.client, ..good }, |error| {
        matches!(error, RelayError::Reflection)
    });
    let mut unserved = good;
    unserved.client.local.set_port(444);
    refused("not served", unserved, |error| matches!(error, RelayError::NotServed));
    gate.control().authenticate(good.client, HOUR).unwrap();
    refused("a peer", good, |error| matches!(error, RelayError::TupleInUse));
    gate.control().forget(good.client).unwrap();
    relay.revoke(session).unwrap();
    refused("over", good, |error| matches!(error, RelayError::Over));
    assert_eq!(relay.totals().unwrap().flows, 0, "none of them left anything");
}

fn place(relay: &Relay, grant: &FlowGrant) -> Way {
    let wanted = [Placement { grant: *grant, to_host: false }];
    let deadline = Instant::now() + ANSWER;
    loop {
        match relay.place_all(&wanted).remove(0) {
            Err(RelayError::Detour(Detour::Unresolved)) => {
                assert!(Instant::now() < deadline, "a neighbour is not found");
                std::thread::sleep(Duration::from_millis(10));
            }
            placed => return placed.unwrap(),
        }
    }
}

/// What a daemon does that starts again and hears both ends bind anew, from where they were or from elsewhere.
#[test]
fn flows_of_an_earlier_process_are_placed_where_their_ends_are_now() {
    let lab = RelayLab::new(Shape::OneInterface);
    let (gate, relay) = lab.open();
    let ends = lab.families()[0];
    let before = lab.pair(&ends);
    let session = relay.open_session(relay.identity("local:alice").unwrap(), HOUR).unwrap();
    let grant = lab.connect(&relay, session, &ends, &before);
    assert_eq!(before.passes_both(&ends, b"1", ANSWER), [true; 2]);
    drop((gate, relay));
    let (_gate, relay) = lab.open();
    let at =
        |grant: &FlowGrant, to_host| Placed { client: grant.client, connector: grant.connector, to_host };
    assert_eq!(relay.placed(session), Some(at(&grant, false)));
    assert_eq!(place(&relay, &grant), Way::Gate);
    assert_eq!(before.passes_both(&ends, b"2", ANSWER), [true; 2]);

    let moved = lab.pair(&ends);
    let after = moved.grant(session, &ends);
    assert_eq!(place(&relay, &after), Way::Gate);
    assert_eq!(relay.placed(session), Some(at(&after, false)));
    assert_eq!(moved.passes_both(&ends, b"3", ANSWER), [true; 2]);
    assert!(!before.passes(&ends, Leg::Client, b"4", PATIENCE));
    assert_eq!(relay.usage(session).unwrap().unwrap().map(|usage| usage.packets), [3; 2]);

    // One end in the other family, and back: the gate takes it over again.
    let node = Node::new(&lab);
    let (mixed_ends, mixed) = mixed(&lab);
    let across = mixed.grant(session, &mixed_ends);
    assert_eq!(place(&relay, &across), Way::Host);
    assert_eq!(relay.placed(session), Some(at(&across, true)));
    assert_eq!(node.hears_both(&mixed, &across), [true; 2]);
    assert_eq!(place(&relay, &after), Way::Gate);
    assert_eq!(relay.placed(session), Some(at(&after, false)));
    assert_eq!(moved.passes_both(&ends, b"5", ANSWER), [true; 2]);

    let other = relay.open_session(relay.identity("local:bob").unwrap(), HOUR).unwrap();
    let gone = relay.open_session(relay.identity("local:carol").unwrap(), HOUR).unwrap();
    relay.revoke(gone).unwrap();
    let ended = relay.revoke_all(&[session, gone, other]).unwrap().ended;
    let packets: Vec<_> =
        ended.iter().map(|ended| (ended.session, ended.usage.map(|usage| usage.packets))).collect();
    assert_eq!(packets, [(session, [5; 2]), (other, [0; 2])]);
    assert_eq!((relay.placed(session), relay.usage(session).unwrap()), (None, None));
    assert!(!moved.passes(&ends, Leg::Client, b"6", PATIENCE));
}

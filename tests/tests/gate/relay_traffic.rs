//! Real programs at both ends of a relayed session: quinn, and iperf3; through one interface and two, across no VLAN tag,
//! one and two.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use portcullis::clock;
use portcullis::gate::{self, FlowGrant, Gate, Leg, PeerAddress, Relay};
use portcullis::tunnel::relay as bind;
use portcullis_common::{ConnectionId, SipKey};
use portcullis_tests::gate::vlan::{self, Tag};
use portcullis_tests::gate::wire::Wire;
use portcullis_tests::netns::{Netns, run};
use portcullis_tests::process::wait_until;
use portcullis_tests::relay::{RelayEnd, RelayNode};

use crate::lab::{ANSWER, mac};
use crate::relay_lab::{Ends, PORT, RelayLab, Shape, install, relayed};

const HOUR: Duration = Duration::from_secs(3_600);
const SOON: Duration = Duration::from_secs(60);

#[test]
fn quic_runs_through_the_gate_and_an_end_that_moves_goes_on() {
    quic(&RelayLab::new(Shape::OneInterface));
}

#[test]
fn quic_runs_through_the_gate_across_a_tag() {
    across(Shape::OneInterface, vlan::ONE, quic);
}

#[test]
fn quic_runs_through_the_gate_across_two_tags() {
    across(Shape::OneInterface, vlan::TWO, quic);
}

#[test]
fn iperf3_loses_nothing_through_the_gate() {
    for shape in [Shape::OneInterface, Shape::TwoInterfaces] {
        iperf3(&RelayLab::new(shape));
    }
}

#[test]
fn iperf3_loses_nothing_from_a_tag_to_none_and_back() {
    across(Shape::TwoInterfaces, vlan::ONE, iperf3);
}

#[test]
fn iperf3_loses_nothing_across_two_tags() {
    across(Shape::OneInterface, vlan::TWO, iperf3);
}

/// Runs `traffic`, and makes sure that the client's frames had the tags in them. What comes to the client without them is dropped there.
fn across(shape: Shape, tags: &'static [Tag], traffic: fn(&RelayLab)) {
    let lab = RelayLab::tagged(shape, tags);
    let wire = Wire::on(&lab.client, "eth0").unwrap();
    traffic(&lab);
    let (own, tags) = (mac(&lab.client), tags.concat());
    let sent = |frame: &[u8]| (frame[6..12] == own).then(|| frame[12..].starts_with(&tags));
    assert!(wire.receive(ANSWER, sent).unwrap(), "the client's frames carry no tag");
}

/// The real bind machine and two real quinn endpoints; their packets never reach the node's socket.
fn quic(lab: &RelayLab) {
    let (gate, relay) = lab.open();
    let key = SipKey::from_bytes(clock::random());
    gate.control().set_cid_key(1, key, HOUR).unwrap();
    for ends in lab.families() {
        lab.greet(&ends);
        let identity = relay.identity("local:alice").unwrap();
        let session = relay.open_session(identity, HOUR).unwrap();
        let node = lab.node.enter(|| UdpSocket::bind((ends.node_client, PORT))).unwrap().unwrap();
        let node = RelayNode::start(node, Some(into_the_gate(lab, relay.clone()))).unwrap();
        let terms = bind::Terms {
            identity: identity.index,
            epoch: u32::try_from(identity.epoch).unwrap(),
            expires: clock::monotonic() + HOUR,
        };
        let bound = bind::SessionRef { index: session.index, generation: session.generation };
        let ticket = || ConnectionId::mint(1, &key, u64::from_le_bytes(clock::random())).to_bytes();
        let [client, connector] = node.open_with(bound, terms, ticket).unwrap();
        let start = |netns: &Netns, secrets, address| -> RelayEnd {
            let mut command = netns.command(env!("CARGO_BIN_EXE_relay_end"));
            if lab.is_tagged() {
                command.env("UNSEGMENTED", "1");
            }
            let at = SocketAddr::new(ends.node_client, PORT);
            node.end(command, secrets, at, SocketAddr::new(address, 0)).unwrap()
        };
        let mut connector = start(&lab.connector, &connector, ends.connector);
        let mut client = start(&lab.client, &client, ends.client);
        connector.ready(SOON).unwrap();
        client.ready(SOON).unwrap();
        client.trust(&connector).unwrap();
        let before = relayed(&gate);
        client.send(2_000_000, SOON).unwrap();
        assert!(relayed(&gate) > before + 1_300, "2 MB in packets of at most 1,452 bytes");

        client.move_to(SocketAddr::new(ends.client, 0)).unwrap();
        client.ready(SOON).unwrap();
        let before = relayed(&gate);
        client.send(1_000_000, SOON).unwrap();
        assert!(relayed(&gate) > before + 650);
        relay.revoke(session).unwrap().unwrap();
        let before = relayed(&gate);
        assert!(client.send(1_000, Duration::from_secs(2)).is_err(), "revoked");
        assert_eq!(relayed(&gate), before);
    }
}

/// The loop around the bind machine, as far as the gate is concerned.
fn into_the_gate(lab: &RelayLab, relay: Relay) -> portcullis_tests::relay::Install {
    let tag_hops = lab.hop_tagger();
    let end = |tuple: bind::Tuple| PeerAddress { local: tuple.local(), remote: tuple.remote() };
    let grant = move |pair: &bind::Pair| FlowGrant {
        session: gate::SessionRef { index: pair.session.index, generation: pair.session.generation },
        client: end(pair.client),
        connector: end(pair.connector),
    };
    Box::new(move |action| match action {
        bind::Action::Install(pair) => {
            let installed = install(&relay, &grant(pair)).is_ok();
            tag_hops();
            installed
        }
        bind::Action::ReplaceLeg { leg, old, pair } => {
            let leg = match leg {
                bind::Leg::Client => Leg::Client,
                bind::Leg::Connector => Leg::Connector,
            };
            relay.replace_leg(leg, end(*old), &grant(pair)).is_ok()
        }
        bind::Action::Send { .. } | bind::Action::Ready { .. } => false,
    })
}

/// iperf3's own TCP connection goes through a proxy on the node; its datagrams through the gate.
fn iperf3(lab: &RelayLab) {
    const CLIENT_PORT: u16 = 40_443;
    let mut config = lab.config();
    config.served_tcp = vec![PORT];
    let gate = lab.node.enter(|| Gate::open(&config)).unwrap().unwrap();
    let relay = gate.relay().unwrap();
    for ends in lab.families() {
        lab.greet(&ends);
        let to_connector = SocketAddr::new(ends.connector, PORT);
        let _proxy = Proxy::start(&lab.node, SocketAddr::new(ends.node_client, PORT), to_connector);
        let _server = Server::start(&lab.connector, &ends);
        let session = relay.open_session(relay.identity("local:alice").unwrap(), HOUR).unwrap();
        let at = |local, remote| PeerAddress { local: SocketAddr::new(local, PORT), remote };
        let grant = FlowGrant {
            session,
            client: at(ends.node_client, SocketAddr::new(ends.client, CLIENT_PORT)),
            connector: at(ends.node_connector, to_connector),
        };
        install(&relay, &grant).unwrap();
        lab.hop_tagger()();
        let full = lab.connector.datagrams_without_room().unwrap();
        let mut command = lab.client.command("iperf3");
        command.args(["-u", "-c", &ends.node_client.to_string(), "-p", "443", "--cport", "40443"]);
        command.args(["-B", &ends.client.to_string(), "-l", "1200", "-b", "20M", "-t", "2", "-J"]);
        let report: serde_json::Value = serde_json::from_str(&run(&mut command).unwrap()).unwrap();
        let sum = &report["end"]["sum"];
        let (packets, lost) = (sum["packets"].as_u64().unwrap(), sum["lost_packets"].as_u64().unwrap());
        let full = lab.connector.datagrams_without_room().unwrap() - full;
        assert!(lost <= full, "{ends:?}: {lost} lost, {full} for want of room");
        assert!(packets - lost > 1_000, "{report}");
        let ended = relay.revoke(session).unwrap().unwrap();
        assert!(ended.usage[0].packets >= packets, "{:?} {packets}", ended.usage);
    }
}

/// A TCP proxy in a namespace.
struct Proxy {
    stop: Arc<AtomicBool>,
}

impl Proxy {
    fn start(netns: &Netns, at: SocketAddr, to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let listener = netns.enter(|| TcpListener::bind(at)).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let netns = netns.clone();
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok((near, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                near.set_nonblocking(false).unwrap();
                let Ok(far) = netns.enter(|| TcpStream::connect_timeout(&to, SOON)).unwrap() else {
                    continue;
                };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || copy(from, to));
                }
            }
        });
        Self { stop }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 4_096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// iperf3 as a server, killed on drop.
struct Server {
    child: Child,
}

impl Server {
    fn start(netns: &Netns, ends: &Ends) -> Self {
        let mut command: Command = netns.command("iperf3");
        command.args(["-s", "-p", "443", "-B", &ends.connector.to_string()]).stdout(Stdio::null());
        let server = Self { child: command.spawn().unwrap() };
        let at = SocketAddr::new(ends.connector, PORT);
        wait_until("iperf3 to listen", SOON, || Ok(netns.listens(at)?.then_some(()))).unwrap();
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

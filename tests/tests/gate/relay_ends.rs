//! Real programs at both ends of a relayed session, and a daemon that dies in between.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portcullis::clock;
use portcullis::gate::{self, FlowGrant, Gate, Leg, PeerAddress, Relay};
use portcullis::tunnel::relay as bind;
use portcullis_common::{ConnectionId, SipKey};
use portcullis_tests::bench::Front;
use portcullis_tests::gate::packet::{self, Path, UDP};
use portcullis_tests::gate::wire::Wire;
use portcullis_tests::netns::{Netns, run};
use portcullis_tests::relay::{RelayEnd, RelayNode};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use crate::closed::fill_maps;
use crate::lab::{ANSWER, SILENCE};
use crate::relay_lab::{Ends, PORT, Pair, RelayLab, Shape, StopOnDrop, install, relayed};

const HOUR: Duration = Duration::from_secs(3_600);
const SOON: Duration = Duration::from_secs(60);

/// The real bind machine and two real quinn endpoints; their packets never reach the node's socket.
#[test]
fn quic_runs_through_the_gate_and_an_end_that_moves_goes_on() {
    let lab = RelayLab::new(Shape::OneInterface);
    let (gate, relay) = lab.open();
    let key = SipKey::from_bytes(clock::random());
    gate.control().set_cid_key(1, key, HOUR).unwrap();
    for ends in lab.families() {
        lab.greet(&ends);
        let identity = relay.identity("local:alice").unwrap();
        let session = relay.open_session(identity, HOUR).unwrap();
        let node = lab.node.enter(|| UdpSocket::bind((ends.node_client, PORT))).unwrap().unwrap();
        let node = RelayNode::start(node, Some(into_the_gate(relay.clone()))).unwrap();
        let terms = bind::Terms {
            identity: identity.index,
            epoch: u32::try_from(identity.epoch).unwrap(),
            expires: clock::monotonic() + HOUR,
        };
        let bound = bind::SessionRef { index: session.index, generation: session.generation };
        let ticket = || ConnectionId::mint(1, &key, u64::from_le_bytes(clock::random())).to_bytes();
        let [client, connector] = node.open_with(bound, terms, ticket).unwrap();
        let start = |netns: &Netns, secrets, address| -> RelayEnd {
            let command = netns.command(env!("CARGO_BIN_EXE_relay_end"));
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
fn into_the_gate(relay: Relay) -> portcullis_tests::relay::Install {
    let end = |tuple: bind::Tuple| PeerAddress { local: tuple.local(), remote: tuple.remote() };
    let grant = move |pair: &bind::Pair| FlowGrant {
        session: gate::SessionRef { index: pair.session.index, generation: pair.session.generation },
        client: end(pair.client),
        connector: end(pair.connector),
    };
    Box::new(move |action| match action {
        bind::Action::Install(pair) => install(&relay, &grant(pair)).is_ok(),
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
#[test]
fn iperf3_loses_nothing_through_the_gate() {
    const CLIENT_PORT: u16 = 40_443;
    for shape in [Shape::OneInterface, Shape::TwoInterfaces] {
        let lab = RelayLab::new(shape);
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
            let full = no_room(&lab.connector);
            let mut command = lab.client.command("iperf3");
            command.args(["-u", "-c", &ends.node_client.to_string(), "-p", "443", "--cport", "40443"]);
            command.args(["-B", &ends.client.to_string(), "-l", "1200", "-b", "20M", "-t", "2", "-J"]);
            let report: serde_json::Value = serde_json::from_str(&run(&mut command).unwrap()).unwrap();
            let sum = &report["end"]["sum"];
            let (packets, lost) = (sum["packets"].as_u64().unwrap(), sum["lost_packets"].as_u64().unwrap());
            // Of a program that gets no CPU, the kernel drops what its socket has no room for, and counts it.
            let full = no_room(&lab.connector) - full;
            assert!(lost <= full, "{shape:?} {ends:?}: {lost} lost, {full} for want of room");
            assert!(packets - lost > 1_000, "{report}");
            let ended = relay.revoke(session).unwrap().unwrap();
            assert!(ended.usage[0].packets >= packets, "{:?} {packets}", ended.usage);
        }
    }
}

const KILLS: u32 = 100;
/// Every so many kills, the next daemon finds an older program on the links; as often, it has other settings.
const EVERY: u32 = 5;

/// The daemon dies, is upgraded and configured anew, and its maps are filled; a sequence-numbered flow does not notice.
#[test]
fn a_session_loses_nothing_through_kills_upgrades_other_settings_and_full_maps() {
    let lab = RelayLab::new(Shape::TwoInterfaces);
    let ends = lab.families()[0];
    let pair = lab.pair(&ends);
    lab.greet(&ends);
    let mut daemon = daemon(&lab, Some((&ends, &pair, 3_600.0)), &[]);
    assert_eq!(pair.passes_both(&ends, b"x", ANSWER), [true; 2]);
    // Room for all that this test sends: the kernel must lose nothing either, however late the reader comes.
    set_socket_recv_buffer_size_force(&pair.connector, 256 << 20).unwrap();
    let (stop, received) = (AtomicBool::new(false), Mutex::new(Vec::<u64>::new()));
    let sent = std::thread::scope(|scope| {
        let stops = StopOnDrop(&stop);
        let sending = scope.spawn(|| {
            let mut next = 0u64;
            while !stop.load(Ordering::Relaxed) {
                pair.client.send_to(&next.to_be_bytes(), (ends.node_client, PORT)).unwrap();
                next += 1;
                std::thread::sleep(Duration::from_micros(500));
            }
            next
        });
        scope.spawn(|| {
            let mut buffer = [0; 8];
            pair.connector.set_read_timeout(Some(SILENCE)).unwrap();
            loop {
                let over = stop.load(Ordering::Relaxed);
                match pair.connector.recv_from(&mut buffer) {
                    Ok((8, _)) => received.lock().unwrap().push(u64::from_be_bytes(buffer)),
                    Ok(_) => {}
                    Err(_) if over => return,
                    Err(_) => {}
                }
            }
        });
        for kill in 0..KILLS {
            // An older program: not the same instructions, but the same maps behind it.
            let older = ["eth0", "eth1"].map(|interface| {
                let older = Front::new(&lab.node, interface, &lab.pin.path, None).unwrap();
                if kill % EVERY == 0 {
                    older.put().unwrap();
                    assert!(older.is_there().unwrap());
                }
                older
            });
            daemon.kill().unwrap();
            daemon.wait().unwrap();
            let rule = format!("203.0.113.{kill}:22");
            let settings: &[&str] =
                if kill % EVERY == 2 { &["--admin", &rule, "--tcp", "8443"] } else { &[] };
            daemon = self::daemon(&lab, None, settings);
            assert!(older.iter().all(|older| !older.is_there().unwrap()), "kill {kill}: not replaced");
        }
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        let (gate, _relay) = lab.open();
        fill_maps(&gate, &lab.node, ends.client);
        drop(stops);
        sending.join().unwrap()
    });
    assert!(sent > 10_000, "{sent}");
    let received = received.into_inner().unwrap();
    let (arrived, in_order) = (received.len(), received.is_sorted());
    assert!(received.into_iter().eq(0..sent), "{arrived} of {sent} arrived, in order: {in_order}");
}

#[test]
fn expiry_needs_no_daemon() {
    let lab = RelayLab::new(Shape::TwoInterfaces);
    let ends = lab.families()[1];
    lab.greet(&ends);
    // A machine that is too busy to send two packets within a short life gets a longer one.
    for seconds in [8u64, 30, 60] {
        let pair = lab.pair(&ends);
        let began = Instant::now();
        let mut daemon = daemon(&lab, Some((&ends, &pair, seconds as f64)), &[]);
        let granted = Instant::now();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        let passes = pair.passes_both(&ends, b"x", Duration::from_secs(seconds) / 4);
        let late = began.elapsed() >= Duration::from_secs(seconds);
        assert!(passes == [true; 2] || late, "with the daemon dead");
        std::thread::sleep(Duration::from_millis(1_000 * seconds + 100).saturating_sub(granted.elapsed()));
        assert_eq!(pair.passes_both(&ends, b"x", SILENCE), [false; 2]);
        if passes == [true; 2] {
            return;
        }
    }
    panic!("this machine never sends two packets in time");
}

/// Tags are of the link that a packet came by, and stay behind.
#[test]
fn tagged_packets_are_relayed_without_their_tags() {
    let lab = RelayLab::new(Shape::TwoInterfaces);
    let (gate, relay) = lab.open();
    for ends in lab.families() {
        let pair = lab.pair(&ends);
        let session = relay.open_session(relay.identity("local:alice").unwrap(), HOUR).unwrap();
        lab.connect(&relay, session, &ends, &pair);
        assert_eq!(pair.passes_both(&ends, b"x", ANSWER), [true; 2]);
        let [client, node] = [mac(&lab.client), mac(&lab.node)];
        let wire = Wire::on(&lab.client, "eth0").unwrap();
        let path = Path::new(&ends.client.to_string(), &ends.node_client.to_string());
        let from = pair.client.local_addr().unwrap().port();
        for tags in [&[][..], &[[0x81, 0, 0, 7]], &[[0x88, 0xa8, 0, 9], [0x81, 0, 0, 7]]] {
            let before = relayed(&gate);
            for length in [1usize, 300, 1_200] {
                let mut datagram = packet::udp(from, PORT, &vec![7; length]);
                let sum = path.checksum(UDP, &datagram);
                datagram[6..8].copy_from_slice(&sum);
                let mut frame = [node, client].concat();
                frame.extend(tags.concat());
                frame.extend(path.ethertype().to_be_bytes());
                frame.extend(path.ip_with_limit(64, UDP, &datagram));
                wire.send(&frame).unwrap();
                let mut buffer = [0; 2_048];
                let (received, _) = pair.connector.recv_from(&mut buffer).unwrap();
                assert_eq!(&buffer[..received], &vec![7; length], "{tags:?}");
            }
            assert_eq!(relayed(&gate), before + 3);
        }
    }
}

/// Datagrams that the namespace's sockets had no room for (RFC 4113 counts them among the errors).
fn no_room(netns: &Netns) -> u64 {
    let counts = netns.run("nstat -asz UdpRcvbufErrors Udp6RcvbufErrors").unwrap();
    counts.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

fn mac(netns: &Netns) -> [u8; 6] {
    let shown = netns.run("ip -brief link show dev eth0").unwrap();
    let text = shown.split_whitespace().nth(2).unwrap();
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// A process that holds the gate; with a session, if one is given.
fn daemon(lab: &RelayLab, session: Option<(&Ends, &Pair, f64)>, settings: &[&str]) -> Child {
    let mut command = lab.node.command(env!("CARGO_BIN_EXE_gate_hold"));
    command.arg(&lab.pin.path).args(["--udp", "443"]).args(settings);
    for interface in lab.config().interfaces {
        command.args(["--interface", &interface]);
    }
    if let Some((ends, pair, seconds)) = session {
        let end = |node, socket: &UdpSocket| {
            format!("{}>{}", SocketAddr::new(node, PORT), socket.local_addr().unwrap())
        };
        let client = end(ends.node_client, &pair.client);
        let connector = end(ends.node_connector, &pair.connector);
        command.args(["--relay", &format!("{client},{connector},{seconds}")]);
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("up "), "{line}");
    child
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
        let child = command.spawn().unwrap();
        let at = SocketAddr::new(ends.connector, PORT);
        let deadline = Instant::now() + SOON;
        // A probe that it takes for a client would make it print an error, so it is asked for its port alone.
        while netns.enter(|| TcpListener::bind(at).is_ok()).unwrap() {
            assert!(Instant::now() < deadline, "iperf3 does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

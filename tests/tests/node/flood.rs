//! A whole node under a stranger's flood: reloaded, killed and restarted, and nothing arrives that was not let in.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use portcullis_tests::meanwhile::{Pace, StopOnDrop};
use portcullis_tests::netns::Netns;
use portcullis_tests::process::wait_until;
use rustix::process::Signal;

use crate::gated::{EDGE, Gated};

/// Nobody may reach it, in either protocol.
const PLANTED: u16 = 2222;
/// Of the lab's administrator, who is the stranger's host too: what was open before stays open.
const ADMIN: u16 = 22;
const RELOADS: usize = 20;
const RESTARTS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// Servers on the planted port that count what arrives.
struct Planted {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Planted {
    fn new(lab: &Gated) -> Self {
        let bind =
            || (TcpListener::bind((EDGE, PLANTED)).unwrap(), UdpSocket::bind((EDGE, PLANTED)).unwrap());
        let (tcp, udp) = lab.edge.enter(bind).unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        Self { tcp, udp }
    }

    /// Datagrams and connections since the last time. They wait in the sockets' queues until then.
    fn arrived(&self) -> [usize; 2] {
        let datagrams = std::iter::from_fn(|| self.udp.recv(&mut [0; 8]).ok()).count();
        let connections = std::iter::from_fn(|| self.tcp.accept().ok()).count();
        [datagrams, connections]
    }
}

/// Runs `body` under a flood of datagrams and SYNs; how many datagrams were sent meanwhile.
fn flooded(stranger: &Netns, body: impl FnOnce()) -> Pace {
    let (stop, sent, began) = (AtomicBool::new(false), AtomicU64::new(0), Instant::now());
    let datagrams = || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        while !stop.load(Ordering::Relaxed) {
            if socket.send_to(b"?", (EDGE, PLANTED)).is_ok() {
                sent.fetch_add(1, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    };
    let openings = || {
        let to = SocketAddr::new(EDGE.parse().unwrap(), PLANTED);
        while !stop.load(Ordering::Relaxed) {
            let _ = TcpStream::connect_timeout(&to, Duration::from_millis(3));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| stranger.enter(datagrams).unwrap());
        scope.spawn(|| stranger.enter(openings).unwrap());
        let _stop = StopOnDrop(&stop);
        body();
    });
    Pace { sent: sent.into_inner(), lasted: began.elapsed() }
}

#[test]
fn nothing_arrives_while_a_node_is_reloaded_and_restarted() {
    let mut lab = Gated::start_with(&format!("admin = [\"198.18.40.2/32:{ADMIN}\"]"));
    let log = lab.node.dir().join("access.jsonl");
    let base = std::fs::read_to_string(lab.node.config()).unwrap();
    let base = format!("{base}[events]\nfile = {log:?}\n");
    std::fs::write(lab.node.config(), &base).unwrap();
    lab.node.restart().unwrap();
    let planted = Planted::new(&lab);
    let stranger = lab.stranger.clone();

    // A connection that was let in, and has to go on.
    let echo = lab.edge.enter(|| TcpListener::bind((EDGE, ADMIN)).unwrap()).unwrap();
    let to = SocketAddr::new(EDGE.parse().unwrap(), ADMIN);
    let mut near = lab.stranger.enter(|| TcpStream::connect_timeout(&to, PATIENCE).unwrap()).unwrap();
    let (mut far, _) = echo.accept().unwrap();
    let mut goes_on = || {
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        near.write_all(b"?").unwrap();
        far.read_exact(&mut [0]).unwrap();
    };

    let told = |what: &str| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().filter(|line| line.contains(what)).count()
    };
    let mut refused = 0;
    let sent = flooded(&stranger, || {
        for turn in 0..RELOADS {
            let (config, outcome) = match turn % 4 {
                0 => (base.replace("[gate]\n", "[tunnel]\ndark = true\n[gate]\n"), "\"reload\""),
                // What takes a restart, and what is no configuration: the old one stays.
                1 => (
                    base.replace("admin = [", &format!("admin = [\"0.0.0.0/0:{PLANTED}\", ")),
                    "reload refused",
                ),
                2 => (
                    format!(
                        "{base}[[policy]]\nname = \"ops\"\naction = \"allow\"\ninclude = [{{ email = \"a@b.example\" }}]\n"
                    ),
                    "\"reload\"",
                ),
                _ => (base.replace("[gate]\n", "[gate]\nungaited = true\n"), "reload refused"),
            };
            assert_ne!(config, base);
            refused += usize::from(outcome == "reload refused");
            let before = told(outcome);
            let new = lab.node.dir().join("new");
            std::fs::write(&new, config).unwrap();
            std::fs::rename(new, lab.node.config()).unwrap();
            lab.node.process().unwrap().signal(Signal::HUP).unwrap();
            wait_until("the reload", PATIENCE, || Ok((told(outcome) > before).then_some(()))).unwrap();
            assert_eq!(planted.arrived(), [0, 0], "reload {turn}");
            goes_on();
        }
        std::fs::write(lab.node.config(), &base).unwrap();
        for turn in 0..RESTARTS {
            lab.node.process().unwrap().kill().unwrap();
            lab.node.restart().unwrap();
            assert_eq!(planted.arrived(), [0, 0], "restart {turn}");
            goes_on();
        }
    });
    assert!(sent.is_steady(), "control: {sent:?}");
    assert_eq!(planted.arrived(), [0, 0], "of {sent:?}");
    assert!(told("\"reload\"") >= RELOADS - refused && told("reload refused") >= refused);

    lab.node.process().unwrap().kill().unwrap();
    lab.node.admin(&["gate", "detach"]).unwrap();
    flooded(&stranger, || {
        let (mut datagrams, mut connections) = (0, 0);
        wait_until("control: it is the gate that keeps it out", PATIENCE, || {
            let [more, others] = planted.arrived();
            (datagrams, connections) = (datagrams + more, connections + others);
            Ok((datagrams > 100 && connections > 10).then_some(()))
        })
        .unwrap();
    });
}

//! ```text
//!   stranger ── eth0 ═══════════ eth0 ── edge (the gate is here)
//!        192.0.2.2, 2001:db8::2        192.0.2.1, 2001:db8::1
//! ```

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use portcullis::gate::{self, Dataplane, Gate, GateConfig, GateError, GateMode};
use portcullis_tests::gate::quic;
use portcullis_tests::netns::{Netns, veth};

pub const EDGE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
pub const STRANGER: [&str; 2] = ["192.0.2.2", "2001:db8::2"];

/// How long to wait where an answer is expected: a busy machine takes its time.
pub const ANSWER: Duration = Duration::from_secs(20);
/// How long to wait where none is.
pub const SILENCE: Duration = Duration::from_millis(500);

pub struct Lab {
    pub edge: Netns,
    pub stranger: Netns,
    pub pin: Pin,
}

impl Lab {
    pub fn new() -> Self {
        let (edge, stranger) = (Netns::new("edge").unwrap(), Netns::new("stranger").unwrap());
        veth(&edge, "eth0", &stranger, "eth0").unwrap();
        for (netns, addresses) in [(&edge, EDGE), (&stranger, STRANGER)] {
            netns.address("eth0", &format!("{}/24", addresses[0])).unwrap();
            netns.address("eth0", &format!("{}/64", addresses[1])).unwrap();
        }
        let pin = Pin::new(&edge);
        Self { edge, stranger, pin }
    }

    /// Serves 443, and lets the stranger administer port 22.
    pub fn config(&self) -> GateConfig {
        GateConfig {
            dataplane: Dataplane::Xdp,
            interfaces: vec!["eth0".to_owned()],
            admin: Vec::new(),
            served_tcp: vec![443],
            served_udp: vec![443],
            pin: self.pin.path.clone(),
            mode: GateMode::Enforce,
            egress: None,
        }
    }

    pub fn open(&self, config: &GateConfig) -> Result<Gate, GateError> {
        self.edge.enter(|| Gate::open(config)).unwrap()
    }

    pub fn detach(&self) -> Vec<String> {
        self.edge.enter(|| gate::detach(&self.pin.path)).unwrap().unwrap()
    }

    pub fn status(&self) -> gate::Status {
        self.edge.enter(|| gate::status(&self.pin.path)).unwrap().unwrap()
    }

    pub fn stranger_reaches_tcp(&self, port: u16, patience: Duration) -> [bool; 2] {
        EDGE.map(|address| reaches_tcp(&self.stranger, address, port, patience))
    }

    pub fn stranger_reaches_udp(&self, port: u16, patience: Duration) -> [bool; 2] {
        EDGE.map(|address| reaches_udp(&self.stranger, address, port, patience))
    }

    pub fn edge_reaches_tcp(&self, port: u16, patience: Duration) -> [bool; 2] {
        STRANGER.map(|address| reaches_tcp(&self.edge, address, port, patience))
    }

    pub fn edge_reaches_udp(&self, port: u16, patience: Duration) -> [bool; 2] {
        STRANGER.map(|address| reaches_udp(&self.edge, address, port, patience))
    }
}

/// Waits until the packets are counted.
pub fn settle(mut done: impl FnMut() -> bool) {
    portcullis_tests::process::wait_until("the packets to be counted", ANSWER, || Ok(done().then_some(())))
        .unwrap();
}

/// Link address of `eth0`.
pub fn mac(netns: &Netns) -> [u8; 6] {
    let shown = netns.run("ip -o link show eth0").unwrap();
    let (_, rest) = shown.split_once("link/ether ").unwrap();
    let mut bytes = rest.split_whitespace().next().unwrap().split(':');
    std::array::from_fn(|_| u8::from_str_radix(bytes.next().unwrap(), 16).unwrap())
}

fn reaches_tcp(from: &Netns, address: &str, port: u16, patience: Duration) -> bool {
    let to = SocketAddr::new(address.parse().unwrap(), port);
    from.enter(|| {
        let Ok(mut stream) = TcpStream::connect_timeout(&to, patience) else { return false };
        stream.set_read_timeout(Some(patience)).unwrap();
        let mut byte = [0];
        stream.write_all(b"?").is_ok() && stream.read_exact(&mut byte).is_ok()
    })
    .unwrap()
}

fn reaches_udp(from: &Netns, address: &str, port: u16, patience: Duration) -> bool {
    let to: IpAddr = address.parse().unwrap();
    let any: IpAddr = if to.is_ipv4() { "0.0.0.0".parse().unwrap() } else { "::".parse().unwrap() };
    from.enter(|| {
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.set_read_timeout(Some(patience)).unwrap();
        // The form that opens a tunnel; to any other port it is a datagram like any other.
        socket.send_to(&quic::initial(&[7; 12]), (to, port)).unwrap();
        socket.recv_from(&mut [0; 8]).is_ok()
    })
    .unwrap()
}

/// Answers every TCP connection and datagram on a port, in both families, until dropped.
pub struct Echo {
    stop: Arc<AtomicBool>,
    pub received: Arc<AtomicU32>,
    /// How often each thread has counted all that it had taken.
    turns: [Arc<AtomicU32>; 2],
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    pub fn on(netns: &Netns, port: u16) -> Self {
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let any = SocketAddr::new("::".parse().unwrap(), port);
        let (tcp, udp) =
            netns.enter(|| (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())).unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let turns = [(); 2].map(|()| Arc::new(AtomicU32::new(0)));
        let (stopped, count, turn) = (Arc::clone(&stop), Arc::clone(&received), Arc::clone(&turns[0]));
        let tcp = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                turn.fetch_add(1, Ordering::Release);
                match tcp.accept() {
                    Ok((mut stream, _)) => {
                        count.fetch_add(1, Ordering::Relaxed);
                        std::thread::spawn(move || {
                            stream.set_nonblocking(false).unwrap();
                            let mut byte = [0];
                            while stream.read_exact(&mut byte).is_ok() && stream.write_all(b"!").is_ok() {}
                        });
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        let (stopped, count, turn) = (Arc::clone(&stop), Arc::clone(&received), Arc::clone(&turns[1]));
        let udp = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                turn.fetch_add(1, Ordering::Release);
                if let Ok((_, from)) = udp.recv_from(&mut [0; 64]) {
                    count.fetch_add(1, Ordering::Relaxed);
                    udp.send_to(b"!", from).unwrap();
                }
            }
        });
        Self { stop, received, turns, threads: vec![tcp, udp] }
    }

    /// Waits until all is counted that it has taken so far.
    pub fn counts_all(&self) {
        let turns = || self.turns.each_ref().map(|turns| turns.load(Ordering::Acquire));
        let before = turns();
        settle(|| turns().iter().zip(before).all(|(turns, before)| *turns > before));
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A pin directory of this test's own, taken down at the end whatever happened.
pub struct Pin {
    pub path: PathBuf,
    edge: Netns,
}

impl Pin {
    pub fn new(edge: &Netns) -> Self {
        let bpffs = Path::new("/sys/fs/bpf");
        // What a killed test left is known by its namespace, which is gone.
        for left in std::fs::read_dir(bpffs).unwrap().flatten() {
            let name = left.file_name().into_string().unwrap_or_default();
            if name.starts_with("pc-") && !Path::new("/run/netns").join(&name).exists() {
                let _ = std::fs::remove_dir_all(left.path());
            }
        }
        let path = bpffs.join(edge.name());
        Self { path, edge: edge.clone() }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let _ = self.edge.enter(|| gate::detach(&self.path));
    }
}

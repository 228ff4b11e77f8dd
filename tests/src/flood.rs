//! A flood of openings from random sources at a node, and who is served meanwhile.
//!
//! The flood comes from the stranger's link: Initials, half of them such as a real client makes (so that each which
//! passes the gate costs the node a handshake) and half of noise, and a SYN for every four. Clients come from the
//! office's link, each kind from a network of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use portcullis_common::DeviceKeys;

use crate::bench::{self, Flooded, Options};
use crate::gate::packet::{self, Path};
use crate::gate::quic;
use crate::gate::wire::Wire;
use crate::netns::Netns;
use crate::portcullis::Connector;
use crate::process::wait_until;
use crate::quic::Client;
use crate::tunnel_lab::{FOR_OFFICE, FOR_STRANGER, PORT, TunnelLab, device, wall};

/// Networks of the clients, on the office's link. The connector's is one with a recent login; the others are new.
const RECENT: &str = "198.51.100.2";
const KNOCKING: &str = "203.0.113.2";
const UNKNOWN: &str = "198.18.9.2";

/// Frames of a flood that come again and again, each from a source of its own: a power of two.
const FORGED: usize = 8_192;
/// Frames that are sent together, and one SYN in so many.
const BATCH: usize = 64;
const SYN_IN: usize = 5;

/// How many packets, how fast.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Ends the flood after so many, if the clients have not.
    pub packets: u64,
    /// At most, in a second; what the machine makes, if it makes less.
    pub per_second: u64,
    /// Different first packets. The node knows an attempt by its ID, so one that comes again costs it nothing.
    pub attempts: usize,
    /// A client waits so long for its handshake.
    pub patience: Duration,
}

/// Handshakes of one kind of client.
#[derive(Clone, Copy, Debug, Default)]
pub struct Served {
    pub tried: u32,
    pub completed: u32,
    /// The slowest that completed.
    pub slowest: Duration,
}

impl Served {
    pub fn share(&self) -> f64 {
        f64::from(self.completed) / f64::from(self.tried.max(1))
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Packets of the flood, and how long it took.
    pub sent: u64,
    pub took: Duration,
    /// Packets that the gate counted in that time, and how many of them it passed.
    pub counted: u64,
    pub passed: u64,
    /// Of a CPU, on average.
    pub daemon: f64,
    pub knocking: Served,
    pub recent: Served,
    pub unknown: Served,
}

/// Stands up a node and floods it. Each kind of client begins `handshakes` of them, `pause` apart.
pub fn run(dark: bool, load: Load, handshakes: u32, pause: Duration) -> Result<Outcome> {
    let mut lab = TunnelLab::start("xdp", dark)?;
    for (address, at_edge) in [(KNOCKING, "203.0.113.1"), (UNKNOWN, "198.18.9.1")] {
        lab.office.address("eth0", &format!("{address}/24"))?;
        lab.edge.address("eth1", &format!("{at_edge}/24"))?;
    }
    // So that what the node answers to forged sources goes somewhere.
    lab.edge.route("default", "192.0.2.2")?;
    let keys = device(&lab.token("knocks", 0)?)?;
    let token = lab.token("hq", 0)?;
    let _connector = Connector::enrol(&lab.dir.join("hq"), Some(&lab.office), &token)?;
    lab.connected("hq", 2)?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Client::new()?;
    let flood = Flood::prepare(&lab, &client, &runtime, load.attempts)?;
    let pid = lab.node.process()?.pid();
    let before = (gate_packets(&lab)?, cpu_time(pid)?);
    let stop = AtomicBool::new(false);
    let began = Instant::now();
    let (sent, took, [knocking, recent, unknown]) = std::thread::scope(|scope| {
        let flooding = scope.spawn(|| flood.send(load, &stop));
        let served = runtime.block_on(clients(&lab.office, &client, keys, load, handshakes, pause));
        stop.store(true, Ordering::Relaxed);
        let (sent, took) = flooding.join().map_err(|_| anyhow::anyhow!("the flood ended badly"))??;
        Ok::<_, anyhow::Error>((sent, took, served?))
    })?;
    let elapsed = began.elapsed();
    let after = (gate_packets(&lab)?, cpu_time(pid)?);
    Ok(Outcome {
        sent,
        took,
        counted: after.0.0 - before.0.0,
        passed: after.0.1 - before.0.1,
        daemon: (after.1 - before.1).as_secs_f64() / elapsed.as_secs_f64(),
        knocking,
        recent,
        unknown,
    })
}

/// The relay of a node under a flood of at least so many packets a second.
pub fn relay(dark: bool, attempts: usize, per_second: u64, options: &Options) -> Result<Flooded> {
    let lab = TunnelLab::start("xdp", dark)?;
    lab.edge.route("default", "192.0.2.2")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let flood = Flood::prepare(&lab, &Client::new()?, &runtime, attempts)?;
    let mut random = Random::new();
    let frames = flood.frames.iter().cycle().take(FORGED).map(|template| {
        let mut frame = template.clone();
        forge(&mut frame, &mut random);
        frame
    });
    let frames = frames.collect();
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| {
            // What else runs here takes the CPU away less often. It is for this thread and those it starts; the node runs already.
            rustix::process::nice(-20).context("taking priority needs root")?;
            bench::under_flood(&lab, frames, per_second as f64, options)
        });
        measuring.join().map_err(|_| anyhow::anyhow!("the measurement ended badly"))?
    })
}

/// Begins handshakes of each kind, and waits for the last.
async fn clients(
    office: &Netns,
    client: &Client,
    keys: DeviceKeys,
    load: Load,
    handshakes: u32,
    pause: Duration,
) -> Result<[Served; 3]> {
    let to = SocketAddr::new(FOR_OFFICE[0].parse()?, PORT);
    let mut running = tokio::task::JoinSet::new();
    for turn in 0..handshakes {
        for (kind, from) in [KNOCKING, RECENT, UNKNOWN].into_iter().enumerate() {
            let from: IpAddr = from.parse()?;
            let socket = office.enter(|| UdpSocket::bind((from, 0)))??;
            let knock = (kind == 0)
                .then(|| keys.knock(wall(), u64::from(turn) << 32 | wall() & 0xffff_ffff).to_bytes());
            let client = client.clone();
            running.spawn(async move {
                let began = Instant::now();
                let id = knock.as_ref().map(|knock| &knock[..]);
                let done = client.handshake(socket, to, id, load.patience).await;
                (kind, done.is_ok(), began.elapsed())
            });
        }
        tokio::time::sleep(pause).await;
    }
    let mut served = [Served::default(); 3];
    while let Some(ended) = running.join_next().await {
        let (kind, completed, took) = ended?;
        let of_kind = served.get_mut(kind).context("three kinds")?;
        of_kind.tried += 1;
        if completed {
            of_kind.completed += 1;
            of_kind.slowest = of_kind.slowest.max(took);
        }
    }
    Ok(served)
}

/// Frames to send again and again, each time from another source.
struct Flood {
    wire: Wire,
    frames: Vec<Vec<u8>>,
}

impl Flood {
    fn prepare(
        lab: &TunnelLab,
        client: &Client,
        runtime: &tokio::runtime::Runtime,
        attempts: usize,
    ) -> Result<Self> {
        let path = Path::new("192.0.2.2", FOR_STRANGER[0]);
        let mac = lab.edge.mac("eth0")?;
        let mut random = Random::new();
        let mut initials = Vec::new();
        for turn in 0..2 * attempts {
            let id = [random.next(), random.next()].map(u64::to_be_bytes).concat();
            initials.push(if turn % 2 == 0 {
                runtime.block_on(client.first_packet(&id))?
            } else {
                quic::initial(&id)
            });
        }
        let mut frames = Vec::new();
        for (turn, initial) in initials.iter().enumerate() {
            frames.push(path.udp(40_000, PORT, initial));
            if turn % (SYN_IN - 1) == 0 {
                frames.push(path.tcp(40_000, PORT, packet::SYN, 1, 0));
            }
        }
        for frame in &mut frames {
            frame[..6].copy_from_slice(&mac);
        }
        let wire = Wire::on(&lab.stranger, "eth0")?;
        wire.bypass_queue()?;
        Ok(Self { wire, frames })
    }

    fn send(&self, load: Load, stop: &AtomicBool) -> Result<(u64, Duration)> {
        let mut random = Random::new();
        let mut batch = Vec::new();
        let (began, mut sent) = (Instant::now(), 0);
        let mut templates = self.frames.iter().cycle();
        while sent < load.packets && !stop.load(Ordering::Relaxed) {
            batch.clear();
            for _ in 0..BATCH {
                let Some(template) = templates.next() else { break };
                let mut frame = template.clone();
                forge(&mut frame, &mut random);
                batch.push(frame);
            }
            sent += self.wire.send_many(&batch)? as u64;
            let due = Duration::from_secs_f64(sent as f64 / load.per_second as f64);
            if let Some(early) = due.checked_sub(began.elapsed())
                && early > Duration::from_micros(200)
            {
                std::thread::sleep(early);
            }
        }
        Ok((sent, began.elapsed()))
    }
}

/// Gives a frame another source: address and port, anywhere in the first half of the unicast addresses.
fn forge(frame: &mut [u8], random: &mut Random) {
    let word = random.next();
    let source = Ipv4Addr::from_bits(0x0b00_0000 + (word as u32 & 0x3fff_ffff));
    let ip = packet::L3;
    frame[ip + 12..ip + 16].copy_from_slice(&source.octets());
    frame[ip + 10..ip + 12].fill(0);
    let sum = packet::checksum(&frame[ip..ip + 20]);
    frame[ip + 10..ip + 12].copy_from_slice(&sum);
    let port = 1_024 + (word >> 40) as u16 % 60_000;
    frame[ip + 20..ip + 22].copy_from_slice(&port.to_be_bytes());
    if frame[ip + 9] == packet::TCP {
        let path =
            Path { remote: source.into(), local: Ipv4Addr::from_octets(octets(&frame[ip + 16..])).into() };
        frame[ip + 36..ip + 38].fill(0);
        let sum = path.checksum(packet::TCP, &frame[ip + 20..]);
        frame[ip + 36..ip + 38].copy_from_slice(&sum);
    } else {
        // None: IPv4 allows that.
        frame[ip + 26..ip + 28].fill(0);
    }
}

fn octets(bytes: &[u8]) -> [u8; 4] {
    [bytes[0], bytes[1], bytes[2], bytes[3]]
}

/// Packets that the gate has counted: all, and those it passed. The daemon reads the counters now and then.
fn gate_packets(lab: &TunnelLab) -> Result<(u64, u64)> {
    let mut last = None;
    wait_until("the gate's counters to stand still", Duration::from_secs(60), || {
        let text = lab.node.metrics()?;
        let (mut all, mut passed) = (0, 0);
        for line in text.lines().filter(|line| line.starts_with("portcullis_gate_packets_total{")) {
            let count: f64 = line.rsplit(' ').next().unwrap_or_default().parse()?;
            all += count as u64;
            if line.contains("verdict=\"pass\"") {
                passed += count as u64;
            }
        }
        let settled = last.is_some_and(|(before, _): (u64, u64)| all - before < 100);
        last = Some((all, passed));
        if !settled {
            std::thread::sleep(Duration::from_millis(1_500));
        }
        Ok(settled.then_some((all, passed)))
    })
}

/// Time that a process has had a CPU for.
fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| Ok(field.parse::<u64>()?))
        .sum::<Result<u64>>()?;
    Ok(Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second()))
}

/// xorshift64* (Vigna, 2016): cheap, and nothing here has to be secret.
struct Random(u64);

impl Random {
    fn new() -> Self {
        Self(wall() | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

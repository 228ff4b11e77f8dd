//! The relay as it is measured: the gate's own program, with flows written into its pinned maps as the daemon writes them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use portcullis::gate::Gate;
use portcullis_common::layout::{FlowEntry, FlowKey4, Hop, Session, VERSION};
use portcullis_common::{Address, DropReason, Family, Flow, RelayReason, Verdict};

use super::contender::{Contender, CountAt};
use super::figure::{Figure, Target, Unit};
use super::lab::{Lab, SINK, TUNNEL, ifindex};
use super::measure::{Samples, rounds};
use super::traffic::{Traffic, sources};
use super::{Options, gate};

/// Leaves by the interface that the packet came by.
pub const ONE_PORT: &str = "Portcullis relay";
/// Leaves by another.
pub const TWO_PORTS: &str = "Portcullis relay, two interfaces";

/// Why there is no figure.
pub const ABSENT: &str = "not measured";

/// Idle flows beside the active one.
const INSTALLED: [(&str, u32); 3] =
    [("one flow", 1), ("one flow among 1,000", 1_000), ("one flow among 100,000", 100_000)];
/// Runs that are revoked in the middle.
const REVOCATIONS: u32 = 20;

/// The gate with so many flows installed, from `traffic::sources` to `lab::TUNNEL`, relayed to the generator's own link in a lab with
/// one port and to `lab::SINK` in a lab with two.
pub fn install_relay(flows: u32, options: &Options) -> Result<Vec<Contender>> {
    let traffic = Traffic::flows(flows, TUNNEL)?;
    let one = Relay::one_port(flows)?;
    let two = Relay::two_ports(flows)?;
    Ok(vec![
        Contender::new(ONE_PORT, one.lab, &traffic, CountAt::Generator, options.cpu, one.gate)?,
        Contender::new(TWO_PORTS, two.lab, &traffic, CountAt::Sink, options.cpu, two.gate)?,
    ])
}

/// What the relay alone is asked: whether flows that are idle cost the active one, and whether a revoked session is over when the call
/// returns, counted at the gate.
pub fn figures(options: &Options) -> Result<Vec<Figure>> {
    let traffic = Traffic::flows(1, TUNNEL)?;
    let mut contenders = Vec::new();
    for (name, installed) in INSTALLED {
        let relay = Relay::one_port(installed)?;
        contenders.push(Contender::new(
            name,
            relay.lab,
            &traffic,
            CountAt::Generator,
            options.cpu,
            relay.gate,
        )?);
    }
    let samples = rounds(&contenders, options)?;
    let [alone, among @ ..] = &samples[..] else { unreachable!("one for each") };
    let mut figures: Vec<Figure> = among.iter().map(|busy| per_packet(alone, busy)).collect();
    let passed = revocations(options)?;
    figures.push(Figure::new(
        "packets of a revoked session passed",
        passed as f64,
        Unit::Packets,
        Target::Zero,
    ));
    Ok(figures)
}

/// Time per packet: the reciprocal of packets a second.
fn per_packet(alone: &Samples, busy: &Samples) -> Figure {
    Figure::ratio(&format!("time per packet of {}", busy.name), alone, busy, Target::AtMost(1.1))
}

/// Packets that the gate sent on after the revocation had returned, while the generator never paused.
fn revocations(options: &Options) -> Result<u64> {
    let mut passed = 0;
    for _ in 0..REVOCATIONS {
        let relay = Relay::one_port(1)?;
        let contender =
            Contender::new(ONE_PORT, relay.lab, &Traffic::flows(1, TUNNEL)?, CountAt::Node, options.cpu, ())?;
        let (gate, mut sessions) = (relay.gate, relay.sessions);
        let sending = std::thread::spawn(move || {
            for _ in 0..3 {
                contender.measure(Duration::from_millis(100))?;
            }
            anyhow::Ok(contender)
        });
        std::thread::sleep(Duration::from_millis(150));
        let session = Session { generation: 2, ..sessions.get(&0, 0)? };
        sessions.set(0, session, 0)?;
        barrier()?;
        let relayed = relayed(&gate)?;
        let refused = gate.counters()?.of(Verdict::Drop(DropReason::RelayRevoked));
        let contender = sending.join().map_err(|_| anyhow::anyhow!("the generator panicked"))??;
        contender.measure(Duration::from_millis(50))?;
        passed += self::relayed(&gate)? - relayed;
        ensure!(relayed > 0, "control: nothing was relayed before the revocation");
        let refused = gate.counters()?.of(Verdict::Drop(DropReason::RelayRevoked)) - refused;
        ensure!(refused > 0, "control: nothing arrived after the revocation");
    }
    Ok(passed)
}

/// Until every CPU has left what it was running.
fn barrier() -> Result<()> {
    const GLOBAL: libc::c_int = 1;
    // SAFETY: takes integers only.
    let status = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    ensure!(status == 0, "membarrier: {}", std::io::Error::last_os_error());
    Ok(())
}

fn relayed(gate: &Gate) -> Result<u64> {
    let counters = gate.counters()?;
    Ok(counters.of(Verdict::Relay(RelayReason::Transmit))
        + counters.of(Verdict::Relay(RelayReason::Redirect)))
}

struct Relay {
    lab: Lab,
    gate: Gate,
    sessions: Array<MapData, Session>,
}

impl Relay {
    fn one_port(flows: u32) -> Result<Self> {
        let lab = Lab::one_port("relay")?;
        let hop = Hop {
            ifindex: ifindex(&lab.node, "in0")?,
            destination: [2, 0, 0, 0, 0, 2],
            source: [2, 0, 0, 0, 0, 1],
            ..HOP
        };
        Self::install(lab, hop, flows, ([198, 18, 0, 1], 5_000))
    }

    fn two_ports(flows: u32) -> Result<Self> {
        let lab = Lab::two_ports("relay2")?;
        let hop = Hop {
            ifindex: ifindex(&lab.node, "out0")?,
            destination: [2, 0, 0, 0, 0, 4],
            source: [2, 0, 0, 0, 0, 3],
            ..HOP
        };
        Self::install(lab, hop, flows, ([198, 19, 0, 1], SINK.port()))
    }

    /// A session for each flow, of a thousand people.
    fn install(mut lab: Lab, hop: Hop, flows: u32, (far, far_port): ([u8; 4], u16)) -> Result<Self> {
        let (gate, _) = gate::open(&lab)?;
        let mut sessions: Array<MapData, Session> = open(&lab, "SESSION")?;
        let count = flows.min(portcullis_common::layout::SESSIONS);
        for index in 0..count {
            sessions.set(
                index,
                Session { generation: 1, identity: index % 1_000, epoch: 0, expires: u64::MAX },
                0,
            )?;
        }
        let mut hops: Array<MapData, Hop> = open(&lab, "NEXTHOP")?;
        hops.set(0, hop, 0)?;
        let mut entries: HashMap<MapData, FlowKey4, FlowEntry> = open(&lab, "FLOW4")?;
        let node = Address::from(TUNNEL.ip());
        let v4 = |remote, remote_port| Flow {
            family: Family::V4,
            local: node,
            remote,
            local_port: TUNNEL.port(),
            remote_port,
        };
        for (index, source) in (0..).zip(sources(flows)) {
            let arriving = v4(Address::from(source.ip()), source.port());
            let entry = FlowEntry {
                session: index % count,
                generation: 1,
                ..FlowEntry::rewrite(&arriving, &v4(Address::v4(far), far_port))
            };
            entries.insert(FlowKey4::new(&arriving), entry, 0)?;
        }
        lab.absorb()?;
        Ok(Self { lab, gate, sessions })
    }
}

const HOP: Hop = Hop {
    ifindex: 0,
    mtu: 1_500,
    tags: 0,
    tag: [[0; 4]; 2],
    destination: [0; 6],
    source: [0; 6],
    zero: [0; 4],
};

fn open<T: TryFrom<Map, Error = MapError>>(lab: &Lab, name: &str) -> Result<T> {
    let path = lab.node.bpffs().join(format!("maps_{VERSION}")).join(name);
    let data = MapData::from_pin(&path).with_context(|| path.display().to_string())?;
    Ok(T::try_from(Map::from_map_data(data)?)?)
}

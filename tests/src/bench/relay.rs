//! The relay as it is measured: the gate's own program. A session that is revoked is granted as the daemon would; flows by the
//! thousand, more than sessions have room, are written into the pinned maps.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use portcullis::gate::{FlowGrant, Gate, PeerAddress};
use portcullis_common::layout::{FlowEntry, FlowKey4, Hop, Session, VERSION};
use portcullis_common::{Address, Family, Flow, RelayReason, Verdict};

use super::contender::{Contender, CountAt};
use super::figure::{Figure, Target, Unit};
use super::lab::{Lab, SINK, TUNNEL, ifindex};
use super::measure::{Samples, rounds};
use super::traffic::{Traffic, sources};
use super::{Options, gate};
use crate::netns::Netns;

/// Leaves by the interface that the packet came by.
pub const ONE_PORT: &str = "Portcullis relay";
/// Leaves by another.
pub const TWO_PORTS: &str = "Portcullis relay, two interfaces";

/// Why there is no figure.
pub const ABSENT: &str = "not measured";

/// Idle flows beside the active one.
const INSTALLED: [(&str, u32); 3] =
    [("one flow", 1), ("one flow among 1,000", 1_000), ("one flow among 100,000", 100_000)];
/// Where relayed packets go in a lab with one port: the generator's own link.
const FAR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), 5_000);
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

/// Whether flows that are idle cost the active one.
pub fn among(options: &Options) -> Result<Vec<Figure>> {
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
    Ok(among.iter().map(|busy| per_packet(alone, busy)).collect())
}

/// Whether a revoked session is over when the call returns, counted at the gate.
pub fn revoked(options: &Options) -> Result<Figure> {
    let passed = revocations(options)?;
    Ok(Figure::new("packets of a revoked session passed", passed as f64, Unit::Packets, Target::Zero))
}

/// Time per packet: the reciprocal of packets a second.
fn per_packet(alone: &Samples, busy: &Samples) -> Figure {
    Figure::ratio(&format!("time per packet of {}", busy.name), alone, busy, Target::AtMost(1.1))
}

/// Packets that the gate sent on after [`Relay::revoke`](portcullis::gate::Relay::revoke) had returned, while the generator never
/// paused.
fn revocations(options: &Options) -> Result<u64> {
    let mut passed = 0;
    for _ in 0..REVOCATIONS {
        let traffic = Traffic::flows(1, TUNNEL)?;
        let source = sources(1).next().context("one source")?;
        let mut lab = Lab::one_port("revoke")?;
        let (gate, _) = gate::open(&lab)?;
        for neighbour in [source.ip(), FAR.ip()] {
            let to = format!("ip neigh replace {neighbour} lladdr 02:00:00:00:00:02 dev in0 nud permanent");
            lab.node.run(&to)?;
        }
        let relay = gate.relay().context("a gate that relays")?;
        let session = relay.open_session(relay.identity("somebody")?, Duration::from_secs(600))?;
        let client = PeerAddress { local: TUNNEL, remote: source };
        let connector = PeerAddress { local: TUNNEL, remote: FAR };
        relay.install(&FlowGrant { session, client, connector })?;
        lab.absorb()?;
        let contender = Contender::new(ONE_PORT, lab, &traffic, CountAt::Node, options.cpu, ())?;
        let sending = std::thread::spawn(move || {
            for _ in 0..3 {
                contender.measure(Duration::from_millis(100))?;
            }
            anyhow::Ok(contender)
        });
        std::thread::sleep(Duration::from_millis(150));
        relay.revoke(session)?;
        let (relayed, dropped) = (relayed(&gate)?, gate.counters()?.dropped());
        let contender = sending.join().map_err(|_| anyhow::anyhow!("the generator panicked"))??;
        contender.measure(Duration::from_millis(50))?;
        passed += self::relayed(&gate)? - relayed;
        ensure!(relayed > 0, "control: nothing was relayed before the revocation");
        ensure!(gate.counters()?.dropped() > dropped, "control: nothing arrived after the revocation");
    }
    Ok(passed)
}

fn relayed(gate: &Gate) -> Result<u64> {
    let counters = gate.counters()?;
    Ok(counters.of(Verdict::Relay(RelayReason::Transmit))
        + counters.of(Verdict::Relay(RelayReason::Redirect)))
}

struct Relay {
    lab: Lab,
    gate: Gate,
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
        Self::install(lab, hop, flows, FAR)
    }

    fn two_ports(flows: u32) -> Result<Self> {
        let lab = Lab::two_ports("relay2")?;
        let hop = Hop {
            ifindex: ifindex(&lab.node, "out0")?,
            destination: [2, 0, 0, 0, 0, 4],
            source: [2, 0, 0, 0, 0, 3],
            ..HOP
        };
        Self::install(lab, hop, flows, SINK)
    }

    /// A session for each flow, of a thousand people.
    fn install(mut lab: Lab, hop: Hop, flows: u32, far: SocketAddr) -> Result<Self> {
        let (gate, _) = gate::open(&lab)?;
        let mut sessions: Array<MapData, Session> = map(&lab.node, "SESSION")?;
        let count = flows.min(portcullis_common::layout::SESSIONS);
        for index in 0..count {
            sessions.set(
                index,
                Session { generation: 1, identity: index % 1_000, epoch: 0, expires: u64::MAX },
                0,
            )?;
        }
        let mut hops: Array<MapData, Hop> = map(&lab.node, "NEXTHOP")?;
        hops.set(0, hop, 0)?;
        let mut entries: HashMap<MapData, FlowKey4, FlowEntry> = map(&lab.node, "FLOW4")?;
        let node = Address::from(TUNNEL.ip());
        for (index, source) in (0..).zip(sources(flows)) {
            let arriving = v4(node, TUNNEL.port(), source);
            let entry = FlowEntry {
                session: index % count,
                generation: 1,
                ..FlowEntry::rewrite(&arriving, &v4(node, TUNNEL.port(), far))
            };
            entries.insert(FlowKey4::new(&arriving), entry, 0)?;
        }
        lab.absorb()?;
        Ok(Self { lab, gate })
    }
}

/// What every next hop here has in common.
pub const HOP: Hop = Hop {
    ifindex: 0,
    mtu: 1_500,
    tags: 0,
    tag: [[0; 4]; 2],
    destination: [0; 6],
    source: [0; 6],
    zero: [0; 4],
};

/// A flow between the node and an end, IPv4.
pub fn v4(node: Address, port: u16, end: SocketAddr) -> Flow {
    Flow {
        family: Family::V4,
        local: node,
        remote: Address::from(end.ip()),
        local_port: port,
        remote_port: end.port(),
    }
}

/// A map of the gate in a namespace.
pub fn map<T: TryFrom<Map, Error = MapError>>(netns: &Netns, name: &str) -> Result<T> {
    let path = netns.bpffs().join(format!("maps_{VERSION}")).join(name);
    let data = MapData::from_pin(&path).with_context(|| path.display().to_string())?;
    Ok(T::try_from(Map::from_map_data(data)?)?)
}

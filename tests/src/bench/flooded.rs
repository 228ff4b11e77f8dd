//! The relay of a running node while strangers flood its interface, against the same relay with a program in front of the gate that
//! drops the flood by one comparison of a link address.
//!
//! Flow and flood come from one generator, mixed at random, so that one CPU and one queue carry both. The two take turns on one node.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail, ensure};
use portcullis_common::Address;
use portcullis_common::layout::{FlowEntry, FlowKey4, Hop, Session};

use super::generator::Generator;
use super::lab::{Port, attach, ifindex};
use super::measure::Samples;
use super::relay::{HOP, map, v4};
use super::{Front, Options, program};
use crate::gate::packet::{self, Path, UDP};
use crate::tunnel_lab::{FOR_OFFICE, FOR_STRANGER, PORT, TunnelLab};

/// Whom the comparison finds.
pub const FLOOD_FROM: [u8; 6] = [0x02, 0x0f, 0x0f, 0x0f, 0, 1];
const FLOW_FROM: [u8; 6] = [0x02, 0, 0, 0, 0, 2];
/// The flow's ends.
const ENDS: [(&str, u16); 2] = [("192.0.2.2", 5_000), ("198.51.100.2", 5_001)];
/// One frame in so many may be the flood's.
const SHARES: [u32; 7] = [128, 64, 32, 16, 8, 4, 2];

/// Packets a second of the flow that arrive.
pub struct Flooded {
    pub gate: Samples,
    pub compared: Samples,
    /// Packets a second of the flood at the gate, on average.
    pub flood: f64,
}

/// Sends what the CPU can, with at least `per_second` packets of the flood in it. Nobody else can use the lab's outer namespaces
/// from here on.
pub fn under_flood(
    lab: &TunnelLab,
    mut flood: Vec<Vec<u8>>,
    per_second: f64,
    options: &Options,
) -> Result<Flooded> {
    let length = flood.iter().map(Vec::len).max().context("a flood")?.next_multiple_of(8);
    for frame in &mut flood {
        frame[6..12].copy_from_slice(&FLOOD_FROM);
        frame.resize(length, 0);
    }
    let [edge_mac, office_mac, out_mac] =
        [(&lab.edge, "eth0"), (&lab.office, "eth0"), (&lab.edge, "eth1")].map(|(of, name)| of.mac(name));
    let (edge_mac, office_mac, out_mac) = (edge_mac?, office_mac?, out_mac?);
    install(lab, Hop { destination: office_mac, source: out_mac, ..HOP })?;
    let drop = program::bare_drop()?;
    let _ends = [attach(&lab.stranger, "eth0", drop.as_fd())?, attach(&lab.office, "eth0", drop.as_fd())?];
    // What the node answers goes on its way, though nobody there says where it is.
    let hex = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    lab.edge.run(&format!("ip neigh replace 192.0.2.2 lladdr {} dev eth0 nud permanent", hex(FLOW_FROM)))?;

    let path = Path::new(ENDS[0].0, FOR_STRANGER[0]);
    let mut datagram = packet::udp(ENDS[0].1, PORT, &vec![0x40; length - packet::L3 - 20 - 8]);
    let sum = path.checksum(UDP, &datagram);
    datagram[6..8].copy_from_slice(&sum);
    let mut flow = path.frame(UDP, &datagram);
    flow[..6].copy_from_slice(&edge_mac);
    flow[6..12].copy_from_slice(&FLOW_FROM);

    let [a, b, c, d, ..] = FLOOD_FROM;
    let front = Front::new(&lab.edge, "eth0", &lab.edge.bpffs(), Some([a, b, c, d]))?;
    let bench = Bench { lab, options };
    let generator = bench.find_share(&flow, &flood, per_second)?;
    let mut found = Flooded {
        gate: Samples { name: "the gate".to_owned(), rates: Vec::new() },
        compared: Samples { name: "one comparison".to_owned(), rates: Vec::new() },
        flood: 0.0,
    };
    for round in 0..options.runs {
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                front.take_away()?;
                let [flow, flood] = bench.run(&generator)?;
                found.gate.rates.push(flow);
                found.flood += flood / options.runs as f64;
            } else {
                front.put()?;
                found.compared.rates.push(bench.run(&generator)?[0]);
            }
        }
    }
    front.take_away()?;
    Ok(found)
}

struct Bench<'a> {
    lab: &'a TunnelLab,
    options: &'a Options,
}

impl Bench<'_> {
    /// The generator with the smallest share of the flood that makes its rate.
    fn find_share(&self, flow: &[u8], flood: &[Vec<u8>], per_second: f64) -> Result<Generator> {
        let netns = &self.lab.stranger;
        for one_in in SHARES {
            let program = program::flooded(flow, flood, one_in, ifindex(netns, "eth0")?)?;
            let generator = Generator::of(program, netns, flow.len(), self.options.cpu);
            // Once to learn how many packets make a run.
            self.run(&generator)?;
            let [_, rate] = self.run(&generator)?;
            if rate >= per_second {
                return Ok(generator);
            }
        }
        bail!("this CPU makes no flood of {per_second} packets/s")
    }

    /// Packets a second of the flow that arrived, and of the rest that reached the node.
    fn run(&self, generator: &Generator) -> Result<[f64; 2]> {
        let node = Port { netns: &self.lab.edge, name: "eth0" };
        let office = Port { netns: &self.lab.office, name: "eth0" };
        let before = [node.packets()?, office.packets()?];
        let sent = generator.send(self.options.length)?;
        let [reached, arrived] = [node.packets()? - before[0], office.packets()? - before[1]];
        ensure!(arrived > 0, "nothing is relayed");
        ensure!(arrived <= reached, "{arrived} packets arrived of {reached}");
        Ok([arrived, reached - arrived].map(|packets| packets as f64 / sent.elapsed.as_secs_f64()))
    }
}

/// A session of the relay that never ends, and its flow from the stranger's link to the office's.
fn install(lab: &TunnelLab, hop: Hop) -> Result<()> {
    let end = |(address, port): (&str, u16)| anyhow::Ok(SocketAddr::new(address.parse()?, port));
    let [client, connector] = [end(ENDS[0])?, end(ENDS[1])?];
    let node = |address: &str| anyhow::Ok(Address::from(address.parse::<std::net::IpAddr>()?));
    let arriving = v4(node(FOR_STRANGER[0])?, PORT, client);
    let leaving = v4(node(FOR_OFFICE[0])?, PORT, connector);
    let hop = Hop { ifindex: ifindex(&lab.edge, "eth1")?, ..hop };
    let session = Session { generation: 1, identity: 0, epoch: 0, expires: u64::MAX };
    let entry = FlowEntry { session: 0, generation: 1, ..FlowEntry::rewrite(&arriving, &leaving) };
    map::<aya::maps::Array<_, Session>>(&lab.edge, "SESSION")?.set(0, session, 0)?;
    map::<aya::maps::Array<_, Hop>>(&lab.edge, "NEXTHOP")?.set(0, hop, 0)?;
    map::<aya::maps::HashMap<_, FlowKey4, FlowEntry>>(&lab.edge, "FLOW4")?.insert(
        FlowKey4::new(&arriving),
        entry,
        0,
    )?;
    Ok(())
}

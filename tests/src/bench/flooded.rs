//! The relay of a running node while strangers flood its interface, against the same relay with a program in front of the gate that
//! drops the flood by one comparison of a link address.
//!
//! Flow and flood come from one generator, mixed at random, so that one CPU and one queue carry both. The two take turns on one node.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use portcullis_common::Address;
use portcullis_common::layout::{FlowEntry, FlowKey4, Hop, Session};

use super::generator::Generator;
use super::lab::{Port, attach, ifindex};
use super::measure::Samples;
use super::relay::{HOP, map, v4};
use super::{Front, Options, program, sys};
use crate::gate::packet::{self, Path, UDP};
use crate::tunnel_lab::{FOR_OFFICE, FOR_STRANGER, PORT, TunnelLab};

/// Whom the comparison finds.
pub const FLOOD_FROM: [u8; 6] = [0x02, 0x0f, 0x0f, 0x0f, 0, 1];
const FLOW_FROM: [u8; 6] = [0x02, 0, 0, 0, 0, 2];
/// The flow's ends.
const ENDS: [(&str, u16); 2] = [("192.0.2.2", 5_000), ("198.51.100.2", 5_001)];
/// The flood is made faster than asked for by so much, so that what its rate varies by does not make it slower.
const AIM: f64 = 1.05;
/// The largest share of frames that are the flood's. A CPU that needs more makes no flood of the rate.
const MOST: f64 = 0.5;
/// Runs before those that count: the first tells how many packets make a run, the others correct the flood's share.
const SETTLING: usize = 4;

/// Packets a second of the flow that arrive.
pub struct Flooded {
    pub gate: Samples,
    pub compared: Samples,
    /// Packets a second of the flood, on average: at the gate, and at the comparison.
    pub flood: [f64; 2],
}

/// Sends what the CPU can, with about `per_second` packets of the flood in it, rather more than less: the share of frames that are the
/// flood's follows from how many of all a second the run before had, for each of the two by itself. Nobody else can use the lab's outer namespaces
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
    let bench = Bench::new(lab, options, &flow, &flood, per_second)?;
    front.put()?;
    let mut compared = bench.settle()?;
    front.take_away()?;
    let mut gate = bench.settle()?;
    let mut found = Flooded {
        gate: Samples { name: "the gate".to_owned(), rates: Vec::new() },
        compared: Samples { name: "one comparison".to_owned(), rates: Vec::new() },
        flood: [0.0; 2],
    };
    for round in 0..options.runs {
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                front.take_away()?;
                let [flow, flood] = bench.run(&mut gate)?;
                found.gate.rates.push(flow);
                found.flood[0] += flood / options.runs as f64;
            } else {
                front.put()?;
                let [flow, flood] = bench.run(&mut compared)?;
                found.compared.rates.push(flow);
                found.flood[1] += flood / options.runs as f64;
            }
        }
    }
    front.take_away()?;
    Ok(found)
}

struct Bench<'a> {
    lab: &'a TunnelLab,
    options: &'a Options,
    generator: Generator,
    /// Of 2^32 frames, so many are the flood's.
    share: OwnedFd,
    per_second: f64,
}

impl<'a> Bench<'a> {
    fn new(
        lab: &'a TunnelLab,
        options: &'a Options,
        flow: &[u8],
        flood: &[Vec<u8>],
        per_second: f64,
    ) -> Result<Self> {
        let share = sys::array_of_one(&0u64.to_ne_bytes())?;
        let program = program::flooded(flow, flood, share.as_fd(), ifindex(&lab.stranger, "eth0")?)?;
        let generator = Generator::of(program, &lab.stranger, flow.len(), options.cpu);
        Ok(Self { lab, options, generator, share, per_second })
    }

    /// The share that gives the flood its rate.
    fn settle(&self) -> Result<f64> {
        let mut share = 0.01;
        for _ in 0..SETTLING {
            self.run(&mut share)?;
        }
        Ok(share)
    }

    /// Packets a second of the flow that arrived, and of the rest that reached the node. The share is corrected for the next run.
    fn run(&self, share: &mut f64) -> Result<[f64; 2]> {
        let node = Port { netns: &self.lab.edge, name: "eth0" };
        let office = Port { netns: &self.lab.office, name: "eth0" };
        let words = (*share * f64::from(u32::MAX)) as u64;
        sys::set_one(self.share.as_fd(), &words.to_ne_bytes())?;
        let before = [node.packets()?, office.packets()?];
        let sent = self.generator.send(self.options.length)?;
        let [reached, arrived] = [node.packets()? - before[0], office.packets()? - before[1]];
        ensure!(arrived > 0, "nothing is relayed");
        ensure!(arrived <= reached, "{arrived} packets arrived of {reached}");
        let [flow, flood] =
            [arrived, reached - arrived].map(|packets| packets as f64 / sent.elapsed.as_secs_f64());
        *share = (self.per_second * AIM / (flow + flood)).min(MOST);
        Ok([flow, flood])
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

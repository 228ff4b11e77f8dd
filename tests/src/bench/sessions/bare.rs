//! A bare redirect in the gate's place, under a session that goes on.
//!
//! The gate's links stay where they are; their program is replaced (`BPF_LINK_UPDATE`) by one that knows the addresses of one flow
//! as constants. It makes of the flow's packets what the gate makes of them, and passes all others to the stack. It looks nothing
//! up, checks nothing and counts nothing.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use portcullis_common::Flow;
use portcullis_common::layout::{FlowEntry, FlowKey4, Hop, VERSION};

use super::super::asm::{Alu, Program, R1, R2, R3, R4, R6, R7, R8, Width};
use super::super::{program, sys};

/// Both interfaces' links, with the gate's program and the bare one of each.
pub struct Swap {
    sides: Vec<Side>,
}

struct Side {
    link: OwnedFd,
    gate: OwnedFd,
    bare: OwnedFd,
}

impl Swap {
    /// For the session of the gate at `pin` that has had the most packets.
    pub fn new(pin: &Path) -> Result<Self> {
        Self::of_what_grows(pin, || Ok(()))
    }

    /// As [`busiest_session`].
    pub fn of_what_grows(pin: &Path, traffic: impl FnOnce() -> Result<()>) -> Result<Self> {
        let hops: Array<_, Hop> = Array::try_from(Map::Array(map(pin, "NEXTHOP")?))?;
        let slots: Array<_, u64> = Array::try_from(Map::Array(map(pin, "HOP_SLOT")?))?;
        let sides = busiest_session(pin, traffic)?.into_iter().map(|(flow, entry)| {
            // Each next hop has two places, one of which counts.
            let slot = u32::try_from(slots.get(&entry.hop, 0)?)?;
            let hop = hops.get(&(2 * entry.hop + slot), 0)?;
            let link = link(pin, &entry)?;
            let gate = sys::program_of(link.as_fd())?;
            Ok(Side { link, gate, bare: bare(&flow, &entry, &hop)? })
        });
        Ok(Self { sides: sides.collect::<Result<Vec<_>>>()? })
    }

    /// From here on the bare program carries the session.
    pub fn to_bare(&self) -> Result<()> {
        self.sides.iter().try_for_each(|side| sys::replace(side.link.as_fd(), side.bare.as_fd()))
    }

    /// From here on the gate does.
    pub fn to_gate(&self) -> Result<()> {
        self.sides.iter().try_for_each(|side| sys::replace(side.link.as_fd(), side.gate.as_fd()))
    }

    /// Nanoseconds that the gate's programs have run, while the kernel counts them.
    pub fn gate_time(&self) -> Result<u64> {
        self.sides.iter().map(|side| sys::run_time(side.gate.as_fd())).sum()
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // The links go with their namespace in any case.
        let _ = self.to_gate();
    }
}

/// Both flows of the session of the gate at `pin` whose packets `traffic` makes, or that has had the most if it makes none.
pub fn busiest_session(pin: &Path, traffic: impl FnOnce() -> Result<()>) -> Result<Vec<(Flow, FlowEntry)>> {
    let flows: HashMap<_, FlowKey4, FlowEntry> = HashMap::try_from(Map::HashMap(map(pin, "FLOW4")?))?;
    let all = || -> Result<Vec<(Flow, FlowEntry)>, MapError> {
        flows.iter().map(|found| found.map(|(key, entry)| (key.flow(), entry))).collect()
    };
    let before = all()?;
    traffic()?;
    let mut after = all()?;
    let packets = |flows: &[(Flow, FlowEntry)], wanted: &Flow| {
        flows.iter().find(|(flow, _)| flow == wanted).map_or(0, |(_, entry)| entry.packets)
    };
    let grown = after
        .iter()
        .map(|(flow, entry)| (entry.packets - packets(&before, flow), entry.packets, entry.session));
    let (_, _, busiest) = grown.max().context("the gate has no flows")?;
    after.retain(|(_, entry)| entry.session == busiest);
    ensure!(after.len() == 2, "a session with {} flows", after.len());
    ensure!(
        after.iter().all(|(_, entry)| !entry.is_to_host()),
        "the gate does not carry this session by itself"
    );
    Ok(after)
}

/// Takes the gate at `pin` off the interface where the packets of a flow arrive, for good.
pub fn detach(pin: &Path, entry: &FlowEntry) -> Result<()> {
    sys::detach(link(pin, entry)?.as_fd())
}

fn map(pin: &Path, name: &str) -> Result<MapData> {
    MapData::from_pin(pin.join(format!("maps_{VERSION}")).join(name))
        .with_context(|| format!("opening {name}"))
}

/// Of the interface where the packets of a flow arrive.
fn link(pin: &Path, entry: &FlowEntry) -> Result<OwnedFd> {
    // What the client sends arrives where the connector's packets leave.
    let interface = if entry.direction == 0 { "eth0" } else { "eth1" };
    sys::pinned(&pin.join("links").join(interface).join("native"))
}

/// Offsets in an untagged frame with an IPv4 header of 20 bytes and a UDP header.
const IP_SUM: i16 = 24;
const SOURCE: i16 = 26;
const DESTINATION: i16 = 30;
const SOURCE_PORT: i16 = 34;
const PORTS_END: i32 = 42;
const UDP_SUM: i16 = 40;

fn bare(flow: &Flow, entry: &FlowEntry, hop: &Hop) -> Result<OwnedFd> {
    ensure!(hop.tags == 0, "a tagged next hop");
    let word =
        |address: portcullis_common::Address| -> i32 { i32::from_ne_bytes(address.v4_word().to_ne_bytes()) };
    let ports = |source: u16, destination: u16| -> i32 {
        let ([a, b], [c, d]) = (source.to_be_bytes(), destination.to_be_bytes());
        i32::from_ne_bytes([a, b, c, d])
    };
    let mut program = Program::default()
        .load(Width::Word, R7, R1, 0)
        .load(Width::Word, R8, R1, 4)
        .alu(Alu::Mov, R6, R7)
        .alu_imm(Alu::Add, R6, PORTS_END)
        .leave_if_above(R6, R8);
    for (offset, wanted) in [
        (SOURCE, word(flow.remote)),
        (DESTINATION, word(flow.local)),
        (SOURCE_PORT, ports(flow.remote_port, flow.local_port)),
    ] {
        program = program.load(Width::Word, R2, R7, offset).leave_unless_word(R2, wanted);
    }
    let mut link = [0; 12];
    link[..6].copy_from_slice(&hop.destination);
    link[6..].copy_from_slice(&hop.source);
    let words = link.as_chunks::<4>().0.iter().map(|word| i32::from_ne_bytes(*word));
    for (offset, value) in (0i16..).step_by(4).zip(words).chain([
        (SOURCE, word(entry.source)),
        (DESTINATION, word(entry.destination)),
        (SOURCE_PORT, ports(entry.source_port, entry.destination_port)),
    ]) {
        program = program.alu_imm(Alu::Mov, R2, value).store(Width::Word, R7, offset, R2);
    }
    for (offset, delta) in [(IP_SUM, entry.address_delta), (UDP_SUM, entry.transport_delta)] {
        program = program
            .load(Width::Half, R3, R7, offset)
            .network_order_16(R3)
            .alu_imm(Alu::Xor, R3, 0xffff)
            .alu_imm(Alu::Add, R3, delta.into())
            .alu(Alu::Mov, R4, R3)
            .alu_imm(Alu::ShiftRight, R4, 16)
            .alu_imm(Alu::And, R3, 0xffff)
            .alu(Alu::Add, R3, R4)
            .alu_imm(Alu::Xor, R3, 0xffff)
            .network_order_16(R3)
            .store(Width::Half, R7, offset, R3);
    }
    program::redirect_or_pass(program, hop.ifindex)
}

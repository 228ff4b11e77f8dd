//! VLAN ports without VLAN devices, which this kernel has none of: what leaves an interface is tagged, and what arrives
//! is taken only with exactly those tags, which are then removed. Both by tcx programs, so everything above them speaks
//! untagged, and everything on the wire is tagged.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Result, ensure};
use aya::maps::Array;
use portcullis_common::layout::{HOPS, Hop};

use crate::bench::asm::{Alu, Program, R0, R1, R2, R3, R6, Width};
use crate::bench::gate_map;
use crate::bench::lab::ifindex;
use crate::bench::sys::{self, Way};
use crate::netns::Netns;

/// Type and tag, as on the wire.
pub type Tag = [u8; 4];

/// One customer tag, and a service tag around it (IEEE 802.1Q, 802.1ad).
pub const ONE: &[Tag] = &[[0x81, 0, 0, 7]];
pub const TWO: &[Tag] = &[[0x88, 0xa8, 0, 9], [0x81, 0, 0, 7]];

// `enum tcx_action_base` and helper numbers of include/uapi/linux/bpf.h.
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;
const SKB_VLAN_PUSH: i32 = 18;
const SKB_VLAN_POP: i32 = 19;
// Places in `struct __sk_buff`.
const VLAN_PRESENT: i16 = 20;
const VLAN_TCI: i16 = 24;
const VLAN_PROTO: i16 = 28;

/// Makes an interface a port of the VLAN until what comes back is dropped. The tags, outermost first, are in the frame and not beside
/// it, as XDP at the other end needs.
pub fn port(netns: &Netns, interface: &'static str, tags: &[Tag]) -> Result<[OwnedFd; 2]> {
    tags_in_frames(netns, interface)?;
    let index = ifindex(netns, interface)?;
    let (push, pop) = (push(tags)?, pop(tags)?);
    netns.enter(|| {
        Ok([sys::attach_tcx(push.as_fd(), index, Way::Out)?, sys::attach_tcx(pop.as_fd(), index, Way::In)?])
    })?
}

/// Has the kernel write tags into frames before a driver gets them.
pub fn tags_in_frames(netns: &Netns, interface: &str) -> Result<()> {
    netns.run(&format!("ethtool -K {interface} txvlan off tx-vlan-stag-hw-insert off")).map(drop)
}

/// What the node does where its way leads through a VLAN device on `interface`: next hops there carry the tags.
pub fn tag_hops(node: &Netns, interface: &'static str, tags: &[Tag]) -> Result<()> {
    let index = ifindex(node, interface)?;
    let mut hops: Array<_, Hop> = gate_map(node, "NEXTHOP")?;
    let mut tagged = 0;
    for slot in 0..2 * HOPS {
        let mut hop = hops.get(&slot, 0)?;
        if hop.ifindex == index {
            hop.tags = u16::try_from(tags.len())?;
            hop.tag[..tags.len()].copy_from_slice(tags);
            hops.set(slot, hop, 0)?;
            tagged += 1;
        }
    }
    ensure!(tagged > 0, "no next hop leads through {interface}");
    Ok(())
}

fn push(tags: &[Tag]) -> Result<OwnedFd> {
    let mut program = Program::default().alu(Alu::Mov, R6, R1);
    for [t0, t1, c0, c1] in tags.iter().rev() {
        program = program
            .alu(Alu::Mov, R1, R6)
            .alu_imm(Alu::Mov, R2, u16::from_ne_bytes([*t0, *t1]).into())
            .alu_imm(Alu::Mov, R3, u16::from_be_bytes([*c0, *c1]).into())
            .call(SKB_VLAN_PUSH)
            .leave_unless_word(R0, 0);
    }
    sys::load_tcx(&program.alu_imm(Alu::Mov, R0, TCX_NEXT).exit().finish(TCX_DROP))
}

fn pop(tags: &[Tag]) -> Result<OwnedFd> {
    let mut program = Program::default().alu(Alu::Mov, R6, R1);
    for [t0, t1, c0, c1] in tags {
        program = program
            .load(Width::Word, R2, R6, VLAN_PRESENT)
            .leave_if_equal(R2, 0)
            .load(Width::Word, R2, R6, VLAN_PROTO)
            .leave_unless_word(R2, u16::from_ne_bytes([*t0, *t1]).into())
            .load(Width::Word, R2, R6, VLAN_TCI)
            .leave_unless_word(R2, u16::from_be_bytes([*c0, *c1]).into())
            .alu(Alu::Mov, R1, R6)
            .call(SKB_VLAN_POP)
            .leave_unless_word(R0, 0);
    }
    sys::load_tcx(&program.alu_imm(Alu::Mov, R0, TCX_NEXT).exit().finish(TCX_DROP))
}

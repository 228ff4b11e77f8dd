//! The bench's XDP programs: the bare ones that the gate is measured against, and the one that makes the traffic.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Result, ensure};

use super::asm::{Alu, Program, R0, R1, R2, R3, R4, R6, R7, R8, R9, Width};
use super::sys;
use super::traffic::Traffic;

// `enum xdp_action` and helper numbers of include/uapi/linux/bpf.h.
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const XDP_TX: i32 = 3;
const GET_PRANDOM_U32: i32 = 7;
const TAIL_CALL: i32 = 12;
const REDIRECT: i32 = 23;

/// Drops every packet.
pub fn bare_drop() -> Result<OwnedFd> {
    sys::load_xdp(&Program::default().finish(XDP_DROP))
}

/// Passes every packet on.
pub fn bare_pass() -> Result<OwnedFd> {
    sys::load_xdp(&Program::default().finish(XDP_PASS))
}

/// Sends every packet back where it came from, as it is.
pub fn bare_tx() -> Result<OwnedFd> {
    sys::load_xdp(&Program::default().finish(XDP_TX))
}

/// Sends every packet out of another interface, as it is.
pub fn bare_redirect(ifindex: u32) -> Result<OwnedFd> {
    sys::load_xdp(&redirect(Program::default(), ifindex)?.end())
}

/// Drops what comes from a link address that begins so, if one is given, and leaves the rest to the program in `tail`.
pub fn in_front(of: BorrowedFd<'_>, except_from: Option<[u8; 4]>) -> Result<OwnedFd> {
    let mut program = Program::default();
    if let Some(from) = except_from {
        program = program
            .load(Width::Word, R2, R1, 0)
            .load(Width::Word, R3, R1, 4)
            .alu(Alu::Mov, R4, R2)
            .alu_imm(Alu::Add, R4, 14)
            .leave_if_above(R4, R3)
            .load(Width::Word, R2, R2, 6)
            .leave_if_equal(R2, i32::from_ne_bytes(from));
    }
    let program = program.map(R2, of).alu_imm(Alu::Mov, R3, 0).call(TAIL_CALL);
    sys::load_xdp_frags(&program.finish(XDP_DROP))
}

/// Sends `flow`, and in its place a frame of `flood` as often as the word in `share` says, of 2^32 times, both at random. All have one
/// length.
pub fn flooded(flow: &[u8], flood: &[Vec<u8>], share: BorrowedFd<'_>, ifindex: u32) -> Result<OwnedFd> {
    let length = flow.len();
    let equal = flood.iter().all(|frame| frame.len() == length);
    ensure!(flood.len().is_power_of_two() && length.is_multiple_of(8) && equal);
    let map = sys::array_of_one(&[flow, &flood.concat()].concat())?;
    let length = i16::try_from(length)?;
    let mut program = Program::default()
        .load(Width::Word, R7, R1, 0)
        .load(Width::Word, R8, R1, 4)
        .alu(Alu::Mov, R6, R7)
        .alu_imm(Alu::Add, R6, length.into())
        .leave_if_above(R6, R8)
        .call(GET_PRANDOM_U32)
        .alu(Alu::Mov, R9, R0)
        // 1 where the random word is below the share, which makes the difference negative.
        .map_value(R2, share)
        .load(Width::Double, R3, R2, 0)
        .alu(Alu::Sub, R0, R3)
        .alu_imm(Alu::ShiftRight, R0, 63)
        // The flow's frame, or a number from 1 on: by the low bits, since the high ones of a word below the share are few.
        .alu_imm(Alu::And, R9, i32::try_from(flood.len() - 1)?)
        .alu_imm(Alu::Add, R9, 1)
        .alu(Alu::Mul, R9, R0)
        .alu_imm(Alu::Mul, R9, length.into())
        .map_value(R2, map.as_fd())
        .alu(Alu::Add, R2, R9);
    for at in (0..length).step_by(8) {
        program = program.load(Width::Double, R3, R2, at).store(Width::Double, R7, at, R3);
    }
    sys::load_xdp(&redirect(program, ifindex)?.finish(XDP_DROP))
}

/// Writes a packet of `traffic` over whatever the frame holds, and sends it out of an interface.
///
/// 1. Of `one_in` frames, a power of two, drop all but one at random: that is how it offers less than it can.
/// 2. Choose a template and a port at random, where there is a choice.
/// 3. Copy the template. Frames are recycled, and carry the changes of whoever had them before.
/// 4. Set the port; correct the UDP checksum for it (RFC 1624, equation 3).
/// 5. Redirect.
pub fn generator(traffic: &Traffic, ifindex: u32, one_in: u32) -> Result<OwnedFd> {
    let length = traffic.frame_length();
    ensure!(
        one_in.is_power_of_two() && length.is_multiple_of(8) && traffic.templates().len().is_power_of_two()
    );
    let mut templates = Vec::new();
    for template in traffic.templates() {
        ensure!(template.len() == length, "templates of a run have one length");
        templates.extend(template);
    }
    let map = sys::array_of_one(&templates)?;
    let random = traffic.templates().len() > 1 || traffic.ports().is_some() || one_in > 1;
    let length = i16::try_from(length)?;

    let mut program = Program::default()
        .load(Width::Word, R7, R1, 0)
        .load(Width::Word, R8, R1, 4)
        .alu(Alu::Mov, R6, R7)
        .alu_imm(Alu::Add, R6, length.into())
        .leave_if_above(R6, R8);
    if random {
        program = program.call(GET_PRANDOM_U32).alu(Alu::Mov, R9, R0);
    }
    if one_in > 1 {
        // The top bits: the others choose.
        program = program
            .alu(Alu::Mov, R1, R9)
            .alu_imm(Alu::ShiftRight, R1, i32::try_from(32 - one_in.ilog2())?)
            .alu_imm(Alu::Mov, R2, 0)
            .leave_if_above(R1, R2);
    }
    program = program.map_value(R2, map.as_fd());
    if traffic.templates().len() > 1 {
        program = program
            .alu(Alu::Mov, R1, R9)
            .alu_imm(Alu::And, R1, i32::try_from(traffic.templates().len() - 1)?)
            .alu_imm(Alu::Mul, R1, length.into())
            .alu(Alu::Add, R2, R1);
    }
    for at in (0..length).step_by(8) {
        program = program.load(Width::Double, R3, R2, at).store(Width::Double, R7, at, R3);
    }
    if let Some(ports) = traffic.ports() {
        ensure!(ports.count.is_power_of_two());
        let (port, checksum) = (i16::try_from(ports.offset)?, i16::try_from(ports.offset + 6)?);
        program = program
            .alu(Alu::Mov, R1, R9)
            .alu_imm(Alu::ShiftRight, R1, 16)
            .alu_imm(Alu::And, R1, i32::from(ports.count - 1))
            .network_order_16(R1)
            .load(Width::Half, R2, R7, port)
            .alu(Alu::Or, R2, R1)
            .store(Width::Half, R7, port, R2)
            .load(Width::Half, R3, R7, checksum)
            .alu_imm(Alu::Xor, R3, 0xffff)
            .alu(Alu::Add, R3, R1)
            .alu(Alu::Mov, R4, R3)
            .alu_imm(Alu::ShiftRight, R4, 16)
            .alu_imm(Alu::And, R3, 0xffff)
            .alu(Alu::Add, R3, R4)
            .alu_imm(Alu::Xor, R3, 0xffff)
            .store(Width::Half, R7, checksum, R3);
    }
    sys::load_xdp(&redirect(program, ifindex)?.finish(XDP_DROP))
}

/// What reaches the end of `program` leaves by another interface; what leaves the program before is passed to the stack.
pub fn redirect_or_pass(program: Program, ifindex: u32) -> Result<OwnedFd> {
    sys::load_xdp(&redirect(program, ifindex)?.finish(XDP_PASS))
}

fn redirect(program: Program, ifindex: u32) -> Result<Program> {
    Ok(program.alu_imm(Alu::Mov, R1, i32::try_from(ifindex)?).alu_imm(Alu::Mov, R2, 0).call(REDIRECT).exit())
}

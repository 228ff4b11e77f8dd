//! Just enough of a BPF assembler for the bench's own programs (RFC 9669): the bare ones are two to four instructions long, and must
//! not carry what a compiler adds.

use std::os::fd::{AsRawFd, BorrowedFd};

/// A register. R0 holds what a call returns, R1 to R5 its arguments, which it destroys; R6 to R9 survive it.
#[derive(Clone, Copy)]
pub struct Reg(u8);

pub const R0: Reg = Reg(0);
pub const R1: Reg = Reg(1);
pub const R2: Reg = Reg(2);
pub const R3: Reg = Reg(3);
pub const R4: Reg = Reg(4);
pub const R6: Reg = Reg(6);
pub const R7: Reg = Reg(7);
pub const R8: Reg = Reg(8);
pub const R9: Reg = Reg(9);

/// Width of a load or store: the size bits of the opcode.
#[derive(Clone, Copy)]
pub enum Width {
    Half = 0x08,
    Word = 0x00,
    Double = 0x18,
}

/// Arithmetic on 64 bits: the operation bits of the opcode.
#[derive(Clone, Copy)]
pub enum Alu {
    Add = 0x00,
    Sub = 0x10,
    Or = 0x40,
    And = 0x50,
    ShiftRight = 0x70,
    Mul = 0x20,
    Xor = 0xa0,
    Mov = 0xb0,
}

const ALU64: u8 = 0x07;
const REGISTER: u8 = 0x08;

/// A program in the making. There is one label, at the end, which [`Program::finish`] sets.
#[derive(Default)]
pub struct Program {
    instructions: Vec<u64>,
    jumps: Vec<usize>,
}

impl Program {
    pub fn alu(mut self, operation: Alu, to: Reg, from: Reg) -> Self {
        self.push(ALU64 | REGISTER | operation as u8, to, from, 0, 0);
        self
    }

    pub fn alu_imm(mut self, operation: Alu, to: Reg, value: i32) -> Self {
        self.push(ALU64 | operation as u8, to, R0, 0, value);
        self
    }

    /// Between host order and network order, 16 bits; the rest of the register becomes zero.
    pub fn network_order_16(mut self, register: Reg) -> Self {
        self.push(0xdc, register, R0, 0, 16);
        self
    }

    pub fn load(mut self, width: Width, to: Reg, from: Reg, offset: i16) -> Self {
        self.push(0x61 | width as u8, to, from, offset, 0);
        self
    }

    pub fn store(mut self, width: Width, to: Reg, offset: i16, from: Reg) -> Self {
        self.push(0x63 | width as u8, to, from, offset, 0);
        self
    }

    /// The address of the only value of an array map.
    pub fn map_value(mut self, to: Reg, map: BorrowedFd<'_>) -> Self {
        const BPF_PSEUDO_MAP_VALUE: Reg = Reg(2);
        self.push(0x18, to, BPF_PSEUDO_MAP_VALUE, 0, map.as_raw_fd());
        self.push(0, R0, R0, 0, 0);
        self
    }

    /// A map, as an argument of a helper.
    pub fn map(mut self, to: Reg, map: BorrowedFd<'_>) -> Self {
        const BPF_PSEUDO_MAP_FD: Reg = Reg(1);
        self.push(0x18, to, BPF_PSEUDO_MAP_FD, 0, map.as_raw_fd());
        self.push(0, R0, R0, 0, 0);
        self
    }

    /// Calls a helper by its number in `include/uapi/linux/bpf.h`.
    pub fn call(mut self, helper: i32) -> Self {
        self.push(0x85, R0, R0, 0, helper);
        self
    }

    /// Goes to the label if `left` is above `right`, both unsigned.
    pub fn leave_if_above(mut self, left: Reg, right: Reg) -> Self {
        self.jumps.push(self.instructions.len());
        self.push(0x2d, left, right, 0, 0);
        self
    }

    /// Goes to the label if `left` is `right`.
    pub fn leave_if_equal(mut self, left: Reg, right: i32) -> Self {
        self.jumps.push(self.instructions.len());
        self.push(0x15, left, R0, 0, right);
        self
    }

    /// Goes to the label unless the low 32 bits of `left` are `right`.
    pub fn leave_unless_word(mut self, left: Reg, right: i32) -> Self {
        self.jumps.push(self.instructions.len());
        self.push(0x56, left, R0, 0, right);
        self
    }

    pub fn exit(mut self) -> Self {
        self.push(0x95, R0, R0, 0, 0);
        self
    }

    /// Ends a program that goes to no label.
    pub fn end(self) -> Vec<u64> {
        debug_assert!(self.jumps.is_empty());
        self.instructions
    }

    /// Ends with the label, where the program returns `value`.
    pub fn finish(mut self, value: i32) -> Vec<u64> {
        let label = self.instructions.len();
        for at in std::mem::take(&mut self.jumps) {
            // An offset counts from the next instruction, and lies in bits 16 to 31.
            let offset = u16::try_from(label - at - 1).expect("the programs here are short");
            self.instructions[at] |= u64::from(offset) << 16;
        }
        self.alu_imm(Alu::Mov, R0, value).exit().instructions
    }

    fn push(&mut self, opcode: u8, to: Reg, from: Reg, offset: i16, immediate: i32) {
        let [low, high] = offset.to_le_bytes();
        let [a, b, c, d] = immediate.to_le_bytes();
        self.instructions.push(u64::from_le_bytes([opcode, to.0 | from.0 << 4, low, high, a, b, c, d]));
    }
}

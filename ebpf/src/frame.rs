//! Reads of packet memory.
#![expect(unsafe_code, reason = "packet memory is reached by address")]

use core::arch::asm;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_xdp_adjust_head, bpf_xdp_get_buff_len};
use aya_ebpf::programs::{TcContext, XdpContext};
use portcullis_common::{Bytes, DropReason, Frame, FrameMut, Place};

/// Above any offset that the parser reads at. The verifier wants to see a bound on what is added to a
/// packet pointer.
const MAX_OFFSET: usize = 511;

/// A frame in a driver's buffer. Only its linear part can be read, where drivers put the headers; the rest
/// counts for the length.
pub(crate) struct XdpFrame {
    ctx: *mut xdp_md,
    data: usize,
    end: usize,
    length: usize,
}

impl XdpFrame {
    #[inline(always)]
    pub(crate) fn new(ctx: &XdpContext) -> Self {
        // SAFETY: `ctx` is the program's own context.
        let length = unsafe { bpf_xdp_get_buff_len(ctx.ctx) };
        Self { ctx: ctx.ctx, data: ctx.data(), end: ctx.data_end(), length: length as usize }
    }
}

impl Frame for XdpFrame {
    type Bytes<const N: usize> = Packet<N>;

    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }

    #[inline(always)]
    fn read<const N: usize>(&self, at: usize) -> Option<Packet<N>> {
        if at > MAX_OFFSET {
            return None;
        }
        let start = opaque(self.data + at);
        if start + N > self.end { None } else { Some(Packet { start }) }
    }
}

impl FrameMut for XdpFrame {
    type Place<'a, const N: usize> = Packet<N>;

    #[inline(always)]
    fn place<const N: usize>(&mut self, at: usize) -> Result<Packet<N>, DropReason> {
        self.read(at).ok_or(DropReason::RelayNoHop)
    }

    #[inline(always)]
    fn cut_front(&mut self, bytes: i32) -> Result<(), DropReason> {
        // SAFETY: `ctx` is the program's own context, and so are the bounds in it, which the helper moves.
        unsafe {
            if bpf_xdp_adjust_head(self.ctx, bytes) != 0 {
                return Err(DropReason::RelayNoHop);
            }
            self.data = (&raw const (*self.ctx).data).read_volatile() as usize;
            self.end = (&raw const (*self.ctx).data_end).read_volatile() as usize;
        }
        Ok(())
    }
}

/// `N` bytes of a packet, which have been compared with its end. They are read and written by instructions of their own: words in a packet
/// lie at any address, for which the compiler, not knowing that the kernel allows it, would put them together of bytes.
#[derive(Clone, Copy)]
pub(crate) struct Packet<const N: usize> {
    start: usize,
}

/// `BPF_MEM | BPF_LDX` of a width: `$at` from the start (Documentation/bpf/standardization/instruction-set.rst).
macro_rules! load {
    ($packet:expr, $at:ident, $unsigned:ty) => {{
        const { assert!($at + size_of::<$unsigned>() <= N) };
        let value: u64;
        // SAFETY: the bytes lie within the packet, and nothing but the value is written.
        unsafe {
            asm!(
                concat!("{value} = *(", stringify!($unsigned), " *)({start} + {at})"),
                value = out(reg) value,
                start = in(reg) $packet.start,
                at = const $at,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
        value as $unsigned
    }};
}

/// As [`load`], the other way.
macro_rules! store {
    ($packet:expr, $at:ident, $unsigned:ty, $value:expr) => {{
        const { assert!($at + size_of::<$unsigned>() <= N) };
        // SAFETY: the bytes lie within the packet.
        unsafe {
            asm!(
                concat!("*(", stringify!($unsigned), " *)({start} + {at}) = {value}"),
                value = in(reg) u64::from($value),
                start = in(reg) $packet.start,
                at = const $at,
                options(nostack, preserves_flags)
            );
        }
    }};
}

impl<const N: usize> Bytes<N> for Packet<N> {
    #[inline(always)]
    fn byte<const AT: usize>(self) -> u8 {
        load!(self, AT, u8)
    }

    #[inline(always)]
    fn half<const AT: usize>(self) -> u16 {
        load!(self, AT, u16)
    }

    #[inline(always)]
    fn word<const AT: usize>(self) -> u32 {
        load!(self, AT, u32)
    }

    #[inline(always)]
    fn double<const AT: usize>(self) -> u64 {
        load!(self, AT, u64)
    }

    #[inline(always)]
    fn array(self) -> [u8; N] {
        // SAFETY: the bytes lie within the packet; an array of bytes has no alignment.
        unsafe { *(self.start as *const [u8; N]) }
    }
}

impl<const N: usize> Place<N> for Packet<N> {
    #[inline(always)]
    fn byte<const AT: usize>(&self) -> u8 {
        load!(self, AT, u8)
    }

    #[inline(always)]
    fn half<const AT: usize>(&self) -> u16 {
        load!(self, AT, u16)
    }

    #[inline(always)]
    fn set_byte<const AT: usize>(&mut self, byte: u8) {
        store!(self, AT, u8, byte);
    }

    #[inline(always)]
    fn set_half<const AT: usize>(&mut self, half: u16) {
        store!(self, AT, u16, half);
    }

    #[inline(always)]
    fn set_word<const AT: usize>(&mut self, word: u32) {
        store!(self, AT, u32, word);
    }
}

/// Hides from the compiler how a pointer came to be. The verifier knows a bound only of the pointer that was
/// compared; the compiler would leave the comparison out, or compare another one, where it knows from an earlier
/// read how they relate.
#[inline(always)]
fn opaque(mut pointer: usize) -> usize {
    // SAFETY: moves a register onto itself.
    unsafe { asm!("{0} = {0}", inout(reg) pointer, options(pure, nomem, preserves_flags)) };
    pointer
}

/// A packet on its way out.
pub(crate) struct SkbFrame<'a> {
    ctx: &'a TcContext,
}

impl<'a> SkbFrame<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a TcContext) -> Self {
        Self { ctx }
    }
}

impl Frame for SkbFrame<'_> {
    type Bytes<const N: usize> = [u8; N];

    #[inline(always)]
    fn length(&self) -> usize {
        self.ctx.len() as usize
    }

    #[inline(always)]
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        // SAFETY: the helper writes at most `N` bytes, and checks `at` against the packet.
        let failed =
            unsafe { bpf_skb_load_bytes(self.ctx.as_ptr(), at as u32, bytes.as_mut_ptr().cast(), N as u32) };
        if failed == 0 { Some(bytes) } else { None }
    }
}

//! Reads of packet memory.
#![expect(unsafe_code, reason = "packet memory is reached by address")]

use core::arch::asm;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_xdp_adjust_head, bpf_xdp_get_buff_len};
use aya_ebpf::programs::{TcContext, XdpContext};
use portcullis_common::{DropReason, Frame, FrameMut};

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
    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }

    #[inline(always)]
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        if at > MAX_OFFSET {
            return None;
        }
        let start = self.data + at;
        if start + N > self.end {
            return None;
        }
        // SAFETY: `start..start + N` lies within the packet; an array of bytes has no alignment.
        Some(unsafe { *(start as *const [u8; N]) })
    }
}

impl FrameMut for XdpFrame {
    #[inline(always)]
    fn update<const N: usize>(
        &mut self,
        at: usize,
        change: impl FnOnce([u8; N]) -> Result<[u8; N], DropReason>,
    ) -> Result<(), DropReason> {
        if at > MAX_OFFSET {
            return Err(DropReason::RelayNoHop);
        }
        let start = opaque(self.data + at);
        if start + N > self.end {
            return Err(DropReason::RelayNoHop);
        }
        let place = start as *mut [u8; N];
        // SAFETY: `start..start + N` lies within the packet; an array of bytes has no alignment.
        unsafe { *place = change(*place)? };
        Ok(())
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

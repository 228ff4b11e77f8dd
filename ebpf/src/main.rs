//! The kernel half of the gate.
//!
//! - `portcullis_in` (XDP) judges every packet that arrives on a public interface: parse, [`admit`], count,
//!   sample, obey.
//! - `portcullis_out` (tcx egress) never touches a packet. It notes the datagrams and echo requests that
//!   this host sends, so that `portcullis_in` knows the answers.
//!
//! What the verdict is lives in `portcullis_common`; here are only the bytes, the maps and the sockets.
//!
//! [`admit`]: portcullis_common::admit
#![no_std]
#![no_main]
#![expect(clippy::cast_possible_truncation, reason = "helpers take 32-bit sizes, which no frame exceeds")]

mod frame;
mod kernel;
mod maps;

use aya_ebpf::bindings::{tcx_action_base::TCX_NEXT, xdp_action};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use portcullis_common::{Verdict, judge, parse, tracks_reply};

use frame::{SkbFrame, XdpFrame};
use kernel::Kernel;

#[xdp(frags)]
fn portcullis_in(ctx: XdpContext) -> u32 {
    let now = kernel::monotonic_ns();
    let verdict = verdict(&ctx, now);
    let to_sample = maps::count(verdict, now);
    if Verdict::is_pass_index(verdict) {
        return xdp_action::XDP_PASS;
    }
    if to_sample {
        maps::sample(&ctx, verdict, now);
    }
    xdp_action::XDP_DROP
}

/// [`Verdict::index`] for the packet. Out of line, like [`maps::sample`]: each may use most of the 512 bytes
/// of stack, but only one at a time.
#[inline(never)]
fn verdict(ctx: &XdpContext, now: u64) -> u32 {
    judge(&parse(&XdpFrame::new(ctx)), &Kernel::new(ctx), now).index()
}

#[classifier]
fn portcullis_out(ctx: TcContext) -> i32 {
    if let Ok(packet) = parse(&SkbFrame::new(&ctx))
        && let Some(key) = tracks_reply(&packet, &Kernel::new(&ctx))
    {
        maps::note_host_flow(&key, kernel::monotonic_ns());
    }
    TCX_NEXT
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program from which this can be reached.
    loop {}
}

//! The kernel half of the gate.
//!
//! - `portcullis_in` (XDP) takes every packet that arrives on a public interface through [`process`], counts
//!   the verdict, samples it and obeys: drop, pass to the kernel, or send a relayed packet on.
//! - `portcullis_out` (tcx egress) never touches a packet. It notes the datagrams and echo requests that
//!   this host sends, so that `portcullis_in` knows the answers.
//!
//! What the verdict is lives in `portcullis_common`; here are only the bytes, the maps and the sockets.
//!
//! [`process`]: portcullis_common::process
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(clippy::cast_possible_truncation, reason = "helpers take 32-bit sizes, which no frame exceeds")]

mod frame;
mod kernel;
mod maps;

use aya_ebpf::bindings::{tcx_action_base::TCX_NEXT, xdp_action};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use portcullis_common::{RelayReason, Verdict, parse, process, tracks_reply};

use frame::{SkbFrame, XdpFrame};
use kernel::Kernel;

#[xdp(frags)]
fn portcullis_in(ctx: XdpContext) -> u32 {
    let now = kernel::monotonic_ns();
    let outcome = outcome(&ctx, now);
    let verdict = outcome as u32;
    let to_sample = maps::count(verdict, now);
    if Verdict::is_pass_index(verdict) {
        return xdp_action::XDP_PASS;
    }
    if Verdict::is_drop_index(verdict) {
        if to_sample {
            maps::sample(&ctx, outcome, now);
        }
        let enforces = maps::settings().is_none_or(|settings| settings.enforces(now));
        return if enforces { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS };
    }
    if verdict == Verdict::Relay(RelayReason::Transmit).index() {
        return xdp_action::XDP_TX;
    }
    kernel::redirect((outcome >> 32) as u32)
}

/// [`Verdict::index`] for the packet, carried out as far as the packet is concerned, and above it the interface
/// that a relayed one leaves by, or the [`Rule`](portcullis_common::layout::Rule) that a dropped one broke. Out of line, like [`maps::sample`]: each may use most of the 512 bytes of stack,
/// but only one at a time.
#[inline(never)]
fn outcome(ctx: &XdpContext, now: u64) -> u64 {
    let ingress = ctx.ingress_ifindex() as u32;
    let kernel = Kernel::new(ctx);
    let outcome = process(&mut XdpFrame::new(ctx), &kernel, ingress, now);
    let verdict = outcome.verdict.index();
    let above = if Verdict::is_drop_index(verdict) { kernel.rule() } else { outcome.egress };
    u64::from(above) << 32 | u64::from(verdict)
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

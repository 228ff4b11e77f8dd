//! The maps of `portcullis_common::layout`, and what the programs do with them.
#![expect(unsafe_code, reason = "a map's value is reached by pointer")]

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use portcullis_common::layout::{
    ADMIN_ENTRIES, AdminKey, Counter, EVENT_BYTES, Event, HOST_FLOW_REFRESH_NS, HOST_FLOWS, HostFlowKey,
    Loss, PortSet,
};
use portcullis_common::{Address, Frame, RateClass, Verdict, parse, take_token};

use crate::frame::XdpFrame;

#[btf_map]
static COUNTERS: PerCpuArray<Counter, { Verdict::COUNTERS as usize }> = PerCpuArray::new();
#[btf_map]
static PORTS: Array<u64, { PortSet::SLOTS as usize }> = Array::new();
#[btf_map]
static ADMIN: LpmTrie<AdminKey, u32, { ADMIN_ENTRIES as usize }> = LpmTrie::new();
#[btf_map]
static HOSTFLOW: LruHashMap<HostFlowKey, u64, { HOST_FLOWS as usize }> = LruHashMap::new();
#[btf_map]
static BUCKET: Array<u64, { RateClass::COUNT as usize }> = Array::new();
#[btf_map]
static EVENTS: RingBuf<Event, { EVENT_BYTES as usize }> = RingBuf::new();
#[btf_map]
static LOSS: PerCpuArray<u64, { Loss::COUNT as usize }> = PerCpuArray::new();

/// Counts the packet; `true` if it is one to sample.
#[inline(always)]
pub(crate) fn count(verdict: u32, now: u64) -> bool {
    let Some(counter) = COUNTERS.get_ptr_mut(verdict) else { return false };
    // SAFETY: the slot is this CPU's own and live for the program's run.
    unsafe { (*counter).count(now) }
}

/// Sends an event for a dropped packet.
///
/// Out of line, and with a parse of its own: what the hot path would have to keep for it costs registers on
/// every packet, and the verifier a state for every packet's shape.
#[inline(never)]
pub(crate) fn sample(ctx: &XdpContext, verdict: u32, now: u64) {
    let Some(mut entry) = EVENTS.reserve(0) else { return lose(Loss::Events) };
    let frame = XdpFrame::new(ctx);
    let event = entry.write(Event { verdict, at: now, ..Event::default() });
    event.length = frame.length() as u32;
    event.ifindex = ctx.ingress_ifindex() as u32;
    if let Ok(packet) = parse(&frame) {
        event.describe(&packet);
    }
    entry.submit(0);
}

#[inline(always)]
pub(crate) fn note_host_flow(key: &HostFlowKey, now: u64) {
    if let Some(at) = HOSTFLOW.get_ptr_mut(key) {
        // SAFETY: the pointer is to a live value of the map; the write is one aligned word.
        unsafe {
            if now.saturating_sub(*at) >= HOST_FLOW_REFRESH_NS {
                *at = now;
            }
        }
    } else if HOSTFLOW.insert(key, now, u64::from(BPF_ANY)).is_err() {
        lose(Loss::HostFlows);
    }
}

#[inline(always)]
pub(crate) fn host_flow(key: &HostFlowKey) -> Option<u64> {
    // SAFETY: one aligned word is read at once.
    HOSTFLOW.get_ptr(key).map(|at| unsafe { *at })
}

#[inline(always)]
pub(crate) fn in_port_set(set: PortSet, port: u16) -> bool {
    match PORTS.get(set.slot(port)) {
        Some(bitmap) => bitmap & PortSet::bit(port) != 0,
        None => false,
    }
}

#[inline(always)]
pub(crate) fn is_admin(protocol: u8, port: u16, remote: Address) -> bool {
    ADMIN.get(&Key::new(AdminKey::BITS, AdminKey::new(protocol, port, remote))).is_some()
}

/// Takes a token. Two CPUs that race may both take the same one: the budget errs by the number of CPUs at
/// most, and neither ever waits.
#[inline(always)]
pub(crate) fn take(class: RateClass, now: u64) -> bool {
    let Some(word) = BUCKET.get_ptr_mut(class as u32) else { return false };
    // SAFETY: the pointer is to a live value of the map; both accesses are one aligned word.
    unsafe {
        let Some(next) = take_token(word.read_volatile(), now, class) else { return false };
        word.write_volatile(next);
    }
    true
}

#[inline(always)]
fn lose(loss: Loss) {
    let Some(count) = LOSS.get_ptr_mut(loss as u32) else { return };
    // SAFETY: the slot is this CPU's own and live for the program's run.
    unsafe { *count += 1 };
}

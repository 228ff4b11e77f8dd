//! The maps of `portcullis_common::layout`, and what the programs do with them.
#![expect(unsafe_code, reason = "a map's value is reached by pointer")]

use core::arch::asm;
use core::ops::Deref;

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use portcullis_common::layout::{
    ADMIN_ENTRIES, AdminKey, CID_KEYS, CidKey, Counter, EVENT_BYTES, Event, FLOWS, FlowEntry, FlowKey4,
    FlowKey6, HOPS, HOST_FLOW_REFRESH_NS, HOST_FLOWS, Hop, HostFlowKey, IDENTITIES, Loss, PortSet, PortSets,
    RECENT_BITS, REVOKED_DEVICES, SESSIONS, Session, Settings, TUNNELS, recent_bit,
};
use portcullis_common::{Address, Family, Flow, Frame, RateClass, Verdict, parse, take_token};

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
static BUCKET: Array<u64, { RateClass::SLOTS as usize }> = Array::new();
#[btf_map]
static RECENT: Array<u64, { RECENT_BITS as usize / 64 }> = Array::new();
#[btf_map]
static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map]
static CID_KEY: Array<CidKey, { CID_KEYS as usize }> = Array::new();
#[btf_map]
static REVOKED: HashMap<u32, u64, { REVOKED_DEVICES as usize }> = HashMap::new();
#[btf_map]
static TUNNEL: HashMap<HostFlowKey, u64, { TUNNELS as usize }> = HashMap::new();
#[btf_map]
static FLOW4: HashMap<FlowKey4, FlowEntry, { FLOWS as usize }> = HashMap::new();
#[btf_map]
static FLOW6: HashMap<FlowKey6, FlowEntry, { FLOWS as usize }> = HashMap::new();
#[btf_map]
static SESSION: Array<Session, { SESSIONS as usize }> = Array::new();
#[btf_map]
static IDENTITY_EPOCH: Array<u64, { IDENTITIES as usize }> = Array::new();
#[btf_map]
static HOP_SLOT: Array<u64, { HOPS as usize }> = Array::new();
#[btf_map]
static NEXTHOP: Array<Hop, { 2 * HOPS as usize }> = Array::new();
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

/// Sends an event for a dropped packet: the verdict's index, and above it the rule that was broken.
///
/// Out of line, and with a parse of its own: what the hot path would have to keep for it costs registers on
/// every packet, and the verifier a state for every packet's shape.
#[inline(never)]
pub(crate) fn sample(ctx: &XdpContext, outcome: u64, now: u64) {
    let Some(mut entry) = EVENTS.reserve(0) else { return lose(Loss::Events) };
    let frame = XdpFrame::new(ctx);
    let event = entry.write(Event { verdict: outcome as u32, at: now, ..Event::default() });
    event.rule = (outcome >> 32) as u32;
    event.length = frame.length() as u32;
    event.ifindex = ctx.ingress_ifindex() as u32;
    if let Ok(packet) = parse(&frame) {
        event.describe(&packet);
    }
    entry.submit(0);
}

#[inline(always)]
pub(crate) fn note_host_flow(key: &HostFlowKey, now: u64) {
    if let Some(port) = key.udp_port() {
        note_host_port(port);
    }
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
fn note_host_port(port: u16) {
    let Some(word) = PORTS.get_ptr_mut(PortSet::slot(port)) else { return };
    let bit = PortSet::HostUdp.bit(port);
    // SAFETY: the pointer is to a live, aligned word of the map.
    unsafe {
        if *word & bit == 0 {
            atomic_or(word, bit);
        }
    }
}

#[inline(always)]
pub(crate) fn host_flow(key: &HostFlowKey) -> Option<u64> {
    // SAFETY: one aligned word is read at once.
    HOSTFLOW.get_ptr(key).map(|at| unsafe { *at })
}

#[inline(always)]
pub(crate) fn ports(port: u16) -> PortSets {
    PORTS.get(PortSet::slot(port)).map_or(PortSets::default(), |word| PortSets::of(*word, port))
}

#[inline(always)]
pub(crate) fn is_admin(protocol: u8, port: u16, remote: Address) -> bool {
    ADMIN.get(&Key::new(AdminKey::BITS, AdminKey::new(protocol, port, remote))).is_some()
}

/// Takes a token. Two CPUs that race may both take the same one: the budget errs by the number of CPUs at
/// most, and neither ever waits.
#[inline(always)]
pub(crate) fn take(class: RateClass, hash: u64, now: u64) -> bool {
    let Some(word) = BUCKET.get_ptr_mut(class.slot(hash)) else { return false };
    // SAFETY: the pointer is to a live value of the map; both accesses are one aligned word.
    unsafe {
        let Some(next) = take_token(word.read_volatile(), now, class) else { return false };
        word.write_volatile(next);
    }
    true
}

#[inline(always)]
pub(crate) fn settings() -> Option<Settings> {
    SETTINGS.get(0).copied()
}

#[inline(always)]
pub(crate) fn is_recent(network_hash: u64) -> bool {
    let (word, bit) = recent_bit(network_hash);
    RECENT.get(word).is_some_and(|bitmap| bitmap & bit != 0)
}

#[inline(always)]
pub(crate) fn cid_key(slot: u32) -> Option<CidKey> {
    CID_KEY.get(slot).copied()
}

#[inline(always)]
pub(crate) fn is_device_revoked(device: u32) -> bool {
    REVOKED.get_ptr(device).is_some()
}

#[inline(always)]
pub(crate) fn tunnel(key: &HostFlowKey) -> Option<u64> {
    // SAFETY: one aligned word is read at once.
    TUNNEL.get_ptr(key).map(|ends| unsafe { *ends })
}

/// A flow entry in its map. It stays readable for the program's run even if the daemon removes it meanwhile:
/// the run is one RCU section.
pub(crate) struct LiveEntry(*mut FlowEntry);

impl Deref for LiveEntry {
    type Target = FlowEntry;

    #[inline(always)]
    fn deref(&self) -> &FlowEntry {
        // SAFETY: a lookup gave the pointer, and it was not null.
        unsafe { &*self.0 }
    }
}

impl LiveEntry {
    /// Atomic: the queues of a flow's two families, or of a moved queue, may run on several CPUs.
    #[inline(always)]
    pub(crate) fn count(&self, length: u16) {
        // SAFETY: as in `deref`; the counts are aligned words that only atomic additions touch.
        unsafe {
            atomic_add(&raw mut (*self.0).packets, 1);
            atomic_add(&raw mut (*self.0).bytes, u64::from(length));
        }
    }
}

/// `BPF_ATOMIC | BPF_DW` with `BPF_ADD` (Documentation/bpf/standardization/instruction-set.rst): `core` has no
/// atomics for this target.
///
/// # Safety
///
/// `word` must be valid for writes, aligned, and in a map's value.
#[inline(always)]
unsafe fn atomic_add(word: *mut u64, by: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u64 *)({word} + 0) += {by}", word = in(reg) word, by = in(reg) by) };
}

/// As [`atomic_add`], with `BPF_OR`.
///
/// # Safety
///
/// As there.
#[inline(always)]
unsafe fn atomic_or(word: *mut u64, bits: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u64 *)({word} + 0) |= {bits}", word = in(reg) word, bits = in(reg) bits) };
}

#[inline(always)]
pub(crate) fn flow(flow: &Flow) -> Option<LiveEntry> {
    let entry = match flow.family {
        Family::V4 => FLOW4.get_ptr_mut(FlowKey4::new(flow)),
        Family::V6 => FLOW6.get_ptr_mut(FlowKey6::new(flow)),
    };
    entry.map(LiveEntry)
}

#[inline(always)]
pub(crate) fn session(index: u32) -> Option<Session> {
    SESSION.get(index).copied()
}

#[inline(always)]
pub(crate) fn identity_epoch(index: u32) -> Option<u64> {
    IDENTITY_EPOCH.get(index).copied()
}

#[inline(always)]
pub(crate) fn hop(index: u32) -> Option<&'static Hop> {
    let slot = HOP_SLOT.get(index)?;
    NEXTHOP.get((index << 1) | (*slot as u32 & 1))
}

#[inline(always)]
fn lose(loss: Loss) {
    let Some(count) = LOSS.get_ptr_mut(loss as u32) else { return };
    // SAFETY: the slot is this CPU's own and live for the program's run.
    unsafe { *count += 1 };
}

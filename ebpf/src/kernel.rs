//! What the kernel knows, as the verdict asks for it.
#![expect(unsafe_code, reason = "BPF helpers are foreign functions")]

use core::cell::Cell;
use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_F_CURRENT_NETNS, BPF_TCP_LISTEN, bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
};
use aya_ebpf::helpers::{
    bpf_ktime_get_coarse_ns, bpf_redirect, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie,
};
use portcullis_common::layout::{CidKey, Hop, HostFlowKey, PortSets, Rule, Session, Settings};
use portcullis_common::{Ack, Address, Family, Flow, Lookup, RateClass, TcpFlags, TcpSocket};

use crate::maps;

#[inline(always)]
pub(crate) fn monotonic_ns() -> u64 {
    // SAFETY: takes nothing.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Sends the packet out by another interface; the action to return.
#[inline(always)]
pub(crate) fn redirect(ifindex: u32) -> u32 {
    // SAFETY: takes numbers only.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}

/// The maps, and the sockets of the network namespace that the packet is in.
pub(crate) struct Kernel {
    ctx: *mut c_void,
    /// What the packet has run into so far, for its event.
    rule: Cell<u32>,
}

impl Kernel {
    #[inline(always)]
    pub(crate) fn new(ctx: &impl EbpfContext) -> Self {
        Self { ctx: ctx.as_ptr(), rule: Cell::new(0) }
    }

    /// [`Rule::index`] of what the packet ran into last, or 0.
    #[inline(always)]
    pub(crate) fn rule(&self) -> u32 {
        self.rule.get()
    }
}

impl Lookup for Kernel {
    type Entry = maps::LiveEntry;
    type Hop = &'static Hop;

    #[inline(always)]
    fn settings(&self) -> Option<Settings> {
        maps::settings()
    }

    #[inline(always)]
    fn ports(&self, port: u16) -> PortSets {
        maps::ports(port)
    }

    #[inline(always)]
    fn is_admin(&self, protocol: u8, port: u16, remote: Address) -> bool {
        maps::is_admin(protocol, port, remote)
    }

    #[inline(always)]
    fn tcp_socket(&self, flow: &Flow, ack: Option<Ack>) -> TcpSocket {
        tcp_socket(self.ctx, flow, ack)
    }

    #[inline(always)]
    fn host_flow(&self, key: &HostFlowKey) -> Option<u64> {
        maps::host_flow(key)
    }

    #[inline(always)]
    fn take(&self, class: RateClass, hash: u64, now: u64) -> bool {
        let taken = maps::take(class, hash, now);
        if !taken {
            self.rule.set(Rule::Budget(class).index());
        }
        taken
    }

    #[inline(always)]
    fn is_recent(&self, network_hash: u64) -> bool {
        maps::is_recent(network_hash)
    }

    #[inline(always)]
    fn cid_key(&self, slot: u32) -> Option<CidKey> {
        maps::cid_key(slot)
    }

    #[inline(always)]
    fn is_device_revoked(&self, device: u32) -> bool {
        maps::is_device_revoked(device)
    }

    #[inline(always)]
    fn tunnel(&self, key: &HostFlowKey) -> Option<u64> {
        maps::tunnel(key)
    }

    #[inline(always)]
    fn flow(&self, flow: &Flow) -> Option<maps::LiveEntry> {
        maps::flow(flow)
    }

    #[inline(always)]
    fn session(&self, index: u32) -> Option<Session> {
        self.rule.set(Rule::Session(index).index());
        maps::session(index)
    }

    #[inline(always)]
    fn identity_epoch(&self, index: u32) -> Option<u64> {
        maps::identity_epoch(index)
    }

    #[inline(always)]
    fn hop(&self, index: u32) -> Option<&'static Hop> {
        maps::hop(index)
    }

    #[inline(always)]
    fn count(&self, entry: &maps::LiveEntry, length: u16) {
        entry.count(length);
    }
}

/// `bpf_skc_lookup_tcp` also finds request sockets (NEW_SYN_RECV) and TIME_WAIT ones, which
/// `bpf_sk_lookup_tcp` hides.
#[inline(always)]
fn tcp_socket(ctx: *mut c_void, flow: &Flow, ack: Option<Ack>) -> TcpSocket {
    let (mut tuple, size) = tuple(flow);
    // SAFETY: `tuple` is initialised up to `size`; the reference is released below on every path.
    unsafe {
        let socket = bpf_skc_lookup_tcp(ctx, &mut tuple, size, BPF_F_CURRENT_NETNS as u64, 0);
        if socket.is_null() {
            return TcpSocket::None;
        }
        let found = match ack {
            _ if (*socket).state != BPF_TCP_LISTEN => TcpSocket::Connection,
            Some(ack) if accepts_cookie(socket, flow, ack) => TcpSocket::ListenerCookie,
            _ => TcpSocket::Listener,
        };
        bpf_sk_release(socket.cast());
        found
    }
}

/// The lookup wants the tuple of the packet: its source is the far end.
#[inline(always)]
fn tuple(flow: &Flow) -> (bpf_sock_tuple, u32) {
    let (sport, dport) = (flow.remote_port.to_be(), flow.local_port.to_be());
    let (tuple, size) = match flow.family {
        Family::V4 => {
            let (saddr, daddr) = (flow.remote.v4_word(), flow.local.v4_word());
            let ipv4 = Tuple4 { saddr, daddr, sport, dport };
            (bpf_sock_tuple__bindgen_ty_1 { ipv4 }, size_of::<Tuple4>())
        }
        Family::V6 => {
            let (saddr, daddr) = (flow.remote.words(), flow.local.words());
            let ipv6 = Tuple6 { saddr, daddr, sport, dport };
            (bpf_sock_tuple__bindgen_ty_1 { ipv6 }, size_of::<Tuple6>())
        }
    };
    (bpf_sock_tuple { __bindgen_anon_1: tuple }, size as u32)
}

/// Headers as `bpf_tcp_check_syncookie` reads them: version, addresses, ports, numbers and the ACK flag.
/// Rebuilt on the stack, since the helper takes no packet memory of variable place.
#[repr(C)]
struct Ipv4Head {
    first: [u32; 3],
    source: u32,
    destination: u32,
}

#[repr(C)]
struct Ipv6Head {
    first: [u32; 2],
    source: [u32; 4],
    destination: [u32; 4],
}

#[repr(C)]
struct TcpHead {
    source: u16,
    destination: u16,
    sequence: u32,
    acknowledgement: u32,
    offset_flags: [u8; 4],
    rest: u32,
}

#[inline(always)]
fn accepts_cookie(listener: *mut bpf_sock, flow: &Flow, ack: Ack) -> bool {
    let mut tcp = TcpHead {
        source: flow.remote_port.to_be(),
        destination: flow.local_port.to_be(),
        sequence: ack.sequence.to_be(),
        acknowledgement: ack.acknowledgement.to_be(),
        offset_flags: [0x50, TcpFlags::ACK, 0, 0],
        rest: 0,
    };
    match flow.family {
        Family::V4 => {
            let first = u32::from_ne_bytes([0x45, 0, 0, 0]);
            let (source, destination) = (flow.remote.v4_word(), flow.local.v4_word());
            let mut ip = Ipv4Head { first: [first, 0, 0], source, destination };
            check(listener, (&raw mut ip).cast(), size_of::<Ipv4Head>(), &mut tcp)
        }
        Family::V6 => {
            let first = u32::from_ne_bytes([0x60, 0, 0, 0]);
            let (source, destination) = (flow.remote.words(), flow.local.words());
            let mut ip = Ipv6Head { first: [first, 0], source, destination };
            check(listener, (&raw mut ip).cast(), size_of::<Ipv6Head>(), &mut tcp)
        }
    }
}

#[inline(always)]
fn check(listener: *mut bpf_sock, ip: *mut c_void, ip_size: usize, tcp: &mut TcpHead) -> bool {
    let tcp_size = size_of::<TcpHead>() as u32;
    // SAFETY: both headers are on the stack, initialised, and as long as said.
    unsafe {
        bpf_tcp_check_syncookie(listener.cast(), ip, ip_size as u32, (&raw mut *tcp).cast(), tcp_size) == 0
    }
}

//! The maps between the kernel and the daemon: names, shapes, sizes.
//!
//! | map | type | key → value |
//! |---|---|---|
//! | `COUNTERS` | per-CPU array | [`Verdict::index`](crate::Verdict::index) → [`Counter`] |
//! | `PORTS` | array | [`PortSet::slot`] → bitmap of 64 ports |
//! | `ADMIN` | LPM trie | [`AdminKey`] → 1 |
//! | `HOSTFLOW` | LRU hash | [`HostFlowKey`] → monotonic ns of this host's last packet |
//! | `BUCKET` | array | [`RateClass`](crate::RateClass) → word of [`take_token`](crate::take_token) |
//! | `EVENTS` | ring buffer | [`Event`] |
//! | `LOSS` | per-CPU array | [`Loss`] → count |
//!
//! Only `HOSTFLOW` is inserted into by the kernel, and only for packets that this host sends.

use crate::{Address, Family, Flow, PacketMeta, Transport};

/// Changes whenever a key, a value or the meaning of an index does. A daemon keeps the pinned maps of its
/// own version and makes new ones otherwise.
pub const VERSION: u32 = 1;

/// Names of the pinned maps, as in the object.
pub const MAPS: [&str; 7] = ["COUNTERS", "PORTS", "ADMIN", "HOSTFLOW", "BUCKET", "EVENTS", "LOSS"];

/// Prefixes that the `ADMIN` trie holds at most.
pub const ADMIN_ENTRIES: u32 = 1024;
/// Flows that `HOSTFLOW` remembers at most; the least recently used gives way.
pub const HOST_FLOWS: u32 = 65_536;
/// Bytes of the ring buffer.
pub const EVENT_BYTES: u32 = 256 * 1024;

/// Of the drops of a reason on a CPU, one in so many is sampled, and the first after so long a time.
pub const SAMPLE_EVERY: u64 = 65_536;
pub const SAMPLE_AFTER_NS: u64 = 1_000_000_000;
/// For so long after this host's last packet, answers to it pass (the time that conntrack gives a UDP
/// stream).
pub const HOST_FLOW_NS: u64 = 180 * 1_000_000_000;
/// A host flow's time is written again after so long, so that a busy flow does not write on each packet.
pub const HOST_FLOW_REFRESH_NS: u64 = 1_000_000_000;

pub const IPPROTO_ICMP: u8 = 1;
pub const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_UDP: u8 = 17;

/// One CPU's count of one verdict.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    pub packets: u64,
    /// When the last event of this verdict was sampled; monotonic, nanoseconds.
    pub sampled_at: u64,
}

impl Counter {
    /// Counts one more packet. `true` if it is one to sample: so that a slow scan shows at once, and a flood
    /// neither fills the ring nor hides behind the first of its packets.
    #[inline(always)]
    pub fn count(&mut self, now: u64) -> bool {
        let nth = self.packets;
        self.packets = nth.wrapping_add(1);
        if nth.is_multiple_of(SAMPLE_EVERY) || now.saturating_sub(self.sampled_at) >= SAMPLE_AFTER_NS {
            self.sampled_at = now;
            return true;
        }
        false
    }
}

/// A set of ports; `PORTS` holds one bitmap for each.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortSet {
    /// TCP ports open to anyone.
    ServedTcp,
    /// UDP ports open to anyone.
    ServedUdp,
    /// UDP ports that some administrator's prefix is listed with.
    AdminUdp,
}

impl PortSet {
    pub const ALL: [Self; 3] = [Self::ServedTcp, Self::ServedUdp, Self::AdminUdp];
    /// Entries of `PORTS`.
    pub const SLOTS: u32 = 3 * Self::WORDS;
    const WORDS: u32 = 65_536 / 64;

    /// Index into `PORTS` of the word that holds `port`.
    #[inline(always)]
    pub const fn slot(self, port: u16) -> u32 {
        self as u32 * Self::WORDS + (port >> 6) as u32
    }

    /// The bit of `port` within its word.
    #[inline(always)]
    pub const fn bit(port: u16) -> u64 {
        1 << (port & 63)
    }
}

/// Data of an `ADMIN` key. The first [`AdminKey::EXACT_BITS`] must match in full, the address by prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AdminKey {
    protocol: u8,
    zero: u8,
    /// Network order, as every byte of an LPM key.
    port: [u8; 2],
    address: Address,
}

impl AdminKey {
    pub const EXACT_BITS: u32 = 32;
    /// Length of the prefix of a lookup: the whole key.
    pub const BITS: u32 = Self::EXACT_BITS + 128;

    #[inline(always)]
    pub const fn new(protocol: u8, port: u16, address: Address) -> Self {
        Self { protocol, zero: 0, port: port.to_be_bytes(), address }
    }
}

/// Key of `HOSTFLOW`. For echo, `local_port` is the identifier and `remote_port` zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostFlowKey {
    pub local: Address,
    pub remote: Address,
    pub local_port: u16,
    pub remote_port: u16,
    pub protocol: u8,
    zero: [u8; 3],
}

impl HostFlowKey {
    #[inline(always)]
    pub const fn udp(flow: &Flow) -> Self {
        Self {
            local: flow.local,
            remote: flow.remote,
            local_port: flow.local_port,
            remote_port: flow.remote_port,
            protocol: IPPROTO_UDP,
            zero: [0; 3],
        }
    }

    #[inline(always)]
    pub const fn echo(local: Address, remote: Address, identifier: u16) -> Self {
        Self { local, remote, local_port: identifier, remote_port: 0, protocol: IPPROTO_ICMP, zero: [0; 3] }
    }
}

/// What `LOSS` counts.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// Sampled events that found the ring buffer full.
    Events,
    /// Flows of this host that `HOSTFLOW` did not take; their answers are dropped.
    HostFlows,
}

impl Loss {
    pub const COUNT: u32 = 2;
}

/// A sampled drop, as it lies in the ring buffer. Addresses and ports are zero where the packet did not
/// parse far enough to have them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Monotonic, nanoseconds since boot.
    pub at: u64,
    /// Bytes of the frame.
    pub length: u32,
    pub ifindex: u32,
    /// [`Verdict::index`](crate::Verdict::index).
    pub verdict: u32,
    pub source_port: u16,
    pub destination_port: u16,
    /// IP protocol number; ICMPv6 counts as ICMP.
    pub protocol: u8,
    /// 4, 6, or 0 when unknown.
    pub version: u8,
    pub zero: [u8; 6],
    pub source: Address,
    pub destination: Address,
}

impl Event {
    pub const SIZE: usize = size_of::<Self>();

    /// Fills in the ends of the packet, as far as it has them.
    #[inline(always)]
    pub fn describe(&mut self, packet: &PacketMeta) {
        let PacketMeta::Ip(ip) = packet else { return };
        self.version = match ip.family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        self.source = ip.source;
        self.destination = ip.destination;
        let (protocol, source_port, destination_port) = match ip.transport {
            Transport::Tcp { source, destination, .. } => (IPPROTO_TCP, source, destination),
            Transport::Udp { source, destination } => (IPPROTO_UDP, source, destination),
            Transport::Icmp(_) => (IPPROTO_ICMP, 0, 0),
        };
        self.protocol = protocol;
        self.source_port = source_port;
        self.destination_port = destination_port;
    }

    /// Reads what the program wrote; `None` if `bytes` is not exactly one event.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::SIZE] = bytes.try_into().ok()?;
        let mut rest = bytes.as_slice();
        Some(Self {
            at: u64::from_ne_bytes(take(&mut rest)?),
            length: u32::from_ne_bytes(take(&mut rest)?),
            ifindex: u32::from_ne_bytes(take(&mut rest)?),
            verdict: u32::from_ne_bytes(take(&mut rest)?),
            source_port: u16::from_ne_bytes(take(&mut rest)?),
            destination_port: u16::from_ne_bytes(take(&mut rest)?),
            protocol: u8::from_ne_bytes(take(&mut rest)?),
            version: u8::from_ne_bytes(take(&mut rest)?),
            zero: take(&mut rest)?,
            source: Address::v6(take(&mut rest)?),
            destination: Address::v6(take(&mut rest)?),
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

// A hole would carry what lay on the stack into a map or the ring.
const _: () = {
    assert!(size_of::<AdminKey>() == 20);
    assert!(size_of::<HostFlowKey>() == 40);
    assert!(size_of::<Event>() == 64);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_sets_do_not_overlap() {
        let mut seen = [false; PortSet::SLOTS as usize];
        for set in PortSet::ALL {
            for port in (0..=u16::MAX).step_by(64) {
                let slot = &mut seen[set.slot(port) as usize];
                assert!(!*slot);
                *slot = true;
                assert_eq!(set.slot(port), set.slot(port + 63));
            }
        }
        assert!(seen.iter().all(|used| *used));
        assert_eq!(PortSet::bit(64), 1);
        assert_eq!(PortSet::bit(127), 1 << 63);
    }

    #[test]
    fn the_first_packet_of_a_second_and_every_nth_are_sampled() {
        let mut counter = Counter::default();
        let start = 10 * SAMPLE_AFTER_NS;
        let mut sampled = |now, packets: u64| (0..packets).filter(|_| counter.count(now)).count();
        assert_eq!(sampled(start, 1_000), 1);
        assert_eq!(sampled(start + SAMPLE_AFTER_NS - 1, 1_000), 0);
        assert_eq!(sampled(start + SAMPLE_AFTER_NS, 1_000), 1);
        assert_eq!(sampled(start + SAMPLE_AFTER_NS, 2 * SAMPLE_EVERY), 2);
        assert_eq!(counter.packets, 3_000 + 2 * SAMPLE_EVERY);
    }

    #[test]
    fn an_event_of_another_size_is_refused() {
        assert!(Event::from_bytes(&[0; Event::SIZE]).is_some());
        assert!(Event::from_bytes(&[0; Event::SIZE - 1]).is_none());
        assert!(Event::from_bytes(&[0; Event::SIZE + 1]).is_none());
    }

    #[test]
    fn event_fields_are_read_from_where_the_program_writes_them() {
        let mut bytes = [0; Event::SIZE];
        bytes[0..8].copy_from_slice(&7u64.to_ne_bytes());
        bytes[8..12].copy_from_slice(&60u32.to_ne_bytes());
        bytes[12..16].copy_from_slice(&3u32.to_ne_bytes());
        bytes[16..20].copy_from_slice(&80u32.to_ne_bytes());
        bytes[20..22].copy_from_slice(&1234u16.to_ne_bytes());
        bytes[22..24].copy_from_slice(&53u16.to_ne_bytes());
        bytes[24] = 17;
        bytes[25] = 4;
        bytes[32..48].copy_from_slice(&Address::v4([192, 0, 2, 1]).octets());
        bytes[48..64].copy_from_slice(&Address::v4([192, 0, 2, 2]).octets());
        let event = Event {
            at: 7,
            length: 60,
            ifindex: 3,
            verdict: 80,
            source_port: 1234,
            destination_port: 53,
            protocol: 17,
            version: 4,
            zero: [0; 6],
            source: Address::v4([192, 0, 2, 1]),
            destination: Address::v4([192, 0, 2, 2]),
        };
        assert_eq!(Event::from_bytes(&bytes), Some(event));
    }
}

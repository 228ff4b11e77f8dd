//! The maps between the kernel and the daemon: names, shapes, sizes.
//!
//! | map | type | key → value |
//! |---|---|---|
//! | `COUNTERS` | per-CPU array | [`Verdict::index`](crate::Verdict::index) → [`Counter`] |
//! | `PORTS` | array | [`PortSet::slot`] → [`PortSets`] of eight ports, a byte each |
//! | `ADMIN` | LPM trie | [`AdminKey`] → 1 |
//! | `HOSTFLOW` | LRU hash | [`HostFlowKey`] → monotonic ns of this host's last packet |
//! | `BUCKET` | array | [`RateClass::slot`](crate::RateClass::slot) → word of [`take_token`](crate::take_token) |
//! | `RECENT` | array | bitmap of networks with a recent login, by [`recent_bit`] |
//! | `SETTINGS` | array | 0 → [`Settings`] |
//! | `CID_KEY` | array | [`ConnectionId::slot`](crate::ConnectionId::slot) → [`CidKey`] |
//! | `REVOKED` | hash | device number → 1 |
//! | `TUNNEL` | hash | [`HostFlowKey`] of an authenticated peer → monotonic ns at which it ends |
//! | `FLOW4`, `FLOW6` | hash | [`FlowKey4`], [`FlowKey6`] → [`FlowEntry`] |
//! | `SESSION` | array | session index → [`Session`] |
//! | `IDENTITY_EPOCH` | array | identity index → epoch |
//! | `HOP_SLOT` | array | next hop → which of its two slots in `NEXTHOP` counts |
//! | `NEXTHOP` | array | twice the next hop plus its slot → [`Hop`] |
//! | `EVENTS` | ring buffer | [`Event`] |
//! | `LOSS` | per-CPU array | [`Loss`] → count |
//!
//! Only `HOSTFLOW` is inserted into by the kernel, and one set of `PORTS` with it, for packets that this host sends; in flow entries
//! it adds to the counts. Everything else is written by the daemon. Values are whole 64-bit words, which the
//! kernel copies one by one: a reader may see an old word beside a new one, never half a word.

mod event;
mod flow;
mod settings;

pub use event::{Event, Rule};
pub(crate) use flow::fold;
pub use flow::{FlowEntry, FlowKey4, FlowKey6, Hop, Session};
pub use settings::{CidKey, Settings};

use crate::{Address, Flow};

/// Changes whenever a key, a value or the meaning of an index does. A daemon keeps the pinned maps of its
/// own version and makes new ones otherwise.
pub const VERSION: u32 = 5;

/// Names of the pinned maps, as in the object.
pub const MAPS: [&str; 18] = [
    "COUNTERS",
    "PORTS",
    "ADMIN",
    "HOSTFLOW",
    "BUCKET",
    "RECENT",
    "SETTINGS",
    "CID_KEY",
    "REVOKED",
    "TUNNEL",
    "FLOW4",
    "FLOW6",
    "SESSION",
    "IDENTITY_EPOCH",
    "HOP_SLOT",
    "NEXTHOP",
    "EVENTS",
    "LOSS",
];

/// Prefixes that the `ADMIN` trie holds at most.
pub const ADMIN_ENTRIES: u32 = 1024;
/// Flows that `HOSTFLOW` remembers at most; the least recently used gives way.
pub const HOST_FLOWS: u32 = 65_536;
/// Keys of connection IDs that are valid at once.
pub const CID_KEYS: u32 = 8;
/// Devices that can be revoked one by one, before the master key has to change.
pub const REVOKED_DEVICES: u32 = 8_192;
/// Authenticated tunnel peers at once.
pub const TUNNELS: u32 = 16_384;
/// Relay flows of each family at once; each session has two.
pub const FLOWS: u32 = 131_072;
pub const SESSIONS: u32 = 65_536;
pub const IDENTITIES: u32 = 65_536;
/// Next hops at once; each has two slots in `NEXTHOP`, so that one is written while the other counts.
pub const HOPS: u32 = 1_024;
/// Bits of `RECENT`. So many that the source of a random packet rarely shares one with a network that is
/// known.
pub const RECENT_BITS: u32 = 1 << 20;

/// The bit of `RECENT` for a network of that hash ([`Settings::network_hash`]): word and mask.
#[inline(always)]
pub const fn recent_bit(hash: u64) -> (u32, u64) {
    let bit = (hash >> 40) as u32 & (RECENT_BITS - 1);
    (bit >> 6, 1 << (bit & 63))
}

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

/// A set of ports: one bit in the byte that `PORTS` holds for each port.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortSet {
    /// TCP ports open to anyone.
    ServedTcp,
    /// UDP ports open to anyone.
    ServedUdp,
    /// UDP ports that some administrator's prefix is listed with.
    AdminUdp,
    /// TCP ports that some administrator's prefix is listed with.
    AdminTcp,
    /// UDP ports that this host has sent from. The egress program sets them, and nothing clears them: they only spare
    /// `HOSTFLOW` the question about a port that cannot be in it.
    HostUdp,
}

impl PortSet {
    pub const ALL: [Self; 5] =
        [Self::ServedTcp, Self::ServedUdp, Self::AdminUdp, Self::AdminTcp, Self::HostUdp];
    /// Entries of `PORTS`.
    pub const SLOTS: u32 = 65_536 / 8;
    /// The bits of this set in a word of `PORTS`.
    pub const fn mask(self) -> u64 {
        0x0101_0101_0101_0101 << self as u32
    }

    /// Index into `PORTS` of the word that holds `port`.
    #[inline(always)]
    pub const fn slot(port: u16) -> u32 {
        (port >> 3) as u32
    }

    /// The bit of `port` within its word.
    #[inline(always)]
    pub const fn bit(self, port: u16) -> u64 {
        1 << (((port & 7) << 3) as u32 + self as u32)
    }
}

/// The sets that hold one port: all that is asked of it, in one look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortSets(u8);

impl PortSets {
    /// From the word of `PORTS` that holds `port`.
    #[inline(always)]
    pub const fn of(word: u64, port: u16) -> Self {
        Self((word >> ((port & 7) << 3)) as u8)
    }

    #[inline(always)]
    pub const fn has(self, set: PortSet) -> bool {
        self.0 & 1 << set as u32 != 0
    }
}

impl FromIterator<PortSet> for PortSets {
    fn from_iter<T: IntoIterator<Item = PortSet>>(sets: T) -> Self {
        Self(sets.into_iter().fold(0, |bits, set| bits | 1 << set as u32))
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

    /// This host's port of a UDP flow; `None` for echo.
    #[inline(always)]
    pub const fn udp_port(&self) -> Option<u16> {
        if self.protocol == IPPROTO_UDP { Some(self.local_port) } else { None }
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

// A hole would carry what lay on the stack into a map or the ring.
const _: () = {
    assert!(size_of::<AdminKey>() == 20);
    assert!(size_of::<HostFlowKey>() == 40);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_sets_do_not_overlap() {
        let mut words = [0u64; PortSet::SLOTS as usize];
        for set in PortSet::ALL {
            for port in 0..=u16::MAX {
                let word = &mut words[PortSet::slot(port) as usize];
                assert!(!PortSets::of(*word, port).has(set));
                assert_eq!(*word & set.bit(port), 0);
                *word |= set.bit(port);
                assert!(PortSets::of(*word, port).has(set));
            }
            assert!(words.iter().all(|word| word & set.mask() == set.mask()));
        }
        let all = words[0];
        assert!(words.iter().all(|word| *word == all));
        assert_eq!(PortSets::of(all, 3), PortSet::ALL.into_iter().collect());
        assert_eq!(PortSets::of(PortSet::AdminTcp.bit(11), 11), [PortSet::AdminTcp].into_iter().collect());
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
}

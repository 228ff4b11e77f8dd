use crate::layout::{IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP};
use crate::{Address, DropReason, Family, PacketMeta, RateClass, Transport};

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
    pub zero: [u8; 2],
    /// [`Rule::index`] of what the packet broke, or 0.
    pub rule: u32,
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
            Transport::Udp { source, destination, .. } => (IPPROTO_UDP, source, destination),
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
            rule: u32::from_ne_bytes(take(&mut rest)?),
            source: Address::v6(take(&mut rest)?),
            destination: Address::v6(take(&mut rest)?),
        })
    }
}

/// What a dropped packet ran into, where the reason alone does not say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The budget that was used up.
    Budget(RateClass),
    /// Index of the relayed session.
    Session(u32),
}

impl Rule {
    /// How an [`Event`] has it; never 0.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        match self {
            Self::Budget(class) => class as u32 + 1,
            Self::Session(index) => index.saturating_add(1),
        }
    }

    /// The rule of that index that a drop for `reason` ran into.
    pub fn of(reason: DropReason, index: u32) -> Option<Self> {
        let nth = index.checked_sub(1)?;
        match reason {
            DropReason::ArpRate
            | DropReason::DhcpRate
            | DropReason::EchoRate
            | DropReason::NeighbourRate
            | DropReason::SynRate
            | DropReason::TunnelRate
            | DropReason::OpenerRate
            | DropReason::KnockRate => RateClass::ALL.get(nth as usize).copied().map(Self::Budget),
            DropReason::RelayRevoked
            | DropReason::RelayExpired
            | DropReason::RelayHopLimit
            | DropReason::RelayChecksum
            | DropReason::RelayMtu
            | DropReason::RelayNoHop => Some(Self::Session(nth)),
            _ => None,
        }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

// A hole would carry what lay on the stack into the ring.
const _: () = assert!(Event::SIZE == 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_another_size_is_refused() {
        assert!(Event::from_bytes(&[0; Event::SIZE]).is_some());
        assert!(Event::from_bytes(&[0; Event::SIZE - 1]).is_none());
        assert!(Event::from_bytes(&[0; Event::SIZE + 1]).is_none());
    }

    #[test]
    fn rules_survive_the_ring() {
        for class in RateClass::ALL {
            let rule = Rule::Budget(class);
            assert_eq!(Rule::of(DropReason::SynRate, rule.index()), Some(rule));
        }
        let rule = Rule::Session(7);
        assert_eq!(Rule::of(DropReason::RelayExpired, rule.index()), Some(rule));
        for (reason, index) in
            [(DropReason::SynRate, 0), (DropReason::SynRate, 99), (DropReason::Fragment, rule.index())]
        {
            assert_eq!(Rule::of(reason, index), None);
        }
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
        bytes[28..32].copy_from_slice(&5u32.to_ne_bytes());
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
            zero: [0; 2],
            rule: 5,
            source: Address::v4([192, 0, 2, 1]),
            destination: Address::v4([192, 0, 2, 2]),
        };
        assert_eq!(Event::from_bytes(&bytes), Some(event));
    }
}

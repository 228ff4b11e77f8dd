use crate::{Address, Family, Flow};

/// Key of `FLOW4`: where a relayed packet arrives and where it comes from; network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey4 {
    local: u32,
    remote: u32,
    local_port: u16,
    remote_port: u16,
}

/// Key of `FLOW6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey6 {
    local: [u32; 4],
    remote: [u32; 4],
    local_port: u16,
    remote_port: u16,
}

impl FlowKey4 {
    #[inline(always)]
    pub const fn new(flow: &Flow) -> Self {
        Self {
            local: flow.local.v4_word(),
            remote: flow.remote.v4_word(),
            local_port: flow.local_port.to_be(),
            remote_port: flow.remote_port.to_be(),
        }
    }

    pub fn flow(&self) -> Flow {
        Flow {
            family: Family::V4,
            local: Address::v4(self.local.to_ne_bytes()),
            remote: Address::v4(self.remote.to_ne_bytes()),
            local_port: u16::from_be(self.local_port),
            remote_port: u16::from_be(self.remote_port),
        }
    }
}

impl FlowKey6 {
    #[inline(always)]
    pub const fn new(flow: &Flow) -> Self {
        Self {
            local: flow.local.words(),
            remote: flow.remote.words(),
            local_port: flow.local_port.to_be(),
            remote_port: flow.remote_port.to_be(),
        }
    }

    pub fn flow(&self) -> Flow {
        Flow {
            family: Family::V6,
            local: Address::from_words(self.local),
            remote: Address::from_words(self.remote),
            local_port: u16::from_be(self.local_port),
            remote_port: u16::from_be(self.remote_port),
        }
    }
}

/// One direction of a relayed session: what a packet that arrives on the flow is made into.
///
/// The daemon never changes an entry in place, since a reader could see half of it: it removes it and inserts
/// another. The kernel adds to the counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEntry {
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
    /// What the change of addresses adds to the sum of an IPv4 header (RFC 1624).
    pub address_delta: u16,
    /// What the change of addresses and ports adds to the sum of a UDP datagram.
    pub transport_delta: u16,
    /// Index of the next hop, or [`TO_HOST`](Self::TO_HOST).
    pub hop: u32,
    /// Index of the session.
    pub session: u32,
    /// The session's generation when this was granted.
    pub generation: u32,
    /// 0 from the client to the connector, 1 back.
    pub direction: u32,
    /// Counted by the kernel: packets, and their bytes by the IP header's length.
    pub packets: u64,
    pub bytes: u64,
}

impl FlowEntry {
    /// In place of a next hop: the packets are for the node's own socket, which relays what the gate cannot. They are
    /// judged by their session like any other, and then passed as they are.
    pub const TO_HOST: u32 = u32::MAX;

    #[inline(always)]
    pub const fn is_to_host(&self) -> bool {
        self.hop == Self::TO_HOST
    }

    /// What packets of an entry leave on, which are of that family.
    pub const fn output(&self, family: Family) -> Flow {
        Flow {
            family,
            local: self.source,
            remote: self.destination,
            local_port: self.source_port,
            remote_port: self.destination_port,
        }
    }

    /// What makes packets of `arriving` leave on `leaving`. Both are seen from this host, and of one family.
    pub fn rewrite(arriving: &Flow, leaving: &Flow) -> Self {
        let mut addresses = 0u32;
        for (old, new) in [(arriving.remote, leaving.local), (arriving.local, leaving.remote)] {
            for (old, new) in halves(old).zip(halves(new)) {
                addresses += u32::from(!old) + u32::from(new);
            }
        }
        let mut transport = u32::from(fold(addresses));
        for (old, new) in
            [(arriving.remote_port, leaving.local_port), (arriving.local_port, leaving.remote_port)]
        {
            transport += u32::from(!old) + u32::from(new);
        }
        Self {
            source: leaving.local,
            destination: leaving.remote,
            source_port: leaving.local_port,
            destination_port: leaving.remote_port,
            address_delta: fold(addresses),
            transport_delta: fold(transport),
            ..Self::default()
        }
    }
}

/// A sum of sixteen-bit words in ones' complement (RFC 1071).
#[inline(always)]
pub(crate) const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

fn halves(address: Address) -> impl Iterator<Item = u16> {
    // The prefix of a mapped address is the same before and after, and adds nothing.
    address.words().into_iter().flat_map(|word| {
        let word = u32::from_be(word);
        [(word >> 16) as u16, (word & 0xffff) as u16]
    })
}

/// What every flow of a session depends on. One store of another generation revokes them all.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    pub generation: u32,
    /// Index of the person's epoch.
    pub identity: u32,
    /// That epoch when the session was granted.
    pub epoch: u64,
    /// Monotonic nanoseconds from which nothing of it passes.
    pub expires: u64,
}

/// Where relayed packets go next, as the link layer needs it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    pub ifindex: u32,
    /// Largest IP packet that the interface takes.
    pub mtu: u16,
    /// VLAN tags to put on: 0 to 2.
    pub tags: u16,
    /// Type and tag of each, as on the wire.
    pub tag: [[u8; 4]; 2],
    pub destination: [u8; 6],
    pub source: [u8; 6],
    pub zero: [u8; 4],
}

impl Hop {
    /// Destination and source as they begin a frame, in words as they lie in memory.
    #[inline(always)]
    pub(crate) const fn addresses(&self) -> [u32; 3] {
        let [d0, d1, d2, d3, d4, d5] = self.destination;
        let [s0, s1, s2, s3, s4, s5] = self.source;
        [
            u32::from_ne_bytes([d0, d1, d2, d3]),
            u32::from_ne_bytes([d4, d5, s0, s1]),
            u32::from_ne_bytes([s2, s3, s4, s5]),
        ]
    }
}

// A hole would carry what lay on the stack into a map; what is no whole word would be copied in parts.
const _: () = {
    assert!(size_of::<FlowKey4>() == 12);
    assert!(size_of::<FlowKey6>() == 36);
    assert!(size_of::<FlowEntry>() == 72);
    assert!(size_of::<Session>() == 24);
    assert!(size_of::<Hop>() == 32);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_give_their_flow_back() {
        let flow =
            |family, local, remote| Flow { family, local, remote, local_port: 443, remote_port: 50_000 };
        let v4 = flow(Family::V4, Address::v4([192, 0, 2, 1]), Address::v4([198, 51, 100, 7]));
        assert_eq!(FlowKey4::new(&v4).flow(), v4);
        let v6 = flow(Family::V6, Address::v6([1; 16]), Address::v6([2; 16]));
        assert_eq!(FlowKey6::new(&v6).flow(), v6);
    }
}

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Family;

/// An address of either family as sixteen bytes in network order; IPv4 takes its mapped form
/// `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2), so that one map serves both families.
///
/// [`parse`](crate::parse) refuses IPv6 packets that carry a mapped address: no packet of one family can
/// speak for an address of the other.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address {
    // Words as they lie in memory: BPF has no 128-bit compare, and four words compare without a call.
    words: [u32; 4],
}

/// The first 24 bits of a word, as it lies in memory.
const NETWORK_MASK: u32 = u32::from_be(0xffff_ff00);

/// The third word of a mapped address, as it lies in memory.
const MAPPED: u32 = u32::from_be(0xffff);

impl Address {
    #[inline(always)]
    pub const fn v4(bytes: [u8; 4]) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(bytes))
    }

    #[inline(always)]
    pub const fn v6(b: [u8; 16]) -> Self {
        Self {
            words: [
                u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
                u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
                u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
                u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
            ],
        }
    }

    /// What [`v4_word`](Self::v4_word) gives.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self { words: [0, 0, MAPPED, word] }
    }

    /// What [`words`](Self::words) gave.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The network that an address is counted under, as a number: /24 of IPv4, /56 of IPv6. No network of one
    /// family has the number of one of the other.
    #[inline(always)]
    pub const fn network(&self, family: Family) -> u64 {
        match family {
            Family::V4 => 0xffff_ffff << 32 | (self.words[3] & NETWORK_MASK) as u64,
            Family::V6 => (self.words[1] & NETWORK_MASK) as u64 | (self.words[0] as u64) << 32,
        }
    }

    /// The four words as they lie in memory, network order.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.words
    }

    /// The IPv4 address as it lies in memory; meaningless for an IPv6 address.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.words[3]
    }

    #[inline(always)]
    pub const fn is_mapped(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }

    /// `fe80::/10` (RFC 4291 §2.5.6).
    #[inline(always)]
    pub const fn is_link_local_v6(&self) -> bool {
        self.words[0] & u32::from_be(0xffc0_0000) == u32::from_be(0xfe80_0000)
    }

    pub fn octets(&self) -> [u8; 16] {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(self.words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        octets
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self::v6(v6.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_mapped() {
            Self::V4(Ipv4Addr::from(address.words[3].to_ne_bytes()))
        } else {
            Self::V6(Ipv6Addr::from(address.octets()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_survive_the_round_trip() {
        for text in ["192.0.2.1", "0.0.0.0", "2001:db8::1", "fe80::1", "::", "::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
        }
    }

    #[test]
    fn a_network_is_a_24th_or_a_56th_prefix() {
        let network = |text: &str| {
            let address: IpAddr = text.parse().unwrap();
            let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
            Address::from(address).network(family)
        };
        assert_eq!(network("192.0.2.1"), network("192.0.2.255"));
        assert_ne!(network("192.0.2.1"), network("192.0.3.1"));
        assert_eq!(network("2001:db8:1:2300::1"), network("2001:db8:1:23ff:ffff::2"));
        assert_ne!(network("2001:db8:1:2300::1"), network("2001:db8:1:2400::1"));
        assert_ne!(network("2001:db8:1:2300::1"), network("2001:db9:1:2300::1"));
        // Multicast is no source: nothing in IPv6 has the number of an IPv4 network.
        assert_ne!(network("255.255.255.1"), network("2001:db8:ffff:ffff::"));
    }

    #[test]
    fn octets_are_in_network_order() {
        let address = Address::v4([192, 0, 2, 1]);
        assert_eq!(address.octets(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
        assert!(address.is_mapped());
    }

    #[test]
    fn link_local_is_a_ten_bit_prefix() {
        for (text, expected) in [("fe80::1", true), ("febf::1", true), ("fec0::1", false), ("fe00::1", false)]
        {
            let address: Ipv6Addr = text.parse().unwrap();
            assert_eq!(Address::v6(address.octets()).is_link_local_v6(), expected, "{text}");
        }
    }
}

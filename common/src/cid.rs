use crate::SipKey;

/// An identifier that only the node can mint and anyone at the gate can check: the QUIC connection ID that
/// every packet of a peer carries once the node has answered it (RFC 9000 §5.1), and the ticket of a relay
/// bind.
///
/// ```text
///  0        1                       8                      16
/// +--------+-----------------------+----------------------+
/// | slot   | nonce                 | tag                  |
/// +--------+-----------------------+----------------------+
/// ```
///
/// The low three bits of the first byte name one of eight keys, the rest of it belongs to the nonce; the tag
/// is SipHash-2-4 of the first eight bytes. A false accept lets a stranger's packet reach the QUIC endpoint,
/// within a budget; a false reject cuts a tunnel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    /// Slot and nonce, little endian.
    head: u64,
    tag: u64,
}

impl ConnectionId {
    pub const SIZE: usize = 16;

    /// Mints an identifier under the key in `slot`. `nonce` is random; its low three bits are not used.
    pub fn mint(slot: u8, key: &SipKey, nonce: u64) -> Self {
        let head = nonce & !SLOT_MASK | u64::from(slot) & SLOT_MASK;
        Self { head, tag: key.hash([head]) }
    }

    #[inline(always)]
    pub const fn from_bytes(b: [u8; Self::SIZE]) -> Self {
        Self {
            head: u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            tag: u64::from_le_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
        }
    }

    /// The two halves as they lie in memory.
    #[inline(always)]
    pub(crate) const fn from_words(head: u64, tag: u64) -> Self {
        Self { head: u64::from_le(head), tag: u64::from_le(tag) }
    }

    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.head.to_le_bytes());
        bytes[8..].copy_from_slice(&self.tag.to_le_bytes());
        bytes
    }

    /// Which of [`CID_KEYS`](crate::layout::CID_KEYS) keys it claims to be minted under.
    #[inline(always)]
    pub const fn slot(&self) -> u32 {
        (self.head & SLOT_MASK) as u32
    }

    #[inline(always)]
    pub fn is_minted_by(&self, key: &SipKey) -> bool {
        !key.is_zero() && key.hash([self.head]) == self.tag
    }

    /// A number that differs between identifiers as a hash does, once the tag is known to be right.
    #[inline(always)]
    pub const fn hash(&self) -> u64 {
        self.tag
    }
}

const SLOT_MASK: u64 = 7;

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: SipKey = SipKey::new([1, 2]);

    #[test]
    fn what_is_minted_survives_the_wire_and_verifies() {
        for slot in 0..8 {
            let id = ConnectionId::mint(slot, &KEY, 0xdead_beef_0102_0304 + u64::from(slot) * 977);
            let seen = ConnectionId::from_bytes(id.to_bytes());
            assert_eq!(seen, id);
            assert_eq!(seen.slot(), u32::from(slot));
            assert!(seen.is_minted_by(&KEY));
        }
    }

    #[test]
    fn no_changed_bit_and_no_other_key_verifies() {
        let id = ConnectionId::mint(3, &KEY, 0x0123_4567_89ab_cdef);
        for bit in 0..128 {
            let mut bytes = id.to_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!ConnectionId::from_bytes(bytes).is_minted_by(&KEY), "bit {bit}");
        }
        assert!(!id.is_minted_by(&SipKey::new([1, 3])));
    }

    /// A slot that no key was put in is all zeroes, and anyone can hash with that.
    #[test]
    fn an_empty_slot_verifies_nothing() {
        let zero = SipKey::new([0, 0]);
        assert!(!ConnectionId::mint(0, &zero, 7).is_minted_by(&zero));
    }
}

use crate::SipKey;

/// What an enrolled device puts into the destination connection ID of its first packets, where the tunnel's
/// port is dark: proof to the gate, without any state there, that the device may be answered.
///
/// ```text
///  0       1            5                  12                20
/// +-------+------------+------------------+------------------+
/// | epoch | device     | nonce            | tag              |
/// +-------+------------+------------------+------------------+
/// ```
///
/// The first byte is the low byte of the epoch, the device's number is masked by a keystream over epoch and
/// nonce, and the tag is SipHash-2-4 under the device's own key of the first twelve bytes and the whole epoch.
/// A device knows its own key and the mask's, so one device cannot knock as another. A knock is worth
/// nothing beyond its epoch and the ones beside it; within it, whoever captured it can use it once more from
/// elsewhere to learn that the port is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knock {
    /// Epoch's low byte, masked device, and the first three bytes of the nonce.
    head: u64,
    /// The other four bytes of the nonce.
    rest: u32,
    tag: u64,
}

/// What the node holds: keys of every device follow from `master`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnockKeys {
    pub master: SipKey,
    pub mask: SipKey,
}

/// What one device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceKeys {
    pub device: u32,
    pub key: SipKey,
    pub mask: SipKey,
}

/// Nanoseconds of an epoch.
pub const KNOCK_EPOCH_NS: u64 = 600 * 1_000_000_000;

impl KnockKeys {
    /// Whether there are none: then no knock is right.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.master.is_zero()
    }

    /// What device number `device` is given when it enrols.
    #[inline(always)]
    pub fn device(&self, device: u32) -> DeviceKeys {
        let device_word = u64::from(device);
        let key = SipKey::new([self.master.hash([device_word, 0]), self.master.hash([device_word, 1])]);
        DeviceKeys { device, key, mask: self.mask }
    }

    /// The device that knocks, if the knock is right. `now` is wall-clock time in nanoseconds.
    #[inline(always)]
    pub fn verify(&self, knock: &Knock, now: u64) -> Option<u32> {
        if self.is_empty() {
            return None;
        }
        let epoch = knock.epoch_near(now / KNOCK_EPOCH_NS)?;
        let device = knock.masked_device() ^ knock.keystream(&self.mask);
        (self.device(device).key.hash([knock.head, u64::from(knock.rest), epoch]) == knock.tag)
            .then_some(device)
    }
}

impl DeviceKeys {
    /// A fresh knock. `now` is wall-clock time in nanoseconds; the nonce is random, 56 bits of it count.
    pub fn knock(&self, now: u64, nonce: u64) -> Knock {
        let epoch = now / KNOCK_EPOCH_NS;
        let mut knock = Knock {
            head: epoch & 0xff | (nonce & 0xff_ffff) << 40,
            rest: (nonce >> 24 & 0xffff_ffff) as u32,
            tag: 0,
        };
        knock.head |= u64::from(self.device ^ knock.keystream(&self.mask)) << 8;
        knock.tag = self.key.hash([knock.head, u64::from(knock.rest), epoch]);
        knock
    }
}

impl Knock {
    pub const SIZE: usize = 20;

    pub const fn from_bytes(b: [u8; Self::SIZE]) -> Self {
        Self {
            head: u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            rest: u32::from_le_bytes([b[8], b[9], b[10], b[11]]),
            tag: u64::from_le_bytes([b[12], b[13], b[14], b[15], b[16], b[17], b[18], b[19]]),
        }
    }

    /// The three parts after one another, as they lie in memory.
    #[inline(always)]
    pub(crate) const fn from_words(head: u64, rest: u32, tag: u64) -> Self {
        Self { head: u64::from_le(head), rest: u32::from_le(rest), tag: u64::from_le(tag) }
    }

    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.head.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.rest.to_le_bytes());
        bytes[12..].copy_from_slice(&self.tag.to_le_bytes());
        bytes
    }

    /// A number that differs between knocks as a hash does, once the tag is known to be right.
    #[inline(always)]
    pub const fn hash(&self) -> u64 {
        self.tag
    }

    /// The epoch that the knock was made in, if that is this one or a neighbour.
    #[inline(always)]
    fn epoch_near(&self, current: u64) -> Option<u64> {
        match (self.head as u8).wrapping_sub(current as u8) {
            0 => Some(current),
            1 => Some(current.wrapping_add(1)),
            0xff => Some(current.wrapping_sub(1)),
            _ => None,
        }
    }

    #[inline(always)]
    fn masked_device(&self) -> u32 {
        (self.head >> 8) as u32
    }

    #[inline(always)]
    fn keystream(&self, mask: &SipKey) -> u32 {
        mask.hash([self.head & 0xffff_ff00_0000_00ff, u64::from(self.rest)]) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: KnockKeys = KnockKeys { master: SipKey::new([3, 4]), mask: SipKey::new([5, 6]) };
    const NOW: u64 = 1_790_000_000 * 1_000_000_000;

    #[test]
    fn a_device_is_known_within_its_epoch_and_the_ones_beside_it() {
        for device in [0, 1, 77, u32::MAX] {
            let knock = KEYS.device(device).knock(NOW, 0x00aa_bbcc_ddee_ff11);
            let knock = Knock::from_bytes(knock.to_bytes());
            for (later, expected) in
                [(-2i64, None), (-1, Some(device)), (0, Some(device)), (1, Some(device)), (2, None)]
            {
                let then = NOW.wrapping_add_signed(later * KNOCK_EPOCH_NS as i64);
                assert_eq!(KEYS.verify(&knock, then), expected, "{later} epochs later");
            }
            // The wire carries eight bits of the epoch; the tag covers all of it.
            assert_eq!(KEYS.verify(&knock, NOW + 256 * KNOCK_EPOCH_NS), None);
        }
    }

    #[test]
    fn no_changed_bit_and_no_other_device_is_accepted() {
        let knock = KEYS.device(7).knock(NOW, 42);
        for bit in 0..160 {
            let mut bytes = knock.to_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(KEYS.verify(&Knock::from_bytes(bytes), NOW), None, "bit {bit}");
        }
        let thief = DeviceKeys { device: 7, ..KEYS.device(8) };
        assert_eq!(KEYS.verify(&thief.knock(NOW, 42), NOW), None);
        assert_eq!(KnockKeys::default().verify(&KnockKeys::default().device(7).knock(NOW, 42), NOW), None);
    }

    #[test]
    fn two_knocks_of_one_device_have_nothing_in_common_but_the_epoch() {
        let [one, other] = [1, 2].map(|nonce| KEYS.device(7).knock(NOW, nonce).to_bytes());
        assert_eq!(one[0], other[0]);
        assert_ne!(one[1..5], other[1..5]);
        assert_ne!(one[12..], other[12..]);
    }
}

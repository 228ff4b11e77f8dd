/// A key of SipHash, as the two words it is mixed in as.
///
/// Two words of state that only the node knows make what a stranger sends unpredictable to him: which bucket
/// he pays from, and whether an identifier of his is one of ours.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct SipKey {
    words: [u64; 2],
}

impl SipKey {
    #[inline(always)]
    pub const fn new(words: [u64; 2]) -> Self {
        Self { words }
    }

    /// Words in little-endian order, as the reference implementation reads a key of sixteen bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let [low, high] = [0, 8].map(|at| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        });
        Self { words: [low, high] }
    }

    /// What [`from_bytes`](Self::from_bytes) reads.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (place, word) in bytes.chunks_exact_mut(8).zip(self.words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    #[inline(always)]
    pub const fn is_zero(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0
    }

    /// SipHash-2-4 (Aumasson and Bernstein, 2012) of `words` as little-endian bytes.
    ///
    /// Never inlined: a copy of it is a kilobyte of instructions, which crowds out of the processor's cache those that every packet needs.
    #[inline(never)]
    pub fn hash<const N: usize>(&self, words: [u64; N]) -> u64 {
        let [k0, k1] = self.words;
        let mut state = State {
            v0: k0 ^ 0x736f_6d65_7073_6575,
            v1: k1 ^ 0x646f_7261_6e64_6f6d,
            v2: k0 ^ 0x6c79_6765_6e65_7261,
            v3: k1 ^ 0x7465_6462_7974_6573,
        };
        for word in words {
            state.absorb(word);
        }
        // The last block holds what is left of the message (nothing here) and its length modulo 256.
        state.absorb(((N as u64 * 8) & 0xff) << 56);
        state.v2 ^= 0xff;
        for _ in 0..4 {
            state.round();
        }
        state.v0 ^ state.v1 ^ state.v2 ^ state.v3
    }
}

/// A key is a secret.
impl core::fmt::Debug for SipKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("SipKey(..)")
    }
}

struct State {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl State {
    #[inline(always)]
    fn absorb(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.round();
        self.v0 ^= word;
    }

    #[inline(always)]
    fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.rotate_left(32);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::hash::Hasher;

    use super::*;

    const KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    /// Vectors of the reference implementation: the message is 00 01 02 …
    #[test]
    fn reference_vectors() {
        let key = SipKey::new(KEY);
        assert_eq!(key.hash([]), 0x726f_db47_dd0e_0e31);
        assert_eq!(key.hash([0x0706_0504_0302_0100]), 0x93f5_f579_9a93_2462);
        assert_eq!(key.hash(KEY), 0x3f2a_cc7f_57c2_9bdb);
    }

    #[test]
    #[expect(deprecated, reason = "another implementation of the same function")]
    fn agrees_with_the_standard_library() {
        for n in 0..1_000u64 {
            let words = [n, n.wrapping_mul(0x9e37_79b9_7f4a_7c15), !n];
            let mut other = std::hash::SipHasher::new_with_keys(n, !n);
            for word in words {
                other.write(&word.to_le_bytes());
            }
            assert_eq!(SipKey::new([n, !n]).hash(words), other.finish());
        }
    }

    #[test]
    fn a_key_of_bytes_is_read_in_little_endian_order() {
        let bytes = core::array::from_fn(|at| u8::try_from(at).unwrap());
        assert_eq!(SipKey::from_bytes(bytes), SipKey::new(KEY));
        assert_eq!(std::format!("{:?}", SipKey::new(KEY)), "SipKey(..)");
    }
}

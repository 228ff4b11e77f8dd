//! The bytes of one Ethernet frame, read and written by words: where a frame lies at an address, a word is one instruction, and a word
//! put together of bytes is ten.

use crate::DropReason;

/// Read access.
pub trait Frame {
    /// Bytes that can be read.
    type Bytes<const N: usize>: Bytes<N>;

    /// Bytes of the whole frame, parts that [`Frame::read`] cannot reach included.
    fn length(&self) -> usize;
    /// The `N` bytes at `at`, or `None` unless all of them can be read.
    fn read<const N: usize>(&self, at: usize) -> Option<Self::Bytes<N>>;
}

/// Write access.
pub trait FrameMut: Frame {
    /// Bytes that can be written.
    type Place<'a, const N: usize>: Place<N>
    where
        Self: 'a;

    /// The `N` bytes at `at`.
    ///
    /// # Errors
    ///
    /// [`DropReason::RelayNoHop`] unless all of them are within reach.
    fn place<const N: usize>(&mut self, at: usize) -> Result<Self::Place<'_, N>, DropReason>;

    /// Cuts so many bytes off the front, or adds them there if negative; their content is undefined.
    ///
    /// # Errors
    ///
    /// [`DropReason::RelayNoHop`] where there is no room.
    fn cut_front(&mut self, bytes: i32) -> Result<(), DropReason>;
}

/// Some bytes of a frame. A number of more than one byte is as it lies in memory; what is read must lie within the `N` bytes.
pub trait Bytes<const N: usize>: Copy {
    fn byte<const AT: usize>(self) -> u8;
    fn half<const AT: usize>(self) -> u16;
    fn word<const AT: usize>(self) -> u32;
    fn double<const AT: usize>(self) -> u64;
    /// A copy of all.
    fn array(self) -> [u8; N];

    /// Sixteen bits in network order.
    #[inline(always)]
    fn number<const AT: usize>(self) -> u16 {
        u16::from_be(self.half::<AT>())
    }
}

/// Some bytes of a frame, to be written; otherwise as [`Bytes`].
pub trait Place<const N: usize> {
    fn half<const AT: usize>(&self) -> u16;
    fn set_byte<const AT: usize>(&mut self, byte: u8);
    fn byte<const AT: usize>(&self) -> u8;
    fn set_half<const AT: usize>(&mut self, half: u16);
    fn set_word<const AT: usize>(&mut self, word: u32);
}

impl Frame for [u8] {
    type Bytes<const N: usize> = [u8; N];

    fn length(&self) -> usize {
        self.len()
    }

    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.get(at..)?.first_chunk().copied()
    }
}

impl<const N: usize> Bytes<N> for [u8; N] {
    fn byte<const AT: usize>(self) -> u8 {
        let [byte] = part::<1, AT>(&self);
        byte
    }

    fn half<const AT: usize>(self) -> u16 {
        u16::from_ne_bytes(part::<2, AT>(&self))
    }

    fn word<const AT: usize>(self) -> u32 {
        u32::from_ne_bytes(part::<4, AT>(&self))
    }

    fn double<const AT: usize>(self) -> u64 {
        u64::from_ne_bytes(part::<8, AT>(&self))
    }

    fn array(self) -> [u8; N] {
        self
    }
}

impl<const N: usize> Place<N> for &mut [u8; N] {
    fn byte<const AT: usize>(&self) -> u8 {
        let [byte] = part::<1, AT>(&**self);
        byte
    }

    fn half<const AT: usize>(&self) -> u16 {
        u16::from_ne_bytes(part::<2, AT>(&**self))
    }

    fn set_byte<const AT: usize>(&mut self, byte: u8) {
        set::<1, AT>(&mut **self, [byte]);
    }

    fn set_half<const AT: usize>(&mut self, half: u16) {
        set::<2, AT>(&mut **self, half.to_ne_bytes());
    }

    fn set_word<const AT: usize>(&mut self, word: u32) {
        set::<4, AT>(&mut **self, word.to_ne_bytes());
    }
}

fn part<const N: usize, const AT: usize>(bytes: &[u8]) -> [u8; N] {
    let mut part = [0; N];
    for (to, from) in part.iter_mut().zip(bytes.iter().skip(AT)) {
        *to = *from;
    }
    part
}

fn set<const N: usize, const AT: usize>(bytes: &mut [u8], part: [u8; N]) {
    for (to, from) in bytes.iter_mut().skip(AT).zip(part) {
        *to = from;
    }
}

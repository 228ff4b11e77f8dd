//! Datagrams in a stream of bytes: DATAGRAM capsules (RFC 9297 §3.5) with the context of a UDP payload (RFC 9298 §5).
//!
//! Pure. A false accept would cost memory: hence no datagram longer than [`MAX_DATAGRAM`], and nothing unknown is kept. A
//! false reject ends the stream, which the ends open anew.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Bytes of the longest datagram: more than any packet of a tunnel.
pub const MAX_DATAGRAM: usize = 1500;

/// Bytes of a capsule of another type, which are passed over.
const MAX_UNKNOWN: u64 = 64 * 1024;

/// The capsule type DATAGRAM.
const DATAGRAM: u64 = 0;
/// The context of UDP payloads.
const UDP_PAYLOAD: u64 = 0;

/// Bytes of the longest variable-length integer (RFC 9000 §16).
const MAX_VARINT: usize = 8;

/// The peer sent what no end of a tunnel sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CapsuleError {
    #[error("a capsule is longer than any that is sent here")]
    TooLong,
    #[error("a datagram has no context")]
    NoContext,
}

/// Appends the capsule of a datagram; false: it is too long to be sent.
pub fn encode(datagram: &[u8], out: &mut BytesMut) -> bool {
    if datagram.len() > MAX_DATAGRAM {
        return false;
    }
    put_varint(out, DATAGRAM);
    put_varint(out, 1 + datagram.len() as u64);
    put_varint(out, UDP_PAYLOAD);
    out.extend_from_slice(datagram);
    true
}

/// Reads capsules, as the bytes come.
#[derive(Debug, Default)]
pub struct Capsules {
    /// Bytes of an unknown capsule that are still to come.
    skip: u64,
}

impl Capsules {
    /// The next datagram of `input`, from which it is taken. None: more bytes are needed, of which `input` holds fewer
    /// than one capsule.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, CapsuleError> {
        loop {
            if self.skip > 0 {
                let here = input.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
                input.advance(here);
                self.skip -= here as u64;
            }
            let mut head = input.as_ref();
            let (Some(kind), Some(length)) = (varint(&mut head), varint(&mut head)) else { return Ok(None) };
            let head_length = input.len() - head.len();
            if kind != DATAGRAM {
                if length > MAX_UNKNOWN {
                    return Err(CapsuleError::TooLong);
                }
                input.advance(head_length);
                self.skip = length;
                continue;
            }
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > MAX_VARINT + MAX_DATAGRAM {
                return Err(CapsuleError::TooLong);
            }
            if head.len() < length {
                return Ok(None);
            }
            input.advance(head_length);
            let value = input.split_to(length).freeze();
            let mut payload = value.as_ref();
            let context = varint(&mut payload).ok_or(CapsuleError::NoContext)?;
            // Of other contexts nothing was said; such a datagram is dropped (RFC 9298 §4).
            if context != UDP_PAYLOAD || payload.is_empty() {
                continue;
            }
            if payload.len() > MAX_DATAGRAM {
                return Err(CapsuleError::TooLong);
            }
            return Ok(Some(value.slice_ref(payload)));
        }
    }
}

/// In the shortest form.
fn put_varint(out: &mut BytesMut, value: u64) {
    match value {
        0..0x40 => out.put_uint(value, 1),
        0x40..0x4000 => out.put_uint(value | 0x4000, 2),
        0x4000..0x4000_0000 => out.put_uint(value | 0x8000_0000, 4),
        _ => out.put_u64(value | 0xc000_0000_0000_0000),
    }
}

/// In any form; none: it is cut off.
fn varint(input: &mut &[u8]) -> Option<u64> {
    let first = *input.first()?;
    let length = 1_usize << (first >> 6);
    let (bytes, rest) = input.split_at_checked(length)?;
    *input = rest;
    let value = bytes.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    Some(value & (u64::MAX >> (64 - 8 * length + 2)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All datagrams of `bytes`, fed in pieces of `step`.
    fn read(bytes: &[u8], step: usize) -> Result<Vec<Bytes>, CapsuleError> {
        let (mut capsules, mut input, mut datagrams) = (Capsules::default(), BytesMut::new(), Vec::new());
        for piece in bytes.chunks(step.max(1)) {
            input.extend_from_slice(piece);
            while let Some(datagram) = capsules.next(&mut input)? {
                datagrams.push(datagram);
            }
        }
        Ok(datagrams)
    }

    #[test]
    fn the_examples_of_the_rfc_read_as_they_say() {
        for (bytes, value) in [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ] {
            let mut input = bytes;
            assert_eq!((varint(&mut input), input.len()), (Some(value), 0));
            assert_eq!(varint(&mut &bytes[..bytes.len() - 1]), None);
        }
    }

    #[test]
    fn what_is_unknown_is_passed_over_and_what_is_too_long_is_an_error() {
        // An unknown capsule of three bytes, a datagram of context 4, an empty one, and one that counts.
        let bytes = [0x17, 3, 9, 9, 9, 0, 2, 4, 9, 0, 1, 0, 0, 3, 0, 7, 8];
        for step in 1..=bytes.len() {
            assert_eq!(read(&bytes, step), Ok(vec![Bytes::from_static(&[7, 8])]), "{step}");
        }
        let mut long = BytesMut::new();
        assert!(!encode(&[0; MAX_DATAGRAM + 1], &mut long) && long.is_empty());
        assert_eq!(read(&[0, 0x45, 0xe6], 9), Err(CapsuleError::TooLong), "before its bytes have come");
        let mut padded = vec![0, 0x45, 0xdd, 0];
        padded.resize(4 + MAX_DATAGRAM, 1);
        assert_eq!(read(&padded, 4096).map(|read| read.len()), Ok(1));
        padded[2] = 0xde;
        padded.push(1);
        assert_eq!(read(&padded, 4096), Err(CapsuleError::TooLong));
        assert_eq!(read(&[0x17, 0x80, 1, 0, 1], 9), Err(CapsuleError::TooLong));
        assert_eq!(read(&[0, 0], 9), Err(CapsuleError::NoContext));
    }

    proptest! {
        #[test]
        fn datagrams_survive_in_any_pieces(
            datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..MAX_DATAGRAM), 0..6),
            step in 1usize..3000,
        ) {
            let mut bytes = BytesMut::new();
            for datagram in &datagrams {
                prop_assert!(encode(datagram, &mut bytes));
            }
            prop_assert_eq!(read(&bytes, step).unwrap(), datagrams);
        }
    }
}

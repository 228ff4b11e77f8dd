use crate::frame::{Bytes, Frame};
use crate::{ConnectionId, DropReason, Knock, Span};

/// What a datagram to the tunnel's port is, by its first bytes. Only its first packet is looked at: the
/// endpoint judges what is coalesced behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Datagram {
    /// A QUIC packet that must carry an identifier of ours.
    Quic(ConnectionId),
    /// A QUIC Initial packet in a datagram of full size: the opening of a connection, or a later one of it.
    Initial(InitialId),
    /// A relay bind or its answer, with the ticket.
    Bind(ConnectionId),
}

/// Destination connection ID of an Initial. The client chooses the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InitialId {
    /// As long as the node's own.
    Minted(ConnectionId),
    /// As long as a knock.
    Knock(Knock),
    /// Of another length that a client may choose, 8 to 19 bytes.
    Chosen,
}

/// Bytes of datagram that an Initial must come in (RFC 9000 §14.1).
pub const INITIAL_DATAGRAM: usize = 1_200;
/// QUIC version 1 (RFC 9000 §15), the only one that is spoken.
const VERSION_1: u32 = 1;
/// First byte, identifier, a packet number of four bytes and a tag of sixteen: what the removal of header
/// protection needs (RFC 9001 §5.4.2).
const SHORTEST_QUIC: usize = 1 + ConnectionId::SIZE + 4 + 16;
/// Bytes of a relay bind, and of its answer.
pub const BIND_DATAGRAM: usize = 46;
/// First bytes of the two.
const BIND: u8 = 1;
const ANSWER: u8 = 3;

/// Reads the front of a datagram of `length` bytes at `at`.
///
/// The two top bits of the first byte are QUIC's header form and fixed bit (RFC 9000 §17). The node and its
/// peers never grease the fixed bit, so that a datagram without both is free for the bind protocol, as RFC
/// 9443 shares a port.
///
/// # Errors
///
/// [`DropReason::TunnelForm`] for what none of the node's peers sends.
#[inline(always)]
pub(crate) fn datagram<F: Frame + ?Sized>(
    frame: &F,
    at: usize,
    length: usize,
) -> Result<Datagram, DropReason> {
    const MALFORMED: DropReason = DropReason::TunnelForm;
    if length < SHORTEST_QUIC {
        return Err(MALFORMED);
    }
    // The verifier takes no check of a single byte at a variable place; a long header has six to begin with.
    let head = frame.read::<6>(at).ok_or(DropReason::Truncated)?;
    let first = head.byte::<0>();
    match first >> 6 {
        0b01 => Ok(Datagram::Quic(identifier(frame, at + 1)?)),
        0b11 => long_header(frame, at, length, head),
        0b00 if length == BIND_DATAGRAM && is_bind_kind(first) => {
            Ok(Datagram::Bind(identifier(frame, at + 1)?))
        }
        _ => Err(MALFORMED),
    }
}

/// Whether the datagram is a bind or an answer by its length and first byte. On the tuple of a relayed flow, where
/// all else goes on to the other end, these two are for the node: an end binds again from where it already is.
#[inline(always)]
pub(crate) fn is_bind<F: Frame + ?Sized>(frame: &F, payload: Span) -> bool {
    if usize::from(payload.length) != BIND_DATAGRAM {
        return false;
    }
    frame.read::<2>(payload.start()).is_some_and(|head| is_bind_kind(head.byte::<0>()))
}

#[inline(always)]
const fn is_bind_kind(first: u8) -> bool {
    first == BIND || first == ANSWER
}

/// First byte, version, length of the destination connection ID, and that ID (RFC 9000 §17.2). Of the four
/// types a client sends this node two: 0-RTT is off, and Retry comes from servers.
#[inline(always)]
fn long_header<F: Frame + ?Sized>(
    frame: &F,
    at: usize,
    length: usize,
    head: impl Bytes<6>,
) -> Result<Datagram, DropReason> {
    const INITIAL: u8 = 0;
    const HANDSHAKE: u8 = 2;
    if u32::from_be(head.word::<1>()) != VERSION_1 {
        return Err(DropReason::TunnelVersion);
    }
    let (id_at, id_length) = (at + 6, head.byte::<5>());
    match head.byte::<0>() >> 4 & 3 {
        HANDSHAKE if usize::from(id_length) == ConnectionId::SIZE && length >= SHORTEST_QUIC => {
            Ok(Datagram::Quic(identifier(frame, id_at)?))
        }
        INITIAL if length >= INITIAL_DATAGRAM => match usize::from(id_length) {
            ConnectionId::SIZE => Ok(Datagram::Initial(InitialId::Minted(identifier(frame, id_at)?))),
            Knock::SIZE => {
                let id = frame.read::<{ Knock::SIZE }>(id_at).ok_or(DropReason::Truncated)?;
                let knock = Knock::from_words(id.double::<0>(), id.word::<8>(), id.double::<12>());
                Ok(Datagram::Initial(InitialId::Knock(knock)))
            }
            8..=19 => Ok(Datagram::Initial(InitialId::Chosen)),
            _ => Err(DropReason::TunnelForm),
        },
        _ => Err(DropReason::TunnelForm),
    }
}

#[inline(always)]
fn identifier<F: Frame + ?Sized>(frame: &F, at: usize) -> Result<ConnectionId, DropReason> {
    let id = frame.read::<{ ConnectionId::SIZE }>(at).ok_or(DropReason::Truncated)?;
    Ok(ConnectionId::from_words(id.double::<0>(), id.double::<8>()))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    fn long(kind: u8, version: u32, id: &[u8], length: usize) -> Vec<u8> {
        let mut bytes = Vec::from([0b1100_0000 | kind << 4]);
        bytes.extend(version.to_be_bytes());
        bytes.push(u8::try_from(id.len()).unwrap());
        bytes.extend(id);
        bytes.resize(length, 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Datagram, DropReason> {
        datagram(bytes, 0, bytes.len())
    }

    #[test]
    fn each_form_is_known_by_its_first_byte() {
        let id = ConnectionId::from_bytes([7; 16]);
        let knock = Knock::from_bytes([9; 20]);
        let short = |first: u8, length: usize| {
            let mut bytes = Vec::from([first]);
            bytes.extend([7; 16]);
            bytes.resize(length, 0);
            bytes
        };
        assert_eq!(read(&short(0x40, 37)), Ok(Datagram::Quic(id)));
        assert_eq!(read(&short(0x40, 36)), Err(DropReason::TunnelForm));
        for (first, length, expected) in [
            (1, 46, Ok(Datagram::Bind(id))),
            (3, 46, Ok(Datagram::Bind(id))),
            (1, 45, Err(DropReason::TunnelForm)),
            (1, 47, Err(DropReason::TunnelForm)),
            (0, 46, Err(DropReason::TunnelForm)),
            (2, 46, Err(DropReason::TunnelForm)),
            (0x3f, 46, Err(DropReason::TunnelForm)),
        ] {
            assert_eq!(read(&short(first, length)), expected, "{first} {length}");
            let span = Span { at: 0, length: u16::try_from(length).unwrap() };
            assert_eq!(is_bind(short(first, length).as_slice(), span), expected.is_ok());
        }
        assert_eq!(read(&short(0x80, 1_200)), Err(DropReason::TunnelForm));
        assert_eq!(read(&[]), Err(DropReason::TunnelForm));

        assert_eq!(read(&long(0, 1, &[7; 16], 1_200)), Ok(Datagram::Initial(InitialId::Minted(id))));
        assert_eq!(read(&long(0, 1, &[9; 20], 1_200)), Ok(Datagram::Initial(InitialId::Knock(knock))));
        for length in [8, 15, 17, 19] {
            let initial = long(0, 1, &[1; 19][..length], 1_200);
            assert_eq!(read(&initial), Ok(Datagram::Initial(InitialId::Chosen)));
        }
        for length in [0, 7] {
            assert_eq!(read(&long(0, 1, &[1; 7][..length], 1_200)), Err(DropReason::TunnelForm));
        }
        assert_eq!(read(&long(0, 1, &[1; 21], 1_200)), Err(DropReason::TunnelForm));
        assert_eq!(read(&long(0, 1, &[7; 16], 1_199)), Err(DropReason::TunnelForm));
        assert_eq!(read(&long(2, 1, &[7; 16], 60)), Ok(Datagram::Quic(id)));
        for (kind, id_length) in [(2, 8), (2, 20), (1, 16), (3, 16)] {
            assert_eq!(read(&long(kind, 1, &[7; 20][..id_length], 1_200)), Err(DropReason::TunnelForm));
        }
        for version in [0, 2, 0x6b33_43cf, 0x0a0a_0a0a] {
            assert_eq!(read(&long(0, version, &[7; 16], 1_200)), Err(DropReason::TunnelVersion));
        }
    }
}

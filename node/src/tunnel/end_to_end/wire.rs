//! Every frame of `portcullis-session/1`.
//!
//! ```text
//! stream    the client opens it with a Request (a frame of `tunnel::wire`), the connector answers with a Reply
//! datagram  whole   flow 4 | 00 | payload                                          numbers are big endian
//!           part    flow 4 | 01 | packet 2 | index 1 | last 1 | part of the payload
//! ```
//!
//! A false accept here only mixes up what one authorized client and its connector say to each other; a false reject
//! loses a datagram, which is counted. Pure: no clock, no socket.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::super::wire::{Authority, DialFailure, Frame};

/// Application protocol (RFC 7301) of an end-to-end connection.
pub(super) const ALPN: &[u8] = b"portcullis-session/1";

/// Bytes of the largest UDP payload (RFC 768, RFC 791).
pub(crate) const MAX_PAYLOAD: usize = 65_507;

/// Parts of one payload: what 65,507 bytes need on the smallest path that QUIC runs on (RFC 9000 §14), and some more.
pub(super) const MAX_PARTS: usize = 64;

const WHOLE: u8 = 0;
const PART: u8 = 1;

/// Bytes before a whole payload, and before a part of one.
const WHOLE_HEADER: usize = 4 + 1;
const PART_HEADER: usize = WHOLE_HEADER + 2 + 1 + 1;

/// The first frame of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) carries: Carries,
    /// Where the application is a network; where it is not, nothing or its one address.
    pub(crate) destination: Option<Authority>,
}

/// What a stream stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Carries {
    /// A TCP connection, whose bytes follow.
    Tcp,
    /// A UDP flow of this number, whose payloads travel in QUIC datagrams until the stream ends.
    Udp { flow: u32 },
}

impl Frame for Request {
    const LIMIT: usize = 300;
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// It is connected.
    Opened,
    /// Not within the grant, or the connector's own limits exclude it.
    Refused,
    /// It could not be reached.
    Down(DialFailure),
    /// The connector is about to leave, or has no room.
    Busy,
}

impl Frame for Reply {
    const LIMIT: usize = 8;
}

/// A payload of a flow, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Datagram {
    pub(super) flow: u32,
    pub(super) part: Part,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Whole(Bytes),
    /// Part `index` of `0..=last` of the flow's payload number `packet`.
    Of {
        packet: u16,
        index: u8,
        last: u8,
        bytes: Bytes,
    },
}

impl Datagram {
    /// Nothing where it is malformed.
    pub(super) fn parse(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() < WHOLE_HEADER {
            return None;
        }
        let (flow, kind) = (bytes.get_u32(), bytes.get_u8());
        let part = match kind {
            WHOLE if bytes.len() <= MAX_PAYLOAD => Part::Whole(bytes),
            PART if bytes.len() > PART_HEADER - WHOLE_HEADER => {
                let (packet, index, last) = (bytes.get_u16(), bytes.get_u8(), bytes.get_u8());
                if index > last || last == 0 || usize::from(last) >= MAX_PARTS {
                    return None;
                }
                Part::Of { packet, index, last, bytes }
            }
            _ => return None,
        };
        Some(Self { flow, part })
    }
}

/// `payload` as datagrams of at most `room` bytes each; nothing where it is too long for that many.
pub(super) fn split(flow: u32, packet: u16, payload: &Bytes, room: usize) -> Option<Vec<Bytes>> {
    if payload.len() > MAX_PAYLOAD {
        return None;
    }
    let with = |header: &[u8], part: &[u8]| {
        let mut bytes = BytesMut::with_capacity(header.len() + part.len());
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(part);
        bytes.freeze()
    };
    let mut header = BytesMut::with_capacity(PART_HEADER);
    header.put_u32(flow);
    if payload.len() + WHOLE_HEADER <= room {
        header.put_u8(WHOLE);
        return Some(vec![with(&header, payload)]);
    }
    let size = room.checked_sub(PART_HEADER).filter(|size| *size > 0)?;
    let last = u8::try_from(payload.len().div_ceil(size).checked_sub(1)?).ok()?;
    if usize::from(last) >= MAX_PARTS {
        return None;
    }
    header.put_u8(PART);
    header.put_u16(packet);
    let parts = (0..=last).zip(payload.chunks(size)).map(|(index, part)| {
        let mut header = header.clone();
        header.put_u8(index);
        header.put_u8(last);
        with(&header, part)
    });
    Some(parts.collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tunnel::wire::{Decoded, decode, encode, tests::authority};

    #[test]
    fn the_bytes_are_these() {
        let payload = Bytes::from_static(b"abc");
        assert_eq!(split(7, 1, &payload, 100).unwrap(), [Bytes::from_static(b"\0\0\0\x07\0abc")]);
        // Nine bytes of header leave room for one byte of payload.
        assert_eq!(
            split(7, 0x0102, &Bytes::from_static(b"abcdef"), 10).unwrap()[5][..],
            *b"\0\0\0\x07\x01\x01\x02\x05\x05f"
        );
        assert_eq!(split(7, 1, &Bytes::from_static(b"abcdef"), 9), None);
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for bad in [
            &b""[..],
            b"\0\0\0\x07",
            b"\0\0\0\x07\x02abc",
            b"\0\0\0\x07\x01\0\0\0\x01",    // an empty part
            b"\0\0\0\x07\x01\0\0\x02\x01a", // beyond the last
            b"\0\0\0\x07\x01\0\0\0\0a",     // one part is no part
            b"\0\0\0\x07\x01\0\0\0\x40a",   // too many
        ] {
            assert_eq!(Datagram::parse(Bytes::copy_from_slice(bad)), None, "{bad:?}");
        }
        assert_eq!(split(1, 1, &Bytes::from(vec![0; MAX_PAYLOAD + 1]), 100_000), None);
    }

    #[test]
    fn the_largest_payload_fits_on_the_smallest_path() {
        // 1200 bytes less the QUIC header, the tag and the datagram frame's type.
        assert!(split(1, 1, &Bytes::from(vec![0; MAX_PAYLOAD]), 1130).unwrap().len() <= MAX_PARTS);
    }

    proptest! {
        #[test]
        fn a_request_round_trips_within_its_limit(
            destination in proptest::option::of(authority()),
            flow in proptest::option::of(any::<u32>()),
        ) {
            let carries = flow.map_or(Carries::Tcp, |flow| Carries::Udp { flow });
            let request = Request { carries, destination };
            let mut bytes = BytesMut::new();
            encode(&request, &mut bytes).unwrap();
            match decode::<Request>(&mut bytes).unwrap() {
                Decoded::Frame(decoded) => prop_assert_eq!(decoded, request),
                Decoded::Missing(_) => prop_assert!(false, "a whole frame"),
            }
        }

        #[test]
        fn any_bytes_decode_or_not_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode::<Request>(&mut BytesMut::from(&bytes[..]));
            let _ = decode::<Reply>(&mut BytesMut::from(&bytes[..]));
        }

        #[test]
        fn any_bytes_parse_or_not_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = Datagram::parse(bytes.into());
        }

        #[test]
        fn what_is_split_parses(length in 0_usize..4000, room in 80_usize..1500, flow: u32, packet: u16) {
            let payload: Bytes = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let mut together = Vec::new();
            for datagram in split(flow, packet, &payload, room).unwrap() {
                prop_assert!(datagram.len() <= room);
                let parsed = Datagram::parse(datagram).unwrap();
                prop_assert_eq!(parsed.flow, flow);
                match parsed.part {
                    Part::Whole(bytes) => together.extend_from_slice(&bytes),
                    Part::Of { packet: of, bytes, .. } => {
                        prop_assert_eq!(of, packet);
                        together.extend_from_slice(&bytes);
                    }
                }
            }
            prop_assert_eq!(together, payload);
        }
    }
}

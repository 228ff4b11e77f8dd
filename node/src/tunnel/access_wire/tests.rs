//! Round trips, limits and hostile bytes.

use bytes::{BufMut as _, BytesMut};
use proptest::prelude::*;

use super::super::wire::tests::{authority, end_reason, grant, never_panics, path, session, survives};
use super::super::wire::{Decoded, FRAME_HEADER, WireError, decode, encode};
use super::*;

fn token() -> impl Strategy<Value = AccessToken> {
    "[A-Za-z0-9_-]{1,600}\\.[A-Za-z0-9_-]{1,600}\\.[A-Za-z0-9_-]{1,600}"
        .prop_map(|text| text.parse().unwrap())
}

fn request() -> impl Strategy<Value = RequestId> {
    any::<u32>().prop_map(RequestId)
}

fn client_frame() -> impl Strategy<Value = ClientFrame> {
    let version = "[0-9A-Za-z.+-]{1,32}".prop_map(|text| text.parse::<ClientVersion>().unwrap());
    prop_oneof![
        (token(), version).prop_map(|(token, version)| ClientFrame::Hello { token, version }),
        (request(), "[a-z0-9-]{1,128}", prop::option::of(authority())).prop_map(
            |(request, application, destination)| ClientFrame::Open { request, application, destination }
        ),
        (request(), grant()).prop_map(|(request, grant)| ClientFrame::Resume { request, grant }),
        session().prop_map(|session| ClientFrame::Close { session }),
        token().prop_map(|token| ClientFrame::Renew { token }),
        (request(), "[a-z0-9-]{1,128}", prop::option::of(authority()), any::<u32>()).prop_map(
            |(request, application, destination, early)| {
                let early = Early::new(early);
                ClientFrame::OpenBinding { request, application, destination, early }
            }
        ),
    ]
}

fn denial() -> impl Strategy<Value = Denial> {
    prop::sample::select(vec![
        Denial::NoApplication,
        Denial::NotAllowed,
        Denial::LoginNeeded,
        Denial::Destination,
        Denial::ConnectorGone,
        Denial::ConnectorOld,
        Denial::ConnectorDeclined,
        Denial::TooManySessions,
        Denial::NodeFull,
        Denial::Gone,
        Denial::Internal,
    ])
}

fn refusal() -> impl Strategy<Value = AccessRefusal> {
    prop::sample::select(vec![
        AccessRefusal::BadToken,
        AccessRefusal::OtherDevice,
        AccessRefusal::LoginEnded,
        AccessRefusal::TooManyConnections,
        AccessRefusal::Internal,
    ])
}

fn time() -> impl Strategy<Value = UnixTime> {
    any::<i64>().prop_map(UnixTime)
}

fn access_frame() -> impl Strategy<Value = AccessFrame> {
    prop_oneof![
        (".{0,60}", time(), time()).prop_map(|(person, token_expires, login_expires)| {
            AccessFrame::Welcome { person, token_expires, login_expires }
        }),
        refusal().prop_map(AccessFrame::Refused),
        (request(), session(), any::<[u8; 16]>(), grant(), any::<[u8; 32]>(), time()).prop_map(
            |(request, session, ticket, grant, connector, expires)| {
                let connector = KeyHash::from_bytes(connector);
                AccessFrame::Opened(Opened { request, session, ticket, grant, connector, expires })
            }
        ),
        (request(), denial(), any::<[u8; 8]>(), "[ -~]{0,512}").prop_map(
            |(request, denial, ray, message)| {
                AccessFrame::Denied { request, denial, ray: Ray(ray), message }
            }
        ),
        (session(), any::<u64>(), path()).prop_map(|(session, counter, path)| AccessFrame::Ready {
            session,
            counter,
            path
        }),
        (session(), end_reason()).prop_map(|(session, reason)| AccessFrame::EndSession { session, reason }),
        time().prop_map(|token_expires| AccessFrame::Renewed { token_expires }),
        Just(AccessFrame::Drain),
    ]
}

proptest! {
    #[test]
    fn frames_survive_the_wire(client in client_frame(), node in access_frame()) {
        survives(&client);
        survives(&node);
    }

    #[test]
    fn no_bytes_panic_the_decoder(mut bytes in prop::collection::vec(any::<u8>(), 0..300), honest: bool) {
        // An honest length leads the fuzz into the body, where random lengths would seldom arrive.
        if honest && bytes.len() >= FRAME_HEADER {
            let length = u32::try_from(bytes.len() - FRAME_HEADER).unwrap();
            bytes[..FRAME_HEADER].copy_from_slice(&length.to_be_bytes());
        }
        never_panics::<ClientFrame>(&bytes);
        never_panics::<AccessFrame>(&bytes);
    }

    #[test]
    fn one_flipped_bit_never_panics(client in client_frame(), node in access_frame(), bit: prop::sample::Index) {
        fn flipped<F: Frame>(frame: &F, bit: prop::sample::Index) {
            let mut bytes = BytesMut::new();
            encode(frame, &mut bytes).unwrap();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            never_panics::<F>(&bytes);
        }
        flipped(&client, bit);
        flipped(&node, bit);
    }
}

#[test]
fn the_longest_frames_fit_and_longer_ones_are_refused() {
    let mut bytes = BytesMut::new();
    let token: AccessToken = "a".repeat(MAX_TOKEN).parse().unwrap();
    let hello = ClientFrame::Hello { token, version: "1".repeat(32).parse().unwrap() };
    encode(&hello, &mut bytes).unwrap();
    let label = "a".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}:65535", "a".repeat(61));
    let open = ClientFrame::Open {
        request: RequestId(u32::MAX),
        application: "a".repeat(MAX_APPLICATION),
        destination: Some(longest.parse().unwrap()),
    };
    encode(&open, &mut bytes).unwrap();
    encode(&ClientFrame::Resume { request: RequestId(u32::MAX), grant: vec![7; MAX_GRANT] }, &mut bytes)
        .unwrap();
    let opened = Opened {
        request: RequestId(u32::MAX),
        session: SessionRef { index: u32::MAX, generation: u32::MAX },
        ticket: [7; 16],
        grant: vec![7; MAX_GRANT],
        connector: KeyHash::from_bytes([7; 32]),
        expires: UnixTime(i64::MAX),
    };
    encode(&AccessFrame::Opened(opened), &mut bytes).unwrap();
    let too_long = ClientFrame::Resume { request: RequestId(0), grant: vec![7; ClientFrame::LIMIT] };
    assert!(matches!(encode(&too_long, &mut bytes), Err(WireError::TooLong { .. })));
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_its_body_arrives() {
    let mut bytes = BytesMut::from(&u32::MAX.to_be_bytes()[..]);
    assert!(matches!(decode::<ClientFrame>(&mut bytes), Err(WireError::TooLong { .. })));
}

#[test]
fn texts_in_frames_are_checked() {
    #[derive(Serialize)]
    enum Forged {
        Hello { token: String, version: String },
    }
    let read = |token: &str, version: &str| {
        let forged = Forged::Hello { token: token.into(), version: version.into() };
        let body = postcard::to_stdvec(&forged).unwrap();
        let mut bytes = BytesMut::new();
        bytes.put_u32(u32::try_from(body.len()).unwrap());
        bytes.put_slice(&body);
        decode::<ClientFrame>(&mut bytes)
    };
    assert!(matches!(read("a.b.c", "0.1.0"), Ok(Decoded::Frame(_))));
    for (token, version) in [
        ("", "1"),
        ("a b", "1"),
        ("a.b.c\n", "1"),
        ("a.b.c", ""),
        ("a.b.c", "1\n"),
        ("a.b.c", "123456789012345678901234567890123"),
        (&"a".repeat(MAX_TOKEN + 1), "1"),
    ] {
        assert_eq!(read(token, version), Err(WireError::Body), "{token} {version}");
    }
}

#[test]
fn a_token_has_no_debug() {
    let hello = ClientFrame::Hello { token: "c4n4ry".parse().unwrap(), version: "1".parse().unwrap() };
    assert!(!format!("{hello:?}").contains("c4n4ry"));
}

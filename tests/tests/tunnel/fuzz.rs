//! Bytes from strangers: frames and enrolment tokens. As tests these run for a moment on random input; as fuzz targets
//! (`cargo bolero test fuzz::<name>`) for as long as one likes.

use std::time::Duration;

use bytes::BytesMut;
use portcullis::tunnel::carrier::capsule::{self, Capsules, MAX_DATAGRAM};
use portcullis::tunnel::enrolment::EnrolmentToken;
use portcullis::tunnel::relay::wire::{BindKey, Challenge, REQUEST_LEN, Request, is_challenge, is_request};
use portcullis::tunnel::relay::{Binds, Leg, LegSecret, Own, SessionRef, Terms, Tuple};
use portcullis::tunnel::wire::{
    ConnectorFrame, Decoded, Frame, NodeFrame, OpenReply, OpenRequest, decode, encode,
};

/// What decodes has one encoding that decodes to the same, and never consumes more than was there.
fn decodes_alike<F: Frame + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let mut input = BytesMut::from(bytes);
    while let Ok(Decoded::Frame(frame)) = decode::<F>(&mut input) {
        let mut again = BytesMut::new();
        encode(&frame, &mut again).expect("what came in within the limit goes out within it");
        assert_eq!(decode(&mut again), Ok(Decoded::Frame(frame)));
        assert!(again.is_empty());
    }
}

fn decode_all(bytes: &[u8]) {
    decodes_alike::<ConnectorFrame>(bytes);
    decodes_alike::<NodeFrame>(bytes);
    decodes_alike::<OpenRequest>(bytes);
    decodes_alike::<OpenReply>(bytes);
}

#[test]
fn frames() {
    bolero::check!().for_each(decode_all);
}

/// The same with a true length in front, which random input seldom has.
#[test]
fn bodies() {
    bolero::check!().for_each(|body: &[u8]| {
        let length = u32::try_from(body.len()).expect("fuzz input is short");
        decode_all(&[&length.to_be_bytes(), body].concat());
    });
}

#[test]
fn tokens() {
    bolero::check!().with_type::<String>().for_each(|text| {
        if let Ok(token) = EnrolmentToken::parse(text) {
            let again = token.expose().expect("a token that was parsed has a text");
            assert!(EnrolmentToken::parse(&again).as_ref() == Ok(&token));
        }
    });
}

/// Any bytes in any pieces: no datagram is longer than it may be, what was read can be written and read again, and what is
/// kept of the input is less than one capsule.
#[test]
fn capsules() {
    bolero::check!().with_type::<(Vec<u8>, u8)>().for_each(|(bytes, step)| {
        let (mut reader, mut input, mut read) = (Capsules::default(), BytesMut::new(), Vec::new());
        'all: for piece in bytes.chunks(usize::from(*step).max(1)) {
            input.extend_from_slice(piece);
            loop {
                match reader.next(&mut input) {
                    Ok(Some(datagram)) => read.push(datagram),
                    Ok(None) => break,
                    Err(_) => break 'all,
                }
            }
            assert!(input.len() < MAX_DATAGRAM + 24);
        }
        let mut again = BytesMut::new();
        for datagram in &read {
            assert!(!datagram.is_empty() && capsule::encode(datagram, &mut again));
        }
        let mut reader = Capsules::default();
        for datagram in &read {
            assert_eq!(reader.next(&mut again).as_ref(), Ok(&Some(datagram.clone())));
        }
    });
}

/// Any datagram at all: nobody without the key is answered, nor does anything come to be.
#[test]
fn binds() {
    let session = SessionRef { index: 0, generation: 1 };
    let terms = Terms { identity: 0, epoch: 0, expires: Duration::from_secs(60) };
    let tuple = Tuple::new(([198, 51, 100, 1], 443).into(), ([192, 0, 2, 1], 5000).into());
    bolero::check!().for_each(|datagram: &[u8]| {
        let mut node = Binds::new(Own::default());
        node.register(session, terms).expect("index 0 is free");
        let secret = || LegSecret { key: BindKey::from_bytes([7; 32]), ticket: [0; 16] };
        node.expect(session, Leg::Client, secret()).expect("it is registered");
        // The same with an honest head, so that the fuzz gets as far as the tag.
        let mut honest = datagram.to_vec();
        honest.resize(REQUEST_LEN, 0);
        honest[0] |= 1;
        honest[0] &= 3;
        honest[1..22].fill(0);
        for datagram in [datagram, &honest] {
            assert!(!(is_request(datagram) && is_challenge(datagram)));
            assert_eq!(Request::parse(datagram).is_some(), is_request(datagram) && datagram[21] < 2);
            let actions =
                node.on_datagram(Duration::ZERO, tuple, datagram, || unreachable!("nothing to ask"));
            assert!(actions.is_empty());
            assert!(Challenge::open(datagram, &secret().key, session, Leg::Client).is_none());
        }
        assert!(
            node.pair(session).is_none()
                && node.remove(session).is_some_and(|removed| removed.inputs.is_empty())
        );
    });
}

//! Bytes from strangers: frames and enrolment tokens. As tests these run for a moment on random input; as fuzz targets
//! (`cargo bolero test fuzz::<name>`) for as long as one likes.

use bytes::BytesMut;
use portcullis::tunnel::enrolment::EnrolmentToken;
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

//! The binding cookie: stateless proof that a browser holds a session on one host.
//!
//! An origin sees its users' tokens and could replay them to the node; it never sees this cookie. The value is the
//! session id and an HMAC-SHA256 over session id and host, so it is worth nothing on another host.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::flow::{Host, SessionId};

pub(super) struct BindingKey(hmac::Key);

impl BindingKey {
    pub(super) fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    pub(super) fn bind(&self, session: &SessionId, host: &Host) -> String {
        let tag = hmac::sign(&self.0, &message(session, host));
        format!("{session}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    pub(super) fn check(&self, cookie: &str, host: &Host) -> Option<SessionId> {
        if cookie.len() > 128 {
            return None;
        }
        let (session, tag) = cookie.split_once('.')?;
        let session: SessionId = session.parse().ok()?;
        let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
        hmac::verify(&self.0, &message(&session, host), &tag).ok()?;
        Some(session)
    }
}

fn message(session: &SessionId, host: &Host) -> Vec<u8> {
    let mut message = b"portcullis binding\0".to_vec();
    message.extend_from_slice(session.as_bytes());
    message.extend_from_slice(host.as_str().as_bytes());
    message
}

//! The WebSocket wire of `cloudflared access`, on the host of a private application: one WebSocket per TCP connection,
//! bytes in binary messages, no subprotocol (RFC 6455).
//!
//! 1. the request was decided like any other; what comes here has a permit;
//! 2. the handshake is checked, and who opened it: a page of another site cannot, whatever cookies it makes a browser send;
//! 3. the tunnel opens a stream to the application's one target;
//! 4. bytes go both ways, as [`super::carry`] does it, until one side ends or the lease is over.
//!
//! This wire ends at the node, which sees what it carries; sessions of `portcullis access` do not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::flow::{Private, Reason};
use crate::policy::PermitOf;

use super::body::Reply;
use super::carry::{self, Stop};
use super::connection::stop;
use super::dispatch::Call;
use super::identify::Callers;
use super::lasting::Lease;
use super::proxy::ProxyError;
use super::record::Record;
use super::shares::Holders;
use super::upgrade;
use super::upstream::ConnectError;

/// The client finishes switching within this time.
const SWITCH: Duration = Duration::from_secs(10);
/// The one version there is.
const VERSION: &str = "13";
/// Where a client of a bastion would like to go: there is none behind this wire.
const JUMP: HeaderName = HeaderName::from_static("cf-access-jump-destination");

/// Why a handshake is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum HandshakeError {
    #[error("the WebSocket version is not {VERSION}")]
    Version,
    #[error("Sec-WebSocket-Key is not one key of 16 bytes")]
    Key,
    #[error("this application is one target: a client cannot name another")]
    Destination,
}

impl Call {
    /// Opens a connection to the permitted application's target and carries it over the WebSocket that was asked for.
    pub(super) async fn wire(
        self,
        headers: &HeaderMap,
        switch: OnUpgrade,
        permit: PermitOf<'_, Private>,
        callers: &Callers,
    ) -> Response<Reply> {
        let mut record = Record::allowed(&self.edge.ctx, self.about.clone(), self.started);
        let accept = match handshake(headers) {
            Ok(accept) => accept,
            Err(error) => return self.bad_handshake(error, record),
        };
        let active = self.edge.ctx.active();
        let own = self.about.host.as_ref().map(|host| active.config.node.authority_of(host));
        if !callers.are_explicit() && !upgrade::is_own_origin(headers, &own.unwrap_or_default(), &[]) {
            record.refused(Reason::ForeignOrigin);
            return self.refuse_record(StatusCode::FORBIDDEN, Reason::ForeignOrigin, record);
        }
        let Some(share) = self.edge.shares.take(Holders::of(permit.permit(), self.peer.address)) else {
            record.refused(Reason::Throttled);
            record.detail("too many requests of one login or person at a time");
            return self.refuse_record(StatusCode::TOO_MANY_REQUESTS, Reason::Throttled, record);
        };
        let ends = (stop(&self.peer), self.edge.patience);
        let lease = Lease::new(&self.edge.ctx, permit.permit(), self.peer.address, callers, ends, share);
        let target = match lease.head(self.edge.ctx.tunnels.open_private(permit)).await {
            Ok(Ok(target)) => target,
            Ok(Err(error)) => return self.failed(&ProxyError::Connect(ConnectError::Open(error)), record),
            Err(gone) => return self.gone(gone, record),
        };
        record.answered(StatusCode::SWITCHING_PROTOCOLS);
        record.begin();
        // The place of the connection is taken as long as the WebSocket lives: `peer` holds it.
        let (peer, cut) = (Arc::clone(&self.peer), self.edge.cut.clone());
        self.edge.tasks.spawn(async move {
            let carried = AtomicU64::new(0);
            let stopped = async {
                tokio::select! {
                    () = lease.over().cancelled() => Stop::Over,
                    () = cut.cancelled() => Stop::Leaving,
                }
            };
            match timeout(SWITCH, switch).await {
                Ok(Ok(client)) => {
                    let end = carry::carry(TokioIo::new(client), target, &carried, stopped).await;
                    record.ended(end);
                    if end == carry::End::Stopped(Stop::Over) {
                        record.cut();
                    }
                }
                Ok(Err(_)) | Err(_) => record.ended("the client did not switch protocols"),
            }
            drop(peer);
            record.count(carried.load(Ordering::Relaxed));
        });
        self.switched(&mut HeaderMap::from_iter([(header::SEC_WEBSOCKET_ACCEPT, accept)]))
    }

    fn bad_handshake(self, error: HandshakeError, mut record: Record) -> Response<Reply> {
        record.refused(Reason::BadRequest);
        record.detail(error);
        let status = match error {
            HandshakeError::Version => StatusCode::UPGRADE_REQUIRED,
            HandshakeError::Key | HandshakeError::Destination => StatusCode::BAD_REQUEST,
        };
        let mut reply = self.refuse_record(status, Reason::BadRequest, record);
        if error == HandshakeError::Version {
            reply.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
        }
        reply
    }
}

/// What to answer the handshake of a client with (RFC 6455 §4.2).
fn handshake(headers: &HeaderMap) -> Result<HeaderValue, HandshakeError> {
    if headers.contains_key(JUMP) {
        return Err(HandshakeError::Destination);
    }
    if one(headers, &header::SEC_WEBSOCKET_VERSION) != Some(VERSION.as_bytes()) {
        return Err(HandshakeError::Version);
    }
    let key = one(headers, &header::SEC_WEBSOCKET_KEY).ok_or(HandshakeError::Key)?;
    match STANDARD.decode(key) {
        Ok(nonce) if nonce.len() == 16 => {
            HeaderValue::from_str(&derive_accept_key(key)).map_err(|_| HandshakeError::Key)
        }
        _ => Err(HandshakeError::Key),
    }
}

/// The value of a field that occurs exactly once.
fn one<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.as_bytes();
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 6455 §1.3.
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn a_handshake_is_the_one_of_the_standard() {
        let (version, key) = (("sec-websocket-version", "13"), ("sec-websocket-key", KEY));
        assert_eq!(handshake(&headers(&[version, key])).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        for (fields, error) in [
            (vec![key], HandshakeError::Version),
            (vec![("sec-websocket-version", "8"), key], HandshakeError::Version),
            (vec![version, version, key], HandshakeError::Version),
            (vec![version], HandshakeError::Key),
            (vec![version, key, key], HandshakeError::Key),
            (vec![version, ("sec-websocket-key", "c2hvcnQ=")], HandshakeError::Key),
            (vec![version, ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ")], HandshakeError::Key),
            (vec![version, key, ("cf-access-jump-destination", "10.0.0.1:22")], HandshakeError::Destination),
        ] {
            assert_eq!(handshake(&headers(&fields)), Err(error), "{fields:?}");
        }
    }
}

//! Tunnels over TCP: connect-udp (RFC 9298), to this node's own tunnel and to nothing else.
//!
//! A browser that is told of extended CONNECT (RFC 8441) sends its WebSockets that way, and on a connection to any host
//! of the certificate; so only a client that can be no browser is told: one that asks for the auth domain and offers
//! HTTP/2 alone.
//!
//! A false accept would make the node a proxy for strangers: hence one target, compared as a whole, and one method. What
//! goes through is judged by the gate as what comes by UDP is (see [`crate::tunnel::carrier`]).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls::server::ClientHello;
use tokio::time::timeout;

use crate::clock;
use crate::flow::{Host, Reason};
use crate::tunnel::carrier::Ended;

use super::body::{InFlight, Reply};
use super::dispatch::Call;
use super::record::Record;
use super::request::{Misread, target_host};

/// The stream is handed over within this time.
const SWITCH: Duration = Duration::from_secs(10);

const CONNECT_UDP: &str = "connect-udp";
const PREFIX: &str = "/.well-known/masque/udp/";

/// Says that the stream carries capsules (RFC 9297 §3.4).
const CAPSULE_PROTOCOL: HeaderName = HeaderName::from_static("capsule-protocol");

/// Whether a client may be told that tunnels are taken: it wants the auth domain, and HTTP/2 and nothing else.
pub(super) fn may_carry(hello: &ClientHello<'_>, domain: &Host) -> bool {
    let named = hello.server_name().is_some_and(|name| Host::parse(name).as_ref() == Ok(domain));
    let h2_alone = hello.alpn().is_some_and(|offered| offered.eq([b"h2".as_slice()]));
    named && h2_alone
}

/// Why a request opens no stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("only {CONNECT_UDP} is served by extended CONNECT")]
    Protocol,
    #[error(transparent)]
    Misread(#[from] Misread),
    #[error("tunnels are at the auth domain")]
    Host,
    #[error("tunnels are at {PREFIX}")]
    Path,
    #[error("the target is not this node's tunnel")]
    Target,
}

impl Refused {
    const fn answer(self) -> (StatusCode, Reason) {
        match self {
            Self::Protocol => (StatusCode::NOT_IMPLEMENTED, Reason::BadRequest),
            Self::Misread(_) => (StatusCode::BAD_REQUEST, Reason::BadRequest),
            Self::Host | Self::Path => (StatusCode::NOT_FOUND, Reason::NoApplication),
            Self::Target => (StatusCode::FORBIDDEN, Reason::BadRequest),
        }
    }
}

/// Whether an extended CONNECT asks for the node's own tunnel.
fn check(
    head: &Parts,
    protocol: &Protocol,
    domain: &Host,
    ports: impl IntoIterator<Item = u16>,
) -> Result<(), Refused> {
    if protocol.as_ref() != CONNECT_UDP.as_bytes() {
        return Err(Refused::Protocol);
    }
    if target_host(head)? != *domain {
        return Err(Refused::Host);
    }
    let asked = head.uri.path_and_query().map_or("", |asked| asked.as_str());
    let target = asked.strip_prefix(PREFIX).ok_or(Refused::Path)?;
    // The template escapes the colons of an address (RFC 9298 §3), and nothing of a name.
    let host = domain.as_str().trim_matches(['[', ']']).replace(':', "%3A");
    let is_own = ports.into_iter().any(|port| target == format!("{host}/{port}/"));
    if is_own { Ok(()) } else { Err(Refused::Target) }
}

impl Call {
    /// Opens a stream to the node's tunnel.
    pub(super) fn open_datagrams(
        self,
        head: &Parts,
        protocol: &Protocol,
        switch: OnUpgrade,
    ) -> Response<Reply> {
        let active = self.edge.ctx.active();
        let node = &active.config.node;
        let ports = node.listen.iter().map(SocketAddr::port).chain([node.public_port]);
        if let Err(refused) = check(head, protocol, &node.domain, ports) {
            let (status, reason) = refused.answer();
            return self.refuse(status, reason, refused);
        }
        let address = self.peer.address;
        let known = self.edge.ctx.recent.contains(address, clock::now());
        let stream = match self.edge.ctx.carried.take(address, known) {
            Ok(stream) => stream,
            Err(full) => {
                let told = format!("too many tunnels over TCP ({})", full.cause());
                return self.refuse(StatusCode::TOO_MANY_REQUESTS, Reason::Throttled, told);
            }
        };
        let (edge, peer, about) = (Arc::clone(&self.edge), Arc::clone(&self.peer), self.about.clone());
        let (started, in_flight) = (self.started, InFlight::new(&self.peer.activity));
        tokio::spawn(async move {
            if let Ok(Ok(opened)) = timeout(SWITCH, switch).await {
                let ended = stream.run(TokioIo::new(opened)).await;
                tracing::debug!(%address, %ended, "a stream of datagrams has ended");
                if let Ended::Capsule(error) = ended {
                    Record::denied(&edge.ctx, about, Reason::BadRequest, started).detail(error);
                }
            }
            drop((peer, in_flight));
        });
        let mut reply = Response::new(self.nothing());
        reply.headers_mut().insert(CAPSULE_PROTOCOL, HeaderValue::from_static("?1"));
        reply
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, Request};

    use super::*;

    fn asked(protocol: &'static str, uri: &str) -> Result<(), Refused> {
        let request = Request::builder().method(Method::CONNECT).uri(uri).body(()).unwrap();
        let domain = Host::parse("access.example.com").unwrap();
        check(&request.into_parts().0, &Protocol::from_static(protocol), &domain, [443])
    }

    #[test]
    fn there_is_one_target() {
        let node = "https://access.example.com";
        let own = "/.well-known/masque/udp/access.example.com/443/";
        assert_eq!(asked(CONNECT_UDP, &format!("{node}{own}")), Ok(()));
        assert_eq!(asked(CONNECT_UDP, &format!("https://Access.Example.com:443{own}")), Ok(()));
        for (uri, why) in [
            (format!("{node}/"), Refused::Path),
            (format!("{node}//.well-known/masque/udp/access.example.com/443/"), Refused::Path),
            (format!("{node}{PREFIX}access.example.com/443"), Refused::Target),
            (format!("{node}{PREFIX}access.example.com/443/?a"), Refused::Target),
            (format!("{node}{PREFIX}access.example.com/0443/"), Refused::Target),
            (format!("{node}{PREFIX}access.example.com./443/"), Refused::Target),
            (format!("{node}{PREFIX}access.example.com/53/"), Refused::Target),
            (format!("{node}{PREFIX}127.0.0.1/443/"), Refused::Target),
            (format!("{node}{PREFIX}%61ccess.example.com/443/"), Refused::Target),
            (format!("{node}{PREFIX}evil.example/443/access.example.com/443/"), Refused::Target),
            (format!("https://app.example.com{own}"), Refused::Host),
            (format!("http://access.example.com{own}"), Refused::Misread(Misread::Scheme)),
        ] {
            assert_eq!(asked(CONNECT_UDP, &uri), Err(why), "{uri}");
        }
        for protocol in ["websocket", "connect-ip", "CONNECT-UDP", ""] {
            assert_eq!(asked(protocol, &format!("{node}{own}")), Err(Refused::Protocol), "{protocol}");
        }
    }
}

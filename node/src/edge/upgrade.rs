//! WebSockets (RFC 6455) over HTTP/1.1. No other protocol is switched to.
//!
//! A browser sends cookies along with a WebSocket that a page of any site opens, and no same-origin rule keeps that
//! page from talking over it: so a page must be of the application itself, or of an origin it lists.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::flow::Web;
use crate::policy::PermitOf;

use super::body::Reply;
use super::dispatch::Call;
use super::lasting::Lease;
use super::proxy::{self, ProxyError};
use super::record::Record;
use super::request::Asked;

/// Both sides finish switching within this time.
const SWITCH: Duration = Duration::from_secs(10);
/// When one side has ended, what is left of the other way has this long.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes moved at a time.
const BLOCK: usize = 16 * 1024;

/// Whether a WebSocket is opened by a page of the application or of an origin it lists. Clients that are no browsers
/// send no `Origin`, and no page can make one leave it out.
pub(super) fn is_own_origin(headers: &HeaderMap, public_host: &str, listed: &[String]) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let origin = match (origins.next(), origins.next()) {
        (None, _) => return true,
        (Some(origin), None) => origin.as_bytes(),
        (Some(_), Some(_)) => return false,
    };
    let own = format!("https://{public_host}");
    listed.iter().chain([&own]).any(|allowed| origin.eq_ignore_ascii_case(allowed.as_bytes()))
}

/// Opens a WebSocket to the origin and carries it until one side ends or the lease is over.
pub(super) async fn websocket(
    call: Call,
    asked: &Asked,
    mut head: Parts,
    switch: OnUpgrade,
    permit: PermitOf<'_, Web>,
    lease: Arc<Lease>,
    mut record: Record,
) -> Response<Reply> {
    mark(&mut head.headers);
    let target = asked.target();
    let edge = Arc::clone(&call.edge);
    let opening = proxy::upgrade(&edge.upstreams, &edge.ctx.tunnels, permit, &target, head, &lease);
    let mut response = match lease.head(opening).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return call.failed(&error, record),
        Err(gone) => return call.gone(gone, record),
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return call.relay(response, lease, record);
    }
    let websocket = response.headers().get(header::UPGRADE);
    if !websocket.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket")) {
        return call.failed(&ProxyError::Protocol, record);
    }
    let origin = hyper::upgrade::on(&mut response);
    record.answered(StatusCode::SWITCHING_PROTOCOLS);
    record.begin();
    let peer = Arc::clone(&call.peer);
    let cut = edge.cut.clone();
    edge.tasks.spawn(async move {
        // The place of the connection is taken as long as the WebSocket lives: `peer` holds it.
        let carried = AtomicU64::new(0);
        let carry = async {
            if let Ok((Ok(client), Ok(origin))) =
                timeout(SWITCH, async { tokio::join!(switch, origin) }).await
            {
                carry(client, origin, &carried).await;
            }
        };
        tokio::select! {
            () = carry => {}
            () = lease.over().cancelled() => record.cut(),
            () = cut.cancelled() => {}
        }
        drop(peer);
        record.count(carried.load(Ordering::Relaxed));
    });
    call.switched(response.headers_mut())
}

impl Call {
    /// The answer that switches protocols.
    pub(super) fn switched(self, headers: &mut HeaderMap) -> Response<Reply> {
        super::headers::for_client(headers);
        mark(headers);
        if let Some(strict) = &self.peer.strict {
            strict.switch();
        }
        let mut reply = Response::new(self.nothing());
        *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *reply.headers_mut() = std::mem::take(headers);
        reply
    }
}

/// Says which protocol is switched to.
fn mark(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// Carries bytes both ways until one side ends.
async fn carry(client: Upgraded, origin: Upgraded, carried: &AtomicU64) {
    let (client_read, client_write) = tokio::io::split(TokioIo::new(client));
    let (origin_read, origin_write) = tokio::io::split(TokioIo::new(origin));
    let mut up = std::pin::pin!(one_way(client_read, origin_write, carried));
    let mut down = std::pin::pin!(one_way(origin_read, client_write, carried));
    let _ = tokio::select! {
        () = &mut up => timeout(GRACE, down).await,
        () = &mut down => timeout(GRACE, up).await,
    };
}

async fn one_way(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, carried: &AtomicU64) {
    let mut block = vec![0; BLOCK];
    while let Ok(count @ 1..) = from.read(&mut block).await {
        let part = block.get(..count).unwrap_or_default();
        if to.write_all(part).await.is_err() || to.flush().await.is_err() {
            return;
        }
        carried.fetch_add(count as u64, Ordering::Relaxed);
    }
    let _ = to.shutdown().await;
}

//! The node's end of one origin connection.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use quinn::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::wire::StreamCode;

/// Bytes to and from an origin, through a connector or directly. Its end is mapped faithfully: `shutdown` becomes the
/// origin's end of input; dropped before that, it becomes a reset, so that a request cut short never looks complete.
pub struct TunnelStream {
    route: Route,
    finished: bool,
    draining: CancellationToken,
}

enum Route {
    Tunnel { send: SendStream, recv: RecvStream, in_use: TaskTrackerToken },
    Direct(TcpStream),
}

impl TunnelStream {
    pub(super) fn tunnel(
        send: SendStream,
        recv: RecvStream,
        in_use: TaskTrackerToken,
        draining: CancellationToken,
    ) -> Self {
        Self { route: Route::Tunnel { send, recv, in_use }, finished: false, draining }
    }

    pub(super) fn direct(stream: TcpStream, draining: CancellationToken) -> Self {
        Self { route: Route::Direct(stream), finished: false, draining }
    }

    /// Cancelled when the way to the origin is about to close in good order: a pool then lets go of this stream once
    /// it is idle.
    pub const fn draining(&self) -> &CancellationToken {
        &self.draining
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().route {
            Route::Tunnel { recv, .. } => AsyncRead::poll_read(Pin::new(recv), cx, buffer),
            Route::Direct(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().route {
            Route::Tunnel { send, .. } => AsyncWrite::poll_write(Pin::new(send), cx, bytes),
            Route::Direct(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().route {
            Route::Tunnel { send, .. } => AsyncWrite::poll_flush(Pin::new(send), cx),
            Route::Direct(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let done = match &mut this.route {
            Route::Tunnel { send, in_use, .. } if !this.finished => {
                let done = AsyncWrite::poll_shutdown(Pin::new(&mut *send), cx);
                // A drain must not cut off the end that is still on its way.
                let (delivered, in_use) = (send.stopped(), in_use.clone());
                tokio::spawn(async move {
                    let _ = delivered.await;
                    drop(in_use);
                });
                done
            }
            Route::Tunnel { .. } => Poll::Ready(Ok(())),
            Route::Direct(stream) => Pin::new(stream).poll_shutdown(cx),
        };
        this.finished |= done.is_ready();
        done
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        match &mut self.route {
            Route::Tunnel { send, .. } => {
                // Fails only where the stream has already ended.
                let _ = send.reset(StreamCode::Cancelled.into());
            }
            Route::Direct(stream) => {
                let _ = stream.set_zero_linger();
            }
        }
    }
}

impl fmt::Debug for TunnelStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.route {
            Route::Tunnel { send, .. } => write!(f, "TunnelStream({})", send.id()),
            Route::Direct(_) => f.write_str("TunnelStream(direct)"),
        }
    }
}

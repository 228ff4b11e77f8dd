//! The byte pipe at the connector: one origin stream, one TCP connection, ends and resets mapped both ways.
//!
//! | on the stream | on the TCP connection |
//! |---|---|
//! | FIN | FIN |
//! | RESET_STREAM, STOP_SENDING, connection lost | RST |
//! | RESET_STREAM and STOP_SENDING | ◀ RST |

use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::BytesMut;
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::timeout;

use super::wire::StreamCode;

/// Bytes read at once in either direction.
const CHUNK: usize = 32 * 1024;

/// The node gets so long to read what an origin sent before it reset the connection.
const RESET_DELAY: Duration = Duration::from_secs(2);

/// Why a pipe ended before both its ends had finished.
#[derive(Debug, thiserror::Error)]
pub(super) enum PipeError {
    #[error("the origin: {0}")]
    Origin(#[from] io::Error),
    #[error("the node stopped writing: {0}")]
    Read(#[from] ReadError),
    #[error("the node stopped reading: {0}")]
    Write(#[from] WriteError),
}

/// Carries everything both ways until both directions have ended, or until one fails and takes the other with it.
/// Returns after the node has everything.
pub(super) async fn pipe(
    mut tcp: TcpStream,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), PipeError> {
    let (from_origin, to_origin) = tcp.split();
    match tokio::try_join!(upstream(&mut recv, to_origin), downstream(from_origin, &mut send)) {
        Ok(_) => {
            // The stream may be forgotten once the node has acknowledged its end.
            let _ = send.stopped().await;
            Ok(())
        }
        Err(error) => {
            let code = match error {
                PipeError::Origin(_) => {
                    // A reset discards what the node has not read yet, which may be the origin's whole answer to an
                    // upload that it cut short.
                    let _ = timeout(RESET_DELAY, send.stopped()).await;
                    StreamCode::OriginReset
                }
                PipeError::Read(_) | PipeError::Write(_) => StreamCode::Cancelled,
            };
            // All of these fail only where there is nothing left to reset.
            let _ = send.reset(code.into());
            let _ = recv.stop(code.into());
            let _ = tcp.set_zero_linger();
            Err(error)
        }
    }
}

async fn upstream(recv: &mut RecvStream, mut origin: WriteHalf<'_>) -> Result<(), PipeError> {
    while let Some(chunk) = recv.read_chunk(CHUNK, true).await? {
        if origin.write_all(&chunk.bytes).await.is_err() {
            // The origin takes no more, but its answer may already be here (a refused upload): the other direction
            // goes on to its own end.
            let _ = recv.stop(StreamCode::OriginReset.into());
            return Ok(());
        }
    }
    // An origin that is gone shows in the other direction.
    let _ = origin.shutdown().await;
    Ok(())
}

async fn downstream(mut origin: ReadHalf<'_>, send: &mut SendStream) -> Result<(), PipeError> {
    let mut stopped = pin!(send.stopped());
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        // An origin that says nothing must not keep a stream that the node gave up.
        let read = tokio::select! {
            read = origin.read_buf(&mut buffer) => read?,
            stopped = &mut stopped => return Err(stop_error(stopped)),
        };
        if read == 0 {
            // It fails only when the stream was reset, by nobody but us.
            let _ = send.finish();
            return Ok(());
        }
        send.write_chunk(buffer.split().freeze()).await?;
    }
}

/// `stopped` resolves before the end was sent only when the node asked for it or the connection is lost.
fn stop_error(stopped: Result<Option<VarInt>, quinn::StoppedError>) -> PipeError {
    match stopped {
        Ok(Some(code)) => WriteError::Stopped(code).into(),
        Ok(None) => WriteError::ClosedStream.into(),
        Err(quinn::StoppedError::ConnectionLost(error)) => WriteError::ConnectionLost(error).into(),
        Err(quinn::StoppedError::ZeroRttRejected) => WriteError::ZeroRttRejected.into(),
    }
}

//! The byte pipe at the connector: one origin stream, one TCP connection, ends and resets mapped both ways.
//!
//! | on the stream | on the TCP connection |
//! |---|---|
//! | FIN | FIN |
//! | RESET_STREAM, STOP_SENDING, connection lost | RST |
//! | RESET_STREAM and STOP_SENDING | ◀ RST |

use std::io::{self, IoSlice};
use std::pin::pin;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::timeout;

use super::wire::StreamCode;

/// Bytes read at once from the TCP connection.
const CHUNK: usize = 64 * 1024;

/// Chunks taken at once from the stream, each at most what one packet brought.
const CHUNKS: usize = 64;

/// The node gets so long to read what an origin sent before it reset the connection.
const RESET_DELAY: Duration = Duration::from_secs(2);

/// Why a pipe ended before both its ends had finished.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PipeError {
    #[error("the origin: {0}")]
    Origin(#[from] io::Error),
    #[error("the node stopped writing: {0}")]
    Read(#[from] ReadError),
    #[error("the node stopped reading: {0}")]
    Write(#[from] WriteError),
}

/// Carries everything both ways until both directions have ended, or until one fails and takes the other with it.
/// Returns after the node has everything.
pub(crate) async fn pipe(
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
    let mut chunks = [const { Bytes::new() }; CHUNKS];
    while let Some(count) = recv.read_chunks(&mut chunks).await? {
        if write_chunks(&mut origin, chunks.get_mut(..count).unwrap_or_default()).await.is_err() {
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

/// As few system calls as the chunks allow: each is what one packet brought.
async fn write_chunks(origin: &mut WriteHalf<'_>, chunks: &mut [Bytes]) -> io::Result<()> {
    let mut done = 0;
    while let Some(left) = chunks.get(done..).filter(|left| !left.is_empty()) {
        let mut slices = [IoSlice::new(&[]); CHUNKS];
        slices.iter_mut().zip(left).for_each(|(slice, chunk)| *slice = IoSlice::new(chunk));
        let slices = slices.get(..left.len()).unwrap_or_default();
        let mut written = origin.write_vectored(slices).await?;
        if written == 0 && left.iter().any(|chunk| !chunk.is_empty()) {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while let Some(first) = chunks.get_mut(done) {
            if written < first.len() {
                first.advance(written);
                break;
            }
            written -= first.len();
            *first = Bytes::new();
            done += 1;
        }
    }
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

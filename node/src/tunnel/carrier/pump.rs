//! Moves datagrams between queues and the two directions of a stream.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::capsule::{self, CapsuleError, Capsules};

/// A stream that brings no datagram for so long ends: every tunnel connection says something more often than that.
pub(super) const IDLE: Duration = Duration::from_secs(45);

/// Bytes read, and written, at once.
const BLOCK: usize = 16 * 1024;

/// How a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("this side has closed it")]
    Ours,
    #[error("the peer has closed it")]
    Theirs,
    #[error("no datagram came for {} s", IDLE.as_secs())]
    Idle,
    #[error(transparent)]
    Capsule(#[from] CapsuleError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Datagrams that are to be written, all but the last of `segment` bytes.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) bytes: Bytes,
    pub(super) segment: usize,
}

impl Outgoing {
    pub(super) fn one(datagram: &[u8]) -> Self {
        Self { bytes: Bytes::copy_from_slice(datagram), segment: datagram.len() }
    }

    fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks(self.segment.max(1))
    }
}

/// Writes what comes out of `outgoing`, and puts what comes in into `incoming`, as `take` makes it; what it makes nothing of
/// is dropped and counts as no sign of life. Goes on until `outgoing` or the stream ends.
pub(super) async fn carry<S, T>(
    stream: S,
    outgoing: mpsc::Receiver<Outgoing>,
    incoming: mpsc::Sender<T>,
    take: impl FnMut(Bytes) -> Option<T>,
) -> Ended
where
    S: AsyncRead + AsyncWrite,
{
    let (read, write) = tokio::io::split(stream);
    tokio::select! {
        ended = reading(read, incoming, take) => ended,
        ended = writing(write, outgoing) => ended,
    }
}

async fn reading<T>(
    mut stream: impl AsyncRead + Unpin,
    incoming: mpsc::Sender<T>,
    mut take: impl FnMut(Bytes) -> Option<T>,
) -> Ended {
    let (mut capsules, mut input) = (Capsules::default(), BytesMut::new());
    let mut alive = Instant::now();
    loop {
        // What is always there to be read never lets a timer have its turn.
        if alive.elapsed() >= IDLE {
            return Ended::Idle;
        }
        input.reserve(BLOCK);
        match timeout_at(alive + IDLE, stream.read_buf(&mut input)).await {
            Err(_) => return Ended::Idle,
            Ok(Err(error)) => return error.into(),
            Ok(Ok(0)) => return Ended::Theirs,
            Ok(Ok(_)) => {}
        }
        loop {
            match capsules.next(&mut input) {
                Err(error) => return error.into(),
                Ok(None) => break,
                Ok(Some(datagram)) => {
                    let Some(taken) = take(datagram) else { continue };
                    alive = Instant::now();
                    // A reader that is slow slows the peer down: TCP has room for what waits.
                    if incoming.send(taken).await.is_err() {
                        return Ended::Ours;
                    }
                }
            }
        }
    }
}

async fn writing(mut stream: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Outgoing>) -> Ended {
    let mut block = BytesMut::new();
    while let Some(first) = queue.recv().await {
        let mut next = Some(first);
        while let Some(outgoing) = next.take() {
            for datagram in outgoing.datagrams() {
                capsule::encode(datagram, &mut block);
            }
            if block.len() + capsule::MAX_DATAGRAM < BLOCK {
                next = queue.try_recv().ok();
            }
        }
        if let Err(error) = stream.write_all_buf(&mut block).await {
            return error.into();
        }
        if let Err(error) = stream.flush().await {
            return error.into();
        }
    }
    // The peer learns of it by the end of the stream, or by its reset.
    let _ = stream.shutdown().await;
    Ended::Ours
}

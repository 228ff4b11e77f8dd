//! Frames over QUIC streams.

use bytes::BytesMut;
use quinn::{ReadError, RecvStream, SendStream, WriteError};

use super::wire::{self, Decoded, FRAME_HEADER, Frame, WireError};

/// Why no frame could be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum ControlError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("the stream ended inside a frame")]
    Truncated,
}

impl ControlError {
    /// Whether the peer broke the protocol, rather than the connection the stream.
    pub(super) const fn is_protocol(&self) -> bool {
        matches!(self, Self::Wire(_) | Self::Truncated)
    }
}

/// Reads frames from a stream and not a byte beyond them. Cancelling `next` loses nothing.
pub(super) struct FrameReader {
    stream: RecvStream,
    buffer: BytesMut,
}

impl FrameReader {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self { stream, buffer: BytesMut::with_capacity(FRAME_HEADER) }
    }

    /// The next frame; nothing after the end of the stream.
    pub(super) async fn next<F: Frame>(&mut self) -> Result<Option<F>, ControlError> {
        loop {
            let missing = match wire::decode(&mut self.buffer)? {
                Decoded::Frame(frame) => return Ok(Some(frame)),
                Decoded::Missing(bytes) => bytes.get(),
            };
            match self.stream.read_chunk(missing, true).await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(ControlError::Truncated),
            }
        }
    }

    /// The stream, at the first byte after the last frame.
    pub(super) fn into_stream(self) -> RecvStream {
        self.stream
    }
}

/// Writes one frame.
pub(super) async fn send<F: Frame>(stream: &mut SendStream, frame: &F) -> Result<(), ControlError> {
    let mut bytes = BytesMut::new();
    wire::encode(frame, &mut bytes)?;
    stream.write_chunk(bytes.freeze()).await?;
    Ok(())
}

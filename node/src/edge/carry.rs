//! Bytes of one TCP connection over one WebSocket (RFC 6455), both ways, within bounds.
//!
//! - A binary message is bytes, in order; how they are cut into messages means nothing. Text is refused (1003), and so
//!   is a message longer than [`LONGEST`] (1009).
//! - Each way holds one block at a time: whoever does not read stops the other end.
//! - The node pings. A client that answers nothing for [`SILENCE`] is gone.
//! - A WebSocket has no half-close. When the target ends its side, the client is told by a close message (1000), and
//!   what it still sends arrives until it answers, for [`GRACE`] at the most. When the client closes, the target reads
//!   the end of its input, and what it would still say has nobody to hear it.
//! - An end that is none (a lost client, a refused message) resets the target's stream: input that was cut short never
//!   looks complete.

use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::time::{Instant, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// Bytes of the longest message that is taken. Clients send what they read at once, some tens of KiB.
const LONGEST: usize = 256 * 1024;
/// Bytes moved at a time.
const BLOCK: usize = 16 * 1024;
const PING_EVERY: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_secs(60);
/// From the node's close message to the client's.
const GRACE: Duration = Duration::from_secs(5);
/// Saying goodbye, and then reading what the client was still sending: a socket that is closed with unread data is
/// reset, and the reset can overtake the goodbye.
const FAREWELL: Duration = Duration::from_millis(300);

/// Why a connection is stopped that could go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The permission is over.
    Over,
    /// The node shuts down.
    Leaving,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// By the client, in good order.
    Client,
    /// By the target, in good order.
    Target,
    /// The client's connection broke.
    ClientLost,
    /// The target's connection broke.
    TargetLost,
    /// The client sent text.
    Text,
    /// The client sent a message that is too long.
    TooLong,
    /// The client broke the protocol.
    Protocol,
    /// The client answered no pings.
    Silent,
    Stopped(Stop),
}

impl End {
    /// What the client is told, where it is not told already and could still hear it.
    const fn farewell(self) -> Option<(CloseCode, &'static str)> {
        match self {
            Self::Client | Self::Target | Self::ClientLost | Self::Silent => None,
            Self::TargetLost => Some((CloseCode::Error, "the target's connection broke")),
            Self::Text => Some((CloseCode::Unsupported, "bytes travel in binary messages")),
            Self::TooLong => Some((CloseCode::Size, "the message is too long")),
            Self::Protocol => Some((CloseCode::Protocol, "the protocol was broken")),
            Self::Stopped(Stop::Over) => {
                Some((CloseCode::Policy, "the permission for this connection is over"))
            }
            Self::Stopped(Stop::Leaving) => Some((CloseCode::Away, "the node is shutting down")),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "closed by the client",
            Self::Target => "closed by the target",
            Self::ClientLost => "the client's connection broke",
            Self::TargetLost => "the target's connection broke",
            Self::Text => "the client sent text",
            Self::TooLong => "the client sent a message that is too long",
            Self::Protocol => "the client broke the WebSocket protocol",
            Self::Silent => "the client answered no pings",
            Self::Stopped(Stop::Over) => "the permission was over",
            Self::Stopped(Stop::Leaving) => "the node was shutting down",
        })
    }
}

/// Carries bytes between a client that has switched to WebSocket and a target, and counts them, until one side ends or
/// `stopped` does.
pub(super) async fn carry<C, T>(
    client: C,
    target: T,
    carried: &AtomicU64,
    stopped: impl Future<Output = Stop>,
) -> End
where
    C: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite,
{
    let socket = WebSocketStream::from_raw_socket(client, Role::Server, Some(configuration())).await;
    let (mut to_client, mut from_client) = socket.split();
    let (from_target, mut to_target) = tokio::io::split(target);
    let ear = Ear::default();
    // Whether the client has said that its input is complete.
    let mut complete = false;
    let end = {
        let mut up = pin!(up(&mut from_client, &mut to_target, carried, &ear));
        let down = pin!(down(from_target, &mut to_client, carried, &ear));
        tokio::select! {
            end = &mut up => {
                complete = end == End::Client;
                end
            }
            end = down => match end {
                End::Target => {
                    complete = timeout(GRACE, up).await == Ok(End::Client);
                    End::Target
                }
                end => end,
            },
            stop = stopped => End::Stopped(stop),
        }
    };
    if complete {
        let _ = timeout(GRACE, to_target.shutdown()).await;
    }
    drop(to_target);
    let _ = timeout(FAREWELL, async {
        match end.farewell() {
            Some((code, reason)) => {
                let frame = CloseFrame { code, reason: reason.into() };
                to_client.send(Message::Close(Some(frame))).await
            }
            // What is left to be sent is the answer to the client's own close message.
            None => to_client.flush().await,
        }
    })
    .await;
    if let Ok(socket) = to_client.reunite(from_client) {
        let _ = timeout(FAREWELL, discard(socket.into_inner())).await;
    }
    end
}

fn configuration() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(BLOCK)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * BLOCK)
        .max_message_size(Some(LONGEST))
        .max_frame_size(Some(LONGEST))
}

/// From the client to the target.
async fn up<C, T>(
    from: &mut SplitStream<WebSocketStream<C>>,
    to: &mut WriteHalf<T>,
    carried: &AtomicU64,
    ear: &Ear,
) -> End
where
    C: AsyncRead + AsyncWrite + Unpin,
    T: AsyncWrite,
{
    loop {
        let message = match from.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => return lost(&error),
            None => return End::ClientLost,
        };
        ear.heard();
        match message {
            Message::Binary(bytes) => {
                ear.busy();
                if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                    return End::TargetLost;
                }
                ear.heard();
                carried.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            Message::Text(_) => return End::Text,
            Message::Close(_) => return End::Client,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }
}

/// From the target to the client, with pings in between.
async fn down<C, T>(
    mut from: ReadHalf<T>,
    to: &mut SplitSink<WebSocketStream<C>, Message>,
    carried: &AtomicU64,
    ear: &Ear,
) -> End
where
    C: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead,
{
    let mut ping = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    loop {
        let mut block = BytesMut::with_capacity(BLOCK);
        let (message, bytes) = tokio::select! {
            read = from.read_buf(&mut block) => match read {
                Ok(0) => {
                    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                    return match to.send(Message::Close(Some(frame))).await {
                        Ok(()) => End::Target,
                        Err(error) => lost(&error),
                    };
                }
                Ok(bytes) => (Message::Binary(block.freeze()), bytes),
                Err(_) => return End::TargetLost,
            },
            _ = ping.tick() => {
                if ear.silence() >= SILENCE {
                    return End::Silent;
                }
                (Message::Ping(Bytes::new()), 0)
            }
        };
        if let Err(error) = to.send(message).await {
            return lost(&error);
        }
        carried.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

fn lost(error: &Error) -> End {
    match error {
        Error::Capacity(_) => End::TooLong,
        Error::Utf8(_) => End::Text,
        Error::Protocol(
            tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => End::ClientLost,
        Error::Protocol(_) => End::Protocol,
        _ => End::ClientLost,
    }
}

/// Ends the connection and reads to its end.
async fn discard<C: AsyncRead + AsyncWrite + Unpin>(mut client: C) -> std::io::Result<()> {
    client.shutdown().await?;
    tokio::io::copy(&mut client, &mut tokio::io::sink()).await.map(drop)
}

/// When the client was last heard. While the node waits for the target to take what the client sent, it does not listen,
/// and the client's silence is not the client's.
#[derive(Debug)]
struct Ear(Mutex<Option<Instant>>);

impl Default for Ear {
    fn default() -> Self {
        Self(Mutex::new(Some(Instant::now())))
    }
}

impl Ear {
    fn heard(&self) {
        self.set(Some(Instant::now()));
    }

    fn busy(&self) {
        self.set(None);
    }

    fn silence(&self) -> Duration {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn set(&self, at: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}

#[cfg(test)]
mod tests;

//! An HTTP/2 connection whose frames are watched in both directions (RFC 9113 §4.1), for what the HTTP library keeps to
//! itself.
//!
//! 1. **Frames that carry nothing** (PING, SETTINGS, PRIORITY, WINDOW_UPDATE, RST_STREAM, unknown ones, DATA without data,
//!    requests beyond the number of streams) cost the sender little and the node an answer or a look-up each. A connection
//!    has so many to spend, earns more with each frame that carries something, and ends when it has spent them.
//! 2. **Requests that the library refuses** by a reset, because their head is malformed, or by an answer of its own (431),
//!    because it is too large, never become a request to us: they are told here, so that an event can say so.
//! 3. **Giving way.** The library goes on as long as there is something to read; a connection that sends without pause
//!    would keep a thread for as long as the socket lets it. After so many frames, others have their turn.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::limits;

mod fields;

/// Types, flags and codes of RFC 9113 §6 and §7.
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PROTOCOL_ERROR: u32 = 0x1;
const REFUSED_STREAM: u32 = 0x7;

/// `PRI * HTTP/2.0…`, before a client's first frame.
const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
/// The code of a reset.
const RESET: usize = 4;
/// A frame's head and what is looked at behind it.
const LOOKED_AT: usize = FRAME_HEAD + fields::SHORT;
/// The most that padding can make of an empty DATA frame.
const PADDING: usize = 256;

/// What a client did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Offence {
    #[error("the head of an HTTP/2 request was malformed")]
    Head,
    #[error("the head of an HTTP/2 request was too large")]
    Large,
    #[error("too many HTTP/2 frames that carry nothing")]
    Flood,
}

/// A stream with HTTP/2 in it.
pub(super) struct Frames<S> {
    inner: S,
    received: Walker,
    sent: Walker,
    watch: Watch,
    /// Frames since the connection last waited or gave way.
    run: u32,
}

impl<S> Frames<S> {
    /// The server's side of `inner`. Each offence is told to `tell`; a flood also ends the connection.
    pub(super) fn new(inner: S, tell: impl Fn(Offence) + Send + 'static) -> Self {
        let watch = Watch { tell: Box::new(tell), purse: Purse::new(), heads: Heads::default(), over: false };
        Self { inner, received: Walker::behind(PREFACE), sent: Walker::behind(0), watch, run: 0 }
    }
}

/// What is known of both directions.
struct Watch {
    tell: Box<dyn Fn(Offence) + Send>,
    purse: Purse,
    heads: Heads,
    /// No more is read.
    over: bool,
}

impl Watch {
    fn received(&mut self, frame: &Frame) {
        self.heads.received(frame);
        if frame.carries_something() {
            if frame.kind == DATA {
                self.purse.earn();
            }
        } else {
            self.spend();
        }
    }

    fn sent(&mut self, frame: &Frame) {
        match (frame.kind, frame.code) {
            (RST_STREAM, Some(REFUSED_STREAM)) => self.spend(),
            (RST_STREAM, Some(PROTOCOL_ERROR)) if self.heads.take(frame.stream) => (self.tell)(Offence::Head),
            (HEADERS, _) => {
                // Ours have a date. Trailers come after a head, which took the stream.
                let first = self.heads.take(frame.stream);
                if first && frame.is_lone_field {
                    (self.tell)(Offence::Large);
                } else {
                    self.purse.earn();
                }
            }
            (DATA, _) => self.purse.earn(),
            _ => {}
        }
    }

    fn spend(&mut self) {
        if !self.over && !self.purse.spend(Instant::now()) {
            self.over = true;
            (self.tell)(Offence::Flood);
        }
    }
}

/// The head of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    /// Bytes of the payload.
    length: usize,
    /// Of a reset.
    code: Option<u32>,
    /// A message that is a head of one field.
    is_lone_field: bool,
}

impl Frame {
    /// Whether there is something in it for the application.
    const fn carries_something(&self) -> bool {
        match self.kind {
            DATA => {
                let least = if self.flags & PADDED == 0 { 0 } else { PADDING };
                self.length > least || self.flags & END_STREAM != 0
            }
            // Of these, the library bounds how many there can be.
            HEADERS | CONTINUATION => true,
            _ => false,
        }
    }

    /// Bytes of the payload that are looked at.
    const fn looked_at(&self) -> usize {
        const WHOLE: u8 = END_STREAM | END_HEADERS;
        match (self.kind, self.flags, self.length) {
            (RST_STREAM, _, RESET) => RESET,
            (HEADERS, WHOLE, length @ ..=fields::SHORT) => length,
            _ => 0,
        }
    }
}

/// Finds the frames in a stream of bytes, however it is cut up.
#[derive(Debug)]
struct Walker {
    /// Bytes before the next frame.
    skip: usize,
    head: [u8; LOOKED_AT],
    filled: usize,
}

impl Walker {
    const fn behind(skip: usize) -> Self {
        Self { skip, head: [0; LOOKED_AT], filled: 0 }
    }

    fn walk(&mut self, mut bytes: &[u8], mut found: impl FnMut(&Frame)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let wanted = self.wanted();
            let taken = bytes.len().min(wanted - self.filled);
            for (to, from) in self.head.iter_mut().skip(self.filled).zip(bytes.iter().take(taken)) {
                *to = *from;
            }
            self.filled += taken;
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.filled == wanted && self.wanted() == wanted {
                let frame = self.frame();
                self.skip = (FRAME_HEAD + frame.length).saturating_sub(self.filled);
                self.filled = 0;
                found(&frame);
            }
        }
    }

    /// Bytes that make a frame known.
    fn wanted(&self) -> usize {
        if self.filled < FRAME_HEAD { FRAME_HEAD } else { FRAME_HEAD + self.frame().looked_at() }
    }

    fn frame(&self) -> Frame {
        let [l2, l1, l0, kind, flags, s3, s2, s1, s0, payload @ ..] = self.head;
        let mut frame = Frame {
            kind,
            flags,
            stream: u32::from_be_bytes([s3 & 0x7f, s2, s1, s0]),
            length: usize::from(l2) << 16 | usize::from(l1) << 8 | usize::from(l0),
            code: None,
            is_lone_field: false,
        };
        let payload = payload.get(..frame.looked_at()).unwrap_or_default();
        match frame.kind {
            RST_STREAM => frame.code = payload.try_into().ok().map(u32::from_be_bytes),
            HEADERS => frame.is_lone_field = fields::is_one(payload),
            _ => {}
        }
        frame
    }
}

/// Frames that carry nothing, as far as they are paid for: the generic cell rate algorithm, which needs one time.
#[derive(Debug)]
struct Purse {
    /// When all that was spent is there again.
    full: Instant,
}

impl Purse {
    fn new() -> Self {
        Self { full: Instant::now() }
    }

    fn spend(&mut self, now: Instant) -> bool {
        let full = self.full.max(now) + limits::H2_EMPTY_FRAME;
        let most: Duration = limits::H2_EMPTY_FRAME * limits::H2_EMPTY_FRAMES;
        if full > now + most {
            return false;
        }
        self.full = full;
        true
    }

    fn earn(&mut self) {
        self.full = self.full.checked_sub(limits::H2_EMPTY_FRAME * limits::H2_EARNED).unwrap_or(self.full);
    }
}

/// Streams of which the client has sent a head and nothing else yet, in ascending order. A reset of such a stream for a
/// protocol error is one for its head; afterwards it is a request of ours, with an event of its own.
#[derive(Debug, Default)]
struct Heads {
    streams: VecDeque<u32>,
    last: u32,
}

impl Heads {
    /// The library resets at once, so that an old one can be forgotten.
    const MOST: usize = 256;

    fn received(&mut self, frame: &Frame) {
        match frame.kind {
            HEADERS if frame.stream > self.last => {
                self.last = frame.stream;
                if self.streams.len() >= Self::MOST {
                    self.streams.pop_front();
                }
                self.streams.push_back(frame.stream);
            }
            CONTINUATION => {}
            _ => {
                self.take(frame.stream);
            }
        }
    }

    /// Removes a stream; whether it was there.
    fn take(&mut self, stream: u32) -> bool {
        self.streams.binary_search(&stream).is_ok_and(|at| self.streams.remove(at).is_some())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Frames<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.run >= limits::H2_RUN {
            this.run = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.inner).poll_read(cx, buf);
        if read.is_pending() {
            this.run = 0;
        }
        ready!(read)?;
        let (watch, run) = (&mut this.watch, &mut this.run);
        this.received.walk(buf.filled().get(before..).unwrap_or_default(), |frame| {
            *run = run.saturating_add(1);
            watch.received(frame);
        });
        if this.watch.over {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, Offence::Flood)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Frames<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.inner).poll_write(cx, buf))?;
        this.sent.walk(buf.get(..count).unwrap_or_default(), |frame| this.watch.sent(frame));
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.inner).poll_write_vectored(cx, bufs))?;
        let mut left = count;
        for buf in bufs {
            let taken = left.min(buf.len());
            this.sent.walk(buf.get(..taken).unwrap_or_default(), |frame| this.watch.sent(frame));
            left -= taken;
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;

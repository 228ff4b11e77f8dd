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
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    const PING: u8 = 0x6;
    const ONE: Duration = limits::H2_EMPTY_FRAME;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn reset(stream: u32, code: u32) -> Vec<u8> {
        frame(RST_STREAM, 0, stream, &code.to_be_bytes())
    }

    /// A client, the watched server, and what is told.
    fn pair() -> (DuplexStream, Frames<DuplexStream>, Arc<Mutex<Vec<Offence>>>) {
        let (client, server) = duplex(1 << 20);
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        (client, Frames::new(server, move |offence| tell.lock().unwrap().push(offence)), told)
    }

    /// The client says `frames`, and the server reads them.
    async fn say(
        client: &mut DuplexStream,
        server: &mut Frames<DuplexStream>,
        said: &[u8],
    ) -> io::Result<()> {
        client.write_all(said).await.unwrap();
        server.read_exact(&mut vec![0; said.len()]).await.map(|_| ())
    }

    proptest! {
        #[test]
        fn frames_are_found_however_the_bytes_are_cut(
            frames in prop::collection::vec((0_u8..12, any::<u8>(), 0_u32..1 << 31, 0_usize..40), 0..20),
            cuts in prop::collection::vec(1_usize..30, 1..20),
        ) {
            let mut bytes = vec![0; PREFACE];
            let mut expected = Vec::new();
            for (kind, flags, stream, length) in frames {
                bytes.extend(frame(kind, flags, stream, &vec![7; length]));
                let code = (kind == RST_STREAM && length == 4).then_some(0x0707_0707);
                // Two strings of seven bytes, and their lengths.
                let is_lone_field = kind == HEADERS && flags == 5 && length == 2 + 7;
                expected.push(Frame { kind, flags, stream, length, code, is_lone_field });
            }
            let (mut walker, mut found) = (Walker::behind(PREFACE), Vec::new());
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at(rest.len().min(*cut));
                walker.walk(now, |frame| found.push(frame.clone()));
                rest = later;
                if rest.is_empty() { break; }
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn frames_that_carry_nothing_end_a_connection_that_sends_too_many() {
        for nothing in [
            frame(PING, 0, 0, &[0; 8]),
            frame(0x4, 0, 0, &[]),
            frame(0x2, 0, 1, &[0; 5]),
            frame(0x8, 0, 0, &1_u32.to_be_bytes()),
            frame(0xbe, 0, 0, &[1; 20]),
            frame(DATA, 0, 1, &[]),
            frame(DATA, PADDED, 1, &[200; 201]),
            reset(1, 8),
        ] {
            let (mut client, mut server, told) = pair();
            say(&mut client, &mut server, &[0; PREFACE]).await.unwrap();
            for _ in 0..limits::H2_EMPTY_FRAMES {
                say(&mut client, &mut server, &nothing).await.unwrap();
            }
            assert_eq!(*told.lock().unwrap(), [], "{nothing:?}");
            let error = say(&mut client, &mut server, &nothing).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{nothing:?}");
            say(&mut client, &mut server, &nothing).await.unwrap_err();
            assert_eq!(*told.lock().unwrap(), [Offence::Flood], "told once: {nothing:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_spent_comes_back_by_time_and_by_frames_that_carry_something() {
        let (mut client, mut server, told) = pair();
        say(&mut client, &mut server, &[0; PREFACE]).await.unwrap();
        let ping = frame(PING, 0, 0, &[0; 8]);
        let pings = |count: u32| ping.repeat(usize::try_from(count).unwrap());
        say(&mut client, &mut server, &pings(limits::H2_EMPTY_FRAMES)).await.unwrap();
        tokio::time::advance(ONE * 50).await;
        say(&mut client, &mut server, &pings(50)).await.unwrap();
        say(&mut client, &mut server, &frame(DATA, 0, 1, b"a")).await.unwrap();
        server.write_all(&frame(DATA, 0, 1, b"a")).await.unwrap();
        say(&mut client, &mut server, &pings(2 * limits::H2_EARNED)).await.unwrap();
        assert_eq!(*told.lock().unwrap(), []);
        say(&mut client, &mut server, &ping).await.unwrap_err();
    }

    /// What the dialling end of a tunnel over TCP says beside its datagrams, at its busiest: a PING every three seconds, an answer
    /// to each of ours, and for each half of a window that it has read an update of the stream's and the connection's.
    #[tokio::test(start_paused = true)]
    async fn a_tunnel_pays_for_what_it_says_and_a_hostile_one_does_not() {
        const HALF_A_WINDOW: usize = 512 * 1024;
        const LONGEST_FRAME: usize = 16 * 1024;
        let (mut client, mut server, told) = pair();
        say(&mut client, &mut server, &[0; PREFACE]).await.unwrap();
        let ping = |flags| frame(PING, flags, 0, &[0; 8]);
        let update = |stream| frame(0x8, 0, stream, &1_u32.to_be_bytes());
        for _ in 0..1200 {
            tokio::time::advance(Duration::from_secs(3)).await;
            say(&mut client, &mut server, &[ping(0), ping(1)].concat()).await.unwrap();
            for _ in 0..64 {
                let data = frame(DATA, 0, 1, b"a").repeat(HALF_A_WINDOW / LONGEST_FRAME);
                server.write_all(&data).await.unwrap();
                say(&mut client, &mut server, &[update(1), update(0)].concat()).await.unwrap();
            }
            client.read_exact(&mut vec![0; 64 * 32 * (FRAME_HEAD + 1)]).await.unwrap();
        }
        assert_eq!(*told.lock().unwrap(), []);
        // Updates that nothing was read for.
        tokio::time::advance(Duration::from_secs(3)).await;
        let flood = update(1).repeat(usize::try_from(limits::H2_EMPTY_FRAMES).unwrap());
        say(&mut client, &mut server, &flood).await.unwrap();
        say(&mut client, &mut server, &update(1)).await.unwrap_err();
        assert_eq!(*told.lock().unwrap(), [Offence::Flood]);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_earns_more_than_there_was_at_first() {
        let (mut client, mut server, _told) = pair();
        say(&mut client, &mut server, &[0; PREFACE]).await.unwrap();
        for _ in 0..limits::H2_EMPTY_FRAMES {
            say(&mut client, &mut server, &frame(DATA, 0, 1, b"a")).await.unwrap();
        }
        let ping = frame(PING, 0, 0, &[0; 8]);
        let most = ping.repeat(usize::try_from(limits::H2_EMPTY_FRAMES).unwrap());
        say(&mut client, &mut server, &most).await.unwrap();
        say(&mut client, &mut server, &ping).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn refused_streams_are_paid_for() {
        let (mut client, mut server, told) = pair();
        say(&mut client, &mut server, &[0; PREFACE]).await.unwrap();
        for number in 0..=limits::H2_EMPTY_FRAMES {
            server.write_all(&reset(number * 2 + 1, REFUSED_STREAM)).await.unwrap();
        }
        assert_eq!(*told.lock().unwrap(), [Offence::Flood]);
        say(&mut client, &mut server, &frame(HEADERS, 4, 1, &[])).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_head_is_told_and_a_request_that_breaks_later_is_not() {
        let (mut client, mut server, told) = pair();
        say(&mut client, &mut server, &[0; PREFACE]).await.unwrap();
        let head = |stream| frame(HEADERS, 0, stream, &[1, 2, 3]);
        say(&mut client, &mut server, &[head(1), frame(CONTINUATION, 4, 1, &[4])].concat()).await.unwrap();
        // One slice cut in the middle of another's reset.
        let bytes = [reset(1, PROTOCOL_ERROR), frame(PING, 1, 0, &[0; 8])].concat();
        let (one, two) = bytes.split_at(11);
        let count = server.write_vectored(&[IoSlice::new(one), IoSlice::new(two)]).await.unwrap();
        server.write_all(&bytes[count..]).await.unwrap();
        assert_eq!(*told.lock().unwrap(), [Offence::Head]);
        server.write_all(&reset(1, PROTOCOL_ERROR)).await.unwrap();
        // A request, whose body then is not as long as announced; one that was reset for another cause; one unheard of.
        say(&mut client, &mut server, &[head(3), frame(DATA, 0, 3, b"a"), head(5)].concat()).await.unwrap();
        server
            .write_all(&[reset(3, PROTOCOL_ERROR), reset(5, 8), reset(7, PROTOCOL_ERROR)].concat())
            .await
            .unwrap();
        assert_eq!(told.lock().unwrap().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_ours_is_told_and_trailers_are_not() {
        let (mut client, mut server, told) = pair();
        say(&mut client, &mut server, &[0; PREFACE]).await.unwrap();
        const WHOLE: u8 = END_STREAM | END_HEADERS;
        let head = |stream| frame(HEADERS, WHOLE, stream, &[1, 2, 3]);
        say(&mut client, &mut server, &[head(1), head(3), head(5), head(7), head(9)].concat()).await.unwrap();
        // 431 as the library says it: a literal, which is remembered, and then by its index.
        for (stream, status) in [(1, &[0x48, 0x82, 0x68, 0x8f][..]), (3, &[0xbe])] {
            told.lock().unwrap().clear();
            for byte in [frame(HEADERS, WHOLE, stream, status), reset(stream, PROTOCOL_ERROR)].concat() {
                server.write_all(&[byte]).await.unwrap();
            }
            assert_eq!(*told.lock().unwrap(), [Offence::Large]);
        }
        told.lock().unwrap().clear();
        // A status and a date; the same with a body; with one field of trailers; what goes on.
        server.write_all(&frame(HEADERS, WHOLE, 5, &[0xbe, 0xbf])).await.unwrap();
        server.write_all(&frame(HEADERS, END_HEADERS, 7, &[0x88, 0xbf])).await.unwrap();
        server.write_all(&frame(HEADERS, WHOLE, 7, &[0xbe])).await.unwrap();
        server.write_all(&frame(HEADERS, END_HEADERS, 9, &[0x88])).await.unwrap();
        assert_eq!(*told.lock().unwrap(), []);
    }

    #[tokio::test]
    async fn a_connection_that_sends_without_pause_gives_way() {
        let (mut client, mut server, _told) = pair();
        let block = frame(DATA, 0, 1, b"a").repeat(usize::try_from(limits::H2_RUN).unwrap());
        client.write_all(&[vec![0; PREFACE], block.repeat(4)].concat()).await.unwrap();
        let mut buf = vec![0; 1 << 20];
        let mut read = 0;
        let mut turns = 0;
        let reading = std::future::poll_fn(|cx| {
            turns += 1;
            loop {
                // As the library reads: a piece, and the next one.
                let mut piece = ReadBuf::new(&mut buf[..8 * 1024]);
                match Pin::new(&mut server).poll_read(cx, &mut piece) {
                    Poll::Ready(result) => result.unwrap(),
                    Poll::Pending if turns >= 3 => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
                read += piece.filled().len();
            }
        });
        tokio::time::timeout(Duration::from_secs(10), reading).await.expect("woken by itself");
        assert!(turns == 3 && read > 0, "{turns} turns, {read} bytes");
    }
}

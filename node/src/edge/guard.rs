//! An HTTP/1.1 connection on which only strictly read bytes reach the HTTP library.
//!
//! A refused message is replaced by a plain request of our own, the last one on the connection, so that its answer
//! takes the same way as any other: behind the answers to earlier requests, with a page, a ray and an event. The
//! service learns from [`Shared`] which request that is.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::io::poll_read_buf;

use super::limits;
use super::strict::{Refused, Scanner, Violation};

/// What stands in for a refused message.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nHost: refused.invalid\r\nConnection: close\r\n\r\n";
/// Bytes read at once.
const READ: usize = 16 * 1024;

/// What the service of a connection has to know, and to say.
#[derive(Debug, Default)]
pub(super) struct Shared {
    served: AtomicU64,
    refused: OnceLock<(u64, Violation)>,
    switched: AtomicBool,
}

impl Shared {
    /// Called once for every request, in order: why it was refused, if it was.
    pub(super) fn next_request(&self) -> Option<Violation> {
        let number = self.served.fetch_add(1, Ordering::AcqRel);
        self.refused.get().filter(|(refused, _)| *refused == number).map(|(_, violation)| *violation)
    }

    /// The upgrade is granted: from now on the connection carries another protocol.
    pub(super) fn switch(&self) {
        self.switched.store(true, Ordering::Release);
    }
}

/// The server's side of a connection `S` (TLS inside).
#[derive(Debug)]
pub(super) struct Guard<S> {
    inner: S,
    shared: Arc<Shared>,
    scanner: Scanner,
    /// Received and not passed on; the first `ready` bytes may be.
    held: BytesMut,
    ready: usize,
    /// Heads that may pass or have passed.
    heads: u64,
    stand_in: Bytes,
    end: End,
    deadline: Option<(Waiting, Pin<Box<Sleep>>)>,
    linger: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// By the peer.
    Closed,
    /// By us: whatever still comes is thrown away. Telling the library that the peer has closed would make it drop
    /// the answer.
    Refused,
    Broken(Violation),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Head,
    Body,
}

impl<S> Guard<S> {
    pub(super) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self {
            inner,
            shared,
            scanner: Scanner::default(),
            held: BytesMut::new(),
            ready: 0,
            heads: 0,
            stand_in: Bytes::new(),
            end: End::Open,
            deadline: None,
            linger: None,
        }
    }

    fn scan(&mut self) {
        let scanned = self.scanner.scan(self.held.get(self.ready..).unwrap_or_default());
        self.ready += scanned.pass;
        self.heads += scanned.heads;
        if scanned.pass > 0 {
            self.deadline = None;
        }
        match scanned.refused {
            None => {}
            Some(Refused::Message(violation)) => {
                self.held.truncate(self.ready);
                self.stand_in = Bytes::from_static(STAND_IN);
                self.end = End::Refused;
                // Only the first refusal counts; the scanner lets nothing pass behind it.
                let _ = self.shared.refused.set((self.heads, violation));
            }
            Some(Refused::Rest(violation)) => {
                self.held.truncate(self.ready);
                self.end = End::Broken(violation);
            }
        }
    }

    /// What the peer owes us, if anything; a connection between requests may rest.
    fn waiting(&self) -> Option<Waiting> {
        if self.scanner.in_body() {
            Some(Waiting::Body)
        } else if self.held.is_empty() {
            None
        } else {
            Some(Waiting::Head)
        }
    }

    /// Nothing arrived: fails once that has lasted too long. The time of a head runs from its first byte, that of a
    /// body from the last that could pass.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(waiting) = self.waiting() else {
            self.deadline = None;
            return Poll::Pending;
        };
        let fresh = |after: Duration| Box::pin(tokio::time::sleep_until(Instant::now() + after));
        let sleep = match &mut self.deadline {
            Some((for_what, sleep)) if *for_what == waiting => sleep,
            deadline => {
                let limit = match waiting {
                    Waiting::Head => limits::HEAD,
                    Waiting::Body => limits::BODY_PAUSE,
                };
                &mut deadline.insert((waiting, fresh(limit))).1
            }
        };
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> Guard<S> {
    /// Throws away what comes; ready when the peer closes.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.held.clear();
            self.held.reserve(READ);
            if ready!(poll_read_buf(Pin::new(&mut self.inner), cx, &mut self.held))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.ready > 0 {
                let count = this.ready.min(buf.remaining());
                buf.put_slice(this.held.get(..count).unwrap_or_default());
                this.held.advance(count);
                this.ready -= count;
                return Poll::Ready(Ok(()));
            }
            if this.stand_in.has_remaining() {
                let count = this.stand_in.len().min(buf.remaining());
                buf.put_slice(&this.stand_in.split_to(count));
                return Poll::Ready(Ok(()));
            }
            match this.end {
                End::Open => {}
                End::Closed => return Poll::Ready(Ok(())),
                End::Refused => return this.poll_discard(cx),
                End::Broken(violation) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, violation)));
                }
            }
            if this.shared.switched.load(Ordering::Acquire) {
                return Pin::new(&mut this.inner).poll_read(cx, buf);
            }
            this.held.reserve(READ);
            let count = match poll_read_buf(Pin::new(&mut this.inner), cx, &mut this.held) {
                Poll::Ready(count) => count?,
                Poll::Pending => return this.poll_deadline(cx),
            };
            if count == 0 {
                this.end = End::Closed;
                return Poll::Ready(Ok(()));
            }
            this.scan();
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        if this.shared.switched.load(Ordering::Acquire) || (this.end == End::Open && this.waiting().is_none())
        {
            return Poll::Ready(Ok(()));
        }
        // A socket that is closed with unread data is reset, and the reset can overtake the answer. So what the peer
        // was still sending is read for a moment.
        let linger = this.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(limits::LINGER)));
        if linger.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let _ = ready!(this.poll_discard(cx));
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const PLAIN: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";

    async fn read_all(bytes: &[u8]) -> (Vec<u8>, Arc<Shared>, io::Result<usize>) {
        let (mut client, server) = duplex(64 * 1024);
        let shared = Arc::new(Shared::default());
        let mut guard = Guard::new(server, Arc::clone(&shared));
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let mut read = Vec::new();
        let result = guard.read_to_end(&mut read).await;
        (read, shared, result)
    }

    #[tokio::test]
    async fn a_refused_message_is_replaced_and_ends_the_connection() {
        let (read, shared, result) =
            read_all(&[PLAIN, b"GET /b#c HTTP/1.1\r\nHost: a\r\n\r\n", PLAIN].concat()).await;
        result.unwrap();
        assert_eq!(read, [PLAIN, STAND_IN].concat());
        assert_eq!(shared.next_request(), None, "the first request is good");
        assert_eq!(shared.next_request(), Some(Violation::Target));
    }

    #[tokio::test]
    async fn a_broken_chunk_behind_a_passed_head_is_an_error() {
        let (mut client, server) = duplex(64 * 1024);
        let mut guard = Guard::new(server, Arc::default());
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.write_all(head).await.unwrap();
        let mut read = vec![0; head.len()];
        guard.read_exact(&mut read).await.unwrap();
        client.write_all(b"0x1\r\na\r\n0\r\n\r\n").await.unwrap();
        let error = guard.read(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_granted_upgrade_passes_anything() {
        let (mut client, server) = duplex(64 * 1024);
        let shared = Arc::new(Shared::default());
        let mut guard = Guard::new(server, Arc::clone(&shared));
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        client.write_all(head).await.unwrap();
        let mut read = vec![0; head.len()];
        guard.read_exact(&mut read).await.unwrap();
        shared.switch();
        client.write_all(b"\x81\x01a\n").await.unwrap();
        let count = guard.read(&mut read).await.unwrap();
        assert_eq!(read.get(..count).unwrap(), b"\x81\x01a\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_a_time_limit_from_its_first_byte() {
        let (mut client, server) = duplex(64 * 1024);
        let mut guard = Guard::new(server, Arc::default());
        let started = Instant::now();
        let trickle = tokio::spawn(async move {
            for byte in PLAIN.iter().cycle() {
                if client.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
        });
        let error = guard.read(&mut [0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= limits::HEAD && started.elapsed() < limits::HEAD * 2);
        trickle.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_pause_but_not_for_long() {
        let (mut client, server) = duplex(64 * 1024);
        let mut guard = Guard::new(server, Arc::default());
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n";
        client.write_all(head).await.unwrap();
        let mut read = vec![0; head.len()];
        guard.read_exact(&mut read).await.unwrap();
        for _ in 0..2 {
            let late = async {
                tokio::time::sleep(limits::BODY_PAUSE / 2).await;
                client.write_all(b"a").await.unwrap();
            };
            let (count, ()) = tokio::join!(guard.read(&mut read), late);
            assert_eq!(count.unwrap(), 1);
        }
        let started = Instant::now();
        assert_eq!(guard.read(&mut read).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= limits::BODY_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_between_requests_may_rest() {
        let (mut client, server) = duplex(64 * 1024);
        let mut guard = Guard::new(server, Arc::default());
        let mut read = vec![0; PLAIN.len()];
        for _ in 0..2 {
            tokio::time::timeout(limits::HEAD * 3, guard.read(&mut read)).await.unwrap_err();
            client.write_all(PLAIN).await.unwrap();
            guard.read_exact(&mut read).await.unwrap();
        }
    }
}

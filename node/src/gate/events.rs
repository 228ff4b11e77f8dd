//! Sampled drops, as they happen.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use portcullis_common::layout::{self, Rule};
use portcullis_common::{DropReason, Verdict};
use tokio::io::unix::AsyncFd;

/// One dropped packet out of many: of each reason on each CPU the first in a second, and one in
/// [`SAMPLE_EVERY`](portcullis_common::layout::SAMPLE_EVERY). The counters are the truth; this says who.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampledDrop {
    pub reason: DropReason,
    /// What it ran into, where the reason alone does not say it.
    pub rule: Option<Rule>,
    /// Since boot, on the monotonic clock.
    pub at: Duration,
    pub ifindex: u32,
    /// Bytes of the frame.
    pub length: u32,
    /// Ends of the packet, with port 0 for ICMP; absent if it did not parse so far.
    pub ends: Option<Ends>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// IP protocol number; ICMPv6 counts as ICMP.
    pub protocol: u8,
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// The ring buffer's reader. There is one: two would share the events between them.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring }
    }

    /// The next event if there is one.
    pub fn try_next(&mut self) -> Option<SampledDrop> {
        loop {
            let item = self.ring.next()?;
            // What is no event of ours is skipped: the ring is only as trustworthy as its pin.
            if let Some(event) = decode(&item) {
                return Some(event);
            }
        }
    }

    /// Waits for events on the current tokio runtime.
    ///
    /// # Errors
    ///
    /// Outside of a runtime with I/O, or when the descriptor cannot be registered.
    pub fn into_async(self) -> io::Result<AsyncEvents> {
        // SAFETY: the ring owns its descriptor, and nothing closes or replaces it while `AsyncFd` lives.
        #[expect(unsafe_code, reason = "registration asks for a promise about the descriptor")]
        let inner = unsafe { AsyncFd::register(self)? };
        Ok(AsyncEvents { inner })
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

/// [`Events`] for async code.
pub struct AsyncEvents {
    inner: AsyncFd<Events>,
}

impl AsyncEvents {
    /// The next event. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the runtime shuts down.
    pub async fn next(&mut self) -> io::Result<SampledDrop> {
        loop {
            let mut ready = self.inner.readable_mut().await?;
            if let Some(event) = ready.get_inner_mut().try_next() {
                return Ok(event);
            }
            ready.clear_ready();
        }
    }
}

fn decode(bytes: &[u8]) -> Option<SampledDrop> {
    let event = layout::Event::from_bytes(bytes)?;
    let Some(Verdict::Drop(reason)) = Verdict::from_index(event.verdict) else { return None };
    let ends = (event.version != 0).then(|| Ends {
        protocol: event.protocol,
        source: SocketAddr::new(IpAddr::from(event.source), event.source_port),
        destination: SocketAddr::new(IpAddr::from(event.destination), event.destination_port),
    });
    Some(SampledDrop {
        reason,
        rule: Rule::of(reason, event.rule),
        at: Duration::from_nanos(event.at),
        ifindex: event.ifindex,
        length: event.length,
        ends,
    })
}

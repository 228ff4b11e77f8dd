//! How much memory end-to-end connections may take at one end: each of them, one person's, and all.
//!
//! A connection holds what its streams' readers do not read, what its peer does not acknowledge, and payloads that wait for
//! their flows. All of that has a bound from its beginning on: its [`Room`].
//!
//! 1. [`Rooms::take`]: a connection gets a sixteenth of what is left to its holder, or to all, whichever is less; never more than
//!    [`MOST`], and never less than what it works with.
//! 2. The room is divided among streams and datagrams by what the connection is for.
//! 3. It is given back when it is dropped.
//!
//! So what one holder's connections take together is what holders get, and the least for each of them; the same is true of
//! all. A peer decides nothing about it. What is counted are bytes of payload: in packets of the usual size they take a few
//! hundredths more, and from a peer that sends them in crumbs up to two and a half times as much, from where on
//! QUIC's implementation copies them together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::wire::MAX_PAYLOAD;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// What one connection gets at the most.
const MOST: u64 = 64 * MIB;

/// A stream's window: 4 MiB are 330 Mbit/s at 100 ms.
const STREAM: std::ops::RangeInclusive<u64> = 64 * KIB..=4 * MIB;

/// Datagrams that wait to be read, or to be sent; payloads that wait for their flows; and those whose parts have not all come.
const MOST_DATAGRAMS: u64 = 2 * MIB;
const HELD: std::ops::RangeInclusive<u64> = 80 * KIB..=4 * MIB;
const PARTIAL: std::ops::RangeInclusive<u64> = 1..=16;

/// What there is for one holder, and for all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) holder: u64,
    pub(crate) all: u64,
}

/// A connector's: a holder is a person.
pub(crate) const CONNECTOR: Bounds = Bounds { holder: 512 * MIB, all: 2048 * MIB };

/// A client's, which has one holder.
pub(crate) const CLIENT: Bounds = Bounds { holder: 1024 * MIB, all: 1024 * MIB };

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Streams,
    /// And streams that say nothing.
    Datagrams,
    /// Not known yet.
    Either,
}

impl Use {
    /// What a connection gets however little is left.
    const fn least(self) -> u64 {
        match self {
            Self::Streams | Self::Datagrams => 256 * KIB,
            Self::Either => 512 * KIB,
        }
    }

    /// Of so many bytes, those for streams.
    const fn streams(self, bytes: u64) -> u64 {
        match self {
            Self::Streams => bytes,
            Self::Datagrams => 32 * KIB,
            Self::Either => bytes / 2,
        }
    }
}

/// What the connections of one end take.
#[derive(Debug, Clone)]
pub(crate) struct Rooms {
    bounds: Bounds,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: u64,
    of: BTreeMap<String, u64>,
}

/// What one connection may take, until it is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    bytes: u64,
    carries: Use,
    holder: String,
    taken: Arc<Mutex<Taken>>,
}

impl Rooms {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, taken: Arc::default() }
    }

    /// Room for one more connection of `holder`.
    pub(crate) fn take(&self, holder: &str, carries: Use) -> Room {
        let mut taken = lock(&self.taken);
        let of_holder = taken.of.get(holder).copied().unwrap_or(0);
        let left =
            (self.bounds.holder.saturating_sub(of_holder)).min(self.bounds.all.saturating_sub(taken.all));
        let bytes = (left / 16).clamp(carries.least(), MOST);
        taken.all += bytes;
        *taken.of.entry(holder.to_owned()).or_default() += bytes;
        drop(taken);
        Room { bytes, carries, holder: holder.to_owned(), taken: Arc::clone(&self.taken) }
    }
}

impl Room {
    /// Bytes that all streams together hold for readers that do not read.
    pub(super) fn receive_window(&self) -> u32 {
        number(self.streams() / 4 * 3)
    }

    /// The same of one stream: a few that nobody reads take nothing from the others.
    pub(super) fn stream_window(&self) -> u32 {
        let sixth = u64::from(self.receive_window()) / 6;
        number(sixth.clamp(*STREAM.start(), *STREAM.end())).min(self.receive_window())
    }

    /// Bytes in flight, and not yet acknowledged.
    pub(super) fn send_window(&self) -> u64 {
        self.streams() / 4
    }

    /// Bytes of datagrams that wait to be read, and as many to be sent; none where nothing travels in them.
    pub(super) fn datagrams(&self) -> Option<usize> {
        let bytes = (self.bytes - self.streams()) / 8;
        (bytes > 0).then(|| size(bytes.min(MOST_DATAGRAMS)))
    }

    /// Bytes of payloads that wait for their flows.
    pub(super) fn held(&self) -> usize {
        size(((self.bytes - self.streams()) / 4).clamp(*HELD.start(), *HELD.end()))
    }

    /// Payloads whose parts have not all come.
    pub(super) fn partial(&self) -> usize {
        let count = (self.bytes - self.streams()) / 4 / MAX_PAYLOAD as u64;
        size(count.clamp(*PARTIAL.start(), *PARTIAL.end()))
    }

    fn streams(&self) -> u64 {
        self.carries.streams(self.bytes)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.all = taken.all.saturating_sub(self.bytes);
        if let Some(of_holder) = taken.of.get_mut(&self.holder) {
            *of_holder = of_holder.saturating_sub(self.bytes);
            if *of_holder == 0 {
                taken.of.remove(&self.holder);
            }
        }
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

/// None is larger than [`MOST`].
fn number(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;

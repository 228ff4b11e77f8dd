//! How much memory end-to-end connections may take at one end: each of them, one person's, and all.
//!
//! A connection holds what its streams' readers do not read, what its peer does not acknowledge, and payloads that wait for
//! their flows. All of that has a bound from its beginning on: its [`Room`].
//!
//! 1. [`Rooms::take`]: a connection gets a sixteenth of what is left to its holder; at the most what a holder's first one gets,
//!    which is halved with each eighth of all that is taken; and never less than what it works with.
//! 2. The room is divided among streams and datagrams by what the connection is for.
//! 3. It is given back when it is dropped.
//!
//! So what one holder's connections take together is what holders get, and the least for each of them; the same is true of
//! all. A holder takes no more of all than holders get: what its connections have beyond that is nobody else's loss. A peer
//! decides nothing about it. What is counted are bytes of payload: in packets of the usual size they take a few
//! hundredths more, and from a peer that sends them in crumbs up to two and a half times as much, from where on
//! QUIC's implementation copies them together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::wire::MAX_PAYLOAD;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// A connection gets this part of what is left to its holder.
const SHARES: u64 = 16;

/// Of all, this part is given away before connections get half as much. At a connector that is 32 MiB for the first 16 persons,
/// 8 MiB for the 100th, 1 MiB for the 1000th: of the latter, streams do 20 Mbit/s at 100 ms.
const STEPS: u64 = 8;

/// A stream's window: 4 MiB are 330 Mbit/s at 100 ms.
const STREAM: std::ops::RangeInclusive<u64> = 256 * KIB..=4 * MIB;

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
pub(crate) const CONNECTOR: Bounds = Bounds { holder: 512 * MIB, all: 4096 * MIB };

/// A client's. Its one holder's bound is enough.
pub(crate) const CLIENT: Bounds = Bounds { holder: 1024 * MIB, all: u64::MAX };

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
    /// Of each holder, what is within its bound.
    all: u64,
    of: BTreeMap<String, u64>,
}

/// What one connection may take, until it is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    bytes: u64,
    carries: Use,
    holder: String,
    holders_bound: u64,
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
        let left = self.bounds.holder.saturating_sub(of_holder);
        let steps = taken.all / (self.bounds.all / STEPS);
        let most = (self.bounds.holder / SHARES) >> steps.min(STEPS);
        let bytes = (left / SHARES).min(most).max(carries.least());
        taken.set(holder, of_holder + bytes, self.bounds.holder);
        drop(taken);
        let (holder, taken) = (holder.to_owned(), Arc::clone(&self.taken));
        Room { bytes, carries, holder, holders_bound: self.bounds.holder, taken }
    }
}

impl Taken {
    /// From now on `holder` has so many bytes, of which `bound` count for all.
    fn set(&mut self, holder: &str, bytes: u64, bound: u64) {
        let before = match bytes {
            0 => self.of.remove(holder),
            _ => self.of.insert(holder.to_owned(), bytes),
        };
        self.all = self.all.saturating_sub(before.unwrap_or(0).min(bound)) + bytes.min(bound);
    }
}

impl Room {
    /// Bytes that all streams together hold for readers that do not read.
    pub(super) fn receive_window(&self) -> u32 {
        number(self.streams() / 4 * 3)
    }

    /// The same of one stream: a few that nobody reads take nothing from the others.
    pub(super) fn stream_window(&self) -> u32 {
        let all = u64::from(self.receive_window());
        number((all / 6).clamp(*STREAM.start(), *STREAM.end()).min(all / 2))
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
        let of_holder = taken.of.get(&self.holder).copied().unwrap_or(0);
        taken.set(&self.holder, of_holder.saturating_sub(self.bytes), self.holders_bound);
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

/// None is larger than a share of a holder's bound.
fn number(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;

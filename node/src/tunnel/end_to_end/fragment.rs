//! Payloads that came in parts, put together again: in any order, within a bound of time and memory.
//!
//! So many payloads are under way at once as there is room for, each of at most 65,507 bytes; the oldest makes room. What is
//! given up is counted. Pure: no clock, no socket.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::wire::{Datagram, MAX_PAYLOAD, Part};

/// A payload whose parts have not all come by then never comes.
const PATIENCE: Duration = Duration::from_secs(3);

/// The parts of one session's payloads.
#[derive(Debug)]
pub(super) struct Reassembler {
    /// Payloads under way at once.
    most: usize,
    partial: BTreeMap<(u32, u16), Partial>,
    lost: u64,
}

#[derive(Debug)]
struct Partial {
    since: Duration,
    parts: Vec<Option<Bytes>>,
    missing: usize,
    length: usize,
}

impl Reassembler {
    /// One that puts together `most` payloads at a time.
    pub(super) const fn new(most: usize) -> Self {
        Self { most, partial: BTreeMap::new(), lost: 0 }
    }

    /// A payload that is now complete, and whose it is.
    pub(super) fn take(&mut self, datagram: Datagram, now: Duration) -> Option<(u32, Bytes)> {
        let Datagram { flow, part } = datagram;
        let (packet, index, last, bytes) = match part {
            Part::Whole(bytes) => return Some((flow, bytes)),
            Part::Of { packet, index, last, bytes } => (packet, usize::from(index), usize::from(last), bytes),
        };
        let key = (flow, packet);
        // The number comes again after 65,536 payloads: what is left of the one before is not this one's.
        if self.partial.get(&key).is_some_and(|old| old.parts.len() != last + 1 || old.is_late(now)) {
            self.drop_partial(key);
        }
        if !self.partial.contains_key(&key) {
            self.make_room(now);
            let fresh = Partial { since: now, parts: vec![None; last + 1], missing: last + 1, length: 0 };
            self.partial.insert(key, fresh);
        }
        let partial = self.partial.get_mut(&key)?;
        let place = partial.parts.get_mut(index)?;
        if place.is_some() {
            return None;
        }
        partial.length += bytes.len();
        partial.missing -= 1;
        *place = Some(bytes);
        if partial.length > MAX_PAYLOAD {
            self.drop_partial(key);
            return None;
        }
        if partial.missing > 0 {
            return None;
        }
        let complete = self.partial.remove(&key)?;
        let mut payload = BytesMut::with_capacity(complete.length);
        complete.parts.iter().flatten().for_each(|part| payload.extend_from_slice(part));
        Some((flow, payload.freeze()))
    }

    /// Payloads that were given up so far.
    pub(super) const fn lost(&self) -> u64 {
        self.lost
    }

    fn make_room(&mut self, now: Duration) {
        let late: Vec<_> =
            self.partial.iter().filter(|(_, partial)| partial.is_late(now)).map(|(key, _)| *key).collect();
        late.into_iter().for_each(|key| self.drop_partial(key));
        while self.partial.len() >= self.most {
            let oldest = self.partial.iter().min_by_key(|(_, partial)| partial.since).map(|(key, _)| *key);
            match oldest {
                Some(key) => self.drop_partial(key),
                None => return,
            }
        }
    }

    fn drop_partial(&mut self, key: (u32, u16)) {
        if self.partial.remove(&key).is_some() {
            self.lost += 1;
        }
    }
}

impl Partial {
    fn is_late(&self, now: Duration) -> bool {
        now > self.since.saturating_add(PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::split;
    use super::*;

    const NOW: Duration = Duration::from_secs(7);
    const MAX_PARTIAL: usize = 16;

    fn payload(length: usize, seed: usize) -> Bytes {
        (0..length).map(|n| u8::try_from((n * 31 + seed) % 251).unwrap()).collect()
    }

    fn parts(flow: u32, packet: u16, payload: &Bytes) -> Vec<Datagram> {
        let split = split(flow, packet, payload, 1100).unwrap();
        split.into_iter().map(|bytes| Datagram::parse(bytes).unwrap()).collect()
    }

    #[test]
    fn the_largest_payload_comes_back_whole() {
        let payload = payload(MAX_PAYLOAD, 1);
        let mut reassembler = Reassembler::new(MAX_PARTIAL);
        let done: Vec<_> =
            parts(1, 1, &payload).into_iter().filter_map(|part| reassembler.take(part, NOW)).collect();
        assert!(done == [(1, payload)]);
    }

    #[test]
    fn what_is_never_completed_is_counted_and_does_not_pile_up() {
        let mut reassembler = Reassembler::new(MAX_PARTIAL);
        for packet in 0..1000 {
            let first = parts(1, packet, &payload(3000, 0)).swap_remove(0);
            assert_eq!(reassembler.take(first, NOW), None);
            assert!(reassembler.partial.len() <= MAX_PARTIAL);
        }
        assert_eq!(reassembler.lost(), 1000 - MAX_PARTIAL as u64);
        // Those that wait have had their time.
        let later = NOW + PATIENCE + Duration::from_millis(1);
        reassembler.take(parts(2, 1, &payload(3000, 0)).swap_remove(0), later);
        assert_eq!((reassembler.lost(), reassembler.partial.len()), (1000, 1));
    }

    #[test]
    fn a_number_that_comes_again_takes_nothing_from_the_one_before() {
        let (old, new) = (payload(3000, 1), payload(3000, 2));
        let mut reassembler = Reassembler::new(MAX_PARTIAL);
        reassembler.take(parts(1, 1, &old).swap_remove(0), NOW);
        let later = NOW + Duration::from_secs(60);
        let done: Vec<_> =
            parts(1, 1, &new).into_iter().filter_map(|part| reassembler.take(part, later)).collect();
        assert!(done == [(1, new)]);
        assert_eq!(reassembler.lost(), 1);
    }

    #[test]
    fn parts_that_make_too_much_are_given_up() {
        let mut reassembler = Reassembler::new(MAX_PARTIAL);
        for index in 0..60 {
            let part = Part::Of { packet: 1, index, last: 59, bytes: payload(1200, 0) };
            assert_eq!(reassembler.take(Datagram { flow: 1, part }, NOW), None);
        }
        assert!(reassembler.lost() > 0);
    }

    proptest! {
        #[test]
        fn any_order_and_repetition_gives_each_payload_once(
            lengths in prop::collection::vec(0_usize..5000, 1..6),
            order in any::<u64>(),
        ) {
            let payloads: Vec<Bytes> = lengths.iter().enumerate().map(|(n, length)| payload(*length, n)).collect();
            let mut all: Vec<Datagram> = (0_u16..)
                .zip(&payloads)
                .flat_map(|(packet, payload)| parts(9, packet, payload))
                .filter(|datagram| matches!(datagram.part, Part::Of { .. }))
                .collect();
            // A cheap shuffle, and every part twice before its payload is complete is ignored.
            let mut state = order | 1;
            for n in (1..all.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                all.swap(n, usize::try_from(state >> 33).unwrap() % (n + 1));
            }
            let mut reassembler = Reassembler::new(MAX_PARTIAL);
            let mut done: Vec<Bytes> =
                all.into_iter().filter_map(|part| reassembler.take(part, NOW)).map(|(_, bytes)| bytes).collect();
            let mut expected: Vec<Bytes> = payloads.into_iter().filter(|payload| payload.len() + 5 > 1100).collect();
            done.sort();
            expected.sort();
            prop_assert!(done == expected);
        }
    }
}

//! Which session indices are in use, and by what.

use std::collections::{BTreeMap, VecDeque};

use portcullis_common::Flow;
use portcullis_common::layout::SESSIONS;

/// An index is not given again for so long after its session's end: what was on the way for the old one is gone
/// by then.
const REST_NS: u64 = 10_000_000_000;

/// One direction of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Direction {
    /// On what its packets arrive.
    pub(super) input: Flow,
    /// `None`: the node's own socket takes them.
    pub(super) onward: Option<Onward>,
}

/// Where the gate sends packets by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Onward {
    /// On what they leave.
    pub(super) output: Flow,
    /// Number of the next hop.
    pub(super) hop: u32,
}

/// A session from its opening to the removal of its last flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) generation: u32,
    /// Index of the person's epoch.
    pub(super) identity: u32,
    /// Monotonic, nanoseconds.
    pub(super) expires: u64,
    /// From the client, from the connector.
    pub(super) directions: [Option<Direction>; 2],
    /// The kernel takes its flows for dead already; they are still to be removed.
    pub(super) is_ended: bool,
}

pub(super) struct SessionTable {
    live: BTreeMap<u32, Live>,
    free: VecDeque<u32>,
    /// Until when, and which.
    resting: VecDeque<(u64, u32)>,
}

impl SessionTable {
    pub(super) fn new(live: BTreeMap<u32, Live>) -> Self {
        let free = (0..SESSIONS).filter(|index| !live.contains_key(index)).collect();
        Self { live, free, resting: VecDeque::new() }
    }

    /// The index that has been free for longest.
    pub(super) fn next(&mut self, now: u64) -> Option<u32> {
        while let Some((until, index)) = self.resting.front().copied()
            && until <= now
        {
            self.resting.pop_front();
            self.free.push_back(index);
        }
        self.free.pop_front()
    }

    /// An index from [`next`](Self::next) that was not used after all.
    pub(super) fn give_back(&mut self, index: u32) {
        self.free.push_front(index);
    }

    pub(super) fn add(&mut self, index: u32, live: Live) {
        self.live.insert(index, live);
    }

    pub(super) fn remove(&mut self, index: u32, now: u64) {
        if self.live.remove(&index).is_some() {
            self.resting.push_back((now.saturating_add(REST_NS), index));
        }
    }

    pub(super) fn get(&self, index: u32, generation: u32) -> Option<&Live> {
        self.live.get(&index).filter(|live| live.generation == generation)
    }

    pub(super) fn get_mut(&mut self, index: u32, generation: u32) -> Option<&mut Live> {
        self.live.get_mut(&index).filter(|live| live.generation == generation)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Live)> {
        self.live.iter().map(|(index, live)| (*index, live))
    }

    pub(super) fn len(&self) -> usize {
        self.live.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(generation: u32) -> Live {
        Live { generation, identity: 0, expires: 1, directions: [None; 2], is_ended: false }
    }

    #[test]
    fn an_index_rests_before_it_is_given_again_and_the_oldest_comes_first() {
        let mut table = SessionTable::new((2..SESSIONS).map(|index| (index, live(1))).collect());
        assert_eq!((table.next(0), table.next(0), table.next(0)), (Some(0), Some(1), None));
        table.add(0, live(1));
        table.add(1, live(1));
        table.remove(1, 5);
        table.remove(0, 6);
        assert_eq!(table.next(REST_NS + 4), None);
        assert_eq!(table.next(REST_NS + 6), Some(1));
        assert_eq!(table.next(REST_NS + 6), Some(0));
    }

    #[test]
    fn a_handle_of_another_generation_finds_nothing() {
        let mut table = SessionTable::new(BTreeMap::from([(7, live(3))]));
        assert!(table.get(7, 3).is_some());
        assert!(table.get(7, 2).is_none());
        assert!(table.get_mut(7, 4).is_none());
    }
}

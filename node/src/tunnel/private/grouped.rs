//! Which of many sessions are of whom: there are too many to look through for those of one.
//!
//! Pure: no clock, no socket.

use std::collections::{BTreeMap, BTreeSet};

/// Things by whose they are.
#[derive(Debug)]
pub(super) struct Grouped<K, V>(BTreeMap<K, BTreeSet<V>>);

impl<K, V> Default for Grouped<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord, V: Ord + Copy> Grouped<K, V> {
    pub(super) fn add(&mut self, of: K, thing: V) {
        self.0.entry(of).or_default().insert(thing);
    }

    pub(super) fn remove(&mut self, of: &K, thing: V) {
        if let Some(things) = self.0.get_mut(of) {
            things.remove(&thing);
            if things.is_empty() {
                self.0.remove(of);
            }
        }
    }

    /// In order.
    pub(super) fn of(&self, of: &K) -> impl Iterator<Item = V> {
        self.0.get(of).into_iter().flatten().copied()
    }

    pub(super) fn take(&mut self, of: &K) -> BTreeSet<V> {
        self.0.remove(of).unwrap_or_default()
    }

    pub(super) fn count(&self, of: &K) -> usize {
        self.0.get(of).map_or(0, BTreeSet::len)
    }
}

/// Counts, in tests, what is looked at in search of something.
#[derive(Debug, Default)]
pub(super) struct Looks {
    #[cfg(test)]
    pub(super) count: std::cell::Cell<usize>,
}

impl Looks {
    pub(super) fn one(&self) {
        #[cfg(test)]
        self.count.set(self.count.get() + 1);
    }
}

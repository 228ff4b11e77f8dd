//! Signatures that have held, so that the next request with the same token need not have them computed again.
//!
//! What is remembered of a token is its SHA-256 digest, and that one of the ring's keys has signed it: not what it says. So whoever
//! verifies a token again still asks the ring whether that key counts now, reads the claims, and compares kind, audience, issuer and
//! time; the session that it names is looked up after that, as ever. The memory is the key ring's own and goes with it: after a
//! rotation every signature is computed anew.
//!
//! A false member would be a forged identity: only a signature that has just held makes one. A missing one costs an RSA verification.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};

/// Tokens, the oldest of which gives way: half a megabyte.
const MOST: usize = 4096;

/// All of a token, signature included.
pub(super) struct Digest([u8; 32]);

impl Digest {
    pub(super) fn of(token: &str) -> Option<Self> {
        digest(&SHA256, token.as_bytes()).as_ref().try_into().ok().map(Self)
    }
}

#[derive(Default)]
pub(super) struct Verified(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    digests: BTreeSet<[u8; 32]>,
    order: VecDeque<[u8; 32]>,
}

impl Verified {
    pub(super) fn has(&self, Digest(digest): &Digest) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).digests.contains(digest)
    }

    /// The signature of this token has held.
    pub(super) fn add(&self, Digest(digest): Digest) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.digests.insert(digest) {
            return;
        }
        kept.order.push_back(digest);
        if kept.order.len() > MOST
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.digests.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_no_more_than_there_is_room_for() {
        let verified = Verified::default();
        let of = |n: usize| Digest::of(&n.to_string()).unwrap();
        for n in 0..MOST + 10 {
            assert!(!verified.has(&of(n)));
            verified.add(of(n));
            verified.add(of(n));
            assert!(verified.has(&of(n)));
        }
        assert!((0..10).all(|n| !verified.has(&of(n))) && (10..MOST + 10).all(|n| verified.has(&of(n))));
        let kept = verified.0.lock().unwrap();
        assert_eq!((kept.digests.len(), kept.order.len()), (MOST, MOST));
    }
}

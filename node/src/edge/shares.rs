//! How many requests one login may have at its origins at a time, so that it cannot take every stream of a connector.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::flow::{ServiceId, SessionId};
use crate::places;
use crate::policy::Permit;

use super::limits;

/// Whose requests are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder {
    Session(SessionId),
    Service(ServiceId),
    /// Nobody in particular, by a bypass: the network is all that is known.
    Network(IpAddr),
}

impl Holder {
    /// The holder of a permitted request from `address`.
    pub(super) fn of(permit: &Permit, address: IpAddr) -> Self {
        match (permit.session(), permit.service()) {
            (Some(session), _) => Self::Session(session.id),
            (None, Some(service)) => Self::Service(service.client_id),
            (None, None) => Self::network(address),
        }
    }

    fn network(address: IpAddr) -> Self {
        Self::Network(places::network(address))
    }

    fn limit(self) -> usize {
        match self {
            Self::Session(_) | Self::Service(_) => limits::SESSION_STREAMS,
            Self::Network(_) => limits::ANONYMOUS_STREAMS,
        }
    }
}

/// The requests under way, by holder.
#[derive(Debug, Default)]
pub(super) struct Shares(Mutex<BTreeMap<Holder, usize>>);

/// One request under way; counted until dropped.
#[derive(Debug)]
pub(super) struct Share {
    shares: Arc<Shares>,
    holder: Holder,
}

impl Shares {
    /// One more request of `holder`, unless it has all it may have.
    pub(super) fn take(self: &Arc<Self>, holder: Holder) -> Option<Share> {
        let mut under_way = self.lock();
        let count = under_way.entry(holder).or_default();
        if *count >= holder.limit() {
            return None;
        }
        *count += 1;
        Some(Share { shares: Arc::clone(self), holder })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Holder, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut under_way = self.shares.lock();
        if let Some(count) = under_way.get_mut(&self.holder) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                under_way.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_login_cannot_take_the_share_of_another() {
        let shares = Arc::new(Shares::default());
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        let ann = Holder::Session(SessionId::from_bytes([1; 16]));
        let bob = Holder::Session(SessionId::from_bytes([2; 16]));
        let held: Vec<_> = (0..limits::SESSION_STREAMS).map(|_| shares.take(ann).unwrap()).collect();
        assert!(shares.take(ann).is_none());
        assert!(shares.take(bob).is_some());
        drop(held);
        assert!(shares.take(ann).is_some());
        assert!(shares.lock().is_empty());
        assert_eq!(Holder::network(at("192.0.2.1")), Holder::network(at("192.0.2.9")));
        assert_ne!(Holder::network(at("192.0.2.1")), Holder::network(at("192.0.3.1")));
    }
}

//! How many requests one login, and one person, may have at their origins at a time, so that nobody takes every stream of a
//! connector or of an origin.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::flow::{PersonId, ServiceId, SessionId};
use crate::places;
use crate::policy::Permit;

use super::limits;

/// Whose requests are counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Holder {
    Session(SessionId),
    /// By all logins.
    Person(PersonId),
    Service(ServiceId),
    /// Nobody in particular, by a bypass: the network is all that is known.
    Network(IpAddr),
}

impl Holder {
    fn network(address: IpAddr) -> Self {
        Self::Network(places::network(address))
    }

    const fn limit(&self) -> usize {
        match self {
            Self::Session(_) | Self::Service(_) => limits::SESSION_STREAMS,
            Self::Person(_) => limits::PERSON_STREAMS,
            Self::Network(_) => limits::ANONYMOUS_STREAMS,
        }
    }
}

/// Who is charged for one request.
#[derive(Debug)]
pub(super) struct Holders([Option<Holder>; 2]);

impl Holders {
    /// Those of a permitted request from `address`.
    pub(super) fn of(permit: &Permit, address: IpAddr) -> Self {
        match (permit.session(), permit.service()) {
            (Some(session), _) => Self::login(session.id, session.person.clone()),
            (None, Some(service)) => Self([Some(Holder::Service(service.client_id)), None]),
            (None, None) => Self([Some(Holder::network(address)), None]),
        }
    }

    const fn login(session: SessionId, person: PersonId) -> Self {
        Self([Some(Holder::Session(session)), Some(Holder::Person(person))])
    }

    fn iter(&self) -> impl Iterator<Item = &Holder> {
        self.0.iter().flatten()
    }
}

/// The requests under way, by holder.
#[derive(Debug, Default)]
pub(super) struct Shares(Mutex<BTreeMap<Holder, usize>>);

/// One request under way; counted until dropped.
#[derive(Debug)]
pub(super) struct Share {
    shares: Arc<Shares>,
    holders: Holders,
}

impl Shares {
    /// One more request of `holders`, unless one of them has all it may have.
    pub(super) fn take(self: &Arc<Self>, holders: Holders) -> Option<Share> {
        let mut under_way = self.lock();
        let has_all = |holder: &Holder| under_way.get(holder).is_some_and(|count| *count >= holder.limit());
        if holders.iter().any(has_all) {
            return None;
        }
        for holder in holders.iter() {
            *under_way.entry(holder.clone()).or_default() += 1;
        }
        Some(Share { shares: Arc::clone(self), holders })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Holder, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut under_way = self.shares.lock();
        for holder in self.holders.iter() {
            if let Some(count) = under_way.get_mut(holder) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    under_way.remove(holder);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(id: u8, person: &str) -> Holders {
        let person = PersonId { provider: "local".into(), subject: person.into() };
        Holders::login(SessionId::from_bytes([id; 16]), person)
    }

    #[test]
    fn one_login_cannot_take_the_share_of_another() {
        let shares = Arc::new(Shares::default());
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        let held: Vec<_> =
            (0..limits::SESSION_STREAMS).map(|_| shares.take(login(1, "ann")).unwrap()).collect();
        assert!(shares.take(login(1, "ann")).is_none());
        assert!(shares.take(login(2, "bob")).is_some());
        drop(held);
        assert!(shares.take(login(1, "ann")).is_some());
        assert!(shares.lock().is_empty());
        assert_eq!(Holder::network(at("192.0.2.1")), Holder::network(at("192.0.2.9")));
        assert_ne!(Holder::network(at("192.0.2.1")), Holder::network(at("192.0.3.1")));
    }

    #[test]
    fn many_logins_of_one_person_are_one_person() {
        let shares = Arc::new(Shares::default());
        let mut held = Vec::new();
        for id in 0..8 {
            held.extend((0..limits::ORIGIN_BUSY / 8).map_while(|_| shares.take(login(id, "ann"))));
        }
        assert_eq!(held.len(), limits::PERSON_STREAMS);
        assert!(held.len() <= limits::ORIGIN_BUSY / 8, "of one application");
        assert!(shares.take(login(9, "ann")).is_none() && shares.take(login(10, "bob")).is_some());
        held.clear();
        assert!(shares.take(login(9, "ann")).is_some() && shares.lock().is_empty());
    }
}

//! A leg that binds before the node has given its session: the first bind goes out together with the request, and is
//! answered while that is.

use std::sync::Arc;

use quinn::Connection;
use tokio::task::AbortHandle;

use crate::clock;

use super::super::carrier::{LegWay, Route};
use super::super::relay::wire::{BindKey, Ticket};
use super::super::relay::{BoundLeg, Early, End, Leg, LegAddress, Legs, SessionRef};

/// Gone with its socket, if it is dropped before it has a session.
pub(super) struct EarlyLeg {
    name: Early,
    leg: Arc<BoundLeg>,
    place: Place,
    way: LegWay,
    binding: Binding,
}

struct Place {
    legs: Legs,
    address: LegAddress,
    is_a_sessions: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_a_sessions {
            self.legs.remove(self.address);
        }
    }
}

struct Binding(AbortHandle);

impl Drop for Binding {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl EarlyLeg {
    /// Sends the first bind. None: it cannot be, and the session gets its leg when it is there.
    pub(super) fn begin(
        legs: &Legs,
        route: &Arc<Route>,
        control: &Connection,
        ticket: Ticket,
    ) -> Option<Self> {
        let name = Early::new(u32::from_ne_bytes(clock::random()));
        let key = BindKey::export(control, name.session(), Leg::Client).ok()?;
        let (socket, way) = route.leg().ok()?;
        let start = |now| End::start(key, ticket, name.session(), Leg::Client, 0, now);
        let (leg, socket) = BoundLeg::start(socket, control.remote_address(), start);
        let place = Place { legs: legs.clone(), address: legs.add(socket), is_a_sessions: false };
        let running = Arc::clone(&leg);
        let binding = tokio::spawn(async move { match running.run().await {} });
        Some(Self { name, leg, place, way, binding: Binding(binding.abort_handle()) })
    }

    pub(super) const fn name(&self) -> Early {
        self.name
    }

    /// The leg of this session. What was begun goes on.
    pub(super) fn become_of(
        self,
        key: BindKey,
        ticket: Ticket,
        session: SessionRef,
    ) -> (Arc<BoundLeg>, LegAddress, LegWay) {
        let Self { leg, mut place, way, binding, .. } = self;
        // Whoever keeps the session keeps it bound.
        drop(binding);
        leg.name(key, ticket, session);
        place.is_a_sessions = true;
        (leg, place.address, way)
    }
}

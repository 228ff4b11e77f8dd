//! `Resume`: a session that an earlier connection of the device was given, under this one.
//!
//! 1. The grant that the client was given says which session; the node's own signature on it, that it was.
//! 2. A session in the book has lost its client's connection, or is about to: the new one takes the seat.
//! 3. A session that is in no book was left by an earlier process: for a while after the start it is entered again, as
//!    policy decides now, with the number and the expiry that it had. The gate has carried it all the time, and what of it is
//!    [left](super::left) is known.

use std::sync::Arc;

use crate::clock;
use crate::flow::Reason;
use crate::policy::Permit;

use super::super::access_wire::{AccessFrame, Denial, Opened, RequestId};
use super::super::grant::{Grant, Reach, SignedGrant};
use super::super::relay::Leg;
use super::super::wire::EndReason;
use super::Shared;
use super::book::{About, REATTACH_TIMEOUT};
use super::open::{Asker, internal, lifetime, opened};
use super::permit::{Allowed, Refused, Wanted, permit};

impl Shared {
    /// The answer to a `Resume`.
    pub(super) async fn resume(
        self: &Arc<Self>,
        asker: &Asker<'_>,
        request: RequestId,
        grant: Vec<u8>,
    ) -> AccessFrame {
        let grant = match SignedGrant::from_bytes(grant).for_client(self.key.hash(), asker.key, clock::now())
        {
            Ok(grant) => grant,
            Err(error) => {
                let refused = Refused::new(Denial::Gone, Reason::BadToken);
                return self.answer(asker, request, "", Err(refused), Some(&error.to_string()));
            }
        };
        let known = self.lock().book.get(grant.session).map(|entry| Arc::clone(&entry.about));
        match known {
            Some(about) => match self.take_seat(asker, request, &grant, &about) {
                // Nothing was decided anew that the event of its opening does not say.
                Ok(opened) => AccessFrame::Opened(opened),
                Err(refused) => self.answer(asker, request, &grant.application, Err(refused), None),
            },
            None => {
                let adopted = self.adopt(asker, request, &grant).await;
                self.answer(asker, request, &grant.application, adopted, Some("resumed after a restart"))
            }
        }
    }

    fn take_seat(
        &self,
        asker: &Asker<'_>,
        request: RequestId,
        grant: &Grant,
        about: &About,
    ) -> Result<Opened, Refused> {
        // The key is the device's, which may have logged in anew: that ended what the former login had.
        if about.client != asker.seat.client || about.client_key != asker.key {
            return Err(gone());
        }
        if !self.still_allowed(about, asker.address) {
            return Err(Refused::new(Denial::NotAllowed, Reason::NoMatch).of(&about.application));
        }
        let session = grant.session;
        let signed = self.sign(session, about).map_err(|error| internal(&error))?;
        let secret = self.client_secret(asker, session)?;
        let ticket = secret.ticket;
        let mut inner = self.lock();
        inner.binds.expect(session, Leg::Client, secret).map_err(|_| gone())?;
        inner.book.resumed(session, asker.control);
        Ok(opened(request, session, ticket, signed, about))
    }

    async fn adopt(
        self: &Arc<Self>,
        asker: &Asker<'_>,
        request: RequestId,
        grant: &Grant,
    ) -> Result<(Opened, Arc<About>, Permit), Refused> {
        if clock::monotonic() >= self.began.saturating_add(REATTACH_TIMEOUT) {
            return Err(gone());
        }
        let destination = match &grant.reach {
            Reach::Host(destination) => destination,
            Reach::Network { .. } => return Err(gone()),
        };
        let active = self.active();
        let now = clock::now();
        let login = &asker.login.session;
        let wanted = Wanted {
            login,
            address: asker.address,
            application: &grant.application,
            destination: Some(destination),
        };
        let Allowed { permit, connector, protocol, reach } = permit(&active.policies, &wanted, now)?;
        let known = self.store.connector_by_key(*grant.connector.as_bytes()).await;
        let known = known.map_err(|error| internal(&error))?;
        let is_same = known.is_some_and(|known| known.name == connector.as_str())
            && reach == grant.reach
            && protocol == grant.protocol;
        if !is_same {
            return Err(gone().of(permit.application()));
        }
        let end = permit.token_expires_at().min(grant.not_after);
        let lifetime = lifetime(end, now).ok_or_else(gone)?;
        self.granted(asker, &grant.application).await?;
        let taken_up = self.take_up(grant.session).ok_or_else(gone)?;
        let adopted = self.carrier.adopt(grant.session, login.person.to_string(), lifetime).await;
        let terms = adopted.map_err(|error| internal(&error))?.ok_or_else(gone)?;
        let about = Arc::new(About {
            login: Arc::clone(login),
            client: asker.seat.client,
            client_key: asker.key,
            connector,
            connector_key: grant.connector,
            application: Arc::clone(permit.application()),
            protocol,
            destination: Some(destination.clone()),
            reach,
            address: asker.address,
            since: clock::monotonic(),
            expires: terms.expires,
            not_after: now.after(lifetime),
        });
        let opened = match self.enter(asker, grant.session, terms, &about, request, true) {
            Ok(opened) => opened,
            Err(refused) => {
                // The gate keeps its sessions for as long as they can be resumed.
                if !self.carrier.has_gate() {
                    self.undo(grant.session).await;
                }
                return Err(refused);
            }
        };
        taken_up.keep();
        self.look_again(asker, opened.session, &about, &active);
        // Whoever revokes a connector does so in the store first, and may have looked into the book before it was there.
        let known = self.store.connector_by_key(*grant.connector.as_bytes()).await;
        if !matches!(known, Ok(Some(known)) if known.name == about.connector.as_str()) {
            self.end_soon(vec![(opened.session, EndReason::ConnectorRevoked)]);
        }
        Ok((opened, about, permit))
    }
}

const fn gone() -> Refused {
    Refused::new(Denial::Gone, Reason::SessionEnded)
}

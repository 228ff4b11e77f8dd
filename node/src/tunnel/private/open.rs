//! `Open`: from a request to a session that both ends may bind to.
//!
//! 1. Policy decides, by the login, the address and what is in force now.
//! 2. A connection of the connector is found that takes sessions; the session gets its number and its expiry. Where there is
//!    none, nothing is decided yet: the request [waits](super::waiting) for one to come.
//! 3. It is in the book, its legs are expected; the connector is offered it and the client gets its grant, at the same time:
//!    the client binds at once and does not wait for the connector.
//! 4. What was revoked or reloaded meanwhile is looked at again, now that whoever revokes would find the session.
//!
//! One event says what was decided, whichever way.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tracing::warn;

use crate::clock;
use crate::config::Active;
use crate::event::{Action, Event};
use crate::flow::{RayId, Reason, UnixTime};
use crate::policy::Permit;
use crate::session::LiveSession;

use super::super::access_wire::{AccessFrame, Denial, MAX_MESSAGE, Opened, Ray, RequestId};
use super::super::grant::{Grant, SignError};
use super::super::identity::KeyHash;
use super::super::ids::KEY_AGE;
use super::super::registry::Registry;
use super::super::relay::wire::{BindKey, Ticket};
use super::super::relay::{EarlyClaim, Leg, LegSecret, SessionRef, Terms};
use super::super::wire::{Authority, EndReason};
use super::book::{About, ControlId, Full};
use super::carrier::CarrierError;
use super::ending::login_over;
use super::permit::{Allowed, Refused, Wanted, message, permit};
use super::{ClientSeat, Shared};

/// No session lives longer: by then its tickets are under a key that the gate has forgotten.
const MAX_LIFETIME: Duration = KEY_AGE;

/// Characters of a person's name in a grant.
const LONGEST_PERSON: usize = 256;

/// Who asks, as its connection has proved.
pub(super) struct Asker<'a> {
    pub(super) control: ControlId,
    pub(super) seat: &'a ClientSeat,
    pub(super) login: &'a LiveSession,
    pub(super) key: KeyHash,
    pub(super) address: IpAddr,
}

/// What an `Open` asks for.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) request: RequestId,
    pub(super) application: String,
    pub(super) destination: Option<Authority>,
    /// Its client's leg binds already.
    pub(super) early: Option<EarlyClaim>,
}

impl Shared {
    /// The answer to an `Open`; none yet where only the connector is missing and the request `may_wait` for it.
    pub(super) async fn open(
        self: &Arc<Self>,
        registry: &Registry,
        asker: &Asker<'_>,
        wish: &Wish,
        may_wait: bool,
    ) -> Option<AccessFrame> {
        let Wish { request, application, destination, .. } = wish;
        let outcome = self.try_open(registry, asker, *request, application, destination.as_ref()).await;
        let waits = outcome.as_ref().is_err_and(|refused| {
            may_wait && matches!(refused.denial, Denial::ConnectorGone | Denial::ConnectorOld)
        });
        let detail = destination.as_ref().map(Authority::as_str);
        (!waits).then(|| self.answer(asker, *request, application, outcome, detail))
    }

    async fn try_open(
        self: &Arc<Self>,
        registry: &Registry,
        asker: &Asker<'_>,
        request: RequestId,
        application: &str,
        destination: Option<&Authority>,
    ) -> Result<(Opened, Arc<About>, Permit), Refused> {
        let active = self.active();
        let now = clock::now();
        let login = &asker.login.session;
        let wanted = Wanted { login, address: asker.address, application, destination };
        let allowed = permit(&active.policies, &wanted, now)?;
        let application = Arc::clone(allowed.permit.application());
        let opened = self.carry(registry, asker, request, allowed, &wanted, now).await;
        let (opened, about, permit) = opened.map_err(|refused| refused.of(&application))?;
        self.look_again(asker, opened.session, &about, &active);
        Ok((opened, about, permit))
    }

    async fn carry(
        self: &Arc<Self>,
        registry: &Registry,
        asker: &Asker<'_>,
        request: RequestId,
        allowed: Allowed,
        wanted: &Wanted<'_>,
        now: UnixTime,
    ) -> Result<(Opened, Arc<About>, Permit), Refused> {
        let Allowed { permit, connector, protocol, reach } = allowed;
        let connector_key = {
            let inner = self.lock();
            inner.book.room(asker.seat.client, &wanted.login.person, &connector).map_err(full)?;
            let seat = inner.link_for(&connector, |_| true).and_then(|link| inner.links.get(&link));
            seat.map(|seat| seat.key).ok_or_else(|| {
                let is_old = registry.is_connected(&connector) && !inner.knows_sessions(&connector);
                let denial = if is_old { Denial::ConnectorOld } else { Denial::ConnectorGone };
                Refused::new(denial, Reason::ConnectorGone)
            })?
        };
        let lifetime = lifetime(permit.token_expires_at(), now)
            .ok_or_else(|| Refused::new(Denial::LoginNeeded, Reason::SessionEnded))?;
        self.granted(asker, &permit.application().name).await?;
        let person = wanted.login.person.to_string();
        let (session, terms) = self.carrier.open(person, lifetime).await.map_err(|error| match &error {
            CarrierError::Full => full(Full::Node),
            CarrierError::Relay(_) | CarrierError::Gate(_) | CarrierError::Stopped => internal(&error),
        })?;
        let about = Arc::new(About {
            login: Arc::clone(wanted.login),
            client: asker.seat.client,
            client_key: asker.key,
            connector,
            connector_key,
            application: Arc::clone(permit.application()),
            protocol,
            destination: wanted.destination.cloned(),
            reach,
            address: wanted.address,
            since: clock::monotonic(),
            expires: terms.expires,
            not_after: now.after(lifetime),
        });
        match self.enter(asker, session, terms, &about, request, false) {
            Ok(opened) => Ok((opened, about, permit)),
            Err(refused) => {
                self.undo(session).await;
                Err(refused)
            }
        }
    }

    /// Puts a session into the book, and offers it to a connection of its connector; without one, to the next that comes,
    /// where `may_wait`.
    pub(super) fn enter(
        self: &Arc<Self>,
        asker: &Asker<'_>,
        session: SessionRef,
        terms: Terms,
        about: &Arc<About>,
        request: RequestId,
        may_wait: bool,
    ) -> Result<Opened, Refused> {
        let gone = || Refused::new(Denial::ConnectorGone, Reason::ConnectorGone);
        let grant = self.sign(session, about).map_err(|error| internal(&error))?;
        let secret = self.client_secret(asker, session)?;
        let ticket = secret.ticket;
        let mut inner = self.lock();
        let link = inner.link_for(&about.connector, |_| true);
        let is_served =
            link.and_then(|link| inner.links.get(&link)).is_some_and(|seat| seat.key == about.connector_key);
        if !is_served && !may_wait {
            return Err(gone());
        }
        inner.binds.register(session, terms).map_err(|error| internal(&error))?;
        let entered = inner
            .binds
            .expect(session, Leg::Client, secret)
            .map_err(|error| internal(&error))
            .and_then(|()| {
                inner.book.open(session, Arc::clone(about), asker.control, clock::monotonic()).map_err(full)
            });
        if let Err(refused) = entered {
            inner.binds.remove(session);
            return Err(refused);
        }
        self.relay.set_epoch(terms.identity, terms.epoch);
        if let (true, Some(link)) = (is_served, link)
            && !self.offer(&mut inner, session, link, grant.clone())
            && !may_wait
        {
            inner.book.remove(session);
            inner.binds.remove(session);
            return Err(gone());
        }
        drop(inner);
        self.count();
        self.watch_login(asker.login, asker.seat.client);
        Ok(opened(request, session, ticket, grant, about))
    }

    /// What came between a decision and the book: a revocation, or another configuration.
    pub(super) fn look_again(
        self: &Arc<Self>,
        asker: &Asker<'_>,
        session: SessionRef,
        about: &About,
        decided_by: &Arc<Active>,
    ) {
        if asker.login.ended.is_cancelled() {
            self.end_soon(vec![(session, login_over(asker.login))]);
        } else if !Arc::ptr_eq(&self.active(), decided_by) && !self.still_allowed(about, about.address) {
            self.end_soon(vec![(session, EndReason::NotAllowed)]);
        }
    }

    /// What the client's leg binds with on this connection.
    pub(super) fn client_secret(&self, asker: &Asker<'_>, session: SessionRef) -> Result<LegSecret, Refused> {
        let key = BindKey::export(&asker.seat.connection, session, Leg::Client)
            .map_err(|error| internal(&error))?;
        let ticket = self.ticket().ok_or_else(|| internal(&"no tickets are minted yet"))?;
        Ok(LegSecret { key, ticket })
    }

    /// A ticket that the gate lets through.
    pub(super) fn ticket(&self) -> Option<Ticket> {
        let mint = self.mint.read().unwrap_or_else(PoisonError::into_inner);
        Some(mint.as_ref()?.ticket())
    }

    /// Whether this node has minted a ticket.
    pub(super) fn is_ticket(&self, ticket: Ticket) -> bool {
        let mint = self.mint.read().unwrap_or_else(PoisonError::into_inner);
        mint.as_ref().is_some_and(|mint| mint.is_ticket(ticket))
    }

    pub(super) fn sign(&self, session: SessionRef, about: &About) -> Result<Vec<u8>, SignError> {
        let protocol = about.protocol;
        let grant = Grant {
            session,
            person: person(about),
            application: about.application.name.clone(),
            protocol,
            reach: about.reach.clone(),
            client: about.client_key,
            connector: about.connector_key,
            not_after: about.not_after,
        };
        Ok(grant.sign(&self.key)?.as_bytes().to_vec())
    }

    /// So that a revocation by application finds the login.
    pub(super) async fn granted(&self, asker: &Asker<'_>, application: &str) -> Result<(), Refused> {
        let login = asker.login.session.id;
        self.sessions.granted(login, application).await.map_err(|error| internal(&error))
    }

    /// Writes the event of an `Open` or `Resume`, and makes the frame.
    pub(super) fn answer(
        &self,
        asker: &Asker<'_>,
        request: RequestId,
        application: &str,
        outcome: Result<(Opened, Arc<About>, Permit), Refused>,
        detail: Option<&str>,
    ) -> AccessFrame {
        let ray = clock::random();
        let event = |allowed| {
            let event = Event::new(Action::Connect, allowed)
                .session(&asker.login.session)
                .address(asker.address)
                .ray(RayId::from_bytes(ray));
            match detail {
                Some(detail) => event.detail(detail),
                None => event,
            }
        };
        match outcome {
            Ok((opened, about, permit)) => {
                self.metrics.private_opens.with_label_values(&["allow", ""]).inc();
                self.events.emit(
                    event(true)
                        .application(&about.application)
                        .policy(permit.policy())
                        .connector(about.connector.as_str()),
                );
                AccessFrame::Opened(opened)
            }
            Err(refused) => {
                self.metrics.private_opens.with_label_values(&["deny", refused.denial.as_str()]).inc();
                let event = event(false).reason(refused.reason);
                let event = match &refused.policy {
                    Some(policy) => event.policy(policy),
                    None => event,
                };
                self.events.emit(match &refused.application {
                    Some(application) => event.application(application),
                    None => event.claimed_application(application),
                });
                let mut message = message(refused.denial, application);
                message.truncate(message.floor_char_boundary(MAX_MESSAGE));
                AccessFrame::Denied { request, denial: refused.denial, ray: Ray(ray), message }
            }
        }
    }

    /// Gives back the number of a session that did not come to be.
    pub(super) async fn undo(&self, session: SessionRef) {
        if let Err(error) = self.carrier.cut(vec![session]).await {
            warn!(%error, "a session that did not come to be holds its number until it expires");
        }
    }
}

pub(super) fn opened(
    request: RequestId,
    session: SessionRef,
    ticket: Ticket,
    grant: Vec<u8>,
    about: &About,
) -> Opened {
    Opened { request, session, ticket, grant, connector: about.connector_key, expires: about.not_after }
}

/// How long a session may live whose permit ends at `end`; at least a second.
pub(super) fn lifetime(end: UnixTime, now: UnixTime) -> Option<Duration> {
    let left = u64::try_from(end.0.saturating_sub(now.0)).ok().filter(|left| *left > 0)?;
    Some(Duration::from_secs(left).min(MAX_LIFETIME))
}

/// Of the person, what fits into a grant.
fn person(about: &About) -> String {
    let login = &about.login;
    let name = login.email.as_ref().map_or_else(|| login.person.to_string(), ToString::to_string);
    name.chars().take(LONGEST_PERSON).collect()
}

pub(super) fn internal(error: &(impl std::fmt::Display + ?Sized)) -> Refused {
    warn!(%error, "a private session could not be opened");
    Refused::new(Denial::Internal, Reason::Internal)
}

fn full(full: Full) -> Refused {
    match full {
        Full::Client | Full::Person => Refused::new(Denial::TooManySessions, Reason::Throttled),
        Full::Connector | Full::Node => Refused::new(Denial::NodeFull, Reason::Throttled),
    }
}

//! Which private sessions there are, who serves their ends, and when they are over. Decides, and does nothing.
//!
//! ```text
//! open ──▶ offered ──taken──▶ binding ──ready──▶ live ──▶ removed, once
//!             └ unanswered        └ not bound        └ expired; an end without its connection for too long
//! ```
//!
//! 1. A session has two seats, client and connector: the control connection that speaks for that end, or nobody since
//!    when. Losing the connection empties the seat and cuts nothing; another connection of the same end takes it.
//! 2. [`Book::due`] names what time has ended. Everything else that ends a session is a fact from outside, and the loop
//!    around this calls [`Book::remove`], which answers once: so there is one end event and one goodbye.
//!
//! A false "it is over" costs the person the session; a false "it goes on" lets a session outlive its permit by what the
//! gate's own expiry allows. Pure: no clock, no socket. Time is that of the monotonic clock.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::flow::{Application, ClientId, PersonId, Session, UnixTime};

use super::super::grant::{Protocol, Reach};
use super::super::identity::KeyHash;
use super::super::relay::{MAX_SESSIONS, SessionRef};
use super::super::wire::{Authority, ConnectorName, EndReason, Instance, RelayPath};
use super::grouped::{Grouped, Looks};

/// Sessions that one login of a client, or one connector, may have at a time.
pub(super) const MAX_OF_CLIENT: usize = 1024;
pub(super) const MAX_OF_CONNECTOR: usize = 16_384;

/// The same of one person, whatever the logins and devices: an eighth of the node's, and a quarter of a connector's.
pub(super) const MAX_OF_PERSON: usize = MAX_SESSIONS as usize / 8;
pub(super) const MAX_OF_PERSON_AT_CONNECTOR: usize = MAX_OF_CONNECTOR / 4;

/// A connector gets so long to answer an offer.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Both legs are in force by then, or the session ends: as long as an end itself tries.
pub(super) const BIND_TIMEOUT: Duration = Duration::from_secs(30);

/// An end that lost its control connection, or the node, gets so long to come back.
pub(super) const REATTACH_TIMEOUT: Duration = Duration::from_secs(30);

/// A control connection of either kind, for as long as this process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ControlId(pub(super) u64);

/// What does not change about a session.
#[derive(Debug)]
pub(super) struct About {
    pub(super) login: Arc<Session>,
    pub(super) client: ClientId,
    pub(super) client_key: KeyHash,
    pub(super) connector: ConnectorName,
    pub(super) connector_key: KeyHash,
    pub(super) application: Arc<Application>,
    pub(super) protocol: Protocol,
    /// What the client named.
    pub(super) destination: Option<Authority>,
    pub(super) reach: Reach,
    /// From where the client asked.
    pub(super) address: IpAddr,
    pub(super) since: Duration,
    pub(super) expires: Duration,
    /// The same by the wall clock, as in the grant.
    pub(super) not_after: UnixTime,
}

/// Who speaks for an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seat {
    Taken(ControlId),
    /// Nobody; the session ends then.
    Empty {
        until: Duration,
    },
}

impl Seat {
    pub(super) const fn control(self) -> Option<ControlId> {
        match self {
            Self::Taken(control) => Some(control),
            Self::Empty { .. } => None,
        }
    }

    fn empty(&mut self, control: ControlId, now: Duration) -> bool {
        let leaves = *self == Self::Taken(control);
        if leaves {
            *self = Self::Empty { until: now.saturating_add(REATTACH_TIMEOUT) };
        }
        leaves
    }
}

/// One session.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) about: Arc<About>,
    pub(super) client: Seat,
    pub(super) connector: Seat,
    /// The process of the connector that was offered it first: in no other does it go on.
    pub(super) instance: Option<Instance>,
    /// Where its packets are relayed, once they are.
    pub(super) path: Option<RelayPath>,
    /// Where the client's leg is, once it is in force.
    at: Option<IpAddr>,
    /// The connector has an offer to answer.
    answer_by: Option<Duration>,
    /// The legs are not in force yet.
    bind_by: Option<Duration>,
}

/// There is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    Client,
    Person,
    Connector,
    Node,
}

/// Every private session of the node.
#[derive(Debug, Default)]
pub(super) struct Book {
    sessions: BTreeMap<SessionRef, Entry>,
    of_client: Grouped<ClientId, SessionRef>,
    of_person: Tally<PersonId>,
    of_connector: Grouped<ConnectorName, SessionRef>,
    of_person_at: Tally<(PersonId, ConnectorName)>,
    of_path: Tally<Option<RelayPath>>,
    /// By the connections that have the seats.
    by_client: Grouped<ControlId, SessionRef>,
    by_link: Grouped<ControlId, SessionRef>,
    pub(super) looks: Looks,
}

impl Book {
    /// Whether one more session may be opened.
    pub(super) fn room(
        &self,
        client: ClientId,
        person: &PersonId,
        connector: &ConnectorName,
    ) -> Result<(), Full> {
        let at_connector = (person.clone(), connector.clone());
        if self.of_client.count(&client) >= MAX_OF_CLIENT {
            Err(Full::Client)
        } else if self.of_person.of(person) >= MAX_OF_PERSON
            || self.of_person_at.of(&at_connector) >= MAX_OF_PERSON_AT_CONNECTOR
        {
            Err(Full::Person)
        } else if self.of_connector.count(connector) >= MAX_OF_CONNECTOR {
            Err(Full::Connector)
        } else if self.sessions.len() >= MAX_SESSIONS as usize {
            Err(Full::Node)
        } else {
            Ok(())
        }
    }

    /// A session of the client connection `client`, whose connector is yet to be [offered](Self::offered) it.
    pub(super) fn open(
        &mut self,
        session: SessionRef,
        about: Arc<About>,
        client: ControlId,
        now: Duration,
    ) -> Result<(), Full> {
        let person = &about.login.person;
        self.room(about.client, person, &about.connector)?;
        // The numbering gives no number twice; the books are right all the same.
        self.remove(session);
        self.of_client.add(about.client, session);
        self.of_person.add(person.clone());
        self.of_connector.add(about.connector.clone(), session);
        self.of_person_at.add((person.clone(), about.connector.clone()));
        self.of_path.add(None);
        self.by_client.add(client, session);
        let entry = Entry {
            about,
            client: Seat::Taken(client),
            connector: Seat::Empty { until: now.saturating_add(REATTACH_TIMEOUT) },
            instance: None,
            path: None,
            at: None,
            answer_by: None,
            bind_by: Some(now.saturating_add(BIND_TIMEOUT)),
        };
        self.sessions.insert(session, entry);
        Ok(())
    }

    pub(super) fn get(&self, session: SessionRef) -> Option<&Entry> {
        self.sessions.get(&session)
    }

    /// The connector's connection, of this process, was offered the session.
    pub(super) fn offered(
        &mut self,
        session: SessionRef,
        link: ControlId,
        instance: Instance,
        now: Duration,
    ) {
        if let Some(entry) = self.sessions.get_mut(&session) {
            leave(&mut self.by_link, entry.connector, session);
            self.by_link.add(link, session);
            entry.connector = Seat::Taken(link);
            entry.instance = Some(instance);
            entry.answer_by = Some(now.saturating_add(ANSWER_TIMEOUT));
        }
    }

    /// The connector's connection has taken it.
    pub(super) fn taken(&mut self, session: SessionRef, link: ControlId) {
        if let Some(entry) = self.of_link_mut(session, link) {
            entry.answer_by = None;
        }
    }

    /// Whether `link` speaks for the session's connector.
    pub(super) fn is_of_link(&self, session: SessionRef, link: ControlId) -> bool {
        self.get(session).is_some_and(|entry| entry.connector == Seat::Taken(link))
    }

    /// The client's connection asks for the session that it, or an earlier one, was given.
    pub(super) fn resumed(&mut self, session: SessionRef, client: ControlId) {
        if let Some(entry) = self.sessions.get_mut(&session) {
            leave(&mut self.by_client, entry.client, session);
            self.by_client.add(client, session);
            entry.client = Seat::Taken(client);
        }
    }

    /// Both legs are in force, the client's is `at` this address, and packets are relayed on this path.
    pub(super) fn ready(&mut self, session: SessionRef, path: RelayPath, at: IpAddr) {
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        self.of_path.remove(&entry.path);
        self.of_path.add(Some(path));
        entry.path = Some(path);
        entry.at = Some(at);
        entry.bind_by = None;
    }

    /// A client's connection is gone.
    pub(super) fn client_gone(&mut self, client: ControlId, now: Duration) {
        for session in self.by_client.take(&client) {
            if let Some(entry) = self.sessions.get_mut(&session) {
                entry.client.empty(client, now);
            }
        }
    }

    /// A connector's connection is gone: the sessions that it served are [unserved](Self::unserved).
    pub(super) fn link_gone(&mut self, link: ControlId, now: Duration) {
        for session in self.by_link.take(&link) {
            if let Some(entry) = self.sessions.get_mut(&session)
                && entry.connector.empty(link, now)
            {
                entry.answer_by = None;
            }
        }
    }

    /// Sessions of a connector that nobody speaks for now.
    pub(super) fn unserved(&self, connector: &ConnectorName) -> Vec<SessionRef> {
        let is_unserved = |session: &SessionRef| {
            self.looks.one();
            self.get(*session).is_some_and(|entry| matches!(entry.connector, Seat::Empty { .. }))
        };
        self.of_connector.of(connector).filter(is_unserved).collect()
    }

    /// The sessions of one login of a client.
    pub(super) fn of_client(&self, client: ClientId) -> Vec<SessionRef> {
        self.of_client.of(&client).inspect(|_| self.looks.one()).collect()
    }

    /// All are looked at: not for those of one.
    pub(super) fn matching(&self, which: impl Fn(&Entry) -> bool) -> Vec<SessionRef> {
        let all = self.sessions.iter().inspect(|_| self.looks.one());
        all.filter(|(_, entry)| which(entry)).map(|(session, _)| *session).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SessionRef, &Entry)> {
        self.sessions.iter().map(|(session, entry)| (*session, entry))
    }

    /// Sessions that the connector's connection serves.
    pub(super) fn load(&self, link: ControlId) -> usize {
        self.by_link.count(&link)
    }

    /// So many are relayed on this path; `None`: not yet.
    pub(super) fn on_path(&self, path: Option<RelayPath>) -> usize {
        self.of_path.of(&path)
    }

    /// What is over at `now`, and why. Sessions expire `grace` late, for who else keeps that time.
    pub(super) fn due(&self, now: Duration, grace: Duration) -> Vec<(SessionRef, EndReason)> {
        self.sessions
            .iter()
            .filter_map(|(session, entry)| Some((*session, entry.over(now, grace)?)))
            .collect()
    }

    /// Takes a session out, to be ended by whoever gets it.
    pub(super) fn remove(&mut self, session: SessionRef) -> Option<Entry> {
        let entry = self.sessions.remove(&session)?;
        let About { client, login, connector, .. } = &*entry.about;
        self.of_client.remove(client, session);
        self.of_person.remove(&login.person);
        self.of_connector.remove(connector, session);
        self.of_person_at.remove(&(login.person.clone(), connector.clone()));
        self.of_path.remove(&entry.path);
        leave(&mut self.by_client, entry.client, session);
        leave(&mut self.by_link, entry.connector, session);
        Some(entry)
    }

    fn of_link_mut(&mut self, session: SessionRef, link: ControlId) -> Option<&mut Entry> {
        self.sessions.get_mut(&session).filter(|entry| entry.connector == Seat::Taken(link))
    }
}

impl Entry {
    /// Where the client is: by its leg, and before there is one by its request.
    pub(super) fn address(&self) -> IpAddr {
        self.at.unwrap_or(self.about.address)
    }

    fn over(&self, now: Duration, grace: Duration) -> Option<EndReason> {
        let passed = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        let left = |seat: Seat| matches!(seat, Seat::Empty { until } if until <= now);
        if self.about.expires.saturating_add(grace) <= now {
            Some(EndReason::Expired)
        } else if left(self.client) {
            Some(EndReason::ClientGone)
        } else if left(self.connector) || passed(self.answer_by) {
            Some(EndReason::ConnectorGone)
        } else if passed(self.bind_by) {
            Some(EndReason::NotBound)
        } else {
            None
        }
    }
}

fn leave(seated: &mut Grouped<ControlId, SessionRef>, seat: Seat, session: SessionRef) {
    if let Some(control) = seat.control() {
        seated.remove(&control, session);
    }
}

/// How many there are of each.
#[derive(Debug)]
struct Tally<K>(BTreeMap<K, usize>);

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Tally<K> {
    fn of(&self, key: &K) -> usize {
        self.0.get(key).copied().unwrap_or(0)
    }

    fn add(&mut self, key: K) {
        *self.0.entry(key).or_default() += 1;
    }

    fn remove(&mut self, key: &K) {
        if let Some(count) = self.0.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(key);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests;

//! Exact counting of what a stranger or one person can cause at will, so that the log cannot be flooded: nobody pushes the
//! evidence of others out of it.

use std::collections::BTreeMap;

use crate::flow::{Reason, UnixTime};

use super::record::Person;
use super::{Action, Event};

/// Events of strangers written one by one in each second, of each action; the rest of that second is counted. So a
/// flood of requests hides no failed login.
const WRITTEN_PER_SECOND: u32 = 50;
/// Events of one person who is logged in, of each action: so many at once, and so many more each second. What somebody did is
/// to be read one by one, programs that ask all day included; only what would fill a log of a GiB within hours is above. All private
/// sessions that one person may have can end at once, and each says what it has carried.
const BURST_OF_PERSON: u32 = 8192;
const PER_SECOND_OF_PERSON: u32 = 50;

/// Decides which events are written and counts the others by action, application, verdict, reason and person.
#[derive(Debug, Default)]
pub(super) struct Summary {
    second: Option<UnixTime>,
    written: BTreeMap<Action, u32>,
    /// Of people who had events lately.
    people: BTreeMap<(Person, Action), Bucket>,
    counted: BTreeMap<Key, u64>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    action: Action,
    application: Option<String>,
    allowed: bool,
    reason: Option<Reason>,
    /// Nobody: a stranger.
    person: Option<Person>,
}

/// How many more events are written now.
#[derive(Debug)]
struct Bucket {
    left: u32,
    at: UnixTime,
}

impl Summary {
    /// Gives back what to write now: the event itself unless it is beyond the rate.
    pub(super) fn take(&mut self, event: Event) -> Option<Event> {
        let person = event.person();
        let is_written = match &person {
            Some(person) => {
                let full = || Bucket { left: BURST_OF_PERSON, at: event.at() };
                let bucket = self.people.entry((person.clone(), event.action()));
                bucket.or_insert_with(full).take(event.at())
            }
            None => !event.is_of_a_stranger() || self.take_of_a_stranger(&event),
        };
        if is_written {
            return Some(event);
        }
        let key = Key {
            action: event.action(),
            // Anybody can ask for applications that do not exist, each of which would be a summary of its own.
            application: event.known_application().map(str::to_owned),
            allowed: event.is_allowed(),
            reason: event.refusal(),
            person,
        };
        let count = self.counted.entry(key).or_default();
        *count = count.saturating_add(1);
        None
    }

    fn take_of_a_stranger(&mut self, event: &Event) -> bool {
        if self.second != Some(event.at()) {
            self.second = Some(event.at());
            self.written.clear();
        }
        let written = self.written.entry(event.action()).or_default();
        let is_written = *written < WRITTEN_PER_SECOND;
        *written += u32::from(is_written);
        is_written
    }

    /// One event for each kind that was counted since the last flush.
    pub(super) fn flush(&mut self) -> Vec<Event> {
        let now = crate::clock::now();
        self.people.retain(|_, bucket| !bucket.is_full(now));
        std::mem::take(&mut self.counted).into_iter().map(|(key, count)| key.event(count)).collect()
    }
}

impl Key {
    fn event(self, count: u64) -> Event {
        let mut event = Event::new(Action::Summary, self.allowed).counted(count);
        if let Some(reason) = self.reason {
            event = event.reason(reason);
        }
        let what = match (self.action, &self.person) {
            (Action::Connect, None) => "refused connectors",
            (Action::Login, None) => "failed logins",
            (Action::Certificate, None) => "refused certificates",
            (Action::SignIn, None) => "refused sign-ins",
            (_, None) => "requests without a session",
            (Action::Connect, Some(_)) => "connections",
            (Action::Disconnect, Some(_)) => "ends of connections",
            (Action::Login, Some(_)) => "logins",
            (Action::Logout, Some(_)) => "logouts",
            (Action::Certificate, Some(_)) => "certificates",
            (Action::SignIn, Some(_)) => "sign-ins",
            (_, Some(_)) => "requests",
        };
        let event = match self.application {
            Some(application) => event.detail(format!("{what} to {application}")),
            None => event.detail(what),
        };
        match self.person {
            Some(person) => event.of_person(person),
            None => event,
        }
    }
}

impl Bucket {
    fn take(&mut self, now: UnixTime) -> bool {
        self.left = self.left_at(now);
        self.at = self.at.max(now);
        let is_there = self.left > 0;
        self.left -= u32::from(is_there);
        is_there
    }

    fn is_full(&self, now: UnixTime) -> bool {
        self.left_at(now) >= BURST_OF_PERSON
    }

    fn left_at(&self, now: UnixTime) -> u32 {
        let seconds = u32::try_from(now.since(self.at).as_secs()).unwrap_or(u32::MAX);
        self.left.saturating_add(seconds.saturating_mul(PER_SECOND_OF_PERSON)).min(BURST_OF_PERSON)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{PersonId, Session, SessionId};

    #[test]
    fn refused_connectors_are_counted_too_and_apart() {
        let mut summary = Summary::default();
        let refused = Event::new(Action::Connect, false).reason(Reason::UnknownConnector);
        let written = (0..1000).filter(|_| summary.take(refused.clone()).is_some()).count();
        assert_eq!(written, WRITTEN_PER_SECOND as usize);
        assert!(summary.take(Event::new(Action::Connect, true)).is_some());
        let counted = serde_json::to_string(&summary.flush()).unwrap();
        assert!(counted.contains("refused connectors") && counted.contains("\"count\":950"), "{counted}");
    }

    #[test]
    fn nothing_is_lost_beyond_the_rate() {
        let mut summary = Summary::default();
        let first = Event::new(Action::Request, false).reason(Reason::NoApplication);
        let mut written = 0;
        for _ in 0..1000 {
            written += u32::from(summary.take(first.clone()).is_some());
        }
        assert_eq!(written, WRITTEN_PER_SECOND);
        let counted: Vec<String> =
            summary.flush().iter().map(|event| serde_json::to_string(event).unwrap()).collect();
        assert_eq!(counted.len(), 1);
        assert!(counted[0].contains(&format!("\"count\":{}", 1000 - WRITTEN_PER_SECOND)), "{}", counted[0]);
        assert!(summary.flush().is_empty());
        assert!(summary.take(Event::new(Action::Login, false)).is_some(), "hidden by a flood of requests");
        assert!(summary.take(Event::new(Action::Admin, false)).is_some());
    }

    fn request(who: &str) -> Event {
        let session = Session {
            id: SessionId::from_bytes([1; 16]),
            person: PersonId { provider: "local".into(), subject: who.into() },
            is_local: Some(true),
            email: Some(format!("{who}@example.com").parse().unwrap()),
            display_name: who.into(),
            groups: vec![],
            amr: vec![],
            address: [192, 0, 2, 1].into(),
            authenticated_at: None,
            created_at: UnixTime(0),
            expires_at: UnixTime(100),
        };
        Event::new(Action::Request, true).session(&session)
    }

    #[test]
    fn one_person_fills_no_log_and_every_event_counts() {
        let mut summary = Summary::default();
        let flood = (0..100_000).filter(|_| summary.take(request("ann")).is_some()).count();
        // The test itself may take some seconds.
        assert!((8192..12_000).contains(&flood), "{flood} were written");
        assert!(summary.take(request("bob")).is_some(), "hidden by another's flood");
        let login = request("ann").reason(Reason::Throttled);
        let other = Event::new(Action::Login, false);
        assert!(summary.take(login).is_none() && summary.take(other).is_some());
        let summaries: Vec<serde_json::Value> =
            summary.flush().iter().map(|event| serde_json::to_value(event).unwrap()).collect();
        let of = |reason: Option<&str>| {
            let mut found = summaries.iter().filter(|event| event["reason"].as_str() == reason);
            found.next().unwrap().clone()
        };
        assert_eq!(summaries.len(), 2);
        let counted = of(None);
        assert_eq!(counted["count"].as_u64().unwrap() + flood as u64, 100_000);
        assert_eq!(counted["user_email"], "ann@example.com");
        assert_eq!((&counted["user_id"], &counted["detail"]), (&"local:ann".into(), &"requests".into()));
        assert_eq!(of(Some("throttled"))["count"], 1);
        assert!(summary.flush().is_empty());
    }

    #[test]
    fn what_nobody_has_is_not_counted_apart() {
        let mut summary = Summary::default();
        for number in 0..20_000 {
            summary.take(request("ann").claimed_application(&format!("no-{number}")));
        }
        assert_eq!(summary.flush().len(), 1);
    }

    #[test]
    fn a_bucket_fills_again_and_is_forgotten_when_it_is_full() {
        let mut bucket = Bucket { left: BURST_OF_PERSON, at: UnixTime(100) };
        let mut taken = |now| (0..9000).filter(|_| bucket.take(UnixTime(now))).count();
        assert_eq!((taken(100), taken(101), taken(99), taken(103)), (8192, 50, 0, 100));
        assert!(!bucket.is_full(UnixTime(266)) && bucket.is_full(UnixTime(267)));
        let mut summary = Summary::default();
        summary.take(request("ann"));
        summary.flush();
        assert_eq!(summary.people.len(), 1);
        summary.people.values_mut().for_each(|bucket| bucket.at = UnixTime(0));
        summary.flush();
        assert!(summary.people.is_empty());
    }
}

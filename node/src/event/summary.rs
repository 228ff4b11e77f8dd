//! Exact counting of what a stranger can cause at will, so that the log cannot be flooded.

use std::collections::BTreeMap;

use crate::flow::{Reason, UnixTime};

use super::{Action, Event};

/// Events of strangers written one by one in each second, of each action; the rest of that second is counted. So a
/// flood of requests hides no failed login.
const WRITTEN_PER_SECOND: u32 = 50;

/// Decides which events of strangers are written and counts the others by action, application, verdict and reason.
#[derive(Debug, Default)]
pub(super) struct Summary {
    second: Option<UnixTime>,
    written: BTreeMap<Action, u32>,
    counted: BTreeMap<Key, u64>,
}

type Key = (Action, Option<String>, bool, Option<Reason>);

impl Summary {
    /// Gives back what to write now: the event itself unless it is beyond the rate.
    pub(super) fn take(&mut self, event: Event) -> Option<Event> {
        if !event.is_of_a_stranger() {
            return Some(event);
        }
        if self.second != Some(event.at()) {
            self.second = Some(event.at());
            self.written.clear();
        }
        let written = self.written.entry(event.action()).or_default();
        if *written < WRITTEN_PER_SECOND {
            *written += 1;
            return Some(event);
        }
        let application = event.application_name().map(str::to_owned);
        let key = (event.action(), application, event.is_allowed(), event.refusal());
        let count = self.counted.entry(key).or_default();
        *count = count.saturating_add(1);
        None
    }

    /// One event for each kind that was counted since the last flush.
    pub(super) fn flush(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.counted)
            .into_iter()
            .map(|((action, application, allowed, reason), count)| {
                let mut event = Event::new(Action::Summary, allowed).counted(count);
                if let Some(reason) = reason {
                    event = event.reason(reason);
                }
                let what = match action {
                    Action::Connect => "refused connectors".to_owned(),
                    Action::Login => "failed logins".to_owned(),
                    Action::Certificate => "refused certificates".to_owned(),
                    Action::SignIn => "refused sign-ins".to_owned(),
                    _ => "requests without a session".to_owned(),
                };
                match application {
                    Some(application) => event.detail(format!("{what} to {application}")),
                    None => event.detail(what),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}

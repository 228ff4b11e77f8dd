//! Private sessions, for administrators.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::flow::{SessionId, UnixTime};

use super::PrivateSessions;
use super::book::Entry;

/// One private session in a listing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PrivateSession {
    pub application: String,
    /// What the client named, of a network.
    pub destination: Option<String>,
    pub connector: String,
    /// Whose it is.
    pub login: SessionId,
    /// `kernel`, `userspace`, or nothing while its ends do not bind.
    pub path: Option<String>,
    /// Bytes of IP packets from the client.
    pub bytes_up: u64,
    /// Bytes of IP packets from the connector.
    pub bytes_down: u64,
    pub opened_at: UnixTime,
    pub expires_at: UnixTime,
}

impl PrivateSessions {
    /// Every private session that there is now. Blocks while the gate's counters are read.
    pub fn list(&self) -> Vec<PrivateSession> {
        let now = clock::now();
        let sessions: Vec<_> = {
            let inner = self.shared.lock();
            let row = |(session, entry): (_, &Entry)| {
                let about = &entry.about;
                let age = clock::monotonic().saturating_sub(about.since);
                let row = PrivateSession {
                    application: about.application.name.clone(),
                    destination: about.destination.as_ref().map(ToString::to_string),
                    connector: about.connector.to_string(),
                    login: about.login.id,
                    path: entry.path.map(|path| path.as_str().to_owned()),
                    bytes_up: 0,
                    bytes_down: 0,
                    opened_at: now.before(Duration::from_secs(age.as_secs())),
                    expires_at: about.not_after,
                };
                (session, row)
            };
            inner.book.iter().map(row).collect()
        };
        let with_bytes = |(session, row)| {
            let of_gate = self.shared.carrier.usage(session);
            let sent = self.shared.relay.sent(session).unwrap_or_default();
            let [up, down] = of_gate.map_or_else(|| sent.all(), |by_udp| sent.with_udp(by_udp));
            PrivateSession { bytes_up: up.bytes, bytes_down: down.bytes, ..row }
        };
        sessions.into_iter().map(with_bytes).collect()
    }
}

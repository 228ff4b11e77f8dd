//! Whether the connector of a session is still heard. Pure: counts and times come from outside.
//!
//! Packets that go out unanswered are no sign by themselves, since nobody acknowledges an acknowledgement. What should be
//! answered is sent again and again (RFC 9002 §6.2), with nothing coming in.

use std::time::Duration;

/// Nothing has come for so long while more and more was sent: the person is told.
pub(super) const SILENT_AFTER: Duration = Duration::from_secs(5);

/// Sendings without an answer that make a silence, by looks at the counts.
const UNANSWERED: u32 = 3;

/// What is to be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing has come for so long.
    Nothing(Duration),
    /// Something has come again.
    Again,
}

/// What is known from earlier looks.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    received: u64,
    sent: u64,
    /// When the first unanswered packet was seen to be gone.
    since: Option<Duration>,
    unanswered: u32,
    told: bool,
}

impl Hearing {
    /// So many packets were sent and received by `now`.
    pub(super) fn look(&mut self, sent: u64, received: u64, now: Duration) -> Option<Heard> {
        if received != self.received {
            let told = self.told;
            *self = Self { received, sent, ..Self::default() };
            return told.then_some(Heard::Again);
        }
        if sent != self.sent {
            self.sent = sent;
            self.unanswered = self.unanswered.saturating_add(1);
            self.since.get_or_insert(now);
        }
        let silence = now.saturating_sub(self.since?);
        if self.told || silence < SILENT_AFTER || self.unanswered < UNANSWERED {
            return None;
        }
        self.told = true;
        Some(Heard::Nothing(silence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_silence_is_told_once_and_so_is_its_end() {
        let mut hearing = Hearing::default();
        assert_eq!(hearing.look(5, 5, at(1)), None);
        // Sent again and again, as probes are.
        let told: Vec<_> = (2..40).filter_map(|n| hearing.look(4 + n, 5, at(n))).collect();
        assert_eq!(told, [Heard::Nothing(SILENT_AFTER)]);
        assert_eq!(hearing.look(50, 6, at(41)), Some(Heard::Again));
        assert_eq!(hearing.look(50, 7, at(42)), None);
    }

    #[test]
    fn an_acknowledgement_that_nobody_answers_is_no_silence() {
        let mut hearing = Hearing::default();
        hearing.look(5, 5, at(1));
        assert_eq!(hearing.look(6, 5, at(2)), None);
        assert!((3..100).all(|n| hearing.look(6, 5, at(n)).is_none()));
        // Nor are two, far apart.
        assert!((100..200).all(|n| hearing.look(7, 5, at(n)).is_none()));
    }

    #[test]
    fn a_burst_that_is_answered_late_is_no_silence() {
        let mut hearing = Hearing::default();
        for n in 0..4 {
            assert_eq!(hearing.look(100 * n, 0, at(n)), None);
        }
        assert_eq!(hearing.look(400, 1, at(4)), None);
        assert_eq!(hearing.look(500, 1, at(8)), None, "it begins anew");
    }
}

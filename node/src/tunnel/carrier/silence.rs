//! Whether a path still brings anything, told by what a connection has sent and received. Pure.

use std::time::Duration;

use super::PATIENCE;

/// What a connection has counted so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    /// Frames to which the peer owes an answer.
    pub(super) asked: u64,
    /// Datagrams.
    pub(super) heard: u64,
}

/// One path of one connection.
#[derive(Debug, Default)]
pub(super) struct Silence {
    seen: Counts,
    /// The first question since something was heard.
    asking: Option<Duration>,
}

impl Silence {
    /// Begins anew: the connection has another path.
    pub(super) fn restart(&mut self, counts: Counts) {
        *self = Self { seen: counts, asking: None };
    }

    /// Looks at the counts at `now`. True: what was asked since [`PATIENCE`] got no answer.
    pub(super) fn look(&mut self, now: Duration, counts: Counts) -> bool {
        if counts.heard != self.seen.heard {
            self.asking = None;
        } else if counts.asked != self.seen.asked && self.asking.is_none() {
            self.asking = Some(now);
        }
        self.seen = counts;
        self.asking.is_some_and(|since| now.saturating_sub(since) >= PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn counts(asked: u64, heard: u64) -> Counts {
        Counts { asked, heard }
    }

    #[test]
    fn only_a_question_without_an_answer_is_silence() {
        let mut silence = Silence::default();
        let long = PATIENCE * 10;
        assert!(!silence.look(Duration::ZERO, counts(1, 1)));
        assert!(!silence.look(long, counts(1, 1)), "nobody has asked");
        assert!(!silence.look(long, counts(2, 1)), "just asked");
        assert!(!silence.look(long + PATIENCE / 2, counts(3, 1)), "asking again does not start anew");
        assert!(silence.look(long + PATIENCE, counts(3, 1)));
        assert!(!silence.look(long + PATIENCE, counts(4, 2)), "an answer ends it");
        assert!(!silence.look(long * 2, counts(4, 2)));
        assert!(!silence.look(long * 2, counts(5, 2)));
        silence.restart(counts(5, 2));
        assert!(!silence.look(long * 3, counts(5, 2)), "another path");
    }
}

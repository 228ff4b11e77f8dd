//! The access client's end of its control session with a node.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::flow::UnixTime;

use super::super::access_wire::{
    AccessFrame, AccessRefusal, AccessToken, ClientFrame, ClientVersion, Denial, Opened, Ray, RequestId,
};
use super::super::relay::{Early, SessionRef};
use super::super::wire::{Authority, CloseCode, EndReason, RelayPath};
use super::OPENING_TIMEOUT;

/// A request that was not answered by then will not be.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// A token is renewed so long before its end, or at half its life where that is later.
const RENEW_AHEAD: Duration = Duration::from_secs(60);

/// Between two attempts to renew.
const RENEW_EVERY: Duration = Duration::from_secs(15);

/// What happened.
#[derive(Debug)]
pub(in super::super) enum ClientInput {
    Frame(AccessFrame),
    /// Somebody wants a session. Before the welcome too: the node reads this after the `Hello`.
    Open {
        request: RequestId,
        application: String,
        destination: Option<Authority>,
        /// The name under which its leg begins to bind, if it does.
        early: Option<Early>,
    },
    /// A session of an earlier connection is to go on.
    Resume {
        request: RequestId,
        grant: Vec<u8>,
    },
    /// A session is no longer wanted.
    Close(SessionRef),
    /// The answer to [`ClientAction::TokenWanted`], good for so long.
    Token(AccessToken, Duration),
    /// [`ClientSession::deadline`] has passed.
    Timer,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum ClientAction {
    Send(ClientFrame),
    /// The node knows this client.
    Welcome {
        person: String,
        /// By the node's clock.
        token_expires: UnixTime,
    },
    /// The node will not have this client; the connection ends.
    Refused(AccessRefusal),
    Opened(Opened),
    Denied {
        request: RequestId,
        denial: Denial,
        ray: Ray,
        message: String,
    },
    /// No answer came in time.
    Unanswered(RequestId),
    /// A bind of this session is in force.
    Ready {
        session: SessionRef,
        counter: u64,
        path: RelayPath,
    },
    Ended {
        session: SessionRef,
        reason: EndReason,
    },
    /// The token ends soon: hand in another, if there is one.
    TokenWanted,
    /// The node opens no more sessions on this connection.
    NodeDrains,
    Close(CloseCode),
}

pub(in super::super) struct ClientSession {
    state: State,
    open: Open,
    renew_at: Duration,
}

enum State {
    /// Requests may be on their way, none is answered yet.
    Opening {
        until: Duration,
    },
    Ready,
    Closed,
}

#[derive(Default)]
struct Open {
    /// Until when each is waited for.
    requests: BTreeMap<RequestId, Duration>,
    /// Those that were waited for in vain: a session that comes of them is not wanted.
    given_up: BTreeSet<RequestId>,
    sessions: BTreeSet<SessionRef>,
}

impl ClientSession {
    /// A session and its first frame. The token is good for `lifetime`.
    pub(in super::super) fn new(
        token: AccessToken,
        version: ClientVersion,
        lifetime: Duration,
        now: Duration,
    ) -> (Self, ClientFrame) {
        let state = State::Opening { until: now.saturating_add(OPENING_TIMEOUT) };
        let session = Self { state, open: Open::default(), renew_at: renew_at(lifetime, now) };
        (session, ClientFrame::Hello { token, version })
    }

    /// When to hand in [`ClientInput::Timer`].
    pub(in super::super) fn deadline(&self) -> Option<Duration> {
        match self.state {
            State::Opening { until } => Some(until),
            State::Ready => self.open.requests.values().copied().chain([self.renew_at]).min(),
            State::Closed => None,
        }
    }

    pub(in super::super) fn handle(&mut self, input: ClientInput, now: Duration) -> Vec<ClientAction> {
        if matches!(self.state, State::Closed) {
            return Vec::new();
        }
        match input {
            ClientInput::Frame(frame) => self.frame(frame),
            ClientInput::Open { request, application, destination, early } => {
                self.open.requests.insert(request, now.saturating_add(ANSWER_TIMEOUT));
                vec![ClientAction::Send(match early {
                    Some(early) => ClientFrame::OpenBinding { request, application, destination, early },
                    None => ClientFrame::Open { request, application, destination },
                })]
            }
            ClientInput::Resume { request, grant } => {
                self.open.requests.insert(request, now.saturating_add(ANSWER_TIMEOUT));
                vec![ClientAction::Send(ClientFrame::Resume { request, grant })]
            }
            ClientInput::Close(session) if self.open.sessions.remove(&session) => {
                vec![ClientAction::Send(ClientFrame::Close { session })]
            }
            ClientInput::Close(_) => Vec::new(),
            ClientInput::Token(token, lifetime) => {
                self.renew_at = renew_at(lifetime, now);
                vec![ClientAction::Send(ClientFrame::Renew { token })]
            }
            ClientInput::Timer => self.timer(now),
        }
    }

    fn frame(&mut self, frame: AccessFrame) -> Vec<ClientAction> {
        let action = match (&self.state, frame) {
            (State::Opening { .. }, AccessFrame::Welcome { person, token_expires, .. }) => {
                self.state = State::Ready;
                Ok(Some(ClientAction::Welcome { person, token_expires }))
            }
            (State::Opening { .. } | State::Ready, AccessFrame::Refused(refusal)) => {
                self.state = State::Closed;
                Ok(Some(ClientAction::Refused(refusal)))
            }
            (State::Ready, frame) => self.open.frame(frame),
            (State::Opening { .. } | State::Closed, _) => Err(Strange),
        };
        match action {
            Ok(action) => action.into_iter().collect(),
            Err(Strange) => self.close(CloseCode::Protocol),
        }
    }

    fn timer(&mut self, now: Duration) -> Vec<ClientAction> {
        match self.state {
            State::Opening { until } if until <= now => self.close(CloseCode::Timeout),
            State::Ready => {
                let mut actions = self.open.overdue(now);
                if self.renew_at <= now {
                    self.renew_at = now.saturating_add(RENEW_EVERY);
                    actions.push(ClientAction::TokenWanted);
                }
                actions
            }
            State::Opening { .. } | State::Closed => Vec::new(),
        }
    }

    fn close(&mut self, code: CloseCode) -> Vec<ClientAction> {
        self.state = State::Closed;
        vec![ClientAction::Close(code)]
    }
}

/// The node has broken the order of frames.
struct Strange;

impl Open {
    fn frame(&mut self, frame: AccessFrame) -> Result<Option<ClientAction>, Strange> {
        Ok(match frame {
            AccessFrame::Opened(opened) if self.given_up.remove(&opened.request) => {
                Some(ClientAction::Send(ClientFrame::Close { session: opened.session }))
            }
            AccessFrame::Denied { request, .. } if self.given_up.remove(&request) => None,
            AccessFrame::Opened(opened) => {
                self.requests.remove(&opened.request).ok_or(Strange)?;
                self.sessions.insert(opened.session);
                Some(ClientAction::Opened(opened))
            }
            AccessFrame::Denied { request, denial, ray, message } => {
                self.requests.remove(&request).ok_or(Strange)?;
                Some(ClientAction::Denied { request, denial, ray, message })
            }
            // A session that was closed here a moment ago may still be spoken of.
            AccessFrame::Ready { session, counter, path } => {
                self.sessions.contains(&session).then_some(ClientAction::Ready { session, counter, path })
            }
            AccessFrame::EndSession { session, reason } => {
                self.sessions.remove(&session).then_some(ClientAction::Ended { session, reason })
            }
            AccessFrame::Renewed { .. } => None,
            AccessFrame::Drain => Some(ClientAction::NodeDrains),
            AccessFrame::Welcome { .. } | AccessFrame::Refused(_) => return Err(Strange),
        })
    }

    fn overdue(&mut self, now: Duration) -> Vec<ClientAction> {
        let late: Vec<RequestId> =
            self.requests.iter().filter(|(_, until)| **until <= now).map(|(request, _)| *request).collect();
        for request in &late {
            self.requests.remove(request);
            self.given_up.insert(*request);
        }
        late.into_iter().map(ClientAction::Unanswered).collect()
    }
}

fn renew_at(lifetime: Duration, now: Duration) -> Duration {
    let ahead = RENEW_AHEAD.min(lifetime / 2);
    now.saturating_add(lifetime.saturating_sub(ahead).max(RENEW_EVERY))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const SESSION: SessionRef = SessionRef { index: 7, generation: 3 };
    const REQUEST: RequestId = RequestId(1);

    fn token(text: &str) -> AccessToken {
        text.parse().unwrap()
    }

    fn welcome() -> AccessFrame {
        AccessFrame::Welcome {
            person: "ann".to_owned(),
            token_expires: UnixTime(1),
            login_expires: UnixTime(2),
        }
    }

    fn fresh(lifetime: Duration) -> ClientSession {
        let (session, hello) =
            ClientSession::new(token("a.b.c"), "1".parse().unwrap(), lifetime, Duration::ZERO);
        assert!(matches!(hello, ClientFrame::Hello { .. }));
        session
    }

    fn welcomed() -> ClientSession {
        let mut session = fresh(HOUR);
        let actions = session.handle(ClientInput::Frame(welcome()), Duration::ZERO);
        assert!(matches!(actions[..], [ClientAction::Welcome { .. }]), "{actions:?}");
        session
    }

    fn open(request: RequestId) -> ClientInput {
        ClientInput::Open { request, application: "db".to_owned(), destination: None, early: None }
    }

    fn opened(request: RequestId) -> AccessFrame {
        AccessFrame::Opened(Opened {
            request,
            session: SESSION,
            ticket: [1; 16],
            grant: vec![1],
            connector: crate::tunnel::KeyHash::from_bytes([1; 32]),
            expires: UnixTime(9),
        })
    }

    fn denied(request: RequestId) -> AccessFrame {
        let (denial, ray) = (Denial::NotAllowed, Ray([1; 8]));
        AccessFrame::Denied { request, denial, ray, message: "no".to_owned() }
    }

    fn ready() -> AccessFrame {
        AccessFrame::Ready { session: SESSION, counter: 1, path: RelayPath::Kernel }
    }

    fn over() -> AccessFrame {
        AccessFrame::EndSession { session: SESSION, reason: EndReason::Revoked }
    }

    fn frame(session: &mut ClientSession, frame: AccessFrame) -> Vec<ClientAction> {
        session.handle(ClientInput::Frame(frame), Duration::ZERO)
    }

    #[test]
    fn a_session_is_opened_readied_and_ended() {
        let mut session = welcomed();
        let sent = session.handle(open(REQUEST), Duration::ZERO);
        assert!(matches!(sent[..], [ClientAction::Send(ClientFrame::Open { request: REQUEST, .. })]));
        assert!(matches!(frame(&mut session, opened(REQUEST))[..], [ClientAction::Opened(_)]));
        assert!(matches!(frame(&mut session, ready())[..], [ClientAction::Ready { counter: 1, .. }]));
        let ended = frame(&mut session, over());
        assert!(matches!(ended[..], [ClientAction::Ended { reason: EndReason::Revoked, .. }]));
        // What is over is not spoken of again, neither by the node nor to it.
        assert!(frame(&mut session, ready()).is_empty());
        assert!(session.handle(ClientInput::Close(SESSION), Duration::ZERO).is_empty());
    }

    #[test]
    fn what_was_closed_here_may_still_be_spoken_of() {
        let mut session = welcomed();
        session.handle(open(REQUEST), Duration::ZERO);
        frame(&mut session, opened(REQUEST));
        let sent = session.handle(ClientInput::Close(SESSION), Duration::ZERO);
        assert_eq!(sent, [ClientAction::Send(ClientFrame::Close { session: SESSION })]);
        assert!(frame(&mut session, ready()).is_empty());
        assert!(frame(&mut session, over()).is_empty());
    }

    #[test]
    fn an_answer_that_comes_too_late_is_undone() {
        let mut session = welcomed();
        for request in [REQUEST, RequestId(2)] {
            session.handle(open(request), Duration::ZERO);
        }
        assert_eq!(session.deadline(), Some(ANSWER_TIMEOUT));
        let late = session.handle(ClientInput::Timer, ANSWER_TIMEOUT);
        assert_eq!(late, [ClientAction::Unanswered(REQUEST), ClientAction::Unanswered(RequestId(2))]);
        assert_eq!(
            frame(&mut session, opened(REQUEST)),
            [ClientAction::Send(ClientFrame::Close { session: SESSION })]
        );
        assert!(frame(&mut session, denied(RequestId(2))).is_empty());
    }

    #[test]
    fn a_node_that_breaks_the_order_is_left() {
        for strange in [opened(REQUEST), denied(REQUEST), welcome()] {
            let mut session = welcomed();
            assert_eq!(frame(&mut session, strange), [ClientAction::Close(CloseCode::Protocol)]);
            assert_eq!(session.deadline(), None);
        }
        for early in [opened(REQUEST), ready(), over(), AccessFrame::Drain] {
            let mut session = fresh(HOUR);
            assert_eq!(frame(&mut session, early), [ClientAction::Close(CloseCode::Protocol)]);
        }
        let mut session = fresh(HOUR);
        let silent = session.handle(ClientInput::Timer, OPENING_TIMEOUT);
        assert_eq!(silent, [ClientAction::Close(CloseCode::Timeout)]);
    }

    #[test]
    fn what_is_wanted_is_asked_without_waiting_for_the_welcome() {
        let mut session = fresh(HOUR);
        let sent = session.handle(open(REQUEST), Duration::ZERO);
        assert!(matches!(sent[..], [ClientAction::Send(ClientFrame::Open { .. })]));
        assert_eq!(session.deadline(), Some(OPENING_TIMEOUT));
        frame(&mut session, welcome());
        assert!(matches!(frame(&mut session, opened(REQUEST))[..], [ClientAction::Opened(_)]));
    }

    #[test]
    fn a_refusal_ends_it_at_any_time() {
        for mut session in [fresh(HOUR), welcomed()] {
            let refusal = AccessRefusal::LoginEnded;
            let actions = frame(&mut session, AccessFrame::Refused(refusal));
            assert_eq!(actions, [ClientAction::Refused(refusal)]);
            assert!(session.handle(open(REQUEST), Duration::ZERO).is_empty());
        }
    }

    #[test]
    fn a_token_is_renewed_ahead_of_its_end_and_never_in_a_hurry() {
        let mut session = welcomed();
        let at = HOUR - RENEW_AHEAD;
        assert_eq!(session.deadline(), Some(at));
        assert_eq!(session.handle(ClientInput::Timer, at), [ClientAction::TokenWanted]);
        // Nobody had one.
        assert_eq!(session.deadline(), Some(at + RENEW_EVERY));
        let sent = session.handle(ClientInput::Token(token("d.e.f"), HOUR), at);
        assert_eq!(sent, [ClientAction::Send(ClientFrame::Renew { token: token("d.e.f") })]);
        assert_eq!(session.deadline(), Some(at + HOUR - RENEW_AHEAD));
        // One that ends at once is not renewed all the time.
        session.handle(ClientInput::Token(token("d.e.f"), Duration::ZERO), at);
        assert_eq!(session.deadline(), Some(at + RENEW_EVERY));
    }

    #[test]
    fn a_session_of_before_is_asked_for_by_its_grant() {
        let mut session = welcomed();
        let resume = ClientInput::Resume { request: REQUEST, grant: vec![7] };
        let sent = session.handle(resume, Duration::ZERO);
        let expected = ClientFrame::Resume { request: REQUEST, grant: vec![7] };
        assert_eq!(sent, [ClientAction::Send(expected)]);
        assert!(matches!(frame(&mut session, opened(REQUEST))[..], [ClientAction::Opened(_)]));
    }
}

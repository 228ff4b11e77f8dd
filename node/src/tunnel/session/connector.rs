//! The connector's end of the control session.

use std::time::Duration;

use super::super::relay::SessionRef;
use super::super::wire::{
    Authority, CloseCode, ConnectorFrame, ConnectorName, Decline, DeviceSecret, EndReason, EnrolmentSecret,
    Instance, NodeFrame, Offer, Refusal, RelayPath,
};
use super::{HEARTBEAT_INTERVAL, OPENING_TIMEOUT};

/// How a connector says who it is, besides the key that TLS has proved.
#[derive(Debug, Clone)]
pub(in super::super) enum Credential {
    /// It was enrolled before.
    Key,
    /// It redeems this token for its key.
    Token(EnrolmentSecret),
}

/// What happened.
#[derive(Debug)]
pub(in super::super) enum ConnectorInput {
    Frame(NodeFrame),
    /// After the welcome: the connector takes private sessions on this connection.
    TakesSessions(Instance),
    /// The session of a [`ConnectorAction::Offer`] is taken.
    Taken(SessionRef),
    /// The session of a [`ConnectorAction::Offer`] is not taken.
    Declined(SessionRef, Decline),
    /// A session that was taken is over.
    SessionEnded(SessionRef),
    /// The connector is about to end.
    Drain,
    /// [`ConnectorSession::deadline`] has passed.
    Timer,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum ConnectorAction {
    Send(ConnectorFrame),
    /// The node knows this connector, under this name.
    Welcome(ConnectorName),
    /// What to knock with from now on.
    Device(DeviceSecret),
    /// The node will not have it; the connection ends.
    Refused(Refusal),
    /// Dial these origins and no others.
    Configure {
        epoch: u64,
        origins: Vec<Authority>,
    },
    /// Take this session or decline it, then hand in which.
    Offer(Offer),
    /// A bind of this session is in force.
    SessionReady {
        session: SessionRef,
        counter: u64,
        path: RelayPath,
    },
    /// The session is over, taken or not yet.
    EndSession {
        session: SessionRef,
        reason: EndReason,
    },
    /// The node will open no more streams on this connection.
    NodeDrains,
    Close(CloseCode),
}

pub(in super::super) struct ConnectorSession {
    state: State,
}

enum State {
    Opening { until: Duration },
    Ready { heartbeat_at: Duration, epoch: u64, takes_sessions: bool },
    Closed,
}

impl ConnectorSession {
    /// A session and its first frame.
    pub(in super::super) fn new(credential: Credential, now: Duration) -> (Self, ConnectorFrame) {
        let opening = match credential {
            Credential::Key => ConnectorFrame::Hello,
            Credential::Token(secret) => ConnectorFrame::Enrol(secret),
        };
        (Self { state: State::Opening { until: now.saturating_add(OPENING_TIMEOUT) } }, opening)
    }

    /// When to hand in [`ConnectorInput::Timer`].
    pub(in super::super) const fn deadline(&self) -> Option<Duration> {
        match self.state {
            State::Opening { until } => Some(until),
            State::Ready { heartbeat_at, .. } => Some(heartbeat_at),
            State::Closed => None,
        }
    }

    pub(in super::super) fn handle(&mut self, input: ConnectorInput, now: Duration) -> Vec<ConnectorAction> {
        match input {
            ConnectorInput::Frame(frame) => self.frame(frame, now),
            ConnectorInput::TakesSessions(instance) => match &mut self.state {
                State::Ready { takes_sessions, .. } if !*takes_sessions => {
                    *takes_sessions = true;
                    vec![ConnectorAction::Send(ConnectorFrame::TakesSessions { instance })]
                }
                State::Ready { .. } | State::Opening { .. } | State::Closed => Vec::new(),
            },
            ConnectorInput::Taken(session) => self.send(ConnectorFrame::Taken { session }),
            ConnectorInput::Declined(session, why) => self.send(ConnectorFrame::Declined { session, why }),
            ConnectorInput::SessionEnded(session) => self.send(ConnectorFrame::SessionEnded { session }),
            ConnectorInput::Drain => match self.state {
                State::Ready { .. } => vec![ConnectorAction::Send(ConnectorFrame::Drain)],
                State::Opening { .. } => self.close(CloseCode::Shutdown),
                State::Closed => Vec::new(),
            },
            ConnectorInput::Timer => match &mut self.state {
                State::Opening { until } if *until <= now => self.close(CloseCode::Timeout),
                State::Ready { heartbeat_at, .. } if *heartbeat_at <= now => {
                    *heartbeat_at = now.saturating_add(HEARTBEAT_INTERVAL);
                    vec![ConnectorAction::Send(ConnectorFrame::Heartbeat)]
                }
                State::Opening { .. } | State::Ready { .. } | State::Closed => Vec::new(),
            },
        }
    }

    fn frame(&mut self, frame: NodeFrame, now: Duration) -> Vec<ConnectorAction> {
        match (&mut self.state, frame) {
            (State::Closed, _) => Vec::new(),
            (State::Opening { .. }, NodeFrame::Welcome { connector }) => {
                let heartbeat_at = now.saturating_add(HEARTBEAT_INTERVAL);
                self.state = State::Ready { heartbeat_at, epoch: 0, takes_sessions: false };
                vec![ConnectorAction::Welcome(connector), ConnectorAction::Send(ConnectorFrame::Device)]
            }
            (State::Opening { .. }, NodeFrame::Refused(refusal)) => {
                self.state = State::Closed;
                vec![ConnectorAction::Refused(refusal)]
            }
            // What keeps a known connector out of service shows only after the welcome.
            (State::Ready { .. }, NodeFrame::Refused(refusal)) => {
                self.state = State::Closed;
                vec![ConnectorAction::Refused(refusal)]
            }
            (State::Ready { epoch: current, .. }, NodeFrame::Origins { epoch, origins })
                if epoch > *current =>
            {
                *current = epoch;
                vec![
                    ConnectorAction::Configure { epoch, origins },
                    ConnectorAction::Send(ConnectorFrame::Ack { epoch }),
                ]
            }
            (State::Ready { .. }, NodeFrame::Device(device)) => vec![ConnectorAction::Device(device)],
            (State::Ready { .. }, NodeFrame::Drain) => vec![ConnectorAction::NodeDrains],
            (State::Ready { takes_sessions: true, .. }, NodeFrame::Session(offer)) => {
                vec![ConnectorAction::Offer(offer)]
            }
            (
                State::Ready { takes_sessions: true, .. },
                NodeFrame::SessionReady { session, counter, path },
            ) => vec![ConnectorAction::SessionReady { session, counter, path }],
            (State::Ready { takes_sessions: true, .. }, NodeFrame::EndSession { session, reason }) => {
                vec![ConnectorAction::EndSession { session, reason }]
            }
            (
                State::Opening { .. },
                NodeFrame::Origins { .. }
                | NodeFrame::Drain
                | NodeFrame::Device(_)
                | NodeFrame::Session(_)
                | NodeFrame::SessionReady { .. }
                | NodeFrame::EndSession { .. },
            )
            | (
                State::Ready { .. },
                NodeFrame::Welcome { .. }
                | NodeFrame::Origins { .. }
                | NodeFrame::Session(_)
                | NodeFrame::SessionReady { .. }
                | NodeFrame::EndSession { .. },
            ) => self.close(CloseCode::Protocol),
        }
    }

    fn send(&self, frame: ConnectorFrame) -> Vec<ConnectorAction> {
        match self.state {
            State::Ready { .. } => vec![ConnectorAction::Send(frame)],
            State::Opening { .. } | State::Closed => Vec::new(),
        }
    }

    fn close(&mut self, code: CloseCode) -> Vec<ConnectorAction> {
        self.state = State::Closed;
        vec![ConnectorAction::Close(code)]
    }
}

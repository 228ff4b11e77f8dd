//! The connector's end of the control session.

use std::time::Duration;

use super::super::wire::{
    Authority, CloseCode, ConnectorFrame, ConnectorName, DeviceSecret, EnrolmentSecret, NodeFrame, Refusal,
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
    /// The node will open no more streams on this connection.
    NodeDrains,
    Close(CloseCode),
}

pub(in super::super) struct ConnectorSession {
    state: State,
}

enum State {
    Opening { until: Duration },
    Ready { heartbeat_at: Duration, epoch: u64 },
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
                self.state = State::Ready { heartbeat_at: now.saturating_add(HEARTBEAT_INTERVAL), epoch: 0 };
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
            (State::Opening { .. }, NodeFrame::Origins { .. } | NodeFrame::Drain | NodeFrame::Device(_))
            | (State::Ready { .. }, NodeFrame::Welcome { .. } | NodeFrame::Origins { .. }) => {
                self.close(CloseCode::Protocol)
            }
        }
    }

    fn close(&mut self, code: CloseCode) -> Vec<ConnectorAction> {
        self.state = State::Closed;
        vec![ConnectorAction::Close(code)]
    }
}

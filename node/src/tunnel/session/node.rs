//! The node's end of the control session.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::relay::SessionRef;
use super::super::wire::{
    Authority, CloseCode, ConnectorFrame, ConnectorName, Decline, DeviceSecret, EndReason, EnrolmentSecret,
    Instance, NodeFrame, Offer, Refusal, RelayPath,
};
use super::{HEALTHY_FOR, OPENING_TIMEOUT};

/// Offers to a connector that it has not answered. Beyond, it is offered nothing more: who waits gives up.
const MAX_UNANSWERED: usize = 4096;

/// What happened.
#[derive(Debug)]
pub(in super::super) enum NodeInput {
    Frame(ConnectorFrame),
    /// The store's answer to [`NodeAction::Redeem`]: whose token it was, if it was good.
    Redeemed(Option<ConnectorName>),
    /// The connection could not be put into service after [`NodeAction::Register`].
    NotRegistered(Refusal),
    /// The answer to [`NodeAction::Device`].
    Device(DeviceSecret),
    /// The origins of this connector, at the beginning and after each reload.
    Configure {
        epoch: u64,
        origins: Vec<Authority>,
    },
    /// A private session for the connector, if it takes any.
    Offer(Offer),
    /// A bind of a session that the connector has taken is in force.
    SessionReady {
        session: SessionRef,
        counter: u64,
        path: RelayPath,
    },
    /// A session that was offered is over.
    EndSession {
        session: SessionRef,
        reason: EndReason,
    },
    /// The node is about to end.
    Drain,
    /// [`NodeSession::deadline`] has passed.
    Timer,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum NodeAction {
    Send(NodeFrame),
    /// Redeem the token for the peer's key, then hand in [`NodeInput::Redeemed`].
    Redeem(EnrolmentSecret),
    /// Nobody is to use this token of the connector's any more. Others' tokens stay good.
    Spend(EnrolmentSecret, ConnectorName),
    /// From now on the connection serves this connector.
    Register(ConnectorName),
    /// Look up what the connector knocks with, then hand in [`NodeInput::Device`].
    Device,
    /// Whether new streams should prefer other connections.
    Healthy(bool),
    /// The connector takes private sessions, in this process.
    TakesSessions(Instance),
    /// The connector has taken a session that was offered.
    Taken(SessionRef),
    /// The connector has declined a session that was offered.
    Declined(SessionRef, Decline),
    /// The connector has ended a session. Whether it ever was this connector's is not known here.
    SessionEnded(SessionRef),
    /// The connector takes no new streams.
    PeerDrains,
    /// Close the connection, after what was sent has arrived.
    Close(CloseCode),
}

pub(in super::super) struct NodeSession {
    state: State,
    known: Option<ConnectorName>,
}

enum State {
    Opening { until: Duration },
    Redeeming { until: Duration },
    Ready(Ready),
    Closed,
}

struct Ready {
    heard_at: Duration,
    healthy: bool,
    sent_epoch: u64,
    acknowledged_epoch: u64,
    drain_sent: bool,
    device_asked: bool,
    /// What was offered and not answered; absent until the connector has said that it takes sessions.
    offered: Option<BTreeSet<SessionRef>>,
}

impl NodeSession {
    /// A session with a peer whose proven key is that of connector `known`, or of nobody.
    pub(in super::super) const fn new(known: Option<ConnectorName>, now: Duration) -> Self {
        Self { state: State::Opening { until: now.saturating_add(OPENING_TIMEOUT) }, known }
    }

    /// When to hand in [`NodeInput::Timer`].
    pub(in super::super) fn deadline(&self) -> Option<Duration> {
        match &self.state {
            State::Opening { until } | State::Redeeming { until } => Some(*until),
            State::Ready(ready) if ready.healthy => Some(ready.heard_at + HEALTHY_FOR),
            State::Ready(_) | State::Closed => None,
        }
    }

    pub(in super::super) fn handle(&mut self, input: NodeInput, now: Duration) -> Vec<NodeAction> {
        match input {
            NodeInput::Frame(frame) => self.frame(frame, now),
            NodeInput::Redeemed(name) => match (&self.state, name) {
                (State::Redeeming { .. }, Some(name)) => self.welcome(name, now),
                (State::Redeeming { .. }, None) => self.refuse(Refusal::BadToken),
                (State::Opening { .. } | State::Ready(_) | State::Closed, _) => Vec::new(),
            },
            NodeInput::NotRegistered(refusal) => match self.state {
                State::Ready(_) => self.refuse(refusal),
                State::Opening { .. } | State::Redeeming { .. } | State::Closed => Vec::new(),
            },
            NodeInput::Device(device) => match self.state {
                State::Ready(_) => vec![NodeAction::Send(NodeFrame::Device(device))],
                State::Opening { .. } | State::Redeeming { .. } | State::Closed => Vec::new(),
            },
            NodeInput::Configure { epoch, origins } => match &mut self.state {
                State::Ready(ready) => {
                    ready.sent_epoch = epoch;
                    vec![NodeAction::Send(NodeFrame::Origins { epoch, origins })]
                }
                State::Opening { .. } | State::Redeeming { .. } | State::Closed => Vec::new(),
            },
            NodeInput::Offer(offer) => match &mut self.state {
                State::Ready(Ready { offered: Some(offered), .. }) if offered.len() < MAX_UNANSWERED => {
                    offered.insert(offer.session);
                    vec![NodeAction::Send(NodeFrame::Session(offer))]
                }
                State::Ready(_) | State::Opening { .. } | State::Redeeming { .. } | State::Closed => {
                    Vec::new()
                }
            },
            NodeInput::SessionReady { session, counter, path } => {
                self.about_session(NodeFrame::SessionReady { session, counter, path })
            }
            NodeInput::EndSession { session, reason } => {
                self.about_session(NodeFrame::EndSession { session, reason })
            }
            NodeInput::Drain => match &mut self.state {
                State::Ready(ready) if !ready.drain_sent => {
                    ready.drain_sent = true;
                    vec![NodeAction::Send(NodeFrame::Drain)]
                }
                State::Ready(_) | State::Closed => Vec::new(),
                State::Opening { .. } | State::Redeeming { .. } => self.close(CloseCode::Shutdown),
            },
            NodeInput::Timer => self.timer(now),
        }
    }

    /// To a connector that takes sessions, and to no other.
    fn about_session(&self, frame: NodeFrame) -> Vec<NodeAction> {
        match &self.state {
            State::Ready(Ready { offered: Some(_), .. }) => vec![NodeAction::Send(frame)],
            State::Ready(_) | State::Opening { .. } | State::Redeeming { .. } | State::Closed => Vec::new(),
        }
    }

    fn frame(&mut self, frame: ConnectorFrame, now: Duration) -> Vec<NodeAction> {
        match (&mut self.state, frame) {
            (State::Closed, _) => Vec::new(),
            (State::Opening { .. }, ConnectorFrame::Hello) => match self.known.clone() {
                Some(name) => self.welcome(name, now),
                None => self.refuse(Refusal::UnknownKey),
            },
            // A known key that enrols lost the answer the first time, or was given a token it does not need.
            (State::Opening { until }, ConnectorFrame::Enrol(secret)) => match self.known.clone() {
                Some(name) => {
                    let mut actions = vec![NodeAction::Spend(secret, name.clone())];
                    actions.extend(self.welcome(name, now));
                    actions
                }
                None => {
                    self.state = State::Redeeming { until: *until };
                    vec![NodeAction::Redeem(secret)]
                }
            },
            (State::Ready(ready), ConnectorFrame::Ack { epoch })
                if (ready.acknowledged_epoch..=ready.sent_epoch).contains(&epoch) =>
            {
                ready.acknowledged_epoch = epoch;
                ready.heard(now)
            }
            (State::Ready(ready), ConnectorFrame::Heartbeat) => ready.heard(now),
            // Once: what is asked for twice is no connector of ours.
            (State::Ready(ready), ConnectorFrame::Device) if !ready.device_asked => {
                ready.device_asked = true;
                ready.heard_with(now, NodeAction::Device)
            }
            (State::Ready(ready), ConnectorFrame::Drain) => ready.heard_with(now, NodeAction::PeerDrains),
            (State::Ready(ready), ConnectorFrame::TakesSessions { instance }) if ready.offered.is_none() => {
                ready.offered = Some(BTreeSet::new());
                ready.heard_with(now, NodeAction::TakesSessions(instance))
            }
            // One answer to each offer, and none to what was not offered: the session may be another connector's.
            (State::Ready(ready), ConnectorFrame::Taken { session }) if ready.awaits(session) => {
                ready.answered(session);
                ready.heard_with(now, NodeAction::Taken(session))
            }
            (State::Ready(ready), ConnectorFrame::Declined { session, why }) if ready.awaits(session) => {
                ready.answered(session);
                ready.heard_with(now, NodeAction::Declined(session, why))
            }
            (State::Ready(ready), ConnectorFrame::SessionEnded { session }) if ready.offered.is_some() => {
                ready.heard_with(now, NodeAction::SessionEnded(session))
            }
            (
                State::Opening { .. },
                ConnectorFrame::Ack { .. }
                | ConnectorFrame::Heartbeat
                | ConnectorFrame::Drain
                | ConnectorFrame::Device
                | ConnectorFrame::TakesSessions { .. }
                | ConnectorFrame::Taken { .. }
                | ConnectorFrame::Declined { .. }
                | ConnectorFrame::SessionEnded { .. },
            )
            | (State::Redeeming { .. }, _)
            | (
                State::Ready(_),
                ConnectorFrame::Hello
                | ConnectorFrame::Enrol(_)
                | ConnectorFrame::Ack { .. }
                | ConnectorFrame::Device
                | ConnectorFrame::TakesSessions { .. }
                | ConnectorFrame::Taken { .. }
                | ConnectorFrame::Declined { .. }
                | ConnectorFrame::SessionEnded { .. },
            ) => self.close(CloseCode::Protocol),
        }
    }

    fn timer(&mut self, now: Duration) -> Vec<NodeAction> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        match &mut self.state {
            State::Opening { .. } | State::Redeeming { .. } => self.close(CloseCode::Timeout),
            State::Ready(ready) => {
                ready.healthy = false;
                vec![NodeAction::Healthy(false)]
            }
            State::Closed => Vec::new(),
        }
    }

    fn welcome(&mut self, connector: ConnectorName, now: Duration) -> Vec<NodeAction> {
        self.state = State::Ready(Ready {
            heard_at: now,
            healthy: true,
            sent_epoch: 0,
            acknowledged_epoch: 0,
            drain_sent: false,
            device_asked: false,
            offered: None,
        });
        vec![
            NodeAction::Send(NodeFrame::Welcome { connector: connector.clone() }),
            NodeAction::Register(connector),
        ]
    }

    fn refuse(&mut self, refusal: Refusal) -> Vec<NodeAction> {
        self.state = State::Closed;
        vec![NodeAction::Send(NodeFrame::Refused(refusal)), NodeAction::Close(CloseCode::Refused)]
    }

    fn close(&mut self, code: CloseCode) -> Vec<NodeAction> {
        self.state = State::Closed;
        vec![NodeAction::Close(code)]
    }
}

impl Ready {
    fn heard(&mut self, now: Duration) -> Vec<NodeAction> {
        self.heard_at = now;
        if std::mem::replace(&mut self.healthy, true) { Vec::new() } else { vec![NodeAction::Healthy(true)] }
    }

    fn heard_with(&mut self, now: Duration, action: NodeAction) -> Vec<NodeAction> {
        let mut actions = self.heard(now);
        actions.push(action);
        actions
    }

    fn awaits(&self, session: SessionRef) -> bool {
        self.offered.as_ref().is_some_and(|offered| offered.contains(&session))
    }

    fn answered(&mut self, session: SessionRef) {
        if let Some(offered) = &mut self.offered {
            offered.remove(&session);
        }
    }
}

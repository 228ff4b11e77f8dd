//! The control session of one tunnel connection, at both ends, without I/O.
//!
//! ```text
//! connector                                   node
//!   Hello | Enrol(secret)  ───────────────▶   known key, or token redeemed?
//!            ◀───────────────  Welcome(name)  or Refused
//!   Device                 ───────────────▶   once
//!            ◀───────────────  Device(keys)   what to knock with
//!   TakesSessions          ───────────────▶   once; from then on offers may come
//!            ◀───────────────  Origins(epoch) at once and after each reload
//!   Ack(epoch)             ───────────────▶
//!   Heartbeat every 5 s    ───────────────▶   healthy while heard within 12 s
//!            ◀───────────────  Session(offer) for each private session
//!   Taken | Declined       ───────────────▶   once for each offer
//!            ◀───────────────  SessionReady, EndSession
//!   Drain                  ◀──────────────▶   no new origin streams; running ones end
//! ```
//!
//! An access client's end of its own control session, whose frames [`super::access_wire`] draws, is [`ClientSession`].
//!
//! [`NodeSession`] and [`ConnectorSession`] take what happened and the time since the session began, and answer with
//! actions for a loop that owns the sockets. A peer that breaks the order of frames is disconnected.

mod client;
mod connector;
mod node;

use std::time::Duration;

pub(super) use client::{ClientAction, ClientInput, ClientSession};
pub(super) use connector::{ConnectorAction, ConnectorInput, ConnectorSession, Credential};
pub(super) use node::{NodeAction, NodeInput, NodeSession};

/// Both ends: the opening exchange takes no longer.
pub(super) const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two heartbeats of a connector.
pub(super) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// A connector that was silent for so long gets new streams only where there is no better one.
pub(super) const HEALTHY_FOR: Duration = Duration::from_secs(12);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::relay::SessionRef;
    use super::super::wire::{
        Authority, CloseCode, ConnectorFrame, ConnectorName, Decline, DeviceSecret, EndReason,
        EnrolmentSecret, Instance, NodeFrame, Offer, Refusal, RelayPath,
    };
    use super::*;

    fn hq() -> ConnectorName {
        "hq".parse().unwrap()
    }

    /// The device that the pair's node gives.
    const GIVEN: &str = "connector Device(DeviceSecret(50529027))";

    fn origin(index: u16) -> Authority {
        format!("10.0.0.1:{}", index + 1).parse().unwrap()
    }

    /// Both machines and the frames under way between them. Time passes only by `wait`.
    struct Pair {
        node: NodeSession,
        connector: ConnectorSession,
        to_node: Vec<ConnectorFrame>,
        to_connector: Vec<NodeFrame>,
        log: Vec<String>,
        now: Duration,
        /// What the store answers to a redeemed token.
        token_gives: Option<ConnectorName>,
        lose_heartbeats: bool,
    }

    impl Pair {
        fn new(known: Option<ConnectorName>, credential: Credential) -> Self {
            let now = Duration::ZERO;
            let (connector, opening) = ConnectorSession::new(credential, now);
            Self {
                node: NodeSession::new(known, now),
                connector,
                to_node: vec![opening],
                to_connector: Vec::new(),
                log: Vec::new(),
                now,
                token_gives: None,
                lose_heartbeats: false,
            }
        }

        fn node(&mut self, input: NodeInput) {
            for action in self.node.handle(input, self.now) {
                match action {
                    NodeAction::Send(frame) => self.to_connector.push(frame),
                    NodeAction::Redeem(_) => {
                        let answer = self.token_gives.take();
                        self.log.push(format!("redeem {}", answer.is_some()));
                        self.node(NodeInput::Redeemed(answer));
                    }
                    NodeAction::Spend(_, name) => self.log.push(format!("spend {name}")),
                    NodeAction::Device => {
                        let device = DeviceSecret::from_bytes(&[3; DeviceSecret::SIZE]).unwrap();
                        self.node(NodeInput::Device(device));
                    }
                    other => self.log.push(format!("node {other:?}")),
                }
            }
        }

        fn connector(&mut self, input: ConnectorInput) {
            for action in self.connector.handle(input, self.now) {
                match action {
                    ConnectorAction::Send(frame) => self.to_node.push(frame),
                    other => self.log.push(format!("connector {other:?}")),
                }
            }
        }

        fn settle(&mut self) {
            while !(self.to_node.is_empty() && self.to_connector.is_empty()) {
                for frame in std::mem::take(&mut self.to_node) {
                    if !(self.lose_heartbeats && frame == ConnectorFrame::Heartbeat) {
                        self.node(NodeInput::Frame(frame));
                    }
                }
                for frame in std::mem::take(&mut self.to_connector) {
                    self.connector(ConnectorInput::Frame(frame));
                }
            }
        }

        /// Advances to each deadline in turn, as the loops do.
        fn wait(&mut self, time: Duration) {
            let end = self.now + time;
            loop {
                let next = [self.node.deadline(), self.connector.deadline()].into_iter().flatten().min();
                let Some(next) = next.filter(|next| *next <= end) else { break };
                self.now = self.now.max(next);
                self.node(NodeInput::Timer);
                self.connector(ConnectorInput::Timer);
                self.settle();
            }
            self.now = end;
        }

        fn take_log(&mut self) -> Vec<String> {
            std::mem::take(&mut self.log)
        }
    }

    #[test]
    fn a_known_key_is_welcomed_and_gets_its_origins() {
        let mut pair = Pair::new(Some(hq()), Credential::Key);
        pair.settle();
        assert_eq!(
            pair.take_log(),
            [r#"node Register(ConnectorName("hq"))"#, "connector Welcome(ConnectorName(\"hq\"))", GIVEN]
        );
        pair.node(NodeInput::Configure { epoch: 1, origins: vec![origin(0)] });
        pair.settle();
        let log = pair.take_log();
        assert!(matches!(&log[..], [one] if one.starts_with("connector Configure { epoch: 1")), "{log:?}");
    }

    #[test]
    fn an_unknown_key_may_only_enrol() {
        let mut pair = Pair::new(None, Credential::Key);
        pair.settle();
        assert_eq!(
            pair.take_log(),
            ["node Close(Refused)".to_owned(), format!("connector Refused({:?})", Refusal::UnknownKey)]
        );
    }

    #[test]
    fn a_token_is_redeemed_once_and_a_known_key_needs_none() {
        let token = || Credential::Token(EnrolmentSecret::from_bytes([1; 32]));
        let mut pair = Pair::new(None, token());
        pair.token_gives = Some(hq());
        pair.settle();
        assert_eq!(
            pair.take_log(),
            [
                "redeem true",
                r#"node Register(ConnectorName("hq"))"#,
                r#"connector Welcome(ConnectorName("hq"))"#,
                GIVEN
            ]
        );
        let mut pair = Pair::new(None, token());
        pair.settle();
        assert_eq!(pair.take_log(), ["redeem false", "node Close(Refused)", "connector Refused(BadToken)"]);
        // The answer to the first Enrol was lost and the connector asks again with the same key.
        let mut pair = Pair::new(Some(hq()), token());
        pair.settle();
        assert_eq!(
            pair.take_log(),
            [
                "spend hq",
                r#"node Register(ConnectorName("hq"))"#,
                r#"connector Welcome(ConnectorName("hq"))"#,
                GIVEN
            ]
        );
    }

    #[test]
    fn heartbeats_keep_a_session_healthy_and_their_loss_shows() {
        let mut pair = Pair::new(Some(hq()), Credential::Key);
        pair.settle();
        pair.take_log();
        pair.wait(Duration::from_secs(600));
        assert_eq!(pair.take_log(), Vec::<String>::new());
        pair.lose_heartbeats = true;
        pair.wait(Duration::from_secs(60));
        assert_eq!(pair.take_log(), ["node Healthy(false)"]);
        pair.lose_heartbeats = false;
        pair.wait(HEARTBEAT_INTERVAL);
        assert_eq!(pair.take_log(), ["node Healthy(true)"]);
    }

    #[test]
    fn a_silent_opening_times_out_at_both_ends() {
        let mut pair = Pair::new(Some(hq()), Credential::Key);
        pair.to_node.clear();
        pair.wait(OPENING_TIMEOUT);
        assert_eq!(pair.take_log(), ["node Close(Timeout)", "connector Close(Timeout)"]);
        assert_eq!((pair.node.deadline(), pair.connector.deadline()), (None, None));
    }

    #[test]
    fn a_token_that_takes_too_long_is_still_bounded() {
        let mut node = NodeSession::new(None, Duration::ZERO);
        let enrol = ConnectorFrame::Enrol(EnrolmentSecret::from_bytes([1; 32]));
        node.handle(NodeInput::Frame(enrol), Duration::ZERO);
        let late = node.deadline().unwrap();
        assert!(matches!(node.handle(NodeInput::Timer, late)[..], [NodeAction::Close(CloseCode::Timeout)]));
        assert!(node.handle(NodeInput::Redeemed(Some(hq())), late).is_empty());
    }

    #[test]
    fn what_cannot_be_put_into_service_is_refused_after_the_welcome() {
        let mut pair = Pair::new(Some(hq()), Credential::Key);
        pair.settle();
        pair.take_log();
        pair.node(NodeInput::NotRegistered(Refusal::TooManyConnections));
        pair.settle();
        assert_eq!(pair.take_log(), ["node Close(Refused)", "connector Refused(TooManyConnections)"]);
    }

    #[test]
    fn drain_goes_both_ways() {
        let mut pair = Pair::new(Some(hq()), Credential::Key);
        pair.settle();
        pair.take_log();
        pair.connector(ConnectorInput::Drain);
        pair.settle();
        assert_eq!(pair.take_log(), ["node PeerDrains"]);
        pair.node(NodeInput::Drain);
        pair.node(NodeInput::Drain);
        pair.settle();
        assert_eq!(pair.take_log(), ["connector NodeDrains"]);
    }

    const SESSION: SessionRef = SessionRef { index: 7, generation: 3 };
    const INSTANCE: Instance = Instance(5);

    fn offer(session: SessionRef) -> Offer {
        Offer { session, ticket: [9; 16], grant: vec![1, 2, 3] }
    }

    #[test]
    fn sessions_are_offered_answered_readied_and_ended() {
        let mut pair = Pair::new(Some(hq()), Credential::Key);
        pair.settle();
        pair.connector(ConnectorInput::TakesSessions(INSTANCE));
        pair.connector(ConnectorInput::TakesSessions(INSTANCE));
        pair.settle();
        assert_eq!(pair.take_log().last().unwrap(), "node TakesSessions(Instance(5))");
        pair.node(NodeInput::Offer(offer(SESSION)));
        pair.settle();
        assert_eq!(pair.take_log(), [format!("connector Offer({:?})", offer(SESSION))]);
        pair.connector(ConnectorInput::Taken(SESSION));
        pair.settle();
        assert_eq!(pair.take_log(), [format!("node Taken({SESSION:?})")]);
        pair.node(NodeInput::SessionReady { session: SESSION, counter: 1, path: RelayPath::Kernel });
        pair.node(NodeInput::EndSession { session: SESSION, reason: EndReason::Revoked });
        pair.settle();
        let log = pair.take_log();
        assert!(matches!(&log[..], [ready, end] if ready.starts_with("connector SessionReady")
            && end.starts_with("connector EndSession")));
        pair.connector(ConnectorInput::SessionEnded(SESSION));
        // Offered again, as after a lost connection, and declined.
        pair.node(NodeInput::Offer(offer(SESSION)));
        pair.settle();
        pair.take_log();
        pair.connector(ConnectorInput::Declined(SESSION, Decline::Busy));
        pair.settle();
        assert_eq!(pair.take_log(), [format!("node Declined({SESSION:?}, Busy)")]);
    }

    #[test]
    fn a_connector_that_is_older_is_told_of_no_session() {
        let mut pair = Pair::new(Some(hq()), Credential::Key);
        pair.settle();
        pair.take_log();
        pair.node(NodeInput::Offer(offer(SESSION)));
        pair.node(NodeInput::SessionReady { session: SESSION, counter: 1, path: RelayPath::Kernel });
        pair.node(NodeInput::EndSession { session: SESSION, reason: EndReason::Revoked });
        assert!(pair.to_connector.is_empty());
        let now = Duration::ZERO;
        for frame in [
            NodeFrame::Session(offer(SESSION)),
            NodeFrame::SessionReady { session: SESSION, counter: 1, path: RelayPath::Kernel },
            NodeFrame::EndSession { session: SESSION, reason: EndReason::Revoked },
        ] {
            let (mut connector, _) = ConnectorSession::new(Credential::Key, now);
            connector.handle(ConnectorInput::Frame(NodeFrame::Welcome { connector: hq() }), now);
            let last = connector.handle(ConnectorInput::Frame(frame), now);
            assert!(matches!(last[..], [ConnectorAction::Close(CloseCode::Protocol)]), "{last:?}");
        }
    }

    #[test]
    fn an_answer_to_what_was_not_offered_ends_the_session() {
        let other = SessionRef { generation: 4, ..SESSION };
        let now = Duration::ZERO;
        let answers = [
            ConnectorFrame::Taken { session: other },
            ConnectorFrame::Declined { session: other, why: Decline::Busy },
            ConnectorFrame::TakesSessions { instance: INSTANCE },
        ];
        for answer in answers {
            let mut node = NodeSession::new(Some(hq()), now);
            for frame in [ConnectorFrame::Hello, ConnectorFrame::TakesSessions { instance: INSTANCE }] {
                node.handle(NodeInput::Frame(frame), now);
            }
            node.handle(NodeInput::Offer(offer(SESSION)), now);
            let last = node.handle(NodeInput::Frame(answer), now);
            assert!(matches!(last[..], [NodeAction::Close(CloseCode::Protocol)]), "{last:?}");
        }
        // One answer to each offer, and none before it said that it takes any.
        let mut node = NodeSession::new(Some(hq()), now);
        for frame in [ConnectorFrame::Hello, ConnectorFrame::TakesSessions { instance: INSTANCE }] {
            node.handle(NodeInput::Frame(frame), now);
        }
        node.handle(NodeInput::Offer(offer(SESSION)), now);
        let taken = || NodeInput::Frame(ConnectorFrame::Taken { session: SESSION });
        assert!(matches!(node.handle(taken(), now)[..], [NodeAction::Taken(SESSION)]));
        assert!(matches!(node.handle(taken(), now)[..], [NodeAction::Close(CloseCode::Protocol)]));
        let mut node = NodeSession::new(Some(hq()), now);
        node.handle(NodeInput::Frame(ConnectorFrame::Hello), now);
        let ended = NodeInput::Frame(ConnectorFrame::SessionEnded { session: SESSION });
        assert!(matches!(node.handle(ended, now)[..], [NodeAction::Close(CloseCode::Protocol)]));
    }

    #[test]
    fn frames_out_of_order_end_the_session() {
        let close = |actions: Vec<NodeAction>| {
            assert!(matches!(actions[..], [NodeAction::Close(CloseCode::Protocol)]), "{actions:?}");
        };
        let now = Duration::ZERO;
        for first in [
            ConnectorFrame::Heartbeat,
            ConnectorFrame::Drain,
            ConnectorFrame::Ack { epoch: 0 },
            ConnectorFrame::Device,
            ConnectorFrame::TakesSessions { instance: INSTANCE },
            ConnectorFrame::Taken { session: SESSION },
            ConnectorFrame::SessionEnded { session: SESSION },
        ] {
            close(NodeSession::new(Some(hq()), now).handle(NodeInput::Frame(first), now));
        }
        for second in [ConnectorFrame::Hello, ConnectorFrame::Ack { epoch: 1 }] {
            let mut node = NodeSession::new(Some(hq()), now);
            node.handle(NodeInput::Frame(ConnectorFrame::Hello), now);
            close(node.handle(NodeInput::Frame(second), now));
        }
        let mut node = NodeSession::new(Some(hq()), now);
        for frame in [ConnectorFrame::Hello, ConnectorFrame::Device] {
            node.handle(NodeInput::Frame(frame), now);
        }
        close(node.handle(NodeInput::Frame(ConnectorFrame::Device), now));
        let welcome = NodeFrame::Welcome { connector: hq() };
        for frames in [
            vec![NodeFrame::Device(DeviceSecret::from_bytes(&[3; DeviceSecret::SIZE]).unwrap())],
            vec![NodeFrame::Drain],
            vec![NodeFrame::Origins { epoch: 1, origins: vec![] }],
            vec![welcome.clone(), welcome.clone()],
            vec![
                welcome,
                NodeFrame::Origins { epoch: 2, origins: vec![] },
                NodeFrame::Origins { epoch: 2, origins: vec![origin(1)] },
            ],
        ] {
            let (mut connector, _) = ConnectorSession::new(Credential::Key, now);
            let mut last = Vec::new();
            for frame in frames {
                last = connector.handle(ConnectorInput::Frame(frame), now);
            }
            assert!(matches!(last[..], [ConnectorAction::Close(CloseCode::Protocol)]), "{last:?}");
        }
    }

    fn any_frame() -> impl Strategy<Value = ConnectorFrame> {
        prop_oneof![
            Just(ConnectorFrame::Hello),
            Just(ConnectorFrame::Enrol(EnrolmentSecret::from_bytes([1; 32]))),
            (0..4u64).prop_map(|epoch| ConnectorFrame::Ack { epoch }),
            Just(ConnectorFrame::Heartbeat),
            Just(ConnectorFrame::Drain),
            Just(ConnectorFrame::Device),
            Just(ConnectorFrame::TakesSessions { instance: INSTANCE }),
            Just(ConnectorFrame::Taken { session: SESSION }),
        ]
    }

    proptest! {
        /// Whatever a stranger sends, in whatever order: without a redeemed token it is never registered, and after
        /// a close nothing happens any more.
        #[test]
        fn a_stranger_is_never_registered(frames in prop::collection::vec(any_frame(), 0..12),
                                          seconds in prop::collection::vec(0..20u64, 12)) {
            let mut node = NodeSession::new(None, Duration::ZERO);
            let mut now = Duration::ZERO;
            let mut closed = false;
            for (frame, wait) in frames.into_iter().zip(seconds) {
                now += Duration::from_secs(wait);
                let mut actions = node.handle(NodeInput::Timer, now);
                actions.extend(node.handle(NodeInput::Frame(frame), now));
                if actions.iter().any(|action| matches!(action, NodeAction::Redeem(_))) {
                    actions.extend(node.handle(NodeInput::Redeemed(None), now));
                }
                for action in actions {
                    prop_assert!(!closed, "{action:?} after the close");
                    prop_assert!(!matches!(action, NodeAction::Register(_) | NodeAction::Device | NodeAction::Taken(_)));
                    closed = matches!(action, NodeAction::Close(_));
                }
            }
        }
    }
}

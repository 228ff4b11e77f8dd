//! Sampled drops say which budget or which session stood behind the reason.

use portcullis_common::layout::{Event, Rule};
use portcullis_common::{DropReason, RateClass, Verdict};
use portcullis_tests::gate::kernel::Kernel;
use portcullis_tests::gate::model::Model;
use portcullis_tests::gate::packet::{Path, SYN, UDP};
use portcullis_tests::netns::Netns;

use crate::verdicts::{HOST, STRANGER};

/// More than any budget gives at once.
const BURST: usize = 10_000;

#[test]
fn an_event_names_the_budget_or_the_session() {
    let netns = Netns::new("rules").unwrap();
    netns
        .enter(|| {
            let mut kernel = Kernel::load().unwrap();
            let model = Model::serving().with_keys().with_relay(STRANGER, HOST);
            kernel.adopt(&model).unwrap();
            let mut expected = Vec::new();
            let mut dropped = |kernel: &mut Kernel, frame: &[u8], reason, rule| {
                // A budget fills again while this machine does something else.
                let judged = (0..BURST).find_map(|_| {
                    kernel.sample_next(Verdict::Drop(reason)).unwrap();
                    let verdict = kernel.verdict(frame).unwrap();
                    (!verdict.is_pass()).then_some(verdict)
                });
                assert_eq!(judged, Some(Verdict::Drop(reason)));
                expected.push((reason, rule));
            };
            for (remote, local) in STRANGER.iter().zip(HOST) {
                let path = Path::new(remote, local);
                let relayed = |port| path.frame(UDP, &portcullis_tests::gate::packet::udp(port, 443, b"x"));
                let session = |index| Some(Rule::Session(index));
                dropped(&mut kernel, &relayed(1), DropReason::RelayRevoked, session(1));
                dropped(&mut kernel, &relayed(3), DropReason::RelayExpired, session(3));
                dropped(&mut kernel, &path.udp(9, 53, b"x"), DropReason::UdpUnsolicited, None);
                let opening = path.tcp(50_000, 443, SYN, 1, 0);
                let network = Some(Rule::Budget(RateClass::SynNetwork));
                dropped(&mut kernel, &opening, DropReason::SynRate, network);
            }
            kernel.set_budgets(true).unwrap();
            let elsewhere = Path::new("198.51.101.1", HOST[0]);
            let opening = elsewhere.tcp(50_000, 443, SYN, 1, 0);
            dropped(&mut kernel, &opening, DropReason::SynRate, Some(Rule::Budget(RateClass::Syn)));
            let echo = Some(Rule::Budget(RateClass::Echo));
            dropped(&mut kernel, &elsewhere.echo_request(1), DropReason::EchoRate, echo);

            let mut ring = kernel.events().unwrap();
            let mut told = Vec::new();
            while let Some(event) = ring.next() {
                let event = Event::from_bytes(&event).unwrap();
                let Some(Verdict::Drop(reason)) = Verdict::from_index(event.verdict) else {
                    panic!("{event:?}")
                };
                told.push((reason, Rule::of(reason, event.rule)));
            }
            // The first drop of a budget would be sampled in any case.
            told.dedup();
            assert_eq!(told, expected);
        })
        .unwrap();
}

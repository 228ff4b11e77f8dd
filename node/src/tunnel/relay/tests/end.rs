//! When an end sends what.

use super::super::end::{End, EndInput, EndOutput, FIRST_RETRY, GIVE_UP, LegState};
use super::super::tuple::Early;
use super::super::wire::{Challenge, Proven, Request};
use super::*;

const OBSERVED: &str = "192.0.2.10:5000";

fn start(counter: u64) -> (End, EndOutput) {
    let LegSecret { key, ticket } = secret(SESSION, Leg::Client);
    End::start(key, ticket, SESSION, Leg::Client, counter, ms(0))
}

fn proven(output: &EndOutput) -> Proven {
    let EndOutput::Send(datagram) = output else { panic!("{output:?}") };
    let request = Request::parse(datagram).unwrap();
    request.prove(&secret(SESSION, Leg::Client).key, SESSION.generation, address(OBSERVED)).unwrap()
}

fn challenge(nonce: u8) -> Vec<u8> {
    let key = secret(SESSION, Leg::Client).key;
    Challenge { observed: address(OBSERVED), nonce: [nonce; 8] }.seal(&key, SESSION, Leg::Client).to_vec()
}

fn ready_end() -> End {
    let (mut end, _) = start(0);
    assert_eq!(end.handle(EndInput::Ready { counter: 1 }, ms(10)), [EndOutput::Ready]);
    end
}

#[test]
fn nothing_end_to_end_leaves_before_ready() {
    let (mut end, first) = start(41);
    assert_eq!(proven(&first), Proven::Bind { counter: 42 });
    assert!(!end.may_send());
    let answered = end.handle(EndInput::Challenge(&challenge(1)), ms(20));
    assert_eq!(answered.iter().map(proven).collect::<Vec<_>>(), [Proven::Answer { nonce: [1; 8] }]);
    assert!(!end.may_send(), "an answer is not yet a leg");
    assert_eq!(end.handle(EndInput::Ready { counter: 41 }, ms(30)), [], "of an earlier round");
    assert!(!end.may_send());
    assert_eq!(end.handle(EndInput::Ready { counter: 42 }, ms(40)), [EndOutput::Ready]);
    assert!(end.may_send() && end.state() == LegState::Ready);
    assert_eq!(end.handle(EndInput::Ready { counter: 42 }, ms(41)), []);
}

#[test]
fn where_the_node_holds_them_first_packets_leave_with_the_answer() {
    let (mut end, _) = start(0);
    end.node_holds();
    assert!(!end.may_send() && end.state() == LegState::Binding, "the node does not know yet where it is");
    end.handle(EndInput::Challenge(&challenge(1)), ms(20));
    assert!(end.may_send() && end.state() == LegState::Answered);
    // It goes on binding all the same, and from another address it has to answer again.
    assert_eq!(end.handle(EndInput::Timer, FIRST_RETRY).len(), 2);
    end.handle(EndInput::AddressChanged, ms(300));
    assert!(!end.may_send());
    end.handle(EndInput::Challenge(&challenge(2)), ms(320));
    assert!(end.may_send());
    let counter = end.counter();
    assert_eq!(end.handle(EndInput::Ready { counter }, ms(340)), [EndOutput::Ready]);
    // Once it was ready there are no first packets any more.
    end.handle(EndInput::AddressChanged, ms(400));
    end.handle(EndInput::Challenge(&challenge(3)), ms(420));
    assert!(!end.may_send() && end.state() == LegState::Binding);
}

#[test]
fn another_control_connection_may_be_to_a_node_that_holds_nothing() {
    let (mut end, _) = start(0);
    end.node_holds();
    end.handle(EndInput::Challenge(&challenge(1)), ms(20));
    let LegSecret { key, ticket } = secret(SESSION, Leg::Client);
    end.rekey(key, ticket, ms(30));
    end.handle(EndInput::Challenge(&challenge(2)), ms(40));
    assert!(end.state() == LegState::Binding);
}

/// What the other end has sent ahead overtakes the control connection's word.
#[test]
fn who_hears_the_other_end_may_answer_it() {
    let (mut end, _) = start(0);
    end.handle(EndInput::Heard, ms(10));
    assert!(!end.may_send(), "nobody knows where it is");
    end.handle(EndInput::Challenge(&challenge(1)), ms(20));
    assert!(end.may_send());
    let (mut end, _) = start(0);
    end.handle(EndInput::Challenge(&challenge(1)), ms(20));
    assert!(!end.may_send());
    end.handle(EndInput::Heard, ms(30));
    assert!(end.may_send());
    assert_eq!(end.handle(EndInput::Timer, FIRST_RETRY).len(), 2, "it is not ready for that");
}

#[test]
fn a_forged_challenge_is_not_answered() {
    let (mut end, _) = start(0);
    for at in 0..challenge(1).len() {
        let mut forged = challenge(1);
        forged[at] ^= 1;
        assert_eq!(end.handle(EndInput::Challenge(&forged), ms(1)), []);
    }
    let theirs = Challenge { observed: address(OBSERVED), nonce: [1; 8] };
    for (session, leg) in [(OTHER, Leg::Client), (SESSION, Leg::Connector)] {
        let theirs = theirs.seal(&secret(session, leg).key, session, leg);
        assert_eq!(end.handle(EndInput::Challenge(&theirs), ms(1)), []);
    }
}

#[test]
fn it_tries_again_with_higher_counters_and_gives_up() {
    let (mut end, _) = start(0);
    let (mut counter, mut sent, mut last) = (1, 0, ms(0));
    loop {
        let at = end.deadline().unwrap();
        assert!(at > last && at - last <= ms(500) && sent < 200, "{at:?} after {last:?}, {sent}");
        assert!(end.handle(EndInput::Timer, at - ms(1)).is_empty(), "not before its time");
        last = at;
        match end.handle(EndInput::Timer, at)[..] {
            [bind @ EndOutput::Send(_)] => {
                let Proven::Bind { counter: next } = proven(&bind) else { panic!("{bind:?}") };
                assert_eq!(next, counter + 1);
                counter = next;
                sent += 1;
            }
            [EndOutput::GaveUp] => break,
            ref other => panic!("{other:?}"),
        }
    }
    assert!(last >= GIVE_UP && last <= GIVE_UP + ms(500) && sent > 50, "{sent} in {last:?}");
    assert_eq!(end.deadline(), None);
    assert_eq!(end.handle(EndInput::Ready { counter }, last), []);
    assert!(!end.may_send());
    // A new network is a new chance.
    assert_eq!(
        end.handle(EndInput::AddressChanged, last).iter().map(proven).collect::<Vec<_>>(),
        [Proven::Bind { counter: counter + 1 }]
    );
}

#[test]
fn the_last_answer_goes_out_again_while_it_may_count() {
    let (mut end, _) = start(0);
    end.handle(EndInput::Challenge(&challenge(1)), ms(20));
    end.handle(EndInput::Challenge(&challenge(2)), ms(30));
    let again = end.handle(EndInput::Timer, FIRST_RETRY);
    assert_eq!(
        again.iter().map(proven).collect::<Vec<_>>(),
        [Proven::Answer { nonce: [2; 8] }, Proven::Bind { counter: 2 }]
    );
    let late = end.handle(EndInput::Timer, ms(30) + super::super::node::CHALLENGE_LIFETIME);
    assert_eq!(late.iter().map(proven).collect::<Vec<_>>(), [Proven::Bind { counter: 3 }]);
}

/// Something that should be answered: it is sent again after a probe timeout.
fn await_answer(end: &mut End, now: Duration, pto: Duration) {
    end.handle(EndInput::Sent { pto }, now);
    end.handle(EndInput::Sent { pto }, now + pto);
}

#[test]
fn silence_counts_only_while_something_is_awaited() {
    let mut end = ready_end();
    assert_eq!(end.deadline(), None);
    await_answer(&mut end, ms(1000), ms(100));
    end.handle(EndInput::Sent { pto: ms(100) }, ms(1900));
    assert_eq!(end.deadline(), Some(ms(2000)), "one second at least, from the first");
    end.handle(EndInput::Heard, ms(1950));
    assert_eq!(end.deadline(), None);
    await_answer(&mut end, ms(3000), ms(500));
    assert_eq!(end.deadline(), Some(ms(4500)), "three probe timeouts");
    assert_eq!(end.handle(EndInput::Timer, ms(4499)), []);
    let bind = end.handle(EndInput::Timer, ms(4500));
    assert_eq!(bind.iter().map(proven).collect::<Vec<_>>(), [Proven::Bind { counter: 2 }]);
    assert!(end.may_send(), "the old leg may be good");
    assert_eq!(end.handle(EndInput::Ready { counter: 1 }, ms(4510)), [], "old news");
    assert_eq!(end.handle(EndInput::Ready { counter: 2 }, ms(4600)), [EndOutput::Ready]);
    assert_eq!(end.deadline(), None);
}

#[test]
fn a_last_acknowledgement_awaits_nothing() {
    let mut end = ready_end();
    let pto = ms(100);
    // A burst, within less than half a probe timeout.
    for at in [1000, 1010, 1049] {
        end.handle(EndInput::Sent { pto }, ms(at));
        assert_eq!(end.deadline(), None);
    }
    // Long after, something else: its time counts from there.
    end.handle(EndInput::Sent { pto }, ms(9000));
    assert_eq!(end.deadline(), None);
    end.handle(EndInput::Sent { pto }, ms(9100));
    assert_eq!(end.deadline(), Some(ms(10_000)));
    // The repeated packet gets its time, too.
    end.handle(EndInput::Heard, ms(9101));
    end.handle(EndInput::Sent { pto }, ms(11_000));
    end.handle(EndInput::Sent { pto }, ms(11_990));
    assert_eq!(end.deadline(), Some(ms(12_090)));
}

#[test]
fn rounds_that_bring_nothing_come_ever_later() {
    let mut end = ready_end();
    let (mut now, mut gaps) = (ms(1000), Vec::new());
    for _ in 0..6 {
        await_answer(&mut end, now, ms(100));
        let due = end.deadline().unwrap();
        gaps.push((due - now).as_secs());
        end.handle(EndInput::Timer, due);
        end.handle(EndInput::Ready { counter: end.counter() }, due);
        now = due;
    }
    assert_eq!(gaps, [1, 2, 4, 8, 15, 15]);
    end.handle(EndInput::Heard, now);
    await_answer(&mut end, now, ms(100));
    assert_eq!(end.deadline(), Some(now + ms(1000)));
}

#[test]
fn a_leg_that_still_carries_is_not_given_up() {
    for heard in [true, false] {
        let mut end = ready_end();
        await_answer(&mut end, ms(1000), ms(100));
        let began = end.deadline().unwrap();
        end.handle(EndInput::Timer, began);
        if heard {
            end.handle(EndInput::Heard, began + ms(10));
            assert_eq!(end.state(), LegState::Binding, "hearing proves one direction only");
        }
        let mut last = Vec::new();
        while let Some(at) = end.deadline().filter(|at| *at <= began + GIVE_UP + ms(1000)) {
            last = end.handle(EndInput::Timer, at);
        }
        assert_eq!(end.may_send(), heard);
        assert_eq!(end.state(), if heard { LegState::Ready } else { LegState::GaveUp });
        assert_eq!(last.contains(&EndOutput::GaveUp), !heard);
    }
}

#[test]
fn after_a_change_of_address_nothing_leaves_until_the_new_one_is_ready() {
    let mut end = ready_end();
    let bind = end.handle(EndInput::AddressChanged, ms(100));
    assert_eq!(bind.iter().map(proven).collect::<Vec<_>>(), [Proven::Bind { counter: 2 }]);
    assert!(!end.may_send());
    assert_eq!(end.handle(EndInput::Ready { counter: 2 }, ms(150)), [EndOutput::Ready]);
    assert!(end.may_send());
}

#[test]
fn a_new_control_connection_binds_again_under_its_key_while_packets_go_on() {
    let mut end = ready_end();
    let LegSecret { key, ticket } = secret(OTHER, Leg::Client);
    let bind = end.rekey(key.clone(), ticket, ms(100));
    let [EndOutput::Send(datagram)] = bind[..] else { panic!("{bind:?}") };
    let request = Request::parse(&datagram).unwrap();
    assert_eq!(request.ticket(), &ticket);
    assert_eq!(
        request.prove(&key, SESSION.generation, address(OBSERVED)),
        Some(Proven::Bind { counter: 1 }),
        "counters begin anew under a new key"
    );
    assert_eq!(request.prove(&secret(SESSION, Leg::Client).key, SESSION.generation, address(OBSERVED)), None);
    assert!(end.may_send() && end.state() == LegState::Binding);
    assert_eq!(end.handle(EndInput::Challenge(&challenge(1)), ms(110)), [], "of the old key");
    assert_eq!(end.handle(EndInput::Ready { counter: 1 }, ms(120)), [EndOutput::Ready]);

    // One that was never in force stays silent.
    let (mut fresh, _) = start(0);
    fresh.rekey(key, ticket, ms(10));
    assert!(!fresh.may_send());
}

/// Whichever comes first, the challenge under the early name or the session's own.
#[test]
fn a_leg_that_began_under_an_early_name_goes_on_under_its_own() {
    let (early, key) = (Early::new(7).session(), BindKey::from_bytes([0xee; 32]));
    let to_early = |nonce| {
        let challenge = Challenge { observed: address(OBSERVED), nonce: [nonce; 8] };
        challenge.seal(&key, early, Leg::Client).to_vec()
    };
    let of_early = |output: &EndOutput| {
        let EndOutput::Send(datagram) = output else { panic!("{output:?}") };
        Request::parse(datagram).unwrap().prove(&key, early.generation, address(OBSERVED))
    };
    for named_first in [true, false] {
        let (mut end, first) = End::start(key.clone(), [5; 16], early, Leg::Client, 0, ms(0));
        assert_eq!(of_early(&first), Some(Proven::Bind { counter: 1 }));
        let LegSecret { key: own, ticket } = secret(SESSION, Leg::Client);
        if named_first {
            let begun = end.name(own.clone(), ticket, SESSION);
            assert_eq!(begun.iter().map(proven).collect::<Vec<_>>(), [Proven::Bind { counter: 2 }]);
        }
        let answered = end.handle(EndInput::Challenge(&to_early(1)), ms(20));
        assert_eq!(
            answered.iter().map(of_early).collect::<Vec<_>>(),
            [Some(Proven::Answer { nonce: [1; 8] })]
        );
        if !named_first {
            assert_eq!(end.name(own, ticket, SESSION), [], "it is answered already");
        }
        // Until it is ready it repeats that answer, and binds under its own name beside it.
        let again = end.handle(EndInput::Timer, end.deadline().unwrap());
        assert_eq!(of_early(&again[0]), Some(Proven::Answer { nonce: [1; 8] }));
        assert_eq!(proven(&again[1]), Proven::Bind { counter: 2 + u64::from(named_first) });
        let answered = end.handle(EndInput::Challenge(&challenge(2)), ms(300));
        assert_eq!(answered.iter().map(proven).collect::<Vec<_>>(), [Proven::Answer { nonce: [2; 8] }]);
        assert_eq!(end.handle(EndInput::Ready { counter: 1 }, ms(310)), [EndOutput::Ready]);
        // What it was called before is of no use any more.
        end.handle(EndInput::AddressChanged, ms(400));
        assert_eq!(end.handle(EndInput::Challenge(&to_early(3)), ms(410)), []);
    }
}

//! First packets: where they go, when, and above all where not.

use super::super::first::{FIRST_LEN, first_ticket};
use super::super::node::{Action, CHALLENGE_LIFETIME, Onward};
use super::super::tuple::{Early, Pair};
use super::super::wire::{Challenge, TICKET_LEN, Ticket, seal_answer, seal_bind};
use super::node::{CLIENT, CONNECTOR, bind, establish, pair, silent};
use super::*;

const NONCE: [u8; 8] = [9; 8];

/// A datagram with an Initial to this ticket.
pub(super) fn initial(ticket: &Ticket, length: usize, mark: u8) -> Vec<u8> {
    let mut bytes = vec![0xC3, 0, 0, 0, 1, 16];
    bytes.extend(ticket);
    bytes.resize(length, mark);
    bytes
}

fn ticket() -> Ticket {
    secret(SESSION, Leg::Client).ticket
}

fn first(mark: u8) -> Box<[u8]> {
    initial(&ticket(), 1200, mark).into()
}

/// What comes is held, or is nobody's: nothing goes on.
fn kept(binds: &mut Binds, now: Duration, at: &str, datagram: Box<[u8]>) {
    assert_eq!(binds.on_first(now, from(at), datagram), None);
}

fn onward(marks: &[u8]) -> Option<Onward> {
    let datagrams = marks.iter().map(|mark| first(*mark)).collect();
    Some(Onward { pair: pair(CLIENT, CONNECTOR), datagrams })
}

fn answer(at: &str) -> [u8; 46] {
    let LegSecret { key, ticket } = secret(SESSION, Leg::Client);
    let challenge = Challenge { observed: address(at), nonce: NONCE };
    seal_answer(&key, SESSION, Leg::Client, &ticket, &challenge)
}

fn challenge(binds: &mut Binds, now: Duration, counter: u64, at: &str) {
    let sent = binds.on_datagram(now, from(at), &bind(SESSION, Leg::Client, counter), || NONCE);
    assert!(matches!(sent[..], [Action::Send { .. }]), "{sent:?}");
}

/// A node that has the connector's leg and has challenged the client's.
fn challenged() -> Binds {
    let mut binds = node();
    establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR);
    challenge(&mut binds, ms(0), 1, CLIENT);
    binds
}

fn proves(binds: &mut Binds, now: Duration, at: &str) {
    let done = binds.on_datagram(now, from(at), &answer(at), || panic!("nothing to ask"));
    assert!(matches!(done[..], [Action::Install(_), ..]), "{done:?}");
}

#[test]
fn what_comes_around_the_answer_goes_on_once_and_when_the_flows_are_written() {
    for answer_first in [true, false] {
        let mut binds = challenged();
        if answer_first {
            proves(&mut binds, ms(20), CLIENT);
        }
        kept(&mut binds, ms(20), CLIENT, first(1));
        kept(&mut binds, ms(21), CLIENT, first(2));
        if !answer_first {
            assert_eq!(binds.placed(pair(CLIENT, CONNECTOR), ms(21)), None, "nobody has proved that address");
            proves(&mut binds, ms(22), CLIENT);
        }
        assert_eq!(binds.placed(pair(CLIENT, CONNECTOR), ms(30)), onward(&[1, 2]), "{answer_first}");
        assert_eq!(binds.placed(pair(CLIENT, CONNECTOR), ms(31)), None, "once");
        // The gate had passed it up just before it knew the flow.
        assert_eq!(binds.on_first(ms(32), from(CLIENT), first(3)), onward(&[3]));
        kept(&mut binds, ms(33), "192.0.2.66:666", first(4));
    }
}

/// One of what can happen, in any order, with anything lost.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Event {
    Bind,
    Answer,
    Connector,
    First(u8),
}

fn orders(of: &[Event]) -> Vec<Vec<Event>> {
    if of.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for at in 0..of.len() {
        let mut rest = of.to_vec();
        let next = rest.remove(at);
        all.extend(orders(&rest).into_iter().map(|order| [vec![next], order].concat()));
    }
    all
}

#[test]
fn whatever_is_reordered_or_lost_nothing_goes_on_before_both_legs_have_proved() {
    let all = [Event::Bind, Event::Answer, Event::Connector, Event::First(1), Event::First(2)];
    for order in orders(&all) {
        for lost in 0_u32..1 << all.len() {
            let came: Vec<Event> =
                (0..).zip(&order).filter(|(at, _)| lost >> at & 1 == 0).map(|(_, e)| *e).collect();
            let mut binds = node();
            let mut sent = Vec::new();
            for (at, event) in (1..).zip(&came) {
                let now = ms(at);
                let actions = match event {
                    Event::Bind => {
                        binds.on_datagram(now, from(CLIENT), &bind(SESSION, Leg::Client, 1), || NONCE)
                    }
                    Event::Answer => binds.on_datagram(now, from(CLIENT), &answer(CLIENT), || NONCE),
                    Event::Connector => establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR),
                    Event::First(mark) => {
                        let onward = binds.on_first(now, from(CLIENT), first(*mark));
                        sent.extend(onward.into_iter().flat_map(|onward| onward.datagrams));
                        Vec::new()
                    }
                };
                let installed = actions.iter().find_map(|action| match action {
                    Action::Install(pair) => Some(*pair),
                    Action::Send { .. } | Action::ReplaceLeg { .. } | Action::Ready { .. } => None,
                });
                let onward = installed.and_then(|pair| binds.placed(pair, now));
                sent.extend(onward.into_iter().flat_map(|onward| onward.datagrams));
                assert!(sent.is_empty() || binds.pair(SESSION).is_some(), "{came:?}");
            }
            let place = |of| came.iter().position(|event| *event == of);
            let answered =
                place(Event::Bind).zip(place(Event::Answer)).is_some_and(|(bind, answer)| bind < answer);
            let both = answered && place(Event::Connector).is_some();
            assert_eq!(binds.pair(SESSION).is_some(), both, "{came:?}");
            let firsts = came.iter().filter_map(|event| match event {
                Event::First(mark) => Some(first(*mark)),
                Event::Bind | Event::Answer | Event::Connector => None,
            });
            let expected: Vec<_> = firsts.filter(|_| both).collect();
            assert_eq!(sent, expected, "{came:?}");
        }
    }
}

#[test]
fn what_comes_from_elsewhere_waits_in_vain() {
    let mut binds = challenged();
    let victim = "192.0.2.200:53";
    challenge(&mut binds, ms(1), 2, victim);
    kept(&mut binds, ms(2), victim, first(1));
    // The cheat has heard no challenge there; where it has, it may be reached, and what came from the victim's is lost.
    silent(&mut binds, ms(3), victim, &answer("192.0.2.66:666"));
    challenge(&mut binds, ms(4), 3, "192.0.2.66:666");
    proves(&mut binds, ms(5), "192.0.2.66:666");
    assert_eq!(binds.placed(pair("192.0.2.66:666", CONNECTOR), ms(6)), None);
    kept(&mut binds, ms(7), victim, first(2));
}

#[test]
fn what_is_nobodys_is_not_kept() {
    let other = secret(OTHER, Leg::Client).ticket;
    let of_connector = secret(SESSION, Leg::Connector).ticket;
    let mut binds = challenged();
    for datagram in [
        initial(&other, 1200, 1),
        initial(&of_connector, 1200, 1),
        initial(&[0xAB; TICKET_LEN], 1200, 1),
        initial(&ticket(), FIRST_LEN.start() - 1, 1),
        initial(&ticket(), FIRST_LEN.end() + 1, 1),
        vec![0; 1200],
    ] {
        kept(&mut binds, ms(1), CLIENT, datagram.into());
    }
    proves(&mut binds, ms(2), CLIENT);
    assert_eq!(binds.placed(pair(CLIENT, CONNECTOR), ms(3)), None);

    // A ticket that another one has replaced.
    let mut binds = challenged();
    let LegSecret { key, .. } = secret(SESSION, Leg::Client);
    binds.expect(SESSION, Leg::Client, LegSecret { key, ticket: [0xCD; TICKET_LEN] }).unwrap();
    kept(&mut binds, ms(1), CLIENT, first(1));
    kept(&mut binds, ms(1), CLIENT, initial(&[0xCD; TICKET_LEN], 1200, 2).into());
    let again = seal_answer(
        &secret(SESSION, Leg::Client).key,
        SESSION,
        Leg::Client,
        &[0xCD; TICKET_LEN],
        &Challenge { observed: address(CLIENT), nonce: NONCE },
    );
    binds.on_datagram(ms(2), from(CLIENT), &again, || panic!("nothing to ask"));
    let datagrams = binds.placed(pair(CLIENT, CONNECTOR), ms(3)).unwrap().datagrams;
    assert_eq!(datagrams, [initial(&[0xCD; TICKET_LEN], 1200, 2).into()]);
}

#[test]
fn what_has_waited_too_long_or_for_a_session_that_is_over_is_dropped() {
    let mut binds = challenged();
    kept(&mut binds, ms(1), CLIENT, first(1));
    kept(&mut binds, ms(2), CLIENT, first(2));
    proves(&mut binds, ms(3), CLIENT);
    assert_eq!(binds.placed(pair(CLIENT, CONNECTOR), ms(1) + CHALLENGE_LIFETIME), onward(&[2]));

    let mut binds = challenged();
    kept(&mut binds, ms(1), CLIENT, first(1));
    binds.remove(SESSION).unwrap();
    kept(&mut binds, ms(1), CLIENT, first(2));
    let next = SessionRef { generation: SESSION.generation + 1, ..SESSION };
    binds.register(next, terms()).unwrap();
    for leg in Leg::BOTH {
        binds.expect(next, leg, secret(next, leg)).unwrap();
    }
    assert_eq!(binds.placed(pair(CLIENT, CONNECTOR), ms(2)), None);
    establish(&mut binds, next, Leg::Connector, 1, CONNECTOR);
    establish(&mut binds, next, Leg::Client, 1, CLIENT);
    let of_next = Pair { session: next, ..pair(CLIENT, CONNECTOR) };
    assert_eq!(binds.placed(of_next, ms(3)), None, "another session in the same place");

    let mut binds = challenged();
    proves(&mut binds, ms(1), CLIENT);
    assert_eq!(binds.placed(pair(CLIENT, CONNECTOR), ms(2)), None);
    kept(&mut binds, terms().expires, CLIENT, first(1));
    assert!(binds.on_first(terms().expires - ms(1), from(CLIENT), first(1)).is_some(), "the control");
}

#[test]
fn few_are_held_of_one_session_and_not_many_of_all() {
    let mut binds = challenged();
    for mark in 1..=9 {
        kept(&mut binds, ms(1), CLIENT, first(mark));
    }
    proves(&mut binds, ms(2), CLIENT);
    assert_eq!(binds.placed(pair(CLIENT, CONNECTOR), ms(3)), onward(&[8, 9]), "the last two");

    let mut binds = Binds::new(own());
    let of = |index: u32| SessionRef { index, generation: 1 };
    let ticket = |index: u32| std::array::from_fn(|at| index.to_be_bytes()[at % 4]);
    let key = || BindKey::from_bytes([1; 32]);
    let place = |index: u32, leg: Leg| {
        let net = if leg == Leg::Client { 1 } else { 2 };
        format!("203.0.{net}.1:{}", 1000 + index)
    };
    for index in 0..600 {
        binds.register(of(index), terms()).unwrap();
        for leg in Leg::BOTH {
            binds.expect(of(index), leg, LegSecret { key: key(), ticket: ticket(index) }).unwrap();
        }
        for mark in [1, 2] {
            kept(&mut binds, ms(1), &place(index, Leg::Client), initial(&ticket(index), 1500, mark).into());
        }
    }
    let mut held = Vec::new();
    for index in 0..600 {
        for leg in Leg::BOTH {
            let at = place(index, leg);
            let bind = seal_bind(&key(), of(index), leg, &ticket(index), 1);
            binds.on_datagram(ms(2), from(&at), &bind, || NONCE);
            let challenge = Challenge { observed: address(&at), nonce: NONCE };
            let answer = seal_answer(&key(), of(index), leg, &ticket(index), &challenge);
            binds.on_datagram(ms(3), from(&at), &answer, || panic!("nothing to ask"));
        }
        let pair = binds.pair(of(index)).unwrap();
        held.push(binds.placed(pair, ms(4)).map_or(0, |onward| onward.datagrams.len()));
    }
    assert_eq!(held.iter().sum::<usize>(), 1024);
    assert!(held[..88].iter().all(|count| *count == 0) && held[88..].iter().all(|count| *count == 2));
}

/// Until policy has judged where a leg is now, it is nowhere: neither its new address nor its old one is served.
#[test]
fn what_a_leg_sends_from_where_it_has_moved_waits_until_that_is_placed() {
    const MOVED: &str = "192.0.2.99:5001";
    let (here, there) = (pair(CLIENT, CONNECTOR), pair(MOVED, CONNECTOR));
    let in_force = || {
        let mut binds = challenged();
        proves(&mut binds, ms(1), CLIENT);
        assert_eq!(binds.placed(here, ms(2)), None);
        assert_eq!(binds.on_first(ms(3), from(CLIENT), first(1)), onward(&[1]), "the control");
        binds
    };
    let moves = |binds: &mut Binds| {
        challenge(binds, ms(4), 2, MOVED);
        kept(binds, ms(5), MOVED, first(2));
        let done = binds.on_datagram(ms(6), from(MOVED), &answer(MOVED), || panic!("nothing to ask"));
        assert!(matches!(done[..], [Action::ReplaceLeg { .. }, _]), "{done:?}");
        kept(binds, ms(7), MOVED, first(3));
        kept(binds, ms(7), CLIENT, first(4));
    };
    let mut binds = in_force();
    moves(&mut binds);
    assert_eq!(binds.placed(here, ms(8)), None, "what was placed is not where it is");
    kept(&mut binds, ms(9), MOVED, first(5));
    let went_on = binds.placed(there, ms(10));
    assert_eq!(
        went_on,
        Some(Onward { pair: there, datagrams: vec![first(5)] }),
        "of the last two, one came from elsewhere"
    );
    assert_eq!(binds.on_first(ms(11), from(MOVED), first(6)).map(|onward| onward.pair), Some(there));
    kept(&mut binds, ms(12), CLIENT, first(7));

    // Policy says no: the session is over, and what was held goes with it.
    let mut binds = in_force();
    moves(&mut binds);
    binds.remove(SESSION).unwrap();
    assert_eq!(binds.placed(there, ms(8)), None);
    kept(&mut binds, ms(9), MOVED, first(8));

    // The other leg: what goes to where it is now has to be placed as well.
    let mut binds = in_force();
    let far = "203.0.113.21:6001";
    establish(&mut binds, SESSION, Leg::Connector, 2, far);
    kept(&mut binds, ms(5), CLIENT, first(9));
    let pair = pair(CLIENT, far);
    assert_eq!(binds.placed(pair, ms(6)), Some(Onward { pair, datagrams: vec![first(9)] }));
}

/// The session's ticket comes with the session, which is before what is sent to it.
#[test]
fn a_leg_that_binds_early_has_its_packets_held_too() {
    let (early, key) = (Early::new(77), || BindKey::from_bytes([0xEE; 32]));
    let mut binds = node();
    establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR);
    let (claim, _) = binds.expect_early(1, early, key(), ms(0), || NONCE).unwrap();
    let bind = seal_bind(&key(), early.session(), Leg::Client, &[5; TICKET_LEN], 1);
    assert_eq!(binds.on_datagram(ms(1), from(CLIENT), &bind, || NONCE).len(), 1);
    assert_eq!(binds.adopt(&claim, SESSION), []);
    kept(&mut binds, ms(2), CLIENT, first(1));
    let challenge = Challenge { observed: address(CLIENT), nonce: NONCE };
    let answer = seal_answer(&key(), early.session(), Leg::Client, &[5; TICKET_LEN], &challenge);
    assert_eq!(binds.placed(pair(CLIENT, CONNECTOR), ms(2)), None);
    let done = binds.on_datagram(ms(3), from(CLIENT), &answer, || panic!("nothing to ask"));
    assert!(matches!(done[..], [Action::Install(_), ..]));
    assert_eq!(binds.placed(pair(CLIENT, CONNECTOR), ms(4)), onward(&[1]));
}

#[test]
fn a_ticket_is_read_of_an_initial_and_of_nothing_else() {
    let good = initial(&ticket(), 1200, 0);
    assert_eq!(first_ticket(&good), Some(ticket()));
    // The lowest four bits are masked by header protection.
    let masked = [&[0xCF], &good[1..]].concat();
    assert_eq!(first_ticket(&masked), Some(ticket()));
    for (at, byte) in [(0, 0xD0), (0, 0xE0), (0, 0x83), (0, 0x43), (4, 2), (1, 1), (5, 15), (5, 20), (5, 0)] {
        let mut other = good.clone();
        other[at] = byte;
        assert_eq!(first_ticket(&other), None, "{at} {byte:#x}");
    }
    for length in 0..22 {
        assert_eq!(first_ticket(&good[..length]), None);
    }
}

//! Legs that bind before their session is there: what that saves, and that nobody gains anything else by it.

use super::super::node::{Action, CHALLENGE_LIFETIME, EarlyClaim};
use super::super::tuple::Early;
use super::super::wire::{Challenge, Nonce, REQUEST_LEN, seal_answer, seal_bind};
use super::node::{CLIENT, CONNECTOR, bind, establish, pair, ready, silent};
use super::*;

const EARLY: Early = Early::new(77);

/// Control connections.
const ANN: u64 = 1;
const EVE: u64 = 2;

fn early_key() -> BindKey {
    BindKey::from_bytes([0xee; 32])
}

fn other_key() -> BindKey {
    BindKey::from_bytes([1; 32])
}

fn early_bind(counter: u64) -> [u8; REQUEST_LEN] {
    seal_bind(&early_key(), EARLY.session(), Leg::Client, &[5; 16], counter)
}

fn early_answer(observed: &str, nonce: Nonce) -> [u8; REQUEST_LEN] {
    let challenge = Challenge { observed: address(observed), nonce };
    seal_answer(&early_key(), EARLY.session(), Leg::Client, &[5; 16], &challenge)
}

fn no_nonce() -> Nonce {
    panic!("nothing to ask")
}

/// A node that has the connector's leg, and expects the client's under an early name.
fn expecting() -> (Binds, EarlyClaim) {
    let mut binds = node();
    establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR);
    let (claim, came) = binds.expect_early(ANN, EARLY, early_key(), ms(0), no_nonce).unwrap();
    assert_eq!(came, []);
    (binds, claim)
}

/// The challenge that goes to `at`, and nothing but that.
fn is_challenge_to(actions: &[Action], at: &str) {
    let [Action::Send { to, datagram }] = actions else { panic!("{actions:?}") };
    assert_eq!(*to, from(at));
    assert!(datagram.len() <= REQUEST_LEN);
    assert!(Challenge::open(datagram, &early_key(), EARLY.session(), Leg::Client).is_some());
}

fn challenged(binds: &mut Binds, now: Duration, counter: u64, at: &str, nonce: Nonce) {
    is_challenge_to(&binds.on_datagram(now, from(at), &early_bind(counter), || nonce), at);
}

#[test]
fn what_was_proved_before_the_session_was_there_counts_for_it() {
    let installed =
        vec![Action::Install(pair(CLIENT, CONNECTOR)), ready(Leg::Client, 3), ready(Leg::Connector, 1)];
    for session_first in [true, false] {
        let (mut binds, claim) = expecting();
        challenged(&mut binds, ms(1), 3, CLIENT, [9; 8]);
        let adopted_before = if session_first { binds.adopt(&claim, SESSION) } else { Vec::new() };
        assert_eq!(adopted_before, []);
        let answered = binds.on_datagram(ms(2), from(CLIENT), &early_answer(CLIENT, [9; 8]), no_nonce);
        let adopted = if session_first { Vec::new() } else { binds.adopt(&claim, SESSION) };
        assert_eq!([answered, adopted].concat(), installed, "{session_first}");
        // From here on it is the session's leg, and has but its own name.
        silent(&mut binds, ms(3), CLIENT, &early_bind(4));
        silent(&mut binds, ms(3), CLIENT, &bind(SESSION, Leg::Client, 3));
        assert_eq!(establish(&mut binds, SESSION, Leg::Client, 4, CLIENT), [ready(Leg::Client, 4)]);
    }
}

#[test]
fn a_bind_that_overtakes_its_request_is_answered_when_that_comes() {
    let expect = |binds: &mut Binds, key, now| {
        let nonce = || [9; 8];
        binds.expect_early(ANN, EARLY, key, now, nonce).unwrap().1
    };
    let mut binds = node();
    silent(&mut binds, ms(0), CLIENT, &early_bind(1));
    is_challenge_to(&expect(&mut binds, early_key(), ms(999)), CLIENT);
    // Once.
    binds.forget_early_of(ANN);
    assert_eq!(expect(&mut binds, early_key(), ms(999)), []);

    // Not when it has waited too long, is under another key, or came from where a session's leg is.
    let mut binds = node();
    silent(&mut binds, ms(0), CLIENT, &early_bind(1));
    assert_eq!(expect(&mut binds, early_key(), ms(1000)), []);
    let mut binds = node();
    silent(&mut binds, ms(0), CLIENT, &early_bind(1));
    assert_eq!(expect(&mut binds, other_key(), ms(1)), []);
    let mut binds = node();
    silent(&mut binds, ms(0), CLIENT, &early_bind(1));
    establish(&mut binds, OTHER, Leg::Client, 1, CLIENT);
    assert_eq!(expect(&mut binds, early_key(), ms(1)), []);

    // The last few are kept, whoever sends more.
    let of = |name| seal_bind(&early_key(), Early::new(name).session(), Leg::Client, &[5; 16], 1);
    let mut binds = node();
    silent(&mut binds, ms(0), CLIENT, &early_bind(1));
    (1000..1064).for_each(|name| silent(&mut binds, ms(1), "192.0.2.66:666", &of(name)));
    assert_eq!(expect(&mut binds, early_key(), ms(2)), [], "the oldest has given way");
    let last = binds.expect_early(ANN, Early::new(1063), early_key(), ms(2), || [9; 8]).unwrap().1;
    assert_eq!(last.len(), 1, "{last:?}");
}

#[test]
fn an_early_name_opens_nothing_by_itself() {
    // Proved, but nobody's; and what is nobody's holds no address.
    let (mut binds, claim) = expecting();
    challenged(&mut binds, ms(1), 1, CLIENT, [9; 8]);
    silent(&mut binds, ms(2), CLIENT, &early_answer(CLIENT, [9; 8]));
    establish(&mut binds, OTHER, Leg::Client, 1, CLIENT);
    assert_eq!(binds.adopt(&claim, SESSION), [], "the address is another's by now");
    assert_eq!(binds.pair(SESSION), None);

    // Another's key, another leg, a repeated counter, somebody's own address, the node's, too late.
    let (mut binds, claim) = expecting();
    establish(&mut binds, OTHER, Leg::Client, 1, "192.0.2.44:44");
    challenged(&mut binds, ms(1), 2, CLIENT, [9; 8]);
    let of_connector = seal_bind(&early_key(), EARLY.session(), Leg::Connector, &[5; 16], 9);
    let forged = seal_bind(&other_key(), EARLY.session(), Leg::Client, &[5; 16], 9);
    for (now, at, datagram) in [
        (ms(2), CLIENT, of_connector),
        (ms(2), CLIENT, forged),
        (ms(2), CLIENT, early_bind(2)),
        (ms(2), CLIENT, early_bind(1)),
        (ms(2), "192.0.2.44:44", early_bind(3)),
        (ms(2), "198.51.100.1:8443", early_bind(4)),
        (ms(2), "224.0.0.1:5000", early_bind(5)),
        (ms(2), "192.0.2.66:666", early_answer(CLIENT, [9; 8])),
        (ms(2), CLIENT, early_answer(CLIENT, [8; 8])),
        (ms(2) + CHALLENGE_LIFETIME, CLIENT, early_answer(CLIENT, [9; 8])),
        (ms(60_000), CLIENT, early_bind(9)),
    ] {
        silent(&mut binds, now, at, &datagram);
    }
    binds.forget_early(&claim);
    silent(&mut binds, ms(3), CLIENT, &early_bind(10));
    assert_eq!(binds.adopt(&claim, SESSION), []);
    assert_eq!(binds.pair(SESSION), None);
}

/// A session that its leg has bound under its own name, or that is over, is not moved by what comes of the early one.
#[test]
fn an_early_leg_never_takes_the_place_of_one_that_is_bound() {
    let (mut binds, claim) = expecting();
    challenged(&mut binds, ms(1), 1, CLIENT, [9; 8]);
    assert_eq!(binds.adopt(&claim, SESSION), []);
    establish(&mut binds, SESSION, Leg::Client, 2, "192.0.2.77:77");
    silent(&mut binds, ms(2), CLIENT, &early_answer(CLIENT, [9; 8]));
    assert_eq!(binds.pair(SESSION), Some(pair("192.0.2.77:77", CONNECTOR)));

    let (mut binds, claim) = expecting();
    challenged(&mut binds, ms(1), 1, CLIENT, [9; 8]);
    silent(&mut binds, ms(2), CLIENT, &early_answer(CLIENT, [9; 8]));
    binds.remove(SESSION);
    let next = SessionRef { generation: SESSION.generation + 1, ..SESSION };
    binds.register(next, terms()).unwrap();
    binds.expect(next, Leg::Client, secret(next, Leg::Client)).unwrap();
    assert_eq!(binds.adopt(&claim, SESSION), [], "of another generation");
    assert_eq!(establish(&mut binds, OTHER, Leg::Client, 1, CLIENT), [], "the address is free");
}

/// Whoever asks under a name that is taken gets no claim, and a claim is good for one asking only.
#[test]
fn nobody_says_what_becomes_of_anothers_leg() {
    let (mut binds, claim) = expecting();
    assert!(binds.expect_early(EVE, EARLY, other_key(), ms(1), no_nonce).is_none(), "it is taken");
    assert!(binds.expect_early(ANN, EARLY, early_key(), ms(1), no_nonce).is_none(), "by herself, too");
    // The name passes to another when its time is up: the old claim does not.
    let (of_eve, _) = binds.expect_early(EVE, EARLY, other_key(), ms(10_000), no_nonce).unwrap();
    let proof = |counter| seal_bind(&other_key(), EARLY.session(), Leg::Client, &[5; 16], counter);
    assert_eq!(binds.on_datagram(ms(10_001), from(CLIENT), &proof(1), || [9; 8]).len(), 1);
    let challenge = Challenge { observed: address(CLIENT), nonce: [9; 8] };
    let answer = seal_answer(&other_key(), EARLY.session(), Leg::Client, &[5; 16], &challenge);
    silent(&mut binds, ms(10_002), CLIENT, &answer);
    assert_eq!(binds.adopt(&claim, SESSION), []);
    assert_eq!(binds.pair(SESSION), None);
    binds.forget_early(&claim);
    assert_eq!(binds.adopt(&of_eve, SESSION).len(), 3, "the control: it was hers to say");
}

#[test]
fn early_names_are_bounded_and_go_with_their_control_connection() {
    let (mut binds, _claim) = expecting();
    let asks = |binds: &mut Binds, owner: u64, count: u32| {
        let names = (0..count).map(|number| Early::new(1000 + u32::try_from(owner).unwrap() * 1000 + number));
        names.filter(|name| binds.expect_early(owner, *name, early_key(), ms(1), no_nonce).is_some()).count()
    };
    assert_eq!(asks(&mut binds, ANN, 500), 64 - 1);
    assert_eq!(asks(&mut binds, EVE, 500), 64, "whatever another does");
    let room: usize = (3..100).map(|owner| asks(&mut binds, owner, 64)).sum();
    assert_eq!(room, 4096 - 2 * 64);
    binds.forget_early_of(EVE);
    assert_eq!(asks(&mut binds, EVE, 500), 64);
    silent(&mut binds, ms(2), CLIENT, &early_bind(1)[..20]);
    challenged(&mut binds, ms(2), 1, CLIENT, [9; 8]);
    binds.forget_early_of(ANN);
    silent(&mut binds, ms(2), CLIENT, &early_bind(2));
    let later = binds.expect_early(200, Early::new(20_000), early_key(), ms(11_000), no_nonce);
    assert!(later.is_some(), "the others have had their time");
}

#[test]
fn a_ticket_is_read_of_early_names_only() {
    assert_eq!(Binds::early_ticket(&early_bind(1)), Some([5; 16]));
    assert_eq!(Binds::early_ticket(&bind(SESSION, Leg::Client, 1)), None);
    assert_eq!(Binds::early_ticket(b"something else"), None);
}

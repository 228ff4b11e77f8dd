//! What the node believes, and above all what not.

use super::super::node::{Action, CHALLENGE_LIFETIME, MOVE_PACE, RegisterError, Removed};
use super::super::tuple::{MAX_SESSIONS, Pair};
use super::super::wire::{Challenge, Nonce, REQUEST_LEN, seal_answer, seal_bind};
use super::*;

pub(super) const CLIENT: &str = "192.0.2.10:5000";
pub(super) const CONNECTOR: &str = "203.0.113.20:6000";

pub(super) fn bind(session: SessionRef, leg: Leg, counter: u64) -> [u8; REQUEST_LEN] {
    let LegSecret { key, ticket } = secret(session, leg);
    seal_bind(&key, session, leg, &ticket, counter)
}

fn answer(session: SessionRef, leg: Leg, observed: &str, nonce: Nonce) -> [u8; REQUEST_LEN] {
    let LegSecret { key, ticket } = secret(session, leg);
    seal_answer(&key, session, leg, &ticket, &Challenge { observed: address(observed), nonce })
}

/// A Bind and the answer to its challenge, from the same address.
pub(super) fn establish(
    binds: &mut Binds,
    session: SessionRef,
    leg: Leg,
    counter: u64,
    at: &str,
) -> Vec<Action> {
    let nonce = [u8::try_from(counter).unwrap(); 8];
    let sent = binds.on_datagram(ms(0), from(at), &bind(session, leg, counter), || nonce);
    let [Action::Send { to, datagram }] = sent[..] else { panic!("{sent:?}") };
    assert_eq!(to, from(at));
    assert!(datagram.len() <= REQUEST_LEN);
    let challenge = Challenge::open(&datagram, &secret(session, leg).key, session, leg).unwrap();
    assert_eq!(challenge, Challenge { observed: address(at), nonce });
    binds.on_datagram(ms(1), from(at), &answer(session, leg, at, nonce), || panic!("nothing to ask"))
}

pub(super) fn ready(leg: Leg, counter: u64) -> Action {
    Action::Ready { session: SESSION, leg, counter }
}

pub(super) fn pair(client: &str, connector: &str) -> Pair {
    Pair { session: SESSION, terms: terms(), client: from(client), connector: from(connector) }
}

pub(super) fn silent(binds: &mut Binds, now: Duration, at: &str, datagram: &[u8]) {
    assert_eq!(binds.on_datagram(now, from(at), datagram, || panic!("nothing to ask")), []);
}

#[test]
fn two_proven_legs_are_installed_and_told() {
    let mut binds = node();
    assert_eq!(establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR), []);
    assert_eq!(binds.pair(SESSION), None);
    let pair = pair(CLIENT, CONNECTOR);
    assert_eq!(
        establish(&mut binds, SESSION, Leg::Client, 4, CLIENT),
        [Action::Install(pair), ready(Leg::Client, 4), ready(Leg::Connector, 1)]
    );
    assert_eq!(binds.pair(SESSION), Some(pair));
    let [up, down] = pair.grants();
    assert_eq!((up.from, up.input, up.output), (Leg::Client, from(CLIENT), from(CONNECTOR)));
    assert_eq!((down.from, down.input, down.output), (Leg::Connector, from(CONNECTOR), from(CLIENT)));
}

#[test]
fn a_leg_moves_only_after_the_new_address_has_answered() {
    let mut binds = node();
    establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR);
    establish(&mut binds, SESSION, Leg::Client, 1, CLIENT);
    let moved = "192.0.2.99:5001";
    let sent = binds.on_datagram(ms(5), from(moved), &bind(SESSION, Leg::Client, 2), || [9; 8]);
    assert!(matches!(sent[..], [Action::Send { .. }]));
    assert_eq!(binds.pair(SESSION), Some(pair(CLIENT, CONNECTOR)), "the old leg stays");
    let done = binds.on_datagram(ms(6), from(moved), &answer(SESSION, Leg::Client, moved, [9; 8]), || [0; 8]);
    let pair = pair(moved, CONNECTOR);
    assert_eq!(
        done,
        [Action::ReplaceLeg { leg: Leg::Client, old: from(CLIENT), pair }, ready(Leg::Client, 2)]
    );
    // The address that was left is free for others.
    establish(&mut binds, OTHER, Leg::Client, 1, CLIENT);
}

/// Each move costs the node and everybody who waits for it; the first is at once, since the old place may be dead.
#[test]
fn a_leg_moves_once_a_second_and_is_then_where_it_bound_last() {
    let mut binds = node();
    establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR);
    establish(&mut binds, SESSION, Leg::Client, 1, CLIENT);
    let places = ["192.0.2.10:5001", "192.0.2.10:5002"];
    let mut moves = Vec::new();
    for number in 2..202_u8 {
        let counter = u64::from(number);
        let (at, now, nonce) = (places[usize::from(number % 2)], ms(10 * counter), [number; 8]);
        binds.on_datagram(now, from(at), &bind(SESSION, Leg::Client, counter), || nonce);
        let done = binds.on_datagram(now, from(at), &answer(SESSION, Leg::Client, at, nonce), || [0; 8]);
        match done[..] {
            [] => {}
            [Action::ReplaceLeg { .. }, Action::Ready { .. }] => moves.push(now),
            // Where it is already.
            [Action::Ready { .. }] => {}
            _ => panic!("{done:?}"),
        }
    }
    assert_eq!(moves, [ms(20), ms(1030)], "two seconds");
    // The connector's leg is another, and so is another session.
    let done = establish(&mut binds, SESSION, Leg::Connector, 2, "203.0.113.20:6001");
    assert!(matches!(done[..], [Action::ReplaceLeg { .. }, _]));
    // Nor does another key make it any faster; what was answered too early is taken when it is answered again.
    binds.expect(SESSION, Leg::Client, secret(OTHER, Leg::Client)).unwrap();
    binds.expect(SESSION, Leg::Client, secret(SESSION, Leg::Client)).unwrap();
    let (at, early, late) = ("192.0.2.10:5003", ms(2020), ms(1030) + MOVE_PACE);
    binds.on_datagram(early, from(at), &bind(SESSION, Leg::Client, 1), || [9; 8]);
    silent(&mut binds, early, at, &answer(SESSION, Leg::Client, at, [9; 8]));
    let done = binds.on_datagram(late, from(at), &answer(SESSION, Leg::Client, at, [9; 8]), || [0; 8]);
    assert!(matches!(done[..], [Action::ReplaceLeg { old, .. }, _] if old != from(at)));
}

#[test]
fn binding_again_from_the_same_place_changes_nothing_and_is_confirmed() {
    let mut binds = node();
    establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR);
    establish(&mut binds, SESSION, Leg::Client, 1, CLIENT);
    assert_eq!(establish(&mut binds, SESSION, Leg::Client, 2, CLIENT), [ready(Leg::Client, 2)]);
}

#[test]
fn a_counter_is_good_once_and_only_upwards() {
    let mut binds = node();
    silent(&mut binds, ms(0), CLIENT, &bind(SESSION, Leg::Client, 0));
    establish(&mut binds, SESSION, Leg::Client, 5, CLIENT);
    for counter in 0..=5 {
        silent(&mut binds, ms(2), CLIENT, &bind(SESSION, Leg::Client, counter));
        silent(&mut binds, ms(2), "192.0.2.66:666", &bind(SESSION, Leg::Client, counter));
    }
    // The other leg counts for itself.
    establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR);
}

#[test]
fn a_captured_answer_is_worth_nothing() {
    let mut binds = node();
    establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR);
    establish(&mut binds, SESSION, Leg::Client, 1, CLIENT);
    let captured = answer(SESSION, Leg::Client, CLIENT, [1; 8]);
    silent(&mut binds, ms(2), CLIENT, &captured);
    silent(&mut binds, ms(2), "192.0.2.66:666", &captured);
    // Nor while the same leg is being asked again.
    binds.on_datagram(ms(3), from(CLIENT), &bind(SESSION, Leg::Client, 2), || [2; 8]);
    silent(&mut binds, ms(4), CLIENT, &captured);
}

#[test]
fn a_bind_from_a_victims_address_is_one_short_datagram_to_the_victim() {
    let mut binds = node();
    establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR);
    let victim = "192.0.2.200:53";
    let sent = binds.on_datagram(ms(0), from(victim), &bind(SESSION, Leg::Client, 1), || [1; 8]);
    let [Action::Send { to, datagram }] = sent[..] else { panic!("{sent:?}") };
    assert!(to == from(victim) && datagram.len() <= REQUEST_LEN);
    // The cheat holds the key, but did not hear the nonce; and what it hears elsewhere is about elsewhere.
    silent(&mut binds, ms(1), victim, &answer(SESSION, Leg::Client, victim, [0; 8]));
    silent(&mut binds, ms(1), "192.0.2.66:666", &answer(SESSION, Leg::Client, victim, [1; 8]));
    silent(&mut binds, ms(1), "192.0.2.66:666", &answer(SESSION, Leg::Client, "192.0.2.66:666", [1; 8]));
    silent(&mut binds, ms(1), victim, &answer(SESSION, Leg::Client, "192.0.2.66:666", [1; 8]));
    assert_eq!(binds.pair(SESSION), None);
}

#[test]
fn a_nonce_that_one_address_heard_opens_no_other() {
    let mut binds = node();
    establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR);
    let (victim, cheat) = ("192.0.2.200:53", "192.0.2.66:666");
    let key = secret(SESSION, Leg::Client).key;
    let mut nonces = Vec::new();
    for (counter, at) in [(1, victim), (2, cheat), (3, victim)] {
        let fresh = [u8::try_from(counter).unwrap(); 8];
        let sent = binds.on_datagram(ms(0), from(at), &bind(SESSION, Leg::Client, counter), || fresh);
        let [Action::Send { to, datagram }] = sent[..] else { panic!("{sent:?}") };
        let asked = Challenge::open(&datagram, &key, SESSION, Leg::Client).unwrap();
        assert_eq!((to, asked.observed), (from(at), address(at)));
        nonces.push(asked.nonce);
    }
    assert_eq!(nonces, [[1; 8], [2; 8], [3; 8]]);
    // The cheat heard the second one only.
    silent(&mut binds, ms(1), victim, &answer(SESSION, Leg::Client, victim, nonces[1]));
    silent(&mut binds, ms(1), cheat, &answer(SESSION, Leg::Client, cheat, nonces[1]));
    assert_eq!(binds.pair(SESSION), None);
}

#[test]
fn a_challenge_is_for_one_local_side_too() {
    let mut binds = node();
    establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR);
    binds.on_datagram(ms(0), from(CLIENT), &bind(SESSION, Leg::Client, 1), || [1; 8]);
    let elsewhere = Tuple::new(address("198.51.100.2:443"), address(CLIENT));
    let done = binds.on_datagram(ms(1), elsewhere, &answer(SESSION, Leg::Client, CLIENT, [1; 8]), || [0; 8]);
    assert_eq!(done, []);
}

#[test]
fn a_challenge_ends_in_time_and_a_retry_does_not_prolong_it() {
    let late = CHALLENGE_LIFETIME;
    let mut binds = node();
    establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR);
    binds.on_datagram(ms(0), from(CLIENT), &bind(SESSION, Leg::Client, 1), || [1; 8]);
    let retry = binds.on_datagram(late - ms(1), from(CLIENT), &bind(SESSION, Leg::Client, 2), || [2; 8]);
    let [Action::Send { datagram, .. }] = retry[..] else { panic!("{retry:?}") };
    let key = secret(SESSION, Leg::Client).key;
    assert_eq!(
        Challenge::open(&datagram, &key, SESSION, Leg::Client).unwrap().nonce,
        [1; 8],
        "the same nonce"
    );
    silent(&mut binds, late, CLIENT, &answer(SESSION, Leg::Client, CLIENT, [1; 8]));
    // The next one asks anew, and a moment before its end still counts.
    assert_eq!(binds.on_datagram(late, from(CLIENT), &bind(SESSION, Leg::Client, 3), || [3; 8]).len(), 1);
    let just = late + CHALLENGE_LIFETIME - ms(1);
    let done =
        binds.on_datagram(just, from(CLIENT), &answer(SESSION, Leg::Client, CLIENT, [3; 8]), || [0; 8]);
    assert_eq!(done[0], Action::Install(pair(CLIENT, CONNECTOR)));
}

#[test]
fn another_sessions_or_legs_secret_opens_nothing() {
    let mut binds = node();
    let LegSecret { key, ticket } = secret(SESSION, Leg::Client);
    for (session, leg) in [(OTHER, Leg::Client), (OTHER, Leg::Connector), (SESSION, Leg::Connector)] {
        silent(&mut binds, ms(0), CLIENT, &seal_bind(&key, session, leg, &ticket, 1));
        // Even with the ticket of the leg that is claimed.
        silent(&mut binds, ms(0), CLIENT, &seal_bind(&key, session, leg, &secret(session, leg).ticket, 1));
    }
    let other_generation = SessionRef { generation: SESSION.generation + 1, ..SESSION };
    silent(&mut binds, ms(0), CLIENT, &seal_bind(&key, other_generation, Leg::Client, &ticket, 1));
    silent(&mut binds, ms(0), CLIENT, &seal_bind(&key, SESSION, Leg::Client, &[0xEE; 16], 1));
    let nobody = SessionRef { index: 99, generation: 0 };
    silent(&mut binds, ms(0), CLIENT, &seal_bind(&key, nobody, Leg::Client, &ticket, 1));
    // And nothing of that used up a counter.
    establish(&mut binds, SESSION, Leg::Client, 1, CLIENT);
}

#[test]
fn a_tuple_in_use_is_refused() {
    let mut binds = node();
    establish(&mut binds, SESSION, Leg::Client, 1, CLIENT);
    silent(&mut binds, ms(2), CLIENT, &bind(OTHER, Leg::Client, 1));
    silent(&mut binds, ms(2), CLIENT, &bind(SESSION, Leg::Connector, 1));
}

#[test]
fn of_two_that_answer_from_one_tuple_the_first_has_it() {
    let mut binds = node();
    for (session, counter) in [(SESSION, 1), (OTHER, 1)] {
        let sent = binds.on_datagram(ms(0), from(CLIENT), &bind(session, Leg::Client, counter), || [1; 8]);
        assert_eq!(sent.len(), 1, "a challenge reserves nothing");
    }
    binds.on_datagram(ms(1), from(CLIENT), &answer(OTHER, Leg::Client, CLIENT, [1; 8]), || [0; 8]);
    silent(&mut binds, ms(1), CLIENT, &answer(SESSION, Leg::Client, CLIENT, [1; 8]));
    establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR);
    assert_eq!(binds.pair(SESSION), None);
    assert_eq!(binds.remove(OTHER).unwrap().inputs, [from(CLIENT)]);
}

#[test]
fn nothing_leads_back_to_the_node_or_to_no_single_host() {
    let hostile = [
        "198.51.100.1:443",
        "198.51.100.1:8443",
        "[::ffff:198.51.100.1]:443",
        "192.0.2.10:0",
        "0.0.0.0:5000",
        "255.255.255.255:5000",
        "224.0.0.1:5000",
        "[::]:5000",
        "[ff02::1]:5000",
        "[fe80::1]:5000",
    ];
    let mut binds = node();
    for (counter, at) in (1..).zip(hostile) {
        silent(&mut binds, ms(0), at, &bind(SESSION, Leg::Client, counter));
    }
    // The node's address with a port that it does not serve is a program on the same host.
    establish(&mut binds, SESSION, Leg::Client, 50, "198.51.100.1:40000");
}

#[test]
fn an_address_that_becomes_the_nodes_own_cannot_answer() {
    let mut binds = node();
    establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR);
    let at = "192.0.2.77:443";
    binds.on_datagram(ms(0), from(at), &bind(SESSION, Leg::Client, 1), || [1; 8]);
    let mut grown = own();
    grown.addresses.insert(address(at).ip());
    binds.set_own(grown);
    silent(&mut binds, ms(1), at, &answer(SESSION, Leg::Client, at, [1; 8]));
}

#[test]
fn a_removed_or_expired_session_is_gone() {
    let mut binds = node();
    establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR);
    establish(&mut binds, SESSION, Leg::Client, 1, CLIENT);
    let stale = SessionRef { generation: SESSION.generation - 1, ..SESSION };
    assert_eq!(binds.remove(stale), None);
    let removed = Removed { session: SESSION, inputs: vec![from(CLIENT), from(CONNECTOR)] };
    assert_eq!(binds.remove(SESSION), Some(removed));
    assert_eq!((binds.remove(SESSION), binds.pair(SESSION)), (None, None));
    silent(&mut binds, ms(2), CLIENT, &bind(SESSION, Leg::Client, 2));
    // Its tuples are free, and what it said is worth nothing to the next one of this index, with whatever key.
    establish(&mut binds, OTHER, Leg::Client, 1, CLIENT);
    let next = SessionRef { generation: SESSION.generation + 1, ..SESSION };
    binds.register(next, terms()).unwrap();
    binds.expect(next, Leg::Client, secret(SESSION, Leg::Client)).unwrap();
    silent(&mut binds, ms(2), "192.0.2.10:5005", &bind(SESSION, Leg::Client, 2));

    let end = terms().expires;
    assert_eq!(binds.expire(end - ms(1)), []);
    let late = bind(OTHER, Leg::Client, 2);
    assert_eq!(binds.on_datagram(end, from(CLIENT), &late, || [0; 8]), [], "expired, if not yet swept");
    let expired = binds.expire(end);
    assert_eq!(expired.iter().map(|removed| removed.session).collect::<Vec<_>>(), [next, OTHER]);
    assert_eq!(expired[1].inputs, [from(CLIENT)]);
}

#[test]
fn a_new_control_connection_brings_a_new_key_and_the_leg_stays() {
    let mut binds = node();
    establish(&mut binds, SESSION, Leg::Connector, 1, CONNECTOR);
    establish(&mut binds, SESSION, Leg::Client, 9, CLIENT);
    // The same key, whatever its ticket, goes on counting.
    binds.expect(SESSION, Leg::Client, secret(SESSION, Leg::Client)).unwrap();
    silent(&mut binds, ms(2), CLIENT, &bind(SESSION, Leg::Client, 9));
    let key = BindKey::from_bytes([0xAB; 32]);
    binds.expect(SESSION, Leg::Client, LegSecret { key: key.clone(), ticket: [0xAB; 16] }).unwrap();
    assert_eq!(binds.pair(SESSION), Some(pair(CLIENT, CONNECTOR)));
    silent(&mut binds, ms(2), CLIENT, &bind(SESSION, Leg::Client, 10));
    let fresh = seal_bind(&key, SESSION, Leg::Client, &[0xAB; 16], 1);
    assert_eq!(binds.on_datagram(ms(3), from(CLIENT), &fresh, || [1; 8]).len(), 1);
}

#[test]
fn the_daemons_own_mistakes_are_named() {
    let mut binds = node();
    assert_eq!(binds.register(SESSION, terms()), Err(RegisterError::InUse(SESSION.index)));
    let beyond = SessionRef { index: MAX_SESSIONS, generation: 0 };
    assert_eq!(binds.register(beyond, terms()), Err(RegisterError::NoSuchIndex(MAX_SESSIONS)));
    let stale = SessionRef { generation: 0, ..SESSION };
    let expected = Err(RegisterError::Unknown(stale));
    assert_eq!(binds.expect(stale, Leg::Client, secret(SESSION, Leg::Client)), expected);
}

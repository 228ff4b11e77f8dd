//! The userspace relay's rules, one by one.

use super::super::tuple::{Grant, Pair};
use super::super::userspace::{Refused, Table, Usage};
use super::*;

const CLIENT: &str = "192.0.2.10:5000";
const CONNECTOR: &str = "[2001:db8::20]:6000";

fn pair() -> Pair {
    let connector = Tuple::new(address("[2001:db8::1]:443"), address(CONNECTOR));
    Pair { session: SESSION, terms: terms(), client: from(CLIENT), connector }
}

fn table() -> Table {
    let mut table = Table::default();
    table.set_epoch(terms().identity, terms().epoch);
    table.open(SESSION, terms());
    for grant in pair().grants() {
        assert!(table.install(grant));
    }
    table
}

fn judge(table: &Table, input: Tuple) -> Result<Tuple, Refused> {
    table.judge(ms(1), input).map(|passage| passage.output())
}

#[test]
fn both_directions_pass_across_families() {
    let table = table();
    assert_eq!(judge(&table, pair().client), Ok(pair().connector));
    assert_eq!(judge(&table, pair().connector), Ok(pair().client));
    let mapped = Tuple::new(address("[::ffff:198.51.100.1]:443"), address("[::ffff:192.0.2.10]:5000"));
    assert_eq!(judge(&table, mapped), Ok(pair().connector));
}

#[test]
fn every_part_of_the_tuple_counts() {
    let table = table();
    for (local, remote) in [
        ("198.51.100.1:443", "192.0.2.11:5000"),
        ("198.51.100.1:443", "192.0.2.10:5001"),
        ("198.51.100.2:443", "192.0.2.10:5000"),
        ("198.51.100.1:444", "192.0.2.10:5000"),
    ] {
        assert_eq!(judge(&table, Tuple::new(address(local), address(remote))), Err(Refused::NoFlow));
    }
}

#[test]
fn generation_epoch_and_expiry_are_compared_for_every_packet() {
    let mut table = table();
    let expires = terms().expires;
    assert!(table.judge(expires - Duration::from_nanos(1), pair().client).is_ok());
    assert_eq!(table.judge(expires, pair().client).map(|_| ()), Err(Refused::Expired));

    table.set_epoch(terms().identity + 1, 77);
    assert!(judge(&table, pair().client).is_ok(), "another person's");
    table.set_epoch(terms().identity, terms().epoch + 1);
    assert_eq!(judge(&table, pair().client), Err(Refused::Epoch));
    table.set_epoch(terms().identity, terms().epoch);

    let next = SessionRef { generation: SESSION.generation + 1, ..SESSION };
    table.open(next, terms());
    assert_eq!(judge(&table, pair().client), Err(Refused::Generation));
    assert_eq!(judge(&table, pair().connector), Err(Refused::Generation));
    assert!(!table.install(pair().grants()[0]), "a grant of the session that was");
    assert!(table.close(SESSION).is_none() && table.close(next).is_some());
    assert_eq!(judge(&table, pair().client), Err(Refused::Generation));
}

#[test]
fn an_epoch_that_was_never_set_is_zero_as_in_the_kernel() {
    let mut table = Table::default();
    table.open(SESSION, terms());
    assert!(table.install(pair().grants()[0]));
    assert_eq!(judge(&table, pair().client), Err(Refused::Epoch));
    table.open(SESSION, Terms { epoch: 0, ..terms() });
    assert!(judge(&table, pair().client).is_ok());
}

#[test]
fn nothing_is_reflected() {
    let mut table = table();
    let input = from("192.0.2.50:1");
    let node = node_address();
    for output in [
        input,
        Tuple::new(node, node),
        Tuple::new(address("198.51.100.1:8443"), node),
        Tuple::new(address("[2001:db8::1]:443"), address("[2001:db8::1]:443")),
    ] {
        assert!(!table.install(Grant { session: SESSION, from: Leg::Client, input, output }), "{output:?}");
        assert_eq!(judge(&table, input), Err(Refused::NoFlow));
    }
}

#[test]
fn a_direction_is_removed_by_its_session_only() {
    let mut table = table();
    assert!(!table.remove(OTHER, pair().client));
    assert!(table.remove(SESSION, pair().client) && !table.remove(SESSION, pair().client));
    assert_eq!(judge(&table, pair().client), Err(Refused::NoFlow));
    assert!(judge(&table, pair().connector).is_ok());
    assert!(table.len() == 1 && !table.is_empty());
}

#[test]
fn usage_is_in_ip_packets_and_survives_a_new_leg() {
    let mut table = table();
    table.judge(ms(1), pair().client).unwrap().count(3, 3000);
    table.judge(ms(1), pair().connector).unwrap().count(1, 100);
    let moved = Pair { client: from("192.0.2.11:1"), ..pair() };
    table.open(SESSION, terms());
    moved.grants().into_iter().for_each(|grant| assert!(table.install(grant)));
    table.judge(ms(1), moved.client).unwrap().count(1, 1);
    let used = [Usage { packets: 4, bytes: 3001 + 4 * 28 }, Usage { packets: 1, bytes: 100 + 48 }];
    assert_eq!(table.sent(SESSION).map(|sent| sent.all()), Some(used));
    assert_eq!(table.sent(SessionRef { generation: 0, ..SESSION }), None);
    assert_eq!(table.close(SESSION).map(|sent| sent.all()), Some(used));
    assert_eq!(table.sent(SESSION), None);
}

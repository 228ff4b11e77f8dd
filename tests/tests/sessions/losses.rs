//! What a session survives: the node, the client's address, a network that forgets; and what it does not: its connector.

use std::time::{Duration, Instant};

use anyhow::ensure;
use portcullis_tests::access::Machine;
use portcullis_tests::private_lab::{Forward, Plan, PrivateLab, becomes, echo_tcp};
use portcullis_tests::process::{Process, wait_until};
use rustix::process::Signal;

use crate::SOON;
use crate::conversation::Conversation;

/// On a busy machine an end may have taken TCP for a while before UDP answered.
const IN_KERNEL: (&str, &str) = ("kernel", "udp");

/// How long there is no node, at the least. What goes through the daemon waits for longer than that.
const DEAD: Duration = Duration::from_secs(3);

fn start(lab: &PrivateLab) -> (Machine, Forward) {
    let ann = lab.machine("ann").unwrap();
    let forward = Forward::start(&ann, &["tcp", "echo", "--listen", "127.0.0.1:0"]).unwrap();
    (ann, forward)
}

#[test]
fn a_killed_node_is_not_noticed_and_both_ends_come_back_to_the_next() {
    let mut lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let (ann, mut forward) = start(&lab);
    let conversation = Conversation::start(&lab, &forward);
    conversation.goes_on_until(&lab, &ann, IN_KERNEL);
    conversation.end();
    let conversation = Conversation::start(&lab, &forward);
    lab.node.process().unwrap().kill().unwrap();
    let dead = Instant::now();
    while dead.elapsed() < DEAD {
        conversation.goes_on();
    }
    lab.node.restart().unwrap();
    let back = Instant::now();
    forward.process.wait_for_output("connected to the node again", SOON).unwrap();
    wait_until("the session", SOON, || {
        let resumed = lab.events_of("connect", "echo", 2)?;
        Ok((resumed[1]["detail"] == "resumed after a restart").then_some(()))
    })
    .unwrap();
    assert!(back.elapsed() < Duration::from_secs(30), "after {:?}", back.elapsed());
    // Longer than sessions are kept for ends that do not come back.
    while back.elapsed() < Duration::from_secs(35) {
        conversation.goes_on();
    }
    let worst = conversation.end();
    assert!(worst < DEAD, "an answer took {worst:?}");
    becomes(&ann, "kernel").unwrap();
    wait_until("one session in the gate", SOON, || {
        Ok((lab.metric("portcullis_relay_sessions")? == 1).then_some(()))
    })
    .unwrap();
    // What the node before it has carried counts.
    lab.node.admin(&["session", "revoke", "--user", "ann@example.com"]).unwrap();
    forward.process.wait_for_output("an administrator revoked it", SOON).unwrap();
    let ended = &lab.events_of("disconnect", "echo", 1).unwrap()[0];
    assert!(ended["bytes_up"].as_u64().unwrap() > 0 && ended["bytes_down"].as_u64().unwrap() > 0, "{ended}");
}

/// Waits until what the gate relays is such.
fn await_flows(lab: &PrivateLab, is_such: impl Fn(&str) -> bool) {
    wait_until("the gate's flows", SOON, || {
        let flows = lab.node.admin(&["gate", "flows"])?;
        ensure!(is_such(&flows), "{flows}");
        Ok(Some(()))
    })
    .unwrap();
}

/// Moves an end from one address to the next; at each, the conversation goes on and the gate knows no other.
fn goes_on_from(
    lab: &PrivateLab,
    ann: &Machine,
    conversation: Conversation,
    addresses: [&str; 3],
    moves: impl Fn(&str, &str),
) {
    for [from, to] in addresses.array_windows() {
        moves(from, to);
        conversation.goes_on_until(lab, ann, IN_KERNEL);
        // What an end says of its path is of a moment ago.
        await_flows(lab, |flows| flows.contains(&format!("{to}:")) && !flows.contains(&format!("{from}:")));
    }
    let worst = conversation.end();
    assert!(worst < Duration::from_secs(12), "an answer took {worst:?}");
}

#[test]
fn a_client_that_changes_its_address_goes_on() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let (ann, forward) = start(&lab);
    let conversation = Conversation::start(&lab, &forward);
    goes_on_from(&lab, &ann, conversation, ["192.0.2.2", "192.0.2.77", "192.0.2.78"], |from, to| {
        lab.move_client(from, to).unwrap();
    });
    assert!(!forward.process.output().contains("is lost"), "{}", forward.process.output());
}

#[test]
fn a_connector_that_changes_its_address_goes_on() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let (ann, forward) = start(&lab);
    let conversation = Conversation::start(&lab, &forward);
    goes_on_from(&lab, &ann, conversation, ["198.51.100.2", "198.51.100.77", "198.51.100.78"], |from, to| {
        lab.move_office(from, to).unwrap();
    });
    assert_eq!(lab.events_of("connect", "echo", 1).unwrap().len(), 1, "it was one session all the time");
}

#[test]
fn a_connector_that_is_killed_is_told_of_and_found_again() {
    let mut lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let (_ann, mut forward) = start(&lab);
    let conversation = Conversation::start(&lab, &forward);
    lab.connector.take().unwrap().process.kill().unwrap();
    lab.start_connector().unwrap();
    let back = Instant::now();
    let told = "portcullis: echo: the session is over: the connector has restarted\n";
    forward.process.wait_for_output(told, SOON).unwrap();
    let after = back.elapsed();
    // Well before the connector would have been given up.
    assert!(after < Duration::from_secs(15), "after {after:?}");
    let _cut = conversation.cut();
    wait_until("another session", SOON, || echo_tcp(&lab.client, forward.address, b"again").map(Some))
        .unwrap();
    assert_eq!(
        forward.process.output().matches("the session is over").count(),
        1,
        "{}",
        forward.process.output()
    );

    let ended = lab.events_of("disconnect", "echo", 1).unwrap();
    assert_eq!((ended.len(), &ended[0]["detail"]), (1, &"connector_restarted".into()));

    // In good order it is told at once.
    let status = lab.connector.take().unwrap().process.terminate(SOON).unwrap();
    assert!(status.success());
    forward.process.wait_for_output("the connector ended the session: it stops", SOON).unwrap();
    assert!(echo_tcp(&lab.client, forward.address, b"again").is_err());
    lab.start_connector().unwrap();
    wait_until("another session", SOON, || echo_tcp(&lab.client, forward.address, b"again").map(Some))
        .unwrap();
}

#[test]
fn a_connector_that_falls_silent_is_told_of_within_seconds_and_given_up_in_half_a_minute() {
    let mut lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let (_ann, mut forward) = start(&lab);
    let conversation = Conversation::start(&lab, &forward);
    let connector = lab.connector.take().unwrap();
    connector.process.signal(Signal::STOP).unwrap();
    let silent = Instant::now();
    let told = |process: &mut Process, what: &str| {
        process.wait_for_output(&format!("portcullis: echo: {what}"), SOON).unwrap();
        silent.elapsed()
    };
    let waits = "nothing has come from the connector for ";
    let after = told(&mut forward.process, waits);
    assert!(after < Duration::from_secs(20), "after {after:?}");
    connector.process.signal(Signal::CONT).unwrap();
    told(&mut forward.process, "the connector is heard again");
    conversation.goes_on();

    // For good this time.
    let mut connector = connector;
    connector.process.kill().unwrap();
    let killed = Instant::now();
    let error = conversation.cut();
    let after = killed.elapsed();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    // No sooner than promised, give or take what its last heartbeat was ago.
    assert!((Duration::from_secs(25)..Duration::from_secs(50)).contains(&after), "after {after:?}");
    told(&mut forward.process, "the session is over: the connector is gone and did not come back");
    assert_eq!(forward.process.output().matches(waits).count(), 2, "{}", forward.process.output());
    let ended = lab.events_of("disconnect", "echo", 1).unwrap();
    assert_eq!((ended.len(), &ended[0]["detail"]), (1, &"connector_gone".into()));
    // Whoever comes then hears it within seconds.
    let asked = Instant::now();
    assert!(echo_tcp(&lab.client, forward.address, b"again").is_err());
    let after = asked.elapsed();
    assert!(after < Duration::from_secs(15), "after {after:?}");
    let gone = "the connector of `echo` is not connected: try again when it is";
    forward.process.wait_for_output(gone, SOON).unwrap();
}

/// UDP to the node leaves from other ports than the client knows, and then from those that it knows again: what an address
/// translator does that forgets.
#[test]
fn a_translator_that_forgets_is_survived() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let (ann, forward) = start(&lab);
    let conversation = Conversation::start(&lab, &forward);
    let translated = "192.0.2.2:61";
    let flows = lab.node.admin(&["gate", "flows"]).unwrap();
    assert!(!flows.contains(translated), "{flows}");
    // Like any translator, it lets in only what answers: an answer that came first would be taken for a beginning, and
    // what follows it would pass untranslated. So would what leaves while connections are followed and rules are not yet in
    // force: nothing is followed until they are.
    let unfollowed = "table ip early {\n chain out {\n type filter hook output priority -300;\n notrack\n }\n \
                      chain in {\n type filter hook prerouting priority -300;\n notrack\n }\n}\n";
    let translates = "table ip nat {\n chain out {\n type nat hook postrouting priority 100;\n \
                      ip daddr 192.0.2.1 udp dport 443 snat to 192.0.2.2:61000-61999\n }\n \
                      chain in {\n type filter hook prerouting priority -100;\n \
                      ip saddr 192.0.2.1 udp sport 443 ct state new drop\n }\n}\n";
    for rules in [unfollowed, &format!("{unfollowed}{translates}"), translates] {
        lab.client.nft(rules).unwrap();
    }
    conversation.goes_on_until(&lab, &ann, IN_KERNEL);
    await_flows(&lab, |flows| flows.contains(translated));
    lab.client.nft("").unwrap();
    conversation.goes_on_until(&lab, &ann, IN_KERNEL);
    await_flows(&lab, |flows| flows.contains("192.0.2.2:") && !flows.contains(translated));
    let worst = conversation.end();
    assert!(worst < Duration::from_secs(15), "an answer took {worst:?}");
}

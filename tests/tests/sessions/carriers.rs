//! Sessions where UDP to the node brings nothing: at the client, in the office, at both; from the beginning, and under a
//! session that runs.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::UdpSocket;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::ensure;
use portcullis_tests::private_lab::{Forward, Plan, PrivateLab, echo_tcp};
use portcullis_tests::process::wait_until;

use crate::SOON;
use crate::conversation::{Conversation, streams};
use crate::parties::{ssh, sshd};

#[test]
fn a_client_without_udp_has_sessions_all_the_same() {
    goes_on_whatever_udp_does(true, false);
}

#[test]
fn an_office_without_udp_has_sessions_all_the_same() {
    goes_on_whatever_udp_does(false, true);
}

#[test]
fn sessions_need_udp_at_neither_end() {
    goes_on_whatever_udp_does(true, true);
}

/// The TCP connections of before are bound to an address that is no more.
#[test]
fn sessions_over_tcp_survive_another_address_at_either_end() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let ann = lab.machine("ann").unwrap();
    lab.lose_udp(true, true).unwrap();
    let forward = Forward::start(&ann, &["tcp", "echo", "--listen", "127.0.0.1:0"]).unwrap();
    let conversation = Conversation::start(&lab, &forward);
    conversation.goes_on_until(&lab, &ann, ("userspace", "tcp"));
    lab.move_client("192.0.2.2", "192.0.2.77").unwrap();
    conversation.goes_on();
    lab.move_office("198.51.100.2", "198.51.100.77").unwrap();
    conversation.goes_on();
    let worst = conversation.end();
    println!("the longest wait was {worst:?}");
    assert!(worst < Duration::from_secs(12), "an answer took {worst:?}");
    let conversation = Conversation::start(&lab, &forward);
    conversation.goes_on_until(&lab, &ann, ("userspace", "tcp"));
    conversation.end();
    assert_eq!(lab.events_of("connect", "echo", 1).unwrap().len(), 1, "it was one session all the time");
}

/// A shell by OpenSSH that begins without a datagram, and stays the same when UDP comes back and is lost again.
#[test]
fn openssh_needs_no_udp() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let _sshd = sshd(&lab);
    let ann = lab.machine("ann").unwrap();
    lab.lose_udp(true, true).unwrap();
    let mut shell = ssh(&ann, "ssh")
        .args(["ann@shell", "while read x; do echo \"got $x\"; done; exit 42"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut typing = shell.stdin.take().unwrap();
    let mut screen = BufReader::new(shell.stdout.take().unwrap()).lines();
    let mut says = |word: &str| {
        writeln!(typing, "{word}").unwrap();
        assert_eq!(screen.next().unwrap().unwrap(), format!("got {word}"));
    };
    let mut becomes = |count: u64, path: &str| {
        wait_until(&format!("{count} streams"), SOON, || {
            says("words");
            Ok((streams(&lab) == count).then_some(()))
        })
        .unwrap();
        wait_until(path, SOON, || {
            says("words");
            let sessions = lab.node.admin(&["session", "list"])?;
            Ok(sessions.contains(path).then_some(()))
        })
        .unwrap();
    };
    becomes(5, "userspace");
    lab.lose_udp(false, false).unwrap();
    becomes(0, "kernel");
    lab.lose_udp(true, true).unwrap();
    becomes(5, "userspace");
    drop(typing);
    assert_eq!(shell.wait().unwrap().code(), Some(42));
    assert_eq!(lab.events_of("connect", "shell", 1).unwrap().len(), 1, "it was one session all the time");
}

fn goes_on_whatever_udp_does(at_client: bool, at_office: bool) {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let ann = lab.machine("ann").unwrap();
    let over_tcp = if at_client { "tcp" } else { "udp" };
    // Two connections of the connector's; the client's one; a leg at each end.
    let expected = u64::from(at_office) * 3 + u64::from(at_client) * 2;
    let all_streams = |count: u64| {
        wait_until(&format!("{count} streams"), SOON, || Ok((streams(&lab) == count).then_some(()))).unwrap();
    };

    // Without a datagram from the beginning.
    lab.lose_udp(at_client, at_office).unwrap();
    if at_office {
        all_streams(2);
    }
    let began = Instant::now();
    let forward = Forward::start(&ann, &["tcp", "echo", "--listen", "127.0.0.1:0"]).unwrap();
    echo_tcp(&lab.client, forward.address, &vec![7; 1 << 20]).unwrap();
    println!("a first megabyte came back after {:?}", began.elapsed());
    // Who has UDP may have taken TCP for a while, on a machine that is too busy to answer in time.
    let conversation = Conversation::start(&lab, &forward);
    conversation.goes_on_until(&lab, &ann, ("userspace", over_tcp));
    all_streams(expected);
    conversation.end();
    wait_until("the same as a table", SOON, || {
        let table = ann.ok(&["status"])?;
        ensure!(table.contains("userspace, over TCP") == at_client, "{table}");
        Ok(Some(()))
    })
    .unwrap();
    let datagrams = Forward::start(&ann, &["udp", "udpecho", "--listen", "127.0.0.1:0"]).unwrap();
    let socket = lab.client.enter(|| UdpSocket::bind(("127.0.0.1", 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    for size in [0, 1_200, 9_000] {
        socket.send_to(&vec![7; size], datagrams.address).unwrap();
        assert_eq!(socket.recv(&mut [0; 16_384]).unwrap(), size);
    }
    drop(datagrams);

    // It comes back: everything returns, and the gate relays.
    let conversation = Conversation::start(&lab, &forward);
    lab.lose_udp(false, false).unwrap();
    conversation.goes_on_until(&lab, &ann, ("kernel", "udp"));
    all_streams(0);
    let flows = lab.node.admin(&["gate", "flows"]).unwrap();
    assert!(flows.contains("192.0.2.2:") && !flows.contains("100::"), "{flows}");
    println!("the longest wait of a return was {:?}", conversation.end());

    // It goes under a session that runs.
    let conversation = Conversation::start(&lab, &forward);
    lab.lose_udp(at_client, at_office).unwrap();
    conversation.goes_on_until(&lab, &ann, ("userspace", over_tcp));
    all_streams(expected);
    let worst = conversation.end();
    println!("the longest wait of a fallback was {worst:?}");
    assert!(worst < Duration::from_secs(10), "an answer took {worst:?}");

    assert!(!forward.process.output().contains("is lost"), "{}", forward.process.output());
    assert_eq!(lab.events_of("connect", "echo", 1).unwrap().len(), 1, "it was one session all the time");
    drop(forward);
    let ended = &lab.events_of("disconnect", "echo", 1).unwrap()[0];
    for side in ["bytes_up", "bytes_down"] {
        assert!(ended[side].as_u64().unwrap() > 1 << 20, "{ended}");
    }
    assert_eq!((&ended["detail"], &ended["ip_address"]), (&"closed".into(), &"192.0.2.2".into()));
}

//! The whole way of a session, by the kernel where it can be, and by the daemon where it cannot.

use std::net::UdpSocket;
use std::process::Stdio;
use std::time::Duration;

use portcullis_tests::netns::Netns;
use portcullis_tests::private_lab::{Forward, Plan, PrivateLab, becomes, echo_tcp};
use portcullis_tests::process::wait_until;
use serde_json::Value;

use crate::SOON;

#[test]
fn a_person_reaches_applications_through_the_kernel() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let ann = lab.machine("ann").unwrap();
    let forward = Forward::start(&ann, &["tcp", "echo", "--listen", "127.0.0.1:0"]).unwrap();
    echo_tcp(&lab.client, forward.address, b"hello").unwrap();
    becomes(&ann, "kernel").unwrap();
    let before = lab.metric("portcullis_relay_bytes_total").unwrap();
    echo_tcp(&lab.client, forward.address, &vec![7; 8 << 20]).unwrap();
    wait_until("the gate's count of it", SOON, || {
        Ok((lab.metric("portcullis_relay_bytes_total")? > before + (16 << 20)).then_some(()))
    })
    .unwrap();
    assert_eq!(lab.metric("portcullis_relay_sessions").unwrap(), 1);

    // Standard input and output, to the end of both.
    let mut child =
        ann.command(&["tcp", "echo"]).unwrap().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"by a pipe").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"by a pipe");

    // Each session is one event when it begins and one when it ends, with what the gate has counted.
    drop(forward);
    let ended = lab.events_of("disconnect", "echo", 2).unwrap();
    assert_eq!(lab.events_of("connect", "echo", 2).unwrap().len(), 2);
    assert_eq!(ended.len(), 2);
    let big = ended.iter().max_by_key(|event| event["bytes_up"].as_u64()).unwrap();
    for side in ["bytes_up", "bytes_down"] {
        assert!(big[side].as_u64().unwrap() > 8 << 20, "{big}");
    }
    assert!(big["duration"].as_u64().unwrap() > 0, "{big}");
    assert_eq!((&big["user_email"], &big["connector"]), (&"ann@example.com".into(), &"hq".into()));
    assert_eq!((&big["detail"], &big["ip_address"]), (&"closed".into(), &"192.0.2.2".into()));
}

#[test]
fn datagrams_of_every_size_pass() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let ann = lab.machine("ann").unwrap();
    let forward = Forward::start(&ann, &["udp", "udpecho", "--listen", "127.0.0.1:0"]).unwrap();
    let socket = lab.client.enter(|| UdpSocket::bind(("127.0.0.1", 0))).unwrap().unwrap();
    socket.connect(forward.address).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.send(b"hello").unwrap();
    assert_eq!(socket.recv(&mut [0; 8]).unwrap(), 5);
    becomes(&ann, "kernel").unwrap();
    for size in [0, 1, 1_200, 1_472, 1_500, 9_000, 65_507] {
        let sent: Vec<u8> = (0..size).map(|at: u32| at.to_le_bytes()[0]).collect();
        socket.send(&sent).unwrap();
        let mut back = vec![0; 65_536];
        let length = socket.recv(&mut back).unwrap_or_else(|error| panic!("{size} bytes: {error}"));
        assert!(back[..length] == sent, "{length} of {size} bytes came back");
    }
    becomes(&ann, "kernel").unwrap();
}

#[test]
fn without_xdp_and_between_families_the_daemon_relays() {
    for (plan, expected) in [
        (Plan { dataplane: "userspace", client: 4, connector: 4 }, "userspace"),
        (Plan { dataplane: "xdp", client: 4, connector: 6 }, "userspace"),
        (Plan { dataplane: "xdp", client: 6, connector: 4 }, "userspace"),
        (Plan { dataplane: "xdp", client: 6, connector: 6 }, "kernel"),
    ] {
        let lab = PrivateLab::start(plan).unwrap();
        let ann = lab.machine("ann").unwrap();
        let forward = Forward::start(&ann, &["tcp", "echo", "--listen", "127.0.0.1:0"]).unwrap();
        echo_tcp(&lab.client, forward.address, &vec![7; 1 << 20]).unwrap();
        becomes(&ann, expected).unwrap_or_else(|error| panic!("{plan:?}: {error:#}"));
        drop(forward);
        let ended = &lab.events_of("disconnect", "echo", 1).unwrap()[0];
        for side in ["bytes_up", "bytes_down"] {
            assert!(ended[side].as_u64().unwrap() > 1 << 20, "{plan:?}: {ended}");
        }
    }
}

#[test]
fn one_process_keeps_what_a_file_says_and_lists_it() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let ann = lab.machine("ann").unwrap();
    let file = ann.home().join("forwards.toml");
    let text = "[[forward]]\napplication = \"echo\"\nlisten = \"127.0.0.1:7001\"\n\
                [[forward]]\napplication = \"other\"\nlisten = \"127.0.0.1:7002\"\n\
                [[forward]]\napplication = \"udpecho\"\nlisten = \"127.0.0.1:7001\"\nprotocol = \"udp\"\n";
    std::fs::write(&file, text).unwrap();
    let mut connect = Forward::start(&ann, &["connect", file.to_str().unwrap()]).unwrap();
    connect.process.wait_for_output("udpecho: listening on", SOON).unwrap();
    for port in [7001, 7002] {
        echo_tcp(&lab.client, ([127, 0, 0, 1], port).into(), b"hello").unwrap();
    }
    let socket = lab.client.enter(|| UdpSocket::bind(("127.0.0.1", 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.send_to(b"hello", ("127.0.0.1", 7001)).unwrap();
    assert_eq!(socket.recv(&mut [0; 16]).unwrap(), 5);
    let listed = wait_until("three forwards", SOON, || {
        let status: Value = serde_json::from_str(&ann.ok(&["status", "--json"])?)?;
        let forwards = status[0]["forwards"].as_array().cloned().unwrap_or_default();
        let are_there = forwards.len() == 3 && forwards.iter().all(|forward| forward["path"] == "kernel");
        Ok(are_there.then_some(()))
    });
    listed.unwrap();
    wait_until("the same as a table", SOON, || {
        Ok((ann.ok(&["status"])?.matches("kernel").count() == 3).then_some(()))
    })
    .unwrap();
}

#[test]
fn who_is_not_let_in_is_told_so_once() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let bob = lab.machine("bob").unwrap();
    for (number, args) in [
        &["tcp", "echo"][..],
        &["tcp", "echo", "--listen", "127.0.0.1:0"],
        &["udp", "echo", "--listen", "127.0.0.1:0"],
        &["ssh", "echo"],
    ]
    .into_iter()
    .enumerate()
    {
        let told = bob.fails(args).unwrap();
        assert!(told.contains("you are not allowed to reach `echo`"), "{args:?}: {told}");
        let events = lab.events_of("connect", "echo", number + 1).unwrap();
        assert_eq!(events.len(), number + 1, "one event for each");
        let event = &events[number];
        assert_eq!((&event["allowed"], &event["user_email"]), (&false.into(), &"bob@example.com".into()));
    }
    let told = bob.fails(&["tcp", "nothing"]).unwrap();
    assert!(told.contains("there is no private application `nothing`"), "{told}");
    assert_eq!(lab.metric("portcullis_relay_sessions").unwrap(), 0);
}

/// What the documentation gives to who shares a machine, word for word.
#[test]
fn the_documented_rule_keeps_other_users_from_a_udp_port() {
    let documented = include_str!("../../../docs/reference.md");
    let rule = documented.split("```\n").find(|block| block.starts_with("table inet portcullis-access"));
    let ns = Netns::new("udp-rule").unwrap();
    let port = ns.enter(|| UdpSocket::bind(("127.0.0.1", 5353))).unwrap().unwrap();
    port.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let hears = |uid: u32| {
        let sends = "import os, socket, sys\nos.setuid(int(sys.argv[1]))\n\
                     socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 5353))";
        let sent = ns.command("python3").args(["-c", sends, &uid.to_string()]).output().unwrap();
        let heard = port.recv(&mut [0; 8]).is_ok();
        assert_eq!(sent.status.success(), heard, "{}", String::from_utf8_lossy(&sent.stderr));
        heard
    };
    assert_eq!([0, 1000, 65_534].map(hears), [true; 3], "without it");
    ns.nft(rule.expect("a rule")).unwrap();
    assert_eq!([0, 1000, 65_534].map(hears), [true, true, false]);
}

//! Interfaces that go and come while the node runs.

use std::net::TcpListener;
use std::time::Duration;

use portcullis_tests::netns::veth;
use portcullis_tests::process::wait_until;

use crate::gated::{EDGE, Gated};

const PLANTED: u16 = 2222;
const PATIENCE: Duration = Duration::from_secs(30);

fn status_is(lab: &Gated, wanted: u16, text: &str) {
    wait_until(&format!("/readyz to say {wanted} {text}"), PATIENCE, || {
        let (status, body) = lab.ready();
        Ok((status == wanted && body.contains(text)).then_some(()))
    })
    .unwrap();
}

fn remake(lab: &Gated) {
    veth(&lab.stranger, "eth0", &lab.edge, "eth0").unwrap();
    lab.stranger.address("eth0", "198.18.40.2/24").unwrap();
    lab.edge.address("eth0", &format!("{EDGE}/24")).unwrap();
}

#[test]
fn an_interface_that_is_made_anew_is_guarded_again_at_once() {
    let mut lab = Gated::start();
    let _planted = lab.edge.enter(|| TcpListener::bind(("0.0.0.0", PLANTED)).unwrap()).unwrap();
    for _ in 0..3 {
        lab.edge.run("ip link delete eth0").unwrap();
        status_is(&lab, 503, "gate: down");
        remake(&lab);
        status_is(&lab, 200, "gate: up");
        assert!(lab.reaches(443) && lab.is_silent(PLANTED));
    }
    let events = lab.node.admin(&["events", "--json"]).unwrap();
    assert_eq!(
        events.matches("the gate is up on eth0, which came while the node ran").count(),
        3,
        "{events}"
    );
    // It is pinned like any other: it outlives the daemon.
    lab.node.process().unwrap().kill().unwrap();
    assert!(lab.is_silent(PLANTED));
    lab.node.admin(&["gate", "detach"]).unwrap();
    assert!(lab.reaches(PLANTED), "control");
}

#[test]
fn down_and_up_again_and_another_address_change_nothing() {
    let lab = Gated::start();
    let _planted = lab.edge.enter(|| TcpListener::bind(("0.0.0.0", PLANTED)).unwrap()).unwrap();
    for command in ["ip link set eth0 down", "ip link set eth0 up", "ip address add 198.18.40.77/24 dev eth0"]
    {
        lab.edge.run(command).unwrap();
    }
    wait_until("the link to be up", PATIENCE, || Ok(lab.reaches(443).then_some(()))).unwrap();
    assert!(lab.is_silent(PLANTED));
    let there = std::net::SocketAddr::from(([198, 18, 40, 77], PLANTED));
    let connect = || std::net::TcpStream::connect_timeout(&there, Duration::from_secs(1));
    assert!(lab.stranger.enter(connect).unwrap().is_err());
    status_is(&lab, 200, "gate: up");
}

/// What an administrator has taken down stays down: only a restart, or a new interface, brings the gate back.
#[test]
fn a_gate_that_was_detached_by_hand_stays_detached() {
    let lab = Gated::start();
    lab.node.admin(&["gate", "detach"]).unwrap();
    status_is(&lab, 503, "gate: down");
    remake_after_delete(&lab);
    wait_until("the refusal to be told", PATIENCE, || {
        let events = lab.node.admin(&["events", "--json"])?;
        Ok(events.contains("taken down by hand").then_some(()))
    })
    .unwrap();
    status_is(&lab, 503, "gate: down");
}

fn remake_after_delete(lab: &Gated) {
    lab.edge.run("ip link delete eth0").unwrap();
    remake(lab);
}

#[test]
fn a_second_interface_is_guarded_after_a_reload() {
    let lab = Gated::start();
    veth(&lab.stranger, "eth1", &lab.edge, "eth1").unwrap();
    lab.stranger.address("eth1", "198.18.41.2/24").unwrap();
    lab.edge.address("eth1", "198.18.41.1/24").unwrap();
    let _planted = lab.edge.enter(|| TcpListener::bind(("0.0.0.0", PLANTED)).unwrap()).unwrap();
    let reaches = |patience| {
        let there = std::net::SocketAddr::from(([198, 18, 41, 1], PLANTED));
        let connect = || std::net::TcpStream::connect_timeout(&there, patience).is_ok();
        lab.stranger.enter(connect).unwrap()
    };
    let silent = || !reaches(Duration::from_millis(500));
    assert!(reaches(PATIENCE), "control");
    let config = std::fs::read_to_string(lab.node.config()).unwrap();
    let more = config.replace("interfaces = [\"eth0\"]", "interfaces = [\"eth0\", \"eth1\"]");
    assert_ne!(config, more);
    std::fs::write(lab.node.config(), &more).unwrap();
    wait_until("eth1 to be guarded", PATIENCE, || {
        let status = lab.node.admin(&["gate", "status"])?;
        Ok((status.contains("eth0: up") && status.contains("eth1: up")).then_some(()))
    })
    .unwrap();
    assert!(silent());
    status_is(&lab, 200, "gate: up");
    // A typo is named, and the truth is told, but what is guarded stays so.
    std::fs::write(lab.node.config(), more.replace("\"eth1\"]", "\"eth1\", \"eth9\"]")).unwrap();
    status_is(&lab, 503, "gate: down");
    assert!(silent());
}

/// CAP_NET_ADMIN and CAP_BPF, by their numbers in include/uapi/linux/capability.h.
const KEPT: u64 = 1 << 12 | 1 << 39;

#[test]
fn the_helper_holds_two_capabilities_and_ends_with_the_daemon() {
    let mut lab = Gated::start();
    let pid = lab.node.process().unwrap().pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let helper: Vec<&str> = children.split_whitespace().collect();
    let [helper] = helper.as_slice() else { panic!("children: {children}") };
    let field = |name: &str| {
        let status = std::fs::read_to_string(format!("/proc/{helper}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    wait_until("the helper to be ready", PATIENCE, || Ok((field("NoNewPrivs:") == "1").then_some(())))
        .unwrap();
    for set in ["CapEff:", "CapPrm:"] {
        assert_eq!(u64::from_str_radix(&field(set), 16).unwrap(), KEPT, "{set}");
    }
    for set in ["CapInh:", "CapAmb:"] {
        assert_eq!(u64::from_str_radix(&field(set), 16).unwrap(), 0, "{set}");
    }
    lab.node.process().unwrap().kill().unwrap();
    let gone = || Ok((!std::path::Path::new(&format!("/proc/{helper}/exe")).exists()).then_some(()));
    wait_until("the helper to end", PATIENCE, gone).unwrap();
}

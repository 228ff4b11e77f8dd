//! The gate before the node: at boot, and for an interface that appears.

use std::net::TcpListener;

use portcullis_tests::netns::veth;

use crate::gated::{EDGE, Gated};

const PLANTED: u16 = 2222;

#[test]
fn the_gate_is_up_before_the_node_and_the_node_takes_it_over() {
    let mut lab = Gated::start();
    lab.node.process().unwrap().kill().unwrap();
    lab.node.admin(&["gate", "detach"]).unwrap();
    let listen = |port| lab.edge.enter(|| TcpListener::bind((EDGE, port)).unwrap()).unwrap();
    let planted = listen(PLANTED);
    let served = listen(443);
    assert!(lab.reaches(PLANTED), "control");

    let config = std::fs::read_to_string(lab.node.config()).unwrap();
    let more = config.replace("interfaces = [\"eth0\"]", "interfaces = [\"eth0\", \"eth1\"]");
    std::fs::write(lab.node.config(), more).unwrap();
    let told = lab.node.admin(&["gate", "up"]).unwrap();
    assert_eq!(told.trim(), "the gate is up: eth0");
    assert!(lab.reaches(443) && lab.is_silent(PLANTED));

    // What the rule in deploy does for a new interface; one that is not configured is none of its business.
    veth(&lab.stranger, "eth1", &lab.edge, "eth1").unwrap();
    assert_eq!(lab.node.admin(&["gate", "up", "--interface", "eth7"]).unwrap(), "");
    let told = lab.node.admin(&["gate", "up", "--interface", "eth1"]).unwrap();
    assert_eq!(told.trim(), "the gate is up: eth0, eth1");
    let program = || {
        let shown = lab.edge.run("ip -d link show eth0").unwrap();
        shown.split_once("prog/xdp id ").unwrap().1.split_whitespace().next().unwrap().to_owned()
    };
    let before = program();
    drop(served);
    lab.node.restart().unwrap();
    assert!(lab.reaches(443) && lab.is_silent(PLANTED));
    let shown = lab.edge.run("ip -d link show eth0").unwrap();
    assert!(shown.contains(&format!("prog/xdp id {before}")), "the same program: {shown}");
    drop(planted);
}

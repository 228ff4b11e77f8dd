//! The gate without XDP: nftables for the host, the same verdict on the node's own UDP sockets.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use portcullis::gate::{Dataplane, GateConfig};
use portcullis_common::{DropReason, PassReason, Verdict};

use portcullis_tests::gate::quic;

use crate::lab::{ANSWER, EDGE, Echo, Lab, SILENCE};
use crate::lifecycle::Holder;

fn config(lab: &Lab) -> GateConfig {
    let mut config = lab.config();
    config.dataplane = Dataplane::Userspace;
    for rule in ["192.0.2.2:22", "[2001:db8::2]:22", "192.0.2.0/24:161/udp", "[2001:db8::]/64:161/udp"] {
        config.admin.push(rule.parse().unwrap());
    }
    config
}

#[test]
fn a_stranger_reaches_the_served_port_an_administrator_his_own_and_answers_come_back() {
    let lab = Lab::new();
    let _planted: Vec<Echo> = [443, 22, 161, 8080].map(|port| Echo::on(&lab.edge, port)).into();
    let _servers: Vec<Echo> = [53, 7000].map(|port| Echo::on(&lab.stranger, port)).into();
    assert_eq!(lab.stranger_reaches_tcp(8080, ANSWER), [true; 2], "control");
    assert_eq!(lab.stranger_reaches_udp(8080, ANSWER), [true; 2], "control");
    for interfaces in [vec!["eth0".to_owned()], Vec::new()] {
        let _gate = lab.open(&GateConfig { interfaces, ..config(&lab) }).unwrap();
        assert_eq!(lab.stranger_reaches_tcp(443, ANSWER), [true; 2]);
        assert_eq!(lab.stranger_reaches_udp(443, ANSWER), [true; 2]);
        assert_eq!(lab.stranger_reaches_tcp(8080, SILENCE), [false; 2]);
        assert_eq!(lab.stranger_reaches_udp(8080, SILENCE), [false; 2]);
        assert_eq!(lab.stranger_reaches_tcp(22, ANSWER), [true; 2]);
        assert_eq!(lab.stranger_reaches_udp(22, SILENCE), [false; 2]);
        assert_eq!(lab.stranger_reaches_tcp(161, SILENCE), [false; 2]);
        assert_eq!(lab.stranger_reaches_udp(161, ANSWER), [true; 2]);
        assert_eq!(lab.edge_reaches_tcp(7000, ANSWER), [true; 2]);
        assert_eq!(lab.edge_reaches_udp(53, ANSWER), [true; 2]);
    }
}

#[test]
fn kill_nine_leaves_the_default_drop_and_detach_takes_it_down() {
    let lab = Lab::new();
    let _planted = Echo::on(&lab.edge, 8080);
    let mut holder = Holder::start(&lab, &["--userspace"]);
    holder.kill();
    assert_eq!(lab.stranger_reaches_tcp(8080, SILENCE), [false; 2]);
    let _again = lab.open(&config(&lab)).unwrap();
    assert_eq!(lab.stranger_reaches_tcp(8080, SILENCE), [false; 2]);
    let tables = lab.edge.run("nft list tables").unwrap();
    assert_eq!(tables.trim(), "table inet portcullis", "replaced, not added to");
    let status = lab.status();
    assert!(status.is_up() && status.to_string().contains("policy drop"), "{status}");
    assert_eq!(lab.detach(), ["nftables table inet portcullis"]);
    assert!(!lab.status().is_up());
    assert_eq!(lab.stranger_reaches_tcp(8080, ANSWER), [true; 2]);
}

#[test]
fn other_tables_are_left_alone() {
    let lab = Lab::new();
    lab.edge
        .nft("table inet theirs { chain c { type filter hook input priority 0; policy accept; }; }")
        .unwrap();
    let _gate = lab.open(&config(&lab)).unwrap();
    lab.detach();
    assert_eq!(lab.edge.run("nft list tables").unwrap().trim(), "table inet theirs");
}

#[test]
fn fragments_are_dropped_here_too() {
    let lab = Lab::new();
    let planted = Echo::on(&lab.edge, 443);
    let _gate = lab.open(&config(&lab)).unwrap();
    for address in EDGE {
        let to = SocketAddr::new(address.parse().unwrap(), 443);
        // Larger than the link's frames: it arrives in fragments.
        lab.stranger
            .enter(|| {
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = std::net::UdpSocket::bind(any).unwrap();
                socket.set_read_timeout(Some(SILENCE)).unwrap();
                socket.send_to(&[0; 4_000], to).unwrap();
                assert!(socket.recv(&mut [0; 8]).is_err(), "{to}");
            })
            .unwrap();
    }
    assert_eq!(planted.received.load(std::sync::atomic::Ordering::Relaxed), 0);
    let rules = lab.edge.run("nft list chain inet portcullis fragments").unwrap();
    assert!(!rules.contains("packets 0 bytes 0 drop comment \"fragment\""), "{rules}");
}

/// A stranger's datagrams to the tunnel, and what the node answers, leave nothing in the connection table.
#[test]
fn the_tunnel_port_is_not_tracked() {
    let lab = Lab::new();
    let _planted = Echo::on(&lab.edge, 443);
    let _gate = lab.open(&config(&lab)).unwrap();
    assert_eq!(lab.stranger_reaches_udp(443, ANSWER), [true; 2]);
    assert_eq!(tracked(&lab), 0);
    assert_eq!(lab.edge_reaches_udp(9, SILENCE), [false; 2]);
    assert!(tracked(&lab) > 0, "control: the host's own datagrams are tracked");
}

fn tracked(lab: &Lab) -> u32 {
    let path = "/proc/sys/net/netfilter/nf_conntrack_count";
    lab.edge.enter(|| std::fs::read_to_string(path)).unwrap().unwrap().trim().parse().unwrap()
}

#[test]
fn the_nodes_sockets_judge_each_datagram_and_count_it() {
    let lab = Lab::new();
    let gate = lab.open(&config(&lab)).unwrap();
    let datagrams = gate.datagrams().unwrap();
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    for (remote, local) in
        [("198.51.100.7:5000", "192.0.2.1:443"), ("[2001:db8:bad::7]:5000", "[2001:db8::1]:443")]
    {
        let opening = datagrams.admit(at(remote), at(local), &quic::initial(&[5; 20]));
        assert_eq!(opening, Verdict::Pass(PassReason::TunnelOpen));
        let forged = datagrams.admit(at(remote), at(local), &quic::short([5; 16], 60));
        assert_eq!(forged, Verdict::Drop(DropReason::TunnelId));
    }
    let elsewhere = datagrams.admit(at("198.51.100.7:5000"), at("192.0.2.1:444"), b"x");
    assert_eq!(elsewhere, Verdict::Drop(DropReason::UdpUnsolicited));
    let counters = gate.counters().unwrap();
    assert_eq!(counters.of(Verdict::Pass(PassReason::TunnelOpen)), 2);
    assert_eq!(counters.of(Verdict::Drop(DropReason::UdpUnsolicited)), 1);
    assert_eq!(counters.dropped(), 3);
}

#[test]
fn a_change_of_dataplane_leaves_one_gate_up() {
    let lab = Lab::new();
    let _planted = Echo::on(&lab.edge, 8080);
    for _ in 0..2 {
        let _xdp = lab.open(&lab.config()).unwrap();
        let status = lab.status();
        assert!(status.interfaces.len() == 1 && status.nftables.is_none(), "{status}");
        assert_eq!(lab.stranger_reaches_tcp(8080, SILENCE), [false; 2]);
        let _userspace = lab.open(&config(&lab)).unwrap();
        let status = lab.status();
        assert!(status.interfaces.is_empty() && status.nftables.is_some(), "{status}");
        assert_eq!(lab.stranger_reaches_tcp(8080, SILENCE), [false; 2]);
    }
}

#[test]
fn with_xdp_the_kernel_has_judged_already() {
    let lab = Lab::new();
    assert!(lab.open(&lab.config()).unwrap().datagrams().is_none());
}

/// Without nftables, or without the right to use it, there is no gate, and the node must know.
#[test]
fn a_default_drop_that_cannot_be_put_up_is_an_error() {
    let lab = Lab::new();
    let empty = tempfile::tempdir().unwrap();
    let broken = tempfile::tempdir().unwrap();
    let nft = broken.path().join("nft");
    std::fs::write(&nft, "#!/bin/sh\necho 'Operation not permitted' >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&nft, PermissionsExt::from_mode(0o755)).unwrap();
    for (path, expected) in [(empty.path(), "cannot run `nft`"), (broken.path(), "Operation not permitted")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gate_hold"));
        command.arg(&lab.pin.path).args(["--userspace", "--interface", "eth0"]).env("PATH", path);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(stderr.contains("nftables default-drop cannot be put up"), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
    }
}

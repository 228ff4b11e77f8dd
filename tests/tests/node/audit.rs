//! Audit mode: what would be dropped is seen before anything is cut off, and enforcing starts on trial.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portcullis_tests::process::wait_until;

use crate::gated::{EDGE, Gated};

const PLANTED: u16 = 2222;
const PATIENCE: Duration = Duration::from_secs(60);

fn plant(lab: &Gated) -> TcpListener {
    lab.edge.enter(|| TcpListener::bind((EDGE, PLANTED)).unwrap()).unwrap()
}

fn says(lab: &Gated, text: &str) {
    wait_until(&format!("/readyz to say {text}"), PATIENCE, || {
        let (status, body) = lab.ready();
        Ok((status == 200 && body.contains(text)).then_some(()))
    })
    .unwrap();
}

#[test]
fn in_audit_mode_drops_are_counted_and_told_and_not_done() {
    let lab = Gated::start_with("mode = \"audit\"");
    let _planted = plant(&lab);
    assert!(lab.reaches(PLANTED));
    says(&lab, "gate: up, audit mode");
    let status = lab.node.admin(&["gate", "status"]).unwrap();
    assert!(status.contains("audit mode") && status.contains("tcp_closed"), "{status}");
    wait_until("the drop to be told", PATIENCE, || {
        let metrics = lab.node.metrics()?;
        let counted =
            metrics.contains("portcullis_gate_packets_total{reason=\"tcp_closed\",verdict=\"drop\"}");
        let events = lab.node.admin(&["events", "--json"])?;
        let told = events.contains("not dropped (audit mode) tcp_closed");
        Ok((counted && told && metrics.contains("portcullis_gate_enforcing 0")).then_some(()))
    })
    .unwrap();
    let explained = ["gate", "explain", "--tcp", "198.18.40.2:5000", "198.18.40.1:2222"];
    let explained = lab.node.admin(&explained).unwrap();
    assert!(
        explained.contains("drop tcp_closed") && explained.contains("and the packet passes"),
        "{explained}"
    );
}

/// The deadline is the kernel's: the daemon is dead when it passes.
#[test]
fn a_trial_that_nobody_confirms_ends_with_the_daemon_dead() {
    let mut lab = Gated::start_with("mode = \"audit\"");
    let _planted = plant(&lab);
    // A machine that is too busy to look twice within a short trial gets a longer one.
    let in_time = [8, 30, 90].into_iter().any(|seconds| {
        let began = Instant::now();
        let within = format!("{seconds}s");
        let told = lab.node.admin(&["gate", "enforce", "--confirm-within", &within]).unwrap();
        assert!(told.contains("admin gate confirm"), "{told}");
        let silent = lab.is_silent(PLANTED);
        lab.node.process().unwrap().kill().unwrap();
        let both = silent && lab.is_silent(PLANTED);
        assert!(both || began.elapsed() >= Duration::from_secs(seconds), "the trial goes on");
        if !both {
            lab.node.restart().unwrap();
        }
        both
    });
    assert!(in_time, "this machine never looks twice within a trial");
    wait_until("the trial to end", PATIENCE, || Ok(lab.reaches(PLANTED).then_some(()))).unwrap();
    let status = lab.node.admin(&["gate", "status"]).unwrap();
    assert!(status.contains("audit mode"), "{status}");

    lab.node.restart().unwrap();
    says(&lab, "audit mode");
    assert!(lab.reaches(PLANTED));
    let error = lab.node.admin(&["gate", "confirm"]).unwrap_err().to_string();
    assert!(error.contains("no trial to confirm"), "{error}");
}

#[test]
fn a_confirmed_gate_enforces_after_every_restart_until_it_is_told_otherwise() {
    let mut lab = Gated::start_with("mode = \"audit\"");
    let _planted = plant(&lab);
    lab.node.admin(&["gate", "enforce", "--confirm-within", "60s"]).unwrap();
    says(&lab, "s more unless confirmed");
    // A restart neither ends the trial nor confirms it.
    lab.node.restart().unwrap();
    assert!(lab.is_silent(PLANTED));
    lab.node.admin(&["gate", "confirm"]).unwrap();
    says(&lab, "gate: up, enforcing\n");
    assert!(lab.node.metrics().unwrap().contains("portcullis_gate_enforcing 1"));
    // With every pin gone, only the store knows.
    lab.node.process().unwrap().kill().unwrap();
    lab.node.admin(&["gate", "detach"]).unwrap();
    assert!(lab.reaches(PLANTED), "control");
    lab.node.restart().unwrap();
    assert!(lab.is_silent(PLANTED));
    let status = lab.node.admin(&["status"]).unwrap();
    assert!(status.contains("\"confirmed\": true") && status.contains("\"enforcing\""), "{status}");

    lab.node.admin(&["gate", "audit"]).unwrap();
    assert!(lab.reaches(PLANTED));
    lab.node.restart().unwrap();
    assert!(lab.reaches(PLANTED));
    let events = wait_until("the mode to be told", PATIENCE, || {
        let events = lab.node.admin(&["events", "--json"])?;
        Ok(events.contains("audit mode: drops are counted, not done").then_some(events))
    })
    .unwrap();
    for told in ["gate enforce --confirm-within 60s", "gate confirm", "gate audit"] {
        let line = events.lines().find(|line| line.contains(&format!("\"detail\":\"{told}\""))).unwrap();
        assert!(line.contains("uid 0") && line.contains("\"action\":\"admin\""), "{line}");
    }
}

#[test]
fn a_configuration_that_enforces_is_not_talked_out_of_it() {
    let lab = Gated::start();
    for command in
        [vec!["gate", "audit"], vec!["gate", "enforce", "--confirm-within", "60s"], vec!["gate", "confirm"]]
    {
        let error = lab.node.admin(&command).unwrap_err().to_string();
        assert!(error.contains("mode = \"enforce\""), "{error}");
    }
    says(&lab, "gate: up, enforcing\n");
}

/// nftables has no deadline that outlives the daemon.
#[test]
fn in_userspace_audit_counts_and_a_trial_is_refused() {
    let lab = Gated::start_with("mode = \"audit\"\ndataplane = \"userspace\"");
    let _planted = plant(&lab);
    assert!(lab.reaches(PLANTED));
    let rules = lab.edge.run("nft list table inet portcullis").unwrap();
    assert!(rules.contains("policy accept") && !rules.contains(" drop comment"), "{rules}");
    let dropped = rules.lines().find(|line| line.contains("\"dropped\"")).unwrap();
    assert!(!dropped.contains("packets 0 "), "{dropped}");
    let error = lab.node.admin(&["gate", "enforce", "--confirm-within", "60s"]).unwrap_err().to_string();
    assert!(error.contains("userspace dataplane cannot enforce on trial"), "{error}");
    says(&lab, "audit mode");
}

/// Rates come from the kernel; sources from the node, if one runs.
#[test]
fn top_shows_rates_and_sources_and_says_when_no_node_knows_them() {
    let mut lab = Gated::start();
    let flood = |lab: &Gated| {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let socket = lab.stranger.enter(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
                while !over.load(Ordering::Relaxed) {
                    socket.send_to(b"?", (EDGE, PLANTED)).unwrap();
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            let told = lab.node.admin(&["gate", "top", "--seconds", "2"]);
            over.store(true, Ordering::Relaxed);
            told.unwrap()
        })
    };
    let told = flood(&lab);
    let row = told.lines().find(|line| line.starts_with("udp_unsolicited")).unwrap();
    let per_second: f64 = row.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((1.0..=220.0).contains(&per_second), "{told}");
    assert!(
        told.lines().any(|line| line.starts_with("198.18.40.0/24") && line.contains("udp_unsolicited")),
        "{told}"
    );

    lab.node.process().unwrap().kill().unwrap();
    let told = flood(&lab);
    assert!(told.contains("udp_unsolicited") && told.contains("sources are not known"), "{told}");
}

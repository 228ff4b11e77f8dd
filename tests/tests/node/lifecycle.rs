//! Start, refusal to start, and what is left when the daemon dies.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::Duration;

use portcullis_tests::portcullis::{binary, http_get};
use portcullis_tests::ports;
use portcullis_tests::process::wait_until;
use portcullis_tests::realm::{Plan, WIKI};

use crate::gated::{EDGE, Gated};

/// The capabilities, the filter and the flag, as `proc_pid_status(5)` shows them.
fn status_field(pid: u32, field: &str) -> String {
    field_of(&std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap(), field).to_owned()
}

fn field_of<'a>(status: &'a str, field: &str) -> &'a str {
    let line = status.lines().find(|line| line.starts_with(&format!("{field}:"))).unwrap();
    line.split_once(':').unwrap().1.trim()
}

#[test]
fn a_running_node_holds_no_privilege() {
    let mut realm = Plan::new().unwrap().start(true, &[], "").unwrap();
    let pid = realm.node.process().unwrap().pid();
    let mut looked_at = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        // One that had nothing to do may have ended meanwhile.
        let Ok(status) = std::fs::read_to_string(thread.unwrap().path().join("status")) else { continue };
        for field in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field_of(&status, field), "0000000000000000", "{field} in {status}");
        }
        assert_eq!(field_of(&status, "NoNewPrivs"), "1");
        assert_eq!(field_of(&status, "Seccomp"), "2");
        looked_at += 1;
    }
    assert!(looked_at > 1, "control: {looked_at}");
}

#[test]
fn a_node_becomes_the_user_it_is_told_to_and_gives_away_nothing_else() {
    let plan = Plan::new().unwrap();
    let dir = plan.path().to_owned();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut realm = plan.start(true, &[], "").unwrap();
    let text = std::fs::read_to_string(realm.node.config()).unwrap();
    std::fs::write(realm.node.config(), text.replacen("[node]\n", "[node]\nuser = \"nobody\"\n", 1)).unwrap();
    realm.node.restart().unwrap();
    let pid = realm.node.process().unwrap().pid();
    assert!(status_field(pid, "Uid").starts_with("65534\t65534\t65534"), "{}", status_field(pid, "Uid"));
    assert_eq!(status_field(pid, "Groups"), "65534");
    let owner = |path: &str| std::fs::metadata(dir.join(path)).unwrap().uid();
    assert_eq!([owner("node/state/store.sqlite"), owner("access.jsonl")], [65_534, 65_534]);
    assert_eq!(
        [owner("node.key"), owner("."), owner("node")],
        [0, 0, 0],
        "what is beside the log stays root's"
    );
    let web = realm.web("ann");
    let reply = realm.log_in(&web, &realm.url(WIKI, "/"), "ann", portcullis_tests::realm::PASSWORD).unwrap();
    assert_eq!(reply.status, 200);
    assert!(realm.node.admin(&["events"]).unwrap().contains("ann@example.com"));
}

#[test]
fn a_node_refuses_to_start_more_open_than_asked() {
    let realm = Plan::new().unwrap().start(true, &[], "").unwrap();
    let good = std::fs::read_to_string(realm.node.config()).unwrap();
    for (from, to, told) in [
        ("ungated = true", "ungaited = true", "unknown field `ungaited`"),
        ("node.pem", "gone.pem", "cannot be read"),
        ("node.pem", "ca.pem", ""),
        ("policies = [\"ops\"]", "policies = [\"opps\"]", "did you mean `ops`?"),
        ("ungated = true", "ungated = false", "names no interface"),
        ("ungated = true", "interfaces = [\"nosuch0\"]", "nosuch0"),
    ] {
        assert!(good.contains(from), "{from}");
        let path = realm.node.dir().join("other.toml");
        let mut text = good.replacen(from, to, 1).replace("admin.sock", "other.sock");
        for key in ["listen = \"127.0.0.1:", "metrics = \"127.0.0.1:"] {
            let (before, after) = text.split_once(key).unwrap();
            let rest = after.split_once('"').unwrap().1;
            text = format!("{before}{key}{}\"{rest}", ports::free().unwrap());
        }
        std::fs::write(&path, text).unwrap();
        let output = std::process::Command::new(binary().unwrap())
            .args(["node", "--config"])
            .arg(&path)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{to} was accepted");
        assert!(error.contains(told), "{to}: expected `{told}` in:\n{error}");
    }
}

#[test]
fn operators_see_health_and_nothing_of_it_is_public() {
    let realm = Plan::new().unwrap().start(true, &[], "").unwrap();
    let web = realm.web("stranger");
    for path in ["/metrics", "/healthz", "/readyz", "/debug", "/cdn-cgi/access/metrics", "/admin.sock"] {
        let reply = web.get(&realm.url("access.example.com", path)).unwrap();
        assert_eq!(reply.status, 404, "{path}");
    }
    assert!(realm.node.metrics().unwrap().contains("portcullis_gate_attached"));
}

#[test]
fn the_gate_outlives_the_daemon_and_a_restart_adopts_it() {
    let mut lab = Gated::start();
    let planted = lab.edge.enter(|| TcpListener::bind((EDGE, 2222)).unwrap()).unwrap();
    assert!(lab.reaches(443) && lab.is_silent(2222));
    let before = lab.node.admin(&["gate", "status"]).unwrap();
    assert!(before.contains("eth0: up"), "{before}");

    lab.node.process().unwrap().kill().unwrap();
    assert!(lab.is_silent(2222), "the planted listener is reachable with the daemon dead");

    lab.node.restart().unwrap();
    assert!(lab.reaches(443) && lab.is_silent(2222));
    let packets = |status: &str| -> u64 {
        let row = status.lines().find(|line| line.contains("tcp_closed")).unwrap();
        row.split_whitespace().last().unwrap().parse().unwrap()
    };
    let after = lab.node.admin(&["gate", "status"]).unwrap();
    assert!(packets(&after) > packets(&before), "counters go on from where they were:\n{after}");

    lab.node.process().unwrap().kill().unwrap();
    lab.node.admin(&["gate", "detach"]).unwrap();
    assert!(lab.reaches(2222), "the control: without the gate the planted listener is reachable");
    drop(planted);
}

#[test]
fn a_detached_gate_makes_the_node_unready_and_writes_an_event() {
    let lab = Gated::start();
    lab.node.admin(&["gate", "detach"]).unwrap();
    let events = lab.node.admin(&["events", "--json"]).unwrap();
    assert!(events.contains("gate detach: interface eth0") && events.contains("uid 0"), "{events}");
    wait_until("/readyz to say 503", Duration::from_secs(60), || {
        let (status, body) = http_get(Some(&lab.edge), ([127, 0, 0, 1], 9464).into(), "/readyz")?;
        Ok((status == 503 && body.contains("gate: down")).then_some(()))
    })
    .unwrap();
    assert!(lab.node.metrics().unwrap().contains("portcullis_gate_attached 0"));
    wait_until("the event of it", Duration::from_secs(60), || {
        Ok(lab.node.admin(&["events", "--denied"])?.contains("no longer attached").then_some(()))
    })
    .unwrap();
}

#[test]
fn without_xdp_the_rest_is_dropped_by_nftables_or_the_node_does_not_start() {
    let lab = Gated::start();
    let config = std::fs::read_to_string(lab.node.config()).unwrap();
    lab.node.admin(&["gate", "detach"]).unwrap();
    let mut lab = lab;
    lab.node.process().unwrap().kill().unwrap();
    let planted = lab.edge.enter(|| TcpListener::bind((EDGE, 2222)).unwrap()).unwrap();
    assert!(lab.reaches(2222), "the control");

    let userspace = config.replace("[gate]\n", "[gate]\ndataplane = \"userspace\"\n");
    std::fs::write(lab.node.config(), &userspace).unwrap();
    lab.node.restart().unwrap();
    assert!(lab.reaches(443) && lab.is_silent(2222));
    lab.node.process().unwrap().kill().unwrap();
    assert!(lab.is_silent(2222), "the default-drop outlives the daemon");

    // Without the means to drop, the node must not start.
    let output = lab
        .edge
        .command("/usr/bin/env")
        .arg("PATH=/nonexistent")
        .arg(binary().unwrap())
        .args(["node", "--config"])
        .arg(lab.node.config())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("the gate cannot be put up"), "{error}");
    drop(planted);
}

#[test]
fn running_requests_end_before_a_stop() {
    let mut realm = Plan::new().unwrap().start(true, &[], "").unwrap();
    let web = realm.web("ann");
    let reply = realm.log_in(&web, &realm.url(WIKI, "/"), "ann", portcullis_tests::realm::PASSWORD).unwrap();
    assert_eq!(reply.status, 200);
    let status = realm.node.process().unwrap().terminate(Duration::from_secs(60)).unwrap();
    assert!(status.success(), "{status}");
    let log = std::fs::read_to_string(realm.dir.path().join("access.jsonl")).unwrap();
    assert!(log.lines().last().unwrap().contains("\"action\":\"stop\""), "{log}");
}

#[test]
fn the_metrics_listener_survives_nonsense() {
    let realm = Plan::new().unwrap().start(true, &[], "").unwrap();
    let text = realm.node.metrics().unwrap();
    assert!(text.contains("portcullis_sessions 0"));
    let config = std::fs::read_to_string(realm.node.config()).unwrap();
    let address = config.split("metrics = \"").nth(1).unwrap().split('"').next().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"\x16\x03\x01 nonsense\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(realm.node.metrics().is_ok());
}

//! What people run works.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use portcullis_tests::desk::{Screen, Xrdp};
use portcullis_tests::netns::run;
use portcullis_tests::private_lab::{Forward, Plan, PrivateLab, becomes};
use portcullis_tests::process::{Process, wait_until};
use serde_json::Value;

use super::{dig, dnsmasq, iperf3, launch, postgres, psql, ssh, sshd};
use crate::SOON;

/// What `scp` carries, in MiB.
const BIG: u64 = 1024;

/// What iperf3 sends by TCP, in bytes.
const STREAMED: u64 = 128 << 20;

/// The most that a socket holds in the tests of TCP.
const SOCKET_BUFFER: u64 = 256 << 10;

/// What one connection has under way at the most when its sender ends: the window of its stream, four sockets, and what
/// each end has in its hands, which is less than two sockets.
const IN_FLIGHT: u64 = (4 << 20) + 6 * SOCKET_BUFFER;

/// Bits a second that iperf3 sends by UDP.
const DATAGRAMS_RATE: u64 = 10_000_000;

fn checksum(path: &Path) -> String {
    let out = run(Command::new("sha256sum").arg(path)).unwrap();
    out.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn a_shell_a_command_and_its_status_pass() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let _sshd = sshd(&lab);
    let ann = lab.machine("ann").unwrap();
    let output = ssh(&ann, "ssh").args(["ann@shell", "id -un; echo oops >&2; exit 42"]).output().unwrap();
    assert_eq!(output.status.code(), Some(42), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"ann\n");
    assert_eq!(output.stderr, b"oops\n");

    // A terminal, typed at.
    let mut shell = ssh(&ann, "ssh")
        .args(["-tt", "deploy@shell"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdin.as_mut().unwrap().write_all(b"read x; echo \"got $x on $(tty)\"; exit 7\nwords\n").unwrap();
    let output = shell.wait_with_output().unwrap();
    let screen = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(7), "{screen}");
    assert!(screen.contains("got words on /dev/pts/"), "{screen}");

    // Who has no name there is not let in by the server.
    assert_eq!(ssh(&ann, "ssh").args(["root@shell", "true"]).output().unwrap().status.code(), Some(255));
}

#[test]
fn heavy_a_large_file_arrives_whole() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let _sshd = sshd(&lab);
    let ann = lab.machine("ann").unwrap();
    let (big, copy) = (lab.dir.join("big"), Path::new("/var/tmp").join(lab.edge.name()));
    let mut random = fs::File::open("/dev/urandom").map(|file| std::io::Read::take(file, BIG << 20)).unwrap();
    std::io::copy(&mut random, &mut fs::File::create(&big).unwrap()).unwrap();
    let to = format!("deploy@shell:{}", copy.display());
    let status = ssh(&ann, "scp").arg(&big).arg(&to).status().unwrap();
    assert!(status.success());
    assert_eq!(checksum(&copy), checksum(&big));
    fs::remove_file(&copy).unwrap();
    let ended = &lab.events_of("disconnect", "shell", 1).unwrap()[0];
    assert!(ended["bytes_up"].as_u64().unwrap() > BIG << 20, "{ended}");
    fs::remove_file(&big).unwrap();
}

#[test]
fn a_database_answers() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let _postgres = postgres(&lab);
    let ann = lab.machine("ann").unwrap();
    let _forward = Forward::start(&ann, &["tcp", "db", "--listen", "127.0.0.1:5432"]).unwrap();
    let rows = run(&mut psql(&lab, "select sum(n), count(*) from generate_series(1, 1000) n")).unwrap();
    assert_eq!(rows, "500500|1000\n");
    let rows = run(&mut psql(&lab, "select repeat('x', 1000) from generate_series(1, 20000)")).unwrap();
    assert_eq!(rows.len(), 20_000 * 1_001);
    becomes(&ann, "kernel").unwrap();
    assert_eq!(psql(&lab, "select 1 / 0").output().unwrap().status.code(), Some(1));
}

#[test]
fn names_are_resolved_by_answers_of_every_size() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let _dns = dnsmasq(&lab);
    let ann = lab.machine("ann").unwrap();
    let forward = Forward::start(&ann, &["udp", "dns", "--listen", "127.0.0.1:0"]).unwrap();
    let dig = |args: &[&str]| {
        let mut command = dig(&lab, forward.address.port());
        run(command.args(["+tries=3", "+time=5"]).args(args)).unwrap()
    };
    assert_eq!(dig(&["+short", "printer.office.test"]).trim(), "10.1.2.3");
    let large = dig(&["+bufsize=8192", "+ignore", "large.office.test", "TXT"]);
    assert!(large.contains("ANSWER: 14"), "{large}");
    let size = large.lines().find_map(|line| line.split_once("MSG SIZE  rcvd: ")).unwrap().1;
    assert!(size.trim().parse::<u32>().unwrap() > 3_500, "{large}");
    becomes(&ann, "kernel").unwrap();
}

#[test]
fn heavy_iperf3_receives_what_it_sent_both_ways() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    for end in [&lab.client, &lab.office] {
        for buffers in ["net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem"] {
            end.sysctl(buffers, &format!("4096 65536 {SOCKET_BUFFER}")).unwrap();
        }
    }
    let ann = lab.machine("ann").unwrap();
    let _forward = Forward::start(&ann, &["tcp", "perf", "--listen", "127.0.0.1:5201"]).unwrap();
    for args in [&["--parallel", "4"][..], &["--parallel", "4", "--reverse"]] {
        let result = measured(&lab, 5201, &[&["--bytes", &STREAMED.to_string()], args].concat());
        let bytes = |of: &str| result["end"][of]["bytes"].as_u64().unwrap();
        // Each end's own count: they tell each other when it is over.
        let (sent, received) = (bytes("sum_sent"), bytes("sum_received"));
        assert!(sent >= STREAMED, "{args:?}: {sent} bytes sent: {result}");
        assert!(
            received <= sent && sent - received <= 4 * IN_FLIGHT,
            "{args:?}: {received} bytes received of {sent}: {result}"
        );
    }
    assert_eq!(lab.metric("portcullis_relay_sessions").unwrap(), 1);
}

/// iperf3 speaks TCP about the datagrams that it counts: two sessions under one port.
#[test]
fn heavy_iperf3_counts_datagrams_both_ways() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let ann = lab.machine("ann").unwrap();
    let _control = Forward::start(&ann, &["tcp", "perf-control", "--listen", "127.0.0.1:5202"]).unwrap();
    let _data = Forward::start(&ann, &["udp", "perf-udp", "--listen", "127.0.0.1:5202"]).unwrap();
    for (length, args) in [(1_000, &[][..]), (1_000, &["--reverse"]), (8_000, &[]), (8_000, &["--reverse"])] {
        let (bits, bytes) = (DATAGRAMS_RATE.to_string(), length.to_string());
        let udp = ["--udp", "--time", "2", "--bitrate", &bits, "--length", &bytes];
        let without_room = || {
            let ends = [&lab.client, &lab.edge, &lab.office];
            ends.map(|netns| netns.datagrams_without_room().unwrap()).iter().sum::<u64>()
        };
        let full = without_room();
        let result = measured(&lab, 5202, &[&udp, args].concat());
        let (sent, received) = (&result["end"]["sum_sent"], &result["end"]["sum_received"]);
        let of = |sum: &Value, what: &str| sum[what].as_u64().unwrap();
        // What the sender has sent, what the receiver says that it got, and the gaps that it saw.
        let (sent, got, lost) =
            (of(sent, "packets"), of(received, "bytes") / length, of(received, "lost_packets"));
        let full = without_room() - full;
        let told =
            format!("{length} {args:?}: {got} of {sent}, {lost} lost, {full} for want of room: {result}");
        let second = DATAGRAMS_RATE / 8 / length;
        assert!(sent > second, "{told}");
        assert!(lost <= sent / 100 + full, "{told}");
        // What was under way at the end is neither: at the most a quarter of a second.
        assert!(got <= sent && got + lost + second / 4 >= sent, "{told}");
    }
    assert_eq!(lab.metric("portcullis_relay_sessions").unwrap(), 2);
}

/// What iperf3 prints of a measurement, by a server of its own: one that ends the measurement before is busy.
fn measured(lab: &PrivateLab, port: u16, args: &[&str]) -> Value {
    let _server = iperf3(lab, port);
    let mut command = lab.client.command("iperf3");
    command.args(["--client", "127.0.0.1", "--port", &port.to_string(), "--json"]).args(args);
    let result: Value = serde_json::from_str(&run(&mut command).unwrap()).unwrap();
    // Its exit status does not tell.
    assert_eq!(result.get("error"), None, "{result}");
    result
}

#[test]
fn a_desktop_is_seen_by_the_client_that_access_launches() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let _xrdp = Xrdp::start(&lab.office, &lab.dir.join("xrdp"), 3389).unwrap();
    let screen = Screen::start(&lab.dir).unwrap();
    let ann = lab.machine("ann").unwrap();
    // It ends with its client, and as well as that did.
    assert!(launch(&ann, &screen, &["/p:x", "+auth-only"]).status().unwrap().success());
    let refused = launch(&ann, &screen, &["/no-such-option"]).output().unwrap();
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains("xfreerdp ended with"), "{told}");

    assert_eq!(screen.colours().unwrap(), 1);
    let mut access = Process::spawn("access", launch(&ann, &screen, &[])).unwrap();
    access
        .wait_until("show the login window", SOON, |_| Ok((screen.colours()? > 100).then_some(())))
        .unwrap();
    becomes(&ann, "kernel").unwrap();
    let status = access.terminate(SOON).unwrap();
    assert_eq!(status.code(), Some(128 + 15));
    wait_until("the client to end, too", SOON, || Ok((screen.colours()? == 1).then_some(()))).unwrap();
}

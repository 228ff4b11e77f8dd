//! `explain`: the same verdict as the kernel's, from the maps that the kernel uses, with the daemon dead.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path as FilePath;
use std::time::{Duration, Instant};

use portcullis::gate::{Explainer, Explanation};
use portcullis_common::{DropReason, PassReason, Verdict};
use portcullis_tests::gate::packet::{ACK, Path, SYN};
use portcullis_tests::gate::quic;
use portcullis_tests::gate::wire::Wire;
use portcullis_tests::portcullis::binary;

use crate::lab::{ANSWER, EDGE, Lab, STRANGER, mac, settle};
use crate::lifecycle::Holder;

fn explain(lab: &Lab, frame: &[u8]) -> Explanation {
    lab.edge.enter(|| Explainer::open(&lab.pin.path).unwrap().explain(frame, 2)).unwrap()
}

/// Each packet is explained, then sent: the counter of the explained verdict rises. Nobody holds the gate.
#[test]
fn the_explained_verdict_is_the_one_that_the_kernel_counts() {
    let lab = Lab::new();
    let _listener = lab.edge.enter(|| TcpListener::bind("[::]:443").unwrap()).unwrap();
    let options = ["--admin", "192.0.2.2:22", "--admin", "[2001:db8::2]:22"];
    Holder::start(&lab, &options).kill();
    let wire = Wire::on(&lab.stranger, "eth0").unwrap();
    let mac = mac(&lab.edge);
    for (remote, local) in STRANGER.into_iter().zip(EDGE) {
        let to = SocketAddr::new(local.parse().unwrap(), 443);
        let stream = lab.stranger.enter(|| TcpStream::connect(to)).unwrap().unwrap();
        let open = stream.local_addr().unwrap().port();
        let path = Path::new(remote, local);
        let drop = Verdict::Drop;
        for (frame, verdict, told) in [
            (
                path.tcp(50_000, 443, SYN, 1, 0),
                Verdict::Pass(PassReason::TcpOpen),
                "port 443 is served (TCP): yes",
            ),
            (path.tcp(50_000, 443, SYN, 1, 0), Verdict::Pass(PassReason::TcpOpen), "bucket syn_network 0x"),
            (
                path.tcp(50_000, 22, SYN, 1, 0),
                Verdict::Pass(PassReason::AdminTcp),
                "may administer port 22/tcp: yes",
            ),
            (path.tcp(50_000, 23, SYN, 1, 0), drop(DropReason::TcpClosed), "port 23 is served (TCP): no"),
            (
                path.tcp(open, 443, ACK, 1, 1),
                Verdict::Pass(PassReason::TcpConnection),
                "socket lookup: ESTABLISHED",
            ),
            (path.tcp(50_001, 443, ACK, 1, 1), drop(DropReason::TcpListener), "socket lookup: LISTEN"),
            (
                path.tcp(50_001, 443, ACK, 1, 1),
                drop(DropReason::TcpListener),
                "SYN cookie: cannot be checked",
            ),
            (path.tcp(50_001, 444, ACK, 1, 1), drop(DropReason::TcpNoConnection), "socket lookup: none"),
            (
                path.udp(50_000, 53, b"?"),
                drop(DropReason::UdpUnsolicited),
                "port 53 is one this host has sent from (UDP): no",
            ),
            (
                path.udp(50_000, 443, &quic::initial(&[7; 12])),
                Verdict::Pass(PassReason::TunnelOpen),
                "bucket opener_network",
            ),
            (
                path.udp(50_000, 443, &quic::short([9; 16], 60)),
                drop(DropReason::TunnelId),
                "relay flow: none",
            ),
            (
                path.echo_request(7),
                Verdict::Pass(PassReason::EchoRequest),
                "bucket echo 0x3: 100 of 100 left",
            ),
        ] {
            // A bucket that is to be full may have to fill again first, after what the other family took from it.
            let mut explained = explain(&lab, &frame);
            let says = |explained: &Explanation| explained.steps.iter().any(|step| step.contains(told));
            let patience = Instant::now() + ANSWER;
            while !says(&explained) {
                assert!(Instant::now() < patience, "`{told}` not in {explained:#?}");
                std::thread::sleep(Duration::from_millis(5));
                explained = explain(&lab, &frame);
            }
            assert_eq!(explained.verdict, verdict, "{explained:#?}");
            assert_eq!((explained.enforced, explained.egress), (true, None));
            let counted = || lab.status().counters.unwrap().of(verdict);
            let before = counted();
            let mut frame = frame;
            frame[..6].copy_from_slice(&mac);
            wire.send(&frame).unwrap();
            settle(|| counted() > before);
        }
    }
}

/// The answer is the same however often it is asked, and the buckets are as full as before.
#[test]
fn explaining_takes_no_token_and_counts_nothing() {
    let lab = Lab::new();
    Holder::start(&lab, &[]).kill();
    let path = Path::new(STRANGER[0], EDGE[0]);
    let counters = lab.status().counters.unwrap();
    for _ in 0..3 {
        let explained = explain(&lab, &path.tcp(50_000, 443, SYN, 1, 0));
        let full = |name: &str| {
            explained.steps.iter().any(|step| {
                let words: Vec<_> = step.split_whitespace().collect();
                matches!(words.as_slice(), ["bucket", found, _, left, "of", burst, "left"] if *found == name && left == burst)
            })
        };
        assert!(full("syn_network") && full("syn"), "{explained:#?}");
    }
    let after = lab.status().counters.unwrap();
    for verdict in [Verdict::Pass(PassReason::TcpOpen), Verdict::Drop(DropReason::SynRate)] {
        assert_eq!(after.of(verdict), counters.of(verdict));
    }
}

#[test]
fn the_command_takes_ends_digits_and_captures() {
    let lab = Lab::new();
    let run = |arguments: &[&str]| {
        let mut command = lab.edge.command(binary().unwrap());
        command.args(["admin", "gate", "explain", "--pin"]).arg(&lab.pin.path).args(arguments);
        let output = command.output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    };
    let ends = ["192.0.2.2:50000", "192.0.2.1:23"];
    let (good, text) = run(&["--tcp", ends[0], ends[1]]);
    assert!(!good && text.contains("guards no interface"), "{text}");

    Holder::start(&lab, &[]).kill();
    let closed = "drop tcp_closed: Opening of a connection to a port that is not served.\nenforced";
    let (good, text) = run(&["--tcp", ends[0], ends[1]]);
    assert!(good && text.contains(closed), "{text}");
    let (_, text) = run(&["--tcp", ends[0], ends[1], "--flags", "ACK", "--interface", "eth0"]);
    assert!(text.contains("drop tcp_no_connection"), "{text}");
    let (_, text) = run(&["--udp", "[2001:db8::2]:50000", "[2001:db8::1]:53"]);
    assert!(text.contains("drop udp_unsolicited"), "{text}");

    let frame = Path::new(STRANGER[0], EDGE[0]).tcp(50_000, 23, SYN, 1, 0);
    let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    let (good, text) = run(&["--hex", &hex]);
    assert!(good && text.contains(closed), "{text}");

    let directory = tempfile::tempdir().unwrap();
    for (link, skipped) in [(1u32, 0), (101, 14)] {
        let file = directory.path().join(format!("{link}.pcap"));
        write_pcap(&file, link, &frame[skipped..], 3);
        let (good, text) = run(&["--pcap", file.to_str().unwrap(), "--count", "2"]);
        assert!(good && text.matches(closed).count() == 2 && text.contains("packet 2\n"), "{text}");
    }
    let file = directory.path().join("bad.pcap");
    std::fs::write(&file, b"no capture").unwrap();
    for wrong in [vec!["--hex", "0g"], vec!["--pcap", file.to_str().unwrap()], vec!["--interface", "eth0"]] {
        let (good, text) = run(&wrong);
        assert!(!good, "{wrong:?}: {text}");
    }
}

/// The classic format (draft-ietf-opsawg-pcap), little endian, microseconds.
fn write_pcap(file: &FilePath, link: u32, packet: &[u8], copies: usize) {
    let mut bytes = Vec::new();
    for word in [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 65_535, link] {
        bytes.extend(word.to_le_bytes());
    }
    let length = u32::try_from(packet.len()).unwrap();
    for _ in 0..copies {
        for word in [1, 0, length, length] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(packet);
    }
    std::fs::write(file, bytes).unwrap();
}

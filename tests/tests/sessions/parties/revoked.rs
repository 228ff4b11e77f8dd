//! A revocation in the middle of it all.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use portcullis_tests::desk::{Screen, Xrdp};
use portcullis_tests::private_lab::{CUT, Plan, PrivateLab};
use portcullis_tests::process::{Process, wait_until};

use super::{dnsmasq, iperf3, launch, postgres, psql, ssh, sshd};
use crate::SOON;

/// What is on its way, in MiB, and how much of it `scp` sends in a second, in Kbit: it takes forty seconds, on however quick a
/// machine.
const BIG: u64 = 256;
const PACE: &str = "51200";

/// `dig` waits for an answer for as long as it was told to.
const PATIENCE_OF_DIG: Duration = Duration::from_secs(5);

/// Applications that one process forwards, and to which of its ports.
const FORWARDS: [(&str, &str, u16); 5] = [
    ("db", "tcp", 5432),
    ("dns", "udp", 5353),
    ("perf", "tcp", 5201),
    ("perf-control", "tcp", 5202),
    ("perf-udp", "udp", 5202),
];

/// Somebody who is in the middle of something.
struct Party {
    applications: &'static [&'static str],
    process: Process,
    /// How long it may take to see the cut besides.
    patience: Duration,
}

impl Party {
    fn start(applications: &'static [&'static str], patience: Duration, command: Command) -> Self {
        Self { applications, process: Process::spawn(applications[0], command).unwrap(), patience }
    }
}

#[test]
fn heavy_a_revocation_cuts_everybody_within_a_second_and_each_sees_an_error() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let (_sshd, _postgres, _dns) = (sshd(&lab), postgres(&lab), dnsmasq(&lab));
    let (_tcp, _udp) = (iperf3(&lab, 5201), iperf3(&lab, 5202));
    let _xrdp = Xrdp::start(&lab.office, &lab.dir.join("xrdp"), 3389).unwrap();
    let screen = Screen::start(&lab.dir).unwrap();
    let ann = lab.machine("ann").unwrap();
    let forwards = FORWARDS.map(|(application, protocol, port)| {
        format!(
            "[[forward]]\napplication = \"{application}\"\nprotocol = \"{protocol}\"\nlisten = \"127.0.0.1:{port}\"\n"
        )
    });
    let file = lab.dir.join("forwards.toml");
    fs::write(&file, forwards.concat()).unwrap();
    let connect = ann.command(&["connect", &file.display().to_string()]).unwrap();
    let mut connect = Process::spawn("connect", connect).unwrap();
    connect.wait_for_output("perf-udp: listening on", SOON).unwrap();

    // At a pace that leaves the machine some time, and for longer than anybody waits here.
    let rows = "copy (select repeat('x', 1000), pg_sleep(0.01) from generate_series(1, 100000)) to stdout";
    let mut asking = lab.client.command("sh");
    let question = format!(
        "dig @127.0.0.1 -p 5353 +notcp +short +time={} printer.office.test",
        PATIENCE_OF_DIG.as_secs()
    );
    // Its session is not there until those of the other four are: the first answer may take longer.
    asking.args([
        "-c",
        &format!("{question} +tries=12 || exit 8; while {question} +tries=1; do sleep 0.1; done; exit 9"),
    ]);
    let measuring = |port: &str, more: &[&str]| {
        let mut command = lab.client.command("iperf3");
        command.args([
            "--client",
            "127.0.0.1",
            "--port",
            port,
            "--time",
            "600",
            "--bitrate",
            "10M",
            "--forceflush",
        ]);
        command.args(more);
        command
    };
    let mut output = ssh(&ann, "ssh");
    output.args(["deploy@shell", "while head -c 100000 /dev/zero; do sleep 0.05; done"]);
    let mut parties = [
        Party::start(&["shell"], Duration::ZERO, output),
        Party::start(&["db"], Duration::ZERO, psql(&lab, rows)),
        Party::start(&["perf"], Duration::ZERO, measuring("5201", &[])),
        Party::start(&["perf-control", "perf-udp"], Duration::ZERO, measuring("5202", &["--udp"])),
        Party::start(&["desk"], Duration::ZERO, launch(&ann, &screen, &[])),
        // The last that is waited for.
        Party::start(&["dns"], PATIENCE_OF_DIG, asking),
    ];
    for party in &mut parties {
        // Two measurements' lines, two of the database's rows, two answers: it runs.
        if party.applications != ["desk"] {
            party
                .process
                .wait_until("run", SOON, |process| Ok((process.output().len() > 200).then_some(())))
                .unwrap();
        }
    }
    wait_until("the desktop", SOON, || Ok((screen.colours()? > 100).then_some(()))).unwrap();

    let cut = Instant::now();
    lab.node.admin(&["session", "revoke", "--user", "ann@example.com"]).unwrap();
    for party in &mut parties {
        let status = party.process.wait(SOON).unwrap();
        let after = cut.elapsed();
        assert!(after < CUT + party.patience, "{:?} after {after:?}", party.applications);
        assert!(!status.success(), "{:?} as if nothing had happened", party.applications);
    }
    for party in &parties {
        for application in party.applications {
            let ended = lab.events_of("disconnect", application, 1).unwrap();
            assert_eq!((ended.len(), &ended[0]["detail"]), (1, &"revoked".into()), "{application}");
            let told = format!("portcullis: {application}: the session is over: an administrator revoked it");
            let said = if FORWARDS.iter().any(|(name, ..)| name == application) {
                connect.wait_for_output(&told, SOON).unwrap();
                connect.output()
            } else {
                // `ssh` does not wait for what it goes through.
                wait_until(&told, SOON, || Ok(party.process.output().contains(&told).then_some(()))).unwrap();
                party.process.output()
            };
            assert_eq!(said.matches(&told).count(), 1, "{application}: {said}");
        }
    }
}

#[test]
fn heavy_a_file_that_is_cut_half_way_arrives_with_an_error() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let _sshd = sshd(&lab);
    let ann = lab.machine("ann").unwrap();
    let (big, copy) = (lab.dir.join("big"), std::path::Path::new("/var/tmp").join(lab.edge.name()));
    fs::File::create(&big).unwrap().set_len(BIG << 20).unwrap();
    let mut command = ssh(&ann, "scp");
    command.args(["-l", PACE]).arg(&big).arg(format!("deploy@shell:{}", copy.display()));
    let mut scp = Process::spawn("scp", command).unwrap();
    wait_until("a part of it", SOON, || Ok((fs::metadata(&copy)?.len() > 1 << 20).then_some(()))).unwrap();
    let cut = Instant::now();
    lab.node.admin(&["session", "revoke", "--user", "ann@example.com"]).unwrap();
    let status = scp.wait(SOON).unwrap();
    assert!(cut.elapsed() < CUT, "after {:?}", cut.elapsed());
    assert!(!status.success());
    wait_until("the reason", SOON, || {
        Ok(scp.output().contains("the session is over: an administrator revoked it").then_some(()))
    })
    .unwrap();
    assert!(fs::metadata(&copy).unwrap().len() < BIG << 20);
    fs::remove_file(&copy).unwrap();
}

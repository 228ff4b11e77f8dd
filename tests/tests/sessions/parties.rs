//! Real third parties through a session: OpenSSH, PostgreSQL, a DNS server, iperf3.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use portcullis_tests::access::Machine;
use portcullis_tests::netns::run;
use portcullis_tests::private_lab::{CUT, Forward, Plan, PrivateLab, path};
use portcullis_tests::process::{Process, wait_until};
use portcullis_tests::sshd::Sshd;
use serde_json::Value;

use crate::SOON;

/// What `scp` carries, in MiB.
const BIG: u64 = 256;

/// The office's SSH server, which trusts the application's authority alone.
fn sshd(lab: &PrivateLab) -> Sshd {
    let authority = lab.node.admin(&["ssh-ca", "public-key", "shell"]).unwrap();
    Sshd::start(Some(&lab.office), &lab.dir.join("sshd"), 22, &authority).unwrap()
}

/// `ssh` or `scp` as its user has it after `access ssh-config --write`, and nothing else.
fn ssh(machine: &Machine, program: &str) -> Command {
    let config = machine.home().join(".ssh/portcullis/access.example.com.conf");
    if !config.exists() {
        machine.ok(&["ssh-config", "--write"]).unwrap();
    }
    let mut command = machine.program(program).unwrap();
    command.arg("-F").arg(config).args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
    command.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]);
    command
}

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

    // Who has no name there is not let in by the server, and whom policy does not know not by the node.
    assert_eq!(ssh(&ann, "ssh").args(["root@shell", "true"]).output().unwrap().status.code(), Some(255));
    let bob = lab.machine("bob").unwrap();
    let told = bob.fails(&["ssh", "shell"]).unwrap();
    assert!(told.contains("you are not allowed to reach `shell`"), "{told}");
    wait_until("the one event of it", SOON, || {
        let events: Vec<Value> = lab.events_of("connect", "shell", 1)?;
        Ok((events.iter().filter(|event| event["allowed"] == false).count() == 1).then_some(()))
    })
    .unwrap();
}

#[test]
fn heavy_a_large_file_arrives_whole_or_with_an_error() {
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

    // Revoked half way.
    let mut command = ssh(&ann, "scp");
    command.arg(&big).arg(&to);
    let mut scp = Process::spawn("scp", command).unwrap();
    wait_until("a part of it", SOON, || Ok((fs::metadata(&copy)?.len() > 8 << 20).then_some(()))).unwrap();
    lab.node.admin(&["session", "revoke", "--user", "ann@example.com"]).unwrap();
    let cut = Instant::now();
    let status = scp.wait(SOON).unwrap();
    assert!(cut.elapsed() < CUT, "after {:?}", cut.elapsed());
    assert!(!status.success());
    let told = scp.output();
    assert!(told.contains("the session is over: an administrator revoked it"), "{told}");
    assert!(fs::metadata(&copy).unwrap().len() < BIG << 20);
    fs::remove_file(&copy).unwrap();
}

#[test]
fn a_database_answers_and_a_copy_is_cut() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let _postgres = postgres(&lab);
    let ann = lab.machine("ann").unwrap();
    let mut forward = Forward::start(&ann, &["tcp", "db", "--listen", "127.0.0.1:5432"]).unwrap();
    let psql = |sql: &str| {
        let mut command = lab.client.command("psql");
        command.args([
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-d",
            "postgres",
            "-v",
            "ON_ERROR_STOP=1",
            "-Atc",
            sql,
        ]);
        command
    };
    let rows = run(&mut psql("select sum(n), count(*) from generate_series(1, 1000) n")).unwrap();
    assert_eq!(rows, "500500|1000\n");
    let rows = run(&mut psql("select repeat('x', 1000) from generate_series(1, 20000)")).unwrap();
    assert_eq!(rows.len(), 20_000 * 1_001);
    assert_eq!(path(&ann).unwrap(), "kernel");
    assert_eq!(psql("select 1 / 0").output().unwrap().status.code(), Some(1));

    let mut endless = Process::spawn(
        "psql",
        psql("copy (select repeat('x', 1000) from generate_series(1, 100000000)) to stdout"),
    )
    .unwrap();
    wait_until("rows", SOON, || Ok((lab.metric("portcullis_relay_bytes_total")? > 40 << 20).then_some(())))
        .unwrap();
    lab.node.admin(&["session", "revoke", "--user", "ann@example.com"]).unwrap();
    let cut = Instant::now();
    let status = endless.wait(SOON).unwrap();
    assert!(cut.elapsed() < CUT, "after {:?}", cut.elapsed());
    assert!(!status.success());
    forward.process.wait_for_output("db: the session is over: an administrator revoked it", SOON).unwrap();
}

/// A database in the office with a super-user that needs no password.
fn postgres(lab: &PrivateLab) -> Process {
    let dir = lab.dir.join("postgres");
    fs::create_dir(&dir).unwrap();
    let owner = |path: &Path| run(Command::new("chown").arg("postgres").arg(path)).unwrap();
    owner(&dir);
    let data = dir.join("data").display().to_string();
    let as_owner = |program: &str| {
        let mut command = lab.office.command("runuser");
        command.args(["-u", "postgres", "--"]).arg(server(program));
        command
    };
    run(as_owner("initdb").args(["-D", &data, "-U", "postgres", "-A", "trust", "--no-sync"])).unwrap();
    let mut command = as_owner("postgres");
    command.args(["-D", &data, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-k"]).arg(&dir);
    let mut process = Process::spawn("postgres", command).unwrap();
    process.wait_for_output("ready to accept connections", SOON).unwrap();
    process
}

/// A program of the database's server, which Debian keeps off the PATH.
fn server(program: &str) -> std::path::PathBuf {
    let versions =
        fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed by `cargo xtask setup`");
    let found = versions.flatten().map(|version| version.path().join("bin").join(program));
    found.filter(|path| path.exists()).max().expect("a server")
}

#[test]
fn names_are_resolved_by_answers_of_every_size() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let mut command = lab.office.command("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
        "--pid-file=",
    ]);
    command.args([
        "--listen-address=127.0.0.1",
        "--bind-interfaces",
        "--edns-packet-max=8192",
        "--log-facility=-",
    ]);
    command.args(["--address=/printer.office.test/10.1.2.3", "--user=root"]);
    for number in 0..14 {
        command.arg(format!("--txt-record=large.office.test,{number:0250}"));
    }
    let mut dns = Process::spawn("dnsmasq", command).unwrap();
    dns.wait_for_output("started", SOON).unwrap();
    let ann = lab.machine("ann").unwrap();
    let forward = Forward::start(&ann, &["udp", "dns", "--listen", "127.0.0.1:0"]).unwrap();
    let port = forward.address.port().to_string();
    let dig = |args: &[&str]| {
        let mut command = lab.client.command("dig");
        run(command.args(["@127.0.0.1", "-p", &port, "+notcp", "+tries=3", "+time=5"]).args(args)).unwrap()
    };
    assert_eq!(dig(&["+short", "printer.office.test"]).trim(), "10.1.2.3");
    let large = dig(&["+bufsize=8192", "+ignore", "large.office.test", "TXT"]);
    assert!(large.contains("ANSWER: 14"), "{large}");
    let size = large.lines().find_map(|line| line.split_once("MSG SIZE  rcvd: ")).unwrap().1;
    assert!(size.trim().parse::<u32>().unwrap() > 3_500, "{large}");
    assert_eq!(path(&ann).unwrap(), "kernel");
}

#[test]
fn heavy_iperf3_runs_both_ways() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let mut command = lab.office.command("iperf3");
    command.args(["--server", "--bind", "127.0.0.1", "--forceflush"]);
    let mut server = Process::spawn("iperf3", command).unwrap();
    server.wait_for_output("Server listening", SOON).unwrap();
    let ann = lab.machine("ann").unwrap();
    let _forward = Forward::start(&ann, &["tcp", "perf", "--listen", "127.0.0.1:5201"]).unwrap();
    let iperf3 = |args: &[&str]| -> Value {
        let mut command = lab.client.command("iperf3");
        command.args(["--client", "127.0.0.1", "--time", "2", "--json"]).args(args);
        serde_json::from_str(&run(&mut command).unwrap()).unwrap()
    };
    for args in [&["--parallel", "4"][..], &["--reverse"]] {
        let result = iperf3(args);
        let rate = result["end"]["sum_received"]["bits_per_second"].as_f64().unwrap();
        assert!(rate > 1e6, "{args:?}: {result}");
    }
    assert_eq!(lab.metric("portcullis_relay_sessions").unwrap(), 1);
}

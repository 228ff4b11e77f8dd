//! Real third parties through a session: OpenSSH, PostgreSQL, a DNS server, iperf3, xrdp and FreeRDP.
//!
//! `allowed`: each of them works. `denied`: whom policy does not know is told so, and the log says so once. `revoked`: each
//! is cut in the middle within a second, and ends with an error.

mod allowed;
mod denied;
mod revoked;

use std::fs;
use std::path::Path;
use std::process::Command;

use portcullis_tests::access::Machine;
use portcullis_tests::desk::Screen;
use portcullis_tests::netns::run;
use portcullis_tests::private_lab::PrivateLab;
use portcullis_tests::process::Process;
use portcullis_tests::sshd::Sshd;

use crate::SOON;

/// The office's SSH server, which trusts the application's authority alone.
pub fn sshd(lab: &PrivateLab) -> Sshd {
    let authority = lab.node.admin(&["ssh-ca", "public-key", "shell"]).unwrap();
    Sshd::start(Some(&lab.office), &lab.dir.join("sshd"), 22, &authority).unwrap()
}

/// `ssh` or `scp` as its user has it after `access ssh-config --write`, and nothing else.
pub fn ssh(machine: &Machine, program: &str) -> Command {
    let config = machine.home().join(".ssh/portcullis/access.example.com.conf");
    if !config.exists() {
        machine.ok(&["ssh-config", "--write"]).unwrap();
    }
    let mut command = machine.program(program).unwrap();
    command.arg("-F").arg(config).args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
    command.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]);
    command
}

/// A statement to the database behind a listener on the usual port.
fn psql(lab: &PrivateLab, sql: &str) -> Command {
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

/// A DNS server in the office with one address, and one name whose answer is larger than any packet.
fn dnsmasq(lab: &PrivateLab) -> Process {
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
    dns
}

/// Questions to the DNS server behind a listener on this port.
fn dig(lab: &PrivateLab, port: u16) -> Command {
    let mut command = lab.client.command("dig");
    command.args(["@127.0.0.1", "-p", &port.to_string(), "+notcp"]);
    command
}

/// An iperf3 server in the office, for one measurement at a time.
fn iperf3(lab: &PrivateLab, port: u16) -> Process {
    let mut command = lab.office.command("iperf3");
    command.args(["--server", "--bind", "127.0.0.1", "--port", &port.to_string(), "--forceflush"]);
    let mut server = Process::spawn("iperf3", command).unwrap();
    server.wait_for_output("Server listening", SOON).unwrap();
    server
}

/// `access rdp --launch` of somebody who looks at this screen, with more options for FreeRDP.
fn launch(machine: &Machine, screen: &Screen, options: &[&str]) -> Command {
    let freerdp = ["/cert:ignore", "/sec:tls", "/u:deploy", "/size:640x480"];
    let args = ["rdp", "desk", "--launch", "--"].iter().chain(&freerdp).chain(options);
    let mut command = machine.command(&args.collect::<Vec<_>>()).unwrap();
    command.env("DISPLAY", &screen.display);
    command
}

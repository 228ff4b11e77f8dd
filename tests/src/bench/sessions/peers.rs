//! Other ways to a machine that accepts no inbound connection, each in namespaces of its own, with the interfaces' settings of a
//! [`World`](super::lab::World) and no XDP program. The node's namespace routes for those that need it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::super::figure::Target;
use super::bulk::WARM_UP;
use super::lab::{GREET, Line, NODE, OFFICE, SINK, local};
use super::origin::{self, Origin};
use crate::netns::{Netns, run};
use crate::process::Process;

const START: Duration = Duration::from_secs(15);

/// Encrypted from end to end, or on the way to the node.
const ENCRYPTED: Target = Target::AtLeast(1.2);
const UNENCRYPTED: Target = Target::AtLeast(0.7);

pub struct Peer {
    pub name: &'static str,
    pub target: Target,
    running: Result<Running>,
    why_not: String,
}

struct Running {
    _processes: Vec<Process>,
    to: SocketAddr,
    origin: Origin,
    line: Line,
}

/// A peer that was started.
struct Way {
    processes: Vec<Process>,
    /// Where its way to a port of the origin begins.
    to: fn(u16) -> SocketAddr,
}

type Start = fn(&Line, &Path) -> Result<Way>;

/// All that are installed, running; the others with the reason why not.
pub fn start() -> Result<Vec<Peer>> {
    let all: [(&str, &str, Target, Start); 5] = [
        ("ssh -L, by the node", "sshd", ENCRYPTED, ssh_forward),
        ("ssh -J, end to end", "sshd", ENCRYPTED, ssh_jump),
        ("wireguard-go, end to end", "wireguard-go", ENCRYPTED, wireguard_go),
        ("boringtun, end to end", "boringtun-cli", ENCRYPTED, boringtun),
        ("rathole (not encrypted)", "rathole", UNENCRYPTED, rathole),
    ];
    let start = |(name, program, target, start): (&'static str, &str, Target, Start)| {
        let running = if is_installed(program) {
            Running::new(program, start)
        } else {
            Err(anyhow::anyhow!("{program} is not installed"))
        };
        let why_not = running.as_ref().err().map_or_else(String::new, |error| format!("{error:#}"));
        Peer { name, target, running, why_not }
    };
    Ok(all.map(start).into())
}

impl Peer {
    pub const fn runs(&self) -> bool {
        self.running.is_ok()
    }

    /// Why it does not.
    pub fn why_not(&self) -> Option<&str> {
        self.running.is_err().then_some(self.why_not.as_str())
    }

    /// Bits a second to the sink.
    pub fn bulk(&self, length: Duration) -> Result<f64> {
        let running = self.running.as_ref().ok().context("it does not run")?;
        let bulk = running.origin.bulk(&running.line.user, running.to, WARM_UP, length);
        Ok(bulk.with_context(|| self.name.to_owned())?.rate())
    }
}

impl Running {
    fn new(label: &str, start: Start) -> Result<Self> {
        let line = Line::new(label, None)?;
        line.node.forward()?;
        let dir = line.node.scratch()?;
        let origin = Origin::start(&line.office, Ipv4Addr::UNSPECIFIED)?;
        let Way { mut processes, to } = start(&line, &dir)?;
        let last = processes.last_mut().context("a peer without a process")?;
        last.wait_until("carry a byte", START, |_| {
            origin::greeting(&line.user, to(GREET), Duration::from_secs(2)).map(Some)
        })?;
        Ok(Self { _processes: processes, to: to(SINK), origin, line })
    }
}

fn is_installed(program: &str) -> bool {
    Command::new("which").arg(program).output().is_ok_and(|output| output.status.success())
}

/// The node ends the encryption.
fn ssh_forward(line: &Line, dir: &Path) -> Result<Way> {
    let server = sshd(&line.node, dir, "node")?;
    let forwards = [SINK, GREET].map(|port| format!("-L127.0.0.1:{port}:{OFFICE}:{port}"));
    let client = ssh(&line.user, dir, &forwards, NODE)?;
    Ok(Way { processes: vec![server, client], to: local })
}

/// The node carries a second connection inside of the first.
fn ssh_jump(line: &Line, dir: &Path) -> Result<Way> {
    let servers = [sshd(&line.node, dir, "node")?, sshd(&line.office, dir, "office")?];
    let jump = format!("-oProxyCommand=ssh {} -W %h:%p root@{NODE}", options(dir).join(" "));
    let forwards = [SINK, GREET].map(|port| format!("-L127.0.0.1:{port}:127.0.0.1:{port}"));
    let client = ssh(&line.user, dir, &[&[jump][..], &forwards].concat(), OFFICE)?;
    Ok(Way { processes: servers.into_iter().chain([client]).collect(), to: local })
}

fn options(dir: &Path) -> Vec<String> {
    let key = dir.join("id");
    let mut options =
        vec!["-F", "none", "-p", "2222", "-i"].into_iter().map(str::to_owned).collect::<Vec<_>>();
    options.push(key.display().to_string());
    for option in
        ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
    {
        options.push(format!("-o{option}"));
    }
    options
}

fn ssh(netns: &Netns, dir: &Path, forwards: &[String], host: &str) -> Result<Process> {
    let mut command = netns.command("ssh");
    command
        .args(options(dir))
        .args(forwards)
        .args(["-N", "-oExitOnForwardFailure=yes"])
        .arg(format!("root@{host}"));
    Process::spawn("ssh", command)
}

/// A server that lets root in with the key `id`, which is made if there is none, once it listens.
fn sshd(netns: &Netns, dir: &Path, name: &str) -> Result<Process> {
    fs::create_dir_all("/run/sshd")?;
    for key in ["id", "host"] {
        let path = dir.join(key);
        if !path.exists() {
            run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path))?;
        }
    }
    let config = dir.join(format!("{name}.conf"));
    fs::write(
        &config,
        format!(
            "Port 2222\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/id.pub\nStrictModes no\nPidFile none\n\
             PermitRootLogin prohibit-password\nUsePAM yes\nAllowTcpForwarding yes\n",
            dir = dir.display()
        ),
    )?;
    let mut command = netns.command("/usr/sbin/sshd");
    command.args(["-D", "-e", "-f"]).arg(&config);
    let mut server = Process::spawn("sshd", command)?;
    server.wait_for_output("Server listening", START)?;
    Ok(server)
}

fn wireguard_go(line: &Line, dir: &Path) -> Result<Way> {
    wireguard(
        line,
        dir,
        "wg",
        |command, interface| {
            command.env("WG_PROCESS_FOREGROUND", "1").args(["-f", interface]);
        },
        "wireguard-go",
    )
}

fn boringtun(line: &Line, dir: &Path) -> Result<Way> {
    wireguard(
        line,
        dir,
        "bt",
        |command, interface| {
            command.args(["--foreground", "--disable-drop-privileges", interface]);
        },
        "boringtun-cli",
    )
}

/// Two ends that know each other's address; the node routes their datagrams.
fn wireguard(
    line: &Line,
    dir: &Path,
    prefix: &str,
    arguments: fn(&mut Command, &str),
    program: &str,
) -> Result<Way> {
    let keys = ["user", "office"].map(|name| key_pair(dir, name));
    let (user_key, office_key) = match keys {
        [Ok(user), Ok(office)] => (user, office),
        [Err(error), _] | [_, Err(error)] => return Err(error),
    };
    let mut processes = Vec::new();
    // Both sockets of the configuration protocol lie in one folder: the names tell them apart.
    for (netns, end, own, other, endpoint, address) in [
        (&line.office, "o", &office_key.0, &user_key.1, super::lab::USER, "10.99.0.2/24"),
        (&line.user, "u", &user_key.0, &office_key.1, OFFICE, "10.99.0.1/24"),
    ] {
        let interface = format!("{prefix}{end}{}", std::process::id());
        let mut command = netns.command(program);
        arguments(&mut command, &interface);
        let mut process = Process::spawn(program, command)?;
        process.wait_until("make its interface", START, |_| {
            netns
                .run(&format!("wg setconf {interface} {}", write_config(dir, end, own, other, endpoint)?))
                .map(Some)
        })?;
        netns.address(&interface, address)?;
        netns.run(&format!("ip link set dev {interface} mtu 1420 up"))?;
        processes.push(process);
    }
    Ok(Way { processes, to: |port| SocketAddr::new(Ipv4Addr::new(10, 99, 0, 2).into(), port) })
}

fn write_config(dir: &Path, end: &str, own: &str, other: &str, endpoint: &str) -> Result<String> {
    let path = dir.join(format!("{end}.wg"));
    fs::write(
        &path,
        format!(
            "[Interface]\nPrivateKey = {own}\nListenPort = 51820\n[Peer]\nPublicKey = {other}\n\
             Endpoint = {endpoint}:51820\nAllowedIPs = 10.99.0.0/24\n"
        ),
    )?;
    Ok(path.display().to_string())
}

/// Private and public.
fn key_pair(dir: &Path, name: &str) -> Result<(String, String)> {
    let private = run(Command::new("wg").arg("genkey"))?;
    let file = dir.join(format!("{name}.key"));
    fs::write(&file, &private)?;
    let public = run(Command::new("wg").arg("pubkey").stdin(fs::File::open(&file)?))?;
    Ok((private.trim().to_owned(), public.trim().to_owned()))
}

/// The office dials the node, which listens for it.
fn rathole(line: &Line, dir: &Path) -> Result<Way> {
    let services = |each: fn(u16) -> String, side: &str| {
        [SINK, GREET].map(|port| format!("[{side}.services.s{port}]\n{}\n", each(port))).concat()
    };
    let token = "default_token = \"bench\"\n";
    let server = format!(
        "[server]\nbind_addr = \"0.0.0.0:2333\"\n{token}{}",
        services(|port| format!("bind_addr = \"{NODE}:{port}\""), "server")
    );
    let client = format!(
        "[client]\nremote_addr = \"198.51.100.1:2333\"\n{token}{}",
        services(|port| format!("local_addr = \"127.0.0.1:{port}\""), "client")
    );
    let mut processes = Vec::new();
    for (netns, name, config) in [(&line.node, "server", server), (&line.office, "client", client)] {
        let path = dir.join(format!("{name}.toml"));
        fs::write(&path, config)?;
        let mut command = netns.command("rathole");
        command.arg(format!("--{name}")).arg(&path);
        processes.push(Process::spawn("rathole", command)?);
    }
    Ok(Way { processes, to: |port| SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), port) })
}

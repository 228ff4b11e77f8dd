//! Network namespaces for tests.
//!
//! A namespace is named `pc-<pid>-<start>-<n>-<label>` under `/run/netns`, where pid and start time are those of the
//! process that made it. It goes away when the last [`Netns`] handle is dropped, together with every process in it;
//! what a killed test left behind is removed by the next one that makes a namespace ([`remove_leftovers`]).
//!
//! Commands run inside by `nsenter --net=`, not by `ip netns exec`: the latter gives a fresh `/sys` without the bpffs.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const RUN_DIR: &str = "/run/netns";
const BPFFS: &str = "/sys/fs/bpf";
const PREFIX: &str = "pc-";

/// A handle to a namespace of this process; clones share it and the last one removes it.
#[derive(Clone, Debug)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
}

impl Netns {
    /// Makes a namespace with loopback up and IPv6 duplicate-address detection off, so that addresses work at once.
    pub fn new(label: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let _lock = lock()?;
        remove_leftovers_locked();
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{n}-{label}", own_prefix());
        run(Command::new("ip").args(["netns", "add", &name]))
            .context("making a network namespace needs root")?;
        let netns = Self(Arc::new(Inner { name }));
        netns.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        netns.sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
        netns.run("ip link set dev lo up")?;
        Ok(netns)
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The file that stands for the namespace, as `nsenter --net=` takes it.
    pub fn path(&self) -> PathBuf {
        Path::new(RUN_DIR).join(&self.0.name)
    }

    /// A command that will run inside. `nsenter` execs it, so the child's pid is the program's own.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut net = std::ffi::OsString::from("--net=");
        net.push(self.path());
        let mut command = Command::new("nsenter");
        command.arg(net).arg("--").arg(program);
        command
    }

    /// Runs one command line (split at blanks, no quoting) to its end; its standard output, or an error with all of
    /// its output if it failed.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("empty command line")?;
        run(self.command(program).args(words))
    }

    /// Runs `f` on a thread of its own that is inside the namespace: sockets it opens belong there for good.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("opening namespace {}", self.name()))?;
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name(format!("in {}", self.name())).spawn_scoped(
                scope,
                move || -> Result<T> {
                    use std::os::fd::AsFd;
                    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                        .context("entering a network namespace needs CAP_SYS_ADMIN")?;
                    Ok(f())
                },
            )?;
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Sets a kernel setting of the namespace, by its path below `/proc/sys`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.enter(|| fs::write(&path, value))?.with_context(|| format!("setting {key} = {value}"))
    }

    /// Adds an address (`192.0.2.1/24`, `2001:db8::1/64`) to an interface that is up.
    pub fn address(&self, interface: &str, address: &str) -> Result<()> {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        self.run(&format!("ip address add {address} dev {interface}{nodad}"))?;
        if address.contains(':') { self.await_route(address) } else { Ok(()) }
    }

    /// The kernel gives an IPv6 address its local route a little later, by a worker of its own (net/ipv6/addrconf.c). Until
    /// then what comes for it is lost.
    fn await_route(&self, address: &str) -> Result<()> {
        let bare = address.split('/').next().unwrap_or(address);
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.run(&format!("ip -6 route show table local {bare}"))?.trim().is_empty() {
            ensure!(Instant::now() < deadline, "{address} has no local route");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Link address of an interface.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let shown = self.run(&format!("ip -json link show {interface}"))?;
        let links: serde_json::Value = serde_json::from_str(&shown)?;
        let text = links[0]["address"].as_str().context("a link address")?;
        let bytes: Vec<u8> =
            text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
        bytes.try_into().map_err(|_| anyhow::anyhow!("{text} is no link address"))
    }

    /// Adds a route; `to` is a prefix or `default`, `via` a gateway. The family is the gateway's.
    pub fn route(&self, to: &str, via: &str) -> Result<()> {
        let family = if via.contains(':') { "-6" } else { "-4" };
        self.run(&format!("ip {family} route add {to} via {via}")).map(drop)
    }

    /// Lets the namespace forward packets between its interfaces, both families.
    pub fn forward(&self) -> Result<()> {
        self.sysctl("net/ipv4/ip_forward", "1")?;
        self.sysctl("net/ipv6/conf/all/forwarding", "1")
    }

    /// Replaces the namespace's nftables rules by `rules` (the text of an `nft -f` file).
    pub fn nft(&self, rules: &str) -> Result<()> {
        let script = format!("flush ruleset\n{rules}\n");
        let mut file = tempfile::NamedTempFile::new()?;
        std::io::Write::write_all(&mut file, script.as_bytes())?;
        run(self.command("nft").arg("-f").arg(file.path())).map(drop)
    }

    /// Where programs of the namespace may pin: a folder on the BPF file system that goes away with the namespace.
    pub fn bpffs(&self) -> PathBuf {
        Path::new(BPFFS).join(self.name())
    }

    /// Makes a folder (0711: those who know a file's name can read it) for files of the namespace's programs. It goes
    /// away with the namespace, even where this process was killed.
    pub fn scratch(&self) -> Result<PathBuf> {
        let dir = scratch(self.name());
        fs::DirBuilder::new().mode(0o711).create(&dir).with_context(|| dir.display().to_string())?;
        Ok(dir)
    }

    /// Whether a program listens at a TCP address. The kernel is asked, so the program sees no connection: some take any for a
    /// client, and some write that they listen before they do.
    pub fn listens(&self, at: SocketAddr) -> Result<bool> {
        Ok(!self.run(&format!("ss --no-header --listening --tcp --numeric src {at}"))?.trim().is_empty())
    }

    /// Datagrams so far that the namespace's sockets had no room for: of a program that gets no CPU, the kernel drops them, and
    /// counts them (RFC 4113 has them among the errors).
    pub fn datagrams_without_room(&self) -> Result<u64> {
        let counts = self.run("nstat -asz UdpRcvbufErrors Udp6RcvbufErrors")?;
        Ok(counts.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum())
    }

    /// The processes that are in the namespace now.
    pub fn pids(&self) -> Result<Vec<i32>> {
        pids(self.name())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Connects two namespaces by a veth pair and brings both ends up. Transmit checksum offload is turned off: programs
/// that rewrite packets on such a link would otherwise see checksums that were never filled in.
pub fn veth(a: &Netns, a_interface: &str, b: &Netns, b_interface: &str) -> Result<()> {
    for name in [a_interface, b_interface] {
        ensure!(name.len() <= 15, "interface name {name} is longer than 15 bytes");
    }
    a.run(&format!(
        "ip link add {a_interface} type veth peer name {b_interface} netns {}",
        b.path().display()
    ))?;
    for (netns, interface) in [(a, a_interface), (b, b_interface)] {
        netns.run(&format!("ethtool -K {interface} tx off"))?;
        netns.run(&format!("ip link set dev {interface} up"))?;
    }
    Ok(())
}

/// Runs a command to its end; its standard output, or an error with the command line and all its output.
pub fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.output().with_context(|| format!("cannot run {program}: run `cargo xtask setup`"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let args: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} failed ({}):\n{stdout}{stderr}", args.join(" "), output.status);
    }
    Ok(stdout)
}

/// Removes the namespaces whose maker is gone, with the processes in them.
pub fn remove_leftovers() -> Result<()> {
    let _lock = lock()?;
    remove_leftovers_locked();
    Ok(())
}

/// Removes every namespace of this process, for a signal handler's thread: drop does not run after a signal.
pub fn remove_own() {
    for name in names() {
        if name.starts_with(&own_prefix()) {
            remove(&name);
        }
    }
}

fn remove_leftovers_locked() {
    for name in names() {
        if let Some((pid, start)) = owner(&name)
            && start_time(pid) != Some(start)
        {
            remove(&name);
        }
    }
}

fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(RUN_DIR) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Best effort: it runs in drop and in clean-ups, where there is nobody to report to.
fn remove(name: &str) {
    for pid in pids(name).unwrap_or_default() {
        if let Some(pid) = Pid::from_raw(pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let _ = Command::new("ip").args(["netns", "delete", name]).output();
    let _ = fs::remove_dir_all(Path::new(BPFFS).join(name));
    let _ = fs::remove_dir_all(scratch(name));
}

fn pids(name: &str) -> Result<Vec<i32>> {
    let out = run(Command::new("ip").args(["netns", "pids", name]))?;
    Ok(out.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(name)
}

fn own_prefix() -> String {
    let pid = std::process::id();
    format!("{PREFIX}{pid}-{}-", start_time(pid).unwrap_or(0))
}

/// `pc-<pid>-<start>-…` → (pid, start).
fn owner(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix(PREFIX)?.splitn(3, '-');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// When a process started, in clock ticks since boot (proc_pid_stat(5), field 22); a pid alone may be reused.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(") ")?.1;
    after_name.split(' ').nth(19)?.parse().ok()
}

/// `ip netns add` bind-mounts `/run/netns` on its first use, and two at once trip over each other.
fn lock() -> Result<File> {
    let file = File::create(std::env::temp_dir().join("portcullis-netns.lock"))?;
    file.lock()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    fn pair() -> (Netns, Netns) {
        let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
        veth(&a, "eth0", &b, "eth0").unwrap();
        for (netns, v4, v6) in
            [(&a, "192.0.2.1/24", "2001:db8::1/64"), (&b, "192.0.2.2/24", "2001:db8::2/64")]
        {
            netns.address("eth0", v4).unwrap();
            netns.address("eth0", v6).unwrap();
        }
        (a, b)
    }

    #[test]
    fn two_namespaces_talk_over_both_families_and_nobody_else_hears_it() {
        let (a, b) = pair();
        for address in ["192.0.2.1:80", "[2001:db8::1]:80"] {
            let address: SocketAddr = address.parse().unwrap();
            let listener = a.enter(|| TcpListener::bind(address)).unwrap().unwrap();
            let mut client =
                b.enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(20))).unwrap().unwrap();
            client.write_all(b"x").unwrap();
            assert!(a.listens(address).unwrap() && !b.listens(address).unwrap());
            let mut byte = [0];
            listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
            assert_eq!(byte, *b"x");
            assert!(TcpListener::bind(address).is_err(), "the machine itself has no such address");
        }
    }

    #[test]
    fn a_firewall_in_one_namespace_drops() {
        let (a, b) = pair();
        let address: SocketAddr = "192.0.2.1:80".parse().unwrap();
        let _listener = a.enter(|| TcpListener::bind(address)).unwrap().unwrap();
        a.nft("table inet f { chain input { type filter hook input priority 0; policy drop; }; }").unwrap();
        let connect = |patience| b.enter(|| TcpStream::connect_timeout(&address, patience)).unwrap();
        assert!(connect(Duration::from_millis(300)).is_err());
        a.nft("").unwrap();
        assert!(connect(Duration::from_secs(20)).is_ok());
    }

    #[test]
    fn drop_removes_the_namespace_and_kills_what_runs_in_it() {
        let netns = Netns::new("gone").unwrap();
        let scratch = netns.scratch().unwrap();
        let (path, mut child) = (netns.path(), netns.command("sleep").arg("600").spawn().unwrap());
        crate::process::wait_until("sleep to be inside", Duration::from_secs(30), || {
            Ok((!netns.pids()?.is_empty()).then_some(()))
        })
        .unwrap();
        drop(netns);
        assert!(!path.exists() && !scratch.exists());
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn namespaces_of_a_dead_process_are_removed_and_those_of_a_living_one_stay() {
        let mut dead = Command::new("true").spawn().unwrap();
        let start = start_time(dead.id()).unwrap();
        let name = format!("{PREFIX}{}-{start}-0-left", dead.id());
        dead.wait().unwrap();
        let living = Netns::new("living").unwrap();
        {
            let _lock = lock().unwrap();
            run(Command::new("ip").args(["netns", "add", &name])).unwrap();
        }
        remove_leftovers().unwrap();
        assert!(!Path::new(RUN_DIR).join(&name).exists());
        assert!(living.path().exists());
    }

    #[test]
    fn a_failing_command_is_an_error_with_its_output() {
        let netns = Netns::new("fail").unwrap();
        let error = netns.run("ip link set nosuch up").unwrap_err().to_string();
        assert!(error.contains("nosuch"), "{error}");
    }
}

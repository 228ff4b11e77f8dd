//! Up, killed, taken over, replaced, taken down.

use std::error::Error;
use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use aya::programs::{Xdp, XdpMode as AyaMode};
use aya::{Ebpf, EbpfLoader};
use portcullis::gate::{self, GateError, XdpMode};
use portcullis_common::{DropReason, Verdict};

use crate::closed::flooded;
use crate::lab::{ANSWER, EDGE, Echo, Lab, SILENCE};

const UNSOLICITED: Verdict = Verdict::Drop(DropReason::UdpUnsolicited);

/// A process that holds the gate, to be killed.
pub struct Holder {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Holder {
    pub fn start(lab: &Lab, options: &[&str]) -> Self {
        let mut command = lab.edge.command(env!("CARGO_BIN_EXE_gate_hold"));
        command.arg(&lab.pin.path).args(["--interface", "eth0", "--tcp", "443", "--udp", "443"]);
        command.args(options).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut holder = Self { child, stdin, stdout };
        let line = holder.line();
        assert!(line.starts_with("up "), "{line}");
        holder
    }

    /// The counters, and the events since the last time.
    pub fn ask(&mut self) -> String {
        self.stdin.write_all(b"\n").unwrap();
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn kill_nine_leaves_the_drop_and_a_restart_takes_it_over() {
    let lab = Lab::new();
    let _planted: Vec<Echo> = [443, 8080].map(|port| Echo::on(&lab.edge, port)).into();
    let mut holder = Holder::start(&lab, &[]);
    assert_eq!(lab.stranger_reaches_udp(8080, SILENCE), [false; 2]);
    let mut connection = connect(&lab, 443);
    let before = lab.status();
    holder.kill();

    assert_eq!(lab.stranger_reaches_tcp(8080, SILENCE), [false; 2], "nobody holds the gate");
    assert_eq!(lab.stranger_reaches_udp(8080, SILENCE), [false; 2]);
    assert_eq!(lab.stranger_reaches_tcp(443, ANSWER), [true; 2], "what is served stays served");
    exchange(&mut connection);

    let gate = lab.open(&lab.config()).unwrap();
    let after = lab.status();
    assert_eq!(before.interfaces, after.interfaces);
    assert_eq!(gate.counters().unwrap().of(UNSOLICITED), 4, "the counts go on");
    exchange(&mut connection);
    assert_eq!(lab.stranger_reaches_tcp(8080, SILENCE), [false; 2]);
}

#[test]
fn detach_works_with_the_daemon_dead_and_with_it_alive() {
    let lab = Lab::new();
    let _planted = Echo::on(&lab.edge, 8080);
    for dead in [true, false] {
        let mut holder = Holder::start(&lab, &[]);
        if dead {
            holder.kill();
        }
        assert_eq!(lab.stranger_reaches_tcp(8080, SILENCE), [false; 2]);
        assert_eq!(lab.detach(), ["interface eth0"]);
        assert_eq!(lab.stranger_reaches_tcp(8080, ANSWER), [true; 2], "daemon dead: {dead}");
        if !dead {
            assert!(holder.ask().starts_with("unguarded "), "a living daemon sees that it is unguarded");
        }
        assert!(!lab.pin.path.exists());
        assert!(!lab.status().is_up());
        assert_eq!(lab.detach(), Vec::<String>::new(), "a second time there is nothing to take down");
    }
}

#[test]
fn the_gate_is_read_after_every_capability_is_gone() {
    let lab = Lab::new();
    let mut holder = Holder::start(&lab, &["--drop-capabilities"]);
    let pid = holder.child.id();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    assert_eq!(lab.stranger_reaches_udp(8080, SILENCE), [false; 2]);
    let answer = holder.ask();
    assert!(answer.starts_with("guarded "), "{answer}");
    assert!(answer.contains("drop:udp_unsolicited=2"), "{answer}");
    assert!(answer.contains("event:udp_unsolicited=Some(192.0.2.2:"), "{answer}");
}

#[test]
fn nothing_passes_while_the_gate_is_restarted_and_replaced() {
    let lab = Lab::new();
    let planted = Echo::on(&lab.edge, 5353);
    let _gate = lab.open(&lab.config()).unwrap();
    let sent = flooded(&lab, 5353, || {
        for _ in 0..10 {
            let _gate = lab.open(&lab.config()).unwrap();
            // Other maps make it another program, which the next turn replaces.
            std::fs::remove_dir_all(
                lab.pin.path.join(format!("maps_{}", portcullis_common::layout::VERSION)),
            )
            .unwrap();
        }
    });
    assert!(sent.is_steady(), "control: {sent:?}");
    assert_eq!(planted.received.load(Ordering::Relaxed), 0);
    let gate = lab.open(&lab.config()).unwrap();
    assert_eq!(lab.stranger_reaches_udp(5353, SILENCE), [false; 2]);
    assert_eq!(gate.counters().unwrap().of(UNSOLICITED), 2, "the program counts in the new maps");
}

#[test]
fn the_same_program_on_the_same_maps_is_not_replaced() {
    let lab = Lab::new();
    let _gate = lab.open(&lab.config()).unwrap();
    let before = program_of(&lab);
    let _gate = lab.open(&lab.config()).unwrap();
    assert_eq!(program_of(&lab), before);
    std::fs::remove_dir_all(lab.pin.path.join(format!("maps_{}", portcullis_common::layout::VERSION)))
        .unwrap();
    let _gate = lab.open(&lab.config()).unwrap();
    assert_ne!(program_of(&lab), before);
}

#[test]
fn maps_of_another_layout_are_removed() {
    let lab = Lab::new();
    let _gate = lab.open(&lab.config()).unwrap();
    let old = lab.pin.path.join("maps_0");
    std::fs::create_dir(&old).unwrap();
    let _gate = lab.open(&lab.config()).unwrap();
    assert!(!old.exists());
    assert!(lab.pin.path.join(format!("maps_{}", portcullis_common::layout::VERSION)).exists());
}

#[test]
fn a_loopback_and_an_unknown_interface_are_refused() {
    let lab = Lab::new();
    for (name, expected) in [("lo", "loopback"), ("eth9", "no interface"), ("e\"th", "no interface")] {
        let mut config = lab.config();
        config.interfaces.push(name.to_owned());
        let error = lab.open(&config).err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!lab.status().is_up(), "a refused start guards nothing that was not guarded");
    }
}

#[test]
fn another_program_is_left_alone_and_the_gate_refuses() {
    for mode in [AyaMode::Driver, AyaMode::Skb] {
        let lab = Lab::new();
        let (_other, id) = lab.edge.enter(|| attach_other(mode)).unwrap();
        let error = lab.open(&lab.config()).err().unwrap();
        assert!(matches!(error, GateError::OtherProgram { .. }), "{error}");
        let shown = lab.edge.run("ip -d link show eth0").unwrap();
        assert!(shown.contains(&format!("prog/xdp id {id}")), "{shown}");
        assert!(!lab.status().is_up());
    }
}

/// A failed start takes off what it had put on, and nothing else.
#[test]
fn a_start_that_fails_half_way_guards_no_more_than_before() {
    let lab = Lab::new();
    lab.edge.run("ip link add eth1 type veth peer name eth2").unwrap();
    lab.edge.run("ip link set eth1 up").unwrap();
    let gate = lab.open(&lab.config()).unwrap();
    let (_other, _) = lab.edge.enter(|| attach_other_to("eth2", AyaMode::Driver)).unwrap();
    let mut config = lab.config();
    config.interfaces = vec!["eth0".to_owned(), "eth1".to_owned(), "eth2".to_owned()];
    assert!(matches!(lab.open(&config).err().unwrap(), GateError::OtherProgram { .. }));
    let guarded: Vec<_> = lab.status().interfaces.into_iter().map(|found| found.interface).collect();
    assert_eq!(guarded, ["eth0"]);
    drop(gate);
}

#[test]
fn an_interface_that_is_no_longer_configured_is_let_go() {
    let lab = Lab::new();
    lab.edge.run("ip link add eth1 type veth peer name eth2").unwrap();
    let mut config = lab.config();
    config.interfaces.push("eth1".to_owned());
    let _gate = lab.open(&config).unwrap();
    assert_eq!(lab.status().interfaces.len(), 2);
    let _gate = lab.open(&lab.config()).unwrap();
    let guarded: Vec<_> = lab.status().interfaces.into_iter().map(|found| found.interface).collect();
    assert_eq!(guarded, ["eth0"]);
}

#[test]
fn an_interface_that_was_made_anew_under_its_name_is_guarded_again() {
    let lab = Lab::new();
    lab.edge.run("ip link add eth1 type veth peer name eth2").unwrap();
    let mut config = lab.config();
    config.interfaces = vec!["eth1".to_owned()];
    let _gate = lab.open(&config).unwrap();
    lab.edge.run("ip link delete eth1").unwrap();
    assert!(!lab.status().is_up());
    lab.edge.run("ip link add eth1 type veth peer name eth2").unwrap();
    let _gate = lab.open(&config).unwrap();
    assert!(lab.status().is_up());
}

/// A bridge has no XDP of its own. VLAN tags stay in the frame in either mode.
#[test]
fn a_driver_without_xdp_gets_the_generic_mode() {
    let lab = Lab::new();
    let _planted = Echo::on(&lab.edge, 8080);
    lab.edge.run("ip link add br.1 type bridge").unwrap();
    lab.edge.run("ip link set eth0 master br.1").unwrap();
    lab.edge.run("ip link set br.1 up").unwrap();
    lab.edge.run("ip address flush dev eth0").unwrap();
    lab.edge.address("br.1", "192.0.2.1/24").unwrap();
    lab.edge.address("br.1", "2001:db8::1/64").unwrap();
    assert_eq!(lab.stranger_reaches_tcp(8080, ANSWER), [true; 2]);
    let mut config = lab.config();
    config.interfaces = vec!["br.1".to_owned()];
    let gate = lab.open(&config).unwrap();
    assert_eq!(gate.interfaces(), [("br.1".to_owned(), XdpMode::Generic)]);
    assert_eq!(lab.stranger_reaches_tcp(8080, SILENCE), [false; 2]);
    assert_eq!(lab.detach(), ["interface br.1"]);
    assert_eq!(lab.stranger_reaches_tcp(8080, ANSWER), [true; 2]);
}

#[test]
fn vlan_tags_are_left_in_the_frame() {
    let lab = Lab::new();
    let feature = || lab.edge.run("ethtool -k eth0").unwrap();
    assert!(feature().contains("rx-vlan-offload: on"), "control: {}", feature());
    let _gate = lab.open(&lab.config()).unwrap();
    assert!(feature().contains("rx-vlan-offload: off"), "{}", feature());
}

#[test]
fn a_bpffs_is_mounted_where_there_is_none() {
    let lab = Lab::new();
    let directory = tempfile::tempdir().unwrap();
    let pin = directory.path().join("pins");
    let _mounted = Mounted(&pin);
    let mut config = lab.config();
    config.pin.clone_from(&pin);
    let gate = lab.open(&config).unwrap();
    let is_up = || lab.edge.enter(|| gate::status(&pin)).unwrap().unwrap().is_up();
    assert!(is_up());
    // Nobody else may write to it, look into it or hold its lock.
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&pin), 0o700);
    drop(gate);
    lab.edge.enter(|| gate::detach(&pin)).unwrap().unwrap();
    assert!(!is_up());
}

#[test]
fn pins_are_their_owners_alone() {
    let lab = Lab::new();
    let pin = lab.config().pin;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    // As an earlier version made it.
    std::fs::create_dir_all(&pin).unwrap();
    std::fs::set_permissions(&pin, Permissions::from_mode(0o755)).unwrap();
    drop(lab.open(&lab.config()).unwrap());
    assert_eq!((mode(&pin), mode(&pin.join("links"))), (0o700, 0o700));
    lab.detach();

    // Somebody who was here first could take the gate off.
    std::fs::create_dir_all(&pin).unwrap();
    std::os::unix::fs::chown(&pin, Some(65_534), None).unwrap();
    let refused = lab.open(&lab.config()).err().unwrap();
    assert!(refused.source().unwrap().to_string().contains("no directory of this user"), "{refused:?}");
    assert!(!pin.join("links").exists(), "nothing was put up");
    std::os::unix::fs::chown(&pin, Some(0), None).unwrap();
}

/// Unmounted at the end, before the directory around it is removed.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn events_wake_an_async_reader() {
    let lab = Lab::new();
    let mut gate = lab.open(&lab.config()).unwrap();
    let events = gate.events().unwrap();
    assert!(gate.events().is_none(), "there is one reader");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let event = runtime.block_on(async {
        let mut events = events.into_async().unwrap();
        // The drop happens while the reader waits.
        let sender = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            lab.stranger_reaches_udp(8080, SILENCE)
        };
        let wanted = async {
            loop {
                let event = events.next().await.unwrap();
                if event.reason == DropReason::UdpUnsolicited {
                    return event;
                }
            }
        };
        let (event, reached) = tokio::join!(tokio::time::timeout(ANSWER, wanted), sender);
        assert_eq!(reached, [false; 2]);
        event.unwrap()
    });
    let ends = event.ends.unwrap();
    assert_eq!(
        (ends.source.ip().to_string(), ends.destination.to_string()),
        ("192.0.2.2".to_owned(), "192.0.2.1:8080".to_owned())
    );
    assert!(event.ifindex > 0 && event.length >= 42 && !event.at.is_zero());
}

fn connect(lab: &Lab, port: u16) -> TcpStream {
    let to = SocketAddr::new(EDGE[1].parse().unwrap(), port);
    lab.stranger.enter(|| TcpStream::connect(to)).unwrap().unwrap()
}

fn exchange(connection: &mut TcpStream) {
    connection.set_read_timeout(Some(ANSWER)).unwrap();
    connection.write_all(b"?").unwrap();
    connection.read_exact(&mut [0]).unwrap();
}

/// Which program the kernel runs on `eth0`.
fn program_of(lab: &Lab) -> String {
    let shown = lab.edge.run("ip -d link show eth0").unwrap();
    let (_, id) = shown.split_once("prog/xdp id ").unwrap();
    id.split_whitespace().next().unwrap().to_owned()
}

fn attach_other(mode: AyaMode) -> (Ebpf, u32) {
    attach_other_to("eth0", mode)
}

fn attach_other_to(interface: &str, mode: AyaMode) -> (Ebpf, u32) {
    let mut ebpf = EbpfLoader::new().load(gate::OBJECT).unwrap();
    let program: &mut Xdp = ebpf.program_mut(gate::INGRESS).unwrap().try_into().unwrap();
    program.load().unwrap();
    program.attach(interface, mode).unwrap();
    let id = program.info().unwrap().id();
    (ebpf, id)
}

#[test]
fn the_default_pin_is_on_a_bpffs_after_the_first_start() {
    let lab = Lab::new();
    let _gate = lab.open(&lab.config()).unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        mounts.lines().any(|line| line.split(' ').nth(1) == Some("/sys/fs/bpf") && line.contains(" bpf "))
    );
    assert!(Path::new("/sys/fs/bpf").join(lab.edge.name()).join("links/eth0/native").exists());
}

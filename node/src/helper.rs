//! The one part of a node that keeps a privilege: a process of its own, started before the daemon gives all of them
//! up, which ends with it.
//!
//! It holds CAP_NET_ADMIN and CAP_BPF and does two things: it attaches the gate, as it is pinned, to an interface that
//! the configuration names, and has the kernel keep a neighbour on such an interface found. It reads the configuration
//! itself, so that a daemon that was taken over can ask for nothing else. A false answer costs nothing but an interface
//! that is guarded, or a neighbour that is asked for.
//!
//! One request and one answer at a time, each one packet on a pair of sockets: a kind and a name, or a kind, an index
//! and an address; a status, numbers and a text, with the descriptors of the links beside it.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use caps::{CapSet, Capability};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::config::Config;
use crate::gate::{Attacher, GateMode, Grip, XdpMode};

/// Longest packet of either side.
const LONGEST: usize = 1024;
const ATTACH: u8 = 1;
const KEEP_NEIGHBOUR: u8 = 2;
const DONE: u8 = 0;
const FAILED: u8 = 1;
/// How long the daemon waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Links of one interface.
const LINKS: usize = 2;

/// The daemon's end.
pub struct Helper {
    socket: OwnedFd,
    /// One request at a time.
    turn: Mutex<()>,
    /// Kept, so that nobody else gets its process id.
    _child: Child,
}

impl Helper {
    /// Starts the process. `config` is the file that the daemon runs by.
    pub fn start(config: &Path) -> anyhow::Result<Self> {
        let start = || -> anyhow::Result<Self> {
            let (own, other) = rustix::net::socketpair(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )?;
            rustix::net::sockopt::set_socket_timeout(
                &own,
                rustix::net::sockopt::Timeout::Recv,
                Some(PATIENCE),
            )?;
            // By this path it is the same program even after an upgrade has replaced the file.
            let child = Command::new("/proc/self/exe")
                .args(["helper", "--config"])
                .arg(config)
                .stdin(Stdio::from(other))
                .stdout(Stdio::null())
                .spawn()?;
            Ok(Self { socket: own, turn: Mutex::new(()), _child: child })
        };
        start().context("the gate's helper cannot be started")
    }

    /// Has the gate attached to an interface that the configuration names. Blocks until it is.
    pub fn attach(&self, interface: &str) -> anyhow::Result<Grip> {
        let mut request = vec![ATTACH];
        request.extend(interface.bytes());
        let (numbers, links) = self.ask(&request)?;
        grip(&numbers, links)
    }

    /// Has the kernel find a neighbour on an interface that the configuration names, and keep it found. Blocks until it
    /// has begun to.
    pub fn keep_neighbour(&self, ifindex: u32, address: IpAddr) -> anyhow::Result<()> {
        let mut request = vec![KEEP_NEIGHBOUR];
        request.extend(ifindex.to_ne_bytes());
        request.extend(address_bytes(address));
        self.ask(&request).map(drop)
    }

    /// Sends a request and waits for its answer, after those of others.
    fn ask(&self, request: &[u8]) -> anyhow::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        rustix::net::send(&self.socket, request, SendFlags::NOSIGNAL).context("the gate's helper is gone")?;
        let (answer, links) = receive(self.socket.as_fd())?;
        match answer.split_first() {
            Some((&DONE, rest)) => Ok((rest.to_vec(), links)),
            Some((_, text)) => anyhow::bail!("{}", String::from_utf8_lossy(text)),
            None => anyhow::bail!("the gate's helper is gone"),
        }
    }
}

fn grip(numbers: &[u8], links: Vec<OwnedFd>) -> anyhow::Result<Grip> {
    let (ifindex, mode) = numbers.split_first_chunk::<4>().context("a short answer of the gate's helper")?;
    let mode = if mode == [0] { XdpMode::Native } else { XdpMode::Generic };
    let mut links = links.into_iter();
    let ingress = links.next().context("an answer of the gate's helper without a link")?;
    Ok(Grip { mode, ifindex: u32::from_ne_bytes(*ifindex), ingress, egress: links.next() })
}

/// The process itself: answers on standard input until the daemon is gone.
pub fn run(config: &Path) -> anyhow::Result<()> {
    crate::role::start_logging();
    let attacher = Attacher::open(&Config::load(config)?.gate_config(GateMode::Enforce))?;
    keep_little()?;
    let stdin = io::stdin();
    loop {
        let (request, _) = receive(stdin.as_fd())?;
        match request.split_first() {
            None => return Ok(()),
            Some((&ATTACH, name)) => match attach(&attacher, config, name) {
                Ok(grip) => answer(stdin.as_fd(), &grip)?,
                Err(error) => refuse(stdin.as_fd(), &format!("{error:#}"))?,
            },
            Some((&KEEP_NEIGHBOUR, rest)) => match keep(config, rest) {
                Ok(()) => rustix::net::send(&stdin, &[DONE], SendFlags::NOSIGNAL).map(drop)?,
                Err(error) => refuse(stdin.as_fd(), &format!("{error:#}"))?,
            },
            Some(_) => refuse(stdin.as_fd(), "not a request of this version")?,
        }
    }
}

fn attach(attacher: &Attacher, config: &Path, name: &[u8]) -> anyhow::Result<Grip> {
    let name = std::str::from_utf8(name)?;
    let config = Config::load(config)?;
    ensure!(
        config.gate.interfaces.iter().any(|wanted| wanted == name),
        "`{name}` is not in `gate.interfaces`"
    );
    Ok(attacher.attach(name)?)
}

fn keep(config: &Path, request: &[u8]) -> anyhow::Result<()> {
    let (ifindex, address) = request.split_first_chunk::<4>().context("a short request")?;
    let address: [u8; 16] = address.try_into().context("not an address")?;
    let ifindex = u32::from_ne_bytes(*ifindex);
    let socket = UdpSocket::bind("[::]:0").or_else(|_| UdpSocket::bind("0.0.0.0:0"))?;
    let index = |name: &String| rustix::net::netdevice::name_to_index(&socket, name);
    let config = Config::load(config)?;
    ensure!(
        config.gate.interfaces.iter().any(|name| index(name).is_ok_and(|index| index == ifindex)),
        "interface {ifindex} is not in `gate.interfaces`"
    );
    Ok(crate::gate::keep_neighbour(ifindex, IpAddr::from(address).to_canonical())?)
}

/// IPv4 as a mapped address.
fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn keep_little() -> anyhow::Result<()> {
    let kept = [Capability::CAP_NET_ADMIN, Capability::CAP_BPF].into_iter().collect();
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, set).context("dropping capabilities")?;
    }
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).context("dropping capabilities")?;
    }
    rustix::thread::set_no_new_privs(true).context("no_new_privs")
}

fn answer(socket: BorrowedFd<'_>, grip: &Grip) -> anyhow::Result<()> {
    let mut bytes = vec![DONE];
    bytes.extend(grip.ifindex.to_ne_bytes());
    bytes.push(u8::from(grip.mode == XdpMode::Generic));
    let links: Vec<BorrowedFd<'_>> =
        std::iter::once(&grip.ingress).chain(&grip.egress).map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LINKS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    ensure!(control.push(SendAncillaryMessage::ScmRights(&links)), "too many links for one answer");
    rustix::net::sendmsg(socket, &[io::IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn refuse(socket: BorrowedFd<'_>, text: &str) -> anyhow::Result<()> {
    let mut bytes = vec![FAILED];
    bytes.extend(text.bytes().take(LONGEST - 1));
    rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// One packet and the descriptors with it; an empty one when the other end is gone.
fn receive(socket: BorrowedFd<'_>) -> anyhow::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LINKS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [io::IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result.context("the gate's helper does not answer")?,
        }
    };
    bytes.truncate(received.bytes);
    let mut links = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            links.extend(descriptors);
        }
    }
    Ok((bytes, links))
}

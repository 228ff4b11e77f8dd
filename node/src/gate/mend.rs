//! Interfaces that come while the daemon runs: made anew under their name, or configured by a reload.
//!
//! The daemon sees them, but may not attach anything. [`Attacher`] is what a privileged process keeps to do it;
//! the [`Grip`] that it hands back is all that the daemon needs to watch the interface.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;

use super::attach::{self, Attached, Device};
use super::egress::{Egress, EgressHook};
use super::netlink::Netlink;
use super::object::Object;
use super::pin::PinDir;
use super::{Gate, GateConfig, GateError, Plane, XdpMode};

/// The gate's programs, loaded on the pinned maps, for interfaces to come.
pub struct Attacher {
    object: Object,
    pin: PinDir,
    egress: Option<EgressHook>,
}

/// One guarded interface, as one process hands it to another.
#[derive(Debug)]
pub struct Grip {
    pub mode: XdpMode,
    pub ifindex: u32,
    /// The XDP link.
    pub ingress: OwnedFd,
    /// The tcx link; a clsact filter has none.
    pub egress: Option<OwnedFd>,
}

impl Attacher {
    /// For a gate that is up. Needs the privileges that loading programs takes; [`Self::attach`] needs CAP_NET_ADMIN
    /// and CAP_BPF alone.
    ///
    /// # Errors
    ///
    /// When the programs cannot be loaded on the pinned maps.
    pub fn open(config: &GateConfig) -> Result<Self, GateError> {
        let pin = PinDir::new(&config.pin);
        let object = Object::load(&pin)?;
        Ok(Self { object, pin, egress: config.egress })
    }

    /// Guards the interface. An administrator who has taken the gate down meanwhile is not overruled.
    ///
    /// # Errors
    ///
    /// As of [`Gate::open`](super::Gate::open); the interface is then as it was.
    pub fn attach(&self, interface: &str) -> Result<Grip, GateError> {
        if !self.pin.maps().exists() {
            return Err(GateError::TakenDown);
        }
        let _lock = self.pin.lock()?;
        let device = Device::find(interface)?;
        let attached = attach::attach_all(&self.object, &self.pin, &[device], self.egress)?;
        let attached = attached.into_iter().next();
        let attached =
            attached.ok_or_else(|| GateError::UnknownInterface { interface: interface.to_owned() })?;
        let egress = match attached.egress {
            Egress::Link(link) => Some(link),
            Egress::Filter(..) => None,
        };
        Ok(Grip { mode: attached.mode, ifindex: attached.ifindex, ingress: attached.ingress, egress })
    }
}

impl GateConfig {
    /// Only those interfaces that are there now.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be asked.
    pub fn present(mut self) -> io::Result<Self> {
        let netlink = Netlink::open()?;
        let mut present = Vec::new();
        for interface in self.interfaces {
            if netlink.index_of(&interface)?.is_some() {
                present.push(interface);
            }
        }
        self.interfaces = present;
        Ok(self)
    }
}

impl Gate {
    /// Of the wanted interfaces those that are there and were never guarded: new, or made anew under their name. One
    /// from which somebody has taken the gate is not among them.
    pub fn unguarded(&self, wanted: &[String]) -> Vec<String> {
        let Plane::Xdp(xdp) = &self.plane else { return Vec::new() };
        let Ok(netlink) = Netlink::open() else { return Vec::new() };
        let known = |name: &str| xdp.attached.iter().find(|found| found.interface == name);
        let is_new = |name: &&String| match netlink.index_of(name) {
            Ok(Some(ifindex)) => known(name).is_none_or(|found| found.ifindex != ifindex),
            Ok(None) | Err(_) => false,
        };
        wanted.iter().filter(is_new).cloned().collect()
    }

    /// Whether every wanted interface is guarded, and every other that ever was.
    pub fn guards(&self, wanted: &[String]) -> bool {
        let Plane::Xdp(xdp) = &self.plane else { return true };
        let has = |name: &String| xdp.attached.iter().any(|found| found.interface == *name);
        self.is_up() && wanted.iter().all(has)
    }

    /// Watches an interface that another process has attached the gate to.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be asked about it.
    pub fn adopt(&mut self, interface: &str, grip: Grip) -> io::Result<()> {
        let Plane::Xdp(xdp) = &mut self.plane else { return Ok(()) };
        let Grip { mode, ifindex, ingress, egress } = grip;
        let egress = Egress::adopt(egress, ifindex)?;
        let interface = interface.to_owned();
        xdp.attached.retain(|found| found.interface != interface);
        xdp.attached.push(Attached { interface, mode, ifindex, ingress, egress });
        Ok(())
    }
}

/// Tells that some interface of this network namespace came, went or changed (rtnetlink(7), RTNLGRP_LINK). Needs no
/// privilege.
pub struct LinkEvents {
    socket: AsyncFd<OwnedFd>,
}

impl LinkEvents {
    /// # Errors
    ///
    /// Outside of a runtime with I/O, or without netlink.
    pub fn open() -> io::Result<Self> {
        /// `RTMGRP_LINK` of include/uapi/linux/rtnetlink.h.
        const LINKS: u32 = 1;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, LINKS))?;
        // SAFETY: the descriptor is owned, and nothing closes or replaces it while `AsyncFd` lives.
        #[expect(unsafe_code, reason = "registration asks for a promise about the descriptor")]
        let socket = unsafe { AsyncFd::register(socket)? };
        Ok(Self { socket })
    }

    /// Waits for a change. What it was is not said: whoever asks looks for himself, and so misses nothing even where
    /// the kernel had no room for all of its messages. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the runtime shuts down.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut ready = self.socket.readable().await?;
        let mut buffer = [0; 1];
        let mut drain = || rustix::net::recv(self.socket.get_ref(), &mut buffer[..], RecvFlags::TRUNC);
        while matches!(drain(), Ok(_) | Err(rustix::io::Errno::NOBUFS)) {}
        ready.clear_ready();
        Ok(())
    }
}

//! Where the egress program sits: on a pinned tcx link or, on kernels without those (before Linux 6.6), in a
//! BPF filter on the interface's clsact qdisc.
//!
//! The program answers `TCX_NEXT`, which is the `TC_ACT_UNSPEC` of filters: whoever is next decides.
//!
//! A filter belongs to the interface and to no process, so it needs no pin. It is known by its priority,
//! its handle and its name; others' filters are neither changed nor removed. The qdisc
//! is left behind by [`remove_filter`]: it does not say who made it, and empty it does nothing.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use super::GateError;
use super::attach::{self, Device};
use super::netlink::{Filter, Netlink, Place};
use super::object::{EGRESS, Identity, Object};
use super::pin::PinDir;
use super::sys::Hook;

/// The first to run: a filter before it could end the packet's way through the filters.
const PRIORITY: u16 = 1;
/// Ours among BPF filters of this priority, which run one after the other.
const HANDLE: u32 = u32::from_be_bytes(*b"gate");

/// How the egress program is on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EgressHook {
    /// By a tcx link; Linux 6.6 or later.
    Tcx,
    /// By a BPF filter on the clsact qdisc.
    Clsact,
}

impl fmt::Display for EgressHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// The egress program on an interface.
#[derive(Debug)]
pub(super) enum Egress {
    Link(OwnedFd),
    /// The connection is kept, since it leads to the namespace that the interface is in.
    Filter(Place, Mutex<Netlink>),
}

impl Egress {
    /// That of a link, or of the filter on the interface of this index if there is none.
    pub(super) fn adopt(link: Option<OwnedFd>, ifindex: u32) -> io::Result<Self> {
        match link {
            Some(link) => Ok(Self::Link(link)),
            None => Ok(Self::Filter(place(ifindex), Mutex::new(Netlink::open()?))),
        }
    }

    /// Whether it is still there. Needs no privilege.
    pub(super) fn is_up(&self) -> bool {
        match self {
            Self::Link(link) => attach::is_on_device(link),
            Self::Filter(place, netlink) => {
                let mut netlink = netlink.lock().unwrap_or_else(PoisonError::into_inner);
                netlink.filter(*place).is_ok_and(|found| found.is_some_and(|filter| is_ours(&filter)))
            }
        }
    }
}

/// Puts the program on the interface, or takes over what is there: by tcx if the kernel has it, unless
/// `wanted` says how.
pub(super) fn put(
    object: &Object,
    pin: &PinDir,
    device: &Device<'_>,
    wanted: Option<EgressHook>,
) -> Result<Egress, GateError> {
    let interface = device.name;
    let failed = |source| GateError::Attach { interface: interface.to_owned(), what: "egress", source };
    if wanted != Some(EgressHook::Clsact) {
        if let Some(link) = attach::adopt(object, pin, device, Hook::TcxEgress)? {
            return Ok(Egress::Link(link));
        }
        match attach::create(object, pin, device, Hook::TcxEgress) {
            Ok(link) => {
                // Left by an older kernel's way of doing it.
                remove_filter(interface)?;
                return Ok(Egress::Link(link));
            }
            Err(error) if wanted.is_none() && is_unknown(&error) => {
                tracing::info!(%interface, "this kernel has no tcx: the egress program is a clsact filter");
            }
            Err(error) => return Err(failed(error)),
        }
    }
    let filter = put_filter(object, device)?;
    attach::detach_link(&pin.link(interface, Hook::TcxEgress))?;
    Ok(filter)
}

/// Takes the filter off an interface, if it has ours.
pub(super) fn remove_filter(interface: &str) -> Result<bool, GateError> {
    let remove = || -> io::Result<bool> {
        let Some((place, mut netlink)) = find(interface)? else { return Ok(false) };
        netlink.delete_filter(place)?;
        Ok(true)
    };
    remove().map_err(|source| GateError::Filter { interface: interface.to_owned(), source })
}

/// How the program is on an interface; `None` if it is not.
pub(super) fn inspect(pin: &PinDir, interface: &str) -> Result<Option<EgressHook>, GateError> {
    if attach::inspect(&pin.link(interface, Hook::TcxEgress))?.is_some() {
        return Ok(Some(EgressHook::Tcx));
    }
    let found = find(interface);
    let found = found.map_err(|source| GateError::Filter { interface: interface.to_owned(), source })?;
    Ok(found.map(|_| EgressHook::Clsact))
}

fn put_filter(object: &Object, device: &Device<'_>) -> Result<Egress, GateError> {
    let interface = device.name;
    let failed = |source| GateError::Attach { interface: interface.to_owned(), what: "egress", source };
    let program = object.program(EGRESS)?;
    let place = place(device.ifindex);
    let mut netlink = Netlink::open().map_err(failed)?;
    let present = netlink.filter(place).map_err(failed)?;
    if let Some(filter) = &present {
        if !is_ours(filter) {
            return Err(GateError::OtherFilter { interface: interface.to_owned() });
        }
        if Identity::of_id(filter.program_id)?.as_ref() == Some(program.identity) {
            tracing::info!(%interface, hook = %EgressHook::Clsact, "the gate was in place and stays");
            return Ok(Egress::Filter(place, Mutex::new(netlink)));
        }
    } else {
        netlink.ensure_clsact(device.ifindex).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => GateError::OtherQdisc { interface: interface.to_owned() },
            _ => failed(error),
        })?;
    }
    netlink.put_filter(place, EGRESS, program.fd.as_fd(), present.is_some()).map_err(|error| {
        // Filters of one priority are of one kind and protocol.
        match error.raw_os_error() {
            Some(libc::EINVAL | libc::EEXIST) => GateError::OtherFilter { interface: interface.to_owned() },
            _ => failed(error),
        }
    })?;
    if present.is_some() {
        tracing::info!(%interface, hook = %EgressHook::Clsact, "the gate's program was replaced");
    }
    Ok(Egress::Filter(place, Mutex::new(netlink)))
}

/// Our filter on an interface.
fn find(interface: &str) -> io::Result<Option<(Place, Netlink)>> {
    let mut netlink = Netlink::open()?;
    let Some(ifindex) = netlink.index_of(interface)? else { return Ok(None) };
    let place = place(ifindex);
    let ours = netlink.filter(place)?.is_some_and(|filter| is_ours(&filter));
    Ok(ours.then_some((place, netlink)))
}

fn place(ifindex: u32) -> Place {
    Place { ifindex, priority: PRIORITY, handle: HANDLE }
}

fn is_ours(filter: &Filter) -> bool {
    filter.name == EGRESS
}

/// What kernels say to a kind of link that they do not know, or were built without.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

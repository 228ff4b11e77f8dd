//! Puts the programs on interfaces by pinned links, or takes over the links that are pinned already.

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::egress::{self, Egress, EgressHook};
use super::object::{EGRESS, INGRESS, Identity, Object};
use super::pin::PinDir;
use super::sys::{self, Hook};
use super::{GateError, XdpMode};

/// One guarded interface.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) interface: String,
    pub(super) mode: XdpMode,
    pub(super) ifindex: u32,
    pub(super) ingress: OwnedFd,
    pub(super) egress: Egress,
}

impl Attached {
    /// Whether both programs are still on the interface. Needs no privilege.
    pub(super) fn is_up(&self) -> bool {
        is_on_device(&self.ingress) && self.egress.is_up()
    }
}

/// Guards every interface or, on an error, none that was not guarded before.
pub(super) fn attach_all(
    object: &Object,
    pin: &PinDir,
    devices: &[Device<'_>],
    egress: Option<EgressHook>,
) -> Result<Vec<Attached>, GateError> {
    let mut fresh = Fresh { pin, links: Vec::new() };
    let mut attached = Vec::new();
    for device in devices {
        attached.push(attach(object, pin, device, egress, &mut fresh)?);
    }
    fresh.links.clear();
    Ok(attached)
}

/// Takes the gate off one interface. Links of a name that has none are no error.
pub(super) fn detach(pin: &PinDir, interface: &str) -> Result<bool, GateError> {
    let mut found = false;
    for hook in [Hook::XdpNative, Hook::XdpGeneric, Hook::TcxEgress] {
        found |= detach_link(&pin.link(interface, hook))?;
    }
    found |= egress::remove_filter(interface)?;
    let directory = pin.interface(interface);
    match std::fs::remove_dir(&directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(GateError::Pin { path: directory, source })
        }
        _ => Ok(found),
    }
}

/// Takes a pinned link off its interface; whether there was one.
pub(super) fn detach_link(path: &Path) -> Result<bool, GateError> {
    let Some(link) = open_link(path)? else { return Ok(false) };
    // A link whose device is gone has nothing to detach from, and says so.
    let gone = sys::link_info(link.as_fd()).is_ok_and(|info| info.ifindex == 0);
    match sys::link_detach(link.as_fd()) {
        Err(source) if !gone => Err(GateError::Pin { path: path.to_owned(), source }),
        _ => unpin(path).map(|()| true),
    }
}

/// Whether the link's interface is still there. Needs no privilege.
pub(super) fn is_on_device(link: &OwnedFd) -> bool {
    sys::link_info(link.as_fd()).is_ok_and(|info| info.ifindex != 0)
}

/// Interface that a pinned link is on, and the program behind it; `None` if there is no such link or its
/// device is gone.
pub(super) fn inspect(path: &Path) -> Result<Option<sys::LinkInfo>, GateError> {
    let Some(link) = open_link(path)? else { return Ok(None) };
    let info =
        sys::link_info(link.as_fd()).map_err(|source| GateError::Pin { path: path.to_owned(), source })?;
    Ok((info.ifindex != 0).then_some(info))
}

pub(super) struct Device<'a> {
    pub(super) name: &'a str,
    pub(super) ifindex: u32,
}

impl<'a> Device<'a> {
    pub(super) fn find(name: &'a str) -> Result<Self, GateError> {
        let unknown = || GateError::UnknownInterface { interface: name.to_owned() };
        let socket = UdpSocket::bind("[::]:0").or_else(|_| UdpSocket::bind("0.0.0.0:0"));
        let socket = socket.map_err(|_| unknown())?;
        let ifindex = rustix::net::netdevice::name_to_index(&socket, name).map_err(|_| unknown())?;
        if sys::is_loopback(&socket, name).map_err(|_| unknown())? {
            return Err(GateError::Loopback { interface: name.to_owned() });
        }
        let vlan = |source| GateError::VlanTags { interface: name.to_owned(), source };
        match sys::keep_vlan_tags(&socket, name) {
            Ok(true) => Ok(Self { name, ifindex }),
            Ok(false) => Err(vlan(None)),
            Err(error) => Err(vlan(Some(error))),
        }
    }
}

/// Links that this run made; taken off again unless the run succeeds.
struct Fresh<'a> {
    pin: &'a PinDir,
    links: Vec<String>,
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        for interface in &self.links {
            if let Err(error) = detach(self.pin, interface) {
                tracing::error!(%interface, %error, "the gate stays on an interface after a failed start");
            }
        }
    }
}

/// The egress program goes first: from the first packet that is judged, answers are known.
fn attach(
    object: &Object,
    pin: &PinDir,
    device: &Device<'_>,
    egress: Option<EgressHook>,
    fresh: &mut Fresh<'_>,
) -> Result<Attached, GateError> {
    let interface = device.name.to_owned();
    let path = pin.interface(device.name);
    std::fs::create_dir_all(&path).map_err(|source| GateError::Pin { path, source })?;
    if !is_guarded(pin, device)? {
        fresh.links.push(interface.clone());
    }
    let egress = egress::put(object, pin, device, egress)?;
    let mut ingress = None;
    for mode in [XdpMode::Native, XdpMode::Generic] {
        if let Some(link) = adopt(object, pin, device, mode.hook())? {
            ingress = Some((mode, link));
        }
    }
    let (mode, ingress) = match ingress {
        Some(adopted) => adopted,
        None => create_ingress(object, pin, device)?,
    };
    Ok(Attached { interface, mode, ifindex: device.ifindex, ingress, egress })
}

fn is_guarded(pin: &PinDir, device: &Device<'_>) -> Result<bool, GateError> {
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let link = inspect(&pin.link(device.name, mode.hook()))?;
        if link.is_some_and(|link| link.ifindex == device.ifindex) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes over a pinned link: replaces its program unless it runs this one already. `None` if there is no
/// link, or it was on a device of this name that is gone.
pub(super) fn adopt(
    object: &Object,
    pin: &PinDir,
    device: &Device<'_>,
    hook: Hook,
) -> Result<Option<OwnedFd>, GateError> {
    let path = pin.link(device.name, hook);
    let Some(link) = open_link(&path)? else { return Ok(None) };
    let failed = |source| GateError::Pin { path: path.clone(), source };
    let info = sys::link_info(link.as_fd()).map_err(failed)?;
    if info.ifindex != device.ifindex {
        unpin(&path)?;
        return Ok(None);
    }
    let program = object.program(name_of(hook))?;
    if Identity::of_id(info.program_id)?.as_ref() == Some(program.identity) {
        tracing::info!(interface = device.name, ?hook, "the gate was in place and stays");
    } else {
        sys::link_update(link.as_fd(), program.fd).map_err(failed)?;
        tracing::info!(interface = device.name, ?hook, "the gate's program was replaced");
    }
    Ok(Some(link))
}

/// In the driver if it can, else in the stack. Another program there is never a reason to try the other.
fn create_ingress(
    object: &Object,
    pin: &PinDir,
    device: &Device<'_>,
) -> Result<(XdpMode, OwnedFd), GateError> {
    let interface = device.name.to_owned();
    let is_other = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST));
    let native = match create(object, pin, device, Hook::XdpNative) {
        Ok(link) => {
            tracing::info!(%interface, "the gate is up, in the driver");
            return Ok((XdpMode::Native, link));
        }
        Err(error) => error,
    };
    if is_other(&native) {
        return Err(GateError::OtherProgram { interface });
    }
    match create(object, pin, device, Hook::XdpGeneric) {
        Ok(link) => {
            tracing::warn!(%interface, reason = %native, "the gate is up in generic mode: the driver has no XDP");
            Ok((XdpMode::Generic, link))
        }
        Err(error) if is_other(&error) => Err(GateError::OtherProgram { interface }),
        Err(source) => Err(GateError::Attach { interface, what: "XDP", source }),
    }
}

pub(super) fn create(object: &Object, pin: &PinDir, device: &Device<'_>, hook: Hook) -> io::Result<OwnedFd> {
    let program = object.program(name_of(hook)).map_err(io::Error::other)?;
    let link = sys::link_create(program.fd, device.ifindex, hook)?;
    sys::pin(link.as_fd(), &pin.link(device.name, hook))?;
    Ok(link)
}

fn name_of(hook: Hook) -> &'static str {
    match hook {
        Hook::XdpNative | Hook::XdpGeneric => INGRESS,
        Hook::TcxEgress => EGRESS,
    }
}

fn open_link(path: &Path) -> Result<Option<OwnedFd>, GateError> {
    match sys::open_pin(path) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(GateError::Pin { path: path.to_owned(), source }),
    }
}

fn unpin(path: &Path) -> Result<(), GateError> {
    std::fs::remove_file(path).map_err(|source| GateError::Pin { path: path.to_owned(), source })
}

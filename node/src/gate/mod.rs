//! The kernel lane's host half: puts the gate up, reads it, takes it down.
//!
//! [`Gate::open`], with [`Dataplane::Xdp`]:
//!
//! 1. makes the pin directory, on a bpffs;
//! 2. loads the programs with the pinned maps of the same layout version, or with new ones;
//! 3. writes ports and administrators' prefixes into the maps: nothing is judged by an empty list;
//! 4. attaches by a link on each interface, or replaces the program of the link that is pinned there (on the
//!    way out, where the kernel has no such link, by a filter);
//! 5. pins the links. From here on the kernel needs no daemon: a `kill -9` changes nothing.
//!
//! With [`Dataplane::Userspace`] nftables drops instead, and the node's UDP sockets ask [`DatagramGate`].
//!
//! After `open` only descriptors of maps and links are used, so every capability may be dropped.
//! At this boundary a false accept shows the host to strangers; a false reject cuts people off, for which
//! there are the `admin` rules and [`detach`].

mod attach;
mod config;
mod control;
mod egress;
mod error;
mod events;
mod explain;
mod kernel;
mod maps;
mod memory;
mod mend;
mod netlink;
mod object;
mod pin;
mod relay;
mod status;
mod sys;
mod userspace;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

pub use config::{AdminProtocol, AdminRule, Dataplane, GateConfig, GateMode};
pub use control::{Control, Enforcement, PeerAddress};
pub use egress::EgressHook;
pub use error::GateError;
pub use events::{AsyncEvents, Ends, Events, SampledDrop};
pub use explain::{Explainer, Explanation};
pub use maps::Counters;
pub use mend::{Attacher, Grip, LinkEvents};
pub use object::{EGRESS, INGRESS, OBJECT};
pub use relay::{
    Detour, Ended, FlowGrant, FlowStatus, IdentityRef, Keeper, Leg, Placed, Placement, Relay, RelayError,
    RelayTotals, Revoked, SessionRef, SessionStatus, Standing, Usage, Way, flows, keep_neighbour,
};
#[cfg(test)]
pub(crate) use relay::{Planted, in_memory};
pub use status::{InterfaceStatus, Status, status};
pub use userspace::DatagramGate;

use attach::{Attached, Device};
use kernel::KernelTables;
use maps::Counting;
use memory::MemoryTables;
use object::Object;
use pin::PinDir;

/// Where the XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the network driver.
    Native,
    /// In the network stack, for drivers without XDP. Slower.
    Generic,
}

impl XdpMode {
    fn hook(self) -> sys::Hook {
        match self {
            Self::Native => sys::Hook::XdpNative,
            Self::Generic => sys::Hook::XdpGeneric,
        }
    }
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// The gate, up. Dropping it leaves it up.
pub struct Gate {
    plane: Plane,
    control: Control,
    streams: DatagramGate,
}

enum Plane {
    Xdp(Box<XdpPlane>),
    Userspace(DatagramGate),
}

struct XdpPlane {
    attached: Vec<Attached>,
    counting: Counting,
    events: Option<Events>,
    relay: Relay,
}

impl Gate {
    /// Puts the gate up, or takes over one that is. What the other dataplane left is taken down once this one
    /// is up.
    ///
    /// # Errors
    ///
    /// When any interface cannot be guarded. Interfaces that were not guarded before then are not
    /// afterwards; those that were stay so.
    pub fn open(config: &GateConfig) -> Result<Self, GateError> {
        config.check()?;
        match config.dataplane {
            Dataplane::Xdp => Self::open_xdp(config),
            Dataplane::Userspace => {
                userspace::install(config)?;
                detach_xdp(&PinDir::new(&config.pin))?;
                let tables = Arc::new(MemoryTables::new(config.served_udp.clone(), config.mode));
                let datagrams = DatagramGate::new(tables);
                let control = datagrams.control();
                Self::with_streams(Plane::Userspace(datagrams), control, config)
            }
        }
    }

    fn open_xdp(config: &GateConfig) -> Result<Self, GateError> {
        // First what may be wrong with the names, so that such an error leaves nothing behind.
        let devices =
            config.interfaces.iter().map(|name| Device::find(name)).collect::<Result<Vec<_>, _>>()?;
        let pin = PinDir::new(&config.pin);
        pin.prepare()?;
        let _lock = pin.lock()?;
        let object = Object::load(&pin)?;
        maps::configure(&pin, config)?;
        let attached = attach::attach_all(&object, &pin, &devices, config.egress)?;
        for interface in pin.interfaces()? {
            if !config.interfaces.contains(&interface) && attach::detach(&pin, &interface)? {
                tracing::warn!(%interface, "the gate is off: the interface is no longer configured");
            }
        }
        pin.remove_other_maps()?;
        userspace::remove()?;
        let events = Some(Events::new(maps::events(&pin)?));
        let counting = Counting::open(&pin)?;
        let control = Control::new(Arc::new(KernelTables::open(&pin)?));
        let relay = Relay::open(&pin, &config.interfaces, &config.served_udp)?;
        let plane = Plane::Xdp(Box::new(XdpPlane { attached, counting, events, relay }));
        Self::with_streams(plane, control, config)
    }

    fn with_streams(plane: Plane, control: Control, config: &GateConfig) -> Result<Self, GateError> {
        let tables = Arc::new(MemoryTables::new(config.served_udp.clone(), config.mode));
        let control = control.telling(Arc::clone(&tables))?;
        Ok(Self { plane, control, streams: DatagramGate::new(tables) })
    }

    /// Guarded interfaces and the mode of each; none in userspace.
    pub fn interfaces(&self) -> Vec<(String, XdpMode)> {
        match &self.plane {
            Plane::Xdp(xdp) => {
                xdp.attached.iter().map(|found| (found.interface.clone(), found.mode)).collect()
            }
            Plane::Userspace(_) => Vec::new(),
        }
    }

    /// Whether every interface is still guarded: nobody has detached the gate and no interface is gone. Needs
    /// no privilege. In userspace it is always so, since only the privileged may look at nftables.
    pub fn is_up(&self) -> bool {
        match &self.plane {
            Plane::Xdp(xdp) => xdp.attached.iter().all(Attached::is_up),
            Plane::Userspace(_) => true,
        }
    }

    /// Counts of every verdict. In userspace: of the datagrams that [`DatagramGate`] judged; what nftables
    /// dropped is in its own counters (`nft list table inet portcullis`).
    ///
    /// # Errors
    ///
    /// When the maps cannot be read.
    pub fn counters(&self) -> Result<Counters, GateError> {
        match &self.plane {
            Plane::Xdp(xdp) => xdp.counting.read(),
            Plane::Userspace(datagrams) => Ok(datagrams.counters()),
        }
    }

    /// The reader of sampled drops, to the first who asks; never in userspace.
    pub fn events(&mut self) -> Option<Events> {
        match &mut self.plane {
            Plane::Xdp(xdp) => xdp.events.take(),
            Plane::Userspace(_) => None,
        }
    }

    /// The handle by which the daemon tells the gate whom to let through.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// The sessions that the gate relays by itself. `None` in userspace, where nothing is relayed here.
    pub fn relay(&self) -> Option<Relay> {
        match &self.plane {
            Plane::Xdp(xdp) => Some(xdp.relay.clone()),
            Plane::Userspace(_) => None,
        }
    }

    /// What judges the datagrams that reach the node by TCP, which no program has seen. It is told all that the gate is
    /// told; its budgets and its authenticated peers are its own.
    pub fn streams(&self) -> DatagramGate {
        self.streams.clone()
    }

    /// In userspace: what the node's UDP sockets must ask for each datagram. `None` where the kernel has
    /// judged it already.
    pub fn datagrams(&self) -> Option<DatagramGate> {
        match &self.plane {
            Plane::Xdp(_) => None,
            Plane::Userspace(datagrams) => Some(datagrams.clone()),
        }
    }
}

/// Break-glass: takes the gate off every interface and removes its pins and nftables table. Works with the
/// daemon dead or alive. Returns what was taken down, in words.
///
/// # Errors
///
/// When something that is up cannot be taken down. What was before it is down by then.
pub fn detach(pin: &Path) -> Result<Vec<String>, GateError> {
    let interfaces = detach_xdp(&PinDir::new(pin))?;
    let mut taken: Vec<_> = interfaces.iter().map(|name| format!("interface {name}")).collect();
    if userspace::remove()? {
        taken.push(format!("nftables table inet {}", userspace::TABLE));
    }
    Ok(taken)
}

/// Takes the programs off every interface and removes the pins; the interfaces that had some.
fn detach_xdp(pin: &PinDir) -> Result<Vec<String>, GateError> {
    let mut taken = Vec::new();
    for interface in pin.interfaces()? {
        if attach::detach(pin, &interface)? {
            taken.push(interface);
        }
    }
    pin.remove()?;
    Ok(taken)
}

use std::fmt;
use std::path::Path;

use super::maps::{self, Counters, Counting};
use super::object::Identity;
use super::pin::PinDir;
use super::{EgressHook, Enforcement, GateError, XdpMode, attach, egress, userspace};

/// The gate as the kernel has it, whether a daemon runs or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub interfaces: Vec<InterfaceStatus>,
    /// Whether drops are done; absent as the counters are.
    pub enforcement: Option<Enforcement>,
    /// Absent when there are no maps of this binary's layout.
    pub counters: Option<Counters>,
    /// The userspace dataplane's table with its own counters, as nftables writes it.
    pub nftables: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceStatus {
    pub interface: String,
    pub ifindex: u32,
    pub mode: XdpMode,
    /// The kernel's digest of the program.
    pub tag: Option<u64>,
    /// How answers to this host's own datagrams are noted; `None` if they are not.
    pub egress: Option<EgressHook>,
}

impl Status {
    /// Whether anything is guarded.
    pub fn is_up(&self) -> bool {
        !self.interfaces.is_empty() || self.nftables.is_some()
    }
}

/// Reads the pins, and nftables. Needs no daemon; needs the right to open BPF objects.
///
/// # Errors
///
/// When a pin is there but cannot be read.
pub fn status(pin: &Path) -> Result<Status, GateError> {
    let pin = PinDir::new(pin);
    let mut interfaces = Vec::new();
    for interface in pin.interfaces()? {
        for mode in [XdpMode::Native, XdpMode::Generic] {
            if let Some(link) = attach::inspect(&pin.link(&interface, mode.hook()))? {
                interfaces.push(InterfaceStatus {
                    interface: interface.clone(),
                    ifindex: link.ifindex,
                    mode,
                    tag: Identity::of_id(link.program_id)?.map(|identity| identity.tag),
                    egress: egress::inspect(&pin, &interface)?,
                });
            }
        }
    }
    let counters = if pin.map("COUNTERS").exists() { Some(Counting::open(&pin)?.read()?) } else { None };
    let enforcement = counters.is_some().then(|| maps::enforcement(&pin)).transpose()?;
    Ok(Status { interfaces, enforcement, counters, nftables: userspace::listing() })
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_up() {
            writeln!(f, "the gate is down: no interface is guarded")?;
        }
        for interface in &self.interfaces {
            let InterfaceStatus { interface, ifindex, mode, tag, egress } = interface;
            write!(f, "{interface} (index {ifindex}): guarded, {mode} mode")?;
            if let Some(tag) = tag {
                write!(f, ", program {tag:016x}")?;
            }
            match egress {
                Some(hook) => writeln!(f, ", egress by {hook}")?,
                None => writeln!(f, ", EGRESS PROGRAM MISSING")?,
            }
        }
        if let Some(enforcement) = &self.enforcement {
            writeln!(f, "{enforcement}")?;
        }
        if let Some(counters) = &self.counters {
            for (verdict, packets) in counters.packets.iter().filter(|(_, packets)| *packets > 0) {
                writeln!(f, "{:>4} {:<24} {packets:>14}", verdict.action(), verdict.reason())?;
            }
            writeln!(f, "lost {:<24} {:>14}", "events", counters.events_lost)?;
            writeln!(f, "lost {:<24} {:>14}", "host_flows", counters.host_flows_lost)?;
        }
        match &self.nftables {
            Some(table) => f.write_str(table),
            None => Ok(()),
        }
    }
}

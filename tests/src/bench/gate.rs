//! The gate as it is measured: put up by the library that the node uses, with the ports of a node that serves tunnels and browsers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::programs::{ProgramFd, ProgramInfo, loaded_programs};
use portcullis::gate::{Dataplane, Gate, GateConfig};

use super::lab::{Lab, TUNNEL_PORT};
use crate::netns::Netns;

/// Puts the gate up on `in0`; it stays up as long as the lab. Also: how long that took, from reading the object to the pinned link.
pub fn open(lab: &Lab) -> Result<(Gate, Duration)> {
    let config = GateConfig {
        dataplane: Dataplane::Xdp,
        egress: None,
        interfaces: vec!["in0".into()],
        admin: vec!["192.0.2.0/24:22".parse().map_err(anyhow::Error::msg)?],
        served_tcp: vec![443],
        served_udp: vec![TUNNEL_PORT],
        mode: portcullis::gate::GateMode::Enforce,
        pin: lab.node.bpffs(),
    };
    lab.node.enter(|| {
        let started = Instant::now();
        let gate = Gate::open(&config)?;
        Ok((gate, started.elapsed()))
    })?
}

/// Packets that the gate has let pass so far.
pub fn passed(gate: &Gate) -> Result<u64> {
    let counters = gate.counters()?;
    Ok(counters.packets.iter().filter(|(verdict, _)| verdict.is_pass()).map(|(_, packets)| packets).sum())
}

/// The programs of the gate on `in0`: the attached one first, then those that share a map with it.
pub fn programs(lab: &Lab) -> Result<Vec<ProgramInfo>> {
    let attached = attached(&lab.node, "in0")?;
    let maps = attached.map_ids()?.unwrap_or_default();
    let mut programs = vec![attached];
    for info in loaded_programs() {
        // Others come and go on this machine meanwhile.
        let Ok(info) = info else { continue };
        let shares = info.map_ids()?.unwrap_or_default().iter().any(|id| maps.contains(id));
        if shares && programs.iter().all(|known| known.id() != info.id()) {
            programs.push(info);
        }
    }
    Ok(programs)
}

/// The program that judges packets at `in0`, to run it on frames.
pub fn program(lab: &Lab) -> Result<ProgramFd> {
    Ok(attached(&lab.node, "in0")?.fd()?)
}

/// The XDP program of an interface.
pub fn attached(netns: &Netns, interface: &str) -> Result<ProgramInfo> {
    let link = netns.run(&format!("ip -j link show dev {interface}"))?;
    let link: serde_json::Value = serde_json::from_str(&link)?;
    let id = link[0]["xdp"]["prog"]["id"].as_u64();
    let id = id.with_context(|| format!("{interface} carries no XDP program"))?;
    let found = loaded_programs().filter_map(Result::ok).find(|info| u64::from(info.id()) == id);
    found.with_context(|| format!("the program of {interface} has gone"))
}

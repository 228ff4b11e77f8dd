//! Puts the gate up and stays: the process that tests kill, restart and strip of its privileges.
//!
//! `gate_hold PIN [--userspace] [--audit] [--clsact] [--drop-capabilities] [--interface NAME]… [--admin RULE]… [--tcp PORT]…
//! [--udp PORT]… [--relay CLIENT,CONNECTOR,SECONDS]` prints `up` and the mode of each interface. Then each line on standard input is answered
//! with one line: whether the gate is still up, the counters that are not zero, and the sampled drops since the last one.

use std::io::BufRead;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use portcullis::gate::{
    Dataplane, Detour, EgressHook, FlowGrant, Gate, GateConfig, GateMode, PeerAddress, RelayError,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut config = GateConfig {
        dataplane: Dataplane::Xdp,
        interfaces: Vec::new(),
        admin: Vec::new(),
        served_tcp: Vec::new(),
        served_udp: Vec::new(),
        mode: GateMode::Enforce,
        pin: arguments.next().context("no pin directory")?.into(),
        egress: None,
    };
    let mut drop_capabilities = false;
    let mut sessions = Vec::new();
    while let Some(option) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{option} needs a value"));
        match option.as_str() {
            "--audit" => config.mode = GateMode::Audit,
            "--userspace" => config.dataplane = Dataplane::Userspace,
            "--clsact" => config.egress = Some(EgressHook::Clsact),
            "--drop-capabilities" => drop_capabilities = true,
            "--interface" => config.interfaces.push(value()?),
            "--admin" => config.admin.push(value()?.parse().map_err(anyhow::Error::msg)?),
            "--tcp" => config.served_tcp.push(value()?.parse()?),
            "--relay" => sessions.push(value()?),
            "--udp" => config.served_udp.push(value()?.parse()?),
            _ => bail!("unknown option {option}"),
        }
    }
    let mut gate = Gate::open(&config)?;
    for session in &sessions {
        relay(&gate, session)?;
    }
    if drop_capabilities {
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    }
    let mut events = gate.events();
    println!("up {:?}", gate.interfaces());
    for line in std::io::stdin().lock().lines() {
        line?;
        print!("{} ", if gate.is_up() { "guarded" } else { "unguarded" });
        let counters = gate.counters()?;
        for (verdict, packets) in counters.packets.iter().filter(|(_, packets)| *packets > 0) {
            print!("{}:{}={packets} ", verdict.action(), verdict.reason());
        }
        while let Some(event) = events.as_mut().and_then(portcullis::gate::Events::try_next) {
            print!("event:{}={:?} ", event.reason.name(), event.ends.map(|ends| ends.source));
        }
        println!();
    }
    Ok(())
}

/// Grants a session between two ends, each `NODE>END`, for so many seconds.
fn relay(gate: &Gate, session: &str) -> Result<()> {
    let [client, connector, seconds] = session.split(',').collect::<Vec<_>>()[..] else {
        bail!("CLIENT,CONNECTOR,SECONDS is wanted")
    };
    let end = |text: &str| -> Result<PeerAddress> {
        let (local, remote) = text.split_once('>').context("NODE>END is wanted")?;
        Ok(PeerAddress { local: local.parse()?, remote: remote.parse()? })
    };
    let relay = gate.relay().context("no relay in userspace")?;
    let lifetime = Duration::from_secs_f64(seconds.parse()?);
    let session = relay.open_session(relay.identity("local:held")?, lifetime)?;
    let grant = FlowGrant { session, client: end(client)?, connector: end(connector)? };
    for _ in 0..500 {
        match relay.install(&grant) {
            Err(RelayError::Detour(Detour::Unresolved)) => std::thread::sleep(Duration::from_millis(10)),
            result => return Ok(result?),
        }
    }
    bail!("a neighbour is not found")
}

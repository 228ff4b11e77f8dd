//! The gate's drops are counted by reason.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::demo::lab::{EDGE, Lab};
use crate::demo::{Evidence, Fault, Step};
use crate::process::wait_until;

pub(super) const STEP: Step = Step {
    name: "metrics",
    claim: "the metrics show the gate's drops by reason",
    run,
    fault: Fault {
        what: "the gate is detached from the edge's interface",
        plant: |lab| lab.detach_gate(),
        heal: Lab::restart_node,
        symptom: "40000 answered",
    },
};

/// Packets of each kind sent by the step.
const PACKETS: u64 = 20;
const FIRST_PORT: u16 = 40_000;

fn run(lab: &mut Lab, evidence: &mut Evidence) -> Result<()> {
    let before = drops(lab)?;
    let quiet = drops(lab)?;
    send(lab)?;
    let rise = |after: &BTreeMap<String, u64>, reason: &str| {
        after.get(reason).copied().unwrap_or(0) - before.get(reason).copied().unwrap_or(0)
    };
    // The node reads the kernel's counters when it is asked, or every second.
    let counted = wait_until("the drops to be counted", Duration::from_secs(15), || {
        let after = drops(lab)?;
        Ok((rise(&after, "tcp_closed") >= PACKETS && rise(&after, "udp_unsolicited") >= PACKETS)
            .then_some(after))
    });
    let after = match counted {
        Ok(after) => after,
        Err(_) => drops(lab)?,
    };
    for (reason, what) in [("tcp_closed", "TCP"), ("udp_unsolicited", "UDP")] {
        let counted = rise(&after, reason);
        ensure!(
            counted == PACKETS,
            "sent {PACKETS} packets to closed {what} ports and counted {counted} drops of {reason}"
        );
        evidence.see(format!(
            "{PACKETS} packets to closed {what} ports: drops of reason {reason} rose by {counted}"
        ));
    }
    let shown: Vec<_> =
        after.iter().filter(|(_, count)| **count > 0).map(|(reason, n)| format!("{reason} {n}")).collect();
    evidence.see(format!("all drops: {}", shown.join(", ")));

    let closed = |drops: &BTreeMap<String, u64>| drops.get("tcp_closed").copied().unwrap_or(0);
    ensure!(closed(&quiet) == closed(&before), "drops are counted while nobody sends");
    lab.browser()?.open(crate::demo::lab::AUTH)?;
    ensure!(closed(&drops(lab)?) == closed(&after), "a visit to 443 counts as a drop");
    evidence.control("while nobody sends, and for a visit to 443, the counter stands still");
    Ok(())
}

/// Sends one SYN and one datagram to each of [`PACKETS`] ports where nothing listens: a connection attempt that is
/// given up at once sends no second SYN.
fn send(lab: &Lab) -> Result<()> {
    let ports = FIRST_PORT..FIRST_PORT + u16::try_from(PACKETS)?;
    let edge: Ipv4Addr = EDGE.v4.parse()?;
    let sent = lab.stranger.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let datagrams = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            for port in ports {
                let attempt = tokio::net::TcpStream::connect((edge, port));
                ensure!(
                    tokio::time::timeout(Duration::from_millis(5), attempt).await.is_err(),
                    "{port} answered"
                );
                datagrams.send_to(b"x", (edge, port))?;
            }
            Ok(())
        })
    });
    sent?
}

/// Drops by reason, from the metrics.
fn drops(lab: &Lab) -> Result<BTreeMap<String, u64>> {
    let mut drops = BTreeMap::new();
    for line in lab.node.metrics()?.lines() {
        let Some(labels) = line.strip_prefix("portcullis_gate_packets_total{") else { continue };
        let (labels, value) = labels.split_once("} ").with_context(|| format!("malformed: {line}"))?;
        if !labels.contains("verdict=\"drop\"") {
            continue;
        }
        let reason = labels.split("reason=\"").nth(1).and_then(|rest| rest.split('"').next());
        drops.insert(reason.context("a drop without a reason")?.to_owned(), value.parse::<f64>()? as u64);
    }
    Ok(drops)
}

//! A stranger scans the edge.

use anyhow::{Result, ensure};

use crate::demo::lab::{EDGE, Lab};
use crate::demo::planted::{self, Planted};
use crate::demo::scan::{self, Scan};
use crate::demo::{Evidence, Fault, Step};
use crate::netns::Netns;

pub(super) const STEP: Step = Step {
    name: "scan",
    claim: "a stranger's scan of the edge finds nothing but 443",
    run,
    fault: Fault {
        what: "the gate is detached from the edge's interface",
        plant: |lab| lab.detach_gate(),
        heal: Lab::restart_node,
        symptom: "found TCP 22,",
    },
};

/// The four scans of one target.
struct Scans {
    tcp4: Scan,
    tcp6: Scan,
    udp4: Scan,
    udp6: Scan,
}

fn run(lab: &mut Lab, evidence: &mut Evidence) -> Result<()> {
    let _planted = Planted::new(&lab.edge)?;
    let scans = scan_all(&lab.stranger, scan::tcp)?;
    for (family, tcp, udp) in [("IPv4", &scans.tcp4, &scans.udp4), ("IPv6", &scans.tcp6, &scans.udp6)] {
        ensure!(tcp.open == [443] && tcp.answered() == 1, "over {family} the scan {}", found("TCP", tcp));
        let others = udp.open.iter().filter(|port| **port != 443).count() + udp.count("closed");
        ensure!(others == 0, "over {family} the scan {}", found("UDP", udp));
        evidence.see(format!(
            "{family}: {} TCP ports: 443 open, {} silent; {} common UDP ports: none answered but 443's service",
            tcp.total(),
            tcp.count("filtered"),
            udp.total(),
        ));
    }

    lab.detach_gate()?;
    let control = scan_all(&lab.stranger, scan::tcp_of_answering)?;
    lab.restart_node()?;
    for (tcp, udp) in [(&control.tcp4, &control.udp4), (&control.tcp6, &control.udp6)] {
        let all_found = planted::TCP.iter().all(|port| tcp.open.contains(port))
            && planted::UDP.iter().all(|port| udp.open.contains(port));
        ensure!(
            all_found,
            "with the gate detached the scan missed planted listeners: it {}",
            found("TCP", tcp)
        );
    }
    evidence.control(format!(
        "with the gate detached the same scan finds the planted listeners: TCP {}; UDP {}; {} ports answer",
        control.tcp4.open_list(),
        control.udp4.open_list(),
        control.tcp4.answered(),
    ));
    Ok(())
}

/// Both families at once: a scan mostly waits.
fn scan_all(from: &Netns, tcp: fn(&Netns, &str) -> Result<Scan>) -> Result<Scans> {
    std::thread::scope(|scope| {
        let tcp4 = scope.spawn(|| tcp(from, EDGE.v4));
        let tcp6 = scope.spawn(|| tcp(from, EDGE.v6));
        let udp4 = scope.spawn(|| scan::udp(from, EDGE.v4));
        let udp6 = scope.spawn(|| scan::udp(from, EDGE.v6));
        Ok(Scans { tcp4: join(tcp4)?, tcp6: join(tcp6)?, udp4: join(udp4)?, udp6: join(udp6)? })
    })
}

fn join(thread: std::thread::ScopedJoinHandle<'_, Result<Scan>>) -> Result<Scan> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn found(protocol: &str, scan: &Scan) -> String {
    format!("found {protocol} {}; {} ports answered", scan.open_list(), scan.answered())
}

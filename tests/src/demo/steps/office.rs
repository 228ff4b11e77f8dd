//! The office lets nobody in.

use anyhow::{Result, ensure};

use crate::demo::lab::{Lab, OFFICE};
use crate::demo::scan;
use crate::demo::{Evidence, Fault, Step};

pub(super) const STEP: Step = Step {
    name: "office",
    claim: "the office accepts no inbound connection at all",
    run,
    fault: Fault {
        what: "the office has no firewall",
        plant: |lab| lab.office.remove_firewall(),
        heal: |lab| lab.office.raise_firewall(),
        symptom: "8080",
    },
};

fn run(lab: &mut Lab, evidence: &mut Evidence) -> Result<()> {
    // The edge is scanned from too: even the node cannot connect to the office.
    for (who, from) in [("a stranger", &lab.stranger), ("the edge", &lab.edge)] {
        let (tcp4, tcp6) = std::thread::scope(|scope| {
            let tcp4 = scope.spawn(|| scan::tcp(from, OFFICE.v4));
            let tcp6 = scan::tcp(from, OFFICE.v6);
            (tcp4.join(), tcp6)
        });
        let tcp4 = tcp4.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let tcp6 = tcp6?;
        for (family, scan) in [("IPv4", &tcp4), ("IPv6", &tcp6)] {
            ensure!(
                scan.answered() == 0,
                "{who} over {family} got answers from {} ports; open: {}",
                scan.answered(),
                scan.open_list()
            );
        }
        evidence.see(format!("{who}: {} TCP ports over IPv4 and IPv6, none answers", tcp4.total()));
    }
    let tunnels = lab.office.netns().run("ss -Hunp state established")?;
    evidence.see(format!("yet its connector is connected, outwards only: {}", peers(&tunnels)));

    lab.office.remove_firewall()?;
    let page = curl(lab)?;
    lab.office.raise_firewall()?;
    ensure!(page.contains("Lab wiki"), "without the firewall the wiki does not answer: {page}");
    ensure!(curl(lab).is_err(), "with the firewall back the wiki still answers");
    evidence.control("without the office firewall the stranger reads the wiki at once");
    Ok(())
}

fn curl(lab: &Lab) -> Result<String> {
    lab.stranger.run(&format!("curl -sS --max-time 2 http://{}:8080/", OFFICE.v4))
}

/// The remote ends of `ss` lines.
fn peers(lines: &str) -> String {
    let mut peers: Vec<_> = lines.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
    peers.sort_unstable();
    peers.dedup();
    if peers.is_empty() { "(unconnected UDP sockets)".to_owned() } else { peers.join(", ") }
}

//! The office lets nobody in.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::demo::lab::{Lab, OFFICE};
use crate::demo::scan::{self, Scan};
use crate::demo::{Evidence, Fault, Step};

pub(super) const STEP: Step = Step {
    name: "office",
    claim: "the office accepts no inbound connection at all",
    run,
    fault: Fault {
        what: "the office has no firewall",
        plant: |lab| lab.office.remove_firewall(),
        heal: |lab| lab.office.raise_firewall(),
        symptom: "a stranger over IPv4 got answers",
    },
};

/// How long an answer is waited for, and how long one that must not come.
const PATIENCE: Duration = Duration::from_secs(60);
const SILENCE: Duration = Duration::from_secs(2);

fn run(lab: &mut Lab, evidence: &mut Evidence) -> Result<()> {
    let tcp6 = std::thread::scope(|scope| {
        let tcp6 = scope.spawn(|| scan::tcp(&lab.stranger, OFFICE.v6));
        silent("a stranger over IPv4", &scan::tcp(&lab.stranger, OFFICE.v4)?)?;
        tcp6.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    silent("a stranger over IPv6", &tcp6)?;
    evidence.see(format!("a stranger: {} TCP ports over IPv4 and IPv6, none answers", tcp6.total()));
    let common = scan::common_tcp(&lab.edge, OFFICE.v4)?;
    silent("the edge over IPv4", &common)?;
    silent("the edge over IPv6", &scan::common_tcp(&lab.edge, OFFICE.v6)?)?;
    evidence.see(format!(
        "the edge itself: {} common TCP ports over IPv4 and IPv6, none answers",
        common.total()
    ));
    let tunnels = lab.office.netns().run("ss -Hunp state established")?;
    evidence.see(format!("yet its connector is connected, outwards only: {}", peers(&tunnels)));

    lab.office.remove_firewall()?;
    let page = curl(lab, PATIENCE)?;
    lab.office.raise_firewall()?;
    ensure!(page.contains("Lab wiki"), "without the firewall the wiki does not answer: {page}");
    ensure!(curl(lab, SILENCE).is_err(), "with the firewall back the wiki still answers");
    evidence.control("without the office firewall the stranger reads the wiki at once");
    Ok(())
}

fn silent(who: &str, scan: &Scan) -> Result<()> {
    let (answered, open) = (scan.answered(), scan.open_list());
    ensure!(answered == 0, "{who} got answers from {answered} ports; open: {open}");
    Ok(())
}

fn curl(lab: &Lab, patience: Duration) -> Result<String> {
    lab.stranger.run(&format!("curl -sS --max-time {} http://{}:8080/", patience.as_secs(), OFFICE.v4))
}

/// The remote ends of `ss` lines.
fn peers(lines: &str) -> String {
    let mut peers: Vec<_> = lines.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
    peers.sort_unstable();
    peers.dedup();
    if peers.is_empty() { "(unconnected UDP sockets)".to_owned() } else { peers.join(", ") }
}

//! Port scans by nmap.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use crate::netns::{Netns, run};

/// UDP ports where services usually are.
const COMMON_UDP: &str = "53,67,68,69,88,111,123,137,138,161,162,389,443,500,514,520,623,1194,1434,1645,1701,1812,\
                          1900,2049,3478,4500,5004,5060,5353,5683,10000,11211,27015,33434,51820";

/// What a scan of one address and protocol got back.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Scan {
    /// Ports that gave away that something listens, ascending.
    pub(super) open: Vec<u16>,
    /// How many ports are in each state of nmap's: `open`, `closed` (said no), `filtered` (said nothing) …
    pub(super) states: BTreeMap<String, usize>,
}

impl Scan {
    /// Ports that answered in any way.
    pub(super) fn answered(&self) -> usize {
        self.count("open") + self.count("closed") + self.count("unfiltered")
    }

    pub(super) fn total(&self) -> usize {
        self.states.values().sum()
    }

    pub(super) fn count(&self, state: &str) -> usize {
        self.states.get(state).copied().unwrap_or(0)
    }

    pub(super) fn open_list(&self) -> String {
        match self.open.as_slice() {
            [] => "none".to_owned(),
            ports => ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", "),
        }
    }
}

/// A SYN scan of all 65,535 TCP ports, twice those that stay silent.
pub(super) fn tcp(from: &Netns, address: &str) -> Result<Scan> {
    nmap(from, address, &["-sS", "-p1-65535", "--min-rate", "50000", "--max-retries", "1"])
}

/// A scan of [`COMMON_UDP`] with payloads of the protocols that live there. Silence is `open|filtered`.
pub(super) fn udp(from: &Netns, address: &str) -> Result<Scan> {
    let ports = format!("-p{COMMON_UDP}");
    nmap(from, address, &["-sU", &ports, "--min-rate", "200", "--max-retries", "2"])
}

fn nmap(from: &Netns, address: &str, args: &[&str]) -> Result<Scan> {
    let mut nmap = from.command("nmap");
    nmap.args(["-n", "-Pn", "-T5", "--host-timeout", "120s", "-oG", "-"]).args(args);
    if address.contains(':') {
        nmap.arg("-6");
    }
    parse(&run(nmap.arg(address))?)
}

/// nmap's "grepable" output: `Host: … Ports: 443/open/tcp//https///, … Ignored State: filtered (65534)`.
fn parse(text: &str) -> Result<Scan> {
    let line = text.lines().find(|line| line.contains("Ports: ") || line.contains("Ignored State: "));
    let Some(line) = line else { bail!("nmap reported no ports:\n{text}") };
    let mut scan = Scan::default();
    for field in line.split('\t') {
        if let Some(ports) = field.strip_prefix("Ports: ") {
            for port in ports.split(", ") {
                let mut parts = port.split('/');
                let number = parts.next().and_then(|number| number.trim().parse().ok());
                let number: u16 = number.with_context(|| format!("no port in {port:?}"))?;
                let state = parts.next().with_context(|| format!("no state in {port:?}"))?;
                if state == "open" {
                    scan.open.push(number);
                }
                *scan.states.entry(state.to_owned()).or_default() += 1;
            }
        } else if let Some(ignored) = field.strip_prefix("Ignored State: ") {
            let (state, count) = ignored.split_once(" (").context("no count of ignored ports")?;
            *scan.states.entry(state.to_owned()).or_default() +=
                count.trim_end_matches(')').parse::<usize>()?;
        }
    }
    scan.open.sort_unstable();
    Ok(scan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grepable_output_is_read() {
        let scan = parse(
            "# Nmap 7.93\nHost: 10.9.2.2 ()\tStatus: Up\nHost: 10.9.2.2 ()\tPorts: 443/open/tcp//https///, \
             5432/open/tcp//postgresql///, 9/closed/tcp//discard///\tIgnored State: filtered (65532)\n",
        )
        .unwrap();
        assert_eq!(scan.open, [443, 5432]);
        assert_eq!((scan.answered(), scan.total()), (3, 65535));
        let silent = parse("Host: ::1 ()\tIgnored State: open|filtered (35)\n").unwrap();
        assert_eq!((silent.answered(), silent.total()), (0, 35));
        assert!(parse("Host: ::1 ()\tStatus: Up\n").is_err());
    }
}

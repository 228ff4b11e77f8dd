//! Port scans by nmap.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::demo::form::between;
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
    nmap(from, address, &["-sS", "-p1-65535", "--min-rate", "40000", "--max-retries", "1"])
}

/// The same for a host that answers: at [`tcp`]'s rate 65,535 refusals would overrun nmap's own receive buffer.
pub(super) fn tcp_of_answering(from: &Netns, address: &str) -> Result<Scan> {
    nmap(from, address, &["-sS", "-p1-65535", "--min-rate", "2000", "--max-retries", "3"])
}

/// A SYN scan of nmap's thousand most common TCP ports.
pub(super) fn common_tcp(from: &Netns, address: &str) -> Result<Scan> {
    nmap(from, address, &["-sS", "--top-ports", "1000", "--min-rate", "5000", "--max-retries", "1"])
}

/// A scan of [`COMMON_UDP`] with payloads of the protocols that live there. Silence is `open|filtered`.
pub(super) fn udp(from: &Netns, address: &str) -> Result<Scan> {
    let ports = format!("-p{COMMON_UDP}");
    nmap(from, address, &["-sU", &ports, "--min-rate", "200", "--max-retries", "2"])
}

fn nmap(from: &Netns, address: &str, args: &[&str]) -> Result<Scan> {
    let mut nmap = from.command("nmap");
    nmap.args(["-n", "-Pn", "-T5", "--host-timeout", "120s", "-oX", "-"]).args(args);
    if address.contains(':') {
        nmap.arg("-6");
    }
    parse(&run(nmap.arg(address))?)
}

/// nmap's XML: `<extraports state="filtered" count="65534">` for states that many ports share, and for each other
/// port `<port protocol="tcp" portid="443"><state state="open" …`.
fn parse(xml: &str) -> Result<Scan> {
    let mut scan = Scan::default();
    for tag in xml.split("<extraports ").skip(1) {
        let count = between(tag, "count=\"", "\"").context("no count of ports")?.parse::<usize>()?;
        let state = between(tag, "state=\"", "\"").context("no state of ports")?;
        *scan.states.entry(state.to_owned()).or_default() += count;
    }
    for tag in xml.split("<port ").skip(1) {
        let port = between(tag, "portid=\"", "\"").context("no port")?.parse()?;
        let state = between(tag, "<state state=\"", "\"").context("no state of a port")?;
        if state == "open" {
            scan.open.push(port);
        }
        *scan.states.entry(state.to_owned()).or_default() += 1;
    }
    ensure!(scan.total() > 0, "nmap reported no ports:\n{xml}");
    scan.open.sort_unstable();
    Ok(scan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xml_output_is_read() {
        let scan = parse(
            r#"<ports><extraports state="filtered" count="65530"><extrareasons reason="no-response" count="65530"/>
</extraports><extraports state="closed" count="3"/><port protocol="tcp" portid="5432"><state state="open" reason="x"/>
</port><port protocol="tcp" portid="443"><state state="open"/></port></ports>"#,
        )
        .unwrap();
        assert_eq!(scan.open, [443, 5432]);
        assert_eq!((scan.answered(), scan.total(), scan.count("filtered")), (5, 65535, 65530));
        let silent = parse(r#"<extraports state="open|filtered" count="35">"#).unwrap();
        assert_eq!((silent.answered(), silent.total()), (0, 35));
        assert!(parse("<ports></ports>").is_err());
    }
}

//! `portcullis admin gate explain`: what the gate does with a packet, and why.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use pcap_file::DataLink;
use pcap_file::pcap::PcapReader;
use portcullis_common::Verdict;

use crate::gate::{self, Explainer, Explanation};

use super::output;

const ETHERNET: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;

#[derive(Args)]
pub(super) struct ExplainArgs {
    /// Where the gate is pinned, when not as in the configuration
    #[arg(long)]
    pub(super) pin: Option<PathBuf>,
    #[command(flatten)]
    packet: PacketArgs,
    /// Flags of a TCP packet, like SYN or FIN,ACK
    #[arg(long, value_parser = flags, default_value = "SYN", requires = "tcp")]
    flags: Flags,
    /// The packets of a file that are explained at most
    #[arg(long, default_value_t = 10, requires = "pcap")]
    count: usize,
    /// Interface that the packet arrives by [default: the first that is guarded]
    #[arg(long, conflicts_with = "ifindex")]
    interface: Option<String>,
    /// The same by its index
    #[arg(long)]
    ifindex: Option<u32>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct PacketArgs {
    /// An Ethernet frame in hexadecimal digits; blanks and colons are skipped
    #[arg(long)]
    hex: Option<String>,
    /// A capture file (pcap)
    #[arg(long)]
    pcap: Option<PathBuf>,
    /// A TCP packet between two ends, like 198.51.100.7:40000 192.0.2.1:443
    #[arg(long, num_args = 2, value_names = ["SOURCE", "DESTINATION"])]
    tcp: Option<Vec<SocketAddr>>,
    /// An empty UDP datagram between two ends
    #[arg(long, num_args = 2, value_names = ["SOURCE", "DESTINATION"])]
    udp: Option<Vec<SocketAddr>>,
}

/// The byte of TCP flags.
#[derive(Clone, Copy)]
struct Flags(u8);

pub(super) fn run(args: ExplainArgs, pin: &Path) -> anyhow::Result<()> {
    let frames = frames(&args)?;
    let ingress = ingress(&args, pin)?;
    let explainer = Explainer::open(pin)
        .with_context(|| format!("no gate whose maps can be read at {}", pin.display()))?;
    for (nth, frame) in frames.iter().enumerate() {
        if frames.len() > 1 {
            output::line(&format!("packet {}", nth + 1))?;
        }
        show(&explainer.explain(frame, ingress))?;
    }
    Ok(())
}

fn show(explanation: &Explanation) -> anyhow::Result<()> {
    for step in &explanation.steps {
        output::line(&format!("  {step}"))?;
    }
    let verdict = explanation.verdict;
    let egress = explanation.egress.map(|ifindex| format!(" by interface {ifindex}")).unwrap_or_default();
    output::line(&format!("{} {}{egress}: {}", verdict.action(), verdict.reason(), verdict.meaning()))?;
    output::line(match (verdict, explanation.enforced) {
        (Verdict::Drop(_), true) => "enforced: the packet is dropped",
        (Verdict::Drop(_), false) => "audit mode: the drop is counted, and the packet passes",
        (_, true) => "enforced: audit mode would change nothing",
        (_, false) => "audit mode: changes nothing for this packet",
    })
}

fn ingress(args: &ExplainArgs, pin: &Path) -> anyhow::Result<u32> {
    if let Some(ifindex) = args.ifindex {
        return Ok(ifindex);
    }
    let guarded = gate::status(pin)?.interfaces;
    let found = match &args.interface {
        Some(name) => guarded.iter().find(|interface| interface.interface == *name),
        None => guarded.first(),
    };
    let found = found.map(|interface| interface.ifindex);
    found.with_context(|| match &args.interface {
        Some(name) => format!("the gate does not guard `{name}` at {}", pin.display()),
        None => format!("the gate guards no interface at {}: name one by --ifindex", pin.display()),
    })
}

fn frames(args: &ExplainArgs) -> anyhow::Result<Vec<Vec<u8>>> {
    let PacketArgs { hex, pcap, tcp, udp } = &args.packet;
    if let Some(text) = hex {
        return Ok(vec![bytes(text)?]);
    }
    if let Some(path) = pcap {
        return captured(path, args.count).with_context(|| path.display().to_string());
    }
    let (ends, transport) = match (tcp, udp) {
        (Some(ends), _) => (ends, TCP),
        (None, Some(ends)) => (ends, UDP),
        (None, None) => anyhow::bail!("name a packet: --hex, --pcap, --tcp or --udp"),
    };
    let [source, destination] = ends.as_slice() else { anyhow::bail!("name both ends") };
    Ok(vec![packet(*source, *destination, transport, args.flags)?])
}

fn bytes(text: &str) -> anyhow::Result<Vec<u8>> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
    anyhow::ensure!(digits.len().is_multiple_of(2), "--hex: an odd number of digits");
    let byte = |pair: &[char]| {
        let pair: String = pair.iter().collect();
        u8::from_str_radix(&pair, 16).with_context(|| format!("--hex: `{pair}` is no byte"))
    };
    digits.chunks(2).map(byte).collect()
}

/// The first packets of a capture, as Ethernet frames.
fn captured(path: &Path, count: usize) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut reader =
        PcapReader::new(File::open(path)?).context("no pcap file (of pcapng: `editcap -F pcap`)")?;
    let link = reader.header().datalink;
    let mut frames = Vec::new();
    while frames.len() < count
        && let Some(packet) = reader.next_packet()
    {
        let data = packet?.data.into_owned();
        frames.push(match link {
            DataLink::ETHERNET => data,
            DataLink::RAW | DataLink::IPV4 | DataLink::IPV6 => {
                let ethertype = if data.first().is_some_and(|byte| byte >> 4 == 6) {
                    ETHERTYPE_IPV6
                } else {
                    ETHERTYPE_IPV4
                };
                ethernet(ethertype, &data)
            }
            other => {
                anyhow::bail!("link type {other:?}: capture on the interface itself, for Ethernet frames")
            }
        });
    }
    anyhow::ensure!(!frames.is_empty(), "no packet in it");
    Ok(frames)
}

/// A packet without payload. Sums are left zero: the verdict does not ask for them.
fn packet(
    source: SocketAddr,
    destination: SocketAddr,
    transport: u8,
    flags: Flags,
) -> anyhow::Result<Vec<u8>> {
    let mut segment = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    match transport {
        TCP => segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags.0, 0xff, 0xff, 0, 0, 0, 0]),
        _ => segment.extend([0, 8, 0, 0]),
    }
    let length = u16::try_from(segment.len())?;
    match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [high, low] = (length + 20).to_be_bytes();
            let mut header = vec![0x45, 0, high, low, 0, 0, 0, 0, 64, transport, 0, 0];
            header.extend(source.octets());
            header.extend(destination.octets());
            Ok(ethernet(ETHERTYPE_IPV4, &[header, segment].concat()))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [high, low] = length.to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, high, low, transport, 64];
            header.extend(source.octets());
            header.extend(destination.octets());
            Ok(ethernet(ETHERTYPE_IPV6, &[header, segment].concat()))
        }
        _ => anyhow::bail!("both ends must be of one family"),
    }
}

fn ethernet(ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET - 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame
}

fn flags(text: &str) -> Result<Flags, String> {
    let bit = |name: &str| match name.to_ascii_uppercase().as_str() {
        "FIN" => Ok(1),
        "SYN" => Ok(2),
        "RST" => Ok(4),
        "PSH" => Ok(8),
        "ACK" => Ok(16),
        "URG" => Ok(32),
        _ => Err(format!("`{name}` is no flag: use FIN, SYN, RST, PSH, ACK, URG")),
    };
    text.split(',').map(bit).try_fold(0, |flags, bit| Ok(flags | bit?)).map(Flags)
}

#[cfg(test)]
mod tests {
    use portcullis_common::{PacketMeta, Transport, parse};

    use super::*;

    #[test]
    fn what_is_named_by_its_ends_is_that_packet() {
        for (source, destination) in
            [("192.0.2.7:40000", "192.0.2.1:443"), ("[2001:db8::7]:40000", "[2001:db8::1]:443")]
        {
            for transport in [TCP, UDP] {
                let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
                let frame = packet(source, destination, transport, flags("SYN").unwrap()).unwrap();
                let PacketMeta::Ip(ip) = parse(frame.as_slice()).unwrap() else { panic!("IP") };
                assert_eq!(IpAddr::from(ip.source), source.ip());
                assert_eq!(IpAddr::from(ip.destination), destination.ip());
                match ip.transport {
                    Transport::Tcp { source, destination, flags, .. } if transport == TCP => {
                        assert_eq!((source, destination, flags.is_open()), (40000, 443, true));
                    }
                    Transport::Udp { source, destination, payload } if transport == UDP => {
                        assert_eq!((source, destination, payload.length), (40000, 443, 0));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(packet("192.0.2.7:1".parse().unwrap(), "[::1]:2".parse().unwrap(), TCP, Flags(2)).is_err());
    }

    #[test]
    fn hexadecimal_digits_may_be_grouped() {
        assert_eq!(bytes("00:01 ff\n0A").unwrap(), [0, 1, 255, 10]);
        for wrong in ["0", "0g", "ä1"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn flags_are_read() {
        assert_eq!(flags("syn,ACK").unwrap().0, 18);
        assert!(flags("").is_err() && flags("XMAS").is_err());
    }
}

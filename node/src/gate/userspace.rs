//! The gate where XDP is off: nftables drops what the node does not serve, and the node's own UDP sockets
//! judge each datagram by the same [`admit()`] as the kernel program.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::IpNet;
use portcullis_common::{Admission, DropReason, IpMeta, PacketMeta, Span, Transport, Verdict, admit};

use super::config::AdminProtocol;
use super::control::{Control, PeerAddress, Tables, monotonic};
use super::maps::Counters;
use super::memory::MemoryTables;
use super::{GateConfig, GateError, GateMode};

/// The table that is the gate's own; nothing else is touched.
pub(super) const TABLE: &str = "portcullis";

/// Puts the default-drop up, replacing an earlier one in the same transaction. It stays when the process
/// ends.
pub(super) fn install(config: &GateConfig) -> Result<(), GateError> {
    let output = nft(&["-f", "-"], &ruleset(config))?;
    if output.status.success() { Ok(()) } else { Err(failure(&output)) }
}

/// The default-drop with its counters, as nftables writes it; `None` if there is none. A machine without
/// nftables has none.
pub(super) fn listing() -> Option<String> {
    let output = nft(&["list", "table", "inet", TABLE], "").ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Takes the default-drop down; `false` if there was none.
pub(super) fn remove() -> Result<bool, GateError> {
    if listing().is_none() {
        return Ok(false);
    }
    let output = nft(&["delete", "table", "inet", TABLE], "")?;
    if output.status.success() { Ok(true) } else { Err(failure(&output)) }
}

/// Judges datagrams that reached a UDP socket of the node. Cheap to clone; clones count together.
#[derive(Clone)]
pub struct DatagramGate {
    shared: Arc<Shared>,
}

struct Shared {
    tables: Arc<MemoryTables>,
    counters: Vec<AtomicU64>,
}

impl DatagramGate {
    pub(super) fn new(tables: Arc<MemoryTables>) -> Self {
        let counters = (0..Verdict::COUNTERS).map(|_| AtomicU64::new(0)).collect();
        Self { shared: Arc::new(Shared { tables, counters }) }
    }

    /// One that judges in memory, and the handle by which it is told whom to let through; no nftables around it.
    #[cfg(test)]
    pub(crate) fn in_memory(served_udp: Vec<u16>) -> (Self, Control) {
        let gate = Self::new(Arc::new(MemoryTables::new(served_udp, GateMode::Enforce)));
        let control = gate.control();
        (gate, control)
    }

    /// What becomes of a datagram from `remote` to `local`, the address and port it was sent to. Anything
    /// but a pass must be ignored by the caller, without an answer.
    ///
    /// In audit mode they are only counted, and to be taken all the same ([`Self::enforces`]).
    pub fn admit(&self, remote: SocketAddr, local: SocketAddr, datagram: &[u8]) -> Verdict {
        let flow = PeerAddress { local, remote }.flow();
        let packet = PacketMeta::Ip(IpMeta {
            family: flow.family,
            source: flow.remote,
            destination: flow.local,
            // A socket sees neither, and no verdict about a datagram to it asks for them.
            hop_limit: 0,
            packet: Span::default(),
            transport: Transport::Udp {
                source: flow.remote_port,
                destination: flow.local_port,
                payload: Span { at: 0, length: u16::try_from(datagram.len()).unwrap_or(u16::MAX) },
            },
        });
        let verdict = match admit(&packet, datagram, &*self.shared.tables, monotonic()) {
            Admission::Settled(verdict) => verdict,
            // There are no entries in memory.
            Admission::Relay(..) => Verdict::Drop(DropReason::RelayNoHop),
        };
        if let Some(counter) = self.shared.counters.get(verdict.index() as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        verdict
    }

    /// Whether datagrams that do not pass are to be ignored.
    pub fn enforces(&self) -> bool {
        self.shared.tables.settings().map_or(true, |settings| settings.enforces(monotonic()))
    }

    /// The handle by which this gate alone is told whom to let through.
    pub fn control(&self) -> Control {
        Control::new(Arc::clone(&self.shared.tables) as Arc<dyn Tables>)
    }

    pub(crate) fn counters(&self) -> Counters {
        let packets = Verdict::all().map(|verdict| {
            let counter = self.shared.counters.get(verdict.index() as usize);
            (verdict, counter.map_or(0, |counter| counter.load(Ordering::Relaxed)))
        });
        Counters { packets: packets.collect(), ..Counters::default() }
    }
}

/// The rules, in the order of the XDP program's verdict.
///
/// Both chains run before anything is routed or answered. The first, before conntrack reassembles, drops
/// fragments other than the first; the second drops by default. A stranger's datagram to the tunnel leaves no
/// trace in conntrack.
fn ruleset(config: &GateConfig) -> String {
    let rules = enforcing(config);
    match config.mode {
        GateMode::Enforce => rules,
        // The same rules and counters; what they would drop goes on.
        GateMode::Audit => {
            rules.replace(" drop comment ", " accept comment ").replace("policy drop;", "policy accept;")
        }
    }
}

fn enforcing(config: &GateConfig) -> String {
    let (others, input, output) = guarded(&config.interfaces);
    let mut rules = format!(
        "table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  chain fragments {{
    type filter hook prerouting priority -450; policy accept;
    {others} accept
    ip frag-off & 0x1fff != 0 counter drop comment \"fragment\"
    exthdr frag exists frag frag-off != 0 counter drop comment \"fragment\"
    exthdr rt exists counter drop comment \"extension_header\"
  }}
"
    );
    if let Some(udp) = set_of(&config.served_udp) {
        let _ = write!(
            rules,
            "  chain untracked_in {{
    type filter hook prerouting priority raw; policy accept;
    {input} udp dport {udp} notrack
  }}
  chain untracked_out {{
    type filter hook output priority raw; policy accept;
    {output} udp sport {udp} notrack
  }}
"
        );
    }
    let _ = write!(
        rules,
        "  chain gate {{
    type filter hook prerouting priority mangle; policy drop;
    {others} accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert }} ip6 hoplimit 255 limit rate 1000/second burst 1000 packets counter accept comment \"neighbour_discovery\"
    icmpv6 type mld-listener-query ip6 saddr fe80::/10 ip6 hoplimit 1 limit rate 1000/second burst 1000 packets counter accept comment \"listener_query\"
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, nd-router-solicit, nd-redirect, mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report }} counter drop comment \"icmp_type\"
    icmp type redirect counter drop comment \"icmp_type\"
"
    );
    if let Some(udp) = set_of(&config.served_udp) {
        let _ = writeln!(rules, "    udp dport {udp} counter accept comment \"tunnel\"");
    }
    rules.push_str(
        "    ct state invalid counter drop comment \"invalid\"
    ct state established,related counter accept comment \"host_reply\"
",
    );
    if let Some(tcp) = set_of(&config.served_tcp) {
        let _ = writeln!(rules, "    tcp dport {tcp} {OPENING} counter accept comment \"tcp_open\"");
    }
    for rule in &config.admin {
        let family = match rule.prefix {
            IpNet::V4(_) => "ip",
            IpNet::V6(_) => "ip6",
        };
        let (port, reason) = match rule.protocol {
            AdminProtocol::Tcp => (format!("tcp dport {} {OPENING}", rule.port), "admin_tcp"),
            AdminProtocol::Udp => (format!("udp dport {}", rule.port), "admin_udp"),
        };
        let _ =
            writeln!(rules, "    {family} saddr {} {port} counter accept comment \"{reason}\"", rule.prefix);
    }
    rules.push_str(
        "    meta nfproto ipv4 udp sport 67 udp dport 68 limit rate 50/second burst 100 packets counter accept comment \"dhcp\"
    ip6 saddr fe80::/10 udp sport 547 udp dport 546 limit rate 50/second burst 100 packets counter accept comment \"dhcp\"
    icmp type echo-request limit rate 100/second burst 100 packets counter accept comment \"echo_request\"
    icmpv6 type echo-request limit rate 100/second burst 100 packets counter accept comment \"echo_request\"
    counter comment \"dropped\"
  }
}
",
    );
    rules
}

/// SYN without ACK, FIN or RST.
const OPENING: &str = "tcp flags & (fin | syn | rst | ack) == syn";

fn set_of(ports: &[u16]) -> Option<String> {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    (!ports.is_empty()).then(|| format!("{{ {} }}", ports.join(", ")))
}

/// Matches for: any interface that is not guarded; a guarded one inwards; and outwards. The names are plain:
/// [`GateConfig::check`] has seen them.
fn guarded(interfaces: &[String]) -> (String, String, String) {
    if interfaces.is_empty() {
        let [input, output] = ["iifname", "oifname"].map(|end| format!("{end} != \"lo\""));
        return ("iifname \"lo\"".to_owned(), input, output);
    }
    let quoted: Vec<String> = interfaces.iter().map(|name| format!("\"{name}\"")).collect();
    let names = quoted.join(", ");
    let [input, output] = ["iifname", "oifname"].map(|end| format!("{end} {{ {names} }}"));
    (format!("iifname != {{ {names} }}"), input, output)
}

fn nft(arguments: &[&str], input: &str) -> Result<Output, GateError> {
    let unavailable = |error: std::io::Error| GateError::Nftables(format!("cannot run `nft`: {error}"));
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(unavailable)?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // It ended without reading: its status and its message say more.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(unavailable(error)),
            _ => {}
        }
    }
    child.wait_with_output().map_err(unavailable)
}

fn failure(output: &Output) -> GateError {
    let text = String::from_utf8_lossy(&output.stderr);
    GateError::Nftables(text.lines().next().unwrap_or("nft failed").to_owned())
}

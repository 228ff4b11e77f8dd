//! ```text
//!   stranger ── eth0 ═══ eth0 ── edge: a node and its gate ── eth1 ═══ eth0 ── office
//!       192.0.2.2, 2001:db8::2                        198.51.100.2, 2001:db8:1::2
//! ```
//! The edge ends each prefix with `.1`, `::1`.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use aya::maps::{Array, Map, MapData};
use portcullis::tunnel::enrolment::EnrolmentToken;
use portcullis_common::layout::{Settings, VERSION, recent_bit};
use portcullis_common::{Address, DeviceKeys, Family};

use crate::ca::Ca;
use crate::netns::{Netns, veth};
use crate::portcullis::{Node, START};
use crate::process::wait_until;

pub const PORT: u16 = 443;
/// The edge, as the stranger and as the office see it.
pub const FOR_STRANGER: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
pub const FOR_OFFICE: [&str; 2] = ["198.51.100.1", "2001:db8:1::1"];

/// How long to wait where an answer is expected: a busy machine takes its time.
pub const ANSWER: Duration = Duration::from_secs(20);
/// How long to wait where none is.
pub const SILENCE: Duration = Duration::from_millis(700);

/// How a datagram was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Datagram,
    /// Port unreachable.
    Icmp,
    Nothing,
}

/// Fields are in the order in which they must go.
pub struct TunnelLab {
    pub node: Node,
    pub stranger: Netns,
    pub office: Netns,
    pub edge: Netns,
    pub dir: PathBuf,
    dataplane: &'static str,
}

impl TunnelLab {
    /// `dataplane` is `xdp` or `userspace`.
    pub fn start(dataplane: &'static str, dark: bool) -> Result<Self> {
        let (edge, stranger, office) = (Netns::new("edge")?, Netns::new("stranger")?, Netns::new("office")?);
        veth(&edge, "eth0", &stranger, "eth0")?;
        veth(&edge, "eth1", &office, "eth0")?;
        for (netns, interface, v4, v6) in [
            (&edge, "eth0", "192.0.2.1", "2001:db8::1"),
            (&stranger, "eth0", "192.0.2.2", "2001:db8::2"),
            (&edge, "eth1", "198.51.100.1", "2001:db8:1::1"),
            (&office, "eth0", "198.51.100.2", "2001:db8:1::2"),
        ] {
            netns.address(interface, &format!("{v4}/24"))?;
            netns.address(interface, &format!("{v6}/64"))?;
        }
        let dir = edge.scratch()?;
        let ca = Ca::new("tunnel lab")?;
        ca.issue(&["access.example.com", "*.example.com"])?.write(&dir, "edge")?;
        let metrics = "127.0.0.1:9464".parse()?;
        let config = configuration(&dir, &edge, dataplane, dark);
        let node = Node::start(&dir.join("node"), Some(&edge), metrics, &config)?;
        Ok(Self { node, stranger, office, edge, dir, dataplane })
    }

    /// Switches `tunnel.dark` by a reload.
    pub fn set_dark(&mut self, dark: bool) -> Result<()> {
        let reloads = |node: &Node| {
            Ok::<_, anyhow::Error>(node.admin(&["events", "--json"])?.matches("\"reload\"").count())
        };
        let before = reloads(&self.node)?;
        self.node.write_config(&configuration(&self.dir, &self.edge, self.dataplane, dark))?;
        self.node.process()?.signal(rustix::process::Signal::HUP)?;
        wait_until("the reload", START, || Ok((reloads(&self.node)? > before).then_some(())))
    }

    /// A token for connector `name`, which will look for the node at the office's address of one family.
    pub fn token(&self, name: &str, family: usize) -> Result<String> {
        let address = SocketAddr::new(FOR_OFFICE[family].parse()?, PORT);
        self.node.create_connector(name, &address.to_string())
    }

    /// Waits until connector `name` has so many connections.
    pub fn connected(&self, name: &str, count: usize) -> Result<()> {
        wait_until(&format!("{count} connections of {name}"), START, || {
            Ok((self.connections(name)? == count).then_some(()))
        })
    }

    fn connections(&self, name: &str) -> Result<usize> {
        let metrics = self.node.metrics()?;
        let label = format!("\"{name}\"");
        let line = metrics
            .lines()
            .find(|line| line.starts_with("portcullis_tunnel_connections") && line.contains(&label));
        Ok(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0))
    }

    /// Whether the gate takes the network of an address for one with a recent login. XDP only.
    pub fn is_recent(&self, address: IpAddr) -> Result<bool> {
        let maps = self.edge.bpffs().join(format!("maps_{VERSION}"));
        let open = |name: &str| MapData::from_pin(maps.join(name)).with_context(|| name.to_owned());
        let settings: Array<_, Settings> = Map::Array(open("SETTINGS")?).try_into()?;
        let recent: Array<_, u64> = Map::Array(open("RECENT")?).try_into()?;
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        let hash = settings.get(&0, 0)?.network_hash(family, Address::from(address));
        let (word, bit) = recent_bit(hash);
        Ok(recent.get(&word, 0)? & bit != 0)
    }

    /// What the stranger gets for a datagram to the tunnel's port, in each family. Each gets one of its own: the node
    /// knows an attempt by its ID, from wherever it comes.
    pub fn answers(&self, datagram: impl Fn() -> Vec<u8>, patience: Duration) -> Result<[Answer; 2]> {
        let [v4, v6] = FOR_STRANGER;
        Ok([self.answer(v4, PORT, &datagram(), patience)?, self.answer(v6, PORT, &datagram(), patience)?])
    }

    pub fn answer(&self, to: &str, port: u16, datagram: &[u8], patience: Duration) -> Result<Answer> {
        let socket = socket_in(&self.stranger, to, port, patience)?;
        socket.send(datagram)?;
        Ok(match socket.recv(&mut [0; 2_048]) {
            Ok(_) => Answer::Datagram,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Answer::Icmp,
            Err(_) => Answer::Nothing,
        })
    }
}

/// A socket that talks to one address only, and so is told of ICMP errors; it waits so long for an answer.
pub fn socket_in(netns: &Netns, to: &str, port: u16, patience: Duration) -> Result<UdpSocket> {
    let to: IpAddr = to.parse()?;
    netns.enter(|| {
        let any: IpAddr = if to.is_ipv4() { "0.0.0.0".parse()? } else { "::".parse()? };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((to, port))?;
        socket.set_read_timeout(Some(patience))?;
        Ok(socket)
    })?
}

/// What the holder of a token's text may knock with.
pub fn device(token: &str) -> Result<DeviceKeys> {
    Ok(EnrolmentToken::parse(token).context("an enrolment token")?.device().keys())
}

/// The wall clock, in nanoseconds.
pub fn wall() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn configuration(dir: &std::path::Path, edge: &Netns, dataplane: &str, dark: bool) -> String {
    format!(
        r#"
domain = "access.example.com"
listen = "[::]:{PORT}"
[[node.certificate]]
cert = {:?}
key = {:?}
[gate]
dataplane = "{dataplane}"
interfaces = ["eth0", "eth1"]
pin = {:?}
[tunnel]
dark = {dark}
[[identity_provider]]
name = "local"
type = "local"
[[policy]]
name = "all"
action = "bypass"
include = [{{ everyone = true }}]
[[application]]
name = "app"
url = "https://app.example.com"
origin = "http://127.0.0.1:9"
connector = "hq"
policies = ["all"]
"#,
        dir.join("edge.pem"),
        dir.join("edge.key"),
        edge.bpffs(),
    )
}

//! Where sessions are measured: real processes in namespaces of their own.
//!
//! ```text
//!   user               node                office
//!   access ══ eth0 ═ eth0   eth1 ═ eth0 ══ connector ── origin (127.0.0.1)
//!   192.0.2.2     192.0.2.1 198.51.100.1   198.51.100.2
//! ```
//!
//! Transmit checksum offload is off on every interface, as XDP needs it on a veth; without it there is no segmentation offload
//! either, whatever is in the middle. The ends receive in batches (GRO).

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::access::Machine;
use crate::ca::Ca;
use crate::netns::{Netns, veth};
use crate::portcullis::{Connector, Node, START};
use crate::process::{Process, wait_until};
use crate::realm::PASSWORD;
use crate::web::Web;

use super::super::pass_everything;
use super::bulk::WARM_UP;
use super::delay;
use super::origin::Origin;

pub const AUTH: &str = "access.example.com";
pub const NODE: &str = "192.0.2.1";
pub const USER: &str = "192.0.2.2";
pub const OFFICE: &str = "198.51.100.2";
const METRICS: &str = "127.0.0.1:9464";

/// Ports of the origin in the office; the client listens on the same numbers.
pub const SINK: u16 = 5_001;
pub const ECHO: u16 = 5_002;
pub const GREET: u16 = 5_003;

/// Applications whose connector comes later; what is behind them says a byte, too.
pub const LATER: [u16; 6] = [5_011, 5_012, 5_013, 5_014, 5_015, 5_016];

/// Application, connector, port of the origin, port of the client's listener.
fn forwards() -> Vec<(String, &'static str, u16, u16)> {
    let first = [("sink", SINK), ("echo", ECHO), ("greet", GREET)];
    let first = first.map(|(name, port)| (name.to_owned(), "hq", port, port));
    let later = LATER.map(|port| (later(port), "branch", GREET, port));
    first.into_iter().chain(later).collect()
}

/// The application of one of [`LATER`].
pub fn later(port: u16) -> String {
    format!("later-{port}")
}

/// Three namespaces in a row; the one in the middle forwards nothing by itself.
pub struct Line {
    pub user: Netns,
    pub node: Netns,
    pub office: Netns,
    _wan: Option<(Netns, OwnedFd)>,
}

/// Who carries what the ends say to each other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Plane {
    /// The gate, in the kernel.
    Xdp,
    /// The node's own socket.
    Userspace,
}

/// A node, a connector, and a person who is logged in. Fields are in the order in which they must go.
pub struct World {
    _connector: Connector,
    pub machine: Machine,
    pub node: Node,
    pub origin: Origin,
    pub dir: PathBuf,
    pub line: Line,
}

impl Line {
    /// Frames between the user and the node take `delay` in each direction, if given.
    pub fn new(label: &str, delay: Option<Duration>) -> Result<Self> {
        let [user, node, office] =
            ["user", "node", "office"].map(|name| Netns::new(&format!("{label}-{name}")));
        let (user, node, office) = (user?, node?, office?);
        let wan = match delay {
            None => {
                veth(&user, "eth0", &node, "eth0")?;
                None
            }
            Some(delay) => {
                let wan = Netns::new(&format!("{label}-wan"))?;
                veth(&user, "eth0", &wan, "a")?;
                veth(&node, "eth0", &wan, "b")?;
                delay::bridge(&wan, "a", "b", delay)?;
                // What the gate sends needs a queue there, which a program makes; aggregated frames would be too large to go on.
                let queue = pass_everything(&wan, "b")?;
                Some((wan, queue))
            }
        };
        veth(&office, "eth0", &node, "eth1")?;
        for netns in [&user, &office] {
            netns.run("ethtool -K eth0 gro on")?;
        }
        user.address("eth0", &format!("{USER}/24"))?;
        node.address("eth0", &format!("{NODE}/24"))?;
        node.address("eth1", "198.51.100.1/24")?;
        office.address("eth0", &format!("{OFFICE}/24"))?;
        user.route("default", NODE)?;
        office.route("default", "198.51.100.1")?;
        Ok(Self { user, node, office, _wan: wan })
    }
}

impl World {
    /// As [`Line::new`], everything running.
    pub fn start(plane: Plane, delay: Option<Duration>) -> Result<Self> {
        let label = match plane {
            Plane::Xdp => "xdp",
            Plane::Userspace => "plain",
        };
        let line = Line::new(label, delay)?;
        let dir = line.node.scratch()?;
        let origin = Origin::start(&line.office, Ipv4Addr::LOCALHOST)?;
        let ca = Ca::new("Bench CA")?;
        ca.write(&dir)?;
        ca.issue(&["*.example.com"])?.write(&dir, "node")?;
        let config = config(&dir, &pin(&line), plane);
        let mut node = Node::new(&dir.join("node"), Some(&line.node), METRICS.parse()?, &config)?;
        node.add_user("ann", "ann@example.com", PASSWORD, &[])?;
        node.restart()?;
        let connector = enrol(&node, &line, &dir, "hq")?;
        let machine = log_in(&line, &dir, "laptop")?;
        Ok(Self { _connector: connector, machine, node, origin, dir, line })
    }

    /// Another machine of the person's, who is logged in there.
    pub fn log_in(&self, name: &str) -> Result<Machine> {
        log_in(&self.line, &self.dir, name)
    }

    /// The client with a listener for each application, once a byte has come through every one of them.
    pub fn connect(&self) -> Result<Process> {
        let file = self.dir.join("forwards.toml");
        let forwards = forwards().into_iter().map(|(name, _, _, port)| {
            format!("[[forward]]\napplication = \"{name}\"\nlisten = \"127.0.0.1:{port}\"\n")
        });
        fs::write(&file, forwards.collect::<String>())?;
        let mut client = self.access(&["connect", file.to_str().context("a path that is no text")?])?;
        client.wait_until("carry a byte", START, |_| {
            super::origin::greeting(&self.line.user, local(GREET), Duration::from_secs(2)).map(Some)
        })?;
        Ok(client)
    }

    /// The connector of the applications of [`LATER`].
    pub fn connect_later(&self) -> Result<Connector> {
        enrol(&self.node, &self.line, &self.dir, "branch")
    }

    /// Bits a second to the sink.
    pub fn bulk(&self, length: Duration) -> Result<f64> {
        Ok(self.origin.bulk(&self.line.user, local(SINK), WARM_UP, length)?.rate())
    }

    /// Where the gate is pinned.
    pub fn pin(&self) -> PathBuf {
        pin(&self.line)
    }

    /// A command of the client, started.
    fn access(&self, args: &[&str]) -> Result<Process> {
        let command = self.machine.command(args)?;
        self.line.user.enter(|| Process::spawn("access", command))?
    }
}

/// A listener of the client, as its own machine sees it.
pub const fn local(port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

fn pin(line: &Line) -> PathBuf {
    line.node.bpffs().join("gate")
}

fn log_in(line: &Line, dir: &Path, name: &str) -> Result<Machine> {
    let url = format!("https://{AUTH}");
    let hosts = format!("127.0.0.1 localhost\n{NODE} {AUTH}\n");
    let ca = dir.join("ca.pem");
    let machine = Machine::at(dir, name, url, &ca, &hosts)?;
    let web = Web::at(&dir.join(format!("{name}.jar")), &ca, 443, &[AUTH], NODE);
    line.user.enter(|| machine.log_in(&web, "ann"))??;
    Ok(machine)
}

/// A connector in the office, once it is connected.
fn enrol(node: &Node, line: &Line, dir: &Path, name: &str) -> Result<Connector> {
    let token = node.create_connector(name, "198.51.100.1:443")?;
    let connector = Connector::enrol(&dir.join(name), Some(&line.office), &token)?;
    let connected = format!("portcullis_tunnel_connections{{connector=\"{name}\"}} ");
    wait_until("the connector", START, || {
        let metrics = node.metrics()?;
        let count = metrics.lines().find_map(|line| line.strip_prefix(&connected));
        Ok(count.is_some_and(|count| count != "0").then_some(()))
    })?;
    Ok(connector)
}

fn config(dir: &Path, pin: &Path, plane: Plane) -> String {
    let dataplane = match plane {
        Plane::Xdp => "xdp",
        Plane::Userspace => "userspace",
    };
    let applications = forwards().into_iter().map(|(name, connector, port, _)| {
        format!(
            "[[application]]\nname = \"{name}\"\ntype = \"tcp\"\norigin = \"127.0.0.1:{port}\"\n\
             connector = \"{connector}\"\npolicies = [\"staff\"]\n"
        )
    });
    format!(
        r#"domain = "{AUTH}"
listen = "[::]:443"
[[node.certificate]]
cert = "{dir}/node.pem"
key = "{dir}/node.key"
[gate]
interfaces = ["eth0", "eth1"]
dataplane = "{dataplane}"
pin = {pin:?}
[events]
file = "{dir}/access.jsonl"
[[identity_provider]]
name = "local"
type = "local"
[[policy]]
name = "staff"
action = "allow"
include = [{{ email_domain = "example.com" }}]
[[application]]
name = "many"
type = "tcp"
network = {{ prefix = "10.0.0.0/8", ports = [7] }}
connector = "hq"
policies = ["staff"]
{applications}"#,
        dir = dir.display(),
        applications = applications.collect::<String>(),
    )
}

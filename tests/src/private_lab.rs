//! Private applications with real processes on the real kernel:
//!
//! ```text
//!   client ── eth0 ═══ eth0 ── edge: a node and its gate ── eth1 ═══ eth0 ── office: a connector, and what it reaches
//!       192.0.2.2, 2001:db8::2                   198.51.100.2, 2001:db8:1::2
//! ```
//! The edge ends each prefix with `.1`, `::1`. The office lets nothing in, and every application of it is on its
//! loopback. `ann` and `bob` have accounts; policy lets `ann` in.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::access::Machine;
use crate::ca::Ca;
use crate::netns::{Netns, veth};
use crate::portcullis::{Connector, Node, START};
use crate::process::{Process, wait_until};
use crate::realm::{PASSWORD, events_in};
use crate::web::Web;

pub const AUTH: &str = "access.example.com";
const URL: &str = "https://access.example.com";

/// The applications, by name, and where they are in the office.
pub const APPLICATIONS: [(&str, &str, u16); 12] = [
    ("echo", "tcp", 7),
    ("other", "tcp", 7),
    ("udpecho", "udp", 7),
    ("chargen", "tcp", 19),
    ("shell", "ssh", 22),
    ("db", "tcp", 5432),
    ("dns", "udp", 53),
    ("perf", "tcp", 5201),
    ("perf-control", "tcp", 5202),
    ("perf-udp", "udp", 5202),
    ("desk", "rdp", 3389),
    ("brief", "tcp", 7),
];

/// How long a session of `brief` may last: as short as the configuration lets it be.
pub const BRIEF: Duration = Duration::from_secs(60);

const FIREWALL: &str = "
table inet firewall {
    chain input {
        type filter hook input priority 0; policy drop;
        iif lo accept
        ct state established,related accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
    }
}";

/// Not a filter of the host's own: that would tell the sender.
const LOSES_UDP: &str = "
table netdev loses {
    chain out { type filter hook egress device eth0 priority 0; udp dport 443 drop; }
    chain in { type filter hook ingress device eth0 priority 0; udp sport 443 drop; }
}";

/// Which addresses the two ends use, and who relays.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// `xdp` or `userspace`.
    pub dataplane: &'static str,
    /// 4 or 6.
    pub client: u8,
    pub connector: u8,
}

impl Plan {
    pub const KERNEL: Self = Self { dataplane: "xdp", client: 4, connector: 4 };
}

/// Fields are in the order in which they must go.
pub struct PrivateLab {
    pub node: Node,
    pub connector: Option<Connector>,
    pub client: Netns,
    pub office: Netns,
    pub edge: Netns,
    pub dir: PathBuf,
    plan: Plan,
}

impl PrivateLab {
    pub fn start(plan: Plan) -> Result<Self> {
        let (edge, client, office) = (Netns::new("edge")?, Netns::new("client")?, Netns::new("office")?);
        veth(&edge, "eth0", &client, "eth0")?;
        veth(&edge, "eth1", &office, "eth0")?;
        for (netns, interface, v4, v6) in [
            (&edge, "eth0", "192.0.2.1", "2001:db8::1"),
            (&client, "eth0", "192.0.2.2", "2001:db8::2"),
            (&edge, "eth1", "198.51.100.1", "2001:db8:1::1"),
            (&office, "eth0", "198.51.100.2", "2001:db8:1::2"),
        ] {
            netns.address(interface, &format!("{v4}/24"))?;
            netns.address(interface, &format!("{v6}/64"))?;
        }
        // The other end of a veth takes redirected packets only with NAPI, as any network card does.
        client.run("ethtool -K eth0 gro on")?;
        office.run("ethtool -K eth0 gro on")?;
        office.nft(FIREWALL)?;
        serve(&office)?;
        let dir = edge.scratch()?;
        let ca = Ca::new("private lab")?;
        ca.write(&dir)?;
        ca.issue(&[AUTH, "*.example.com"])?.write(&dir, "edge")?;
        let node_dir = dir.join("node");
        let metrics = "127.0.0.1:9464".parse()?;
        let config = configuration(&dir, &edge, plan, "staff");
        let node = Node::start(&node_dir, Some(&edge), metrics, &config)?;
        node.add_user("ann", "ann@example.com", PASSWORD, &["staff"])?;
        node.add_user("bob", "bob@example.com", PASSWORD, &[])?;
        let address = if plan.connector == 4 { "198.51.100.1:443" } else { "[2001:db8:1::1]:443" };
        let token = node.create_connector("hq", address)?;
        let connector = Some(Connector::enrol(&dir.join("connector"), Some(&office), &token)?);
        let lab = Self { node, connector, client, office, edge, dir, plan };
        lab.connected()?;
        Ok(lab)
    }

    /// Waits for the connector.
    pub fn connected(&self) -> Result<()> {
        wait_until("the connector", START, || {
            let out = self.node.admin(&["connector", "list"])?;
            Ok(out.lines().any(|line| line.split_whitespace().nth(1) == Some("2")).then_some(()))
        })
    }

    /// Starts the connector that has enrolled before.
    pub fn start_connector(&mut self) -> Result<()> {
        self.connector = Some(Connector::start(&self.dir.join("connector"), Some(&self.office))?);
        Ok(())
    }

    /// A machine of somebody in the client's network, who is logged in there by a browser.
    pub fn machine(&self, user: &str) -> Result<Machine> {
        let address = if self.plan.client == 4 { "192.0.2.1" } else { "2001:db8::1" };
        let ca = self.dir.join("ca.pem");
        let hosts = format!("127.0.0.1 localhost\n{address} {AUTH}\n");
        let machine = Machine::at(&self.dir, user, URL.to_owned(), &ca, &hosts)?.inside(&self.client);
        let curl = if self.plan.client == 4 { address.to_owned() } else { format!("[{address}]") };
        let jar = self.dir.join(format!("{user}.jar"));
        let web = Web::at(&jar, &ca, 443, &[AUTH], &curl)
            .inside(&self.client)
            .header("Accept: text/html,*/*;q=0.8");
        machine.log_in(&web, user)?;
        Ok(machine)
    }

    /// Lets another group in, by a reload; returns once it is in force.
    pub fn let_in(&mut self, group: &str) -> Result<()> {
        let reloads = |lab: &Self| -> Result<usize> {
            Ok(lab.events("admin")?.iter().filter(|event| event["detail"] == "reload").count())
        };
        let before = reloads(self)?;
        self.node.write_config(&configuration(&self.dir, &self.edge, self.plan, group))?;
        self.node.process()?.signal(Signal::HUP)?;
        wait_until("the reload", START, || Ok((reloads(self)? > before).then_some(())))
    }

    /// Every event of `action` so far, oldest first.
    pub fn events(&self, action: &str) -> Result<Vec<Value>> {
        let mut events = events_in(&self.dir.join("access.jsonl"))?;
        events.retain(|event| event["action"] == action);
        Ok(events)
    }

    /// The events of `action` about an application, once there are `count`.
    pub fn events_of(&self, action: &str, application: &str, count: usize) -> Result<Vec<Value>> {
        wait_until(&format!("{count} {action} events of {application}"), START, || {
            let mut events = self.events(action)?;
            events.retain(|event| event["app_name"] == application);
            Ok((events.len() >= count).then_some(events))
        })
    }

    /// A sum over the lines of a metric.
    pub fn metric(&self, name: &str) -> Result<u64> {
        let metrics = self.node.metrics()?;
        let of = |line: &str| -> Option<f64> {
            let rest = line.strip_prefix(name)?;
            rest.starts_with(['{', ' ']).then(|| rest.rsplit(' ').next()?.parse().ok())?
        };
        Ok(metrics.lines().filter_map(of).sum::<f64>() as u64)
    }

    /// From now on the client's network, or the office's, or both, lose what goes by UDP to the node and comes from it, and
    /// nobody is told; or neither does.
    pub fn lose_udp(&self, at_client: bool, at_office: bool) -> Result<()> {
        self.client.nft(if at_client { LOSES_UDP } else { "" })?;
        self.office.nft(&format!("{FIREWALL}{}", if at_office { LOSES_UDP } else { "" }))
    }

    /// The client's network changes: it has another address from now on.
    pub fn move_client(&self, from: &str, to: &str) -> Result<()> {
        relocate(&self.client, from, to)
    }

    /// The same with the office's.
    pub fn move_office(&self, from: &str, to: &str) -> Result<()> {
        relocate(&self.office, from, to)
    }
}

fn relocate(netns: &Netns, from: &str, to: &str) -> Result<()> {
    netns.run(&format!("ip address delete {from}/24 dev eth0"))?;
    netns.run(&format!("ip address add {to}/24 dev eth0")).map(drop)
}

/// A forward of a machine, and where it listens.
pub struct Forward {
    pub process: Process,
    pub address: SocketAddr,
}

impl Forward {
    /// `portcullis access ARGS`, once it listens.
    pub fn start(machine: &Machine, args: &[&str]) -> Result<Self> {
        let mut process = Process::spawn("access", machine.command(args)?)?;
        let address = process.wait_until("listen", START, |process| {
            let output = process.output();
            let rest = output.lines().find_map(|line| line.split_once("listening on "));
            Ok(rest.and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok()))
        })?;
        Ok(Self { process, address })
    }
}

/// Waits until the only forward is on this path. On a busy machine an end may have taken TCP for a while before UDP answered, and
/// then the daemon relays.
pub fn becomes(machine: &Machine, on: &str) -> Result<()> {
    wait_until(&format!("the path to be {on}"), 2 * START, || {
        let path = path(machine)?;
        ensure!(path == on, "it is {path}");
        Ok(Some(()))
    })
}

/// What `access status` says of the only forward: its path.
pub fn path(machine: &Machine) -> Result<String> {
    told(machine, "path")
}

/// What `access status` says of the only forward: what carries it.
pub fn carrier(machine: &Machine) -> Result<String> {
    told(machine, "carrier")
}

fn told(machine: &Machine, what: &str) -> Result<String> {
    let status: Value = serde_json::from_str(&machine.ok(&["status", "--json"])?)?;
    let text = status[0]["forwards"][0][what].as_str();
    Ok(text.with_context(|| format!("no {what}: {status}"))?.to_owned())
}

/// Sends `bytes` to an echo on TCP, ends that direction, and reads until the other one has ended too.
pub fn echo_tcp(netns: &Netns, address: SocketAddr, bytes: &[u8]) -> Result<()> {
    let mut stream = netns.enter(|| std::net::TcpStream::connect(address))??;
    stream.set_read_timeout(Some(START))?;
    let mut back = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let mut half = stream.try_clone()?;
        let sending = scope.spawn(move || {
            half.write_all(bytes)?;
            half.shutdown(Shutdown::Write)
        });
        stream.read_to_end(&mut back)?;
        Ok(sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??)
    })?;
    ensure!(back == bytes, "{} bytes of {} came back", back.len(), bytes.len());
    Ok(())
}

/// On the office's loopback, for as long as the process lives: echoes on port 7, TCP and UDP (RFC 862), and a connection that
/// never stops on port 19 (RFC 864).
fn serve(office: &Netns) -> Result<()> {
    let listener = office.enter(|| TcpListener::bind(("127.0.0.1", 19)))??;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || while stream.write_all(&[b'x'; 64 << 10]).is_ok() {});
        }
    });
    let listener = office.enter(|| TcpListener::bind(("127.0.0.1", 7)))??;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let Ok(mut back) = stream.try_clone() else { return };
                let mut stream = stream;
                let _ = std::io::copy(&mut stream, &mut back);
                let _ = back.shutdown(Shutdown::Write);
            });
        }
    });
    let socket = office.enter(|| UdpSocket::bind(("127.0.0.1", 7)))??;
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    Ok(())
}

fn configuration(dir: &std::path::Path, edge: &Netns, plan: Plan, group: &str) -> String {
    let mut config = format!(
        r#"
domain = "{AUTH}"
listen = "[::]:443"
[[node.certificate]]
cert = {:?}
key = {:?}
[gate]
dataplane = "{}"
interfaces = ["eth0", "eth1"]
pin = {:?}
[events]
file = {:?}
[[identity_provider]]
name = "local"
type = "local"
[[policy]]
name = "let-in"
action = "allow"
include = [{{ group = "{group}" }}]
"#,
        dir.join("edge.pem"),
        dir.join("edge.key"),
        plan.dataplane,
        edge.bpffs(),
        dir.join("access.jsonl"),
    );
    for (name, kind, port) in APPLICATIONS {
        config.push_str(&format!(
            "[[application]]\nname = \"{name}\"\ntype = \"{kind}\"\norigin = \"127.0.0.1:{port}\"\nconnector = \"hq\"\n\
             policies = [\"let-in\"]\n"
        ));
        if name == "brief" {
            config.push_str(&format!("session = \"{}s\"\n", BRIEF.as_secs()));
        }
        if kind == "ssh" {
            config.push_str("ssh = { users = [\"deploy\"], email_user_domains = [\"example.com\"] }\n");
        }
    }
    config
}

/// How long a cut may take to show. The promise is a second, and a busy machine is late with it; nothing but what is asked for
/// ends a session so early.
pub const CUT: Duration = Duration::from_secs(3);

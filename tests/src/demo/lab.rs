//! The four parties, their network, and what runs at the edge.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::ca::{Ca, CertificateFiles};
use crate::demo::browser::Browser;
use crate::demo::office::Office;
use crate::netns::{Netns, veth};
use crate::portcullis::{Connector, Node, START};
use crate::process::wait_until;

pub(super) const DOMAIN: &str = "portcullis.test";
pub(super) const AUTH: &str = "https://access.portcullis.test";
pub(super) const WIKI: &str = "https://wiki.portcullis.test";
pub(super) const CHAT: &str = "wss://chat.portcullis.test";
pub(super) const CONNECTOR: &str = "hq";
const METRICS: &str = "127.0.0.1:9464";

/// An account of the lab.
pub struct Person {
    pub name: &'static str,
    pub email: &'static str,
    pub password: &'static str,
    pub group: &'static str,
}

/// May use everything.
pub const ALICE: Person = Person {
    name: "alice",
    email: "alice@portcullis.test",
    password: "correct horse battery staple",
    group: "staff",
};
/// Has an account, and policy lets him in nowhere.
pub const BOB: Person = Person {
    name: "bob",
    email: "bob@portcullis.test",
    password: "hunter2 hunter2 hunter2",
    group: "guests",
};
/// As Alice; the one whom a revocation of Alice must not touch.
pub const CAROL: Person =
    Person { name: "carol", email: "carol@portcullis.test", password: "tr0ub4dor and three", group: "staff" };

/// Where a party is on the internet: one address in each family.
pub(super) struct Place {
    pub(super) v4: &'static str,
    pub(super) v6: &'static str,
    gateway4: &'static str,
    gateway6: &'static str,
}

pub(super) const STRANGER: Place = Place {
    v4: "198.51.100.7",
    v6: "2001:db8:100::7",
    gateway4: "198.51.100.1",
    gateway6: "2001:db8:100::1",
};
pub(super) const USER: Place =
    Place { v4: "192.0.2.20", v6: "2001:db8:20::20", gateway4: "192.0.2.1", gateway6: "2001:db8:20::1" };
pub(super) const EDGE: Place = Place {
    v4: "203.0.113.10",
    v6: "2001:db8:113::10",
    gateway4: "203.0.113.1",
    gateway6: "2001:db8:113::1",
};
pub(super) const OFFICE: Place =
    Place { v4: "198.18.5.5", v6: "2001:db8:5::5", gateway4: "198.18.5.1", gateway6: "2001:db8:5::1" };

/// Who may use the applications: as the lab means it, or with a fault.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    StaffOnly,
    /// Policy allows everyone who has an account.
    Everyone,
    /// Policy asks nobody who he is.
    Bypass,
}

/// The lab. Fields are in the order in which they must go: processes before their namespaces.
pub struct Lab {
    pub(super) node: Node,
    pub(super) connector: Option<Connector>,
    pub(super) office: Office,
    /// Faults that are no state of the node.
    pub(super) keys_are_foreign: bool,
    pub(super) side_door: bool,
    pub(super) stranger: Netns,
    pub(super) user: Netns,
    pub(super) edge: Netns,
    pub(super) internet: Netns,
    pub(super) ca: Ca,
    certificate: CertificateFiles,
    dir: PathBuf,
}

impl Lab {
    /// Builds the network, starts the node, makes the accounts, enrols and starts the connector.
    /// `say` is told what is being done.
    pub fn new(say: &dyn Fn(&str)) -> Result<Self> {
        say("network namespaces: stranger, user, edge, office");
        let internet = Netns::new("internet")?;
        let dir = internet.scratch()?;
        internet.forward()?;
        let stranger = party(&internet, "stranger", &STRANGER)?;
        let user = party(&internet, "user", &USER)?;
        let edge = party(&internet, "edge", &EDGE)?;
        let office = party(&internet, "office", &OFFICE)?;

        say("private applications in the office: nginx and a chat");
        let office = Office::start(&dir.join("office"), office)?;

        say("portcullis node at the edge, its gate on eth0");
        let ca = Ca::new("Portcullis demo CA")?;
        let certificate = ca.issue(&[format!("*.{DOMAIN}")])?.write(&dir, "edge")?;
        let node_dir = dir.join("node");
        let config = config(&node_dir, &edge, &certificate, Access::StaffOnly);
        let node = Node::start(&node_dir, Some(&edge), metrics()?, &config)?;

        say("accounts alice, bob, carol; connector hq");
        for person in [&ALICE, &BOB, &CAROL] {
            node.add_user(person.name, person.email, person.password, &[person.group])?;
        }
        let token = node.create_connector(CONNECTOR, &format!("{}:443", EDGE.v4))?;
        let connector = Connector::enrol(&dir.join("connector"), Some(office.netns()), &token)?;
        let mut lab = Self {
            node,
            connector: Some(connector),
            office,
            keys_are_foreign: false,
            side_door: false,
            stranger,
            user,
            edge,
            internet,
            ca,
            certificate,
            dir,
        };
        lab.wait_for_tunnel()?;
        Ok(lab)
    }

    /// A browser of the person who sits in the `user` namespace, without any cookie.
    pub(super) fn browser(&self) -> Result<Browser> {
        Browser::new(&self.user, self.ca.pem(), EDGE.v4)
    }

    /// As [`Lab::browser`], over IPv6.
    pub(super) fn browser6(&self) -> Result<Browser> {
        Browser::new(&self.user, self.ca.pem(), EDGE.v6)
    }

    /// A browser in which someone has logged in by opening the wiki.
    pub(super) fn logged_in(&self, person: &Person) -> Result<Browser> {
        let browser = self.browser()?;
        let page = browser.log_in(&format!("{WIKI}/"), person.name, person.password)?;
        ensure!(page.status == 200, "{} logged in and got {}", person.name, page.summary());
        Ok(browser)
    }

    /// Restarts the node with other policies and waits for the connector to be back.
    pub(super) fn set_access(&mut self, access: Access) -> Result<()> {
        let config = config(self.node.dir(), &self.edge, &self.certificate, access);
        self.node.write_config(&config)?;
        self.restart_node()
    }

    /// Restarts the node: the gate is attached again if it was not.
    pub(super) fn restart_node(&mut self) -> Result<()> {
        self.node.restart()?;
        self.wait_for_tunnel()
    }

    /// Takes the gate off the edge's interface, as an administrator does in an emergency.
    pub(super) fn detach_gate(&self) -> Result<()> {
        self.node.admin(&["gate", "detach"]).map(drop)
    }

    pub(super) fn stop_connector(&mut self) -> Result<()> {
        if let Some(mut connector) = self.connector.take() {
            connector.process.terminate(Duration::from_secs(60))?;
        }
        wait_until("the node to see the connector go", Duration::from_secs(60), || {
            Ok((self.tunnels()? == 0).then_some(()))
        })
    }

    pub(super) fn start_connector(&mut self) -> Result<()> {
        let netns = self.office.netns().clone();
        self.connector = Some(Connector::start(&self.dir.join("connector"), Some(&netns))?);
        self.wait_for_tunnel()
    }

    /// Waits until the connector is connected.
    pub(super) fn wait_for_tunnel(&mut self) -> Result<()> {
        let connected =
            wait_until("the connector to connect", START, || Ok((self.tunnels()? > 0).then_some(())));
        connected.with_context(|| {
            let connector = self.connector.as_ref().map(|connector| connector.process.output());
            let node = self.node.process().map(|process| process.output()).unwrap_or_default();
            format!("connector:\n{}\nnode:\n{node}", connector.unwrap_or_default())
        })
    }

    fn tunnels(&self) -> Result<u64> {
        let metrics = self.node.metrics()?;
        let line = format!("portcullis_tunnel_connections{{connector=\"{CONNECTOR}\"}} ");
        Ok(metrics.lines().find_map(|found| found.strip_prefix(&line)?.parse().ok()).unwrap_or(0))
    }

    /// The access log, oldest first.
    pub(super) fn events(&self) -> Result<Vec<serde_json::Value>> {
        let out = self.node.admin(&["events", "--json", "--limit", "1000000"])?;
        out.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
            .collect()
    }

    /// The key set that the node publishes.
    pub(super) fn published_keys(&self) -> Result<serde_json::Value> {
        let page = self.browser()?.open(&format!("{AUTH}/cdn-cgi/access/certs"))?;
        ensure!(page.status == 200, "the key set answers {}", page.status);
        Ok(serde_json::from_str(&page.body)?)
    }

    pub(super) fn path(&self) -> &Path {
        &self.dir
    }
}

fn metrics() -> Result<SocketAddr> {
    Ok(METRICS.parse()?)
}

fn party(internet: &Netns, name: &str, place: &Place) -> Result<Netns> {
    let netns = Netns::new(name)?;
    veth(&netns, "eth0", internet, &format!("to-{name}"))?;
    netns.address("eth0", &format!("{}/24", place.v4))?;
    netns.address("eth0", &format!("{}/64", place.v6))?;
    internet.address(&format!("to-{name}"), &format!("{}/24", place.gateway4))?;
    internet.address(&format!("to-{name}"), &format!("{}/64", place.gateway6))?;
    netns.route("default", place.gateway4)?;
    netns.route("default", place.gateway6)?;
    Ok(netns)
}

fn config(dir: &Path, edge: &Netns, certificate: &CertificateFiles, access: Access) -> String {
    let (action, include) = match access {
        Access::StaffOnly => ("allow", "{ group = \"staff\" }"),
        Access::Everyone => ("allow", "{ everyone = true }"),
        Access::Bypass => ("bypass", "{ everyone = true }"),
    };
    let events: PathBuf = dir.join("access.jsonl");
    format!(
        r#"domain = "access.{DOMAIN}"
listen = "[::]:443"
session = "1h"

[[node.certificate]]
cert = {:?}
key = {:?}

[gate]
interfaces = ["eth0"]
pin = {:?}

[events]
file = {events:?}

[[identity_provider]]
name = "local"
type = "local"

[[policy]]
name = "staff"
action = "{action}"
include = [{include}]

[[application]]
name = "wiki"
url = "{WIKI}"
origin = "http://10.20.0.10:8080"
connector = "{CONNECTOR}"
policies = ["staff"]

[[application]]
name = "chat"
url = "https://chat.{DOMAIN}"
origin = "http://10.20.0.10:9001"
connector = "{CONNECTOR}"
policies = ["staff"]
"#,
        certificate.cert,
        certificate.key,
        edge.bpffs(),
    )
}

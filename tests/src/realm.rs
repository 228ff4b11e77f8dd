//! A node with a login in front of recording origins: two applications on a sibling name of the auth domain, one on
//! another registrable domain, users, and any number of identity providers. Everything is on loopback.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::ca::Ca;
use crate::idp::{CLIENT_ID, CLIENT_SECRET, Idp};
use crate::origin::Origin;
use crate::portcullis::{Node, START};
use crate::ports;
use crate::web::{Reply, Web};

pub const AUTH: &str = "access.example.com";
/// Application `wiki` at `/` and `admin` at `/admin`.
pub const WIKI: &str = "wiki.example.com";
/// Application `shop`.
pub const SHOP: &str = "shop.elsewhere.test";
pub const HOSTS: [&str; 3] = [AUTH, WIKI, SHOP];

/// Password of every local user: `ann` (group `ops`) and `bob` at example.com, `eve` at evil.test.
pub const PASSWORD: &str = "correct horse battery";

/// Every name below these leads to the node.
const CERTIFIED: [&str; 2] = ["*.example.com", "*.elsewhere.test"];

/// The realm, running.
pub struct Realm {
    pub dir: TempDir,
    pub ca: Ca,
    pub ca_file: PathBuf,
    pub port: u16,
    pub node: Node,
    pub origin: Origin,
}

/// An OpenID provider as the node's configuration names it.
#[derive(Debug)]
pub struct Provider<'a> {
    pub name: &'a str,
    pub idp: &'a Idp,
    /// Further lines of its `[[identity_provider]]`.
    pub more: &'a str,
}

/// What must exist before providers do, since they have to know where the node will be.
pub struct Plan {
    pub dir: TempDir,
    pub ca: Ca,
    pub port: u16,
}

impl Plan {
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("portcullis-realm-").tempdir()?;
        Ok(Self { dir, ca: Ca::new("Realm CA")?, port: ports::free()? })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The redirection URI of the node.
    pub fn callback(&self) -> String {
        format!("https://{AUTH}:{}/cdn-cgi/access/callback", self.port)
    }

    /// The redirection URIs that are registered for the provider called `name`.
    pub fn callbacks(&self, name: &str) -> [String; 2] {
        [self.callback(), format!("{}/{name}", self.callback())]
    }

    /// Starts everything. With `local`, local users may log in too. `more` is further configuration, where `ORIGIN`
    /// stands for the recording origin's address.
    pub fn start(self, local: bool, providers: &[Provider<'_>], more: &str) -> Result<Realm> {
        let ca_file = self.ca.write(self.path())?;
        let origin = Origin::start(None, ([127, 0, 0, 1], 0).into())?;
        self.ca.issue(&CERTIFIED)?.write(self.path(), "node")?;
        std::fs::write(self.path().join("idp.secret"), CLIENT_SECRET)?;
        let node_dir = self.path().join("node");
        let metrics = ([127, 0, 0, 1], ports::free()?).into();
        let config = self.config(local, providers, &origin, more);
        let mut node = Node::new(&node_dir, None, metrics, &config)?;
        if local {
            for (name, email, groups) in [
                ("ann", "ann@example.com", &["ops"][..]),
                ("bob", "bob@example.com", &[]),
                ("eve", "eve@evil.test", &[]),
            ] {
                node.add_user(name, email, PASSWORD, groups)?;
            }
        }
        node.restart()?;
        Ok(Realm { dir: self.dir, ca: self.ca, ca_file, port: self.port, node, origin })
    }

    fn config(&self, local: bool, providers: &[Provider<'_>], origin: &Origin, more: &str) -> String {
        let (dir, port, origin) = (self.path().display(), self.port, origin.address());
        let mut config = format!(
            r#"domain = "{AUTH}"
listen = "127.0.0.1:{port}"
[[node.certificate]]
cert = "{dir}/node.pem"
key = "{dir}/node.key"
[gate]
ungated = true
[events]
file = "{dir}/access.jsonl"
[[policy]]
name = "staff"
action = "allow"
include = [{{ email_domain = "example.com" }}]
[[policy]]
name = "ops"
action = "allow"
include = [{{ group = "ops" }}]
[[application]]
name = "wiki"
url = "https://{WIKI}"
origin = "http://{origin}"
policies = ["staff"]
[[application]]
name = "admin"
url = "https://{WIKI}/admin"
origin = "http://{origin}"
policies = ["ops"]
[[application]]
name = "shop"
url = "https://{SHOP}"
origin = "http://{origin}"
policies = ["staff"]
"#
        );
        if local {
            config.push_str("[[identity_provider]]\nname = \"local\"\ntype = \"local\"\n");
        }
        for Provider { name, idp, more } in providers {
            config.push_str(&format!(
                r#"[[identity_provider]]
name = "{name}"
type = "oidc"
issuer = "{}"
client_id = "{CLIENT_ID}"
client_secret = {{ file = "{dir}/idp.secret" }}
ca = "{dir}/ca.pem"
{more}
"#,
                idp.issuer()
            ));
        }
        config + &more.replace("ORIGIN", &origin.to_string())
    }
}

impl Realm {
    /// A browser with its own cookie jar called `name`.
    pub fn web(&self, name: &str) -> Web {
        Web::new(&self.dir.path().join(format!("{name}.jar")), &self.ca_file, self.port, &HOSTS)
    }

    pub fn url(&self, host: &str, path: &str) -> String {
        format!("https://{host}:{}{path}", self.port)
    }

    /// Logs a local user in on the way to `url`; the first answer that redirects no further.
    pub fn log_in(&self, web: &Web, url: &str, user: &str, password: &str) -> Result<Reply> {
        let form = web.follow(web.get(url)?, None)?;
        let ticket =
            form.field("ticket").with_context(|| format!("{} answered {}", form.url, form.status))?;
        let fields = [("ticket", ticket.as_str()), ("username", user), ("password", password)];
        let reply = web.post(&form.url, &fields)?;
        web.follow(reply, None)
    }

    /// Every event of `action` in the access log, once the writer has caught up with `count` of them; more are
    /// returned too.
    pub fn events(&self, action: &str, count: usize) -> Result<Vec<Value>> {
        let path = self.dir.path().join("access.jsonl");
        crate::process::wait_until(&format!("{count} events of {action}"), START, || {
            let mut events = events_in(&path)?;
            events.retain(|event| event["action"] == action);
            Ok((events.len() >= count).then_some(events))
        })
    }

    /// The text of the access log.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.dir.path().join("access.jsonl"))?)
    }
}

/// Every event of an access log. A line that is just being written is not yet one.
pub fn events_in(log: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(log)?;
    let lines = text.rsplit_once('\n').map_or("", |(lines, _)| lines).lines();
    Ok(lines.map(serde_json::from_str).collect::<Result<_, _>>()?)
}

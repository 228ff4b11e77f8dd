//! A node that guards one interface, and a stranger on the other end of it.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use portcullis_tests::ca::Ca;
use portcullis_tests::netns::{Netns, veth};
use portcullis_tests::portcullis::{Node, http_get};

pub const METRICS: &str = "127.0.0.1:9464";
pub const EDGE: &str = "198.18.40.1";

/// `stranger` ── veth ── `edge`, the gate on the edge's side.
pub struct Gated {
    pub stranger: Netns,
    pub edge: Netns,
    pub node: Node,
    _dir: tempfile::TempDir,
}

impl Gated {
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// With more lines for the configuration's `[gate]`.
    pub fn start_with(lines: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (stranger, edge) = (Netns::new("stranger").unwrap(), Netns::new("edge").unwrap());
        veth(&stranger, "eth0", &edge, "eth0").unwrap();
        stranger.address("eth0", "198.18.40.2/24").unwrap();
        edge.address("eth0", &format!("{EDGE}/24")).unwrap();
        Ca::new("Edge CA")
            .unwrap()
            .issue(&["access.example.com"])
            .unwrap()
            .write(dir.path(), "node")
            .unwrap();
        let config = format!(
            r#"domain = "access.example.com"
listen = "[::]:443"
[[node.certificate]]
cert = "{dir}/node.pem"
key = "{dir}/node.key"
[gate]
interfaces = ["eth0"]
pin = "{pin}"
{lines}
[[identity_provider]]
name = "local"
type = "local"
"#,
            dir = dir.path().display(),
            pin = edge.bpffs().join("gate").display(),
        );
        let metrics = METRICS.parse().unwrap();
        let node = Node::start(&dir.path().join("node"), Some(&edge), metrics, &config).unwrap();
        Self { stranger, edge, node, _dir: dir }
    }

    /// Whether a connection of the stranger to `port` opens, however busy this machine is.
    pub fn reaches(&self, port: u16) -> bool {
        self.opens(port, Duration::from_secs(20))
    }

    /// Whether the first SYN to `port`, and the one that TCP sends a second later, stay without an answer. A veth may
    /// lose the first while a program comes or goes.
    pub fn is_silent(&self, port: u16) -> bool {
        !self.opens(port, Duration::from_millis(1_500))
    }

    fn opens(&self, port: u16, patience: Duration) -> bool {
        let address: SocketAddr = format!("{EDGE}:{port}").parse().unwrap();
        self.stranger.enter(|| TcpStream::connect_timeout(&address, patience).is_ok()).unwrap()
    }

    /// What `/readyz` says.
    pub fn ready(&self) -> (u16, String) {
        http_get(Some(&self.edge), METRICS.parse().unwrap(), "/readyz").unwrap()
    }
}

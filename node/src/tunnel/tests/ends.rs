//! Private sessions between the real ends: a client and a connector, through a node that is made of the frames and the
//! relay alone.
//!
//! ```text
//! client ══ portcullis-access/1 ══▶ test node ◀══ portcullis/1 ══ connector ──▶ origin (TCP or UDP)
//!    └────── leg ────▶ its userspace relay ◀────── leg ───────────────┘
//! ```

mod cheats;
mod memory;
pub(crate) mod node;
mod tcp;
mod udp;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::lab::soon;
use crate::tunnel::client::{Client, Credentials, Fresh, Login, NoCredentials, Notice};
use crate::tunnel::connector::{self, ConnectorConfig};
use crate::tunnel::grant::{Protocol, Reach};
use crate::tunnel::identity::{KeyHash, TunnelKey};
use crate::tunnel::wire::{Authority, DeviceSecret};

use node::TestNode;

fn key() -> TunnelKey {
    TunnelKey::from_pkcs8(TunnelKey::generate().unwrap()).unwrap()
}

/// A person whose token is always good.
#[derive(Debug, Default)]
struct Person {
    address: Mutex<Option<Authority>>,
    node: Mutex<Option<KeyHash>>,
    lifetime: Mutex<Option<Duration>>,
    connectors: Mutex<Vec<(String, KeyHash)>>,
    notices: Mutex<Vec<Notice>>,
}

impl Login for Person {
    fn credentials(&self) -> Fresh<'_> {
        let address = self.address.lock().unwrap().clone();
        let node = *self.node.lock().unwrap();
        let lifetime = self.lifetime.lock().unwrap().unwrap_or(Duration::from_secs(3600));
        Box::pin(async move {
            Ok(Credentials {
                web: None,
                ticket: None,
                address: address.ok_or_else(|| NoCredentials("logged out".to_owned()))?,
                node: node.unwrap(),
                device: DeviceSecret::from_bytes(&[7; DeviceSecret::SIZE]).unwrap(),
                token: "good.to.ken".parse().unwrap(),
                lifetime,
            })
        })
    }

    fn remember(&self, application: &str, connector: KeyHash) -> Option<KeyHash> {
        let mut known = self.connectors.lock().unwrap();
        match known.iter_mut().find(|(name, _)| name == application) {
            Some((_, was)) => Some(std::mem::replace(was, connector)).filter(|was| *was != connector),
            None => {
                known.push((application.to_owned(), connector));
                None
            }
        }
    }

    fn notify(&self, notice: Notice) {
        self.notices.lock().unwrap().push(notice);
    }
}

/// A node, a connector that is connected to it, and a client that has dialled nothing yet.
struct World {
    node: TestNode,
    person: Arc<Person>,
    client: Client,
    client_key: KeyHash,
    connector: Connector,
    directory: tempfile::TempDir,
}

pub(crate) struct Connector {
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl World {
    /// One application, `app`, that leads to `reach`.
    async fn start(protocol: Protocol, reach: Reach) -> Self {
        Self::start_with(protocol, reach, None).await
    }

    async fn start_with(protocol: Protocol, reach: Reach, allow: Option<BTreeSet<Authority>>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let node = TestNode::start(protocol, reach).await;
        let connector = Connector::start(&node, directory.path(), allow).await;
        node.connector().await;
        let key = key();
        let client_key = key.hash();
        let person = Arc::new(Person::default());
        *person.address.lock().unwrap() = Some(node.address().to_string().parse().unwrap());
        *person.node.lock().unwrap() = Some(node.key());
        let login: Arc<dyn Login> = Arc::clone(&person) as Arc<dyn Login>;
        let client = Client::start(login, key).unwrap();
        Self { node, person, client, client_key, connector, directory }
    }

    fn notices(&self) -> Vec<Notice> {
        self.person.notices.lock().unwrap().clone()
    }
}

impl Connector {
    /// Enrolled with `node`, and running.
    pub(crate) async fn start(
        node: &TestNode,
        directory: &std::path::Path,
        allow: Option<BTreeSet<Authority>>,
    ) -> Self {
        let state = directory.join("connector");
        let token = Some(node.token().await);
        let shutdown = CancellationToken::new();
        let config = ConnectorConfig { state, token, allow, connections: 1 };
        let running = connector::run(config, shutdown.clone());
        let task = tokio::spawn(async move { running.await.unwrap() });
        Self { shutdown, task }
    }

    async fn stop(&mut self) {
        self.shutdown.cancel();
        soon(&mut self.task).await.unwrap();
    }
}

pub(crate) fn host(address: std::net::SocketAddr) -> Reach {
    Reach::Host(address.to_string().parse().unwrap())
}

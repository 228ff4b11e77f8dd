//! Addresses of our own, as browsers see them.

use crate::config::NodeConfig;
use crate::flow::Host;

use super::PREFIX;

/// The auth domain and the port that browsers reach the node at.
pub(super) struct Site {
    pub(super) auth: Host,
    port: u16,
}

impl Site {
    pub(super) fn new(node: &NodeConfig) -> Self {
        Self { auth: node.domain.clone(), port: node.public_port }
    }

    /// `https://host` with the port where it is not 443.
    pub(super) fn origin(&self, host: &Host) -> String {
        match self.port {
            443 => format!("https://{host}"),
            port => format!("https://{host}:{port}"),
        }
    }

    /// An endpoint below [`PREFIX`] on `host`.
    pub(super) fn endpoint(&self, host: &Host, endpoint: &str) -> String {
        format!("{}{PREFIX}{endpoint}", self.origin(host))
    }

    /// The redirection URI of OpenID Connect that providers share.
    pub(super) fn callback(&self) -> String {
        self.endpoint(&self.auth, "callback")
    }

    /// The redirection URI of one provider.
    pub(super) fn callback_of(&self, provider: &str) -> String {
        format!("{}/{provider}", self.callback())
    }
}

//! Configuration of a connector.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::error::{self, Faults};
use super::{ConfigError, Secret};

/// What a connector needs to run. The names of the nodes and their identity come with the enrolment.
#[derive(Debug, Clone)]
pub struct ConnectorConfig {
    /// Directory of its key and enrolment.
    pub state: PathBuf,
    /// Spent at the first start.
    pub token: Option<Secret>,
    /// Connections to each node.
    pub connections: u8,
    /// Origins (`host:port`) it may dial at the most; empty means those that the node configures.
    pub allow: Vec<String>,
}

pub const DEFAULT_CONNECTOR_STATE: &str = "/var/lib/portcullis-connector";
pub const DEFAULT_CONNECTIONS: u8 = 2;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    connector: Connector,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Connector {
    state: Option<PathBuf>,
    token_file: Option<Spanned<PathBuf>>,
    connections: Option<Spanned<u8>>,
    #[serde(default)]
    allow: Vec<Spanned<String>>,
}

impl ConnectorConfig {
    /// Reads and checks a file. A token file that is gone after enrolment is no fault: `enrolled` says whether the
    /// state directory holds a key already.
    pub fn load(path: &Path, enrolled: impl Fn(&Path) -> bool) -> Result<Self, ConfigError> {
        let text = error::read(path)?;
        let File { connector } = error::deserialize(&text, path)?;
        let mut faults = Faults::new(&text, path);
        let state = connector.state.unwrap_or_else(|| DEFAULT_CONNECTOR_STATE.into());
        let token = match connector.token_file {
            Some(file) if !enrolled(&state) => {
                let span = file.span();
                match super::compile::read_secret_file(file.get_ref()) {
                    Ok(secret) => Some(secret),
                    Err(message) => {
                        faults.at(span, message);
                        None
                    }
                }
            }
            _ => None,
        };
        let connections = match connector.connections {
            None => DEFAULT_CONNECTIONS,
            Some(n) if (1..=16).contains(n.get_ref()) => *n.get_ref(),
            Some(n) => {
                faults.at(n.span(), "`connections` must be from 1 to 16");
                DEFAULT_CONNECTIONS
            }
        };
        let mut allow = Vec::new();
        for origin in connector.allow {
            match crate::flow::Host::parse_authority(origin.get_ref()) {
                Ok((host, Some(port))) => allow.push(format!("{host}:{port}")),
                Ok((_, None)) => faults.at(origin.span(), format!("`{}` has no port", origin.get_ref())),
                Err(error) => faults.at(origin.span(), format!("`{}`: {error}", origin.get_ref())),
            }
        }
        faults.finish(Some(Self { state, token, connections, allow }))
    }
}

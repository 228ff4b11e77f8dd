//! Configuration of a connector.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use zeroize::Zeroizing;

use crate::tunnel::connector::ConnectorConfig;
use crate::tunnel::enrolment::EnrolmentToken;
use crate::tunnel::wire::Authority;

use super::ConfigError;
use super::error::{self, Faults};

/// Where a connector keeps its key unless told otherwise.
pub const DEFAULT_CONNECTOR_STATE: &str = "/var/lib/portcullis-connector";
/// Connections to each node unless told otherwise.
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

/// Reads and checks the configuration of a connector. Names of nodes and their identity come with the enrolment.
pub fn load_connector(path: &Path) -> Result<ConnectorConfig, ConfigError> {
    let text = error::read(path)?;
    let File { connector } = error::deserialize(&text, path)?;
    let mut faults = Faults::new(&text, path);
    let token = connector.token_file.and_then(|file| {
        read_token_file(file.get_ref()).map_err(|message| faults.at(file.span(), message)).ok().flatten()
    });
    let connections = match connector.connections {
        None => DEFAULT_CONNECTIONS,
        Some(n) if (1..=16).contains(n.get_ref()) => *n.get_ref(),
        Some(n) => {
            faults.at(n.span(), "`connections` must be from 1 to 16");
            DEFAULT_CONNECTIONS
        }
    };
    let mut allow = BTreeSet::new();
    for origin in &connector.allow {
        match origin.get_ref().parse::<Authority>() {
            Ok(authority) => {
                allow.insert(authority);
            }
            Err(error) => faults.at(origin.span(), format!("`{}`: {error}", origin.get_ref())),
        }
    }
    faults.finish(Some(ConnectorConfig {
        state: connector.state.unwrap_or_else(|| DEFAULT_CONNECTOR_STATE.into()),
        token,
        allow: (!allow.is_empty()).then_some(allow),
        connections: usize::from(connections),
    }))
}

/// The token in a file. A file that is gone, as it may be once the connector is enrolled, is no fault here: a
/// connector that needs one says so.
pub fn read_token_file(path: &Path) -> Result<Option<EnrolmentToken>, String> {
    match std::fs::read_to_string(path).map(Zeroizing::new) {
        Ok(text) => EnrolmentToken::parse(&text)
            .map(Some)
            .map_err(|error| format!("the enrolment token in {}: {error}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            tracing::info!(file = %path.display(), "there is no enrolment token: going on without one");
            Ok(None)
        }
        Err(error) => Err(format!("the enrolment token {} cannot be read: {error}", path.display())),
    }
}

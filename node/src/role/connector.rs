//! The connector: dials out, carries bytes to origins, listens on nothing.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::PathBuf;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::config::{DEFAULT_CONNECTIONS, DEFAULT_CONNECTOR_STATE, load_connector, read_token_file};
use crate::privilege;
use crate::tunnel::connector::{self, ConnectorConfig};
use crate::tunnel::enrolment::EnrolmentToken;
use crate::tunnel::wire::Authority;

/// Characters of an enrolment token read at the most.
const MAX_TOKEN: u64 = 64 * 1024;

/// The command line of `portcullis connector`.
#[derive(Debug, Default)]
pub struct Options {
    pub config: Option<PathBuf>,
    pub state: Option<PathBuf>,
    pub token_file: Option<PathBuf>,
    pub token_stdin: bool,
    pub allow: Vec<String>,
    pub connections: Option<u8>,
}

/// Runs until SIGTERM, then lets running streams end.
pub fn run(options: Options) -> anyhow::Result<()> {
    super::start_logging();
    super::install_crypto()?;
    let config = configure(options)?;
    std::fs::create_dir_all(&config.state).with_context(|| config.state.display().to_string())?;
    let paths = privilege::Paths { own: vec![config.state.clone()], ..privilege::Paths::default() };
    privilege::drop(None, &paths)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        super::stop_on_signal(shutdown.clone())?;
        Ok(connector::run(config, shutdown).await?)
    })
}

fn configure(options: Options) -> anyhow::Result<ConnectorConfig> {
    if let Some(path) = &options.config {
        return Ok(load_connector(path)?);
    }
    let token = if options.token_stdin {
        let mut text = Zeroizing::new(String::new());
        std::io::stdin().lock().take(MAX_TOKEN).read_to_string(&mut text)?;
        Some(EnrolmentToken::parse(&text).context("standard input")?)
    } else {
        match &options.token_file {
            Some(path) => read_token_file(path).map_err(anyhow::Error::msg)?,
            None => None,
        }
    };
    let allow = options
        .allow
        .iter()
        .map(|origin| origin.parse::<Authority>().with_context(|| format!("--allow {origin}")))
        .collect::<Result<BTreeSet<_>, _>>()?;
    Ok(ConnectorConfig {
        state: options.state.unwrap_or_else(|| DEFAULT_CONNECTOR_STATE.into()),
        token,
        allow: (!allow.is_empty()).then_some(allow),
        connections: usize::from(options.connections.unwrap_or(DEFAULT_CONNECTIONS)),
    })
}

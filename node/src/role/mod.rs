//! What the binary can be: a node or a connector. Each puts the parts together and runs them.

pub mod connector;
mod feed;
pub mod node;
mod reload;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::edge::{Tls, check_origin_tls};
use crate::flow::Kind;
use crate::gate::GateMode;
use crate::store::Store;

/// Installs the one TLS provider of the process; every part uses it.
pub fn install_crypto() -> anyhow::Result<()> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Lost only to another thread that installed the same one.
        let _ = provider.install_default();
    }
    Ok(())
}

/// Checks what a configuration names but only the edge can read: certificates, keys and authorities of origins.
pub fn check_files(config: &Config) -> anyhow::Result<()> {
    Tls::load(&config.node.certificates)?;
    for application in &config.applications {
        let Kind::Web(web) = &application.kind else { continue };
        check_origin_tls(&web.origin).with_context(|| format!("application `{}`", application.name))?;
    }
    Ok(())
}

/// The gate's mode: what an administrator has confirmed counts for more than an `audit` in the file. A store that
/// cannot be read is an error, since the gate might be meant to enforce.
pub fn gate_mode(config: &Config) -> anyhow::Result<GateMode> {
    if config.gate.mode == GateMode::Audit && Store::gate_was_confirmed(&config.node.state)? {
        return Ok(GateMode::Enforce);
    }
    Ok(config.gate.mode)
}

/// Logs to standard error, as `RUST_LOG` says, at `info` without it.
pub(crate) fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

/// Fires `shutdown` at SIGTERM or SIGINT.
fn stop_on_signal(shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: running requests may end");
        shutdown.cancel();
    });
    Ok(())
}

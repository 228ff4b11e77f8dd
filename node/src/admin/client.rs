//! Asks a running node, or the store itself where no node runs.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::codec::{Framed, LinesCodec};

use crate::config::Config;

use super::service::Service;
use super::wire::{LONGEST_LINE, Reply, Request};

/// Where to ask.
pub struct Target {
    pub socket: PathBuf,
    /// Lets commands run without a daemon.
    pub config: Option<Config>,
}

impl Target {
    /// Runs one command straight on the store, whether a node runs or not: for what needs the caller's own rights.
    pub async fn ask_store(
        &self,
        request: Request,
        mut each: impl FnMut(Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let config = self.config.as_ref().context("this command needs --config")?;
        on_store(config, request, &mut each).await
    }

    /// Runs one command; `each` gets every part of the answer.
    pub async fn ask(
        &self,
        request: Request,
        mut each: impl FnMut(Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        match UnixStream::connect(&self.socket).await {
            Ok(stream) => over_socket(stream, &request, &mut each).await,
            Err(error) => match (&self.config, error.kind()) {
                (Some(config), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) => {
                    on_store(config, request, &mut each).await
                }
                _ => Err(error).with_context(|| unreachable_node(&self.socket)),
            },
        }
    }
}

fn unreachable_node(socket: &Path) -> String {
    format!("no node answers at {} (is it running? name its file with --config)", socket.display())
}

async fn over_socket(
    stream: UnixStream,
    request: &Request,
    each: &mut impl FnMut(Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut lines = Framed::new(stream, LinesCodec::new_with_max_length(LONGEST_LINE));
    lines.send(serde_json::to_string(request)?).await?;
    let mut answered = false;
    while let Some(line) = lines.next().await {
        answered = true;
        take(serde_json::from_str(&line?)?, each)?;
    }
    // Only a listing of events may be empty; anything else without an answer was cut off.
    anyhow::ensure!(
        answered || matches!(request, Request::Events { .. }),
        "the node ended the connection without an answer: look at its log"
    );
    Ok(())
}

async fn on_store(
    config: &Config,
    request: Request,
    each: &mut impl FnMut(Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let service = Service::offline(config).await?;
    let (replies, mut answers) = mpsc::channel(64);
    let uid = rustix::process::getuid().as_raw();
    let run = async move {
        service.run(request, uid, &replies).await;
    };
    let take_all = async {
        while let Some(answer) = answers.recv().await {
            take(answer, each)?;
        }
        Ok(())
    };
    tokio::join!(run, take_all).1
}

fn take(reply: Reply, each: &mut impl FnMut(Value) -> anyhow::Result<()>) -> anyhow::Result<()> {
    match reply {
        Reply::Ok(value) => each(value),
        Reply::Error(message) => anyhow::bail!("{message}"),
    }
}

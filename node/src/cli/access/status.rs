//! `portcullis access status`: every process with forwards answers on a socket of its own in the profile's `run`
//! directory, one JSON object for each connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::access::Profile;
use crate::access::forward::{Carried, ForwardStatus, Forwards};

use super::output;

/// A process gets so long to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of the longest answer.
const LONGEST: u64 = 1 << 20;

#[derive(Args)]
pub(super) struct StatusArgs {
    #[arg(long)]
    json: bool,
}

/// What one process has.
#[derive(Serialize, Deserialize)]
struct Process {
    pid: u32,
    forwards: Vec<ForwardStatus>,
}

pub(super) async fn run(profile: &Profile, args: StatusArgs) -> anyhow::Result<()> {
    let directory = Forwards::run_directory(profile)?;
    let mut processes = Vec::new();
    for entry in std::fs::read_dir(&directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sock")
            && let Some(process) = ask(&path).await
        {
            processes.push(process);
        }
    }
    processes.sort_by_key(|process| process.pid);
    if args.json {
        return output::line(&serde_json::to_string_pretty(&processes)?);
    }
    let rows: Vec<Vec<String>> = processes.iter().flat_map(rows).collect();
    if rows.is_empty() {
        return output::line("no forward is open");
    }
    output::table(
        &["PROCESS", "APPLICATION", "PROTOCOL", "LISTENS ON", "CONNECTIONS", "PATH", "UNTIL"],
        &rows,
    )
}

fn rows(process: &Process) -> Vec<Vec<String>> {
    let row = |forward: &ForwardStatus| {
        let application = match &forward.destination {
            Some(destination) => format!("{} ({destination})", forward.application),
            None => forward.application.clone(),
        };
        let protocol = match forward.protocol {
            Carried::Tcp => "tcp",
            Carried::Udp => "udp",
        };
        vec![
            process.pid.to_string(),
            application,
            protocol.to_owned(),
            forward.listen.map_or_else(|| "standard input".to_owned(), |address| address.to_string()),
            forward.connections.to_string(),
            way(forward),
            output::time(forward.expires_at),
        ]
    };
    process.forwards.iter().map(row).collect()
}

/// Who relays, and by what this end reaches the node where that is not UDP.
fn way(forward: &ForwardStatus) -> String {
    match (&forward.path, forward.carrier.as_deref()) {
        (None, _) => "-".to_owned(),
        (Some(path), Some("tcp")) => format!("{path}, over TCP"),
        (Some(path), _) => path.clone(),
    }
}

/// What the process behind a socket says. One that is gone leaves its socket to be removed.
async fn ask(path: &Path) -> Option<Process> {
    let Ok(stream) = UnixStream::connect(path).await else {
        let _ = std::fs::remove_file(path);
        return None;
    };
    let mut text = String::new();
    timeout(PATIENCE, stream.take(LONGEST).read_to_string(&mut text)).await.ok()?.ok()?;
    serde_json::from_str(&text).ok()
}

/// Answers until dropped.
pub(super) struct Listing {
    task: AbortHandle,
    path: PathBuf,
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Answers `access status` for this process. Where that cannot be, forwards work all the same.
pub(super) fn serve(profile: &Profile, forwards: Arc<Forwards>) -> Option<Listing> {
    let pid = std::process::id();
    let path = Forwards::run_directory(profile).ok()?.join(format!("{pid}.sock"));
    // The directory is this user's alone; what is there by this name is of a process that is gone.
    let _ = std::fs::remove_file(&path);
    let listener = match UnixListener::bind(&path) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::debug!(%error, path = %path.display(), "`access status` will not show this process");
            return None;
        }
    };
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let process = Process { pid, forwards: forwards.status() };
            let text = serde_json::to_vec(&process).unwrap_or_default();
            let _ = timeout(PATIENCE, stream.write_all(&text)).await;
        }
    });
    Some(Listing { task: task.abort_handle(), path })
}

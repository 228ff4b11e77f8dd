//! The admin socket: mode 0600, and only root or the node's own user are answered.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::codec::{Framed, LinesCodec};
use tokio_util::sync::CancellationToken;

use super::service::Service;
use super::wire::{LONGEST_LINE, Reply, Request};

/// Administrators served at the same time.
const CONNECTIONS: usize = 32;

/// The bound socket, before the daemon gives up its privileges.
pub struct Listener(std::os::unix::net::UnixListener);

impl Listener {
    /// Binds `path`. A socket that a dead daemon left behind is replaced; one that answers is not.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let bind = || -> anyhow::Result<std::os::unix::net::UnixListener> {
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory)?;
            }
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                anyhow::bail!("another node answers there");
            }
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
            // Between bind and chmod the mode is what the umask leaves, so the umask leaves nothing.
            let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
            let bound = std::os::unix::net::UnixListener::bind(path);
            rustix::process::umask(before);
            let listener = bound?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        bind().map(Self).with_context(|| format!("admin socket {}", path.display()))
    }
}

/// Answers administrators until `shutdown`.
pub async fn serve(
    listener: Listener,
    service: Arc<Service>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let listener = UnixListener::from_std(listener.0)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the admin socket could not accept");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            if let Err(error) = answer(stream, &service).await {
                tracing::debug!(%error, "an administrator's connection ended early");
            }
            drop(place);
        });
    }
}

async fn answer(stream: UnixStream, service: &Service) -> anyhow::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let mut lines = Framed::new(stream, LinesCodec::new_with_max_length(LONGEST_LINE));
    let own = rustix::process::geteuid().as_raw();
    if uid != 0 && uid != own {
        lines.send(line(&Reply::Error(format!("uid {uid} is not root")))?).await?;
        return Ok(());
    }
    // One command a connection: its end tells the client that the answer is whole.
    let Some(text) = lines.next().await else { return Ok(()) };
    let request: Request = match serde_json::from_str(&text?) {
        Ok(request) => request,
        Err(error) => {
            lines.send(line(&Reply::Error(format!("not a command of this version: {error}")))?).await?;
            return Ok(());
        }
    };
    let (replies, mut answers) = mpsc::channel(64);
    let run = async move { service.run(request, uid, &replies).await };
    // An administrator who hangs up drops the receiver, which ends a command that streams; one that changes something
    // runs to its end.
    let send_all = async move {
        loop {
            tokio::select! {
                answer = answers.recv() => match answer {
                    Some(answer) => lines.send(line(&answer)?).await?,
                    None => return anyhow::Ok(()),
                },
                more = lines.next() => match more {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Ok(()),
                },
            }
        }
    };
    tokio::join!(run, send_all).1
}

fn line(reply: &Reply) -> serde_json::Result<String> {
    serde_json::to_string(reply)
}

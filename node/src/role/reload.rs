//! Reload: on SIGHUP, or when the configuration or a certificate file changes. Atomic: the new configuration is fully
//! valid and in force, or the old one stays.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use portcullis_common::KnockKeys;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::config::{Active, Config, GateSettings};
use crate::context::Context;
use crate::edge::Tls;
use crate::event::{Action, Event};
use crate::gate::{Control, Dataplane};

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub(super) struct Reloader {
    pub(super) path: PathBuf,
    pub(super) publish: watch::Sender<Arc<Active>>,
    pub(super) context: Arc<Context>,
    pub(super) tls: Tls,
    /// Absent where there is no gate.
    pub(super) gate: Option<(Control, KnockKeys)>,
}

/// Reloads whenever it is asked to, until `shutdown`.
pub(super) fn watch(reloader: Reloader, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP")?;
    let mut files = Files::new(reloader.stamps());
    tokio::spawn(async move {
        let mut look = tokio::time::interval(LOOK_EVERY);
        // Two looks that were late are not one after the other: what is being written would seem to stand still.
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                () = shutdown.cancelled() => return,
                _ = hangup.recv() => true,
                _ = look.tick() => false,
            };
            let stamps = reloader.stamps();
            if asked || files.are_due(&stamps) {
                reloader.reload();
                files.were_read(stamps, reloader.stamps());
            }
        }
    });
    Ok(())
}

/// Of each file, how it can be told from the one before.
type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    length: u64,
    /// A file that is renamed into place may be as long and, by a coarse clock, as old.
    inode: u64,
}

/// Which state of the files is in force, and which one was there at the last look.
struct Files {
    read: Stamps,
    seen: Stamps,
}

impl Files {
    fn new(stamps: Stamps) -> Self {
        Self { read: stamps.clone(), seen: stamps }
    }

    /// Whether there is a change to be read. One that goes on between two looks is not: the first half of a file may be a
    /// configuration, too, and a more open one.
    fn are_due(&mut self, stamps: &Stamps) -> bool {
        let settled = *stamps == self.seen;
        self.seen.clone_from(stamps);
        settled && *stamps != self.read
    }

    /// They were read: in the state `before`, as far as anybody knows, so that a change meanwhile is one to come. `after`
    /// names the files of the new configuration, some of which were not looked at before.
    fn were_read(&mut self, before: Stamps, after: Stamps) {
        self.read = after;
        for (path, stamp) in &mut self.read {
            if let Some(earlier) = before.get(path) {
                *stamp = *earlier;
            }
        }
        self.seen = before;
    }
}

impl Reloader {
    /// When each file was changed, as far as it can be told.
    fn stamps(&self) -> Stamps {
        let active = self.context.active();
        let certificates =
            active.config.node.certificates.iter().flat_map(|files| [files.cert.clone(), files.key.clone()]);
        std::iter::once(self.path.clone())
            .chain(certificates)
            .map(|path| {
                let stamp = std::fs::metadata(&path).ok().and_then(|file| {
                    Some(Stamp { modified: file.modified().ok()?, length: file.len(), inode: file.ino() })
                });
                (path, stamp)
            })
            .collect()
    }

    fn reload(&self) {
        let event = match self.try_reload() {
            Ok(()) => {
                tracing::info!("the configuration was reloaded");
                Event::new(Action::Admin, true).detail("reload")
            }
            Err(error) => {
                tracing::error!("reload refused, the old configuration stays: {error:#}");
                Event::new(Action::Admin, false).detail(format!("reload refused: {error:#}"))
            }
        };
        self.context.events.emit(event);
    }

    fn try_reload(&self) -> anyhow::Result<()> {
        let config = Config::load(&self.path)?;
        let old = self.context.active();
        let fixed = |key: &str, same: bool| {
            anyhow::ensure!(same, "{}: `{key}` changes only with a restart", self.path.display());
            Ok(())
        };
        fixed("node.domain", config.node.domain == old.config.node.domain)?;
        fixed("node.listen", config.node.listen == old.config.node.listen)?;
        fixed("node.public_port", config.node.public_port == old.config.node.public_port)?;
        fixed("node.state", config.node.state == old.config.node.state)?;
        fixed("node.admin_socket", config.node.admin_socket == old.config.node.admin_socket)?;
        fixed("node.metrics", config.node.metrics == old.config.node.metrics)?;
        fixed("node.user", config.node.user == old.config.node.user)?;
        fixed("[gate]", config.gate == more_interfaces(&old.config.gate, &config.gate))?;
        fixed("[events]", config.events == old.config.events)?;
        anyhow::ensure!(
            !config.tunnel.dark || self.gate.is_some(),
            "`tunnel.dark` takes a gate, and none is up"
        );
        super::check_files(&config)?;
        self.tls.reload(&config.node.certificates)?;
        if let Some((gate, keys)) = &self.gate
            && config.tunnel != old.config.tunnel
        {
            gate.set_knock(config.tunnel.dark, *keys).context("the gate does not take `tunnel.dark`")?;
        }
        let context = &self.context;
        context.metadata.configure(&config, &context.events, &context.metrics)?;
        let active = Arc::new(Active::new(config));
        self.context.tunnels.configure(&active.policies);
        self.publish.send_replace(active);
        Ok(())
    }
}

/// `old` with the interfaces of `new`, if those are more: they are guarded as they come. To let one go takes a restart.
fn more_interfaces(old: &GateSettings, new: &GateSettings) -> GateSettings {
    let more = old.interfaces.iter().all(|name| new.interfaces.contains(name));
    let followed = old.dataplane == Dataplane::Xdp && !old.interfaces.is_empty() && more;
    let interfaces = if followed { &new.interfaces } else { &old.interfaces };
    GateSettings { interfaces: interfaces.clone(), ..old.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamps(files: &[(&str, u64)]) -> Stamps {
        let stamp = |inode| Stamp { modified: SystemTime::UNIX_EPOCH, length: 0, inode };
        files.iter().map(|(path, inode)| (PathBuf::from(path), Some(stamp(*inode)))).collect()
    }

    #[test]
    fn a_change_is_read_once_and_not_before_it_is_over() {
        let of = |inode| stamps(&[("node.toml", inode)]);
        let mut files = Files::new(of(1));
        assert!(!files.are_due(&of(1)));
        for inode in [2, 3] {
            assert!(!files.are_due(&of(inode)), "it goes on");
        }
        assert!(files.are_due(&of(3)));
        files.were_read(of(3), of(3));
        assert!(!files.are_due(&of(3)) && !files.are_due(&of(3)));
        assert!(!files.are_due(&of(1)) && files.are_due(&of(1)), "what was there before is a change, too");
    }

    /// As somebody writes it who asks for the reload first, or an editor that takes its time.
    #[test]
    fn a_change_while_the_files_are_read_is_seen_afterwards() {
        let mut files = Files::new(stamps(&[("node.toml", 1), ("old.pem", 1)]));
        files.were_read(
            stamps(&[("node.toml", 2), ("old.pem", 1)]),
            stamps(&[("new.pem", 9), ("node.toml", 3)]),
        );
        let now = stamps(&[("new.pem", 9), ("node.toml", 3)]);
        assert!(!files.are_due(&now) && files.are_due(&now));
        files.were_read(now.clone(), now.clone());
        assert!(!files.are_due(&now) && !files.are_due(&now));
    }
}

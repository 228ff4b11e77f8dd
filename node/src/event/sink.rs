//! Where events go: metrics at once, then one writer task to the file (or standard output) and the store.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use crate::metrics::Metrics;
use crate::store::Store;

use super::summary::Summary;
use super::{Action, Event};

/// Events that may wait for the writer; beyond that they are counted as lost.
const QUEUE: usize = 16_384;
/// Events in one transaction of the store at most.
const BATCH: usize = 1024;
const FLUSH_EVERY: Duration = Duration::from_millis(200);
const TRIM_EVERY: Duration = Duration::from_secs(600);
const SUMMARISE_EVERY: Duration = Duration::from_secs(10);

/// Where JSON lines go besides the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileTarget {
    Stdout,
    Path(PathBuf),
}

/// What is kept and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventSettings {
    pub file: Option<FileTarget>,
    pub retention: Duration,
    /// Bytes that all events in the store may take.
    pub max_size: u64,
}

/// The handle that everything emits through.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<Message>,
    metrics: Arc<Metrics>,
}

enum Message {
    Event(Box<Event>),
    Flush(oneshot::Sender<()>),
}

impl Events {
    /// Starts the writer task. Fails where the file cannot be opened for appending.
    pub fn start(settings: EventSettings, store: Store, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let output = match &settings.file {
            None => None,
            Some(FileTarget::Stdout) => Some(Output::Stdout),
            Some(FileTarget::Path(path)) => Some(Output::File(open_log(path)?)),
        };
        let (queue, messages) = mpsc::channel(QUEUE);
        let writer = Writer { settings, output, store, metrics: Arc::clone(&metrics) };
        tokio::spawn(writer.run(messages));
        Ok(Self { queue, metrics })
    }

    /// Counts the event and queues it for the log.
    pub fn emit(&self, event: Event) {
        self.metrics.count_event(&event);
        if self.queue.try_send(Message::Event(Box::new(event))).is_err() {
            self.metrics.events_lost.inc();
        }
    }

    /// Returns when everything emitted before is written.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.queue.send(Message::Flush(done)).await.is_ok() {
            let _ = wait.await;
        }
    }
}

enum Output {
    Stdout,
    File(std::fs::File),
}

impl Output {
    fn write(&mut self, lines: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Stdout => std::io::stdout().lock().write_all(lines),
            Self::File(file) => file.write_all(lines),
        }
    }
}

struct Writer {
    settings: EventSettings,
    output: Option<Output>,
    store: Store,
    metrics: Arc<Metrics>,
}

impl Writer {
    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let mut summary = Summary::default();
        let mut pending: Vec<Event> = Vec::new();
        let mut trim = interval(TRIM_EVERY);
        let mut summarise = interval(SUMMARISE_EVERY);
        let mut flush = interval(FLUSH_EVERY);
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Some(Message::Event(event)) => {
                        pending.extend(summary.take(*event));
                        if pending.len() >= BATCH {
                            self.write(&mut pending).await;
                        }
                    }
                    Some(Message::Flush(done)) => {
                        pending.append(&mut summary.flush());
                        self.write(&mut pending).await;
                        let _ = done.send(());
                    }
                    None => {
                        pending.append(&mut summary.flush());
                        self.write(&mut pending).await;
                        return;
                    }
                },
                _ = flush.tick() => self.write(&mut pending).await,
                _ = summarise.tick() => pending.append(&mut summary.flush()),
                _ = trim.tick() => self.trim().await,
            }
        }
    }

    async fn write(&mut self, pending: &mut Vec<Event>) {
        if pending.is_empty() {
            return;
        }
        let events = std::mem::take(pending);
        let count = events.len() as u64;
        if let Some(output) = &mut self.output {
            let mut lines = Vec::new();
            for event in &events {
                if serde_json::to_writer(&mut lines, event).is_ok() {
                    lines.push(b'\n');
                }
            }
            if let Err(error) = output.write(&lines) {
                self.metrics.events_unwritten.with_label_values(&["file"]).inc_by(count);
                tracing::error!(%error, count, "events could not be written to the log file");
            }
        }
        if let Err(error) = self.store.insert_events(events).await {
            self.metrics.events_unwritten.with_label_values(&["store"]).inc_by(count);
            tracing::error!(%error, count, "events could not be written to the store");
        }
    }

    async fn trim(&self) {
        let before = crate::clock::now().before(self.settings.retention);
        match self.store.trim_events(before, self.settings.max_size).await {
            Ok(0) => {}
            Ok(gone) => tracing::info!(gone, "old events removed"),
            Err(error) => tracing::error!(%error, "old events could not be removed"),
        }
    }
}

fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn open_log(path: &std::path::Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let open = || {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::OpenOptions::new().append(true).create(true).mode(0o640).open(path)
    };
    open().map_err(|error| std::io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// A panic anywhere becomes an event and a log line; the message carries the place, never data of a request.
pub fn install_panic_hook(events: Events) {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let place = info.location().map_or_else(|| "unknown place".to_owned(), ToString::to_string);
        events.emit(Event::new(Action::Panic, false).reason(crate::flow::Reason::Internal).detail(&place));
        tracing::error!(%place, "a task of the node panicked: this is a bug");
        previous(info);
    }));
}

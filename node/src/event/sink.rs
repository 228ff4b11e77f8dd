//! Where events go: metrics at once, then one writer task to the file (or standard output) and the store.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use crate::metrics::Metrics;
use crate::store::{Store, TRIM_STEP};

use super::file::LogFile;
use super::summary::Summary;
use super::{Action, Event};

/// Events that may wait for the writer; beyond that they are counted as lost.
const QUEUE: usize = 16_384;
/// Events in one transaction of the store at most.
const BATCH: usize = 1024;
const FLUSH_EVERY: Duration = Duration::from_millis(200);
const TRIM_EVERY: Duration = Duration::from_secs(10);
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
    /// Bytes that all events in the store may take, and so many again the file and the one before it.
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
            Some(FileTarget::Path(path)) => Some(Output::File(LogFile::open(path, settings.max_size / 2)?)),
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
    File(LogFile),
}

impl Output {
    fn write(&mut self, lines: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Stdout => std::io::stdout().lock().write_all(lines),
            Self::File(file) => file.write(lines),
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
        loop {
            match self.store.trim_events(before, self.settings.max_size).await {
                Ok(gone) => {
                    if gone > 0 {
                        tracing::debug!(gone, "old events removed");
                    }
                    if gone < TRIM_STEP {
                        return;
                    }
                }
                Err(error) => return tracing::error!(%error, "old events could not be removed"),
            }
        }
    }
}

fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Reason, UnixTime};
    use crate::store::EventFilter;

    fn started(directory: &std::path::Path, file: Option<FileTarget>) -> (Store, Arc<Metrics>, Events) {
        let store = Store::open(directory).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let settings = EventSettings { file, retention: Duration::from_secs(3600), max_size: 1 << 20 };
        let events = Events::start(settings, store.clone(), Arc::clone(&metrics)).unwrap();
        (store, metrics, events)
    }

    #[tokio::test]
    async fn file_store_and_metrics_agree() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log/access.jsonl");
        let (store, metrics, events) = started(directory.path(), Some(FileTarget::Path(log.clone())));
        for _ in 0..300 {
            events.emit(Event::new(Action::Revoke, true).reason(Reason::SessionEnded));
        }
        events.flush().await;
        let kept = store
            .events(EventFilter { limit: 1000, ..EventFilter::default() })
            .await
            .unwrap()
            .all()
            .await
            .unwrap();
        let lines = std::fs::read_to_string(log).unwrap().lines().count();
        assert_eq!((kept.len(), lines), (300, 300));
        assert!(metrics.render().unwrap().contains("portcullis_events_total{action=\"revoke\"} 300"));
    }

    #[tokio::test]
    async fn a_store_that_fails_loses_nothing_uncounted() {
        let directory = tempfile::tempdir().unwrap();
        let (store, metrics, events) = started(directory.path(), None);
        store.break_events().await;
        events.emit(Event::new(Action::Login, true));
        events.flush().await;
        assert_eq!(metrics.events_unwritten.with_label_values(&["store"]).get(), 1);
    }

    #[tokio::test]
    async fn a_panic_is_an_event_that_holds_no_data() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _, events) = started(directory.path(), None);
        install_panic_hook(events.clone());
        let died = tokio::spawn(async { panic!("canary") }).await;
        assert!(died.is_err());
        events.flush().await;
        let kept = store
            .events(EventFilter { limit: 10, ..EventFilter::default() })
            .await
            .unwrap()
            .all()
            .await
            .unwrap();
        assert_eq!(kept.len(), 1);
        assert!(kept[0].1.contains("\"action\":\"panic\"") && kept[0].1.contains("sink.rs"), "{}", kept[0].1);
        assert!(!kept[0].1.contains("canary"));
    }

    #[tokio::test]
    async fn old_and_surplus_events_go_oldest_first() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _, events) = started(directory.path(), None);
        for number in 0..100 {
            events.emit(Event::new(Action::Admin, true).detail(format!("number {number:03}")));
        }
        events.flush().await;
        let all = || async {
            store
                .events(EventFilter { limit: 1000, ..EventFilter::default() })
                .await
                .unwrap()
                .all()
                .await
                .unwrap()
        };
        let size = all().await[0].1.len() as u64;
        assert_eq!(store.trim_events(UnixTime(0), size * 40).await.unwrap(), 60);
        let left = all().await;
        assert!(left.len() == 40 && left[0].1.contains("number 060"), "{}", left[0].1);
        assert_eq!(store.trim_events(UnixTime(i64::MAX), u64::MAX).await.unwrap(), 40);
    }
}

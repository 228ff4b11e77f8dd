//! A document that somebody publishes about themselves (SAML metadata): fetched, kept and renewed.
//!
//! 1. [`Published::renew`] fetches it in the background: at first, when it is no longer fresh, and again, with growing
//!    pauses, while that fails.
//! 2. Meanwhile [`Published::current`] answers with the one there is, for as long as that says itself, and for a week at
//!    most. Where there is none, requests wait for one fetch together; its failure answers for a while.
//! 3. What is fetched counts only if it can be read, fits what is configured and is of the entity it was of before.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::config::Misfit;
use crate::fetch::{HttpClient, RootsError};
use crate::flow::UnixTime;
use crate::saml::{MetadataError, Validity};

/// How long a document is used before a newer one is asked for, where it does not say.
const FRESH: Duration = Duration::from_secs(3600);
/// What it says counts within these.
const LEAST: Duration = Duration::from_secs(300);
const MOST: Duration = Duration::from_secs(86_400);
/// A newer one is asked for this many seconds before the old one is over.
const BEFORE_THE_END: i64 = 60;
/// How long an old one stays good while there is no newer one.
const USABLE: Duration = Duration::from_secs(7 * 86_400);
/// How long a failure answers for the publisher, and the least time between two fetches that are asked for early.
const FAILED: Duration = Duration::from_secs(30);
/// The longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(900);

/// What can be published.
pub(crate) trait Document {
    fn validity(&self) -> Validity;
    /// Whom it is of.
    fn entity_id(&self) -> &str;
    /// Whether it says what the other says, whatever either says of how long it is good.
    fn says_the_same(&self, other: &Self) -> bool;
}

/// Why there is no document. The texts are for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unpublished {
    #[error("metadata: {0}")]
    Fetch(String),
    #[error("metadata: status {0}")]
    Status(u16),
    #[error("metadata: {0}")]
    Document(#[from] MetadataError),
    #[error("metadata: {0}")]
    Misfit(#[from] Misfit),
    #[error("metadata: {0}")]
    Address(String),
    #[error("metadata: it is of another entity than before, `{0}`")]
    Entity(String),
    #[error("metadata: it was good until {0}")]
    Over(i64),
    #[error("metadata: the configuration has changed meanwhile")]
    Unknown,
}

/// What became of a fetch.
#[derive(Debug)]
pub(crate) enum Fetched<'a> {
    First,
    /// `recovered` if the last fetch failed.
    Same {
        recovered: bool,
    },
    Changed,
    /// `again` if the last one failed too.
    Failed {
        error: &'a Unpublished,
        again: bool,
    },
}

/// Now, by both clocks: documents say by the wall's until when they are good, and a wall's clock jumps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) now: UnixTime,
    pub(crate) at: Instant,
}

impl From<UnixTime> for Moment {
    fn from(now: UnixTime) -> Self {
        Self { now, at: Instant::now() }
    }
}

type Read<T> = Box<dyn Fn(&[u8]) -> Result<T, Unpublished> + Send + Sync>;
type Tell = Box<dyn Fn(Fetched<'_>) + Send + Sync>;

/// One document at one address.
pub(crate) struct Published<T> {
    url: String,
    ca: Option<PathBuf>,
    http: HttpClient,
    read: Read<T>,
    tell: Tell,
    /// And when it was fetched. Whoever finds a good one does not wait for a fetch under way.
    document: RwLock<Option<(Arc<T>, Instant)>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failure: Option<Failure>,
    asked: Option<Instant>,
}

struct Failure {
    error: Unpublished,
    at: Instant,
    /// How many there were in a row.
    count: u32,
}

impl<T: Document> Published<T> {
    /// `ca` is a PEM file of roots to trust besides the system's. `read` says what counts, and `tell` hears of each fetch.
    pub(crate) fn new(
        url: &str,
        ca: Option<&Path>,
        read: impl Fn(&[u8]) -> Result<T, Unpublished> + Send + Sync + 'static,
        tell: impl Fn(Fetched<'_>) + Send + Sync + 'static,
    ) -> Result<Self, RootsError> {
        Ok(Self {
            url: url.to_owned(),
            ca: ca.map(Path::to_owned),
            http: HttpClient::new(ca)?,
            read: Box::new(read),
            tell: Box::new(tell),
            document: RwLock::new(None),
            state: Mutex::default(),
        })
    }

    /// Takes over what `other` keeps, if that is from the same place.
    pub(crate) fn follow(&self, other: &Self) {
        if (&self.url, &self.ca) == (&other.url, &other.ca) {
            self.keep(other.kept());
        }
    }

    /// The document that is good now, fetched if there is none.
    pub(crate) async fn current(&self, moment: impl Into<Moment>) -> Result<Arc<T>, Unpublished> {
        let moment = moment.into();
        if let Some(document) = self.good(moment) {
            return Ok(document);
        }
        let mut state = self.state.lock().await;
        // Another request may have fetched it meanwhile.
        match self.good(moment) {
            Some(document) => Ok(document),
            None => self.fetched(&mut state, moment).await,
        }
    }

    /// Fetches a newer document if it is time to.
    pub(crate) async fn renew(&self, moment: impl Into<Moment>) {
        let moment = moment.into();
        let mut state = self.state.lock().await;
        let waits = state.failure.as_ref().is_some_and(|failure| {
            let doubled = FAILED.saturating_mul(1 << failure.count.saturating_sub(1).min(8));
            moment.at.saturating_duration_since(failure.at) < doubled.min(LONGEST_PAUSE)
        });
        if !waits && !self.is_fresh(moment) {
            // Whoever needs the document hears of a failure; `tell` has.
            let _ = self.fetched(&mut state, moment).await;
        }
    }

    /// A document newer than `seen`, which lacked what was looked for; the same one if it was asked for a moment ago.
    pub(crate) async fn newer(
        &self,
        seen: &Arc<T>,
        moment: impl Into<Moment>,
    ) -> Result<Arc<T>, Unpublished> {
        let moment = moment.into();
        let mut state = self.state.lock().await;
        let lately = state.asked.is_some_and(|asked| moment.at.saturating_duration_since(asked) < FAILED);
        match self.good(moment) {
            Some(document) if lately || !Arc::ptr_eq(&document, seen) => Ok(document),
            _ => self.fetched(&mut state, moment).await,
        }
    }

    fn kept(&self) -> Option<(Arc<T>, Instant)> {
        self.document.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, document: Option<(Arc<T>, Instant)>) {
        *self.document.write().unwrap_or_else(PoisonError::into_inner) = document;
    }

    fn good(&self, moment: Moment) -> Option<Arc<T>> {
        let (document, fetched) = self.kept()?;
        let is_good = is_good_at(&*document, moment.now);
        (is_good && moment.at.saturating_duration_since(fetched) < USABLE).then_some(document)
    }

    fn is_fresh(&self, moment: Moment) -> bool {
        self.kept().is_some_and(|(document, fetched)| {
            let refresh = document.validity().refresh.map_or(FRESH, |said| said.clamp(LEAST, MOST));
            let soon = UnixTime(moment.now.0.saturating_add(BEFORE_THE_END));
            moment.at.saturating_duration_since(fetched) < refresh && is_good_at(&*document, soon)
        })
    }

    /// What a fetch gives, or else what there is.
    async fn fetched(&self, state: &mut State, moment: Moment) -> Result<Arc<T>, Unpublished> {
        let error = match &state.failure {
            Some(failure) if moment.at.saturating_duration_since(failure.at) < FAILED => {
                failure.error.clone()
            }
            _ => {
                state.asked = Some(moment.at);
                match self.fetch(moment.now).await {
                    Ok(document) => return Ok(self.take(state, document, moment)),
                    Err(error) => {
                        let count = state.failure.as_ref().map_or(0, |failure| failure.count);
                        tracing::warn!(url = self.url, %error, "there is no newer metadata");
                        (self.tell)(Fetched::Failed { error: &error, again: count > 0 });
                        let count = count.saturating_add(1);
                        state.failure = Some(Failure { error: error.clone(), at: moment.at, count });
                        error
                    }
                }
            }
        };
        self.good(moment).ok_or(error)
    }

    fn take(&self, state: &mut State, document: T, moment: Moment) -> Arc<T> {
        let recovered = state.failure.take().is_some();
        let document = Arc::new(document);
        let before = self.kept();
        self.keep(Some((Arc::clone(&document), moment.at)));
        (self.tell)(match before {
            None => Fetched::First,
            Some((before, _)) if before.says_the_same(&document) => Fetched::Same { recovered },
            Some(_) => Fetched::Changed,
        });
        document
    }

    async fn fetch(&self, now: UnixTime) -> Result<T, Unpublished> {
        let fault = |error: &dyn std::fmt::Display| Unpublished::Fetch(error.to_string());
        let request = http::Request::get(&self.url)
            .header(
                http::header::ACCEPT,
                "application/samlmetadata+xml, application/xml, text/xml, */*;q=0.1",
            )
            .body(Vec::new())
            .map_err(|error| fault(&error))?;
        let answer = self.http.send(request).await.map_err(|error| fault(&error))?;
        if !answer.status().is_success() {
            return Err(Unpublished::Status(answer.status().as_u16()));
        }
        let document = (self.read)(answer.body())?;
        if self.kept().is_some_and(|(kept, _)| kept.entity_id() != document.entity_id()) {
            return Err(Unpublished::Entity(document.entity_id().to_owned()));
        }
        match document.validity().until {
            Some(until) if until <= now => Err(Unpublished::Over(until.0)),
            _ => Ok(document),
        }
    }
}

fn is_good_at<T: Document>(document: &T, now: UnixTime) -> bool {
    document.validity().until.is_none_or(|until| until > now)
}

#[cfg(test)]
mod tests;

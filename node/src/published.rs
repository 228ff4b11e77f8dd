//! Documents that others publish about themselves (SAML metadata), fetched, kept and renewed.
//!
//! Requests that need one wait for one fetch together. A failure is remembered for a while, so that a slow publisher costs
//! each request one wait and not a queue of them, and meanwhile the old document stays good for as long as it says itself,
//! and for a week at most.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::config::check_service;
use crate::fetch::{HttpClient, RootsError};
use crate::flow::UnixTime;
use crate::saml::{MetadataError, Provider, ServiceProvider, Validity};

/// How long a document is used before a newer one is asked for, where it does not say.
const FRESH: Duration = Duration::from_secs(3600);
/// What it says counts within these.
const LEAST: Duration = Duration::from_secs(300);
const MOST: Duration = Duration::from_secs(86_400);
/// How long an old one stays good while there is no newer one.
const USABLE: Duration = Duration::from_secs(7 * 86_400);
/// How long a failure answers for the publisher, and the least time between two fetches that are asked for early.
const FAILED: Duration = Duration::from_secs(30);

/// What can be published.
pub(crate) trait Document: Sized {
    fn read(bytes: &[u8]) -> Result<Self, MetadataError>;
    fn validity(&self) -> Validity;
    /// Where it has browsers and messages sent.
    fn addresses(&self) -> Vec<&str>;
}

impl Document for Provider {
    fn read(bytes: &[u8]) -> Result<Self, MetadataError> {
        Self::read(bytes)
    }

    fn validity(&self) -> Validity {
        self.validity
    }

    fn addresses(&self) -> Vec<&str> {
        self.sign_in.addresses().chain(self.logout.addresses()).collect()
    }
}

impl Document for ServiceProvider {
    fn read(bytes: &[u8]) -> Result<Self, MetadataError> {
        Self::read(bytes)
    }

    fn validity(&self) -> Validity {
        self.validity
    }

    fn addresses(&self) -> Vec<&str> {
        let consumers = self.consumers.iter().map(|(location, _)| location.as_str());
        consumers.chain(self.logout.browser.addresses()).chain(self.logout.soap.as_deref()).collect()
    }
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
    Address(String),
    #[error("metadata: it was good until {0}")]
    Over(i64),
}

/// One document at one address.
pub(crate) struct Published<T> {
    url: String,
    http: HttpClient,
    /// And when it was fetched. Whoever finds a fresh one does not wait for a fetch under way.
    document: RwLock<Option<(Arc<T>, Instant)>>,
    state: Mutex<State>,
}

struct State {
    failure: Option<(Unpublished, Instant)>,
    asked: Option<Instant>,
}

impl<T: Document> Published<T> {
    /// `ca` is a PEM file of roots to trust besides the system's.
    pub(crate) fn new(url: &str, ca: Option<&Path>) -> Result<Self, RootsError> {
        let state = Mutex::new(State { failure: None, asked: None });
        Ok(Self { url: url.to_owned(), http: HttpClient::new(ca)?, document: RwLock::new(None), state })
    }

    /// The document that is good at `now`, fetched if there is none that is fresh.
    pub(crate) async fn current(&self, now: UnixTime) -> Result<Arc<T>, Unpublished> {
        if let Some(document) = self.fresh(now) {
            return Ok(document);
        }
        let mut state = self.state.lock().await;
        // Another request may have fetched it meanwhile.
        match self.fresh(now) {
            Some(document) => Ok(document),
            None => self.renewed(&mut state, now).await,
        }
    }

    fn kept(&self) -> Option<(Arc<T>, Instant)> {
        self.document.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fresh(&self, now: UnixTime) -> Option<Arc<T>> {
        let (document, fetched) = self.kept()?;
        let refresh = document.validity().refresh.map_or(FRESH, |said| said.clamp(LEAST, MOST));
        (fetched.elapsed() < refresh && is_good(&*document, now)).then_some(document)
    }

    /// A document newer than `seen`, which lacked what was looked for; the same one if it was asked for a moment ago.
    pub(crate) async fn newer(&self, seen: &Arc<T>, now: UnixTime) -> Result<Arc<T>, Unpublished> {
        let mut state = self.state.lock().await;
        if let Some((document, _)) = self.kept()
            && (!Arc::ptr_eq(&document, seen) || state.asked.is_some_and(|asked| asked.elapsed() < FAILED))
        {
            return Ok(document);
        }
        self.renewed(&mut state, now).await
    }

    async fn renewed(&self, state: &mut State, now: UnixTime) -> Result<Arc<T>, Unpublished> {
        let error = match &state.failure {
            Some((error, failed)) if failed.elapsed() < FAILED => error.clone(),
            _ => {
                state.asked = Some(Instant::now());
                match self.fetch(now).await {
                    Ok(document) => {
                        let document = Arc::new(document);
                        let kept = Some((Arc::clone(&document), Instant::now()));
                        *self.document.write().unwrap_or_else(PoisonError::into_inner) = kept;
                        state.failure = None;
                        return Ok(document);
                    }
                    Err(error) => {
                        tracing::warn!(url = self.url, %error, "there is no newer metadata");
                        state.failure = Some((error.clone(), Instant::now()));
                        error
                    }
                }
            }
        };
        match self.kept() {
            Some((document, fetched)) if fetched.elapsed() < USABLE && is_good(&*document, now) => {
                Ok(document)
            }
            _ => Err(error),
        }
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
        let document = T::read(answer.body())?;
        for address in document.addresses() {
            check_service(address).map_err(Unpublished::Address)?;
        }
        match document.validity().until {
            Some(until) if until <= now => Err(Unpublished::Over(until.0)),
            _ => Ok(document),
        }
    }
}

fn is_good<T: Document>(document: &T, now: UnixTime) -> bool {
    document.validity().until.is_none_or(|until| until > now)
}

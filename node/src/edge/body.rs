//! Bodies on their way through: streamed, counted, and cut when what allowed them is over.

use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::flow::Reason;

use super::connection::Activity;
use super::headers;
use super::lasting::Lease;
use super::record::Record;

pub(super) type BodyError = Box<dyn Error + Send + Sync>;

/// What allowed a body ended while it was on its way.
#[derive(Debug, thiserror::Error)]
#[error("the session ended")]
struct Ended;

/// The client sent nothing of a body for too long.
#[derive(Debug, thiserror::Error)]
#[error("the body of the request paused for too long")]
struct Paused;

/// A body of the other side that stops when its lease is over.
#[derive(Debug)]
struct Cut {
    /// Nothing where there is no body.
    inner: Option<Incoming>,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Cut {
    fn new(inner: Option<Incoming>, lease: &Lease) -> Self {
        Self { inner, over: Box::pin(lease.over().clone().cancelled_owned()) }
    }

    /// The next frame, trailers cleaned.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.over.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(Ended.into())));
        }
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let frame = match ready!(Pin::new(inner).poll_frame(cx)) {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    headers::trailers(trailers);
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => Some(Err(error.into())),
            None => None,
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// A request body on its way to an origin.
#[derive(Debug)]
pub(super) struct Upload {
    body: Cut,
    lease: Arc<Lease>,
    /// Runs while the client is waited for.
    pause: Option<Pin<Box<Sleep>>>,
    broken: Arc<AtomicBool>,
}

/// Tells whether the client's side of a body failed, after the body itself was given away.
#[derive(Debug, Clone)]
pub(super) struct Broken(Arc<AtomicBool>);

impl Broken {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Upload {
    pub(super) fn new(body: Incoming, lease: &Arc<Lease>) -> Self {
        Self::of(Some(body), lease)
    }

    /// No body.
    pub(super) fn empty(lease: &Arc<Lease>) -> Self {
        Self::of(None, lease)
    }

    fn of(body: Option<Incoming>, lease: &Arc<Lease>) -> Self {
        let body = Cut::new(body, lease);
        Self { body, lease: Arc::clone(lease), pause: None, broken: Arc::default() }
    }

    pub(super) fn broken(&self) -> Broken {
        Broken(Arc::clone(&self.broken))
    }

    pub(super) fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    /// Nothing came: fails once that has lasted too long.
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let Some(limit) = self.lease.progress().upload_pause() else {
            self.pause = None;
            return Poll::Pending;
        };
        let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(pause.as_mut().poll(cx));
        Poll::Ready(Paused.into())
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = match this.body.poll_frame(cx) {
            Poll::Ready(frame) => {
                this.pause = None;
                this.lease.progress().uploaded();
                frame
            }
            Poll::Pending => Some(Err(ready!(this.poll_pause(cx)))),
        };
        if matches!(frame, Some(Err(_))) {
            this.broken.store(true, Ordering::Release);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A reply on its way to a client, with its record.
pub(super) struct Reply {
    source: Source,
    record: Option<Record>,
    /// Held while the request is in flight.
    _in_flight: InFlight,
}

enum Source {
    Own(Full<Bytes>),
    Origin(Cut, Arc<Lease>),
}

/// Counts a request of a connection while it lives.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Activity>);

impl InFlight {
    pub(super) fn new(activity: &Arc<Activity>) -> Self {
        activity.begin();
        Self(Arc::clone(activity))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Reply {
    /// A reply of the node's own; its event, if it has one, is written when the reply has gone.
    pub(super) fn own(body: Bytes, record: Option<Record>, in_flight: InFlight) -> Self {
        Self { source: Source::Own(Full::new(body)), record, _in_flight: in_flight }
    }

    /// A reply of an origin, ended with its lease.
    pub(super) fn origin(body: Incoming, lease: Arc<Lease>, record: Record, in_flight: InFlight) -> Self {
        let source = Source::Origin(Cut::new(Some(body), &lease), lease);
        Self { source, record: Some(record), _in_flight: in_flight }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = match &mut this.source {
            Source::Own(body) => ready!(Pin::new(body).poll_frame(cx))
                .map(|frame| frame.map_err(|never: Infallible| match never {})),
            Source::Origin(body, lease) => {
                lease.progress().taken();
                let frame = ready!(body.poll_frame(cx));
                if frame.is_some() {
                    lease.progress().given();
                }
                frame
            }
        };
        if let Some(record) = &mut this.record {
            match &frame {
                Some(Ok(frame)) => {
                    record.count(frame.data_ref().map_or(0, |data| data.len() as u64));
                }
                Some(Err(error)) if error.is::<Ended>() => record.cut(),
                Some(Err(_)) => record.failed(Reason::OriginDown),
                None => {}
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(body) => body.is_end_stream(),
            Source::Origin(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(body) => body.size_hint(),
            Source::Origin(body, _) => body.size_hint(),
        }
    }
}

impl Drop for Reply {
    /// A reply that was stopped from outside says why.
    fn drop(&mut self) {
        if let (Source::Origin(body, lease), Some(record)) = (&self.source, &mut self.record)
            && !body.is_end_stream()
        {
            if lease.over().is_cancelled() {
                record.cut();
            } else if lease.progress().has_stalled() {
                record.detail("the client stopped reading");
            }
        }
    }
}

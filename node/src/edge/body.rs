//! Bodies on their way through: streamed, counted, and cut when the session ends.

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
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::flow::Reason;

use super::connection::Activity;
use super::headers;
use super::record::Record;

pub(super) type BodyError = Box<dyn Error + Send + Sync>;

/// The session ended while a body was on its way.
#[derive(Debug, thiserror::Error)]
#[error("the session ended")]
struct Ended;

/// A body of the other side that stops when a session ends. No session, no stop: a bypass.
#[derive(Debug)]
struct Cut {
    /// Nothing where there is no body.
    inner: Option<Incoming>,
    ended: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Cut {
    fn new(inner: Incoming, ended: Option<&CancellationToken>) -> Self {
        Self { inner: Some(inner), ended: ended.map(|ended| Box::pin(ended.clone().cancelled_owned())) }
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> bool {
        self.ended.as_mut().is_some_and(|ended| ended.as_mut().poll(cx).is_ready())
    }

    /// The next frame, trailers cleaned.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.poll_ended(cx) {
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
    pub(super) fn new(body: Incoming, ended: Option<&CancellationToken>) -> Self {
        Self { body: Cut::new(body, ended), broken: Arc::default() }
    }

    /// No body.
    pub(super) fn empty() -> Self {
        Self { body: Cut { inner: None, ended: None }, broken: Arc::default() }
    }

    pub(super) fn broken(&self) -> Broken {
        Broken(Arc::clone(&self.broken))
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
        let frame = ready!(this.body.poll_frame(cx));
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
    Origin(Cut),
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

    /// A reply of an origin, ended with the session.
    pub(super) fn origin(
        body: Incoming,
        ended: Option<&CancellationToken>,
        record: Record,
        in_flight: InFlight,
    ) -> Self {
        Self { source: Source::Origin(Cut::new(body, ended)), record: Some(record), _in_flight: in_flight }
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
            Source::Origin(body) => ready!(body.poll_frame(cx)),
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
            Source::Origin(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(body) => body.size_hint(),
            Source::Origin(body) => body.size_hint(),
        }
    }
}

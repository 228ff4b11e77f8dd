//! Bodies for the portal, which anybody may send before having proved anything.
//!
//! 1. Only what an endpoint takes is read: [`Portal::reads`](crate::portal::Portal::reads) says so of the head alone.
//! 2. So much of the budget of all is taken as the body may become, by its length or else by its limit, before a byte of
//!    it is read; see [`crate::places`] for whose share is whose.
//! 3. It is read into one buffer of that size, however small the pieces are in which it comes.
//! 4. Budget and buffer are given back together, once the request is answered.

use std::net::IpAddr;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use prometheus::IntGauge;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::flow::Reason;
use crate::places::{Full, Place, Places};
use crate::portal::Posted;

use super::limits;

/// What all bodies for the portal share.
#[derive(Debug)]
pub(super) struct Posts {
    places: Places,
    held: IntGauge,
}

/// A body that has been read whole.
#[derive(Debug)]
pub(super) struct Post<'a> {
    pub(super) bytes: Bytes,
    _set_aside: Option<SetAside<'a>>,
}

/// Why a body is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    #[error("the body is longer than {0} bytes")]
    TooLarge(usize),
    #[error("the body did not come in time")]
    Late,
    #[error("too many bodies at a time, of {0}")]
    Full(&'static str),
    #[error("too many bodies at a time, of all")]
    Busy,
    #[error("the body broke off: {0}")]
    Broken(#[from] hyper::Error),
}

impl Unread {
    pub(super) const fn answer(&self) -> (StatusCode, Reason) {
        match self {
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, Reason::BadRequest),
            Self::Late => (StatusCode::REQUEST_TIMEOUT, Reason::BadRequest),
            Self::Full(_) => (StatusCode::TOO_MANY_REQUESTS, Reason::Throttled),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, Reason::Throttled),
            Self::Broken(_) => (StatusCode::BAD_REQUEST, Reason::BadRequest),
        }
    }
}

impl Posts {
    pub(super) fn new(held: IntGauge) -> Self {
        Self { places: Places::new(limits::POSTS), held }
    }

    /// Reads a body from `address`, whose network is known or not, on a connection that may have `places` bodies.
    pub(super) async fn read<'a>(
        &self,
        body: Incoming,
        posted: Posted,
        (address, known): (IpAddr, bool),
        places: &'a Semaphore,
    ) -> Result<Post<'a>, Unread> {
        if body.is_end_stream() {
            return Ok(Post { bytes: Bytes::new(), _set_aside: None });
        }
        let limit = match posted {
            Posted::Form => limits::POSTED_FORM,
            Posted::Answer => limits::POSTED_ANSWER,
        };
        let room = match body.size_hint().exact() {
            Some(length) => usize::try_from(length).unwrap_or(usize::MAX),
            None => limit,
        };
        if room > limit {
            return Err(Unread::TooLarge(limit));
        }
        let of_connection = places.try_acquire().map_err(|_| Unread::Full("one connection"))?;
        let units = room.div_ceil(limits::POST_UNIT);
        let place = self.places.take_many(address, known, units).map_err(|full| match full {
            Full::All => Unread::Busy,
            Full::Region => Unread::Full("one region"),
            Full::Network => Unread::Full("one network"),
        })?;
        let set_aside = SetAside::new(&self.held, units, place, of_connection);
        let bytes = timeout(limits::POST_TIME, whole(body, room)).await.map_err(|_| Unread::Late)??;
        Ok(Post { bytes, _set_aside: Some(set_aside) })
    }
}

async fn whole(mut body: Incoming, room: usize) -> Result<Bytes, Unread> {
    let mut whole = BytesMut::with_capacity(room);
    while let Some(frame) = body.frame().await {
        // Trailers are not for us.
        let Ok(data) = frame?.into_data() else { continue };
        if data.len() > room.saturating_sub(whole.len()) {
            return Err(Unread::TooLarge(room));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// A part of the budget.
#[derive(Debug)]
struct SetAside<'a> {
    held: IntGauge,
    bytes: i64,
    _place: Place,
    _of_connection: SemaphorePermit<'a>,
}

impl<'a> SetAside<'a> {
    fn new(held: &IntGauge, units: usize, place: Place, of_connection: SemaphorePermit<'a>) -> Self {
        let bytes = i64::try_from(units.saturating_mul(limits::POST_UNIT)).unwrap_or(i64::MAX);
        held.add(bytes);
        Self { held: held.clone(), bytes, _place: place, _of_connection: of_connection }
    }
}

impl Drop for SetAside<'_> {
    fn drop(&mut self) {
        self.held.sub(self.bytes);
    }
}

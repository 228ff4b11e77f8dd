//! Sign-ins at applications elsewhere that wait in the browser while its person logs in: each sealed, in a cookie of its
//! own.
//!
//! Any page can lead a browser into such a request, and into the next. A browser shows its cookies with every further
//! request, so they are few and small: beyond what the edge reads of a head, nobody could log in any more.

use bytes::Bytes;
use http::Response;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock;
use crate::cookie::{self, SetCookie};
use crate::flow::{RayId, UnixTime};

use super::Call;
use super::browser::set_cookies;
use super::target::is_request;

/// Bytes of the longest sealed request: browsers keep 4096 with the name.
const LONGEST: usize = 3900;
/// Requests that are parked at a time, and bytes of their cookies; beyond that, the next begins with a clean slate.
const MOST: usize = 6;
const MOST_BYTES: usize = 4096;

/// Where the requests of one protocol are parked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Park {
    /// Of the cookies' names, followed by the name of the request.
    pub(super) prefix: &'static str,
    /// What the requests are sealed for.
    pub(super) purpose: &'static str,
}

/// Why a request is not parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotParked {
    TooLong,
    Unsealed,
}

impl Park {
    /// What takes the request `id` away again, parked for `path`.
    pub(super) fn clear(self, id: &str, path: &str) -> SetCookie {
        SetCookie::clear(&self.cookie(id), path)
    }

    fn cookie(self, id: &str) -> String {
        format!("{}{id}", self.prefix)
    }
}

impl Call<'_> {
    /// Leaves `request` with the browser until `expires_at`, in a cookie of `response` for `path` that is named after `id`.
    pub(super) fn park<T: Serialize>(
        &self,
        park: Park,
        (id, path): (&str, &str),
        request: &T,
        expires_at: UnixTime,
        response: &mut Response<Bytes>,
    ) -> Result<(), NotParked> {
        let sealed = self.context.seal.seal(park.purpose, request).map_err(|_| NotParked::Unsealed)?;
        if sealed.len() > LONGEST {
            return Err(NotParked::TooLong);
        }
        let open: Vec<(&str, &str)> = cookie::pairs(&self.visit.headers)
            .filter(|(name, _)| name.strip_prefix(park.prefix).is_some_and(is_request))
            .take(64)
            .collect();
        let bytes: usize = open.iter().map(|(name, value)| name.len() + value.len()).sum();
        if open.len() >= MOST || bytes > MOST_BYTES {
            set_cookies(response, open.into_iter().map(|(name, _)| SetCookie::clear(name, path)));
        }
        let cookie = SetCookie::new(&park.cookie(id), &sealed).path(path);
        set_cookies(response, [cookie.until(expires_at, self.now)]);
        Ok(())
    }

    /// The request that this browser has parked as `id`. A name that is there twice is none.
    pub(super) fn parked<T: DeserializeOwned>(&self, park: Park, id: &str) -> Option<T> {
        let name = park.cookie(id);
        let sealed = cookie::read_one(&self.visit.headers, &name)?;
        self.context.seal.open(park.purpose, sealed)
    }
}

/// A name for a request: 16 hexadecimal digits, like a ray id.
pub(super) fn new_name() -> String {
    RayId::from_bytes(clock::random()).to_string()
}

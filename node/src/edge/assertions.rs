//! Assertions for those who come without one: services, and clients whose own token no origin may see.
//!
//! A signature takes a millisecond, so an assertion serves its bearer for a minute. The decision is made for every
//! request all the same.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::flow::{Aud, ServiceId, SessionId, UnixTime};
use crate::policy::Permit;
use crate::token::{TokenError, Tokens};

/// For so long an assertion is used again.
const USED_FOR: Duration = Duration::from_secs(60);
/// Assertions kept; only proven bearers make one.
const MOST: usize = 16_384;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Bearer {
    Session(SessionId),
    Service(ServiceId),
}

/// The assertions made lately.
#[derive(Default)]
pub(super) struct Assertions(Mutex<BTreeMap<(Bearer, Aud), Made>>);

struct Made {
    token: String,
    until: UnixTime,
}

impl Assertions {
    /// The assertion about whom `permit` was granted to; nothing for a bypass.
    pub(super) fn of(
        &self,
        permit: &Permit,
        tokens: &Tokens,
        now: UnixTime,
    ) -> Result<Option<String>, TokenError> {
        let bearer = match (permit.session(), permit.service()) {
            (Some(session), _) => Bearer::Session(session.id),
            (None, Some(service)) => Bearer::Service(service.client_id),
            (None, None) => return Ok(None),
        };
        let key = (bearer, permit.application().aud.clone());
        if let Some(made) = self.lock().get(&key).filter(|made| now < made.until) {
            return Ok(Some(made.token.clone()));
        }
        let Some(token) = tokens.mint_application(permit, now)? else { return Ok(None) };
        let until = now.after(USED_FOR).min(permit.token_expires_at());
        let mut made = self.lock();
        if made.len() >= MOST {
            made.retain(|_, made| now < made.until);
        }
        if made.len() < MOST {
            made.insert(key, Made { token: token.clone(), until });
        }
        Ok(Some(token))
    }

    /// Forgets what is no longer used.
    pub(super) fn sweep(&self, now: UnixTime) {
        self.lock().retain(|_, made| now < made.until);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(Bearer, Aud), Made>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Service tokens: a client id and a secret that a program sends along with every request.
//!
//! A secret is 256 random bits, so a plain hash of it is enough, and guessing is hopeless: only failures pay for the
//! attempt, a right secret never waits. What runs on a service token is cut when it is revoked, rotated or expires; the
//! store comes first, and where it fails the token is dropped from memory all the same.
//!
//! A false accept lets a stranger in as a program; a false reject stops that program.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::clock;
use crate::flow::{Reason, Service, ServiceId, UnixTime};
use crate::store::{ServiceToken, Store, StoreError};

use super::throttle::{Attempt, Throttle};

/// A credential longer than this is refused before it is looked at.
const LONGEST: usize = 256;

/// The secret half of a service token: 32 random bytes in lower-case hexadecimal digits. It shows itself nowhere.
#[derive(Clone)]
pub struct ServiceSecret(Zeroizing<String>);

impl ServiceSecret {
    fn generate() -> Self {
        let bytes = Zeroizing::new(clock::random::<32>());
        let mut text = Zeroizing::new(String::with_capacity(64));
        for byte in bytes.iter() {
            for digit in [byte >> 4, byte & 15] {
                text.extend(char::from_digit(u32::from(digit), 16));
            }
        }
        Self(text)
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ServiceSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceSecret(…)")
    }
}

/// A service with a token that is good now.
#[derive(Debug, Clone)]
pub struct LiveService {
    pub service: Arc<Service>,
    /// Fires when the token is revoked, rotated or expires.
    pub ended: CancellationToken,
}

/// Why a credential was not accepted. None of them names the secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    #[error("unknown client id or wrong secret")]
    Wrong,
    #[error("too many attempts, again in {} s", retry_after.as_secs())]
    Throttled { retry_after: Duration },
    #[error("the service token `{name}` has expired")]
    Expired { name: String },
}

impl ServiceError {
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Wrong => Reason::BadCredentials,
            Self::Throttled { .. } => Reason::Throttled,
            Self::Expired { .. } => Reason::SessionEnded,
        }
    }
}

/// Every service token of the node, in memory, and the means to cut what runs on it. Clones share it.
#[derive(Clone)]
pub struct Services {
    store: Store,
    known: Arc<RwLock<BTreeMap<ServiceId, Known>>>,
    changes: Arc<tokio::sync::Mutex<()>>,
    throttle: Arc<Throttle>,
    started: Instant,
}

struct Known {
    live: LiveService,
    secret_hash: [u8; 32],
}

impl Services {
    /// Reads the service tokens from the store.
    pub async fn load(store: Store) -> Result<Self, StoreError> {
        let tokens = store.service_tokens().await?;
        let known = tokens.into_iter().map(|token| (token.client_id, Known::new(token))).collect();
        Ok(Self {
            store,
            known: Arc::new(RwLock::new(known)),
            changes: Arc::default(),
            throttle: Arc::default(),
            started: Instant::now(),
        })
    }

    /// The service that a request from `address` proves to be. `known_network` says whether somebody has lately logged
    /// in from there.
    pub fn prove(
        &self,
        client_id: &str,
        secret: &str,
        (address, known_network): (IpAddr, bool),
        now: UnixTime,
    ) -> Result<LiveService, ServiceError> {
        match self.verify(client_id, secret) {
            Some(live) if live.service.expires_at > now => Ok(live),
            Some(live) => Err(ServiceError::Expired { name: live.service.name.clone() }),
            None => {
                let attempt = Attempt { account: client_id, address, known_browser: None, known_network };
                let charged = self.throttle.charge(attempt, self.started.elapsed());
                Err(match charged {
                    Ok(()) => ServiceError::Wrong,
                    Err(retry_after) => ServiceError::Throttled { retry_after },
                })
            }
        }
    }

    /// Makes a service token.
    pub async fn create(
        &self,
        name: &str,
        expires_at: UnixTime,
        now: UnixTime,
    ) -> Result<(ServiceToken, ServiceSecret), StoreError> {
        let secret = ServiceSecret::generate();
        let token = ServiceToken {
            name: name.to_owned(),
            client_id: ServiceId::from_bytes(clock::random()),
            secret_hash: hash(secret.expose()),
            created_at: now,
            rotated_at: now,
            expires_at,
        };
        self.change(|services| async move {
            services.store.add_service_token(token.clone()).await?;
            services.write().insert(token.client_id, Known::new(token.clone()));
            Ok((token, secret))
        })
        .await
    }

    /// Gives a service token another secret, good until `expires_at`. The old secret is void at once, and what runs
    /// on it is cut. Nothing where there is no such token.
    pub async fn rotate(
        &self,
        name: &str,
        expires_at: UnixTime,
        now: UnixTime,
    ) -> Result<Option<(ServiceToken, ServiceSecret)>, StoreError> {
        let (name, secret) = (name.to_owned(), ServiceSecret::generate());
        self.change(|services| async move {
            let hash = hash(secret.expose());
            let rotated = services.store.rotate_service_token(&name, hash, expires_at, now).await;
            // Whatever the store says, the old secret is no longer good.
            services.forget(&name);
            let Some(token) = rotated? else { return Ok(None) };
            services.write().insert(token.client_id, Known::new(token.clone()));
            Ok(Some((token, secret)))
        })
        .await
    }

    /// Revokes a service token and cuts what runs on it. Says whether there was one.
    pub async fn revoke(&self, name: &str) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.change(|services| async move {
            let removed = services.store.remove_service_token(&name).await;
            services.forget(&name);
            removed.map(|token| token.is_some())
        })
        .await
    }

    /// Makes one change at a time, so that memory ends as the store does, and to its end, even if whoever asked goes
    /// away.
    async fn change<T, F>(&self, change: impl FnOnce(Self) -> F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let one_at_a_time = Arc::clone(&self.changes);
        let change = change(self.clone());
        let changing = async move {
            let _turn = one_at_a_time.lock().await;
            change.await
        };
        tokio::spawn(changing).await.map_err(|_| StoreError::Stopped)?
    }

    /// Every service token, expired ones too.
    pub async fn list(&self) -> Result<Vec<ServiceToken>, StoreError> {
        self.store.service_tokens().await
    }

    /// Cuts what runs on tokens that have expired at `now`; called every second or so.
    pub fn expire(&self, now: UnixTime) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        for Known { live, .. } in known.values().filter(|known| known.live.service.expires_at <= now) {
            live.ended.cancel();
        }
    }

    /// The service with this id and secret. An unknown id takes as long as a wrong secret.
    fn verify(&self, client_id: &str, secret: &str) -> Option<LiveService> {
        if client_id.len() > LONGEST || secret.len() > LONGEST {
            return None;
        }
        let presented = hash(secret);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let found = client_id.parse().ok().and_then(|id: ServiceId| known.get(&id));
        let stored = found.map_or([0; 32], |known| known.secret_hash);
        let equal = verify_slices_are_equal(&presented, &stored).is_ok();
        found.filter(|_| equal).map(|known| known.live.clone())
    }

    fn forget(&self, name: &str) {
        self.write().retain(|_, known| {
            let gone = known.live.service.name == name;
            if gone {
                known.live.ended.cancel();
            }
            !gone
        });
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<ServiceId, Known>> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn new(token: ServiceToken) -> Self {
        let ServiceToken { name, client_id, secret_hash, expires_at, .. } = token;
        let service = Arc::new(Service { name, client_id, expires_at });
        Self { live: LiveService { service, ended: CancellationToken::new() }, secret_hash }
    }
}

fn hash(secret: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, secret.as_bytes()).as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1000);
    const END: UnixTime = UnixTime(2000);

    fn from(address: &str) -> (IpAddr, bool) {
        (address.parse().unwrap(), false)
    }

    async fn services() -> (tempfile::TempDir, Store, Services) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let services = Services::load(store.clone()).await.unwrap();
        (directory, store, services)
    }

    #[tokio::test]
    async fn only_the_right_secret_in_time_proves_a_service() {
        let (_directory, store, services) = services().await;
        let (ci, secret) = services.create("ci", END, NOW).await.unwrap();
        let (cd, _) = services.create("cd", END, NOW).await.unwrap();
        let id = ci.client_id.to_string();
        let here = from("192.0.2.1");
        assert_eq!(secret.expose().len(), 64);
        assert!(!format!("{secret:?} {ci:?}").contains(secret.expose()));
        assert_eq!(services.prove(&id, secret.expose(), here, NOW).unwrap().service.name, "ci");
        for (id, secret) in [
            (cd.client_id.to_string(), secret.expose().to_owned()),
            (id.clone(), secret.expose().to_uppercase()),
            (id.clone(), String::new()),
            (id.clone(), "0".repeat(64)),
            (id.to_uppercase(), secret.expose().to_owned()),
            (String::new(), String::new()),
            (ServiceId::from_bytes([9; 16]).to_string(), secret.expose().to_owned()),
            (id.clone(), "x".repeat(1 << 16)),
        ] {
            assert_eq!(services.prove(&id, &secret, here, NOW).unwrap_err(), ServiceError::Wrong);
        }
        let expired = services.prove(&id, secret.expose(), here, END).unwrap_err();
        assert_eq!(expired, ServiceError::Expired { name: "ci".into() });
        assert!(matches!(services.create("ci", END, NOW).await, Err(StoreError::Exists(_))));

        let again = Services::load(store).await.unwrap();
        assert!(again.prove(&id, secret.expose(), here, NOW).is_ok(), "after a restart");
    }

    #[tokio::test]
    async fn guesses_are_throttled_and_never_keep_the_owner_out() {
        let (_directory, _store, services) = services().await;
        let (ci, secret) = services.create("ci", END, NOW).await.unwrap();
        let id = ci.client_id.to_string();
        let guess = || services.prove(&id, "guess", from("192.0.2.1"), NOW).unwrap_err();
        assert!((0..100).any(|_| matches!(guess(), ServiceError::Throttled { .. })));
        assert!(services.prove(&id, secret.expose(), from("192.0.2.1"), NOW).is_ok());
    }

    #[tokio::test]
    async fn what_runs_on_a_token_ends_with_it() {
        let (_directory, store, services) = services().await;
        let here = from("192.0.2.1");
        let (ci, secret) = services.create("ci", END, NOW).await.unwrap();
        let id = ci.client_id.to_string();
        let first = services.prove(&id, secret.expose(), here, NOW).unwrap();
        let (rotated, fresh) = services.rotate("ci", UnixTime(3000), NOW).await.unwrap().unwrap();
        assert!(first.ended.is_cancelled() && rotated.client_id == ci.client_id);
        assert_eq!(services.prove(&id, secret.expose(), here, NOW).unwrap_err(), ServiceError::Wrong);
        let second = services.prove(&id, fresh.expose(), here, NOW).unwrap();
        services.expire(UnixTime(2999));
        assert!(!second.ended.is_cancelled());
        services.expire(UnixTime(3000));
        assert!(second.ended.is_cancelled());

        let (_, secret) = services.rotate("ci", END, NOW).await.unwrap().unwrap();
        let third = services.prove(&id, secret.expose(), here, NOW).unwrap();
        assert!(services.revoke("ci").await.unwrap() && third.ended.is_cancelled());
        assert!(!services.revoke("ci").await.unwrap());
        assert!(services.rotate("ci", END, NOW).await.unwrap().is_none());
        assert!(services.prove(&id, secret.expose(), here, NOW).is_err());

        let (cd, secret) = services.create("cd", END, NOW).await.unwrap();
        let live = services.prove(&cd.client_id.to_string(), secret.expose(), here, NOW).unwrap();
        store.break_service_tokens().await;
        assert!(services.revoke("cd").await.is_err(), "loudly");
        assert!(live.ended.is_cancelled(), "and closed");
        assert!(services.prove(&cd.client_id.to_string(), secret.expose(), here, NOW).is_err());
    }
}

//! Live logins of access clients, in memory, with the means to cut what runs on them.
//!
//! ```text
//! confirmed ─▶ log in ─▶ refresh ─▶ refresh ─▶ … ─▶ log out | refresh token used twice | session over
//! ```
//!
//! As with sessions, an end fires [`LiveClient::ended`] and is written to the store; if the write fails, the client is ended
//! in memory all the same and the error is returned. The end of a session ends its clients without any
//! further step: their token is a child of the session's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::clock;
use crate::flow::{ClientId, Session, UnixTime};
use crate::metrics::Metrics;
use crate::session::{LiveSession, Sessions};
use crate::store::{Client, NewClient, NotLoggedIn, Rotation, Store, StoreError};
use crate::token::Claims;

/// A client that is logged in now.
#[derive(Debug, Clone)]
pub struct LiveClient {
    pub client: Arc<Client>,
    pub session: Arc<Session>,
    /// Fires when the client is logged out, or its session ends.
    pub ended: CancellationToken,
}

/// Every client of the node that is logged in. Clones share it.
#[derive(Clone)]
pub struct Clients {
    store: Store,
    metrics: Arc<Metrics>,
    key: Arc<hmac::Key>,
    /// Changes happen one after the other, so that memory sees them in the order of the store.
    turn: Arc<tokio::sync::Mutex<()>>,
    live: Arc<RwLock<BTreeMap<ClientId, LiveClient>>>,
}

/// A refresh token: the client's id and 32 bytes that nobody can guess, 64 characters of base64url.
pub struct RefreshToken(Zeroizing<String>);

/// What became of a refresh token that somebody presented.
#[derive(Debug)]
pub enum Refreshed {
    /// It is spent; this is the next one.
    Good(LiveClient, RefreshToken),
    /// It was spent before, so there are two who hold it. Its client is logged out now.
    Reused(LiveClient),
    /// It came with the proof of another key. Nothing has changed.
    Foreign(LiveClient),
    /// There is no such login, or no longer.
    Unknown,
}

impl Clients {
    /// Reads the live clients from the store.
    pub async fn load(
        store: Store,
        sessions: &Sessions,
        metrics: Arc<Metrics>,
        now: UnixTime,
    ) -> Result<Self, StoreError> {
        let secret = store.secret("client refresh", || clock::random::<32>().to_vec()).await?;
        let clients = store.live_clients(now).await?;
        let live = clients
            .into_iter()
            .filter_map(|client| Some(LiveClient::new(&sessions.get(client.session, now)?, client)))
            .map(|live| (live.client.id, live))
            .collect();
        let clients = Self {
            store,
            metrics,
            key: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &secret)),
            turn: Arc::default(),
            live: Arc::new(RwLock::new(live)),
        };
        clients.count();
        Ok(clients)
    }

    /// The client, if it is logged in at `now`.
    pub fn get(&self, id: ClientId, now: UnixTime) -> Option<LiveClient> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()?;
        (live.session.expires_at > now && !live.ended.is_cancelled()).then_some(live)
    }

    /// Every client that is logged in at `now`.
    pub fn all_live(&self, now: UnixTime) -> Vec<LiveClient> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        let is_live = |client: &&LiveClient| client.session.expires_at > now && !client.ended.is_cancelled();
        live.values().filter(is_live).cloned().collect()
    }

    /// The live session that a verified token names, and with it the login of the client that the token was minted for:
    /// whichever of the two ends first ends what runs on it.
    pub fn live(&self, sessions: &Sessions, claims: &Claims, now: UnixTime) -> Option<LiveSession> {
        let mut live = sessions.get(claims.identity_nonce, now)?;
        if let Some(id) = claims.client_login {
            let client = self.get(id, now)?;
            live.ended = (client.session.id == live.session.id).then_some(client.ended)?;
        }
        Some(live)
    }

    /// Logs in the device that holds `key` and is called `name`, by the person's `session`. Whatever was logged in with
    /// that key before is logged out.
    pub async fn log_in(
        &self,
        session: &LiveSession,
        key: [u8; 32],
        name: &str,
        now: UnixTime,
    ) -> Result<Result<(LiveClient, RefreshToken), NotLoggedIn>, StoreError> {
        let id = ClientId::from_bytes(clock::random());
        let token = RefreshToken::new(id, &clock::random());
        let new = NewClient {
            id,
            session: session.session.id,
            key,
            name: name.to_owned(),
            refresh_hash: token.hash(),
        };
        let (clients, session) = (self.clone(), session.clone());
        whole(async move {
            let _turn = clients.turn.lock().await;
            let (client, before) = match clients.store.insert_client(new, now).await? {
                Ok(inserted) => inserted,
                Err(refused) => return Ok(Err(refused)),
            };
            before.iter().for_each(|id| clients.end(*id));
            let live = LiveClient::new(&session, client);
            clients.live.write().unwrap_or_else(PoisonError::into_inner).insert(id, live.clone());
            clients.count();
            Ok(Ok((live, token)))
        })
        .await
    }

    /// Exchanges the refresh token `text` for the next one, at the word of `key` and its `proof`. The same token with
    /// the same proof gets the same answer until that answer was used: it may have got lost.
    pub async fn refresh(
        &self,
        text: &str,
        key: [u8; 32],
        proof: &str,
        now: UnixTime,
    ) -> Result<Refreshed, StoreError> {
        let Some(presented) = RefreshToken::parse(text) else { return Ok(Refreshed::Unknown) };
        let id = presented.client();
        let next = self.after(&presented, proof);
        let (clients, proof) = (self.clone(), sha256(proof.as_bytes()));
        whole(async move {
            let _turn = clients.turn.lock().await;
            let Some(live) = clients.get(id, now) else { return Ok(Refreshed::Unknown) };
            let rotation =
                clients.store.rotate_client(id, key, presented.hash(), proof, next.hash(), now).await?;
            Ok(match rotation {
                Rotation::Rotated(_) | Rotation::Repeated(_) => Refreshed::Good(live, next),
                Rotation::Reused(_) => {
                    clients.end(id);
                    Refreshed::Reused(live)
                }
                Rotation::Foreign(_) => Refreshed::Foreign(live),
                Rotation::Unknown => Refreshed::Unknown,
            })
        })
        .await
    }

    /// Logs a client out, in memory and then in the store, which may have much to do before.
    pub async fn log_out(&self, id: ClientId, now: UnixTime) -> Result<(), StoreError> {
        let clients = self.clone();
        clients.end(id);
        whole(async move {
            let _turn = clients.turn.lock().await;
            let result = clients.store.revoke_client(id, now).await;
            // It may have been logged in just before the store had it in hand.
            clients.end(id);
            result.map(drop)
        })
        .await
    }

    /// Forgets those that have ended with their session; called every second or so.
    pub fn expire(&self, now: UnixTime) {
        self.live
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, live| live.session.expires_at > now && !live.ended.is_cancelled());
        self.count();
    }

    /// The token that follows `presented` where it comes with `proof`: the same each time, and known to nobody before.
    fn after(&self, presented: &RefreshToken, proof: &str) -> RefreshToken {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(presented.0.as_bytes());
        context.update(proof.as_bytes());
        let mut secret = Zeroizing::new([0; 32]);
        secret.copy_from_slice(context.sign().as_ref());
        RefreshToken::new(presented.client(), &secret)
    }

    fn end(&self, id: ClientId) {
        if let Some(live) = self.live.write().unwrap_or_else(PoisonError::into_inner).remove(&id) {
            live.ended.cancel();
        }
        self.count();
    }

    fn count(&self) {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner).len();
        self.metrics.clients.set(i64::try_from(live).unwrap_or(i64::MAX));
    }
}

impl LiveClient {
    fn new(session: &LiveSession, client: Client) -> Self {
        Self {
            client: Arc::new(client),
            session: Arc::clone(&session.session),
            ended: session.ended.child_token(),
        }
    }
}

impl RefreshToken {
    /// Bytes of the client's id, in front of the secret.
    const ID: usize = 16;
    const TEXT: usize = 64;

    fn new(client: ClientId, secret: &[u8; 32]) -> Self {
        let bytes = Zeroizing::new([&client.as_bytes()[..], secret].concat());
        Self(Zeroizing::new(URL_SAFE_NO_PAD.encode(&*bytes)))
    }

    /// Takes a text that looks like one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let token = Self(Zeroizing::new(text.to_owned()));
        (text.len() == Self::TEXT && token.id().is_some()).then_some(token)
    }

    /// Whose it is.
    pub fn client(&self) -> ClientId {
        ClientId::from_bytes(self.id().unwrap_or_default())
    }

    /// The token itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn id(&self) -> Option<[u8; Self::ID]> {
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(self.0.as_bytes()).ok()?);
        bytes.first_chunk().copied()
    }

    fn hash(&self) -> [u8; 32] {
        sha256(self.0.as_bytes())
    }
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RefreshToken({})", self.client())
    }
}

/// Runs a change to its end even if whoever asked for it goes away: memory must not miss what the store has done.
async fn whole<T: Send + 'static>(
    change: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::spawn(change).await.map_err(|_| StoreError::Stopped)?
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{PersonId, SessionId};
    use crate::store::SessionFilter;

    const NOW: UnixTime = UnixTime(100);

    struct World {
        directory: tempfile::TempDir,
        sessions: Sessions,
        clients: Clients,
        session: LiveSession,
    }

    async fn world() -> World {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let sessions = Sessions::load(store.clone(), Arc::clone(&metrics), NOW).await.unwrap();
        let session = Session {
            id: SessionId::from_bytes([1; 16]),
            person: PersonId { provider: "local".into(), subject: "ann".into() },
            is_local: None,
            email: None,
            display_name: "Ann".into(),
            groups: vec![],
            amr: vec![],
            address: [192, 0, 2, 1].into(),
            authenticated_at: None,
            created_at: NOW,
            expires_at: UnixTime(1000),
        };
        let session = sessions.create(session).await.unwrap();
        let clients = Clients::load(store, &sessions, metrics, NOW).await.unwrap();
        World { directory, sessions, clients, session }
    }

    #[tokio::test]
    async fn the_same_request_gets_the_same_answer_and_a_second_use_ends_the_login() {
        let World { clients, session, .. } = world().await;
        let (live, first) = clients.log_in(&session, [5; 32], "laptop", NOW).await.unwrap().unwrap();
        let refresh = async |token: &RefreshToken, proof: &str, key: u8| {
            clients.refresh(token.expose(), [key; 32], proof, NOW).await.unwrap()
        };
        let Refreshed::Good(_, second) = refresh(&first, "proof 1", 5).await else { panic!() };
        assert_ne!(second.expose(), first.expose());
        let Refreshed::Good(_, again) = refresh(&first, "proof 1", 5).await else { panic!() };
        assert_eq!(again.expose(), second.expose());
        assert!(matches!(refresh(&second, "proof 2", 6).await, Refreshed::Foreign(_)));
        assert!(!live.ended.is_cancelled());
        assert!(matches!(refresh(&first, "proof 2", 5).await, Refreshed::Reused(_)));
        assert!(live.ended.is_cancelled() && clients.get(live.client.id, NOW).is_none());
        assert!(matches!(refresh(&second, "proof 3", 5).await, Refreshed::Unknown));
        for text in ["", "x", &"A".repeat(64), &"!".repeat(64), &"A".repeat(65)] {
            let unknown = clients.refresh(text, [5; 32], "proof", NOW).await.unwrap();
            assert!(matches!(unknown, Refreshed::Unknown), "{text}");
        }
    }

    #[tokio::test]
    async fn a_login_ends_with_its_session_by_a_logout_and_by_the_next_with_its_key() {
        let World { directory, sessions, clients, session } = world().await;
        let mut logins = Vec::new();
        for key in [5, 5, 6, 7] {
            logins.push(clients.log_in(&session, [key; 32], "laptop", NOW).await.unwrap().unwrap().0);
        }
        let live =
            |now| logins.iter().map(|live| clients.get(live.client.id, now).is_some()).collect::<Vec<_>>();
        assert_eq!(live(NOW), [false, true, true, true]);
        assert!(logins[0].ended.is_cancelled());
        clients.log_out(logins[2].client.id, NOW).await.unwrap();
        assert!(logins[2].ended.is_cancelled());
        assert_eq!(live(NOW), [false, true, false, true]);
        assert_eq!(live(UnixTime(1000)), [false; 4], "expiry is exact");

        // A restart finds the same.
        let store = Store::open(directory.path()).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let restarted = Sessions::load(store.clone(), Arc::clone(&metrics), NOW).await.unwrap();
        let again = Clients::load(store, &restarted, metrics, NOW).await.unwrap();
        let found: Vec<bool> = logins.iter().map(|live| again.get(live.client.id, NOW).is_some()).collect();
        assert_eq!(found, [false, true, false, true]);

        sessions.revoke(&SessionFilter::All, NOW).await.unwrap();
        assert!(logins.iter().all(|live| live.ended.is_cancelled()));
        assert_eq!(live(NOW), [false; 4]);
        assert!(clients.log_in(&session, [8; 32], "laptop", NOW).await.unwrap().is_err());
        clients.expire(NOW);
        assert_eq!(clients.metrics.clients.get(), 0);
    }

    #[tokio::test]
    async fn a_change_is_whole_even_if_nobody_waits_for_it() {
        let World { clients, session, .. } = world().await;
        let (first, _) = clients.log_in(&session, [5; 32], "laptop", NOW).await.unwrap().unwrap();
        let mut again = Box::pin(clients.log_in(&session, [5; 32], "laptop", NOW));
        assert!(futures_util::poll!(&mut again).is_pending());
        drop(again);
        let ended = tokio::time::timeout(std::time::Duration::from_secs(30), first.ended.cancelled());
        assert!(ended.await.is_ok(), "what the store has ended is ended");
    }

    #[tokio::test]
    async fn a_logout_fails_loudly_and_closed() {
        let World { clients, session, .. } = world().await;
        let (live, _) = clients.log_in(&session, [5; 32], "laptop", NOW).await.unwrap().unwrap();
        clients.store.break_sessions().await;
        assert!(clients.log_out(live.client.id, NOW).await.is_err(), "loudly");
        assert!(live.ended.is_cancelled() && clients.get(live.client.id, NOW).is_none(), "and closed");
    }

    #[test]
    fn a_token_does_not_show_its_secret() {
        let token = RefreshToken::new(ClientId::from_bytes([1; 16]), &[9; 32]);
        let secret = URL_SAFE_NO_PAD.encode([9; 32]);
        assert!(!format!("{token:?}").contains(&secret[4..20]));
        assert_eq!(RefreshToken::parse(token.expose()).unwrap().client(), ClientId::from_bytes([1; 16]));
    }
}

//! Live sessions: every one that is neither revoked nor expired, in memory, with the means to cut what runs on it.
//!
//! A revocation fires [`LiveSession::ended`], which every open request, WebSocket and event stream of the session waits on,
//! and is written to the store. What can be told in memory ends at once, however long the store takes; what only the store
//! knows ends when it has said so. If the write fails, nothing is reported as revoked, but what is ended in memory stays
//! so: revocation fails loudly and closed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use crate::flow::{Session, SessionId, UnixTime};
use crate::metrics::Metrics;
use crate::saml::NameId;
use crate::store::{SessionFilter, Store, StoreError};

/// A session that is live now.
#[derive(Debug, Clone)]
pub struct LiveSession {
    pub session: Arc<Session>,
    /// Fires when the session is revoked or expires.
    pub ended: CancellationToken,
    /// Set before [`ended`](Self::ended) fires.
    by_administrator: Arc<AtomicBool>,
    /// What the store is known to hold of sign-ins at applications that speak SAML, by application.
    saml_logins: Arc<Mutex<BTreeMap<String, SamlLogin>>>,
}

/// What an application was told: who somebody is, in answers that are over then.
#[derive(Debug, PartialEq, Eq)]
struct SamlLogin {
    name_id: NameId,
    answers_over_at: UnixTime,
}

/// When answers are over is written this much later than it is, so that not every one of them is a write.
const ANSWERS_ROUNDED: Duration = Duration::from_secs(60);

/// Every live session of the node. Clones share it.
#[derive(Clone)]
pub struct Sessions {
    store: Store,
    metrics: Arc<Metrics>,
    live: Arc<RwLock<BTreeMap<SessionId, LiveSession>>>,
    endings: Arc<Notify>,
}

impl Sessions {
    /// Reads the live sessions from the store.
    pub async fn load(store: Store, metrics: Arc<Metrics>, now: UnixTime) -> Result<Self, StoreError> {
        let live = store
            .live_sessions(now)
            .await?
            .into_iter()
            .map(|session| (session.id, LiveSession::new(session)))
            .collect();
        let sessions = Self { store, metrics, live: Arc::new(RwLock::new(live)), endings: Arc::default() };
        sessions.count();
        Ok(sessions)
    }

    /// Keeps a new session. It is live before it is stored, so that a revocation in between finds it.
    pub async fn create(&self, session: Session) -> Result<LiveSession, StoreError> {
        let live = LiveSession::new(session);
        self.write().insert(live.session.id, live.clone());
        self.count();
        if let Err(error) = self.store.insert_session(&live.session).await {
            self.end(false, |session| session.id == live.session.id);
            return Err(error);
        }
        if live.ended.is_cancelled() {
            // Revoked before the store had it: the store learns of it now.
            self.store.revoke_sessions(&SessionFilter::Id(live.session.id), live.session.created_at).await?;
        }
        Ok(live)
    }

    /// The session, if it is live at `now`.
    pub fn get(&self, id: SessionId, now: UnixTime) -> Option<LiveSession> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()?;
        (live.session.expires_at > now && !live.ended.is_cancelled()).then_some(live)
    }

    /// Remembers that a session was granted an application.
    pub async fn granted(&self, id: SessionId, application: &str) -> Result<(), StoreError> {
        self.store.grant_application(id, application).await
    }

    /// Remembers that an application that speaks SAML knows the person of a session as `name_id`, by an answer that is over
    /// at `over_at`. It costs nothing where that is known already, and for a minute of further answers.
    pub async fn signed_in(
        &self,
        live: &LiveSession,
        application: &str,
        name_id: &NameId,
        over_at: UnixTime,
    ) -> Result<(), StoreError> {
        // Held over the write: of two names the one that is kept here has to be the one that the store has.
        let mut known = live.saml_logins.lock().await;
        if !known.get(application).is_some_and(|known| known.covers(name_id, over_at)) {
            // Who gives up waiting does not stop the write.
            known.remove(application);
            let answers_over_at = over_at.after(ANSWERS_ROUNDED);
            self.store.insert_saml_login(live.session.id, application, name_id, answers_over_at).await?;
            known.insert(application.to_owned(), SamlLogin { name_id: name_id.clone(), answers_over_at });
        }
        Ok(())
    }

    pub async fn matching(&self, filter: &SessionFilter, now: UnixTime) -> Result<Vec<Session>, StoreError> {
        self.store.sessions_matching(filter, now).await
    }

    /// Ends every live session that matches: those that can be told in memory at once, the others when the store has. Where
    /// the store fails, so do the others that may be meant, and the error is returned. It runs to its end even if
    /// whoever asked goes away: the request that carried a logout may be cut by the logout.
    pub async fn revoke(
        &self,
        filter: &SessionFilter,
        now: UnixTime,
    ) -> Result<Vec<Arc<Session>>, StoreError> {
        self.revoke_by(filter, now, false).await
    }

    /// As [`revoke`](Self::revoke), at an administrator's word.
    pub async fn revoke_by_administrator(
        &self,
        filter: &SessionFilter,
        now: UnixTime,
    ) -> Result<Vec<Arc<Session>>, StoreError> {
        self.revoke_by(filter, now, true).await
    }

    async fn revoke_by(
        &self,
        filter: &SessionFilter,
        now: UnixTime,
        administrator: bool,
    ) -> Result<Vec<Arc<Session>>, StoreError> {
        let (sessions, filter) = (self.clone(), filter.clone());
        let revoking = async move {
            let by_application = matches!(filter, SessionFilter::Application(_));
            let is_surely_meant = |session: &Session| !by_application && in_memory_match(session, &filter);
            // The store may have much to do before it gets to this.
            sessions.end(administrator, is_surely_meant);
            let result = sessions.store.revoke_sessions(&filter, now).await;
            // With those that began meanwhile. What memory can tell is ended whatever the store says, so that a revocation
            // can be repeated.
            match &result {
                Ok(revoked) => {
                    let revoked: BTreeSet<SessionId> = revoked.iter().map(|gone| gone.id).collect();
                    sessions.end(administrator, |session| {
                        revoked.contains(&session.id) || is_surely_meant(session)
                    });
                }
                Err(_) => sessions.end(administrator, |session| in_memory_match(session, &filter)),
            }
            // Whoever looks into the store for what has ended finds it only now.
            sessions.endings.notify_one();
            result.map(|revoked| revoked.into_iter().map(Arc::new).collect())
        };
        tokio::spawn(revoking).await.map_err(|_| StoreError::Stopped)?
    }

    /// Ends what has expired at `now`; called every second or so, so that open streams end in time.
    pub fn expire(&self, now: UnixTime) {
        self.end(false, |session| session.expires_at <= now);
    }

    /// Returns once sessions have ended since it last did; for one caller at a time.
    pub async fn endings(&self) {
        self.endings.notified().await;
    }

    fn end(&self, by_administrator: bool, which: impl Fn(&Session) -> bool) {
        self.write().retain(|_, live| {
            let ends = which(&live.session);
            if ends {
                live.by_administrator.store(by_administrator, Ordering::Release);
                live.ended.cancel();
                self.endings.notify_one();
            }
            !ends
        });
        self.count();
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<SessionId, LiveSession>> {
        self.live.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner).len();
        self.metrics.sessions.set(i64::try_from(live).unwrap_or(i64::MAX));
    }
}

impl LiveSession {
    fn new(session: Session) -> Self {
        Self {
            session: Arc::new(session),
            ended: CancellationToken::new(),
            by_administrator: Arc::default(),
            saml_logins: Arc::default(),
        }
    }

    /// Whether [`Sessions::signed_in`] would have nothing to write.
    pub async fn is_signed_in(&self, application: &str, name_id: &NameId, over_at: UnixTime) -> bool {
        let known = self.saml_logins.lock().await;
        known.get(application).is_some_and(|known| known.covers(name_id, over_at))
    }

    /// Of a session that has [ended](Self::ended): not by itself.
    pub fn is_revoked_by_administrator(&self) -> bool {
        self.by_administrator.load(Ordering::Acquire)
    }
}

impl SamlLogin {
    fn covers(&self, name_id: &NameId, over_at: UnixTime) -> bool {
        self.name_id == *name_id && self.answers_over_at >= over_at
    }
}

/// What of a filter can be told without the store. Which applications a session was granted only the store knows:
/// there the doubt ends the session.
fn in_memory_match(session: &Session, filter: &SessionFilter) -> bool {
    match filter {
        SessionFilter::Id(id) => session.id == *id,
        SessionFilter::User(user) => {
            session.person.to_string() == *user
                || session.email.as_ref().is_some_and(|email| email.as_str().eq_ignore_ascii_case(user))
        }
        SessionFilter::LocalUser(name) => session.is_of_local_user(name),
        SessionFilter::Application(_) | SessionFilter::All => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::PersonId;

    fn session(id: u8, email: &str, expires: i64) -> Session {
        Session {
            id: SessionId::from_bytes([id; 16]),
            person: PersonId { provider: "local".into(), subject: email.into() },
            is_local: None,
            email: Some(email.parse().unwrap()),
            display_name: email.into(),
            groups: vec![],
            amr: vec![],
            address: [192, 0, 2, 1].into(),
            authenticated_at: None,
            created_at: UnixTime(0),
            expires_at: UnixTime(expires),
        }
    }

    #[tokio::test]
    async fn a_revocation_fails_loudly_and_closed_and_can_be_repeated() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let sessions = Sessions::load(store.clone(), metrics, UnixTime(0)).await.unwrap();
        let ann = sessions.create(session(1, "ann@example.com", 100)).await.unwrap();
        let bob = sessions.create(session(2, "bob@example.com", 100)).await.unwrap();

        // Revoked in the store alone, as a torn revocation would leave it: repeating it ends it in memory too.
        let filter = SessionFilter::User("ann@example.com".into());
        store.revoke_sessions(&filter, UnixTime(1)).await.unwrap();
        assert!(!ann.ended.is_cancelled());
        sessions.revoke(&filter, UnixTime(2)).await.unwrap();
        assert!(ann.ended.is_cancelled() && !bob.ended.is_cancelled());

        // Whoever asks may go away before the answer.
        let cid = sessions.create(session(3, "cid@example.com", 100)).await.unwrap();
        let all = SessionFilter::Id(cid.session.id);
        let mut asked = Box::pin(sessions.revoke(&all, UnixTime(3)));
        assert!(futures_util::poll!(&mut asked).is_pending());
        drop(asked);
        // And what memory can tell waits for no store that has other things to do.
        tokio::task::yield_now().await;
        assert!(cid.ended.is_cancelled());
        sessions.endings().await;

        store.break_sessions().await;
        assert!(sessions.revoke(&SessionFilter::All, UnixTime(4)).await.is_err(), "loudly");
        assert!(
            bob.ended.is_cancelled() && sessions.get(bob.session.id, UnixTime(4)).is_none(),
            "and closed"
        );
        assert!(sessions.create(session(4, "dan@example.com", 100)).await.is_err());
        assert!(sessions.get(SessionId::from_bytes([4; 16]), UnixTime(4)).is_none());
    }

    /// Who has to be told of an end elsewhere is in the store.
    #[tokio::test]
    async fn whoever_waits_for_endings_is_woken_once_the_store_has_them() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let sessions = Sessions::load(store.clone(), metrics, UnixTime(0)).await.unwrap();
        let ann = sessions.create(session(1, "ann@example.com", 100)).await.unwrap();
        let filter = SessionFilter::Id(ann.session.id);
        let mut revoking = Box::pin(sessions.revoke(&filter, UnixTime(1)));
        assert!(futures_util::poll!(&mut revoking).is_pending());
        ann.ended.cancelled().await;
        sessions.endings().await;
        assert_eq!(revoking.await.unwrap().len(), 1);
        let woken = tokio::time::timeout(Duration::from_secs(5), sessions.endings()).await;
        assert!(woken.is_ok() && store.sessions_matching(&filter, UnixTime(1)).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_local_user_is_found_whatever_the_provider_was_called() {
        let begun = |id, person: (&str, &str), is_local| Session {
            person: PersonId { provider: person.0.into(), subject: person.1.into() },
            is_local,
            ..session(id, "x@example.com", 100)
        };
        for store_works in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let store = Store::open(directory.path()).unwrap();
            let metrics = Arc::new(Metrics::new().unwrap());
            let sessions = Sessions::load(store.clone(), metrics, UnixTime(0)).await.unwrap();
            let all = [
                begun(1, ("local", "ann"), Some(true)),
                begun(2, ("staff", "ann"), Some(true)),
                begun(3, ("staff", "ann"), None),
                begun(4, ("staff", "joann"), Some(true)),
                begun(5, ("okta", "ann"), Some(false)),
                begun(6, ("staff", "x:ann"), Some(true)),
            ];
            let mut live = Vec::new();
            for session in all {
                live.push(sessions.create(session).await.unwrap());
            }
            if !store_works {
                store.break_sessions().await;
            }
            let revoked = sessions.revoke(&SessionFilter::LocalUser("ann".into()), UnixTime(1)).await;
            assert_eq!(revoked.ok().map(|revoked| revoked.len()), store_works.then_some(3));
            let ended: Vec<bool> = live.iter().map(|live| live.ended.is_cancelled()).collect();
            assert_eq!(ended, [true, true, true, false, false, false]);
        }
    }

    #[tokio::test]
    async fn a_sign_in_is_stored_whenever_its_name_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let sessions = Sessions::load(store.clone(), metrics, UnixTime(0)).await.unwrap();
        let ann = sessions.create(session(1, "ann@example.com", 100)).await.unwrap();
        let stored = async || {
            let name_id = store.saml_login(ann.session.id, "crm").await.unwrap();
            name_id.map(|name_id| name_id.value)
        };
        for name in ["one", "two", "two", "one"] {
            let again = sessions.get(ann.session.id, UnixTime(1)).unwrap();
            sessions.signed_in(&again, "crm", &NameId::new("f", name), UnixTime(300)).await.unwrap();
            assert_eq!(stored().await.as_deref(), Some(name));
        }
        for (over_at, stored) in [(360, 360), (361, 421), (400, 421)] {
            sessions.signed_in(&ann, "crm", &NameId::new("f", "one"), UnixTime(over_at)).await.unwrap();
            let logins = store.saas_logins(vec![ann.session.id]).await.unwrap();
            assert_eq!(logins[0].answers_over_at, Some(UnixTime(stored)));
        }
        let by_application = SessionFilter::Application("crm".into());
        assert_eq!(sessions.matching(&by_application, UnixTime(1)).await.unwrap().len(), 1);
        store.break_sessions().await;
        let signed_in =
            async |name| sessions.signed_in(&ann, "crm", &NameId::new("f", name), UnixTime(400)).await;
        assert!(signed_in("one").await.is_ok(), "it is known, and costs nothing");
        assert!(signed_in("two").await.is_err());
        assert!(signed_in("two").await.is_err(), "what could not be written is not known");
    }

    #[tokio::test]
    async fn a_revocation_ends_what_runs_and_outlives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let sessions = Sessions::load(store.clone(), Arc::clone(&metrics), UnixTime(0)).await.unwrap();
        let ann = sessions.create(session(1, "ann@example.com", 100)).await.unwrap();
        let bob = sessions.create(session(2, "bob@example.com", 50)).await.unwrap();
        let cid = sessions.create(session(3, "cid@example.com", 100)).await.unwrap();
        sessions.granted(cid.session.id, "wiki").await.unwrap();

        let revoked =
            sessions.revoke(&SessionFilter::User("Ann@example.com".into()), UnixTime(1)).await.unwrap();
        assert_eq!(revoked.len(), 1);
        assert!(ann.ended.is_cancelled() && sessions.get(ann.session.id, UnixTime(1)).is_none());
        assert!(!bob.ended.is_cancelled());

        assert!(sessions.get(bob.session.id, UnixTime(50)).is_none(), "expiry is exact, before the sweep");
        sessions.expire(UnixTime(50));
        assert!(bob.ended.is_cancelled());

        let again = Sessions::load(store, metrics, UnixTime(60)).await.unwrap();
        assert!(again.get(ann.session.id, UnixTime(60)).is_none());
        assert!(again.get(cid.session.id, UnixTime(60)).is_some());
        assert_eq!(
            again.revoke(&SessionFilter::Application("wiki".into()), UnixTime(60)).await.unwrap().len(),
            1
        );
        assert!(again.get(cid.session.id, UnixTime(60)).is_none());
    }
}

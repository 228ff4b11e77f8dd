//! Local users: a name and a password in the node's own store.
//!
//! Known and unknown names answer and time alike: both are looked up, both verify one argon2id hash of the same cost.
//! Hashing is memory-hard on purpose, so only a few run at a time, off the runtime's threads; who has a turn of their
//! own is in [`super::turns`].

use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::flow::PersonId;
use crate::store::Store;

use super::throttle::{Attempt, Throttle};
use super::turns::{Lane, Turns};
use super::{Authenticated, LoginError, password};

/// How long an attempt waits for its turn before it is told to come again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Verifies passwords.
pub struct LocalLogin {
    turns: Turns,
    throttle: Throttle,
    started: Instant,
}

/// The account that a password was right for, as it was then.
///
/// A hash takes long enough for an administrator to remove the user or change the password meanwhile. They write
/// the store first and then revoke the sessions that exist, so whoever asks [`Proven::holds`] after its session
/// exists is either told of the change here, or seen by the revocation.
pub struct Proven {
    name: String,
    password_hash: String,
}

impl Proven {
    /// Whether the account is still there, with the same password.
    pub async fn holds(&self, store: &Store) -> Result<bool, LoginError> {
        let user = store.user(&self.name).await.map_err(|error| LoginError::Internal(error.to_string()))?;
        Ok(user.is_some_and(|user| user.password_hash == self.password_hash))
    }
}

impl Default for LocalLogin {
    fn default() -> Self {
        Self { turns: Turns::default(), throttle: Throttle::default(), started: Instant::now() }
    }
}

impl LocalLogin {
    /// Authenticates `attempt.account` of provider `provider` by `password`. The proof is to be asked once more when
    /// the session exists.
    pub async fn login(
        &self,
        store: &Store,
        provider: &str,
        attempt: Attempt<'_>,
        password: Zeroizing<String>,
    ) -> Result<(Authenticated, Proven), LoginError> {
        self.throttle
            .charge(attempt, self.started.elapsed())
            .map_err(|retry_after| LoginError::Throttled { retry_after })?;
        if password.len() > password::LIMIT {
            return Err(LoginError::BadCredentials);
        }
        let turn = tokio::time::timeout(PATIENCE, self.turns.wait(Lane::of(attempt)))
            .await
            .map_err(|_| LoginError::Throttled { retry_after: PATIENCE })?
            .map_err(|error| LoginError::Internal(error.to_string()))?;
        let user =
            store.user(attempt.account).await.map_err(|error| LoginError::Internal(error.to_string()))?;
        let hash =
            user.as_ref().map_or_else(|| password::decoy().to_owned(), |user| user.password_hash.clone());
        // The turn moves along: a client that hangs up does not free it while the hash is still being computed.
        let matches = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            password::verify(&password, &hash)
        })
        .await
        .map_err(|error| LoginError::Internal(error.to_string()))?;
        match user {
            Some(user) if matches => {
                self.throttle.refund(attempt);
                let proven = Proven { name: user.name.clone(), password_hash: user.password_hash };
                let person = Authenticated {
                    authenticated_at: None,
                    person: PersonId { provider: provider.to_owned(), subject: user.name.clone() },
                    email: Some(user.email),
                    display_name: user.name,
                    groups: user.groups,
                    amr: vec!["pwd".to_owned()],
                    ends_at: None,
                    at_provider: None,
                };
                Ok((person, proven))
            }
            _ => Err(LoginError::BadCredentials),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::UnixTime;
    use crate::store::User;

    /// Strangers who guess from everywhere, more than can be hashed, keep nobody out who was here before.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_flood_of_guesses_does_not_keep_known_people_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let user = User {
            name: "ann".into(),
            email: "ann@example.com".parse().unwrap(),
            groups: vec![],
            password_hash: password::hash("correct horse").unwrap(),
            created_at: UnixTime(0),
        };
        store.add_user(user).await.unwrap();
        let local = std::sync::Arc::new(LocalLogin::default());
        // Guesses at her account too, until it is throttled.
        for number in 0..20 {
            let address = [198, 51, number, 1].into();
            let attempt = Attempt { account: "ann", address, known_browser: None, known_network: false };
            let _ = local.throttle.charge(attempt, Duration::ZERO);
        }
        let flood: Vec<_> = (0..=255_u8)
            .map(|number| {
                let (local, store) = (std::sync::Arc::clone(&local), store.clone());
                tokio::spawn(async move {
                    let account = format!("user{number}");
                    let address = [203, 0, number, 1].into();
                    let attempt =
                        Attempt { account: &account, address, known_browser: None, known_network: false };
                    local.login(&store, "local", attempt, Zeroizing::new("a guess".into())).await
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let log_in = async |known_browser, known_network| {
            let address = [192, 0, 2, 1].into();
            let attempt = Attempt { account: "ann", address, known_browser, known_network };
            local.login(&store, "local", attempt, Zeroizing::new("correct horse".into())).await
        };
        assert!(log_in(Some(b"laptop".as_slice()), false).await.is_ok(), "a known browser");
        assert!(log_in(None, true).await.is_ok(), "a known network");
        assert!(flood.iter().any(|guess| !guess.is_finished()), "the flood was over before");
        assert!(matches!(log_in(None, false).await, Err(LoginError::Throttled { .. })), "a stranger waits");
        flood.iter().for_each(tokio::task::JoinHandle::abort);
    }

    /// Unknown names must not answer faster: the shortest of several times is compared, which load only lengthens.
    #[tokio::test]
    async fn known_and_unknown_users_take_as_long() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let user = User {
            name: "ann".into(),
            email: "ann@example.com".parse().unwrap(),
            groups: vec![],
            password_hash: password::hash("correct horse").unwrap(),
            created_at: UnixTime(0),
        };
        store.add_user(user).await.unwrap();
        let local = LocalLogin::default();
        let mut shortest = [Duration::MAX; 2];
        for _ in 0..6 {
            for (shortest, account) in shortest.iter_mut().zip(["ann", "nobody"]) {
                let attempt = Attempt {
                    account,
                    address: [192, 0, 2, 1].into(),
                    known_browser: None,
                    known_network: false,
                };
                let begun = Instant::now();
                let answer =
                    local.login(&store, "local", attempt, Zeroizing::new("wrong password".into())).await;
                *shortest = begun.elapsed().min(*shortest);
                assert_eq!(answer.err(), Some(LoginError::BadCredentials));
            }
        }
        let [known, unknown] = shortest.map(|time| time.as_secs_f64());
        // Without the decoy the unknown take a hundredth; the bounds leave room for a machine that is busy.
        assert!((0.2..5.0).contains(&(unknown / known)), "known {known} s, unknown {unknown} s");
    }
}

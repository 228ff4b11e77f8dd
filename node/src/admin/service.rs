//! Runs the commands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::clock;
use crate::config::Config;
use crate::event::{Action, Event, Events};
use crate::flow::{Session, UnixTime};
use crate::identity::password;
use crate::identity::service::Services;
use crate::saas::saml::SamlProvider;
use crate::session::Sessions;
use crate::store::{EventFilter, SessionFilter, Store, User};
use crate::token::Tokens;
use crate::tunnel::wire::{Authority, EndReason, EnrolmentSecret};
use crate::tunnel::{Devices, PrivateSession, PrivateSessions, Registry, enrolment};

use super::gate::GateDesk;
use super::wire::{Password, Reply, Request};

/// How often `events --follow` looks for more.
const FOLLOW_EVERY: Duration = Duration::from_millis(250);
/// A password has at least so many characters.
const SHORTEST_PASSWORD: usize = 10;

/// What a command may use.
pub struct Service {
    pub store: Store,
    pub sessions: Sessions,
    pub services: Services,
    pub tokens: Tokens,
    pub saml: SamlProvider,
    pub events: Events,
    /// Where connectors find this node, for enrolment tokens.
    pub address: Authority,
    /// Live tunnels; without a running daemon there are none.
    pub tunnels: Option<Arc<Registry>>,
    /// What connectors knock with.
    pub devices: Devices,
    /// Private sessions; without a running daemon there are none.
    pub private: Option<PrivateSessions>,
    /// The gate that this daemon holds; without a running daemon there is none.
    pub gate: Option<GateDesk>,
}

/// One login in a listing, and its private sessions.
#[derive(Debug, Serialize, Deserialize)]
pub struct SessionRow {
    #[serde(flatten)]
    pub session: Session,
    pub private: Vec<PrivateSession>,
}

/// A sign-in at an application elsewhere that was made with a session.
#[derive(Debug, Serialize, Deserialize)]
pub struct ElsewhereRow {
    pub application: String,
    pub session: Session,
    /// Until then it may take an answer that it was sent, and begin a session of its own once more.
    #[serde(default)]
    pub answers_over_at: Option<UnixTime>,
}

/// One connector in a listing.
#[derive(Debug, Serialize, Deserialize)]
pub struct ConnectorRow {
    pub name: String,
    pub created_at: UnixTime,
    pub enrolled_at: Option<UnixTime>,
    pub connections: usize,
}

impl Service {
    /// A service straight on the store of `config`, for when no daemon runs.
    pub async fn offline(config: &Config) -> anyhow::Result<Self> {
        let store = Store::open(&config.node.state)?;
        let metrics = Arc::new(crate::metrics::Metrics::new()?);
        let now = clock::now();
        Ok(Self {
            sessions: Sessions::load(store.clone(), Arc::clone(&metrics), now).await?,
            services: Services::load(store.clone()).await?,
            tokens: Tokens::load(store.clone(), &config.node.authority(), now).await?,
            saml: SamlProvider::load(store.clone(), now).await?,
            events: Events::start(config.events.clone(), store.clone(), metrics)?,
            address: Authority::new(&config.node.domain, config.node.public_port),
            tunnels: None,
            private: None,
            devices: Devices::load(store.clone(), None).await?,
            gate: None,
            store,
        })
    }

    /// Runs one command for the caller `uid`, sending the answer line by line. The event of a change is written
    /// whether it worked or not.
    pub async fn run(&self, request: Request, uid: u32, replies: &mpsc::Sender<Reply>) {
        let change = request.change();
        let result = match request {
            Request::Events { filter, follow } => self.events(filter, follow, replies).await,
            other => self.answer(other).await.map(Some),
        };
        if let Some(change) = change {
            let event = Event::new(Action::Admin, result.is_ok()).claimed_user(&format!("uid {uid}"));
            self.events.emit(match &result {
                Ok(value) => match value.as_ref().and_then(ended_count) {
                    Some(count) => event.detail(format!("{change}: {}", ended_text(count))),
                    None => event.detail(change),
                },
                Err(error) => event.detail(format!("{change}: {error}")),
            });
            self.events.flush().await;
        }
        let reply = match result {
            Ok(Some(value)) => Reply::Ok(value),
            Ok(None) => return,
            Err(error) => Reply::Error(format!("{error:#}")),
        };
        let _ = replies.send(reply).await;
    }

    async fn answer(&self, request: Request) -> anyhow::Result<Value> {
        let now = clock::now();
        match request {
            Request::Status => self.status().await,
            Request::UserAdd { name, email, groups, password } => {
                check_user_name(&name)?;
                let password_hash = hash(password).await?;
                let user = User { name, email, groups, password_hash, created_at: now };
                self.store.add_user(user).await?;
                Ok(Value::Null)
            }
            Request::UserList => Ok(serde_json::to_value(self.store.users().await?)?),
            Request::UserPassword { name, password } => {
                let password_hash = hash(password).await?;
                found(self.store.set_password(&name, password_hash).await?, "user", &name)?;
                self.revoke(&SessionFilter::LocalUser(name), now).await
            }
            Request::UserRemove { name } => {
                found(self.store.remove_user(&name).await?, "user", &name)?;
                self.revoke(&SessionFilter::LocalUser(name), now).await
            }
            Request::ConnectorCreate { name, nodes } => {
                let nodes = if nodes.is_empty() { vec![self.address.clone()] } else { nodes };
                let token = enrolment::create(
                    &self.store,
                    name.parse()?,
                    nodes,
                    self.address.clone(),
                    enrolment::MAX_LIFETIME,
                    EnrolmentSecret::from_bytes(clock::random()),
                    now,
                )
                .await?;
                self.devices.tell(now).await?;
                Ok(json!({ "token": token.expose()?.as_str() }))
            }
            Request::ConnectorList => self.connectors().await,
            Request::ConnectorRevoke { name } => {
                found(self.store.revoke_connector(&name, now).await?, "connector", &name)?;
                if let Some(tunnels) = &self.tunnels {
                    tunnels.disconnect(&name);
                }
                self.devices.tell(now).await?;
                if let Some(private) = &self.private {
                    private.end_connector(&name, EndReason::ConnectorRevoked).await?;
                }
                Ok(Value::Null)
            }
            Request::ServiceTokenCreate { name, seconds } => {
                self.create_service_token(&name, Duration::from_secs(seconds), now).await
            }
            Request::ServiceTokenList => Ok(serde_json::to_value(self.services.list().await?)?),
            Request::ServiceTokenRotate { name, seconds } => {
                self.rotate_service_token(&name, Duration::from_secs(seconds), now).await
            }
            Request::ServiceTokenRevoke { name } => {
                found(self.services.revoke(&name).await?, "service token", &name)?;
                Ok(Value::Null)
            }
            Request::SessionList { filter } => self.list_sessions(&filter, now).await,
            Request::SessionRevoke { filter } => self.revoke(&filter, now).await,
            Request::KeysList => Ok(serde_json::to_value(self.tokens.keys(now))?),
            Request::KeysRotate { now: at_once } => {
                self.tokens.rotate(at_once, now).await?;
                Ok(serde_json::to_value(self.tokens.keys(now))?)
            }
            Request::SamlKeysList => Ok(serde_json::to_value(self.saml.key_list(now))?),
            Request::SamlKeysRotate { now: at_once } => {
                self.saml.rotate(at_once, now).await?;
                Ok(serde_json::to_value(self.saml.key_list(now))?)
            }
            Request::Backup { file } => {
                self.events.flush().await;
                self.store.backup(&file).await?;
                Ok(Value::Null)
            }
            Request::GateEnforce { seconds } => {
                self.gate()?.enforce(&self.store, Duration::from_secs(seconds)).await
            }
            Request::GateConfirm => self.gate()?.confirm(&self.store).await,
            Request::GateAudit => self.gate()?.audit(&self.store).await,
            Request::GateTop { seconds } => self.gate()?.top(Duration::from_secs(seconds)),
            Request::Events { .. } => anyhow::bail!("events are streamed"),
        }
    }

    async fn status(&self) -> anyhow::Result<Value> {
        let live = self.sessions.matching(&SessionFilter::All, clock::now()).await?.len();
        Ok(json!({
            "running": self.tunnels.is_some(),
            "version": env!("CARGO_PKG_VERSION"),
            "issuer": self.tokens.issuer(),
            "sessions": live,
            "connectors": self.connectors().await?,
            "gate": match &self.gate {
                Some(gate) => gate.status(&self.store).await?,
                None => Value::Null,
            },
        }))
    }

    fn gate(&self) -> anyhow::Result<&GateDesk> {
        self.gate.as_ref().context("no node runs here, or it has no gate")
    }

    async fn connectors(&self) -> anyhow::Result<Value> {
        let live = self.tunnels.as_ref().map(|tunnels| tunnels.connectors()).unwrap_or_default();
        let rows = self
            .store
            .connectors()
            .await?
            .into_iter()
            .map(|connector| ConnectorRow {
                connections: live.get(&connector.name).map_or(0, |status| status.connections),
                name: connector.name,
                created_at: connector.created_at,
                enrolled_at: connector.enrolled_at,
            })
            .collect::<Vec<_>>();
        Ok(serde_json::to_value(rows)?)
    }

    async fn list_sessions(&self, filter: &SessionFilter, now: UnixTime) -> anyhow::Result<Value> {
        let sessions = self.sessions.matching(filter, now).await?;
        let private = match self.private.clone() {
            Some(private) => tokio::task::spawn_blocking(move || private.list()).await?,
            None => Vec::new(),
        };
        let mut of_session = BTreeMap::<_, Vec<PrivateSession>>::new();
        for private in private {
            of_session.entry(private.login).or_default().push(private);
        }
        let rows = sessions.into_iter().map(|session| {
            let private = of_session.remove(&session.id).unwrap_or_default();
            SessionRow { session, private }
        });
        Ok(serde_json::to_value(rows.collect::<Vec<_>>())?)
    }

    async fn revoke(&self, filter: &SessionFilter, now: UnixTime) -> anyhow::Result<Value> {
        let revoked = self.sessions.revoke_by_administrator(filter, now).await?;
        for session in &revoked {
            self.events.emit(Event::new(Action::Revoke, true).session(session));
        }
        if let Some(private) = &self.private {
            let logins: Vec<_> = revoked.iter().map(|session| session.id).collect();
            private.end_logins(&logins, EndReason::Revoked).await?;
            let people: Vec<_> = revoked.iter().map(|session| session.person.clone()).collect();
            private.end_left(&people).await?;
        }
        let ids: Vec<_> = revoked.iter().map(|session| session.id).collect();
        let logins = self.store.saas_logins(ids.clone()).await?;
        let by_id: BTreeMap<_, _> = revoked.iter().map(|session| (session.id, session)).collect();
        let elsewhere: Vec<_> = logins
            .into_iter()
            .filter_map(|login| {
                let session = by_id.get(&login.session)?;
                Some(ElsewhereRow {
                    application: login.application,
                    session: Session::clone(session),
                    answers_over_at: login.answers_over_at.filter(|over_at| *over_at > now),
                })
            })
            .collect();
        Ok(json!({ "revoked": ids, "elsewhere": elsewhere }))
    }

    async fn events(
        &self,
        mut filter: EventFilter,
        follow: bool,
        replies: &mpsc::Sender<Reply>,
    ) -> anyhow::Result<Option<Value>> {
        loop {
            self.events.flush().await;
            let mut pages = tokio::select! {
                pages = self.store.events(filter.clone()) => pages?,
                () = replies.closed() => return Ok(None),
            };
            while let Some(page) = pages.next().await? {
                for (_, line) in page {
                    if replies.send(Reply::Ok(serde_json::from_str(&line)?)).await.is_err() {
                        return Ok(None);
                    }
                }
                if replies.is_closed() {
                    return Ok(None);
                }
            }
            filter.after = pages.through();
            if !follow {
                return Ok(None);
            }
            tokio::select! {
                () = tokio::time::sleep(FOLLOW_EVERY) => {}
                () = replies.closed() => return Ok(None),
            }
        }
    }
}

/// How many sessions a command has ended, of one that ends sessions.
pub fn ended_count(answer: &Value) -> Option<usize> {
    answer["revoked"].as_array().map(Vec::len)
}

/// The same in words: that it was none is worth a look.
pub fn ended_text(count: usize) -> String {
    match count {
        0 => "no session was live".to_owned(),
        1 => "1 session ended".to_owned(),
        count => format!("{count} sessions ended"),
    }
}

/// Hashes on a thread that may block: argon2id takes its time by design.
async fn hash(password: Password) -> anyhow::Result<String> {
    if password.0.expose().chars().count() < SHORTEST_PASSWORD {
        anyhow::bail!("the password is shorter than {SHORTEST_PASSWORD} characters");
    }
    Ok(tokio::task::spawn_blocking(move || password::hash(password.0.expose())).await??)
}

fn check_user_name(name: &str) -> anyhow::Result<()> {
    let good = !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.@".contains(&b));
    anyhow::ensure!(good, "`{name}` is no user name: use up to 64 lower-case letters, digits and `-_.@`");
    Ok(())
}

fn found(found: bool, kind: &str, name: &str) -> anyhow::Result<()> {
    anyhow::ensure!(found, "there is no {kind} `{name}`");
    Ok(())
}

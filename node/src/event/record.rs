//! One event. Its fields are public API: the JSON keys of the access log.

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::sent::Sent;
use crate::flow::{Application, Host, RayId, Reason, Service, Session, SessionId, UnixTime};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A login attempt, good or bad.
    Login,
    Logout,
    /// Somebody signed in at an application elsewhere with the node's word, or was refused.
    SignIn,
    /// A request to an application or a page of the node, decided.
    Request,
    /// A long-lived stream (WebSocket, event stream), a connector's connection or a private session ended.
    Disconnect,
    /// A connector or an access client connected, enrolled or was refused; a private session was decided.
    Connect,
    /// An SSH certificate was asked for.
    Certificate,
    /// A session was revoked.
    Revoke,
    /// An administrator changed something.
    Admin,
    /// The gate was attached, adopted or detached, or dropped a packet (sampled).
    Gate,
    /// Requests that were counted rather than written one by one.
    Summary,
    /// A bug: a task of the node panicked.
    Panic,
    Start,
    Stop,
}

impl Action {
    /// The public name, as in events and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Logout => "logout",
            Self::SignIn => "sign_in",
            Self::Request => "request",
            Self::Disconnect => "disconnect",
            Self::Connect => "connect",
            Self::Certificate => "certificate",
            Self::Revoke => "revoke",
            Self::Admin => "admin",
            Self::Gate => "gate",
            Self::Summary => "summary",
            Self::Panic => "panic",
            Self::Start => "start",
            Self::Stop => "stop",
        }
    }
}

/// One event, built up by the code that knows. Control characters in text from outside are escaped by the JSON
/// encoding, so one event is always one line.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    #[serde(serialize_with = "rfc3339")]
    created_at: UnixTime,
    action: Action,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_email: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity_provider: Option<String>,
    /// Name of the service token that was proven.
    #[serde(skip_serializing_if = "Option::is_none")]
    service_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_aud: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_domain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ray_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    /// Bytes of the reply's body.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// Bytes of IP packets that a private session has carried: from the client, from the connector.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_up: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_down: Option<u64>,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connector: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<SessionId>,
    /// What an application elsewhere was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    sent: Option<Sent>,
    /// How many requests a summary stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// Who is logged in, as events say it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Person {
    id: String,
    email: Option<String>,
    provider: Option<String>,
}

/// Text from outside is cut to this many characters in an event.
const LONGEST_TEXT: usize = 2048;
/// A name that somebody typed is cut to this many.
const LONGEST_NAME: usize = 64;

impl Event {
    pub fn new(action: Action, allowed: bool) -> Self {
        Self {
            created_at: crate::clock::now(),
            action,
            allowed,
            reason: None,
            user_email: None,
            user_id: None,
            identity_provider: None,
            service_token: None,
            app_name: None,
            app_aud: None,
            app_domain: None,
            policy: None,
            ip_address: None,
            ray_id: None,
            method: None,
            path: None,
            status: None,
            bytes: None,
            bytes_up: None,
            bytes_down: None,
            duration: None,
            connector: None,
            session_id: None,
            sent: None,
            count: None,
            detail: None,
        }
    }

    #[must_use]
    pub fn reason(mut self, reason: Reason) -> Self {
        self.reason = Some(reason);
        self
    }

    #[must_use]
    pub fn ray(mut self, ray: RayId) -> Self {
        self.ray_id = Some(ray.to_string());
        self
    }

    /// Which service asked.
    #[must_use]
    pub fn service(mut self, service: &Service) -> Self {
        self.service_token = Some(service.name.clone());
        self
    }

    /// Who: email, id, provider and session.
    #[must_use]
    pub fn session(mut self, session: &Session) -> Self {
        self.user_email = session.email.as_ref().map(|email| email.as_str().to_owned());
        self.user_id = Some(session.person.to_string());
        self.identity_provider = Some(session.person.provider.clone());
        self.session_id = Some(session.id);
        self
    }

    /// The application: name and audience.
    #[must_use]
    pub fn application(mut self, application: &Application) -> Self {
        self.app_name = Some(application.name.clone());
        self.app_aud = Some(application.aud.as_str().to_owned());
        self
    }

    /// The name of an application that somebody asked for and that is none.
    #[must_use]
    pub fn claimed_application(mut self, name: &str) -> Self {
        self.app_name = (!name.is_empty()).then(|| name.chars().take(LONGEST_NAME).collect());
        self
    }

    #[must_use]
    pub fn host(mut self, host: &Host) -> Self {
        self.app_domain = Some(host.as_str().to_owned());
        self
    }

    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Self {
        self.ip_address = Some(address);
        self
    }

    #[must_use]
    pub fn method(mut self, method: &http::Method) -> Self {
        self.method = Some(cut(method.as_str()));
        self
    }

    #[must_use]
    pub fn path(mut self, path: &str) -> Self {
        self.path = Some(cut(path));
        self
    }

    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    #[must_use]
    pub fn policy(mut self, policy: &str) -> Self {
        self.policy = Some(policy.to_owned());
        self
    }

    #[must_use]
    pub fn provider(mut self, provider: &str) -> Self {
        self.identity_provider = Some(cut(provider));
        self
    }

    #[must_use]
    pub fn connector(mut self, connector: &str) -> Self {
        self.connector = Some(cut(connector));
        self
    }

    /// The account named in an attempt that has no session.
    #[must_use]
    pub fn claimed_user(mut self, user: &str) -> Self {
        self.user_id = Some(user.chars().take(LONGEST_NAME).collect());
        self
    }

    #[must_use]
    pub fn sent(mut self, sent: Sent) -> Self {
        self.sent = Some(sent);
        self
    }

    #[must_use]
    pub fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// What a private session has carried: from the client, from the connector.
    #[must_use]
    pub fn relayed(mut self, up: u64, down: u64) -> Self {
        (self.bytes_up, self.bytes_down) = (Some(up), Some(down));
        self
    }

    #[must_use]
    pub fn duration(mut self, duration: Duration) -> Self {
        self.duration = Some(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        self
    }

    #[must_use]
    pub fn detail(mut self, detail: impl AsRef<str>) -> Self {
        self.detail = Some(cut(detail.as_ref()));
        self
    }

    #[must_use]
    pub(super) fn counted(mut self, count: u64) -> Self {
        self.count = Some(count);
        self
    }

    pub fn at(&self) -> UnixTime {
        self.created_at
    }

    pub fn action(&self) -> Action {
        self.action
    }

    pub fn is_allowed(&self) -> bool {
        self.allowed
    }

    /// Email, or the id where there is none, or the name of the service token.
    pub fn user(&self) -> Option<&str> {
        self.user_email.as_deref().or(self.user_id.as_deref()).or(self.service_token.as_deref())
    }

    pub fn application_name(&self) -> Option<&str> {
        self.app_name.as_deref()
    }

    pub fn refusal(&self) -> Option<Reason> {
        self.reason
    }

    pub fn provider_name(&self) -> Option<&str> {
        self.identity_provider.as_deref()
    }

    /// Whose it is, of an event that somebody who is logged in can make happen at will: everything but what an
    /// administrator does.
    pub(super) fn person(&self) -> Option<Person> {
        let theirs = match self.action {
            Action::Request
            | Action::Login
            | Action::Logout
            | Action::SignIn
            | Action::Connect
            | Action::Disconnect
            | Action::Certificate => self.session_id.is_some(),
            Action::Revoke
            | Action::Admin
            | Action::Gate
            | Action::Summary
            | Action::Panic
            | Action::Start
            | Action::Stop => false,
        };
        let id = self.user_id.clone().filter(|_| theirs)?;
        Some(Person { id, email: self.user_email.clone(), provider: self.identity_provider.clone() })
    }

    #[must_use]
    pub(super) fn of_person(mut self, person: Person) -> Self {
        self.user_id = Some(person.id);
        self.user_email = person.email;
        self.identity_provider = person.provider;
        self
    }

    /// The application, if it is one of the configuration.
    pub(super) fn known_application(&self) -> Option<&str> {
        self.app_name.as_deref().filter(|_| self.app_aud.is_some())
    }

    /// Whether a stranger can make it happen at will: a request of nobody in particular, a login, sign-in or
    /// logout that failed, a refused connector, a certificate for nobody.
    pub(super) fn is_of_a_stranger(&self) -> bool {
        match self.action {
            Action::Request => self.session_id.is_none() && self.service_token.is_none(),
            Action::Certificate => self.session_id.is_none(),
            Action::Login | Action::SignIn | Action::Logout => self.session_id.is_none() && !self.allowed,
            Action::Connect => self.session_id.is_none() && !self.allowed,
            _ => false,
        }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(LONGEST_TEXT).collect()
}

fn rfc3339<S: serde::Serializer>(at: &UnixTime, serializer: S) -> Result<S::Ok, S::Error> {
    let text = time::OffsetDateTime::from_unix_timestamp(at.0)
        .ok()
        .and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| at.0.to_string());
    serializer.serialize_str(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_it_holds() {
        let event = Event::new(Action::Login, false)
            .claimed_user("a\r\n{\"allowed\":true}")
            .reason(Reason::Throttled);
        let line = serde_json::to_string(&event).unwrap();
        assert!(!line.contains('\n') && !line.contains('\r'));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["reason"], "throttled");
        assert_eq!(value["allowed"], false);
        assert_eq!(value["user_id"], "a\r\n{\"allowed\":true}");
    }
}

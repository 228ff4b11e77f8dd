//! The commands of the admin socket: one JSON object a line in, one or more lines of [`Reply`] out.

use serde::{Deserialize, Serialize};

use crate::config::Secret;
use crate::flow::Email;
use crate::store::{EventFilter, SessionFilter};
use crate::tunnel::wire::Authority;

/// A line longer than this ends the connection.
pub const LONGEST_LINE: usize = 1 << 20;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Status,
    UserAdd {
        name: String,
        email: Email,
        groups: Vec<String>,
        password: Password,
    },
    UserList,
    UserPassword {
        name: String,
        password: Password,
    },
    UserRemove {
        name: String,
    },
    /// `nodes`: where the connector finds its nodes; empty means this node's own name.
    ConnectorCreate {
        name: String,
        nodes: Vec<Authority>,
    },
    ConnectorList,
    ConnectorRevoke {
        name: String,
    },
    /// `seconds`: how long the secret is good.
    ServiceTokenCreate {
        name: String,
        seconds: u64,
    },
    ServiceTokenList,
    ServiceTokenRotate {
        name: String,
        seconds: u64,
    },
    ServiceTokenRevoke {
        name: String,
    },
    SessionList {
        filter: SessionFilter,
    },
    SessionRevoke {
        filter: SessionFilter,
    },
    KeysList,
    KeysRotate {
        now: bool,
    },
    SamlKeysList,
    SamlKeysRotate {
        now: bool,
    },
    Events {
        filter: EventFilter,
        follow: bool,
    },
    Backup {
        file: std::path::PathBuf,
    },
    /// Drops are done for so long, unless confirmed.
    GateEnforce {
        seconds: u64,
    },
    GateConfirm,
    GateAudit,
    /// Sources of the drops sampled in the last so many seconds.
    GateTop {
        seconds: u64,
    },
}

impl Request {
    /// What an event says of the command: its name and what it is about, never a secret. Nothing where the command
    /// changes nothing.
    pub fn change(&self) -> Option<String> {
        match self {
            Self::UserAdd { name, .. } => Some(format!("user add {name}")),
            Self::UserPassword { name, .. } => Some(format!("user passwd {name}")),
            Self::UserRemove { name } => Some(format!("user remove {name}")),
            Self::ConnectorCreate { name, .. } => Some(format!("connector create {name}")),
            Self::ConnectorRevoke { name } => Some(format!("connector revoke {name}")),
            Self::ServiceTokenCreate { name, .. } => Some(format!("service-token create {name}")),
            Self::ServiceTokenRotate { name, .. } => Some(format!("service-token rotate {name}")),
            Self::ServiceTokenRevoke { name } => Some(format!("service-token revoke {name}")),
            Self::SessionRevoke { filter } => Some(format!("session revoke {filter:?}")),
            Self::KeysRotate { now: true } => Some("keys rotate --now".to_owned()),
            Self::KeysRotate { now: false } => Some("keys rotate".to_owned()),
            Self::SamlKeysRotate { now: true } => Some("saml rotate --now".to_owned()),
            Self::SamlKeysRotate { now: false } => Some("saml rotate".to_owned()),
            Self::Backup { file } => Some(format!("backup {}", file.display())),
            Self::GateEnforce { seconds } => Some(format!("gate enforce --confirm-within {seconds}s")),
            Self::GateConfirm => Some("gate confirm".to_owned()),
            Self::GateAudit => Some("gate audit".to_owned()),
            Self::GateTop { .. }
            | Self::Status
            | Self::UserList
            | Self::ConnectorList
            | Self::ServiceTokenList
            | Self::SessionList { .. }
            | Self::KeysList
            | Self::SamlKeysList
            | Self::Events { .. } => None,
        }
    }
}

/// A password on its way to be hashed. Silent in `Debug`.
#[derive(Clone)]
pub struct Password(pub Secret);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(…)")
    }
}

impl Serialize for Password {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose())
    }
}

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Secret::new(text)))
    }
}

/// One line of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The result; of a stream, one of many.
    Ok(serde_json::Value),
    /// The command failed and changed nothing, unless it says so.
    Error(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_survive_their_line_and_hide_their_password() {
        let request = Request::UserAdd {
            name: "ann".into(),
            email: "ann@example.com".parse().unwrap(),
            groups: vec!["ops".into()],
            password: Password(Secret::new("canary".into())),
        };
        assert!(!format!("{request:?}").contains("canary") && !request.change().unwrap().contains("canary"));
        let line = serde_json::to_string(&request).unwrap();
        let Request::UserAdd { password, .. } = serde_json::from_str(&line).unwrap() else {
            panic!("user add")
        };
        assert_eq!(password.0.expose(), "canary");
    }

    proptest! {
        #[test]
        fn no_line_panics(line: String) {
            let _ = serde_json::from_str::<Request>(&line);
        }
    }
}

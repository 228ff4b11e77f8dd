//! From an `Open` to what it leads to: the one decision of policy about a private session. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use crate::flow::{Application, Facts, Private, Reason, Session, Target, UnixTime};
use crate::policy::{Decision, Permit, PermitKind, PolicySet, decide};

use super::super::access_wire::Denial;
use super::super::grant::{Protocol, Reach};
use super::super::wire::{Authority, ConnectorName};

/// What a client asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) login: &'a Arc<Session>,
    /// From where it asks.
    pub(super) address: IpAddr,
    pub(super) application: &'a str,
    pub(super) destination: Option<&'a Authority>,
}

/// Policy allows it, and this is where it leads.
#[derive(Debug)]
pub(super) struct Allowed {
    pub(super) permit: Permit,
    pub(super) connector: ConnectorName,
    pub(super) protocol: Protocol,
    pub(super) reach: Reach,
}

/// There is no session: what the client reads, and what the log does.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) denial: Denial,
    pub(super) reason: Reason,
    pub(super) policy: Option<String>,
    pub(super) application: Option<Arc<Application>>,
}

impl Refused {
    pub(super) const fn new(denial: Denial, reason: Reason) -> Self {
        Self { denial, reason, policy: None, application: None }
    }

    pub(super) fn of(self, application: &Arc<Application>) -> Self {
        Self { application: Some(Arc::clone(application)), ..self }
    }
}

/// Decides about one session at `now`.
pub(super) fn permit(policies: &PolicySet, wanted: &Wanted<'_>, now: UnixTime) -> Result<Allowed, Refused> {
    let unknown = || Refused::new(Denial::NoApplication, Reason::NoApplication);
    let application = policies.application(wanted.application).ok_or_else(unknown)?;
    let facts = Facts {
        application,
        session: Some(wanted.login),
        service: None,
        address: wanted.address.to_canonical(),
    };
    let permit = match decide(policies, &facts, now) {
        Decision::Allow(permit) => permit,
        Decision::Login(_) => {
            return Err(Refused::new(Denial::LoginNeeded, Reason::NoSession).of(application));
        }
        Decision::Deny(denied) => {
            let denial = match denied.reason {
                Reason::ProviderNotAllowed | Reason::SessionEnded => Denial::LoginNeeded,
                _ => Denial::NotAllowed,
            };
            let refused = Refused::new(denial, denied.reason).of(application);
            return Err(Refused { policy: denied.policy, ..refused });
        }
    };
    let PermitKind::Private(private) = permit.kind() else { return Err(unknown()) };
    let private = private.kind();
    let reach = reach(private, wanted.destination)
        .ok_or_else(|| Refused::new(Denial::Destination, Reason::BadRequest).of(application))?;
    // A name that no connector can have is one that none is connected under.
    let connector = private
        .connector
        .parse()
        .map_err(|_| Refused::new(Denial::ConnectorGone, Reason::ConnectorGone).of(application))?;
    let protocol = if private.protocol.is_datagrams() { Protocol::Udp } else { Protocol::Tcp };
    Ok(Allowed { connector, protocol, reach, permit })
}

/// The one address that a session leads to: the application's, or the one of its network that the client names.
fn reach(private: &Private, destination: Option<&Authority>) -> Option<Reach> {
    match &private.target {
        Target::Single { host, port } => {
            Reach::Host(Authority::new(host, *port)).resolve(destination).map(Reach::Host)
        }
        Target::Network { prefix, ports } => {
            let ports = ports.ranges().iter().map(|range| (*range.start(), *range.end())).collect();
            Reach::Network { prefix: *prefix, ports }.resolve(destination).map(Reach::Host)
        }
    }
}

/// For the person: what it means, and what can be done.
pub(super) fn message(denial: Denial, application: &str) -> String {
    match denial {
        Denial::NoApplication => format!(
            "there is no private application `{application}` here: `portcullis access apps` lists yours"
        ),
        Denial::NotAllowed => format!("you are not allowed to reach `{application}`: ask who runs the node"),
        Denial::LoginNeeded => {
            format!("`{application}` asks for another login: log in again, with a provider that it accepts")
        }
        Denial::Destination => format!(
            "`{application}` does not reach that destination: name an address and a port that belong to it"
        ),
        Denial::ConnectorGone => {
            format!("the connector of `{application}` is not connected: try again when it is")
        }
        Denial::ConnectorOld => {
            format!("the connector of `{application}` is too old for private sessions: it has to be updated")
        }
        Denial::ConnectorDeclined => format!("the connector of `{application}` declined: try again"),
        Denial::TooManySessions => {
            format!("this login has as many sessions as it may: end one to reach `{application}`")
        }
        Denial::NodeFull => {
            format!("there is no room for a session with `{application}` now: try again later")
        }
        Denial::Gone => "that session is over: open a new one".to_owned(),
        Denial::Internal => format!("the node failed to open `{application}`: try again"),
    }
}

#[cfg(test)]
mod tests;

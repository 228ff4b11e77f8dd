//! The compiled set: which application answers for a host and path, and by which policies.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::flow::{Application, EncodedSlash, Host, Path};

use super::Policy;

/// Every application and policy of one configuration. Immutable: a reload makes a new one.
#[derive(Debug, Clone, Default)]
pub struct PolicySet {
    applications: BTreeMap<String, Arc<Application>>,
    policies: BTreeMap<String, Policy>,
}

impl PolicySet {
    /// Takes applications and policies with unique names; the configuration has checked that every name a
    /// application refers to exists (an unknown one allows nothing).
    pub fn new(applications: Vec<Application>, policies: Vec<Policy>) -> Self {
        Self {
            applications: applications.into_iter().map(|a| (a.name.clone(), Arc::new(a))).collect(),
            policies: policies.into_iter().map(|p| (p.name.clone(), p)).collect(),
        }
    }

    pub fn applications(&self) -> impl Iterator<Item = &Arc<Application>> {
        self.applications.values()
    }

    pub fn application(&self, name: &str) -> Option<&Arc<Application>> {
        self.applications.get(name)
    }

    pub fn policy(&self, name: &str) -> Option<&Policy> {
        self.policies.get(name)
    }

    /// Whether any application answers for `host`.
    pub fn has_host(&self, host: &Host) -> bool {
        self.applications().any(|application| application.answers_on(host))
    }

    /// Whether `%2F` may pass on `host`: every application on it says so.
    pub fn passes_encoded_slash(&self, host: &Host) -> bool {
        let mut on_host = self.applications().filter(|a| a.answers_on(host)).peekable();
        on_host.peek().is_some()
            && on_host.all(|a| a.encoded_slash() == EncodedSlash::Pass && a.path() == "/")
    }

    /// The application for a host and path: an exact host before a wildcard, then the longest path.
    pub fn route(&self, host: &Host, path: &Path) -> Option<&Arc<Application>> {
        self.on_host(host).filter(|a| a.holds(path)).max_by_key(|a| a.path().len())
    }

    /// Whether some origin would take the path for one of another application on the host. Such a path has two
    /// readings, and one policy for each.
    pub fn has_second_reading(&self, host: &Host, path: &Path) -> bool {
        if self.on_host(host).nth(1).is_none() {
            return false;
        }
        let Some(readings) = path.readings() else { return true };
        let routed = self.route(host, path).map(|a| &a.name);
        readings.iter().any(|reading| {
            let other = self.on_host(host).filter(|a| a.holds_loosely(reading));
            other.max_by_key(|a| a.path().len()).map(|a| &a.name) != routed
        })
    }

    /// The applications of the most specific pattern that matches the host.
    fn on_host<'a>(&'a self, host: &Host) -> impl Iterator<Item = &'a Arc<Application>> {
        let exact_host = self.applications().any(|a| a.address().is_some_and(|(own, _)| own == host));
        self.applications()
            .filter(move |a| a.address().is_some() == exact_host)
            .filter(move |a| a.answers_on(host))
    }
}

#[cfg(test)]
mod tests;

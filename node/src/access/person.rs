//! A profile as the person behind an access client: tokens from it, connectors' keys in it, news on standard error.
//!
//! Keys of connectors are in `connectors/`, one file for each application, so that no two processes write the same one
//! for different applications.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use crate::clock;
use crate::private_file;
use crate::token::hash_of_hex;
use crate::tunnel::KeyHash;
use crate::tunnel::access_wire::AccessToken;
use crate::tunnel::client::{Credentials, Fresh, Login, NoCredentials, Notice};

use super::api::plain;
use super::profile::Profile;

/// Whoever is logged in.
#[derive(Debug)]
pub(super) struct Person {
    profile: Profile,
}

impl Person {
    pub(super) const fn new(profile: Profile) -> Self {
        Self { profile }
    }

    async fn fresh(&self) -> Result<Credentials, NoCredentials> {
        let token = self.profile.access_token().await.map_err(|error| NoCredentials(error.to_string()))?;
        let node = self.profile.node().map_err(|error| NoCredentials(error.to_string()))?;
        let left = token.expires_at.0.saturating_sub(clock::now().0);
        Ok(Credentials {
            address: node.address,
            web: self.profile.web(),
            node: node.key,
            device: node.device,
            ticket: node.ticket,
            token: token
                .token
                .parse::<AccessToken>()
                .map_err(|error| NoCredentials(format!("the profile's token is {error}")))?,
            lifetime: Duration::from_secs(u64::try_from(left).unwrap_or(0)),
        })
    }

    /// The file of an application's connector. Names of applications are no file names.
    fn connector(&self, application: &str) -> PathBuf {
        let name = application.bytes().fold(String::new(), |mut name, byte| {
            // Writing to a string cannot fail.
            let _ = write!(name, "{byte:02x}");
            name
        });
        self.profile.directory().join("connectors").join(name)
    }
}

impl Login for Person {
    fn credentials(&self) -> Fresh<'_> {
        Box::pin(self.fresh())
    }

    fn remember(&self, application: &str, connector: KeyHash) -> Option<KeyHash> {
        let file = self.connector(application);
        let was = private_file::read(&file).ok().flatten();
        let was = was.and_then(|text| hash_of_hex(text.trim())).map(KeyHash::from_bytes);
        if was == Some(connector) {
            return None;
        }
        let kept = file
            .parent()
            .map_or(Ok(()), private_file::make_directory)
            .and_then(|()| private_file::replace(&file, connector.to_string().as_bytes()));
        if let Err(error) = kept {
            say(&format!("the key of the connector of {application} could not be kept: {error}"));
        }
        was
    }

    fn notify(&self, notice: Notice) {
        say(&notice.to_string());
    }
}

/// One line for the person. Standard output is the application's.
pub(super) fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "portcullis: {}", plain(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connectors_key_is_remembered_and_a_change_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let profile = Profile::prepare(directory.path(), "https://access.example.com", None).unwrap();
        let person = Person::new(profile);
        let (one, two) = (KeyHash::from_bytes([1; 32]), KeyHash::from_bytes([2; 32]));
        assert_eq!(person.remember("db", one), None);
        assert_eq!(person.remember("db", one), None);
        assert_eq!(person.remember("../db", two), None);
        assert_eq!(person.remember("db", two), Some(one));
        assert_eq!(person.remember("db", two), None);
    }
}

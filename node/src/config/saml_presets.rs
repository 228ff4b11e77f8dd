//! What well-known service providers want, by their own documentation: the entity ID where all their customers share one,
//! the name they know people by, and the attributes they read.

use crate::flow::{ClaimSource, SamlAttribute, SamlNameId, SamlSource};

/// What `preset` fills in where the configuration says nothing.
pub(super) struct Preset {
    pub(super) entity_id: Option<&'static str>,
    pub(super) name_id: SamlNameId,
    pub(super) attributes: Vec<SamlAttribute>,
}

const NAMES: &str = "atlassian, aws-iam-identity-center, github-enterprise, gitlab, google-workspace, grafana, salesforce, slack, zendesk";

pub(super) fn preset(name: &str) -> Result<Preset, String> {
    let of = |name: &str, source| SamlAttribute { name: name.to_owned(), source };
    let email = |name: &str| of(name, SamlSource::Of(ClaimSource::Email));
    let full_name = |name: &str| of(name, SamlSource::Of(ClaimSource::Name));
    let user_name = |name: &str| of(name, SamlSource::Of(ClaimSource::EmailLocalPart));
    let groups = |name: &str| of(name, SamlSource::Of(ClaimSource::Groups));
    let (entity_id, name_id, attributes) = match name {
        "atlassian" => {
            let id = "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/name";
            (None, SamlNameId::Email, vec![of(id, SamlSource::Id)])
        }
        "aws-iam-identity-center" | "salesforce" => (None, SamlNameId::Email, vec![]),
        "github-enterprise" => (
            None,
            SamlNameId::Persistent,
            vec![user_name("username"), full_name("full_name"), email("emails")],
        ),
        "gitlab" => (
            None,
            SamlNameId::Persistent,
            vec![email("email"), full_name("name"), user_name("username"), groups("groups")],
        ),
        "google-workspace" => (Some("google.com"), SamlNameId::Email, vec![]),
        "grafana" => (
            None,
            SamlNameId::Email,
            vec![email("mail"), email("login"), full_name("displayName"), groups("groups")],
        ),
        "slack" => (
            Some("https://slack.com"),
            SamlNameId::Persistent,
            vec![email("User.Email"), user_name("User.Username")],
        ),
        "zendesk" => (None, SamlNameId::Email, vec![full_name("name"), email("email")]),
        _ => return Err(format!("`{name}` is no preset: use {NAMES}")),
    };
    Ok(Preset { entity_id, name_id, attributes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_is_offered_is_a_preset() {
        for name in NAMES.split(", ") {
            assert!(preset(name).is_ok(), "{name}");
        }
        assert!(preset("x").is_err_and(|message| message.contains("slack")));
    }
}

//! From an assertion that was verified to a person. Pure.
//!
//! A false accept here is an email address that nobody verified, which is somebody else's access.

use crate::flow::{Email, PersonId};
use crate::identity::{Authenticated, Heard, ProviderLogin};
use crate::saml::{AC_MFA, AC_PASSWORD, AC_PASSWORD_TRANSPORT, Assertion, NAMEID_EMAIL, NAMEID_TRANSIENT};

/// Bytes of the longest subject and display name.
const TEXT_LIMIT: usize = 255;
/// Groups that are kept; a person in more is refused rather than cut off, since a policy may exclude by group.
const GROUP_LIMIT: usize = 1000;

/// What providers call an email address, unless the configuration says: a plain name, LDAP's, and Microsoft's.
const EMAIL: [&str; 5] = [
    "email",
    "mail",
    "emailAddress",
    "urn:oid:0.9.2342.19200300.100.1.3",
    "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/emailaddress",
];
/// The same of a name to show.
const NAME: [&str; 6] = [
    "displayName",
    "name",
    "cn",
    "urn:oid:2.16.840.1.113730.3.1.241",
    "urn:oid:2.5.4.3",
    "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/name",
];
const MULTIPLE: &str = "http://schemas.microsoft.com/claims/multipleauthn";

/// What the configuration says about the attributes of one provider.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttributeRules {
    /// Holds the person's stable identifier, in the place of the NameID.
    pub subject: Option<String>,
    pub email: Option<String>,
    pub name: Option<String>,
    pub groups: Option<String>,
    /// Domains whose addresses this provider speaks for. SAML has no word for a verified address, so outside of them no
    /// address is accepted.
    pub email_domains: Vec<String>,
}

impl AttributeRules {
    pub fn person(&self, provider: &str, assertion: &Assertion) -> Result<Authenticated, &'static str> {
        let values = |name: &str| {
            assertion.attributes.iter().find(|(found, _)| found == name).map(|(_, values)| values.as_slice())
        };
        let one = |name: &str| match values(name) {
            Some([value]) if !value.is_empty() => Some(value.as_str()),
            _ => None,
        };
        let of = |configured: &Option<String>, known: &[&str]| match configured {
            Some(name) => one(name).map(str::to_owned),
            None => known.iter().find_map(|name| one(name)).map(str::to_owned),
        };
        let name_id = &assertion.name_id;
        let subject = match &self.subject {
            Some(name) => {
                one(name).ok_or("the attribute of the subject is missing, or there more than once")?
            }
            None if name_id.format == NAMEID_TRANSIENT => {
                return Err("the NameID is transient: set `name_id` or `subject_attribute`");
            }
            None => name_id.value.as_str(),
        };
        if subject.is_empty() || subject.len() > TEXT_LIMIT || subject.chars().any(char::is_control) {
            return Err("the subject is empty or too long");
        }
        let by_name = (name_id.format == NAMEID_EMAIL && self.email.is_none()).then(|| name_id.value.clone());
        let email = of(&self.email, &EMAIL).or(by_name).and_then(|text| self.email(&text));
        let display_name = of(&self.name, &NAME)
            .filter(|name| name.len() <= TEXT_LIMIT)
            .or_else(|| email.as_ref().map(|email| email.as_str().to_owned()))
            .unwrap_or_else(|| subject.to_owned());
        let groups = match &self.groups {
            Some(name) => values(name).unwrap_or_default().to_vec(),
            None => Vec::new(),
        };
        if groups.len() > GROUP_LIMIT {
            return Err("the person is in more than 1000 groups");
        }
        Ok(Authenticated {
            authenticated_at: Some(assertion.authenticated_at),
            person: PersonId { provider: provider.to_owned(), subject: subject.to_owned() },
            email,
            display_name,
            groups,
            amr: methods(assertion.context.as_deref()),
            ends_at: assertion.session_ends_at,
            at_provider: Some(Heard {
                login: ProviderLogin {
                    name_id: name_id.clone(),
                    session_index: assertion.session_index.clone(),
                },
                at: assertion.issued_at,
            }),
        })
    }

    fn email(&self, text: &str) -> Option<Email> {
        let email: Email = text.parse().ok()?;
        let own = self.email_domains.iter().any(|domain| domain.eq_ignore_ascii_case(email.domain()));
        own.then_some(email)
    }
}

/// What a class of authentication context says in the words of RFC 8176.
fn methods(context: Option<&str>) -> Vec<String> {
    match context {
        Some(AC_PASSWORD | AC_PASSWORD_TRANSPORT) => vec!["pwd".to_owned()],
        Some(AC_MFA | MULTIPLE) => vec!["mfa".to_owned()],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::UnixTime;
    use crate::saml::{NAMEID_PERSISTENT, NAMEID_UNSPECIFIED, NameId};

    fn assertion(format: &str, name: &str, attributes: &[(&str, &[&str])]) -> Assertion {
        Assertion {
            id: "_1".into(),
            in_response_to: None,
            name_id: NameId::new(format, name),
            attributes: attributes
                .iter()
                .map(|(name, values)| ((*name).to_owned(), values.iter().map(|v| (*v).to_owned()).collect()))
                .collect(),
            issued_at: UnixTime(0),
            authenticated_at: UnixTime(0),
            session_index: Some("_s".into()),
            session_ends_at: None,
            context: Some(AC_MFA.into()),
            over_at: UnixTime(0),
        }
    }

    fn rules() -> AttributeRules {
        AttributeRules {
            groups: Some("roles".into()),
            email_domains: vec!["corp.example".into()],
            ..AttributeRules::default()
        }
    }

    fn email_of(assertion: &Assertion) -> Option<String> {
        rules().person("adfs", assertion).unwrap().email.map(String::from)
    }

    #[test]
    fn a_login_is_as_old_as_its_answer_by_the_providers_own_clock() {
        for issued in [100, 130] {
            let assertion =
                Assertion { issued_at: UnixTime(issued), ..assertion(NAMEID_PERSISTENT, "ann", &[]) };
            let person = rules().person("adfs", &assertion).unwrap();
            assert_eq!(person.at_provider.unwrap().at, UnixTime(issued));
        }
    }

    #[test]
    fn an_address_counts_inside_the_providers_domains_only() {
        for (address, expected) in [
            ("Ann@Corp.Example", Some("ann@corp.example")),
            ("ann@other.example", None),
            ("ann@xcorp.example", None),
            ("ann@corp.example.evil.test", None),
            ("ann@evil@corp.example", None),
            ("ann\u{ff20}corp.example", None),
        ] {
            let by_attribute = assertion(NAMEID_PERSISTENT, "7", &[("mail", &[address])]);
            assert_eq!(email_of(&by_attribute).as_deref(), expected, "{address}");
            let by_name = assertion(NAMEID_EMAIL, address, &[]);
            assert_eq!(email_of(&by_name).as_deref(), expected, "{address}");
        }
        let ann = ["ann@corp.example"];
        let none = AttributeRules::default();
        assert_eq!(none.person("adfs", &assertion(NAMEID_EMAIL, ann[0], &[])).unwrap().email, None);
        for (what, said) in [
            (
                "two",
                assertion(NAMEID_PERSISTENT, "7", &[("mail", &["ann@corp.example", "bob@corp.example"])]),
            ),
            ("a name that is no address", assertion(NAMEID_UNSPECIFIED, ann[0], &[])),
            ("an attribute nobody asked for", assertion(NAMEID_PERSISTENT, "7", &[("boss", &ann)])),
        ] {
            assert_eq!(email_of(&said), None, "{what}");
        }
        let chosen = AttributeRules { email: Some("boss".into()), ..rules() };
        let said =
            assertion(NAMEID_EMAIL, "eve@corp.example", &[("mail", &["eve@corp.example"]), ("boss", &ann)]);
        assert_eq!(chosen.person("adfs", &said).unwrap().email.unwrap().as_str(), ann[0]);
        let said = assertion(NAMEID_EMAIL, "eve@corp.example", &[]);
        assert_eq!(chosen.person("adfs", &said).unwrap().email, None, "no other in its place");
    }

    #[test]
    fn a_person_is_known_by_what_stays() {
        let person = rules().person("adfs", &assertion(NAMEID_PERSISTENT, "7", &[("roles", &["a", "b"])]));
        let person = person.unwrap();
        assert_eq!((person.person.to_string().as_str(), person.groups.len()), ("adfs:7", 2));
        assert_eq!((person.display_name.as_str(), person.amr), ("7", vec!["mfa".to_owned()]));
        let transient = assertion(NAMEID_TRANSIENT, "x", &[("uid", &["ann"]), ("two", &["a", "b"])]);
        assert!(rules().person("adfs", &transient).is_err());
        let by = |name: &str| AttributeRules { subject: Some(name.to_owned()), ..rules() };
        assert_eq!(by("uid").person("adfs", &transient).unwrap().person.subject, "ann");
        for missing in ["two", "none"] {
            assert!(by(missing).person("adfs", &transient).is_err(), "{missing}");
        }
        let long = "x".repeat(256);
        assert!(rules().person("adfs", &assertion(NAMEID_PERSISTENT, &long, &[])).is_err());
        let many: Vec<&str> = vec!["g"; 1001];
        assert!(rules().person("adfs", &assertion(NAMEID_PERSISTENT, "7", &[("roles", &many)])).is_err());
    }
}

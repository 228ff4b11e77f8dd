//! From the claims of a verified ID token (and userinfo) to a person. Pure.
//!
//! A false accept here is an email address that nobody verified, which is somebody else's access.

use serde_json::{Map, Value};

use crate::flow::{Email, PersonId, UnixTime};
use crate::identity::Authenticated;

/// Bytes of the longest subject (OpenID Connect Core §2) and of every other text that is kept.
const TEXT_LIMIT: usize = 255;
/// Groups that are kept; a person in more is refused rather than cut off, since a policy may exclude by group.
const GROUP_LIMIT: usize = 1000;

/// What the configuration says about the claims of one provider.
#[derive(Debug, Clone, Default)]
pub struct ClaimRules {
    pub groups_claim: Option<String>,
    /// Domains whose addresses this provider speaks for. With any, an absent `email_verified` is accepted inside
    /// them and no address is accepted outside them.
    pub email_domains: Vec<String>,
}

impl ClaimRules {
    /// Whether the ID token leaves something out that userinfo may know.
    pub fn want_userinfo(&self, id_token: &Map<String, Value>) -> bool {
        !id_token.contains_key("email")
            || self.groups_claim.as_ref().is_some_and(|name| !id_token.contains_key(name))
    }

    /// The person that the merged claims describe. Claims of the ID token win over userinfo, whose `sub` must be
    /// the same (OpenID Connect Core §5.3.2).
    pub fn person(
        &self,
        provider: &str,
        id_token: &Map<String, Value>,
        userinfo: Option<&Map<String, Value>>,
    ) -> Result<Authenticated, &'static str> {
        let subject = match id_token.get("sub") {
            Some(Value::String(subject)) if is_text(subject) => subject,
            _ => return Err("the subject is missing, empty, too long or has control characters"),
        };
        if userinfo.is_some_and(|claims| claims.get("sub").and_then(Value::as_str) != Some(subject)) {
            return Err("userinfo is about another subject");
        }
        let claim = |name: &str| id_token.get(name).or_else(|| userinfo.and_then(|claims| claims.get(name)));
        let text = |name: &str| claim(name).and_then(Value::as_str).filter(|text| is_text(text));
        // The address and the word about it come from the same document, or one could vouch for the other's.
        let about_email = match userinfo {
            Some(userinfo) if !id_token.contains_key("email") => userinfo,
            _ => id_token,
        };
        let email = self.email(about_email);
        let groups = match &self.groups_claim {
            Some(name) => groups(claim(name))?,
            None => Vec::new(),
        };
        let display_name = text("name")
            .or_else(|| text("preferred_username"))
            .or(email.as_ref().map(Email::as_str))
            .unwrap_or(subject)
            .to_owned();
        let amr = match id_token.get("amr") {
            Some(Value::Array(methods)) => methods
                .iter()
                .filter_map(Value::as_str)
                .filter(|method| is_text(method))
                .take(16)
                .map(str::to_owned)
                .collect(),
            _ => Vec::new(),
        };
        let authenticated_at = match id_token.get("auth_time") {
            None | Some(Value::Null) => None,
            Some(time) => Some(seconds(time).ok_or("auth_time is no time")?),
        };
        Ok(Authenticated {
            authenticated_at,
            person: PersonId { provider: provider.to_owned(), subject: subject.clone() },
            email,
            display_name,
            groups,
            amr,
            ends_at: None,
            at_provider: None,
        })
    }

    /// The address, if the provider vouches for it. Only the JSON value `true` counts as verified.
    fn email(&self, claims: &Map<String, Value>) -> Option<Email> {
        let email: Email = claims.get("email")?.as_str()?.parse().ok()?;
        let own = self.email_domains.iter().any(|domain| domain.eq_ignore_ascii_case(email.domain()));
        let accepted = match claims.get("email_verified") {
            Some(Value::Bool(true)) => own || self.email_domains.is_empty(),
            None => own,
            Some(_) => false,
        };
        accepted.then_some(email)
    }
}

/// A JSON number of seconds (RFC 7519 §2, NumericDate), of which some providers give fractions.
fn seconds(time: &Value) -> Option<UnixTime> {
    let whole = || {
        let floor = time.as_f64()?.floor();
        // Beyond, a number says no second any more.
        (floor.abs() < 9e15).then(|| floor.to_string().parse().ok())?
    };
    time.as_i64().or_else(whole).map(UnixTime)
}

/// Whether a text is one that is kept. It is shown in terminals, which take some characters for commands.
fn is_text(text: &str) -> bool {
    !text.is_empty() && text.len() <= TEXT_LIMIT && !text.chars().any(char::is_control)
}

/// Group names: a list, or one name alone as some providers send it.
fn groups(claim: Option<&Value>) -> Result<Vec<String>, &'static str> {
    let group = |value: &Value| match value.as_str() {
        Some(name) if !name.chars().any(char::is_control) => Ok(name.to_owned()),
        Some(_) => Err("a group has control characters"),
        None => Err("a group is not a text"),
    };
    match claim {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(name @ Value::String(_)) => Ok(vec![group(name)?]),
        Some(Value::Array(groups)) if groups.len() <= GROUP_LIMIT => groups.iter().map(group).collect(),
        Some(Value::Array(_)) => Err("the person is in more than 1000 groups"),
        Some(_) => Err("the groups claim is neither a list nor a text"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn email_of(domains: &[&str], claims: Value) -> Option<String> {
        let rules = ClaimRules {
            email_domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
            ..ClaimRules::default()
        };
        let mut claims = map(claims);
        claims.insert("sub".into(), json!("7"));
        rules.person("okta", &claims, None).unwrap().email.map(String::from)
    }

    #[test]
    fn only_a_true_email_verified_counts() {
        assert_eq!(
            email_of(&[], json!({"email": "A@b.c", "email_verified": true})).as_deref(),
            Some("a@b.c")
        );
        for other in
            [json!(false), json!("true"), json!("false"), json!(1), json!(null), json!([true]), json!({})]
        {
            for domains in [&[][..], &["b.c"][..]] {
                assert_eq!(
                    email_of(domains, json!({"email": "a@b.c", "email_verified": other})),
                    None,
                    "{other} {domains:?}"
                );
            }
        }
    }

    #[test]
    fn an_absent_email_verified_counts_only_inside_the_providers_domains() {
        assert_eq!(email_of(&[], json!({"email": "a@b.c"})), None);
        assert_eq!(email_of(&["B.C"], json!({"email": "a@b.c"})).as_deref(), Some("a@b.c"));
        for outside in ["a@xb.c", "a@sub.b.c", "a@b.c.d", "a@evil@b.c", "a\u{ff20}b.c"] {
            assert_eq!(email_of(&["b.c"], json!({"email": outside})), None, "{outside}");
        }
        assert_eq!(email_of(&["b.c"], json!({"email": "a@other.d", "email_verified": true})), None);
    }

    #[test]
    fn userinfo_fills_in_and_never_replaces() {
        let rules = ClaimRules { groups_claim: Some("roles".into()), email_domains: vec![] };
        let id_token = map(json!({"sub": "7", "name": "Ann"}));
        assert!(rules.want_userinfo(&id_token));
        let userinfo = map(json!({
            "sub": "7", "name": "Eve", "email": "ann@b.c", "email_verified": true, "roles": ["ops", "dev"]
        }));
        let person = rules.person("okta", &id_token, Some(&userinfo)).unwrap();
        assert_eq!(person.display_name, "Ann");
        assert_eq!(person.email.unwrap().as_str(), "ann@b.c");
        assert_eq!(person.groups, ["ops", "dev"]);

        let other = map(json!({"sub": "8", "email": "eve@b.c", "email_verified": true}));
        assert!(rules.person("okta", &id_token, Some(&other)).is_err());
        assert!(rules.person("okta", &id_token, Some(&map(json!({"email": "eve@b.c"})))).is_err());
    }

    #[test]
    fn one_document_cannot_vouch_for_the_address_of_another() {
        let rules = ClaimRules::default();
        let id_token = map(json!({"sub": "7", "email": "ceo@b.c"}));
        let userinfo = map(json!({"sub": "7", "email_verified": true}));
        assert_eq!(rules.person("okta", &id_token, Some(&userinfo)).unwrap().email, None);
    }

    #[test]
    fn malformed_people_are_refused() {
        let rules = ClaimRules { groups_claim: Some("groups".into()), email_domains: vec![] };
        for claims in [
            json!({}),
            json!({"sub": ""}),
            json!({"sub": 7}),
            json!({"sub": "7", "auth_time": "1795924800"}),
            json!({"sub": "7", "auth_time": 1e300}),
            json!({"sub": "x".repeat(256)}),
            json!({"sub": "7\n"}),
            json!({"sub": "7\u{1b}[2J"}),
            json!({"sub": "7\u{9b}2J"}),
            json!({"sub": "7", "groups": ["ops\u{1b}]52;"]}),
            json!({"sub": "7", "groups": "ops\r"}),
            json!({"sub": "7", "groups": 7}),
            json!({"sub": "7", "groups": ["ops", 7]}),
            json!({"sub": "7", "groups": vec!["g"; 1001]}),
        ] {
            assert!(rules.person("okta", &map(claims.clone()), None).is_err(), "{claims}");
        }
        let named = rules.person(
            "okta",
            &map(json!({"sub": "7", "name": "A\u{1b}[2J", "amr": ["pwd", "m\n"]})),
            None,
        );
        let named = named.unwrap();
        assert_eq!((named.display_name.as_str(), named.amr), ("7", vec!["pwd".to_owned()]));
        let at = |claims| rules.person("okta", &map(claims), None).unwrap().authenticated_at;
        assert_eq!(at(json!({"sub": "7"})), None);
        assert_eq!(at(json!({"sub": "7", "auth_time": 1_795_924_800})), Some(UnixTime(1_795_924_800)));
        assert_eq!(at(json!({"sub": "7", "auth_time": 1_795_924_800.75})), Some(UnixTime(1_795_924_800)));
        let alone = rules.person("okta", &map(json!({"sub": "7", "groups": "ops"})), None).unwrap();
        assert_eq!((alone.groups, alone.display_name.as_str()), (vec!["ops".to_owned()], "7"));
    }
}

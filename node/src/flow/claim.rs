//! What applications elsewhere are told of a person: where a value comes from and what is made of it.

use regex::{Regex, RegexBuilder};

use super::Session;

/// Bytes of the longest pattern and of the longest replacement.
const LONGEST: usize = 256;
/// Bytes that a compiled pattern may take.
const COMPILED: usize = 256 * 1024;
const NESTING: u32 = 16;

/// Where the value of a claim or attribute comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimSource {
    Email,
    /// What is before the `@`.
    EmailLocalPart,
    Name,
    /// Every group, as a list.
    Groups,
    /// The groups that begin with a text.
    GroupsWith(String),
    /// Name of the identity provider.
    IdentityProvider,
    /// The identity provider's own identifier of the person.
    Subject,
    Constant(String),
    Made(Box<Made>),
}

/// Values that are made of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    pub from: ClaimSource,
    /// First, keeps what it matches and rewrites it.
    pub pattern: Option<Pattern>,
    /// Then, this goes between the values, of which one is left.
    pub join: Option<String>,
}

impl ClaimSource {
    /// What there is of it in a login; nothing where there is none.
    pub fn values(&self, session: &Session) -> Vec<String> {
        let email = session.email.as_ref().map(|email| email.as_str().to_owned());
        match self {
            Self::Email => email.into_iter().collect(),
            Self::EmailLocalPart => email
                .iter()
                .filter_map(|email| email.rsplit_once('@'))
                .map(|(local, _)| local.to_owned())
                .collect(),
            Self::Name => vec![session.display_name.clone()],
            Self::Groups => session.groups.clone(),
            Self::GroupsWith(start) => {
                session.groups.iter().filter(|group| group.starts_with(start)).cloned().collect()
            }
            Self::IdentityProvider => vec![session.person.provider.clone()],
            Self::Subject => vec![session.person.subject.clone()],
            Self::Constant(text) => vec![text.clone()],
            Self::Made(made) => {
                let mut values = made.from.values(session);
                if let Some(pattern) = &made.pattern {
                    values = values.iter().filter_map(|value| pattern.apply(value)).collect();
                }
                match &made.join {
                    Some(between) if !values.is_empty() => vec![values.join(between)],
                    Some(_) | None => values,
                }
            }
        }
    }

    /// Whether there may be several values, so that it says nothing of who somebody is.
    pub fn is_list(&self) -> bool {
        match self {
            Self::Groups | Self::GroupsWith(_) => true,
            Self::Made(made) => made.join.is_none() && made.from.is_list(),
            Self::Email
            | Self::EmailLocalPart
            | Self::Name
            | Self::IdentityProvider
            | Self::Subject
            | Self::Constant(_) => false,
        }
    }

    /// Whether a value of it can tell people apart.
    pub fn is_personal(&self) -> bool {
        match self {
            Self::Email | Self::EmailLocalPart | Self::Name | Self::Subject => true,
            Self::Groups | Self::GroupsWith(_) | Self::IdentityProvider | Self::Constant(_) => false,
            Self::Made(made) => made.from.is_personal(),
        }
    }
}

/// A regular expression that a value has to match as a whole, and what then stands in its place. Matching takes time in
/// proportion to the value, whatever the pattern.
#[derive(Debug, Clone)]
pub struct Pattern {
    regex: Regex,
    replace: Option<String>,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        (self.regex.as_str(), &self.replace) == (other.regex.as_str(), &other.replace)
    }
}

impl Eq for Pattern {}

impl Pattern {
    /// `replace` may name groups of the pattern: `$1`, `${name}`. Without it the value stays as it is.
    pub fn new(pattern: &str, replace: Option<String>) -> Result<Self, String> {
        if pattern.len().max(replace.as_ref().map_or(0, String::len)) > LONGEST {
            return Err(format!("a pattern and what it is replaced with have at most {LONGEST} bytes"));
        }
        let compile = |text: &str| {
            RegexBuilder::new(text).size_limit(COMPILED).dfa_size_limit(COMPILED).nest_limit(NESTING).build()
        };
        // On its own first: `a)|(b` would take the anchors apart.
        compile(pattern)
            .and_then(|_| compile(&format!("\\A(?:{pattern})\\z")))
            .map(|regex| Self { regex, replace })
            .map_err(|error| format!("`{pattern}` is no pattern: {error}"))
    }

    fn apply(&self, value: &str) -> Option<String> {
        let captures = self.regex.captures(value)?;
        let Some(replace) = &self.replace else { return Some(value.to_owned()) };
        let mut made = String::new();
        captures.expand(replace, &mut made);
        Some(made).filter(|made| !made.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{PersonId, SessionId, UnixTime};

    fn ann() -> Session {
        Session {
            id: SessionId::from_bytes([1; 16]),
            person: PersonId { provider: "okta".into(), subject: "ann".into() },
            is_local: None,
            email: Some("ann@example.com".parse().unwrap()),
            display_name: "Ann".into(),
            groups: vec!["git-admin".into(), "hr".into(), "git-dev".into()],
            amr: vec![],
            address: [127, 0, 0, 1].into(),
            authenticated_at: None,
            created_at: UnixTime(0),
            expires_at: UnixTime(1000),
        }
    }

    fn made(from: ClaimSource, pattern: Option<(&str, Option<&str>)>, join: Option<&str>) -> ClaimSource {
        let pattern = pattern.map(|(text, replace)| Pattern::new(text, replace.map(str::to_owned)).unwrap());
        ClaimSource::Made(Box::new(Made { from, pattern, join: join.map(str::to_owned) }))
    }

    #[test]
    fn values_are_filtered_rewritten_and_joined() {
        use ClaimSource::{Constant, Email, Groups, GroupsWith};
        for (source, expected, list) in [
            (made(Groups, None, Some(";")), &["git-admin;hr;git-dev"][..], false),
            (made(Groups, Some(("git-(.*)", Some("$1"))), None), &["admin", "dev"], true),
            (made(Groups, Some(("git-(?<what>.*)", Some("${what}s"))), Some(" ")), &["admins devs"], false),
            (made(Groups, Some(("git", None)), None), &[], true),
            (made(Groups, Some(("hr|h", None)), None), &["hr"], true),
            (made(Groups, Some(("x", None)), Some(",")), &[], false),
            (made(GroupsWith("git-".into()), Some((".*", None)), Some("+")), &["git-admin+git-dev"], false),
            (made(Email, Some(("(.*)@example[.]com", Some("$1@corp"))), None), &["ann@corp"], false),
            (made(Email, Some(("(.*)@example", Some("$1@corp"))), None), &[], false),
            (made(Email, Some((".*", Some("$9"))), None), &[], false),
            (made(Constant("a".into()), Some(("a", Some("$$1"))), None), &["$1"], false),
        ] {
            assert_eq!(source.values(&ann()), expected, "{source:?}");
            assert_eq!(source.is_list(), list, "{source:?}");
        }
        assert!(made(Email, None, Some(",")).is_personal() && !made(Groups, None, Some(",")).is_personal());
    }

    #[test]
    fn patterns_are_whole_and_bounded() {
        for bad in ["a)|(b", "(", "a{9999}{9999}", "\\w{500}{50}", &"x".repeat(LONGEST + 1), &"(".repeat(40)]
        {
            assert!(Pattern::new(bad, None).is_err(), "{bad}");
        }
        assert!(Pattern::new("a", Some("x".repeat(LONGEST + 1))).is_err());
        let either = Pattern::new("a|b", None).unwrap();
        assert_eq!(
            ["a", "b", "ab", "xa", "bx", "a\n"].map(|value| either.apply(value).is_some()),
            [true, true, false, false, false, false]
        );
        let lines = Pattern::new("(?m)^a$", None).unwrap();
        assert_eq!(lines.apply("a\nb"), None);
        // What costs others minutes.
        assert_eq!(Pattern::new("(a*)*b", None).unwrap().apply(&"a".repeat(20_000)), None);
    }
}

//! What a service provider is told of a person.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::flow::{ClaimSource, SamlNameId, SamlService, SamlSource, Session};
use crate::saml::{
    AC_MFA, AC_PASSWORD, AC_PASSWORD_TRANSPORT, AC_UNSPECIFIED, ATTRNAME_BASIC, ATTRNAME_URI, Comparison,
    NAMEID_EMAIL, NAMEID_PERSISTENT, NAMEID_TRANSIENT, NAMEID_UNSPECIFIED, NameId, Refusal, Statement,
    identifier,
};

/// What was asked, after the checks: where the answer goes and what it has to meet.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The request's ID, unless nobody asked.
    pub id: Option<&'a str>,
    /// A consumer service of the configuration.
    pub consumer: &'a str,
    pub name_id_format: Option<&'a str>,
    pub contexts: Option<&'a (Comparison, Vec<String>)>,
}

/// Why no assertion was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotIssued {
    /// The permit is nobody's: a bypass, or a service.
    #[error("there is nobody to sign in")]
    Nobody,
    #[error("the login has no value that the application knows people by")]
    NoName,
    #[error("the request cannot be met: {0:?}")]
    Refused(Refusal),
    #[error("signing failed")]
    Internal,
}

/// How strong a login was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Index into [`CLASSES`].
    rank: usize,
    /// Whether a password was part of it.
    password: bool,
}

/// Authentication context classes that the node tells apart, the weakest first.
const CLASSES: [&str; 4] = [AC_UNSPECIFIED, AC_PASSWORD, AC_PASSWORD_TRANSPORT, AC_MFA];

impl Context {
    /// By the methods of the login (RFC 8176).
    pub fn of(session: &Session) -> Self {
        let has = |method: &str| session.amr.iter().any(|found| found == method);
        let password = has("pwd");
        let rank = match (has("mfa"), password) {
            (true, _) => 3,
            (false, true) => 2,
            (false, false) => 0,
        };
        Self { rank, password }
    }

    /// The class to name in the assertion, if the login meets what was asked (SAML core §3.3.2.2.1).
    pub fn meeting(self, asked: Option<&(Comparison, Vec<String>)>) -> Option<&'static str> {
        let Self { rank, password } = self;
        let own = CLASSES.get(rank).copied()?;
        let Some((comparison, classes)) = asked else { return Some(own) };
        let known = classes.iter().filter_map(|class| CLASSES.iter().position(|known| known == class));
        match comparison {
            // A password and more is a password too: the class that was asked for is named.
            Comparison::Exact => known
                .filter(|asked| *asked == rank || *asked == 0 || (password && *asked <= 2))
                .max()
                .and_then(|asked| CLASSES.get(asked).copied()),
            Comparison::Minimum => known.min().filter(|asked| *asked <= rank).map(|_| own),
            Comparison::Maximum => known.max().filter(|asked| *asked >= rank).map(|_| own),
            Comparison::Better => known.max().filter(|asked| *asked < rank).map(|_| own),
        }
    }
}

/// The format that a service provider gets unless it asks for another.
pub(super) fn format(name_id: Option<&SamlNameId>) -> &'static str {
    match name_id {
        None | Some(SamlNameId::Email) => NAMEID_EMAIL,
        Some(SamlNameId::Persistent) => NAMEID_PERSISTENT,
        Some(SamlNameId::Transient) => NAMEID_TRANSIENT,
        Some(SamlNameId::Of(_)) => NAMEID_UNSPECIFIED,
    }
}

/// The name that the application knows the person by. What the configuration says is not up to the request.
pub(super) fn name_id(
    service: &SamlService,
    session: &Session,
    asked: Option<&str>,
    secret: &[u8],
    random: &dyn Fn(&mut [u8]),
) -> Result<NameId, NotIssued> {
    let refused = NotIssued::Refused(Refusal::InvalidNameIdPolicy);
    let asked = asked.filter(|format| *format != NAMEID_UNSPECIFIED);
    let kind = match (&service.name_id, asked) {
        (Some(configured), None) => configured.clone(),
        (Some(configured), Some(asked)) if asked == format(Some(configured)) => configured.clone(),
        (Some(_), Some(_)) => return Err(refused),
        (None, None | Some(NAMEID_EMAIL)) => SamlNameId::Email,
        (None, Some(NAMEID_PERSISTENT)) => SamlNameId::Persistent,
        (None, Some(NAMEID_TRANSIENT)) => SamlNameId::Transient,
        (None, Some(_)) => return Err(refused),
    };
    let (format, value) = match kind {
        SamlNameId::Email => (NAMEID_EMAIL, first(&ClaimSource::Email, session)),
        SamlNameId::Persistent => (NAMEID_PERSISTENT, Some(persistent(service, session, secret))),
        SamlNameId::Transient => (NAMEID_TRANSIENT, Some(identifier(random))),
        SamlNameId::Of(source) => (NAMEID_UNSPECIFIED, first(&source, session)),
    };
    let value = value.filter(|value| !value.is_empty()).ok_or(NotIssued::NoName)?;
    Ok(NameId::new(format, value))
}

pub(super) fn attributes(service: &SamlService, session: &Session, secret: &[u8]) -> Vec<Statement> {
    service
        .attributes
        .iter()
        .map(|attribute| {
            let values = match &attribute.source {
                SamlSource::Id => vec![persistent(service, session, secret)],
                SamlSource::Of(source) => source.values(session),
            };
            let format = if attribute.name.contains(':') { ATTRNAME_URI } else { ATTRNAME_BASIC };
            Statement { name: attribute.name.clone(), format: format.to_owned(), values }
        })
        // An attribute without a value says something else than none (SAML core §2.7.3.1).
        .filter(|statement| !statement.values.is_empty())
        .collect()
}

fn persistent(service: &SamlService, session: &Session, secret: &[u8]) -> String {
    pairwise(secret, &service.entity_id, &session.person.to_string())
}

/// A stable name that tells nothing, another one for each entity.
pub(super) fn pairwise(secret: &[u8], entity_id: &str, of: &str) -> String {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
    context.update(entity_id.as_bytes());
    context.update(&[0]);
    context.update(of.as_bytes());
    format!("_{}", URL_SAFE_NO_PAD.encode(context.sign()))
}

fn first(source: &ClaimSource, session: &Session) -> Option<String> {
    source.values(session).into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{PersonId, SamlAttribute, SessionId, UnixTime};

    fn session(amr: &[&str]) -> Session {
        Session {
            id: SessionId::from_bytes([1; 16]),
            person: PersonId { provider: "okta".into(), subject: "ann".into() },
            is_local: None,
            email: Some("ann@example.com".parse().unwrap()),
            display_name: "Ann".into(),
            groups: vec!["git-admin".into(), "hr".into()],
            amr: amr.iter().map(|&method| method.to_owned()).collect(),
            address: [127, 0, 0, 1].into(),
            authenticated_at: None,
            created_at: UnixTime(0),
            expires_at: UnixTime(1000),
        }
    }

    fn service(entity_id: &str, name_id: Option<SamlNameId>, attributes: Vec<SamlAttribute>) -> SamlService {
        SamlService {
            name: "crm".into(),
            entity_id: entity_id.into(),
            consumers: vec![],
            certificates: vec![],
            encrypt_to: None,
            require_signed: false,
            name_id,
            attributes,
            relay_state: None,
            logout: crate::flow::SamlLogout::default(),
        }
    }

    #[test]
    fn contexts_come_from_the_login() {
        use Comparison::{Better, Exact, Maximum, Minimum};
        for (amr, comparison, asked, expected) in [
            (&["pwd"][..], Exact, &[AC_PASSWORD_TRANSPORT][..], Some(AC_PASSWORD_TRANSPORT)),
            (&["pwd"], Exact, &[AC_PASSWORD], Some(AC_PASSWORD)),
            (&["pwd"], Exact, &[AC_MFA], None),
            (&["pwd"], Exact, &[AC_MFA, AC_PASSWORD], Some(AC_PASSWORD)),
            (&["pwd"], Exact, &["urn:x"], None),
            (&["pwd", "otp", "mfa"], Exact, &[AC_PASSWORD_TRANSPORT], Some(AC_PASSWORD_TRANSPORT)),
            (&["hwk", "mfa"], Exact, &[AC_PASSWORD_TRANSPORT], None),
            (&["hwk", "mfa"], Minimum, &[AC_PASSWORD_TRANSPORT], Some(AC_MFA)),
            (&["pwd"], Minimum, &[AC_MFA], None),
            (&[], Minimum, &[AC_PASSWORD], None),
            (&[], Maximum, &[AC_PASSWORD], Some(AC_UNSPECIFIED)),
            (&["mfa"], Maximum, &[AC_PASSWORD], None),
            (&["mfa"], Better, &[AC_PASSWORD], Some(AC_MFA)),
            (&["pwd"], Better, &[AC_PASSWORD_TRANSPORT], None),
            (&["pwd"], Better, &["urn:x"], None),
        ] {
            let classes = asked.iter().map(|&class| class.to_owned()).collect();
            let found = Context::of(&session(amr)).meeting(Some(&(comparison, classes)));
            assert_eq!(found, expected, "{amr:?} {comparison:?} {asked:?}");
        }
        assert_eq!(Context::of(&session(&[])).meeting(None), Some(AC_UNSPECIFIED));
    }

    #[test]
    fn names_are_those_of_the_configuration_or_as_asked() {
        let name = |configured: Option<SamlNameId>, asked, person: &Session, entity: &str| {
            name_id(&service(entity, configured, vec![]), person, asked, &[7; 32], &crate::clock::fill)
        };
        let ann = session(&[]);
        let email = |asked| name(None, asked, &ann, "a").map(|id| id.value);
        assert_eq!(email(None).as_deref(), Ok("ann@example.com"));
        assert_eq!(email(Some(NAMEID_UNSPECIFIED)).as_deref(), Ok("ann@example.com"));
        let refused = NotIssued::Refused(Refusal::InvalidNameIdPolicy);
        assert_eq!(email(Some("urn:x")), Err(refused));
        assert_eq!(name(Some(SamlNameId::Persistent), Some(NAMEID_EMAIL), &ann, "a").err(), Some(refused));

        let persistent =
            |person: &Session, entity| name(None, Some(NAMEID_PERSISTENT), person, entity).unwrap().value;
        assert_eq!(persistent(&ann, "a"), persistent(&ann, "a"));
        assert_ne!(persistent(&ann, "a"), persistent(&ann, "b"), "applications cannot compare notes");
        let other = PersonId { provider: "local".into(), subject: "ann".into() };
        assert_ne!(persistent(&ann, "a"), persistent(&Session { person: other, ..ann.clone() }, "a"));
        let transient = || name(Some(SamlNameId::Transient), None, &ann, "a").unwrap().value;
        assert_ne!(transient(), transient());

        let nobody = Session { email: None, ..ann.clone() };
        assert_eq!(name(None, None, &nobody, "a"), Err(NotIssued::NoName));
        let local = name(Some(SamlNameId::Of(ClaimSource::EmailLocalPart)), None, &ann, "a").unwrap();
        assert_eq!((local.format.as_str(), local.value.as_str()), (NAMEID_UNSPECIFIED, "ann"));
    }

    #[test]
    fn attributes_come_from_their_sources_and_empty_ones_are_left_out() {
        let attribute =
            |name: &str, source| SamlAttribute { name: name.into(), source: SamlSource::Of(source) };
        let all = vec![
            SamlAttribute { name: "id".into(), source: SamlSource::Id },
            attribute("urn:role", ClaimSource::GroupsWith("git-".into())),
            attribute("none", ClaimSource::GroupsWith("x".into())),
            attribute("tenant", ClaimSource::Constant("acme".into())),
            attribute("sub", ClaimSource::Subject),
            attribute("by", ClaimSource::IdentityProvider),
        ];
        let found = attributes(&service("a", None, all), &session(&[]), &[7; 32]);
        let told: Vec<_> = found.iter().map(|one| (one.name.as_str(), one.values.join(" "))).collect();
        let id = persistent(&service("a", None, vec![]), &session(&[]), &[7; 32]);
        let expected = [
            ("id", id.as_str()),
            ("urn:role", "git-admin"),
            ("tenant", "acme"),
            ("sub", "ann"),
            ("by", "okta"),
        ];
        assert_eq!(told, expected.map(|(name, value)| (name, value.to_owned())));
        assert_eq!((found[0].format.as_str(), found[1].format.as_str()), (ATTRNAME_BASIC, ATTRNAME_URI));
    }
}

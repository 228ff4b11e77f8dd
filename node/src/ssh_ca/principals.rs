//! Which UNIX users a person may be.

use crate::flow::{Email, SshSettings};

use super::system_accounts::is_system_account;

/// Bytes of the longest name that `useradd` takes.
const LONGEST: usize = 32;

/// The UNIX users that `settings` open to a person with this verified address: those that are named for everybody, and
/// the one that is called like the local part of the address, where its domain is listed exactly, the name is one that a
/// user can have, and it is no system account. What is no name as it stands (`ann+tag`) gives none, rather than another.
pub fn principals(settings: &SshSettings, email: Option<&Email>) -> Vec<String> {
    let own = email
        .filter(|email| settings.email_user_domains.iter().any(|domain| domain == email.domain()))
        .and_then(|email| email.as_str().split_once('@'))
        .map(|(local, _)| local)
        .filter(|local| is_user_name(local) && !is_system_account(local));
    let mut principals: Vec<String> = Vec::new();
    for user in settings.users.iter().map(String::as_str).chain(own) {
        if !principals.iter().any(|known| known == user) {
            principals.push(user.to_owned());
        }
    }
    principals
}

/// Lower case, since addresses are: a letter first, then letters, digits, `_`, `-` and `.`.
fn is_user_name(text: &str) -> bool {
    text.len() <= LONGEST
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(users: &[&str], domains: &[&str], email: Option<&str>) -> Vec<String> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let settings = SshSettings { users: owned(users), email_user_domains: owned(domains) };
        let email = email.map(|email| email.parse::<Email>().unwrap());
        principals(&settings, email.as_ref())
    }

    #[test]
    fn an_address_names_its_user_only_where_its_domain_is_listed() {
        let corp = &["corp.example"][..];
        for (domains, email, expected) in [
            (corp, "ann@corp.example", Some("ann")),
            (corp, "Ann.Lee@CORP.example", Some("ann.lee")),
            (corp, "ann_l-2@corp.example", Some("ann_l-2")),
            (&["other.example", "corp.example"], "ann@corp.example", Some("ann")),
            (&[], "ann@corp.example", None),
            (corp, "ann@evilcorp.example", None),
            (corp, "ann@corp.example.evil.test", None),
            (corp, "ann@sub.corp.example", None),
            (corp, "ann+root@corp.example", None),
            (corp, "*@corp.example", None),
            (corp, "ann*@corp.example", None),
            (corp, "-oproxy@corp.example", None),
            (corp, ".ssh@corp.example", None),
            (corp, "1000@corp.example", None),
            (corp, "a/../root@corp.example", None),
            (corp, "abcdefghijklmnopqrstuvwxyz0123456789@corp.example", None),
        ] {
            assert_eq!(of(&[], domains, Some(email)).first().map(String::as_str), expected, "{email}");
        }
        assert_eq!(of(&[], corp, None), [""; 0]);
    }

    #[test]
    fn a_system_account_is_nobodys_unless_it_is_named() {
        for account in [
            "root",
            "daemon",
            "bin",
            "nobody",
            "sshd",
            "www-data",
            "postgres",
            "systemd-network",
            "admin",
            "ubuntu",
            "ec2-user",
            "toor",
            "_apt",
            "messagebus",
            "polkitd",
            "wheel",
            "sudo",
        ] {
            let email = format!("{account}@corp.example");
            assert_eq!(of(&[], &["corp.example"], Some(&email)), [""; 0], "{account}");
            let upper = format!("{}@corp.example", account.to_uppercase());
            assert_eq!(of(&[], &["corp.example"], Some(&upper)), [""; 0], "{upper}");
            assert_eq!(of(&[account], &["corp.example"], Some(&email)), [account], "{account} is named");
        }
    }

    #[test]
    fn named_users_are_everybodys_and_come_once() {
        assert_eq!(of(&["deploy", "root"], &[], None), ["deploy", "root"]);
        assert_eq!(of(&["deploy", "ann"], &["corp.example"], Some("ann@corp.example")), ["deploy", "ann"]);
        assert_eq!(of(&["deploy"], &["corp.example"], Some("ann@corp.example")), ["deploy", "ann"]);
        assert_eq!(of(&["deploy"], &["corp.example"], Some("ann@else.example")), ["deploy"]);
        assert_eq!(of(&[], &[], Some("ann@corp.example")), [""; 0]);
    }
}

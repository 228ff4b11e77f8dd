//! Passwords of local users: argon2id in the PHC string format.

use std::sync::LazyLock;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};

use crate::clock;

/// Bytes of the longest password.
pub const LIMIT: usize = 1024;

/// Characters of the shortest password that can be set (NIST SP 800-63B §5.1.1.1).
pub const MINIMUM: usize = 8;

/// OWASP's argon2id parameters: 19 MiB, two passes, one lane; about 30 ms of one core.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    #[error("the password is shorter than {MINIMUM} characters")]
    TooShort,
    #[error("the password is longer than {LIMIT} bytes")]
    TooLong,
    #[error("the password could not be hashed")]
    Hash,
}

/// Hashes a new password with a fresh salt, for the store.
pub fn hash(password: &str) -> Result<String, PasswordError> {
    if password.chars().count() < MINIMUM {
        return Err(PasswordError::TooShort);
    }
    if password.len() > LIMIT {
        return Err(PasswordError::TooLong);
    }
    hash_any(password.as_bytes())
}

/// Whether `password` is the one behind `hash`. Takes as long as hashing does, whatever the answer; a malformed hash
/// matches nothing.
pub fn verify(password: &str, hash: &str) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else { return false };
    Argon2::default().verify_password(password.as_bytes(), &hash).is_ok()
}

/// A hash of the same cost that no password matches: unknown users are verified against it, so that they take as
/// long as known ones.
pub fn decoy() -> &'static str {
    static DECOY: LazyLock<String> = LazyLock::new(|| hash_any(&clock::random::<32>()).unwrap_or_default());
    &DECOY
}

fn hash_any(password: &[u8]) -> Result<String, PasswordError> {
    let parameters = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|_| PasswordError::Hash)?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters);
    let hash: PasswordHash =
        argon2.hash_password_with_salt(password, &clock::random::<16>()).map_err(|_| PasswordError::Hash)?;
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_matches_its_password_only() {
        let first = hash("correct horse").unwrap();
        assert!(first.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{first}");
        assert_ne!(first, hash("correct horse").unwrap(), "salted");
        assert!(verify("correct horse", &first));
        for wrong in ["correct hors", "correct horse ", "", "Correct horse"] {
            assert!(!verify(wrong, &first), "{wrong}");
        }
        assert!(!verify("correct horse", "not a hash"));
        assert!(!verify("", ""));
    }

    #[test]
    fn the_decoy_costs_the_same_and_matches_nothing() {
        let costs = |hash: &str| hash.split('$').take(4).collect::<Vec<_>>().join("$");
        assert_eq!(costs(decoy()), costs(&hash("correct horse").unwrap()));
        assert!(!verify("", decoy()));
    }

    #[test]
    fn lengths_are_bounded() {
        assert_eq!(hash("short"), Err(PasswordError::TooShort));
        assert_eq!(hash(&"a".repeat(LIMIT + 1)), Err(PasswordError::TooLong));
    }
}

//! Services: programs that prove who they are with a service token instead of logging in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::UnixTime;

/// A service whose credential was proven by the request at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The name of its service token, as policies and events have it.
    pub name: String,
    pub client_id: ServiceId,
    pub expires_at: UnixTime,
}

/// The public half of a service token: 16 random bytes, shown as 32 lower-case hexadecimal digits and `.access`. Not
/// a secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceId([u8; 16]);

/// The text is no client id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a client id: expected 32 lower-case hexadecimal digits and `.access`")]
pub struct ServiceIdError;

const SUFFIX: &str = ".access";

impl ServiceId {
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(SUFFIX)
    }
}

impl fmt::Debug for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceId({self})")
    }
}

impl FromStr for ServiceId {
    type Err = ServiceIdError;

    fn from_str(text: &str) -> Result<Self, ServiceIdError> {
        let digits = text.strip_suffix(SUFFIX).ok_or(ServiceIdError)?;
        let lower = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if digits.len() != 32 || !lower {
            return Err(ServiceIdError);
        }
        u128::from_str_radix(digits, 16).map(|bits| Self(bits.to_be_bytes())).map_err(|_| ServiceIdError)
    }
}

impl TryFrom<String> for ServiceId {
    type Error = ServiceIdError;

    fn try_from(text: String) -> Result<Self, ServiceIdError> {
        text.parse()
    }
}

impl From<ServiceId> for String {
    fn from(id: ServiceId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_client_id_survives_its_text(bytes: [u8; 16]) {
            let id = ServiceId::from_bytes(bytes);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn one_id_has_one_text(text in "[0-9a-fA-F+]{30,34}(\\.access)?") {
            if let Ok(id) = text.parse::<ServiceId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}

//! Identifiers and time, all made from arguments.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// Names one request or login attempt in replies, the log and the origin's headers: 8 random bytes, shown as 16
/// lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RayId([u8; 8]);

impl RayId {
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for RayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RayId({self})")
    }
}

/// Names one login (a global session): 16 random bytes, shown in base64url without padding. Not a credential: what
/// proves a session is a signed token together with its binding cookie.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId([u8; 16]);

/// Names one login of an access client, from its confirmation to its end: 16 random bytes, shown as a [`SessionId`] is.
/// Not a credential either.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId([u8; 16]);

/// The text is not 22 characters of base64url.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a session id: expected 22 characters of base64url")]
pub struct SessionIdError;

/// Text and serde forms of 16 random bytes.
macro_rules! random_id {
    ($name:ident) => {
        impl $name {
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = SessionIdError;

            fn from_str(text: &str) -> Result<Self, SessionIdError> {
                let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| SessionIdError)?;
                Ok(Self(bytes.try_into().map_err(|_| SessionIdError)?))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

random_id!(SessionId);
random_id!(ClientId);

/// Seconds since 1970-01-01T00:00:00Z, as in a JWT `NumericDate` (RFC 7519 §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixTime(pub i64);

impl UnixTime {
    /// The clocks of others may differ from ours by this much.
    pub const SKEW: Duration = Duration::from_secs(60);

    /// Later by `duration`, in whole seconds, saturating.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)))
    }

    /// Earlier by `duration`, in whole seconds, saturating.
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)))
    }

    /// The time from `earlier` to `self`, zero where `earlier` is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn session_ids_survive_their_text(bytes: [u8; 16]) {
            let id = SessionId::from_bytes(bytes);
            prop_assert_eq!(id.to_string().parse::<SessionId>(), Ok(id));
        }

        #[test]
        fn no_text_panics_the_parser(text: String) {
            let _ = text.parse::<SessionId>();
        }
    }

    #[test]
    fn a_ray_is_sixteen_digits() {
        assert_eq!(RayId::from_bytes([0, 1, 2, 3, 4, 5, 6, 255]).to_string(), "00010203040506ff");
    }

    #[test]
    fn time_saturates() {
        assert_eq!(UnixTime(i64::MAX).after(Duration::from_secs(1)), UnixTime(i64::MAX));
        assert_eq!(UnixTime(5).since(UnixTime(9)), Duration::ZERO);
    }
}

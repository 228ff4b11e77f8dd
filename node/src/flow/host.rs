//! Host names, canonicalised once.
//!
//! A false accept here would let one application's policy answer for another's host; a false reject is a 400.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Serialize;

/// A host name as policy and origin see it: lower-case ASCII labels (RFC 1123 §2.1) without port or trailing dot, or
/// an IP literal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Host(String);

/// Why a text is no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("the host is empty")]
    Empty,
    #[error("the host is longer than 253 characters")]
    TooLong,
    #[error("a label of the host is empty, longer than 63 characters or begins or ends with a hyphen")]
    Label,
    #[error("the host has a character that is not a letter, a digit, a hyphen or a dot")]
    Character,
    #[error("the port of the host is not a number from 1 to 65535")]
    Port,
    #[error("the IPv6 literal of the host is malformed")]
    Literal,
}

impl Host {
    /// Parses a bare host: `App.Example.com.` and `app.example.com` are the same host.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        if let Some(literal) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let address: Ipv6Addr = literal.parse().map_err(|_| HostError::Literal)?;
            return Ok(Self(format!("[{address}]")));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(HostError::Empty);
        }
        if name.len() > 253 {
            return Err(HostError::TooLong);
        }
        for label in name.split('.') {
            if label.is_empty() || label.len() > 63 || label.starts_with('-') || label.ends_with('-') {
                return Err(HostError::Label);
            }
            if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
                return Err(HostError::Character);
            }
        }
        // `0x7f.1` and `127.1` have a second reading as an address in some resolvers; a last label of digits is
        // therefore only good as a full dotted quad.
        let numeric = name.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
        if numeric && name.parse::<Ipv4Addr>().is_err() {
            return Err(HostError::Label);
        }
        Ok(Self(name.to_ascii_lowercase()))
    }

    /// Parses the authority of a request (RFC 9110 §7.2): a host and, optionally, a port.
    pub fn parse_authority(text: &str) -> Result<(Self, Option<u16>), HostError> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (text, None),
        };
        let port = match port {
            None => None,
            Some(port) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
                Some(port.parse().ok().filter(|port| *port != 0).ok_or(HostError::Port)?)
            }
            Some(_) => return Err(HostError::Port),
        };
        Ok((Self::parse(host)?, port))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spellings_of_one_host_are_one_host() {
        for text in ["app.example.com", "APP.Example.com", "app.example.com."] {
            assert_eq!(Host::parse(text).unwrap().as_str(), "app.example.com");
        }
        assert_eq!(Host::parse_authority("[::1]:8443").unwrap().1, Some(8443));
        assert_eq!(Host::parse_authority("[0:0::1]").unwrap().0.as_str(), "[::1]");
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in [
            "",
            ".",
            "a..b",
            "-a.b",
            "a-.b",
            "a_b",
            "a b",
            "a/b",
            "a@b",
            "ａ.example",
            "127.1",
            "0x7f.1",
            "[::1",
            "[zz]",
            "a:b:c",
        ] {
            assert!(Host::parse(text).is_err(), "{text}");
        }
        for text in ["a:", "a:0", "a:65536", "a:+1", "a:8a"] {
            assert!(Host::parse_authority(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_is_idempotent_and_total(text in ".{0,80}") {
            if let Ok(host) = Host::parse(&text) {
                prop_assert_eq!(Host::parse(host.as_str()), Ok(host.clone()));
            }
            let _ = Host::parse_authority(&text);
        }
    }
}

//! Request paths, canonicalised once: policy and origin see the same text.
//!
//! Whatever two programs could read differently (dot segments, encoded separators, parameters behind dots, empty
//! segments, broken escapes) is refused, because the node cannot know how the origin reads it. A false accept is a
//! way around a path's policy; a false reject is a 400 that names the cause.

use std::fmt;

use serde::Serialize;

/// The path of a request: begins with `/`, escapes in upper case and only where RFC 3986 §2.3 needs them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Path(String);

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    #[error("the path is longer than 8192 bytes")]
    TooLong,
    #[error("the path has a percent sign that is not followed by two hexadecimal digits")]
    Escape,
    #[error("the path has an encoded slash")]
    EncodedSlash,
    #[error(
        "the path has a backslash, a control character, a fragment or another byte that no path may have"
    )]
    Character,
    #[error("the path has a dot segment")]
    DotSegment,
    #[error("the path has an empty segment")]
    EmptySegment,
}

impl Path {
    /// Bytes of a path that are accepted at most.
    pub const LIMIT: usize = 8192;

    /// Canonicalises the path of a request target. `encoded_slash` says whether `%2F` is passed on (as `%2F`).
    pub fn parse(raw: &str, encoded_slash: bool) -> Result<Self, PathError> {
        if raw.len() > Self::LIMIT {
            return Err(PathError::TooLong);
        }
        if !raw.starts_with('/') {
            return Err(PathError::NotAbsolute);
        }
        let mut canonical = String::with_capacity(raw.len());
        let mut bytes = raw.bytes();
        while let Some(byte) = bytes.next() {
            match byte {
                b'%' => {
                    let high = bytes.next().and_then(hex).ok_or(PathError::Escape)?;
                    let low = bytes.next().and_then(hex).ok_or(PathError::Escape)?;
                    push_decoded(&mut canonical, high << 4 | low, encoded_slash)?;
                }
                b'/' => canonical.push('/'),
                _ if is_path_byte(byte) => canonical.push(char::from(byte)),
                _ => return Err(PathError::Character),
            }
        }
        let mut segments = canonical.split('/').skip(1).peekable();
        while let Some(segment) = segments.next() {
            // A segment `..;x=1` is a dot segment to servers that strip parameters first, and `;x=1` an empty one; at
            // the end of a path, where it moves nothing, it is how some applications carry a session.
            if name(segment).is_empty() && segments.peek().is_some() {
                return Err(PathError::EmptySegment);
            }
            // `%2F` is kept encoded but its pieces must not be dots either.
            for piece in segment.split("%2F") {
                let name = name(piece);
                if name == "." || name == ".." {
                    return Err(PathError::DotSegment);
                }
            }
        }
        Ok(Self(canonical))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the path is `prefix` or lies below it; `prefix` is a canonical path, `/` covers everything.
    pub fn is_under(&self, prefix: &Path) -> bool {
        let prefix = prefix.0.trim_end_matches('/');
        match self.0.strip_prefix(prefix) {
            Some(rest) => rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A segment without its parameters, also for servers that decode before they look for them.
fn name(segment: &str) -> &str {
    let bare = segment.split(';').next().unwrap_or(segment);
    bare.split("%3B").next().unwrap_or(bare)
}

/// Appends a percent-decoded byte: bare where it is unreserved, escaped where it is data, refused where it has a
/// second reading.
fn push_decoded(canonical: &mut String, byte: u8, encoded_slash: bool) -> Result<(), PathError> {
    match byte {
        b'/' if encoded_slash => canonical.push_str("%2F"),
        b'/' => return Err(PathError::EncodedSlash),
        b'\\' | 0..=0x1f | 0x7f => return Err(PathError::Character),
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            canonical.push(char::from(byte))
        }
        _ => {
            canonical.push('%');
            for digit in [byte >> 4, byte & 15] {
                canonical.push(char::from(if digit < 10 { b'0' + digit } else { b'A' + digit - 10 }));
            }
        }
    }
    Ok(())
}

/// `pchar` of RFC 3986 §3.3 without the percent sign, and the few others that browsers send bare.
fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@|[]^".contains(&byte)
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(raw: &str) -> Result<String, PathError> {
        Path::parse(raw, false).map(|path| path.0)
    }

    #[test]
    fn one_reading_only() {
        assert_eq!(canonical("/%61dmin").unwrap(), "/admin");
        assert_eq!(canonical("/a%c3%a9").unwrap(), "/a%C3%A9");
        assert_eq!(canonical("/a/").unwrap(), "/a/");
        assert_eq!(canonical("/a%252e").unwrap(), "/a%252e");
        assert_eq!(canonical("/a/;jsessionid=1").unwrap(), "/a/;jsessionid=1");
        for (raw, error) in [
            ("/user/..;x=1/admin", PathError::DotSegment),
            ("/user/..%3bx=1/admin", PathError::DotSegment),
            ("/%2e%3B/admin", PathError::DotSegment),
            ("/;/admin", PathError::EmptySegment),
            ("/;x=1/a", PathError::EmptySegment),
            ("/%3b/a", PathError::EmptySegment),
            ("/a/;/b", PathError::EmptySegment),
            ("/a/;;/", PathError::EmptySegment),
            ("/a/%2e%2e%2fb", PathError::EncodedSlash),
            ("/a/%2e%2e/b", PathError::DotSegment),
            ("/a/./b", PathError::DotSegment),
            ("/a%2Fb", PathError::EncodedSlash),
            ("/%zz", PathError::Escape),
            ("/%2", PathError::Escape),
            ("/a%00", PathError::Character),
            ("/a\\b", PathError::Character),
            ("/a%5cb", PathError::Character),
            ("/a#b", PathError::Character),
            ("//a", PathError::EmptySegment),
            ("*", PathError::NotAbsolute),
        ] {
            assert_eq!(canonical(raw), Err(error), "{raw}");
        }
    }

    #[test]
    fn an_encoded_slash_passes_only_where_it_is_allowed() {
        assert_eq!(Path::parse("/a%2fb", true).unwrap().as_str(), "/a%2Fb");
        assert_eq!(Path::parse("/a/..%2fb", true), Err(PathError::DotSegment));
    }

    #[test]
    fn prefixes_match_whole_segments() {
        let prefix = Path::parse("/pub", false).unwrap();
        for (path, under) in [("/pub", true), ("/pub/x", true), ("/public", false), ("/", false)] {
            assert_eq!(Path::parse(path, false).unwrap().is_under(&prefix), under, "{path}");
        }
        assert!(Path::parse("/x", false).unwrap().is_under(&Path::parse("/", false).unwrap()));
    }

    proptest! {
        #[test]
        fn canonical_paths_stay_as_they_are(raw in "/[ -~]{0,40}", slash: bool) {
            if let Ok(path) = Path::parse(&raw, slash) {
                prop_assert_eq!(Path::parse(path.as_str(), slash), Ok(path.clone()));
                prop_assert!(!path.as_str().split('/').any(|segment| segment == ".." || segment == "."));
            }
        }

        #[test]
        fn no_text_panics_the_parser(raw: String, slash: bool) {
            let _ = Path::parse(&raw, slash);
        }
    }
}

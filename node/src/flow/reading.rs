//! What a lenient server may make of a path, where several applications share a host by path.
//!
//! The path that policy saw is the one that the origin gets, but not every server stops there: one strips parameters
//! (`/admin;x=1`), another ignores case, drops what is empty then, decodes once more, trims blanks and dots, or takes
//! what follows a colon for a stream's name. Two applications with one policy each must not both be meant:
//!
//! 1. every server reads some of [`Path::readings`], each of them as lenient as a server may be;
//! 2. a path that has a reading in which dots or control characters appear is refused, wherever it may lead;
//! 3. policy compares the application of each reading with the one that it has routed to.
//!
//! A false accept lets one application's policy answer for another; a false reject is a 400 that names the cause, on
//! hosts that applications share.

use std::borrow::Cow;

use super::Path;

/// How often a server may decode a path, the once that is right included.
const DECODINGS: usize = 3;

/// More than applications' paths have. Of two longer ones, what is the same so far counts as the same.
const SEGMENTS: usize = 64;

/// The first [`SEGMENTS`] of a path in the most lenient comparison: no parameters, no case, nothing that is empty without
/// them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading(Vec<String>);

impl Path {
    /// Everything that a lenient server may read in the path; `None` where that cannot be told.
    pub fn readings(&self) -> Option<Vec<Reading>> {
        let mut found = Vec::new();
        read(self.as_str().as_bytes(), DECODINGS, &mut found)?;
        Some(found)
    }
}

impl Reading {
    /// Whether it is `prefix` or lies below it.
    pub fn is_under(&self, prefix: &Self) -> bool {
        self.0.starts_with(&prefix.0)
    }
}

/// Adds the reading of `text` and of all that up to `decodings` more decodings make of it.
fn read(text: &[u8], decodings: usize, found: &mut Vec<Reading>) -> Option<()> {
    found.push(reading(text)?);
    let Some(decoded) = decode(text) else { return Some(()) };
    let left = decodings.checked_sub(1)?;
    read(&decoded, left, found)?;
    // Parameters go before the decoding or after it: an encoded slash in one ends it only in the latter case.
    let bare = text.split(|byte| *byte == b'/').map(name).collect::<Vec<_>>().join(&b'/');
    match decode(&bare) {
        Some(other) if other != decoded => read(&other, left, found),
        _ => Some(()),
    }
}

fn reading(text: &[u8]) -> Option<Reading> {
    let separates = |byte: u8| byte.is_ascii_control() || byte == b'\\';
    if text.iter().any(|byte| separates(*byte)) || text.windows(2).any(is_overlong) {
        return None;
    }
    let mut segments = Vec::new();
    for segment in text.split(|byte| *byte == b'/') {
        let name = String::from_utf8_lossy(name(segment));
        let name = name.split(':').next().unwrap_or_default().trim();
        let kept = name.trim_end_matches(|c: char| c == '.' || c.is_whitespace());
        match (name.is_empty(), kept.is_empty()) {
            (true, _) => {}
            (false, true) => return None,
            (false, false) if segments.len() < SEGMENTS => segments.push(folded(kept)),
            (false, false) => {}
        }
    }
    Some(Reading(segments))
}

/// A segment without its parameters.
fn name(segment: &[u8]) -> &[u8] {
    segment.split(|byte| *byte == b';').next().unwrap_or(segment)
}

/// Letters that any comparison takes for the same: some raise both to upper case, some lower both.
fn folded(name: &str) -> String {
    name.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

/// A longer form of a shorter character (RFC 3629 §3), by which old decoders smuggle dots and slashes.
fn is_overlong(pair: &[u8]) -> bool {
    matches!(pair, [0xc0 | 0xc1, 0x80..=0xbf] | [0xe0, 0x80..=0x9f] | [0xf0, 0x80..=0x8f])
}

/// The text decoded once, if there is anything to decode.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    match percent_encoding::percent_decode(text).into() {
        Cow::Owned(decoded) => Some(decoded),
        Cow::Borrowed(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(path: &str) -> Option<Reading> {
        let found = Path::parse(path, false).unwrap().readings()?;
        found.into_iter().next()
    }

    #[test]
    fn a_long_path_costs_no_more_than_its_beginning_and_its_end_counts_too() {
        let long = "/a".repeat(4_000);
        let of_long = first(&long).unwrap();
        assert_eq!(of_long.0.len(), SEGMENTS);
        assert!(of_long.is_under(&first("/A/a").unwrap()) && !of_long.is_under(&first("/a/b").unwrap()));
        assert!(of_long.is_under(&first(&format!("{long}/b")).unwrap()), "the same so far");
        assert_eq!(first(&format!("{long}/x%2e%2e;/%20..%20/")), None);
    }
}

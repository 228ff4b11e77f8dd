//! Values with units, and secrets.

use std::fmt;
use std::time::Duration;

use zeroize::Zeroizing;

/// A secret read from a file or the environment. It shows itself nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Parses `90s`, `15m`, `8h`, `30d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration: write a whole number and s, m, h or d, like \"8h\"");
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text.get(..text.len() - 1).and_then(digits).ok_or_else(wrong)?;
    number.checked_mul(unit).filter(|s| *s > 0).map(Duration::from_secs).ok_or_else(wrong)
}

/// Parses `512MiB`, `1GiB`; bytes.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size: write a whole number and KiB, MiB or GiB, like \"1GiB\"");
    for (unit, bytes) in [("KiB", 1u64 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)] {
        if let Some(number) = text.strip_suffix(unit) {
            return digits(number)
                .and_then(|n: u64| n.checked_mul(bytes))
                .filter(|n| *n > 0)
                .ok_or_else(wrong);
        }
    }
    Err(wrong())
}

fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_and_sizes() {
        assert_eq!(parse_duration("8h"), Ok(Duration::from_secs(28_800)));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        for text in ["", "8", "h", "-1h", "+1h", "1.5h", "0s", "99999999999999999999d", "8 h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_size("1GB").is_err() && parse_size("0KiB").is_err());
    }

    #[test]
    fn a_secret_is_silent() {
        assert!(!format!("{:?}", Secret::new("canary".into())).contains("canary"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = parse_duration(&text);
            let _ = parse_size(&text);
        }
    }
}

//! Values with units, and secrets.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
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

/// Parses `192.0.2.0/24:22` or `[2001:db8::]/32:22`: a prefix and a port.
pub(super) fn parse_prefix_port(text: &str) -> Result<(IpNet, u16), String> {
    let wrong = || {
        format!(
            "`{text}` is no prefix and port: write 192.0.2.0/24:22 or [2001:db8::]/32:22, or an address and a port"
        )
    };
    let (prefix, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = digits::<u16>(port).filter(|p| *p > 0).ok_or_else(wrong)?;
    let prefix = match prefix.strip_prefix('[') {
        Some(rest) => rest.replacen(']', "", 1),
        None if prefix.contains(':') => return Err(wrong()),
        None => prefix.to_owned(),
    };
    let net = match prefix.parse::<IpNet>() {
        Ok(net) => net,
        Err(_) => IpNet::from(prefix.parse::<IpAddr>().map_err(|_| wrong())?),
    };
    if net.addr() != net.network() {
        return Err(format!("`{text}` has bits beyond its prefix: write {}:{port}", net.trunc()));
    }
    Ok((net, port))
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
    fn durations_sizes_and_prefixes() {
        assert_eq!(parse_duration("8h"), Ok(Duration::from_secs(28_800)));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        for text in ["", "8", "h", "-1h", "+1h", "1.5h", "0s", "99999999999999999999d", "8 h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_size("1GB").is_err() && parse_size("0KiB").is_err());
        assert_eq!(parse_prefix_port("192.0.2.0/24:22").unwrap().1, 22);
        assert_eq!(parse_prefix_port("[2001:db8::]/32:22").unwrap().0.prefix_len(), 32);
        assert_eq!(parse_prefix_port("192.0.2.1:22").unwrap().0.prefix_len(), 32);
        for text in ["192.0.2.0/24", "192.0.2.1/24:22", "2001:db8::/32:22", "192.0.2.0/33:22", "x:22", ":22"]
        {
            assert!(parse_prefix_port(text).is_err(), "{text}");
        }
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
            let _ = parse_prefix_port(&text);
        }
    }
}

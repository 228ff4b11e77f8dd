//! The cookies of the node: names, reading all of a name, writing one (RFC 6265bis).
//!
//! Every cookie is `Secure; HttpOnly; SameSite=Lax` and host-only: no `Domain` is ever set.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderValue, header};

/// A signed token: the global one on the auth domain, an application's on its host.
pub const AUTHORIZATION: &str = "CF_Authorization";
/// Binds a token to the browser that logged in; never sent to an origin.
pub const BINDING: &str = "__Host-CF_Binding";
/// Random mark of the browser that starts a login from an application host.
pub const APP_SESSION: &str = "CF_AppSession";
/// The same mark under a name that no sibling host can toss: this one is checked.
pub const APP_SESSION_OWN: &str = "__Host-CF_AppSession";

/// Values read of one name at the most; siblings can toss cookies, so there may be several.
const MOST_OF_A_NAME: usize = 8;

/// The values of every cookie called `name`, at most eight; no position is to be trusted.
pub fn read_all<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> + use<'a> {
    pairs(headers).filter(move |(found, _)| *found == name).map(|(_, value)| value).take(MOST_OF_A_NAME)
}

/// The value of the cookie called `name`, if there is exactly one.
pub fn read_one<'a>(headers: &'a HeaderMap, name: &'a str) -> Option<&'a str> {
    let mut values = read_all(headers, name);
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

/// Every name and value of the `Cookie` headers, as sent. Lines that are not text are passed over.
pub fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .map(|(name, value)| (name.trim(), value.trim()))
}

/// A `Set-Cookie` header in the making.
#[derive(Debug, Clone)]
pub struct SetCookie {
    line: String,
}

impl SetCookie {
    /// A host-only cookie for the whole host; `value` must be of the cookie alphabet (base64url and dots are).
    pub fn new(name: &str, value: &str) -> Self {
        Self { line: format!("{name}={value}; Secure; HttpOnly; SameSite=Lax") }.path("/")
    }

    /// Removes the cookie `name` that was set for `path`.
    pub fn clear(name: &str, path: &str) -> Self {
        Self { line: format!("{name}=; Secure; HttpOnly; SameSite=Lax") }.path(path).max_age(0)
    }

    /// Limits it to a path; the last `path` counts (RFC 6265bis §5.6).
    pub fn path(mut self, path: &str) -> Self {
        // `;` ends an attribute; our paths are canonical and may hold one, which a cookie path cannot.
        let path = path.split(';').next().unwrap_or("/");
        let _ = write!(self.line, "; Path={path}");
        self
    }

    /// Ends it after so many seconds.
    pub fn max_age(mut self, seconds: i64) -> Self {
        let _ = write!(self.line, "; Max-Age={}", seconds.max(0));
        self
    }

    /// Ends it at `end`, with `Expires` (which some clients ask for) and `Max-Age`.
    pub fn until(mut self, end: crate::flow::UnixTime, now: crate::flow::UnixTime) -> Self {
        if let Some(date) = http_date(end) {
            let _ = write!(self.line, "; Expires={date}");
        }
        self.max_age(end.0.saturating_sub(now.0))
    }

    /// The header value; nothing where the cookie's value is not of the cookie alphabet.
    pub fn header_value(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.line).ok()
    }
}

/// IMF-fixdate (RFC 9110 §5.6.7).
fn http_date(at: crate::flow::UnixTime) -> Option<String> {
    let at = time::OffsetDateTime::from_unix_timestamp(at.0).ok()?;
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    at.format(&format).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::UnixTime;

    fn headers(lines: &[&'static str]) -> HeaderMap {
        lines.iter().map(|line| (header::COOKIE, HeaderValue::from_static(line))).collect()
    }

    #[test]
    fn every_value_of_a_name_is_read_and_bounded() {
        let found = headers(&["a=1; b=2", "a=3"]);
        assert_eq!(read_all(&found, "a").collect::<Vec<_>>(), ["1", "3"]);
        assert_eq!(read_one(&found, "a"), None);
        assert_eq!(read_one(&found, "b"), Some("2"));
        let many = headers(&["a=1; a=2; a=3; a=4; a=5; a=6; a=7; a=8; a=9"]);
        assert_eq!(read_all(&many, "a").count(), 8);
    }

    #[test]
    fn a_cookie_says_all_it_must() {
        let cookie =
            SetCookie::new("x", "v").path("/app").until(UnixTime(1_000_000_060), UnixTime(1_000_000_000));
        assert_eq!(
            cookie.header_value().unwrap(),
            "x=v; Secure; HttpOnly; SameSite=Lax; Path=/; Path=/app; Expires=Sun, 09 Sep 2001 01:47:40 GMT; Max-Age=60"
        );
    }
}

//! What may pass between a client and an origin in header fields. Pure functions.
//!
//! A client never tells an origin who it is: every field that the node speaks with is taken out in every spelling
//! that some server reads as the same name, then ours are set. A false accept is a forged identity; a false reject
//! is a field that an application misses.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::cookie;
use crate::flow::RayId;

/// The header that carries the assertion.
const ASSERTION: HeaderName = HeaderName::from_static("cf-access-jwt-assertion");
const EMAIL: HeaderName = HeaderName::from_static("cf-access-authenticated-user-email");
const RAY: HeaderName = HeaderName::from_static("cf-ray");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Names (and, ending in `-`, beginnings of names) that only the node may say. `x-original-url` and its kin make
/// some servers route by another path than the one that policy saw; `proxy` becomes `HTTP_PROXY` in CGI.
const RESERVED: &[&str] = &[
    "cf-",
    "x-forwarded-",
    "forwarded",
    "x-forwarded",
    "x-real-ip",
    "true-client-ip",
    "client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-originating-ip",
    "x-remote-ip",
    "x-remote-addr",
    "x-original-forwarded-for",
    "x-original-url",
    "x-original-uri",
    "x-original-host",
    "x-rewrite-url",
    "x-host",
    "early-data",
    "proxy",
];

/// Fields about one connection, not about the message (RFC 9110 §7.6.1), besides those that `Connection` lists.
static HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Fields that frame or route a message: `Connection` cannot take them away, nor trailers bring them.
static FRAMING: [HeaderName; 2] = [header::HOST, header::CONTENT_LENGTH];

/// Authentication that holds for a connection, and not for a message as RFC 9110 §3.3 has it: NTLM, and Negotiate (RFC 4559),
/// which falls back to it. No other scheme in IANA's registry does.
const OF_CONNECTION: [&str; 3] = ["ntlm", "negotiate", "kerberos"];

const AUTHENTICATION_INFO: HeaderName = HeaderName::from_static("authentication-info");
/// By which an origin says that its connection is a person's from now on.
static PERSISTENT_AUTH: HeaderName = HeaderName::from_static("persistent-auth");

static CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");
const SITE_DATA_OF_HOST: [&str; 6] = [
    "\"cache\"",
    "\"clientHints\"",
    "\"executionContexts\"",
    "\"prefetchCache\"",
    "\"prerenderCache\"",
    "\"storage\"",
];

/// Cookies of the node; see [`crate::cookie`].
const OWN_COOKIES: &[&str] =
    &[cookie::AUTHORIZATION, cookie::BINDING, cookie::APP_SESSION_OWN, cookie::APP_SESSION];

/// What the node tells an origin about a request.
#[derive(Debug, Clone)]
pub(super) struct Told<'a> {
    /// `Host` for the origin.
    pub(super) origin_host: &'a str,
    /// What the browser sees: host, and port where it is not 443.
    pub(super) public_host: &'a str,
    pub(super) address: IpAddr,
    pub(super) ray: RayId,
    /// The assertion about the proven person or service, and a person's email. Nobody for a bypass.
    pub(super) bearer: Option<(&'a str, Option<&'a str>)>,
}

/// Turns the header fields of a client into those for an origin. `http2` says that the origin speaks HTTP/2.
///
/// Fails only where a value of ours is no header value, which would be a bug of the node.
pub(super) fn for_origin(
    headers: &mut HeaderMap,
    told: &Told<'_>,
    http2: bool,
) -> Result<(), header::InvalidHeaderValue> {
    let trailers = accepts_trailers(headers);
    strip_reserved(headers);
    strip_hop_by_hop(headers);
    headers.remove(header::EXPECT);
    let cookies = foreign_cookies(headers);
    headers.remove(header::COOKIE);
    // Everybody shares a connection to such an origin.
    if http2 && binds_connection(headers) {
        headers.remove(header::AUTHORIZATION);
    }

    // `te: trailers` is the one hop-by-hop field of HTTP/2 (RFC 9113 §8.2.2), and gRPC servers insist on it.
    if trailers && http2 {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    headers.insert(header::HOST, HeaderValue::from_str(told.origin_host)?);
    headers.insert(FORWARDED_FOR, HeaderValue::from_str(&told.address.to_string())?);
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
    headers.insert(FORWARDED_HOST, HeaderValue::from_str(told.public_host)?);
    headers.insert(RAY, HeaderValue::from_str(&told.ray.to_string())?);
    let mut line = Vec::new();
    if let Some((assertion, email)) = told.bearer {
        headers.insert(ASSERTION, secret(assertion)?);
        if let Some(email) = email {
            headers.insert(EMAIL, HeaderValue::from_str(email)?);
        }
        line.extend_from_slice(format!("{}={assertion}", cookie::AUTHORIZATION).as_bytes());
    }
    for cookie in cookies {
        if !line.is_empty() {
            line.extend_from_slice(b"; ");
        }
        line.extend_from_slice(&cookie);
    }
    if !line.is_empty() {
        let mut value = HeaderValue::from_bytes(&line)?;
        value.set_sensitive(true);
        headers.insert(header::COOKIE, value);
    }
    Ok(())
}

/// Turns the header fields of an origin into those for a client: nothing about the inner connection, no cookie of
/// the node's names, no other place to find the service, and nothing in the node's name.
pub(super) fn for_client(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    headers.remove(header::ALT_SVC);
    headers.remove(&PERSISTENT_AUTH);
    keep_site_data_of_host(headers);
    strip_matching(headers, |name| name.starts_with("cf-"));
    let kept: Vec<HeaderValue> =
        headers.get_all(header::SET_COOKIE).iter().filter(|line| !sets_own_cookie(line)).cloned().collect();
    headers.remove(header::SET_COOKIE);
    for line in kept {
        headers.append(header::SET_COOKIE, line);
    }
}

/// Takes from `Clear-Site-Data` what reaches beyond the origin's host: `"cookies"`, also as part of `"*"`, are those of the
/// whole registrable domain, the auth domain's and other applications' among them. What is left is about the host, which is
/// the application's own.
fn keep_site_data_of_host(headers: &mut HeaderMap) {
    let mut kept: Vec<&str> = Vec::new();
    let lines: Vec<HeaderValue> = headers.get_all(&CLEAR_SITE_DATA).iter().cloned().collect();
    for kind in lines.iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')) {
        match kind.trim() {
            "\"*\"" => kept.extend(SITE_DATA_OF_HOST),
            kind => kept.extend(SITE_DATA_OF_HOST.iter().filter(|known| **known == kind)),
        }
    }
    headers.remove(&CLEAR_SITE_DATA);
    if let Ok(value) = HeaderValue::from_str(&kept.join(", "))
        && !kept.is_empty()
    {
        headers.insert(&CLEAR_SITE_DATA, value);
    }
}

/// Whether a request or a response may make its connection somebody's, for the origin. A false accept gives what one person
/// may do to the next one on the line; a false reject costs a new connection.
pub(super) fn binds_connection(headers: &HeaderMap) -> bool {
    let of_connection =
        |word: &[u8]| OF_CONNECTION.iter().any(|scheme| word.eq_ignore_ascii_case(scheme.as_bytes()));
    // Anywhere in a challenge, but only where a scheme stands in credentials: a token may have any word in it.
    let words = |text: &[u8]| text.split(|byte| !byte.is_ascii_alphanumeric()).any(of_connection);
    let schemes = |text: &[u8]| {
        text.split(|byte| *byte == b',')
            .filter_map(|part| part.trim_ascii().split(|byte| !byte.is_ascii_alphanumeric()).next())
            .any(of_connection)
    };
    headers.contains_key(&PERSISTENT_AUTH)
        || headers.get_all(header::AUTHORIZATION).iter().any(|value| schemes(value.as_bytes()))
        || [header::WWW_AUTHENTICATE, AUTHENTICATION_INFO]
            .iter()
            .flat_map(|name| headers.get_all(name))
            .any(|value| words(value.as_bytes()))
}

/// Trailers, either way: a server may merge them into the header section, so the same rules hold for them.
pub(super) fn trailers(trailers: &mut HeaderMap) {
    strip_reserved(trailers);
    strip_hop_by_hop(trailers);
    for name in FRAMING.iter().chain(&[
        header::COOKIE,
        header::SET_COOKIE,
        header::AUTHORIZATION,
        header::ALT_SVC,
        header::EXPECT,
    ]) {
        trailers.remove(name);
    }
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::TE).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

fn strip_reserved(headers: &mut HeaderMap) {
    strip_matching(headers, |name| {
        RESERVED.iter().any(|reserved| match reserved.strip_suffix('-') {
            Some(_) => name.starts_with(reserved),
            None => name == *reserved,
        })
    });
}

/// Removes every field whose name matches once it is read as the most lenient servers read it: any punctuation is
/// the same as a hyphen (CGI makes `-` and `_` one, some gateways every other sign too).
fn strip_matching(headers: &mut HeaderMap, matches: impl Fn(&str) -> bool) {
    let doomed: Vec<HeaderName> =
        headers.keys().filter(|name| matches(&plain(name.as_str(), '-'))).cloned().collect();
    for name in doomed {
        headers.remove(name);
    }
}

fn plain(name: &str, separator: char) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { separator }).collect()
}

/// Removes the fields about the connection, and those that some server reads as one or as another framing: the name alone
/// tells the HTTP library, and a gateway behind it another one. Ours are set afterwards, so `Connection` cannot name them away.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| !FRAMING.contains(name))
        .collect();
    for name in listed.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    let misspelt: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let meant = plain(name.as_str(), '-');
            meant != name.as_str() && HOP_BY_HOP.iter().chain(&FRAMING).any(|known| known.as_str() == meant)
        })
        .cloned()
        .collect();
    for name in misspelt {
        headers.remove(name);
    }
}

/// The client's cookies without the node's, byte for byte.
fn foreign_cookies(headers: &HeaderMap) -> Vec<Vec<u8>> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'))
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty() && !is_own_cookie(pair))
        .map(<[u8]>::to_vec)
        .collect()
}

fn sets_own_cookie(line: &HeaderValue) -> bool {
    is_own_cookie(line.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default())
}

/// Whether `name=value` is a cookie of ours, as leniently as some server reads names.
fn is_own_cookie(pair: &[u8]) -> bool {
    let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
    let name = plain(&String::from_utf8_lossy(name), '_');
    OWN_COOKIES.iter().any(|own| plain(own, '_') == name)
}

fn secret(value: &str) -> Result<HeaderValue, header::InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(value)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests;

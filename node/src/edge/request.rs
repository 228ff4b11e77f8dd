//! What a request asks for, canonicalised once: policy and origin see the same host and path.
//!
//! Works on what the HTTP library parsed, for both versions alike; what the library would lose (bare line feeds, a
//! second length, a fragment) was refused before by [`super::strict`]. A false accept lets policy and origin read
//! different requests; a false reject is a 400 that names the cause.

use http::request::Parts;
use http::uri::Scheme;
use http::{Method, header};

use crate::flow::{Host, HostError, Path, PathError};
use crate::policy::PolicySet;

/// A request with exactly one reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) host: Host,
    pub(super) method: Method,
    pub(super) path: Path,
    /// As sent, without the question mark.
    pub(super) query: Option<String>,
    /// The strict reading has seen a WebSocket upgrade.
    pub(super) websocket: bool,
}

impl Asked {
    /// The request target for an origin.
    pub(super) fn target(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.to_string(),
        }
    }
}

/// Why a request has no single reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misread {
    #[error("the request names no host")]
    NoHost,
    #[error("the request names two hosts")]
    TwoHosts,
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("the scheme of the request is not https")]
    Scheme,
    #[error("the method is not served here")]
    Method,
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("the query has a character that no query may have")]
    Query,
    #[error("the length of the body contradicts the body")]
    Length,
}

/// Reads the head of a request; `ends` says that no body follows.
pub(super) fn canonicalise(parts: &Parts, ends: bool, policies: &PolicySet) -> Result<Asked, Misread> {
    if matches!(parts.method, Method::CONNECT | Method::TRACE) {
        return Err(Misread::Method);
    }
    if parts.uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTPS) {
        return Err(Misread::Scheme);
    }
    let host = host(parts)?;
    length(parts, ends)?;
    let path = Path::parse(parts.uri.path(), policies.passes_encoded_slash(&host))?;
    let query = parts.uri.query().map(ToOwned::to_owned);
    if query.as_ref().is_some_and(|query| !query.bytes().all(|byte| byte.is_ascii_graphic())) {
        return Err(Misread::Query);
    }
    let websocket = parts.headers.contains_key(header::UPGRADE);
    Ok(Asked { host, method: parts.method.clone(), path, query, websocket })
}

/// The host that an extended CONNECT (RFC 8441 §4) is for; of its body no length may be said.
pub(super) fn target_host(parts: &Parts) -> Result<Host, Misread> {
    if parts.uri.scheme() != Some(&Scheme::HTTPS) {
        return Err(Misread::Scheme);
    }
    if parts.headers.contains_key(header::CONTENT_LENGTH) {
        return Err(Misread::Length);
    }
    host(parts)
}

/// The host of the request target or `:authority`, and of `Host`: where there are both, they agree.
fn host(parts: &Parts) -> Result<Host, Misread> {
    let mut fields = parts.headers.get_all(header::HOST).iter();
    let field = match (fields.next(), fields.next()) {
        (None, _) => None,
        (Some(value), None) => {
            let text = value.to_str().map_err(|_| HostError::Character)?;
            Some(Host::parse_authority(text)?)
        }
        (Some(_), Some(_)) => return Err(Misread::TwoHosts),
    };
    let authority =
        parts.uri.authority().map(|authority| Host::parse_authority(authority.as_str())).transpose()?;
    match (authority, field) {
        (Some((host, port)), Some((other, other_port))) => {
            let same = host == other && port.unwrap_or(443) == other_port.unwrap_or(443);
            if same { Ok(host) } else { Err(Misread::TwoHosts) }
        }
        (Some((host, _)), None) | (None, Some((host, _))) => Ok(host),
        (None, None) => Err(Misread::NoHost),
    }
}

/// HTTP/2 frames say where a body ends; a `Content-Length` that says something else must not travel on.
fn length(parts: &Parts, ends: bool) -> Result<(), Misread> {
    let mut lengths = parts.headers.get_all(header::CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(()),
        (Some(length), None) => {
            let length = length.as_bytes();
            let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
            let zero = length.iter().all(|digit| *digit == b'0');
            if digits && (!ends || zero) { Ok(()) } else { Err(Misread::Length) }
        }
        _ => Err(Misread::Length),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn read(target: &str, headers: &[(&str, &str)]) -> Result<Asked, Misread> {
        let mut request = Request::get(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        canonicalise(&request.body(()).unwrap().into_parts().0, true, &PolicySet::default())
    }

    #[test]
    fn one_host_however_it_is_spelled() {
        for (target, headers) in [
            ("/a", vec![("host", "App.Example.com.")]),
            ("/a", vec![("host", "app.example.com:8443")]),
            ("https://app.example.com/a", vec![]),
            ("https://app.example.com/a", vec![("host", "APP.example.com:443")]),
        ] {
            let asked = read(target, &headers).unwrap();
            assert_eq!((asked.host.as_str(), asked.path.as_str()), ("app.example.com", "/a"), "{target}");
        }
    }

    #[test]
    fn what_has_two_readings_is_refused() {
        for (target, headers, why) in [
            ("/", vec![], Misread::NoHost),
            ("/", vec![("host", "a.example"), ("host", "a.example")], Misread::TwoHosts),
            ("https://a.example/", vec![("host", "b.example")], Misread::TwoHosts),
            ("https://a.example:444/", vec![("host", "a.example")], Misread::TwoHosts),
            ("http://a.example/", vec![("host", "a.example")], Misread::Scheme),
            ("https://b@a.example/", vec![], Misread::Host(HostError::Character)),
            ("/", vec![("host", "a.example/x")], Misread::Host(HostError::Character)),
            ("/", vec![("host", "")], Misread::Host(HostError::Empty)),
            ("/a/..;x/b", vec![("host", "a.example")], Misread::Path(PathError::DotSegment)),
            ("/a%2fb", vec![("host", "a.example")], Misread::Path(PathError::EncodedSlash)),
            ("/a", vec![("host", "a.example"), ("content-length", "3")], Misread::Length),
            ("/a", vec![("host", "a.example"), ("content-length", "+0")], Misread::Length),
            (
                "/a",
                vec![("host", "a.example"), ("content-length", "0"), ("content-length", "0")],
                Misread::Length,
            ),
        ] {
            assert_eq!(read(target, &headers), Err(why), "{target} {headers:?}");
        }
        let connect = Request::connect("a.example:443").body(()).unwrap().into_parts().0;
        assert_eq!(canonicalise(&connect, true, &PolicySet::default()), Err(Misread::Method));
    }

    #[test]
    fn the_target_for_the_origin_is_the_canonical_one() {
        let asked = read("/%61?q=%2F&b", &[("host", "a.example")]).unwrap();
        assert_eq!(asked.target(), "/a?q=%2F&b");
    }
}

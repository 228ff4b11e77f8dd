//! Values of single keys: names, domains, URLs. Each function gives the value or says what is wrong with the text.

use crate::flow::{Host, HostPattern, Origin, OriginScheme};

use super::NodeConfig;

/// Names of things: up to 64 letters, digits, `-`, `_` and `.`, beginning with a letter or digit.
pub fn check_name(kind: &str, name: &str) -> Result<(), String> {
    let good = !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if good {
        Ok(())
    } else {
        Err(format!("`{name}` is no name of a {kind}: use up to 64 letters, digits, `-`, `_` and `.`"))
    }
}

/// The part of an address behind the @, in lower case.
pub(super) fn email_domain(text: &str) -> Result<String, String> {
    format!("x@{text}")
        .parse::<crate::flow::Email>()
        .map(|email| email.domain().to_owned())
        .map_err(|_| format!("`{text}` is no email domain"))
}

/// An issuer identifier: https, or http on loopback.
pub(super) fn check_issuer(text: &str) -> Result<String, String> {
    let url = url::Url::parse(text).map_err(|error| format!("`{text}` is no URL: {error}"))?;
    let loopback = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    match url.scheme() {
        "https" => Ok(text.to_owned()),
        "http" if loopback => Ok(text.to_owned()),
        _ => Err(format!("`{text}`: an issuer is an https URL")),
    }
}

/// A web origin (RFC 6454): scheme, host and port, in its serialised form.
pub(super) fn check_web_origin(text: &str) -> Result<String, String> {
    match url::Url::parse(text) {
        Ok(url) if url.origin().is_tuple() && url.path() == "/" && url.query().is_none() => {
            Ok(url.origin().ascii_serialization())
        }
        _ => Err(format!("`{text}` is no web origin: write https://host")),
    }
}

/// The public URL of an application: whom it answers for, and below which path.
pub(super) fn parse_url(text: &str, node: &NodeConfig) -> Result<(HostPattern, crate::flow::Path), String> {
    let wrong = |why: &str| format!("`{text}`: {why}");
    let rest =
        text.strip_prefix("https://").ok_or_else(|| wrong("an application's URL begins with https://"))?;
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let (wildcard, authority) = match authority.strip_prefix("*.") {
        Some(parent) => (true, parent),
        None => (false, authority),
    };
    let (host, port) = Host::parse_authority(authority).map_err(|error| wrong(&error.to_string()))?;
    if port.is_some_and(|port| port != node.public_port) {
        return Err(wrong("the port differs from the node's public port"));
    }
    if host == node.domain && !wildcard {
        return Err(wrong("this is the auth domain: an application needs a host of its own"));
    }
    if wildcard && !host.as_str().contains('.') {
        return Err(wrong("a wildcard must leave at least two labels"));
    }
    let mut path = crate::flow::Path::parse(path, false).map_err(|error| wrong(&error.to_string()))?;
    if path.as_str() != "/" && path.as_str().ends_with('/') {
        let trimmed = path.as_str().trim_end_matches('/').to_owned();
        path = crate::flow::Path::parse(&trimmed, false).map_err(|error| wrong(&error.to_string()))?;
    }
    if path.readings().is_none() {
        return Err(wrong("some servers would read another path in this one"));
    }
    if path.as_str().starts_with("/cdn-cgi/access") {
        return Err(wrong("/cdn-cgi/access belongs to the node"));
    }
    Ok((if wildcard { HostPattern::Below(host) } else { HostPattern::Exact(host) }, path))
}

/// `scheme://host[:port]` of an origin.
pub(super) fn parse_origin(text: &str) -> Result<Origin, String> {
    let wrong = |why: &str| format!("`{text}`: {why}");
    let (scheme, rest) = text
        .split_once("://")
        .ok_or_else(|| wrong("an origin is http://, https://, h2c:// or h2:// and a host"))?;
    let (scheme, default_port) = match scheme {
        "http" => (OriginScheme::Http, 80),
        "https" => (OriginScheme::Https, 443),
        "h2c" => (OriginScheme::H2c, 80),
        "h2" => (OriginScheme::H2, 443),
        _ => return Err(wrong("the scheme must be http, https, h2c or h2")),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains('/') {
        return Err(wrong("an origin has no path: requests keep theirs"));
    }
    let (host, port) = Host::parse_authority(authority).map_err(|error| wrong(&error.to_string()))?;
    Ok(Origin {
        scheme,
        host,
        port: port.unwrap_or(default_port),
        connector: None,
        ca: None,
        server_name: None,
        host_header: None,
    })
}

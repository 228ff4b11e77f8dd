//! `[[application]]` of type `tcp`, `udp`, `ssh` and `rdp`.

use std::ops::RangeInclusive;

use ipnet::IpNet;
use toml::Spanned;

use crate::flow::{Host, HostPattern, Ports, Private, Protocol, SshSettings, Target};

use super::applications::{sign_in_keys, span_of};
use super::compile::Compiler;
use super::values::{email_domain, parse_url};
use super::{NodeConfig, raw};

/// OpenSSH reads no certificate with more than 256 principals; one is a person's own.
const MOST_USERS: usize = 255;

impl Compiler<'_> {
    pub(super) fn private(
        &mut self,
        application: raw::Application,
        protocol: Protocol,
        node: &NodeConfig,
    ) -> Option<Private> {
        let (name, span) = (application.name.get_ref(), application.name.span());
        if application.connector.is_none() {
            let message = format!(
                "application `{name}` has no `connector`: one next to the target dials it, and `portcullis admin \
                 connector create NAME` makes one"
            );
            self.faults.at(span.clone(), message);
        }
        let first_origin = application.allowed_origins.first();
        self.stray(
            &format!("an application of type `{protocol}`"),
            [
                ("allowed_origins", span_of(first_origin)),
                ("encoded_slash", span_of(application.encoded_slash.as_ref())),
                ("origin_ca", span_of(application.origin_ca.as_ref())),
                ("origin_server_name", span_of(application.origin_server_name.as_ref())),
                ("host_header", span_of(application.host_header.as_ref())),
            ],
        );
        self.stray(&format!("an application of type `{protocol}`"), sign_in_keys(&application));
        let target = match (&application.origin, &application.network) {
            (Some(origin), None) => self
                .parse(origin, |text| parse_target(text, protocol))
                .map(|(host, port)| Target::Single { host, port }),
            (None, Some(network)) => self.network(network.get_ref()),
            (Some(_), Some(network)) => {
                let message =
                    format!("application `{name}` has both `origin` and `network`: leave one of them out");
                self.faults.at(network.span(), message);
                None
            }
            (None, None) => {
                let message = format!(
                    "application `{name}` has neither `origin` nor `network`: write `origin = \"host:port\"`, or \
                     `network = {{ prefix = \"10.0.0.0/24\", ports = [22] }}`"
                );
                self.faults.at(span, message);
                None
            }
        };
        let host = application.url.as_ref().and_then(|url| {
            let span = url.span();
            if protocol.is_datagrams() {
                self.stray(
                    "an application of type `udp`: its wire carries connections only",
                    [("url", Some(span))],
                );
                return None;
            }
            if application.network.is_some() {
                self.stray("a network: its wire reaches a single `origin` only", [("url", Some(span))]);
                return None;
            }
            self.parse(url, |text| parse_host(text, node))
        });
        let ssh = match (&application.ssh, protocol) {
            (None, _) => None,
            (Some(ssh), Protocol::Ssh) => Some(self.ssh(ssh)),
            (Some(ssh), _) => {
                let of = format!("an application of type `{protocol}`: it is for `type = \"ssh\"`");
                self.stray(&of, [("ssh", Some(ssh.span()))]);
                None
            }
        };
        Some(Private { protocol, target: target?, connector: application.connector?.into_inner(), host, ssh })
    }

    fn network(&mut self, network: &raw::Network) -> Option<Target> {
        let prefix = self.parse(&network.prefix, parse_prefix);
        let ranges: Vec<_> = network
            .ports
            .iter()
            .filter_map(|port| {
                parse_ports(port.get_ref()).map_err(|message| self.faults.at(port.span(), message)).ok()
            })
            .collect();
        if ranges.len() < network.ports.len() {
            return None;
        }
        match Ports::new(ranges) {
            Ok(ports) => Some(Target::Network { prefix: prefix?, ports }),
            Err(error) => {
                let message = format!("`ports`: {error}; write numbers and ranges, like [22, \"8000-8100\"]");
                self.faults.at(network.prefix.span(), message);
                None
            }
        }
    }

    fn ssh(&mut self, ssh: &Spanned<raw::Ssh>) -> SshSettings {
        let raw::Ssh { users, email_user_domains } = ssh.get_ref();
        if users.is_empty() && email_user_domains.is_empty() {
            self.faults.at(ssh.span(), "`ssh` names nobody: set `users`, `email_user_domains` or both");
        }
        if users.len() > MOST_USERS {
            self.faults
                .at(ssh.span(), format!("`users` names more than {MOST_USERS}: no certificate holds them"));
        }
        SshSettings {
            users: users.iter().filter_map(|user| self.parse(user, parse_user)).collect(),
            email_user_domains: email_user_domains
                .iter()
                .filter_map(|domain| self.parse(domain, email_domain))
                .collect(),
        }
    }
}

/// `host:port`.
fn parse_target(text: &str, protocol: Protocol) -> Result<(Host, u16), String> {
    let usual = match protocol {
        Protocol::Ssh => 22,
        Protocol::Rdp => 3389,
        Protocol::Tcp => 5432,
        Protocol::Udp => 53,
    };
    if text.contains("://") {
        return Err(format!(
            "`{text}`: the origin of an application of type `{protocol}` is host:port, no URL"
        ));
    }
    match Host::parse_authority(text) {
        Ok((host, Some(port))) => Ok((host, port)),
        Ok((host, None)) => Err(format!("`{text}` has no port: write `{host}:{usual}`")),
        Err(error) => Err(format!("`{text}`: {error}; write host:port")),
    }
}

/// The host of a `url`: a whole one, since the wire has no path.
fn parse_host(text: &str, node: &NodeConfig) -> Result<Host, String> {
    match parse_url(text, node)? {
        (HostPattern::Below(_), _) => {
            Err(format!("`{text}`: the host of a private application cannot be a wildcard"))
        }
        (HostPattern::Exact(host), path) if path.as_str() == "/" => Ok(host),
        (HostPattern::Exact(host), _) => {
            Err(format!("`{text}`: a private application has no path: write `https://{host}`"))
        }
    }
}

fn parse_prefix(text: &str) -> Result<IpNet, String> {
    let Ok(prefix) = text.parse::<IpNet>() else {
        let single = text.parse::<std::net::IpAddr>().map(IpNet::from);
        return Err(match single {
            Ok(single) => format!("`{text}` has no prefix length: write `{single}`"),
            Err(_) => format!("`{text}` is no prefix: write one like \"10.0.0.0/24\""),
        });
    };
    if prefix.trunc() != prefix {
        return Err(format!("`{text}` has bits beyond its prefix: write `{}`", prefix.trunc()));
    }
    match prefix {
        IpNet::V6(v6) if v6.network().to_ipv4_mapped().is_some() => {
            Err(format!("`{text}` is a prefix of IPv4-mapped addresses: write the IPv4 one"))
        }
        _ => Ok(prefix),
    }
}

fn parse_ports(port: &raw::Port) -> Result<RangeInclusive<u16>, String> {
    let wrong = |text: &str| {
        format!(
            "`{text}` is no port or range of ports: write numbers from 1 to 65535, or a range like \"8000-8100\""
        )
    };
    match port {
        raw::Port::One(number) => match u16::try_from(*number) {
            Ok(port @ 1..) => Ok(port..=port),
            _ => Err(wrong(&number.to_string())),
        },
        raw::Port::Range(text) => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let plain = |digits: &str| {
                let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                plain.then(|| digits.parse::<u16>().ok()).flatten().filter(|port| *port > 0)
            };
            let (first, last) = plain(first).zip(plain(last)).ok_or_else(|| wrong(text))?;
            if first > last {
                return Err(format!("`{text}` ends before it begins: write \"{last}-{first}\""));
            }
            Ok(first..=last)
        }
    }
}

/// A name that `useradd` of any distribution would take.
fn parse_user(text: &str) -> Result<String, String> {
    let good = (1..=32).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    if good {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "`{text}` is no name of a UNIX user: use up to 32 letters, digits, `_`, `-` and `.`, beginning with a letter"
        ))
    }
}

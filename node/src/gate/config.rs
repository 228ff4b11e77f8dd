use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;

use super::{EgressHook, GateError};

/// What the gate guards, and for whom it opens.
#[derive(Clone, Debug)]
pub struct GateConfig {
    pub dataplane: Dataplane,
    /// Names of the public interfaces, each guarded. Never a loopback. In userspace, none means every one.
    pub interfaces: Vec<String>,
    /// Far ends that policy cannot lock out.
    pub admin: Vec<AdminRule>,
    /// TCP ports open to anyone.
    pub served_tcp: Vec<u16>,
    /// UDP ports open to anyone.
    pub served_udp: Vec<u16>,
    /// Directory of the pinned links and maps, on a bpffs; one is mounted if it is not.
    pub pin: PathBuf,
    /// How the program for the way out is attached; `None` for tcx, or clsact where the kernel has no tcx.
    pub egress: Option<EgressHook>,
    pub mode: GateMode,
}

/// What becomes of a packet that the verdict drops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GateMode {
    /// It is dropped.
    #[default]
    Enforce,
    /// It is counted and sampled as dropped, and passes: to see what a gate would cut off before it does.
    Audit,
}

/// What drops the packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dataplane {
    /// A program in the network driver.
    #[default]
    Xdp,
    /// nftables, and the same verdict on the node's own UDP sockets. Slower, never more open.
    Userspace,
}

impl FromStr for Dataplane {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "xdp" => Ok(Self::Xdp),
            "userspace" => Ok(Self::Userspace),
            _ => Err(format!("`{text}` is not a dataplane: use \"xdp\" or \"userspace\"")),
        }
    }
}

/// A prefix whose hosts may reach one port of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdminRule {
    pub prefix: IpNet,
    pub protocol: AdminProtocol,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AdminProtocol {
    Tcp,
    Udp,
}

/// `PREFIX:PORT[/tcp|/udp]`: `192.0.2.0/24:22`, `[2001:db8::]/32:22`, `192.0.2.7:161/udp`. An address
/// without a length stands for itself alone.
impl FromStr for AdminRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| {
            format!("`{text}` {what}: write it like \"192.0.2.0/24:22\" or \"[2001:db8::]/32:22\"")
        };
        let (rest, protocol) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, AdminProtocol::Tcp),
            Some((rest, "udp")) => (rest, AdminProtocol::Udp),
            _ => (text, AdminProtocol::Tcp),
        };
        let (network, port) = rest.rsplit_once(':').ok_or_else(|| wrong("has no port"))?;
        let port: u16 = port.parse().map_err(|_| wrong("has no valid port"))?;
        if port == 0 {
            return Err(wrong("has no valid port"));
        }
        let (address, length) = match network.rsplit_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (network, None),
        };
        let address = match address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
            Some(v6) => IpAddr::V6(v6.parse().map_err(|_| wrong("has no valid IPv6 address"))?),
            None => IpAddr::V4(address.parse().map_err(|_| wrong("has no valid IPv4 address"))?),
        };
        let prefix = match length {
            None => IpNet::from(address),
            Some(length) => {
                let length: u8 = length.parse().map_err(|_| wrong("has no valid prefix length"))?;
                IpNet::new(address, length).map_err(|_| wrong("has no valid prefix length"))?
            }
        };
        if prefix.addr() != prefix.network() {
            return Err(wrong("has address bits beyond its prefix length"));
        }
        if matches!(prefix, IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some()) {
            return Err(wrong("is an IPv4 address in IPv6 form"));
        }
        Ok(Self { prefix, protocol, port })
    }
}

impl GateConfig {
    /// # Errors
    ///
    /// What no gate could guard by.
    pub(super) fn check(&self) -> Result<(), GateError> {
        if self.interfaces.is_empty() && self.dataplane == Dataplane::Xdp {
            return Err(GateError::NoInterface);
        }
        // The name goes into nftables' rules and into paths.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.@%+".contains(&byte);
        if let Some(name) = self.interfaces.iter().find(|name| name.is_empty() || !name.bytes().all(plain)) {
            return Err(GateError::UnknownInterface { interface: name.clone() });
        }
        let limit = portcullis_common::layout::ADMIN_ENTRIES as usize;
        if self.admin.len() > limit {
            return Err(GateError::TooManyAdminRules { limit });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_rules_are_read() {
        for (text, prefix, protocol, port) in [
            ("192.0.2.0/24:22", "192.0.2.0/24", AdminProtocol::Tcp, 22),
            ("192.0.2.7:22", "192.0.2.7/32", AdminProtocol::Tcp, 22),
            ("0.0.0.0/0:22/tcp", "0.0.0.0/0", AdminProtocol::Tcp, 22),
            ("[2001:db8::]/32:22", "2001:db8::/32", AdminProtocol::Tcp, 22),
            ("[2001:db8::1]:161/udp", "2001:db8::1/128", AdminProtocol::Udp, 161),
        ] {
            let rule = AdminRule { prefix: prefix.parse().unwrap(), protocol, port };
            assert_eq!(text.parse(), Ok(rule), "{text}");
        }
    }

    #[test]
    fn what_has_two_readings_is_refused() {
        for text in [
            "",
            "192.0.2.0/24",
            "192.0.2.0/24:0",
            "192.0.2.0/24:65536",
            "192.0.2.1/24:22",
            "192.0.2.0/33:22",
            "2001:db8::/32:22",
            "[2001:db8::1]/32:22",
            "[::ffff:192.0.2.1]/128:22",
            "[192.0.2.1]:22",
            "192.0.2.0/24:22/sctp",
            "example.com:22",
        ] {
            assert!(text.parse::<AdminRule>().is_err(), "{text}");
        }
    }
}

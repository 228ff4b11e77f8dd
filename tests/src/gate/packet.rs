//! Frames, byte by byte, made independently of the parser under test.

use std::net::IpAddr;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// Offset of the IP header in an untagged frame.
pub const L3: usize = 14;

/// The two ends of a packet that arrives.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    pub remote: IpAddr,
    pub local: IpAddr,
}

impl Path {
    pub fn new(remote: &str, local: &str) -> Self {
        Self { remote: remote.parse().unwrap(), local: local.parse().unwrap() }
    }

    pub fn is_v4(&self) -> bool {
        self.remote.is_ipv4()
    }

    pub fn reversed(&self) -> Self {
        Self { remote: self.local, local: self.remote }
    }

    /// An IP packet from `remote` to `local`.
    pub fn ip(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        self.ip_with_limit(64, protocol, payload)
    }

    pub fn ip_with_limit(&self, hop_limit: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match (self.remote, self.local) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let total = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
                let mut packet = vec![0x45, 0, total[0], total[1], 0, 1, 0, 0, hop_limit, protocol, 0, 0];
                packet.extend(source.octets());
                packet.extend(destination.octets());
                let sum = checksum(&packet);
                packet[10..12].copy_from_slice(&sum);
                packet.extend(payload);
                packet
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
                let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], protocol, hop_limit];
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet.extend(payload);
                packet
            }
            _ => panic!("a path has one family"),
        }
    }

    pub fn ethertype(&self) -> u16 {
        if self.is_v4() { 0x0800 } else { 0x86dd }
    }

    /// A frame with an IP packet from `remote` to `local`.
    pub fn frame(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        ethernet(&[], self.ethertype(), &self.ip(protocol, payload))
    }

    pub fn frame_with_limit(&self, hop_limit: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
        ethernet(&[], self.ethertype(), &self.ip_with_limit(hop_limit, protocol, payload))
    }

    pub fn tagged(&self, tags: &[u16], protocol: u8, payload: &[u8]) -> Vec<u8> {
        ethernet(tags, self.ethertype(), &self.ip(protocol, payload))
    }

    /// A TCP segment without data, with the right checksum.
    pub fn tcp(
        &self,
        source: u16,
        destination: u16,
        flags: u8,
        sequence: u32,
        acknowledgement: u32,
    ) -> Vec<u8> {
        let mut segment = tcp(source, destination, flags);
        segment[4..8].copy_from_slice(&sequence.to_be_bytes());
        segment[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
        let sum = self.checksum(TCP, &segment);
        segment[16..18].copy_from_slice(&sum);
        self.frame(TCP, &segment)
    }

    pub fn udp(&self, source: u16, destination: u16, data: &[u8]) -> Vec<u8> {
        self.frame(UDP, &udp(source, destination, data))
    }

    /// ICMP protocol number of the family.
    pub fn icmp_protocol(&self) -> u8 {
        if self.is_v4() { ICMP } else { ICMPV6 }
    }

    pub fn echo_request(&self, identifier: u16) -> Vec<u8> {
        self.frame(self.icmp_protocol(), &icmp(if self.is_v4() { 8 } else { 128 }, identifier, &[]))
    }

    pub fn echo_reply(&self, identifier: u16) -> Vec<u8> {
        self.frame(self.icmp_protocol(), &icmp(if self.is_v4() { 0 } else { 129 }, identifier, &[]))
    }

    /// "Destination unreachable" about a packet that `local` is said to have sent to `remote`: the IP
    /// header and `quoted` of its payload.
    pub fn unreachable(&self, protocol: u8, quoted: &[u8]) -> Vec<u8> {
        let kind = if self.is_v4() { 3 } else { 1 };
        self.icmp_error(kind, &self.reversed().ip(protocol, quoted))
    }

    pub fn icmp_error(&self, kind: u8, quoted_packet: &[u8]) -> Vec<u8> {
        self.frame(self.icmp_protocol(), &icmp(kind, 0, quoted_packet))
    }

    /// The checksum of a datagram or segment whose checksum field is zero.
    pub fn checksum(&self, protocol: u8, segment: &[u8]) -> [u8; 2] {
        let mut pseudo = Vec::new();
        for end in [self.remote, self.local] {
            match end {
                IpAddr::V4(address) => pseudo.extend(address.octets()),
                IpAddr::V6(address) => pseudo.extend(address.octets()),
            }
        }
        pseudo.extend(u32::try_from(segment.len()).unwrap().to_be_bytes());
        pseudo.extend([0, 0, 0, protocol]);
        pseudo.extend(segment);
        checksum(&pseudo)
    }
}

/// An IPv4 packet without options, with these.
pub fn with_options(packet: &[u8], options: &[u8]) -> Vec<u8> {
    let (header, payload) = packet.split_at(20);
    let mut header = [header, options].concat();
    let total = u16::try_from(packet.len() + options.len()).unwrap().to_be_bytes();
    header[0] = 0x40 | u8::try_from(header.len() / 4).unwrap();
    header[2..4].copy_from_slice(&total);
    header[10..12].fill(0);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    header.extend(payload);
    header
}

pub fn ethernet(tags: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend([0, 7]);
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

pub fn arp(operation: u8) -> Vec<u8> {
    let mut payload = vec![0, 1, 8, 0, 6, 4, 0, operation];
    payload.extend([0; 20]);
    ethernet(&[], 0x0806, &payload)
}

/// A TCP header; the checksum is left zero, which the gate does not look at.
pub fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(source.to_be_bytes());
    header.extend(destination.to_be_bytes());
    header.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    header
}

pub fn udp(source: u16, destination: u16, data: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend(source.to_be_bytes());
    datagram.extend(destination.to_be_bytes());
    datagram.extend(u16::try_from(8 + data.len()).unwrap().to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(data);
    datagram
}

pub fn icmp(kind: u8, identifier: u16, data: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend([0, 1]);
    message.extend(data);
    message
}

/// An IPv6 extension header of `words * 8 + 8` bytes before `next`.
pub fn extension(next: u8, words: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![next, words];
    header.resize(usize::from(words) * 8 + 8, 0);
    header.extend(payload);
    header
}

/// An IPv6 fragment header; `offset` in units of eight bytes.
pub fn fragment(next: u8, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let field = (offset << 3 | u16::from(more)).to_be_bytes();
    let mut header = vec![next, 0, field[0], field[1], 0, 0, 0, 9];
    header.extend(payload);
    header
}

/// RFC 1071.
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

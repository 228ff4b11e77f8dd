//! Every case of the relay's rewrite, by hand: the bytes that leave are written down from the RFCs' formulas, and a
//! kernel that knows nothing of the gate verifies their checksums and takes the datagram, or refuses it.
//!
//! The kernel is the other implementation, and not a packet library: it is there wherever these tests run, it is what
//! the far end of a relayed session has, and nothing has to be installed or kept up to date for it.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use portcullis_common::{DropReason, RelayReason, Verdict};
use portcullis_tests::gate::kernel::Kernel;
use portcullis_tests::gate::model::Model;
use portcullis_tests::gate::packet::{self, Path, UDP};
use portcullis_tests::gate::wire::Wire;
use portcullis_tests::netns::{Netns, veth};

use crate::lab::ANSWER;
use crate::verdicts::{HOST, STRANGER};

/// Where the model's relayed flows lead.
const FAR: [&str; 2] = ["203.0.113.77", "2001:db8:77::77"];
const FAR_PORT: u16 = 40_001;
const MTU: usize = 100;

/// What stands between the IP header and the datagram.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Between {
    Nothing,
    /// Bytes of IPv4 options.
    Options(usize),
    /// IPv6: destination options, so many of them.
    Destination(usize),
    /// IPv6: hop-by-hop options, a fragment header of a whole packet, and destination options.
    Chain,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Sum {
    Right,
    /// None; IPv4 only.
    Absent,
    /// The datagram is such that its checksum comes out as 0 on this side.
    ZeroBefore,
    ZeroAfter,
}

#[derive(Debug)]
struct Case {
    family: usize,
    between: Between,
    sum: Sum,
    length: usize,
    tags_in: usize,
    /// Tags of the next hop: the model has a relayed flow for each number.
    tags_out: usize,
}

fn cases() -> Vec<Case> {
    let betweens: [&[Between]; 2] = [
        &[Between::Nothing, Between::Options(4), Between::Options(40)],
        &[Between::Nothing, Between::Destination(1), Between::Destination(4), Between::Chain],
    ];
    let mut cases = Vec::new();
    for (family, betweens) in betweens.into_iter().enumerate() {
        for between in betweens {
            for sum in [Sum::Right, Sum::Absent, Sum::ZeroBefore, Sum::ZeroAfter] {
                for length in [0, 1, 2, 3, 45, 47, 64, 1_231] {
                    for tags in 0..9 {
                        let fits = length >= 2 || !matches!(sum, Sum::ZeroBefore | Sum::ZeroAfter);
                        if fits && (family == 0 || sum != Sum::Absent) {
                            let (tags_in, tags_out) = (tags / 3, tags % 3);
                            cases.push(Case { family, between: *between, sum, length, tags_in, tags_out });
                        }
                    }
                }
            }
        }
    }
    cases
}

impl Case {
    /// The frame that arrives, the IP packet that leaves, and its data.
    fn packets(&self) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let arriving = Path::new(STRANGER[self.family], HOST[self.family]);
        let leaving = Path::new(HOST[self.family], FAR[self.family]);
        let port = u16::try_from(4 * self.tags_out).unwrap();
        let mut data: Vec<u8> = (0..self.length).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
        if matches!(self.sum, Sum::ZeroBefore | Sum::ZeroAfter) {
            // With the sum of the rest in place of two zero bytes, the whole sums up to all ones.
            data[..2].fill(0);
            let sum = match self.sum {
                Sum::ZeroBefore => arriving.checksum(UDP, &packet::udp(port, 443, &data)),
                _ => leaving.checksum(UDP, &packet::udp(443, FAR_PORT, &data)),
            };
            data[..2].copy_from_slice(&sum);
        }
        let before = self.datagram(&arriving, packet::udp(port, 443, &data));
        let after = self.datagram(&leaving, packet::udp(443, FAR_PORT, &data));
        if self.sum == Sum::ZeroAfter {
            assert_eq!(after[6..8], [0xff, 0xff], "{self:?} is not what it says");
        }
        let tags = &[0x88a8, 0x8100][2 - self.tags_in..];
        let frame = packet::ethernet(tags, arriving.ethertype(), &self.packet(&arriving, 64, &before));
        (frame, self.packet(&leaving, 63, &after), data)
    }

    fn datagram(&self, path: &Path, mut datagram: Vec<u8>) -> Vec<u8> {
        let sum = match path.checksum(UDP, &datagram) {
            _ if self.sum == Sum::Absent => [0; 2],
            [0, 0] => [0xff; 2],
            sum => sum,
        };
        datagram[6..8].copy_from_slice(&sum);
        datagram
    }

    fn packet(&self, path: &Path, limit: u8, datagram: &[u8]) -> Vec<u8> {
        let options = |count: usize, next: u8, payload: &[u8]| {
            (0..count).fold((next, payload.to_vec()), |(next, payload), _| {
                (60, packet::extension(next, 0, &payload))
            })
        };
        match self.between {
            Between::Nothing => path.ip_with_limit(limit, UDP, datagram),
            Between::Options(bytes) => {
                packet::with_options(&path.ip_with_limit(limit, UDP, datagram), &vec![1; bytes])
            }
            Between::Destination(count) => {
                let (next, payload) = options(count, UDP, datagram);
                path.ip_with_limit(limit, next, &payload)
            }
            Between::Chain => {
                let (next, payload) = options(1, UDP, datagram);
                let whole = packet::fragment(next, 0, false, &payload);
                path.ip_with_limit(limit, 0, &packet::extension(44, 0, &whole))
            }
        }
    }

    fn link(&self) -> Vec<u8> {
        let tags: [&[u8]; 2] = [&[0x81, 0, 0, 9], &[0x81, 0, 0x20, 8]];
        let mut link = vec![2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 1, 2];
        tags[..self.tags_out].iter().for_each(|tag| link.extend(*tag));
        link.extend([[0x08, 0x00], [0x86, 0xdd]][self.family]);
        link
    }

    fn verdict(&self) -> Verdict {
        // The flow of two tags leaves by another interface.
        Verdict::Relay(if self.tags_out == 2 { RelayReason::Redirect } else { RelayReason::Transmit })
    }
}

#[test]
fn every_rewrite_leaves_the_bytes_written_down_and_a_kernel_takes_them() {
    let netns = Netns::new("rewrites").unwrap();
    let far = FarEnd::new();
    let model = Model::serving().with_keys().with_relay(STRANGER, HOST);
    let cases = cases();
    let left: Vec<_> = netns
        .enter(|| {
            let mut kernel = Kernel::load().unwrap();
            kernel.adopt(&model).unwrap();
            let left = cases.iter().map(|case| kernel.process(&case.packets().0).unwrap());
            left.collect::<Vec<_>>()
        })
        .unwrap();
    for (case, (verdict, bytes)) in cases.iter().zip(left) {
        let (_, packet, data) = case.packets();
        assert_eq!(verdict, case.verdict(), "{case:?}");
        assert_eq!(bytes, [case.link(), packet].concat(), "{case:?}");
        let packet = &bytes[case.link().len()..];
        assert_eq!(far.take(case.family, packet), Some(data.clone()), "{case:?}");
        // Control: the far end's kernel does verify. A datagram without a checksum says nothing to verify.
        if case.tags_in + case.tags_out == 0 && case.length <= 3 && case.sum != Sum::Absent {
            let mut damaged = packet.to_vec();
            let ports = damaged.len() - case.length - 8;
            damaged[ports + 6] ^= 1;
            assert_eq!(far.take(case.family, &damaged), None, "{case:?}");
        }
    }
}

/// Checksums are updated, not computed: what was damaged on the way stays damaged.
#[test]
fn a_wrong_checksum_stays_wrong() {
    let netns = Netns::new("wrong").unwrap();
    let far = FarEnd::new();
    let model = Model::serving().with_keys().with_relay(STRANGER, HOST);
    for family in 0..2 {
        let case =
            Case { family, between: Between::Nothing, sum: Sum::Right, length: 9, tags_in: 0, tags_out: 0 };
        let (mut frame, ..) = case.packets();
        let last = frame.len() - 1;
        frame[last] ^= 0x10;
        let (verdict, bytes) = netns
            .enter(|| {
                let mut kernel = Kernel::load().unwrap();
                kernel.adopt(&model).unwrap();
                kernel.process(&frame).unwrap()
            })
            .unwrap();
        assert_eq!(verdict, case.verdict());
        assert_eq!(far.take(family, &bytes[case.link().len()..]), None);
    }
}

/// The limits themselves: the longest packet that the link takes, and the last hop but one.
#[test]
fn what_just_fits_goes_on_and_what_does_not_is_left_as_it_was() {
    let netns = Netns::new("limits").unwrap();
    let model = Model::serving().with_keys().with_relay(STRANGER, HOST);
    // The flow whose next hop takes no more than MTU.
    let (port, transmit) = (12, Verdict::Relay(RelayReason::Transmit));
    netns
        .enter(|| {
            let mut kernel = Kernel::load().unwrap();
            kernel.adopt(&model).unwrap();
            for (stranger, host) in STRANGER.iter().zip(HOST) {
                let path = Path::new(stranger, host);
                let headers = if path.is_v4() { 28 } else { 48 };
                let frame = |limit, length: usize| {
                    let mut datagram = packet::udp(port, 443, &vec![7; length]);
                    let sum = path.checksum(UDP, &datagram);
                    datagram[6..8].copy_from_slice(&sum);
                    path.frame_with_limit(limit, UDP, &datagram)
                };
                for (limit, length, expected) in [
                    (64, MTU - headers, transmit),
                    (2, MTU - headers, transmit),
                    (64, MTU - headers + 1, Verdict::Drop(DropReason::RelayMtu)),
                    (1, MTU - headers, Verdict::Drop(DropReason::RelayHopLimit)),
                    (0, MTU - headers, Verdict::Drop(DropReason::RelayHopLimit)),
                ] {
                    let frame = frame(limit, length);
                    let (verdict, left) = kernel.process(&frame).unwrap();
                    assert_eq!(verdict, expected, "{limit} {length}");
                    assert_eq!(left == frame, expected != transmit);
                }
            }
        })
        .unwrap();
}

/// A host that has the far end's addresses, on the other side of a wire.
struct FarEnd {
    _netns: [Netns; 2],
    wire: Wire,
    mac: Vec<u8>,
    sockets: [UdpSocket; 2],
}

impl FarEnd {
    fn new() -> Self {
        let [near, far] = [Netns::new("near").unwrap(), Netns::new("far").unwrap()];
        veth(&near, "eth0", &far, "eth0").unwrap();
        far.sysctl("net/ipv4/conf/all/rp_filter", "0").unwrap();
        far.sysctl("net/ipv4/conf/eth0/rp_filter", "0").unwrap();
        far.run("ip link set dev eth0 mtu 1500").unwrap();
        for (address, length) in FAR.iter().zip([24, 64]) {
            far.address("eth0", &format!("{address}/{length}")).unwrap();
        }
        let shown = far.run("ip -o link show eth0").unwrap();
        let (_, rest) = shown.split_once("link/ether ").unwrap();
        let mac = rest.split_whitespace().next().unwrap().split(':');
        let mac = mac.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        let sockets = far
            .enter(|| {
                FAR.map(|address| {
                    let at = SocketAddr::new(address.parse().unwrap(), FAR_PORT);
                    let socket = UdpSocket::bind(at).unwrap();
                    socket.set_nonblocking(true).unwrap();
                    socket
                })
            })
            .unwrap();
        let wire = Wire::on(&near, "eth0").unwrap();
        Self { _netns: [near, far], wire, mac, sockets }
    }

    /// The data that a program gets of a packet, if the kernel finds nothing wrong with it.
    fn take(&self, family: usize, packet: &[u8]) -> Option<Vec<u8>> {
        let mut frame = self.mac.clone();
        frame.extend([2, 0, 0, 0, 0, 9]);
        frame.extend([[0x08, 0x00], [0x86, 0xdd]][family]);
        frame.extend(packet);
        self.wire.send(&frame).unwrap();
        let deadline = std::time::Instant::now() + ANSWER;
        // Behind it another that is right: once that is there, the first one was refused.
        let marker =
            Case { family, between: Between::Nothing, sum: Sum::Right, length: 5, tags_in: 0, tags_out: 0 };
        let (_, marker_packet, marker_data) = marker.packets();
        frame.truncate(14);
        frame.extend(marker_packet);
        self.wire.send(&frame).unwrap();
        let mut taken = None;
        let mut data = [0; 2_048];
        while std::time::Instant::now() < deadline {
            match self.sockets[family].recv_from(&mut data) {
                Ok((length, from)) => {
                    assert_eq!(from, SocketAddr::new(HOST[family].parse().unwrap(), 443));
                    if data[..length] == marker_data {
                        return taken;
                    }
                    taken = Some(data[..length].to_vec());
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_micros(50));
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the far end takes nothing at all");
    }
}

//! Packets: well-formed ones around what the world knows, most of them then damaged; and, in order, every byte and
//! every length of one packet of each kind.

use fastrand::Rng;
use portcullis_common::{BIND_DATAGRAM, INITIAL_DATAGRAM};

use super::world::{ADMIN, FAR_PORT, LINK, LOCAL, RECENT, RELAYED, REMOTE};
use crate::gate::kernel::monotonic_ns;
use crate::gate::model::{Model, PEER_PORT, TO_HOST_PORTS};
use crate::gate::packet::{self, ICMP, ICMPV6, Path, TCP, UDP};
use crate::gate::quic;

/// A port that no relayed flow and no peer has.
const ELSEWHERE: u16 = 50_000;
/// `BPF_PROG_TEST_RUN` takes no less.
const SHORTEST: usize = 14;

pub struct Generator {
    rng: Rng,
    model: Model,
    opened: [u16; 2],
    batch: u64,
}

impl Generator {
    pub fn new(rng: Rng, model: &Model, opened: [u16; 2]) -> Self {
        Self { rng, model: model.clone(), opened, batch: 0 }
    }

    /// From time to time other identifiers and knocks, so that their budgets are seen full and used up.
    pub fn renew(&mut self) {
        self.batch += 1;
    }

    pub fn frame(&mut self) -> Vec<u8> {
        let mut frame = match self.rng.u8(..64) {
            0..=27 => self.transport(),
            28..=33 => self.welcome(),
            34..=56 => self.tunnel(),
            57..=58 => packet::arp(self.rng.u8(..4)),
            59 => packet::ethernet(&[], self.rng.u16(..), &self.noise(60)),
            _ => self.noise(200),
        };
        if self.rng.u8(..8) > 2 {
            self.damage(&mut frame);
        }
        if self.rng.u16(..2_048) == 0 {
            // Around the longest that IP can be, in several buffers.
            frame.resize(65_536 + self.rng.usize(..128), 0);
        }
        frame.resize(frame.len().max(SHORTEST), 0);
        frame
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.usize(..of.len())]
    }

    fn noise(&mut self, below: usize) -> Vec<u8> {
        let length = self.rng.usize(..below);
        (0..length).map(|_| self.rng.u8(..)).collect()
    }

    fn path(&mut self, family: usize) -> Path {
        let remotes = self.pick(&[REMOTE, REMOTE, REMOTE, ADMIN, RECENT, LINK]);
        let path = Path::new(remotes[family], LOCAL[family]);
        match self.rng.u16(..256) {
            0 => path.reversed(),
            1 if family == 1 => Path::new("::ffff:198.51.100.7", LOCAL[1]),
            2 if family == 1 => Path::new(remotes[1], "::ffff:192.0.2.1"),
            _ => path,
        }
    }

    fn limit(&mut self) -> u8 {
        self.pick(&[64, 64, 64, 64, 255, 254, 2, 1, 0])
    }

    /// An IP packet behind a link header: sometimes with tags, options, extension headers.
    fn wrap(&mut self, path: &Path, limit: u8, mut protocol: u8, mut payload: Vec<u8>) -> Vec<u8> {
        let tags: &[u16] = match self.rng.u8(..16) {
            0..=9 => &[],
            10..=11 => &[0x8100],
            12 => &[0x88a8],
            13 => &[0x88a8, 0x8100],
            14 => &[0x8100, 0x8100],
            _ => &[0x8100, 0x88a8, 0x8100],
        };
        if !path.is_v4() && self.rng.u8(..4) == 0 {
            for _ in 0..self.rng.u8(1..6) {
                let words = if self.rng.u8(..4) == 0 { self.rng.u8(..36) } else { self.rng.u8(..2) };
                let (header, next) = match self.rng.u8(..8) {
                    0..=1 => (packet::extension(protocol, words, &payload), 0),
                    2..=4 => (packet::extension(protocol, words, &payload), 60),
                    5 => (packet::fragment(protocol, 0, false, &payload), 44),
                    6 => (packet::fragment(protocol, self.rng.u16(..4), self.rng.bool(), &payload), 44),
                    _ => (packet::extension(protocol, words, &payload), 43),
                };
                (payload, protocol) = (header, next);
            }
        }
        let mut ip = path.ip_with_limit(limit, protocol, &payload);
        if path.is_v4() && self.rng.u8(..4) == 0 {
            let options = 4 * self.rng.usize(..11);
            ip = packet::with_options(&ip, &vec![1; options]);
        }
        packet::ethernet(tags, path.ethertype(), &ip)
    }

    fn port(&mut self) -> u16 {
        match self.rng.u8(..16) {
            0..=3 => 443,
            4 => 22,
            5 => 161,
            6 => 53,
            7 => 54,
            8 => 40_000,
            9 => self.pick(&[67, 68]),
            10 => self.pick(&[546, 547]),
            11..=12 => FAR_PORT,
            13 => self.pick(&self.opened.clone()),
            _ => self.rng.u16(..),
        }
    }

    fn udp(&mut self) -> Vec<u8> {
        let (from, to, data) = (self.port(), self.port(), self.noise(48));
        packet::udp(from, to, &data)
    }

    fn tcp(&mut self, family: usize) -> Vec<u8> {
        let (mut from, mut to) = (self.port(), self.port());
        if self.rng.u8(..4) == 0 {
            (from, to) = (FAR_PORT, self.opened[family]);
        }
        let any = self.rng.u8(..);
        let mut segment = packet::tcp(from, to, self.pick(&[2, 2, 16, 16, 18, any]));
        segment[12] = self.pick(&[0x50, 0x50, 0x50, 0x60, 0x40, 0xf0]);
        segment.extend(self.noise(64));
        segment
    }

    fn transport(&mut self) -> Vec<u8> {
        let family = self.rng.usize(..2);
        let path = self.path(family);
        let limit = self.limit();
        let any = self.rng.u8(..);
        let (protocol, payload) = match self.rng.u8(..22) {
            0..=6 => (TCP, self.tcp(family)),
            7..=12 => (UDP, self.udp()),
            13..=16 => {
                let kind = self.pick(&[0, 8, 128, 129, 130, 134, 135, 136, 137, 3, 11, 1, 4, any]);
                let identifier = self.pick(&[77, 78]);
                (path.icmp_protocol(), packet::icmp(kind, identifier, &self.noise(48)))
            }
            17..=20 => (path.icmp_protocol(), self.error(&path, family)),
            _ => (any, self.noise(64)),
        };
        self.wrap(&path, limit, protocol, payload)
    }

    /// An ICMP error and what it quotes.
    fn error(&mut self, path: &Path, family: usize) -> Vec<u8> {
        let opened = self.opened[family];
        let (protocol, quoted) = match self.rng.u8(..12) {
            0..=2 => (UDP, packet::udp(40_000, 53, b"")),
            3..=4 => (TCP, packet::tcp(opened, FAR_PORT, 16)),
            5 => (UDP, packet::udp(443, self.pick(&[PEER_PORT, 3, 9, ELSEWHERE]), b"")),
            6 => (ICMP, packet::icmp(self.pick(&[8, 0]), self.pick(&[77, 78]), b"")),
            7 => (ICMPV6, packet::icmp(self.pick(&[128, 129]), self.pick(&[77, 78]), b"")),
            8 => (TCP, self.tcp(family)),
            9..=10 => (UDP, self.udp()),
            _ => (self.rng.u8(..), self.noise(24)),
        };
        let mut packet = path.reversed().ip(protocol, &quoted);
        if path.is_v4() && self.rng.u8(..4) == 0 {
            packet = packet::with_options(&packet, &vec![1; 4 * self.rng.usize(..11)]);
        }
        if self.rng.u8(..4) == 0 {
            packet.truncate(self.rng.usize(..=packet.len()));
        }
        let kinds: &[u8] = if path.is_v4() { &[3, 11, 12, 5] } else { &[1, 2, 3, 4] };
        packet::icmp(self.pick(kinds), 0, &packet)
    }

    /// Packets that pass only if several fields are right at once, which chance seldom makes them.
    fn welcome(&mut self) -> Vec<u8> {
        let kinds = kinds(self.opened);
        let which = self.rng.usize(..kinds.len());
        let (path, limit, protocol, payload) = kinds[which].clone();
        self.wrap(&path, limit, protocol, payload)
    }

    /// Datagrams to the tunnel's port.
    fn tunnel(&mut self) -> Vec<u8> {
        let family = self.rng.usize(..2);
        let remotes = self.pick(&[REMOTE, REMOTE, REMOTE, RECENT, ADMIN]);
        let path = Path::new(remotes[family], LOCAL[family]);
        let port = match self.rng.u8(..16) {
            0..=2 => ELSEWHERE,
            3..=4 => PEER_PORT,
            5 => self.rng.u16(..),
            _ => self.rng.u16(..RELAYED),
        };
        let data = if port < RELAYED && self.rng.u8(..8) > 0 { self.relayed() } else { self.quic() };
        let mut datagram = packet::udp(port, 443, &data);
        let sum = match self.rng.u8(..16) {
            0..=1 => [0; 2],
            2 => [0xff; 2],
            // Ends near zero, where ones' complement has two of them.
            3 => [0, self.rng.u8(..4)],
            4 => [0xff, 0xfc | self.rng.u8(..)],
            5 => [self.rng.u8(..), self.rng.u8(..)],
            _ => path.checksum(UDP, &datagram),
        };
        datagram[6..8].copy_from_slice(&sum);
        let limit = self.limit();
        self.wrap(&path, limit, UDP, datagram)
    }

    fn relayed(&mut self) -> Vec<u8> {
        match self.rng.u8(..32) {
            // Longer than the links take.
            0 => vec![0x5a; self.rng.usize(1_440..1_500)],
            1..=8 => self.noise(2 * BIND_DATAGRAM),
            9 => {
                let mut bind = self.noise(1);
                bind.resize(BIND_DATAGRAM, self.rng.u8(..4));
                bind
            }
            _ => self.noise(24),
        }
    }

    fn quic(&mut self) -> Vec<u8> {
        // Some come so often that their budget is used up.
        let nonce = self.batch / 16 * 64 + self.rng.u64(..48);
        let wall = self.model.settings.wall(monotonic_ns());
        let device = self.pick(&[5, 5, 6, 66]);
        let epoch = portcullis_common::KNOCK_EPOCH_NS;
        let when = self.pick(&[wall, wall, wall, wall - epoch, wall + epoch, wall - 2 * epoch]);
        let destination = match self.rng.u8(..12) {
            0..=4 => self.model.id(nonce).to_vec(),
            5..=7 => self.model.settings.knock.device(device).knock(when, nonce).to_bytes().to_vec(),
            8 => vec![9; self.rng.usize(..22)],
            9 => vec![9; 8],
            _ => vec![9; 16],
        };
        let minted: [u8; 16] = destination.clone().try_into().unwrap_or([1; 16]);
        let version = self.pick(&[1, 1, 1, 1, 1, 1, 2, 0x6b33_43cf]);
        let length = if self.rng.u8(..4) == 0 { self.rng.usize(..1_300) } else { INITIAL_DATAGRAM };
        match self.rng.u8(..16) {
            0..=2 => quic::short(minted, 37 + length % 64),
            3 => quic::short(minted, length % 64),
            4..=5 => quic::bind(minted),
            6 => quic::long(2, version, &destination, length % 128),
            7 => quic::long(self.rng.u8(..4), version, &destination, length),
            8 => self.noise(64),
            _ => quic::long(0, version, &destination, length),
        }
    }

    fn damage(&mut self, frame: &mut Vec<u8>) {
        for _ in 0..self.rng.u8(1..4) {
            if frame.is_empty() {
                return;
            }
            // Most headers are in the first sixty bytes.
            let at = match self.rng.u8(..8) {
                0..=4 => self.rng.usize(12..60),
                5..=6 => self.rng.usize(..110),
                _ => self.rng.usize(..frame.len()),
            } % frame.len();
            match self.rng.u8(..16) {
                0..=4 => frame[at] = self.rng.u8(..),
                5..=7 => frame[at] ^= 1 << self.rng.u8(..8),
                8..=9 => frame[at] = frame[at].wrapping_add(self.pick(&[1, 2, 0xff, 0xfe, 8, 0xf8])),
                10 => frame[at] = self.pick(&[0, 1, 4, 5, 6, 0x0f, 0x40, 0x45, 0x60, 0x7f, 0x80, 0xff]),
                11 => frame.truncate(self.rng.usize(..frame.len())),
                12 => frame.truncate(at),
                13 => frame.extend(std::iter::repeat_n(0xa5, self.rng.usize(..64))),
                14 => {
                    let span = at..frame.len().min(at + self.rng.usize(1..9));
                    let copy = frame[span].to_vec();
                    frame.splice(at..at, copy);
                }
                _ => drop(frame.drain(at..frame.len().min(at + self.rng.usize(1..9)))),
            }
        }
    }
}

type Kind = (Path, u8, u8, Vec<u8>);

/// One of each kind that passes, by both families: path, hop limit, protocol, payload.
fn kinds(opened: [u16; 2]) -> Vec<Kind> {
    let mut kinds = Vec::new();
    for family in 0..2 {
        let path = |remote: [&str; 2]| Path::new(remote[family], LOCAL[family]);
        let (far, admin, link) = (path(REMOTE), path(ADMIN), path(LINK));
        let icmp = far.icmp_protocol();
        let (echo, reply) = if far.is_v4() { (8, 0) } else { (128, 129) };
        let error = |protocol, quoted: &[u8]| {
            packet::icmp(if far.is_v4() { 3 } else { 1 }, 0, &far.reversed().ip(protocol, quoted))
        };
        kinds.extend([
            (far, 64, TCP, packet::tcp(ELSEWHERE, 443, packet::SYN)),
            (path(RECENT), 64, TCP, packet::tcp(ELSEWHERE, 443, packet::SYN)),
            (far, 64, TCP, packet::tcp(FAR_PORT, opened[family], packet::ACK)),
            (far, 64, TCP, packet::tcp(ELSEWHERE, 443, packet::ACK)),
            (admin, 64, TCP, packet::tcp(ELSEWHERE, 22, packet::SYN)),
            (admin, 64, UDP, packet::udp(ELSEWHERE, 161, b"x")),
            (far, 64, UDP, packet::udp(53, 40_000, b"x")),
            (
                if far.is_v4() { far } else { link },
                64,
                UDP,
                if far.is_v4() { packet::udp(67, 68, b"x") } else { packet::udp(547, 546, b"x") },
            ),
            (far, 64, icmp, packet::icmp(echo, 5, b"data")),
            (far, 64, icmp, packet::icmp(reply, 77, b"data")),
            (far, 64, icmp, error(UDP, &packet::udp(40_000, 53, b""))),
            (far, 64, icmp, error(UDP, &packet::udp(443, PEER_PORT, b""))),
            (far, 64, icmp, error(TCP, &packet::tcp(opened[family], FAR_PORT, packet::ACK))),
            (far, 64, icmp, error(icmp, &packet::icmp(echo, 77, b""))),
        ]);
        if !far.is_v4() {
            kinds.push((far, 255, icmp, packet::icmp(135, 0, &[0; 16])));
            kinds.push((link, 1, icmp, packet::icmp(130, 0, &[0; 20])));
        }
    }
    kinds
}

/// Every byte of the headers and every length of a packet of each kind. Of each byte all values, or those one bit
/// away and the least and greatest.
pub fn sweep(model: &Model, opened: [u16; 2], every_value: bool) -> impl Iterator<Item = Vec<u8>> + use<> {
    let (kinds, minted) = (kinds(opened), model.id(7));
    let wall = model.settings.wall(monotonic_ns());
    let knock = model.settings.knock.device(5).knock(wall, 7).to_bytes();
    let mut frames: Vec<_> = kinds
        .iter()
        .map(|(path, limit, protocol, payload)| path.frame_with_limit(*limit, *protocol, payload))
        .collect();
    frames.push(packet::arp(1));
    for (remote, local) in REMOTE.iter().zip(LOCAL) {
        let path = Path::new(remote, local);
        let datagrams = [
            (PEER_PORT, quic::short(minted, 40)),
            (ELSEWHERE, quic::short(minted, 40)),
            (ELSEWHERE, quic::bind(minted)),
            (ELSEWHERE, quic::long(2, 1, &minted, 60)),
            (ELSEWHERE, quic::initial(&minted)),
            (ELSEWHERE, quic::initial(&knock)),
            (ELSEWHERE, quic::initial(&[9; 8])),
            (0, b"by the way it came".to_vec()),
            (4, b"with a tag".to_vec()),
            (8, b"by another way".to_vec()),
            (TO_HOST_PORTS.start, b"to the host".to_vec()),
        ];
        for (port, data) in datagrams {
            let mut datagram = packet::udp(port, 443, &data);
            let sum = path.checksum(UDP, &datagram);
            datagram[6..8].copy_from_slice(&sum);
            frames.push(path.frame(UDP, &datagram));
            if port < RELAYED {
                frames.push(path.tagged(&[0x88a8, 0x8100], UDP, &datagram));
            }
        }
        let syn = packet::tcp(ELSEWHERE, 443, packet::SYN);
        if path.is_v4() {
            let ip = packet::with_options(&path.ip(TCP, &syn), &[1; 8]);
            frames.push(packet::ethernet(&[0x8100], path.ethertype(), &ip));
        } else {
            let chain = packet::extension(44, 0, &packet::fragment(TCP, 0, false, &syn));
            frames.push(path.tagged(&[0x8100], 0, &chain));
        }
    }
    frames.into_iter().flat_map(move |frame| {
        let (bytes, lengths) = (frame.clone(), frame.clone());
        let headers = frame.len().min(110);
        let values: Vec<u8> =
            if every_value { (0..=255).collect() } else { vec![1, 2, 4, 8, 16, 32, 64, 128, 0, 255] };
        let damaged = (0..headers).flat_map(move |at| {
            let bytes = bytes.clone();
            values.clone().into_iter().enumerate().map(move |(nth, value)| {
                let mut damaged = bytes.clone();
                damaged[at] = if every_value || nth >= 8 { value } else { damaged[at] ^ value };
                damaged
            })
        });
        let whole = lengths.len();
        let cut = (SHORTEST..whole + 9)
            .filter(move |length| *length < 200 || whole - whole.min(*length) < 8)
            .map(move |length| {
                let mut cut = lengths.clone();
                cut.resize(length, 0xa5);
                cut
            });
        damaged.chain(cut)
    })
}

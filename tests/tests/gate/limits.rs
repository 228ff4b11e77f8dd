//! Who pays from which budget, and what ends when: written by hand, and asked of the kernel and of the host.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use portcullis_common::layout::{CidKey, HostFlowKey};
use portcullis_common::{
    Address, ConnectionId, DropReason as D, Family, PassReason as P, RateClass, SipKey, Verdict,
};
use portcullis_tests::gate::fuzz::exact::Exact;
use portcullis_tests::gate::fuzz::world::{self, ADMIN, LOCAL, RECENT, REMOTE, flow};
use portcullis_tests::gate::kernel::{Kernel, monotonic_ns};
use portcullis_tests::gate::model::Model;
use portcullis_tests::gate::packet::{self, ACK, Path, SYN, TCP};
use portcullis_tests::gate::quic;
use portcullis_tests::netns::Netns;

const USED_UP: u64 = u64::MAX / 2;
/// A port that no relayed flow and no peer has.
const ELSEWHERE: u16 = 50_000;

/// Both sides, under the same maps.
struct Sides {
    kernel: Kernel,
    host: Exact,
}

impl Sides {
    fn new(model: Model) -> Self {
        let mut kernel = Kernel::load().unwrap();
        kernel.adopt(&model).unwrap();
        let recent: HashSet<u64> = RECENT.iter().map(|address| network(&model, address)).collect();
        recent.iter().for_each(|hash| kernel.set_recent(*hash).unwrap());
        Self { kernel, host: Exact::new(model, recent) }
    }

    fn verdict(&mut self, frame: &[u8]) -> Verdict {
        let host = self.host.verdict(frame, monotonic_ns());
        assert_eq!(self.kernel.verdict(frame).unwrap(), host, "{frame:02x?}");
        host
    }

    fn set(&mut self, class: RateClass, hash: u64, word: u64) {
        let slot = class.slot(hash);
        self.host.set_word(slot, word);
        self.kernel.set_words([(slot, word)]).unwrap();
    }

    /// Whether anything was ever taken, or put, there.
    fn is_untouched(&self, class: RateClass, hash: u64) -> bool {
        let slot = class.slot(hash);
        let kernel = self.kernel.words([slot]).unwrap()[0].1;
        assert_eq!(kernel == 0, self.host.word(slot) == 0, "{class:?}");
        kernel == 0
    }
}

fn network(model: &Model, address: &str) -> u64 {
    let address: IpAddr = address.parse().unwrap();
    let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
    model.settings.network_hash(family, Address::from(address))
}

/// Neither one network nor any number of them takes what belongs to those who work.
#[test]
fn an_opening_is_paid_by_its_network_first_and_then_from_a_budget_of_its_kind() {
    use RateClass::{Unproven, UnprovenNetwork, UnprovenRecent};
    let netns = Netns::new("payers").unwrap();
    let openers = [
        (RateClass::SynNetwork, RateClass::SynRecent, RateClass::Syn, P::TcpOpen, D::SynRate),
        (RateClass::OpenerNetwork, RateClass::OpenerRecent, RateClass::Opener, P::TunnelOpen, D::OpenerRate),
        (UnprovenNetwork, UnprovenRecent, Unproven, P::TunnelUnproven, D::TunnelRate),
        (UnprovenNetwork, UnprovenRecent, Unproven, P::RelayBind, D::TunnelRate),
    ];
    netns
        .enter(|| {
            for family in 0..2 {
                for (by_network, recent, all, pass, refused) in openers {
                    let model = world::model();
                    let opening = |remote: [&str; 2]| {
                        let path = Path::new(remote[family], LOCAL[family]);
                        match pass {
                            P::TcpOpen => path.frame(TCP, &packet::tcp(ELSEWHERE, 443, SYN)),
                            P::TunnelUnproven => path.udp(ELSEWHERE, 443, &quic::short(model.id(8), 40)),
                            P::RelayBind => path.udp(ELSEWHERE, 443, &quic::bind(model.id(8))),
                            _ => path.udp(ELSEWHERE, 443, &quic::initial(&[9; 8])),
                        }
                    };
                    let stranger = network(&model, REMOTE[family]);
                    let mut sides = Sides::new(model.clone());
                    // A network that has used up its own leaves the common budget alone.
                    sides.set(by_network, stranger, USED_UP);
                    assert_eq!(sides.verdict(&opening(REMOTE)), Verdict::Drop(refused));
                    assert!(sides.is_untouched(all, 0) && sides.is_untouched(recent, 0));
                    sides.set(by_network, stranger, 0);
                    assert_eq!(sides.verdict(&opening(REMOTE)), Verdict::Pass(pass));
                    assert!(!sides.is_untouched(all, 0) && !sides.is_untouched(by_network, stranger));
                    // Strangers have used up all: who has logged in is served from what is reserved for him, and
                    // they are not.
                    sides.set(all, 0, USED_UP);
                    assert_eq!(sides.verdict(&opening(REMOTE)), Verdict::Drop(refused));
                    assert!(sides.is_untouched(recent, 0), "a stranger paid from what is reserved");
                    assert_eq!(sides.verdict(&opening(RECENT)), Verdict::Pass(pass));
                    assert!(!sides.is_untouched(recent, 0));
                    // With that used up too, he pays as anyone does.
                    sides.set(recent, 0, USED_UP);
                    assert_eq!(sides.verdict(&opening(RECENT)), Verdict::Drop(refused));
                    sides.set(all, 0, 0);
                    assert_eq!(sides.verdict(&opening(RECENT)), Verdict::Pass(pass));
                }
            }
        })
        .unwrap();
}

/// A replayed knock, or identifier, uses up its own budget and no other.
#[test]
fn what_is_sent_again_and_again_pays_for_itself_before_it_takes_from_others() {
    let netns = Netns::new("replay").unwrap();
    netns
        .enter(|| {
            for (remote, local) in REMOTE.iter().zip(LOCAL) {
                let path = Path::new(remote, local);
                let model = world::model();
                let wall = model.settings.wall(monotonic_ns());
                let knock = |nonce| model.settings.knock.device(5).knock(wall, nonce);
                // The low bits of a nonce are not used.
                let minted = |nonce: u64| model.id(nonce << 3);
                let id = |nonce| ConnectionId::from_bytes(minted(nonce));
                let opening = |nonce| path.udp(ELSEWHERE, 443, &quic::initial(&knock(nonce).to_bytes()));
                let short = |nonce| path.udp(ELSEWHERE, 443, &quic::short(minted(nonce), 40));
                let bind = |nonce| path.udp(ELSEWHERE, 443, &quic::bind(minted(nonce)));
                let mut sides = Sides::new(model.clone());
                sides.set(RateClass::KnockOnce, knock(1).hash(), USED_UP);
                sides.set(RateClass::UnprovenId, id(1).hash(), USED_UP);
                assert_eq!(sides.verdict(&opening(1)), Verdict::Drop(D::KnockRate));
                assert_eq!(sides.verdict(&short(1)), Verdict::Drop(D::TunnelRate));
                assert_eq!(sides.verdict(&bind(1)), Verdict::Drop(D::TunnelRate));
                assert!(
                    sides.is_untouched(RateClass::Knock, 0) && sides.is_untouched(RateClass::Unproven, 0)
                );
                // Strangers' openings have nothing to do with knocks.
                sides.set(RateClass::Opener, 0, USED_UP);
                assert_eq!(sides.verdict(&opening(2)), Verdict::Pass(P::TunnelKnock));
                assert_eq!(sides.verdict(&short(2)), Verdict::Pass(P::TunnelUnproven));
                assert_eq!(sides.verdict(&bind(3)), Verdict::Pass(P::RelayBind));
                assert!(
                    !sides.is_untouched(RateClass::Knock, 0) && !sides.is_untouched(RateClass::Unproven, 0)
                );
                sides.set(RateClass::Unproven, 0, USED_UP);
                sides.set(RateClass::Knock, 0, USED_UP);
                assert_eq!(sides.verdict(&opening(4)), Verdict::Drop(D::KnockRate));
                assert_eq!(sides.verdict(&short(4)), Verdict::Drop(D::TunnelRate));
            }
        })
        .unwrap();
}

/// A budget gives so many packets at once and no more.
#[test]
fn a_budget_gives_its_burst_in_the_kernel_too() {
    let netns = Netns::new("burst").unwrap();
    netns
        .enter(|| {
            let path = Path::new(REMOTE[0], LOCAL[0]);
            let model = world::model();
            let knock = model.settings.knock.device(5).knock(model.settings.wall(monotonic_ns()), 1);
            let mut sides = Sides::new(model);
            let opening = path.udp(ELSEWHERE, 443, &quic::initial(&knock.to_bytes()));
            let class = RateClass::KnockOnce;
            let began = monotonic_ns();
            // It fills again while this machine does something else.
            let passed =
                (0..10_000).take_while(|_| sides.kernel.verdict(&opening).unwrap().is_pass()).count();
            let seconds = (monotonic_ns() - began) / 1_000_000_000 + 1;
            let most = class.burst() + seconds * class.per_second();
            assert!((class.burst()..=most).contains(&(passed as u64)), "{passed} in {seconds} s");
        })
        .unwrap();
}

/// A cookie opens no port that a SYN does not: not even one that the kernel gave out before the gate was there. On the
/// host alone, since a real one takes a handshake (`cookie.rs`).
#[test]
fn a_cookie_is_worth_no_more_than_a_syn_from_the_same_end() {
    let mut model = world::model();
    for local in LOCAL {
        let local: IpAddr = local.parse().unwrap();
        model.cookies.extend([443, 22, 8_080].map(|port| SocketAddr::new(local, port)));
    }
    let (taken, refused) = (Verdict::Pass(P::TcpCookie), Verdict::Drop(D::TcpListener));
    for family in 0..2 {
        for (remotes, port, expected) in [
            (REMOTE, 443, taken),
            (REMOTE, 22, refused),
            (REMOTE, 8_080, refused),
            (ADMIN, 22, taken),
            (ADMIN, 8_080, refused),
        ] {
            let path = Path::new(remotes[family], LOCAL[family]);
            let verdict = model.verdict(&path.frame(TCP, &packet::tcp(ELSEWHERE, port, ACK)), 1);
            assert_eq!(verdict, expected, "{path:?} {port}");
        }
    }
}

/// A key, and the standing of a peer, end by the clock even if nobody takes them away.
#[test]
fn what_has_expired_proves_nothing() {
    let netns = Netns::new("expired").unwrap();
    let mut model = world::model();
    let key = SipKey::new([5, 6]);
    let (past, future) = (1, u64::MAX);
    model.cid_keys.extend([(4, CidKey { key, expires: past }), (5, CidKey { key, expires: future })]);
    let id = |slot| ConnectionId::mint(slot, &key, 0x77).to_bytes();
    let (expired, valid) = (7_001, 7_002);
    for (remote, local) in REMOTE.iter().zip(LOCAL) {
        let path = Path::new(remote, local);
        model.tunnels.insert(HostFlowKey::udp(&flow(&path, 443, expired)), past);
        model.tunnels.insert(HostFlowKey::udp(&flow(&path, 443, valid)), future);
    }
    netns
        .enter(|| {
            let mut sides = Sides::new(model);
            for (remote, local) in REMOTE.iter().zip(LOCAL) {
                let path = Path::new(remote, local);
                let mut short = |port, id| sides.verdict(&path.udp(port, 443, &quic::short(id, 40)));
                assert_eq!(short(valid, id(5)), Verdict::Pass(P::Tunnel));
                assert_eq!(short(valid, id(4)), Verdict::Drop(D::TunnelId));
                assert_eq!(short(expired, id(5)), Verdict::Pass(P::TunnelUnproven));
                // The slot is part of what the tag covers.
                let mut moved = id(4);
                moved[0] ^= 1;
                assert_eq!(short(valid, moved), Verdict::Drop(D::TunnelId));
                for (slot, expected) in [(5, Verdict::Pass(P::RelayBind)), (4, Verdict::Drop(D::TunnelId))] {
                    assert_eq!(sides.verdict(&path.udp(ELSEWHERE, 443, &quic::bind(id(slot)))), expected);
                }
                let quoted = |port| path.unreachable(packet::UDP, &packet::udp(443, port, b""));
                assert_eq!(sides.verdict(&quoted(valid)), Verdict::Pass(P::IcmpError));
                assert_eq!(sides.verdict(&quoted(expired)), Verdict::Drop(D::IcmpQuote));
            }
        })
        .unwrap();
}

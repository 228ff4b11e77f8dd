//! SYN cookies: under a SYN flood the kernel keeps nothing of a handshake, so that the ACK which completes it
//! finds only the listener. That ACK must pass, and no other.

use std::net::{IpAddr, TcpListener};

use portcullis_common::{DropReason, PassReason, Verdict};
use portcullis_tests::gate::packet::{ACK, FIN, L3, Path, SYN};
use portcullis_tests::gate::wire::Wire;

use crate::lab::{ANSWER, EDGE, Lab, mac, settle};

/// Addresses that nobody has: the stranger's kernel must not answer for them.
const GHOST: [&str; 2] = ["192.0.2.77", "2001:db8::77"];
const COOKIE: Verdict = Verdict::Pass(PassReason::TcpCookie);
const LISTENER: Verdict = Verdict::Drop(DropReason::TcpListener);

#[test]
fn the_ack_of_a_cookie_passes_and_no_other() {
    let lab = Lab::new();
    // Cookies for every handshake, flood or not.
    lab.edge.sysctl("net/ipv4/tcp_syncookies", "2").unwrap();
    let listener = lab.edge.enter(|| TcpListener::bind("[::]:443").unwrap()).unwrap();
    let gate = lab.open(&lab.config()).unwrap();
    let wire = Wire::on(&lab.stranger, "eth0").unwrap();
    let mac_of_edge = mac(&lab.edge);
    let ghost_mac = "02:00:00:00:00:77";
    for (ghost, edge) in GHOST.iter().zip(EDGE) {
        lab.edge.run(&format!("ip neigh replace {ghost} lladdr {ghost_mac} dev eth0 nud permanent")).unwrap();
        let path = Path::new(ghost, edge);
        let send = |flags, sequence, acknowledgement| {
            let mut frame = path.tcp(50_000, 443, flags, sequence, acknowledgement);
            frame[..6].copy_from_slice(&mac_of_edge);
            wire.send(&frame).unwrap();
        };
        let before = gate.counters().unwrap();
        let rise = |verdict| gate.counters().unwrap().of(verdict) - before.of(verdict);

        send(SYN, 1_000, 0);
        let cookie = wire.receive(ANSWER, |frame| syn_ack(frame, path.local)).unwrap();
        // Neighbours of a cookie are cookies too: its low bits say which segment size was agreed on.
        for (flags, sequence, acknowledgement) in [
            (ACK, 1_001, cookie.wrapping_add(5_000_000)),
            (ACK, 5_000_000, cookie.wrapping_add(1)),
            (ACK | FIN, 1_001, cookie.wrapping_add(1)),
            (SYN | ACK, 1_001, cookie.wrapping_add(1)),
        ] {
            send(flags, sequence, acknowledgement);
        }
        settle(|| rise(LISTENER) == 4);
        assert_eq!(rise(COOKIE), 0);
        send(ACK, 1_001, cookie.wrapping_add(1));
        settle(|| rise(COOKIE) == 1);
        let (_, from) = listener.accept().unwrap();
        assert_eq!((from.ip().to_canonical(), from.port()), (path.remote, 50_000));
        assert_eq!(rise(LISTENER), 4);
    }
}

/// The sequence number of a SYN and ACK from `source`, port 443, to port 50000.
fn syn_ack(frame: &[u8], source: IpAddr) -> Option<u32> {
    let (source_at, tcp_at) = if source.is_ipv4() { (L3 + 12, L3 + 20) } else { (L3 + 8, L3 + 40) };
    let tcp = frame.get(tcp_at..)?;
    let from = match source {
        IpAddr::V4(address) => frame.get(source_at..)?.starts_with(&address.octets()),
        IpAddr::V6(address) => frame.get(source_at..)?.starts_with(&address.octets()),
    };
    let ports = tcp.starts_with(&[1, 187, 195, 80]);
    (from && ports && *tcp.get(13)? == SYN | ACK).then(|| u32::from_be_bytes(tcp[4..8].try_into().unwrap()))
}

//! TCP by the kernel's own sockets: with every setting of SYN cookies, after a connection has ended, and while
//! strangers flood.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use portcullis::gate::Gate;
use portcullis_common::{DropReason, PassReason, Verdict};
use portcullis_tests::gate::packet::{ACK, FIN, Path, RST, SYN};
use portcullis_tests::gate::wire::Wire;

use crate::lab::{ANSWER, EDGE, Echo, Lab, STRANGER, mac, settle};

const CONNECTION: Verdict = Verdict::Pass(PassReason::TcpConnection);
const LISTENER: Verdict = Verdict::Drop(DropReason::TcpListener);
const SYN_RATE: Verdict = Verdict::Drop(DropReason::SynRate);
const NO_CONNECTION: Verdict = Verdict::Drop(DropReason::TcpNoConnection);

fn connect(lab: &Lab, address: &str, port: u16) -> TcpStream {
    let to = SocketAddr::new(address.parse().unwrap(), port);
    let stream = lab.stranger.enter(|| TcpStream::connect_timeout(&to, ANSWER)).unwrap().unwrap();
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    stream
}

fn exchange(stream: &mut TcpStream) {
    stream.write_all(b"?").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

fn count(gate: &Gate, verdict: Verdict) -> u64 {
    gate.counters().unwrap().of(verdict)
}

#[test]
fn handshakes_complete_and_stray_packets_drop_with_every_setting_of_cookies() {
    for setting in ["0", "1", "2"] {
        let lab = Lab::new();
        lab.edge.sysctl("net/ipv4/tcp_syncookies", setting).unwrap();
        let _served = Echo::on(&lab.edge, 443);
        let older: Vec<TcpStream> = EDGE.iter().map(|edge| connect(&lab, edge, 443)).collect();
        let gate = lab.open(&lab.config()).unwrap();
        for mut stream in older {
            exchange(&mut stream);
        }
        let wire = Wire::on(&lab.stranger, "eth0").unwrap();
        let mac = mac(&lab.edge);
        for (remote, edge) in STRANGER.into_iter().zip(EDGE) {
            exchange(&mut connect(&lab, edge, 443));
            let path = Path::new(remote, edge);
            for flags in [ACK, ACK | FIN, RST, RST | ACK, SYN | ACK] {
                let before = count(&gate, LISTENER);
                let mut frame = path.tcp(50_000, 443, flags, 1_000, 2_000);
                frame[..6].copy_from_slice(&mac);
                wire.send(&frame).unwrap();
                settle(|| count(&gate, LISTENER) > before);
            }
        }
        assert_eq!(count(&gate, NO_CONNECTION), 0);
    }
}

/// The end that closes first keeps the connection for a minute: what the other end still sends is answered.
#[test]
fn a_connection_in_time_wait_still_gets_its_packets() {
    let lab = Lab::new();
    let listener = lab.edge.enter(|| TcpListener::bind("[::]:443").unwrap()).unwrap();
    let gate = lab.open(&lab.config()).unwrap();
    let wire = Wire::on(&lab.stranger, "eth0").unwrap();
    let mac = mac(&lab.edge);
    for (remote, edge) in STRANGER.into_iter().zip(EDGE) {
        let stream = connect(&lab, edge, 443);
        let port = stream.local_addr().unwrap().port();
        let (accepted, _) = listener.accept().unwrap();
        drop(accepted);
        let mut stream = stream;
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        drop(stream);
        let sockets = || lab.edge.run("ss -Htan state time-wait").unwrap();
        settle(|| sockets().contains(&format!(":{port}")));
        let before = count(&gate, CONNECTION);
        let mut frame = Path::new(remote, edge).tcp(port, 443, ACK | FIN, 1, 1);
        frame[..6].copy_from_slice(&mac);
        wire.send(&frame).unwrap();
        settle(|| count(&gate, CONNECTION) > before);
    }
    assert_eq!(count(&gate, LISTENER), 0);
}

/// Strangers use up every bucket of SYNs: the network's own and the one for all. Not one packet of a connection is lost
/// to that.
#[test]
fn established_connections_lose_nothing_while_strangers_flood() {
    let lab = Lab::new();
    let _served = Echo::on(&lab.edge, 443);
    let gate = lab.open(&lab.config()).unwrap();
    let mut streams: Vec<TcpStream> = EDGE.iter().map(|edge| connect(&lab, edge, 443)).collect();
    let wire = Wire::on(&lab.stranger, "eth0").unwrap();
    let mac = mac(&lab.edge);
    let flood = |from: IpAddr, port: u16| {
        let mut frame = Path { remote: from, local: EDGE[0].parse().unwrap() }.tcp(port, 443, SYN, 1, 0);
        frame[..6].copy_from_slice(&mac);
        wire.send(&frame).unwrap();
    };
    // The budgets of the stranger's own network first: its connections pay nothing.
    let own: IpAddr = STRANGER[0].parse().unwrap();
    for port in 20_000..22_000 {
        flood(own, port);
    }
    settle(|| count(&gate, SYN_RATE) > 0);
    let (before, refused) = (count(&gate, CONNECTION), count(&gate, SYN_RATE));
    for turn in 0..500u32 {
        for port in 0..40 {
            flood(IpAddr::from([198, 18, (turn % 250) as u8, 7]), 30_000 + port);
            flood(own, 22_000 + port);
        }
        streams.iter_mut().for_each(exchange);
    }
    assert!(count(&gate, SYN_RATE) > refused + 1_000, "control: the flood is refused");
    assert!(count(&gate, CONNECTION) >= before + 2 * 500);
    // That the kernel sent nothing twice would say as much, but on a busy machine it does so for its own reasons.
    let counters = gate.counters().unwrap();
    let dropped: Vec<_> = counters
        .by_reason()
        .filter(|(action, reason, packets)| *action == "drop" && reason.starts_with("tcp_") && *packets > 0)
        .collect();
    assert_eq!(dropped, [], "only openings are refused, as syn_rate");
}

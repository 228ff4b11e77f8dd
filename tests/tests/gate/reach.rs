//! What gets through on a real interface. Every silence has its control: without the gate there is an answer.

use std::net::SocketAddr;

use portcullis_common::{DropReason, PassReason, Verdict};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{ANSWER, EDGE, Echo, Lab, SILENCE, STRANGER};

#[test]
fn a_stranger_reaches_the_served_port_and_nothing_else() {
    let lab = Lab::new();
    let _planted: Vec<Echo> = [443, 22, 8080, 5353].map(|port| Echo::on(&lab.edge, port)).into();
    for port in [443, 22, 8080, 5353] {
        assert_eq!(lab.stranger_reaches_tcp(port, ANSWER), [true; 2], "control, TCP {port}");
        assert_eq!(lab.stranger_reaches_udp(port, ANSWER), [true; 2], "control, UDP {port}");
    }
    let gate = lab.open(&lab.config()).unwrap();
    assert_eq!(lab.stranger_reaches_tcp(443, ANSWER), [true; 2]);
    assert_eq!(lab.stranger_reaches_udp(443, ANSWER), [true; 2]);
    for port in [22, 8080, 5353] {
        assert_eq!(lab.stranger_reaches_tcp(port, SILENCE), [false; 2], "TCP {port}");
        assert_eq!(lab.stranger_reaches_udp(port, SILENCE), [false; 2], "UDP {port}");
    }
    let counters = gate.counters().unwrap();
    assert!(counters.of(Verdict::Pass(PassReason::TcpOpen)) >= 2);
    assert_eq!(counters.of(Verdict::Pass(PassReason::TunnelOpen)), 2);
    assert!(counters.of(Verdict::Drop(DropReason::TcpClosed)) >= 6);
    assert_eq!(counters.of(Verdict::Drop(DropReason::UdpUnsolicited)), 6);
}

#[test]
fn an_administrator_keeps_the_listed_port_and_only_that() {
    let lab = Lab::new();
    let _planted: Vec<Echo> = [22, 161].map(|port| Echo::on(&lab.edge, port)).into();
    let mut config = lab.config();
    for rule in ["192.0.2.2:22", "[2001:db8::2]:22", "192.0.2.0/24:161/udp", "[2001:db8::]/64:161/udp"] {
        config.admin.push(rule.parse().unwrap());
    }
    let _gate = lab.open(&config).unwrap();
    assert_eq!(lab.stranger_reaches_tcp(22, ANSWER), [true; 2]);
    assert_eq!(lab.stranger_reaches_udp(22, SILENCE), [false; 2]);
    assert_eq!(lab.stranger_reaches_tcp(161, SILENCE), [false; 2]);
    assert_eq!(lab.stranger_reaches_udp(161, ANSWER), [true; 2]);
    config.admin.clear();
    let _gate = lab.open(&config).unwrap();
    assert_eq!(lab.stranger_reaches_tcp(22, SILENCE), [false; 2], "the list is written anew");
    assert_eq!(lab.stranger_reaches_udp(161, SILENCE), [false; 2]);
}

#[test]
fn answers_to_what_the_host_opens_come_back() {
    let lab = Lab::new();
    let _servers: Vec<Echo> = [53, 7000].map(|port| Echo::on(&lab.stranger, port)).into();
    let gate = lab.open(&lab.config()).unwrap();
    assert_eq!(lab.edge_reaches_tcp(7000, ANSWER), [true; 2]);
    assert_eq!(lab.edge_reaches_udp(53, ANSWER), [true; 2]);
    for address in STRANGER {
        assert!(ping(&lab, address), "{address}");
    }
    let counters = gate.counters().unwrap();
    assert_eq!(counters.of(Verdict::Pass(PassReason::HostReply)), 2);
    assert_eq!(counters.of(Verdict::Pass(PassReason::EchoReply)), 2);
    assert!(counters.of(Verdict::Pass(PassReason::TcpConnection)) >= 4);
    // The other end's kernel solicits routers and reports its multicast groups as it likes.
    let noise = counters.of(Verdict::Drop(DropReason::IcmpType));
    assert_eq!(counters.dropped(), noise, "{counters:?}");
}

/// "Connection refused" on UDP is an ICMP error about the host's own datagram.
#[test]
fn errors_about_the_hosts_own_datagrams_come_back() {
    let lab = Lab::new();
    let gate = lab.open(&lab.config()).unwrap();
    for address in STRANGER {
        let to = SocketAddr::new(address.parse().unwrap(), 9);
        let error = lab
            .edge
            .enter(|| {
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = std::net::UdpSocket::bind(any).unwrap();
                socket.connect(to).unwrap();
                socket.set_read_timeout(Some(ANSWER)).unwrap();
                socket.send(b"?").unwrap();
                socket.recv(&mut [0; 8]).unwrap_err()
            })
            .unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{address}");
    }
    assert_eq!(gate.counters().unwrap().of(Verdict::Pass(PassReason::IcmpError)), 2);
}

#[test]
fn a_connection_older_than_the_gate_goes_on() {
    use std::io::{Read, Write};
    let lab = Lab::new();
    let _planted = Echo::on(&lab.edge, 8080);
    for address in EDGE {
        let to = SocketAddr::new(address.parse().unwrap(), 8080);
        let mut stream = lab.stranger.enter(|| std::net::TcpStream::connect(to)).unwrap().unwrap();
        let _gate = lab.open(&lab.config()).unwrap();
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        stream.write_all(b"?").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        lab.detach();
    }
}

fn ping(lab: &Lab, address: &str) -> bool {
    let to = SocketAddr::new(address.parse().unwrap(), 0);
    let (protocol, request) = if to.is_ipv4() { (Protocol::ICMPV4, 8) } else { (Protocol::ICMPV6, 128) };
    lab.edge
        .enter(|| {
            let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(protocol)).unwrap();
            socket.set_read_timeout(Some(ANSWER)).unwrap();
            socket.send_to(&[request, 0, 0, 0, 0, 0, 0, 1], &to.into()).unwrap();
            let mut buffer = [std::mem::MaybeUninit::uninit(); 64];
            socket.recv(&mut buffer).is_ok()
        })
        .unwrap()
}

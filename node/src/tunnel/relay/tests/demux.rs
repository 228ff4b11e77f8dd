//! What the shared socket does with buffers, on a socket that is none.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::mpsc;

use super::super::demux::{BindDatagram, Demux, FirstDatagram, Losses, Queues, Relay};
use super::super::node::{Action, Onward, Removed};
use super::super::tuple::Pair;
use super::super::userspace::Usage;
use super::super::wire::{REQUEST_LEN, TICKET_LEN, Ticket, seal_bind};
use super::held::initial;
use super::*;
use crate::tunnel::layered::LayeredSocket;

const CLIENT: &str = "192.0.2.10:5000";

/// The only one that the node has minted.
const TICKET: Ticket = [0x5A; TICKET_LEN];

#[derive(Debug, PartialEq, Clone)]
struct Sent {
    to: SocketAddr,
    from: Option<std::net::IpAddr>,
    bytes: Vec<u8>,
    segment: Option<usize>,
    ecn: Option<EcnCodepoint>,
}

#[derive(Debug)]
struct Fake {
    local: SocketAddr,
    incoming: Mutex<VecDeque<(RecvMeta, Vec<u8>)>>,
    sent: Mutex<Vec<Sent>>,
    full: AtomicBool,
}

impl AsyncUdpSocket for Fake {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        unreachable!("nobody waits")
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.sent.lock().unwrap().push(Sent {
            to: transmit.destination,
            from: transmit.src_ip,
            bytes: transmit.contents.to_vec(),
            segment: transmit.segment_size,
            ecn: transmit.ecn,
        });
        Ok(())
    }

    fn poll_recv(
        &self,
        _: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut incoming = self.incoming.lock().unwrap();
        let count = incoming.len().min(bufs.len());
        for (index, (what, bytes)) in incoming.drain(..count).enumerate() {
            meta[index] = what;
            bufs[index][..bytes.len()].copy_from_slice(&bytes);
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn max_transmit_segments(&self) -> usize {
        4
    }
}

struct Bench {
    fake: Arc<Fake>,
    demux: LayeredSocket<Demux>,
    relay: Arc<Relay>,
    queue: mpsc::Receiver<BindDatagram>,
    firsts: mpsc::Receiver<FirstDatagram>,
}

/// A node on `[::]:443` with one session, whose connector is at `connector`.
fn bench(connector: Tuple) -> Bench {
    let (relay, Queues { binds: queue, firsts }) = Relay::new(|| ms(1));
    let fake = Arc::new(Fake {
        local: address("[::]:443"),
        incoming: Mutex::default(),
        sent: Mutex::default(),
        full: AtomicBool::new(false),
    });
    let socket = Arc::clone(&fake) as Arc<dyn AsyncUdpSocket>;
    let is_ticket = Box::new(|ticket| ticket == TICKET);
    let demux = Demux::share(socket, Arc::clone(&relay), is_ticket).unwrap();
    relay.set_epoch(terms().identity, terms().epoch);
    let pair = Pair { session: SESSION, terms: terms(), client: from(CLIENT), connector };
    assert!(relay.perform(&Action::Install(pair)));
    Bench { fake, demux, relay, queue, firsts }
}

fn ipv4_connector() -> Tuple {
    from("203.0.113.20:6000")
}

impl Bench {
    /// What QUIC gets of a buffer from `remote`, cut into datagrams.
    fn receive(&self, remote: &str, stride: usize, datagrams: &[&[u8]]) -> Vec<Vec<u8>> {
        let bytes = datagrams.concat();
        let meta = RecvMeta {
            addr: address(remote),
            len: bytes.len(),
            stride,
            ecn: Some(EcnCodepoint::Ect0),
            dst_ip: Some(address("[::ffff:198.51.100.1]:0").ip()),
        };
        self.fake.incoming.lock().unwrap().push_back((meta, bytes));
        let mut buffer = [0; 4096];
        let mut meta = [RecvMeta::default()];
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let got = self.demux.poll_recv(&mut cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta);
        assert!(matches!(got, Poll::Ready(Ok(1))));
        buffer[..meta[0].len].chunks(meta[0].stride).map(<[u8]>::to_vec).collect()
    }

    fn sent(&self) -> Vec<Sent> {
        std::mem::take(&mut self.fake.sent.lock().unwrap())
    }

    fn usage(&self) -> [Usage; 2] {
        self.relay.sent(SESSION).unwrap().all()
    }
}

fn bind(counter: u64) -> [u8; REQUEST_LEN] {
    let LegSecret { key, ticket } = secret(SESSION, Leg::Client);
    seal_bind(&key, SESSION, Leg::Client, &ticket, counter)
}

#[test]
fn quic_gets_quic_and_the_machine_gets_binds_from_one_buffer() {
    let mut bench = bench(ipv4_connector());
    let (a, b, tail) = ([0x41; REQUEST_LEN], [0xC1; REQUEST_LEN], [0x42; 7]);
    let stranger = "192.0.2.99:1";
    let got = bench.receive(stranger, REQUEST_LEN, &[&a, &bind(1), &b, &bind(2), &tail]);
    assert_eq!(got, [a.to_vec(), b.to_vec(), tail.to_vec()]);
    for counter in [1, 2] {
        let tuple = from(stranger);
        assert_eq!(bench.queue.try_recv().unwrap(), BindDatagram { tuple, bytes: bind(counter) });
    }
    assert!(bench.queue.try_recv().is_err() && bench.sent().is_empty());
    // Alone too, and what is neither.
    assert!(bench.receive(stranger, REQUEST_LEN, &[&bind(3)]).is_empty());
    assert!(bench.queue.try_recv().is_ok());
    let almost = [&bind(4)[..], &[0]].concat();
    assert!(bench.receive(stranger, almost.len(), &[&almost]).is_empty());
    assert!(bench.receive(stranger, 20, &[&[0x80; 20], &[0x00; 20], &[0xBF; 3]]).is_empty());
    assert!(bench.queue.try_recv().is_err());
    assert_eq!(bench.relay.losses(), Losses::default());
}

/// What the node sends nobody an answer to: it is the session's, or nobody's.
#[test]
fn an_initial_to_a_ticket_goes_to_the_machine_and_any_other_to_quic() {
    let mut bench = bench(ipv4_connector());
    let stranger = "192.0.2.99:1";
    let first = initial(&TICKET, 1200, 1);
    let other = initial(&[0xA5; TICKET_LEN], 1200, 2);
    let got = bench.receive(stranger, 1200, &[&first, &other, &first]);
    assert_eq!(got, [other]);
    for _ in 0..2 {
        let expected = FirstDatagram { tuple: from(stranger), bytes: first.clone().into() };
        assert_eq!(bench.firsts.try_recv().unwrap(), expected);
    }
    // Not even where it is too short or too long to be held.
    for length in [30, 1199, 1501] {
        assert!(bench.receive(stranger, length, &[&initial(&TICKET, length, 3)]).is_empty());
    }
    assert!(bench.firsts.try_recv().is_err() && bench.queue.try_recv().is_err() && bench.sent().is_empty());
    assert_eq!(bench.relay.losses(), Losses { firsts: 3, ..Losses::default() });
    // Where there is a flow, it is the flow's.
    assert!(bench.receive(CLIENT, 1200, &[&first]).is_empty());
    assert_eq!(bench.sent().len(), 1);
    assert!(bench.firsts.try_recv().is_err());
}

#[test]
fn however_many_first_packets_come_binds_still_pass() {
    let mut bench = bench(ipv4_connector());
    let stranger = "192.0.2.99:1";
    for _ in 0..300 {
        assert!(bench.receive(stranger, 1200, &[&initial(&TICKET, 1200, 1)]).is_empty());
    }
    bench.receive(stranger, REQUEST_LEN, &[&bind(1)]);
    assert!(bench.queue.try_recv().is_ok());
    assert_eq!(std::iter::from_fn(|| bench.firsts.try_recv().ok()).count(), 256);
    assert_eq!(bench.relay.losses(), Losses { firsts: 44, ..Losses::default() });
}

#[test]
fn what_was_sent_ahead_leaves_as_the_sessions_own_and_is_counted() {
    let ahead = |terms| {
        let pair =
            Pair { session: OTHER, terms, client: from("192.0.2.11:5000"), connector: ipv4_connector() };
        Onward { pair, datagrams: vec![[7; 1200].into(), [8; 1300].into()] }
    };
    let bench = bench(ipv4_connector());
    bench.relay.send_ahead(&ahead(terms()));
    let sent = bench.sent();
    let to = address("[::ffff:203.0.113.20]:6000");
    assert!(sent.iter().all(|sent| sent.to == to && sent.from == Some(node_address().ip())));
    assert_eq!(sent.iter().map(|sent| sent.bytes.len()).collect::<Vec<_>>(), [1200, 1300]);
    let [client, connector] = bench.relay.sent(OTHER).unwrap().past_gate;
    assert_eq!((client, connector), (Usage { packets: 2, bytes: 2500 + 2 * 28 }, Usage::default()));
    // Under the rules of everything else that is relayed.
    bench.relay.set_epoch(terms().identity, terms().epoch + 1);
    bench.relay.send_ahead(&ahead(terms()));
    bench.relay.set_epoch(terms().identity, terms().epoch);
    bench.relay.send_ahead(&ahead(Terms { expires: ms(1), ..terms() }));
    assert!(bench.sent().is_empty());
    assert_eq!(bench.relay.losses(), Losses { refused: 4, ..Losses::default() });
}

#[test]
fn a_flow_is_sent_on_and_quic_never_sees_it() {
    let bench = bench(ipv4_connector());
    let (first, second, last) = ([0x41; 50], [0x00; 50], [0x43; 9]);
    assert!(bench.receive(CLIENT, 50, &[&first, &second, &last]).is_empty());
    let sent = Sent {
        // As an IPv6 socket has it.
        to: address("[::ffff:203.0.113.20]:6000"),
        from: Some(node_address().ip()),
        bytes: [&first[..], &second, &last].concat(),
        segment: Some(50),
        ecn: Some(EcnCodepoint::Ect0),
    };
    assert_eq!(bench.sent(), [sent]);
    assert_eq!(bench.usage(), [Usage { packets: 3, bytes: 109 + 3 * 28 }, Usage::default()]);
    bench.receive("203.0.113.20:6000", 10, &[&[0x40; 10]]);
    let back = bench.sent();
    assert_eq!((back[0].to, back[0].segment), (address("[::ffff:192.0.2.10]:5000"), None));
}

#[test]
fn families_mix() {
    let bench = bench(Tuple::new(address("[2001:db8::1]:443"), address("[2001:db8::20]:6000")));
    bench.receive(CLIENT, 10, &[&[0x40; 10]]);
    let sent = bench.sent();
    assert_eq!(
        (sent[0].to, sent[0].from),
        (address("[2001:db8::20]:6000"), Some(address("[2001:db8::1]:443").ip()))
    );
}

#[test]
fn a_bind_from_a_bound_tuple_reaches_the_node_and_not_the_peer() {
    let mut bench = bench(ipv4_connector());
    let data = [0x41; REQUEST_LEN];
    assert!(bench.receive(CLIENT, REQUEST_LEN, &[&data, &data, &bind(9), &data]).is_empty());
    assert_eq!(bench.queue.try_recv().unwrap(), BindDatagram { tuple: from(CLIENT), bytes: bind(9) });
    let sent: Vec<usize> = bench.sent().iter().map(|sent| sent.bytes.len()).collect();
    assert_eq!(sent, [2 * REQUEST_LEN, REQUEST_LEN]);
    assert_eq!(bench.usage()[0].packets, 3);
}

#[test]
fn batches_are_no_larger_than_the_socket_takes() {
    let bench = bench(ipv4_connector());
    bench.receive(CLIENT, 10, &[&[0x40; 97]]);
    let sent: Vec<(usize, Option<usize>)> =
        bench.sent().iter().map(|sent| (sent.bytes.len(), sent.segment)).collect();
    assert_eq!(sent, [(40, Some(10)), (40, Some(10)), (17, Some(10))]);
    assert_eq!(bench.usage()[0].packets, 10);
}

#[test]
fn what_does_not_pass_is_counted_as_lost_and_charged_to_nobody() {
    let bench = bench(ipv4_connector());
    bench.fake.full.store(true, Ordering::Relaxed);
    bench.receive(CLIENT, 10, &[&[0x40; 30]]);
    assert_eq!(bench.relay.losses(), Losses { congested: 3, ..Losses::default() });
    bench.fake.full.store(false, Ordering::Relaxed);
    bench.relay.set_epoch(terms().identity, terms().epoch + 1);
    assert!(bench.receive(CLIENT, 10, &[&[0x40; 20]]).is_empty(), "nor does QUIC get it");
    assert_eq!(bench.relay.losses(), Losses { congested: 3, refused: 2, ..Losses::default() });
    assert_eq!(bench.usage(), [Usage::default(); 2]);
    assert!(bench.sent().is_empty());
}

#[test]
fn a_removed_session_passes_nothing_and_reports_its_usage() {
    let bench = bench(ipv4_connector());
    bench.receive(CLIENT, 10, &[&[0x40; 10]]);
    bench.sent();
    let removed = Removed { session: SESSION, inputs: vec![from(CLIENT), ipv4_connector()] };
    let used = [Usage { packets: 1, bytes: 38 }, Usage::default()];
    assert_eq!(bench.relay.remove(&removed).map(|sent| sent.all()), Some(used));
    assert_eq!(bench.receive(CLIENT, 10, &[&[0x40; 10]]), [vec![0x40; 10]], "a stranger's, as any other");
    assert!(bench.sent().is_empty() && bench.relay.remove(&removed).is_none());
}

#[test]
fn a_moved_leg_leaves_nothing_behind() {
    let bench = bench(ipv4_connector());
    let moved = from("192.0.2.11:5001");
    let pair = Pair { session: SESSION, terms: terms(), client: moved, connector: ipv4_connector() };
    assert!(bench.relay.perform(&Action::ReplaceLeg { leg: Leg::Client, old: from(CLIENT), pair }));
    bench.receive(CLIENT, 10, &[&[0x40; 10]]);
    assert!(bench.sent().is_empty());
    bench.receive("192.0.2.11:5001", 10, &[&[0x40; 10]]);
    bench.receive("203.0.113.20:6000", 10, &[&[0x40; 10]]);
    let to: Vec<SocketAddr> = bench.sent().iter().map(|sent| sent.to).collect();
    assert_eq!(to, [address("[::ffff:203.0.113.20]:6000"), address("[::ffff:192.0.2.11]:5001")]);
}

#[test]
fn binds_beyond_the_queue_are_lost_and_counted() {
    let bench = bench(ipv4_connector());
    for counter in 0..1030 {
        bench.receive("192.0.2.99:1", REQUEST_LEN, &[&bind(counter)]);
    }
    assert_eq!(bench.relay.losses(), Losses { binds: 1030 - 1024, ..Losses::default() });
}

#[test]
fn a_challenge_leaves_by_the_socket_it_is_for() {
    let bench = bench(ipv4_connector());
    let beside = Arc::new(Fake {
        local: address("198.51.100.1:443"),
        incoming: Mutex::default(),
        sent: Mutex::default(),
        full: AtomicBool::new(false),
    });
    let socket = Arc::clone(&beside) as Arc<dyn AsyncUdpSocket>;
    let _second = Demux::share(socket, Arc::clone(&bench.relay), Box::new(|_| false)).unwrap();
    bench.relay.send(from(CLIENT), b"challenge").unwrap();
    assert_eq!(beside.sent.lock().unwrap()[0].to, address(CLIENT), "an exact address comes first");
    bench.relay.send(Tuple::new(address("198.51.100.2:443"), address(CLIENT)), b"challenge").unwrap();
    assert_eq!(bench.sent()[0].to, address("[::ffff:192.0.2.10]:5000"));
    let nowhere = Tuple::new(address("198.51.100.2:444"), address(CLIENT));
    assert_eq!(bench.relay.send(nowhere, b"challenge").unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
}

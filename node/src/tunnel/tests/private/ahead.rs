//! What a client sends before its leg is in force, byte by byte, on a real node.

use std::net::UdpSocket;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::super::lab::{Lab, Outfit, PATIENCE, config, until};
use super::ends::{Client, Login, Seen, TestConnector, enrol};
use crate::gate::{self, DatagramGate};
use crate::tunnel::access_wire::{AccessFrame, ClientFrame, Opened};
use crate::tunnel::relay::wire::{
    BindKey, CHALLENGE_LEN, Challenge, Ticket, is_challenge, seal_answer, seal_bind,
};
use crate::tunnel::relay::{Leg, SessionRef};
use crate::tunnel::wire::{EndReason, RelayPath};

const SILENCE: Duration = Duration::from_millis(300);

/// One end's socket, by hand.
struct Wire {
    socket: UdpSocket,
    key: BindKey,
    session: SessionRef,
    leg: Leg,
    ticket: Ticket,
}

impl Wire {
    fn new(lab: &Lab, key: &BindKey, session: SessionRef, leg: Leg, ticket: Ticket) -> Self {
        Self::at("127.0.0.1:0", lab, key, session, leg, ticket)
    }

    fn at(local: &str, lab: &Lab, key: &BindKey, session: SessionRef, leg: Leg, ticket: Ticket) -> Self {
        let socket = UdpSocket::bind(local).unwrap();
        socket.connect(lab.address).unwrap();
        Self { socket, key: key.clone(), session, leg, ticket }
    }

    fn of_client(lab: &Lab, client: &Client, opened: &Opened) -> Self {
        let key = BindKey::export(&client.connection, opened.session, Leg::Client).unwrap();
        Self::new(lab, &key, opened.session, Leg::Client, opened.ticket)
    }

    fn of_connector(lab: &Lab, connector: &TestConnector) -> Self {
        let offer = connector.seen.lock().unwrap().offers.last().cloned().unwrap();
        let key = BindKey::export(&connector.connection, offer.session, Leg::Connector).unwrap();
        Self::new(lab, &key, offer.session, Leg::Connector, offer.ticket)
    }

    fn send(&self, datagram: &[u8]) {
        self.socket.send(datagram).unwrap();
    }

    /// What comes, which something does.
    fn hear(&self) -> Vec<u8> {
        self.hear_within(PATIENCE).expect("a datagram")
    }

    fn is_silent(&self) -> bool {
        self.hear_within(SILENCE).is_none()
    }

    fn hear_within(&self, patience: Duration) -> Option<Vec<u8>> {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let mut bytes = [0; 2048];
        self.socket.recv(&mut bytes).ok().map(|length| bytes[..length].to_vec())
    }

    fn bind(&self, counter: u64) {
        self.send(&seal_bind(&self.key, self.session, self.leg, &self.ticket, counter));
    }

    /// Binds, and returns the answer to the challenge that comes.
    fn challenged(&self, counter: u64) -> Vec<u8> {
        self.bind(counter);
        let challenge = Challenge::open(&self.hear(), &self.key, self.session, self.leg).unwrap();
        seal_answer(&self.key, self.session, self.leg, &self.ticket, &challenge).to_vec()
    }

    fn initial(&self, length: usize, mark: u8) -> Vec<u8> {
        let mut bytes = vec![0xC3, 0, 0, 0, 1, 16];
        bytes.extend(self.ticket);
        bytes.resize(length, mark);
        bytes
    }
}

/// A connector that leaves its leg to the test.
async fn bare_connector(lab: &Lab) -> TestConnector {
    let seen: Arc<Mutex<Seen>> = Arc::default();
    seen.lock().unwrap().bare = true;
    TestConnector::connect(lab, enrol(lab, "hq").await, seen, true).await
}

async fn offered(connector: &TestConnector, session: SessionRef) {
    let seen = || connector.seen.lock().unwrap().offers.last().map(|offer| offer.session);
    until("it is offered", || seen() == Some(session)).await;
}

/// Before the proof, behind it, and while the other leg is missing.
async fn held_and_sent_on(outfit: Outfit, socket: UdpSocket, path: RelayPath) {
    let lab = Lab::start_with(socket, outfit).await;
    let connector = bare_connector(&lab).await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let opened = client.open("db", None).await.unwrap();
    offered(&connector, opened.session).await;
    let (near, far) = (Wire::of_client(&lab, &client, &opened), Wire::of_connector(&lab, &connector));

    let answer = near.challenged(1);
    near.send(&near.initial(1200, 1));
    near.send(&answer);
    near.send(&near.initial(1500, 2));
    assert!(far.is_silent(), "it has not said where it is");
    let answer = far.challenged(1);
    assert!(far.is_silent(), "nor proved it");
    far.send(&answer);
    assert_eq!(far.hear(), near.initial(1200, 1));
    assert_eq!(far.hear(), near.initial(1500, 2));
    assert!(far.is_silent() && near.is_silent(), "once, and the client hears nothing of it");
    let AccessFrame::Ready { path: told, .. } = client.hear_all().await else { panic!("it is in force") };
    assert_eq!(told, path);
    // One that a gate let up just before it knew the flow; it is counted as well.
    near.send(&near.initial(1200, 3));
    assert_eq!(far.hear(), near.initial(1200, 3));
    let up = || lab.node.private.list()[0].bytes_up;
    until("all are counted", || up() == 1200 + 1500 + 1200 + 3 * 28).await;
    lab.node.private.end_logins(&[ann.id()], EndReason::Revoked).await.unwrap();
    near.send(&near.initial(1200, 4));
    assert!(far.is_silent() && near.is_silent(), "nor does QUIC answer it");
}

#[tokio::test(flavor = "multi_thread")]
async fn first_packets_wait_for_both_proofs_where_the_daemon_relays() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (judge, control) = DatagramGate::in_memory(vec![socket.local_addr().unwrap().port()]);
    held_and_sent_on(Outfit { judge: Some((judge, control)), relay: None }, socket, RelayPath::Userspace)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn first_packets_wait_for_both_proofs_where_the_gate_relays() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (relay, _) = gate::in_memory(vec![socket.local_addr().unwrap().port()]);
    held_and_sent_on(Outfit { relay: Some(relay), judge: None }, socket, RelayPath::Kernel).await;
}

/// Who cheats holds a key and a ticket, and sends from an address that is a victim's.
#[tokio::test(flavor = "multi_thread")]
async fn a_victim_hears_one_challenge_whatever_is_sent_ahead_in_its_name() {
    let lab = Lab::start().await;
    let connector = bare_connector(&lab).await;
    let eve = Login::new(&lab, "eve").await;
    let mut client = Client::welcome(&lab, &eve).await;
    let opened = client.open("db", None).await.unwrap();
    offered(&connector, opened.session).await;
    let far = Wire::of_connector(&lab, &connector);
    let victim = Wire::of_client(&lab, &client, &opened);
    for mark in 0..100 {
        victim.send(&victim.initial(1500, mark));
    }
    victim.bind(1);
    for mark in 0..100 {
        victim.send(&victim.initial(1200 + usize::from(mark), mark));
    }
    let heard = victim.hear();
    assert!(heard.len() == CHALLENGE_LEN && is_challenge(&heard));
    far.send(&far.challenged(1));
    assert!(victim.is_silent() && far.is_silent(), "for 270 kB, 43 bytes");

    // She binds from where she is herself: what came in the victim's name still goes nowhere, and nothing comes back to it.
    let own = Wire::of_client(&lab, &client, &opened);
    let answer = own.challenged(2);
    own.send(&own.initial(1200, 9));
    own.send(&answer);
    assert_eq!(far.hear(), own.initial(1200, 9), "the control");
    victim.send(&victim.initial(1300, 1));
    far.send(&[0x40; 100]);
    assert_eq!(own.hear(), [0x40; 100]);
    assert!(victim.is_silent() && far.is_silent());
}

/// Policy judges a leg where it is: until it has, nothing goes on from there, and where it says no, nothing ever does.
#[tokio::test(flavor = "multi_thread")]
async fn first_packets_from_where_a_client_has_moved_wait_for_policy() {
    let lab = Lab::start().await;
    let office =
        [("{ group = \"staff\" }]", "{ group = \"staff\" }]\nrequire = [{ ip = \"127.0.0.0/30\" }]")];
    lab.desk.reload.send_replace(config(lab.directory.path(), &office));
    let connector = bare_connector(&lab).await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    // Which of the two the node comes to first, a packet or the policy, is chance.
    for round in 0..12 {
        let opened = client.open("db", None).await.unwrap();
        offered(&connector, opened.session).await;
        let (near, far) = (Wire::of_client(&lab, &client, &opened), Wire::of_connector(&lab, &connector));
        near.send(&near.challenged(1));
        far.send(&far.challenged(1));
        let AccessFrame::Ready { .. } = client.hear_all().await else { panic!("it is in force") };
        near.send(&near.initial(1200, 1));
        assert_eq!(far.hear(), near.initial(1200, 1), "the control");
        let is_allowed = round == 0;
        let local = if is_allowed { "127.0.0.2:0" } else { "127.0.0.5:0" };
        let moved = Wire::at(local, &lab, &near.key, near.session, near.leg, near.ticket);
        moved.send(&moved.challenged(2));
        for mark in 2..20 {
            moved.send(&moved.initial(1200, mark));
        }
        if is_allowed {
            // As a client does that hears nothing: none is kept for long.
            let until = Instant::now() + PATIENCE;
            let heard = loop {
                if let Some(heard) = far.hear_within(SILENCE) {
                    break heard;
                }
                assert!(Instant::now() < until, "nothing goes on from there");
                moved.send(&moved.initial(1200, 20));
            };
            assert_eq!(heard, moved.initial(1200, heard[1199]));
            let AccessFrame::Ready { .. } = client.hear_all().await else { panic!("it is in force there") };
            client.say(&ClientFrame::Close { session: opened.session }).await;
            client.ended().await;
        } else {
            assert_eq!(client.ended().await, (opened.session, EndReason::NotAllowed));
            assert!(far.is_silent() && moved.is_silent());
        }
    }
}

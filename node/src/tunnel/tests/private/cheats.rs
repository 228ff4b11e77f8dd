//! Peers that cheat: none of them opens, moves, ends or hears anything that is another's.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use super::super::lab::{Lab, config, soon};
use super::ends::{Client, Login, TestConnector, echoes, enrol, key};
use crate::clock;
use crate::tunnel::access_wire::{AccessFrame, AccessRefusal, ClientFrame, Denial, RequestId};
use crate::tunnel::relay::wire::{BindKey, CHALLENGE_LEN, Challenge, Ticket, seal_answer, seal_bind};
use crate::tunnel::relay::{Early, Leg, SessionRef};
use crate::tunnel::wire::{ConnectorFrame, EndReason};

const PATIENCE: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_of_use_to_its_own_device_and_login_alone() {
    let lab = Lab::start().await;
    let ann = Login::new(&lab, "ann").await;
    let cases = [
        (key(), ann.token.clone(), AccessRefusal::OtherDevice, "bad_token"),
        (key(), "not.a.token".to_owned(), AccessRefusal::BadToken, "bad_token"),
    ];
    for (key, token, refusal, _) in cases {
        let mut client = Client::hello(&lab, &key, &token).await;
        assert_eq!(client.hear().await, AccessFrame::Refused(refusal));
        soon(client.connection.closed()).await;
    }
    lab.logged("\"bad_token\"", 2).await;
    // A global or application token is another kind.
    let global = lab.desk.tokens.mint_global(&ann.session, clock::now()).unwrap();
    let mut client = Client::hello(&lab, &ann.key, &global).await;
    assert_eq!(client.hear().await, AccessFrame::Refused(AccessRefusal::BadToken));
    lab.node.store.revoke_client(ann.client, clock::now()).await.unwrap();
    let mut client = Client::hello(&lab, &ann.key, &ann.token).await;
    assert_eq!(client.hear().await, AccessFrame::Refused(AccessRefusal::LoginEnded));
    lab.logged("\"session_ended\"", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_out_of_order_end_the_connection() {
    let lab = Lab::start().await;
    let ann = Login::new(&lab, "ann").await;
    let open = ClientFrame::Open { request: RequestId(1), application: "db".into(), destination: None };
    let mut client = Client::silent(&lab, &ann.key).await;
    client.say(&open).await;
    soon(client.connection.closed()).await;
    let mut client = Client::welcome(&lab, &ann).await;
    client
        .say(&ClientFrame::Open { request: RequestId(1), application: "x".repeat(129), destination: None })
        .await;
    soon(client.connection.closed()).await;
    // An access client is no connector: its frames mean nothing here, nor do a connector's there.
    let mut client = Client::silent(&lab, &ann.key).await;
    crate::tunnel::control::send(&mut client.send, &ConnectorFrame::Hello).await.unwrap();
    soon(client.connection.closed()).await;
    lab.logged("\"bad_request\"", 3).await;
    assert!(lab.node.registry.connectors().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_has_a_bounded_number_of_connections() {
    let lab = Lab::start().await;
    let ann = Login::new(&lab, "ann").await;
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(Client::welcome(&lab, &ann).await);
    }
    let mut ninth = Client::hello(&lab, &ann.key, &ann.token).await;
    assert_eq!(ninth.hear().await, AccessFrame::Refused(AccessRefusal::TooManyConnections));
    held.pop().unwrap().connection.close(0u8.into(), b"");
    let room = async {
        loop {
            match Client::hello(&lab, &ann.key, &ann.token).await.hear().await {
                AccessFrame::Refused(AccessRefusal::TooManyConnections) => {}
                frame => return frame,
            }
        }
    };
    assert!(matches!(soon(room).await, AccessFrame::Welcome { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_nobody_elses_to_close_resume_or_take() {
    let lab = Lab::start().await;
    let connector = TestConnector::start(&lab).await;
    let (ann, eve) = (Login::new(&lab, "ann").await, Login::new(&lab, "eve").await);
    let mut client = Client::welcome(&lab, &ann).await;
    let (opened, _leg, through) = client.session(&ann, "db").await;
    let mut cheat = Client::welcome(&lab, &eve).await;
    cheat.say(&ClientFrame::Close { session: opened.session }).await;
    assert_eq!(cheat.resume(&opened.grant).await, Err(Denial::Gone), "ann's grant");
    assert_eq!(cheat.resume(b"no grant at all").await, Err(Denial::Gone));
    let mut forged = opened.grant.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(client.resume(&forged).await, Err(Denial::Gone), "not the node's");
    // The same device under another login: what the former had is not the latter's.
    let key = ends_key(&ann);
    let again = Login::on_device(&lab, &eve.session, key).await;
    let mut of_device = Client::welcome(&lab, &again).await;
    assert_eq!(of_device.resume(&opened.grant).await, Err(Denial::Gone));

    let other_key = enrol(&lab, "branch").await;
    let other = TestConnector::connect(&lab, other_key, std::sync::Arc::default(), true).await;
    other.say.send(ConnectorFrame::SessionEnded { session: opened.session }).unwrap();
    tokio::time::sleep(SILENCE).await;
    assert!(other.connection.close_reason().is_none());
    // Taking what was not offered ends the connection.
    other.say.send(ConnectorFrame::Taken { session: opened.session }).unwrap();
    soon(other.connection.closed()).await;
    assert!(connector.seen.lock().unwrap().ended.iter().all(|(_, reason)| *reason == EndReason::LoginEnded));
    drop(through);
}

fn ends_key(login: &Login) -> crate::tunnel::TunnelKey {
    super::ends::key_again(&login.key)
}

/// The client's bind under the cheat's control: on the wire, byte by byte.
#[tokio::test(flavor = "multi_thread")]
async fn binds_count_once_from_where_they_come_and_for_their_own_session() {
    let lab = Lab::start().await;
    let _connector = TestConnector::start(&lab).await;
    let (ann, eve) = (Login::new(&lab, "ann").await, Login::new(&lab, "eve").await);
    let mut client = Client::welcome(&lab, &ann).await;
    let mut cheat = Client::welcome(&lab, &eve).await;
    let (opened, _leg, through) = client.session(&ann, "db").await;
    let of_cheat = cheat.open("db", None).await.unwrap();
    let of_ann = BindKey::export(&client.connection, opened.session, Leg::Client).unwrap();
    let of_eve = BindKey::export(&cheat.connection, opened.session, Leg::Client).unwrap();
    let own = BindKey::export(&cheat.connection, of_cheat.session, Leg::Client).unwrap();
    let as_connector = BindKey::export(&cheat.connection, of_cheat.session, Leg::Connector).unwrap();
    let late = 1_000_000;
    for (what, datagram) in [
        ("another's key", seal_bind(&of_eve, opened.session, Leg::Client, &opened.ticket, late)),
        ("another's ticket", seal_bind(&own, of_cheat.session, Leg::Client, &opened.ticket, late)),
        ("the other leg", seal_bind(&as_connector, of_cheat.session, Leg::Connector, &of_cheat.ticket, late)),
        ("a counter that was used", seal_bind(&of_ann, opened.session, Leg::Client, &opened.ticket, 1)),
    ] {
        assert_eq!(Wire::to(lab.address).send(&datagram).hear(), None, "{what}");
    }
    // A good bind from elsewhere is asked for its address; an answer from a third place is not taken.
    let (first, second) = (Wire::to(lab.address), Wire::to(lab.address));
    let bind = seal_bind(&own, of_cheat.session, Leg::Client, &of_cheat.ticket, late);
    let challenge = first.send(&bind).challenge();
    assert_eq!(challenge.len(), CHALLENGE_LEN);
    assert_eq!(second.send(&bind).hear(), None, "replayed");
    let challenge = Challenge::open(&challenge, &own, of_cheat.session, Leg::Client).unwrap();
    let answer = seal_answer(&own, of_cheat.session, Leg::Client, &of_cheat.ticket, &challenge);
    second.send(&answer);
    assert!(
        tokio::time::timeout(SILENCE, cheat.hear_all()).await.is_err(),
        "an address that another socket has proved is not this one's"
    );
    first.send(&answer);
    assert!(matches!(cheat.hear_all().await, AccessFrame::Ready { .. }), "the control: from the right place");
    assert!(echoes(&through, PATIENCE).await, "ann's session has not noticed");
}

/// Policy knows networks, and packets need not come from where the control connection does.
#[tokio::test(flavor = "multi_thread")]
async fn a_leg_is_judged_by_the_address_at_which_it_is() {
    let lab = Lab::start().await;
    let _connector = TestConnector::start(&lab).await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let opened = client.open("db", None).await.unwrap();
    let elsewhere = client.bind_from("127.0.0.2:0", &opened);
    client.ready(&elsewhere).await;
    client.say(&ClientFrame::Close { session: opened.session }).await;
    client.ended().await;

    let office =
        [("{ group = \"staff\" }]", "{ group = \"staff\" }]\nrequire = [{ ip = \"127.0.0.1/32\" }]")];
    lab.desk.reload.send_replace(config(lab.directory.path(), &office));
    let (_, _leg, through) = client.session(&ann, "db").await;
    let opened = client.open("db", None).await.unwrap();
    let _elsewhere = client.bind_from("127.0.0.2:0", &opened);
    assert_eq!(client.ended().await, (opened.session, EndReason::NotAllowed));
    assert!(echoes(&through, PATIENCE).await);
}

/// A socket of a cheat's, and what it hears.
pub(super) struct Wire(pub(super) UdpSocket);

impl Wire {
    pub(super) fn to(node: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(node).unwrap();
        Self(socket)
    }

    fn send(&self, datagram: &[u8]) -> &Self {
        self.0.send(datagram).unwrap();
        self
    }

    /// What comes soon, where nothing should.
    fn hear(&self) -> Option<Vec<u8>> {
        self.hear_within(Duration::from_millis(300))
    }

    fn challenge(&self) -> Vec<u8> {
        self.hear_within(PATIENCE).expect("a challenge")
    }

    fn hear_within(&self, patience: Duration) -> Option<Vec<u8>> {
        self.0.set_read_timeout(Some(patience)).unwrap();
        let mut bytes = [0; 128];
        self.0.recv(&mut bytes).ok().map(|length| bytes[..length].to_vec())
    }

    /// The challenge to a bind, and the answer to that.
    fn proves(&self, key: &BindKey, early: Early, ticket: &Ticket, counter: u64) {
        self.proves_for(key, early.session(), ticket, counter);
    }

    pub(super) fn proves_for(&self, key: &BindKey, session: SessionRef, ticket: &Ticket, counter: u64) {
        self.send(&seal_bind(key, session, Leg::Client, ticket, counter));
        let challenge = Challenge::open(&self.challenge(), key, session, Leg::Client).unwrap();
        self.send(&seal_answer(key, session, Leg::Client, ticket, &challenge));
    }
}

const EARLY: Early = Early::new(7);

fn asks_binding(request: u32, application: &str) -> ClientFrame {
    let (request, application) = (RequestId(request), application.to_owned());
    ClientFrame::OpenBinding { request, application, destination: None, early: EARLY }
}

/// What binds ahead of its request is answered to whoever makes that request, holds its key, and is let in.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_bind_is_answered_to_nobody_who_does_not_ask() {
    let lab = Lab::start().await;
    let _connector = TestConnector::start(&lab).await;
    let (ann, eve) = (Login::new(&lab, "ann").await, Login::of_groups(&lab, "eve", &["guests"]).await);
    let (mut client, mut cheat) = (Client::welcome(&lab, &ann).await, Client::welcome(&lab, &eve).await);
    let ticket = lab.node.private.ticket().unwrap();
    let key = BindKey::export(&client.connection, EARLY.session(), Leg::Client).unwrap();
    let of_eve = BindKey::export(&cheat.connection, EARLY.session(), Leg::Client).unwrap();
    let bind = |key, ticket, counter| seal_bind(key, EARLY.session(), Leg::Client, ticket, counter);

    let wire = Wire::to(lab.address);
    assert_eq!(wire.send(&bind(&key, &ticket, 1)).hear(), None, "nobody has asked");
    // What one sends who is let in nowhere: one event, and no more.
    assert_eq!(wire.send(&bind(&of_eve, &ticket, 1)).hear(), None);
    cheat.say(&asks_binding(1, "db")).await;
    assert!(matches!(cheat.hear().await, AccessFrame::Denied { denial: Denial::NotAllowed, .. }));
    let _ = wire.hear();
    assert_eq!(wire.send(&bind(&of_eve, &ticket, 2)).hear(), None, "the request is over");

    // A stranger has no ticket: what he sends is not even kept until the name is asked for.
    let stranger = Wire::to(lab.address);
    assert_eq!(stranger.send(&bind(&key, &[7; 16], 2)).hear(), None);
    client.say(&asks_binding(1, "db")).await;
    let AccessFrame::Opened(opened) = client.hear().await else { panic!("it is opened") };
    assert_eq!(stranger.hear(), None, "a ticket of his own making");
    for (what, datagram) in [
        ("another's key", bind(&of_eve, &ticket, 3)),
        ("a ticket of his own making", bind(&key, &[7; 16], 3)),
        ("the other leg", seal_bind(&key, EARLY.session(), Leg::Connector, &ticket, 3)),
    ] {
        assert_eq!(stranger.send(&datagram).hear(), None, "{what}");
    }
    wire.proves(&key, EARLY, &ticket, 4);
    let AccessFrame::Ready { session, .. } = client.hear_all().await else { panic!("the control") };
    assert_eq!(session, opened.session);
    assert_eq!(stranger.send(&bind(&key, &ticket, 5)).hear(), None, "it has its own name now");
    lab.logged("\"eve@example.com\"", 1).await;
}

/// Two who use one name, while neither's session is there: it stays the first one's.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_name_is_nobody_elses_to_take() {
    let lab = Lab::start().await;
    let (ann, eve) = (Login::new(&lab, "ann").await, Login::new(&lab, "eve").await);
    let (mut client, mut cheat) = (Client::welcome(&lab, &ann).await, Client::welcome(&lab, &eve).await);
    let ticket = lab.node.private.ticket().unwrap();
    let key = BindKey::export(&client.connection, EARLY.session(), Leg::Client).unwrap();
    let of_eve = BindKey::export(&cheat.connection, EARLY.session(), Leg::Client).unwrap();
    // Requests wait a few seconds for a connector, so this one is ready to connect.
    let of_connector = enrol(&lab, "hq").await;
    client.say(&asks_binding(1, "db")).await;
    let (wire, other) = (Wire::to(lab.address), Wire::to(lab.address));
    tokio::time::sleep(SILENCE).await;
    wire.proves(&key, EARLY, &ticket, 1);
    cheat.say(&asks_binding(1, "db")).await;
    // A refusal would let go of the name, if it were hers.
    cheat.say(&asks_binding(2, "nothing")).await;
    assert!(matches!(cheat.hear().await, AccessFrame::Denied { denial: Denial::NoApplication, .. }));
    assert_eq!(other.send(&seal_bind(&of_eve, EARLY.session(), Leg::Client, &ticket, 9)).hear(), None);

    let _connector = TestConnector::connect(&lab, of_connector, std::sync::Arc::default(), true).await;
    let AccessFrame::Opened(of_cheat) = cheat.hear_all().await else { panic!("it is opened") };
    let AccessFrame::Opened(opened) = client.hear_all().await else { panic!("it is opened") };
    let AccessFrame::Ready { session, .. } = client.hear_all().await else { panic!("ann's leg was proved") };
    assert_eq!(session, opened.session);
    assert!(tokio::time::timeout(SILENCE, cheat.hear_all()).await.is_err(), "hers was not");
    let bound = cheat.bind(&of_cheat);
    cheat.ready(&bound).await;
}

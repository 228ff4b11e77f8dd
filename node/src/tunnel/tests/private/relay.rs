//! Who relays: the gate, the daemon for the gate, or the daemon alone.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use portcullis_common::{PassReason, Verdict};

use super::super::lab::{Lab, Outfit, soon, until};
use super::cheats::Wire;
use super::ends::{Client, Login, TestConnector, echoes, enrol};
use crate::clock;
use crate::gate::{self, DatagramGate};
use crate::store::SessionFilter;
use crate::tunnel::access_wire::{AccessFrame, ClientFrame, Denial, Opened};
use crate::tunnel::relay::Leg;
use crate::tunnel::relay::wire::BindKey;
use crate::tunnel::wire::{ConnectorFrame, EndReason, RelayPath};

const PATIENCE: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_millis(500);

fn port(socket: &UdpSocket) -> u16 {
    socket.local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_xdp_judges_binds_and_flows_pass_and_no_strangers_datagram() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (gate, control) = DatagramGate::in_memory(vec![port(&socket)]);
    let outfit = Outfit { judge: Some((gate.clone(), control)), relay: None };
    let lab = Lab::start_with(socket, outfit).await;
    let _connector = TestConnector::start(&lab).await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let (opened, _leg, through) = client.session(&ann, "db").await;
    assert!(echoes(&through, PATIENCE).await);
    let passed = |reason| gate.counters().of(Verdict::Pass(reason));
    assert!(passed(PassReason::RelayBind) >= 4, "two binds and two answers");
    client.say(&ClientFrame::Close { session: opened.session }).await;
    client.ended().await;
    assert!(!echoes(&through, SILENCE).await);
    // A bind whose ticket the node did not mint never gets as far as the machine.
    let before = passed(PassReason::RelayBind);
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(&[1; 46], lab.address).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(passed(PassReason::RelayBind), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gate_cannot_rewrite_the_daemon_relays_and_the_gate_judges() {
    let socket = UdpSocket::bind("[::]:0").unwrap();
    let port = port(&socket);
    let (relay, _) = gate::in_memory(vec![port]);
    let mut lab = Lab::start_with(socket, Outfit { relay: Some(relay.clone()), judge: None }).await;
    lab.address = SocketAddr::from(([127, 0, 0, 1], port));
    let six: SocketAddr = format!("[::1]:{port}").parse().unwrap();
    let key = enrol(&lab, "hq").await;
    let connector = TestConnector::connect_at(&lab, six, key, Arc::default(), true).await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let (opened, _leg, through) = client.session(&ann, "db").await;
    assert!(echoes(&through, PATIENCE).await, "from IPv4 to IPv6");
    let [(session, _)] = relay.sessions()[..] else { panic!("one session") };
    assert_eq!((session.index, session.generation), (opened.session.index, opened.session.generation));
    let placed = relay.placed(session).unwrap();
    assert!(placed.to_host && placed.client.remote.is_ipv4() && placed.connector.remote.is_ipv6());
    connector.say.send(ConnectorFrame::SessionEnded { session: opened.session }).unwrap();
    assert_eq!(client.ended().await, (opened.session, EndReason::ConnectorEnded));
    assert!(!echoes(&through, SILENCE).await);
    assert!(relay.sessions().is_empty(), "the gate lets nothing through either");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gates_session_outlives_the_daemon_and_is_taken_up_again() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (relay, _) = gate::in_memory(vec![port(&socket)]);
    let mut lab = Lab::start_with(socket, Outfit { relay: Some(relay.clone()), judge: None }).await;
    let connector = TestConnector::start(&lab).await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let opened = client.open("db", None).await.unwrap();
    let leg = client.bind(&opened);
    assert_eq!(client.ready(&leg).await, RelayPath::Kernel);
    let [(session, _)] = relay.sessions()[..] else { panic!("one session") };
    let before = relay.placed(session).unwrap();
    assert!(!before.to_host);
    assert_eq!(lab.node.private.list()[0].path.as_deref(), Some("kernel"));

    let stopping = lab.begin_stop();
    assert_eq!(client.hear().await, AccessFrame::Drain);
    connector.connection.close(0u8.into(), b"");
    soon(stopping).await.unwrap().unwrap();
    assert_eq!(relay.placed(session), Some(before), "the gate relays on");
    lab.start_again().await;
    let mut again = Client::welcome(&lab, &ann).await;
    let resumed = again.resume(&opened.grant).await.unwrap();
    assert_eq!(resumed.session, opened.session);
    let _back = TestConnector::connect(&lab, connector.key, Arc::default(), true).await;
    let moved = again.bind(&resumed);
    assert_eq!(again.ready(&moved).await, RelayPath::Kernel);
    assert_eq!(relay.sessions().len(), 1);
    assert_ne!(relay.placed(session).unwrap(), before, "both legs are elsewhere now");

    lab.node.private.end_logins(&[ann.id()], EndReason::Revoked).await.unwrap();
    assert!(relay.sessions().is_empty() && relay.placed(session).is_none());
    assert_eq!(again.ended().await, (opened.session, EndReason::Revoked));
    assert_eq!(again.resume(&opened.grant).await, Err(Denial::Gone));
    lab.logged("\"detail\":\"revoked\"", 1).await;
}

/// Whose session it is that the gate has kept, nobody knows until an end comes back, which has no need to.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_gate_has_kept_ends_with_the_person_before_anybody_takes_it_up() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (relay, planted) = gate::in_memory(vec![port(&socket)]);
    let mut lab = Lab::start_with(socket, Outfit { relay: Some(relay.clone()), judge: None }).await;
    let connector = TestConnector::start(&lab).await;
    let (ann, bob) = (Login::new(&lab, "ann").await, Login::new(&lab, "bob").await);
    let (mut of_ann, mut of_bob) = (Client::welcome(&lab, &ann).await, Client::welcome(&lab, &bob).await);
    let mut kept = Vec::new();
    for client in [&mut of_ann, &mut of_bob] {
        let opened = client.open("db", None).await.unwrap();
        let leg = client.bind(&opened);
        assert_eq!(client.ready(&leg).await, RelayPath::Kernel);
        kept.push((opened, leg));
    }
    let stopping = lab.begin_stop();
    connector.connection.close(0u8.into(), b"");
    soon(stopping).await.unwrap().unwrap();
    lab.start_again().await;
    assert_eq!(relay.sessions().len(), 2);

    let person = |login: &Login| login.session.person.clone();
    planted.break_it(true);
    assert!(lab.node.private.end_left(&[person(&ann)]).await.is_err(), "loudly");
    planted.break_it(false);
    lab.node.private.end_left(&[person(&ann)]).await.unwrap();
    let left = relay.sessions().into_iter().map(|(session, _)| session.index).collect::<Vec<_>>();
    assert_eq!(left, [kept[1].0.session.index], "of that person alone");
    lab.node.private.end_connector("hq", EndReason::ConnectorRevoked).await.unwrap();
    assert!(relay.sessions().is_empty(), "it may have been the connector's");
    lab.logged("left by an earlier process", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_does_not_take_a_revocation_is_no_secret_and_is_told_again() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (relay, planted) = gate::in_memory(vec![port(&socket)]);
    let lab = Lab::start_with(socket, Outfit { relay: Some(relay.clone()), judge: None }).await;
    let _connector = TestConnector::start(&lab).await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let opened = client.open("db", None).await.unwrap();
    let leg = client.bind(&opened);
    client.ready(&leg).await;
    planted.break_it(true);
    lab.desk.sessions.revoke(&SessionFilter::Id(ann.id()), clock::now()).await.unwrap();
    assert_eq!(client.ended().await, (opened.session, EndReason::LoginEnded), "both ends know all the same");
    let error = lab.node.private.end_logins(&[ann.id()], EndReason::Revoked).await.unwrap_err();
    assert!(error.to_string().contains("gate"), "whoever did it, whoever asks: {error}");
    assert_eq!(relay.sessions().len(), 1);
    planted.break_it(false);
    until("the gate is told again", || relay.sessions().is_empty()).await;
    lab.node.private.end_logins(&[ann.id()], EndReason::Revoked).await.unwrap();
}

/// Each end of a session costs the gate a wait for all CPUs, and whoever closes many must not make others wait for each.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_closes_keeps_no_revocation_waiting() {
    const CLOSED: usize = 40;
    const WAIT: Duration = Duration::from_millis(100);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (relay, planted) = gate::in_memory(vec![port(&socket)]);
    let lab = Lab::start_with(socket, Outfit { relay: Some(relay.clone()), judge: None }).await;
    let _connector = TestConnector::start(&lab).await;
    let (ann, eve) = (Login::new(&lab, "ann").await, Login::new(&lab, "eve").await);
    let (mut client, mut cheat) = (Client::welcome(&lab, &ann).await, Client::welcome(&lab, &eve).await);
    let opened = client.open("db", None).await.unwrap();
    let leg = client.bind(&opened);
    client.ready(&leg).await;
    let mut closed = Vec::new();
    for _ in 0..CLOSED {
        let opened = cheat.open("db", None).await.unwrap();
        let leg = cheat.bind(&opened);
        cheat.ready(&leg).await;
        closed.push((opened.session, leg));
    }
    planted.slow_down(WAIT);
    let before = planted.barriers();
    for (session, _) in &closed {
        cheat.say(&ClientFrame::Close { session: *session }).await;
    }
    until("the first is ended", || relay.sessions().len() <= CLOSED).await;
    let asked = planted.barriers();
    lab.node.private.end_logins(&[ann.id()], EndReason::Revoked).await.unwrap();
    let waited = planted.barriers() - asked;
    assert!(!relay.sessions().iter().any(|(session, _)| session.index == opened.session.index));
    assert!(waited < 10, "{waited} waits for the CPUs, behind {CLOSED} closes of another person");
    until("all are closed", || relay.sessions().is_empty()).await;
    let barriers = planted.barriers() - before;
    assert!(barriers < CLOSED / 2, "the CPUs were waited for {barriers} times");
}

/// Each move costs the gate a wait for all CPUs. A person, or a connector, who moves a leg without end waits for himself.
#[tokio::test(flavor = "multi_thread")]
async fn a_leg_that_moves_without_end_keeps_nobody_waiting_and_goes_on() {
    const WAIT: Duration = Duration::from_millis(100);
    const FLOOD: Duration = Duration::from_secs(4);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (relay, planted) = gate::in_memory(vec![port(&socket)]);
    let lab = Lab::start_with(socket, Outfit { relay: Some(relay.clone()), judge: None }).await;
    let _connector = TestConnector::start(&lab).await;
    let (ann, eve) = (Login::new(&lab, "ann").await, Login::new(&lab, "eve").await);
    let (mut client, mut cheat) = (Client::welcome(&lab, &ann).await, Client::welcome(&lab, &eve).await);
    let Opened { session, ticket, .. } = cheat.open("db", None).await.unwrap();
    let key = BindKey::export(&cheat.connection, session, Leg::Client).unwrap();
    let hearing = tokio::spawn(async move {
        loop {
            let frame = cheat.hear_all().await;
            assert!(!matches!(frame, AccessFrame::EndSession { .. }), "{frame:?}");
        }
    });
    let wires = [Wire::to(lab.address), Wire::to(lab.address)];
    let places = wires.each_ref().map(|wire| wire.0.local_addr().unwrap());
    wires[0].proves_for(&key, session, &ticket, 1);
    until("the cheat's session is placed", || {
        relay.sessions().iter().any(|(of, _)| relay.placed(*of).is_some())
    })
    .await;

    planted.slow_down(WAIT);
    let calm = let_through(&mut client).await;
    let (before, flooded) = (planted.barriers(), std::time::Instant::now());
    let moving = tokio::task::spawn_blocking(move || {
        let mut counter = 1;
        while flooded.elapsed() < FLOOD || counter <= 100 {
            counter += 1;
            wires[usize::from(counter % 2 == 0)].proves_for(&key, session, &ticket, counter);
        }
        (wires, key, counter)
    });
    tokio::time::sleep(FLOOD / 2).await;
    let took = let_through(&mut client).await;
    assert!(
        took < 3 * calm + 30 * WAIT,
        "{took:?} to be let through beside a leg that moves, {calm:?} without"
    );
    let (wires, key, counter) = moving.await.unwrap();
    let (barriers, lasted) = (planted.barriers() - before, flooded.elapsed());
    // Half the time, at the most.
    let waited = WAIT * u32::try_from(barriers).unwrap();
    assert!(2 * waited < lasted, "the CPUs were waited for {barriers} times in {lasted:?}, {counter} binds");

    // It is where it binds last, if that is not again at once.
    let [(of_cheat, _)] =
        relay.sessions().into_iter().filter(|(of, _)| of.index == session.index).collect::<Vec<_>>()[..]
    else {
        panic!("the cheat's session goes on")
    };
    let is_at =
        |place: SocketAddr| relay.placed(of_cheat).is_some_and(|placed| placed.client.remote == place);
    let elsewhere = usize::from(is_at(places[0]));
    for again in 1..20 {
        wires[elsewhere].proves_for(&key, session, &ticket, counter + again);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    until("it is where it has bound last", || is_at(places[elsewhere])).await;
    assert_eq!(lab.node.private.list().len(), 3);
    hearing.abort();
}

/// How long a session takes, from the request until it is in force.
async fn let_through(client: &mut Client) -> Duration {
    let began = std::time::Instant::now();
    let opened = client.open("db", None).await.unwrap();
    let leg = client.bind(&opened);
    assert_eq!(client.ready(&leg).await, RelayPath::Kernel);
    began.elapsed()
}

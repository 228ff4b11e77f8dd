//! TCP through a session: bytes, ends, resets, and what the control connections' losses do to it.

use std::time::{Duration, Instant};

use quinn::{ReadError, RecvStream, SendStream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::lab::{TestOrigin, closed_port, soon, until};
use super::*;
use crate::tunnel::access_wire::Denial;
use crate::tunnel::client::{OpenError, Session, SessionEnd, StreamError};
use crate::tunnel::relay::Leg;
use crate::tunnel::wire::{DialFailure, EndReason, RelayPath, StreamCode};

const MANY: usize = 8 * 1024 * 1024;

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect()
}

async fn echoed(session: &Session, sent: &[u8]) {
    let (mut send, mut recv) = soon(session.open_tcp()).await.unwrap();
    let writing = async {
        send.write_all(sent).await.unwrap();
        send.finish().unwrap();
    };
    let reading = async { recv.read_to_end(sent.len()).await.unwrap() };
    let ((), received) = soon(async { tokio::join!(writing, reading) }).await;
    assert!(received == sent, "what comes back is what was sent");
}

async fn tcp_world(origin: &TestOrigin) -> (World, Arc<Session>) {
    let world = World::start(Protocol::Tcp, host(origin.address)).await;
    let session = soon(world.client.session("app", None)).await.unwrap();
    (world, session)
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_go_to_the_origin_and_come_back() {
    let origin = TestOrigin::echo().await;
    let (world, session) = tcp_world(&origin).await;
    echoed(&session, &bytes(MANY)).await;
    let [reference] = world.node.live()[..] else { panic!("one session") };
    assert!(world.node.relayed(reference) > 1000, "the node relayed it");
    let [status] = &world.client.sessions()[..] else { panic!("one session") };
    assert_eq!((status.application.as_str(), status.path), ("app", Some(RelayPath::Userspace)));
    // Another stream, and another one that wants the same, share the session.
    let again = soon(world.client.session("app", None)).await.unwrap();
    assert!(Arc::ptr_eq(&session, &again));
    echoed(&again, b"again").await;
    assert_eq!((world.node.logged("open"), origin.count()), (1, 2));
    soon(world.client.stop()).await;
    until("the node hears that it is closed", || world.node.logged("client closed") == 1).await;
    assert_eq!(session.end(), Some(SessionEnd::Closed));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_of_one_direction_leaves_the_other() {
    // Says "hello" and ends its direction at once, then counts what it is sent until that ends too.
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let origin = TestOrigin::start(move |mut stream| {
        let tell = tell.clone();
        async move {
            stream.write_all(b"hello").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            tell.send(rest.len()).await.unwrap();
        }
    })
    .await;
    let (_world, session) = tcp_world(&origin).await;
    let (mut send, mut recv) = soon(session.open_tcp()).await.unwrap();
    assert_eq!(soon(recv.read_to_end(100)).await.unwrap(), b"hello");
    send.write_all(&bytes(100_000)).await.unwrap();
    send.finish().unwrap();
    assert_eq!(soon(told.recv()).await, Some(100_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_of_the_origin_is_a_reset_here_and_the_other_way_round() {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let origin = TestOrigin::start(move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut first = [0; 1];
            stream.read_exact(&mut first).await.unwrap();
            if first == *b"r" {
                stream.set_zero_linger().unwrap();
                return;
            }
            stream.write_all(b"x").await.unwrap();
            let error = stream.read_exact(&mut first).await.unwrap_err();
            tell.send(error.kind()).await.unwrap();
        }
    })
    .await;
    let (_world, session) = tcp_world(&origin).await;
    let (mut send, mut recv): (SendStream, RecvStream) = soon(session.open_tcp()).await.unwrap();
    send.write_all(b"r").await.unwrap();
    let error = soon(recv.read_to_end(100)).await.unwrap_err();
    let reset = quinn::ReadToEndError::Read(ReadError::Reset(StreamCode::OriginReset.into()));
    assert_eq!(error, reset);

    let (mut send, mut recv) = soon(session.open_tcp()).await.unwrap();
    send.write_all(b"w").await.unwrap();
    soon(recv.read_chunk(1, true)).await.unwrap().unwrap();
    send.reset(StreamCode::Cancelled.into()).unwrap();
    assert_eq!(soon(told.recv()).await, Some(std::io::ErrorKind::ConnectionReset));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_at_once_do_not_mix() {
    let origin = TestOrigin::echo().await;
    let (_world, session) = tcp_world(&origin).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..60_usize {
        let session = Arc::clone(&session);
        tasks.spawn(async move {
            let sent: Vec<u8> = (0..20_000).map(|m| u8::try_from((n * 31 + m) % 256).unwrap()).collect();
            echoed(&session, &sent).await;
        });
    }
    while let Some(done) = soon(tasks.join_next()).await {
        done.unwrap();
    }
    assert_eq!(origin.count(), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_is_down_is_said_to_be() {
    let (_held, closed) = closed_port();
    let world = World::start(Protocol::Tcp, host(closed)).await;
    let session = soon(world.client.session("app", None)).await.unwrap();
    let error = soon(session.open_tcp()).await.unwrap_err();
    assert!(matches!(error, StreamError::Down(DialFailure::ConnectionRefused)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_is_reached_where_the_grant_and_the_connector_both_let_it() {
    let (inside, other) = (TestOrigin::echo().await, TestOrigin::echo().await);
    let reach = Reach::Network {
        prefix: "127.0.0.0/8".parse().unwrap(),
        ports: vec![
            (inside.address.port(), inside.address.port()),
            (other.address.port(), other.address.port()),
        ],
    };
    let authority = |origin: &TestOrigin| origin.address.to_string().parse::<Authority>().unwrap();
    let allow = BTreeSet::from([authority(&inside)]);
    let world = World::start_with(Protocol::Tcp, reach, Some(allow)).await;
    let session = soon(world.client.session("app", Some(&authority(&inside)))).await.unwrap();
    echoed(&session, b"inside").await;
    let session = soon(world.client.session("app", Some(&authority(&other)))).await.unwrap();
    let error = soon(session.open_tcp()).await.unwrap_err();
    assert!(matches!(error, StreamError::Refused), "{error}");
    let session = soon(world.client.session("app", None)).await.unwrap();
    assert!(matches!(soon(session.open_tcp()).await.unwrap_err(), StreamError::Refused));
    assert_eq!(other.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_connectors_own_list_excludes_is_declined() {
    let origin = TestOrigin::echo().await;
    let allow = BTreeSet::from(["192.0.2.1:1".parse().unwrap()]);
    let world = World::start_with(Protocol::Tcp, host(origin.address), Some(allow)).await;
    let error = soon(world.client.session("app", None)).await.unwrap_err();
    assert!(matches!(error, OpenError::Ended(SessionEnd::ByNode(EndReason::Declined))), "{error}");
    assert_eq!((world.node.logged("declined NotAllowed"), origin.count()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_reaches_the_person_in_the_nodes_words() {
    let origin = TestOrigin::echo().await;
    let world = World::start(Protocol::Tcp, host(origin.address)).await;
    world.node.state().deny = Some(Denial::NotAllowed);
    let error = soon(world.client.session("app", None)).await.unwrap_err();
    assert_eq!(error.to_string(), "this is not for you (0101010101010101)");
    // It is asked again when somebody wants it again.
    world.node.state().deny = None;
    soon(world.client.session("app", None)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_cuts_a_transfer_and_says_why() {
    let origin = TestOrigin::start(|mut stream| async move {
        let chunk = vec![0; 64 * 1024];
        while stream.write_all(&chunk).await.is_ok() {}
    })
    .await;
    let (world, session) = tcp_world(&origin).await;
    let (_send, mut recv) = soon(session.open_tcp()).await.unwrap();
    let mut received = 0;
    while received < 1_000_000 {
        received += soon(recv.read_chunk(65_536, true)).await.unwrap().unwrap().bytes.len();
    }
    world.node.end(world.node.live()[0], EndReason::Revoked);
    let cut = tokio::time::timeout(Duration::from_secs(4), async {
        while let Ok(Some(_)) = recv.read_chunk(65_536, true).await {}
        recv.read_chunk(1, true).await
    });
    assert!(cut.await.unwrap().is_err(), "an error, not an end");
    assert_eq!(soon(session.wait_end()).await, SessionEnd::ByNode(EndReason::Revoked));
    until("the person is told", || !world.notices().is_empty()).await;
    assert_eq!(world.notices()[0].to_string(), "app: the session is over: an administrator revoked it");
    assert!(matches!(soon(session.open_tcp()).await.unwrap_err(), StreamError::Ended(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_both_control_connections_and_the_nodes_memory_of_its_legs() {
    let origin = TestOrigin::echo().await;
    let (world, session) = tcp_world(&origin).await;
    let (mut send, mut recv) = soon(session.open_tcp()).await.unwrap();
    let mut back = async |word: &[u8]| {
        send.write_all(word).await.unwrap();
        let mut got = vec![0; word.len()];
        soon(recv.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, word);
    };
    back(b"before").await;
    world.node.cut(Leg::Connector);
    until("the connector is away", || !world.node.state().connector_is_there()).await;
    world.node.connector().await;
    world.node.forget_binds();
    world.node.cut(Leg::Client);
    until("the session is resumed", || world.node.logged("resume") == 1).await;
    back(b"after").await;
    assert_eq!(session.end(), None);
    assert_eq!(world.node.logged("open"), 1);
    echoed(&session, &bytes(200_000)).await;
    until("the person is told", || world.notices().contains(&Notice::Back)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_its_grant_and_the_person_hears_of_it_before() {
    let origin = TestOrigin::echo().await;
    // A machine that is too busy to use it within a short life gets a longer one.
    let mut found = None;
    for seconds in [3, 10, 30] {
        let world = World::start(Protocol::Tcp, host(origin.address)).await;
        world.node.state().lifetime = Duration::from_secs(seconds);
        let began = Instant::now();
        let session = soon(world.client.session("app", None)).await;
        if began.elapsed() < Duration::from_secs(seconds) / 2 {
            found = Some((world, session.unwrap()));
            break;
        }
    }
    let (world, session) = found.expect("this machine opens a session in time");
    echoed(&session, b"in time").await;
    assert_eq!(soon(session.wait_end()).await, SessionEnd::Expired);
    until("the person is told that it is over", || world.notices().len() > 1).await;
    let notices = world.notices();
    assert!(matches!(&notices[..], [Notice::Expires { .. }, Notice::Ended { .. }]), "{notices:?}");
    until("the connector ends it too", || {
        world.node.logged("connector ended") + world.node.logged("client closed") > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_that_stops_ends_the_session_and_the_next_one_works() {
    let origin = TestOrigin::echo().await;
    let (mut world, session) = tcp_world(&origin).await;
    echoed(&session, b"one").await;
    world.connector.stop().await;
    assert!(matches!(soon(session.wait_end()).await, SessionEnd::ByConnector(_)));
    world.connector = Connector::start(&world.node, world.directory.path(), None).await;
    until("it is back", || world.node.state().connector_is_there()).await;
    let session = soon(world.client.session("app", None)).await.unwrap();
    echoed(&session, b"two").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_before_its_end() {
    let origin = TestOrigin::echo().await;
    let world = World::start(Protocol::Tcp, host(origin.address)).await;
    *world.person.lifetime.lock().unwrap() = Some(Duration::from_secs(30));
    soon(world.client.session("app", None)).await.unwrap();
    until("it is renewed", || world.node.logged("renew good.to.ken") >= 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_there_is_said_to_be_so() {
    let origin = TestOrigin::echo().await;
    let world = World::start(Protocol::Tcp, host(origin.address)).await;
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    *world.person.address.lock().unwrap() = Some(nobody.local_addr().unwrap().to_string().parse().unwrap());
    let error = soon(world.client.session("app", None)).await.unwrap_err();
    assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
    *world.person.address.lock().unwrap() = None;
    let error = soon(world.client.session("app", None)).await.unwrap_err();
    assert_eq!(error.to_string(), "logged out");
}

/// The node may say so before this end has looked at its clock.
#[test]
fn a_session_whose_time_is_over_says_the_same_whoever_saw_it_first() {
    assert_eq!(SessionEnd::from(EndReason::Expired), SessionEnd::Expired);
    assert_eq!(SessionEnd::from(EndReason::Revoked), SessionEnd::ByNode(EndReason::Revoked));
}

//! Peers that cheat get nothing: the origin sees no connection.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use quinn::Endpoint;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::super::lab::{TestOrigin, soon, until};
use super::node::Tamper;
use super::*;
use crate::tunnel::client::{OpenError, SessionEnd};
use crate::tunnel::end_to_end::{self, Rooms, Use};
use crate::tunnel::grant::Grant;
use crate::tunnel::identity::SERVER_NAME;
use crate::tunnel::relay::SessionRef;
use crate::tunnel::wire::EndReason;

/// Opens a session whose grant was changed: the connector has to decline it.
async fn declined(tamper: impl Fn(Grant) -> Grant + Send + Sync + 'static) {
    let origin = TestOrigin::echo().await;
    let world = World::start(Protocol::Tcp, host(origin.address)).await;
    world.node.state().tamper = Some(Arc::new(tamper) as Tamper);
    let error = soon(world.client.session("app", None)).await.unwrap_err();
    assert!(matches!(error, OpenError::Ended(SessionEnd::ByNode(EndReason::Declined))), "{error}");
    assert_eq!((world.node.logged("declined BadGrant"), origin.count()), (1, 0));
    // And it is not the world that is broken.
    world.node.state().tamper = None;
    soon(soon(world.client.session("app", None)).await.unwrap().open_tcp()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_for_another_session_is_declined() {
    declined(|grant| Grant {
        session: SessionRef { generation: grant.session.generation + 1, ..grant.session },
        ..grant
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_for_another_connector_is_declined() {
    declined(|grant| Grant { connector: KeyHash::from_bytes([9; 32]), ..grant }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_has_expired_is_declined() {
    declined(|grant| Grant { not_after: crate::flow::UnixTime(grant.not_after.0 - 7200), ..grant }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_another_key_signed_is_declined() {
    let origin = TestOrigin::echo().await;
    let world = World::start(Protocol::Tcp, host(origin.address)).await;
    world.node.state().signs = Some(key());
    let error = soon(world.client.session("app", None)).await.unwrap_err();
    assert!(matches!(error, OpenError::Ended(SessionEnd::ByNode(EndReason::Declined))), "{error}");
    assert_eq!((world.node.logged("declined BadGrant"), origin.count()), (1, 0));
}

/// The grant names another device: whoever binds the client's leg has the wrong key for the connector.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_another_key_than_the_grant_names_gets_nothing() {
    let origin = TestOrigin::echo().await;
    let world = World::start(Protocol::Tcp, host(origin.address)).await;
    world.node.state().tamper =
        Some(Arc::new(|grant| Grant { client: KeyHash::from_bytes([9; 32]), ..grant }) as Tamper);
    // The client's handshake is over before the connector has looked at its key (RFC 8446 §2): then the first stream
    // fails.
    let outcome = soon(world.client.session("app", None)).await;
    if let Ok(session) = outcome {
        assert!(soon(session.open_tcp()).await.is_err());
        assert!(matches!(soon(session.wait_end()).await, SessionEnd::ByConnector(_)));
    }
    until("the node hears that it was taken", || world.node.logged("taken") == 1).await;
    assert_eq!(origin.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_with_another_key_than_the_node_named_is_not_spoken_to() {
    let origin = TestOrigin::echo().await;
    let world = World::start(Protocol::Tcp, host(origin.address)).await;
    world.node.state().claims = Some(KeyHash::from_bytes([9; 32]));
    let error = soon(world.client.session("app", None)).await.unwrap_err();
    assert!(matches!(error, OpenError::WrongConnector), "{error}");
    assert_eq!(origin.count(), 0);
    // And the next time the person is told that the key is another one than before.
    world.node.state().claims = None;
    soon(world.client.session("app", None)).await.unwrap();
    let changed = |notice: &Notice| matches!(notice, Notice::ConnectorChanged { was, .. } if *was == KeyHash::from_bytes([9; 32]));
    until("the person is told", || world.notices().iter().any(changed)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_the_one_of_the_login_gets_no_token() {
    let origin = TestOrigin::echo().await;
    let world = World::start(Protocol::Tcp, host(origin.address)).await;
    *world.person.node.lock().unwrap() = Some(KeyHash::from_bytes([9; 32]));
    let error = soon(world.client.session("app", None)).await.unwrap_err();
    assert!(error.to_string().contains("another key"), "{error}");
    assert_eq!(world.node.logged("hello"), 0);
    assert_ne!(world.client_key, world.node.key());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_node_has_ended_passes_no_packet_and_the_connector_has_forgotten_it() {
    let origin = TestOrigin::echo().await;
    let world = World::start(Protocol::Tcp, host(origin.address)).await;
    let session = soon(world.client.session("app", None)).await.unwrap();
    soon(session.open_tcp()).await.unwrap();
    let [reference] = world.node.live()[..] else { panic!("one session") };
    world.node.end(reference, EndReason::LoginEnded);
    soon(session.wait_end()).await;
    assert!(timeout(Duration::from_secs(10), session.open_tcp()).await.unwrap().is_err());
    until("its connections are closed", || world.node.relayed(reference) == 0).await;
    assert_eq!(origin.count(), 1);
}

/// Neither the node nor the client ends it: the connector does, when the grant and the leeway of clocks are over.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_nobody_ends_is_over_with_its_grant_at_the_connector() {
    let origin = TestOrigin::echo().await;
    // A machine that is too busy to use it in time gets more.
    for left in [3, 10, 20] {
        let world = World::start(Protocol::Tcp, host(origin.address)).await;
        let tamper = move |grant| Grant {
            not_after: crate::flow::UnixTime(crate::clock::now().0 - 60 + left),
            ..grant
        };
        world.node.state().tamper = Some(Arc::new(tamper) as Tamper);
        let began = Instant::now();
        let session = soon(world.client.session("app", None)).await;
        if began.elapsed() > Duration::from_secs(left.unsigned_abs()) / 2 {
            continue;
        }
        let session = session.unwrap();
        soon(session.open_tcp()).await.unwrap();
        soon(session.wait_end()).await;
        until("the node is told", || world.node.logged("connector ended") == 1).await;
        return;
    }
    panic!("this machine never opens a session in time");
}

/// How a client begins that says nothing more.
async fn beginning() -> Vec<u8> {
    let nobody = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let room = Rooms::new(end_to_end::CLIENT).take("", Use::Either);
    let config = end_to_end::client_config(&key(), key().hash(), &room).unwrap();
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let _connecting = endpoint.connect_with(config, nobody.local_addr().unwrap(), SERVER_NAME).unwrap();
    let mut datagram = vec![0; 2048];
    let length = soon(nobody.recv(&mut datagram)).await.unwrap();
    datagram.truncate(length);
    datagram
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_hang_are_two_of_a_session_and_others_wait_for_their_end() {
    let origin = TestOrigin::echo().await;
    let world = World::start(Protocol::Tcp, host(origin.address)).await;
    // A client that has given up comes in beside what hangs of it.
    let session = soon(world.client.session("one hangs", None)).await.unwrap();
    world.client.inject(&session, &beginning().await);
    soon(world.client.connect_again(&session)).await.unwrap();

    let session = soon(world.client.session("two hang", None)).await.unwrap();
    for _ in 0..2 {
        world.client.inject(&session, &beginning().await);
    }
    let again = || timeout(Duration::from_secs(2), world.client.connect_again(&session));
    assert!(again().await.is_err(), "a third handshake");
    soon(async { while again().await.is_err() {} }).await;
    // Of other sessions it takes nothing.
    soon(soon(world.client.session("app", None)).await.unwrap().open_tcp()).await.unwrap();
}

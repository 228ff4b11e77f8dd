//! Enrolment, from a fresh connector to its revocation.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::lab::{Lab, RunningConnector, TestOrigin, soon, web};
use crate::clock;
use crate::tunnel::OpenError;
use crate::tunnel::connector::ConnectorError;
use crate::tunnel::wire::Refusal;

#[tokio::test]
async fn a_connector_enrols_once_and_comes_back_by_its_key() {
    let lab = Lab::start().await;
    let origin = TestOrigin::echo().await;
    let token = lab.token("hq").await;
    let connector = RunningConnector::start(lab.directory.path(), Some(token.clone()), None);
    lab.connected(2).await;
    let mut stream = lab.open(origin.address).await;
    soon(stream.write_all(b"ping")).await.unwrap();
    let mut answer = [0; 4];
    soon(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"ping");
    drop(stream);
    connector.stop().await;
    lab.connected(0).await;

    for token in [None, Some(token)] {
        let connector = RunningConnector::start(lab.directory.path(), token, None);
        lab.connected(2).await;
        connector.stop().await;
        lab.connected(0).await;
    }
    let events = lab.events().await;
    assert_eq!(events.matches("\"enrolled\"").count(), 1, "{events}");
    assert!(events.matches("\"connected\"").count() >= 6, "{events}");
}

#[tokio::test]
async fn a_token_works_once() {
    let lab = Lab::start().await;
    let token = lab.token("hq").await;
    let first = RunningConnector::start(lab.directory.path(), Some(token.clone()), None);
    lab.connected(2).await;
    let thief = tempfile::tempdir().unwrap();
    let second = RunningConnector::start(thief.path(), Some(token), None);
    let refused = soon(second.task).await.unwrap();
    assert!(matches!(refused, Err(ConnectorError::Refused(Refusal::BadToken))), "{refused:?}");
    lab.connected(2).await;
    lab.logged("bad_enrolment", 1).await;
    first.stop().await;
}

#[tokio::test]
async fn an_expired_token_and_a_void_one_are_refused() {
    let lab = Lab::start().await;
    let expired = lab.token_for("hq", &[&lab.address.to_string()], Duration::ZERO).await;
    let void = lab.token("office").await;
    lab.token("office").await;
    for token in [expired, void] {
        let directory = tempfile::tempdir().unwrap();
        let refused = soon(RunningConnector::start(directory.path(), Some(token), None).task).await.unwrap();
        assert!(matches!(refused, Err(ConnectorError::Refused(Refusal::BadToken))), "{refused:?}");
    }
}

#[tokio::test]
async fn a_token_of_another_node_sends_its_secret_to_nobody() {
    let (lab, other) = (Lab::start().await, Lab::start().await);
    // The token is other's, but the address is lab's: as if somebody had taken over the name.
    let token = other.token_for("hq", &[&lab.address.to_string()], Duration::from_secs(600)).await;
    let wrong = soon(RunningConnector::start(lab.directory.path(), Some(token), None).task).await.unwrap();
    assert!(matches!(wrong, Err(ConnectorError::WrongNode(_))), "{wrong:?}");
    assert!(lab.node.registry.connectors().is_empty());
}

#[tokio::test]
async fn a_connector_connects_to_every_node_it_was_told_of() {
    let lab = Lab::start().await;
    let origin = TestOrigin::echo().await;
    // A second node with the same state, and so with the same key.
    let second = Lab::sibling(&lab).await;
    let nodes = [lab.address.to_string(), second.address.to_string()];
    let token = lab.token_for("hq", &[&nodes[0], &nodes[1]], Duration::from_secs(600)).await;
    let connector = RunningConnector::start(lab.directory.path(), Some(token), None);
    lab.connected(2).await;
    second.connected(2).await;
    drop(lab.open(origin.address).await);
    drop(second.open(origin.address).await);
    connector.stop().await;
}

#[tokio::test]
async fn a_node_is_reached_by_name_and_in_both_families() {
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None).unwrap();
    socket.set_only_v6(false).unwrap();
    let any: SocketAddr = (Ipv6Addr::UNSPECIFIED, 0).into();
    socket.bind(&any.into()).unwrap();
    let lab = Lab::start_on(socket.into()).await;
    let port = lab.address.port();
    for host in ["127.0.0.1", "[::1]", "localhost"] {
        let token = lab.token_for("hq", &[&format!("{host}:{port}")], Duration::from_secs(600)).await;
        let directory = tempfile::tempdir().unwrap();
        let connector = RunningConnector::start(directory.path(), Some(token), None);
        lab.connected(2).await;
        connector.stop().await;
        lab.connected(0).await;
    }
    // An IPv4 address is never shown in its mapped form.
    assert!(!lab.events().await.contains("::ffff:"));
}

#[tokio::test]
async fn without_token_or_state_there_is_nothing_to_run() {
    let directory = tempfile::tempdir().unwrap();
    let never = soon(RunningConnector::start(directory.path(), None, None).task).await.unwrap();
    assert!(matches!(never, Err(ConnectorError::NotEnrolled)), "{never:?}");
}

#[tokio::test]
async fn a_revoked_connector_is_cut_at_once_and_stays_out() {
    let lab = Lab::start().await;
    let origin = TestOrigin::echo().await;
    let connector = lab.connector().await;
    let permit = lab.permit(origin.address);
    let mut stream = lab.open(origin.address).await;
    lab.node.store.revoke_connector("hq", clock::now()).await.unwrap();
    lab.node.registry.disconnect("hq");
    assert!(soon(stream.read_u8()).await.is_err());
    assert_eq!(lab.node.registry.open(web(&permit)).await.unwrap_err(), OpenError::ConnectorGone);
    // Both of its connections try again, and are refused for their key.
    lab.logged("unknown_connector", 2).await;
    assert!(lab.node.registry.connectors().is_empty());
    connector.stop().await;
}

#[tokio::test]
async fn a_new_key_takes_the_place_of_the_old_one() {
    let lab = Lab::start().await;
    let old = lab.connector().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let new = RunningConnector::start(elsewhere.path(), Some(lab.token("hq").await), None);
    lab.logged("unknown_connector", 2).await;
    lab.connected(2).await;
    new.stop().await;
    lab.connected(0).await;
    old.stop().await;
}

//! A connector that is missing when a session is asked for: it has a moment to come, and whoever asks has one answer.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::super::lab::{Lab, PATIENCE, until};
use super::ends::{Client, Login, Seen, TestConnector, echoes, enrol, key_again};
use crate::tunnel::access_wire::{AccessFrame, ClientFrame, Denial, RequestId};
use crate::tunnel::private::{LINK_WAIT, MAX_WAITING};
use crate::tunnel::wire::{ConnectorFrame, EndReason, Instance};

fn ask(request: u32) -> ClientFrame {
    ClientFrame::Open { request: RequestId(request), application: "db".into(), destination: None }
}

fn connects(log: &str) -> usize {
    log.lines().filter(|line| line.contains("\"connect\"") && line.contains("\"db\"")).count()
}

/// It is in service, and has not said yet that it takes sessions: that is a round trip later.
#[tokio::test(flavor = "multi_thread")]
async fn a_connector_that_has_just_connected_is_not_taken_for_an_old_one() {
    let lab = Lab::start().await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let connector = TestConnector::connect(&lab, enrol(&lab, "hq").await, Arc::default(), false).await;
    until("it is in service", || lab.node.registry.connectors().contains_key("hq")).await;
    client.say(&ask(1)).await;
    // What else the client says is answered meanwhile.
    let renew = ClientFrame::Renew { token: Login::renewed(&lab, &ann).parse().unwrap() };
    client.say(&renew).await;
    assert!(matches!(client.hear().await, AccessFrame::Renewed { .. }));
    connector.say.send(ConnectorFrame::TakesSessions { instance: Instance(0) }).unwrap();
    let AccessFrame::Opened(opened) = client.hear().await else { panic!("it is opened") };
    let bound = client.bind(&opened);
    client.ready(&bound).await;
    let through = super::ends::through(&bound, &ann.key, client.node, opened.connector).await.unwrap();
    assert!(echoes(&through, PATIENCE).await);
    assert_eq!(connects(&lab.events().await), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_that_comes_while_somebody_waits_serves_all_who_do() {
    let lab = Lab::start().await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let key = enrol(&lab, "hq").await;
    for request in 1..=3 {
        client.say(&ask(request)).await;
    }
    let _connector = TestConnector::connect(&lab, key, Arc::default(), true).await;
    for _ in 1..=3 {
        assert!(matches!(client.hear().await, AccessFrame::Opened(_)));
    }
}

/// One that has died is silent on all of its connections, and they end one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_has_fallen_silent_is_offered_nothing_until_it_is_heard() {
    let lab = Lab::start().await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let first = TestConnector::start(&lab).await;
    let (opened, ..) = client.session(&ann, "db").await;
    let silent = Arc::new(Mutex::new(Seen::default()));
    silent.lock().unwrap().mute = true;
    let second = TestConnector::connect(&lab, key_again(&first.key), Arc::clone(&silent), true).await;
    let there = || lab.node.registry.connectors().get("hq").map_or((0, 0), |hq| (hq.connections, hq.healthy));
    until("both are there", || there() == (2, 2)).await;
    until("the second falls silent", || there() == (2, 1)).await;
    first.connection.close(0_u8.into(), b"");
    until("the first is gone", || there() == (1, 0)).await;
    assert_eq!(client.open("db", None).await, Err(Denial::ConnectorGone));
    assert!(silent.lock().unwrap().offers.is_empty());

    // The session that nobody serves, and whoever waits by then.
    client.say(&ask(7)).await;
    second.say.send(ConnectorFrame::Heartbeat).unwrap();
    assert!(matches!(client.hear().await, AccessFrame::Opened(_)));
    let offered = || silent.lock().unwrap().offers.iter().map(|offer| offer.session).collect::<Vec<_>>();
    until("it is offered both", || offered().len() == 2).await;
    assert!(offered().contains(&opened.session), "{:?}", offered());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_for_good_is_said_after_a_moment_and_once() {
    let lab = Lab::start().await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let asked = Instant::now();
    assert_eq!(client.open("db", None).await, Err(Denial::ConnectorGone));
    assert!((LINK_WAIT..LINK_WAIT * 2).contains(&asked.elapsed()), "{:?}", asked.elapsed());
    let _old = TestConnector::connect(&lab, enrol(&lab, "hq").await, Arc::default(), false).await;
    assert_eq!(client.open("db", None).await, Err(Denial::ConnectorOld));
    // Who may not is told at once, whatever is missing.
    let eve = Login::of_groups(&lab, "eve", &["guests"]).await;
    let mut other = Client::welcome(&lab, &eve).await;
    let asked = Instant::now();
    assert_eq!(other.open("db", None).await, Err(Denial::NotAllowed));
    assert!(asked.elapsed() < LINK_WAIT);
    assert_eq!(connects(&lab.events().await), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_so_many_wait_and_the_rest_hear_at_once() {
    let lab = Lab::start().await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let count = u32::try_from(MAX_WAITING).unwrap();
    let asked = Instant::now();
    for request in 0..=count {
        client.say(&ask(request)).await;
    }
    let AccessFrame::Denied { request, denial, .. } = client.hear().await else { panic!("denied") };
    assert_eq!((request, denial), (RequestId(count), Denial::ConnectorGone));
    assert!(asked.elapsed() < LINK_WAIT, "at once");
    let mut others = Vec::new();
    for _ in 0..count {
        let AccessFrame::Denied { request, .. } = client.hear().await else { panic!("denied") };
        others.push(request.0);
    }
    others.sort_unstable();
    assert_eq!(others, (0..count).collect::<Vec<_>>());
    assert_eq!(connects(&lab.events().await), MAX_WAITING + 1);
}

/// A login that ends while its request waits leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_does_not_outlive_its_login() {
    let lab = Lab::start().await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    client.say(&ask(1)).await;
    sleep(Duration::from_millis(100)).await;
    let filter = crate::store::SessionFilter::User("ann@example.com".into());
    lab.desk.sessions.revoke_by_administrator(&filter, crate::clock::now()).await.unwrap();
    lab.node.private.end_logins(&[ann.id()], EndReason::Revoked).await.unwrap();
    assert!(matches!(client.hear().await, AccessFrame::Refused(_)));
    let connector = TestConnector::start(&lab).await;
    sleep(Duration::from_millis(300)).await;
    assert!(connector.seen.lock().unwrap().offers.is_empty());
    assert!(lab.node.private.list().is_empty());
}

/// A request is judged by where it comes from. Once its stream is gone that is nowhere, and not where the stream was.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_is_not_judged_by_a_stream_that_is_gone() {
    let lab = Lab::start().await;
    let ann = Login::new(&lab, "ann").await;
    for stays in [true, false] {
        let (mut client, stream) = Client::by_stream(&lab, &ann, "198.51.100.7".parse().unwrap()).await;
        client.say(&ask(1)).await;
        sleep(Duration::from_millis(300)).await;
        if !stays {
            stream.abort();
            until("the stream is gone", || lab.desk.metrics.carried_streams.get() == 0).await;
        }
        let connector = TestConnector::start(&lab).await;
        if stays {
            assert!(matches!(client.hear().await, AccessFrame::Opened(_)), "the control");
            assert!(lab.events().await.contains("\"ip_address\":\"198.51.100.7\""));
            client.connection.close(0u8.into(), b"");
        }
        until("the client is let go", || lab.desk.metrics.access_connections.get() == 0).await;
        assert_eq!(connector.seen.lock().unwrap().offers.len(), usize::from(stays));
        assert_eq!(connects(&lab.events().await), 1, "what was decided at the stream's address alone");
        connector.connection.close(0u8.into(), b"");
        until("the connector is gone", || lab.node.registry.connectors().is_empty()).await;
    }
}

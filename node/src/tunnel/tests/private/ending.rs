//! Whatever ends a session: its packets pass no more, and both ends learn why.

use std::time::Duration;

use super::super::lab::{Lab, config, soon, until};
use super::ends::{Client, Login, TestConnector, echoes, through};
use crate::clock;
use crate::store::SessionFilter;
use crate::tunnel::access_wire::{AccessFrame, AccessRefusal, Denial};
use crate::tunnel::wire::{ConnectorFrame, Decline, EndReason};

const PATIENCE: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_login_takes_its_sessions_along_and_no_others() {
    let lab = Lab::start().await;
    let connector = TestConnector::start(&lab).await;
    let (ann, bob) = (Login::new(&lab, "ann").await, Login::new(&lab, "bob").await);
    let mut of_ann = Client::welcome(&lab, &ann).await;
    let mut of_bob = Client::welcome(&lab, &bob).await;
    let (opened, _leg, cut) = of_ann.session(&ann, "db").await;
    let (_, _other_leg, goes_on) = of_bob.session(&bob, "db").await;
    let filter = SessionFilter::User("ann@example.com".into());
    lab.desk.sessions.revoke_by_administrator(&filter, clock::now()).await.unwrap();
    lab.node.private.end_logins(&[ann.id()], EndReason::Revoked).await.unwrap();
    assert!(lab.node.private.list().iter().all(|row| row.login == bob.id()));
    assert!(!echoes(&cut, SILENCE).await, "at the next packet");
    assert_eq!(of_ann.ended().await, (opened.session, EndReason::Revoked));
    assert_eq!(connector.told_end(opened.session).await, EndReason::Revoked);
    assert_eq!(of_ann.hear().await, AccessFrame::Refused(AccessRefusal::LoginEnded));
    assert!(echoes(&goes_on, PATIENCE).await);

    // By the application, which the login was granted; without the word of whoever asked.
    let filter = SessionFilter::Application("db".into());
    assert_eq!(lab.desk.sessions.revoke(&filter, clock::now()).await.unwrap().len(), 1);
    assert_eq!(of_bob.ended().await.1, EndReason::LoginEnded);
    assert!(!echoes(&goes_on, SILENCE).await);
    lab.logged("\"action\":\"disconnect\"", 2).await;
    for line in [
        "portcullis_private_ended_total{reason=\"revoked\"} 1",
        "portcullis_private_ended_total{reason=\"login_ended\"} 1",
        "portcullis_private_opens_total{reason=\"\",verdict=\"allow\"} 2",
        "portcullis_private_sessions{path=\"userspace\"} 0",
    ] {
        until(line, || lab.desk.metrics.render().unwrap().contains(line)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_logged_out_in_the_store_is_cut_within_a_second_or_two() {
    let lab = Lab::start().await;
    let _connector = TestConnector::start(&lab).await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let (opened, _leg, through) = client.session(&ann, "db").await;
    assert!(lab.node.store.revoke_client(ann.client, clock::now()).await.unwrap());
    let ended = tokio::time::timeout(Duration::from_secs(10), client.ended()).await;
    assert_eq!(ended.expect("soon"), (opened.session, EndReason::LoginEnded));
    assert_eq!(client.hear().await, AccessFrame::Refused(AccessRefusal::LoginEnded));
    assert!(!echoes(&through, SILENCE).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_logout_the_store_does_not_take_is_cut_all_the_same() {
    let lab = Lab::start().await;
    let connector = TestConnector::start(&lab).await;
    let ann = Login::new(&lab, "ann").await;
    // The same person on another device: that login goes on.
    let other = Login::on_device(&lab, &ann.session, super::ends::key()).await;
    let (mut client, mut goes_on) = (Client::welcome(&lab, &ann).await, Client::welcome(&lab, &other).await);
    let (opened, _leg, through) = client.session(&ann, "db").await;
    let (_, _other_leg, over_other) = goes_on.session(&other, "db").await;
    lab.node.store.break_sessions().await;
    assert!(lab.desk.clients.log_out(ann.client, clock::now()).await.is_err(), "loudly");
    assert_eq!(client.ended().await, (opened.session, EndReason::LoginEnded), "and closed");
    assert_eq!(connector.told_end(opened.session).await, EndReason::LoginEnded);
    assert_eq!(client.hear().await, AccessFrame::Refused(AccessRefusal::LoginEnded));
    assert!(!echoes(&through, SILENCE).await);
    assert!(echoes(&over_other, PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_judges_a_leg_where_it_is() {
    let lab = Lab::start().await;
    let _connector = TestConnector::start(&lab).await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let opened = client.open("db", None).await.unwrap();
    let elsewhere = client.bind_from("127.0.0.2:0", &opened);
    client.ready(&elsewhere).await;
    let (_, _leg, here) = client.session(&ann, "db").await;
    let office =
        [("{ group = \"staff\" }]", "{ group = \"staff\" }]\nrequire = [{ ip = \"127.0.0.1/32\" }]")];
    lab.desk.reload.send_replace(config(lab.directory.path(), &office));
    assert_eq!(client.ended().await, (opened.session, EndReason::NotAllowed));
    assert!(echoes(&here, PATIENCE).await);
    // And not by where it was asked for: that one has moved on.
    let opened = client.open("db", None).await.unwrap();
    let away = [("{ group = \"staff\" }]", "{ group = \"staff\" }]\nrequire = [{ ip = \"127.0.0.0/8\" }]")];
    lab.desk.reload.send_replace(config(lab.directory.path(), &away));
    let moved = client.bind_from("127.0.0.2:0", &opened);
    client.ready(&moved).await;
    let there = [("{ group = \"staff\" }]", "{ group = \"staff\" }]\nrequire = [{ ip = \"127.0.0.2/32\" }]")];
    lab.desk.reload.send_replace(config(lab.directory.path(), &there));
    client.ended().await;
    assert_eq!(lab.node.private.list().len(), 1, "the one that is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_has_ended_is_not_taken_up_again() {
    let lab = Lab::start().await;
    let connector = TestConnector::start(&lab).await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let (opened, _leg, _through) = client.session(&ann, "db").await;
    connector.say.send(ConnectorFrame::SessionEnded { session: opened.session }).unwrap();
    assert_eq!(client.ended().await, (opened.session, EndReason::ConnectorEnded));
    assert_eq!(client.resume(&opened.grant).await, Err(Denial::Gone));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_cuts_what_it_would_refuse() {
    let lab = Lab::start().await;
    let connector = TestConnector::start(&lab).await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let (opened, _leg, through) = client.session(&ann, "db").await;
    let reload =
        |changes: &[(&str, &str)]| lab.desk.reload.send_replace(config(lab.directory.path(), changes));
    reload(&[("10.0.0.0/24", "10.0.0.0/25")]);
    assert!(echoes(&through, PATIENCE).await, "that is another application");
    reload(&[("10.0.0.5:5432", "10.0.0.6:5432")]);
    assert_eq!(client.ended().await, (opened.session, EndReason::NotAllowed), "its grant leads elsewhere");
    assert_eq!(connector.told_end(opened.session).await, EndReason::NotAllowed);
    assert!(!echoes(&through, SILENCE).await);
    let (again, _leg, _) = client.session(&ann, "db").await;
    reload(&[("staff\" }]", "nobody\" }]")]);
    assert_eq!(client.ended().await, (again.session, EndReason::NotAllowed));
    assert_eq!(client.open("db", None).await, Err(Denial::NotAllowed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_ends_declines_and_is_revoked() {
    let lab = Lab::start().await;
    let connector = TestConnector::start(&lab).await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    connector.seen.lock().unwrap().decline = Some(Decline::Busy);
    let declined = client.open("db", None).await.unwrap();
    assert_eq!(client.ended().await, (declined.session, EndReason::Declined));
    let (opened, _leg, _) = client.session(&ann, "db").await;
    connector.say.send(ConnectorFrame::SessionEnded { session: opened.session }).unwrap();
    assert_eq!(client.ended().await, (opened.session, EndReason::ConnectorEnded));
    let (opened, _leg, through) = client.session(&ann, "db").await;
    lab.node.store.revoke_connector("hq", clock::now()).await.unwrap();
    lab.node.registry.disconnect("hq");
    lab.node.private.end_connector("hq", EndReason::ConnectorRevoked).await.unwrap();
    assert_eq!(client.ended().await, (opened.session, EndReason::ConnectorRevoked));
    assert!(!echoes(&through, SILENCE).await);
    let log = lab.events().await;
    for reason in ["declined", "connector_ended", "connector_revoked"] {
        assert_eq!(log.matches(&format!("\"detail\":\"{reason}\"")).count(), 1, "{reason}\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_control_connection_is_taken_up_again() {
    let lab = Lab::start().await;
    let connector = TestConnector::start(&lab).await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let (opened, _leg, end_to_end) = client.session(&ann, "db").await;
    client.connection.close(0u8.into(), b"");
    assert!(echoes(&end_to_end, PATIENCE).await, "nothing is cut");

    let mut again = Client::welcome(&lab, &ann).await;
    let resumed = again.resume(&opened.grant).await.unwrap();
    assert_eq!(resumed.session, opened.session);
    assert_ne!(resumed.ticket, opened.ticket);
    assert!(echoes(&end_to_end, PATIENCE).await, "the old leg is good until the new one is");
    let moved = again.bind(&resumed);
    again.ready(&moved).await;
    let over_new_leg = through(&moved, &ann.key, again.node, resumed.connector).await.unwrap();
    assert!(echoes(&over_new_leg, PATIENCE).await);

    // The connector loses its connection and comes back; the session is offered again.
    let (key, seen) = (connector.key, connector.seen);
    let offers = || seen.lock().unwrap().offers.len();
    assert_eq!(offers(), 1);
    connector.connection.close(0u8.into(), b"");
    until("its connection is gone", || !lab.node.registry.connectors().contains_key("hq")).await;
    assert_eq!(again.open("db", None).await, Err(Denial::ConnectorGone));
    let back = TestConnector::connect(&lab, key, std::sync::Arc::clone(&seen), true).await;
    until("the session is offered again", || offers() == 2).await;
    let offer = seen.lock().unwrap().offers[1].clone();
    assert_eq!(offer.session, opened.session);
    assert_eq!(back.grant(&lab, &ann.key).await.session, opened.session);
    assert_eq!(lab.node.private.list().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_both_ends_take_a_session_up_again() {
    let mut lab = Lab::start().await;
    let connector = TestConnector::start(&lab).await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let (opened, _leg, _through) = client.session(&ann, "db").await;
    let stopping = lab.begin_stop();
    assert_eq!(client.hear().await, AccessFrame::Drain);
    soon(client.connection.closed()).await;
    connector.connection.close(0u8.into(), b"");
    soon(stopping).await.unwrap().unwrap();
    lab.start_again().await;

    let mut again = Client::welcome(&lab, &ann).await;
    let resumed = again.resume(&opened.grant).await.unwrap();
    assert_eq!((resumed.session, resumed.connector), (opened.session, opened.connector));
    let other = Login::new(&lab, "bob").await;
    let mut of_other = Client::welcome(&lab, &other).await;
    assert_eq!(of_other.resume(&opened.grant).await, Err(Denial::Gone), "made for another client");
    let _back = TestConnector::connect(&lab, connector.key, std::sync::Arc::default(), true).await;
    let leg = again.bind(&resumed);
    again.ready(&leg).await;
    let through = through(&leg, &ann.key, again.node, resumed.connector).await.unwrap();
    assert!(echoes(&through, PATIENCE).await);
    lab.logged("resumed after a restart", 1).await;
    lab.logged("\"detail\":\"node_stopped\"", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_by_one_of_the_same_login_only() {
    use crate::tunnel::access_wire::ClientFrame;
    let lab = Lab::start().await;
    let (ann, bob) = (Login::new(&lab, "ann").await, Login::new(&lab, "bob").await);
    let mut client = Client::welcome(&lab, &ann).await;
    let younger = Login::renewed(&lab, &ann);
    client.say(&ClientFrame::Renew { token: younger.parse().unwrap() }).await;
    assert!(matches!(client.hear().await, AccessFrame::Renewed { .. }));
    client.say(&ClientFrame::Renew { token: bob.token.parse().unwrap() }).await;
    assert_eq!(client.hear().await, AccessFrame::Refused(AccessRefusal::OtherDevice));
    soon(client.connection.closed()).await;
    // One that is about to expire takes the connection along; one that is over before it is shown opens none.
    for seconds in [2, 8, 20] {
        let short = Login::expiring(&lab, &ann, seconds);
        let mut client = Client::hello(&lab, &ann.key, &short).await;
        let first = client.hear().await;
        if first == AccessFrame::Refused(AccessRefusal::BadToken) {
            continue;
        }
        assert!(matches!(first, AccessFrame::Welcome { .. }));
        assert_eq!(client.hear().await, AccessFrame::Refused(AccessRefusal::BadToken));
        return;
    }
    panic!("this machine never shows a token in time");
}

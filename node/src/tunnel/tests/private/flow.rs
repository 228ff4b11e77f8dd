//! What a session does from its opening to its end.

use std::time::Duration;

use super::super::lab::Lab;
use super::ends::{Client, Login, TestConnector, echoes};
use crate::tunnel::access_wire::{ClientFrame, Denial};
use crate::tunnel::grant::{Protocol, Reach};
use crate::tunnel::wire::EndReason;

const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough for what passes, short enough to wait for silence.
const SILENCE: Duration = Duration::from_millis(700);

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_opened_carried_and_closed() {
    let lab = Lab::start().await;
    let connector = TestConnector::start(&lab).await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let (opened, _bound, through) = client.session(&ann, "db").await;
    assert!(echoes(&through, PATIENCE).await);
    let grant = connector.grant(&lab, &ann.key).await;
    assert_eq!((grant.person.as_str(), grant.application.as_str()), ("ann@example.com", "db"));
    assert_eq!(grant.protocol, Protocol::Tcp);
    assert_eq!(grant.reach, Reach::Host("10.0.0.5:5432".parse().unwrap()));
    assert_eq!(opened.connector, connector.key.hash());

    client.say(&ClientFrame::Close { session: opened.session }).await;
    assert_eq!(client.ended().await, (opened.session, EndReason::Closed));
    assert_eq!(connector.told_end(opened.session).await, EndReason::Closed);
    assert!(!echoes(&through, SILENCE).await, "nothing passes any more");
    lab.logged("\"action\":\"disconnect\"", 1).await;
    let log = lab.events().await;
    let line = |what: &str| log.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{log}"));
    let opening: serde_json::Value = serde_json::from_str(line("\"app_name\":\"db\"")).unwrap();
    for (field, value) in [
        ("action", "connect"),
        ("user_email", "ann@example.com"),
        ("policy", "staff"),
        ("connector", "hq"),
        ("ip_address", "127.0.0.1"),
    ] {
        assert_eq!(opening[field], value, "{opening}");
    }
    let end: serde_json::Value = serde_json::from_str(line("\"disconnect\"")).unwrap();
    assert!(end["bytes_up"].as_u64().unwrap() > 1200 && end["bytes_down"].as_u64().unwrap() > 1200, "{end}");
    assert!(end["duration"].as_u64().unwrap() < 60_000, "{end}");
    assert_eq!((&end["detail"], &end["app_name"]), (&"closed".into(), &"db".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_allowed_is_denied_with_one_event() {
    let lab = Lab::start().await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    assert_eq!(client.open("db", None).await, Err(Denial::ConnectorGone));
    let connector = TestConnector::start(&lab).await;
    for (application, destination, denial) in [
        ("nothing", None, Denial::NoApplication),
        ("wiki", None, Denial::NoApplication),
        ("db", Some("10.0.0.6:5432"), Denial::Destination),
        ("lan", None, Denial::Destination),
        ("lan", Some("10.0.1.1:22"), Denial::Destination),
        ("lan", Some("10.0.0.1:23"), Denial::Destination),
    ] {
        let before = lab.events().await.lines().count();
        assert_eq!(client.open(application, destination).await, Err(denial), "{application} {destination:?}");
        assert_eq!(lab.events().await.lines().count(), before + 1, "one event");
    }
    let eve = Login::of_groups(&lab, "eve", &["guests"]).await;
    let mut other = Client::welcome(&lab, &eve).await;
    assert_eq!(other.open("db", None).await, Err(Denial::NotAllowed));
    lab.logged("\"no_match\"", 1).await;
    assert!(connector.seen.lock().unwrap().offers.is_empty());
    assert!(client.open("lan", Some("10.0.0.7:22")).await.is_ok());
    let reach = connector_reach(&lab, &connector, &ann).await;
    assert_eq!(reach, Reach::Host("10.0.0.7:22".parse().unwrap()), "one address, not the network");
}

async fn connector_reach(lab: &Lab, connector: &TestConnector, login: &Login) -> Reach {
    super::super::lab::until("an offer", || !connector.seen.lock().unwrap().offers.is_empty()).await;
    connector.grant(lab, &login.key).await.reach
}

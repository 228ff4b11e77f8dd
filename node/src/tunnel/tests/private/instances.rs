//! Processes of a connector: a session ends with the one that took it, and nobody waits for the network to say so.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::time::sleep;

use super::super::lab::{Lab, PATIENCE, until};
use super::ends::{Client, Login, Seen, TestConnector, echoes, enrol, key_again};
use crate::tunnel::TunnelKey;
use crate::tunnel::private::SUSPICION;
use crate::tunnel::transport::IDLE_TIMEOUT;
use crate::tunnel::wire::EndReason;

/// A process of the connector's. Killed, it sends nothing more, not even that it closes.
struct Process {
    runtime: Option<Runtime>,
    seen: Arc<Mutex<Seen>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Process {
    fn new(instance: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let seen = Arc::<Mutex<Seen>>::default();
        seen.lock().unwrap().instance = instance;
        Self { runtime: Some(runtime.unwrap()), seen }
    }

    async fn connect(&self, lab: &Arc<Lab>, key: &TunnelKey) -> TestConnector {
        let (lab, key, seen) = (Arc::clone(lab), key_again(key), Arc::clone(&self.seen));
        let connects = async move { TestConnector::connect(&lab, key, seen, true).await };
        self.runtime.as_ref().unwrap().spawn(connects).await.unwrap()
    }

    fn offers(&self) -> usize {
        self.seen.lock().unwrap().offers.len()
    }

    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_that_was_killed_and_returns_is_told_of_when_it_returns() {
    let lab = Arc::new(Lab::start().await);
    let key = enrol(&lab, "hq").await;
    let (mut first, second) = (Process::new(1), Process::new(2));
    let _links = (first.connect(&lab, &key).await, first.connect(&lab, &key).await);
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let (opened, _leg, through) = client.session(&ann, "db").await;
    assert!(echoes(&through, PATIENCE).await);
    first.kill();
    let killed = Instant::now();
    let _back = second.connect(&lab, &key).await;
    // Nothing new goes to the connections of the dead, of which one carries nothing.
    let _new = client.open("db", None).await.unwrap();
    until("the new one is offered it", || second.offers() == 1).await;
    assert_eq!(client.ended().await, (opened.session, EndReason::ConnectorRestarted));
    assert!(killed.elapsed() < IDLE_TIMEOUT / 2, "after {:?}", killed.elapsed());
    assert_eq!(second.offers(), 1, "what the dead had is not the new one's");
    lab.logged("\"detail\":\"connector_restarted\"", 1).await;
    let (_, _leg, through) = client.session(&ann, "db").await;
    assert!(echoes(&through, PATIENCE).await);
}

/// Silent connections are offered nothing, and are not waited for once they are gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_over_with_the_last_connection_of_its_process_be_it_a_silent_one() {
    let lab = Arc::new(Lab::start().await);
    let key = enrol(&lab, "hq").await;
    let (first, second) = (Process::new(1), Process::new(2));
    let taken = first.connect(&lab, &key).await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let (opened, ..) = client.session(&ann, "db").await;
    let silent = first.connect(&lab, &key).await;
    let connections = || lab.node.registry.connectors()["hq"].connections;
    until("both are in service", || connections() == 2).await;
    lab.node.registry.links("hq").last().unwrap().set_healthy(false);
    let _other = second.connect(&lab, &key).await;
    taken.connection.close(0u8.into(), b"");
    until("one is gone", || connections() == 2).await;
    sleep(Duration::from_millis(200)).await;
    assert_eq!(lab.node.private.list().len(), 1, "the silent one may be heard again");
    silent.connection.close(0u8.into(), b"");
    assert_eq!(client.ended().await, (opened.session, EndReason::ConnectorRestarted));
}

/// Whoever has copied a connector's state folder to a second machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_lives_keeps_its_sessions_whoever_else_comes() {
    let lab = Arc::new(Lab::start().await);
    let key = enrol(&lab, "hq").await;
    let (first, second) = (Process::new(1), Process::new(2));
    let link = first.connect(&lab, &key).await;
    let ann = Login::new(&lab, "ann").await;
    let mut client = Client::welcome(&lab, &ann).await;
    let (opened, _leg, through) = client.session(&ann, "db").await;
    let _other = second.connect(&lab, &key).await;
    sleep(SUSPICION + Duration::from_secs(1)).await;
    assert!(link.connection.close_reason().is_none());
    assert!(echoes(&through, PATIENCE).await);
    // It goes on over another connection of its process, and over no other's, though that carries less.
    let again = first.connect(&lab, &key).await;
    let _more = [client.open("db", None).await.unwrap(), client.open("db", None).await.unwrap()];
    until("the others are offered", || first.offers() + second.offers() == 3).await;
    let before = (first.offers(), second.offers());
    link.connection.close(0u8.into(), b"");
    let offered_again = || {
        let seen = first.seen.lock().unwrap();
        seen.offers.iter().skip(before.0).any(|offer| offer.session == opened.session)
    };
    until("it is offered again", offered_again).await;
    assert_eq!(second.offers(), before.1);
    assert!(echoes(&through, PATIENCE).await);
    // Without any, it is over.
    again.connection.close(0u8.into(), b"");
    assert_eq!(client.ended().await.1, EndReason::ConnectorRestarted);
}

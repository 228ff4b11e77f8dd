//! Good ends and bad ones: drain at both ends, restarts, lost peers.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::sleep;

use super::lab::{Lab, RunningConnector, TestOrigin, soon, until, web};
use crate::tunnel::{OpenError, TunnelStream};

/// Than the idle timeout would let it, which is 15 s.
const SOONER: Duration = Duration::from_secs(12);

async fn echoes(stream: &mut TunnelStream) {
    soon(stream.write_all(b"still here")).await.unwrap();
    let mut answer = [0; 10];
    soon(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"still here");
}

#[tokio::test]
async fn a_connector_that_drains_finishes_what_it_carries() {
    let lab = Lab::start().await;
    let origin = TestOrigin::echo().await;
    let connector = lab.connector().await;
    let permit = lab.permit(origin.address);
    let mut stream = lab.open(origin.address).await;
    connector.shutdown.cancel();
    soon(stream.draining().cancelled()).await;
    until("no new streams", || lab.node.registry.connectors().get("hq").is_none_or(|hq| hq.healthy == 0))
        .await;
    assert_eq!(lab.node.registry.open(web(&permit)).await.unwrap_err(), OpenError::ConnectorGone);
    echoes(&mut stream).await;
    assert!(!connector.task.is_finished());
    stream.shutdown().await.unwrap();
    assert_eq!(soon(stream.read(&mut [0; 8])).await.unwrap(), 0);
    drop(stream);
    soon(connector.task).await.unwrap().unwrap();
    lab.connected(0).await;
}

#[tokio::test]
async fn a_node_that_drains_finishes_what_it_carries() {
    let mut lab = Lab::start().await;
    let origin = TestOrigin::echo().await;
    let connector = lab.connector().await;
    let permit = lab.permit(origin.address);
    let mut stream = lab.open(origin.address).await;
    let stopping = lab.begin_stop();
    soon(stream.draining().cancelled()).await;
    until("no new streams", || lab.node.registry.connectors().get("hq").is_none_or(|hq| hq.healthy == 0))
        .await;
    assert_eq!(lab.node.registry.open(web(&permit)).await.unwrap_err(), OpenError::ConnectorGone);
    echoes(&mut stream).await;
    // The last bytes go out with the end, and the drain waits for them.
    stream.write_all(b"last words").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"last words");
    assert!(!stopping.is_finished());
    drop(stream);
    soon(stopping).await.unwrap().unwrap();
    connector.stop().await;
}

/// The end of a request that is still on its way when nobody holds the stream any more.
#[tokio::test]
async fn a_node_that_drains_delivers_what_was_shut_down() {
    const SIZE: usize = 900 << 10;
    let mut lab = Lab::start().await;
    let (sender, mut received) = tokio::sync::mpsc::unbounded_channel();
    let origin = TestOrigin::start(move |mut stream| {
        let sender = sender.clone();
        async move {
            let _ = stream.shutdown().await;
            sleep(Duration::from_millis(300)).await;
            let mut bytes = Vec::new();
            let _ = sender.send(stream.read_to_end(&mut bytes).await.map_err(|error| error.kind()));
        }
    })
    .await;
    let connector = lab.connector().await;
    let mut stream = lab.open(origin.address).await;
    assert_eq!(soon(stream.read(&mut [0; 8])).await.unwrap(), 0);
    let stopping = lab.begin_stop();
    soon(stream.draining().cancelled()).await;
    soon(stream.write_all(&vec![1; SIZE])).await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    assert_eq!(soon(received.recv()).await.unwrap(), Ok(SIZE));
    soon(stopping).await.unwrap().unwrap();
    connector.stop().await;
}

#[tokio::test]
async fn a_connector_comes_back_after_the_node_restarts() {
    let mut lab = Lab::start().await;
    let origin = TestOrigin::echo().await;
    let connector = lab.connector().await;
    drop(lab.open(origin.address).await);
    lab.stop().await;
    lab.start_again().await;
    let restarted = Instant::now();
    lab.connected(2).await;
    assert!(restarted.elapsed() < SOONER, "{:?}", restarted.elapsed());
    echoes(&mut lab.open(origin.address).await).await;
    connector.stop().await;
}

/// A node that dies without a word: its successor resets what it does not know (RFC 9000 §10.3), so the connector
/// need not wait for the idle timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connector_notices_that_the_node_was_killed() {
    let mut lab = Lab::start().await;
    // The node lives in a runtime of its own, which ends as a killed process does: without a last packet.
    lab.stop().await;
    let first = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    {
        let _enter = first.enter();
        lab.start_again().await;
    }
    let connector = RunningConnector::start(lab.directory.path(), Some(lab.token("hq").await), None);
    lab.connected(2).await;
    let killed = tokio::task::spawn_blocking(move || first.shutdown_timeout(Duration::from_secs(5)));
    soon(killed).await.unwrap();
    lab.start_again().await;
    let restarted = Instant::now();
    lab.connected(2).await;
    assert!(restarted.elapsed() < SOONER, "{:?}", restarted.elapsed());
    connector.stop().await;
}

#[tokio::test]
async fn a_connector_that_dies_leaves_no_trace_but_an_event() {
    let lab = Lab::start().await;
    let origin = TestOrigin::echo().await;
    let connector = lab.connector().await;
    let mut stream = lab.open(origin.address).await;
    connector.task.abort();
    lab.connected(0).await;
    assert!(soon(stream.read_u8()).await.is_err());
    lab.logged("\"disconnect\"", 3).await;
}

#[tokio::test]
async fn a_connector_waits_for_a_node_that_is_not_there_yet() {
    let mut lab = Lab::start().await;
    let token = lab.token("hq").await;
    lab.stop().await;
    let connector = RunningConnector::start(lab.directory.path(), Some(token), None);
    sleep(Duration::from_millis(300)).await;
    assert!(!connector.task.is_finished());
    lab.start_again().await;
    lab.connected(2).await;
    connector.stop().await;
}

//! Bytes through the tunnel: ends, resets, failures, many streams.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::lab::{
    Lab, RunningConnector, TestOrigin, application, closed_port, permit, policies, soon, until, web,
};
use crate::tunnel::transport::STREAM_WINDOW;
use crate::tunnel::wire::DialFailure;
use crate::tunnel::{OpenError, Registry};

/// An origin that tells how each connection's input ended.
async fn recording() -> (TestOrigin, mpsc::UnboundedReceiver<std::io::Result<Vec<u8>>>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let origin = TestOrigin::start(move |mut stream| {
        let sender = sender.clone();
        async move {
            let mut bytes = Vec::new();
            let ended = stream.read_to_end(&mut bytes).await;
            let _ = stream.write_all(b"done").await;
            let _ = sender.send(ended.map(|_| bytes));
        }
    })
    .await;
    (origin, receiver)
}

#[tokio::test]
async fn half_a_close_is_half_a_close() {
    let lab = Lab::start().await;
    let (origin, mut ended) = recording().await;
    let connector = lab.connector().await;
    let mut stream = lab.open(origin.address).await;
    soon(stream.write_all(b"question")).await.unwrap();
    soon(stream.shutdown()).await.unwrap();
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"done");
    assert_eq!(soon(ended.recv()).await.unwrap().unwrap(), b"question");
    connector.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_dropped_resets_the_origin() {
    let lab = Lab::start().await;
    let (origin, mut ended) = recording().await;
    let connector = lab.connector().await;
    let mut stream = lab.open(origin.address).await;
    soon(stream.write_all(b"half of it")).await.unwrap();
    // Until it is there: a reset may overtake bytes.
    sleep(Duration::from_millis(200)).await;
    drop(stream);
    let error = soon(ended.recv()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    connector.stop().await;
}

#[tokio::test]
async fn an_origin_that_resets_resets_the_stream() {
    let lab = Lab::start().await;
    let origin = TestOrigin::start(|mut stream| async move {
        let _ = stream.write_all(b"begin").await;
        let _ = stream.read_u8().await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let connector = lab.connector().await;
    let mut stream = lab.open(origin.address).await;
    let mut begin = [0; 5];
    soon(stream.read_exact(&mut begin)).await.unwrap();
    soon(stream.write_all(b"x")).await.unwrap();
    assert!(soon(stream.read_u8()).await.is_err_and(|e| e.kind() != std::io::ErrorKind::UnexpectedEof));
    connector.stop().await;
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_upload_arrives() {
    let lab = Lab::start().await;
    let origin = TestOrigin::start(|mut stream| async move {
        let _ = stream.read_u8().await;
        let _ = stream.write_all(b"too large").await;
        // It closes with unread input, which resets the connection under the rest of the upload.
    })
    .await;
    let connector = lab.connector().await;
    let stream = lab.open(origin.address).await;
    let (mut read, mut write) = tokio::io::split(stream);
    let upload = tokio::spawn(async move {
        let mut sent = 0;
        while sent < (64 << 20) && write.write_all(&[0; 65536]).await.is_ok() {
            sent += 65536;
        }
        (sent, write)
    });
    let mut answer = vec![0; 9];
    soon(read.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, b"too large");
    let (sent, _write) = soon(upload).await.unwrap();
    assert!(sent < (64 << 20), "the upload was never stopped");
    connector.stop().await;
}

/// The same with an answer that is larger than the stream's window, so that part of it is still on its way to the
/// connector when the upload fails, and a reader that is slower than the delay of a reset.
#[tokio::test]
async fn a_long_answer_to_a_refused_upload_arrives_whole() {
    const ANSWER: usize = STREAM_WINDOW as usize + (48 << 10);
    let lab = Lab::start().await;
    let origin = TestOrigin::start(|mut stream| async move {
        let _ = stream.read_u8().await;
        let _ = stream.write_all(&vec![1; ANSWER]).await;
        // Until the connector's kernel has it all.
        sleep(Duration::from_millis(500)).await;
    })
    .await;
    let connector = lab.connector().await;
    let (mut read, mut write) = tokio::io::split(lab.open(origin.address).await);
    let upload = tokio::spawn(async move {
        while write.write_all(&[0; 65536]).await.is_ok() {}
        write
    });
    let _write = soon(upload).await.unwrap();
    sleep(Duration::from_millis(2500)).await;
    let mut answer = vec![0; ANSWER];
    soon(read.read_exact(&mut answer)).await.unwrap();
    connector.stop().await;
}

#[tokio::test]
async fn failures_are_told_apart_and_none_names_an_address() {
    let lab = Lab::start().await;
    let origin = TestOrigin::echo().await;
    let gone = lab.permit(origin.address);
    assert_eq!(lab.node.registry.open(web(&gone)).await.unwrap_err(), OpenError::ConnectorGone);

    let connector = lab.connector().await;
    let (_held, closed) = closed_port();
    let down = soon(lab.node.registry.open(web(&lab.permit(closed)))).await.unwrap_err();
    assert_eq!(down, OpenError::OriginDown(DialFailure::ConnectionRefused));
    assert!(!down.to_string().contains("127.0.0.1"));

    // A permit from before a reload that took the application away.
    let stale = lab.permit(origin.address);
    lab.node.registry.configure(&policies(&[]));
    assert_eq!(soon(lab.node.registry.open(web(&stale))).await.unwrap_err(), OpenError::Refused);
    assert_eq!(origin.count(), 0);
    connector.stop().await;
}

#[tokio::test]
async fn the_local_list_limits_what_a_node_may_name() {
    let lab = Lab::start().await;
    let (allowed, forbidden) = (TestOrigin::echo().await, TestOrigin::echo().await);
    let allow = BTreeSet::from([allowed.address.to_string().parse().unwrap()]);
    let token = lab.token("hq").await;
    let connector = RunningConnector::start(lab.directory.path(), Some(token), Some(allow));
    lab.connected(2).await;
    drop(lab.open(allowed.address).await);
    let refused = soon(lab.node.registry.open(web(&lab.permit(forbidden.address)))).await.unwrap_err();
    assert_eq!(refused, OpenError::Refused);
    assert_eq!(forbidden.count(), 0);
    connector.stop().await;
}

#[tokio::test]
async fn an_origin_without_connector_is_dialled_by_the_node() {
    let (origin, mut ended) = recording().await;
    let registry = Registry::default();
    let direct = permit(application(origin.address, None));
    let mut stream = soon(registry.open(web(&direct))).await.unwrap();
    soon(stream.write_all(b"direct")).await.unwrap();
    soon(stream.shutdown()).await.unwrap();
    assert_eq!(soon(ended.recv()).await.unwrap().unwrap(), b"direct");
    drop(stream);
    drop(soon(registry.open(web(&direct))).await.unwrap());
    assert!(soon(ended.recv()).await.unwrap().is_err(), "dropped without shutdown is a reset here too");
}

#[tokio::test]
async fn a_reload_drops_no_tunnel_and_takes_effect_at_once() {
    let lab = Lab::start().await;
    let (one, two) = (TestOrigin::echo().await, TestOrigin::echo().await);
    let connector = lab.connector().await;
    let mut stream = lab.open(one.address).await;
    for _ in 0..50 {
        drop(lab.open(two.address).await);
        drop(lab.open(one.address).await);
    }
    lab.node.registry.configure(&policies(&[]));
    soon(stream.write_all(b"still here")).await.unwrap();
    let mut answer = [0; 10];
    soon(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"still here");
    lab.logged("\"disconnect\"", 1).await;
    drop(stream);
    connector.stop().await;
}

#[tokio::test]
async fn streams_spread_over_the_connections() {
    let lab = Lab::start().await;
    let origin = TestOrigin::echo().await;
    let connector = lab.connector().await;
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(lab.open(origin.address).await);
    }
    let status = &lab.node.registry.connectors()["hq"];
    assert_eq!((status.connections, status.healthy, status.streams), (2, 2, 10));
    streams.clear();
    until("streams are counted down", || lab.node.registry.connectors()["hq"].streams == 0).await;
    connector.stop().await;
}

#[tokio::test]
async fn a_silent_connection_is_the_last_choice() {
    let lab = Lab::start().await;
    let origin = TestOrigin::echo().await;
    let connector = lab.connector().await;
    let silent = Arc::clone(&lab.node.registry.links("hq")[0]);
    silent.set_healthy(false);
    let streams = [lab.open(origin.address).await, lab.open(origin.address).await];
    assert_eq!(silent.streams.len(), 0);
    for link in lab.node.registry.links("hq") {
        link.set_healthy(false);
    }
    drop(lab.open(origin.address).await);
    drop(streams);
    connector.stop().await;
}

/// Many streams that nobody reads, on one connection, must leave every other stream its pace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_stream_stalls_no_other() {
    const STALLED: usize = 40;
    const SIZE: usize = 8 << 20;
    let lab = Lab::start().await;
    let flood = TestOrigin::start(|mut stream| async move {
        let _ = stream.read_u8().await;
        let chunk = vec![7; 65536];
        for _ in 0..SIZE / chunk.len() {
            if stream.write_all(&chunk).await.is_err() {
                return;
            }
        }
    })
    .await;
    let connector = lab.connector().await;
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let mut stream = lab.open(flood.address).await;
        stream.write_all(b"x").await.unwrap();
        stalled.push(stream);
    }
    sleep(Duration::from_millis(500)).await;
    for _ in 0..4 {
        let mut stream = lab.open(flood.address).await;
        stream.write_all(b"x").await.unwrap();
        let mut got = 0;
        let mut buffer = vec![0; 65536];
        while got < SIZE {
            let count = soon(stream.read(&mut buffer)).await.unwrap();
            assert_ne!(count, 0);
            got += count;
        }
    }
    // The stalled ones were only slow: their bytes are all there.
    let mut late = stalled.swap_remove(STALLED / 2);
    late.shutdown().await.unwrap();
    let mut bytes = Vec::new();
    soon(late.read_to_end(&mut bytes)).await.unwrap();
    assert_eq!(bytes.len(), SIZE);
    drop(stalled);
    connector.stop().await;
}

/// The other way round: origins that take nothing hold their own windows at the connector and no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_origin_stalls_no_other() {
    const STALLED: usize = 16;
    const SIZE: usize = 8 << 20;
    let lab = Lab::start().await;
    let stuck = TestOrigin::start(|stream| async move {
        socket2::SockRef::from(&stream).set_recv_buffer_size(4096).unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let (sink, mut ended) = recording().await;
    let connector = lab.connector().await;
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let mut stream = lab.open(stuck.address).await;
        stalled.push(tokio::spawn(async move { while stream.write_all(&[0; 65536]).await.is_ok() {} }));
    }
    sleep(Duration::from_secs(1)).await;
    for _ in 0..4 {
        let mut stream = lab.open(sink.address).await;
        soon(stream.write_all(&vec![0; SIZE])).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(soon(ended.recv()).await.unwrap().unwrap().len(), SIZE);
    }
    assert!(stalled.iter().all(|task| !task.is_finished()));
    stalled.iter().for_each(tokio::task::JoinHandle::abort);
    connector.stop().await;
}

/// Up and down at once, every 64 KiB numbered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarter_of_a_gibibyte_arrives_in_order() {
    const SIZE: usize = 256 << 20;
    let lab = Lab::start().await;
    let origin = TestOrigin::echo().await;
    let connector = lab.connector().await;
    let (mut read, mut write) = tokio::io::split(lab.open(origin.address).await);
    let writer = tokio::spawn(async move {
        let mut chunk = vec![0; 65536];
        for index in 0..SIZE / chunk.len() {
            chunk[..8].copy_from_slice(&(index as u64).to_be_bytes());
            write.write_all(&chunk).await.unwrap();
        }
        write.shutdown().await.unwrap();
        write
    });
    let mut chunk = vec![0; 65536];
    for index in 0..SIZE / chunk.len() {
        soon(read.read_exact(&mut chunk)).await.unwrap();
        assert_eq!(chunk[..8], (index as u64).to_be_bytes());
    }
    assert_eq!(soon(read.read(&mut chunk)).await.unwrap(), 0);
    drop(writer.await.unwrap());
    connector.stop().await;
}

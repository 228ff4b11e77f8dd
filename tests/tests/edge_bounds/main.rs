//! What one client can make the node hold, and how long others wait meanwhile. A process of its own: memory is that
//! of the whole process, and so is the time.

mod floods;
#[path = "../edge/node.rs"]
#[allow(dead_code, reason = "shared with the other tests of the edge")]
mod node;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::node::{Ann, Node, SOON, WIKI, read_to_end, write};

/// A large body.
const LARGE: usize = 1 << 30;
/// How long its upload may take on a busy machine.
const UPLOAD: Duration = Duration::from_secs(120);
/// What the process, in which the client and the origin run too, may grow by.
pub const FLAT: usize = 48 << 20;

/// Resident memory of this process, in bytes.
pub fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// One after the other: what is measured is the whole process.
#[tokio::test(flavor = "multi_thread")]
async fn heavy_memory_and_waiting_stay_bounded() {
    large_bodies_pass_with_flat_memory().await;
    a_reader_that_stops_makes_the_origin_stop().await;
    floods::are_ended().await;
}

async fn large_bodies_pass_with_flat_memory() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let before = resident();
    let mut peak = before;

    let mut stream = node.connect(WIKI, &[]).await;
    let head = format!(
        "GET /download/{LARGE} HTTP/1.1\r\nHost: {WIKI}\r\nConnection: close\r\nCookie: {}\r\n\r\n",
        ann.cookies()
    );
    write(&mut stream, head).await.unwrap();
    let mut block = vec![0; 64 * 1024];
    let mut received = 0;
    while let Ok(count @ 1..) = timeout(SOON, stream.read(&mut block)).await.unwrap() {
        received += count;
        peak = peak.max(resident());
    }
    assert!(received > LARGE && received < LARGE + LARGE / 50, "{received}");

    let mut stream = node.connect(WIKI, &[]).await;
    let head = format!(
        "POST /upload HTTP/1.1\r\nHost: {WIKI}\r\nConnection: close\r\nContent-Length: {LARGE}\r\nCookie: {}\r\n\r\n",
        ann.cookies()
    );
    write(&mut stream, head).await.unwrap();
    for _ in 0..LARGE / block.len() {
        timeout(SOON, stream.write_all(&block)).await.unwrap().unwrap();
        peak = peak.max(resident());
    }
    timeout(SOON, stream.flush()).await.unwrap().unwrap();
    let response = read_to_end(&mut stream).await;
    assert!(response.contains(&format!("{{\"bytes\": {LARGE}}}")), "{response}");

    let mut sender = http2(&node).await;
    let mut response = get(&mut sender, &format!("/download/{LARGE}"), &ann).await;
    let mut received = 0;
    while let Some(frame) = timeout(SOON, response.body_mut().frame()).await.unwrap() {
        received += frame.unwrap().data_ref().map_or(0, Bytes::len);
        peak = peak.max(resident());
    }
    assert_eq!(received, LARGE);

    let (answer, peak_of_upload) = upload(&mut sender, &ann).await;
    assert_eq!(answer, format!("{{\"bytes\": {LARGE}}}"));
    peak = peak.max(peak_of_upload);
    assert!(peak < before + FLAT, "grew by {} MiB", (peak - before) >> 20);

    let bytes: Vec<_> =
        node.wait_for_events(4).await.iter().map(|event| event["bytes"].as_u64().unwrap()).collect();
    assert_eq!((bytes[0], bytes[2]), (LARGE as u64, LARGE as u64));
}

async fn a_reader_that_stops_makes_the_origin_stop() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let before = resident();
    let mut sender = http2(&node).await;
    let response = get(&mut sender, "/download/1000000000", &ann).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(resident() < before + FLAT);
    // Another stream of the same connection is not held up.
    let other = get(&mut sender, "/other", &ann).await;
    assert_eq!(other.status(), 200);
    drop(response);
}

type Sender = hyper::client::conn::http2::SendRequest<UnsyncBoxBody<Bytes, Infallible>>;

async fn http2(node: &Node) -> Sender {
    let stream = node.connect(WIKI, &["h2"]).await;
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends a large body as fast as it is taken; the answer's body, and the most memory that was in use meanwhile.
async fn upload(sender: &mut Sender, ann: &Ann) -> (String, usize) {
    let block = Bytes::from(vec![0; 64 * 1024]);
    let peak = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&peak);
    let blocks = (0..LARGE / block.len()).map(move |_| {
        seen.fetch_max(resident(), Ordering::Relaxed);
        Ok(Frame::data(block.clone()))
    });
    let request = Request::post(format!("https://{WIKI}/upload"))
        .header(header::COOKIE, ann.cookies())
        .body(StreamBody::new(stream::iter(blocks)).boxed_unsync())
        .unwrap();
    let response = timeout(UPLOAD, sender.send_request(request)).await.unwrap().unwrap();
    let body = timeout(SOON, response.into_body().collect()).await.unwrap().unwrap().to_bytes();
    (String::from_utf8(body.to_vec()).unwrap(), peak.load(Ordering::Relaxed))
}

async fn get(sender: &mut Sender, path: &str, ann: &Ann) -> Response<Incoming> {
    let request = Request::builder()
        .uri(format!("https://{WIKI}{path}"))
        .header(header::COOKIE, ann.cookies())
        .body(Empty::new().boxed_unsync())
        .unwrap();
    timeout(SOON, sender.send_request(request)).await.unwrap().unwrap()
}

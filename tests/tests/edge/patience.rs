//! Who keeps whom waiting, and for how long: clients that stop sending or reading, and origins that do not answer.

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis::edge::Patience;
use portcullis_tests::origin::Origin;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};

use crate::node::{Ann, Node, SOON, WIKI, status, write};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

const SECOND: Duration = Duration::from_secs(1);
/// Long beside what a busy machine adds to a pause.
const UPLOAD_PAUSE: Duration = Duration::from_secs(2);
/// Longer than a pause: who is late there is the client.
const HEAD: Duration = Duration::from_secs(4);

/// A node that waits a second for a reply to be read, and not much longer for anything else.
async fn hasty() -> Node {
    let origin = Origin::start(None, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    with_origin(origin, "").await
}

async fn with_origin(origin: Origin, more: &str) -> Node {
    let patience = Patience { head: HEAD, upload_pause: UPLOAD_PAUSE, reply_pause: SECOND };
    Node::start_patient(origin, more, patience).await
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body of `parts` bytes with a pause before each.
fn slow(parts: usize, pause: Duration) -> Body {
    let parts = stream::unfold(parts, move |left| async move {
        let left = left.checked_sub(1)?;
        sleep(pause).await;
        Some((Ok(Frame::data(Bytes::from_static(b"a"))), left))
    });
    StreamBody::new(parts).boxed_unsync()
}

async fn http2(node: &Node) -> SendRequest<Body> {
    http2_to(node, WIKI).await
}

async fn http2_to(node: &Node, host: &str) -> SendRequest<Body> {
    let stream = node.connect(host, &["h2"]).await;
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn send(
    sender: &mut SendRequest<Body>,
    ann: &Ann,
    (method, path): (&str, &str),
    body: Body,
) -> Response<Incoming> {
    let request = Request::builder().method(method).uri(format!("https://{WIKI}{path}"));
    let request = request.header("cookie", ann.cookies()).body(body).unwrap();
    timeout(SOON, sender.send_request(request)).await.unwrap().unwrap()
}

/// Waits until no connection to the origin is open.
async fn origin_is_left(node: &Node) {
    let left = async {
        while node.origin.open_connections() > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, left).await.expect("the origin's connections are closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_http2_may_be_slow_but_not_stop() {
    let node = hasty().await;
    let ann = node.log_in(WIKI).await;
    let mut sender = http2(&node).await;
    // Longer than a pause may be, and of short ones.
    let body = slow(15, UPLOAD_PAUSE / 10);
    assert_eq!(send(&mut sender, &ann, ("POST", "/upload"), body).await.status(), 200);
    let started = Instant::now();
    let answer = send(&mut sender, &ann, ("POST", "/upload"), slow(1, SOON)).await;
    assert_eq!(answer.status(), 400);
    assert!(started.elapsed() >= UPLOAD_PAUSE && started.elapsed() < SOON, "{:?}", started.elapsed());
    let events = node.wait_for_events(2).await;
    assert_eq!((&events[1]["allowed"], &events[1]["reason"]), (&false.into(), &"bad_request".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_does_not_answer_is_a_504() {
    let node = hasty().await;
    let ann = node.log_in(WIKI).await;
    let mut sender = http2(&node).await;
    assert_eq!(send(&mut sender, &ann, ("GET", "/slow/300"), empty()).await.status(), 200);
    let started = Instant::now();
    assert_eq!(send(&mut sender, &ann, ("GET", "/slow/9000"), empty()).await.status(), 504);
    assert!(started.elapsed() >= HEAD && started.elapsed() < 9 * SECOND, "{:?}", started.elapsed());
    let cookies = format!("Cookie: {}\r\n", ann.cookies());
    assert_eq!(status(&node.get(WIKI, "/slow/9000", &cookies).await), 504);
    let upgrade = format!(
        "GET /slow/9000 HTTP/1.1\r\nHost: {WIKI}\r\n{cookies}Connection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    assert_eq!(status(&node.raw(WIKI, upgrade.as_bytes()).await), 504);
    for event in node.wait_for_events(4).await.iter().skip(1) {
        assert_eq!((&event["status"], &event["reason"]), (&504.into(), &"origin_down".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_loses_its_stream_and_not_the_others() {
    let node = hasty().await;
    let ann = node.log_in(WIKI).await;
    let mut sender = http2(&node).await;
    let unread = send(&mut sender, &ann, ("GET", "/download/1000000000"), empty()).await;
    origin_is_left(&node).await;
    let events = node.wait_for_events(1).await;
    assert_eq!(events[0]["detail"], "the client stopped reading");
    assert_eq!(send(&mut sender, &ann, ("GET", "/"), empty()).await.status(), 200);
    drop(unread);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_over_http1_that_stops_loses_its_connection() {
    let node = hasty().await;
    let ann = node.log_in(WIKI).await;
    let mut unread = node.connect(WIKI, &[]).await;
    let request =
        format!("GET /download/1000000000 HTTP/1.1\r\nHost: {WIKI}\r\nCookie: {}\r\n\r\n", ann.cookies());
    write(&mut unread, request).await.unwrap();
    node.wait_for_requests(1).await;
    origin_is_left(&node).await;
    assert_eq!(node.wait_for_events(1).await[0]["detail"], "the client stopped reading");
}

/// An origin that begins an event stream, is quiet for `pause`, and says one thing more.
async fn quiet_origin(pause: Duration) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n";
                let _ = stream.write_all(head).await;
                sleep(pause).await;
                let _ = stream.write_all(b"data: 2\n\n").await;
            });
        }
    });
    port
}

/// A node with such an origin behind `quiet.example.com`.
async fn with_quiet_origin(pause: Duration) -> Node {
    let port = quiet_origin(pause).await;
    let quiet = format!(
        "[[application]]\nname = \"quiet\"\nurl = \"https://quiet.example.com\"\n\
         origin = \"http://127.0.0.1:{port}\"\npolicies = [\"people\"]\n"
    );
    let origin = Origin::start(None, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    with_origin(origin, &quiet).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_stream_may_be_as_quiet_as_its_origin() {
    let node = with_quiet_origin(6 * SECOND).await;
    let ann = node.log_in("quiet.example.com").await;
    let cookies = format!("Cookie: {}\r\n", ann.cookies());
    let text = node.get("quiet.example.com", "/", &cookies).await;
    assert!(text.contains("data: 2"), "{text}");

    let stream = node.connect("quiet.example.com", &["h2"]).await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().uri("https://quiet.example.com/").header("cookie", ann.cookies());
    let response = sender.send_request(request.body(empty()).unwrap()).await.unwrap();
    let text = timeout(SOON, response.into_body().collect()).await.unwrap().unwrap().to_bytes();
    assert_eq!(text, "data: 1\n\ndata: 2\n\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_login_has_so_many_requests_at_a_time() {
    let quiet = "quiet.example.com";
    // None is to end by itself, however long it takes to open them all.
    let node = with_quiet_origin(10 * SOON).await;
    let (ann, bob) = (node.log_in(quiet).await, node.log_in(quiet).await);
    let ask = async |sender: &mut SendRequest<Body>, ann: &Ann| {
        let request = Request::builder().uri(format!("https://{quiet}/")).header("cookie", ann.cookies());
        timeout(SOON, sender.send_request(request.body(empty()).unwrap())).await.unwrap().unwrap()
    };
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..4 {
        let mut sender = http2_to(&node, quiet).await;
        for _ in 0..100 {
            let answer = ask(&mut sender, &ann).await;
            match answer.status().as_u16() {
                200 => held.push(answer),
                429 => refused += 1,
                other => panic!("{other}"),
            }
        }
    }
    assert_eq!((held.len(), refused), (384, 16));
    let mut sender = http2_to(&node, quiet).await;
    assert_eq!(ask(&mut sender, &bob).await.status(), 200);
    let events = node.events().await;
    assert!(events.iter().any(|event| event["status"] == 429 && event["reason"] == "throttled"));
    drop(held);
    let back = async {
        while ask(&mut sender, &ann).await.status() != 200 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, back).await.expect("what was held comes back");
}

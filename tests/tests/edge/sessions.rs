//! WebSockets, and what a revocation cuts: everything that runs on the session, within a second.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use portcullis::config::{Active, Config};
use portcullis::policy::Action;

use crate::node::{Ann, Node, SOON, WIKI, read_to_end, status, write};

/// The promise is a second, and a busy machine is late with it. Nothing else cuts a connection so early.
const CUT: Duration = Duration::from_secs(5);

fn handshake(ann: &Ann, more: &str) -> String {
    format!(
        "GET /ws HTTP/1.1\r\nHost: {WIKI}\r\nCookie: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n",
        ann.cookies()
    )
}

/// The head of a response, no byte more.
async fn head(stream: &mut TlsStream<TcpStream>) -> String {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        timeout(SOON, stream.read_exact(&mut byte)).await.unwrap().unwrap();
        read.push(byte[0]);
    }
    String::from_utf8(read).unwrap()
}

async fn websocket(node: &Node, ann: &Ann) -> WebSocketStream<TlsStream<TcpStream>> {
    try_websocket(node, ann).await.expect("it is opened").0
}

/// The same, and since when it is open; nothing where the session is over already.
async fn try_websocket(node: &Node, ann: &Ann) -> Option<(WebSocketStream<TlsStream<TcpStream>>, Instant)> {
    let mut stream = node.connect(WIKI, &["http/1.1"]).await;
    write(&mut stream, handshake(ann, "")).await.unwrap();
    let head = head(&mut stream).await;
    if is_over(status(&head)) {
        return None;
    }
    assert_eq!(status(&head), 101, "{head}");
    Some((WebSocketStream::from_raw_socket(stream, Role::Client, None).await, Instant::now()))
}

/// Whether the session had ended before the request came, or ended while it was under way.
fn is_over(status: u16) -> bool {
    [302, 403].contains(&status)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_carries_messages_and_its_ends_are_written() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let mut socket = websocket(&node, &ann).await;
    for text in ["hello", &"x".repeat(100_000)] {
        socket.send(text.into()).await.unwrap();
        let echoed = timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(echoed.into_text().unwrap().as_str(), text);
    }
    let events = node.wait_for_events(1).await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["status"], 101);
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = timeout(SOON, socket.next()).await.unwrap() {}
    drop(socket);
    let events = node.wait_for_events(2).await;
    assert_eq!(events[1]["action"], "disconnect");
    assert!(events[1]["bytes"].as_u64().unwrap() > 200_000, "{}", events[1]);
    let requests = node.origin.requests();
    assert_eq!(requests[0].header("cf-access-jwt-assertion"), [ann.token.as_str()]);
    assert_eq!(requests[0].header("upgrade"), ["websocket"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_ends_when_a_reload_withdraws_what_allowed_it() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let mut socket = websocket(&node, &ann).await;
    // A reload that changes nothing for her disturbs nothing.
    let config = node.context.active().config.clone();
    node.publish.send_replace(Arc::new(Active::new(config.clone())));
    socket.send("still there".into()).await.unwrap();
    assert!(timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap().is_text());

    let mut blocked = config;
    for policy in &mut blocked.policies {
        policy.action = Action::Block;
    }
    node.publish.send_replace(Arc::new(Active::new(blocked)));
    let cut = timeout(CUT, async { while let Some(Ok(_)) = socket.next().await {} }).await;
    assert!(cut.is_ok(), "the WebSocket goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_lives_as_long_as_the_session_of_its_policy() {
    let node = Node::start().await;
    in_time(async |seconds| {
        reload(&node, session_of_policies(None));
        let ann = node.log_in(WIKI).await;
        reload(&node, session_of_policies(Some(seconds)));
        let (mut socket, opened) = try_websocket(&node, &ann).await?;
        socket.send("in time".into()).await.ok()?;
        timeout(SOON, socket.next()).await.unwrap()?.ok()?.into_text().ok()?;
        let cut = timeout(SOON, async { while let Some(Ok(_)) = socket.next().await {} }).await;
        assert!(cut.is_ok(), "the WebSocket goes on");
        Some(opened.elapsed())
    })
    .await;
}

/// Asks of a session of two seconds, and where this machine is too busy to do all of it in time, of a longer one. Returns how
/// long what was opened has lasted, and no longer than the session.
async fn in_time(lasts: impl AsyncFn(u64) -> Option<Duration>) {
    for seconds in [2, 8, 20] {
        if let Some(lasted) = lasts(seconds).await {
            assert!(lasted < Duration::from_secs(seconds) + CUT, "{lasted:?}");
            return;
        }
    }
    panic!("this machine never opens anything in time");
}

/// Puts policies into force that differ from those before.
fn reload(node: &Node, change: impl FnOnce(&mut Config)) {
    let mut config = node.context.active().config.clone();
    change(&mut config);
    node.publish.send_replace(Arc::new(Active::new(config)));
}

fn block_everybody(config: &mut Config) {
    for policy in &mut config.policies {
        policy.action = Action::Block;
    }
}

fn session_of_policies(seconds: Option<u64>) -> impl FnOnce(&mut Config) {
    move |config| {
        for policy in &mut config.policies {
            policy.session = seconds.map(Duration::from_secs);
        }
    }
}

/// Event streams over both versions of HTTP, read until they are cut; neither may look complete.
async fn event_streams(
    node: &Node,
    ann: &Ann,
) -> (impl Future<Output = ()> + use<>, impl Future<Output = ()> + use<>) {
    try_event_streams(node, ann).await.expect("both are opened")
}

/// The same; nothing where the session is over already.
async fn try_event_streams(
    node: &Node,
    ann: &Ann,
) -> Option<(impl Future<Output = ()> + use<>, impl Future<Output = ()> + use<>)> {
    let mut one = node.connect(WIKI, &[]).await;
    let request = format!("GET /events HTTP/1.1\r\nHost: {WIKI}\r\nCookie: {}\r\n\r\n", ann.cookies());
    write(&mut one, request).await.unwrap();
    let of_one = status(&head(&mut one).await);
    let mut two = http2(node, ann, "/events").await;
    let of_two = two.status().as_u16();
    if is_over(of_one) || is_over(of_two) {
        return None;
    }
    assert_eq!((of_one, of_two), (200, 200));
    let one = async move {
        let text = read_to_end(&mut one).await;
        assert!(!text.contains("\r\n0\r\n\r\n"), "the stream must not look complete: {text}");
    };
    let two = async move {
        while let Some(frame) = two.body_mut().frame().await {
            if frame.is_err() {
                return;
            }
        }
        panic!("the stream ended as if it were complete");
    };
    Some((one, two))
}

/// One request on an HTTP/2 connection of its own.
async fn http2(node: &Node, ann: &Ann, path: &str) -> http::Response<hyper::body::Incoming> {
    let stream = node.connect(WIKI, &["h2"]).await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .uri(format!("https://{WIKI}{path}"))
        .header("cookie", ann.cookies())
        .body(Empty::<Bytes>::new())
        .unwrap();
    sender.send_request(request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn event_streams_end_when_a_reload_withdraws_what_allowed_them() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let (one, two) = event_streams(&node, &ann).await;
    let (one, two) = (tokio::spawn(one), tokio::spawn(two));
    reload(&node, |_| {});
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(
        !one.is_finished() && !two.is_finished(),
        "a reload that changes nothing for her disturbs nothing"
    );
    reload(&node, block_everybody);
    timeout(CUT, async { tokio::try_join!(one, two).unwrap() }).await.expect("cut");
    let events = node.wait_for_events(4).await;
    let cut = events.iter().filter(|event| event["action"] == "disconnect").map(|event| &event["reason"]);
    assert_eq!(cut.collect::<Vec<_>>(), ["session_ended", "session_ended"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn event_streams_live_as_long_as_the_session_of_their_policy() {
    let node = Node::start().await;
    in_time(async |seconds| {
        reload(&node, session_of_policies(None));
        let ann = node.log_in(WIKI).await;
        reload(&node, session_of_policies(Some(seconds)));
        let (one, two) = try_event_streams(&node, &ann).await?;
        let started = Instant::now();
        timeout(SOON, async { tokio::join!(one, two) }).await.expect("cut");
        Some(started.elapsed())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn event_streams_do_not_outlive_the_token_they_were_opened_with() {
    let node = Node::start().await;
    in_time(async |seconds| {
        reload(&node, session_of_policies(Some(seconds)));
        let ann = node.log_in(WIKI).await;
        reload(&node, session_of_policies(None));
        let (one, two) = try_event_streams(&node, &ann).await?;
        let started = Instant::now();
        timeout(SOON, async { tokio::join!(one, two) }).await.expect("cut");
        Some(started.elapsed())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_stops_downloads_that_nobody_reads() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let mut one = node.connect(WIKI, &[]).await;
    let request =
        format!("GET /download/1000000000 HTTP/1.1\r\nHost: {WIKI}\r\nCookie: {}\r\n\r\n", ann.cookies());
    write(&mut one, request).await.unwrap();
    let two = http2(&node, &ann, "/download/1000000000").await;
    node.wait_for_requests(2).await;
    // Windows and buffers are full by then, and stay so.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(node.origin.open_connections(), 2);
    reload(&node, block_everybody);
    let gone = async {
        while node.origin.open_connections() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(CUT, gone).await.expect("the origin's connections are gone");
    let events = node.wait_for_events(4).await;
    let cut = events.iter().filter(|event| event["reason"] == "session_ended").count();
    assert_eq!(cut, 2, "{events:#?}");
    drop((one, two));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_opens_no_websocket() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let mut denied = 0;
    for (fields, allowed) in [
        ("Origin: https://wiki.example.com\r\n", true),
        ("Origin: https://friend.example.org\r\n", true),
        ("Origin: https://evil.example.org\r\n", false),
        ("Origin: https://wiki.example.com.evil.org\r\n", false),
        ("Origin: http://wiki.example.com\r\n", false),
        ("Origin: https://wiki.example.com:444\r\n", false),
        ("Origin: null\r\n", false),
        ("Origin:\r\n", false),
        ("Origin: https://wiki.example.com\r\nOrigin: https://evil.example.org\r\n", false),
    ] {
        node.origin.clear();
        let mut stream = node.connect(WIKI, &[]).await;
        write(&mut stream, handshake(&ann, fields)).await.unwrap();
        let head = head(&mut stream).await;
        assert_eq!(status(&head), if allowed { 101 } else { 403 }, "{fields}");
        assert_eq!(node.origin.requests().is_empty(), !allowed, "{fields}");
        denied += usize::from(!allowed);
    }
    let foreign = async || {
        let events = node.events().await;
        let of =
            |event: &&serde_json::Value| event["reason"] == "foreign_origin" && event["allowed"] == false;
        events.iter().filter(of).count()
    };
    let written = async {
        while foreign().await < denied {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, written).await.expect("every refusal is written");
    assert_eq!(foreign().await, denied);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_before_the_switch_are_never_forwarded() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    // The origin takes its time, so the bytes come before its answer, in a read of their own.
    let slow = handshake(&ann, "").replace("/ws", "/slow/2000");
    let mut stream = node.connect(WIKI, &[]).await;
    write(&mut stream, slow).await.unwrap();
    node.wait_for_requests(1).await;
    let _ = write(&mut stream, format!("GET /smuggled HTTP/1.1\r\nHost: {WIKI}\r\n\r\n")).await;
    let response = read_to_end(&mut stream).await;
    assert!(response.matches("HTTP/1.1 ").count() <= 1, "{response}");
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(node.origin.requests().len(), 1);
    assert_eq!(node.origin.requests()[0].body, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_upgrade_ends_the_connection() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let request = handshake(&ann, "").replace("/ws", "/no-websocket-here");
    let response = node.raw(WIKI, request.as_bytes()).await;
    assert_eq!(status(&response), 200, "{response}");
}

/// How long until the peer is gone.
async fn cut(node: &Node, ann: &Ann, ended: impl Future<Output = ()>) {
    node.revoke(ann).await;
    let started = Instant::now();
    timeout(SOON, ended).await.expect("cut");
    assert!(started.elapsed() < CUT, "{:?}", started.elapsed());
}

/// The last event is the end of what was cut.
async fn assert_cut_is_written(node: &Node, count: usize) {
    let events = node.wait_for_events(count).await;
    let disconnects: Vec<_> = events.iter().filter(|event| event["action"] == "disconnect").collect();
    assert_eq!(disconnects.len(), 1, "{events:#?}");
    assert_eq!(disconnects[0]["reason"], "session_ended");
    assert_eq!(disconnects[0]["user_email"], "ann@example.com");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_cuts_a_websocket() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let bob = node.log_in(WIKI).await;
    let mut socket = websocket(&node, &ann).await;
    let mut other = websocket(&node, &bob).await;
    cut(&node, &ann, async { while let Some(Ok(_)) = socket.next().await {} }).await;
    other.send("still here".into()).await.unwrap();
    assert!(timeout(SOON, other.next()).await.unwrap().unwrap().is_ok(), "nobody else is cut");
    assert_cut_is_written(&node, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_cuts_an_event_stream_over_http1() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let mut stream = node.connect(WIKI, &[]).await;
    let request = format!("GET /events HTTP/1.1\r\nHost: {WIKI}\r\nCookie: {}\r\n\r\n", ann.cookies());
    write(&mut stream, request).await.unwrap();
    assert_eq!(status(&head(&mut stream).await), 200);
    let mut text = String::new();
    cut(&node, &ann, async { text = read_to_end(&mut stream).await }).await;
    assert!(!text.contains("\r\n0\r\n\r\n"), "the stream must not look complete: {text}");
    assert_cut_is_written(&node, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_resets_an_http2_stream_and_leaves_the_others() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let bob = node.log_in(WIKI).await;
    let stream = node.connect(WIKI, &["h2"]).await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut open = async |who: &Ann, path: &str| {
        let request = Request::builder()
            .uri(format!("https://{WIKI}{path}"))
            .header("cookie", who.cookies())
            .body(Empty::<Bytes>::new())
            .unwrap();
        sender.send_request(request).await.unwrap()
    };
    let mut hers = open(&ann, "/download/1000000000000").await;
    let mut his = open(&bob, "/events").await;
    cut(&node, &ann, async {
        while let Some(frame) = hers.body_mut().frame().await {
            if frame.is_err() {
                return;
            }
        }
        panic!("the stream ended as if it were complete");
    })
    .await;
    assert!(timeout(SOON, his.body_mut().frame()).await.unwrap().unwrap().is_ok());
    let events = node.wait_for_events(3).await;
    let cut: Vec<_> = events.iter().filter(|event| event["reason"] == "session_ended").collect();
    assert_eq!(cut.len(), 1, "{events:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_cuts_an_upload_and_a_request_that_waits() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let mut upload = node.connect(WIKI, &[]).await;
    let request = format!(
        "POST /upload HTTP/1.1\r\nHost: {WIKI}\r\nCookie: {}\r\nContent-Length: 1000\r\n\r\nabc",
        ann.cookies()
    );
    write(&mut upload, request).await.unwrap();
    let mut waiting = node.connect(WIKI, &[]).await;
    let request = format!(
        "GET /slow/30000 HTTP/1.1\r\nHost: {WIKI}\r\nConnection: close\r\nCookie: {}\r\n\r\n",
        ann.cookies()
    );
    write(&mut waiting, request).await.unwrap();
    node.wait_for_requests(2).await;
    node.revoke(&ann).await;
    let started = Instant::now();
    for stream in [&mut upload, &mut waiting] {
        let response = head(stream).await;
        assert_eq!(status(&response), 403, "{response}");
    }
    assert!(started.elapsed() < CUT, "{:?}", started.elapsed());
    let gone = async {
        while node.origin.open_connections() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, gone).await.expect("the origin's connections are gone too");
}

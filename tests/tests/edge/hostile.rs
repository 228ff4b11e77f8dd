//! Requests with a second reading. Each carries the cookies of a person who may use the application, so whatever is
//! not refused does reach the origin: the origin must see nothing, and exactly one deny event is written.

use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, timeout};

use crate::node::{Node, SOON, WIKI, read_to_end, status, write};

/// A request to the wiki with these fields behind `Host` and cookies.
fn request(line: &str, cookies: &str, rest: &str) -> String {
    format!("{line}\r\nHost: {WIKI}\r\nCookie: {cookies}\r\n{rest}")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_two_readings_gets_400_and_never_reaches_the_origin() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let cookies = ann.cookies();
    let get = |target: &str| request(&format!("GET {target} HTTP/1.1"), &cookies, "\r\n");
    let post = |rest: &str| request("POST /upload HTTP/1.1", &cookies, rest);
    let smuggled = format!("GET /smuggled HTTP/1.1\r\nHost: {WIKI}\r\nCookie: {cookies}\r\n\r\n");
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    let control = get("/control").replace("\r\nCookie", "\r\nConnection: close\r\nCookie");
    assert_eq!(status(&node.raw(WIKI, control.as_bytes()).await), 200, "the cookies are good");
    assert_eq!(node.origin.requests().len(), 1);
    node.origin.clear();
    let mut written = node.wait_for_events(1).await.len();

    let hostile = [
        // Lengths.
        post(&format!("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}")),
        post(&format!("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{smuggled}")),
        post("Content-Length: +3\r\n\r\nabc"),
        post("Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
        post(&format!("Content-Length: 0\r\nContent-Length: 3\r\n\r\n{smuggled}")),
        post("Content-Length: 3, 3\r\n\r\nabc"),
        post("Content-Length : 3\r\n\r\nabc"),
        post("Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        post("Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n3 ;a\r\nabc\r\n0\r\n\r\n"),
        post(&format!("Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n{smuggled}")),
        // Line ends.
        get("/").replace("\r\n", "\n"),
        post("X: y\n\r\n"),
        post(&format!("X: y\n\n{smuggled}")),
        post("X: y\rZ: z\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n"),
        // Fields.
        post(": empty\r\n\r\n"),
        post("X: a\r\n folded\r\n\r\n"),
        post("X: a\0b\r\n\r\n"),
        post("no colon\r\n\r\n"),
        // Hosts.
        get("/").replace("Cookie", "Host: other.example.com\r\nCookie"),
        get("/").replace(&format!("Host: {WIKI}\r\n"), ""),
        get("/").replace(&format!("Host: {WIKI}"), "Host: wiki.example.com@other.example.com"),
        get("https://other.example.com/"),
        get("http://wiki.example.com/"),
        // Targets.
        get("/a b"),
        get("/a#b"),
        get("/user/..;x=1/admin"),
        get("/a/%2e%2e/b"),
        get("/a%2Fb"),
        get("/a%5cb"),
        get("/a\\b"),
        get("/%zz"),
        get("/%00"),
        get("//a"),
        get("a"),
        get("*"),
        // Switching.
        request(
            "GET / HTTP/1.1",
            &cookies,
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
        ),
        request(
            "GET /ws HTTP/1.1",
            &cookies,
            &format!("{}\r\n", websocket.replace("Connection: Upgrade\r\n", "")),
        ),
        request("POST /ws HTTP/1.1", &cookies, &format!("{websocket}\r\n")),
        request("GET /ws HTTP/1.1", &cookies, &format!("{websocket}\r\n{smuggled}")),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ];
    for bytes in hostile {
        let response = node.raw(WIKI, bytes.as_bytes()).await;
        assert_eq!(status(&response), 400, "{bytes:?} got {response}");
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{bytes:?} got {response}");
        assert_eq!(node.origin.requests(), [], "{bytes:?}");
        let events = node.wait_for_events(written + 1).await;
        assert_eq!(events.len(), written + 1, "{bytes:?}");
        assert_eq!(events[written]["reason"], "bad_request", "{bytes:?}");
        assert_eq!(events[written]["allowed"], false, "{bytes:?}");
        written += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_that_reflect_or_tunnel_are_not_served() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    for line in ["TRACE / HTTP/1.1", "CONNECT 127.0.0.1:22 HTTP/1.1"] {
        let bytes = request(line, &ann.cookies(), "Connection: close\r\n\r\n");
        assert_eq!(status(&node.raw(WIKI, bytes.as_bytes()).await), 501, "{line}");
    }
    assert_eq!(node.origin.requests(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_heads_are_refused() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    for (rest, code) in [
        (format!("X: {}\r\n\r\n", "a".repeat(40 * 1024)), 431),
        (format!("{}\r\n", "X: a\r\n".repeat(200)), 431),
    ] {
        let bytes = request("GET / HTTP/1.1", &ann.cookies(), &rest);
        assert_eq!(status(&node.raw(WIKI, bytes.as_bytes()).await), code);
    }
    let long =
        request(&format!("GET /{} HTTP/1.1", "a".repeat(9000)), &ann.cookies(), "Connection: close\r\n\r\n");
    assert_eq!(status(&node.raw(WIKI, long.as_bytes()).await), 414);
    assert_eq!(node.origin.requests(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order_up_to_the_bad_one() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let good = request("GET /first HTTP/1.1", &ann.cookies(), "\r\n");
    let bad = request("GET /second#x HTTP/1.1", &ann.cookies(), "\r\n");
    let response = node.raw(WIKI, format!("{good}{bad}{good}").as_bytes()).await;
    let codes: Vec<_> =
        response.match_indices("HTTP/1.1 ").map(|(at, _)| &response[at + 9..at + 12]).collect();
    assert_eq!(codes, ["200", "400"], "{response}");
    assert_eq!(node.origin.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_never_looks_complete_to_the_origin() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let head =
        request("POST /echo HTTP/1.1", &ann.cookies(), "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    let mut stream = node.connect(WIKI, &[]).await;
    write(&mut stream, head).await.unwrap();
    // The origin has the head, so that the rest cannot be refused together with it.
    node.wait_for_requests(1).await;
    write(&mut stream, "0x0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n").await.unwrap();
    let response = read_to_end(&mut stream).await;
    assert!(response.is_empty() || status(&response) == 400, "{response}");
    let left = async {
        while node.origin.open_connections() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, left).await.expect("the origin's connection is closed");
    let requests = node.origin.requests();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].body.is_empty(), "the origin never saw a whole body: {requests:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_before_the_end_of_a_body_arrives() {
    let node = Node::start().await;
    let mut stream = node.connect(WIKI, &[]).await;
    // More than the sockets between can hold: the node has to read it, though nobody wants it.
    let length = 32 << 20;
    let head = format!("POST / HTTP/1.1\r\nHost: {WIKI}\r\nContent-Length: {length}\r\n\r\n");
    write(&mut stream, head).await.unwrap();
    // As clients do that look at the answer when they have sent everything.
    write(&mut stream, vec![b'a'; length]).await.unwrap();
    assert_eq!(status(&read_to_end(&mut stream).await), 302);
}

/// Nobody holds a connection for free: a stalled handshake, a trickling head.
#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_closed_at_a_bound() {
    let node = Node::start().await;
    let started = Instant::now();
    let stalled = async {
        let mut stream = tokio::net::TcpStream::connect(node.address).await.unwrap();
        let _ = timeout(2 * SOON, stream.read(&mut [0; 1])).await.expect("closed");
    };
    let trickling = async {
        let mut stream = node.connect(WIKI, &[]).await;
        for byte in b"GET / HTTP/1.1\r\nHost: wiki.example.com\r\nX: slow".iter().cycle() {
            if write(&mut stream, [*byte]).await.is_err() {
                return;
            }
            if let Ok(read) = timeout(Duration::from_millis(500), stream.read(&mut [0; 1])).await {
                assert!(matches!(read, Ok(0) | Err(_)), "nothing is answered");
                return;
            }
        }
    };
    tokio::join!(stalled, trickling);
    assert!(started.elapsed() < 2 * SOON, "{:?}", started.elapsed());
    assert_eq!(node.origin.requests(), []);
}

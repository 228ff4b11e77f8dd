//! Bodies: streamed both ways, with trailers, over both versions; connections to origins.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis_tests::origin::Origin;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::node::{Ann, Node, SOON, WIKI, read_to_end, status, write};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// An HTTP/2 connection to the node.
async fn http2(node: &Node, host: &str) -> SendRequest<Body> {
    let stream = node.connect(host, &["h2"]).await;
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(host: &str, path: &str, ann: &Ann) -> http::request::Builder {
    Request::builder().uri(format!("https://{host}{path}")).header(header::COOKIE, ann.cookies())
}

async fn send(sender: &mut SendRequest<Body>, request: Request<Body>) -> Response<Incoming> {
    timeout(SOON, sender.send_request(request)).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_as_they_are_sent() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let mut sender = http2(&node, WIKI).await;
    let mut response = send(&mut sender, request(WIKI, "/events", &ann).body(empty()).unwrap()).await;
    for number in 0..3 {
        let frame = timeout(SOON, response.body_mut().frame()).await.unwrap();
        let data = frame.unwrap().unwrap().into_data().unwrap();
        assert_eq!(data, format!("data: {number}\n\n"));
    }
    // What lasts is written at its start.
    let events = node.wait_for_events(1).await;
    assert_eq!((&events[0]["action"], &events[0]["status"]), (&"request".into(), &200.into()));
    drop(response);
    drop(sender);
    let events = node.wait_for_events(2).await;
    assert_eq!(events.len(), 2);
    assert_eq!(events[1]["action"], "disconnect");
    assert!(events[1]["bytes"].as_u64().unwrap() > 0 && events[1]["reason"].is_null(), "{}", events[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_asked_for_only_when_the_request_is_allowed() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let head = |cookies: &str| {
        format!(
            "POST /echo HTTP/1.1\r\nHost: {WIKI}\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 3\r\n{cookies}\r\n"
        )
    };
    let mut stream = node.connect(WIKI, &[]).await;
    write(&mut stream, head(&format!("Cookie: {}\r\n", ann.cookies()))).await.unwrap();
    let mut interim = [0; 25];
    timeout(SOON, stream.read_exact(&mut interim)).await.unwrap().unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    write(&mut stream, "abc").await.unwrap();
    assert_eq!(status(&read_to_end(&mut stream).await), 200);
    let requests = node.origin.requests();
    assert_eq!(requests[0].body, b"abc");
    assert!(requests[0].header("expect").is_empty());

    let refused = node.raw(WIKI, head("").as_bytes()).await;
    assert_eq!(status(&refused), 302, "no 100 before it: {refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_the_same_certificate_shares_an_http2_connection() {
    let node = Node::start().await;
    let mut sender = http2(&node, WIKI).await;
    for (host, code) in [("other.example.com", 302), ("wiki.example.net", 421), (WIKI, 302)] {
        let request = Request::builder().uri(format!("https://{host}/")).body(empty()).unwrap();
        assert_eq!(send(&mut sender, request).await.status(), code, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contradictions_over_http2_are_refused() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let mut sender = http2(&node, WIKI).await;
    for (name, value, path) in [
        ("host", "other.example.com", "/"),
        ("content-length", "3", "/"),
        ("accept", "*/*", "/a/..;/b"),
        ("accept", "*/*", "/a%2fb"),
    ] {
        let request = request(WIKI, path, &ann).header(name, value).body(empty()).unwrap();
        let answer = timeout(SOON, sender.send_request(request)).await.unwrap();
        assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 400), "{name} {path}");
    }
    assert_eq!(node.origin.requests(), []);
    let short = stream::iter([Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"ab")))]);
    let request = request(WIKI, "/echo", &ann)
        .method("POST")
        .header("content-length", "3")
        .body(StreamBody::new(short).boxed_unsync())
        .unwrap();
    if let Ok(answer) = timeout(SOON, sender.send_request(request)).await.unwrap() {
        assert_ne!(answer.status(), 200);
    }
    assert!(node.origin.requests().iter().all(|request| request.body.is_empty()));
}

/// What the HTTP library refuses by itself, before there is a request.
#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_head_over_http2_ends_with_one_event() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let cookies = ann.cookies();
    let good = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/"),
        (":authority", WIKI),
        ("cookie", &cookies),
    ];
    let with = |name: &'static str, value: &'static str| [&good[..], &[(name, value)]].concat();
    let without = |name| good.into_iter().filter(|(other, _)| *other != name).collect::<Vec<_>>();
    let hostile = [
        with("X-Upper", "a"),
        with("connection", "close"),
        with("transfer-encoding", "chunked"),
        with("te", "gzip"),
        with(":path", "/other"),
        with(":unknown", "a"),
        without(":method"),
        without(":scheme"),
        [&[("x-first", "a")], &good[..]].concat(),
        [&without(":path")[..], &[(":path", "/a b")]].concat(),
    ];
    assert_eq!(head_alone(&node, &good).await, None, "the control is answered");
    node.wait_for_requests(1).await;
    node.origin.clear();
    let mut written = node.wait_for_events(1).await.len();
    for head in hostile {
        assert_eq!(head_alone(&node, &head).await, Some(1), "PROTOCOL_ERROR: {head:?}");
        assert_eq!(node.origin.requests(), [], "{head:?}");
        let events = node.wait_for_events(written + 1).await;
        assert_eq!(events.len(), written + 1, "{head:?}");
        assert_eq!(
            (&events[written]["reason"], &events[written]["allowed"]),
            (&"bad_request".into(), &false.into()),
            "{head:?}"
        );
        written += 1;
    }
}

/// The HTTP library answers by itself, and there is no request here either.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_head_over_http2_is_refused_with_one_event() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let mut sender = http2(&node, WIKI).await;
    let large = "a".repeat(40 * 1024);
    let many: Vec<String> = (0..400).map(|nth| format!("x-{nth:080}")).collect();
    let mut written = 0;
    let mut served = 0;
    for with_body in [false, true, false] {
        for names in [&["x-large".to_owned()][..], &many] {
            let value = if names.len() == 1 { &large } else { "a" };
            let head = names.iter().fold(request(WIKI, "/", &ann), |head, name| head.header(name, value));
            let endless = StreamBody::new(stream::pending::<Result<Frame<Bytes>, std::io::Error>>());
            let body = if with_body { endless.boxed_unsync() } else { empty() };
            let answer = timeout(SOON, sender.send_request(head.body(body).unwrap())).await.unwrap().unwrap();
            assert_eq!(answer.status(), 431);
            let control = request(WIKI, "/", &ann).body(empty()).unwrap();
            let answer = timeout(SOON, sender.send_request(control)).await.unwrap().unwrap();
            assert_eq!(answer.status(), 200);
            let _ = timeout(SOON, answer.into_body().collect()).await.unwrap().unwrap();
            served += 1;
            written += 2;
            let events = node.wait_for_events(written).await;
            assert_eq!(events.len(), written);
            let refused: Vec<_> = events.iter().filter(|event| event["allowed"] == false).collect();
            assert_eq!(refused.len(), served);
            assert!(refused.iter().all(|event| event["reason"] == "bad_request"), "{refused:?}");
        }
    }
    assert_eq!(node.origin.requests().len(), served);
}

/// Sends a request with this head on a connection of its own, and reads to the end of its stream: the code of
/// a reset, or of the connection's end.
async fn head_alone(node: &Node, head: &[(&str, &str)]) -> Option<u32> {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    // Literals without indexing, RFC 7541 §6.2.2, with lengths of §5.1.
    let mut block = Vec::new();
    for (name, value) in head {
        block.push(0);
        for text in [name, value] {
            match text.len().checked_sub(127) {
                None => block.push(u8::try_from(text.len()).unwrap()),
                Some(mut rest) => {
                    block.push(127);
                    while rest >= 128 {
                        block.push(u8::try_from(rest % 128).unwrap() | 128);
                        rest /= 128;
                    }
                    block.push(u8::try_from(rest).unwrap());
                }
            }
            block.extend(text.bytes());
        }
    }
    let mut stream = node.connect(WIKI, &["h2"]).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
    // HEADERS, the end of the head and of the stream.
    let bytes = [preface, &frame(4, 0, 0, &[]), &frame(1, 4 | 1, 1, &block)].concat();
    write(&mut stream, bytes).await.unwrap();
    loop {
        let mut head = [0; 9];
        timeout(SOON, stream.read_exact(&mut head)).await.unwrap().unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        timeout(SOON, stream.read_exact(&mut payload)).await.unwrap().unwrap();
        match (head[3], head[4], &head[5..]) {
            // RST_STREAM and GOAWAY both end with a code.
            (3, _, [0, 0, 0, 1]) | (7, ..) => {
                return Some(u32::from_be_bytes(*payload.last_chunk().unwrap()));
            }
            // The end of a reply with a body; a refused one has none, and its reset follows.
            (0, flags, [0, 0, 0, 1]) if flags & 1 == 1 => return None,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_in_trailers_is_taken_out_and_grpc_trailers_arrive() {
    let origin = grpc_origin().await;
    let more = format!(
        "[[application]]\nname = \"rpc\"\nurl = \"https://rpc.example.com\"\norigin = \"h2c://{origin}\"\npolicies = [\"people\"]\n"
    );
    let recording = Origin::start(None, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let node = Node::start_with(recording, &more).await;
    let host = "rpc.example.com";
    let ann = node.log_in(host).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("cf-access-jwt-assertion", HeaderValue::from_static("forged"));
    trailers.insert("x-checksum", HeaderValue::from_static("1"));
    let frames = [Frame::data(Bytes::from_static(b"ping")), Frame::trailers(trailers)];
    let body = StreamBody::new(stream::iter(frames.map(Ok::<_, std::io::Error>))).boxed_unsync();
    let request = request(host, "/rpc.Echo/Say", &ann)
        .method("POST")
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(body)
        .unwrap();
    let mut sender = http2(&node, host).await;
    let response = send(&mut sender, request).await;
    assert_eq!(response.status(), 200);
    let whole = timeout(SOON, response.into_body().collect()).await.unwrap().unwrap();
    let trailers = whole.trailers().unwrap().clone();
    assert_eq!(trailers["grpc-status"], "0");
    assert!(!trailers.contains_key("set-cookie"));
    let seen = String::from_utf8(whole.to_bytes().to_vec()).unwrap();
    assert_eq!(seen, format!("te=trailers host={host} body=ping checksum=1 forged=false"));
}

/// An HTTP/2 origin that says what it saw, and answers with trailers.
async fn grpc_origin() -> std::net::SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(|request: Request<Incoming>| async {
                let te = request.headers().get("te").map_or("", |te| te.to_str().unwrap()).to_owned();
                let host = request.uri().host().unwrap().to_owned();
                let whole = request.into_body().collect().await.unwrap();
                let trailers = whole.trailers().cloned().unwrap_or_default();
                let text = format!(
                    "te={te} host={host} body={} checksum={} forged={}",
                    String::from_utf8(whole.to_bytes().to_vec()).unwrap(),
                    trailers["x-checksum"].to_str().unwrap(),
                    trailers.contains_key("cf-access-jwt-assertion"),
                );
                let mut end = HeaderMap::new();
                end.insert("grpc-status", HeaderValue::from_static("0"));
                end.insert("set-cookie", HeaderValue::from_static("CF_Authorization=x"));
                let frames = [Frame::data(Bytes::from(text)), Frame::trailers(end)];
                let body = StreamBody::new(stream::iter(frames.map(Ok::<_, std::io::Error>)));
                Ok::<_, std::convert::Infallible>(Response::new(body))
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    address
}

/// An origin that answers once on every connection and closes it when the next request comes.
async fn one_answer_origin(requests: Arc<AtomicUsize>) -> std::net::SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let requests = Arc::clone(&requests);
            tokio::spawn(async move {
                let mut block = vec![0; 16 * 1024];
                for turn in 0..2 {
                    if !matches!(stream.read(&mut block).await, Ok(1..)) {
                        return;
                    }
                    requests.fetch_add(1, Ordering::SeqCst);
                    if turn == 0 {
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                        stream.write_all(answer).await.unwrap();
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_safe_is_sent_again() {
    let requests = Arc::new(AtomicUsize::new(0));
    let origin = one_answer_origin(Arc::clone(&requests)).await;
    let methods = [("GET", 200, 3), ("HEAD", 200, 3), ("POST", 502, 2), ("DELETE", 502, 2)];
    // Each with connections of its own.
    let host = |method: &str, attempt: usize| format!("once-{attempt}-{}.example.com", method.to_lowercase());
    let application = |method: &str, attempt: usize| {
        format!(
            "[[application]]\nname = \"{method}-{attempt}\"\nurl = \"https://{}\"\norigin = \"http://{origin}\"\npolicies = [\"people\"]\n",
            host(method, attempt)
        )
    };
    let recording = Origin::start(None, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let attempts = |method| (0..RESTS.len()).map(move |attempt| (method, attempt));
    let all = methods.iter().flat_map(|(method, ..)| attempts(*method));
    let more: String = all.map(|(method, attempt)| application(method, attempt)).collect();
    let node = Node::start_with(recording, &more).await;
    for (method, code, arrived) in methods {
        let mut seen = None;
        for (attempt, rest) in RESTS.into_iter().enumerate() {
            let host = host(method, attempt);
            let ann = node.log_in(&host).await;
            let mut sender = http2(&node, &host).await;
            requests.store(0, Ordering::SeqCst);
            // The first request opens a connection, the second finds it resting and sees it break.
            let first = request(&host, "/", &ann).method("PUT").body(empty()).unwrap();
            let first = send(&mut sender, first).await;
            assert_eq!(first.status(), 200, "{method}");
            first.into_body().collect().await.unwrap();
            tokio::time::sleep(rest).await;
            let second = request(&host, "/", &ann).method(method).body(empty()).unwrap();
            let status = send(&mut sender, second).await.status();
            seen = Some((status.as_u16(), requests.load(Ordering::SeqCst)));
            // On a busy machine it was not resting yet, and the second has opened one of its own: then it is asked again.
            if seen != Some((200, 2)) {
                break;
            }
        }
        assert_eq!(seen, Some((code, arrived)), "{method}");
    }
}

/// How long a connection to an origin is given to come to rest, one after the other.
const RESTS: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(10)];

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_an_origin_are_used_again() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let mut sender = http2(&node, WIKI).await;
    let mut opened = Vec::new();
    for rest in RESTS {
        let before = node.origin.connections();
        for _ in 0..5 {
            let response = send(&mut sender, request(WIKI, "/", &ann).body(empty()).unwrap()).await;
            response.into_body().collect().await.unwrap();
            tokio::time::sleep(rest / 2).await;
        }
        opened.push(node.origin.connections() - before);
        assert_eq!(node.origin.requests().len(), 5 * opened.len());
        if opened.last().is_some_and(|opened| *opened <= 1) {
            return;
        }
    }
    panic!("for five requests each time there were so many connections: {opened:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_finish_when_the_node_stops() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let mut sender = http2(&node, WIKI).await;
    let slow = send_later(&mut sender, request(WIKI, "/slow/1000", &ann).body(empty()).unwrap());
    let stop = async {
        node.wait_for_requests(1).await;
        node.shutdown.cancel();
    };
    let (response, ()) = tokio::join!(slow, stop);
    assert_eq!(response.status(), 200);
    assert!(!response.into_body().collect().await.unwrap().to_bytes().is_empty());
}

fn send_later(
    sender: &mut SendRequest<Body>,
    request: Request<Body>,
) -> impl Future<Output = Response<Incoming>> + use<> {
    let sending = sender.send_request(request);
    async move { timeout(SOON, sending).await.unwrap().unwrap() }
}

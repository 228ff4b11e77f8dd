//! Bodies that strangers send to the node's own pages and never finish: what is held for them, and that somebody else's
//! login goes on.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, FuturesUnordered};
use http::{Request, StatusCode};
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis::clock;
use portcullis::identity::password;
use portcullis::store::User;
use portcullis_tests::origin::Origin;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;

use crate::node::{Node, SOON, WIKI, field, read_to_end, status, write};

const AUTH: &str = "access.example.com";
const PASSWORD: &str = "correct horse battery staple";
const KIB: i64 = 1024;
/// What one network may make the node hold.
const NETWORK: i64 = 8 * 1024 * KIB;
const OKTA: &str = "[[identity_provider]]\nname = \"okta\"\ntype = \"saml\"\nmetadata = \"https://127.0.0.1:9/metadata\"\n\
                    email_domains = [\"example.com\"]\n";

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

async fn start() -> Node {
    let origin = Origin::start(None, (std::net::Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    Node::start_with(origin, OKTA).await
}

/// A body of which so many pieces come, and then nothing.
fn unfinished(pieces: usize, size: usize) -> Body {
    let pieces = stream::iter((0..pieces).map(move |_| Ok(Frame::data(Bytes::from(vec![b'x'; size])))));
    UnsyncBoxBody::new(StreamBody::new(pieces.chain(stream::pending())))
}

/// A connection from an address of this host.
async fn from(node: &Node, address: &str, alpn: &[&str]) -> TlsStream<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap();
    let stream = socket.connect(node.address).await.unwrap();
    node.handshake(stream, AUTH, alpn).await
}

async fn http2(node: &Node, address: &str) -> SendRequest<Body> {
    let stream = from(node, address, &["h2"]).await;
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn post(path: &str, body: Body, length: Option<usize>) -> Request<Body> {
    let request = Request::post(format!("https://{AUTH}/cdn-cgi/access/{path}"));
    match length {
        Some(length) => request.header("content-length", length).body(body).unwrap(),
        None => request.body(body).unwrap(),
    }
}

/// Waits until so many bytes are set aside.
async fn wait_for_held(node: &Node, bytes: i64) {
    let held = &node.context.metrics.portal_body_bytes;
    let reached = timeout(SOON, async {
        while held.get() != bytes {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(reached.await.is_ok(), "{} and not {bytes}", held.get());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_endpoint_takes_is_not_waited_for() {
    let node = start().await;
    let mut sender = http2(&node, "127.0.0.1").await;
    let started = Instant::now();
    for (path, code) in [
        ("saml/nobody/acs", 404),
        ("saml/local/acs", 404),
        ("saml/okta/other", 404),
        ("saml/okta/resume", 405),
        ("sso/oidc/nobody/token", 404),
        ("sso/saml/nobody", 404),
        ("certs", 405),
        ("nothing", 405),
    ] {
        let answer = sender.send_request(post(path, unfinished(4, 4096), None));
        let answer = timeout(SOON, answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), code, "{path}");
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert_eq!(node.context.metrics.portal_body_bytes.get(), 0);
    // What says that it is too long is not waited for either.
    for (path, length, code) in
        [("login", 16_385, 413), ("saml/okta/acs", 262_145, 413), ("cert_sign", 20_000, 413)]
    {
        let answer = sender.send_request(post(path, unfinished(1, 100), Some(length)));
        assert_eq!(timeout(SOON, answer).await.unwrap().unwrap().status(), code, "{path}");
    }
    // Nor is what turns out to be.
    let answer = sender.send_request(post("login", unfinished(5, 4096), None));
    assert_eq!(timeout(SOON, answer).await.unwrap().unwrap().status(), 413);
    assert_eq!(node.context.metrics.portal_body_bytes.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_bodies_of_one_network_leave_room_for_a_login_from_another() {
    let node = start().await;
    let user = User {
        name: "ann".into(),
        email: "ann@example.com".parse().unwrap(),
        groups: Vec::new(),
        password_hash: password::hash(PASSWORD).unwrap(),
        created_at: clock::now(),
    };
    node.context.store.add_user(user).await.unwrap();

    // Of one connection so many are read; each may have 256 KiB, since it does not say what it has.
    let mut first = http2(&node, "127.0.0.1").await;
    let answers: FuturesUnordered<_> =
        (0..40).map(|_| first.send_request(post("saml/okta/acs", unfinished(20, 1024), None))).collect();
    let refused = answers.take(24).map(|answer| answer.unwrap().status()).collect::<Vec<_>>();
    let refused = timeout(SOON, refused).await.unwrap();
    assert!(refused.iter().all(|code| *code == StatusCode::TOO_MANY_REQUESTS), "{refused:?}");
    wait_for_held(&node, 0).await;

    // Of many connections no more than the network's share, whatever they send.
    let mut senders = Vec::new();
    for number in 0..64 {
        senders.push(http2(&node, &format!("127.0.0.{}", number % 200 + 1)).await);
    }
    let mut waiting = FuturesUnordered::new();
    for sender in &mut senders {
        for _ in 0..20 {
            // One byte at a time is no more than one buffer.
            waiting.push(sender.send_request(post("saml/okta/acs", unfinished(200, 1), None)));
        }
    }
    let all = 64 * 20;
    let taken = usize::try_from(NETWORK / (256 * KIB)).unwrap();
    for _ in 0..all - taken {
        let answer = timeout(SOON, waiting.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(node.context.metrics.portal_body_bytes.get() <= NETWORK);
    }
    assert_eq!(node.context.metrics.portal_body_bytes.get(), NETWORK);

    // Its own login waits; another network's does not.
    assert_eq!(log_in(&node, "127.0.0.9").await, 429);
    assert_eq!(log_in(&node, "127.1.0.1").await, 303);
    assert_eq!(node.context.metrics.portal_body_bytes.get(), NETWORK);

    drop((waiting, senders, first));
    wait_for_held(&node, 0).await;
    assert_eq!(log_in(&node, "127.0.0.9").await, 303);
}

/// Logs Ann in at the node from an address of this host, and returns what the form was answered with.
async fn log_in(node: &Node, address: &str) -> u16 {
    let send = async |request: String| {
        let mut stream = from(node, address, &[]).await;
        write(&mut stream, request).await.unwrap();
        read_to_end(&mut stream).await
    };
    let head = |line: &str| {
        format!("{line} /cdn-cgi/access/login HTTP/1.1\r\nHost: {AUTH}\r\nConnection: close\r\n")
    };
    let page = send(format!("{}Accept: text/html\r\n\r\n", head("GET"))).await;
    assert_eq!(status(&page), 200, "{page}");
    let ticket = page.split("name=\"ticket\" value=\"").nth(1).unwrap().split('"').next().unwrap();
    let cookie = field(&page, "set-cookie").unwrap().split(';').next().unwrap();
    let form = format!("ticket={ticket}&username=ann&password={}", PASSWORD.replace(' ', "+"));
    let request = format!(
        "{}Cookie: {cookie}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        head("POST"),
        form.len()
    );
    status(&send(request).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_comes_whole_whatever_its_pieces() {
    let node = start().await;
    let mut sender = http2(&node, "127.0.0.1").await;
    // Refused for what it says, and not for how it came.
    let mut codes = Vec::new();
    for size in [1, 16_384] {
        let count = 16_384 / size;
        let pieces =
            stream::iter((0..count.min(4000)).map(move |_| Ok(Frame::data(Bytes::from(vec![b'x'; size])))));
        let body = UnsyncBoxBody::new(StreamBody::new(pieces));
        codes.push(
            timeout(SOON, sender.send_request(post("login", body, None))).await.unwrap().unwrap().status(),
        );
    }
    assert_eq!(codes, [400, 400]);
    assert_eq!(node.context.metrics.portal_body_bytes.get(), 0);
    let ann = node.log_in(WIKI).await;
    assert_eq!(status(&node.get(WIKI, "/", &format!("Cookie: {}\r\n", ann.cookies())).await), 200);
}

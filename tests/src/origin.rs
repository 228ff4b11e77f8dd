//! A recording origin: an HTTP server that keeps every request it sees, for tests of the form "the origin sees
//! nothing" and "the origin sees exactly this".
//!
//! Speaks HTTP/1.1 and HTTP/2 without TLS on one port. What it answers depends on the path alone:
//!
//! | path | answer |
//! |---|---|
//! | `/ws` with `Upgrade: websocket` | echoes every message |
//! | `/events` | server-sent events, `data: <n>` every 50 ms, without end |
//! | `/download/<bytes>` | that many zero bytes, streamed |
//! | `/upload` | reads the body, streamed; `{"bytes": n}` |
//! | `/status/<code>` | that status |
//! | `/slow/<ms>` | the echo, after that time |
//! | `/close` | no answer: the connection is closed |
//! | `/redirect?<address>` | 302 to that address |
//! | any other | the echo: the request as JSON (see [`Request`]) |

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, LOCATION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::sync::Notify;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::netns::Netns;

/// One request as the origin saw it. `body` is filled in when the whole body has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// As on the request line: path and query.
    pub target: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// In order of arrival, names in lower case, one entry for each line.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// Every value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str()).collect()
    }

    fn json(&self) -> String {
        serde_json::json!({
            "method": self.method,
            "target": self.target,
            "version": self.version,
            "headers": self.headers,
            "body": String::from_utf8_lossy(&self.body),
        })
        .to_string()
    }
}

/// A running origin; dropping it closes its connections.
pub struct Origin {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    requests: Mutex<Vec<Request>>,
    connections: AtomicUsize,
    open: AtomicUsize,
    stop: Notify,
}

impl Origin {
    /// Listens on `address` (port 0 takes any) in a namespace, or on the machine itself.
    pub fn start(netns: Option<&Netns>, address: SocketAddr) -> Result<Self> {
        let bind = || TcpListener::bind(address);
        let listener = match netns {
            Some(netns) => netns.enter(bind)?,
            None => bind(),
        };
        let listener = listener.with_context(|| format!("origin on {address}"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("origin".to_owned()).spawn({
            let state = Arc::clone(&state);
            move || {
                runtime.block_on(async {
                    let stopped = state.stop.notified();
                    tokio::select! {
                        () = accept(listener, &state) => {}
                        () = stopped => {}
                    }
                });
                runtime.shutdown_background();
            }
        })?;
        Ok(Self { address, state, thread: Some(thread) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every request so far, in order of arrival of its headers.
    pub fn requests(&self) -> Vec<Request> {
        self.state.requests().clone()
    }

    /// Forgets the requests so far.
    pub fn clear(&self) {
        self.state.requests().clear();
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.state.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    fn requests(&self) -> MutexGuard<'_, Vec<Request>> {
        self.requests.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

async fn accept(listener: TcpListener, state: &Arc<State>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    while let Ok((stream, _)) = listener.accept().await {
        state.connections.fetch_add(1, Ordering::SeqCst);
        state.open.fetch_add(1, Ordering::SeqCst);
        let state = Arc::clone(state);
        tokio::spawn(async move {
            let service = service_fn(|request| answer(Arc::clone(&state), request));
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await;
            state.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// An error closes the connection without an answer.
async fn answer(
    state: Arc<State>,
    request: hyper::Request<Incoming>,
) -> Result<Response<Body>, &'static str> {
    let (parts, body) = request.into_parts();
    let mut seen = Request {
        method: parts.method.to_string(),
        target: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        version: format!("{:?}", parts.version),
        headers: parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect(),
        body: Vec::new(),
    };
    let index = {
        let mut requests = state.requests();
        requests.push(seen.clone());
        requests.len() - 1
    };
    let path = parts.uri.path().to_owned();
    let (head, argument) = path.rsplit_once('/').unwrap_or(("", ""));
    let number = || argument.parse::<u64>().map_err(|_| "not a number");

    match (head, argument) {
        ("", "ws") if parts.headers.contains_key(SEC_WEBSOCKET_KEY) => {
            return websocket(hyper::Request::from_parts(parts, body));
        }
        ("", "events") => return Ok(stream("text/event-stream", events())),
        ("", "close") => return Err("told to close"),
        ("", "redirect") => {
            let to = parts.uri.query().unwrap_or("/").parse().map_err(|_| "no header value")?;
            let mut response = full(StatusCode::FOUND, String::new());
            response.headers_mut().insert(LOCATION, to);
            return Ok(response);
        }
        ("", "upload") => {
            let bytes = count(body).await?;
            return Ok(full(StatusCode::OK, format!("{{\"bytes\": {bytes}}}")));
        }
        ("/download", _) => return Ok(stream("application/octet-stream", zeros(number()?))),
        ("/slow", _) => tokio::time::sleep(Duration::from_millis(number()?)).await,
        _ => {}
    }

    seen.body = body.collect().await.map_err(|_| "body broke off")?.to_bytes().to_vec();
    if let Some(recorded) = state.requests().get_mut(index) {
        recorded.body.clone_from(&seen.body);
    }
    let status = match head {
        "/status" => StatusCode::from_u16(argument.parse().unwrap_or(0)).map_err(|_| "not a status")?,
        _ => StatusCode::OK,
    };
    Ok(full(status, seen.json()))
}

fn full(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn stream<S>(content_type: &'static str, frames: S) -> Response<Body>
where
    S: futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + 'static,
{
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

fn events() -> impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> {
    futures_util::stream::unfold(0_u64, |n| async move {
        if n > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some((Ok(Frame::data(Bytes::from(format!("data: {n}\n\n")))), n + 1))
    })
}

fn zeros(bytes: u64) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> {
    static BLOCK: [u8; 64 * 1024] = [0; 64 * 1024];
    futures_util::stream::unfold(bytes, |left| async move {
        let size = left.min(BLOCK.len() as u64);
        (size > 0).then(|| {
            let block = Bytes::from_static(&BLOCK).slice(..usize::try_from(size).unwrap_or_default());
            (Ok(Frame::data(block)), left - size)
        })
    })
}

async fn count(mut body: Incoming) -> Result<u64, &'static str> {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame.map_err(|_| "body broke off")?.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(bytes)
}

fn websocket(request: hyper::Request<Incoming>) -> Result<Response<Body>, &'static str> {
    let key = request.headers().get(SEC_WEBSOCKET_KEY).ok_or("no key")?;
    let accept = derive_accept_key(key.as_bytes()).parse().map_err(|_| "no header value")?;
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        let (mut sink, mut source) = socket.split();
        while let Some(Ok(message)) = source.next().await {
            // Pings are answered by the library itself.
            if (message.is_text() || message.is_binary()) && sink.send(message).await.is_err() {
                break;
            }
        }
    });
    let mut response = full(StatusCode::SWITCHING_PROTOCOLS, String::new());
    let headers = response.headers_mut();
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(CONNECTION, http::HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, http::HeaderValue::from_static("websocket"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::netns::run;
    use crate::process::wait_until;

    fn origin() -> Origin {
        Origin::start(None, "127.0.0.1:0".parse().unwrap()).unwrap()
    }

    fn curl(origin: &Origin, path: &str, args: &[&str]) -> String {
        let url = format!("http://{}{path}", origin.address());
        run(Command::new("curl").args(["-sS", "--max-time", "20"]).args(args).arg(url)).unwrap()
    }

    #[test]
    fn it_records_and_echoes_what_it_saw() {
        let origin = origin();
        let echo = curl(&origin, "/a?b=c", &["-H", "X-One: 1", "-H", "X-One: 2", "-d", "body"]);
        let requests = origin.requests();
        let [request] = requests.as_slice() else { panic!("{requests:?}") };
        assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/a?b=c"));
        assert_eq!(request.header("x-one"), ["1", "2"]);
        assert_eq!(request.body, b"body");
        assert_eq!(request.json(), echo);
        origin.clear();
        assert!(origin.requests().is_empty());
    }

    #[test]
    fn it_speaks_http2_without_tls() {
        let origin = origin();
        curl(&origin, "/", &["--http2-prior-knowledge"]);
        assert_eq!(origin.requests()[0].version, "HTTP/2.0");
    }

    #[test]
    fn bodies_stream_both_ways() {
        let origin = origin();
        let size = curl(&origin, "/download/10000000", &["-o", "/dev/null", "-w", "%{size_download}"]);
        assert_eq!(size, "10000000");
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, &vec![7; 3_000_000]).unwrap();
        let counted = curl(&origin, "/upload", &["-T", file.path().to_str().unwrap()]);
        assert_eq!(counted, "{\"bytes\": 3000000}");
    }

    #[test]
    fn status_close_and_events() {
        let origin = origin();
        assert_eq!(curl(&origin, "/status/503", &["-o", "/dev/null", "-w", "%{http_code}"]), "503");
        let url = format!("http://{}/close", origin.address());
        assert!(run(Command::new("curl").args(["-sS", "--max-time", "5", &url])).is_err());
        let script = format!("curl -sSN --max-time 10 http://{}/events | head -5", origin.address());
        let events = run(Command::new("sh").args(["-c", &script])).unwrap();
        assert_eq!(events, "data: 0\n\ndata: 1\n\ndata: 2\n");
        wait_until("all connections to close", Duration::from_secs(30), || {
            Ok((origin.open_connections() == 0).then_some(()))
        })
        .unwrap();
        assert_eq!(origin.connections(), 3);
    }

    #[test]
    fn websocket_messages_come_back() {
        let origin = origin();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let url = format!("ws://{}/ws", origin.address());
            let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
            socket.send("hello".into()).await.unwrap();
            assert_eq!(socket.next().await.unwrap().unwrap().into_text().unwrap().as_str(), "hello");
        });
        assert_eq!(origin.requests()[0].header("upgrade"), ["websocket"]);
    }
}

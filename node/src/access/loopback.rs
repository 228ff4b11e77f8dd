//! The loopback address that a browser comes back to (RFC 8252 §7.3): one page, for one answer, on a port that the
//! system chose.
//!
//! Every program of this machine, and every page in its browser, can reach it. The first request with the right `state`
//! counts, at `/callback` and at this very address; all others are told that nothing is here, as often as they come.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

use super::wire;

/// Connections that are served at a time: browsers open some that they never use.
const CONNECTIONS: usize = 32;
/// How long each of them may take.
const CONNECTION_LIFE: Duration = Duration::from_secs(30);
/// Bytes of the longest request head.
const LONGEST_HEAD: usize = 16 * 1024;
/// How long the browser gets to read the page after its answer was taken.
const PARTING: Duration = Duration::from_millis(500);

/// There is no loopback address to listen on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on a loopback address: {0}")]
pub struct LoopbackError(#[from] std::io::Error);

/// What the browser came back with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Callback {
    /// The code, or the error of the node.
    pub(super) result: Result<String, String>,
    /// Who says so (RFC 9207).
    pub(super) issuer: Option<String>,
}

pub(super) struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Listens on 127.0.0.1, or on ::1 where there is no IPv4.
    pub(super) async fn bind() -> Result<Self, LoopbackError> {
        let socket = match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await {
            Ok(socket) => socket,
            Err(_) => TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await?,
        };
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
    }

    /// The redirection address.
    pub(super) fn url(&self) -> String {
        format!("http://{}{}", self.address, wire::CALLBACK)
    }

    /// Serves until the answer to the request with this `state` comes.
    pub(super) async fn callback(self, state: &str) -> Callback {
        let (found, mut first) = mpsc::channel(1);
        let expected: Arc<(String, String)> = Arc::new((self.address.to_string(), state.to_owned()));
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let serving = async {
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let Ok((stream, _)) = self.socket.accept().await else {
                    // Out of descriptors, most likely: they come back.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let (expected, found) = (Arc::clone(&expected), found.clone());
                tokio::spawn(async move {
                    let service = service_fn(|request: Request<hyper::body::Incoming>| {
                        let (response, callback) = answer(&request, &expected.0, &expected.1);
                        if let Some(callback) = callback {
                            // The first one counts; the channel has room for no other.
                            let _ = found.try_send(callback);
                        }
                        std::future::ready(Ok::<_, Infallible>(response))
                    });
                    let connection = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(CONNECTION_LIFE)
                        .max_buf_size(LONGEST_HEAD)
                        .keep_alive(false)
                        .serve_connection(TokioIo::new(stream), service);
                    // However it ends, it is over.
                    let _ = tokio::time::timeout(CONNECTION_LIFE, connection).await;
                    drop(place);
                });
            }
        };
        let callback = tokio::select! {
            Some(callback) = first.recv() => callback,
            () = serving => unreachable_callback(),
        };
        tokio::time::sleep(PARTING).await;
        callback
    }
}

/// Nothing can come any more.
fn unreachable_callback() -> Callback {
    Callback { result: Err("nothing".to_owned()), issuer: None }
}

/// The page for a request, and what it carried if it is the one that is waited for.
fn answer<B>(
    request: &Request<B>,
    authority: &str,
    state: &str,
) -> (Response<Full<Bytes>>, Option<Callback>) {
    let nothing = || (page(StatusCode::NOT_FOUND, "Nothing is here", ""), None);
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let ours = request.method() == Method::GET && request.uri().path() == wire::CALLBACK;
    // A name that leads here is somebody else's page in the browser.
    if !ours || host != Some(authority) {
        return nothing();
    }
    let query: Vec<(String, String)> =
        url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
            .into_owned()
            .take(16)
            .collect();
    let one = |name: &str| {
        let mut values = query.iter().filter(|(found, _)| found == name).map(|(_, value)| value.clone());
        let value = values.next()?;
        values.next().is_none().then_some(value)
    };
    let same =
        one("state").is_some_and(|found| verify_slices_are_equal(found.as_bytes(), state.as_bytes()).is_ok());
    if !same {
        return nothing();
    }
    let issuer = one("iss");
    match (one("code"), one("error")) {
        (Some(code), None) => (
            page(StatusCode::OK, "You can close this page", "The rest happens in the terminal."),
            Some(Callback { result: Ok(code), issuer }),
        ),
        (None, Some(error)) => (
            page(
                StatusCode::OK,
                "The device was not signed in",
                "Nothing was granted. You can close this page.",
            ),
            Some(Callback { result: Err(error), issuer }),
        ),
        _ => nothing(),
    }
}

fn page(status: StatusCode, title: &str, text: &str) -> Response<Full<Bytes>> {
    let body = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{title}</title>\
         <main><h1>{title}</h1><p>{text}</p></main></html>\n"
    );
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'; base-uri 'none'"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_that_is_waited_for_counts() {
        let ask = |method: &str, target: &str, host: &str| {
            let request =
                Request::builder().method(method).uri(target).header("host", host).body(()).unwrap();
            let (response, callback) = answer(&request, "127.0.0.1:4000", "secret");
            assert_eq!(response.status() == StatusCode::OK, callback.is_some(), "{target}");
            callback
        };
        let here = "127.0.0.1:4000";
        let good = ask("GET", "/callback?code=abc&state=secret&iss=https%3A%2F%2Fa.example", here).unwrap();
        assert_eq!(good, Callback { result: Ok("abc".into()), issuer: Some("https://a.example".into()) });
        let error = ask("GET", "/callback?error=access_denied&state=secret", here).unwrap();
        assert_eq!(error, Callback { result: Err("access_denied".into()), issuer: None });
        for (method, target, host) in [
            ("GET", "/callback?code=abc&state=wrong", here),
            ("GET", "/callback?code=abc", here),
            ("GET", "/callback?code=abc&state=secret&state=secret", here),
            ("GET", "/callback?code=abc&code=abc&state=secret", here),
            ("GET", "/callback?code=abc&error=x&state=secret", here),
            ("GET", "/callback?state=secret", here),
            ("GET", "/callback", here),
            ("GET", "/?code=abc&state=secret", here),
            ("GET", "/callback/?code=abc&state=secret", here),
            ("POST", "/callback?code=abc&state=secret", here),
            ("GET", "/callback?code=abc&state=secret", "evil.example:4000"),
            ("GET", "/callback?code=abc&state=secret", "localhost:4000"),
        ] {
            assert_eq!(ask(method, target, host), None, "{method} {target} {host}");
        }
    }

    #[tokio::test]
    async fn idle_connections_and_strangers_do_not_keep_the_browser_out() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = Listener::bind().await.unwrap();
        let (address, url) = (listener.address, listener.url());
        assert_eq!(url, format!("http://{address}/callback"));
        let waiting = tokio::spawn(async move { listener.callback("secret").await });
        let mut idle = Vec::new();
        for _ in 0..8 {
            idle.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        for (state, status) in [("wrong", "404"), ("secret", "200")] {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET /callback?code=abc&state={state} HTTP/1.1\r\nHost: {address}\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        }
        assert_eq!(waiting.await.unwrap().result, Ok("abc".into()));
    }
}

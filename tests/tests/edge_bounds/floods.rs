//! Floods of HTTP/2 frames (CVE-2023-44487 and its kin): the connection is ended, memory stays flat, and somebody else's
//! requests are answered as before, although the flood comes again and again.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::node::{Node, SOON, WIKI, status};
use crate::{FLAT, resident};

/// Types of frames (RFC 9113 §6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Frames of a flood, many times what any bound allows.
const FRAMES: u32 = 50_000;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `GET https://wiki.example.com/` (RFC 7541, Appendix A); `POST` where there is more to come.
fn fields(method: u8) -> Vec<u8> {
    let mut block = vec![method, 0x87, 0x84, 0x41, u8::try_from(WIKI.len()).unwrap()];
    block.extend(WIKI.bytes());
    block
}

const GET: u8 = 0x82;
const POST: u8 = 0x83;

struct Flood {
    name: &'static str,
    first: Vec<u8>,
    each: fn(u32) -> Vec<u8>,
}

pub async fn are_ended() {
    let node = Node::start().await;
    let calm = waits(&node).await;
    let floods = [
        Flood {
            name: "requests that are reset at once",
            first: vec![],
            each: |number| {
                let stream = number * 2 + 1;
                let headers = frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields(GET));
                [headers, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
            },
        },
        Flood {
            name: "a header list without end",
            first: frame(HEADERS, END_STREAM, 1, &fields(GET)),
            each: |number| {
                let mut field = vec![0x00, 10];
                field.extend(format!("x{number:09}").bytes());
                field.push(100);
                field.extend([b'a'; 100]);
                frame(CONTINUATION, 0, 1, &field)
            },
        },
        Flood {
            name: "empty continuations",
            first: frame(HEADERS, END_STREAM, 1, &fields(GET)),
            each: |_| frame(CONTINUATION, 0, 1, &[]),
        },
        Flood {
            name: "more streams than allowed",
            first: vec![],
            each: |number| frame(HEADERS, END_HEADERS, number * 2 + 1, &fields(POST)),
        },
        Flood { name: "settings", first: vec![], each: |_| frame(SETTINGS, 0, 0, &[]) },
        Flood { name: "pings", first: vec![], each: |_| frame(PING, 0, 0, &[0; 8]) },
        Flood {
            name: "empty data",
            first: frame(HEADERS, END_HEADERS, 1, &fields(POST)),
            each: |_| frame(DATA, 0, 1, &[]),
        },
    ];
    for flood in floods {
        let before = resident();
        let events = node.events().await.len();
        let others = CancellationToken::new();
        let (floods, meanwhile) = tokio::join!(repeat(&node, &flood, &others), async {
            let _over = others.clone().drop_guard();
            waits(&node).await
        });
        let grown = resident().saturating_sub(before);
        println!("{}: {floods} times, {} KiB, others {meanwhile} (calm {calm})", flood.name, grown >> 10);
        assert!(grown < FLAT, "{}: grew by {} MiB", flood.name, grown >> 20);
        assert!(
            meanwhile.median < calm.median * 4 + Duration::from_millis(300),
            "{}: others wait {meanwhile} (calm {calm})",
            flood.name
        );
        let broken = node.events().await;
        let broken = broken[events..].iter().filter(|event| event["reason"] == "bad_request").count();
        assert!(broken >= 1, "{}: no event", flood.name);
    }
    assert_eq!(node.origin.requests(), []);
}

/// Floods on one connection after the other, each until the node ends it, while the others are at it; how often.
async fn repeat(node: &Node, flood: &Flood, others: &CancellationToken) -> usize {
    let mut times = 0;
    while times == 0 || !others.is_cancelled() {
        let mut stream = node.connect(WIKI, &["h2"]).await;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        timeout(SOON, run(&mut stream, flood)).await.unwrap_or_else(|_| panic!("{}: not ended", flood.name));
        times += 1;
    }
    times
}

/// Writes a flood without reading, and then reads until the node has closed the connection.
async fn run(stream: &mut TlsStream<TcpStream>, flood: &Flood) {
    let write = async {
        stream.write_all(&flood.first).await?;
        for numbers in (0..FRAMES).collect::<Vec<_>>().chunks(100) {
            let block: Vec<u8> = numbers.iter().flat_map(|number| (flood.each)(*number)).collect();
            stream.write_all(&block).await?;
        }
        stream.flush().await
    };
    // A node that reads no more also stops the writing; it has to close as well.
    if let Ok(Err(_)) = timeout(Duration::from_secs(5), write).await {
        return;
    }
    let mut block = vec![0; 64 * 1024];
    while let Ok(1..) = stream.read(&mut block).await {}
}

/// How long somebody else waits for an answer.
struct Waits {
    median: Duration,
    p99: Duration,
}

impl std::fmt::Display for Waits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "median {:?}, p99 {:?}", self.median, self.p99)
    }
}

/// Each time a new connection and a request. Only the median decides: whatever else this machine does makes some slow.
async fn waits(node: &Node) -> Waits {
    let mut waits = Vec::new();
    for _ in 0..100 {
        let started = Instant::now();
        assert_eq!(status(&timeout(SOON, node.get(WIKI, "/", "")).await.unwrap()), 302);
        waits.push(started.elapsed());
    }
    waits.sort();
    Waits { median: waits[50], p99: waits[98] }
}

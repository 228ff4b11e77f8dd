//! Floods of HTTP/2 frames (CVE-2023-44487 and its kin): the connection is ended or held back, memory stays flat, and
//! somebody else's requests are answered as before.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;

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
    /// The node has to end the connection; otherwise holding it back is enough.
    ended: bool,
    first: Vec<u8>,
    each: fn(u32) -> Vec<u8>,
}

pub async fn are_ended_or_held_back() {
    let node = Node::start().await;
    let calm = median_of_ten(&node).await;
    let floods = [
        Flood {
            name: "requests that are reset at once",
            ended: true,
            first: vec![],
            each: |number| {
                let stream = number * 2 + 1;
                let headers = frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields(GET));
                [headers, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
            },
        },
        Flood {
            name: "a header list without end",
            ended: true,
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
            ended: true,
            first: frame(HEADERS, END_STREAM, 1, &fields(GET)),
            each: |_| frame(CONTINUATION, 0, 1, &[]),
        },
        Flood {
            name: "more streams than allowed",
            ended: false,
            first: vec![],
            each: |number| frame(HEADERS, END_HEADERS, number * 2 + 1, &fields(POST)),
        },
        Flood { name: "settings", ended: false, first: vec![], each: |_| frame(SETTINGS, 0, 0, &[]) },
        Flood { name: "pings", ended: false, first: vec![], each: |_| frame(PING, 0, 0, &[0; 8]) },
        Flood {
            name: "empty data",
            ended: false,
            first: frame(HEADERS, END_HEADERS, 1, &fields(POST)),
            each: |_| frame(DATA, 0, 1, &[]),
        },
    ];
    for flood in floods {
        let before = resident();
        let mut stream = node.connect(WIKI, &["h2"]).await;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        let (flooding, meanwhile) = tokio::join!(run(&mut stream, &flood), median_of_ten(&node));
        let grown = resident().saturating_sub(before);
        println!("{}: {flooding:?}, {} KiB, others {meanwhile:?} (calm {calm:?})", flood.name, grown >> 10);
        assert!(grown < FLAT, "{}: grew by {} MiB", flood.name, grown >> 20);
        assert!(
            meanwhile < calm * 4 + Duration::from_millis(300),
            "{}: others wait {meanwhile:?}",
            flood.name
        );
        if flood.ended {
            assert_eq!(flooding, End::Ended, "{}", flood.name);
        }
    }
    let broken = node.events().await;
    let broken = broken.iter().filter(|event| event["reason"] == "bad_request").count();
    assert!(broken >= 2, "a connection that the library ended leaves an event: {broken}");
    assert_eq!(node.origin.requests(), []);
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The node closed the connection.
    Ended,
    /// The node reads no more, or took it all.
    HeldBack,
}

/// Writes a flood without reading, then looks whether the node has closed the connection.
async fn run(stream: &mut TlsStream<TcpStream>, flood: &Flood) -> End {
    let write = async {
        stream.write_all(&flood.first).await?;
        for numbers in (0..FRAMES).collect::<Vec<_>>().chunks(100) {
            let block: Vec<u8> = numbers.iter().flat_map(|number| (flood.each)(*number)).collect();
            stream.write_all(&block).await?;
        }
        stream.flush().await
    };
    if let Ok(Err(_)) = timeout(Duration::from_secs(5), write).await {
        return End::Ended;
    }
    let mut block = vec![0; 64 * 1024];
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(2) {
        match timeout(Duration::from_secs(1), stream.read(&mut block)).await {
            Ok(Ok(0) | Err(_)) => return End::Ended,
            Ok(Ok(_)) => {}
            Err(_) => break,
        }
    }
    End::HeldBack
}

/// How long somebody else waits: each time a new connection and a request. Not the slowest: whatever else this machine
/// does would count as the flood's doing.
async fn median_of_ten(node: &Node) -> Duration {
    let mut waits = Vec::new();
    for _ in 0..10 {
        let started = Instant::now();
        assert_eq!(status(&timeout(SOON, node.get(WIKI, "/", "")).await.unwrap()), 302);
        waits.push(started.elapsed());
    }
    waits.sort();
    waits[waits.len() / 2]
}

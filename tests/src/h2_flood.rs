//! Floods of HTTP/2 frames (CVE-2023-44487 and its kin), as tests and the bench of the edge send them.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::realm::WIKI;

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

/// Frames that nobody sends who wants an answer.
pub struct Flood {
    pub name: &'static str,
    first: Vec<u8>,
    each: fn(u32) -> Vec<u8>,
}

/// Each kind there is.
pub fn all() -> [Flood; 7] {
    [
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
    ]
}

impl Flood {
    /// What a client writes from its preface on.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &[]));
        bytes.extend(&self.first);
        bytes.extend((0..FRAMES).flat_map(self.each));
        bytes
    }
}

/// Writes the bytes of a flood without reading, and then reads until the other side has closed.
pub async fn send(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), bytes: &[u8]) {
    let write = async {
        for block in bytes.chunks(4096) {
            stream.write_all(block).await?;
        }
        stream.flush().await
    };
    // Who reads no more also stops the writing, and has to close as well.
    if let Ok(Err(_)) = timeout(Duration::from_secs(5), write).await {
        return;
    }
    let mut block = vec![0; 64 * 1024];
    while let Ok(1..) = stream.read(&mut block).await {}
}

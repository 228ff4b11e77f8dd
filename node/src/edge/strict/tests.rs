use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};

use super::*;

fn scan(bytes: &[u8]) -> Scanned {
    Scanner::default().scan(bytes)
}

/// A head with one long line, given byte by byte. Read anew for each byte it would take half a billion looks.
#[test]
fn a_long_line_that_comes_slowly_is_read_once() {
    for (head, line) in
        [("GET / HTTP/1.1\r\nHost: a\r\nX: ", limits::HEAD_BYTES - 100), ("GET /", limits::HEAD_BYTES - 100)]
    {
        let message = [head, &"a".repeat(line)].concat();
        let mut scanner = Scanner::default();
        for end in 1..=message.len() {
            let before = scanner.searched;
            let found = scanner.scan(&message.as_bytes()[..end]);
            assert_eq!((found.pass, found.refused), (0, None), "{end}");
            let looked_at = end - before;
            assert!(looked_at <= 2, "{looked_at} bytes were read for one more at {end}");
            assert!(scanner.searched >= end - 1, "{} of {end}", scanner.searched);
        }
    }
    // The same in this thread's own time: generous, since it is the order that counts.
    let now = || std::time::Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let begun = now();
    let mut scanner = Scanner::default();
    let message = vec![b'a'; limits::HEAD_BYTES - 1];
    for end in 1..=message.len() {
        assert_eq!(scanner.scan(&message[..end]).refused, None);
    }
    let took = now() - begun;
    assert!(took < std::time::Duration::from_secs(1), "{took:?}");
}

fn request(rest: &str) -> Vec<u8> {
    format!("POST /a?b HTTP/1.1\r\nHost: a.example\r\n{rest}").into_bytes()
}

#[test]
fn plain_messages_pass_whole() {
    for message in [
        request("\r\n"),
        request("Content-Length: 3\r\n\r\nabc"),
        request("Content-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: b\r\n\r\n"),
        request("Transfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\nA;x=\"y\"\r\n0123456789\r\n0\r\n\r\n"),
        request("Transfer-Encoding: chunked\r\nTrailer: x\r\n\r\n1\r\na\r\n0\r\nx: y\r\n\r\n"),
        request("X: caf\u{e9}\r\nEmpty:\r\nTab:\ta\r\n\r\n"),
        b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"
            .to_vec(),
        b"GET https://a.example/x HTTP/1.0\r\nHost: a.example\r\n\r\n".to_vec(),
    ] {
        let found = scan(&message);
        assert_eq!((found.pass, found.refused), (message.len(), None), "{}", message.escape_ascii());
    }
}

/// Messages with a second reading, and the reason each is refused for.
fn hostile() -> Vec<(Vec<u8>, Violation)> {
    let chunked = |rest: &str| request(&format!("Transfer-Encoding: chunked\r\n\r\n{rest}"));
    let websocket = "Host: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n";
    vec![
        (request("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"), Violation::TwoLengths),
        (request("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n"), Violation::TwoLengths),
        (request("Content-Length: +3\r\n\r\nabc"), Violation::ContentLength),
        (request("Content-Length: 3, 3\r\n\r\nabc"), Violation::ContentLength),
        (request("Content-Length: 0x3\r\n\r\nabc"), Violation::ContentLength),
        (request("Content-Length:\r\n\r\n"), Violation::ContentLength),
        (request("Content-Length: 99999999999999999999\r\n\r\n"), Violation::ContentLength),
        (request("Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"), Violation::ContentLength),
        (request("Content-Length: 3\r\ncontent-length: 4\r\n\r\nabc"), Violation::ContentLength),
        (request("Transfer-Encoding: xchunked\r\n\r\n"), Violation::TransferEncoding),
        (request("Transfer-Encoding: gzip, chunked\r\n\r\n"), Violation::TransferEncoding),
        (
            request("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n"),
            Violation::TransferEncoding,
        ),
        (
            b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
            Violation::TransferEncoding,
        ),
        (b"GET / HTTP/1.1\nHost: a\n\n".to_vec(), Violation::LineEnd),
        (request("X: y\n\r\n"), Violation::LineEnd),
        (request("X: y\rZ: z\r\n\r\n"), Violation::LineEnd),
        (request(" folded: y\r\n\r\n"), Violation::Field),
        (request("X: a\r\n folded\r\n\r\n"), Violation::Field),
        (request(": empty\r\n\r\n"), Violation::Field),
        (request("Transfer-Encoding : chunked\r\n\r\n"), Violation::Field),
        (request("No colon\r\n\r\n"), Violation::Field),
        (request("X: a\0b\r\n\r\n"), Violation::Field),
        (request("X\u{e9}: a\r\n\r\n"), Violation::Field),
        (request("Host: b.example\r\n\r\n"), Violation::Host),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Violation::Host),
        (b"GET / HTTP/1.0\r\n\r\n".to_vec(), Violation::Host),
        (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), Violation::Target),
        (b"GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), Violation::Target),
        (b"GET /caf\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), Violation::Target),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), Violation::RequestLine),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), Violation::RequestLine),
        (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n".to_vec(), Violation::RequestLine),
        (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), Violation::RequestLine),
        (b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), Violation::RequestLine),
        (b"GET /\r\nHost: a\r\n\r\n".to_vec(), Violation::RequestLine),
        (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n".to_vec(), Violation::Version),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), Violation::Version),
        (request("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n"), Violation::Upgrade),
        (b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n".to_vec(), Violation::Upgrade),
        (format!("GET / HTTP/1.1\r\n{websocket}Upgrade: h2c\r\n\r\n").into_bytes(), Violation::Upgrade),
        (format!("POST / HTTP/1.1\r\n{websocket}\r\n").into_bytes(), Violation::Upgrade),
        (format!("GET / HTTP/1.1\r\n{websocket}Content-Length: 1\r\n\r\nx").into_bytes(), Violation::Upgrade),
        (
            format!("GET / HTTP/1.1\r\n{websocket}\r\nGET /admin HTTP/1.1\r\n\r\n").into_bytes(),
            Violation::EarlyBytes,
        ),
        (chunked("3\nabc\r\n0\r\n\r\n"), Violation::LineEnd),
        (chunked("0x3\r\nabc\r\n0\r\n\r\n"), Violation::Chunk),
        (chunked("3 \r\nabc\r\n0\r\n\r\n"), Violation::Chunk),
        (chunked("-1\r\n"), Violation::Chunk),
        (chunked("\r\n"), Violation::Chunk),
        (chunked("fffffffffffffffff\r\n"), Violation::Chunk),
        (chunked("3\r\nabcd\r\n0\r\n\r\n"), Violation::Chunk),
        (chunked("3;\x01\r\nabc\r\n"), Violation::Chunk),
        (chunked("0\r\nbad trailer\r\n\r\n"), Violation::Field),
        (request(&format!("X: {}\r\n\r\n", "a".repeat(limits::HEAD_BYTES))), Violation::TooLarge),
        (request(&format!("{}\r\n", "X: a\r\n".repeat(limits::HEAD_FIELDS))), Violation::TooLarge),
    ]
}

#[test]
fn what_has_a_second_reading_is_refused_and_nothing_of_it_passes() {
    for (message, violation) in hostile() {
        let expected = Scanned { pass: 0, heads: 0, refused: Some(Refused::Message(violation)) };
        assert_eq!(scan(&message), expected, "{}", message.escape_ascii());
    }
}

#[test]
fn a_good_message_before_a_bad_one_passes() {
    let good = request("\r\n");
    let both = [good.clone(), b"GET / HTTP/1.1\nHost: a\n\n".to_vec()].concat();
    let expected =
        Scanned { pass: good.len(), heads: 1, refused: Some(Refused::Message(Violation::LineEnd)) };
    assert_eq!(scan(&both), expected);
}

#[test]
fn a_broken_rest_is_told_from_a_broken_message() {
    let mut scanner = Scanner::default();
    let head = request("Transfer-Encoding: chunked\r\n\r\n");
    assert_eq!(scanner.scan(&head).pass, head.len());
    assert!(scanner.in_body());
    let expected = Scanned { pass: 0, heads: 0, refused: Some(Refused::Rest(Violation::Chunk)) };
    assert_eq!(scanner.scan(b"zz\r\n"), expected);
    assert_eq!(scanner.scan(b"zz\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").pass, 0, "nothing passes any more");
}

/// Feeds `bytes` in pieces as a connection would; all bytes that passed, and the refusal.
fn feed(bytes: &[u8], pieces: &[usize]) -> (usize, Option<Refused>) {
    let (mut scanner, mut held, mut passed) = (Scanner::default(), Vec::new(), 0);
    let mut cuts = pieces.iter().cycle();
    let mut rest = bytes;
    while !rest.is_empty() {
        let cut = (*cuts.next().unwrap()).min(rest.len());
        held.extend_from_slice(&rest[..cut]);
        rest = &rest[cut..];
        let scanned = scanner.scan(&held);
        passed += scanned.pass;
        held.drain(..scanned.pass);
        if scanned.refused.is_some() {
            return (passed, scanned.refused);
        }
    }
    (passed, None)
}

proptest! {
    /// However a message is cut into reads, the same bytes pass.
    #[test]
    fn reads_of_any_size_agree(pieces in proptest::collection::vec(1usize..40, 1..20)) {
        let message = [
            request("Content-Length: 3\r\n\r\nabc"),
            request("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n10;x\r\n0123456789abcdef\r\n0\r\nx: y\r\n\r\n"),
            request("\r\n"),
        ]
        .concat();
        prop_assert_eq!(feed(&message, &pieces), (message.len(), None));
    }

    #[test]
    fn a_refusal_does_not_depend_on_the_reads(pieces in proptest::collection::vec(1usize..40, 1..20)) {
        for (message, violation) in hostile() {
            if message.len() > 500 { continue }
            let (_, refused) = feed(&message, &pieces);
            let found = match refused {
                Some(Refused::Message(found) | Refused::Rest(found)) => Some(found),
                None => None,
            };
            prop_assert_eq!(found, Some(violation), "{}", message.escape_ascii());
        }
    }

    /// The library takes every head that passes, and sees it end at the same byte: there is no third reading.
    #[test]
    fn the_library_reads_what_passes_alike(
        base in 0..40usize, at in 0..200usize, byte in proptest::sample::select(&b"\r\n \t:;,#%/\\\0aG1\x7f\xff"[..]), insert: bool,
    ) {
        let mut messages: Vec<_> = hostile().into_iter().map(|(message, _)| message).collect();
        messages.push(request("X: y\r\nAccept: */*\r\n\r\n"));
        let mut message = messages[base % messages.len()].clone();
        let at = at % message.len();
        if insert { message.insert(at, byte) } else { message[at] = byte }
        let mut scanner = Scanner::default();
        let mut fields = [httparse::EMPTY_HEADER; limits::HEAD_FIELDS];
        let mut parsed = httparse::Request::new(&mut fields);
        let end = parsed.parse(&message);
        if let Ok(httparse::Status::Complete(end)) = end {
            let scanned = scanner.scan(&message[..end]);
            prop_assert!(scanned.pass == 0 || scanned.pass == end, "{}", message.escape_ascii());
        } else {
            let passed = scanner.scan(&message);
            prop_assert_eq!(passed.heads, 0, "{} {:?}", message.escape_ascii(), end);
        }
    }

    #[test]
    fn no_bytes_panic_the_scanner(bytes: Vec<u8>) {
        let scanned = scan(&bytes);
        prop_assert!(scanned.pass <= bytes.len());
    }
}
